# Dictionaries: trained and replaced by the indexer, read after restarts, on a standby and from a dump, dropped when nothing needs them; frames that lie.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('dictionary');
$node->init(allows_streaming => 1);
$node->append_conf('postgresql.conf', <<'CONF');
shared_preload_libraries = 'evbus'
max_worker_processes = 24
log_min_messages = info
evbus.upkeep_interval = '100ms'
CONF
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION evbus');
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION an_order(n integer) RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_object('order_id', 1000000 + n, 'customer', jsonb_build_object('id', n * 7919 % 100000, 'name', 'Customer ' || n * 7919 % 100000),
		'status', (ARRAY['created', 'paid', 'shipped'])[1 + n % 3], 'total', round(n * 37 % 100000 / 100.0, 2), 'note', 'no note was left by the buyer')
$$;
CREATE FUNCTION publish_orders(lo integer, hi integer) RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FROM evbus.publish_batch('d', '{order}', (SELECT array_agg(an_order(n) ORDER BY n) FROM generate_series(lo, hi) AS n))
$$;
CREATE FUNCTION a_visit(n integer) RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_object('visitor', md5(n::text), 'page', '/catalogue/department/' || n % 17 || '/shelf', 'referrer', 'https://search.example.org/?q=' || n % 100, 'agent', 'Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101')
$$;
CREATE FUNCTION publish_visits(lo integer, hi integer) RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FROM evbus.publish_batch('d', '{visit}', (SELECT array_agg(a_visit(n) ORDER BY n) FROM generate_series(lo, hi) AS n))
$$;
SELECT evbus.create_bus('d', compression => 'dictionary', retention => '10 minutes', partition_interval => '10 minutes');
SELECT evbus.create_bus('long', retention => '1 year', partition_interval => '10 minutes');
SELECT evbus.subscribe('d', 'reader');
SQL

sub codecs
{
	return $node->safe_psql('postgres', q(SELECT string_agg(c || ' ' || n, ', ' ORDER BY c) FROM (SELECT get_byte(payload, 0) AS c, count(*) AS n FROM evbus.event_log JOIN evbus.bus USING (bus_id) WHERE bus = 'd' GROUP BY 1) AS g));
}

# What was published, as anybody reads it.
my $all = q(SELECT count(*) || ' ' || md5(string_agg(event_id || payload::text, '' ORDER BY event_id)) FROM evbus.history);

# Which are retired, and of which it is known what may refer to them.
my $ends = q(SELECT string_agg((retired_at IS NOT NULL) || ' ' || (last_id IS NOT NULL), ', ' ORDER BY dictionary_id) FROM evbus.dictionary);

# ------------------------------------------------------------------ by itself

$node->safe_psql('postgres', 'SELECT publish_orders(1, 500)');
$node->safe_psql('postgres', 'CALL evbus.maintain()');
is($node->safe_psql('postgres', 'SELECT count(*) FROM evbus.dictionary'), '0', 'a few hundred events are not yet enough');
$node->safe_psql('postgres', 'SELECT publish_orders(501, 1500)');
answers($node, 'postgres', q(SELECT count(*) || ' ' || bool_and(stored_bytes < 0.4 * jsonb_bytes) FROM evbus.dictionary_list WHERE bus = 'd'), '1 true', 'with more a dictionary is trained, and worth it');
is(codecs(), '2 1500', 'what was there stays as it is');

# A transaction that began before does not see its row, but what is delivered to it has been compressed with it.
$node->safe_psql('postgres', q(SELECT evbus.seek('reader', 'now')));
my $old = $node->background_psql('postgres', on_error_stop => 1);
$old->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
is($old->query_safe('SELECT count(*) FROM evbus.dictionary WHERE retired_at IS NULL'), '1', 'a snapshot');
$node->safe_psql('postgres', 'SELECT * FROM evbus.train_dictionary(\'d\')');
is($node->safe_psql('postgres', 'SELECT publish_orders(1501, 1600)'), '100', 'published with a newer dictionary');
is(codecs(), '2 1500, 3 100', 'compressed');
is($old->query_safe(q(SELECT count(*) || ' ' || bool_and(payload = an_order(1500 + row_number::int)) FROM (SELECT payload, row_number() OVER (ORDER BY position) FROM evbus.receive('reader', 1000)) AS r)), '100 true', 'is delivered to an old snapshot');
is($old->query_safe('SELECT max(dictionary_id) FROM evbus.dictionary'), '1', 'which does not see the dictionary');
$old->query_safe('ROLLBACK');
$old->quit;

answers($node, 'postgres', $ends, 'true true, false false', 'the older one is retired');
my $before = $node->safe_psql('postgres', $all);
$node->stop('immediate');
$node->start;
$node->poll_query_until('postgres', 'SELECT ready FROM evbus._status()');
is($node->safe_psql('postgres', $all), $before, 'after a crash all is read');
is($node->safe_psql('postgres', 'SELECT publish_orders(1, 10)'), '10', 'published');
is(codecs(), '2 1500, 3 110', 'and compressed as before');

# One that serves is kept, one that does not is replaced: they are looked at when a leaf has been closed since.
$node->safe_psql('postgres', q(UPDATE evbus.dictionary SET checked_at = now() - interval '1 day'));
answers($node, 'postgres', q(SELECT count(*) FROM evbus.dictionary WHERE checked_at > now() - interval '1 minute'), '1', 'after a while it is looked at');
is($node->safe_psql('postgres', 'SELECT max(dictionary_id) FROM evbus.dictionary'), '2', 'and kept');
$node->safe_psql('postgres', 'SELECT publish_visits(1, 10000)');
$node->safe_psql('postgres', q(UPDATE evbus.dictionary SET checked_at = now() - interval '1 day'));
answers($node, 'postgres', $ends, 'true true, true true, false false', 'when other events come, it is replaced');
$node->safe_psql('postgres', 'SELECT publish_visits(1, 100)');
is($node->safe_psql('postgres', q(SELECT count(DISTINCT get_byte(payload, 1)) FROM evbus.event_log WHERE get_byte(payload, 0) = 3)), '2', 'events of both are there');

# ------------------------------------------------------- standby, dump, restore

$node->backup('b');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'b', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby);
is($standby->safe_psql('postgres', $all), $node->safe_psql('postgres', $all), 'a standby reads them');
$node->safe_psql('postgres', q(SELECT count(*) FROM evbus.train_dictionary('d')));
$node->safe_psql('postgres', 'SELECT publish_visits(20, 30)');
$node->wait_for_catchup($standby);
is($standby->safe_psql('postgres', $all), $node->safe_psql('postgres', $all), 'and with a dictionary that came later');
$standby->stop;

$node->safe_psql('postgres', 'CREATE DATABASE restored');
command_ok([ 'pg_dump', '-Fc', '-f', "$PostgreSQL::Test::Utils::tmp_check/d.dump", $node->connstr('postgres') ], 'dumped');
command_ok([ 'pg_restore', '-j', '2', '-d', $node->connstr('restored'), "$PostgreSQL::Test::Utils::tmp_check/d.dump" ], 'restored');
is($node->safe_psql('restored', $all), $node->safe_psql('postgres', $all), 'a restored dump has them');
$node->safe_psql('restored', 'SELECT evbus.take_over()');
$node->safe_psql('restored', q(SELECT evbus.publish('d', 'order', an_order(1))));
is($node->safe_psql('restored', q(SELECT count(*) FROM evbus.history WHERE bus = 'd' AND payload = an_order(1))), $node->safe_psql('postgres', q(SELECT count(*) + 1 FROM evbus.history WHERE bus = 'd' AND payload = an_order(1))), 'and goes on');
is($node->safe_psql('restored', q(SELECT dictionary_id > (SELECT max(dictionary_id) FROM evbus.dictionary WHERE retired_at IS NOT NULL) FROM evbus.train_dictionary('d'))), 't', 'ids of dictionaries are not used again');
$node->safe_psql('postgres', 'DROP DATABASE restored');

# --------------------------------------------------------------------- damage

$node->safe_psql('postgres', q(SELECT evbus.seek('reader', 'now')));
$node->safe_psql('postgres', 'SELECT publish_visits(1, 5)');
$node->stop('fast');
$node->start;	# what is damaged is read from the log, not from the ring
$node->poll_query_until('postgres', 'SELECT ready FROM evbus._status()');
my $id = $node->safe_psql('postgres', 'UPDATE evbus.event_log SET payload = set_byte(payload, 20, get_byte(payload, 20) # 1) WHERE event_id = (SELECT max(event_id) - 2 FROM evbus.event_log) RETURNING event_id');
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE effect (event_id bigint);
CREATE FUNCTION handle(e evbus.event) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.effect VALUES (e.event_id) $$;
CREATE FUNCTION handle_all(e evbus.event[]) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.effect SELECT event_id FROM unnest(e) $$;
SELECT evbus.subscribe('d', 'one', start_from => (SELECT (next_position - 5)::text FROM evbus.bus_list WHERE bus = 'd'), handler => 'handle(evbus.event)', backoff_initial => '10 ms', max_attempts => 2);
SELECT evbus.subscribe('d', 'many', start_from => (SELECT (next_position - 5)::text FROM evbus.bus_list WHERE bus = 'd'), handler => 'handle_all(evbus.event[])', backoff_initial => '10 ms', max_attempts => 2);
SELECT evbus.subscribe('d', 'lines', start_from => (SELECT (next_position - 5)::text FROM evbus.bus_list WHERE bus = 'd'));
SQL
my ($ret, $out, $err) = $node->psql('postgres', q(SELECT count(*) FROM evbus.receive('reader', 10)));
is("$ret $out", '0 4', 'four of five are received');
like($err, qr/WARNING:  event $id is not delivered to subscription "reader": its stored data cannot be decoded/, 'and it is told why');
($ret, $out, $err) = $node->psql('postgres', q(SELECT events || ' ' || array_length(string_to_array(lines, E'\n'), 1) FROM evbus.receive_lines('lines', 10)));
is("$ret $out", '0 4 4', 'as lines, too');
answers($node, 'postgres', 'SELECT count(*) || \' \' || count(DISTINCT event_id) FROM effect', '8 4', 'handlers are given the four as well');
answers($node, 'postgres', "SELECT string_agg(subscription || ' ' || reason || ' ' || sqlstate, ', ' ORDER BY subscription) FROM evbus.dead_letter WHERE event_id = $id",
	'lines permanent XX001, many max_attempts XX001, one max_attempts XX001, reader permanent XX001', 'the fifth is a dead letter of all');
($ret, $out, $err) = $node->psql('postgres', 'SELECT payload FROM evbus.dead_letter');
like($err, qr/ERROR:  stored data of event $id cannot be decoded/, 'whose payload nobody can read');
is($node->safe_psql('postgres', "SELECT count(*) FROM evbus.history WHERE event_id <> $id AND payload IS NOT NULL AND bus = 'd'"), $node->safe_psql('postgres', q(SELECT count(*) - 1 FROM evbus.history WHERE bus = 'd')), 'all others can be read');
$node->safe_psql('postgres', q(SELECT evbus.unsubscribe(s) FROM unnest('{one,many,lines}'::text[]) AS s));
$node->safe_psql('postgres', q(SELECT evbus.discard(ARRAY(SELECT dead_letter_id FROM evbus.dead_letter_log), 'damaged')));

# ------------------------------------------------------------- frames that lie

my $library = build_module('frame_code');
is($node->safe_psql('postgres', <<"SQL"), 'XX001 and good', 'frames of noise, with the right code');
CREATE FUNCTION frame_code(bytea, bytea) RETURNS bigint AS '$library' LANGUAGE C STRICT;
CREATE FUNCTION made(id integer, secret bytea, frame bytea) RETURNS bytea LANGUAGE sql AS \$\$
	SELECT set_byte('\\x0300', 1, id) || (SELECT string_agg(substr(code, 9 - i, 1), '' ORDER BY i) FROM generate_series(1, 6) AS i) || frame FROM (SELECT int8send(frame_code(secret, frame) >> 16)) AS c (code)
\$\$;
CREATE FUNCTION told(bytes bytea) RETURNS text LANGUAGE plpgsql AS \$\$
BEGIN
	RETURN CASE WHEN evbus._decode(bytes) IS NOT NULL THEN 'good' END;
EXCEPTION WHEN OTHERS THEN
	RETURN sqlstate;
END \$\$;
CREATE TABLE truth AS SELECT dictionary_id, secret, substr(payload, 9) AS frame, payload FROM evbus.event_log JOIN evbus.dictionary d ON get_byte(payload, 0) = 3 AND get_byte(payload, 1) = dictionary_id
	WHERE event_id = (SELECT max(event_id) FROM evbus.event_log WHERE get_byte(payload, 0) = 3);
SELECT string_agg(DISTINCT told(made(dictionary_id, secret, frame)), ' ') AS answer FROM truth \\gset
SELECT setseed(0.5) AS s \\gset
-- The true frame with some bytes changed, cut off or added: most do not get past zstd, some get to the packed form.
CREATE TABLE lies AS SELECT told(made(dictionary_id, secret, changed)) AS answer FROM truth,
	LATERAL (SELECT CASE i % 4 WHEN 0 THEN set_byte(frame, floor(random() * length(frame))::int, floor(random() * 256)::int)
		WHEN 1 THEN set_byte(set_byte(frame, floor(random() * length(frame))::int, floor(random() * 256)::int), floor(random() * length(frame))::int, floor(random() * 256)::int)
		WHEN 2 THEN substr(frame, 1, 5 + floor(random() * length(frame))::int) || decode(left(md5(random()::text), 2 * floor(random() * 16)::int), 'hex')
		ELSE substr(frame, 1, 5) || decode(md5(random()::text) || md5(random()::text), 'hex') END AS changed FROM generate_series(1, 300000) AS i) AS c;
SELECT string_agg(DISTINCT answer, ' and ' ORDER BY answer) FROM lies WHERE answer NOT IN ('22021', '22003') AND :'answer' = 'good';
SQL
cmp_ok($node->safe_psql('postgres', q(SELECT count(*) FROM lies WHERE answer <> 'XX001')), '>', 1000, 'many of them were jsonb, though another');

# ----------------------------------------------------------------- their end

$node->safe_psql('postgres', q(SELECT evbus.seek('reader', 'now')));
$node->safe_psql('postgres', q(SELECT count(*) FROM evbus.train_dictionary('d')));
my $last = $node->safe_psql('postgres', 'SELECT max(dictionary_id) FROM evbus.dictionary');
$node->safe_psql('postgres', 'SELECT publish_visits(1, 3)');
my $kept = $node->safe_psql('postgres', q(SELECT evbus.reject(ARRAY(SELECT receipt FROM evbus.receive('reader', 1, wait => '10 seconds'))) + evbus.nack(ARRAY(SELECT receipt FROM evbus.receive('reader', 1, wait => '10 seconds')), '1 hour') + evbus.ack(ARRAY(SELECT receipt FROM evbus.receive('reader', 1, wait => '10 seconds')))));
is($kept, '3', 'one is a dead letter, one a retry, one is done');
is($node->safe_psql('postgres', "SELECT string_agg(get_byte(payload, 0) || ' ' || get_byte(payload, 1), ' ') FROM evbus.event_log JOIN evbus.bus USING (bus_id) WHERE bus = 'd' AND event_id >= (SELECT max(event_id) - 2 FROM evbus.event_log)"), join(' ', ("3 $last") x 3), 'all of the newest dictionary');
$node->safe_psql('postgres', q(SELECT evbus.create_bus('other', compression => 'dictionary', retention => '10 minutes', partition_interval => '10 minutes')));
$node->safe_psql('postgres', q(SELECT count(*) FROM evbus.publish_batch('other', '{visit}', (SELECT array_agg(a_visit(n)) FROM generate_series(1, 500) AS n))));
my $other = $node->safe_psql('postgres', q(SELECT dictionary_id FROM evbus.train_dictionary('other')));
$node->safe_psql('postgres', q(SELECT evbus.drop_bus('other', force => true)));
$node->safe_psql('postgres', q(SELECT evbus.alter_bus('d', compression => 'zstd')));
answers($node, 'postgres', 'SELECT bool_and(last_id IS NOT NULL) FROM evbus.dictionary', 't', 'when the bus does without or is dropped, no event will refer to them any more');
$node->safe_psql('postgres', 'CALL evbus.maintain()');
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM evbus.dictionary'), '>=', 5, 'but they stay while its events are there');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.dead_letter WHERE payload = a_visit(1))), '1', 'the dead letter has a copy of its own');

# Lets the id clock jump by storing an event of the future; what is not in the ring any more can go.
$node->safe_psql('postgres', q(SELECT evbus.publish('long', 'now', '1')));
my $rounds = 0;
while ($rounds++ < 8 && $node->safe_psql('postgres', q(SELECT count(*) FROM evbus.dictionary)) ne '1')
{
	$node->safe_psql('postgres', 'CALL evbus.maintain()');
	$node->safe_psql('postgres', <<~'SQL');
		INSERT INTO evbus.event_log
		SELECT evbus._time_event(evbus._event_time(max(event_id)) + interval '10 minutes'), storage_class_id, bus_id, 'time.passes', NULL, NULL, (array_agg(payload))[1]
		FROM evbus.event_log JOIN evbus.bus USING (bus_id, storage_class_id) WHERE bus = 'long' GROUP BY storage_class_id, bus_id
		SQL
	$node->restart;
	$node->poll_query_until('postgres', 'SELECT ready FROM evbus._status()');
	$node->safe_psql('postgres', q(DO $$ BEGIN FOR i IN 1 .. 5 LOOP CALL evbus.maintain(); COMMIT; PERFORM pg_sleep(0.1); END LOOP; END $$));
}
is($node->safe_psql('postgres', 'SELECT string_agg(dictionary_id::text, \' \') FROM evbus.dictionary'), $other, 'when the leaves of the bus are gone, so are its dictionaries; one of a dropped bus stays with the leaves of all');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.event_log WHERE get_byte(payload, 0) = 3)), '0', 'and nothing refers to them');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.dead_letter WHERE payload = a_visit(1))), '1', 'the dead letter is read as before');
my $log = slurp_file($node->logfile);
like($log, qr/evbus trained dictionary 1 for bus "d": a payload of \d+ bytes takes \d+/, 'the log tells of training');
like($log, qr/evbus dropped dictionary 1: no event needs it any more/, 'and of the end');
unlike($log, qr/PANIC|server process .* was terminated by signal|TRAP/, 'nothing crashed');

done_testing();
