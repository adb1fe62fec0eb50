-- What the user reads when a subscription cannot be made or changed.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS evbus;
RESET client_min_messages;

SELECT evbus.create_bus('regress subscribe');
CREATE FUNCTION regress_one(evbus.event) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION regress_number(integer) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION regress_set(evbus.event) RETURNS SETOF integer LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE regress_procedure(evbus.event) LANGUAGE sql AS '';

SELECT evbus.subscribe('regress subscribe', 'regress client', types => '{order.*,invoice.#}') IS NOT NULL AS ok;
SELECT evbus.subscribe('regress subscribe', 'regress handler', handler => 'regress_one(evbus.event)', backoff_max => '5 minutes') IS NOT NULL AS ok;
SELECT subscription, bus, types, handler, channel, batch_size, concurrency, max_attempts, backoff_initial, backoff_max, lease, timeout, paused, paused_reason
FROM evbus.subscription_list WHERE subscription LIKE 'regress%' ORDER BY subscription;

-- bus and name
SELECT evbus.subscribe('no such bus', 'regress');
SELECT evbus.subscribe('regress subscribe', 'regress client');
SELECT evbus.subscribe('regress subscribe', NULL);
SELECT evbus.subscribe('regress subscribe', '');
SELECT evbus.subscribe('regress subscribe', repeat('x', 64));

-- types
SELECT evbus.subscribe('regress subscribe', 'regress', types => NULL);
SELECT evbus.subscribe('regress subscribe', 'regress', types => '{}');
SELECT evbus.subscribe('regress subscribe', 'regress', types => '{a,NULL}');
SELECT evbus.subscribe('regress subscribe', 'regress', types => '{a..b}');
SELECT evbus.subscribe('regress subscribe', 'regress', types => '{"two words"}');
SELECT evbus.subscribe('regress subscribe', 'regress', types => '{{a,b},{c,d}}');

-- handlers
SELECT evbus.subscribe('regress subscribe', 'regress', handler => 'regress_number(integer)');
SELECT evbus.subscribe('regress subscribe', 'regress', handler => 'regress_set(evbus.event)');
SELECT evbus.subscribe('regress subscribe', 'regress', handler => 'regress_procedure(evbus.event)');
SELECT evbus.subscribe('regress subscribe', 'regress', handler => 'no_such_function(evbus.event)');
SELECT evbus.subscribe('regress subscribe', 'regress', handler => 0::oid);

-- start
SELECT evbus.subscribe('regress subscribe', 'regress', start_from => 'yesterdayish');
SELECT evbus.subscribe('regress subscribe', 'regress', start_from => '-1');
SELECT evbus.subscribe('regress subscribe', 'regress', start_from => '99999999999999999999');
SELECT evbus.seek('regress client', 'soon');

-- numbers and intervals
SELECT evbus.subscribe('regress subscribe', 'regress', batch_size => 0);
SELECT evbus.subscribe('regress subscribe', 'regress', max_attempts => 1001);
SELECT evbus.subscribe('regress subscribe', 'regress', backoff_initial => '-1 second');
SELECT evbus.subscribe('regress subscribe', 'regress', backoff_initial => '2 seconds', backoff_max => '1 second');
SELECT evbus.subscribe('regress subscribe', 'regress', lease => '1 millisecond');
SELECT evbus.subscribe('regress subscribe', 'regress', timeout => '2 days');
SELECT evbus.subscribe('regress subscribe', 'regress', timeout => '300000 years');
SELECT evbus.alter_subscription('regress client', max_attempts => 0);
SELECT evbus.alter_subscription('regress client', backoff_initial => '2 hours');
SELECT evbus.alter_subscription('regress client', types => '{}');

-- unknown ones
SELECT evbus.alter_subscription('no such subscription', batch_size => 1);
SELECT evbus.pause('no such subscription');
SELECT evbus.resume('no such subscription');
SELECT evbus.seek('no such subscription', 'now');
SELECT evbus.unsubscribe('no such subscription');

-- an order, or priorities
SELECT evbus.subscribe('regress subscribe', 'regress both', ordering => 'key', by_priority => true);

-- a pause tells its reason
SELECT evbus.pause('regress client', 'stock-taking');
SELECT subscription, paused, paused_reason FROM evbus.subscription_lag WHERE subscription LIKE 'regress%' ORDER BY subscription;
SELECT evbus.resume('regress client');

SELECT evbus.drop_bus('regress subscribe', force => true);
DROP FUNCTION regress_one, regress_number, regress_set;
DROP PROCEDURE regress_procedure;
