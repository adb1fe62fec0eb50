-- What was given back behind many positions that are not for the subscription is found again, and nobody looks for it for ever.
\ir include/helpers.sql
SELECT plan(6);

SET statement_timeout = '30s';	-- it hung
SELECT evbus.create_bus('g');
SELECT evbus.subscribe('g', 'far', '{y}') AS position, evbus.subscribe('g', 'all') AS position \gset
SELECT count(*) AS n FROM evbus.publish_batch('g', '{x}', (SELECT array_agg(to_jsonb(i)) FROM generate_series(1, 9500) i)) \gset
SELECT evbus.publish('g', 'y', '1') AS id \gset
SELECT becomes($$SELECT lag::text FROM evbus.subscription_lag WHERE subscription = 'all'$$, '9501', 'one event is far behind others');
BEGIN;
SELECT is((SELECT position FROM evbus.receive('far', 5)), 9501::bigint, 'it is received');
ROLLBACK;
SELECT position AS again, receipt FROM evbus.receive('far', 5) \gset
SELECT is(:again, 9501, 'and again after a rollback');
SELECT is(evbus.release(ARRAY[:'receipt']), 1, 'released');
CALL evbus.wait('far', '5 seconds');
SELECT results_eq($$SELECT position, attempt FROM evbus.receive('far', 5)$$, $$VALUES (9501::bigint, 1)$$, 'waited for and received again');
SELECT is_empty($$SELECT 1 FROM evbus.receive('far', 5)$$, 'nothing else is there');
SELECT * FROM finish();
