# An event whose handler brings the whole server down becomes a dead letter after at most max_attempts crashes; the rest
# of the queue goes on, and whoever was at work beside it is not blamed.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('poison', conf => "restart_after_crash = on\n");
test_module($node);
$node->safe_psql('postgres', <<'SQL');
SELECT evbus.create_bus('orders');
CREATE TABLE effect (subscription text, type text, attempt integer);

-- What a handler does is told by the event's type; the server log is told first, as it survives a crash.
CREATE FUNCTION act(subscription text, e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE LOG 'handler of %: % attempt %', subscription, e.type, e.attempt;
	INSERT INTO effect VALUES (subscription, e.type, e.attempt);
	IF e.type LIKE '%.crash' OR e.type LIKE '%.later' AND e.attempt > 1 THEN
		PERFORM test_crash();
	ELSIF e.type LIKE '%.later' THEN
		RAISE EXCEPTION 'not yet';
	ELSIF e.type LIKE '%.wait' THEN
		PERFORM pg_advisory_xact_lock_shared(4711);
	END IF;
END $$;
DO $do$
DECLARE name text;
BEGIN
	FOREACH name IN ARRAY '{one,two,three,left,right,later,neighbour}'::text[] LOOP
		EXECUTE format('CREATE FUNCTION h_%s(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$BEGIN PERFORM act(%L, e); END$$', name, name);
	END LOOP;
	FOREACH name IN ARRAY '{batch,batches}'::text[] LOOP
		EXECUTE format('CREATE FUNCTION h_%s(events evbus.event[]) RETURNS void LANGUAGE plpgsql AS $$BEGIN PERFORM act(%L, e.*::evbus.event) FROM unnest(events) AS e; END$$', name, name);
	END LOOP;
END $do$;
SQL

sub subscribe
{
	my ($name, $max_attempts, $array) = @_;
	return $node->safe_psql('postgres', sprintf(q(SELECT evbus.subscribe('orders', '%s', types => '{%s.*}', handler => 'h_%s(evbus.event%s)', max_attempts => %d, backoff_initial => '10 ms', backoff_max => '20 ms')),
		$name, $name, $name, $array ? '[]' : '', $max_attempts));
}

# The queue: some good ones, the bad one, some good ones; in one transaction, so that they are one batch.
sub publish
{
	my ($name, $bad) = @_;
	# The crash may come before the answer, but not before the commit.
	return eval { $node->safe_psql('postgres', "SELECT count(*) FROM evbus.publish_batch('orders', '{$name.a,$name.b,$name.$bad,$name.c,$name.d}', '{1,2,3,4,5}')") };
}

# Polls through the crashes.
sub ends
{
	my ($query, $expected, $description) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return answers($node, 'postgres', $query, $expected, $description);
}

# How often the handler was called with an event since the log was that long.
sub calls
{
	my ($log, $name, $type) = @_;
	my $n = () = PostgreSQL::Test::Utils::slurp_file($node->logfile, $log) =~ /handler of $name: $name\.$type attempt \d+$/mg;
	return $n;
}

sub crashes
{
	my ($log) = @_;
	my $n = () = PostgreSQL::Test::Utils::slurp_file($node->logfile, $log) =~ /was terminated by signal 11/g;
	return $n;
}

my $good = q(SELECT string_agg(type, ' ' ORDER BY type) FROM effect WHERE subscription = '%s');
my $dead = q(SELECT string_agg(type || ' ' || attempts || ' ' || reason, ', ') FROM evbus.dead_letter WHERE subscription = '%s');
my $left = q(SELECT lag + in_flight + retries FROM evbus.subscription_lag WHERE subscription = '%s');

# ------------------------------------------- one event a call, and a batch a call

foreach ([ 'one', 1 ], [ 'two', 2 ], [ 'three', 3 ], [ 'batch', 1, 1 ], [ 'batches', 2, 1 ])
{
	my ($name, $max, $array) = @$_;
	my $log = -s $node->logfile;
	subscribe($name, $max, $array);
	publish($name, 'crash');
	ends("SELECT count(*) FROM evbus.dead_letter WHERE type = '$name.crash'", '1', "an event that crashes the server is given up ($name)");
	ends(sprintf($left, $name), '0', "then nothing of the queue is left ($name)");
	is($node->safe_psql('postgres', sprintf($dead, $name)), "$name.crash $max max_attempts", "a dead letter after max_attempts, and no other ($name)");
	is($node->safe_psql('postgres', sprintf($good, $name)), join(' ', map { "$name.$_" } 'a' .. 'd'), "its neighbours are handled, each once ($name)");
	# A batch does not say which of its events did it: then they are tried one by one.
	cmp_ok(crashes($log), '<=', $max + ($array ? 1 : 0), "it took no more crashes than that ($name)");
	cmp_ok(calls($log, $name, 'crash'), '>=', $max, "and as many attempts as were counted ($name)");
	like($node->safe_psql('postgres', "SELECT message FROM evbus.dead_letter WHERE subscription = '$name'"), qr/\S/, "the dead letter has a message ($name)");
	$node->safe_psql('postgres', "SELECT evbus.publish('orders', '$name.e', '6')");
	ends("SELECT count(*) FROM effect WHERE type = '$name.e'", '1', "and it goes on with what comes later ($name)");
}

# ---------------------------------------------------- a retry that crashes

{
	my $log = -s $node->logfile;
	subscribe('later', 3);
	publish('later', 'later');
	ends(sprintf($dead, 'later'), 'later.later 3 max_attempts', 'an event that fails first, and crashes the server when it is tried again, is a dead letter after max_attempts');
	ends(sprintf($left, 'later'), '0', 'and nothing is left');
	is($node->safe_psql('postgres', sprintf($good, 'later')), 'later.a later.b later.c later.d', 'its neighbours are handled, each once');
	cmp_ok(crashes($log), '<=', 2, 'it took two crashes');
}

# ------------------------------------------- two subscriptions, a poison each

{
	my $log = -s $node->logfile;
	subscribe($_, 2) foreach 'left', 'right';
	# In one transaction: before it ends nobody crashes; but then it may be before psql has its answer.
	$node->psql('postgres', q(SELECT count(*) FROM evbus.publish_batch('orders', '{left.a,left.b,left.crash,left.c,left.d,right.a,right.b,right.crash,right.c,right.d}', array_fill('1'::jsonb, ARRAY[10]))));
	foreach ('left', 'right')
	{
		ends("SELECT count(*) FROM evbus.dead_letter WHERE type = '$_.crash'", '1', "two subscriptions with a poison each: that of the $_ one is given up");
	}
	foreach ('left', 'right')
	{
		ends(sprintf($left, $_), '0', 'then nothing is left');
		is($node->safe_psql('postgres', sprintf($dead, $_)), "$_.crash 2 max_attempts", 'it is a dead letter after max_attempts');
		is($node->safe_psql('postgres', sprintf($good, $_)), join(' ', "$_.a", "$_.b", "$_.c", "$_.d"), 'its neighbours are handled, each once');
	}
	cmp_ok(crashes($log), '<=', 4, 'it took no more than four crashes');
}

# ------------------- somebody else's handler at work when the server comes down

{
	subscribe('neighbour', 1);
	my $lock = $node->background_psql('postgres', on_error_stop => 0);
	$lock->query_safe('SELECT pg_advisory_lock(4711)');
	publish('neighbour', 'wait');
	ok($node->poll_query_until('postgres', q(SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'evbus handler' AND wait_event = 'advisory')), 'a handler of another subscription is at work');
	my $log = -s $node->logfile;
	$node->psql('postgres', q(SELECT evbus.publish('orders', 'one.crash', '1')));
	ok(crashed($node, $log), 'and a poison brings the server down');
	eval { $lock->quit };
	ends(sprintf($left, 'neighbour'), '0', 'the neighbour ends its work after the crash');
	is($node->safe_psql('postgres', sprintf($good, 'neighbour')), 'neighbour.a neighbour.b neighbour.c neighbour.d neighbour.wait', 'all of it, once');
	is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.dead_letter WHERE subscription = 'neighbour')), '0', 'and it is not given up, though it may be tried only once');
	ends(sprintf(q(SELECT count(*) FROM evbus.dead_letter WHERE subscription = '%s'), 'one'), '2', 'the poison is');
}

# Redriven after the repair it is handled like any other.
$node->safe_psql('postgres', 'CREATE OR REPLACE FUNCTION test_crash() RETURNS void LANGUAGE sql AS $$SELECT$$');
$node->safe_psql('postgres', q(SELECT evbus.redrive(subscription => 'three')));
ends(q(SELECT count(*) FROM effect WHERE type = 'three.crash'), '1', 'redriven after the repair of its handler it is handled');
is($node->safe_psql('postgres', 'SELECT leases_used FROM evbus._status()'), '0', 'no lease is left over');

$node->stop;
done_testing();
