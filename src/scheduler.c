/*-------------------------------------------------------------------------
 * scheduler.c
 *	  The scheduler: one per database, while it has delayed events.  Publishes them
 *	  when they are due; and evbus.cancel_scheduled().
 *
 * A batch is one transaction: rows of evbus.scheduled are deleted (scheduled.c) and
 * published like any other event, under ids of now, with the id that publish() had
 * returned in the header "scheduledid".  So an event is published once, through every
 * crash, and in the order of due times.
 *
 * What cannot be published keeps nothing else.  Where a batch fails, its rows are published one
 * by one.  The one that fails alone is set aside if it is damaged, for nothing but a hand will
 * mend it: it is due at infinity, and the log says so once.  Any other error may pass, as where
 * a leaf is missing; so the events of that bus are passed over for a while.
 *
 * It does nothing else, because the maintainer, which waits for locks a second at
 * most, may be late by that.  The launcher starts it when somebody commits a delayed event,
 * and it ends when there has been none for a while.  Where no worker slot is left for it,
 * the maintainer stands in.
 *-------------------------------------------------------------------------
 */
#include "scheduler.h"

#include "access/xact.h"
#include "args.h"
#include "audit.h"
#include "clock.h"
#include "flow.h"
#include "fmgr.h"
#include "handler.h"
#include "home.h"
#include "internal.h"
#include "log_due.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "point.h"
#include "publish.h"
#include "registry.h"
#include "scheduled.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "wait.h"
#include "worker.h"

#define SLEEP_MAX_MS	1000	/* somebody may set the clock */
#define NAP_MS			5		/* between two batches, so that they are batches */
#define NOTHING_MS		50		/* after a look that found only what others have, or what is held */
#define FAILED_MS		1000	/* after an error */
#define HELD_USECS		(5 * USECS_PER_SEC)	/* a bus whose event cannot be published just now */
#define BATCH_ROWS		1000
#define STAND_IN_USECS	USECS_PER_SEC	/* so late the maintainer helps */

PGDLLEXPORT void evbus_scheduler_main(Datum main_arg);

PG_FUNCTION_INFO_V1(evbus_cancel_scheduled);

static EvbusDb *db;

/*
 * evbus.cancel_scheduled(id bigint) returns boolean
 *
 * Cancels a delayed event by the id that evbus.publish() returned, when the caller
 * commits.  False: it is published, cancelled, or never was.  Waits for a transaction
 * that is publishing or cancelling it just now.  Errors: 22004, 25006, 42501 scheduled by another
 * role, unless the caller has the rights of the bus's owner.  Privileges: EXECUTE.
 */
Datum
evbus_cancel_scheduled(PG_FUNCTION_ARGS)
{
	EvbusDb    *of = evbus_db();
	bool		deleted;

	evbus_arg_present(fcinfo, 0, "id");
	PreventCommandIfReadOnly("evbus.cancel_scheduled()");
	PreventCommandDuringRecovery("evbus.cancel_scheduled()");
	deleted = evbus_scheduled_delete(of, PG_GETARG_INT64(0));
	if (deleted)
		evbus_audit(fcinfo, NULL, NULL, NULL, NULL);
	PG_RETURN_BOOL(deleted);
}

/* ---------------------------------------------------------------- one batch */

/* The headers of an event that was scheduled under this id, with that added. */
static const EvbusHeaders *
with_id(EvbusHeaders *headers, int64 scheduled_id)
{
	char	   *text = psprintf("{\"scheduledid\": \"" INT64_FORMAT "\"}", scheduled_id);
	Datum		id = DirectFunctionCall1(jsonb_in, CStringGetDatum(text));

	headers->json = DatumGetJsonbP(headers->json ? DirectFunctionCall2(jsonb_concat, JsonbPGetDatum(headers->json), id) : id);
	return headers;
}

/* Publish a batch of what is due, in a transaction; returns how many it took. */
static int
publish_due(EvbusDb *of, int max)
{
	EvbusDue   *due;
	EvbusBus	bus = {0};
	int			n = evbus_scheduled_take(of, GetCurrentTimestamp(), max, &due);

	for (int i = 0; i < n; i++)
	{
		/* Of a bus that was dropped meanwhile there is nothing left to do. */
		if (due[i].bus_id != bus.bus_id)
		{
			if (!evbus_bus_by_id(due[i].bus_id, &bus))
				continue;
			(void) evbus_publish_prepare(bus.name, "evbus.publish()", GetUserId(), 0, &bus);
		}
		if (due[i].bus_id != bus.bus_id)
			continue;			/* and now there is another of its name */
		evbus_flow_due(of, &bus, 1);
		evbus_publish_add(&bus, evbus_clock_take(&of->clock, 1), due[i].type, due[i].key,
						  with_id(&due[i].headers, due[i].scheduled_id), due[i].payload);
	}
	return n;
}

/* Will a row fail with this for ever?  What else is damaged, such as a leaf of the log, is not its fault. */
static bool
for_good(const EvbusScheduledRow *row, int code)
{
	return (row->unread && code == ERRCODE_DATA_CORRUPTED) ||
		ERRCODE_TO_CATEGORY(code) == ERRCODE_DATA_EXCEPTION || code == ERRCODE_PROGRAM_LIMIT_EXCEEDED;
}

/* The bus of a row is full: so it waits. */
static void
tell_held(const EvbusScheduledRow *row, const ErrorData *edata)
{
	char		what[64];
	int64		left_out;

	evbus_scheduled_hold(row->bus_id, HELD_USECS);
	snprintf(what, sizeof(what), "bus %d waits", row->bus_id);
	if (!evbus_log_due(what, &left_out))
		return;
	ereport(LOG,
			(errcode(edata->sqlerrcode),
			 errmsg("delayed event " INT64_FORMAT " is due and waits: %s", row->id, edata->message),
			 edata->detail ? errdetail("%s", edata->detail) : 0));
}

/* A row could not be published, alone: see to it that the others can.  Outside of a transaction. */
static void
set_aside(const EvbusScheduledRow *row, ErrorData *edata)
{
	MemoryContext context = CurrentMemoryContext;
	char		what[64];
	int64		left_out;

	if (edata->sqlerrcode == ERRCODE_EVBUS_FULL)
	{
		tell_held(row, edata);
		return;
	}
	if (!for_good(row, edata->sqlerrcode))
		ThrowErrorData(edata);
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	evbus_scheduled_set_aside(row->id);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	snprintf(what, sizeof(what), "bus %d sets aside for %d", row->bus_id, edata->sqlerrcode);
	if (!evbus_log_due(what, &left_out))
		return;
	ereport(LOG,
			(errcode(edata->sqlerrcode),
			 errmsg("delayed event " INT64_FORMAT " cannot be published and is set aside: %s", row->id, edata->message),
			 left_out > 0 ? errdetail("So are " INT64_FORMAT " others of its bus since the last such line.", left_out) : 0,
			 errhint("Its row in evbus.scheduled is due at infinity. Mend it and set due_at, or call evbus.cancel_scheduled(" INT64_FORMAT ").", row->id)));
}

/* The same; what is not for ever, or fails here, is reported, and holds up the events of that bus. */
static void
publish_failed(ErrorData *edata)
{
	MemoryContext context = CurrentMemoryContext;
	EvbusScheduledRow row = evbus_scheduled_last();

	PG_TRY();
	{
		if (row.id == 0)
			ThrowErrorData(edata);
		set_aside(&row, edata);
	}
	PG_CATCH();
	{
		ErrorData  *again;

		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(context);
		again = CopyErrorData();
		if (evbus_log_error_due(again))
			EmitErrorReport();
		FreeErrorData(again);
		FlushErrorState();
		AbortOutOfAnyTransaction();
		if (row.id != 0)
			evbus_scheduled_hold(row.bus_id, HELD_USECS);
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

/* Publish what is due, if anything is; outside of a transaction.  Returns in how many ms to come again. */
static int
turn(EvbusDb *of)
{
	static int	alone = 0;		/* so many are still published one by one, as a batch of them failed */
	MemoryContext context = CurrentMemoryContext;
	TimestampTz now = GetCurrentTimestamp();
	ErrorData  *volatile failed = NULL;
	volatile int n = 0;
	int			wait = NAP_MS;
	TimestampTz next;

	if (evbus_scheduled_next(of) <= now)
	{
		evbus_process_busy("publishing what is due", 0);
		PG_TRY();
		{
			StartTransactionCommand();
			PushActiveSnapshot(GetTransactionSnapshot());
			n = publish_due(of, alone > 0 ? 1 : BATCH_ROWS);
			PopActiveSnapshot();
			EVBUS_POINT("scheduler.publishing");
			CommitTransactionCommand();
			evbus_scheduled_end(of, true);
			if (n > 0)
				evbus_process_done();
			EVBUS_POINT("scheduler.published");
		}
		PG_CATCH();
		{
			HOLD_INTERRUPTS();
			MemoryContextSwitchTo(context);
			failed = CopyErrorData();
			FlushErrorState();
			AbortOutOfAnyTransaction();
			evbus_scheduled_end(of, false);
			RESUME_INTERRUPTS();
		}
		PG_END_TRY();
		MemoryContextSwitchTo(context);
		if (failed && alone > 0)
			publish_failed(failed);
		if (failed && evbus_scheduled_last().id == 0)
			return FAILED_MS;	/* not the fault of a row */
		if (failed && alone == 0)
			alone = BATCH_ROWS;
		else if (alone > 0)
			alone = failed || n > 0 ? alone - 1 : 0;
		wait = alone > 0 ? 0 : n == 0 ? NOTHING_MS : NAP_MS;
		pgstat_report_stat(false);
		now = GetCurrentTimestamp();
	}
	next = evbus_scheduled_next(of);
	if (next == PG_INT64_MAX || next - now >= SLEEP_MAX_MS * INT64CONST(1000))
		return SLEEP_MAX_MS;
	return next <= now ? wait : Max((int) ((next - now + 999) / 1000), wait);
}

/* For the launcher: are there delayed events that somebody knows of? */
bool
evbus_scheduler_wanted(EvbusDb *of)
{
	TimestampTz next = evbus_scheduled_next(of);

	return next > 0 && next < PG_INT64_MAX;
}

/*
 * For the maintainer, outside of a transaction: where nobody knows whether there are
 * delayed events, see; and where no scheduler could be started, publish what is overdue.
 * Returns in how many ms to come again, at most.
 */
int
evbus_scheduler_stand_in(EvbusDb *of)
{
	TimestampTz next = evbus_scheduled_next(of);
	int			wait;

	if (of->scheduler_pid != 0 || (next > 0 && next > GetCurrentTimestamp() - STAND_IN_USECS))
		return SLEEP_MAX_MS;
	wait = turn(of);
	if (evbus_scheduler_wanted(of))
		evbus_launcher_wake();
	return wait;
}

/* --------------------------------------------------------------- the worker */

static void
leave(int code, Datum arg)
{
	evbus_scheduled_end(db, false);
	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	if (db->scheduler_pid == MyProcPid)
		db->scheduler_pid = 0;
	LWLockRelease(&evbus_shared->lock);
	evbus_launcher_wake();
}

void
evbus_scheduler_main(Datum main_arg)
{
	MemoryContext context;
	int64		idle_since = 0;
	bool		mine;

	evbus_worker_connect(EVBUS_PROCESS_SCHEDULER, DatumGetObjectId(main_arg), InvalidOid);
	/* A crash that undoes what it published undoes the deletion, too, and who received it flushed both. */
	SetConfigOption("synchronous_commit", "off", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("lock_timeout", "1s", PGC_SUSET, PGC_S_OVERRIDE);
	StartTransactionCommand();
	if (!evbus_installed())
		proc_exit(0);
	db = evbus_db();
	CommitTransactionCommand();

	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	mine = db->scheduler_pid == 0;
	if (mine)
	{
		pg_atomic_write_u64(&db->scheduler_until, 0);
		db->scheduler_procno = EvbusMyProcno();
		pg_write_barrier();
		db->scheduler_pid = MyProcPid;
	}
	LWLockRelease(&evbus_shared->lock);
	if (!mine)
		proc_exit(0);
	before_shmem_exit(leave, (Datum) 0);
	context = AllocSetContextCreate(TopMemoryContext, "evbus scheduler", ALLOCSET_DEFAULT_SIZES);
	evbus_process_idle("waiting for what is due");

	for (;;)
	{
		TimestampTz next;
		int			wait;

		evbus_worker_turn();
		MemoryContextReset(context);
		StartTransactionCommand();
		if (evbus_worker_unwanted(db) || evbus_home() != EVBUS_HOME_HERE)
			proc_exit(0);
		CommitTransactionCommand();
		MemoryContextSwitchTo(context);
		wait = turn(db);
		evbus_process_idle("waiting for what is due");

		next = evbus_scheduled_next(db);
		if (next != PG_INT64_MAX)
			idle_since = 0;
		else if (idle_since == 0)
			idle_since = evbus_uptime();
		else if (TimestampDifferenceExceeds(idle_since, evbus_uptime(), evbus_worker_idle_timeout))
			proc_exit(0);

		/* Say until when we sleep, then look once more: a publisher lowers a bound, then looks at that. */
		pg_atomic_write_u64(&db->scheduler_until, (uint64) next);
		pg_memory_barrier();
		if (evbus_scheduled_next(db) >= next)
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, wait, evbus_wait_event(EVBUS_WAIT_SCHEDULER_MAIN));
		pg_atomic_write_u64(&db->scheduler_until, 0);
		ResetLatch(MyLatch);
	}
}
