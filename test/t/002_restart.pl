# Undelivered events survive a fast and an immediate stop; positions keep their order; receipts do not survive.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('restart');

$node->safe_psql('postgres', <<'SQL');
SELECT evbus.create_bus('orders');
SELECT evbus.create_bus('quiet');
CREATE TABLE effect (n integer, position bigint);
CREATE FUNCTION handle(events evbus.event[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO effect SELECT payload::integer, position FROM unnest(events);
END $$;
SELECT evbus.subscribe('orders', 'handled', handler => 'handle(evbus.event[])');
SELECT evbus.subscribe('orders', 'received');
SELECT evbus.subscribe('orders', 'failing', types => '{order.one}');
SELECT evbus.subscribe('quiet', 'quiet reader');
SELECT evbus.publish('quiet', 'silence', '1');
SQL
my ($quiet) = receive_all($node, 'postgres', 'quiet reader', 1);

my $published = 0;
my @positions;

foreach my $mode ('fast', 'immediate', 'immediate')
{
	my $crash = $mode eq 'immediate' ? 'an immediate stop' : 'a fast stop';

	# A backlog for the handler, deliveries acked, held and waiting for the client, a retry and a dead letter.
	$node->safe_psql('postgres', q(SELECT evbus.pause('handled')));
	$node->safe_psql('postgres', 'DO $$BEGIN FOR i IN ' . ($published + 1) . ' .. ' . ($published + 100) . q( LOOP PERFORM evbus.publish('orders', 'order.created', to_jsonb(i)); COMMIT; END LOOP; END$$));
	$published += 100;
	my @acked = receive_all($node, 'postgres', 'received', 30);
	is(scalar(@acked), 30, 'thirty deliveries are acked');
	push @positions, @acked;
	my $held = $node->safe_psql('postgres', q(SELECT string_agg(receipt, ',') FROM evbus.receive('received', 20, lease => '1 hour', wait => '10 seconds')));
	$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'order.one', '0')));
	$node->safe_psql('postgres', q(SELECT evbus.nack(ARRAY(SELECT receipt FROM evbus.receive('failing', wait => '10 seconds')), delay => '1 hour', error => 'later')));

	# A transaction in the middle of its work.
	my $open = $node->background_psql('postgres');
	$open->query_safe('BEGIN');
	$open->query_safe(q(SELECT evbus.publish('orders', 'order.ghost', '0')));

	$node->stop($mode);
	eval { $open->quit };
	$node->start;

	# The same events are in somebody's hands again when the old receipts come.
	my $again = $node->safe_psql('postgres', q(SELECT string_agg(receipt, ',') FROM evbus.receive('received', 20, lease => '1 hour', wait => '10 seconds')));
	my ($ret, $stdout, $stderr) = $node->psql('postgres', "SELECT evbus.ack(string_to_array('$held', ','))");
	is($stdout, '0', "receipts from before $crash are stale");
	like($stderr, qr/WARNING/, 'and say so');
	is($node->safe_psql('postgres', "SELECT evbus.release(string_to_array('$again', ','))"), '20', 'those of now are good');

	is($node->safe_psql('postgres', 'SELECT count(*) FROM effect WHERE n > 0'), $published - 100, "the paused subscription stayed paused over $crash");
	$node->safe_psql('postgres', q(SELECT evbus.resume('handled')));
	answers($node, 'postgres', q(SELECT count(*) || ' ' || count(DISTINCT n) FROM effect WHERE n > 0), "$published $published", "the handler is given every event once after $crash");

	# The client gets what it had not acked: seventy of this round and the event of type order.one.
	my @rest = receive_all($node, 'postgres', 'received', 71);
	is(scalar(@rest), 71, "the client receives what it had not acked before $crash");
	push @positions, @rest;
	is_deeply([ grep { / order\.ghost / } @rest ], [], 'an open transaction left no event');

	is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.retry_list WHERE subscription = 'failing' AND message = 'later')), $published / 100, 'retries are kept');
	is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.receive('failing'))), '0', 'and do not come before they are due');
}

# What the client saw over all rounds: dense positions in the order of the publishes.
my @number = map { (split / /)[0] } @positions;
is_deeply(\@number, [ $number[0] .. $number[0] + $#number ], 'positions over all restarts have no gap, no repetition and grow');
my @payload = grep { $_ > 0 } map { (split / /)[2] } @positions;
is_deeply(\@payload, [ 1 .. $published ], 'and keep the order of the publishes');

# A bus that was quiet over all the restarts goes on where it stood.
$node->safe_psql('postgres', q(SELECT evbus.publish('quiet', 'sound', '2')));
my ($sound) = receive_all($node, 'postgres', 'quiet reader', 1);
is((split / /, $sound)[0], (split / /, $quiet)[0] + 1, 'a bus without traffic keeps its positions over restarts');

# Two starts in which the same happens: the same events are leased by the same places in memory, and still the receipts differ.
$node->safe_psql('postgres', q(SELECT evbus.pause('handled')));
$node->safe_psql('postgres', q(SELECT evbus.publish_batch('orders', '{a,b,c,d,e}', '{1,2,3,4,5}')));
my @receipts;
foreach (1 .. 2)
{
	$node->stop('immediate');
	$node->start;
	$node->safe_psql('postgres', q(CALL evbus.wait('received', '10 seconds')));
	push @receipts, $node->safe_psql('postgres', q(SELECT string_agg(receipt, ',') FROM evbus.receive('received', 5, lease => '1 hour', wait => '10 seconds')));
}
isnt($receipts[0], $receipts[1], 'receipts of two starts differ');
is(($node->psql('postgres', "SELECT evbus.ack(string_to_array('$receipts[0]', ','))"))[1], '0', 'those of the first are stale');
is($node->safe_psql('postgres', "SELECT evbus.ack(string_to_array('$receipts[1]', ','))"), '5', 'those of the second are good');

# After the restart no id is used twice.
is($node->safe_psql('postgres', 'SELECT count(*) - count(DISTINCT event_id) FROM evbus.event_log'), '0', 'event ids are unique');

$node->stop;

done_testing();
