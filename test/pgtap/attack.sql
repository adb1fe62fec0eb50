-- What an attacker tried and got once: each assertion failed on the code before its cure.
\ir include/helpers.sql
SELECT plan(18);

-- bytes of one's own

SELECT throws_ok($$SELECT evbus._decode('\x00ffffff2f')$$, 'XX001', NULL, 'a forged object header is not followed');
SELECT throws_ok($$SELECT evbus._decode('\x000100004000000090')$$, 'XX001', NULL, 'nor is a forged number');
SELECT throws_ok($$SELECT evbus._decode('\x')$$, 'XX001', NULL, 'no bytes are no jsonb');
SELECT evbus.create_bus('b');
SELECT evbus.publish('b', 'a', '{"s": "ü", "n": [-1.5e300, 0, {"deep": [true, null, []]}], "e": {}}', headers => '{"h": 0.001}') AS id \gset
SELECT becomes($$SELECT payload::text || headers FROM evbus.history$$,
	('{"s": "ü", "n": [-1.5e300, 0, {"deep": [true, null, []]}], "e": {}}'::jsonb)::text || '{"h": 0.001}', 'what evbus stored is shown');

-- a handler's name taken over while the handler is away

CREATE SCHEMA shared;
CREATE ROLE attack_owner LOGIN;
CREATE ROLE attack_mallory LOGIN;
GRANT USAGE, CREATE ON SCHEMA shared TO attack_owner, attack_mallory;
GRANT USAGE ON SCHEMA evbus TO attack_owner, attack_mallory;
CREATE TABLE seen (who text);
GRANT INSERT ON seen TO PUBLIC;
CREATE FUNCTION shared.h(evbus.event) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.seen VALUES ('owner') $$;
ALTER FUNCTION shared.h(evbus.event) OWNER TO attack_owner;
SELECT evbus.subscribe('b', 'h', handler => 'shared.h(evbus.event)') AS p \gset
SELECT evbus.publish('b', 'a', '1') AS id \gset
SELECT becomes($$SELECT string_agg(who, ' ') FROM seen$$, 'owner', 'the handler is called');
DROP FUNCTION shared.h(evbus.event);
CREATE FUNCTION shared.h(evbus.event) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.seen VALUES ('mallory') $$;
ALTER FUNCTION shared.h(evbus.event) OWNER TO attack_mallory;
SELECT evbus.publish('b', 'a', '2') AS id \gset
SELECT becomes($$SELECT paused::text FROM evbus.subscription_list WHERE subscription = 'h'$$, 'true', 'one of another role by that name pauses the subscription');
SELECT is((SELECT string_agg(who, ' ') FROM seen), 'owner', 'and is not called');
ALTER FUNCTION shared.h(evbus.event) OWNER TO attack_owner;
SELECT evbus.resume('h');
SELECT becomes($$SELECT count(*)::text FROM seen$$, '2', 'put right and resumed, it goes on with what waited');
SELECT evbus.unsubscribe('h');
DROP OWNED BY attack_owner, attack_mallory;
DROP ROLE attack_owner, attack_mallory;

-- a look at due retries that is cut short

SELECT evbus.subscribe('b', 'c') AS p \gset
SELECT count(evbus.publish('b', 'a', to_jsonb(i))) AS n FROM generate_series(1, 30) AS i \gset
SELECT is(evbus.nack(array_agg(receipt), '0 seconds'), 30, 'thirty deliveries fail') FROM take('c', 30);
DO $$ BEGIN
	PERFORM count(*) FROM evbus.receive('c', 30);
	RAISE EXCEPTION 'rolled back';
EXCEPTION WHEN raise_exception THEN NULL;
END $$;
SELECT is((SELECT count(*) FROM take('c', 30)), 30::bigint, 'retries whose receiving was rolled back are received again');
SELECT evbus.unsubscribe('c');

-- a rolled-back change of who is at a place

CREATE FUNCTION slow(evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO seen VALUES ('slow');
	PERFORM pg_sleep(1);
END $$;
SELECT evbus.subscribe('b', 'slow', handler => 'slow(evbus.event)') AS p \gset
SELECT evbus.publish('b', 'a', '3') AS id \gset
SELECT becomes($$SELECT in_flight::text FROM evbus.subscription_lag WHERE subscription = 'slow'$$, '1', 'a handler is at it');
BEGIN;
SELECT evbus.unsubscribe('slow');
SELECT evbus.subscribe('b', 'instead') AS p \gset
SELECT count(*) AS n FROM evbus.subscription_lag \gset
ROLLBACK;
SELECT becomes($$SELECT lag::text FROM evbus.subscription_lag WHERE subscription = 'slow'$$, '0', 'it finishes');
SELECT is((SELECT count(*) FROM seen WHERE who = 'slow'), 1::bigint, 'and its effect is there once');

-- a rolled-back change of the extension

BEGIN;
DROP EXTENSION evbus CASCADE;
CREATE EXTENSION evbus;
SELECT evbus.create_bus('b');
ROLLBACK;
SELECT lives_ok($$SELECT evbus.publish('b', 'a', '4')$$, 'a rolled-back DROP and CREATE EXTENSION ends no publishing');

-- what a subscription does not want for as long as a transaction lasts that is rolled back

SELECT evbus.create_bus('turn') \g /dev/null
SELECT evbus.subscribe('turn', 'plain'), evbus.subscribe('turn', 'keyed', ordering => 'key'), evbus.subscribe('turn', 'ranked', by_priority => true) \g /dev/null
SELECT count(evbus.publish('turn', 'a', to_jsonb(i), key => 'k' || i)) FROM generate_series(1, 10) AS i \g /dev/null
CREATE FUNCTION turn(name text, how text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('SELECT evbus.alter_subscription(%L, %s)', name, how);
	PERFORM count(*) FROM evbus.receive(name, 100);
	RAISE division_by_zero;
EXCEPTION WHEN object_not_in_prerequisite_state THEN
	RETURN 'refused';
WHEN division_by_zero THEN
	RETURN 'received';
END $$;
SELECT is((SELECT string_agg(turn(name, how), ' ') FROM unnest('{plain,keyed,ranked}'::text[]) AS name, unnest(ARRAY['types => ''{c}''', 'filter => ''$.none''', 'max_age => ''1 microsecond''']) AS how),
	'refused refused refused refused refused refused refused refused refused', 'who has changed a subscription does not receive from it before that is committed');
SELECT is((SELECT string_agg((SELECT count(*) FROM evbus.receive(name, 100))::text, ' ') FROM unnest('{plain,keyed,ranked}'::text[]) AS name), '10 10 10', 'so a rollback loses nothing');
BEGIN;
SELECT evbus.alter_subscription('plain', types => '{c}') \g /dev/null
SELECT throws_ok($$SELECT * FROM evbus.receive_lines('plain')$$, '55000', 'subscription "plain" was made, moved or changed in this transaction', 'as lines neither');
ROLLBACK;

-- a pg_cron that is none

CREATE SCHEMA cron;
CREATE FUNCTION cron.schedule(text, text, text) RETURNS bigint LANGUAGE sql AS $$ SELECT 1::bigint $$;
SELECT throws_ok($$SELECT evbus.schedule_maintenance()$$, '42704', NULL, 'a function called cron.schedule is not pg_cron''s');

SELECT * FROM finish();
