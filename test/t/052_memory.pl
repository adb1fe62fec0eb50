# How full shared memory is, told before anything is refused: levels in the log and by NOTIFY, each crossing once; marks of what
# was in use at most; and what the processes of evbus say that they do.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

# Of 64 leases clients may have 56: warn is from 40 on, critical from 51; of all 64 from 45 and 58.
my $node = new_node('memory', conf => "evbus.max_leases = 64\nevbus.max_handler_workers = 2\nevbus.max_volatile_buses = 1\nevbus.volatile_ring_size = '64kB'\nevbus.upkeep_interval = '1s'\nevbus.ring_size = '1MB'\nrestart_after_crash = on\n");

sub sql
{
	return $node->safe_psql($_[1] // 'postgres', $_[0]);
}

sub area
{
	my ($what, $area) = @_;
	return sql("SELECT $what FROM evbus.stat_memory WHERE area = '$area'");
}

# How often the log tells that an area is at a level.
sub told
{
	my ($area, $level) = @_;
	return scalar(() = slurp_file($node->logfile) =~ /memory for $area is at level $level,/g);
}

# The maintainer has looked at memory since: it does so each second, and three turns of upkeep take two.
sub looked
{
	my $turns = q(SELECT batches FROM evbus.stat_worker WHERE kind = 'maintainer' AND database = 'postgres');
	my $at = sql($turns);
	return $node->poll_query_until('postgres', "SELECT ($turns) >= $at + 3");
}

# Leases of two subscriptions: neither may have more than half.
sql(q(SELECT evbus.create_bus('b')));
sql(q(SELECT evbus.subscribe('b', 's1'), evbus.subscribe('b', 's2')));
sql(q(SELECT count(*) FROM evbus.publish_batch('b', '{a}', (SELECT array_agg(to_jsonb(i)) FROM generate_series(1, 200) AS i))));
sql(q(CREATE TABLE got (subscription text, receipt text)));

sub take
{
	my ($subscription, $n) = @_;
	sql("INSERT INTO got SELECT '$subscription', receipt FROM evbus.receive('$subscription', $n, lease => '1 hour', wait => '5 seconds')");
	return sql("SELECT count(*) FROM got");
}

sub ack
{
	my ($n) = @_;
	return sql("WITH r AS (DELETE FROM got WHERE receipt IN (SELECT receipt FROM got LIMIT $n) RETURNING receipt) SELECT evbus.ack(array_agg(receipt)) FROM r");
}

my $listener = $node->background_psql('postgres', on_error_die => 1);
$listener->set_query_timer_restart();
$listener->query_safe('LISTEN evbus_alert');

# What came on the channel since it was last asked, of one area: "level used limit" each.
sub heard
{
	my ($area, $of) = @_;
	my @alerts = map { /payload "(.*)" received/ ? decode_json($1) : () } split /\n/, $listener->query('SELECT 1');
	return join ', ', map { "$_->{level} $_->{used} $_->{limit}" }
		grep { $_->{check} eq 'memory' && $_->{area} eq $area && ($_->{of} // '') eq ($of // '') } @alerts;
}

is(take('s1', 32) + 0, 32, 'half of the leases are in hand');
ok(looked(), 'the maintainer has looked at that');
is(area('used', 'leases of clients') . ' ' . area('level', 'leases of clients'), '32 ok', 'which is no level yet');
is(told('leases of clients', 'warn'), 0, 'and nothing is told');
is(take('s2', 8) + 0, 40, 'with 40 of 56');
is(area('used', 'leases of clients') . ' ' . area('level', 'leases of clients') . ' ' . area('level', 'leases'), '40 warn ok', 'clients are at warn, the leases of all are not');
ok($node->wait_for_log(qr/LOG:  evbus in database "postgres": memory for leases of clients is at level warn, 40 of 56 leases are in use.*\n.*HINT:  The bound is set by evbus\.max_leases\./), 'which the log tells');
is(take('s2', 8) + 0, 48, 'with 48');
ok($node->wait_for_log(qr/memory for leases is at level warn, 48 of 64 leases are in use/), 'all of them are at warn, too');
is(take('s2', 5) + 0, 53, 'with 53');
ok($node->wait_for_log(qr/memory for leases of clients is at level critical, 53 of 56 leases are in use/), 'clients are at critical');
is(area('level', 'leases of clients'), 'critical', 'as the view says');
is($node->psql('postgres', q(SELECT count(*) FROM evbus.receive('s1', 1))), 3, 'a subscription with half of all is refused') or 1;

# Back by less than 5 points: 48 of 56 are 86 %, which is above 85.
ack(5);
is(area('used', 'leases of clients') . ' ' . area('level', 'leases of clients'), '48 warn', 'a little less is in use again');
ok(looked(), 'the maintainer has looked at that');
is(take('s2', 5) + 0, 53, 'and then as much as before');
ok(looked(), 'and again');
is(told('leases of clients', 'critical') . ' ' . told('leases of clients', 'warn'), '1 1', 'nothing of that is told');
ack(8);
ok($node->wait_for_log(qr/memory for leases of clients is at level warn, 45 of 56/), 'with 80 % it is at warn again, and that is told');
ack(45);
ok($node->wait_for_log(qr/memory for leases of clients is at level ok, 0 of 56/), 'and at last at ok');
ok($node->wait_for_log(qr/memory for leases is at level ok, 0 of 64/), 'so are all of them');
ok(looked(), 'the maintainer goes on looking');
is(join(' ', map { told('leases of clients', $_) } qw(warn critical ok)), '2 1 1', 'each crossing was told once');
is(join(' ', map { told('leases', $_) } qw(warn critical ok)), '1 0 1', 'also of all leases');
is(area('high_water', 'leases') . ' ' . area('used', 'leases'), '53 0', 'what was in use at most is remembered');

# The same by NOTIFY: JSON.
is(heard('leases of clients'), 'warn 40 56, critical 53 56, warn 45 56, ok 0 56', 'who listens on evbus_alert has heard the same, as JSON');

# A new maintainer tells nothing twice.
is(take('s2', 32) + 0, 32, 'leases are in hand');
is(take('s1', 10) + 0, 42, 'more of them');
ok($node->wait_for_log(qr/memory for leases of clients is at level warn, 42 of 56/), 'they are at warn');
my $old = worker_pids($node, 'evbus maintainer');
sql("SELECT pg_terminate_backend($old)");
ok(other_worker($node, 'evbus maintainer', $old), 'the maintainer is another one');
$node->poll_query_until('postgres', q(SELECT batches >= 3 FROM evbus.stat_worker WHERE kind = 'maintainer' AND database = 'postgres'));
is(told('leases of clients', 'warn'), 3, 'and tells nothing that was told');

# Levels follow the settings at a reload.
$node->append_conf('postgresql.conf', "evbus.memory_warn = 80\nevbus.memory_critical = 85\n");
$node->reload;
answers($node, 'postgres', q(SELECT level FROM evbus.stat_memory WHERE area = 'leases of clients'), 'ok', 'with a higher bound 42 of 56 are ok');
is(take('s1', 6) + 0, 48, 'and 48 of 56');
ok($node->wait_for_log(qr/memory for leases of clients is at level critical, 48 of 56/), 'are critical with a lower one');
ack(48);
is($node->psql('postgres', 'SET evbus.memory_warn = 50'), 3, 'a session cannot set them');

# The ring of a volatile bus is told with its bus.
sql(q(SELECT evbus.create_bus('quick "bus"', durability => 'volatile')));
sql(q(SELECT evbus.subscribe('quick "bus"', 'v')));
sql(q(SELECT evbus.publish('quick "bus"', 'a', (SELECT jsonb_agg(md5(i::text)) FROM generate_series(1, 40) AS i)) FROM generate_series(1, 3)));
is(sql(q(DO $$ BEGIN LOOP PERFORM evbus.publish('quick "bus"', 'a', (SELECT jsonb_agg(md5(i::text)) FROM generate_series(1, 40) AS i)); END LOOP; EXCEPTION WHEN SQLSTATE 'VB014' THEN NULL; END $$;
SELECT (used < 5000) || ' ' || (high_water > 60000) FROM evbus.stat_memory WHERE area = 'volatile ring')), 'true true', 'who was refused has rolled back, and the mark is there');
sql(q(SELECT evbus.publish('quick "bus"', 'a', (SELECT jsonb_agg(md5(i::text)) FROM generate_series(1, 40) AS i)) FROM generate_series(1, 38)));
ok($node->wait_for_log(qr/memory for volatile ring of "quick "bus"" is at level critical/), 'a full ring of a volatile bus is told');
like(heard('volatile ring', 'quick "bus"'), qr/^(warn \d+ 65536, )?critical \d+ 65536$/, 'with the name of the bus, as JSON has it');
sql(q(SELECT evbus.drop_bus('quick "bus"', true)));

# The commit ring, while the sequencer stands still.
my $sequencer = sql(q(SELECT sequencer_pid FROM evbus._status()));
kill 'STOP', $sequencer;
sql(q(SELECT count(*) FROM evbus.publish_batch('b', '{a}', (SELECT array_agg(to_jsonb(repeat(md5(i::text), 4))) FROM generate_series(1, 500) AS i))));
cmp_ok(area('used', 'commit ring'), '>', 64000, 'what the sequencer has not come to is in use');
kill 'CONT', $sequencer;
answers($node, 'postgres', q(SELECT used FROM evbus.stat_memory WHERE area = 'commit ring'), '0', 'until it has');
cmp_ok(area('high_water', 'commit ring'), '>', 64000, 'it stays in the mark');

# What processes do: a handler that waits for an advisory lock.
my $holder = $node->background_psql('postgres', on_error_die => 1);
$holder->set_query_timer_restart();
$holder->query_safe('SELECT pg_advisory_lock(7)');
sql(q(CREATE ROLE alice LOGIN; GRANT USAGE ON SCHEMA evbus TO alice; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA evbus TO alice));
sql(q(CREATE TABLE handled (event_id bigint); GRANT ALL ON handled TO alice;
CREATE FUNCTION waits(e evbus.event) RETURNS void LANGUAGE sql AS $$ SELECT pg_advisory_xact_lock_shared(7); INSERT INTO handled VALUES (e.event_id) $$;
CREATE FUNCTION hogs(e evbus.event[]) RETURNS void LANGUAGE sql AS $$ SELECT pg_advisory_xact_lock_shared(7) $$));
sql(q(SELECT evbus.create_bus('w'), evbus.grant('subscribe', 'w', 'alice')));
sql(q(SET SESSION AUTHORIZATION alice; SELECT evbus.subscribe('w', 'waiter', handler => 'waits(evbus.event)', timeout => '1 hour')));
my $id = sql(q(SELECT evbus.publish('w', 'secret', '"payload"', key => 'key')));
answers($node, 'postgres', q(SELECT state || ' ' || owner || ' ' || subscription || ' ' || event_id FROM evbus.stat_worker WHERE kind = 'handler'), "busy alice waiter $id", 'a worker in a handler says whose event it has');
is(sql(q(SELECT state || ' ' || query FROM pg_stat_activity WHERE backend_type = 'evbus handler')), 'active evbus: subscription "waiter"', 'pg_stat_activity names the subscription, and neither payload nor key');
my $since = sql(q(SELECT since || ' ' || batches FROM evbus.stat_worker WHERE kind = 'handler'));
like($since, qr/ 0$/, 'it has not done a batch');
is(sql(q(SELECT used || ' ' || "limit" || ' ' || level FROM evbus.stat_memory WHERE area = 'handler workers')), '1 2 ok', 'one worker of two is used');
sql('CREATE DATABASE other');
sql('CREATE EXTENSION evbus; SELECT evbus.create_bus(i::text) FROM generate_series(1, 3) AS i', 'other');
sql(q(SELECT evbus.subscribe(i::text, i::text) FROM generate_series(1, 3) AS i), 'other');
is(sql(q(SELECT state || ' ' || owner || ' ' || database || ' ' || count(subscription) || ' ' || count(event_id) FROM evbus.stat_worker WHERE kind = 'handler' GROUP BY state, owner, database), 'other'), 'busy alice postgres 0 0', 'another database sees that it is busy, but not with what');
is(sql(q(SELECT count(*) FROM evbus.stat_memory WHERE area = 'process' AND "of" LIKE 'handler%'), 'other'), '0', 'nor its memory');
is(sql(q(SELECT count(*) FROM evbus.stat_memory WHERE area = 'databases' AND used = 2 AND high_water = 2)), '1', 'two databases are counted');
$holder->query_safe('SELECT pg_advisory_unlock(7)');
answers($node, 'postgres', q(SELECT state || ' ' || batches || ' ' || count(subscription) || ' ' || count(event_id) FROM evbus.stat_worker WHERE kind = 'handler' GROUP BY state, batches), 'idle 1 0 0', 'it has done its batch, and is idle');
is(sql(q(SELECT state || ' ' || query FROM pg_stat_activity WHERE backend_type = 'evbus handler')), 'idle waiting for events', 'in pg_stat_activity, too');
$since = sql(q(SELECT since FROM evbus.stat_worker WHERE kind = 'handler'));
ok(looked(), 'after a while');
is(sql(q(SELECT since FROM evbus.stat_worker WHERE kind = 'handler')), $since, 'since is when it became so');

# Several events in one call are none that could be named; what such a call needs shows in the mark.
sql(q(SET SESSION AUTHORIZATION alice; SELECT evbus.alter_subscription('waiter', handler => 'hogs(evbus.event[])')));
$holder->query_safe('SELECT pg_advisory_lock(7)');
sql(q(SELECT count(*) FROM evbus.publish_batch('w', '{a,a,a}', (SELECT array_agg(to_jsonb(repeat(i::text, 5000000))) FROM generate_series(1, 3) AS i))));
answers($node, 'postgres', q(SELECT state || ' ' || subscription || ' ' || coalesce(event_id::text, 'none') FROM evbus.stat_worker WHERE kind = 'handler'), 'busy waiter none', 'of a batch no single event is named');
answers($node, 'postgres', q(SELECT clock_timestamp() > since + interval '1.2 seconds' FROM evbus.stat_worker WHERE kind = 'handler'), 't', 'its memory may be looked at again');
$holder->query_safe('SELECT pg_advisory_unlock(7)');
answers($node, 'postgres', q(SELECT state || ' ' || (memory_high_water > 15000000) || ' ' || (memory_bytes < 15000000) FROM evbus.stat_worker WHERE kind = 'handler'), 'idle true true', 'what a batch needs is in the mark of its process');
$holder->quit;

# Who resets statistics lets marks begin with what is used.
sql('SELECT evbus.stat_reset()');
is(sql(q(SELECT count(*) FROM evbus.stat_memory WHERE area <> 'process' AND high_water <> used)), '0', 'reset marks are what is used now');
is(sql(q(SELECT count(*) FROM evbus.stat_worker WHERE memory_high_water > 15000000)), '0', 'of processes, too');

# The other kinds come and go.
sql(q(SELECT evbus.publish('w', 'a', '1', delay => '1 hour')));
answers($node, 'postgres', q(SELECT state FROM evbus.stat_worker WHERE kind = 'scheduler' AND database = 'postgres'), 'idle', 'the scheduler waits');
is(sql(q(SELECT string_agg(kind, ' ' ORDER BY kind) FROM evbus.stat_worker WHERE database IS NOT DISTINCT FROM 'postgres' OR database IS NULL)), 'handler launcher maintainer scheduler sequencer', 'each process has its row');
is(sql(q(SELECT string_agg(query, ', ' ORDER BY backend_type) FROM pg_stat_activity WHERE backend_type IN ('evbus launcher', 'evbus scheduler'))), 'looking after databases, waiting for what is due', 'and says what it waits for');
SKIP:
{
	skip 'no debug points', 6 if !points($node);
	point($node, 'scheduler.publishing', 'wait');
	sql(q(SELECT evbus.publish('w', 'a', '1', delay => '10 milliseconds')));
	ok(reached($node, 'scheduler.publishing'), 'the scheduler publishes');
	is(sql(q(SELECT state || ' ' || batches FROM evbus.stat_worker WHERE kind = 'scheduler' AND database = 'postgres')), 'busy 0', 'and is busy with that');
	point($node, 'scheduler.publishing', 'off');
	answers($node, 'postgres', q(SELECT state || ' ' || batches FROM evbus.stat_worker WHERE kind = 'scheduler' AND database = 'postgres'), 'idle 1', 'one batch it has done then');
	point($node, 'sequencer.recovering', 'wait');
	sql(q(SELECT pg_terminate_backend(sequencer_pid) FROM evbus._status()));
	ok(reached($node, 'sequencer.recovering'), 'a new sequencer recovers');
	is(sql(q(SELECT state || ' ' || (memory_bytes > 0) FROM evbus.stat_worker WHERE kind = 'sequencer' AND database = 'postgres')), 'starting true', 'it is starting');
	point($node, 'sequencer.recovering', 'off');
	answers($node, 'postgres', q(SELECT state FROM evbus.stat_worker WHERE kind = 'sequencer' AND database = 'postgres'), 'idle', 'and then at work');
}
my $handler = sql(q(SELECT pid FROM evbus.stat_worker WHERE kind = 'handler'));
sql("SELECT pg_terminate_backend($handler)");
answers($node, 'postgres', "SELECT count(*) FROM evbus.stat_worker WHERE pid = $handler", '0', 'a process that has ended has none');

$listener->quit;

# A crash of the server leaves nothing of them, and all marks begin again.
my $log = -s $node->logfile;
kill 'KILL', sql(q(SELECT maintainer_pid FROM evbus._status()));
crashed($node, $log);
answers($node, 'postgres', q(SELECT string_agg(kind, ' ' ORDER BY kind) FROM evbus.stat_worker WHERE (database = 'postgres' OR database IS NULL) AND kind <> 'scheduler' AND state = 'idle'), 'launcher maintainer sequencer', 'after a crash there are the new ones alone');
is(area('high_water', 'leases'), '0', 'and marks are of this start');

$node->stop;
done_testing();
