# shellcheck shell=bash
# A consumer that is millions of events behind.

behind_events=$(full_or_quick 10000000 500000)

title "A consumer far behind" "events"
about "A handler f(evbus.event[]), batch_size 1000. Behind: $behind_events events are published while it is paused, then it is resumed; they are read from the log, on disk or in its cache. Keeping up: the same with 60000 events, which it finds in the ring, five times before and five times after. At the same time: published and handled together, on two cores, until the handler has all."
series fresh evbus "keeps up: out of the ring"
series behind evbus "catches up"
series follow evbus "published and handled at the same time"
need behind "$behind_events" '>=' 0.7 fresh 60000
rounds 1

prepare() {
	sql >"$work/setup.out" <<-'SQL'
		SELECT evbus.create_bus(b) FROM unnest('{fresh, behind, follow}'::text[]) b;
		SELECT evbus.subscribe(b, b, handler => 'bench.batches(evbus.event[])', batch_size => 1000)
			FROM unnest('{fresh, behind, follow}'::text[]) b;
		SELECT evbus.pause(s) FROM unnest('{fresh, behind}'::text[]) s;
	SQL
}

fresh() {
	local i
	for i in {1..5}; do
		drive evbus publish --name fresh --batch 1000 --events 60000
		lag_is fresh 60000
		sample fresh 60000 evbus drain --name fresh --events 60000
	done
}

measure() {
	local i
	for i in {1..3}; do
		sample follow "$(full_or_quick 200000 60000)" evbus follow --name follow --subscription follow --batch 1000 --events "$(full_or_quick 200000 60000)"
	done
	fresh
	limit=300 drive evbus publish --name behind --batch 1000 --clients 2 --events "$behind_events"
	lag_is behind "$behind_events"
	limit=300 sample behind "$behind_events" evbus drain --name behind --events "$behind_events"
	fresh
}
