-- Handlers: functions that workers call, effects and ack in one transaction.
\ir include/helpers.sql
SELECT plan(66);

SELECT evbus.create_bus('orders');
CREATE TABLE effect (handler text, event_id bigint, bus text, type text, key text, payload jsonb, headers jsonb,
	published_at timestamptz, position bigint, attempt integer, replayed boolean, pid integer DEFAULT pg_backend_pid(), n bigint GENERATED ALWAYS AS IDENTITY);

-- one event at a time

CREATE FUNCTION one(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO effect SELECT 'one', e.*;
END $$;
SELECT evbus.subscribe('orders', 'one', handler => 'one(evbus.event)') AS position \gset
SELECT results_eq($$SELECT handler, channel FROM evbus.subscription_list WHERE subscription = 'one'$$, $$VALUES ('public.one(evbus.event)', NULL::text)$$,
	'the list shows the handler, and no channel');
SELECT evbus.publish('orders', 'order.created', '{"n": 1}', key => 'k', headers => '{"h": 1}') AS id \gset
SELECT becomes($$SELECT count(*)::text FROM effect WHERE handler = 'one'$$, '1', 'the handler is called');
SELECT results_eq(
	$$SELECT event_id, bus, type, key, payload, headers, published_at, attempt FROM effect WHERE handler = 'one'$$,
	$$SELECT event_id, bus, type, key, payload, headers, published_at, 1 FROM evbus.history$$,
	'and given the event whole, as attempt 1');
SELECT isnt((SELECT pid FROM effect WHERE handler = 'one'), pg_backend_pid(), 'in another process than the publisher');
SELECT becomes($$SELECT cursor_position::text || ' ' || lag || ' ' || in_flight FROM evbus.subscription_lag WHERE subscription = 'one'$$,
	(SELECT position + 1 || ' 0 0' FROM effect WHERE handler = 'one'), 'the subscription has moved on behind it');
SELECT throws_ok($$SELECT evbus.receive('one')$$, 'VB013', NULL, 'clients cannot receive what a handler is for');
SELECT throws_ok($$CALL evbus.wait('one', '10 milliseconds')$$, 'VB013', NULL, 'clients cannot wait for it either');
SELECT count(evbus.publish('orders', 'mass', to_jsonb(i))) AS n FROM generate_series(1, 1000) AS i \gset
SELECT becomes($$SELECT count(*) || ' ' || count(DISTINCT event_id) FROM effect WHERE handler = 'one' AND type = 'mass'$$, '1000 1000', 'a thousand events are handled once each');
SELECT is_empty($$SELECT 1 FROM (SELECT position, lag(position) OVER (ORDER BY n) AS before FROM effect WHERE handler = 'one') AS e WHERE position <= before$$,
	'one worker handles them in the order of their positions');

-- batches

CREATE FUNCTION many(events evbus.event[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO effect SELECT 'many', e.* FROM unnest(events) AS e;
	INSERT INTO effect (handler, attempt) VALUES ('many calls', cardinality(events));
END $$;
SELECT evbus.subscribe('orders', 'many', handler => 'many(evbus.event[])', start_from => 'beginning', batch_size => 50) AS position \gset
SELECT results_eq($$SELECT handler FROM evbus.subscription_list WHERE subscription = 'many'$$, $$VALUES ('public.many(evbus.event[])')$$, 'the list shows a batch handler');
SELECT becomes($$SELECT count(*) || ' ' || count(DISTINCT event_id) FROM effect WHERE handler = 'many'$$, '1001 1001', 'a batch handler is given every event once');
SELECT cmp_ok(max(attempt), '<=', 50, 'never more than batch_size in one call') FROM effect WHERE handler = 'many calls';
SELECT cmp_ok(max(attempt), '>', 1, 'and more than one in a call when more are waiting') FROM effect WHERE handler = 'many calls';
SELECT results_eq($$SELECT array_agg(event_id ORDER BY event_id) FROM effect WHERE handler = 'many'$$,
	$$SELECT array_agg(event_id ORDER BY event_id) FROM evbus.history$$, 'and what it is given is what the history holds');
SELECT is_empty($$SELECT 1 FROM (SELECT position, lag(position) OVER (ORDER BY n) AS before FROM effect WHERE handler = 'many') AS e WHERE position <= before$$,
	'in the order of their positions');
SELECT evbus.unsubscribe('many');
SELECT evbus.unsubscribe('one');

-- languages and return types

CREATE FUNCTION in_sql(evbus.event) RETURNS bigint LANGUAGE sql AS $$INSERT INTO effect SELECT 'in_sql', $1.* RETURNING event_id$$;
CREATE FUNCTION returns_text(e evbus.event) RETURNS text LANGUAGE plpgsql AS $$BEGIN INSERT INTO effect SELECT 'returns_text', e.*; RETURN 'done'; END$$;
CREATE FUNCTION returns_null(e evbus.event) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN INSERT INTO effect SELECT 'returns_null', e.*; RETURN NULL; END$$;
CREATE FUNCTION returns_row(e evbus.event) RETURNS evbus.event LANGUAGE plpgsql AS $$BEGIN INSERT INTO effect SELECT 'returns_row', e.*; RETURN e; END$$;
CREATE FUNCTION strict_one(e evbus.event) RETURNS void LANGUAGE plpgsql STRICT AS $$BEGIN INSERT INTO effect SELECT 'strict_one', e.*; END$$;
CREATE FUNCTION definer(e evbus.event) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$BEGIN INSERT INTO effect SELECT 'definer', e.*; END$$;
CREATE SCHEMA "Odd schema";
CREATE FUNCTION "Odd schema"."Odd ""name"""(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$BEGIN INSERT INTO public.effect SELECT 'odd', e.*; END$$;
SELECT evbus.subscribe('orders', name, types => '{shapes}', handler => (name || '(evbus.event)')::regprocedure) AS position
FROM (VALUES ('in_sql'), ('returns_text'), ('returns_null'), ('returns_row'), ('strict_one'), ('definer')) AS v (name) \g /dev/null
SELECT evbus.subscribe('orders', 'odd', types => '{shapes}', handler => '"Odd schema"."Odd ""name"""(evbus.event)') AS position \gset
SELECT evbus.publish('orders', 'shapes', '1') AS id \gset
SELECT becomes(format('SELECT count(*)::text FROM effect WHERE handler = %L', name), '1', 'a handler is called, its result ignored: ' || about)
FROM (VALUES ('in_sql', 'language SQL, returning bigint'), ('returns_text', 'returning text'), ('returns_null', 'returning NULL'),
	('returns_row', 'returning a row'), ('strict_one', 'STRICT'), ('definer', 'SECURITY DEFINER'), ('odd', 'name and schema that need quotes')) AS v (name, about);
SELECT is((SELECT handler FROM evbus.subscription_list WHERE subscription = 'odd'), '"Odd schema"."Odd ""name"""(evbus.event)', 'the list quotes a name that needs quotes');
SELECT evbus.unsubscribe(subscription) FROM evbus.subscription_list;

-- what is no handler

CREATE FUNCTION takes_number(integer) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION takes_nothing() RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION takes_two(evbus.event, integer) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION takes_default(evbus.event, integer DEFAULT 1) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION takes_any(anyelement) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION takes_delivery(evbus.delivery) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION returns_set(evbus.event) RETURNS SETOF integer LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE procedure_(evbus.event) LANGUAGE sql AS '';
CREATE AGGREGATE aggregate_(evbus.event) (SFUNC = array_append, STYPE = evbus.event[]);
SELECT throws_ok(format('SELECT evbus.subscribe(''orders'', ''bad'', handler => %L)', handler), 'VB010', NULL, 'no handler: ' || handler)
FROM (VALUES ('takes_number(integer)'), ('takes_nothing()'), ('takes_two(evbus.event, integer)'), ('takes_default(evbus.event, integer)'),
	('takes_delivery(evbus.delivery)'), ('returns_set(evbus.event)'), ('procedure_(evbus.event)'), ('aggregate_(evbus.event)')) AS v (handler);
SELECT throws_ok($$SELECT evbus.subscribe('orders', 'bad', handler => 'nosuch(evbus.event)')$$, '42883', NULL, 'no handler: a function that does not exist');
SELECT throws_ok($$SELECT evbus.subscribe('orders', 'bad', handler => 4294967295::oid)$$, '42883', NULL, 'no handler: an oid of nothing');
SELECT throws_ok($$SELECT evbus.subscribe('orders', 'bad', handler => 0::oid)$$, '42883', NULL, 'no handler: oid 0');
SELECT is_empty($$SELECT 1 FROM evbus.subscription_list$$, 'a refused subscription leaves nothing behind');

-- effects and ack are one

CREATE TABLE stock (item text PRIMARY KEY, left_over integer CHECK (left_over >= 0));
INSERT INTO stock VALUES ('a', 3);
CREATE FUNCTION take_from_stock(events evbus.event[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE e evbus.event;
BEGIN
	FOREACH e IN ARRAY events LOOP
		INSERT INTO effect SELECT 'stock', e.*;
		UPDATE stock SET left_over = left_over - (e.payload ->> 'count')::integer WHERE item = 'a';
	END LOOP;
END $$;
SELECT evbus.subscribe('orders', 'stock', types => '{sold}', handler => 'take_from_stock(evbus.event[])') AS position \gset
SELECT evbus.pause('stock');
SELECT count(*) AS n FROM evbus.publish_batch('orders', '{sold,sold,sold,sold}', '{"{\"count\": 1}","{\"count\": 100}","{\"count\": \"x\"}","{\"count\": 2}"}') \gset
SELECT evbus.resume('stock');
SELECT becomes($$SELECT string_agg(sqlstate || ' ' || reason, ', ' ORDER BY position) FROM evbus.dead_letter WHERE subscription = 'stock'$$,
	'23514 permanent, 22P02 permanent', 'failing events of a batch become dead letters, each with its own error');
SELECT becomes($$SELECT lag::text FROM evbus.subscription_lag WHERE subscription = 'stock'$$, '0', 'and the batch is settled');
SELECT results_eq($$SELECT left_over FROM stock$$, $$VALUES (0)$$, 'the others of the batch took effect exactly once');
SELECT results_eq($$SELECT payload -> 'count' FROM effect WHERE handler = 'stock' ORDER BY position$$, $$VALUES ('1'::jsonb), ('2')$$, 'nothing the failing ones did is left');

-- a constraint that speaks at commit

CREATE TABLE parent (id integer PRIMARY KEY);
CREATE TABLE child (id integer REFERENCES parent DEFERRABLE INITIALLY DEFERRED, event_id bigint);
INSERT INTO parent VALUES (1), (2);
CREATE FUNCTION add_child(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$BEGIN INSERT INTO child VALUES (e.payload::integer, e.event_id); END$$;
SELECT evbus.subscribe('orders', 'children', types => '{child}', handler => 'add_child(evbus.event)') AS position \gset
SELECT evbus.pause('children');
SELECT count(*) AS n FROM evbus.publish_batch('orders', '{child,child,child}', '{1,99,2}') \gset
SELECT evbus.resume('children');
SELECT becomes($$SELECT string_agg(payload::text || ' ' || sqlstate || ' ' || reason, ', ') FROM evbus.dead_letter WHERE subscription = 'children'$$,
	'99 23503 permanent', 'an error that a deferred constraint raises at commit is that event''s failure');
SELECT becomes($$SELECT string_agg(id::text, ' ' ORDER BY id) FROM child$$, '1 2', 'and the others of the batch take effect once');
SELECT becomes($$SELECT lag::text FROM evbus.subscription_lag WHERE subscription = 'children'$$, '0', 'and all three are settled');

-- handlers that publish

SELECT evbus.create_bus('next');
CREATE FUNCTION forward(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM evbus.publish('next', 'forwarded.' || e.type, e.payload, headers => jsonb_build_object('attempt', e.attempt));
	IF e.type = 'chain.flaky' AND e.attempt < 3 THEN
		RAISE EXCEPTION 'try again';
	END IF;
END $$;
SELECT evbus.subscribe('next', 'last') AS position \gset
SELECT evbus.subscribe('orders', 'forward', types => '{chain.*}', handler => 'forward(evbus.event)', backoff_initial => '10 milliseconds') AS position \gset
SELECT evbus.publish('orders', 'chain.easy', '1') AS id \gset
SELECT is(consume('last', 1), 'forwarded.chain.easy', 'what a handler publishes is delivered');
SELECT evbus.publish('orders', 'chain.flaky', '1') AS id \gset
SELECT is((SELECT array_agg((type, headers)::text) FROM take('last', 1)), ARRAY['(forwarded.chain.flaky,"{""attempt"": 3}")'],
	'what a failing attempt published is not delivered, what the good one published is');
SELECT is((SELECT count(*) FROM evbus.history WHERE bus = 'next'), 2::bigint, 'and failed attempts left nothing in the history');
CREATE FUNCTION count_down(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO effect SELECT 'count_down', e.*;
	IF e.payload::integer > 1 THEN
		PERFORM evbus.publish('orders', 'countdown', to_jsonb(e.payload::integer - 1));
	END IF;
END $$;
SELECT evbus.subscribe('orders', 'countdown', types => '{countdown}', handler => 'count_down(evbus.event)') AS position \gset
SELECT evbus.publish('orders', 'countdown', '10') AS id \gset
SELECT becomes($$SELECT string_agg(payload::text, ' ' ORDER BY position) FROM effect WHERE handler = 'count_down'$$, '10 9 8 7 6 5 4 3 2 1', 'a handler may publish to the bus it reads');

-- several workers for one subscription

CREATE FUNCTION blocked(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_advisory_xact_lock_shared(4711);
	INSERT INTO effect SELECT 'blocked', e.*;
END $$;
SELECT evbus.subscribe('orders', 'blocked', types => '{blocked}', handler => 'blocked(evbus.event)', concurrency => 2, batch_size => 1) AS position \gset
SELECT pg_advisory_lock(4711) AS lock \gset
SELECT count(*) AS n FROM evbus.publish_batch('orders', array_fill('blocked'::text, ARRAY[20]), array_fill('1'::jsonb, ARRAY[20])) \gset
SELECT becomes($$SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'evbus handler' AND wait_event = 'advisory'$$, '2',
	'concurrency => 2 runs two workers at a time');
SELECT results_eq($$SELECT workers, in_flight FROM evbus.subscription_lag WHERE subscription = 'blocked'$$, $$VALUES (2, 2::bigint)$$, 'the lag view shows the workers and what they hold');
-- meanwhile another subscription is served
SELECT evbus.publish('orders', 'countdown', '1') AS id \gset
SELECT becomes($$SELECT count(*)::text FROM effect WHERE handler = 'count_down'$$, '11', 'a blocked subscription does not hold up another');
SELECT pg_advisory_unlock(4711) AS unlocked \gset
SELECT becomes($$SELECT count(*) || ' ' || count(DISTINCT event_id) FROM effect WHERE handler = 'blocked'$$, '20 20', 'and together they handle every event once');

-- nothing of one event reaches the next

CREATE FUNCTION leave_traces(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO effect (handler, type, key, attempt)
	VALUES ('traces', e.type, concat_ws(' ', nullif(current_setting('test.trace', true), ''), current_setting('work_mem'), (SELECT count(*) FROM pg_prepared_statements),
		to_regclass('pg_temp.left_over') IS NOT NULL, (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())), pg_backend_pid());
	PERFORM set_config('test.trace', 'dirty', false), set_config('work_mem', '77MB', false), pg_advisory_lock(hashtext(e.type));
	EXECUTE 'CREATE TEMP TABLE left_over (n integer)';
	EXECUTE 'PREPARE left_prepared AS SELECT 1';
END $$;
SELECT evbus.subscribe('orders', 'traces', types => '{trace.*}', handler => 'leave_traces(evbus.event)', batch_size => 1) AS position \gset
SELECT count(*) AS n FROM evbus.publish_batch('orders', (SELECT array_agg('trace.' || i) FROM generate_series(1, 20) AS i), array_fill('1'::jsonb, ARRAY[20])) \gset
SELECT becomes($$SELECT count(*)::text FROM effect WHERE handler = 'traces'$$, '20', 'a handler that leaves settings, locks, temporary tables and prepared statements behind is served twenty times');
SELECT cmp_ok(count(DISTINCT pid), '<', 20::bigint, 'more than once by the same worker') FROM effect WHERE handler = 'traces';
SELECT results_eq($$SELECT DISTINCT key FROM effect WHERE handler = 'traces'$$, $$SELECT current_setting('work_mem') || ' 0 f 0'$$, 'and each time finds none of that');
SELECT evbus.unsubscribe('traces');

-- a handler that goes, and comes back

CREATE FUNCTION comes_and_goes(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$BEGIN INSERT INTO effect SELECT 'first body', e.*; END$$;
SELECT evbus.subscribe('orders', 'fickle', types => '{fickle}', handler => 'comes_and_goes(evbus.event)') AS position \gset
SELECT evbus.publish('orders', 'fickle', '1') AS id \gset
SELECT becomes($$SELECT count(*)::text FROM effect WHERE handler = 'first body'$$, '1', 'the handler works');
CREATE OR REPLACE FUNCTION comes_and_goes(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$BEGIN INSERT INTO effect SELECT 'second body', e.*; END$$;
SELECT evbus.publish('orders', 'fickle', '2') AS id \gset
SELECT becomes($$SELECT count(*)::text FROM effect WHERE handler = 'second body'$$, '1', 'a replaced handler is used at once');
DROP FUNCTION comes_and_goes(evbus.event);
SELECT evbus.publish('orders', 'fickle', '3') AS id \gset
SELECT becomes($$SELECT (paused_reason IS NOT NULL)::text FROM evbus.subscription_list WHERE subscription = 'fickle'$$, 'true', 'a subscription whose handler was dropped is paused, with a reason');
SELECT is_empty($$SELECT 1 FROM evbus.dead_letter WHERE subscription = 'fickle'$$, 'its events are kept, not given up');
CREATE FUNCTION comes_and_goes(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$BEGIN INSERT INTO effect SELECT 'third body', e.*; END$$;
SELECT evbus.resume('fickle');
SELECT becomes($$SELECT string_agg(payload::text, ' ') FROM effect WHERE handler = 'third body'$$, '3', 'once the handler is back and the subscription resumed, nothing is missing');

-- another handler

CREATE FUNCTION other_handler(e evbus.event[]) RETURNS void LANGUAGE plpgsql AS $$BEGIN INSERT INTO effect SELECT 'other', x.* FROM unnest(e) AS x; END$$;
SELECT lives_ok($$SELECT evbus.alter_subscription('fickle', handler => 'other_handler(evbus.event[])')$$, 'a subscription can be given another handler');
SELECT evbus.publish('orders', 'fickle', '4') AS id \gset
SELECT becomes($$SELECT string_agg(payload::text, ' ') FROM effect WHERE handler = 'other'$$, '4', 'which is called from then on');
SELECT throws_ok($$SELECT evbus.alter_subscription('fickle', handler => 'takes_number(integer)')$$, 'VB010', NULL, 'but not what is no handler');

-- seek under a handler

SELECT evbus.seek('fickle', 'beginning') AS position \gset
SELECT becomes($$SELECT string_agg(payload::text, ' ' ORDER BY position) FROM effect WHERE handler = 'other'$$, '1 2 3 4 4',
	'seek to the beginning runs the handler for everything again');

-- concurrency within its bound

SELECT throws_ok(format('SELECT evbus.subscribe(''orders'', ''greedy'', handler => ''one(evbus.event)'', concurrency => %s)', n), '22023', NULL, 'concurrency ' || n || ' is refused')
FROM (VALUES (0), (-1), (greatest(current_setting('evbus.max_handler_workers')::integer, 2)), (2147483647)) AS v (n);

SELECT * FROM finish();
