# health(): each check says ok until what it looks for is brought about, and then says what and where; told to pg_monitor as well.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('health', clock => 1, conf => <<'CONF');
max_prepared_transactions = 5
evbus.max_leases = 64
evbus.memory_warn = 40
evbus.ring_size = '1MB'
evbus.max_handler_workers = 4
evbus.upkeep_interval = '200ms'
autovacuum = off
CONF
sub sql { my ($q) = @_; return $node->safe_psql('postgres', $q); }
# What a check says: level, subject and reason of each row.
sub says { my ($check) = @_; return qq(SELECT string_agg(concat_ws(' ', level, subject, reason), '; ' ORDER BY subject) FROM evbus.health() WHERE "check" = '$check'); }
sub turns
{
	my ($check, $pattern, $when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
	my $is;
	until (($is = sql(says($check))) =~ /$pattern/ || time > $deadline) { select undef, undef, undef, 0.1; }
	like($is, qr/$pattern/, $when);
	return;
}
# It looks as a member of pg_monitor.
$node->safe_psql('postgres', 'CREATE ROLE watcher LOGIN IN ROLE pg_monitor');

sql(<<'SQL');
CREATE FUNCTION work(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$ BEGIN IF e.payload = '0' THEN RAISE 'no'; END IF; END $$;
CREATE FUNCTION gone(e evbus.event) RETURNS void LANGUAGE sql AS '';
SELECT evbus.create_bus('b'), evbus.create_bus('sick');
SELECT evbus.subscribe('b', 'worker', handler => 'work(evbus.event)', max_attempts => 1), evbus.subscribe('b', 'homeless', handler => 'gone(evbus.event)'), evbus.subscribe('b', 'late'),
	evbus.subscribe('sick', 'breaks', handler => 'work(evbus.event)', breaker_threshold => 0.5, breaker_min => 2);
SQL
answers($node, 'postgres', q(SELECT string_agg(DISTINCT level, ' ') || ' ' || count(*) FROM evbus.health()), 'ok 16', 'all is well at first') or diag sql('SELECT * FROM evbus.health()');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.health()), extra_params => [ '-U', 'watcher' ]), 16, 'pg_monitor may look');

# ------------------------------------------------------------------- subscriptions

sql(q(SELECT count(evbus.publish('b', 'a', CASE WHEN i <= 12 THEN '0' ELSE '1' END::jsonb)) FROM generate_series(1, 20) AS i));
turns('failures', '^warn worker 60 % of its', 'deliveries fail');
turns('dead letters', '^warn worker 12 more', 'dead letters come');
sql(q(SELECT count(evbus.publish('sick', 'a', '0')) FROM generate_series(1, 10)));
turns('circuit breaker', '^critical breaks open since', 'a breaker opens');
sql(q(DROP FUNCTION gone; SELECT evbus.publish('b', 'a', '1')));
turns('paused', '^warn homeless handler public.gone is missing', 'a handler is missing');
is(sql(says('oldest event')) . sql(says('nothing done')), 'okok', 'what nobody has received is not old yet');
pass_time(400);
turns('oldest event', 'warn late its oldest event has waited for 00:0[67]:.*lag 21', 'after some minutes it is');
turns('nothing done', 'critical late 21 positions wait', 'and that nothing is done is worse');
is(sql(q(SELECT level FROM evbus.health('1 second', '2 seconds') WHERE "check" = 'oldest event' AND subject = 'late')), 'critical', 'what is old is to be said');
pass_time(4000);
turns('oldest event', 'critical late its oldest event has waited for 01:00:00 or longer', 'after an hour it is critical, and no more is known');
is(sql(says('dead letters')), 'ok', 'what became dead letters long ago is no news');
sql(q(SELECT evbus.reset_breaker('breaks'); CREATE FUNCTION gone(e evbus.event) RETURNS void LANGUAGE sql AS ''; SELECT evbus.resume('homeless')));
turns('paused', '^ok$', 'what was mended is well again');

# The first event of a bus is as old as it is, and not as the server.
sql(q(SELECT evbus.create_bus('young'), evbus.subscribe('young', 'young'), evbus.publish('young', 'a', '1')));
answers($node, 'postgres', q(SELECT oldest_age < '1 minute' FROM evbus.stat_subscription WHERE subscription = 'young'), 't', 'the first event of a bus is young');
unlike(sql(says('oldest event')) . sql(says('nothing done')), qr/young/, 'and nobody complains');
sql(q(SELECT evbus.pause_bus('young')));
turns('paused', '^warn young the whole bus is paused$', 'a bus that is paused is told');
sql(q(SELECT evbus.drop_bus('young', force => true)));

# ------------------------------------------------------------------------- delayed

sql(q(SELECT evbus.create_bus('full', max_backlog => 1), evbus.subscribe('full', 'sleeper'), evbus.publish('full', 'a', '1'), evbus.publish('full', 'a', '2', delay => '1 second'), evbus.publish('b', 'a', '3', delay => '100 days')));
is(sql(says('delayed events')), 'ok', 'what is not due is not late');
pass_time(300);
turns('delayed events', '^warn full due since .*, and not published$', 'a full bus holds back what is due');
is(sql(q(SELECT hint ~ 'max_backlog' FROM evbus.health() WHERE "check" = 'delayed events')), 't', 'and the hint says what that may be');
sql(q(UPDATE evbus.scheduled SET due_at = 'infinity' WHERE due_at > now() + interval '10 days'));
turns('delayed events', '^critical b 1 set aside.*; warn full', 'what cannot be published is set aside');
sql(q(SELECT evbus.drop_bus('full', force => true), evbus.cancel_scheduled(id) FROM evbus.scheduled_list WHERE due_at = 'infinity'));
turns('delayed events', '^ok$', 'and all is well when it is gone');

# ------------------------------------------------------------------------- memory

my $receipts = sql(q(SELECT count(evbus.publish('b', 'a', '1')) FROM generate_series(1, 50)) . '; ' . q(SELECT count(*) FROM evbus.receive('late', 30, lease => '1 day')));
turns('memory', 'leases.*[0-9]+ % of [0-9]+ leases in use', 'many leases are in use');
my $sequencer = sql('SELECT sequencer_pid FROM evbus._status()');
kill 'STOP', $sequencer;
sql(q(SELECT count(*) FROM evbus.publish_batch('b', '{a}', array_fill(to_jsonb(repeat('x', 300)), ARRAY[100])))) foreach 1 .. 50;
kill 'CONT', $sequencer;
turns('ring overflows', '^warn [0-9]+ transactions found', 'the ring was full');

# --------------------------------------------------------------------- transactions

my $open = $node->background_psql('postgres', on_error_die => 1);
$open->query_safe(q(BEGIN; SELECT evbus.publish('b', 'a', '1')));
sql(q(BEGIN; SELECT evbus.publish('b', 'a', '1'); PREPARE TRANSACTION 'forgotten'));
is(sql(says('open transactions')), 'ok', 'open transactions are nothing bad');
pass_time(600);
turns('open transactions', 'warn a transaction that has published is open since', 'if they do not last for long');
turns('open transactions', 'warn forgotten prepared since', 'prepared ones neither');
$open->query_safe('COMMIT');
$open->quit;
sql(q(COMMIT PREPARED 'forgotten'));
turns('open transactions', '^ok$', 'and when they have ended all is well');

# ------------------------------------------------------------------------ partitions

pass_time(9 * 86400);
turns('retention', '^(warn|critical) events of b, sick what is to go stays since .*late', 'what a subscription keeps beyond its retention');
my $lock = $node->background_psql('postgres', on_error_die => 1);
$lock->query_safe('BEGIN; LOCK TABLE evbus.tick IN SHARE UPDATE EXCLUSIVE MODE');
# An hour before the last one ends, whatever the time of day.
pass_time(sql(q(SELECT extract(epoch FROM made_until - now())::int - 3600 FROM evbus.stat_upkeep WHERE kind = 'positions')));
turns('partitions', 'critical positions made until', 'partitions are not made in time');
$lock->query_safe('COMMIT');
$lock->quit;
turns('partitions', '^ok$', 'and then they are');

# --------------------------------------------------------------------------- workers

my $launcher = sql(q(SELECT pid FROM evbus.stat_worker WHERE kind = 'launcher'));
kill 'STOP', $launcher;
sql('SELECT pg_terminate_backend(sequencer_pid) FROM evbus._status()');
turns('workers', '^critical sequencer or maintainer', 'a worker is missing');
is(sql(q(SELECT "check" FROM evbus.health() LIMIT 1)), 'workers', 'which is what comes first');
kill 'CONT', $launcher;
turns('workers', '^ok$', 'until it is there again');
sql('ALTER SYSTEM SET evbus.max_handler_workers = 40');
$node->stop;
start_moved($node);
turns('worker slots', '^warn max_worker_processes is 24; .* may need 43', 'too few background workers');

$node->stop;
done_testing();
