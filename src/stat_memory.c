/*-------------------------------------------------------------------------
 * stat_memory.c
 *	  How full each area of shared memory is: the view evbus.stat_memory, and the
 *	  maintainer's part, which is to tell when one comes near its bound.
 *
 * Shared memory never grows, so each area has a bound, at which something is refused or has
 * to wait.  The view counts when it is asked; the most that was ever in use is kept where
 * each count is (high.h).  Who fills an area is often in a commit callback and can tell
 * nobody: the maintainer looks once a second, and compares with the level that it told last.
 * That is in shared memory, too, so a new maintainer tells nothing twice.
 *
 * What goes up and down about a bound is told once: a level is left only HYSTERESIS points
 * below where it begins.
 *-------------------------------------------------------------------------
 */
#include "stat_memory.h"

#include "access/xact.h"
#include "area.h"
#include "clock.h"
#include "commands/async.h"
#include "commands/dbcommands.h"
#include "errand.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lease.h"
#include "miscadmin.h"
#include "process.h"
#include "registry.h"
#include "upkeepnote.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "volatile.h"

#define HYSTERESIS		5		/* percent */
#define LOOK_USECS		USECS_PER_SEC	/* between two looks of the maintainer */

/* Percent of an area from which on it is at a level. */
int			evbus_memory_warn = 70;
int			evbus_memory_critical = 90;

PG_FUNCTION_INFO_V1(evbus_memory_state);

typedef enum Level
{
	LEVEL_OK = 0,
	LEVEL_WARN,
	LEVEL_CRITICAL
} Level;

static const char *const levels[] = {"ok", "warn", "critical"};

/* An area as it is now. */
typedef struct Area
{
	const char *name;
	char	   *of;				/* NULL: the only one of its name */
	const char *unit;
	const char *setting;		/* that bounds it; NULL: none does */
	int64		used;
	int64		limit;			/* -1: none */
	pg_atomic_uint64 *high;
	uint8	   *told;			/* Level that the maintainer told last; NULL: of a process, it does not */
	bool		calm;			/* to be full is nothing bad */
} Area;

/* Those that each database has, in the order of EvbusArea. */
static const struct
{
	const char *name;
	const char *unit;
	const char *setting;
	bool		calm;			/* as in Area */
}			kinds[EVBUS_AREAS] =
{
	{"commit ring", "bytes", "evbus.ring_size", false},
	{"leases", "leases", "evbus.max_leases", false},
	{"leases of clients", "leases", "evbus.max_leases", false},
	{"buses", "buses", "evbus.max_buses", false},
	{"subscriptions", "subscriptions", "evbus.max_subscriptions", false},
	{"volatile buses", "buses", "evbus.max_volatile_buses", false},
	{"rates of roles", "rates", NULL, false},
	{"errands", "errands", NULL, false},
	{"upkeep notes", "notes", "evbus.max_buses", false},
	{"handler workers", "workers", "evbus.max_handler_workers", true},	/* they have work */
	{"databases", "databases", "evbus.max_databases", false}
};

/* ------------------------------------------------------------------- counting */

/* What is in use, and its bound. */
static void
count(EvbusDb *db, int64 *used, int64 *limit)
{
	uint64		ticked = pg_atomic_read_u64(&db->ring_ticked);
	EvbusBus   *buses;
	int			n;

	memset(used, 0, sizeof(int64) * EVBUS_AREAS);
	limit[EVBUS_AREA_RING] = (int64) EVBUS_RING_BYTES;
	limit[EVBUS_AREA_LEASES] = evbus_max_leases;
	limit[EVBUS_AREA_CLIENT_LEASES] = evbus_lease_clients_share();
	limit[EVBUS_AREA_BUSES] = evbus_max_buses;
	limit[EVBUS_AREA_SUBSCRIPTIONS] = evbus_max_subscriptions;
	limit[EVBUS_AREA_VOLATILE_BUSES] = evbus_max_volatile_buses;
	limit[EVBUS_AREA_ROLE_RATES] = EVBUS_ROLE_LIMITS_MAX;
	limit[EVBUS_AREA_ERRANDS] = EVBUS_ERRANDS;
	limit[EVBUS_AREA_NOTES] = EVBUS_NOTES_MAX;
	limit[EVBUS_AREA_WORKERS] = evbus_max_handler_workers;
	limit[EVBUS_AREA_DATABASES] = evbus_max_databases;

	pg_read_barrier();
	used[EVBUS_AREA_RING] = (int64) (pg_atomic_read_u64(&db->ring_tail) - ticked);
	used[EVBUS_AREA_LEASES] = used[EVBUS_AREA_CLIENT_LEASES] = db->leases_used;
	buses = evbus_buses(&n);
	used[EVBUS_AREA_BUSES] = n;
	for (int i = 0; i < n; i++)
		used[EVBUS_AREA_VOLATILE_BUSES] += buses[i].is_volatile;
	(void) evbus_subscriptions(&n);
	used[EVBUS_AREA_SUBSCRIPTIONS] = n;
	used[EVBUS_AREA_ROLE_RATES] = evbus_role_limits();

	LWLockAcquire(&evbus_shared->lock, LW_SHARED);
	used[EVBUS_AREA_ERRANDS] = evbus_errands_used(db);
	used[EVBUS_AREA_NOTES] = evbus_notes_used(db);
	for (int i = 0; i < evbus_max_handler_workers; i++)
		used[EVBUS_AREA_WORKERS] += OidIsValid(evbus_shared->workers[i].dboid);
	for (int i = 0; i < evbus_max_databases; i++)
		used[EVBUS_AREA_DATABASES] += OidIsValid(evbus_dbs[i].dboid);
	LWLockRelease(&evbus_shared->lock);
}

/* The mark of an area: clients have the leases that all have, and some areas are the server's. */
static pg_atomic_uint64 *
high_of(EvbusDb *db, int area)
{
	if (area == EVBUS_AREA_CLIENT_LEASES)
		area = EVBUS_AREA_LEASES;
	return area < EVBUS_AREA_WORKERS ? &db->high[area] : &evbus_shared->high[area];
}

/* The rings of volatile buses. */
static int
add_rings(EvbusDb *db, Area *areas)
{
	int			n = 0;

	for (int i = 0; i < evbus_max_volatile_buses; i++)
	{
		EvbusVolatile *v = EVBUS_VOLATILE(db, i);
		int32		bus_id = v->bus_id;
		EvbusBus	bus;

		if (bus_id == 0 || !evbus_bus_by_id(bus_id, &bus))
			continue;
		areas[n++] = (Area)
		{
			"volatile ring", pstrdup(bus.name), "bytes", "evbus.volatile_ring_size",
				(int64) evbus_volatile_used(db, v, bus_id), (int64) EVBUS_VOLATILE_BYTES, &v->high, &v->told, false
		};
	}
	return n;
}

/* The memory of the processes of this database. */
static int
add_processes(Area *areas)
{
	int			n = 0;

	for (int i = 0; i < EVBUS_BACKENDS; i++)
	{
		EvbusProcess p;

		if (!evbus_process_copy(i, &p) || p.dboid != MyDatabaseId)
			continue;
		areas[n++] = (Area)
		{
			"process", psprintf("%s %d", evbus_process_kinds[p.kind], p.pid), "bytes", NULL,
				(int64) pg_atomic_read_u64(&p.memory), -1, &evbus_processes[i].memory_high, NULL, false
		};
	}
	return n;
}

/* All of them, allocated, with or without processes; in a transaction.  Marks are raised to what is found. */
static int
collect(EvbusDb *db, bool processes, Area **out)
{
	Area	   *areas = palloc(sizeof(Area) * (EVBUS_AREAS + evbus_max_volatile_buses + EVBUS_BACKENDS));
	int64		used[EVBUS_AREAS];
	int64		limit[EVBUS_AREAS];
	int			n = EVBUS_AREAS;

	count(db, used, limit);
	for (int i = 0; i < EVBUS_AREAS; i++)
		areas[i] = (Area)
	{
		kinds[i].name, NULL, kinds[i].unit, kinds[i].setting, used[i], limit[i], high_of(db, i), &db->told[i], kinds[i].calm
	};
	n += add_rings(db, areas + n);
	if (processes)
		n += add_processes(areas + n);
	for (int i = 0; i < n; i++)
		evbus_high_raise(areas[i].high, (uint64) areas[i].used);
	*out = areas;
	return n;
}

static bool
reaches(const Area *area, int percent)
{
	return area->limit > 0 && !area->calm && area->used * 100 >= area->limit * Max(percent, 1);
}

/* Its level, if each began so many points lower. */
static Level
level_of(const Area *area, int lower)
{
	return reaches(area, evbus_memory_critical - lower) ? LEVEL_CRITICAL :
		reaches(area, evbus_memory_warn - lower) ? LEVEL_WARN : LEVEL_OK;
}

/*
 * What an area used at most counts from here on, of those of the server and of processes,
 * too; in a transaction, and whatever becomes of that.
 */
void
evbus_stat_memory_reset(EvbusDb *db)
{
	Area	   *areas;
	int			n = collect(db, true, &areas);

	for (int i = 0; i < n; i++)
		pg_atomic_write_u64(areas[i].high, (uint64) areas[i].used);
	pfree(areas);
}

/* evbus._memory_state(): a row for each area, and for each process of this database. */
Datum
evbus_memory_state(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Area	   *areas;
	int			n = collect(evbus_db(), true, &areas);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < n; i++)
	{
		const Area *area = &areas[i];
		Datum		values[9];
		bool		nulls[9] = {0};

		values[0] = CStringGetTextDatum(area->name);
		nulls[1] = area->of == NULL;
		values[1] = nulls[1] ? (Datum) 0 : CStringGetTextDatum(area->of);
		values[2] = CStringGetTextDatum(area->unit);
		values[3] = Int64GetDatum(area->used);
		values[4] = Int64GetDatum(area->limit);
		nulls[4] = area->limit < 0;
		values[5] = Int64GetDatum((int64) pg_atomic_read_u64(area->high));
		nulls[6] = area->limit <= 0;
		values[6] = nulls[6] ? (Datum) 0 : Float8GetDatum((double) area->used / area->limit);
		values[7] = CStringGetTextDatum(levels[level_of(area, 0)]);
		nulls[8] = area->setting == NULL;
		values[8] = nulls[8] ? (Datum) 0 : CStringGetTextDatum(area->setting);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* -------------------------------------------------------------- the maintainer */

/* What it is at now, for who was told another level. */
static Level
level_to_tell(const Area *area)
{
	Level		now = level_of(area, 0);

	return now >= *area->told ? now : Min(*area->told, level_of(area, HYSTERESIS));
}

/* Log it, and send it to who listens. */
static void
tell(const Area *area, Level level)
{
	char	   *what = area->of ? psprintf("%s of \"%s\"", area->name, area->of) : pstrdup(area->name);
	StringInfoData payload;

	ereport(LOG,
			(errmsg("evbus in database \"%s\": memory for %s is at level %s, " INT64_FORMAT " of " INT64_FORMAT " %s are in use",
					get_database_name(MyDatabaseId), what, levels[level], area->used, area->limit, area->unit),
			 level > LEVEL_OK && area->setting ? errhint("The bound is set by %s.", area->setting) : 0));
	initStringInfo(&payload);
	appendStringInfoString(&payload, "{\"check\": \"memory\", \"area\": ");
	escape_json(&payload, area->name);
	if (area->of)
	{
		appendStringInfoString(&payload, ", \"of\": ");
		escape_json(&payload, area->of);
	}
	appendStringInfo(&payload, ", \"level\": \"%s\", \"used\": " INT64_FORMAT ", \"limit\": " INT64_FORMAT "}",
					 levels[level], area->used, area->limit);
	Async_Notify(EVBUS_ALERT_CHANNEL, payload.data);
}

/* For the maintainer, in no transaction: once a second tell of areas that are at another level now. */
void
evbus_stat_memory_turn(EvbusDb *db)
{
	static int64 look_at = 0;
	MemoryContext context = CurrentMemoryContext;
	Area	   *areas;
	int			n;

	if (evbus_uptime() < look_at)
		return;
	look_at = evbus_uptime() + LOOK_USECS;
	StartTransactionCommand();
	MemoryContextSwitchTo(context);
	n = collect(db, false, &areas);
	for (int i = 0; i < n; i++)
	{
		Level		level = level_to_tell(&areas[i]);

		if (level != *areas[i].told)
			tell(&areas[i], level);
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	for (int i = 0; i < n; i++) /* now it is sent */
		*areas[i].told = level_to_tell(&areas[i]);
}
