# Turns of the ledger while others stand in the way: acks at every step of a turn, an idle transaction that acked, a dump.
#
# Whatever crashes where, what was acked is not delivered again and what was not acked is: the client notes what it was
# given in the transaction that acks it, so its table is the truth to compare with.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('ledger', conf => <<'CONF');
restart_after_crash = on
evbus.ledger_turn_size = '64kB'
evbus.upkeep_interval = '100ms'
CONF
plan skip_all => 'the library has no debug points' unless points($node);
shop($node);
$node->safe_psql('postgres', 'CREATE TABLE received (event_id bigint)');

my $published = 0;

sub publish
{
	my ($n) = @_;
	$published += $n;
	return $node->safe_psql('postgres', "SELECT count(evbus.publish('orders', 'a', to_jsonb(i))) FROM generate_series(1, $n) AS i");
}

# Receives, notes and acks n deliveries; the statement of one transaction.
sub consume
{
	my ($n) = @_;
	return <<~"SQL";
		WITH d AS MATERIALIZED (SELECT * FROM evbus.receive('reader', $n, lease => '1 hour', wait => '10 seconds')),
			 w AS (INSERT INTO received SELECT event_id FROM d)
		SELECT evbus.ack(array_agg(receipt)) FROM d HAVING count(*) > 0;
		SQL
}

sub turn_in_use
{
	return $node->safe_psql('postgres', 'SELECT ledger_turn FROM evbus._status()');
}

sub turned
{
	my ($turn, $description) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	# A turn is over when its table holds the checkpoint of every subscription.
	return answers($node, 'postgres', sprintf("SELECT count(*) FROM evbus.ack_%d WHERE turn = %d AND frontier IS NOT NULL", $turn % 3, $turn), '2', $description);
}

# What was not acked comes, what was acked does not.
sub all_once
{
	my ($when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $left = $published - $node->safe_psql('postgres', 'SELECT count(*) FROM received');
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
	while ($left > 0 && time < $deadline)
	{
		$node->safe_psql('postgres', consume($left));
		$left = $published - $node->safe_psql('postgres', 'SELECT count(*) FROM received');
	}
	is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.receive('reader', 10))), '0', "nothing is left to receive: $when");
	is($node->safe_psql('postgres', 'SELECT count(*) || \' \' || count(DISTINCT event_id) FROM received'), "$published $published", "every event was received and acked once: $when");
	answers($node, 'postgres', 'SELECT count(*) || \' \' || count(DISTINCT event_id) FROM effect', "$published $published", "and handled once: $when");
}

# ---------------------------------------- acks at each step of a turn, then a crash

foreach my $step ('ledger.truncating', 'ledger.truncated', 'ledger.switched', 'ledger.checkpointing', 'ledger.checkpointed')
{
	publish(30);
	$node->safe_psql('postgres', consume(5));
	# The maintainer starts handler workers: not while it stands still.
	answers($node, 'postgres', 'SELECT count(*) FROM effect', $published, 'a handler worker is there');
	point($node, $step, 'wait');
	fill_ledger($node);
	ok(reached($node, $step), "the maintainer stands at $step");

	$node->safe_psql('postgres', consume(5));
	my ($idle, $undone) = map { $node->background_psql('postgres', on_error_stop => 0) } 1, 2;
	foreach ($idle, $undone)
	{
		$_->query_safe('BEGIN');
		$_->query_safe(consume(5));
	}
	$undone->query_safe('ROLLBACK');
	answers($node, 'postgres', q(SELECT lag + in_flight FROM evbus.subscription_lag WHERE subscription = 'handled'), '0', 'handlers go on meanwhile');

	my $log = -s $node->logfile;
	kill 'KILL', worker_pids($node, 'evbus maintainer');
	ok(crashed($node, $log), 'it is killed there, and the server restarts itself');
	eval { $_->quit } foreach $idle, $undone;
	is($node->safe_psql('postgres', 'SELECT count(*) FROM received') % 10, 0, 'the transaction that had acked and not committed left nothing');
	all_once("a crash at $step, between acks");
}

# ------------------------------ a transaction that acked and stays open

publish(30);
my $idle = $node->background_psql('postgres', on_error_stop => 0);
$idle->query_safe('BEGIN');
$idle->query_safe(consume(10));
my $turn = turn_in_use();
my $log = -s $node->logfile;
fill_ledger($node);
answers($node, 'postgres', 'SELECT ledger_turn FROM evbus._status()', $turn + 1, 'a turn begins beside a transaction that acked and is idle');
$node->wait_for_log(qr/canceling statement due to lock timeout/, $log);
pass('its checkpoint waits a second for that transaction, and is tried again');
fill_ledger($node);
$node->safe_psql('postgres', consume(5));
publish(5);
answers($node, 'postgres', q(SELECT lag + in_flight FROM evbus.subscription_lag WHERE subscription = 'handled'), '0', 'publishing, handlers and acks go on meanwhile');
is(turn_in_use(), $turn + 1, 'and no further turn begins before it, however large the ledger is');
$idle->query_safe('COMMIT');
$idle->quit;
turned($turn + 1, 'once it has committed the turn ends');
$node->stop('immediate');
$node->start;
all_once('an idle transaction acked over a turn, then committed; then a crash');

# The same, but the crash finds it open: the rows of both tables count.
publish(30);
$idle = $node->background_psql('postgres', on_error_stop => 0);
$idle->query_safe('BEGIN');
$idle->query_safe(consume(10));
$turn = turn_in_use();
$node->safe_psql('postgres', consume(5));
fill_ledger($node);
answers($node, 'postgres', 'SELECT ledger_turn FROM evbus._status()', $turn + 1, 'again a turn begins beside an idle transaction');
$node->safe_psql('postgres', consume(5));
$node->stop('immediate');
eval { $idle->quit };
$node->start;
all_once('a crash between the switch and the checkpoint');

# ------------------------------------------------- dumps over one and two turns

# A dump holds its locks from the start: the turn waits.
$turn = turn_in_use();
my $dump = $node->background_psql('postgres', on_error_stop => 0);
$dump->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
$dump->query_safe('LOCK TABLE evbus.ack_0, evbus.ack_1, evbus.ack_2 IN ACCESS SHARE MODE');
publish(20);
$log = -s $node->logfile;
fill_ledger($node);
$node->wait_for_log(qr/canceling statement due to lock timeout/, $log);
is(turn_in_use(), $turn, 'a dump that holds its locks delays the turn');
$node->safe_psql('postgres', consume(10));
answers($node, 'postgres', q(SELECT lag + in_flight FROM evbus.subscription_lag WHERE subscription = 'handled'), '0', 'and nothing else');
$dump->query_safe('COMMIT');
turned($turn + 1, 'once it is over the turn comes');

# One that has its snapshot and not yet its locks: it must find the acks, or a checkpoint, as they were.
my $received = $node->safe_psql('postgres', 'SELECT count(*) FROM received');
publish(20);
$node->safe_psql('postgres', consume(10));
$received += 10;
answers($node, 'postgres', q(SELECT lag + in_flight FROM evbus.subscription_lag WHERE subscription = 'handled'), '0', 'the handler is through');
my $at_snapshot = $published;
$dump->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
(my $snapshot = $dump->query_safe('SELECT pg_export_snapshot()')) =~ s/\s+//g;
$node->safe_psql('postgres', 'CREATE DATABASE ' . $_) foreach 'over_1', 'over_2';
foreach my $turns (1, 2)
{
	$turn = turn_in_use();
	fill_ledger($node);
	turned($turn + 1, "turn $turns under a snapshot");
	publish(5);
	$node->safe_psql('postgres', consume(5));
	$node->command_ok([ 'pg_dump', '-Fc', '--snapshot', $snapshot, '-f', $node->backup_dir . "_$turns.dump", '-d', $node->connstr('postgres') ], 'a dump with that snapshot');
}
$dump->query_safe('COMMIT');
$dump->quit;
$node->command_ok([ 'pg_restore', '-d', $node->connstr("over_$_"), $node->backup_dir . "_$_.dump" ], 'is restored into another database') foreach 1, 2;
foreach my $turns (1, 2)
{
	my $database = "over_$turns";
	is($node->safe_psql($database, 'SELECT count(*) FROM received'), $received, 'which is as it was at the snapshot');
	$node->safe_psql($database, 'SELECT evbus.take_over()');
	my @got = receive_all($node, $database, 'reader', $at_snapshot - $received);
	is(scalar(@got), $at_snapshot - $received, "and delivers there what was not acked at the snapshot: over $turns turns");
	is($node->safe_psql($database, q(SELECT count(*) FROM evbus.receive('reader', 10, wait => '300 ms'))), '0', 'and nothing that was');
	is($node->safe_psql($database, 'SELECT count(*) - count(DISTINCT event_id) FROM effect'), '0', 'nor is anything handled twice');
}
all_once('after all of it');

$node->stop;
done_testing();
