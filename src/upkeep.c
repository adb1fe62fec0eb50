/*-------------------------------------------------------------------------
 * upkeep.c
 *	  Storage classes, and the leaves that are made ahead; closed leaves, paused
 *	  subscriptions.  What is dropped, and when, is in retain.c.
 *
 * Leaves follow the hybrid clock and not the wall.  They are made two intervals
 * ahead, each parent's in a transaction of its own: what fails for one (a table of
 * that name, a lock that somebody holds) does not keep the others, and no lock is held
 * for longer than it takes to make them.
 *-------------------------------------------------------------------------
 */
#include "upkeep.h"

#include "access/relation.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "commands/dbcommands.h"
#include "eventlog.h"
#include "fmgr.h"
#include "internal.h"
#include "leafindex.h"
#include "miscadmin.h"
#include "registry.h"
#include "retain.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "upkeepnote.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define FIXED_INTERVAL	USECS_PER_DAY	/* of ticks and dead letters */
#define AUDIT_INTERVAL	(30 * USECS_PER_DAY)
#define LEAVES_AHEAD	2
#define INDEX_AFTER		(10 * USECS_PER_MINUTE) /* a leaf that may go by size: once it is closed for so long */

/* Minutes; dead letters older than this go with their leaf. */
int			evbus_dead_letter_retention = 30 * 24 * 60;

/* All there are, palloc'd in the caller's context. */
int
evbus_classes(EvbusClass **classes)
{
	static SPIPlanPtr plan = NULL;
	MemoryContext context = CurrentMemoryContext;
	EvbusInternal state;
	int			n;

	evbus_internal_begin(&state);
	n = (int) evbus_sql(&plan, "SELECT storage_class_id, (extract(epoch FROM retention) * 1000000)::bigint,"
						" (extract(epoch FROM partition_interval) * 1000000)::bigint, coalesce(retention_bytes, 0), retention_policy = 'drop_unconsumed',"
						" own_bus_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM evbus.bus b WHERE b.bus_id = own_bus_id), coalesce(orphaned_id, 0)"
						" FROM evbus.storage_class c", 0, NULL, NULL, NULL, 0);
	*classes = MemoryContextAllocZero(context, sizeof(EvbusClass) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		EvbusClass *class = &(*classes)[i];

		class->id = DatumGetInt32(evbus_column(i, 1, NULL));
		class->retention = DatumGetInt64(evbus_column(i, 2, NULL));
		class->interval = DatumGetInt64(evbus_column(i, 3, NULL));
		class->bytes = DatumGetInt64(evbus_column(i, 4, NULL));
		class->drop_unconsumed = DatumGetBool(evbus_column(i, 5, NULL));
		class->orphan = DatumGetBool(evbus_column(i, 6, NULL));
		class->orphaned_id = DatumGetInt64(evbus_column(i, 7, NULL));
		snprintf(class->parent, NAMEDATALEN, "event_c%d", class->id);
	}
	evbus_internal_end(&state);
	return n;
}

int64
evbus_now_id(EvbusDb *db)
{
	return Max(evbus_clock_wall(), (int64) pg_atomic_read_u64(&db->clock));
}

/* ------------------------------------------------------------ leaves ahead */

/* A partitioned table whose leaves are kept up. */
typedef struct Parent
{
	char		name[NAMEDATALEN];
	const char *prefix;			/* of the names of its leaves */
	int64		interval;
	int32		of;				/* storage class, or EVBUS_NOTE_* */
	bool		lacks;			/* leaves */
} Parent;

static bool
lacks_leaves(EvbusDb *db, const Parent *parent)
{
	int64		now = evbus_now_id(db);
	int64		step = parent->interval << EVBUS_CLOCK_BITS;
	EvbusLeaf	leaf;

	for (int i = 0; i <= LEAVES_AHEAD; i++)
		if (!evbus_leaf_find(evbus_relid(parent->name), now + i * step, &leaf))
			return true;
	return false;
}

/* Make what leaves lack, now and two intervals ahead. */
static int
make_ahead(EvbusDb *db, const Parent *parent)
{
	int64		now = evbus_now_id(db);
	EvbusInternal state;
	int			made;

	evbus_internal_begin(&state);
	made = evbus_leaf_make(parent->name, parent->prefix, parent->interval, now,
						   now + LEAVES_AHEAD * (parent->interval << EVBUS_CLOCK_BITS));
	evbus_internal_end(&state);
	return made;
}

/* Those that every database has. */
static const Parent fixed_parents[] = {
	{.name = "tick",.prefix = "tick",.interval = FIXED_INTERVAL,.of = EVBUS_NOTE_TICKS},
	{.name = "dead_letter_log",.prefix = "dead_letter",.interval = FIXED_INTERVAL,.of = EVBUS_NOTE_DEAD},
	{.name = "audit",.prefix = "audit",.interval = AUDIT_INTERVAL,.of = EVBUS_NOTE_AUDIT},
};

static void
class_parent(const EvbusClass *class, Parent *parent)
{
	memset(parent, 0, sizeof(*parent));
	strcpy(parent->name, class->parent);
	parent->prefix = parent->name;
	parent->interval = class->interval;
	parent->of = class->id;
}

/*
 * For whoever has just made or changed a bus: what nobody can publish without.  Its
 * transaction may stay open for long, and what it locks the maintainer cannot have;
 * so where there are leaves already, only one that lacks for now is made.
 */
void
evbus_upkeep_leaves_now(EvbusDb *db, int32 class_id)
{
	EvbusClass *classes;
	int			n = evbus_classes(&classes);
	Parent		parents[lengthof(fixed_parents) + 1] = {0};

	evbus_clock_ensure(db);
	memcpy(parents, fixed_parents, sizeof(fixed_parents));
	for (int i = 0; i < n; i++)
		if (classes[i].id == class_id)
			class_parent(&classes[i], &parents[lengthof(fixed_parents)]);
	for (int i = 0; i < (int) lengthof(parents); i++)
	{
		EvbusLeaf  *leaves;
		EvbusLeaf	leaf;
		int64		now = evbus_now_id(db);

		if (parents[i].of == 0)
			continue;
		if (evbus_leaf_list(evbus_relid(parents[i].name), &leaves) == 0)
			(void) make_ahead(db, &parents[i]);
		else if (!evbus_leaf_find(evbus_relid(parents[i].name), now, &leaf))
			(void) evbus_upkeep_leaf_make(parents[i].name, now);
		pfree(leaves);
	}
	pfree(classes);
}

/* Make the one leaf of a parent that holds an id, as its settings are; in the caller's transaction. */
int
evbus_upkeep_leaf_make(const char *name, int64 id)
{
	Parent		parent = {0};
	EvbusInternal state;
	int			made = 0;

	if (strncmp(name, "event_c", 7) == 0)
	{
		EvbusClass *classes;
		int			n = evbus_classes(&classes);

		for (int i = 0; i < n; i++)
			if (strcmp(classes[i].parent, name) == 0)
				class_parent(&classes[i], &parent);
	}
	for (int i = 0; i < (int) lengthof(fixed_parents); i++)
		if (strcmp(fixed_parents[i].name, name) == 0)
			parent = fixed_parents[i];
	if (parent.of == 0)
		return 0;
	evbus_internal_begin(&state);
	made = evbus_leaf_make(parent.name, parent.prefix, parent.interval, id, id);
	evbus_internal_end(&state);
	return made;
}

/* ------------------------------------------------------------------- a turn */

/* What a turn knows, in memory that outlives its steps. */
typedef struct Turn
{
	EvbusDb    *db;
	MemoryContext context;
	EvbusClass *classes;
	int			n_classes;
	Parent	   *parents;
	int			n_parents;
	Parent	   *parent;			/* the one at hand */
} Turn;

/* Step: what there is, and what lacks leaves.  Looked at without locks. */
static void
look(void *arg)
{
	Turn	   *turn = arg;
	MemoryContext old;

	evbus_registry_verify();
	evbus_clock_ensure(turn->db);
	old = MemoryContextSwitchTo(turn->context);
	turn->n_classes = evbus_classes(&turn->classes);
	turn->parents = palloc0(sizeof(Parent) * (turn->n_classes + lengthof(fixed_parents)));
	MemoryContextSwitchTo(old);
	memcpy(turn->parents, fixed_parents, sizeof(fixed_parents));
	turn->n_parents = lengthof(fixed_parents);
	for (int i = 0; i < turn->n_classes; i++)
		if (!turn->classes[i].orphan)
			class_parent(&turn->classes[i], &turn->parents[turn->n_parents++]);
	for (int i = 0; i < turn->n_parents; i++)
		turn->parents[i].lacks = lacks_leaves(turn->db, &turn->parents[i]);
}

static void
make(void *arg)
{
	Turn	   *turn = arg;

	(void) make_ahead(turn->db, turn->parent);
}

/*
 * Leaves ahead and, if asked for, retention; in no transaction.  `run` runs each step
 * in one of its own.  Of each kind of leaves, at most max are dropped; *more: there are
 * more to be dropped.  False: something failed, and was logged.
 */
bool
evbus_upkeep_turn(EvbusDb *db, EvbusRunner run, bool retention, int max, bool *more)
{
	Turn		turn = {.db = db, .context = CurrentMemoryContext};
	bool		good = true;

	*more = false;
	if (run(look, &turn) != NULL)
		return false;
	for (int i = 0; i < turn.n_parents; i++)
	{
		const char *error = NULL;

		turn.parent = &turn.parents[i];
		if (turn.parent->lacks)
			error = run(make, &turn);
		good = good && error == NULL;
		if (error != NULL)
			evbus_note_run(db, turn.parent->of, error);
	}
	if (!retention)
		return good;
	return evbus_retain_turn(db, run, turn.classes, turn.n_classes, max, more) && good;
}

/* The lowest id an open transaction may still write; pid, if not NULL, gets whose it is, 0: nobody's. */
int64
evbus_oldest_open(EvbusDb *db, int *pid)
{
	int64		oldest = evbus_now_id(db);

	if (pid)
		*pid = 0;
	for (int i = 0; i < EVBUS_BACKENDS; i++)
		if (pg_atomic_read_u32(&evbus_slots[i].state) != EVBUS_SLOT_IDLE &&
			pg_atomic_read_u32(&evbus_slots[i].db) == (uint32) EVBUS_DB_INDEX(db) &&
			(int64) pg_atomic_read_u64(&evbus_slots[i].low) < oldest)
		{
			oldest = (int64) pg_atomic_read_u64(&evbus_slots[i].low);
			if (pid)
				*pid = EvbusBackendPid(i);
		}
	return oldest;
}

PG_FUNCTION_INFO_V1(evbus_oldest_open_id);

/* evbus._oldest_open(): no id below it will be written any more, but by prepared transactions. */
Datum
evbus_oldest_open_id(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(evbus_oldest_open(evbus_db(), NULL));
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
 * of use for a tenth of the retention at least.  When a leaf goes by size, nobody knows.
 */
int
evbus_upkeep_unindexed(EvbusDb *db, EvbusLeaf **due)
{
	MemoryContext context = CurrentMemoryContext;
	EvbusClass *classes;
	int			n_classes = evbus_classes(&classes);
	int64		now = evbus_clock_to_time(evbus_now_id(db));
	int64		closed = evbus_oldest_open(db, NULL);
	int			size = 16;
	int			n = 0;

	*due = MemoryContextAlloc(context, sizeof(EvbusLeaf) * size);
	for (int c = 0; c < n_classes; c++)
	{
		EvbusLeaf  *leaves;

		if (classes[c].orphan)
			continue;
		for (int i = evbus_leaf_list(evbus_class_parent(classes[c].id), &leaves) - 1; i >= 0; i--)
		{
			if (leaves[i].hi > closed || evbus_leaf_indexed(leaves[i].relid) || is_empty(leaves[i].relid))
				continue;
			if (evbus_clock_to_time(leaves[i].hi) + classes[c].retention / 10 * 9 <= now)
				break;
			if (classes[c].bytes > 0 && evbus_clock_to_time(leaves[i].hi) + INDEX_AFTER > now)
				continue;		/* where events come fast, it may go before */
			if (n == size)
				*due = repalloc(*due, sizeof(EvbusLeaf) * (size *= 2));
			(*due)[n++] = leaves[i];
		}
		pfree(leaves);
	}
	return n;
}

#define UNUSED	" own_bus_id IS NULL AND NOT EXISTS (SELECT 1 FROM evbus.bus b" \
	" WHERE b.storage_class_id = c.storage_class_id OR c.storage_class_id = ANY (b.former_classes))"

/*
 * A shared class that no bus uses any more, and whose leaves hold nothing, is made one that
 * belonged to a bus which is gone: nobody finds it again, and it goes like those.
 */
static void
give_up_classes(void)
{
	static const Oid types[] = {INT4OID};
	MemoryContext context = CurrentMemoryContext;
	EvbusInternal state;
	int32	   *unused;
	int			n;

	evbus_internal_begin(&state);
	n = (int) evbus_sql(NULL, "SELECT storage_class_id FROM evbus.storage_class c WHERE" UNUSED, 0, NULL, NULL, NULL, 0);
	unused = MemoryContextAlloc(context, sizeof(int32) * Max(n, 1));
	for (int i = 0; i < n; i++)
		unused[i] = DatumGetInt32(evbus_column(i, 1, NULL));
	evbus_internal_end(&state);
	for (int i = 0; i < n; i++)
	{
		Datum		id = Int32GetDatum(unused[i]);
		EvbusLeaf  *leaves;
		int			n_leaves = evbus_leaf_list(evbus_class_parent(unused[i]), &leaves);
		bool		empty = true;

		for (int l = 0; l < n_leaves && empty; l++)
			empty = is_empty(leaves[l].relid);
		/* Who makes or alters a bus holds this lock while he looks for a class. */
		if (!empty || !ConditionalLockRelationOid(evbus_relid("bus"), ShareRowExclusiveLock))
			continue;
		evbus_internal_begin(&state);
		evbus_sql(NULL, "UPDATE evbus.storage_class c SET own_bus_id = -storage_class_id WHERE storage_class_id = $1 AND" UNUSED,
				  1, types, &id, NULL, 0);
		evbus_internal_end(&state);
	}
}

/* Classes without a bus, replays of subscriptions that were deleted by hand, and what was written while what it is of was being dropped, or stays behind. */
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
	evbus_sql(NULL, "DELETE FROM evbus.dead_letter_quota_state q WHERE NOT EXISTS"
			  " (SELECT 1 FROM evbus.subscription x WHERE x.subscription_id = q.subscription_id)", 0, NULL, NULL, NULL, 0);
	evbus_internal_end(&state);
	give_up_classes();
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
