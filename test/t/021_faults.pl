# Faults that need a server of their own and no debug point: killed clients and postmasters, stops, handlers deaf to signals,
# memory that runs out, timeouts, full connection slots, an upkeep that fails, replication, repeated CREATE EXTENSION.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('faults', conf => <<'CONF');
restart_after_crash = on
max_connections = 20
superuser_reserved_connections = 0
wal_level = logical
max_wal_senders = 4
max_replication_slots = 4
evbus.upkeep_interval = '200ms'
evbus.late_after = '1h'
evbus.max_handler_workers = 6
CONF
shop($node);
test_module($node);
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE odd_effect (type text, attempt integer, pid integer DEFAULT pg_backend_pid());
CREATE FUNCTION odd(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE LOG 'odd handler: % attempt %', e.type, e.attempt;
	CASE e.type
		WHEN 'odd.sleep' THEN PERFORM pg_sleep(600);
		WHEN 'odd.hog' THEN PERFORM test_hog(20);
		ELSE NULL;
	END CASE;
	INSERT INTO odd_effect VALUES (e.type, e.attempt);
END $$;
SELECT evbus.subscribe('orders', 'odd', types => '{odd.*}', handler => 'odd(evbus.event)', max_attempts => 2, timeout => '10 minutes', backoff_initial => '10 ms');
CREATE FUNCTION deaf(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE LOG 'deaf handler: attempt %', e.attempt;
	PERFORM test_spin(2600);
END $$;
SELECT evbus.subscribe('orders', 'deaf', types => '{deaf}', handler => 'deaf(evbus.event)', max_attempts => 1, timeout => '200 ms');
SQL

sub publish
{
	my ($type, $n) = @_;
	return $node->safe_psql('postgres', sprintf(q(SELECT count(evbus.publish('orders', '%s', to_jsonb(i))) FROM generate_series(1, %d) AS i), $type, $n // 1));
}

# A slot that was left open would hold back where recovery starts.
sub no_slot_open
{
	my ($when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $id = $node->safe_psql('postgres', 'SELECT max(event_id) FROM evbus.event_log');
	publish('probe');
	return answers($node, 'postgres', "SELECT max(low_id) > $id FROM evbus.tick", 't', "no publisher's slot is left open: $when");
}

my $log = -s $node->logfile;
my $handler_pid = q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'evbus handler' AND query LIKE '%"odd"%');

# ------------------------------------------- a handler that hears no signal; it goes on beside what follows

publish('deaf');
$node->wait_for_log(qr/deaf handler: attempt 1/, $log);
publish('beside');
answers($node, 'postgres', q(SELECT count(*) FROM effect WHERE type = 'beside'), '1', 'beside a handler that hears no signal another subscription is served');
is($node->safe_psql('postgres', q(SELECT in_flight || ' ' || workers FROM evbus.subscription_lag WHERE subscription = 'deaf')), '1 1', 'and the lag view shows the worker that is stuck');

# ------------------------------------------------- clients that are killed

my $script = '';
my $client = IPC::Run::start([ 'psql', '-X', '-q', '-d', $node->connstr('postgres') ], '<', \$script, '>', \my $out, '2>', \my $err);
$script .= "BEGIN; SELECT evbus.publish('orders', 'ghost', '1'); SELECT 'pub' || 'lished' AS done;\n";
$client->pump until $out =~ /published/;
my $backend = q(SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND query LIKE '%lished%');
is($node->safe_psql('postgres', $backend), '1', 'a client has published and not committed');
$client->kill_kill(grace => 0);
answers($node, 'postgres', $backend, '0', 'killed with SIGKILL, its transaction is rolled back');
no_slot_open('a killed client');

# ---------------------------------------------------------- timeouts and cancels

foreach my $ms (1, 2, 3, 5, 8, 13, 21, 34)
{
	$node->psql('postgres', "SET statement_timeout = '${ms}ms'; SELECT count(evbus.publish('orders', 'timeout', to_jsonb(repeat('x', 200)))) FROM generate_series(1, 10000)");
}
like(PostgreSQL::Test::Utils::slurp_file($node->logfile, $log), qr/canceling statement due to statement timeout/, 'publishers run into statement_timeout');
$node->psql('postgres', q(SET idle_in_transaction_session_timeout = '20ms'; BEGIN; SELECT evbus.publish('orders', 'idle', '1'); \! sleep 0.2
COMMIT));
like(PostgreSQL::Test::Utils::slurp_file($node->logfile, $log), qr/terminating connection due to idle-in-transaction timeout/, 'one into idle_in_transaction_session_timeout');
my $locker = $node->background_psql('postgres');
$locker->query_safe('BEGIN');
$locker->query_safe('LOCK TABLE evbus.event_log IN ACCESS EXCLUSIVE MODE');
like(($node->psql('postgres', q(SET lock_timeout = '50ms'; SELECT evbus.publish('orders', 'locked', '1'))))[2], qr/lock timeout/, 'and one into lock_timeout, at its commit');
$locker->query_safe('ROLLBACK');
no_slot_open('timeouts');
complete($node, 'timeouts');

# ------------------------------------------------------------------- memory

# A process may take so many megabytes more than it has.
sub limit_memory
{
	my ($pid, $mb) = @_;
	my ($size) = PostgreSQL::Test::Utils::slurp_file("/proc/$pid/status") =~ /^VmSize:\s+(\d+) kB/m;
	system_or_bail('prlimit', '--pid', $pid, '--as=' . ($size + $mb * 1024) * 1024 . ':');
}

my $session = $node->background_psql('postgres', on_error_stop => 0);
limit_memory($session->query_safe('SELECT pg_backend_pid()'), 30);
my $refused = $session->query(q(SELECT evbus.publish('orders', 'large', to_jsonb(repeat('x', 12000000)))));
like($session->{stderr}, qr/out of memory/, 'a publisher runs out of memory');
$session->{stderr} = '';
$session->query_safe(q(SELECT evbus.publish('orders', 'small', '1')));
$session->quit;
answers($node, 'postgres', q(SELECT string_agg(type, ' ') FROM effect WHERE type IN ('large', 'small')), 'small', 'only that call fails: the session lives and publishes');
no_slot_open('a publisher without memory');

publish('odd.before');
answers($node, 'postgres', 'SELECT count(*) FROM odd_effect', '1', 'a handler works');
publish('odd.hog');
answers($node, 'postgres', q(SELECT attempts || ' ' || sqlstate || ' ' || message FROM evbus.dead_letter WHERE type = 'odd.hog'), '2 53200 out of memory', 'one that runs out of memory fails, and is tried again as often as others');
publish('odd.after');
answers($node, 'postgres', q(SELECT string_agg(type, ' ' ORDER BY type) FROM odd_effect), 'odd.after odd.before', 'and the next event is handled');
unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile, $log), qr/terminated by signal/, 'no process died of it');

# --------------------------------------------------------------- connections

my @sessions;
while (@sessions < 30)
{
	my $another = eval { $node->background_psql('postgres', on_error_stop => 0) } or last;
	push @sessions, $another;
}
cmp_ok(scalar(@sessions), '<', 30, 'every connection slot is taken');
my $first = $sessions[0];
$first->query_safe(q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type IN ('evbus sequencer', 'evbus maintainer', 'evbus handler')));
$first->query_safe(q(SELECT evbus.publish('orders', 'crowded', '1')));
$first->query_safe(q(DO $$BEGIN FOR i IN 1 .. 400 LOOP EXIT WHEN EXISTS (SELECT FROM effect WHERE type = 'crowded'); PERFORM pg_sleep(0.05); END LOOP; END$$));
is($first->query_safe(q(SELECT count(*) FROM effect WHERE type = 'crowded')), '1', 'workers need none of them: terminated, they come back and deliver');
eval { $_->quit } foreach @sessions;
ok($node->poll_query_until('postgres', 'SELECT true'), 'then clients can connect again');

# ------------------------------------------------- upkeep that fails, or waits

$log = -s $node->logfile;
my $leaf = $node->safe_psql('postgres', q(SELECT max(relid::regclass::text) FROM pg_partition_tree('evbus.event_c1') WHERE isleaf));
$node->safe_psql('postgres', "BEGIN; DROP TABLE $leaf; CREATE TABLE $leaf (planted integer); COMMIT");
$node->wait_for_log(qr/ERROR:  relation "\w+" already exists/, $log);
my $maintainer = worker_pids($node, 'evbus maintainer');
publish('while.upkeep.fails');
complete($node, 'upkeep fails');
is(worker_pids($node, 'evbus maintainer'), $maintainer, 'the maintainer logs what failed and goes on');
$node->safe_psql('postgres', "DROP TABLE $leaf");
answers($node, 'postgres', "SELECT count(*) FROM pg_partition_tree('evbus.event_c1') WHERE relid::regclass::text = '$leaf'", '1', 'and does it once it can be done');

$log = -s $node->logfile;
$locker->query_safe('BEGIN');
$locker->query_safe(<<'SQL');
CREATE TABLE evbus.event_c1_old (LIKE evbus.event_c1 INCLUDING DEFAULTS);
DO $$
BEGIN
	EXECUTE format('ALTER TABLE evbus.event_c1 ATTACH PARTITION evbus.event_c1_old FOR VALUES FROM (%s) TO (%s)', evbus._time_event('2020-01-01'), evbus._time_event('2020-01-02'));
END $$;
SQL
$locker->query_safe('COMMIT; BEGIN; LOCK TABLE evbus.event_c1_old IN ACCESS SHARE MODE');
$node->wait_for_log(qr/evbus could not drop leaf "event_c1_old" yet: it is in use/, $log);
publish('while.read');
complete($node, 'a leaf past its retention is being read');
$locker->query_safe('COMMIT');
$locker->quit;
answers($node, 'postgres', q(SELECT to_regclass('evbus.event_c1_old') IS NULL), 't', 'it is dropped once nobody reads it');

# --------------------------------------------------------- a role that is gone

$node->safe_psql('postgres', <<'SQL');
CREATE ROLE leaver LOGIN;
GRANT USAGE ON SCHEMA evbus TO leaver;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA evbus TO leaver;
CREATE FUNCTION quietly(e evbus.event) RETURNS void LANGUAGE plpgsql AS 'BEGIN END';
SELECT evbus.grant('subscribe', 'orders', 'leaver');
SET SESSION AUTHORIZATION leaver;
SELECT evbus.subscribe('orders', 'leavers', types => '{left}', handler => 'quietly(evbus.event)');
RESET SESSION AUTHORIZATION;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA evbus FROM leaver;
REVOKE USAGE ON SCHEMA evbus FROM leaver;
DROP ROLE leaver;
SQL
publish('left');
answers($node, 'postgres', q(SELECT paused_reason IS NOT NULL FROM evbus.subscription_lag WHERE subscription = 'leavers'), 't', 'a subscription whose owner was dropped is paused, with a reason');
complete($node, 'the others go on');
$node->safe_psql('postgres', q(SELECT evbus.unsubscribe('leavers')));

# ----------------------------------------------- published by logical replication

$node->safe_psql('postgres', 'CREATE TABLE replicated (n integer PRIMARY KEY)');
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION publish_row() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM evbus.publish('orders', 'replicated', to_jsonb(NEW.n)); RETURN NULL; END$$;
CREATE TRIGGER publish_row AFTER INSERT ON replicated FOR EACH ROW EXECUTE FUNCTION publish_row();
ALTER TABLE replicated ENABLE ALWAYS TRIGGER publish_row;
SQL
$node->safe_psql('postgres', 'CREATE DATABASE source');
$node->safe_psql('source', q(CREATE TABLE replicated (n integer PRIMARY KEY); CREATE PUBLICATION p FOR TABLE replicated));
$node->safe_psql('source', q(SELECT pg_create_logical_replication_slot('s', 'pgoutput')));
$node->safe_psql('postgres', sprintf(q(CREATE SUBSCRIPTION s CONNECTION $$%s$$ PUBLICATION p WITH (create_slot = false, slot_name = 's', copy_data = false)), $node->connstr('source')));
$node->safe_psql('source', 'INSERT INTO replicated SELECT generate_series(1, 5)');
answers($node, 'postgres', q(SELECT count(*) || ' ' || count(DISTINCT event_id) FROM effect WHERE type = 'replicated'), '5 5', 'what the trigger of a replicated table publishes is delivered once');
$node->safe_psql('postgres', 'DROP SUBSCRIPTION s');
$node->safe_psql('postgres', 'DROP DATABASE source');

# ------------------------------------------------------- the extension, again and again

$node->safe_psql('postgres', 'CREATE DATABASE again');
my $round = q(CREATE EXTENSION evbus; SELECT evbus.create_bus('b'); SELECT evbus.subscribe('b', 's'); SELECT evbus.publish('b', 'a', '1'); DROP EXTENSION evbus CASCADE;);
is(($node->psql('again', $round x 10, on_error_stop => 1))[0], 0, 'CREATE and DROP EXTENSION ten times in one session');
$node->safe_psql('again', 'DROP SCHEMA IF EXISTS evbus; CREATE SCHEMA evbus; CREATE TABLE evbus.bus (n integer)');
isnt(($node->psql('again', 'CREATE EXTENSION evbus', on_error_stop => 1))[0], 0, 'into a schema that has its tables already it is refused');
$node->safe_psql('again', 'DROP SCHEMA evbus CASCADE; CREATE EXTENSION evbus');
$node->safe_psql('again', q(SELECT evbus.create_bus('b'), evbus.subscribe('b', 's'), evbus.publish('b', 'a', '1')));
is(scalar(receive_all($node, 'again', 's', 1)), 1, 'and after that it works');

my $old = worker_pids($node, 'evbus sequencer');
$node->safe_psql('postgres', 'ALTER EXTENSION evbus UPDATE');
ok(other_worker($node, 'evbus sequencer', $old), 'ALTER EXTENSION UPDATE sends the workers away, and others come');
publish('updated');
complete($node, 'after ALTER EXTENSION UPDATE');

# ------------------------------------------------ what became of the deaf handler

answers($node, 'postgres', q(SELECT attempts || ' ' || reason FROM evbus.dead_letter WHERE type = 'deaf'), '1 max_attempts', 'the deaf handler went on to its end, too late: a failed attempt');

# ---------------------------- stops: smart and by SIGKILL of the postmaster, under load

publish('odd.sleep');
answers($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'evbus handler' AND wait_event = 'PgSleep'), '1', 'a handler sleeps');
my $start = time;
$node->stop('smart');
cmp_ok(time - $start, '<', 20, 'a smart stop ends workers once the clients are gone');
$log = -s $node->logfile;
$node->start;
$node->wait_for_log(qr/odd handler: odd.sleep attempt 1/, $log);
pass('after the start the event is tried again, and a stop counts as no attempt');

# The publisher's row and its event come together or not at all, also with synchronous_commit off.
$node->safe_psql('postgres', 'CREATE TABLE sold (n integer GENERATED ALWAYS AS IDENTITY)');
my $bench = PostgreSQL::Test::Utils::tempdir() . '/sell.sql';
append_to_file($bench, q(BEGIN; SET LOCAL synchronous_commit = off; INSERT INTO sold DEFAULT VALUES; SELECT evbus.publish('orders', 'sold', '1'); COMMIT;));
my $noise = '';
my $load = IPC::Run::start([ 'pgbench', '-n', '-c', 3, '-T', 60, '-f', $bench, $node->connstr('postgres') ], '>&', \$noise);
ok($node->poll_query_until('postgres', 'SELECT count(*) > 500 FROM sold'), 'clients sell, with synchronous_commit off');
my @pids = split / /, $node->safe_psql('postgres', q(SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE backend_type LIKE 'evbus%'));
kill 'KILL', $node->{_pid};
eval { $load->finish };
my $alive = sub { scalar grep { kill 0, $_ } @pids };
my $deadline = time + 10;
select undef, undef, undef, 0.05 while $alive->() && time < $deadline;
is($alive->(), 0, 'the postmaster is killed with SIGKILL: no worker outlives it');
unlink $node->data_dir . '/postmaster.pid';
$node->_update_pid(0);
$node->start;
$node->safe_psql('postgres', q(SELECT evbus.unsubscribe('odd')));
$node->safe_psql('postgres', q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'));    # it may be asleep again
my $sold = $node->safe_psql('postgres', 'SELECT count(*) FROM sold');
cmp_ok($sold, '>', 0, 'what was sold is there after the next start');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.history WHERE type = 'sold')), $sold, 'with one event for each sale');
complete($node, 'after the postmaster was killed');

# ------------------------------------------------- nothing is damaged, nothing too old

$node->safe_psql('postgres', 'CREATE EXTENSION amcheck');
$node->command_ok([ 'pg_amcheck', '--heapallindexed', '--schema', 'evbus', $node->connstr('postgres') ], 'amcheck finds every table and index whole');
answers($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'evbus%' AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL)), '0', 'idle workers hold neither transaction nor snapshot');
$node->safe_psql('postgres', 'VACUUM FREEZE');
is($node->safe_psql('postgres', q(SELECT count(*) FROM pg_class WHERE relnamespace = 'evbus'::regnamespace AND relkind = 'r' AND age(relfrozenxid) > 100)), '0', 'VACUUM FREEZE freezes every table of evbus while its workers run');

$node->stop;
done_testing();
