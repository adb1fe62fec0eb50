# Upkeep that cannot be stopped: leaves of a month and of an hour, a leaf that lacks when somebody publishes, locks that are
# held, a leaf that cannot be dropped; and retention by time of a bus with drop_unconsumed.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $hours = 0;

sub hours_later
{
	my ($n) = @_;
	$hours += $n;
	return move_clock($hours * 3600);
}

my $node = new_node('upkeep', clock => 1, conf => <<'CONF');
evbus.upkeep_interval = '200ms'
evbus.late_after = '10s'
evbus.dead_letter_retention = '1d'
autovacuum = off
fsync = off
evbus.ring_size = '1MB'
CONF
sub sql { my ($q) = @_; return $node->safe_psql('postgres', $q); }
sub class { my ($bus) = @_; return sql("SELECT storage_class_id FROM evbus.bus WHERE bus = '$bus'"); }
sub leaf_of_now { my ($class) = @_; return sql("SELECT leaf FROM evbus.leaf_list WHERE storage_class_id = $class AND clock_timestamp() >= from_time AND clock_timestamp() < to_time"); }

# Stops the maintainer while it has nothing to do, so that it holds no lock.
sub stopped
{
	my $pid = sql('SELECT maintainer_pid FROM evbus._status()');
	sql(q(ALTER SYSTEM SET evbus.upkeep_interval = '1h'));
	sql('SELECT pg_reload_conf()');
	$node->poll_query_until('postgres', "SELECT state = 'idle' FROM pg_stat_activity WHERE pid = $pid");
	kill 'STOP', $pid;
	return $pid;
}

sub continued
{
	my ($pid) = @_;
	kill 'CONT', $pid;
	sql('ALTER SYSTEM RESET evbus.upkeep_interval');
	sql('SELECT pg_reload_conf()');
	return;
}

# -------------------------------------------------- leaves of a month, and of an hour for a month

sql(q(SELECT evbus.create_bus('months', retention => '1 year', partition_interval => '1 month'),
	evbus.create_bus('hours', retention => '30 days', partition_interval => '1 hour'),
	evbus.subscribe('months', 'of months'), evbus.subscribe('hours', 'of hours')));
my ($months, $of_hours) = (class('months'), class('hours'));
is(sql("SELECT max(to_time) > now() + interval '60 days' FROM evbus.leaf_list WHERE storage_class_id = $months"), 't', 'leaves of a month are made two months ahead');
foreach my $day (0 .. 31)
{
	my $session = $node->background_psql('postgres');
	foreach my $hour ($day * 24 + 1 .. $day * 24 + 24)
	{
		$session->query_safe("SELECT evbus.publish('hours', 'a', '$hour')" . ($hour % 24 == 0 ? ", evbus.publish('months', 'a', '$hour')" : ''));
		hours_later(1);
	}
	$session->quit;
}
my @got = receive_all($node, 'postgres', 'of hours', 32 * 24);
is_deeply([ map { (split / /)[2] } @got ], [ 1 .. 32 * 24 ], 'an event an hour for a month and more, each received in its order');
is(scalar(receive_all($node, 'postgres', 'of months', 32)), 32, 'as are those of the other bus');
sql('CALL evbus.maintain()');
answers($node, 'postgres', "SELECT count(*) BETWEEN 719 AND 725 FROM evbus.leaf_list WHERE storage_class_id = $of_hours", 't', 'what is left are the hours of 30 days');
is(sql(q(SELECT min(published_at) > now() - interval '30 days 2 hours' AND count(*) BETWEEN 715 AND 722 FROM evbus.history WHERE bus = 'hours')), 't', 'with their events');
is(sql(q(SELECT count(*) FROM evbus.history WHERE bus = 'months')), '32', 'the other bus has all of them');
is(sql("SELECT count(*) FROM evbus.leaf_list WHERE storage_class_id = $months"), '4', 'in leaves of months: three of now and to come, and one before or after');
is(sql(q(SELECT count(*) FROM evbus.history_page('hours', "limit" => 50) WHERE payload::integer > 32 * 24 - 50)), '50', 'a page of the newest is as it should be');
is(sql("SELECT count(*) FROM (SELECT from_time, lag(to_time) OVER (ORDER BY from_time) AS before FROM evbus.leaf_list WHERE storage_class_id = $of_hours) l WHERE from_time <> before"), '0', 'no hour lacks');
answers($node, 'postgres', 'SELECT count(*) FROM evbus.stat_upkeep WHERE last_error_at > last_success', '0', 'and upkeep is well');

# ------------------------------------------------------- a leaf that lacks when somebody publishes

my $stopped = stopped();
sql("DROP TABLE evbus." . leaf_of_now($of_hours));
my $log = -s $node->logfile;
like(sql(q(SELECT evbus.publish('hours', 'b', '1'))), qr/^\d+$/, 'a leaf is gone and the maintainer stands still: publish makes it');
$node->wait_for_log(qr/evbus made a leaf of "evbus.event_c$of_hours" while publishing/, $log);
like(sql(q(SELECT evbus.publish('hours', 'b', '2'))), qr/^\d+$/, 'and who comes next finds it');
sql("DROP TABLE evbus." . leaf_of_now($of_hours) . ", " . join(', ', map { "evbus.$_" } split /\n/, sql("SELECT relname FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = 'evbus.dead_letter_log'::regclass")));
sql(q(BEGIN; SELECT evbus.publish('hours', 'b', '3'); ROLLBACK));
is(leaf_of_now($of_hours), '', 'made by a transaction that is rolled back it goes again');
my @both = map { $node->background_psql('postgres') } 1 .. 2;
$_->query_safe('BEGIN') foreach @both;
$both[0]->query_safe(q(SELECT evbus.publish('hours', 'b', '4')));
$both[1]->query_until(qr/begun/, "\\echo begun\nSELECT evbus.publish('hours', 'b', '5');\nCOMMIT;\n");
$both[0]->query_safe('COMMIT');
$both[1]->query_safe('SELECT 1');
$_->quit foreach @both;
is(sql(q(SELECT string_agg(payload::text, ' ' ORDER BY payload::text) FROM evbus.history WHERE type = 'b')), '4 5', 'two who lack the same leaf: one makes it, the other waits for that');
continued($stopped);
sql("DROP TABLE evbus." . leaf_of_now($of_hours));
$log = -s $node->logfile;
like(sql(q(SELECT evbus.publish('hours', 'b', '6'))), qr/^\d+$/, 'with a maintainer that runs it is made as well');
unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile, $log), qr/while publishing/, 'by the maintainer');
sql(q(SELECT evbus.seek('of hours', 'now')));
ok($node->poll_query_until('postgres', q(SELECT bool_and(made_until > now() + interval '1 hour') FROM evbus.stat_upkeep)), 'everything is made ahead again');

# ------------------------------------------------------------------- locks that are held

sql(q(SELECT evbus.create_bus('busy', retention => '1 hour', partition_interval => '1 hour')));
my $busy = class('busy');
my $holder = $node->background_psql('postgres');
$holder->query_safe('BEGIN');
$holder->query_safe(q(SELECT evbus.create_bus('also busy', retention => '1 hour', partition_interval => '1 hour')));
hours_later(1);
answers($node, 'postgres', "SELECT max(to_time) > clock_timestamp() + interval '2 hours' FROM evbus.leaf_list WHERE storage_class_id = $busy", 't', 'an open transaction that has made a bus does not keep leaves of its class from being made');
$holder->query_safe('ROLLBACK');

$holder->query_safe('BEGIN');
$holder->query_safe("LOCK TABLE evbus.event_c$busy IN ACCESS SHARE MODE");
my $pid = $holder->query_safe('SELECT pg_backend_pid()');
hours_later(4);
answers($node, 'postgres', "SELECT held_back_by FROM evbus.stat_upkeep WHERE storage_class_id = $busy", "process $pid holds a lock on it", 'who reads old leaves keeps them, and is named');
my $start = time;
sql(q(SELECT evbus.publish('busy', 'x', '1')));
is(sql(q(SELECT count(*) FROM evbus.history WHERE bus = 'busy' AND type = 'x')), '1', 'publishers and readers go on meanwhile');
cmp_ok(time - $start, '<=', 5, 'and wait for no more than upkeep does');
is(sql("SELECT count(*) > 0 FROM evbus.leaf_list WHERE storage_class_id = $busy AND to_time > clock_timestamp() + interval '1 hour'"), 't', 'leaves ahead are made meanwhile');
$holder->query_safe('COMMIT');
$holder->quit;
answers($node, 'postgres', "SELECT count(*) FROM evbus.leaf_list WHERE storage_class_id = $busy AND to_time < clock_timestamp() - interval '1 hour'", '0', 'then they go');
answers($node, 'postgres', "SELECT held_back_by IS NULL FROM evbus.stat_upkeep WHERE storage_class_id = $busy", 't', 'and the view is clear');

# --------------------------------------------------------------- a leaf that cannot be dropped

sql(q(SELECT evbus.create_bus('stuck', retention => '1 hour', partition_interval => '1 hour', max_payload_bytes => 1000), evbus.alter_bus('stuck', retention => '2 hours')));
my $stuck = class('stuck');
my $first = leaf_of_now($stuck);
sql("CREATE VIEW mine AS SELECT * FROM evbus.$first");
sql(q(SELECT evbus.publish('stuck', 'x', '1')));
hours_later(5);
sql(q(SELECT evbus.publish('stuck', 'x', '2')));
hours_later(5);
answers($node, 'postgres', "SELECT string_agg(leaf, ' ') FROM evbus.leaf_list WHERE storage_class_id = $stuck AND to_time < clock_timestamp() - interval '2 hours'", $first, 'a leaf that somebody made a view of stays, those after it go');
is(sql("SELECT last_error || ' ' || held_back_by FROM evbus.stat_upkeep WHERE storage_class_id = $stuck"), "cannot drop table evbus.$first because other objects depend on it cannot drop table evbus.$first because other objects depend on it", 'the view has the error');
answers($node, 'postgres', q(SELECT count(*) FROM evbus.stat_upkeep WHERE last_error_at > last_success), '1', 'of that class alone');
sql('DROP VIEW mine');
answers($node, 'postgres', "SELECT count(*) FROM evbus.leaf_list WHERE leaf = '$first'", '0', 'without the view it goes');
answers($node, 'postgres', "SELECT last_success > last_error_at AND held_back_by IS NULL FROM evbus.stat_upkeep WHERE storage_class_id = $stuck", 't', 'and the view says that this is over');

# ---------------------------------------------------------- retention by time, unconsumed

sql(q(SELECT evbus.create_bus('lossy', retention => '2 hours', partition_interval => '1 hour', retention_policy => 'drop_unconsumed'),
	evbus.subscribe('lossy', 'never'), evbus.subscribe('lossy', 'some'), evbus.subscribe('lossy', 'tries')));
my $lossy = class('lossy');
sql(q(SELECT count(evbus.publish('lossy', 'old', to_jsonb(i))) FROM generate_series(1, 100) i));
is(scalar(receive_all($node, 'postgres', 'some', 40)), 40, 'one subscription has had 40 of 100 events');
is(sql(q(SELECT evbus.nack(ARRAY(SELECT receipt FROM evbus.receive('tries', 10, wait => '10 seconds')), delay => '8 hours'))), '10', 'another has tried 10 in vain');
is(sql(q(SELECT evbus.ack(ARRAY(SELECT receipt FROM evbus.receive('some', 10, wait => '10 seconds') WHERE position % 2 = 0)))), '5', 'and the first five more, out of order');
my $old_leaf = leaf_of_now($lossy);
hours_later(6);
answers($node, 'postgres', q(SELECT count(*) FROM evbus.history WHERE bus = 'lossy'), '0', 'past their retention events go although nobody has consumed them');
is(sql(q(SELECT string_agg(subscription || ' ' || events || ' ' || cause || ' ' || leaf, ', ' ORDER BY subscription) FROM evbus.retention_audit WHERE bus = 'lossy')),
	"never 100 retention $old_leaf, some 55 retention $old_leaf, tries 90 retention $old_leaf", 'it is recorded how many each had not settled');
is(sql(q(SELECT string_agg(subscription || ' ' || dropped, ', ' ORDER BY subscription) FROM evbus.subscription_lag WHERE bus = 'lossy')), 'never 100, some 55, tries 90', 'and counted in the lag view');
# What is still in memory would be received all the same.
sql(q(DO $$BEGIN FOR i IN 1 .. 40 LOOP PERFORM evbus.publish('hours', 'fill', to_jsonb(repeat('x', 500))) FROM generate_series(1, 100); COMMIT; END LOOP; END$$));
sql(q(SELECT evbus.publish('lossy', 'new', to_jsonb(i)) FROM generate_series(1, 3) i));
is_deeply([ receive_all($node, 'postgres', 'never', 3) ], [ map { 100 + $_ . " new $_" } 1 .. 3 ], 'a reader passes over what is gone');
hours_later(3);
answers($node, 'postgres', q(SELECT count(*) FROM evbus.receive('tries', 100, wait => '1 second') WHERE type = 'old'), '10', 'retries have their own copy, and are tried when they are due');

# ------------------------------------------------------------------- lost, and not expired

sql(q(SELECT evbus.create_bus('whole'), evbus.subscribe('whole', 'reader')));
sql(q(SELECT evbus.pause_bus('whole')));
my $id = sql(q(SELECT evbus.publish('whole', 'x', '1')));
answers($node, 'postgres', q(SELECT lag FROM evbus.subscription_lag WHERE subscription = 'reader'), '1', 'an event has its position');
sql("DELETE FROM evbus.event_log WHERE event_id = $id");
$node->restart;
sql(q(SELECT evbus.resume_bus('whole')));
like(($node->psql('postgres', q(SELECT * FROM evbus.receive('reader', wait => '10 seconds'))))[2], qr/event $id of bus "whole" is missing from the log/, 'a row that lacks in a leaf that is there is an error, however many storage classes there are');

$node->stop;
done_testing();
