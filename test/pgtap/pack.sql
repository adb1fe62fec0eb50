-- jsonb is stored packed (src/jsonb_pack.c): as many bytes less as it should be, and the very same when it is read.
\ir include/helpers.sql
SELECT plan(30);

SELECT evbus.create_bus('b');
SELECT evbus.subscribe('b', 'rows') AS position, evbus.subscribe('b', 'lines') AS position \gset
CREATE TABLE given (n integer GENERATED ALWAYS AS IDENTITY, payload jsonb);
-- Publishes what is given and tells the first id; once that is committed, differ() compares the bytes (*=) of what is stored.
CREATE FUNCTION send() RETURNS bigint LANGUAGE sql AS $$ SELECT min(id) FROM evbus.publish_batch('b', '{a}', (SELECT array_agg(payload ORDER BY n) FROM given)) AS id $$;
CREATE FUNCTION differ(first_id bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	answer bigint;
BEGIN
	SELECT count(*) INTO answer FROM (SELECT payload, row_number() OVER (ORDER BY n) FROM given) AS g (payload, n)
		WHERE (SELECT (SELECT x FROM (SELECT h.payload) AS x) *= (SELECT y FROM (SELECT g.payload) AS y) FROM evbus.history h WHERE h.event_id = first_id + g.n - 1) IS NOT TRUE;
	TRUNCATE given;
	RETURN answer;
END $$;
CREATE FUNCTION stored(id bigint) RETURNS integer LANGUAGE sql AS 'SELECT octet_length(payload) FROM evbus.event_log WHERE event_id = id';

INSERT INTO given (payload) SELECT to_jsonb(sign * digits / power) FROM unnest('{1,-1}'::numeric[]) sign,
	unnest('{0,1,9,15,16,30,31,99,100,999,1000,9999,10000,10001,9990000,12345678,100000000,999999999999,9999999999999999,10000000000000000,12345678901234567890}'::numeric[]) digits,
	(SELECT 10::numeric ^ i FROM generate_series(0, 20) AS i) AS p (power);
INSERT INTO given (payload) SELECT to_jsonb(round(v, i)) FROM unnest('{0,1.5,-1.5,0.00005,123456.789}'::numeric[]) v, generate_series(0, 40) AS i;
INSERT INTO given (payload) VALUES ('1e300'), ('1e-300'), ('-1e1000'), (to_jsonb(repeat('9', 500)::numeric)), ('[1e20, 1.0, 1.00, 1.000, -0.0]');
SELECT count(*) AS given, send() AS id FROM given \gset
SELECT cmp_ok(:given, '>', 1000, 'many numbers');
SELECT is(differ(:id), 0::bigint, 'come back as they were');

INSERT INTO given (payload) SELECT to_jsonb(repeat('x', i)) FROM generate_series(0, 300) AS i;
INSERT INTO given (payload) VALUES ('"é€😀"'), (to_jsonb(repeat('é', 20000))), ('null'), ('true'), ('false'), ('[]'), ('{}'), ('[[]]'), ('[{}]'), ('{"": {"": []}}'),
	('[null, true, false, "", 0, {}, []]'), ((repeat('[', 1000) || repeat(']', 1000))::jsonb), ((repeat('{"a": ', 500) || '1' || repeat('}', 500))::jsonb);
SELECT send() AS id \gset
SELECT is(differ(:id), 0::bigint, 'texts, words and containers');

INSERT INTO given (payload) SELECT jsonb_agg(CASE i % 3 WHEN 0 THEN to_jsonb(i) WHEN 1 THEN to_jsonb('x' || i) ELSE 'null' END) FROM generate_series(1, 130) AS n, generate_series(1, n) AS i GROUP BY n;
INSERT INTO given (payload) SELECT jsonb_object_agg('key' || i, CASE i % 3 WHEN 0 THEN to_jsonb(i * 1.5) WHEN 1 THEN to_jsonb('x' || i) ELSE '[1, {"a": 2}]' END) FROM generate_series(1, 130) AS n, generate_series(1, n) AS i GROUP BY n;
SELECT send() AS id \gset
SELECT is(differ(:id), 0::bigint, 'containers of up to 130 children: every 32nd entry tells an offset');

SELECT setseed(0.815);
CREATE FUNCTION random_json(depth integer) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	kind double precision := random();
BEGIN
	IF depth = 0 OR kind < 0.5 THEN
		RETURN CASE floor(random() * 4) WHEN 0 THEN to_jsonb(left(md5(random()::text), floor(random() * 33)::int)) WHEN 1 THEN to_jsonb(floor(random() * 10 ^ floor(random() * 18))::numeric)
			WHEN 2 THEN to_jsonb(round(((random() - 0.5) * 10 ^ floor(random() * 12))::numeric, floor(random() * 12)::int)) ELSE (ARRAY['true', 'false', 'null'])[1 + floor(random() * 3)::int]::jsonb END;
	ELSIF kind < 0.7 THEN
		RETURN (SELECT coalesce(jsonb_agg(random_json(depth - 1)), '[]') FROM generate_series(1, floor(random() * (CASE WHEN random() < 0.1 THEN 70 ELSE 7 END))::int));
	END IF;
	RETURN (SELECT coalesce(jsonb_object_agg(left(md5(random()::text), floor(random() * 12)::int), random_json(depth - 1)), '{}') FROM generate_series(1, floor(random() * (CASE WHEN random() < 0.1 THEN 70 ELSE 7 END))::int));
END $$;
SET evbus.compress_threshold = -1;
INSERT INTO given (payload) SELECT random_json(i % 6) FROM generate_series(1, 3000) AS i;
SELECT send() AS id \gset
SELECT becomes($$SELECT count(*)::text FROM evbus.history h, evbus.subscription_lag l WHERE l.subscription = 'lines' GROUP BY lag HAVING count(*) = lag$$, (SELECT count(*)::text FROM evbus.history), 'all of it can be received');
SELECT is((SELECT md5(string_agg(md5(payload::text), '' ORDER BY event_id)) FROM evbus.receive('rows', 10000) WHERE event_id >= :id), (SELECT md5(string_agg(md5(payload::text), '' ORDER BY n)) FROM given), '3000 values made by chance are delivered as they were');
SELECT is(differ(:id), 0::bigint, 'and come back byte for byte');
RESET evbus.compress_threshold;

-- printed as it is stored (src/jsonb_pack_print.c)

CREATE TABLE line (event_id bigint, payload text);
CREATE PROCEDURE take_lines() LANGUAGE plpgsql AS $$
DECLARE
	r record;
BEGIN
	FOR i IN 1 .. 20 LOOP
		SELECT * INTO r FROM evbus.receive_lines('lines', 1000);
		EXIT WHEN r IS NULL;
		INSERT INTO line SELECT (l::json->>'event_id')::bigint, substring(l FROM '"payload":(.*),"headers":null,"published_at"') FROM unnest(string_to_array(r.lines, E'\n')) AS l;
		PERFORM evbus.ack(r.receipts);
		COMMIT;
	END LOOP;
END $$;
CALL take_lines();
SELECT results_eq('SELECT count(*) FROM line', 'SELECT count(*) FROM evbus.history', 'every event is a line');
SELECT is_empty('SELECT event_id, l.payload, h.payload FROM line l JOIN evbus.history h USING (event_id) WHERE l.payload IS DISTINCT FROM h.payload::text LIMIT 5', 'letter by letter what jsonb prints');

-- how much less it is

SELECT '{"order_id": 1000007, "customer": {"id": 5049, "name": "Customer 5049"}, "status": "created", "total": 101.59, "currency": "EUR", "items": [{"sku": "A-00707", "n": 3}, {"sku": "B-01477", "n": 2}], "note": "no note was left by the buyer"}' AS usual \gset
SELECT evbus.publish('b', 'a', :'usual') AS id \gset
SELECT cmp_ok(stored(:id), '<', pg_column_size(:'usual'::jsonb) * 6 / 10, 'an order takes less than 0.6 of its jsonb');
SELECT cmp_ok(stored(:id), '<', length(:'usual'), 'and less than its text');
SELECT is(get_byte(payload, 0), 2, 'it is packed') FROM evbus.event_log WHERE event_id = :id;
CREATE TABLE number AS SELECT n, payload, evbus.publish('b', 'a', payload) AS id FROM unnest('{1,-8,10000,9990000,1.50,-0.05,123456.789,99999999,1e100}'::jsonb[]) WITH ORDINALITY AS u (payload, n);
SELECT is(string_agg(payload::text || ':' || stored(id), ' ' ORDER BY n), '1:4 -8:4 10000:7 9990000:8 1.50:6 -0.05:5 123456.789:8 99999999:8 1' || repeat('0', 100) || ':13', 'numbers') FROM number;
SELECT evbus.publish('b', 'a', '[1]', headers => '{"trace": 1}') AS id \gset
SELECT is(stored(:id), 4, 'codec, length, tag, tag');
SELECT cmp_ok(octet_length(headers), '<', pg_column_size('{"trace": 1}'::jsonb) - 8, 'headers as well') FROM evbus.event_log WHERE event_id = :id;
SELECT evbus.publish('b', 'a', to_jsonb(repeat('0123456789', 1000))) AS id \gset
SELECT is(get_byte(payload, 0), 1, 'from compress_threshold on it is compressed') FROM evbus.event_log WHERE event_id = :id;

-- what is not what packing made is refused, whatever it is

SELECT evbus.publish('b', 'a', :'usual') AS id \gset
SELECT payload AS packed FROM evbus.event_log WHERE event_id = :id \gset
CREATE FUNCTION told(bytes bytea) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN 'taken: ' || (evbus._decode(bytes) IS NOT NULL);
EXCEPTION WHEN OTHERS THEN
	RETURN sqlstate;
END $$;
SELECT is(told(:'packed'::bytea), 'taken: true', 'the true one');
SELECT is(count(*), 0::bigint, 'cut anywhere') FROM generate_series(0, length(:'packed'::bytea) - 1) AS n WHERE told(substr(:'packed'::bytea, 1, n)) <> 'XX001';
SELECT is(told(:'packed'::bytea || '\x00'), 'XX001', 'with a byte more');
CREATE TABLE damaged AS SELECT told(set_byte(:'packed'::bytea, at, value)) AS answer FROM generate_series(1, length(:'packed'::bytea) - 1) AS at, generate_series(0, 255) AS value;
SELECT is(count(*), 0::bigint, 'any byte changed: refused, or another jsonb') FROM damaged WHERE answer NOT IN ('XX001', 'taken: true', '22021', '22003');
SELECT cmp_ok(count(*) FILTER (WHERE answer = 'XX001'), '>', 3000::bigint, 'many of them refused') FROM damaged;
CREATE TABLE noise AS SELECT told(decode('02' || left(md5(random()::text) || md5(random()::text), 2 * floor(random() * 32)::int), 'hex')) AS answer FROM generate_series(1, 5000);
SELECT is(count(*), 0::bigint, 'noise') FROM noise WHERE answer NOT IN ('XX001', 'taken: true', '22021', '22003');
SELECT is(told('\x02' || decode(repeat('ff', 20), 'hex')), 'XX001', 'a length that never ends');
SELECT is(told('\x02ffffffff0f80'), 'XX001', 'a length over every limit');
SELECT is(told('\x02'), 'XX001', 'nothing');


-- the same where it is printed: in a retry's own copy, which can be changed by hand

SELECT evbus.subscribe('b', 'held', types => '{held}') AS position, evbus.publish('b', 'held', :'usual') AS id \gset
SELECT is(evbus.nack(array_agg(receipt), delay => '0'), 1, 'one to be damaged') FROM take('held', 1);
-- Taken, or found to be damaged and made a dead letter; either way it is undone.
CREATE FUNCTION printed(bytes bytea) RETURNS text LANGUAGE plpgsql SET client_min_messages = error AS $$
DECLARE
	text text;
BEGIN
	UPDATE evbus.retry SET payload = bytes;
	LOOP
		SELECT lines INTO text FROM evbus.receive_lines('held');
		IF text IS NOT NULL THEN
			RAISE SQLSTATE 'TAKEN';
		ELSIF EXISTS (SELECT FROM evbus.dead_letter_log WHERE subscription = 'held' AND sqlstate = 'XX001') THEN
			RAISE SQLSTATE 'XX001';
		END IF;
	END LOOP;
EXCEPTION WHEN OTHERS THEN
	RETURN sqlstate;
END $$;
SELECT is(printed(:'packed'::bytea), 'TAKEN', 'the true one');
SELECT is(count(*), 0::bigint, 'cut anywhere') FROM generate_series(0, length(:'packed'::bytea) - 1) AS n WHERE printed(substr(:'packed'::bytea, 1, n)) <> 'XX001';
SELECT is(printed(:'packed'::bytea || '\x00'), 'XX001', 'with a byte more');
CREATE TABLE bad_print AS SELECT printed(set_byte(:'packed'::bytea, at, value)) AS answer FROM generate_series(1, length(:'packed'::bytea) - 1) AS at, generate_series(0, 255, 5) AS value;
SELECT results_eq('SELECT DISTINCT answer FROM bad_print ORDER BY 1', $$VALUES ('TAKEN'), ('XX001')$$, 'any byte changed: refused, or another text');

SELECT * FROM finish();
