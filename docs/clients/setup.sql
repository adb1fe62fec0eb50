-- For the examples beside this file: a bus, a subscription for clients, and a table for the mails "sent".
-- In a database where CREATE EXTENSION evbus has been run:  psql -f setup.sql
SELECT evbus.create_bus('orders');
SELECT evbus.subscribe('orders', 'mailer', types => '{order.paid,order.cancelled}', backoff_initial => '1 second');
CREATE TABLE mail_sent (event_id bigint PRIMARY KEY, address text NOT NULL, sent_at timestamptz NOT NULL DEFAULT now());
