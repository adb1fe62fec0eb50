-- What the user reads when a bus cannot be made, changed or dropped.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS evbus;
RESET client_min_messages;

SELECT evbus.create_bus('regress bus');
SELECT bus, durability, retention, partition_interval, max_payload_bytes, paused, subscriptions FROM evbus.bus_list WHERE bus LIKE 'regress%';

-- names
SELECT evbus.create_bus('regress bus');
SELECT evbus.create_bus(NULL);
SELECT evbus.create_bus('');
SELECT evbus.create_bus(repeat('x', 64));
SELECT evbus.create_bus(E'regress\nbus');

-- settings
SELECT evbus.create_bus('regress2', durability => 'volatile', compression => 'dictionary');
SELECT evbus.create_bus('regress2', durability => 'solid');
SELECT evbus.create_bus('regress2', retention => '-1 day');
SELECT evbus.create_bus('regress2', retention => '10 seconds');
SELECT evbus.create_bus('regress2', partition_interval => '0');
SELECT evbus.create_bus('regress2', max_payload_bytes => 0);

-- changes
SELECT evbus.alter_bus('regress bus', retention => '3 days', max_payload_bytes => 100);
SELECT evbus.alter_bus('no such bus', retention => '3 days');
SELECT evbus.alter_bus('regress bus', rename_to => '');
SELECT evbus.create_bus('regress taken');
SELECT evbus.alter_bus('regress bus', rename_to => 'regress taken');
SELECT evbus.alter_bus('regress bus', rename_to => 'regress "renamed"');
SELECT bus, retention, partition_interval, max_payload_bytes FROM evbus.bus_list WHERE bus LIKE 'regress%' ORDER BY bus;

-- pause, drop
SELECT evbus.pause_bus('regress bus');
SELECT evbus.resume_bus('regress bus');
SELECT evbus.drop_bus('regress bus');
SELECT evbus.subscribe('regress "renamed"', 'regress reader') IS NOT NULL AS ok;
SELECT evbus.publish('regress "renamed"', 'a.b', '1') > 0 AS ok;
SELECT evbus.drop_bus('regress "renamed"');
SELECT evbus.drop_bus('regress "renamed"', force => true);
SELECT evbus.drop_bus('regress taken');

-- a read-only transaction
BEGIN READ ONLY;
SELECT evbus.create_bus('regress2');
ROLLBACK;

SELECT count(*) FROM evbus.bus_list WHERE bus LIKE 'regress%';
