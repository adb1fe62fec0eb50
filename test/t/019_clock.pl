# The wall clock jumps: an hour back, an hour on (beside transactions that are open so long), past 2038 and back,
# past 2071 and back.
# Nothing is lost, doubled or put in another order; what waits for a time may wait longer, never shorter than it is worth.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = new_node('clock', clock => 1, conf => <<'CONF');
evbus.upkeep_interval = '200ms'
evbus.late_after = '10s'
autovacuum = off
CONF

shop($node);
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION fail_once(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF e.attempt = 1 THEN
		RAISE EXCEPTION 'once';
	END IF;
	INSERT INTO second (type) VALUES (e.type);
END $$;
CREATE TABLE second (type text);
SELECT evbus.subscribe('orders', 'retrying', types => '{retry.*}', handler => 'fail_once(evbus.event)', backoff_initial => '30 minutes', backoff_max => '30 minutes');
SELECT evbus.subscribe('orders', 'sleeper', types => '{kept}');
SQL

my $serial = 0;

# Twenty events in transactions of their own, delivered, in this order and after all that came before.
sub works
{
	my ($when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $tag = 'w' . ++$serial;
	$node->safe_psql('postgres', "DO \$\$BEGIN FOR i IN 1 .. 20 LOOP PERFORM evbus.publish('orders', '$tag', to_jsonb(i)); COMMIT; END LOOP; END\$\$");
	complete($node, $when);
	is($node->safe_psql('postgres', <<~"SQL"), 't t', "ids and positions grow: $when");
		SELECT concat_ws(' ', (SELECT min(event_id) FROM evbus.history WHERE type = '$tag') > coalesce((SELECT max(event_id) FROM evbus.history WHERE type <> '$tag'), 0),
			(SELECT bool_and(position > before) FROM (SELECT position, lag(position, 1, (SELECT max(position) FROM effect WHERE type <> '$tag')) OVER (ORDER BY payload::integer) AS before
				FROM effect JOIN evbus.history USING (event_id) WHERE effect.type = '$tag') AS e))
		SQL
}

sub now
{
	return $node->safe_psql('postgres', q(SELECT extract(epoch FROM clock_timestamp())::bigint));
}

works('before any jump');
$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'retry.a', '1'), evbus.publish('orders', 'kept', '1')));
answers($node, 'postgres', 'SELECT count(*) FROM evbus.retry_list', '1', 'a retry waits half an hour');

# --------------------------------------------------------------- an hour back

# At the moment of the jump a client waits, another holds a lease, and the launcher counts the half second until it starts
# a sequencer that has ended.
my $held = $node->safe_psql('postgres', q(SELECT receipt FROM evbus.receive('reader', 1, lease => '2 seconds')));
my $waiting = $node->background_psql('postgres');
$waiting->query_until(qr/begun/, "\\echo begun\nSELECT * FROM evbus.receive('sleeper', 1, lease => '1 hour');\nSELECT * FROM evbus.receive('sleeper', wait => '5 seconds');\n\\echo finished\n");
my $sequencer = worker_pids($node, 'evbus sequencer');
my $launcher = worker_pids($node, 'evbus launcher');
kill 'STOP', $launcher;
$node->safe_psql('postgres', "SELECT pg_terminate_backend($sequencer, 10000)");
kill 'CONT', $launcher;
usleep(300_000);
my $before = now();
move_clock(-3600);
cmp_ok(now(), '<', $before - 3000, 'the clock jumps an hour back');
ok(other_worker($node, 'evbus sequencer', $sequencer), 'a sequencer that ended just before comes back all the same');
ok($node->poll_query_until('postgres', q(SELECT count(*) = 0 FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%5 seconds%' AND pid <> pg_backend_pid())), 'a client that waits for some seconds does not wait for an hour');
$waiting->quit;
works('an hour back');
is($node->safe_psql('postgres', 'SELECT count(*) FROM second'), '0', 'a retry waits on');
my $again = q(SELECT count(*) FROM evbus.receive('reader', 1, lease => '1 second'));
is($node->safe_psql('postgres', $again), '1', 'deliveries go on');
$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'retry.b', '1')));
answers($node, 'postgres', 'SELECT count(*) FROM evbus.retry_list', '2', 'and what fails now waits its half hour, too');

# ------------------------- on again, beside transactions that are open for an hour

my ($publisher, $writer, $reader) = map { $node->background_psql('postgres') } 1 .. 3;
$publisher->query_safe('BEGIN');
$publisher->query_safe(q(SELECT evbus.publish('orders', 'long', '1')));
$writer->query_safe('BEGIN');
$writer->query_safe(q(INSERT INTO second VALUES ('never')));
$reader->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
$reader->query_safe('SELECT count(*) FROM evbus.history');
move_clock(0);
cmp_ok(now(), '>=', $before, 'the clock jumps on again by an hour, beside transactions that stay open: one that has published, one that has written, one with a snapshot');
works('an hour on');
answers($node, 'postgres', q(SELECT string_agg(type, ' ' ORDER BY type) FROM second), 'retry.b', 'the retry that has become due is tried');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.history WHERE type = 'long')), '0', 'what the open one has published is not there yet');
works('an hour later');
is($node->safe_psql('postgres', q(SELECT max(low_id) > (SELECT max(event_id) FROM evbus.history WHERE type = 'w3') FROM evbus.tick)), 't', 'and recovery need not begin at an event an hour old');
$publisher->query_safe(q(SELECT evbus.publish('orders', 'long', '2')));
$publisher->query_safe('COMMIT');
works('the transaction that was open for an hour has committed');
is($node->safe_psql('postgres', q(SELECT count(*) FROM effect WHERE type = 'long' AND position > (SELECT max(position) FROM effect WHERE type = 'w4') AND position < (SELECT min(position) FROM effect WHERE type = 'w5'))), '2',
	'its events are delivered once, in the order of its commit');
is($node->safe_psql('postgres', q(SELECT pg_stat_force_next_flush())), '', 'the counts are up to date');
is($node->safe_psql('postgres', q(SELECT coalesce(sum(n_dead_tup), 0) FROM pg_stat_user_tables WHERE schemaname = 'evbus' AND relname ~ '^(event|tick|ack)')), '0', 'no dead row is in what grows with events');
$writer->query_safe('ROLLBACK');
$reader->query_safe('COMMIT');
$_->quit foreach $publisher, $writer, $reader;

# ------------------------------------------------------ past 2038, and back

move_clock(13 * 365 * 86400);
cmp_ok($node->safe_psql('postgres', 'SELECT extract(year FROM now())'), '>', 2038, 'the clock jumps past 2038');
works('past 2038');
$node->safe_psql('postgres', 'CALL evbus.maintain()');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.history WHERE type = 'kept')), '1', 'retention takes no event that a subscription has not had');
is((receive_all($node, 'postgres', 'sleeper', 1))[0] =~ / kept 1$/, 1, 'which can still have it');
move_clock(0);
works('back again');

# Ids can tell times up to 2071: a clock beyond that is not believed.
move_clock(60 * 365 * 86400);
works('past what ids can tell');
$node->safe_psql('postgres', 'CALL evbus.maintain()');
move_clock(0);
works('back from there');
$node->stop('immediate');
start_moved($node);
$node->poll_query_until('postgres', 'SELECT ready FROM evbus._status()');
works('after a crash');
is($node->safe_psql('postgres', q(SELECT extract(year FROM max(published_at)) > 2038 FROM evbus.history)), 't', 'ids never go back: they bear the latest time that was seen');

$node->stop;
done_testing();
