# Fairness: many subscriptions on few workers. Whoever is slow, failing, blocked or busy keeps nobody waiting for longer than the
# bound in docs/limits.md: (owners with work / workers, rounded up) x (evbus.worker_slice and the timeout of a call), and within
# an owner as many turns as it has subscriptions.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('fairness', conf => "evbus.max_handler_workers = 2\nevbus.worker_slice = '200ms'\n");

sub sql
{
	return $node->safe_psql($_[1] // 'postgres', $_[0]);
}

# Handlers of three roles; the time between publishing and the call is kept.
my $setup = <<'SQL';
CREATE TABLE called (subscription text, published timestamptz, event_id bigint, at timestamptz DEFAULT clock_timestamp());
CREATE TABLE lock ();
CREATE FUNCTION quick(e evbus.event) RETURNS void LANGUAGE sql AS $$ INSERT INTO called VALUES (e.type, e.published_at, e.event_id) $$;
CREATE FUNCTION slow(e evbus.event) RETURNS void LANGUAGE sql AS $$ INSERT INTO called VALUES (e.bus, e.published_at, e.event_id); SELECT pg_sleep(0.01) $$;
CREATE FUNCTION fails(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.01); RAISE 'no'; END $$;
CREATE FUNCTION blocked(e evbus.event) RETURNS void LANGUAGE sql AS $$ LOCK TABLE lock $$;
GRANT ALL ON called, lock TO PUBLIC;
GRANT USAGE ON SCHEMA evbus TO PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA evbus TO PUBLIC;
GRANT evbus_consumer TO alice, bob, carol;
SQL
sql("CREATE ROLE $_ LOGIN") foreach qw(alice bob carol);
sql($setup);

# How long the newest event of a type, published now, took to its handler: seconds.
sub latency
{
	my ($bus, $type) = @_;

	sql("SELECT evbus.publish('$bus', '$type', '1')");
	$node->poll_query_until('postgres', "SELECT count(*) > 0 FROM called WHERE subscription = '$type'") or return 1000;
	return sql("DELETE FROM called WHERE subscription = '$type' RETURNING extract(epoch FROM at - published)");
}

sub worst
{
	my ($n, $bus, $type) = @_;
	my $worst = 0;

	for (1 .. $n)
	{
		my $took = latency($bus, $type);
		$worst = $took if $took > $worst;
		last if $took >= 1000;
		select undef, undef, undef, 0.05;
	}
	return $worst;
}

# Two subscriptions of alice, which never come to an end, have both workers; bob has one event now and then.
sql(q(SELECT evbus.create_bus(b), evbus.grant('subscribe', b, 'evbus_consumer') FROM unnest('{a1,a2,b,c}'::text[]) AS b));
sql(q(SET SESSION AUTHORIZATION alice; SELECT evbus.subscribe('a1', 'a1', handler => 'slow(evbus.event)', batch_size => 1000), evbus.subscribe('a2', 'a2', handler => 'slow(evbus.event)', batch_size => 1000)));
sql(q(SET SESSION AUTHORIZATION bob; SELECT evbus.subscribe('b', 'b', handler => 'quick(evbus.event)')));
sql(q(SELECT count(*) FROM unnest('{a1,a2}'::text[]) AS b, LATERAL evbus.publish_batch(b, '{a}', (SELECT array_agg(to_jsonb(i)) FROM generate_series(1, 20000) AS i))));
answers($node, 'postgres', q(SELECT count(DISTINCT subscription) FROM called WHERE subscription IN ('a1', 'a2')), '2', 'both workers are busy');
my $worst = worst(8, 'b', 'bob');
cmp_ok($worst, '<', 3, sprintf 'bob waits %.2f s at most, although they never end', $worst);

# A third owner who is always busy, too: each of the three gets on.
sql(q(SET SESSION AUTHORIZATION carol; SELECT evbus.subscribe('c', 'c', handler => 'slow(evbus.event)', batch_size => 1000)));
sql(q(SELECT count(*) FROM evbus.publish_batch('c', '{a}', (SELECT array_agg(to_jsonb(i)) FROM generate_series(1, 20000) AS i))));
$worst = worst(8, 'b', 'bob');
cmp_ok($worst, '<', 4, sprintf 'bob waits %.2f s at most beside two that never end', $worst);
sql('DELETE FROM called');
select undef, undef, undef, 4;
my %calls = map { split /\|/ } split /\n/, sql(q(SELECT subscription, count(*) FROM called GROUP BY subscription));
cmp_ok($calls{c} // 0, '>', 20, 'carol gets on');
cmp_ok(($calls{a1} // 0) + ($calls{a2} // 0), '>', 20, 'and so does alice');
sql(q(SELECT evbus.drop_bus(b, true) FROM unnest('{a1,a2,c}'::text[]) AS b));

# Of one owner: one that is slow and never ends, one that fails, one that is blocked, and a quick one.
sql('DELETE FROM called');
my $holder = $node->background_psql('postgres', on_error_die => 1);
$holder->query_safe('BEGIN; LOCK TABLE lock;');
sql(q(SELECT evbus.create_bus(b), evbus.grant('subscribe', b, 'evbus_consumer') FROM unnest('{slow,fails,blocked,quick}'::text[]) AS b));
sql(q(SET SESSION AUTHORIZATION alice;
SELECT evbus.subscribe('slow', 'slow', handler => 'slow(evbus.event)', batch_size => 1000),
	evbus.subscribe('fails', 'fails', handler => 'fails(evbus.event)', batch_size => 1000, max_attempts => 1000, backoff_max => '0', backoff_initial => '0'),
	evbus.subscribe('blocked', 'blocked', handler => 'blocked(evbus.event)', timeout => '300 milliseconds', max_attempts => 1000, backoff_initial => '0', backoff_max => '0'),
	evbus.subscribe('quick', 'quick', handler => 'quick(evbus.event)')));
sql(q(SELECT count(*) FROM unnest('{slow,fails,blocked}'::text[]) AS b, LATERAL evbus.publish_batch(b, '{a}', (SELECT array_agg(to_jsonb(i)) FROM generate_series(1, 2000) AS i))));
answers($node, 'postgres', q(SELECT count(*) > 0 FROM called WHERE subscription = 'slow'), 't', 'they have begun');
$worst = worst(8, 'quick', 'quick');
cmp_ok($worst, '<', 3, sprintf 'the quick one waits %.2f s at most', $worst);
cmp_ok(sql(q(SELECT count(*) FROM called WHERE subscription = 'slow')), '>', 20, 'while the slow one gets on');
cmp_ok(sql(q(SELECT retries FROM evbus.subscription_lag WHERE subscription = 'fails')), '>', 5, 'and the failing one fails');
is(sql(q(SELECT count(*) FROM evbus.dead_letter)), '0', 'nothing is given up');
$holder->query_safe('COMMIT');
$holder->quit;
answers($node, 'postgres', q(SELECT lag + retries FROM evbus.subscription_lag WHERE subscription = 'blocked'), '0', 'the blocked one goes on when it can');
sql(q(SELECT evbus.drop_bus(b, true) FROM unnest('{fails,blocked}'::text[]) AS b));
answers($node, 'postgres', q(SELECT lag + retries FROM evbus.subscription_lag WHERE subscription = 'slow'), '0', 'the slow one comes to its end');
is(sql(q(SELECT count(*) || ' ' || count(DISTINCT event_id) FROM called WHERE subscription = 'slow')), '2000 2000', 'each of its events came once, however often its batch was cut short');

# What was cut short is in order where that was asked for, by priority where that was, and counted once where it is filtered.
sql(q(DELETE FROM called; ALTER TABLE called ADD n integer GENERATED ALWAYS AS IDENTITY; SELECT evbus.create_bus('o'), evbus.grant('subscribe', 'o', 'evbus_consumer');
CREATE FUNCTION keep(e evbus.event) RETURNS void LANGUAGE sql AS $$ INSERT INTO called VALUES ('o', e.published_at, e.event_id); SELECT pg_sleep(0.005) $$;
CREATE FUNCTION keep_some(e evbus.event) RETURNS void LANGUAGE sql AS $$ INSERT INTO called VALUES ('f', e.published_at, e.event_id); SELECT pg_sleep(0.005) $$));
sql(q(SET SESSION AUTHORIZATION alice; SELECT evbus.subscribe('o', 'o', handler => 'keep(evbus.event)', ordering => 'key', batch_size => 1000), evbus.subscribe('o', 'f', handler => 'keep_some(evbus.event)', batch_size => 1000, filter => '$.i % 4 == 0')));
sql(q(SELECT count(*) FROM evbus.publish_batch('o', '{a}', (SELECT array_agg(jsonb_build_object('i', i)) FROM generate_series(1, 1000) AS i), (SELECT array_agg('k'::text) FROM generate_series(1, 1000)))));
answers($node, 'postgres', q(SELECT string_agg(lag::text, ' ') FROM evbus.subscription_lag WHERE bus = 'o'), '0 0', 'all of it is done');
is(sql(q(SELECT count(*) || ' ' || count(*) FILTER (WHERE event_id < before) FROM (SELECT event_id, lag(event_id) OVER (ORDER BY n) AS before FROM called WHERE subscription = 'o') AS c)), '1000 0', 'in order');
is(sql(q(SELECT (SELECT count(*) FROM called WHERE subscription = 'f') || ' ' || filtered FROM evbus.subscription_lag WHERE subscription = 'f')), '250 750', 'what the filter kept back is counted once');

# Another database has all workers.
sql('CREATE DATABASE other');
sql("CREATE EXTENSION evbus; $setup", 'other');
sql(q(SELECT evbus.create_bus(b), evbus.grant('subscribe', b, 'evbus_consumer') FROM unnest('{a1,a2}'::text[]) AS b), 'other');
sql(q(SET SESSION AUTHORIZATION alice; SELECT evbus.subscribe('a1', 'a1', handler => 'slow(evbus.event)', batch_size => 1000), evbus.subscribe('a2', 'a2', handler => 'slow(evbus.event)', batch_size => 1000)), 'other');
sql(q(SELECT count(*) FROM unnest('{a1,a2}'::text[]) AS b, LATERAL evbus.publish_batch(b, '{a}', (SELECT array_agg(to_jsonb(i)) FROM generate_series(1, 20000) AS i))), 'other');
answers($node, 'other', q(SELECT count(DISTINCT subscription) FROM called), '2', 'another database has begun');
sql(q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'evbus handler' AND datname = 'postgres'));
answers($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'evbus handler' AND datname = 'other'), '2', 'and has both workers');
$worst = worst(5, 'b', 'bob');
cmp_ok($worst, '<', 4, sprintf 'bob waits %.2f s at most for workers of another database', $worst);

$node->stop;
done_testing();
