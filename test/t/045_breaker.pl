# Circuit breakers through what a server has to go through: workers that end at a probe, several at once, restarts; and who
# is told of changes.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $node = new_node('breaker', conf => "evbus.max_handler_workers = 6\nevbus.notify_interval = '50ms'\n");
$node->safe_psql('postgres', <<'SQL');
SELECT evbus.create_bus('orders');
CREATE TABLE dependency (mode text);
INSERT INTO dependency VALUES ('down');
CREATE TABLE effect (subscription text, n integer);
CREATE TABLE deferred (n integer);

CREATE FUNCTION act(subscription text, e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
DECLARE how text := mode FROM dependency;
BEGIN
	INSERT INTO effect VALUES (subscription, (e.payload #>> '{}')::integer);
	IF how = 'down' THEN
		RAISE EXCEPTION 'the service is down';
	ELSIF how = 'hang' THEN
		PERFORM pg_advisory_xact_lock_shared(4711);
	ELSIF how = 'slow' THEN
		PERFORM pg_sleep(60);
	ELSIF how = 'commit' THEN
		INSERT INTO deferred VALUES (1);
	END IF;
END $$;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'refused at commit'; END$$;
CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON deferred DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse();
DO $do$
DECLARE name text;
BEGIN
	FOREACH name IN ARRAY '{one,many,killed,hung,late,again}'::text[] LOOP
		EXECUTE format('CREATE FUNCTION h_%s(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$BEGIN PERFORM act(%L, e); END$$', name, name);
	END LOOP;
	CREATE FUNCTION h_array(events evbus.event[]) RETURNS void LANGUAGE plpgsql AS $$BEGIN PERFORM act('array', e.*::evbus.event) FROM unnest(events) AS e; END$$;
END $do$;
SQL

sub subscribe
{
	my ($name, $settings, $array) = @_;
	return $node->safe_psql('postgres', sprintf(q(SELECT evbus.subscribe('orders', '%s', types => '{%s}', handler => 'h_%s(evbus.event%s)', max_attempts => 2, backoff_initial => '10 ms', backoff_max => '20 ms', breaker_threshold => 0.5, breaker_min => 5%s)),
		$name, $name, $name, $array ? '[]' : '', $settings));
}

sub publish
{
	my ($name, $n) = @_;
	return $node->safe_psql('postgres', "SELECT count(*) FROM evbus.publish_batch('orders', array_fill('$name'::text, ARRAY[$n]), (SELECT array_agg(to_jsonb(i)) FROM generate_series(1, $n) i))");
}

sub mode
{
	my ($mode) = @_;
	return $node->safe_psql('postgres', "UPDATE dependency SET mode = '$mode'");
}

sub breaker_is
{
	my ($name, $expected, $description, $columns) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return answers($node, 'postgres', sprintf(q(SELECT %s FROM evbus.breaker_list WHERE subscription = '%s'), $columns // 'state', $name), $expected, $description);
}

# All of it came through, each event once, and nothing died on the way.
sub whole
{
	my ($name, $n, $dead) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	answers($node, 'postgres', "SELECT lag + in_flight + retries FROM evbus.subscription_lag WHERE subscription = '$name'", '0', "nothing is left ($name)");
	is($node->safe_psql('postgres', "SELECT count(*), count(DISTINCT n) FROM effect WHERE subscription = '$name'"), ($n - ($dead // 0)) . '|' . ($n - ($dead // 0)), "each event was handled once ($name)");
	return is($node->safe_psql('postgres', "SELECT count(*) FROM evbus.dead_letter WHERE subscription = '$name'"), $dead // '0', "so many are dead ($name)");
}

# ------------------------------------------------------------- who is told

my $log = -s $node->logfile;
my $listener = $node->background_psql('postgres');
subscribe('one', ", breaker_probe => '300 ms'");
$node->safe_psql('postgres', q(SELECT evbus.subscribe('orders', 'quiet', notify => false, breaker_threshold => 1, breaker_min => 2, breaker_probe => '1 hour')));
$listener->query_safe(q(LISTEN evbus_one));
$listener->query_safe(q(LISTEN evbus_quiet));
my $heard = '';

sub hears
{
	my ($pattern, $description) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
	do
	{
		$heard .= $listener->query('SELECT 1') . "\n";
		usleep(20_000);
	} while ($heard !~ $pattern && time < $deadline);
	like($heard, $pattern, $description);
	return;
}

publish('one', 300);
hears(qr/"evbus_one" with payload "breaker open"/, 'who listens on the channel of the subscription hears that it opened');
breaker_is('one', 't', 'it is probed', 'failed_probes >= 2');
mode('up');
hears(qr/"evbus_one" with payload "breaker closed"/, 'and that it closed');
whole('one', 300);
$node->safe_psql('postgres', q(SELECT evbus.nack(array_agg(receipt)) FROM evbus.receive('quiet', 3)));
breaker_is('quiet', 'open', 'one without notifications opens as well');
$node->wait_for_log(qr/circuit breaker of subscription "quiet" in database "postgres" is open: 2 of 2 deliveries failed, the last with SQLSTATE VB000/, $log);
ok(1, 'the server log says so, and why');
$heard .= $listener->query('SELECT 1');
unlike($heard, qr/quiet/, 'but nobody is notified');
my $text = PostgreSQL::Test::Utils::slurp_file($node->logfile, $log);
like($text, qr/circuit breaker of subscription "one" in database "postgres" stays open: probes that failed: \d+/, 'the log tells of failed probes');
like($text, qr/circuit breaker of subscription "one" in database "postgres" is closed/, 'and of the end');
unlike($text, qr/circuit breaker.*the service is down/, 'but shows no message of a handler');

# A client that waits by LISTEN is told when a probe can be had, and when it is over.
$node->safe_psql('postgres', q(SELECT evbus.subscribe('orders', 'listens', types => '{listens}', breaker_threshold => 1, breaker_min => 2, breaker_probe => '500 ms')));
publish('listens', 4);
$node->safe_psql('postgres', q(SELECT evbus.nack(array_agg(receipt)) FROM evbus.receive('listens', 3)));
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.receive('listens', 10))), '0', 'open');
$listener->query_safe(q(LISTEN evbus_listens));
$heard = '';
hears(qr/"evbus_listens" received/, 'a client is told when there is a probe to be had');
my $receipt = $node->safe_psql('postgres', q(SELECT receipt FROM evbus.receive('listens', 10)));
like($receipt, qr/^\S+$/, 'it gets one event');
is($node->safe_psql('postgres', "SELECT evbus.ack(ARRAY['$receipt'])"), '1', 'and acks it');
is(scalar(receive_all($node, 'postgres', 'listens', 3)), 3, 'then the others come');
$listener->quit;

# ------------------------------------------ several workers, and arrays

mode('down');
subscribe('many', ", breaker_probe => '50 ms', concurrency => 4, batch_size => 10");
subscribe('array', ", breaker_probe => '50 ms'", 1);
publish('many', 500);
publish('array', 200);
breaker_is('many', 't', 'several workers: it is open', "failed_probes >= 2");
breaker_is('array', 't', 'a handler of arrays: it is open', "failed_probes >= 2");
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.subscription_lag WHERE workers > 1)), '0', 'there is one probe at a time');
mode('up');
whole('many', 500);
whole('array', 200);

# --------------------------------------------------- errors that come at commit

mode('commit');
subscribe('late', ", breaker_probe => '50 ms'");
publish('late', 50);
breaker_is('late', 't', 'errors at commit open it, and are probed', 'failed_probes >= 2');
mode('up');
whole('late', 50);

# ------------------------------------------------- workers that end, and that hang

mode('down');
subscribe('killed', ", breaker_probe => '200 ms'");
publish('killed', 50);
breaker_is('killed', 'open', 'open');
my $lock = $node->background_psql('postgres');
$lock->query_safe('SELECT pg_advisory_lock(4711)');
mode('hang');
$node->poll_query_until('postgres', q(SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'evbus handler' AND wait_event = 'advisory')) or die;
is($node->safe_psql('postgres', q(SELECT state FROM evbus.breaker_list WHERE subscription = 'killed')), 'half_open', 'a probe hangs in its handler');
my $probes = $node->safe_psql('postgres', q(SELECT failed_probes FROM evbus.breaker_list WHERE subscription = 'killed'));
mode('down');
$node->safe_psql('postgres', q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'evbus handler' AND wait_event = 'advisory'));
breaker_is('killed', 't', 'its worker ends: the probe has failed', "failed_probes > $probes");
breaker_is('killed', 't', 'and the next ones come', "failed_probes > $probes + 1");
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.dead_letter WHERE subscription = 'killed')), '0', 'nothing is dead');
mode('up');
$lock->quit;
whole('killed', 50);

mode('slow');
subscribe('hung', ", breaker_probe => '50 ms', timeout => '50 ms'");
publish('hung', 50);
breaker_is('hung', 't', 'timeouts of a handler open it', 'failed_probes >= 1');
is($node->safe_psql('postgres', q(SELECT last_sqlstate FROM evbus.breaker_list WHERE subscription = 'hung')), '57014', 'with their SQLSTATE');
mode('up');
whole('hung', 50);

# ------------------------------------------------------------------- restarts

mode('down');
subscribe('again', ", breaker_probe => '1 hour'");
$node->safe_psql('postgres', q(SELECT evbus.alter_subscription('again', max_attempts => 10)));
publish('again', 50);
breaker_is('again', 'open', 'open for an hour');
$node->stop('immediate');
$node->start;
breaker_is('again', '1', 'after a restart it is closed, and opens anew', 'opened_count');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.dead_letter WHERE subscription = 'again')), '0', 'that made no dead letter');
mode('up');
is($node->safe_psql('postgres', q(SELECT evbus.reset_breaker('again'))), 't', 'it is closed by hand');
whole('again', 50);
$node->stop;
done_testing();
