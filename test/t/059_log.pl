# The log: evbus.trace() tells the story of one subscription and no other, and ends; what would be said again and again is said once.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('log', conf => "evbus.upkeep_interval = '1h'\nevbus.max_subscriptions = 3\n");
sub sql { my ($q) = @_; return $node->safe_psql('postgres', $q); }
my $at = 0;
# Lines of a trace since the last call, without ids and times.
sub story
{
	my $log = slurp_file($node->logfile, $at);
	$at += length($log);
	my @lines = $log =~ /LOG:  evbus trace of subscription (.*)/g;
	foreach (@lines)
	{
		s/ in database "postgres"// or die "no database: $_";
		s/(event|letter) [0-9]+/$1 N/g;
		s/[0-9.]+ ms/T ms/g;
	}
	return @lines;
}
# What it becomes, once it has so many lines.
sub becomes
{
	my ($wanted, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @lines;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
	until (@lines >= @$wanted || time > $deadline) { push @lines, story(); select undef, undef, undef, 0.05; }
	is_deeply(\@lines, $wanted, $what) or diag join("\n", @lines);
	return;
}

sql(<<'SQL');
CREATE FUNCTION work(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$ BEGIN IF e.payload->>'secret' = 'bad' THEN RAISE 'no such customer' USING ERRCODE = 'P0001'; END IF; END $$;
CREATE FUNCTION batch(e evbus.event[]) RETURNS void LANGUAGE plpgsql AS $$ BEGIN END $$;
SELECT evbus.create_bus('b');
SELECT evbus.subscribe('b', 'the "worker"', handler => 'work(evbus.event)', types => '{w.*}', max_attempts => 2, backoff_initial => '10 ms', filter => '$.secret != "kept back"'),
	evbus.subscribe('b', 'other', handler => 'work(evbus.event)', types => '{w.*}', max_attempts => 1), evbus.subscribe('b', 'client', types => '{c.*}');
SQL
is(sql(q(SELECT evbus.trace('the "worker"', '1 hour') > now() + interval '59 minutes'; SELECT trace_until > now() + interval '59 minutes' FROM evbus.subscription_lag WHERE subscription = 'the "worker"')), "t\nt", 'a trace begins, and says when it ends');
like(slurp_file($node->logfile), qr/LOG:  evbus traces subscription "the "worker"" until 2/, 'which the log tells as well');
story();

sql(q(SELECT evbus.publish('b', 'w.a', '{"secret": "good"}', key => 'secret')));
my $who = 'given to handler public.work, type "w.a", position';
becomes([ qq("the "worker"", event N: $who 1, attempt 1), q("the "worker"", event N: handled in T ms) ], 'what goes well is given to the handler, and handled');
sql(q(SELECT evbus.publish('b', 'w.a', '{"secret": "bad"}')));
becomes([ qq("the "worker"", event N: $who 2, attempt 1), q("the "worker"", event N: failed with P0001, no such customer; to be delivered again in T ms),
	qq("the "worker"", event N: $who 2, attempt 2), q("the "worker"", event N: is dead letter N after 2 attempts (max_attempts): P0001, no such customer) ], 'what fails has its reason and its next attempt, and at last its dead letter');
sql(q(SELECT evbus.publish('b', 'w.a', '{"secret": "kept back"}')));
becomes([ q("the "worker"", position 3: kept back by the filter) ], 'what the filter keeps back');

sql(q(SELECT evbus.trace('client'), evbus.publish('b', 'c.a', '{"secret": 1}'), evbus.publish('b', 'c.a', '{"secret": 2}')));
is(sql(q(SELECT count(*) FROM evbus.receive('client', 2, wait => '10 seconds'))), 2, 'a client receives');
becomes([ map { qq("client", event N: received, type "c.a", position $_, attempt 1) } 4, 5 ], 'which is told');
sql(q(SELECT evbus.seek('client', '4')));
sql(q(WITH r AS MATERIALIZED (SELECT array_agg(receipt ORDER BY event_id) AS r FROM evbus.receive('client', 2)) SELECT evbus.ack(r[1:1]), evbus.release(r[2:2]) FROM r));
becomes([ (map { qq("client", event N: received, type "c.a", position $_, attempt 1) } 4, 5), q("client", event N: acked), q("client", event N: released) ], 'and what becomes of it');
unlike(slurp_file($node->logfile), qr/evbus trace.*secret/, 'neither payloads nor keys');

# It ends.
is(sql(q(SELECT evbus.trace('the "worker"', '0') IS NULL, evbus.trace('client', '0') IS NULL; SELECT count(trace_until) FROM evbus.subscription_lag)), "t|t\n0", 'it can be ended');
sql(q(SELECT evbus.trace('the "worker"', '1 millisecond')));
select undef, undef, undef, 0.01;
is(sql(q(SELECT count(trace_until) FROM evbus.subscription_lag)), 0, 'and ends by itself');
sql(q(SELECT evbus.publish('b', 'w.a', '{}')));
answers($node, 'postgres', q(SELECT sum(lag) FROM evbus.subscription_lag WHERE subscription <> 'client'), 0, 'events are handled');
is_deeply([ story() ], [], 'and nobody tells');

# It begins at once, whatever becomes of the transaction; a subscription that comes after it in the same slot is not traced.
sql(q(BEGIN; SELECT evbus.trace('client'); ROLLBACK));
is(sql(q(SELECT count(trace_until) FROM evbus.subscription_lag)), 1, 'a rollback does not end it');
sql(q(SELECT evbus.unsubscribe('client')));
sql(q(SELECT evbus.subscribe('b', 'next', types => '{c.*}')));
is(sql(q(SELECT count(trace_until) FROM evbus.subscription_lag)), 0, 'it ends with its subscription');
sql(q(SELECT evbus.unsubscribe('next')));
my ($ret, $out, $err) = $node->psql('postgres', q(BEGIN; SELECT evbus.subscribe('b', 'young', types => '{x}'); SELECT evbus.trace('young')));
like($err, qr/ERROR:  subscription "young" is not committed yet/, 'what is not committed cannot be traced');

# No more lines than somebody can read.
sql(q(SELECT evbus.subscribe('b', 'many', types => '{m}', handler => 'batch(evbus.event[])', batch_size => 1000)));
sql(q(SELECT evbus.trace('many')));
story();
sql(q(SELECT count(*) FROM evbus.publish_batch('b', '{m}', array_fill('1'::jsonb, ARRAY[3000]))));
answers($node, 'postgres', q(SELECT lag FROM evbus.subscription_lag WHERE subscription = 'many'), 0, 'very many events are handled');
my $n = story();
cmp_ok($n, '>=', 1000, 'of very many events some lines are written');
cmp_ok($n, '<', 4000, 'and the others are left out');
# Another worker may get the next one: it has left out nothing.
my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
until (slurp_file($node->logfile) =~ /DETAIL:  Before it [0-9]+ lines of this process were left out/ || time > $deadline)
{
	sql(q(SELECT evbus.publish('b', 'm', '1')));
}
cmp_ok(time, '<=', $deadline, 'which the next line tells');

# ---------------------------------------------------------- said once, and not each time

# A leaf that cannot go.
$node->safe_psql('postgres', q(SELECT evbus.create_bus('old', retention => '1 hour'); SELECT evbus.publish('old', 'a', '1')));
my $lock = $node->background_psql('postgres', on_error_die => 1);
sql(q(CREATE TABLE evbus.event_c2_old PARTITION OF evbus.event_c2 FOR VALUES FROM (1) TO (2)));
$lock->query_safe(q(BEGIN; LOCK TABLE evbus.event_c2_old IN ACCESS SHARE MODE));
sql(q(ALTER SYSTEM SET evbus.upkeep_interval = '200ms'; SELECT pg_reload_conf()));
$node->wait_for_log(qr/evbus could not drop leaf "event_c2_old" yet: it is in use/);
sql('CALL evbus.maintain()') foreach 1 .. 2;
select undef, undef, undef, 2;
my @said = slurp_file($node->logfile) =~ /(could not drop leaf "event_c2_old" yet)/g;
cmp_ok(scalar @said, '<=', 3, 'that a leaf is in use is said once by the maintainer, and by who asks by hand') or diag scalar @said;
$lock->query_safe('COMMIT');
$lock->quit;

# Delayed events that cannot be published.
sql(q(SELECT count(evbus.publish('b', 'w.a', to_jsonb(i), delay => '2 seconds')) FROM generate_series(1, 30) AS i));
sql(q(UPDATE evbus.scheduled SET payload = '\x7f00'));
answers($node, 'postgres', q(SELECT count(*) FROM evbus.scheduled WHERE due_at = 'infinity'), 30, 'they are all set aside');
@said = slurp_file($node->logfile) =~ /(cannot be published and is set aside)/g;
is(scalar @said, 1, 'which is said once');

$node->stop;
done_testing();
