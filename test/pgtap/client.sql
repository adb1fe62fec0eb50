-- Clients: receive, ack, nack, reject, extend, release; receipts and leases.
\ir include/helpers.sql
SELECT plan(100);

SELECT evbus.create_bus('orders');
SELECT evbus.subscribe('orders', 'reader', backoff_initial => '1 hour', backoff_max => '2 hours') AS position \gset
CREATE TEMP TABLE got (LIKE evbus.delivery);
ALTER TABLE got ADD n integer GENERATED ALWAYS AS IDENTITY;
-- Publishes types and takes the deliveries into table got.
CREATE PROCEDURE fresh(VARIADIC types text[]) LANGUAGE plpgsql AS $$
BEGIN
	DELETE FROM got;
	PERFORM evbus.publish('orders', t, '1') FROM unnest(types) AS t;
	COMMIT;
	INSERT INTO got SELECT * FROM take('reader', cardinality(types));
END $$;

-- receive

SELECT is_empty($$SELECT * FROM evbus.receive('reader')$$, 'without events receive returns no rows');
CALL fresh('a.1', 'a.2', 'a.3');
SELECT results_eq('SELECT type, attempt FROM got ORDER BY n', $$VALUES ('a.1', 1), ('a.2', 1), ('a.3', 1)$$, 'deliveries come in order, as attempt 1');
SELECT is((SELECT count(DISTINCT receipt) FROM got), 3::bigint, 'each delivery has a receipt of its own');
SELECT is((SELECT max(position) - min(position) FROM got), 2::bigint, 'positions have no gap');
SELECT ok(bool_and(lease_until BETWEEN clock_timestamp() + interval '5 seconds' AND clock_timestamp() + interval '31 seconds'), 'the lease is that of the subscription') FROM got;
SELECT is_empty($$SELECT * FROM evbus.receive('reader', 10)$$, 'what is leased is not received again');
SELECT is((SELECT in_flight FROM evbus.subscription_lag WHERE subscription = 'reader'), 3::bigint, 'the lag view counts what is leased');
SELECT is(evbus.ack(ARRAY[(SELECT receipt FROM got WHERE type = 'a.2')]), 1, 'one of several deliveries can be acked');
SELECT is(evbus.ack(ARRAY(SELECT receipt FROM got WHERE type <> 'a.2')), 2, 'then the others');
SELECT results_eq($$SELECT lag, in_flight FROM evbus.subscription_lag WHERE subscription = 'reader'$$, $$VALUES (0::bigint, 0::bigint)$$, 'then nothing is left');

SELECT evbus.publish('orders', 'b.' || i, '1') AS id FROM generate_series(1, 5) AS i \g /dev/null
SELECT becomes($$SELECT lag::text FROM evbus.subscription_lag WHERE subscription = 'reader'$$, '5', 'five events wait');
SELECT is((SELECT count(*) FROM evbus.receive('reader')), 1::bigint, 'receive takes one event unless told otherwise');
SELECT is((SELECT count(*) FROM evbus.receive('reader', 3)), 3::bigint, 'receive takes no more than max_events');
SELECT is((SELECT count(*) FROM evbus.receive('reader', 100)), 1::bigint, 'and fewer when fewer are waiting');
SELECT evbus.seek('reader', 'now') AS position \gset

-- waiting

SELECT clock_timestamp() AS start \gset
SELECT is_empty($$SELECT * FROM evbus.receive('reader', wait => '200 milliseconds')$$, 'receive with wait returns no rows when nothing comes');
SELECT ok(clock_timestamp() - :'start' BETWEEN interval '200 milliseconds' AND interval '5 seconds', 'after the time it was told to wait');
SELECT clock_timestamp() AS start \gset
SELECT is_empty($$SELECT * FROM evbus.receive('reader', wait => '0')$$, 'a wait of zero does not wait');
CALL evbus.wait('reader', '200 milliseconds');
SELECT ok(clock_timestamp() - :'start' BETWEEN interval '200 milliseconds' AND interval '5 seconds', 'evbus.wait returns after its timeout when nothing comes');
SELECT evbus.publish('orders', 'waited.for', '1') AS id \gset
SELECT clock_timestamp() AS start \gset
CALL evbus.wait('reader', '1 minute');
SELECT ok(clock_timestamp() - :'start' < interval '20 seconds', 'evbus.wait returns early when there is something to receive');
SELECT is((SELECT type FROM evbus.receive('reader')), 'waited.for', 'and then receive has it');
SELECT lives_ok($$CALL evbus.wait('reader', '10 milliseconds')$$, 'evbus.wait can be called inside a transaction');
SELECT evbus.seek('reader', 'now') AS position \gset

-- rollback of receive

BEGIN;
SELECT evbus.publish('orders', 'c.1', '1') AS id \gset
COMMIT;
BEGIN;
SELECT receipt AS old, attempt AS first_attempt FROM take('reader', 1) \gset
ROLLBACK;
SELECT receipt AS new, type, attempt FROM take('reader', 1, patience => '5 seconds') \gset
SELECT is(:'type' || ' ' || :attempt, 'c.1 1', 'a rolled-back receive gives its deliveries back at once and counts no attempt');
SET client_min_messages = error;
SELECT is(evbus.ack(ARRAY[:'old']), 0, 'the receipt of a rolled-back receive is stale');
SET client_min_messages = warning;
SELECT is(evbus.ack(ARRAY[:'new']), 1, 'the one that came after it is good');

SELECT evbus.publish('orders', 'd.' || i, '1') AS id FROM generate_series(1, 2) AS i \g /dev/null
BEGIN;
SELECT receipt AS kept FROM take('reader', 1) \gset
SAVEPOINT s;
SELECT receipt AS undone FROM take('reader', 1) \gset
ROLLBACK TO s;
SELECT receipt AS again, type FROM take('reader', 1, patience => '5 seconds') \gset
COMMIT;
SELECT is(:'type'::text, 'd.2', 'a savepoint gives back what was received after it, and only that');
SELECT is(evbus.ack(ARRAY[:'kept', :'again']), 2, 'what was not undone is still held');

-- ack

CALL fresh('e.1', 'e.2');
BEGIN;
SELECT is(evbus.ack(ARRAY(SELECT receipt FROM got)), 2, 'ack counts the receipts that are good');
ROLLBACK;
SELECT is((SELECT in_flight FROM evbus.subscription_lag WHERE subscription = 'reader'), 2::bigint, 'a rolled-back ack did not happen: the deliveries are still held');
BEGIN;
SAVEPOINT s;
SELECT evbus.ack(ARRAY(SELECT receipt FROM got WHERE type = 'e.1')) AS n \gset
ROLLBACK TO s;
SELECT evbus.ack(ARRAY(SELECT receipt FROM got WHERE type = 'e.2')) AS n \gset
COMMIT;
SELECT is((SELECT in_flight FROM evbus.subscription_lag WHERE subscription = 'reader'), 1::bigint, 'a savepoint takes back the ack made after it, and only that');
BEGIN;
SELECT is(evbus.ack(ARRAY(SELECT receipt FROM got WHERE type = 'e.1')), 1, 'the ack taken back can be made again');
SET LOCAL client_min_messages = error;
SELECT is(evbus.ack(ARRAY(SELECT receipt FROM got WHERE type = 'e.1')), 0, 'a second ack in the same transaction does not count');
COMMIT;
SET client_min_messages = error;
SELECT is(evbus.ack(ARRAY(SELECT receipt FROM got WHERE type = 'e.1')), 0, 'nor does one after it');
SET client_min_messages = warning;
CALL fresh('e.3');
SELECT is(evbus.ack(ARRAY(SELECT receipt FROM got) || ARRAY(SELECT receipt FROM got)), 1, 'a receipt given twice counts once');

-- a transaction that receives, works and acks

CREATE TABLE work (type text);
SELECT evbus.publish('orders', 'f.1', '1') AS id \gset
BEGIN;
INSERT INTO work SELECT consume('reader', 1);
ROLLBACK;
SELECT is((SELECT count(*) FROM work), 0::bigint, 'receive, work and ack in one transaction: its rollback undoes the work');
BEGIN;
INSERT INTO work SELECT consume('reader', 1);
COMMIT;
SELECT results_eq('SELECT type FROM work', $$VALUES ('f.1')$$, 'and the delivery comes again');

-- ack in another transaction level than the receive
SELECT evbus.publish('orders', 'f.2', '1') AS id \gset
DO $$
DECLARE r text;
BEGIN
	SELECT receipt INTO r FROM take('reader', 1);
	BEGIN
		PERFORM evbus.ack(ARRAY[r]);
		RAISE division_by_zero;
	EXCEPTION WHEN division_by_zero THEN
		PERFORM evbus.ack(ARRAY[r]);
	END;
END $$;
SELECT results_eq($$SELECT lag, in_flight FROM evbus.subscription_lag WHERE subscription = 'reader'$$, $$VALUES (0::bigint, 0::bigint)$$, 'an ack undone by an EXCEPTION block can be made again after it');

-- receipts that are no good

CREATE FUNCTION stale_in_one_transaction() RETURNS integer LANGUAGE plpgsql AS $$
DECLARE r text;
BEGIN
	SELECT receipt INTO r FROM take('reader', 1);
	PERFORM evbus.seek('reader', 'now');
	RETURN evbus.ack(ARRAY[r]);
END $$;
SELECT evbus.publish('orders', 'g.1', '1') AS id \gset
SELECT throws_ok('SELECT stale_in_one_transaction()', 'VB008', NULL, 'a receipt that went stale in the transaction of its receive is an error, not a warning');
SELECT evbus.seek('reader', 'now') AS position \gset

SET client_min_messages = error;
SELECT is(evbus.ack(ARRAY(SELECT receipt FROM got)), 0, 'a receipt already acked changes nothing');
CALL fresh('h.1');
SELECT receipt AS good FROM got \gset
-- another receipt of the same length and letters: the first 40 characters moved round by one
SELECT substr(:'good', 2, 39) || substr(:'good', 1, 1) || substr(:'good', 41) AS forged \gset
SELECT is(evbus.ack(ARRAY[:'forged']), 0, 'a forged receipt changes nothing');
SELECT is(evbus.nack(ARRAY[:'forged']), 0, 'neither with nack');
SELECT is(evbus.reject(ARRAY[:'forged']), 0, 'nor with reject');
SELECT is(evbus.extend(ARRAY[:'forged'], '1 minute'), 0, 'nor with extend');
SELECT is(evbus.release(ARRAY[:'forged']), 0, 'nor with release');
-- each character of it changed in turn, as one would who looks for receipts of others
CREATE TEMP TABLE changed AS
SELECT overlay(:'good' PLACING letter FROM at FOR 1) AS receipt
FROM generate_series(1, 42) AS at, unnest(string_to_array('A B Q Z a z 0 9 - _', ' ')) AS letter WHERE substr(:'good', at, 1) <> letter;
SELECT is((SELECT sum(evbus.extend(ARRAY[receipt], '1 hour') + evbus.ack(ARRAY[receipt]) + evbus.nack(ARRAY[receipt]) + evbus.reject(ARRAY[receipt]) + evbus.release(ARRAY[receipt])) FROM changed), 0::bigint,
	'a receipt with any one of its characters changed changes nothing');
SELECT is((SELECT in_flight FROM evbus.subscription_lag WHERE subscription = 'reader'), 1::bigint, 'the delivery is still held');
SELECT is(evbus.ack(ARRAY[:'forged', :'good']), 1, 'a good receipt counts also beside one that is none');
SET client_min_messages = warning;
SELECT throws_ok(format('SELECT evbus.%s', call), '22023', NULL, 'malformed receipts are an error: ' || call)
FROM (VALUES ($$ack('{nonsense}')$$), ($$ack('{""}')$$), ($$nack('{nonsense}')$$), ($$reject('{nonsense}')$$), ($$extend('{nonsense}', '1 minute')$$), ($$release('{nonsense}')$$),
	($$ack(ARRAY['x' || repeat('0', 1000000)])$$), ($$ack(ARRAY['注文'])$$)) AS v (call);

-- nack

CALL fresh('i.1');
SELECT is(evbus.nack(ARRAY(SELECT receipt FROM got), delay => '0', error => 'not now'), 1, 'a delivery can be reported as failed');
SELECT type || ' ' || attempt AS again, receipt FROM take('reader', 1) \gset
SELECT is(:'again'::text, 'i.1 2', 'without delay it comes again at once, as attempt 2');
SELECT is(evbus.nack(ARRAY[:'receipt']), 1, 'and can fail again');
SELECT results_eq($$SELECT attempts, sqlstate, due_at > now() + interval '1 minute' FROM evbus.retry_list WHERE type = 'i.1'$$, $$VALUES (2, 'VB000', true)$$,
	'without a delay given it waits for the backoff');
SELECT is_empty($$SELECT * FROM evbus.receive('reader', wait => '50 milliseconds')$$, 'and is not received before');
SELECT results_eq($$SELECT lag, retries FROM evbus.subscription_lag WHERE subscription = 'reader'$$, $$VALUES (0::bigint, 1::bigint)$$, 'a retry is no lag, it is counted as a retry');
CALL fresh('i.2');
SELECT results_eq('SELECT type FROM got', $$VALUES ('i.2')$$, 'a delivery that waits for its retry holds up no other');
BEGIN;
SELECT is(evbus.nack(ARRAY(SELECT receipt FROM got)), 1, 'a nack');
ROLLBACK;
SELECT is((SELECT count(*) FROM evbus.retry_list WHERE type = 'i.2'), 0::bigint, 'rolled back leaves no retry');
SELECT is(evbus.ack(ARRAY(SELECT receipt FROM got)), 1, 'and the delivery is still held');
CALL fresh('i.3', 'i.4');
SELECT is(evbus.nack(ARRAY(SELECT receipt FROM got), delay => '0'), 2, 'two failed deliveries');
CALL fresh('i.5');
SELECT is((SELECT type FROM got), 'i.3', 'retries that are due come before new events');
SELECT is(evbus.ack(ARRAY(SELECT receipt FROM got)), 1, 'a retry is acked as any delivery is');
SELECT is(consume('reader', 2), 'i.4 i.5', 'after the retries the new events follow');

-- reject

CALL fresh('j.1', 'j.2');
SELECT is(evbus.reject(ARRAY(SELECT receipt FROM got WHERE type = 'j.1'), error => 'no such customer'), 1, 'a delivery can be rejected');
SELECT results_eq($$SELECT type, attempts, reason, sqlstate, message FROM evbus.dead_letter$$, $$VALUES ('j.1', 1, 'rejected', 'VB000', 'no such customer')$$, 'and is a dead letter at once');
BEGIN;
SELECT is(evbus.reject(ARRAY(SELECT receipt FROM got WHERE type = 'j.2')), 1, 'a rejection');
ROLLBACK;
SELECT is((SELECT count(*) FROM evbus.dead_letter), 1::bigint, 'rolled back leaves no dead letter');
SELECT is(evbus.reject(ARRAY(SELECT receipt FROM got WHERE type = 'j.2')), 1, 'and can be made again');
SELECT isnt((SELECT message FROM evbus.dead_letter WHERE type = 'j.2'), '', 'without an error text a default one is stored');

-- release

CALL fresh('k.1', 'k.2');
SELECT is(evbus.release(ARRAY(SELECT receipt FROM got WHERE type = 'k.1')), 1, 'a delivery can be given back');
SELECT type || ' ' || attempt AS again, receipt AS k1 FROM take('reader', 1) \gset
SELECT is(:'again'::text, 'k.1 1', 'and comes again, without an attempt counted');
SET client_min_messages = error;
SELECT is(evbus.ack(ARRAY(SELECT receipt FROM got WHERE type = 'k.1')), 0, 'the receipt of before is stale');
SET client_min_messages = warning;
BEGIN;
SELECT is(evbus.release(ARRAY[:'k1']), 1, 'a release');
ROLLBACK;
SELECT is(evbus.ack(ARRAY[:'k1']), 1, 'rolled back leaves the delivery held');
SELECT is(evbus.ack(ARRAY(SELECT receipt FROM got WHERE type = 'k.2')), 1, 'others are not touched by it');

-- leases end

SELECT evbus.subscribe('orders', 'short', types => '{short}', lease => '1 second', max_attempts => 3, backoff_initial => '0') AS position \gset
SELECT evbus.publish('orders', 'short', '1') AS id \gset
SELECT receipt AS first, attempt AS attempt1 FROM take('short', 1) \gset
SELECT receipt AS second, attempt AS attempt2 FROM take('short', 1) \gset
SELECT is(:'attempt1' || ' ' || :'attempt2', '1 2', 'a delivery whose lease ran out is delivered again, as attempt 2');
SET client_min_messages = error;
SELECT is(evbus.ack(ARRAY[:'first']), 0, 'the receipt of the lease that ran out is stale');
SET client_min_messages = warning;
SELECT is(evbus.extend(ARRAY[:'second'], '1 minute'), 1, 'a lease can be extended');
SELECT is_empty($$SELECT * FROM evbus.receive('short', wait => '1500 milliseconds')$$, 'and then lasts longer than the subscription says');
SELECT is(evbus.extend(ARRAY[:'second'], '1 second'), 1, 'a lease can be shortened');
SELECT receipt AS third, attempt AS attempt3 FROM take('short', 1) \gset
SELECT is(:'attempt3'::text, '3', 'and then ends sooner');
SELECT is_empty($$SELECT * FROM evbus.receive('short', wait => '3 seconds')$$, 'after max_attempts leases that ran out the delivery does not come again');
SELECT results_eq($$SELECT attempts, reason FROM evbus.dead_letter WHERE subscription = 'short'$$, $$VALUES (3, 'max_attempts')$$, 'it is a dead letter');
SELECT evbus.publish('orders', 'short', '2') AS id \gset
SELECT clock_timestamp() AS now, lease_until - clock_timestamp() AS lease, receipt FROM evbus.receive('short', lease => '1 hour', wait => '10 seconds') \gset
SELECT ok(:'lease'::interval BETWEEN interval '59 minutes' AND interval '61 minutes', 'receive can ask for a lease of its own');
SELECT evbus.ack(ARRAY[:'receipt']) AS n \gset

-- an ack pins its lease: it cannot run out between ack and commit
SELECT evbus.publish('orders', 'short', '3') AS id \gset
SELECT receipt FROM take('short', 1) \gset
BEGIN;
SELECT evbus.ack(ARRAY[:'receipt']) AS n \gset
SELECT becomes(format('SELECT (clock_timestamp() > %L::timestamptz)::text', clock_timestamp() + interval '1300 milliseconds'), 'true', 'while the acking transaction outlives the lease');
SELECT is_empty($$SELECT * FROM evbus.receive('short')$$, 'the delivery is not given to another');
COMMIT;
SELECT results_eq($$SELECT lag, in_flight FROM evbus.subscription_lag WHERE subscription = 'short'$$, $$VALUES (0::bigint, 0::bigint)$$, 'and its ack counts');

-- receive in other isolation levels

SELECT evbus.seek('reader', 'now') AS position \gset
SELECT evbus.publish('orders', 'before.snapshot', '1') AS id \gset
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) AS n FROM work \gset
SELECT is(consume('reader', 1), 'before.snapshot', 'REPEATABLE READ receives and acks');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT is_empty($$SELECT * FROM evbus.receive('reader')$$, 'SERIALIZABLE receives too');
COMMIT;
BEGIN READ ONLY;
SELECT throws_ok($$SELECT evbus.ack('{}')$$, '25006', NULL, 'a read-only transaction cannot ack');
COMMIT;

-- through a cursor, joined, limited
SELECT evbus.publish('orders', 'cursor.' || i, '1') AS id FROM generate_series(1, 4) AS i \g /dev/null
SELECT becomes($$SELECT lag::text FROM evbus.subscription_lag WHERE subscription = 'reader'$$, '4', 'four events wait');
BEGIN;
DECLARE c CURSOR FOR SELECT type FROM evbus.receive('reader', 4);
FETCH 2 FROM c \g /dev/null
CLOSE c;
ROLLBACK;
SELECT is(consume('reader', 4), 'cursor.1 cursor.2 cursor.3 cursor.4', 'a cursor that was closed early and rolled back lost nothing');

-- unknown subscriptions

SELECT throws_ok($$SELECT * FROM evbus.receive('nosuch')$$, 'VB004', NULL, 'an unknown subscription cannot receive');
SELECT throws_ok($$CALL evbus.wait('nosuch')$$, 'VB004', NULL, 'an unknown subscription cannot be waited for');

-- who publishes and then receives gets it, though nobody waited for it before

SELECT evbus.create_bus('own');
SELECT evbus.subscribe('own', 'own_reader', notify => false) AS position \gset
CREATE TABLE own_reads (n bigint);
\o /dev/null
SELECT $$SELECT evbus.publish('own', 'own.event', '1')$$, $$INSERT INTO own_reads SELECT count(*) FROM evbus.receive('own_reader')$$
FROM generate_series(1, 200) \gexec
\o
SELECT results_eq('SELECT n, count(*) FROM own_reads GROUP BY n', 'VALUES (1::bigint, 200::bigint)', 'each receive finds what was committed before it');

SELECT * FROM finish();
