-- publish_changes(): every change of a row is one event, with the row before and after, whoever writes and however.
\ir include/helpers.sql
SELECT plan(103);

DROP ROLE IF EXISTS evbus_test_owner, evbus_test_writer, evbus_test_trigger;
SELECT evbus.create_bus('shop');

-- The events since the last look, in order: type, key, old row, new row.
CREATE TABLE looked (upto bigint);
INSERT INTO looked VALUES (0);
CREATE FUNCTION news() RETURNS TABLE (type text, key text, old jsonb, new jsonb) LANGUAGE sql AS $$
	WITH before AS (SELECT upto FROM looked), now_ AS (UPDATE looked SET upto = (SELECT coalesce(max(event_id), 0) FROM evbus.history))
	SELECT h.type, h.key, h.payload->'old', h.payload->'new' FROM evbus.history h, before WHERE h.event_id > before.upto ORDER BY h.event_id
$$;
CREATE FUNCTION told() RETURNS text LANGUAGE sql AS $$SELECT coalesce(string_agg(n.type || coalesce(' ' || n.key, ''), ', '), '') FROM news() AS n$$;
-- An assertion about the events of a statement, which are in the history when it has committed.
CREATE PROCEDURE tells(statement text, expected text, description text, INOUT tap text DEFAULT NULL) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM * FROM news();
	EXECUTE statement;
	COMMIT;
	tap := is(told(), expected, description);
END $$;
CREATE FUNCTION message_of(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	said text;
	hint text;
BEGIN
	EXECUTE statement;
	RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS said = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
	RETURN said || coalesce(' | ' || nullif(hint, ''), '');
END $$;

-- one table, every statement

CREATE TABLE item (id integer PRIMARY KEY, name text, price numeric, double_price numeric GENERATED ALWAYS AS (price * 2) STORED);
CALL tells($$SELECT evbus.publish_changes('item', 'shop')$$, '', 'publish_changes() itself publishes nothing');
CALL tells($$INSERT INTO item VALUES (1, 'cup', 9.95), (2, 'plate', NULL)$$, 'item.inserted 1, item.inserted 2', 'INSERT: an event for each row, in order, with the primary key as its key');
INSERT INTO item VALUES (3, E'a "b" \\ \n ü 注 \u0001', 0.10);
SELECT results_eq('SELECT * FROM news()', $$SELECT 'item.inserted', '3', 'null'::jsonb, to_jsonb(i) FROM item i WHERE id = 3$$, 'the new row is as to_jsonb() has it, generated columns too; there is no old one');
CREATE TABLE was AS SELECT * FROM item;
UPDATE item SET price = price + 1 WHERE id <> 2;
SELECT results_eq('SELECT * FROM news()', $$SELECT 'item.updated', i.id::text, to_jsonb(w), to_jsonb(i) FROM item i JOIN was w USING (id) WHERE id <> 2 ORDER BY id$$, 'UPDATE: the old row and the new one');
CALL tells('UPDATE item SET price = price', '', 'an UPDATE that changes nothing publishes nothing');
CALL tells('UPDATE item SET name = name, price = CASE id WHEN 2 THEN 5 ELSE price END', 'item.updated 2', 'only rows that changed are told');
CALL tells('UPDATE item SET price = 5.0 WHERE id = 2', 'item.updated 2', 'another spelling of the same number is a change: it would show');
CALL tells('UPDATE item SET price = NULL WHERE id = 2', 'item.updated 2', 'to NULL is a change');
CALL tells('UPDATE item SET id = 20 WHERE id = 2', 'item.updated 20', 'a key that changes: the event has the new one as its key');
SELECT is((SELECT payload #>> '{old,id}' || ' ' || (payload #>> '{new,id}') FROM evbus.history ORDER BY event_id DESC LIMIT 1), '2 20', 'and both in its rows');
CALL tells('UPDATE item SET id = CASE id WHEN 1 THEN 100 WHEN 3 THEN 300 ELSE 200 END', 'item.updated 100, item.updated 300, item.updated 200', 'all keys changed in one statement');
SELECT is((SELECT string_agg((payload #>> '{old,id}') || '>' || (payload #>> '{new,id}'), ' ') FROM (SELECT payload FROM evbus.history ORDER BY event_id DESC LIMIT 3) AS h), '20>200 3>300 1>100', 'each old row is with its own new row');
CALL tells('DELETE FROM item WHERE id = 200', 'item.deleted 200', 'DELETE: key of the row that was');
SELECT is((SELECT payload->'new' FROM evbus.history ORDER BY event_id DESC LIMIT 1), 'null', 'there is no new row');
SELECT is((SELECT payload #>> '{old,name}' FROM evbus.history ORDER BY event_id DESC LIMIT 1), 'plate', 'but an old one');
CALL tells('DELETE FROM item WHERE false', '', 'a statement without rows publishes nothing');
CALL tells($$INSERT INTO item VALUES (1, 'x', 1), (100, 'y', 1) ON CONFLICT (id) DO UPDATE SET name = 'conflict'$$, 'item.updated 100, item.inserted 1', 'ON CONFLICT DO UPDATE: what was updated, then what was inserted');
CALL tells($$INSERT INTO item VALUES (1, 'x', 1) ON CONFLICT DO NOTHING$$, '', 'ON CONFLICT DO NOTHING: nothing');
CALL tells($$MERGE INTO item USING (VALUES (1), (4), (100)) AS v (n) ON id = n WHEN MATCHED AND n = 1 THEN UPDATE SET name = 'merged' WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (n, 'merged', 2)$$,
	'item.deleted 100, item.updated 1, item.inserted 4', 'MERGE: all three');
SELECT is(told(), '', 'nothing is told twice');
COPY item (id, name) FROM stdin;
5	copied
6	copied
\.
SELECT is(told(), 'item.inserted 5, item.inserted 6', 'COPY');
CALL tells($$WITH gone AS (DELETE FROM item WHERE id = 5 RETURNING *), again AS (UPDATE item SET name = 'w' WHERE id = 6) INSERT INTO item (id, name) SELECT id + 50, name FROM gone$$,
	'item.deleted 5, item.inserted 55, item.updated 6', 'writing WITH: each of its statements');
CALL tells('TRUNCATE item', 'item.truncated', 'TRUNCATE: one event without a key');
SELECT is((SELECT payload FROM evbus.history ORDER BY event_id DESC LIMIT 1), '{"old": null, "new": null}', 'and without rows');
SELECT lives_ok($$DO 'BEGIN INSERT INTO item (id) VALUES (7); RAISE EXCEPTION ''no''; EXCEPTION WHEN raise_exception THEN NULL; END'$$, 'a change that is undone');
SELECT is(told(), '', 'is not told');
INSERT INTO item SELECT i, 'n', i FROM generate_series(1, 5000) AS i;
UPDATE item SET price = price + 1;
SELECT results_eq('SELECT type, key FROM news()', $$SELECT 'item.' || t, g.i::text FROM unnest('{inserted,updated}'::text[]) WITH ORDINALITY AS v (t, n), generate_series(1, 5000) AS g (i) ORDER BY n, g.i$$, 'thousands of rows');
SELECT is((SELECT count(*) FROM evbus.history WHERE type = 'item.updated' AND (payload #>> '{new,price}')::numeric = (payload #>> '{old,price}')::numeric + 1 AND payload #> '{new,id}' = payload #> '{old,id}' AND key = payload #>> '{old,id}' AND (payload #>> '{old,id}')::numeric BETWEEN 1 AND 5000
	AND payload #>> '{new,name}' = 'n'), 5000::bigint, 'each with its own old row');

-- which columns

SELECT evbus.publish_changes('item', 'shop', 'item.price', columns => '{price}');
DELETE FROM item WHERE id > 3;
UPDATE item SET name = 'other';
SELECT is(told(), (SELECT string_agg('item.price.deleted ' || i, ', ') FROM generate_series(4, 5000) AS i), 'called again it replaces; an UPDATE of columns that are not published is not told');
CALL tells('UPDATE item SET price = 7, name = ''x'' WHERE id = 1', 'item.price.updated 1', 'one of a column that is, is');
SELECT is((SELECT payload FROM evbus.history ORDER BY event_id DESC LIMIT 1), '{"old": {"id": 1, "price": 2}, "new": {"id": 1, "price": 7}}', 'rows have the columns asked for, and those of the key');
SELECT evbus.publish_changes('item', 'shop', columns => '{price}', key_columns => '{name,id}');
CALL tells('UPDATE item SET price = 8 WHERE id = 1', 'item.updated ["x", 1]', 'several key columns are a JSON array');
CALL tells('UPDATE item SET name = NULL WHERE id = 1', 'item.updated [null, 1]', 'a column of the key counts as published');
SELECT evbus.publish_changes('item', 'shop', key_columns => '{name}');
CALL tells('UPDATE item SET price = 9 WHERE id = 1', 'item.updated', 'a key column that is NULL: no key');
UPDATE item SET name = E'a "b" \\ ü' WHERE id = 1;
SELECT results_eq('SELECT key FROM news()', $$VALUES (E'a "b" \\ ü')$$, 'one key column is its text, not its JSON');

-- columns that come, go and change their names

SELECT evbus.publish_changes('item', 'shop');
ALTER TABLE item DROP COLUMN double_price, ADD COLUMN stock integer DEFAULT 1, ALTER COLUMN price TYPE text;
ALTER TABLE item RENAME COLUMN id TO item_id;
UPDATE item SET name = 'a', stock = 2 WHERE item_id = 1;
SELECT results_eq('SELECT key, new FROM news()', $$VALUES ('1', '{"item_id": 1, "name": "a", "price": "9", "stock": 2}'::jsonb)$$, 'all columns are those of the moment, and so is the primary key');
ALTER TABLE item RENAME TO goods;
CALL tells($$UPDATE goods SET name = 'b' WHERE item_id = 1$$, 'item.updated 1', 'a renamed table keeps the type of its events');
ALTER TABLE goods RENAME TO item;
SELECT evbus.publish_changes('item', 'shop', columns => '{stock}', key_columns => '{item_id}');
ALTER TABLE item RENAME COLUMN stock TO in_stock;
SELECT throws_ok('UPDATE item SET in_stock = 3', '42703', NULL, 'a column that was named and is gone is an error, and no silence');
SELECT is(message_of('UPDATE item SET in_stock = 3'), 'column "stock" of table "item" does not exist | If it was renamed or dropped, call evbus.publish_changes() again, or evbus.stop_publish_changes().', 'which tells what to do');
SELECT evbus.publish_changes('item', 'shop', columns => '{in_stock}');
CALL tells('UPDATE item SET in_stock = 3 WHERE item_id = 1', 'item.updated 1', 'and then it works again');

-- the same text whatever the session's settings

CREATE TABLE odd (id timestamptz PRIMARY KEY, b boolean, i2 smallint, i8 bigint, f4 real, f8 double precision, n numeric, v varchar(9), c char(5), d date, t timestamp, tz timestamptz[], span interval, bytes bytea,
	u uuid, j json, jb jsonb, pair evbus.event, words text[], r int4range, time_ time);
SELECT evbus.publish_changes('odd', 'shop');
CREATE FUNCTION fill() RETURNS void LANGUAGE sql AS $$
	INSERT INTO odd VALUES ('2026-01-01 12:00+02', true, -1, 9007199254740993, 0.1, 0.1, 1.50, 'v', 'c', '2026-02-03', '2026-02-03 04:05:06.7', '{2026-01-01 12:00+02}', '1 day 2 hours', '\xdead',
		'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"z": 1 , "a": [1.0e2]}', '{"z": 1.10}', ROW(1, 'b', 't', NULL, '{}', NULL, '2026-01-01 12:00+02', 1, 1, false), '{"a b",NULL}', '[1,3)', '12:00');
	DELETE FROM odd
$$;
SET TimeZone = 'UTC';
SELECT fill();
CREATE TABLE plain AS SELECT * FROM news();
INSERT INTO odd SELECT * FROM odd;
CREATE TEMP TABLE shown (row_ jsonb);
CREATE FUNCTION show_row() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO shown VALUES (to_jsonb(NEW)); RETURN NULL; END$$;
CREATE TRIGGER show_row AFTER INSERT ON odd FOR EACH ROW EXECUTE FUNCTION show_row();
SELECT fill();
DROP TRIGGER show_row ON odd;
SELECT is((SELECT new FROM plain WHERE type = 'odd.inserted'), (SELECT row_ FROM shown), 'every type is as to_jsonb() has it, with times in UTC');
SELECT is((SELECT string_agg(DISTINCT key, ' ') FROM plain), '2026-01-01T10:00:00+00:00', 'so is a time as key');
SELECT isnt(told(), '', 'told');
SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German'; SET IntervalStyle = 'sql_standard'; SET bytea_output = 'escape'; SET extra_float_digits = -5;
BEGIN;
SELECT fill();
SELECT is(concat_ws(' ', current_setting('TimeZone'), current_setting('DateStyle'), current_setting('IntervalStyle'), current_setting('bytea_output'), current_setting('extra_float_digits')),
	'Asia/Tokyo German, DMY sql_standard escape -5', 'a session with other settings has them afterwards');
COMMIT;
SELECT set_eq('SELECT * FROM news()', 'SELECT * FROM plain', 'and tells the same');
CREATE TABLE times (id timestamptz PRIMARY KEY, d date, t timestamp);
SELECT evbus.publish_changes('times', 'shop');
INSERT INTO times VALUES ('2026-01-01 12:00+02', '2026-02-03', '2026-02-03 04:05:06');
SELECT results_eq('SELECT key, new FROM news()', $$VALUES ('2026-01-01T10:00:00+00:00', '{"id": "2026-01-01T10:00:00+00:00", "d": "2026-02-03", "t": "2026-02-03T04:05:06"}'::jsonb)$$, 'also where no other type needs settings');
RESET TimeZone; RESET DateStyle; RESET IntervalStyle; RESET bytea_output; RESET extra_float_digits;
CREATE TABLE special (id integer PRIMARY KEY, n numeric, f double precision, d date);
SELECT evbus.publish_changes('special', 'shop');
INSERT INTO special VALUES (1, 'NaN', 'Infinity', 'infinity'), (2, -1e30, -0.5, '-infinity');
SELECT results_eq('SELECT new FROM news()', 'SELECT to_jsonb(s) FROM special s ORDER BY id', 'what JSON has no number for');
CREATE TABLE big (id integer PRIMARY KEY, body text, n integer);
ALTER TABLE big ALTER COLUMN body SET STORAGE EXTERNAL;
SELECT evbus.publish_changes('big', 'shop');
INSERT INTO big VALUES (1, repeat('x', 1000000), 1);
CALL tells('UPDATE big SET body = body', '', 'a large value that is the same');
UPDATE big SET n = 2;
SELECT is((SELECT length(old->>'body') || ' ' || length(new->>'body') FROM news()), '1000000 1000000', 'is whole in both rows when another column changes');
CALL tells('UPDATE big SET body = overlay(body placing ''y'' from 999999)', 'big.updated 1', 'one letter of it that changes is a change');
CREATE TABLE big_part (LIKE big INCLUDING ALL) PARTITION BY RANGE (id);
CREATE TABLE big_part_1 PARTITION OF big_part DEFAULT;
SELECT evbus.publish_changes('big_part', 'shop');
CALL tells('INSERT INTO big_part SELECT * FROM big; UPDATE big_part SET id = id, body = body; UPDATE big_part SET body = overlay(body placing ''z'' from 999999)', 'big_part.inserted 1, big_part.updated 1', 'so it is where both rows are read from disk');
SELECT throws_ok($$INSERT INTO big VALUES (2, repeat('x', 20000000), 1)$$, '54000', NULL, 'a row above max_payload_bytes is refused');
SELECT is((SELECT count(*) FROM big), 1::bigint, 'and not written');

-- partitions: the row triggers follow the rows, whatever name the statement uses

CREATE TABLE part (id integer, region text, n integer, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE part_a PARTITION OF part FOR VALUES IN ('a');
SELECT evbus.publish_changes('part', 'shop');
CREATE TABLE part_b (n integer, gone text, region text NOT NULL, id integer NOT NULL);
ALTER TABLE part_b DROP COLUMN gone;
ALTER TABLE part ATTACH PARTITION part_b FOR VALUES IN ('b');
CALL tells($$INSERT INTO part VALUES (1, 'a', 1), (2, 'b', 2); INSERT INTO part_b (id, region, n) VALUES (3, 'b', 3)$$, 'part.inserted [1, "a"], part.inserted [2, "b"], part.inserted [3, "b"]', 'through the parent, and past it into a partition that came later');
SELECT is((SELECT payload->'new' FROM evbus.history ORDER BY event_id DESC LIMIT 1), '{"id": 3, "region": "b", "n": 3}', 'whose columns are in another order');
CALL tells('UPDATE part SET n = n + 1; UPDATE part_b SET n = 7 WHERE id = 3', 'part.updated [1, "a"], part.updated [2, "b"], part.updated [3, "b"], part.updated [3, "b"]', 'UPDATE, the same');
CALL tells($$UPDATE part SET region = 'b' WHERE id = 1$$, 'part.deleted [1, "a"], part.inserted [1, "b"]', 'a row that moves is deleted in one and inserted in the other');
CALL tells($$MERGE INTO part USING (VALUES (1)) AS v (i) ON id = i WHEN MATCHED THEN UPDATE SET region = 'a'$$, 'part.deleted [1, "b"], part.inserted [1, "a"]', 'by MERGE, too');
CALL tells('DELETE FROM part WHERE id = 1; TRUNCATE part', 'part.deleted [1, "a"], part.truncated', 'DELETE and TRUNCATE');
SELECT throws_ok($$SELECT evbus.publish_changes('part_a', 'shop')$$, '42710', 'changes of table public.part_a are published already, as those of the table that it is a partition of', 'a partition of such a table is published already');
SELECT throws_ok($$SELECT evbus.stop_publish_changes('part_a')$$, '42704', NULL, 'and cannot be stopped by itself');
SELECT lives_ok($$SELECT evbus.stop_publish_changes('part')$$, 'the whole can');
CALL tells($$INSERT INTO part VALUES (1, 'a', 1)$$, '', 'and then nothing is told');
SELECT evbus.publish_changes('part_a', 'shop', 'one');
CALL tells($$INSERT INTO part VALUES (2, 'a', 1), (2, 'b', 1)$$, 'one.inserted [2, "a"]', 'a partition by itself is told, also through its parent');
CREATE TABLE parent (LIKE item);
SELECT throws_ok('ALTER TABLE item INHERIT parent', '0A000', NULL, 'a table with statement triggers cannot become a child unnoticed');
CREATE TABLE whole (LIKE item) PARTITION BY LIST (item_id);
SELECT throws_ok('ALTER TABLE whole ATTACH PARTITION item DEFAULT', '0A000', NULL, 'nor a partition');
CREATE TABLE child (more text) INHERITS (parent);
SELECT evbus.publish_changes('child', 'shop', key_columns => '{item_id}');
CALL tells($$INSERT INTO child (item_id) VALUES (1); UPDATE parent SET name = 'x'$$, 'child.inserted 1, child.updated 1', 'a child is told when it is written through its parent');

-- foreign keys, deferred checks, replication role, row security

CREATE TABLE owner (id integer PRIMARY KEY);
CREATE TABLE pet (id integer PRIMARY KEY, owner_id integer REFERENCES owner ON DELETE CASCADE ON UPDATE CASCADE);
SELECT evbus.publish_changes('pet', 'shop');
CALL tells('INSERT INTO owner VALUES (1), (2); INSERT INTO pet VALUES (10, 1), (20, 2); UPDATE owner SET id = 3 WHERE id = 1; DELETE FROM owner',
	'pet.inserted 10, pet.inserted 20, pet.updated 10, pet.deleted 20, pet.deleted 10', 'what foreign keys do is told');
CREATE TABLE tree (id integer PRIMARY KEY, up integer REFERENCES tree ON DELETE CASCADE);
SELECT evbus.publish_changes('tree', 'shop');
INSERT INTO tree VALUES (1, NULL), (2, 1), (3, 2), (4, 2);
DELETE FROM tree WHERE id = 1;
SELECT results_eq($$SELECT key FROM news() WHERE type = 'tree.deleted' ORDER BY 1$$, $$VALUES ('1'), ('2'), ('3'), ('4')$$, 'each row of a cascade within one table, once');
SET session_replication_role = replica;
CALL tells('INSERT INTO pet VALUES (30, NULL)', '', 'session_replication_role = replica: triggers do not fire');
RESET session_replication_role;
CREATE TABLE keyless (a integer, b text);
SELECT lives_ok($$SELECT evbus.publish_changes('keyless', 'shop')$$, 'a table without a key');
CALL tells($$INSERT INTO keyless VALUES (1, 'x'), (1, 'x'); UPDATE keyless SET a = 2$$, 'keyless.inserted, keyless.inserted, keyless.updated, keyless.updated', 'has events without one');
CREATE TABLE later (id integer PRIMARY KEY DEFERRABLE INITIALLY DEFERRED);
SELECT evbus.publish_changes('later', 'shop');
CALL tells('INSERT INTO later VALUES (1)', 'later.inserted 1', 'a deferrable primary key is a key');

-- names

CREATE TABLE "Odd ""Ta'ble ü" ("sp ace" integer, "q""u'o{,}\" text);
SELECT throws_ok($$SELECT evbus.publish_changes('"Odd ""Ta''ble ü"', 'shop')$$, '22023', NULL, 'a name that no type can begin with needs a prefix');
SELECT lives_ok($$SELECT evbus.publish_changes('"Odd ""Ta''ble ü"', 'shop', 'odd.ü', columns => ARRAY[E'q"u''o{,}\\'], key_columns => '{"sp ace"}')$$, 'odd names of table and columns');
INSERT INTO "Odd ""Ta'ble ü" VALUES (1, 'x');
SELECT results_eq('SELECT type, key, new FROM news()', $$SELECT 'odd.ü.inserted', '1', to_jsonb(o) FROM "Odd ""Ta'ble ü" AS o$$, 'are published as they are');

-- rights: who writes needs none

CREATE ROLE evbus_test_owner;
CREATE ROLE evbus_test_writer;
CREATE ROLE evbus_test_trigger;
GRANT CREATE ON SCHEMA public TO evbus_test_owner;
GRANT USAGE ON SCHEMA evbus TO evbus_test_owner, evbus_test_trigger;
GRANT EXECUTE ON FUNCTION evbus.publish_changes, evbus.stop_publish_changes TO evbus_test_owner, evbus_test_trigger;
SET ROLE evbus_test_owner;
CREATE TABLE owned (id integer PRIMARY KEY, who text);
ALTER TABLE owned ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY mine ON owned USING (who = current_user);
GRANT INSERT, UPDATE, DELETE, SELECT ON owned TO evbus_test_writer;
SELECT is(message_of($$SELECT evbus.publish_changes('owned', 'shop')$$), 'permission denied for function evbus._changes() | Who makes triggers that publish needs it, who writes the table does not: GRANT EXECUTE ON FUNCTION evbus._changes() TO evbus_test_owner.', 'EXECUTE on publish_changes() alone is not enough, and the hint says what is');
RESET ROLE;
GRANT EXECUTE ON FUNCTION evbus._changes TO evbus_test_owner, evbus_test_trigger;
SET ROLE evbus_test_trigger;
SELECT throws_ok($$SELECT evbus.publish_changes('owned', 'shop')$$, '42501', NULL, 'whose table it is not, and who has no TRIGGER privilege on it, cannot publish it');
SELECT throws_ok($$SELECT evbus.stop_publish_changes('owned')$$, '42501', NULL, 'nor stop it');
RESET ROLE;
SET ROLE evbus_test_owner;
SELECT is(message_of($$SELECT evbus.publish_changes('owned', 'shop')$$), 'permission denied for bus "shop" | Its owner can allow it: SELECT evbus.grant(''publish'', ''shop'', ''evbus_test_owner'');', 'the bus has a say, too');
RESET ROLE;
SELECT evbus.grant('publish', 'shop', 'evbus_test_owner');
SET ROLE evbus_test_owner;
SELECT lives_ok($$SELECT evbus.publish_changes('owned', 'shop')$$, 'the owner can');
RESET ROLE;
SET ROLE evbus_test_writer;
SELECT throws_ok($$SELECT evbus.publish('shop', 'a', '1')$$, '42501', NULL, 'a role that may not publish');
SELECT lives_ok($$INSERT INTO owned VALUES (1, 'evbus_test_writer'); UPDATE owned SET id = 2$$, 'can write the table');
RESET ROLE;
SELECT is(told(), 'owned.inserted 1, owned.updated 2', 'and its changes are told, whatever row security hides from whom');

-- the bus

SELECT throws_ok($$SELECT evbus.alter_bus('shop', rename_to => 'store')$$, '55006', NULL, 'a bus that tables are published to cannot be renamed under them');
SELECT throws_ok($$SELECT evbus.drop_bus('shop')$$, '55006', NULL, 'nor dropped');
SELECT lives_ok($$SELECT evbus.create_bus('sho'); SELECT evbus.alter_bus('sho', rename_to => 'sh'); SELECT evbus.drop_bus('sh'); SELECT evbus.alter_bus('shop', rename_to => 'shop')$$, 'a bus whose name is the beginning of its name can be');

-- triggers made by hand: with clear errors, or they work

CREATE TABLE hand (id integer, n integer) PARTITION BY RANGE (n);
CREATE TABLE hand_1 PARTITION OF hand FOR VALUES FROM (0) TO (10);
CREATE TABLE hand_2 PARTITION OF hand FOR VALUES FROM (10) TO (20);
CREATE TRIGGER t AFTER UPDATE ON hand REFERENCING OLD TABLE AS o NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION evbus._changes('shop', 'hand', '{}', '{id}');
CALL tells('INSERT INTO hand VALUES (1, 1), (2, 2); UPDATE hand SET n = n + 9', 'hand.updated 1, hand.updated 2', 'a statement trigger on a partitioned table: a row that moves is updated');
SELECT is((SELECT payload FROM evbus.history ORDER BY event_id DESC LIMIT 1), '{"old": {"id": 2, "n": 2}, "new": {"id": 2, "n": 11}}', 'with its own old row');
CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.id = 1 THEN RETURN NULL; END IF; RETURN NEW; END';
CREATE TRIGGER swallow BEFORE INSERT ON hand_1 FOR EACH ROW EXECUTE FUNCTION swallow();
CALL tells('UPDATE hand SET n = n - 9', 'hand.deleted 1, hand.deleted 2, hand.inserted 2', 'rows of which one was swallowed on its way are not paired at random');
CREATE TABLE wrong (id integer);
CREATE TRIGGER t BEFORE INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION evbus._changes('shop', 'wrong', '{}', '{}');
SELECT throws_ok('INSERT INTO wrong VALUES (1)', '39P01', NULL, 'a BEFORE trigger');
DROP TRIGGER t ON wrong;
CREATE TRIGGER t AFTER INSERT ON wrong FOR EACH STATEMENT EXECUTE FUNCTION evbus._changes('shop', 'wrong', '{}', '{}');
SELECT throws_ok('INSERT INTO wrong VALUES (1)', '39P01', NULL, 'one without transition tables');
DROP TRIGGER t ON wrong;
CREATE TRIGGER t AFTER INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION evbus._changes('shop');
SELECT throws_ok('INSERT INTO wrong VALUES (1)', '39P01', NULL, 'one that does not say enough');
DROP TRIGGER t ON wrong;
CREATE TRIGGER t AFTER INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION evbus._changes('shop', 'a b', '{}', '{}');
SELECT throws_ok('INSERT INTO wrong VALUES (1)', '22023', NULL, 'one whose types are none');
DROP TRIGGER t ON wrong;
CREATE TRIGGER t AFTER INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION evbus._changes('shop', 'a', '{{id}}', '{NULL}');
SELECT throws_ok('INSERT INTO wrong VALUES (1)', '39P01', NULL, 'one whose columns are nested');
DROP TRIGGER t ON wrong;
CREATE TRIGGER t AFTER INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION evbus._changes('nosuch', 'a', '{}', '{}');
SELECT throws_ok('INSERT INTO wrong VALUES (1)', 'VB001', NULL, 'one whose bus does not exist');
SELECT throws_ok('SELECT evbus._changes()', '39P01', NULL, 'the function is not called by anything else');
SELECT lives_ok($$SELECT evbus.stop_publish_changes('wrong')$$, 'stop_publish_changes() takes such triggers away, too');

-- and the end of it

SELECT lives_ok($$SELECT evbus.stop_publish_changes('item')$$, 'stop_publish_changes()');
CALL tells('UPDATE item SET name = ''z''; TRUNCATE item', '', 'and nothing is told any more');
SELECT throws_ok($$SELECT evbus.stop_publish_changes('item')$$, '42704', NULL, 'once more is an error');
SELECT is((SELECT count(*) FROM pg_trigger WHERE tgrelid = 'item'::regclass), 0::bigint, 'no trigger is left');
SELECT throws_ok('DROP EXTENSION evbus', '2BP01', NULL, 'triggers of others keep the extension from being dropped');

DROP OWNED BY evbus_test_owner, evbus_test_writer, evbus_test_trigger;
DROP ROLE evbus_test_owner, evbus_test_writer, evbus_test_trigger;
SELECT * FROM finish();
