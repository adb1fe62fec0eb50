/*-------------------------------------------------------------------------
 * indexer.c
 *	  The indexer: a worker that the maintainer starts when closed leaves lack
 *	  their indexes, or buses want dictionaries, and that ends when it has been through them.
 *
 * An index of ten million events takes many seconds, and a dictionary one; the
 * maintainer, which sends notifications and starts handler workers, must not be away
 * for so long.  Each leaf and each bus is a transaction of its own; what fails is logged and tried again, ever
 * more rarely if nothing comes of it (a full disk, a forgotten prepared transaction).
 *-------------------------------------------------------------------------
 */
#include "indexer.h"

#include "access/xact.h"
#include "clock.h"
#include "internal.h"
#include "leafindex.h"
#include "log_due.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "progress.h"
#include "registry.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "train.h"
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

/* Start an indexer if so many leaves lack indexes, or buses want dictionaries, and none runs; in no transaction. */
void
evbus_indexer_turn(EvbusDb *of, int unindexed, int untrained)
{
	static int	last_unindexed = 0;
	int			due = unindexed + untrained;
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
	if (due == 0 || of->indexed != last_indexed || unindexed > last_unindexed)
		rest_ms = 0;			/* it gets on, or there is something new */
	last_unindexed = unindexed;
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
				 errmsg("evbus cannot index closed leaves or train dictionaries now: out of background worker slots"),
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

/* What is at hand failed; the transaction is over. */
static void
log_error(MemoryContext context, const char *leaf)
{
	ErrorData  *edata;
	char	   *in_use;
	int64		left_out;

	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(context);
	edata = CopyErrorData();
	in_use = leaf && edata->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ? psprintf("evbus could not index leaf \"%s\" yet: it is in use", leaf) : NULL;
	if (in_use && evbus_log_due(in_use, &left_out))
		ereport(LOG, (errmsg_internal("%s", in_use)));
	else if (!in_use && evbus_log_error_due(edata))
		EmitErrorReport();
	FlushErrorState();
	AbortOutOfAnyTransaction();
	RESUME_INTERRUPTS();
}

/* One leaf, in a transaction of its own: the i-th of n. */
static void
index_leaf(Oid relid, int i, int n)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *volatile name = NULL;
	int64		start = evbus_uptime();

	PG_TRY();
	{
		bool		done;

		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		name = get_rel_name(relid);
		name = name ? MemoryContextStrdup(context, name) : NULL;
		evbus_progress_begin(EVBUS_WORK_INDEX, name, EVBUS_PHASE_INDEXING, i, n);
		done = evbus_leaf_index(relid);
		PopActiveSnapshot();
		CommitTransactionCommand();
		if (done)
		{
			db->indexed++;
			evbus_process_done();
			ereport(LOG,
					(errmsg("evbus indexed leaf \"%s\" in %.1f s", name, (evbus_uptime() - start) / 1e6)));
		}
	}
	PG_CATCH();
	{
		log_error(context, name ? name : "?");
	}
	PG_END_TRY();
	evbus_progress_end();
	MemoryContextSwitchTo(context);
}

/* One bus that has no dictionary, or an old one. */
static void
train_bus(int32 bus_id)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		EvbusBus	bus;
		bool		done;

		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		if (evbus_bus_by_id(bus_id, &bus))
			evbus_progress_begin(EVBUS_WORK_TRAINING, bus.name, EVBUS_PHASE_COLLECTING, 0, EVBUS_UNKNOWN);
		done = evbus_train_bus(db, bus_id);
		PopActiveSnapshot();
		CommitTransactionCommand();
		db->indexed += done;
		if (done)
			evbus_process_done();
	}
	PG_CATCH();
	{
		log_error(context, NULL);
	}
	PG_END_TRY();
	evbus_progress_end();
	MemoryContextSwitchTo(context);
}

/* Before each piece of work: is it still wanted? */
static void
next_piece(MemoryContext context, const char *what)
{
	evbus_worker_turn();
	StartTransactionCommand();
	if (evbus_worker_unwanted(db))
		proc_exit(0);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	evbus_process_busy(what, 0);
}

void
evbus_indexer_main(Datum main_arg)
{
	MemoryContext context;
	EvbusLeaf  *due;
	int32	   *buses;
	int			n;
	int			n_buses;
	bool		mine;

	evbus_worker_connect(EVBUS_PROCESS_INDEXER, DatumGetObjectId(main_arg), InvalidOid);
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
	n = evbus_history_indexes ? evbus_upkeep_unindexed(db, &due) : 0;
	n_buses = evbus_train_due(db, &buses);
	PopActiveSnapshot();
	CommitTransactionCommand();
	/* Dictionaries first: they take a second, indexes may take minutes. */
	for (int i = 0; i < n_buses; i++)
	{
		next_piece(context, "dictionaries");
		train_bus(buses[i]);
		pgstat_report_stat(true);
	}
	for (int i = 0; i < n; i++)
	{
		next_piece(context, "indexes of closed leaves");
		if (!evbus_history_indexes)
			break;
		index_leaf(due[i].relid, i, n);
		pgstat_report_stat(true);
	}
	proc_exit(0);
}
