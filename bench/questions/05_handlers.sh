# shellcheck shell=bash
# Handlers inside the database, beside a loop that calls the same functions.

title "Handlers in PL/pgSQL" "handler"
about "The handlers do nothing with their events, so what is measured is the bus: batch_size 1000, concurrency 1. $(full_or_quick 500000 150000) events are published while the subscription is paused; the clock runs from resume(), waking the worker included, until the lag, looked at every ms, is 0."
about "The bare loop is a PL/pgSQL procedure that reads 1000 rows of the plain table by primary key, makes the same evbus.event values of them, calls the same function with PERFORM, and commits, and so on; it writes nothing, where evbus writes down what is done. The bare SELECT calls the function from one statement over all rows."
series evbus evbus "evbus"
series loop plain "bare PL/pgSQL loop"
series select plain "bare SELECT"
need evbus "one event" '>=' 100000
need evbus "arrays" '>=' 250000
need evbus "one event" '>=' 0.7 loop
need evbus "arrays" '>=' 0.7 loop

handler_events=$(full_or_quick 500000 150000)

prepare() {
	sql -c "TRUNCATE bench.plain"
	settle
	drive plain publish --batch 1000 --events "$handler_events"
	sql -c "VACUUM (ANALYZE, FREEZE) bench.plain"
	sql >"$work/setup.out" <<-'SQL'
		SELECT evbus.create_bus('handled');
		SELECT evbus.subscribe('handled', 'handled_single', handler => 'bench.single(evbus.event)', batch_size => 1000);
		SELECT evbus.subscribe('handled', 'handled_batches', handler => 'bench.batches(evbus.event[])', batch_size => 1000);
		SELECT evbus.subscribe('handled', 'handled_counted', handler => 'bench.counted(evbus.event[])', batch_size => 1000);
		SELECT evbus.pause(s) FROM unnest('{handled_single, handled_batches, handled_counted}'::text[]) s;
	SQL
}

measure() {
	local events=(--events "$handler_events")
	drive evbus publish --name handled --batch 1000 --clients 2 "${events[@]}"
	lag_is handled_single "$handler_events"
	sample evbus "one event" evbus drain --name handled_single "${events[@]}"
	sample loop "one event" plain call --sql "CALL bench.loop_single($handler_events)" "${events[@]}"
	sample select "one event" plain call --sql "SELECT bench.select_single($handler_events)" "${events[@]}"
	sample evbus "arrays" evbus drain --name handled_batches "${events[@]}"
	sample loop "arrays" plain call --sql "CALL bench.loop_batches($handler_events)" "${events[@]}"
}

# Positions count without holes, so their sum says whether each came once.
finish() {
	local events=$((question_rounds * handler_events))
	drive evbus drain --name handled_counted --events $events
	[ "$(sql -c "SELECT (events, positions) = ($events, $events::numeric * ($events + 1) / 2) FROM bench.counter")" = t ] || {
		echo "the counting handler has not seen each of $events events once: $(sql -c "SELECT * FROM bench.counter")" >&2
		return 1
	}
}
