/*-------------------------------------------------------------------------
 * handler_call.c
 *	  Calling a handler: its function, its timeout, and what it may leave behind.
 *
 * The user id is the owner's throughout; evbus's own rows are written by internal.c and
 * leaf.c, never around the handler.  What is at work is noted in memory that
 * outlives the process and the server, before it begins (inflight.c).  The timeout is a
 * cancel of the query; who goes on after that loses the worker.
 *-------------------------------------------------------------------------
 */
#include "handler_call.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "commands/prepare.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "inflight.h"
#include "miscadmin.h"
#include "privilege.h"
#include "process.h"
#include "stat_outbox.h"
#include "storage/lmgr.h"
#include "target.h"
#include "tcop/tcopprot.h"
#include "trace.h"
#include "upkeep.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#define GRACE_MS		2000	/* from the cancel to the end of the worker */

static EvbusDb *db;
static Oid	my_owner;
static MemoryContext batch_context; /* of one batch: batch.c resets it */

static EvbusEvent *in_hand;		/* events claimed */
static int64 running = 0;		/* event in the handler; -1: several */

/* The subscription being served: its function, and the shape of an event. */
static struct
{
	FmgrInfo	fn;
	TupleDesc	desc;
}			target;

static TimeoutId grace_timeout;

/* Look the handler up for what was taken; false: the subscription is paused, and was perhaps before that. */
bool
evbus_call_aim(const EvbusSubscription *sub)
{
	Oid			fn = evbus_handler_function(sub);
	MemoryContext old;

	if (!evbus_subscription_runs(sub))
		return false;
	if (!evbus_may_be_delivered_to(sub))
	{
		evbus_upkeep_pause(sub->subscription_id,
						   psprintf("its owner has no privilege \"subscribe\" on bus \"%s\"", sub->bus_name));
		return false;
	}
	if (!OidIsValid(fn))
	{
		evbus_upkeep_pause(sub->subscription_id,
						   psprintf("handler %s.%s is missing, is now another role's, or may not be executed by the owner of the subscription",
									sub->handler_schema, sub->handler_name));
		return false;
	}
	old = MemoryContextSwitchTo(batch_context);
	fmgr_info_cxt(fn, &target.fn, batch_context);
	target.desc = lookup_rowtype_tupdesc_copy(evbus_event_type(false), -1);
	MemoryContextSwitchTo(old);
	return true;
}

/* ------------------------------------------------------------------ timeout */

static int64 armed_at;
static int64 armed_for;
static int64 called_at;
static TimestampTz called_wall;	/* the same moment */
static int64 failed_after;		/* how long the last call that failed had run */

/* The handler went on after its cancel: end the worker. */
static void
grace_over(void)
{
	kill(MyProcPid, SIGTERM);
}

static void
arm(const EvbusSubscription *sub)
{
	EnableTimeoutParams params[2];
	int			ms = (int) (sub->timeout / 1000);

	params[0].id = STATEMENT_TIMEOUT;
	params[0].type = TMPARAM_AFTER;
	params[0].delay_ms = ms;
	params[1].id = grace_timeout;
	params[1].type = TMPARAM_AFTER;
	params[1].delay_ms = ms + GRACE_MS;
	armed_at = evbus_uptime();
	armed_for = sub->timeout;
	enable_timeouts(params, 2);
}

static void
disarm(void)
{
	DisableTimeoutParams params[2];

	params[0].id = STATEMENT_TIMEOUT;
	params[0].keep_indicator = false;
	params[1].id = grace_timeout;
	params[1].keep_indicator = false;
	disable_timeouts(params, 2);
	QueryCancelPending = false; /* one that came too late is nobody else's */
}

/* ------------------------------------------------------------------ calling */

/* These events are claimed and read. */
void
evbus_call_take(const EvbusSubscription *sub, EvbusEvent *events, int n, bool retry)
{
	in_hand = events;
	/* What a crash of the server takes along does not come again, unless it is a retry. */
	evbus_inflight_take(sub, events, sub->is_volatile && !retry ? 0 : n);
}

/* Their handler, or a trigger at its commit, runs from here on; n = 0: none does. */
static void
note_running(const EvbusEvent *events, int n)
{
	running = n == 1 ? events[0].event_id : n > 1 ? -1 : 0;
	evbus_inflight_run(n > 0 ? events - in_hand : 0, n);
	evbus_process_event(Max(running, 0));
}

/* The events that a call is about to get, or has handled in so many microseconds. */
static void
trace(const EvbusSubscription *sub, const EvbusEvent *events, int n, int64 took)
{
	for (int i = 0; i < n; i++)
	{
		const EvbusEvent *event = &events[i];

		if (took < 0)
			evbus_trace_event(sub, event->event_id, "given to handler %s.%s, type \"%.*s\", position " INT64_FORMAT ", attempt %d", sub->handler_schema, sub->handler_name,
							  event->type_len, event->type, event->position, event->attempt);
		else if (n == 1)
			evbus_trace_event(sub, event->event_id, "handled in %.3f ms", took / 1e3);
		else
			evbus_trace_event(sub, event->event_id, "handled in a call with %d events, %.3f ms", n, took / 1e3);
	}
}

/* Call the handler with one event, or all of them as an array. */
void
evbus_call(const EvbusSubscription *sub, EvbusEvent *events, int n, bool array)
{
	LOCAL_FCINFO(fcinfo, 1);
	Datum		argument;
	int			nest = NewGUCNestLevel();

	PushActiveSnapshot(GetTransactionSnapshot());
	if (array)
	{
		Datum	   *elements = palloc(sizeof(Datum) * n);

		for (int i = 0; i < n; i++)
			elements[i] = HeapTupleGetDatum(evbus_event_tuple(&events[i], sub, target.desc));
		argument = PointerGetDatum(construct_array(elements, n, target.desc->tdtypeid, -1, false, TYPALIGN_DOUBLE));
	}
	else
		argument = HeapTupleGetDatum(evbus_event_tuple(&events[0], sub, target.desc));

	InitFunctionCallInfoData(*fcinfo, &target.fn, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = argument;
	fcinfo->args[0].isnull = false;
	note_running(events, n);
	called_wall = GetCurrentTimestamp();
	for (int i = 0; i < n; i++)
		evbus_stat_delivered(db, sub, &events[i], called_wall);
	if (evbus_traced(db, sub))
		trace(sub, events, n, -1);
	arm(sub);
	called_at = armed_at;
	(void) FunctionCallInvoke(fcinfo);
	disarm();
	evbus_stat_handled(db, sub, evbus_uptime() - called_at);
	if (evbus_traced(db, sub))
		trace(sub, events, n, evbus_uptime() - called_at);
	evbus_process_memory(armed_at);
	AtEOXact_GUC(false, nest);	/* what it SET, roles too, is not for the next event */
	PopActiveSnapshot();
	CommandCounterIncrement();
}

/* The handler as it is to be called for a single event. */
void
evbus_call_one(const EvbusSubscription *sub, EvbusEvent *event)
{
	MemoryContext call_context = AllocSetContextCreate(CurrentMemoryContext, "evbus call", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(call_context);

	evbus_call(sub, event, 1, sub->handler_batch);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(call_context);
	note_running(NULL, 0);		/* not before: what it broke may show only here */
}

/* The last call failed, and what it had counted went with its transaction: count it in this one. */
void
evbus_call_count_failed(const EvbusSubscription *sub, const EvbusEvent *event)
{
	evbus_stat_delivered(db, sub, event, called_wall);
	evbus_stat_handled(db, sub, failed_after);
}

/* Deferred triggers run in here, so the timeout does too. */
void
evbus_call_commit(const EvbusSubscription *sub, const EvbusEvent *events, int n)
{
	note_running(events, n);
	arm(sub);
	CommitTransactionCommand();
	disarm();
	note_running(NULL, 0);
}

void
evbus_call_begin(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(batch_context);
}

/* What went wrong, copied to batch_context; the transaction is still to be aborted, and counts as running. */
ErrorData *
evbus_call_error(void)
{
	ErrorData  *edata;

	HOLD_INTERRUPTS();
	disarm();
	failed_after = running != 0 ? evbus_uptime() - called_at : 0;
	MemoryContextSwitchTo(batch_context);
	edata = CopyErrorData();
	/* Not "statement timeout": that is another setting. */
	if (running != 0 && edata->sqlerrcode == ERRCODE_QUERY_CANCELED && evbus_uptime() - armed_at >= armed_for)
		edata->message = psprintf("the handler took longer than its timeout (" INT64_FORMAT " ms)", armed_for / 1000);
	FlushErrorState();
	RESUME_INTERRUPTS();
	return edata;
}

/*
 * What a handler left in the session must not reach the next batch.  Between
 * transactions; cheap where nothing was left.
 */
void
evbus_call_clean(void)
{
	Oid			temp;
	Oid			temp_toast;

	ResetAllOptions();
	LockReleaseAll(USER_LOCKMETHOD, true);
	GetTempNamespaceState(&temp, &temp_toast);
	if (OidIsValid(temp) || GetUserId() != my_owner || GetSessionUserId() != my_owner)
	{
		StartTransactionCommand();
		SetPGVariable("session_authorization", NIL, false);
		SetPGVariable("role", NIL, false);
		CommitTransactionCommand();
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		if (OidIsValid(temp))
			ResetTempTableNamespace();
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PortalHashTableDeleteAll();
	DropAllPreparedStatements();
}

/* ------------------------------------------------------------------ outside */

/* No handler, nor a trigger at its commit, runs any more. */
void
evbus_call_over(void)
{
	note_running(NULL, 0);
}

/* Which event is in the handler; -1: several, 0: none. */
int64
evbus_call_running(void)
{
	return running;
}

/* Once per worker, connected as the owner; context: what is of one batch goes there. */
void
evbus_call_init(EvbusDb *database, Oid owner, MemoryContext context)
{
	db = database;
	my_owner = owner;
	batch_context = context;
	grace_timeout = RegisterTimeout(USER_TIMEOUT, grace_over);
}
