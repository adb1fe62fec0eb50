# shellcheck shell=bash
# For bench/questions/*.sh: what a question is declared and measured with.  Sourced by bench/run, after tool/lib.sh.
#
# Declared once, at the top of a question:
#   title TEXT XNAME              what is asked; what x stands for (clients, batch ...)
#   about TEXT                    how it is measured; several make paragraphs
#   series KEY SYSTEM TITLE       one line of the table; SYSTEM is who is measured: plain, evbus, pgmq, pgq,
#                                 redis_everysec, redis_always, nats
#   missing KEY WHY               a line that cannot be measured
#   need KEY X OP BOUND [BASE [BASEX]]
#                                 what must be reached: the value, or its ratio to BASE at BASEX (or X), OP (>= or <=) BOUND
#   rounds N                      if not as many as usual
# Then the functions prepare (once, may be left out), measure (once a round) and finish (once, may be left out).
#
# In measure:
#   sample KEY X SYSTEM ARGS...   runs the system's driver, once everything is settled, and records its rate; the driver's other
#                                 values are in ${result[p50]} and so on.  Does nothing where the system is missing.
#   record KEY X VALUE UNIT       records anything else
#   drive SYSTEM ARGS...          runs its driver without recording
#   try KEY COMMAND...            runs what a sample of KEY needs; if that fails, KEY is not measured any more
#   fill SYSTEM NAME ARGS...      puts a backlog of --events into its queue
#   full_or_quick FULL QUICK      one of the two, as the run is
# What fails is told in the table; the run goes on.

declare -A unavailable=()		# why a system cannot be measured
declare -A result=()			# what the last driver printed
declare -A database=([pgq]=pgq [pgmq]=pgmq)	# all others: evbus
declare -A failed=()			# series that failed in this question
id=								# of the question

full_or_quick() {
	if [ "$quick" = 1 ]; then echo "$2"; else echo "$1"; fi
}

has() {
	[ -z "${unavailable[$1]:-}" ]
}

sql() {
	psql -XAtq -v ON_ERROR_STOP=1 "$@"
}

declared() {
	local IFS=$'\t'
	echo "$*" >>"$work/questions.tsv"
}
title() { declared title "$id" "$1" "$2"; }
about() { declared about "$id" "$1"; }
missing() { declared missing "$id" "$1" "$2"; failed[$1]=1; }
need() { declared need "$id" "$1" "$2" "$3" "$4" "${5:-}" "${6:-}"; }
rounds() { question_rounds=$1; }
series() {
	declared series "$id" "$1" "$2" "$3"
	has "$2" || missing "$1" "${unavailable[$2]}"
}

record() {
	printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$id" "$1" "$2" "$round" "$3" "$4" >>"$work/results.tsv"
	awk -v key="$1" -v x="$2" -v value="$3" -v unit="$4" 'BEGIN { printf "  %-22s %-8s %14.2f %s\n", key, x, value, unit }'
}

# A driver that hangs must not cost the run.
drive() {
	local system=$1 driver words key value
	shift
	result=()
	driver=${system%%_*}
	[ "$driver" != redis ] || set -- "$@" --fsync "${system#*_}"
	PGDATABASE=${database[$system]:-evbus} run timeout -k 5 "${limit:-120}" "$work/driver-$driver" "$@" >"$work/driver.out" 2>"$work/driver.err" || return
	read -r -a words <"$work/driver.out" || true
	set -- "${words[@]}"
	while [ $# -ge 2 ]; do
		key=$1 value=$2
		result[$key]=$value
		shift 2
	done
}

# What the last driver said.
complaint() {
	if [ -s "$work/driver.err" ]; then
		head -n 1 "$work/driver.err" | tr '\t' ' '
	else
		echo "the driver was ended after ${limit:-120} seconds"
	fi
}

# fail_series KEY WHY: its row says so, it is not measured any more, and the exit status of the run tells.
fail_series() {
	echo "  $1 FAILED: $2" >&2
	missing "$1" "failed: $2"
	echo "$id, $1: $2" >>"$work/failures"
}

# ready KEY: can and shall it be measured?
ready() {
	[ -z "${failed[$1]:-}" ]
}

# Equal footing: no measurement pays for what the one before has left to be written.
settle() {
	local deadline=$((SECONDS + 30))
	sql -c "CHECKPOINT"
	while [ -n "${REDIS_SOCKET:-}" ] && redis-cli -s "$REDIS_SOCKET" info persistence | grep -q '^aof_rewrite_in_progress:1' &&
		[ $SECONDS -lt $deadline ]; do
		sleep 0.05
	done
	sync -f "$work"
}

# try KEY COMMAND...: runs what prepares a sample of KEY; a failure is that of the series
try() {
	local key=$1
	shift
	ready "$key" || return 1
	"$@" >"$work/try.out" 2>&1 && return
	cat "$work/try.out" >&2
	if [ -s "$work/try.out" ]; then
		fail_series "$key" "$1: $(tail -n 1 "$work/try.out")"
	else
		fail_series "$key" "$1: $(complaint)"
	fi
	return 1
}

sample() {
	local key=$1 x=$2
	shift 2
	ready "$key" || return 0
	settle
	if drive "$@"; then
		record "$key" "$x" "${result[rate]}" "events/s"
	else
		fail_series "$key" "$(complaint)"
	fi
}

# Queues of the rivals are all "bench"; evbus has a bus and a subscription of the same name for each question.
queue_of() {
	if [ "$1" = evbus ]; then echo "$2"; else echo bench; fi
}

fill() {
	local system=$1 name=$2
	shift 2
	if [ "$system" = evbus ]; then
		fill_evbus "$name" "$@"
	else
		drive "$system" fill "$@"
	fi
}

fill_evbus() {
	local name=$1 events
	shift
	while [ "$1" != --events ]; do shift 2; done
	events=$2
	if [ $((events % 1000)) = 0 ]; then
		drive evbus publish --name "$name" --batch 1000 --clients 2 --events "$events"
	else
		drive evbus publish --name "$name" --batch 100 --events "$events"
	fi
	lag_is "$name" "$events"
}

# The queues of all rivals anew, the plain table empty.
empty_all() {
	local system
	sql -c "TRUNCATE bench.plain"
	for system in pgmq pgq redis_everysec redis_always nats; do
		! has $system || drive $system reset || echo "  $system could not be reset: $(complaint)" >&2
	done
}

ratio() {
	awk -v a="$1" -v b="$2" 'BEGIN { printf "%.4f\n", a / b }'
}

# Bytes of WAL ever written.
wal_bytes() {
	sql -c "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint"
}

# cpu_us PID: microseconds of CPU that this process and all its descendants, also those that have ended, have used.
# One that ends just now could be missed, or counted twice; so it is read until two readings agree, within two ticks.
cpu_us() {
	local before=-1 now tries
	for tries in {1..100}; do
		now=$(cpu_reading "$1")
		[ "$before" = -1 ] || [ $((now - before)) -lt 0 ] || [ $((now - before)) -gt 20000 ] || break
		before=$now
		sleep 0.03
	done
	echo "$now"
}

cpu_reading() {
	# cat, as processes end meanwhile, and that would end awk.
	{ cat /proc/[0-9]*/stat 2>/dev/null || true; } | awk -v roots="$*" -v hz="$(getconf CLK_TCK)" '
		function wanted(pid) {
			while (pid > 1 && !(pid in root)) pid = parent[pid]
			return pid in root
		}
		BEGIN { n = split(roots, r, " "); for (i = 1; i <= n; i++) root[r[i]] = 1 }
		{
			pid = $1
			sub(/^.*\) /, "")
			split($0, f, " ")
			parent[pid] = f[2]
			ticks[pid] = f[12] + f[13] + f[14] + f[15]
		}
		END { for (pid in ticks) if (wanted(pid)) sum += ticks[pid]; printf "%.0f\n", sum * 1e6 / hz }'
}

postmaster() {
	head -n 1 "$work/server/postmaster.pid"
}

# until_true DATABASE SQL: polls, a minute at most
until_true() {
	local deadline=$((SECONDS + 60))
	until [ "$(sql -d "$1" -c "$2")" = t ]; do
		if [ $SECONDS -ge $deadline ]; then
			echo "still not true: $2" >&2
			return 1
		fi
		sleep 0.02
	done
}

# lag_is BUS-OR-SUBSCRIPTION N: waits until all subscriptions of the bus, or the one, have that lag
lag_is() {
	until_true evbus "SELECT count(*) > 0 AND bool_and(lag = $2) FROM evbus.subscription_lag WHERE '$1' IN (bus, subscription)"
}
