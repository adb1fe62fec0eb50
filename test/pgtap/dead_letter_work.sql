-- Working with dead letters: dry run, pace, history of attempts, edit, reports by hour, export.
\ir include/helpers.sql
SELECT plan(77);

SELECT evbus.create_bus('orders');
SELECT evbus.create_bus('invoices');
SELECT evbus.subscribe('orders', 'a') AS position \gset
SELECT evbus.subscribe('invoices', 'c') AS position \gset
CREATE PROCEDURE bury(bus text, subscription text, type text, error text DEFAULT 'no use', n integer DEFAULT 1) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM evbus.publish(bus, type, jsonb_build_object('n', i), key => 'k') FROM generate_series(1, n) AS i;
	COMMIT;
	PERFORM evbus.reject(ARRAY(SELECT t.receipt FROM take(subscription, n) AS t), error);
	COMMIT;
END $$;
-- What the counts say and what is there, folded or not.
CREATE FUNCTION counts_agree() RETURNS boolean LANGUAGE sql AS $$
	SELECT NOT EXISTS ((SELECT bus, subscription, type, sqlstate, reason, hour, dead_letters FROM evbus.dead_letter_trend WHERE dead_letters <> 0
			EXCEPT ALL SELECT bus, subscription, type, sqlstate, reason, evbus._event_hour(dead_letter_id), count(*) FROM evbus.dead_letter GROUP BY 1, 2, 3, 4, 5, 6)
		UNION ALL (SELECT bus, subscription, type, sqlstate, reason, evbus._event_hour(dead_letter_id), count(*) FROM evbus.dead_letter GROUP BY 1, 2, 3, 4, 5, 6
			EXCEPT ALL SELECT bus, subscription, type, sqlstate, reason, hour, dead_letters FROM evbus.dead_letter_trend WHERE dead_letters <> 0)) $$;

-- a dry run

CALL bury('orders', 'a', 'order.created', 'e1', 3);
CALL bury('invoices', 'c', 'invoice.sent', 'e2', 2);
SELECT is(evbus.redrive(dry_run => true), 5::bigint, 'a dry run tells how many it would take');
SELECT is(evbus.redrive(subscription => 'a', dry_run => true), 3::bigint, 'by filter');
SELECT is(evbus.redrive(bus => 'invoices', dry_run => true), 2::bigint, 'by bus');
SELECT is(evbus.redrive(max_events => 4, dry_run => true), 4::bigint, 'with a limit');
SELECT is(evbus.redrive(rate => 5, dry_run => true), 5::bigint, 'also of one with a rate');
SELECT is(evbus.discard(dry_run => true), 5::bigint, 'discard tells it as well, without a reason');
SELECT is(evbus.discard(subscription => 'a', max_events => 2, reason => 'x', dry_run => true), 2::bigint, 'by filter, with a limit');
SELECT is(evbus.redrive(dry_run => true), 5::bigint, 'and nothing is gone');
SELECT is((SELECT count(*) FROM evbus.dead_letter), 5::bigint, 'and touches nothing');
SELECT is_empty('SELECT 1 FROM evbus.retry_list', 'no retry');
SELECT is_empty('SELECT 1 FROM evbus.redrive_list', 'no job');
BEGIN READ ONLY;
SELECT is(evbus.redrive(dry_run => true), 5::bigint, 'a read-only transaction may do it');
SELECT throws_ok('SELECT evbus.redrive()', '25006', NULL, 'but redrive nothing');
SELECT throws_ok('SELECT evbus.redrive(rate => 1)', '25006', NULL, 'nor begin to');
ROLLBACK;

-- errors in filters

SELECT throws_ok($$SELECT evbus.redrive(subscription => 'a', bus => 'invoices')$$, '22023', 'subscription "a" is not of bus "invoices"', 'a subscription of another bus than the one named is an error, not nothing');
SELECT throws_ok($$SELECT evbus.redrive(subscription => 'A')$$, 'VB004', NULL, 'a misspelt subscription is an error, not nothing');

-- the bus is renamed

SELECT lives_ok($$SELECT evbus.alter_bus('invoices', rename_to => 'bills')$$, 'a bus is renamed');
SELECT is(evbus.redrive(bus => 'bills', dry_run => true), 2::bigint, 'its dead letters of before are found by the new name');
SELECT throws_ok($$SELECT evbus.redrive(bus => 'invoices')$$, 'VB001', NULL, 'the old one is no bus');
SELECT is(evbus.discard(bus => 'bills', reason => 'tidy'), 2::bigint, 'discard finds them, too');

-- the history of attempts

SELECT event_id AS event, first_failed_at AS first, dead_letter_id AS id1 FROM evbus.dead_letter ORDER BY 1 LIMIT 1 \gset
SELECT is(evbus.redrive(ARRAY[:id1]::bigint[]), 1::bigint, 'a dead letter is redriven');
SELECT results_eq('SELECT redrives, attempts, jsonb_array_length(earlier_failures) FROM evbus.retry_list', 'VALUES (1, 0, 1)', 'the retry tells that it was');
SELECT is(evbus.nack(ARRAY(SELECT receipt FROM take('a', 1)), delay => '0', error => 'second'), 1, 'it fails');
SELECT is(evbus.reject(ARRAY(SELECT receipt FROM take('a', 1)), 'third'), 1, 'and fails for good');
SELECT results_eq(format($$SELECT attempts, redrives, message, first_failed_at = %L, jsonb_array_length(earlier_failures), earlier_failures->0->>'message', earlier_failures->0->>'attempts',
		earlier_failures->0->>'reason', earlier_failures->0->>'sqlstate', earlier_failures->0->>'redriven_by', earlier_failures->0->>'dead_letter_id'
	FROM evbus.dead_letter WHERE event_id = %s$$, :'first', :event),
	format($$VALUES (2, 1, 'third', true, 1, 'e1', '1', 'rejected', 'VB000', 'postgres', '%s')$$, :id1), 'the dead letter keeps its event, its first failure, and how its first life ended');
DO $$
BEGIN
	FOR i IN 1 .. 25 LOOP
		PERFORM evbus.redrive(ARRAY(SELECT dead_letter_id FROM evbus.dead_letter WHERE redrives > 0));
		COMMIT;
		PERFORM evbus.reject(ARRAY(SELECT t.receipt FROM take('a', 1) AS t), 'life ' || i);
		COMMIT;
	END LOOP;
END $$;
SELECT results_eq(format($$SELECT redrives, jsonb_array_length(earlier_failures), earlier_failures->-1->>'message', earlier_failures->0->>'message' FROM evbus.dead_letter WHERE event_id = %s$$, :event),
	$$VALUES (26, 20, 'life 24', 'life 5')$$, 'it remembers the newest twenty lives, oldest first');
SELECT ok(counts_agree(), 'the counts agree with what is there');

-- the same event twice among the dead letters

SELECT evbus.discard(reason => 'begin anew') AS n \gset
SELECT evbus.seek('a', 'now') AS position \gset
CALL bury('orders', 'a', 'twice', 'first time');
SELECT evbus.seek('a', (SELECT position::text FROM evbus.dead_letter)) AS position \gset
SELECT is(evbus.reject(ARRAY(SELECT receipt FROM take('a', 1)), 'second time'), 1, 'an event that is replayed may become a dead letter twice');
SELECT is(evbus.redrive(), 2::bigint, 'both are redriven');
SELECT results_eq('SELECT count(*), min(message) FROM evbus.retry_list', $$VALUES (1::bigint, 'second time')$$, 'as one delivery');
SELECT is(consume('a', 2), 'twice', 'which comes once');

-- edit

CALL bury('orders', 'a', 'order.broken', 'price missing');
SELECT dead_letter_id AS id, event_id AS event FROM evbus.dead_letter \gset
SELECT lives_ok(format($$SELECT evbus.edit_dead_letter(%s, '{"n": 1, "price": 7}', 'the price was missing')$$, :id), 'the payload of a dead letter is edited');
SELECT results_eq('SELECT payload FROM evbus.dead_letter', $$VALUES ('{"n": 1, "price": 7}'::jsonb)$$, 'the dead letter shows it');
SELECT results_eq($$SELECT action, role, login, reason, bus, subscription, dead_letters, oldest_id, newest_id, event_id, old_payload, at BETWEEN now() - interval '1 minute' AND clock_timestamp()
	FROM evbus.dead_letter_audit WHERE action = 'edit'$$,
	format($$VALUES ('edit', 'postgres', 'postgres', 'the price was missing', 'orders', 'a', 1::bigint, %1$s::bigint, %1$s::bigint, %2$s::bigint, '{"n": 1}'::jsonb, true)$$, :id, :event),
	'the audit keeps who, when, why and the payload of before');
SELECT lives_ok(format($$SELECT evbus.edit_dead_letter(%s, jsonb_build_object('long', repeat('x', 100000)), 'again')$$, :id), 'it may be edited again');
SELECT results_eq($$SELECT old_payload FROM evbus.dead_letter_audit WHERE reason = 'again'$$, $$VALUES ('{"n": 1, "price": 7}'::jsonb)$$, 'the audit keeps each step');
BEGIN;
SELECT evbus.edit_dead_letter(:id, '1', 'undone');
ROLLBACK;
SELECT is_empty($$SELECT 1 FROM evbus.dead_letter_audit WHERE reason = 'undone'$$, 'an edit that is rolled back leaves no audit');
SELECT results_eq('SELECT length(payload->>''long'') FROM evbus.dead_letter', 'VALUES (100000)', 'and changes nothing');
SELECT results_eq(format($$SELECT payload FROM evbus.history WHERE event_id = %s$$, :event), $$VALUES ('{"n": 1}'::jsonb)$$, 'the event itself stays as it was published');
SELECT is(evbus.redrive(), 1::bigint, 'redriven');
SELECT is((SELECT length(payload->>'long') FROM take('a', 1)), 100000, 'it is delivered as edited');
SELECT evbus.seek('a', 'now') AS position \gset
SELECT throws_ok(format($$SELECT evbus.edit_dead_letter(%s, '1', 'late')$$, :id), 'P0002', NULL, 'what was redriven can be edited no more');
SELECT evbus.create_bus('tiny', max_payload_bytes => 50);
SELECT evbus.subscribe('tiny', 't') AS position \gset
CALL bury('tiny', 't', 'x');
SELECT throws_ok(format($$SELECT evbus.edit_dead_letter(%s, to_jsonb(repeat('x', 100)), 'too large')$$, dead_letter_id), '54000', NULL, 'the bounds of the bus hold') FROM evbus.dead_letter WHERE subscription = 't';

-- discard tells why

SELECT is(evbus.discard(subscription => 't', reason => 'test data'), 1::bigint, 'a discard');
SELECT results_eq($$SELECT role, login, reason, bus, subscription, dead_letters, oldest_id = newest_id, event_id, old_payload FROM evbus.dead_letter_audit ORDER BY audit_id DESC LIMIT 1$$,
	$$VALUES ('postgres', 'postgres', 'test data', 'tiny', 't', 1::bigint, true, NULL::bigint, NULL::jsonb)$$, 'is recorded with its reason');
SELECT is(evbus.discard(subscription => 't', reason => 'nothing left'), 0::bigint, 'one that finds nothing');
SELECT is_empty($$SELECT 1 FROM evbus.dead_letter_audit WHERE reason = 'nothing left'$$, 'is not');
SELECT throws_ok($$SELECT evbus.discard(subscription => 'a')$$, '22004', 'argument "reason" must not be null', 'without a reason nothing is discarded');

-- a dropped subscription

CALL bury('tiny', 't', 'orphan');
SELECT dead_letter_id AS orphan FROM evbus.dead_letter WHERE subscription = 't' \gset
SELECT evbus.unsubscribe('t');
SELECT throws_ok($$SELECT evbus.redrive(subscription => 't')$$, 'VB004', 'subscription "t" no longer exists', 'redrive to a dropped subscription is refused, and says so');
SELECT throws_ok($$SELECT evbus.redrive(subscription => 't', rate => 1)$$, 'VB004', NULL, 'also with a rate');
SELECT throws_ok(format($$SELECT evbus.edit_dead_letter(%s, '1', 'x')$$, :orphan), 'VB004', NULL, 'its dead letters cannot be edited');
DROP ROLE IF EXISTS evbus_test_dora;
CREATE ROLE evbus_test_dora;
GRANT USAGE ON SCHEMA evbus TO evbus_test_dora;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA evbus TO evbus_test_dora;
SET ROLE evbus_test_dora;
SELECT throws_ok($$SELECT evbus.discard(subscription => 't', reason => 'x')$$, '42501', NULL, 'nor discarded by just anybody');
RESET ROLE;
DROP OWNED BY evbus_test_dora;
DROP ROLE evbus_test_dora;
SELECT is(evbus.discard(subscription => 't', reason => 'orphan'), 1::bigint, 'but discarded by its name');
SELECT is(evbus.discard(subscription => 't', reason => 'orphan'), 0::bigint, 'and then there is nothing');

-- reports

SELECT evbus.discard(reason => 'begin anew') AS n \gset
DELETE FROM evbus.retry;
CALL bury('orders', 'a', 'order.created', 'm1', 3);
CALL bury('orders', 'a', 'order.changed', 'm2', 2);
CALL bury('bills', 'c', 'invoice.sent', 'm3', 1);
SELECT ok(counts_agree(), 'the counts agree with what is there');
SELECT becomes('SELECT count(*)::text FROM evbus.dead_letter_delta', '0', 'the maintainer folds what was counted');
SELECT ok(counts_agree(), 'and they still agree');
SELECT is(evbus.redrive(types => '{order.created}', max_events => 2), 2::bigint, 'two are redriven');
SELECT results_eq($$SELECT subscription, type, sum(died) >= sum(dead_letters), sum(dead_letters)::bigint FROM evbus.dead_letter_trend WHERE type IN ('order.created', 'order.changed') GROUP BY 1, 2 ORDER BY 2$$,
	$$VALUES ('a', 'order.changed', true, 2::bigint), ('a', 'order.created', true, 1)$$, 'dead_letter_trend tells how many are left');
SELECT is((SELECT sum(died) FROM evbus.dead_letter_trend WHERE type = 'order.changed'), 2::numeric, 'and how many there were');
SELECT results_eq($$SELECT DISTINCT hour BETWEEN date_trunc('hour', now() - interval '1 hour', 'UTC') AND now() FROM evbus.dead_letter_trend$$, 'VALUES (true)', 'by the hour');
SELECT results_eq($$SELECT subscription, type, dead_letters, last_message FROM evbus.dead_letter_summary ORDER BY 2$$,
	$$VALUES ('c', 'invoice.sent', 1::bigint, 'm3'), ('a', 'order.changed', 2, 'm2'), ('a', 'order.created', 1, 'm1')$$, 'dead_letter_summary counts what is left, with the newest message');
SELECT results_eq($$SELECT bus, subscription, sqlstate, reason, dead_letters, types, last_message FROM evbus.dead_letter_top('1 hour') WHERE subscription = 'a'$$,
	$$VALUES ('orders', 'a', 'VB000', 'rejected', 3::bigint, (SELECT count(DISTINCT type) FROM evbus.dead_letter_trend WHERE subscription = 'a'), 'm2')$$, 'dead_letter_top sums up the types');
SELECT is((SELECT string_agg(subscription, ' ') FROM evbus.dead_letter_top(max_rows => 1)), 'a', 'the worst first, so many rows');
BEGIN;
SELECT evbus.discard(reason => 'undone') AS n \gset
SELECT is_empty('SELECT 1 FROM evbus.dead_letter_summary', 'the reports show what the transaction did');
ROLLBACK;
SELECT is((SELECT sum(dead_letters) FROM evbus.dead_letter_summary), 4::numeric, 'and a rollback undoes it');

-- the reports look at no more than counts and the ends of each group, by index

CREATE FUNCTION plan_of(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$BEGIN RETURN QUERY EXECUTE 'EXPLAIN (COSTS OFF) ' || query; END$$;
SET enable_seqscan = off;
SELECT is_empty($$SELECT p FROM plan_of('SELECT * FROM evbus.dead_letter_summary') AS p WHERE p ~ 'Seq Scan on dead_letter_p'$$, 'dead_letter_summary scans no dead letters');
SELECT isnt_empty($$SELECT p FROM plan_of('SELECT * FROM evbus.dead_letter_summary') AS p WHERE p ~ 'Index Scan.* on dead_letter_p'$$, 'but looks them up by index');
SELECT is_empty($$SELECT p FROM plan_of('SELECT * FROM evbus.dead_letter_trend') AS p WHERE p ~ 'dead_letter_(p|log)'$$, 'dead_letter_trend does not even that');
RESET enable_seqscan;

-- JSON lines: the form that README and guide give

CALL bury('orders', 'a', 'json', E'quote " backslash \\ tab \t é');
SELECT format('COPY (SELECT row_to_json(d) FROM evbus.dead_letter d ORDER BY d.dead_letter_id) TO %L WITH (FORMAT csv, QUOTE E''\x01'', DELIMITER E''\x02'')', current_setting('data_directory') || '/evbus_export') AS copy \gset
:copy;
CREATE TABLE line AS SELECT l, n FROM regexp_split_to_table(rtrim(pg_read_file('evbus_export'), E'\n'), E'\n') WITH ORDINALITY AS x (l, n);
SELECT is((SELECT count(*) FROM line), (SELECT count(*) FROM evbus.dead_letter), 'an export through COPY has a line for each dead letter');
SELECT results_eq('SELECT l::jsonb FROM line ORDER BY n', 'SELECT to_jsonb(d) FROM evbus.dead_letter d ORDER BY d.dead_letter_id', 'and each is the JSON of it, whatever is in it');

-- at a pace

SELECT evbus.discard(reason => 'begin anew') AS n \gset
DELETE FROM evbus.retry;
SELECT evbus.seek('a', 'now') AS position \gset
CALL bury('orders', 'a', 'paced', 'e', 300);
SELECT clock_timestamp() AS begun \gset
SELECT evbus.redrive(subscription => 'a', rate => 200) AS job \gset
SELECT results_eq(format('SELECT state, subscription, rate, total, role::text, login FROM evbus.redrive_list WHERE job = %s', :job), $$VALUES ('running', 'a', 200, 300::bigint, 'postgres', 'postgres')$$, 'a redrive with a rate is a job');
SELECT becomes(format($$SELECT state || ' ' || done FROM evbus.redrive_list WHERE job = %s$$, :job), 'done 300', 'which is done after a while');
SELECT ok(finished_at - created_at BETWEEN interval '1.4 seconds' AND interval '15 seconds', 'not faster than its rate: ' || (finished_at - created_at)) FROM evbus.redrive_list WHERE job = :job;
SELECT results_eq('SELECT count(*), count(DISTINCT event_id), min(redrives) FROM evbus.retry_list', 'VALUES (300::bigint, 300::bigint, 1)', 'everything was redriven once');
SELECT is((SELECT count(*) FROM take('a', 300)), 300::bigint, 'and is delivered');
SELECT is(evbus.cancel_redrive(:job), false, 'a job that has ended cannot be cancelled');

SELECT * FROM finish();
