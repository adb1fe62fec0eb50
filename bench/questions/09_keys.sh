# shellcheck shell=bash
# Order by key, beside the same without order.

keys=10000

title "ordering => 'key' with 10,000 keys" "handler, or consumers / batch"
about "The same $(full_or_quick 200000 60000) events, each of one of $keys keys by chance, are read by subscriptions that differ in ordering only. Handlers: batch_size 1000, concurrency 1, from resume() until the lag is 0. Consumers: receive_lines() and ack()."
about "Four consumers with batches of 1000 have up to 4000 of the $keys keys in hand, so every third event has to wait for its key and is read a second time: shown, not held to a bound."
series key evbus "ordered by key"
series none evbus "unordered"
consumers=(1/1000 4/100 4/1000)	# how many, with batches of how many
for x in "f(event)" "f(event[])" 1/1000 4/100; do
	need key "$x" '>=' 0.8 none
done

prepare() {
	sql >"$work/setup.out" <<-'SQL'
		SELECT evbus.create_bus('keyed');
		SELECT evbus.subscribe('keyed', o || '_' || f, handler => format('bench.%s(evbus.event%s)', f, CASE f WHEN 'batches' THEN '[]' END)::regprocedure,
							   batch_size => 1000, ordering => o)
			FROM unnest('{key,none}'::text[]) o, unnest('{single,batches}'::text[]) f;
		SELECT evbus.pause(o || '_' || f) FROM unnest('{key,none}'::text[]) o, unnest('{single,batches}'::text[]) f;
		SELECT evbus.subscribe('keyed', o || n, notify => false, ordering => o) FROM unnest('{key,none}'::text[]) o, unnest('{1/1000,4/100,4/1000}'::text[]) n;
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
	for n in "${consumers[@]}"; do
		for o in key none; do
			sample $o $n evbus receive --name $o$n --batch ${n#*/} --clients ${n%/*} --by lines "${events[@]}"
			lag_is $o$n 0
		done
	done
}
