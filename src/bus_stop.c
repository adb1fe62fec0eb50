/*-------------------------------------------------------------------------
 * bus_stop.c
 *	  Buses stop and go on: pause, resume, stop_all.
 *
 * A paused bus hands out nothing; what is in hand ends.  Who takes deliveries has them in
 * hand first, and then looks whether the bus runs (evbus_subscription_runs()); who stops
 * it commits that first, and then looks what is in hand.  So when nothing is, nothing will be.
 *-------------------------------------------------------------------------
 */
#include "evbus.h"

#include "args.h"
#include "audit.h"
#include "bus_stop.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "cursor.h"
#include "errand.h"
#include "fmgr.h"
#include "funcapi.h"
#include "internal.h"
#include "ledger.h"
#include "miscadmin.h"
#include "privilege.h"
#include "registry.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "wait.h"

#define LOOK_EVERY_MS	10
#define TRIES			10			/* to change a bus that others make and drop again */
#define LEAST_PATIENCE	USECS_PER_SEC
#define ASK_EVERY		USECS_PER_SEC	/* the maintainer, to pause what somebody was changing */

PG_FUNCTION_INFO_V1(evbus_pause_bus);
PG_FUNCTION_INFO_V1(evbus_resume_bus);
PG_FUNCTION_INFO_V1(evbus_stop_all);

static void
set_paused(FunctionCallInfo fcinfo, bool paused)
{
	static const Oid types[] = {INT4OID, BOOLOID};
	EvbusBus	bus;
	EvbusInternal state;
	Datum		values[2];
	uint64		rows = 0;
	Jsonb	   *before = NULL;

	PreventCommandIfReadOnly(paused ? "evbus.pause_bus()" : "evbus.resume_bus()");
	values[1] = BoolGetDatum(paused);
	for (int i = 0; i < TRIES && rows == 0; i++)
	{
		AcceptInvalidationMessages();	/* it was dropped while we waited for its row; is there another? */
		evbus_bus_get(evbus_arg_text(fcinfo, 0, "bus"), &bus);
		evbus_check_bus(&bus, GetUserId(), EVBUS_MANAGE);
		values[0] = Int32GetDatum(bus.bus_id);
		before = evbus_audit_bus(bus.bus_id);
		evbus_internal_begin(&state);
		rows = evbus_sql(NULL, "UPDATE evbus.bus SET paused = $2 WHERE bus_id = $1", 2, types, values, NULL, 0);
		evbus_internal_end(&state);
	}
	if (rows == 0)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access to bus \"%s\" due to concurrent update", bus.name)));
	evbus_registry_changed();
	evbus_audit(fcinfo, "bus", bus.name, before, evbus_audit_bus(bus.bus_id));
}

/*
 * evbus.pause_bus(bus text) returns void: stops its deliveries once the caller
 * commits; what is in flight ends, publishing goes on.  Errors: 22004, 42501, VB001.
 */
Datum
evbus_pause_bus(PG_FUNCTION_ARGS)
{
	set_paused(fcinfo, true);
	PG_RETURN_VOID();
}

/* evbus.resume_bus(bus text) returns void.  Errors: 22004, 42501, VB001. */
Datum
evbus_resume_bus(PG_FUNCTION_ARGS)
{
	set_paused(fcinfo, false);
	PG_RETURN_VOID();
}

/* ------------------------------------------------------------------------ all of them */

/* The maintainer's part, in a transaction: pause the buses that a role manages, but for those that somebody makes or changes just now. */
void
evbus_buses_pause(Oid role)
{
	static const Oid types[] = {TEXTOID};
	StringInfoData ids;
	Datum		value;
	EvbusInternal state;
	bool		any;
	int			n;
	EvbusBus   *buses;

	if (!ConditionalLockRelationOid(evbus_relid("bus"), RowExclusiveLock))
		return;
	initStringInfo(&ids);
	appendStringInfoChar(&ids, '{');
	buses = evbus_buses(&n);
	for (int i = 0; i < n; i++)
		if (evbus_bus_allows(&buses[i], role, EVBUS_MANAGE))
			appendStringInfo(&ids, "%s%d", ids.len > 1 ? "," : "", buses[i].bus_id);
	appendStringInfoChar(&ids, '}');
	value = CStringGetTextDatum(ids.data);
	evbus_internal_begin(&state);
	any = evbus_sql(NULL, "UPDATE evbus.bus SET paused = true WHERE bus_id IN (SELECT bus_id FROM evbus.bus"
					" WHERE NOT paused AND bus_id = ANY ($1::integer[]) FOR UPDATE SKIP LOCKED)", 1, types, &value, NULL, 0) > 0;
	evbus_internal_end(&state);
	if (any)
		evbus_registry_changed();
}

/* What is in hand of a bus. */
static int64
in_flight(EvbusDb *db, int32 bus_id, const EvbusSubscription *subs, int n)
{
	int64		sum = 0;

	for (int i = 0; i < n; i++)
	{
		EvbusCursorState state;

		if (subs[i].bus_id != bus_id)
			continue;
		(void) evbus_ledger_attach(db, &subs[i]);
		if (evbus_cursor_progress(db, &subs[i], &state))
			sum += Max(state.in_flight, state.workers);
	}
	return sum;
}

typedef struct Stop
{
	int			n;
	EvbusBus   *buses;			/* of the caller */
	int64	   *in_flight;
	bool		all;			/* have stopped */
	bool		unpaused;		/* one of them is not even paused */
} Stop;

static void
look(EvbusDb *db, Stop *stop)
{
	int			n_buses;
	int			n_subs;
	EvbusBus   *buses = evbus_buses(&n_buses);
	EvbusSubscription *subs = evbus_subscriptions(&n_subs);

	stop->n = 0;
	stop->buses = buses;
	stop->in_flight = palloc(sizeof(int64) * Max(n_buses, 1));
	stop->all = true;
	stop->unpaused = false;
	for (int i = 0; i < n_buses; i++)
		if (evbus_bus_allows(&buses[i], GetUserId(), EVBUS_MANAGE))
		{
			stop->in_flight[stop->n] = in_flight(db, buses[i].bus_id, subs, n_subs);
			stop->all = stop->all && buses[i].paused && stop->in_flight[stop->n] == 0;
			stop->unpaused = stop->unpaused || !buses[i].paused;
			buses[stop->n++] = buses[i];
		}
}

static bool
was_paused(const EvbusBus *before, int n, int32 bus_id)
{
	for (int i = 0; i < n; i++)
		if (before[i].bus_id == bus_id)
			return before[i].paused;
	return false;
}

/*
 * evbus.stop_all(timeout interval) returns setof record (bus text, stopped boolean, in_flight bigint, paused_before boolean)
 *
 * Pauses all buses that the caller may manage, as evbus.pause_bus() does, but at once, whatever
 * becomes of the caller's transaction; then waits, timeout (0 to 1 day) at most for all of them
 * together, until nothing of theirs is in hand.  A row for each bus: stopped: that is so;
 * in_flight: deliveries that handlers and clients still have; paused_before: the call found it
 * paused, so who undoes the call leaves it so.  A WARNING (55P03) where one could not be
 * paused in that time, as a transaction that is open has made or changed a bus.  Publishing goes on;
 * evbus.resume_bus() undoes it.
 * Errors: 22004, 22023, 25006, VB009 the maintainer does not answer within the timeout (1 second at least).
 * Privileges: EXECUTE.
 */
Datum
evbus_stop_all(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	int64		timeout = evbus_arg_interval(fcinfo, 0, "timeout", 0, USECS_PER_DAY);
	EvbusDb    *db = evbus_db();
	int64		deadline = evbus_uptime() + timeout;
	int64		asked_at;
	int			n_before;
	EvbusBus   *before;
	MemoryContext context;
	MemoryContext old;
	Stop		stop;

	PreventCommandIfReadOnly("evbus.stop_all()");
	PreventCommandDuringRecovery("evbus.stop_all()");
	evbus_db_require_ready(db);
	InitMaterializedSRF(fcinfo, 0);
	evbus_audit_at_once(fcinfo, NULL, NULL);
	before = evbus_buses(&n_before);
	/* Even who does not want to wait for what is in hand has to for the maintainer. */
	evbus_errand_run(db, EVBUS_ERRAND_STOP_ALL, "", Max(timeout, LEAST_PATIENCE));
	asked_at = evbus_uptime();
	context = AllocSetContextCreate(CurrentMemoryContext, "evbus stop", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	for (;;)
	{
		AcceptInvalidationMessages();
		look(db, &stop);
		if (stop.all || evbus_uptime() >= deadline)
			break;
		if (stop.unpaused && evbus_uptime() - asked_at > ASK_EVERY)
		{
			(void) evbus_errand_try(db, EVBUS_ERRAND_STOP_ALL, "", deadline - evbus_uptime());
			asked_at = evbus_uptime();
		}
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Min(LOOK_EVERY_MS, Max((deadline - evbus_uptime()) / 1000, 1)), evbus_wait_event(EVBUS_WAIT_STOP_ALL));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(context);
	}
	if (stop.unpaused)
		ereport(WARNING,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("not all buses could be paused"),
				 errdetail("A transaction that is still open has made or changed a bus."),
				 errhint("Call it again when that has ended, outside of a transaction that has done so itself; see evbus.bus_list.paused.")));
	for (int i = 0; i < stop.n; i++)
	{
		Datum		values[] = {CStringGetTextDatum(stop.buses[i].name), BoolGetDatum(stop.buses[i].paused && stop.in_flight[i] == 0),
		Int64GetDatum(stop.in_flight[i]), BoolGetDatum(was_paused(before, n_before, stop.buses[i].bus_id))};
		bool		nulls[lengthof(values)] = {0};

		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	MemoryContextSwitchTo(old);
	return (Datum) 0;
}
