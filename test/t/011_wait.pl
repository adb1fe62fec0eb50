# CALL evbus.wait() outside of a transaction block holds back no vacuum; waiting clients end when they should.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('wait');
$node->safe_psql('postgres', <<'SQL');
SELECT evbus.create_bus('orders');
SELECT evbus.subscribe('orders', 'reader', types => '{wanted}');
SQL

my $client = $node->background_psql('postgres');
my $pid = $client->query_safe('SELECT pg_backend_pid()');
my $state = "SELECT state || ' ' || coalesce(backend_xmin::text, 'no') || ' ' || coalesce(backend_xid::text, 'no') FROM pg_stat_activity WHERE pid = $pid";
my $waiting = "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND state = 'active' AND wait_event_type IN ('Extension', 'IPC', 'Activity', 'Timeout') AND query LIKE '%evbus.wait%'";

$client->query_until(qr/started/, "\\echo started\nCALL evbus.wait('reader', '100 seconds');\n\\echo finished\n");
ok($node->poll_query_until('postgres', $waiting, '1'), 'a client waits');

# From PostgreSQL 17 on it is told for what.
my $named = $node->safe_psql('postgres', q(SELECT current_setting('server_version_num')::integer >= 170000)) eq 't';
answers($node, 'postgres', "SELECT wait_event_type || ' ' || wait_event FROM pg_stat_activity WHERE pid = $pid", 'Extension ' . ($named ? 'EvbusReceive' : 'Extension'), 'it says for what, where that has a name');
answers($node, 'postgres', q(SELECT string_agg(backend_type || ' ' || wait_event, ', ' ORDER BY backend_type) FROM pg_stat_activity WHERE backend_type LIKE 'evbus %'),
	join(', ', map { "evbus $_ " . ($named ? 'Evbus' . ucfirst($_) . 'Main' : 'Extension') } qw(launcher maintainer sequencer)), 'so do the workers');
is($node->safe_psql('postgres', $state), 'active no no', 'and holds neither xmin nor a transaction id');

# Dead rows made while it waits can be removed.
$node->safe_psql('postgres', 'CREATE TABLE churn AS SELECT i FROM generate_series(1, 1000) AS i');
$node->safe_psql('postgres', 'DELETE FROM churn');
my ($ret, $stdout, $stderr) = $node->psql('postgres', 'VACUUM (VERBOSE) churn');
like($stderr, qr/tuples: 1000 removed|removed 1000/, 'vacuum removes rows that were deleted while it waits');

# Events of other types do not end it, one of its own does.
$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'other', '1')));
answers($node, 'postgres', q(SELECT next_position FROM evbus.bus_list), '2', 'an event of another type passes by');
is($node->safe_psql('postgres', $waiting), '1', 'and the client still waits');
is($node->safe_psql('postgres', $state), 'active no no', 'still without xmin');
$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'wanted', '1')));
$client->query_until(qr/finished/, '');
is($client->query_safe(q(SELECT type FROM evbus.receive('reader'))), 'wanted', 'an event for it ends the wait, and is there to receive');

# A wait can be cancelled.
$client->query_until(qr/started/, "\\echo started\nCALL evbus.wait('reader', '100 seconds');\n\\echo finished\n");
ok($node->poll_query_until('postgres', $waiting, '1'), 'it waits again');
$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
($ret, $stdout, $stderr) = (0, '', '');
eval { $client->quit };
ok($node->poll_query_until('postgres', "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND query LIKE '%evbus.wait%' AND state = 'active'", '0'), 'and can be cancelled');

# Unsubscribe ends it with an error, not with a hang.
$client = $node->background_psql('postgres', on_error_stop => 0);
$pid = $client->query_safe('SELECT pg_backend_pid()');
foreach my $call (q(CALL evbus.wait('reader', '50 seconds');), q(SELECT * FROM evbus.receive('reader', wait => '50 seconds');))
{
	$node->safe_psql('postgres', q(SELECT evbus.seek('reader', 'now')));
	$client->query_until(qr/started/, "\\echo started\n$call\n\\echo finished\n");
	ok($node->poll_query_until('postgres', "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND state = 'active' AND wait_event IS NOT NULL", '1'), "a client is in $call");
	$node->safe_psql('postgres', q(SELECT evbus.unsubscribe('reader')));
	my $start = time;
	$client->query_until(qr/finished/, '');
	cmp_ok(time - $start, '<', 30, 'it ends soon after the subscription was removed');
	$node->safe_psql('postgres', q(SELECT evbus.subscribe('orders', 'reader', types => '{wanted}')));
}

# A fast stop does not wait for it.
$client->query_until(qr/started/, "\\echo started\nCALL evbus.wait('reader', '100 seconds');\n\\echo finished\n");
ok($node->poll_query_until('postgres', "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND state = 'active' AND wait_event IS NOT NULL", '1'), 'it waits once more');
my $start = time;
$node->stop('fast');
cmp_ok(time - $start, '<', 30, 'a fast stop does not wait for waiting clients');
eval { $client->quit };

# Another extension may have taken the names; that costs the names, and nothing else.
if ($named)
{
	my $library = build_module('wait_names');
	my $workers = q(SELECT string_agg(pid::text || ' ' || wait_event, ', ' ORDER BY pid) FROM pg_stat_activity WHERE backend_type LIKE 'evbus %');

	$node->append_conf('postgresql.conf', "shared_preload_libraries = '$library,evbus'");
	$node->start;
	answers($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'evbus %' AND wait_event = 'Extension'), '3', 'without names the workers run, and wait for "Extension"');
	my $log = -s $node->logfile;
	my $before = $node->safe_psql('postgres', $workers);
	is($node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'wanted', '2') > 0)), 't', 'events are published');
	is($node->safe_psql('postgres', q(SELECT payload FROM evbus.receive('reader', wait => '10 seconds'))), '2', 'and received, by who waits for them');
	is($node->safe_psql('postgres', $workers), $before, 'no worker was started again');
	unlike(slurp_file($node->logfile, $log), qr/too many custom wait events/, 'and nothing failed');

	# Taken afterwards, they take none of ours; also when shared memory is made anew after a crash.
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'evbus,$library'\nrestart_after_crash = on");
	$node->restart;
	my $own = q(SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'evbus %' AND wait_event LIKE 'Evbus%Main');
	answers($node, 'postgres', $own, '3', 'who came first has its names');
	$log = -s $node->logfile;
	kill 'KILL', worker_pids($node, 'evbus sequencer');
	ok(crashed($node, $log), 'a worker is killed');
	answers($node, 'postgres', $own, '3', 'and has them again after the crash');
	$node->stop('fast');
}

done_testing();
