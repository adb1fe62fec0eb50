# Statistics beside what is true: counters and percentiles under load, windows as time goes by, tracked types that make room.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('stats', clock => 1, conf => <<'CONF');
max_prepared_transactions = 5
evbus.max_tracked_types = 4
CONF
sub sql { my ($q) = @_; return $node->safe_psql('postgres', $q); }

# What a window says of a bus or subscription.
sub window_of { my ($of, $name, $length, $columns) = @_; return sql("SELECT $columns FROM evbus.stat_${of}_window WHERE $of = '$name' AND \"window\" = '$length'"); }

# ------------------------------------------------------------------------- under load

# One in ten of the slow ones takes 40 ms, the others 3; one in twenty fails at its first attempt.
sql(<<'SQL');
CREATE TABLE done (i integer, attempt integer, latency double precision, took double precision);
CREATE FUNCTION work(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
DECLARE begun timestamptz := clock_timestamp();
BEGIN
	IF (e.payload->>'i')::integer % 20 = 7 AND e.attempt = 1 THEN
		RAISE EXCEPTION 'once';
	END IF;
	PERFORM pg_sleep(CASE WHEN (e.payload->>'i')::integer % 10 = 0 THEN 0.04 ELSE 0.003 END);
	INSERT INTO done VALUES ((e.payload->>'i')::integer, e.attempt, extract(epoch FROM begun - e.published_at), extract(epoch FROM clock_timestamp() - begun));
END $$;
SELECT evbus.create_bus('load'), evbus.create_bus('volatile', durability => 'volatile');
SELECT evbus.subscribe('load', 'worker', handler => 'work(evbus.event)', concurrency => 2, batch_size => 1, backoff_initial => '100 milliseconds'),
	evbus.subscribe('load', 'client'), evbus.subscribe('volatile', 'other');
CREATE SEQUENCE n;
SQL
my $script = PostgreSQL::Test::Utils::tempdir() . '/load.sql';
append_to_file($script, <<'SQL');
\set rollback random(1, 5)
BEGIN;
SELECT evbus.publish('load', 't' || nextval('n') % 3, jsonb_build_object('i', currval('n')));
SELECT count(evbus.publish('volatile', 'v', '1')) FROM generate_series(1, 3);
\if :rollback = 1
ROLLBACK;
\else
COMMIT;
\endif
SELECT evbus.ack(array_agg(receipt)) FROM evbus.receive('client', 5) HAVING count(*) > 0;
SELECT pg_sleep(0.02);
SQL
run_log([ 'pgbench', '-n', '-c', 4, '-t', 60, '-f', $script, $node->connstr('postgres') ], '>', \my $stdout, '2>', \my $stderr);
is($?, 0, 'there is load');
answers($node, 'postgres', q(SELECT lag || ' ' || in_flight || ' ' || retries FROM evbus.subscription_lag WHERE subscription = 'worker'), '0 0 0', 'all is handled');
my $n = sql('SELECT count(*) FROM evbus.history');
my $failed = sql('SELECT count(*) FROM done WHERE attempt = 2');
cmp_ok($failed, '>', 0, 'some failed once');
is(sql(q(SELECT published || ' ' || transactions || ' ' || failed || ' ' || dead_lettered FROM evbus.stat_bus WHERE bus = 'load')), "$n $n $failed 0", "the bus has counted what was committed: $n, and what failed");
is(sql(q(SELECT published || ' ' || transactions FROM evbus.stat_bus WHERE bus = 'volatile')), 3 * $n . " $n", 'and so has the volatile one');
is(sql(q(SELECT string_agg(concat_ws(' ', type, published), ', ' ORDER BY type) FROM evbus.stat_type WHERE bus = 'load')),
	sql(q(SELECT string_agg(concat_ws(' ', type, n), ', ' ORDER BY type) FROM (SELECT type, count(*) AS n FROM evbus.history GROUP BY type) AS h)), 'so have its types');
is(sql(q(SELECT delivered || ' ' || done || ' ' || failed || ' ' || ran_out FROM evbus.stat_subscription WHERE subscription = 'worker')), $n + $failed . " $n $failed 0", 'the subscription has counted deliveries, those that are done, and those that failed');
my $received = sql(q(SELECT delivered FROM evbus.stat_subscription WHERE subscription = 'client'));
my $lag = sql(q(SELECT lag FROM evbus.subscription_lag WHERE subscription = 'client'));
is($received + $lag, $n, 'and that of clients what they received');
is(window_of('subscription', 'worker', '1 minute', "round(failure_share::numeric, 6)"), sprintf('%.6f', $failed / ($n + $failed)), 'the share of failures is right');
is(window_of('bus', 'load', '1 minute', 'abs(published_per_second * seconds - published) < 0.001'), 't', 'a rate is what was counted, by seconds');

# Percentiles: right to an eighth, and what lies between our clock and that of the handler.
foreach my $of (['latency', 'latency', 'WHERE attempt = 1'], ['handler', 'took', ''])
{
	my ($name, $column, $where) = @$of;
	foreach my $p (50, 95, 99)
	{
		my $is = window_of('subscription', 'worker', '5 minutes', "extract(epoch FROM ${name}_p$p)");
		my $true = sql("SELECT percentile_disc(0.$p) WITHIN GROUP (ORDER BY $column) FROM done $where");
		# The handler's times of failures are ours only, and so are their latencies: a rank or two of a hundred.
		my ($low, $high) = split / /, sql("SELECT percentile_disc(greatest(0.$p - 0.06, 0)) WITHIN GROUP (ORDER BY $column) || ' ' || percentile_disc(least(0.$p + 0.06, 1)) WITHIN GROUP (ORDER BY $column) FROM done $where");
		ok($is >= $low * 0.87 - 0.002 && $is <= $high * 1.13 + 0.002, "${name}_p$p is $is; true is $true");
	}
}

# -------------------------------------------------------------------------- time goes by

sql(q(SELECT evbus.create_bus('time'), evbus.subscribe('time', 'late'); SELECT evbus.stat_reset()));
is(sql(q(SELECT sum(published) FROM evbus.stat_bus)) . ' ' . sql(q(SELECT count(*) FROM evbus.stat_type)), '0 0', 'a reset forgets all');
# So much was published when so many seconds had gone by; and then the windows say.
my @story = (
	[0, 100, '100 100 100', 'at once'],
	[30, 50, '150 150 150', 'half a minute later'],
	[45, 5, '55 155 155', 'after more than a minute'],
	[120, 0, '0 155 155', 'after three'],
	[100, 7, '7 162 162', 'after nearly five'],
	[200, 0, '0 7 162', 'after more than six minutes of what was first'],
	[3350, 0, '0 0 7', 'after more than an hour of that'],
	[700, 1, '1 1 1', 'at the end there is only what is new']);
my $all = 0;
foreach (@story)
{
	my ($seconds, $more, $expected, $when) = @$_;
	pass_time($seconds);
	sql("SELECT count(evbus.publish('time', 'a', '1')) FROM generate_series(1, $more)") if $more;
	$all += $more;
	is(sql(q(SELECT string_agg(published::text, ' ' ORDER BY "window") FROM evbus.stat_bus_window WHERE bus = 'time')), $expected, $when);
	is(sql(q(SELECT bool_and(seconds <= extract(epoch FROM "window") * 7 / 6 + 61) FROM evbus.stat_bus_window WHERE bus = 'time')), 't', 'no window covers much more');
}
is(sql(q(SELECT published FROM evbus.stat_bus WHERE bus = 'time')), $all, 'the total has all');
is(sql(q(SELECT count(*) FROM evbus.stat_minutes WHERE bus = 'time' AND subscription IS NULL)), 61, 'there are the minutes of an hour');
is(sql(q(SELECT sum(events) FROM evbus.stat_minutes WHERE bus = 'time' AND subscription IS NULL)), 1, 'with what was published in them');

# How far behind, and when it will have caught up: 163 are, half of them are acked, twenty seconds go by.
my $behind = sql(q(SELECT lag FROM evbus.stat_subscription WHERE subscription = 'late'));
is($behind, $all, 'nobody has received');
pass_time(100);
answers($node, 'postgres', q(SELECT lag_before FROM evbus._stat_subscription() JOIN evbus.subscription USING (subscription_id) WHERE subscription = 'late' AND "window" = '1 minute'), $behind, 'the maintainer has looked how far it is behind');
is(sql(q(SELECT time_to_drain FROM evbus.stat_subscription WHERE subscription = 'late')), '', 'which does not fall');
pass_time(20);
sql("SELECT evbus.ack(array_agg(receipt)) FROM evbus.receive('late', $behind / 2)");
pass_time(20);
my ($left, $drain) = split / /, sql(q(SELECT lag || ' ' || extract(epoch FROM time_to_drain) FROM evbus.stat_subscription WHERE subscription = 'late'));
is($left, $behind - int($behind / 2), 'half is done');
ok($drain >= 19 && $drain < 55, "the rest takes as long: $drain s");
answers($node, 'postgres', q(SELECT bool_or(lag IS NOT NULL) FROM evbus.stat_minutes WHERE subscription = 'late'), 't', 'its minutes have the lag');

# ------------------------------------------------------------------------------ types

sql(q(SELECT evbus.create_bus('types'); SELECT evbus.stat_reset()));
sql(q(SELECT evbus.publish('types', 'hot', '1'), evbus.publish('types', 'cold.' || i, '1') FROM generate_series(1, 40) AS i));
sql(q(SELECT evbus.publish('types', 'hot', '1')));
sql("SELECT evbus.publish('types', 'hot', '1'), evbus.publish('types', 'new.$_', '1')") foreach 1 .. 10;
is(sql(q(SELECT count(*) FROM evbus.stat_type WHERE type IS NOT NULL)), 4, 'no more types are tracked than may be');
is(sql(q(SELECT published FROM evbus.stat_type WHERE type = 'hot')), 51, 'one that is always there stays');
is(sql(q(SELECT count(*) FROM evbus.stat_type WHERE type LIKE 'new.%' AND published = 1)), 3, 'the others are those that came last');
is(sql(q(SELECT sum(published) || ' ' || (SELECT published FROM evbus.stat_bus WHERE bus = 'types') FROM evbus.stat_type WHERE bus = 'types')), '101 101', 'all together have what the bus has');
is(sql(q(SELECT published FROM evbus.stat_type WHERE bus = 'types' AND type IS NULL)), 47, 'those that made room are among the others');

# ------------------------------------------------------------------ leases, 2PC, off, crash

sql(q(SELECT count(*) FROM evbus.receive('late', 2, lease => '1 second')));
pass_time(5);
answers($node, 'postgres', q(SELECT ran_out FROM evbus.stat_subscription WHERE subscription = 'late'), 2, 'leases that ran out count');
sql(q(BEGIN; SELECT evbus.publish('types', 'prepared', '1'); PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'));
is(sql(q(SELECT published FROM evbus.stat_bus WHERE bus = 'types')), 102, 'what was prepared counts');
sql(q(SET evbus.track_statistics = off; SELECT evbus.publish('types', 'a', '1')));
is(sql(q(SELECT published FROM evbus.stat_bus WHERE bus = 'types')), 102, 'with evbus.track_statistics off nothing does');
sql(q(SELECT evbus.drop_bus('types', true); SELECT evbus.create_bus('types')));
is(sql(q(SELECT published || ' ' || coalesce(last_published_at::text, 'never') FROM evbus.stat_bus WHERE bus = 'types')), '0 never', 'another bus of the name has nothing of it');
sql(q(SELECT evbus.publish('types', 'a', '1')));
is(sql(q(SELECT (SELECT published FROM evbus.stat_bus WHERE bus = 'types') || ' ' || string_agg(concat_ws(' ', type, published), ',') FROM evbus.stat_type WHERE bus = 'types')), '1 a 1', 'and counts for itself');
$node->stop('immediate');
start_moved($node);
answers($node, 'postgres', q(SELECT count(*) || ' ' || sum(published) FROM evbus.stat_bus), '4 0', 'after a crash it begins anew');
sql(q(DROP EXTENSION evbus CASCADE; CREATE EXTENSION evbus; SELECT evbus.create_bus('first'); SELECT evbus.publish('first', 'a', '1')));
is(sql(q(SELECT string_agg(bus || ' ' || published, ',') FROM evbus.stat_bus)), 'first 1', 'and for an extension made anew');

$node->stop;
done_testing();
