-- publish_lines(): a batch as lines of JSON.  It parses them itself (src/jsonb_parse.c): the bytes must be those of jsonb's own input.
\ir include/helpers.sql
SELECT plan(36);

SELECT evbus.create_bus('lines');
SELECT evbus.subscribe('lines', 'reader') AS position \gset

-- what it stores

SELECT first_id, events FROM evbus.publish_lines('lines', 'a.b', E'{"n": 1}\n2\n"three"\n') \gset
SELECT is(:events, 3, 'one event for each line, and none for a newline at the end');
SELECT results_eq('SELECT event_id, type, key, payload, headers FROM evbus.history ORDER BY event_id',
	format('VALUES (%s::bigint, ''a.b'', NULL::text, ''{"n": 1}''::jsonb, NULL::jsonb), (%s, ''a.b'', NULL, ''2'', NULL), (%s, ''a.b'', NULL, ''"three"'', NULL)',
		:first_id, :first_id + 1, :first_id + 2), 'ids follow first_id in the order of the lines');
SELECT is((SELECT string_agg(payload::text, ' ' ORDER BY position) FROM take('reader', 3)), '{"n": 1} 2 "three"', 'they are delivered in that order');
SELECT results_eq($$SELECT * FROM evbus.publish_lines('lines', 'a', '')$$, 'VALUES (NULL::bigint, 0)', 'no lines store nothing');
SELECT is(events, 1, 'a line without a newline') FROM evbus.publish_lines('lines', 'one', 'true');
SELECT is(events, 2, 'lines may end as on Windows') FROM evbus.publish_lines('lines', 'windows', E'{"a": 1}\r\n{"a": 2}\r\n');
SELECT first_id FROM evbus.publish_lines('lines', 'keys', E'1\n2\n3', keys => '{k1,NULL,"k 3"}', headers => '{"trace": "t"}') \gset
SELECT results_eq($$SELECT key, headers FROM evbus.history WHERE type = 'keys' ORDER BY event_id$$,
	$$VALUES ('k1', '{"trace": "t"}'::jsonb), (NULL, '{"trace": "t"}'), ('k 3', '{"trace": "t"}')$$, 'a key for each line, headers for all');
SELECT first_id FROM evbus.publish_lines('lines', 'many', (SELECT string_agg(i::text, E'\n' ORDER BY i) FROM generate_series(1, 2500) AS i)) \gset
SELECT is(count(*), 2500::bigint, 'more than is written at once') FROM evbus.history WHERE type = 'many' AND payload = to_jsonb(event_id - :first_id + 1);

-- a batch is stored whole or not at all

CREATE FUNCTION stored() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM evbus.history';
SELECT stored() AS before \gset
SELECT throws_ok($$SELECT evbus.publish_lines('lines', 'a', E'{"a": 1}\n{"b": }\n3')$$, '22P02', 'invalid input syntax for type json', 'a line that is not JSON');
SELECT throws_ok($$SELECT evbus.publish_lines('lines', 'a', E'1\n \r\n3')$$, '22P02', 'a line is empty', 'an empty line');
SELECT throws_ok($$SELECT evbus.publish_lines('lines', 'a', E'\n')$$, '22P02', NULL, 'nothing but an empty line');
SELECT throws_ok($$SELECT evbus.publish_lines('lines', 'a', E'{"a":\n1}')$$, '22P02', NULL, 'a value over two lines');
SELECT throws_ok($$SELECT evbus.publish_lines('lines', 'a', '1 2')$$, '22P02', NULL, 'two values on a line');
SELECT throws_ok($$SELECT evbus.publish_lines('lines', 'a', '"\u0000"')$$, '22P05', NULL, 'what jsonb cannot hold');
SELECT throws_ok($$SELECT evbus.publish_lines('lines', 'a', E'1\n2', keys => '{k}')$$, '22023', '"keys" must have as many elements as there are events', 'too few keys');
SELECT throws_ok($$SELECT evbus.publish_lines('lines', 'a', E'1\n2\n', keys => '{a,b,c}')$$, '22023', NULL, 'too many keys');
SELECT throws_ok($$SELECT evbus.publish_lines('lines', 'a', '1', headers => '[]')$$, '22023', 'headers must be a JSON object', 'headers that are no object');
SELECT throws_ok($$SELECT evbus.publish_lines('lines', 'a..b', '1')$$, '22023', NULL, 'a type that is none');
SELECT throws_ok($$SELECT evbus.publish_lines('lines', '{a.b}', '1')$$, '22023', 'type must be a single event type, not an array', 'what publish_batch() wants');
SELECT throws_ok($$SELECT evbus.publish_lines('lines', 'a', NULL)$$, '22004', 'argument "lines" must not be null', 'no lines at all');
SELECT throws_ok($$SELECT evbus.publish_lines('nowhere', 'a', '1')$$, 'VB001', NULL, 'a bus that is not there');
SELECT is(stored(), :before::bigint, 'none of them stored anything');
CREATE FUNCTION context_of(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	context text;
BEGIN
	EXECUTE query;
	RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS context = PG_EXCEPTION_CONTEXT;
	RETURN context;
END $$;
SELECT matches(context_of($$SELECT evbus.publish_lines('lines', 'a', E'1\n2\n{"b": }\n4')$$), 'evbus.publish_lines\(\), line 3', 'the error tells the line');
SELECT evbus.create_bus('small', max_payload_bytes => 1000);
SELECT matches(context_of($$SELECT evbus.publish_lines('small', 'a', '1' || E'\n' || to_jsonb(repeat('x', 1000))::text)$$), 'evbus.publish_lines\(\), line 2', 'also for one that is too large');
SELECT doesnt_match(context_of($$SELECT evbus.publish_lines('lines', 'a', '1'), evbus.publish('lines', 'a', '1', headers => '[]')$$), 'publish_lines\(\), line', 'and is not told of what comes later');

-- the same bytes as by jsonb's input: *= compares records byte by byte

CREATE TABLE text_of (i serial, line text);
CREATE FUNCTION same_bytes(id bigint, line text) RETURNS boolean LANGUAGE sql AS $$
	SELECT (SELECT a FROM (SELECT payload FROM evbus.history WHERE event_id = id) AS a) *= (SELECT b FROM (SELECT line::jsonb) AS b)
$$;
-- Publishes the lines in text_of; when that is committed, differ() tells how many there were, and how many are not stored as they should be.
CREATE FUNCTION send() RETURNS bigint LANGUAGE sql AS $$
	SELECT first_id FROM evbus.publish_lines('lines', 'bytes', (SELECT string_agg(line, E'\n' ORDER BY i) FROM text_of))
$$;
CREATE FUNCTION differ(first_id bigint) RETURNS TABLE (lines bigint, wrong bigint) LANGUAGE plpgsql AS $$
BEGIN
	RETURN QUERY SELECT count(*), count(*) FILTER (WHERE same_bytes(first_id + n - 1, l) IS NOT TRUE)
		FROM (SELECT line, row_number() OVER (ORDER BY i) FROM text_of) AS t (l, n);
	TRUNCATE text_of;
END $$;

INSERT INTO text_of (line) VALUES ('0'), ('-0'), ('0.0'), ('-0.00'), ('1'), ('-1'), ('10'), ('9999'), ('10000'), ('10001'), ('99999999'), ('100000000'),
	('0.1'), ('0.0001'), ('0.00001'), ('0.1000'), ('1.50'), ('123456789.987654321'), ('0.00000000000000000001'), ('12345678901234567890123456789012345678901234567890'),
	('1e5'), ('1E-5'), ('-2.5e+3'), ('1' || repeat('0', 63)), ('1' || repeat('0', 64)), (repeat('9', 200)),
	('0.' || repeat('0', 59) || '1'), ('0.' || repeat('0', 60) || '1'), ('0.' || repeat('1', 64)), (repeat('9', 64) || '.' || repeat('9', 60)), ('1.' || repeat('0', 60));
SELECT send() AS first_id \gset
SELECT is(wrong, 0::bigint, 'numbers') FROM differ(:first_id);

INSERT INTO text_of (line) VALUES ('""'), ('"a"'), ('"\""'), ('"\\"'), ('"\/\b\f\n\r\t"'), ('"abcdefg\n"'), ('"abcdefgh\n"'), ('"' || repeat('x', 100) || '\u00e9' || repeat('y', 9) || '"'),
	('"\u0041\u00e9\u20ac\uffff"'), ('"\ud83d\ude00"'), ('"é€😀"'), ('"' || chr(127) || '"'), ('{"\u0061": 1, "a": 2}'), ('"\u0001"'), ('{"": ""}');
SELECT send() AS first_id \gset
SELECT is(wrong, 0::bigint, 'texts') FROM differ(:first_id);

INSERT INTO text_of (line) VALUES ('null'), ('true'), ('false'), ('[]'), ('{}'), ('[[]]'), ('[{}]'), ('{"a": {}}'), ('{"a": []}'), (' [ 1 , 2 ] '), (E'\t{\t"a"\t:\t1\t}\r'),
	('[null,true,false,"",0]'), ('{"b": 1, "a": 2, "aa": 3, "": 4}'), ('{"a": 1, "b": 2, "a": 3}'), ('{"a": 1, "a": [2], "a": {"a": 3}}'), ('[1,[2,[3,[4,["x"]]]]]'), ('["a",1,"bcd",2.5,{"x":1}]'),
	(repeat('[', 64) || repeat(']', 64)), (repeat('[', 65) || repeat(']', 65)), (repeat('[', 66) || '1' || repeat(']', 66)), (repeat('{"a":', 80) || '1' || repeat('}', 80));
SELECT send() AS first_id \gset
SELECT is(wrong, 0::bigint, 'words and containers') FROM differ(:first_id);

-- every 32nd entry of a container holds an offset instead of a length
INSERT INTO text_of (line) SELECT jsonb_agg('x' || i)::text FROM generate_series(1, 100) AS n, generate_series(1, n) AS i GROUP BY n;
INSERT INTO text_of (line) SELECT jsonb_object_agg('key' || i, i)::text FROM generate_series(1, 100) AS n, generate_series(1, n) AS i GROUP BY n;
INSERT INTO text_of (line) SELECT '{' || string_agg('"k' || i % 40 || '": ' || i, ', ') || '}' FROM generate_series(1, 100) AS i;
SELECT send() AS first_id \gset
SELECT is(lines - wrong, 201::bigint, 'containers of up to 100 children') FROM differ(:first_id);

INSERT INTO text_of (line) SELECT '"' || repeat('x', 1024 * 1024 - 2 + i) || '"' FROM generate_series(-1, 1) AS i;
SELECT send() AS first_id \gset
SELECT is(lines - wrong, 3::bigint, 'lines of about 1 MB, above which the server parses them') FROM differ(:first_id);

SELECT setseed(0.4711);
CREATE FUNCTION random_text() RETURNS text LANGUAGE sql AS $$
	SELECT '"' || string_agg(part, '') || '"'
	FROM (SELECT (ARRAY['a', 'bc', 'def ', 'ghijklmn', '012345678', '\"', '\\', '\/', '\n', '\t', '\u00e9', '\u20ac', '\ud83d\ude00', 'é', '€', '😀', '{', '}', '[', ',', ':'])[1 + floor(random() * 21)::int]
		FROM generate_series(0, floor(random() * 8)::int)) AS t (part)
$$;
CREATE FUNCTION random_space() RETURNS text LANGUAGE sql AS $$
	SELECT (ARRAY['', '', '', ' ', '  ', E'\t', E'\r'])[1 + floor(random() * 7)::int]
$$;
CREATE FUNCTION random_number() RETURNS text LANGUAGE sql AS $$
	SELECT (ARRAY['', '-'])[1 + floor(random() * 2)::int] || floor(random() * 10 ^ floor(random() * 15))::numeric::text ||
		(ARRAY['', '.' || lpad('', floor(random() * 6)::int, '0') || floor(random() * 10 ^ floor(random() * 9))::bigint, '.5000', 'e3'])[1 + floor(random() * 4)::int]
$$;
CREATE FUNCTION random_json(depth integer) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	kind double precision := random();
	parts text[] := '{}';
BEGIN
	IF depth = 0 OR kind < 0.5 THEN
		RETURN CASE floor(random() * 3) WHEN 0 THEN random_text() WHEN 1 THEN random_number() ELSE (ARRAY['true', 'false', 'null'])[1 + floor(random() * 3)::int] END;
	END IF;
	FOR i IN 1 .. floor(random() * (CASE WHEN random() < 0.1 THEN 70 ELSE 7 END))::int LOOP
		parts := parts || (CASE WHEN kind < 0.7 THEN '' ELSE random_text() || random_space() || ':' || random_space() END || random_json(depth - 1) || random_space());
	END LOOP;
	RETURN CASE WHEN kind < 0.7 THEN '[' ELSE '{' END || random_space() || array_to_string(parts, ',' || random_space()) || CASE WHEN kind < 0.7 THEN ']' ELSE '}' END;
END $$;
INSERT INTO text_of (line) SELECT random_space() || random_json(i % 5) || random_space() FROM generate_series(1, 2000) AS i;
SELECT send() AS first_id \gset
SELECT is(lines - wrong, 2000::bigint, '2000 values made by chance') FROM differ(:first_id);

-- what is not JSON is refused, and with the words that jsonb has for it
CREATE FUNCTION told(query text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE query;
	RETURN 'taken';
EXCEPTION WHEN OTHERS THEN
	RETURN sqlstate || ' ' || sqlerrm;
END $$;
CREATE TABLE broken (line text, as_jsonb text, as_lines text);
INSERT INTO broken (line)
SELECT overlay(line PLACING (ARRAY['', '{', '}', '[', ']', ',', ':', '"', '\', '0', '-', '.', 'e', 't', 'nul', '\u12', E'\x01'])[1 + floor(random() * 17)::int] FROM 1 + floor(random() * length(line))::int FOR floor(random() * 3)::int)
FROM (SELECT random_json(2) FROM generate_series(1, 1500)) AS t (line);
INSERT INTO broken (line) VALUES ('01'), ('-'), ('1.'), ('.5'), ('+1'), ('1e'), ('0x1'), ('tru'), ('nulll'), ('"'), ('"\'), ('"\u12"'), ('"\ud83d"'), ('"\ude00"'), ('"\ud83d\u0041"'), ('"\x"'), (E'"\t"'),
	('{'), ('{"a"}'), ('{"a":}'), ('{"a":1,}'), ('{,}'), ('{1:2}'), ('['), ('[1,]'), ('[,]'), ('[1 2]'), (']'), ('}'), ('{"a":1]'), ('[1}'), ('{}{}'), ('1,'), ('''a'''), ('NaN'), ('"\u0000"'), ('//'), (U&'\FEFF1');
DELETE FROM broken WHERE line = '';
UPDATE broken SET as_jsonb = told(format('SELECT %L::jsonb', line)), as_lines = told(format('SELECT evbus.publish_lines(''lines'', ''broken'', %L)', line));
SELECT is(count(*) FILTER (WHERE as_jsonb IS DISTINCT FROM as_lines), 0::bigint, 'what jsonb refuses is refused with the same words, what it takes is taken') FROM broken;
SELECT cmp_ok(count(*) FILTER (WHERE as_jsonb <> 'taken'), '>', 500::bigint, 'of which there were many') FROM broken;

-- transactions

SELECT stored() AS before \gset
BEGIN;
SELECT first_id FROM evbus.publish_lines('lines', 'rolled.back', E'1\n2') \gset
ROLLBACK;
BEGIN;
SELECT evbus.publish('lines', 'kept', '1') AS id \gset
SAVEPOINT s;
SELECT first_id FROM evbus.publish_lines('lines', 'rolled.back', E'1\n2') \gset
ROLLBACK TO s;
SELECT first_id FROM evbus.publish_lines('lines', 'kept', E'2\n3') \gset
COMMIT;
SELECT is(stored(), :before + 3::bigint, 'a rollback, also to a savepoint, leaves nothing behind');
SELECT cmp_ok(:first_id::bigint, '>', :id::bigint, 'ids grow from one call to the next');
SELECT throws_ok($$SET TRANSACTION READ ONLY; SELECT evbus.publish_lines('lines', 'a', '1')$$, '25006', NULL, 'not in a read-only transaction');

SELECT * FROM finish();
