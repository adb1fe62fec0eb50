# A large backlog behind many subscriptions: the first delivery comes at once after a crash, whether the events have
# positions or not, and what the sequencer allocates does not depend on their number.  bench/recovery does it with millions.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes 'time';

my $node = new_node('backlog', conf => "fsync = off\nevbus.ring_size = '1MB'\n");
my $published = 0;

$node->safe_psql('postgres', q(SELECT evbus.create_bus('orders')));
$node->safe_psql('postgres', q(SELECT evbus.subscribe('orders', 'reader' || i) FROM generate_series(1, 50) i));

sub publish
{
	my ($n) = @_;
	$node->safe_psql('postgres', <<~"SQL");
		DO \$\$BEGIN
			FOR b IN 1 .. $n / 1000 LOOP
				PERFORM count(*) FROM evbus.publish_batch('orders', (SELECT array_agg('order.created'::text) FROM generate_series(1, 1000)),
					(SELECT array_agg(to_jsonb($published + (b - 1) * 1000 + i)) FROM generate_series(1, 1000) i));
				COMMIT;
			END LOOP;
		END\$\$
		SQL
	$published += $n;
}

sub sequencer_memory
{
	my $pid = worker_pids($node, 'evbus sequencer');
	my ($kb) = slurp_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+) kB/m;
	return $kb;
}

# After an immediate stop: the first events of a subscription, soon; all positions, in order; no more memory than before.
my $memory;
sub after_crash
{
	my ($reader, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$node->stop('immediate');
	$node->start;
	my $from = time;
	is($node->safe_psql('postgres', "SELECT count(*) || ' ' || min(payload::int) || ' ' || max(payload::int) FROM evbus.receive('$reader', 100, wait => '20 s')"), '100 1 100', "the oldest events are delivered: $what");
	cmp_ok(time - $from, '<', 5, 'within five seconds');
	answers($node, 'postgres', "SELECT next_position FROM evbus.subscription_lag WHERE subscription = '$reader'", $published + 1, 'all have positions');
	is($node->safe_psql('postgres', 'SELECT sum(n) FROM evbus.tick'), $published, 'each one of them');
	$node->safe_psql('postgres', q(SELECT pg_logical_emit_message(true, 'ticks commit asynchronously', '')));	# now they are on disk
	my $now = sequencer_memory();
	$memory //= $now;
	cmp_ok($now, '<', $memory + 4096, "the sequencer needs $now kB, not more than it did");
}

publish(1000);
after_crash('reader1', 'a few events');
publish(100_000);
answers($node, 'postgres', q(SELECT next_position FROM evbus.subscription_lag WHERE subscription = 'reader1'), $published + 1, 'a hundred thousand have positions');
after_crash('reader2', 'a hundred thousand that have positions');

# As many for which the sequencer had no time.
kill 'STOP', worker_pids($node, 'evbus sequencer');
publish(100_000);
after_crash('reader3', 'a hundred thousand that have none');
like(slurp_file($node->logfile), qr/evbus recovered 100000 events from the log/, 'they were found in the log');

# Where nothing is published afterwards, the next start does not look at them again.
my $seen = -s $node->logfile;
after_crash('reader4', 'nothing published since');
unlike(slurp_file($node->logfile, $seen), qr/evbus recovered/, 'nothing is recovered twice');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.history WHERE event_id >= (SELECT low_id FROM evbus.tick ORDER BY tick_id DESC LIMIT 1))), '0', 'and the newest tick says that there is nothing to look at');

# Killed in the middle of it, the sequencer goes on where it was.
kill 'STOP', worker_pids($node, 'evbus sequencer');
publish(100_000);
$node->stop('immediate');
$node->start;
my $first = $node->safe_psql('postgres', 'SELECT min(event_id) FROM (SELECT event_id FROM evbus.history ORDER BY event_id DESC LIMIT 100000) e');
$node->poll_query_until('postgres', "SELECT max(low_id) > $first FROM evbus.tick");
$node->safe_psql('postgres', 'SELECT pg_terminate_backend(sequencer_pid) FROM evbus._status()');
after_crash('reader5', 'a recovery that was cut short');
is($node->safe_psql('postgres', 'SELECT count(*) FROM (SELECT first_position, lag(first_position + n) OVER (ORDER BY first_position) AS expected FROM evbus.tick WHERE bus_id > 0) t WHERE first_position <> expected'),
	'0', 'positions have no gap and none is given twice');

$node->stop;
done_testing();
