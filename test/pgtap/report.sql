-- report_html(): its arguments, and that the page says what the views say. What a browser makes of it is in t/056_report.
\ir include/helpers.sql
SELECT plan(41);

CREATE FUNCTION page(title text DEFAULT NULL, max_rows integer DEFAULT 20, payloads boolean DEFAULT false) RETURNS xml LANGUAGE sql AS
	$$SELECT (regexp_match(evbus.report_html(title, max_rows, payloads), '<body>(.*)</body>'))[1]::xml$$;
CREATE TABLE seen (page xml);
CREATE FUNCTION look(title text DEFAULT NULL, max_rows integer DEFAULT 20, payloads boolean DEFAULT false) RETURNS void LANGUAGE sql AS
	$$DELETE FROM seen; INSERT INTO seen SELECT xmlelement(name body, page(title, max_rows, payloads))$$;
-- Texts that a path finds in the last page, and the cell of a row below the head.
CREATE FUNCTION found(path text) RETURNS text LANGUAGE sql AS $$SELECT array_to_string(xpath(path, page), '|') FROM seen$$;
CREATE FUNCTION cell(name text, head text) RETURNS text LANGUAGE sql AS
	$$SELECT found(format('string((//tr[th/bdi="%s"]/td[@data-head="%s"])[1])', name, head))$$;
CREATE FUNCTION tile(name text) RETURNS text LANGUAGE sql AS $$SELECT trim(found(format('//dl/div[dt="%s"]/dd/text()', name)))$$;

-- arguments

SELECT throws_ok($$SELECT evbus.report_html(max_rows => 0)$$, '22023', 'max_rows must be between 1 and 1000', 'at least one row');
SELECT throws_ok($$SELECT evbus.report_html(max_rows => 1001)$$, '22023', 'max_rows must be between 1 and 1000', 'not more than a thousand');
SELECT throws_ok($$SELECT evbus.report_html(max_rows => NULL)$$, '22004', NULL, 'max_rows must be told');
SELECT throws_ok($$SELECT evbus.report_html(payloads => NULL)$$, '22004', NULL, 'as must payloads');
SELECT throws_ok($$SELECT evbus.report_html('')$$, '22023', 'title must not be empty', 'a title is not empty');
SELECT throws_ok($$SELECT evbus.report_html(repeat('x', 256))$$, '22023', 'title is too long', 'nor too long');
SELECT look(repeat('x', 255)) \g /dev/null
SELECT is(found('string(//h1)'), repeat('x', 255), 'it is what the page is called');
SELECT look(E'a\x01b\x7f<&>"''') \g /dev/null
SELECT is(found('string(//h1/bdi)'), 'a␁b␡&lt;&amp;&gt;"''', 'control characters are shown as such');
SELECT look(U&'\202Egpj.exe\2066\FEFF\0085') \g /dev/null
SELECT is(found('string(//h1/bdi)'), U&'\FFFDgpj.exe\FFFD\FFFD\FFFD', 'those that turn letters around or hide do not');

-- nothing there yet

SELECT look() \g /dev/null
SELECT is(found('string(//h1)'), 'evbus: ' || current_database(), 'without a title it is the name of the database');
SELECT is(concat_ws(' ', tile('Published'), tile('Done'), tile('Lag'), tile('In flight'), tile('Wait for a retry'), tile('Dead letters')), '0 0 0 0 0 0', 'an empty bus is nothing');
SELECT is(found('count(//p[@class="empty"])'), '8', 'and each part says so');

-- something

CREATE FUNCTION bad(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'it holds %', e.payload USING ERRCODE = '22000'; END $$;
SELECT evbus.create_bus('orders'), evbus.create_bus('other'), evbus.create_bus('quiet');
SELECT evbus.subscribe('orders', 'client'), evbus.subscribe('orders', 'fails', types => '{bad.#}', handler => 'bad(evbus.event)'), evbus.subscribe('other', 'idle'), evbus.subscribe('quiet', 'asleep') \g /dev/null
SELECT evbus.pause_bus('quiet') \g /dev/null
SELECT count(evbus.publish('orders', 'good.one', '"secret payload"', key => 'secret key', headers => '{"secret": "header"}')) FROM generate_series(1, 12) \g /dev/null
SELECT count(evbus.publish('orders', 'bad.one', to_jsonb('secret payload ' || repeat('x', 600)), key => 'secret key')) FROM generate_series(1, 3) \g /dev/null
SELECT becomes($$SELECT sum(dead_letters) FROM evbus.dead_letter_total$$, '3', 'three events are dead');
SELECT becomes($$SELECT string_agg(lag::text, ' ' ORDER BY subscription) FROM evbus.subscription_lag WHERE subscription IN ('client', 'fails')$$, '15 0', 'fifteen wait for the client');
SELECT receipt FROM take('client', 2, lease => '1 hour') \g /dev/null
SELECT evbus.nack(ARRAY(SELECT receipt FROM take('client', 1)), '1 hour') \g /dev/null
SELECT becomes($$SELECT in_flight || ' ' || retries FROM evbus.subscription_lag WHERE subscription = 'client'$$, '2 1', 'two are in flight, one waits');
SELECT look() \g /dev/null

SELECT is(cell('orders', 'Published'), '15', 'what was published to a bus');
SELECT is(cell('good.one', 'Published') || ' ' || cell('bad.one', 'Published') || ' ' || cell('bad.one', 'Failed') || ' ' || cell('bad.one', 'Dead'), '12 3 3 3', 'of which type');
SELECT is(concat_ws(' ', cell('client', 'Lag'), cell('client', 'In flight'), cell('client', 'Retries')), (SELECT concat_ws(' ', lag, in_flight, retries) FROM evbus.subscription_lag WHERE subscription = 'client'),
	'how far a subscription is');
SELECT is(concat_ws(' ', tile('Lag'), tile('In flight'), tile('Wait for a retry'), tile('Dead letters')), (SELECT concat_ws(' ', sum(lag), sum(in_flight), sum(retries), 3) FROM evbus.subscription_lag), 'and all of them together');
SELECT is(cell('fails', 'State') || cell('idle', 'State') || cell('asleep', 'State'), 'warndead lettersokpausedthe bus is paused', 'how it is');
SELECT is(cell('fails', 'Failed, 1 h'), U&'100\00A0%', 'and what failed');
SELECT is(found('string(//tr[td/@data-head="There now"]/th/small)') || ' ' || cell('bad.one', 'Error') || ' ' || cell('bad.one', 'Reason') || ' ' || cell('bad.one', 'There now') || ' ' || cell('bad.one', 'Died, 24 h'),
	'fails on orders 22000 permanent 3 3', 'dead letters by type and error');
SELECT ok(found('//section//li[strong="dead letters"]') LIKE '%fails</bdi>: <bdi>3 more%', 'what evbus.health() says');
SELECT ok(found('//figure[.//h3[starts-with(., "Died")]]//tbody/tr[1]/td[1]/text()') = '3', 'when they died');
SELECT matches(cell('fails', 'p50'), '^[0-9.]+.(µs|ms|s)$', 'latency');
SELECT is((SELECT count(*) FROM evbus.stat_worker WHERE database IS NULL OR database = current_database()), (SELECT cardinality(xpath('//tr[td/@data-head="Batches"]', page))::bigint FROM seen), 'every process');
SELECT is((SELECT count(*) FROM evbus.stat_memory WHERE "limit" IS NOT NULL), (SELECT cardinality(xpath('//tr[td/@data-head="Limit"]', page))::bigint FROM seen), 'every area of memory');
SELECT is((SELECT count(*) FROM evbus.stat_upkeep), (SELECT cardinality(xpath('//tr[td/@data-head="Made until"]', page))::bigint FROM seen), 'every kind of partition');
SELECT is((SELECT count(*) FROM evbus.audit), (SELECT cardinality(xpath('//tr[td/@data-head="Session user"]', page))::bigint FROM seen), 'who did what');
SELECT is(found('count(//*[contains(., "secret") or contains(@*, "secret")])'), '0', 'no payload, key, header or error text');

-- what is left out is told

SELECT look(max_rows => 1) \g /dev/null
SELECT ok(found('//p[@class="more"]') LIKE '%and 3 more subscriptions%', 'subscriptions that are left out are counted');
SELECT ok(found('//p[@class="more"]') LIKE '%and 2 more buses%', 'as are buses');
SELECT ok(found('//p[@class="more"]') LIKE '%and 1 more types%', 'and types');
SELECT is(found('count(//tr[td/@data-head="Lag"])'), '1', 'one is shown');
SELECT is(found('string(//tr[td/@data-head="Lag"]/th/bdi)'), 'fails', 'the one that is worst');

-- payloads

SELECT look(payloads => true, max_rows => 2) \g /dev/null
SELECT ok(found('//td[@data-head="Payload"]') LIKE '%"secret payload xxx%x ... and 117 characters more%', 'payloads that are asked for, and cut');
SELECT is(cell('bad.one', 'Key'), 'secret key', 'with their keys');
SELECT matches(cell('bad.one', 'Message'), '^it holds "', 'and errors');
SELECT ok(found('//p[@class="more"]') LIKE '%and 1 more dead letters%', 'two of the three');
SELECT ok(found('string(//footer)') LIKE '%This page shows keys, error texts and payloads%', 'of which the page warns');
SELECT evbus.discard('fails', reason => 'x') \g /dev/null
SELECT look(payloads => true) \g /dev/null
SELECT is(tile('Dead letters') || cell('bad.one', 'There now') || cell('bad.one', 'Died, 24 h') || found('count(//td[@data-head="Payload"])'), '0030', 'what is discarded has died all the same');

SELECT * FROM finish();
