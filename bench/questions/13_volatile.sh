# shellcheck shell=bash
# Publishing to a volatile bus, beside calls that do nothing.

title "Publish to a volatile bus" "clients"
about "One event per transaction, prepared statements, $(full_or_quick 1.2 0.35) seconds a measurement. Nothing is written: what is left is the call itself, so the bound is SELECT 1 over the same connections. The handler takes what is published at once, on the same two cores, and publishers wait for it where the ring is full (overflow => 'block')."
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
	local x seconds=(--seconds "$(full_or_quick 1.2 0.35)")
	empty_all
	for x in 1 4 16; do
		sample select $x plain select --clients $x "${seconds[@]}"
		sample volatile $x evbus publish --name volatile --clients $x "${seconds[@]}"
		sample handled $x evbus publish --name volatile_taken --clients $x "${seconds[@]}"
		lag_is volatile_taken 0
		sample durable $x evbus publish --name quiet --clients $x "${seconds[@]}"
	done
}
