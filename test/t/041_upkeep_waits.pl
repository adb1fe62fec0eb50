# How long upkeep keeps others waiting for its locks, and that it gets them: a table of a class that somebody reads, several
# classes at their limits, a bus with many leaves that is dropped, and publishers that overlap.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Few locks, and each that is waited for is logged.
my $node = PostgreSQL::Test::Cluster->new('waits');
$node->init;
$node->append_conf('postgresql.conf', <<'CONF');
shared_preload_libraries = 'evbus'
max_worker_processes = 24
max_connections = 20
max_locks_per_transaction = 10
deadlock_timeout = '10ms'
log_lock_waits = on
evbus.upkeep_interval = '1h'
autovacuum = off
fsync = off
CONF
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION evbus');
sub sql { my ($q) = @_; return $node->safe_psql('postgres', $q); }
sub class { my ($bus) = @_; return sql("SELECT storage_class_id FROM evbus.bus WHERE bus = '$bus'"); }

# Gives a class n leaves of long ago.
sub old_leaves
{
	my ($class, $n) = @_;
	sql(join "\n", map { my $leaf = "evbus.event_c${class}_old$_";
			"CREATE TABLE $leaf (LIKE evbus.event_c$class INCLUDING DEFAULTS INCLUDING STORAGE, PRIMARY KEY (event_id));" .
			"ALTER TABLE evbus.event_c$class ATTACH PARTITION $leaf FOR VALUES FROM (" . $_ * 100 . ') TO (' . ($_ + 1) * 100 . ');' } 1 .. $n);
	return;
}
sub leaves { my ($class) = @_; return sql("SELECT count(*) FROM pg_inherits WHERE inhparent = 'evbus.event_c$class'::regclass AND inhrelid::regclass::text LIKE '%old%'"); }

# How often somebody waited for the table of a class.
sub waits
{
	my ($class, $from) = @_;
	my $oid = sql("SELECT 'evbus.event_c$class'::regclass::oid");
	return scalar(() = PostgreSQL::Test::Utils::slurp_file($node->logfile, $from) =~ /still waiting for AccessExclusiveLock on relation $oid /g);
}

# --------------------------------------------- a table that somebody reads, many leaves due

sql(q(SELECT evbus.create_bus('many', retention => '1 hour', partition_interval => '1 hour')));
my $many = class('many');
old_leaves($many, 12);
my $reader = $node->background_psql('postgres');
$reader->query_safe('BEGIN');
$reader->query_safe("LOCK TABLE evbus.event_c$many IN ACCESS SHARE MODE");
my $log = -s $node->logfile;
sql('CALL evbus.maintain()');
is(leaves($many), '12', 'no leaf goes while somebody reads the table of its class');
is(waits($many, $log), 1, 'which is waited for once, and not for each leaf');
like(sql(q(SELECT held_back_by FROM evbus.stat_upkeep WHERE 'many' = ANY (buses))), qr/^process \d+ holds a lock on it$/, 'who reads is named');
$reader->query_safe('COMMIT');
sql('CALL evbus.maintain()');
is(leaves($many), '0', 'then they go');

# ------------------------------------------------------- classes at their limits, looked at every second

my @limited = ('left', 'right');
my %class;
foreach my $bus (@limited)
{
	sql("SELECT evbus.create_bus('$bus', retention => '100 years', retention_bytes => 1048576)");
	$class{$bus} = class($bus);
	old_leaves($class{$bus}, 3);
}
$reader->query_safe('BEGIN');
$reader->query_safe("LOCK TABLE evbus.event_c$class{$_} IN ACCESS SHARE MODE") foreach @limited;
$log = -s $node->logfile;
sql("SELECT count(evbus.publish('$_', 'a', to_jsonb((SELECT string_agg(md5((i * 100 + k)::text), '') FROM generate_series(1, 64) k)))) FROM generate_series(1, 1000) i") foreach @limited;
answers($node, 'postgres', "SELECT count(*) FROM evbus.stat_upkeep WHERE buses && '{left,right}' AND held_back_since < clock_timestamp() - interval '12 seconds'", '2', 'two buses are over their limits for a while, and their tables are read');
my %waits = map { $_ => waits($class{$_}, $log) } @limited;
cmp_ok($waits{$_}, '>', 3, "the table of '$_' is waited for") foreach @limited;
cmp_ok($waits{$_}, '<', 14, "ever more rarely, beside the other one ($waits{$_})") foreach @limited;
$reader->query_safe('COMMIT');
$reader->quit;
answers($node, 'postgres', q(SELECT bool_and(bytes <= retention_bytes * 1.5) FROM evbus.stat_upkeep WHERE buses && '{left,right}'), 't', 'once nobody reads, what is too much goes');

# --------------------------------------------------------- a bus with more leaves than there are locks

sql(q(SELECT evbus.create_bus('dropped', retention_bytes => 1048576)));
my $dropped = class('dropped');
old_leaves($dropped, 1000);
sql(q(SELECT evbus.drop_bus('dropped')));
sql('CALL evbus.maintain()') foreach 1 .. 2;
is(sql("SELECT count(*) FROM evbus.storage_class WHERE storage_class_id = $dropped"), '0', 'a bus with more leaves than there are locks is dropped, and so is its class');
is(sql("SELECT to_regclass('evbus.event_c$dropped') IS NULL"), 't', 'with its tables');

# ------------------------------------------- transactions that publish, overlap, and are never all over

sql(q(SELECT evbus.create_bus('overlapping', retention_bytes => 1048576)));
my $overlapping = class('overlapping');
my $script = PostgreSQL::Test::Utils::tempdir() . '/overlapping.sql';
append_to_file($script, "BEGIN;\nSELECT count(evbus.publish('overlapping', 'a', to_jsonb(repeat(md5(random()::text), 20)))) FROM generate_series(1, 50);\nSELECT pg_sleep(0.1 + 0.2 * random());\nCOMMIT;\n");
ok($node->run_log([ 'pgbench', '-n', '-c', '6', '-T', '30', '-f', $script, '-h', $node->host, '-p', $node->port, 'postgres' ]), 'six publish without a break, in transactions that overlap');
# What was cut off may be gone already: the leaf of now begins within its day.
is(sql("SELECT count(*) FROM evbus.leaf_list WHERE storage_class_id = $overlapping AND clock_timestamp() BETWEEN from_time AND to_time AND from_time > date_trunc('day', clock_timestamp(), 'UTC')"), '1', 'their leaf is cut all the same');

$node->stop;
done_testing();
