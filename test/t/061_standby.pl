# Standbys under load: the primary is killed, the standby is promoted.  Synchronous: nothing is lost whose COMMIT had returned.
# Asynchronous: what is lost are the last events of each publisher.  Either way handlers have had each event once by what the new
# primary knows, positions have no hole, and delivery goes on within five seconds, without a call.  Before that a standby can be
# read, and refuses the rest.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $publishers = 3;
my $directory = PostgreSQL::Test::Utils::tempdir();

my $first = PostgreSQL::Test::Cluster->new('first');
$first->init(allows_streaming => 1);
$first->append_conf('postgresql.conf', <<'CONF');
shared_preload_libraries = 'evbus'
max_worker_processes = 24
fsync = off
wal_receiver_status_interval = '1s'
hot_standby_feedback = on
wal_retrieve_retry_interval = '100ms'
CONF
$first->start;
$first->safe_psql('postgres', 'CREATE EXTENSION evbus');
shop($first);
$first->safe_psql('postgres', q(ALTER TABLE effect ADD UNIQUE (event_id)));

# Publishers, who note the ids of what was acknowledged; returns them.
sub publish_to
{
	my ($node, $round) = @_;
	my @all;
	foreach my $n (1 .. $publishers)
	{
		my $file = "$directory/$round.$n";
		open my $script, '>', "$file.sql" or die $!;
		print $script "SELECT evbus.publish('orders', 'p.$round.$n', '$_');\n" foreach 1 .. 200_000;
		close $script;
		push @all, IPC::Run::start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-f', "$file.sql", '-d', $node->connstr('postgres') ], '>', "$file.ids", '2>', "$file.errors");
	}
	return @all;
}

# The ids that a publisher has got back; the last line may be cut short.
sub acknowledged
{
	my ($round, $n) = @_;
	my $ids = slurp_file("$directory/$round.$n.ids");
	$ids =~ s/[^\n]*\z//;
	return split /\n/, $ids;
}

sub under_way
{
	my ($round, $least) = @_;
	for (1 .. 600)
	{
		return 1 if $publishers == grep { acknowledged($round, $_) >= $least } 1 .. $publishers;
		usleep(50_000);
	}
	return 0;
}

# The primary dies, publishers with it.
sub killed
{
	my ($node, @publishers) = @_;
	$node->kill9;
	$_->finish foreach @publishers;
	return;
}

# Promotes, and says how long it was from then on until the next new event was delivered.
sub promoted
{
	my ($node) = @_;
	$node->promote;
	my $begin = time;
	my $id = $node->safe_psql('postgres', q(SELECT evbus.publish('orders', 'new', '1')));
	answers($node, 'postgres', "SELECT count(*) FROM effect WHERE event_id = $id", '1', 'what is published on the new primary is delivered');
	my $seconds = time - $begin;
	cmp_ok($seconds, '<', 5, 'within five seconds');
	figure(sprintf "first delivery %.2f s after the promotion of a standby", $seconds);
	is($node->safe_psql('postgres', 'SELECT evbus._copied()'), 'f', 'it is no copy');
	complete($node, 'on the new primary');
	return;
}

# ------------------------------------------------------------------- synchronous

$first->backup('first');
my $second = PostgreSQL::Test::Cluster->new('second');
$second->init_from_backup($first, 'first', has_streaming => 1);
$second->start;
$first->append_conf('postgresql.conf', "synchronous_standby_names = 'second'\nsynchronous_commit = remote_apply");
$first->reload;
$first->poll_query_until('postgres', q(SELECT sync_state = 'sync' FROM pg_stat_replication));
$first->safe_psql('postgres', q(SELECT evbus.publish('orders', 'before', '1'); SELECT evbus.publish('orders', 'later', '1', delay => '1 hour')));
answers($first, 'postgres', 'SELECT count(*) FROM effect', '1', 'the handler works on the primary');

# It can be read ...
$second->poll_query_until('postgres', 'SELECT count(*) = 1 FROM effect');
my ($ret, $stdout, $stderr) = $second->psql('postgres', <<'SQL', on_error_stop => 0);
SELECT format('SELECT count(*) FROM %s;', c.oid::regclass) FROM pg_class c WHERE relnamespace = 'evbus'::regnamespace AND relkind IN ('v', 'r', 'p') \gexec
SELECT count(*) > 5 FROM evbus.top();
SELECT evbus.metrics() ~ 'evbus_';
SELECT evbus.report_html() ~ '<html';
SELECT count(*) FROM evbus.history_page('orders');
SELECT count(*) FROM evbus.dead_letter_top();
SELECT evbus.channel('reader');
SQL
is($stderr, '', 'all tables, views and reports can be read on a standby');
unlike($stdout, qr/^f$/m, 'and say something');
is($second->safe_psql('postgres', q(SELECT string_agg("check" || ' ' || level || coalesce(' ' || reason, ''), ', ' ORDER BY "check") FROM evbus.health() WHERE level <> 'ok' OR "check" = 'workers')),
	'workers ok this is a standby: they start when it is promoted, and what only they know is not known here', 'health() knows that it is one, and sees nothing wrong in it');

# ... and refuses the rest, each call by its name.
foreach my $call (q(publish('orders', 'x', '1')), q(publish('orders', 'x', '1', delay => '1 hour')), q(publish_batch('orders', '{x}', '{1}')), q(publish_lines('orders', 'x', '1')), q(create_bus('x')), q(alter_bus('orders')),
	q(drop_bus('orders')), q(pause_bus('orders')), q(resume_bus('orders')), q(stop_all()), q(take_over()), q(limit_publisher('orders', 'postgres', 1)), q(subscribe('orders', 'x')), q(alter_subscription('reader')), q(unsubscribe('reader')),
	q(pause('reader')), q(resume('reader')), q(seek('reader', 'now')), q(replay('reader', 'beginning')), q(cancel_replay(1)), q(receive('reader')), q(receive_lines('reader')), q(ack('{}')), q(nack('{}')), q(reject('{}')),
	q(redrive()), q(redrive('{1}'::bigint[])), q(discard(reason => 'x')), q(edit_dead_letter(1, '1', 'x')), q(cancel_scheduled(1)), q(cancel_redrive(1)), q(trace('reader')), q(reset_breaker('reader')), q(train_dictionary('orders')),
	q(publish_changes('effect', 'orders')), q(stop_publish_changes('effect')))
{
	my ($name) = $call =~ /^(\w+)/;
	my ($ret, $stdout, $stderr) = $second->psql('postgres', "\\set VERBOSITY verbose\nSELECT * FROM evbus.$call");
	like($stderr, qr/ERROR:  25006: cannot execute (evbus\.)?\w+/, "refused on a standby: $call");
}

my @publishers = publish_to($first, 1);
ok(under_way(1, 300), 'publishers are at work');
my $done = $first->safe_psql('postgres', 'SELECT count(*) FROM effect');
killed($first, @publishers);
cmp_ok($done, '>', 100, 'and the handler');
promoted($second);
my @ids = map { acknowledged(1, $_) } 1 .. $publishers;
is($second->safe_psql('postgres', 'SELECT count(*) FROM unnest($$' . '{' . join(',', @ids) . '}$$::bigint[]) AS a(id) LEFT JOIN effect ON event_id = id WHERE event_id IS NULL'), '0',
	'each of ' . @ids . ' events that were acknowledged is on the synchronous standby, and was delivered there');
is($second->safe_psql('postgres', 'SELECT count(*) FROM evbus.scheduled_list'), '1', 'and what is delayed');

# ------------------------------------------------------------------ asynchronous

$second->adjust_conf('postgresql.conf', 'synchronous_standby_names', "''");
$second->adjust_conf('postgresql.conf', 'synchronous_commit', 'on');
$second->reload;
$second->backup('second');
my $third = PostgreSQL::Test::Cluster->new('third');
$third->init_from_backup($second, 'second', has_streaming => 1);
$third->start;
$second->poll_query_until('postgres', q(SELECT state = 'streaming' FROM pg_stat_replication));
@publishers = publish_to($second, 2);
ok(under_way(2, 300), 'publishers are at work beside an asynchronous standby');
# It is cut off while they go on.
$third->adjust_conf('postgresql.conf', 'primary_conninfo', q('host=/nowhere'));
$third->reload;
$third->poll_query_until('postgres', 'SELECT count(*) = 0 FROM pg_stat_wal_receiver');
ok(under_way(2, 100 + acknowledged(2, 1)), 'which is then cut off') or diag acknowledged(2, 1);
killed($second, @publishers);
promoted($third);
my %survived = map { $_ => 1 } split /\n/, $third->safe_psql('postgres', 'SELECT event_id FROM evbus.history');
my $lost = 0;
foreach my $n (1 .. $publishers)
{
	my @ids = acknowledged(2, $n);
	my $first_lost = (grep { !$survived{ $ids[$_] } } 0 .. $#ids)[0] // @ids;
	cmp_ok($first_lost, '>=', 300, "what publisher $n had sent before is there");
	is(scalar(grep { $survived{ $ids[$_] } } $first_lost .. $#ids), 0, "of its last events there is none behind the first that is lost");
	$lost += @ids - $first_lost;
}
cmp_ok($lost, '>=', $publishers, 'such were lost');
is($third->safe_psql('postgres', q(SELECT count(*) FROM evbus.history h WHERE type = 'new' AND event_id < (SELECT max(event_id) FROM evbus.history))), '1', 'ids grow over both promotions');
$third->stop;

done_testing();
