-- Long work (stat_progress), and a screen of text (top): as wide as it may be, who is in trouble first, and nothing in it that a terminal would act on.
\ir include/helpers.sql
SELECT plan(54);

-- long work; what it says is in t/057_progress

SELECT columns_are('evbus', 'stat_progress', '{pid,work,subject,started_at,phase,done,total,unit,id}'::name[], 'columns of stat_progress');
SELECT is_empty($$SELECT a.attname FROM pg_attribute a WHERE a.attrelid = 'evbus.stat_progress'::regclass AND a.attnum > 0 AND col_description(a.attrelid, a.attnum) IS NULL$$, 'each says what it is');
SELECT becomes('SELECT count(*)::text FROM evbus.stat_progress', '0', 'nothing takes long here');

-- a text in its place

SELECT is(evbus._fit(t, w), expected, format('%s columns: %s', w, what)) FROM (VALUES
	('abc', 3, 'abc', 'what fits'), ('abcd', 3, 'ab…', 'what does not'), ('ab', 4, 'ab  ', 'what is short'), ('', 2, '  ', 'nothing'), ('abc', 1, '…', 'no room at all'), ('a', 1, 'a', 'or just enough'),
	('日本語', 6, '日本語', 'wide characters'), ('日本語', 5, '日本…', 'cut'), ('日本語', 4, '日… ', 'cut where half of one would be left'), ('a日', 2, 'a…', 'or no room for one'),
	(E'e\u0301e', 2, E'e\u0301e', 'an accent has no column of its own'), (E'ae\u0301e\u0301', 2, E'a…', 'and goes with its letter'),
	(E'\x1b[31mred', 8, '?[31mred', 'no escape'), (E'a\nb\tc\rd\x7f', 8, 'a?b?c?d?', 'no other control character'), (E'a\u009b31m', 5, 'a?31m', 'not those above ASCII'),
	(E'\u202Eabc\u2066\u200f\u2028', 7, '?abc???', 'nothing that turns the line around or ends it')) AS v (t, w, expected, what);
SELECT throws_ok(format('SELECT evbus._fit(''x'', %s)', w), '22023', NULL, 'no width of ' || w) FROM unnest('{0,-1,1001}'::int[]) AS w;
SET client_encoding = 'LATIN1';
SELECT is(evbus._fit('abcd', 3), 'ab~', 'who has no ellipsis gets another sign');
RESET client_encoding;

SELECT is((SELECT string_agg(evbus._short(n), ' ' ORDER BY n) FROM unnest('{0,0.04,0.25,9.94,9.96,12.3,9999.4,9999.6,99900,99960,1e6,2.5e9,1e15}'::float8[]) AS n), '0 0.0 0.3 9.9 10 12 9999 10.0k 99.9k 100k 1.0M 2.5G 1000000G', 'numbers are short');
SELECT is((SELECT string_agg(evbus._short(d), ' ' ORDER BY d) FROM unnest('{0,20us,999.7us,4.5ms,45ms,999.6ms,1.25s,59s,99s,100s,3h,40h,3 days}'::interval[]) AS d), '0 20us 1.0ms 4.5ms 45ms 1.0s 1.3s 59s 99s 2m 3h 40h 3d', 'so are durations');
SELECT is(evbus._short(NULL::float8) || evbus._short(NULL::interval), '--', 'what is not known is a dash');

-- the screen

CREATE FUNCTION line(n bigint, width integer DEFAULT 100, max_rows integer DEFAULT 20) RETURNS text LANGUAGE sql AS $$SELECT t.line FROM evbus.top(width, max_rows) WITH ORDINALITY AS t(line, i) WHERE i = n$$;
CREATE FUNCTION rows_of(max_rows integer DEFAULT 20) RETURNS text LANGUAGE sql AS $$SELECT string_agg(substr(t.line, 20, 15), '|' ORDER BY i) FROM evbus.top(max_rows => rows_of.max_rows) WITH ORDINALITY AS t(line, i) WHERE t.line LIKE 'bus %'$$;
SELECT becomes($$SELECT line(1) ~ '^evbus [0-9]{4}-[0-9][0-9]-[0-9][0-9] [0-9:]{8} [^ ]+  health ok  database $$ || current_database() || $$$'$$, 'true', 'the time and that all is well');
SELECT is(line(2), 'in 0/s  delivered 0/s  done 0/s  lag 0  in flight 0', 'nothing happens');
SELECT matches(line(3), '^dead letters 0  retries 0  workers [0-9]+, busy [0-9]+  ring [0-9]+ %  leases 0 %$', 'and nothing is used');
SELECT is(line(4) || line(5), 'no subscriptions', 'as there is nobody');

SELECT evbus.create_bus('bus'), evbus.create_bus(E'\u009b31m' || repeat('b', 57)), evbus.create_bus('quiet');
SELECT becomes('SELECT ready::text FROM evbus._status()', 'true', 'the workers have loaded');
SELECT evbus.subscribe('bus', 'idle'), evbus.subscribe('bus', 'far behind'), evbus.subscribe('bus', 'asleep'), evbus.subscribe(E'\u009b31m' || repeat('b', 57), repeat('注', 20)),
	evbus.subscribe('quiet', 'last');
SELECT is(line(5), 'BUS                SUBSCRIPTION                   IN/S DONE/S    LAG OLDEST    P95 FAIL% WORK STATE', 'a heading');
SELECT is(line(5, 80), 'BUS        SUBSCRIPTION       IN/S DONE/S    LAG OLDEST    P95 FAIL% WORK STATE', 'and a narrow one');
SELECT is(rows_of(), 'asleep         |far behind     |idle           ', 'by names where nothing happens');
CREATE FUNCTION too_wide(w integer) RETURNS SETOF text LANGUAGE sql AS $$SELECT line FROM evbus.top(w) WHERE length(line) + (SELECT count(*) FROM regexp_matches(line, '注', 'g')) > w$$;
SELECT is_empty(format('SELECT too_wide(%s)', w), format('no line is wider than %s', w)) FROM unnest('{80,100,120,500}'::int[]) AS w;
SELECT is_empty($$SELECT line FROM evbus.top() WHERE line ~ '[\x01-\x1f\x7f\u0080-\u009f]'$$, 'a name does not reach the terminal as it is');
SELECT matches((SELECT line FROM evbus.top() WHERE line ~ '注'), '^\?31mb{13}… 注{13}…  +0 ', 'it is cut and made harmless');

SELECT evbus.pause('asleep');
SELECT count(*) AS n FROM evbus.publish_batch('bus', '{a}', (SELECT array_agg('1'::jsonb) FROM generate_series(1, 40))) \gset
SELECT is(evbus.ack(ARRAY(SELECT receipt FROM take('idle', 40))), 40, 'one keeps up');
SELECT evbus.ack(ARRAY(SELECT receipt FROM take('far behind', 10))) AS acked, count(*) AS held FROM take('asleep', 0) \gset
SELECT is(rows_of(), 'asleep         |far behind     |idle           ', 'who is most behind is first');
SELECT matches((SELECT line FROM evbus.top() WHERE line ~ '^bus +asleep'), '^bus +asleep +[0-9.]+ +0 +40 +[0-9.]+m?s +- +- +0 paused$', 'what is paused says so');
SELECT matches((SELECT line FROM evbus.top() WHERE line ~ '^bus +idle'), '^bus +idle +[0-9.]+ +[1-9][0-9.]* +0 +0 +[0-9.]+m?s +0 +0$', 'who keeps up has a rate, a latency and no lag');
SELECT is(rows_of(1), 'asleep         ', 'only one is shown');
SELECT is((SELECT array_agg(line) FILTER (WHERE line LIKE 'and%') FROM evbus.top(max_rows => 1)), '{and 4 more}', 'and how many are not');
SELECT is((SELECT count(*) FROM evbus.top(max_rows => 5) WHERE line LIKE 'and %'), 0::bigint, 'none where all are');
SELECT matches(line(2), '^in [1-9][0-9.]*/s  delivered [1-9][0-9.]*/s  done [1-9][0-9.]*/s  lag 70  in flight 0$', 'the whole is summed up');

-- trouble comes first

SELECT evbus.alter_subscription('idle', breaker_threshold => 0.5, breaker_min => 2, max_attempts => 1);
SELECT count(*) AS n FROM evbus.publish_batch('bus', '{a}', '{1,2,3,4}') \gset
SELECT evbus.nack(ARRAY(SELECT receipt FROM take('idle', 4)), error => E'\x1b[2J') AS failed \gset
SELECT becomes($$SELECT rows_of()$$, 'idle           |asleep         |far behind     ', 'an open breaker before any lag');
SELECT matches((SELECT line FROM evbus.top() WHERE line ~ '^bus +idle .*open'), '^bus +idle .* open$', 'which it says');
SELECT matches(line(1) || (SELECT line FROM evbus.top() WHERE line LIKE '! critical%'), 'health CRITICAL .*! critical: circuit breaker of idle: open since ', 'health says why');
SELECT is_empty('SELECT too_wide(80)', 'a long message is cut as well');
SELECT matches(line(3), '^dead letters 1 ', 'dead letters are counted');
SELECT is_empty($$SELECT line FROM evbus.top() WHERE line ~ '[\x01-\x1f\x7f\u0080-\u009f]'$$, 'messages do not reach the terminal as they are');

SELECT * FROM finish();
