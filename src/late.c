/*-------------------------------------------------------------------------
 * late.c
 *	  Rows of evbus.late: ids of a transaction that could not use the ring,
 *	  because it was open too long, too large, or prepared.
 *
 * The row is written by the publishing transaction itself, so it is visible
 * exactly when its events are; the sequencer gives those ids positions and
 * deletes the row in one transaction.
 *-------------------------------------------------------------------------
 */
#include "late.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "internal.h"
#include "leaf.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "varint.h"

#define LATE_RANGES_MAX	4096	/* in one row */
#define LATE_ROWS		16		/* taken by the sequencer at once */
#define LATE_IDS		65536	/* about as many ids in one row at most */

void
evbus_late_write(EvbusDb *db, const EvbusIdRange *ranges, int n)
{
	Relation	rel = relation_open(evbus_relid("late"), RowExclusiveLock);

	for (int at = 0; at < n;)
	{
		StringInfoData buf;
		int64		expected = 0;
		int			ids = 0;
		int			count = 0;
		Datum		values[2];
		bool		nulls[2] = {0};
		HeapTuple	tuple;

		initStringInfo(&buf);
		appendStringInfoSpaces(&buf, VARHDRSZ);
		while (at < n && count < LATE_RANGES_MAX && ids < LATE_IDS)
		{
			evbus_put_varint(&buf, ranges[at].bus_id);
			evbus_put_signed(&buf, ranges[at].first - expected);
			evbus_put_varint(&buf, ranges[at].n);
			expected = ranges[at].first + ranges[at].n;
			ids += ranges[at].n;
			count++;
			at++;
		}
		SET_VARSIZE(buf.data, buf.len);
		values[0] = Int64GetDatum(evbus_clock_take(&db->clock, 1));
		values[1] = PointerGetDatum(buf.data);
		tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
		evbus_leaf_insert(rel, &tuple, 1);
		heap_freetuple(tuple);
		pfree(buf.data);
	}
	relation_close(rel, NoLock);
}

/* Decode the rows of the last evbus_sql() into the caller's context. */
static int
decode_rows(uint64 rows, MemoryContext context, EvbusIdRange **ranges)
{
	int			count = 0;
	int			size = 256;
	EvbusIdRange *out = MemoryContextAlloc(context, sizeof(EvbusIdRange) * size);

	for (uint64 r = 0; r < rows; r++)
	{
		bytea	   *coded = DatumGetByteaPP(evbus_column(r, 1, NULL));
		const unsigned char *at = (unsigned char *) VARDATA_ANY(coded);
		const unsigned char *end = at + VARSIZE_ANY_EXHDR(coded);
		int64		next = 0;

		while (at < end)
		{
			if (count == size)
				out = repalloc(out, sizeof(EvbusIdRange) * (size *= 2));
			out[count].bus_id = (int32) evbus_get_varint(&at, end);
			out[count].first = next + evbus_get_signed(&at, end);
			out[count].n = (int32) evbus_get_varint(&at, end);
			next = out[count].first + out[count].n;
			count++;
		}
	}
	*ranges = out;
	return count;
}

/* Delete some visible rows and return what they named; *more: there were more. */
int
evbus_late_take(EvbusIdRange **ranges, bool *more)
{
	static SPIPlanPtr plan = NULL;
	MemoryContext context = CurrentMemoryContext;
	EvbusInternal state;
	uint64		rows;
	int			count;

	evbus_internal_begin(&state);
	rows = evbus_sql(&plan, "DELETE FROM evbus.late WHERE late_id IN"
					 " (SELECT late_id FROM evbus.late ORDER BY late_id LIMIT " CppAsString2(LATE_ROWS) ") RETURNING ranges",
					 0, NULL, NULL, NULL, 0);
	count = decode_rows(rows, context, ranges);
	*more = rows == LATE_ROWS;
	evbus_internal_end(&state);
	return count;
}

/* What visible rows name, under the active snapshot. */
int
evbus_late_peek(EvbusIdRange **ranges)
{
	MemoryContext context = CurrentMemoryContext;
	EvbusInternal state;
	int			count;

	evbus_internal_begin(&state);
	if (SPI_execute("SELECT ranges FROM evbus.late", true, 0) != SPI_OK_SELECT)
		elog(ERROR, "cannot read evbus.late");
	count = decode_rows(SPI_processed, context, ranges);
	evbus_internal_end(&state);
	return count;
}
