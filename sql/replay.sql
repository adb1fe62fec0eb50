-- What the user reads when a replay cannot be made.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS evbus;
RESET client_min_messages;

SELECT evbus.create_bus('regress replay');
SELECT evbus.subscribe('regress replay', 'regress replayed') AS position;
SELECT count(evbus.publish('regress replay', 'old', to_jsonb(i))) FROM generate_series(1, 5) i;

-- where it begins and ends
SELECT evbus.replay('regress replayed', NULL);
SELECT evbus.replay('regress replayed', '0');
SELECT evbus.replay('regress replayed', '1', '7');
SELECT evbus.replay('regress replayed', 'yesterda');
SELECT evbus.replay('regress replayed', '1', 'tomorrow');
SELECT evbus.replay('regress replayed', '4', '2');
SELECT evbus.replay('regress replayed', 'now');
SELECT evbus.replay('regress replayed', 'beginning', '2000-01-01');

-- types, rate
SELECT evbus.replay('regress replayed', '1', types => '{}');
SELECT evbus.replay('regress replayed', '1', types => '{a..b}');
SELECT evbus.replay('regress replayed', '1', rate => 0);

-- whose it is, and which
SELECT evbus.replay('no such subscription', '1');
SELECT evbus.cancel_replay(0);
CREATE ROLE regress_replay_other;
GRANT USAGE ON SCHEMA evbus TO regress_replay_other;
GRANT EXECUTE ON FUNCTION evbus.replay, evbus.cancel_replay TO regress_replay_other;
CREATE TABLE regress_replay AS SELECT evbus.replay('regress replayed', '1') AS replay_id;
GRANT SELECT ON regress_replay TO regress_replay_other;
SET ROLE regress_replay_other;
SELECT evbus.replay('regress replayed', '1');
SELECT evbus.cancel_replay(replay_id) FROM regress_replay;
RESET ROLE;

-- in a list, and in the way
SELECT state, subscription, bus, start_position, stop_position, types, rate, done, total, in_flight, retries, finished_at
FROM evbus.replay_list JOIN regress_replay USING (replay_id);
SELECT evbus.seek('regress replayed', 'now');
SELECT evbus.drop_bus('regress replay');
SELECT evbus.cancel_replay(replay_id), evbus.cancel_replay(replay_id) FROM regress_replay;
SELECT evbus.drop_bus('regress replay');

DROP TABLE regress_replay;
REVOKE ALL ON SCHEMA evbus FROM regress_replay_other;
REVOKE ALL ON FUNCTION evbus.replay, evbus.cancel_replay FROM regress_replay_other;
DROP ROLE regress_replay_other;
