/*-------------------------------------------------------------------------
 * leaf.c
 *	  Partitions by id: find, make, fill.
 *
 * evbus writes straight to the leaf an id belongs to: the parent is not locked
 * and no executor runs, so the checks that routing would do are done here.
 * Bounds of a leaf never change, so a found leaf is remembered until relcache
 * says that its parent changed.  New leaves are made with CREATE TABLE (LIKE) and
 * ATTACH, which locks out no reader and no writer (PARTITION OF would).
 *-------------------------------------------------------------------------
 */
#include "leaf.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/index.h"
#include "clock.h"
#include "executor/executor.h"
#include "executor/tuptable.h"
#include "internal.h"
#include "nodes/execnodes.h"
#include "partitioning/partbounds.h"
#include "partitioning/partdesc.h"
#include "point.h"
#include "registry.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "upkeep.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "wait.h"

#define LEAF_WAIT_MS		10000	/* for somebody to make one */
#define LEAF_ASK_MS			1000	/* for the maintainer to do so */
#define INSERT_SLOTS		256 /* rows handed to heap_multi_insert at once */

static struct
{
	Oid			parent;
	EvbusLeaf	leaf;
}			found[8];			/* leaves found lately, by parent */
static int	n_found = 0;

static struct
{
	Oid			parent;
	int64		lo;
	int64		hi;
}			gaps[4];			/* ids [lo, hi) that a parent had no leaf for */
static int	n_gaps = 0;

static void
leaf_invalidate(Datum arg, Oid relid)
{
	for (int i = 0; i < n_gaps; i++)
		if (relid == InvalidOid || relid == gaps[i].parent)
			gaps[i--] = gaps[--n_gaps];
	for (int i = 0; i < n_found; i++)
		if (relid == InvalidOid || relid == found[i].parent || relid == found[i].leaf.relid)
			found[i--] = found[--n_found];
}

/*
 * Forget what the relcache knows of a parent's leaves.  Where one is attached while
 * a list of them is built, PostgreSQL handles the invalidation in the middle of that, and
 * then keeps the list without the new leaf.  So nobody believes that one lacks without this.
 */
static void
refresh(Oid parent)
{
	RelationCacheInvalidateEntry(parent);
}

/* Leaves of a RANGE parent in ascending order, palloc'd; also empty. */
int
evbus_leaf_list(Oid parent, EvbusLeaf **leaves)
{
	Relation	rel = table_open(parent, AccessShareLock);
	PartitionDesc desc = RelationGetPartitionDesc(rel, true);
	PartitionBoundInfo bounds = desc->boundinfo;
	int			n = 0;

	*leaves = palloc(sizeof(EvbusLeaf) * Max(desc->nparts, 1));
	for (int i = 1; bounds != NULL && i < bounds->ndatums; i++)
		if (bounds->indexes[i] >= 0)
		{
			(*leaves)[n].relid = desc->oids[bounds->indexes[i]];
			(*leaves)[n].lo = DatumGetInt64(bounds->datums[i - 1][0]);
			(*leaves)[n].hi = DatumGetInt64(bounds->datums[i][0]);
			n++;
		}
	table_close(rel, AccessShareLock);
	return n;
}

/* Remember where there is no leaf: who passes over millions of expired events asks for each. */
static void
remember_gap(Oid parent, int64 id, const EvbusLeaf *leaves, int n)
{
	static int	next = 0;
	int			at = n_gaps < (int) lengthof(gaps) ? n_gaps++ : next++ % (int) lengthof(gaps);

	gaps[at].parent = parent;
	gaps[at].lo = 0;
	gaps[at].hi = PG_INT64_MAX;
	for (int i = 0; i < n; i++)
		if (leaves[i].hi <= id)
			gaps[at].lo = Max(gaps[at].lo, leaves[i].hi);
		else
			gaps[at].hi = Min(gaps[at].hi, leaves[i].lo);
}

/* The leaf of a parent that has an id; false: there is none. */
bool
evbus_leaf_find(Oid parent, int64 id, EvbusLeaf *leaf)
{
	static bool registered = false;
	EvbusLeaf  *leaves;
	int			n;

	if (!registered)
	{
		CacheRegisterRelcacheCallback(leaf_invalidate, (Datum) 0);
		registered = true;
	}
	for (int i = 0; i < n_found; i++)
		if (found[i].parent == parent && id >= found[i].leaf.lo && id < found[i].leaf.hi)
		{
			*leaf = found[i].leaf;
			return true;
		}
	for (int i = 0; i < n_gaps; i++)
		if (gaps[i].parent == parent && id >= gaps[i].lo && id < gaps[i].hi)
			return false;

	for (int look = 1;; look++)
	{
		n = evbus_leaf_list(parent, &leaves);
		for (int i = 0; i < n; i++)
			if (id >= leaves[i].lo && id < leaves[i].hi)
			{
				if (n_found == lengthof(found))
					found[0] = found[--n_found];
				found[n_found].parent = parent;
				found[n_found++].leaf = leaves[i];
				*leaf = leaves[i];
				pfree(leaves);
				return true;
			}
		if (look > 1)
			break;
		pfree(leaves);
		refresh(parent);
	}
	remember_gap(parent, id, leaves, n);
	pfree(leaves);
	return false;
}

/* Is what was found still so?  Its bounds may have changed while we waited for its lock. */
static bool
still_found(Oid parent, const EvbusLeaf *leaf)
{
	for (int i = 0; i < n_found; i++)
		if (found[i].parent == parent && found[i].leaf.relid == leaf->relid)
			return found[i].leaf.lo == leaf->lo && found[i].leaf.hi == leaf->hi;
	return false;
}

/*
 * Make the leaf for an id ourselves, if its parent can be locked without waiting for
 * anybody; so this waits for nobody who might wait for us.  Until we commit, nobody
 * else sees it: that is why the maintainer is asked first.
 */
static void
make_ourselves(Oid parent, int64 id)
{
	char	   *name = get_rel_name(parent);

	if (name == NULL || RecoveryInProgress() || !ConditionalLockRelationOid(parent, ShareUpdateExclusiveLock))
		return;
	PushActiveSnapshot(GetTransactionSnapshot());
	if (evbus_upkeep_leaf_make(name, id) > 0)
		ereport(LOG,
				(errmsg("evbus made a leaf of \"evbus.%s\" while publishing, as its maintainer did not", name)));
	PopActiveSnapshot();
	CommandCounterIncrement();
}

/*
 * Open the leaf for an id to write to.  Where there is none, ask the maintainer
 * for it and wait: it locks nothing that publishers hold.  After a second of that, make
 * it.  Errors: VB011.
 */
Relation
evbus_leaf_open(Oid parent, int64 id, EvbusLeaf *leaf)
{
	EvbusDb    *db = evbus_db();
	int64		deadline = 0;
	int64		own_at = 0;
	Relation	rel;

	for (;;)
	{
		if (evbus_leaf_find(parent, id, leaf))
		{
			rel = try_relation_open(leaf->relid, RowExclusiveLock);
			if (rel != NULL && still_found(parent, leaf))
				return rel;
			if (rel != NULL)
			{
				relation_close(rel, RowExclusiveLock);
				continue;
			}
		}
		if (deadline == 0)
		{
			deadline = TimestampTzPlusMilliseconds(evbus_uptime(), LEAF_WAIT_MS);
			own_at = TimestampTzPlusMilliseconds(evbus_uptime(), LEAF_ASK_MS);
		}
		else if (evbus_uptime() >= deadline)
			ereport(ERROR,
					(errcode(ERRCODE_EVBUS_NO_LEAF),
					 errmsg("there is no leaf of \"evbus.%s\" for %s", get_rel_name(parent),
							timestamptz_to_str(evbus_clock_to_time(id))),
					 errhint("Run CALL evbus.maintain(), and see in the server log why the evbus maintainer does not.")));
		pg_atomic_write_u32(&db->leaves_wanted, 1);
		if (db->maintainer_pid != 0)
			SetLatch(&ProcGlobal->allProcs[db->maintainer_procno].procLatch);
		else
			evbus_launcher_wake();
		if (evbus_uptime() >= own_at)
		{
			make_ourselves(parent, id);
			if (evbus_leaf_find(parent, id, leaf))
				continue;
		}
		ConditionVariablePrepareToSleep(&db->drained_cv);
		(void) ConditionVariableTimedSleep(&db->drained_cv, 50, evbus_wait_event(EVBUS_WAIT_PARTITION));
		ConditionVariableCancelSleep();
		AcceptInvalidationMessages();
	}
}

/* Is the row one of those that a partial index holds?  Leaves it where expressions find it. */
static bool
index_wants(IndexInfo *info, TupleTableSlot *slot, EState *estate)
{
	ExprContext *econtext = GetPerTupleExprContext(estate);

	ResetExprContext(econtext);
	econtext->ecxt_scantuple = slot;
	if (info->ii_Predicate == NIL)
		return true;
	if (info->ii_PredicateState == NULL)
		info->ii_PredicateState = ExecPrepareQual(info->ii_Predicate, estate);
	return ExecQual(info->ii_PredicateState, econtext);
}

/*
 * Insert rows into a leaf opened with ROW EXCLUSIVE: one WAL record a page, then
 * the index entries.  As in COPY, no BulkInsertState: its ring would flush our
 * own pages just before consumers read them.
 */
void
evbus_leaf_insert(Relation rel, HeapTuple *tuples, int n)
{
	int			n_slots = Min(n, INSERT_SLOTS);
	TupleTableSlot **slots = palloc(sizeof(TupleTableSlot *) * n_slots);
	List	   *index_oids = RelationGetIndexList(rel);
	int			n_indexes = list_length(index_oids);
	Relation   *indexes = palloc(sizeof(Relation) * Max(n_indexes, 1));
	IndexInfo **infos = palloc(sizeof(IndexInfo *) * Max(n_indexes, 1));
	CommandId	cid = GetCurrentCommandId(true);
	EState	   *estate = NULL;	/* where an index has a predicate or expressions */

	for (int i = 0; i < n_indexes; i++)
	{
		indexes[i] = index_open(list_nth_oid(index_oids, i), RowExclusiveLock);
		infos[i] = BuildIndexInfo(indexes[i]);
		if (estate == NULL && (infos[i]->ii_Predicate != NIL || infos[i]->ii_Expressions != NIL))
			estate = CreateExecutorState();
	}
	for (int i = 0; i < n_slots; i++)
		slots[i] = MakeSingleTupleTableSlot(RelationGetDescr(rel), &TTSOpsHeapTuple);

	for (int at = 0; at < n; at += n_slots)
	{
		int			chunk = Min(n_slots, n - at);

		/* A slot that owned its tuple would not copy it: the caller's memory is as good. */
		for (int i = 0; i < chunk; i++)
			ExecStoreHeapTuple(tuples[at + i], slots[i], true);
		heap_multi_insert(rel, slots, chunk, cid, 0, NULL);
		for (int i = 0; i < chunk; i++)
			slots[i]->tts_flags &= ~TTS_FLAG_SHOULDFREE;
		for (int x = 0; x < n_indexes; x++)
			for (int i = 0; i < chunk; i++)
			{
				Datum		values[INDEX_MAX_KEYS];
				bool		nulls[INDEX_MAX_KEYS];

				if (estate && !index_wants(infos[x], slots[i], estate))
					continue;
				FormIndexDatum(infos[x], slots[i], estate, values, nulls);
				(void) index_insert(indexes[x], values, nulls, &slots[i]->tts_tid, rel,
									indexes[x]->rd_index->indisunique ? UNIQUE_CHECK_YES : UNIQUE_CHECK_NO,
									false, infos[x]);
			}
	}

	for (int i = 0; i < n_slots; i++)
		ExecDropSingleTupleTableSlot(slots[i]);
	for (int i = 0; i < n_indexes; i++)
	{
		index_close(indexes[i], NoLock);
		pfree(infos[i]);
	}
	pfree(slots);
	pfree(indexes);
	pfree(infos);
	list_free(index_oids);
	if (estate)
		FreeExecutorState(estate);
}

/*
 * The first ids [*lo, *hi) from *lo on and below `end` that no leaf has; false: all have one.
 */
static bool
first_gap(Oid parent, int64 *lo, int64 *hi, int64 end)
{
	EvbusLeaf  *leaves;
	int			n = evbus_leaf_list(parent, &leaves);

	*hi = end;
	for (int i = 0; i < n; i++) /* ascending */
	{
		if (leaves[i].lo <= *lo && leaves[i].hi > *lo)
			*lo = leaves[i].hi;
		else if (leaves[i].lo > *lo)
			*hi = Min(*hi, leaves[i].lo);
	}
	pfree(leaves);
	return *lo < *hi;
}

/* Make the leaf [lo, hi) of a parent, whose leaves begin at multiples of step if they can. */
static void
make_leaf(const char *parent, const char *prefix, int64 lo, int64 hi, int64 step)
{
	struct pg_tm tm;
	fsec_t		fsec;
	char		name[NAMEDATALEN];

	if (timestamp2tm(evbus_clock_to_time(lo), NULL, &tm, &fsec, NULL, NULL) != 0)
		elog(ERROR, "leaf bound out of range: " INT64_FORMAT, lo);
	if (step % (USECS_PER_DAY << EVBUS_CLOCK_BITS) == 0 && lo % step == 0)
		snprintf(name, sizeof(name), "%s_p%04d%02d%02d", prefix, tm.tm_year, tm.tm_mon, tm.tm_mday);
	else
		snprintf(name, sizeof(name), "%s_p%04d%02d%02d_%02d%02d%02d", prefix, tm.tm_year, tm.tm_mon, tm.tm_mday,
				 tm.tm_hour, tm.tm_min, tm.tm_sec);
	evbus_utility("CREATE TABLE evbus.%s (LIKE evbus.%s INCLUDING DEFAULTS INCLUDING STORAGE) USING heap "
				  "WITH (autovacuum_vacuum_insert_threshold = -1, toast_tuple_target = 8160)", name, parent);
	/* Keys of the leaf, not of the parent: a member's index would be restored twice. */
	if (strcmp(parent, "tick") == 0)
	{
		evbus_utility("ALTER TABLE evbus.%s ADD PRIMARY KEY (bus_id, first_position)", name);
		evbus_utility("CREATE INDEX ON evbus.%s (tick_id)", name);
	}
	else if (strcmp(parent, "dead_letter_log") == 0)
	{
		evbus_utility("ALTER TABLE evbus.%s ADD PRIMARY KEY (dead_letter_id)", name);
		evbus_utility("CREATE INDEX ON evbus.%s (subscription_id, event_id)", name);
		evbus_utility("CREATE INDEX ON evbus.%s (bus, subscription, type, sqlstate, reason, dead_letter_id)", name);
	}
	else
		evbus_utility("ALTER TABLE evbus.%s ADD PRIMARY KEY (%s)", name, strcmp(parent, "audit") == 0 ? "audit_id" : "event_id");
	evbus_utility("ALTER TABLE evbus.%s ATTACH PARTITION evbus.%s FOR VALUES FROM (" INT64_FORMAT ") TO (" INT64_FORMAT ")",
				  parent, name, lo, hi);
	EVBUS_POINT("leaf.attached");
}

/*
 * Make the missing leaves of a parent that cover the ids from..upto, each of
 * interval microseconds, aligned in UTC; returns how many.  Inside
 * evbus_internal_begin().  What overlaps an existing leaf (its interval was
 * another, or it was cut) is cut to fit.  What lacks before `from` has been dropped.
 */
int
evbus_leaf_make(const char *parent, const char *prefix, int64 interval, int64 from, int64 upto)
{
	int			made = 0;
	int64		step = interval << EVBUS_CLOCK_BITS;

	LockRelationOid(evbus_relid(parent), ShareUpdateExclusiveLock);
	refresh(evbus_relid(parent));
	for (int64 start = from - from % step; start <= upto; start += step)
	{
		int64		lo = start;
		int64		hi;

		while (first_gap(evbus_relid(parent), &lo, &hi, start + step))
		{
			if (hi > from)
			{
				make_leaf(parent, prefix, lo, hi, step);
				made++;
			}
			lo = hi;
		}
	}
	return made;
}

/*
 * Highest id in a table, also of rows that never committed or are in doubt: 0 if there
 * is none.  The id is its first column and leads an index.
 */
int64
evbus_leaf_newest_in(Relation rel)
{
	List	   *index_oids = RelationGetIndexList(rel);
	ListCell   *lc;
	int64		newest = 0;

	foreach(lc, index_oids)
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);

		if (index->rd_index->indkey.values[0] == 1)
		{
			SysScanDesc scan = systable_beginscan_ordered(rel, index, SnapshotAny, 0, NULL);
			HeapTuple	tuple = systable_getnext_ordered(scan, BackwardScanDirection);
			bool		isnull;

			if (HeapTupleIsValid(tuple))
				newest = Max(newest, DatumGetInt64(heap_getattr(tuple, 1, RelationGetDescr(rel), &isnull)));
			systable_endscan_ordered(scan);
		}
		index_close(index, AccessShareLock);
	}
	list_free(index_oids);
	return newest;
}

/* The same of all leaves of a parent, which ascend. */
int64
evbus_leaf_newest(Oid parent)
{
	EvbusLeaf  *leaves;
	int			n = evbus_leaf_list(parent, &leaves);
	int64		newest = 0;

	for (int i = n - 1; i >= 0 && newest == 0; i--)
	{
		Relation	rel = try_relation_open(leaves[i].relid, AccessShareLock);

		if (rel == NULL)
			continue;
		newest = evbus_leaf_newest_in(rel);
		relation_close(rel, AccessShareLock);
	}
	pfree(leaves);
	return newest;
}
