-- Buses: create, alter, drop, pause, resume, list.
\ir include/helpers.sql
SELECT plan(84);

-- create

SELECT lives_ok($$SELECT evbus.create_bus('orders')$$, 'a bus is created with its name alone');
SELECT results_eq(
	$$SELECT bus, owner::text, durability, retention, partition_interval, max_payload_bytes, paused, subscriptions
	  FROM evbus.bus_list WHERE bus = 'orders'$$,
	$$SELECT 'orders', current_user::text COLLATE "default", 'durable', '7 days'::interval, '1 day'::interval, 16777216, false, 0::bigint$$,
	'the list shows a new bus with the defaults, owned by its creator');
SELECT ok(created_at BETWEEN clock_timestamp() - interval '1 minute' AND clock_timestamp(), 'the list tells when a bus was created')
FROM evbus.bus_list WHERE bus = 'orders';
SELECT lives_ok($$SELECT evbus.create_bus('own', retention => '2 days', partition_interval => '1 hour', max_payload_bytes => 1000)$$,
	'a bus is created with settings of its own');
SELECT results_eq(
	$$SELECT retention, partition_interval, max_payload_bytes FROM evbus.bus_list WHERE bus = 'own'$$,
	$$VALUES ('2 days'::interval, '1 hour'::interval, 1000)$$,
	'the list shows the settings given');
SELECT throws_ok($$SELECT evbus.create_bus('orders')$$, 'VB002', NULL, 'a name is taken once');
SELECT throws_ok($$SELECT evbus.create_bus('vol', durability => 'volatile', compression => 'dictionary')$$, '0A000', NULL, 'a volatile bus has no dictionaries');
SELECT throws_ok($$SELECT evbus.create_bus('vol', durability => 'solid')$$, '22023', NULL, 'an unknown durability is refused');
SELECT is_empty($$SELECT 1 FROM evbus.bus_list WHERE bus = 'vol'$$, 'a refused bus leaves nothing behind');

-- names

SELECT lives_ok(format('SELECT evbus.create_bus(%L)', name), 'a legal name: ' || about)
FROM (VALUES
	('Orders', 'another case is another bus'),
	('two words', 'space'),
	('a"b''c\d', 'quotes and backslash'),
	('%I %s; DROP SCHEMA evbus', 'format signs and SQL'),
	('注文🚚', 'unicode'),
	(repeat('x', 63), '63 bytes'),
	(repeat('é', 31) || 'x', '63 bytes of unicode')) AS v (name, about);
SELECT set_eq(
	$$SELECT bus FROM evbus.bus_list$$,
	$$VALUES ('orders'), ('own'), ('Orders'), ('two words'), ('a"b''c\d'), ('%I %s; DROP SCHEMA evbus'), ('注文🚚'),
			 (repeat('x', 63)), (repeat('é', 31) || 'x')$$,
	'every name is kept as it was given');
SELECT throws_ok(format('SELECT evbus.create_bus(%L)', name), '22023', NULL, 'a name is refused: ' || about)
FROM (VALUES
	('', 'empty'),
	(repeat('x', 64), '64 bytes'),
	(repeat('é', 32), '64 bytes of unicode in 32 characters'),
	(repeat('x', 1000000), 'a million bytes'),
	(E'a\nb', 'line feed'),
	(E'a\tb', 'tab'),
	(E'a\x01b', 'control character'),
	(E'a\x7fb', 'delete')) AS v (name, about);
SELECT ok(evbus.publish(bus, 'a', '1') > 0, 'events can be published to ' || quote_literal(bus))
FROM evbus.bus_list WHERE bus NOT IN ('orders', 'own');
SELECT results_eq(
	$$SELECT bus FROM evbus.history ORDER BY bus COLLATE "C"$$,
	$$SELECT bus FROM evbus.bus_list WHERE bus NOT IN ('orders', 'own') ORDER BY bus COLLATE "C"$$,
	'each event is found under the name of its bus');

-- alter

SELECT lives_ok($$SELECT evbus.alter_bus('own', retention => '3 days')$$, 'the retention can be changed');
SELECT lives_ok($$SELECT evbus.alter_bus('own', max_payload_bytes => 2000)$$, 'the payload limit can be changed');
SELECT lives_ok($$SELECT evbus.alter_bus('own', partition_interval => '2 hours')$$, 'the partition interval can be changed');
SELECT results_eq(
	$$SELECT retention, partition_interval, max_payload_bytes FROM evbus.bus_list WHERE bus = 'own'$$,
	$$VALUES ('3 days'::interval, '2 hours'::interval, 2000)$$,
	'every change shows, and what was not named was kept');
SELECT lives_ok($$SELECT evbus.alter_bus('own')$$, 'changing nothing is allowed');
SELECT evbus.publish('own', 'a.before', '1') AS before \gset
SELECT lives_ok($$SELECT evbus.alter_bus('own', rename_to => 'renamed')$$, 'a bus can be renamed');
SELECT throws_ok($$SELECT evbus.publish('own', 'a', '1')$$, 'VB001', NULL, 'the old name is gone');
SELECT ok(evbus.publish('renamed', 'a.after', '1') > :before, 'the new name works');
SELECT results_eq(
	$$SELECT type FROM evbus.history WHERE bus = 'renamed' ORDER BY event_id$$,
	$$VALUES ('a.before'), ('a.after')$$,
	'the history of a renamed bus is whole');
SELECT throws_ok($$SELECT evbus.alter_bus('renamed', rename_to => 'orders')$$, 'VB002', NULL, 'a bus is not renamed to a name that is taken');
SELECT throws_ok($$SELECT evbus.alter_bus('renamed', rename_to => '')$$, '22023', NULL, 'a bus is not renamed to an illegal name');
SELECT throws_ok($$SELECT evbus.alter_bus('nosuch', retention => '1 day')$$, 'VB001', NULL, 'an unknown bus cannot be altered');
BEGIN;
SELECT evbus.alter_bus('renamed', rename_to => 'undone', max_payload_bytes => 1);
ROLLBACK;
SELECT results_eq($$SELECT max_payload_bytes FROM evbus.bus_list WHERE bus = 'renamed'$$, $$VALUES (2000)$$, 'a rolled-back change leaves the bus as it was');
SELECT lives_ok($$SELECT evbus.publish('renamed', 'a', '"longer than one byte"')$$, 'a rolled-back payload limit does not apply');
SELECT throws_ok($$SELECT evbus.publish('undone', 'a', '1')$$, 'VB001', NULL, 'a rolled-back new name is unknown');

-- transactions

BEGIN;
SELECT evbus.create_bus('ghost');
ROLLBACK;
SELECT throws_ok($$SELECT evbus.publish('ghost', 'a', '1')$$, 'VB001', NULL, 'a bus of a rolled-back transaction does not exist');
SELECT lives_ok($$SELECT evbus.create_bus('ghost')$$, 'its name is free again');
BEGIN;
SAVEPOINT s;
SELECT evbus.create_bus('half');
ROLLBACK TO s;
SELECT evbus.create_bus('whole');
COMMIT;
SELECT set_eq($$SELECT bus FROM evbus.bus_list WHERE bus IN ('half', 'whole')$$, $$VALUES ('whole')$$, 'a savepoint takes back the bus made after it, and only that');
BEGIN;
SELECT evbus.create_bus('atonce');
SELECT evbus.subscribe('atonce', 'atonce_reader', start_from => 'beginning') AS position \gset
SELECT evbus.publish('atonce', 'a.first', '1') AS id \gset
COMMIT;
SELECT is(consume('atonce_reader', 1), 'a.first', 'a bus, its subscription and its first event can be made in one transaction');
BEGIN;
SELECT evbus.drop_bus('atonce', force => true);
ROLLBACK;
SELECT evbus.publish('atonce', 'a.second', '1') AS id \gset
SELECT is(consume('atonce_reader', 1), 'a.second', 'a rolled-back drop leaves bus and subscription at work');

-- drop

SELECT throws_ok($$SELECT evbus.drop_bus('nosuch')$$, 'VB001', NULL, 'an unknown bus cannot be dropped');
SELECT evbus.publish('atonce', 'a.third', '1') AS id \gset
SELECT becomes($$SELECT lag::text FROM evbus.subscription_lag WHERE subscription = 'atonce_reader'$$, '1', 'the backlog shows as lag');
SELECT throws_ok($$SELECT evbus.drop_bus('atonce')$$, 'VB006', NULL, 'a bus with undelivered events is not dropped');
SELECT is(consume('atonce_reader', 1), 'a.third', 'the refused drop lost nothing');
SELECT lives_ok($$SELECT evbus.drop_bus('atonce')$$, 'a bus whose events are all delivered is dropped');
SELECT throws_ok($$SELECT evbus.receive('atonce_reader')$$, 'VB004', NULL, 'its subscription went with it');
SELECT is_empty($$SELECT 1 FROM evbus.bus_list WHERE bus = 'atonce'
	UNION ALL SELECT 1 FROM evbus.subscription_list WHERE bus = 'atonce'
	UNION ALL SELECT 1 FROM evbus.history WHERE bus = 'atonce'$$, 'a dropped bus shows in no view');

SELECT evbus.create_bus('forced');
SELECT evbus.subscribe('forced', 'forced_reader') AS position \gset
SELECT evbus.publish('forced', 'a.old', '1') AS id \gset
SELECT lives_ok($$SELECT evbus.drop_bus('forced', force => true)$$, 'force drops a bus with undelivered events');
SELECT evbus.create_bus('forced');
SELECT evbus.subscribe('forced', 'forced_reader', start_from => 'beginning') AS position \gset
SELECT evbus.publish('forced', 'a.new', '1') AS id \gset
SELECT is(consume('forced_reader', 1), 'a.new', 'a bus made again under the name of a dropped one starts empty');
SELECT results_eq($$SELECT type FROM evbus.history WHERE bus = 'forced'$$, $$VALUES ('a.new')$$, 'and its history does not show events of the dropped one');

-- pause and resume

SELECT evbus.create_bus('quiet');
SELECT evbus.subscribe('quiet', 'quiet_reader') AS position \gset
SELECT lives_ok($$SELECT evbus.pause_bus('quiet')$$, 'a bus can be paused');
SELECT results_eq($$SELECT paused FROM evbus.bus_list WHERE bus = 'quiet'$$, $$VALUES (true)$$, 'the list shows the pause');
SELECT lives_ok($$SELECT evbus.pause_bus('quiet')$$, 'pausing twice is harmless');
SELECT evbus.publish('quiet', 'a.waiting', '1') AS id \gset
SELECT becomes($$SELECT lag::text FROM evbus.subscription_lag WHERE subscription = 'quiet_reader'$$, '1', 'publishing goes on while a bus is paused');
SELECT is_empty($$SELECT * FROM evbus.receive('quiet_reader', wait => '100 milliseconds')$$, 'nothing is delivered while a bus is paused');
SELECT results_eq($$SELECT paused FROM evbus.subscription_lag WHERE subscription = 'quiet_reader'$$, $$VALUES (true)$$, 'the lag view shows the pause');
SELECT lives_ok($$SELECT evbus.resume_bus('quiet')$$, 'a paused bus can be resumed');
SELECT is(consume('quiet_reader', 1), 'a.waiting', 'a resumed bus delivers what was published meanwhile');
SELECT results_eq($$SELECT paused FROM evbus.bus_list WHERE bus = 'quiet'$$, $$VALUES (false)$$, 'the list shows that the pause is over');
SELECT lives_ok($$SELECT evbus.resume_bus('quiet')$$, 'resuming twice is harmless');
SELECT throws_ok($$SELECT evbus.pause_bus('nosuch')$$, 'VB001', NULL, 'an unknown bus cannot be paused');
SELECT throws_ok($$SELECT evbus.resume_bus('nosuch')$$, 'VB001', NULL, 'an unknown bus cannot be resumed');

-- a bus that is paused after its events were leased

SELECT evbus.publish('quiet', 'a.held', '1') AS id \gset
SELECT receipt AS held FROM take('quiet_reader', 1) \gset
SELECT evbus.pause_bus('quiet');
SELECT is(evbus.ack(ARRAY[:'held']), 1, 'what was leased before a pause can be acked during it');
SELECT evbus.resume_bus('quiet');

-- read-only transactions

BEGIN READ ONLY;
SELECT throws_ok($$SELECT evbus.create_bus('readonly')$$, '25006', NULL, 'a read-only transaction creates no bus');
SELECT throws_ok($$SELECT evbus.pause_bus('quiet')$$, '25006', NULL, 'a read-only transaction pauses no bus');
COMMIT;

-- the registry is bounded

DO $$
BEGIN
	FOR i IN 1 .. current_setting('evbus.max_buses')::integer - (SELECT count(*) FROM evbus.bus_list) LOOP
		PERFORM evbus.create_bus('filler' || i);
	END LOOP;
END $$;
SELECT is((SELECT count(*) FROM evbus.bus_list), current_setting('evbus.max_buses')::bigint, 'evbus.max_buses buses fit');
SELECT throws_ok($$SELECT evbus.create_bus('toomany')$$, 'VB003', NULL, 'one more bus is refused');
SELECT ok(evbus.publish('orders', 'a', '1') > 0, 'a full registry does not stop publishing');
BEGIN;
SELECT evbus.drop_bus('filler1');
ROLLBACK;
SELECT throws_ok($$SELECT evbus.create_bus('toomany')$$, 'VB003', NULL, 'a rolled-back drop frees no place');
SELECT evbus.drop_bus('filler1');
BEGIN;
SELECT evbus.create_bus('undone');
ROLLBACK;
SELECT lives_ok($$SELECT evbus.create_bus('fits')$$, 'a drop frees a place, and a rolled-back create gives it back');
DO $$
BEGIN
	FOR i IN 1 .. 100 LOOP
		PERFORM evbus.drop_bus('fits');
		COMMIT;
		PERFORM evbus.create_bus('fits');
		COMMIT;
	END LOOP;
END $$;
SELECT is((SELECT count(*) FROM evbus.bus_list), current_setting('evbus.max_buses')::bigint, 'places do not wear out: a hundred drops and creates in a full registry');

SELECT * FROM finish();
