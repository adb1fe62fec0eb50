/*-------------------------------------------------------------------------
 * late.c
 *	  Rows of evbus.late: ids of a transaction that could not use the ring,
 *	  because it was open too long, too large, or prepared.
 *
 * The row is written by the publishing transaction itself, so it is visible
 * exactly when its events are; the sequencer gives those ids positions and
 * deletes the row in one transaction.
 *
 * A row's key is the clock at writing: above the ids it names, and below those of
 * whoever publishes after it has become visible.
 *-------------------------------------------------------------------------
 */
#include "late.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "internal.h"
#include "leaf.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "varint.h"

#define LATE_RANGES_MAX	4096	/* in one row */
#define LATE_IDS		65536	/* about as many ids in one row at most */
#define LATE_BATCH_IDS	(1024 * 1024)	/* and as many taken by the sequencer at once */

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
		int64		min_id = PG_INT64_MAX;
		Datum		values[3];
		bool		nulls[3] = {0};
		HeapTuple	tuple;

		initStringInfo(&buf);
		appendStringInfoSpaces(&buf, VARHDRSZ);
		while (at < n && count < LATE_RANGES_MAX && ids < LATE_IDS)
		{
			evbus_put_varint(&buf, ranges[at].bus_id);
			evbus_put_signed(&buf, ranges[at].first - expected);
			evbus_put_varint(&buf, ranges[at].n);
			expected = ranges[at].first + ranges[at].n;
			min_id = Min(min_id, ranges[at].first);
			ids += ranges[at].n;
			count++;
			at++;
		}
		SET_VARSIZE(buf.data, buf.len);
		values[0] = Int64GetDatum(evbus_clock_take(&db->clock, 1));
		values[1] = Int64GetDatum(min_id);
		values[2] = PointerGetDatum(buf.data);
		tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
		evbus_leaf_insert(rel, &tuple, 1);
		heap_freetuple(tuple);
		pfree(buf.data);
	}
	relation_close(rel, NoLock);
}

static void
decode_row(bytea *coded, MemoryContext context, EvbusLateRow *row)
{
	const unsigned char *at = (unsigned char *) VARDATA_ANY(coded);
	const unsigned char *end = at + VARSIZE_ANY_EXHDR(coded);
	int64		next = 0;

	/* Three bytes a range at least. */
	row->ranges = MemoryContextAlloc(context, sizeof(EvbusIdRange) * ((end - at) / 3 + 1));
	while (at < end)
	{
		EvbusIdRange *range = &row->ranges[row->n_ranges++];

		range->bus_id = (int32) evbus_get_varint(&at, end);
		range->first = next + evbus_get_signed(&at, end);
		range->n = (int32) evbus_get_varint(&at, end);
		next = range->first + range->n;
		row->n_ids += range->n;
	}
}

/*
 * The rows that the active snapshot sees and that name an id up to max_id, ascending;
 * limit 0: all of them.
 */
int
evbus_late_read(int64 max_id, int limit, EvbusLateRow **rows)
{
	static const Oid types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(max_id)};
	static SPIPlanPtr plan = NULL;
	MemoryContext context = CurrentMemoryContext;
	EvbusInternal state;
	int			n;

	evbus_internal_begin(&state);
	if (plan == NULL)
	{
		plan = SPI_prepare("SELECT late_id, ranges FROM evbus.late WHERE min_id <= $1 ORDER BY late_id",
						   1, (Oid *) types);
		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "cannot plan to read evbus.late");
	}
	/* read_only: with the active snapshot, not a newer one */
	if (SPI_execute_plan(plan, values, NULL, true, limit) != SPI_OK_SELECT)
		elog(ERROR, "cannot read evbus.late");
	n = (int) SPI_processed;
	*rows = MemoryContextAllocZero(context, sizeof(EvbusLateRow) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		(*rows)[i].late_id = DatumGetInt64(evbus_column(i, 1, NULL));
		decode_row(DatumGetByteaPP(evbus_column(i, 2, NULL)), context, &(*rows)[i]);
	}
	evbus_internal_end(&state);
	return n;
}

/* How many of these rows to take in one transaction: some ids' worth, none above bound. */
int
evbus_late_batch(const EvbusLateRow *rows, int n, int64 bound)
{
	int			taken = 0;
	int			ids = 0;

	while (taken < n && rows[taken].late_id <= bound && ids < LATE_BATCH_IDS)
		ids += rows[taken++].n_ids;
	return taken;
}

/* Their ids are about to get ticks. */
void
evbus_late_delete(const EvbusLateRow *rows, int n)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT8ARRAYOID};
	Datum	   *ids = palloc(sizeof(Datum) * Max(n, 1));
	Datum		values[1];
	EvbusInternal state;

	if (n == 0)
		return;
	for (int i = 0; i < n; i++)
		ids[i] = Int64GetDatum(rows[i].late_id);
	values[0] = PointerGetDatum(construct_array(ids, n, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	evbus_internal_begin(&state);
	evbus_sql(&plan, "DELETE FROM evbus.late WHERE late_id = ANY ($1)", 1, types, values, NULL, 0);
	if (SPI_processed != (uint64) n)
		elog(ERROR, "rows of evbus.late have gone");
	evbus_internal_end(&state);
}
