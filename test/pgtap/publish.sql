-- publish() and publish_batch(): what they store, when it is seen, what a rollback leaves.
\ir include/helpers.sql
SELECT plan(97);

SELECT evbus.create_bus('orders');
SELECT evbus.create_bus('second');
SELECT evbus.subscribe('orders', 'reader') AS position \gset
SELECT evbus.subscribe('second', 'second_reader') AS position \gset

-- one event

SELECT evbus.publish('orders', 'order.created', '{"n": 1}', key => 'k1', headers => '{"trace": "t1"}') AS id \gset
SELECT cmp_ok(:id::bigint, '>', 0::bigint, 'the id is positive');
SELECT results_eq(
	'SELECT event_id, bus, type, key, payload, headers FROM evbus.history',
	format('VALUES (%s::bigint, ''orders'', ''order.created'', ''k1'', ''{"n": 1}''::jsonb, ''{"trace": "t1"}''::jsonb)', :id),
	'the history holds what was published');
SELECT ok(published_at BETWEEN clock_timestamp() - interval '1 minute' AND clock_timestamp() + interval '1 second', 'published_at is the time of the publish')
FROM evbus.history;
SELECT event_id AS got, receipt, (event_id, bus, type, key, payload, headers)::text AS content, published_at, position, attempt
FROM take('reader', 1) \gset
SELECT is(:got, :id, 'the same event is delivered');
SELECT is(:'content'::text, format('(%s,orders,order.created,k1,"{""n"": 1}","{""trace"": ""t1""}")', :id), 'the delivery carries bus, type, key, payload and headers');
SELECT is(:'published_at'::timestamptz, (SELECT published_at FROM evbus.history), 'the delivery and the history tell the same time');
SELECT is(evbus.ack(ARRAY[:'receipt']), 1, 'and can be acked');
SELECT cmp_ok(evbus.publish('orders', 'a', '1'), '<', evbus.publish('orders', 'b', '2'), 'ids grow from one call to the next');
SELECT is(consume('reader', 2), 'a b', 'events of one transaction come in the order published');
SELECT evbus.publish('orders', 'bare', '1') AS id \gset
SELECT results_eq($$SELECT key, headers FROM evbus.history WHERE type = 'bare'$$, $$VALUES (NULL::text, NULL::jsonb)$$, 'key and headers may be absent');
SELECT is(consume('reader', 1), 'bare', 'an event without key and headers is delivered');

-- payloads

CREATE TABLE shape (about text, payload jsonb);
INSERT INTO shape VALUES
	('JSON null', 'null'), ('true', 'true'), ('number', '1'), ('text', '"t"'), ('empty text', '""'),
	('empty object', '{}'), ('empty array', '[]'), ('a number of 100 digits', repeat('9', 100)::jsonb),
	('digits after the point', '0.10000000000000000000000000000000000000001'), ('trailing zeros', '1.500'),
	('unicode', '{"注文": "🚚 \u00e9"}'), ('quotes and backslash', '"\"\\ \n\t"'),
	('deep nesting', (repeat('[', 1000) || repeat(']', 1000))::jsonb),
	('many keys', (SELECT jsonb_object_agg('key' || i, i) FROM generate_series(1, 1000) AS i)),
	('many elements', (SELECT jsonb_agg(i) FROM generate_series(1, 10000) AS i));
SELECT is(count(evbus.publish('orders', 'shape', payload, headers => jsonb_build_object('about', about))), (SELECT count(*) FROM shape), 'payloads of every shape are taken')
FROM shape;
CREATE TEMP TABLE got AS SELECT * FROM take('reader', (SELECT count(*)::integer FROM shape));
SELECT is(payload::text, (SELECT s.payload::text FROM shape s WHERE s.about = headers ->> 'about'), 'delivered as published: ' || (headers ->> 'about'))
FROM got;
SELECT is(count(*), (SELECT count(*) FROM shape), 'the history shows the same payloads')
FROM evbus.history h JOIN shape s ON s.about = h.headers ->> 'about' AND s.payload::text = h.payload::text;
SELECT is(evbus.ack(array_agg(receipt)), count(*)::integer, 'all of them are acked') FROM got;

SELECT evbus.publish('orders', 'big', jsonb_build_object('text', repeat('0123456789', 100000))) AS id \gset
SELECT results_eq($$SELECT length(payload ->> 'text'), md5(payload ->> 'text') FROM evbus.history WHERE type = 'big'$$,
	$$SELECT 1000000, md5(repeat('0123456789', 100000))$$, 'a payload of 1 MB is stored whole');
SELECT is((SELECT md5(payload ->> 'text') FROM take('reader', 1, '1 second')), md5(repeat('0123456789', 100000)), 'a payload of 1 MB is delivered whole');
SELECT evbus.seek('reader', 'now') AS position \gset

SELECT evbus.create_bus('small', max_payload_bytes => 1000);
SELECT lives_ok($$SELECT evbus.publish('small', 'a', to_jsonb(repeat('x', 900)))$$, 'a payload below the limit of its bus is taken');
SELECT throws_ok($$SELECT evbus.publish('small', 'a', to_jsonb(repeat('x', 1100)))$$, '54000', NULL, 'a payload over the limit of its bus is refused');
SELECT throws_ok($$SELECT * FROM evbus.publish_batch('small', '{a,b}', ARRAY['1', to_jsonb(repeat('x', 1100))])$$, '54000', NULL, 'also inside a batch');
SELECT throws_ok($$SELECT evbus.publish('small', 'a', to_jsonb(repeat('x', 1000000)))$$, '54000', NULL, 'a payload that compresses well counts with its full size');

-- batches

CREATE TEMP TABLE batch AS
SELECT id, n FROM evbus.publish_batch('orders', '{b.one,b.two,b.three}', ARRAY['1', '2', '3']::jsonb[],
	keys => ARRAY['k', NULL, 'm'], headers => ARRAY['{"h": 1}', NULL, '{}']::jsonb[]) WITH ORDINALITY AS t (id, n);
SELECT is(count(*), 3::bigint, 'a batch returns one id for each event') FROM batch;
SELECT results_eq(
	'SELECT h.type, h.key, h.payload, h.headers FROM evbus.history h JOIN batch b ON b.id = h.event_id ORDER BY b.n',
	$$VALUES ('b.one', 'k', '1'::jsonb, '{"h": 1}'::jsonb), ('b.two', NULL, '2', NULL), ('b.three', 'm', '3', '{}')$$,
	'the ids stand in the order of the arrays');
SELECT ok((SELECT array_agg(id ORDER BY id) FROM batch) = (SELECT array_agg(id ORDER BY n) FROM batch), 'ids of a batch grow');
SELECT is(consume('reader', 3), 'b.one b.two b.three', 'a batch is delivered in its order');
SELECT is_empty($$SELECT * FROM evbus.publish_batch('orders', '{}', '{}')$$, 'an empty batch returns no rows');
SELECT is_empty($$SELECT * FROM evbus.publish_batch('orders', '{}', '{}', '{}', '{}')$$, 'an empty batch with empty keys and headers returns no rows');
SELECT lives_ok($$SELECT * FROM evbus.publish_batch('orders', '{}', '{}', NULL, NULL)$$, 'keys and headers of a batch may be NULL');
SELECT is(count(DISTINCT id), 20000::bigint, 'a batch of 20,000 events gets 20,000 ids')
FROM evbus.publish_batch('second', array_fill('mass'::text, ARRAY[20000]), array_fill('1'::jsonb, ARRAY[20000])) AS id;
SELECT is((SELECT count(*) FROM evbus.history WHERE bus = 'second'), 20000::bigint, 'and all of them are stored');
SELECT becomes($$SELECT lag::text FROM evbus.subscription_lag WHERE subscription = 'second_reader'$$, '20000', 'and all of them are waiting for delivery');
SELECT evbus.seek('second_reader', 'now') AS position \gset

-- rollback

BEGIN;
SELECT evbus.publish('orders', 'r.lost', '1') AS id \gset
SELECT count(*) AS n FROM evbus.publish_batch('orders', '{r.lost,r.lost}', '{1,2}') \gset
ROLLBACK;
SELECT evbus.publish('orders', 'r.kept', '1') AS id \gset
SELECT is(consume('reader', 1), 'r.kept', 'events of a rolled-back transaction are not delivered');
SELECT is_empty($$SELECT 1 FROM evbus.history WHERE type = 'r.lost'$$, 'nor do they show in the history');

BEGIN;
SELECT evbus.publish('orders', 's.1', '1') AS id \gset
SAVEPOINT a;
SELECT evbus.publish('orders', 's.2.undone', '1') AS id \gset
SAVEPOINT b;
SELECT evbus.publish('orders', 's.3.undone', '1') AS id \gset
RELEASE b;
ROLLBACK TO a;
SELECT evbus.publish('orders', 's.4', '1') AS id \gset
SAVEPOINT c;
SELECT evbus.publish('orders', 's.5', '1') AS id \gset
RELEASE c;
SAVEPOINT d;
SELECT evbus.publish('orders', 's.6.undone', '1') AS id \gset
ROLLBACK TO d;
SELECT evbus.publish('orders', 's.7', '1') AS id \gset
COMMIT;
SELECT is(consume('reader', 4), 's.1 s.4 s.5 s.7', 'savepoints take back exactly what was published after them');
SELECT is_empty($$SELECT 1 FROM evbus.history WHERE type LIKE 's.%.undone'$$, 'and leave nothing in the history');

DO $$
BEGIN
	FOR i IN 1 .. 500 LOOP
		BEGIN
			PERFORM evbus.publish('orders', 'x.' || CASE WHEN i % 5 = 0 THEN 'kept' ELSE 'undone' END, to_jsonb(i));
			IF i % 5 > 0 THEN
				RAISE division_by_zero;
			END IF;
		EXCEPTION WHEN division_by_zero THEN
			NULL;
		END;
	END LOOP;
END $$;
SELECT is((SELECT array_agg(payload::integer ORDER BY event_id) FROM evbus.history WHERE type LIKE 'x.%'),
	(SELECT array_agg(i) FROM generate_series(5, 500, 5) AS i), 'EXCEPTION blocks of plpgsql take back what was published in them, and only that');
SELECT is(consume('reader', 100), rtrim(repeat('x.kept ', 100)), 'and only the kept ones are delivered');

-- the write buffer is flushed in the middle of a savepoint: rows of the outer level must not carry its fate
BEGIN;
SELECT count(evbus.publish('second', 'f.outer', to_jsonb(i))) AS n FROM generate_series(1, 3000) AS i \gset
SAVEPOINT s;
SELECT count(evbus.publish('second', 'f.undone', to_jsonb(repeat('x', 500)))) AS n FROM generate_series(1, 20000) AS i \gset
ROLLBACK TO s;
SELECT count(evbus.publish('second', 'f.after', to_jsonb(i))) AS n FROM generate_series(1, 10) AS i \gset
COMMIT;
SELECT results_eq($$SELECT type, count(*) FROM evbus.history WHERE bus = 'second' AND type LIKE 'f.%' GROUP BY 1 ORDER BY 1$$,
	$$VALUES ('f.after', 10::bigint), ('f.outer', 3000)$$, 'a rolled-back savepoint larger than the write buffer takes nothing of the outer level with it');
SELECT becomes($$SELECT lag::text FROM evbus.subscription_lag WHERE subscription = 'second_reader'$$, '3010', 'and exactly the committed events wait for delivery');
SELECT evbus.seek('second_reader', 'now') AS position \gset

-- callers

CREATE TABLE customer_order (id integer PRIMARY KEY, state text);
CREATE FUNCTION tell_order() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM evbus.publish('orders', TG_ARGV[0] || '.' || lower(TG_OP), to_jsonb(NEW), key => NEW.id::text);
	RETURN NULL;
END $$;
CREATE TRIGGER tell AFTER INSERT OR UPDATE ON customer_order FOR EACH ROW EXECUTE FUNCTION tell_order('row');
INSERT INTO customer_order VALUES (1, 'new');
UPDATE customer_order SET state = 'paid' WHERE id = 1;
SELECT is(consume('reader', 2), 'row.insert row.update', 'a row trigger publishes');

COPY customer_order FROM STDIN;
2	new
3	new
4	new
\.
SELECT is(consume('reader', 3), 'row.insert row.insert row.insert', 'a trigger publishes for rows that COPY brings');

DROP TRIGGER tell ON customer_order;
CREATE CONSTRAINT TRIGGER tell_late AFTER INSERT ON customer_order DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION tell_order('late');
BEGIN;
INSERT INTO customer_order VALUES (5, 'new');
SELECT evbus.publish('orders', 'direct', '1') AS id \gset
COMMIT;
SELECT is(consume('reader', 2), 'direct late.insert', 'a deferred trigger publishes at commit');
DROP TRIGGER tell_late ON customer_order;

CREATE FUNCTION tell_statement() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM evbus.publish_batch('orders', array_agg('statement'::text), array_agg(to_jsonb(n) ORDER BY id)) FROM fresh n;
	RETURN NULL;
END $$;
CREATE TRIGGER tell_statement AFTER INSERT ON customer_order REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION tell_statement();
INSERT INTO customer_order SELECT i, 'bulk' FROM generate_series(10, 14) AS i;
SELECT is(consume('reader', 5), rtrim(repeat('statement ', 5)), 'a statement trigger publishes a batch from its transition table');

DO $$BEGIN PERFORM evbus.publish('orders', 'from.do', '1'); END$$;
SELECT is(consume('reader', 1), 'from.do', 'a DO block publishes');

CREATE PROCEDURE tell_twice() LANGUAGE plpgsql AS $$
BEGIN
	PERFORM evbus.publish('orders', 'procedure.committed', '1');
	COMMIT;
	PERFORM evbus.publish('orders', 'procedure.undone', '1');
	ROLLBACK;
	PERFORM evbus.publish('orders', 'procedure.last', '1');
END $$;
CALL tell_twice();
SELECT is(consume('reader', 2), 'procedure.committed procedure.last', 'a procedure that ends transactions publishes in each of them');

WITH told AS (SELECT evbus.publish('orders', 'from.cte', '1') AS id) SELECT id FROM told \gset
SELECT is(consume('reader', 1), 'from.cte', 'a common table expression publishes');

BEGIN;
DECLARE held CURSOR WITH HOLD FOR SELECT evbus.publish('orders', 'from.cursor', to_jsonb(i)) FROM generate_series(1, 3) AS i;
COMMIT;
CLOSE held;
SELECT is(consume('reader', 3), 'from.cursor from.cursor from.cursor', 'a cursor WITH HOLD publishes when it is run at commit');

BEGIN;
SELECT evbus.publish('orders', 'two.buses', '1') AS id \gset
SELECT evbus.publish('second', 'two.buses', '1') AS id \gset
COMMIT;
SELECT is(consume('reader', 1) || ' ' || consume('second_reader', 1), 'two.buses two.buses', 'one transaction publishes to two buses');

BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT evbus.publish('orders', 'level.repeatable', '1') AS id \gset
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT evbus.publish('orders', 'level.serializable', '1') AS id \gset
COMMIT;
SELECT is(consume('reader', 2), 'level.repeatable level.serializable', 'every isolation level publishes');

SET synchronous_commit = off;
SELECT evbus.publish('orders', 'asynchronous', '1') AS id \gset
RESET synchronous_commit;
SELECT is(consume('reader', 1), 'asynchronous', 'an asynchronous commit publishes');

SET default_transaction_read_only = on;
BEGIN;
SELECT throws_ok($$SELECT evbus.publish('orders', 'a', '1')$$, '25006', NULL, 'a read-only transaction cannot publish');
SELECT throws_ok($$SELECT * FROM evbus.publish_batch('orders', '{a}', '{1}')$$, '25006', NULL, 'a read-only transaction cannot publish a batch');
COMMIT;
RESET default_transaction_read_only;

SELECT evbus.publish('orders', 'a.b', '1') AS id \gset
BEGIN;
CREATE TABLE created_with_event (n integer);
SELECT evbus.publish('orders', 'with.ddl', '1') AS id \gset
TRUNCATE customer_order;
COMMIT;
SELECT is(consume('reader', 2), 'a.b with.ddl', 'DDL and publish share a transaction');

-- a temporary table in the publishing transaction, search_path and role settings do not matter
SET search_path = pg_temp, public;
CREATE TEMP TABLE event_log (n integer);
SELECT evbus.publish('orders', 'hidden.names', '1') AS id \gset
RESET search_path;
SELECT is(consume('reader', 1), 'hidden.names', 'tables of the same name elsewhere do not hide those of evbus');

-- types

SELECT lives_ok(format('SELECT evbus.publish(''second'', %L, ''1'')', type), 'a legal type: ' || about)
FROM (VALUES
	('a', 'one word'),
	('order.created.v1', 'several words'),
	('Order.Created', 'capitals'),
	('заказ.создан', 'unicode'),
	('a-b_c/d:e', 'punctuation'),
	(repeat('x', 255), '255 bytes'),
	(rtrim(repeat('x.', 127), '.'), '127 words')) AS v (type, about);
SELECT throws_ok(format('SELECT evbus.publish(''second'', %L, ''1'')', type), '22023', NULL, 'a type is refused: ' || about)
FROM (VALUES
	('', 'empty'), ('.', 'only a dot'), ('.a', 'first word empty'), ('a.', 'last word empty'), ('a..b', 'word in the middle empty'),
	('*', 'star'), ('#', 'hash'), ('a.*', 'star as a word'), ('a.#.b', 'hash as a word'), ('a*', 'star inside a word'),
	('a b', 'space'), (E'a\nb', 'line feed'), (E'a.\x01', 'control character'), (repeat('x', 256), '256 bytes')) AS v (type, about);

SELECT throws_ok($$SELECT evbus.publish('nosuch', 'a.b', '{}')$$, 'VB001', NULL, 'an unknown bus is refused');
SELECT throws_ok($$SELECT * FROM evbus.publish_batch('nosuch', '{a}', '{1}')$$, 'VB001', NULL, 'an unknown bus is refused for a batch');
SELECT throws_ok($$SELECT * FROM evbus.publish_batch('nosuch', '{}', '{}')$$, 'VB001', NULL, 'an unknown bus is refused also for an empty batch');

-- lengths around those at which a stored value's header changes (126 bytes), with and without key and headers

CREATE TABLE sized AS
	SELECT n, 'size.' || repeat('t', n) AS type, to_jsonb(repeat('p', n)) AS payload,
		CASE WHEN n % 2 = 0 THEN repeat('k', n) END AS key, CASE WHEN n % 3 = 0 THEN jsonb_build_object('h', repeat('h', n)) END AS headers
	FROM generate_series(90, 140) n;
SELECT evbus.create_bus('sized');
SELECT evbus.subscribe('sized', 'sizes') AS position \gset
SELECT is(count(*), 51::bigint, 'values of all lengths are stored') FROM (
	SELECT evbus.publish_batch('sized', array_agg(type ORDER BY n), array_agg(payload ORDER BY n), array_agg(key ORDER BY n), array_agg(headers ORDER BY n)) FROM sized) p;
SELECT results_eq($$SELECT type, payload, key, headers FROM evbus.history WHERE bus = 'sized' ORDER BY event_id$$,
	'SELECT type, payload, key, headers FROM sized ORDER BY n', 'the history has them as they were');
SELECT results_eq($$SELECT type, payload, key, headers FROM take('sizes', 51) ORDER BY event_id$$,
	'SELECT type, payload, key, headers FROM sized ORDER BY n', 'and so has the reader');

-- one type for all

SELECT is(count(*), 3::bigint, 'a batch with one type') FROM evbus.publish_batch('sized', '{the.same}', '{7,8,9}');
SELECT results_eq($$SELECT type, payload FROM take('sizes', 3) ORDER BY event_id$$,
	$$VALUES ('the.same', '7'::jsonb), ('the.same', '8'), ('the.same', '9')$$, 'gives it to all its events');

SELECT * FROM finish();
