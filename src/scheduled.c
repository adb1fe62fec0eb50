/*-------------------------------------------------------------------------
 * scheduled.c
 *	  Events that are not due yet: rows of evbus.scheduled, and when the next is due.
 *
 * A delayed event is a row like any other: it commits, rolls back and is prepared
 * with its transaction.  When due, it is deleted by the transaction that publishes it
 * (scheduler.c), so it is in one of the two places through every crash.
 *
 * Leaves.  Rows that come and go would leave dead ones behind, so they are in tables that
 * are used in turn and truncated: four of a quarter of an hour each, four of a day, and
 * one for all that is further ahead, which autovacuum keeps.  In which of them a row is, is
 * decided by its due time when it is stored, and means nothing to who looks for it:
 *
 *		due within ...    2 quarters of an hour   2 days    later
 *		leaf              0 - 3, by its quarter   4 - 7, by its day (UTC)   8
 *
 *		a turn of four:   [being emptied] [now] [next] [the one after]
 *
 * What a turn has behind it is empty, unless somebody commits late, and is truncated half a
 * turn later: a dump that was about to lock it, has.  Where that cannot be, because of a
 * lock, the leaf is used again as it is.
 *
 * scheduled_due, in shared memory and for each leaf, is a lower bound of the due times in it:
 * so who looks for due rows looks at nothing else, and begins there, past whatever was
 * deleted before.  It is no cursor: whoever commits a row lowers it, however late, and
 * who looks raises it only in this order:
 *
 *		exchange it for "none" -> take a snapshot -> scan -> lower it to what is left
 *
 * For a row that the snapshot does not see becomes visible later, and its commit lowers the
 * bound after that.  0 means that nobody knows: after a start, and after COMMIT PREPARED, which
 * runs in a session that knows nothing of the rows.
 *
 * A row that can never be published, because it is damaged, is set aside (due at infinity) until
 * somebody mends or cancels it; one that cannot be now holds up its bus for a while (scheduler.c).
 *-------------------------------------------------------------------------
 */
#include "scheduled.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/multixact.h"
#include "access/relation.h"
#include "access/stratnum.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "area.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "codec.h"
#include "executor/tuptable.h"
#include "internal.h"
#include "leaf.h"
#include "miscadmin.h"
#include "point.h"
#include "privilege.h"
#include "storage/bufmgr.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define FAR_LEAF		(EVBUS_SCHEDULED_LEAVES - 1)
#define TURN_LEAVES		4
#define TAKE_ROWS		1000	/* at most in one transaction */
#define TAKE_BYTES		(1024 * 1024)	/* well below what the ring takes from one transaction */

/* Columns of evbus.scheduled. */
enum
{
	SCHEDULED_ID = 1, SCHEDULED_DUE, SCHEDULED_BY, SCHEDULED_BUS, SCHEDULED_LEAF,
	SCHEDULED_TYPE, SCHEDULED_KEY, SCHEDULED_HEADERS, SCHEDULED_PAYLOAD
};

/* Leaves used in turn: the first of them, and the time that each covers. */
static const struct
{
	int			first;
	int64		width;
}			turns[] = {{0, 15 * USECS_PER_MINUTE}, {TURN_LEAVES, USECS_PER_DAY}};

StaticAssertDecl(lengthof(turns) * TURN_LEAVES + 1 == EVBUS_SCHEDULED_LEAVES, "leaves of evbus.scheduled");

/* What the current transaction stores: the earliest due time for each leaf. */
static struct
{
	bool		active;
	EvbusDb    *db;
	int64		due[EVBUS_SCHEDULED_LEAVES];
}			stored;

/* The bounds that we exchanged and have not yet put right; and the row that was taken last. */
static struct
{
	bool		active;
	int64		due[EVBUS_SCHEDULED_LEAVES];
	EvbusScheduledRow last;
}			taking;

/* Buses whose events could not be published for now, in TopMemoryContext; the scheduler's, or the maintainer's, own. */
static struct Held
{
	int32		bus_id;
	int64		until;			/* evbus_uptime() */
}		   *held = NULL;
static int	n_held = 0;

static Relation
open_leaf(int leaf, LOCKMODE mode)
{
	char		name[NAMEDATALEN];

	snprintf(name, sizeof(name), "scheduled_%d", leaf);
	return relation_open(evbus_relid(name), mode);
}

/* The index whose first column is this one; every leaf has two of them, of its parent. */
static Relation
open_index(Relation rel, AttrNumber column)
{
	List	   *oids = RelationGetIndexList(rel);
	ListCell   *lc;

	foreach(lc, oids)
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);

		if (index->rd_index->indkey.values[0] == column)
		{
			list_free(oids);
			return index;
		}
		index_close(index, AccessShareLock);
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("table \"evbus.%s\" has lost an index", RelationGetRelationName(rel))));
	return NULL;				/* keep the compiler quiet */
}

/* ------------------------------------------------------------------- bounds */

/* Lower a leaf's bound.  For commit callbacks: cannot fail. */
static void
lower_bound(EvbusDb *db, int leaf, int64 due)
{
	uint64		old = pg_atomic_read_u64(&db->scheduled_due[leaf]);

	while ((int64) old > due && !pg_atomic_compare_exchange_u64(&db->scheduled_due[leaf], &old, (uint64) due))
		;
}

/*
 * Let the scheduler look, if it sleeps past this time; where there is none, the launcher
 * starts one.  The bound was lowered before: it writes until when it sleeps, and then looks
 * at the bounds once more.  For commit callbacks: cannot fail.
 */
static void
wake(EvbusDb *db, int64 due)
{
	pg_memory_barrier();
	if (db->scheduler_pid == 0)
		evbus_launcher_wake();
	else if (due < (int64) pg_atomic_read_u64(&db->scheduler_until))
		SetLatch(&ProcGlobal->allProcs[db->scheduler_procno].procLatch);
}

/* Nothing is due before; PG_INT64_MAX: nothing at all is stored, 0: nobody knows. */
TimestampTz
evbus_scheduled_next(EvbusDb *db)
{
	int64		next = PG_INT64_MAX;

	for (int i = 0; i < EVBUS_SCHEDULED_LEAVES; i++)
		next = Min(next, (int64) pg_atomic_read_u64(&db->scheduled_due[i]));
	return next;
}

/* Somebody may have committed rows that nobody told of: look at the tables.  Cannot fail. */
void
evbus_scheduled_forget(EvbusDb *db)
{
	for (int i = 0; i < EVBUS_SCHEDULED_LEAVES; i++)
		lower_bound(db, i, 0);
	if (db->scheduler_pid != 0)
		SetLatch(&ProcGlobal->allProcs[db->scheduler_procno].procLatch);
	else if (db->maintainer_pid != 0)
		SetLatch(&ProcGlobal->allProcs[db->maintainer_procno].procLatch);
}

/* ------------------------------------------------------------------ storing */

/* Our rows are visible: lower the bounds.  Cannot fail. */
static void
scheduled_xact(XactEvent event, void *arg)
{
	if (!stored.active)
		return;
	if (event == XACT_EVENT_COMMIT)
	{
		int64		first = PG_INT64_MAX;

		for (int i = 0; i < EVBUS_SCHEDULED_LEAVES; i++)
			if (stored.due[i] != PG_INT64_MAX)
			{
				lower_bound(stored.db, i, stored.due[i]);
				first = Min(first, stored.due[i]);
			}
		wake(stored.db, first);
	}
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		stored.active = false;
}

/* The leaf for a due time, as of now. */
int
evbus_scheduled_leaf(TimestampTz due)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < lengthof(turns) && now > 0; i++)
		if (due / turns[i].width - now / turns[i].width <= TURN_LEAVES - 2)
			return turns[i].first + (int) (due / turns[i].width % TURN_LEAVES);
	return FAR_LEAF;
}

static Datum
coded_bytes(const EvbusCoded *coded)
{
	bytea	   *out = palloc(VARHDRSZ + 1 + coded->len);

	SET_VARSIZE(out, VARHDRSZ + 1 + coded->len);
	VARDATA(out)[0] = coded->codec;
	memcpy(VARDATA(out) + 1, coded->data, coded->len);
	return PointerGetDatum(out);
}

/* A row, in the current context. */
HeapTuple
evbus_scheduled_form(int leaf, const EvbusBus *bus, int64 id, TimestampTz due,
					 text *type, text *key, const EvbusHeaders *headers, Jsonb *payload)
{
	Relation	rel = open_leaf(leaf, RowExclusiveLock);
	Datum		values[SCHEDULED_PAYLOAD];
	bool		nulls[SCHEDULED_PAYLOAD] = {0};
	EvbusCoded	coded;
	HeapTuple	tuple;

	values[SCHEDULED_ID - 1] = Int64GetDatum(id);
	values[SCHEDULED_DUE - 1] = TimestampTzGetDatum(due);
	values[SCHEDULED_BY - 1] = ObjectIdGetDatum(GetUserId());
	values[SCHEDULED_BUS - 1] = Int32GetDatum(bus->bus_id);
	values[SCHEDULED_LEAF - 1] = Int16GetDatum(leaf);
	values[SCHEDULED_TYPE - 1] = PointerGetDatum(type);
	values[SCHEDULED_KEY - 1] = PointerGetDatum(key);
	nulls[SCHEDULED_KEY - 1] = key == NULL;
	nulls[SCHEDULED_HEADERS - 1] = !evbus_encode_headers(headers, &coded);
	values[SCHEDULED_HEADERS - 1] = nulls[SCHEDULED_HEADERS - 1] ? (Datum) 0 : coded_bytes(&coded);
	evbus_encode_jsonb(payload, &coded);
	values[SCHEDULED_PAYLOAD - 1] = coded_bytes(&coded);
	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	relation_close(rel, NoLock);
	return tuple;
}

/* Store rows of one leaf, the earliest of them due then. */
void
evbus_scheduled_write(EvbusDb *db, int leaf, TimestampTz due, HeapTuple *tuples, int n)
{
	static bool registered = false;
	Relation	rel = open_leaf(leaf, RowExclusiveLock);

	if (!registered)
	{
		RegisterXactCallback(scheduled_xact, NULL);
		registered = true;
	}
	if (!stored.active)
	{
		stored.db = db;
		for (int i = 0; i < EVBUS_SCHEDULED_LEAVES; i++)
			stored.due[i] = PG_INT64_MAX;
		stored.active = true;
	}
	stored.due[leaf] = Min(stored.due[leaf], due);
	PushActiveSnapshot(GetTransactionSnapshot());	/* for TOAST */
	evbus_leaf_insert(rel, tuples, n);
	PopActiveSnapshot();
	relation_close(rel, NoLock);
}

/* The highest id in any leaf, committed or not: for the clock, after a start. */
int64
evbus_scheduled_newest(void)
{
	int64		newest = 0;

	for (int leaf = 0; leaf < EVBUS_SCHEDULED_LEAVES; leaf++)
	{
		Relation	rel = open_leaf(leaf, AccessShareLock);

		newest = Max(newest, evbus_leaf_newest_in(rel));
		relation_close(rel, AccessShareLock);
	}
	return newest;
}

/* ------------------------------------------------------------------- taking */

/* A row that is due, as the index scan found it. */
typedef struct Found
{
	TimestampTz due;
	int64		id;
	ItemPointerData tid;
	int			leaf;
} Found;

static int
by_due(const void *a, const void *b)
{
	const Found *x = a;
	const Found *y = b;

	if (x->due != y->due)
		return x->due < y->due ? -1 : 1;
	return x->id < y->id ? -1 : x->id > y->id;
}

static bool
is_held(int32 bus_id, int64 now)
{
	for (int i = 0; i < n_held; i++)
		if (held[i].bus_id == bus_id && now < held[i].until)
			return true;
	return false;
}

/* Pass over the events of a bus for so many microseconds. */
void
evbus_scheduled_hold(int32 bus_id, int64 usecs)
{
	int64		now = evbus_uptime();
	int			i;

	for (i = 0; i < n_held && held[i].bus_id != bus_id && now < held[i].until; i++)
		;
	if (i == n_held)
	{
		held = held ? repalloc(held, sizeof(*held) * (n_held + 1)) : MemoryContextAlloc(TopMemoryContext, sizeof(*held));
		n_held++;
	}
	held[i].bus_id = bus_id;
	held[i].until = now + usecs;
}

/* Is another transaction about to delete or change it? */
static bool
is_busy(HeapTupleHeader header)
{
	if (header->t_infomask & HEAP_XMAX_INVALID)
		return false;
	if (header->t_infomask & HEAP_XMAX_IS_MULTI)
		return MultiXactIdIsRunning(HeapTupleHeaderGetRawXmax(header), false);
	return TransactionIdIsInProgress(HeapTupleHeaderGetRawXmax(header));
}

/*
 * The rows of a leaf due from..upto, the first TAKE_ROWS of those that may be had: thousands that somebody is
 * about to cancel, or of a bus that is held, keep nobody else.  Lowers the bound to what is left.
 */
static int
find_due(EvbusDb *db, int leaf, Snapshot snapshot, TimestampTz from, TimestampTz upto, Found *found)
{
	Relation	rel = open_leaf(leaf, AccessShareLock);
	Relation	index = open_index(rel, SCHEDULED_DUE);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	int64		uptime = evbus_uptime();
	int			n = 0;

	ScanKeyInit(&key, SCHEDULED_DUE, BTGreaterEqualStrategyNumber, F_TIMESTAMPTZ_GE, TimestampTzGetDatum(from));
	scan = systable_beginscan_ordered(rel, index, snapshot, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext_ordered(scan, ForwardScanDirection)))
	{
		bool		isnull;
		TimestampTz due = DatumGetTimestampTz(heap_getattr(tuple, SCHEDULED_DUE, RelationGetDescr(rel), &isnull));

		if (due > upto || n == TAKE_ROWS)
		{
			lower_bound(db, leaf, due);
			break;
		}
		CHECK_FOR_INTERRUPTS();
		if (is_busy(tuple->t_data) ||
			(n_held > 0 && is_held(DatumGetInt32(heap_getattr(tuple, SCHEDULED_BUS, RelationGetDescr(rel), &isnull)), uptime)))
		{
			lower_bound(db, leaf, due);
			continue;
		}
		found[n].due = due;
		found[n].id = DatumGetInt64(heap_getattr(tuple, SCHEDULED_ID, RelationGetDescr(rel), &isnull));
		found[n].tid = tuple->t_self;
		found[n++].leaf = leaf;
	}
	systable_endscan_ordered(scan);
	index_close(index, AccessShareLock);
	relation_close(rel, AccessShareLock);
	return n;
}

static text *
copy_text(TupleTableSlot *slot, AttrNumber column)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, column, &isnull);

	return isnull ? NULL : DatumGetTextPCopy(value);
}

static Jsonb *
copy_jsonb(TupleTableSlot *slot, AttrNumber column, int64 id)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, column, &isnull);
	bytea	   *coded;

	if (isnull)
		return NULL;
	coded = DatumGetByteaPP(value);
	return evbus_decode_jsonb(VARDATA_ANY(coded), VARSIZE_ANY_EXHDR(coded), id);
}

static void
copy_headers(TupleTableSlot *slot, int64 id, EvbusHeaders *headers)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, SCHEDULED_HEADERS, &isnull);
	bytea	   *stored;
	const char *inside;
	int			len;
	int			at;

	memset(headers, 0, sizeof(*headers));
	if (isnull)
		return;
	stored = DatumGetByteaPP(value);
	len = VARSIZE_ANY_EXHDR(stored);
	(void) evbus_envelope_open(VARDATA_ANY(stored), len, &headers->priority, &headers->expires_at, &at);
	inside = evbus_headers_inside(VARDATA_ANY(stored), &len);
	if (inside)
		headers->json = evbus_decode_jsonb(inside, len, id);
}

/*
 * Delete a row and give it back; false: it is gone, or (*busy) another transaction is
 * about to delete it, which is not waited for.
 */
static bool
take_row(Relation rel, TupleTableSlot *slot, Found *found, Snapshot snapshot, EvbusDue *out, bool *busy)
{
	TM_FailureData failure;
	TM_Result	result;
	bool		isnull;

	*busy = false;
	if (!table_tuple_fetch_row_version(rel, &found->tid, snapshot, slot))
		return false;
	out->scheduled_id = found->id;
	out->due_at = found->due;
	out->bus_id = DatumGetInt32(slot_getattr(slot, SCHEDULED_BUS, &isnull));
	taking.last.id = found->id;
	taking.last.bus_id = out->bus_id;
	taking.last.unread = true;
	out->type = copy_text(slot, SCHEDULED_TYPE);
	out->key = copy_text(slot, SCHEDULED_KEY);
	copy_headers(slot, found->id, &out->headers);
	out->payload = copy_jsonb(slot, SCHEDULED_PAYLOAD, found->id);
	taking.last.unread = false;
	ExecClearTuple(slot);
	result = table_tuple_delete(rel, &found->tid, GetCurrentCommandId(true), snapshot, InvalidSnapshot,
								false, &failure, false);
	*busy = result == TM_WouldBlock || result == TM_BeingModified;
	return result == TM_Ok;
}

/*
 * Take what is due, in the order of due times, up to max, a part of it if there is much; returns how
 * many, palloc'd.  It is deleted once this transaction commits; when that is over, the caller
 * calls evbus_scheduled_end().  What others are about to cancel is left for the next time.
 */
int
evbus_scheduled_take(EvbusDb *db, TimestampTz now, int max, EvbusDue **due)
{
	Relation	rels[EVBUS_SCHEDULED_LEAVES] = {NULL};
	TupleTableSlot *slots[EVBUS_SCHEDULED_LEAVES] = {NULL};
	Found	   *found = palloc(sizeof(Found) * TAKE_ROWS * EVBUS_SCHEDULED_LEAVES);
	Snapshot	snapshot;
	Size		bytes = 0;
	int			n_found = 0;
	int			n = 0;
	int			at;

	for (int leaf = 0; leaf < EVBUS_SCHEDULED_LEAVES; leaf++)
		taking.due[leaf] = PG_INT64_MAX;
	taking.last.id = 0;
	taking.active = true;
	for (int leaf = 0; leaf < EVBUS_SCHEDULED_LEAVES; leaf++)
		if ((int64) pg_atomic_read_u64(&db->scheduled_due[leaf]) <= now)
			taking.due[leaf] = (int64) pg_atomic_exchange_u64(&db->scheduled_due[leaf], (uint64) PG_INT64_MAX);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	PushActiveSnapshot(snapshot);
	for (int leaf = 0; leaf < EVBUS_SCHEDULED_LEAVES; leaf++)
		if (taking.due[leaf] != PG_INT64_MAX)
			n_found += find_due(db, leaf, snapshot, taking.due[leaf], now, &found[n_found]);
	EVBUS_POINT("scheduled.found");

	qsort(found, n_found, sizeof(Found), by_due);
	max = Min(max, TAKE_ROWS);
	*due = palloc(sizeof(EvbusDue) * max);
	for (at = 0; at < n_found && n < max && bytes < TAKE_BYTES; at++)
	{
		int			leaf = found[at].leaf;
		EvbusDue   *out = &(*due)[n];
		bool		busy;

		if (rels[leaf] == NULL)
		{
			rels[leaf] = open_leaf(leaf, RowExclusiveLock);
			slots[leaf] = table_slot_create(rels[leaf], NULL);
		}
		if (take_row(rels[leaf], slots[leaf], &found[at], snapshot, out, &busy))
		{
			bytes += VARSIZE(out->payload) + (out->headers.json ? VARSIZE(out->headers.json) : 0);
			n++;
		}
		else if (busy)
			lower_bound(db, leaf, found[at].due);
	}
	for (; at < n_found; at++)
		lower_bound(db, found[at].leaf, found[at].due);

	for (int leaf = 0; leaf < EVBUS_SCHEDULED_LEAVES; leaf++)
		if (rels[leaf] != NULL)
		{
			ExecDropSingleTupleTableSlot(slots[leaf]);
			relation_close(rels[leaf], NoLock);
		}
	PopActiveSnapshot();
	UnregisterSnapshot(snapshot);
	pfree(found);
	EVBUS_POINT("scheduled.taken");
	return n;
}

/* The row that the last call took last; its id is 0: it took none. */
EvbusScheduledRow
evbus_scheduled_last(void)
{
	return taking.last;
}

/*
 * Set a row aside, when the caller commits: it is never due, but there, and can be cancelled.  It
 * stays in its leaf, and as it is: what is damaged may not be copied.
 */
void
evbus_scheduled_set_aside(int64 id)
{
	static const Oid types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(id)};
	EvbusInternal state;

	evbus_internal_begin(&state);
	evbus_sql(NULL, "UPDATE evbus.scheduled SET due_at = 'infinity' WHERE scheduled_id = $1", 1, types, values, NULL, 0);
	evbus_internal_end(&state);
}

/* The transaction that took is over, or (not committed) this process is about to end.  Cannot fail. */
void
evbus_scheduled_end(EvbusDb *db, bool committed)
{
	if (!taking.active)
		return;
	taking.active = false;
	for (int leaf = 0; leaf < EVBUS_SCHEDULED_LEAVES && !committed; leaf++)
		lower_bound(db, leaf, taking.due[leaf]);
}

/*
 * Delete a row by its id, for who scheduled it, the owner of its bus and superusers; false:
 * there is none, or no longer.  Waits for a transaction that is about to delete it.
 */
bool
evbus_scheduled_delete(EvbusDb *db, int64 id)
{
	bool		done = false;
	bool		changed = false;
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());

	PushActiveSnapshot(snapshot);
	for (int leaf = 0; leaf < EVBUS_SCHEDULED_LEAVES && !done; leaf++)
	{
		Relation	rel = open_leaf(leaf, RowExclusiveLock);
		Relation	index = open_index(rel, SCHEDULED_ID);
		ScanKeyData key;
		SysScanDesc scan;
		HeapTuple	tuple;

		ScanKeyInit(&key, SCHEDULED_ID, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
		scan = systable_beginscan_ordered(rel, index, snapshot, 1, &key);
		tuple = systable_getnext_ordered(scan, ForwardScanDirection);
		if (HeapTupleIsValid(tuple))
		{
			EvbusBus	bus;
			bool		isnull;
			Oid			role = DatumGetObjectId(heap_getattr(tuple, SCHEDULED_BY, RelationGetDescr(rel), &isnull));
			int32		bus_id = DatumGetInt32(heap_getattr(tuple, SCHEDULED_BUS, RelationGetDescr(rel), &isnull));
			ItemPointerData tid = tuple->t_self;
			TM_FailureData failure;
			TM_Result	result;

			if (!has_privs_of_role(GetUserId(), role) &&
				!(evbus_bus_by_id(bus_id, &bus) && evbus_bus_allows(&bus, GetUserId(), EVBUS_MANAGE)))
				ereport(ERROR,
						(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						 errmsg("event " INT64_FORMAT " was scheduled by another role", id)));
			systable_endscan_ordered(scan);
			scan = NULL;
			result = table_tuple_delete(rel, &tid, GetCurrentCommandId(true), snapshot, InvalidSnapshot,
										true, &failure, false);
			done = result == TM_Ok;
			changed = result == TM_Updated; /* set aside, or mended: there is another version */
		}
		if (scan)
			systable_endscan_ordered(scan);
		index_close(index, AccessShareLock);
		relation_close(rel, done ? NoLock : RowExclusiveLock);
	}
	PopActiveSnapshot();
	UnregisterSnapshot(snapshot);
	return changed ? evbus_scheduled_delete(db, id) : done;
}

/* ------------------------------------------------------------------- upkeep */

/*
 * See what is due next in each leaf, as the tables say: rows may have come in other ways
 * than by publish(), as with pg_restore.
 */
void
evbus_scheduled_look(EvbusDb *db)
{
	int64		first = PG_INT64_MAX;

	for (int leaf = 0; leaf < EVBUS_SCHEDULED_LEAVES; leaf++)
	{
		Relation	rel = open_leaf(leaf, AccessShareLock);

		if (RelationGetNumberOfBlocks(rel) > 0)
		{
			Relation	index = open_index(rel, SCHEDULED_DUE);
			Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
			SysScanDesc scan = systable_beginscan_ordered(rel, index, snapshot, 0, NULL);
			HeapTuple	tuple = systable_getnext_ordered(scan, ForwardScanDirection);

			if (HeapTupleIsValid(tuple))
			{
				bool		isnull;
				int64		due = DatumGetTimestampTz(heap_getattr(tuple, SCHEDULED_DUE, RelationGetDescr(rel), &isnull));

				lower_bound(db, leaf, due);
				first = Min(first, due);
			}
			systable_endscan_ordered(scan);
			UnregisterSnapshot(snapshot);
			index_close(index, AccessShareLock);
		}
		relation_close(rel, AccessShareLock);
	}
	if (first != PG_INT64_MAX)
		wake(db, first);
}

static bool
has_rows(Relation rel)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, snapshot, 0, NULL);
	bool		any = HeapTupleIsValid(systable_getnext(scan));

	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	return any;
}

/* Truncate the leaves whose turn is over and that are empty.  Waits for no lock: there is another turn. */
void
evbus_scheduled_trim(void)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < lengthof(turns) && now > 0; i++)
	{
		int			leaf = turns[i].first + (int) ((now / turns[i].width + TURN_LEAVES - 1) % TURN_LEAVES);
		Relation	rel;

		if (now % turns[i].width < turns[i].width / 2)
			continue;
		rel = open_leaf(leaf, AccessShareLock);
		if (RelationGetNumberOfBlocks(rel) > 0 && !has_rows(rel) &&
			ConditionalLockRelation(rel, AccessExclusiveLock) && !has_rows(rel))
		{
			EvbusInternal state;

			relation_close(rel, NoLock);	/* what is open cannot be truncated */
			evbus_internal_begin(&state);
			evbus_utility("TRUNCATE evbus.scheduled_%d", leaf);
			evbus_internal_end(&state);
		}
		else
			relation_close(rel, NoLock);
	}
}
