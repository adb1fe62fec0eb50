-- A handler cannot harm its neighbours: whatever one does to its session, its worker or its transaction, the others of its
-- batch, its worker and its bus are handled once, and what it did has a stated outcome.
\ir include/helpers.sql
SELECT plan(40);

SELECT evbus.create_bus('orders');
CREATE ROLE neighbour_owner LOGIN;
CREATE ROLE neighbour_other LOGIN;
GRANT neighbour_other TO neighbour_owner;
GRANT USAGE ON SCHEMA evbus TO neighbour_owner;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA evbus TO neighbour_owner;
SELECT evbus.grant('subscribe', 'orders', 'neighbour_owner');
CREATE TABLE effect (type text, who text, attempt integer, n integer GENERATED ALWAYS AS IDENTITY);
CREATE TABLE gate (id integer PRIMARY KEY, n integer NOT NULL);
INSERT INTO gate VALUES (1, 0), (2, 0);
CREATE TABLE late_check (type text);
GRANT ALL ON effect, gate, late_check TO neighbour_owner, neighbour_other;
CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	CASE NEW.type
		WHEN 'odd.trigger.raise' THEN RAISE EXCEPTION 'raised at commit';
		WHEN 'odd.trigger.loop' THEN LOOP END LOOP;
		WHEN 'odd.trigger.end' THEN PERFORM pg_terminate_backend(pg_backend_pid());
		ELSE NULL;
	END CASE;
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON late_check DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION at_commit();

-- What the session looks like to a handler that finds it: nothing of what others did may be seen.
CREATE FUNCTION session() RETURNS text LANGUAGE sql AS $$
	SELECT concat_ws(' ', session_user, current_user, current_setting('work_mem'), current_setting('search_path'), nullif(current_setting('test.mark', true), ''),
		current_setting('transaction_isolation'), current_setting('session_replication_role'),
		(SELECT count(*) FROM pg_cursors), (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_listening_channels()),
		(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), to_regclass('pg_temp.mark') IS NOT NULL)
$$;

CREATE FUNCTION do_odd_things(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
DECLARE deadline timestamptz;
BEGIN
	INSERT INTO effect (type, who, attempt) VALUES (e.type, session(), e.attempt);
	CASE e.type
		WHEN 'odd.commit' THEN COMMIT;
		WHEN 'odd.rollback' THEN ROLLBACK;
		WHEN 'odd.do_commit' THEN EXECUTE 'DO ''BEGIN COMMIT; END''';
		WHEN 'odd.savepoint' THEN EXECUTE 'SAVEPOINT s';
		WHEN 'odd.prepare_transaction' THEN EXECUTE 'PREPARE TRANSACTION ''odd''';
		WHEN 'odd.set_role' THEN EXECUTE 'SET ROLE neighbour_other';
		WHEN 'odd.reset_role' THEN EXECUTE 'SET ROLE neighbour_other'; EXECUTE 'RESET ROLE';
		WHEN 'odd.be_superuser' THEN EXECUTE 'SET ROLE postgres';
		WHEN 'odd.authorization' THEN EXECUTE 'SET SESSION AUTHORIZATION postgres';
		WHEN 'odd.set' THEN
			EXECUTE 'SET work_mem = ''77MB''';
			EXECUTE 'SET search_path = nowhere';
			EXECUTE 'SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY';
			EXECUTE 'SET statement_timeout = 1';
			PERFORM set_config('test.mark', 'seen', false);
		WHEN 'odd.temp' THEN
			EXECUTE 'CREATE TEMP TABLE mark (n integer)';
			EXECUTE 'CREATE FUNCTION pg_temp.trick() RETURNS integer LANGUAGE sql AS ''SELECT 1''';
		WHEN 'odd.hold' THEN EXECUTE 'DECLARE kept CURSOR WITH HOLD FOR SELECT * FROM effect';
		WHEN 'odd.prepare' THEN EXECUTE 'PREPARE kept AS SELECT 1';
		WHEN 'odd.lock' THEN PERFORM pg_advisory_lock(815), pg_advisory_lock_shared(816);
		WHEN 'odd.listen' THEN EXECUTE 'LISTEN odd';
		WHEN 'odd.notify' THEN PERFORM pg_notify('odd', 'x');
		WHEN 'odd.discard' THEN EXECUTE 'DISCARD ALL';
		WHEN 'odd.unsubscribe' THEN PERFORM evbus.receive('bystander');
		WHEN 'odd.end' THEN PERFORM pg_terminate_backend(pg_backend_pid());
		WHEN 'odd.cancel' THEN PERFORM pg_cancel_backend(pg_backend_pid()); PERFORM pg_sleep(5);
		WHEN 'odd.trigger.raise', 'odd.trigger.loop', 'odd.trigger.end' THEN INSERT INTO late_check VALUES (e.type);
		WHEN 'odd.swallow' THEN
			LOOP
				BEGIN
					PERFORM pg_sleep(60);
				EXCEPTION WHEN query_canceled OR assert_failure THEN NULL;
				END;
			END LOOP;
		WHEN 'odd.stack' THEN PERFORM deep(1);
		ELSE NULL;
	END CASE;
END $$;
CREATE FUNCTION deep(n integer) RETURNS integer LANGUAGE plpgsql AS $$BEGIN RETURN deep(n + 1); END$$;

-- Each odd one between two good ones, a batch of three; max_attempts 1, so that the first outcome is the last.
ALTER FUNCTION do_odd_things(evbus.event) OWNER TO neighbour_owner;
GRANT CREATE, USAGE ON SCHEMA public TO neighbour_owner;
SET SESSION AUTHORIZATION neighbour_owner;
SELECT evbus.subscribe('orders', 'odd', types => '{odd.#}', handler => 'do_odd_things(evbus.event)', max_attempts => 1, batch_size => 3, timeout => '300 milliseconds') AS position \gset
RESET SESSION AUTHORIZATION;
SELECT evbus.subscribe('orders', 'bystander', types => '{bystander}') AS position \gset
SELECT evbus.pause('odd');
CREATE TEMP TABLE expected (kind text, outcome text, about text);
INSERT INTO expected VALUES
	('commit', '2D000', 'COMMIT in a handler is refused'),
	('rollback', '2D000', 'ROLLBACK in a handler is refused'),
	('do_commit', '2D000', 'COMMIT in a DO block of a handler is refused'),
	('savepoint', '0A000', 'SAVEPOINT in a handler is refused'),
	('prepare_transaction', '0A000', 'PREPARE TRANSACTION in a handler is refused'),
	('set_role', 'done', 'SET ROLE to a role of one''s own works'),
	('reset_role', 'done', 'and so does RESET ROLE: it is the owner again'),
	('be_superuser', '42501', 'a handler cannot become a superuser by SET ROLE'),
	('authorization', '42501', 'nor by SET SESSION AUTHORIZATION'),
	('set', 'done', 'SET works'),
	('temp', 'done', 'temporary tables and functions work'),
	('hold', 'done', 'a cursor WITH HOLD works'),
	('prepare', 'done', 'PREPARE works'),
	('lock', 'done', 'session advisory locks work'),
	('listen', '0A000', 'LISTEN in a worker is refused'),
	('notify', 'done', 'NOTIFY works'),
	('discard', '25001', 'DISCARD ALL in a handler is refused'),
	('unsubscribe', '42501', 'another role''s subscription is out of reach'),
	('end', '57P01', 'pg_terminate_backend() of itself is its failure'),
	('cancel', '57014', 'pg_cancel_backend() of itself is its failure'),
	('trigger.raise', 'P0001', 'an error of a deferred trigger at commit is its failure'),
	('trigger.loop', '57014', 'an endless loop in a deferred trigger ends at the timeout'),
	('swallow', '57P01', 'a loop that swallows the cancel ends with its worker'),
	('stack', '54001', 'endless recursion is its failure');
SELECT count(*) AS n FROM evbus.publish_batch('orders', (SELECT array_agg(t ORDER BY kind, o) FROM (SELECT kind, o, CASE o WHEN 2 THEN 'odd.' || kind ELSE 'odd.good.' || o || '.' || kind END AS t
	FROM expected, generate_series(1, 3) AS o) AS e), (SELECT array_agg('1'::jsonb) FROM expected, generate_series(1, 3))) \gset
SELECT evbus.resume('odd');

SELECT becomes($$SELECT (lag + in_flight + retries)::text FROM evbus.subscription_lag WHERE subscription = 'odd'$$, '0', 'everything is settled');
SELECT is(coalesce((SELECT d.sqlstate FROM evbus.dead_letter d WHERE d.type = 'odd.' || kind), (SELECT 'done' FROM effect e WHERE e.type = 'odd.' || kind)), outcome, about) FROM expected;
SELECT is((SELECT string_agg(type, ' ') FROM evbus.dead_letter d WHERE type LIKE 'odd.good.%'), NULL, 'none of their neighbours was given up');
SELECT results_eq($$SELECT count(*), count(DISTINCT type) FROM effect WHERE type LIKE 'odd.good.%'$$, $$VALUES (48::bigint, 48::bigint)$$, 'and each of them was handled once');
SELECT results_eq($$SELECT DISTINCT who FROM effect WHERE type LIKE 'odd.good.1.%'$$,
	$$SELECT 'neighbour_owner neighbour_owner ' || current_setting('work_mem') || ' "$user", public read committed origin 0 0 0 0 f'$$,
	'the next batch finds a clean session: user, settings, cursors, prepared statements, channels, locks, temporary tables');
SELECT is_empty($$SELECT 1 FROM pg_prepared_xacts$$, 'no prepared transaction is left');
SELECT is_empty($$SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid IN (815, 816)$$, 'no advisory lock is left');
SELECT is((SELECT count(*) FROM evbus.dead_letter WHERE type = 'odd.end' AND message = 'the handler ended its worker'), 1::bigint, 'the dead letter says that the handler ended its worker');

-- a worker that ends at commit: alone in its batch, and among others

SELECT evbus.subscribe('orders', 'ends', types => '{ends.#,odd.trigger.end}', handler => 'do_odd_things(evbus.event)', max_attempts => 1) AS position \gset
SELECT evbus.publish('orders', 'odd.trigger.end', '1') AS id \gset
SELECT becomes($$SELECT sqlstate FROM evbus.dead_letter WHERE subscription = 'ends'$$, '57P01', 'a deferred trigger that ends the worker is the failure of its event');
SELECT evbus.pause('odd');
SELECT count(*) AS n FROM evbus.publish_batch('orders', '{ends.before,odd.trigger.end,ends.after}', '{1,2,3}') \gset
SELECT is(poll($$SELECT count(*)::text FROM effect WHERE type IN ('ends.before', 'ends.after')$$, '2'), '2', 'also beside others, which are handled');
SELECT evbus.unsubscribe('ends');

-- deadlocks and serialization failures: tried again soon, whatever max_attempts and backoff say about other errors

CREATE FUNCTION crosswise(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
DECLARE first integer := (e.payload ->> 'first')::integer;
BEGIN
	UPDATE gate SET n = n + 1 WHERE id = first;
	IF e.attempt = 1 THEN
		PERFORM pg_sleep(0.2);	-- until the other one has its first, too
	END IF;
	UPDATE gate SET n = n + 1 WHERE id = 3 - first;
END $$;
SELECT evbus.subscribe('orders', 'crosswise', types => '{cross}', handler => 'crosswise(evbus.event)', concurrency => 2, batch_size => 1, backoff_initial => '1 hour') AS position \gset
SELECT count(*) AS n FROM evbus.publish_batch('orders', '{cross,cross}', '{"{\"first\": 1}","{\"first\": 2}"}') \gset
SELECT becomes($$SELECT string_agg(n::text, ' ') FROM gate$$, '2 2', 'two handlers that lock crosswise are both done, though one was the victim of a deadlock');

CREATE FUNCTION conflicting(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF e.attempt < 3 THEN
		RAISE serialization_failure;
	END IF;
	INSERT INTO effect (type, attempt) VALUES (e.type, e.attempt);
END $$;
SELECT evbus.subscribe('orders', 'conflicting', types => '{conflict}', handler => 'conflicting(evbus.event)', backoff_initial => '1 hour') AS position \gset
SELECT evbus.publish('orders', 'conflict', '1') AS id \gset
SELECT becomes($$SELECT attempt::text FROM effect WHERE type = 'conflict'$$, '3', 'so is one that fails to serialize twice');

SELECT is((SELECT count(*) FROM evbus.dead_letter WHERE subscription IN ('crosswise', 'conflicting')), 0::bigint, 'none of them is a dead letter');

-- What one leaves in the transaction ails the next one, which alone is good: so it is tried alone before it is given up.
CREATE FUNCTION litters(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	CASE e.type
		WHEN 'litter.temp' THEN
			CREATE TEMP TABLE litter ON COMMIT DROP AS SELECT e.payload;
		WHEN 'litter.stays' THEN
			CREATE TEMP TABLE litter_stays AS SELECT e.payload;
	END CASE;
	INSERT INTO effect (type, attempt) VALUES (e.type, e.attempt);
END $$;
SELECT evbus.subscribe('orders', 'litters', types => '{litter.*}', handler => 'litters(evbus.event)', max_attempts => 1) AS position \gset
SELECT count(*) AS n FROM evbus.publish_batch('orders', '{litter.temp,litter.temp,litter.temp,litter.stays,litter.stays,litter.stays}', '{1,2,3,4,5,6}') \gset
SELECT becomes($$SELECT string_agg(type || ' ' || n, ' ' ORDER BY type) FROM (SELECT type, count(*) AS n FROM effect WHERE type LIKE 'litter.%' GROUP BY type) t$$,
	'litter.stays 3 litter.temp 3', 'handlers that each make the same temporary table are all done, though they were called in one transaction');
SELECT is((SELECT count(*) FROM evbus.dead_letter WHERE subscription = 'litters'), 0::bigint, 'and none is a dead letter');

-- Who would change the extension that runs him is refused, which counts as any failure does.
CREATE FUNCTION changes(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$BEGIN EXECUTE e.payload #>> '{}'; END $$;
SELECT evbus.subscribe('orders', 'changes', types => '{change}', handler => 'changes(evbus.event)', max_attempts => 1) AS position \gset
SELECT count(*) AS n FROM evbus.publish_batch('orders', '{change,change}', '{"\"ALTER EXTENSION evbus UPDATE\"","\"DROP EXTENSION evbus CASCADE\""}') \gset
SELECT becomes($$SELECT string_agg(DISTINCT message, ';') || ' ' || count(*) FROM evbus.dead_letter WHERE subscription = 'changes'$$,
	'a handler cannot change extension "evbus", which it runs in 2', 'a handler that changes or drops the extension is refused');
SELECT evbus.publish('orders', 'litter.temp', '7') AS id \gset
SELECT becomes($$SELECT count(*)::text FROM effect WHERE type = 'litter.temp'$$, '4', 'and nothing stands still for it');

SELECT evbus.unsubscribe(subscription) FROM evbus.subscription_list \g /dev/null
DROP OWNED BY neighbour_owner, neighbour_other;
DROP ROLE neighbour_owner, neighbour_other;
SELECT * FROM finish();
