# The real pg_cron runs evbus.maintain().

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('cron');
plan skip_all => 'pg_cron is not installed' if !-e $node->config_data('--sharedir') . '/extension/pg_cron.control';
$node->init;
$node->append_conf('postgresql.conf', <<'CONF');
shared_preload_libraries = 'evbus,pg_cron'
cron.database_name = 'postgres'
cron.use_background_workers = on
max_worker_processes = 24
CONF
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION evbus');

my ($ret, $stdout, $stderr) = $node->psql('postgres', 'SELECT evbus.schedule_maintenance()');
like($stderr, qr/pg_cron is not installed in database "postgres"/, 'without the extension pg_cron the message says what is missing');
like($stderr, qr/HINT: .*CREATE EXTENSION pg_cron/, 'and what to do');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_cron');
my $job = $node->safe_psql('postgres', 'SELECT evbus.schedule_maintenance()');
like($job, qr/^\d+$/, 'schedule_maintenance returns the id of the job');
is($node->safe_psql('postgres', "SELECT schedule || ' ' || command || ' ' || database FROM cron.job WHERE jobid = $job"), '*/5 * * * * CALL evbus.maintain() postgres', 'the job is there, every five minutes');
is($node->safe_psql('postgres', q(SELECT evbus.schedule_maintenance('0 * * * *'))), $job, 'scheduling again changes the job instead of making another');
is($node->safe_psql('postgres', q(SELECT count(*) FROM cron.job)), '1', 'there is one job');
($ret, $stdout, $stderr) = $node->psql('postgres', q(SELECT evbus.schedule_maintenance('whenever')));
like($stderr, qr/ERROR: .*schedule/, 'a malformed schedule is refused');

# "@reboot" lets pg_cron run the job as soon as it starts, so nobody has to wait for the minute to end.
is($node->safe_psql('postgres', q(SELECT evbus.schedule_maintenance('@reboot'))), $job, 'a schedule may be any that pg_cron knows');
$node->safe_psql('postgres', q(SELECT evbus.create_bus('orders', partition_interval => '1 hour')));
$node->restart;
answers($node, 'postgres', "SELECT count(*) > 0 FROM cron.job_run_details WHERE jobid = $job AND status IN ('succeeded', 'failed')", 't', 'pg_cron ran the job');
is($node->safe_psql('postgres', "SELECT DISTINCT status || ' ' || command FROM cron.job_run_details WHERE jobid = $job"), 'succeeded CALL evbus.maintain()', 'and it succeeded') or diag($node->safe_psql('postgres', 'SELECT * FROM cron.job_run_details'));

# By hand it works too, twice at a time, but not in a transaction block.
is(($node->psql('postgres', 'CALL evbus.maintain()'))[0], 0, 'evbus.maintain() can be called by hand');
like(($node->psql('postgres', "\\set VERBOSITY verbose\nBEGIN;\nCALL evbus.maintain();\nCOMMIT"))[2], qr/ERROR:  25001:/, 'but not inside a transaction block, whose locks would keep the maintainer');
is(($node->psql('postgres', "DO 'BEGIN CALL evbus.maintain(); CALL evbus.maintain(); END'"))[0], 0, 'a block of PL/pgSQL that may commit, may call it');
my $other = $node->background_psql('postgres');
$other->query_safe('BEGIN');
$other->query_safe('LOCK TABLE evbus.storage_class IN SHARE UPDATE EXCLUSIVE MODE');
($ret, $stdout, $stderr) = $node->psql('postgres', "\\set VERBOSITY verbose\nSET lock_timeout = '100ms';\nCALL evbus.maintain()");
like($stderr, qr/ERROR:  55P03:/, 'while another upkeep goes on, it ends with lock_timeout');
$other->query_safe('COMMIT');
$other->quit;

$node->stop;
done_testing();
