# Promotion of a standby, and pg_dump restored into a new cluster: what was not done is delivered there, what was done is not.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1);
$primary->append_conf('postgresql.conf', <<'CONF');
shared_preload_libraries = 'evbus'
max_worker_processes = 24
max_prepared_transactions = 10
CONF
$primary->start;
$primary->safe_psql('postgres', 'CREATE EXTENSION evbus');
shop($primary);
$primary->safe_psql('postgres', <<'SQL');
SELECT evbus.create_bus('quiet');
SELECT evbus.subscribe('quiet', 'quiet reader');
SELECT evbus.publish('quiet', 'silence', '1');
CREATE TABLE "Stock" (id integer, "n'o" integer, part text) PARTITION BY LIST (part);
CREATE TABLE stock_a PARTITION OF "Stock" FOR VALUES IN ('a');
CREATE TABLE shelf (id integer PRIMARY KEY, n integer);
INSERT INTO "Stock" VALUES (1, 1, 'a');
INSERT INTO shelf VALUES (1, 1);
SELECT evbus.publish_changes('"Stock"', 'quiet', key_columns => '{id,n''o}');
SELECT evbus.publish_changes('shelf', 'quiet');
CREATE FUNCTION fail(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION USING MESSAGE = 'as told', ERRCODE = CASE e.type WHEN 'bad' THEN '22012' ELSE 'P0001' END;
END $$;
SELECT evbus.subscribe('orders', 'failing', types => '{bad,later}', handler => 'fail(evbus.event)', backoff_initial => '1 hour');
SELECT evbus.publish('orders', 'bad', '1'), evbus.publish('orders', 'later', '1');
SELECT count(evbus.publish('orders', 'a', to_jsonb(i))) FROM generate_series(1, 20) AS i;
SQL
is((receive_all($primary, 'postgres', 'reader', 7))[-1], '7 a 5', 'a client has acked seven of twenty-two');
answers($primary, 'postgres', 'SELECT count(*) FROM effect', '22', 'the handler is through');
answers($primary, 'postgres', 'SELECT (SELECT count(*) FROM evbus.retry_list) || \' \' || (SELECT count(*) FROM evbus.dead_letter)', '1 1', 'there are a retry and a dead letter');
$primary->safe_psql('postgres', q(SELECT evbus.pause('handled')));
$primary->safe_psql('postgres', q(SELECT count(evbus.publish('orders', 'b', to_jsonb(i))) FROM generate_series(1, 5) AS i));
$primary->safe_psql('postgres', q(SELECT count(*) FROM evbus.receive('reader', 3, lease => '1 hour')));

# What another server shall make of it: lists and rows, without what time changes.
my $state = <<'SQL';
SELECT (SELECT json_agg(b.*) FROM (SELECT bus, durability, retention, max_payload_bytes, next_position FROM evbus.bus_list ORDER BY 1) AS b),
	(SELECT json_agg(s.*) FROM (SELECT subscription, bus, owner, types, handler, max_attempts, paused FROM evbus.subscription_list ORDER BY 1) AS s),
	(SELECT json_agg(l.*) FROM (SELECT subscription, cursor_position, next_position, lag, in_flight, retries FROM evbus.subscription_lag ORDER BY 1) AS l),
	(SELECT json_agg(r.*) FROM evbus.retry_list AS r), (SELECT json_agg(d.*) FROM evbus.dead_letter AS d), (SELECT json_agg(d.*) FROM evbus.dead_letter_summary AS d),
	(SELECT json_agg(h.*) FROM (SELECT * FROM evbus.history ORDER BY event_id) AS h)
SQL

# Everything that was to be done is done there, once, and the bus goes on where it stood.
sub goes_on
{
	my ($node, $where) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$node->poll_query_until('postgres', 'SELECT ready FROM evbus._status()');
	my @got = receive_all($node, 'postgres', 'reader', 20);
	is(join(' ', map { (split / /)[0] } @got), join(' ', 8 .. 27), "the client is given what it had not acked, and nothing else: $where");
	is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.receive('reader', 10, wait => '300 ms'))), '0', "and then nothing: $where");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM effect'), '22', "a paused subscription stays paused: $where");
	$node->safe_psql('postgres', q(SELECT evbus.resume('handled')));
	$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'c', '1'), evbus.publish('quiet', 'sound', '2')));
	answers($node, 'postgres', q(SELECT count(*) || ' ' || count(DISTINCT position) || ' ' || max(position) FROM effect), '28 28 28', "resumed, it is given the rest once, and what is new has the next position: $where");
	is(join(', ', receive_all($node, 'postgres', 'quiet reader', 2)), '1 silence 1, 2 sound 2', "a quiet bus goes on where it stood: $where");
	is($node->safe_psql('postgres', q(SELECT evbus.redrive(subscription => 'failing'))), '1', "a dead letter can be redriven: $where");
	answers($node, 'postgres', q(SELECT string_agg(type || ' ' || attempts || ' ' || redrives, ' ') FROM evbus.dead_letter), 'bad 1 1', "and is tried: $where");
	is($node->safe_psql('postgres', q(UPDATE shelf SET n = 2; INSERT INTO stock_a VALUES (2, 3, 'a');
		SELECT string_agg(type || ' ' || key, ', ' ORDER BY event_id) FROM evbus.history WHERE type ~ '\.(inserted|updated)$')),
		'shelf.updated 1, Stock.inserted [2, 3]', "changes of tables are published, those from now on: $where");
	is($node->safe_psql('postgres', 'SELECT count(*) - count(DISTINCT event_id) FROM evbus.event_log'), '0', "no id is used twice: $where");
}

# ------------------------------------------------------- a dump, a new cluster

my $expected = $primary->safe_psql('postgres', $state);
# Leases are of memory: what clients hold is given out again.
$expected =~ s/"in_flight":3/"in_flight":0/;
my %dump;
foreach my $format ('plain', 'custom')
{
	$dump{$format} = PostgreSQL::Test::Utils::tempdir() . "/$format";
	$primary->command_ok([ 'pg_dump', "--format=$format", '-f', $dump{$format}, '-d', $primary->connstr('postgres') ], "a dump: $format");
}
foreach my $format ('plain', 'custom')
{
	my $copy = new_node("copy_$format", database => undef);
	# Its transaction ids are lower than those of the dump, and ids of events are no transaction ids.
	$copy->command_ok($format eq 'plain'
		? [ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump{plain}, '-d', $copy->connstr('postgres') ]
		: [ 'pg_restore', '--exit-on-error', '--jobs=2', '-d', $copy->connstr('postgres'), $dump{custom} ], "is restored into a new cluster: $format");
	$copy->restart if $format eq 'plain';
	is($copy->safe_psql('postgres', 'SELECT evbus.take_over()'), 't', "it takes the place of the original: $format");
	if ($format eq 'plain')
	{
		# What a handler's patterns passed over is passed over again.
		answers($copy, 'postgres', $state, $expected, 'buses, subscriptions, progress, retries, dead letters and log are the same there');
	}
	goes_on($copy, $format eq 'plain' ? 'restored and restarted' : 'restored, without a restart');
	$copy->stop('immediate');
}

# ------------------------------------------------------------------ promotion

$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;
$primary->safe_psql('postgres', q(SELECT evbus.release(ARRAY(SELECT receipt FROM evbus.receive('reader', 1))), evbus.seek('reader', '8')));
$primary->safe_psql('postgres', q(BEGIN; SELECT evbus.publish('orders', 'prepared', '1'); PREPARE TRANSACTION 'p'));
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('write'));

# A standby only looks on.
is($standby->safe_psql('postgres', q(SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'evbus%')), '0', 'no worker runs on a standby');
foreach my $call (q(SELECT evbus.publish('orders', 'x', '1')), q(SELECT * FROM evbus.receive('reader')), q(CALL evbus.maintain()), q(SELECT evbus.create_bus('x')))
{
	my ($ret, $stdout, $stderr) = $standby->psql('postgres', "\\set VERBOSITY verbose\n$call");
	like($stderr, qr/ERROR:  25006:/, "on a standby: $call");
}
is($standby->safe_psql('postgres', 'SELECT count(*) FROM evbus.history'), '28', 'the history can be read');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM effect'), '22', 'and nothing is done there');

$primary->stop('immediate');
$standby->promote;
answers($standby, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('evbus launcher', 'evbus sequencer', 'evbus maintainer')), '3', 'after the promotion the workers come by themselves');
goes_on($standby, 'promoted');
$standby->safe_psql('postgres', q(COMMIT PREPARED 'p'));
answers($standby, 'postgres', q(SELECT max(position) FROM effect WHERE type = 'prepared'), '29', 'a transaction prepared on the old primary is committed on the new one and delivered');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM evbus.late'), '0', 'and leaves no late row');

$standby->stop;
done_testing();
