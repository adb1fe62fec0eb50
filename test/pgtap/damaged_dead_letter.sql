-- A dead letter whose payload is damaged: it can be given another one, and then be redriven.
\ir include/helpers.sql
SELECT plan(8);

SELECT evbus.create_bus('b');
SELECT evbus.subscribe('b', 's') AS position, evbus.publish('b', 'a', '{"n": 1}') AS id \gset
SELECT is(evbus.reject(array_agg(receipt), 'why not'), 1, 'one is given up on') FROM take('s', 1);
SELECT dead_letter_id AS dead FROM evbus.dead_letter \gset
SELECT evbus.edit_dead_letter(:dead, '{"n": 2}', 'sound');
SELECT is((SELECT old_payload FROM evbus.dead_letter_audit), '{"n": 1}', 'a sound payload goes to the audit');
UPDATE evbus.dead_letter_log SET payload = '\x02ff';
SELECT throws_ok('SELECT payload FROM evbus.dead_letter', 'XX001', NULL, 'a damaged one cannot be read');
SELECT lives_ok(format('SELECT evbus.edit_dead_letter(%s, %L, %L)', :dead, '{"n": 3}', 'it was damaged'), 'but replaced');
SELECT results_eq('SELECT action, reason, old_payload, event_id FROM evbus.dead_letter_audit ORDER BY audit_id DESC LIMIT 1', format('VALUES (%L, %L, NULL::jsonb, %s::bigint)', 'edit', 'it was damaged', :id), 'which the audit has without it');
-- Of jsonb as it is, with a string that ends behind it.
UPDATE evbus.dead_letter_log SET payload = '\x000100001005000000';
SELECT lives_ok(format('SELECT evbus.edit_dead_letter(%s, %L, %L)', :dead, '{"n": 4}', 'it was damaged, too'), 'one that is no jsonb is replaced as well');
SELECT is(evbus.redrive(ARRAY[:dead]::bigint[]), 1::bigint, 'it is redriven');
SELECT is((SELECT payload FROM take('s', 1)), '{"n": 4}', 'with what it was given');
SELECT * FROM finish();
