# A ring of 1 MB, transactions larger than it, publishers that stay open, a sequencer that stands still:
# nothing is lost or doubled, positions are dense, and who published after another's commit comes after it.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('order', conf => "evbus.ring_size = '1MB'\nevbus.late_after = '100ms'\nrestart_after_crash = on\n");
$node->safe_psql('postgres', <<'SQL');
SELECT evbus.create_bus('orders');
CREATE TABLE effect (event_id bigint, position bigint);
CREATE FUNCTION handle(events evbus.event[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO effect SELECT event_id, position FROM unnest(events);
END $$;
SELECT evbus.subscribe('orders', 'handled', handler => 'handle(evbus.event[])', batch_size => 1000);
SELECT evbus.subscribe('orders', 'reader');
SQL

# Every committed event has one position and reached the handler once; positions have no gap.
sub whole
{
	my ($when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $stored = $node->safe_psql('postgres', 'SELECT count(*) FROM evbus.history');
	answers($node, 'postgres', 'SELECT count(*) FROM effect', $stored, "every event reached the handler: $when");
	is($node->safe_psql('postgres', 'SELECT count(DISTINCT event_id) - count(*) || \' \' || count(DISTINCT position) - count(*) || \' \' || max(position) - min(position) + 1 - count(*) FROM effect'),
		'0 0 0', "no event and no position twice, no gap: $when");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM effect JOIN evbus.history USING (event_id)'), $stored, "and they are the events of the history: $when");
}

# One event per transaction, n of them, about 1 kB each; kind tells them apart.
sub publish_singly
{
	my ($kind, $n) = @_;
	$node->safe_psql('postgres', "DO \$\$BEGIN FOR i IN 1 .. $n LOOP PERFORM evbus.publish('orders', '$kind', jsonb_build_object('n', i, 'x', repeat('x', 1000))); COMMIT; END LOOP; END\$\$");
}

# Published one after the other, so positions must follow.
sub in_order
{
	my ($kind, $when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($node->safe_psql('postgres', <<~"SQL"), '0', "an event published after another's commit has the higher position: $when");
		SELECT count(*) FROM (SELECT position, lag(position) OVER (ORDER BY (payload ->> 'n')::integer) AS before
							  FROM effect JOIN evbus.history USING (event_id) WHERE type = '$kind') AS e WHERE position <= before
		SQL
}

my $sequencer = q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'evbus sequencer');
my $overflows = sub { $node->safe_psql('postgres', 'SELECT ring_overflows FROM evbus._status()') };

publish_singly('single', 500);
whole('five hundred transactions');
in_order('single', 'five hundred transactions');

# More than the ring holds while nobody drains it: publishers do not wait.
my $before = $overflows->();
my $pid = $node->safe_psql('postgres', $sequencer);
kill 'STOP', $pid;
publish_singly('standstill', 3000);
pass('publishers do not wait for a sequencer that stands still');
cmp_ok($overflows->(), '>', $before, 'the ring overflowed');
kill 'CONT', $pid;
whole('the sequencer stood still for three rings');
in_order('standstill', 'the sequencer stood still for three rings');

# The same, and then it is killed: what was in the ring is read from the log.
$pid = $node->safe_psql('postgres', $sequencer);
kill 'STOP', $pid;
publish_singly('killed', 2000);
my $log = -s $node->logfile;
kill 'KILL', $pid;
$node->wait_for_log(qr/all server processes terminated; reinitializing/, $log);
ok($node->poll_query_until('postgres', 'SELECT true'), 'the server restarted itself');
whole('the sequencer stood still and was killed');
in_order('killed', 'the sequencer stood still and was killed');

# The same, ended with SIGTERM: the next one goes on in the same shared memory.
$pid = $node->safe_psql('postgres', $sequencer);
kill 'STOP', $pid;
publish_singly('terminated', 2000);
kill 'TERM', $pid;
kill 'CONT', $pid;
whole('the sequencer stood still and was terminated');
in_order('terminated', 'the sequencer stood still and was terminated');

# Larger than an eighth of the ring, larger than the ring, and rolled back.
$node->safe_psql('postgres', "SELECT count(evbus.publish('orders', 'large.$_', jsonb_build_object('n', i, 'x', repeat('x', 1000)))) FROM generate_series(1, $_) AS i") foreach 200, 5000;
my $large = $node->background_psql('postgres');
$large->query_safe('BEGIN');
$large->query_safe(q(SELECT count(evbus.publish('orders', 'large.undone', jsonb_build_object('n', i, 'x', repeat('x', 1000)))) FROM generate_series(1, 5000) AS i));
$large->query_safe('ROLLBACK');
whole('transactions larger than the ring');
in_order("large.$_", "events of one transaction ($_)") foreach 200, 5000;
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.history WHERE type = 'large.undone')), '0', 'a rolled-back one left nothing');

# A transaction that stays open longer than evbus.late_after while others go on.
my $long = $node->background_psql('postgres');
$long->query_safe('BEGIN');
$long->query_safe(q(SELECT evbus.publish('orders', 'long', '{"n": 1}')));
my $opened = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
publish_singly('meanwhile', 100);
ok($node->poll_query_until('postgres', "SELECT clock_timestamp() > '$opened'::timestamptz + interval '1 second'"), 'a publisher stays open much longer than evbus.late_after');
publish_singly('meanwhile2', 100);
whole('a publisher is still open');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.history WHERE type = 'long')), '0', 'its event is not there yet');
$long->query_safe(q(SELECT evbus.publish('orders', 'long', '{"n": 2}')));
$long->query_safe('COMMIT');
publish_singly('after', 10);
whole('the late publisher has committed');
is($node->safe_psql('postgres', q(SELECT max(position) FILTER (WHERE type = 'long') < min(position) FILTER (WHERE type = 'after') FROM effect JOIN evbus.history USING (event_id))), 't', 'what was published after its commit comes after it');
in_order('long', 'the events of the late publisher');

# Late, and rolled back; late, and the server crashes before it commits.
$long->query_safe('BEGIN');
$long->query_safe(q(SELECT evbus.publish('orders', 'long.undone', '1')));
$opened = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
$node->poll_query_until('postgres', "SELECT clock_timestamp() > '$opened'::timestamptz + interval '500 milliseconds'");
$long->query_safe('ROLLBACK');
$long->query_safe('BEGIN');
$long->query_safe(q(SELECT evbus.publish('orders', 'long.undone', '1')));
publish_singly('before.crash', 50);
$node->stop('immediate');
eval { $_->quit } foreach $large, $long;
$node->start;
publish_singly('after.crash', 50);
whole('late publishers that never committed');
in_order('after.crash', 'after an immediate stop');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.history WHERE type = 'long.undone')), '0', 'they left nothing');
is($node->safe_psql('postgres', 'SELECT count(*) FROM evbus.late'), '0', 'no row of evbus.late is left');

# While the sequencer stands still: small transactions (through the ring), large ones (rows of evbus.late) and, in the
# third round, so many that some are lost from the ring, one after the other; also when the server crashes meanwhile.
foreach my $round (1 .. 4)
{
	my $sequencer = worker_pids($node, 'evbus sequencer');
	kill 'STOP', $sequencer;
	foreach my $step (1 .. ($round == 3 ? 60 : 12))
	{
		my $n = $step % 2 ? 1 : $step % 4 ? 150 : 3;
		$node->safe_psql('postgres', "SELECT count(evbus.publish('orders', 'in.turn.$round', jsonb_build_object('n', $step * 1000 + i, 'x', repeat('x', 1000)))) FROM generate_series(1, $n) AS i");
	}
	if ($round == 4)
	{
		kill 'KILL', $sequencer;
		$node->poll_query_until('postgres', 'SELECT 1', '1');
	}
	kill 'CONT', $sequencer;
	whole("transactions of every kind in turn ($round)");
	in_order("in.turn.$round", "transactions of every kind in turn ($round)");
}

# Many clients at a time, transactions of every size, some rolled back.
$node->pgbench('--no-vacuum --client=6 --jobs=2 --transactions=40', 0, [qr/processed: 240\/240/], [qr/^(?!.*ERROR)/s], 'six clients publish at a time',
	{ 'single@4' => q(SELECT evbus.publish('orders', 'bench', jsonb_build_object('n', 1, 'x', repeat('x', 1000)));),
	  'rollback@1' => q(BEGIN; SELECT evbus.publish('orders', 'bench.undone', '1'); ROLLBACK;),
	  'many@2' => q(SELECT count(evbus.publish('orders', 'bench', jsonb_build_object('n', i, 'x', repeat('x', 1000)))) FROM generate_series(1, 100) AS i;),
	  'huge@1' => q(SELECT count(evbus.publish('orders', 'bench', jsonb_build_object('n', i, 'x', repeat('x', 1000)))) FROM generate_series(1, 2000) AS i;) });
whole('six clients at a time');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.history WHERE type = 'bench.undone')), '0', 'rolled-back transactions left nothing');

# A client that reads everything from the start sees the same positions as the handler.
my $total = $node->safe_psql('postgres', 'SELECT count(*) FROM effect');
my @all = map { (split / /)[0] } receive_all($node, 'postgres', 'reader', $total);
is(scalar(@all), $total, 'a client receives as many');
is_deeply(\@all, [ $all[0] .. $all[0] + $total - 1 ], 'in the order of dense positions');
is($node->safe_psql('postgres', 'SELECT min(position) FROM effect'), $all[0], 'the same as those of the handler');

$node->stop;
done_testing();
