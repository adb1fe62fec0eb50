/*-------------------------------------------------------------------------
 * indexer.c
 *	  The indexer: a worker that the maintainer starts when closed leaves lack
 *	  their indexes, and that ends when it has been through them.
 *
 * An index of ten million events takes many seconds, and the maintainer, which
 * sends notifications and starts handler workers, must not be away for so long.
 * Each leaf is a transaction of its own; what fails is logged and tried again, ever
 * more rarely if nothing comes of it (a full disk, a forgotten prepared transaction).
 *-------------------------------------------------------------------------
 */
#include "indexer.h"

#include "access/xact.h"
#include "clock.h"
#include "internal.h"
#include "leafindex.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "registry.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "upkeep.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "worker.h"

#define REST_MAX_MS		300000	/* between two starts that get nothing done */

PGDLLEXPORT void evbus_indexer_main(Datum main_arg);

static EvbusDb *db;

/* ----------------------------------------------------- in the maintainer */

/* Start an indexer if so many leaves lack indexes and none runs; in no transaction. */
void
evbus_indexer_turn(EvbusDb *of, int due)
{
	static BackgroundWorkerHandle *handle = NULL;
	static uint32 last_indexed = 0;
	static int	rest_ms = 0;
	static int64 not_before = 0;
	MemoryContext old;
	pid_t		pid;

	if (handle != NULL && GetBackgroundWorkerPid(handle, &pid) == BGWH_STOPPED)
	{
		pfree(handle);
		handle = NULL;
	}
	if (due == 0 || of->indexed != last_indexed)
		rest_ms = 0;			/* it gets on */
	last_indexed = of->indexed;
	if (due == 0 || handle != NULL || of->indexer_pid != 0 || (rest_ms > 0 && evbus_uptime() < not_before))
		return;
	rest_ms = Min(rest_ms > 0 ? rest_ms * 2 : 1000, REST_MAX_MS);
	not_before = TimestampTzPlusMilliseconds(evbus_uptime(), rest_ms);
	old = MemoryContextSwitchTo(TopMemoryContext);
	if (!evbus_worker_start("evbus indexer", "evbus indexer", "evbus_indexer_main", ObjectIdGetDatum(MyDatabaseId), &handle))
	{
		handle = NULL;
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("evbus cannot index closed leaves now: out of background worker slots"),
				 errhint("Raise max_worker_processes (now %d), or turn evbus.history_indexes off.", max_worker_processes)));
	}
	MemoryContextSwitchTo(old);
}

/* --------------------------------------------------------- in the indexer */

static void
leave(int code, Datum arg)
{
	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	if (db->indexer_pid == MyProcPid)
		db->indexer_pid = 0;
	LWLockRelease(&evbus_shared->lock);
}

/* One leaf, in a transaction of its own. */
static void
index_leaf(Oid relid)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *name;
	int64		start = evbus_uptime();

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	name = get_rel_name(relid);
	name = name ? MemoryContextStrdup(context, name) : NULL;
	PG_TRY();
	{
		bool		done = evbus_leaf_index(relid);

		PopActiveSnapshot();
		CommitTransactionCommand();
		if (done)
		{
			db->indexed++;
			ereport(LOG,
					(errmsg("evbus indexed leaf \"%s\" in %.1f s", name, (evbus_uptime() - start) / 1e6)));
		}
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		if (edata->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE)
			ereport(LOG,
					(errmsg("evbus could not index leaf \"%s\" yet: it is in use", name ? name : "?")));
		else
			EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

void
evbus_indexer_main(Datum main_arg)
{
	MemoryContext context;
	EvbusLeaf  *due;
	int			n;
	bool		mine;

	evbus_worker_connect(DatumGetObjectId(main_arg), InvalidOid);
	SetConfigOption("lock_timeout", "1s", PGC_SUSET, PGC_S_OVERRIDE);
	/* One processor, and no worker slots that handlers may need. */
	SetConfigOption("max_parallel_maintenance_workers", "0", PGC_SUSET, PGC_S_OVERRIDE);
	context = AllocSetContextCreate(TopMemoryContext, "evbus indexer", ALLOCSET_DEFAULT_SIZES);
	StartTransactionCommand();
	if (!evbus_installed())
		proc_exit(0);
	db = evbus_db();
	CommitTransactionCommand();

	before_shmem_exit(leave, (Datum) 0);
	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	mine = db->indexer_pid == 0;
	if (mine)
		db->indexer_pid = MyProcPid;
	LWLockRelease(&evbus_shared->lock);
	if (!mine)
		proc_exit(0);

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(context);
	n = evbus_upkeep_unindexed(db, &due);
	PopActiveSnapshot();
	CommitTransactionCommand();
	for (int i = 0; i < n; i++)
	{
		evbus_worker_turn();
		StartTransactionCommand();
		if (evbus_worker_unwanted(db) || !evbus_history_indexes)
			proc_exit(0);
		CommitTransactionCommand();
		MemoryContextSwitchTo(context);
		pgstat_report_activity(STATE_RUNNING, "indexes of closed leaves");
		index_leaf(due[i].relid);
		pgstat_report_stat(true);
	}
	proc_exit(0);
}
