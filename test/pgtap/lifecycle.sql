-- Buses that come and go by themselves, and stop together: auto_create, idle_ttl, stop_all().
\ir include/helpers.sql
SELECT plan(100);

-- Off by default.
SELECT is(sqlstate_of(c), 'VB001', 'auto_create is off: ' || c) FROM unnest(ARRAY[
	$$SELECT evbus.publish('new', 'a', '1')$$, $$SELECT evbus.publish_batch('new', '{a}', '{1}')$$, $$SELECT * FROM evbus.publish_lines('new', 'a', '1')$$, $$SELECT evbus.subscribe('new', 's')$$]) AS c;
SET evbus.auto_create = on;
SELECT is(sqlstate_of(c), s, 'what names no bus to be made: ' || c) FROM (VALUES ('22023', $$SELECT evbus.publish('', 'a', '1')$$), ('22023', $$SELECT evbus.publish(repeat('x', 64), 'a', '1')$$), ('22023', $$SELECT evbus.subscribe(E'a\tb', 's')$$), ('22004', $$SELECT evbus.publish(NULL, 'a', '1')$$), ('22004', $$SELECT evbus.subscribe(NULL, 's')$$)) AS v (s, c);
SELECT is(sqlstate_of(c), 'VB001', 'only who publishes or subscribes makes one: ' || c) FROM unnest(ARRAY[
	$$SELECT evbus.alter_bus('new', max_backlog => 1)$$, $$SELECT evbus.drop_bus('new')$$, $$SELECT evbus.pause_bus('new')$$, $$SELECT evbus.history_page('new')$$, $$SELECT evbus.limit_publisher('new', 'postgres', 1)$$]) AS c;
BEGIN READ ONLY;
SELECT is(sqlstate_of($$SELECT evbus.publish('new', 'a', '1')$$), '25006', 'who may not write makes none');
ROLLBACK;
SELECT is((SELECT count(*) FROM evbus.bus), 0::bigint, 'none was made');

-- On.
SELECT ok(evbus.publish('p', 'a', '1') > 0, 'publish() makes a bus');
SELECT is((SELECT count(*) FROM evbus.publish_batch('b', '{a}', '{1,2}')), 2::bigint, 'so does publish_batch()');
SELECT is((SELECT events FROM evbus.publish_lines('l', 'a', E'1\n2')), 2, 'and publish_lines()');
SELECT is(evbus.subscribe('s', 'sub'), 1::bigint, 'and subscribe()');
SELECT ok(evbus.publish(n, 'a', '1') > 0, 'names: ' || n) FROM unnest(ARRAY['a b', 'a"b', 'a''b', '注文', repeat('x', 63)]) AS n;
SELECT is((SELECT string_agg(format('%s %s %s %s %s %s', bus, auto_created, idle_ttl, owner = current_user::regrole, retention, durability), ', ' ORDER BY bus) FROM evbus.bus_list WHERE bus IN ('p', 's')),
	'p t 7 days t 7 days durable, s t 7 days t 7 days durable', 'they have the default settings, and go by themselves');
SELECT is((SELECT count(*) FROM evbus.history WHERE bus = 'p'), 1::bigint, 'the event is there');
-- A call that is wrong in itself makes none.
SELECT is(sqlstate_of(c), s, c) FROM (VALUES ('22023', $$SELECT evbus.subscribe('wrong', 'x', batch_size => 0)$$), ('22023', $$SELECT evbus.subscribe('wrong', 'x', types => '{a..b}')$$),
	('22007', $$SELECT evbus.subscribe('wrong', 'x', start_from => 'then')$$), ('VB005', $$SELECT evbus.subscribe('wrong', 'sub')$$), ('22023', $$SELECT evbus.publish('wrong', 'a', '1', headers => '1')$$),
	('22023', $$SELECT * FROM evbus.publish_batch('wrong', '{a*}', '{1}')$$), ('22023', $$SELECT * FROM evbus.publish_batch('wrong', '{a,b}', '{1}')$$), ('22023', $$SELECT evbus.subscribe('wrong', 'x', start_from => '2')$$), ('22023', $$SELECT * FROM evbus.publish_batch('wrong', '{a}', '{1}', headers => '{"[]"}')$$),
	('22023', $$SELECT * FROM evbus.publish_batch('wrong', '{a}', '{1}', dedup_keys => '{""}')$$), ('22023', $$SELECT * FROM evbus.publish_batch('wrong', '{a}', '{1}', keys => ARRAY[repeat('x', 1025)])$$), ('22023', $$SELECT * FROM evbus.publish_lines('wrong', 'a*', '1')$$)) AS v (s, c);
SELECT is((SELECT count(*) FROM evbus.bus WHERE bus = 'wrong'), 0::bigint, 'a call that is refused makes no bus');
SELECT clock_timestamp() AS before \gset
SELECT pg_sleep(0.1) \g /dev/null
SELECT ok(evbus.publish('dated', 'a', '1') > 0, 'a bus is made');
SELECT ok(created_at > :'before', 'and says when') FROM evbus.bus_list WHERE bus = 'dated';
BEGIN;
SELECT evbus.publish('rolled', 'a', '1') AS id \gset
SELECT is((SELECT publishers FROM evbus.bus_list WHERE bus = 'rolled'), 1::bigint, 'who publishes is counted until his transaction ends');
ROLLBACK;
SELECT is((SELECT count(*) || ' ' || (SELECT count(*) FROM evbus.history WHERE bus = 'rolled') FROM evbus.bus WHERE bus = 'rolled'), '1 0', 'a rollback leaves the bus, and no event');
SELECT is((SELECT publishers FROM evbus.bus_list WHERE bus = 'rolled'), 0::bigint, 'and no publisher');
BEGIN;
SELECT evbus.create_bus('own');
SELECT ok(evbus.publish('with own', 'a', '1') > 0, 'who has made a bus in the same transaction does not wait for himself');
ROLLBACK;
SELECT is((SELECT count(*) FROM evbus.bus WHERE bus IN ('own', 'with own')), 0::bigint, 'there both are rolled back');
BEGIN;
SAVEPOINT a;
SELECT evbus.publish('p', 'a', '1') AS id \gset
ROLLBACK TO a;
SELECT is((SELECT publishers FROM evbus.bus_list WHERE bus = 'p'), 0::bigint, 'a savepoint takes its use back');
SELECT evbus.publish('p', 'a', '1') AS id \gset
SELECT is((SELECT publishers FROM evbus.bus_list WHERE bus = 'p'), 1::bigint, 'later in the transaction it is in use again');
COMMIT;
SELECT ok((SELECT last_used > now() - interval '1 minute' FROM evbus.bus_list WHERE bus = 'p'), 'the view tells when it was used');
SELECT is((SELECT last_used IS NULL AND publishers IS NULL FROM (SELECT evbus.create_bus('plain')) AS c, evbus.bus_list WHERE bus = 'p'), false, 'of those that go by themselves');
SELECT results_eq($$SELECT last_used IS NULL, publishers IS NULL, auto_created, idle_ttl FROM evbus.bus_list WHERE bus = 'plain'$$, 'VALUES (true, true, false, NULL::interval)', 'of others it knows nothing');

-- Roles.
DROP ROLE IF EXISTS evbus_life_a, evbus_life_b;
CREATE ROLE evbus_life_a;
CREATE ROLE evbus_life_b;
GRANT USAGE ON SCHEMA evbus TO evbus_life_a, evbus_life_b;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA evbus TO evbus_life_a, evbus_life_b;
SET ROLE evbus_life_a;
SELECT evbus.publish('of a', 'a', '1') AS id \gset
SELECT is(sqlstate_of('SET evbus.auto_create = off'), '42501', 'not everybody may set it');
RESET ROLE;
SELECT is((SELECT owner::text FROM evbus.bus WHERE bus = 'of a'), 'evbus_life_a', 'who makes it owns it');

-- Going.
SELECT is(sqlstate_of(format($$SELECT evbus.create_bus('x', idle_ttl => %L)$$, v)), s, 'idle_ttl of create_bus: ' || v) FROM (VALUES ('0', '00000'), ('1 second', '00000'), ('0.9 seconds', '22023'), ('-1 day', '22023'), ('36501 days', '22023')) AS t (v, s);
SELECT is(sqlstate_of(format($$SELECT evbus.alter_bus('plain', idle_ttl => %L)$$, v)), s, 'of alter_bus: ' || v) FROM (VALUES ('0', '00000'), ('1 second', '00000'), ('0.9 seconds', '22023'), ('-1 day', '22023')) AS t (v, s);
SELECT evbus.create_bus('goes', idle_ttl => '1 second'), evbus.create_bus('goes volatile', durability => 'volatile', idle_ttl => '1 second'), evbus.create_bus('goes own', retention_bytes => 10000000, idle_ttl => '1 second'),
	evbus.create_bus('has sub', idle_ttl => '1 second'), evbus.create_bus('has later', idle_ttl => '1 second'), evbus.create_bus('has changes', idle_ttl => '1 second'), evbus.create_bus('stays', idle_ttl => '1 hour'), evbus.create_bus('kept', idle_ttl => '1 second') \g /dev/null
SELECT evbus.publish(b, 'a', '1') FROM unnest('{goes,goes volatile,goes own,stays}'::text[]) AS b \g /dev/null
SELECT evbus.subscribe('has sub', 'reader') AS p \gset
SELECT evbus.publish('has later', 'a', '1', delay => '1 hour') AS scheduled \gset
CREATE TABLE watched (i integer);
SELECT evbus.publish_changes('watched', 'has changes');
SELECT evbus.alter_bus('kept', idle_ttl => '0');
SELECT evbus.alter_bus('p', idle_ttl => '0');
SELECT is((SELECT auto_created FROM evbus.bus_list WHERE bus = 'p'), false, 'what is to stay is no longer one that was made by itself');
SELECT evbus.alter_bus('b', idle_ttl => '1 second');
SELECT is((SELECT auto_created FROM evbus.bus_list WHERE bus = 'b'), true, 'another idle_ttl does not change that');
CALL evbus.maintain();
SELECT is((SELECT count(*) FROM evbus.bus WHERE bus LIKE 'goes%'), 3::bigint, 'before their time they stay');
SELECT pg_sleep(1.1);
CALL evbus.maintain();
SELECT is((SELECT count(*) FROM evbus.bus WHERE bus LIKE 'goes%' OR bus = 'b'), 0::bigint, 'then they are gone');
SELECT is((SELECT count(*) FROM evbus.bus WHERE bus = x), 1::bigint, 'what is used stays: ' || x) FROM unnest('{has sub,has later,has changes,stays,kept,p,plain}'::text[]) AS x;
SELECT is((SELECT count(*) FROM evbus.history WHERE bus = 'goes'), 0::bigint, 'their history goes with them');
SELECT is(sqlstate_of($$SELECT evbus.drop_bus('has sub')$$), '00000', 'and can be dropped');
SELECT evbus.unsubscribe('reader'), evbus.cancel_scheduled(:scheduled), evbus.stop_publish_changes('watched') \g /dev/null
CALL evbus.maintain();
SELECT is((SELECT count(*) FROM evbus.bus WHERE bus LIKE 'has%'), 0::bigint, 'when it is not used any more it goes');
SELECT ok(evbus.publish('goes', 'a', '1') > 0, 'and comes again');
SELECT is((SELECT count(*) FROM evbus.history WHERE bus = 'goes'), 1::bigint, 'as another');

-- Nothing stays behind: shared classes that no bus uses go, too.
SELECT count(evbus.create_bus('class' || i, retention => i * interval '1 day')) AS n FROM generate_series(20, 24) AS i \gset
SELECT is((SELECT count(*) FROM evbus.storage_class WHERE retention >= '20 days'), 5::bigint, 'five classes');
SELECT evbus.publish('class24', 'a', '1') AS id \gset
SELECT count(evbus.drop_bus('class' || i)) AS n FROM generate_series(20, 24) AS i \gset
CALL evbus.maintain();
CALL evbus.maintain();
CALL evbus.maintain();
SELECT is((SELECT string_agg(retention::text, ' ') FROM evbus.storage_class WHERE retention >= '20 days'), '24 days', 'go when no bus uses them and nothing is in them');
SELECT is((SELECT count(*) FROM pg_class WHERE relnamespace = 'evbus'::regnamespace AND relname ~ '^event_c' AND relkind = 'p'), (SELECT count(*) FROM evbus.storage_class WHERE storage_class_id <> 0), 'with their tables');
SELECT evbus.create_bus('class20', retention => '20 days');
SELECT ok(evbus.publish('class20', 'a', '1') > 0, 'and come again');
CALL evbus.maintain();
SELECT is((SELECT count(*) FROM evbus.history WHERE bus = 'class20'), 1::bigint, 'one that is used does not go');

-- Stopping all of them.
SET evbus.auto_create = off;
SELECT is(sqlstate_of(c), s, c) FROM (VALUES ('22004', 'SELECT * FROM evbus.stop_all(NULL)'), ('22023', $$SELECT * FROM evbus.stop_all('-1 s')$$), ('22023', $$SELECT * FROM evbus.stop_all('25 hours')$$)) AS v (s, c);
BEGIN READ ONLY;
SELECT is(sqlstate_of('SELECT * FROM evbus.stop_all()'), '25006', 'it writes');
ROLLBACK;
SELECT is(evbus.publish('of a', 'a', '1') > 0, true, 'somebody else may publish to it');
SELECT evbus.alter_bus('of a', idle_ttl => '0');
SET ROLE evbus_life_b;
SELECT is((SELECT count(*) FROM evbus.stop_all()), 0::bigint, 'who owns no bus stops none');
RESET ROLE;
SET ROLE evbus_life_a;
SELECT results_eq($$SELECT * FROM evbus.stop_all()$$, $$VALUES ('of a', true, 0::bigint, false)$$, 'who owns one stops that');
RESET ROLE;
SELECT is((SELECT string_agg(bus, ' ') FROM evbus.bus_list WHERE paused), 'of a', 'and no other');
SELECT is((SELECT string_agg(bus || ' ' || paused_before, ', ' ORDER BY bus) FROM evbus.stop_all('0') WHERE bus IN ('of a', 'kept')), 'kept false, of a true', 'a row tells what had been paused before');
SELECT count(evbus.resume_bus(bus)) AS n FROM evbus.bus_list WHERE bus <> 'of a' \gset
SELECT evbus.subscribe('plain', 'client', lease => '1 hour'), evbus.subscribe('stays', 'other') \g /dev/null
SELECT evbus.publish(b, 'a', '1') FROM unnest('{plain,stays}'::text[]) AS b \g /dev/null
SELECT receipt FROM take('client', 1) \gset
BEGIN;
SELECT is((SELECT string_agg(format('%s %s %s', bus, stopped, in_flight), ', ' ORDER BY bus) FROM evbus.stop_all('0') WHERE bus IN ('plain', 'stays', 'of a')), 'of a t 0, plain f 1, stays t 0', 'what is in hand keeps a bus from having stopped');
ROLLBACK;
SELECT is((SELECT count(*) FROM evbus.bus WHERE NOT paused), 0::bigint, 'a rollback does not undo it');
SELECT is((SELECT count(*) FROM evbus.receive('other', 10)), 0::bigint, 'nothing is delivered');
SELECT is(evbus.ack(ARRAY[:'receipt']), 1, 'what is in hand can be acked');
SELECT is((SELECT bool_and(stopped) FROM evbus.stop_all('10 seconds')), true, 'and then all have stopped');
SELECT is((SELECT count(*) FROM evbus.publish_batch('stays', '{a}', '{1,2}')), 2::bigint, 'publishing goes on');
SELECT count(evbus.resume_bus(bus)) AS n FROM evbus.bus_list WHERE paused \gset
SELECT is((SELECT count(*) FROM take('other', 3)), 3::bigint, 'until they are resumed');
DROP OWNED BY evbus_life_a, evbus_life_b;
SELECT count(evbus.drop_bus(bus, force => true)) AS n FROM evbus.bus_list \gset
DROP ROLE evbus_life_a, evbus_life_b;

SELECT * FROM finish();
