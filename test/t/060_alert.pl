# What health() finds is told when its level changes: in the log, and to who listens on evbus_alert; once, also by the next maintainer.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use Encode qw(encode);
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('alert', conf => <<'CONF');
evbus.health_interval = '1s'
evbus.max_subscriptions = 100
evbus.max_buses = 80
CONF
sub sql { my ($q) = @_; return $node->safe_psql('postgres', $q); }

my $listener = $node->background_psql('postgres', on_error_die => 1);
$listener->set_query_timer_restart();
$listener->query_safe('LISTEN evbus_alert');
my @heard;

# What came on the channel so far: "check subject level" each, in their order.
sub heard
{
	my ($pattern) = @_;
	push @heard, map { /payload "(.*)" received/ ? decode_json($1) : () } split /\n/, $listener->query('SELECT 1');
	return join ', ', grep { /$pattern/ } map { encode('UTF-8', join ' ', grep { defined } @$_{qw(check subject level)}) } @heard;
}
sub hears
{
	my ($pattern, $expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
	my $is;
	until (($is = heard($pattern)) eq $expected || time > $deadline) { select undef, undef, undef, 0.1; }
	is($is, $expected, $what);
	return;
}
# The maintainer has looked twice from here on: what a probe bus says has come and gone.
my $probes = 0;
sub looked
{
	my $bus = 'probe' . ++$probes;
	sql("SELECT evbus.create_bus('$bus'), evbus.pause_bus('$bus')");
	hears("^paused $bus ", "paused $bus warn", "the maintainer has looked ($bus)");
	sql("SELECT evbus.drop_bus('$bus')");
	hears("^paused $bus ", "paused $bus warn, paused $bus ok", "and once more ($bus)");
	return;
}
sub logged { my ($pattern) = @_; my @n = slurp_file($node->logfile) =~ /$pattern/g; return scalar @n; }

my $hostile = q(my "bus" <b>ü);
sql(qq(SELECT evbus.create_bus('b'), evbus.create_bus('$hostile')));
looked();
is(heard('^(?!paused probe)'), '', 'where all is well nothing is told');

# ------------------------------------------------------------------ a change, once

sql(qq(SELECT evbus.pause_bus('$hostile')));
hears('bus', qq(paused $hostile warn), 'what is not ok is told');
ok($node->wait_for_log(qr/LOG:  evbus in database "postgres": paused of "my "bus" <b>ü" is at level warn: the whole bus is paused\n.*HINT:  Nothing of it is delivered/), 'in the log with reason and hint');
looked();
my $old = worker_pids($node, 'evbus maintainer');
sql("SELECT pg_terminate_backend($old)");
ok(other_worker($node, 'evbus maintainer', $old), 'there is another maintainer');
looked();
is(heard('bus'), qq(paused $hostile warn), 'it is told once');
is(logged('<b>ü" is at level'), 1, 'in the log, too');
sql(qq(SELECT evbus.resume_bus('$hostile')));
hears('bus', qq(paused $hostile warn, paused $hostile ok), 'and when it is over');
ok($node->wait_for_log(qr/LOG:  evbus in database "postgres": paused of "my "bus" <b>ü" is at level ok/), 'in the log, too');

# ------------------------------------------------- what others tell is not told twice

sql(<<'SQL');
CREATE FUNCTION fail(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'secret'; END $$;
SELECT evbus.create_bus('sick'), evbus.subscribe('sick', 'breaks', handler => 'fail(evbus.event)', breaker_threshold => 0.5, breaker_min => 2);
SELECT evbus.publish('sick', 'a', to_jsonb(i)) FROM generate_series(1, 4) i;
SQL
hears('circuit', 'circuit breaker breaks critical', 'an open breaker is heard on the channel');
ok($node->wait_for_log(qr/the circuit breaker of subscription "breaks" in database "postgres" is open/), 'and logs itself');
is(logged('circuit breaker of "breaks" is at level'), 0, 'so health does not');
sql(q(SELECT evbus.reset_breaker('breaks'); SELECT evbus.unsubscribe('breaks')));
hears('circuit', 'circuit breaker breaks critical, circuit breaker breaks ok', 'until it is closed');
unlike(JSON::PP->new->encode(\@heard), qr/secret|reason/, 'nobody hears a reason');

# --------------------------------------------------------------------- more than fit

sql(q(SELECT evbus.create_bus('n' || i), evbus.pause_bus('n' || i) FROM generate_series(1, 66) i));
hears('^others', 'others warn', 'what is more than can be remembered is one number');
is(scalar(split /,/, heard('^paused n[0-9]+ warn')), 64, 'the others are told');
ok($node->wait_for_log(qr/LOG:  evbus in database "postgres": 2 more things are not as they should be\n.*HINT:  SELECT \* FROM evbus.health\(\) tells them all/), 'the log has the number');
sql(q(SELECT evbus.resume_bus('n' || i) FROM generate_series(1, 66) i));
hears('^others', 'others warn, others ok', 'until all fit again');
hears('^paused n[0-9]+ ok$', join(', ', heard('^paused n[0-9]+ ok$')), 'each is told to be over');
is(scalar(split /,/, heard('^paused n[0-9]+ ok')), 64, 'that was told before');

# ---------------------------------------------------------------------- settings

sql(q(ALTER SYSTEM SET evbus.health_interval = 0; SELECT pg_reload_conf()));
sql(q(SELECT pg_sleep(1.5); SELECT evbus.pause_bus('b'); SELECT pg_sleep(2.5)));
is(heard('^paused b '), '', 'with an interval of 0 nobody looks');
sql(q(ALTER SYSTEM SET evbus.health_interval = 1; SELECT pg_reload_conf()));
hears('^paused b ', 'paused b warn', 'until somebody does');

# Who locks what health() reads does not keep the maintainer from its other work for long.
my $lock = $node->background_psql('postgres', on_error_die => 1);
$lock->query_safe('BEGIN; LOCK TABLE evbus.retry IN ACCESS EXCLUSIVE MODE');
$lock->query_safe('SELECT pg_sleep(3)');
$lock->query_safe('COMMIT');
$lock->quit;
looked();

$listener->quit;
$node->stop;
done_testing();
