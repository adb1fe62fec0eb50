-- Dead letters: what is kept, redrive and discard by id and by filter, edits, reports, export.
\ir include/helpers.sql
SELECT plan(71);

SELECT evbus.create_bus('orders');
SELECT evbus.create_bus('invoices');
SELECT evbus.subscribe('orders', 'a', types => '{#}') AS position \gset
SELECT evbus.subscribe('orders', 'b', types => '{order.*}') AS position \gset
SELECT evbus.subscribe('invoices', 'c') AS position \gset
-- Publishes one event and makes it a dead letter of the subscription.
CREATE PROCEDURE bury(bus text, subscription text, type text, error text DEFAULT 'no use') LANGUAGE plpgsql AS $$
BEGIN
	PERFORM evbus.publish(bus, type, jsonb_build_object('type', type), key => 'key of ' || type, headers => '{"h": 1}');
	COMMIT;
	PERFORM evbus.reject(ARRAY(SELECT t.receipt FROM take(subscription, 1) AS t), error);
	COMMIT;
END $$;

-- what is kept

CALL bury('orders', 'a', 'order.created', 'no such customer');
SELECT results_eq(
	$$SELECT subscription, bus, d.event_id, d.type, d.key, d.payload, d.headers, d.published_at, attempts, reason, sqlstate, message, redrives
	  FROM evbus.dead_letter d$$,
	$$SELECT 'a', bus, event_id, type, 'key of order.created', '{"type": "order.created"}'::jsonb, '{"h": 1}'::jsonb, published_at, 1, 'rejected', 'VB000', 'no such customer', 0
	  FROM evbus.history WHERE type = 'order.created'$$,
	'a dead letter keeps the whole event, and why it was given up');
SELECT ok(first_failed_at = last_failed_at AND last_failed_at <= dead_at AND dead_at BETWEEN now() - interval '1 minute' AND now(), 'and when it failed first and last') FROM evbus.dead_letter;
SELECT is(consume('b', 1), 'order.created', 'the same event of another subscription is not touched');
SELECT results_eq($$SELECT lag, in_flight, retries FROM evbus.subscription_lag WHERE subscription = 'a'$$, $$VALUES (0::bigint, 0::bigint, 0::bigint)$$, 'a dead letter is settled: no lag, nothing in flight');

-- redrive by id

SELECT dead_letter_id AS id, event_id AS event FROM evbus.dead_letter \gset
SELECT is(evbus.redrive(ARRAY[:id]::bigint[]), 1::bigint, 'a dead letter is redriven by its id');
SELECT is_empty('SELECT 1 FROM evbus.dead_letter', 'it is no dead letter any more');
SELECT results_eq($$SELECT event_id, attempts, due_at <= now() FROM evbus.retry_list$$, format('VALUES (%s::bigint, 0, true)', :event), 'but a retry that is due now, its attempts forgotten');
SELECT is(evbus.redrive(ARRAY[:id]::bigint[]), 0::bigint, 'redriving it twice is harmless');
SELECT type || ' ' || attempt || ' ' || payload || ' ' || key || ' ' || headers AS again, receipt, event_id AS again_event FROM take('a', 1) \gset
SELECT is(:'again'::text, 'order.created 1 {"type": "order.created"} key of order.created {"h": 1}', 'it is delivered again whole, as attempt 1');
SELECT is(:again_event, :event, 'as the same event');
SELECT is(evbus.reject(ARRAY[:'receipt'], 'still no such customer'), 1, 'and may fail again');
SELECT results_eq('SELECT redrives, message FROM evbus.dead_letter', $$VALUES (1, 'still no such customer')$$, 'the dead letter tells how often it was redriven');
BEGIN;
SELECT evbus.redrive(ARRAY(SELECT dead_letter_id FROM evbus.dead_letter)) AS n \gset
ROLLBACK;
SELECT is((SELECT count(*) FROM evbus.dead_letter), 1::bigint, 'a rolled-back redrive leaves the dead letter');
SELECT is_empty($$SELECT * FROM evbus.receive('a', wait => '50 milliseconds')$$, 'and delivers nothing');
SELECT is(evbus.redrive(ARRAY(SELECT dead_letter_id FROM evbus.dead_letter) || ARRAY(SELECT dead_letter_id FROM evbus.dead_letter)), 1::bigint, 'an id given twice counts once');
SELECT is(consume('a', 1), 'order.created', 'it is delivered');
SELECT is_empty($$SELECT 1 FROM evbus.dead_letter UNION ALL SELECT 1 FROM evbus.retry_list$$, 'and once acked it has left no trace');
SELECT is(evbus.redrive(ARRAY[1, -1, 0, 9223372036854775807]::bigint[]), 0::bigint, 'ids of nothing count nothing');
SELECT is(evbus.redrive('{}'::bigint[]), 0::bigint, 'no ids count nothing');

-- redrive by filter

CALL bury('orders', 'a', 'order.created', 'e1');
CALL bury('orders', 'a', 'order.changed', 'e2');
CALL bury('orders', 'a', 'stock.low', 'e3');
SELECT evbus.reject(ARRAY(SELECT receipt FROM take('b', 2)), 'e4') AS n \gset
CALL bury('invoices', 'c', 'invoice.sent', 'e5');
SELECT is((SELECT count(*) FROM evbus.dead_letter), 6::bigint, 'six dead letters of three subscriptions on two buses');
CREATE FUNCTION redriven(call text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE n bigint; answer text;
BEGIN
	EXECUTE 'SELECT evbus.redrive(' || call || ')' INTO n;
	SELECT concat_ws(' ', n, string_agg(subscription || ':' || type, ' ' ORDER BY subscription, type)) INTO answer FROM evbus.retry_list;
	RAISE EXCEPTION USING ERRCODE = 'ZZ000', MESSAGE = answer;
EXCEPTION WHEN SQLSTATE 'ZZ000' THEN
	RETURN SQLERRM;
END $$;
SELECT is(redriven(call), answer, 'redrive(' || call || ') moves what matches')
FROM (VALUES
	($$subscription => 'b'$$, '2 b:order.changed b:order.created'),
	($$bus => 'invoices'$$, '1 c:invoice.sent'),
	($$types => '{order.*}'$$, '4 a:order.changed a:order.created b:order.changed b:order.created'),
	($$types => '{stock.#,invoice.sent}'$$, '2 a:stock.low c:invoice.sent'),
	($$types => '{#.low}'$$, '1 a:stock.low'), ($$types => '{*.low,low}'$$, '1 a:stock.low'), ($$types => '{#.stock.#.low.#}'$$, '1 a:stock.low'), ($$types => '{#.#.stock.low}'$$, '1 a:stock.low'),
	($$types => '{stock.#.#}'$$, '1 a:stock.low'), ($$types => '{*.*.*}'$$, '0'), ($$types => '{stock}'$$, '0'), ($$types => '{stock_low}'$$, '0'),
	($$subscription => 'a', types => '{order.created}'$$, '1 a:order.created'),
	($$sqlstate => 'VB000', bus => 'orders'$$, '5 a:order.changed a:order.created a:stock.low b:order.changed b:order.created'),
	($$sqlstate => '22012'$$, '0'),
	($$dead_after => now() - interval '1 hour'$$, '6 a:order.changed a:order.created a:stock.low b:order.changed b:order.created c:invoice.sent'),
	($$dead_after => now() + interval '1 hour'$$, '0'),
	($$dead_before => now() - interval '1 hour'$$, '0'),
	($$dead_before => 'infinity', dead_after => '-infinity'$$, '6 a:order.changed a:order.created a:stock.low b:order.changed b:order.created c:invoice.sent'),
	($$dead_after => (SELECT dead_at FROM evbus.dead_letter WHERE message = 'e2'), dead_before => (SELECT dead_at FROM evbus.dead_letter WHERE message = 'e5')$$,
		'4 a:order.changed a:stock.low b:order.changed b:order.created'),
	($$subscription => 'a', max_events => 2$$, '2 a:order.changed a:order.created'),
	($$max_events => 9223372036854775807, bus => 'invoices'$$, '1 c:invoice.sent'),
	($$$$, '6 a:order.changed a:order.created a:stock.low b:order.changed b:order.created c:invoice.sent')) AS v (call, answer);
SELECT is((SELECT count(*) FROM evbus.dead_letter), 6::bigint, 'undone, all six are there again');
SELECT throws_ok($$SELECT evbus.redrive(subscription => 'nosuch')$$, 'VB004', NULL, 'a filter by a subscription that does not exist is refused');
SELECT throws_ok($$SELECT evbus.redrive(bus => 'nosuch')$$, 'VB001', NULL, 'a filter by a bus that does not exist is refused');
SELECT throws_ok($$SELECT evbus.redrive(types => '{a..b}')$$, '22023', NULL, 'a malformed pattern is refused');
SELECT throws_ok($$SELECT evbus.redrive(sqlstate => 'nonsense')$$, '22023', NULL, 'a malformed SQLSTATE is refused');

-- the summary

CALL bury('orders', 'a', 'order.created', 'e6');
SELECT results_eq(
	$$SELECT bus, subscription, type, sqlstate, reason, dead_letters, last_message FROM evbus.dead_letter_summary ORDER BY 1, 2, 3$$,
	$$VALUES ('invoices', 'c', 'invoice.sent', 'VB000', 'rejected', 1::bigint, 'e5'), ('orders', 'a', 'order.changed', 'VB000', 'rejected', 1, 'e2'),
		('orders', 'a', 'order.created', 'VB000', 'rejected', 2, 'e6'), ('orders', 'a', 'stock.low', 'VB000', 'rejected', 1, 'e3'),
		('orders', 'b', 'order.changed', 'VB000', 'rejected', 1, 'e4'), ('orders', 'b', 'order.created', 'VB000', 'rejected', 1, 'e4')$$,
	'the summary counts by bus, subscription, type and error, with the last message');
SELECT results_eq($$SELECT oldest, newest FROM evbus.dead_letter_summary WHERE subscription = 'a' AND type = 'order.created'$$,
	$$SELECT min(dead_at), max(dead_at) FROM evbus.dead_letter WHERE subscription = 'a' AND type = 'order.created'$$, 'and tells the oldest and the newest');

-- discard

SELECT is(evbus.discard(ARRAY(SELECT dead_letter_id FROM evbus.dead_letter WHERE message = 'e6'), 'test'), 1::bigint, 'a dead letter is discarded by its id');
SELECT is((SELECT count(*) FROM evbus.dead_letter), 6::bigint, 'and only that one');
SELECT is(evbus.discard('{-1,0}'::bigint[], 'test'), 0::bigint, 'ids of nothing discard nothing');
SELECT is(evbus.discard(subscription => 'a', types => '{order.#}', max_events => 1, reason => 'test'), 1::bigint, 'discard takes no more than max_events');
SELECT is(evbus.discard(subscription => 'a', types => '{order.#}', reason => 'test'), 1::bigint, 'discard goes by filters');
SELECT results_eq($$SELECT subscription, type FROM evbus.dead_letter ORDER BY 1, 2$$,
	$$VALUES ('a', 'stock.low'), ('b', 'order.changed'), ('b', 'order.created'), ('c', 'invoice.sent')$$, 'and leaves what does not match');
BEGIN;
SELECT is(evbus.discard(reason => 'test'), 4::bigint, 'without a filter discard takes everything');
SAVEPOINT s;
SELECT is_empty($$SELECT 1 FROM evbus.dead_letter$$, 'and nothing is left');
ROLLBACK TO s;
COMMIT;
CALL bury('orders', 'a', 'order.created', 'e7');
SELECT is_empty($$SELECT * FROM evbus.receive('a', wait => '50 milliseconds')$$, 'what is discarded is not delivered again');
SELECT throws_ok($$SELECT evbus.discard(subscription => 'nosuch', reason => 'test')$$, 'VB004', NULL, 'discard by a subscription that there never was is refused');
SELECT throws_ok($$SELECT evbus.discard(bus => 'nosuch', reason => 'test')$$, 'VB001', NULL, 'and by such a bus');

-- the subscription goes, its dead letters stay

SELECT evbus.seek('b', 'now') AS position \gset
CALL bury('orders', 'b', 'order.orphan', 'e8');
SELECT evbus.unsubscribe('b');
SELECT results_eq($$SELECT subscription, type FROM evbus.dead_letter WHERE message = 'e8'$$, $$VALUES ('b', 'order.orphan')$$, 'dead letters outlive their subscription');
SELECT throws_ok($$SELECT evbus.redrive(ARRAY(SELECT dead_letter_id FROM evbus.dead_letter WHERE message = 'e8'))$$, 'VB004', NULL, 'redriving one by id is refused, because nobody would receive it');
SELECT is(evbus.redrive(types => '{order.#}'), 1::bigint, 'redriving by filter passes it over');
SELECT results_eq($$SELECT message FROM evbus.dead_letter$$, $$VALUES ('e8')$$, 'and keeps it');
SELECT evbus.subscribe('orders', 'b') AS position \gset
SELECT is(evbus.redrive(types => '{order.#}'), 0::bigint, 'a new subscription of the same name does not inherit it');
SELECT is(evbus.discard(bus => 'orders', subscription => 'b', types => '{order.orphan}', reason => 'test'), 1::bigint, 'it can be discarded');

-- many at once

SELECT evbus.subscribe('invoices', 'many', types => '{many}') AS position \gset
SELECT count(*) AS n FROM evbus.publish_batch('invoices', array_fill('many'::text, ARRAY[2000]), array_fill('1'::jsonb, ARRAY[2000])) \gset
SELECT is((SELECT evbus.reject(array_agg(receipt)) FROM take('many', 2000)), 2000, 'two thousand deliveries are rejected in one call');
SELECT is(evbus.redrive(subscription => 'many'), 2000::bigint, 'and redriven in one call');
SELECT is((SELECT evbus.ack(array_agg(receipt)) FROM take('many', 2000)), 2000, 'and delivered and acked');
SELECT is_empty($$SELECT 1 FROM evbus.retry_list WHERE subscription = 'many'$$, 'no retry is left of them');

SELECT * FROM finish();
