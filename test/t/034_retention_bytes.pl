# Retention by bytes, under load: a bus stays near its limit, whatever its leaves were made for; what a subscription needs
# is kept, or dropped and counted, as its policy says; and who holds something back is named.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = new_node('bytes', conf => "evbus.upkeep_interval = '500ms'\nmax_prepared_transactions = 2\nfsync = off\nevbus.ring_size = '1MB'\n");
my $limit = 16 * 1024 * 1024;

# 20 events of about 400 bytes a transaction; not faster than leaves can be cut, which is once a second.
my $scripts = PostgreSQL::Test::Utils::tempdir();
sub load_of
{
	my ($bus) = @_;
	append_to_file("$scripts/$bus.sql", "SELECT count(evbus.publish('$bus', 'a.b', jsonb_build_object('n', i, 'pad', repeat(md5(i::text), 11)))) FROM generate_series(1, 20) i;\n") unless -e "$scripts/$bus.sql";
	return "$scripts/$bus.sql";
}
sub publish_many
{
	my ($bus, $transactions) = @_;
	return $node->run_log([ 'pgbench', '-n', '-c', '4', '-j', '2', '-R', '800', '-t', $transactions, '-f', load_of($bus), '-h', $node->host, '-p', $node->port, 'postgres' ]);
}
sub bytes_of
{
	my ($bus) = @_;
	return "SELECT bytes FROM evbus.stat_upkeep WHERE '$bus' = ANY (buses)";
}

# Receives and acks n events; returns how many, and the first and the last position.
sub consume
{
	my ($subscription, $n) = @_;
	my ($count, $first, $last) = (0);
	my $deadline = time + 3 * $PostgreSQL::Test::Utils::timeout_default;
	while ($count < $n && time < $deadline)
	{
		my $got = $node->safe_psql('postgres', <<~"SQL");
			WITH d AS MATERIALIZED (SELECT receipt, position FROM evbus.receive('$subscription', 5000, wait => '2 seconds')),
				 a AS MATERIALIZED (SELECT evbus.ack(array_agg(receipt)) FROM d HAVING count(*) > 0)
			SELECT count(*) || ' ' || min(position) || ' ' || max(position) FROM d CROSS JOIN a
			SQL
		my ($c, $f, $l) = split / /, $got ;
		next unless defined $c;
		$count += $c;
		$first //= $f;
		$last = $l;
	}
	return "$count $first $last";
}

# ------------------------------------------------ what a subscription needs is kept

$node->safe_psql('postgres', <<"SQL");
SELECT evbus.create_bus('kept', retention_bytes => $limit);
CREATE TABLE effect (position bigint);
CREATE FUNCTION handle(events evbus.event[]) RETURNS void LANGUAGE sql AS 'INSERT INTO effect SELECT position FROM unnest(events)';
SELECT evbus.subscribe('kept', 'handled', handler => 'handle(evbus.event[])', batch_size => 1000);
SELECT evbus.pause('handled');
SQL
ok(publish_many('kept', 1000), 'four clients publish several times the limit');
my $total = 4 * 1000 * 20;
cmp_ok($node->safe_psql('postgres', bytes_of('kept')), '>', 2 * $limit, 'all of it is kept while a subscription has not had it');
answers($node, 'postgres', q(SELECT held_back_by FROM evbus.stat_upkeep WHERE 'kept' = ANY (buses)), 'subscription "handled" has not consumed it', 'and the view says who needs it');
is($node->safe_psql('postgres', q(SELECT held_back_since IS NOT NULL AND last_error IS NULL FROM evbus.stat_upkeep WHERE 'kept' = ANY (buses))), 't', 'since when, and that this is no error');
is($node->safe_psql('postgres', 'SELECT count(*) FROM evbus.history'), $total, 'nothing is missing from the history');
my $class = $node->safe_psql('postgres', q(SELECT storage_class_id FROM evbus.bus WHERE bus = 'kept'));
cmp_ok($node->safe_psql('postgres', "SELECT count(*) FROM evbus.leaf_list WHERE storage_class_id = $class AND rows IS DISTINCT FROM 0 AND bytes > 65536"), '>', 2, 'it is in several leaves, although one was made for a day');
is($node->safe_psql('postgres', "SELECT count(*) FROM (SELECT from_time, lag(to_time) OVER (ORDER BY from_time) AS before FROM evbus.leaf_list WHERE storage_class_id = $class) l WHERE from_time <> before"), '0', 'each of which begins where the one before it ends');
$node->safe_psql('postgres', q(SELECT evbus.resume('handled')));
answers($node, 'postgres', 'SELECT count(*) FROM effect', $total, 'once resumed every event is handled');
is($node->safe_psql('postgres', 'SELECT count(DISTINCT position) || \' \' || min(position) || \' \' || max(position) FROM effect'), "$total 1 $total", 'once, without a gap');
answers($node, 'postgres', "SELECT bytes < $limit + $limit / 4 FROM evbus.stat_upkeep WHERE 'kept' = ANY (buses)", 't', 'and then what is too much goes');
answers($node, 'postgres', q(SELECT held_back_by IS NULL FROM evbus.stat_upkeep WHERE 'kept' = ANY (buses)), 't', 'nothing is held back any more');

# ------------------------------------------------- while it is published and consumed

my ($peak, $looks) = (0, 0);
my $load = IPC::Run::start([ 'pgbench', '-n', '-c', '4', '-j', '2', '-t', '2000', '-f', load_of('kept'), '-h', $node->host, '-p', $node->port, 'postgres' ], '>', \my $out, '2>', \my $err);
while ($load->pumpable)
{
	my $now = $node->safe_psql('postgres', bytes_of('kept'));
	$peak = $now if $now > $peak;
	$looks++;
	$load->pump_nb;
}
$load->finish;
$total += 4 * 2000 * 20;
answers($node, 'postgres', 'SELECT count(*) FROM effect', $total, 'published and consumed at once, every event is handled');
is($node->safe_psql('postgres', 'SELECT count(DISTINCT position) || \' \' || max(position) FROM effect'), "$total $total", 'once, without a gap');
note("peak $peak of $limit in $looks looks");
cmp_ok($looks, '>', 5, 'it was looked at meanwhile');
answers($node, 'postgres', "SELECT bytes < $limit + $limit / 4 FROM evbus.stat_upkeep WHERE 'kept' = ANY (buses)", 't', 'and it ends near its limit');
is($node->safe_psql('postgres', q(SELECT dropped FROM evbus.subscription_lag WHERE subscription = 'handled')), '0', 'nothing was dropped that was not consumed');
is($node->safe_psql('postgres', 'SELECT count(*) FROM evbus.retention_audit'), '0', 'and nothing is recorded');

# ----------------------------------------------------------- dropped, and counted

$node->safe_psql('postgres', <<"SQL");
SELECT evbus.create_bus('capped', retention_bytes => $limit, retention_policy => 'drop_unconsumed');
SELECT evbus.subscribe('capped', 'slow');
SQL
ok(publish_many('capped', 1000), 'four clients publish several times the limit of a bus with drop_unconsumed');
answers($node, 'postgres', "SELECT bytes <= $limit FROM evbus.stat_upkeep WHERE 'capped' = ANY (buses)", 't', 'it goes below its limit although nobody has consumed anything');
$total = 4 * 1000 * 20;
my $kept = $node->safe_psql('postgres', q(SELECT count(*) FROM evbus.history WHERE bus = 'capped'));
cmp_ok($kept, '<', $total, 'there is less than was published');
cmp_ok($kept, '>', 0, 'and there is something left');
is($node->safe_psql('postgres', q(SELECT dropped FROM evbus.subscription_lag WHERE subscription = 'slow')), $total - $kept, 'the view counts for the subscription just what is gone');
is($node->safe_psql('postgres', q(SELECT sum(events) || ' ' || count(DISTINCT leaf) || ' ' || bool_and(cause = 'retention_bytes' AND bus = 'capped' AND from_time < to_time) FROM evbus.retention_audit WHERE subscription = 'slow')),
	$total - $kept . ' ' . $node->safe_psql('postgres', q(SELECT count(*) FROM evbus.retention_audit WHERE subscription = 'slow')) . ' true', 'the audit has a row for each leaf, with the cause');
like(consume('slow', $kept), qr/^$kept \d+ $total$/, 'what is left is received, all of it, to the last');
answers($node, 'postgres', q(SELECT lag FROM evbus.subscription_lag WHERE subscription = 'slow'), '0', 'the cursor has passed over what is gone');
$node->restart('immediate');
$node->poll_query_until('postgres', 'SELECT ready FROM evbus._status()');
is($node->safe_psql('postgres', q(SELECT lag || ' ' || dropped FROM evbus.subscription_lag WHERE subscription = 'slow')), '0 ' . ($total - $kept), 'also after a crash, and the count is still there');

# What is consumed, is not counted.
my $before = $node->safe_psql('postgres', q(SELECT dropped FROM evbus.subscription_lag WHERE subscription = 'slow'));
publish_many('capped', 100);
like(consume('slow', 8000), qr/^8000 /, 'what is published now is received at once');
publish_many('capped', 1000);
answers($node, 'postgres', "SELECT bytes <= $limit FROM evbus.stat_upkeep WHERE 'capped' = ANY (buses)", 't', 'again more than the limit is published');
$kept = $node->safe_psql('postgres', q(SELECT count(*) FROM evbus.history WHERE bus = 'capped'));
is($node->safe_psql('postgres', q(SELECT dropped FROM evbus.subscription_lag WHERE subscription = 'slow')), $before + 80000 - $kept, 'counted is what it had not consumed, and not what it had');

# ----------------------------------------------------- what is never dropped, and who it is

# A leaf that was cut is written to until the second is over, and then the rest goes on without it: nothing is held back.
# So it has to be one that is written to in the next second, too.
sub prepare { return $node->safe_psql('postgres', "BEGIN; SELECT evbus.publish('capped', 'prepared', '1'); PREPARE TRANSACTION '$_[0]'"); }
for (my $leaves = 0; $leaves != 1;)
{
	prepare('some"one');
	usleep(1_100_000);
	prepare('next');
	$leaves = $node->safe_psql('postgres', q(SELECT count(DISTINCT relation) FROM pg_locks l JOIN pg_class c ON c.oid = relation WHERE pid IS NULL AND relkind = 'r' AND relispartition));
	$node->safe_psql('postgres', q(ROLLBACK PREPARED 'next'));
	$node->safe_psql('postgres', q(ROLLBACK PREPARED 'some"one')) if $leaves != 1;
	note("it is in a leaf that was cut") if $leaves != 1;
}
publish_many('capped', 1000);
answers($node, 'postgres', q(SELECT held_back_by FROM evbus.stat_upkeep WHERE 'capped' = ANY (buses)), 'prepared transaction "some"one" holds a lock on it', 'a prepared transaction keeps the leaf it has written to, and is named');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.history WHERE type = 'prepared')), '0', 'its event is not there yet');
$node->safe_psql('postgres', q(COMMIT PREPARED 'some"one'));
answers($node, 'postgres', "SELECT bytes <= $limit + $limit / 4 FROM evbus.stat_upkeep WHERE 'capped' = ANY (buses)", 't', 'once it is committed, what is too much goes');

my $open = $node->background_psql('postgres');
$open->query_safe('BEGIN');
$open->query_safe(q(SELECT count(evbus.publish('capped', 'open', to_jsonb(i))) FROM generate_series(1, 2000) i));
my $pid = $open->query_safe('SELECT pg_backend_pid()');
ok($node->run_log([ 'pgbench', '-n', '-c', '4', '-j', '2', '-t', '1000', '-f', load_of('capped'), '-h', $node->host, '-p', $node->port, 'postgres' ]), 'beside an open publisher that has written to the leaf others publish');
answers($node, 'postgres', "SELECT held_back_by LIKE 'process $pid %' FROM evbus.stat_upkeep WHERE 'capped' = ANY (buses)", 't', 'an open publisher keeps what it may still write to, and is named');
$open->query_safe('COMMIT');
$open->quit;
answers($node, 'postgres', "SELECT bytes <= $limit FROM evbus.stat_upkeep WHERE 'capped' = ANY (buses)", 't', 'once it has committed all goes its way');

$node->stop;
done_testing();
