# Other extensions may run SQL when a transaction is about to commit, after evbus has written what it published so far.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use Test::More;

my $library = build_module('precommit');
my $node = new_node('precommit', conf => "shared_preload_libraries = '$library,evbus'\n");
$node->safe_psql('postgres', q(SELECT evbus.create_bus('b'); SELECT evbus.create_bus('c')));
$node->safe_psql('postgres', q(SELECT evbus.subscribe('b', 'b', notify => false); SELECT evbus.subscribe('c', 'c', notify => false)));

sub commit
{
	my ($late, $early) = @_;
	$node->safe_psql('postgres', "BEGIN; $early; SET LOCAL precommit.sql = \$\$$late\$\$; COMMIT");
}

my $expected = 0;
foreach my $case (
	[ q(SELECT evbus.publish('b', 'single', '1')), 'SELECT 1', 1 ],
	[ q(SELECT * FROM evbus.publish_lines('b', 'lines', E'1\n2\n3')), 'SELECT 1', 3 ],
	[ q(SELECT * FROM evbus.publish_batch('b', '{batch}', array_fill('1'::jsonb, ARRAY[5]))), 'SELECT 1', 5 ],
	[ q(SELECT * FROM evbus.publish_batch('b', '{batch}', array_fill('1'::jsonb, ARRAY[5]))), q(SELECT evbus.publish('b', 'early', '1')), 6 ],
	[ q(SELECT evbus.publish('b', 'x', '1'), evbus.publish('c', 'x', '1'), evbus.publish('b', 'x', '1')), q(SELECT * FROM evbus.publish_lines('b', 'early', E'1\n2')), 4 ])
{
	my ($late, $early, $n) = @$case;
	commit($late, $early);
	$expected += $n;
	is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.history WHERE bus = 'b')), $expected, "in the log: $late");
	my @got = receive_all($node, 'postgres', 'b', $n);
	is(scalar(@got), $n, 'and each is delivered');
	answers($node, 'postgres', q(SELECT lag FROM evbus.subscription_lag WHERE subscription = 'b'), 0, 'once');
}
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.receive('c', 10))), 1, 'another bus as well');

$node->stop;
done_testing();
