-- Priority: what overtakes what, in which calls, and who is overtaken how often at most. Expiry: who does not get an event any more.
\ir include/helpers.sql
SELECT plan(98);

SELECT evbus.create_bus('b');

-- Publishes an event of each priority, with its number as the payload; they have positions when it returns.
CREATE FUNCTION put(bus text, priorities integer[], type text DEFAULT 'e') RETURNS void LANGUAGE sql AS $$
	SELECT count(evbus.publish(bus, type, jsonb_build_object('i', i, 'p', p), priority => p)) FROM unnest(priorities) WITH ORDINALITY AS u(p, i)
$$;
CREATE FUNCTION got(subscription text, n integer, max integer DEFAULT 100) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(payload->>'p', ' ' ORDER BY ordinality) FROM evbus.receive(subscription, least(n, max), wait => '10 seconds') WITH ORDINALITY
$$;
-- All there is, so many a call, acked; each by its priority.
CREATE FUNCTION drain(subscription text, per integer) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	all_of text := '';
	more text;
BEGIN
	LOOP
		WITH d AS MATERIALIZED (SELECT * FROM evbus.receive(subscription, per, wait => '300 milliseconds') WITH ORDINALITY),
			a AS MATERIALIZED (SELECT evbus.ack(array_agg(receipt)) FROM d HAVING count(*) > 0)
		SELECT string_agg(payload->>'p', ' ' ORDER BY ordinality) INTO more FROM d, a;
		EXIT WHEN more IS NULL;
		all_of := all_of || more || ' ';
	END LOOP;
	RETURN all_of;
END $$;
CREATE FUNCTION settled(subscription text) RETURNS text LANGUAGE sql AS $$
	SELECT l.lag || ' ' || l.in_flight || ' ' || l.retries FROM evbus.subscription_lag l WHERE l.subscription = settled.subscription
$$;

-- The arguments.
SELECT is(sqlstate_of(format('SELECT evbus.publish(''b'', ''e'', ''1'', priority => %s)', p)), s, 'priority ' || p) FROM (VALUES ('10', '22023'), ('-10', '22023'), ('9', '00000'), ('-9', '00000'), ('NULL', '00000'), ('2147483647', '22023')) AS v (p, s);
SELECT is(sqlstate_of(format('SELECT evbus.publish_batch(''b'', ''{e}'', ''{1}'', priority => %s)', p)), '22023', 'of a batch ' || p) FROM (VALUES ('10'), ('-10')) AS v (p);
SELECT is(sqlstate_of(format('SELECT evbus.publish_lines(''b'', ''e'', ''1'', priority => %s)', p)), '22023', 'of lines ' || p) FROM (VALUES ('10'), ('-10')) AS v (p);
SELECT is(sqlstate_of('SELECT evbus.subscribe(''b'', ''x'', by_priority => NULL)'), '22004', 'by_priority must not be null');
SELECT is(sqlstate_of(format('SELECT evbus.subscribe(''b'', ''x'', by_priority => true, ordering => %L)', o)), '22023', 'nor with an order: ' || o) FROM unnest('{key,strict}'::text[]) AS o;
SELECT evbus.subscribe('b', 'keyed', ordering => 'key'), evbus.subscribe('b', 'pri', by_priority => true) \g /dev/null
SELECT is(sqlstate_of($$SELECT evbus.alter_subscription('keyed', by_priority => true)$$), '22023', 'also when altered');
SELECT is(sqlstate_of($$SELECT evbus.alter_subscription('pri', ordering => 'strict')$$), '22023', 'either way');
SELECT is(sqlstate_of($$SELECT evbus.alter_subscription('keyed', by_priority => true, ordering => 'none')$$), '00000', 'but both at once can be changed');
SELECT results_eq($$SELECT by_priority FROM evbus.subscription_list WHERE subscription IN ('keyed', 'pri') ORDER BY subscription$$, 'VALUES (false), (true)', 'the view shows it');
SELECT evbus.unsubscribe('keyed');

-- Who asks in which way.
SELECT evbus.subscribe('b', 'plain'), evbus.subscribe('b', 'lines', by_priority => true), evbus.subscribe('b', 'single', by_priority => true), evbus.subscribe('b', 'few', by_priority => true) \g /dev/null
SELECT put('b', '{0,5,-3,9,0,5,-9,1}');
SELECT is(got('plain', 8), '0 5 -3 9 0 5 -9 1', 'who does not ask for it gets them as they come');
SELECT is(got('pri', 8), '9 5 5 1 0 0 -3 -9', 'by priority all at once');
SELECT is((SELECT string_agg(payload->>'i', ' ') FROM (SELECT payload FROM evbus.history ORDER BY event_id) AS h), '1 2 3 4 5 6 7 8', 'the log is as it was published');
SELECT is((SELECT string_agg((l::jsonb)->'payload'->>'p', ' ') FROM evbus.receive_lines('lines', 100, wait => '10 seconds') AS r, string_to_table(r.lines, E'\n') AS l), '9 5 5 1 0 0 -3 -9', 'lines as well');
SELECT is(drain('single', 1), '9 5 5 1 0 0 -3 -9 ', 'one by one');
SELECT is(drain('few', 3), '9 5 5 1 0 0 -3 -9 ', 'three by three');
SELECT is(settled('single'), '0 0 0', 'all is done');
SELECT is(settled('few'), '0 0 0', 'there, too');
SELECT is((SELECT string_agg(priority::text, ' ' ORDER BY event_id) FROM evbus.history), '0 5 -3 9 0 5 -9 1', 'the history has it');
SELECT is((SELECT string_agg(priority::text, ' ') FROM evbus.history_page('b', "order" => 'oldest')), '0 5 -3 9 0 5 -9 1', 'its pages as well');
SELECT is((SELECT count(*) FROM evbus.history WHERE headers IS NOT NULL), 0::bigint, 'and no headers come of it');
SELECT is((SELECT string_agg(type || ' ' || coalesce(headers::text, '-'), ', ' ORDER BY event_id) FROM evbus.history AS h, (VALUES (1)) AS v (n) WHERE priority = 9), 'e -', 'none at all');

-- Headers beside it.
SELECT evbus.publish('b', 'h', '{"p": 3}', headers => '{"tenant": "a"}', priority => 3, expires_at => now() + interval '1 hour') AS id \gset
SELECT is((SELECT headers::text || ' ' || priority || ' ' || (expires_at > now()) FROM evbus.history WHERE event_id = :id), '{"tenant": "a"} 3 true', 'headers stay what they are');
SELECT evbus.subscribe('b', 'h', types => '{h}', start_from => 'beginning', filter => '$headers.tenant == "a"', by_priority => true) AS p \gset
SELECT is((SELECT string_agg(headers::text, '') FROM take('h', 1)), '{"tenant": "a"}', 'who receives gets them, whose filter asks finds them');

-- Types that are not wanted, a backlog before what is urgent, and a part of it given back.
SELECT evbus.create_bus('many');
SELECT evbus.subscribe('many', 'one', types => '{want,urgent}', by_priority => true), evbus.subscribe('many', 'hundred', by_priority => true), evbus.subscribe('many', 'back', by_priority => true) \g /dev/null
SELECT evbus.publish_batch('many', '{other}', array_agg('{"p": 0}'::jsonb)) AS id FROM generate_series(1, 3000) \g /dev/null
SELECT evbus.publish_batch('many', '{want}', array_agg(jsonb_build_object('p', 0, 'i', i))) AS id FROM generate_series(1, 6000) AS i \g /dev/null
SELECT evbus.publish('many', 'urgent', '{"p": 7}', priority => 7) AS id \gset
SELECT becomes($$SELECT lag::text FROM evbus.subscription_lag WHERE subscription = 'one'$$, '9001', 'nine thousand wait');
SELECT is((WITH RECURSIVE r AS (SELECT 1 AS n, got('one', 1) AS p UNION ALL SELECT n + 1, got('one', 1) FROM r WHERE p <> '7' AND n < 100) SELECT max(n) FROM r), 7, 'what is urgent comes as soon as it was looked at: so far ahead each call looks');
SELECT is((WITH RECURSIVE r AS (SELECT 1 AS n, got('hundred', 100) AS p UNION ALL SELECT n + 1, got('hundred', 100) FROM r WHERE p NOT LIKE '%7%' AND n < 100) SELECT max(n) FROM r), 9, 'or each batch');
SELECT is((SELECT count(*) FROM take('back', 50, lease => '1 second')), 50::bigint, 'some are in hand whose lease runs out');
SELECT is((SELECT evbus.release(array_agg(receipt)) FROM take('back', 50)), 50, 'some are released');
SELECT pg_sleep(1.1);
SELECT is((SELECT count(DISTINCT event_id) FROM (SELECT event_id FROM take('back', 9001)) AS x), 9001::bigint, 'all of them come again, and each event once');

-- Nobody starves: of eight deliveries one is the oldest.
SELECT evbus.create_bus('busy');
SELECT evbus.subscribe('busy', 'turn', by_priority => true), evbus.subscribe('busy', 'turns', by_priority => true) \g /dev/null
SELECT put('busy', array_fill(0, ARRAY[4]) || array_fill(5, ARRAY[100]));
SELECT is(left(drain('turn', 1), 80), left(repeat('5 5 5 5 5 5 5 0 ', 4) || repeat('5 ', 100), 80), 'one by one');
SELECT put('busy', array_fill(0, ARRAY[100]) || array_fill(5, ARRAY[400]));
SELECT is(settled('turn'), '500 0 0', 'more of them');
SELECT is((SELECT string_agg(y, ' ') FROM (SELECT count(*) FILTER (WHERE payload->>'p' = '0')::text AS y FROM generate_series(1, 10) AS n, LATERAL (SELECT r.payload, n FROM evbus.receive('turn', 32 + 0 * n) AS r) AS c GROUP BY c.n ORDER BY c.n) AS x), '4 4 4 4 4 4 4 4 4 4', 'in batches an eighth of each');
SELECT is((SELECT string_agg(DISTINCT p, ' ') FROM (SELECT unnest(string_to_array(rtrim(drain('turns', 50)), ' ')) AS p) AS x), '0 5', 'all come in the end');
SELECT is(settled('turns'), '0 0 0', 'each once');

-- What has failed keeps its priority, and its expiry.
SELECT evbus.create_bus('fails');
SELECT evbus.subscribe('fails', 'f', by_priority => true, max_attempts => 2, backoff_initial => '0', backoff_max => '0') AS p \gset
SELECT evbus.publish('fails', 'e', '{"p": 4}', priority => 4, expires_at => '2100-01-01 00:00+00') AS id \gset
SELECT is((SELECT evbus.nack(array_agg(receipt), delay => '0') FROM take('f', 1)), 1, 'one fails');
SELECT is((SELECT priority || ' ' || (expires_at = '2100-01-01 00:00+00') FROM evbus.retry_list WHERE subscription = 'f'), '4 true', 'its retry has both');
SELECT is((SELECT evbus.nack(array_agg(receipt)) FROM take('f', 1)), 1, 'once more');
SELECT is((SELECT priority || ' ' || (expires_at = '2100-01-01 00:00+00') || ' ' || (headers IS NULL) FROM evbus.dead_letter WHERE subscription = 'f'), '4 true true', 'and its dead letter');

-- Later.
SELECT evbus.publish('fails', 'later', '{"p": 6}', delay => '200 milliseconds', priority => 6, expires_at => '2100-01-01 00:00+00') AS scheduled \gset
SELECT is((SELECT priority || ' ' || (expires_at = '2100-01-01 00:00+00') || ' ' || (headers IS NULL) FROM evbus.scheduled_list WHERE id = :scheduled), '6 true true', 'while it waits for its time');
SELECT is((SELECT string_agg(payload->>'p' || ' ' || headers::text, '') FROM take('f', 1)), format('6 {"scheduledid": "%s"}', :'scheduled'), 'when it comes');
SELECT is((SELECT priority || ' ' || (expires_at = '2100-01-01 00:00+00') FROM evbus.history WHERE type = 'later'), '6 true', 'it is the same');
SELECT is(sqlstate_of($$SELECT evbus.publish('fails', 'e', '1', delay => '2 hours', expires_at => now() + interval '1 hour')$$), '22023', 'it must not expire before it is due');
SELECT is(sqlstate_of($$SELECT evbus.publish_batch('fails', '{e}', '{1}', deliver_at => now() + interval '2 hours', expires_at => now() + interval '1 hour')$$), '22023', 'in a batch neither');

-- Batches and lines.
SELECT evbus.create_bus('bulk');
SELECT evbus.subscribe('bulk', 'bulk', by_priority => true) AS p \gset
SELECT evbus.publish_batch('bulk', '{e}', ARRAY['{"p": 1}', '{"p": 1}']::jsonb[]) AS id \g /dev/null
SELECT evbus.publish_batch('bulk', '{e}', ARRAY['{"p": 2}', '{"p": 2}']::jsonb[], headers => ARRAY['{"h": 1}', NULL]::jsonb[], priority => 2) AS id \g /dev/null
SELECT evbus.publish_lines('bulk', 'e', E'{"p": 8}\n{"p": 8}', priority => 8, headers => '{"x": 1}') AS id \g /dev/null
SELECT becomes($$SELECT lag::text FROM evbus.subscription_lag WHERE subscription = 'bulk'$$, '6', 'six wait');
SELECT is((SELECT string_agg(payload->>'p' || coalesce(headers::text, ''), ' ') FROM take('bulk', 6)), '8{"x": 1} 8{"x": 1} 2{"h": 1} 2 1 1', 'of all events of the call');

-- Handlers: in the order of the calls, single or in batches.
CREATE TABLE called (n integer GENERATED ALWAYS AS IDENTITY, h text, p integer);
CREATE FUNCTION one(evbus.event) RETURNS void LANGUAGE sql AS $$ INSERT INTO called (h, p) VALUES ('one', ($1.payload->>'p')::integer) $$;
CREATE FUNCTION many(evbus.event[]) RETURNS void LANGUAGE sql AS $$ INSERT INTO called (h, p) SELECT 'many', (e.payload->>'p')::integer FROM unnest($1) WITH ORDINALITY AS e ORDER BY e.ordinality $$;
CREATE FUNCTION fails(evbus.event) RETURNS void LANGUAGE plpgsql AS $$ BEGIN INSERT INTO called (h, p) VALUES ('fails', ($1.payload->>'p')::integer); IF ($1.payload->>'p')::integer = 5 THEN RAISE division_by_zero; END IF; END $$;
SELECT evbus.create_bus('work');
SELECT evbus.subscribe('work', 'w1', handler => 'one(evbus.event)', by_priority => true, batch_size => 4), evbus.subscribe('work', 'w2', handler => 'many(evbus.event[])', by_priority => true, batch_size => 10), evbus.subscribe('work', 'w3', handler => 'fails(evbus.event)', by_priority => true) \g /dev/null
SELECT evbus.pause_bus('work');
SELECT put('work', '{0,5,-3,9,0,5,-9,1}');
SELECT becomes($$SELECT string_agg(DISTINCT lag::text, ' ') FROM evbus.subscription_lag WHERE bus = 'work'$$, '8', 'eight wait for each');
SELECT evbus.resume_bus('work');
SELECT becomes($$SELECT string_agg(lag::text, ' ') FROM evbus.subscription_lag WHERE bus = 'work'$$, '0 0 0', 'all are done');
SELECT is((SELECT string_agg(p::text, ' ' ORDER BY n) FROM called WHERE h = 'one'), '9 5 5 1 0 0 -3 -9', 'single calls');
SELECT is((SELECT string_agg(p::text, ' ' ORDER BY n) FROM called WHERE h = 'many'), '9 5 5 1 0 0 -3 -9', 'an array');
SELECT is((SELECT string_agg(p::text, ' ' ORDER BY n) FROM called WHERE h = 'fails'), '9 1 0 0 -3 -9', 'where some fail, the others are done');
SELECT is((SELECT count(*) FROM evbus.dead_letter WHERE subscription = 'w3'), 2::bigint, 'and those are dead letters');

-- A replay has the priorities of its subscription; it can be changed while it runs; volatile buses.
SELECT is(got('pri', 1), '3', 'what came meanwhile');
SELECT evbus.replay('pri', 'beginning', types => '{e}') AS replay \gset
SELECT is((SELECT string_agg(payload->>'p', ' ') FROM take('pri', 8)), '9 5 5 1 0 0 -3 -9', 'a replay is by priority, too');
SELECT evbus.create_bus('alter');
SELECT evbus.subscribe('alter', 'alter', by_priority => true) AS p \gset
SELECT put('alter', '{0,5,0,5,0,5}');
SELECT is(got('alter', 1), '5', 'by priority');
SELECT evbus.alter_subscription('alter', by_priority => false);
SELECT is(drain('alter', 10), '0 0 5 0 5 ', 'and from now on as they come');
SELECT evbus.alter_subscription('alter', by_priority => true);
SELECT put('alter', '{0,5}');
SELECT is(got('alter', 2), '5 0', 'and again');
SELECT evbus.create_bus('v', durability => 'volatile');
SELECT evbus.subscribe('v', 'v', by_priority => true) AS p \gset
SELECT put('v', '{0,5,-3,9}');
SELECT is(got('v', 2) || ' ' || got('v', 2), '9 5 0 -3', 'of a volatile bus');
SELECT evbus.publish('v', 'e', '{"p": 0}', expires_at => now() - interval '1 second') AS id \gset
SELECT evbus.publish('v', 'e', '{"p": 1}', headers => '{"a": 1}', expires_at => now() + interval '1 hour') AS id \gset
SELECT is((SELECT string_agg(payload->>'p' || headers::text, '') FROM take('v', 1)), '1{"a": 1}', 'where events expire, too');

-- Expiry.
SELECT evbus.create_bus('x');
SELECT evbus.subscribe('x', 'xs'), evbus.subscribe('x', 'xkey', ordering => 'key'), evbus.subscribe('x', 'xp', by_priority => true), evbus.subscribe('x', 'xh', handler => 'one(evbus.event)') \g /dev/null
DELETE FROM called;
SELECT evbus.publish('x', 'e', '{"p": 1}', expires_at => now() - interval '1 day') AS past \gset
SELECT evbus.publish('x', 'e', '{"p": 2}', key => 'k', expires_at => now() + interval '1 hour') AS hour \gset
SELECT evbus.publish('x', 'e', '{"p": 3}', key => 'k', expires_at => 'infinity') AS never \gset
SELECT evbus.publish('x', 'e', jsonb_build_object('p', 4, 'x', (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 500) AS i)), expires_at => '1066-10-14') AS large \gset
SELECT evbus.publish('x', 'e', '{"p": 5}', expires_at => '1999-12-31') AS old \gset
SELECT evbus.publish('x', 'e', '{"p": 6}', expires_at => '2000-01-01 00:00+00') AS zero \gset
SELECT is((SELECT string_agg(payload->>'p', ' ') FROM take('xs', 2)), '2 3', 'what has expired is not delivered');
SELECT is((SELECT string_agg(payload->>'p', ' ') FROM evbus.receive('xp', 10, wait => '10 seconds')), '2 3', 'nor by priority');
SELECT is(consume('xkey', 1) || consume('xkey', 1), 'ee', 'nor in order');
SELECT becomes($$SELECT string_agg(p::text, ' ' ORDER BY n) FROM called WHERE h = 'one'$$, '2 3', 'nor to a handler');
SELECT is((SELECT count(*) FROM evbus.receive(x, 10)), 0::bigint, 'nothing else is there: ' || x) FROM unnest('{xs,xkey,xp}'::text[]) AS x;
SELECT becomes($$SELECT string_agg(expired::text, ' ') FROM evbus.subscription_lag WHERE bus = 'x'$$, '4 4 4 4', 'and counted');
SELECT is((SELECT string_agg(coalesce((expires_at < now())::text, 'never'), ' ' ORDER BY event_id) FROM evbus.history WHERE bus = 'x'), 'true false never true true true', 'the history says when');
SELECT evbus.subscribe('x', 'xr', start_from => 'now', backoff_initial => '0', backoff_max => '0') AS p \gset
SELECT evbus.publish('x', 'e', '{"p": 7}', expires_at => clock_timestamp() + interval '1 second') AS id \gset
SELECT is((SELECT evbus.nack(array_agg(receipt), delay => '1 second') FROM take('xr', 1)), 1, 'one comes in time, and fails');
SELECT is(poll($$SELECT count(*) || ' ' || (SELECT retries FROM evbus.subscription_lag WHERE subscription = 'xr') FROM evbus.receive('xr', 1)$$, '0 0'), '0 0', 'its retry would be too late');
SELECT is((SELECT expired FROM evbus.subscription_lag WHERE subscription = 'xr'), 1::bigint, 'and is counted');
SELECT evbus.publish('x', 'e', '{"p": 8}', expires_at => clock_timestamp() + interval '1 second') AS id \gset
SELECT is((SELECT evbus.reject(array_agg(receipt), 'no') FROM take('xr', 1)), 1, 'another is a dead letter');
SELECT pg_sleep(1);
SELECT is(evbus.redrive('xr'), 1::bigint, 'redriven after its time');
SELECT is((SELECT evbus.ack(array_agg(receipt)) FROM take('xr', 1)), 1, 'it is delivered, for somebody asked for it');
SELECT evbus.replay('xr', 'beginning') AS replay \gset
SELECT is((SELECT string_agg(payload->>'p', ' ' ORDER BY payload->>'p') FROM take('xr', 8)), '1 2 3 4 5 6 7 8', 'and so does a replay');

SELECT evbus.create_bus('slow x');
CREATE FUNCTION slowly(e evbus.event) RETURNS void LANGUAGE sql AS $$ INSERT INTO called (h, p) VALUES ('slow x', extract(epoch FROM clock_timestamp() - (SELECT h.expires_at FROM evbus.history AS h WHERE h.event_id = e.event_id))); SELECT pg_sleep(0.1) $$;
SELECT evbus.subscribe('slow x', 'slow x', handler => 'slowly(evbus.event)'), evbus.pause('slow x') \g /dev/null
SELECT count(*) AS n FROM evbus.publish_batch('slow x', '{e}', (SELECT array_agg(to_jsonb(i)) FROM generate_series(1, 50) AS i), expires_at => clock_timestamp() + interval '1 second') \gset
SELECT evbus.resume('slow x');
SELECT becomes($$SELECT lag::text FROM evbus.subscription_lag WHERE subscription = 'slow x'$$, '0', 'a batch goes on for longer than its events live');
SELECT is((SELECT count(*) FILTER (WHERE p > 0) || ' ' || (count(*) BETWEEN 1 AND 12) FROM called WHERE h = 'slow x'), '0 true', 'those that have expired meanwhile are not handled');
SELECT is((SELECT expired + (SELECT count(*) FROM called WHERE h = 'slow x') FROM evbus.subscription_lag WHERE subscription = 'slow x'), 50::bigint, 'and counted');

-- What is damaged, or no envelope at all.
SELECT is(evbus._priority(d::bytea) || ' ' || coalesce(evbus._expires_at(d::bytea)::text, '-'), '0 -', 'no envelope: ' || d) FROM unnest(ARRAY['', '\x04', '\x0414', '\x04ffffffffffffffffffff01', '\x041400', '\x0400ffffffffffffffffff01', '\x0201']) AS d;
SELECT is(evbus._priority(NULL), 0, 'NULL has none');
SELECT is(sqlstate_of(format('SELECT evbus._decode(%L)', d)), 'XX001', 'what is in it is checked: ' || d) FROM unnest(ARRAY['\x04', '\x0414', '\x04000001', '\x0400000400', '\x04140002ff']) AS d;

SELECT * FROM finish();
