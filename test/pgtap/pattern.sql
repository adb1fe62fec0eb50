-- Patterns: '*' is exactly one word, '#' is zero or more words, everything else is itself.
\ir include/helpers.sql
SELECT plan(56);

-- The rule in a few lines, to compare the real thing with.
CREATE FUNCTION expected(pattern text[], type text[]) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	IF cardinality(pattern) = 0 THEN
		RETURN cardinality(type) = 0;
	ELSIF pattern[1] = '#' THEN
		RETURN expected(pattern[2:], type) OR (cardinality(type) > 0 AND expected(pattern, type[2:]));
	ELSIF cardinality(type) = 0 THEN
		RETURN false;
	END IF;
	RETURN pattern[1] IN ('*', type[1]) AND expected(pattern[2:], type[2:]);
END $$;
SELECT ok(expected('{a,*,#}', '{a,b}') AND expected('{a,#,c}', '{a,c}') AND NOT expected('{a,*}', '{a}') AND NOT expected('{a}', '{b}'), 'the rule in this file is right about four cases');

CREATE TABLE pattern (pattern text PRIMARY KEY);
INSERT INTO pattern VALUES
	('#'), ('*'), ('a'), ('b'), ('a.b'), ('*.b'), ('a.*'), ('*.*'), ('a.#'), ('#.a'), ('#.b'), ('#.b.#'), ('a.#.b'), ('a.*.b'), ('a.#.*'), ('*.#'),
	('#.*'), ('#.#'), ('#.a.#.b.#'), ('*.*.*'), ('*.#.*'), ('a.b.c.d.e.f'), ('a.#.c.#.e.#'), ('#.#.#.#.#.#.x'), ('order.created'), ('Order.created'),
	('order.*'), ('order.#.v1'), ('ord%.creat_d'), ('order.'||repeat('x', 100)), ('注文.*');

CREATE TABLE type (type text PRIMARY KEY);
INSERT INTO type
SELECT array_to_string(ARRAY[w1, w2, w3, w4], '.')
FROM unnest('{a,b,x}'::text[]) AS w1, unnest('{a,b,c,NULL}'::text[]) AS w2, unnest('{b,x,NULL}'::text[]) AS w3, unnest('{b,NULL}'::text[]) AS w4
GROUP BY 1;
INSERT INTO type VALUES
	('a.b.c.d.e.f'), ('a.c.e'), ('a.c'), ('aa'), ('ab'), ('a.bb'), ('order'), ('order.created'), ('Order.created'), ('order.created.v1'), ('order.v1'), ('order.a.b.v1'),
	('order.changed'), ('orders.created'), ('ord%.creat_d'), ('order.'||repeat('x', 100)), ('注文.作成'), ('注文')
ON CONFLICT DO NOTHING;

SELECT evbus.create_bus('b');
SELECT evbus.subscribe('b', md5(pattern), types => ARRAY[pattern, 'the.end']) AS position FROM pattern \g /dev/null
SELECT count(evbus.publish('b', type, '1')) AS n FROM type \gset
SELECT evbus.publish('b', 'the.end', '1') AS id \gset

-- What each subscription receives before the closing event that all of them ask for.
CREATE FUNCTION received(subscription text) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
	types text[] := '{}';
	deadline timestamptz := clock_timestamp() + interval '20 seconds';
	t text;
BEGIN
	WHILE NOT 'the.end' = ANY (types) AND clock_timestamp() < deadline LOOP
		FOR t IN SELECT r.type FROM evbus.receive(received.subscription, 1000, wait => '500 milliseconds') AS r LOOP
			types := types || t;
		END LOOP;
	END LOOP;
	RETURN (SELECT array_agg(x ORDER BY x COLLATE "C") FROM unnest(types) AS x);
END $$;
SELECT is(received(md5(pattern)),
	(SELECT array_agg(type ORDER BY type COLLATE "C") FROM (TABLE type UNION SELECT 'the.end') AS t
	 WHERE type = 'the.end' OR expected(string_to_array(pattern, '.'), string_to_array(type, '.'))),
	'what ' || left(pattern, 30) || ' receives')
FROM pattern;

-- several patterns

SELECT evbus.subscribe('b', 'both', types => '{a.#,*.b,#}') AS position \gset
SELECT evbus.subscribe('b', 'twice', types => '{a.b,a.b}') AS position \gset
SELECT evbus.subscribe('b', 'many', types => (SELECT array_agg('t' || i) FROM generate_series(1, 100) AS i)) AS position \gset
SELECT evbus.publish('b', 'a.b', '1') AS id \gset
SELECT evbus.publish('b', 't100', '1') AS id \gset
SELECT is(consume('both', 2), 'a.b t100', 'an event that several patterns match is received once');
SELECT is(consume('twice', 1), 'a.b', 'a pattern may be given twice');
SELECT is_empty($$SELECT * FROM evbus.receive('twice')$$, 'and still delivers once');
SELECT is(consume('many', 1), 't100', 'the last of a hundred patterns counts as the first does');
SELECT is_empty($$SELECT * FROM evbus.receive('many')$$, 'and nothing else is for it');
SELECT becomes(format('SELECT lag::text FROM evbus.subscription_lag WHERE subscription = %L', subscription), '0',
	'events of other types, once looked at, are no lag: ' || subscription)
FROM (VALUES ('twice'), ('many')) AS v (subscription);

-- patterns refused

SELECT throws_ok(format('SELECT evbus.subscribe(''b'', ''bad'', types => ARRAY[%L])', pattern), '22023', NULL, 'a pattern is refused: ' || about)
FROM (VALUES
	('', 'empty'), ('.', 'only a dot'), ('.a', 'first word empty'), ('a.', 'last word empty'), ('a..b', 'word in the middle empty'),
	('a b', 'space'), (E'a\nb', 'line feed'), (repeat('x', 256), '256 bytes'), ('a*', 'star inside a word'), ('a.#b', 'hash inside a word'), ('**', 'two stars')) AS v (pattern, about);
SELECT throws_ok($$SELECT evbus.subscribe('b', 'bad', types => '{}')$$, '22023', NULL, 'no pattern at all is refused');
SELECT throws_ok($$SELECT evbus.alter_subscription('both', types => '{}')$$, '22023', NULL, 'no pattern at all is refused also later');
SELECT throws_ok($$SELECT evbus.alter_subscription('both', types => '{a..b}')$$, '22023', NULL, 'a malformed pattern is refused also later');
SELECT throws_ok($$SELECT evbus.subscribe('b', 'bad', types => '{{a,b},{c,d}}')$$, '22023', NULL, 'patterns in two dimensions are refused');
-- matching takes no exponential time
SELECT evbus.subscribe('b', 'evil', types => ARRAY[repeat('#.a.', 60) || 'z']) AS position \gset
SELECT evbus.subscribe('b', 'evil too', types => ARRAY[rtrim(repeat('#.*.', 60), '.'), 'z']) AS position \gset
SELECT evbus.publish('b', repeat('a.', 120) || 'b', '1') AS id \gset
SELECT evbus.publish('b', rtrim(repeat('a.', 60), '.') || '.z', '1') AS id \gset
SELECT is(consume('evil', 1), rtrim(repeat('a.', 60), '.') || '.z', 'a pattern of sixty # is matched in good time');
SELECT is(consume('evil too', 2), repeat('a.', 120) || 'b ' || rtrim(repeat('a.', 60), '.') || '.z', 'also where each of them is followed by *');

SELECT * FROM finish();
