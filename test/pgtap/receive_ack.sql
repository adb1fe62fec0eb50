-- receive(..., ack => receipts): what was done is acked and what comes next is received, in one call.
\ir include/helpers.sql
SELECT plan(42);

SELECT evbus.create_bus('orders');
SELECT evbus.subscribe('orders', 'reader', backoff_initial => '1 hour', backoff_max => '2 hours') AS position \gset
SELECT evbus.subscribe('orders', 'other', types => '{other.#}') AS position \gset
-- Publishes types and waits until all of them can be received.
CREATE PROCEDURE fresh(VARIADIC types text[]) LANGUAGE plpgsql AS $$
DECLARE
	before bigint := (SELECT lag FROM evbus.subscription_lag WHERE subscription = 'reader');
BEGIN
	PERFORM evbus.publish('orders', t, '1') FROM unnest(types) AS t;
	COMMIT;
	PERFORM poll($q$SELECT lag::text FROM evbus.subscription_lag WHERE subscription = 'reader'$q$, (before + cardinality(types))::text);
END $$;
CREATE VIEW held AS SELECT lag, in_flight FROM evbus.subscription_lag WHERE subscription = 'reader';

-- one call

CALL fresh('a.1', 'a.2', 'a.3', 'a.4');
SELECT array_agg(receipt) AS r FROM evbus.receive('reader', 2) \gset
SELECT array_agg(receipt) AS r2, string_agg(type, ' ') AS types FROM evbus.receive('reader', 10, ack => :'r') \gset
SELECT is(:'types'::text, 'a.3 a.4', 'what was received before is acked, what comes next is received');
SELECT results_eq('SELECT * FROM held', $$VALUES (2::bigint, 2::bigint)$$, 'only the latter is in flight');
SELECT is_empty(format($$SELECT * FROM evbus.receive('reader', ack => %L)$$, :'r2'), 'with nothing to come the ack counts all the same');
SELECT results_eq('SELECT * FROM held', $$VALUES (0::bigint, 0::bigint)$$, 'nothing is left');
SELECT is_empty($$SELECT * FROM evbus.receive('reader', ack => NULL)$$, 'NULL acks nothing');
SELECT is_empty($$SELECT * FROM evbus.receive('reader', ack => '{}')$$, 'nor does an empty array');

-- a loop: one call for each event

CREATE FUNCTION in_a_loop(subscription text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	done text[] := '{}';
	d record;
	types text;
	calls integer := 0;
BEGIN
	LOOP
		SELECT * INTO d FROM evbus.receive(in_a_loop.subscription, ack => done);
		calls := calls + 1;
		EXIT WHEN d.receipt IS NULL OR calls > 100;
		types := concat_ws(' ', types, d.type);
		done := ARRAY[d.receipt];
	END LOOP;
	RETURN types || ', ' || calls || ' calls';
END $$;
CALL fresh('b.1', 'b.2', 'b.3');
SELECT is(in_a_loop('reader'), 'b.1 b.2 b.3, 4 calls', 'a loop in one transaction receives each event once');
SELECT results_eq('SELECT * FROM held', $$VALUES (0::bigint, 0::bigint)$$, 'and has acked them at its end');

-- rolled back, both are undone

CALL fresh('c.1', 'c.2');
SELECT receipt AS c1 FROM evbus.receive('reader') \gset
BEGIN;
SELECT receipt AS c2, type FROM evbus.receive('reader', ack => ARRAY[:'c1']) \gset
SELECT is(:'type'::text, 'c.2', 'a call that will be rolled back receives the next event');
ROLLBACK;
SELECT results_eq('SELECT * FROM held', $$VALUES (2::bigint, 1::bigint)$$, 'then the first is held as before, the other one waits');
SELECT receipt AS again, type || ' ' || attempt AS delivery FROM evbus.receive('reader', ack => ARRAY[:'c1']) \gset
SELECT is(:'delivery'::text, 'c.2 1', 'both can be done again, and no attempt was counted');
SELECT is(evbus.ack(ARRAY[:'again']), 1, 'the new receipt is good');
SELECT results_eq('SELECT * FROM held', $$VALUES (0::bigint, 0::bigint)$$, 'and nothing is left');

CALL fresh('c.3', 'c.4');
BEGIN;
SELECT receipt AS c3 FROM evbus.receive('reader') \gset
SAVEPOINT s;
SELECT receipt AS c4 FROM evbus.receive('reader', ack => ARRAY[:'c3']) \gset
ROLLBACK TO s;
SELECT receipt AS c4, type FROM evbus.receive('reader', ack => ARRAY[:'c3']) \gset
SELECT is(:'type'::text, 'c.4', 'after a rollback to a savepoint the same call does the same');
SELECT is(evbus.ack(ARRAY[:'c4']), 1, 'its receipt is good');
COMMIT;
SELECT results_eq('SELECT * FROM held', $$VALUES (0::bigint, 0::bigint)$$, 'and both are acked');

-- stale receipts

CALL fresh('d.1', 'd.2', 'd.3');
SELECT receipt AS d1 FROM evbus.receive('reader') \gset
SET client_min_messages = error;
SELECT receipt AS d2, type FROM evbus.receive('reader', ack => ARRAY[:'c1', :'d1', :'d1']) \gset
SELECT is(:'type'::text, 'd.2', 'a stale receipt does not keep the next event back');
SELECT results_eq('SELECT * FROM held', $$VALUES (2::bigint, 1::bigint)$$, 'and the good one beside it is acked');
SET client_min_messages = warning;
CREATE FUNCTION stale_in_one_transaction() RETURNS text LANGUAGE plpgsql AS $$
DECLARE r text;
BEGIN
	SELECT receipt INTO r FROM evbus.receive('reader');
	PERFORM evbus.release(ARRAY[r]);
	RETURN (SELECT type FROM evbus.receive('other', ack => ARRAY[r]));
END $$;
SELECT lives_ok('SELECT stale_in_one_transaction()', 'what this transaction gave back it may name again');
CREATE FUNCTION moved_in_one_transaction() RETURNS text LANGUAGE plpgsql AS $$
DECLARE r text;
BEGIN
	SELECT receipt INTO r FROM evbus.receive('reader');
	PERFORM evbus.seek('reader', 'now');
	RETURN (SELECT type FROM evbus.receive('other', ack => ARRAY[r]));
END $$;
SELECT throws_ok('SELECT moved_in_one_transaction()', 'VB008', NULL, 'a receipt that went stale in the transaction of its receive is an error');
SELECT throws_ok($$SELECT * FROM evbus.receive('reader', ack => '{nonsense}')$$, '22023', NULL, 'what is no receipt is an error');
SELECT throws_ok(format($$SELECT * FROM evbus.receive('reader', ack => ARRAY[%L, NULL])$$, :'d2'), '22004', NULL, 'so is NULL among the receipts');
SELECT throws_ok(format($$SELECT * FROM evbus.receive('reader', ack => ARRAY[[%L], [%1$L]])$$, :'d2'), '22023', NULL, 'and an array of two dimensions');
SELECT throws_ok(format($$SELECT * FROM evbus.receive('nosuch', ack => ARRAY[%L])$$, :'d2'), 'VB004', NULL, 'an unknown subscription cannot receive');
SELECT results_eq('SELECT * FROM held', $$VALUES (2::bigint, 1::bigint)$$, 'none of these calls acked or received anything');
SELECT evbus.seek('reader', 'now') AS position \gset

-- receipts of another subscription

SELECT evbus.publish('orders', 'other.' || i, '1') AS id FROM generate_series(1, 2) AS i \g /dev/null
SELECT receipt AS mine FROM take('reader', 1) \gset
SELECT receipt AS others FROM take('other', 1) \gset
SELECT receipt AS next, type FROM evbus.receive('reader', ack => ARRAY[:'others', :'mine']) \gset
SELECT is(:'type'::text, 'other.2', 'receipts may be of several subscriptions');
SELECT results_eq($$SELECT subscription, lag, in_flight FROM evbus.subscription_lag ORDER BY subscription$$, $$VALUES ('other', 1::bigint, 0::bigint), ('reader', 1, 1)$$, 'each is acked where it belongs');
SELECT is(evbus.ack(ARRAY[:'next']), 1, 'the last one');
SELECT is(consume('other', 1), 'other.2', 'and the other subscription''s');

-- retries

CALL fresh('e.1', 'e.2');
SELECT evbus.nack(array_agg(receipt), delay => '0') AS n FROM evbus.receive('reader') \gset
SELECT receipt AS retried, type || ' ' || attempt AS delivery FROM evbus.receive('reader') \gset
SELECT is(:'delivery'::text, 'e.1 2', 'a retry');
SELECT receipt AS next, type FROM evbus.receive('reader', ack => ARRAY[:'retried']) \gset
SELECT is(:'type'::text, 'e.2', 'is acked like any other');
SELECT is((SELECT count(*) FROM evbus.retry_list), 0::bigint, 'and is not tried again');
SELECT is(evbus.ack(ARRAY[:'next']), 1, 'the event after it is held');

-- waiting: an ack must not wait for the next event

CALL fresh('f.1');
SELECT receipt AS f1 FROM evbus.receive('reader') \gset
SELECT clock_timestamp() AS start \gset
SELECT is_empty(format($$SELECT * FROM evbus.receive('reader', wait => '30 seconds', ack => ARRAY[%L])$$, :'f1'), 'with receipts and nothing to come the call does not wait');
SELECT ok(clock_timestamp() - :'start' < interval '15 seconds', 'it comes back at once');
SELECT results_eq('SELECT * FROM held', $$VALUES (0::bigint, 0::bigint)$$, 'so that the ack is done');
SELECT clock_timestamp() AS start \gset
SELECT is_empty($$SELECT * FROM evbus.receive('reader', wait => '300 milliseconds', ack => '{}')$$, 'without receipts it waits as told');
SELECT ok(clock_timestamp() - :'start' >= interval '300 milliseconds', 'for as long as told');

-- pauses, and transactions that may not write

CALL fresh('g.1', 'g.2');
SELECT receipt AS g1 FROM evbus.receive('reader') \gset
BEGIN READ ONLY;
SELECT is_empty($$SELECT * FROM evbus.receive('other', ack => '{}')$$, 'a read-only transaction may receive and ack nothing');
SELECT throws_ok(format($$SELECT * FROM evbus.receive('reader', ack => ARRAY[%L])$$, :'g1'), '25006', NULL, 'but not ack');
COMMIT;
SELECT evbus.pause('reader');
SELECT is_empty(format($$SELECT * FROM evbus.receive('reader', ack => ARRAY[%L])$$, :'g1'), 'a paused subscription delivers nothing');
SELECT results_eq('SELECT * FROM held', $$VALUES (1::bigint, 0::bigint)$$, 'but what it has delivered is acked');

SELECT * FROM finish();
