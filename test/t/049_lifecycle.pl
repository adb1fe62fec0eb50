# Buses that come and go by themselves where it is about several processes: many that want new ones at once, the maintainer
# that is to make them killed or stopped, slots that run out, buses in use; stopping all of them at once; and what is left after
# many that came and went. EVBUS_CYCLES=10000 for the long run (make soak).

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = new_node('lifecycle', conf => <<'CONF');
evbus.auto_create = on
evbus.max_buses = 12
evbus.max_subscriptions = 12
evbus.max_handler_workers = 8
max_prepared_transactions = 4
CONF

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

my $points = points($node);

# Eight clients that publish to the same five new buses.
my $script = $node->basedir . '/new.sql';
append_to_file($script, "SELECT evbus.publish('bus ' || (random() * 4)::int, 'a', '1');\n");
$node->command_ok([ 'pgbench', '-n', '-c', '8', '-j', '1', '-t', '50', '-f', $script, 'postgres' ], 'many publish to buses that do not exist yet');
is(sql(q(SELECT count(*) || ' ' || count(DISTINCT bus) FROM evbus.bus)), '5 5', 'each was made once');
is(sql(q(SELECT count(*) FROM evbus.history)), '400', 'and has its events');
sql(q(SELECT evbus.drop_bus(bus) FROM evbus.bus_list));

# Who has not committed keeps nobody from making another.
my $open = $node->background_psql('postgres', on_error_die => 1);
$open->query_safe(q(BEGIN; SELECT evbus.publish('first', 'a', '1');));
my $begun = time;
is(sql(q(SELECT evbus.publish('first', 'a', '1') > 0 AND evbus.publish('second', 'a', '1') > 0)), 't', 'beside an open transaction that was the first');
cmp_ok(time - $begun, '<', 5, 'nobody waits for it');

# Slots run out: the one not used for the longest time makes room, but none that is in use.
sql(q(SELECT evbus.create_bus('mine ' || i) FROM generate_series(1, 7) AS i));
sql(q(SELECT evbus.publish('third', 'a', '1')));
sql(q(BEGIN; SELECT evbus.publish('second', 'a', '1'); PREPARE TRANSACTION 'p'));
sql(q(SELECT evbus.publish('fourth', 'a', '1'); SELECT evbus.subscribe('fifth', 's')));
is(sql(q(SELECT count(*) FROM evbus.bus)), '12', 'all slots are taken');
my ($ret, $out, $err) = $node->psql('postgres', q(SELECT evbus.publish('sixth', 'a', '1')));
like($err, qr/cannot create bus "sixth": all 12 slots are in use\nHINT:  Drop a bus/, 'what was used just now makes no room');
select undef, undef, undef, 10.5;
is(sql(q(SELECT evbus.publish('sixth', 'a', '1') > 0)), 't', 'some time later there is room');
is(sql(q(SELECT string_agg(bus, ' ' ORDER BY bus) FROM evbus.bus WHERE auto_created)), 'fifth first fourth second sixth', 'the oldest that nobody uses made it: not the one of an open or prepared transaction, nor with a subscription');
sql(q(SELECT evbus.create_bus('by hand')));
is(sql(q(SELECT string_agg(bus, ' ' ORDER BY bus) FROM evbus.bus WHERE auto_created)), 'fifth first second sixth', 'for one that is made by hand as well');
($ret, $out, $err) = $node->psql('postgres', q(SELECT evbus.publish('seventh', 'a', '1')));
like($err, qr/all 12 slots are in use/, 'no other is there to go');
$open->query_safe('COMMIT');
sql(q(COMMIT PREPARED 'p'));
is(sql(q(SELECT string_agg(bus || ' ' || n, ', ' ORDER BY bus) FROM (SELECT bus, count(*) AS n FROM evbus.history GROUP BY bus) AS h)), 'first 2, second 2, sixth 1', 'what they had published is there');
$open->quit;
sql(q(SELECT evbus.drop_bus(bus, true) FROM evbus.bus_list));

# The maintainer is killed while somebody waits for it, again and again.
my @asking;
foreach my $i (1 .. 5)
{
	my $pid = sql(q(SELECT maintainer_pid FROM evbus._status()));
	kill 'STOP', $pid if $pid ne '';
	my %client = (out => '', err => '');
	$client{run} = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', "SELECT evbus.publish('killed $i', 'a', '1') > 0" ], '>', \$client{out}, '2>', \$client{err});
	answers($node, 'postgres', "SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE '%publish(''killed $i%' AND pid <> pg_backend_pid()", 't', "somebody waits ($i)");
	sql("SELECT pg_terminate_backend($pid)");
	kill 'CONT', $pid;
	$client{run}->finish;
	is($client{out} . $client{err}, "t\n", "the next one makes it ($i)");
}
SKIP:
{
	skip 'no debug points in this build', 3 if !$points;
	point($node, 'maintainer.errand', 'wait');
	my %client = (out => '', err => '');
	$client{run} = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', "SELECT evbus.publish('begun', 'a', '1') > 0" ], '>', \$client{out}, '2>', \$client{err});
	ok(reached($node, 'maintainer.errand'), 'the maintainer has begun');
	my $old = sql(q(SELECT maintainer_pid FROM evbus._status()));
	sql("SELECT pg_terminate_backend($old)");
	point($node, 'maintainer.errand', 'off');
	ok($node->poll_query_until('postgres', "SELECT maintainer_pid <> $old FROM evbus._status()"), 'and is killed');
	$client{run}->finish;
	is($client{out} . $client{err}, "t\n", 'the next one does what was begun');
}
my $pid = sql(q(SELECT maintainer_pid FROM evbus._status()));
kill 'STOP', $pid;
($ret, $out, $err) = $node->psql('postgres', q(SET statement_timeout = '500ms'; SELECT evbus.publish('never', 'a', '1')));
like($err, qr/canceling statement due to statement timeout/, 'who waits can be cancelled');
kill 'CONT', $pid;
is(sql(q(SELECT evbus.publish('later', 'a', '1') > 0)), 't', 'others go on');
is(sql(q(SELECT count(*) FROM evbus.bus WHERE bus = 'never')), '0', 'what was cancelled before it was begun is not done');
sql(q(SELECT evbus.drop_bus(bus, true) FROM evbus.bus_list));

# All buses are stopped at once, and nothing is delivered from then on.
sql(<<'SQL');
CREATE TABLE called (bus text, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION slow(e evbus.event) RETURNS void LANGUAGE sql AS $$ INSERT INTO called VALUES (e.bus); SELECT pg_sleep(1.5) $$;
CREATE FUNCTION quick(e evbus.event) RETURNS void LANGUAGE sql AS $$ INSERT INTO called VALUES (e.bus) $$;
SELECT evbus.create_bus('b' || i), evbus.subscribe('b' || i, 's' || i, handler => 'slow(evbus.event)', batch_size => 1) FROM generate_series(1, 4) AS i;
SELECT evbus.create_bus('q'), evbus.subscribe('q', 'q', handler => 'quick(evbus.event)', concurrency => 2, batch_size => 3);
SELECT evbus.publish('b' || i % 4 + 1, 'a', '1') FROM generate_series(1, 400) AS i;
SQL
my $load = $node->basedir . '/load.sql';
append_to_file($load, "SELECT evbus.publish('q', 'a', '1');\n");
my $bench = IPC::Run::start([ 'pgbench', '-n', '-c', '2', '-T', '6', '-f', $load, $node->connstr('postgres') ], '>', '/dev/null', '2>', '/dev/null');
answers($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'evbus handler' AND state = 'active' AND query LIKE '%s_"'), '4', 'four handlers are slow');
$begun = time;
is(sql(q(SELECT string_agg(bus || ' ' || stopped, ' ' ORDER BY bus) FROM evbus.stop_all('20 seconds'))), 'b1 true b2 true b3 true b4 true q true', 'all have stopped');
my $took = time - $begun;
cmp_ok($took, '<', 4, 'together, not one after the other');
my $calls = sql(q(SELECT count(*) FROM called));
select undef, undef, undef, 1;
is(sql(q(SELECT count(*) FROM called)), $calls, 'nothing is delivered any more, whatever is published');
$bench->finish;
is(sql(q(SELECT count(*) FROM called)), $calls, 'until they are resumed');
sql(q(SELECT evbus.resume_bus('q')));
answers($node, 'postgres', q(SELECT lag FROM evbus.subscription_lag WHERE subscription = 'q'), '0', 'one is resumed');
sql(q(SELECT evbus.resume_bus(bus) FROM evbus.bus_list WHERE paused));
answers($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'evbus handler' AND state = 'active' AND query LIKE '%s_"'), '4', 'all are');
$begun = time;
is(sql(q(SELECT string_agg(bus || ' ' || stopped || ' ' || (in_flight > 0), ' ' ORDER BY bus) FROM evbus.stop_all('100 milliseconds'))), 'b1 false true b2 false true b3 false true b4 false true q true false', 'after the timeout it tells who has not');
cmp_ok(time - $begun, '<', 1.4, 'which is one for all');
sql(q(SELECT evbus.drop_bus(bus, true) FROM evbus.bus_list));

# A worker that had looked what there is before, and takes it after, gives it back.
SKIP:
{
	skip 'no debug points in this build', 3 if !$points;
	sql(q(SELECT evbus.create_bus('p'), evbus.subscribe('p', 'p', handler => 'quick(evbus.event)')));
	sql('DELETE FROM called');
	point($node, 'handler.turn', 'wait');
	sql(q(SELECT evbus.publish('p', 'a', '1')));
	ok(reached($node, 'handler.turn'), 'a worker is about to take an event');
	is(sql(q(SELECT string_agg(bus || ' ' || stopped, ' ') FROM evbus.stop_all('20 seconds'))), 'p true', 'its bus is stopped');
	point($node, 'handler.turn', 'off');
	select undef, undef, undef, 1;
	is(sql(q(SELECT count(*) FROM called WHERE bus = 'p')) . ' ' . sql(q(SELECT lag FROM evbus.subscription_lag)), '0 1', 'it does not handle it');
	sql(q(SELECT evbus.drop_bus('p', true)));
}

# Who no longer waits for the maintainer leaves nothing behind: no place, and no bus that is paused later.
SKIP:
{
	skip 'no debug points in this build', 6 if !$points;
	my $used = q(SELECT used FROM evbus.stat_memory WHERE area = 'errands');
	sql(q(SELECT evbus.create_bus('e')));
	point($node, 'maintainer.errand', 'wait');
	$node->psql('postgres', q(SET statement_timeout = '300ms'; SELECT * FROM evbus.stop_all()));
	is(sql($used), 1, 'the maintainer is at what nobody waits for any more');
	point($node, 'maintainer.errand', 'off');
	answers($node, 'postgres', $used, '0', 'when it is done the place is free');
	sql(q(SELECT evbus.resume_bus('e')));
	my $maintainer = sql('SELECT maintainer_pid FROM evbus._status()');
	kill 'STOP', $maintainer;
	my ($out, $err) = ('', '');
	my $caller = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', 'SELECT evbus.stop_all()' ], '>', \$out, '2>', \$err);
	answers($node, 'postgres', $used, '1', 'another asks in vain');
	sql(q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'SELECT evbus.stop_all()'));
	eval { $caller->finish };
	answers($node, 'postgres', $used, '0', 'and is terminated');
	$begun = time;
	my ($ret, $o, $e) = $node->psql('postgres', q(SELECT * FROM evbus.stop_all('0')));
	like($e, qr/did not answer in time/, 'one who does not want to wait is told so');
	kill 'CONT', $maintainer;
	select undef, undef, undef, 1;
	is(sql(q(SELECT count(*) FROM evbus.bus_list WHERE paused)), 0, 'nothing is paused when the maintainer is back');
	sql(q(SELECT evbus.drop_bus('e', true)));
}

# A row that somebody has locked keeps no other from stopping.
sql(q(SELECT evbus.create_bus('locked'), evbus.create_bus('free')));
my $holder = $node->background_psql('postgres', on_error_die => 1);
$holder->query_safe(q(BEGIN; SELECT evbus.alter_bus('locked', max_backlog => 5);));
is(sql(q(SELECT string_agg(bus || ' ' || stopped, ' ' ORDER BY bus) FROM evbus.stop_all('300 milliseconds'))), 'free false locked false', 'while a bus is being altered none is paused, and the rows tell');
$holder->query_safe('COMMIT');
$holder->quit;
is(sql(q(SELECT bool_and(stopped) FROM evbus.stop_all('5 seconds'))), 't', 'afterwards it does');
sql(q(SELECT evbus.drop_bus(bus, true) FROM evbus.bus_list));

# Many come and go, and nothing of them is left: memory, leases, tables, rows.
my $cycles = $ENV{EVBUS_CYCLES} // 300;
sql(<<'SQL');
CREATE PROCEDURE cycles(n integer) LANGUAGE plpgsql AS $$
DECLARE r text[];
BEGIN
	FOR i IN 1 .. n LOOP
		PERFORM evbus.create_bus('cycle', durability => CASE WHEN i % 10 = 0 THEN 'volatile' ELSE 'durable' END);
		PERFORM evbus.subscribe('cycle', 'client'), evbus.subscribe('cycle', 'handler', handler => 'quick(evbus.event)', ordering => CASE WHEN i % 2 = 0 THEN 'key' ELSE 'none' END);
		COMMIT;
		PERFORM evbus.publish('cycle', 'a', '1', key => 'k'), evbus.publish('cycle', 'a', '2', key => 'k', priority => 1);
		COMMIT;
		SELECT array_agg(receipt) INTO r FROM evbus.receive('client', 10, wait => '10 seconds');
		IF i % 3 = 0 THEN PERFORM evbus.nack(r); ELSIF i % 3 = 1 THEN PERFORM evbus.ack(r); END IF;
		COMMIT;
		PERFORM evbus.drop_bus('cycle', force => true);
		COMMIT;
	END LOOP;
END $$;
SQL

# What there is: relations, rows, leases in use, subscriptions that memory knows.
sub left
{
	sql('CALL evbus.maintain()');
	return sql(q(SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = 'evbus'::regnamespace) || ' ' || (SELECT count(*) FROM evbus.storage_class) || ' '
		|| (SELECT count(*) FROM evbus.bus) || ' ' || (SELECT count(*) FROM evbus.subscription) || ' ' || (SELECT count(*) FROM evbus.retry) || ' '
		|| (SELECT leases_used FROM evbus._status()) || ' ' || (SELECT count(*) FROM evbus._subscription_state()) || ' ' || (SELECT count(*) FROM evbus.dead_letter_quota_state)));
}

# Of the workers, kB that are not shared.
sub memory
{
	my %of;
	foreach (split /\n/, sql(q(SELECT backend_type || '/' || pid FROM pg_stat_activity WHERE backend_type IN ('evbus sequencer', 'evbus maintainer'))))
	{
		my ($type, $worker) = split m{/};
		my $status = PostgreSQL::Test::Utils::slurp_file("/proc/$worker/status");
		$of{$type} = $1 if $status =~ /RssAnon:\s+(\d+)/;
	}
	return %of;
}

sql("SET statement_timeout = 0; CALL cycles(50)");
answers($node, 'postgres', q(SELECT leases_used FROM evbus._status()), '0', 'no lease is left in use');
my $before = left();
my %memory = memory();
sql("SET statement_timeout = 0; CALL cycles($cycles)");
answers($node, 'postgres', q(SELECT leases_used FROM evbus._status()), '0', 'nor after many more');
is(left(), $before, "$cycles buses that came and went have left no tables, rows or leases behind");
my %after = memory();
figure("$cycles buses that came and went: " . join ', ', map { "$_ $memory{$_} -> $after{$_} kB" } sort keys %memory);
cmp_ok($after{$_}, '<', $memory{$_} + 2000, "nor memory of the $_: $memory{$_} kB before, $after{$_} after") foreach sort keys %memory;

$node->stop;
done_testing();
