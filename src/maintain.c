/*-------------------------------------------------------------------------
 * maintain.c
 *	  The maintainer: one per database.  Leaves, retention, ledger turns, NOTIFY,
 *	  handler workers, paced redrives, the indexer, tables used in turn; and CALL evbus.maintain(), the first
 *	  two by hand.
 *
 * It may wait for locks, a second at most, which the sequencer must not.  What
 * fails is logged and tried again with the next turn; every step of upkeep is a
 * transaction of its own, so it keeps no other from being done.
 *-------------------------------------------------------------------------
 */
#include "maintain.h"

#include "access/xact.h"
#include "audit.h"
#include "backlog.h"
#include "behind.h"
#include "breaker_list.h"
#include "bus_idle.h"
#include "bus_stop.h"
#include "clock.h"
#include "cursor.h"
#include "dead_letter.h"
#include "executor/spi.h"
#include "dedup.h"
#include "errand.h"
#include "fmgr.h"
#include "funcapi.h"
#include "health_tell.h"
#include "home.h"
#include "indexer.h"
#include "internal.h"
#include "leafindex.h"
#include "ledger.h"
#include "log_due.h"
#include "miscadmin.h"
#include "notify.h"
#include "pgstat.h"
#include "point.h"
#include "pool.h"
#include "privilege.h"
#include "redrive_job.h"
#include "quota.h"
#include "registry.h"
#include "replay.h"
#include "retain.h"
#include "retry.h"
#include "ring.h"
#include "scheduled.h"
#include "scheduler.h"
#include "stat_memory.h"
#include "stat_show.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "train.h"
#include "upkeep.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "wait.h"
#include "worker.h"

#define IDLE_MS		200
#define LIMITED_MS	1000		/* between two looks at classes that have a limit of their size */
#define DROPS_MAX	50			/* leaves of a kind dropped in a turn */

/* ms; time between two looks at leaves, retention and the ledger. */
int			evbus_upkeep_interval = 10000;

static EvbusDb *db;

PGDLLEXPORT void evbus_maintainer_main(Datum main_arg);

PG_FUNCTION_INFO_V1(evbus_maintain);
PG_FUNCTION_INFO_V1(evbus_status);

/* ------------------------------------------------------------------ by hand */

/* An EvbusRunner: a step in the transaction at hand, which is then committed.  Errors are the caller's. */
static const char *
run_by_hand(void (*step) (void *), void *arg)
{
	LockRelationOid(evbus_relid("storage_class"), ShareUpdateExclusiveLock);
	PushActiveSnapshot(GetTransactionSnapshot());
	step(arg);
	PopActiveSnapshot();
	SPI_commit();
	return NULL;
}

static void
fold(void *arg)
{
	evbus_dead_letter_fold(evbus_dead_letter_retention);
}

static void
train(void *arg)
{
	evbus_train_upkeep(evbus_db());
}

static void
orphans(void *arg)
{
	evbus_upkeep_orphans();
}

static void
expire(void *arg)
{
	*(bool *) arg = evbus_bus_expire(evbus_db());
}

/*
 * CALL evbus.maintain()
 *
 * Drops buses whose idle_ttl is over, makes leaves ahead and drops those past retention, each in a transaction of its
 * own: what it locks would else be locked for as long as the caller's transaction is
 * open, which would keep the maintainer from making leaves.  Leaves in use are left for
 * the next time.  Errors: 25001 in a transaction block, 25006, 55P03 another upkeep holds
 * its lock for longer than lock_timeout, VB009 in a copy.  Privileges: EXECUTE.
 */
Datum
evbus_maintain(PG_FUNCTION_ARGS)
{
	EvbusDb    *of = evbus_db();
	MemoryContext old = CurrentMemoryContext;
	MemoryContext turn;
	bool		more;

	if (!(fcinfo->context && IsA(fcinfo->context, CallContext)) || ((CallContext *) fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("evbus.maintain() cannot run inside a transaction block"),
				 errhint("Call it by itself: it commits what it does step by step, so that nobody waits for its locks.")));
	PreventCommandDuringRecovery("evbus.maintain()");
	PreventCommandIfReadOnly("evbus.maintain()");
	evbus_home_refuse();
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect_ext failed");
	turn = AllocSetContextCreate(PortalContext ? PortalContext : CurrentMemoryContext, "evbus maintain", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(turn);
	do
		(void) run_by_hand(expire, &more);
	while (more);
	(void) run_by_hand(orphans, NULL);
	/* What has no position yet, nobody can have consumed. */
	(void) evbus_upkeep_turn(of, run_by_hand, evbus_db_wait_drained(of, 1000),
							 INT_MAX, &more);
	(void) run_by_hand(fold, NULL);
	(void) run_by_hand(train, NULL);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(turn);
	SPI_finish();
	PG_RETURN_VOID();
}

/* ----------------------------------------------------------------- the worker */

static char failure[256];		/* message of what failed last */
static char failure_hint[256];
static int	failure_code;

/* Run one step in a transaction of its own; what fails is logged. */
static bool
attempt(void (*step) (void), bool in_transaction)
{
	volatile bool ok = true;
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		if (in_transaction)
		{
			SetCurrentStatementStartTimestamp();	/* for now() */
			StartTransactionCommand();
			PushActiveSnapshot(GetTransactionSnapshot());
		}
		step();
		if (in_transaction)
		{
			PopActiveSnapshot();
			CommitTransactionCommand();
		}
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		strlcpy(failure, edata->message ? edata->message : "?", sizeof(failure));
		strlcpy(failure_hint, edata->hint ? edata->hint : "", sizeof(failure_hint));
		failure_code = edata->sqlerrcode;
		if (evbus_log_error_due(edata))
			EmitErrorReport();
		FreeErrorData(edata);
		FlushErrorState();
		AbortOutOfAnyTransaction();
		RESUME_INTERRUPTS();
		ok = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return ok;
}

static void (*step_at_hand) (void *);
static void *step_arg;

/* One at a time in a database, by worker or by hand. */
static void
run_step(void)
{
	LockRelationOid(evbus_relid("storage_class"), ShareUpdateExclusiveLock);
	step_at_hand(step_arg);
}

/* An EvbusRunner. */
static const char *
run_alone(void (*step) (void *), void *arg)
{
	step_at_hand = step;
	step_arg = arg;
	return attempt(run_step, true) ? NULL : failure;
}

static void
run_plain_step(void)
{
	step_at_hand(step_arg);
}

/* The same for what is no upkeep of leaves. */
static const char *
run_plain(void (*step) (void *), void *arg)
{
	step_at_hand = step;
	step_arg = arg;
	return attempt(run_plain_step, true) ? NULL : failure;
}

/* What nobody can do without: asked for by publishers, and first in every turn. */
static bool
upkeep_leaves(void)
{
	bool		more;
	bool		good = evbus_upkeep_turn(db, run_alone, false, 0, &more);

	ConditionVariableBroadcast(&db->drained_cv);
	return good;
}

/* Returns whether there is more to be dropped: others are not to wait for it. */
static bool
upkeep_all(void)
{
	bool		more = false;

	(void) attempt(evbus_upkeep_orphans, true);
	if (pg_atomic_read_u32(&db->recovered) && evbus_db_wait_drained(db, 1000))
		(void) evbus_upkeep_turn(db, run_alone, true, DROPS_MAX, &more);
	return more;
}

static void
upkeep_scheduled(void)
{
	evbus_scheduled_look(db);
	evbus_scheduled_trim();
}

static void
upkeep_dedup(void)
{
	evbus_dedup_turn(db);
}

static bool ledger_due;

static void
look_at_ledger(void)
{
	ledger_due = evbus_ledger_due(db);
}

static void
turn_ledger(void)
{
	evbus_ledger_turn(db);
}

/* The subscriptions there are, for the steps below. */
static EvbusSubscription *all_subs;
static int	n_all_subs;

static void
end_replays(void)
{
	evbus_replay_turn(db, all_subs, n_all_subs);
}

static int	breaker_rest;

static void
tell_of_breakers(void)
{
	breaker_rest = evbus_breaker_turn(db, all_subs, n_all_subs);
}

static void
tell_of_memory(void)
{
	evbus_stat_memory_turn(db);
}

static int	health_rest;

static void
tell_of_health(void)
{
	health_rest = evbus_health_turn(db);
}

static void
drop_backlog(void)
{
	evbus_backlog_turn(db, all_subs, n_all_subs);
}

static void
put_behind(void)
{
	evbus_behind_turn(db, all_subs, n_all_subs);
}

static int	n_unindexed;
static int	n_untrained;

/* What there is to do for the indexer. */
static void
look_at_indexes(void)
{
	EvbusLeaf  *leaves;
	int32	   *buses;

	n_unindexed = evbus_history_indexes ? evbus_upkeep_unindexed(db, &leaves) : 0;
	n_untrained = evbus_train_due(db, &buses);
}

/* Free what dropped subscriptions still have in shared memory. */
static void
forget_dropped(void)
{
	for (int slot = 0; slot < evbus_max_subscriptions; slot++)
	{
		int32		id = EVBUS_SUB(db, slot)->subscription_id;

		if (id != 0 && !evbus_subscription_exists(id))
			evbus_cursor_forget(db, slot, id);
	}
}

static bool bus_expired;

static void
expire_bus(void)
{
	bus_expired = evbus_bus_expire(db);
}

static EvbusErrand errand;

static void
do_errand(void)
{
	if (errand.kind == EVBUS_ERRAND_MAKE_BUS)
		evbus_bus_make(errand.name, errand.role);
	else
		evbus_buses_pause(errand.role);
}

/* What others wait for that is committed at once. */
static void
run_errands(void)
{
	EvbusErrand *place;

	while ((place = evbus_errand_take(db, &errand)) != NULL)
	{
		bool		done;

		EVBUS_POINT("maintainer.errand");
		done = attempt(do_errand, true);

		evbus_errand_done(db, place, done ? 0 : failure_code, done ? "" : failure, done ? "" : failure_hint);
	}
}

/* Every subscription is to be in shared memory, and its next retry known, to be notified. */
static void
attach_all(void)
{
	int			n;
	EvbusSubscription *subs = evbus_subscriptions(&n);

	evbus_ledger_attach_all(db, false);
	for (int i = 0; i < n; i++)
		if (pg_atomic_read_u64(&EVBUS_SUB(db, subs[i].slot)->retry_due) == 0)
			(void) evbus_retry_next(db, &subs[i]);
}

static void
leave(int code, Datum arg)
{
	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	if (db->maintainer_pid == MyProcPid)
		db->maintainer_pid = 0;
	LWLockRelease(&evbus_shared->lock);
	evbus_launcher_wake();
}

void
evbus_maintainer_main(Datum main_arg)
{
	MemoryContext context;
	int64		upkeep_at = 0;
	int64		limited_at = 0;
	uint64		generation = 0;
	bool		limited = true;	/* there may be classes with a limit of their size */
	bool		mine = false;

	evbus_worker_connect(EVBUS_PROCESS_MAINTAINER, DatumGetObjectId(main_arg), InvalidOid);
	SetConfigOption("synchronous_commit", "off", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("lock_timeout", "1s", PGC_SUSET, PGC_S_OVERRIDE);
	if (evbus_areas_sweep())
		proc_exit(0);
	StartTransactionCommand();
	if (!evbus_installed())
		proc_exit(0);
	db = evbus_db();
	CommitTransactionCommand();

	before_shmem_exit(leave, (Datum) 0);
	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	if (db->maintainer_pid == 0)
	{
		db->maintainer_procno = EvbusMyProcno();
		db->maintainer_pid = MyProcPid;
		mine = true;
	}
	LWLockRelease(&evbus_shared->lock);
	if (!mine)
		proc_exit(0);
	evbus_errand_again(db);
	context = AllocSetContextCreate(TopMemoryContext, "evbus maintainer", ALLOCSET_DEFAULT_SIZES);
	evbus_process_idle("waiting for work");

	for (;;)
	{
		EvbusSubscription *subs;
		int			n;
		bool		listening = false;
		bool		notified;
		bool		unserved;
		int			rest = IDLE_MS;
		int64		now = evbus_uptime();
		EvbusHome	home;

		evbus_worker_turn();
		MemoryContextReset(context);
		StartTransactionCommand();
		if (evbus_worker_unwanted(db))
			proc_exit(0);
		if (evbus_home() != EVBUS_HOME_HERE)
			evbus_registry_forget();	/* pg_restore tells nobody of its rows */
		home = evbus_home();
		evbus_home_tell(home);
		MemoryContextSwitchTo(context);
		subs = evbus_subscriptions(&n);
		limited = limited || generation != evbus_registry_generation();
		generation = evbus_registry_generation();
		CommitTransactionCommand();
		MemoryContextSwitchTo(context);

		if (pg_atomic_exchange_u32(&db->leaves_wanted, 0))
			(void) upkeep_leaves();
		run_errands();
		MemoryContextSwitchTo(context);
		if (home != EVBUS_HOME_HERE)
		{
			evbus_process_idle("waiting for a bus that is at home here");
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, LIMITED_MS, evbus_wait_event(EVBUS_WAIT_MAINTAINER_MAIN));
			ResetLatch(MyLatch);
			continue;
		}
		/* A shorter interval holds from its reload on. */
		upkeep_at = Min(upkeep_at, TimestampTzPlusMilliseconds(now, evbus_upkeep_interval));
		if (now >= upkeep_at)
		{
			evbus_process_busy("upkeep", 0);
			upkeep_at = TimestampTzPlusMilliseconds(now, evbus_upkeep_interval);
			(void) upkeep_leaves();
			if (pg_atomic_read_u32(&db->ready))
			{
				if (upkeep_all())
					upkeep_at = now;
				(void) run_alone(fold, NULL);
				(void) run_plain(train, NULL);
				(void) attempt(upkeep_scheduled, true);
				(void) attempt(upkeep_dedup, true);
				if (attempt(look_at_ledger, true) && ledger_due)
					(void) attempt(turn_ledger, false);
				(void) attempt(forget_dropped, true);
				(void) attempt(evbus_privilege_sweep, true);
				while (attempt(expire_bus, true) && bus_expired)
					run_errands();
				if (attempt(look_at_indexes, true))
					evbus_indexer_turn(db, n_unindexed, n_untrained);
			}
			MemoryContextSwitchTo(context);
			pgstat_report_stat(true);
			evbus_process_done();
			evbus_process_idle("waiting for work");
			limited = true;		/* perhaps: a bus may have got a limit */
		}
		else if (limited && now >= limited_at && pg_atomic_read_u32(&db->ready))
		{
			limited = evbus_retain_limited(db, run_alone, DROPS_MAX) > 0;
			limited_at = TimestampTzPlusMilliseconds(now, LIMITED_MS);
			MemoryContextSwitchTo(context);
		}

		if (pg_atomic_read_u32(&db->ready))
		{
			evbus_quota_turn(db, run_plain, subs, n);
			evbus_audit_turn(db, run_plain);
			rest = Min(rest, evbus_redrive_turn(db));
			rest = Min(rest, evbus_scheduler_stand_in(db));
			evbus_process_idle("waiting for work");
			MemoryContextSwitchTo(context);
			all_subs = subs;
			n_all_subs = n;
			(void) attempt(drop_backlog, false);
			(void) attempt(put_behind, false);
			(void) attempt(end_replays, false);
			if (attempt(tell_of_breakers, false))
				rest = Min(rest, breaker_rest);
			(void) attempt(tell_of_memory, false);
			MemoryContextSwitchTo(context);
		}
		if (attempt(tell_of_health, false))
			rest = Min(rest, health_rest);
		MemoryContextSwitchTo(context);

		/* Before we look, so that what comes meanwhile wakes us at once. */
		pg_atomic_write_u32(&db->maintainer_sleeps, 1);
		pg_memory_barrier();
		unserved = false;
		notified = false;
		if (pg_atomic_read_u32(&db->ready))
		{
			for (int i = 0; i < n; i++)
				if (!subs[i].has_handler &&
					(!evbus_cursor_loaded(db, &subs[i]) || pg_atomic_read_u64(&EVBUS_SUB(db, subs[i].slot)->retry_due) == 0))
				{
					(void) attempt(attach_all, true);
					break;
				}
			for (int i = 0; i < n; i++)
			{
				bool		listens = !subs[i].has_handler && subs[i].notify && !subs[i].paused;

				listening = listening || listens;
				if (listens || subs[i].has_handler)
					evbus_ring_await(db, subs[i].bus_slot, EVBUS_AWAITED_LATCH);
				evbus_cursor_reap(db, subs[i].slot, GetCurrentTimestamp());
			}
			evbus_stat_sample(db, subs, n);
			unserved = evbus_pool_turn(db, subs, n);
			notified = listening && evbus_notify_turn(db, subs, n);
		}
		/* Once sent, the next notification waits its time; what comes meanwhile is in it. */
		if (notified)
		{
			pg_atomic_write_u32(&db->maintainer_sleeps, 0);
			(void) WaitLatch(MyLatch, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, evbus_notify_interval, evbus_wait_event(EVBUS_WAIT_MAINTAINER_PAUSE));
			continue;
		}
		if (!listening && !unserved)
			pg_atomic_write_u32(&db->maintainer_sleeps, 0);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, rest, evbus_wait_event(EVBUS_WAIT_MAINTAINER_MAIN));
		pg_atomic_write_u32(&db->maintainer_sleeps, 0);
		ResetLatch(MyLatch);
	}
}

/* evbus._status(): one row about the workers and memory of this database. */
Datum
evbus_status(PG_FUNCTION_ARGS)
{
	EvbusDb    *of = evbus_db();
	TupleDesc	desc;
	Datum		values[10];
	bool		nulls[10] = {0};
	int			handlers = 0;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	for (int i = 0; i < evbus_max_handler_workers; i++)
		handlers += evbus_shared->workers[i].dboid == MyDatabaseId && evbus_shared->workers[i].pid != 0;
	values[0] = Int32GetDatum(of->sequencer_pid);
	nulls[0] = of->sequencer_pid == 0;
	values[1] = Int32GetDatum(of->maintainer_pid);
	nulls[1] = of->maintainer_pid == 0;
	values[2] = Int32GetDatum(handlers);
	values[3] = BoolGetDatum(pg_atomic_read_u32(&of->ready) != 0);
	values[4] = Int64GetDatum((int64) EVBUS_RING_BYTES);
	values[5] = Int64GetDatum((int64) (pg_atomic_read_u64(&of->ring_tail) - pg_atomic_read_u64(&of->ring_ticked)));
	values[6] = Int64GetDatum((int64) pg_atomic_read_u64(&of->overflows));
	values[7] = Int32GetDatum(evbus_max_leases);
	values[8] = Int32GetDatum(of->leases_used);
	values[9] = Int64GetDatum((int64) pg_atomic_read_u64(&of->ledger_turn));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
