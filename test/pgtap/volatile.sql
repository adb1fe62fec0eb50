-- Volatile buses: in shared memory only, transactional all the same; full ones refuse or drop, as overflow says.
\ir include/helpers.sql
SELECT plan(106);

SELECT evbus.create_bus('v', durability => 'volatile');
SELECT evbus.create_bus('d');
SELECT evbus.subscribe('v', 's') AS start \gset
SELECT is((SELECT durability || ' ' || coalesce(retention::text, 'none') FROM evbus.bus_list WHERE bus = 'v'), 'volatile none', 'the list says so');
SELECT ok(:start BETWEEN extract(epoch FROM now() - interval '1 minute' - timestamptz '2000-01-01 UTC') * 1000000 AND extract(epoch FROM now() + interval '1 minute' - timestamptz '2000-01-01 UTC') * 1000000, 'positions begin at the microseconds of the clock');

-- no row, no transaction id, no WAL

CREATE FUNCTION counts() RETURNS text LANGUAGE sql AS $$SELECT concat_ws(' ', (SELECT count(*) FROM evbus.event_log), (SELECT count(*) FROM evbus.tick), (SELECT count(*) FROM evbus.ack_0), (SELECT count(*) FROM evbus.ack_1), (SELECT count(*) FROM evbus.ack_2), (SELECT count(*) FROM evbus.late))$$;
SELECT counts() AS before \gset
BEGIN;
SELECT evbus.publish('v', 'a', '{"n": 1}', key => 'k', headers => '{"h": 1}') AS id \gset
SELECT count(*) AS n FROM evbus.publish_batch('v', '{b,c}', '{2,3}', keys => '{x,NULL}') \gset
SELECT events AS lines FROM evbus.publish_lines('v', 'd', E'4\n5') \gset
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid \gset
SELECT count(*) AS early FROM evbus.receive('s', 10) \gset
COMMIT;
BEGIN;
SELECT string_agg(concat_ws(' ', type, key, payload, headers, position - :start, attempt, bus), ', ' ORDER BY position) AS got, array_agg(receipt) AS receipts, min(event_id) AS got_id FROM evbus.receive('s', 10) \gset
SELECT evbus.ack(:'receipts') AS acked \gset
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid2 \gset
COMMIT;
SELECT ok(:'no_xid', 'publish assigns no transaction id');
SELECT is(:n + :lines, 4, 'publish_batch and publish_lines do as well');
SELECT is(:early, 0, 'nothing is seen before the commit');
SELECT is(:'got'::text, 'a k {"n": 1} {"h": 1} 0 1 v, b x 2 1 1 v, c 3 2 1 v, d 4 3 1 v, d 5 4 1 v', 'what was published is received, in order');
SELECT is(:got_id, :id, 'under the id that publish returned');
SELECT is(:acked, 5, 'and acked');
SELECT ok(:'no_xid2', 'receive and ack assign no transaction id');
SELECT is(counts(), :'before', 'no table has a row more');
SELECT is((SELECT count(*) FROM evbus.receive('s', 10)), 0::bigint, 'what was acked does not come again');
SELECT is((SELECT lag || ' ' || in_flight || ' ' || dropped FROM evbus.subscription_lag WHERE subscription = 's'), '0 0 0', 'the lag is 0');
SELECT is((SELECT next_position - :start FROM evbus.bus_list WHERE bus = 'v'), 5::bigint, 'the bus knows its next position');
SELECT is((SELECT used_bytes || ' ' || events || ' ' || (ring_bytes = 4194304) || ' ' || (oldest_position = :start) || ' ' || (next_position - oldest_position) || ' ' || rejected || ' ' || waits || ' ' || dropped FROM evbus.volatile_list), '0 5 true true 5 0 0 0', 'the ring is not used, though it still has them');
SELECT is((SELECT count(*) FROM evbus.history) + (SELECT count(*) FROM evbus.history_page('v')), 0::bigint, 'it has no history');

-- rollbacks

BEGIN;
SELECT evbus.publish('v', 'undone', '1') AS id \gset
ROLLBACK;
SELECT is((SELECT used_bytes || ' ' || events FROM evbus.volatile_list), '0 5', 'a rollback leaves nothing, and gives the space back');
BEGIN;
SELECT evbus.publish('v', 'kept.1', '1') AS id \gset
SAVEPOINT a;
SELECT evbus.publish('v', 'undone', '1') AS id \gset
SAVEPOINT b;
SELECT evbus.publish('v', 'undone', '1') AS id \gset
RELEASE b;
ROLLBACK TO a;
SELECT evbus.publish('v', 'kept.2', '1') AS id \gset
SAVEPOINT c;
SAVEPOINT d;
SELECT evbus.publish('v', 'kept.3', '1') AS id \gset
RELEASE c;
SELECT evbus.publish('v', 'kept.4', '1') AS id \gset
SAVEPOINT e;
SELECT evbus.publish('v', 'undone', '1') AS id \gset
ROLLBACK TO e;
COMMIT;
SELECT is(consume('s', 4), 'kept.1 kept.2 kept.3 kept.4', 'nor does ROLLBACK TO, whatever was released before');
SELECT is((SELECT used_bytes || ' ' || events FROM evbus.volatile_list), '0 9', 'and its space is back');
CREATE FUNCTION try(fail boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM evbus.publish('v', CASE WHEN fail THEN 'undone' ELSE 'kept' END, '1');
	IF fail THEN RAISE 'x'; END IF;
EXCEPTION WHEN raise_exception THEN NULL;
END $$;
SELECT count(try(n % 3 <> 0)) FROM generate_series(1, 9) n \g /dev/null
SELECT is(consume('s', 3), 'kept kept kept', 'blocks with EXCEPTION');
BEGIN;
DO $$BEGIN PERFORM evbus.publish('v', 'undone', repeat('x', 5000000)::text::jsonb); EXCEPTION WHEN OTHERS THEN NULL; END$$;
SAVEPOINT x;
SELECT sqlstate_of($$SELECT evbus.publish('v', 'undone', '1', delay => '1 hour')$$) AS delayed \gset
ROLLBACK TO x;
SELECT evbus.publish('v', 'kept', '1') AS id \gset
COMMIT;
SELECT is(consume('s', 1), 'kept', 'calls that were refused leave nothing');
BEGIN;
SELECT evbus.publish('v', 'undone', '1') AS id \gset
SELECT throws_ok($$PREPARE TRANSACTION 'v'$$, '0A000', NULL, 'PREPARE is refused');
ROLLBACK;

-- Others write WAL now and then, so it is tried until they did not.
DO $$
DECLARE
	l pg_lsn;
BEGIN
	FOR i IN 1 .. 100 LOOP
		l := pg_current_wal_insert_lsn();
		PERFORM evbus.publish('d', 'a', '1');
		COMMIT;
		EXIT WHEN l = pg_current_wal_insert_lsn();
		l := pg_current_wal_insert_lsn();
		PERFORM evbus.publish('v', 'a', '1');
		COMMIT;
		PERFORM evbus.ack(array_agg(receipt)) FROM evbus.receive('s', 10) HAVING count(*) > 0;
		COMMIT;
		PERFORM set_config('test.wal', CASE WHEN l = pg_current_wal_insert_lsn() THEN 'stands still' ELSE 'moves' END, false);
		EXIT WHEN current_setting('test.wal') = 'stands still';
	END LOOP;
END $$;
SELECT is(current_setting('test.wal'), 'stands still', 'WAL does not move, as it does for a durable bus');

-- both kinds in one transaction

SELECT evbus.subscribe('d', 'ds') AS ignored \gset
BEGIN;
SELECT evbus.publish('d', 'd.1', '1'), evbus.publish('v', 'v.1', '1'), evbus.publish('d', 'd.2', '1'), evbus.publish('v', 'v.2', '1') \g /dev/null
COMMIT;
SELECT is(consume('s', 2) || ', ' || consume('ds', 2), 'v.1 v.2, d.1 d.2', 'a transaction may publish to both kinds');
BEGIN;
SELECT evbus.publish('d', 'd.1', '1'), evbus.publish('v', 'v.1', '1') \g /dev/null
ROLLBACK;
SELECT is((SELECT count(*) FROM evbus.receive('s')) + (SELECT count(*) FROM evbus.receive('ds', wait => '100 milliseconds')), 0::bigint, 'and roll both back');

-- deliveries: leases, failures

SELECT evbus.publish('v', 'a', '1') \g /dev/null
BEGIN;
SELECT receipt AS undone FROM evbus.receive('s') \gset
ROLLBACK;
SELECT receipt AS receipt, attempt AS attempt FROM evbus.receive('s') \gset
SELECT is(:attempt, 1, 'an aborted receive gives it back');
BEGIN;
SELECT evbus.ack(ARRAY[:'receipt']) \g /dev/null
ROLLBACK;
SELECT is(evbus.release(ARRAY[:'receipt']), 1, 'an aborted ack has not acked, a release gives it back');
SELECT receipt AS receipt FROM evbus.receive('s') \gset
SELECT is(evbus.nack(ARRAY[:'receipt'], delay => '0', error => 'once'), 1, 'nack');
SELECT is((SELECT bus || ' ' || type || ' ' || payload || ' ' || attempts || ' ' || message FROM evbus.retry_list), 'v a 1 1 once', 'what failed is in evbus.retry, with its own copy');
SELECT becomes($$SELECT used_bytes FROM evbus.volatile_list$$, '0', 'and no longer in the way');
SELECT receipt AS receipt, attempt AS attempt FROM take('s', 1) \gset
SELECT is(:attempt, 2, 'it comes again');
SELECT is(evbus.reject(ARRAY[:'receipt'], error => 'no'), 1, 'reject');
SELECT is((SELECT bus || ' ' || type || ' ' || payload || ' ' || reason FROM evbus.dead_letter), 'v a 1 rejected', 'a dead letter keeps it');
SELECT is(evbus.redrive(subscription => 's'), 1::bigint, 'which can be redriven');
SELECT is(consume('s', 1), 'a', 'and then comes');

-- types that nobody wants

SELECT evbus.subscribe('v', 'few', types => '{wanted}') AS ignored \gset
SELECT count(*) FROM evbus.publish_batch('v', array_fill('other'::text, '{5000}'), array_fill('1'::jsonb, '{5000}')) \g /dev/null
SELECT evbus.publish('v', 'wanted', '1') \g /dev/null
SELECT is(consume('few', 1), 'wanted', 'what is not wanted is passed over');
SELECT is((SELECT lag FROM evbus.subscription_lag WHERE subscription = 'few'), 0::bigint, 'and is done');
SELECT evbus.unsubscribe('few') \g /dev/null

-- seek: what is still in the ring

SELECT is(evbus.seek('s', 'now'), next_position, 'seek to now') FROM evbus.volatile_list;
SELECT is((SELECT count(*) FROM evbus.receive('s')) || ' ' || used_bytes, '0 0', 'passes all over') FROM evbus.volatile_list;
SELECT is(evbus.seek('s', 'beginning'), oldest_position, 'seek to the beginning') FROM evbus.volatile_list;
SELECT is((SELECT string_agg(type, ' ' ORDER BY position) FROM evbus.receive('s', 5)), 'a b c d d', 'gives what is still there');
SELECT ok(used_bytes > 300000, 'which is held again') FROM evbus.volatile_list;
SELECT is(evbus.seek('s', (:start + 2)::text), :start + 2::bigint, 'seek to a position');
SELECT is((SELECT string_agg(type, ' ' ORDER BY position) FROM evbus.receive('s', 3)), 'c d d', 'gives that and what follows');
SELECT is(evbus.seek('s', '1'), :start::bigint, 'a position before the oldest is the oldest');
SELECT throws_ok($$SELECT evbus.seek('s', '900000000000000000')$$, '22023', NULL, 'one that there never was is refused');
SELECT event_id AS third, position AS third_at FROM (SELECT * FROM evbus.receive('s', 5) ORDER BY position OFFSET 2 LIMIT 1) x \gset
SELECT is(evbus.seek('s', evbus._event_time(:third)::text) <= :third_at, true, 'seek to a time');
SELECT is(evbus.seek('s', (now() + interval '1 hour')::text), next_position, 'that is to come: now') FROM evbus.volatile_list;
SELECT throws_ok($$SELECT evbus.seek('s', 'yesterdayish')$$, '22007', NULL, 'no time at all is refused');
SELECT is(evbus.subscribe('v', 's2', start_from => 'beginning'), oldest_position, 'subscribe to the beginning') FROM evbus.volatile_list;
SELECT is((SELECT type FROM evbus.receive('s2')), 'a', 'gives the oldest');
SELECT evbus.unsubscribe('s2') \g /dev/null
BEGIN;
SELECT evbus.subscribe('v', 's2') \g /dev/null
SELECT throws_ok($$SELECT * FROM evbus.receive('s2')$$, '55000', NULL, 'one that was made in this transaction cannot receive yet');
ROLLBACK;

-- what volatile buses do not have

SELECT throws_ok($$SELECT evbus.publish('v', 'a', '1', delay => '1 second')$$, '0A000', NULL, 'no delay');
SELECT throws_ok($$SELECT evbus.publish('v', 'a', '1', deliver_at => now() + interval '1 day')$$, '0A000', NULL, 'no deliver_at');
SELECT throws_ok($$SELECT evbus.publish_batch('v', '{a}', '{1}', deliver_at => now() + interval '1 day')$$, '0A000', NULL, 'of no batch');
SELECT throws_ok($$SELECT evbus.publish('v', 'a', '1', dedup_key => 'k')$$, '0A000', NULL, 'no dedup_key');
SELECT throws_ok($$SELECT evbus.publish_batch('v', '{a}', '{1}', dedup_keys => '{k}')$$, '0A000', NULL, 'of no batch');
SELECT lives_ok($$SELECT evbus.publish('v', 'a', '1', delay => '0'), evbus.publish('v', 'a', '1', deliver_at => 'yesterday')$$, 'at once is allowed');
SELECT lives_ok($$SELECT evbus.publish_batch('v', '{a}', '{1}', dedup_keys => '{NULL}')$$, 'and keys that are NULL');
SELECT throws_ok($$SELECT evbus.replay('s', 'beginning')$$, '0A000', NULL, 'no replay');
SELECT throws_ok($$SELECT evbus.train_dictionary('v', dry_run => true)$$, '0A000', NULL, 'no dictionary');
SELECT throws_ok($$SELECT evbus.alter_bus('v', compression => 'dictionary')$$, '0A000', NULL, 'not even the wish');
SELECT throws_ok($$SELECT evbus.alter_bus('v', retention => '1 day')$$, '0A000', NULL, 'no retention');
SELECT throws_ok($$SELECT evbus.alter_bus('v', retention_policy => 'drop_unconsumed')$$, '0A000', NULL, 'of no kind');
SELECT lives_ok($$SELECT evbus.alter_bus('v', compression => 'none', max_payload_bytes => 8000000)$$, 'other settings can be changed');
BEGIN READ ONLY;
SELECT throws_ok($$SELECT evbus.publish('v', 'a', '1')$$, '25006', NULL, 'a read-only transaction cannot publish');
ROLLBACK;
SELECT throws_ok($$SELECT evbus.publish('v', '*', '1')$$, '22023', NULL, 'types are checked');
SELECT throws_ok($$SELECT evbus.publish('v', 'a', NULL)$$, '22004', NULL, 'payloads, too');
SELECT throws_ok($$SELECT evbus.alter_bus('v', overflow => 'drop')$$, '22023', NULL, 'and the words of overflow');

-- limits of publishers hold for them as well

SELECT evbus.alter_bus('v', max_backlog => 2) \g /dev/null
SELECT evbus.seek('s', 'now') \g /dev/null
SELECT is((SELECT count(*) FROM evbus.publish_batch('v', '{a}', '{1,2}')), 2::bigint, 'within max_backlog');
SELECT throws_ok($$SELECT evbus.publish('v', 'a', '1')$$, 'VB014', NULL, 'max_backlog');
SELECT is(consume('s', 2), 'a a', 'what was accepted');
SELECT lives_ok($$SELECT evbus.publish('v', 'a', '1')$$, 'makes room when it is done');
SELECT throws_ok($$SELECT evbus.alter_bus('v', overflow => 'drop_oldest')$$, '0A000', NULL, 'but not with drop_oldest');
SELECT evbus.alter_bus('v', max_backlog => 0, publish_rate => 1) \g /dev/null
SELECT evbus.publish('v', 'a', '1') \g /dev/null
SELECT is(sqlstate_of($$SELECT evbus.publish('v', 'a', '1'), evbus.publish('v', 'a', '1')$$), 'VB015', 'publish_rate');
SELECT evbus.alter_bus('v', publish_rate => 0) \g /dev/null

-- full: reject

SELECT evbus.seek('s', 'now') \g /dev/null
SELECT throws_like($$SELECT evbus.publish('v', 'a', to_jsonb((SELECT string_agg(md5(i::text), '') FROM generate_series(1, 200000) i)))$$, 'transaction is too large for volatile bus%', 'an event that no ring could hold');
SELECT is(sqlstate_of($$SELECT evbus.publish('v', 'a', to_jsonb((SELECT string_agg(md5(i::text), '') FROM generate_series(1, 200000) i)))$$), '54000', 'is refused at once');
SELECT is(sqlstate_of($$SELECT count(*) FROM evbus.publish_batch('v', '{a}', array_fill(to_jsonb((SELECT string_agg(md5(i::text), '') FROM generate_series(1, 2000) i)), '{100}'))$$), '54000', 'as is a transaction');
CREATE FUNCTION fill_one() RETURNS bigint LANGUAGE sql AS $$SELECT evbus.publish('v', 'fill', to_jsonb(string_agg(md5(i::text), ''))) FROM generate_series(1, 300) i$$;
SELECT count(fill_one()) AS ignored FROM generate_series(1, 200) \gset
SELECT throws_like('SELECT count(fill_one()) FROM generate_series(1, 250)', 'volatile bus "v" is full', 'a full bus refuses');
SELECT is(sqlstate_of('SELECT count(fill_one()) FROM generate_series(1, 250)'), 'VB014', 'with a state of its own');
SELECT ok(rejected > 2 AND waits = 0 AND dropped = 0, 'which is counted') FROM evbus.volatile_list;
SELECT lag AS lag FROM evbus.subscription_lag WHERE subscription = 's' \gset
SELECT is(:lag, 200, 'what was accepted is there');
SELECT is((SELECT count(*) || ' ' || evbus.ack(array_agg(receipt)) FROM take('s', 200)), '200 200', 'and delivered');
SELECT lives_ok('SELECT count(fill_one()) FROM generate_series(1, 200)', 'what is settled makes room');
SELECT evbus.pause('s') \g /dev/null
SELECT is(sqlstate_of('SELECT count(fill_one()) FROM generate_series(1, 250)'), 'VB014', 'a paused subscription keeps its events');
SELECT evbus.unsubscribe('s') \g /dev/null
SELECT lives_ok('SELECT count(fill_one()) FROM generate_series(1, 250)', 'where nobody subscribes nothing is full');

-- full: drop_oldest

SELECT evbus.alter_bus('v', overflow => 'drop_oldest') \g /dev/null
SELECT is(overflow, 'drop_oldest', 'the list says so') FROM evbus.volatile_list;
SELECT evbus.subscribe('v', 's') AS start \gset
SELECT count(*) AS ignored FROM (SELECT evbus.publish('v', 'old', '1') FROM generate_series(1, 1000)) x \gset
SELECT receipt AS held FROM evbus.receive('s', 1) \gset
SELECT count(fill_one()) AS n FROM generate_series(1, 300) \gset
SELECT count(fill_one()) AS n FROM generate_series(1, 300) \gset
SELECT is(lag + dropped, 1600::bigint, 'everything is in the ring or counted as dropped') FROM evbus.subscription_lag WHERE subscription = 's';
SELECT ok(dropped BETWEEN 1000 AND 1599, 'the oldest are gone') FROM evbus.subscription_lag WHERE subscription = 's';
SELECT throws_like(format('SELECT evbus.nack(ARRAY[%L])', :'held'), '%was overwritten', 'what is in hand, too: it cannot be kept for a retry');
SELECT is(evbus.ack(ARRAY[:'held']), 1, 'but acked');
SELECT dropped AS dropped, lag AS lag FROM evbus.subscription_lag WHERE subscription = 's' \gset
SELECT is((SELECT count(*) || ' ' || min(type) || ' ' || evbus.ack(array_agg(receipt)) FROM take('s', :lag)), :'lag' || ' fill ' || :'lag', 'the newest are delivered');
SELECT is(lag || ' ' || dropped, '0 ' || :'dropped', 'and not counted as dropped') FROM evbus.subscription_lag WHERE subscription = 's';
SELECT is(dropped || ' ' || rejected, :'dropped' || ' 0', 'the bus counts the same') FROM (SELECT dropped, rejected - rejected AS rejected FROM evbus.volatile_list) x;

SELECT evbus.subscribe('v', 'another'), evbus.unsubscribe('s') \g /dev/null
SELECT is(dropped, :'dropped'::bigint, 'also of a subscription that is gone') FROM evbus.volatile_list;

-- nor does it depend on who looks when
SELECT dropped AS before FROM evbus.volatile_list \gset
SELECT evbus.subscribe('v', 'unseen'), evbus.subscribe('v', 'moved') \g /dev/null
SELECT count(fill_one()) AS n FROM generate_series(1, 300) \gset
SELECT count(fill_one()) AS n FROM generate_series(1, 300) \gset
SELECT evbus.unsubscribe('unseen'), evbus.seek('moved', 'now') \g /dev/null
SELECT dropped - :before AS all_dropped FROM evbus.volatile_list \gset
SELECT ok(:all_dropped > 300 AND :all_dropped % 3 = 0, 'what was overwritten is counted, also if a subscription ends or is moved before anybody looks') FROM evbus.subscription_lag WHERE subscription = 'another';

-- end of buses

SELECT evbus.publish('v', 'a', '1') \g /dev/null
SELECT throws_ok($$SELECT evbus.drop_bus('v')$$, 'VB006', NULL, 'a bus with a backlog is not dropped');
SELECT lives_ok($$SELECT evbus.drop_bus('v', force => true)$$, 'unless forced');
SELECT is_empty('SELECT 1 FROM evbus.volatile_list', 'then it is gone');
SELECT evbus.create_bus('v' || i, durability => 'volatile'), evbus.publish('v' || i, 'a', '1') FROM generate_series(1, 4) i \g /dev/null
SELECT throws_ok($$SELECT evbus.create_bus('v5', durability => 'volatile')$$, 'VB003', NULL, 'there are no more than evbus.max_volatile_buses');
BEGIN;
SELECT evbus.drop_bus('v1') \g /dev/null
SELECT evbus.create_bus('v5', durability => 'volatile') \g /dev/null
SELECT throws_ok($$SELECT evbus.publish('v5', 'a', '1')$$, 'VB003', NULL, 'the ring of one that this transaction drops is not free before its commit');
COMMIT;
SELECT evbus.subscribe('v5', 's5') \g /dev/null
SELECT evbus.publish('v5', 'a', '1') \g /dev/null
SELECT is(consume('s5', 1), 'a', 'but then');
SELECT is((SELECT count(*) FROM evbus.receive('s5')), 0::bigint, 'and has nothing of the former');

-- filters

SELECT evbus.drop_bus('v5', force => true) \g /dev/null
SELECT evbus.create_bus('choosy', durability => 'volatile');
SELECT evbus.subscribe('choosy', 'choosy', filter => '$ > 1') AS p, evbus.subscribe('choosy', 'by key', filter => '$ > 1', ordering => 'key') AS q \gset
SELECT count(*) FROM evbus.publish_batch('choosy', '{c}', '{1,2,3}', keys => '{k,k,k}') \gset
SELECT is((SELECT string_agg(payload::text || ' ' || evbus.ack(ARRAY[receipt]), ', ') FROM take('choosy', 2)), '2 1, 3 1', 'a filter keeps back what is not for it');
SELECT is((SELECT payload::text || ' ' || evbus.ack(ARRAY[receipt]) FROM evbus.receive('by key')), '2 1', 'also in order');
SELECT is((SELECT payload::text || ' ' || evbus.ack(ARRAY[receipt]) FROM evbus.receive('by key')), '3 1', 'and where one had to wait for its turn');
SELECT results_eq($$SELECT subscription, lag, filtered FROM evbus.subscription_lag WHERE bus = 'choosy' ORDER BY subscription$$, $$VALUES ('by key', 0::bigint, 1::bigint), ('choosy', 0, 1)$$, 'which is done, and counted');

SELECT * FROM finish();
