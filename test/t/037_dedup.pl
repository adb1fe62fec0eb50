# Dedup keys at the edges: between the two tables, under load, through crashes, with prepared transactions; and what they leave on disk.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = new_node('dedup', clock => 1, conf => <<'CONF');
max_prepared_transactions = 10
evbus.upkeep_interval = '100ms'
CONF

my $points = points($node);
$node->safe_psql('postgres', q(SELECT evbus.create_bus('b', dedup_window => '1 second')));

my $publish = q(SELECT evbus.publish('b', 'a', '1', key => '%1$s', dedup_key => '%1$s'));

sub publish
{
	my ($key) = @_;
	return $node->safe_psql('postgres', sprintf($publish, $key));
}

sub stored
{
	my ($key) = @_;
	return $node->safe_psql('postgres', "SELECT count(*) FROM evbus.history WHERE key = '$key'");
}

my $sizes = q(SELECT pg_relation_size('evbus.dedup_0') + pg_relation_size('evbus.dedup_1'));

# ---------------------------------------------------------------- many turns under load

my $script = PostgreSQL::Test::Utils::tempdir() . '/load.sql';
append_to_file($script, <<'SQL');
\set k random(1, 300)
\set pause random(1, 40)
\set undo random(1, 4)
BEGIN;
SELECT evbus.publish('b', 'load', '1', key => ':k', dedup_key => 'load :k');
\if :undo = 1
SELECT pg_sleep(:pause / 1000.0);
ROLLBACK;
\else
COMMIT;
\endif
SQL
my $files = q(SELECT pg_relation_filenode('evbus.dedup_0'), pg_relation_filenode('evbus.dedup_1'));
my $before = $node->safe_psql('postgres', $files);
$node->run_log([ 'pgbench', '-n', '-c', '8', '-j', '2', '-T', '15', '-f', $script, '-h', $node->host, '-p', $node->port, 'postgres' ]);
my $events = $node->safe_psql('postgres', q(SELECT count(*) FROM evbus.history WHERE type = 'load'));
cmp_ok($events, '>', 300, 'more events are stored than there are keys');
is($node->safe_psql('postgres', q(SELECT count(*) FROM (SELECT published_at - lag(published_at) OVER (PARTITION BY key ORDER BY event_id) AS gap FROM evbus.history WHERE type = 'load') AS g WHERE gap < interval '1 second')),
	'0', 'never two of one key within a second, over many turns');
isnt($node->safe_psql('postgres', $files), $before, 'a table was truncated meanwhile');
answers($node, 'postgres', $sizes, '0', 'and a while later all of them');

# ---------------------------------------------------------------- the edge, step by step

SKIP:
{
	skip 'the library has no debug points', 16 unless $points;
	for my $at (qw(dedup.inserted dedup.look dedup.looked))
	{
		$node->safe_psql('postgres', q(SELECT evbus.alter_bus('b', dedup_window => '1 second')));
		answers($node, 'postgres', $sizes, '0', "$at: both tables are empty");
		$node->safe_psql('postgres', q(SELECT evbus.alter_bus('b', dedup_window => '1 hour')));
		publish("filler $at");
		my $first = $node->background_psql('postgres');
		point($node, $at, 'wait');
		$first->query_until(qr/asked/, "\\echo asked\n" . sprintf($publish, $at) . ";\n");
		ok(reached($node, $at), "a publisher has read the turn, and is at $at");
		point($node, 'dedup.switched', 'wait');
		$node->safe_psql('postgres', q(SELECT evbus.alter_bus('b', dedup_window => '1 second')));
		ok(reached($node, 'dedup.switched'), 'now it is another');
		# Long enough for what follows; the key of the first publisher is not taken yet, or only speculatively.
		$node->safe_psql('postgres', q(SELECT evbus.alter_bus('b', dedup_window => '1 hour')));
		point($node, 'dedup.switched', 'off');
		my $second = $node->background_psql('postgres');
		if ($at eq 'dedup.inserted')
		{
			$second->query_until(qr/asked/, "\\echo asked\n" . sprintf($publish, $at) . ";\n");
			ok($node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'spectoken')), 'another publisher waits until the first knows');
		}
		else
		{
			# The point is for everybody: let one pass, as the first is there already.
			point($node, $at, 'wait', 1000);
			$second->query_safe(sprintf($publish, $at));
		}
		point($node, $at, 'off');
		$first->query_safe('SELECT 1');
		$second->query_safe('SELECT 1');
		$first->quit;
		$second->quit;
		is(stored($at), '1', "$at: the event is stored once");
		is(publish($at), $node->safe_psql('postgres', "SELECT event_id FROM evbus.history WHERE key = '$at'"), "$at: its id is what everybody gets");
	}
}

# ---------------------------------------------------------------- crashes and prepared transactions

$node->safe_psql('postgres', q(SELECT evbus.alter_bus('b', dedup_window => '1 hour')));
my $id = publish('crash');
my $open = $node->background_psql('postgres');
$open->query_safe('BEGIN; ' . sprintf($publish, 'open'));
$node->stop('immediate');
eval { $open->quit };
start_moved($node);
is(publish('crash'), $id, 'a key outlives a crash');
publish('open');
is(stored('open'), '1', 'one that was not committed is free');

for my $end (qw(COMMIT ROLLBACK))
{
	$node->safe_psql('postgres', 'BEGIN; ' . sprintf($publish, "p $end") . "; PREPARE TRANSACTION 'p'");
	$node->stop('immediate');
	start_moved($node);
	my $waits = $node->background_psql('postgres');
	$waits->query_until(qr/asked/, "\\echo asked\n" . sprintf($publish, "p $end") . ";\n");
	ok($node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'transactionid')), 'a prepared transaction is waited for, after a restart as well');
	$node->safe_psql('postgres', "$end PREPARED 'p'");
	$waits->query_safe('SELECT 1');
	$waits->quit;
	is(stored("p $end"), '1', "$end PREPARED: the event is stored once");
}

# ---------------------------------------------------------------- windows, and what is left

$node->safe_psql('postgres', q(SELECT evbus.create_bus('short', dedup_window => '1 second')));
$id = publish('long');
my $short = $node->safe_psql('postgres', q(SELECT evbus.publish('short', 'a', '1', dedup_key => 'k')));
move_clock(3500);
is(publish('long'), $id, 'a key is taken until the window of its bus has passed');
isnt($node->safe_psql('postgres', q(SELECT evbus.publish('short', 'a', '1', dedup_key => 'k'))), $short, 'beside one whose window is shorter');
$node->stop('immediate');
start_moved($node);
is(publish('long'), $id, 'also after a restart');
move_clock(3700);
isnt(publish('long'), $id, 'then it is free');

# A transaction that holds a key, and one that looks at the tables, hold up the turn and nobody else.
my $holder = $node->background_psql('postgres');
$holder->query_safe('BEGIN; ' . sprintf($publish, 'held'));
my $reader = $node->background_psql('postgres');
$reader->query_safe('BEGIN; LOCK TABLE evbus.dedup_0, evbus.dedup_1 IN ACCESS SHARE MODE');
for my $hour (2 .. 5)
{
	move_clock(3600 * $hour);
	publish("hour $hour");
}
$holder->query_safe('COMMIT');
is(stored('held'), '1', 'what was held is stored');
is(stored('hour 5'), '1', 'and the others');
cmp_ok($node->safe_psql('postgres', $sizes), '>', 0, 'the tables could not be emptied');
$reader->query_safe('COMMIT');
$holder->quit;
$reader->quit;
$node->stop('fast');
start_moved($node);

# A table goes a window after the turn was raised, which is a window after its first row: by the clock, so it is moved on.
sub emptied
{
	my ($from) = @_;
	for my $hour ($from .. $from + 9)
	{
		move_clock(3600 * $hour + 60 * $hour);
		for (1 .. 40)
		{
			return 1 if $node->safe_psql('postgres', $sizes) eq '0';
			usleep(100_000);
		}
	}
	return 0;
}

ok(emptied(7), 'when nobody is in the way they are');
publish('again');
cmp_ok($node->safe_psql('postgres', $sizes), '>', 0, 'a key');
ok(emptied(17), 'and again');
$node->stop;

done_testing();
