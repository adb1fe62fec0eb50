-- Quotas of dead letters, what happens when one is full, and dead letters as lines of JSON.
\ir include/helpers.sql
SELECT plan(32);

SELECT evbus.create_bus('orders');
SELECT evbus.subscribe('orders', 'free') AS p1, evbus.subscribe('orders', 'pausing', max_dead_letters => 3) AS p2,
	evbus.subscribe('orders', 'dropping', max_dead_letters => 3, dead_letters_full => 'drop_oldest') AS p3 \gset

/* Publish n events, and let a subscription reject n. */
CREATE FUNCTION kill(subscription text, n integer, type text) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
	PERFORM evbus.reject(ARRAY[receipt], 'dead ' || d.type) FROM take(kill.subscription, n) d;
	RETURN n;
END $$;
CREATE FUNCTION publish(n integer, prefix text) RETURNS bigint LANGUAGE sql AS $$SELECT count(evbus.publish('orders', prefix || i, to_jsonb(i))) FROM generate_series(1, n) i$$;

-- settings

SELECT results_eq('SELECT subscription, max_dead_letters, dead_letters_full FROM evbus.subscription_list ORDER BY subscription', $$VALUES ('dropping', 3, 'drop_oldest'), ('free', NULL, NULL), ('pausing', 3, 'pause')$$,
	'subscription_list tells the quota; pause is what happens if nothing is said');
SELECT results_eq('SELECT subscription, bus, max_dead_letters, dead_letters_full, dead_letters, dropped, full_since, last_dropped_at FROM evbus.dead_letter_quota ORDER BY subscription',
	$$VALUES ('dropping', 'orders', 3, 'drop_oldest', 0::bigint, 0::bigint, NULL::timestamptz, NULL::timestamptz), ('pausing', 'orders', 3, 'pause', 0, 0, NULL, NULL)$$, 'dead_letter_quota has a row for each that has one');
SELECT evbus.alter_subscription('free', max_dead_letters => 7);
SELECT evbus.alter_subscription('free', batch_size => 7);
SELECT is((SELECT max_dead_letters FROM evbus.subscription_list WHERE subscription = 'free'), 7, 'a quota can be given later, and NULL keeps it');
SELECT evbus.alter_subscription('free', max_dead_letters => 0);
SELECT is((SELECT max_dead_letters FROM evbus.subscription_list WHERE subscription = 'free'), NULL, '0 takes it away');

-- pause

SELECT publish(8, 'a') AS n \gset
SELECT kill('free', 8, 'a') AS n \gset
SELECT kill('pausing', 2, 'a') AS n \gset
SELECT is((SELECT dead_letters FROM evbus.dead_letter_quota WHERE subscription = 'pausing'), 2::bigint, 'two of three');
SELECT is((SELECT paused FROM evbus.subscription_list WHERE subscription = 'pausing'), false, 'it is not paused yet');
SELECT kill('pausing', 1, 'a') AS n \gset
SELECT becomes($$SELECT paused::text FROM evbus.subscription_list WHERE subscription = 'pausing'$$, 'true', 'the third pauses it');
SELECT is((SELECT paused_reason FROM evbus.subscription_lag WHERE subscription = 'pausing'), 'there are 3 dead letters, and max_dead_letters is 3', 'with the reason');
SELECT is_empty($$SELECT * FROM evbus.receive('pausing')$$, 'so no fourth can die');
SELECT isnt((SELECT full_since FROM evbus.dead_letter_quota WHERE subscription = 'pausing'), NULL, 'the view says since when it is full');
SELECT is((SELECT dropped FROM evbus.dead_letter_quota WHERE subscription = 'pausing'), 0::bigint, 'and that nothing was dropped');
SELECT evbus.resume('pausing');
SELECT becomes($$SELECT paused::text FROM evbus.subscription_list WHERE subscription = 'pausing'$$, 'true', 'resumed without room it is paused again');
SELECT is(evbus.discard(subscription => 'pausing', reason => 'room'), 3::bigint, 'once there is room');
SELECT becomes($$SELECT full_since::text FROM evbus.dead_letter_quota WHERE subscription = 'pausing'$$, NULL, 'it is no longer full');
SELECT evbus.resume('pausing');
SELECT is(count(*), 5::bigint, 'and goes on with what it had left') FROM take('pausing', 5);
SELECT is((SELECT paused FROM evbus.subscription_list WHERE subscription = 'pausing'), false, 'and is not paused');

-- drop_oldest

SELECT kill('dropping', 5, 'a') AS n \gset
SELECT becomes($$SELECT string_agg(type, ' ' ORDER BY type) FROM evbus.dead_letter WHERE subscription = 'dropping'$$, 'a3 a4 a5', 'the oldest are dropped, so many as are too many');
SELECT results_eq($$SELECT dead_letters, dropped, full_since IS NOT NULL, last_dropped_at IS NOT NULL FROM evbus.dead_letter_quota WHERE subscription = 'dropping'$$, $$VALUES (3::bigint, 2::bigint, true, true)$$, 'counted in the view');
SELECT is((SELECT paused FROM evbus.subscription_list WHERE subscription = 'dropping'), false, 'and it goes on');
SELECT is((SELECT sum(dead_letters) FROM evbus.dead_letter_trend WHERE subscription = 'dropping'), 3::numeric, 'reports count what is left');
SELECT is((SELECT sum(died) FROM evbus.dead_letter_trend WHERE subscription = 'dropping'), 5::numeric, 'and what died');
SELECT kill('dropping', 3, 'a') AS n \gset
SELECT becomes($$SELECT dropped::text FROM evbus.dead_letter_quota WHERE subscription = 'dropping'$$, '5', 'also the next time');
SELECT is((SELECT count(*) FROM evbus.dead_letter WHERE subscription = 'free'), 8::bigint, 'those of others are left alone');
SELECT evbus.alter_subscription('dropping', max_dead_letters => 1);
SELECT becomes($$SELECT string_agg(type, ' ' ORDER BY type) FROM evbus.dead_letter WHERE subscription = 'dropping'$$, 'a8', 'a smaller quota holds at once');

-- a subscription of the same name is another one

SELECT evbus.unsubscribe('dropping');
SELECT evbus.subscribe('orders', 'dropping', max_dead_letters => 1, dead_letters_full => 'drop_oldest') AS p \gset
SELECT is((SELECT dead_letters FROM evbus.dead_letter_quota WHERE subscription = 'dropping'), 0::bigint, 'what a dropped subscription of that name left does not count');

-- lines

SELECT evbus.subscribe('orders', 'lines') AS p \gset
SELECT evbus.publish('orders', 'x', to_jsonb(E'a "quoted"\\ back\nnew\ttab \x01 \x02 é ☃ \\. ,|'::text), key => E'k\n"\\,', headers => '{"h": [1, null, {"a": "b\\nc"}]}') AS id \gset
SELECT evbus.reject(ARRAY[receipt], E'why "\\" é') AS n FROM take('lines', 1) \gset
SELECT is(evbus.dead_letter_line(d)::jsonb - 'payload' - 'headers' - 'earlier_failures', to_jsonb(d) - 'payload' - 'headers' - 'earlier_failures', 'a line is JSON, with the columns of the view') FROM evbus.dead_letter d WHERE subscription = 'lines';
SELECT is(evbus.dead_letter_line(d)::jsonb -> 'payload', d.payload, 'the payload is JSON in it, and not a string') FROM evbus.dead_letter d WHERE subscription = 'lines';
SELECT unalike(evbus.dead_letter_line(d), E'%\n%', 'there is no end of line in a line') FROM evbus.dead_letter d WHERE subscription = 'lines';
SELECT alike(evbus.dead_letter_line(d), '{"dead_letter_id":' || dead_letter_id || ',%', 'and it begins as one') FROM evbus.dead_letter d WHERE subscription = 'lines';
SELECT is(evbus.dead_letter_line(NULL), NULL, 'of nothing there is none');

-- What went with a leaf at its retention is still counted, until the counts are folded: it is not held against those that are left.

SELECT evbus.subscribe('orders', 'counted', max_dead_letters => 2, dead_letters_full => 'drop_oldest') AS p \gset
SELECT publish(3, 'late') AS n \gset
SELECT kill('counted', 2, 'late') AS n \gset
INSERT INTO evbus.dead_letter_count SELECT subscription_id, 'orders', 'counted', 'gone', 'P0001', 'rejected', '2020-01-01', 100, 0 FROM evbus.subscription WHERE subscription = 'counted';
SELECT kill('counted', 1, 'late') AS n \gset
SELECT becomes($$SELECT dropped::text FROM evbus.dead_letter_quota WHERE subscription = 'counted'$$, '1', 'one too many drops one');
SELECT is((SELECT count(*) FROM evbus.dead_letter WHERE subscription = 'counted'), 2::bigint, 'and so many are left as there may be');
SELECT * FROM finish();
