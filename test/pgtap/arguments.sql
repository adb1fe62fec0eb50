-- Every function with every kind of bad argument: a clear SQLSTATE each time, never an internal error, and nothing changed.
\ir include/helpers.sql
SELECT plan(1049);

SELECT evbus.create_bus('b');
SELECT evbus.create_bus('other');
SELECT evbus.subscribe('b', 's', types => '{wanted}') AS position \gset
SELECT evbus.publish('b', 'wanted', '1') AS id \gset
SELECT receipt FROM take('s', 1, lease => '1 hour') \gset
CREATE FUNCTION h(evbus.event) RETURNS void LANGUAGE sql AS '';
CREATE TABLE before_ AS SELECT (SELECT jsonb_agg(b ORDER BY b.bus_id) FROM evbus.bus b) AS buses, (SELECT jsonb_agg(s ORDER BY s.subscription_id) FROM evbus.subscription s) AS subscriptions;

CREATE TABLE bad (n integer GENERATED ALWAYS AS IDENTITY, call text, sqlstate text);

-- NULL where it means nothing: 22004

INSERT INTO bad (sqlstate, call) SELECT '22004', unnest(ARRAY[
	$$evbus.create_bus(NULL)$$, $$evbus.create_bus('x', durability => NULL)$$, $$evbus.create_bus('x', retention => NULL)$$,
	$$evbus.create_bus('x', partition_interval => NULL)$$, $$evbus.create_bus('x', max_payload_bytes => NULL)$$, $$evbus.create_bus('x', compression => NULL)$$, $$evbus.create_bus('x', dedup_window => NULL)$$, $$evbus.cancel_scheduled(NULL)$$,
	$$evbus.train_dictionary(NULL)$$, $$evbus.train_dictionary('b', samples => NULL)$$, $$evbus.train_dictionary('b', size => NULL)$$, $$evbus.train_dictionary('b', dry_run => NULL)$$,
	$$evbus.alter_bus(NULL)$$, $$evbus.drop_bus(NULL)$$, $$evbus.drop_bus('b', force => NULL)$$, $$evbus.pause_bus(NULL)$$, $$evbus.resume_bus(NULL)$$, $$evbus.stop_all(NULL)$$, $$evbus.limit_publisher(NULL, 'postgres', 1)$$, $$evbus.grant(NULL, 'b', 'postgres')$$, $$evbus.grant('publish', NULL, 'postgres')$$, $$evbus.grant('publish', 'b', NULL)$$, $$evbus.revoke(NULL, 'b', 'postgres')$$, $$evbus.revoke('publish', NULL, 'postgres')$$, $$evbus.revoke('publish', 'b', NULL)$$, $$evbus.has_privilege(NULL, 'b')$$, $$evbus.has_privilege('publish', NULL)$$, $$evbus.limit_publisher('b', NULL, 1)$$, $$evbus.limit_publisher('b', 'postgres', NULL)$$, $$evbus.limit_publisher('b', 'postgres', 1, NULL)$$,
	$$evbus.publish(NULL, 'a', '1')$$, $$evbus.publish('b', NULL, '1')$$, $$evbus.publish('b', 'a', NULL)$$,
	$$evbus.publish_lines(NULL, 'a', '1')$$, $$evbus.publish_lines('b', NULL, '1')$$, $$evbus.publish_lines('b', 'a', NULL)$$,
	$$evbus.publish_changes(NULL, 'b')$$, $$evbus.publish_changes('bad', NULL)$$, $$evbus.publish_changes('bad', 'b', columns => '{n,NULL}')$$, $$evbus.publish_changes('bad', 'b', key_columns => '{NULL}')$$,
	$$evbus.stop_publish_changes(NULL)$$, $$evbus.publish_cloud_event(NULL, '{"specversion": "1.0", "id": "1", "source": "/", "type": "a"}')$$, $$evbus.publish_cloud_event('b', NULL)$$,
	$$evbus.publish_batch(NULL, '{a}', '{1}')$$, $$evbus.publish_batch('b', NULL, '{1}')$$, $$evbus.publish_batch('b', '{a}', NULL)$$,
	$$evbus.publish_batch('b', '{a,NULL}', '{1,2}')$$, $$evbus.publish_batch('b', '{a,b}', '{1,NULL}')$$,
	$$evbus.subscribe(NULL, 'x')$$, $$evbus.subscribe('b', NULL)$$, $$evbus.subscribe('b', 'x', types => NULL)$$, $$evbus.subscribe('b', 'x', types => '{a,NULL}')$$,
	$$evbus.subscribe('b', 'x', start_from => NULL)$$, $$evbus.subscribe('b', 'x', batch_size => NULL)$$, $$evbus.subscribe('b', 'x', concurrency => NULL)$$,
	$$evbus.subscribe('b', 'x', max_attempts => NULL)$$, $$evbus.subscribe('b', 'x', backoff_initial => NULL)$$, $$evbus.subscribe('b', 'x', backoff_max => NULL)$$,
	$$evbus.subscribe('b', 'x', lease => NULL)$$, $$evbus.subscribe('b', 'x', timeout => NULL)$$, $$evbus.subscribe('b', 'x', notify => NULL)$$,
	$$evbus.alter_subscription(NULL)$$, $$evbus.alter_subscription('s', types => '{a,NULL}')$$, $$evbus.unsubscribe(NULL)$$, $$evbus.pause(NULL)$$, $$evbus.resume(NULL)$$,
	$$evbus.seek(NULL, 'now')$$, $$evbus.seek('s', NULL)$$, $$evbus.replay(NULL, '1')$$, $$evbus.replay('s', NULL)$$, $$evbus.replay('s', '1', NULL)$$, $$evbus.replay('s', '1', types => '{a,NULL}')$$, $$evbus.cancel_replay(NULL)$$, $$evbus.receive(NULL)$$, $$evbus.receive('s', NULL)$$, $$evbus.receive('s', ack => '{NULL}')$$, $$evbus.receive_lines(NULL)$$, $$evbus.receive_lines('s', NULL)$$, $$evbus.receive_lines('s', ack => '{NULL}')$$,
	$$evbus.ack(NULL)$$, $$evbus.ack('{NULL}')$$, $$evbus.nack(NULL)$$, $$evbus.nack('{NULL}')$$, $$evbus.reject(NULL)$$, $$evbus.reject('{NULL}')$$,
	$$evbus.extend(NULL, '1 minute')$$, $$evbus.extend('{NULL}', '1 minute')$$, $$evbus.extend('{}', NULL)$$, $$evbus.release(NULL)$$, $$evbus.release('{NULL}')$$,
	$$CALL evbus.wait(NULL)$$, $$CALL evbus.wait('s', NULL)$$, $$evbus.channel(NULL)$$,
	$$evbus.redrive(NULL::bigint[])$$, $$evbus.redrive('{NULL}'::bigint[])$$, $$evbus.redrive(types => '{a,NULL}')$$,
	$$evbus.discard(NULL::bigint[], 'x')$$, $$evbus.discard('{NULL}'::bigint[], 'x')$$, $$evbus.discard('{1}'::bigint[], NULL)$$, $$evbus.discard(types => '{a,NULL}', reason => 'x')$$, $$evbus.discard()$$, $$evbus.discard(dry_run => NULL, reason => 'x')$$, $$evbus.redrive(dry_run => NULL)$$,
	$$evbus.edit_dead_letter(NULL, '1', 'x')$$, $$evbus.edit_dead_letter(1, NULL, 'x')$$, $$evbus.edit_dead_letter(1, '1', NULL)$$, $$evbus.cancel_redrive(NULL)$$,
	$$evbus.dead_letter_top(NULL)$$, $$evbus.dead_letter_top(max_rows => NULL)$$, $$evbus.report_html(max_rows => NULL)$$, $$evbus.report_html(payloads => NULL)$$, $$evbus.top(NULL)$$, $$evbus.top(max_rows => NULL)$$,
	$$evbus.history_page(NULL)$$, $$evbus.history_page('b', types => '{a,NULL}')$$, $$evbus.history_page('b', "limit" => NULL)$$, $$evbus.history_page('b', "order" => NULL)$$,
	$$evbus.schedule_maintenance(NULL)$$, $$evbus.create_bus('x', retention_bytes => NULL)$$, $$evbus.create_bus('x', retention_policy => NULL)$$,
	$$evbus.subscribe('b', 'x', max_dead_letters => NULL)$$, $$evbus.subscribe('b', 'x', dead_letters_full => NULL)$$,
	$$evbus.subscribe('b', 'x', breaker_threshold => NULL)$$, $$evbus.subscribe('b', 'x', breaker_window => NULL)$$, $$evbus.subscribe('b', 'x', breaker_min => NULL)$$, $$evbus.subscribe('b', 'x', breaker_probe => NULL)$$, $$evbus.subscribe('b', 'x', by_priority => NULL)$$, $$evbus.reset_breaker(NULL)$$, $$evbus.trace(NULL)$$, $$evbus.trace('s', NULL)$$, $$evbus.health(NULL)$$, $$evbus.health(age_critical => NULL)$$]);

-- the names of nothing

INSERT INTO bad (sqlstate, call) SELECT state, format(call, name) FROM
	(VALUES ('VB001', $$evbus.alter_bus(%L, retention => '1 day')$$), ('VB001', $$evbus.drop_bus(%L)$$), ('VB001', $$evbus.drop_bus(%L, true)$$), ('VB001', $$evbus.pause_bus(%L)$$), ('VB001', $$evbus.train_dictionary(%L)$$),
		('VB001', $$evbus.resume_bus(%L)$$), ('VB001', $$evbus.limit_publisher(%L, 'postgres', 1)$$), ('VB001', $$evbus.grant('publish', %L, 'postgres')$$), ('VB001', $$evbus.revoke('publish', %L, 'postgres')$$), ('VB001', $$evbus.has_privilege('publish', %L)$$), ('VB004', $$evbus.grant('consume', %L, 'postgres')$$), ('VB001', $$evbus.publish(%L, 'a', '1')$$), ('VB001', $$evbus.publish_batch(%L, '{a}', '{1}')$$), ('VB001', $$evbus.publish_lines(%L, 'a', '1')$$), ('VB001', $$evbus.publish_changes('bad', %L)$$),
		('VB001', $$evbus.publish_cloud_event(%L, '{"specversion": "1.0", "id": "1", "source": "/", "type": "a"}')$$), ('VB001', $$evbus.subscribe(%L, 'x')$$),
		('VB001', $$evbus.redrive(bus => %L)$$), ('VB001', $$evbus.history_page(%L)$$), ('VB001', $$evbus.redrive(bus => %L, rate => 1)$$), ('VB001', $$evbus.discard(bus => %L, reason => 'x')$$), ('VB004', $$evbus.discard(subscription => %L, reason => 'x')$$), ('VB004', $$evbus.redrive(subscription => %L, dry_run => true)$$),
		('VB004', $$evbus.alter_subscription(%L, batch_size => 1)$$), ('VB004', $$evbus.unsubscribe(%L)$$), ('VB004', $$evbus.pause(%L)$$), ('VB004', $$evbus.resume(%L)$$), ('VB004', $$evbus.reset_breaker(%L)$$), ('VB004', $$evbus.trace(%L)$$),
		('VB004', $$evbus.seek(%L, 'now')$$), ('VB004', $$evbus.replay(%L, 'beginning')$$), ('VB004', $$evbus.receive(%L)$$), ('VB004', $$evbus.receive_lines(%L)$$), ('VB004', $$CALL evbus.wait(%L, '1 ms')$$), ('VB004', $$evbus.redrive(subscription => %L)$$)) AS c (state, call),
	(VALUES ('nosuch'), ('no"such'''), ('注文'), ('B'), ('S'), (' b'), (repeat('x', 63))) AS v (name);

-- names that cannot exist; functions that only look a name up may say so or say that it does not exist

INSERT INTO bad (sqlstate, call) SELECT state, format(call, name) FROM
	(VALUES ('22023', $$evbus.create_bus(%L)$$), ('22023', $$evbus.subscribe('b', %L)$$), ('22023', $$evbus.alter_bus('b', rename_to => %L)$$),
		('VB001 22023', $$evbus.history_page(%L)$$), ('VB001 22023', $$evbus.publish(%L, 'a', '1')$$), ('VB001 22023', $$evbus.drop_bus(%L)$$), ('VB001 22023', $$evbus.subscribe(%L, 'x')$$),
		('VB004 22023', $$evbus.receive(%L)$$), ('VB004 22023', $$evbus.unsubscribe(%L)$$), ('VB004 22023', $$evbus.seek(%L, 'now')$$), ('VB004 22023', $$evbus.replay(%L, 'beginning')$$), ('VB004 22023', $$evbus.alter_subscription(%L)$$)) AS c (state, call),
	(VALUES (''), (repeat('x', 64)), (repeat('é', 32)), (repeat('x', 100000)), (E'a\nb'), (E'a\x01')) AS v (name);

-- tables and columns

INSERT INTO bad (sqlstate, call) VALUES ('42P01', $$evbus.publish_changes('nosuch', 'b')$$), ('42P01', $$evbus.publish_changes(4000000000, 'b')$$), ('42P01', $$evbus.stop_publish_changes('nosuch')$$), ('42P01', $$evbus.stop_publish_changes(4000000000)$$),
	('42809', $$evbus.publish_changes('evbus.history', 'b')$$), ('42809', $$evbus.publish_changes('bad_n_seq', 'b')$$), ('42809', $$evbus.publish_changes('evbus.retry', 'b')$$), ('42809', $$evbus.publish_changes('evbus.event_log', 'b')$$),
	('42501', $$evbus.publish_changes('pg_class', 'b')$$), ('42704', $$evbus.stop_publish_changes('bad')$$),
	('42703', $$evbus.publish_changes('bad', 'b', columns => '{n,nosuch}')$$), ('42703', $$evbus.publish_changes('bad', 'b', key_columns => '{N}')$$), ('42703', $$evbus.publish_changes('bad', 'b', columns => '{ctid}')$$);

-- arrays

INSERT INTO bad (sqlstate, call) SELECT '22023', unnest(ARRAY[
	$$evbus.publish_changes('bad', 'b', columns => '{{n,call}}')$$, $$evbus.publish_changes('bad', 'b', columns => '{}')$$, $$evbus.publish_changes('bad', 'b', key_columns => '{}')$$,
	$$evbus.publish_changes('bad', 'b', type_prefix => '')$$, $$evbus.publish_changes('bad', 'b', type_prefix => 'a..b')$$, $$evbus.publish_changes('bad', 'b', type_prefix => '*')$$, $$evbus.publish_changes('bad', 'b', type_prefix => repeat('x', 250))$$,
	$$evbus.publish_cloud_event('b', '1')$$, $$evbus.publish_cloud_event('b', '{}')$$, $$evbus.cloud_event(ROW(1))$$,
	$$evbus.publish_lines('b', 'a', E'1\n2', keys => '{{k,l}}')$$, $$evbus.publish_lines('b', 'a', '', keys => '{k}')$$, $$evbus.publish_lines('b', '', '1')$$, $$evbus.publish_lines('b', 'a', '1', headers => '1')$$,
	$$evbus.publish_batch('b', '{a,b}', '{1}')$$, $$evbus.publish_batch('b', '{a,b}', '{1,2,3}')$$, $$evbus.publish_batch('b', '{}', '{1}')$$, $$evbus.publish_batch('b', '{a,b}', '{}')$$,
	$$evbus.publish_batch('b', '{a,b}', '{1,2}', keys => '{k}')$$, $$evbus.publish_batch('b', '{a,b}', '{1,2}', keys => '{k,l,m}')$$, $$evbus.publish_batch('b', '{a,b}', '{1,2}', keys => '{}')$$,
	$$evbus.publish_batch('b', '{a,b}', '{1,2}', dedup_keys => '{k}')$$, $$evbus.publish_batch('b', '{a,b}', '{1,2}', dedup_keys => '{k,""}')$$, $$evbus.publish_batch('b', '{a,b}', '{1,2}', dedup_keys => '{{k,l}}')$$,
	$$evbus.publish_batch('b', '{a,b}', '{1,2}', headers => ARRAY['{}']::jsonb[])$$, $$evbus.publish_batch('b', '{}', '{}', keys => '{k}')$$,
	$$evbus.publish_batch('b', '{{a,b},{c,d}}', '{1,2,3,4}')$$, $$evbus.publish_batch('b', '{a,b,c,d}', '{{1,2},{3,4}}')$$, $$evbus.publish_batch('b', '{{a,b}}', '{{1,2}}')$$,
	$$evbus.publish_batch('b', '{a,b}', '{1,2}', keys => '{{k,l}}')$$, $$evbus.publish_batch('b', '{a,b}', '{1,2}', headers => ARRAY[ARRAY['{}', '{}']]::jsonb[])$$,
	$$evbus.publish_batch('b', '{a,b}', '{1,2}', headers => ARRAY['{}', '1']::jsonb[])$$, $$evbus.publish_batch('b', '{a,b..c}', '{1,2}')$$,
	$$evbus.subscribe('b', 'x', types => '{{a},{b}}')$$, $$evbus.subscribe('b', 'x', types => '{}')$$, $$evbus.alter_subscription('s', types => '{{a},{b}}')$$, $$evbus.alter_subscription('s', types => '{}')$$,
	$$evbus.ack('{{a,b},{c,d}}')$$, $$evbus.nack('{{a,b},{c,d}}')$$, $$evbus.reject('{{a,b},{c,d}}')$$, $$evbus.extend('{{a,b},{c,d}}', '1 minute')$$, $$evbus.release('{{a,b},{c,d}}')$$,
	$$evbus.ack(ARRAY[''])$$, $$evbus.ack(ARRAY['1'])$$, $$evbus.ack(ARRAY[repeat('x', 1000000)])$$,
	$$evbus.receive('s', ack => '{{a},{b}}')$$, $$evbus.receive('s', ack => '{a}')$$,
	$$evbus.redrive('{{1,2},{3,4}}'::bigint[])$$, $$evbus.discard('{{1,2},{3,4}}'::bigint[], 'x')$$, $$evbus.redrive(types => '{{a},{b}}')$$, $$evbus.redrive(types => '{}')$$, $$evbus.replay('s', '1', types => '{{a},{b}}')$$, $$evbus.replay('s', '1', types => '{}')$$,
	$$evbus.discard(types => '{{a},{b}}', reason => 'x')$$, $$evbus.discard(types => '{}', reason => 'x')$$, $$evbus.history_page('b', types => '{{a},{b}}')$$, $$evbus.history_page('b', types => '{}')$$]);

-- numbers

INSERT INTO bad (sqlstate, call) SELECT '22023', format(call, n) FROM
	(VALUES ($$evbus.create_bus('x', max_payload_bytes => %s)$$), ($$evbus.alter_bus('b', max_payload_bytes => %s)$$), ($$evbus.subscribe('b', 'x', batch_size => %s)$$),
		($$evbus.subscribe('b', 'x', max_attempts => %s)$$), ($$evbus.subscribe('b', 'x', concurrency => %s)$$), ($$evbus.alter_subscription('s', batch_size => %s)$$),
		($$evbus.alter_subscription('s', max_attempts => %s)$$), ($$evbus.alter_subscription('s', concurrency => %s)$$), ($$evbus.receive('s', %s)$$),
		($$evbus.redrive(max_events => %s)$$), ($$evbus.discard(max_events => %s, reason => 'x')$$), ($$evbus.redrive(rate => %s)$$), ($$evbus.replay('s', '1', rate => %s)$$), ($$evbus.dead_letter_top(max_rows => %s)$$), ($$evbus.report_html(max_rows => %s)$$),
		($$evbus.history_page('b', "limit" => %s)$$), ($$evbus.history_page('b', after => %s)$$), ($$evbus.train_dictionary('b', samples => %s)$$), ($$evbus.train_dictionary('b', size => %s)$$)) AS c (call),
	(VALUES ('0'), ('-1'), ('-2147483648')) AS v (n);
INSERT INTO bad (sqlstate, call) SELECT '22023', unnest(ARRAY[
	$$evbus.train_dictionary('b', samples => 99)$$, $$evbus.train_dictionary('b', samples => 1000001)$$, $$evbus.train_dictionary('b', size => 1023)$$, $$evbus.train_dictionary('b', size => 131073)$$,
	$$evbus.subscribe('b', 'x', batch_size => 10001)$$, $$evbus.subscribe('b', 'x', batch_size => 2147483647)$$, $$evbus.subscribe('b', 'x', max_attempts => 1001)$$,
	$$evbus.subscribe('b', 'x', max_attempts => 2147483647)$$, $$evbus.subscribe('b', 'x', concurrency => 2147483647)$$, $$evbus.alter_subscription('s', batch_size => 10001)$$,
	$$evbus.alter_subscription('s', max_attempts => 1001)$$, $$evbus.alter_subscription('s', concurrency => 2147483647)$$,
	$$evbus.history_page('b', "limit" => 10001)$$, $$evbus.history_page('b', after => -9223372036854775808)$$, $$evbus.receive('s', 10001)$$, $$evbus.receive_lines('s', 10001)$$, $$evbus.receive('s', 2147483647)$$, $$evbus.redrive(max_events => -9223372036854775808)$$, $$evbus.redrive(rate => 10001)$$, $$evbus.replay('s', '1', rate => 1000001)$$, $$evbus.replay('s', '1', rate => 2147483647)$$, $$evbus.redrive(rate => 2147483647, dry_run => true)$$,
	$$evbus.redrive(dead_after => now(), dead_before => now() - interval '1 second')$$, $$evbus.redrive(dead_after => now(), dead_before => now(), rate => 1)$$, $$evbus.discard(dead_after => 'infinity', dead_before => '-infinity', reason => 'x')$$,
	$$evbus.dead_letter_top('0')$$, $$evbus.dead_letter_top('-1 day')$$,
	$$evbus.top(79)$$, $$evbus.top(501)$$, $$evbus.top(-2147483648)$$, $$evbus.top(2147483647)$$, $$evbus.top(max_rows => 0)$$, $$evbus.top(max_rows => 10001)$$, $$evbus.top(max_rows => -2147483648)$$,
	$$evbus.report_html(max_rows => 1001)$$, $$evbus.report_html('')$$, $$evbus.report_html(repeat('é', 128))$$]);

-- intervals

INSERT INTO bad (sqlstate, call) SELECT '22023', format(call, v) FROM
	(VALUES ($$evbus.create_bus('x', retention => %L)$$), ($$evbus.create_bus('x', partition_interval => %L)$$), ($$evbus.alter_bus('b', retention => %L)$$), ($$evbus.alter_bus('b', partition_interval => %L)$$), ($$evbus.create_bus('x', dedup_window => %L)$$), ($$evbus.alter_bus('b', dedup_window => %L)$$),
		($$evbus.subscribe('b', 'x', backoff_max => %L)$$), ($$evbus.subscribe('b', 'x', lease => %L)$$), ($$evbus.subscribe('b', 'x', timeout => %L)$$),
		($$evbus.alter_subscription('s', backoff_max => %L)$$), ($$evbus.alter_subscription('s', lease => %L)$$), ($$evbus.alter_subscription('s', timeout => %L)$$),
		($$evbus.receive('s', lease => %L)$$), ($$evbus.receive_lines('s', lease => %L)$$), ($$evbus.extend('{}', %L)$$)) AS c (call),
	(VALUES ('0'), ('1 microsecond'), ('-1 second'), ('-1 month'), ('1 month -40 days'), ('300000 years'), ('-300000 years'), ('178000000 years'), ('-178000000 years'), ('2147483647 days')) AS v (v)
	WHERE NOT (call ~ 'backoff_max' AND v = '1 microsecond');
INSERT INTO bad (sqlstate, call) SELECT '22023', format(call, v) FROM
	(VALUES ($$evbus.subscribe('b', 'x', backoff_initial => %L)$$), ($$evbus.alter_subscription('s', backoff_initial => %L)$$), ($$evbus.publish('b', 'a', '1', delay => %L)$$), ($$evbus.nack('{}', delay => %L)$$),
		($$evbus.receive('s', wait => %L)$$), ($$evbus.receive_lines('s', wait => %L)$$), ($$CALL evbus.wait('s', %L)$$)) AS c (call),
	(VALUES ('-1 second'), ('-1 microsecond'), ('-1 month'), ('300000 years'), ('-300000 years'), ('178000000 years'), ('2147483647 days')) AS v (v);
INSERT INTO bad (sqlstate, call) SELECT '22023', unnest(ARRAY[
	$$evbus.create_bus('x', dedup_window => '999 milliseconds')$$, $$evbus.create_bus('x', idle_ttl => '999 milliseconds')$$, $$evbus.create_bus('x', idle_ttl => '-1 second')$$, $$evbus.alter_bus('b', idle_ttl => '36501 days')$$, $$evbus.stop_all('-1 second')$$, $$evbus.stop_all('25 hours')$$, $$evbus.trace('s', '-1 second')$$, $$evbus.trace('s', '25 hours')$$, $$evbus.health('-1 second')$$, $$evbus.health('1 minute', '61 minutes')$$, $$evbus.health('2 minutes', '1 minute')$$, $$evbus.create_bus('x', partition_interval => '1 minute 1 ms')$$, $$evbus.alter_bus('b', partition_interval => '1 hour 0.5 seconds')$$, $$evbus.alter_bus('b', dedup_window => '7 days 1 second')$$, $$evbus.publish('b', 'a', '1', delay => '36501 days')$$,
	$$evbus.publish('b', 'a', '1', deliver_at => 'infinity')$$, $$evbus.publish('b', 'a', '1', deliver_at => '-infinity')$$, $$evbus.publish('b', 'a', '1', deliver_at => now() + interval '36501 days')$$, $$evbus.publish('b', 'a', '1', deliver_at => '294276-01-01')$$,
	$$evbus.publish('b', 'a', '1', delay => '0', deliver_at => now())$$, $$evbus.publish('b', 'a', '1', priority => 10)$$, $$evbus.publish('b', 'a', '1', priority => -10)$$, $$evbus.publish_batch('b', '{a}', '{1}', priority => 10)$$, $$evbus.publish('b', 'a', '1', expires_at => '-infinity')$$, $$evbus.publish_lines('b', 'a', '1', priority => -10)$$, $$evbus.publish('b', 'a', '1', delay => '1 hour', expires_at => now())$$, $$evbus.subscribe('b', 'x', by_priority => true, ordering => 'key')$$, $$evbus.publish_batch('b', '{a}', '{1}', deliver_at => 'infinity')$$, $$evbus.publish_batch('b', '{a}', '{1}', deliver_at => now() + interval '36501 days')$$,
	$$evbus.create_bus('x', retention => '59 seconds')$$, $$evbus.create_bus('x', partition_interval => '59 seconds')$$,
	$$evbus.subscribe('b', 'x', lease => '999 milliseconds')$$, $$evbus.subscribe('b', 'x', lease => '1 day 1 second')$$, $$evbus.subscribe('b', 'x', timeout => '9 milliseconds')$$,
	$$evbus.subscribe('b', 'x', timeout => '1 day 1 second')$$, $$evbus.subscribe('b', 'x', backoff_initial => '2 seconds', backoff_max => '1 second')$$, $$evbus.subscribe('b', 'x', backoff_max => '2 years')$$,
	$$evbus.receive('s', wait => '61 seconds')$$, $$evbus.receive('s', lease => '1 day 1 second')$$, $$evbus.extend('{}', '1 day 1 second')$$]);

-- texts

INSERT INTO bad (sqlstate, call) SELECT '22023', unnest(ARRAY[
	$$evbus.create_bus('x', compression => '')$$, $$evbus.create_bus('x', compression => 'Zstd')$$, $$evbus.alter_bus('b', compression => repeat('x', 100000))$$,
	$$evbus.create_bus('x', durability => '')$$, $$evbus.create_bus('x', durability => 'solid')$$, $$evbus.seek('s', '0')$$, $$evbus.seek('s', '1000')$$,
	$$evbus.seek('s', '9223372036854775808')$$, $$evbus.seek('s', repeat('9', 100000))$$, $$evbus.subscribe('b', 'x', start_from => '0')$$,
	$$evbus.publish('b', 'a', '1', dedup_key => '')$$, $$evbus.publish('b', 'a', '1', dedup_key => repeat('k', 256))$$, $$evbus.publish('b', 'a', '1', dedup_key => repeat('é', 128))$$, $$evbus.publish('b', 'a', '1', dedup_key => repeat('k', 1000000))$$,
	$$evbus.publish('b', 'a', '1', key => repeat('k', 1025))$$, $$evbus.publish('b', 'a', '1', key => repeat('é', 513))$$, $$evbus.publish('b', 'a', '1', key => repeat('k', 1000000))$$,
	$$evbus.publish('b', 'a', '1', headers => '1')$$, $$evbus.publish('b', 'a', '1', headers => '[]')$$, $$evbus.publish('b', 'a', '1', headers => 'null')$$, $$evbus.publish('b', 'a', '1', headers => '"x"')$$,
	$$evbus.publish('b', repeat('x', 1000000), '1')$$, $$evbus.subscribe('b', 'x', types => ARRAY[repeat('x', 1000000)])$$,
	$$evbus.history_page('b', "order" => '')$$, $$evbus.history_page('b', "order" => 'Newest')$$, $$evbus.history_page('b', "order" => repeat('x', 100000))$$,
	$$evbus.history_page('b', "from" => 'infinity', "to" => '-infinity')$$, $$evbus.history_page('b', "from" => 'now', "to" => 'yesterday')$$, $$evbus.history_page('b', types => '{a..b}')$$,
	$$evbus.redrive(sqlstate => '')$$, $$evbus.redrive(sqlstate => '4200')$$, $$evbus.redrive(sqlstate => '420011')$$, $$evbus.discard(sqlstate => 'abcde', reason => 'x')$$,
	$$evbus.discard(reason => '')$$, $$evbus.discard(reason => E' \n\t')$$, $$evbus.discard(reason => repeat('x', 2049))$$, $$evbus.discard('{}'::bigint[], '')$$, $$evbus.edit_dead_letter(1, '1', '')$$,
	$$evbus.redrive(subscription => 's', bus => 'other')$$]);
INSERT INTO bad (sqlstate, call) SELECT '22007 22008', unnest(ARRAY[
	$$evbus.seek('s', '')$$, $$evbus.seek('s', 'never')$$, $$evbus.seek('s', '-1')$$, $$evbus.seek('s', '2000-13-45')$$, $$evbus.seek('s', '999999-01-01')$$, $$evbus.subscribe('b', 'x', start_from => '')$$,
	$$evbus.subscribe('b', 'x', start_from => repeat('x', 100000))$$]);
INSERT INTO bad (sqlstate, call) VALUES ('0A000', $$evbus.create_bus('x', durability => 'volatile', compression => 'dictionary')$$), ('VB002', $$evbus.create_bus('b')$$), ('VB005', $$evbus.subscribe('b', 's')$$), ('P0002', $$evbus.edit_dead_letter(1, '1', 'x')$$), ('P0002', $$evbus.edit_dead_letter(-9223372036854775808, '1', 'x')$$), ('42704', $$evbus.cancel_redrive(0)$$), ('42704', $$evbus.cancel_redrive(-9223372036854775808)$$);

-- retention and quotas

INSERT INTO bad (sqlstate, call) SELECT '22023', format(call, v) FROM
	(VALUES ($$evbus.create_bus('x', retention_bytes => %s)$$), ($$evbus.alter_bus('b', retention_bytes => %s)$$)) AS c (call),
	(VALUES ('-1'), ('1'), ('1048575'), ('1125899906842625'), ('9223372036854775807'), ('-9223372036854775808')) AS v (v);
INSERT INTO bad (sqlstate, call) SELECT '22023', unnest(ARRAY[
	$$evbus.create_bus('x', retention_policy => '')$$, $$evbus.create_bus('x', retention_policy => 'drop')$$, $$evbus.alter_bus('b', retention_policy => 'Keep_unconsumed')$$, $$evbus.alter_bus('b', retention_policy => repeat('x', 100000))$$,
	$$evbus.subscribe('b', 'x', max_dead_letters => -1)$$, $$evbus.subscribe('b', 'x', max_dead_letters => 10000001)$$, $$evbus.alter_subscription('s', max_dead_letters => -2147483648)$$, $$evbus.alter_subscription('s', max_dead_letters => 2147483647)$$,
	$$evbus.subscribe('b', 'x', dead_letters_full => '')$$, $$evbus.subscribe('b', 'x', dead_letters_full => 'drop_newest')$$, $$evbus.alter_subscription('s', dead_letters_full => 'Pause')$$,
	$$evbus.subscribe('b', 'x', filter => '$who')$$, $$evbus.alter_subscription('s', filter => '$.a == $Key')$$, $$evbus.subscribe('b', 'x', max_age => '-1 microsecond')$$, $$evbus.alter_subscription('s', max_age => '102 years')$$,
	$$evbus.subscribe('b', 'x', breaker_threshold => -0.1)$$, $$evbus.subscribe('b', 'x', breaker_threshold => 1.01)$$, $$evbus.alter_subscription('s', breaker_threshold => 'NaN')$$, $$evbus.alter_subscription('s', breaker_threshold => '-Infinity')$$,
	$$evbus.subscribe('b', 'x', breaker_min => 1)$$, $$evbus.alter_subscription('s', breaker_min => 101)$$, $$evbus.alter_subscription('s', breaker_min => -2147483648)$$,
	$$evbus.subscribe('b', 'x', breaker_window => '999 ms')$$, $$evbus.alter_subscription('s', breaker_window => '1 day 1 second')$$, $$evbus.alter_subscription('s', breaker_window => '-1 minute')$$,
	$$evbus.subscribe('b', 'x', breaker_probe => '9 ms')$$, $$evbus.alter_subscription('s', breaker_probe => '61 minutes')$$, $$evbus.alter_subscription('s', breaker_probe => '100000000 years')$$]);
INSERT INTO bad (sqlstate, call) VALUES ('22P02', $$evbus.subscribe('b', 'x', filter => '')$$), ('42601', $$evbus.alter_subscription('s', filter => '$.a >')$$);
INSERT INTO bad (sqlstate, call) VALUES ('22P02', $$evbus.dead_letter_line('x')$$), ('25001', $$CALL evbus.maintain()$$);

-- Calls that begin with CALL are procedures, the others functions.
CREATE FUNCTION statement(call text) RETURNS text LANGUAGE sql AS $$SELECT CASE WHEN call LIKE 'CALL %' THEN call ELSE 'SELECT * FROM ' || call END$$;
SELECT ok(answer = ANY (string_to_array(sqlstate, ' ')), format('%s %s%s', sqlstate, replace(left(call, 100), E'\n', '\n'), CASE WHEN NOT answer = ANY (string_to_array(sqlstate, ' ')) THEN ' but got ' || answer END))
FROM (SELECT *, sqlstate_of(statement(call)) AS answer FROM bad ORDER BY n OFFSET 0) AS b;
SELECT is_empty($$SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'evbus'::regnamespace AND proname !~ '^_' AND proname NOT IN ('maintain', 'health') AND p.pronargs > 0
	AND NOT EXISTS (SELECT 1 FROM bad WHERE call ~ ('evbus\.' || proname || '\('))$$, 'this file names every function that takes arguments');

-- the message names the argument

CREATE FUNCTION message_of(statement text) RETURNS text LANGUAGE plpgsql AS $$BEGIN EXECUTE statement; RETURN NULL; EXCEPTION WHEN OTHERS THEN RETURN SQLERRM; END$$;
SELECT is(message_of(statement(call)), message, message || ': ' || call)
FROM (VALUES
	($$evbus.create_bus(NULL)$$, 'argument "bus" must not be null'),
	($$evbus.publish('b', 'a', NULL)$$, 'argument "payload" must not be null'),
	($$evbus.publish_batch('b', NULL, '{}')$$, 'argument "types" must not be null'),
	($$evbus.subscribe('b', NULL)$$, 'argument "subscription" must not be null'),
	($$evbus.ack(NULL)$$, 'argument "receipts" must not be null'),
	($$evbus.extend('{}', NULL)$$, 'argument "lease" must not be null'),
	($$CALL evbus.wait('s', NULL)$$, 'argument "timeout" must not be null'),
	($$evbus.redrive(NULL::bigint[])$$, 'argument "dead_letter_ids" must not be null')) AS v (call, message);

-- a message that shows a part of a value never cuts a character in two

SELECT lives_ok(format('SELECT convert_from(convert_to(message_of(statement(%L)), ''UTF8''), ''UTF8'')', call), 'the message is whole: ' || left(call, 40))
FROM (VALUES ($$evbus.ack(ARRAY[repeat('注', 50)])$$), ($$evbus.ack(ARRAY['x' || repeat('注', 50)])$$), ($$evbus.ack(ARRAY['xx' || repeat('注', 50)])$$),
	($$evbus.create_bus(repeat('注', 1000))$$), ($$evbus.publish('b', repeat('注', 1000), '1')$$), ($$evbus.publish(repeat('注', 1000), 'a', '1')$$)) AS v (call);
CREATE FUNCTION detail_of(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE detail text;
BEGIN
	EXECUTE statement;
	RETURN NULL;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
	RETURN detail;
END $$;
SELECT lives_ok(format('SELECT convert_from(convert_to(detail_of(statement(%L)), ''UTF8''), ''UTF8'')', call), 'the detail is whole: ' || left(call, 40))
FROM (VALUES ($$evbus.publish('b', repeat('注', 1000), '1')$$), ($$evbus.publish('b', 'x' || repeat('注', 1000), '1')$$), ($$evbus.publish('b', 'xx' || repeat('注', 1000), '1')$$),
	($$evbus.subscribe('b', 'x', types => ARRAY['x' || repeat('注', 1000)])$$), ($$evbus.subscribe('b', 'x', types => ARRAY['xx' || repeat('注', 1000)])$$)) AS v (call);

-- what is allowed at the edge

CREATE TABLE good (n integer GENERATED ALWAYS AS IDENTITY, call text);
INSERT INTO good (call) SELECT unnest(ARRAY[
	$$evbus.create_bus('x', retention => '1 minute', partition_interval => '1 minute', max_payload_bytes => 1)$$, $$evbus.create_bus('x', retention => '1 year')$$, $$evbus.alter_bus('b')$$,
	$$evbus.create_bus('x', retention_bytes => 1048576)$$, $$evbus.create_bus('x', retention_bytes => 1125899906842624, retention_policy => 'drop_unconsumed')$$, $$evbus.alter_bus('b', retention_bytes => 0)$$,
	$$evbus.subscribe('b', 'x', max_dead_letters => 1, dead_letters_full => 'drop_oldest')$$, $$evbus.alter_subscription('s', max_dead_letters => 10000000)$$,
	$$evbus.subscribe('b', 'x', filter => '$key', max_age => '36500 days')$$, $$evbus.subscribe('b', 'x', filter => NULL, max_age => NULL)$$, $$evbus.alter_subscription('s', filter => 'strict $', max_age => '0')$$,
	$$evbus.subscribe('b', 'x', breaker_threshold => 1, breaker_window => '1 second', breaker_min => 2, breaker_probe => '10 ms')$$, $$evbus.alter_subscription('s', breaker_threshold => 1e-300, breaker_window => '1 day', breaker_min => 100, breaker_probe => '1 hour')$$, $$evbus.alter_subscription('s', breaker_threshold => 0)$$,
	$$evbus.publish('b', 'a', 'null')$$, $$evbus.publish('b', 'a', '1', key => '')$$, $$evbus.publish('b', 'a', '1', key => repeat('k', 1024))$$, $$evbus.publish('b', 'a', '1', headers => '{}')$$,
	$$evbus.publish('b', repeat('x', 255), '1')$$, $$evbus.publish_batch('b', '{}', '{}')$$, $$evbus.publish_batch('b', '{}', '{}', '{}', '{}')$$, $$evbus.publish_batch('b', '{a}', '{1}', '{NULL}', '{NULL}')$$,
	$$evbus.publish_batch('b', '[5:6]={a,b}', '[7:8]={1,2}')$$, $$evbus.publish_lines('b', 'a', '', '{}', '{}')$$, $$evbus.publish_lines('b', 'a', '1', '{NULL}')$$,
	$$evbus.subscribe('b', 'x', batch_size => 1)$$, $$evbus.subscribe('b', 'x', batch_size => 10000)$$, $$evbus.subscribe('b', 'x', max_attempts => 1)$$, $$evbus.subscribe('b', 'x', max_attempts => 1000)$$,
	$$evbus.subscribe('b', 'x', backoff_initial => '0')$$, $$evbus.subscribe('b', 'x', backoff_initial => '0', backoff_max => '0')$$, $$evbus.subscribe('b', 'x', backoff_initial => '1 year', backoff_max => '1 year')$$,
	$$evbus.subscribe('b', 'x', lease => '1 second')$$, $$evbus.subscribe('b', 'x', lease => '1 day')$$, $$evbus.subscribe('b', 'x', timeout => '10 milliseconds')$$, $$evbus.subscribe('b', 'x', timeout => '1 day')$$,
	$$evbus.subscribe('b', 'x', types => ARRAY[repeat('x', 255)])$$, $$evbus.subscribe('b', 'x', types => '[5:6]={a,b}')$$, $$evbus.alter_subscription('s')$$, $$evbus.pause('s', NULL)$$, $$evbus.pause('s', '')$$,
	$$evbus.pause('s', repeat('why ', 1000))$$, $$evbus.receive('s', 10000)$$, $$evbus.receive('s', wait => '0')$$, $$evbus.receive('s', lease => '1 second')$$,
	$$CALL evbus.wait('s', '0')$$, $$evbus.ack('{}')$$, $$evbus.nack('{}')$$, $$evbus.nack('{}', '0')$$, $$evbus.nack('{}', NULL, NULL)$$, $$evbus.reject('{}')$$, $$evbus.reject('{}', NULL)$$, $$evbus.reject('{}', '')$$,
	$$evbus.seek('s', 'infinity')$$, $$evbus.seek('s', '-infinity')$$, $$evbus.subscribe('b', 'x', start_from => 'infinity')$$,
	$$evbus.subscribe('b', 'x', start_from => '-infinity')$$, $$evbus.extend('{}', '1 second')$$, $$evbus.release('{}')$$, $$evbus.redrive('{}'::bigint[])$$, $$evbus.redrive(dead_after => 'infinity')$$, $$evbus.redrive(dead_before => '-infinity')$$,
	$$evbus.redrive(max_events => 9223372036854775807)$$, $$evbus.discard('{}'::bigint[], 'x')$$, $$evbus.discard(dead_after => '-infinity', dead_before => 'infinity', reason => repeat('x', 2048))$$, $$evbus.redrive(rate => 1)$$, $$evbus.redrive(rate => 10000, max_events => 1)$$, $$evbus.redrive(rate => NULL, dry_run => true)$$, $$evbus.dead_letter_top('10 years', 2147483647)$$, $$evbus.report_html(repeat('é', 127), 1000, true)$$, $$evbus.report_html(NULL, 1)$$]);
SELECT is(sqlstate_of(statement(call)), '00000', 'allowed: ' || left(call, 100)) FROM good ORDER BY n;

-- payloads

CREATE TABLE huge AS SELECT jsonb_build_object('text', repeat('x', 1000000)) AS payload;
SELECT ok(evbus.publish('b', 'a', payload) > 0, 'a payload of 1 MB is taken') FROM huge;
SELECT is(count(*), 3::bigint, 'also three of them in a batch') FROM huge, evbus.publish_batch('b', '{a,a,a}', ARRAY[payload, payload, payload]);
SELECT is(sqlstate_of($$SELECT evbus.publish('b', 'a', jsonb_build_object('text', repeat('x', 200 * 1024 * 1024)))$$), '54000', 'a payload of 200 MB is refused, it is over the limit of 16 MB');
SELECT is(sqlstate_of($$SELECT * FROM evbus.publish_batch('b', '{a,a}', ARRAY['1', jsonb_build_object('text', repeat('x', 200 * 1024 * 1024))])$$), '54000', 'also in a batch');
SELECT is(sqlstate_of($$SELECT evbus.publish_lines('b', 'a', E'1\n' || to_jsonb(repeat('x', 200 * 1024 * 1024))::text)$$), '54000', 'also in lines');
SELECT is(sqlstate_of($$SELECT evbus.publish('b', 'a', '1', headers => jsonb_build_object('text', repeat('x', 200 * 1024 * 1024)))$$), '54000', 'also as headers');
SELECT is((SELECT md5(payload ->> 'text') FROM evbus.history WHERE length(payload ->> 'text') = 1000000 LIMIT 1), md5(repeat('x', 1000000)), 'what was taken is whole');

-- nothing of all this left a trace

SELECT is((SELECT jsonb_agg(b ORDER BY b.bus_id) FROM evbus.bus b), buses, 'buses are as they were') FROM before_;
SELECT is((SELECT jsonb_agg(s ORDER BY s.subscription_id) FROM evbus.subscription s), subscriptions, 'subscriptions are as they were') FROM before_;
SELECT is((SELECT count(*) FROM evbus.history), 5::bigint, 'the history holds the one event of the start and the four big ones');
SELECT is(evbus.ack(ARRAY[:'receipt']), 1, 'and the receipt of the start is still good');

SELECT * FROM finish();
