-- A worker that sleeps hears at once of what is changed: the half second after which it looks by itself would show in the median.
\ir include/helpers.sql
SELECT plan(3);

CREATE TABLE got (at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION note(e evbus.event) RETURNS void LANGUAGE sql AS 'INSERT INTO got DEFAULT VALUES';
SELECT evbus.create_bus('b');
SELECT evbus.subscribe('b', 's', handler => 'note(evbus.event)') AS position \gset
SELECT evbus.publish('b', 'a', '1') AS id \gset
SELECT becomes('SELECT count(*)::text FROM got', '1', 'the handler works');

CREATE TABLE delay (act text, ms double precision);
CREATE PROCEDURE measure(act text) LANGUAGE plpgsql AS $$
DECLARE
	begun timestamptz;
BEGIN
	FOR i IN 1 .. 9 LOOP
		IF act = 'resume' THEN
			PERFORM evbus.pause('s');
			COMMIT;
			PERFORM evbus.publish('b', 'a', '1');
			COMMIT;
		END IF;
		PERFORM pg_sleep(0.1 + random() * 0.1);
		DELETE FROM got;
		begun := clock_timestamp();
		IF act = 'resume' THEN
			PERFORM evbus.resume('s');
		ELSE
			PERFORM evbus.seek('s', 'beginning');
		END IF;
		COMMIT;
		PERFORM poll('SELECT (count(*) > 0)::text FROM got', 'true');
		INSERT INTO delay SELECT act, extract(epoch FROM min(at) - begun) * 1000 FROM got;
		COMMIT;
	END LOOP;
END $$;
CALL measure('seek');
CALL measure('resume');
SELECT cmp_ok(percentile_disc(0.5) WITHIN GROUP (ORDER BY ms), '<', 100::double precision, 'of a ' || act || ', in milliseconds')
FROM delay GROUP BY act ORDER BY act;

SELECT * FROM finish();
