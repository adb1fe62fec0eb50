# shellcheck shell=bash
# Publishing to a volatile bus, beside calls that do nothing.

title "Publish to a volatile bus" "clients"
about "One event per transaction, prepared statements, $(full_or_quick 1.2 0.35) seconds a measurement. Nothing is written: what is left is the call itself, so the bound is SELECT 1 over the same connections. Each client has called before the clock runs, as often as it takes to have been to all pages of the ring: a process pays for each of them once. Client and backend share a processor, in all series, as which of them happen to do decides by a factor of two. The handler takes what is published at once, on the same two cores, and publishers wait for it where the ring is full (overflow => 'block')."
series select plain "SELECT 1"
series volatile evbus "evbus.publish(), volatile, nobody subscribes"
series handled evbus "evbus.publish(), volatile, a handler at work"
series durable evbus "evbus.publish(), durable, nobody subscribes"
need volatile 4 '>=' 0.85 select

prepare() {
	sql >"$work/setup.out" <<-'SQL'
		SELECT evbus.create_bus('volatile', durability => 'volatile');
		SELECT evbus.create_bus('volatile_taken', durability => 'volatile', overflow => 'block');
		SELECT evbus.subscribe('volatile_taken', 'volatile_taken', handler => 'bench.batches(evbus.event[])', batch_size => 1000);
	SQL
}

measure() {
	local x warm seconds=(--seconds "$(full_or_quick 1.2 0.35)" --pin 1)
	empty_all
	for x in 1 4 16; do
		warm=(--warm $((16000 / x + 2000)))
		sample select $x plain select --clients $x "${seconds[@]}" "${warm[@]}"
		sample volatile $x evbus publish --name volatile --clients $x "${seconds[@]}" "${warm[@]}"
		sample handled $x evbus publish --name volatile_taken --clients $x "${seconds[@]}" "${warm[@]}"
		lag_is volatile_taken 0
		sample durable $x evbus publish --name quiet --clients $x "${seconds[@]}"
	done
}
