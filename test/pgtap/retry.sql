-- What happens to a delivery that failed: policy by SQLSTATE, backoff, max_attempts, timeout.
\ir include/helpers.sql
SELECT plan(69);

SELECT evbus.create_bus('orders');
CREATE TABLE call (subscription text, event_id bigint, type text, payload jsonb, attempt integer, at timestamptz DEFAULT clock_timestamp());
-- Outside of the handler's transaction, so that failed attempts are told too.
CREATE EXTENSION dblink;
CREATE FUNCTION tell(subscription text, e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM dblink_exec(format('dbname=%s host=%s port=%s user=%s', quote_literal(current_database()), quote_literal(split_part(current_setting('unix_socket_directories'), ',', 1)),
		current_setting('port'), quote_literal(current_user)), format('INSERT INTO call VALUES (%L, %s, %L, %L, %s)', subscription, e.event_id, e.type, e.payload, e.attempt));
END $$;
-- Fails with the SQLSTATE in the payload for as many attempts as the payload says.
CREATE FUNCTION fail_as_told(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM tell('told', e);
	IF e.attempt <= coalesce((e.payload ->> 'times')::integer, 2147483647) THEN
		RAISE EXCEPTION 'told to fail at attempt %', e.attempt USING ERRCODE = e.payload ->> 'sqlstate', DETAIL = 'secret detail', HINT = 'secret hint';
	END IF;
END $$;

-- policy by SQLSTATE

SELECT evbus.subscribe('orders', 'told', types => '{told.#}', handler => 'fail_as_told(evbus.event)', max_attempts => 3,
	backoff_initial => '20 milliseconds', backoff_max => '100 milliseconds') AS position \gset
SELECT evbus.publish('orders', 'told.twice', '{"sqlstate": "P0001", "times": 2}') AS id \gset
SELECT becomes($$SELECT string_agg(DISTINCT attempt::text, ' ') FROM call WHERE type = 'told.twice'$$, '1 2 3', 'an event that fails twice is tried a third time, attempts counted');
SELECT becomes($$SELECT (lag + retries + in_flight)::text FROM evbus.subscription_lag WHERE subscription = 'told'$$, '0', 'then it is done');
SELECT is_empty($$SELECT 1 FROM evbus.retry_list UNION ALL SELECT 1 FROM evbus.dead_letter$$, 'and leaves neither retry nor dead letter');
SELECT evbus.publish('orders', 'told.always', '{"sqlstate": "P0001"}') AS id \gset
SELECT becomes($$SELECT string_agg(attempts || ' ' || reason || ' ' || sqlstate || ' ' || message, '') FROM evbus.dead_letter WHERE type = 'told.always'$$,
	'3 max_attempts P0001 told to fail at attempt 3', 'an event that always fails is a dead letter after max_attempts, with the last error');
SELECT results_eq($$SELECT array_agg(DISTINCT attempt) FROM call WHERE type = 'told.always'$$, $$VALUES ('{1,2,3}'::integer[])$$, 'and was given attempts 1 to 3, no more');
SELECT is_empty($$SELECT 1 FROM evbus.dead_letter d WHERE to_jsonb(d)::text LIKE '%secret%'$$, 'DETAIL and HINT, which may show data, are not stored');
SELECT evbus.publish('orders', 'told.class' || sqlstate, jsonb_build_object('sqlstate', sqlstate)) AS id
FROM unnest('{22012,22P02,23505,23514,42501,42883,42P01}'::text[]) AS sqlstate \g /dev/null
SELECT becomes(format($$SELECT string_agg(attempts || ' ' || reason || ' ' || sqlstate, '') FROM evbus.dead_letter WHERE type = 'told.class%s'$$, sqlstate), '1 permanent ' || sqlstate,
	'trying again is no use: SQLSTATE ' || sqlstate || ' goes straight to the dead letters')
FROM unnest('{22012,22P02,23505,23514,42501,42883,42P01}'::text[]) AS sqlstate;
SELECT is((SELECT max(attempt) FROM call WHERE type LIKE 'told.class%'), 1, 'none of them had a second attempt');
SELECT evbus.publish('orders', 'told.passing' || sqlstate, jsonb_build_object('sqlstate', sqlstate, 'times', 2)) AS id
FROM unnest('{40001,40P01,53200,55P03,57014,58000,XX000,ZZ999}'::text[]) AS sqlstate \g /dev/null
SELECT becomes(format($$SELECT string_agg(DISTINCT attempt::text, ' ') FROM call WHERE type = 'told.passing%s'$$, sqlstate), '1 2 3', 'a passing fault: SQLSTATE ' || sqlstate || ' is tried again')
FROM unnest('{40001,40P01,53200,55P03,57014,58000,XX000,ZZ999}'::text[]) AS sqlstate;
SELECT becomes($$SELECT (lag + retries + in_flight)::text FROM evbus.subscription_lag WHERE subscription = 'told'$$, '0', 'and all of them are done');

-- 40001 does not wait for the backoff, P0001 does

SELECT evbus.subscribe('orders', 'slow', types => '{slow.#}', handler => 'fail_as_told(evbus.event)', max_attempts => 5,
	backoff_initial => '10 minutes', backoff_max => '15 minutes') AS position \gset
SELECT evbus.publish('orders', 'slow.conflict', '{"sqlstate": "40001", "times": 2}') AS id \gset
SELECT evbus.publish('orders', 'slow.fault', '{"sqlstate": "P0001"}') AS id \gset
SELECT becomes($$SELECT string_agg(DISTINCT attempt::text, ' ') FROM call WHERE type = 'slow.conflict'$$, '1 2 3', 'a serialization failure is tried again almost at once, whatever the backoff');
SELECT becomes($$SELECT attempts || ' ' || sqlstate || ' ' || message FROM evbus.retry_list WHERE subscription = 'slow'$$, '1 P0001 told to fail at attempt 1', 'another error waits, and the list tells attempts and error');
SELECT ok(due_at - last_failed_at BETWEEN interval '4 minutes' AND interval '15 minutes' AND first_failed_at = last_failed_at, 'for about backoff_initial')
FROM evbus.retry_list WHERE subscription = 'slow';
SELECT results_eq($$SELECT retries, next_retry_at FROM evbus.subscription_lag WHERE subscription = 'slow'$$, $$SELECT 1::bigint, due_at FROM evbus.retry_list WHERE subscription = 'slow'$$,
	'the lag view tells when the next retry is due');
SELECT evbus.publish('orders', 'slow.good', '{"sqlstate": "P0001", "times": 0}') AS id \gset
SELECT becomes($$SELECT count(*)::text FROM call WHERE type = 'slow.good'$$, '1', 'a waiting retry holds up no other event');

-- nor longer than backoff_max, however often

SELECT evbus.subscribe('orders', 'short', types => '{short.#}', handler => 'fail_as_told(evbus.event)', max_attempts => 20,
	backoff_initial => '1 ms', backoff_max => '5 ms') AS position \gset
SELECT evbus.publish('orders', 'short.conflict', '{"sqlstate": "40P01", "times": 12}') AS id \gset
SELECT becomes($$SELECT max(attempt)::text FROM call WHERE type = 'short.conflict'$$, '13', 'a conflict that lasts is tried again and again');
SELECT cmp_ok((SELECT min(later) FROM (SELECT at - lag(at) OVER (ORDER BY attempt) AS later FROM call WHERE type = 'short.conflict' AND attempt > 8) AS a), '<', interval '500 ms',
	'never after more than backoff_max');

-- backoff doubles up to its cap, with jitter

SELECT evbus.subscribe('orders', 'client', types => '{client}', max_attempts => 1000, backoff_initial => '1 minute', backoff_max => '1 hour') AS position \gset
SELECT count(*) AS n FROM evbus.publish_batch('orders', array_fill('client'::text, ARRAY[320]), array_fill('1'::jsonb, ARRAY[320])) \gset
DO $$
DECLARE receipts text[];
BEGIN
	FOR i IN 1 .. 8 LOOP
		SELECT array_agg(receipt) INTO receipts FROM take('client', 320 - 40 * (i - 1));
		PERFORM evbus.nack(receipts[:40]);	-- these wait for their backoff, the others fail once more
		IF i < 8 THEN
			PERFORM evbus.nack(receipts[41:], delay => '0');
		END IF;
		COMMIT;
	END LOOP;
END $$;
CREATE TEMP TABLE backoff AS SELECT attempts, due_at - last_failed_at AS delay FROM evbus.retry_list WHERE subscription = 'client';
SELECT results_eq('SELECT attempts, count(*) FROM backoff GROUP BY 1 ORDER BY 1', 'SELECT i, 40::bigint FROM generate_series(1, 8) AS i', 'forty deliveries wait after each number of attempts from 1 to 8');
SELECT ok(bool_and(delay <= LEAST(interval '1 minute' * 2 ^ (attempts - 1), interval '1 hour') * 1.5), 'no backoff is much longer than initial * 2^(attempt - 1), nor than the cap') FROM backoff;
SELECT ok(avg(delay) BETWEEN LEAST(interval '1 minute' * 2 ^ (attempts - 1), interval '1 hour') * 0.4 AND LEAST(interval '1 minute' * 2 ^ (attempts - 1), interval '1 hour') * 1.25,
	'on average it is about that long: attempt ' || attempts) FROM backoff GROUP BY attempts ORDER BY attempts;
SELECT cmp_ok(count(DISTINCT delay), '>', 10::bigint, 'jitter: deliveries that failed together do not come back together: attempt ' || attempts) FROM backoff GROUP BY attempts ORDER BY attempts;
SELECT evbus.unsubscribe('client');

-- a delay given with nack

SELECT evbus.subscribe('orders', 'client', types => '{client}', max_attempts => 2, backoff_initial => '1 minute') AS position \gset
SELECT evbus.publish('orders', 'client', '{"n": 1}', key => 'k', headers => '{"h": 1}') AS id \gset
SELECT receipt, position FROM take('client', 1) \gset
SELECT evbus.nack(ARRAY[:'receipt'], delay => '3 hours', error => 'the shop is closed') AS n \gset
SELECT results_eq(
	$$SELECT subscription, bus, event_id, position, type, key, payload, headers, attempts, sqlstate, message, due_at - last_failed_at BETWEEN interval '2 hours 59 minutes' AND interval '3 hours 1 minute'
	  FROM evbus.retry_list WHERE subscription = 'client'$$,
	format($$VALUES ('client', 'orders', %s::bigint, %s::bigint, 'client', 'k', '{"n": 1}'::jsonb, '{"h": 1}'::jsonb, 1, 'VB000', 'the shop is closed', true)$$, :id, :position),
	'the list shows the event, the error and when it is due: after the delay given');
SELECT is((SELECT published_at FROM evbus.retry_list WHERE subscription = 'client'), (SELECT published_at FROM evbus.history WHERE event_id = :id), 'and when it was published');
SELECT evbus.unsubscribe('client');
SELECT evbus.subscribe('orders', 'client', types => '{client}', max_attempts => 2, backoff_initial => '0') AS position \gset
SELECT evbus.publish('orders', 'client', '2') AS id \gset
SELECT is((SELECT evbus.nack(array_agg(receipt)) FROM take('client', 1)), 1, 'a first failure');
SELECT is((SELECT evbus.nack(array_agg(receipt), delay => '1 hour', error => 'again') FROM take('client', 1)), 1, 'and a second one');
SELECT results_eq($$SELECT attempts, reason, message FROM evbus.dead_letter WHERE subscription = 'client'$$, $$VALUES (2, 'max_attempts', 'again')$$,
	'when max_attempts are used up, nack makes a dead letter, whatever the delay');
SELECT evbus.unsubscribe('client');
SELECT evbus.subscribe('orders', 'client', types => '{client}', max_attempts => 1) AS position \gset
SELECT evbus.publish('orders', 'client', '3') AS id \gset
SELECT is((SELECT evbus.nack(array_agg(receipt), error => E'first line\nsecond line ' || repeat('x', 10000)) FROM take('client', 1)), 1, 'max_attempts => 1: the first failure is the last');
SELECT ok(octet_length(message) BETWEEN 100 AND 2048 AND message LIKE E'first line%', 'a long error text is cut to 2 kB') FROM evbus.dead_letter WHERE subscription = 'client' AND attempts = 1;
SELECT evbus.publish('orders', 'client', '4') AS id \gset
SELECT is((SELECT evbus.reject(array_agg(receipt), error => repeat('é', 5000)) FROM take('client', 1)), 1, 'an error text of many bytes each');
SELECT ok(octet_length(message) <= 2048 AND message = repeat('é', length(message)) AND length(message) > 900, 'is cut between characters, not inside one') FROM evbus.dead_letter WHERE reason = 'rejected';

-- settings changed later apply to what failed before

SELECT evbus.subscribe('orders', 'changed', types => '{changed}', max_attempts => 5, backoff_initial => '0') AS position \gset
SELECT evbus.publish('orders', 'changed', '1') AS id \gset
SELECT is((SELECT evbus.nack(array_agg(receipt)) FROM take('changed', 1)), 1, 'a first failure of five');
SELECT evbus.alter_subscription('changed', max_attempts => 2);
SELECT is((SELECT evbus.nack(array_agg(receipt)) FROM take('changed', 1)), 1, 'max_attempts is lowered to two, and it fails again');
SELECT results_eq($$SELECT attempts, reason FROM evbus.dead_letter WHERE subscription = 'changed'$$, $$VALUES (2, 'max_attempts')$$, 'the new max_attempts counts');

-- the timeout

CREATE FUNCTION hang(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM tell('hang', e);
	IF e.type = 'hang.first' AND e.attempt = 1 THEN
		PERFORM pg_sleep(600);
	END IF;
END $$;
SELECT evbus.subscribe('orders', 'hang', types => '{hang.*}', handler => 'hang(evbus.event)', timeout => '200 milliseconds', backoff_initial => '10 milliseconds') AS position \gset
SELECT evbus.pause('hang');
SELECT count(*) AS n FROM evbus.publish_batch('orders', '{hang.before,hang.first,hang.after}', '{1,2,3}') \gset
SELECT evbus.resume('hang');
SELECT becomes($$SELECT max(attempt)::text FROM call WHERE type = 'hang.first'$$, '2', 'a handler that takes longer than its timeout is cancelled and the event tried again');
SELECT becomes($$SELECT (lag + retries + in_flight)::text FROM evbus.subscription_lag WHERE subscription = 'hang'$$, '0', 'and done');
SELECT ok(bool_and(n > 0), 'its neighbours were handled') FROM (SELECT (SELECT count(*) FROM call c WHERE c.type = t) AS n FROM unnest('{hang.before,hang.after}'::text[]) AS t) AS s;
SELECT is_empty($$SELECT 1 FROM evbus.dead_letter WHERE subscription = 'hang'$$, 'nothing was given up');

-- a handler ends its own process: that is a failed attempt, and no more

CREATE FUNCTION ends_itself(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM tell('suicide', e);
	IF e.type = 'end.self' THEN
		PERFORM pg_terminate_backend(pg_backend_pid());
		PERFORM pg_sleep(10);
	END IF;
END $$;
SELECT evbus.subscribe('orders', 'suicide', types => '{end.*}', handler => 'ends_itself(evbus.event)', max_attempts => 2, backoff_initial => '10 milliseconds') AS position \gset
SELECT evbus.publish('orders', 'end.self', '1') AS id \gset
SELECT evbus.publish('orders', 'end.other', '1') AS id \gset
SELECT becomes($$SELECT attempts || ' ' || reason FROM evbus.dead_letter WHERE subscription = 'suicide'$$, '2 max_attempts', 'an event whose handler ends its own process is a dead letter after max_attempts');
SELECT becomes($$SELECT count(*)::text FROM call WHERE type = 'end.other'$$, '1', 'and the events after it are handled');

-- Retries that are due together: one ends its worker, the others are not to blame.
SELECT evbus.create_bus('together') \g /dev/null
CREATE TABLE together (name text, attempt integer);
CREATE FUNCTION together(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF e.attempt = 1 THEN
		RAISE EXCEPTION 'not yet';
	END IF;
	IF e.type = 'ends' THEN
		PERFORM pg_terminate_backend(pg_backend_pid());
		PERFORM pg_sleep(10);
	END IF;
	INSERT INTO together VALUES (e.type, e.attempt);
END $$;
SELECT evbus.subscribe('together', 'together', handler => 'together(evbus.event)', max_attempts => 2, backoff_initial => '2 seconds') \g /dev/null
SELECT count(*) AS n FROM evbus.publish_batch('together', '{ends,good.a,good.b,good.c}', '{1,2,3,4}') \gset
SELECT becomes($$SELECT count(*)::text FROM evbus.retry_list WHERE subscription = 'together'$$, '4', 'four retries');
SELECT evbus.pause('together', 'so that all are due together') \g /dev/null
SELECT becomes($$SELECT bool_and(due_at < clock_timestamp())::text FROM evbus.retry_list WHERE subscription = 'together'$$, 'true', 'are due together');
SELECT evbus.resume('together') \g /dev/null
SELECT becomes($$SELECT (SELECT string_agg(name || ' ' || attempt, ' ' ORDER BY name) FROM together) || ' dead: ' || (SELECT string_agg(type, ' ') FROM evbus.dead_letter WHERE subscription = 'together')$$,
	'good.a 2 good.b 2 good.c 2 dead: ends', 'only the one that ends its worker is given up');

SELECT * FROM finish();
