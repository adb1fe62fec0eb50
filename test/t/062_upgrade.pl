# ALTER EXTENSION evbus UPDATE under load, to a version that is made here: nothing is lost or doubled, and it takes seconds.  What was
# updated equals what is freshly made, for that version and for every script there is; the comparison finds what differs.  Tables of another version than the library are refused.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

# --------------------------------------------------- an installation of our own, with a next version

my ($bindir) = run_command([ 'bash', '-c', 'dirname "$(readlink -f "$(command -v postgres)")"' ]);
my ($sharedir) = run_command([ "$bindir/pg_config", '--sharedir' ]);
my ($prefix, $below) = $bindir =~ m{^(.*?)(/usr/lib/postgresql/.*)/bin$};
plan skip_all => "postgres is not in a private installation: $bindir" if !$prefix;
my $own = PostgreSQL::Test::Utils::tempdir();
system_or_bail('cp', '-R', '--no-dereference', "$prefix/usr", $own);
my $extension = "$own/usr" . ($sharedir =~ m{/usr(/.*)$})[0] . '/extension';

# What a release may do: a new function, a changed view, grants, comments, and a table that is locked for a moment.
my $update = <<'SQL';
CREATE FUNCTION evbus.version() RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN '1.1';
COMMENT ON FUNCTION evbus.version() IS 'a function of the next version';
REVOKE ALL ON FUNCTION evbus.version() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION evbus.version() TO pg_monitor;
CREATE OR REPLACE VIEW evbus.publish_limit_list AS SELECT *, 1 AS one FROM (SELECT b.bus, l.role, l.rate, coalesce(l.burst, l.rate) AS burst FROM evbus.publish_limit l JOIN evbus.bus b USING (bus_id)) AS x;
ALTER TABLE evbus.subscription ALTER COLUMN on_failure SET DEFAULT 'skip';
ALTER TABLE evbus.retry SET (fillfactor = 90);
CREATE TABLE evbus.novelty (n integer PRIMARY KEY, note text DEFAULT 'none');
COMMENT ON TABLE evbus.novelty IS 'a table of the next version';
SELECT pg_catalog.pg_extension_config_dump('evbus.novelty', '');
COMMENT ON COLUMN evbus.bus.slot IS 'another comment';
SQL
my $old = slurp_file("$extension/evbus--1.0.sql");
sub version
{
	my ($file, $text) = @_;
	append_to_file("$extension/$file.sql", $text);
}
version('evbus--1.0--1.1', "\\echo Use \"ALTER EXTENSION evbus UPDATE\" to load this file. \\quit\n$update");
version('evbus--1.1', $old . $update);

version('evbus--1.1--1.2', "ALTER TABLE evbus.bus ADD COLUMN novelty integer;\n");

my $node = PostgreSQL::Test::Cluster->new('upgraded', install_path => "$own$below");
$node->init;
$node->append_conf('postgresql.conf', <<'CONF');
shared_preload_libraries = 'evbus'
max_worker_processes = 24
max_connections = 40
evbus.max_databases = 8
deadlock_timeout = '100ms'
log_lock_waits = on
fsync = off
CONF
$node->start;

# ------------------------------------------------------------------------ under load

$node->safe_psql('postgres', q(CREATE EXTENSION evbus VERSION '1.0'));
shop($node);
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE received (event_id bigint, position bigint);
CREATE FUNCTION note(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$BEGIN INSERT INTO received VALUES (e.event_id, e.position); IF e.attempt = 1 AND e.position % 50 = 0 THEN RAISE 'as told'; END IF; END $$;
SELECT evbus.subscribe('orders', 'noted', handler => 'note(evbus.event)', backoff_initial => '100 ms');
CREATE TABLE item (n integer PRIMARY KEY);
SELECT evbus.publish_changes('item', 'orders');
SQL
my $directory = PostgreSQL::Test::Utils::tempdir();
my @clients;
sub client
{
	my ($name, @statements) = @_;
	open my $script, '>', "$directory/$name.sql" or die $!;
	print $script "$_\n" foreach @statements;
	close $script;
	push @clients, IPC::Run::start([ $node->installed_command('psql'), '-XAtq', '-v', 'ON_ERROR_STOP=1', '-f', "$directory/$name.sql", '-d', $node->connstr('postgres') ], '>', "$directory/$name.out", '2>', "$directory/$name.errors");
	return;
}
client("publisher$_", map { "SELECT evbus.publish('orders', 'p', '$_', delay => " . ($_ % 10 ? 'NULL' : q('200 ms')) . ');' } 1 .. 20_000) foreach 1, 2;
client('changer', map { "INSERT INTO item VALUES ($_);" } 1 .. 20_000);
client("consumer$_", (q(SELECT evbus.ack(array_agg(receipt)) FROM evbus.receive('reader', 20, wait => '100 ms') HAVING count(*) > 0;)) x 20_000) foreach 1, 2;
client('looker', ('SELECT count(*) FROM evbus.health(), evbus.subscription_lag;', 'SELECT pg_sleep(0.05);') x 2_000);
answers($node, 'postgres', 'SELECT count(*) > 300 FROM effect', 't', 'everybody is at work');
my $log = -s $node->logfile;
my $workers = worker_pids($node, 'evbus sequencer');
my $begin = time;
my ($ret, $stdout, $stderr) = $node->psql('postgres', q(SET lock_timeout = '10 s'; ALTER EXTENSION evbus UPDATE TO '1.1'));
my $seconds = time - $begin;
is($stderr, '', 'the extension is updated meanwhile');
cmp_ok($seconds, '<', 5, 'within seconds');
figure(sprintf 'ALTER EXTENSION evbus UPDATE under load: %.2f s', $seconds);
is($node->safe_psql('postgres', q(SELECT extversion || ' ' || evbus.version() FROM pg_extension WHERE extname = 'evbus')), '1.1 1.1', 'to the next version');
ok(other_worker($node, 'evbus sequencer', $workers), 'workers have come anew');
my $then = $node->safe_psql('postgres', 'SELECT count(*) FROM evbus.history');
answers($node, 'postgres', "SELECT count(*) > $then + 300 FROM effect", 't', 'and all goes on');
$clients[$_]->kill_kill foreach 0 .. 2;
answers($node, 'postgres', q(SELECT count(*) FROM evbus.scheduled_list), '0', 'what was delayed is published');
answers($node, 'postgres', q(SELECT lag FROM evbus.subscription_lag WHERE subscription = 'reader'), '0', 'clients catch up');
$_->kill_kill foreach @clients[ 3 .. $#clients ];
my $acked = 0;
$acked += $_ foreach map { split /\n/, slurp_file($_) } glob("$directory/consumer*.out");
is($acked, $node->safe_psql('postgres', 'SELECT count(*) FROM evbus.history'), 'and have acked each event once');
is(join('', map { slurp_file($_) } glob("$directory/*.errors")), '', 'nobody got an error');
complete($node, 'over an update');
answers($node, 'postgres', q(SELECT count(*) - count(DISTINCT event_id) || ' ' || (SELECT count(*) FROM evbus.history) - count(*) FROM received), '0 0', 'a handler that is called for each event, and fails now and then, got each once');
unlike(slurp_file($node->logfile, $log), qr/deadlock detected|PANIC|terminated by signal/, 'no deadlock, no crash');

# ---------------------------------------------------- what was updated, and what is fresh

my $catalog = slurp_file("$FindBin::RealBin/lib/catalog.sql");
$node->safe_psql('postgres', 'CREATE DATABASE scratch');
sub catalog
{
	my ($from, $to) = @_;
	my $facts = $node->safe_psql('scratch', qq(BEGIN; CREATE EXTENSION evbus VERSION "$from"; ) . ($from ne $to ? qq(ALTER EXTENSION evbus UPDATE TO "$to"; ) : '') . "$catalog; ROLLBACK");
	$facts =~ s/version \K[0-9.a-z]+(?=, relocatable)/X/;
	return $facts;
}

# Lines of one and not of the other.
sub differences
{
	my ($one, $other) = @_;
	my %count;
	$count{$_}++ foreach split /\n/, $one;
	$count{$_}-- foreach split /\n/, $other;
	return join "\n", map { ($count{$_} > 0 ? '- ' : '+ ') . $_ } sort grep { $count{$_} != 0 } keys %count;
}
my $fresh = catalog('1.1', '1.1');
cmp_ok(scalar(split /\n/, $fresh), '>', 1000, 'there is much to compare');
is(differences($fresh, catalog('1.0', '1.1')), '', 'updated is as fresh');
isnt(differences($fresh, catalog('1.0', '1.0')), '', 'the old version is another');

# What an update may forget, put into a fresh one by hand.
my %wrong = (
	'a comment' => q(COMMENT ON COLUMN evbus.bus.slot IS 'a comment'),
	'a grant' => 'REVOKE EXECUTE ON FUNCTION evbus.version() FROM pg_monitor',
	'to take rights from all' => 'GRANT EXECUTE ON FUNCTION evbus.version() TO PUBLIC',
	'that a table is dumped' => q(UPDATE pg_extension SET extconfig = extconfig[2:], extcondition = extcondition[2:] WHERE extname = 'evbus'),
	'the body of a function' => q(CREATE OR REPLACE FUNCTION evbus.version() RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN '1.0'),
	'a default' => q(ALTER TABLE evbus.subscription ALTER COLUMN on_failure SET DEFAULT 'block_key'),
	'a column' => 'ALTER TABLE evbus.novelty DROP COLUMN note',
	'a key' => 'ALTER EXTENSION evbus DROP TABLE evbus.novelty; ALTER TABLE evbus.novelty DROP CONSTRAINT novelty_pkey; ALTER EXTENSION evbus ADD TABLE evbus.novelty',
	'a view' => 'CREATE OR REPLACE VIEW evbus.publish_limit_list AS SELECT b.bus, l.role, l.rate, l.burst, 1 AS one FROM evbus.publish_limit l JOIN evbus.bus b USING (bus_id)',
	'options' => 'ALTER TABLE evbus.retry RESET (fillfactor)',
	'to drop a function' => q(CREATE FUNCTION evbus.former() RETURNS int LANGUAGE sql RETURN 1; ALTER EXTENSION evbus ADD FUNCTION evbus.former()));
my @wrong = sort keys %wrong;
my @facts = split /^next\n/m, $node->safe_psql('scratch', 'BEGIN; CREATE EXTENSION evbus VERSION "1.1"; SAVEPOINT fresh; '
	. join("SELECT 'next'; ROLLBACK TO fresh;\n", map { "$wrong{$_}; $catalog" } @wrong) . 'ROLLBACK');
isnt(differences($fresh, $facts[$_] =~ s/version \K[0-9.a-z]+(?=, relocatable)/X/r), '', "it would be seen if an update forgot $wrong[$_]") foreach 0 .. $#wrong;
note(differences($fresh, $facts[0] =~ s/version \K[0-9.a-z]+(?=, relocatable)/X/r));

# The scripts that there are: from each version that can be made to the one that is made by default.
my ($default) = slurp_file("$extension/evbus.control") =~ /default_version = '(.*)'/;
my @versions = map { m{evbus--([^-]+)\.sql$} ? $1 : () } glob("$FindBin::RealBin/../../sql/evbus--*.sql");
cmp_ok(scalar(@versions), '>=', 1, 'there are versions');
$fresh = catalog($default, $default);
is(differences($fresh, catalog($_, $default)), '', "evbus $_, updated to $default, is as a fresh $default") foreach @versions;

# ----------------------------------------------- a library of another version than the tables

$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'before', '1')));
$node->safe_psql('postgres', q(ALTER EXTENSION evbus UPDATE TO '1.2'));
($ret, $stdout, $stderr) = $node->psql('postgres', "\\set VERBOSITY verbose\nSELECT evbus.publish('orders', 'p', '1')");
like($stderr, qr/ERROR:  55000: table "evbus.bus" does not fit the loaded library.*HINT:  .*ALTER EXTENSION evbus UPDATE, or install the library/s, 'a library of another version than the tables says so');
is($node->safe_psql('postgres', 'SELECT count(*) > 300 FROM effect'), 't', 'the server lives, and other tables');
$node->stop;

# -------------------------------------------------------------------- pg_upgrade

my $from = new_node('from');
is($from->safe_psql('postgres', q(SELECT attrelid::regclass || '.' || attname FROM pg_attribute WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'evbus'::regnamespace AND relkind IN ('r', 'p', 'i', 'm', 'f', 'c'))
	AND atttypid IN (SELECT unnest('{regcollation,regconfig,regdictionary,regnamespace,regoper,regoperator,regproc,regprocedure}'::regtype[])))), '', 'no table has a column for which pg_upgrade would refuse');
shop($from);
$from->safe_psql('postgres', <<'SQL');
SELECT count(evbus.publish('orders', 'a', to_jsonb(i))) FROM generate_series(1, 20) AS i;
SQL
is((receive_all($from, 'postgres', 'reader', 7))[-1], '7 a 7', 'a client has acked seven of twenty');
answers($from, 'postgres', 'SELECT count(*) FROM effect', '20', 'the handler is through');
$from->safe_psql('postgres', q(SELECT evbus.pause('handled'); SELECT count(evbus.publish('orders', 'b', to_jsonb(i))) FROM generate_series(1, 5) AS i; SELECT evbus.publish('orders', 'c', '1', delay => '1 hour'); SELECT evbus.resume('handled') WHERE false));
$from->stop;
my $to = new_node('to', database => undef);
$to->stop;
my @pg_upgrade = ('pg_upgrade', '--no-sync', '-d', $from->data_dir, '-D', $to->data_dir, '-b', $from->config_data('--bindir'), '-B', $to->config_data('--bindir'), '-s', $from->host, '-p', $from->port, '-P', $to->port);
chdir $directory or die $!;
command_ok(\@pg_upgrade, 'pg_upgrade finds nothing to complain of, and upgrades');
$to->start;
answers($to, 'postgres', 'SELECT evbus._copied() AND maintainer_pid IS NOT NULL FROM evbus._status()', 't', 'it has the system identifier of another cluster now: a copy');
$to->safe_psql('postgres', q(SELECT evbus.resume('handled')));
is($to->safe_psql('postgres', q(SELECT evbus.publish('orders', 'd', '1') > 0)), 't', 'to which can be published');
is($to->safe_psql('postgres', 'SELECT count(*) FROM effect'), '20', 'and which delivers nothing');
is($to->safe_psql('postgres', 'SELECT evbus.take_over()'), 't', 'until it is taken over');
answers($to, 'postgres', q(SELECT count(*) || ' ' || count(DISTINCT position) || ' ' || max(position) FROM effect), '26 26 26', 'then the handler gets the rest, once');
is(join(' ', map { (split / /)[0] } receive_all($to, 'postgres', 'reader', 19)), join(' ', 8 .. 26), 'and so does the client');
is($to->safe_psql('postgres', 'SELECT count(*) FROM evbus.scheduled_list'), '1', 'what is delayed is there');
$to->stop;

done_testing();
