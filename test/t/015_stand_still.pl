# The sequencer and publishers stopped against each other at exact steps: what is read in the wrong order loses or doubles.
#
# Recovery begins at low_id of the newest tick, so no tick may claim an event that an open publisher can still commit; and
# what a publisher in its commit callback still holds for the ring may have been recovered from the log meanwhile.

use strict;
use warnings FATAL => 'all';
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('stand_still', conf => <<'CONF');
restart_after_crash = on
max_prepared_transactions = 10
evbus.ring_size = '1MB'
evbus.late_after = '1h'
CONF
plan skip_all => 'the library has no debug points' unless points($node);
shop($node);

my $sequencer = q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'evbus sequencer');
my $serial = 0;

sub publish
{
	my ($type, $n) = @_;
	return $node->safe_psql('postgres', sprintf(q(SELECT count(evbus.publish('orders', '%s', to_jsonb(repeat('x', 1000)))) FROM generate_series(1, %d)), $type, $n // 1));
}

# A session that publishes one event and commits, without our waiting for it.
sub publish_aside
{
	my ($type) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	$session->query_until(qr/begun/, "\\echo begun\nSELECT evbus.publish('orders', '$type', '1');\n\\echo finished\n");
	return $session;
}

sub finish
{
	my ($session) = @_;
	eval { $session->query_until(qr/finished/, ''); $session->quit };
}

# The order in which the handler was given some types.
sub given
{
	my ($pattern) = @_;
	return $node->safe_psql('postgres', "SELECT string_agg(type, ' ' ORDER BY position) FROM effect WHERE type LIKE '$pattern'");
}

# The sequencer stands still at that point; something to do brings it there at once.
sub stand_still
{
	my ($point) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	point($node, $point, 'wait');
	publish('wake');
	return ok(reached($node, $point), "the sequencer stands still at $point");
}

sub terminate_sequencer
{
	my $old = worker_pids($node, 'evbus sequencer');
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($old)");
	return $old;
}

# ------------------------------------------ an open publisher, and a tick that must not claim its event

foreach my $how ('commits while the sequencer stands still', 'commits after others, and is late', 'is prepared')
{
	my $tag = 'open' . ++$serial;
	my $open = $node->background_psql('postgres', on_error_stop => 0);
	$open->query_safe('BEGIN');
	$open->query_safe("SELECT evbus.publish('orders', '$tag.a', '1')");
	publish("$tag.b");
	answers($node, 'postgres', "SELECT count(*) FROM evbus.tick t JOIN effect e ON e.position BETWEEN t.first_position AND t.first_position + t.n - 1 WHERE type = '$tag.b'", '1',
		"what another published meanwhile is delivered and its tick written: the open publisher $how");
	if ($how =~ /late/)
	{
		$node->append_conf('postgresql.conf', "evbus.late_after = '10ms'");
		$node->reload;
		answers($node, 'postgres', "SELECT setting FROM pg_settings WHERE name = 'evbus.late_after'", '10', 'publishers are late at once from now on');
		publish("$tag.c");
		# The sequencer has flipped its slot once a tick claims what is above.
		my $n = 0;
		do { publish("$tag.d") } while ($node->safe_psql('postgres', "SELECT max(low_id) > (SELECT event_id FROM evbus.history WHERE type = '$tag.c') FROM evbus.tick") eq 'f' && ++$n < 500);
		cmp_ok($n, '<', 500, 'recovery no longer waits for it');
	}
	stand_still('sequencer.clock');
	if ($how =~ /prepared/)
	{
		$open->query_safe("PREPARE TRANSACTION 'g'");
		$open->query_safe(q(COMMIT PREPARED 'g'));
	}
	else
	{
		$open->query_safe('COMMIT');
	}
	my $log = -s $node->logfile;
	kill 'KILL', $node->safe_psql('postgres', $sequencer);
	ok(crashed($node, $log), 'it is killed, and the server restarts itself');
	eval { $open->quit };
	complete($node, "an open publisher $how, then a crash");
	like(given("$tag.%"), qr/^$tag\.b( $tag\.[cd])* $tag\.a$/, "its event is delivered, after what was published and delivered before its commit: it $how");
	$node->append_conf('postgresql.conf', "evbus.late_after = '1h'");
	$node->reload;
}

# -------------------------- a publisher in its commit callback while sequencers end and recover around it

foreach my $point ('publish.committed', 'publish.pushed')
{
	my $tag = 'callback' . ++$serial;
	point($node, $point, 'wait');
	my $session = publish_aside("$tag.a");
	ok(reached($node, $point), "a publisher stands still at $point");
	# The second one must know what the first one has recovered, though the ring does not have it yet.
	foreach my $death ('first', 'second')
	{
		my $old = terminate_sequencer();
		ok(other_worker($node, 'evbus sequencer', $old), "the $death sequencer ends and another comes");
		answers($node, 'postgres', "SELECT count(*) FROM effect WHERE type = '$tag.a'", '1', 'its event is there once, from the log or from the ring');
	}
	point($node, $point, 'off');
	finish($session);
	publish("$tag.b", 3);
	complete($node, "a publisher stood at $point while two sequencers ended");
	is(given("$tag.%"), join(' ', "$tag.a", ("$tag.b") x 3), 'it is delivered once, and first');
}

# One that finds the ring full, stopped before it clears its slot; the sequencer ends meanwhile.
{
	my $tag = 'full' . ++$serial;
	stand_still('sequencer.clock');
	publish("$tag.filler", 80) foreach 1 .. 14;
	point($node, 'publish.pushed', 'wait');
	my $session = publish_aside("$tag.a");
	ok(reached($node, 'publish.pushed'), 'a publisher found the ring full and has not cleared its slot');
	my $old = terminate_sequencer();
	point($node, 'sequencer.clock', 'off');
	ok(other_worker($node, 'evbus sequencer', $old), 'the sequencer ends and another comes');
	answers($node, 'postgres', "SELECT count(*) FROM effect WHERE type = '$tag.a'", '1', 'which finds the event in the log');
	point($node, 'publish.pushed', 'off');
	finish($session);
	publish("$tag.b");
	complete($node, 'a full ring, a publisher in its callback, and another sequencer');
}

# One that finds the ring full, and then one that is small enough to fit: the order is that of their commits all the same.
foreach my $point ('sequencer.clock', 'sequencer.slots', 'sequencer.tail')
{
	my $tag = 'small' . ++$serial;
	stand_still($point);
	publish("$tag.filler", 80) foreach 1 .. 11;
	my $overflows = 'SELECT ring_overflows FROM evbus._status()';
	my $before = $node->safe_psql('postgres', $overflows);
	publish("$tag.a", 100);
	is($node->safe_psql('postgres', $overflows), $before + 1, 'a transaction finds no room in the ring');
	publish("$tag.b");
	is($node->safe_psql('postgres', $overflows), $before + 1, 'the next one does');
	point($node, $point, 'off');
	complete($node, 'one did not fit into the ring, the next one did');
	is($node->safe_psql('postgres', "SELECT max(position) FILTER (WHERE type = '$tag.a') < min(position) FILTER (WHERE type = '$tag.b') FROM effect"), 't', "they are in the order of their commits: the sequencer stood at $point");
}

# ------------------------------------ the sequencer stands at each step while publishers of all kinds commit

foreach my $point ('sequencer.clock', 'sequencer.slots', 'sequencer.tail', 'sequencer.drained', 'sequencer.ticks', 'sequencer.committed')
{
	foreach my $end ('goes on', 'is terminated', 'is killed')
	{
		next if $end eq 'goes on' && $point !~ /slots|tail/;
		next if $end eq 'is terminated' && $point =~ /clock|slots/;    # as at the tail: nothing is placed yet
		my $tag = 'step' . ++$serial;
		my $log = -s $node->logfile;
		stand_still($point);
		publish("$tag.one") foreach 1 .. 3;
		publish("$tag.large", 200);    # more than an eighth of the ring: by way of evbus.late
		$node->safe_psql('postgres', "BEGIN; SELECT evbus.publish('orders', '$tag.prepared', '1'); PREPARE TRANSACTION '$tag'; COMMIT PREPARED '$tag'");
		publish("$tag.last");
		if ($end eq 'is killed')
		{
			kill 'KILL', $node->safe_psql('postgres', $sequencer);
			crashed($node, $log) or die 'no crash';
		}
		else
		{
			terminate_sequencer() if $end eq 'is terminated';
			point($node, $point, 'off');
		}
		complete($node, "the sequencer stands at $point, then $end");
		is($node->safe_psql('postgres', "SELECT string_agg(DISTINCT type, ' ') FROM effect WHERE position = (SELECT max(position) FROM effect)"), "$tag.last", 'what was published last has the last position');
	}
}

is($node->safe_psql('postgres', 'SELECT count(*) FROM evbus.late'), '0', 'no row in evbus.late is left');
my $all = $node->safe_psql('postgres', 'SELECT count(*) FROM effect');
is(scalar(receive_all($node, 'postgres', 'reader', $all)), $all, 'a client receives as many as the handler');

$node->stop;
done_testing();
