-- evbus.audit: a row for every act, with who, what, before and after; refusals as well; nobody but a superuser takes one away.
\ir include/helpers.sql
SELECT plan(40);

DROP ROLE IF EXISTS evbus_test_chief, evbus_test_eve, evbus_test_all;
CREATE ROLE evbus_test_chief LOGIN;
CREATE ROLE evbus_test_eve LOGIN;
CREATE ROLE evbus_test_all LOGIN IN ROLE evbus_publisher, evbus_consumer, evbus_operator, evbus_monitor, pg_monitor;
GRANT evbus_operator, evbus_publisher, evbus_consumer TO evbus_test_chief;
GRANT evbus_publisher, evbus_consumer TO evbus_test_eve;
-- The newest row, as action, kind, object, old and new.
CREATE FUNCTION newest() RETURNS text LANGUAGE sql AS $$
	SELECT concat_ws(' ', action, kind, quote_literal(object), coalesce(old::text, '-'), coalesce(new::text, '-')) FROM evbus.audit ORDER BY audit_id DESC LIMIT 1 $$;

SELECT is_empty('SELECT * FROM evbus.audit', 'nothing was done yet');
SELECT evbus.create_bus('b"us', retention => '1 day');
SELECT is((SELECT concat_ws(' ', login = session_user, role = current_user, action, kind, object, old IS NULL, new->>'retention', new->>'bus', arguments->>'retention', arguments ? 'idle_ttl') FROM evbus.audit),
	't t create_bus bus b"us t 1 day b"us 1 day f', 'a bus that is made: by whom, its settings, the arguments that were given');
SELECT ok(at BETWEEN now() - interval '1 minute' AND clock_timestamp() AND evbus._event_time(audit_id) BETWEEN at - interval '1 minute' AND at + interval '1 minute', 'and when') FROM evbus.audit;
SELECT evbus.alter_bus('b"us', retention => '2 days', max_backlog => 100);
SELECT is(newest(), $$alter_bus bus 'b"us' {"retention": "1 day", "max_backlog": null} {"retention": "2 days", "max_backlog": 100}$$, 'one that is changed: what is other than before, and no more');
SELECT evbus.grant('publish', 'b"us', 'evbus_test_chief');
SELECT is(newest(), format($$grant bus 'b"us' - {"publish to evbus_test_chief": "%s"}$$, current_user), 'a grant');
SELECT evbus.limit_publisher('b"us', 'evbus_test_chief', 1000);
SELECT evbus.limit_publisher('b"us', 'evbus_test_chief', 10, 20);
SELECT is(newest(), $$limit_publisher bus 'b"us' {"limit of evbus_test_chief": "1000"} {"limit of evbus_test_chief": "10/20"}$$, 'a limit');
SELECT evbus.subscribe('b"us', 's') AS position \gset
SELECT is((SELECT concat_ws(' ', kind, object, old IS NULL, new->>'bus', new->>'max_attempts', arguments->>'bus') FROM evbus.audit WHERE action = 'subscribe'), 'subscription s t b"us 5 b"us', 'a subscription');
SELECT evbus.grant('consume', 's', 'evbus_test_chief');
SELECT is(newest(), format($$grant subscription 's' - {"consume to evbus_test_chief": "%s"}$$, current_user), 'a grant on it');
SELECT evbus.alter_subscription('s', max_attempts => 1);
SELECT is(newest(), $$alter_subscription subscription 's' {"max_attempts": 5} {"max_attempts": 1}$$, 'is changed');
SELECT evbus.pause('s', 'a reason');
SELECT is(newest(), $$pause subscription 's' {"paused": false, "paused_reason": null} {"paused": true, "paused_reason": "a reason"}$$, 'paused');
SELECT evbus.resume('s');
SELECT is(newest(), $$resume subscription 's' {"paused": true, "paused_reason": "a reason"} {"paused": false, "paused_reason": null}$$, 'resumed');

-- as whom
SET ROLE evbus_test_chief;
SELECT evbus.pause_bus('b"us');
RESET ROLE;
SELECT is((SELECT concat_ws(' ', login = session_user, role, action, old, new) FROM evbus.audit ORDER BY audit_id DESC LIMIT 1), 't evbus_test_chief pause_bus {"paused": false} {"paused": true}', 'who is logged in, and as whom he acts');
SELECT evbus.resume_bus('b"us');
SELECT is(newest(), $$resume_bus bus 'b"us' {"paused": true} {"paused": false}$$, 'the bus goes on');

-- events and dead letters
SELECT count(evbus.publish('b"us', 'a', '{"secret": "canary"}')) FROM generate_series(1, 4);
SELECT poll($$SELECT lag::text FROM evbus.subscription_lag$$, '4');
SELECT evbus.seek('s', '3') AS position \gset
SELECT is(newest(), $$seek subscription 's' {"position": 1} {"position": 3}$$, 'a seek, from where to where');
SELECT evbus.seek('s', 'beginning') AS position \gset
SELECT count(*) FROM (SELECT evbus.reject(array_agg(receipt), 'no use') FROM take('s', 4)) AS x;
SELECT is((SELECT count(*) FROM evbus.dead_letter), 4::bigint, 'there are dead letters');
SELECT min(dead_letter_id) AS letter FROM evbus.dead_letter \gset
SELECT evbus.edit_dead_letter(:letter, '{"secret": "another canary"}', 'a typo');
SELECT is((SELECT concat_ws(' ', kind, object, arguments->>'dead_letter_id' = :'letter', arguments->>'reason') FROM evbus.audit WHERE action = 'edit_dead_letter'), 'subscription s t a typo', 'an edit of a payload: which, and why');
SELECT is(evbus.redrive(ARRAY[:letter]), 1::bigint, 'a redrive');
SELECT is(newest(), $$redrive - {"dead_letters": 1}$$, 'how many');
SELECT is(evbus.discard(subscription => 's', max_events => 2, reason => 'old'), 2::bigint, 'a purge');
SELECT is(newest(), $$discard subscription 's' - {"dead_letters": 2}$$, 'of what, and how many');
SELECT count(*) AS n FROM evbus.audit \gset
SELECT is(evbus.redrive(dry_run => true), 1::bigint, 'a dry run does nothing');
SELECT is((SELECT count(*) FROM evbus.audit), :n::bigint, 'and is not recorded');
SELECT evbus.publish('b"us', 'later', '{"secret": "canary"}', delay => '1 day') AS id \gset
SELECT evbus.cancel_scheduled(:id);
SELECT is(newest(), 'cancel_scheduled - -', 'a delayed event that is cancelled');
SELECT is_empty($$SELECT a FROM evbus.audit a WHERE a::text LIKE '%canary%'$$, 'no payload is in it');

-- it is there if and only if the act is
BEGIN;
SELECT evbus.pause('s');
SELECT is(newest(), $$pause subscription 's' {"paused": false, "paused_reason": null} {"paused": true, "paused_reason": "evbus.pause()"}$$, 'who has done it sees it');
ROLLBACK;
SELECT is(newest(), 'cancel_scheduled - -', 'what is rolled back was not done');
SELECT throws_ok($$SELECT evbus.alter_subscription('s', max_attempts => 0)$$, '22023', NULL, 'what fails');
SELECT is(newest(), 'cancel_scheduled - -', 'neither');
SELECT evbus.alter_subscription('s', types => array_fill(repeat('x', 60), ARRAY[100]));
SELECT is((SELECT length(arguments->>'types') FROM evbus.audit ORDER BY audit_id DESC LIMIT 1), 1000, 'long arguments are cut');
BEGIN;
SELECT evbus.trace('s', '0'), evbus.stat_reset();
ROLLBACK;
SELECT becomes($$SELECT string_agg(concat_ws(' ', login = session_user, role = current_user, action, kind, object, new->>'times'), ', ' ORDER BY action) FROM evbus.audit WHERE action IN ('trace', 'stat_reset')$$,
	't t stat_reset 1, t t trace subscription s 1', 'what takes effect at once, also where it is rolled back');

-- refused
SET ROLE evbus_test_eve;
SELECT throws_ok($$SELECT evbus.publish('b"us', 'a', '1')$$, '42501', NULL, 'who may not publish');
SELECT throws_ok($$SELECT evbus.publish('b"us', 'a', '1')$$, '42501', NULL, 'who tries again');
SELECT throws_ok($$SELECT evbus.unsubscribe('s')$$, '42501', NULL, 'who may not end a subscription');
RESET ROLE;
SELECT becomes($$SELECT string_agg(concat_ws(' ', login = session_user, role, kind, object, arguments->>'privilege'), ', ' ORDER BY kind) FROM (SELECT DISTINCT login, role, kind, object, arguments FROM evbus.audit WHERE action = 'refused') x$$,
	't evbus_test_eve bus b"us publish, t evbus_test_eve subscription s operate', 'is in the audit');
SELECT ok(EXISTS (SELECT FROM evbus.audit WHERE action = 'refused' AND (new->>'times')::int >= 1 AND at > now() - interval '1 minute'), 'and how often');

-- nobody takes it away
SELECT is_empty($$SELECT r, l.oid::regclass, p FROM unnest('{evbus_test_all,evbus_test_chief,evbus_test_eve}'::text[]) AS r, unnest('{INSERT,UPDATE,DELETE,TRUNCATE,TRIGGER}'::text[]) AS p,
	(SELECT oid FROM pg_class WHERE oid = 'evbus.audit'::regclass UNION SELECT inhrelid FROM pg_inherits WHERE inhparent = 'evbus.audit'::regclass) AS l WHERE has_table_privilege(r, l.oid, p)$$,
	'it is written by evbus alone, and its leaves as well');
SET ROLE evbus_test_all;
SELECT ok(count(*) > 10, 'who watches sees who did what') FROM (SELECT login, role, action, kind, object, at FROM evbus.audit) x;
SELECT throws_ok('SELECT arguments FROM evbus.audit', '42501', NULL, 'but no arguments');
RESET ROLE;

SELECT evbus.unsubscribe('s');
SELECT is((SELECT concat_ws(' ', old->>'subscription', old->>'max_attempts', new IS NULL) FROM evbus.audit WHERE action = 'unsubscribe'), 's 1 t', 'what is gone: what it was');
SELECT evbus.drop_bus('b"us', force => true);
SELECT is((SELECT concat_ws(' ', old->>'bus', old->>'limit of evbus_test_chief', new IS NULL) FROM evbus.audit WHERE action = 'drop_bus'), 'b"us 10/20 t', 'with its limits');
DROP ROLE evbus_test_chief, evbus_test_eve, evbus_test_all;
SELECT finish();
