# NOTIFY on the channel of a subscription: sent by a worker, once for many events, and only where it was asked for.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $node = new_node('notify', conf => "evbus.notify_interval = '100ms'\n");
$node->safe_psql('postgres', <<'SQL');
SELECT evbus.create_bus('orders');
CREATE FUNCTION handle(e evbus.event) RETURNS void LANGUAGE plpgsql AS 'BEGIN END';
SELECT evbus.subscribe('orders', 'reader', backoff_initial => '300 milliseconds');
SELECT evbus.subscribe('orders', 'silent', notify => false);
SELECT evbus.subscribe('orders', 'handled', handler => 'handle(evbus.event)');
SELECT evbus.subscribe('orders', 'An "odd" näme', types => '{odd}');
SQL
is($node->safe_psql('postgres', q(SELECT evbus.channel('reader'))), 'evbus_reader', 'the channel has the name of the subscription in it');

my $listener = $node->background_psql('postgres');
foreach my $name ('reader', 'silent', 'handled', 'An "odd" näme')
{
	my $channel = $node->safe_psql('postgres', "SELECT quote_ident(evbus.channel('$name'))");
	$listener->query_safe("LISTEN $channel");
}

# What arrived since the last look: lines of psql. Asks until one matches or, without a pattern, once.
sub heard
{
	my ($pattern) = @_;
	my $all = '';
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
	do
	{
		$all .= $listener->query('SELECT 1') . "\n";
		return $all if !defined $pattern || $all =~ $pattern;
		usleep(20_000);
	} while (time < $deadline);
	return $all;
}

# The notification must not come before the event can be received.
$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'a', '1')));
my $got = heard(qr/Asynchronous notification/);
like($got, qr/Asynchronous notification "evbus_reader"/, 'after a publish a listener is notified');
is($node->safe_psql('postgres', q(SELECT type FROM evbus.receive('reader'))), 'a', 'and can receive at once, without waiting');
unlike($got . heard(), qr/odd/, 'a subscription is not notified of types it does not want');
my ($pid) = $got =~ /server process with PID (\d+)/;
like($node->safe_psql('postgres', "SELECT backend_type FROM pg_stat_activity WHERE pid = $pid"), qr/^evbus /, 'the sender is a worker, not the publisher');

# Coalesced.
$node->safe_psql('postgres', q(DO $$BEGIN FOR i IN 1 .. 2000 LOOP PERFORM evbus.publish('orders', 'many', to_jsonb(i)); COMMIT; END LOOP; END$$));
$got = heard(qr/"evbus_reader"/);
is(scalar(receive_all($node, 'postgres', 'reader', 2000)), 2000, 'two thousand events of two thousand transactions are received');
$got .= heard();
my $n = () = $got =~ /"evbus_reader"/g;
cmp_ok($n, '>=', 1, 'they were announced');
cmp_ok($n, '<', 200, 'many events are announced together');
$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'odd', '1')));
$got .= heard(qr/"evbus_An "odd" näme"/);
like($got, qr/"evbus_An "odd" näme"/, 'a channel with quotes and unicode in its name works');
unlike($got, qr/silent/, 'a subscription with notify => false is not announced');
unlike($got, qr/handled/, 'nor one that has a handler');
is(scalar(receive_all($node, 'postgres', 'silent', 2002)), 2002, 'the silent subscription has its events all the same');
is(scalar(receive_all($node, 'postgres', 'reader', 1)), 1, 'the reader too');

# What comes back is announced too.
heard();
$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'b', '1')));
heard(qr/"evbus_reader"/);
my $receipt = $node->safe_psql('postgres', q(SELECT receipt FROM evbus.receive('reader', lease => '1 hour', wait => '10 seconds')));
heard();
is($node->safe_psql('postgres', "SELECT evbus.nack(ARRAY['$receipt'], delay => '300 milliseconds')"), '1', 'a delivery failed');
like(heard(qr/"evbus_reader"/), qr/"evbus_reader"/, 'a retry that comes due is announced');
$receipt = $node->safe_psql('postgres', q(SELECT receipt FROM evbus.receive('reader', lease => '1 hour')));
isnt($receipt, '', 'and can be received');
heard();
is($node->safe_psql('postgres', "SELECT evbus.release(ARRAY['$receipt'])"), '1', 'a delivery is given back');
like(heard(qr/"evbus_reader"/), qr/"evbus_reader"/, 'what was given back is announced');

# A subscription whose notify is switched on later.
$node->safe_psql('postgres', q(SELECT evbus.alter_subscription('silent', notify => true)));
$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'c', '1')));
like(heard(qr/"evbus_silent"/), qr/"evbus_silent"/, 'notify can be switched on later');

# Who was told and receives nothing is not told again and again, but reminded once a second.
{
	receive_all($node, 'postgres', 'reader', $node->safe_psql('postgres', q(SELECT lag FROM evbus.subscription_lag WHERE subscription = 'reader')));
	heard();
	$node->safe_psql('postgres', q(DO $$BEGIN FOR i IN 1 .. 125 LOOP PERFORM evbus.publish('orders', 'again', to_jsonb(i)); COMMIT; PERFORM pg_sleep(0.02); END LOOP; END$$));
	my $told = () = heard() =~ /"evbus_reader"/g;
	cmp_ok($told, '>=', 2, 'a listener that receives nothing is reminded');
	cmp_ok($told, '<=', 5, 'once a second');
	is(scalar(receive_all($node, 'postgres', 'reader', 125)), 125, 'it receives');
	heard();
	$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'next', '1')));
	like(heard(qr/"evbus_reader"/), qr/"evbus_reader"/, 'and is told of the next event');
}

# Who received what had been given back has received: the next event is told at once, not with the reminder.
{
	receive_all($node, 'postgres', 'reader', $node->safe_psql('postgres', q(SELECT lag FROM evbus.subscription_lag WHERE subscription = 'reader')));
	my @took;
	foreach my $round (1 .. 5)
	{
		heard();
		$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'returned', '1')));
		heard(qr/"evbus_reader"/);
		$node->safe_psql('postgres', q(BEGIN; SELECT FROM evbus.receive('reader', wait => '10 seconds'); ROLLBACK));
		heard(qr/"evbus_reader"/);
		$node->safe_psql('postgres', q(WITH d AS MATERIALIZED (SELECT receipt FROM evbus.receive('reader', wait => '10 seconds')) SELECT evbus.ack(array_agg(receipt)) FROM d));
		usleep(150_000);		# what was announced meanwhile has come
		heard();
		my $begun = time;
		$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'after', '1')));
		heard(qr/"evbus_reader"/);
		push @took, time - $begun;
		receive_all($node, 'postgres', 'reader', 1);
	}
	my ($median) = (sort { $a <=> $b } @took)[2];
	cmp_ok($median, '<', 0.6, 'after a redelivery the next event is announced at once');
}

# A seek puts something before who listens.
usleep(1_200_000);
heard();
$node->safe_psql('postgres', q(SELECT evbus.seek('reader', 'beginning')));
like(heard(qr/"evbus_reader"/), qr/"evbus_reader"/, 'a seek back is announced');

$listener->quit;
$node->stop;
done_testing();
