-- Rows of every shape are read from the log as they were published: small ones, many to a block, and such as are toasted or
-- compressed, by PostgreSQL or by us, with and without key and headers; over many blocks and two leaves, among rows of another bus
-- and of transactions that rolled back, and after rows were touched by hand.
-- Events of prepared transactions never go through the ring, so all of them are read from the log.
\ir include/helpers.sql
SELECT plan(21);

-- buses of a storage class of their own, whose leaf is cut in two below
SELECT evbus.create_bus(bus, retention => '8 days') FROM unnest('{log,neighbour}'::text[]) AS bus;
SELECT evbus.subscribe('log', 'all') AS position, evbus.subscribe('log', 'some', types => '{some.#}') AS position,
	evbus.subscribe('neighbour', 'neighbour') AS position \gset
SELECT 'evbus.event_c' || storage_class_id AS parent FROM evbus.storage_class WHERE retention = '8 days' \gset

-- What no compression makes smaller by much.
CREATE FUNCTION noise(seed integer, bytes integer) RETURNS text LANGUAGE sql AS $$
	SELECT left(translate(encode(string_agg(sha512(convert_to(seed || ' ' || i, 'UTF8')), ''::bytea ORDER BY i), 'base64'), E'\n', ''), bytes)
	FROM generate_series(1, bytes / 80 + 1) AS i;
$$;

CREATE TABLE expected (n integer, id bigint PRIMARY KEY, bus text, type text, key text, headers jsonb, payload jsonb);

-- One event of the n'th shape, and now and then one of the other bus.
CREATE PROCEDURE publish_shape(n integer) LANGUAGE plpgsql AS $$
DECLARE
	e expected;
BEGIN
	e.n := n;
	e.bus := CASE WHEN n % 7 = 3 THEN 'neighbour' ELSE 'log' END;
	e.type := CASE n % 5 WHEN 0 THEN 'a' WHEN 1 THEN 'some.' || repeat('long', 50) ELSE 'some.type' END;
	e.key := CASE n % 3 WHEN 1 THEN 'key ' || n WHEN 2 THEN noise(n, 900) END;
	e.headers := CASE n % 4 WHEN 1 THEN jsonb_build_object('trace', n) WHEN 2 THEN jsonb_build_object('h', repeat('header ', 600)) END;
	e.payload := CASE n % 11
		WHEN 0 THEN to_jsonb(repeat('compressed by us ', 300))
		WHEN 1 THEN to_jsonb(repeat('compressed by PostgreSQL ', 1200))
		WHEN 2 THEN jsonb_build_object('large', noise(n, 20000))
		WHEN 3 THEN jsonb_build_array(noise(n, 6000), n)
		WHEN 4 THEN jsonb_build_object('n', n, 'list', jsonb_build_array(1.5, NULL, true, 'x', n::numeric * 10000000000), 'o', jsonb_build_object('a', n))
		WHEN 5 THEN 'null'
		WHEN 6 THEN jsonb_build_object('large and compressed by us', noise(n, 20000) || repeat('x', 5000))
		ELSE to_jsonb(n) END;
	PERFORM set_config('evbus.compress_threshold', CASE WHEN n % 11 IN (1, 2, 3) THEN '-1' ELSE '2048' END, true);
	e.id := evbus.publish(e.bus, e.type, e.payload, key => e.key, headers => e.headers);
	INSERT INTO expected VALUES (e.*);
END $$;
CREATE PROCEDURE publish_shapes(lo integer, hi integer) LANGUAGE plpgsql AS $$
BEGIN
	FOR n IN lo .. hi LOOP
		CALL publish_shape(n);
	END LOOP;
END $$;

\set QUIET 1
BEGIN;
CALL publish_shapes(1, 500);
PREPARE TRANSACTION 'rows 1';
-- so many that they were written before they were given up
BEGIN;
SELECT count(*) FROM evbus.publish_batch('log', '{gone}', array_fill('"gone"'::jsonb, ARRAY[1500])) \g /dev/null
ROLLBACK;
COMMIT PREPARED 'rows 1';
SELECT becomes($$SELECT lag::text FROM evbus.subscription_lag WHERE subscription = 'all'$$, (SELECT count(*)::text FROM expected WHERE bus = 'log'), 'the first half has its positions');

-- Cut the leaf in two behind them.
SELECT c.oid::regclass AS leaf, (regexp_match(pg_get_expr(c.relpartbound, c.oid), $$FROM \('(\d+)'\)$$))[1] AS lo,
	(regexp_match(pg_get_expr(c.relpartbound, c.oid), $$TO \('(\d+)'\)$$))[1] AS hi, max(e.id) + 1 AS cut
FROM pg_class AS c JOIN pg_inherits ON inhrelid = c.oid, expected AS e
WHERE inhparent = :'parent'::regclass AND c.oid = (SELECT DISTINCT l.tableoid FROM evbus.event_log AS l JOIN expected AS x ON x.id = l.event_id) GROUP BY c.oid \gset
BEGIN;
ALTER TABLE :parent DETACH PARTITION :leaf;
CREATE TABLE evbus.second_leaf (LIKE :leaf INCLUDING ALL);
ALTER TABLE :parent ATTACH PARTITION :leaf FOR VALUES FROM (:lo) TO (:cut);
ALTER TABLE :parent ATTACH PARTITION evbus.second_leaf FOR VALUES FROM (:cut) TO (:hi);
COMMIT;

BEGIN;
CALL publish_shapes(501, 900);
PREPARE TRANSACTION 'rows 2';
COMMIT PREPARED 'rows 2';
SELECT becomes($$SELECT lag::text FROM evbus.subscription_lag WHERE subscription = 'all'$$, (SELECT count(*)::text FROM expected WHERE bus = 'log'), 'and the second');

-- It is what it should be.
CREATE VIEW log_row AS SELECT tableoid, ctid, l.* FROM evbus.event_log AS l WHERE event_id IN (SELECT id FROM expected);
SELECT is((SELECT count(DISTINCT tableoid) FROM log_row), 2::bigint, 'the rows are in two leaves');
SELECT cmp_ok((SELECT count(DISTINCT (tableoid, (ctid::text::point)[0])) FROM log_row), '>', 40::bigint, 'in many blocks');
SELECT cmp_ok((SELECT max(n) FROM (SELECT count(*) AS n FROM log_row GROUP BY tableoid, (ctid::text::point)[0]) AS b), '>', 5::bigint, 'of which some have several');
SELECT cmp_ok((SELECT count(*) FROM log_row WHERE pg_column_compression(payload) = 'pglz' AND pg_column_size(payload) < 2000), '>', 20::bigint, 'payloads are compressed by PostgreSQL, in the row');
SELECT cmp_ok((SELECT count(*) FROM log_row WHERE pg_column_size(payload) > 10000), '>', 20::bigint, 'or out of it');
SELECT cmp_ok((SELECT count(*) FROM log_row WHERE get_byte(payload, 0) = 1 AND length(payload) < 2000), '>', 20::bigint, 'payloads are compressed by us, in the row');
SELECT cmp_ok((SELECT count(*) FROM log_row WHERE get_byte(payload, 0) = 1 AND length(payload) > 10000), '>', 20::bigint, 'or out of it');

-- Clients.
CREATE TABLE got (n integer GENERATED ALWAYS AS IDENTITY, subscription text, id bigint, bus text, type text, key text, headers jsonb, payload jsonb, published_at timestamptz, position bigint);
CREATE PROCEDURE take_all(subscription text, size integer) LANGUAGE plpgsql AS $$
DECLARE
	receipts text[];
BEGIN
	LOOP
		WITH d AS MATERIALIZED (SELECT * FROM evbus.receive(take_all.subscription, size) WITH ORDINALITY),
		kept AS (INSERT INTO got (subscription, id, bus, type, key, headers, payload, published_at, position)
			SELECT take_all.subscription, event_id, d.bus, type, key, headers, payload, published_at, position FROM d ORDER BY ordinality)
		SELECT array_agg(receipt) INTO receipts FROM d;
		EXIT WHEN receipts IS NULL;
		PERFORM evbus.ack(receipts);
	END LOOP;
END $$;
-- What was not received as it was published, or not in its place.
CREATE FUNCTION wrong(subscription text, bus text, types text) RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*)
	FROM (SELECT *, row_number() OVER (ORDER BY n) AS at FROM got WHERE got.subscription = wrong.subscription) AS g
	FULL JOIN (SELECT *, row_number() OVER (ORDER BY id) AS at FROM expected WHERE expected.bus = wrong.bus AND type LIKE types) AS e USING (at)
	WHERE (g.id, g.bus, g.type, g.key, g.headers, g.payload) IS DISTINCT FROM (e.id, e.bus, e.type, e.key, e.headers, e.payload);
$$;
CALL take_all('all', 1000);
SELECT is(wrong('all', 'log', '%'), 0::bigint, 'in one batch, all of them come as they were published, in order');
CALL take_all('some', 37);
SELECT is(wrong('some', 'log', 'some.%'), 0::bigint, 'in batches of 37, those of some types');
CALL take_all('neighbour', 1);
SELECT is(wrong('neighbour', 'neighbour', '%'), 0::bigint, 'one by one, those of the other bus');
SELECT is((SELECT count(*) FROM got AS g JOIN got AS o USING (id) WHERE g.subscription = 'all' AND o.subscription = 'some' AND g.position <> o.position), 0::bigint, 'each has one position');

-- A handler.
CREATE FUNCTION keep(events evbus.event[]) RETURNS void LANGUAGE sql AS $$
	INSERT INTO got (subscription, id, bus, type, key, headers, payload, published_at, position)
		SELECT 'handler', event_id, bus, type, key, headers, payload, published_at, position FROM unnest($1);
$$;
SELECT evbus.subscribe('log', 'handler', handler => 'keep(evbus.event[])', batch_size => 200, start_from => 'beginning') AS position \gset
SELECT becomes($$SELECT lag::text FROM evbus.subscription_lag WHERE subscription = 'handler'$$, '0', 'a handler gets them, too');
SELECT is(wrong('handler', 'log', '%'), 0::bigint, 'as they were published');

-- Touched by hand: what was rolled back is nothing, a changed row is another version, in another place.
BEGIN;
UPDATE evbus.event_log SET key = 'touched' WHERE event_id IN (SELECT id FROM expected WHERE n % 13 = 0);
ROLLBACK;
BEGIN;
DELETE FROM evbus.event_log WHERE event_id IN (SELECT id FROM expected WHERE n % 17 = 0);
ROLLBACK;
UPDATE evbus.event_log SET key = 'changed' WHERE event_id IN (SELECT id FROM expected WHERE n % 19 = 0);
UPDATE expected SET key = 'changed' WHERE n % 19 = 0;
DELETE FROM got;
SELECT is(evbus.seek('all', '1'), 1::bigint, 'back to the beginning');
CALL take_all('all', 250);
SELECT is(wrong('all', 'log', '%'), 0::bigint, 'rows that were touched by hand come as they are now');

-- Nobody passes over what has been deleted.
SELECT id AS deleted FROM expected WHERE bus = 'log' AND n > 700 LIMIT 1 \gset
DELETE FROM evbus.event_log WHERE event_id = :deleted;
SELECT is(evbus.seek('all', '1'), 1::bigint, 'once more');
SELECT throws_ok($$SELECT count(*) FROM evbus.receive('all', 1000)$$, 'XX001', format('event %s of bus "log" is missing from the log', :deleted), 'an event that is no longer in its leaf is an error');
SELECT is((SELECT count(*) FROM evbus.receive('all', 100)), 100::bigint, 'those before it are there');

SELECT is((SELECT count(*) FROM evbus.retry_list) + (SELECT count(*) FROM evbus.dead_letter), 0::bigint, 'no handler has failed');

SELECT * FROM finish();
