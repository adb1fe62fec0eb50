# shellcheck shell=bash
# Receiving and acking one at a time.

title "Receive and ack, one event at a time" "consumers"
about "One consumer empties a backlog. Two calls: receive and ack, each its own transaction; one call: SELECT * FROM evbus.receive(subscription, 1, ack => receipts), which acks the last event and receives the next. pgmq: read() and delete(), or pop() for both in one call. PgQ: batches of one event."
series insert plain "INSERT of one row, a transaction"
series two evbus "evbus.receive() and evbus.ack()"
series one evbus "evbus.receive(..., ack => receipts)"
series pgmq pgmq "pgmq.read() and pgmq.delete()"
series pop pgmq "pgmq.pop()"
series pgq pgq "PgQ, batches of one event"
series redis_everysec redis_everysec "Redis XREADGROUP and XACK, fsync every second"
series redis_always redis_always "Redis XREADGROUP and XACK, fsync always"
series nats nats "NATS JetStream fetch and ack"
[ "$receive_calls" = one ] || missing one "evbus.receive() has no argument ack yet"
need two 1 '>=' 0.7 insert
need one 1 '>=' 0.9 insert

single_events=$(full_or_quick 10000 2500)

prepare() {
	sql -c "TRUNCATE bench.plain" -c "SELECT evbus.create_bus('received_single')" \
		-c "SELECT evbus.subscribe('received_single', 'received_single', notify => false)" >"$work/setup.out"
}

measure() {
	local few
	few=$(full_or_quick 3000 800)
	sample insert 1 plain publish --events "$single_events"
	emptied two evbus receive "$single_events"
	sample insert 1 plain publish --events "$single_events"
	emptied one evbus receive "$single_events" --calls one
	emptied pgmq pgmq receive "$few"
	emptied pop pgmq receive "$few" --by pop
	emptied pgq pgq receive "$few"
	emptied redis_everysec redis_everysec receive "$single_events"
	emptied redis_always redis_always receive "$few"
	emptied nats nats receive "$few"
}

# emptied KEY SYSTEM OPERATION EVENTS [ARGS...]
emptied() {
	local key=$1 system=$2
	try "$key" fill "$system" received_single --batch 1 --events "$4" || return 0
	sample "$key" 1 "$system" "$3" --name "$(queue_of "$system" received_single)" --events "$4" "${@:5}"
	if [ "$system" = evbus ]; then
		lag_is received_single 0
	fi
}
