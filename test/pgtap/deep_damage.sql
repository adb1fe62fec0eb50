-- A packed payload that damage has nested more deeply than any that is stored: damaged, like every other, and no end of the stack.
\ir include/helpers.sql
SELECT plan(4);

CREATE FUNCTION told(bytes bytea) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN evbus._decode(bytes);
EXCEPTION WHEN OTHERS THEN
	RETURN sqlstate;
END $$;
-- Packed: a varint of the length of the jsonb, then a tag of a byte for an array of one element, and so on.
SELECT evbus.create_bus('b');
SELECT evbus.subscribe('b', 's') AS position, evbus.publish('b', 'a', '[[1]]') AS id \gset
SELECT substr(payload, 3, 1) AS tag FROM evbus.event_log \gset
SELECT '\x02ffffff0f'::bytea || decode(repeat(encode(:'tag'::bytea, 'hex'), 1000000), 'hex') AS deep \gset
SELECT is(told(:'deep'), 'XX001', 'arrays in arrays, a million deep, are refused as damaged');
SELECT is(evbus.nack(array_agg(receipt), delay => '0'), 1, 'one to be damaged') FROM take('s', 1);
UPDATE evbus.retry SET payload = :'deep';
CREATE FUNCTION printed() RETURNS text LANGUAGE sql SET client_min_messages = error AS 'SELECT lines FROM evbus.receive_lines(''s'')';
SELECT lives_ok('SELECT printed()', 'whoever receives lines is not kept from going on');
SELECT becomes($$SELECT sqlstate FROM evbus.dead_letter_log$$, 'XX001', 'it becomes a dead letter');
SELECT * FROM finish();
