# shellcheck shell=bash
# What it costs publishers that everything is counted.

title "Publish with and without statistics" "clients"
about "The same calls with evbus.track_statistics on, as it is by default, and off, in turn; $(full_or_quick 1.2 0.35) seconds a measurement. Single events to a volatile bus, where there is little else to pay for, and by publish_lines() in batches of 1000 to a durable one."
series single_off evbus "publish(), volatile, statistics off"
series single_on evbus "publish(), volatile, on"
series lines_off evbus "publish_lines(), statistics off"
series lines_on evbus "publish_lines(), on"
need single_on 1 '>=' 0.98 single_off
need single_on 4 '>=' 0.98 single_off
need lines_on 1 '>=' 0.98 lines_off
rounds 9

prepare() {
	sql >"$work/setup.out" <<-'SQL'
		SELECT evbus.create_bus('volatile_counted', durability => 'volatile');
	SQL
}

measure() {
	local x on warm seconds=(--seconds "$(full_or_quick 1.2 0.35)" --pin 1)
	empty_all
	for x in 1 4; do
		warm=(--warm $((16000 / x + 2000)))
		for on in off on; do
			PGOPTIONS="-c evbus.track_statistics=$on" sample single_$on $x evbus publish --name volatile_counted --clients $x "${seconds[@]}" "${warm[@]}"
		done
	done
	for on in off on; do
		PGOPTIONS="-c evbus.track_statistics=$on" sample lines_$on 1 evbus publish --name quiet --batch 1000 --by lines --clients 1 "${seconds[@]}"
	done
}
