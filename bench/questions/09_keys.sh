# shellcheck shell=bash
# Order by key, beside the same without order.

keys=10000

title "ordering => 'key' with 10,000 keys" "who reads"
about "The same $(full_or_quick 200000 60000) events, each of one of $keys keys by chance, are read by subscriptions that differ in ordering only. Handlers: batch_size 1000, concurrency 1, from resume() until the lag is 0. Consumers: receive_lines() of 1000 and ack(), one and four of them."
series key evbus "ordered by key"
series none evbus "unordered"
key_readers=("f(event)" "f(event[])" "1 consumer" "4 consumers")
for x in "${key_readers[@]}"; do
	need key "$x" '>=' 0.8 none
done

prepare() {
	sql >"$work/setup.out" <<-'SQL'
		SELECT evbus.create_bus('keyed');
		SELECT evbus.subscribe('keyed', o || '_' || f, handler => format('bench.%s(evbus.event%s)', f, CASE f WHEN 'batches' THEN '[]' END)::regprocedure,
							   batch_size => 1000, ordering => o)
			FROM unnest('{key,none}'::text[]) o, unnest('{single,batches}'::text[]) f;
		SELECT evbus.pause(o || '_' || f) FROM unnest('{key,none}'::text[]) o, unnest('{single,batches}'::text[]) f;
		SELECT evbus.subscribe('keyed', o || '_' || n, notify => false, ordering => o) FROM unnest('{key,none}'::text[]) o, unnest('{1,4}'::text[]) n;
	SQL
}

measure() {
	local o n events=(--events "$(full_or_quick 200000 60000)")
	drive evbus publish --name keyed --batch 1000 --clients 2 "${events[@]}" --keys "$keys"
	lag_is keyed "${events[1]}"
	for o in key none; do
		sample $o "f(event)" evbus drain --name ${o}_single "${events[@]}"
	done
	for o in key none; do
		sample $o "f(event[])" evbus drain --name ${o}_batches "${events[@]}"
	done
	for n in 1 4; do
		for o in key none; do
			sample $o "$n consumer$([ $n = 1 ] || echo s)" evbus receive --name ${o}_$n --batch 1000 --clients $n --by lines "${events[@]}"
			lag_is ${o}_$n 0
		done
	done
}
