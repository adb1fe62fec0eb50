# shellcheck shell=bash
# What each further subscription costs.

title "What each further subscription costs" "subscriptions"
about "publish_batch() of $(full_or_quick 100000 20000) events in batches of 1000, one client, to buses that have 0, 1, 2, 4, 8 and 16 subscriptions. Paused: nobody reads. With handlers: each subscription has one that keeps up, on the same two cores as the publisher, so its rate falls with their work; its own cost is seen in the CPU time of its backend."
about "Cost of each = what an event takes longer to publish than without subscriptions, shared among the subscriptions, in percent of that without. WAL of each = WAL bytes written per event until all have been handled, less those without subscriptions, shared likewise."
series paused evbus "publish rate, paused"
series busy evbus "publish rate, with handlers"
series paused_cost evbus "cost of each, paused (time)"
series busy_cost evbus "cost of each, with handlers (publisher's CPU)"
series paused_wal evbus "WAL of each, paused"
series busy_wal evbus "WAL of each, with handlers"
for x in 1 4 16; do
	need paused_cost $x '<=' 10
	need busy_cost $x '<=' 10
	need paused_wal $x '<=' 10
	need busy_wal $x '<=' 10
done
rounds "$(full_or_quick 3 1)"

counts=(0 1 2 4 8 16)

prepare() {
	sql -v counts="{$(IFS=,; echo "${counts[*]}")}" >"$work/setup.out" <<-'SQL'
		SELECT evbus.create_bus(kind || n) FROM unnest(:'counts'::int[]) n, unnest('{paused, busy}'::text[]) kind;
		SELECT evbus.subscribe('paused' || n, 'paused' || n || '_' || i, notify => false)
			FROM unnest(:'counts'::int[]) n, generate_series(1, n) i;
		SELECT evbus.pause('paused' || n || '_' || i) FROM unnest(:'counts'::int[]) n, generate_series(1, n) i;
		SELECT evbus.subscribe('busy' || n, 'busy' || n || '_' || i, handler => 'bench.batches(evbus.event[])', batch_size => 1000)
			FROM unnest(:'counts'::int[]) n, generate_series(1, n) i;
	SQL
}

measure() {
	local x kind events wal
	declare -A rate=() cost=() bytes=()
	events=$(full_or_quick 100000 20000)
	for x in "${counts[@]}"; do
		for kind in paused busy; do
			settle
			wal=$(wal_bytes)
			sample $kind "$x" evbus publish --name "$kind$x" --batch 1000 --warm 1 --events "$events"
			ready $kind || continue
			[ "$kind" != busy ] || [ "$x" = 0 ] || lag_is "busy$x" 0
			rate[$kind$x]=${result[rate]}
			cost[$kind$x]=${result[backend_ns]}
			bytes[$kind$x]=$(ratio "$(($(wal_bytes) - wal))" $((events + 1000)))
		done
	done
	for x in "${counts[@]:1}"; do
		record paused_cost "$x" "$(awk -v r="${rate[paused$x]}" -v r0="${rate[paused0]}" -v n="$x" 'BEGIN { print (r0 / r - 1) * 100 / n }')" "%"
		record busy_cost "$x" "$(awk -v c="${cost[busy$x]}" -v c0="${cost[busy0]}" -v n="$x" 'BEGIN { print (c / c0 - 1) * 100 / n }')" "%"
		for kind in paused busy; do
			record ${kind}_wal "$x" "$(awk -v b="${bytes[$kind$x]}" -v b0="${bytes[${kind}0]}" -v n="$x" 'BEGIN { print (b - b0) / n }')" "WAL bytes/event"
		done
	done
}
