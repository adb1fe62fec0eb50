-- Order by key, and strict order: one delivery of a key at a time, through failures too.
\ir include/helpers.sql
SELECT plan(63);

SELECT evbus.create_bus('orders');
SELECT evbus.subscribe('orders', 'keyed', ordering => 'key', backoff_initial => '1 hour', backoff_max => '2 hours') AS position \gset
-- Publishes type.key for each word and waits until all can be received.
CREATE PROCEDURE fresh(VARIADIC words text[]) LANGUAGE plpgsql AS $$
DECLARE
	next bigint := (SELECT next_position FROM evbus.subscription_lag WHERE subscription = 'keyed');
BEGIN
	PERFORM evbus.publish('orders', w, '1', key => nullif(split_part(w, '.', 1), 'null')) FROM unnest(words) AS w;
	COMMIT;
	PERFORM poll($q$SELECT next_position::text FROM evbus.subscription_lag WHERE subscription = 'keyed'$q$, (next + cardinality(words))::text);
END $$;
-- What a call receives, as types; the receipts are kept by type.
CREATE TABLE kept (type text, receipt text);
CREATE FUNCTION got(subscription text, n integer DEFAULT 10, lease interval DEFAULT NULL, ack text[] DEFAULT NULL) RETURNS text LANGUAGE sql AS $$
	WITH d AS (SELECT * FROM evbus.receive(got.subscription, n, got.lease, ack => got.ack) WITH ORDINALITY),
		 k AS (INSERT INTO kept SELECT type, receipt FROM d)
	SELECT coalesce(string_agg(type, ' ' ORDER BY ordinality), 'nothing') FROM d
$$;
CREATE FUNCTION of(VARIADIC t text[]) RETURNS text[] LANGUAGE sql AS $$ WITH k AS (DELETE FROM kept WHERE type = ANY (t) RETURNING receipt) SELECT array_agg(receipt) FROM k $$;

-- arguments

SELECT results_eq($$SELECT ordering, on_failure FROM evbus.subscription_list$$, $$VALUES ('key', 'block_key')$$, 'the list shows the order');
SELECT throws_ok($$SELECT evbus.subscribe('orders', 'x', ordering => 'keys')$$, '22023', 'ordering "keys" is not known', 'only known orders');
SELECT throws_ok($$SELECT evbus.subscribe('orders', 'x', ordering => NULL)$$, '22004', NULL, 'NULL is no order');
SELECT throws_ok($$SELECT evbus.alter_subscription('keyed', on_failure => 'stop')$$, '22023', 'on_failure "stop" is not known', 'only known ways to fail');

-- one of each key

CALL fresh('a.1', 'b.1', 'a.2', 'null.1', 'b.2', 'null.2', 'a.3');
SELECT is(got('keyed'), 'a.1 b.1 null.1 null.2', 'one of each key is received, and all that have none');
SELECT is(got('keyed'), 'nothing', 'what follows has to wait');
SELECT results_eq($$SELECT lag, in_flight FROM evbus.subscription_lag WHERE subscription = 'keyed'$$, $$VALUES (7::bigint, 4::bigint)$$, 'it counts as lag');
SELECT is(evbus.ack(of('a.1')), 1, 'the first of a key is acked');
SELECT is(got('keyed'), 'a.2', 'and the next one comes');
SELECT is(evbus.release(of('b.1')), 1, 'one is given back');
SELECT is(got('keyed'), 'b.1', 'and comes again, before the next one');
SELECT is(got('keyed', ack => of('b.1', 'a.2')), 'b.2 a.3', 'a call that acks is given what follows, in the order of positions');
BEGIN;
SELECT is(evbus.ack(of('a.3', 'b.2', 'null.1', 'null.2')), 4, 'the rest is acked in a transaction');
ROLLBACK;
SELECT is(got('keyed'), 'nothing', 'that is rolled back: all of it stays in hand');
SELECT is(evbus.ack((SELECT array_agg(receipt) FROM kept WHERE type IN ('a.3', 'b.2', 'null.1', 'null.2'))), 4, 'and is acked then');
TRUNCATE kept;

CALL fresh('c.1', 'c.2', 'c.3');
BEGIN;
SELECT is(got('keyed'), 'c.1', 'in a transaction');
SAVEPOINT s;
SELECT is(got('keyed', ack => of('c.1')), 'c.2', 'ack and receive');
ROLLBACK TO s;
SELECT is(got('keyed'), 'nothing', 'rolled back to between them, the first is not acked');
SELECT is(got('keyed', ack => of('c.1')), 'c.2', 'ack and receive again');
ROLLBACK;
SELECT is(got('keyed'), 'c.1', 'after a rollback it begins with the first');
SELECT is(got('keyed', ack => of('c.1')), 'c.2', 'and goes on');
SELECT is(got('keyed', ack => of('c.2')), 'c.3', 'in order');
SELECT is(evbus.ack(of('c.3')), 1, 'to the end');

-- a lease that runs out

CALL fresh('d.1', 'd.2');
SELECT is(got('keyed', lease => '1 second'), 'd.1', 'a lease of a second');
SELECT is(poll($$SELECT got('keyed')$$, 'd.1'), 'd.1', 'when it is over the same event comes, not the next');
SELECT is(evbus.ack((SELECT array_agg(receipt) FROM kept WHERE type = 'd.1')), 1, 'acked by the newer receipt');
SELECT is(poll($$SELECT got('keyed')$$, 'd.2'), 'd.2', 'the next one comes then');
SELECT is(evbus.ack(of('d.2')), 1, 'acked');
TRUNCATE kept;

-- failures hold up their key

CALL fresh('e.1', 'e.2', 'f.1', 'f.2');
SELECT is(got('keyed'), 'e.1 f.1', 'of two keys');
SELECT is(evbus.nack(of('e.1'), delay => '1 second'), 1, 'one fails');
SELECT is(evbus.ack(of('f.1')), 1, 'one does not');
SELECT is(got('keyed'), 'f.2', 'only the latter goes on');
CALL fresh('e.3');
SELECT is(got('keyed', ack => of('f.2')), 'nothing', 'what is published later for the failed key waits too');
SELECT is(poll($$SELECT got('keyed')$$, 'e.1'), 'e.1', 'until it is tried again');
BEGIN;
SELECT is(evbus.nack(of('e.1'), delay => '0'), 1, 'it fails again');
SELECT is(got('keyed'), 'nothing', 'in this transaction nothing of its key is received');
COMMIT;
SELECT is(got('keyed'), 'e.1', 'and after it the same event once more');
SELECT is(evbus.ack(of('e.1')), 1, 'it succeeds');
SELECT is(got('keyed'), 'e.2', 'and the next one comes');
SELECT is(evbus.reject(of('e.2')), 1, 'which is a dead letter');
SELECT is(got('keyed'), 'e.3', 'and holds up nobody');
SELECT is(evbus.ack(of('e.3')), 1, 'acked');

-- more than there is memory for

CREATE PROCEDURE a_lot(key text, n integer) LANGUAGE plpgsql AS $$
DECLARE
	next bigint := (SELECT next_position FROM evbus.subscription_lag WHERE subscription = 'keyed');
BEGIN
	PERFORM evbus.publish_batch('orders', array_agg(a_lot.key || '.' || i ORDER BY i), array_agg('1'::jsonb), keys => array_agg(a_lot.key)) FROM generate_series(1, n) i;
	COMMIT;
	PERFORM poll($q$SELECT next_position::text FROM evbus.subscription_lag WHERE subscription = 'keyed'$q$, (next + n)::text);
END $$;
CALL fresh('g.0');
SELECT is(got('keyed'), 'g.0', 'one of a key');
SELECT is(evbus.nack(of('g.0'), delay => '5 seconds'), 1, 'fails for some seconds');
CALL a_lot('g', 2500);
CALL fresh('h.1');
SELECT is(poll($$SELECT got('keyed')$$, 'h.1'), 'h.1', 'however many events of that key follow, others are delivered');
SELECT is(evbus.ack(of('h.1')), 1, 'acked');
SELECT cmp_ok((SELECT held_up FROM evbus.subscription_lag WHERE subscription = 'keyed'), '>=', 450::bigint, 'those are put aside');
SELECT evbus.alter_subscription('keyed', batch_size => 99);
CREATE TABLE came (n bigint GENERATED ALWAYS AS IDENTITY, type text);
CREATE PROCEDURE drain() LANGUAGE plpgsql AS $$
DECLARE
	deadline timestamptz := clock_timestamp() + interval '60 seconds';
	d record;
BEGIN
	WHILE clock_timestamp() < deadline AND (SELECT count(*) FROM came) < 2501 LOOP
		FOR d IN SELECT * FROM evbus.receive('keyed', 10, wait => '100 milliseconds') LOOP
			INSERT INTO came (type) VALUES (d.type);
			PERFORM evbus.ack(ARRAY[d.receipt]);
		END LOOP;
		COMMIT;
	END LOOP;
END $$;
CALL drain();
SELECT results_eq('SELECT type FROM came ORDER BY n', $$SELECT 'g.' || i FROM generate_series(0, 2500) i$$, 'and come in order when it succeeds');
SELECT is((SELECT held_up FROM evbus.subscription_lag WHERE subscription = 'keyed'), 0::bigint, 'none is left');

-- skip

SELECT evbus.alter_subscription('keyed', on_failure => 'skip');
CALL fresh('i.1', 'i.2');
SELECT is(got('keyed'), 'i.1', 'with on_failure => skip');
SELECT is(evbus.nack(of('i.1'), delay => '1 hour'), 1, 'one fails');
SELECT is(got('keyed'), 'i.2', 'the next one of its key goes on');
SELECT is(evbus.ack(of('i.2')), 1, 'acked');

-- strict

SELECT evbus.subscribe('orders', 'line', ordering => 'strict') AS position \gset
CALL fresh('j.1', 'k.1', 'null.3');
SELECT is(got('line'), 'j.1', 'strict: one at a time');
SELECT is(got('line'), 'nothing', 'whatever its key');
SELECT is(got('line', ack => of('j.1')), 'k.1', 'then the next');
SELECT is(evbus.nack(of('k.1'), delay => '500 milliseconds'), 1, 'which fails');
SELECT is(got('line'), 'nothing', 'and holds up all');
SELECT is(poll($$SELECT got('line')$$, 'k.1') || ' ' || got('line', ack => of('k.1')), 'k.1 null.3', 'until it succeeds');

-- handlers: batches and workers side by side, failures and errors at commit

CREATE TABLE effect (n bigint GENERATED ALWAYS AS IDENTITY, handler text, key text, i integer, attempt integer, pid integer DEFAULT pg_backend_pid());
CREATE TABLE trouble (handler text, key text, i integer, left_over integer, PRIMARY KEY (handler, key, i));
CREATE FUNCTION handle(handler text, e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF e.attempt <= (SELECT left_over FROM trouble t WHERE t.handler = handle.handler AND t.key = e.key AND i = (e.payload)::integer) THEN
		RAISE 'not yet';
	END IF;
	INSERT INTO effect (handler, key, i, attempt) VALUES (handle.handler, e.key, (e.payload)::integer, e.attempt);
END $$;
CREATE FUNCTION one(e evbus.event) RETURNS void LANGUAGE sql AS $$ SELECT handle('one', e) $$;
CREATE FUNCTION many(events evbus.event[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. cardinality(events) LOOP PERFORM handle('many', events[i]); END LOOP;
END $$;
CREATE FUNCTION line(e evbus.event) RETURNS void LANGUAGE sql AS $$ SELECT handle('line', e) $$;
SELECT evbus.create_bus('work');
SELECT evbus.subscribe('work', 'one', handler => 'one(evbus.event)', ordering => 'key', concurrency => 3, batch_size => 20, backoff_initial => '50 milliseconds', backoff_max => '100 milliseconds') AS p \gset
SELECT evbus.subscribe('work', 'many', handler => 'many(evbus.event[])', ordering => 'key', concurrency => 2, batch_size => 50, backoff_initial => '50 milliseconds', backoff_max => '100 milliseconds') AS p \gset
SELECT evbus.subscribe('work', 'row', handler => 'line(evbus.event)', ordering => 'strict', concurrency => 3, batch_size => 30, backoff_initial => '50 milliseconds', backoff_max => '100 milliseconds') AS p \gset
INSERT INTO trouble SELECT h, 'k' || k, i, 1 + i % 2 FROM unnest('{one,many,line}'::text[]) h, generate_series(1, 5) k, unnest('{3,40,41,77}'::integer[]) i;
CREATE PROCEDURE work() LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 100 LOOP
		PERFORM evbus.publish('work', 't', to_jsonb(i), key => 'k' || k) FROM generate_series(1, 10) k;
		IF i % 10 = 0 THEN COMMIT; END IF;
		IF i = 50 THEN PERFORM evbus.alter_subscription('one', concurrency => 1); COMMIT; END IF;
		IF i = 70 THEN PERFORM evbus.alter_subscription('one', concurrency => 3); COMMIT; END IF;
	END LOOP;
END $$;
CALL work();
SELECT becomes($$SELECT string_agg(handler || ' ' || count, ', ' ORDER BY handler) FROM (SELECT handler, count(*) FROM effect GROUP BY 1) e$$,
	'line 1000, many 1000, one 1000', 'every handler has had every event once');
SELECT is_empty($$SELECT * FROM (SELECT handler, key, i, lag(i, 1, 0) OVER (PARTITION BY handler, key ORDER BY n) AS before FROM effect) e WHERE i <> before + 1$$,
	'each key in its order, through failures and changes of concurrency');
SELECT is_empty($$SELECT * FROM (SELECT i, lag(i, 1, 1) OVER (ORDER BY n) AS before FROM effect WHERE handler = 'line') e WHERE i < before$$,
	'strict: all of them in order');
SELECT results_eq($$SELECT handler, max(attempt) FROM effect GROUP BY 1 ORDER BY 1$$, $$VALUES ('line', 3), ('many', 3), ('one', 3)$$, 'some of them at a later attempt');
SELECT * FROM finish();
