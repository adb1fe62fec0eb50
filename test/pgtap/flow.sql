-- What holds publishers up: a full bus, rates of buses and of roles; and delivery_rate of a subscription.
\ir include/helpers.sql
SELECT plan(142);

CREATE FUNCTION publish_many(n integer, bus text DEFAULT 'b') RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FROM evbus.publish_batch(bus, '{a}', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, n) i));
$$;
CREATE FUNCTION flow(bus text DEFAULT 'b') RETURNS text LANGUAGE sql AS $$ SELECT rejected || ' rejected, ' || waits || ' waits' FROM evbus.bus_list l WHERE l.bus = flow.bus $$;

-- settings

SELECT evbus.create_bus('b', max_backlog => 3), evbus.create_bus('free');
SELECT results_eq('SELECT bus, max_backlog, overflow, overflow_timeout, publish_rate, publish_burst, rate_policy FROM evbus.bus_list ORDER BY bus',
	$$VALUES ('b', 3::bigint, 'reject', interval '30 seconds', NULL::integer, NULL::integer, 'reject'), ('free', NULL, 'reject', '30 seconds', NULL, NULL, 'reject')$$, 'by default there is no limit');
SELECT evbus.alter_bus('free', max_backlog => 7, overflow => 'block', overflow_timeout => '1 minute', publish_rate => 10, publish_burst => 5, rate_policy => 'wait');
SELECT results_eq('SELECT max_backlog, overflow, overflow_timeout, publish_rate, publish_burst, rate_policy FROM evbus.bus_list WHERE bus = ''free''',
	$$VALUES (7::bigint, 'block', interval '1 minute', 10, 5, 'wait')$$, 'each can be changed');
SELECT evbus.alter_bus('free', max_payload_bytes => 1000);
SELECT results_eq('SELECT max_backlog, overflow, overflow_timeout, publish_rate, publish_burst, rate_policy FROM evbus.bus_list WHERE bus = ''free''',
	$$VALUES (7::bigint, 'block', interval '1 minute', 10, 5, 'wait')$$, 'and is kept where it is not given');
SELECT evbus.alter_bus('free', max_backlog => 0, publish_rate => 0, publish_burst => 0);
SELECT results_eq('SELECT max_backlog, publish_rate, publish_burst FROM evbus.bus_list WHERE bus = ''free''', 'VALUES (NULL::bigint, NULL::integer, NULL::integer)', '0 takes a limit away');
SELECT throws_ok(q, '22023', NULL, q) FROM unnest(ARRAY[
	$$SELECT evbus.create_bus('x', max_backlog => -1)$$, $$SELECT evbus.alter_bus('b', max_backlog => 1000000000001)$$, $$SELECT evbus.create_bus('x', overflow => 'Block')$$,
	$$SELECT evbus.alter_bus('b', overflow => '')$$, $$SELECT evbus.create_bus('x', overflow_timeout => '-1 second')$$, $$SELECT evbus.alter_bus('b', overflow_timeout => '2 days')$$,
	$$SELECT evbus.create_bus('x', publish_rate => -1)$$, $$SELECT evbus.alter_bus('b', publish_rate => 1000001)$$, $$SELECT evbus.create_bus('x', publish_burst => -1)$$,
	$$SELECT evbus.alter_bus('b', rate_policy => 'block')$$, $$SELECT evbus.limit_publisher('b', 'postgres', -1)$$, $$SELECT evbus.limit_publisher('b', 'postgres', 1, 1000001)$$]) q;
-- A burst is of a rate, and goes with it.
SELECT evbus.alter_bus('free', publish_rate => 10, publish_burst => 5), evbus.limit_publisher('free', 'postgres', 10, 5);
SELECT evbus.alter_bus('free', publish_rate => 0), evbus.limit_publisher('free', 'postgres', 0);
SELECT evbus.alter_bus('free', publish_rate => 20);
SELECT is((SELECT publish_burst FROM evbus.bus_list WHERE bus = 'free'), 20, 'a burst goes with its rate');
SELECT evbus.alter_bus('free', publish_rate => 0);
SELECT throws_ok(q, '22023', burst || ' needs ' || rate, q) FROM (VALUES ('publish_rate', 'publish_burst', $$SELECT evbus.create_bus('x', publish_burst => 1)$$), ('publish_rate', 'publish_burst', $$SELECT evbus.alter_bus('free', publish_burst => 1)$$),
	('rate', 'burst', $$SELECT evbus.limit_publisher('free', 'postgres', 0, 1)$$), ('delivery_rate', 'delivery_burst', $$SELECT evbus.subscribe('free', 'x', delivery_burst => 1)$$)) AS v (rate, burst, q);
SELECT throws_ok(q, '22004', NULL, q) FROM unnest(ARRAY[
	$$SELECT evbus.create_bus('x', max_backlog => NULL)$$, $$SELECT evbus.create_bus('x', overflow => NULL)$$, $$SELECT evbus.create_bus('x', overflow_timeout => NULL)$$,
	$$SELECT evbus.create_bus('x', publish_rate => NULL)$$, $$SELECT evbus.create_bus('x', publish_burst => NULL)$$, $$SELECT evbus.create_bus('x', rate_policy => NULL)$$,
	$$SELECT evbus.limit_publisher(NULL, 'postgres', 1)$$, $$SELECT evbus.limit_publisher('b', NULL, 1)$$, $$SELECT evbus.limit_publisher('b', 'postgres', NULL)$$]) q;

-- a full bus refuses

SELECT publish_many(3) AS n \gset
SELECT is(publish_many(3), 3::bigint, 'where nobody subscribes, nothing is behind');
SELECT evbus.subscribe('b', 'c') AS p \gset
SELECT evbus.publish('b', 'a', '1') AS e \gset
SELECT evbus.publish('b', 'a', '2') AS e \gset
SELECT evbus.publish('b', 'a', '3') AS e \gset
SELECT throws_ok($$SELECT evbus.publish('b', 'a', '4')$$, 'VB014', 'bus "b" is full', 'the event after the last that is allowed is refused, at once');
SELECT throws_ok($$SELECT publish_many(1)$$, 'VB014', 'bus "b" is full', 'in a batch');
SELECT throws_ok($$SELECT evbus.publish_lines('b', 'a', '1')$$, 'VB014', 'bus "b" is full', 'and as lines');
SELECT is(flow(), '3 rejected, 0 waits', 'what is refused is counted');
SELECT is((SELECT lag FROM evbus.subscription_lag), 3::bigint, 'and none of it is there');
SELECT is(consume('c', 1), 'a', 'one is done');
SELECT ok(evbus.publish('b', 'a', '5') > 0, 'then there is room for one');
SELECT throws_ok($$SELECT evbus.publish('b', 'a', '6')$$, 'VB014', 'bus "b" is full', 'and no more');
SELECT is(consume('c', 3), 'a a a', 'all is done');
SELECT throws_ok($$SELECT publish_many(4)$$, 'VB014', 'bus "b" is full', 'a transaction larger than max_backlog is refused on an empty bus');
SELECT is(publish_many(3), 3::bigint, 'one as large is not');
SELECT is(consume('c', 3), 'a a a', 'all is done');

-- what was promised and did not come

BEGIN;
SELECT publish_many(3) AS n \gset
ROLLBACK;
SELECT is(publish_many(3), 3::bigint, 'a rollback gives its room back');
SELECT is(consume('c', 3), 'a a a', 'all is done');
BEGIN;
SELECT publish_many(1) AS n \gset
SAVEPOINT s;
SELECT publish_many(1) AS n \gset
SAVEPOINT t;
SELECT publish_many(1) AS n \gset
RELEASE t;
ROLLBACK TO s;
SELECT is(publish_many(2), 2::bigint, 'so does a rollback to a savepoint');
SELECT throws_ok($$SELECT publish_many(1)$$, 'VB014', 'bus "b" is full', 'but only what was given back');
COMMIT;
SELECT is(consume('c', 3), 'a a a', 'all is done');
BEGIN;
SELECT publish_many(1) AS n \gset
SAVEPOINT s;
SELECT publish_many(2) AS n \gset
RELEASE s;
SELECT throws_ok($$SELECT publish_many(1)$$, 'VB014', 'bus "b" is full', 'what a subtransaction published counts when it is over');
SAVEPOINT u;
ROLLBACK TO u;
SELECT throws_ok($$SELECT publish_many(1)$$, 'VB014', 'bus "b" is full', 'also when another one is rolled back');
ROLLBACK;
DO $$
BEGIN
	FOR i IN 1 .. 2000 LOOP
		BEGIN
			PERFORM evbus.publish('b', 'a', '1');
			RAISE 'no' USING ERRCODE = 'ZZ001';
		EXCEPTION WHEN SQLSTATE 'ZZ001' THEN
		END;
	END LOOP;
END $$;
SELECT is(publish_many(3), 3::bigint, 'a loop of two thousand failed subtransactions leaves nothing');
SELECT is(consume('c', 3), 'a a a', 'all is done');

-- who counts

SELECT evbus.pause('c') AS v \gset
SELECT publish_many(3) AS n \gset
SELECT throws_ok($$SELECT publish_many(1)$$, 'VB014', 'bus "b" is full', 'a paused subscription is behind like any');
SELECT evbus.resume('c') AS v \gset
SELECT evbus.subscribe('b', 'new') AS p \gset
SELECT is(consume('c', 3), 'a a a', 'it is about the one that is furthest behind');
SELECT publish_many(3) AS n \gset
SELECT is(consume('c', 3), 'a a a', 'one has done it');
SELECT throws_ok($$SELECT publish_many(1)$$, 'VB014', 'bus "b" is full', 'the other has not');
SELECT evbus.unsubscribe('new') AS v \gset
SELECT is(publish_many(1), 1::bigint, 'it is gone, and with it the limit');
SELECT is(consume('c', 1), 'a', 'all is done');
SELECT evbus.replay('c', 'beginning') > 0 AS r \gset
SELECT is(publish_many(3), 3::bigint, 'a replay does not count');
SELECT evbus.cancel_replay(replay_id) AS n FROM evbus.replay_list WHERE state = 'running' \gset
SELECT is(consume('c', 3), 'a a a', 'all is done');
SELECT evbus.seek('c', 'beginning') AS p \gset
SELECT throws_ok($$SELECT publish_many(1)$$, 'VB014', 'bus "b" is full', 'who goes back is behind');
SELECT evbus.seek('c', 'now') AS p \gset
SELECT is(publish_many(3), 3::bigint, 'and again, when it goes on');
SELECT evbus.alter_bus('b', max_backlog => 4);
SELECT is(publish_many(1), 1::bigint, 'a higher limit holds at once');
SELECT evbus.alter_bus('b', max_backlog => 2);
SELECT is(consume('c', 1), 'a', 'one is done');
SELECT throws_ok($$SELECT publish_many(1)$$, 'VB014', 'bus "b" is full', 'so does a lower one');
SELECT evbus.alter_bus('b', max_backlog => 0);
SELECT is(publish_many(100), 100::bigint, 'none: there is room');
SELECT evbus.seek('c', 'now') AS p \gset

-- who waits

SELECT evbus.alter_bus('b', max_backlog => 3, overflow => 'block', overflow_timeout => '300 milliseconds');
SELECT publish_many(3) AS n \gset
SELECT flow() AS before \gset
SELECT clock_timestamp() AS t \gset
SELECT throws_ok($$SELECT publish_many(1)$$, 'VB014', 'bus "b" is full', 'who waits is refused in the end');
SELECT ok(clock_timestamp() - :'t'::timestamptz >= interval '300 milliseconds', 'not before overflow_timeout');
SELECT isnt(flow(), :'before', 'and was counted');
SELECT clock_timestamp() AS t \gset
SELECT throws_ok($$SELECT publish_many(4)$$, 'VB014', 'bus "b" is full', 'what can never fit does not wait');
SELECT ok(clock_timestamp() - :'t'::timestamptz < interval '300 milliseconds', 'at all');
BEGIN;
SELECT evbus.ack(ARRAY(SELECT receipt FROM evbus.receive('c', 3))) AS n \gset
SELECT clock_timestamp() AS t \gset
SELECT throws_ok($$SELECT publish_many(1)$$, 'VB014', 'bus "b" is full', 'nor who would wait for himself');
SELECT ok(clock_timestamp() - :'t'::timestamptz < interval '300 milliseconds', 'who is told at once');
COMMIT;

-- scheduled events

SELECT evbus.alter_bus('b', overflow => 'reject');
SELECT publish_many(3) AS n \gset
SELECT ok(evbus.publish('b', 'later', '1', delay => '100 milliseconds') > 0, 'a full bus takes what is not due');
SELECT becomes('SELECT due_at < clock_timestamp() FROM evbus.scheduled_list', 'true', 'when it is due, and there is no room,');
SELECT is(consume('c', 3), 'a a a', 'it waits for some');
SELECT is(consume('c', 1), 'later', 'and is published then');

-- rates

SELECT evbus.create_bus('r', publish_rate => 10, publish_burst => 2);
SELECT is(publish_many(2, 'r'), 2::bigint, 'a burst');
SELECT throws_ok($$SELECT publish_many(1, 'r')$$, 'VB015', 'more is published to bus "r" than it takes', 'and who is faster is refused');
SELECT is(flow('r'), '1 rejected, 0 waits', 'counted');
SELECT evbus.alter_bus('r', rate_policy => 'wait');
SELECT clock_timestamp() AS t \gset
SELECT is((SELECT count(publish_many(1, 'r')) FROM generate_series(1, 6)), 6::bigint, 'or waits');
SELECT cmp_ok(clock_timestamp() - :'t'::timestamptz, '>=', interval '390 milliseconds', 'six at ten a second, of which two may have been saved, take four tenths of a second');
SELECT evbus.alter_bus('r', overflow_timeout => '0');
SELECT is(publish_many(0, 'r'), 0::bigint, 'no events need nothing');
SELECT throws_ok($$SELECT publish_many(1, 'r') FROM generate_series(1, 4)$$, 'VB015', NULL, 'no longer than overflow_timeout');
SELECT evbus.create_bus('large', publish_rate => 1000, publish_burst => 1);
SELECT is(publish_many(50, 'large'), 50::bigint, 'more at once than a burst come with a full one');
SELECT throws_ok($$SELECT publish_many(1, 'large')$$, 'VB015', NULL, 'and are paid for afterwards');

CREATE ROLE flow_p;
GRANT USAGE ON SCHEMA evbus TO flow_p;
GRANT EXECUTE ON FUNCTION evbus.publish(text, text, jsonb, text, jsonb, interval, timestamptz, text, integer, timestamptz), evbus.limit_publisher(text, regrole, integer, integer) TO flow_p;
SELECT evbus.alter_bus('free', rate_policy => 'reject');
SELECT evbus.grant('publish', 'free', 'flow_p');
SELECT evbus.limit_publisher('free', 'flow_p', 10, 1);
SELECT results_eq('SELECT bus, role::text, rate, burst FROM evbus.publish_limit_list', $$VALUES ('free', 'flow_p', 10, 1)$$, 'a rate of a role');
SET ROLE flow_p;
SELECT throws_ok($$SELECT evbus.limit_publisher('free', 'flow_p', 0)$$, '42501', 'permission denied for bus "free"', 'it may not lift it');
SELECT throws_ok($$SELECT evbus.publish('free', 'a', '1') FROM generate_series(1, 2)$$, 'VB015', NULL, 'it is held to it');
RESET ROLE;
SELECT is(publish_many(100, 'free'), 100::bigint, 'others are not');
SELECT evbus.limit_publisher('free', 'flow_p', 1000000);
SELECT results_eq('SELECT bus, role::text, rate, burst FROM evbus.publish_limit_list', $$VALUES ('free', 'flow_p', 1000000, 1000000)$$, 'it can be changed');
SELECT evbus.limit_publisher('free', 'flow_p', 0);
SELECT is_empty('SELECT FROM evbus.publish_limit', 'and taken away');
SELECT evbus.limit_publisher('free', 'flow_p', 5);
SELECT evbus.drop_bus('free');
SELECT is_empty('SELECT FROM evbus.publish_limit', 'it goes with the bus');
DROP OWNED BY flow_p;
DROP ROLE flow_p;

-- deliveries

SELECT throws_ok(q, '22023', NULL, q) FROM unnest(ARRAY[$$SELECT evbus.subscribe('r', 'x', delivery_rate => -1)$$, $$SELECT evbus.alter_subscription('c', delivery_burst => 1000001)$$]) q;
SELECT evbus.create_bus('d');
SELECT evbus.subscribe('d', 'paced', delivery_rate => 20, delivery_burst => 2) AS p \gset
SELECT results_eq($$SELECT delivery_rate, delivery_burst FROM evbus.subscription_list WHERE subscription = 'paced'$$, 'VALUES (20, 2)', 'deliveries have a rate');
SELECT throws_ok($$SELECT evbus.alter_subscription('paced', delivery_rate => 0, delivery_burst => 2)$$, '22023', 'delivery_burst needs delivery_rate', 'a burst without one is refused');
SELECT publish_many(12, 'd') AS n \gset
SELECT clock_timestamp() AS t \gset
SELECT cmp_ok((SELECT count(*) FROM evbus.receive('paced', 100, wait => '1 second')), '<=', 2::bigint, 'no more than a burst comes at once');
SELECT is((SELECT count(*) FROM take('paced', 10)), 10::bigint, 'but all in the end');
SELECT cmp_ok(clock_timestamp() - :'t'::timestamptz, '>=', interval '480 milliseconds', 'twelve at twenty a second');
SELECT evbus.alter_subscription('paced', delivery_rate => 0);
SELECT publish_many(100, 'd') AS n \gset
SELECT is((SELECT count(*) FROM evbus.receive('paced', 100, wait => '1 second')), 100::bigint, 'without a rate they come at once');

SELECT evbus.create_bus('slow');
SELECT evbus.subscribe('slow', 'slow', delivery_rate => 1, delivery_burst => 1) AS p \gset
SELECT publish_many(1, 'slow') AS n \gset
SELECT clock_timestamp() AS t \gset
SELECT is(evbus.nack(ARRAY(SELECT receipt FROM take('slow', 1)), delay => '0'), 1, 'a delivery fails');
SELECT is((SELECT string_agg(attempt::text, '') || ' ' || evbus.ack(array_agg(receipt)) FROM take('slow', 1)), '2 1', 'and is retried');
SELECT cmp_ok(clock_timestamp() - :'t'::timestamptz, '>=', interval '980 milliseconds', 'when the rate allows');
SELECT clock_timestamp() AS t \gset
SELECT evbus.seek('slow', 'now') AS p \gset
SELECT evbus.replay('slow', 'beginning') > 0 AS r \gset
SELECT publish_many(1, 'slow') AS n \gset
SELECT is((SELECT string_agg(replayed::text, ' ' ORDER BY position) FROM take('slow', 2)), 'true false', 'a replay and what is new');
SELECT cmp_ok(clock_timestamp() - :'t'::timestamptz, '>=', interval '1980 milliseconds', 'have one rate together');

-- Durable buses that drop the oldest: where retention may, and where a backlog is said to be too long.
SELECT is(sqlstate_of(format($$SELECT evbus.create_bus('x', %s)$$, a)), s, a) FROM (VALUES ('0A000', $$overflow => 'drop_oldest', max_backlog => 10$$), ('0A000', $$overflow => 'drop_oldest', retention_policy => 'drop_unconsumed'$$),
	('00000', $$overflow => 'drop_oldest', retention_policy => 'drop_unconsumed', max_backlog => 10$$)) AS v (s, a);
SELECT evbus.create_bus('drops', retention_policy => 'drop_unconsumed', max_backlog => 10, overflow => 'drop_oldest'), evbus.create_bus('keeps', max_backlog => 10) \g /dev/null
SELECT is(sqlstate_of(a), s, a) FROM (VALUES ('0A000', $$SELECT evbus.alter_bus('drops', retention_policy => 'keep_unconsumed')$$), ('0A000', $$SELECT evbus.alter_bus('drops', max_backlog => 0)$$), ('00000', $$SELECT evbus.alter_bus('drops', max_backlog => 5)$$),
	('00000', $$SELECT evbus.alter_bus('drops', retention_policy => 'keep_unconsumed', overflow => 'block')$$), ('0A000', $$SELECT evbus.alter_bus('keeps', overflow => 'drop_oldest')$$), ('00000', $$SELECT evbus.alter_bus('keeps', overflow => 'drop_oldest', retention_policy => 'drop_unconsumed')$$)) AS v (s, a);
SELECT evbus.subscribe('drops', 'd none'), evbus.subscribe('drops', 'd key', ordering => 'key'), evbus.subscribe('drops', 'd pri', by_priority => true), evbus.subscribe('drops', 'd held') \g /dev/null
SELECT count(evbus.publish('drops', 'a', to_jsonb(i), key => 'k' || i % 3)) AS n FROM generate_series(1, 5) AS i \gset
CREATE TABLE held AS SELECT * FROM take('d held', 3, '1 hour');
SELECT is((SELECT count(*) FROM take('d key', 2, '1 hour')), 2::bigint, 'two are in hand');
SELECT is(publish_many(100, 'drops'), 100::bigint, 'nobody who publishes is held up');
SELECT becomes($$SELECT string_agg(lag::text, ' ' ORDER BY subscription) FROM evbus.subscription_lag WHERE bus = 'drops'$$, '10 10 10 10', 'each has the last ten left');
SELECT results_eq($$SELECT subscription, dropped FROM evbus.subscription_lag WHERE bus = 'drops' ORDER BY 1$$, $$VALUES ('d held', 95::bigint), ('d key', 95), ('d none', 95), ('d pri', 95)$$, 'what was dropped is counted');
SELECT is((SELECT string_agg(DISTINCT leaf || '|' || cause, ' ') || ' ' || count(*) FROM evbus.retention_audit WHERE bus = 'drops'), '|max_backlog 4', 'and recorded, a row each');
SELECT is(evbus.ack(array_agg(receipt)), 3, 'what is in hand is not dropped') FROM held;
SELECT is((SELECT min(position) || ' ' || count(*) FROM take('d none', 10)), '96 10', 'the newest are there');
SELECT is((SELECT min(position) || ' ' || count(*) FROM take('d pri', 10)), '96 10', 'also by priority');
SELECT is((SELECT count(*) FROM take('d held', 7)), 7::bigint, 'who had three in hand has the last seven');
SELECT is((SELECT count(*) FROM evbus.history WHERE bus = 'drops'), 105::bigint, 'the history has all of them');
SELECT is(publish_many(50, 'drops'), 50::bigint, 'more of them');
SELECT becomes($$SELECT lag::text FROM evbus.subscription_lag WHERE subscription = 'd key'$$, '10', 'are dropped in the same hour');
SELECT is((SELECT count(*) FROM evbus.retention_audit WHERE subscription = 'd key'), 1::bigint, 'in the same row');

-- Bytes, by the average of late.
SELECT is(sqlstate_of(format($$SELECT evbus.create_bus('x', %s)$$, a)), s, a) FROM (VALUES ('22023', 'max_backlog_bytes => 1000'), ('22023', 'max_backlog_bytes => -1'), ('22004', 'max_backlog_bytes => NULL'), ('0A000', $$durability => 'volatile', max_backlog_bytes => 1048576$$),
	('00000', $$max_backlog_bytes => 1048576, overflow => 'drop_oldest', retention_policy => 'drop_unconsumed'$$)) AS v (s, a);
SELECT evbus.create_bus('bytes', max_backlog_bytes => 2000000) \g /dev/null
SELECT is(sqlstate_of($$SELECT evbus.alter_bus('bytes', max_backlog_bytes => 5)$$), '22023', 'altered');
SELECT evbus.alter_bus('bytes', max_backlog_bytes => 1048576);
SELECT is((SELECT max_backlog_bytes FROM evbus.bus_list WHERE bus = 'bytes'), 1048576::bigint, 'the view shows it');
SELECT evbus.subscribe('bytes', 'bytes') AS p \gset
CREATE FUNCTION until_full(bus text, payload jsonb, OUT n integer, OUT detail text) LANGUAGE plpgsql AS $$
BEGIN
	n := 0;
	LOOP
		PERFORM evbus.publish(bus, 'a', payload);
		n := n + 1;
		EXIT WHEN n = 1000;
	END LOOP;
EXCEPTION WHEN SQLSTATE 'VB014' THEN GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
END $$;
SELECT evbus.publish('bytes', 'a', to_jsonb(repeat('x', 100000))) AS id \gset
SELECT is((SELECT evbus.ack(array_agg(receipt)) FROM take('bytes', 1)), 1, 'the size of one is known');
SELECT is((SELECT n || ' ' || detail FROM until_full('bytes', to_jsonb(repeat('x', 100000)))), '10 Open transactions may add 10; max_backlog_bytes is 1048576, which about 10 events of late have.', 'ten events of 100 kB have room, and what is refused is rolled back');
SELECT evbus.publish('bytes', 'a', to_jsonb(repeat('x', 100000))) FROM generate_series(1, 10) \g /dev/null
SELECT is(sqlstate_of($$SELECT evbus.publish('bytes', 'a', '1')$$), 'VB014', 'nor has a small one room then');
SELECT count(evbus.ack(ARRAY[receipt])) AS n FROM take('bytes', 10) \gset
SELECT cmp_ok((SELECT n FROM until_full('bytes', '1')), '>=', 10, 'when they are done, there is');
SELECT evbus.alter_bus('bytes', max_backlog_bytes => 0);
SELECT is((SELECT n FROM until_full('bytes', to_jsonb(repeat('x', 10000)))), 1000, 'without it there is no limit');
SELECT evbus.create_bus('drops bytes', max_backlog_bytes => 1048576, overflow => 'drop_oldest', retention_policy => 'drop_unconsumed'), evbus.subscribe('drops bytes', 'drops bytes') \g /dev/null
SELECT evbus.publish('drops bytes', 'a', to_jsonb(repeat('x', 100000))) FROM generate_series(1, 50) \g /dev/null
SELECT becomes($$SELECT lag || ' ' || dropped FROM evbus.subscription_lag WHERE subscription = 'drops bytes'$$, '10 40', 'the oldest are dropped by bytes, too');
SELECT is((SELECT n FROM until_full('drops bytes', '1')), 1000, 'and nobody is held up');

SELECT * FROM finish();
