-- What several pgTAP files need; each file includes this one with \ir.
\set QUIET 1
\pset format unaligned
\pset tuples_only on
\pset pager off

SET client_min_messages = warning;

-- Asks until the answer is the expected one or patience ends; returns the last answer.
-- Each question sees a fresh snapshot, so what workers committed meanwhile shows.
CREATE FUNCTION poll(question text, expected text, patience interval DEFAULT '20 seconds')
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	deadline timestamptz := clock_timestamp() + patience;
	answer text;
BEGIN
	LOOP
		PERFORM pg_stat_clear_snapshot();
		EXECUTE question INTO answer;
		EXIT WHEN answer IS NOT DISTINCT FROM expected OR clock_timestamp() > deadline;
		PERFORM pg_sleep(0.02);
	END LOOP;
	RETURN answer;
END $$;

-- An assertion about something that workers bring about.
CREATE FUNCTION becomes(question text, expected text, description text)
RETURNS SETOF text LANGUAGE sql AS $$
	SELECT is(poll(question, expected), expected, description);
$$;

-- Receives until it holds n deliveries or patience ends: a commit of several events may be placed in steps.
CREATE FUNCTION take(subscription text, n integer, lease interval DEFAULT NULL, patience interval DEFAULT '20 seconds')
RETURNS SETOF evbus.delivery LANGUAGE plpgsql AS $$
DECLARE
	deadline timestamptz := clock_timestamp() + patience;
	held integer := 0;
	d evbus.delivery;
BEGIN
	WHILE held < n AND clock_timestamp() < deadline LOOP
		FOR d IN SELECT * FROM evbus.receive(take.subscription, n - held, take.lease, wait => '500 milliseconds') LOOP
			held := held + 1;
			RETURN NEXT d;
		END LOOP;
	END LOOP;
END $$;

-- Takes n deliveries, acks them and tells their types in the order received.
CREATE FUNCTION consume(subscription text, n integer)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	receipts text[];
	types text;
BEGIN
	SELECT array_agg(t.receipt), string_agg(t.type, ' ' ORDER BY t.ordinality) INTO receipts, types
	FROM take(consume.subscription, n) WITH ORDINALITY AS t;
	IF receipts IS NOT NULL THEN
		PERFORM evbus.ack(receipts);
	END IF;
	RETURN types;
END $$;

-- The SQLSTATE a statement ends with, '00000' when it works; what it did is undone.
CREATE FUNCTION sqlstate_of(statement text)
RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement;
	RAISE EXCEPTION USING ERRCODE = 'ZZ000';
EXCEPTION
	WHEN SQLSTATE 'ZZ000' THEN RETURN '00000';
	WHEN OTHERS THEN RETURN SQLSTATE;
END $$;
