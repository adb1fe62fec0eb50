/*-------------------------------------------------------------------------
 * stat_worker.c
 *	  The view evbus.stat_worker: what each process of evbus says of itself (process.c).
 *
 * Which event and subscription of another database a process is at is nobody's business
 * here: their ids mean others in this one.
 *-------------------------------------------------------------------------
 */
#include "area.h"
#include "process.h"

#include "commands/dbcommands.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(evbus_worker_state);

static const char *const states[] = {"starting", "idle", "busy"};

/* A name of the catalog as a value; NULL: what it was of is gone. */
static Datum
name_value(const char *text, bool *isnull)
{
	*isnull = text == NULL;
	return text ? DirectFunctionCall1(namein, CStringGetDatum(text)) : (Datum) 0;
}

/* evbus._worker_state(): a row for each process of evbus in the server. */
Datum
evbus_worker_state(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	evbus_require_preload();
	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < EVBUS_BACKENDS; i++)
	{
		EvbusProcess p;
		bool		ours;
		Datum		values[12];
		bool		nulls[12] = {0};

		if (!evbus_process_copy(i, &p))
			continue;
		ours = p.dboid == MyDatabaseId;
		values[0] = Int32GetDatum(p.pid);
		values[1] = CStringGetTextDatum(evbus_process_kinds[p.kind]);
		values[2] = name_value(OidIsValid(p.dboid) ? get_database_name(p.dboid) : NULL, &nulls[2]);
		values[3] = name_value(GetUserNameFromId(p.owner, true), &nulls[3]);
		values[4] = CStringGetTextDatum(states[p.state]);
		values[5] = Int32GetDatum(p.subscription_id);
		nulls[5] = !ours || p.subscription_id == 0;
		values[6] = Int64GetDatum(p.event_id);
		nulls[6] = !ours || p.event_id == 0;
		values[7] = TimestampTzGetDatum(p.since);
		values[8] = TimestampTzGetDatum(p.started_at);
		values[9] = Int64GetDatum(p.batches);
		values[10] = Int64GetDatum((int64) pg_atomic_read_u64(&p.memory));
		values[11] = Int64GetDatum((int64) Max(pg_atomic_read_u64(&p.memory), pg_atomic_read_u64(&p.memory_high)));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
