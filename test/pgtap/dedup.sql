-- dedup_key: within the window of the bus the first event counts, and its id is what everybody gets.
\ir include/helpers.sql
SELECT plan(47);

SELECT evbus.create_bus('b');
SELECT evbus.create_bus('other');
SELECT evbus.create_bus('short', dedup_window => '1 second');
SELECT evbus.subscribe('b', 's') AS position \gset
SELECT is((SELECT string_agg(bus || ' ' || dedup_window, ', ' ORDER BY bus) FROM evbus.bus_list), 'b 00:05:00, other 00:05:00, short 00:00:01', 'the window is 5 minutes, or what was given');

-- one after another

SELECT evbus.publish('b', 'a', '1', dedup_key => 'k') AS first \gset
SELECT is(evbus.publish('b', 'other.type', '{"other": "payload"}', dedup_key => 'k'), :first, 'the second publish returns the first id');
SELECT is((SELECT count(*) FROM evbus.history), 1::bigint, 'and stores nothing');
SELECT is(evbus.publish('b', 'a', '1', dedup_key => 'k', delay => '1 hour'), :first, 'nor does a delayed one');
SELECT is_empty('SELECT 1 FROM evbus.scheduled', 'not among the scheduled either');
SELECT isnt(evbus.publish('other', 'a', '1', dedup_key => 'k'), :first, 'another bus has keys of its own');
SELECT isnt(evbus.publish('b', 'a', '1', dedup_key => 'K'), :first, 'keys are compared as they are');
SELECT isnt(evbus.publish('b', 'a', '1', dedup_key => 'k '), :first, 'with every blank');
SELECT is((SELECT count(DISTINCT evbus.publish('b', 'a', '1')) FROM generate_series(1, 3)), 3::bigint, 'without a key everything is stored');
SELECT is(evbus.publish('b', 'a', '1', dedup_key => k), evbus.publish('b', 'a', '1', dedup_key => k), 'a key of ' || octet_length(k) || ' bytes')
FROM unnest(ARRAY['x', repeat('x', 255), repeat('é', 127), E'\n\t\x01', '注文', '''";--', 'NULL']) AS k;
SELECT throws_ok($$SELECT evbus.publish('b', '*', '1', dedup_key => 'bad')$$, '22023', NULL, 'an event that is refused');
SELECT ok(evbus.publish('b', 'a', '1', dedup_key => 'bad') > :first, 'does not take its key');

-- transactions

BEGIN;
SELECT evbus.publish('b', 'undone', '1', dedup_key => 'tx') AS undone \gset
SELECT is(evbus.publish('b', 'undone', '1', dedup_key => 'tx'), :undone, 'within a transaction as well');
ROLLBACK;
BEGIN;
SELECT evbus.publish('b', 'a', '1', dedup_key => 'outer') AS outer \gset
SAVEPOINT s;
SELECT evbus.publish('b', 'undone', '1', dedup_key => 'tx') AS undone \gset
SELECT is(evbus.publish('b', 'undone', '1', dedup_key => 'outer'), :outer, 'a key of the transaction is known in its savepoint');
ROLLBACK TO s;
SELECT evbus.publish('b', 'tx.kept', '1', dedup_key => 'tx') AS kept \gset
SELECT isnt(:undone, :kept, 'what was rolled back to a savepoint frees its key');
SAVEPOINT s2;
SELECT evbus.publish('b', 'a', '1', dedup_key => 'released') AS released \gset
RELEASE s2;
SELECT is(evbus.publish('b', 'undone', '1', dedup_key => 'released'), :released, 'what was released keeps it');
COMMIT;
SELECT is(evbus.publish('b', 'undone', '1', dedup_key => 'tx'), :kept, 'and after the commit');
SELECT is_empty($$SELECT 1 FROM evbus.history WHERE type = 'undone'$$, 'nothing of what was undone or doubled is stored');
CREATE FUNCTION try(key text, fail boolean) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE id bigint;
BEGIN
	id := evbus.publish('b', 'tried', '1', dedup_key => key);
	IF fail THEN RAISE 'x'; END IF;
	RETURN id;
EXCEPTION WHEN raise_exception THEN RETURN NULL;
END $$;
SELECT is((SELECT array_agg(try('t', n < 4) IS NULL ORDER BY n) FROM generate_series(1, 4) AS n), '{t,t,t,f}', 'blocks with EXCEPTION give it back');
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT is(evbus.publish('b', 'a', '1', dedup_key => 'k'), :first, 'in a serializable transaction');
COMMIT;

-- batches

SELECT array_agg(id ORDER BY n) AS ids FROM evbus.publish_batch('b', '{batch}', '{1,2,3,4,5,6}', dedup_keys => '{p,q,p,NULL,k,NULL}') WITH ORDINALITY AS t (id, n) \gset
SELECT is((:'ids'::bigint[])[3], (:'ids'::bigint[])[1], 'the same key twice in one batch: the first id twice');
SELECT is((:'ids'::bigint[])[5], :first, 'a key of before: its id');
SELECT is((SELECT array_agg(payload::int ORDER BY event_id) FROM evbus.history WHERE type = 'batch'), '{1,2,4,6}', 'the others are stored, those without a key always');
SELECT is((SELECT array_agg(event_id ORDER BY event_id) FROM evbus.history WHERE type = 'batch'), (SELECT array_agg(DISTINCT i ORDER BY i) FROM unnest(:'ids'::bigint[]) i WHERE i <> :first), 'under the ids returned');
SELECT is((SELECT count(*) FROM evbus.publish_batch('b', '{batch}', '{1,2}', dedup_keys => NULL)), 2::bigint, 'dedup_keys may be NULL');
SELECT is((SELECT count(DISTINCT id) FROM evbus.publish_batch('b', '{many}', array_fill('1'::jsonb, '{5000}'), dedup_keys => ARRAY(SELECT (n % 1000)::text FROM generate_series(1, 5000) AS n)) AS id), 1000::bigint, '5000 events with 1000 keys are 1000');
SELECT is((SELECT count(*) FROM evbus.history WHERE type = 'many'), 1000::bigint, 'as the history has them');

-- with a due time

SELECT evbus.publish('b', 'later', '1', delay => '300 milliseconds', dedup_key => 'later') AS later \gset
SELECT is(evbus.publish('b', 'later', '1', dedup_key => 'later'), :later, 'the id of a scheduled event is the first id');
SELECT becomes($$SELECT count(*) FROM evbus.history WHERE type = 'later'$$, '1', 'when it is due, it is published');
SELECT is(evbus.publish('b', 'later', '1', dedup_key => 'later'), :later, 'and still is the first');
SELECT is((SELECT headers ->> 'scheduledid' FROM evbus.history WHERE type = 'later'), :later::text, 'which its header tells');
SELECT is((SELECT count(*) FROM evbus.publish_batch('b', '{lb}', '{1,2}', deliver_at => now() + interval '1 hour', dedup_keys => '{later,lb}') AS id WHERE id = :later), 1::bigint, 'in a batch as well');
SELECT is((SELECT count(*) FROM evbus.scheduled_list WHERE type = 'lb'), 1::bigint, 'which schedules the other one');
SELECT is(evbus.cancel_scheduled(id), true, 'cancelled') FROM evbus.scheduled_list WHERE type = 'lb';
SELECT ok(evbus.publish('b', 'a', '1', dedup_key => 'lb') < evbus._time_event(clock_timestamp()), 'a cancelled event keeps its key');

-- the window

CREATE TABLE shots AS SELECT n, evbus.publish('short', 'a', to_jsonb(n), dedup_key => 'w') AS id, clock_timestamp() AS at, pg_sleep(0.05)::text AS slept FROM generate_series(1, 50) AS n;
SELECT cmp_ok((SELECT count(DISTINCT id) FROM shots), '>=', 2::bigint, 'a window ends');
SELECT cmp_ok((SELECT min(evbus._event_time(id) - before) FROM (SELECT id, lag(evbus._event_time(id)) OVER (ORDER BY id) AS before FROM (SELECT DISTINCT id FROM shots) AS d) AS l), '>=', interval '1 second', 'not before its time');
SELECT ok(bool_and(at - evbus._event_time(id) < interval '1.05 seconds'), 'and counts from the first event, not from the last try') FROM shots;
SELECT evbus.alter_bus('short', dedup_window => '1 day');
SELECT evbus.publish('short', 'a', '1', dedup_key => 'w') AS w \gset
SELECT is(evbus.publish('short', 'a', '1', dedup_key => 'w'), :w, 'a longer window');
SELECT is((SELECT dedup_window FROM evbus.bus_list WHERE bus = 'short'), '1 day', 'is shown');
SELECT evbus.alter_bus('short', dedup_window => '1 second');
SELECT isnt(poll(format($$SELECT (evbus.publish('short', 'a', '1', dedup_key => 'w') = %s)::text$$, :w), 'false'), 'true', 'a shorter one frees the key');

SELECT * FROM finish();
