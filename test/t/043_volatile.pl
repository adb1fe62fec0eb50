# Volatile buses: order, waiting publishers, handlers, restarts, ends of processes.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('volatile', conf => "evbus.max_volatile_buses = 8\nevbus.volatile_ring_size = '64kB'\nevbus.max_handler_workers = 3\nrestart_after_crash = on\n");
my $one = $node->connstr('postgres');

$node->safe_psql('postgres', <<'SQL');
SELECT evbus.create_bus(b, durability => 'volatile') FROM unnest('{orders,waits,keyed,poison,loop,drops}'::text[]) b;
CREATE TABLE effect (subscription text, n integer, position bigint, key text, at bigint GENERATED ALWAYS AS IDENTITY);
CREATE FUNCTION handle(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF e.type = 'bad' THEN
		RAISE 'bad' USING ERRCODE = '23514';
	ELSIF e.type = 'later' AND e.attempt < 3 THEN
		RAISE 'later' USING ERRCODE = '55000';
	END IF;
	INSERT INTO effect VALUES (e.bus, e.payload::integer, e.position, e.key);
END $$;
CREATE FUNCTION handle_all(events evbus.event[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO effect SELECT bus, payload::integer, position, key FROM unnest(events);
END $$;
SQL

# ------------------------------------------------------------ handlers, failures

$node->safe_psql('postgres', q(SELECT evbus.subscribe('orders', 'orders', handler => 'handle(evbus.event)', concurrency => 2, backoff_initial => '10 milliseconds')));
$node->safe_psql('postgres', q(SELECT evbus.publish_batch('orders', ARRAY['a', 'bad', 'later'], '{1,2,3}')));
$node->safe_psql('postgres', q(DO $$BEGIN FOR i IN 4 .. 500 LOOP PERFORM evbus.publish('orders', 'a', to_jsonb(i)); COMMIT; END LOOP; END$$));
answers($node, 'postgres', q(SELECT count(*) || ' ' || count(DISTINCT n) || ' ' || sum(n) FROM effect), '499 499 125248', 'a handler is given every event once, those that failed later');
is($node->safe_psql('postgres', q(SELECT concat_ws(' ', payload, reason) FROM evbus.dead_letter)), '2 permanent', 'and what failed for good is a dead letter');
answers($node, 'postgres', q(SELECT lag || ' ' || retries FROM evbus.subscription_lag WHERE subscription = 'orders'), '0 0', 'nothing is left');

# Who publishes after another's commit comes after him, whatever the bus does meanwhile.
$node->safe_psql('postgres', q(SELECT evbus.subscribe('waits', 'order')));
my @a = map { $node->background_psql('postgres') } 1 .. 2;
foreach my $i (1 .. 20)
{
	$a[0]->query_safe("BEGIN; SELECT evbus.publish('waits', 'a', '" . (3 * $i) . "')");
	$a[1]->query_safe("SELECT evbus.publish('waits', 'a', '" . (3 * $i + 1) . "')");
	$a[0]->query_safe('COMMIT');
	$a[1]->query_safe("SELECT evbus.publish('waits', 'a', '" . (3 * $i + 2) . "')");
}
$_->quit foreach @a;
is($node->safe_psql('postgres', q(SELECT string_agg(payload::text, ' ' ORDER BY position) FROM evbus.receive('order', 100))),
	join(' ', map { (3 * $_ + 1, 3 * $_, 3 * $_ + 2) } 1 .. 20), 'positions are in the order of the commits');
$node->safe_psql('postgres', q(SELECT evbus.unsubscribe('order')));

# ------------------------------------------------------------ waiting publishers

$node->safe_psql('postgres', q(SELECT evbus.alter_bus('waits', overflow => 'block', overflow_timeout => '1 hour'), evbus.subscribe('waits', 'waits')));
my $fill = q(SELECT evbus.publish('waits', 'a', to_jsonb(repeat(md5(random()::text), 60))) FROM generate_series(1, 20));
$node->safe_psql('postgres', q(SELECT evbus.alter_bus('waits', compression => 'none')));
$node->safe_psql('postgres', $fill);
my $publisher = $node->background_psql('postgres', on_error_stop => 0);
my $pid = $publisher->query_safe('SELECT pg_backend_pid()');
sub blocked
{
	return $node->poll_query_until('postgres', "SELECT count(*) > 0 FROM pg_stat_activity WHERE pid = $pid AND state = 'active' AND wait_event_type = 'Extension'");
}
$publisher->query_until(qr/^begun$/m, "\\echo begun\n$fill;\n\\echo published\n");
ok(blocked(), 'who finds the bus full waits');
my $n = $node->safe_psql('postgres', q(WITH d AS MATERIALIZED (SELECT receipt FROM evbus.receive('waits', 20)) SELECT evbus.ack(array_agg(receipt)) FROM d));
is($n, 20, 'something is settled');
$publisher->query_until(qr/^published$/m, "\n");
pass('which lets him go on');
is($node->safe_psql('postgres', q(SELECT waits || ' ' || rejected FROM evbus.volatile_list WHERE bus = 'waits')), '1 0', 'and is counted');

$publisher->query_until(qr/^begun$/m, "\\echo begun\n$fill;\n\\echo cancelled\n");
ok(blocked(), 'he waits again');
my $used = $node->safe_psql('postgres', q(SELECT used_bytes > 50000 FROM evbus.volatile_list WHERE bus = 'waits'));
$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
$publisher->query_until(qr/^cancelled$/m, "\n");
is($node->safe_psql('postgres', q(SELECT events || ' ' || (used_bytes < 45000) FROM evbus.volatile_list WHERE bus = 'waits')), $node->safe_psql('postgres', q(SELECT events || ' true' FROM evbus.volatile_list WHERE bus = 'waits')), 'cancelled, he gives back what he had');
$publisher->query_until(qr/^begun$/m, "\\echo begun\n$fill;\n\\echo\n");
ok(blocked(), 'and waits once more');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid");
is($node->safe_psql('postgres', q(SELECT used_bytes < 45000 FROM evbus.volatile_list WHERE bus = 'waits')), 't', 'so does one who is terminated');
eval { $publisher->quit };

$node->safe_psql('postgres', q(SELECT evbus.alter_bus('waits', overflow_timeout => '50 milliseconds')));
my ($ret, $stdout, $stderr) = $node->psql('postgres', "\\set VERBOSITY verbose\n$fill");
like($stderr, qr/VB014.*volatile bus "waits" is full/, 'no longer than overflow_timeout');
like($stderr, qr/subscription "waits"/, 'and is told who keeps it full');
($ret, $stdout, $stderr) = $node->psql('postgres', "\\set VERBOSITY verbose\nSELECT evbus.alter_bus('waits', overflow_timeout => '1 hour');\nBEGIN; SELECT count(*) FROM evbus.receive('waits', 20); $fill");
like($stderr, qr/VB014.*would wait for its own commit/s, 'who would wait for himself is refused at once');
$node->safe_psql('postgres', q(SELECT evbus.unsubscribe('waits')));

# Four publishers, a consumer that is slower than they are: nothing is lost, each in its order.
$node->safe_psql('postgres', q(SELECT evbus.subscribe('waits', 'slow', handler => 'handle_all(evbus.event[])', batch_size => 50); TRUNCATE effect));
my @publishers = map { my $p = $_; $node->background_psql('postgres') } 1 .. 4;
foreach my $p (0 .. 3)
{
	$publishers[$p]->query_until(qr/^go$/m, sprintf(q(\echo go
DO $$BEGIN FOR i IN 1 .. 1500 LOOP PERFORM evbus.publish('waits', 'a', to_jsonb(i), key => '%s'); COMMIT; END LOOP; END$$;
\echo done
), $p));
}
$publishers[$_]->query_until(qr/^done$/m, "\n") foreach 0 .. 3;
$_->quit foreach @publishers;
answers($node, 'postgres', q(SELECT count(*) || ' ' || count(DISTINCT (key, n)) || ' ' || max(position) - min(position) FROM effect), '6000 6000 5999', 'four publishers and a slow handler: everything comes once');
is($node->safe_psql('postgres', q(SELECT count(*) FROM (SELECT n - lag(n) OVER (PARTITION BY key ORDER BY position) AS step FROM effect) x WHERE step <> 1)), '0', 'and in order');
is($node->safe_psql('postgres', q(SELECT (waits > 0) || ' ' || dropped || ' ' || rejected FROM evbus.volatile_list WHERE bus = 'waits')), 'true 0 2', 'publishers had to wait, nothing was dropped');

# ------------------------------------------------------------ order

$node->safe_psql('postgres', q(SELECT evbus.alter_bus('keyed', overflow => 'block'), evbus.subscribe('keyed', 'keyed', handler => 'handle(evbus.event)', concurrency => 2, ordering => 'key', batch_size => 5, backoff_initial => '20 milliseconds'); TRUNCATE effect));
$node->safe_psql('postgres', q(DO $$BEGIN FOR i IN 1 .. 600 LOOP PERFORM evbus.publish('keyed', CASE WHEN i % 100 = 0 THEN 'later' ELSE 'a' END, to_jsonb(i), key => 'k' || i % 7); COMMIT; END LOOP; END$$));
answers($node, 'postgres', q(SELECT count(*) || ' ' || count(DISTINCT n) FROM effect), '600 600', 'in order by key everything is handled once');
is($node->safe_psql('postgres', q(SELECT count(*) FROM (SELECT n - lag(n) OVER (PARTITION BY key ORDER BY at) AS step FROM effect) x WHERE step <> 7)), '0', 'each key in its order, over failures');
$node->safe_psql('postgres', q(SELECT evbus.unsubscribe('keyed'), evbus.subscribe('keyed', 'strict', ordering => 'strict')));
$node->safe_psql('postgres', q(SELECT evbus.publish_batch('keyed', '{a,b,c}', '{1,2,3}')));
is(join(' ', map { (receive_all($node, 'postgres', 'strict', 1))[0] =~ /\d+ (\w)/ } 1 .. 3), 'a b c', 'strict order');

# ------------------------------------------------------------ a handler and its own bus

$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION loops(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$BEGIN PERFORM evbus.publish('loop', 'again', '1'); END$$;
CREATE FUNCTION passes(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$BEGIN PERFORM evbus.publish('drops', 'passed', e.payload); END$$;
SELECT evbus.subscribe('loop', 'loop', handler => 'loops(evbus.event)', max_attempts => 1), evbus.subscribe('drops', 'passed');
SELECT evbus.publish('loop', 'a', '1');
SQL
answers($node, 'postgres', q(SELECT sqlstate || ' ' || (message LIKE '%cannot publish to the volatile bus that it reads') FROM evbus.dead_letter WHERE subscription = 'loop'), '0A000 true', 'a handler cannot publish to the volatile bus that it reads');
$node->safe_psql('postgres', q(SELECT evbus.alter_subscription('loop', handler => 'passes(evbus.event)')));
$node->safe_psql('postgres', q(SELECT evbus.publish('loop', 'a', '7')));
is((receive_all($node, 'postgres', 'passed', 1))[0] =~ s/^\d+ //r, 'passed 7', 'but to another one');

# ------------------------------------------------------------ drop_oldest while they read

$node->safe_psql('postgres', q(SELECT evbus.alter_bus('drops', overflow => 'drop_oldest'), evbus.unsubscribe('passed'), evbus.subscribe('drops', 'drops', handler => 'handle_all(evbus.event[])', batch_size => 100); TRUNCATE effect));
$node->safe_psql('postgres', q(DO $$BEGIN FOR i IN 1 .. 300 LOOP PERFORM evbus.publish_batch('drops', '{a}', ARRAY(SELECT to_jsonb(i * 100 + k) FROM generate_series(0, 99) k)); COMMIT; END LOOP; END$$));
answers($node, 'postgres', q(SELECT lag FROM evbus.subscription_lag WHERE subscription = 'drops'), '0', 'a handler comes to the end of what is overwritten all the time');
is($node->safe_psql('postgres', q(SELECT (SELECT count(*) FROM effect) + dropped || ' ' || (SELECT count(*) - count(DISTINCT n) FROM effect) || ' ' || (SELECT max(n) FROM effect) FROM evbus.volatile_list WHERE bus = 'drops')), '30000 0 30099', 'everything was handled once, or counted as dropped');
is($node->safe_psql('postgres', q(SELECT count(*) FROM (SELECT n - lag(n) OVER (ORDER BY position) AS step FROM effect) x WHERE step < 1)), '0', 'and in order');

# The same by priority, where what is looked at ahead may be overwritten before it is read.
$node->safe_psql('postgres', q(SELECT evbus.alter_subscription('drops', by_priority => true); TRUNCATE effect));
my $dropped = $node->safe_psql('postgres', q(SELECT dropped FROM evbus.subscription_lag WHERE subscription = 'drops'));
$node->safe_psql('postgres', q(DO $$BEGIN FOR i IN 1 .. 300 LOOP PERFORM evbus.publish_batch('drops', '{a}', ARRAY(SELECT to_jsonb(i * 100 + k) FROM generate_series(0, 99) k), priority => i % 3); COMMIT; END LOOP; END$$));
answers($node, 'postgres', q(SELECT lag FROM evbus.subscription_lag WHERE subscription = 'drops'), '0', 'by priority it comes to the end as well');
is($node->safe_psql('postgres', qq(SELECT (SELECT count(*) FROM effect) + dropped - $dropped || ' ' || (SELECT count(*) - count(DISTINCT n) FROM effect) FROM evbus.subscription_lag WHERE subscription = 'drops')), '30000 0', 'and everything was handled once, or counted as dropped');
$node->safe_psql('postgres', q(SELECT evbus.alter_subscription('drops', by_priority => false)));

# ------------------------------------------------------------ processes that end

# A worker that is killed by its handler, every time: the event ends as a dead letter, others are handled.
$node->safe_psql('postgres', <<'SQL');
TRUNCATE effect;
CREATE FUNCTION poisoned(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF e.type = 'poison' THEN
		PERFORM pg_terminate_backend(pg_backend_pid());
		PERFORM pg_sleep(10);
	END IF;
	INSERT INTO effect VALUES (e.bus, e.payload::integer, e.position, e.key);
END $$;
SELECT evbus.subscribe('poison', 'poison', handler => 'poisoned(evbus.event)', max_attempts => 2, backoff_initial => '10 milliseconds');
SELECT evbus.publish_batch('poison', '{a,poison,b}', '{1,2,3}');
SQL
answers($node, 'postgres', q(SELECT (SELECT count(*) FROM evbus.dead_letter WHERE subscription = 'poison' AND type = 'poison') || ' ' || (SELECT count(*) || ' ' || sum(n) FROM effect)), '1 2 4', 'an event whose handler ends its worker is a dead letter, those beside it are handled');

# A retry survives a restart, what is only in the ring does not; positions grow over it.
$node->safe_psql('postgres', q(SELECT evbus.subscribe('orders', 'client')));
$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'kept', '1')));
$node->safe_psql('postgres', q(SELECT evbus.nack(ARRAY(SELECT receipt FROM evbus.receive('client')), delay => '0')));
foreach my $mode ('fast', 'immediate')
{
	$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'lost', '2')));
	my $before = $node->safe_psql('postgres', q(SELECT next_position FROM evbus.bus_list WHERE bus = 'orders'));
	my $held = $node->safe_psql('postgres', q(SELECT string_agg(receipt, ',') FROM evbus.receive('client', 10, lease => '1 hour')));
	$node->stop($mode);
	$node->start;
	is($node->safe_psql('postgres', qq(SELECT evbus.publish('orders', 'new', '3') > 0)), 't', "after $mode the bus can be used");
	my @got;
	foreach (1 .. 2)
	{
		push @got, split /\n/, $node->safe_psql('postgres', "SELECT type || ' ' || (position >= $before) FROM evbus.receive('client', 10, wait => '10 seconds')") if @got < 2;
	}
	my $got = join ' ', sort @got;
	is($got, 'kept false new true', "the retry and what is new, with a higher position, are there after $mode");
	unlike($got, qr/lost/, "what was only in the ring is gone after $mode");
	is(($node->psql('postgres', "SELECT evbus.ack(string_to_array('$held', ','))"))[1], '0', "receipts of before $mode are stale");
	is($node->safe_psql('postgres', q(SELECT dropped || ' ' || rejected FROM evbus.volatile_list WHERE bus = 'orders')), '0 0', "what a restart loses is not counted as dropped after $mode");
	$node->safe_psql('postgres', q(SELECT evbus.seek('client', 'now')));
}

# A crash of the server while publishers and handlers are at work: it comes back, and the buses work.
my $log = -s $node->logfile;
my $victim = $node->background_psql('postgres', on_error_stop => 0);
my $victim_pid = $victim->query_safe('SELECT pg_backend_pid()');
$victim->query_safe(q(BEGIN; SELECT evbus.publish('orders', 'ghost', '1')));
kill 'KILL', $victim_pid;
ok(crashed($node, $log), 'a publisher is killed, and the server with it');
eval { $victim->quit };
$node->safe_psql('postgres', q(TRUNCATE effect; SELECT evbus.publish('orders', 'a', to_jsonb(i)) FROM generate_series(1, 100) i));
answers($node, 'postgres', q(SELECT count(*) || ' ' || sum(n) FROM effect WHERE subscription = 'orders'), '100 5050', 'handlers have what was published since');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.receive('client', 1000) WHERE type = 'ghost')), '0', 'and nothing of who was killed');

# ------------------------------------------------------------ fewer rings than buses

$node->append_conf('postgresql.conf', "evbus.max_volatile_buses = 2\n");
$node->restart;
$node->safe_psql('postgres', q(SELECT evbus.create_bus('durable'), evbus.subscribe('durable', 'durable')));
$node->safe_psql('postgres', q(SELECT evbus.publish('durable', 'a', '1')));
is(scalar(receive_all($node, 'postgres', 'durable', 1)), 1, 'with fewer rings than buses the others work');
my %state;
foreach my $bus (qw(orders waits keyed poison loop drops))
{
	my (undef, undef, $err) = $node->psql('postgres', "\\set VERBOSITY sqlstate\nSELECT evbus.publish('$bus', 'a', '1')");
	$state{ $err =~ /(VB\d+)/ ? $1 : 'ok' }++;
}
is_deeply(\%state, { ok => 2, VB003 => 4 }, 'and those without a ring are refused');

$node->append_conf('postgresql.conf', "evbus.max_volatile_buses = 0\n");
$node->restart;
(undef, undef, $stderr) = $node->psql('postgres', "SELECT evbus.create_bus('none', durability => 'volatile')");
like($stderr, qr/all 0 rings are in use/, 'none at all');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.subscription_lag)), '8', 'and everything else still works');

done_testing();
