/*-------------------------------------------------------------------------
 * eventlog.c
 *	  The log: every event as one row, insert only, in leaves by storage class
 *	  and id.
 *
 * evbus.event_log is the record everything else is derived from: positions
 * (tick.c), the ring and recovery.  Rows are written by heap_multi_insert and
 * read by fetch.c.  An event counts as expired only if its leaf is gone.
 *-------------------------------------------------------------------------
 */
#include "eventlog.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "internal.h"
#include "leaf.h"
#include "partitioning/partdesc.h"
#include "scheduled.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#define BUS_CLASSES_MAX	64

/* The partitioned table of one storage class. */
Oid
evbus_class_parent(int32 storage_class_id)
{
	char		name[NAMEDATALEN];

	snprintf(name, sizeof(name), "event_c%d", storage_class_id);
	return evbus_relid(name);
}

/* Partitioned tables of all storage classes. */
int
evbus_class_parents(Oid **parents)
{
	Relation	rel = table_open(evbus_relid("event_log"), AccessShareLock);
	PartitionDesc desc = RelationGetPartitionDesc(rel, true);
	int			n = desc->nparts;

	*parents = palloc(sizeof(Oid) * Max(n, 1));
	if (n > 0)
		memcpy(*parents, desc->oids, sizeof(Oid) * n);
	table_close(rel, AccessShareLock);
	return n;
}

/*
 * Before the first id after a start: raise the clock above every id on disk,
 * rows of prepared and doubtful transactions among them.  Whoever comes first
 * does it; done twice it does no harm.
 */
void
evbus_clock_ensure(EvbusDb *db)
{
	static SPIPlanPtr plan = NULL;
	EvbusInternal state;
	Oid		   *parents;
	int			n;
	int64		newest;

	if (pg_atomic_read_u32(&db->clock_ready))
		return;
	newest = evbus_leaf_newest(evbus_relid("tick"));
	newest = Max(newest, evbus_leaf_newest(evbus_relid("dead_letter_log")));
	newest = Max(newest, evbus_leaf_newest(evbus_relid("audit")));
	n = evbus_class_parents(&parents);
	for (int i = 0; i < n; i++)
		newest = Max(newest, evbus_leaf_newest(parents[i]));
	pfree(parents);
	newest = Max(newest, evbus_scheduled_newest());

	evbus_internal_begin(&state);
	evbus_sql(&plan,
			  "SELECT greatest((SELECT max(newest_id) FROM evbus.watermark), (SELECT max(late_id) FROM evbus.late), 0,"
			  /* Of a volatile bus nothing else is on disk. */
			  " (SELECT max(r.event_id) FROM evbus.bus b JOIN evbus.subscription s USING (bus_id), LATERAL"
			  "  (SELECT event_id FROM evbus.retry t WHERE t.subscription_id = s.subscription_id ORDER BY event_id DESC LIMIT 1) r"
			  "  WHERE b.durability = 'volatile'))",
			  0, NULL, NULL, NULL, 1);
	newest = Max(newest, DatumGetInt64(evbus_column(0, 1, NULL)));
	evbus_internal_end(&state);

	evbus_clock_raise(&db->clock, newest);
	pg_write_barrier();
	pg_atomic_write_u32(&db->clock_ready, 1);
}

/* Room for a value of this length, with its header. */
static Size
varlena_size(Size at, Size len)
{
	if (len + VARHDRSZ_SHORT <= VARATT_SHORT_MAX)
		return at + VARHDRSZ_SHORT + len;
	return INTALIGN(at) + VARHDRSZ + len;
}

/* The header of a value at *at; *at becomes where its bytes go, and is returned. */
static uint32
put_varlena(char *data, Size *at, Size len)
{
	if (len + VARHDRSZ_SHORT <= VARATT_SHORT_MAX)
	{
		SET_VARSIZE_SHORT(data + *at, VARHDRSZ_SHORT + len);
		*at += VARHDRSZ_SHORT;
	}
	else
	{
		while (*at != INTALIGN(*at))
			data[(*at)++] = 0;	/* what is not zero would be a short header */
		SET_VARSIZE(data + *at, VARHDRSZ + len);
		*at += VARHDRSZ;
	}
	return (uint32) *at;
}

static uint32
put_bytes(char *data, Size *at, const char *bytes, Size len)
{
	uint32		start = put_varlena(data, at, len);

	memcpy(data + *at, bytes, len);
	*at += len;
	return start;
}

static uint32
put_coded(char *data, Size *at, const EvbusCoded *coded)
{
	uint32		start = put_varlena(data, at, 1 + coded->len);

	data[(*at)++] = coded->codec;
	memcpy(data + *at, coded->data, coded->len);
	*at += coded->len;
	return start;
}

/*
 * A row in `context`, in one piece.  It is what heap_form_tuple() makes of the
 * seven columns, without a copy of the payload in between: for small events the
 * copies cost more than the row.  Shape: the columns of evbus.event_log of 1.0.
 */
EvbusRow *
evbus_eventlog_form(MemoryContext context, const EvbusBus *bus, int64 event_id, text *type, text *key,
					const EvbusCoded *headers, const EvbusCoded *payload)
{
	bool		nulls = key == NULL || headers == NULL;
	Size		hoff = MAXALIGN(SizeofHeapTupleHeader + (nulls ? BITMAPLEN(LOG_PAYLOAD) : 0));
	Size		at = hoff + sizeof(int64) + 2 * sizeof(int32);
	Size		len = varlena_size(at, VARSIZE_ANY_EXHDR(type));
	EvbusRow   *row;
	HeapTupleHeader header;
	char	   *data;

	if (key)
		len = varlena_size(len, VARSIZE_ANY_EXHDR(key));
	if (headers)
		len = varlena_size(len, 1 + headers->len);
	len = varlena_size(len, 1 + payload->len);

	row = MemoryContextAlloc(context, MAXALIGN(sizeof(EvbusRow)) + len);
	memset(row, 0, MAXALIGN(sizeof(EvbusRow)) + at);
	row->event_id = event_id;
	row->storage_class_id = bus->storage_class_id;
	row->bus_id = bus->bus_id;
	row->bus_slot = bus->slot;
	header = (HeapTupleHeader) ((char *) row + MAXALIGN(sizeof(EvbusRow)));
	data = (char *) header;
	row->tuple.t_data = header;
	row->tuple.t_len = len;
	ItemPointerSetInvalid(&row->tuple.t_self);
	ItemPointerSetInvalid(&header->t_ctid);
	header->t_infomask = HEAP_HASVARWIDTH | (nulls ? HEAP_HASNULL : 0);
	header->t_hoff = hoff;
	HeapTupleHeaderSetNatts(header, LOG_PAYLOAD);
	if (nulls)					/* a bit is set where there is a value */
		header->t_bits[0] = ((1 << LOG_PAYLOAD) - 1) & ~(key ? 0 : 1 << (LOG_KEY - 1)) & ~(headers ? 0 : 1 << (LOG_HEADERS - 1));

	memcpy(data + hoff, &event_id, sizeof(int64));
	memcpy(data + hoff + sizeof(int64), &row->storage_class_id, sizeof(int32));
	memcpy(data + hoff + sizeof(int64) + sizeof(int32), &row->bus_id, sizeof(int32));
	row->type_len = VARSIZE_ANY_EXHDR(type);
	row->type_at = put_bytes(data, &at, VARDATA_ANY(type), row->type_len);
	if (key)
	{
		row->key_len = VARSIZE_ANY_EXHDR(key);
		row->key_at = put_bytes(data, &at, VARDATA_ANY(key), row->key_len);
	}
	if (headers)
	{
		row->headers_len = 1 + headers->len;
		row->headers_at = put_coded(data, &at, headers);
	}
	row->payload_len = 1 + payload->len;
	row->payload_at = put_coded(data, &at, payload);
	Assert(at == len);
	return row;
}

/* Write rows in ascending order of id; stamps the current (sub)transaction. */
void
evbus_eventlog_write(EvbusRow **rows, int n)
{
	HeapTuple  *tuples = palloc(sizeof(HeapTuple) * Max(n, 1));

	PushActiveSnapshot(GetTransactionSnapshot());	/* for TOAST */
	for (int at = 0; at < n;)
	{
		EvbusLeaf	leaf;
		Relation	rel = evbus_leaf_open(evbus_class_parent(rows[at]->storage_class_id), rows[at]->event_id, &leaf);
		int			class = rows[at]->storage_class_id;
		int			count = 0;

		while (at < n && rows[at]->storage_class_id == class &&
			   rows[at]->event_id >= leaf.lo && rows[at]->event_id < leaf.hi)
			tuples[count++] = &rows[at++]->tuple;
		evbus_leaf_insert(rel, tuples, count);
		relation_close(rel, NoLock);
	}
	PopActiveSnapshot();
	pfree(tuples);
}

/* The tables of the classes a bus is and was in; remembered, as who passes over expired events asks for each. */
static int
bus_parents(int32 bus_id, Oid **parents)
{
	static const Oid types[] = {INT4OID};
	static SPIPlanPtr plan = NULL;
	static Oid	known[BUS_CLASSES_MAX];
	static int	n_known = 0;
	static int32 known_bus = 0;
	static uint64 generation = 0;
	uint64		now = evbus_registry_generation();
	Datum		values[] = {Int32GetDatum(bus_id)};
	EvbusInternal state;
	int			n;

	*parents = known;
	if (known_bus == bus_id && generation == now)
		return n_known;
	known_bus = 0;
	evbus_internal_begin(&state);
	n = (int) evbus_sql(&plan, "SELECT DISTINCT c FROM evbus.bus, unnest(storage_class_id || former_classes) AS c WHERE bus_id = $1",
						1, types, values, NULL, BUS_CLASSES_MAX);
	n_known = 0;
	for (int i = 0; i < n; i++)
	{
		char		name[NAMEDATALEN];
		Oid			relid;

		snprintf(name, sizeof(name), "event_c%d", DatumGetInt32(evbus_column(i, 1, NULL)));
		relid = get_relname_relid(name, evbus_namespace(false));
		if (OidIsValid(relid))
			known[n_known++] = relid;
	}
	evbus_internal_end(&state);
	known_bus = bus_id;
	generation = now;
	return n_known;
}

/*
 * An event that was not found is expired if its leaf is gone, of one of the classes
 * that the bus is or was in; else the log has lost a row, and to go on would lose it for
 * the reader too.
 */
void
evbus_eventlog_check_expired(int64 event_id, const EvbusSubscription *sub)
{
	Oid		   *parents;
	int			n = bus_parents(sub->bus_id, &parents);
	EvbusLeaf	leaf;

	for (int i = 0; i < n; i++)
		if (!evbus_leaf_find(parents[i], event_id, &leaf))
			return;
	if (n > 0 && n < BUS_CLASSES_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("event " INT64_FORMAT " of bus \"%s\" is missing from the log", event_id, sub->bus_name),
				 errhint("Its row was deleted by hand, or the table is damaged. evbus.seek() moves a subscription past it.")));
}

static int
scanned_by_id(const void *a, const void *b)
{
	int64		x = ((const EvbusScanned *) a)->event_id;
	int64		y = ((const EvbusScanned *) b)->event_id;

	return x < y ? -1 : x > y;
}

/*
 * For recovery: the up to max lowest ids from `from` on that the snapshot sees,
 * over all storage classes, ascending.  Fewer than max: there are no more.
 */
int
evbus_eventlog_scan(Snapshot snapshot, int64 from, EvbusScanned *found, int max)
{
	Oid		   *parents;
	int			n_parents = evbus_class_parents(&parents);
	EvbusScanned *all = palloc_extended(sizeof(EvbusScanned) * (Size) max * Max(n_parents, 1), MCXT_ALLOC_HUGE);
	int			total = 0;

	for (int p = 0; p < n_parents; p++)
	{
		EvbusLeaf  *leaves;
		int			n_leaves = evbus_leaf_list(parents[p], &leaves);
		int			count = 0;

		for (int l = 0; l < n_leaves && count < max; l++)
		{
			Relation	rel;
			Relation	index;
			ScanKeyData key;
			SysScanDesc scan;
			HeapTuple	tuple;

			if (leaves[l].hi <= from)
				continue;
			rel = try_relation_open(leaves[l].relid, AccessShareLock);
			if (rel == NULL)
				continue;
			(void) RelationGetIndexList(rel);
			index = index_open(rel->rd_pkindex, AccessShareLock);
			ScanKeyInit(&key, LOG_ID, BTGreaterEqualStrategyNumber, F_INT8GE, Int64GetDatum(from));
			scan = systable_beginscan_ordered(rel, index, snapshot, 1, &key);
			while (count < max && HeapTupleIsValid(tuple = systable_getnext_ordered(scan, ForwardScanDirection)))
			{
				bool		isnull;

				all[total].event_id = DatumGetInt64(heap_getattr(tuple, LOG_ID, RelationGetDescr(rel), &isnull));
				all[total].bus_id = DatumGetInt32(heap_getattr(tuple, LOG_BUS, RelationGetDescr(rel), &isnull));
				total++;
				count++;
			}
			systable_endscan_ordered(scan);
			index_close(index, AccessShareLock);
			relation_close(rel, AccessShareLock);
		}
		pfree(leaves);
	}
	qsort(all, total, sizeof(EvbusScanned), scanned_by_id);
	total = Min(total, max);
	memcpy(found, all, sizeof(EvbusScanned) * total);
	pfree(all);
	pfree(parents);
	return total;
}
