# shellcheck shell=bash
# pgmq for bench/, from the SQL file that the user names as PGMQ_SQL; it is no part of evbus.  Sourced before
# tool/lib.sh, which forgets all variables that begin with PG, and changes the directory.
#
#   $pgmq_sql       the file, or empty
#   pgmq_schema     makes it in the database that psql finds
#   pgmq_version    what the file is: pgmq's functions do not tell a version

pgmq_sql=
if [ -n "${PGMQ_SQL:-}" ]; then
	pgmq_sql=$(realpath -e "$PGMQ_SQL") || exit 1
fi

pgmq_schema() {
	if ! psql -Xq -v ON_ERROR_STOP=1 --single-transaction >"$work/pgmq.out" 2>&1 <"$pgmq_sql"; then
		echo "$pgmq_sql does not make pgmq:" >&2
		cat "$work/pgmq.out" >&2
		return 1
	fi
}

pgmq_version() {
	echo "$(basename "$pgmq_sql"), md5 $(md5sum <"$pgmq_sql" | cut -c 1-8)"
}
