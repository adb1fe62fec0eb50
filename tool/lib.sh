# shellcheck shell=bash
# For test/run, demo/run and bench/run: a private server that leaves nothing behind.  Sourced by bash.
#
#   workspace NAME                 $work, a directory of our own; at exit it goes, with every process of ours
#   private_install [MAKE-ARG...]  $bin, the programs of a PostgreSQL with this checkout's evbus
#   server NAME [SETTING...]       starts a server; psql, pgbench and libpq find it through the environment
#   as_user CMD...                 runs a command as the user that owns the server
#   run CMD...                     the same for one that takes long, so that Ctrl-C ends it at once
#   background CMD...              starts one, its process id is in $child; ended at exit, or by end_child
#   end_child PID [SIGNAL]
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=
children=()

# Nobody's settings, servers or files but ours.
unset "${!PG@}" MAKEFLAGS MFLAGS MAKELEVEL CDPATH PERL5LIB
export LC_ALL=C.UTF-8
umask 022
# Debian's, or another that was built to try evbus on (tool/versions).
export PG_CONFIG=${EVBUS_PG_CONFIG:-/usr/lib/postgresql/15/bin/pg_config}

# PostgreSQL refuses to run as root, so root uses the packages' own user.
user=()
if [ "$(id -u)" = 0 ]; then
	user=(setpriv --reuid=postgres --regid=postgres --clear-groups --)
fi

as_user() {
	"${user[@]}" "$@"
}

# Process groups of their own: ending one ends what it started, and the terminal's Ctrl-C reaches only us.
background() {
	setsid "${user[@]}" "$@" </dev/null &
	child=$!
	children+=("$child")
}

forget() {
	local i
	for i in "${!children[@]}"; do
		[ "${children[i]}" != "$1" ] || unset "children[i]"
	done
}

run() {
	local status=0
	background "$@"
	wait "$child" || status=$?
	forget "$child"
	return $status
}

end_child() {
	kill "-${2:-TERM}" -- "-$1" 2>/dev/null || true
	wait "$1" 2>/dev/null || true
	forget "$1"
}

# Our programs are copies inside $work, which tells our processes from everybody else's.
our_processes() {
	local exe
	for exe in /proc/[0-9]*/exe; do
		[[ $(readlink "$exe" 2>/dev/null) != "$work"/* ]] || { exe=${exe%/exe}; echo "${exe#/proc/}"; }
	done
}

cleanup() {
	local status=$? pid signal tries
	trap - EXIT
	trap '' INT TERM HUP
	for pid in "${children[@]}"; do
		kill -TERM -- "-$pid" 2>/dev/null || true
	done
	# TERM ends clients, QUIT servers; KILL what is left after five seconds.
	for tries in {1..60}; do
		local left
		left=$(our_processes)
		[ -n "$left" ] || break
		case $tries in 1) signal=QUIT ;; 50) signal=KILL ;; *) signal=0 ;; esac
		# shellcheck disable=SC2086
		kill -$signal $left 2>/dev/null || true
		sleep 0.1
	done
	for pid in "${children[@]}"; do
		kill -KILL -- "-$pid" 2>/dev/null || true
	done
	# File systems that test/run mounted in there.
	[ ! -d "$work/disk" ] || umount --lazy "$work"/disk/* 2>/dev/null || true
	rm -rf "$work"
	exit $status
}

workspace() {
	local base
	# A socket's path must be short, and the server's user must be able to walk there.
	for base in "${TMPDIR:-/tmp}" /tmp; do
		work=$(mktemp -d "$base/evbus-$1.XXXXXX")
		[ ${#user[@]} = 0 ] || chown postgres: "$work"
		if [ ${#work} -lt 70 ] && as_user test -w "$work"; then break; fi
		rmdir "$work"
		work=
	done
	[ -n "$work" ] || { echo "neither \$TMPDIR nor /tmp can be used" >&2; exit 1; }
	trap cleanup EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM
	export HOME=$work TMPDIR=$work/tmp
	as_user mkdir "$TMPDIR" "$work/socket"
	cd "$work"
}

private_install() {
	local status=0
	# As ourselves: the checkout need not be readable for the server's user.
	setsid "$root/tool/private-install" "$work/pg" "$@" >"$work/bin" </dev/null &
	children+=($!)
	wait $! || status=$?
	forget $!
	[ $status = 0 ] || exit $status
	bin=$(cat "$work/bin")
	export PATH="$bin:$PATH"
	if ! as_user postgres --version >/dev/null; then
		echo "programs in $work cannot be run; give another place with TMPDIR=..." >&2
		exit 1
	fi
}

server() {
	local data=$work/$1
	log=$work/$1.log
	shift
	as_user initdb -D "$data" -U postgres -A trust -E UTF8 --locale=C --no-sync --no-instructions >"$log"
	{
		echo "listen_addresses = ''"
		echo "unix_socket_directories = '$work/socket'"
		echo "log_line_prefix = '%m [%p] %b '"
		echo "log_checkpoints = off"
		printf '%s\n' "$@"
	} >>"$data/postgresql.conf"
	: >"$log"
	[ ${#user[@]} = 0 ] || chown postgres: "$log"
	export PGHOST=$work/socket PGPORT=5432 PGUSER=postgres PGDATABASE=postgres
	if ! as_user pg_ctl -D "$data" -l "$log" -w -t 60 start >/dev/null; then
		echo "the server did not start:" >&2
		cat "$log" >&2
		exit 1
	fi
}
