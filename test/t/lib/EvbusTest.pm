# What several TAP tests of evbus need.
package EvbusTest;

use strict;
use warnings;

use Exporter 'import';
use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(new_node start_moved move_clock pass_time worker_pids other_worker answers receive_all fill_ledger
	points point reached crashed shop complete build_module test_module figure);

# A measurement: a note, and a line of the file that make soak prints at its end.
sub figure
{
	my ($line) = @_;

	Test::More::note($line);
	append_to_file($ENV{EVBUS_FIGURES}, "$line\n") if $ENV{EVBUS_FIGURES};
	return;
}

# A started server with evbus preloaded; conf is added to postgresql.conf.
# Unless database is undef, the extension is made in it ("postgres" by default).
# clock: its wall clock can be moved; it is started again with start_moved().
sub new_node
{
	my ($name, %option) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	my $database = exists $option{database} ? $option{database} : 'postgres';

	$node->init;
	$node->append_conf('postgresql.conf', <<~"CONF");
		shared_preload_libraries = 'evbus'
		max_worker_processes = 24
		log_min_messages = info
		CONF
	$node->append_conf('postgresql.conf', $option{conf}) if $option{conf};
	$option{clock} ? start_moved($node) : $node->start;
	$node->safe_psql($database, 'CREATE EXTENSION evbus') if defined $database;
	return $node;
}

# test/module/clock.c, preloaded into the server, adds what it reads from a file to the clocks.
my $clock_file;

sub start_moved
{
	my ($node) = @_;
	if (!defined $clock_file)
	{
		$clock_file = PostgreSQL::Test::Utils::tempdir() . '/offset';
		system_or_bail('gcc', '-shared', '-fPIC', '-O1', '-o', "$clock_file.so", "$FindBin::RealBin/../module/clock.c");
		append_to_file($clock_file, pack 'qq', 0, 0);
	}
	local %ENV = (%ENV, LD_PRELOAD => "$clock_file.so", EVBUS_TEST_CLOCK => $clock_file);
	return $node->start;
}

# It is so many seconds ahead from now on.
sub move_clock
{
	my ($seconds) = @_;
	open my $file, '+<', $clock_file or die $!;
	syswrite($file, pack 'q', $seconds) == 8 or die $!;
	close $file;
	return;
}

# So many seconds pass, by both clocks.
sub pass_time
{
	my ($seconds) = @_;
	open my $file, '+<', $clock_file or die $!;
	sysread($file, my $now, 16) == 16 or die $!;
	my @offsets = map { $_ + $seconds } unpack 'qq', $now;
	sysseek($file, 0, 0) or die $!;
	syswrite($file, pack 'qq', @offsets) == 16 or die $!;
	close $file;
	return;
}

# The pids of the workers of that type, as pg_stat_activity shows them, in one string.
sub worker_pids
{
	my ($node, $type) = @_;
	return $node->safe_psql('postgres', "SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_stat_activity WHERE backend_type = '$type'");
}

# True once a worker of that type runs whose pid is not among the old ones.
sub other_worker
{
	my ($node, $type, $old) = @_;
	$old =~ s/ /,/g;
	return $node->poll_query_until('postgres',
		"SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = '$type'" . ($old ne '' ? " AND pid NOT IN ($old)" : ''));
}

# An assertion about something that workers bring about.
sub answers
{
	my ($node, $database, $query, $expected, $description) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok($node->poll_query_until($database, $query, $expected), $description);
}

# Receives and acks n deliveries; returns them in the order received: a list of "position type payload".
sub receive_all
{
	my ($node, $database, $subscription, $n) = @_;
	my @all;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
	while (@all < $n && time < $deadline)
	{
		my $left = $n - @all > 1000 ? 1000 : $n - @all;
		my $got = $node->safe_psql($database, <<~"SQL");
			WITH d AS MATERIALIZED (SELECT * FROM evbus.receive('$subscription', $left, wait => '2 seconds')),
				 a AS MATERIALIZED (SELECT evbus.ack(array_agg(receipt)) FROM d HAVING count(*) > 0)
			SELECT position || ' ' || type || ' ' || payload FROM d CROSS JOIN a ORDER BY position
			SQL
		push @all, split /\n/, $got;
	}
	return @all;
}

# Makes a turn of the ledger due where evbus.ledger_turn_size is small: rows of no subscription.
sub fill_ledger
{
	my ($node) = @_;
	return $node->safe_psql('postgres', <<~'SQL');
		DO $$
		DECLARE t bigint := ledger_turn FROM evbus._status();
		BEGIN
			EXECUTE format('INSERT INTO evbus.ack_%s SELECT -1, 0, $1, NULL, ''\x'' FROM generate_series(1, 2500)', t % 3) USING t;
		END $$
		SQL
}

# ------------------------------------------------------------ debug points

# Lets a test of this database use the points of src/point.h; false: the library has none.
sub points
{
	my ($node, $database) = @_;
	my ($ret) = $node->psql($database // 'postgres', <<~'SQL', on_error_stop => 1);
		CREATE FUNCTION point_set(name text, action text, skip int) RETURNS void AS 'evbus', 'evbus_point_set' LANGUAGE C STRICT;
		CREATE FUNCTION point_waiting(name text) RETURNS int AS 'evbus', 'evbus_point_waiting' LANGUAGE C STRICT;
		SQL
	return $ret == 0;
}

# What shall happen at a point: off, wait, error, kill, end; skip passes are let through first.
sub point
{
	my ($node, $name, $action, $skip) = @_;
	return $node->safe_psql('postgres', sprintf("SELECT point_set('%s', '%s', %d)", $name, $action, $skip // 0));
}

# True once a process waits there.
sub reached
{
	my ($node, $name) = @_;
	return $node->poll_query_until('postgres', "SELECT point_waiting('$name') > 0");
}

# True once the server has crashed since its log was that long, and accepts connections again.
sub crashed
{
	my ($node, $log) = @_;
	$node->wait_for_log(qr/all server processes terminated; reinitializing/, $log);
	return $node->poll_query_until('postgres', 'SELECT true');
}

# Builds a library of test/module; returns where it is.
sub build_module
{
	my ($name) = @_;
	my $pg_config = $ENV{PG_CONFIG} // 'pg_config';
	my ($include, $stderr) = run_command([ $pg_config, '--includedir-server' ]);
	my $library = PostgreSQL::Test::Utils::tempdir() . "/$name.so";
	system_or_bail('gcc', '-shared', '-fPIC', '-O1', '-I', $include, '-I', "$FindBin::RealBin/../../src", '-o', $library, "$FindBin::RealBin/../module/$name.c");
	return $library;
}

# Builds test/module/evbus_test.c and declares its functions.
sub test_module
{
	my ($node) = @_;
	my $library = build_module('evbus_test');
	return $node->safe_psql('postgres', join '', map { "CREATE FUNCTION $_ RETURNS void AS '$library' LANGUAGE C;" }
		'test_crash()', 'test_spin(ms int)', 'test_hog(mb int)');
}

# ------------------------------------------------- every event once, in order

# A bus, a handler that notes what it is given, and a subscription for clients.
sub shop
{
	my ($node) = @_;
	return $node->safe_psql('postgres', <<~'SQL');
		SELECT evbus.create_bus('orders');
		CREATE TABLE effect (event_id bigint, position bigint, type text, n bigint GENERATED ALWAYS AS IDENTITY);
		CREATE FUNCTION handle(events evbus.event[]) RETURNS void LANGUAGE plpgsql AS $$
		BEGIN
			INSERT INTO effect (event_id, position, type) SELECT event_id, position, type FROM unnest(events);
		END $$;
		SELECT evbus.subscribe('orders', 'handled', handler => 'handle(evbus.event[])');
		SELECT evbus.subscribe('orders', 'reader');
		SQL
}

# Every committed event reached the handler of shop() once; positions have no gap and no repetition.
sub complete
{
	my ($node, $when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $stored = $node->safe_psql('postgres', 'SELECT count(*) FROM evbus.history');
	answers($node, 'postgres', 'SELECT count(*) FROM effect', $stored, "every event reached the handler: $when");
	return is($node->safe_psql('postgres', <<~'SQL'), "0 0 0 $stored", "no event and no position twice, no gap, no ghost: $when");
		SELECT concat_ws(' ', count(DISTINCT event_id) - count(*), count(DISTINCT position) - count(*), coalesce(max(position) - min(position) + 1, 0) - count(*),
			(SELECT count(*) FROM effect JOIN evbus.history USING (event_id))) FROM effect
		SQL
}

1;
