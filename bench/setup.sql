-- What bench/run needs in the database of evbus: the plain table, handlers, and the loops they are compared with.
CREATE EXTENSION evbus;
CREATE SCHEMA bench;

-- The columns of evbus.event_log, with jsonb in place of coded bytes.
CREATE TABLE bench.plain (
	event_id bigint PRIMARY KEY, storage_class int NOT NULL, bus_id int NOT NULL,
	type text NOT NULL, key text, headers jsonb, payload jsonb NOT NULL
);

SELECT evbus.create_bus(bus) FROM unnest('{quiet, watched}'::text[]) bus;
SELECT evbus.subscribe('watched', 'watcher', notify => false);

CREATE FUNCTION bench.note_commit(sent bigint, file text) RETURNS void LANGUAGE c AS :'module', 'note_commit';

-- Handlers that do nothing, so that the bus is measured.
CREATE FUNCTION bench.single(event evbus.event) RETURNS void LANGUAGE plpgsql AS
	'BEGIN NULL; END';
CREATE FUNCTION bench.batches(events evbus.event[]) RETURNS void LANGUAGE plpgsql AS
	'BEGIN PERFORM cardinality(events); END';

-- One that tells whether each event came, and came once.
CREATE TABLE bench.counter (events bigint NOT NULL, positions numeric NOT NULL);
INSERT INTO bench.counter VALUES (0, 0);
CREATE FUNCTION bench.counted(events evbus.event[]) RETURNS void LANGUAGE sql AS $$
	UPDATE bench.counter SET events = counter.events + cardinality($1), positions = positions + (SELECT sum(position) FROM unnest($1))
$$;

-- The same functions called over the rows of bench.plain, ids 1 to n, a thousand in a transaction.
CREATE PROCEDURE bench.loop_single(n bigint) LANGUAGE plpgsql AS $$
DECLARE
	event evbus.event;
BEGIN
	FOR low IN 1 .. n BY 1000 LOOP
		FOR event IN
			SELECT event_id, 'handled', type, key, payload, headers, now(), event_id, 1
			FROM bench.plain WHERE event_id BETWEEN low AND low + 999 ORDER BY event_id
		LOOP
			PERFORM bench.single(event);
		END LOOP;
		COMMIT;
	END LOOP;
END $$;

CREATE PROCEDURE bench.loop_batches(n bigint) LANGUAGE plpgsql AS $$
DECLARE
	events evbus.event[];
BEGIN
	FOR low IN 1 .. n BY 1000 LOOP
		SELECT array_agg(ROW(event_id, 'handled', type, key, payload, headers, now(), event_id, 1, false)::evbus.event ORDER BY event_id)
			INTO events FROM bench.plain WHERE event_id BETWEEN low AND low + 999;
		PERFORM bench.batches(events);
		COMMIT;
	END LOOP;
END $$;

CREATE FUNCTION bench.select_single(n bigint) RETURNS bigint LANGUAGE sql AS $$
	SELECT count(bench.single(ROW(event_id, 'handled', type, key, payload, headers, now(), event_id, 1, false)::evbus.event)::text)
	FROM bench.plain WHERE event_id BETWEEN 1 AND n
$$;
