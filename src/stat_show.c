/*-------------------------------------------------------------------------
 * stat_show.c
 *	  Statistics as SQL sees them: for each thing that is counted a row since the last
 *	  reset, and one for each window of time.
 *
 * To read them costs what there is to show, however much was counted.  The views put names
 * to the ids, and leave out what is gone.
 *-------------------------------------------------------------------------
 */
#include "stat_show.h"

#include "args.h"
#include "audit.h"
#include "clock.h"
#include "cursor.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "stat_memory.h"
#include "stat_outbox.h"
#include "utils/builtins.h"
#include "utils/float.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(evbus_stat_bus);
PG_FUNCTION_INFO_V1(evbus_stat_subscription);
PG_FUNCTION_INFO_V1(evbus_stat_type);
PG_FUNCTION_INFO_V1(evbus_stat_minutes);
PG_FUNCTION_INFO_V1(evbus_stat_times_sql);
PG_FUNCTION_INFO_V1(evbus_position_age);
PG_FUNCTION_INFO_V1(evbus_stat_reset);
PG_FUNCTION_INFO_V1(evbus_check_ages);

#define TOTAL		(-1)		/* no window: since the last reset */

static const int64 lengths[EVBUS_STAT_WINDOWS] = {USECS_PER_MINUTE, 5 * USECS_PER_MINUTE, USECS_PER_HOUR};

static Datum
interval_of(int64 us)
{
	Interval   *interval = palloc0(sizeof(Interval));

	interval->time = us;
	return IntervalPGetDatum(interval);
}

/* The first columns of all: window and seconds, of a window; returns its counters. */
static const int64 *
window_values(const EvbusStatRead *read, int window, Datum *values, bool *nulls)
{
	nulls[0] = nulls[1] = window == TOTAL;
	if (window != TOTAL)
	{
		values[0] = interval_of(lengths[window]);
		values[1] = Float8GetDatum(read->windows[window].seconds);
	}
	return window == TOTAL ? read->total : read->windows[window].n;
}

/* The last columns of all: the moments. */
static void
moments(const EvbusStatRead *read, TimestampTz reset_at, Datum *values, bool *nulls)
{
	values[0] = TimestampTzGetDatum(read->last_at);
	nulls[0] = read->last_at == 0;
	values[1] = TimestampTzGetDatum(reset_at);
}

/* ------------------------------------------------------------------- buses */

/* evbus._stat_bus(): of each bus. */
Datum
evbus_stat_bus(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	EvbusDb    *db = evbus_db();
	TimestampTz reset_at;
	int64		since = evbus_stats_since(db, &reset_at);
	int			n_buses;
	const EvbusBus *buses = evbus_buses(&n_buses);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < n_buses; i++)
	{
		EvbusStatRead read;
		int32		id = buses[i].bus_id;

		evbus_stat_read(EVBUS_STAT_BUS(db, buses[i].slot), id, since, &read);
		for (int w = TOTAL; w < EVBUS_STAT_WINDOWS; w++)
		{
			Datum		values[10];
			bool		nulls[10] = {0};
			const int64 *n = window_values(&read, w, values + 1, nulls + 1);

			values[0] = Int32GetDatum(id);
			values[3] = Int64GetDatum(n[EVBUS_STAT_EVENTS]);
			values[4] = Int64GetDatum(n[EVBUS_STAT_BYTES]);
			values[5] = Int64GetDatum(n[EVBUS_STAT_TRANSACTIONS]);
			values[6] = Int64GetDatum(n[EVBUS_STAT_FAILED]);
			values[7] = Int64GetDatum(n[EVBUS_STAT_DEAD]);
			moments(&read, reset_at, values + 8, nulls + 8);
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		}
	}
	return (Datum) 0;
}

/* ----------------------------------------------------------- subscriptions */

/* Three percentiles of a window, or of all times. */
static void
percentiles(EvbusDb *db, int slot, int32 id, EvbusStatTime of, int window, Datum *values, bool *nulls)
{
	static const double shares[] = {0.50, 0.95, 0.99};
	uint64		counts[EVBUS_HISTOGRAM_BUCKETS];
	int64		sum;

	evbus_stat_read_times(EVBUS_STAT_SUB(db, slot), id, of, window, counts, &sum);
	for (int i = 0; i < lengthof(shares); i++)
	{
		int64		us = evbus_histogram_percentile(counts, shares[i]);

		nulls[i] = us < 0;
		if (us >= 0)
			values[i] = interval_of(us);
	}
}

/* evbus._stat_subscription(): of each subscription. */
Datum
evbus_stat_subscription(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	EvbusDb    *db = evbus_db();
	TimestampTz reset_at;
	int64		since = evbus_stats_since(db, &reset_at);
	int			n_subs;
	const EvbusSubscription *subs = evbus_subscriptions(&n_subs);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < n_subs; i++)
	{
		EvbusStatRead read;
		int32		id = subs[i].subscription_id;
		int			slot = subs[i].slot;

		if (subs[i].replay_of != 0)
			continue;			/* counts as what it is of */
		evbus_stat_read(EVBUS_STAT_SUB(db, slot), id, since, &read);
		for (int w = TOTAL; w < EVBUS_STAT_WINDOWS; w++)
		{
			Datum		values[19];
			bool		nulls[19] = {0};
			const int64 *n = window_values(&read, w, values + 1, nulls + 1);

			values[0] = Int32GetDatum(id);
			values[3] = Int64GetDatum(n[EVBUS_STAT_EVENTS]);
			values[4] = Int64GetDatum(n[EVBUS_STAT_BYTES]);
			values[5] = Int64GetDatum(n[EVBUS_STAT_DONE]);
			values[6] = Int64GetDatum(n[EVBUS_STAT_FAILED]);
			values[7] = Int64GetDatum(n[EVBUS_STAT_DEAD]);
			values[8] = Int64GetDatum(n[EVBUS_STAT_RAN_OUT]);
			nulls[9] = nulls[10] = w != EVBUS_WINDOW_MINUTE || read.lag < 0;
			values[9] = Int64GetDatum(read.lag);
			values[10] = Float8GetDatum(read.lag_seconds);
			percentiles(db, slot, id, EVBUS_TIME_LATENCY, w, values + 11, nulls + 11);
			percentiles(db, slot, id, EVBUS_TIME_HANDLER, w, values + 14, nulls + 14);
			moments(&read, reset_at, values + 17, nulls + 17);
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		}
	}
	return (Datum) 0;
}

/* -------------------------------------------------------------------- types */

/* evbus._stat_type(): of each tracked type. */
Datum
evbus_stat_type(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	EvbusDb    *db = evbus_db();
	EvbusStatTable *table = EVBUS_STAT_TABLE(db);
	TimestampTz reset_at;
	int64		since = evbus_stats_since(db, &reset_at);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < evbus_max_tracked_types; i++)
	{
		EvbusStatType *t = EVBUS_STAT_TYPE(db, i);
		EvbusStatRead read;
		char		type[EVBUS_TYPE_MAX];
		int			type_len = 0;
		int32		id;

		LWLockAcquire(&table->lock, LW_SHARED);
		id = t->bus_id;
		if (id != 0)
		{
			evbus_stat_read(&t->stat, id, since, &read);
			memcpy(type, t->type, type_len = t->type_len);
		}
		LWLockRelease(&table->lock);
		for (int w = TOTAL; id != 0 && w < EVBUS_STAT_WINDOWS; w++)
		{
			Datum		values[10];
			bool		nulls[10] = {0};
			const int64 *n = window_values(&read, w, values + 2, nulls + 2);

			values[0] = Int32GetDatum(id);
			values[1] = PointerGetDatum(cstring_to_text_with_len(type, type_len));
			values[4] = Int64GetDatum(n[EVBUS_STAT_EVENTS]);
			values[5] = Int64GetDatum(n[EVBUS_STAT_BYTES]);
			values[6] = Int64GetDatum(n[EVBUS_STAT_FAILED]);
			values[7] = Int64GetDatum(n[EVBUS_STAT_DEAD]);
			moments(&read, reset_at, values + 8, nulls + 8);
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		}
	}
	return (Datum) 0;
}

/* ------------------------------------------------------------------ minutes */

/* The minutes of the last hour as all of a call see them. */
typedef struct Hour
{
	int64		present;		/* when this minute began, by evbus_uptime() */
	TimestampTz began;			/* the same, to a second: the same in each call */
	int64		since;
} Hour;

static void
begin_hour(EvbusDb *db, Hour *hour)
{
	int64		uptime = evbus_uptime();
	TimestampTz reset_at;

	hour->present = uptime / USECS_PER_MINUTE * USECS_PER_MINUTE;
	hour->began = (GetCurrentTimestamp() - (uptime - hour->present) + USECS_PER_SEC / 2) / USECS_PER_SEC * USECS_PER_SEC;
	hour->since = evbus_stats_since(db, &reset_at);
}

/* The last hour of one thing; id of a bus or subscription. */
static void
put_minutes(ReturnSetInfo *rsinfo, const Hour *hour, EvbusStat *stat, int32 bus_id, int32 subscription_id)
{
	int64		minutes[EVBUS_STAT_MINUTES][EVBUS_STAT_COUNTERS];

	evbus_stat_read_minutes(stat, bus_id != 0 ? bus_id : subscription_id, hour->present, minutes);
	for (int i = 0; i < EVBUS_STAT_MINUTES; i++)
	{
		int64		ago = (EVBUS_STAT_MINUTES - 1 - i) * USECS_PER_MINUTE;
		Datum		values[8];
		bool		nulls[8] = {0};

		if (hour->present - ago + USECS_PER_MINUTE <= hour->since)
			continue;			/* nobody counted then */
		values[0] = Int32GetDatum(bus_id);
		nulls[0] = bus_id == 0;
		values[1] = Int32GetDatum(subscription_id);
		nulls[1] = subscription_id == 0;
		values[2] = TimestampTzGetDatum(hour->began - ago);
		values[3] = Int64GetDatum(minutes[i][EVBUS_STAT_EVENTS]);
		values[4] = Int64GetDatum(minutes[i][EVBUS_STAT_DONE]);
		nulls[4] = bus_id != 0;
		values[5] = Int64GetDatum(minutes[i][EVBUS_STAT_FAILED]);
		values[6] = Int64GetDatum(minutes[i][EVBUS_STAT_DEAD]);
		values[7] = Int64GetDatum(minutes[i][EVBUS_STAT_LAG] - 1);
		nulls[7] = bus_id != 0 || minutes[i][EVBUS_STAT_LAG] == 0;
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
}

/* evbus._stat_minutes(): the last hour by minutes, of each bus and subscription. */
Datum
evbus_stat_minutes(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	EvbusDb    *db = evbus_db();
	int			n_buses;
	int			n_subs;
	const EvbusBus *buses = evbus_buses(&n_buses);
	const EvbusSubscription *subs = evbus_subscriptions(&n_subs);
	Hour		hour;

	InitMaterializedSRF(fcinfo, 0);
	begin_hour(db, &hour);
	for (int i = 0; i < n_buses; i++)
		put_minutes(rsinfo, &hour, EVBUS_STAT_BUS(db, buses[i].slot), buses[i].bus_id, 0);
	for (int i = 0; i < n_subs; i++)
		if (subs[i].replay_of == 0)
			put_minutes(rsinfo, &hour, EVBUS_STAT_SUB(db, subs[i].slot), 0, subs[i].subscription_id);
	return (Datum) 0;
}

/* -------------------------------------------------------------------- times */

#define TIMES_STEP		8		/* buckets, which is a factor of four */

/*
 * evbus._stat_times(): histograms since the last reset, with bounds in steps of a factor of four, each
 * with how many took less than that; infinity at the end.
 */
Datum
evbus_stat_times_sql(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	EvbusDb    *db = evbus_db();
	static const char *const names[EVBUS_STAT_TIMES] = {"latency", "handler"};
	int			n_subs;
	const EvbusSubscription *subs = evbus_subscriptions(&n_subs);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < n_subs; i++)
		for (int of = 0; of < EVBUS_STAT_TIMES; of++)
		{
			int32		id = subs[i].subscription_id;
			int			slot = subs[i].slot;
			uint64		counts[EVBUS_HISTOGRAM_BUCKETS];
			int64		sum;
			int64		below = 0;
			Datum		values[5];
			bool		nulls[5] = {0};

			if (subs[i].replay_of != 0)
				continue;
			evbus_stat_read_times(EVBUS_STAT_SUB(db, slot), id, of, TOTAL, counts, &sum);
			values[0] = Int32GetDatum(id);
			values[1] = CStringGetTextDatum(names[of]);
			values[4] = Float8GetDatum(sum / 1e6);
			for (int bucket = 0; bucket <= EVBUS_HISTOGRAM_BUCKETS; bucket++)
			{
				bool		last = bucket == EVBUS_HISTOGRAM_BUCKETS;

				if (last || (bucket > TIMES_STEP && bucket % TIMES_STEP == 0))
				{
					values[2] = Float8GetDatum(last ? get_float8_infinity() : evbus_histogram_lower(bucket) / 1e6);
					values[3] = Int64GetDatum(below);
					tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
				}
				if (!last)
					below += (int64) counts[bucket];
			}
		}
	return (Datum) 0;
}

/* ---------------------------------------------------------------------- age */

/*
 * evbus._position_age(bus_id integer, position bigint) returns interval
 *
 * How long ago, about, the bus was at that position: an event with it is not older.  By what the maintainer notes each
 * ten seconds, within a minute and for an hour: what is older is said to be an hour old.  NULL: nobody knows.
 */
Datum
evbus_position_age(PG_FUNCTION_ARGS)
{
	int32		bus_id = PG_GETARG_INT32(0);
	EvbusDb    *db = evbus_db();
	TimestampTz reset_at;
	int64		since = evbus_stats_since(db, &reset_at);

	for (int i = 0; i < evbus_max_buses; i++)
		if (EVBUS_STAT_BUS(db, i)->id == bus_id)
		{
			int64		us = evbus_stat_passed(EVBUS_STAT_BUS(db, i), bus_id, since, PG_GETARG_INT64(1));

			if (us >= 0)
				PG_RETURN_DATUM(interval_of(us));
		}
	PG_RETURN_NULL();
}

/*
 * evbus._check_ages(age_warn interval, age_critical interval) returns boolean
 *
 * Both 0 to an hour: what is older is not told apart.  Errors: 22004, 22023.
 */
Datum
evbus_check_ages(PG_FUNCTION_ARGS)
{
	int64		warn = evbus_arg_interval(fcinfo, 0, "age_warn", 0, USECS_PER_HOUR);
	int64		critical = evbus_arg_interval(fcinfo, 1, "age_critical", 0, USECS_PER_HOUR);

	if (critical < warn)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("age_critical must not be less than age_warn"),
				 errdetail("age_warn is %g s, age_critical is %g s.", warn / 1e6, critical / 1e6)));
	PG_RETURN_BOOL(true);
}

/* -------------------------------------------------------------------- reset */

/*
 * evbus.stat_reset() returns void
 *
 * Counts anew from now on, for all buses, subscriptions and types of this database, and lets high-water
 * marks of stat_memory be what is in use; at once, and whatever becomes of the transaction.  Errors: VB009.  Privileges: EXECUTE, which nobody has by
 * default but who made the extension.
 */
Datum
evbus_stat_reset(PG_FUNCTION_ARGS)
{
	EvbusDb    *db = evbus_db();

	PreventCommandDuringRecovery("evbus.stat_reset()");
	evbus_audit_at_once(fcinfo, NULL, NULL);
	evbus_stats_clear(db);
	evbus_stat_memory_reset(db);
	PG_RETURN_VOID();
}

/* -------------------------------------------------------------- maintainer */

/* The maintainer, in its loop: each ten seconds, how far buses are, and how far behind subscriptions. */
void
evbus_stat_sample(EvbusDb *db, const EvbusSubscription *subs, int n)
{
	static int64 last = 0;
	int64		part = evbus_uptime() / EVBUS_STAT_PART;

	if (part == last)
		return;
	last = part;
	for (int i = 0; i < n; i++)
	{
		EvbusCursorState state;

		if (subs[i].replay_of == 0 && evbus_cursor_progress(db, &subs[i], &state))
			evbus_stat_lag(db, &subs[i], state.undelivered);
	}
	for (int i = 0; i < evbus_max_buses && evbus_track_statistics; i++)
	{
		int32		id = (int32) pg_atomic_read_u32(&EVBUS_BUS(db, i)->bus_id);

		if (id != 0)
			evbus_stat_add_one(EVBUS_STAT_BUS(db, i), id, EVBUS_STAT_LAG, (int64) pg_atomic_read_u64(&EVBUS_BUS(db, i)->next_position));
	}
}
