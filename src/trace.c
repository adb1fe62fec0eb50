/*-------------------------------------------------------------------------
 * trace.c
 *	  evbus.trace(): the server log tells what happens to the events of one subscription.
 *
 * The log has a line for what changes (a breaker opens, a leaf goes), and none for an event:
 * at a hundred thousand events a second nobody could read it, nor pay for it.  Who asks why
 * one subscription does what it does wants exactly those lines, for a while.  So a trace ends
 * by itself, tells types, positions and errors, never payloads or keys, and no process
 * writes more than LINES_PER_SECOND; what is left out is counted.
 *
 * It is a moment in shared memory, not a setting: it begins at once, also for who is in the
 * middle of a transaction, and ends with the server.  Lines are written when something
 * happens, before the commit: what a transaction did that failed is told as well.
 *-------------------------------------------------------------------------
 */
#include "trace.h"
#include "access/xact.h"

#include "args.h"
#include "audit.h"
#include "clock.h"
#include "commands/dbcommands.h"
#include "fmgr.h"
#include "funcapi.h"
#include "ledger.h"
#include "miscadmin.h"
#include "privilege.h"
#include "utils/timestamp.h"

#define LINES_PER_SECOND	100
#define LINES_AT_ONCE		1000

PG_FUNCTION_INFO_V1(evbus_trace);

static int64 paced_at;			/* by evbus_uptime(): the lines until then are used up */
static int64 left_out;
static char database[NAMEDATALEN];

bool
evbus_trace_on(EvbusDb *db, const EvbusSubscription *sub)
{
	return (int64) pg_atomic_read_u64(&EVBUS_SUB(db, sub->live_slot)->trace_until) > GetCurrentTimestamp();
}

/* When it ends; 0: it is not traced. */
TimestampTz
evbus_trace_until(EvbusDb *db, const EvbusSubscription *sub)
{
	return evbus_traced(db, sub) ? (TimestampTz) pg_atomic_read_u64(&EVBUS_SUB(db, sub->live_slot)->trace_until) : 0;
}

/* May this process write a line?  A token bucket, kept as the moment until which it is used up. */
static bool
may_write(void)
{
	int64		now = evbus_uptime();

	paced_at = Max(paced_at, now - USECS_PER_SEC * LINES_AT_ONCE / LINES_PER_SECOND);
	if (paced_at >= now)
	{
		left_out++;
		return false;
	}
	paced_at += USECS_PER_SEC / LINES_PER_SECOND;
	return true;
}

static void
write_line(const EvbusSubscription *sub, const char *what, int64 id, const char *text)
{
	int64		missing = left_out;

	if (!may_write())
		return;
	left_out = 0;
	/* A worker stays in its database, and log_line_prefix does not know it. */
	if (database[0] == '\0' && IsTransactionState())
	{
		char	   *name = get_database_name(MyDatabaseId);

		strlcpy(database, name ? name : "", sizeof(database));
	}
	ereport(LOG,
			(errmsg("evbus trace of subscription \"%s\" in database \"%s\", %s " INT64_FORMAT ": %s", sub->name, database, what, id, text),
			 missing > 0 ? errdetail("Before it " INT64_FORMAT " lines of this process were left out: no more than %d a second are written.",
									 missing, LINES_PER_SECOND) : 0,
			 errhidestmt(true), errhidecontext(true)));
}

/* The caller has asked whether it is traced. */
void
evbus_trace_event(const EvbusSubscription *sub, int64 event_id, const char *format,...)
{
	StringInfoData text;

	initStringInfo(&text);
	for (;;)
	{
		va_list		args;
		int			needed;

		va_start(args, format);
		needed = appendStringInfoVA(&text, format, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&text, needed);
	}
	write_line(sub, "event", event_id, text.data);
	pfree(text.data);
}

/* Of an event that was not read further. */
void
evbus_trace_position(const EvbusSubscription *sub, int64 position, const char *what)
{
	write_line(sub, "position", position, what);
}

/*
 * evbus.trace(subscription text, duration interval) returns timestamptz
 *
 * Has the server log tell what happens to the events of a subscription, and of its replays, for
 * so long: 0 to 1 day, 0 ends it.  Returns when it ends, NULL if it has ended.  Takes effect at once,
 * whatever becomes of the transaction.  Errors: 22004, 22023, 25006 on a standby,
 * 55000 made in this transaction, VB004, VB009.
 * Privileges: EXECUTE, and owner of the subscription.
 */
Datum
evbus_trace(PG_FUNCTION_ARGS)
{
	EvbusSubscription *sub = evbus_subscription_get(evbus_arg_text(fcinfo, 0, "subscription"), false);
	int64		duration = evbus_arg_interval(fcinfo, 1, "duration", 0, USECS_PER_DAY);
	EvbusDb    *db = evbus_db();
	TimestampTz until = GetCurrentTimestamp() + duration;

	evbus_check_subscription(sub, GetUserId(), EVBUS_OPERATE);
	PreventCommandDuringRecovery("evbus.trace()");
	evbus_db_require_ready(db);
	if (sub->uncommitted && !sub->changed)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" is not committed yet", sub->name),
				 errhint("Commit, and then trace it.")));
	(void) evbus_ledger_attach(db, sub);	/* its place is its own */
	evbus_audit_at_once(fcinfo, "subscription", sub->name);
	pg_atomic_write_u64(&EVBUS_SUB(db, sub->slot)->trace_until, duration > 0 ? (uint64) until : 0);
	if (duration == 0)
	{
		ereport(LOG, (errmsg("evbus no longer traces subscription \"%s\"", sub->name), errhidestmt(true)));
		PG_RETURN_NULL();
	}
	ereport(LOG, (errmsg("evbus traces subscription \"%s\" until %s", sub->name, timestamptz_to_str(until)), errhidestmt(true)));
	PG_RETURN_TIMESTAMPTZ(until);
}
