# What is bounded says so and recovers: leases that run out, a ledger that turns, subscriptions and buses at their limit.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('limits', conf => "evbus.max_leases = 128\nevbus.max_buses = 2\nevbus.max_subscriptions = 3\nevbus.ledger_turn_size = '64kB'\nevbus.upkeep_interval = '100ms'\nevbus.worker_idle_timeout = '100ms'\n");
$node->safe_psql('postgres', <<'SQL');
SELECT evbus.create_bus('orders');
CREATE TABLE effect (n integer);
CREATE FUNCTION handle(e evbus.event) RETURNS void LANGUAGE plpgsql AS 'BEGIN INSERT INTO effect VALUES (e.payload::integer); END';
SELECT evbus.subscribe('orders', 'reader');
SELECT evbus.subscribe('orders', 'handled', types => '{handled}', handler => 'handle(evbus.event)');
SQL

# More events than leases.
$node->safe_psql('postgres', q(SELECT count(*) FROM evbus.publish_batch('orders', array_fill('many'::text, ARRAY[100]), (SELECT array_agg(to_jsonb(i)) FROM generate_series(1, 100) AS i))));
$node->safe_psql('postgres', q(CALL evbus.wait('reader', '10 seconds')));
$node->safe_psql('postgres', q(CREATE TABLE held AS SELECT * FROM evbus.receive('reader', 1000, lease => '1 hour')));
my $held = $node->safe_psql('postgres', 'SELECT count(*) FROM held');
cmp_ok($held, '>', 30, 'a receive of more events than there are leases gets some');
cmp_ok($held, '<=', 64, 'and not more than half of the leases, so that others are not shut out');
my ($ret, $stdout, $stderr) = $node->psql('postgres', "\\set VERBOSITY verbose\nSELECT type FROM evbus.receive('reader', 1000, lease => '1 hour') OFFSET 0");
($ret, $stdout, $stderr) = $node->psql('postgres', "\\set VERBOSITY verbose\nSELECT type FROM evbus.receive('reader', 1000, lease => '1 hour') OFFSET 0") if $stderr eq '';
like($stderr, qr/ERROR:  VB012:/, 'when its share of the leases is taken receive says so');
like($stderr, qr/HINT: .*evbus\.max_leases/, 'and names the setting');
# Who acks what takes up the leases gets them with the next call, not an error that would undo the ack.
is($node->safe_psql('postgres', "DELETE FROM held WHERE receipt = (SELECT receipt FROM held ORDER BY position LIMIT 1) RETURNING (SELECT count(*) FROM evbus.receive('reader', ack => ARRAY[receipt]))"), '0', 'an ack in the call that finds no lease');
$held--;
is($node->safe_psql('postgres', q(SELECT in_flight FROM evbus.subscription_lag WHERE subscription = 'reader')), $held, 'is done all the same');
is($node->safe_psql('postgres', "WITH next AS (SELECT * FROM evbus.receive('reader', lease => '1 hour')) INSERT INTO held SELECT * FROM next RETURNING 1"), '1', 'and makes room for the next one');
my $received = $held + 2;
$held++;
is($node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'handled', '1') > 0)), 't', 'publishing goes on');
answers($node, 'postgres', 'SELECT count(*) FROM effect', '1', 'and so does the handler of another subscription');
is($node->safe_psql('postgres', q(SELECT leases_used <= leases FROM evbus._status())), 't', 'the status counts them');
is($node->safe_psql('postgres', 'SELECT evbus.ack(array_agg(receipt)) FROM held'), $held, 'what is held can be acked');
$node->safe_psql('postgres', q(SELECT evbus.seek('reader', (SELECT max(position) + 1 FROM held)::text)));
my @rest = receive_all($node, 'postgres', 'reader', 101 - $received);
is(scalar(@rest), 101 - $received, 'then the rest is received');
is($node->safe_psql('postgres', q(SELECT evbus.seek('reader', 'now') > 0)), 't', 'seek forgets what was leased');
answers($node, 'postgres', q(SELECT leases_used FROM evbus._status()), '0', 'no lease is lost');

# The ledger turns, with acks on both sides and gaps between them.
my $turn = $node->safe_psql('postgres', 'SELECT ledger_turn FROM evbus._status()');
$node->safe_psql('postgres', q(SELECT count(*) FROM evbus.publish_batch('orders', array_fill('turn'::text, ARRAY[4000]), (SELECT array_agg(to_jsonb(i)) FROM generate_series(1, 4000) AS i))));
$node->safe_psql('postgres', q(CALL evbus.wait('reader', '10 seconds')));
# Every hundredth is left open until the end, in ten rounds.
$node->safe_psql('postgres', 'CREATE TABLE open_event (receipt text, n integer)');
foreach my $round (1 .. 10)
{
	$node->safe_psql('postgres', <<'SQL');
DO $$
DECLARE
	d evbus.delivery;
	total integer := 0;
	deadline timestamptz := clock_timestamp() + interval '20 seconds';
BEGIN
	WHILE total < 400 AND clock_timestamp() < deadline LOOP
		FOR d IN SELECT * FROM evbus.receive('reader', least(20, 400 - total), lease => '1 hour', wait => '1 second') LOOP
			total := total + 1;
			IF d.payload::integer % 100 = 0 THEN
				INSERT INTO open_event VALUES (d.receipt, d.payload::integer);
			ELSE
				PERFORM evbus.ack(ARRAY[d.receipt]);
			END IF;
			COMMIT;
		END LOOP;
	END LOOP;
END $$;
SQL
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM open_event'), '40', 'forty deliveries stay open, the others are acked one by one');
ok($node->poll_query_until('postgres', "SELECT ledger_turn > $turn FROM evbus._status()"), 'the ledger turned meanwhile');
ok($node->safe_psql('postgres', q(SELECT sum(pg_relation_size(c)) FROM unnest('{evbus.ack_0,evbus.ack_1,evbus.ack_2}'::regclass[]) AS c)) < 1024 * 1024, 'and stays small');
is($node->safe_psql('postgres', q(SELECT lag || ' ' || in_flight FROM evbus.subscription_lag WHERE subscription = 'reader')), '40 40', 'what is open is what is behind');
$node->stop('immediate');
$node->start;
@rest = map { (split / /)[2] } receive_all($node, 'postgres', 'reader', 40);
is_deeply(\@rest, [ map { $_ * 100 } 1 .. 40 ], 'after an immediate stop exactly the open ones come again, in order');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.receive('reader', wait => '100 ms'))), '0', 'and nothing else');

$node->restart;
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.receive('reader', wait => '1 s'))), '0', 'nor after a restart');

# The registries.
$node->safe_psql('postgres', q(SELECT evbus.create_bus('second')));
($ret, $stdout, $stderr) = $node->psql('postgres', "\\set VERBOSITY verbose\nSELECT evbus.create_bus('third')");
like($stderr, qr/ERROR:  VB003:.*HINT: .*evbus\.max_buses/s, 'one bus too many: the message names the setting');
$node->safe_psql('postgres', q(SELECT evbus.subscribe('second', 'third')));
($ret, $stdout, $stderr) = $node->psql('postgres', "\\set VERBOSITY verbose\nSELECT evbus.subscribe('second', 'fourth')");
like($stderr, qr/ERROR:  VB007:.*HINT: .*evbus\.max_subscriptions/s, 'one subscription too many: the message names the setting');

# More of everything after a restart with larger settings; less of it is refused at start or harmless.
$node->append_conf('postgresql.conf', "evbus.max_buses = 3\nevbus.max_subscriptions = 4\nevbus.max_leases = 256\n");
$node->restart;
is(($node->psql('postgres', q(SELECT evbus.create_bus('third'), evbus.subscribe('second', 'fourth'))))[0], 0, 'with raised settings they fit');
$node->safe_psql('postgres', q(SELECT evbus.publish('third', 'a', '1'), evbus.publish('second', 'a', '1')));
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.receive('fourth', wait => '10 s'))), '1', 'and work');
$node->append_conf('postgresql.conf', "evbus.max_buses = 1\nevbus.max_subscriptions = 1\n");
$node->restart;
is($node->safe_psql('postgres', 'SELECT count(*) FROM evbus.bus_list'), '3', 'with settings lower than what there is the server starts and shows everything');
is($node->safe_psql('postgres', q(SELECT type FROM evbus.history WHERE bus = 'third')), 'a', 'also its events');
$node->psql('postgres', q(SELECT evbus.publish('third', 'b', '2')));
$node->psql('postgres', q(SELECT * FROM evbus.receive('fourth')));
is($node->safe_psql('postgres', 'SELECT 1'), '1', 'and using what does not fit does not bring it down');
$node->append_conf('postgresql.conf', "evbus.max_buses = 3\nevbus.max_subscriptions = 4\n");
$node->restart;
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.receive('third', wait => '10 s'))), '1', 'with the old settings back it delivers again');

$node->stop;
done_testing();
