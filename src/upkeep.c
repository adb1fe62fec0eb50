/*-------------------------------------------------------------------------
 * upkeep.c
 *	  Leaves made ahead and leaves dropped at retention.
 *
 * Both follow the hybrid clock and not the wall.  A leaf of the log goes when
 * all of it is older than its class's retention, no open publisher may still
 * write to it, and no subscription has anything in it left to consume; with it, in
 * the same transaction, the positions and the clock it carries are saved in
 * evbus.watermark.  Ticks go after every log leaf that they may name.  Each drop
 * waits a second at most for its locks; what does not go now goes next time.
 *-------------------------------------------------------------------------
 */
#include "upkeep.h"

#include "access/xact.h"
#include "access/relation.h"
#include "catalog/partition.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "commands/dbcommands.h"
#include "cursor.h"
#include "eventlog.h"
#include "fmgr.h"
#include "internal.h"
#include "leaf.h"
#include "leafindex.h"
#include "ledger.h"
#include "point.h"
#include "registry.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#define FIXED_INTERVAL	USECS_PER_DAY	/* of ticks and dead letters */
#define LEAVES_AHEAD	2
#define PLACED_WAIT_MS	1000	/* for the sequencer to tick what is in the ring */

/* Minutes; dead letters older than this go with their leaf. */
int			evbus_dead_letter_retention = 30 * 24 * 60;

typedef struct StorageClass
{
	int32		id;
	int64		retention;		/* microseconds, as interval */
	int64		interval;
} StorageClass;

static int
load_classes(StorageClass **classes)
{
	static SPIPlanPtr plan = NULL;
	MemoryContext context = CurrentMemoryContext;
	EvbusInternal state;
	int			n;

	evbus_internal_begin(&state);
	n = (int) evbus_sql(&plan, "SELECT storage_class_id, (extract(epoch FROM retention) * 1000000)::bigint,"
						" (extract(epoch FROM partition_interval) * 1000000)::bigint FROM evbus.storage_class", 0, NULL, NULL, NULL, 0);
	*classes = MemoryContextAlloc(context, sizeof(StorageClass) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		(*classes)[i].id = DatumGetInt32(evbus_column(i, 1, NULL));
		(*classes)[i].retention = DatumGetInt64(evbus_column(i, 2, NULL));
		(*classes)[i].interval = DatumGetInt64(evbus_column(i, 3, NULL));
	}
	evbus_internal_end(&state);
	return n;
}

static int64
now_id(EvbusDb *db)
{
	return Max(evbus_clock_wall(), (int64) pg_atomic_read_u64(&db->clock));
}

/* Make leaves of one parent from now on, if one lacks: looked at without locks first. */
static int
make_ahead(EvbusDb *db, const char *parent, const char *prefix, int64 interval)
{
	int64		now = now_id(db);
	int64		step = interval << EVBUS_CLOCK_BITS;
	EvbusInternal state;
	EvbusLeaf	leaf;
	bool		missing = false;
	int			made;

	for (int i = 0; i <= LEAVES_AHEAD; i++)
		missing = missing || !evbus_leaf_find(evbus_relid(parent), now + i * step, &leaf);
	if (!missing)
		return 0;
	evbus_internal_begin(&state);
	made = evbus_leaf_make(parent, prefix, interval, now, now + LEAVES_AHEAD * step);
	evbus_internal_end(&state);
	return made;
}

/* Make what leaves lack, now and two intervals ahead; returns how many. */
int
evbus_upkeep_leaves(EvbusDb *db)
{
	StorageClass *classes;
	int			n = load_classes(&classes);
	int			made = 0;

	evbus_clock_ensure(db);
	made += make_ahead(db, "tick", "tick", FIXED_INTERVAL);
	made += make_ahead(db, "dead_letter_log", "dead_letter", FIXED_INTERVAL);
	for (int i = 0; i < n; i++)
	{
		char		name[NAMEDATALEN];

		snprintf(name, sizeof(name), "event_c%d", classes[i].id);
		made += make_ahead(db, name, name, classes[i].interval);
	}
	return made;
}

/* ---------------------------------------------------------------- retention */

/* The lowest id an open transaction may still write. */
static int64
oldest_open(EvbusDb *db)
{
	int64		oldest = now_id(db);

	for (int i = 0; i < EVBUS_BACKENDS; i++)
		if (pg_atomic_read_u32(&evbus_slots[i].state) != EVBUS_SLOT_IDLE &&
			pg_atomic_read_u32(&evbus_slots[i].db) == (uint32) EVBUS_DB_INDEX(db))
			oldest = Min(oldest, (int64) pg_atomic_read_u64(&evbus_slots[i].low));
	return oldest;
}

PG_FUNCTION_INFO_V1(evbus_oldest_open);

/* evbus._oldest_open(): no id below it will be written any more, but by prepared transactions. */
Datum
evbus_oldest_open(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(oldest_open(evbus_db()));
}

/* Does a subscription of some bus of the class still need an id below hi? */
static bool
still_needed(EvbusDb *db, int32 class, int64 hi)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT4OID, INT8OID, INT8OID, INT4OID};
	int			n;
	EvbusSubscription *subs = evbus_subscriptions(&n);
	bool		needed = false;

	for (int i = 0; i < n && !needed; i++)
	{
		EvbusCursorState state;
		EvbusInternal internal;
		Datum		values[4];

		(void) evbus_ledger_attach(db, &subs[i]);
		if (!evbus_cursor_progress(db, &subs[i], &state))
			return true;		/* it changes just now: next time */
		if (subs[i].replay_of != 0 && state.cursor >= subs[i].stop_position)
			continue;			/* it has read all it will */
		values[0] = Int32GetDatum(subs[i].bus_id);
		values[1] = Int64GetDatum(state.cursor);
		values[2] = Int64GetDatum(hi);
		values[3] = Int32GetDatum(class);
		evbus_internal_begin(&internal);
		/* Of this class, or of one the bus was in before: then it has rows here. */
		needed = evbus_sql(&plan, "SELECT 1 FROM evbus.tick WHERE bus_id = $1 AND first_position + n > $2 AND min_id < $3"
						   " AND (EXISTS (SELECT 1 FROM evbus.bus b WHERE b.bus_id = $1 AND b.storage_class_id = $4)"
						   "  OR EXISTS (SELECT 1 FROM evbus.event_log e WHERE e.storage_class_id = $4 AND e.bus_id = $1 AND e.event_id < $3))"
						   " LIMIT 1", 4, types, values, NULL, 1) > 0;
		evbus_internal_end(&internal);
	}
	pfree(subs);
	return needed;
}

/* Save what the ticks say before some of them go. */
static void
save_watermarks(EvbusDb *db)
{
	static const Oid types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(pg_atomic_read_u64(&db->clock))};

	evbus_sql(NULL, "INSERT INTO evbus.watermark AS w (bus_id, next_position, low_id, newest_id)"
			  " SELECT bus_id, max(first_position + n), (SELECT low_id FROM evbus.tick ORDER BY tick_id DESC LIMIT 1), $1"
			  " FROM evbus.tick WHERE bus_id <> 0 GROUP BY bus_id"
			  " ON CONFLICT (bus_id) DO UPDATE SET next_position = greatest(w.next_position, excluded.next_position),"
			  " low_id = greatest(w.low_id, excluded.low_id), newest_id = excluded.newest_id",
			  1, types, values, NULL, 0);
	evbus_sql(NULL, "DELETE FROM evbus.watermark w WHERE NOT EXISTS (SELECT 1 FROM evbus.bus b WHERE b.bus_id = w.bus_id)"
			  " AND newest_id < (SELECT max(newest_id) FROM evbus.watermark)", 0, NULL, NULL, NULL, 0);
}

/* Has every committed event below hi a position?  Whoever waits for one is in the ring, lost, or late. */
static bool
all_placed(EvbusDb *db, int64 hi)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(hi)};
	EvbusInternal state;
	bool		late;

	evbus_internal_begin(&state);
	late = evbus_sql(&plan, "SELECT 1 FROM evbus.late WHERE min_id < $1 LIMIT 1", 1, types, values, NULL, 1) > 0;
	evbus_internal_end(&state);
	return !late && evbus_db_wait_drained(db, PLACED_WAIT_MS);
}

/*
 * Drop one leaf in a subtransaction of its own; false: its locks were taken, or it is
 * needed.  class: of a leaf of the log, else 0.
 *
 * A leaf of the log is looked at again under the lock, for what we have waited for
 * may have been a transaction with events (a prepared one has no slot to be seen by).
 */
static bool
drop_leaf(EvbusDb *db, const EvbusLeaf *leaf, int32 class, const char *what)
{
	Oid			relid = leaf->relid;
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	char	   *name = get_rel_name(relid);
	volatile bool done = false;

	if (name == NULL)
		return false;
	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		EvbusInternal state;

		evbus_internal_begin(&state);
		(void) set_config_option("lock_timeout", "1s", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
		LockRelationOid(get_partition_parent(relid, false), AccessExclusiveLock);	/* as DROP TABLE does */
		LockRelationOid(relid, AccessExclusiveLock);
		done = class == 0 || (all_placed(db, leaf->hi) && !still_needed(db, class, leaf->hi));
		if (done)
		{
			save_watermarks(db);
			evbus_utility("DROP TABLE evbus.%s", quote_identifier(name));
			EVBUS_POINT("leaf.dropped");
		}
		evbus_internal_end(&state);
		if (done)
			ReleaseCurrentSubTransaction();
		else
			RollbackAndReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(context);
		done = false;
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		if (edata->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
			ReThrowError(edata);
		ereport(LOG,
				(errmsg("evbus could not drop leaf \"%s\" yet: it is in use", name)));
		FreeErrorData(edata);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (done)
		ereport(LOG,
				(errmsg("evbus dropped leaf \"%s\" at the retention of %s", name, what)));
	return done;
}

/* The id that was taken so long before, or 0: as ids count, a hundred years are more than 63 bits. */
static int64
id_before(int64 id, int64 usecs)
{
	return usecs < id >> EVBUS_CLOCK_BITS ? id - (usecs << EVBUS_CLOCK_BITS) : 0;
}

/* Drop the leaves past their retention; returns how many. */
int
evbus_upkeep_retention(EvbusDb *db)
{
	StorageClass *classes;
	int			n_classes = load_classes(&classes);
	int			dropped = 0;
	int64		now = now_id(db);
	int64		oldest_log;
	EvbusLeaf  *leaves;
	int			n;

	oldest_log = oldest_open(db);
	for (int c = 0; c < n_classes; c++)
	{
		Oid			parent = evbus_class_parent(classes[c].id);
		int64		limit = Min(oldest_open(db), id_before(now, classes[c].retention));

		n = evbus_leaf_list(parent, &leaves);
		for (int i = 0; i < n; i++)
		{
			if (leaves[i].hi > limit || still_needed(db, classes[c].id, leaves[i].hi) ||
				!drop_leaf(db, &leaves[i], classes[c].id, "its storage class"))
			{
				oldest_log = Min(oldest_log, leaves[i].lo);
				break;			/* from old to new, without holes */
			}
			dropped++;
		}
		pfree(leaves);
	}

	n = evbus_leaf_list(evbus_relid("tick"), &leaves);
	for (int i = 0; i < n && leaves[i].hi <= oldest_log; i++)
		dropped += drop_leaf(db, &leaves[i], 0, "the log");
	pfree(leaves);

	n = evbus_leaf_list(evbus_relid("dead_letter_log"), &leaves);
	for (int i = 0; i < n; i++)
		if (leaves[i].hi <= id_before(now, (int64) evbus_dead_letter_retention * USECS_PER_MINUTE))
			dropped += drop_leaf(db, &leaves[i], 0, "dead letters");
	pfree(leaves);
	return dropped;
}

/* --------------------------------------------------------- closed leaves */

static bool
is_empty(Oid relid)
{
	Relation	rel = try_relation_open(relid, AccessShareLock);
	bool		empty = rel == NULL || RelationGetNumberOfBlocks(rel) == 0;

	if (rel)
		relation_close(rel, AccessShareLock);
	return empty;
}

/*
 * Leaves of the log that are closed and lack indexes, newest first in each class,
 * palloc'd; returns how many.  Those that go soon are left out: an index shall be
 * of use for a tenth of the retention at least.
 */
int
evbus_upkeep_unindexed(EvbusDb *db, EvbusLeaf **due)
{
	MemoryContext context = CurrentMemoryContext;
	StorageClass *classes;
	int			n_classes = load_classes(&classes);
	int64		now = evbus_clock_to_time(now_id(db));
	int64		closed = oldest_open(db);
	int			size = 16;
	int			n = 0;

	*due = MemoryContextAlloc(context, sizeof(EvbusLeaf) * size);
	for (int c = 0; c < n_classes; c++)
	{
		EvbusLeaf  *leaves;

		for (int i = evbus_leaf_list(evbus_class_parent(classes[c].id), &leaves) - 1; i >= 0; i--)
		{
			if (leaves[i].hi > closed || evbus_leaf_indexed(leaves[i].relid) || is_empty(leaves[i].relid))
				continue;
			if (evbus_clock_to_time(leaves[i].hi) + classes[c].retention / 10 * 9 <= now)
				break;
			if (n == size)
				*due = repalloc(*due, sizeof(EvbusLeaf) * (size *= 2));
			(*due)[n++] = leaves[i];
		}
		pfree(leaves);
	}
	return n;
}

/* Replays of subscriptions that were deleted by hand, and retries that were written while what they are of was being dropped. */
void
evbus_upkeep_orphans(void)
{
	EvbusInternal state;
	bool		changed;

	evbus_internal_begin(&state);
	changed = evbus_sql(NULL, "DELETE FROM evbus.replay r WHERE NOT EXISTS"
						" (SELECT 1 FROM evbus.subscription x WHERE x.subscription_id = r.subscription_id)", 0, NULL, NULL, NULL, 0) > 0;
	evbus_sql(NULL, "DELETE FROM evbus.retry r WHERE NOT EXISTS"
			  " (SELECT 1 FROM evbus.subscription x WHERE x.subscription_id = r.subscription_id)"
			  " AND NOT EXISTS (SELECT 1 FROM evbus.replay x WHERE x.replay_id = r.subscription_id)", 0, NULL, NULL, NULL, 0);
	evbus_internal_end(&state);
	if (changed)
		evbus_registry_changed();
}

/* Stop a subscription that cannot go on, with its replays, and say why where users look. */
void
evbus_upkeep_pause(int32 subscription_id, const char *reason)
{
	static const Oid types[] = {INT4OID, TEXTOID};
	EvbusSubscription *sub = evbus_subscription_by_id(subscription_id);
	Datum		values[] = {Int32GetDatum(sub && sub->replay_of != 0 ? sub->replay_of : subscription_id), CStringGetTextDatum(reason)};
	EvbusInternal state;

	evbus_internal_begin(&state);
	evbus_sql(NULL, "UPDATE evbus.subscription SET paused = true, paused_reason = $2 WHERE subscription_id = $1 AND NOT paused",
			  2, types, values, NULL, 0);
	evbus_internal_end(&state);
	evbus_registry_changed();
	ereport(LOG,
			(errmsg("evbus paused subscription \"%s\" in database \"%s\": %s",
					sub ? sub->name : "?", get_database_name(MyDatabaseId), reason)));
}
