# What Prometheus gets: metrics() read by a real parser, the same by the real exporter; alert rules checked by promtool, and the
# dashboard asks for nothing that is not there.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $share = "$FindBin::RealBin/../../share";
my $dir = PostgreSQL::Test::Utils::tempdir();
my $node = new_node('metrics', conf => 'evbus.upkeep_interval = 600000');
sub sql { my ($q) = @_; return $node->safe_psql('postgres', $q); }

# Upkeep comes once here, with the first bus: before there is a storage class for it to come by.
sql(q(SELECT evbus.create_bus('first')));
answers($node, 'postgres', 'SELECT bool_and(last_success IS NOT NULL) FROM evbus.stat_upkeep', 't', 'upkeep has been');
sql(q(SELECT evbus.drop_bus('first')));
sql(q(SELECT evbus.create_bus('young', retention => '3 days')));

# Names that have to be escaped; a handler that fails; a breaker; a volatile bus.
sql(<<'SQL');
CREATE ROLE monitor LOGIN IN ROLE pg_monitor;
CREATE FUNCTION work(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$ BEGIN IF e.payload = '7' THEN RAISE 'no' USING ERRCODE = '22000'; END IF; END $$;
SELECT evbus.create_bus(E'b "1" \\ x'), evbus.create_bus('v', durability => 'volatile');
SELECT evbus.subscribe(E'b "1" \\ x', E'h "1" \\', handler => 'work(evbus.event)', breaker_threshold => 0.5), evbus.subscribe('v', 'c');
SELECT count(evbus.publish(E'b "1" \\ x', 'a.b', to_jsonb(i))) FROM generate_series(1, 20) AS i;
SELECT count(evbus.publish('v', 'secret.type', '"secret payload"', key => 'secret key')) FROM generate_series(1, 3) AS i;
SQL
answers($node, 'postgres', q(SELECT sum(lag) || ' ' || (SELECT sum(dead_letters) FROM evbus.dead_letter_total) FROM evbus.subscription_lag), '3 1', 'all is handled, one event is dead');

# ---------------------------------------------------------------------------- metrics()

is(sql(q(SELECT last_success IS NULL FROM evbus.stat_upkeep WHERE buses = '{young}')), 't', 'something has no value yet, and so is left out');
my $text = $node->safe_psql('postgres', 'SELECT evbus.metrics()', extra_params => [ '-U', 'monitor' ]);
my $parser = "$dir/parse.py";
append_to_file($parser, <<'PY');
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain
parse = openmetrics if sys.argv[1] == 'openmetrics' else plain
for family in parse(open(sys.argv[2], newline='').read()):
    for s in family.samples:
        if s.name.startswith('evbus'):
            print(family.type, s.name, sorted((k, v) for k, v in s.labels.items() if k != 'server'), int(s.value) if s.value == int(s.value) else s.value, sep='\t')
PY
my $file = "$dir/metrics.txt";
# What a parser makes of a text: name and labels => value, name => kind.
sub parsed
{
	my ($form, $of) = @_;
	unlink $file;
	append_to_file($file, $of);
	my $ok = IPC::Run::run([ '/usr/bin/python3', $parser, $form, $file ], '>', \my $out, '2>', \my $err);
	ok($ok, "a real parser reads it ($form)") or diag $err;
	my (%value, %kind);
	foreach (split /\n/, $out)
	{
		my ($kind, $name, $labels, $value) = split /\t/;
		$value{"$name $labels"} = $value;
		$kind{$name} = $kind;
	}
	return (\%value, \%kind);
}
my ($is, $kind) = parsed('openmetrics', $text);
my $b = q(('bus', 'b "1" \\\\ x'));
my $h = qq([$b, ('subscription', 'h "1" \\\\')]);
is($is->{"evbus_bus_published_events_total [$b]"}, 20, 'with names as they are, however they look');
is($is->{"evbus_subscription_done_events_total $h"}, 19, 'what is done');
is($is->{"evbus_subscription_dead_lettered_events_total $h"}, 1, 'what is dead');
is($is->{"evbus_subscription_dead_letters $h"}, 1, 'and still there');
is($is->{"evbus_subscription_breaker_open $h"}, 0, 'a breaker that is closed');
is($is->{"evbus_subscription_handler_seconds_count $h"}, $is->{"evbus_subscription_handler_seconds_bucket [$b, ('le', '+Inf'), ('subscription', 'h \"1\" \\\\')]"}, 'a histogram with its count');
cmp_ok($is->{"evbus_subscription_handler_seconds_sum $h"}, '>', 0, 'and its sum');
is($is->{"evbus_subscription_lag_events [('bus', 'v'), ('subscription', 'c')]"}, 3, 'a lag');
is($is->{'evbus_ready []'}, 1, 'and that all runs');
is($kind->{'evbus_bus_published_events_total'} . ' ' . $kind->{'evbus_subscription_lag_events'} . ' ' . $kind->{'evbus_subscription_latency_seconds_bucket'}, 'counter gauge histogram', 'of their kinds');
unlike($text, qr/secret (payload|key)/, 'no payload, no key');
my ($ret, $out, $err) = $node->psql('postgres', 'SELECT evbus.metrics()', extra_params => [ '-U', 'monitor' ]);
is($err, '', 'without a word');

# --------------------------------------------------------------------------- the exporter

my $port = PostgreSQL::Test::Cluster::get_free_port();
$ENV{DATA_SOURCE_NAME} = 'user=monitor dbname=postgres host=' . $node->host . ' port=' . $node->port;
my $exporter = IPC::Run::start([ 'prometheus-postgres-exporter', "--web.listen-address=127.0.0.1:$port", '--disable-default-metrics', '--disable-settings-metrics',
		"--extend.query-path=$share/postgres_exporter.yaml" ], '<', \undef, '>', \my $exporter_out, '2>', \my $exporter_err);
my $scrape = "$dir/scrape.py";
append_to_file($scrape, "import sys, urllib.request\nsys.stdout.write(urllib.request.urlopen('http://127.0.0.1:$port/metrics', timeout=10).read().decode())\n");
my $scraped;
my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
until (IPC::Run::run([ '/usr/bin/python3', $scrape ], '>', \$scraped, '2>', \my $scrape_err) && $scraped =~ /^evbus_ready/m)
{
	last if time > $deadline;
	select(undef, undef, undef, 0.1);
}
$exporter->kill_kill;
my ($other) = parsed('prometheus', $scraped);
unlike($exporter_err, qr/level=error/, 'the exporter has no error') or diag $exporter_err;
is($other->{"evbus_bus_published_events_total [$b]"}, 20, 'it has the same names');
my %names = map { (split / /)[0] => 1 } keys %$is;
my %theirs = map { (split / /)[0] => 1 } keys %$other;
is_deeply([ sort keys %theirs ], [ sort keys %names ], 'each metric is there, under the same name');
my @differ = grep { !/_timestamp_|_ring_used|_latency_|_bytes|evbus_handler_workers|_created/ && $is->{$_} != ($other->{$_} // -1) } keys %$is;
is("@differ", '', 'with the same value');

# --------------------------------------------------------------- rules and dashboard

my $rules = "$share/prometheus_rules.yaml";
ok(IPC::Run::run([ 'promtool', 'check', 'rules', $rules ], '>', \$out, '2>', \$err), 'promtool finds no fault with the rules') or diag "$out$err";
my $test = slurp_file("$FindBin::RealBin/../module/rules_test.yaml");
$test =~ s/RULES/$rules/;
append_to_file("$dir/rules_test.yaml", $test);
ok(IPC::Run::run([ 'promtool', 'test', 'rules', "$dir/rules_test.yaml" ], '>', \$out, '2>', \$err), 'they wait for what they shall, and leave the rest alone') or diag "$out$err";

# Every metric that is asked for exists.
ok(IPC::Run::run([ '/usr/bin/python3', '-m', 'json.tool', "$share/grafana_dashboard.json" ], '>', \$out, '2>', \$err), 'the dashboard is JSON') or diag $err;
foreach my $name ("$share/grafana_dashboard.json", $rules)
{
	my %asked = map { $_ => 1 } slurp_file($name) =~ /\b(evbus_[a-z_]+)/g;
	delete $asked{$_} foreach grep { $names{$_} } keys %asked;
	is(join(' ', sort keys %asked), '', "$name asks for what is there");
}

$node->stop;
done_testing();
