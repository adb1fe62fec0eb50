-- Delayed events that are damaged are set aside, and nobody else waits for them.
\ir include/helpers.sql
SELECT plan(10);

SELECT evbus.create_bus('orders');
SELECT evbus.subscribe('orders', 'c') AS position \gset

SELECT evbus.publish('orders', 'bad.payload', '1', delay => '1 second') AS payload \gset
SELECT evbus.publish('orders', 'bad.headers', '1', headers => '{"a": 1}', delay => '1 second') AS headers \gset
SELECT evbus.publish('orders', 'bad.empty', '1', delay => '1 second') AS empty \gset
UPDATE evbus.scheduled SET payload = '\x7f00' WHERE scheduled_id = :payload;
UPDATE evbus.scheduled SET headers = '\x7f00' WHERE scheduled_id = :headers;
UPDATE evbus.scheduled SET payload = '' WHERE scheduled_id = :empty;
SELECT count(evbus.publish('orders', 'good', to_jsonb(i), delay => i * interval '1 millisecond' + '1 second')) AS n FROM generate_series(1, 200) i \gset
SELECT becomes($$SELECT count(*) FROM evbus.history WHERE type = 'good'$$, '200', 'what is due with damaged ones, and after them, is published');
SELECT becomes($$SELECT count(*) FROM evbus.scheduled WHERE due_at = 'infinity'$$, '3', 'they are set aside');
SELECT results_eq($$SELECT count(*) FROM evbus.scheduled$$, $$VALUES (3::bigint)$$, 'and nothing else is left');
SELECT is(poll($$SELECT count(*) FROM (SELECT evbus.ack(ARRAY[receipt]) FROM evbus.receive('c', 500)) r$$, '200'), '200', 'each is delivered once');
SELECT evbus.publish('orders', 'next', '1', delay => '20 milliseconds') AS next \gset
SELECT is(consume('c', 1), 'next', 'what is scheduled later is published');
SELECT throws_ok($$SELECT evbus.drop_bus('orders')$$, 'VB006', NULL, 'a bus that has some is not dropped');
SELECT ok(evbus.cancel_scheduled(:headers), 'one can be cancelled');
SELECT ok(NOT evbus.cancel_scheduled(:headers), 'once');
UPDATE evbus.scheduled SET payload = (SELECT payload FROM evbus.event_log WHERE event_id = (SELECT max(event_id) FROM evbus.event_log)), due_at = now() WHERE scheduled_id = :payload;
CALL evbus.maintain();
SELECT ok(evbus.cancel_scheduled(:empty), 'another, too');
SELECT is(poll($$SELECT count(*) FROM evbus.history WHERE type = 'bad.payload'$$, '1', '70 seconds'), '1', 'one that is mended is published');

SELECT * FROM finish();
