# At every debug point (src/point.h) a process is killed, fails or is ended, while the scenario that passes it runs.
#
# The client keeps its own account: what it was told, and, where the connection was lost, whether a row of its own that
# it wrote in the same transaction is there.  Afterwards what committed has been delivered once, to handler and client, what
# did not never was, positions are dense, nothing is left in hand, and the server got there by itself.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('points', conf => <<'CONF');
restart_after_crash = on
max_prepared_transactions = 10
evbus.ring_size = '1MB'
evbus.late_after = '1h'
evbus.ledger_turn_size = '64kB'
evbus.upkeep_interval = '100ms'
CONF
plan skip_all => 'the library has no debug points' unless points($node);
shop($node);
$node->safe_psql('postgres', <<'SQL');
SELECT evbus.create_bus('capped', retention_bytes => 1024 * 1024);
CREATE TABLE received (event_id bigint, type text);
CREATE TABLE published (type text);
-- Polls in the server, as there is much to wait for here; false after twenty seconds.
CREATE FUNCTION becomes_true(question text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE answer boolean;
BEGIN
	FOR i IN 1 .. 4000 LOOP
		EXECUTE question INTO answer;
		EXIT WHEN answer;
		PERFORM pg_sleep(0.005);
	END LOOP;
	RETURN answer;
END $$;
SQL

my %expected;    # type => how many events of it were committed
my %unknown;     # type => the same, if they were: the connection was lost
my $serial = 0;

# A transaction of a client that publishes n events of a type of its own; ends as told, by default with COMMIT.
sub publish
{
	my (%option) = @_;
	my $type = 'e' . ++$serial;
	my $n = $option{n} // 1;
	my $size = $option{size} // 10;
	my ($ret, $out) = $node->psql('postgres', <<~"SQL", on_error_stop => 1);
		BEGIN;
		INSERT INTO published VALUES ('$type');
		SELECT count(evbus.publish('orders', '$type', to_jsonb(repeat('x', $size)))) FROM generate_series(1, $n);
		@{[ $option{end} // 'COMMIT' ]};
		SELECT 'done';
		SQL
	if ($out =~ /^done$/m) { $expected{$type} = $n }
	elsif ($ret == 2) { $unknown{$type} = $n }
	return $type;
}

# The same in two phases.
sub publish_prepared
{
	my $gid = 'g' . ($serial + 1);
	my $type = publish(end => "PREPARE TRANSACTION '$gid'; COMMIT PREPARED '$gid'");
	return unless $node->poll_query_until('postgres', 'SELECT true');
	$node->psql('postgres', "COMMIT PREPARED '$gid'") if $node->safe_psql('postgres', "SELECT count(*) FROM pg_prepared_xacts WHERE gid = '$gid'");
}

# More than the ring holds, while the sequencer stands still.
sub overflow
{
	point($node, 'sequencer.clock', 'wait');
	reached($node, 'sequencer.clock') or die 'the sequencer does not come to its clock';
	publish(n => 60, size => 1500) foreach 1 .. 14;
	point($node, 'sequencer.clock', 'off');
}

# Receives, works and acks in one transaction; what fails comes again.
sub receive
{
	return $node->psql('postgres', <<~'SQL', on_error_stop => 1);
		WITH d AS MATERIALIZED (SELECT * FROM evbus.receive('reader', 1000, wait => '2 seconds')),
			 w AS (INSERT INTO received SELECT event_id, type FROM d)
		SELECT evbus.ack(array_agg(receipt)) FROM d HAVING count(*) > 0
		SQL
}

my %scenario = (
	publish => sub { publish(n => 3) },
	publish_prepared => \&publish_prepared,
	overflow => \&overflow,
	receive => sub { publish(); receive() },
	turn => sub { publish(); fill_ledger($node) },
	# The leaf furthest ahead is missing: the maintainer makes it again.
	leaf => sub {
		$node->safe_psql('postgres', <<~'SQL');
			DO $$
			BEGIN
				EXECUTE (SELECT 'DROP TABLE ' || max(relid::regclass::text) FROM pg_partition_tree('evbus.event_c1') WHERE isleaf);
			END $$
			SQL
		publish();
	},
	# A leaf that is past its retention.
	retention => sub {
		$node->safe_psql('postgres', <<~'SQL');
			CREATE TABLE IF NOT EXISTS evbus.event_c1_old (LIKE evbus.event_c1 INCLUDING DEFAULTS);
			DO $$
			BEGIN
				EXECUTE format('ALTER TABLE evbus.event_c1 ATTACH PARTITION evbus.event_c1_old FOR VALUES FROM (%s) TO (%s)',
					evbus._time_event('2020-01-01'), evbus._time_event('2020-01-02'));
			END $$
			SQL
		publish();
	},
	# The leaf of a bus with a limit of its size is full.
	cut => sub {
		$node->safe_psql('postgres', q(SELECT count(evbus.publish('capped', 'x', to_jsonb(md5(i::text)))) FROM generate_series(1, 2000) i));
		publish();
	});

sub becomes_true
{
	my ($question) = @_;
	return $node->safe_psql('postgres', "SELECT becomes_true(\$\$$question\$\$)") eq 't';
}

# Everything came to rest, and as it should.
sub settled
{
	my ($when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	foreach my $type (keys %unknown)
	{
		$expected{$type} = $unknown{$type} if $node->safe_psql('postgres', "SELECT count(*) FROM published WHERE type = '$type'");
	}
	%unknown = ();
	my ($ok, $marker) = (1);
	# Two: the first may have been placed by a recovery, which claims no more than was known before.
	foreach (1 .. 2)
	{
		$marker = publish();
		$ok &&= becomes_true("SELECT count(*) = 1 FROM effect WHERE type = '$marker'");
	}
	my $total = 0;
	$total += $_ foreach values %expected;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
	receive() while $node->safe_psql('postgres', 'SELECT count(*) FROM received') < $total && time < $deadline;
	$ok &&= becomes_true('SELECT (SELECT sum(lag + in_flight + retries) FROM evbus.subscription_lag) = 0 AND (SELECT leases_used FROM evbus._status()) = 0');
	ok($ok, "all is delivered and nothing is left in hand: $when");
	my $wanted = join ' ', map { "$_:$expected{$_}" } sort keys %expected;
	my $got = $node->safe_psql('postgres', join ' UNION ALL ', map { qq((SELECT string_agg(type || ':' || n, ' ' ORDER BY type COLLATE "C") FROM (SELECT type, count(*) AS n FROM $_ GROUP BY type) AS e)) } 'effect', 'received');
	is($got, "$wanted\n$wanted", "what committed, and nothing else, took effect once: $when");
	is($node->safe_psql('postgres', q(SELECT count(*) - count(DISTINCT event_id) || ' ' || count(*) - count(DISTINCT position) || ' ' || max(position) - min(position) + 1 - count(*) FROM effect)),
		'0 0 0', "positions are dense: $when");
	# A slot that was left open would hold back where recovery starts.
	is($node->safe_psql('postgres', "SELECT max(low_id) > (SELECT max(event_id) FROM evbus.history WHERE type <> '$marker') FROM evbus.tick"), 't', "no publisher's slot is left open: $when");
	return;
}

# [point, scenario that passes it, passes to let through first]
my @publisher = ([ 'publish.open', 'publish' ], [ 'publish.precommit', 'publish' ], [ 'publish.flushed', 'publish' ], [ 'publish.committing', 'publish' ], [ 'publish.committing', 'publish_prepared' ]);
my @callbacks = ([ 'publish.committed', 'publish' ], [ 'publish.pushed', 'publish' ], [ 'sequencer.committed', 'publish' ], [ 'ack.committed', 'receive' ]);
my @sequencer = ((map { [ "sequencer.$_", 'publish' ] } 'clock', 'slots', 'tail', 'drained', 'ticks'), [ 'sequencer.late', 'publish_prepared' ], [ 'sequencer.recovering', 'overflow' ]);
my @consumer = ([ 'receive.claimed', 'receive' ], [ 'ack.appended', 'receive' ], [ 'ack.appended', 'publish' ], [ 'handler.called', 'publish' ], [ 'handler.turn', 'publish' ]);
my @maintainer = ((map { [ "ledger.$_", 'turn' ] } 'truncating', 'truncated', 'switched', 'checkpointing', 'checkpointed'), [ 'leaf.attached', 'leaf' ], [ 'leaf.dropped', 'retention' ], [ 'leaf.cut', 'cut' ]);

# No point is forgotten: the library knows their names.  The indexer's is passed in 026_history, that of order in 033_ordering.
my $library = PostgreSQL::Test::Utils::slurp_file($node->config_data('--pkglibdir') . '/evbus.so');
my %names = map { $_ => 1 } $library =~ /\0((?:publish|receive|ack|ledger|leaf|sequencer|handler)\.[a-z]{2,})(?=\0)/g;
delete $names{$_} foreach 'leaf.indexed', 'receive.blocked', map { $_->[0] } @publisher, @callbacks, @sequencer, @consumer, @maintainer;
is_deeply([ sort keys %names ], [], 'every debug point of the library is passed in this test');

settled('before any fault');

# Errors: only who is there fails, and the server stays up.
my $log = -s $node->logfile;
foreach (@publisher, @sequencer, @consumer, @maintainer)
{
	my ($point, $scenario) = @$_;
	# Sixteen places are there for points; those of before go with the server.
	if (++$serial % 11 == 0) { $node->restart; $node->poll_query_until('postgres', 'SELECT ready FROM evbus._status()') }
	my $mark = -s $node->logfile;
	point($node, $point, 'error');
	$scenario{$scenario}->();
	$node->wait_for_log(qr/evbus point "\Q$point\E"/, $mark) if $point !~ /^(handler|ack)/;
	settled("error at $point ($scenario)");
}
unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile, $log), qr/terminated by signal|PANIC/, 'no process died from an error');

# Ended by SIGTERM where nothing may fail: it takes effect afterwards.
$node->restart;
$node->poll_query_until('postgres', 'SELECT ready FROM evbus._status()');
foreach (@callbacks)
{
	my ($point, $scenario) = @$_;
	point($node, $point, 'end');
	$scenario{$scenario}->();
	settled("end at $point ($scenario)");
}

# Killed: the whole server restarts.
foreach (@publisher, @callbacks, @sequencer, @consumer, @maintainer)
{
	my ($point, $scenario) = @$_;
	my $mark = -s $node->logfile;
	point($node, $point, 'kill');
	eval { $scenario{$scenario}->() };
	ok(crashed($node, $mark), "kill at $point ($scenario): the server restarts itself");
	settled("kill at $point ($scenario)");
}

$node->stop;
done_testing();
