-- Payloads compressed with dictionaries of their bus: few bytes, the very same when read, and what is damaged is told so.
\ir include/helpers.sql
SELECT plan(49);

-- An order as a shop would have it; n makes it differ.
CREATE FUNCTION an_order(n integer) RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_object('order_id', 1000000 + n, 'customer', jsonb_build_object('id', n * 7919 % 100000, 'name', 'Customer ' || n * 7919 % 100000),
		'status', (ARRAY['created', 'paid', 'shipped'])[1 + n % 3], 'total', round(n * 37 % 100000 / 100.0, 2), 'currency', 'EUR',
		'items', jsonb_build_array(jsonb_build_object('sku', 'A-' || lpad((n * 31 % 10000)::text, 5, '0'), 'n', 1 + n % 5), jsonb_build_object('sku', 'B-' || lpad((n * 17 % 10000)::text, 5, '0'), 'n', 2)),
		'note', 'no note was left by the buyer')
$$;
CREATE FUNCTION publish_orders(bus text, lo integer, hi integer) RETURNS bigint LANGUAGE sql AS $$
	SELECT min(id) FROM evbus.publish_batch(bus, '{order}', (SELECT array_agg(an_order(n) ORDER BY n) FROM generate_series(lo, hi) AS n)) AS id
$$;
SELECT evbus.create_bus('d', compression => 'dictionary');
SELECT evbus.create_bus('z');
SELECT evbus.create_bus('raw', compression => 'none');
SELECT evbus.subscribe('d', 's') AS position \gset

-- training

SELECT throws_ok($$SELECT evbus.train_dictionary('d')$$, '55000', 'bus "d" has too few events for a dictionary', 'a bus without events has nothing to train on');
SELECT publish_orders('d', 1, 99) AS id \gset
SELECT throws_ok($$SELECT evbus.train_dictionary('d')$$, '55000', 'bus "d" has too few events for a dictionary', 'nor has one with 99');
SELECT throws_ok($$SELECT evbus.train_dictionary('z')$$, '55000', 'bus "z" does not use dictionaries', 'one that is not to use any says so');
SELECT count(evbus.publish('raw', 'small', '[1]')) AS n FROM generate_series(1, 200) \gset
SELECT throws_ok($$SELECT evbus.train_dictionary('raw', dry_run => true)$$, '55000', 'bus "raw" has too few events for a dictionary', 'payloads too small to be compressed do not count');
SELECT evbus.publish('d', 'order', an_order(100)) AS id \gset
SELECT is(count(*), 0::bigint, 'without a dictionary all of them are packed') FROM evbus.event_log WHERE get_byte(payload, 0) <> 2;
SELECT dictionary_id IS NULL AS dry, trained_on, tested_on FROM evbus.train_dictionary('d', dry_run => true) \gset
SELECT ok(:'dry' AND :trained_on = 80 AND :tested_on = 20, 'a hundred will do; a fifth is kept out to be tested');
SELECT is_empty('SELECT 1 FROM evbus.dictionary', 'dry_run keeps nothing');
SELECT publish_orders('d', 101, 2000) AS id \gset
BEGIN;
SELECT * FROM evbus.train_dictionary('d', samples => 1500, size => 4096) \gset first_
SELECT evbus.publish('d', 'order', an_order(1)) AS id \gset
COMMIT;
SELECT is(:first_trained_on + :first_tested_on, 1500, 'samples bounds them');
SELECT cmp_ok(:first_dictionary_bytes, '<=', 4096, 'size bounds the dictionary');
SELECT cmp_ok(:first_stored_bytes, '<', 0.3 * :first_jsonb_bytes, 'it is told to make less than 0.3 of jsonb');
CREATE FUNCTION codec(id bigint) RETURNS integer LANGUAGE sql AS 'SELECT get_byte(payload, 0) FROM evbus.event_log WHERE event_id = id';
SELECT is(codec(:id), 2, 'the transaction that trains does not use it yet');
SELECT evbus.publish('d', 'order', an_order(1)) AS id \gset
SELECT is(codec(:id), 3, 'from its commit on it is used');
SELECT is(history.payload, an_order(1), 'and read') FROM evbus.history WHERE event_id = :id;
SELECT cmp_ok(length(payload), '<=', (pg_column_size(an_order(1)) * 0.3)::integer, 'in 0.3 of the bytes of jsonb') FROM evbus.event_log WHERE event_id = :id;
BEGIN;
SELECT evbus.train_dictionary('d') AS t \gset
SAVEPOINT s;
SELECT evbus.publish('d', 'order', an_order(1)) AS rolled_back \gset
ROLLBACK;
SELECT evbus.publish('d', 'order', an_order(1)) AS id \gset
SELECT is(get_byte(payload, 1), :first_dictionary_id, 'one whose training was rolled back is not used') FROM evbus.event_log WHERE event_id = :id;
SELECT is(count(*), 1::bigint, 'and is not there') FROM evbus.dictionary;
SELECT ok(secret IS NOT NULL AND length(secret) = 16 AND dictionary_bytes = length(raw) AND samples = 1200, 'what is kept of it') FROM evbus.dictionary JOIN evbus.dictionary_list USING (dictionary_id, samples);

-- every shape, by several dictionaries at once

CREATE TABLE given (n integer GENERATED ALWAYS AS IDENTITY, payload jsonb);
CREATE FUNCTION send() RETURNS bigint LANGUAGE sql AS $$ SELECT min(id) FROM evbus.publish_batch('d', '{a}', (SELECT array_agg(payload ORDER BY n) FROM given)) AS id $$;
CREATE FUNCTION differ(first_id bigint) RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FROM (SELECT payload, row_number() OVER (ORDER BY n) FROM given) AS g (payload, n)
	WHERE (SELECT (SELECT x FROM (SELECT h.payload) AS x) *= (SELECT y FROM (SELECT g.payload) AS y) FROM evbus.history h WHERE h.event_id = first_id + g.n - 1) IS NOT TRUE
$$;
INSERT INTO given (payload) SELECT to_jsonb(repeat('x', i)) FROM generate_series(0, 300, 7) AS i;
INSERT INTO given (payload) SELECT an_order(i) || jsonb_build_object('number', n) FROM generate_series(1, 3) AS i, unnest('{1e300,1e-300,-1e1000,0,-0.05,123456789012345678901234567890.5,9999999999999999}'::numeric[]) AS n;
INSERT INTO given (payload) SELECT jsonb_build_object('é€😀 "quoted"', repeat(c, 50), 'b', true, 'n', null, 'e', '[[], {}, [{}]]'::jsonb) FROM unnest('{é,😀,\\," "}'::text[]) AS c;
INSERT INTO given (payload) SELECT jsonb_agg(an_order(i)) FROM generate_series(1, 130) AS n, generate_series(1, n) AS i GROUP BY n;
INSERT INTO given (payload) SELECT jsonb_object_agg('key' || i, CASE i % 3 WHEN 0 THEN to_jsonb(i * 1.5) WHEN 1 THEN to_jsonb('x' || i) ELSE '[1, {"a": 2}]' END) FROM generate_series(1, 130) AS n, generate_series(1, n) AS i GROUP BY n;
INSERT INTO given (payload) VALUES ('null'), ('true'), ('[]'), ('{}'), ((repeat('[', 1000) || repeat(']', 1000))::jsonb), ((repeat('{"a": ', 150) || '1' || repeat('}', 150))::jsonb),
	(to_jsonb(repeat('é', 20000))), (to_jsonb(repeat('0123456789', 10000))), ((SELECT jsonb_agg(md5(i::text)) FROM generate_series(1, 2000) AS i)), ((SELECT jsonb_agg(md5(i::text)) FROM generate_series(1, 1500) AS i));
SELECT send() AS first_id \gset
SELECT is(differ(:first_id), 0::bigint, 'every shape comes back byte for byte');
SELECT is((SELECT string_agg(DISTINCT get_byte(payload, 0)::text, ' ') FROM evbus.event_log WHERE event_id >= :first_id), '1 2 3', 'some compressed with the dictionary, small ones packed, large ones in a frame of their own');
SELECT * FROM evbus.train_dictionary('d', size => 131072) \gset second_
SELECT cmp_ok(:second_dictionary_id, '>', :first_dictionary_id, 'a second dictionary');
SET evbus.compress_level = 19;
SELECT send() AS second_id \gset
RESET evbus.compress_level;
SELECT is(differ(:second_id), 0::bigint, 'does as well, at the highest level');
SELECT is(differ(:first_id), 0::bigint, 'and what was compressed with the first is read as before');
SELECT is((SELECT count(DISTINCT get_byte(payload, 1)) FROM evbus.event_log WHERE get_byte(payload, 0) = 3), 2::bigint, 'both are in use');
SELECT is((SELECT array_agg(DISTINCT (dictionary_id, retired_at IS NULL)) IS NOT NULL FROM evbus.dictionary_list), true, 'both are listed');
SELECT is((SELECT string_agg(md5(payload::text), '' ORDER BY event_id) FROM evbus.history WHERE event_id BETWEEN :second_id AND :second_id + (SELECT count(*) FROM given) - 1),
	(SELECT string_agg(md5(payload::text), '' ORDER BY n) FROM given), 'history shows them');
SELECT is((SELECT count(*) FROM evbus.history_page('d', filter => '$ ? (@.status == "paid")', "limit" => 1000)), (SELECT count(*) FROM evbus.history WHERE bus = 'd' AND payload @? '$ ? (@.status == "paid")'), 'history_page() filters them');
-- through the ring, as rows and as lines, and from the log
CREATE TABLE seen AS SELECT event_id, payload FROM take('s', (SELECT count(*) FROM evbus.history WHERE bus = 'd')::integer);
SELECT is((SELECT count(*) FROM seen JOIN evbus.history USING (event_id) WHERE seen.payload = history.payload), (SELECT count(*) FROM evbus.history WHERE bus = 'd'), 'all are delivered as they were');
SELECT evbus.subscribe('d', 'lines', start_from => 'beginning') AS position \gset
SELECT is((SELECT string_agg(md5((l::jsonb -> 'payload')::text), '') FROM evbus.receive_lines('lines', 10000, wait => '10 seconds') AS r, string_to_table(r.lines, E'\n') AS l),
	(SELECT string_agg(md5(payload::text), '' ORDER BY event_id) FROM evbus.history WHERE bus = 'd'), 'as lines, too');
CREATE TABLE handled (event_id bigint, payload jsonb);
CREATE FUNCTION handle(e evbus.event[]) RETURNS void LANGUAGE sql AS $$ INSERT INTO handled SELECT event_id, payload FROM unnest(e) $$;
SELECT evbus.subscribe('d', 'handler', start_from => 'beginning', handler => 'handle(evbus.event[])') AS position \gset
SELECT becomes('SELECT count(*)::text FROM handled JOIN evbus.history h USING (event_id) WHERE h.payload = handled.payload', (SELECT count(*)::text FROM evbus.history WHERE bus = 'd'), 'and to a handler');
SELECT is((SELECT count(*) FROM evbus.publish_lines('d', 'order', an_order(5)::text || E'\n' || an_order(6))), 1::bigint, 'lines are published');
SELECT is((SELECT string_agg(get_byte(payload, 0)::text, ' ') FROM (SELECT payload FROM evbus.event_log ORDER BY event_id DESC LIMIT 2) AS l), '3 3', 'and compressed');
SELECT evbus.publish('d', 'order', an_order(7), headers => an_order(8)) AS id \gset
SELECT is((SELECT get_byte(headers, 0) || ' ' || get_byte(payload, 0) FROM evbus.event_log WHERE event_id = :id), '2 3', 'headers are only packed');
SELECT is((SELECT headers FROM evbus.history WHERE event_id = :id), an_order(8), 'and read');

-- settings

SET evbus.compress_threshold = -1;
SELECT evbus.publish('d', 'order', an_order(1)) AS id \gset
SELECT is(codec(:id), 2, 'compress_threshold = -1 turns off dictionaries, too');
RESET evbus.compress_threshold;
SELECT evbus.alter_bus('d', compression => 'zstd');
SELECT evbus.publish('d', 'order', an_order(1)) AS id \gset
SELECT is(codec(:id), 2, 'without dictionaries small ones are packed');
SELECT evbus.publish('d', 'order', (SELECT jsonb_agg(an_order(i)) FROM generate_series(1, 20) AS i)) AS id \gset
SELECT is(codec(:id), 1, 'large ones compressed');
SELECT evbus.publish('raw', 'order', (SELECT jsonb_agg(an_order(i)) FROM generate_series(1, 20) AS i)) AS id \gset
SELECT is(codec(:id), 2, 'with none they are not');
SELECT is((SELECT string_agg(bus || ' ' || compression, ', ' ORDER BY bus) FROM evbus.bus_list WHERE bus IN ('d', 'raw', 'z')), 'd zstd, raw none, z zstd', 'bus_list tells');
SELECT throws_ok($$SELECT evbus.create_bus('x', compression => 'lz4')$$, '22023', $$compression must be 'none', 'zstd' or 'dictionary'$$, 'a word that means nothing is refused');
SELECT throws_ok($$SELECT evbus.alter_bus('d', compression => '')$$, '22023', NULL, 'by alter_bus, too');
SELECT evbus.alter_bus('d', compression => 'dictionary');
CREATE ROLE evbus_test_stranger;
GRANT USAGE ON SCHEMA evbus TO evbus_test_stranger;
GRANT EXECUTE ON FUNCTION evbus.train_dictionary(text, integer, integer, boolean) TO evbus_test_stranger;
SET ROLE evbus_test_stranger;
SELECT throws_ok($$SELECT evbus.train_dictionary('d')$$, '42501', 'permission denied for bus "d"', 'a dictionary is made by who manages the bus');
SELECT throws_ok($$SELECT * FROM evbus.dictionary_list$$, '42501', NULL, 'others do not see the list');
RESET ROLE;

-- damage

SELECT evbus.train_dictionary('d') AS t \gset
SELECT publish_orders('d', 1, 3) AS id \gset
CREATE FUNCTION payload_of(id bigint) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN (SELECT payload FROM evbus.history WHERE event_id = id);
EXCEPTION WHEN OTHERS THEN
	RETURN sqlstate || ': ' || sqlerrm;
END $$;
-- Each byte of the second one becomes each of some others.
CREATE TABLE damaged (at integer, told text, neighbours boolean);
DO $$
DECLARE
	id bigint := (SELECT max(event_id) - 1 FROM evbus.event_log);
	good bytea := (SELECT payload FROM evbus.event_log WHERE event_id = id);
BEGIN
	FOR at IN 0 .. length(good) - 1 LOOP
		FOR other IN 1 .. 8 LOOP
			UPDATE evbus.event_log SET payload = set_byte(good, at, get_byte(good, at) # (1 << other - 1)) WHERE event_id = id;
			INSERT INTO damaged VALUES (at, payload_of(id), payload_of(id - 1)::jsonb = an_order(1) AND payload_of(id + 1)::jsonb = an_order(3));
		END LOOP;
	END LOOP;
	UPDATE evbus.event_log SET payload = good WHERE event_id = id;
END $$;
SELECT is(count(*), 0::bigint, 'each bit of a payload flipped: an error that names the event') FROM damaged WHERE told NOT LIKE 'XX001: stored data of event ' || :id + 1 || ' cannot be decoded';
SELECT cmp_ok(count(*), '>=', 200::bigint, 'of many') FROM damaged;
SELECT is(bool_and(neighbours), true, 'and its neighbours are read') FROM damaged;
SELECT is(payload_of(:id + 1)::jsonb, an_order(2), 'put right, it is read again');
SELECT throws_matching($$SELECT evbus._decode('\x03ff7f0000000000000000000000000000')$$, 'cannot be decoded', 'a dictionary that does not exist');
-- A frame by itself has a checksum.
SELECT evbus.publish('z', 'order', (SELECT jsonb_agg(an_order(i)) FROM generate_series(1, 20) AS i)) AS frame \gset
SELECT payload AS good FROM evbus.event_log WHERE event_id = :frame \gset
CREATE FUNCTION told(bytes bytea) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN evbus._decode(bytes);
EXCEPTION WHEN OTHERS THEN
	RETURN sqlstate;
END $$;
SELECT is(count(*), 0::bigint, 'each byte of a large frame flipped: an error, or what it was')
FROM generate_series(0, length(:'good'::bytea) - 1) AS at, generate_series(0, 7) AS i, told(set_byte(:'good'::bytea, at, get_byte(:'good'::bytea, at) # (1 << i))) AS t
WHERE t <> 'XX001' AND t::jsonb IS DISTINCT FROM (SELECT jsonb_agg(an_order(i)) FROM generate_series(1, 20) AS i);

-- noise; that with the right codes is for test/t/038_dictionary.pl

SELECT setseed(0.4711);
CREATE TABLE noise AS SELECT told('\x03' || substr(payload, 2, i % 12) || decode(left(md5(random()::text) || md5(random()::text), 2 * floor(random() * 32)::int), 'hex')) AS answer
	FROM generate_series(1, 100000) AS i, (SELECT payload FROM evbus.event_log WHERE event_id = :id) AS p;
SELECT is(string_agg(DISTINCT answer, ' '), 'XX001', 'noise is refused') FROM noise;

SELECT * FROM finish();
