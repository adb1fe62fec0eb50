-- A handler that wants few events of a long backlog: what was found does not wait until all the rest has been looked at, and
-- no transaction, nor the turn of other subscriptions, lasts for as long as that takes.
\ir include/helpers.sql
SELECT plan(6);

SELECT evbus.create_bus('log');
CREATE TABLE called (n integer GENERATED ALWAYS AS IDENTITY, position bigint, in_hand bigint, xact timestamptz);
CREATE FUNCTION note(events evbus.event[]) RETURNS void LANGUAGE sql AS $$
	INSERT INTO called (position, in_hand, xact)
		SELECT e.position, l.in_flight, now() FROM unnest($1) AS e, evbus.subscription_lag AS l WHERE l.subscription = 'rare';
$$;
SELECT evbus.subscribe('log', 'rare', types => '{rare}', handler => 'note(evbus.event[])', batch_size => 100) AS position,
	evbus.subscribe('log', 'none', types => '{none}', handler => 'note(evbus.event[])', batch_size => 100) AS position \gset
\set QUIET 1
SELECT evbus.pause(s) FROM unnest('{rare,none}'::text[]) AS s \g /dev/null
SELECT evbus.publish('log', 'rare', '1') \g /dev/null
SELECT count(*) FROM generate_series(1, 15) AS i, evbus.publish_batch('log', '{usual}', array_fill(to_jsonb(i), ARRAY[10000])) \g /dev/null
SELECT evbus.publish('log', 'rare', '2') \g /dev/null
SELECT becomes($$SELECT string_agg(lag::text, ' ') FROM evbus.subscription_lag$$, '150002 150002', 'much lies before both of them');
SELECT evbus.resume(s) FROM unnest('{rare,none}'::text[]) AS s \g /dev/null
SELECT becomes($$SELECT string_agg(lag::text, ' ') FROM evbus.subscription_lag$$, '0 0', 'they come to its end');
SELECT is((SELECT string_agg(position::text, ' ' ORDER BY n) FROM called), '1 150002', 'whoever wants two gets two');
SELECT cmp_ok((SELECT in_hand FROM called WHERE position = 1), '>', 1000::bigint, 'the first is not handled all alone');
SELECT cmp_ok((SELECT in_hand FROM called WHERE position = 1), '<=', 110000::bigint, 'but before the rest has been looked at');
SELECT is((SELECT count(DISTINCT xact) FROM called), 2::bigint, 'in a transaction of its own');

SELECT * FROM finish();
