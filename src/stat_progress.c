/*-------------------------------------------------------------------------
 * stat_progress.c
 *	  Behind the view evbus.stat_progress: what the processes of this database say of long work (progress.c).
 *-------------------------------------------------------------------------
 */
#include "area.h"
#include "progress.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(evbus_progress_state);

static const struct
{
	const char *name;
	const char *unit;
}			phases[] = {
	[EVBUS_PHASE_LEDGER] = {"reading the ledger", "rows"},
	[EVBUS_PHASE_TICKS] = {"reading ticks", "events"},
	[EVBUS_PHASE_PLACING] = {"placing events", "events"},
	[EVBUS_PHASE_REDRIVING] = {"redriving", "dead letters"},
	[EVBUS_PHASE_COLLECTING] = {"collecting samples", "events"},
	[EVBUS_PHASE_TRAINING] = {"training", "samples"},
	[EVBUS_PHASE_TESTING] = {"testing", "samples"},
	[EVBUS_PHASE_INDEXING] = {"building indexes", "leaves"},
	[EVBUS_PHASE_ANALYZING] = {"analyzing", "leaves"}
};

/* evbus._progress_state(): a row for each process of this database that is at something long. */
Datum
evbus_progress_state(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	evbus_require_preload();
	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < EVBUS_BACKENDS; i++)
	{
		EvbusTask	t;
		int64		done;
		Datum		values[8];
		bool		nulls[8] = {0};

		if (!evbus_progress_copy(i, &t) || t.dboid != MyDatabaseId)
			continue;
		done = (int64) pg_atomic_read_u64(&t.done);
		values[0] = Int32GetDatum(t.pid);
		values[1] = CStringGetTextDatum(evbus_work_names[t.work]);
		values[2] = CStringGetTextDatum(t.subject);
		nulls[2] = t.subject[0] == '\0';
		values[3] = TimestampTzGetDatum(t.started_at);
		values[4] = CStringGetTextDatum(phases[t.phase].name);
		values[5] = Int64GetDatum(done);
		nulls[5] = done == EVBUS_UNKNOWN;
		values[6] = Int64GetDatum(t.total);
		nulls[6] = t.total == EVBUS_UNKNOWN;
		values[7] = CStringGetTextDatum(phases[t.phase].unit);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
