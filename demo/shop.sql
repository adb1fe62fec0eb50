-- A small web shop.  Its orders are ordinary rows; a trigger tells the rest of the company about them.

CREATE EXTENSION evbus;
SELECT evbus.create_bus('shop');

-- Nobody here is a superuser.
CREATE ROLE shop LOGIN;
CREATE ROLE billing LOGIN;
CREATE ROLE search LOGIN;
CREATE ROLE mailer LOGIN;

CREATE SCHEMA shop;
GRANT USAGE ON SCHEMA shop TO shop, billing, search, mailer;
GRANT evbus_publisher TO shop;
GRANT evbus_consumer TO billing, search, mailer;
SELECT evbus.grant('publish', 'shop', 'shop');
SELECT evbus.grant('subscribe', 'shop', 'evbus_consumer');	-- to all its members

CREATE SEQUENCE shop.cart;
CREATE TABLE shop.orders (
	order_id	bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	cart		bigint NOT NULL,
	state		text NOT NULL DEFAULT 'created',
	customer	text NOT NULL,
	currency	text NOT NULL,
	quantity	integer NOT NULL,
	amount		numeric(12,2) NOT NULL
);
CREATE INDEX ON shop.orders (cart);

-- What the proof counts by: which events were really committed, kept without help from evbus.
CREATE TABLE shop.published (event_id bigint NOT NULL, type text NOT NULL, order_id bigint NOT NULL);

GRANT USAGE ON SEQUENCE shop.cart TO shop;
GRANT SELECT, INSERT, UPDATE ON shop.orders TO shop;
GRANT INSERT ON shop.published TO shop;

-- order.created, order.paid, order.cancelled: the same transaction, so no event without its order and no order without its event.
CREATE FUNCTION shop.tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO shop.published (event_id, type, order_id)
	VALUES (evbus.publish('shop', 'order.' || NEW.state, to_jsonb(NEW), key => NEW.order_id::text), 'order.' || NEW.state, NEW.order_id);
	RETURN NULL;
END $$;
CREATE TRIGGER tell AFTER INSERT OR UPDATE OF state ON shop.orders FOR EACH ROW EXECUTE FUNCTION shop.tell();

-- What the three subscribers do.  No table has a unique key: a second delivery would show as a second row.
CREATE TABLE shop.invoice (event_id bigint NOT NULL, order_id bigint NOT NULL, eur numeric NOT NULL, unit_price numeric, attempt integer NOT NULL);
CREATE TABLE shop.search_entry (event_id bigint NOT NULL, order_id bigint NOT NULL, state text NOT NULL);
CREATE TABLE shop.mail_sent (event_id bigint NOT NULL, order_id bigint NOT NULL, subject text NOT NULL);
GRANT INSERT ON shop.invoice TO billing;
GRANT INSERT ON shop.search_entry TO search;
GRANT INSERT ON shop.mail_sent TO mailer;

CREATE FUNCTION shop.bill(event evbus.event) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	o record;
	rate numeric;
BEGIN
	SELECT * INTO o FROM jsonb_to_record(event.payload) AS (order_id bigint, currency text, quantity integer, amount numeric);
	IF o.order_id % 250 = 0 AND event.attempt < 3 THEN
		RAISE EXCEPTION 'the payment provider does not answer';	-- it will, later
	END IF;
	rate := CASE o.currency WHEN 'EUR' THEN 1 WHEN 'USD' THEN 0.9 END;
	IF rate IS NULL THEN
		RAISE EXCEPTION 'currency % is not supported', o.currency;
	END IF;
	INSERT INTO shop.invoice VALUES (event.event_id, o.order_id, o.amount * rate, o.amount / o.quantity, event.attempt);
END $$;

CREATE FUNCTION shop.index_orders(events evbus.event[]) RETURNS void LANGUAGE sql AS $$
	INSERT INTO shop.search_entry
	SELECT e.event_id, (e.payload->>'order_id')::bigint, e.payload->>'state' FROM unnest(events) AS e
$$;

SET SESSION AUTHORIZATION billing;
SELECT evbus.subscribe('shop', 'billing', types => '{order.paid}', handler => 'shop.bill(evbus.event)',
					   max_attempts => 4, backoff_initial => '100 ms', backoff_max => '1 second');
SET SESSION AUTHORIZATION search;
SELECT evbus.subscribe('shop', 'search', handler => 'shop.index_orders(evbus.event[])', batch_size => 500);
SET SESSION AUTHORIZATION mailer;
SELECT evbus.subscribe('shop', 'mailer', types => '{order.paid,order.cancelled}');
RESET SESSION AUTHORIZATION;

-- For the lines on the screen, and for the proof.  What is thrown away on purpose is not wanted.

CREATE TABLE shop.discarded (event_id bigint PRIMARY KEY);

CREATE VIEW shop.wanted AS
SELECT 'billing' AS subscription, event_id FROM shop.published WHERE type = 'order.paid' AND event_id NOT IN (SELECT event_id FROM shop.discarded)
UNION ALL SELECT 'search', event_id FROM shop.published
UNION ALL SELECT 'mailer', event_id FROM shop.published WHERE type IN ('order.paid', 'order.cancelled');

CREATE VIEW shop.delivered AS
SELECT 'billing' AS subscription, event_id FROM shop.invoice
UNION ALL SELECT 'search', event_id FROM shop.search_entry
UNION ALL SELECT 'mailer', event_id FROM shop.mail_sent;

CREATE VIEW shop.progress AS
SELECT subscription, coalesce(d.n, 0) AS delivered, coalesce(lag, 0) AS lag, retries, coalesce(x.n, 0) AS dead,
	   c.caught_up, c.caught_up AND retries = 0 AS drained
FROM evbus.subscription_lag
	 LEFT JOIN (SELECT subscription, count(*) AS n FROM shop.delivered GROUP BY subscription) d USING (subscription)
	 LEFT JOIN (SELECT subscription, count(*) AS n FROM evbus.dead_letter GROUP BY subscription) x USING (subscription),
	 LATERAL (SELECT coalesce(lag = 0 AND next_position > (SELECT count(*) FROM shop.published), false) AS caught_up) c;
COMMENT ON COLUMN shop.progress.caught_up IS 'every committed event has its position, and each was tried at least once';
COMMENT ON COLUMN shop.progress.drained IS 'caught up, and nothing waits to be tried again';

CREATE VIEW shop.proof AS
SELECT subscription, count(w.event_id) AS published, count(d.event_id) FILTER (WHERE w.event_id IS NOT NULL) AS done,
	   count(*) FILTER (WHERE d.event_id IS NULL) AS lost,
	   coalesce(sum(d.n - 1), 0)::bigint AS duplicated,
	   count(*) FILTER (WHERE w.event_id IS NULL) AS "never committed"
FROM shop.wanted w
	 FULL JOIN (SELECT subscription, event_id, count(*) AS n FROM shop.delivered GROUP BY subscription, event_id) d USING (subscription, event_id)
GROUP BY subscription;
COMMENT ON VIEW shop.proof IS 'every event that was committed beside every row that a subscriber wrote';
