# Delayed events through restarts, crashes and kills at every step of becoming due: each is published once, and none early.
# Late commits and prepared transactions are not passed over; cancel races with becoming due; what has passed leaves the disk.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('delay', clock => 1, conf => <<'CONF');
max_prepared_transactions = 10
restart_after_crash = on
evbus.upkeep_interval = '100ms'
evbus.worker_idle_timeout = '500ms'
autovacuum = off
CONF

my $points = points($node);
shop($node);
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE due (id bigint, due_at timestamptz);
-- n events that are due one after another, from this many milliseconds on.
CREATE FUNCTION schedule(type text, n int, start int, step int) RETURNS void LANGUAGE sql AS $$
	INSERT INTO due SELECT evbus.publish('orders', type, to_jsonb(i), deliver_at => at), at
	FROM generate_series(1, n) AS i, LATERAL (SELECT clock_timestamp() + (start + i * step) * interval '1 millisecond') AS t (at);
$$;
CREATE VIEW outcome AS SELECT count(*) AS scheduled, count(h.event_id) AS published, count(*) FILTER (WHERE h.published_at < d.due_at) AS early
	FROM due d LEFT JOIN evbus.history h ON (h.headers ->> 'scheduledid')::bigint = d.id;
SQL

sub once
{
	my ($when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	answers($node, 'postgres', 'SELECT count(*) FROM evbus.scheduled', '0', "nothing is left: $when");
	my $n = $node->safe_psql('postgres', 'SELECT count(*) FROM due');
	is($node->safe_psql('postgres', 'SELECT scheduled, published, early FROM outcome'), "$n|$n|0", "each is published once, none early: $when");
	return complete($node, $when);
}

sub published
{
	my ($type) = @_;
	return $node->safe_psql('postgres', "SELECT count(*) FROM evbus.history WHERE type = '$type'");
}

# ---------------------------------------------------------------- a worker that comes and goes

is(worker_pids($node, 'evbus scheduler'), '', 'without delayed events there is no scheduler');
$node->safe_psql('postgres', q(SELECT schedule('first', 20, 500, 20)));
ok(other_worker($node, 'evbus scheduler', ''), 'with them there is one');
once('with a worker that had to be started');
answers($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'evbus scheduler'), '0', 'it ends when there are none');
$node->safe_psql('postgres', q(SELECT schedule('second', 20, 10, 20)));
once('with one that came back');

# ---------------------------------------------------------------- stops

for my $how (qw(fast immediate))
{
	$node->safe_psql('postgres', qq(SELECT schedule('$how', 400, 0, 5)));
	$node->poll_query_until('postgres', qq(SELECT count(*) > 20 FROM evbus.history WHERE type = '$how'));
	cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM evbus.scheduled'), '>', 0, "$how stop: some are left");
	$node->stop($how);
	start_moved($node);
	once("$how stop while they become due");
}

# They are due while the server is down.
$node->safe_psql('postgres', q(SELECT schedule('down', 50, 60000, 10)));
$node->stop('immediate');
move_clock(120);
start_moved($node);
once('due while the server was down');

SKIP:
{
	skip 'the library has no debug points', 22 unless $points;
	for my $at (qw(scheduled.found scheduled.taken scheduler.publishing scheduler.published))
	{
		for my $action (qw(error kill end))
		{
			next if $action eq 'error' && $at eq 'scheduler.published';
			my $log = -s $node->logfile;
			my $old = worker_pids($node, 'evbus scheduler');
			point($node, $at, $action, 1);
			$node->safe_psql('postgres', qq(SELECT schedule('$at.$action', 30, 100, 10)));
			ok(crashed($node, $log), "the server crashes at $at") if $action eq 'kill';
			once("$action at $at");
		}
	}
}

# ---------------------------------------------------------------- late commits

my $late = $node->background_psql('postgres');
$late->query_safe(q(BEGIN; SELECT schedule('late', 1, 50, 0)));
$node->safe_psql('postgres', q(SELECT schedule('prompt', 1, 100, 0)));
answers($node, 'postgres', q(SELECT count(*) FROM evbus.history WHERE type = 'prompt'), '1', 'an event that is due later is published');
is(published('late'), '0', 'before one that is not committed');
$late->query_safe('COMMIT');
once('a late commit of an early due time');
$late->query_safe(q(BEGIN; SELECT schedule('undone', 1, 50, 0)));
$node->safe_psql('postgres', q(SELECT schedule('prompt2', 1, 100, 0)));
answers($node, 'postgres', q(SELECT count(*) FROM evbus.history WHERE type = 'prompt2'), '1', 'the same again');
$late->query_safe('ROLLBACK');
once('a late rollback');

# ---------------------------------------------------------------- prepared transactions

for my $when ('at once', 'without a scheduler', 'after a restart')
{
	(my $gid = $when) =~ s/ /_/g;
	$node->safe_psql('postgres', qq(BEGIN; SELECT schedule('p.$gid', 1, 50, 0); PREPARE TRANSACTION '$gid'));
	$node->safe_psql('postgres', qq(SELECT schedule('m.$gid', 1, 60, 0)));
	answers($node, 'postgres', qq(SELECT count(*) FROM evbus.history WHERE type = 'm.$gid'), '1', "$when: a marker");
	is(published("p.$gid"), '0', "$when: a prepared event is not published");
	if ($when eq 'without a scheduler')
	{
		answers($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'evbus scheduler'), '0', 'the scheduler ends, though it is prepared');
	}
	if ($when eq 'after a restart')
	{
		$node->stop('immediate');
		start_moved($node);
	}
	$node->safe_psql('postgres', qq(COMMIT PREPARED '$gid'));
	once("COMMIT PREPARED, $when");
}
$node->safe_psql('postgres', q(BEGIN; SELECT schedule('p.undone', 1, 50, 0); PREPARE TRANSACTION 'undone'));
$node->safe_psql('postgres', q(ROLLBACK PREPARED 'undone'));
$node->safe_psql('postgres', q(SELECT schedule('p.marker', 1, 60, 0)));
once('ROLLBACK PREPARED');

# ---------------------------------------------------------------- cancel and becoming due

my $other = $node->background_psql('postgres');
my $cancel = 'SELECT evbus.cancel_scheduled(id) FROM due WHERE due_at = (SELECT max(due_at) FROM due)';
SKIP:
{
	skip 'the library has no debug points', 5 unless $points;
	point($node, 'scheduled.taken', 'wait');
	$node->safe_psql('postgres', q(SELECT schedule('raced', 1, 100, 0)));
	ok(reached($node, 'scheduled.taken'), 'the scheduler is about to publish');
	$other->query_until(qr/asked/, "\\echo asked\n$cancel;\n");
	ok($node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%cancel_scheduled%' AND wait_event = 'transactionid')), 'cancel waits for it');
	point($node, 'scheduled.taken', 'off');
	like($other->query_safe('SELECT 1'), qr/^f$/m, 'and is told that it came too late');
	once('a cancel that came too late');
}
$other->query_safe("SELECT schedule('cancelled', 1, 300, 0)");
is($other->query_safe("BEGIN; $cancel"), 't', 'a cancel that is not committed');
$node->safe_psql('postgres', q(SELECT schedule('prompt3', 3, 400, 10)));
answers($node, 'postgres', q(SELECT count(*) FROM evbus.history WHERE type = 'prompt3'), '3', 'holds up nobody else');
is(published('cancelled'), '0', 'and keeps its event back');
$other->query_safe('ROLLBACK');
once('a cancel that was rolled back');
$late->quit;
$other->quit;

# ---------------------------------------------------------------- what has passed leaves the disk

my $size = q(SELECT sum(pg_total_relation_size(('evbus.scheduled_' || n)::regclass)) FROM generate_series(0, 7) AS n WHERE pg_relation_size(('evbus.scheduled_' || n)::regclass) > 0);
my $now = $node->safe_psql('postgres', 'SELECT extract(epoch FROM clock_timestamp())::bigint') - 120;
my $quarter = int(($now + 900) / 900) * 900 - $now + 480;    # the second half of a quarter of an hour, from the clock of the start
my $day = 43200;
$day += 900 while ($now + $quarter + $day) % 86400 < 45000 || ($now + $quarter + $day) % 86400 > 80000;    # and of a day
move_clock($quarter);
# In each leaf: two for this quarter and the next ones, five for some days.
$node->safe_psql('postgres', qq(SELECT schedule('q.' || d, 500, d * 1000, 0) FROM unnest('{60,900,1800,7200,90000,172800}'::int[]) AS d));
cmp_ok($node->safe_psql('postgres', $size), '>', 500_000, 'scheduled events take space');
cmp_ok($node->safe_psql('postgres', 'SELECT count(DISTINCT leaf) FROM evbus.scheduled'), '>=', 5, 'in many leaves');
my $left = 3000;
my $quarters = 1;
for my $step (map({ $quarter + 900 * $_ } 1 .. 5), map({ $quarter + $day + 86400 * $_ } 1 .. 5))
{
	move_clock($step);
	# The leaf of the turn before this one is truncated, wherever the turns are just now.
	$node->poll_query_until('postgres', 'SELECT coalesce(min(due_at) > clock_timestamp(), true) FROM evbus.scheduled');
	$node->poll_query_until('postgres', <<~'SQL');
		SELECT bool_and(pg_relation_size(('evbus.scheduled_' || leaf)::regclass) = 0)
		FROM (SELECT (extract(epoch FROM clock_timestamp())::bigint - 946684800) AS s) AS t,
			LATERAL (VALUES ((s / 900 + 3) % 4, s % 900 >= 451), (4 + (s / 86400 + 3) % 4, s % 86400 >= 43201)) AS v (leaf, half) WHERE half
		SQL
}
once('over days');
is($node->safe_psql('postgres', $size), '', 'leaves are truncated when their turn is over');
cmp_ok($node->safe_psql('postgres', q(SELECT pg_relation_size('evbus.scheduled_8'))), '<', 1_000_000, 'none went to the last leaf but what was far ahead');

# ---------------------------------------------------------------- dumped and restored

$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'dumped', to_jsonb(d), delay => d::interval, dedup_key => d) FROM unnest('{15 seconds,1 day,1 month}'::text[]) AS d));
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
$node->command_ok([ 'pg_dump', '--format=custom', '-f', $dump, '-d', $node->connstr('postgres') ], 'a dump');
$node->safe_psql('postgres', 'CREATE DATABASE copy');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('copy'), $dump ], 'is restored');
is($node->safe_psql('copy', q(SELECT string_agg(payload #>> '{}', ',' ORDER BY due_at) FROM evbus.scheduled_list)), '15 seconds,1 day,1 month', 'with the delayed events');
$node->safe_psql('copy', 'SELECT evbus.take_over()');
is($node->safe_psql('copy', q(SELECT evbus.publish('orders', 'dumped', '1', dedup_key => '1 day') = id FROM evbus.scheduled_list WHERE payload = '"1 day"')), 't', 'and the keys');
move_clock($quarter + $day + 86400 * 5 + 60);
answers($node, 'copy', q(SELECT count(*) FROM evbus.history WHERE type = 'dumped'), '1', 'they are published there');
$node->stop;

# ---------------------------------------------------------------- no worker slot left

my $full = new_node('full', conf => 'max_worker_processes = 4');
$full->safe_psql('postgres', q(SELECT evbus.create_bus('b'); SELECT evbus.subscribe('b', 's'); SELECT evbus.publish('b', 'a', '1', delay => '1 second')));
answers($full, 'postgres', q(SELECT count(*) FROM evbus.history), '1', 'without a worker slot for the scheduler the maintainer stands in');
is(worker_pids($full, 'evbus scheduler'), '', 'there was none');
$full->stop;

done_testing();
