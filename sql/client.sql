-- What a client reads when it receives or settles what it cannot.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS evbus;
RESET client_min_messages;

SELECT evbus.create_bus('regress client');
CREATE FUNCTION regress_one(evbus.event) RETURNS void LANGUAGE sql AS '';
-- The error of a statement, without the id in it.
CREATE FUNCTION regress_error(statement text, OUT message text, OUT detail text, OUT hint text) LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	message := regexp_replace(message, '\d{6,}', 'N');
END $$;
SELECT evbus.subscribe('regress client', 'regress reader') IS NOT NULL AS ok;
SELECT evbus.subscribe('regress client', 'regress handler', handler => 'regress_one(evbus.event)') IS NOT NULL AS ok;

-- a delivery
SELECT evbus.publish('regress client', 'order.created', '{"n": 1}', key => 'k', headers => '{"h": 1}') > 0 AS ok;
SELECT receipt, bus, type, key, payload, headers, attempt, lease_until > clock_timestamp() AS lease_ok FROM evbus.receive('regress reader', wait => '10 seconds') \gset
\echo :bus :type :key :payload :headers :attempt :lease_ok
SELECT evbus.ack(ARRAY[:'receipt']);

-- receipts that are no good: a warning
SELECT evbus.ack(ARRAY[:'receipt']);
SELECT evbus.nack(ARRAY[:'receipt']);
SELECT evbus.reject(ARRAY[:'receipt']);
SELECT evbus.extend(ARRAY[:'receipt'], '1 minute');
SELECT evbus.release(ARRAY[:'receipt']);
SELECT evbus.ack(ARRAY[:'receipt', :'receipt']);

SELECT count(*) FROM evbus.receive('regress reader', ack => ARRAY[:'receipt', :'receipt']);
BEGIN READ ONLY;
SELECT count(*) FROM evbus.receive('regress reader', ack => ARRAY[:'receipt']);
ROLLBACK;

-- texts that are no receipts: an error
SELECT evbus.ack('{nonsense}');
SELECT evbus.ack('{""}');
SELECT evbus.ack('{NULL}');
SELECT evbus.ack(NULL);
SELECT evbus.ack('{{a},{b}}');
SELECT evbus.ack('{}');

-- stale in the transaction of its receive: an error
SELECT evbus.publish('regress client', 'order.created', '{"n": 2}') > 0 AS ok;
BEGIN;
SELECT receipt FROM evbus.receive('regress reader', wait => '10 seconds') \gset
SELECT evbus.seek('regress reader', 'now') IS NOT NULL AS ok;
SELECT * FROM regress_error(format('SELECT evbus.ack(ARRAY[%L])', :'receipt')) \gx
ROLLBACK;

-- arguments
SELECT * FROM evbus.receive('no such subscription');
SELECT * FROM evbus.receive(NULL);
SELECT * FROM evbus.receive('regress handler');
SELECT * FROM evbus.receive('regress reader', 0);
SELECT * FROM evbus.receive('regress reader', 10001);
SELECT * FROM evbus.receive('regress reader', lease => '0');
SELECT * FROM evbus.receive('regress reader', lease => '300000 years');
SELECT * FROM evbus.receive('regress reader', wait => '-1 second');
SELECT * FROM evbus.receive('regress reader', wait => '1 hour');
SELECT * FROM evbus.receive('regress reader', ack => '{nonsense}');
SELECT * FROM evbus.receive('regress reader', ack => '{NULL}');
SELECT evbus.nack('{}', delay => '-1 second');
SELECT evbus.extend('{}', '-1 second');
CALL evbus.wait('no such subscription');
CALL evbus.wait('regress handler');
CALL evbus.wait('regress reader', '-1 second');

-- dead letters
SELECT evbus.redrive('{NULL}'::bigint[]);
SELECT evbus.redrive(subscription => 'no such subscription');
SELECT evbus.redrive(bus => 'no such bus');
SELECT evbus.redrive(sqlstate => 'nonsense');
SELECT evbus.redrive(max_events => 0);
SELECT evbus.discard(max_events => -1, reason => 'x');
SELECT evbus.discard();
SELECT evbus.redrive(dead_after => '2026-01-02', dead_before => '2026-01-01');
SELECT evbus.redrive(rate => 0);
SELECT evbus.cancel_redrive(0);
SELECT evbus.edit_dead_letter(1, '1', 'x');
SELECT evbus.edit_dead_letter(1, '1', ' ');
SELECT evbus.schedule_maintenance(NULL);
SELECT evbus.schedule_maintenance();

SELECT evbus.drop_bus('regress client', force => true);
DROP FUNCTION regress_one, regress_error;
