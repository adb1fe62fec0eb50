# A bus with max_backlog, among many: never more than that, nobody waits for ever, nothing is lost; over restarts, kills and
# prepared transactions.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('flow', conf => <<'CONF');
max_prepared_transactions = 10
max_connections = 50
CONF
sub sql { my ($q) = @_; return $node->safe_psql('postgres', $q); }
sub lag { my ($s) = @_; return sql("SELECT lag FROM evbus.subscription_lag WHERE subscription = '$s'"); }

my $dir = PostgreSQL::Test::Utils::tempdir();

# Runs a script in so many clients, each so often; returns the exit code, which is not 0 if a client got an error.
sub clients
{
	my ($text, $clients, $times) = @_;
	my $script = "$dir/script.sql";
	open my $file, '>', $script or die $!;
	print $file $text;
	close $file;
	my ($stdout, $stderr);
	run_log([ 'pgbench', '-n', '-c', $clients, '-j', $clients, '-t', $times, '-f', $script, $node->connstr('postgres') ], '>', \$stdout, '2>', \$stderr);
	return $?;
}

# ------------------------------------------------------------------------------ never more

sql(q(SELECT evbus.create_bus('exact', max_backlog => 100), evbus.subscribe('exact', 'exact')));
# Of several at once some are refused that would have fitted, as others that are refused in the end were before them; not all.
is(clients(q(DO $$ BEGIN PERFORM evbus.publish('exact', 'a', '1'); EXCEPTION WHEN SQLSTATE 'VB014' THEN END $$;), 8, 200), 0, 'eight publishers, 1600 events');
is(lag('exact'), 100, 'as many are behind as may be, and not one more');
is(sql(q(SELECT rejected FROM evbus.bus_list WHERE bus = 'exact')), 1500, 'the others were refused, and counted');

$node->stop('immediate');
$node->start;
my ($ret, $out, $err) = $node->psql('postgres', q(SELECT evbus.publish('exact', 'a', '1')));
like($err, qr/bus "exact" is full/, 'so it is after a crash of the server');
is(sql(q(SELECT count(*) FROM evbus.history)), 100, 'and in the log');

# A publisher that is sent away in the middle of its transaction has promised, and takes that with it.
sql(q(SELECT evbus.seek('exact', 'now')));
my $gone = $node->background_psql('postgres', on_error_stop => 0);
$gone->query_safe(q(BEGIN; SELECT count(*) FROM evbus.publish_batch('exact', '{a}', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 100) i))));
my $gone_pid = $gone->query_safe('SELECT pg_backend_pid()');
($ret, $out, $err) = $node->psql('postgres', q(SELECT evbus.publish('exact', 'a', '1')));
like($err, qr/bus "exact" is full/, 'what an open transaction may add counts');
sql("SELECT pg_terminate_backend($gone_pid, 10000)");
ok(sql(q(SELECT evbus.publish('exact', 'a', '1'))) > 0, 'and no longer when it was sent away');
eval { $gone->quit };

# What is prepared has room, and what was promised for it ends there; when it is committed it counts.
sql(q(SELECT evbus.seek('exact', 'now')));
sql(q(BEGIN; SELECT count(*) FROM evbus.publish_batch('exact', '{a}', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 100) i)); PREPARE TRANSACTION 'p'));
sql(q(COMMIT PREPARED 'p'));
ok($node->poll_query_until('postgres', q(SELECT lag = 100 FROM evbus.subscription_lag)), 'a prepared transaction is committed');
($ret, $out, $err) = $node->psql('postgres', q(SELECT evbus.publish('exact', 'a', '1')));
like($err, qr/bus "exact" is full/, 'and counts');
sql(q(SELECT evbus.drop_bus('exact', force => true)));

# ------------------------------------------------------------------------------ who waits

sql(<<'SQL');
SELECT evbus.create_bus('waits', max_backlog => 20, overflow => 'block', overflow_timeout => '1 minute');
CREATE TABLE seen (n integer);
CREATE FUNCTION note(events evbus.event[]) RETURNS void LANGUAGE sql AS 'INSERT INTO seen SELECT (payload)::integer FROM unnest(events)';
SELECT evbus.subscribe('waits', 'waits', handler => 'note(evbus.event[])', batch_size => 10);
SQL
is(clients(q(SELECT evbus.publish('waits', 'a', to_jsonb(:client_id * 1000 + 1)); SELECT count(*) FROM evbus.publish_batch('waits', '{a}', '{1,2,3}');), 4, 100), 0,
	'four publishers wait for a handler that is slower');
ok($node->poll_query_until('postgres', 'SELECT count(*) = 1600 FROM seen'), 'nothing is lost');
cmp_ok(sql(q(SELECT waits FROM evbus.bus_list)), '>', 0, 'they did wait');
is(sql(q(SELECT rejected FROM evbus.bus_list)), 0, 'and nobody was refused');

# Nobody else waits for who waits: not another bus, not upkeep; and he can be cancelled.
sql(q(SELECT evbus.pause('waits'), evbus.create_bus('other'), evbus.subscribe('other', 'other')));
sql(q(SELECT count(*) FROM evbus.publish_batch('waits', '{a}', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 20) i))));
my $waiter = $node->background_psql('postgres', on_error_stop => 0);
my $pid = $waiter->query_safe('SELECT pg_backend_pid()');
$waiter->query_until(qr/started/, "\\echo started\nSELECT evbus.publish('waits', 'late', '1');\n\\echo ended\n");
ok($node->poll_query_until('postgres', "SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $pid"), 'a publisher waits');
is(sql("SELECT count(*) FROM pg_locks WHERE pid = $pid AND locktype = 'relation' AND mode NOT IN ('AccessShareLock', 'RowShareLock')"), 0, 'it holds no lock that keeps others');
ok(sql(q(SELECT evbus.publish('other', 'a', '1'))) > 0, 'others publish elsewhere');
is_deeply([ receive_all($node, 'postgres', 'other', 1) ], ['1 a 1'], 'and receive');
sql("SELECT pg_cancel_backend($pid)");
ok($node->poll_query_until('postgres', "SELECT state = 'idle' FROM pg_stat_activity WHERE pid = $pid"), 'it is cancelled');
$waiter->query_until(qr/started/, "\\echo started\nSELECT evbus.publish('waits', 'late', '1');\n\\echo ended\n");
ok($node->poll_query_until('postgres', "SELECT state = 'active' AND wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $pid"), 'waits again');
sql(q(SELECT evbus.resume('waits')));
ok($node->poll_query_until('postgres', "SELECT state = 'idle' FROM pg_stat_activity WHERE pid = $pid"), 'and goes on when there is room');
ok($node->poll_query_until('postgres', 'SELECT count(*) = 1621 FROM seen'), 'nothing is lost');
eval { $waiter->quit };

# Who waits goes by what the bus is now: another limit, overflow or rate, or none; and not by one that is gone.
foreach my $case (
	[ 'max_backlog', "max_backlog => 2, overflow => 'block'", 'max_backlog => 0', qr/^id$/ ],
	[ 'larger', "max_backlog => 2, overflow => 'block'", 'max_backlog => 10', qr/^id$/ ],
	[ 'overflow', "max_backlog => 2, overflow => 'block'", "overflow => 'reject'", qr/bus "overflow" is full/ ],
	[ 'timeout', "max_backlog => 2, overflow => 'block'", "overflow_timeout => '10 milliseconds'", qr/bus "timeout" is full/ ],
	[ 'dropped', "max_backlog => 2, overflow => 'block'", undef, qr/bus "dropped" does not exist any more/ ],
	[ 'rate', "publish_rate => 1, publish_burst => 2, rate_policy => 'wait'", 'publish_rate => 0', qr/^id$/, 500 ],
	[ 'volatile', "durability => 'volatile', overflow => 'block'", "overflow => 'drop_oldest'", qr/^id$/, 30000 ],
	[ 'volatile rejects', "durability => 'volatile', overflow => 'block'", "overflow => 'reject'", qr/volatile bus "volatile rejects" is full/, 30000 ],
	[ 'volatile gone', "durability => 'volatile', overflow => 'block'", undef, qr/bus "volatile gone" does not exist any more/, 30000 ])
{
	my ($name, $made, $altered, $expected, $fill) = @$case;

	sql("SELECT evbus.create_bus('$name', $made, overflow_timeout => '1 hour'), evbus.subscribe('$name', '$name')");
	if ($name =~ /^volatile/)
	{
		$node->psql('postgres', "SELECT evbus.alter_bus('$name', overflow => 'reject')");
		$node->psql('postgres', "DO \$\$ BEGIN LOOP PERFORM evbus.publish('$name', 'a', to_jsonb(repeat(md5(random()::text), 200))); COMMIT; END LOOP; END \$\$", on_error_stop => 0);
		$node->psql('postgres', "SELECT evbus.alter_bus('$name', overflow => 'block')");
	}
	else
	{
		sql("SELECT count(*) FROM evbus.publish_batch('$name', '{a}', '{1,2}')");
	}
	my %client = (out => '', err => '');
	my $call = $name eq 'rate' ? "evbus.publish_batch('$name', '{a}', array_fill('1'::jsonb, ARRAY[$fill]))" : "evbus.publish('$name', 'a', to_jsonb(repeat(md5('x'), 200)))";
	sql("SELECT evbus.publish_batch('$name', '{a}', array_fill('1'::jsonb, ARRAY[$fill]))") if $name eq 'rate' && sql("SELECT evbus.alter_bus('$name', publish_burst => 1000), 1") && sql("SELECT evbus.alter_bus('$name', publish_burst => 2)");
	$client{run} = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', "SELECT DISTINCT 'id' FROM $call" ], '>', \$client{out}, '2>', \$client{err});
	ok($node->poll_query_until('postgres', "SELECT waits = 1 FROM evbus.bus_list WHERE bus = '$name'"), "a publisher waits ($name)");
	sql(defined $altered ? "SELECT evbus.alter_bus('$name', $altered)" : "SELECT evbus.drop_bus('$name', true)");
	my $begun = time;
	$client{run}->finish;
	like($client{out} . $client{err}, $expected, "and goes by the change ($name)");
	cmp_ok(time - $begun, '<', 20, "soon ($name)");
	sql("SELECT evbus.drop_bus('$name', true)") if defined $altered;
}

# A transaction that is too large for the ring counts from its commit on, not only when it has positions.
sql(q(SELECT evbus.create_bus('late', max_backlog => 3000), evbus.subscribe('late', 'late')));
sql(q(SELECT count(*) FROM evbus.publish_batch('late', '{a}', '{1,2}')));
my $sequencer = sql(q(SELECT sequencer_pid FROM evbus._status()));
kill 'STOP', $sequencer;
sql(q(SELECT count(*) FROM evbus.publish_batch('late', '{a}', ARRAY(SELECT to_jsonb(repeat(md5(i::text), 60)) FROM generate_series(1, 2900) i))));
my %late = (out => '', err => '');
$late{run} = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', "SELECT count(*) FROM evbus.publish_batch('late', '{a}', array_fill('1'::jsonb, ARRAY[200]))" ], '>', \$late{out}, '2>', \$late{err});
ok($node->poll_query_until('postgres', q{SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE '%publish_batch(''late''%' AND wait_event_type = 'Extension'}), 'who comes next waits for its positions');
kill 'CONT', $sequencer;
$late{run}->finish;
like($late{out} . $late{err}, qr/bus "late" is full/, 'and is refused');
sql(q(SELECT evbus.drop_bus('late', true)));

# What a durable bus has dropped does not come again after a crash.
sql(q(SELECT evbus.create_bus('drops', retention_policy => 'drop_unconsumed', max_backlog => 10, overflow => 'drop_oldest'), evbus.subscribe('drops', 'drops')));
sql(q(SELECT count(*) FROM evbus.publish_batch('drops', '{a}', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 1000) i))));
answers($node, 'postgres', q(SELECT lag || ' ' || dropped FROM evbus.subscription_lag WHERE subscription = 'drops'), '10 990', 'the oldest are dropped');
sql('CHECKPOINT; SELECT pg_sleep(0.5); SELECT pg_switch_wal()');
sql(q(SELECT evbus.alter_bus('drops', overflow => 'block')));
$node->stop('immediate');
$node->start;
answers($node, 'postgres', q(SELECT lag || ' ' || dropped FROM evbus.subscription_lag WHERE subscription = 'drops'), '10 990', 'and stay dropped after a crash');
sql(q(SELECT evbus.drop_bus('drops', true)));

# A handler that publishes to the bus it reads would wait for itself.
sql(<<'SQL');
CREATE FUNCTION echo(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF e.attempt = 1 THEN
		PERFORM count(*) FROM evbus.publish_batch('self', '{b}', '{1,2}');
	END IF;
	INSERT INTO seen VALUES (-1);
END $$;
SELECT evbus.create_bus('self', max_backlog => 2, overflow => 'block', overflow_timeout => '1 hour');
SELECT evbus.subscribe('self', 'self', types => '{a}', handler => 'echo(evbus.event)', backoff_initial => '10 ms', timeout => '5 minutes');
SELECT evbus.publish('self', 'a', '1');
SQL
ok($node->poll_query_until('postgres', 'SELECT count(*) = 1 FROM seen WHERE n = -1'), 'it is refused at once, and tried again');

# Writers of a table whose changes go to a full bus wait, or are refused, as the bus says.
sql(q(CREATE TABLE t (id integer PRIMARY KEY); SELECT evbus.create_bus('changes', max_backlog => 5), evbus.subscribe('changes', 'changes'), evbus.publish_changes('t', 'changes')));
sql('INSERT INTO t SELECT generate_series(1, 5)');
($ret, $out, $err) = $node->psql('postgres', 'INSERT INTO t VALUES (6)');
like($err, qr/bus "changes" is full/, 'changes of a table are refused');
is(sql('SELECT count(*) FROM t'), 5, 'and are not made');

# A rate, by many: never more than it gives.
sql(q(SELECT evbus.create_bus('rate', publish_rate => 1000, publish_burst => 10, rate_policy => 'wait'), evbus.subscribe('rate', 'rate')));
my $before = sql('SELECT extract(epoch FROM clock_timestamp())');
is(clients(q(SELECT evbus.publish('rate', 'a', '1');), 8, 100), 0, 'eight publishers, 800 events at 1000 a second');
cmp_ok(sql("SELECT extract(epoch FROM clock_timestamp()) - $before"), '>=', 0.79, 'take as long as they must');
is(lag('rate'), 800, 'and all are there');

$node->stop;
done_testing();
