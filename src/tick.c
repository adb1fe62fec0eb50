/*-------------------------------------------------------------------------
 * tick.c
 *	  Ticks: which event has which position on its bus.
 *
 * A tick says of n consecutive positions of one bus which ids they are, coded
 * as runs, since a batch takes consecutive ids.  It is keyed by the clock at
 * writing, which is above every id it names, so a tick's leaf can outlive the
 * leaves it names but never the other way round.  Written by the sequencer
 * alone; read by whoever fell behind the ring.
 *-------------------------------------------------------------------------
 */
#include "tick.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/stratnum.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "internal.h"
#include "leaf.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "varint.h"

#define TICK_MAX	4096		/* ids in one row; readers rely on it */
#define TICK_COLUMNS 7

static bytea *
encode_ids(const int64 *ids, int n)
{
	StringInfoData buf;
	int64		expected = 0;

	initStringInfo(&buf);
	appendStringInfoSpaces(&buf, VARHDRSZ);
	for (int i = 0; i < n;)
	{
		int			run = 1;

		while (i + run < n && ids[i + run] == ids[i] + run)
			run++;
		evbus_put_signed(&buf, ids[i] - expected);
		evbus_put_varint(&buf, run);
		expected = ids[i] + run;
		i += run;
	}
	SET_VARSIZE(buf.data, buf.len);
	return (bytea *) buf.data;
}

/* ids must have room for n; errors if the row holds another number of them. */
static void
decode_ids(bytea *coded, int64 *ids, int n)
{
	const unsigned char *at = (unsigned char *) VARDATA_ANY(coded);
	const unsigned char *end = at + VARSIZE_ANY_EXHDR(coded);
	int64		next = 0;
	int			count = 0;

	while (at < end)
	{
		uint64		run;

		next += evbus_get_signed(&at, end);
		run = evbus_get_varint(&at, end);
		if (run > (uint64) (n - count))
			break;
		while (run-- > 0)
			ids[count++] = next++;
	}
	if (count != n || at != end)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("a row of evbus.tick does not hold the %d ids it should", n)));
}

/* Write the ticks of n consecutive positions of one bus. */
void
evbus_tick_write(EvbusDb *db, int32 bus_id, int64 first_position,
				 const int64 *ids, int n, int64 low_id)
{
	int			n_rows = (n + TICK_MAX - 1) / TICK_MAX;
	HeapTuple  *tuples = palloc(sizeof(HeapTuple) * Max(n_rows, 1));
	int64		tick_id;
	EvbusLeaf	leaf;
	Relation	rel;

	if (n == 0)
		return;
	tick_id = evbus_clock_take(&db->clock, 1);
	rel = evbus_leaf_open(evbus_relid("tick"), tick_id, &leaf);
	for (int r = 0; r < n_rows; r++)
	{
		const int64 *part = ids + r * TICK_MAX;
		int			count = Min(n - r * TICK_MAX, TICK_MAX);
		Datum		values[TICK_COLUMNS];
		bool		nulls[TICK_COLUMNS] = {0};
		int64		min_id = part[0];

		for (int i = 1; i < count; i++)
			min_id = Min(min_id, part[i]);
		values[0] = Int64GetDatum(tick_id);
		values[1] = Int32GetDatum(bus_id);
		values[2] = Int64GetDatum(first_position + r * TICK_MAX);
		values[3] = Int32GetDatum(count);
		values[4] = Int64GetDatum(low_id);
		values[5] = Int64GetDatum(min_id);
		values[6] = PointerGetDatum(encode_ids(part, count));
		tuples[r] = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	}
	evbus_leaf_insert(rel, tuples, n_rows);
	relation_close(rel, NoLock);
}

/* A tick that names nothing, and only says that recovery may start from low_id. */
void
evbus_tick_mark(EvbusDb *db, int64 low_id)
{
	Datum		values[TICK_COLUMNS] = {0};
	bool		nulls[TICK_COLUMNS] = {0};
	int64		tick_id = evbus_clock_take(&db->clock, 1);
	EvbusLeaf	leaf;
	Relation	rel = evbus_leaf_open(evbus_relid("tick"), tick_id, &leaf);
	HeapTuple	tuple;

	values[0] = Int64GetDatum(tick_id);
	values[1] = Int32GetDatum(0);	/* of no bus; its positions only make the key unique */
	values[2] = Int64GetDatum(tick_id);
	values[3] = Int32GetDatum(0);
	values[4] = Int64GetDatum(low_id);
	values[5] = Int64GetDatum(tick_id);
	values[6] = PointerGetDatum(encode_ids(NULL, 0));
	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	evbus_leaf_insert(rel, &tuple, 1);
	relation_close(rel, NoLock);
}

/*
 * The tick read last.  It never changes, and who reads on in small steps finds the
 * next ids in it; leaves before its own hold lower positions only.
 */
static struct
{
	Oid			relid;			/* of evbus.tick; another oid is another extension */
	int32		bus_id;			/* 0: none */
	EvbusLeaf	leaf;
	int64		first;
	int			n;
	int64		ids[TICK_MAX];
}			last_tick;

/* Those of [lo, hi) that the last tick names; returns how many. */
static int
take_ids(int64 lo, int64 hi, EvbusEvent *events)
{
	int			count = 0;

	for (int64 at = Max(lo, last_tick.first); at < Min(hi, last_tick.first + last_tick.n); at++)
	{
		memset(&events[count], 0, sizeof(EvbusEvent));
		events[count].event_id = last_tick.ids[at - last_tick.first];
		events[count++].position = at;
	}
	return count;
}

/* Remember a row of evbus.tick. */
static void
remember(HeapTuple tuple, TupleDesc desc, const EvbusLeaf *leaf)
{
	Datum		values[TICK_COLUMNS];
	bool		nulls[TICK_COLUMNS];
	int			n;

	heap_deform_tuple(tuple, desc, values, nulls);
	last_tick.bus_id = 0;		/* should what follows fail */
	n = DatumGetInt32(values[3]);
	if (n < 0 || n > TICK_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("a row of evbus.tick names %d ids", n)));
	decode_ids(DatumGetByteaPP(values[6]), last_tick.ids, n);
	last_tick.leaf = *leaf;
	last_tick.first = DatumGetInt64(values[2]);
	last_tick.n = n;
	last_tick.bus_id = DatumGetInt32(values[1]);
}

/* The same for [lo, hi) out of the ticks of one leaf. */
static int
read_leaf(const EvbusLeaf *leaf, int32 bus_id, int64 lo, int64 hi, Snapshot snapshot, EvbusEvent *events)
{
	Relation	rel = try_relation_open(leaf->relid, AccessShareLock);
	Relation	index;
	ScanKeyData keys[3];		/* made anew for each scan, which changes them */
	SysScanDesc scan;
	HeapTuple	tuple;
	int			count = 0;

	if (rel == NULL)
		return 0;				/* dropped meanwhile */
	(void) RelationGetIndexList(rel);
	index = index_open(rel->rd_pkindex, AccessShareLock);
	ScanKeyInit(&keys[0], 2, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(bus_id));

	/* The last one that begins at lo or before, then those that follow. */
	ScanKeyInit(&keys[1], 3, BTLessEqualStrategyNumber, F_INT8LE, Int64GetDatum(lo));
	scan = systable_beginscan_ordered(rel, index, snapshot, 2, keys);
	tuple = systable_getnext_ordered(scan, BackwardScanDirection);
	if (HeapTupleIsValid(tuple))
	{
		remember(tuple, RelationGetDescr(rel), leaf);
		count = take_ids(lo, hi, events);
	}
	systable_endscan_ordered(scan);
	if (lo + count < hi)
	{
		ScanKeyInit(&keys[0], 2, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(bus_id));
		ScanKeyInit(&keys[1], 3, BTGreaterStrategyNumber, F_INT8GT, Int64GetDatum(lo));
		ScanKeyInit(&keys[2], 3, BTLessStrategyNumber, F_INT8LT, Int64GetDatum(hi));
		scan = systable_beginscan_ordered(rel, index, snapshot, 3, keys);
		while (HeapTupleIsValid(tuple = systable_getnext_ordered(scan, ForwardScanDirection)))
		{
			remember(tuple, RelationGetDescr(rel), leaf);
			count += take_ids(lo, hi, events + count);
		}
		systable_endscan_ordered(scan);
	}
	index_close(index, AccessShareLock);
	relation_close(rel, AccessShareLock);
	return count;
}

/*
 * Ids of the positions [lo, hi) in ascending order: sets event_id and position,
 * and the rest to zero.  Returns how many; those whose ticks are dropped lack.
 */
int
evbus_tick_read(int32 bus_id, int64 lo, int64 hi, EvbusEvent *events)
{
	Oid			relid = evbus_relid("tick");
	bool		known = last_tick.bus_id == bus_id && last_tick.relid == relid && lo >= last_tick.first;
	int64		from = known ? last_tick.leaf.lo : 0;
	EvbusLeaf  *leaves;
	int			n_leaves;
	Snapshot	snapshot;
	int			count = known ? take_ids(lo, hi, events) : 0;

	lo += count;
	if (lo >= hi)
		return count;
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	PushActiveSnapshot(snapshot);	/* for TOAST */
	n_leaves = evbus_leaf_list(relid, &leaves);
	if (last_tick.relid != relid)
		last_tick.bus_id = 0;
	last_tick.relid = relid;
	for (int i = 0; i < n_leaves && lo < hi; i++)
		if (leaves[i].lo >= from)
		{
			int			n = read_leaf(&leaves[i], bus_id, lo, hi, snapshot, events + count);

			count += n;
			if (n > 0)
				lo = events[count - 1].position + 1;
		}
	pfree(leaves);
	PopActiveSnapshot();
	UnregisterSnapshot(snapshot);
	return count;
}

/* One bigint answer of one query about a bus; missing if NULL. */
static int64
ask(SPIPlanPtr *plan, const char *sql, int nargs, Datum *values, int64 missing)
{
	static const Oid types[] = {INT4OID, INT8OID};
	EvbusInternal state;
	int64		result = missing;

	evbus_internal_begin(&state);
	if (evbus_sql(plan, sql, nargs, types, values, NULL, 1) > 0)
	{
		bool		isnull;
		Datum		value = evbus_column(0, 1, &isnull);

		if (!isnull)
			result = DatumGetInt64(value);
	}
	evbus_internal_end(&state);
	return result;
}

/* The position the next event of a bus gets, as the ticks and the watermark say. */
int64
evbus_tick_next_position(int32 bus_id)
{
	static SPIPlanPtr plan = NULL;
	Datum		values[] = {Int32GetDatum(bus_id)};

	return ask(&plan,
			   "SELECT greatest((SELECT first_position + n FROM evbus.tick WHERE bus_id = $1 ORDER BY first_position DESC LIMIT 1),"
			   " (SELECT next_position FROM evbus.watermark WHERE bus_id = $1), 1)", 1, values, 1);
}

/* The oldest position there is still a tick for; the next one where there is none. */
int64
evbus_tick_first_position(int32 bus_id)
{
	static SPIPlanPtr plan = NULL;
	Datum		values[] = {Int32GetDatum(bus_id)};

	return ask(&plan, "SELECT first_position FROM evbus.tick WHERE bus_id = $1 ORDER BY first_position LIMIT 1",
			   1, values, evbus_tick_next_position(bus_id));
}

/* The lowest position of an event published at or after t. */
int64
evbus_tick_position_at(int32 bus_id, TimestampTz t)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT4OID, INT8OID};
	int64		from = evbus_clock_from_time(t);
	Datum		values[] = {Int32GetDatum(bus_id), Int64GetDatum(from)};
	int64		best = evbus_tick_next_position(bus_id);
	EvbusInternal state;
	uint64		rows;
	int64		ids[TICK_MAX];

	/* A tick that names such an id was written after it; in position order the first hit is the lowest. */
	evbus_internal_begin(&state);
	rows = evbus_sql(&plan, "SELECT first_position, n, ids FROM evbus.tick"
					 " WHERE bus_id = $1 AND tick_id >= $2 ORDER BY first_position LIMIT 64",
					 2, types, values, NULL, 0);
	for (uint64 r = 0; r < rows; r++)
	{
		int64		first = DatumGetInt64(evbus_column(r, 1, NULL));
		int			n = DatumGetInt32(evbus_column(r, 2, NULL));
		int			i = 0;

		decode_ids(DatumGetByteaPP(evbus_column(r, 3, NULL)), ids, n);
		while (i < n && ids[i] < from)
			i++;
		best = Min(best, first + i);
		if (i < n)
			break;				/* else all older: a long transaction's tick; the next one may hold it */
	}
	evbus_internal_end(&state);
	return best;
}

/* Where recovery starts: every committed id below has a position or a late row. */
int64
evbus_tick_low_id(void)
{
	static SPIPlanPtr plan = NULL;

	return ask(&plan,
			   "SELECT coalesce((SELECT low_id FROM evbus.tick ORDER BY tick_id DESC LIMIT 1),"
			   " (SELECT max(low_id) FROM evbus.watermark), 0)", 0, NULL, 0);
}

/* Every id that ticks written at or after low_id name. */
void
evbus_tick_ids_from(int64 low_id, EvbusIdCallback callback, void *arg)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(low_id)};
	EvbusInternal state;
	uint64		rows;
	int64		ids[TICK_MAX];

	evbus_internal_begin(&state);
	rows = evbus_sql(&plan, "SELECT n, ids FROM evbus.tick WHERE tick_id >= $1", 1, types, values, NULL, 0);
	for (uint64 r = 0; r < rows; r++)
	{
		int			n = DatumGetInt32(evbus_column(r, 1, NULL));

		decode_ids(DatumGetByteaPP(evbus_column(r, 2, NULL)), ids, n);
		for (int i = 0; i < n; i++)
			if (ids[i] >= low_id)
				callback(ids[i], arg);
	}
	evbus_internal_end(&state);
}

/* The positions of a bus whose ids are in [lo, hi), in any order. */
void
evbus_tick_each(int32 bus_id, int64 lo, int64 hi, EvbusPositionCallback callback, void *arg)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT4OID, INT8OID, INT8OID};
	Datum		values[] = {Int32GetDatum(bus_id), Int64GetDatum(lo), Int64GetDatum(hi)};
	EvbusInternal state;
	uint64		rows;
	int64		ids[TICK_MAX];

	evbus_internal_begin(&state);
	/* A tick is written after the ids it names. */
	rows = evbus_sql(&plan, "SELECT first_position, n, ids FROM evbus.tick WHERE bus_id = $1 AND tick_id >= $2 AND min_id < $3",
					 3, types, values, NULL, 0);
	for (uint64 r = 0; r < rows; r++)
	{
		int64		first = DatumGetInt64(evbus_column(r, 1, NULL));
		int			n = DatumGetInt32(evbus_column(r, 2, NULL));

		decode_ids(DatumGetByteaPP(evbus_column(r, 3, NULL)), ids, n);
		for (int i = 0; i < n; i++)
			if (ids[i] >= lo && ids[i] < hi)
				callback(first + i, ids[i], arg);
	}
	evbus_internal_end(&state);
}
