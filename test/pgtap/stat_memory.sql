-- How full shared memory is (stat_memory), and what the processes do (stat_worker).
\ir include/helpers.sql
SELECT plan(47);

SELECT columns_are('evbus', 'stat_memory', '{area,of,unit,used,limit,high_water,share,level,setting}'::name[], 'columns of stat_memory');
SELECT columns_are('evbus', 'stat_worker', '{pid,kind,database,owner,state,subscription,event_id,since,started_at,batches,memory_bytes,memory_high_water}'::name[], 'columns of stat_worker');
SELECT is_empty($$SELECT c.oid::regclass, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
	WHERE c.relname IN ('stat_memory', 'stat_worker') AND col_description(c.oid, a.attnum) IS NULL$$, 'each column says what it is');
SELECT has_function('evbus', '_memory_state', 'the function behind the view');
SELECT has_function('evbus', '_worker_state', 'and the other');

-- areas

SELECT results_eq($$SELECT area, unit, setting FROM evbus.stat_memory WHERE area <> 'process'$$,
	$$VALUES ('commit ring', 'bytes', 'evbus.ring_size'), ('leases', 'leases', 'evbus.max_leases'), ('leases of clients', 'leases', 'evbus.max_leases'), ('buses', 'buses', 'evbus.max_buses'),
		('subscriptions', 'subscriptions', 'evbus.max_subscriptions'), ('volatile buses', 'buses', 'evbus.max_volatile_buses'), ('rates of roles', 'rates', NULL), ('errands', 'errands', NULL),
		('upkeep notes', 'notes', 'evbus.max_buses'), ('handler workers', 'workers', 'evbus.max_handler_workers'), ('databases', 'databases', 'evbus.max_databases')$$, 'each area, its unit and its setting');
SELECT is((SELECT "limit" FROM evbus.stat_memory WHERE area = 'commit ring'), pg_size_bytes(current_setting('evbus.ring_size')), 'the limit of the ring is its size');
SELECT is_empty($$SELECT area, "limit" FROM evbus.stat_memory JOIN (VALUES ('leases', 'evbus.max_leases'), ('buses', 'evbus.max_buses'), ('subscriptions', 'evbus.max_subscriptions'),
	('volatile buses', 'evbus.max_volatile_buses'), ('handler workers', 'evbus.max_handler_workers'), ('databases', 'evbus.max_databases')) AS s (area, name) USING (area)
	WHERE "limit" IS DISTINCT FROM current_setting(name)::bigint$$, 'limits are those of the settings');
SELECT is((SELECT "limit" FROM evbus.stat_memory WHERE area = 'leases of clients'), current_setting('evbus.max_leases')::bigint * 7 / 8, 'clients leave an eighth of the leases to the workers');
SELECT is((SELECT string_agg("limit"::text, ' ' ORDER BY area) FROM evbus.stat_memory WHERE area IN ('errands', 'rates of roles')), '8 256', 'what no setting bounds');
SELECT is((SELECT "limit" FROM evbus.stat_memory WHERE area = 'upkeep notes'), current_setting('evbus.max_buses')::bigint + 3, 'notes of a bus each, of positions, of dead letters and of the audit');
SELECT is_empty($$SELECT * FROM evbus.stat_memory WHERE used < 0 OR high_water < used OR share IS DISTINCT FROM used / "limit"::double precision$$, 'nothing is negative, no mark is below what is used, shares are used by limit');
SELECT is_empty($$SELECT * FROM evbus.stat_memory WHERE level <> CASE WHEN share >= 0.9 THEN 'critical' WHEN share >= 0.7 THEN 'warn' ELSE 'ok' END$$, 'levels are by share');
SELECT cmp_ok((SELECT used FROM evbus.stat_memory WHERE area = 'databases'), '>=', 1::bigint, 'this database is one');

-- what comes and goes, and what stays as the mark

SELECT is((SELECT string_agg(used || ' ' || high_water, ', ') FROM evbus.stat_memory WHERE area IN ('buses', 'subscriptions', 'volatile buses', 'rates of roles')), '0 0, 0 0, 0 0, 0 0', 'there is nothing yet');
SELECT evbus.create_bus('b'), evbus.create_bus('c'), evbus.create_bus('v', durability => 'volatile');
SELECT evbus.subscribe('b', 's1'), evbus.subscribe('b', 's2'), evbus.subscribe('v', 's3');
SELECT evbus.limit_publisher('b', 'postgres', 1000);
SELECT is((SELECT string_agg(used || ' ' || high_water, ', ') FROM evbus.stat_memory WHERE area IN ('buses', 'subscriptions', 'volatile buses', 'rates of roles')), '3 3, 3 3, 1 1, 1 1', 'buses, subscriptions, volatile buses and rates are counted');
BEGIN;
SELECT evbus.create_bus('undone1'), evbus.create_bus('undone2', durability => 'volatile');
SELECT evbus.subscribe('undone1', 'undone1'), evbus.subscribe('undone1', 'undone2');
ROLLBACK;
SELECT is((SELECT string_agg(used || ' ' || high_water, ', ') FROM evbus.stat_memory WHERE area IN ('buses', 'subscriptions', 'volatile buses')), '3 5, 3 5, 1 2', 'what was rolled back had its place, also if nobody looked');
BEGIN;
SELECT evbus.create_bus('undone');
SELECT is((SELECT used FROM evbus.stat_memory WHERE area = 'buses'), 4::bigint, 'in its transaction a new bus is seen');
ROLLBACK;
SELECT evbus.publish('b', 'a', '1') AS id \gset
SELECT evbus.limit_publisher('b', 'postgres', 0);
SELECT take('s1', 1) AS d \gset
SELECT evbus.replay('s1', 'beginning') AS replay \gset
SELECT is((SELECT used || ' ' || high_water FROM evbus.stat_memory WHERE area = 'subscriptions'), '4 5', 'a replay takes the place of a subscription');
SELECT evbus.cancel_replay(:replay) AS cancelled \gset
SELECT evbus.unsubscribe('s2');
SELECT evbus.drop_bus('c');
SELECT is((SELECT string_agg(used || ' ' || high_water, ', ') FROM evbus.stat_memory WHERE area IN ('buses', 'subscriptions', 'volatile buses', 'rates of roles')), '2 5, 2 5, 1 2, 0 1', 'what is gone stays in the marks');

-- leases

SELECT is((SELECT used || ' ' || high_water FROM evbus.stat_memory WHERE area = 'leases'), '1 1', 'a delivery in hand is a lease');
SELECT count(*) AS n FROM evbus.publish_batch('b', '{a}', (SELECT array_agg('1'::jsonb) FROM generate_series(1, 20))) \gset
SELECT is(evbus.ack(ARRAY(SELECT receipt FROM take('s1', 20))), 20, 'twenty more are acked in the transaction that took them');
SELECT is((SELECT string_agg(used || ' ' || high_water, ', ') FROM evbus.stat_memory WHERE area LIKE 'leases%'), '1 21, 1 21', 'they are free again, and in the marks, though nobody looked meanwhile');

-- the commit ring

SELECT becomes($$SELECT used::text FROM evbus.stat_memory WHERE area = 'commit ring'$$, '0', 'what has its ticks is not waited for');
SELECT cmp_ok((SELECT high_water FROM evbus.stat_memory WHERE area = 'commit ring'), '>=', 20 * 48::bigint, 'but twenty events at once were there');

-- a volatile ring

SELECT evbus.publish('v', 'a', (SELECT jsonb_agg(md5(i::text)) FROM generate_series(1, 1000) AS i)) AS id \gset
SELECT is((SELECT "of" || ' ' || unit || ' ' || setting || ' ' || "limit" FROM evbus.stat_memory WHERE area = 'volatile ring'), 'v bytes evbus.volatile_ring_size ' || pg_size_bytes(current_setting('evbus.volatile_ring_size')), 'the ring of a volatile bus');
SELECT cmp_ok((SELECT used FROM evbus.stat_memory WHERE area = 'volatile ring'), '>=', 10000::bigint, 'holds what is not settled');
SELECT is((SELECT used FROM evbus.stat_memory WHERE area = 'volatile ring'), (SELECT used_bytes FROM evbus.volatile_list), 'as volatile_list says');
SELECT consume('s3', 1) AS types \gset
SELECT is((SELECT used || ' ' || (high_water >= 10000) FROM evbus.stat_memory WHERE area = 'volatile ring'), '0 true', 'settled it is free, and the mark stays');
SELECT evbus.drop_bus('v', force => true);
SELECT is_empty($$SELECT * FROM evbus.stat_memory WHERE area = 'volatile ring'$$, 'a bus that is dropped has no ring');

-- errands, notes and workers

SELECT lives_ok($$SELECT * FROM evbus.stop_all('1 second')$$, 'an errand for the maintainer');
SELECT is((SELECT used || ' ' || high_water FROM evbus.stat_memory WHERE area = 'errands'), '0 1', 'is done, and was one');
SELECT evbus.resume_bus('b');
SELECT becomes($$SELECT (used >= 3 AND high_water >= used)::text FROM evbus.stat_memory WHERE area = 'upkeep notes'$$, 'true', 'upkeep has noted what came of it');
CREATE TABLE seen (n int);
CREATE FUNCTION h(evbus.event) RETURNS void LANGUAGE sql AS $$INSERT INTO seen VALUES (1)$$;
SELECT evbus.subscribe('b', 'handled', handler => 'h(evbus.event)') AS position \gset
SELECT evbus.publish('b', 'a', '1') AS id \gset
SELECT becomes('SELECT count(*)::text FROM seen', '1', 'a handler is called');
SELECT is((SELECT (used >= 1 AND high_water >= used)::text FROM evbus.stat_memory WHERE area = 'handler workers'), 'true', 'by a worker that is counted');

-- processes

SELECT set_has($$SELECT kind FROM evbus.stat_worker WHERE database = current_database() OR database IS NULL$$, $$VALUES ('launcher'), ('sequencer'), ('maintainer'), ('handler')$$, 'there are those that are to be');
SELECT is_empty($$SELECT w.pid FROM evbus.stat_worker w LEFT JOIN pg_stat_activity a USING (pid) WHERE 'evbus ' || w.kind IS DISTINCT FROM a.backend_type OR w.database IS DISTINCT FROM a.datname OR w.owner IS DISTINCT FROM a.usename$$,
	'kind, database and owner are those of pg_stat_activity');
SELECT becomes($$SELECT string_agg(DISTINCT state, ' ') || ' ' || count(subscription) || ' ' || count(event_id) FROM evbus.stat_worker WHERE kind = 'handler' AND database = current_database()$$, 'idle 0 0', 'after its batch the handler worker is idle, and serves nothing');
SELECT is((SELECT batches FROM evbus.stat_worker WHERE kind = 'handler' AND database = current_database()), 1::bigint, 'it has done one batch');
SELECT cmp_ok((SELECT batches FROM evbus.stat_worker WHERE kind = 'sequencer' AND database = current_database()), '>=', 2::bigint, 'the sequencer more');
SELECT becomes($$SELECT (batches > 0)::text FROM evbus.stat_worker WHERE kind = 'maintainer' AND database = current_database()$$, 'true', 'the maintainer has been through its upkeep');
SELECT is_empty($$SELECT * FROM evbus.stat_worker WHERE started_at > since OR since > clock_timestamp() OR started_at < pg_postmaster_start_time()$$, 'times are in their order');
SELECT is_empty($$SELECT * FROM evbus.stat_worker WHERE memory_bytes < 100000 OR memory_high_water < memory_bytes$$, 'each says how much memory it has');
SELECT set_eq($$SELECT "of", unit, "limit", share, level, setting FROM evbus.stat_memory WHERE area = 'process'$$,
	$$SELECT kind || ' ' || pid AS a, 'bytes' AS b, NULL::bigint AS c, NULL::double precision AS d, 'ok' AS e, NULL AS f FROM evbus.stat_worker WHERE database = current_database()$$, 'stat_memory has the processes of this database');
SELECT ok((SELECT bool_and(used > 100000 AND high_water >= used) FROM evbus.stat_memory WHERE area = 'process'), 'with their memory');
CREATE ROLE evbus_test_watcher IN ROLE pg_monitor;
SET ROLE evbus_test_watcher;
SELECT is((SELECT count(*) > 10 FROM evbus.stat_memory) AND (SELECT count(*) >= 4 FROM evbus.stat_worker), true, 'pg_monitor reads both views');
RESET ROLE;
DROP ROLE evbus_test_watcher;
SELECT results_eq($$SELECT DISTINCT query FROM pg_stat_activity WHERE backend_type = 'evbus handler' AND datname = current_database()$$, $$VALUES ('waiting for events')$$, 'pg_stat_activity says what an idle one waits for');

SELECT * FROM finish();
