-- Statistics count what is committed, once: not what is rolled back, nor what a savepoint takes back, and all kinds of publishing alike.
\ir include/helpers.sql
SELECT plan(34);

SELECT evbus.create_bus('b "1"'), evbus.create_bus('quiet');
SELECT evbus.subscribe('b "1"', 'c "1"') AS a, evbus.subscribe('b "1"', 'dead', max_attempts => 1) AS b \gset
CREATE FUNCTION counted() RETURNS text LANGUAGE sql AS $$SELECT concat_ws(' ', published, published_bytes, transactions) FROM evbus.stat_bus WHERE bus = 'b "1"'$$;
CREATE FUNCTION did(name text) RETURNS text LANGUAGE sql AS $$SELECT concat_ws(' ', delivered, done, failed, dead_lettered, ran_out) FROM evbus.stat_subscription WHERE subscription = name$$;
CREATE FUNCTION types() RETURNS text LANGUAGE sql AS $$SELECT string_agg(concat_ws(' ', type, published, failed, dead_lettered), ', ' ORDER BY type) FROM evbus.stat_type WHERE bus = 'b "1"'$$;

SELECT is(counted(), '0 0 0', 'nothing is counted yet');
SELECT ok(stats_reset < now() AND published_per_second = 0, 'since the server started') FROM evbus.stat_bus WHERE bus = 'b "1"';
SELECT is(types(), NULL, 'no type is tracked');

-- publishing

SELECT evbus.publish('b "1"', 'a', '"x"') \g /dev/null
SELECT is(counted(), '1 9 1', 'one event, with the bytes of its jsonb');
SELECT count(*) FROM evbus.publish_batch('b "1"', '{a,b}', '{1,2}') \g /dev/null
SELECT events FROM evbus.publish_lines('b "1"', 'c', E'1\n2\n3') \g /dev/null
SELECT is(types(), 'a 2 0 0, b 1 0 0, c 3 0 0', 'batches and lines count each event for its type');
SELECT is((SELECT transactions FROM evbus.stat_bus WHERE bus = 'b "1"'), 3::bigint, 'and one transaction each');
SELECT evbus.publish('b "1"', 'a', '1', delay => '1 hour') \g /dev/null
SELECT is((SELECT published FROM evbus.stat_bus WHERE bus = 'b "1"'), 6::bigint, 'a delayed event does not count before it is published');
SELECT evbus.publish('b "1"', 'a', '1', dedup_key => 'k') \g /dev/null
SELECT evbus.publish('b "1"', 'a', '1', dedup_key => 'k') \g /dev/null
SELECT is((SELECT published FROM evbus.stat_bus WHERE bus = 'b "1"'), 7::bigint, 'what was published before under its dedup_key does not either');

SELECT evbus.stat_reset() \g /dev/null
SELECT is(counted() || ' ' || (SELECT stats_reset > now() - interval '1 minute' FROM evbus.stat_bus WHERE bus = 'b "1"'), '0 0 0 true', 'a reset says when it was');
BEGIN;
SELECT evbus.publish('b "1"', 'a', '1') \g /dev/null
SELECT counted() AS inside \gset
ROLLBACK;
SELECT is(:'inside' || counted(), '0 0 00 0 0', 'what is rolled back never counts');
BEGIN;
SELECT evbus.publish('b "1"', 'a', '1') \g /dev/null
SAVEPOINT one;
SELECT evbus.publish('b "1"', 'a', '1'), evbus.publish('b "1"', 'gone', '1') \g /dev/null
SAVEPOINT two;
SELECT evbus.publish('b "1"', 'gone', '1') \g /dev/null
RELEASE two;
ROLLBACK TO one;
SELECT evbus.publish('b "1"', 'kept', '1') \g /dev/null
SAVEPOINT three;
SELECT evbus.publish('b "1"', 'a', '1'), evbus.publish('b "1"', 'kept', '1') \g /dev/null
RELEASE three;
RELEASE one;
COMMIT;
SELECT is(types(), 'a 2 0 0, kept 2 0 0', 'of savepoints those that are not rolled back do');
SELECT is((SELECT published || ' ' || transactions FROM evbus.stat_bus WHERE bus = 'b "1"'), '4 1', 'in one transaction');
DO $$ BEGIN FOR i IN 1..5000 LOOP BEGIN PERFORM evbus.publish('b "1"', 'loop', '1'); IF i % 2 = 0 THEN RAISE division_by_zero; END IF; EXCEPTION WHEN division_by_zero THEN END; END LOOP; END $$;
SELECT is((SELECT published FROM evbus.stat_type WHERE type = 'loop'), 2500::bigint, 'nor does a loop with an exception block count too much');
SELECT count(evbus.publish('b "1"', 'many.' || i, '1')) FROM generate_series(1, 3000) AS i \g /dev/null
SELECT is((SELECT sum(published) FROM evbus.stat_type WHERE bus = 'b "1"'), 5504::numeric, 'of very many types all are counted');
SELECT cmp_ok((SELECT count(*) FROM evbus.stat_type WHERE bus = 'b "1"'), '<=', current_setting('evbus.max_tracked_types')::bigint + 1, 'if not each by itself');

-- receiving

SELECT evbus.drop_bus('b "1"', true) \g /dev/null
SELECT evbus.create_bus('b "1"') \g /dev/null
SELECT evbus.subscribe('b "1"', 'c "1"'), evbus.subscribe('b "1"', 'dead', max_attempts => 1) \g /dev/null
SELECT count(evbus.publish('b "1"', 'a', to_jsonb(i))) FROM generate_series(1, 20) AS i \g /dev/null
BEGIN;
SELECT count(*) FROM take('c "1"', 5) \g /dev/null
ROLLBACK;
SELECT is(did('c "1"'), '0 0 0 0 0', 'a receive that is rolled back counts nothing');
SELECT array_agg(receipt) AS receipts FROM take('c "1"', 5) \gset
SELECT is(did('c "1"'), '5 0 0 0 0', 'one that is not counts its deliveries');
BEGIN;
SELECT evbus.ack(:'receipts') \g /dev/null
ROLLBACK;
SELECT is(did('c "1"'), '5 0 0 0 0', 'an ack counts');
SELECT evbus.ack(:'receipts') \g /dev/null
SELECT is(did('c "1"'), '5 5 0 0 0', 'when it is committed');
SELECT evbus.release(array_agg(receipt)) FROM take('c "1"', 2) \g /dev/null
SELECT is(did('c "1"'), '7 5 0 0 0', 'to give back is nothing done');
SELECT evbus.nack(array_agg(receipt), '0') FROM take('c "1"', 3) \g /dev/null
SELECT is(did('c "1"'), '10 5 3 0 0', 'a nack is a failure');
SELECT evbus.reject(array_agg(receipt)) FROM take('dead', 2) \g /dev/null
SELECT evbus.nack(array_agg(receipt)) FROM take('dead', 1) \g /dev/null
SELECT is(did('dead'), '3 0 3 3 0', 'of which some give dead letters');
SELECT is(types(), 'a 20 6 3', 'the type has them as well');
SELECT is((SELECT failed || ' ' || dead_lettered FROM evbus.stat_bus WHERE bus = 'b "1"'), '6 3', 'and so has the bus');
SELECT ok(latency_p50 > '0' AND latency_p50 <= latency_p99 AND handler_p50 IS NULL AND latency_p99 < '1 minute', 'there is a latency, and of a client no time of a handler') FROM evbus.stat_subscription WHERE subscription = 'c "1"';
SELECT is((SELECT string_agg("window"::text, ' ' ORDER BY "window") FROM evbus.stat_subscription_window WHERE subscription = 'c "1"'), '00:01:00 00:05:00 01:00:00', 'three windows');
-- levels

SELECT evbus.stat_reset() \g /dev/null
DO $$ DECLARE max integer := current_setting('evbus.max_tracked_types'); BEGIN
	PERFORM evbus.publish('quiet', 't' || i, '1') FROM generate_series(1, max) AS i;
	FOR i IN 1..50 LOOP BEGIN PERFORM evbus.publish('quiet', 't1', '1'); EXCEPTION WHEN division_by_zero THEN END; END LOOP;
END $$;
SELECT is((SELECT published FROM evbus.stat_type WHERE type = 't1'), 51::bigint, 'a type that the transaction has counts on in subtransactions, however many others there are');
CREATE FUNCTION nest(depth integer) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM evbus.publish('quiet', 'deep', '1'); IF depth > 1 THEN PERFORM nest(depth - 1); END IF; EXCEPTION WHEN division_by_zero THEN END $$;
SELECT evbus.stat_reset() \g /dev/null
SELECT nest(300) \g /dev/null
SELECT is((SELECT string_agg(concat_ws(' ', type, published), ',') FROM evbus.stat_type WHERE bus = 'quiet'), 'deep 300', 'and in nested ones');

-- what is not what it seems

SELECT is((SELECT count(*) FROM evbus.stat_bus_window WHERE bus = 'b "1"' AND published_per_second = 0 AND seconds >= 1), 3::bigint, 'a bus without events has its windows, and is counted as long as all');
SELECT ok((SELECT published_per_second <= 300 AND published_per_second_1h <= 300 FROM evbus.stat_bus WHERE bus = 'quiet'), 'what has just begun is no rate of thousands');
SELECT is((SELECT count(DISTINCT extract(epoch FROM minute)::numeric % 60) FROM evbus.stat_minutes), 1::bigint, 'minutes are the same for all');
SELECT ok(bool_and(time_to_drain IS NULL), 'nobody knows at once how long a lag will last') FROM evbus.stat_subscription WHERE lag > 0;
SELECT count(*) AS n FROM take('c "1"', 3, lease => '1 second') \gset
SELECT becomes($$SELECT failure_share::text FROM evbus.stat_subscription WHERE subscription = 'c "1"'$$, '1', 'a lease that runs out is a failure');
SELECT throws_ok($$SELECT set_config('evbus.max_tracked_types', '5', false)$$, '55P02', NULL, 'how many types are tracked is decided at start');

SELECT * FROM finish();
