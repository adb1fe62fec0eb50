-- A consumer in psql: wait, receive, work and ack.  psql -f consumer.sql
-- Receiving, the work and the ack are one transaction: all of it happens, or nothing.
CALL evbus.wait('mailer', '10 seconds');

BEGIN;
CREATE TEMP TABLE batch ON COMMIT DROP AS
SELECT * FROM evbus.receive('mailer', max_events => 100);

INSERT INTO mail_sent (event_id, address)
SELECT event_id, payload->>'address' FROM batch ORDER BY position;

SELECT evbus.ack(coalesce(array_agg(receipt), '{}')) AS acked FROM batch;
COMMIT;
