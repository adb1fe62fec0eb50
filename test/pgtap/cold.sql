-- What is in the log and no longer in the ring: found through ticks, of several buses in turn, backwards and in the middle.
-- Events of prepared transactions never go through the ring, so theirs is the same way.
\ir include/helpers.sql
SELECT plan(13);

SELECT evbus.create_bus(bus) FROM unnest('{left,right}'::text[]) AS bus;
SELECT evbus.subscribe('left', 'left reader') AS position, evbus.subscribe('right', 'right reader') AS position \gset
CREATE TABLE expected (bus text, n integer GENERATED ALWAYS AS IDENTITY, id bigint);

-- five ticks of three events on each bus, in turn
CREATE PROCEDURE publish_three(bus text) LANGUAGE sql AS $$
	INSERT INTO expected (bus, id) SELECT bus, evbus.publish(bus, 'e', to_jsonb(i)) FROM generate_series(1, 3) AS i;
$$;
-- Until that has its tick, for two at once may share one.
CREATE PROCEDURE ticked() LANGUAGE sql AS $$ SELECT poll('SELECT count(*)::text FROM evbus.late', '0') $$;
\set QUIET 1
SELECT string_agg(format('BEGIN; CALL publish_three(%L); PREPARE TRANSACTION %L; COMMIT PREPARED %2$L; CALL ticked();', bus, 'cold ' || bus || i), ' ') AS script
FROM generate_series(1, 5) AS i, unnest('{left,right}'::text[]) AS bus \gset
:script
SELECT becomes($$SELECT string_agg(lag::text, ' ') FROM evbus.subscription_lag$$, '15 15', 'fifteen events wait on each bus');
SELECT cmp_ok((SELECT count(*) FROM evbus.tick WHERE n > 0), '>=', 10::bigint, 'with a tick for each commit');

CREATE TABLE got (bus text, n integer GENERATED ALWAYS AS IDENTITY, id bigint, position bigint, receipt text);
-- Takes n from one bus.
CREATE PROCEDURE take_from(bus text, n integer) LANGUAGE sql AS $$
	INSERT INTO got (bus, id, position, receipt) SELECT d.bus, d.event_id, d.position, d.receipt FROM evbus.receive(bus || ' reader', n) AS d ORDER BY d.position;
$$;
CREATE FUNCTION wrong() RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FROM (SELECT bus, id, row_number() OVER (PARTITION BY bus ORDER BY n) AS at FROM got) AS g
	FULL JOIN (SELECT bus, id, row_number() OVER (PARTITION BY bus ORDER BY n) AS at FROM expected) AS e USING (bus, at)
	WHERE g.id IS DISTINCT FROM e.id AND g.id IS NOT NULL;
$$;

-- one at a time, from both in turn, by the same session
SELECT string_agg('CALL take_from(''left'', 1); CALL take_from(''right'', 1);', ' ') AS script FROM generate_series(1, 5) \gset
:script
SELECT is((SELECT count(*) FROM got), 10::bigint, 'one at a time, from two buses in turn, the first five of each come');
SELECT is(wrong(), 0::bigint, 'each bus has its own events, in order');
CALL take_from('left', 7);
CALL take_from('right', 100);
CALL take_from('left', 100);
SELECT is((SELECT count(*) FROM got), 30::bigint, 'then the rest, over several ticks, beginning in the middle of one');
SELECT is(wrong(), 0::bigint, 'in order, too');
SELECT results_eq($$SELECT bus, min(position), max(position), count(DISTINCT position) FROM got GROUP BY bus ORDER BY bus$$,
	$$VALUES ('left', 1::bigint, 15::bigint, 15::bigint), ('right', 1, 15, 15)$$, 'without a hole');
SELECT is(evbus.ack(array_agg(receipt)), 30, 'all of them can be acked') FROM got;

-- backwards, and from the middle
TRUNCATE got;
SELECT is(evbus.seek('left reader', '2'), 2::bigint, 'back to a position in the middle of the first tick');
CALL take_from('left', 3);
SELECT results_eq('SELECT position, id FROM got ORDER BY n', $$SELECT n, id FROM (SELECT row_number() OVER (ORDER BY n) AS n, id FROM expected WHERE bus = 'left') AS e WHERE n BETWEEN 2 AND 4$$,
	'it and what follows comes again');
SELECT is(evbus.seek('left reader', '14'), 14::bigint, 'forward to the last tick');
CALL take_from('left', 100);
SELECT is((SELECT string_agg(position::text, ' ' ORDER BY n) FROM got), '2 3 4 14 15', 'its end');
SELECT is_empty($$SELECT * FROM evbus.receive('left reader')$$, 'and no more');

SELECT * FROM finish();
