/*-------------------------------------------------------------------------
 * pool.c
 *	  Who gets handler workers: the maintainer's part of the pool.
 *
 * The pool is evbus.max_handler_workers for the whole cluster.  A worker serves
 * all subscriptions of its owner, so one per owner is enough to get on; more are
 * started while they have work and `concurrency` allows.  No subscription may
 * take the whole pool (subscribe.c); where the pool is full and an owner has no
 * worker, idle workers end at once.
 *-------------------------------------------------------------------------
 */
#include "pool.h"

#include "access/xact.h"
#include "clock.h"
#include "cursor.h"
#include "miscadmin.h"
#include "target.h"
#include "upkeep.h"
#include "utils/acl.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "worker.h"

#define LOST_MS			30000	/* a worker that was started and never came */
#define FAILURES_MAX	5		/* starts that fail in a row */

/* Workers that this maintainer started. */
static struct
{
	BackgroundWorkerHandle *handle;
	Oid			owner;
	uint32		generation;
}			started[EVBUS_MAX_WORKERS];

/* Owners whose workers could not log in lately. */
static struct
{
	Oid			owner;
	int			failures;
	int64		not_before;
}			failing[32];

static int64 register_not_before = 0;

static int
failing_index(Oid owner, bool make)
{
	int			unused = 0;

	for (int i = 0; i < (int) lengthof(failing); i++)
	{
		if (failing[i].owner == owner)
			return i;
		if (failing[i].failures <= failing[unused].failures)
			unused = i;
	}
	if (!make)
		return -1;
	failing[unused].owner = owner;
	failing[unused].failures = 0;
	return unused;
}

/* Note which of our workers ended, and how. */
static void
look_after(void)
{
	for (int i = 0; i < evbus_max_handler_workers; i++)
	{
		EvbusWorker *worker = &evbus_shared->workers[i];
		pid_t		pid;
		bool		connected;

		if (started[i].handle == NULL || GetBackgroundWorkerPid(started[i].handle, &pid) != BGWH_STOPPED)
			continue;
		pfree(started[i].handle);
		started[i].handle = NULL;
		LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
		connected = worker->generation != started[i].generation || worker->connected;
		if (worker->generation == started[i].generation && OidIsValid(worker->dboid))
		{
			worker->dboid = InvalidOid;
			worker->pid = 0;
		}
		LWLockRelease(&evbus_shared->lock);
		if (!connected)
		{
			int			f = failing_index(started[i].owner, true);

			failing[f].failures++;
			failing[f].not_before = TimestampTzPlusMilliseconds(evbus_uptime(), 500 * failing[f].failures);
		}
		else
		{
			int			f = failing_index(started[i].owner, false);

			if (f >= 0)
				failing[f].owner = InvalidOid;
		}
	}
}

/* Start one more worker for an owner; false: the pool is full. */
static bool
start_worker(Oid owner)
{
	int			slot = -1;
	int64		now = evbus_uptime();
	char		name[BGW_MAXLEN];

	if (now < register_not_before)
		return true;
	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < evbus_max_handler_workers && slot < 0; i++)
	{
		EvbusWorker *worker = &evbus_shared->workers[i];

		if (OidIsValid(worker->dboid) && worker->pid == 0 && started[i].handle == NULL &&
			TimestampDifferenceExceeds(worker->started_at, now, LOST_MS))
			worker->dboid = InvalidOid; /* whoever started it is gone, and so is it */
		if (OidIsValid(worker->dboid) || started[i].handle != NULL)
			continue;
		slot = i;
		worker->dboid = MyDatabaseId;
		worker->owner = owner;
		worker->pid = 0;
		worker->started_at = now;
		worker->connected = false;
		worker->busy = false;
		worker->generation++;
		started[i].owner = owner;
		started[i].generation = worker->generation;
	}
	LWLockRelease(&evbus_shared->lock);
	if (slot < 0)
		return false;
	snprintf(name, sizeof(name), "evbus handler for role %u in database %u", owner, MyDatabaseId);
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
		bool		ok = evbus_worker_start(name, "evbus handler", "evbus_handler_main", Int32GetDatum(slot), &started[slot].handle);

		MemoryContextSwitchTo(old);
		if (ok)
			return true;
	}
	started[slot].handle = NULL;
	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	evbus_shared->workers[slot].dboid = InvalidOid;
	LWLockRelease(&evbus_shared->lock);
	register_not_before = TimestampTzPlusMilliseconds(now, 5000);
	ereport(WARNING,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("evbus cannot start a handler worker: out of background worker slots"),
			 errhint("Raise max_worker_processes (now %d).", max_worker_processes)));
	return true;
}

static void
pause_all(EvbusSubscription *subs, int n, Oid owner, const char *reason)
{
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	for (int i = 0; i < n; i++)
		if (subs[i].has_handler && subs[i].owner == owner && !subs[i].paused && subs[i].replay_of == 0)
			evbus_upkeep_pause(subs[i].subscription_id, reason);
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/*
 * Start workers where there is work; in no transaction.  Returns whether some
 * owner of a handler has no worker now, so that new events must wake us.
 */
bool
evbus_pool_turn(EvbusDb *db, EvbusSubscription *subs, int n)
{
	int64		now = evbus_uptime();
	bool		unserved = false;
	bool		starved = false;

	look_after();
	for (int i = 0; i < n; i++)
	{
		int			alive = 0;
		int			idle = 0;
		int			wanted = 0;
		int			f;
		const char *why;

		if (!subs[i].has_handler || subs[i].paused)
			continue;
		/* Look at each owner once: at its first subscription. */
		for (int k = 0; k < i && wanted == 0; k++)
			if (subs[k].has_handler && !subs[k].paused && subs[k].owner == subs[i].owner)
				wanted = -1;
		if (wanted < 0)
			continue;
		for (int k = i; k < n; k++)
			if (subs[k].has_handler && !subs[k].paused && subs[k].owner == subs[i].owner &&
				evbus_cursor_has_work(db, &subs[k], GetCurrentTimestamp()))
				wanted += subs[k].concurrency;
		for (int w = 0; w < evbus_max_handler_workers; w++)
			if (evbus_shared->workers[w].dboid == MyDatabaseId && evbus_shared->workers[w].owner == subs[i].owner)
			{
				alive++;
				idle += !evbus_shared->workers[w].busy;
			}
		unserved = unserved || alive == 0;
		if (wanted == 0 || alive >= wanted || idle > 0)
			continue;
		f = failing_index(subs[i].owner, false);
		if (f >= 0 && failing[f].not_before > now)
			continue;
		StartTransactionCommand();
		why = evbus_cannot_log_in(subs[i].owner);
		CommitTransactionCommand();
		if (why == NULL && f >= 0 && failing[f].failures >= FAILURES_MAX)
		{
			why = "workers could not log in as the owner, see the server log";
			failing[f].owner = InvalidOid;
		}
		if (why != NULL)
			pause_all(subs, n, subs[i].owner, why);
		else if (!start_worker(subs[i].owner))
			starved = starved || alive == 0;
	}
	pg_atomic_write_u32(&evbus_shared->starved, starved);
	return unserved;
}
