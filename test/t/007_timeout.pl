# A handler that takes too long is cancelled; one that swallows the cancel is terminated, and ends as a dead letter; others go on.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('timeout', conf => "evbus.max_handler_workers = 3\n");
$node->safe_psql('postgres', <<'SQL');
SELECT evbus.create_bus('orders');
CREATE TABLE effect (subscription text, type text, attempt integer);
CREATE FUNCTION patient(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO effect VALUES ('patient', e.type, e.attempt);
	IF e.type = 'hang' THEN
		PERFORM pg_sleep(3600);
	END IF;
END $$;
CREATE FUNCTION stubborn(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO effect VALUES ('stubborn', e.type, e.attempt);
	WHILE e.type = 'hang' LOOP
		BEGIN
			PERFORM pg_sleep(3600);
		EXCEPTION WHEN query_canceled THEN
			NULL;
		END;
	END LOOP;
END $$;
CREATE FUNCTION spinning(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO effect VALUES ('spinning', e.type, e.attempt);
	WHILE e.type = 'hang' LOOP
		NULL;
	END LOOP;
END $$;
CREATE FUNCTION quick(e evbus.event) RETURNS void LANGUAGE plpgsql AS 'BEGIN INSERT INTO effect VALUES (''quick'', e.type, e.attempt); END';
SQL
$node->safe_psql('postgres', "SELECT evbus.subscribe('orders', '$_', handler => '$_(evbus.event)', timeout => '300 milliseconds', max_attempts => 2, backoff_initial => '10 milliseconds')")
	foreach 'patient', 'stubborn', 'spinning', 'quick';

# Each in turn, so that every one of them is served within its own time.
$node->safe_psql('postgres', "SELECT evbus.pause('$_')") foreach 'patient', 'stubborn', 'spinning';
$node->safe_psql('postgres', "SELECT * FROM evbus.publish_batch('orders', '{before,hang,after}', '{1,2,3}')");
answers($node, 'postgres', q(SELECT count(*) FROM effect WHERE subscription = 'quick'), '3', 'the others are served');

my $log = -s $node->logfile;
foreach my $name ('patient', 'spinning', 'stubborn')
{
	$node->safe_psql('postgres', "SELECT evbus.resume('$name')");
	answers($node, 'postgres', "SELECT string_agg(type || ' ' || attempts || ' ' || reason, ',') FROM evbus.dead_letter WHERE subscription = '$name'", 'hang 2 max_attempts',
		"the handler that hangs ($name) is stopped, each time counts, and the event ends as a dead letter");
	answers($node, 'postgres', "SELECT string_agg(type || ' ' || attempt, ',' ORDER BY type) FROM effect WHERE subscription = '$name' AND type IN ('before', 'after')", 'after 1,before 1', "its neighbours are handled, each once ($name)");
	answers($node, 'postgres', "SELECT lag || ' ' || in_flight || ' ' || retries || ' ' || workers FROM evbus.subscription_lag WHERE subscription = '$name'", '0 0 0 0', "nothing of it is left ($name)");
	$node->safe_psql('postgres', "SELECT evbus.publish('orders', 'later.$name', '4')");
	answers($node, 'postgres', "SELECT count(*) FROM effect WHERE subscription = '$name' AND type = 'later.$name'", '1', "and it goes on with what comes later ($name)");
}
is($node->safe_psql('postgres', q(SELECT sqlstate FROM evbus.dead_letter WHERE subscription = 'patient')), '57014', 'a cancelled handler failed with query_canceled');
is($node->safe_psql('postgres', q(SELECT count(*) FROM effect WHERE subscription = 'quick')), '6', 'the quick subscription missed nothing');

# While one hangs, another is served: publish and see it handled before the first one's time is over.
$node->safe_psql('postgres', q(SELECT evbus.alter_subscription('patient', timeout => '1 hour', types => '{hang}')));
$node->safe_psql('postgres', q(SELECT evbus.unsubscribe('stubborn'), evbus.unsubscribe('spinning')));
$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'hang', '5')));
answers($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'evbus handler' AND wait_event = 'PgSleep'), '1', 'a handler hangs');
$node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'meanwhile', '6')));
answers($node, 'postgres', q(SELECT count(*) FROM effect WHERE subscription = 'quick' AND type = 'meanwhile'), '1', 'meanwhile another subscription is served');

# A fast stop does not wait for it.
my $start = time;
$node->stop('fast');
cmp_ok(time - $start, '<', 30, 'a fast stop does not wait for a handler that hangs');
$node->start;
answers($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'evbus handler' AND wait_event = 'PgSleep'), '1', 'after the restart the event is tried again');

# Nor do unsubscribe and DROP DATABASE.
$node->safe_psql('postgres', q(SELECT evbus.unsubscribe('patient')));
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.subscription_list WHERE subscription = 'patient')), '0', 'unsubscribe does not wait for it either');

# The server was never restarted by a crash.
unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile, $log), qr/terminated by signal|PANIC/, 'no process died from a signal');

$node->stop;
done_testing();
