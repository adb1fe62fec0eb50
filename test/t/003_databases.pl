# Databases of one server do not see each other; databases and the extension can be dropped under running workers.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('databases', database => undef, conf => "evbus.max_databases = 2\n");
$node->safe_psql('postgres', "CREATE DATABASE $_") foreach 'one', 'two';

my $setup = <<'SQL';
CREATE EXTENSION evbus;
SELECT evbus.create_bus('orders');
SELECT evbus.subscribe('orders', 'reader');
CREATE TABLE effect (n integer);
CREATE FUNCTION handle(e evbus.event) RETURNS void LANGUAGE plpgsql AS 'BEGIN INSERT INTO effect VALUES (e.payload::integer); END';
SELECT evbus.subscribe('orders', 'handled', handler => 'handle(evbus.event)');
SQL
$node->safe_psql($_, $setup) foreach 'one', 'two';

# The same names in both.
$node->safe_psql('one', q(SELECT evbus.publish('orders', 'from.one', '1')));
$node->safe_psql('two', q(SELECT evbus.publish('orders', 'from.two', '2')));
like((receive_all($node, 'one', 'reader', 1))[0], qr/ from\.one 1$/, 'one database receives its own event');
like((receive_all($node, 'two', 'reader', 1))[0], qr/ from\.two 2$/, 'the other one its own');
answers($node, 'one', 'SELECT string_agg(n::text, \' \') FROM effect', '1', 'the handler of one is given its own event');
answers($node, 'two', 'SELECT string_agg(n::text, \' \') FROM effect', '2', 'the handler of the other one its own');
is($node->safe_psql($_, 'SELECT count(*) FROM evbus.history'), '1', "the history of $_ holds one event") foreach 'one', 'two';
is($node->safe_psql($_, q(SELECT count(*) FROM evbus.receive('reader'))), '0', "nothing more comes in $_") foreach 'one', 'two';

# A receipt of one database means nothing in the other.
$node->safe_psql($_, q(SELECT evbus.publish('orders', 'again', '3'))) foreach 'one', 'two';
my $foreign = $node->safe_psql('one', q(SELECT receipt FROM evbus.receive('reader', lease => '1 hour', wait => '10 seconds')));
my $own = $node->safe_psql('two', q(SELECT receipt FROM evbus.receive('reader', lease => '1 hour', wait => '10 seconds')));
isnt($foreign, $own, 'receipts of two databases differ');
my ($ret, $stdout, $stderr) = $node->psql('two', "SELECT evbus.ack(ARRAY['$foreign'])");
is($stdout, '0', 'a receipt of another database changes nothing');
is($node->safe_psql('two', "SELECT evbus.ack(ARRAY['$own'])"), '1', 'its own is good');

# One more database than evbus.max_databases allows.
$node->safe_psql('postgres', 'CREATE DATABASE three');
($ret, $stdout, $stderr) = $node->psql('three', "CREATE EXTENSION evbus; SELECT evbus.create_bus('orders')", on_error_stop => 1);
isnt($ret, 0, 'one database more than evbus.max_databases is refused');
like($stderr, qr/max_databases/, 'and the message names the setting');
$node->psql('three', 'DROP EXTENSION evbus');

# DROP DATABASE with workers attached.
answers($node, 'postgres', q(SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = 'one' AND backend_type LIKE 'evbus %'), 't', 'workers are attached to the database');
is(($node->psql('postgres', 'DROP DATABASE one'))[0], 0, 'a database with workers attached can be dropped');
is($node->safe_psql('postgres', q(SELECT count(*) FROM pg_stat_activity WHERE datname = 'one')), '0', 'no worker of it is left');
$node->safe_psql('two', q(SELECT evbus.publish('orders', 'afterwards', '4')));
answers($node, 'two', 'SELECT string_agg(n::text, \' \' ORDER BY n) FROM effect', '2 3 4', 'the other database goes on');

# Places of dropped databases are free again.
foreach my $round (1 .. 3)
{
	$node->safe_psql('postgres', 'CREATE DATABASE one');
	$node->safe_psql('one', $setup);
	$node->safe_psql('one', q(SELECT evbus.publish('orders', 'fresh', '5')));
	my @got = receive_all($node, 'one', 'reader', 1);
	is(scalar(@got), 1, "round $round: a database made again under the name of a dropped one works");
	$node->safe_psql('postgres', 'DROP DATABASE one');
}

# CREATE DATABASE from a template that has evbus: its workers let go of it.
is(($node->psql('postgres', 'CREATE DATABASE copy TEMPLATE two'))[0], 0, 'a database with workers attached can be a template');
is($node->safe_psql('copy', 'SELECT count(*) FROM evbus.history'), '3', 'the copy has the history');
$node->safe_psql('copy', q(SELECT evbus.publish('orders', 'in.copy', '6')));
is($node->safe_psql('copy', 'SELECT evbus.take_over()'), 't', 'which takes the place of the original');
answers($node, 'copy', 'SELECT string_agg(n::text, \' \' ORDER BY n) FROM effect', '2 3 4 6', 'the copy has workers of its own and lives on');
$node->safe_psql('two', q(SELECT evbus.publish('orders', 'in.two', '7')));
answers($node, 'two', 'SELECT string_agg(n::text, \' \' ORDER BY n) FROM effect', '2 3 4 7', 'so does the original');
is(($node->psql('postgres', 'ALTER DATABASE copy RENAME TO copied'))[0], 0, 'a database with workers attached can be renamed');
is(($node->psql('postgres', 'DROP DATABASE copied'))[0], 0, 'and dropped');

# DROP EXTENSION and CREATE EXTENSION again.
$node->safe_psql('two', q(SELECT evbus.seek('reader', 'now')));
$node->safe_psql('two', q(SELECT evbus.publish('orders', 'held', '8')));
my $old = $node->safe_psql('two', q(SELECT receipt FROM evbus.receive('reader', lease => '1 hour', wait => '10 seconds')));
$node->safe_psql('two', 'DROP FUNCTION handle CASCADE');
is(($node->psql('two', 'DROP EXTENSION evbus'))[0], 0, 'the extension can be dropped under running workers');
is($node->safe_psql('two', q(SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace('evbus'))), '0', 'and takes everything with it, leaves too');
answers($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE datname = 'two' AND backend_type LIKE 'evbus %'), '0', 'its workers end');
$node->safe_psql('two', q(DROP TABLE effect));
$node->safe_psql('two', $setup);
is($node->safe_psql('two', 'SELECT count(*) FROM evbus.history'), '0', 'made again it starts empty');
$node->safe_psql('two', q(SELECT evbus.publish('orders', 'new', '9')));
my $again = $node->safe_psql('two', q(SELECT receipt FROM evbus.receive('reader', lease => '1 hour', wait => '10 seconds')));
($ret, $stdout, $stderr) = $node->psql('two', "SELECT evbus.ack(ARRAY['$old'])");
is($stdout, '0', 'a receipt of before is stale');
like($stderr, qr/WARNING/, 'and says so');
is($node->safe_psql('two', "SELECT evbus.release(ARRAY['$again'])"), '1', 'that of now is good');
like((receive_all($node, 'two', 'reader', 1))[0], qr/ new 9$/, 'the new event is received');
answers($node, 'two', 'SELECT string_agg(n::text, \' \') FROM effect', '9', 'and handled');

# A rolled-back DROP EXTENSION leaves everything at work.
$node->safe_psql('two', 'BEGIN; DROP EXTENSION evbus CASCADE; ROLLBACK');
$node->safe_psql('two', q(SELECT evbus.publish('orders', 'still', '10')));
answers($node, 'two', 'SELECT string_agg(n::text, \' \' ORDER BY n) FROM effect', '9 10', 'a rolled-back DROP EXTENSION leaves everything at work');

# A rolled-back CREATE EXTENSION leaves nothing.
$node->safe_psql('three', 'BEGIN; CREATE EXTENSION evbus; ROLLBACK');
is($node->safe_psql('three', q(SELECT (SELECT count(*) FROM pg_extension WHERE extname = 'evbus') + (SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace('evbus')))), '0', 'a rolled-back CREATE EXTENSION leaves nothing');
# Nor does it keep a place in shared memory, though evbus was used in it.
$node->safe_psql('three', q(BEGIN; CREATE EXTENSION evbus; SELECT evbus.create_bus('undone'); ROLLBACK)) for 1 .. 3;
$node->safe_psql('three', 'CREATE EXTENSION evbus');
is(($node->psql('three', q(SELECT evbus.create_bus('orders'))))[0], 0, 'after many of them evbus can be used there');
# Nor does a dropped one, whose workers were sent away before it was dropped.
foreach (1 .. 3)
{
	answers($node, 'three', 'SELECT ready FROM evbus._status()', 't', 'its workers are at work');
	$node->safe_psql('three', 'DROP EXTENSION evbus');
	$node->safe_psql('three', 'CREATE EXTENSION evbus');
	is(($node->psql('three', q(SELECT evbus.create_bus('orders'))))[0], 0, 'dropped, made again, and used again');
}
is(($node->psql('postgres', 'DROP DATABASE three'))[0], 0, 'and that database can be dropped');

$node->stop;
done_testing();
