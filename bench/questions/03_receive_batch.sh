# shellcheck shell=bash
# Receiving and acking in batches.

title "Receive and ack, in batches" "batch / consumers"
about "A backlog is put in beforehand and emptied: receive and ack, two statements a batch, each its own transaction; receive(..., ack => receipts) is one. With receive_lines() the consumer gets all fields of a delivery as JSON lines in one row, and counts events and receipts; with receive() it gets a row for each. pgmq: read() and delete(). PgQ: next_batch(), get_batch_events(), finish_batch(); its batches lie between two ticks, and a consumer has one batch at a time, so four consumers have a queue each. Redis: XREADGROUP and XACK. NATS: a pull consumer, explicit acks."
series lines evbus "evbus.receive_lines() and evbus.ack()"
series two evbus "evbus.receive() and evbus.ack()"
series one evbus "evbus.receive(..., ack => receipts)"
series pgmq pgmq "pgmq.read() and pgmq.delete()"
series pgq pgq "PgQ, a batch"
series redis redis_everysec "Redis XREADGROUP and XACK, fsync every second"
series nats nats "NATS JetStream fetch and ack"
[ "$receive_calls" = one ] || missing one "evbus.receive() has no argument ack yet"
for batch in 100 1000; do
	for x in 1 4; do
		need lines $batch/$x '>=' 8 pgmq
		need lines $batch/$x '>=' $((batch == 100 ? 2 : 1)) pgq
	done
done

prepare() {
	sql >"$work/setup.out" <<-'SQL'
		SELECT evbus.create_bus('received');
		SELECT evbus.subscribe('received', 'received', notify => false);
	SQL
}

measure() {
	local batch x many few
	for batch in 100 1000; do
		many=$(full_or_quick $((batch == 100 ? 120000 : 300000)) $((batch == 100 ? 24000 : 60000)))
		few=$(full_or_quick 60000 16000)
		for x in 1 4; do
			emptied lines $batch $x evbus "$many" --by lines
			emptied pgmq $batch $x pgmq "$few"
			emptied pgq $batch $x pgq "$many"
			emptied two $batch $x evbus "$many"
			emptied one $batch $x evbus "$many" --calls one
			emptied redis $batch $x redis_everysec "$many"
			emptied nats $batch $x nats "$few"
		done
	done
}

# emptied KEY BATCH CONSUMERS SYSTEM EVENTS [ARGS...]: one measurement, with its own backlog
emptied() {
	local key=$1 batch=$2 x=$3 system=$4 share=(--batch "$2" --clients "$3" --events "$5")
	try "$key" fill "$system" received "${share[@]}" || return 0
	sample "$key" "$batch/$x" "$system" receive --name "$(queue_of "$system" received)" "${share[@]}" "${@:6}"
	if [ "$system" = evbus ]; then
		lag_is received 0
	fi
}
