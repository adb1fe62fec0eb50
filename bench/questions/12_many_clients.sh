# shellcheck shell=bash
# Many publishers at once.

title "16, 64 and 256 clients that publish" "clients"
about "One event per transaction, $(full_or_quick 2 0.5) seconds a measurement. Share of the peak: of the best of the three of the same round."
series insert plain "INSERT of the same row"
series evbus evbus "evbus.publish()"
series insert_share plain "INSERT, share of its peak"
series evbus_share evbus "evbus, share of its peak"
need evbus_share 64 '>=' 0.9
need evbus_share 256 '>=' 0.9

prepare() {
	sql -c "TRUNCATE bench.plain"
}

measure() {
	local x key
	declare -A rate=([insert]="" [evbus]="")
	for x in 16 64 256; do
		sample insert $x plain publish --clients $x --seconds "$(full_or_quick 2 0.5)"
		rate[insert]+=" ${result[rate]:-0}"
		sample evbus $x evbus publish --name quiet --clients $x --seconds "$(full_or_quick 2 0.5)"
		rate[evbus]+=" ${result[rate]:-0}"
	done
	for key in insert evbus; do
		set -- $(awk -v rates="${rate[$key]}" 'BEGIN { n = split(rates, r, " "); for (i = 1; i <= n; i++) if (r[i] > peak) peak = r[i]
			for (i = 1; i <= n; i++) print r[i] / peak }')
		record ${key}_share 16 "$1" "of the peak"
		record ${key}_share 64 "$2" "of the peak"
		record ${key}_share 256 "$3" "of the peak"
	done
}
