/*-------------------------------------------------------------------------
 * backlog.c
 *	  Durable buses with overflow => 'drop_oldest': who is more than max_backlog events
 *	  behind loses the oldest ones that he has not in hand.
 *
 * The maintainer does it, several times a second: so nobody who publishes waits or
 * counts, and a backlog is longer than that by what is published meanwhile.  What
 * is dropped is done, in memory first and then by a row of the ledger.  If that is not
 * committed, a restart brings it back, to be dropped again.  It is counted in
 * evbus.retention_audit, a row an hour.  The events stay in the log until their retention.
 *-------------------------------------------------------------------------
 */
#include "backlog.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "dropped.h"
#include "flow.h"
#include "internal.h"
#include "ledger.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define RANGES_MAX		1000	/* dropped in one transaction */

/* In a transaction. */
static void
count(const EvbusSubscription *sub, int64 dropped)
{
	static const Oid types[] = {TEXTOID, TEXTOID, INT4OID, INT8OID};
	Datum		values[] = {CStringGetTextDatum(sub->bus_name), CStringGetTextDatum(sub->name), Int32GetDatum(sub->subscription_id), Int64GetDatum(dropped)};
	EvbusInternal state;

	evbus_internal_begin(&state);
	if (evbus_sql(NULL, "UPDATE evbus.retention_audit SET events = events + $4, to_time = clock_timestamp()"
				  " WHERE subscription_id = $3 AND cause = 'max_backlog' AND from_time > clock_timestamp() - interval '1 hour'", 4, types, values, NULL, 0) == 0)
		evbus_sql(NULL, "INSERT INTO evbus.retention_audit (bus, subscription, subscription_id, leaf, from_time, to_time, cause, events)"
				  " VALUES ($1, $2, $3, '', clock_timestamp(), clock_timestamp(), 'max_backlog', $4)", 4, types, values, NULL, 0);
	evbus_internal_end(&state);
}

/* False: that was all. */
static bool
drop(EvbusDb *db, const EvbusSubscription *sub, int64 keep)
{
	EvbusRange *ranges = palloc(sizeof(EvbusRange) * RANGES_MAX);
	int64		dropped;
	int			n = evbus_dropped_trim(db, sub, keep, ranges, RANGES_MAX, &dropped);

	if (n == 0)
		return false;
	evbus_ledger_wait_ticked(db, sub, ranges[n - 1].hi);
	evbus_ledger_append(db, sub, ranges, n);
	count(sub, dropped);
	return n == RANGES_MAX;
}

/* For the maintainer, often; in no transaction. */
void
evbus_backlog_turn(EvbusDb *db, const EvbusSubscription *subs, int n)
{
	int			n_buses;
	EvbusBus   *buses;
	bool		any = false;

	StartTransactionCommand();
	buses = evbus_buses(&n_buses);
	for (int b = 0; b < n_buses && !any; b++)
		any = !buses[b].is_volatile && buses[b].overflow == EVBUS_OVERFLOW_DROP;
	for (int i = 0; i < n && any; i++)
		for (int b = 0; b < n_buses; b++)
		{
			int64		limit;

			if (subs[i].bus_id != buses[b].bus_id || subs[i].replay_of != 0 || buses[b].is_volatile ||
				buses[b].overflow != EVBUS_OVERFLOW_DROP || (limit = evbus_flow_limit(db, &buses[b])) == 0)
				continue;
			for (bool more = true; more;)
			{
				MemoryContext context;

				PushActiveSnapshot(GetTransactionSnapshot());
				context = AllocSetContextCreate(CurrentMemoryContext, "evbus backlog", ALLOCSET_DEFAULT_SIZES);
				MemoryContextSwitchTo(context);
				(void) evbus_ledger_attach(db, &subs[i]);
				more = drop(db, &subs[i], limit);
				MemoryContextSwitchTo(CurTransactionContext);
				MemoryContextDelete(context);
				PopActiveSnapshot();
				if (more)
					CommandCounterIncrement();
			}
			break;
		}
	CommitTransactionCommand();
}
