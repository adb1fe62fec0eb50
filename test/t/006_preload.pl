# Without shared_preload_libraries: a clear error with the line to add, and nothing left behind.

use strict;
use warnings FATAL => 'all';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('preload');
$node->init;
$node->append_conf('postgresql.conf', "max_worker_processes = 24\n");
$node->start;

my ($ret, $stdout, $stderr) = $node->psql('postgres', "\\set VERBOSITY verbose\nCREATE EXTENSION evbus", on_error_stop => 1);
isnt($ret, 0, 'CREATE EXTENSION fails');
like($stderr, qr/ERROR:  55000:/, 'with SQLSTATE 55000');
like($stderr, qr/shared_preload_libraries = 'evbus'/, 'and the line to add');
is($node->safe_psql('postgres', q(SELECT (SELECT count(*) FROM pg_extension WHERE extname = 'evbus') || ' ' || (SELECT count(*) FROM pg_namespace WHERE nspname = 'evbus'))), '0 0', 'neither extension nor schema is left');
$node->psql('postgres', q(LOAD 'evbus'));
is($node->safe_psql('postgres', 'SELECT 1'), '1', 'loading the library by hand does not bring the server down');
is($node->safe_psql('postgres', q(SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'evbus%')), '0', 'no worker runs');

# With the line it works.
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'evbus'\n");
$node->restart;
is(($node->psql('postgres', 'CREATE EXTENSION evbus'))[0], 0, 'with the line CREATE EXTENSION works');
$node->safe_psql('postgres', q(SELECT evbus.create_bus('orders')));
$node->safe_psql('postgres', q(SELECT evbus.subscribe('orders', 'reader')));
$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'a', '1')));

# Taken away again, calls say what is wrong and the data stays.
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''\n");
$node->restart;
foreach my $call (q(SELECT evbus.publish('orders', 'b', '2')), q(SELECT evbus.create_bus('b')), q(SELECT evbus.subscribe('orders', 'b')), q(SELECT * FROM evbus.receive('reader')), q(SELECT evbus.ack('{}')),
	q(CALL evbus.wait('reader', '1 ms')), q(CALL evbus.maintain()), q(SELECT * FROM evbus.subscription_lag), q(SELECT evbus.drop_bus('orders', true)), q(SELECT evbus.redrive()))
{
	($ret, $stdout, $stderr) = $node->psql('postgres', "\\set VERBOSITY verbose\n$call");
	like($stderr, qr/ERROR:  55000:.*shared_preload_libraries/s, "not preloaded: $call");
}
is($node->safe_psql('postgres', 'SELECT type FROM evbus.history'), 'a', 'the history can still be read');
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'evbus'\n");
$node->restart;
is($node->safe_psql('postgres', q(SELECT type FROM evbus.receive('reader', wait => '30 seconds'))), 'a', 'preloaded again, what was published before is delivered');

# Too few background workers: evbus says so instead of waiting for ever.
$node->append_conf('postgresql.conf', "max_worker_processes = 0\n");
$node->restart;
($ret, $stdout, $stderr) = $node->psql('postgres', "\\set VERBOSITY verbose\nSELECT type FROM evbus.receive('reader')");
like($stderr, qr/ERROR:  VB009:/, 'without background workers receive says that they do not run');
is($node->safe_psql('postgres', 'SELECT 1'), '1', 'and the server goes on');

$node->stop;
done_testing();
