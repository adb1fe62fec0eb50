/*-------------------------------------------------------------------------
 * replay.c
 *	  Events of the past once more, beside the live flow: replay, cancel, and the
 *	  maintainer's part of it.
 *
 * A replay is a subscription without a name (registry.c): a copy of the one it is of,
 * whatever that is altered to, with bounds, types, a rate and a slot of its own.  So it has
 * a frontier, leases, an order and rows in the ledger and in evbus.retry of its own, and
 * nothing that it does touches those of the live flow; a crash resumes it where the
 * ledger says; and its memory is one slot, however many events there are.  Its
 * deliveries go to the same handler, by the workers' turns (handler.c), or to the same
 * clients, by the rule in delivery.c.
 *
 * It has ended when its frontier is at its bound, nothing below it is open, and
 * nothing of it is left in evbus.retry.  Asked in that order: who puts an event there
 * commits before its lease ends.  Then the maintainer moves its row to
 * evbus.replay_log, and the slot is free.  What it gives up on becomes a dead letter
 * of the subscription, so that it can be redriven when the replay is long gone.
 *
 * Retention waits for a replay as for any subscription, once its row is there.  Until
 * then replay() holds a lock on the table of each storage class, without which no
 * leaf is dropped, so what it has found there stays.
 *-------------------------------------------------------------------------
 */
#include "replay.h"

#include "access/xact.h"
#include "args.h"
#include "audit.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "cursor.h"
#include "eventlog.h"
#include "fetch.h"
#include "fmgr.h"
#include "internal.h"
#include "miscadmin.h"
#include "point.h"
#include "position.h"
#include "privilege.h"
#include "storage/lmgr.h"
#include "tick.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(evbus_replay);
PG_FUNCTION_INFO_V1(evbus_cancel_replay);

/* ------------------------------------------------------------ what there is still */

/* Until the end of this transaction no leaf of the log is dropped: for that their tables are locked, too (retain.c). */
static void
hold_log(void)
{
	Oid		   *parents;
	int			n = evbus_class_parents(&parents);

	for (int i = 0; i < n; i++)
		LockRelationOid(parents[i], AccessShareLock);
	pfree(parents);
}

/* The id of the event at a position; 0: it is no longer in the log. */
static int64
event_at(const EvbusSubscription *sub, int64 position)
{
	EvbusSubscription all = *sub;
	EvbusEvent	event;

	all.n_types = 1;
	all.types = "\001#";
	if (evbus_tick_read(sub->bus_id, position, position + 1, &event) == 0)
		return 0;
	evbus_fetch(&all, &event, 1);
	return event.type != NULL ? event.event_id : 0;
}

/*
 * The lowest position in [lo, hi) whose event is still in the log, by halves, and its id;
 * hi, and *id as it was, if there is none.
 */
static int64
by_halves(const EvbusSubscription *sub, int64 lo, int64 hi, int64 *id)
{
	int64		middle = lo;	/* most often it is this one */

	for (; lo < hi; middle = lo + (hi - lo) / 2)
	{
		int64		found;

		CHECK_FOR_INTERRUPTS();
		found = event_at(sub, middle);
		if (found != 0)
		{
			hi = middle;
			*id = found;
		}
		else
			lo = middle + 1;
	}
	return hi;
}

/*
 * The lowest position below next whose event is still in the log, and its id; next
 * if there is none.  Retention takes them from old to new, and ticks a while later; but what
 * committed late, or while the bus was in another class, goes before or after its
 * neighbours.  So behind what is gone we look for more, further and further back.
 */
static int64
oldest_event(const EvbusSubscription *sub, int64 next, int64 *id)
{
	int64		first = evbus_tick_first_position(sub->bus_id);
	int64		oldest;

	*id = 0;
	oldest = by_halves(sub, first, next, id);
	for (int64 step = 1; oldest - step >= first;)
	{
		int64		found = event_at(sub, oldest - step);

		if (found != 0)
		{
			*id = found;
			oldest = by_halves(sub, first, oldest - step, id);
		}
		step = found != 0 ? 1 : step * 2;
	}
	return oldest;
}

/* --------------------------------------------------------------------- verbs */

static void
refuse_gone(const EvbusSubscription *sub, const char *start_from, int64 oldest, int64 id)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("cannot replay bus \"%s\" from %s: the log no longer goes back so far", sub->bus_name, evbus_clip(start_from, strlen(start_from))),
			 id == 0 ? errdetail("It holds no events at all; the next one gets position " INT64_FORMAT ".", oldest)
			 : errdetail("The oldest event it holds has position " INT64_FORMAT " and was published at %s.",
						 oldest, timestamptz_to_str(evbus_clock_to_time(id))),
			 id == 0 ? 0 : errhint("Pass start_from => 'beginning' to replay what there is.")));
}

/* The positions [*start, *stop) that the arguments name; errors if they are not all there. */
static void
read_range(const EvbusSubscription *sub, EvbusDb *db, const char *start_from, const char *stop_at, int64 *start, int64 *stop)
{
	int64		next = evbus_position_now(db, sub->bus_id, sub->bus_slot);
	EvbusPlace	from;
	EvbusPlace	to;
	int64		oldest;
	int64		id;

	evbus_position_find(db, sub->bus_id, sub->bus_slot, start_from, &from);
	evbus_position_find(db, sub->bus_id, sub->bus_slot, stop_at, &to);
	if (to.kind == EVBUS_PLACE_TIME && to.time > GetCurrentTimestamp())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("stop_at must not be in the future"),
				 errhint("Events to come are delivered anyway: replay up to 'now'.")));
	*stop = Min(to.position, next);
	oldest = oldest_event(sub, next, &id);
	if (from.kind == EVBUS_PLACE_POSITION ? from.position < oldest
		: from.kind == EVBUS_PLACE_TIME && oldest > 1 && from.position <= oldest &&
		(id == 0 || from.time < evbus_clock_to_time(id)))
		refuse_gone(sub, start_from, oldest, id);
	*start = Max(from.position, oldest);
	if (*start >= *stop)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there is nothing to replay from %s to %s", evbus_clip(start_from, strlen(start_from)), evbus_clip(stop_at, strlen(stop_at))),
				 errdetail("It would begin at position " INT64_FORMAT " and end before position " INT64_FORMAT ".", *start, *stop),
				 errhint("Pass a start_from that is before stop_at, which is not itself replayed, with events of the bus in between.")));
}

/* A subscription that the caller may replay. */
static EvbusSubscription *
own_subscription(const char *name)
{
	EvbusSubscription *sub = evbus_subscription_get(name, false);

	evbus_check_subscription(sub, GetUserId(), EVBUS_OPERATE);
	return sub;
}

/*
 * evbus.replay(subscription text, start_from text, stop_at text, types text[], rate integer) returns bigint
 *
 * Delivers the events of the subscription's bus from start_from on and before stop_at
 * once more, to its handler or clients, marked as replayed; returns the id of the
 * replay.  start_from, stop_at: as in subscribe(): 'now' (what was committed before
 * the call), 'beginning', a position, a time.  types: patterns, instead of the subscription's own;
 * NULL: those it has.  rate: first deliveries a second, 1 to 1000000; NULL: as many as
 * are asked for.  Takes effect when the caller commits.
 * Errors: 0A000 the bus is volatile, 22004, 22007 not a time, 22023 (also: the range is empty, or the log does not
 * go back so far), 25006, 42501 not the owner, VB004, VB007 no slot left.
 */
Datum
evbus_replay(PG_FUNCTION_ARGS)
{
	static const Oid types[] = {INT4OID, INT4OID, INT8OID, INT8OID, TEXTARRAYOID, INT4OID, TEXTOID};
	char	   *name = evbus_arg_text(fcinfo, 0, "subscription");
	char	   *start_from = evbus_arg_text(fcinfo, 1, "start_from");
	char	   *stop_at = evbus_arg_text(fcinfo, 2, "stop_at");
	EvbusDb    *db = evbus_db();
	EvbusSubscription *sub = own_subscription(name);
	EvbusInternal state;
	Datum		values[7] = {0};
	char		nulls[8] = "       ";
	int			slot;
	int64		start;
	int64		stop;
	int32		id;

	PreventCommandIfReadOnly("evbus.replay()");
	nulls[4] = PG_ARGISNULL(3) ? 'n' : ' ';
	if (!PG_ARGISNULL(3))
	{
		evbus_check_patterns(fcinfo, 3);
		values[4] = PG_GETARG_DATUM(3);
	}
	nulls[5] = PG_ARGISNULL(4) ? 'n' : ' ';
	if (!PG_ARGISNULL(4))
		values[5] = Int32GetDatum(evbus_arg_int(fcinfo, 4, "rate", 1, EVBUS_REPLAY_RATE_MAX));

	LockRelationOid(evbus_relid("subscription"), ShareRowExclusiveLock);	/* as subscribe() does */
	sub = own_subscription(name);
	if (sub->is_volatile)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("bus \"%s\" is volatile: it has no past to be replayed", sub->bus_name),
				 errhint("evbus.seek() moves a subscription to what is still in its ring.")));
	hold_log();
	read_range(sub, db, start_from, stop_at, &start, &stop);
	EVBUS_POINT("replay.found");
	slot = evbus_registry_free_slot("subscription", evbus_max_subscriptions);
	if (slot < 0)
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_TOO_MANY_SUBSCRIPTIONS),
				 errmsg("cannot replay to subscription \"%s\": all %d slots are in use", sub->name, evbus_max_subscriptions),
				 errdetail("A replay takes the slot of a subscription until it has ended."),
				 errhint("Wait for other replays, unsubscribe what is no longer used, or raise evbus.max_subscriptions and restart the server.")));
	values[0] = Int32GetDatum(slot);
	values[1] = Int32GetDatum(sub->subscription_id);
	values[2] = Int64GetDatum(start);
	values[3] = Int64GetDatum(stop);
	values[6] = CStringGetTextDatum(GetUserNameFromId(GetUserId(), false));
	evbus_internal_begin(&state);
	evbus_sql(NULL, "INSERT INTO evbus.replay (replay_id, slot, subscription_id, start_position, stop_position, types, rate, role, created_at)"
			  " VALUES (nextval('evbus.subscription_id_seq'), $1, $2, $3, $4, $5, $6, $7, clock_timestamp()) RETURNING replay_id",
			  7, types, values, nulls, 0);
	id = DatumGetInt32(evbus_column(0, 1, NULL));
	evbus_internal_end(&state);
	evbus_registry_changed();
	evbus_audit(fcinfo, "subscription", sub->name, NULL, evbus_audit_number("replay_id", id));
	PG_RETURN_INT64(id);
}

/* Move the replays that match (replay, subscription or bus; 0: any) to the log; returns how many. */
static int64
end_replays(int32 replay_id, int32 subscription_id, int32 bus_id, const char *how)
{
	static const Oid types[] = {INT4OID, INT4OID, INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(replay_id), Int32GetDatum(subscription_id), Int32GetDatum(bus_id), CStringGetTextDatum(how)};
	EvbusInternal state;
	uint64		n;

	if (replay_id == 0)
		LockRelationOid(evbus_relid("subscription"), RowExclusiveLock); /* a replay() that has begun comes first */
	evbus_internal_begin(&state);
	n = evbus_sql(NULL,
				  "WITH d AS (DELETE FROM evbus.replay r USING evbus.subscription x, evbus.bus b"
				  "  WHERE x.subscription_id = r.subscription_id AND b.bus_id = x.bus_id"
				  "   AND (r.replay_id = $1 OR x.subscription_id = $2 OR b.bus_id = $3)"
				  "  RETURNING r.*, x.subscription, b.bus, x.types AS default_types),"
				  " f AS (DELETE FROM evbus.retry t USING d WHERE t.subscription_id = d.replay_id)"
				  " INSERT INTO evbus.replay_log (replay_id, subscription, bus, start_position, stop_position, types, rate, role, created_at, finished_at, state, done)"
				  " SELECT replay_id, subscription, bus, start_position, stop_position, coalesce(types, default_types), rate, role, created_at, clock_timestamp(), $4,"
				  "  stop_position - start_position - coalesce((SELECT s.undelivered FROM evbus._subscription_state() s WHERE s.subscription_id = d.replay_id), stop_position - start_position)"
				  " FROM d", 4, types, values, NULL, 0);
	evbus_internal_end(&state);
	if (n > 0)
		evbus_registry_changed();
	return (int64) n;
}

/* The subscription, or all of a bus, is about to be dropped: so are their replays, and what these have in evbus.retry. */
void
evbus_replays_end(int32 subscription_id, int32 bus_id)
{
	(void) end_replays(0, subscription_id, bus_id, "cancelled");
}

/*
 * evbus.cancel_replay(replay_id bigint) returns boolean
 *
 * Ends a replay when the caller commits; what it has delivered stays so, what is in
 * hand then ends, and its receipts are stale.  False: it had ended before.
 * Errors: 22004, 25006, 42501 not the owner of the subscription, 42704 no such replay.
 */
Datum
evbus_cancel_replay(PG_FUNCTION_ARGS)
{
	static const Oid types[] = {INT8OID};
	EvbusSubscription *sub = NULL;
	EvbusInternal state;
	Datum		values[1];
	int64		id;
	bool		ended;

	(void) evbus_db();
	evbus_arg_present(fcinfo, 0, "replay_id");
	PreventCommandIfReadOnly("evbus.cancel_replay()");
	id = PG_GETARG_INT64(0);
	if (id > 0 && id <= PG_INT32_MAX)
		sub = evbus_subscription_by_id((int32) id);
	if (sub && sub->replay_of != 0)
	{
		evbus_check_subscription(sub, GetUserId(), EVBUS_OPERATE);
		if (end_replays(sub->subscription_id, 0, 0, "cancelled") > 0)
		{
			evbus_audit(fcinfo, "subscription", sub->name, NULL, NULL);
			PG_RETURN_BOOL(true);
		}
	}
	values[0] = Int64GetDatum(id);
	evbus_internal_begin(&state);
	ended = evbus_sql(NULL, "SELECT 1 FROM evbus.replay_log WHERE replay_id = $1", 1, types, values, NULL, 1) > 0;
	evbus_internal_end(&state);
	if (!ended)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("replay " INT64_FORMAT " does not exist", id),
				 errhint("See the view evbus.replay_list.")));
	PG_RETURN_BOOL(false);
}

/* ------------------------------------------------------------ the maintainer's part */

/* Has a replay given out and settled all it has, as far as memory tells? */
static bool
is_through(EvbusDb *db, const EvbusSubscription *replay)
{
	EvbusCursorState state;
	int64		due = (int64) pg_atomic_read_u64(&EVBUS_SUB(db, replay->slot)->retry_due);

	return evbus_cursor_progress(db, replay, &state) && state.next_position >= replay->stop_position &&
		state.undelivered == 0 && state.in_flight == 0 &&
		(due == PG_INT64_MAX || due <= GetCurrentTimestamp());	/* else a row waits for that */
}

static bool
has_retries(const EvbusSubscription *replay)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(replay->subscription_id)};
	EvbusInternal state;
	bool		found;

	evbus_internal_begin(&state);
	found = evbus_sql(&plan, "SELECT 1 FROM evbus.retry WHERE subscription_id = $1 LIMIT 1", 1, types, values, NULL, 1) > 0;
	evbus_internal_end(&state);
	return found;
}

/* End those that are through; in no transaction.  Their memory is freed as that of any that was dropped, a while later. */
void
evbus_replay_turn(EvbusDb *db, const EvbusSubscription *subs, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (subs[i].replay_of == 0 || !is_through(db, &subs[i]))
			continue;
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		if (!has_retries(&subs[i]))
			(void) end_replays(subs[i].subscription_id, 0, 0, "done");
		PopActiveSnapshot();
		EVBUS_POINT("replay.ending");
		CommitTransactionCommand();
	}
}
