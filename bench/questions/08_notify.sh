# shellcheck shell=bash
# What NOTIFY and a hundred listeners cost the publisher.

title "Publish with 100 listeners and NOTIFY on" "clients"
about "One event per transaction, $(full_or_quick 1.5 0.4) seconds a measurement. With: a subscription with notify, on whose channel 100 connections LISTEN (all read by one thread, so that their work is the server's). Without: the same without notify and without the connections."
series without evbus "without"
series with evbus "100 listeners, NOTIFY on"
for x in 1 4; do
	need with $x '>=' 0.95 without
done

prepare() {
	sql >"$work/setup.out" <<-'SQL'
		SELECT evbus.create_bus(b) FROM unnest('{notified, silent}'::text[]) b;
		SELECT evbus.subscribe('notified', 'notified');
		SELECT evbus.subscribe('silent', 'silent', notify => false);
	SQL
}

measure() {
	local x seconds=(--seconds "$(full_or_quick 1.5 0.4)")
	for x in 1 4; do
		sample without $x evbus publish --name silent --clients $x "${seconds[@]}"
		start_listeners
		sample with $x evbus publish --name notified --clients $x "${seconds[@]}"
		end_child "$listeners"
		until_true evbus "SELECT count(*) = 0 FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
	done
}

start_listeners() {
	PGDATABASE=evbus background "$work/driver-plain" listen --clients 100 --name "$(sql -d evbus -c "SELECT evbus.channel('notified')")" >"$work/listeners.out"
	listeners=$child
	until_true evbus "SELECT count(*) = 100 FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND state = 'idle'"
}
