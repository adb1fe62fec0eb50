-- Replays: events of the past once more, to clients and handlers, beside the live flow, which does not notice.
\ir include/helpers.sql
SELECT plan(112);

SELECT evbus.create_bus('orders');
SELECT evbus.subscribe('orders', 'c') AS position \gset
CREATE FUNCTION publish_many(type text, n integer, bus text DEFAULT 'orders') RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FROM evbus.publish_batch(bus, ARRAY[type], ARRAY(SELECT to_jsonb(i) FROM generate_series(1, n) i), keys => ARRAY(SELECT 'k' || i % 3 FROM generate_series(1, n) i));
$$;
-- Of the newest replay.
CREATE FUNCTION newest() RETURNS text LANGUAGE sql AS $$ SELECT state || ' ' || done || ' of ' || total FROM evbus.replay_list ORDER BY replay_id DESC LIMIT 1 $$;
-- What a call gets, and acks: positions, those of a replay with an r.
CREATE FUNCTION get(subscription text, n integer DEFAULT 100) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	d evbus.delivery[] := ARRAY(SELECT r FROM evbus.receive(subscription, n, wait => '10 seconds') r);
BEGIN
	PERFORM evbus.ack(ARRAY(SELECT receipt FROM unnest(d)));
	RETURN (SELECT string_agg(position || CASE WHEN replayed THEN 'r' ELSE '' END, ' ' ORDER BY ordinality) FROM unnest(d) WITH ORDINALITY);
END $$;

-- to clients

SELECT publish_many('old', 10) AS n \gset
SELECT is(consume('c', 10), 'old old old old old old old old old old', 'ten events are consumed');
SELECT evbus.replay('c', 'beginning') AS replay \gset
SELECT results_eq($$SELECT replay_id, state, subscription, bus, start_position, stop_position, types, rate, cursor_position, done, total, in_flight, retries, role, finished_at FROM evbus.replay_list$$,
	format($$VALUES (%s, 'running', 'c', 'orders', 1::bigint, 11::bigint, '{#}'::text[], NULL::integer, 1::bigint, 0::bigint, 10::bigint, 0::bigint, 0::bigint, 'postgres', NULL::timestamptz)$$, :replay),
	'a replay is listed');
SELECT results_eq($$SELECT subscription FROM evbus.subscription_list$$, $$VALUES ('c')$$, 'but is no subscription');
SELECT results_eq($$SELECT subscription, cursor_position, lag FROM evbus.subscription_lag$$, $$VALUES ('c', 11::bigint, 0::bigint)$$, 'and leaves it where it was');
SELECT results_eq($$SELECT event_id, type, key, payload, published_at, 1, true, evbus.ack(ARRAY[receipt]) FROM evbus.receive('c', 3)$$,
	$$SELECT event_id, type, key, payload, published_at, 1, true, 1 FROM evbus.history ORDER BY event_id LIMIT 3$$,
	'clients receive the events once more, marked, with their ids');
SELECT is(newest(), 'running 3 of 10', 'how far it is shows in the list');
SELECT publish_many('new', 2) AS n \gset
SELECT is(get('c', 1), '11', 'what is new comes first');
SELECT is(get('c', 3), '12 4r 5r', 'then what is replayed, in the same call');
SELECT is(get('c'), '6r 7r 8r 9r 10r', 'until there is no more');
SELECT becomes('SELECT newest()', 'done 10 of 10', 'then the replay has ended');
SELECT is_empty('SELECT FROM evbus.replay', 'and its slot is free');
SELECT ok(created_at < finished_at, 'the list says when') FROM evbus.replay_list;
SELECT results_eq($$SELECT cursor_position, lag FROM evbus.subscription_lag$$, $$VALUES (13::bigint, 0::bigint)$$, 'the live flow was delivered once');
SELECT is_empty($$SELECT FROM evbus.receive('c')$$, 'and nothing is left');

-- ranges

SELECT evbus.replay('c', '3', '5') AS replay \gset
SELECT is(get('c'), '3r 4r', 'positions bound a replay, the upper one exclusively');
SELECT pg_sleep(0.01);
SELECT clock_timestamp() AS t1 \gset
SELECT publish_many('timed', 2) AS n \gset
SELECT pg_sleep(0.01);
SELECT clock_timestamp() AS t2 \gset
SELECT publish_many('later', 1) AS n \gset
SELECT is(consume('c', 3), 'timed timed later', 'more is published');
SELECT evbus.replay('c', :'t1', :'t2') AS replay \gset
SELECT is(get('c'), '13r 14r', 'times bound it, too');
SELECT evbus.replay('c', '2000-01-01') AS replay \gset
SELECT is(get('c'), '1r 2r 3r 4r 5r 6r 7r 8r 9r 10r 11r 12r 13r 14r 15r', 'before anything was published is no fault, where nothing has gone');
SELECT evbus.replay('c', 'beginning', types => '{new,timed}') AS replay \gset
SELECT is(get('c'), '11r 12r 13r 14r', 'types narrow it');
SELECT evbus.subscribe('orders', 'few', types => '{new}') AS position \gset
SELECT evbus.replay('few', '1') AS replay \gset
SELECT is(get('few'), '11r 12r', 'by default it has those of the subscription');
SELECT evbus.replay('few', '1', types => '{timed}') AS replay \gset
SELECT is(get('few'), '13r 14r', 'those that are given are instead of them');
SELECT evbus.replay('few', '1', types => '{no.such}') AS replay \gset
SELECT is_empty($$SELECT FROM evbus.receive('few')$$, 'there may be none of them');
SELECT becomes('SELECT newest()', 'done 15 of 15', 'which ends it, too');

-- bad input

PREPARE refused AS SELECT evbus.replay('c', $1);
SELECT throws_ok($$SELECT evbus.replay(NULL, '1')$$, '22004', 'argument "subscription" must not be null');
SELECT throws_ok($$SELECT evbus.replay('c', NULL)$$, '22004', 'argument "start_from" must not be null');
SELECT throws_ok($$SELECT evbus.replay('c', '1', NULL)$$, '22004', 'argument "stop_at" must not be null');
SELECT throws_ok($$SELECT evbus.replay('no such', '1')$$, 'VB004', 'subscription "no such" does not exist');
SELECT throws_ok($$SELECT evbus.replay('c', 'yesterda')$$, '22007', NULL, 'what is no time is refused');
SELECT throws_ok($$SELECT evbus.replay('c', '')$$, '22007', NULL, 'the empty text, too');
SELECT throws_ok($$SELECT evbus.replay('c', '0')$$, '22023', 'position 0 is out of range');
SELECT throws_ok($$SELECT evbus.replay('c', '17')$$, '22023', 'position 17 is out of range');
SELECT throws_ok($$SELECT evbus.replay('c', '1', '99999999999999999999')$$, '22023', 'position 99999999999999999999 is out of range');
SELECT throws_ok($$SELECT evbus.replay('c', 'now')$$, '22023', 'there is nothing to replay from now to now');
SELECT throws_ok($$SELECT evbus.replay('c', '5', '5')$$, '22023', 'there is nothing to replay from 5 to 5');
SELECT throws_ok($$SELECT evbus.replay('c', '5', '4')$$, '22023', 'there is nothing to replay from 5 to 4');
SELECT throws_ok($$SELECT evbus.replay('c', '5', 'beginning')$$, '22023', 'there is nothing to replay from 5 to beginning');
SELECT throws_ok($$SELECT evbus.replay('c', '1', 'tomorrow')$$, '22023', 'stop_at must not be in the future');
SELECT throws_ok($$SELECT evbus.replay('c', '1', types => '{}')$$, '22023', NULL, 'no types at all are refused');
SELECT throws_ok($$SELECT evbus.replay('c', '1', types => '{a..b}')$$, '22023', NULL, 'and what is no pattern');
SELECT throws_ok($$SELECT evbus.replay('c', '1', types => '{NULL}')$$, '22004', NULL, 'and NULL among them');
SELECT throws_ok($$SELECT evbus.replay('c', '1', rate => 0)$$, '22023', 'rate must be between 1 and 1000000');
SELECT throws_ok($$SELECT evbus.replay('c', '1', rate => 1000001)$$, '22023', 'rate must be between 1 and 1000000');
SELECT evbus.create_bus('empty');
SELECT evbus.subscribe('empty', 'e') AS position \gset
SELECT throws_ok($$SELECT evbus.replay('e', 'beginning')$$, '22023', 'there is nothing to replay from beginning to now');
SELECT throws_ok($$SELECT evbus.cancel_replay(NULL)$$, '22004', 'argument "replay_id" must not be null');
SELECT throws_ok($$SELECT evbus.cancel_replay(0)$$, '42704', 'replay 0 does not exist');
SELECT throws_ok($$SELECT evbus.cancel_replay(9223372036854775807)$$, '42704', 'replay 9223372036854775807 does not exist');
SELECT throws_ok($$SELECT evbus.cancel_replay((SELECT subscription_id FROM evbus.subscription WHERE subscription = 'c'))$$, '42704', NULL, 'a subscription is no replay');
CREATE ROLE mallory;
GRANT USAGE ON SCHEMA evbus TO mallory;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA evbus TO mallory;
SET ROLE mallory;
SELECT throws_ok($$SELECT evbus.replay('c', '1')$$, '42501', 'permission denied for subscription "c"');
RESET ROLE;
-- Takes all slots there are, and gives them back.
CREATE FUNCTION without_slots() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	state text;
BEGIN
	BEGIN
		FOR i IN 1 .. current_setting('evbus.max_subscriptions')::integer - (SELECT count(*) FROM evbus.subscription) LOOP
			PERFORM evbus.subscribe('empty', 'filler ' || i);
		END LOOP;
		state := sqlstate_of($q$SELECT evbus.replay('c', '1')$q$);
		PERFORM evbus.unsubscribe('filler 1');
		state := state || ' ' || sqlstate_of($q$SELECT evbus.replay('c', '1')$q$);
		PERFORM evbus.replay('c', '1');
		state := state || ' ' || sqlstate_of($q$SELECT evbus.subscribe('empty', 'one more')$q$);
		RAISE EXCEPTION USING ERRCODE = 'ZZ001';
	EXCEPTION WHEN SQLSTATE 'ZZ001' THEN NULL;
	END;
	RETURN state;
END $$;
SELECT is(without_slots(), 'VB007 00000 VB007', 'a replay takes the slot of a subscription, and is refused without');
SELECT is_empty('SELECT FROM evbus.replay', 'none of these left anything');

-- settling what was replayed

SELECT evbus.replay('c', '1', '4') AS replay \gset
SELECT receipt, event_id FROM evbus.receive('c') \gset
SELECT is(evbus.nack(ARRAY[:'receipt'], delay => '0'), 1, 'a replayed delivery is given up for now');
SELECT results_eq($$SELECT subscription, event_id, position, attempts, replayed FROM evbus.retry_list$$, format($$VALUES ('c', %s, 1::bigint, 1, true)$$, :event_id), 'it is a retry, and marked');
SELECT results_eq($$SELECT lag, retries FROM evbus.subscription_lag WHERE subscription = 'c'$$, $$VALUES (0::bigint, 0::bigint)$$, 'but none of the live flow');
SELECT results_eq($$SELECT retries FROM evbus.replay_list WHERE state = 'running'$$, $$VALUES (1::bigint)$$, 'it is counted with the replay');
SELECT results_eq($$SELECT position, attempt, replayed FROM take('c', 1)$$, $$VALUES (1::bigint, 2, true)$$, 'it comes again before the others, still marked');
SELECT receipt AS second FROM evbus.receive('c') \gset
SELECT is(evbus.reject(ARRAY[:'second'], 'no use'), 1, 'another one is rejected');
SELECT results_eq($$SELECT subscription, bus, position, reason, replayed FROM evbus.dead_letter$$, $$VALUES ('c', 'orders', 2::bigint, 'rejected', true)$$, 'it is a dead letter of the subscription, and marked');
SELECT receipt AS third FROM evbus.receive('c') \gset
SELECT is(evbus.release(ARRAY[:'third']), 1, 'a third one is given back');
SELECT is(evbus.ack(ARRAY[:'third']), 0, 'its receipt is stale');
SELECT results_eq($$SELECT position, attempt, replayed FROM evbus.receive('c', lease => '1 second')$$, $$VALUES (3::bigint, 1, true)$$, 'it comes again, no attempt counted');
SELECT results_eq($$SELECT position, attempt, replayed FROM take('c', 1)$$, $$VALUES (3::bigint, 2, true)$$, 'and once more when its lease has run out');
CALL evbus.maintain();
SELECT is((SELECT state || ' ' || in_flight || ' ' || retries FROM evbus.replay_list WHERE replay_id = :replay), 'running 2 1', 'what is in hand, and what failed, keeps a replay');
SELECT is(evbus.seek('c', 'now'), 16::bigint, 'the subscription is moved meanwhile');
SELECT is((SELECT state || ' ' || in_flight || ' ' || retries FROM evbus.replay_list WHERE replay_id = :replay), 'running 2 1', 'which the replay does not notice');
SELECT is(evbus.cancel_replay(:replay), true, 'it is cancelled');
SELECT results_eq($$SELECT state, done, total, retries FROM evbus.replay_list ORDER BY replay_id DESC LIMIT 1$$, $$VALUES ('cancelled', 2::bigint, 3::bigint, 0::bigint)$$, 'and is listed so, with how far it was');
SELECT is(evbus.cancel_replay(:replay), false, 'once');
SELECT is_empty($$SELECT FROM evbus.receive('c')$$, 'nothing more is delivered');
SELECT is_empty($$SELECT FROM evbus.retry$$, 'nor tried again');
SELECT is(evbus.redrive(subscription => 'c'), 1::bigint, 'its dead letter is redriven when the replay is gone');
SELECT results_eq($$SELECT position, attempt, replayed, evbus.ack(ARRAY[receipt]) FROM take('c', 1)$$, $$VALUES (2::bigint, 1, true, 1)$$, 'to the subscription, and is marked as ever');
BEGIN;
SELECT evbus.replay('c', '1') AS replay \gset
ROLLBACK;
SELECT throws_ok(format('SELECT evbus.cancel_replay(%s)', :replay), '42704', NULL, 'rolled back, a replay never was');
SELECT is_empty($$SELECT FROM evbus.receive('c')$$, 'nor delivers anything');

SELECT evbus.replay('c', '1', '2') AS replay \gset
SELECT is(evbus.nack(ARRAY(SELECT receipt FROM evbus.receive('c')), delay => '0'), 1, 'the only event of a replay fails');
SELECT evbus.replay('few', '1', types => '{no.such}') AS other \gset
SELECT count(*) AS none FROM evbus.receive('few') \gset
SELECT becomes(format('SELECT state FROM evbus.replay_list WHERE replay_id = %s', :other), 'done', 'while the maintainer looks which replays have ended');
SELECT is((SELECT state || ' ' || done || ' ' || retries FROM evbus.replay_list WHERE replay_id = :replay), 'running 1 1', 'it has not, for that is to be tried again');
SELECT results_eq($$SELECT position, attempt, replayed, evbus.ack(ARRAY[receipt]) FROM evbus.receive('c')$$, $$VALUES (1::bigint, 2, true, 1)$$, 'as it is');
SELECT becomes(format('SELECT state FROM evbus.replay_list WHERE replay_id = %s', :replay), 'done', 'which ends it');

-- one row for many, and a share for the replay where the live flow never ends

SELECT evbus.replay('c', '1', '3') AS replay \gset
SELECT publish_many('new', 2) AS n \gset
SELECT events, receipts, lines FROM evbus.receive_lines('c', 100) \gset
SELECT results_eq(format('SELECT (l::jsonb->>%L)::integer, l::jsonb->>%L FROM regexp_split_to_table(%L, E''\n'') l', 'position', 'replayed', :'lines'),
	$$VALUES (16, NULL), (17, NULL), (1, 'true'), (2, 'true')$$, 'receive_lines() marks what is replayed');
SELECT is(evbus.ack(:'receipts'), 4, 'its receipts ack all of them');
SELECT publish_many('flood', 64) AS n \gset
SELECT evbus.replay('c', '1', '16') AS replay \gset
SELECT poll($$SELECT lag::text FROM evbus.subscription_lag WHERE subscription = 'c'$$, '64') AS lag \gset
CREATE TABLE got (n serial, what text);
INSERT INTO got (what) SELECT get('c', 1) FROM generate_series(1, 56) i;
SELECT is(count(*) FILTER (WHERE what LIKE '%r') || ' of ' || count(*), '7 of 56', 'one in eight deliveries is of a replay while there are others') FROM got;
SELECT is_empty($$SELECT FROM (SELECT n, row_number() OVER () * 8 AS expected FROM got WHERE what LIKE '%r') x WHERE n <> expected$$, 'regularly');
SELECT is(array_length(string_to_array(get('c'), ' '), 1), 15 + 8, 'with room for all of them, none waits');

-- waiting

SELECT poll('SELECT newest()', 'done 15 of 15') AS state \gset
SELECT evbus.replay('c', '1', '2') AS replay \gset
SELECT clock_timestamp() AS t1 \gset
CALL evbus.wait('c', '30 seconds');
SELECT cmp_ok(clock_timestamp(), '<', timestamptz :'t1' + interval '20 seconds', 'wait() returns when there is something of a replay');
SELECT is(get('c'), '1r', 'which is received');

-- at a rate, paused, several at once

SELECT publish_many('mass', 1000) AS n \gset
SELECT evbus.seek('c', 'now') AS position \gset
SELECT evbus.replay('c', :position - 300 || '', rate => 200) AS replay \gset
CREATE TABLE paced (at timestamptz, n integer);
DO $$
DECLARE
	receipts text[];
BEGIN
	LOOP
		receipts := ARRAY(SELECT receipt FROM evbus.receive('c', 100, wait => '2 seconds'));
		EXIT WHEN receipts = '{}';
		INSERT INTO paced VALUES (clock_timestamp(), cardinality(receipts));
		PERFORM evbus.ack(receipts);
		COMMIT;
	END LOOP;
END $$;
SELECT results_eq('SELECT sum(n) FROM paced', 'VALUES (300::bigint)', 'a replay at a rate delivers all');
SELECT cmp_ok(max(p.at) - (SELECT created_at FROM evbus.replay_list WHERE replay_id = :replay), '>=', interval '1.45 seconds', 'no faster than that') FROM paced p;
SELECT cmp_ok(max(p.at) - (SELECT created_at FROM evbus.replay_list WHERE replay_id = :replay), '<=', interval '2.5 seconds', 'nor much slower') FROM paced p;
SELECT evbus.replay('c', '1', '4') AS first, evbus.replay('c', '2', '4') AS second \gset
SELECT evbus.pause('c');
SELECT results_eq($$SELECT state FROM evbus.replay_list WHERE finished_at IS NULL$$, $$VALUES ('paused'), ('paused')$$, 'a pause is for its replays, too');
SELECT is_empty($$SELECT FROM evbus.receive('c', 100)$$, 'nothing is delivered then');
SELECT evbus.resume('c');
SELECT is((SELECT string_agg(p, ' ' ORDER BY p) FROM regexp_split_to_table(get('c'), ' ') p), '1r 2r 2r 3r 3r', 'several replays at once deliver each what it has');

-- order

SELECT evbus.subscribe('orders', 'An "ordered" näme', ordering => 'key') AS position \gset
SELECT evbus.replay('An "ordered" näme', '1', '8') AS replay \gset
SELECT results_eq($$SELECT position, key FROM evbus.receive('An "ordered" näme', 100)$$, $$VALUES (1::bigint, 'k1'), (2, 'k2'), (3, 'k0')$$, 'a replay is in the order of its subscription: one of a key at a time');
SELECT publish_many('new', 1) AS n \gset
SELECT results_eq($$SELECT key, replayed FROM take('An "ordered" näme', 1)$$, $$VALUES ('k1', false)$$, 'the live flow of the same keys does not wait for it, nor it for that');
SELECT evbus.unsubscribe('An "ordered" näme');
SELECT is((SELECT state FROM evbus.replay_list WHERE replay_id = :replay), 'cancelled', 'with a subscription its replays end');

-- to handlers

CREATE TABLE effect (n bigserial, subscription text, event_id bigint, position bigint, attempt integer, replayed boolean, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION one(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO effect (subscription, event_id, position, attempt, replayed) VALUES ('one', e.event_id, e.position, e.attempt, e.replayed);
	IF e.replayed AND e.position % 100 = 7 AND e.attempt < 3 THEN
		RAISE 'not yet';
	END IF;
END $$;
CREATE FUNCTION other(e evbus.event) RETURNS void LANGUAGE sql AS $$ INSERT INTO effect (subscription, position, replayed) VALUES ('other', e.position, e.replayed) $$;
-- Slow with what is replayed.
CREATE FUNCTION slow(events evbus.event[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO effect (subscription, event_id, position, attempt, replayed) SELECT 'slow', e.event_id, e.position, e.attempt, e.replayed FROM unnest(events) e;
	PERFORM pg_sleep(0.05) FROM unnest(events) e WHERE e.replayed LIMIT 1;
END $$;
SELECT evbus.subscribe('orders', 'one', handler => 'one(evbus.event)', backoff_initial => '10 ms') AS position \gset
SELECT evbus.replay('one', '1', '501') AS replay \gset
SELECT becomes('SELECT newest()', 'done 500 of 500', 'a replay is delivered to the handler');
SELECT results_eq($$SELECT count(*), count(DISTINCT event_id), min(position), max(position), bool_and(replayed), count(*) FILTER (WHERE attempt = 3) FROM effect$$,
	$$VALUES (500::bigint, 500::bigint, 1::bigint, 500::bigint, true, 5::bigint)$$, 'each event once, what had failed at its third attempt, all of them marked');
SELECT is_empty($$SELECT FROM (SELECT position, lag(position) OVER (ORDER BY n) AS before FROM effect WHERE attempt = 1) x WHERE position < before$$, 'in order');
SELECT max(n) AS mark FROM effect \gset
SELECT evbus.replay('one', '1', '301', rate => 300) AS replay \gset
SELECT becomes($$SELECT (done > 60)::text FROM evbus.replay_list ORDER BY replay_id DESC LIMIT 1$$, 'true', 'another one is under way');
SELECT evbus.alter_subscription('one', handler => 'other(evbus.event)');
SELECT becomes('SELECT newest()', 'done 300 of 300', 'goes on when the handler is exchanged');
SELECT results_eq($$SELECT count(*) > 0, count(*) < 300, max(position) FROM effect WHERE subscription = 'other'$$, $$VALUES (true, true, 300::bigint)$$, 'and is given to the new one');
SELECT results_eq(format('SELECT count(*), count(DISTINCT position) FROM effect WHERE n > %s', :mark), $$VALUES (300::bigint, 300::bigint)$$, 'nothing is left out, or done twice');
SELECT ok(extract(epoch FROM finished_at - created_at) BETWEEN 0.95 AND 2.5, 'at its rate') FROM evbus.replay_list ORDER BY replay_id DESC LIMIT 1;
SELECT max(n) AS mark, (SELECT next_position FROM evbus.subscription_lag WHERE subscription = 'one') AS position FROM effect \gset
SELECT count(*) AS n FROM evbus.publish_batch('orders', ARRAY(SELECT CASE WHEN i % 10 = 0 THEN 'sparse' ELSE 'dense' END FROM generate_series(1, 3000) i), ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 3000) i)) \gset
SELECT evbus.replay('one', :'position', types => '{sparse}', rate => 100) AS replay \gset
SELECT becomes('SELECT newest()', 'done 3000 of 3000', 'a replay of few of many');
SELECT results_eq(format('SELECT count(*), count(DISTINCT position) FROM effect WHERE n > %s AND replayed', :mark), $$VALUES (300::bigint, 300::bigint)$$, 'delivers those');
SELECT ok(extract(epoch FROM finished_at - created_at) BETWEEN 2.95 AND 4.5, 'and is at its rate, too: what is not wanted does not count') FROM evbus.replay_list ORDER BY replay_id DESC LIMIT 1;
TRUNCATE effect;
SELECT evbus.subscribe('orders', 'slow', handler => 'slow(evbus.event[])', batch_size => 10) AS position \gset
SELECT evbus.replay('slow', '1', '1001') AS replay \gset
SELECT becomes($$SELECT (done > 0)::text FROM evbus.replay_list ORDER BY replay_id DESC LIMIT 1$$, 'true', 'a long replay has begun');
SELECT evbus.publish('orders', 'urgent', '1') AS urgent \gset
SELECT becomes(format($$SELECT count(*)::text FROM effect WHERE subscription = 'slow' AND event_id = %s AND NOT replayed$$, :urgent), '1', 'what is published meanwhile is handled');
SELECT ok(state = 'running' AND done < 500, 'beside it, and not after it') FROM evbus.replay_list ORDER BY replay_id DESC LIMIT 1;
SELECT throws_ok($$SELECT evbus.drop_bus('orders')$$, 'VB006', NULL, 'its bus is not dropped by mistake');
SELECT is(evbus.drop_bus('orders', force => true)::text, '', 'but if it has to be');
SELECT results_eq($$SELECT count(*) FILTER (WHERE state = 'cancelled') FROM evbus.replay_list WHERE subscription = 'slow'$$, $$VALUES (1::bigint)$$, 'with the replay');
SELECT is_empty('SELECT FROM evbus.replay', 'of which nothing is left');

SELECT * FROM finish();
