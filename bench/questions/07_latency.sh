# shellcheck shell=bash
# How soon an event arrives.

title "From publish to handler committed and to client received, 1000 events a second" "percentile"
about "One publisher, paced at 1000 events a second, $(full_or_quick 4 1.5) seconds a measurement; each time begins before the publishing transaction is sent. Handler: f(evbus.event), which inserts one row; its time ends when its transaction has committed and is flushed (a commit callback notes it, bench/driver/module.c). Client: a second connection that waits in receive(100, wait => '10 s') and acks with ack() before it waits again, or with receive(..., ack => receipts), which looks for more at the same time, where evbus has that; its time ends when it holds the event. Compared with two INSERTs of single rows by one client, one after the other, paced alike."
series pair plain "two committed single-row transactions"
series handler evbus "publish to handler committed"
series client evbus "publish to client received"
for key in handler client; do
	need $key p50 '<=' 1.5 pair
	need $key p99 '<=' 3 pair
done

prepare() {
	sql -c "TRUNCATE bench.plain"
	sql -v file="$work/times" >"$work/setup.out" <<-'SQL'
		CREATE TABLE bench.done (event_id bigint PRIMARY KEY);
		SELECT set_config('bench.file', :'file', false);
		DO $do$ BEGIN EXECUTE format($f$
			CREATE FUNCTION bench.prompt(event evbus.event) RETURNS void LANGUAGE plpgsql AS $body$
			BEGIN
				INSERT INTO bench.done VALUES (event.event_id);
				PERFORM bench.note_commit((event.payload->>'sent')::bigint, %L);
			END $body$ $f$, current_setting('bench.file')); END $do$;
		SELECT evbus.create_bus('prompt');
		SELECT evbus.subscribe('prompt', 'prompt', handler => 'bench.prompt(evbus.event)');
		SELECT evbus.create_bus('prompt_client');
		SELECT evbus.subscribe('prompt_client', 'prompt_client', notify => false);
	SQL
	# The first events wake the handler's worker.
	: >"$work/times"
	chmod a+rw "$work/times"
	drive evbus latency --name prompt --file "$work/times" --rate 1000 --seconds 0.5
}

latency() {
	local key=$1
	shift
	ready "$key" || return 0
	settle
	if drive "$@" --rate 1000 --seconds "$(full_or_quick 4 1.5)"; then
		record "$key" p50 "${result[p50]}" "us"
		record "$key" p99 "${result[p99]}" "us"
	else
		fail_series "$key" "$(complaint)"
	fi
}

measure() {
	latency pair plain pair
	: >"$work/times"
	latency handler evbus latency --name prompt --file "$work/times"
	latency client evbus latency --name prompt_client --subscription prompt_client --calls "$receive_calls"
}
