/*-------------------------------------------------------------------------
 * dedup.c
 *	  Keys that an event is published with only once within its bus's window.
 *
 * A key is a row (bus, key, event id), written at once when publish() is called, in a table
 * with a unique index on bus and key: so who comes with the same key waits, as with any such
 * index, until the first transaction has ended, and then has its id or goes on.  All is
 * judged by dirty snapshots, below the isolation level of the caller: what another has
 * committed counts, whatever a REPEATABLE READ transaction may see.  A key is taken for events
 * whose id, which has the time inside, is less than the window above that of its row: so the window
 * is exact, however long somebody waited.  An older row is deleted by who wants its key.
 *
 * Two tables are used in turn, so that rows go with TRUNCATE: keys are written to
 * dedup_(turn % 2), and looked for in both.  The maintainer raises the turn once the oldest
 * row of the table in use is older than the longest window of any bus, and truncates the other
 * once its newest one is.  That two of the same key do not slip through, one into
 * each table, is owed to the order of steps:
 *
 *		publisher:   read the turn -> look in both -> insert -> read the turn again: another? undo, start again
 *		maintainer:  raise the turn
 *
 * Who keeps its row in the old table has read the turn after inserting it, before it was raised; and who
 * writes to the new table has read the turn after it was raised, and looked after that: it sees
 * the row.  Until the turn was read again the insertion is speculative, as that of ON CONFLICT:
 * others wait for that moment, not for the transaction, and to undo it is cheap.
 * (dedup_turn may start anew at a restart: nothing depends on which table is the older one.)
 *-------------------------------------------------------------------------
 */
#include "dedup.h"

#include "access/genam.h"
#include "access/relation.h"
#include "access/stratnum.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "clock.h"
#include "executor/tuptable.h"
#include "internal.h"
#include "miscadmin.h"
#include "nodes/execnodes.h"
#include "point.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define DEDUP_LEAVES	2

/* Columns of evbus.dedup_0 and dedup_1. */
enum
{
	DEDUP_BUS = 1, DEDUP_KEY, DEDUP_ID
};

/* What a look for a key found. */
typedef enum Look
{
	LOOK_NOTHING,
	LOOK_TAKEN,					/* *first has it */
	LOOK_EXPIRED,				/* there was an old row; it is deleted */
	LOOK_AGAIN					/* somebody was at it; waited for */
} Look;

static Relation
open_leaf(uint64 turn, LOCKMODE mode)
{
	return relation_open(evbus_relid(turn % DEDUP_LEAVES == 0 ? "dedup_0" : "dedup_1"), mode);
}

/* Its only index. */
static Relation
open_index(Relation rel, LOCKMODE mode)
{
	List	   *oids = RelationGetIndexList(rel);
	Oid			oid;

	if (list_length(oids) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"evbus.%s\" must have one index, on bus and key", RelationGetRelationName(rel))));
	oid = linitial_oid(oids);
	list_free(oids);
	return index_open(oid, mode);
}

/* The time that ids follow: none given was above. */
static int64
clock_now(EvbusDb *db)
{
	return evbus_clock_to_time(Max(evbus_clock_wall(), (int64) pg_atomic_read_u64(&db->clock)));
}

/*
 * Look for a key in one table.  What another transaction has begun to insert or delete is
 * waited for; a speculative insertion only until its owner knows.
 */
static Look
look(Relation rel, Relation index, const EvbusBus *bus, text *key, int64 id, int64 *first, ItemPointer tid)
{
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	SnapshotData dirty;
	IndexScanDesc scan;
	ScanKeyData keys[2];
	Look		found = LOOK_NOTHING;
	TransactionId wait_for = InvalidTransactionId;
	uint32		token = 0;

	InitDirtySnapshot(dirty);
	/* In terms of the index, whose columns are bus and key. */
	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(bus->bus_id));
	ScanKeyEntryInitialize(&keys[1], 0, 2, BTEqualStrategyNumber, InvalidOid,
						   index->rd_indcollation[1], F_TEXTEQ, PointerGetDatum(key));
	scan = evbus_index_beginscan(rel, index, &dirty, 2);
	index_rescan(scan, keys, 2, NULL, 0);
	if (index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		bool		isnull;

		*tid = slot->tts_tid;
		if (TransactionIdIsValid(dirty.xmin))
		{
			wait_for = dirty.xmin;
			token = dirty.speculativeToken;
			found = LOOK_AGAIN;
		}
		else if (TransactionIdIsValid(dirty.xmax))
		{
			wait_for = dirty.xmax;
			found = LOOK_AGAIN;
		}
		else
		{
			*first = DatumGetInt64(slot_getattr(slot, DEDUP_ID, &isnull));
			found = evbus_clock_to_time(id) - evbus_clock_to_time(*first) < bus->dedup_window ? LOOK_TAKEN : LOOK_EXPIRED;
		}
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);

	if (found == LOOK_AGAIN)
	{
		EVBUS_POINT("dedup.wait");
		if (token != 0)
			SpeculativeInsertionWait(wait_for, token);
		else
			XactLockTableWait(wait_for, rel, tid, XLTW_InsertIndex);
	}
	return found;
}

/* Delete an old row, to use its key; false: somebody else is about to, which the next look waits for. */
static bool
delete_expired(Relation rel, ItemPointer tid)
{
	TM_FailureData failure;

	CommandCounterIncrement();	/* it may be ours, of this very command */
	return table_tuple_delete(rel, tid, GetCurrentCommandId(true), SnapshotAny, InvalidSnapshot,
							  false, &failure, false) == TM_Ok;
}

/*
 * Insert a key, speculatively; false: somebody else did meanwhile, or the turn is another one
 * now, and it is undone.
 */
static bool
insert(EvbusDb *db, uint64 turn, Relation rel, Relation index, const EvbusBus *bus, text *key, int64 id)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(rel), &TTSOpsHeapTuple);
	IndexInfo  *info = BuildIndexInfo(index);
	Datum		values[DEDUP_ID];
	bool		nulls[DEDUP_ID] = {0};
	Datum		index_values[INDEX_MAX_KEYS];
	bool		index_nulls[INDEX_MAX_KEYS];
	uint32		token;
	bool		good;

	values[DEDUP_BUS - 1] = Int32GetDatum(bus->bus_id);
	values[DEDUP_KEY - 1] = PointerGetDatum(key);
	values[DEDUP_ID - 1] = Int64GetDatum(id);
	ExecStoreHeapTuple(heap_form_tuple(RelationGetDescr(rel), values, nulls), slot, true);

	token = SpeculativeInsertionLockAcquire(GetCurrentTransactionId());
	table_tuple_insert_speculative(rel, slot, GetCurrentCommandId(true), 0, NULL, token);
	FormIndexDatum(info, slot, NULL, index_values, index_nulls);
	good = index_insert(index, index_values, index_nulls, &slot->tts_tid, rel, UNIQUE_CHECK_PARTIAL, false, info);
	EVBUS_POINT("dedup.inserted");
	pg_memory_barrier();		/* the row is there before the turn is read */
	good = good && pg_atomic_read_u64(&db->dedup_turn) == turn;
	table_tuple_complete_speculative(rel, slot, token, good);
	SpeculativeInsertionLockRelease(GetCurrentTransactionId());
	ExecDropSingleTupleTableSlot(slot);
	pfree(info);
	return good;
}

/*
 * Take a key of a bus for an event: returns the id given if it was free, and else that of the
 * first, which is committed or ours.  Waits for transactions that use the key.
 */
int64
evbus_dedup(EvbusDb *db, const EvbusBus *bus, text *key, int64 id)
{
	for (;;)
	{
		uint64		turn = pg_atomic_read_u64(&db->dedup_turn);
		Relation	rels[DEDUP_LEAVES];
		Relation	indexes[DEDUP_LEAVES];
		ItemPointerData tid;
		Look		found;
		int64		first = 0;
		bool		done = false;

		CHECK_FOR_INTERRUPTS();
		pg_memory_barrier();	/* the turn is read before we look */
		EVBUS_POINT("dedup.look");
		/* The other table first; what is old there is in nobody's way. */
		for (int i = DEDUP_LEAVES - 1; i >= 0; i--)
		{
			rels[i] = open_leaf(turn + i, i == 0 ? RowExclusiveLock : AccessShareLock);
			indexes[i] = open_index(rels[i], i == 0 ? RowExclusiveLock : AccessShareLock);
		}
		found = look(rels[1], indexes[1], bus, key, id, &first, &tid);
		if (found == LOOK_NOTHING || found == LOOK_EXPIRED)
		{
			found = look(rels[0], indexes[0], bus, key, id, &first, &tid);
			EVBUS_POINT("dedup.looked");
			if (found == LOOK_NOTHING || (found == LOOK_EXPIRED && delete_expired(rels[0], &tid)))
				done = insert(db, turn, rels[0], indexes[0], bus, key, id);
		}
		index_close(indexes[1], AccessShareLock);
		relation_close(rels[1], AccessShareLock);
		index_close(indexes[0], NoLock);	/* until the transaction ends: the maintainer waits for writers */
		relation_close(rels[0], NoLock);
		if (done)
			return id;
		if (found == LOOK_TAKEN)
			return first;
	}
}

/* -------------------------------------------------------------------- turns */

#define TRUNCATE_TRIES	20		/* a millisecond each: who looks locks the table for a moment */
#define MARGIN			USECS_PER_SEC	/* for those who took their id before, and look later */

/* The time of the oldest or the newest row of a table; 0: it has none. */
static int64
row_time(uint64 turn, bool newest)
{
	EvbusInternal state;
	int64		id;

	evbus_internal_begin(&state);
	evbus_sql(NULL, psprintf("SELECT coalesce(%s(event_id), 0) FROM evbus.dedup_%d", newest ? "max" : "min", (int) (turn % DEDUP_LEAVES)),
			  0, NULL, NULL, NULL, 1);
	id = DatumGetInt64(evbus_column(0, 1, NULL));
	evbus_internal_end(&state);
	return id == 0 ? 0 : evbus_clock_to_time(id);
}

static bool
lock_soon(Relation rel)
{
	for (int i = 0; i < TRUNCATE_TRIES; i++)
	{
		if (ConditionalLockRelation(rel, AccessExclusiveLock))
			return true;
		pg_usleep(1000);
	}
	return false;
}

/*
 * For the maintainer, in a transaction: empty the table that is not in use, if all of it is older than
 * any window; and raise the turn if that in use has something so old, and the other is empty.
 * Waits for no lock: who holds one makes the table in use grow until the next time.
 */
void
evbus_dedup_turn(EvbusDb *db)
{
	static uint64 known_turn = 0;	/* + 1; of which the next two are known to this process */
	static int64 began = 0;		/* nothing in the table in use is older */
	static int64 ended = -1;	/* nothing in the other is newer; -1: not known */
	uint64		turn = pg_atomic_read_u64(&db->dedup_turn);
	int64		now = clock_now(db);
	int64		window = 0;
	Relation	rel;
	bool		empty;
	int			n;
	EvbusBus   *buses = evbus_buses(&n);

	for (int i = 0; i < n; i++)
		window = Max(window, buses[i].dedup_window + MARGIN);
	if (known_turn != turn + 1)
	{
		known_turn = turn + 1;
		began = row_time(turn, false);
		ended = -1;
	}

	rel = open_leaf(turn + 1, AccessShareLock);
	empty = RelationGetNumberOfBlocks(rel) == 0;
	if (!empty && (ended < 0 || now - ended >= window) && ConditionalLockRelation(rel, ShareLock))
	{
		/* Nobody writes there any more. */
		if (ended < 0)
			ended = row_time(turn + 1, true);
		if (now - ended >= window && lock_soon(rel))
		{
			EvbusInternal state;

			relation_close(rel, NoLock);	/* what is open cannot be truncated */
			evbus_internal_begin(&state);
			evbus_utility("TRUNCATE evbus.dedup_%d", (int) ((turn + 1) % DEDUP_LEAVES));
			evbus_internal_end(&state);
			return;				/* it is empty when this transaction has committed */
		}
	}
	relation_close(rel, NoLock);

	rel = open_leaf(turn, AccessShareLock);
	if (RelationGetNumberOfBlocks(rel) == 0)
		began = 0;
	else if (began == 0)
		began = now;
	relation_close(rel, NoLock);
	if (empty && began != 0 && now - began >= window)
	{
		pg_atomic_write_u64(&db->dedup_turn, turn + 1);
		EVBUS_POINT("dedup.switched");
		known_turn = turn + 2;
		began = 0;
		ended = clock_now(db);
	}
}
