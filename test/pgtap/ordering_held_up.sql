-- What waits in order must neither wait for ever nor keep others waiting: after changes of the order, seeks, full
-- batches, and rows that vanish.
\ir include/helpers.sql
SELECT plan(15);

CREATE TABLE kept (type text, receipt text);
CREATE FUNCTION got(subscription text, n integer DEFAULT 10, lease interval DEFAULT NULL) RETURNS text LANGUAGE sql AS $$
	WITH d AS (SELECT * FROM evbus.receive(got.subscription, n, got.lease) WITH ORDINALITY),
		 k AS (INSERT INTO kept SELECT type, receipt FROM d)
	SELECT coalesce(string_agg(type, ' ' ORDER BY ordinality), 'nothing') FROM d
$$;
CREATE FUNCTION of(VARIADIC t text[]) RETURNS text[] LANGUAGE sql AS $$ WITH k AS (DELETE FROM kept WHERE type = ANY (t) RETURNING receipt) SELECT array_agg(receipt) FROM k $$;
-- Publishes type.key for each word and waits until all can be received.
CREATE PROCEDURE fresh(bus text, VARIADIC words text[]) LANGUAGE plpgsql AS $$
DECLARE
	next bigint := (SELECT max(next_position) FROM evbus.subscription_lag WHERE subscription = fresh.bus);
BEGIN
	PERFORM evbus.publish(bus, w, '1', key => split_part(w, '.', 1)) FROM unnest(words) AS w;
	COMMIT;
	PERFORM poll(format('SELECT next_position::text FROM evbus.subscription_lag WHERE subscription = %L', bus), (next + cardinality(words))::text);
END $$;

-- a batch that is full until one of it turns out to wait

SELECT evbus.create_bus('full');
SELECT evbus.subscribe('full', 'full', ordering => 'key') AS p \gset
CALL fresh('full', 'a.1');
SELECT is(got('full'), 'a.1', 'one of a key');
SELECT is(evbus.nack(of('a.1'), delay => '1 hour'), 1, 'fails');
CALL fresh('full', 'a.2', 'b.1', 'c.1', 'd.1');
SET statement_timeout = '10s';
SELECT is(got('full', 2), 'b.1 c.1', 'a batch is filled up by others, in place of those that wait for it');
RESET statement_timeout;

-- the blocking row is deleted by hand, after its lease ran out

SELECT evbus.create_bus('gone');
SELECT evbus.subscribe('gone', 'gone', ordering => 'key') AS p \gset
CALL fresh('gone', 'e.1', 'e.2');
SELECT is(got('gone'), 'e.1', 'one of a key');
SELECT is(evbus.nack(of('e.1'), delay => '0'), 1, 'fails');
SELECT is(poll($$SELECT got('gone', lease => '1 second')$$, 'e.1'), 'e.1', 'is tried again');
SELECT is(poll($$SELECT in_flight::text FROM evbus.subscription_lag WHERE subscription = 'gone'$$, '0'), '0', 'its lease runs out');
DELETE FROM evbus.retry;
SELECT is(poll($$SELECT got('gone')$$, 'e.2'), 'e.2', 'and its row vanishes: the next one comes');

-- a seek back, with rows that are put behind a failed one

SELECT evbus.create_bus('back');
SELECT evbus.subscribe('back', 'back', ordering => 'key') AS p \gset
CALL fresh('back', 'f.0');
SELECT is(got('back'), 'f.0', 'one of a key');
SELECT is(evbus.nack(of('f.0'), delay => '1 hour'), 1, 'fails');
DO $$BEGIN PERFORM evbus.publish_batch('back', array_agg('f.' || i ORDER BY i), array_agg('1'::jsonb), keys => array_agg('f'::text)) FROM generate_series(1, 2500) i; END$$;
SELECT is(poll($$SELECT CASE WHEN got('back') = 'nothing' THEN (SELECT (held_up >= 450)::text FROM evbus.subscription_lag WHERE subscription = 'back') END$$, 'true'), 'true', 'what follows is put behind');
SELECT evbus.seek('back', 'beginning') AS p \gset
SELECT is(got('back'), 'f.0', 'after a seek back it begins with the first');
SELECT is(evbus.ack(of('f.0')), 1, 'acked');
CALL fresh('back', 'g.1');
SELECT is(poll($$SELECT CASE WHEN got('back') LIKE '%g.1%' THEN 'g.1' END$$, 'g.1'), 'g.1', 'what is among the retries already keeps no other key waiting');

-- the order goes off while all wait for a failure

CREATE TABLE effect (type text);
CREATE FUNCTION off(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$ BEGIN IF e.type = 'h.1' THEN RAISE 'no'; END IF; INSERT INTO effect VALUES (e.type); END $$;
SELECT evbus.create_bus('off');
SELECT evbus.subscribe('off', 'off', ordering => 'strict', handler => 'off(evbus.event)', backoff_initial => '1 hour', backoff_max => '2 hours') AS p \gset
CALL fresh('off', 'h.1', 'h.2', 'i.1');
SELECT poll($$SELECT retries::text FROM evbus.subscription_lag WHERE subscription = 'off'$$, '1') AS p \gset
SELECT poll($$SELECT workers::text FROM evbus.subscription_lag WHERE subscription = 'off'$$, '0') AS p \gset
SELECT evbus.alter_subscription('off', ordering => 'none');
SELECT becomes('SELECT count(*)::text FROM effect', '2', 'without order nothing waits for it');
SELECT * FROM finish();
