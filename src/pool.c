/*-------------------------------------------------------------------------
 * pool.c
 *	  Who gets handler workers: the maintainer's part of the pool.
 *
 * The pool is evbus.max_handler_workers for the whole cluster.  A worker serves
 * all subscriptions of its owner, a batch of each in turn, so one per owner is enough to
 * get on; more are started while they have work and `concurrency` allows.  No subscription
 * may take the whole pool (subscribe.c).
 *
 * Where the pool is full and an owner has no worker, others make room: idle workers at
 * once; of an owner that has several, one after its batch; and one that is its owner's
 * only, after evbus.worker_slice.  A batch of single calls ends with the slice, too
 * (batch.c).  So with N owners that have work and W workers, an owner waits no longer than
 * N / W, rounded up, times slice and the timeout of one call.
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

/* ms; see evbus_pool_give_way(), and batch.c. */
int			evbus_worker_slice = 1000;

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

/* An owner of handlers, at its first subscription. */
typedef struct Owner
{
	Oid			role;
	int			alive;			/* workers of its own */
	int			idle;
	int			wanted;			/* by what has work */
} Owner;

/* Those whose handlers are to be served, palloc'd. */
static Owner *
find_owners(EvbusDb *db, const EvbusSubscription *subs, int n, int *count)
{
	Owner	   *owners = palloc0(sizeof(Owner) * Max(n, 1));
	TimestampTz now = GetCurrentTimestamp();

	*count = 0;
	for (int i = 0; i < n; i++)
	{
		int			o = 0;

		if (!subs[i].has_handler || subs[i].paused)
			continue;
		while (o < *count && owners[o].role != subs[i].owner)
			o++;
		if (o == *count)
			owners[(*count)++].role = subs[i].owner;
		if (evbus_cursor_has_work(db, &subs[i], now))
			owners[o].wanted += subs[i].concurrency;
	}
	for (int w = 0; w < evbus_max_handler_workers; w++)
		for (int o = 0; o < *count && evbus_shared->workers[w].dboid == MyDatabaseId; o++)
			if (evbus_shared->workers[w].owner == owners[o].role)
			{
				owners[o].alive++;
				owners[o].idle += !evbus_shared->workers[w].busy;
			}
	return owners;
}

/* One more worker for an owner, if it can have one; false: the pool is full. */
static bool
serve(EvbusSubscription *subs, int n, const Owner *owner)
{
	int			f = failing_index(owner->role, false);
	const char *why;

	if (f >= 0 && failing[f].not_before > evbus_uptime())
		return true;
	StartTransactionCommand();
	why = evbus_cannot_log_in(owner->role);
	CommitTransactionCommand();
	if (why == NULL && f >= 0 && failing[f].failures >= FAILURES_MAX)
	{
		why = "workers could not log in as the owner, see the server log";
		failing[f].owner = InvalidOid;
	}
	if (why == NULL)
		return start_worker(owner->role);
	pause_all(subs, n, owner->role, why);
	return true;
}

/* Places of the pool that are wanted for owners without a worker, in all databases. */
uint32
evbus_pool_starved(void)
{
	uint32		sum = 0;

	for (int i = 0; i < evbus_max_databases; i++)
		if (OidIsValid(evbus_dbs[i].dboid) && evbus_dbs[i].maintainer_pid != 0)	/* else nobody would use them */
			sum += pg_atomic_read_u32(&evbus_dbs[i].starved);
	return sum;
}

/*
 * For a worker between two rounds: shall it make room for somebody else's?  Where its owner
 * has others, at once; else when it has run for evbus.worker_slice.  No more of them
 * do than are wanted.
 */
bool
evbus_pool_give_way(const EvbusWorker *me)
{
	bool		alone = true;

	if (evbus_pool_starved() == 0)
		return false;
	for (int w = 0; w < evbus_max_handler_workers && alone; w++)
		alone = &evbus_shared->workers[w] == me || evbus_shared->workers[w].dboid != me->dboid ||
			evbus_shared->workers[w].owner != me->owner;
	if (alone && !TimestampDifferenceExceeds(me->started_at, evbus_uptime(), evbus_worker_slice))
		return false;
	/* They stay wanted until they are taken: else who has workers would start another in our place. */
	for (int i = 0; i < evbus_max_databases; i++)
	{
		uint32		given = pg_atomic_read_u32(&evbus_dbs[i].given);

		while (OidIsValid(evbus_dbs[i].dboid) && given < pg_atomic_read_u32(&evbus_dbs[i].starved))
			if (pg_atomic_compare_exchange_u32(&evbus_dbs[i].given, &given, given + 1))
				return true;
	}
	return false;
}

/*
 * Start workers where there is work; in no transaction.  First for owners that have none, by
 * turns; and only if nobody is left without, more of them.  Returns whether some
 * owner of a handler has no worker now, so that new events must wake us.
 */
bool
evbus_pool_turn(EvbusDb *db, EvbusSubscription *subs, int n)
{
	static uint32 first = 0;
	bool		unserved = false;
	uint32		starved = 0;
	uint32		begin;
	int			n_owners;
	Owner	   *owners;

	look_after();
	owners = find_owners(db, subs, n, &n_owners);
	begin = first;
	for (int i = 0; i < n_owners; i++)
	{
		uint32		o = (begin + i) % n_owners;

		if (owners[o].alive > 0)
			continue;
		unserved = true;
		if (owners[o].wanted == 0)
			continue;
		if (!serve(subs, n, &owners[o]))
			starved++;
		else
			first = o + 1;		/* the others come before it the next time */
	}
	pg_atomic_write_u32(&db->starved, starved);
	pg_atomic_write_u32(&db->given, 0);
	for (int o = 0; o < n_owners && evbus_pool_starved() == 0; o++)
		if (owners[o].alive > 0 && owners[o].alive < owners[o].wanted && owners[o].idle == 0)
			(void) serve(subs, n, &owners[o]);
	pfree(owners);
	return unserved;
}
