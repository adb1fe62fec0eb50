-- What the chaos checker needs in its database: two buses, every kind of subscription, and plain tables that show
-- what handlers and clients did.  None of them has a unique key, so whatever happens twice is there twice.
-- witness has one row for each transaction of a publisher, written by that very transaction: when a client loses its
-- connection during COMMIT, this row tells afterwards what came of it, without asking evbus.

CREATE EXTENSION evbus;
CREATE ROLE publisher LOGIN SUPERUSER;	-- so that ps tells their backends apart
CREATE ROLE consumer LOGIN SUPERUSER;
CREATE SCHEMA chaos;

CREATE TABLE chaos.witness (client integer NOT NULL, txn integer NOT NULL);

-- Event n of a client: its bus, type and key follow from n (model.py says the same).
CREATE FUNCTION chaos.put(client integer, first integer, last integer, pad text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	FOR n IN first .. last LOOP
		PERFORM evbus.publish(CASE WHEN n % 7 = 0 THEN 'side' ELSE 'main' END, CASE WHEN n % 5 = 0 THEN 'b.x' ELSE 'a.x' END,
							  jsonb_build_object('c', client, 'n', n, 'pad', pad), key => client || ':' || n % 3);
	END LOOP;
END $$;

CREATE FUNCTION chaos.put_batch(client integer, first integer, last integer, pad text) RETURNS void LANGUAGE sql AS $$
	SELECT evbus.publish_batch(bus, array_agg(type ORDER BY n), array_agg(payload ORDER BY n), array_agg(key ORDER BY n))
	FROM (SELECT n, CASE WHEN n % 7 = 0 THEN 'side' ELSE 'main' END AS bus, CASE WHEN n % 5 = 0 THEN 'b.x' ELSE 'a.x' END AS type,
				 jsonb_build_object('c', client, 'n', n, 'pad', pad) AS payload, client || ':' || n % 3 AS key
		  FROM generate_series(first, last) AS n) AS event
	GROUP BY bus
$$;

-- One table of effects for each subscription; serial tells the order of the calls.
CREATE TABLE chaos.effect (serial bigint NOT NULL, event_id bigint, c integer, n integer, position bigint, attempt integer);
DO $$
DECLARE
	name text;
BEGIN
	FOREACH name IN ARRAY '{each,batch,ordered,typed,side,one}'::text[] LOOP
		EXECUTE format('CREATE TABLE chaos.effect_%s (LIKE chaos.effect)', name);
		EXECUTE format('CREATE SEQUENCE chaos.serial_%s', name);
		EXECUTE format('ALTER TABLE chaos.effect_%s ALTER serial SET DEFAULT nextval(%L)', name, 'chaos.serial_' || name);
		EXECUTE format('CREATE INDEX ON chaos.effect_%s (serial)', name);
		EXECUTE format($f$
			CREATE FUNCTION chaos.%1$s(events evbus.event[]) RETURNS void LANGUAGE plpgsql AS $b$
			BEGIN
				INSERT INTO chaos.effect_%1$s (event_id, c, n, position, attempt)
				SELECT e.event_id, (e.payload->>'c')::integer, (e.payload->>'n')::integer, e.position, e.attempt
				FROM unnest(events) WITH ORDINALITY AS e ORDER BY e.ordinality;
			END $b$ $f$, name);
		EXECUTE format($f$
			CREATE FUNCTION chaos.%1$s(e evbus.event) RETURNS void LANGUAGE plpgsql AS $b$
			BEGIN
				INSERT INTO chaos.effect_%1$s (event_id, c, n, position, attempt)
				VALUES (e.event_id, (e.payload->>'c')::integer, (e.payload->>'n')::integer, e.position, e.attempt);
			END $b$ $f$, name);
	END LOOP;
END $$;

-- The handler that fails: effect first, so that it has to be undone.
CREATE FUNCTION chaos.flaky(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	n integer := e.payload->>'n';
BEGIN
	PERFORM chaos.each(e);
	IF n % 1009 = 0 THEN
		RAISE EXCEPTION 'poison' USING ERRCODE = 'data_exception';
	ELSIF n % 1499 = 0 THEN
		RAISE EXCEPTION 'hopeless';
	ELSIF n % 4001 = 0 THEN
		PERFORM pg_terminate_backend(pg_backend_pid());	-- ends its worker
		PERFORM pg_sleep(1);
	ELSIF random() < 0.003 THEN
		RAISE EXCEPTION 'flaky';
	END IF;
END $$;

-- And one that fails at commit.
CREATE FUNCTION chaos.at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'at commit';
END $$;
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON chaos.effect_each DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW WHEN (NEW.n % 997 = 0 AND NEW.attempt = 1) EXECUTE FUNCTION chaos.at_commit();

SELECT evbus.create_bus('main');
SELECT evbus.create_bus('side', retention => '2 days', partition_interval => '1 hour');
SELECT evbus.subscribe('main', 'each', handler => 'chaos.flaky(evbus.event)', concurrency => 3, batch_size => 50,
					   max_attempts => 4, backoff_initial => '20 ms');
SELECT evbus.subscribe('main', 'batch', handler => 'chaos.batch(evbus.event[])', concurrency => 2, max_attempts => 100, backoff_initial => '20 ms');
SELECT evbus.subscribe('main', 'ordered', handler => 'chaos.ordered(evbus.event[])', max_attempts => 100, backoff_initial => '20 ms');
SELECT evbus.subscribe('main', 'typed', types => '{b.*}', handler => 'chaos.typed(evbus.event)', max_attempts => 100, backoff_initial => '20 ms');
SELECT evbus.subscribe('side', 'side', handler => 'chaos.side(evbus.event[])', max_attempts => 100, backoff_initial => '20 ms');
SELECT evbus.subscribe('main', 'one', max_attempts => 20, backoff_initial => '20 ms', lease => '3 seconds');
SELECT evbus.subscribe('main', 'two', max_attempts => 20, backoff_initial => '20 ms', lease => '1 second');
