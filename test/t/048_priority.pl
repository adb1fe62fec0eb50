# Priority where it is about processes: many takers at a time, a crash in between, more ranges than may wait, workers that
# are killed, and readers behind the ring. Whatever overtakes what, each event comes, and is done once.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

# 64 entries may wait of a subscription.
my $node = new_node('priority', conf => "evbus.ring_size = '1MB'\nevbus.max_leases = 1024\nevbus.max_handler_workers = 6\nevbus.upkeep_interval = '1s'\n");

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

# Priorities that alternate: each event is a range of its own, so a window is full after 64 of them.
sql(<<'SQL');
SELECT evbus.create_bus('b');
CREATE TABLE done (subscription text, i integer, p integer, n integer GENERATED ALWAYS AS IDENTITY);
CREATE FUNCTION note(events evbus.event[]) RETURNS void LANGUAGE sql AS $$ INSERT INTO done (subscription, i, p) SELECT 'h', (e.payload->>'i')::integer, (e.payload->>'p')::integer FROM unnest($1) WITH ORDINALITY AS e ORDER BY e.ordinality $$;
CREATE FUNCTION put(bus text, a integer, b integer) RETURNS bigint LANGUAGE sql AS $$
	SELECT count(evbus.publish(bus, 'e', jsonb_build_object('i', i, 'p', i % 3, 'x', repeat('x', CASE WHEN i % 500 = 0 THEN 20000 ELSE 100 END)), priority => i % 3)) FROM generate_series(a, b) AS i $$;
SELECT evbus.subscribe('b', 'c', by_priority => true), evbus.subscribe('b', 'd', by_priority => true), evbus.subscribe('b', 'h', by_priority => true, handler => 'note(evbus.event[])', concurrency => 3, batch_size => 50);
SELECT evbus.pause('h');
SQL
sql("SELECT put('b', $_ * 1000 + 1, $_ * 1000 + 1000)") foreach 0 .. 9;
answers($node, 'postgres', q(SELECT string_agg(lag::text, ' ') FROM evbus.subscription_lag), '10000 10000 10000', 'ten thousand wait, most of them not in the ring any more');

# What a client takes in one call comes from a window: of 64 looked at, those of priority 2 first.
is(sql(q(SELECT string_agg(payload->>'p', '' ORDER BY ordinality) FROM evbus.receive('d', 24) WITH ORDINALITY)), '2222222122222220222222' . '21', 'a window of what waits is by priority');
cmp_ok(sql(q(SELECT (evbus._status()).leases_used)), '<', 200, 'and no more wait than may');
sql(q(SELECT evbus.unsubscribe('d')));

# Others hold half of all leases: then nobody may look ahead, and what waits comes as it was published.
sql(q(SELECT evbus.create_bus('hog'), evbus.create_bus('other'); SELECT evbus.subscribe('hog', 'hog', lease => '1 hour'), evbus.subscribe('other', 'o', by_priority => true), evbus.subscribe('other', 'oh', by_priority => true, handler => 'note(evbus.event[])')));
sql(q(SELECT count(*) FROM evbus.publish_batch('hog', '{a}', (SELECT array_agg(to_jsonb(i)) FROM generate_series(1, 2000) AS i))));
is(sql(q(SELECT count(*) FROM evbus.receive('hog', 2000))), '512', 'one has half of the leases');
sql(q(SELECT put('other', 1, 200)));
answers($node, 'postgres', q(SELECT lag FROM evbus.subscription_lag WHERE subscription = 'oh'), '0', 'handlers get on');
my $got = 0;
for (1 .. 40)
{
	$got += sql(q(WITH d AS MATERIALIZED (SELECT receipt FROM evbus.receive('o', 10)), a AS (SELECT evbus.ack(array_agg(receipt)) FROM d HAVING count(*) > 0) SELECT count(*) FROM d LEFT JOIN a ON true));
}
is($got, 200, 'and clients do');
sql(q(SELECT evbus.drop_bus('hog', true); SELECT evbus.drop_bus('other', true); DELETE FROM done));

# Few events are wanted, or a filter lets few through between others that overtake them: no gaps are left that a restart would find.
sql(q(SELECT evbus.create_bus('rare');
SELECT evbus.subscribe('rare', 'rare type', types => '{b}', by_priority => true), evbus.subscribe('rare', 'rare filter', filter => '$.i % 100 == 0', by_priority => true), evbus.subscribe('rare', 'rare key', types => '{b}', ordering => 'key'),
	evbus.subscribe('rare', 'rare handler', types => '{b}', handler => 'note(evbus.event[])', by_priority => true, batch_size => 7)));
sql(q(SELECT count(evbus.publish('rare', CASE WHEN i % 200 = 0 THEN 'b' ELSE 'a' END, jsonb_build_object('i', i, 'p', i % 2), key => 'k' || i % 3, priority => i % 2)) FROM generate_series(1, 40000) AS i));
foreach my $name ('rare type', 'rare filter', 'rare key')
{
	my $n = sql(<<"SQL");
CREATE OR REPLACE PROCEDURE drain() LANGUAGE plpgsql AS \$\$
DECLARE r text[] := '{}'; n integer; total integer := 0;
BEGIN
	LOOP
		SELECT count(*), coalesce(array_agg(receipt), '{}') INTO n, r FROM evbus.receive('$name', 13, ack => r);
		COMMIT;
		total := total + n;
		EXIT WHEN n = 0;
	END LOOP;
	PERFORM set_config('evbus_test.n', total::text, false);
END \$\$;
CALL drain();
SELECT current_setting('evbus_test.n');
SQL
	is((split /\n/, $n)[-1], $name eq 'rare filter' ? 400 : 200, "those that are wanted come ($name)");
}
answers($node, 'postgres', q(SELECT string_agg(lag::text, ' ') FROM evbus.subscription_lag WHERE bus = 'rare'), '0 0 0 0', 'all is done');
answers($node, 'postgres', q(SELECT leases_used FROM evbus._status()), '0', 'no entry is left');
$node->restart;
answers($node, 'postgres', q(SELECT string_agg(lag::text, ' ') FROM evbus.subscription_lag WHERE bus = 'rare'), '0 0 0 0', 'and all is done after a restart');
cmp_ok(sql(q(SELECT leases_used FROM evbus._status())), '<', 20, 'with few entries, if any');
is(sql(q(SELECT filtered FROM evbus.subscription_lag WHERE subscription = 'rare filter')), '0', 'nothing was looked at again');
sql(q(SELECT evbus.drop_bus('rare', true); DELETE FROM done));

# The same where there is no priority: what nobody wants any more, between what was done, is done after a restart, too.
sql(q(SELECT evbus.create_bus('gap'); SELECT evbus.subscribe('gap', 'gap none'), evbus.subscribe('gap', 'gap key', ordering => 'key')));
sql(q(SELECT count(evbus.publish('gap', 'a', '{}', key => i::text)) FROM generate_series(1, 3) AS i));
foreach my $name ('gap none', 'gap key')
{
	sql(qq(SELECT evbus.ack(array_agg(receipt) FILTER (WHERE position <> 2)) FROM evbus.receive('$name', 3, lease => '1 second')));
	sql(qq(SELECT evbus.alter_subscription('$name', types => '{b}')));
	answers($node, 'postgres', qq(SELECT count(*) FROM evbus.receive('$name', 3), evbus.subscription_lag AS l WHERE l.subscription = '$name' AND (l.lag > 0 OR l.in_flight > 0)), '0', "an event in hand is not wanted any more ($name)");
	answers($node, 'postgres', qq(SELECT count(*) + (SELECT lag + in_flight FROM evbus.subscription_lag WHERE subscription = '$name') FROM evbus.receive('$name', 3)), '0', "so it is done ($name)");
}
$node->restart;
answers($node, 'postgres', q(SELECT string_agg(lag::text, ' ') FROM evbus.subscription_lag WHERE bus = 'gap'), '0 0', 'and is so after a restart');
sql(q(SELECT evbus.drop_bus('gap', true)));

# Clients' leases run out also where a handler has come since.
sql(q(SELECT evbus.create_bus('turned'), evbus.subscribe('turned', 'turned', by_priority => true); SELECT put('turned', 1, 6)));
is(sql(q(SELECT count(*) FROM evbus.receive('turned', 2, lease => '2 seconds'))), '2', 'a client has two in hand');
sql(q(SELECT evbus.alter_subscription('turned', handler => 'note(evbus.event[])')));
answers($node, 'postgres', q(SELECT lag || ' ' || in_flight FROM evbus.subscription_lag WHERE subscription = 'turned'), '0 0', 'which the handler gets when its leases have run out');
sql(q(SELECT evbus.drop_bus('turned', true); DELETE FROM done));

# Four clients at a time, one of which rolls back every other batch.
my $script = $node->basedir . '/take.sql';
append_to_file($script, <<'SQL');
DO $$
DECLARE receipts text[] := '{}'; before text[]; n integer := 1; round integer := 0;
BEGIN
	WHILE n > 0 LOOP
		round := round + 1;
		before := receipts;
		WITH d AS MATERIALIZED (SELECT * FROM evbus.receive('c', 37, ack => receipts)), x AS (INSERT INTO done (subscription, i, p) SELECT 'c', (payload->>'i')::integer, (payload->>'p')::integer FROM d)
		SELECT count(*), coalesce(array_agg(receipt), '{}') INTO n, receipts FROM d;
		IF n > 0 AND round % 2 = 0 AND pg_backend_pid() % 4 = 0 THEN
			ROLLBACK;
			receipts := before;
		ELSE
			COMMIT;
		END IF;
	END LOOP;
END $$;
SQL
$node->command_ok([ 'pgbench', '-n', '-c', '4', '-j', '1', '-t', '1', '-f', $script, 'postgres' ], 'four clients take all of it');
answers($node, 'postgres', q(SELECT lag || ' ' || in_flight FROM evbus.subscription_lag WHERE subscription = 'c'), '0 0', 'nothing is left');
is(sql(q(SELECT count(DISTINCT i) FROM done WHERE subscription = 'c')), '10000', 'every event came');

# Handlers, which are killed meanwhile.
sql(q(SELECT evbus.resume('h')));
for (1 .. 5)
{
	sql(q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'evbus handler'));
	select undef, undef, undef, 0.2;
}
answers($node, 'postgres', q(SELECT lag || ' ' || retries || ' ' || (SELECT count(*) FROM evbus.dead_letter) FROM evbus.subscription_lag WHERE subscription = 'h'), '0 0 0', 'handlers come to the end');
is(sql(q(SELECT count(*) || ' ' || count(DISTINCT i) FROM done WHERE subscription = 'h')), '10000 10000', 'each event was handled once');

# After a crash priorities are not known, and are looked up again.
sql(q(SELECT put('b', 20001, 20300); SELECT evbus.publish('b', 'e', '{"i": 1, "p": 9}', priority => 9)));
sql(q(UPDATE done SET subscription = 'old'));
is(sql(q(SELECT count(*) FROM evbus.receive('c', 100))), '100', 'a part is in hand');
$node->stop('immediate');
$node->start;
answers($node, 'postgres', q(SELECT lag FROM evbus.subscription_lag WHERE subscription = 'c'), '301', 'when the server crashes');
sub order { return sql(qq(SELECT string_agg(payload->>'p', '' ORDER BY ordinality) FROM evbus.receive('c', $_[0]) WITH ORDINALITY)) }
like(order(20), qr/^2{7}[01]2{7}[01]2{4}$/, 'what comes is by priority');
my $rest = order(301);
like($rest, qr/^(?=.{281}$).{1,280}9/, 'and so is the rest');
sql(q(SELECT evbus.alter_subscription('c', by_priority => false)));
sql(q(SELECT put('b', 30001, 30100)));
answers($node, 'postgres', q(SELECT string_agg(lag::text, ' ' ORDER BY subscription) FROM evbus.subscription_lag WHERE subscription IN ('c', 'h')), '401 0', 'another hundred');
is(sql(q(SELECT string_agg(payload->>'i', ' ' ORDER BY ordinality) FROM evbus.receive('c', 10) WITH ORDINALITY)), join(' ', 30001 .. 30010), 'and without it in order of positions again');

$node->stop;
done_testing();
