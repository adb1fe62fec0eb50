-- Retention by bytes and retention_policy as settings, the view of upkeep, the leaves of a bus that is dropped.
\ir include/helpers.sql
SELECT plan(24);

CREATE FUNCTION class_of(bus text) RETURNS integer LANGUAGE sql AS $$SELECT storage_class_id FROM evbus.bus b WHERE b.bus = class_of.bus$$;

-- whose leaves

SELECT evbus.create_bus('plain'), evbus.create_bus('plain 2'), evbus.create_bus('dropping', retention_policy => 'drop_unconsumed'),
	evbus.create_bus('small', retention_bytes => 1048576), evbus.create_bus('sm"all 2', retention_bytes => 1048576, retention_policy => 'drop_unconsumed');
SELECT is(class_of('plain'), class_of('plain 2'), 'buses with the same settings share leaves');
SELECT isnt(class_of('plain'), class_of('dropping'), 'not with one of another policy');
SELECT isnt(class_of('small'), class_of('plain'), 'a bus with a limit of bytes has leaves of its own');
SELECT isnt(class_of('small'), class_of('sm"all 2'), 'and shares them with no other such bus');
SELECT results_eq('SELECT bus, retention_bytes, retention_policy FROM evbus.bus_list ORDER BY bus COLLATE "C"', $$VALUES ('dropping', NULL, 'drop_unconsumed'), ('plain', NULL, 'keep_unconsumed'),
	('plain 2', NULL, 'keep_unconsumed'), ('sm"all 2', 1048576::bigint, 'drop_unconsumed'), ('small', 1048576, 'keep_unconsumed')$$, 'bus_list tells both');

SELECT class_of('small') AS class \gset
SELECT evbus.alter_bus('small', retention_bytes => 2097152, retention_policy => 'drop_unconsumed', retention => '3 days');
SELECT is(class_of('small'), :class, 'a bus with a class of its own keeps it: changes hold for what is stored');
SELECT results_eq($$SELECT retention_bytes, retention_policy, retention FROM evbus.bus_list WHERE bus = 'small'$$, $$VALUES (2097152::bigint, 'drop_unconsumed', interval '3 days')$$, 'and has the new settings');
SELECT evbus.alter_bus('small', max_payload_bytes => 1000);
SELECT is((SELECT retention_bytes FROM evbus.bus_list WHERE bus = 'small'), 2097152::bigint, 'NULL keeps the limit');
SELECT evbus.alter_bus('small', retention_bytes => 0);
SELECT is((SELECT retention_bytes FROM evbus.bus_list WHERE bus = 'small'), NULL, '0 takes it away');
SELECT is(class_of('small'), :class, 'and what is stored stays where it is');
SELECT evbus.alter_bus('plain 2', retention_bytes => 1048576);
SELECT isnt(class_of('plain 2'), class_of('plain'), 'a bus that gets a limit leaves the others');
SELECT is((SELECT former_classes FROM evbus.bus WHERE bus = 'plain 2'), ARRAY[class_of('plain')], 'and it is known where its older events are');

SELECT throws_ok($$SELECT evbus.create_bus('x', retention_bytes => 1000)$$, '22023', 'retention_bytes must be 0, or between 1048576 and 1125899906842624', 'a limit that is too small is refused with its bounds');
SELECT throws_ok($$SELECT evbus.alter_bus('plain', retention_policy => 'never')$$, '22023', 'retention_policy "never" is not known', 'so is a policy that does not exist');

-- the view

SELECT results_eq('SELECT kind, buses FROM evbus.stat_upkeep ORDER BY storage_class_id NULLS LAST, kind DESC', $$VALUES ('events', '{plain}'::text[]), ('events', '{dropping}'), ('events', '{small}'), ('events', '{"sm\"all 2"}'), ('events', '{"plain 2"}'),
	('positions', NULL), ('dead letters', NULL), ('audit', NULL)$$, 'stat_upkeep has a row for each kind of leaf');
CALL evbus.maintain();
SELECT is(count(*), 0::bigint, 'after upkeep each tells when it was') FROM evbus.stat_upkeep WHERE last_run IS NULL OR last_success IS NULL OR last_run < last_success OR last_success < now() - interval '1 minute';
SELECT is(count(*), 0::bigint, 'and that leaves are there and made two intervals ahead') FROM evbus.stat_upkeep WHERE leaves < 3 OR made_until < now() + interval '2 days' OR bytes = 0 OR oldest_leaf > now();
SELECT is(count(*), 0::bigint, 'nothing failed, and nothing is held back') FROM evbus.stat_upkeep WHERE last_error IS NOT NULL OR held_back_by IS NOT NULL;
SELECT is((SELECT retention FROM evbus.stat_upkeep WHERE kind = 'dead letters'), interval '30 days', 'the retention of dead letters is that of the setting');

CREATE FUNCTION calls_maintain() RETURNS void LANGUAGE plpgsql AS 'BEGIN CALL evbus.maintain(); END';
SELECT throws_ok('SELECT calls_maintain()', '25001', 'evbus.maintain() cannot run inside a transaction block', 'maintain() is refused where it could not commit');

-- the own leaves of a bus go with it

SELECT class_of('sm"all 2') AS class \gset
SELECT evbus.publish('sm"all 2', 'a', '1') AS id \gset
SELECT evbus.drop_bus('sm"all 2');
CALL evbus.maintain();
CALL evbus.maintain();
SELECT is(to_regclass('evbus.event_c' || :class), NULL, 'a bus with leaves of its own takes them along when it is dropped');
SELECT is_empty(format('SELECT 1 FROM evbus.storage_class WHERE storage_class_id = %s', :class), 'and its storage class');
SELECT is_empty(format('SELECT 1 FROM evbus.stat_upkeep WHERE storage_class_id = %s', :class), 'and its row in stat_upkeep');
SELECT isnt(to_regclass('evbus.event_c' || class_of('plain')), NULL, 'the leaves of others stay');

SELECT * FROM finish();
