# The chaos checker for a few cycles (docs/chaos.md), and whether its mutants still apply to src/.

use strict;
use warnings FATAL => 'all';
use FindBin;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $chaos = "$FindBin::RealBin/../chaos";
my $python = '/usr/bin/python3';

plan skip_all => 'python3 with psycopg2 is not installed' if system("$python -c 'import psycopg2' 2>/dev/null") != 0;

my $bin = PostgreSQL::Test::Cluster->new('chaos')->config_data('--bindir');
my $directory = PostgreSQL::Test::Utils::tempdir_short();
my ($out, $err) = ('', '');
local $ENV{PYTHONDONTWRITEBYTECODE} = 1;
my $finished = IPC::Run::run(
	[ $python, "$chaos/driver.py", '--tap', '--bin', $bin, '--dir', $directory, '--cycles', $ENV{CHAOS_CYCLES} // 6 ],
	'>', \$out, '2>', \$err, IPC::Run::timeout(400));

my $invariants = 0;
foreach my $line (split /\n/, $out)
{
	if ($line =~ /^(not )?ok \d+ - (.*)/)
	{
		ok(!$1, "chaos: $2");
		$invariants++;
	}
	elsif ($line =~ /^# (.*)/)
	{
		$finished ? note($1) : diag($1);
	}
}
is($invariants, 12, 'every invariant was checked') or diag($err);
ok($finished, 'the checker says so with its exit status, too') or diag($err);

# A mutant that does not apply proves nothing: when src/ moves on, the patch has to follow.
my @mutants = glob("$chaos/mutants/*.patch");
cmp_ok(scalar(@mutants), '>=', 20, 'there are mutants');
foreach my $mutant (@mutants)
{
	my $said = `patch --dry-run -f -p1 -d '$FindBin::RealBin/../..' < '$mutant' 2>&1`;
	my ($name) = $mutant =~ m{([^/]+)\.patch$};
	ok($? == 0, "mutant $name applies") or diag($said);
}

done_testing();
