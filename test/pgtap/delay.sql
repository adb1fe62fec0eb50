-- Delayed events: published when due and not before, once, in order, as they were given; cancelled; transactional.
\ir include/helpers.sql
SELECT plan(63);

DROP ROLE IF EXISTS evbus_test_alice, evbus_test_bob, evbus_test_carol;
CREATE ROLE evbus_test_alice;
CREATE ROLE evbus_test_bob;
CREATE ROLE evbus_test_carol;
SELECT evbus.create_bus('b');
SELECT evbus.subscribe('b', 's') AS position \gset

-- when it is due

SELECT evbus.publish('b', 'first', '{"n": 1}', key => 'k', headers => '{"h": [1]}', delay => '400 milliseconds') AS first \gset
SELECT due_at AS first_due FROM evbus.scheduled_list WHERE id = :first \gset
SELECT cmp_ok(:first, '>', 0::bigint, 'the id is positive');
SELECT is_empty('SELECT 1 FROM evbus.history', 'nothing is published before it is due');
SELECT results_eq($$SELECT bus, type, key, payload, headers, scheduled_by::text FROM evbus.scheduled_list$$,
	$$VALUES ('b', 'first', 'k', '{"n": 1}'::jsonb, '{"h": [1]}'::jsonb, 'postgres')$$, 'the list shows it as it was given');
SELECT cmp_ok((SELECT due_at - scheduled_at FROM evbus.scheduled_list), '>=', interval '399 milliseconds', 'due after the delay, counted from the call');
SELECT cmp_ok((SELECT due_at - scheduled_at FROM evbus.scheduled_list), '<', interval '500 milliseconds', 'and not much later');
SELECT becomes('SELECT count(*) FROM evbus.history', '1', 'it is published by itself');
SELECT results_eq('SELECT type, key, payload, headers FROM evbus.history',
	format($$VALUES ('first', 'k', '{"n": 1}'::jsonb, '{"h": [1], "scheduledid": "%s"}'::jsonb)$$, :first), 'as it was given, and the header scheduledid tells the id it was scheduled under');
SELECT ok(published_at >= :'first_due', 'not early') FROM evbus.history;
SELECT cmp_ok(published_at - :'first_due', '<', interval '10 seconds', 'nor much too late') FROM evbus.history;
SELECT isnt(event_id, :first, 'it has an id of its own') FROM evbus.history;
SELECT is_empty('SELECT 1 FROM evbus.scheduled_list', 'and is no longer in the list');
SELECT is(consume('s', 1), 'first', 'it is delivered');
SELECT evbus.publish('b', 'bare', '1', delay => '1 millisecond') AS bare \gset
SELECT becomes($$SELECT headers FROM evbus.history WHERE type = 'bare'$$, format('{"scheduledid": "%s"}', :bare), 'without headers it gets that one');
SELECT is(evbus.cloud_event(h) ->> 'scheduledid', :bare::text, 'which passes into CloudEvents') FROM evbus.history h WHERE type = 'bare';
SELECT is(consume('s', 1), 'bare', 'it is delivered, too');

-- at once

SELECT is(evbus._event_time(evbus.publish('b', t, '1', deliver_at => at)) <= clock_timestamp(), true, 'at once: ' || t)
FROM (VALUES ('past', now() - interval '1 year'), ('now', now()), ('long.ago', '0044-03-15 BC'), ('null', NULL)) AS v (t, at);
SELECT ok(evbus.publish('b', 'zero', '1', delay => '0') > 0, 'a delay of 0');
SELECT ok(evbus.publish('b', 'nulls', '1', delay => NULL, deliver_at => NULL, dedup_key => NULL) > 0, 'and NULLs');
SELECT is_empty('SELECT 1 FROM evbus.scheduled', 'none of these is scheduled');
SELECT is(consume('s', 6), 'past now long.ago null zero nulls', 'but all are delivered');
SELECT is((SELECT string_agg(DISTINCT headers::text, ' ') FROM evbus.history WHERE type IN ('past', 'zero')), NULL, 'without a header');

-- far ahead, in every leaf

SELECT evbus.publish('b', 'far', to_jsonb(d), delay => d::interval) > 0 FROM unnest('{1 minute,20 minutes,40 minutes,1 hour,1 day,2 days,3 days,1 month,10 years,36500 days}'::text[]) AS d;
SELECT is((SELECT count(*) FROM evbus.scheduled_list), 10::bigint, 'events may be scheduled for minutes to a hundred years');
SELECT cmp_ok((SELECT count(DISTINCT leaf) FROM evbus.scheduled), '>=', 5::bigint, 'in several leaves');
SELECT ok(bool_and(due_at - scheduled_at - (payload #>> '{}')::interval BETWEEN interval '-1 second' AND interval '1 second'
	OR payload #>> '{}' IN ('1 month', '10 years')), 'each at its time') FROM evbus.scheduled_list;
-- By the calendar of the session, as where an interval is added to a timestamp.
SELECT ok(abs(extract(epoch FROM due_at - (scheduled_at + interval '1 month'))) < 1, 'a month is one of the calendar') FROM evbus.scheduled_list WHERE payload = '"1 month"';
SELECT is(evbus.publish('b', 'edge', '1', deliver_at => now() + interval '36499 days') > 0, true, 'deliver_at as far');
SELECT is(count(*) FILTER (WHERE evbus.cancel_scheduled(id)), 11::bigint, 'all of them can be cancelled') FROM evbus.scheduled_list;
SELECT is_empty('SELECT 1 FROM evbus.scheduled_list', 'and are gone');

-- cancel

SELECT evbus.publish('b', 'c', '1', delay => '1 hour') AS c \gset
SELECT is(evbus.cancel_scheduled(:c), true, 'what is pending is cancelled');
SELECT is(evbus.cancel_scheduled(:c), false, 'once');
SELECT is(evbus.cancel_scheduled(:first), false, 'what is published is not');
SELECT is(evbus.cancel_scheduled(n), false, 'nor what never was: ' || n) FROM unnest('{0,-1,1,9223372036854775807,-9223372036854775808}'::bigint[]) AS n;

-- transactions

BEGIN;
SELECT evbus.publish('b', 'undone', '1', delay => '100 milliseconds') AS undone \gset
ROLLBACK;
BEGIN;
SELECT evbus.publish('b', 'kept', '1', delay => '100 milliseconds') AS kept \gset
SAVEPOINT s;
SELECT evbus.publish('b', 'undone', '1', delay => '100 milliseconds') AS undone \gset
ROLLBACK TO s;
SELECT evbus.publish('b', 'cancelled', '1', delay => '100 milliseconds') AS cancelled \gset
SELECT is(evbus.cancel_scheduled(:cancelled), true, 'own events can be cancelled before commit');
SELECT is(evbus.cancel_scheduled(:cancelled), false, 'once');
COMMIT;
SELECT is(consume('s', 1), 'kept', 'what was committed is published');
SELECT evbus.publish('b', 'marker', '1', delay => '100 milliseconds') > 0 AS ok \gset
SELECT is(consume('s', 1), 'marker', 'and nothing that was rolled back or cancelled, which was due before');
BEGIN;
SELECT evbus.publish('b', 'c2', '1', delay => '1 hour') AS c2 \gset
COMMIT;
BEGIN;
SELECT evbus.cancel_scheduled(:c2) AS ok \gset
ROLLBACK;
SELECT is(evbus.cancel_scheduled(:c2), true, 'a cancel that was rolled back did not happen');

-- order, also of many

SELECT count(*) AS n FROM (SELECT evbus.publish('b', 'o.' || n, to_jsonb(n), deliver_at => statement_timestamp() + interval '500 milliseconds' - n * interval '1 millisecond') FROM generate_series(1, 50) AS n) AS p \gset
SELECT is((SELECT string_agg(payload::text, ' ' ORDER BY ordinality) FROM take('s', 50) WITH ORDINALITY), (SELECT string_agg(n::text, ' ' ORDER BY n DESC) FROM generate_series(1, 50) AS n), 'events are delivered in the order of due times');
SELECT array_agg(id ORDER BY ordinality) AS batch FROM evbus.publish_batch('b', '{batch}', ARRAY(SELECT to_jsonb(n) FROM generate_series(1, 3000) AS n), keys => ARRAY(SELECT n::text FROM generate_series(1, 3000) AS n),
	headers => ARRAY(SELECT jsonb_build_object('n', n) FROM generate_series(1, 3000) AS n), deliver_at => clock_timestamp() + interval '500 milliseconds') WITH ORDINALITY AS ids (id, ordinality) \gset
SELECT is((SELECT array_agg(id ORDER BY id) FROM evbus.scheduled_list), :'batch'::bigint[], 'a batch returns the ids of its scheduled events in order');
SELECT becomes($$SELECT count(*) FROM evbus.history WHERE type = 'batch'$$, '3000', 'all of them are published');
SELECT ok(bool_and(payload::text = key AND payload = headers -> 'n' AND (headers ->> 'scheduledid')::bigint = (:'batch'::bigint[])[payload::text::int]), 'each as it was given') FROM evbus.history WHERE type = 'batch';
SELECT is((SELECT string_agg(payload::text, ' ' ORDER BY event_id) FROM evbus.history WHERE type = 'batch'), (SELECT string_agg(n::text, ' ' ORDER BY n) FROM generate_series(1, 3000) AS n), 'those that are due at the same moment in the order of the call');
SELECT is_empty($$SELECT * FROM evbus.publish_batch('b', '{a}', '{}', deliver_at => now() + interval '1 hour')$$, 'an empty batch schedules nothing');

-- large ones, and a limit lowered meanwhile

SELECT evbus.publish('b', 'big', jsonb_build_object('t', string_agg(md5(n::text), '')), delay => '300 milliseconds') AS big FROM generate_series(1, 100000) AS n \gset
SELECT evbus.alter_bus('b', max_payload_bytes => 100);
SELECT becomes($$SELECT md5(payload ->> 't') FROM evbus.history WHERE type = 'big'$$, (SELECT md5(string_agg(md5(n::text), '')) FROM generate_series(1, 100000) AS n), '3 MB come whole, though the bus would take only 100 bytes by then');
SELECT throws_ok($$SELECT evbus.publish('b', 'big', to_jsonb(repeat('x', 200)), delay => '1 second')$$, '54000', NULL, 'the limit holds when it is scheduled');
SELECT throws_ok($$SELECT evbus.publish('b', 'a', '1', delay => '1 second', deliver_at => now())$$, '22023', 'delay and deliver_at cannot both be given', 'one of the two');
SELECT throws_ok($$BEGIN; SET TRANSACTION READ ONLY; SELECT evbus.publish('b', 'a', '1', delay => '1 second')$$, NULL, NULL, 'not in a read-only transaction');

-- a paused bus: events are published, deliveries wait

SELECT evbus.pause_bus('b');
SELECT evbus.publish('b', 'paused', '1', delay => '50 milliseconds') > 0 AS ok \gset
SELECT becomes($$SELECT count(*) FROM evbus.history WHERE type = 'paused'$$, '1', 'to a paused bus they are published as well');
SELECT evbus.resume_bus('b');

-- renamed, and dropped

SELECT evbus.publish('b', 'renamed', '1', delay => '300 milliseconds') > 0 AS ok \gset
SELECT evbus.alter_bus('b', rename_to => 'B "2"');
SELECT becomes($$SELECT bus FROM evbus.history WHERE type = 'renamed'$$, 'B "2"', 'they follow their bus to another name');
SELECT evbus.create_bus('gone');
SELECT evbus.publish('gone', 'a', '1', delay => '1 hour') AS gone \gset
SELECT throws_ok($$SELECT evbus.drop_bus('gone')$$, 'VB006', 'cannot drop bus "gone": it has events that are not due yet', 'a bus with scheduled events is not dropped');
SELECT lives_ok($$SELECT evbus.drop_bus('gone', force => true)$$, 'unless forced');
SELECT is((SELECT count(*) FROM evbus.scheduled), 0::bigint, 'they go with it');

-- privileges

GRANT USAGE ON SCHEMA evbus TO evbus_test_alice, evbus_test_bob, evbus_test_carol;
GRANT EXECUTE ON FUNCTION evbus.publish(text, text, jsonb, text, jsonb, interval, timestamptz, text, integer, timestamptz) TO evbus_test_alice;
GRANT EXECUTE ON FUNCTION evbus.cancel_scheduled(bigint) TO evbus_test_alice, evbus_test_bob, evbus_test_carol;
GRANT EXECUTE ON FUNCTION evbus.create_bus TO evbus_test_carol;
SET ROLE evbus_test_carol;
SELECT evbus.create_bus('carols');
RESET ROLE;
SELECT evbus.grant('publish', 'carols', 'evbus_test_alice');
SET ROLE evbus_test_alice;
SELECT evbus.publish('carols', 'a', '1', delay => '1 hour', dedup_key => 'x') AS alices, evbus.publish('carols', 'a', '1', delay => '1 hour') AS another \gset
SELECT is(evbus.publish('carols', 'a', '1', dedup_key => 'x'), :alices, 'who may publish may schedule, and use keys');
SET ROLE evbus_test_bob;
SELECT throws_ok(format('SELECT evbus.cancel_scheduled(%s)', :alices), '42501', NULL, 'another role cannot cancel it');
SET ROLE evbus_test_alice;
SELECT is(evbus.cancel_scheduled(:alices), true, 'who scheduled it can');
SET ROLE evbus_test_carol;
SELECT is(evbus.cancel_scheduled(:another), true, 'and the owner of the bus');
RESET ROLE;
SELECT evbus.drop_bus('carols', force => true);
DROP OWNED BY evbus_test_alice, evbus_test_bob, evbus_test_carol;
DROP ROLE evbus_test_alice, evbus_test_bob, evbus_test_carol;

SELECT * FROM finish();
