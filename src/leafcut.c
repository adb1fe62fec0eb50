/*-------------------------------------------------------------------------
 * leafcut.c
 *	  A leaf of a bus with retention_bytes ends when it is full, not when its
 *	  time is up: what is dropped is a leaf, so it must not hold much of the whole.
 *
 * The upper bound of the leaf that is being written to is moved down, to the
 * next second, and a new leaf takes over from there.  DETACH and ATTACH would do the
 * same, but read the whole leaf to see that it has no row beyond the bound; we look
 * at the right-most entry of its primary key, which is of the highest id of any row,
 * visible or not.  Both are done under ACCESS EXCLUSIVE locks on the class's table and
 * the leaf: nobody has a row under way, and everybody who comes next learns of the
 * bounds by the invalidations that precede the release of the locks.
 *
 * Those locks are waited for shortly, as the caller says: publishers queue up behind us.
 *-------------------------------------------------------------------------
 */
#include "leafcut.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "clock.h"
#include "internal.h"
#include "nodes/nodes.h"
#include "nodes/parsenodes.h"
#include "point.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

/* Move the upper bound of a leaf down; no row may be at or above it. */
static void
set_upper(Oid parent, Oid leaf, int64 upper)
{
	Relation	rel = table_open(RelationRelationId, RowExclusiveLock);
	HeapTuple	tuple = SearchSysCacheCopy1(RELOID, ObjectIdGetDatum(leaf));
	Datum		values[Natts_pg_class] = {0};
	bool		nulls[Natts_pg_class] = {0};
	bool		replace[Natts_pg_class] = {0};
	PartitionBoundSpec *spec;
	Const	   *bound;
	bool		isnull;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", leaf);
	spec = castNode(PartitionBoundSpec,
					stringToNode(TextDatumGetCString(SysCacheGetAttr(RELOID, tuple, Anum_pg_class_relpartbound, &isnull))));
	bound = castNode(Const, linitial_node(PartitionRangeDatum, spec->upperdatums)->value);
	bound->constvalue = Int64GetDatum(upper);
	values[Anum_pg_class_relpartbound - 1] = CStringGetTextDatum(nodeToString(spec));
	replace[Anum_pg_class_relpartbound - 1] = true;
	tuple = heap_modify_tuple(tuple, RelationGetDescr(rel), values, nulls, replace);
	CatalogTupleUpdate(rel, &tuple->t_self, tuple);
	table_close(rel, RowExclusiveLock);
	CacheInvalidateRelcacheByRelid(parent);
	CommandCounterIncrement();
}

/*
 * End a leaf of evbus.<parent> at the next second and make the one that follows,
 * in the caller's transaction.  False: that second is not its any more, or it was cut
 * just now.  Errors: 55P03 somebody has been writing to it for longer than wait_ms.
 */
bool
evbus_leaf_cut(EvbusDb *db, const char *parent, const EvbusLeaf *leaf, int64 interval, int wait_ms)
{
	Oid			parent_oid = evbus_relid(parent);
	EvbusInternal state;
	EvbusLeaf  *leaves;
	int			n;
	int64		newest;
	int64		upper;
	bool		there = false;

	evbus_internal_begin(&state);
	(void) set_config_option("lock_timeout", psprintf("%dms", wait_ms), PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	LockRelationOid(parent_oid, AccessExclusiveLock);
	LockRelationOid(leaf->relid, AccessExclusiveLock);
	n = evbus_leaf_list(parent_oid, &leaves);
	for (int i = 0; i < n; i++)
		there = there || (leaves[i].relid == leaf->relid && leaves[i].lo == leaf->lo && leaves[i].hi == leaf->hi);
	pfree(leaves);
	newest = Max(evbus_leaf_newest(parent_oid), Max(evbus_clock_wall(), (int64) pg_atomic_read_u64(&db->clock)));
	upper = evbus_clock_from_time((evbus_clock_to_time(newest) / USECS_PER_SEC + 1) * USECS_PER_SEC);
	there = there && upper > leaf->lo && upper < leaf->hi;
	if (there)
	{
		set_upper(parent_oid, leaf->relid, upper);
		(void) evbus_leaf_make(parent, parent, interval, upper, upper);
		EVBUS_POINT("leaf.cut");
	}
	evbus_internal_end(&state);
	return there;
}
