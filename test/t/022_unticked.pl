# What is shown to readers and has no tick yet, when the server crashes: recovery must begin below it.
#
# The dangerous moment comes after a recovery, when an empty tick is to tell the next start where to begin: it must not
# claim what only the ring knows.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use Test::More;

my $node = new_node('unticked', conf => "evbus.ring_size = '1MB'\n");
plan skip_all => 'the library has no debug points' unless points($node);
$node->safe_psql('postgres', q(SELECT evbus.create_bus('still')));
# Nobody waits for its events, so that their ticks wait.
$node->safe_psql('postgres', q(SELECT evbus.subscribe('still', 'still', notify => false)));

sub publish
{
	my ($type, $n, $size) = @_;
	return $node->safe_psql('postgres', "SELECT count(*) FROM evbus.publish_batch('still', '{$type}', array_fill(to_jsonb(repeat('x', $size)), ARRAY[$n]))");
}

my $overflows = 'SELECT ring_overflows FROM evbus._status()';

# More than the ring holds: the next turn recovers.
point($node, 'sequencer.clock', 'wait');
ok(reached($node, 'sequencer.clock'), 'the sequencer stands still');
publish('filler', 60, 1500) foreach 1 .. 10;
publish('lost', 80, 1500);
is($node->safe_psql('postgres', $overflows), 1, 'a transaction found no room in the ring');
point($node, 'sequencer.recovering', 'wait');
point($node, 'sequencer.clock', 'off');
ok(reached($node, 'sequencer.recovering'), 'the sequencer recovers it');

# Meanwhile ten events of one transaction come through the ring.  The first tick after the recovery is of what it
# passed over; theirs is the second, and is not committed.
publish('shown', 10, 1);
is($node->safe_psql('postgres', $overflows), 1, 'ten events find room');
point($node, 'sequencer.ticks', 'wait', 1);
point($node, 'sequencer.recovering', 'off');
ok(reached($node, 'sequencer.ticks'), 'they are shown, and their tick is about to be committed');
is($node->safe_psql('postgres', q(SELECT next_position - ticked_position FROM evbus._bus_state())), 10, 'ten positions wait for it');
# Whatever else the sequencer has committed is in WAL now.
$node->safe_psql('postgres', 'CREATE TABLE flushed ()');
$node->stop('immediate');
$node->start;

answers($node, 'postgres', q(SELECT lag FROM evbus.subscription_lag WHERE subscription = 'still'), 600 + 80 + 10, 'after the crash every event has a position');
my @got = receive_all($node, 'postgres', 'still', 600 + 80 + 10);
is(scalar(@got), 600 + 80 + 10, 'and is delivered');
is($node->safe_psql('postgres', q(SELECT count(*) FROM evbus.history WHERE type = 'shown')), 10, 'the ten are in the log');

$node->stop;
done_testing();
