# shellcheck shell=bash
# What one event costs in WAL, on disk, in dead rows and in CPU time.

title "What an event costs, batches of 100" "per event"
about "$(full_or_quick 100000 20000) events are published, received and acked by one client in batches of 100, one transaction each; plain INSERT only writes its rows. WAL: all that the server wrote meanwhile. Heap and index: growth of all tables (with TOAST) and indexes of the system. Dead: rows updated or deleted. CPU: of all processes of the server, the workers of evbus included; autovacuum, which is off here, would come on top where there are dead rows. Redis and NATS: CPU of the server only."
series insert plain "INSERT of the same rows, nothing read"
series evbus evbus "evbus"
series pgmq pgmq "pgmq"
series pgq pgq "PgQ"
series redis redis_always "Redis, fsync always"
series nats nats "NATS JetStream, file"
need evbus "WAL + storage" '<=' 0.6 pgmq
need evbus "WAL + storage" '<=' 1 pgq
rounds "$(full_or_quick 3 1)"

prepare() {
	sql -c "SELECT evbus.create_bus('stored')" -c "SELECT evbus.subscribe('stored', 'stored', notify => false)" >"$work/setup.out"
}

measure() {
	sql -c "TRUNCATE bench.plain"
	costs insert plain
	costs evbus evbus
	costs pgmq pgmq
	costs pgq pgq
	cpu_only redis redis_always "$redis_child"
	cpu_only nats nats "$nats_child"
}

# cpu_only KEY SYSTEM PID: all that can be compared of a server that is not PostgreSQL
cpu_only() {
	local key=$1 system=$2 events cpu
	events=$(full_or_quick 100000 20000)
	cpu=$(cpu_us "$3")
	try "$key" drive "$system" fill --batch 100 --events "$events" || return 0
	try "$key" drive "$system" receive --batch 100 --events "$events" || return 0
	record "$key" "CPU" "$(ratio $(($(cpu_us "$3") - cpu)) "$events")" "us"
}

# Heap bytes, index bytes and dead rows of a database, its catalogs left out.
sizes() {
	sql -d "${database[$1]:-evbus}" -c "SELECT pg_stat_force_next_flush()" -c "SELECT
		(SELECT sum(pg_relation_size(c.oid)) FROM pg_class c WHERE relkind IN ('r', 'm', 't') AND c.oid >= 16384) || ' ' ||
		(SELECT sum(pg_relation_size(c.oid)) FROM pg_class c WHERE relkind = 'i' AND c.oid >= 16384) || ' ' ||
		(SELECT sum(n_tup_upd + n_tup_del) FROM pg_stat_all_tables WHERE relid >= 16384)" | tail -n 1
}

# costs KEY SYSTEM
costs() {
	local key=$1 system=$2 events share cpu wal before after
	events=$(full_or_quick 100000 20000)
	share=(--batch 100 --events "$events")
	# What PgQ reads as a batch lies between two ticks, so its publisher ticks after each.
	case $system in
		pgq) try "$key" drive pgq reset || return 0 ;;
		pgmq) try "$key" drive pgmq reset || return 0 ;;
	esac
	settle
	read -r -a before <<<"$(sizes "$system")"
	wal=$(wal_bytes)
	cpu=$(cpu_us "$(postmaster)")
	case $system in
		plain) try "$key" drive plain publish --by unnest "${share[@]}" || return 0 ;;
		pgq) try "$key" drive pgq publish --tick 100 "${share[@]}" || return 0 ;;
		evbus) try "$key" drive evbus publish --name stored "${share[@]}" || return 0 ;;
		pgmq) try "$key" drive pgmq publish "${share[@]}" || return 0 ;;
	esac
	case $system in
		plain) ;;
		evbus) try "$key" drive evbus receive --name stored "${share[@]}" && lag_is stored 0 || return 0 ;;
		*) try "$key" drive "$system" receive "${share[@]}" || return 0 ;;
	esac
	cpu=$(($(cpu_us "$(postmaster)") - cpu))
	wal=$(($(wal_bytes) - wal))
	read -r -a after <<<"$(sizes "$system")"
	record "$key" "WAL" "$(ratio $wal "$events")" "bytes"
	record "$key" "heap" "$(ratio $((after[0] - before[0])) "$events")" "bytes"
	record "$key" "index" "$(ratio $((after[1] - before[1])) "$events")" "bytes"
	record "$key" "WAL + storage" "$(ratio $((wal + after[0] - before[0] + after[1] - before[1])) "$events")" "bytes"
	record "$key" "dead" "$(ratio $((after[2] - before[2])) "$events")" "rows"
	record "$key" "CPU" "$(ratio $cpu "$events")" "us"
}
