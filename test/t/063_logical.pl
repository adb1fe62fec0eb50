# Logical replication of users' tables beside evbus: what is replicated is neither published nor handled a second time on the
# subscriber; a publication FOR ALL TABLES, which takes in the tables of evbus, breaks nothing on the publisher, and
# nobody can subscribe to it by mistake; events are decoded like any rows.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $conf = <<'CONF';
wal_level = logical
max_wal_senders = 8
max_replication_slots = 8
evbus.upkeep_interval = '200ms'
evbus.ledger_turn_size = '64kB'
CONF
my $source = new_node('source', conf => $conf);
my $target = new_node('target', conf => $conf);
my $tables = <<'SQL';
CREATE TABLE item (n integer PRIMARY KEY, note text);
CREATE TABLE mail (event_id bigint PRIMARY KEY, n integer);
CREATE FUNCTION send(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$BEGIN INSERT INTO mail VALUES (e.event_id, (e.payload -> 'new' ->> 'n')::integer); END $$;
SELECT evbus.create_bus('items');
SELECT evbus.subscribe('items', 'mailer', handler => 'send(evbus.event)', types => '{item.inserted}');
SELECT evbus.publish_changes('item', 'items');
SQL
$_->safe_psql('postgres', $tables) foreach $source, $target;

# ---------------------------------------------------------- users' tables, by schema

$source->safe_psql('postgres', 'INSERT INTO item SELECT generate_series(1, 5)');
answers($source, 'postgres', 'SELECT count(*) FROM mail', '5', 'what is written on the publisher is published and handled there');
$source->safe_psql('postgres', 'CREATE PUBLICATION users FOR TABLES IN SCHEMA public');
$target->safe_psql('postgres', sprintf(q(CREATE SUBSCRIPTION users CONNECTION $$%s$$ PUBLICATION users), $source->connstr('postgres')));
answers($target, 'postgres', 'SELECT (SELECT count(*) FROM item) || \' \' || (SELECT count(*) FROM mail)', '5 5', 'rows and effects are copied');
$source->safe_psql('postgres', q(INSERT INTO item SELECT generate_series(6, 10); UPDATE item SET note = 'x' WHERE n <= 5; DELETE FROM item WHERE n = 1));
answers($target, 'postgres', q(SELECT (SELECT count(*) || ' ' || count(note) FROM item) || ' ' || (SELECT count(*) FROM mail)), '9 4 10', 'and so is what comes');
is($target->safe_psql('postgres', 'SELECT count(*) FROM evbus.history'), '0', 'nothing of it is published on the subscriber');
$target->safe_psql('postgres', 'INSERT INTO item VALUES (100)');
answers($target, 'postgres', 'SELECT (SELECT count(*) FROM evbus.history) || \' \' || (SELECT count(*) FROM mail)', '1 11', 'but what is written there, once');
is($source->safe_psql('postgres', q(SELECT count(*) || ' ' || count(DISTINCT event_id) FROM evbus.history)), '16 16', 'on the publisher each change is one event');
is($target->safe_psql('postgres', q(SELECT string_agg(DISTINCT tgenabled::text, '') FROM pg_trigger WHERE tgrelid = 'item'::regclass AND tgfoid = 'evbus._changes'::regproc)), 'O', 'as its triggers are those of the origin');
$target->safe_psql('postgres', 'DROP SUBSCRIPTION users');

# ------------------------------------------------------------------- FOR ALL TABLES

$source->safe_psql('postgres', <<'SQL');
CREATE PUBLICATION everything FOR ALL TABLES;
CREATE FUNCTION fail(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$BEGIN RAISE USING MESSAGE = 'as told', ERRCODE = CASE e.type WHEN 'bad' THEN '22012' ELSE 'P0001' END; END $$;
SELECT evbus.create_bus('b', compression => 'dictionary');
SELECT evbus.subscribe('b', 'failing', types => '{bad,again}', handler => 'fail(evbus.event)', max_attempts => 2, backoff_initial => '10 ms', max_dead_letters => 2, dead_letters_full => 'drop_oldest');
SELECT evbus.subscribe('b', 'reader');
SQL
is($source->safe_psql('postgres', q(SELECT count(*) > 20 FROM pg_publication_tables WHERE pubname = 'everything' AND schemaname = 'evbus')), 't', 'FOR ALL TABLES takes in those of evbus');
my $log = -s $source->logfile;
$source->safe_psql('postgres', $_) foreach
	q(SELECT count(evbus.publish('b', 'bad', to_jsonb(i))) FROM generate_series(1, 5) AS i),
	q(SELECT evbus.publish('b', 'again', '1')),
	q(SELECT evbus.publish('b', 'soon', '1', delay => '300 ms', dedup_key => 'k'), evbus.publish('b', 'far', '1', delay => '1 day')),
	q(SELECT evbus.cancel_scheduled(id) FROM evbus.scheduled_list WHERE type = 'far'),
	q(SELECT count(evbus.publish('b', 'order', jsonb_build_object('customer', 'somebody with a name', 'address', 'a rather long street name, house number ' || i))) FROM generate_series(1, 300) AS i),
	q(SELECT count(*) FROM evbus.train_dictionary('b', 300)),
	q(BEGIN; SELECT count(evbus.publish('b', 'many', to_jsonb(repeat('x', 1000)))) FROM generate_series(1, 6000); COMMIT),
	q(SELECT evbus.create_bus('gone'), evbus.subscribe('gone', 'gone'), evbus.limit_publisher('gone', 'postgres', 5), evbus.publish('gone', 'a', '1', delay => '1 hour')),
	q(SELECT evbus.alter_bus('gone', retention_bytes => 1073741824), evbus.limit_publisher('gone', 'postgres', 0), evbus.drop_bus('gone', force => true));
answers($source, 'postgres', q(SELECT count(*) FROM evbus.history WHERE type = 'soon'), '1', 'delayed events are published all the same');
answers($source, 'postgres', q(SELECT count(*) FROM evbus.dead_letter), '2', 'quotas of dead letters hold');
$source->safe_psql('postgres', $_) foreach
	q(SELECT evbus.redrive(subscription => 'failing', types => '{again}')), q(SELECT evbus.redrive(subscription => 'failing', types => '{bad}', rate => 1000)),
	q(SELECT evbus.replay('reader', 'beginning', '3'));
answers($source, 'postgres', q(SELECT string_agg(state, ' ') FROM evbus.redrive_list), 'done', 'dead letters are redriven');
$source->safe_psql('postgres', q(SELECT evbus.discard(subscription => 'failing', reason => 'a test')));
is(scalar(receive_all($source, 'postgres', 'reader', 6307)), 6307, 'a client gets all');
my $turn = $source->safe_psql('postgres', 'SELECT ledger_turn FROM evbus._status()');
fill_ledger($source);
answers($source, 'postgres', "SELECT ledger_turn > $turn FROM evbus._status()", 't', 'the ledger turns');
answers($source, 'postgres', 'SELECT count(*) FROM evbus.dead_letter_delta', '0', 'counts are folded');
$source->safe_psql('postgres', 'CALL evbus.maintain()');
$source->safe_psql('postgres', q(SELECT evbus.seek('reader', 'now'), evbus.unsubscribe('reader')));
unlike(slurp_file($source->logfile, $log), qr/replica identity|ERROR: /, 'no statement of evbus failed for it');
my ($ret, $stdout, $stderr) = $target->psql('postgres', "\\set VERBOSITY verbose\n" . sprintf(q(CREATE SUBSCRIPTION everything CONNECTION $$%s$$ PUBLICATION everything), $source->connstr('postgres')));
like($stderr, qr/ERROR:  0A000: table "evbus.\w+" cannot be replicated into.*HINT:  .*FOR TABLES IN SCHEMA/s, 'a subscription to it is refused where evbus has tables of its own');
is($target->safe_psql('postgres', 'SELECT count(*) FROM pg_subscription'), '0', 'and not made');
$target->safe_psql('postgres', sprintf(q(CREATE SUBSCRIPTION users CONNECTION $$%s$$ PUBLICATION users WITH (copy_data = false)), $source->connstr('postgres')));
($ret, $stdout, $stderr) = $target->psql('postgres', "\\set VERBOSITY verbose\nALTER SUBSCRIPTION users SET PUBLICATION everything WITH (copy_data = false)");
like($stderr, qr/ERROR:  0A000: table "evbus.\w+" cannot be replicated into/, 'nor can one be altered so');
$source->safe_psql('postgres', 'INSERT INTO item VALUES (200)');
answers($target, 'postgres', 'SELECT count(*) FROM item WHERE n = 200', '1', 'it goes on as it was');
$target->safe_psql('postgres', 'DROP SUBSCRIPTION users');
$target->safe_psql('postgres', q(SELECT evbus.publish('items', 'alive', '1')));
is($target->safe_psql('postgres', q(SELECT evbus._copied() || ' ' || count(*) FROM evbus.history WHERE type = 'alive')), 'false 1', 'and harms nobody');

# ------------------------------------------------------------------------ decoding

$source->safe_psql('postgres', q(SELECT pg_create_logical_replication_slot('s', 'test_decoding')));
$source->safe_psql('postgres', q(SELECT evbus.publish('b', 'decoded', '1'), evbus.publish('b', 'decoded', '2'); BEGIN; SELECT evbus.publish('b', 'undone', '1'); ROLLBACK));
is($source->safe_psql('postgres', q(SELECT count(*) FILTER (WHERE data ~ '''decoded''') || ' ' || count(*) FILTER (WHERE data ~ '''undone''') FROM pg_logical_slot_get_changes('s', NULL, NULL) WHERE data ~ 'evbus\.event_c\w+: INSERT')), '2 0',
	'events are decoded like other rows');
$_->stop foreach $source, $target;

done_testing();
