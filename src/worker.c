/*-------------------------------------------------------------------------
 * worker.c
 *	  What every worker does first and last, and how workers are sent away.
 *
 * An ERROR ends a worker; whoever started it starts a clean one.  Workers are
 * sent away for what cannot be done while they are connected (DROP DATABASE and
 * its like): they stay away until a time that is renewed while that goes on, so
 * that a crash in between never leaves a database without workers.
 *-------------------------------------------------------------------------
 */
#include "worker.h"

#include "clock.h"
#include "internal.h"
#include "postmaster/interrupt.h"
#include "process.h"
#include "registry.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "wait.h"

#define STOP_WAIT_MS	5000	/* for workers to leave */
#define STOP_SECONDS	10		/* they stay away at most, without word from us */

/* Signals and connection; role InvalidOid is the bootstrap superuser. */
void
evbus_worker_connect(EvbusProcessKind kind, Oid dboid, Oid role)
{
	evbus_process_begin(kind, dboid, role);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);		/* takes effect in CHECK_FOR_INTERRUPTS() */
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(dboid, role, 0);

	/* Whatever ALTER ROLE or ALTER DATABASE says: as a RESET finds it, too. */
	SetConfigOption("default_transaction_isolation", "read committed", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_read_only", "off", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_deferrable", "off", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("lock_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	evbus_no_transaction_timeout();
	SetConfigOption("application_name", MyBgworkerEntry->bgw_type, PGC_USERSET, PGC_S_SESSION);
}

/* To be called once a turn of any worker's loop. */
void
evbus_worker_turn(void)
{
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
	evbus_process_memory(evbus_uptime());
}

/* Shall workers of this database end?  In a transaction; looks at the catalog. */
bool
evbus_worker_unwanted(EvbusDb *db)
{
	if (db->gone || db->stopped_until > evbus_uptime())
		return true;
	if (get_relname_relid("bus", evbus_namespace(true)) == db->bus_relid)
		return false;
	db->gone = true;			/* we saw the extension; now it is another, or none */
	return true;
}

bool
evbus_worker_start(const char *name, const char *type, const char *function, Datum arg,
				   BackgroundWorkerHandle **handle)
{
	BackgroundWorker worker = {0};

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_main_arg = arg;
	worker.bgw_notify_pid = MyProcPid;	/* our latch is set when it comes and goes */
	strlcpy(worker.bgw_name, name, BGW_MAXLEN);
	strlcpy(worker.bgw_type, type, BGW_MAXLEN);
	strlcpy(worker.bgw_library_name, "evbus", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, function, BGW_MAXLEN);
	return RegisterDynamicBackgroundWorker(&worker, handle);
}

static bool
any_worker(Oid dboid, bool tell)
{
	bool		any = false;
	pid_t		pids[4 * EVBUS_MAX_DATABASES + EVBUS_MAX_WORKERS];
	int			n = 0;

	LWLockAcquire(&evbus_shared->lock, LW_SHARED);
	for (int i = 0; i < evbus_max_databases; i++)
		if (evbus_dbs[i].dboid == dboid)
		{
			if (evbus_dbs[i].sequencer_pid)
				pids[n++] = evbus_dbs[i].sequencer_pid;
			if (evbus_dbs[i].maintainer_pid)
				pids[n++] = evbus_dbs[i].maintainer_pid;
			if (evbus_dbs[i].indexer_pid)
				pids[n++] = evbus_dbs[i].indexer_pid;
			if (evbus_dbs[i].scheduler_pid)
				pids[n++] = evbus_dbs[i].scheduler_pid;
			if (tell)
				evbus_dbs[i].stopped_until = TimestampTzPlusMilliseconds(evbus_uptime(), STOP_SECONDS * 1000);
		}
	for (int i = 0; i < evbus_max_handler_workers; i++)
		if (evbus_shared->workers[i].dboid == dboid && evbus_shared->workers[i].pid != 0)
			pids[n++] = evbus_shared->workers[i].pid;
	LWLockRelease(&evbus_shared->lock);
	for (int i = 0; i < n; i++)
	{
		any = true;
		if (tell)
			(void) kill(pids[i], SIGTERM);
	}
	return any;
}

/* Send the workers of a database away and wait until they are gone. */
void
evbus_workers_stop(Oid dboid)
{
	int64		deadline = TimestampTzPlusMilliseconds(evbus_uptime(), STOP_WAIT_MS);

	if (evbus_shared == NULL)
		return;
	(void) any_worker(dboid, true);
	while (any_worker(dboid, false) && evbus_uptime() < deadline)
	{
		(void) WaitLatch(MyLatch, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 10, evbus_wait_event(EVBUS_WAIT_WORKERS_STOP));
		CHECK_FOR_INTERRUPTS();
	}
}

/* They may come back. */
void
evbus_workers_resume(Oid dboid)
{
	if (evbus_shared == NULL)
		return;
	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < evbus_max_databases; i++)
		if (evbus_dbs[i].dboid == dboid)
			evbus_dbs[i].stopped_until = 0;
	LWLockRelease(&evbus_shared->lock);
	evbus_launcher_wake();
}
