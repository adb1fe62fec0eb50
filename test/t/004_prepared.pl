# Two-phase commit: events wait for COMMIT PREPARED, whoever says it and whatever happens before; acks cannot be prepared.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('prepared', conf => "max_prepared_transactions = 10\n");
$node->safe_psql('postgres', <<'SQL');
SELECT evbus.create_bus('orders');
CREATE TABLE effect (type text);
CREATE FUNCTION handle(e evbus.event) RETURNS void LANGUAGE plpgsql AS 'BEGIN INSERT INTO effect VALUES (e.type); END';
SELECT evbus.subscribe('orders', 'handled', handler => 'handle(evbus.event)');
SELECT evbus.subscribe('orders', 'reader');
SQL
my $effects = q(SELECT string_agg(type, ' ' ORDER BY type) FROM effect);

# Publishes type in a transaction that is then prepared.
sub prepare
{
	my ($type) = @_;
	return $node->safe_psql('postgres', "BEGIN; SELECT evbus.publish('orders', '$type', '1'); PREPARE TRANSACTION '$type'");
}

# A marker published later shows that what is missing was passed over, not merely slow.
sub receive_types
{
	my ($n) = @_;
	return join ' ', map { (split / /)[1] } receive_all($node, 'postgres', 'reader', $n);
}

prepare('p.1');
$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'marker.1', '1')));
is(receive_types(1), 'marker.1', 'a prepared event is not delivered');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.history WHERE type = 'p.1')), '0', 'nor does it show in the history');
$node->safe_psql('postgres', q(COMMIT PREPARED 'p.1'));
is(receive_types(1), 'p.1', 'COMMIT PREPARED from another session delivers it');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.history WHERE type = 'p.1')), '1', 'and it shows in the history');

prepare('p.2');
$node->safe_psql('postgres', q(ROLLBACK PREPARED 'p.2'));
$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'marker.2', '1')));
is(receive_types(1), 'marker.2', 'after ROLLBACK PREPARED it is never delivered');

# Order: what is published after COMMIT PREPARED returned comes after it.
prepare('p.3');
$node->safe_psql('postgres', q(COMMIT PREPARED 'p.3'));
$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'marker.3', '1')));
is(receive_types(2), 'p.3 marker.3', 'what is published after COMMIT PREPARED returned has a higher position');

# Savepoints in a prepared transaction.
$node->safe_psql('postgres', <<'SQL');
BEGIN;
SELECT evbus.publish('orders', 'p.4.kept', '1');
SAVEPOINT s;
SELECT evbus.publish('orders', 'p.4.undone', '1');
ROLLBACK TO s;
PREPARE TRANSACTION 'p.4';
COMMIT PREPARED 'p.4';
SELECT evbus.publish('orders', 'marker.4', '1');
SQL
is(receive_types(2), 'p.4.kept marker.4', 'a savepoint rolled back before PREPARE leaves nothing');

# Over an immediate stop: one to commit, one to roll back.
prepare('p.5');
prepare('p.6');
$node->stop('immediate');
$node->start;
$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'marker.5', '1')));
is(receive_types(1), 'marker.5', 'over an immediate stop a prepared event still waits');
$node->safe_psql('postgres', q(COMMIT PREPARED 'p.5'));
is(receive_types(1), 'p.5', 'and is delivered when it is committed then');
$node->safe_psql('postgres', q(ROLLBACK PREPARED 'p.6'));

# Committed, and stopped at once: the wake-up is lost, the event is not.
prepare('p.7');
$node->safe_psql('postgres', q(COMMIT PREPARED 'p.7'));
$node->stop('immediate');
$node->start;
is(receive_types(1), 'p.7', 'committed just before an immediate stop it is delivered after it');

# Many in one prepared transaction.
$node->safe_psql('postgres', q(BEGIN; SELECT count(evbus.publish('orders', 'p.8', to_jsonb(i))) FROM generate_series(1, 5000) AS i; PREPARE TRANSACTION 'p.8'; COMMIT PREPARED 'p.8'));
my @many = receive_all($node, 'postgres', 'reader', 5000);
is_deeply([ map { (split / /)[2] } @many ], [ 1 .. 5000 ], 'five thousand events of one prepared transaction are delivered in their order');

# What handlers saw is the same.
$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'z.last', '1')));
answers($node, 'postgres', q(SELECT count(*) > 0 FROM effect WHERE type = 'z.last'), 't', 'the handler is done');
is($node->safe_psql('postgres', q(SELECT string_agg(type, ' ' ORDER BY type) FROM effect WHERE type <> 'p.8')),
	'marker.1 marker.2 marker.3 marker.4 marker.5 p.1 p.3 p.4.kept p.5 p.7 z.last', 'the handler was given the same, each once');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.late)), '0', 'no row in evbus.late is left of transactions that ended');

# What touches leases cannot be prepared.
$node->safe_psql('postgres', q(SELECT evbus.seek('reader', 'now')));
foreach my $verb ('ack(ARRAY[%s])', 'nack(ARRAY[%s])', 'reject(ARRAY[%s])')
{
	$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'held', '1')));
	my $receipt = $node->safe_psql('postgres', q(SELECT receipt FROM evbus.receive('reader', lease => '1 hour', wait => '10 seconds')));
	my ($ret, $stdout, $stderr) = $node->psql('postgres', 'BEGIN; SELECT evbus.' . sprintf($verb, "'$receipt'") . "; PREPARE TRANSACTION 'refused'");
	like($stderr, qr/ERROR/, "$verb cannot be prepared");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'), '0', 'and no prepared transaction is left');
	is($node->safe_psql('postgres', "SELECT evbus.ack(ARRAY['$receipt'])"), '1', 'the delivery is still held and can be acked');
}
$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'held', '1')));
my ($ret, $stdout, $stderr) = $node->psql('postgres', q(BEGIN; SELECT type FROM evbus.receive('reader', wait => '10 seconds'); PREPARE TRANSACTION 'refused'));
like($stderr, qr/ERROR/, 'receive cannot be prepared');
is(receive_types(1), 'held', 'and what it had leased comes back');

# A redrive in a prepared transaction is delivered once that is committed, as is what was published beside it.
$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'dead', '1')));
$node->safe_psql('postgres', q(SELECT evbus.reject(ARRAY(SELECT receipt FROM evbus.receive('reader', wait => '10 seconds')))));
($ret, $stdout, $stderr) = $node->psql('postgres', q(BEGIN; SELECT evbus.redrive(subscription => 'reader'); PREPARE TRANSACTION 'redrive'));
if ($stderr !~ /ERROR/)
{
	$node->safe_psql('postgres', q(COMMIT PREPARED 'redrive'));
	is(receive_types(1), 'dead', 'a redrive in a prepared transaction is delivered once that is committed');
}
else
{
	is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.dead_letter)), '1', 'a redrive cannot be prepared');
}

# A prepared DDL of the registry is either refused or harmless.
($ret, $stdout, $stderr) = $node->psql('postgres', q(BEGIN; SELECT evbus.create_bus('later'); PREPARE TRANSACTION 'ddl'));
if ($ret == 0 && $stderr !~ /ERROR/)
{
	$node->safe_psql('postgres', q(COMMIT PREPARED 'ddl'));
	is($node->safe_psql('postgres', q(SELECT evbus.publish('later', 'a', '1') > 0)), 't', 'a bus made in a prepared transaction works once it is committed');
}
else
{
	is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.bus_list WHERE bus = 'later')), '0', 'a bus cannot be made in a prepared transaction');
}

$node->stop;
done_testing();
