-- Subscriptions: make, list, alter, pause, seek, remove; each with its own progress.
\ir include/helpers.sql
SELECT plan(127);

SELECT evbus.create_bus('orders');
SELECT evbus.create_bus('other');

-- make and list

SELECT lives_ok($$SELECT evbus.subscribe('orders', 'plain')$$, 'a subscription is made with bus and name alone');
SELECT results_eq(
	$$SELECT bus, owner::text, types, handler, channel, batch_size, concurrency, max_attempts, backoff_initial, backoff_max,
			 lease, timeout, paused, paused_reason FROM evbus.subscription_list WHERE subscription = 'plain'$$,
	$$SELECT 'orders', current_user::text COLLATE "default", '{#}'::text[], NULL::text, evbus.channel('plain'), 100, 1, 5, '1 second'::interval, '1 hour'::interval,
			 '30 seconds'::interval, '30 seconds'::interval, false, NULL::text$$,
	'the list shows the defaults');
SELECT lives_ok($$SELECT evbus.subscribe('orders', 'own', types => '{order.*,invoice.#}', batch_size => 7, max_attempts => 3,
	backoff_initial => '2 seconds', backoff_max => '2 minutes', lease => '5 seconds', timeout => '6 seconds', notify => false)$$,
	'a subscription is made with settings of its own');
SELECT results_eq(
	$$SELECT types, channel, batch_size, max_attempts, backoff_initial, backoff_max, lease, timeout
	  FROM evbus.subscription_list WHERE subscription = 'own'$$,
	$$VALUES ('{order.*,invoice.#}'::text[], NULL::text, 7, 3, '2 seconds'::interval, '2 minutes'::interval, '5 seconds'::interval, '6 seconds'::interval)$$,
	'the list shows the settings given, and no channel without notify');
SELECT results_eq($$SELECT subscriptions FROM evbus.bus_list WHERE bus = 'orders'$$, $$VALUES (2::bigint)$$, 'the bus counts its subscriptions');
SELECT throws_ok($$SELECT evbus.subscribe('orders', 'plain')$$, 'VB005', NULL, 'a name is taken once');
SELECT throws_ok($$SELECT evbus.subscribe('other', 'plain')$$, 'VB005', NULL, 'also when the other one is on another bus');
SELECT throws_ok($$SELECT evbus.subscribe('nosuch', 'x')$$, 'VB001', NULL, 'an unknown bus is refused');

SELECT lives_ok(format('SELECT evbus.subscribe(''other'', %L, start_from => ''beginning'')', name), 'a legal name: ' || about)
FROM (VALUES
	('Plain', 'another case is another subscription'), ('two words', 'space'), ('a"b''c\d', 'quotes and backslash'), ('注文🚚', 'unicode'),
	(repeat('x', 63), '63 bytes'), (repeat('é', 31) || 'x', '63 bytes of unicode')) AS v (name, about);
SELECT throws_ok(format('SELECT evbus.subscribe(''other'', %L)', name), '22023', NULL, 'a name is refused: ' || about)
FROM (VALUES
	('', 'empty'), (repeat('x', 64), '64 bytes'), (repeat('é', 32), '64 bytes of unicode in 32 characters'), (repeat('x', 1000000), 'a million bytes'),
	(E'a\nb', 'line feed'), (E'a\x01b', 'control character')) AS v (name, about);
SELECT evbus.publish('other', 'to.all', '1') AS id \gset
SELECT is(consume(subscription, 1), 'to.all', 'a subscription of that name receives: ' || left(quote_literal(subscription), 20))
FROM evbus.subscription_list WHERE bus = 'other' ORDER BY subscription;

-- one stored copy, progress of its own for each

SELECT evbus.publish('orders', 'order.created', '1') AS id \gset
SELECT is((SELECT count(*) FROM evbus.event_log WHERE event_id = :id), 1::bigint, 'an event is stored once, however many subscriptions there are');
SELECT is(consume('plain', 1), 'order.created', 'one subscription receives the event');
SELECT is(consume('own', 1), 'order.created', 'the other one receives it too');
SELECT is_empty($$SELECT * FROM evbus.receive('plain')$$, 'an acked event is not received again');

-- where it starts

SELECT evbus.create_bus('starts');
SELECT evbus.subscribe('starts', 'witness') AS position \gset
SELECT evbus.publish('starts', 'e.1', '1') AS id \gset
SELECT evbus.publish('starts', 'e.2', '1') AS id \gset
SELECT evbus.publish('starts', 'e.3', '1') AS id \gset
SELECT is(consume('witness', 3), 'e.1 e.2 e.3', 'three events are placed');
SELECT next_position AS next FROM evbus.bus_list WHERE bus = 'starts' \gset
SELECT is(evbus.subscribe('starts', 'from_now'), :next::bigint, 'now is the position the next event gets');
SELECT is(evbus.subscribe('starts', 'from_beginning', start_from => 'beginning'), :next::bigint - 3, 'the beginning is the position of the first event');
SELECT is(evbus.subscribe('starts', 'from_position', start_from => (:next::bigint - 1)::text), :next::bigint - 1, 'a position is taken as given');
SELECT published_at AS second_time FROM evbus.history WHERE type = 'e.2' AND bus = 'starts' \gset
SELECT is(evbus.subscribe('starts', 'from_time', start_from => :'second_time'), :next::bigint - 2, 'a time becomes the position of the first event not older');
SELECT is(evbus.subscribe('starts', 'from_long_ago', start_from => '2001-01-01 00:00:00+00'), :next::bigint - 3, 'a time before the first event is the beginning');
SELECT is(evbus.subscribe('starts', 'from_tomorrow', start_from => (now() + interval '1 day')::text), :next::bigint, 'a time in the future is now');
SELECT is(evbus.subscribe('starts', 'from_infinity', start_from => 'infinity'), :next::bigint, 'infinity is now');
SELECT is(evbus.subscribe('starts', 'from_minus_infinity', start_from => '-infinity'), :next::bigint - 3, 'minus infinity is the beginning');
SELECT evbus.publish('starts', 'e.4', '1') AS id \gset
SELECT is(consume('from_infinity', 1), 'e.4', 'from infinity: only what came later');
SELECT is(consume('from_now', 1), 'e.4', 'from now: only what came later');
SELECT is(consume('from_beginning', 4), 'e.1 e.2 e.3 e.4', 'from the beginning: everything');
SELECT is(consume('from_position', 2), 'e.3 e.4', 'from a position: it and what came later');
SELECT is(consume('from_time', 3), 'e.2 e.3 e.4', 'from a time: what is not older');
SELECT throws_ok(format('SELECT evbus.subscribe(''starts'', ''bad'', start_from => %L)', start_from), sqlstate, NULL, 'start_from is refused: ' || about)
FROM (VALUES
	('', '22007', 'empty'), ('yesterdayish', '22007', 'no time'), ('-1', '22007', 'negative'), ('1.5', '22007', 'not whole'), ('0', '22023', 'zero: positions begin at 1'),
	('1000', '22023', 'a position that nothing has yet'), ('99999999999999999999', '22023', 'more than a bigint')) AS v (start_from, sqlstate, about);

-- rollback

BEGIN;
SELECT evbus.subscribe('orders', 'ghost') AS position \gset
ROLLBACK;
SELECT throws_ok($$SELECT evbus.receive('ghost')$$, 'VB004', NULL, 'a subscription of a rolled-back transaction does not exist');
SELECT lives_ok($$SELECT evbus.subscribe('orders', 'ghost')$$, 'its name is free again');
BEGIN;
SELECT evbus.unsubscribe('ghost');
ROLLBACK;
SELECT evbus.publish('orders', 'still.here', '1') AS id \gset
SELECT is(consume('ghost', 1), 'still.here', 'a rolled-back unsubscribe leaves the subscription at work');
SELECT evbus.seek('plain', 'now') AS position \gset
SELECT evbus.seek('own', 'now') AS position \gset

-- alter

SELECT lives_ok($$SELECT evbus.alter_subscription('own', types => '{payment.#}')$$, 'the types can be changed');
SELECT lives_ok($$SELECT evbus.alter_subscription('own', batch_size => 8, max_attempts => 4, backoff_initial => '3 seconds',
	backoff_max => '3 minutes', lease => '7 seconds', timeout => '8 seconds', notify => true)$$, 'the other settings can be changed');
SELECT results_eq(
	$$SELECT types, channel, batch_size, max_attempts, backoff_initial, backoff_max, lease, timeout
	  FROM evbus.subscription_list WHERE subscription = 'own'$$,
	$$SELECT '{payment.#}'::text[], evbus.channel('own'), 8, 4, '3 seconds'::interval, '3 minutes'::interval, '7 seconds'::interval, '8 seconds'::interval$$,
	'every change shows');
SELECT lives_ok($$SELECT evbus.alter_subscription('own')$$, 'changing nothing is allowed');
SELECT is((SELECT types FROM evbus.subscription_list WHERE subscription = 'own'), '{payment.#}', 'NULL keeps a setting');
SELECT evbus.publish('orders', 'order.created', '1') AS id \gset
SELECT evbus.publish('orders', 'payment.made.twice', '1') AS id \gset
SELECT is(consume('own', 1), 'payment.made.twice', 'the new types rule what is received');
SELECT throws_ok($$SELECT evbus.alter_subscription('own', backoff_max => '1 second')$$, '22023', NULL, 'backoff_max does not go below the backoff_initial that is set');
SELECT throws_ok($$SELECT evbus.alter_subscription('own', backoff_initial => '1 hour')$$, '22023', NULL, 'backoff_initial does not go above the backoff_max that is set');
SELECT throws_ok($$SELECT evbus.alter_subscription('nosuch', batch_size => 1)$$, 'VB004', NULL, 'an unknown subscription cannot be altered');
BEGIN;
SELECT evbus.alter_subscription('own', types => '{order.#}');
ROLLBACK;
SELECT evbus.publish('orders', 'order.created', '1') AS id \gset
SELECT evbus.publish('orders', 'payment.made', '1') AS id \gset
SELECT is(consume('own', 1), 'payment.made', 'a rolled-back change of types does not apply');

-- pause and resume

SELECT lives_ok($$SELECT evbus.pause('own', reason => 'stock-taking')$$, 'a subscription can be paused');
SELECT results_eq($$SELECT l.paused, l.paused_reason, g.paused, g.paused_reason FROM evbus.subscription_list l JOIN evbus.subscription_lag g USING (subscription)
	WHERE subscription = 'own'$$, $$VALUES (true, 'stock-taking', true, 'stock-taking')$$, 'list and lag show the pause and its reason');
SELECT lives_ok($$SELECT evbus.pause('own')$$, 'pausing twice is harmless');
SELECT evbus.publish('orders', 'payment.waiting', '1') AS id \gset
SELECT is(consume('ghost', 4), 'order.created payment.made.twice order.created payment.made', 'another subscription of the bus goes on');
SELECT is(consume('ghost', 1), 'payment.waiting', 'also with what came during the pause');
SELECT is_empty($$SELECT * FROM evbus.receive('own', wait => '100 milliseconds')$$, 'a paused subscription delivers nothing');
SELECT lives_ok($$SELECT evbus.resume('own')$$, 'a paused subscription can be resumed');
SELECT results_eq($$SELECT paused, paused_reason FROM evbus.subscription_list WHERE subscription = 'own'$$, $$VALUES (false, NULL::text)$$, 'the pause and its reason are gone');
SELECT is(consume('own', 1), 'payment.waiting', 'and what came during the pause is delivered');
SELECT lives_ok($$SELECT evbus.resume('own')$$, 'resuming twice is harmless');
SELECT throws_ok($$SELECT evbus.pause('nosuch')$$, 'VB004', NULL, 'an unknown subscription cannot be paused');
SELECT throws_ok($$SELECT evbus.resume('nosuch')$$, 'VB004', NULL, 'an unknown subscription cannot be resumed');
BEGIN;
SELECT evbus.pause('own');
ROLLBACK;
SELECT evbus.publish('orders', 'payment.again', '1') AS id \gset
SELECT is(consume('own', 1), 'payment.again', 'a rolled-back pause does not apply');

-- seek

SELECT is(evbus.seek('from_now', 'beginning'), :next::bigint - 3, 'seek returns the position it went to');
SELECT is(consume('from_now', 4), 'e.1 e.2 e.3 e.4', 'after a seek to the beginning everything comes again');
SELECT is(evbus.seek('from_now', (:next::bigint - 1)::text), :next::bigint - 1, 'seek goes to a position');
SELECT is(consume('from_now', 2), 'e.3 e.4', 'and goes on from there');
SELECT is(evbus.seek('from_now', :'second_time'), :next::bigint - 2, 'seek goes to a time');
SELECT receipt AS held FROM take('from_now', 1) \gset
SELECT is(evbus.seek('from_now', 'beginning'), :next::bigint - 3, 'seek while a receipt is held');
SET client_min_messages = error;
SELECT is(evbus.ack(ARRAY[:'held']), 0, 'a receipt from before a seek is stale');
RESET client_min_messages;
SELECT is(consume('from_now', 4), 'e.1 e.2 e.3 e.4', 'so its event is delivered again');
SELECT evbus.publish('starts', 'e.5', '1') AS id \gset
SELECT becomes($$SELECT lag::text FROM evbus.subscription_lag WHERE subscription = 'from_now'$$, '1', 'one event waits');
SELECT is(evbus.seek('from_now', 'now'), :next::bigint + 2, 'seek to now');
SELECT is((SELECT lag FROM evbus.subscription_lag WHERE subscription = 'from_now'), 0::bigint, 'skips what was waiting');
SELECT evbus.publish('starts', 'e.6', '1') AS id \gset
SELECT is(consume('from_now', 1), 'e.6', 'and what comes later is delivered');
BEGIN;
SELECT evbus.seek('from_now', 'beginning') AS position \gset
ROLLBACK;
SELECT is_empty($$SELECT * FROM evbus.receive('from_now', wait => '100 milliseconds')$$, 'a rolled-back seek moves nothing');
SELECT is(consume('from_beginning', 2), 'e.5 e.6', 'a seek of one subscription moves no other');
SELECT evbus.publish('starts', 'e.7', '1') AS id \gset
SELECT receipt AS held FROM take('from_now', 1) \gset
BEGIN;
SELECT evbus.seek('from_now', 'beginning') AS position \gset
SELECT count(*) AS n FROM evbus.subscription_lag \gset
SELECT throws_ok($$SELECT * FROM evbus.receive('from_now')$$, '55000', NULL, 'a transaction cannot receive from a subscription that it has moved itself');
ROLLBACK;
SELECT is(evbus.ack(ARRAY[:'held']), 1, 'a rolled-back seek takes nobody''s delivery away, even if its transaction looked at the new position');
SELECT is_empty($$SELECT * FROM evbus.receive('from_now', wait => '100 milliseconds')$$, 'and delivers nothing again');
SELECT throws_ok($$SELECT evbus.seek('nosuch', 'now')$$, 'VB004', NULL, 'an unknown subscription cannot seek');
SELECT throws_ok(format('SELECT evbus.seek(''from_now'', %L)', start_from), sqlstate, NULL, 'seek is refused: ' || quote_literal(start_from))
FROM (VALUES ('', '22007'), ('soon', '22007'), ('-5', '22007'), ('0', '22023'), ('99999999999999999999', '22023')) AS v (start_from, sqlstate);

-- unsubscribe

SELECT evbus.publish('orders', 'payment.last', '1') AS id \gset
SELECT receipt AS held FROM take('own', 1) \gset
SELECT lives_ok($$SELECT evbus.unsubscribe('own')$$, 'a subscription can be removed while events wait');
SELECT throws_ok($$SELECT evbus.receive('own')$$, 'VB004', NULL, 'it does not deliver any more');
SET client_min_messages = error;
SELECT is(evbus.ack(ARRAY[:'held']), 0, 'its receipts are stale');
RESET client_min_messages;
SELECT throws_ok($$SELECT evbus.unsubscribe('own')$$, 'VB004', NULL, 'it cannot be removed twice');
SELECT evbus.subscribe('orders', 'own') AS position \gset
SELECT is_empty($$SELECT * FROM evbus.receive('own', wait => '100 milliseconds')$$, 'made again under the same name it starts anew');
SET client_min_messages = error;
SELECT is(evbus.ack(ARRAY[:'held']), 0, 'and receipts of the old one stay stale');
RESET client_min_messages;

SELECT evbus.publish('orders', 'failing', '1') AS id \gset
SELECT is((SELECT evbus.nack(array_agg(receipt), delay => '1 hour') FROM take('own', 1)), 1, 'a retry is waiting');
SELECT evbus.unsubscribe('own');
SELECT is_empty('SELECT 1 FROM evbus.retry', 'unsubscribe deletes the retries of the subscription');

-- the channel

SELECT is(evbus.channel('plain'), 'evbus_plain', 'the channel is named after the subscription');
SELECT ok(octet_length(evbus.channel(repeat('x', 63))) <= 63, 'the channel of a long name is a legal channel');
SELECT lives_ok(format('LISTEN %I; UNLISTEN %I', evbus.channel(subscription), evbus.channel(subscription)), 'one can LISTEN to the channel of ' || left(quote_literal(subscription), 20))
FROM evbus.subscription_list WHERE channel IS NOT NULL AND bus = 'other';
SELECT is((SELECT count(DISTINCT evbus.channel(subscription)) FROM evbus.subscription_list), (SELECT count(*) FROM evbus.subscription_list), 'no two subscriptions share a channel');

-- read-only transactions

BEGIN READ ONLY;
SELECT throws_ok(call, '25006', NULL, 'refused in a read-only transaction: ' || call)
FROM (VALUES
	($$SELECT evbus.subscribe('orders', 'readonly')$$), ($$SELECT evbus.alter_subscription('plain', batch_size => 1)$$), ($$SELECT evbus.unsubscribe('plain')$$),
	($$SELECT evbus.pause('plain')$$), ($$SELECT evbus.resume('plain')$$), ($$SELECT evbus.seek('plain', 'now')$$)) AS v (call);
COMMIT;

-- the registry is bounded

DO $$
BEGIN
	FOR i IN 1 .. current_setting('evbus.max_subscriptions')::integer - (SELECT count(*) FROM evbus.subscription_list) LOOP
		PERFORM evbus.subscribe('orders', 'filler' || i);
	END LOOP;
END $$;
SELECT is((SELECT count(*) FROM evbus.subscription_list), current_setting('evbus.max_subscriptions')::bigint, 'evbus.max_subscriptions subscriptions fit');
SELECT throws_ok($$SELECT evbus.subscribe('orders', 'toomany')$$, 'VB007', NULL, 'one more subscription is refused');
SELECT evbus.unsubscribe('filler1');
SELECT lives_ok($$SELECT evbus.subscribe('orders', 'fits')$$, 'an unsubscribe frees a place');
SELECT evbus.publish('orders', 'to.all', '1') AS id \gset
SELECT is((SELECT count(*) FROM evbus.subscription_list s WHERE s.bus = 'orders' AND s.subscription ~ '^(filler|fits)' AND consume(s.subscription, 1) = 'to.all'),
	(SELECT count(*) FROM evbus.subscription_list s WHERE s.bus = 'orders' AND s.subscription ~ '^(filler|fits)'), 'one event reaches every subscription of a full registry');

SELECT * FROM finish();
