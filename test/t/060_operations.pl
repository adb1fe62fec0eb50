# docs/operations.md and docs/migrating.md: what they tell people to type works, the sizes are right, a standby takes over,
# and a copy that is started as told calls no handler, although it would.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# The indented blocks of a document, each with the heading it stands under.  Fences hold what is of other systems.
sub blocks
{
	my ($name) = @_;
	my ($heading, $fence, @blocks, @block) = ('', 0);
	foreach my $line (split(/\n/, slurp_file("$FindBin::RealBin/../../docs/$name")), 'end')
	{
		$fence = !$fence if $line =~ /^```/;
		if (!$fence && ($line =~ /^ {4,}\S/ || @block && $line eq '')) { push @block, $line; next; }
		push @blocks, [ $heading, join("\n", map { s/^ {4,7}(?=\S)//r } @block) ] if @block;
		@block = ();
		$heading = $1 if $line =~ /^## (.*)/;
	}
	return @blocks;
}

sub works
{
	my ($node, $database, $block) = @_;
	my ($code, $out, $err) = $node->psql($database, $block->[1]);
	my ($first) = $block->[1] =~ /^(.{0,70})/;
	return ok($code == 0, "$block->[0]: $first") || diag($err);
}

my $node = new_node('operations', conf => <<'CONF');
wal_level = replica
max_wal_senders = 5
CONF
# "elsewhere" fails where it is, and would have an effect in a copy.
$node->safe_psql('postgres', sprintf <<'SQL', $node->port);
CREATE TABLE effect (server text);
CREATE FUNCTION bill(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$ BEGIN IF e.type = 'order.bad' THEN RAISE 'no'; END IF; END $$;
CREATE FUNCTION elsewhere(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF current_setting('port') = '%d' THEN RAISE 'not here'; END IF;
	INSERT INTO effect VALUES (current_setting('port'));
END $$;
SELECT evbus.create_bus('orders'), evbus.create_bus('mails');
SELECT evbus.subscribe('orders', 'billing', handler => 'bill(evbus.event)', max_attempts => 1, breaker_threshold => 0.9), evbus.subscribe('orders', 'mailer');
SELECT evbus.subscribe('mails', 'elsewhere', handler => 'elsewhere(evbus.event)', max_attempts => 1000, backoff_initial => '1 second', backoff_max => '1 second');
SELECT evbus.publish('orders', type, '1') FROM unnest('{order.created,order.bad}'::text[]) AS type;
SELECT evbus.publish('mails', 'mail', '1');
SQL
answers($node, 'postgres', q(SELECT (SELECT count(*) FROM evbus.dead_letter) || ' ' || (SELECT count(*) FROM evbus.retry_list)), '1 1', 'there are a dead letter and a retry');

# ------------------------------------------------------------------- a copy, and a standby

$node->backup('copy');
my $copy = PostgreSQL::Test::Cluster->new('copy');
$copy->init_from_backup($node, 'copy');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'copy', has_streaming => 1);
$standby->start;

my @operations = blocks('operations.md');
my ($shell) = grep { $_->[1] =~ /^pg_ctl/ } @operations;
{
	local %ENV = (%ENV, COPY => $copy->data_dir, PGHOST => $copy->host, PGPORT => $copy->port, PGDATABASE => 'postgres');
	my $script = $shell->[1] =~ s/COPY/"\$COPY"/gr =~ s/-d shop/-d postgres/r;
	append_to_file($copy->data_dir . '/copy.sh', "set -e\n$script\n");
	is(system('bash -x "$COPY/copy.sh" >"$COPY/copy.log" 2>&1'), 0, 'a copy is started as told') or diag slurp_file($copy->data_dir . '/copy.log');
}
answers($copy, 'postgres', q(SELECT count(*) FROM evbus.subscription_lag WHERE cursor_position IS NOT NULL), '3', 'its workers run');
answers($copy, 'postgres', q(SELECT count(*) FROM evbus.retry_list WHERE due_at < now() - interval '2 seconds'), '1', 'and long since something was due');
is($copy->safe_psql('postgres', q(SELECT count(*) FROM effect)), '0', 'no handler was called');
is($copy->safe_psql('postgres', q(SELECT string_agg(bus, ' ' ORDER BY bus) FROM evbus.bus_list WHERE paused)), 'mails orders', 'as all is paused');
$copy->safe_psql('postgres', q(SELECT evbus.resume_bus('mails')));
answers($copy, 'postgres', q(SELECT count(*) FROM effect), '1', 'which would have been, but for that');
system_or_bail('pg_ctl', '-D', $copy->data_dir, '-m', 'fast', 'stop');

is($standby->safe_psql('postgres', q(SELECT count(*) FROM evbus.history)), '3', 'on a standby the log can be read');
$node->stop;
my ($promote) = grep { $_->[1] =~ /pg_promote/ } @operations;
works($standby, 'postgres', $promote);
answers($standby, 'postgres', q(SELECT count(*) FROM effect), '1', 'the new primary does what waited');
$standby->stop;
$node->start;

# ------------------------------------------------------------------- what is to be typed, and sizes

my @typed = grep { $_ != $shell && $_ != $promote } @operations;
cmp_ok(scalar @typed, '>', 15, 'operations.md has blocks');
works($node, 'postgres', $_) foreach @typed;

# Each line of the table of memory: settings, then a factor.
my ($bytes, $lines) = (0, 0);
foreach my $line (split /\n/, slurp_file("$FindBin::RealBin/../../docs/operations.md"))
{
	next unless $line =~ /^\| (`evbus\.[^|]*) \| (itself|× [\d,]+|× 1⅐) \| [\d.]+ MB \|$/;
	my ($settings, $factor) = ($1, $2);
	$factor = $factor eq 'itself' ? 1 : $factor eq '× 1⅐' ? 8 / 7 : $factor =~ tr/0-9//cdr;
	$factor *= $node->safe_psql('postgres', "SELECT CASE unit WHEN 'kB' THEN 1024 ELSE 1 END * setting::bigint FROM pg_settings WHERE name = '$_'")
		foreach $settings =~ /`([^`]*)`/g;
	$bytes += $factor;
	$lines++;
}
is($lines, 6, 'operations.md tells of six areas');
my $real = $node->safe_psql('postgres', q(SELECT allocated_size / current_setting('evbus.max_databases')::int FROM pg_shmem_allocations WHERE name = 'evbus'));
cmp_ok(abs($bytes - $real), '<', 0.01 * $real, "which are all that there is: $bytes of $real bytes a database");

$node->safe_psql('postgres', 'CREATE DATABASE moving');
$node->safe_psql('moving', 'CREATE EXTENSION evbus; CREATE TABLE booking (order_id bigint)');
my @moving = blocks('migrating.md');
cmp_ok(scalar @moving, '>', 3, 'migrating.md has blocks');
works($node, 'moving', $_) foreach @moving;
answers($node, 'moving', 'SELECT string_agg(order_id::text, $$ $$ ORDER BY order_id) FROM booking', '7 43', 'the handler has booked, and so has the transaction that publishes');
$node->stop;
done_testing();
