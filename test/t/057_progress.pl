# How far long work is (stat_progress): each kind of it held in the middle; gone when it ends, fails, or its process does.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('progress', conf => <<'CONF');
evbus.history_indexes = off
evbus.ring_size = '1MB'
evbus.upkeep_interval = '100ms'
CONF
plan skip_all => 'the library has no debug points' unless points($node);
sub sql { my ($q, @more) = @_; return $node->safe_psql($more[0] // 'postgres', $q); }
# All there is to be seen, but pids and times.
my $seen = q(SELECT coalesce(string_agg(concat_ws('|', work, subject, phase, coalesce(done::text, '?') || ' of ' || coalesce(total::text, '?'), unit), '; ' ORDER BY work), 'nothing') FROM evbus.stat_progress);
my $pid = q(SELECT pid FROM evbus.stat_progress);
sub by { my ($kind) = @_; return sql("SELECT p.pid = w.pid AND p.started_at > now() - interval '5 minutes' AND p.started_at <= clock_timestamp() FROM evbus.stat_progress p, evbus.stat_worker w WHERE w.kind = '$kind'"); }
sub bury
{
	my ($n) = @_;
	sql("SELECT count(*) FROM evbus.publish_batch('b', '{dead}', (SELECT array_agg(to_jsonb(i)) FROM generate_series(1, $n) AS i))");
	for (my $left = $n; $left > 0;)
	{
		my $got = sql("SELECT evbus.reject(ARRAY(SELECT receipt FROM evbus.receive('dead', $left, wait => '10 seconds')), 'no use')") or die "$left events are not to be had\n";
		$left -= $got;
	}
	return;
}

sql(<<'SQL');
CREATE ROLE watcher LOGIN IN ROLE pg_monitor;
SELECT evbus.create_bus('b', retention => '1000 hours', partition_interval => '1 day'), evbus.create_bus('d');
SELECT evbus.subscribe('b', 'dead', types => '{dead}'), evbus.subscribe('b', 'again', types => '{again}');
SELECT evbus.publish('b', 'a', '1');
SELECT count(evbus.publish('d', 'a', jsonb_build_object('number', i, 'text', md5(i::text), 'note', 'no note was left by anybody'))) FROM generate_series(1, 1500) AS i;
CREATE DATABASE other;
SQL
sql('CREATE EXTENSION evbus', 'other');
answers($node, 'postgres', $seen, 'nothing', 'at first nothing is under way');
answers($node, 'other', $seen, 'nothing', 'nor in another database');

# ------------------------------------------------------------------------- recovery

point($node, 'sequencer.clock', 'wait');
ok(reached($node, 'sequencer.clock'), 'the sequencer stands still');
sql(q(SELECT count(*) FROM evbus.publish_batch('b', '{lost}', array_fill(to_jsonb(repeat('x', 100)), ARRAY[625])))) foreach 1 .. 40;
point($node, 'sequencer.recovering', 'wait');
point($node, 'sequencer.clock', 'off');
ok(reached($node, 'sequencer.recovering'), 'what has found no room in the ring is recovered');
is(sql($seen), 'recovery|placing events|20000 of ?|events', 'a chunk of it is done') or diag sql('SELECT * FROM evbus.stat_progress');
is(by('sequencer'), 't', 'by the sequencer');
is(sql($seen, 'other'), 'nothing', 'which is of this database alone');
is($node->safe_psql('postgres', $pid, extra_params => [ '-U', 'watcher' ]), sql($pid), 'pg_monitor may look');
is(sql(q(SELECT line FROM evbus.top() WHERE line LIKE '>%')), '> recovery: placing events, 20.0k events', 'top() shows it');
my $old = sql($pid);
point($node, 'sequencer.recovering', 'end');
answers($node, 'postgres', "SELECT sequencer_pid <> $old AND ready FROM evbus._status()", 't', 'it is ended in the middle, and another follows');
answers($node, 'postgres', $seen, 'nothing', 'of which nothing is left when it is through');
answers($node, 'postgres', q(SELECT next_position FROM evbus.subscription_lag WHERE subscription = 'dead'), 25002, 'all have positions');
point($node, 'sequencer.recovering', 'wait');
sql('SELECT pg_terminate_backend(sequencer_pid) FROM evbus._status()');
ok(reached($node, 'sequencer.recovering'), 'a new one looks for what is without position');
like(sql($seen), qr/^recovery\|placing events\|[0-9]+ of \?\|events$/, 'which is a recovery as well');
point($node, 'sequencer.recovering', 'off');
answers($node, 'postgres', $seen, 'nothing', 'that ends');

# ------------------------------------------------------------------------- training

point($node, 'dictionary.training', 'wait');
my $client = $node->background_psql('postgres', on_error_die => 1);
my $client_pid = $client->query_safe('SELECT pg_backend_pid()');
$client->query_until(qr/begins/, "\\echo begins\nSELECT trained_on FROM evbus.train_dictionary('d', dry_run => true);\n");
ok(reached($node, 'dictionary.training'), 'somebody trains a dictionary');
is(sql($seen), 'training|d|training|? of 1200|samples', 'of four fifths of the samples; how far zstd is it does not say');
is(sql($pid), $client_pid, 'which is that client');
point($node, 'dictionary.training', 'off');
answers($node, 'postgres', $seen, 'nothing', 'then it is made');
$client->quit;
point($node, 'dictionary.training', 'error');
is(sql(<<'SQL'), '0', 'who fails says so, also where the transaction goes on');
DO $$BEGIN PERFORM evbus.train_dictionary('d', dry_run => true); RAISE 'no error'; EXCEPTION WHEN OTHERS THEN IF SQLERRM NOT LIKE '%point%' THEN RAISE; END IF; END$$;
SELECT count(*) FROM evbus.stat_progress WHERE pid = pg_backend_pid();
SQL
point($node, 'dictionary.collected', 'wait');
sql(q(SELECT evbus.alter_bus('d', compression => 'dictionary')));
ok(reached($node, 'dictionary.collected'), 'the indexer trains one by itself');
is(sql($seen), 'training|d|collecting samples|1500 of 1500|events', 'and has read all events');
is(by('indexer'), 't', 'it tells that it is it');
point($node, 'dictionary.collected', 'off');
answers($node, 'postgres', $seen, 'nothing', 'until it is through');
is(sql(q(SELECT count(*) FROM evbus.dictionary_list WHERE bus = 'd')), 1, 'with a dictionary');

# ------------------------------------------------------------------------- indexes

sql(<<'SQL');
DO $$
DECLARE
	class integer := (SELECT storage_class_id FROM evbus.bus WHERE bus = 'b');
	lo timestamptz := date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC';
	name text;
BEGIN
	FOR i IN 1 .. 2 LOOP
		lo := lo - interval '1 hour';
		name := format('event_c%s_p', class) || to_char(lo AT TIME ZONE 'UTC', 'YYYYMMDD_HH24MISS');
		EXECUTE format('CREATE TABLE evbus.%I (LIKE evbus.event_log INCLUDING STORAGE)', name);
		EXECUTE format('ALTER TABLE evbus.%I ADD PRIMARY KEY (event_id)', name);
		EXECUTE format('ALTER TABLE evbus.event_c%s ATTACH PARTITION evbus.%I FOR VALUES FROM (%s) TO (%s)', class, name, evbus._time_event(lo), evbus._time_event(lo + interval '1 hour'));
		INSERT INTO evbus.event_log SELECT evbus._time_event(lo) + n, class, bus_id, 'old', NULL, NULL, payload FROM (SELECT * FROM evbus.event_log WHERE storage_class_id = class ORDER BY event_id DESC LIMIT 1) e, generate_series(1, 10) AS n;
	END LOOP;
END$$;
SQL
point($node, 'leaf.indexed', 'wait', 1);
sql('ALTER SYSTEM SET evbus.history_indexes = on; SELECT pg_reload_conf()');
ok(reached($node, 'leaf.indexed'), 'two leaves are indexed, the newest first');
my $second = sql(q(SELECT leaf FROM evbus.leaf_list ORDER BY from_time LIMIT 1));
is(sql($seen), "index build|$second|analyzing|1 of 2|leaves", 'one is done');
is(by('indexer'), 't', 'by the indexer');
point($node, 'leaf.indexed', 'off');
answers($node, 'postgres', $seen, 'nothing', 'then both are');
is(sql(q(SELECT count(*) FROM evbus.leaf_list WHERE indexed)), 2, 'and indexed');

# ------------------------------------------------------------------------- redrives

bury(100);
point($node, 'redrive.job', 'wait');
my $job = sql(q(SELECT evbus.redrive(subscription => 'dead', rate => 10)));
is(sql($seen), 'redrive|dead|waiting|0 of 100|dead letters', 'a redrive at a rate waits for its turn');
ok(reached($node, 'redrive.job'), 'has it');
point($node, 'redrive.job', 'off');
answers($node, 'postgres', qq(SELECT work = 'redrive' AND phase = 'redriving' AND done BETWEEN 10 AND 90 AND total = 100 AND id = $job AND pid = (SELECT maintainer_pid FROM evbus._status()) FROM evbus.stat_progress), 't', 'and is told by its rows');
sql("SELECT evbus.cancel_redrive($job)");
is(sql($seen), 'nothing', 'one that is cancelled is over');
point($node, 'redrive.now', 'wait');
$client = $node->background_psql('postgres', on_error_die => 1);
$client->query_until(qr/begins/, "\\echo begins\nSELECT evbus.redrive(subscription => 'dead', max_events => 1);\n");
ok(reached($node, 'redrive.now'), 'one at once');
is(sql($seen), 'redrive|dead|redriving|? of ?|dead letters', 'is one statement');
point($node, 'redrive.now', 'off');
answers($node, 'postgres', $seen, 'nothing', 'and then over');
$client->quit;
point($node, 'redrive.now', 'end');
my ($ret, $out, $err) = $node->psql('postgres', q(SELECT evbus.redrive(subscription => 'dead', max_events => 1)));
like($err, qr/terminating connection/, 'a session is ended in the middle of it');
is(sql($seen), 'nothing', 'and leaves nothing behind');

# ------------------------------------------------------------------------- replays

my $from = sql(q(SELECT next_position FROM evbus.subscription_lag WHERE subscription = 'again'));
sql(q(SELECT count(*) FROM evbus.publish_batch('b', '{again}', (SELECT array_agg(to_jsonb(i)) FROM generate_series(1, 50) AS i))));
is(scalar(() = receive_all($node, 'postgres', 'again', 50)), 50, 'fifty events are received');
answers($node, 'postgres', q(SELECT lag FROM evbus.subscription_lag WHERE subscription = 'again'), 0, 'and settled');
my $replay = sql("SELECT evbus.replay('again', '$from')");
answers($node, 'postgres', $seen, 'replay|again|replaying|0 of 50|positions', 'a replay has fifty before it');
is(sql("SELECT pid IS NULL AND id = $replay FROM evbus.stat_progress"), 't', 'which nobody does alone');
sql(q(SELECT evbus.ack(ARRAY(SELECT receipt FROM evbus.receive('again', 20, wait => '10 seconds')))));
answers($node, 'postgres', $seen, 'replay|again|replaying|20 of 50|positions', 'twenty are done');
sql(q(SELECT evbus.pause('again')));
is(sql($seen), 'replay|again|paused|20 of 50|positions', 'a pause shows');
sql(q(SELECT evbus.resume('again')));
sql(q(SELECT evbus.nack(ARRAY(SELECT receipt FROM evbus.receive('again', 30, wait => '10 seconds')), delay => '1 hour')));
answers($node, 'postgres', $seen, 'replay|again|waiting for retries|50 of 50|positions', 'what failed keeps it');
sql("SELECT evbus.cancel_replay($replay)");
answers($node, 'postgres', $seen, 'nothing', 'cancelled it is over');

$node->stop;
done_testing();
