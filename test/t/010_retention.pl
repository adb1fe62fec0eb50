# Leaves: made ahead, dropped at retention once everybody is through with them, and positions go on as if nothing had been dropped.
#
# Retention follows the clock of the event ids, which at start is raised above the newest id stored.  So the test makes
# time pass by storing an event of the future and restarting: nobody has to wait for minutes.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('retention', conf => "evbus.upkeep_interval = '200ms'\nmax_prepared_transactions = 2\nevbus.dead_letter_retention = '1d'\n");
$node->safe_psql('postgres', <<'SQL');
SELECT evbus.create_bus('short', retention => '1 minute', partition_interval => '1 minute');
SELECT evbus.create_bus('long', retention => '1 year', partition_interval => '1 minute');
SELECT evbus.create_bus('forever', retention => '36500 days', partition_interval => '1 minute');
SELECT evbus.subscribe('short', 'reader');
SELECT evbus.subscribe('short', 'sleeper', types => '{wanted}');
SELECT evbus.subscribe('long', 'witness');
SQL

# Leaves of the log below the classes, with their bounds in event ids.
my $leaves = 'SELECT count(*) FROM pg_partition_tree(\'evbus.event_log\') WHERE isleaf';
cmp_ok($node->safe_psql('postgres', $leaves), '>', 2, 'leaves are made ahead');
my $ahead = $node->safe_psql('postgres', <<'SQL');
SELECT max(substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''?(\d+)')::bigint) > evbus._time_event(clock_timestamp() + interval '1 minute')
FROM pg_partition_tree('evbus.event_log') JOIN pg_class c ON c.oid = relid WHERE isleaf
SQL
is($ahead, 't', 'at least a minute ahead of the clock');

$node->safe_psql('postgres', q(SELECT evbus.publish('short', 'old', to_jsonb(i)) FROM generate_series(1, 10) AS i));
$node->safe_psql('postgres', q(SELECT evbus.publish('long', 'old', to_jsonb(i)), evbus.publish('forever', 'old', to_jsonb(i)) FROM generate_series(1, 10) AS i));
my @old = receive_all($node, 'postgres', 'reader', 10);
is(scalar(@old), 10, 'the old events are received');
my $last = (split / /, $old[-1])[0];
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.receive('sleeper', 100))), '0', 'for the other subscription there was nothing');
$node->safe_psql('postgres', q(SELECT evbus.publish('short', 'failing', '1') > 0));
is($node->safe_psql('postgres', q(SELECT evbus.reject(ARRAY(SELECT receipt FROM evbus.receive('reader', wait => '10 seconds'))))), '1', 'one more becomes a dead letter');

# Lets the id clock jump by storing a copy of an event with an id in the newest leaf.
sub later
{
	my ($bus, $by) = @_;
	$node->safe_psql('postgres', 'CALL evbus.maintain()');
	$node->safe_psql('postgres', <<~"SQL");
		INSERT INTO evbus.event_log
		SELECT evbus._time_event(evbus._event_time(max(event_id)) + interval '$by'), storage_class_id, bus_id, 'time.passes', NULL, NULL, (array_agg(payload))[1]
		FROM evbus.event_log JOIN evbus.bus USING (bus_id, storage_class_id) WHERE bus = '$bus' GROUP BY storage_class_id, bus_id
		SQL
	$node->restart('immediate');
	$node->poll_query_until('postgres', 'SELECT ready FROM evbus._status()');
}

my $rounds = 0;
while ($rounds < 6 && $node->safe_psql('postgres', "SELECT evbus._event_time(max(event_id)) < clock_timestamp() + interval '3 minutes' FROM evbus.event_log") eq 't')
{
	later('long', '1 minute');
	$rounds++;
}
my $new = $node->safe_psql('postgres', q(SELECT evbus.publish('short', 'new', '1')));
is($node->safe_psql('postgres', "SELECT evbus._event_time($new) > clock_timestamp() + interval '2 minutes'"), 't', 'the clock of the ids has passed the retention');

# What was looked at and not wanted is looked at again after a crash.
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.receive('sleeper', 100))), '0', 'still there is nothing for the other subscription');
$node->safe_psql('postgres', 'CALL evbus.maintain()');
answers($node, 'postgres', q(SELECT count(*) FROM evbus.history WHERE bus = 'short' AND type = 'old'), '0', 'events past retention are gone once they were delivered');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.history WHERE bus = 'long' AND type = 'old')), '10', 'those of a bus with longer retention are still there');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.history WHERE bus = 'forever' AND type = 'old')), '10', 'and of one with the longest, which nobody reads');
is($node->safe_psql('postgres', q(SELECT type FROM evbus.dead_letter)), 'failing', 'a dead letter outlives the leaf its event was in');
is($node->safe_psql('postgres', 'SELECT payload FROM evbus.dead_letter'), '1', 'with its own copy of the event');

# Positions go on.
my @new = receive_all($node, 'postgres', 'reader', 1);
is($new[0], $last + 2 . ' new 1', 'the position after dropped leaves is the next one');
is((() = receive_all($node, 'postgres', 'witness', 10)), 10, 'the other bus lost nothing');

# Over one more restart, now that the log before is gone.
$node->restart;
$node->safe_psql('postgres', q(SELECT evbus.publish('short', 'newer', '2')));
@new = receive_all($node, 'postgres', 'reader', 1);
is($new[0], $last + 3 . ' newer 2', 'also after another restart');

# Seeking to the beginning begins with what is left.
$node->safe_psql('postgres', q(SELECT evbus.seek('reader', 'beginning')));
@new = receive_all($node, 'postgres', 'reader', 2);
is_deeply([ map { (split / /)[1] } @new ], [ 'new', 'newer' ], 'the beginning is the oldest event that is left');

# Redrive from the copy.
is($node->safe_psql('postgres', q(SELECT evbus.redrive(subscription => 'reader'))), '1', 'the dead letter can be redriven');
@new = receive_all($node, 'postgres', 'reader', 1);
like($new[0], qr/ failing 1$/, 'and is delivered from its copy');

# An event that a subscription has not seen keeps its leaf.
$node->safe_psql('postgres', q(SELECT evbus.publish('short', 'wanted', '3')));
answers($node, 'postgres', q(SELECT lag > 0 FROM evbus.subscription_lag WHERE subscription = 'sleeper'), 't', 'a subscription has not seen an event');
later('long', '1 minute') for 1 .. 4;
$node->safe_psql('postgres', 'CALL evbus.maintain()');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.history WHERE type = 'wanted')), '1', 'an event past retention is kept while a subscription has not seen it');
like((receive_all($node, 'postgres', 'sleeper', 1))[0], qr/ wanted 3$/, 'which then can receive it');

# An open publisher does not lose its leaf.
my $open = $node->background_psql('postgres');
$open->query_safe('BEGIN');
$open->query_safe(q(SELECT evbus.publish('short', 'open', '4')));
$node->safe_psql('postgres', q(SELECT evbus.alter_bus('short', retention => '2 minutes')));
$node->safe_psql('postgres', 'CALL evbus.maintain()');
$open->query_safe('COMMIT');
$open->quit;
like((receive_all($node, 'postgres', 'reader', 2))[-1], qr/ open 4$/, 'a publisher that was open while settings changed and leaves were kept up is received');

# Nor does a prepared one, not even if the maintainer waits for just its lock when it is committed: what then becomes
# visible has no position yet, so nobody can have had it.
$node->safe_psql('postgres', q(BEGIN; SELECT evbus.publish('short', 'prepared', '5'); PREPARE TRANSACTION 'old'));
later('long', '1 minute') for 1 .. 5;
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.receive('sleeper', 100))), '0', 'nobody needs an older event');
answers($node, 'postgres', 'SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = (SELECT maintainer_pid FROM evbus._status())', '1', 'the maintainer waits for its lock');
$node->safe_psql('postgres', q(COMMIT PREPARED 'old'));
$node->safe_psql('postgres', 'CALL evbus.maintain()') for 1 .. 2;
like((receive_all($node, 'postgres', 'reader', 1))[-1], qr/ prepared 5$/, 'what was prepared long ago and committed while the maintainer waited for its leaf is received');

# A bus that is quiet for so long that even the record of its positions is dropped.
$node->safe_psql('postgres', 'CREATE DATABASE two');
$node->safe_psql('two', <<'SQL');
CREATE EXTENSION evbus;
SELECT evbus.create_bus('quiet', retention => '1 minute', partition_interval => '1 day');
SELECT evbus.create_bus('traffic', retention => '1 minute', partition_interval => '1 day');
SELECT evbus.subscribe('quiet', 'reader');
SELECT evbus.publish('quiet', 'old', '1');
SELECT evbus.publish('quiet', 'old', '2');
SELECT evbus.subscribe('traffic', 'follower');
SELECT evbus.subscribe('traffic', 'keeper');	-- so that nothing goes while the other one moves
SELECT evbus.publish('traffic', 'a', '1');
SQL
@old = receive_all($node, 'two', 'reader', 2);
is_deeply(\@old, [ '1 old 1', '2 old 2' ], 'the first positions of a bus are 1 and 2');
$node->safe_psql('two', <<'SQL');
SELECT evbus.create_bus('refused', retention => '1 minute', partition_interval => '1 day');
SELECT evbus.subscribe('refused', 'refuser');
SELECT evbus.publish('refused', 'bad', '1');
SQL
is($node->safe_psql('two', q(SELECT evbus.reject(ARRAY(SELECT receipt FROM evbus.receive('refuser', wait => '10 seconds'))))), '1', 'a dead letter is made');
answers($node, 'two', q(SELECT (SELECT count(*) FROM evbus.dead_letter) || ' ' || (SELECT count(*) FROM evbus.dead_letter_count)), '1 1', 'and counted');
foreach my $jump (1 .. 4)
{
	# An event at the end of the newest leaf there is: two days and more go by.
	$node->safe_psql('two', 'CALL evbus.maintain()');
	$node->safe_psql('two', <<'SQL');
INSERT INTO evbus.event_log
SELECT evbus._time_event(evbus._event_time((SELECT max(substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''?(\d+)')::bigint)
											FROM pg_partition_tree(('evbus.event_c' || storage_class_id)::regclass) JOIN pg_class c ON c.oid = relid WHERE isleaf)) - interval '1 minute'),
	storage_class_id, bus_id, 'time.passes', NULL, NULL, (SELECT payload FROM evbus.event_log ORDER BY event_id DESC LIMIT 1)
FROM evbus.bus WHERE bus = 'traffic'
SQL
	$node->restart('immediate');
	ok($node->poll_query_until('two', q(SELECT ready FROM evbus._status())), "days go by: jump $jump");
	# So far ahead of the leaves there are: a publisher waits until they are made.
	is($node->safe_psql('two', q(SELECT evbus.publish('traffic', 'a', '1') > 0)), 't', 'publishing goes on');
	# A session that reads in a newer leaf of ticks, and then goes back.
	is($node->safe_psql('two', <<'SQL'), "2|time.passes\n1|a", 'there and back over days') if $jump == 1;
SELECT evbus.seek('follower', '2') \g /dev/null
SELECT position, type FROM evbus.receive('follower', wait => '10 seconds');
SELECT evbus.seek('follower', '1') \g /dev/null
SELECT position, type FROM evbus.receive('follower', wait => '10 seconds');
SELECT evbus.unsubscribe(s) FROM unnest('{follower,keeper}'::text[]) s \g /dev/null
SQL
	$node->safe_psql('two', 'CALL evbus.maintain()');
}
answers($node, 'two', q(SELECT (SELECT count(*) FROM evbus.dead_letter) || ' ' || (SELECT count(*) FROM evbus.dead_letter_trend)), '0 0', 'dead letters past their retention are dropped, and their counts with them');
answers($node, 'two', q(SELECT count(*) FROM evbus.tick t JOIN evbus.bus b USING (bus_id) WHERE b.bus = 'quiet'), '0', 'its events and the record of their positions are dropped');
$node->restart('immediate');
$node->safe_psql('two', q(SELECT evbus.publish('quiet', 'new', '3')));
is((receive_all($node, 'two', 'reader', 1))[0], '3 new 3', 'and still the next position is the next one');

$node->stop;
done_testing();
