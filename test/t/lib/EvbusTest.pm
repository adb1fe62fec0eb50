# What several TAP tests of evbus need.
package EvbusTest;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(new_node worker_pids other_worker answers receive_all);

# A started server with evbus preloaded; conf is added to postgresql.conf.
# Unless database is undef, the extension is made in it ("postgres" by default).
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
	$node->start;
	$node->safe_psql($database, 'CREATE EXTENSION evbus') if defined $database;
	return $node;
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

1;
