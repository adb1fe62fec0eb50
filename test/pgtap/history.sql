-- The past: pages of it, the leaves and indexes they are read from, one event by id, a cursor over everything.
\ir include/helpers.sql
SELECT plan(74);

-- Leaves of yesterday's last hours, made as the maintainer would have, and events in them.
CREATE FUNCTION midnight() RETURNS timestamptz LANGUAGE sql STABLE AS $$SELECT date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'$$;
CREATE FUNCTION make_leaf(bus text, hours_ago integer) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	lo timestamptz := midnight() - make_interval(hours => hours_ago);
	class integer := storage_class_id FROM evbus.bus b WHERE b.bus = make_leaf.bus;
	name text := format('event_c%s_p%s', class, to_char(lo AT TIME ZONE 'UTC', 'YYYYMMDD_HH24MISS'));
BEGIN
	EXECUTE format('CREATE TABLE evbus.%I (LIKE evbus.event_log INCLUDING STORAGE)', name);
	EXECUTE format('ALTER TABLE evbus.%I ADD PRIMARY KEY (event_id)', name);
	EXECUTE format('ALTER TABLE evbus.event_c%s ATTACH PARTITION evbus.%I FOR VALUES FROM (%s) TO (%s)', class, name, evbus._time_event(lo), evbus._time_event(lo + interval '1 hour'));
	RETURN name;
END $$;
-- One event in a hundred failed, one is rare; a key is that of every fiftieth, every seventh has none.
CREATE FUNCTION fill(bus text, hours_ago integer, n integer) RETURNS void LANGUAGE sql AS $$
	INSERT INTO evbus.event_log
	SELECT evbus._time_event(midnight() - make_interval(hours => hours_ago)) + i * 4096 + b.bus_id, b.storage_class_id, b.bus_id,
		CASE WHEN i = 777 THEN 'audit.rare' WHEN i % 100 = 0 THEN 'order.failed' ELSE 'order.created' END,
		CASE WHEN i % 7 > 0 THEN 'k' || i % 50 END, NULL, p.payload
	FROM evbus.bus b, generate_series(1, n) AS i,
		(SELECT payload, evbus._decode(payload) AS decoded FROM evbus.event_log WHERE type = 'pattern') p
	WHERE b.bus = fill.bus AND p.decoded = to_jsonb(i % 5)
	ORDER BY i;
$$;

SELECT evbus.create_bus('patterns');
SELECT count(evbus.publish('patterns', 'pattern', to_jsonb(i))) AS n FROM generate_series(0, 4) i \gset
SELECT evbus.create_bus('orders', retention => '2 days', partition_interval => '1 day');
SELECT make_leaf('orders', 2) AS leaf2, make_leaf('orders', 1) AS leaf1 \gset
SELECT fill('orders', 2, 2000), fill('orders', 1, 2000);
SELECT leaf AS leaf0 FROM evbus.leaf_list WHERE now() >= from_time AND now() < to_time AND leaf LIKE split_part(:'leaf1', '_p', 1) || '%' \gset

-- leaf_list, and the indexer

SELECT columns_are('evbus', 'leaf_list', '{storage_class_id,retention,partition_interval,leaf,from_time,to_time,rows,bytes,closed,indexed}'::name[], 'columns of leaf_list');
SELECT results_eq(format('SELECT leaf, closed FROM evbus.leaf_list WHERE leaf IN (%L, %L, %L) ORDER BY from_time', :'leaf2', :'leaf1', :'leaf0'),
	format('VALUES (%L, true), (%L, true), (%L, false)', :'leaf2', :'leaf1', :'leaf0'), 'leaves whose time has passed are closed, that of now is not');
SELECT is(poll(format('SELECT count(*)::text FROM evbus.leaf_list WHERE leaf IN (%L, %L) AND indexed', :'leaf2', :'leaf1'), '2', '40 seconds'), '2', 'closed leaves are indexed by and by');
SELECT results_eq(format('SELECT to_time - from_time, rows, retention, partition_interval FROM evbus.leaf_list WHERE leaf = %L', :'leaf2'),
	$$VALUES (interval '1 hour', 2000::bigint, interval '2 days', interval '1 day')$$, 'leaf_list tells range, rows and class of a leaf');
SELECT is(bytes, pg_total_relation_size(('evbus.' || leaf)::regclass), 'and its bytes') FROM evbus.leaf_list WHERE leaf = :'leaf2';
SELECT is_empty($$SELECT leaf FROM evbus.leaf_list WHERE NOT closed AND indexed$$, 'no open leaf is indexed');
SELECT is(indkey::text, '3 4 1', 'the index by type begins with the bus and ends with the id') FROM pg_index WHERE indexrelid = format('evbus.%I', :'leaf1' || '_by_type')::regclass;
SELECT is(indkey::text || ' ' || pg_get_expr(indpred, indrelid), '3 5 1 (key IS NOT NULL)', 'so does the one by key, of events that have one') FROM pg_index WHERE indexrelid = format('evbus.%I', :'leaf1' || '_by_key')::regclass;
BEGIN;
SELECT evbus.publish('orders', 'order.created', '1', key => 'open') AS id \gset
SELECT cmp_ok(evbus._oldest_open(), '<=', :id, 'while a publisher is open, no leaf it may write to counts as closed');
COMMIT;
SELECT cmp_ok(evbus._oldest_open(), '>', :id, 'once it has committed, its time has passed');

-- Page by page as a client does it; what comes is compared with the view.

CREATE FUNCTION walk(bus text, size integer, direction text, types text[] DEFAULT NULL, key text DEFAULT NULL, from_ timestamptz DEFAULT NULL,
					 to_ timestamptz DEFAULT NULL, filter jsonpath DEFAULT NULL) RETURNS SETOF evbus.history LANGUAGE plpgsql AS $$
DECLARE
	last bigint;
	row evbus.history;
	n integer;
BEGIN
	LOOP
		n := 0;
		FOR row IN SELECT * FROM evbus.history_page(bus, types, key, from_, to_, last, size, direction, filter) LOOP
			n := n + 1;
			last := row.event_id;
			RETURN NEXT row;
		END LOOP;
		EXIT WHEN n < size;
	END LOOP;
END $$;
CREATE FUNCTION same(arguments text, condition text, description text) RETURNS SETOF text LANGUAGE sql AS $$
	SELECT results_eq(format('SELECT * FROM walk(''orders'', %s, %L, %s)', size, direction, arguments),
		format('SELECT * FROM evbus.history WHERE bus = ''orders'' AND %s ORDER BY event_id %s', condition, CASE direction WHEN 'newest' THEN 'DESC' END),
		description || ', ' || direction || ' first, ' || size || ' at a time')
	FROM (VALUES ('newest', 97), ('oldest', 1500)) AS v (direction, size)
$$;
SELECT count(evbus.publish('orders', CASE i % 3 WHEN 0 THEN 'order.failed' WHEN 1 THEN 'order.created' ELSE 'payment.card.failed' END, to_jsonb(i % 5), key => 'k' || i % 50)) AS n
FROM generate_series(1, 300) AS i \gset
SELECT same('types => NULL', 'true', 'all of it');
SELECT same($$types => '{order.failed}'$$, $$type = 'order.failed'$$, 'one type');
SELECT same($$types => '{order.failed,audit.rare,no.such}'$$, $$type IN ('order.failed', 'audit.rare')$$, 'three types');
SELECT same($$types => '{a,b,c,d,e,f,g,order.failed,audit.rare}'$$, $$type IN ('order.failed', 'audit.rare')$$, 'many types');
SELECT same($$types => '{#.failed,audit.*}'$$, $$type ~ 'failed|audit'$$, 'patterns');
SELECT same($$types => '{payment.#,order.failed,order.failed,order.*,payment.card.failed,order.#}'$$, $$type !~ 'audit'$$, 'types and patterns that overlap');
SELECT same($$types => '{#}', key => 'k7'$$, $$key = 'k7'$$, 'a key');
SELECT same($$types => '{order.failed}', key => 'k0'$$, $$type = 'order.failed' AND key = 'k0'$$, 'a key and a type');
SELECT same($$filter => '$ ? (@ == 3)'$$, $$payload = '3'$$, 'a payload path');
SELECT same($$types => '{order.failed}', filter => '$ ? (@ < 2)'$$, $$type = 'order.failed' AND payload IN ('0', '1')$$, 'a type and a payload path');
SELECT same($$from_ => midnight() - interval '3601 seconds', to_ => midnight() - interval '3599 seconds 1 ms'$$,
	$$published_at >= midnight() - interval '3601 seconds' AND published_at < midnight() - interval '3599 seconds 1 ms'$$, 'a time');
SELECT same($$types => '{order.created}', from_ => midnight() - interval '1 hour' + interval '5 us', to_ => midnight() - interval '1 hour' + interval '9 us'$$,
	$$type = 'order.created' AND published_at >= midnight() - interval '1 hour' + interval '5 us' AND published_at < midnight() - interval '1 hour' + interval '9 us'$$,
	'from is in the page and to is not');
SELECT is_empty($$SELECT * FROM evbus.history_page('orders', "from" => now() + interval '10 years')$$, 'nothing in a time without leaves');
SELECT is_empty($$SELECT * FROM evbus.history_page('orders', "from" => 'infinity')$$, 'nor after the end of time');
SELECT is((SELECT count(*) FROM evbus.history_page('orders', "from" => '-infinity', "to" => 'infinity')), 100::bigint, 'infinite times are no bounds');
SELECT is_empty($$SELECT * FROM evbus.history_page('orders', after => 1)$$, 'nothing is older than the first id');
SELECT is_empty($$SELECT * FROM evbus.history_page('orders', after => 9223372036854775807, "order" => 'oldest')$$, 'nor newer than the last');

-- Pages stay exact while events are published.

CREATE TEMP TABLE page AS SELECT * FROM evbus.history_page('orders', "limit" => 50);
SELECT count(evbus.publish('orders', 'order.created', '9')) AS n FROM generate_series(1, 20) \gset
SELECT results_eq($$SELECT event_id FROM evbus.history_page('orders', after => (SELECT min(event_id) FROM page), "limit" => 50)$$,
	$$SELECT event_id FROM evbus.history WHERE bus = 'orders' AND event_id < (SELECT min(event_id) FROM page) ORDER BY 1 DESC LIMIT 50$$, 'the next page begins where the last one ended, whatever was published meanwhile');
SELECT is((SELECT count(*) FROM evbus.history_page('orders', after => (SELECT max(event_id) FROM page), "order" => 'oldest') WHERE payload = '9'), 20::bigint, 'what is new is after the newest');

-- A bus that changed its class has events in the leaves of both.

SELECT evbus.alter_bus('orders', partition_interval => '2 days');
SELECT evbus.publish('orders', 'order.failed', '10') AS id \gset
SELECT is((SELECT count(DISTINCT e.tableoid) FROM evbus.event_log e JOIN evbus.bus USING (bus_id) WHERE bus = 'orders' AND event_id >= (SELECT max(event_id) FROM page)), 2::bigint, 'there are events in leaves of two classes now');
SELECT same('types => NULL', 'true', 'over two classes');
SELECT same($$types => '{order.failed}'$$, $$type = 'order.failed'$$, 'one type over two classes');
SELECT evbus.alter_bus('orders', partition_interval => '1 day');
SELECT is((SELECT former_classes FROM evbus.bus WHERE bus = 'orders'), (SELECT array_agg(storage_class_id ORDER BY storage_class_id) FROM evbus.storage_class WHERE retention = '2 days'), 'the classes it was in are remembered, each once');

-- Plans: what is read, and what is not.  A bus of one class, so that there is nothing to be merged.

SELECT evbus.create_bus('plans', retention => '3 days', partition_interval => '1 day');
SELECT make_leaf('plans', 2) AS old2, make_leaf('plans', 1) AS old1 \gset
SELECT fill('plans', 2, 3000), fill('plans', 1, 3000);
SELECT poll(format('SELECT count(*)::text FROM evbus.leaf_list WHERE leaf IN (%L, %L) AND indexed', :'old2', :'old1'), '2', '40 seconds') AS indexed \gset
SELECT count(evbus.publish('plans', 'order.created', to_jsonb(i))) AS n FROM generate_series(1, 500) i \gset
CREATE TEMP TABLE name (leaf text PRIMARY KEY, short text);
INSERT INTO name VALUES (:'old2', 'OLD2'), (:'old1', 'OLD1');
INSERT INTO name SELECT leaf, CASE WHEN now() >= from_time AND now() < to_time THEN 'OPEN' ELSE 'AHEAD' END FROM evbus.leaf_list
WHERE leaf LIKE split_part(:'old1', '_p', 1) || '\_p%' AND leaf NOT IN (:'old2', :'old1');

-- Nodes of a plan that ran and which leaf or index of which leaf they read.
CREATE FUNCTION nodes(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	line text;
	node text;
	nodes text[] := '{}';
	n name;
BEGIN
	FOR line IN EXECUTE 'EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) ' || statement LOOP
		CONTINUE WHEN line ~ 'never executed' OR line !~ 'Scan|Sort \(|Sort$|Merge Append|Seq';
		FOR n IN SELECT * FROM name LOOP
			line := replace(line, n.leaf, n.short);
		END LOOP;
		node := regexp_replace(substring(line FROM '(?:->  )?(\w[\w ]*?)(?: e(?:_\d+)?)? \(actual'), '^ +', '');
		CONTINUE WHEN node ~ 'Subquery Scan';
		nodes := nodes || regexp_replace(node, ' on \w+$', '');
	END LOOP;
	RETURN array_to_string(nodes, ', ');
END $$;
-- The same of the statements behind a page, as far as they are needed to fill it; as history_page() plans them.
CREATE FUNCTION page_nodes(arguments text, statements integer DEFAULT 1) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	query text;
	found text[] := '{}';
	at integer := 0;
BEGIN
	FOR query IN EXECUTE format('SELECT * FROM evbus._history_query(''plans''%s)', ', ' || arguments) LOOP
		at := at + 1;
		EXIT WHEN at > statements;
		PERFORM set_config('enable_' || setting, CASE WHEN EXISTS (SELECT FROM name WHERE short = 'OPEN' AND at = 1) AND arguments !~ '"to"' THEN 'off' ELSE 'on' END, true)
		FROM unnest('{seqscan,bitmapscan,sort}'::text[]) AS setting;
		found := found || nodes(query);
	END LOOP;
	RETURN array_to_string(found, ' / ');
END $$;
CREATE FUNCTION hour(hours_ago integer) RETURNS text LANGUAGE sql AS $$SELECT quote_literal(midnight() - make_interval(hours => hours_ago))$$;
CREATE TEMP VIEW the AS SELECT '"from" => ' || hour(1) || ', "to" => ' || hour(0) AS hour_before, '"from" => ' || hour(2) || ', "to" => ' || hour(0) AS two_hours;

SELECT is((SELECT count(*) FROM evbus._history_query('plans')), 2::bigint, 'the open leaf and those ahead are read by one statement, closed ones by another');
SELECT matches(page_nodes('"limit" => 100'), '^(Index Scan Backward using AHEAD_pkey, ){1,3}Index Scan Backward using OPEN_pkey$', 'the newest page: no leaf that is closed, no sort');
SELECT is(page_nodes('"limit" => 100, ' || hour_before), 'Index Scan Backward using OLD1_pkey', 'the newest of an hour: its leaf alone, along the ids') FROM the;
SELECT is(page_nodes('"limit" => 100, "order" => ''oldest'', ' || two_hours), 'Index Scan using OLD2_pkey', 'the oldest of two hours: the second leaf is planned and not touched') FROM the;
SELECT is(page_nodes('"limit" => 20, types => ''{order.failed}'', ' || two_hours), 'Index Scan Backward using OLD1_by_type', 'a type: the newer leaf''s index by type, in order') FROM the;
SELECT is(page_nodes('types => ''{audit.rare}'', ' || two_hours), 'Index Scan Backward using OLD1_by_type, Index Scan Backward using OLD2_by_type', 'a rare type: of both leaves') FROM the;
SELECT is(page_nodes('"limit" => 20, types => ''{order.failed,audit.rare}'', ' || hour_before), 'Merge Append, Index Scan Backward using OLD1_by_type, Index Scan Backward using OLD1_by_type',
	'two types: two ranges of the index, merged') FROM the;
SELECT is(page_nodes('types => ''{audit.*}'', ' || hour_before), 'Sort, Index Scan using OLD1_by_type', 'a pattern that few match: the range of its first word') FROM the;
SELECT is(page_nodes('types => ''{order.#}'', ' || hour_before), 'Index Scan Backward using OLD1_pkey', 'a pattern that most match: along the ids') FROM the;
SELECT is(page_nodes('key => ''k7'', "limit" => 10, ' || hour_before), 'Index Scan Backward using OLD1_by_key', 'a key: the index by key, in order') FROM the;
SELECT is(page_nodes('types => ''{no.such}''', 9), page_nodes('types => ''{no.such}''', 1) || ' / Index Scan Backward using OLD1_by_type, Index Scan Backward using OLD2_by_type',
	'a type there is not: a probe of each closed leaf');

-- One event by id

SELECT max(event_id) - 4096 * 1000 AS some_id FROM evbus.history_page('plans', "to" => midnight(), "limit" => 1) \gset
SELECT matches(nodes(format('SELECT * FROM evbus.history WHERE event_id = %s', :some_id)), 'Index Scan using OLD1_pkey', 'an event by id: a probe of its leaf');
SELECT ok(nodes(format('SELECT * FROM evbus.history WHERE event_id = %s', :some_id)) !~ 'OLD2|OPEN|AHEAD|Seq Scan on event', 'and of no other of its class');
SELECT is((SELECT type FROM evbus.history WHERE event_id = :some_id), 'order.failed', 'which finds it');

-- A cursor over everything

CREATE FUNCTION plan_of(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	line text;
	plan text := '';
BEGIN
	FOR line IN EXECUTE 'EXPLAIN (COSTS OFF) ' || statement LOOP
		plan := plan || line || E'\n';
	END LOOP;
	RETURN plan;
END $$;
CREATE TEMP VIEW c AS SELECT plan_of($$DECLARE c CURSOR FOR SELECT * FROM evbus.history WHERE bus = 'plans' ORDER BY event_id$$) AS plan;
SELECT matches(plan, 'Merge Append', 'a cursor over all of a bus merges the leaves') FROM c;
SELECT doesnt_match(plan, '-> +(Incremental )?Sort\M|^(Incremental )?Sort\M|Hash Join|Seq Scan on event', 'and neither sorts nor hashes events') FROM c;

-- A row that comes late to a leaf with these indexes is in those it belongs to.

SELECT leaf AS open_leaf FROM name WHERE short = 'OPEN' \gset
SELECT format('CREATE INDEX %I ON evbus.%I (bus_id, key, event_id) WHERE key IS NOT NULL', :'open_leaf' || '_by_key', :'open_leaf'),
	format('CREATE INDEX %I ON evbus.%I (bus_id, type text_pattern_ops, event_id)', :'open_leaf' || '_by_type', :'open_leaf') \gexec
SELECT evbus.publish('plans', 'late', '1'), evbus.publish('plans', 'late', '2', key => 'late') \g /dev/null
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SELECT matches(plan_of(format('SELECT count(*) FROM evbus.%I WHERE key IS NOT NULL', :'open_leaf')), '_by_key', 'asked of the index by key ...');
SELECT format('SELECT is((SELECT count(*) FROM evbus.%I WHERE key IS NOT NULL), 1::bigint, ''... it holds the row with a key and not the one without'')', :'open_leaf') \gexec
RESET enable_seqscan;
RESET enable_bitmapscan;
SELECT is((SELECT string_agg(payload::text, ' ') FROM evbus.history_page('plans', types => '{late}')), '2 1', 'both are found by type');

-- What history_page() asks for and says

SELECT evbus.create_bus('empty');
SELECT is_empty($$SELECT * FROM evbus.history_page('empty')$$, 'a bus without events has an empty page');
SELECT throws_ok($$SELECT * FROM evbus.history_page('orders', "from" => '2026-01-02', "to" => '2026-01-02')$$, '22023', '"from" must be before "to"', 'a range of nothing is refused');
CREATE FUNCTION hint_of(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE hint text;
BEGIN EXECUTE statement; RETURN NULL; EXCEPTION WHEN OTHERS THEN GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT; RETURN hint; END $$;
SELECT is(hint_of($$SELECT * FROM evbus.history_page('orders', "order" => 'latest')$$), '''newest'' begins with the newest event, ''oldest'' with the oldest.', 'a misspelt order brings a hint');
SELECT is(hint_of($$SELECT * FROM evbus.history_page('orders', types => '{a*}')$$), hint_of($$SELECT evbus.subscribe('orders', 'x', types => '{a*}')$$), 'a bad pattern is refused as subscribe() does');
SELECT is((SELECT count(*) FROM evbus.history_page('orders', types => ARRAY['it''s', E'back\\slash'], key => E'\\''; --', filter => '$."it''s"')), 0::bigint, 'quotes and backslashes are values');
CREATE ROLE evbus_test_reader;
GRANT USAGE ON SCHEMA evbus TO evbus_test_reader;
GRANT EXECUTE ON FUNCTION evbus.history_page TO evbus_test_reader;
SELECT evbus.grant('read', 'orders', 'evbus_test_reader');
SET ROLE evbus_test_reader;
SELECT is((SELECT count(*) FROM evbus.history_page('orders', "limit" => 3)), 3::bigint, 'EXECUTE and "read" are all that a reader needs');
SELECT throws_ok('SELECT * FROM evbus.history', '42501', NULL, 'it gives no other way in');
RESET ROLE;
GRANT pg_monitor TO evbus_test_reader;
SET ROLE evbus_test_reader;
SELECT is((SELECT count(*) FROM evbus.leaf_list WHERE indexed), 4::bigint + 1, 'leaf_list is for who watches the server');
RESET ROLE;
DROP OWNED BY evbus_test_reader;
DROP ROLE evbus_test_reader;

SELECT * FROM finish();
