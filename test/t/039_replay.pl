# Replays over crashes, kills and restarts, in a dump, beside retention, and with NOTIFY.
#
# A replay's progress is in the ledger, as anybody's: each of its events takes effect once in a handler, whatever ends on
# the way, it goes on by itself, and the live flow beside it is delivered once and in order.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = new_node('replay', conf => <<'CONF');
restart_after_crash = on
evbus.upkeep_interval = '200ms'
evbus.ledger_turn_size = '64kB'
max_prepared_transactions = 2
CONF

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

# The state of the newest replay.
my $newest = q(SELECT state || ' ' || done || ' of ' || total FROM evbus.replay_list ORDER BY replay_id DESC LIMIT 1);

sub ready
{
	return $node->poll_query_until('postgres', 'SELECT ready FROM evbus._status()');
}

sub publish
{
	my ($bus, $type, $n) = @_;
	return sql("SELECT count(*) FROM evbus.publish_batch('$bus', '{$type}', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, $n) i), keys => ARRAY(SELECT 'k' || i % 7 FROM generate_series(1, $n) i))");
}

sql(<<'SQL');
SELECT evbus.create_bus('orders');
CREATE TABLE effect (n bigint GENERATED ALWAYS AS IDENTITY, subscription text, event_id bigint, position bigint, key text, attempt integer, replayed boolean);
-- Now and then one fails at first, so there are retries, too; a batch takes a while.
CREATE FUNCTION plain(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO effect (subscription, event_id, position, key, attempt, replayed) VALUES ('plain', e.event_id, e.position, e.key, e.attempt, e.replayed);
	PERFORM pg_sleep(0.002);
	IF e.position % 250 = 17 AND e.attempt = 1 AND e.replayed THEN
		RAISE 'bad luck';
	END IF;
END $$;
CREATE FUNCTION ordered(events evbus.event[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO effect (subscription, event_id, position, key, attempt, replayed)
		SELECT 'ordered', event_id, position, key, attempt, replayed FROM unnest(events) WITH ORDINALITY ORDER BY ordinality;
	PERFORM pg_sleep(0.1);
	IF EXISTS (SELECT FROM unnest(events) WHERE position % 250 = 17 AND attempt = 1 AND replayed) THEN
		RAISE 'bad luck';
	END IF;
END $$;
SQL
publish('orders', 'old', 2000);
sql(q(SELECT evbus.subscribe('orders', 'plain', handler => 'plain(evbus.event)', batch_size => 50, backoff_initial => '10 ms', backoff_max => '20 ms')));
sql(q(SELECT evbus.subscribe('orders', 'ordered', handler => 'ordered(evbus.event[])', ordering => 'key', batch_size => 50, backoff_initial => '10 ms', backoff_max => '20 ms')));
sql(q(SELECT evbus.subscribe('orders', 'client')));

# ------------------------------------------------------------ crashes on the way

my $live = 0;
my %replay = map { $_ => sql("SELECT evbus.replay('$_', 'beginning')") } 'plain', 'ordered';
my $client = sql(q(SELECT evbus.replay('client', 'beginning', '201')));
my @acked = receive_all($node, 'postgres', 'client', 100);
# Held when the server crashes.
is(sql(q(SELECT count(*) FROM evbus.receive('client', 50, lease => '1 hour'))), '50', 'a client has half of a replay acked, and some of it in hand');
foreach (['plain', 300, 'crash'], ['plain', 800, 'crash'], ['ordered', 1000, 'kill'], ['ordered', 1300, 'crash'])
{
	my ($subscription, $part, $what) = @$_;
	$node->poll_query_until('postgres', "SELECT done > $part FROM evbus.replay_list WHERE replay_id = $replay{$subscription}");
	$live += publish('orders', 'live', 20);
	is(sql("SELECT state FROM evbus.replay_list WHERE replay_id = $replay{$subscription}"), 'running', "$what, in the middle of a replay: $subscription");
	if ($what eq 'kill')
	{
		sql(q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'evbus handler'));
		next;
	}
	$node->stop('immediate');
	$node->start;
	ready();
}
answers($node, 'postgres', "SELECT string_agg(state || ' ' || done, ', ') FROM evbus.replay_list WHERE replay_id IN ($replay{plain}, $replay{ordered})", 'done 2000, done 2000',
	'after three crashes and a kill they end by themselves');
foreach my $subscription ('plain', 'ordered')
{
	is(sql("SELECT count(*) || ' ' || count(DISTINCT event_id) || ' ' || min(position) || ' ' || max(position) FROM effect WHERE subscription = '$subscription' AND replayed"),
		'2000 2000 1 2000', "each event of the replay took effect once: $subscription");
	answers($node, 'postgres', "SELECT count(*) || ' ' || count(DISTINCT event_id) || ' ' || min(position) FROM effect WHERE subscription = '$subscription' AND NOT replayed",
		"$live $live 2001", "and each live one: $subscription");
}
my $disorder = q(SELECT count(*) FROM (SELECT position, lag(position) OVER (PARTITION BY key, replayed ORDER BY n) AS before FROM effect WHERE subscription = 'ordered') x WHERE position < before);
is(sql($disorder), '0', 'in the order of each key, the replay by itself and the live flow by itself');
is(sql(q(SELECT sum(lag + in_flight + retries) FROM evbus.subscription_lag WHERE subscription <> 'client')), '0', 'nothing is left');
my @rest = receive_all($node, 'postgres', 'client', 100 + $live);
is(join(' ', sort { $a <=> $b } map { (split / /)[0] } @acked, grep { $_ <= 200 } map { (split / /)[0] } @rest), join(' ', 1 .. 200), 'a client is given what it had not acked, and nothing else');
answers($node, 'postgres', "SELECT state FROM evbus.replay_list WHERE replay_id = $client", 'done', 'which ends its replay');
is(sql('SELECT leases_used FROM evbus._status()'), '0', 'no lease is left');

# ------------------------------------------------------------ steps of it

SKIP:
{
	skip 'the library has no debug points', 5 unless points($node);
	point($node, 'replay.found', 'error');
	my ($ret) = $node->psql('postgres', q(SELECT evbus.replay('plain', '1', '101')));
	is($ret, 3, 'an error while a replay is made');
	is(sql('SELECT count(*) FROM evbus.replay'), '0', 'leaves nothing');
	point($node, 'replay.found', 'off');
	my $log = -s $node->logfile;
	point($node, 'replay.ending', 'kill');
	sql(q(SELECT evbus.replay('plain', '1', '101')));
	ok(crashed($node, $log), 'the server crashes just when it has ended');
	ready();
	answers($node, 'postgres', $newest, 'done 100 of 100', 'it ends once more');
	is(sql(q(SELECT count(*) FROM effect WHERE subscription = 'plain' AND replayed)), '2100', 'nothing was done twice');
}

# ------------------------------------------------------------ in a dump

sql(q(SELECT evbus.pause('plain')));
my $paused = sql(q(SELECT evbus.replay('plain', '1', '51')));
my $slow = sql(q(SELECT evbus.replay('client', '1', '101', types => '{old}', rate => 1000)));
is(scalar(receive_all($node, 'postgres', 'client', 30)), 30, 'a part of a replay is done');
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
$node->command_ok([ 'pg_dump', '--format=custom', '-f', $dump, '-d', $node->connstr('postgres') ], 'a dump');
my $copy = new_node('copy', database => undef);
$copy->command_ok([ 'pg_restore', '--exit-on-error', '-d', $copy->connstr('postgres'), $dump ], 'is restored into a new cluster');
$copy->safe_psql('postgres', 'SELECT evbus.take_over()');
$copy->poll_query_until('postgres', 'SELECT ready FROM evbus._status()');
answers($copy, 'postgres', "SELECT string_agg(state || ' ' || done || ' of ' || total || ' ' || coalesce(rate::text, '-'), ', ' ORDER BY replay_id) FROM evbus.replay_list WHERE finished_at IS NULL",
	'paused 0 of 50 -, running 30 of 100 1000', 'with the replays as they were');
is(join(' ', map { (split / /)[0] } receive_all($copy, 'postgres', 'client', 70)), join(' ', 31 .. 100), 'the client is given the rest there');
$copy->safe_psql('postgres', q(SELECT evbus.resume('plain')));
answers($copy, 'postgres', 'SELECT string_agg(state, \' \') FROM evbus.replay_list WHERE replay_id IN (' . "$paused, $slow)", 'done done', 'and both end');
is($copy->safe_psql('postgres', q(SELECT evbus.subscribe('orders', 'another') > 0)), 't', 'ids and slots are not used twice');
$copy->stop('immediate');
sql("SELECT evbus.cancel_replay($paused), evbus.cancel_replay($slow), evbus.resume('plain')");

# ------------------------------------------------------------ NOTIFY

my $listener = $node->background_psql('postgres');
$listener->query_safe('LISTEN evbus_client');
sub heard
{
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
	my $all = '';
	while (time < $deadline)
	{
		$all .= $listener->query('SELECT 1');
		return 1 if $all =~ /notification "evbus_client"/;
		usleep(20_000);
	}
	return 0;
}
is(sql(q(SELECT count(*) FROM evbus.receive('client'))), '0', 'there is nothing for the client');
sql(q(SELECT evbus.replay('client', '1', '3', rate => 1)));
ok(heard(), 'who listens is notified of a replay');
is(scalar(receive_all($node, 'postgres', 'client', 1)), 1, 'and can receive');
# What he heard may still have been of the first one.
my $got = 0;
$got = sql(q(SELECT evbus.ack(ARRAY(SELECT receipt FROM evbus.receive('client', 10))))) while !$got && heard();
is($got, '1', 'and is once more when more of it is due, which then is there');
$listener->quit;
answers($node, 'postgres', $newest, 'done 2 of 2', 'it ends');

# ------------------------------------------------------------ one worker for all

# It does one batch of one replay, however many there are, and then looks for what is new.
my $alone = new_node('alone', conf => "evbus.max_handler_workers = 1\n");
$alone->safe_psql('postgres', <<'SQL');
CREATE TABLE batch (n bigint GENERATED ALWAYS AS IDENTITY, events integer, replayed boolean, published_at timestamptz, began_at timestamptz);
CREATE FUNCTION slow(events evbus.event[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO batch (events, replayed, published_at, began_at) VALUES (cardinality(events), events[1].replayed, events[1].published_at, clock_timestamp());
	PERFORM pg_sleep(0.05) WHERE events[1].replayed;
END $$;
SELECT evbus.create_bus('orders');
SELECT count(*) FROM evbus.publish_batch('orders', '{old}', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 200) i));
SELECT evbus.subscribe('orders', 'slow', handler => 'slow(evbus.event[])', batch_size => 5);
SELECT evbus.replay('slow', 'beginning') FROM generate_series(1, 4);
SQL
$alone->poll_query_until('postgres', 'SELECT count(*) > 0 FROM batch');
$alone->safe_psql('postgres', q(SELECT evbus.publish('orders', 'new', '1'))) for 1 .. 10;
answers($alone, 'postgres', 'SELECT sum(events) FROM batch WHERE NOT replayed', '10', 'new events are handled beside four replays');
cmp_ok($alone->safe_psql('postgres', q(SELECT max((SELECT count(*) FROM batch b WHERE b.replayed AND b.n < a.n AND b.began_at > a.published_at)) FROM batch a WHERE NOT a.replayed)), '<=', 1,
	'no more than one batch of any of them begins before a new event is handled');
answers($alone, 'postgres', q(SELECT string_agg(state || ' ' || done, ' ') FROM evbus.replay_list), 'done 200 done 200 done 200 done 200', 'and all come to their end');
is($alone->safe_psql('postgres', 'SELECT sum(events) FROM batch WHERE replayed'), '800', 'each by itself');
$alone->stop('immediate');

# ------------------------------------------------------------ retention

# As in 010_retention: time passes by an event of the future.
sub later
{
	my ($bus, $by) = @_;
	sql('CALL evbus.maintain()');
	sql(<<~"SQL");
		INSERT INTO evbus.event_log
		SELECT evbus._time_event(evbus._event_time(max(event_id)) + interval '$by'), storage_class_id, bus_id, 'time.passes', NULL, NULL, (array_agg(payload))[1]
		FROM evbus.event_log JOIN evbus.bus USING (bus_id, storage_class_id) WHERE bus = '$bus' GROUP BY storage_class_id, bus_id
		SQL
	$node->restart('immediate');
	return ready();
}

sql(<<'SQL');
SELECT evbus.create_bus('short', retention => '1 minute', partition_interval => '1 minute');
SELECT evbus.create_bus('clock', retention => '1 year', partition_interval => '1 minute');
SELECT evbus.subscribe('short', 'reader');
SELECT evbus.publish('clock', 'tick', '1');
SQL
my $left = q(SELECT count(*) FROM evbus.history WHERE bus = 'short' AND type = '%s');
my $before = sql('SELECT clock_timestamp()');
publish('short', 'first', 10);
is(scalar(receive_all($node, 'postgres', 'reader', 10)), 10, 'ten events are consumed');
my $kept = sql(q(SELECT evbus.replay('reader', 'beginning')));
is(scalar(receive_all($node, 'postgres', 'reader', 4)), 4, 'four of them once more');
later('clock', '1 minute') for 1 .. 6;
is(sql("SELECT max(event_id) > evbus._time_event(clock_timestamp() + interval '3 minutes') FROM evbus.event_log"), 't', 'the clock of the ids has passed the retention');
sql('CALL evbus.maintain()');
is(sql(sprintf($left, 'first')), '10', 'a replay keeps what it has not yet read');
is(join(' ', map { (split / /)[0] } receive_all($node, 'postgres', 'reader', 6)), '5 6 7 8 9 10', 'and delivers it');
answers($node, 'postgres', "SELECT state FROM evbus.replay_list WHERE replay_id = $kept", 'done', 'when it has ended');
answers($node, 'postgres', sprintf($left, 'first'), '0', 'retention takes it');
publish('short', 'second', 5);
is(scalar(receive_all($node, 'postgres', 'reader', 5)), 5, 'five more are consumed');

# What is no longer there.
sub refused
{
	my ($ret, $stdout, $stderr) = $node->psql('postgres', $_[0]);
	return $ret == 0 ? '' : $stderr;
}
like(refused(q(SELECT evbus.replay('reader', '3'))), qr/ERROR:  cannot replay bus "short" from 3: the log no longer goes back so far\nDETAIL:  The oldest event it holds has position 11 and was published at 20/, 'a position that is past retention is refused');
like(refused("SELECT evbus.replay('reader', '$before')"), qr/no longer goes back so far\nDETAIL:  The oldest event it holds has position 11 .*\nHINT:  Pass start_from => 'beginning'/, 'so is a time');
is(sql('SELECT count(*) FROM evbus.replay'), '0', 'nothing came of them');
is(sql(q(SELECT evbus.replay('reader', 'beginning') > 0)), 't', 'the beginning is what there is');
is(join(' ', map { (split / /)[0] } receive_all($node, 'postgres', 'reader', 5)), '11 12 13 14 15', 'all of it');

# Retention comes between the call and its commit, which is the more likely the later that is: here over restarts.
answers($node, 'postgres', $newest, 'done 5 of 5', 'it ends');
sql(q(BEGIN; SELECT evbus.replay('reader', 'beginning'); PREPARE TRANSACTION 'late'));
later('clock', '1 minute') for 1 .. 4;
sql('CALL evbus.maintain()');
is(sql(sprintf($left, 'second')), '5', 'what a replay has seen is kept until it commits');
sql(q(COMMIT PREPARED 'late'));
is(join(' ', map { (split / /)[0] } receive_all($node, 'postgres', 'reader', 5)), '11 12 13 14 15', 'and is delivered');
answers($node, 'postgres', $newest, 'done 5 of 5', 'it ends');
answers($node, 'postgres', sprintf($left, 'second'), '0', 'and then retention takes it');
like(refused(q(SELECT evbus.replay('reader', '11'))), qr/DETAIL:  It holds no events at all; the next one gets position 16/, 'where nothing is left that is said');
like(refused(q(SELECT evbus.replay('reader', 'beginning'))), qr/there is nothing to replay/, 'and nothing is replayed');

done_testing();
