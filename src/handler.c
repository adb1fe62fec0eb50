/*-------------------------------------------------------------------------
 * handler.c
 *	  The workers that call handlers: each logs in as one owner and serves that
 *	  owner's subscriptions in turn, a batch at a time (batch.c).
 *
 * A worker knows its place in the pool from its argument.  It ends when it has
 * been idle for long, when somebody waits for its place, or when its owner may
 * no longer log in; pool.c starts others as there is work.
 *-------------------------------------------------------------------------
 */
#include "handler.h"

#include "access/xact.h"
#include "batch.h"
#include "breaker.h"
#include "clock.h"
#include "cursor.h"
#include "inflight.h"
#include "internal.h"
#include "ledger.h"
#include "memory.h"
#include "miscadmin.h"
#include "pace.h"
#include "pgstat.h"
#include "pin.h"
#include "registry.h"
#include "ring.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "point.h"
#include "pool.h"
#include "storage/proc.h"
#include "target.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "wait.h"
#include "worker.h"

#define IDLE_STEP_MS	500

/* ms; an idle worker ends after this. */
int			evbus_worker_idle_timeout = 60000;

PGDLLEXPORT void evbus_handler_main(Datum main_arg);

static EvbusDb *db;
static int	my_slot;
static uint32 my_generation;
static Oid	my_owner;
static int32 entered_sub = 0;	/* counted in EvbusSub.workers */
static int	entered_slot = 0;

/* Serve a subscription once; false: there was nothing to do, or enough are at it. */
static bool
serve(const EvbusSubscription *sub)
{
	bool		worked;

	if (!evbus_cursor_has_work(db, sub, GetCurrentTimestamp()))
		return false;
	EVBUS_POINT("handler.turn");
	if (!evbus_cursor_loaded(db, sub))
	{
		EvbusSubscription *now;

		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		/* What has ended meanwhile must not take its place again, which others may have by now. */
		now = evbus_subscription_by_id(sub->subscription_id);
		if (now != NULL && now->epoch == sub->epoch)
			(void) evbus_ledger_attach(db, sub);
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	if (!evbus_cursor_enter(db, sub))
		return false;
	entered_sub = sub->subscription_id;
	entered_slot = sub->slot;
	evbus_shared->workers[my_slot].busy = true;
	evbus_process_busy(psprintf("evbus: %s \"%s\"", sub->replay_of != 0 ? "replay to subscription" : "subscription", sub->name),
					   sub->replay_of != 0 ? sub->replay_of : sub->subscription_id);
	worked = evbus_batch_run(sub);
	if (worked)
		evbus_process_done();
	evbus_shared->workers[my_slot].busy = false;
	evbus_cursor_leave(db, entered_slot, entered_sub);
	entered_sub = 0;
	return worked;
}

static void
leave(int code, Datum arg)
{
	EvbusWorker *me = &evbus_shared->workers[my_slot];

	AbortOutOfAnyTransaction();
	if (db != NULL)
	{
		evbus_batch_abandon();
		if (entered_sub != 0)
			evbus_cursor_leave(db, entered_slot, entered_sub);
	}
	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	if (me->generation == my_generation)
	{
		me->dboid = InvalidOid;
		me->pid = 0;
	}
	LWLockRelease(&evbus_shared->lock);
	/* Our place may be for another database. */
	for (int i = 0; i < evbus_max_databases; i++)
		if (evbus_dbs[i].maintainer_pid != 0 && (&evbus_dbs[i] == db || pg_atomic_read_u32(&evbus_dbs[i].starved) > 0))
			SetLatch(&ProcGlobal->allProcs[evbus_dbs[i].maintainer_procno].procLatch);
}

/* Subscriptions of our owner with a handler, and behind them their replays; remembered until the registry changes. */
static EvbusSubscription *
my_subscriptions(int *count, int *live)
{
	static MemoryContext context = NULL;
	static uint64 generation = 0;
	static EvbusSubscription *mine = NULL;
	static int	n = 0;
	static int	n_live = 0;
	uint64		now = evbus_registry_generation();

	if (mine == NULL || now != generation)
	{
		MemoryContext old;
		EvbusSubscription *all;
		int			total;

		if (context == NULL)
			context = AllocSetContextCreate(TopMemoryContext, "evbus subscriptions", ALLOCSET_DEFAULT_SIZES);
		MemoryContextReset(context);
		old = MemoryContextSwitchTo(context);
		all = evbus_subscriptions(&total);
		mine = palloc(sizeof(EvbusSubscription) * Max(total, 1));
		n = n_live = 0;
		for (int i = 0; i < total; i++)
			if (all[i].has_handler && all[i].owner == my_owner && !all[i].paused)
			{
				mine[n++] = all[i];
				n_live += all[i].replay_of == 0;	/* they come first */
			}
		MemoryContextSwitchTo(old);
		generation = now;
	}
	*count = n;
	*live = n_live;
	return mine;
}

/* How long until a retry or lease of ours, or more of a replay, is due, at most IDLE_STEP_MS. */
static long
idle_ms(EvbusSubscription *subs, int n)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		ms = IDLE_STEP_MS;

	for (int i = 0; i < n; i++)
	{
		int64		due = (int64) pg_atomic_read_u64(&EVBUS_SUB(db, subs[i].slot)->retry_due);
		int64		wait;

		wait = evbus_breaker_wait(db, &subs[i]);
		if (wait > 0)
		{
			ms = Min(ms, wait / 1000 + 1);
			continue;
		}
		if (due != PG_INT64_MAX)
			ms = Min(ms, Max(Max(due - now, evbus_pace_wait(db, &subs[i], true)) / 1000 + 1, 1));
		due = evbus_pace_wait(db, &subs[i], false);
		if (due > 0)
			ms = Min(ms, due / 1000 + 1);
	}
	return (long) ms;
}

void
evbus_handler_main(Datum main_arg)
{
	EvbusWorker *me;
	Oid			dboid;
	int64		idle_since = 0;
	MemoryContext loop_context;
	int			next = 0;
	uint32		next_replay = 0;

	my_slot = DatumGetInt32(main_arg) & 0xffff;
	me = &evbus_shared->workers[my_slot];
	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	dboid = me->dboid;
	my_owner = me->owner;
	my_generation = me->generation;
	if (me->pid == 0)
		me->pid = MyProcPid;
	LWLockRelease(&evbus_shared->lock);
	if (!OidIsValid(dboid) || me->pid != MyProcPid)
		proc_exit(0);
	before_shmem_exit(leave, (Datum) 0);
	evbus_worker_connect(EVBUS_PROCESS_HANDLER, dboid, my_owner);
	me->connected = true;

	loop_context = AllocSetContextCreate(TopMemoryContext, "evbus handler", ALLOCSET_DEFAULT_SIZES);
	StartTransactionCommand();
	if (!evbus_installed())
		proc_exit(0);
	db = evbus_db();
	evbus_pin_init();
	CommitTransactionCommand();
	evbus_batch_init(db, my_owner);
	evbus_inflight_attach(db, my_slot);

	evbus_keep_memory(64 * 1024 * 1024);
	for (;;)
	{
		EvbusSubscription *subs;
		int			n;
		int			live;
		bool		worked = false;
		bool		replayed = false;

		evbus_worker_turn();
		StartTransactionCommand();
		if (evbus_worker_unwanted(db) || evbus_cannot_log_in(my_owner) != NULL)
			proc_exit(0);
		subs = my_subscriptions(&n, &live);
		CommitTransactionCommand();

		/* Then a batch of one replay, however many there are: what is new waits for no more than that. */
		for (int i = 0; i < n && !replayed && pg_atomic_read_u32(&db->ready); i++)
		{
			MemoryContextSwitchTo(loop_context);
			if (i < live)
				worked = serve(&subs[(next + i) % live]) || worked;
			else
				replayed = serve(&subs[live + next_replay++ % (n - live)]);
			if (evbus_shared->workers[my_slot].generation != my_generation)
				proc_exit(1);
		}
		MemoryContextReset(loop_context);
		worked = worked || replayed;
		next = live > 0 ? (next + 1) % live : 0;
		if (worked)
		{
			idle_since = 0;
			if (evbus_pool_give_way(me))
				proc_exit(0);
			continue;
		}

		pgstat_report_stat(false);
		evbus_process_idle("waiting for events");
		if (idle_since == 0)
			idle_since = evbus_uptime();
		if (n == 0 || evbus_pool_starved() > 0 ||
			TimestampDifferenceExceeds(idle_since, evbus_uptime(), evbus_worker_idle_timeout))
			proc_exit(0);

		ConditionVariablePrepareToSleep(&db->drained_cv);
		for (int i = 0; i < n; i++)
			evbus_ring_await(db, subs[i].bus_slot, EVBUS_AWAITED_CV);
		for (int i = 0; i < n && !worked; i++)	/* work may have come before we were listening */
			worked = evbus_cursor_has_work(db, &subs[i], GetCurrentTimestamp()) &&
				EVBUS_SUB(db, subs[i].slot)->workers < subs[i].concurrency;
		if (!worked)
			(void) ConditionVariableTimedSleep(&db->drained_cv, idle_ms(subs, n), evbus_wait_event(EVBUS_WAIT_HANDLER_MAIN));
		ConditionVariableCancelSleep();
	}
}
