# shellcheck shell=bash
# A throw-away Redis server for bench/, after `. tool/lib.sh` and workspace; it ends with the script that started it.
#
#   redis_server    starts one; driver-redis and redis-cli -s find it by REDIS_SOCKET
#   redis_version
#
# Streams are only in the append-only file: no snapshots.  Drivers choose its appendfsync by --fsync.  All else is
# Redis' own default, so the file is written anew when it has doubled.  Debian's redis-check-rdb is the server when
# called redis-server; that package would add nothing but a link and a system service.

redis_server() {
	local dir=$work/redis program tries
	program=$(command -v redis-server || command -v redis-check-rdb) ||
		{ echo "Redis is missing: run tool/setup bench" >&2; exit 1; }
	as_user mkdir "$dir"
	# A copy: cleanup() of tool/lib.sh knows our processes by their program's place.
	cp -L "$program" "$work/redis-server"
	chmod 755 "$work/redis-server"
	redis_log=$dir/log
	export REDIS_SOCKET=$dir/socket
	background "$work/redis-server" --dir "$dir" --logfile "$redis_log" --port 0 --unixsocket "$REDIS_SOCKET" \
		--save "" --appendonly yes --appendfsync everysec --daemonize no
	redis_child=$child
	for tries in {1..200}; do
		[ "$(redis-cli -s "$REDIS_SOCKET" ping 2>/dev/null)" != PONG ] || return 0
		kill -0 "$redis_child" 2>/dev/null || break
		sleep 0.05
	done
	echo "Redis did not start:" >&2
	cat "$redis_log" >&2
	exit 1
}

redis_version() {
	redis-cli -s "$REDIS_SOCKET" info server | sed -n 's/^redis_version:\([0-9.]*\).*/\1/p'
}
