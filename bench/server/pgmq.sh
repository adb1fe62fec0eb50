# shellcheck shell=bash
# pgmq for bench/, from the SQL file that the user names as PGMQ_SQL; it is no part of evbus.  Sourced before
# workspace of tool/lib.sh, which changes the directory.
#
#   pgmq_schema     makes it in the database that psql finds
#   pgmq_version    what the file is: pgmq's functions do not tell a version

if [ -n "${PGMQ_SQL:-}" ]; then
	PGMQ_SQL=$(realpath -e "$PGMQ_SQL") || exit 1
fi

pgmq_schema() {
	if ! psql -Xq -v ON_ERROR_STOP=1 --single-transaction >"$work/pgmq.out" 2>&1 <"$PGMQ_SQL"; then
		echo "$PGMQ_SQL does not make pgmq:" >&2
		cat "$work/pgmq.out" >&2
		return 1
	fi
}

pgmq_version() {
	echo "$(basename "$PGMQ_SQL"), md5 $(md5sum <"$PGMQ_SQL" | cut -c 1-8)"
}
