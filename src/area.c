/*-------------------------------------------------------------------------
 * area.c
 *	  A database's part of shared memory: claimed at first use, found again, waited for.
 *
 * It is keyed by (database, oid of evbus.bus), so that a re-created extension never
 * meets old entries.  Its workers come because somebody has claimed it, and fill it
 * (ready), whatever state the tables are in; launcher.c frees it.
 *-------------------------------------------------------------------------
 */
#include "area.h"

#include "access/transam.h"
#include "access/xact.h"
#include "clock.h"
#include "internal.h"
#include "miscadmin.h"
#include "registry.h"
#include "ring.h"
#include "stats.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/lsyscache.h"
#include "volatile.h"
#include "wait.h"

/* The area of this database, once attached. */
static EvbusDb *my_db = NULL;
static Oid	my_bus_relid = InvalidOid;

/* Make a claimed area as new; the caller holds EvbusShared.lock EXCLUSIVE. */
static void
db_reset(EvbusDb *db, Oid bus_relid)
{
	Assert(LWLockHeldByMe(&evbus_shared->lock));

	db->sequencer_pid = 0;
	db->maintainer_pid = 0;
	db->indexer_pid = 0;
	db->scheduler_pid = 0;
	db->stopped_until = 0;
	db->claimed_xid = GetTopTransactionIdIfAny();
	db->claimed_at = evbus_uptime();
	db->gone = false;
	pg_atomic_write_u64(&db->clock, 1);
	pg_atomic_write_u32(&db->clock_ready, 0);
	pg_atomic_write_u32(&db->ready, 0);
	pg_atomic_write_u32(&db->recovered, 0);
	pg_atomic_write_u64(&db->ring_reserved, 0);
	pg_atomic_write_u64(&db->ring_tail, 0);
	pg_atomic_write_u64(&db->ring_drained, 0);
	pg_atomic_write_u64(&db->ring_ticked, 0);
	pg_atomic_write_u64(&db->lost_low, EVBUS_NO_LSN_ID);
	pg_atomic_write_u32(&db->lost, 0);
	pg_atomic_write_u32(&db->late, 0);
	pg_atomic_write_u64(&db->overflows, 0);
	pg_atomic_write_u64(&db->ticked_lsn, 0);
	pg_atomic_write_u32(&db->sequencer_procno, 0);
	pg_atomic_write_u32(&db->sequencer_sleeps, EVBUS_AWAKE);
	pg_atomic_write_u32(&db->tick_wanted, 0);
	pg_atomic_write_u64(&db->ledger_turn, 0);
	pg_atomic_write_u32(&db->leaves_wanted, 0);
	pg_atomic_write_u32(&db->starved, 0);
	pg_atomic_write_u32(&db->given, 0);
	memset(db->errands, 0, sizeof(db->errands));
	pg_atomic_write_u32(&db->errands_posted, 0);
	pg_atomic_write_u32(&db->maintainer_sleeps, 0);
	for (int i = 0; i < EVBUS_SCHEDULED_LEAVES; i++)
		pg_atomic_write_u64(&db->scheduled_due[i], 0);
	pg_atomic_write_u64(&db->scheduler_until, 0);
	pg_atomic_write_u64(&db->dedup_turn, 0);
	for (int i = 0; i < EVBUS_ROLE_LIMITS_MAX; i++)
		pg_atomic_write_u64(&db->role_rate_at[i], 0);
	for (int i = 0; i < evbus_max_buses; i++)
	{
		EvbusBusState *bus = EVBUS_BUS(db, i);

		pg_atomic_write_u32(&bus->bus_id, 0);
		pg_atomic_write_u32(&bus->ring, 0);
		pg_atomic_write_u64(&bus->next_position, 0);
		pg_atomic_write_u64(&bus->ticked_position, 0);
		pg_atomic_write_u32(&bus->awaited, 0);
		pg_atomic_write_u64(&bus->promised, 0);
		pg_atomic_write_u64(&bus->rate_at, 0);
		pg_atomic_write_u64(&bus->rejected, 0);
		pg_atomic_write_u64(&bus->waits, 0);
		pg_atomic_write_u64(&bus->used_at, 0);
		pg_atomic_write_u64(&bus->size_sum, 0);
		pg_atomic_write_u64(&bus->size_n, 0);
		for (int a = 0; a < EVBUS_ANCHORS; a++)
			pg_atomic_write_u64(&bus->anchors[a].offset, 0);
		bus->anchor_next = 0;
		bus->anchor_last = 0;
	}
	for (int i = 0; i < evbus_max_subscriptions; i++)
	{
		EVBUS_SUB(db, i)->subscription_id = 0;
		pg_atomic_write_u32(&EVBUS_SUB(db, i)->notify, 0);
		pg_atomic_write_u32(&EVBUS_SUB(db, i)->died, 0);
		memset(&EVBUS_SUB(db, i)->breaker, 0, sizeof(EvbusBreaker));
		SpinLockInit(&EVBUS_SUB(db, i)->breaker.mutex);
	}
	evbus_volatile_reset(db);
	evbus_stats_clear(db);
	for (int i = 0; i < EVBUS_NOTES_MAX; i++)
		EVBUS_NOTE(db, i)->of = 0;
	for (int i = 0; i < evbus_max_leases; i++)
	{
		EvbusLease *lease = EVBUS_LEASE(db, i);

		lease->state = EVBUS_LEASE_FREE;
		lease->next = i + 1 < evbus_max_leases ? i + 1 : -1;
		SpinLockInit(&evbus_order_buckets[EVBUS_DB_INDEX(db) * evbus_max_leases + i].lock);
		evbus_order_buckets[EVBUS_DB_INDEX(db) * evbus_max_leases + i].head = -1;
	}
	pg_atomic_write_u32(&db->deferred, 0);
	db->lease_free = 0;
	db->leases_used = 0;
	for (int i = 0; i < EVBUS_AREAS; i++)
		pg_atomic_write_u64(&db->high[i], 0);
	memset(db->told, 0, sizeof(db->told));
	memset(db->health_told, 0, sizeof(db->health_told));
	db->health_untold = 0;
	memset(db->noted, 0, sizeof(db->noted));
	db->noted_left_out = 0;
	db->left_out_written_at = 0;
	pg_atomic_write_u32(&db->noted_waiting, 0);
	db->bus_relid = bus_relid;
	pg_write_barrier();
	db->dboid = MyDatabaseId;
}

static EvbusDb *
db_find(Oid bus_relid, bool claim)
{
	EvbusDb    *found = NULL;
	EvbusDb    *unused = NULL;

	for (int i = 0; i < evbus_max_databases; i++)
	{
		EvbusDb    *db = &evbus_dbs[i];

		if (db->dboid == MyDatabaseId && db->bus_relid == bus_relid)
			found = db;
		else if (!OidIsValid(db->dboid) && unused == NULL)
			unused = db;
	}
	if (found == NULL && unused != NULL && claim)
	{
		db_reset(unused, bus_relid);
		found = unused;
	}
	return found;
}

/* Errors: 55000 not preloaded. */
void
evbus_require_preload(void)
{
	if (evbus_shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("evbus must be loaded through \"shared_preload_libraries\""),
				 errhint("Add shared_preload_libraries = 'evbus' to postgresql.conf and restart the server.")));
}

/*
 * The area of this database; claimed, and its workers asked for, on first use.
 * Errors: 55000 not preloaded, 53400 more databases than evbus.max_databases.
 */
EvbusDb *
evbus_db(void)
{
	Oid			bus_relid;

	evbus_require_preload();
	bus_relid = evbus_relid("bus");
	if (my_db != NULL && my_bus_relid == bus_relid && my_db->dboid == MyDatabaseId && my_db->bus_relid == bus_relid)
		return my_db;

	evbus_registry_forget();	/* what it knows may be of a former extension */
	for (int tries = 0;; tries++)
	{
		LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
		my_db = db_find(bus_relid, true);
		LWLockRelease(&evbus_shared->lock);
		if (my_db != NULL || tries == 40)
			break;
		evbus_launcher_wake();	/* it frees what dropped databases had */
		(void) WaitLatch(MyLatch, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 50, evbus_wait_event(EVBUS_WAIT_DATABASE));
		CHECK_FOR_INTERRUPTS();
	}
	if (my_db == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many databases use evbus"),
				 errdetail("evbus.max_databases is %d.", evbus_max_databases),
				 errhint("Raise evbus.max_databases and restart the server.")));
	my_bus_relid = bus_relid;
	evbus_launcher_wake();
	return my_db;
}

/*
 * For a worker that starts, in no transaction: the areas of this database whose
 * extension was dropped may go.  Asked first is whether a claimer, who may have made
 * the extension himself, has ended; then what is committed.  True: there is one, and
 * the worker shall end, for it may be what the launcher waits for.
 */
bool
evbus_areas_sweep(void)
{
	Oid			relids[EVBUS_MAX_DATABASES] = {0};
	Oid			current;
	bool		any = false;

	for (int i = 0; i < evbus_max_databases; i++)
	{
		EvbusDb    *db = &evbus_dbs[i];

		if (db->dboid == MyDatabaseId &&
			(pg_atomic_read_u32(&db->ready) || !TransactionIdIsValid(db->claimed_xid) ||
			 !TransactionIdIsInProgress(db->claimed_xid)))
			relids[i] = db->bus_relid;
	}
	StartTransactionCommand();
	current = evbus_installed() ? get_relname_relid("bus", evbus_namespace(true)) : InvalidOid;
	CommitTransactionCommand();
	for (int i = 0; i < evbus_max_databases; i++)
		if (OidIsValid(relids[i]) && relids[i] != current && evbus_dbs[i].dboid == MyDatabaseId &&
			evbus_dbs[i].bus_relid == relids[i])
			any = evbus_dbs[i].gone = true;
	return any;
}

/* Wait until the sequencer has loaded positions and cursors, or knows that it has not; false: it does not get there in time. */
static bool
wait_loaded(EvbusDb *db, bool loaded, int timeout_ms)
{
	int64		deadline;
	bool		there;

	if ((pg_atomic_read_u32(&db->ready) != 0) == loaded)
		return true;
	evbus_launcher_wake();
	deadline = TimestampTzPlusMilliseconds(evbus_uptime(), timeout_ms);
	ConditionVariablePrepareToSleep(&db->drained_cv);
	while (!(there = (pg_atomic_read_u32(&db->ready) != 0) == loaded) && evbus_uptime() < deadline)
		(void) ConditionVariableTimedSleep(&db->drained_cv, 100, evbus_wait_event(EVBUS_WAIT_READY));
	ConditionVariableCancelSleep();
	return there;
}

/* Wait until the sequencer knows that nothing is loaded; false: it does not. */
bool
evbus_db_wait_unloaded(EvbusDb *db, int timeout_ms)
{
	return wait_loaded(db, false, timeout_ms);
}

void
evbus_db_require_ready(EvbusDb *db)
{
	evbus_home_refuse();
	if (!wait_loaded(db, true, 10000))
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_NOT_READY),
				 errmsg("the evbus workers of this database are not running"),
				 errhint("See the server log; often max_worker_processes (now %d) is too small: evbus needs 1, and 2 for each database, and 1 for each handler worker.",
						 max_worker_processes)));
}

/*
 * Wait until everything committed before the call has its position; false: no
 * sequencer got there in time.
 */
bool
evbus_db_wait_drained(EvbusDb *db, int timeout_ms)
{
	int64		deadline = TimestampTzPlusMilliseconds(evbus_uptime(), timeout_ms);
	uint64		tail = pg_atomic_read_u64(&db->ring_tail);
	bool		drained;

	if (!wait_loaded(db, true, timeout_ms))
		return false;
	ConditionVariablePrepareToSleep(&db->drained_cv);
	while (!(drained = pg_atomic_read_u64(&db->ring_ticked) >= tail &&
			 !pg_atomic_read_u32(&db->lost) && !pg_atomic_read_u32(&db->late) &&
			 pg_atomic_read_u32(&db->recovered)) &&
		   evbus_uptime() < deadline)
	{
		evbus_ring_want_ticks(db);
		(void) ConditionVariableTimedSleep(&db->drained_cv, 20, evbus_wait_event(EVBUS_WAIT_PLACED));
	}
	ConditionVariableCancelSleep();
	return drained;
}

void
evbus_launcher_wake(void)
{
	int			procno = evbus_shared->launcher_procno;

	if (evbus_shared->launcher_pid != 0)
		SetLatch(&ProcGlobal->allProcs[procno].procLatch);
}
