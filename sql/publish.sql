-- What the user reads when an event cannot be published.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS evbus;
RESET client_min_messages;

SELECT evbus.create_bus('regress publish', max_payload_bytes => 1000);

-- what is stored
SELECT evbus.publish('regress publish', 'order.created', '{"n": 1}') < evbus.publish('regress publish', 'order.created', '{"n": 2}', key => 'k', headers => '{"h": 1}') AS ids_grow;
SELECT count(*) FROM evbus.publish_batch('regress publish', '{order.paid,order.sent}', '{3,4}');
SELECT type, key, payload, headers, published_at <= clock_timestamp() AS time_ok FROM evbus.history WHERE bus = 'regress publish' ORDER BY event_id;

-- the bus
SELECT evbus.publish('no such bus', 'a.b', '{}');
SELECT evbus.publish(NULL, 'a.b', '{}');

-- the type
SELECT evbus.publish('regress publish', NULL, '{}');
SELECT evbus.publish('regress publish', '', '{}');
SELECT evbus.publish('regress publish', 'a..b', '{}');
SELECT evbus.publish('regress publish', 'a.', '{}');
SELECT evbus.publish('regress publish', 'a.*', '{}');
SELECT evbus.publish('regress publish', '#', '{}');
SELECT evbus.publish('regress publish', 'two words', '{}');
SELECT evbus.publish('regress publish', repeat('x', 256), '{}');

-- the payload, the key, the headers
SELECT evbus.publish('regress publish', 'a.b', NULL);
SELECT evbus.publish('regress publish', 'a.b', to_jsonb(repeat('x', 2000)));
SELECT evbus.publish('regress publish', 'a.b', '{}', key => repeat('k', 1025));
SELECT evbus.publish('regress publish', 'a.b', '{}', headers => '[1]');
SELECT evbus.publish('regress publish', 'a.b', '{}', headers => 'null');

-- priority and expiry
SELECT evbus.publish('regress publish', 'a.b', '{}', priority => 10);
SELECT evbus.publish('regress publish', 'a.b', '{}', deliver_at => '2100-01-01 00:00+00', expires_at => '2099-01-01 00:00+00');

-- batches
SELECT * FROM evbus.publish_batch('regress publish', '{a,b}', '{1}');
SELECT * FROM evbus.publish_batch('regress publish', '{a,b}', '{1,2,3}');
SELECT * FROM evbus.publish_batch('regress publish', '{}', '{1}');
SELECT * FROM evbus.publish_batch('regress publish', '{a..b}', '{1,2}');
SELECT * FROM evbus.publish_batch('regress publish', '{a}', '{1,2}', keys => '{k}');
SELECT * FROM evbus.publish_batch('regress publish', '{a,b}', '{1,2}', keys => '{k}');
SELECT * FROM evbus.publish_batch('regress publish', '{a,b}', '{1,2}', headers => ARRAY['{}']::jsonb[]);
SELECT * FROM evbus.publish_batch('regress publish', '{a,NULL}', '{1,2}');
SELECT * FROM evbus.publish_batch('regress publish', '{a,b}', '{1,NULL}');
SELECT * FROM evbus.publish_batch('regress publish', '{{a,b},{c,d}}', '{1,2,3,4}');
SELECT * FROM evbus.publish_batch('regress publish', NULL, '{1}');
SELECT * FROM evbus.publish_batch('regress publish', '{a,b..c}', '{1,2}');
SELECT * FROM evbus.publish_batch('regress publish', '{a,b}', ARRAY['1', to_jsonb(repeat('x', 2000))]);

-- limits of publishers
SELECT evbus.create_bus('regress full', max_backlog => 2);
SELECT evbus.subscribe('regress full', 'regress behind');
SELECT count(*) FROM evbus.publish_batch('regress full', '{a}', '{1,2}');
SELECT evbus.publish('regress full', 'a', '3');
SELECT * FROM evbus.publish_batch('regress full', '{a}', '{1,2,3}');
SELECT evbus.alter_bus('regress full', overflow => 'wait');
SELECT evbus.alter_bus('regress full', overflow => 'drop_oldest');
SELECT evbus.alter_bus('regress full', rate_policy => 'block');
SELECT evbus.alter_bus('regress full', max_backlog => -1);
SELECT evbus.alter_bus('regress full', publish_rate => 1000001);
SELECT evbus.limit_publisher('regress full', 'regress_nobody', 10);
SELECT evbus.drop_bus('regress full', force => true);

-- a read-only transaction
BEGIN READ ONLY;
SELECT evbus.publish('regress publish', 'a.b', '{}');
ROLLBACK;

SELECT evbus.drop_bus('regress publish');
