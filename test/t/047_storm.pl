# Very many clients (finding 3535): through PgBouncer in transaction mode they publish, receive and ack; others connect
# directly and go, again and again.  Nothing leaks, nothing is lost, and no client starves.
#
# EVBUS_STORM=full: 1000 clients for a minute, 5000 connections (make soak); else 250 for ten seconds, 500 connections.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $full = ($ENV{EVBUS_STORM} // '') eq 'full';
my $clients = $full ? 1000 : 250;
my $seconds = $full ? 60 : 10;
my $connects = $full ? 50 : 5;		# of each of 100 clients
my $pool = 20;

my $node = new_node('storm', conf => <<'CONF');
max_connections = 150
fsync = off
CONF
sub sql { my ($q) = @_; return $node->safe_psql('postgres', $q); }

# ---------------------------------------------------------------------------- PgBouncer

my $dir = PostgreSQL::Test::Utils::tempdir();
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $user = sql('SELECT current_user');

sub put
{
	my ($name, $text) = @_;
	open my $file, '>', "$dir/$name" or die $!;
	print $file $text;
	close $file;
	return "$dir/$name";
}

my $users = put('users.txt', qq("$user" ""\n));
my $ini = put('pgbouncer.ini', <<"INI");
[databases]
postgres = host=${\$node->host} port=${\$node->port} dbname=postgres
[pgbouncer]
listen_addr =
listen_port = $port
unix_socket_dir = $dir
auth_type = trust
auth_file = $users
pool_mode = transaction
default_pool_size = $pool
max_client_conn = 2000
logfile = $dir/pgbouncer.log
pidfile = $dir/pgbouncer.pid
ignore_startup_parameters = extra_float_digits
INI
my $bouncer = IPC::Run::start([ 'pgbouncer', '-q', $ini ], '<', \undef, '>', "$dir/out", '2>&1');
END { $bouncer->signal('TERM') if $bouncer; }
my $through = "host=$dir port=$port dbname=postgres user=$user";
my $up = 0;
for (1 .. 200)
{
	$up = IPC::Run::run([ 'psql', '-XAtqc', 'SELECT 1', $through ], '>', \my $out, '2>', \my $err);
	last if $up;
	usleep(50_000);
}
ok($up, 'PgBouncer is there') or do { diag slurp_file("$dir/out"); BAIL_OUT('no PgBouncer') };

# ------------------------------------------------------------------- many, through the pool

sql(q(SELECT evbus.create_bus('storm'), evbus.subscribe('storm', 'storm', notify => false)));
my $publish = put('publish.sql', "SELECT evbus.publish('storm', 'a', to_jsonb(:client_id));\n");
# A client has no session of its own: what it received is acked over whatever connection comes next.
my $consume = put('consume.sql', <<'SQL');
SELECT coalesce(array_agg(receipt), '{}')::text AS receipts FROM evbus.receive('storm', 20) \gset
SELECT evbus.ack(':receipts');
SQL

# Starts pgbench with a log of each transaction.
sub bench
{
	my ($name, $script, $n) = @_;
	return IPC::Run::start([ 'pgbench', '-n', '-c', $n, '-j', 2, '-T', $seconds, '-l', '--log-prefix', "$dir/$name", '-f', $script, $through ],
		'<', \undef, '>', "$dir/$name.out", '2>', "$dir/$name.err");
}

# Transactions of each client, the fewest first.
sub counts
{
	my ($name, $n) = @_;
	my %of = map { $_ => 0 } 0 .. $n - 1;
	foreach my $file (glob "$dir/$name.[0-9]*")
	{
		open my $log, '<', $file or die $!;
		while (<$log>) { $of{ (split)[0] }++ }
		close $log;
	}
	return sort { $a <=> $b } values %of;
}

sub sum { my $s = 0; $s += $_ foreach @_; return $s; }

my $half = $clients / 2;
my @running = (bench('publish', $publish, $half), bench('consume', $consume, $half));
my $backends = 0;
while (grep { $_->pumpable } @running)
{
	foreach (@running) { eval { $_->pump_nb } if $_->pumpable; }	# it may end in between
	my $now = sql(q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'));
	$backends = $now if $now > $backends;
	usleep(200_000);
}
is(scalar(grep { !$_->finish } @running), 0, "$half clients publish and $half receive and ack, without an error")
	or diag map { slurp_file("$dir/$_.err") } qw(publish consume);
cmp_ok($backends, '<=', $pool + 3, "over no more than $pool connections");

foreach my $group (qw(publish consume))
{
	my @n = counts($group, $half);
	figure("$group, $half clients for $seconds s over $pool connections: " . sum(@n) . " transactions, of each client $n[0] to $n[-1], median $n[$#n / 2]");
	cmp_ok($n[0], '>=', $n[$#n / 2] / 4, "$group: no client has less than a quarter of the median");
}

my $published = sum(counts('publish', $half));
is(sql(q(SELECT count(*) FROM evbus.history)), $published, 'each publish is one event');
# What is left, after the last of them had no more time.
my $left = sql(q(SELECT lag FROM evbus.subscription_lag));
my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
while (sql(q(SELECT lag FROM evbus.subscription_lag)) > 0 && time < $deadline)
{
	sql(q(SELECT evbus.ack(ARRAY(SELECT receipt FROM evbus.receive('storm', 10000, wait => '1 second')))));
}
is(sql(q(SELECT lag || ' ' || in_flight FROM evbus.subscription_lag)), '0 0', "all is acked, of $left that were left when time was up");
is(sql('SELECT leases_used FROM evbus._status()'), 0, 'no lease is left behind');
is(sql('SELECT evbus._oldest_open() > max(event_id) FROM evbus.history'), 't', 'nor an open publisher');

# -------------------------------------------------------------- many that come and go

my $before = sql('SELECT next_position FROM evbus.bus_list');
my ($out, $err);
ok(IPC::Run::run([ 'pgbench', '-n', '-C', '-c', 100, '-j', 2, '-t', $connects, '-f', $publish, $node->connstr('postgres') ], '>', \$out, '2>', \$err),
	100 * $connects . ' connections are opened, publish, and are closed') or diag $err;
ok($node->poll_query_until('postgres', "SELECT next_position - $before = 100 * $connects FROM evbus.bus_list"), 'each of them one event');
ok($node->poll_query_until('postgres', q(SELECT count(*) <= 1 FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name = 'pgbench')), 'they are gone');
is(sql('SELECT leases_used FROM evbus._status()'), 0, 'and leave nothing');
is(sql('SELECT evbus._oldest_open() > max(event_id) FROM evbus.history'), 't', 'at all');

$bouncer->signal('TERM');
$bouncer->finish;
undef $bouncer;
$node->stop;
done_testing();
