# Filters where it is about processes: readers that are behind the ring, a worker whose query is cancelled while it asks a
# filter, one that was stopped, a slow filter beside other subscriptions, and what is left after a crash.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $bomb = '^(.+)(.+)(.+)\\\\1\\\\2\\\\3?!$';
my $node = new_node('filter', conf => "evbus.ring_size = '1MB'\nevbus.max_handler_workers = 1\nevbus.filter_timeout = '60s'\n");

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

# Seconds of processor time that a process has used.
sub processor_time
{
	my ($pid) = @_;
	my @stat = split ' ', PostgreSQL::Test::Utils::slurp_file("/proc/$pid/stat") =~ s/.*\) //sr;

	return ($stat[11] + $stat[12]) / 100;
}

sub poll
{
	my ($done) = @_;

	for (1 .. 1000)
	{
		return if $done->();
		select undef, undef, undef, 0.02;
	}
}

# Behind the ring: what is read from the log, large events among them, is filtered alike.
sql(<<'SQL');
SELECT evbus.create_bus('log');
CREATE TABLE called (subscription text, i integer);
CREATE FUNCTION note(events evbus.event[]) RETURNS void LANGUAGE sql AS $$ INSERT INTO called SELECT 'h', (e.payload->>'i')::integer FROM unnest($1) AS e $$;
CREATE FUNCTION note_key(e evbus.event) RETURNS void LANGUAGE sql AS $$ INSERT INTO called VALUES ('hk', ($1.payload->>'i')::integer) $$;
SELECT count(*) FROM generate_series(0, 29) AS b, evbus.publish_batch('log', '{e}', (SELECT array_agg(jsonb_build_object('i', b * 500 + i, 'x', repeat(md5(i::text), CASE WHEN i % 100 = 0 THEN 1000 ELSE 8 END))) FROM generate_series(1, 500) AS i),
	(SELECT array_agg('k' || i % 5) FROM generate_series(1, 500) AS i));
SELECT evbus.subscribe('log', 'c', start_from => 'beginning', filter => '$.i % 50 == 0'), evbus.subscribe('log', 'ck', start_from => 'beginning', filter => '$.i % 50 == 0', ordering => 'key'),
	evbus.subscribe('log', 'h', start_from => 'beginning', filter => '$.i % 50 == 0', handler => 'note(evbus.event[])'),
	evbus.subscribe('log', 'hk', start_from => 'beginning', filter => '$.i % 50 == 0', ordering => 'key', handler => 'note_key(evbus.event)');
SQL
my $all = 'string_agg(i::text, \' \' ORDER BY i)';
my $expected = join ' ', map { $_ * 50 } 1 .. 300;
foreach my $name ('c', 'ck')
{
	sql(<<"SQL");
DO \$\$
DECLARE receipts text[] := '{}'; n integer := 1;
BEGIN
	WHILE n > 0 LOOP
		WITH d AS MATERIALIZED (SELECT receipt, (payload->>'i')::integer AS i FROM evbus.receive('$name', 1000, ack => receipts)), x AS (INSERT INTO called SELECT '$name', i FROM d)
		SELECT count(*), coalesce(array_agg(receipt), '{}') INTO n, receipts FROM d;
		COMMIT;
	END LOOP;
END \$\$;
SQL
	is(sql("SELECT $all FROM called WHERE subscription = '$name'"), $expected, "a client that is behind the ring gets what its filter lets through ($name)");
}
answers($node, 'postgres', "SELECT $all FROM called WHERE subscription = '$_'", $expected, "so does a handler ($_)") foreach 'h', 'hk';
answers($node, 'postgres', q(SELECT string_agg(filtered::text, ' ') FROM evbus.subscription_lag), '14700 14700 14700 14700', 'and all of the others are counted');

# A worker is cancelled while it asks: nothing of what it had read by then is taken for done.
sql(<<"SQL");
SELECT evbus.create_bus('cut');
CREATE FUNCTION note_cut(events evbus.event[]) RETURNS void LANGUAGE sql AS \$\$ INSERT INTO called SELECT 'cut', (e.payload->>'i')::integer FROM unnest(\$1) AS e \$\$;
SELECT evbus.subscribe('cut', 'cut', handler => 'note_cut(evbus.event[])', filter => '\$.s == "c" || \$.s like_regex "$bomb"');
SELECT evbus.pause('cut');
SELECT count(*) FROM evbus.publish_batch('cut', '{e}', (SELECT array_agg(jsonb_build_object('i', i, 's', CASE WHEN i = 40 THEN repeat('a', 20000) || '!' ELSE 'c' END)) FROM generate_series(1, 100) AS i));
SQL
answers($node, 'postgres', q(SELECT lag FROM evbus.subscription_lag WHERE subscription = 'cut'), '100', 'a hundred wait');
sql(q(SELECT evbus.resume('cut')));
answers($node, 'postgres', q(SELECT in_flight > 40 FROM evbus.subscription_lag WHERE subscription = 'cut'), 't', 'a worker has claimed a part of them');
my $worker = sql(q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'evbus handler'));
my $busy = processor_time($worker);
# It does nothing else any more than ask the filter.
poll(sub { processor_time($worker) > $busy + 1 });
cmp_ok(processor_time($worker), '>', $busy + 1, 'and asks for a second');
is(sql(q(SELECT count(*) FROM called WHERE subscription = 'cut')), '0', 'before anything is handled');
sql(q(ALTER SYSTEM SET evbus.filter_timeout = '100ms'));
sql(q(SELECT pg_reload_conf()));
sql("SELECT pg_cancel_backend($worker)");
answers($node, 'postgres', q(SELECT count(*) || ' ' || count(DISTINCT i) FROM called WHERE subscription = 'cut'), '99 99', 'cancelled there, it has lost nothing of what it had read');
answers($node, 'postgres', q(SELECT (payload->>'i') || ' ' || sqlstate FROM evbus.dead_letter WHERE subscription = 'cut'), '40 57014', 'and the limit of the filter makes a dead letter of the one');

# Time in which a process does not run is not the filter's.
sql(<<'SQL');
SELECT evbus.subscribe('cut', 'stopped', filter => '$.s == "c"');
SQL
my $client = $node->background_psql('postgres');
my $pid = $client->query_safe('SELECT pg_backend_pid()');
sql(q(SELECT count(*) FROM evbus.publish_batch('cut', '{e}', (SELECT array_agg(jsonb_build_object('i', i, 's', 'c')) FROM generate_series(1, 5000) AS i))));
answers($node, 'postgres', q(SELECT lag FROM evbus.subscription_lag WHERE subscription = 'stopped'), '5000', 'five thousand wait');
$client->query_until(qr/go/, "\\echo go\nSELECT 'got ' || count(*) FROM evbus.receive('stopped', 5000, wait => '10 seconds');\n");
foreach (1 .. 20)
{
	kill 'STOP', $pid;
	select undef, undef, undef, 0.15;
	kill 'CONT', $pid;
	select undef, undef, undef, 0.002;
}
is($client->query_safe('SELECT 1'), "got 5000\n1", 'a client that was stopped again and again gets all');
is(sql(q(SELECT count(*) FROM evbus.dead_letter WHERE subscription = 'stopped')), '0', 'and nothing is a dead letter');
$client->quit;

# A slow filter that lets nothing through: the worker that it shares with another subscription comes to that all the same.
sql(q(ALTER SYSTEM SET evbus.filter_timeout = '60s'));
sql(q(SELECT pg_reload_conf()));
sql(q(SELECT evbus.unsubscribe(subscription) FROM evbus.subscription_list));
sql(<<'SQL');
CREATE FUNCTION note_quick(e evbus.event) RETURNS void LANGUAGE sql AS $$ INSERT INTO called VALUES ('quick', ($1.payload->>'i')::integer) $$;
SELECT evbus.create_bus('slow');
SELECT evbus.create_bus('quick');
SELECT evbus.subscribe('quick', 'quick', handler => 'note_quick(evbus.event)');
SQL
my $slow = '^(.+)(.+)(.+)\\\\1\\\\2\\\\3?!$';
my $round = 0;
foreach my $ordering ('none', 'key')
{
	$round++;
	sql("SELECT evbus.subscribe('slow', 'slow', handler => 'note(evbus.event[])', filter => '!(\$.s like_regex \"$slow\")', ordering => '$ordering')");
	sql(q(SELECT count(*) FROM evbus.publish_batch('slow', '{e}', (SELECT array_agg(jsonb_build_object('i', i, 's', repeat('a', 150) || '!')) FROM generate_series(1, 300) AS i))));
	answers($node, 'postgres', q(SELECT in_flight > 0 FROM evbus.subscription_lag WHERE subscription = 'slow'), 't', "a worker is at the slow one ($ordering)");
	sql("SELECT evbus.publish('quick', 'e', jsonb_build_object('i', $round))");
	answers($node, 'postgres', "SELECT count(*) FROM called WHERE subscription = 'quick' AND i = $round", '1', 'the other is served');
	cmp_ok(sql(q(SELECT lag FROM evbus.subscription_lag WHERE subscription = 'slow')), '>', 0, 'before it is done');
	sql(q(SELECT evbus.unsubscribe('slow')));
}

# After a crash the filter is there, and what was filtered may be looked at again, but not delivered.
sql(q(SELECT evbus.subscribe('quick', 'odd', filter => '$.i % 2 == 1', max_age => '1 day')));
sql(q(SELECT evbus.publish('quick', 'e', jsonb_build_object('i', i)) FROM generate_series(1, 6) AS i));
is(sql(q(SELECT string_agg(payload->>'i', ' ') FROM evbus.receive('odd', 2, wait => '10 seconds'))), '1 3', 'two are received');
$node->stop('immediate');
$node->start;
answers($node, 'postgres', q(SELECT string_agg(payload->>'i', ' ') FROM evbus.receive('odd', 10)), '1 3 5', 'after a crash the same, and the next');
is(sql(q(SELECT filter || ' ' || max_age FROM evbus.subscription_list WHERE subscription = 'odd')), '($."i" % 2 == 1) 1 day', 'and the settings are what they were');

$node->stop;
done_testing();
