/*-------------------------------------------------------------------------
 * launcher.c
 *	  The launcher: one per cluster, static.  Sees to it that each database with
 *	  evbus has its sequencer and its maintainer, and a scheduler while it has delayed events.
 *
 * It is connected to no database, so it cannot see extensions: after a start it
 * sends a sequencer into each database once, which ends at once where evbus is
 * not; later, whoever uses evbus first in a database claims an area in shared
 * memory and wakes the launcher.
 *
 *		area:  free -> claimed (area.c) -> gone (dropped) -> free, once nobody is in it
 *-------------------------------------------------------------------------
 */
#include "evbus.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "clock.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "registry.h"
#include "scheduler.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "wait.h"
#include "worker.h"

#define LOOK_MS			1000	/* between two looks at everything */
#define RESTART_MS		500		/* between two starts of one worker */
#define SOON_MS			50
#define UNSEEN_MS		(10 * 60 * 1000)	/* an area whose extension never was committed */

PGDLLEXPORT void evbus_launcher_main(Datum main_arg);

/* A worker that we started. */
typedef struct Child
{
	BackgroundWorkerHandle *handle;
	int64 started_at;
	int64 not_before;
} Child;

static Child sequencers[EVBUS_MAX_DATABASES];
static Child maintainers[EVBUS_MAX_DATABASES];
static Child schedulers[EVBUS_MAX_DATABASES];
static Child probe;
static Oid *databases = NULL;	/* of the last look at pg_database */
static int	n_databases = 0;
static Oid *to_probe;			/* what there was at our start */
static int	n_to_probe;
static int	n_probed = 0;
static int64 warned_at = -60 * USECS_PER_SEC;
static bool look_soon;			/* a worker is to be started in a moment */

static bool
running(Child *child)
{
	pid_t		pid;

	if (child->handle == NULL)
		return false;
	if (GetBackgroundWorkerPid(child->handle, &pid) != BGWH_STOPPED)
		return true;
	pfree(child->handle);
	child->handle = NULL;
	/* At once, but for one that dies as soon as it is started. */
	child->not_before = TimestampTzPlusMilliseconds(child->started_at, RESTART_MS);
	return false;
}

static void
start(Child *child, const char *type, const char *function, Oid dboid)
{
	char		name[BGW_MAXLEN];
	int64		now = evbus_uptime();

	if (now < child->not_before)
	{
		look_soon = true;
		return;
	}
	child->started_at = now;
	snprintf(name, sizeof(name), "%s for database %u", type, dboid);
	if (evbus_worker_start(name, type, function, ObjectIdGetDatum(dboid), &child->handle))
	{
		evbus_process_done();
		return;
	}
	child->handle = NULL;
	child->not_before = TimestampTzPlusMilliseconds(now, LOOK_MS);
	if (TimestampDifferenceExceeds(warned_at, now, 60000))
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("evbus cannot start its workers for database %u: out of background worker slots", dboid),
				 errhint("Raise max_worker_processes (now %d) and restart the server.", max_worker_processes)));
	warned_at = now;
}

/* Which databases there are now. */
static void
list_databases(void)
{
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;
	MemoryContext old = CurrentMemoryContext;
	int			size = 64;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	if (databases)
		pfree(databases);
	databases = MemoryContextAlloc(TopMemoryContext, sizeof(Oid) * size);
	n_databases = 0;
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);

		if (!database->datallowconn)
			continue;
		if (n_databases == size)
			databases = repalloc(databases, sizeof(Oid) * (size *= 2));
		databases[n_databases++] = database->oid;
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
}

static bool
exists(Oid dboid)
{
	for (int i = 0; i < n_databases; i++)
		if (databases[i] == dboid)
			return true;
	return false;
}

static bool
claimed(Oid dboid)
{
	for (int i = 0; i < evbus_max_databases; i++)
		if (evbus_dbs[i].dboid == dboid)
			return true;
	return false;
}

/* Free an area that is gone once no worker and no publisher is in it. */
static void
free_area(int i)
{
	EvbusDb    *db = &evbus_dbs[i];
	bool		busy = db->sequencer_pid != 0 || db->maintainer_pid != 0 || db->indexer_pid != 0 || db->scheduler_pid != 0;

	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	for (int s = 0; s < EVBUS_BACKENDS && !busy; s++)
		busy = pg_atomic_read_u32(&evbus_slots[s].state) != EVBUS_SLOT_IDLE &&
			pg_atomic_read_u32(&evbus_slots[s].db) == (uint32) i;
	for (int w = 0; w < evbus_max_handler_workers && !busy; w++)
		busy = evbus_shared->workers[w].dboid == db->dboid && evbus_shared->workers[w].pid != 0;
	if (!busy)
	{
		db->dboid = InvalidOid;
		db->bus_relid = InvalidOid;
	}
	LWLockRelease(&evbus_shared->lock);
}

/* Was the CREATE EXTENSION of the first user rolled back?  Where we cannot know, wait. */
static bool
rolled_back(EvbusDb *db)
{
	TransactionId xid = db->claimed_xid;

	if (TransactionIdIsValid(xid) && !TransactionIdIsInProgress(xid) && !TransactionIdDidCommit(xid))
		return true;
	return TimestampDifferenceExceeds(db->claimed_at, evbus_uptime(), UNSEEN_MS);
}

static void
look_after(int i)
{
	EvbusDb    *db = &evbus_dbs[i];
	bool		has_sequencer = running(&sequencers[i]) || db->sequencer_pid != 0;
	bool		has_maintainer = running(&maintainers[i]) || db->maintainer_pid != 0;
	bool		has_scheduler = running(&schedulers[i]) || db->scheduler_pid != 0;

	if (!OidIsValid(db->dboid))
		return;
	if (!exists(db->dboid))
	{
		list_databases();		/* it may be younger than our list */
		if (!exists(db->dboid))
			db->gone = true;
	}
	if (pg_atomic_read_u32(&db->ready) == 0 && !has_sequencer && rolled_back(db))
		db->gone = true;
	if (db->gone)
	{
		if (!has_sequencer && !has_maintainer && !has_scheduler)
			free_area(i);
		return;
	}
	if (db->stopped_until > evbus_uptime())
		return;
	if (!has_sequencer)
		start(&sequencers[i], "evbus sequencer", "evbus_sequencer_main", db->dboid);
	if (!has_maintainer)
		start(&maintainers[i], "evbus maintainer", "evbus_maintainer_main", db->dboid);
	if (!has_scheduler && pg_atomic_read_u32(&db->ready) && evbus_scheduler_wanted(db))
		start(&schedulers[i], "evbus scheduler", "evbus_scheduler_main", db->dboid);
}

static void
leave(int code, Datum arg)
{
	evbus_shared->launcher_pid = 0;
}

void
evbus_launcher_main(Datum main_arg)
{
	evbus_process_begin(EVBUS_PROCESS_LAUNCHER, InvalidOid, InvalidOid);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	before_shmem_exit(leave, (Datum) 0);
	evbus_shared->launcher_procno = EvbusMyProcno();
	pg_write_barrier();
	evbus_shared->launcher_pid = MyProcPid;
	list_databases();
	to_probe = databases;
	n_to_probe = n_databases;
	databases = NULL;
	evbus_process_idle("looking after databases");

	for (;;)
	{
		evbus_worker_turn();
		list_databases();
		look_soon = false;

		/* One database after another, so that a thousand of them take few slots. */
		if (!running(&probe))
		{
			while (n_probed < n_to_probe && (claimed(to_probe[n_probed]) || !exists(to_probe[n_probed])))
				n_probed++;
			if (n_probed < n_to_probe)
			{
				probe.not_before = 0;
				start(&probe, "evbus sequencer", "evbus_sequencer_main", to_probe[n_probed]);
				if (probe.handle)
					n_probed++;
			}
		}
		else if (n_probed > 0 && claimed(to_probe[n_probed - 1]))
		{
			pfree(probe.handle);	/* it stays, as that database's sequencer */
			probe.handle = NULL;
		}
		for (int i = 0; i < evbus_max_databases; i++)
			look_after(i);

		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 n_probed < n_to_probe ? 20 : look_soon ? SOON_MS : LOOK_MS, evbus_wait_event(EVBUS_WAIT_LAUNCHER_MAIN));
		ResetLatch(MyLatch);
	}
}
