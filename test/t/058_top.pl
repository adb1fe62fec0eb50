# The screen that evbus-top.sql shows again and again: through psql alone, as a member of pg_monitor, and while a partition is locked.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('top');
my $share = "$FindBin::RealBin/../../share";
$node->safe_psql('postgres', q(CREATE ROLE watcher LOGIN IN ROLE pg_monitor; SELECT evbus.create_bus('b'); SELECT evbus.subscribe('b', 's' || i) FROM generate_series(1, 30) AS i));
answers($node, 'postgres', q(SELECT count(*) FROM evbus.top() WHERE line ~ 'health ok  database postgres$'), '1', 'all is well at first');

# Screens that it shows until it has shown two, of psql with these options.
sub screens
{
	my @options = @_;
	my ($out, $err) = ('', '');
	my $psql = IPC::Run::start([ 'psql', '-Xqf', "$share/evbus-top.sql", '-d', $node->connstr('postgres') . ' user=watcher', @options ], '<', \undef, '>', \$out, '2>', \$err);
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
	until (time > $deadline || $err ne '' || ($out =~ tr/\e//) > 2 && (() = $out =~ /\e\[J/g) >= 2) { $psql->pump_nb; select undef, undef, undef, 0.05; }
	$psql->kill_kill;
	is($err, '', "no word of complaint (@options)");
	return $out;
}
my $out = screens('-v', 'interval=0.2');
my ($first, $second) = $out =~ /\A(\e\[H.*?\e\[J\n)(\e\[H.*?\e\[J\n)/s;
like($first, qr/\A\e\[Hevbus 20[^\n]*  health ok  database postgres\e\[K\n.*\nb  .* s1  .*\nand 10 more\e\[K\e\[J\n\z/s, 'a screen');
like($second, qr/\A\e\[Hevbus 20.*and 10 more\e\[K\e\[J\n\z/s, 'in its place another');
is(scalar(grep { length > 100 } map { s/\e\[[HKJ]//gr } split /\n/, $out), 0, 'of a hundred columns');
$out = screens('-v', 'interval=0.2', '-v', 'width=20', '-v', 'rows=3');
like($out, qr/and 27 more/, 'of as many subscriptions as are wanted');
my @lengths = sort { $b <=> $a } map { length s/\e\[[HKJ]//gr } split /\n/, $out;
cmp_ok($lengths[0], '<=', 80, 'and as narrow, though not narrower than it can be');
cmp_ok($lengths[0], '>', 70, 'but not more');

my ($ret, $text, $err) = $node->psql('postgres', 'CREATE ROLE nobody LOGIN; SET ROLE nobody; SELECT evbus.top()');
like($err, qr/permission denied/, 'it is not for everybody');

# A locked partition keeps health() waiting; not the screen.
my $leaf = $node->safe_psql('postgres', 'SELECT leaf FROM evbus.leaf_list LIMIT 1');
my $lock = $node->background_psql('postgres', on_error_die => 1);
$lock->query_safe("BEGIN; LOCK TABLE evbus.$leaf IN ACCESS EXCLUSIVE MODE");
$out = $node->safe_psql('postgres', 'SET statement_timeout = 30000; SELECT evbus.top(); SHOW lock_timeout', extra_params => [ '-U', 'watcher' ]);
like($out, qr/health not known, a partition is locked  database.*and 10 more\n0\z/s, 'all but the health is there while a partition is locked');
$lock->query_safe('COMMIT');
$lock->quit;
like($node->safe_psql('postgres', 'SELECT evbus.top()'), qr/health ok/, 'and then that is, too');

$node->stop;
done_testing();
