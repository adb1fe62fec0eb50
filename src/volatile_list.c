/*-------------------------------------------------------------------------
 * volatile_list.c
 *	  The rings of volatile buses (volatile.c) as others see them.
 *-------------------------------------------------------------------------
 */
#include "volatile.h"

#include "cursor.h"
#include "fmgr.h"
#include "funcapi.h"
#include "registry.h"

PG_FUNCTION_INFO_V1(evbus_volatile_state);

/* evbus._volatile_state(): a row for each volatile bus that was used since the start. */
Datum
evbus_volatile_state(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	EvbusDb    *db = evbus_db();
	int			n;
	EvbusSubscription *subs = evbus_subscriptions(&n);

	InitMaterializedSRF(fcinfo, 0);
	/* What was overwritten is counted when the subscription is looked at. */
	for (int i = 0; i < n; i++)
	{
		EvbusCursorState state;

		if (subs[i].is_volatile)
			(void) evbus_cursor_progress(db, &subs[i], &state);
	}
	for (int i = 0; i < evbus_max_volatile_buses; i++)
	{
		EvbusVolatile *v = EVBUS_VOLATILE(db, i);
		int32		bus_id = v->bus_id;
		Datum		values[7];
		bool		nulls[7] = {0};

		if (bus_id == 0)
			continue;
		values[0] = Int32GetDatum(bus_id);
		values[1] = Int64GetDatum((int64) EVBUS_VOLATILE_BYTES);
		values[2] = Int64GetDatum((int64) evbus_volatile_used(db, v, bus_id));
		values[3] = Int64GetDatum((int64) pg_atomic_read_u64(&v->next_position) - (int64) pg_atomic_read_u64(&v->oldest_position));
		values[4] = Int64GetDatum((int64) pg_atomic_read_u64(&v->first_position));
		values[5] = Int64GetDatum((int64) pg_atomic_read_u64(&v->oldest_position));
		values[6] = Int64GetDatum((int64) pg_atomic_read_u64(&v->dropped));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
