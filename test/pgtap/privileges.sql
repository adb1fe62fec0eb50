-- Who may do what: nothing for PUBLIC, subscriptions belong to their owner, handlers have the owner's rights.
\ir include/helpers.sql
SELECT plan(353);

DROP ROLE IF EXISTS evbus_test_alice, evbus_test_bob, evbus_test_carol, evbus_test_group, evbus_test_nologin;
CREATE ROLE evbus_test_group;
CREATE ROLE evbus_test_alice LOGIN;
CREATE ROLE evbus_test_bob LOGIN;
CREATE ROLE evbus_test_carol LOGIN IN ROLE evbus_test_group;
CREATE ROLE evbus_test_nologin;

-- nothing for PUBLIC

SELECT set_eq($$SELECT p.oid::regprocedure::text FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
	WHERE p.pronamespace = 'evbus'::regnamespace AND a.grantee = 0 AND a.privilege_type = 'EXECUTE'$$,
	$$VALUES ('evbus._decode(bytea,bigint)'), ('evbus._priority(bytea)'), ('evbus._expires_at(bytea)'), ('evbus._event_time(bigint)'), ('evbus._time_event(timestamp with time zone)'), ('evbus._type_matches(text,text[])')$$, 'PUBLIC may execute six pure functions, nothing else');
SELECT is_empty($$SELECT c.oid::regclass, a.privilege_type FROM pg_class c, aclexplode(coalesce(c.relacl, acldefault(CASE WHEN c.relkind = 'S' THEN 's' ELSE 'r' END::"char", c.relowner))) a
	WHERE c.relnamespace = 'evbus'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S') AND a.grantee = 0$$, 'PUBLIC may read or write no table, view or sequence');
SELECT is_empty($$SELECT a.privilege_type FROM pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a WHERE n.nspname = 'evbus' AND a.grantee = 0$$, 'PUBLIC may not even look into the schema');

-- a role without grants, then with the schema alone

SELECT evbus.create_bus('orders');
SELECT evbus.subscribe('orders', 'admins') AS position \gset
CREATE TABLE api (call text);
GRANT SELECT ON api TO PUBLIC;
INSERT INTO api VALUES
	($$SELECT evbus.create_bus('x')$$), ($$SELECT evbus.alter_bus('orders')$$), ($$SELECT evbus.drop_bus('orders')$$), ($$SELECT evbus.pause_bus('orders')$$), ($$SELECT evbus.resume_bus('orders')$$), ($$SELECT * FROM evbus.stop_all()$$), ($$SELECT evbus.take_over()$$), ($$SELECT evbus._copied()$$), ($$SELECT * FROM evbus.home$$), ($$UPDATE evbus.home SET home = ''$$), ($$SELECT evbus.limit_publisher('orders', 'postgres', 1)$$), ($$SELECT * FROM evbus.publish_limit$$), ($$SELECT * FROM evbus.publish_limit_list$$), ($$SELECT evbus.train_dictionary('orders')$$), ($$SELECT evbus.grant('publish', 'orders', 'evbus_test_bob')$$), ($$SELECT evbus.revoke('publish', 'orders', 'evbus_test_bob')$$), ($$SELECT evbus.has_privilege('publish', 'orders')$$), ($$SELECT * FROM evbus.privilege_list$$), ($$INSERT INTO evbus.privilege SELECT 'publish', bus_id, 'evbus_test_bob', 'postgres', now() FROM evbus.bus$$),
	($$SELECT evbus.publish('orders', 'a', '1')$$), ($$SELECT * FROM evbus.publish_batch('orders', '{a}', '{1}')$$), ($$SELECT * FROM evbus.publish_lines('orders', 'a', '1')$$), ($$SELECT evbus.cancel_scheduled(1)$$),
	($$SELECT * FROM evbus.scheduled_list$$), ($$SELECT * FROM evbus.scheduled$$), ($$SELECT * FROM evbus.scheduled_0$$), ($$DELETE FROM evbus.scheduled$$), ($$SELECT * FROM evbus.dedup_0$$), ($$TRUNCATE evbus.dedup_1$$),
	($$SELECT evbus.publish_changes('api', 'orders')$$), ($$SELECT evbus.stop_publish_changes('api')$$), ($$SELECT evbus._changes()$$),
	($$SELECT evbus.cloud_event(NULL::evbus.event)$$), ($$SELECT evbus.publish_cloud_event('orders', '{}')$$),
	($$SELECT evbus.subscribe('orders', 'x')$$), ($$SELECT evbus.alter_subscription('admins')$$), ($$SELECT evbus.unsubscribe('admins')$$), ($$SELECT evbus.pause('admins')$$), ($$SELECT evbus.resume('admins')$$), ($$SELECT evbus.reset_breaker('admins')$$), ($$SELECT evbus.trace('admins')$$), ($$SELECT * FROM evbus._breaker_state()$$), ($$SELECT * FROM evbus.breaker_list$$),
	($$SELECT evbus.seek('admins', 'now')$$), ($$SELECT evbus.replay('admins', 'beginning')$$), ($$SELECT evbus.cancel_replay(1)$$), ($$SELECT * FROM evbus.receive('admins')$$), ($$SELECT * FROM evbus.receive_lines('admins')$$), ($$SELECT evbus.ack('{}')$$), ($$SELECT evbus.nack('{}')$$), ($$SELECT evbus.reject('{}')$$),
	($$SELECT evbus.extend('{}', '1 minute')$$), ($$SELECT evbus.release('{}')$$), ($$CALL evbus.wait('admins', '1 ms')$$), ($$SELECT evbus.channel('admins')$$),
	($$SELECT evbus.redrive('{}'::bigint[])$$), ($$SELECT evbus.redrive()$$), ($$SELECT evbus.discard('{}'::bigint[], 'x')$$), ($$SELECT evbus.discard(reason => 'x')$$), ($$SELECT evbus.edit_dead_letter(1, '1', 'x')$$), ($$SELECT evbus.cancel_redrive(1)$$), ($$SELECT * FROM evbus.dead_letter_top()$$), ($$SELECT evbus._event_hour(1)$$),
	($$CALL evbus.maintain()$$), ($$SELECT evbus.schedule_maintenance()$$), ($$SELECT * FROM evbus._bus_state()$$), ($$SELECT * FROM evbus._volatile_state()$$), ($$SELECT * FROM evbus.volatile_list$$), ($$SELECT * FROM evbus._subscription_state()$$), ($$SELECT * FROM evbus._status()$$), ($$SELECT * FROM evbus._memory_state()$$), ($$SELECT * FROM evbus.stat_memory$$), ($$SELECT * FROM evbus._worker_state()$$), ($$SELECT * FROM evbus.stat_worker$$), ($$SELECT * FROM evbus._progress_state()$$), ($$SELECT * FROM evbus.stat_progress$$),
	($$SELECT * FROM evbus.history_page('orders')$$), ($$SELECT * FROM evbus._history_query('orders')$$), ($$SELECT evbus._oldest_open()$$), ($$SELECT * FROM evbus._upkeep_state()$$), ($$SELECT * FROM evbus.stat_upkeep$$),
	($$SELECT * FROM evbus.stat_bus$$), ($$SELECT * FROM evbus.stat_bus_window$$), ($$SELECT * FROM evbus.stat_subscription$$), ($$SELECT * FROM evbus.stat_subscription_window$$), ($$SELECT * FROM evbus.stat_type$$), ($$SELECT * FROM evbus.stat_minutes$$), ($$SELECT evbus.stat_reset()$$), ($$SELECT * FROM evbus._stat_times()$$), ($$SELECT * FROM evbus.stat_times$$), ($$SELECT * FROM evbus.dead_letter_total$$), ($$SELECT evbus.metrics()$$), ($$SELECT * FROM evbus.health()$$), ($$SELECT evbus._check_ages('1 s', '1 s')$$), ($$SELECT evbus.top()$$), ($$SELECT evbus._fit('x', 1)$$), ($$SELECT evbus._short(1)$$), ($$SELECT evbus._position_age(1, 1)$$), ($$SELECT evbus._metric_labels('{a}', '{b}')$$),
	($$SELECT * FROM evbus._stat_bus()$$), ($$SELECT * FROM evbus._stat_subscription()$$), ($$SELECT * FROM evbus._stat_type()$$), ($$SELECT * FROM evbus._stat_minutes()$$), ($$SELECT * FROM evbus.dead_letter_quota$$), ($$SELECT evbus.dead_letter_line(NULL)$$),
	($$SELECT * FROM evbus.retention_audit$$), ($$DELETE FROM evbus.retention_audit$$), ($$SELECT * FROM evbus.dead_letter_quota_state$$), ($$SELECT * FROM evbus.leaf_list$$),
	($$SELECT * FROM evbus.bus_list$$), ($$SELECT * FROM evbus.dictionary_list$$), ($$SELECT * FROM evbus.subscription_list$$), ($$SELECT * FROM evbus.subscription_lag$$), ($$SELECT * FROM evbus.history$$), ($$SELECT * FROM evbus.retry_list$$),
	($$SELECT * FROM evbus.dead_letter$$), ($$SELECT * FROM evbus.dead_letter_summary$$), ($$SELECT * FROM evbus.dead_letter_trend$$), ($$SELECT evbus.report_html()$$), ($$SELECT * FROM evbus.redrive_list$$), ($$SELECT * FROM evbus.replay_list$$), ($$SELECT * FROM evbus.replay$$), ($$SELECT * FROM evbus.replay_log$$),
	($$SELECT * FROM evbus.dead_letter_audit$$), ($$DELETE FROM evbus.dead_letter_audit$$), ($$SELECT * FROM evbus.audit$$), ($$DELETE FROM evbus.audit$$), ($$SELECT * FROM evbus.redrive_job$$), ($$SELECT * FROM evbus.dead_letter_count$$), ($$SELECT * FROM evbus.dead_letter_delta$$),
	($$SELECT * FROM evbus.bus$$), ($$SELECT * FROM evbus.dictionary$$), ($$SELECT * FROM evbus.subscription$$), ($$SELECT * FROM evbus.event_log$$), ($$SELECT * FROM evbus.tick$$), ($$SELECT * FROM evbus.late$$), ($$SELECT * FROM evbus.retry$$),
	($$SELECT * FROM evbus.dead_letter_log$$), ($$SELECT * FROM evbus.ack_0$$), ($$DELETE FROM evbus.subscription$$), ($$UPDATE evbus.bus SET paused = true$$),
	($$INSERT INTO evbus.late VALUES (1, 1, '')$$), ($$TRUNCATE evbus.ack_1$$);
SELECT is_empty($$SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'evbus'::regnamespace AND proname NOT IN ('_decode', '_priority', '_expires_at', '_event_time', '_time_event', '_type_matches', '_require_preload')
	AND NOT EXISTS (SELECT 1 FROM api WHERE call ~ ('evbus\.' || proname || '\('))$$, 'the list of calls in this file names every function');
SET ROLE evbus_test_bob;
SELECT throws_ok(call, '42501', NULL, 'without any grant: ' || call) FROM api;
RESET ROLE;
GRANT USAGE ON SCHEMA evbus TO evbus_test_alice, evbus_test_bob, evbus_test_carol, evbus_test_nologin;
SET ROLE evbus_test_bob;
SELECT throws_ok(call, '42501', NULL, 'with USAGE on the schema alone: ' || call) FROM api;
RESET ROLE;

-- leaves, made later by the worker, are no way around

SELECT evbus.publish('orders', 'secret', '{"card": 1234}') AS id \gset
SELECT cmp_ok(count(*), '>', 0::bigint, 'there are leaves') FROM pg_inherits WHERE inhparent = 'evbus.event_log'::regclass;
SET ROLE evbus_test_bob;
SELECT is_empty($$SELECT oid::regclass FROM pg_class WHERE relispartition AND relkind IN ('r', 'p') AND relnamespace = 'evbus'::regnamespace
	AND sqlstate_of(format('SELECT * FROM %s', oid::regclass)) <> '42501'$$, 'none of them can be read');
RESET ROLE;

-- roles that may use evbus

GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA evbus TO evbus_test_alice, evbus_test_bob, evbus_test_carol, evbus_test_nologin;
GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA evbus TO evbus_test_alice, evbus_test_bob, evbus_test_carol, evbus_test_nologin;
SELECT count(evbus.grant(p, 'orders', r)) AS n FROM unnest('{publish,subscribe}'::text[]) p, unnest('{evbus_test_alice,evbus_test_bob,evbus_test_carol,evbus_test_nologin}'::regrole[]) r \gset
SET ROLE evbus_test_alice;
SELECT ok(evbus.subscribe('orders', 'alices', types => '{shop.#}', backoff_initial => '1 hour', backoff_max => '1 hour') >= 0, 'a role that may subscribe makes a subscription');
SELECT ok(evbus.publish('orders', 'shop.open', '1') > 0, 'a role that may publish publishes');
RESET ROLE;
SELECT is((SELECT owner::text FROM evbus.subscription_list WHERE subscription = 'alices'), 'evbus_test_alice', 'a subscription belongs to who made it');
SET ROLE evbus_test_alice;
SELECT receipt AS alices FROM take('alices', 1) \gset
RESET ROLE;

SET ROLE evbus_test_bob;
SELECT throws_ok(call, '42501', NULL, 'another role: ' || call)
FROM (VALUES
	($$SELECT * FROM evbus.receive('alices')$$), ($$SELECT * FROM evbus.receive_lines('alices')$$), ($$CALL evbus.wait('alices', '1 ms')$$), ($$SELECT evbus.alter_subscription('alices', batch_size => 1)$$), ($$SELECT evbus.unsubscribe('alices')$$),
	($$SELECT evbus.pause('alices')$$), ($$SELECT evbus.resume('alices')$$), ($$SELECT evbus.reset_breaker('alices')$$), ($$SELECT evbus.trace('alices')$$), ($$SELECT evbus.seek('alices', 'now')$$), ($$SELECT evbus.replay('alices', 'beginning')$$),
	($$SELECT evbus.redrive(subscription => 'alices')$$), ($$SELECT evbus.discard(subscription => 'alices', reason => 'x')$$),
	($$SELECT evbus.alter_bus('orders', retention => '1 day')$$), ($$SELECT evbus.drop_bus('orders')$$), ($$SELECT evbus.pause_bus('orders')$$), ($$SELECT evbus.resume_bus('orders')$$)) AS v (call);
SELECT throws_ok(format($$SELECT evbus.%s(ARRAY[%L]%s)$$, verb, :'alices', rest), '42501', NULL, 'another role, with a receipt of hers: ' || verb)
FROM (VALUES ('ack', ''), ('nack', ''), ('reject', ''), ('release', ''), ('extend', ', interval ''1 hour''')) AS v (verb, rest);
SELECT ok(evbus.subscribe('orders', 'bobs') >= 0, 'another role has a subscription, too');
SELECT throws_ok(format($$SELECT * FROM evbus.receive('bobs', ack => ARRAY[%L])$$, :'alices'), '42501', NULL, 'another role, with a receipt of hers: receive(ack => ...)');
SELECT lives_ok($$SELECT evbus.unsubscribe('bobs')$$, 'and ends it');
RESET ROLE;
SELECT results_eq($$SELECT in_flight FROM evbus.subscription_lag WHERE subscription = 'alices'$$, $$VALUES (1::bigint)$$, 'nothing of that changed the delivery');
SET ROLE evbus_test_alice;
SELECT is(evbus.reject(ARRAY[:'alices'], 'closed'), 1, 'its owner can settle it');
RESET ROLE;
SET ROLE evbus_test_bob;
SELECT is(evbus.redrive(), 0::bigint, 'redrive without a filter does not touch what belongs to others');
SELECT is(evbus.discard(reason => 'x'), 0::bigint, 'nor does discard');
RESET ROLE;
SELECT is((SELECT count(*) FROM evbus.dead_letter WHERE subscription = 'alices'), 1::bigint, 'it is still there');
SELECT dead_letter_id AS dead FROM evbus.dead_letter WHERE subscription = 'alices' \gset
SET ROLE evbus_test_bob;
SELECT throws_ok(format('SELECT evbus.redrive(ARRAY[%s]::bigint[])', :dead), '42501', NULL, 'nor can it be redriven by its id');
SELECT throws_ok(format('SELECT evbus.discard(ARRAY[%s]::bigint[], ''x'')', :dead), '42501', NULL, 'nor discarded');
SELECT throws_ok(format('SELECT evbus.edit_dead_letter(%s, ''2'', ''x'')', :dead), '42501', NULL, 'nor edited');
RESET ROLE;
GRANT evbus_test_alice TO evbus_test_group;
SET ROLE evbus_test_carol;
SELECT is(evbus.redrive(subscription => 'alices'), 1::bigint, 'a member of the owning role may redrive');
SELECT is(consume('alices', 1), 'shop.open', 'and receive and ack');
SELECT lives_ok($$SELECT evbus.pause('alices')$$, 'and pause');
SELECT lives_ok($$SELECT evbus.resume('alices')$$, 'and resume');
RESET ROLE;
SELECT ok(evbus.seek('alices', 'now') > 0, 'a superuser may do what the owner may');

-- reading

GRANT SELECT ON evbus.history, evbus.dead_letter, evbus.retry_list TO evbus_test_bob;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA evbus FROM evbus_test_bob;
SET ROLE evbus_test_bob;
SELECT lives_ok('SELECT * FROM evbus.' || view, view || ' can be read with SELECT on it and nothing else') FROM unnest('{history,dead_letter,retry_list}'::text[]) AS view;
SELECT throws_ok($$SELECT evbus.publish('orders', 'a', '1')$$, '42501', NULL, 'reading is not publishing');
RESET ROLE;

-- handlers run as the owner

CREATE TABLE seen (subscription text, session_role text, role text, login text, super text, after_reset text);
GRANT INSERT ON seen TO evbus_test_alice;
CREATE TABLE secret (n integer);
CREATE FUNCTION who(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
DECLARE reset_to text;
BEGIN
	SET LOCAL ROLE NONE;
	reset_to := current_user;
	RESET SESSION AUTHORIZATION;
	reset_to := reset_to || ' ' || current_user;
	INSERT INTO seen VALUES ('who', session_user, current_user, (SELECT usename FROM pg_stat_activity WHERE pid = pg_backend_pid()), current_setting('is_superuser'), reset_to);
END $$;
CREATE FUNCTION steal(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO seen VALUES ('steal');
	INSERT INTO secret VALUES (1);
END $$;
SET ROLE evbus_test_alice;
SELECT evbus.subscribe('orders', 'who', types => '{who}', handler => 'who(evbus.event)') AS position \gset
SELECT evbus.subscribe('orders', 'steal', types => '{steal}', handler => 'steal(evbus.event)') AS position \gset
RESET ROLE;
SELECT evbus.publish('orders', 'who', '1') AS id \gset
SELECT becomes($$SELECT seen::text FROM seen WHERE subscription = 'who'$$, '(who,evbus_test_alice,evbus_test_alice,evbus_test_alice,off,"evbus_test_alice evbus_test_alice")',
	'a handler runs as the owner of its subscription: session, role and login, also after RESET');
SELECT evbus.publish('orders', 'steal', '1') AS id \gset
SELECT becomes($$SELECT sqlstate || ' ' || reason FROM evbus.dead_letter WHERE subscription = 'steal'$$, '42501 permanent', 'a handler can do nothing its owner could not');
SELECT is_empty($$SELECT 1 FROM secret UNION ALL SELECT 1 FROM seen WHERE subscription = 'steal'$$, 'and what it did before it was stopped is undone');

-- settings of the owner, of the database or of the handler do not get in the way

ALTER ROLE evbus_test_alice SET default_transaction_read_only = on;
ALTER ROLE evbus_test_alice SET default_transaction_isolation = 'serializable';
ALTER ROLE evbus_test_alice SET statement_timeout = '1ms';
ALTER ROLE evbus_test_alice SET lock_timeout = '1ms';
ALTER ROLE evbus_test_alice SET idle_in_transaction_session_timeout = '1ms';
ALTER ROLE evbus_test_alice SET synchronous_commit = off;
ALTER ROLE evbus_test_alice SET session_replication_role = 'replica';
ALTER ROLE evbus_test_alice SET search_path = 'pg_temp', 'public';
ALTER ROLE evbus_test_alice SET row_security = off;
ALTER ROLE evbus_test_alice SET role = 'evbus_test_group';
SELECT count(pg_terminate_backend(pid)) AS n FROM pg_stat_activity WHERE backend_type = 'evbus handler' AND usename = 'evbus_test_alice' \gset
SELECT evbus.publish('orders', 'who', '1') AS id \gset
SELECT becomes($$SELECT count(*)::text FROM seen WHERE subscription = 'who'$$, '2', 'odd settings of the owner do not stop the handler');
SELECT results_eq($$SELECT session_role, super FROM seen WHERE subscription = 'who'$$, $$VALUES ('evbus_test_alice', 'off'), ('evbus_test_alice', 'off')$$, 'and give it no other rights');
ALTER ROLE evbus_test_alice RESET ALL;
DELETE FROM seen WHERE ctid <> (SELECT min(ctid) FROM seen);
SELECT count(pg_terminate_backend(pid)) AS n FROM pg_stat_activity WHERE backend_type = 'evbus handler' AND usename = 'evbus_test_alice' \gset

-- a deferred trigger of the owner's table fires with the owner's rights too

GRANT CREATE ON SCHEMA public TO evbus_test_alice;
SET ROLE evbus_test_alice;
CREATE TABLE trap (n integer);
CREATE FUNCTION spring() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO seen VALUES ('trap', session_user, current_user, NULL, current_setting('is_superuser'), NULL);
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER spring AFTER INSERT ON trap DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION spring();
CREATE FUNCTION walk_in(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$BEGIN INSERT INTO trap VALUES (1); END$$;
SELECT evbus.subscribe('orders', 'trap', types => '{trap}', handler => 'walk_in(evbus.event)') AS position \gset
RESET ROLE;
SELECT evbus.publish('orders', 'trap', '1') AS id \gset
SELECT becomes($$SELECT seen::text FROM seen WHERE subscription = 'trap'$$, '(trap,evbus_test_alice,evbus_test_alice,,off,)', 'a deferred trigger at the handler''s commit runs as the owner');

-- who cannot be an owner of a handler

CREATE FUNCTION harmless(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$BEGIN END$$;
CREATE FUNCTION harmless2(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$BEGIN END$$;
REVOKE EXECUTE ON FUNCTION harmless2(evbus.event) FROM PUBLIC;
SET ROLE evbus_test_nologin;
SELECT isnt(sqlstate_of($$SELECT evbus.subscribe('orders', 'nologin', handler => 'harmless(evbus.event)')$$), '00000', 'a role that cannot log in cannot have a handler');
SELECT lives_ok($$SELECT evbus.subscribe('orders', 'nologin', types => '{nologin}')$$, 'but a subscription without one');
RESET ROLE;
SET ROLE evbus_test_alice;
SELECT throws_ok($$SELECT evbus.subscribe('orders', 'alices2', handler => 'harmless2(evbus.event)')$$, 'VB010', NULL, 'a handler its owner may not execute is refused');
SELECT throws_ok($$SELECT evbus.alter_subscription('who', handler => 'harmless2(evbus.event)')$$, 'VB010', NULL, 'also later');
RESET ROLE;

-- rights that are taken away later

REVOKE EXECUTE ON FUNCTION who(evbus.event) FROM PUBLIC;
SELECT evbus.publish('orders', 'who', '2') AS id \gset
SELECT becomes($$SELECT ((SELECT paused_reason IS NOT NULL FROM evbus.subscription_list WHERE subscription = 'who') OR EXISTS (SELECT 1 FROM evbus.dead_letter WHERE subscription = 'who' AND sqlstate = '42501'))::text$$, 'true',
	'an owner who lost EXECUTE on the handler: the subscription pauses or the event is a dead letter, nothing runs');
SELECT is((SELECT count(*) FROM seen WHERE subscription = 'who'), 1::bigint, 'the handler was not called');
GRANT EXECUTE ON FUNCTION who(evbus.event) TO PUBLIC;
SELECT evbus.resume('who');
SELECT evbus.redrive(subscription => 'who') AS n \gset
SELECT becomes($$SELECT count(*)::text FROM seen WHERE subscription = 'who'$$, '2', 'with the right given back and the subscription resumed the event is handled');

ALTER ROLE evbus_test_alice NOLOGIN;
-- its worker may still be logged in
SELECT count(pg_terminate_backend(pid)) AS n FROM pg_stat_activity WHERE backend_type = 'evbus handler' AND usename = 'evbus_test_alice' \gset
SELECT evbus.publish('orders', 'who', '3') AS id \gset
SELECT becomes($$SELECT (paused_reason IS NOT NULL)::text FROM evbus.subscription_list WHERE subscription = 'who'$$, 'true', 'an owner who can no longer log in: the subscription is paused with a reason');
ALTER ROLE evbus_test_alice LOGIN;
SELECT evbus.resume('who');
SELECT becomes($$SELECT count(*)::text FROM seen WHERE subscription = 'who'$$, '3', 'it goes on when it is resumed after the owner may log in again');

-- tidy up what is not in this database alone

SELECT evbus.drop_bus('orders', force => true);
DROP OWNED BY evbus_test_alice, evbus_test_bob, evbus_test_carol, evbus_test_group, evbus_test_nologin;
SELECT count(pg_terminate_backend(pid)) AS n FROM pg_stat_activity WHERE usename LIKE 'evbus\_test\_%' AND pid <> pg_backend_pid() \gset
SELECT lives_ok('DROP ROLE evbus_test_alice, evbus_test_bob, evbus_test_carol, evbus_test_group, evbus_test_nologin', 'roles that owned subscriptions can be dropped once these are gone');

SELECT * FROM finish();
