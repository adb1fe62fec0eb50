# A call of receive() that began before a replay was cancelled must not load it again: its place may be another subscription's
# by now, whose leases would be gone.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('replay_slot', conf => <<'CONF');
evbus.max_subscriptions = 2
evbus.upkeep_interval = '200ms'
CONF

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

plan skip_all => 'the library has no debug points' if !points($node);

sql(<<'SQL');
SELECT evbus.create_bus('orders');
SELECT evbus.subscribe('orders', 'old');
CREATE TABLE held (receipt text);
SELECT evbus.publish('orders', 'first', to_jsonb(i)) FROM generate_series(1, 3) i;
SQL
is(sql(q(SELECT evbus.ack(array_agg(receipt)) FROM evbus.receive('old', 3, wait => '10 seconds'))), '3', 'three events are delivered');
my $replay = sql(q(SELECT evbus.replay('old', 'beginning')));
sql(q(SELECT evbus.publish('orders', 'new', '1')));

my $client = $node->background_psql('postgres');
point($node, 'receive.claimed', 'wait');
$client->query_until(qr/asked/, "\\echo asked\nSELECT position, replayed FROM evbus.receive('old', 10, wait => '10 seconds');\n");
ok(reached($node, 'receive.claimed'), 'a client has the new event, and will look at the replay next');
is(sql(qq(SELECT evbus.cancel_replay($replay))), 't', 'which is cancelled');
sql(q(SELECT evbus.subscribe('orders', 'young', start_from => 'beginning')));
point($node, 'receive.claimed', 'wait', 1);
sql(q(INSERT INTO held SELECT receipt FROM evbus.receive('young', 10, wait => '10 seconds')));
my $held = sql(q(SELECT count(*) FROM held));
cmp_ok($held, '>', 0, 'another subscription has its place, and deliveries in hand');
point($node, 'receive.claimed', 'off');
like($client->query_safe('SELECT 1'), qr/^4\|f\n1$/m, 'the client gets the new event alone');
is(sql(q(SELECT evbus.ack(ARRAY(SELECT receipt FROM held)))), $held, 'and the receipts of the other are good');
$client->quit;
$node->stop;
done_testing();
