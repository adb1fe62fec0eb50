-- Every function and every view × roles that are in none or one of evbus_publisher, evbus_consumer, evbus_operator, evbus_monitor ×
-- what was granted on the bus and the subscription: what may be called is called, and is allowed where the table says so, nowhere else.
\ir include/helpers.sql
SELECT * FROM no_plan();
SET client_min_messages = warning;

DROP ROLE IF EXISTS evbus_matrix_none, evbus_matrix_publisher, evbus_matrix_consumer, evbus_matrix_operator, evbus_matrix_monitor, evbus_matrix_owner, evbus_matrix_group, evbus_matrix_member;
CREATE ROLE evbus_matrix_none;
CREATE ROLE evbus_matrix_publisher IN ROLE evbus_publisher;
CREATE ROLE evbus_matrix_consumer IN ROLE evbus_consumer;
CREATE ROLE evbus_matrix_operator IN ROLE evbus_operator;
CREATE ROLE evbus_matrix_monitor IN ROLE evbus_monitor;
CREATE ROLE evbus_matrix_owner IN ROLE evbus_publisher, evbus_consumer, evbus_operator;

-- The roles are what their names say, and no more.
SELECT is((SELECT string_agg(rolname, ' ' ORDER BY rolname) FROM pg_roles WHERE rolname ~ '^evbus_(publisher|consumer|operator|monitor)$'
	AND NOT (rolcanlogin OR rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)), 'evbus_consumer evbus_monitor evbus_operator evbus_publisher', 'four roles, with no attributes');
SELECT is_empty($$SELECT roleid::regrole, member::regrole FROM pg_auth_members WHERE member IN (SELECT oid FROM pg_roles WHERE rolname ~ '^evbus_(publisher|consumer|operator|monitor)$')$$, 'none is a member of anything');

-- -------------------------------------------------------------------- who may call what

-- What each function is for; p, c, o, m: publisher, consumer, operator, monitor.  Each name that begins with a letter is here.
CREATE TABLE face (name text PRIMARY KEY, who text);
INSERT INTO face VALUES
	('publish', 'p'), ('publish_batch', 'p'), ('publish_lines', 'p'), ('publish_cloud_event', 'p'), ('publish_changes', 'p'), ('stop_publish_changes', 'p'), ('_changes', 'p'),
	('cancel_scheduled', 'po'), ('has_privilege', 'pco'),
	('subscribe', 'c'), ('unsubscribe', 'c'), ('receive', 'c'), ('receive_lines', 'c'), ('ack', 'c'), ('nack', 'c'), ('reject', 'c'), ('extend', 'c'), ('release', 'c'), ('wait', 'c'),
	('cloud_event', 'c'), ('edit_dead_letter', 'c'), ('history_page', 'c'), ('_history_query', 'c'), ('channel', 'com'),
	('alter_subscription', 'co'), ('pause', 'co'), ('resume', 'co'), ('reset_breaker', 'co'), ('trace', 'co'), ('seek', 'co'), ('replay', 'co'), ('cancel_replay', 'co'),
	('redrive', 'co'), ('cancel_redrive', 'co'), ('discard', 'co'), ('grant', 'co'), ('revoke', 'co'),
	('create_bus', 'o'), ('alter_bus', 'o'), ('drop_bus', 'o'), ('limit_publisher', 'o'), ('train_dictionary', 'o'), ('pause_bus', 'o'), ('resume_bus', 'o'), ('stop_all', 'o'),
	('maintain', 'o'), ('schedule_maintenance', 'o'), ('stat_reset', 'o'),
	('metrics', 'om'), ('health', 'om'), ('top', 'om'), ('report_html', 'om'),
	('dead_letter_top', ''), ('dead_letter_line', ''), ('take_over', '');
SELECT set_eq($$SELECT DISTINCT proname::text FROM pg_proc WHERE pronamespace = 'evbus'::regnamespace AND proname !~ '^_'$$, $$SELECT name FROM face WHERE name !~ '^_'$$, 'the table names every function');
SELECT set_eq($$SELECT p.oid::regprocedure::text, r.rolname::text FROM pg_proc p, pg_roles r
		WHERE p.pronamespace = 'evbus'::regnamespace AND (proname !~ '^_' OR proname IN (SELECT name FROM face)) AND r.rolname ~ '^evbus_matrix_(none|publisher|consumer|operator|monitor)$'
			AND has_function_privilege(r.oid, p.oid, 'EXECUTE')$$,
	$$SELECT p.oid::regprocedure::text, 'evbus_matrix_' || v.role FROM pg_proc p JOIN face f ON f.name = p.proname
		JOIN (VALUES ('p', 'publisher'), ('c', 'consumer'), ('o', 'operator'), ('m', 'monitor')) AS v(letter, role) ON position(v.letter IN f.who) > 0
		WHERE p.pronamespace = 'evbus'::regnamespace$$, 'each of the roles may execute what it is for, and nothing else');

-- Tables and views, by columns as well.
CREATE TABLE sight (name text PRIMARY KEY);
INSERT INTO sight SELECT unnest('{bus_list,volatile_list,publish_limit_list,dictionary_list,subscription_list,subscription_lag,replay_list,leaf_list,stat_upkeep,stat_memory,stat_worker,stat_progress,dead_letter_quota,breaker_list,
	stat_bus,stat_bus_window,stat_subscription,stat_subscription_window,stat_type,stat_minutes,stat_times,dead_letter_total,dead_letter_trend}'::text[]);
SELECT set_eq($$SELECT c.relname::text, r.rolname::text FROM pg_class c, pg_roles r
		WHERE c.relnamespace = 'evbus'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm') AND r.rolname ~ '^evbus_matrix_(none|publisher|consumer|operator|monitor)$' AND has_table_privilege(r.oid, c.oid, 'SELECT')$$,
	$$SELECT name, 'evbus_matrix_' || role FROM sight, unnest('{operator,monitor}'::text[]) AS role UNION SELECT n, 'evbus_matrix_operator' FROM unnest('{privilege_list,retention_audit}'::text[]) AS n$$,
	'what watches may be read by monitor and operator; the latter sees privileges and what was dropped');
SELECT is_empty($$SELECT c.relname, r.rolname FROM pg_class c, pg_roles r WHERE c.relnamespace = 'evbus'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S') AND r.rolname ~ '^evbus_matrix_(none|publisher|consumer|operator|monitor)$'
	AND CASE WHEN c.relkind = 'S' THEN has_sequence_privilege(r.oid, c.oid, 'USAGE, UPDATE') ELSE has_table_privilege(r.oid, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER') OR has_any_column_privilege(r.oid, c.oid, 'INSERT, UPDATE') END$$,
	'none writes a table');
SELECT set_eq($$SELECT DISTINCT a.attrelid::regclass::text || '.' || a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid, pg_roles r
		WHERE c.relnamespace = 'evbus'::regnamespace AND a.attacl IS NOT NULL AND r.rolname ~ '^evbus_matrix_' AND has_column_privilege(r.oid, c.oid, a.attnum, 'SELECT') AND NOT has_table_privilege(r.oid, c.oid, 'SELECT')$$,
	$$VALUES ('evbus.scheduled.bus_id'), ('evbus.scheduled.due_at'), ('evbus.bus.bus_id'), ('evbus.bus.bus'), ('evbus.bus.max_backlog'), ('evbus.bus.max_backlog_bytes'),
		('evbus.audit.audit_id'), ('evbus.audit.at'), ('evbus.audit.login'), ('evbus.audit.role'), ('evbus.audit.action'), ('evbus.audit.kind'), ('evbus.audit.object')$$, 'single columns are numbers and names of buses, and who did what');

-- What monitor sees holds nothing of events: a canary in payload, key, headers and error text.
SELECT evbus.create_bus('aviary', publish_rate => 1000000), evbus.subscribe('aviary', 'cage', max_dead_letters => 100, breaker_threshold => 1);
CREATE FUNCTION shriek(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'canary' USING DETAIL = 'canary'; END $$;
SELECT evbus.subscribe('aviary', 'net', handler => 'shriek(evbus.event)', max_attempts => 1, breaker_threshold => 0.5, breaker_min => 2);
SELECT count(evbus.publish('aviary', 'song', '"canary"', key => 'canary', headers => '{"h": "canary"}')) AS n FROM generate_series(1, 5) \gset
SELECT evbus.publish('aviary', 'song', '"canary"', key => 'canary', delay => '1 hour', dedup_key => 'canary') AS n \gset
SELECT becomes($$SELECT (count(*) > 0)::text FROM evbus.breaker_list WHERE subscription = 'net' AND state <> 'closed'$$, 'true', 'events fail');
SELECT evbus.reject(array_agg(receipt), 'canary') AS n FROM evbus.receive('cage', 5) \gset
SELECT evbus.replay('cage', 'beginning') AS n \gset
SELECT evbus.pause('cage', 'a reason');
CREATE FUNCTION seen_by_monitor() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text := '';
	part text;
	name text;
BEGIN
	FOR name IN SELECT c.oid::regclass::text FROM pg_class c WHERE c.relnamespace = 'evbus'::regnamespace AND c.relkind = 'v' AND has_table_privilege(current_user, c.oid, 'SELECT') LOOP
		EXECUTE format('SELECT string_agg(v::text, '' '') FROM %s v', name) INTO part;
		result := result || coalesce(part, '');
	END LOOP;
	SELECT result || evbus.metrics() || evbus.report_html() || (SELECT string_agg(h::text, ' ') FROM evbus.health() h) || (SELECT string_agg(t, ' ') FROM evbus.top(200) t) INTO result;
	RETURN result;
END $$;
SET ROLE evbus_matrix_monitor;
SELECT cmp_ok(length(seen_by_monitor()), '>', 10000, 'monitor sees much');
SELECT unalike(seen_by_monitor(), '%canary%', 'but no payload, key, header or error text');
SELECT throws_ok('SELECT evbus.report_html(payloads => true)', '42501', NULL, 'nor by asking for it');
SET ROLE evbus_matrix_operator;
SELECT unalike(seen_by_monitor(), '%canary%', 'operator neither');
RESET ROLE;
SELECT alike(seen_by_monitor(), '%canary%', 'a superuser would see it there');
SELECT evbus.drop_bus('aviary', force => true);

-- ------------------------------------------------------------------ what was granted

-- A bus, a subscription and its owner; each call by each role with each privilege alone, and without.
CREATE TABLE act (call text, needs text);
GRANT SELECT ON act TO PUBLIC;
INSERT INTO act VALUES
	($$SELECT evbus.publish('m', 'a', '1')$$, 'publish'), ($$SELECT * FROM evbus.publish_batch('m', '{a}', '{1}')$$, 'publish'), ($$SELECT * FROM evbus.publish_lines('m', 'a', '1')$$, 'publish'),
	($$SELECT evbus.publish_cloud_event('m', '{"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": 1}')$$, 'publish'), ($$SELECT evbus.publish('m', 'a', '1', delay => '1 hour')$$, 'publish'), ($$SELECT evbus.publish('m', 'a', '1', dedup_key => 'k')$$, 'publish'),
	($$SELECT * FROM evbus.history_page('m')$$, 'read'),
	($$SELECT evbus.subscribe('m', 'new')$$, 'subscribe'), ($$SELECT evbus.subscribe('m', 'new', start_from => 'beginning')$$, 'subscribe'),
	($$SELECT evbus.alter_bus('m', retention => '2 days')$$, 'manage'), ($$SELECT evbus.pause_bus('m')$$, 'manage'), ($$SELECT evbus.resume_bus('m')$$, 'manage'), ($$SELECT evbus.limit_publisher('m', 'postgres', 100)$$, 'manage'), ($$SELECT * FROM evbus.train_dictionary('m', dry_run => true)$$, 'manage'),
	($$SELECT * FROM evbus.receive('s')$$, 'consume'), ($$SELECT * FROM evbus.receive_lines('s')$$, 'consume'), ($$CALL evbus.wait('s', '1 ms')$$, 'consume'),
	($$SELECT evbus.ack(ARRAY[current_setting('matrix.receipt')])$$, 'consume'), ($$SELECT evbus.nack(ARRAY[current_setting('matrix.receipt')])$$, 'consume'), ($$SELECT evbus.reject(ARRAY[current_setting('matrix.receipt')])$$, 'consume'),
	($$SELECT evbus.extend(ARRAY[current_setting('matrix.receipt')], '1 minute')$$, 'consume'), ($$SELECT evbus.release(ARRAY[current_setting('matrix.receipt')])$$, 'consume'),
	($$SELECT evbus.pause('s')$$, 'operate'), ($$SELECT evbus.resume('s')$$, 'operate'), ($$SELECT evbus.seek('s', 'now')$$, 'operate'), ($$SELECT evbus.replay('s', 'beginning', '2')$$, 'operate'), ($$SELECT evbus.reset_breaker('s')$$, 'operate'), ($$SELECT evbus.trace('s', '1 second')$$, 'operate'),
	($$SELECT evbus.cancel_replay(current_setting('matrix.replay')::bigint)$$, 'operate'), ($$SELECT evbus.alter_subscription('s', batch_size => 2)$$, 'operate'), ($$SELECT evbus.alter_subscription('s', types => '{a}')$$, 'operate'),
	($$SELECT evbus.redrive(subscription => 's')$$, 'operate'), ($$SELECT evbus.redrive(ARRAY[current_setting('matrix.dead')]::bigint[])$$, 'operate'), ($$SELECT evbus.redrive(subscription => 's', rate => 1)$$, 'operate'),
	($$SELECT evbus.discard(subscription => 's', reason => 'x')$$, 'operate'), ($$SELECT evbus.discard(ARRAY[current_setting('matrix.dead')]::bigint[], 'x')$$, 'operate'),
	($$SELECT evbus.drop_bus('m', force => true)$$, 'owner'), ($$SELECT evbus.unsubscribe('s')$$, 'owner'), ($$SELECT evbus.alter_subscription('s', filter => '$.a == 1')$$, 'owner'), ($$SELECT evbus.alter_subscription('s', handler => 'shriek(evbus.event)')$$, 'owner'),
	($$SELECT evbus.edit_dead_letter(current_setting('matrix.dead')::bigint, '2', 'x')$$, 'owner'),
	($$SELECT evbus.grant('publish', 'm', current_user::regrole)$$, 'owner'), ($$SELECT evbus.revoke('publish', 'm', current_user::regrole)$$, 'owner'), ($$SELECT evbus.grant('consume', 's', current_user::regrole)$$, 'owner'), ($$SELECT evbus.revoke('operate', 's', current_user::regrole)$$, 'owner');
SELECT evbus.create_bus('m');
SELECT evbus.grant('subscribe', 'm', 'evbus_matrix_owner');
SELECT evbus.grant('publish', 'm', 'evbus_matrix_owner');
SET ROLE evbus_matrix_owner;
SELECT evbus.subscribe('m', 's') AS n \gset
SELECT count(evbus.publish('m', 'a', to_jsonb(i))) AS n FROM generate_series(1, 5) i \gset
RESET ROLE;
SELECT set_config('matrix.dead_receipt', (SELECT receipt FROM take('s', 1)), false) IS NOT NULL AS n \gset
SELECT evbus.reject(ARRAY[current_setting('matrix.dead_receipt')], 'no') AS n \gset
SELECT set_config('matrix.dead', (SELECT dead_letter_id::text FROM evbus.dead_letter WHERE subscription = 's'), false) IS NOT NULL AS n \gset
SELECT set_config('matrix.receipt', (SELECT receipt FROM take('s', 1)), false) IS NOT NULL AS n \gset
SELECT set_config('matrix.replay', evbus.replay('s', 'beginning')::text, false) IS NOT NULL AS n \gset

-- What a call comes to, undone: 'allowed', 'refused' or an error that is none of rights.
CREATE FUNCTION outcome(call text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		EXECUTE call;
		RAISE EXCEPTION 'undo' USING ERRCODE = 'ZZZZZ';
	EXCEPTION WHEN insufficient_privilege THEN RETURN 'refused';
		WHEN SQLSTATE 'ZZZZZ' THEN RETURN 'allowed';
		WHEN OTHERS THEN RETURN 'allowed, ' || SQLSTATE || ' ' || SQLERRM;
	END;
END $$;
CREATE TABLE result (role text, granted text, call text, needs text, outcome text);
GRANT ALL ON result TO PUBLIC;
-- EXECUTE is not what is asked here: all may call all.
CREATE ROLE evbus_matrix_group;
CREATE ROLE evbus_matrix_member IN ROLE evbus_matrix_group;
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA evbus TO evbus_matrix_none, evbus_matrix_operator, evbus_matrix_monitor, evbus_matrix_member;
GRANT USAGE ON SCHEMA evbus TO evbus_matrix_none, evbus_matrix_member;

CREATE PROCEDURE try_all(granted text) LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO result SELECT current_user, granted, a.call, a.needs, outcome(a.call) FROM act a;
END $$;
-- A privilege of none, of evbus_matrix_none itself, and of a role that evbus_matrix_member is a member of.
SET ROLE evbus_matrix_none; CALL try_all('none'); SET ROLE evbus_matrix_monitor; CALL try_all('none'); SET ROLE evbus_matrix_operator; CALL try_all('none'); SET ROLE evbus_matrix_owner; CALL try_all('owner'); RESET ROLE;
SELECT format($$SELECT evbus.grant(%1$L, %2$L, r::regrole) FROM unnest('{evbus_matrix_none,evbus_matrix_group}'::text[]) r; SET ROLE evbus_matrix_none; CALL try_all(%1$L); SET ROLE evbus_matrix_member; CALL try_all(%1$L); RESET ROLE;
	SELECT evbus.revoke(%1$L, %2$L, r::regrole) FROM unnest('{evbus_matrix_none,evbus_matrix_group}'::text[]) r; SET ROLE evbus_matrix_none; CALL try_all('none'); RESET ROLE$$, p, CASE WHEN p IN ('consume', 'operate') THEN 's' ELSE 'm' END)
FROM unnest('{publish,read,subscribe,manage,consume,operate}'::text[]) p \gexec

-- Whose call should have gone through: by the privilege; the operator by his role; the owner of the subscription for what is of it, and what he was granted.
CREATE VIEW expected AS SELECT r.*, CASE
		WHEN role = 'evbus_matrix_owner' THEN needs IN ('publish', 'subscribe', 'consume', 'operate') OR (needs = 'owner' AND call ~ $$'s'|edit_dead$$) OR needs = 'manage'
		WHEN role = 'evbus_matrix_operator' THEN needs IN ('manage', 'operate')
		ELSE needs = granted END AS allowed
	FROM result r;
SELECT is_empty($$SELECT role, granted, call, outcome FROM expected WHERE allowed <> (outcome LIKE 'allowed%')$$, 'what is granted is allowed, and nothing else');
SELECT is_empty($$SELECT role, granted, call, outcome FROM expected WHERE outcome LIKE 'allowed, %' AND call !~ 'alter_subscription.*handler|train_dictionary|maintain|wait|stale'$$, 'what is allowed works');
SELECT cmp_ok((SELECT count(*) FROM expected WHERE allowed), '>', 100::bigint, 'much was allowed');
SELECT cmp_ok((SELECT count(*) FROM expected WHERE NOT allowed), '>', 500::bigint, 'and much refused');
SELECT results_eq($$SELECT r.role, r.granted, bool_and(evbus.has_privilege(p, CASE WHEN p IN ('consume', 'operate') THEN 's' ELSE 'm' END, r.role::regrole))
		FROM (VALUES ('evbus_matrix_none', 'none', '{}'), ('evbus_matrix_operator', 'role', '{manage,operate}'), ('evbus_matrix_owner', 'owner', '{publish,subscribe,consume,operate}')) AS r(role, granted, ps), unnest(r.ps::text[]) p GROUP BY 1, 2 ORDER BY 1$$,
	$$VALUES ('evbus_matrix_operator', 'role', true), ('evbus_matrix_owner', 'owner', true)$$, 'has_privilege() says the same');
SELECT is(evbus.has_privilege('publish', 'm', 'evbus_matrix_none'), false, 'also of what is not granted');
SELECT is(evbus.has_privilege('publish', 'm'), true, 'a superuser may all');

-- ------------------------------------------------------------- words, and what is kept

SELECT throws_ok($$SELECT evbus.grant('pubish', 'm', 'evbus_matrix_none')$$, '22023', 'there is no privilege "pubish"', 'a misspelt privilege');
SELECT throws_ok($$SELECT evbus.grant('consume', 'm', 'evbus_matrix_none')$$, 'VB004', NULL, 'consume is of subscriptions');
SELECT throws_ok($$SELECT evbus.grant('publish', 's', 'evbus_matrix_none')$$, 'VB001', NULL, 'publish of buses');
SELECT throws_ok($$SELECT evbus.grant('publish', 'm', 'nobody_of_that_name')$$, '42704', NULL, 'a role that is not there');
SELECT throws_ok($$SELECT evbus.grant('publish', 'm', 0)$$, '42704', NULL, 'nor a number');
SELECT results_eq($$SELECT evbus.grant('publish', 'm', 'evbus_matrix_none')$$, 'VALUES (true)', 'a grant');
SELECT results_eq($$SELECT evbus.grant('publish', 'm', 'evbus_matrix_none')$$, 'VALUES (false)', 'and the same once more');
SELECT results_eq($$SELECT kind, object, privilege, role::text, grantor::text FROM evbus.privilege_list WHERE object = 'm' AND role::text = 'evbus_matrix_none'$$, $$VALUES ('bus', 'm', 'publish', 'evbus_matrix_none', 'postgres')$$, 'the list has it');
BEGIN;
SELECT evbus.revoke('publish', 'm', 'evbus_matrix_none');
SET LOCAL ROLE evbus_matrix_none;
SELECT is(outcome($$SELECT evbus.publish('m', 'a', '1')$$), 'refused', 'a revoke holds at once for who revoked');
ROLLBACK;
SET ROLE evbus_matrix_none;
SELECT is(outcome($$SELECT evbus.publish('m', 'a', '1')$$), 'allowed', 'and is undone by a rollback');
RESET ROLE;
SELECT results_eq($$SELECT evbus.revoke('publish', 'm', 'evbus_matrix_none')$$, 'VALUES (true)', 'a revoke');
SELECT results_eq($$SELECT evbus.revoke('publish', 'm', 'evbus_matrix_none')$$, 'VALUES (false)', 'and the same once more');

-- Membership is looked at each time.
SELECT evbus.grant('publish', 'm', 'evbus_matrix_group');
SET ROLE evbus_matrix_member;
SELECT is(outcome($$SELECT evbus.publish('m', 'a', '1')$$), 'allowed', 'a member of who may');
RESET ROLE;
REVOKE evbus_matrix_group FROM evbus_matrix_member;
SET ROLE evbus_matrix_member;
SELECT is(outcome($$SELECT evbus.publish('m', 'a', '1')$$), 'refused', 'is none any more');
RESET ROLE;

-- stop_all() is about what one manages; the maintainer pauses it.
SELECT evbus.create_bus('m2'), evbus.grant('manage', 'm', 'evbus_matrix_none');
SET ROLE evbus_matrix_none;
SELECT results_eq($$SELECT bus, stopped FROM evbus.stop_all('100 ms')$$, $$VALUES ('m', false)$$, 'stop_all() stops what one may manage, as far as a client lets it');
SET ROLE evbus_matrix_operator;
SELECT set_eq($$SELECT bus, stopped FROM evbus.stop_all('100 ms')$$, $$VALUES ('m', false), ('m2', true)$$, 'an operator all');
RESET ROLE;
SELECT set_eq($$SELECT bus, paused FROM evbus.bus_list$$, $$VALUES ('m', true), ('m2', true)$$, 'they are paused');
SELECT evbus.resume_bus('m'), evbus.drop_bus('m2'), evbus.revoke('manage', 'm', 'evbus_matrix_none');

-- Whoever has a subscription loses its events with the right to subscribe; the name of a role that is gone is worth nothing.
SELECT evbus.revoke('subscribe', 'm', 'evbus_matrix_owner');
SET ROLE evbus_matrix_owner;
SELECT is(outcome($$SELECT * FROM evbus.receive('s')$$), 'refused', 'the owner of a subscription who may no longer subscribe receives nothing');
RESET ROLE;
SELECT is(outcome($$SELECT * FROM evbus.receive('s')$$), 'refused', 'nor does anybody for him');
SELECT evbus.grant('subscribe', 'm', 'evbus_matrix_owner');
SELECT evbus.grant('read', 'm', 'evbus_matrix_none');
SELECT evbus.drop_bus('m', force => true);
SELECT is_empty($$SELECT * FROM evbus.privilege_list WHERE object IN ('m', 's')$$, 'what was granted goes with the bus');
SELECT evbus.create_bus('m');
SELECT is_empty($$SELECT * FROM evbus.privilege_list WHERE object IN ('m', 's')$$, 'another bus of its name has none of it');
SELECT evbus.grant('read', 'm', 'evbus_matrix_none');
DROP OWNED BY evbus_matrix_none, evbus_matrix_publisher, evbus_matrix_consumer, evbus_matrix_operator, evbus_matrix_monitor, evbus_matrix_owner, evbus_matrix_group, evbus_matrix_member;
SELECT lives_ok('DROP ROLE evbus_matrix_none, evbus_matrix_publisher, evbus_matrix_consumer, evbus_matrix_operator, evbus_matrix_monitor, evbus_matrix_owner, evbus_matrix_group, evbus_matrix_member', 'roles can be dropped');
SELECT is_empty($$SELECT * FROM evbus.privilege_list WHERE object = 'm'$$, 'and are no longer in the list');
ALTER SYSTEM SET evbus.upkeep_interval = '100ms';
SELECT pg_reload_conf() \gset
SELECT becomes('SELECT count(*)::text FROM evbus.privilege', '0', 'their rows go at the next upkeep, before another role can have their number');
ALTER SYSTEM RESET evbus.upkeep_interval;
SELECT pg_reload_conf() \gset

SELECT * FROM finish();
