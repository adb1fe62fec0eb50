# Everything at once: publishers that roll back, handlers and clients that fail, workers that are terminated, a crash in
# the middle.  What committed took effect exactly once for each subscription, what did not commit never did.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('mixed', conf => <<'CONF');
evbus.ring_size = '1MB'
evbus.late_after = '50ms'
evbus.ledger_turn_size = '64kB'
evbus.upkeep_interval = '200ms'
evbus.max_handler_workers = 5
restart_after_crash = on
CONF

$node->safe_psql('postgres', <<'SQL');
SELECT evbus.create_bus('orders');
CREATE TABLE published (event_id bigint, n integer);
CREATE TABLE effect (subscription text, event_id bigint);

-- One transaction of a publisher: singly or in a batch, with savepoints, now and then rolled back or long.
CREATE PROCEDURE publish_something() LANGUAGE plpgsql AS $$
DECLARE
	many integer := (ARRAY[1, 1, 1, 3, 20, 400])[1 + floor(random() * 6)];
BEGIN
	INSERT INTO published SELECT evbus.publish('orders', 'single', '1'), 1;
	INSERT INTO published SELECT id, 2 FROM evbus.publish_batch('orders', array_fill('batch'::text, ARRAY[many]), array_fill(to_jsonb(repeat('x', 500)), ARRAY[many])) AS id;
	BEGIN
		INSERT INTO published SELECT evbus.publish('orders', 'inner', '3'), 3;
		IF random() < 0.3 THEN
			RAISE division_by_zero;
		END IF;
	EXCEPTION WHEN division_by_zero THEN
		NULL;
	END;
	IF random() < 0.05 THEN
		PERFORM pg_sleep(0.1);	-- longer than evbus.late_after
	END IF;
	IF random() < 0.1 THEN
		ROLLBACK;
	END IF;
END $$;

CREATE FUNCTION one(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO effect VALUES ('one', e.event_id);
	IF e.attempt = 1 AND random() < 0.02 THEN
		RAISE EXCEPTION 'bad luck' USING ERRCODE = (ARRAY['P0001', '40001', '57014'])[1 + floor(random() * 3)];
	END IF;
END $$;
CREATE FUNCTION many(events evbus.event[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO effect SELECT 'many', event_id FROM unnest(events);
	IF random() < 0.02 THEN
		RAISE EXCEPTION 'bad luck';
	END IF;
END $$;

-- One turn of a client: receive, work and ack in one transaction, that may fail in each of the usual ways.
CREATE PROCEDURE consume_something() LANGUAGE plpgsql AS $$
DECLARE
	receipts text[];
	luck float8 := random();
BEGIN
	BEGIN
		WITH d AS MATERIALIZED (SELECT * FROM evbus.receive('client', 1 + floor(random() * 200)::integer, wait => '20 ms')),
			 w AS (INSERT INTO effect SELECT 'client', event_id FROM d)
		SELECT array_agg(receipt) INTO receipts FROM d;
		IF receipts IS NULL THEN
			RETURN;
		ELSIF luck < 0.05 THEN
			RAISE division_by_zero;
		END IF;
		PERFORM evbus.ack(receipts);
		IF luck < 0.1 THEN
			RAISE division_by_zero;
		END IF;
	EXCEPTION WHEN division_by_zero THEN
		IF luck < 0.02 THEN	-- another try, reported as failed
			SELECT array_agg(receipt) INTO receipts FROM evbus.receive('client', 5);
			IF receipts IS NOT NULL THEN
				PERFORM evbus.nack(receipts, delay => '10 ms');
			END IF;
		ELSIF luck < 0.04 THEN
			SELECT array_agg(receipt) INTO receipts FROM evbus.receive('client', 5);
			IF receipts IS NOT NULL THEN
				PERFORM evbus.release(receipts);
			END IF;
		END IF;
	END;
	IF random() < 0.1 THEN
		ROLLBACK;
	END IF;
END $$;

SELECT evbus.subscribe('orders', 'one', handler => 'one(evbus.event)', concurrency => 2, batch_size => 50, max_attempts => 1000, backoff_initial => '10 ms', backoff_max => '100 ms');
SELECT evbus.subscribe('orders', 'many', handler => 'many(evbus.event[])', concurrency => 2, batch_size => 200, max_attempts => 1000, backoff_initial => '10 ms', backoff_max => '100 ms');
SELECT evbus.subscribe('orders', 'client', lease => '5 seconds', max_attempts => 1000, backoff_initial => '10 ms', backoff_max => '100 ms');
SQL

my @running;

sub start_clients
{
	my ($seconds) = @_;
	foreach my $job ([ 'publish', 3, 'CALL publish_something()' ], [ 'consume', 2, 'CALL consume_something()' ])
	{
		my ($name, $clients, $sql) = @$job;
		my $script = PostgreSQL::Test::Utils::tempdir() . "/$name.sql";
		append_to_file($script, "$sql;\n");
		my $output = '';
		push @running, { name => $name, output => \$output,
			run => IPC::Run::start([ 'pgbench', '-n', '-c', $clients, '-T', $seconds, '-f', $script, '-h', $node->host, '-p', $node->port, 'postgres' ], '>&', \$output) };
	}
}

sub end_clients
{
	foreach my $client (@running)
	{
		eval { $client->{run}->finish };
		unlike(${ $client->{output} }, qr/ERROR/, "$client->{name}: no statement failed") or diag(${ $client->{output} });
	}
	@running = ();
}

# Every subscription comes to rest with everything done once.
sub all_done
{
	my ($when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	# What clients left in somebody's hands comes back when its lease runs out.
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
	do
	{
		$node->safe_psql('postgres', 'DO $$BEGIN FOR i IN 1 .. 20 LOOP CALL consume_something(); COMMIT; END LOOP; END$$');
	} while ($node->safe_psql('postgres', q(SELECT lag + retries FROM evbus.subscription_lag WHERE subscription = 'client')) > 0 && time < $deadline);
	answers($node, 'postgres', 'SELECT sum(lag + in_flight + retries) FROM evbus.subscription_lag', '0', "nothing is left to do: $when");
	my $published = $node->safe_psql('postgres', 'SELECT count(*) FROM published');
	foreach my $subscription ('one', 'many', 'client')
	{
		is($node->safe_psql('postgres', "SELECT count(*) || ' ' || count(DISTINCT event_id) FROM effect WHERE subscription = '$subscription'"), "$published $published", "$subscription: every event once: $when");
		is($node->safe_psql('postgres', "SELECT count(*) FROM (SELECT event_id FROM published EXCEPT SELECT event_id FROM effect WHERE subscription = '$subscription') AS lost"), '0', "$subscription: nothing lost: $when");
	}
	is($node->safe_psql('postgres', 'SELECT count(*) FROM (SELECT event_id FROM evbus.history EXCEPT SELECT event_id FROM published) AS ghost'), '0', "nothing is stored that was not committed: $when");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM evbus.dead_letter'), '0', "nothing was given up: $when");
	note("$published events");
}

# Workers of every kind end again and again.
start_clients(6);
my $end = time + 5;
while (time < $end)
{
	$node->safe_psql('postgres', q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'evbus %' ORDER BY random() LIMIT 1));
}
end_clients();
all_done('workers were terminated while publishing and consuming');

# Crashes in the middle.
foreach my $crash ('an immediate stop', 'SIGKILL of a handler', 'SIGKILL of the sequencer')
{
	my $goal = 3000 + $node->safe_psql('postgres', 'SELECT count(*) FROM published');
	my $log = -s $node->logfile;
	start_clients(60);
	ok($node->poll_query_until('postgres', "SELECT count(*) > $goal FROM published"), "events come, then $crash");
	if ($crash =~ /SIGKILL of (a|the) (\w+)/)
	{
		my $victim = $node->safe_psql('postgres', "SELECT min(pid) FROM pg_stat_activity WHERE backend_type = 'evbus $2'");
		# A handler worker may just have ended by itself.
		$victim ||= $node->safe_psql('postgres', q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'evbus maintainer'));
		kill 'KILL', $victim;
		$node->wait_for_log(qr/all server processes terminated; reinitializing/, $log);
		$node->poll_query_until('postgres', 'SELECT true');
	}
	else
	{
		$node->stop('immediate');
		$node->start;
	}
	eval { $_->{run}->finish } foreach @running;
	@running = ();
	all_done("$crash while publishing and consuming");
}

# Nothing of it holds memory or leases.
is($node->safe_psql('postgres', 'SELECT leases_used FROM evbus._status()'), '0', 'no lease is left over');
is($node->safe_psql('postgres', 'SELECT count(*) FROM evbus.late'), '0', 'no row in evbus.late is left over');
ok($node->safe_psql('postgres', q(SELECT sum(pg_relation_size(c)) FROM unnest('{evbus.ack_0,evbus.ack_1,evbus.ack_2}'::regclass[]) AS c)) < 4 * 1024 * 1024, 'the ledger stays small');

$node->stop;
done_testing();
