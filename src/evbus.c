/*-------------------------------------------------------------------------
 * evbus.c
 *	  _PG_init: settings, hooks, the launcher.  No logic but what the hooks need.
 *-------------------------------------------------------------------------
 */
#include "evbus.h"

#include <limits.h>

#include "access/htup_details.h"
#include "access/xact.h"
#include "audit.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "bus_idle.h"
#include "clock.h"
#include "codec.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "dictionary.h"
#include "filter.h"
#include "fmgr.h"
#include "handler.h"
#include "health_tell.h"
#include "home.h"
#include "leafindex.h"
#include "ledger.h"
#include "maintain.h"
#include "nodes/parsenodes.h"
#include "notify.h"
#include "pool.h"
#include "publish.h"
#include "recover.h"
#include "registry.h"
#include "replicated.h"
#include "ring.h"
#include "scheduled.h"
#include "shmem.h"
#include "stat_memory.h"
#include "stat_outbox.h"
#include "tcop/utility.h"
#include "upkeep.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/syscache.h"
#include "worker.h"

PG_MODULE_MAGIC;

int			evbus_max_databases = 4;
int			evbus_max_buses = 64;
int			evbus_max_subscriptions = 256;
int			evbus_max_leases = 32768;
int			evbus_ring_size = 32768;
int			evbus_max_handler_workers = 4;
int			evbus_max_volatile_buses = 4;
int			evbus_volatile_ring_size = 4096;

static ProcessUtility_hook_type prev_utility_hook = NULL;

PGDLLEXPORT void _PG_init(void);

PG_FUNCTION_INFO_V1(evbus_event_time);
PG_FUNCTION_INFO_V1(evbus_time_event);

/* evbus._event_time(bigint) returns timestamptz */
Datum
evbus_event_time(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(evbus_clock_to_time(PG_GETARG_INT64(0)));
}

/* evbus._time_event(timestamptz) returns bigint */
Datum
evbus_time_event(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(evbus_clock_from_time(PG_GETARG_TIMESTAMPTZ(0)));
}

/*
 * As CREATE DATABASE ... TEMPLATE asks (core's have_createdb_privilege() is only
 * exported by the newest minor releases).
 */
static bool
may_copy(Oid dboid, Oid role)
{
	HeapTuple	tuple;
	bool		may = superuser_arg(role);

	if (may)
		return true;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	if (HeapTupleIsValid(tuple))
	{
		may = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	if (!may || evbus_database_ownercheck(dboid, role))
		return may;
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(dboid));
	may = HeapTupleIsValid(tuple) && ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	return may;
}

/* Is this about our own extension, by somebody who may? */
static bool
changes_extension(Node *statement)
{
	Oid			extension;
	bool		ours = false;

	if (IsA(statement, AlterExtensionStmt))
		ours = strcmp(((AlterExtensionStmt *) statement)->extname, "evbus") == 0;
	else if (IsA(statement, DropStmt) && ((DropStmt *) statement)->removeType == OBJECT_EXTENSION)
	{
		ListCell   *lc;

		foreach(lc, ((DropStmt *) statement)->objects)
			ours = ours || strcmp(strVal(lfirst(lc)), "evbus") == 0;
	}
	if (!ours)
		return false;
	extension = get_extension_oid("evbus", true);
	return OidIsValid(extension) && evbus_extension_ownercheck(extension, GetUserId());
}

/* The database whose workers must be away while this runs, or InvalidOid. */
static pg_noinline Oid
needs_quiet(Node *statement, bool outside)
{
	const char *name = NULL;
	Oid			dboid;

	/* Else the maintainer and DROP EXTENSION lock the same tables, each in its order. */
	if (evbus_shared != NULL && changes_extension(statement))
	{
		if (MyBgworkerEntry && strcmp(MyBgworkerEntry->bgw_library_name, "evbus") == 0)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("a handler cannot change extension \"evbus\", which it runs in")));
		return MyDatabaseId;
	}
	if (!outside)
		return InvalidOid;		/* PostgreSQL refuses the others in a transaction block */

	if (IsA(statement, DropdbStmt))
		name = ((DropdbStmt *) statement)->dbname;
	else if (IsA(statement, RenameStmt) && ((RenameStmt *) statement)->renameType == OBJECT_DATABASE)
		name = ((RenameStmt *) statement)->subname;
	else if (IsA(statement, AlterDatabaseStmt))
	{
		ListCell   *lc;

		foreach(lc, ((AlterDatabaseStmt *) statement)->options)
			if (strcmp(((DefElem *) lfirst(lc))->defname, "tablespace") == 0)
				name = ((AlterDatabaseStmt *) statement)->dbname;
	}
	else if (IsA(statement, CreatedbStmt))
	{
		ListCell   *lc;

		name = "template1";
		foreach(lc, ((CreatedbStmt *) statement)->options)
			if (strcmp(((DefElem *) lfirst(lc))->defname, "template") == 0 && ((DefElem *) lfirst(lc))->arg)
				name = defGetString((DefElem *) lfirst(lc));
	}
	dboid = name ? get_database_oid(name, true) : InvalidOid;

	/* Who may not do it shall not send our workers away either. */
	if (OidIsValid(dboid) && !IsA(statement, CreatedbStmt) && !evbus_database_ownercheck(dboid, GetUserId()))
		return InvalidOid;
	if (OidIsValid(dboid) && IsA(statement, CreatedbStmt) && !may_copy(dboid, GetUserId()))
		return InvalidOid;
	return dboid;
}

/*
 * Four kinds concern us: what needs a database without sessions, what changes our
 * extension, what lets logical replication write to tables, and COMMIT PREPARED, whose events the
 * sequencer must hear of before the client is answered.
 */
static void
process_utility(PlannedStmt *pstmt, const char *query, bool read_only_tree, ProcessUtilityContext context,
				ParamListInfo params, QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	Node	   *statement = pstmt->utilityStmt;
	Oid			quiet = needs_quiet(statement, context == PROCESS_UTILITY_TOPLEVEL && !IsTransactionBlock());
	bool		commits_prepared = IsA(statement, TransactionStmt) &&
	((TransactionStmt *) statement)->kind == TRANS_STMT_COMMIT_PREPARED;

	PG_TRY();
	{
		if (OidIsValid(quiet))
			evbus_workers_stop(quiet);
		if (prev_utility_hook)
			prev_utility_hook(pstmt, query, read_only_tree, context, params, env, dest, qc);
		else
			standard_ProcessUtility(pstmt, query, read_only_tree, context, params, env, dest, qc);
	}
	PG_FINALLY();
	{
		if (OidIsValid(quiet))
			evbus_workers_resume(quiet);
	}
	PG_END_TRY();

	if (evbus_subscribes_tables(statement))
		evbus_refuse_replicated();
	if (commits_prepared && evbus_shared != NULL)
		for (int i = 0; i < evbus_max_databases; i++)
			if (evbus_dbs[i].dboid == MyDatabaseId)
			{
				pg_atomic_write_u32(&evbus_dbs[i].late, 1);
				/* It may have redriven or scheduled, too: what is due is to be looked at again, and holds up others. */
				for (int s = 0; s < evbus_max_subscriptions; s++)
				{
					evbus_sub_may_block(EVBUS_SUB(&evbus_dbs[i], s));
					pg_write_barrier();
					pg_atomic_write_u64(&EVBUS_SUB(&evbus_dbs[i], s)->retry_due, 0);
				}
				evbus_scheduled_forget(&evbus_dbs[i]);
				ConditionVariableBroadcast(&evbus_dbs[i].drained_cv);
				evbus_ring_wake(&evbus_dbs[i], true);
			}
}

static void
define_settings(void)
{
	DefineCustomBoolVariable("evbus.auto_create",
							 gettext_noop("Makes a bus when somebody publishes or subscribes to one that does not exist."),
							 gettext_noop("Such a bus has the default settings, and evbus.idle_ttl."),
							 &evbus_auto_create, false, PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.compress_level",
							gettext_noop("Sets how hard zstd tries to make payloads small."),
							gettext_noop("Higher levels take more time; to read takes the same."),
							&evbus_compress_level, 1, 1, 19, PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.compress_threshold",
							gettext_noop("Sets the size from which payloads are compressed with zstd."),
							gettext_noop("-1 turns compression off, with dictionaries too."),
							&evbus_compress_threshold, 2048, -1, INT_MAX, PGC_SUSET, GUC_UNIT_BYTE, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.audit_retention",
							gettext_noop("Sets how long rows of evbus.audit are kept."),
							gettext_noop("They go in leaves of 30 days."),
							&evbus_audit_retention, 365 * 24 * 60, 24 * 60, INT_MAX, PGC_SIGHUP, GUC_UNIT_MIN, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.dead_letter_retention",
							gettext_noop("Sets how long dead letters are kept."),
							gettext_noop("They go in leaves of one day."),
							&evbus_dead_letter_retention, 30 * 24 * 60, 24 * 60, INT_MAX, PGC_SIGHUP, GUC_UNIT_MIN, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.filter_timeout",
							gettext_noop("Sets the processor time that the filter of a subscription may take for one event."),
							gettext_noop("An event for which it takes longer becomes a dead letter."),
							&evbus_filter_timeout, 100, 1, 60000, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.health_interval",
							gettext_noop("Sets the time between two looks at evbus.health()."),
							gettext_noop("A change of level is logged, and sent on channel evbus_alert. 0: nobody looks."),
							&evbus_health_interval, 60, 0, 24 * 3600, PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomBoolVariable("evbus.history_indexes",
							 gettext_noop("Builds indexes by type and key when a leaf of the log is closed."),
							 gettext_noop("They serve evbus.history_page(); off keeps those there are."),
							 &evbus_history_indexes, true, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.idle_ttl",
							gettext_noop("Sets after what time a bus that evbus.auto_create has made is dropped if nobody uses it."),
							NULL,
							&evbus_idle_ttl, 7 * 24 * 3600, 1, INT_MAX, PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.late_after",
							gettext_noop("Sets the age from which an open publisher is no longer waited for by recovery."),
							gettext_noop("Its commit then costs one row more; a larger value makes recovery scan more."),
							&evbus_late_after, 10000, 10, INT_MAX, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.ledger_turn_size",
							gettext_noop("Sets the size of the ledger of acks at which a new one is begun."),
							gettext_noop("A start reads up to three of them."),
							&evbus_ledger_turn_size, 16384, 64, 1024 * 1024, PGC_SIGHUP, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.max_buses",
							gettext_noop("Sets the maximum number of buses in a database."), NULL,
							&evbus_max_buses, 64, 1, 32767, PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.max_databases",
							gettext_noop("Sets the maximum number of databases that use evbus."),
							gettext_noop("Each reserves shared memory for its ring, leases, buses and subscriptions."),
							&evbus_max_databases, 4, 1, EVBUS_MAX_DATABASES, PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.max_handler_workers",
							gettext_noop("Sets the maximum number of workers that call handlers, in all databases together."),
							gettext_noop("They count against max_worker_processes."),
							&evbus_max_handler_workers, 4, 1, EVBUS_MAX_WORKERS, PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.max_leases",
							gettext_noop("Sets the maximum number of deliveries in the hands of clients and workers, per database."), NULL,
							&evbus_max_leases, 32768, 64, 16 * 1024 * 1024, PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.max_subscriptions",
							gettext_noop("Sets the maximum number of subscriptions in a database."), NULL,
							&evbus_max_subscriptions, 256, 1, 32767, PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.max_tracked_types",
							gettext_noop("Sets the maximum number of event types of a database that have counters of their own."),
							gettext_noop("Those that were not seen for long make room for others. 0: none has."),
							&evbus_max_tracked_types, 200, 0, 100000, PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.max_volatile_buses",
							gettext_noop("Sets the maximum number of volatile buses in a database."),
							gettext_noop("Each reserves shared memory for its ring, in every database."),
							&evbus_max_volatile_buses, 4, 0, EVBUS_MAX_VOLATILE, PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.memory_critical",
							gettext_noop("Sets how full an area of shared memory is at level \"critical\", in percent."),
							gettext_noop("The view evbus.stat_memory shows them; a change is logged, and sent on channel evbus_alert."),
							&evbus_memory_critical, 90, 1, 100, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.memory_warn",
							gettext_noop("Sets how full an area of shared memory is at level \"warn\", in percent."),
							NULL,
							&evbus_memory_warn, 70, 1, 100, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.notify_interval",
							gettext_noop("Sets the least time between two notifications of a subscription."), NULL,
							&evbus_notify_interval, 10, 1, 60000, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.ring_size",
							gettext_noop("Sets the size of the ring of fresh events of each database."),
							gettext_noop("Readers further behind than this read from the log."),
							&evbus_ring_size, 32768, 1024, 4 * 1024 * 1024, PGC_POSTMASTER, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomStringVariable("evbus.site",
							   gettext_noop("Sets a name that tells physical copies of a server apart."),
							   gettext_noop("Started under another name than it had, a copy delivers nothing until evbus.take_over() is called."),
							   &evbus_site, "", PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomBoolVariable("evbus.track_statistics",
							 gettext_noop("Counts what is published and delivered, for the views stat_bus, stat_subscription and stat_type."), NULL,
							 &evbus_track_statistics, true, PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.upkeep_interval",
							gettext_noop("Sets the time between two looks at leaves, retention and the ledger."), NULL,
							&evbus_upkeep_interval, 10000, 100, INT_MAX, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.volatile_ring_size",
							gettext_noop("Sets the size of the ring of each volatile bus."),
							gettext_noop("It holds what its subscriptions have not settled, and what open transactions have published to it."),
							&evbus_volatile_ring_size, 4096, 64, 1024 * 1024, PGC_POSTMASTER, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.worker_slice",
							gettext_noop("Sets how long a handler worker goes on before others have their turn."),
							gettext_noop("A call of a handler is not cut short; its timeout bounds that."),
							&evbus_worker_slice, 1000, 10, 3600000, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("evbus.worker_idle_timeout",
							gettext_noop("Sets how long an idle handler worker stays."), NULL,
							&evbus_worker_idle_timeout, 60000, 100, INT_MAX, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	MarkGUCPrefixReserved("evbus");
}

void
_PG_init(void)
{
	BackgroundWorker launcher = {0};

	if (!process_shared_preload_libraries_in_progress)
		return;					/* functions then say what to do, see evbus_db() */

	define_settings();
	evbus_shmem_init();
	evbus_publish_init();
	evbus_stat_outbox_init();
	prev_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;

	if (IsBinaryUpgrade)
		return;
	launcher.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	launcher.bgw_start_time = BgWorkerStart_RecoveryFinished;
	launcher.bgw_restart_time = 1;
	strlcpy(launcher.bgw_name, "evbus launcher", BGW_MAXLEN);
	strlcpy(launcher.bgw_type, "evbus launcher", BGW_MAXLEN);
	strlcpy(launcher.bgw_library_name, "evbus", BGW_MAXLEN);
	strlcpy(launcher.bgw_function_name, "evbus_launcher_main", BGW_MAXLEN);
	RegisterBackgroundWorker(&launcher);
}
