# Redrives in the background: paced, cancelled, over a crash and in a prepared transaction; what ends them; who may.
#
# A job and what it redrives are of one transaction: killed at any point, each dead letter is redriven once.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('redrive', conf => "evbus.upkeep_interval = '1s'\nmax_prepared_transactions = 2\n");

sub sql
{
	return $node->safe_psql('postgres', $_[0]);
}

# The message of an error, or ''.
sub refused
{
	my ($ret, $stdout, $stderr) = $node->psql('postgres', $_[0]);
	return $ret == 0 ? '' : $stderr;
}

# So many dead letters of a subscription.
sub bury
{
	my ($subscription, $n) = @_;
	sql("SELECT count(*) FROM evbus.publish_batch('orders', ARRAY['$subscription'], (SELECT array_agg(to_jsonb(i)) FROM generate_series(1, $n) AS i))");
	my $left = $n;
	while ($left > 0)
	{
		my $got = sql("SELECT evbus.reject(ARRAY(SELECT receipt FROM evbus.receive('$subscription', $left, wait => '10 seconds')), 'no use')");
		last unless $got;
		$left -= $got;
	}
	return is($left, 0, "$n dead letters of $subscription");
}

my $states = q(SELECT state || ' ' || done || ' of ' || total FROM evbus.redrive_list WHERE job = %d);

sql(<<'SQL');
SELECT evbus.create_bus('orders');
CREATE ROLE alice;
CREATE ROLE bob;
GRANT USAGE ON SCHEMA evbus TO alice, bob;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA evbus TO alice, bob;
SELECT evbus.grant('subscribe', 'orders', 'alice');
SQL
sql("SELECT evbus.subscribe('orders', '$_', types => '{$_}')") foreach qw(crash cancel gone locked again max prepared);
sql("SET ROLE alice; SELECT evbus.subscribe('orders', '$_', types => '{$_}')") foreach qw(hers lost);

# ------------------------------------------------------- crashes on the way

bury('crash', 800);
my $job = sql(q(SELECT evbus.redrive(subscription => 'crash', rate => 100)));
foreach my $stop (50, 150)
{
	$node->poll_query_until('postgres', "SELECT done >= $stop FROM evbus.redrive_list WHERE job = $job");
	$node->stop('immediate');
	$node->start;
	$node->poll_query_until('postgres', 'SELECT ready FROM evbus._status()');
	is(sql("SELECT done = 800 - (SELECT count(*) FROM evbus.dead_letter WHERE subscription = 'crash') AND done = (SELECT count(*) FROM evbus.retry_list WHERE subscription = 'crash') FROM evbus.redrive_list WHERE job = $job"), 't',
		"after a crash at $stop the job, the dead letters and the retries agree");
}
SKIP:
{
	skip 'no debug points in this build', 2 unless points($node);
	# Stopped with a batch redriven and not yet committed, and all WAL written: the maintainer's commits are asynchronous.
	point($node, 'redrive.job', 'wait', 2);
	ok(reached($node, 'redrive.job'), 'the maintainer stands between redrive and commit');
	sql('CREATE TABLE flushed ()');
	$node->stop('immediate');
	$node->start;
	$node->poll_query_until('postgres', 'SELECT ready FROM evbus._status()');
	is(sql("SELECT done = 800 - (SELECT count(*) FROM evbus.dead_letter WHERE subscription = 'crash') FROM evbus.redrive_list WHERE job = $job"), 't', 'after a crash there that batch is undone whole');
}
answers($node, 'postgres', sprintf($states, $job), 'done 800 of 800', 'the job goes on after each crash, and ends');
is(sql(q(SELECT count(*) || ' ' || count(DISTINCT event_id) || ' ' || max(redrives) FROM evbus.retry_list WHERE subscription = 'crash')), '800 800 1', 'everything was redriven once');
is(sql("SELECT finished_at - created_at > interval '3.5 seconds' FROM evbus.redrive_list WHERE job = $job"), 't', 'and not faster than its rate');

# ------------------------------------------------------------------- cancel

bury('cancel', 200);
$job = sql(q(SELECT evbus.redrive(subscription => 'cancel', rate => 20)));
like(refused("SET ROLE bob; SELECT evbus.cancel_redrive($job)"), qr/belongs to another role/, 'another role may not cancel it');
$node->poll_query_until('postgres', "SELECT done > 0 FROM evbus.redrive_list WHERE job = $job");
is(sql("SELECT evbus.cancel_redrive($job)"), 't', 'it is cancelled');
my $done = sql("SELECT done FROM evbus.redrive_list WHERE job = $job");
is(sql("SELECT evbus.cancel_redrive($job)"), 'f', 'once');
my $next = sql(q(SELECT evbus.redrive(subscription => 'cancel', max_events => 5, rate => 10000)));
answers($node, 'postgres', sprintf($states, $next), 'done 5 of 5', 'another job is done');
is(sql("SELECT state || ' ' || done FROM evbus.redrive_list WHERE job = $job"), "cancelled $done", 'and the one that was cancelled has done no more');
is(sql(q(SELECT count(*) FROM evbus.dead_letter WHERE subscription = 'cancel')), 195 - $done, 'what it did not come to is left');

# --------------------------------------------- what ends a job before its time

bury('gone', 100);
$job = sql(q(SELECT evbus.redrive(subscription => 'gone', rate => 10)));
$node->poll_query_until('postgres', "SELECT done > 0 FROM evbus.redrive_list WHERE job = $job");
sql(q(SELECT evbus.unsubscribe('gone')));
sql(q(SELECT evbus.subscribe('orders', 'gone', types => '{gone}')));
answers($node, 'postgres', "SELECT state || ': ' || error FROM evbus.redrive_list WHERE job = $job", 'failed: subscription "gone" no longer exists', 'a dropped subscription ends its job, and one of the same name does not inherit it');
is(sql(q(SELECT count(*) FROM evbus.retry_list WHERE subscription = 'gone')), '0', 'nor is anything delivered to that');

bury('hers', 20);
bury('lost', 100);
is(sql(q(SET ROLE bob; SELECT evbus.redrive(dry_run => true))), '0', 'to a role that owns nothing nothing is redriven');
like(refused(q(SET ROLE bob; SELECT evbus.redrive(subscription => 'hers', rate => 1))), qr/permission denied for subscription/, 'nor may it name what it does not own');
$job = sql(q(SET ROLE alice; SELECT evbus.redrive(rate => 10000)));
answers($node, 'postgres', sprintf($states, $job), 'done 120 of 120', 'a job without a filter is about what its role owns');
is(sql("SELECT role || ' ' || login FROM evbus.redrive_list WHERE job = $job"), 'alice postgres', 'and says who registered it');
sql('DELETE FROM evbus.retry');
bury('lost', 100);
$job = sql(q(SET ROLE alice; SELECT evbus.redrive(subscription => 'lost', rate => 10)));
$node->poll_query_until('postgres', "SELECT done > 0 FROM evbus.redrive_list WHERE job = $job");
# As REASSIGN would, if it knew of evbus: she owns it no longer.
sql(q(UPDATE evbus.subscription SET owner = 'bob' WHERE subscription = 'lost'));
answers($node, 'postgres', "SELECT state || ': ' || error FROM evbus.redrive_list WHERE job = $job", 'failed: role "alice" may no longer operate subscription "lost"', 'rights are asked anew: without them the job ends');

# ---------------------------------------------------------- locks and limits

bury('locked', 30);
my $holder = $node->background_psql('postgres');
my $held = sql(q(SELECT dead_letter_id FROM evbus.dead_letter WHERE subscription = 'locked' ORDER BY 1 OFFSET 10 LIMIT 1));
$holder->query_safe("BEGIN; SELECT evbus.edit_dead_letter($held, '0', 'still thinking')");
$job = sql(q(SELECT evbus.redrive(subscription => 'locked', rate => 10000)));
answers($node, 'postgres', sprintf($states, $job), 'running 29 of 30', 'a dead letter that somebody has locked does not hold up the others');
$holder->query_safe('COMMIT');
$holder->quit;
answers($node, 'postgres', sprintf($states, $job), 'done 30 of 30', 'and is redriven when it is free');
is(sql(q(SELECT payload FROM evbus.retry_list WHERE subscription = 'locked' ORDER BY position OFFSET 10 LIMIT 1)), '0', 'as it was edited');

bury('max', 10);
$job = sql(q(SELECT evbus.redrive(subscription => 'max', max_events => 4, rate => 10000)));
answers($node, 'postgres', sprintf($states, $job), 'done 4 of 4', 'max_events is the end');
is(sql(q(SELECT count(*) FROM evbus.dead_letter WHERE subscription = 'max')), '6', 'the rest is left');

# What fails again while the job runs is a new dead letter, and not for it.
sql(<<'SQL');
CREATE FUNCTION fail(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION USING ERRCODE = '22012', MESSAGE = 'never'; END$$;
SELECT evbus.subscribe('orders', 'fails', types => '{again}', handler => 'fail(evbus.event)');
SELECT count(evbus.publish('orders', 'again', to_jsonb(i))) FROM generate_series(1, 30) AS i;
SQL
answers($node, 'postgres', q(SELECT count(*) FROM evbus.dead_letter WHERE subscription = 'fails'), '30', 'a handler that always fails');
$job = sql(q(SELECT evbus.redrive(subscription => 'fails', rate => 20)));
answers($node, 'postgres', sprintf($states, $job), 'done 30 of 30', 'its dead letters are redriven');
answers($node, 'postgres', q(SELECT count(*) || ' ' || min(redrives) || ' ' || max(redrives) FROM evbus.dead_letter WHERE subscription = 'fails'), '30 1 1', 'once, though they fail again meanwhile');

# ------------------------------------------------------ a prepared transaction

bury('prepared', 5);
sql(q(BEGIN; SELECT count(*) FROM evbus.redrive(subscription => 'prepared', rate => 10000); PREPARE TRANSACTION 'job'));
is(sql(q(SELECT count(*) FROM evbus.redrive_list WHERE subscription = 'prepared')), '0', 'a job in a prepared transaction is none yet');
sql(q(COMMIT PREPARED 'job'));
answers($node, 'postgres', q(SELECT state || ' ' || done FROM evbus.redrive_list WHERE subscription = 'prepared'), 'done 5', 'committed, it is done');

# ---------------------------------------------------------- nothing is lost count of

is(sql(<<'SQL'), '0', 'after all that the counts agree with what is there');
SELECT count(*) FROM (SELECT subscription, sum(dead_letters) AS n FROM evbus.dead_letter_trend GROUP BY 1 HAVING sum(dead_letters) <> 0) c
	FULL JOIN (SELECT subscription, count(*) AS n FROM evbus.dead_letter GROUP BY 1) d USING (subscription) WHERE c.n IS DISTINCT FROM d.n
SQL

$node->stop;
done_testing();
