# The workers start by themselves and come back after any kill; nothing is lost or done twice on the way.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('workers', conf => "restart_after_crash = on\n");

# Not with CREATE EXTENSION: what pg_restore fills after it shall be whole before a worker looks at it.
$node->safe_psql('postgres', q(SELECT evbus.create_bus('orders')));
answers($node, 'postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = '$_'", '1', "$_ runs after the first call, and only one")
	foreach 'evbus launcher', 'evbus sequencer', 'evbus maintainer';

$node->safe_psql('postgres', <<'SQL');
CREATE TABLE effect (n integer, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION handle(events evbus.event[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO effect SELECT payload::integer FROM unnest(events);
	-- the test holds this lock when it wants to find the worker in the middle of its work
	PERFORM pg_advisory_xact_lock_shared(4711);
END $$;
SELECT evbus.subscribe('orders', 'handled', handler => 'handle(evbus.event[])', batch_size => 10, concurrency => 2);
SELECT evbus.subscribe('orders', 'received');
SQL

my $published = 0;

# Publishes n events, each in a transaction of its own.
sub publish
{
	my ($n) = @_;
	my ($from, $to) = ($published + 1, $published + $n);
	$node->safe_psql('postgres', "DO \$\$BEGIN FOR i IN $from .. $to LOOP PERFORM evbus.publish('orders', 'order.created', to_jsonb(i)); COMMIT; END LOOP; END\$\$");
	$published = $to;
}

# Every event so far took effect exactly once.
sub all_handled
{
	my ($when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	answers($node, 'postgres', 'SELECT count(*) FROM effect', $published, "all events are handled: $when");
	is($node->safe_psql('postgres', 'SELECT count(DISTINCT n) || \' \' || min(n) || \' \' || max(n) FROM effect'), "$published 1 $published", "each of them once: $when");
}

publish(20);
all_handled('before any kill');

foreach my $type ('evbus sequencer', 'evbus maintainer', 'evbus handler', 'evbus launcher')
{
	my $old = worker_pids($node, $type);
	isnt($old, '', "$type runs");
	$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = '$type'");
	publish(20);
	all_handled("$type was terminated");
	ok(other_worker($node, $type, $old), "$type came back as another process") if $type ne 'evbus handler';
	is(scalar(receive_all($node, 'postgres', 'received', 20)), 20, "clients receive again: $type was terminated");
}

# All at once, while publishing goes on.
$node->safe_psql('postgres', q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'evbus %'));
publish(20);
all_handled('all workers were terminated together');

# A handler in the middle of a batch.
my $blocker = $node->background_psql('postgres');
$blocker->query_safe('SELECT pg_advisory_lock(4711)');
publish(50);
my $in_handler = q(SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'evbus handler' AND wait_event = 'advisory');
ok($node->poll_query_until('postgres', $in_handler), 'a handler is in the middle of a batch');
my $stuck = worker_pids($node, 'evbus handler');
$node->safe_psql('postgres', q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'evbus handler'));
ok(other_worker($node, 'evbus handler', $stuck), 'the terminated handler is replaced');
$blocker->query_safe('SELECT pg_advisory_unlock(4711)');
all_handled('a handler was terminated in the middle of a batch');

# The same with SIGKILL: the server restarts itself and shared memory is new.
$blocker->query_safe('SELECT pg_advisory_lock(4711)');
publish(50);
ok($node->poll_query_until('postgres', $in_handler), 'again a handler is in the middle of a batch');
my $receipts = $node->safe_psql('postgres', q(SELECT string_agg(receipt, ',') FROM evbus.receive('received', 5, wait => '10 seconds')));
isnt($receipts, '', 'a client holds deliveries');
my $log = -s $node->logfile;
kill 'KILL', $node->safe_psql('postgres', q(SELECT min(pid) FROM pg_stat_activity WHERE backend_type = 'evbus handler' AND wait_event = 'advisory'));
$node->wait_for_log(qr/all server processes terminated; reinitializing/, $log);
pass('kill -9 of a handler makes the server restart itself');
eval { $blocker->quit };    # its server process is gone
ok($node->poll_query_until('postgres', 'SELECT true'), 'the server accepts connections again');
all_handled('a handler was killed with SIGKILL in the middle of a batch');

# The same events are in somebody's hands again when the old receipts come.
my $again = $node->safe_psql('postgres', q(SELECT string_agg(receipt, ',') FROM evbus.receive('received', 5, wait => '10 seconds')));
my ($ret, $stdout, $stderr) = $node->psql('postgres', "SELECT evbus.ack(string_to_array('$receipts', ','))");
is($stdout, '0', 'receipts from before the crash are stale');
like($stderr, qr/WARNING/, 'and say so');
is($node->safe_psql('postgres', "SELECT evbus.release(string_to_array('$again', ','))"), '5', 'those of now are good');
# It had acked eighty so far.
my %seen;
$seen{ (split / /)[2] }++ foreach receive_all($node, 'postgres', 'received', $published - 80);
is_deeply([ sort { $a <=> $b } keys %seen ], [ 81 .. $published ], 'the client receives everything it had not acked');
publish(20);
all_handled('events published after the crash');

# SIGKILL of the other workers, idle this time.
foreach my $type ('evbus sequencer', 'evbus maintainer', 'evbus launcher')
{
	$log = -s $node->logfile;
	kill 'KILL', worker_pids($node, $type);
	$node->wait_for_log(qr/all server processes terminated; reinitializing/, $log);
	ok($node->poll_query_until('postgres', 'SELECT true'), "the server accepts connections after SIGKILL of the $type");
	publish(20);
	all_handled("$type was killed with SIGKILL");
}

# Idle workers and no leftover claims.
answers($node, 'postgres', q(SELECT lag || ' ' || in_flight || ' ' || retries FROM evbus.subscription_lag WHERE subscription = 'handled'), '0 0 0', 'nothing is left in flight');
is($node->safe_psql('postgres', 'SELECT count(*) FROM evbus.dead_letter'), '0', 'and nothing was given up');

$node->stop;
done_testing();
