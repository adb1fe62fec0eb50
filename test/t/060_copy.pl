# A copy delivers nothing until evbus.take_over() is called, and then exactly what was not done: dumps (plain, custom, parallel,
# into another database and another server), also where somebody looks on while it is restored; CREATE DATABASE ... TEMPLATE;
# and a physical copy under another evbus.site.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use utf8;

my $node = PostgreSQL::Test::Cluster->new('original');
$node->init(allows_streaming => 1);
$node->append_conf('postgresql.conf', <<'CONF');
shared_preload_libraries = 'evbus'
max_worker_processes = 24
evbus.max_databases = 8
evbus.max_handler_workers = 8
evbus.upkeep_interval = '300ms'
CONF
$node->start;
sub sql { my ($query, $database) = @_; return $node->safe_psql($database // 'postgres', $query); }

# --------------------------------------- one of everything that a copy has to keep

$node->safe_psql('postgres', 'CREATE EXTENSION evbus');
is(sql('SELECT count(*) FROM evbus.home'), '0', 'who has no bus has no home');
is(sql('SELECT evbus.take_over()'), 'f', 'there is nothing to be taken over');
shop($node);
is(sql('SELECT evbus._copied() || \' \' || evbus.take_over()'), 'false false', 'this is the original');
sql(<<'SQL');
CREATE TABLE mail (event_id bigint, attempt int);
CREATE FUNCTION send(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF e.type = 'bad' THEN RAISE division_by_zero; END IF;
	IF e.type = 'later' AND e.attempt < 3 THEN RAISE EXCEPTION 'as told'; END IF;
	INSERT INTO mail VALUES (e.event_id, e.attempt);
END $$;
SELECT evbus.create_bus('small', compression => 'dictionary', retention_bytes => 1073741824);
SELECT evbus.subscribe('orders', 'failing', types => '{bad,later}', handler => 'send(evbus.event)', backoff_initial => '2 seconds', backoff_max => '2 seconds');
SELECT evbus.create_bus('mails', max_backlog => 100);
SELECT evbus.subscribe('mails', 'mailer', handler => 'send(evbus.event)');
CREATE TABLE shelf (id integer PRIMARY KEY, n integer);
SELECT evbus.publish_changes('shelf', 'mails');
SELECT evbus.subscribe('small', 'small reader');
SELECT count(evbus.publish('small', 'order', jsonb_build_object('customer', 'customer ' || i, 'address', 'a rather long street name, house number ' || i, 'n', i))) FROM generate_series(1, 500) AS i;
SELECT count(*) FROM evbus.train_dictionary('small', 500);
SELECT count(evbus.publish('small', 'order', jsonb_build_object('customer', 'customer ' || i, 'address', 'a rather long street name, house number ' || i, 'n', i))) FROM generate_series(1, 100) AS i;
SELECT evbus.publish('orders', 'bad', '1'), evbus.publish('orders', 'bad', '2');
SELECT count(evbus.publish('orders', 'a', to_jsonb(i))) FROM generate_series(1, 20) AS i;
SQL
is((receive_all($node, 'postgres', 'reader', 7))[-1], '7 a 5', 'a client has acked seven');
answers($node, 'postgres', 'SELECT count(*) FROM effect', '22', 'the handler is through');
answers($node, 'postgres', 'SELECT count(*) FROM evbus.dead_letter', '2', 'there are dead letters');
is(sql(q(SELECT evbus.discard(ARRAY[min(dead_letter_id)], 'a test') FROM evbus.dead_letter)), '1', 'and one that was discarded');
sql('SELECT evbus.pause_bus(bus) FROM evbus.bus_list');
sql(q(SELECT evbus.publish('orders', 'later', '1')));
sql(q(SELECT evbus.resume_bus('orders')));
answers($node, 'postgres', 'SELECT count(*) FROM evbus.retry_list', '1', 'a retry');
sql(<<'SQL');
SELECT evbus.pause_bus('orders');
SELECT count(evbus.publish('orders', 'b', to_jsonb(i))) FROM generate_series(1, 10) AS i;
SELECT count(evbus.publish('mails', 'mail', to_jsonb(i))) FROM generate_series(1, 10) AS i;
SELECT evbus.publish('mails', 'mail', '"scheduled"', delay => '1 second'), evbus.publish('mails', 'mail', '"far"', delay => '10 days');
SQL
answers($node, 'postgres', q(SELECT count(*) FROM evbus.history WHERE bus = 'mails'), '11', 'what was delayed is published while the bus is paused');
sql(q(SELECT evbus.publish('mails', 'mail', '"due soon"', delay => '5 seconds')));
# It is to be in all dumps, however long they take.
my $session = $node->background_psql('postgres');
my $snapshot = $session->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_export_snapshot()');
my %dump = map { ($_ => PostgreSQL::Test::Utils::tempdir() . "/$_") } qw(plain custom directory);
$node->command_ok([ 'pg_dump', "--format=$_", '--snapshot', $snapshot, '-f', $dump{$_}, '-d', $node->connstr('postgres') ], "a dump: $_") foreach qw(plain custom directory);
$session->quit;
$node->backup('physical');
sql(q(UPDATE evbus.bus SET paused = false; DROP FUNCTION send(evbus.event)));	# it has done its part; handlers of the copies are theirs

# ------------------------------------------------------------------ restored, and asleep

my $server = new_node('server', database => undef, conf => <<'CONF');
evbus.max_databases = 8
evbus.max_handler_workers = 8
evbus.upkeep_interval = '300ms'
CONF
my $hint = qr/ERROR:  VB009: this database is a copy of another one.*HINT:  .*evbus\.take_over\(\)/s;

# What is done in a copy that was not told to: nothing.
my $untouched = q(SELECT (SELECT count(*) FROM effect) || ' ' || (SELECT count(*) FROM mail) || ' ' || (SELECT count(*) FROM evbus.retry WHERE event_id IS NOT NULL)
	|| ' ' || (SELECT count(*) FROM evbus.dead_letter) || ' ' || (SELECT count(*) FROM evbus.scheduled_list) || ' ' || (SELECT count(*) FROM evbus.dead_letter_audit)
	|| ' ' || (SELECT count(*) FROM evbus.history WHERE bus = 'small' AND payload ->> 'customer' LIKE 'customer %'));
sub asleep
{
	my ($at, $database, $where) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($at->safe_psql($database, 'SELECT evbus._copied()'), 't', "a copy knows that it is one: $where");
	$at->poll_query_until($database, 'SELECT sequencer_pid IS NOT NULL AND maintainer_pid IS NOT NULL FROM evbus._status()');
	sleep 1;					# the retry and a delayed event are overdue, and upkeep would have been three times
	# The base backup took in a delayed event or, if it took long, what that became.
	like($at->safe_psql($database, $untouched), $at->name eq 'clone' ? qr/^23 0 1 1 [12] 1 600$/ : qr/^23 0 1 1 2 1 600$/, "nothing is done in it: $where");
	is($at->safe_psql($database, q(SELECT level || ' ' || (hint ~ 'take_over') || ' ' || (SELECT count(*) FILTER (WHERE paused) || ' of ' || count(*) FROM evbus.subscription_lag) FROM evbus.health() WHERE "check" = 'copy')),
		'critical true 5 of 5', "health() says it, and how to go on; all subscriptions are as paused: $where");
	foreach my $call (q(SELECT * FROM evbus.receive('reader', wait => '1 second')), 'CALL evbus.maintain()', q(SELECT evbus.seek('reader', 'now')))
	{
		my ($ret, $stdout, $stderr) = $at->psql($database, "\\set VERBOSITY verbose\n$call");
		like($stderr, $hint, "refused, with the way out: $call");
	}
	ok($at->safe_psql($database, q(INSERT INTO shelf VALUES (1, 1) RETURNING id)), "tables whose changes are published can be written: $where");
	return;
}

# After take_over(): each undelivered event once, nothing that was done.
sub goes_on
{
	my ($at, $database, $where) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($at->safe_psql($database, 'SELECT evbus.take_over()'), 't', "it is taken over: $where");
	is($at->safe_psql($database, 'SELECT evbus.take_over()'), 'f', "once: $where");
	is($at->safe_psql($database, q(SELECT string_agg(bus || ' ' || paused, ', ' ORDER BY bus) FROM evbus.bus_list)), 'mails true, orders true, small true', "what was paused there is paused: $where");
	$at->safe_psql($database, 'SELECT evbus.resume_bus(bus) FROM evbus.bus_list');
	answers($at, $database, q(SELECT (SELECT count(*) || ' ' || count(DISTINCT position) || ' ' || max(position) FROM effect) || ' ' || (SELECT count(*) || ' ' || count(DISTINCT event_id) FROM mail)), '33 33 33 14 14',
		"handlers get what was not done once: eleven orders, ten mails, one that was due, the change made meanwhile, and two attempts later the retry: $where");
	is(join(' ', map { (split / /)[0] } receive_all($at, $database, 'reader', 26)), join(' ', 8 .. 33), "so does the client: $where");
	is($at->safe_psql($database, q(SELECT count(*) FROM evbus.receive('reader', 10, wait => '200 ms'))), '0', "and then nothing: $where");
	is(scalar(receive_all($at, $database, 'small reader', 600)), 600, "what is compressed with a dictionary can be read: $where");
	is($at->safe_psql($database, 'SELECT count(*) FROM evbus.retry_list'), '0', "the retry is done: $where");
	is($at->safe_psql($database, q(SELECT (SELECT string_agg(payload #>> '{}', ' ') FROM evbus.scheduled_list) || ' ' || (SELECT count(*) FROM evbus.dead_letter_audit))), 'far 1', "what is far ahead, and the audit, are there: $where");
	is($at->safe_psql($database, q(SELECT count(*) - count(DISTINCT event_id) FROM evbus.event_log)), '0', "no id is used twice: $where");
	is($at->safe_psql($database, q(SELECT count(*) FROM evbus.health() WHERE "check" = 'copy' AND level = 'ok')), '1', "health() has nothing to say of it: $where");
	return;
}

$server->safe_psql('postgres', "CREATE DATABASE $_") foreach qw(plain parts);
$server->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump{plain}, '-d', $server->connstr('plain') ], 'a plain dump is restored');
my $log = -s $server->logfile;

# Somebody looks on while it is restored, and tables come in an order that is not that of the dump: all workers are there from
# the first moment on, and see a part of it several times.
my ($list) = run_command([ 'pg_restore', '--list', $dump{directory} ]);
my @before = grep { /^\d/ && !/ (TABLE DATA|SEQUENCE SET|INDEX|CONSTRAINT|TRIGGER) / } split /\n/, $list;
my @data = reverse grep { / (TABLE DATA|SEQUENCE SET) / } split /\n/, $list;
@data = ((grep { !/ evbus home / } @data), grep { / evbus home / } @data);	# what it is a copy of comes last
my @after = grep { / (INDEX|CONSTRAINT|TRIGGER) / } split /\n/, $list;
my ($bus) = grep { $data[$_] =~ / evbus bus / } 0 .. $#data;
my $n_part = 0;
foreach my $part (\@before, [ @data[ 0 .. $bus - 1 ] ], [ $data[$bus] ], [ @data[ $bus + 1 .. $#data ] ], \@after)
{
	my $file = "$dump{directory}." . ++$n_part;
	append_to_file($file, join("\n", @$part) . "\n");
	$server->command_ok([ 'pg_restore', '--exit-on-error', '--use-list', $file, '-d', $server->connstr('parts'), $dump{directory} ], "part $n_part of a restore");
	last if $part == \@after;
	is($server->safe_psql('parts', 'SELECT count(*) > 10 FROM evbus.health()'), 't', 'somebody looks on');
	$server->poll_query_until('parts', 'SELECT sequencer_pid IS NOT NULL AND maintainer_pid IS NOT NULL FROM evbus._status()');
	$server->safe_psql('parts', 'SELECT * FROM evbus.subscription_lag; SELECT * FROM evbus.bus_list; SELECT * FROM evbus._subscription_state()');
	sleep 1;
	my ($ret, $stdout, $stderr) = $server->psql('parts', q(SELECT count(*) FROM evbus.receive('reader')));
	like($stdout . $stderr, qr/is a copy of another one|subscription "reader" does not exist|^0$/, 'who wants events gets none');
}
asleep($server, 'parts', 'restored under somebody\'s eyes');
goes_on($server, 'parts', 'restored under somebody\'s eyes');
ok($server->log_contains(qr/LOG:  evbus delivers nothing in database "parts": it is a copy of another one.*\n.*DETAIL: .*\n.*HINT:  .*take_over/, $log), 'the log says so, and how to go on');

$server->restart;
asleep($server, 'plain', 'restored and restarted');
$server->safe_psql('plain', 'BEGIN; SELECT evbus.take_over(); ROLLBACK');
is($server->safe_psql('plain', 'SELECT evbus._copied()'), 't', 'a rollback takes nothing over');
goes_on($server, 'plain', 'restored and restarted');
$server->stop('immediate');

# ------------------------------------------------------------- of the same server

sql(q(CREATE DATABASE "same server"));
$node->command_ok([ 'pg_restore', '--exit-on-error', '--jobs=3', '-d', $node->connstr('same server'), $dump{custom} ], 'a dump restored, in parallel, into another database of the same server');
asleep($node, 'same server', 'of the same server');
sql(q(CREATE DATABASE "of a template" TEMPLATE "same server"));
is(sql('SELECT evbus._copied()', 'of a template'), 't', 'a copy of a copy is one');
sql(q(DROP DATABASE "of a template"));
goes_on($node, 'same server', 'of the same server');
sql(q(CREATE DATABASE "of a template" TEMPLATE "same server"));
is(sql('SELECT evbus._copied()', 'of a template'), 't', 'what is made of a template is a copy');
sql(q(DROP DATABASE "of a template"));
is(sql('SELECT evbus._copied()', 'same server'), 'f', 'the template is none');

# Whoever takes over at once, before the sequencer that saw no bus here has looked again, waits for it.
sql('CREATE DATABASE quick');
$node->command_ok([ 'pg_restore', '--exit-on-error', '--use-list', "$dump{directory}.1", '-d', $node->connstr('quick'), $dump{directory} ], 'a dump restored, up to the data');
$node->poll_query_until('quick', 'SELECT ready FROM evbus._status()');
my $sequencer = sql('SELECT sequencer_pid FROM evbus._status()', 'quick');
kill 'STOP', $sequencer;
append_to_file("$dump{directory}.data", join("\n", @data, @after) . "\n");
$node->command_ok([ 'pg_restore', '--exit-on-error', '--use-list', "$dump{directory}.data", '-d', $node->connstr('quick'), $dump{directory} ], 'and the data, while the sequencer hangs');
sql('INSERT INTO shelf VALUES (1, 1)', 'quick');
system("(sleep 2; kill -CONT $sequencer) &");
goes_on($node, 'quick', 'taken over at once');

# A template without buses has nothing that could be done twice.
sql('CREATE DATABASE empty');
sql(q(CREATE EXTENSION evbus; SELECT evbus.create_bus('gone'); SELECT evbus.drop_bus('gone')), 'empty');
sql('CREATE DATABASE tenant TEMPLATE empty');
is(sql('SELECT evbus._copied()', 'tenant'), 't', 'a bus was at home in the template');
shop_in('tenant');
sub shop_in
{
	my ($database) = @_;
	sql(q(SELECT evbus.create_bus('orders'); SELECT evbus.subscribe('orders', 'reader'); SELECT evbus.publish('orders', 'a', '1')), $database);
	is(join('', receive_all($node, $database, 'reader', 1)), '1 a 1', 'but the first bus that is made in the copy is at home there');
	is(sql('SELECT evbus._copied()', $database), 'f', 'and it is none any more');
}
$node->stop;

# ------------------------------------------------------------------ a physical copy

my $clone = PostgreSQL::Test::Cluster->new('clone');
$clone->init_from_backup($node, 'physical');
$clone->append_conf('postgresql.conf', "evbus.site = 'Prüfung 2'");
$clone->start;
asleep($clone, 'postgres', 'a physical copy under another evbus.site');
$clone->restart;
is($clone->safe_psql('postgres', 'SELECT evbus._copied()'), 't', 'and stays one');
goes_on($clone, 'postgres', 'a physical copy');
$clone->restart;
is($clone->safe_psql('postgres', 'SELECT evbus._copied()'), 'f', 'once taken over it stays so');
$clone->stop;

done_testing();
