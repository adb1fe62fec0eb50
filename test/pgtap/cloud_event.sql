-- CloudEvents: what comes out is valid 1.0, what goes in comes out again, and trace context passes through untouched.
\ir include/helpers.sql
SELECT plan(73);

\set trace 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
\set state vendor=1,other@x=2

-- The rules of the CloudEvents 1.0 JSON schema (cloudevents.json, "required" and "properties"), and of the
-- specification where the schema leaves it to prose; the faults of an envelope, none of a valid one.
CREATE FUNCTION faults(e jsonb) RETURNS text LANGUAGE sql AS $$
	SELECT coalesce(string_agg(f, '; '), '') FROM (
		SELECT 'not an object' WHERE jsonb_typeof(e) <> 'object'
		UNION ALL SELECT 'no ' || a FROM unnest('{id,source,specversion,type}'::text[]) AS a WHERE NOT e ? a
		UNION ALL SELECT 'empty or no string: ' || a FROM unnest('{id,source,specversion,type,subject,time,datacontenttype,dataschema}'::text[]) AS a
			WHERE e ? a AND (jsonb_typeof(e->a) <> 'string' OR e->>a = '')
		UNION ALL SELECT 'specversion' WHERE e->>'specversion' <> '1.0'
		UNION ALL SELECT 'source' WHERE e->>'source' !~ '^[A-Za-z0-9._~:/?#@!$&''()*+,;=%-]+$'
		UNION ALL SELECT 'time' WHERE e->>'time' !~ '^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})$'
		UNION ALL SELECT 'name ' || key FROM jsonb_each(e) WHERE key !~ '^[a-z0-9]+$' AND key <> 'data_base64'
		UNION ALL SELECT 'value ' || key FROM jsonb_each(e) WHERE key <> 'data' AND jsonb_typeof(value) NOT IN ('string', 'boolean')
			AND NOT (jsonb_typeof(value) = 'number' AND value::text ~ '^-?\d+$' AND value::text::numeric BETWEEN -2147483648 AND 2147483647)
		UNION ALL SELECT 'data and data_base64' WHERE e ? 'data' AND e ? 'data_base64'
	) AS x (f)
$$;
SELECT is(faults('{"specversion": "1.0", "id": "1", "source": "/x", "type": "a"}'), '', 'the rules of this file: a valid envelope');
SELECT is(faults('{"specversion": "1", "source": "", "type": 1, "A": 1.5}'), 'no id; empty or no string: source; empty or no string: type; specversion; source; name A; value A', 'and one that is not');

SELECT evbus.create_bus('my shop/ü');
SELECT evbus.create_bus('shop');
SELECT evbus.subscribe('shop', 'client') AS position \gset

-- out

CREATE FUNCTION envelope(id bigint) RETURNS jsonb LANGUAGE sql AS $$SELECT evbus.cloud_event(h) FROM evbus.history h WHERE h.event_id = id$$;
SELECT evbus.publish('shop', 'order.created', '{"order": 1}', key => 'o-1', headers => jsonb_build_object('traceparent', :'trace', 'tracestate', :'state')) AS id \gset
SELECT envelope(:id) AS e \gset
SELECT is(faults(:'e'), '', 'an event is a valid CloudEvent');
SELECT is(:'e'::jsonb - 'time', jsonb_build_object('specversion', '1.0', 'id', :'id', 'source', '/evbus/' || current_database() || '/shop', 'type', 'order.created', 'subject', 'o-1',
	'datacontenttype', 'application/json', 'data', '{"order": 1}'::jsonb, 'traceparent', :'trace', 'tracestate', :'state'), 'with these attributes');
SELECT is((:'e'::jsonb->>'time')::timestamptz, (SELECT published_at FROM evbus.history WHERE event_id = :id), 'and the time it was published');
SET TimeZone = 'Asia/Tokyo';
SET DateStyle = 'German';
SELECT is(envelope(:id), :'e'::jsonb, 'whatever the session''s settings');
RESET TimeZone;
RESET DateStyle;
SELECT matches(:'e'::jsonb->>'time', '^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$', 'which is told in UTC');
SELECT evbus.publish('my shop/ü', 'nothing', 'null', key => '', headers => '{"X-Up": "x", "ce-x": "y", "under_score": 1, "deep": {"a": 1}, "list": [1], "none": null, "id": "evil", "data": "evil", "flag": true, "n": 5, "large": 3000000000, "fraction": 1.5}') AS id \gset
SELECT envelope(:id) AS e \gset
SELECT is(faults(:'e'), '', 'odd names and headers make a valid CloudEvent, too');
SELECT is(:'e'::jsonb - 'time', jsonb_build_object('specversion', '1.0', 'id', :'id', 'source', '/evbus/' || current_database() || '/my%20shop%2F%C3%BC', 'type', 'nothing', 'flag', true, 'n', 5, 'large', '3000000000', 'fraction', '1.5'),
	'headers become attributes where their names and values can; no data, no subject, and nobody forges an id');
SELECT is(evbus.cloud_event(h, 'urn:mine')->>'source', 'urn:mine', 'the source can be given') FROM evbus.history h WHERE event_id = :id;
SELECT evbus.publish('shop', 'a', '1', headers => '{"ce-source": "https://shop.example/orders"}') AS id \gset
SELECT is(envelope(:id)->>'source', 'https://shop.example/orders', 'or be a header');
SELECT is(evbus.cloud_event(h, 'urn:mine')->>'source', 'urn:mine', 'which the argument overrides') FROM evbus.history h WHERE event_id = :id;
SELECT throws_ok($$SELECT evbus.cloud_event(h, '') FROM evbus.history h$$, '22023', NULL, 'an empty source is refused');
SELECT is(evbus.cloud_event(NULL::evbus.event), NULL, 'NULL of NULL');
SELECT throws_ok('SELECT evbus.cloud_event(b) FROM evbus.bus b', '22023', NULL, 'a row that is no event');
SELECT throws_ok('SELECT evbus.cloud_event(ROW(1, 2))', '22023', NULL, 'or no named row at all');
SELECT throws_ok($$SELECT evbus.cloud_event('x')$$, '0A000', NULL, 'or a text');

-- trace context, unchanged from publish to handlers and clients

CREATE TABLE seen (headers jsonb, envelope jsonb);
CREATE FUNCTION see(e evbus.event) RETURNS void LANGUAGE sql AS $$INSERT INTO seen VALUES (e.headers, evbus.cloud_event(e))$$;
CREATE FUNCTION see_all(e evbus.event[]) RETURNS void LANGUAGE sql AS $$INSERT INTO seen SELECT headers, evbus.cloud_event(x) FROM unnest(e) AS x$$;
SELECT evbus.subscribe('shop', 'one', types => '{traced}', handler => 'see(evbus.event)') AS position \gset
SELECT evbus.subscribe('shop', 'many', types => '{traced}', handler => 'see_all(evbus.event[])') AS position \gset
SELECT evbus.seek('client', 'now') AS position \gset
SELECT jsonb_build_object('traceparent', :'trace', 'tracestate', :'state', 'baggage', 'a=1;p,b=%20') AS headers \gset
SELECT evbus.publish('shop', 'traced', '1', headers => :'headers') AS id \gset
SELECT evbus.publish_lines('shop', 'traced', E'2', headers => :'headers') AS lines \gset
SELECT evbus.publish_batch('shop', '{traced}', '{3}', headers => ARRAY[:'headers'::jsonb]) AS batch \gset
SELECT becomes('SELECT count(*)::text FROM seen', '6', 'two handlers got three events each');
SELECT is((SELECT count(*) FROM seen WHERE headers = :'headers'), 6::bigint, 'with their headers as they were published');
SELECT is((SELECT count(*) FROM seen WHERE envelope->>'traceparent' = :'trace' AND envelope->>'tracestate' = :'state' AND faults(envelope) = ''), 6::bigint, 'and as valid CloudEvents, with the trace context');
SELECT bag_eq($$SELECT headers, evbus.cloud_event(t)->>'traceparent' AS trace, evbus.cloud_event(t)->'data' AS data FROM take('client', 2) AS t$$, format($$SELECT %L::jsonb, %L, to_jsonb(n) FROM generate_series(1, 2) AS n$$, :'headers', :'trace'), 'receive()');
SELECT is((SELECT lines::jsonb->'headers' FROM evbus.receive_lines('client', wait => '20 seconds')), :'headers'::jsonb, 'receive_lines()');

-- in

CREATE TABLE given (n integer GENERATED ALWAYS AS IDENTITY, what text, event jsonb);
INSERT INTO given (what, event) VALUES
	('the least', '{"specversion": "1.0", "id": "A1", "source": "/s", "type": "a.b"}'),
	('all attributes', '{"specversion": "1.0", "id": "A234-1234-1234", "source": "https://github.com/cloudevents/spec/pull", "type": "com.github.pull_request.opened", "subject": "123", "time": "2018-04-05T17:31:00Z",
		"datacontenttype": "text/xml", "dataschema": "https://x.example/s#1", "comexampleextension1": "value", "comexampleothervalue": 5, "flag": false, "data": "<much wow=\"xml\"/>"}'),
	('trace context', format('{"specversion": "1.0", "id": "1", "source": "/s", "type": "a", "traceparent": "%s", "tracestate": "%s", "data": {"a": [null, {"b": 1.50}]}}', :'trace', :'state')::jsonb),
	('a time with an offset', '{"specversion": "1.0", "id": "1", "source": "a:b", "type": "a", "time": "2018-04-05T17:31:00.123456789+02:00", "data": 0}'),
	('binary data', '{"specversion": "1.0", "id": "1", "source": "/s", "type": "a", "datacontenttype": "image/png", "data_base64": "AAEC/w=="}'),
	('data false', '{"specversion": "1.0", "id": "1", "source": "/s", "type": "a", "data": false}'),
	('odd text', '{"specversion": "1.0", "id": "a \"b\" ü 注", "source": "/s?a=b&c=d", "type": "ü.注", "subject": "a b", "data": "ü"}');
-- What an envelope leaves open evbus fills in: the time of its publication, and that data is JSON.
SELECT is(faults(event), '', 'valid to begin with: ' || what) FROM given ORDER BY n;
CREATE TABLE taken AS SELECT n, evbus.publish_cloud_event('shop', event) AS event_id FROM given;
SELECT is(envelope(event_id), (CASE WHEN event ? 'data' THEN '{"datacontenttype": "application/json"}' ELSE '{}' END)::jsonb || jsonb_build_object('time', envelope(event_id)->'time') || event, 'comes back as it went in: ' || what)
FROM given JOIN taken USING (n) ORDER BY n;
SELECT is(faults(envelope(event_id)), '', 'and valid: ' || what) FROM given JOIN taken USING (n) ORDER BY n;
SELECT results_eq($$SELECT type, key, payload, headers FROM evbus.history JOIN taken USING (event_id) WHERE n = 2$$,
	$$VALUES ('com.github.pull_request.opened', '123', '"<much wow=\"xml\"/>"'::jsonb, '{"ce-id": "A234-1234-1234", "ce-source": "https://github.com/cloudevents/spec/pull", "ce-time": "2018-04-05T17:31:00Z", "ce-datacontenttype": "text/xml",
		"ce-dataschema": "https://x.example/s#1", "comexampleextension1": "value", "comexampleothervalue": 5, "flag": false}'::jsonb)$$, 'type, subject and data are type, key and payload, the rest are headers');
SELECT evbus.publish_cloud_event('shop', '{"specversion": "1.0", "id": "1", "source": "/s", "type": "a", "subject": null, "x": null, "data": null}') AS id \gset
SELECT is(envelope(:id) - 'time', '{"specversion": "1.0", "id": "1", "source": "/s", "type": "a"}', 'what is null is not there');

CREATE FUNCTION detail_of(event jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	detail text;
BEGIN
	RETURN 'taken: ' || evbus.publish_cloud_event('shop', event);
EXCEPTION WHEN invalid_parameter_value THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
	RETURN detail;
END $$;
CREATE TABLE least AS SELECT event FROM given WHERE n = 1;
CREATE TABLE before_ AS SELECT count(*) FROM evbus.history;
SELECT is(detail_of(event || change), 'The fault: ' || fault || '.', 'refused: ' || fault) FROM least, (VALUES
	('{"specversion": "0.3"}'::jsonb, 'specversion is "0.3", not "1.0"'), ('{"specversion": 1.0}', 'specversion is 1.0, not "1.0"'), ('{"specversion": null}', '"specversion" is missing'),
	('{"id": ""}', '"id" must be a string that is not empty'), ('{"id": 7}', '"id" must be a string that is not empty'), ('{"type": ""}', '"type" must be a string that is not empty'), ('{"subject": ""}', '"subject" must be a string that is not empty'),
	('{"source": "/a b"}', '"source" is no URI: "/a b"'), ('{"dataschema": "<x>"}', '"dataschema" is no URI: "<x>"'),
	('{"time": "yesterday"}', '"time" is not as RFC 3339 has it: "yesterday"'), ('{"time": "2026-01-01 12:00:00"}', '"time" is not as RFC 3339 has it: "2026-01-01 12:00:00"'),
	('{"Trace": "x"}', '"Trace" cannot be the name of an attribute, which has lower-case letters and digits only'), ('{"ce-id": "x"}', '"ce-id" cannot be the name of an attribute, which has lower-case letters and digits only'),
	('{"ext": {"a": 1}}', 'the value of "ext" must be a string, a boolean, or an integer of 32 bits'), ('{"ext": 1.5}', 'the value of "ext" must be a string, a boolean, or an integer of 32 bits'), ('{"ext": 3000000000}', 'the value of "ext" must be a string, a boolean, or an integer of 32 bits'),
	('{"data": 1, "data_base64": "AAEC"}', 'it has both "data" and "data_base64"'), ('{"data_base64": "no!"}', '"data_base64" must be a string in base64')) AS v (change, fault);
SELECT is(detail_of(event - a), format('The fault: "%s" is missing.', a), 'refused without ' || a) FROM least, unnest('{specversion,id,source,type}'::text[]) AS a;
SELECT is(detail_of('[]'), 'The fault: it is a JSON array, not an object.', 'refused: an array');
SELECT throws_ok($$SELECT evbus.publish_cloud_event('shop', NULL)$$, '22004', NULL, 'NULL');
SELECT throws_ok($$SELECT evbus.publish_cloud_event('nosuch', event) FROM least$$, 'VB001', NULL, 'an unknown bus');
SELECT throws_ok($$SELECT evbus.publish_cloud_event(NULL, event) FROM least$$, '22004', NULL, 'no bus');
SELECT throws_ok($$SELECT evbus.publish_cloud_event('shop', event || '{"type": "a b"}') FROM least$$, '22023', NULL, 'a type that is none of evbus''s');
SELECT is((SELECT count(*) FROM evbus.history), (SELECT count FROM before_), 'nothing of all this was published');

SELECT * FROM finish();
