# shellcheck shell=bash
# Publishing one event per transaction.

title "Publish, one event per transaction" "clients"
about "Prepared statements, each its own transaction, $(full_or_quick 1.2 0.35) seconds a measurement. Redis: one XADD at a time. NATS: one publish at a time, with its acknowledgement. A handler at work takes what is published at once, on the same two cores: each commit wakes the sequencer and the handler, which writes and commits as well; PgQ, pgmq, Redis and NATS have no consumer here."
series select plain "SELECT 1"
series insert plain "INSERT of the same row"
series evbus evbus "evbus.publish(), nobody waits for it"
series handled evbus "evbus.publish(), a handler at work"
series pgmq pgmq "pgmq.send()"
series pgq pgq "pgq.insert_event()"
series redis_everysec redis_everysec "Redis XADD, fsync every second"
series redis_always redis_always "Redis XADD, fsync always"
series nats nats "NATS JetStream publish, file"
for x in 1 4 16; do
	need evbus $x '>=' 0.95 insert
done

prepare() {
	sql >"$work/setup.out" <<-'SQL'
		SELECT evbus.create_bus('taken');
		SELECT evbus.subscribe('taken', 'taken', handler => 'bench.batches(evbus.event[])', batch_size => 1000);
	SQL
}

measure() {
	local x seconds=(--seconds "$(full_or_quick 1.2 0.35)")
	empty_all
	for x in 1 4 16; do
		sample select $x plain select --clients $x "${seconds[@]}"
		sample insert $x plain publish --clients $x "${seconds[@]}"
		sample evbus $x evbus publish --name quiet --clients $x "${seconds[@]}"
		sample handled $x evbus publish --name taken --clients $x "${seconds[@]}"
		lag_is taken 0
		sample pgmq $x pgmq publish --clients $x "${seconds[@]}"
		sample pgq $x pgq publish --clients $x "${seconds[@]}"
		sample redis_everysec $x redis_everysec publish --clients $x "${seconds[@]}"
		sample redis_always $x redis_always publish --clients $x "${seconds[@]}"
		sample nats $x nats publish --clients $x "${seconds[@]}"
	done
}
