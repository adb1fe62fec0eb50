-- receive_lines(): what receive() hands out as rows, as JSON lines; to the byte what SQL prints.
\ir include/helpers.sql
SELECT plan(70);

SELECT evbus.create_bus('b"us\');
SELECT evbus.subscribe('b"us\', 'rows') AS position, evbus.subscribe('b"us\', 'lines', backoff_initial => '1 hour', backoff_max => '2 hours') AS position2 \gset

-- The line of a delivery, made in SQL.
CREATE FUNCTION line(d evbus.delivery) RETURNS text LANGUAGE sql SET TimeZone = 'UTC' AS $$
	SELECT format('{"receipt":%s,"event_id":"%s","bus":%s,"type":%s,"key":%s,"payload":%s,"headers":%s,"published_at":"%s","position":%s,"attempt":%s,"lease_until":"%s"%s}',
		to_json(d.receipt), d.event_id, to_json(d.bus), to_json(d.type), coalesce(to_json(d.key)::text, 'null'), d.payload, coalesce(d.headers::text, 'null'),
		to_char(d.published_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'), d.position, d.attempt, to_char(d.lease_until, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'),
		CASE WHEN d.replayed THEN ',"replayed":true' ELSE '' END)
$$;
CREATE FUNCTION deliveries(lines text) RETURNS SETOF evbus.delivery LANGUAGE sql AS $$
	SELECT d.* FROM string_to_table(lines, E'\n') WITH ORDINALITY AS t (line, n), jsonb_populate_record(NULL::evbus.delivery, line::jsonb) AS d ORDER BY n
$$;

CREATE TABLE given (n integer, type text, payload jsonb, key text, headers jsonb);
-- Publishes what is given, and waits until both subscriptions have it before them.
CREATE PROCEDURE publish_given() LANGUAGE plpgsql AS $$
BEGIN
	PERFORM evbus.publish_batch('b"us\', array_agg(type ORDER BY n), array_agg(payload ORDER BY n), array_agg(key ORDER BY n), array_agg(headers ORDER BY n)) FROM given;
	COMMIT;
	PERFORM poll($q$SELECT min(lag)::text FROM evbus.subscription_lag$q$, (SELECT count(*)::text FROM given));
END $$;
-- What both hand out: the rows of one, with receipt and lease of the other's lines, as lines; and those lines.
CREATE TABLE compared (n bigint, expected text, line text);
CREATE PROCEDURE compare() LANGUAGE plpgsql AS $$
DECLARE
	batch record;
	row_receipts text[];
BEGIN
	TRUNCATE compared;
	SELECT * INTO batch FROM evbus.receive_lines('lines', 10000);
	WITH got AS MATERIALIZED (SELECT * FROM evbus.receive('rows', 10000) WITH ORDINALITY AS r (receipt, event_id, bus, type, key, payload, headers, published_at, position, attempt, lease_until, replayed, n)),
		 lines AS MATERIALIZED (SELECT line, n FROM string_to_table(batch.lines, E'\n') WITH ORDINALITY AS t (line, n)),
		 written AS (INSERT INTO compared SELECT n, line(ROW(line::json->>'receipt', event_id, bus, type, key, payload, headers, published_at, position, attempt, (line::json->>'lease_until')::timestamptz, replayed)::evbus.delivery), line
			FROM got FULL JOIN lines USING (n))
	SELECT array_agg(receipt) INTO row_receipts FROM got;
	PERFORM evbus.ack(row_receipts), evbus.ack(batch.receipts);
END $$;

-- one batch

SELECT is_empty($$SELECT * FROM evbus.receive_lines('lines', 10)$$, 'no row if there is nothing');
INSERT INTO given VALUES (1, 'a.1', '{"a": 1, "b": [true, false, null, "x"], "c": {}, "d": []}', 'k', '{"h": "é"}'), (2, 'a.2', '2', NULL, NULL), (3, 'a."\', '"s"', E'k"\\\n\x01\x1f\x7fé/', '{}'), (4, 'a.4', 'null', '', NULL);
CALL publish_given();
SELECT events, receipts, lines FROM evbus.receive_lines('lines', 3) \gset
SELECT is(:events, 3, 'as many as are wanted');
SELECT is(cardinality(:'receipts'::text[]), 1, 'one receipt stands for all of them');
SELECT cmp_ok(length(:'receipts'), '<', 80, 'and is short');
SELECT ok(:'lines' !~ E'\n$', 'no newline at the end');
SELECT is((SELECT string_agg(type, ' ') FROM deliveries(:'lines')), (SELECT string_agg(type, ' ') FROM given WHERE n <= 3), 'in order');
SELECT results_eq($$SELECT lag, in_flight FROM evbus.subscription_lag WHERE subscription = 'lines'$$, $$VALUES (4::bigint, 3::bigint)$$, 'they are leased');
SELECT is(evbus.release(:'receipts'), 3, 'all are settled with it');
SELECT is((SELECT events FROM evbus.receive_lines('lines')), 1, 'max_events is 1 if not given');
SELECT evbus.seek('lines', (SELECT min(position)::text FROM deliveries(:'lines'))) AS position \gset
CALL compare();
SELECT is((SELECT count(*) FROM compared), 4::bigint, 'again, beside the rows of another subscription');
SELECT is(line, expected, 'line ' || n || ' is what SQL prints of the row') FROM compared ORDER BY n;
SELECT results_eq($$SELECT lag FROM evbus.subscription_lag$$, $$VALUES (0::bigint), (0)$$, 'receipts are acked as they are');

-- the receipt of a batch

CREATE FUNCTION told(query text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE query;
	RETURN 'taken';
EXCEPTION WHEN OTHERS THEN
	RETURN sqlstate;
END $$;
CALL publish_given();
SELECT receipts, lines FROM evbus.receive_lines('lines', 4) \gset
SELECT array_agg(receipt) AS single FROM deliveries(:'lines') \gset
BEGIN;
SELECT is(evbus.nack((:'single'::text[])[2:2]), 1, 'one of the batch is settled by the receipt in its line');
SELECT is(evbus.ack(:'receipts'), 3, 'the batch''s receipt then settles the others');
COMMIT;
SELECT results_eq($$SELECT position, attempts FROM evbus.retry_list$$, format('SELECT position, 1 FROM deliveries(%L) OFFSET 1 LIMIT 1', :'lines'), 'and only the others');
SELECT is(evbus.ack(:'receipts'), 0, 'once');
DELETE FROM evbus.retry;
CALL publish_given();
SELECT receipts AS first FROM evbus.receive_lines('lines', 1) \gset
SELECT receipts AS second, lines FROM evbus.receive_lines('lines', 3) \gset
SELECT is(evbus.extend(:'second', '1 hour'), 3, 'leases of a batch are extended');
SELECT is(evbus.ack(:'first'::text[] || :'second'::text[] || (SELECT array_agg(receipt) FROM deliveries(:'lines'))), 4, 'batches and single ones go together, and count once');
SELECT results_eq($$SELECT lag, in_flight FROM evbus.subscription_lag WHERE subscription = 'lines'$$, 'VALUES (0::bigint, 0::bigint)', 'all are acked');

-- What is not quite a receipt of a batch is refused, or changes nothing.
CALL publish_given();
SELECT receipts FROM evbus.receive_lines('lines', 4) \gset
CREATE TABLE forged AS SELECT overlay((:'receipts'::text[])[1] PLACING substr('ABab09-_', c, 1) FROM at FOR 1) AS receipt FROM generate_series(29, length((:'receipts'::text[])[1])) AS at, generate_series(1, 8) AS c
	UNION SELECT left((:'receipts'::text[])[1], n) FROM generate_series(0, length((:'receipts'::text[])[1]) - 1) AS n WHERE n <> 43	/* as long as one of a single delivery */
	UNION SELECT (:'receipts'::text[])[1] || repeat('A', n) FROM generate_series(1, 12) AS n
	UNION SELECT overlay((:'receipts'::text[])[1] PLACING n FROM 23) FROM unnest('{AAAAAA,AAAAA_,______,AAAAAE,AQAAAA,BAAAAB}'::text[]) AS n;
DELETE FROM forged WHERE receipt = (:'receipts'::text[])[1];
CREATE TABLE answer AS SELECT receipt, told(format('SELECT evbus.extend(ARRAY[%L], ''1 minute'')', receipt)) AS answer FROM forged;
SELECT results_eq('SELECT DISTINCT answer FROM answer ORDER BY 1', $$VALUES ('22023'), ('taken')$$, 'a forged one is refused as no receipt, or read as one of another lease');
SELECT cmp_ok(count(*), '>', 50::bigint, 'those cut short, made longer or of another number are refused') FROM answer WHERE answer = '22023';
SELECT is(count(*), 0::bigint, 'each of them') FROM answer WHERE answer <> '22023' AND length(receipt) <> length((:'receipts'::text[])[1]);
SELECT is(told(format('SELECT evbus.extend(array_fill(%L::text, ARRAY[20000]), ''1 minute'')', (:'receipts'::text[])[1])), '54000', 'more than there can be are refused');
SELECT is(evbus.ack(:'receipts'), 4, 'the true one is still good');
SELECT evbus.seek('rows', 'now') AS position \gset

-- anything that jsonb can hold

CREATE FUNCTION random_text() RETURNS text LANGUAGE sql VOLATILE AS $$
	SELECT coalesce(string_agg(CASE WHEN random() < 0.7 THEN chr(97 + (random() * 25)::int) ELSE (ARRAY['"', '\', '/', E'\b', E'\f', E'\n', E'\r', E'\t', E'\x01', E'\x0b', E'\x1f', E'\x7f', ' ', '!', '#', '[', ']', 'é', '注', '😀', '\u0041'])[1 + floor(random() * 21)] END, ''), '')
	FROM generate_series(1, (ARRAY[0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 31, 40, 200])[1 + floor(random() * 16)])
$$;
CREATE FUNCTION plain_text() RETURNS text LANGUAGE sql VOLATILE AS $$ SELECT substr(repeat(md5(random()::text), 3), 1, floor(random() * 60)::int) $$;
CREATE FUNCTION random_number() RETURNS numeric LANGUAGE sql VOLATILE AS $$
	SELECT CASE WHEN random() < 0.5 THEN (ARRAY['0', '-0', '1', '-1', '9', '10', '99', '100', '999', '1000', '9999', '10000', '-10001', '99999999', '100000000', '1.10', '-0.5', '0.1', '0.05', '0.00000012', '1e-7', '1e20', '-1e20', '12.3400',
			'1234567890123456', '9007199254740993', '12345678901234567890.123456789', '0.000', '1e100', '1e252', '9.9e255', '1e256', '1e300', '1e-62', '1e-63', '1e-64', '123e-63', '-1e-300', '1e2000', '3.' || repeat('1415926535', 30)])[1 + floor(random() * 40)]::numeric
		ELSE round(((random() - 0.5) * 10::numeric ^ floor(random() * 22)::int)::numeric, floor(random() * 12)::int) END
$$;
CREATE FUNCTION random_json(depth integer) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
DECLARE
	kind integer := floor(random() * CASE WHEN depth > 0 THEN 9 ELSE 6 END);
	size integer := (ARRAY[0, 1, 2, 3, 5, 8, 31, 32, 33, 64, 65, 100])[1 + floor(random() * CASE WHEN depth > 2 THEN 12 ELSE 6 END)];
BEGIN
	RETURN CASE kind
		WHEN 0 THEN 'null'::jsonb
		WHEN 1 THEN to_jsonb(random() < 0.5)
		WHEN 2 THEN to_jsonb(random_text())
		WHEN 3 THEN to_jsonb(plain_text())
		WHEN 4 THEN to_jsonb(random_number())
		WHEN 5 THEN to_jsonb(floor(random() * 1000000)::int)
		WHEN 6 THEN (SELECT coalesce(jsonb_agg(random_json(depth - 1)), '[]') FROM generate_series(1, size))
		ELSE (SELECT coalesce(jsonb_object_agg(random_text() || CASE WHEN i > 3 THEN i::text ELSE '' END, random_json(depth - 1)), '{}') FROM generate_series(1, size) AS i) END;
END $$;
SELECT setseed(0.4);
TRUNCATE given;
INSERT INTO given SELECT n, 'fuzz', random_json(n % 5), CASE WHEN n % 3 = 0 THEN left(random_text(), 200) END, CASE WHEN n % 4 = 0 THEN jsonb_build_object('', random_json(2)) END FROM generate_series(1, 2000) AS n;
INSERT INTO given SELECT 2001, 'deep', (repeat('[', 3000) || repeat(']', 3000))::jsonb;
INSERT INTO given SELECT 2002, 'deep', (repeat('{"a": [1, ', 1000) || 'null' || repeat(']}', 1000))::jsonb;
INSERT INTO given SELECT 2003, 'long', to_jsonb(repeat(E'x"\n', 100000));
INSERT INTO given SELECT 2004, 'long', to_jsonb(repeat(E'0123456', 100001));
INSERT INTO given SELECT 2005, 'long', '1e131071';
INSERT INTO given SELECT 2006, 'long', '-1e-16383';
INSERT INTO given SELECT 2100 + n, 'number', to_jsonb(('1e' || n)::numeric) FROM generate_series(-70, 260) AS n;
INSERT INTO given SELECT 3000 + n, 'number', to_jsonb(repeat('9', n)::numeric / 10::numeric ^ (n / 2)) FROM generate_series(1, 100) AS n;
INSERT INTO given SELECT 4000 + n, 'text', to_jsonb(repeat('x', n) || chr(1 + n % 127) || repeat('y', n % 9)) FROM generate_series(0, 400) AS n;
INSERT INTO given SELECT 5000 + n, 'entries', to_jsonb(array_fill(CASE WHEN n % 2 = 0 THEN 'a' ELSE 'bc' END, ARRAY[n])) FROM generate_series(1, 100) AS n;
CALL publish_given();
CALL compare();
SELECT is((SELECT count(*) FROM compared WHERE line IS NOT NULL), (SELECT count(*) FROM given), 'all of them come, in one batch');
SELECT is_empty($$SELECT n, left(line, 500), left(expected, 500) FROM compared WHERE line IS DISTINCT FROM expected ORDER BY n LIMIT 3$$, 'and each line is what SQL prints of the row');
SELECT cmp_ok((SELECT count(*) FROM given WHERE pg_column_size(payload) > 2048), '>', 50::bigint, 'among them those that are stored compressed');
SELECT is_empty($$SELECT c.n FROM compared AS c JOIN (SELECT row_number() OVER (ORDER BY n) AS at, payload, headers FROM given) AS g ON g.at = c.n
	WHERE (c.line::json->'payload')::text <> g.payload::text OR (c.line::json->'headers')::text <> coalesce(g.headers::text, 'null')$$, 'which is what was published');

-- ack => ..., and rollbacks

SELECT evbus.subscribe('b"us\', 'one', types => '{one}', backoff_initial => '1 hour', backoff_max => '2 hours', max_attempts => 20) AS position \gset
CREATE VIEW held AS SELECT lag, in_flight FROM evbus.subscription_lag WHERE subscription = 'one';
CREATE FUNCTION fresh(n integer) RETURNS void LANGUAGE sql AS $$ SELECT evbus.publish('b"us\', 'one', to_jsonb(i)) FROM generate_series(1, n) AS i $$;
SELECT fresh(5);
SELECT becomes('SELECT lag::text FROM held', '5', 'five more');
SELECT receipts AS first FROM evbus.receive_lines('one', 2, lease => '1 hour') \gset
SELECT events, receipts AS second, lines FROM evbus.receive_lines('one', 10, ack => :'first') \gset
SELECT is((SELECT string_agg(payload::text, ' ') FROM deliveries(:'lines')), '3 4 5', 'ack => the last receipts receives what comes next');
SELECT results_eq('SELECT * FROM held', $$VALUES (3::bigint, 3::bigint)$$, 'and acks');
BEGIN;
SELECT evbus.release(:'second') AS n \g /dev/null
COMMIT;
BEGIN;
SELECT receipts AS lost FROM evbus.receive_lines('one', 10) \gset
ROLLBACK;
SELECT receipts AS second, lines FROM evbus.receive_lines('one', 10) \gset
SELECT is((SELECT string_agg(format('%s %s', payload, attempt), ', ') FROM deliveries(:'lines')), '3 1, 4 1, 5 1', 'a rollback gives them back, and counts no attempt');
SELECT clock_timestamp() AS start \gset
SELECT is_empty(format($$SELECT * FROM evbus.receive_lines('one', 10, wait => '30 seconds', ack => %L)$$, :'second'), 'with receipts it does not wait');
SELECT ok(clock_timestamp() - :'start' < interval '15 seconds', 'but comes back at once');
SELECT results_eq('SELECT * FROM held', $$VALUES (0::bigint, 0::bigint)$$, 'nothing is left');
SELECT clock_timestamp() AS start \gset
SELECT is_empty($$SELECT * FROM evbus.receive_lines('one', wait => '300 milliseconds')$$, 'without any it waits as told');
SELECT ok(clock_timestamp() - :'start' >= interval '300 milliseconds', 'for as long as told');

-- attempts

CREATE FUNCTION next_of(lines text) RETURNS text LANGUAGE sql AS $$ SELECT format('%s %s', payload, attempt) FROM deliveries(lines) $$;
SELECT fresh(1);
SELECT receipts FROM evbus.receive_lines('one', lease => '1 second', wait => '20 seconds') \gset
SELECT receipts, next_of(lines) AS next FROM evbus.receive_lines('one', lease => '1 hour', wait => '20 seconds') \gset
SELECT is(:'next'::text, '1 2', 'what has its lease run out comes again, an attempt later');
SELECT is(evbus.nack(:'receipts', delay => '0'), 1, 'failed');
SELECT receipts, next_of(lines) AS next FROM evbus.receive_lines('one', wait => '20 seconds') \gset
SELECT is(:'next'::text, '1 3', 'and again as a retry');
SELECT is(evbus.ack(:'receipts'), 1, 'done');
SELECT evbus.seek('one', 'now') AS position \gset

-- a few are looked at first, to know how large they are: that shows nowhere

SELECT evbus.publish('b"us\', 'other', '1') AS id FROM generate_series(1, 100) \g /dev/null
SELECT fresh(100);
SELECT becomes('SELECT lag::text FROM held', '200', 'behind many that are not for this subscription');
SELECT receipts, lines FROM evbus.receive_lines('one', 70) \gset
SELECT is((SELECT array_agg(payload::text::int) FROM deliveries(:'lines')), (SELECT array_agg(i) FROM generate_series(1, 70) AS i), 'as many as are wanted come, in order');
SELECT is(evbus.nack(:'receipts', delay => '0'), 70, 'they fail');
SELECT receipts, lines FROM evbus.receive_lines('one', 1000) \gset
SELECT is((SELECT string_agg(DISTINCT attempt || ' ' || (payload::int <= 70)::text, ', ') || ', ' || count(*) FROM deliveries(:'lines')), '1 false, 2 true, 100', 'the retries and all others come in one batch');
SELECT is((SELECT array_agg(attempt ORDER BY n) FROM deliveries(:'lines') WITH ORDINALITY AS d (receipt, event_id, bus, type, key, payload, headers, published_at, position, attempt, lease_until, replayed, n)),
	array_fill(2, ARRAY[70]) || array_fill(1, ARRAY[30]), 'retries first');
SELECT is(evbus.ack(:'receipts'), 100, 'done');
SELECT results_eq('SELECT * FROM held', $$VALUES (0::bigint, 0::bigint)$$, 'nothing is left');

-- 64 MB

CREATE FUNCTION ends(lines text) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(regexp_replace(right(line, 110), '.*"position":(\d+),"attempt":(\d+).*', '\1 \2'), ', ' ORDER BY n) FROM string_to_table(lines, E'\n') WITH ORDINALITY AS t (line, n)
$$;
-- Receives to the end and keeps the receipts.  A lease that has run out is taken back a moment later: the first call waits.
CREATE TABLE calls (n integer GENERATED ALWAYS AS IDENTITY, events integer, bytes bigint, ends text, receipts text[]);
CREATE PROCEDURE receive_all() LANGUAGE plpgsql AS $$
DECLARE
	patience interval := '10 seconds';
BEGIN
	TRUNCATE calls RESTART IDENTITY;
	LOOP
		INSERT INTO calls (events, bytes, ends, receipts) SELECT events, octet_length(lines), ends(lines), receipts FROM evbus.receive_lines('one', 1000, lease => '1 hour', wait => patience);
		EXIT WHEN NOT FOUND;
		patience := NULL;
	END LOOP;
END $$;
-- Ten times 10 MB; stored as they are they end the taking, compressed they go back when they are printed.
CREATE PROCEDURE publish_large(compress integer) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('evbus.compress_threshold', compress::text, false);
	PERFORM evbus.publish('b"us\', 'one', to_jsonb(repeat('x', 10000000))) FROM generate_series(1, 10);
	COMMIT;
	PERFORM poll('SELECT lag::text FROM held', '10');
END $$;
CREATE FUNCTION positions(attempt integer, from_ integer, to_ integer) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(cursor_position + i || ' ' || attempt, ', ') FROM evbus.subscription_lag, generate_series(from_, to_) AS i WHERE subscription = 'one'
$$;
CALL publish_large(2048);
CALL receive_all();
SELECT results_eq('SELECT events, bytes <= 64 * 1024 * 1024, ends FROM calls ORDER BY n', $$VALUES (6, true, positions(1, 0, 5)), (4, true, positions(1, 6, 9))$$, 'a batch ends at 64 MB; what does not fit comes next, in order, its first attempt');
SELECT results_eq('SELECT * FROM held', $$VALUES (10::bigint, 10::bigint)$$, 'none is lost');

-- the same as retries; and when their leases have run out, which the lease itself counts
SELECT is((SELECT sum(evbus.nack(receipts, delay => '0')) FROM calls), 10::bigint, 'all of them fail');
CALL receive_all();
SELECT results_eq('SELECT events FROM calls ORDER BY n', 'VALUES (6), (4)', 'as retries they are cut as well');
SELECT is((SELECT count(*) FROM calls, regexp_matches(ends, '\d+ 2\M', 'g')), 10::bigint, 'each is a second attempt');
SELECT evbus.extend(receipts, '1 second') AS n FROM calls \g /dev/null
SELECT becomes($$SELECT in_flight::text FROM held$$, '0', 'until their leases run out');
CALL receive_all();
SELECT results_eq('SELECT events FROM calls ORDER BY n', 'VALUES (6), (4)', 'cut once more');
SELECT is((SELECT string_agg(DISTINCT m[1], ' ') || ', ' || count(*) FROM calls, regexp_matches(ends, '\d+ (\d+)\M', 'g') AS m), '3, 10', 'each is a third attempt, also those that were given back');
SELECT is((SELECT sum(evbus.ack(receipts)) FROM calls), 10::bigint, 'all are acked');

CALL publish_large(-1);
CALL receive_all();
SELECT results_eq('SELECT events, ends FROM calls ORDER BY n', $$VALUES (6, positions(1, 0, 5)), (4, positions(1, 6, 9))$$, 'what is as large when it is stored is not even taken, or goes back too');
SELECT is((SELECT sum(evbus.ack(receipts)) FROM calls), 10::bigint, 'and acked');
SELECT results_eq('SELECT * FROM held', $$VALUES (0::bigint, 0::bigint)$$, 'nothing is left');

-- one event alone may be longer; but not longer than what PostgreSQL can send
SELECT evbus.publish('b"us\', 'one', to_jsonb(repeat(E'\x01', 12000000))) AS id \g /dev/null
SELECT fresh(1);
SELECT becomes('SELECT lag::text FROM held', '2', 'a line of 72 MB, and a small one');
CALL receive_all();
SELECT results_eq('SELECT events, bytes > 72000000 FROM calls ORDER BY n', 'VALUES (1, true), (1, false)', 'it comes alone');
SELECT is((SELECT sum(evbus.ack(receipts)) FROM calls), 2::bigint, 'and is acked');
SELECT evbus.publish('b"us\', 'one', jsonb_agg('1e131071'::jsonb)) AS id FROM generate_series(1, 8300) \g /dev/null
SELECT becomes('SELECT lag::text FROM held', '1', 'a line of 1.1 GB');
CREATE FUNCTION error_of(statement text) RETURNS text LANGUAGE plpgsql AS $$BEGIN EXECUTE statement; RETURN NULL; EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE || ': ' || SQLERRM; END$$;
SELECT alike(error_of($$SELECT * FROM evbus.receive_lines('one')$$), '54000: event % is too large for a line', 'is an error that says so');
SELECT receipt FROM evbus.receive('one') \gset
SELECT is(evbus.reject(ARRAY[:'receipt'], 'too large'), 1, 'receive() can get rid of it');

-- Nested more deeply than it was printed with recursion, and than a session's stack allows.
SELECT evbus.create_bus('deep', max_payload_bytes => 10000000);
SELECT evbus.subscribe('deep', 'deep') AS position \gset
INSERT INTO given SELECT n, 'nested', (repeat('[{"a": ', n) || '[1, "x", 2.50]' || repeat('}, 3]', n))::jsonb FROM unnest('{90,99,100,101,102,500,3000}'::int[]) AS n;
SELECT count(*) AS n FROM evbus.publish_batch('deep', '{deep}', (SELECT array_agg(payload ORDER BY n) FROM given WHERE type = 'nested')) \gset
SET max_stack_depth = '200kB';
SELECT lines FROM evbus.receive_lines('deep', 10, wait => '10 seconds') \gset
RESET max_stack_depth;
SELECT results_eq(format($$SELECT substring(line FROM '"payload":(.*),"headers":null') FROM string_to_table(%L, E'\n') AS line ORDER BY length(line)$$, :'lines'),
	$$SELECT payload::text FROM given WHERE type = 'nested' ORDER BY n$$, 'however deeply something is nested, it is printed');

SELECT * FROM finish();
