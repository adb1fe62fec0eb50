# shellcheck shell=bash
# A throw-away NATS server with JetStream for bench/, after `. tool/lib.sh` and workspace; it ends with the script that started it.
#
#   nats_server [INTERVAL]   starts one; driver-nats finds it by NATS_URL.  INTERVAL: JetStream's sync_interval, as `always`.
#   nats_can_sync            whether this version has sync_interval (2.10 has, Debian 12's 2.9 has not)
#   nats_version
#
# NATS speaks TCP only, so this is a port of 127.0.0.1, one that was free.  Without INTERVAL it is NATS' own default:
# each message is written to its file before it is confirmed, and the file is synced every two minutes.

nats_config() {
	cat <<END
listen: "127.0.0.1:-1"
ports_file_dir: "$1"
jetstream { store_dir: "$1/store"${2:+, sync_interval: $2} }
END
}

nats_can_sync() {
	nats_config "$work/nats-probe" always >"$work/nats-probe.conf"
	nats-server -t -c "$work/nats-probe.conf" >/dev/null 2>&1
}

nats_server() {
	local dir=$work/nats${1:+-$1} program port tries
	program=$(command -v nats-server) || { echo "nats-server is missing: run tool/setup bench" >&2; exit 1; }
	as_user mkdir "$dir"
	# A copy: cleanup() of tool/lib.sh knows our processes by their program's place.
	[ -e "$work/nats-server" ] || cp -L "$program" "$work/nats-server"
	nats_config "$dir" "$@" >"$dir.conf"
	nats_log=$dir/log
	background "$work/nats-server" -c "$dir.conf" -l "$nats_log"
	nats_child=$child
	for tries in {1..200}; do
		# It tells its port when it is ready.
		port=$(sed -n 's/.*nats:\/\/127.0.0.1:\([0-9]*\).*/\1/p' "$dir"/nats-server_*.ports 2>/dev/null) || true
		if [ -n "$port" ]; then
			export NATS_URL=nats://127.0.0.1:$port
			return 0
		fi
		kill -0 "$nats_child" 2>/dev/null || break
		sleep 0.05
	done
	echo "NATS did not start:" >&2
	cat "$nats_log" >&2
	exit 1
}

nats_version() {
	nats-server --version | sed 's/^nats-server: v//'
}
