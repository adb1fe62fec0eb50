-- Filters: what lets an event through, where it is asked, what it costs, how long it may take; and the maximum age of events.
\ir include/helpers.sql
SELECT plan(138);

SELECT evbus.create_bus('b');
SELECT evbus.create_bus('one');

-- Which of the events does a filter let through?  Told by their numbers.
CREATE TABLE sample (n integer, type text, payload jsonb, key text, headers jsonb);
INSERT INTO sample VALUES
	(1, 'order.paid', '{"total": 150, "tags": ["a", "b"], "name": "Zoë", "at": "2026-01-31T10:00:00"}', 'k1', '{"tenant": "a"}'),
	(2, 'order.paid', '{"total": 50, "tags": [], "name": "zed", "open": false}', 'k2', '{"tenant": "b", "n": [1, 2]}'),
	(3, 'order.gone', '{"total": "many", "name": "日本"}', NULL, NULL),
	(4, 'order.gone', '[{"total": 1}, {"total": 200}]', 'ключ', '{}'),
	(5, 'a', '42', 'k1', NULL),
	(6, 'a', 'null', NULL, '{"tenant": null}'),
	(7, 'a', '{"total": 1e3, "from": "x", "to": "x", "deep": {"list": [{"x": 1}, {"x": [5, 6]}]}}', '', '{"tenant": "a"}');
CREATE TABLE published (id bigint PRIMARY KEY, n integer);
CREATE TABLE probe (i integer GENERATED ALWAYS AS IDENTITY, path jsonpath, expected text, what text);
INSERT INTO probe (path, expected, what) VALUES
	('$', '1234567', '$ is always there'),
	('$.total > 100', '147', 'a predicate must be true'),
	('strict $.total > 100', '17', 'in strict mode what is not there is unknown, and no'),
	('$.total > 100 || $.total <= 100', '1247', 'unknown is no'),
	('!($.total > 100)', '256', 'a predicate can be negated'),
	('($.total > 100) is unknown', '3', 'and be asked whether it is unknown'),
	('$.total', '12347', 'what is no predicate must find something'),
	('$.open', '2', 'false is something'),
	('$.open == true', '', 'so who wants it to be true says so'),
	('$ ? (@.total > 100)', '147', 'a path with a filter finds something or not'),
	('$.tags[*] ? (@ == "b")', '1', 'in an array'),
	('exists($.tags[*])', '1', 'exists is a predicate'),
	('$.tags[last]', '1', 'an index'),
	('$.deep.list[1].x[0 to 1] == 6', '7', 'indexes deeper down'),
	('$.** ? (@ == 6)', '7', 'anywhere'),
	('$.name == "Zoë"', '1', 'not only ASCII'),
	('$.name starts with "日"', '3', 'a prefix'),
	('$.name like_regex "^z" flag "i"', '12', 'a regular expression'),
	('$headers.tenant == "a"', '17', 'a header'),
	('$headers.n[1] == 2', '2', 'deeper in the headers'),
	('$.total > 100 && $headers.tenant == "a"', '17', 'payload and headers'),
	('$headers ? (@.tenant == "b")', '2', 'a path of headers finds something or not'),
	('$headers == null', '35', 'no headers are null'),
	('$key == "k1"', '15', 'the key'),
	('$key == "ключ"', '4', 'which need not be ASCII'),
	('$key == null', '36', 'no key is null, an empty one is not'),
	('$type == "order.gone"', '34', 'the type'),
	('$type starts with "order." && $.total < 100 && $key != "k1"', '24', 'all of them'),
	('$.from == $.to', '7', 'two paths'),
	('$.total / 0 > 1', '', 'a division by zero is unknown'),
	('$.size() == 2', '4', 'a method'),
	('$.keyvalue().key == "total"', '12347', 'or one that makes objects'),
	('$.at.datetime() < "2026-01-31T10:00:01+00".datetime()', '1', 'a time without a zone is compared with one that has one'),
	('$.at.datetime() < "2026-01-31T10:00:00+00".datetime()', '', 'as UTC'),
	('$.total.type() == "string"', '3', 'types');
SET TimeZone = 'Asia/Tokyo';
SELECT count(evbus.subscribe('b', 'probe' || i, filter => path)) AS n FROM probe \gset
INSERT INTO published SELECT evbus.publish('b', type, payload, key, headers), n FROM sample ORDER BY n;
SELECT is((SELECT coalesce(string_agg(p.n::text, '' ORDER BY p.n), '') FROM evbus.receive('probe' || i, 100, wait => CASE WHEN expected <> '' THEN interval '10 seconds' END) AS d JOIN published AS p ON p.id = d.event_id),
	expected, path::text || ': ' || what) FROM probe ORDER BY i;
SELECT is((SELECT filter::text FROM evbus.subscription_list WHERE subscription = 'probe1'), NULL, 'the filter $ is none');
SELECT is((SELECT filter::text FROM evbus.subscription_list WHERE subscription = 'probe2'), '($."total" > 100)', 'any other is shown');
-- What is empty was not waited for: its events may not have had positions.
SELECT is(poll($$SELECT string_agg(subscription, ' ') FROM evbus.subscription_lag, evbus.receive(subscription, 1) WHERE subscription IN (SELECT 'probe' || i FROM probe WHERE expected = '')
	AND lag > 0$$, NULL), NULL, 'and what lets nothing through still lets nothing through');
SELECT is((SELECT string_agg(subscription || ' ' || lag || ' ' || filtered, ', ' ORDER BY subscription) FROM evbus.subscription_lag AS l JOIN probe ON subscription = 'probe' || i
	WHERE filtered <> CASE WHEN path::text = '$' THEN 0 ELSE 7 - length(expected) END), NULL, 'what was filtered is counted');
SELECT results_eq($$SELECT lag, in_flight, filtered FROM evbus.subscription_lag WHERE subscription = 'probe2'$$, $$VALUES (3::bigint, 3::bigint, 4::bigint)$$, 'what was filtered between is done, and counts no more');
RESET TimeZone;
SELECT count(evbus.unsubscribe('probe' || i)) AS n FROM probe \gset

-- What is kept back costs nothing in the ledger, and is done.
CREATE VIEW ledger AS SELECT subscription_id FROM evbus.ack_0 UNION ALL SELECT subscription_id FROM evbus.ack_1 UNION ALL SELECT subscription_id FROM evbus.ack_2;
CREATE VIEW ledger_rows AS SELECT subscription, (SELECT count(*) FROM ledger AS l WHERE l.subscription_id = s.subscription_id) AS n FROM evbus.subscription AS s;
CREATE TABLE called (subscription text, n integer GENERATED ALWAYS AS IDENTITY, i integer, key text, attempt integer);
CREATE FUNCTION note(events evbus.event[]) RETURNS void LANGUAGE sql AS $$
	INSERT INTO called (subscription, i, key, attempt) SELECT 'h', (e.payload->>'i')::integer, e.key, e.attempt FROM unnest($1) WITH ORDINALITY AS e ORDER BY e.ordinality $$;
CREATE FUNCTION note_one(e evbus.event) RETURNS void LANGUAGE sql AS $$ INSERT INTO called (subscription, i, key, attempt) SELECT 'o', ($1.payload->>'i')::integer, $1.key, $1.attempt $$;
SELECT evbus.subscribe('one', 'none', filter => '$.i < 0'), evbus.subscribe('one', 'none_key', filter => '$.i < 0', ordering => 'key'),
	evbus.subscribe('one', 'none_strict', filter => '$.i < 0', ordering => 'strict'),
	evbus.subscribe('one', 'some', filter => '$.i % 100 == 0'), evbus.subscribe('one', 'some_key', filter => '$.i % 100 == 0', ordering => 'key'),
	evbus.subscribe('one', 'some_strict', filter => '$.i % 100 == 0', ordering => 'strict'), evbus.subscribe('one', 'lines', filter => '$.i % 100 == 0'),
	evbus.subscribe('one', 'h', handler => 'note(evbus.event[])', filter => '$.i % 100 == 0'),
	evbus.subscribe('one', 'h_none', handler => 'note(evbus.event[])', filter => '$.i < 0'),
	evbus.subscribe('one', 'o', handler => 'note_one(evbus.event)', filter => '$.i % 100 == 0', ordering => 'key') \g /dev/null
SELECT count(*) AS n FROM evbus.publish_batch('one', array_fill('e'::text, ARRAY[1000]), (SELECT array_agg(jsonb_build_object('i', i)) FROM generate_series(1, 1000) AS i), (SELECT array_agg('k' || i % 7) FROM generate_series(1, 1000) AS i)) \gset
SELECT is(poll($$SELECT count(*)::text FROM unnest('{none,none_key,none_strict}'::text[]) AS s, evbus.receive(s, 10)$$, '0'), '0', 'nothing is received where nothing is let through');
CREATE FUNCTION drained(subscription text) RETURNS text LANGUAGE sql AS $$
	SELECT poll(format('SELECT (SELECT count(*) FROM evbus.receive(%1$L, 10)) || '' '' || (SELECT lag FROM evbus.subscription_lag WHERE subscription = %1$L)', $1), '0 0') $$;
SELECT is(drained(s), '0 0', 'and nothing is left to do: ' || s) FROM unnest('{none,none_key,none_strict}'::text[]) AS s;
SELECT is((SELECT n FROM ledger_rows WHERE subscription = s), 0::bigint, 'without a row in the ledger: ' || s) FROM unnest('{none,none_key,none_strict}'::text[]) AS s;
SELECT is((SELECT filtered FROM evbus.subscription_lag WHERE subscription = s), 1000::bigint, 'all are counted: ' || s) FROM unnest('{none,none_key,none_strict}'::text[]) AS s;

CREATE FUNCTION take_all(subscription text, per integer) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	got text := '';
	more text;
BEGIN
	FOR i IN 1 .. 100 LOOP
		WITH d AS MATERIALIZED (SELECT receipt, payload->>'i' AS n FROM evbus.receive(take_all.subscription, per, wait => '200 milliseconds')),
			a AS MATERIALIZED (SELECT evbus.ack(array_agg(receipt)) FROM d HAVING count(*) > 0)
		SELECT string_agg(n, ' ') INTO more FROM d, a;
		EXIT WHEN more IS NULL;
		got := got || more || ' ';
	END LOOP;
	RETURN got;
END $$;
SELECT is(take_all(s, per), '100 200 300 400 500 600 700 800 900 1000 ', 'one in a hundred is received, in order: ' || s) FROM (VALUES ('some', 3), ('some_key', 4), ('some_strict', 5)) AS v (s, per);
SELECT is((SELECT filtered FROM evbus.subscription_lag WHERE subscription = s), 990::bigint, 'the others are counted once each, whatever was cut short: ' || s) FROM unnest('{some,some_key,some_strict}'::text[]) AS s;
SELECT is(drained(s), '0 0', 'all is done: ' || s) FROM unnest('{some,some_key,some_strict}'::text[]) AS s;
SELECT cmp_ok((SELECT n FROM ledger_rows WHERE subscription = s), '<=', 10::bigint, 'with no more rows in the ledger than were acked: ' || s) FROM unnest('{some,some_key,some_strict}'::text[]) AS s;
SELECT is((SELECT string_agg((l::jsonb)->'payload'->>'i', ' ') FROM evbus.receive_lines('lines', 100, wait => '10 seconds') AS r, string_to_table(r.lines, E'\n') AS l), '100 200 300 400 500 600 700 800 900 1000', 'lines are filtered as well');
SELECT becomes($$SELECT string_agg(lag::text, ' ') FROM evbus.subscription_lag WHERE subscription IN ('h', 'h_none', 'o')$$, '0 0 0', 'handlers come to the end');
SELECT is((SELECT string_agg(i::text, ' ' ORDER BY n) FROM called WHERE subscription = 'h'), '100 200 300 400 500 600 700 800 900 1000', 'a handler gets what is let through, in order');
SELECT is((SELECT string_agg(i::text, ' ' ORDER BY i) FROM called WHERE subscription = 'o'), '100 200 300 400 500 600 700 800 900 1000', 'so does one in order by key');
SELECT results_eq($$SELECT filtered FROM evbus.subscription_lag WHERE subscription IN ('h', 'h_none', 'o') ORDER BY subscription$$, 'VALUES (990::bigint), (1000), (990)', 'what handlers do not get is counted, too');
SELECT is((SELECT n FROM ledger_rows WHERE subscription = 'h_none'), 0::bigint, 'a handler that gets nothing writes nothing');

-- wait() sleeps over what is filtered.
SELECT evbus.publish('one', 'e', '{"i": 1}') AS id \gset
CREATE TABLE clock (at timestamptz);
INSERT INTO clock VALUES (clock_timestamp());
CALL evbus.wait('some', '300 milliseconds');
SELECT cmp_ok(clock_timestamp() - at, '>=', interval '290 milliseconds', 'wait() does not return for what is filtered') FROM clock;
SELECT evbus.publish('one', 'e', '{"i": 0}') AS id \gset
CALL evbus.wait('some', '20 seconds');
SELECT cmp_ok(clock_timestamp() - at, '<', interval '15 seconds', 'but for what is not') FROM clock;
SELECT is(take_all('some', 10), '0 ', 'which is then received');

-- Changed while it runs.
SELECT evbus.alter_subscription('some', filter => '$.i == 5');
SELECT evbus.publish_batch('one', '{e,e}', ARRAY['{"i": 5}', '{"i": 100}']::jsonb[]) AS id \g /dev/null
SELECT is(take_all('some', 10), '5 ', 'a new filter holds at once');
SELECT evbus.alter_subscription('some', batch_size => 7);
SELECT is((SELECT filter::text FROM evbus.subscription_list WHERE subscription = 'some'), '($."i" == 5)', 'NULL keeps it');
SELECT evbus.publish_batch('one', '{e,e}', ARRAY['{"i": 5}', '{"i": 100}']::jsonb[]) AS id \g /dev/null
SELECT is((SELECT count(*) FROM take('some', 1)), 1::bigint, 'one is in hand');
SELECT evbus.alter_subscription('some', filter => '$.i == 6');
SELECT is((SELECT evbus.nack(array_agg(r.receipt), delay => '0') FROM evbus.receive('some', 10) AS r HAVING count(*) > 0), NULL, 'the filter is another by now');
SELECT evbus.alter_subscription('some', filter => '$');
SELECT is((SELECT filter::text FROM evbus.subscription_list WHERE subscription = 'some'), NULL, '$ takes it away');
SELECT evbus.publish('one', 'e', '{"i": 8}') AS id \gset
SELECT is(take_all('some', 10), '8 ', 'then all is let through');

-- What failed is tried again whatever the filter says by now; so is what is redriven.
SELECT evbus.subscribe('one', 'again', filter => '$.i == 1', max_attempts => 2) AS p \gset
SELECT evbus.publish('one', 'e', '{"i": 1}') AS id \gset
CREATE TABLE held AS SELECT * FROM take('again', 1);
SELECT evbus.alter_subscription('again', filter => '$.i == 2');
SELECT is(evbus.nack(array_agg(receipt), delay => '0'), 1, 'what the filter no longer lets through can be nacked') FROM held;
SELECT is((SELECT evbus.nack(array_agg(receipt)) FROM take('again', 1)), 1, 'its retry comes all the same');
SELECT is(evbus.redrive('again'), 1::bigint, 'and when it is a dead letter');
SELECT is((SELECT evbus.ack(array_agg(receipt)) FROM take('again', 1)), 1, 'its redrive');

-- What waits behind a failed one in the table is asked about when its turn comes.
SELECT evbus.subscribe('one', 'parked', filter => '$.i < 10', ordering => 'key') AS p \gset
SELECT evbus.publish_batch('one', '{e,e,e}', ARRAY['{"i": 1}', '{"i": 2}', '{"i": 3}']::jsonb[], '{k,k,k}') AS id \g /dev/null
SELECT is((SELECT evbus.nack(array_agg(receipt), delay => '0') FROM take('parked', 1)), 1, 'the first of a key fails');
INSERT INTO evbus.retry (subscription_id, key, position, event_id, type, payload, attempts, due_at, first_failed_at, last_failed_at, sqlstate, message)
	SELECT r.subscription_id, r.key, r.position + v.n, r.event_id + v.n, r.type, r.payload, 0, 'infinity', now(), now(), '00000', 'parked' FROM evbus.retry AS r, (VALUES (1)) AS v (n) WHERE message <> 'parked' AND subscription_id = (SELECT subscription_id FROM evbus.subscription WHERE subscription = 'parked');
SELECT evbus.alter_subscription('parked', filter => '$.i > 10');
SELECT is((SELECT evbus.ack(array_agg(receipt)) FROM take('parked', 1)), 1, 'the first comes again, and is done');
SELECT is(poll($$SELECT (SELECT count(*) FROM evbus.receive('parked', 10)) || ' ' || (SELECT lag + retries + held_up FROM evbus.subscription_lag WHERE subscription = 'parked')$$, '0 0'), '0 0', 'what had not been tried is filtered, and the others of its key, too');
SELECT is((SELECT filtered FROM evbus.subscription_lag WHERE subscription = 'parked'), 3::bigint, 'and counted');

-- A replay is filtered as the subscription is.
SELECT evbus.subscribe('b', 're', filter => '$.total > 100') AS p \gset
SELECT evbus.replay('re', 'beginning', types => '{order.*}') AS replay \gset
SELECT is((SELECT string_agg(p.n::text, '' ORDER BY p.n) FROM take('re', 2) AS d JOIN published AS p ON p.id = d.event_id WHERE d.replayed), '14', 'a replay has the filter of its subscription');

-- What takes too long is a dead letter.
SELECT evbus.create_bus('bomb');
SELECT evbus.subscribe('bomb', 'client', filter => '$.s == "c" || $.s like_regex "^(.+)(.+)(.+)\\1\\2\\3?!$"'), evbus.subscribe('bomb', 'client_key', filter => '$.s == "c" || $.s like_regex "^(.+)(.+)(.+)\\1\\2\\3?!$"', ordering => 'key'),
	evbus.subscribe('bomb', 'ro', filter => '$.s == "c" || $.s like_regex "^(.+)(.+)(.+)\\1\\2\\3?!$"'),
	evbus.subscribe('bomb', 'handler', handler => 'note(evbus.event[])', filter => '$.i > 0 && !($.s like_regex "^(.+)(.+)(.+)\\1\\2\\3?!$")'),
	evbus.subscribe('bomb', 'handler_key', handler => 'note_one(evbus.event)', ordering => 'key', filter => '$.i > 0 && !($.s like_regex "^(.+)(.+)(.+)\\1\\2\\3?!$")') \g /dev/null
DELETE FROM called;
SET statement_timeout = '60s';
SELECT evbus.publish_batch('bomb', '{e,e,e}', ARRAY[jsonb_build_object('i', 1, 's', 'abc'), jsonb_build_object('i', 2, 's', repeat('a', 3000) || '!'), jsonb_build_object('i', 3, 's', 'c')], '{k,k,k}') AS id \g /dev/null
UPDATE clock SET at = clock_timestamp();
SELECT is((SELECT string_agg(payload->>'i', ' ') FROM take('client', 1)), '3', 'what the filter answers for is received') ;
SELECT cmp_ok(clock_timestamp() - at, '<', interval '10 seconds', 'soon') FROM clock;
SELECT is((SELECT string_agg(payload->>'i', ' ') FROM take('client_key', 1)), '3', 'in order as well') ;
SELECT becomes($$SELECT count(*)::text FROM called$$, '4', 'and handled');
SELECT becomes($$SELECT string_agg(subscription || ' ' || (payload->>'i') || ' ' || attempts || ' ' || reason || ' ' || sqlstate, ', ' ORDER BY subscription) FROM evbus.dead_letter$$,
	'client 2 1 permanent 57014, client_key 2 1 permanent 57014, handler 2 1 permanent 57014, handler_key 2 1 permanent 57014', 'where it has no answer in time, the event is a dead letter');
SELECT is((SELECT string_agg(DISTINCT message, ',') FROM evbus.dead_letter), 'the filter of the subscription took longer than evbus.filter_timeout (100 ms)', 'which says so');
SELECT is((SELECT string_agg(i::text, ' ' ORDER BY subscription, n) FROM called), '1 3 1 3', 'handlers get what comes before and after it');
SELECT is(evbus.redrive('client') + evbus.redrive('handler'), 2::bigint, 'redriven');
SELECT is((SELECT string_agg(payload->>'i', ' ') FROM take('client', 1)), '2', 'it is delivered whatever the filter would say');
SELECT becomes($$SELECT string_agg(i::text, ' ' ORDER BY n) FROM called WHERE subscription = 'h'$$, '1 3 2', 'to handlers, too');
\set ON_ERROR_STOP off
BEGIN READ ONLY;
SELECT * FROM evbus.receive('ro', 10);
\set said :SQLSTATE ' ' :LAST_ERROR_MESSAGE
ROLLBACK;
\set ON_ERROR_STOP on
SELECT ok(:'said' LIKE '57014 event % cannot be delivered to subscription "ro": the filter of the subscription took longer than%', 'a transaction that may not write says so');
SELECT is((SELECT string_agg(payload->>'i', ' ') FROM evbus.receive('ro', 10)), '3', 'another goes on');

-- The timeout of a statement is told from that of the filter.
SET statement_timeout = '50ms';
SELECT evbus.publish('bomb', 'e', jsonb_build_object('i', 4, 's', repeat('a', 3000) || '!'), 'k') AS id \gset
\set ON_ERROR_STOP off
SELECT * FROM evbus.receive('client', 10, wait => '10 seconds');
SELECT is(:'SQLSTATE' || ' ' || :'LAST_ERROR_MESSAGE', '57014 canceling statement due to statement timeout', 'a statement that is timed out in a filter ends');
\set ON_ERROR_STOP on
SET statement_timeout = '60s';
SELECT is((SELECT string_agg(payload->>'i', ' ') FROM evbus.receive('client', 10)), NULL, 'the next one gets to the end of the filter''s time');
SELECT is((SELECT count(*) FROM evbus.dead_letter WHERE subscription = 'client' AND payload->>'i' = '4'), 1::bigint, 'and makes it a dead letter');

-- Two long lists are not compared: PostgreSQL would not end it.
SELECT evbus.subscribe('bomb', 'lists', filter => '$.x == $.y') AS p \gset
SELECT evbus.publish('bomb', 'e', jsonb_build_object('i', 5, 'x', (SELECT jsonb_agg(i) FROM generate_series(1, 50000) AS i), 'y', (SELECT jsonb_agg(i) FROM generate_series(50001, 100000) AS i))) AS id \gset
SELECT evbus.publish('bomb', 'e', jsonb_build_object('i', 6, 'x', (SELECT jsonb_agg(i) FROM generate_series(1, 1000) AS i), 'y', (SELECT jsonb_agg(i) FROM generate_series(1000, 2000) AS i))) AS id \gset
SELECT is((SELECT string_agg(payload->>'i', ' ') FROM take('lists', 1)), '6', 'lists of moderate size are');
SELECT results_eq($$SELECT sqlstate, message FROM evbus.dead_letter WHERE subscription = 'lists'$$, $$VALUES ('54000', 'the filter of the subscription failed: it compares two paths with each other, and the event has more than 30000 values')$$, 'others are dead letters');

-- Age.
SELECT evbus.create_bus('old');
SELECT evbus.subscribe('old', 'young', max_age => '1 hour'), evbus.subscribe('old', 'any', max_age => '0'), evbus.subscribe('old', 'soon', max_age => '300 milliseconds'),
	evbus.subscribe('old', 'key', max_age => '300 milliseconds', ordering => 'key'), evbus.subscribe('old', 'both', max_age => '300 milliseconds', filter => '$.i == 1'),
	evbus.subscribe('old', 'types', max_age => '300 milliseconds', types => '{other}') \g /dev/null
SELECT results_eq($$SELECT subscription, max_age FROM evbus.subscription_list WHERE bus = 'old' AND subscription IN ('young', 'any')$$, $$VALUES ('young', interval '1 hour'), ('any', NULL)$$, 'it is shown, and 0 is none');
SELECT evbus.publish_batch('old', '{e,e}', ARRAY['{"i": 1}', '{"i": 2}']::jsonb[], '{k,k}') AS id \g /dev/null
SELECT is(take_all(s, 10), '1 2 ', 'what is young enough is received: ' || s) FROM unnest('{young,any}'::text[]) AS s;
SELECT poll('SELECT (min(published_at) < clock_timestamp() - interval ''350 milliseconds'' AND max(published_at) < clock_timestamp() - interval ''350 milliseconds'')::text FROM evbus.history WHERE bus = ''old''', 'true') AS waited \gset
SELECT is(drained(s), '0 0', 'what is too old is passed over: ' || s) FROM unnest('{soon,key,both,types}'::text[]) AS s;
SELECT results_eq($$SELECT subscription, filtered, expired FROM evbus.subscription_lag WHERE bus = 'old' ORDER BY subscription$$,
	$$VALUES ('any', 0::bigint, 0::bigint), ('both', 0, 2), ('key', 0, 2), ('soon', 0, 2), ('types', 0, 0), ('young', 0, 0)$$, 'and counted, as long as it is of a type that is wanted');
SELECT is((SELECT sum(n) FROM ledger_rows WHERE subscription IN ('soon', 'key', 'both')), 0::numeric, 'without rows in the ledger');
SELECT is((SELECT string_agg(payload->>'i', ' ') FROM (SELECT evbus.replay('soon', 'beginning')) AS r, take('soon', 2) AS d WHERE d.replayed), '1 2', 'a replay knows no age');
-- Retries.
SELECT evbus.alter_subscription('young', max_age => '1 day');
SELECT evbus.publish('old', 'e', '{"i": 3}') AS id \gset
SELECT is((SELECT evbus.nack(array_agg(receipt), delay => '0') FROM take('young', 1)), 1, 'one fails');
SELECT evbus.alter_subscription('young', max_age => '1 millisecond');
SELECT is(drained('young'), '0 0', 'its retry is too old');
SELECT results_eq($$SELECT retries, expired FROM evbus.subscription_lag WHERE subscription = 'young'$$, $$VALUES (0::bigint, 1::bigint)$$, 'done, and counted');
SELECT evbus.alter_subscription('young', max_age => '0');
SELECT is((SELECT max_age FROM evbus.subscription_list WHERE subscription = 'young'), NULL, '0 takes the age away');
SELECT evbus.publish('old', 'e', '{"i": 4}') AS id \gset
SELECT is((SELECT evbus.reject(array_agg(receipt)) FROM take('young', 1)), 1, 'one is rejected');
SELECT evbus.alter_subscription('young', max_age => '1 millisecond');
SELECT is(evbus.redrive('young'), 1::bigint, 'and redriven');
SELECT is((SELECT string_agg(payload->>'i', ' ') FROM take('young', 1)), '4', 'which knows no age either');

-- What cannot be a filter.
SELECT throws_ok($$SELECT evbus.subscribe('b', 'x', filter => '$.')$$, '42601', NULL, 'what is no jsonpath is PostgreSQL''s error');
SELECT throws_ok(format('SELECT evbus.subscribe(%L, %L, filter => %L)', 'b', 'x', path), '22023', 'filter refers to variable "$who", which there is not', 'an unknown variable is refused: ' || path)
FROM unnest(ARRAY['$who', '$.a == $who', '$who.a.b > 1', '$.a[0 to $who]', '$ ? (exists(@.x ? (@.y + 1 == $who)))', '!($.a starts with $who)', '-$who', '($who like_regex "a") is unknown', '$.a && $.b && ($.c || $who == 1)']) AS path
WHERE path NOT LIKE '$.a && %';
SELECT throws_ok($$SELECT evbus.alter_subscription('young', filter => '$who == 1')$$, '22023', NULL, 'also later');
SELECT throws_ok(format($$SELECT evbus.alter_subscription('young', filter => %L)$$, '$.a == "' || repeat('x', 17000) || '"'), '22023', 'filter is too large', 'a filter has a limit');
SELECT throws_ok($$SELECT evbus.subscribe('b', 'x', max_age => '-1 second')$$, '22023', NULL, 'an age is not negative');
SELECT throws_ok($$SELECT evbus.subscribe('b', 'x', max_age => '36501 days')$$, '22023', NULL, 'nor for ever');
SELECT is((SELECT count(*) FROM evbus.subscription_list WHERE subscription = 'x'), 0::bigint, 'nothing came of these');

-- Damaged data is told by the delivery, with a filter as without.
SELECT evbus.create_bus('damaged', compression => 'none');
SELECT evbus.subscribe('damaged', 'd', filter => '$.i > 0', ordering => 'key') AS p \gset
SELECT evbus.publish('damaged', 'e', '{"i": 1}', 'k') AS id \gset
SELECT evbus.nack(array_agg(receipt), delay => '0') AS n FROM take('d', 1) \gset
UPDATE evbus.retry SET payload = '\x02ff', attempts = 0 WHERE event_id = :id;
SELECT is((SELECT count(*) FROM evbus.receive('d', 10)), 0::bigint, 'damaged data is not received');
SELECT is((SELECT sqlstate FROM evbus.dead_letter_log WHERE event_id = :id), 'XX001', 'it is a dead letter, as without a filter');
-- Of jsonb as it is, with a string that ends behind it: nobody looks into it.
SELECT evbus.publish('damaged', 'e', '{"i": 2}', 'k') AS id \gset
SELECT evbus.nack(array_agg(receipt), delay => '0') AS n FROM take('d', 1) \gset
UPDATE evbus.retry SET payload = '\x000100001005000000', attempts = 0 WHERE event_id = :id;
SELECT is((SELECT count(*) FROM evbus.receive('d', 10)), 0::bigint, 'nor is what is no jsonb');
SELECT is((SELECT sqlstate FROM evbus.dead_letter_log WHERE event_id = :id), 'XX001', 'which is a dead letter, too');

SELECT * FROM finish();
