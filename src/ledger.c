/*-------------------------------------------------------------------------
 * ledger.c
 *	  The durable side of cursor.c: an append-only ledger of acked ranges.
 *
 * Three tables are used in turn: turn t writes to ack_(t % 3).  A turn begins
 * with a checkpoint of every subscription in the new table and makes the rows of
 * all earlier turns superfluous; but the table of turn t is emptied only on the
 * way to turn t + 3, because TRUNCATE is not MVCC-safe: a pg_dump that began
 * before must find either the acks or a checkpoint.
 *
 *		truncate ack_(t+1) -> writers switch to t+1 -> wait for writers of t
 *		-> checkpoint into ack_(t+1)
 *
 * What is done only grows within an epoch, so loading is the union of all rows
 * of the subscription's epoch, in any order; seek begins a new epoch.
 *-------------------------------------------------------------------------
 */
#include "ledger.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/xact.h"
#include "clock.h"
#include "internal.h"
#include "pin.h"
#include "leaf.h"
#include "point.h"
#include "progress.h"
#include "ring.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "varint.h"
#include "volatile.h"
#include "wait.h"

#define LEDGER_LEAVES	3
#define ACK_COLUMNS		5
#define TICK_WAIT_MS	10000	/* for the sequencer to commit a tick */

/* kB; a turn begins when the table in use is larger. */
int			evbus_ledger_turn_size = 16384;

static Oid
leaf_relid(uint64 turn)
{
	char		name[NAMEDATALEN];

	snprintf(name, sizeof(name), "ack_%d", (int) (turn % LEDGER_LEAVES));
	return evbus_relid(name);
}

static bytea *
encode_ranges(const EvbusRange *ranges, int n)
{
	StringInfoData buf;
	int64		expected = 0;

	initStringInfo(&buf);
	appendStringInfoSpaces(&buf, VARHDRSZ);
	for (int i = 0; i < n; i++)
	{
		evbus_put_signed(&buf, ranges[i].lo - expected);
		evbus_put_varint(&buf, ranges[i].hi - ranges[i].lo);
		expected = ranges[i].hi;
	}
	SET_VARSIZE(buf.data, buf.len);
	return (bytea *) buf.data;
}

static HeapTuple
form_row(Relation rel, const EvbusSubscription *sub, uint64 turn, const int64 *frontier,
		 const EvbusRange *ranges, int n)
{
	Datum		values[ACK_COLUMNS];
	bool		nulls[ACK_COLUMNS] = {0};

	values[0] = Int32GetDatum(sub->subscription_id);
	values[1] = Int32GetDatum(sub->epoch);
	values[2] = Int64GetDatum(turn);
	values[3] = Int64GetDatum(frontier ? *frontier : 0);
	nulls[3] = frontier == NULL;
	values[4] = PointerGetDatum(encode_ranges(ranges, n));
	return heap_form_tuple(RelationGetDescr(rel), values, nulls);
}

static int
range_by_lo(const void *a, const void *b)
{
	int64		x = ((const EvbusRange *) a)->lo;
	int64		y = ((const EvbusRange *) b)->lo;

	return x < y ? -1 : x > y;
}

/* Sort, and join what touches; returns how many are left. */
static int
merge_ranges(EvbusRange *ranges, int n)
{
	int			out = 0;

	qsort(ranges, n, sizeof(EvbusRange), range_by_lo);
	for (int i = 0; i < n; i++)
	{
		if (out > 0 && ranges[i].lo <= ranges[out - 1].hi)
			ranges[out - 1].hi = Max(ranges[out - 1].hi, ranges[i].hi);
		else
			ranges[out++] = ranges[i];
	}
	return out;
}

/*
 * Write acked ranges in the current transaction.  The lock on the table of this
 * turn is held until its end, callbacks included, which is what a turn waits for;
 * so the turn is read again once the lock is ours.
 */
void
evbus_ledger_append(EvbusDb *db, const EvbusSubscription *sub, const EvbusRange *ranges, int n)
{
	EvbusRange *merged;
	Relation	rel;
	HeapTuple	tuple;
	uint64		turn;

	if (sub->is_volatile)
		return;					/* the leases in shared memory are all there is */
	merged = palloc(sizeof(EvbusRange) * Max(n, 1));
	memcpy(merged, ranges, sizeof(EvbusRange) * n);
	n = merge_ranges(merged, n);
	for (;;)
	{
		turn = pg_atomic_read_u64(&db->ledger_turn);
		rel = relation_open(leaf_relid(turn), RowExclusiveLock);
		if (turn == pg_atomic_read_u64(&db->ledger_turn))
			break;
		relation_close(rel, RowExclusiveLock);
	}
	tuple = form_row(rel, sub, turn, NULL, merged, n);
	evbus_leaf_insert(rel, &tuple, 1);
	relation_close(rel, NoLock);
	heap_freetuple(tuple);
	pfree(merged);
	EVBUS_POINT("ack.appended");
}

/*
 * Nothing of what was claimed is wanted: it is done.  The neighbour above takes it along,
 * whose ack covers it; where there is none, as that is done already or in a batch of
 * somebody, a row says it, or a restart would find the gap open.  (In a transaction that
 * may not write it does.)
 */
void
evbus_ledger_pass_over(EvbusDb *db, const EvbusSubscription *sub, const EvbusClaim *claim)
{
	EvbusRange	range;

	if (evbus_cursor_skip(db, claim))
		return;
	if (evbus_cursor_range(db, claim, &range) && !XactReadOnly)
	{
		evbus_ledger_wait_ticked(db, sub, range.hi);
		evbus_ledger_append(db, sub, &range, 1);
	}
	evbus_cursor_drop(db, claim);
}

/* ------------------------------------------------------------------ loading */

typedef struct Loading
{
	const EvbusSubscription *sub;
	EvbusRange *done;
	int			n;
	int			size;
} Loading;

static void
loading_add(Loading *loading, int64 lo, int64 hi)
{
	if (lo >= hi)
		return;
	if (loading->n == loading->size)
	{
		int			merged = merge_ranges(loading->done, loading->n);

		if (merged > loading->size / 2)
		{
			loading->size *= 2;
			loading->done = repalloc_huge(loading->done, sizeof(EvbusRange) * loading->size);
		}
		loading->n = merged;
	}
	loading->done[loading->n].lo = lo;
	loading->done[loading->n++].hi = hi;
}

/* Add what one ledger row says. */
static void
loading_row(Loading *loading, bool checkpoint, int64 frontier, bytea *coded)
{
	const unsigned char *at = (unsigned char *) VARDATA_ANY(coded);
	const unsigned char *end = at + VARSIZE_ANY_EXHDR(coded);
	int64		next = 0;
	int64		done_from = loading->sub->start_position;

	while (at < end)
	{
		int64		lo = next + evbus_get_signed(&at, end);

		next = lo + (int64) evbus_get_varint(&at, end);
		if (checkpoint)
		{
			loading_add(loading, done_from, lo);
			done_from = next;
		}
		else
			loading_add(loading, lo, next);
	}
	if (checkpoint)
		loading_add(loading, done_from, frontier);
}

static int
loading_by_id(const void *a, const void *b)
{
	return ((const Loading *) a)->sub->subscription_id - ((const Loading *) b)->sub->subscription_id;
}

/* One subscription of many does not fit into memory: the others are to get on.  Said once a minute at most. */
static void
tell_lack(const EvbusSubscription *sub, int n_open, bool fatal)
{
	static int64 told_at = 0;

	if (!fatal && told_at != 0 && evbus_uptime() - told_at < 60 * USECS_PER_SEC)
		return;
	told_at = evbus_uptime();
	ereport(fatal ? ERROR : LOG,
			(errcode(ERRCODE_EVBUS_NO_LEASES),
			 errmsg("not enough leases to load subscription \"%s\"", sub->name),
			 errdetail("It has %d open ranges.", n_open),
			 errhint("Raise evbus.max_leases (now %d) and restart the server.", evbus_max_leases)));
}

/*
 * Set up those of n subscriptions that are not in shared memory yet, in one pass.  False,
 * only if may_lack: there are not enough leases for all of them.
 */
static bool
load(EvbusDb *db, const EvbusSubscription *subs, int n, bool may_lack)
{
	bool		all = true;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "evbus ledger", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Loading    *loads = palloc(sizeof(Loading) * Max(n, 1));
	int			n_loads = 0;

	for (int i = 0; i < n; i++)
		if (!evbus_cursor_loaded(db, &subs[i]))
		{
			loads[n_loads].sub = &subs[i];
			loads[n_loads].n = 0;
			loads[n_loads].size = 64;
			loads[n_loads++].done = palloc(sizeof(EvbusRange) * 64);
		}
	qsort(loads, n_loads, sizeof(Loading), loading_by_id);

	for (int leaf = 0; leaf < LEDGER_LEAVES && n_loads > 0; leaf++)
	{
		Relation	rel = relation_open(leaf_relid(leaf), AccessShareLock);
		Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
		SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, snapshot, 0, NULL);
		HeapTuple	tuple;

		while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		{
			Datum		values[ACK_COLUMNS];
			bool		nulls[ACK_COLUMNS];
			EvbusSubscription key_sub;
			Loading		key = {.sub = &key_sub};
			Loading    *loading;

			heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
			key_sub.subscription_id = DatumGetInt32(values[0]);
			loading = bsearch(&key, loads, n_loads, sizeof(Loading), loading_by_id);
			if (loading && loading->sub->epoch == DatumGetInt32(values[1]))
				loading_row(loading, !nulls[3], DatumGetInt64(values[3]), DatumGetByteaPP(values[4]));
			evbus_progress_add(1);
		}
		systable_endscan(scan);
		UnregisterSnapshot(snapshot);
		relation_close(rel, AccessShareLock);
	}

	for (int i = 0; i < n_loads; i++)
	{
		Loading    *loading = &loads[i];
		EvbusProgress progress = {.sub = loading->sub, .frontier = loading->sub->start_position};
		int			done = merge_ranges(loading->done, loading->n);
		EvbusVolatile *v = NULL;

		if (loading->sub->is_volatile && (v = evbus_volatile_attach(db, loading->sub->bus_slot, loading->sub->bus_id)) != NULL)
		{
			/* Of a dump, or after the clock went back, it may be ahead. */
			progress.frontier = Min(progress.frontier, (int64) pg_atomic_read_u64(&v->next_position));
			evbus_volatile_hold(db, v, progress.frontier);
		}

		progress.open = palloc(sizeof(EvbusRange) * (done + 1));
		for (int r = 0; r < done; r++)
		{
			if (loading->done[r].hi <= progress.frontier)
				continue;
			if (loading->done[r].lo > progress.frontier)
			{
				progress.open[progress.n_open].lo = progress.frontier;
				progress.open[progress.n_open++].hi = loading->done[r].lo;
			}
			progress.frontier = loading->done[r].hi;
		}
		if (!evbus_cursor_install(db, &progress))
		{
			tell_lack(loading->sub, progress.n_open, !may_lack);
			all = false;
		}
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return all;
}

/*
 * Make sure that a subscription is in shared memory.  False: this transaction
 * has made or moved it, and its place still shows what others see.
 */
bool
evbus_ledger_attach(EvbusDb *db, const EvbusSubscription *sub)
{
	evbus_pin_init();
	if (evbus_cursor_loaded(db, sub))
		return true;
	if (sub->uncommitted && (sub->is_volatile || EVBUS_SUB(db, sub->slot)->subscription_id != 0))
		return false;			/* where nothing is on disk, what a rollback would undo must not get there */
	(void) load(db, sub, 1, false);
	return true;
}

/* The turn in use after a start: the newest that any row names. */
static void
find_turn(EvbusDb *db)
{
	EvbusInternal state;
	int64		turn;

	if (pg_atomic_read_u64(&db->ledger_turn) != 0)
		return;
	evbus_internal_begin(&state);
	evbus_sql(NULL, "SELECT greatest((SELECT max(turn) FROM evbus.ack_0), (SELECT max(turn) FROM evbus.ack_1),"
			  " (SELECT max(turn) FROM evbus.ack_2), 0)", 0, NULL, NULL, NULL, 1);
	turn = DatumGetInt64(evbus_column(0, 1, NULL));
	evbus_internal_end(&state);
	pg_atomic_write_u64(&db->ledger_turn, Max(turn, LEDGER_LEAVES));
}

/*
 * All subscriptions, and the turn to write to: what a start has to do.  must: that one does not fit
 * is an error (VB012); else it is left out.
 */
void
evbus_ledger_attach_all(EvbusDb *db, bool must)
{
	int			n;
	EvbusSubscription *subs = evbus_subscriptions(&n);

	find_turn(db);
	evbus_pin_init();
	(void) load(db, subs, n, !must);
	pfree(subs);
}

/*
 * Wait until the positions below hi may be acked: their tick must be in WAL
 * before the ack is.  Errors: VB009 if the sequencer does not get there.
 */
void
evbus_ledger_wait_ticked(EvbusDb *db, const EvbusSubscription *sub, int64 hi)
{
	EvbusBusState *bus = EVBUS_BUS(db, sub->bus_slot);
	int64		deadline = 0;

	while ((int64) pg_atomic_read_u64(&bus->ticked_position) < hi)
	{
		if (deadline == 0)
		{
			deadline = TimestampTzPlusMilliseconds(evbus_uptime(), TICK_WAIT_MS);
			ConditionVariablePrepareToSleep(&db->drained_cv);
			continue;
		}
		if (evbus_uptime() >= deadline)
		{
			ConditionVariableCancelSleep();
			ereport(ERROR,
					(errcode(ERRCODE_EVBUS_NOT_READY),
					 errmsg("the evbus sequencer of this database has not committed position " INT64_FORMAT " of bus \"%s\"",
							hi - 1, sub->bus_name),
					 errhint("See the server log for what ails the evbus sequencer.")));
		}
		evbus_ring_want_ticks(db);
		(void) ConditionVariableTimedSleep(&db->drained_cv, 100, evbus_wait_event(EVBUS_WAIT_TICK));
	}
	if (deadline != 0)
		ConditionVariableCancelSleep();
}

/* -------------------------------------------------------------------- turns */

static uint64 checkpointed_turn = 0;	/* of the maintainer that we are */

/* Is it time for a turn?  In a transaction. */
bool
evbus_ledger_due(EvbusDb *db)
{
	Relation	rel;
	BlockNumber blocks;

	if (checkpointed_turn != pg_atomic_read_u64(&db->ledger_turn))
		return true;
	rel = relation_open(leaf_relid(pg_atomic_read_u64(&db->ledger_turn)), AccessShareLock);
	blocks = RelationGetNumberOfBlocks(rel);
	relation_close(rel, AccessShareLock);
	return (int64) blocks * (BLCKSZ / 1024) > evbus_ledger_turn_size;
}

/* Copy what is open of one subscription, ascending and palloc'd; false: it is not loaded. */
bool
evbus_ledger_open_ranges(EvbusDb *db, const EvbusSubscription *sub, int64 *frontier, EvbusRange **ranges, int *n)
{
	EvbusSub   *shared = EVBUS_SUB(db, sub->slot);
	EvbusRange *out = palloc_extended(sizeof(EvbusRange) * evbus_max_leases, MCXT_ALLOC_HUGE);
	bool		good;

	*n = 0;
	LWLockAcquire(&shared->lock, LW_SHARED);
	good = evbus_cursor_loaded(db, sub);
	if (good)
	{
		*frontier = shared->frontier;
		for (int32 i = shared->open_head; i >= 0; i = EVBUS_LEASE(db, i)->next)
		{
			out[*n].lo = EVBUS_LEASE(db, i)->lo;
			out[(*n)++].hi = EVBUS_LEASE(db, i)->hi;
		}
	}
	LWLockRelease(&shared->lock);
	*ranges = out;
	return good;
}

/* Write where every subscription is into the table of this turn. */
static void
checkpoint(EvbusDb *db, uint64 turn)
{
	Relation	rel;
	EvbusSubscription *subs;
	int			n;

	LockRelationOid(leaf_relid(turn - 1), ShareLock);	/* writers of the last turn have ended */
	evbus_ledger_attach_all(db, true);	/* what is not in memory would be forgotten */
	subs = evbus_subscriptions(&n);
	rel = relation_open(leaf_relid(turn), RowExclusiveLock);
	for (int i = 0; i < n; i++)
	{
		EvbusRange *ranges;
		int			n_ranges;
		int64		frontier;

		if (subs[i].is_volatile)
			continue;
		if (evbus_ledger_open_ranges(db, &subs[i], &frontier, &ranges, &n_ranges))
		{
			HeapTuple	tuple = form_row(rel, &subs[i], turn, &frontier, ranges, n_ranges);

			evbus_leaf_insert(rel, &tuple, 1);
			heap_freetuple(tuple);
		}
		pfree(ranges);
	}
	relation_close(rel, NoLock);
}

/*
 * For the maintainer, in no transaction: begin a turn, or finish one whose
 * checkpoint was held up.  Who holds the tables (pg_dump, an idle transaction
 * that acked) makes this an ERROR by lock_timeout; the ledger then grows until
 * the next try.
 */
void
evbus_ledger_turn(EvbusDb *db)
{
	uint64		turn = pg_atomic_read_u64(&db->ledger_turn);

	if (checkpointed_turn == turn)
	{
		EvbusInternal state;

		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		evbus_internal_begin(&state);
		evbus_utility("TRUNCATE evbus.ack_%d", (int) ((turn + 1) % LEDGER_LEAVES));
		evbus_internal_end(&state);
		PopActiveSnapshot();
		EVBUS_POINT("ledger.truncating");
		CommitTransactionCommand();
		EVBUS_POINT("ledger.truncated");
		pg_atomic_write_u64(&db->ledger_turn, ++turn);
		EVBUS_POINT("ledger.switched");
	}
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	checkpoint(db, turn);
	PopActiveSnapshot();
	EVBUS_POINT("ledger.checkpointing");
	CommitTransactionCommand();
	EVBUS_POINT("ledger.checkpointed");
	checkpointed_turn = turn;
}
