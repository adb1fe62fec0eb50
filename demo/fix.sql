-- billing learns a third currency, and that a gift has no unit price.
CREATE OR REPLACE FUNCTION shop.bill(event evbus.event) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	o record;
	rate numeric;
BEGIN
	SELECT * INTO o FROM jsonb_to_record(event.payload) AS (order_id bigint, currency text, quantity integer, amount numeric);
	rate := CASE o.currency WHEN 'EUR' THEN 1 WHEN 'USD' THEN 0.9 WHEN 'SEK' THEN 0.09 END;
	IF rate IS NULL THEN
		RAISE EXCEPTION 'currency % is not supported', o.currency;
	END IF;
	INSERT INTO shop.invoice VALUES (event.event_id, o.order_id, o.amount * rate, o.amount / nullif(o.quantity, 0), event.attempt);
END $$;
