# Indexes of closed leaves: built by a worker of their own, which holds up nobody, stops where it must, and survives a crash.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('history', conf => <<'CONF');
evbus.history_indexes = off
evbus.upkeep_interval = '100ms'
max_prepared_transactions = 2
restart_after_crash = on
CONF

# A leaf of some hours ago with a hundred events in it, as the maintainer would have made it; its name.
$node->safe_psql('postgres', <<'SQL');
SELECT evbus.create_bus('orders', retention => '1000 hours', partition_interval => '1 day');
SELECT evbus.publish('orders', 'order.created', '1');
CREATE FUNCTION old_leaf(hours_ago integer) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	lo timestamptz := date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' - make_interval(hours => hours_ago);
	name text := 'event_c1_p' || to_char(lo AT TIME ZONE 'UTC', 'YYYYMMDD_HH24MISS');
BEGIN
	EXECUTE format('CREATE TABLE evbus.%I (LIKE evbus.event_log INCLUDING STORAGE)', name);
	EXECUTE format('ALTER TABLE evbus.%I ADD PRIMARY KEY (event_id)', name);
	EXECUTE format('ALTER TABLE evbus.event_c1 ATTACH PARTITION evbus.%I FOR VALUES FROM (%s) TO (%s)', name, evbus._time_event(lo), evbus._time_event(lo + interval '1 hour'));
	INSERT INTO evbus.event_log SELECT evbus._time_event(lo) + i, 1, bus_id, 'order.paid', 'k' || i, NULL, payload
	FROM (SELECT * FROM evbus.event_log ORDER BY event_id DESC LIMIT 1) e, generate_series(1, 100) i;
	RETURN name;
END $$;
SQL

# Returns when the maintainer has gone through a whole upkeep since, which ends with a look at leaves to be indexed:
# each upkeep deletes retries of no subscription.
sub upkeep_passes
{
	foreach (1 .. 3)
	{
		$node->safe_psql('postgres', q(INSERT INTO evbus.retry VALUES (-1, 1, 1, 1, now(), now(), now(), 'VB000', '', 0, 'a', NULL, NULL, '')));
		$node->poll_query_until('postgres', 'SELECT NOT EXISTS (SELECT FROM evbus.retry WHERE subscription_id = -1)') or return 0;
	}
	return $node->poll_query_until('postgres', q(SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'evbus indexer')));
}

sub setting
{
	my ($value) = @_;
	return $node->safe_psql('postgres', "ALTER SYSTEM SET evbus.history_indexes = $value; SELECT pg_reload_conf()");
}

sub indexed
{
	my ($leaf) = @_;
	return "SELECT indexed FROM evbus.leaf_list WHERE leaf = '$leaf'";
}

# The setting

my $first = $node->safe_psql('postgres', 'SELECT old_leaf(1)');
ok(upkeep_passes(), 'an upkeep goes by');
is($node->safe_psql('postgres', indexed($first)), 'f', 'with evbus.history_indexes off a closed leaf is not indexed');
setting('on');
answers($node, 'postgres', indexed($first), 't', 'on: it is');
ok($node->safe_psql('postgres', "SELECT rows = 100 FROM evbus.leaf_list WHERE leaf = '$first'"), 'and analyzed');

# Who has the leaf locked is not waited for longer than a second, and what it writes gets into the index.

$node->safe_psql('postgres', "ALTER SYSTEM SET evbus.history_indexes = off; SELECT pg_reload_conf()");
my $second = $node->safe_psql('postgres', 'SELECT old_leaf(2)');
$node->safe_psql('postgres', <<"SQL");
BEGIN;
INSERT INTO evbus.event_log SELECT max(event_id) + 1, 1, min(bus_id), 'order.late', 'late', NULL, (array_agg(payload))[1] FROM evbus.$second;
PREPARE TRANSACTION 'late';
SQL
my $at = -s $node->logfile;
setting('on');
ok($node->wait_for_log(qr/could not index leaf "$second" yet: it is in use/, $at), 'a prepared transaction keeps a leaf from being indexed');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.history_page('orders', types => '{order.paid}', "limit" => 1000))), '200', 'readers do not notice');
$node->safe_psql('postgres', q(COMMIT PREPARED 'late'));
answers($node, 'postgres', indexed($second), 't', 'once it is committed the leaf is indexed');
is($node->safe_psql('postgres', q(SELECT key FROM evbus.history_page('orders', types => '{order.late}'))), 'late', 'with its row');

# A leaf that will soon be dropped is left alone.

my $old = $node->safe_psql('postgres', 'SELECT old_leaf(73)');
answers($node, 'postgres', indexed($old), 't', 'an old leaf that is kept for long is indexed');
$node->safe_psql('postgres', qq(UPDATE evbus.storage_class SET retention = make_interval(secs => (SELECT extract(epoch FROM now() - to_time) * 1.05 FROM evbus.leaf_list WHERE leaf = '$old')) WHERE storage_class_id = 1));
my ($short, $young) = split /\|/, $node->safe_psql('postgres', 'SELECT old_leaf(71), old_leaf(10)');
answers($node, 'postgres', indexed($young), 't', 'a leaf that has time left is indexed');
answers($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'evbus indexer'), '0', 'the indexer, which begins with the newest, is through');
is($node->safe_psql('postgres', indexed($short)), 'f', 'one that goes before it has been of use is not indexed');
is($node->safe_psql('postgres', "SELECT closed FROM evbus.leaf_list WHERE leaf = '$short'"), 't', 'closed as it is');
$node->safe_psql('postgres', q(UPDATE evbus.storage_class SET retention = '1000 hours' WHERE storage_class_id = 1));
answers($node, 'postgres', indexed($short), 't', 'with a longer retention it is');

SKIP:
{
	skip 'the library has no debug points', 1 unless points($node);

	# While a leaf is being indexed, nobody waits.
	point($node, 'leaf.indexed', 'wait');
	my $third = $node->safe_psql('postgres', 'SELECT old_leaf(3)');
	ok(reached($node, 'leaf.indexed'), 'the indexer is at work');
	is($node->safe_psql('postgres', q(SET statement_timeout = '5s'; SELECT evbus.publish('orders', 'order.created', '2') > 0)), 't', 'publishers go on');
	$node->safe_psql('postgres', q(SELECT evbus.subscribe('orders', 'reader', start_from => 'now')));
	$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'order.created', '3')));
	is((() = receive_all($node, 'postgres', 'reader', 1)), 1, 'so do readers');
	is($node->safe_psql('postgres', qq(SET statement_timeout = '5s'; SELECT count(*) FROM evbus.$third)), '100', 'also of that leaf');
	ok(upkeep_passes_busy(), 'the maintainer goes on as well');

	# Killed with its work done and not committed.
	$at = -s $node->logfile;
	point($node, 'leaf.indexed', 'off');
	answers($node, 'postgres', indexed($third), 't', 'let go, it commits');
	point($node, 'leaf.indexed', 'kill');
	my $fourth = $node->safe_psql('postgres', 'SELECT old_leaf(4)');
	ok(crashed($node, $at), 'the server crashes in the middle of an index');
	answers($node, 'postgres', indexed($fourth), 't', 'after the restart the leaf is indexed by itself');
	is($node->safe_psql('postgres', "SELECT count(*) FILTER (WHERE indisvalid) || ' of ' || count(*) FROM pg_index WHERE indrelid = 'evbus.$fourth'::regclass"), '3 of 3', 'with nothing left over');

	# An error is logged and tried again.
	$at = -s $node->logfile;
	point($node, 'leaf.indexed', 'error');
	my $fifth = $node->safe_psql('postgres', 'SELECT old_leaf(5)');
	ok($node->wait_for_log(qr/ERROR:  evbus point "leaf.indexed"/, $at), 'it fails');
	answers($node, 'postgres', indexed($fifth), 't', 'and tries again');

	# DROP EXTENSION sends it away.
	point($node, 'leaf.indexed', 'wait');
	$node->safe_psql('postgres', 'SELECT old_leaf(6)');
	ok(reached($node, 'leaf.indexed'), 'the indexer is at work once more');
	my ($ret, $out, $err) = $node->psql('postgres', q(SET statement_timeout = '20s'; DROP EXTENSION evbus CASCADE));
	is($ret, 0, 'DROP EXTENSION does not wait for it') or diag $err;
	answers($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'evbus indexer'), '0', 'it is gone');
}

# An upkeep goes by while the indexer is at work.
sub upkeep_passes_busy
{
	$node->safe_psql('postgres', q(INSERT INTO evbus.retry VALUES (-1, 1, 1, 1, now(), now(), now(), 'VB000', '', 0, 'a', NULL, NULL, '')));
	return $node->poll_query_until('postgres', 'SELECT NOT EXISTS (SELECT FROM evbus.retry WHERE subscription_id = -1)');
}

$node->stop;
done_testing();
