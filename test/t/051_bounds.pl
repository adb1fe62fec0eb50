# Bounds: very many types, keys, subscriptions and undelivered events. Shared memory does not grow, processes hardly do, and
# delivery goes on. EVBUS_BOUNDS=full for the long run (make soak): 5 million types, 1 million keys, 10,000 subscriptions on 64
# buses, 100 million undelivered events (EVBUS_UNDELIVERED; they take 9 GB).

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $full = ($ENV{EVBUS_BOUNDS} // '') eq 'full';
my $types = $full ? 5_000_000 : 50_000;
my $keys = $full ? 1_000_000 : 20_000;
my $subscriptions = $full ? 10_000 : 400;
my $buses = $full ? 64 : 8;
my $undelivered = $ENV{EVBUS_UNDELIVERED} // ($full ? 100_000_000 : 300_000);

my $node = new_node('bounds', conf => <<"CONF");
evbus.max_buses = 80
evbus.max_subscriptions = @{[ $subscriptions + 20 ]}
evbus.ring_size = '8MB'
max_wal_size = '2GB'
synchronous_commit = off
CONF

sub sql
{
	return $node->safe_psql('postgres', "SET statement_timeout = 0; $_[0]", timeout => 7200);
}

# kB that are a process's own, by its kind; the largest.
sub memory
{
	my %of;
	foreach (split /\n/, $node->safe_psql('postgres', q(SELECT backend_type || '/' || pid FROM pg_stat_activity WHERE backend_type LIKE 'evbus%')))
	{
		my ($type, $pid) = split m{/};
		next if !-r "/proc/$pid/status";
		my $status = PostgreSQL::Test::Utils::slurp_file("/proc/$pid/status");
		$of{$type} = $1 if $status =~ /RssAnon:\s+(\d+)/ && $1 > ($of{$type} // 0);
	}
	return \%of;
}

sub hardly_grown
{
	my ($before, $after, $room, $what) = @_;
	foreach my $type (sort keys %$before)
	{
		my $now = $after->{$type} // 0;
		cmp_ok($now, '<', $before->{$type} + $room, "$what: the $type has $now kB of its own, $before->{$type} before");
	}
}

# How long one event takes to a client, in ms.
sub latency
{
	my ($bus, $subscription) = @_;
	my $ms = sql(<<"SQL");
DO \$\$
DECLARE t timestamptz; r text;
BEGIN
	PERFORM evbus.publish('$bus', 'now', '1');
	COMMIT;
	t := clock_timestamp();
	SELECT receipt INTO r FROM evbus.receive('$subscription', 1, wait => '20 seconds');
	IF r IS NULL THEN RAISE 'nothing came'; END IF;
	PERFORM evbus.ack(ARRAY[r]);
	PERFORM set_config('evbus_test.ms', (1000 * extract(epoch FROM clock_timestamp() - t))::text, false);
END \$\$;
SELECT round(current_setting('evbus_test.ms')::numeric, 1);
SQL
	return (split /\n/, $ms)[-1];
}

sub took
{
	my ($what, $begun) = @_;
	figure(sprintf '%s: %.1f s', $what, time - $begun);
	return;
}

my $shared = sql('SHOW shared_memory_size');
sql(q(SELECT evbus.create_bus('types'), evbus.create_bus('keys'), evbus.create_bus('log'), evbus.create_bus('live')));
sql(q(SELECT evbus.subscribe('types', 'types', types => '{t1.#,t2.*}'), evbus.subscribe('keys', 'keys', ordering => 'key'), evbus.subscribe('live', 'live', types => '{now}')));
cmp_ok(latency('live', 'live'), '<', 5000, 'it delivers');
my $before = memory();

# Types.
my $begun = time;
sql(<<"SQL");
DO \$\$ BEGIN FOR i IN 0 .. $types / 10000 - 1 LOOP
	PERFORM count(*) FROM evbus.publish_batch('types', (SELECT array_agg('t' || (i * 10000 + k) % 7 || '.x' || (i * 10000 + k)) FROM generate_series(1, 10000) AS k), array_fill('1'::jsonb, ARRAY[10000]));
	COMMIT;
END LOOP; END \$\$
SQL
took("$types types published", $begun);
$begun = time;
sql(<<'SQL');
CREATE TABLE got (subscription text, n bigint);
CREATE PROCEDURE drain(name text) LANGUAGE plpgsql AS $$
DECLARE n integer; total bigint := 0; r text[] := '{}';
BEGIN LOOP
	SELECT count(*), coalesce(array_agg(receipt), '{}') INTO n, r FROM evbus.receive(name, 1000, ack => r);
	total := total + n;
	COMMIT;
	EXIT WHEN n = 0;
END LOOP;
INSERT INTO got VALUES (name, total);
END $$;
CALL drain('types');
SQL
took("two of seven received", $begun);
is(sql(q(SELECT n FROM got WHERE subscription = 'types')), (grep { $_ % 7 == 1 || $_ % 7 == 2 } 1 .. $types) + 0, "of $types types a client gets those it wants");
hardly_grown($before, memory(), 3000, 'after very many types');

# Keys, in order.
$begun = time;
sql(<<"SQL");
DO \$\$ BEGIN FOR i IN 0 .. $keys / 10000 - 1 LOOP
	PERFORM count(*) FROM evbus.publish_batch('keys', '{a}', array_fill('1'::jsonb, ARRAY[20000]), (SELECT array_agg('key ' || (i * 10000 + k % 10000)) FROM generate_series(1, 20000) AS k));
	COMMIT;
END LOOP; END \$\$
SQL
sql("CALL drain('keys')");
took("two events of each of $keys keys published and received in order", $begun);
is(sql(q(SELECT n FROM got WHERE subscription = 'keys')), $keys * 2, "$keys keys");
hardly_grown($before, memory(), 3000, 'after very many keys');

# Subscriptions, one in a hundred with a handler; each gets what is published on its bus.
sql(<<'SQL');
CREATE TABLE called (n integer GENERATED ALWAYS AS IDENTITY, bus text);
CREATE FUNCTION note(e evbus.event) RETURNS void LANGUAGE sql AS $$ INSERT INTO called (bus) VALUES (e.bus) $$;
SQL
$begun = time;
sql("SELECT count(evbus.create_bus('many ' || i)) FROM generate_series(0, $buses - 1) AS i");
for (my $i = 0; $i < $subscriptions; $i += 200)
{
	my $last = $i + 199;
	sql("SELECT count(evbus.subscribe('many ' || i % $buses, 'sub ' || i, handler => CASE WHEN i % 100 = 0 THEN 'note(evbus.event)'::regprocedure END, notify => i % 10 = 1)) FROM generate_series($i, $last) AS i");
}
took("$subscriptions subscriptions made", $begun);
is(sql(q(SELECT count(*) FROM evbus.subscription_list WHERE subscription LIKE 'sub %')), $subscriptions, "$subscriptions subscriptions on $buses buses");
$begun = time;
sql("SELECT count(evbus.publish('many ' || i, 'a', '1')) FROM generate_series(0, $buses - 1) AS i");
answers($node, 'postgres', 'SELECT count(*) FROM called', $subscriptions / 100, 'every handler is called');
took('handlers called', $begun);
$begun = time;
is(sql("SELECT count(*) FROM generate_series(0, $subscriptions - 1) AS i, LATERAL evbus.receive('sub ' || i) WHERE i % 100 <> 0"), $subscriptions / 100 * 99, 'and every client receives');
took('received by each client', $begun);
my $ms = latency('live', 'live');
cmp_ok($ms, '<', 1000, "beside all of them an event takes $ms ms");
my $many = memory();
figure(join ', ', map { "$_ $many->{$_} kB" } sort keys %$many);
cmp_ok($many->{$_} // 0, '<', $before->{$_} + 5000 + 4 * $subscriptions, "$_: at most 4 kB of its own for each") foreach sort keys %$before;
$begun = time;
$node->restart;
sql(q(SELECT count(*) FROM evbus.subscription_lag)) while sql(q(SELECT ready FROM evbus._status())) ne 't';
$ms = latency('live', 'live');
cmp_ok(time - $begun, '<', 15, 'after a restart all of them are there soon');
took('restart, with the first delivery', $begun);
sql("SELECT count(evbus.drop_bus('many ' || i, true)) FROM generate_series(0, $buses - 1) AS i");

# Undelivered events.
sql(q(SELECT evbus.subscribe('log', 'behind')));
$before = memory();
$begun = time;
my $each = $undelivered > 1_000_000 ? 100_000 : 10_000;
sql(<<"SQL");
DO \$\$
DECLARE lines text := (SELECT string_agg('{"i":' || i || '}', E'\\n') FROM generate_series(1, $each) AS i);
BEGIN FOR i IN 1 .. $undelivered / $each LOOP
	PERFORM evbus.publish_lines('log', 'a', lines);
	COMMIT;
END LOOP; END \$\$
SQL
took("$undelivered published", $begun);
is(sql(q(SELECT lag FROM evbus.subscription_lag WHERE subscription = 'behind')), $undelivered, "$undelivered undelivered events");
hardly_grown($before, memory(), 3000, 'behind');
$ms = latency('live', 'live');
cmp_ok($ms, '<', 1000, "beside them an event takes $ms ms");
$begun = time;
is(sql(q(SELECT sum((payload->>'i')::bigint) FROM evbus.receive('behind', 10000))), 50005000, 'the oldest come first');
took('ten thousand of them received', $begun);
sql('CHECKPOINT');
$begun = time;
$node->stop('immediate');
$node->start;
$ms = latency('live', 'live');
cmp_ok(time - $begun, '<', 60, 'a crash with all of them behind');
took('crash, recovery and first delivery', $begun);
is(sql(q(SELECT sum((payload->>'i')::bigint) FROM evbus.receive('behind', 10000))), 50005000, 'and they are there');
is(sql(q(SELECT evbus.seek('behind', 'now') > 0)), 't', 'a subscription can leave them behind');
$ms = latency('log', 'behind');
cmp_ok($ms, '<', 1000, "then an event takes it $ms ms");
hardly_grown($before, memory(), 5000, 'after all of it');
is(sql('SHOW shared_memory_size'), $shared, 'shared memory is what it was');

$node->stop;
done_testing();
