# Full disks.  Data: publishing fails with 53100 and nothing else does; WAL: the server stops, which is PostgreSQL's way.
# Once there is room again everything that was committed is delivered, by itself.
#
# test/run, as root, mounts two small file systems and names them in EVBUS_TEST_DISKS.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($data, $wal) = split /:/, $ENV{EVBUS_TEST_DISKS} // '';
plan skip_all => 'needs two small file systems, which test/run mounts when it runs as root and may mount' unless defined $wal && -w $data && -w $wal;

my $node = PostgreSQL::Test::Cluster->new('disk');
$node->init(extra => [ '--wal-segsize=1', "--waldir=$wal/wal" ]);
$node->append_conf('postgresql.conf', <<'CONF');
shared_preload_libraries = 'evbus'
max_worker_processes = 24
restart_after_crash = on
min_wal_size = 2MB
max_wal_size = 4MB
wal_keep_size = 1GB
work_mem = 64MB
CONF
$node->start;
mkdir "$data/space";
$node->safe_psql('template1', "CREATE TABLESPACE small LOCATION '$data/space'");
$node->safe_psql('template1', 'ALTER DATABASE postgres SET TABLESPACE small');
$node->safe_psql('postgres', 'CREATE EXTENSION evbus');
shop($node);

# Writes a file until nothing more fits.
sub fill_disk
{
	my ($dir) = @_;
	$node->safe_psql('postgres', 'CHECKPOINT');    # files that are dropped leave the disk now, not later
	open my $file, '>', "$dir/filler" or die $!;
	my $block = 'x' x 65536;
	1 while (syswrite($file, $block) // 0) > 0;
	1 while (syswrite($file, substr($block, 0, 512)) // 0) > 0;
	close $file;
}

# Incompressible, so that it takes what it says.
my $publish = q(SELECT count(evbus.publish('orders', 'big', (SELECT to_jsonb(string_agg(md5(i::text || random()), '')) FROM generate_series(1, 1000) AS i))));

# Publishes until it fails; returns how many were committed, and the error.
sub publish_until_error
{
	foreach my $n (0 .. 400)
	{
		my ($ret, $stdout, $stderr) = $node->psql('postgres', "\\set VERBOSITY verbose\n$publish", on_error_stop => 1);
		return ($n, $stderr) if $ret != 0;
	}
	return (401, '');
}

# ------------------------------------------------------------------ the data

$node->safe_psql('postgres', $publish) foreach 1 .. 3;
complete($node, 'before');
my $log = -s $node->logfile;
$node->safe_psql('postgres', q(SELECT evbus.pause('handled')));
my $backlog = 30000;
$node->safe_psql('postgres', "SELECT count(evbus.publish('orders', 'backlog', '1')) FROM generate_series(1, $backlog)");
fill_disk($data);
my ($n, $error) = publish_until_error();
like($error, qr/ERROR:  53100:/, 'on a full disk publish fails, and says why');
is($node->safe_psql('postgres', 'SELECT count(*) FROM evbus.history'), 3 + $backlog + $n, 'what failed left nothing');
is($node->safe_psql('postgres', q(SELECT count(*) > 0 FROM evbus.receive('reader', 1, lease => '1 second', wait => '1 second'))), 't', 'clients still receive what is there');
my ($ret, $stdout, $stderr) = $node->psql('postgres', "\\set VERBOSITY verbose\n$publish");
like($stderr, qr/ERROR:  53100:/, 'and it goes on to fail, cleanly');
$node->safe_psql('postgres', q(SELECT evbus.resume('handled')));
$node->wait_for_log(qr/\] ERROR:  could not extend file/, $log);
pass('a handler has no room for its effects, and its worker none for saying so');
unlink "$data/filler" or die $!;
ok($node->poll_query_until('postgres', $publish, '1'), 'with room again publishing goes on');
complete($node, 'the disk was full');
unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile, $log), qr/PANIC|terminated by signal/, 'the server never went down');

# ------------------------------------------------------------------- the WAL

$log = -s $node->logfile;
fill_disk($wal);
my $before = $node->safe_psql('postgres', 'SELECT count(*) FROM evbus.history');
($n, $error) = publish_until_error();
like($error, qr/server closed the connection|PANIC|terminating connection|No such file|the database system is/, 'with a full WAL disk the server goes down');
$node->wait_for_log(qr/PANIC: .*No space left on device/, $log);
my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
sleep 1 while -e $node->data_dir . '/postmaster.pid' && time < $deadline;
ok(!-e $node->data_dir . '/postmaster.pid', 'and stays down, as it cannot recover');
unlink "$wal/filler" or die $!;
$node->_update_pid(0);
$node->start;
my $after = $node->safe_psql('postgres', 'SELECT count(*) FROM evbus.history');
cmp_ok($after, '>=', $before + $n, 'with room again it starts, with everything that was committed');
cmp_ok($after, '<=', $before + $n + 1, 'and at most the one that was under way');
$node->safe_psql('postgres', $publish);
complete($node, 'the WAL disk was full');
my $all = $node->safe_psql('postgres', 'SELECT count(*) FROM effect');
is(scalar(receive_all($node, 'postgres', 'reader', $all)), $all, 'a client receives it all, too');

$node->stop;
done_testing();
