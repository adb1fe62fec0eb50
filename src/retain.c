/*-------------------------------------------------------------------------
 * retain.c
 *	  Retention: which leaves go, and what holds them back.
 *
 * A leaf of the log goes when all of it is older than its class's retention, or
 * while the class is larger than its retention_bytes; not before no open publisher
 * may still write to it and everything in it has a position; and not while a
 * subscription needs something of it, unless the class says drop_unconsumed: then what
 * each had not settled is counted in evbus.retention_audit.  Ticks go after every log
 * leaf that they may name; with them, in the same transaction, the positions and the
 * clock they carry are saved in evbus.watermark.
 *
 * Each leaf is a transaction of its own: its locks are held for as long as it takes
 * to drop one table, and one that cannot go does not keep the others.  Locks are waited
 * for half a second each, in which others queue up behind us; after the first one of a
 * class that is in use, no longer at all, and the next time ever later.  What does not go
 * now goes next time.
 *
 * A reader takes an event whose leaf is gone for expired, and passes over it.
 *-------------------------------------------------------------------------
 */
#include "retain.h"

#include "access/xact.h"
#include "audit.h"
#include "catalog/partition.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "eventlog.h"
#include "internal.h"
#include "leaf.h"
#include "leafcut.h"
#include "log_due.h"
#include "point.h"
#include "registry.h"
#include "storage/lmgr.h"
#include "unconsumed.h"
#include "upkeepnote.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#define PLACED_WAIT_MS	1000	/* for the sequencer to tick what is in the ring */
#define LOCKED_WAIT_MS	100		/* the same while others wait for our locks, he perhaps among them */
#define LOCK_WAIT		"500ms"
#define CUT_SHARE		10		/* a leaf is full when it holds such a part of the limit, or of all there is */
#define CUT_WAIT_MS		50		/* for the locks of a cut; after vain tries longer */
#define CUT_WAIT_MAX_MS	500
#define REST_FIRST		USECS_PER_SEC	/* between two vain waits for a lock, at first */
#define REST_MAX		(60 * USECS_PER_SEC)

typedef enum Outcome
{
	DROPPED,
	NEEDED,						/* by a subscription, or it has events without positions */
	IN_USE,						/* somebody held a lock */
	FAILED
} Outcome;

typedef struct Due
{
	EvbusLeaf	leaf;
	int64		bytes;			/* where they matter */
	bool		aged;			/* past the retention; else only more than there may be */
} Due;

/* Retention of one kind of leaves, in memory that outlives its steps. */
typedef struct Retention
{
	EvbusDb    *db;
	MemoryContext context;
	int32		of;				/* storage class, or EVBUS_NOTE_* */
	const EvbusClass *class;	/* NULL: ticks and dead letters */
	Due		   *due;			/* leaves that may go, the oldest first */
	int			n_due;
	int64		total;			/* bytes of all leaves */
	EvbusLeaf	hot;			/* the leaf of now; relid 0: there is none */
	int64		hot_bytes;
	char		held[EVBUS_NOTE_TEXT * 2];	/* what holds back the first that was to go */

	const Due  *at;				/* the one at hand */
	bool		patient;		/* wait for its locks */
	int			cut_wait_ms;
	bool		resting;		/* cut only if nobody is in the way */
	bool		parent_in_use;	/* then so is every other leaf */
	Outcome		outcome;
} Retention;

/* ------------------------------------------------------------- vain tries */

/* What locks are wanted for. */
typedef enum Want
{
	TO_DROP, TO_CUT
} Want;

/* Locks that were waited for in vain: others queue up behind us, so we do that ever more rarely. */
typedef struct Vain
{
	struct
	{
		int32		of;
		int32		want;
	}			key;
	int64		rest;
	int64		not_before;
} Vain;

static Vain *
find_vain(int32 of, Want want, HASHACTION action, bool *found)
{
	static HTAB *vain = NULL;
	Vain		key = {.key = {.of = of, .want = want}};

	if (vain == NULL)
	{
		HASHCTL		control = {.keysize = sizeof(key.key), .entrysize = sizeof(Vain), .hcxt = TopMemoryContext};

		vain = hash_create("evbus vain tries", 16, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	return hash_search(vain, &key.key, action, found);
}

/* Is it to be let alone for now? */
static bool
resting(int32 of, Want want)
{
	const Vain *vain = find_vain(of, want, HASH_FIND, NULL);

	return vain != NULL && evbus_uptime() < vain->not_before;
}

static void
note_vain(int32 of, Want want)
{
	bool		found;
	Vain	   *vain = find_vain(of, want, HASH_ENTER, &found);

	vain->rest = found ? Min(vain->rest * 2, REST_MAX) : REST_FIRST;
	vain->not_before = evbus_uptime() + vain->rest;
}

static void
forget_vain(int32 of, Want want)
{
	(void) find_vain(of, want, HASH_REMOVE, NULL);
}

/* ------------------------------------------------------------------------- steps */

/*
 * Save what a leaf of ticks says before it goes: for a bus that has been quiet since,
 * nobody else will know.  A closed leaf does not change, so no lock is needed.
 */
static void
save_watermarks(EvbusDb *db, const char *leaf)
{
	static const Oid types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(pg_atomic_read_u64(&db->clock))};

	evbus_sql(NULL, psprintf("INSERT INTO evbus.watermark AS w (bus_id, next_position, low_id, newest_id)"
			  " SELECT bus_id, max(first_position + n), (SELECT low_id FROM evbus.tick ORDER BY tick_id DESC LIMIT 1), $1"
			  " FROM evbus.%s WHERE bus_id <> 0 GROUP BY bus_id"
			  " ON CONFLICT (bus_id) DO UPDATE SET next_position = greatest(w.next_position, excluded.next_position),"
			  " low_id = greatest(w.low_id, excluded.low_id), newest_id = excluded.newest_id", quote_identifier(leaf)),
			  1, types, values, NULL, 0);
	evbus_sql(NULL, "DELETE FROM evbus.watermark w WHERE NOT EXISTS (SELECT 1 FROM evbus.bus b WHERE b.bus_id = w.bus_id)"
			  " AND newest_id < (SELECT max(newest_id) FROM evbus.watermark)", 0, NULL, NULL, NULL, 0);
}

/* Has every committed event below hi a position?  Whoever waits for one is in the ring, lost, or late. */
static bool
all_placed(EvbusDb *db, int64 hi, int wait_ms)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(hi)};
	EvbusInternal state;
	bool		late;

	evbus_internal_begin(&state);
	late = evbus_sql(&plan, "SELECT 1 FROM evbus.late WHERE min_id < $1 LIMIT 1", 1, types, values, NULL, 1) > 0;
	evbus_internal_end(&state);
	return !late && evbus_db_wait_drained(db, wait_ms);
}

/* The id that was taken so long before, or 0: as ids count, a hundred years are more than 63 bits. */
static int64
id_before(int64 id, int64 usecs)
{
	return usecs < id >> EVBUS_CLOCK_BITS ? id - (usecs << EVBUS_CLOCK_BITS) : 0;
}

/* ----------------------------------------------------------------------- drops */

/* Who holds a lock on one of two tables, for a user to read; NULL: nobody. */
static char *
holder(Oid relid, Oid parent)
{
	static const Oid types[] = {OIDOID, OIDOID};
	Datum		values[] = {ObjectIdGetDatum(relid), ObjectIdGetDatum(parent)};
	MemoryContext context = CurrentMemoryContext;
	EvbusInternal state;
	char	   *who = NULL;

	evbus_internal_begin(&state);
	if (evbus_sql(NULL, "SELECT coalesce('prepared transaction \"' || x.gid || '\"', 'process ' || l.pid, 'a prepared transaction')"
				  " FROM pg_locks l LEFT JOIN pg_locks t ON l.pid IS NULL AND t.pid IS NULL AND t.locktype = 'transactionid' AND t.virtualtransaction = l.virtualtransaction"
				  " LEFT JOIN pg_prepared_xacts x ON x.transaction = t.transactionid"
				  " WHERE l.locktype = 'relation' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
				  " AND l.relation IN ($1, $2) AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()"
				  " ORDER BY l.pid NULLS FIRST LIMIT 1", 2, types, values, NULL, 1) > 0)
		who = MemoryContextStrdup(context, TextDatumGetCString(evbus_column(0, 1, NULL)));
	evbus_internal_end(&state);
	return who;
}

/* Note what holds back a leaf, if nothing did so before. */
static void
hold(Retention *r, const char *why)
{
	if (r->held[0] == '\0')
		strlcpy(r->held, why, sizeof(r->held));
}

/* May it go, as far as subscriptions are concerned? */
static bool
free_to_go(Retention *r, int wait_ms)
{
	const char *who;

	if (r->class == NULL || r->class->orphan)
		return true;
	if (!all_placed(r->db, r->at->leaf.hi, wait_ms))
	{
		hold(r, "events that have no position yet");
		return false;
	}
	if (r->class->drop_unconsumed)
		return true;
	who = evbus_unconsumed_by(r->db, r->class->id, r->at->leaf.hi);
	if (who)
		hold(r, psprintf("subscription \"%s\" has not consumed it", who));
	return who == NULL;
}

/* Is it recorded what goes with it? */
static bool
audited(Retention *r, const char *leaf)
{
	if (r->class == NULL || r->class->orphan || !r->class->drop_unconsumed ||
		evbus_unconsumed_audit(r->db, r->class->id, &r->at->leaf, leaf, r->at->aged ? "retention" : "retention_bytes"))
		return true;
	hold(r, "a subscription is being moved");
	return false;
}

/* Errors 55P03 after LOCK_WAIT; false: not patient, and somebody holds it. */
static bool
lock_for_drop(Oid relid, bool patient)
{
	if (!patient)
		return ConditionalLockRelationOid(relid, AccessExclusiveLock);
	LockRelationOid(relid, AccessExclusiveLock);
	return true;
}

/*
 * Step: drop the leaf at hand.
 *
 * A leaf of the log is looked at again under the lock, for what we have waited for
 * may have been a transaction with events (a prepared one has no slot to be seen by).
 */
static void
drop_leaf(void *arg)
{
	Retention  *r = arg;
	Oid			relid = r->at->leaf.relid;
	Oid			parent = InvalidOid;
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	char	   *name = get_rel_name(relid);
	bool		in_use = false;

	r->outcome = FAILED;
	r->parent_in_use = false;
	if (name != NULL)
		parent = get_partition_parent(relid, true);
	if (!OidIsValid(parent))
		return;					/* somebody was faster */
	if (!free_to_go(r, PLACED_WAIT_MS))
	{
		r->outcome = NEEDED;
		return;
	}
	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		EvbusInternal state;

		evbus_internal_begin(&state);
		if (r->of == EVBUS_NOTE_TICKS)
			save_watermarks(r->db, name);
		(void) set_config_option("lock_timeout", LOCK_WAIT, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
		r->parent_in_use = true;
		in_use = !lock_for_drop(parent, r->patient);	/* as DROP TABLE does */
		r->parent_in_use = in_use;
		in_use = in_use || !lock_for_drop(relid, r->patient);
		if (!in_use)
		{
			r->outcome = free_to_go(r, LOCKED_WAIT_MS) && audited(r, name) ? DROPPED : NEEDED;
			if (r->outcome == DROPPED)
			{
				evbus_utility("DROP TABLE evbus.%s", quote_identifier(name));
				EVBUS_POINT("leaf.dropped");
			}
		}
		evbus_internal_end(&state);
		if (r->outcome == DROPPED)
			ReleaseCurrentSubTransaction();
		else
			RollbackAndReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(context);
		r->outcome = FAILED;
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		if (edata->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
			ReThrowError(edata);
		in_use = true;			/* and parent_in_use says which of them */
		FreeErrorData(edata);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (in_use)
	{
		char	   *who = holder(relid, parent);
		char	   *text = psprintf("evbus could not drop leaf \"%s\" yet: it is in use", name);
		int64		left_out;

		r->outcome = IN_USE;
		hold(r, psprintf("%s holds a lock on it", who ? who : "somebody"));
		if (evbus_log_due(text, &left_out))
			ereport(LOG, (errmsg_internal("%s", text)));
	}
	if (r->outcome == DROPPED)
		ereport(LOG,
				(errmsg("evbus dropped leaf \"%s\" at the retention of %s", name,
						r->class && r->class->orphan ? "a bus that was dropped" : r->class ? "its storage class" : r->of == EVBUS_NOTE_TICKS ? "the log" : "dead letters")));
}

static void
add_due(Retention *r, const EvbusLeaf *leaf, int64 bytes, bool aged)
{
	r->due[r->n_due].leaf = *leaf;
	r->due[r->n_due].bytes = bytes;
	r->due[r->n_due++].aged = aged;
}

static int64
size_of(Oid relid)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(relid)};
	EvbusInternal state;
	int64		size;

	evbus_internal_begin(&state);
	evbus_sql(&plan, "SELECT coalesce(pg_total_relation_size($1), 0)", 1, types, values, NULL, 1);
	size = DatumGetInt64(evbus_column(0, 1, NULL));
	evbus_internal_end(&state);
	return size;
}

/* Step: which leaves of a class may go. */
static void
plan_class(void *arg)
{
	Retention  *r = arg;
	int64		now = evbus_now_id(r->db);
	int64		limit = id_before(now, r->class->retention);
	int			pid;
	int64		closed = evbus_oldest_open(r->db, &pid);
	EvbusLeaf  *leaves;
	int			n = evbus_leaf_list(evbus_class_parent(r->class->id), &leaves);

	r->due = MemoryContextAlloc(r->context, sizeof(Due) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		int64		bytes = r->class->bytes > 0 ? size_of(leaves[i].relid) : 0;

		r->total += bytes;
		if (leaves[i].lo <= now && now < leaves[i].hi)
		{
			r->hot = leaves[i];
			r->hot_bytes = bytes;
		}
		if (leaves[i].hi <= Min(closed, limit) || (r->class->bytes > 0 && leaves[i].hi <= closed))
			add_due(r, &leaves[i], bytes, leaves[i].hi <= limit);
		else if (pid != 0 && leaves[i].hi <= limit)
			hold(r, psprintf("process %d has been publishing for so long", pid));
	}
	if (pid != 0 && r->n_due == 0 && r->class->bytes > 0 && r->total > r->class->bytes)
		hold(r, psprintf("process %d has been publishing for so long", pid));
	pfree(leaves);
}

/* Step: which leaves of ticks may go: those that name nothing of a leaf that is left. */
static void
plan_ticks(void *arg)
{
	Retention  *r = arg;
	int64		oldest = evbus_oldest_open(r->db, NULL);
	Oid		   *parents;
	int			n_parents = evbus_class_parents(&parents);
	EvbusLeaf  *leaves;
	int			n;

	for (int p = 0; p < n_parents; p++)
	{
		if (evbus_leaf_list(parents[p], &leaves) > 0)
			oldest = Min(oldest, leaves[0].lo);
		pfree(leaves);
	}
	n = evbus_leaf_list(evbus_relid("tick"), &leaves);
	r->due = MemoryContextAlloc(r->context, sizeof(Due) * Max(n, 1));
	for (int i = 0; i < n && leaves[i].hi <= oldest; i++)
		add_due(r, &leaves[i], 0, true);
	pfree(leaves);
}

/* Which leaves may go that nothing but their age keeps. */
static void
plan_by_age(Retention *r, const char *parent, int minutes)
{
	int64		limit = id_before(evbus_now_id(r->db), (int64) minutes * USECS_PER_MINUTE);
	EvbusLeaf  *leaves;
	int			n = evbus_leaf_list(evbus_relid(parent), &leaves);

	r->due = MemoryContextAlloc(r->context, sizeof(Due) * Max(n, 1));
	for (int i = 0; i < n && leaves[i].hi <= limit; i++)
		add_due(r, &leaves[i], 0, true);
	pfree(leaves);
}

/* Step. */
static void
plan_dead_letters(void *arg)
{
	plan_by_age(arg, "dead_letter_log", evbus_dead_letter_retention);
}

/* Step. */
static void
plan_audit(void *arg)
{
	plan_by_age(arg, "audit", evbus_audit_retention);
}

/* Who is in the way of a cut?  Noted where it is wanted by now; false: nobody. */
static bool
in_the_way(Retention *r)
{
	char	   *who = holder(r->hot.relid, evbus_class_parent(r->class->id));

	if (who != NULL && r->total > r->class->bytes)
		hold(r, psprintf("%s holds a lock on it", who));
	return who != NULL;
}

/* Step: end the leaf of now; NEEDED: did not try. */
static void
cut_leaf(void *arg)
{
	Retention  *r = arg;
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	r->outcome = NEEDED;
	if (r->resting && in_the_way(r))
		return;
	r->outcome = IN_USE;
	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		(void) evbus_leaf_cut(r->db, r->class->parent, &r->hot, r->class->interval, r->cut_wait_ms);
		r->outcome = DROPPED;
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		if (edata->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
			ReThrowError(edata);
		FreeErrorData(edata);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (r->outcome == IN_USE)
		(void) in_the_way(r);
}

/*
 * End the leaf of now if it is full.  Where transactions that publish take longer than
 * CUT_WAIT_MS and overlap, it would never be free: so the rarer we try, the longer we wait.
 * Between, where there is too much, only when nobody is in the way.
 */
static const char *
cut_if_full(Retention *r, EvbusRunner run)
{
	const Vain *vain = find_vain(r->of, TO_CUT, HASH_FIND, NULL);
	const char *error;

	if (r->hot.relid == InvalidOid || r->hot_bytes < Max(r->class->bytes, r->total) / CUT_SHARE)
		return NULL;
	r->resting = resting(r->of, TO_CUT);
	if (r->resting && r->total <= r->class->bytes)
		return NULL;
	r->cut_wait_ms = vain == NULL ? CUT_WAIT_MS : (int) Min(CUT_WAIT_MS * 2 * vain->rest / REST_FIRST, CUT_WAIT_MAX_MS);
	error = run(cut_leaf, r);
	if (error == NULL && r->outcome == DROPPED)
		forget_vain(r->of, TO_CUT);
	else if (error != NULL || r->outcome == IN_USE)
		note_vain(r->of, TO_CUT);
	return error;
}

/* Drop what is due of one kind, max leaves at most; *more: there is more. */
static bool
retain(Retention *r, EvbusRunner run, void (*plan) (void *), int max, bool *more)
{
	const char *error;
	char	   *failed = NULL;

	r->context = CurrentMemoryContext;
	r->patient = !resting(r->of, TO_DROP);
	error = run(plan, r);
	if (error != NULL)
		failed = pstrdup(error);
	for (int i = 0; i < r->n_due && error == NULL; i++)
	{
		r->at = &r->due[i];
		if (!r->at->aged && r->total <= r->class->bytes)
			break;
		if (max <= 0)
		{
			*more = true;
			break;
		}
		r->outcome = FAILED;
		error = run(drop_leaf, r);
		if (error != NULL)
		{
			hold(r, error);
			failed = pstrdup(error);
			error = NULL;		/* the next one may do */
		}
		if (r->outcome == DROPPED)
		{
			r->total -= r->at->bytes;
			max--;				/* what cannot go is no reason to look again at once */
			if (r->patient)
				forget_vain(r->of, TO_DROP);
		}
		if (r->outcome == NEEDED)
			break;				/* and so is what follows */
		if (r->outcome == IN_USE)
		{
			if (r->patient)
				note_vain(r->of, TO_DROP);
			r->patient = false;
			if (r->parent_in_use)
				break;
		}
	}
	if (error == NULL && r->class != NULL && r->class->bytes > 0 && !r->class->orphan)
		error = cut_if_full(r, run);
	if (error != NULL && failed == NULL)
		failed = pstrdup(error);
	evbus_note_held(r->db, r->of, r->held[0] ? r->held : NULL);
	evbus_note_run(r->db, r->of, failed);
	return failed == NULL;
}

/* ------------------------------------------------------- classes of dropped buses */

/* Step: which leaves of a class whose bus is gone may go: all, once nobody may have an event for it. */
static void
plan_orphan(void *arg)
{
	Retention  *r = arg;
	EvbusLeaf  *leaves;
	int			n;

	if (r->class->orphaned_id == 0 || evbus_oldest_open(r->db, NULL) < r->class->orphaned_id)
		return;
	n = evbus_leaf_list(evbus_class_parent(r->class->id), &leaves);
	r->due = MemoryContextAlloc(r->context, sizeof(Due) * Max(n, 1));
	for (int i = 0; i < n; i++)
		add_due(r, &leaves[i], 0, true);
	pfree(leaves);
}

/* Step: drop the class itself, once it has no leaves. */
static void
drop_class(void *arg)
{
	static const Oid types[] = {INT4OID, INT8OID};
	Retention  *r = arg;
	Datum		values[] = {Int32GetDatum(r->class->id), Int64GetDatum(evbus_now_id(r->db))};
	EvbusInternal state;
	EvbusLeaf  *leaves;

	evbus_internal_begin(&state);
	if (r->class->orphaned_id == 0)
		evbus_sql(NULL, "UPDATE evbus.storage_class SET orphaned_id = $2 WHERE storage_class_id = $1", 2, types, values, NULL, 0);
	else if (evbus_oldest_open(r->db, NULL) >= r->class->orphaned_id &&
			 evbus_leaf_list(evbus_class_parent(r->class->id), &leaves) == 0)
	{
		(void) set_config_option("lock_timeout", LOCK_WAIT, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
		evbus_utility("DROP TABLE evbus.%s", r->class->parent);
		evbus_sql(NULL, "DELETE FROM evbus.storage_class WHERE storage_class_id = $1", 2, types, values, NULL, 0);
		evbus_note_forget(r->db, r->class->id);
		ereport(LOG,
				(errmsg("evbus dropped the leaves of a bus that was dropped (\"%s\")", r->class->parent)));
	}
	evbus_internal_end(&state);
}

/* ------------------------------------------------------------------------- turns */

static bool
retain_class(EvbusDb *db, EvbusRunner run, const EvbusClass *class, int max, bool *more)
{
	Retention	r = {.db = db, .of = class->id, .class = class};

	bool		good;

	if (!class->orphan)
		return retain(&r, run, plan_class, max, more);
	/* A leaf at a time, as always: all at once would be more locks than the server may have room for. */
	good = retain(&r, run, plan_orphan, max, more);
	return run(drop_class, &r) == NULL && good;
}

/* Everything; see evbus_upkeep_turn(). */
bool
evbus_retain_turn(EvbusDb *db, EvbusRunner run, const EvbusClass *classes, int n, int max, bool *more)
{
	Retention	ticks = {.db = db, .of = EVBUS_NOTE_TICKS};
	Retention	dead = {.db = db, .of = EVBUS_NOTE_DEAD};
	Retention	audit = {.db = db, .of = EVBUS_NOTE_AUDIT};
	bool		good = true;

	for (int c = 0; c < n; c++)
		good = retain_class(db, run, &classes[c], max, more) && good;
	good = retain(&ticks, run, plan_ticks, max, more) && good;
	good = retain(&dead, run, plan_dead_letters, max, more) && good;
	return retain(&audit, run, plan_audit, max, more) && good;
}

typedef struct Limited
{
	MemoryContext context;
	EvbusClass *classes;
	int			n;
} Limited;

/* Step: load the classes. */
static void
load(void *arg)
{
	Limited    *limited = arg;
	MemoryContext old = MemoryContextSwitchTo(limited->context);

	limited->n = evbus_classes(&limited->classes);
	MemoryContextSwitchTo(old);
}

/*
 * For the maintainer, often: classes that have a limit of their size.  Returns how many
 * there are.
 */
int
evbus_retain_limited(EvbusDb *db, EvbusRunner run, int max)
{
	Limited		limited = {.context = CurrentMemoryContext};
	int			n = 0;
	bool		more;

	if (run(load, &limited) != NULL)
		return 0;
	for (int c = 0; c < limited.n; c++)
		if (limited.classes[c].bytes > 0 && !limited.classes[c].orphan)
		{
			n++;
			(void) retain_class(db, run, &limited.classes[c], max, &more);
		}
	return n;
}
