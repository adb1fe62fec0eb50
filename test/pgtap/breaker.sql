-- Circuit breakers: what opens one, what does not, what happens while it is open, and what closes it.
\ir include/helpers.sql
SELECT no_plan();

SELECT evbus.create_bus('orders');
CREATE TABLE dependency (name text PRIMARY KEY, up boolean NOT NULL);
INSERT INTO dependency VALUES ('a', false);
CREATE TABLE effect (subscription text, type text, key text, n integer, at bigserial);
CREATE SEQUENCE calls;

/* A handler that needs the dependency; what its type says beside that. */
CREATE FUNCTION act(subscription text, e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM nextval('calls');
	IF e.type LIKE '%.poison' THEN
		RAISE EXCEPTION 'poison';
	ELSIF e.type LIKE '%.zero' THEN
		PERFORM 1 / 0;
	ELSIF e.type LIKE '%.table' THEN
		EXECUTE 'INSERT INTO missing VALUES (1)';
	ELSIF NOT (SELECT up FROM dependency WHERE name = 'a') THEN
		RAISE EXCEPTION 'the service is down' USING DETAIL = 'secret';
	END IF;
	INSERT INTO effect (subscription, type, key, n) VALUES (subscription, e.type, e.key, (e.payload #>> '{}')::integer);
END $$;
CREATE FUNCTION make_handler(name text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('CREATE FUNCTION h_%s(e evbus.event) RETURNS void LANGUAGE sql AS $x$SELECT act(%L, e)$x$', name, name);
	RETURN format('h_%s(evbus.event)', name);
END $$;
CREATE FUNCTION publish(type text, n integer, keys integer DEFAULT NULL) RETURNS bigint LANGUAGE sql AS
	$$SELECT count(evbus.publish('orders', publish.type, to_jsonb(i), key => 'k' || i % publish.keys)) FROM generate_series(1, publish.n) i$$;
CREATE FUNCTION state(name text) RETURNS text LANGUAGE sql AS $$SELECT format('SELECT state FROM evbus.breaker_list WHERE subscription = %L', state.name)$$;
CREATE FUNCTION dead(name text) RETURNS bigint LANGUAGE sql AS $$SELECT count(*) FROM evbus.dead_letter WHERE subscription = dead.name$$;
CREATE FUNCTION remaining(name text) RETURNS text LANGUAGE sql AS $$SELECT format('SELECT lag + retries FROM evbus.subscription_lag WHERE subscription = %L', remaining.name)$$;

-- settings

SELECT evbus.subscribe('orders', 'plain', types => '{no}') AS p1, evbus.subscribe('orders', 'set', types => '{no}', breaker_threshold => 0.25) AS p2 \gset
SELECT results_eq('SELECT subscription, breaker_threshold, breaker_window, breaker_min, breaker_probe FROM evbus.subscription_list ORDER BY subscription',
	$$VALUES ('plain', NULL::double precision, NULL::interval, NULL::integer, NULL::interval), ('set', 0.25, '30 seconds', 10, '5 seconds')$$, 'there is none unless it is asked for; and its defaults');
SELECT evbus.alter_subscription('set', breaker_window => '1 minute', breaker_min => 3, breaker_probe => '1 second');
SELECT evbus.alter_subscription('set', batch_size => 7);
SELECT results_eq($$SELECT breaker_threshold, breaker_window, breaker_min, breaker_probe FROM evbus.subscription_list WHERE subscription = 'set'$$,
	$$VALUES (0.25::double precision, '1 minute'::interval, 3, '1 second'::interval)$$, 'each can be changed, NULL keeps it');
SELECT results_eq('SELECT subscription, bus, state, since, reason, next_probe, failed, succeeded, opened_count, failed_probes, last_sqlstate, last_message FROM evbus.breaker_list',
	$$VALUES ('set', 'orders', 'closed', NULL::timestamptz, NULL, NULL::timestamptz, 0::bigint, 0::bigint, 0::bigint, 0::bigint, NULL, NULL)$$, 'breaker_list has those that have one; it begins closed');
SELECT evbus.alter_subscription('set', breaker_threshold => 0);
SELECT is_empty('SELECT 1 FROM evbus.breaker_list', '0 takes it away');
SELECT evbus.unsubscribe(subscription) FROM evbus.subscription_list;

-- a handler whose dependency is down

SELECT evbus.subscribe('orders', 'one', types => '{one.*}', handler => make_handler('one')::regprocedure, max_attempts => 2, backoff_initial => '10 ms', backoff_max => '20 ms',
	breaker_threshold => 0.5, breaker_min => 5, breaker_probe => '50 ms') AS p \gset
SELECT publish('one.a', 200) AS n \gset
SELECT becomes(state('one'), 'open', 'too many failures open it');
SELECT becomes($$SELECT (failed_probes >= 3)::text FROM evbus.breaker_list WHERE subscription = 'one'$$, 'true', 'it is probed, again and again');
SELECT is(dead('one'), 0::bigint, 'nothing is given up on');
SELECT cmp_ok((SELECT max(attempts) FROM evbus.retry_list WHERE subscription = 'one'), '<=', 1, 'and no attempt is counted but those that opened it');
SELECT cmp_ok((SELECT last_value FROM calls), '<', 30::bigint, 'the handler is hardly called: until it opened, and by probes');
SELECT results_eq($$SELECT reason, opened_count, last_sqlstate, last_message, since <= clock_timestamp() FROM evbus.breaker_list WHERE subscription = 'one'$$,
	$$VALUES ('5 of 5 deliveries failed, the last with SQLSTATE P0001', 1::bigint, 'P0001', 'the service is down', true)$$, 'the view says why and since when');
SELECT is(evbus.redrive(subscription => 'one'), 0::bigint, 'there is nothing to redrive');
UPDATE dependency SET up = true;
SELECT becomes(state('one'), 'closed', 'it closes when the dependency is back');
SELECT becomes(remaining('one'), '0', 'then all of it is handled');
SELECT results_eq($$SELECT count(*), count(DISTINCT n) FROM effect WHERE subscription = 'one'$$, $$VALUES (200::bigint, 200::bigint)$$, 'each event once');
SELECT is(dead('one'), 0::bigint, 'none is dead');
SELECT results_eq($$SELECT reason, next_probe, opened_count, failed FROM evbus.breaker_list WHERE subscription = 'one'$$, $$VALUES (NULL, NULL::timestamptz, 1::bigint, 0::bigint)$$, 'closed it gives no reason, and has forgotten the failures');
SELECT cmp_ok((SELECT succeeded FROM evbus.breaker_list WHERE subscription = 'one'), '>=', 150::bigint, 'it counts what succeeds');

-- one that is poison, and some that are simply bad

SELECT evbus.subscribe('orders', 'two', types => '{two.*}', handler => make_handler('two')::regprocedure, max_attempts => 4, backoff_initial => '10 ms', backoff_max => '20 ms',
	breaker_threshold => 0.01, breaker_min => 2) AS p \gset
SELECT publish('two.a', 5), publish('two.poison', 1), publish('two.b', 5) \g /dev/null
SELECT becomes($$SELECT attempts::text FROM evbus.dead_letter WHERE subscription = 'two'$$, '4', 'one poison event among good ones ends as a dead letter, after all of its attempts');
SELECT cmp_ok((SELECT dead_at - first_failed_at FROM evbus.dead_letter WHERE subscription = 'two'), '<', '3 seconds'::interval, 'and with the delays of its backoff');
SELECT becomes(remaining('two'), '0', 'the others are handled');
SELECT results_eq($$SELECT state, opened_count, failed FROM evbus.breaker_list WHERE subscription = 'two'$$, $$VALUES ('closed', 0::bigint, 1::bigint)$$, 'which never opens it: it counts once, however often it is tried');
SELECT publish('two.zero', 20) AS n \gset
SELECT becomes($$SELECT count(*)::text FROM evbus.dead_letter WHERE subscription = 'two' AND reason = 'permanent'$$, '20', 'what the event is to blame for makes dead letters as ever');
SELECT results_eq($$SELECT state, failed FROM evbus.breaker_list WHERE subscription = 'two'$$, $$VALUES ('closed', 1::bigint)$$, 'and does not count');

-- something is missing

SELECT evbus.subscribe('orders', 'three', types => '{three.*}', handler => make_handler('three')::regprocedure, max_attempts => 2, backoff_initial => '10 ms', backoff_max => '20 ms',
	breaker_threshold => 0.5, breaker_min => 5, breaker_probe => '50 ms') AS p \gset
SELECT publish('three.table', 30) AS n \gset
SELECT becomes(state('three'), 'open', 'a table that is missing (class 42) opens it');
SELECT is(dead('three'), 0::bigint, 'and is no reason to give up');
CREATE TABLE missing (n integer);
SELECT becomes(state('three'), 'closed', 'made, it closes');
SELECT becomes(remaining('three'), '0', 'and all is handled');
SELECT is((SELECT count(*) FROM effect WHERE subscription = 'three'), 30::bigint, 'each once');
SELECT is(dead('three'), 0::bigint, 'and none is dead');

-- a poison event is not what it is probed with for ever

UPDATE dependency SET up = false;
SELECT evbus.subscribe('orders', 'four', types => '{four.*}', handler => make_handler('four')::regprocedure, max_attempts => 3, backoff_initial => '10 ms', backoff_max => '20 ms', batch_size => 4,
	breaker_threshold => 0.5, breaker_min => 2, breaker_probe => '50 ms') AS p \gset
SELECT publish('four.poison', 1), publish('four.a', 10) \g /dev/null
SELECT becomes($$SELECT (failed_probes >= 2)::text FROM evbus.breaker_list WHERE subscription = 'four'$$, 'true', 'open, with a poison event among those that wait');
UPDATE dependency SET up = true;
SELECT becomes(remaining('four'), '0', 'it closes all the same');
SELECT results_eq($$SELECT type FROM evbus.dead_letter WHERE subscription = 'four'$$, $$VALUES ('four.poison')$$, 'then the poison event is given up on, alone');
SELECT is((SELECT count(DISTINCT n) FROM effect WHERE subscription = 'four'), 10::bigint, 'and the others are handled');

-- clients

SELECT evbus.subscribe('orders', 'c', types => '{c.*}', max_attempts => 1, lease => '1 minute', breaker_threshold => 0.5, breaker_min => 5, breaker_probe => '100 ms') AS p \gset
SELECT publish('c.a', 20) AS n \gset
DO $$
BEGIN
	PERFORM evbus.nack(array_agg(receipt)) FROM take('c', 10);
	RAISE EXCEPTION 'no';
EXCEPTION WHEN raise_exception THEN NULL;
END $$;
SELECT results_eq($$SELECT state, failed FROM evbus.breaker_list WHERE subscription = 'c'$$, $$VALUES ('closed', 0::bigint)$$, 'what is rolled back was not said');
SELECT is(evbus.nack(array_agg(receipt), error => 'no answer'), 10, 'ten of twenty fail') FROM take('c', 10);
SELECT is((SELECT state FROM evbus.breaker_list WHERE subscription = 'c'), 'open', 'that opens it when it is committed');
SELECT is(dead('c'), 4::bigint, 'with one attempt only, those are dead that failed before it could open: one less than breaker_min');
SELECT results_eq($$SELECT attempts, count(*), max(message) FROM evbus.retry_list WHERE subscription = 'c' GROUP BY 1$$, $$VALUES (0, 6::bigint, 'no answer')$$, 'for the others it was no attempt');
SELECT is((SELECT count(*) FROM evbus.receive('c', 10)), 0::bigint, 'while it is open receive() returns nothing');
SELECT is((SELECT count(*) FROM evbus.receive_lines('c', 10)), 0::bigint, 'nor do lines come');
SELECT min(receipt) AS r, count(*) AS n FROM evbus.receive('c', 10, wait => '10 seconds') \gset
SELECT is(:n, 1, 'after a while a call that asks for ten gets one');
SELECT is((SELECT state FROM evbus.breaker_list WHERE subscription = 'c'), 'half_open', 'which is a probe');
SELECT is((SELECT count(*) FROM evbus.receive('c', 10, wait => '300 ms')), 0::bigint, 'and no other while that is out');
SELECT is(evbus.nack(ARRAY[:'r']), 1, 'it fails');
SELECT results_eq($$SELECT state, failed_probes FROM evbus.breaker_list WHERE subscription = 'c'$$, $$VALUES ('open', 1::bigint)$$, 'so it stays open');
SELECT cmp_ok((SELECT next_probe - clock_timestamp() FROM evbus.breaker_list WHERE subscription = 'c'), '>', '100 ms'::interval, 'for longer');
SELECT receipt AS r FROM take('c', 1) LIMIT 1 \gset
SELECT is(evbus.release(ARRAY[:'r']), 1, 'one that is given back');
SELECT results_eq($$SELECT state, failed_probes FROM evbus.breaker_list WHERE subscription = 'c'$$, $$VALUES ('open', 2::bigint)$$, 'has failed, too');
DO $$
BEGIN
	PERFORM * FROM take('c', 1);
	RAISE EXCEPTION 'no';
EXCEPTION WHEN raise_exception THEN NULL;
END $$;
SELECT results_eq($$SELECT state, failed_probes FROM evbus.breaker_list WHERE subscription = 'c'$$, $$VALUES ('open', 3::bigint)$$, 'and so has one of which the transaction is rolled back');
SELECT receipt AS r FROM take('c', 1, lease => '1 second') LIMIT 1 \gset
SELECT becomes($$SELECT state || failed_probes FROM evbus.breaker_list WHERE subscription = 'c'$$, 'open4', 'and one of which the lease runs out');
SELECT receipt AS r FROM take('c', 1) LIMIT 1 \gset
SELECT is(evbus.reject(ARRAY[:'r']), 1, 'one that is rejected says nothing of the dependency');
SELECT is(dead('c'), 5::bigint, 'and is given up on');
SELECT results_eq($$SELECT state, failed_probes, next_probe <= clock_timestamp() FROM evbus.breaker_list WHERE subscription = 'c'$$, $$VALUES ('open', 4::bigint, true)$$, 'the next probe is to be had at once');
SELECT receipt AS r FROM take('c', 1) LIMIT 1 \gset
SELECT is(evbus.ack(ARRAY[:'r']), 1, 'one that is acked');
SELECT is((SELECT state FROM evbus.breaker_list WHERE subscription = 'c'), 'closed', 'closes it');
SELECT is((SELECT count(*) FROM take('c', 14)), 14::bigint, 'then the others come, each on its first attempt');
SELECT is(dead('c'), 5::bigint, 'and no more are dead');

-- leases that run out

SELECT evbus.subscribe('orders', 'l', types => '{l.*}', max_attempts => 1, breaker_threshold => 0.5, breaker_min => 3, breaker_probe => '1 hour') AS p \gset
SELECT publish('l.a', 5) AS n \gset
SELECT count(*) AS n FROM take('l', 5, lease => '1 second') \gset
SELECT becomes(state('l'), 'open', 'leases that run out open it');
SELECT is(evbus.reset_breaker('l'), true, 'reset_breaker() closes it');
SELECT is(evbus.reset_breaker('l'), false, 'once');
SELECT is((SELECT count(*) FROM take('l', 3)), 3::bigint, 'for those that ran out last it was no attempt');
SELECT is(dead('l'), 2::bigint, 'and those before are dead: one less than breaker_min');

-- by hand

SELECT evbus.subscribe('orders', 'm', types => '{m.*}', breaker_threshold => 1, breaker_min => 2, breaker_probe => '1 hour') AS p \gset
SELECT publish('m.a', 4) AS n \gset
SELECT evbus.nack(array_agg(receipt)) AS n FROM take('m', 3) \gset
SELECT is((SELECT state FROM evbus.breaker_list WHERE subscription = 'm'), 'open', 'open for long');
SELECT evbus.pause('m');
SELECT evbus.resume('m');
SELECT evbus.seek('m', 'beginning') AS p \gset
SELECT is((SELECT state FROM evbus.breaker_list WHERE subscription = 'm'), 'open', 'resume() and seek() do not close it');
SELECT evbus.replay('m', 'beginning', types => '{m.*}') AS replay \gset
SELECT is((SELECT count(*) FROM evbus.receive('m', 10, wait => '300 ms')), 0::bigint, 'nor are replays delivered while it is open');
SELECT evbus.cancel_replay(:replay) AS ok \gset
SELECT evbus.alter_subscription('m', breaker_threshold => 0);
SELECT is((SELECT count(*) FROM take('m', 4)), 4::bigint, 'without a breaker they come');
SELECT is_empty(state('m'), 'it is no longer in the view');
SELECT evbus.alter_subscription('m', breaker_threshold => 1);
SELECT becomes(state('m'), 'closed', 'and when there is one again it is closed');
SELECT throws_ok($$SELECT evbus.reset_breaker('nosuch')$$, 'VB004', NULL, 'no such subscription');
SELECT is(evbus.reset_breaker(subscription), false, 'nothing to close where there is none') FROM (SELECT evbus.subscribe('orders', 'without', types => '{no}'), 'without' AS subscription) x;

-- order

CREATE FUNCTION in_order(name text) RETURNS boolean LANGUAGE sql AS
	$$SELECT bool_and(n > coalesce(before, 0)) FROM (SELECT n, lag(n) OVER (PARTITION BY key ORDER BY at) AS before FROM effect WHERE subscription = in_order.name) x$$;
UPDATE dependency SET up = false;
SELECT evbus.subscribe('orders', 'k', types => '{k.*}', handler => make_handler('k')::regprocedure, max_attempts => 2, backoff_initial => '10 ms', backoff_max => '20 ms', ordering => 'key',
	breaker_threshold => 0.5, breaker_min => 3, breaker_probe => '50 ms') AS p \gset
SELECT evbus.subscribe('orders', 's', types => '{s.*}', handler => make_handler('s')::regprocedure, max_attempts => 1, ordering => 'strict',
	breaker_threshold => 0.5, breaker_min => 2, breaker_probe => '50 ms') AS p \gset
SELECT publish('k.a', 60, 6), publish('s.a', 10) \g /dev/null
SELECT becomes($$SELECT (failed_probes >= 3)::text FROM evbus.breaker_list WHERE subscription = 'k'$$, 'true', 'order by key: open, and probed');
SELECT becomes($$SELECT (failed_probes >= 3)::text FROM evbus.breaker_list WHERE subscription = 's'$$, 'true', 'strict order: open, and probed');
UPDATE dependency SET up = true;
SELECT becomes(remaining('k'), '0', 'order by key: all is handled');
SELECT becomes(remaining('s'), '0', 'strict order: all is handled');
SELECT is((SELECT count(*) FROM effect WHERE subscription = 'k'), 60::bigint, 'order by key: each once');
SELECT ok(in_order('k'), 'order by key: in order');
SELECT is((SELECT string_agg(n::text, ' ' ORDER BY at) FROM effect WHERE subscription = 's'), '2 3 4 5 6 7 8 9 10', 'strict order: in order, but for the one that died before it could open');
SELECT is(dead('k'), 0::bigint, 'order by key: none is dead');

-- who may see and do what

CREATE ROLE evbus_test_watcher IN ROLE pg_monitor;
GRANT EXECUTE ON FUNCTION evbus.reset_breaker(text) TO evbus_test_watcher;
GRANT USAGE ON SCHEMA evbus TO evbus_test_watcher;
SET ROLE evbus_test_watcher;
SELECT results_eq($$SELECT last_sqlstate, last_message FROM evbus.breaker_list WHERE subscription = 'c'$$, $$VALUES ('VB000', NULL::text)$$, 'pg_monitor sees the state, but not the message');
SELECT throws_ok($$SELECT evbus.reset_breaker('c')$$, '42501', NULL, 'only the owner may close it');
RESET ROLE;
DROP OWNED BY evbus_test_watcher;
DROP ROLE evbus_test_watcher;

-- another subscription at the same place

SELECT evbus.subscribe('orders', 'x', types => '{x.*}', breaker_threshold => 1, breaker_min => 2, breaker_probe => '1 hour') AS p \gset
SELECT publish('x.a', 4) AS n \gset
SELECT evbus.nack(array_agg(receipt)) AS n FROM take('x', 3) \gset
SELECT is((SELECT state FROM evbus.breaker_list WHERE subscription = 'x'), 'open', 'open');
SELECT evbus.unsubscribe('x');
SELECT evbus.subscribe('orders', 'x', types => '{x.*}', start_from => 'beginning', breaker_threshold => 1, breaker_min => 2) AS p \gset
SELECT is((SELECT state FROM evbus.breaker_list WHERE subscription = 'x'), 'closed', 'a new subscription of that name begins closed');
SELECT is((SELECT count(*) FROM take('x', 4)), 4::bigint, 'and delivers');
SELECT * FROM finish();
