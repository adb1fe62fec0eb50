/*-------------------------------------------------------------------------
 * bus.c
 *	  Buses: create, alter, drop.
 *
 * A bus is a row, and a place in shared memory that the row names; its events
 * go to the leaves of its storage class, so making a bus makes tables only for
 * the first bus of a class; and for each that has retention_bytes, which gets a class
 * of its own, so that the bytes are its own.  Such a class stays with its bus: what is
 * changed then, is changed in place, and holds for what is already stored.  Changes are transactional like all of SQL.
 *-------------------------------------------------------------------------
 */
#include "evbus.h"

#include "args.h"
#include "audit.h"
#include "bus_idle.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "cursor.h"
#include "fmgr.h"
#include "funcapi.h"
#include "internal.h"
#include "ledger.h"
#include "miscadmin.h"
#include "privilege.h"
#include "registry.h"
#include "storage/lmgr.h"
#include "upkeep.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define RETENTION_MAX	(36500 * USECS_PER_DAY)
#define INTERVAL_MAX	(31 * USECS_PER_DAY)
#define BYTES_MIN		INT64CONST(0x100000)	/* 1 MB */
#define BYTES_MAX		INT64CONST(0x4000000000000) /* 1 PB */
#define DEDUP_MAX		(7 * USECS_PER_DAY)
#define BACKLOG_MAX		INT64CONST(1000000000000)

PG_FUNCTION_INFO_V1(evbus_check_preload);
PG_FUNCTION_INFO_V1(evbus_create_bus);
PG_FUNCTION_INFO_V1(evbus_alter_bus);
PG_FUNCTION_INFO_V1(evbus_drop_bus);
PG_FUNCTION_INFO_V1(evbus_bus_state);

/* One of the words that a bus's column compression may have. */
static char *
compression_arg(FunctionCallInfo fcinfo, int n)
{
	char	   *word = evbus_arg_text(fcinfo, n, "compression");
	EvbusCompression compression;

	if (!evbus_compression_parse(word, &compression))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("compression must be 'none', 'zstd' or 'dictionary'"),
				 errdetail("It is \"%s\".", evbus_clip(word, strlen(word)))));
	return word;
}

/*
 * evbus._require_preload(): CREATE EXTENSION fails here, with the line to add.  It
 * does not let the workers come, which the first call of any other function does:
 * what pg_restore fills after CREATE EXTENSION shall be whole before they look at it.
 */
Datum
evbus_check_preload(PG_FUNCTION_ARGS)
{
	evbus_require_preload();
	evbus_check_schema();
	PG_RETURN_VOID();
}

/* What a storage class says. */
typedef struct Keeping
{
	int64		retention;		/* microseconds, as interval */
	int64		interval;
	int64		bytes;			/* 0: no limit */
	Datum		policy;			/* text */
} Keeping;

enum
{
	KEEP_RETENTION, KEEP_INTERVAL, KEEP_POLICY, KEEP_BYTES, KEEP_BUS, KEEP_CLASS, N_KEEP
};

static const Oid keeping_types[N_KEEP] = {INTERVALOID, INTERVALOID, TEXTOID, INT8OID, INT4OID, INT4OID};

static void
keeping_values(const Keeping *keep, int32 own_bus_id, int32 class_id, Datum *values, char *nulls)
{
	memset(nulls, ' ', N_KEEP);
	nulls[N_KEEP] = '\0';
	values[KEEP_RETENTION] = evbus_interval_datum(keep->retention);
	values[KEEP_INTERVAL] = evbus_interval_datum(keep->interval);
	values[KEEP_POLICY] = keep->policy;
	values[KEEP_BYTES] = Int64GetDatum(keep->bytes);
	nulls[KEEP_BYTES] = keep->bytes > 0 ? ' ' : 'n';
	values[KEEP_BUS] = Int32GetDatum(own_bus_id);
	nulls[KEEP_BUS] = own_bus_id != 0 ? ' ' : 'n';
	values[KEEP_CLASS] = Int32GetDatum(class_id);
}

/* The class for this, made if there is none: shared, or the own one of a bus (own_bus_id not 0). */
static int32
find_class(const Keeping *keep, int32 own_bus_id)
{
	Datum		values[N_KEEP];
	char		nulls[N_KEEP + 1];
	EvbusInternal state;
	int32		id;

	keeping_values(keep, own_bus_id, 0, values, nulls);
	evbus_internal_begin(&state);
	if (evbus_sql(NULL, "SELECT storage_class_id FROM evbus.storage_class WHERE retention = $1 AND partition_interval = $2"
				  " AND retention_policy = $3 AND own_bus_id IS NOT DISTINCT FROM $5", N_KEEP, keeping_types, values, nulls, 1) > 0)
		id = DatumGetInt32(evbus_column(0, 1, NULL));
	else
	{
		evbus_sql(NULL, "INSERT INTO evbus.storage_class (storage_class_id, retention, partition_interval, retention_policy, retention_bytes, own_bus_id)"
				  " VALUES (nextval('evbus.storage_class_id_seq'), $1, $2, $3, $4, $5) RETURNING storage_class_id",
				  N_KEEP, keeping_types, values, nulls, 0);
		id = DatumGetInt32(evbus_column(0, 1, NULL));
		evbus_utility("CREATE TABLE evbus.event_c%d (LIKE evbus.event_log INCLUDING STORAGE) PARTITION BY RANGE (event_id)", id);
		evbus_utility("ALTER TABLE evbus.event_log ATTACH PARTITION evbus.event_c%d FOR VALUES IN (%d)", id, id);
	}
	evbus_internal_end(&state);
	return id;
}

/* The class that a bus, now in `class_id`, is to be in with these settings. */
static int32
change_class(int32 bus_id, int32 class_id, const Keeping *keep, bool own)
{
	Datum		values[N_KEEP];
	char		nulls[N_KEEP + 1];
	EvbusInternal state;

	if (!own)
		return find_class(keep, keep->bytes > 0 ? bus_id : 0);
	keeping_values(keep, bus_id, class_id, values, nulls);
	evbus_internal_begin(&state);
	evbus_sql(NULL, "UPDATE evbus.storage_class SET retention = $1, partition_interval = $2, retention_policy = $3, retention_bytes = $4"
			  " WHERE storage_class_id = $6", N_KEEP, keeping_types, values, nulls, 0);
	evbus_internal_end(&state);
	return class_id;
}

/* Argument retention_bytes; 0: no limit. */
static int64
read_bytes(FunctionCallInfo fcinfo, int n)
{
	int64		bytes;

	evbus_arg_present(fcinfo, n, "retention_bytes");
	bytes = PG_GETARG_INT64(n);
	if (bytes != 0 && (bytes < BYTES_MIN || bytes > BYTES_MAX))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("retention_bytes must be 0, or between " INT64_FORMAT " and " INT64_FORMAT, BYTES_MIN, BYTES_MAX),
				 errdetail("It is " INT64_FORMAT ".", bytes),
				 errhint("Pass pg_size_bytes('10 GB'), say; 0 is no limit.")));
	return bytes;
}

/* Argument retention_policy. */
static Datum
read_policy(FunctionCallInfo fcinfo, int n)
{
	static const char *const policies[] = {"keep_unconsumed", "drop_unconsumed"};

	(void) evbus_arg_choice(fcinfo, n, "retention_policy", policies, lengthof(policies));
	return PG_GETARG_DATUM(n);
}

/* Bounds of leaves are whole seconds, as a leaf that is too large is cut at one. */
static int64
read_partition_interval(FunctionCallInfo fcinfo, int n)
{
	int64		interval = evbus_arg_interval(fcinfo, n, "partition_interval", USECS_PER_MINUTE, INTERVAL_MAX);

	if (interval % USECS_PER_SEC != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("partition_interval must be whole seconds"),
				 errdetail("It is %s.", DatumGetCString(DirectFunctionCall1(interval_out, PG_GETARG_DATUM(n))))));
	return interval;
}

/* What holds publishers up: columns of evbus.bus, and arguments, in this order. */
enum
{
	FLOW_BACKLOG, FLOW_OVERFLOW, FLOW_TIMEOUT, FLOW_RATE, FLOW_BURST, FLOW_RATE_POLICY, N_FLOW
};

#define FLOW_COLUMNS	"max_backlog, overflow, overflow_timeout, publish_rate, publish_burst, rate_policy"

static const Oid flow_types[N_FLOW] = {INT8OID, TEXTOID, INTERVALOID, INT4OID, INT4OID, TEXTOID};

/* Read them, from argument `first` on; in alter_bus() NULL keeps what `bus` has. */
static void
read_flow(FunctionCallInfo fcinfo, int first, const EvbusBus *bus, Datum *values)
{
#define GIVEN(i)	(bus == NULL || !PG_ARGISNULL(first + (i)))
	values[FLOW_BACKLOG] = Int64GetDatum(GIVEN(FLOW_BACKLOG) ? evbus_arg_bigint(fcinfo, first + FLOW_BACKLOG, "max_backlog", 0, BACKLOG_MAX) : bus->max_backlog);
	values[FLOW_OVERFLOW] = CStringGetTextDatum(evbus_overflows[GIVEN(FLOW_OVERFLOW)
								? evbus_arg_choice(fcinfo, first + FLOW_OVERFLOW, "overflow", evbus_overflows, lengthof(evbus_overflows)) : bus->overflow]);
	values[FLOW_TIMEOUT] = evbus_interval_datum(GIVEN(FLOW_TIMEOUT)
												? evbus_arg_interval(fcinfo, first + FLOW_TIMEOUT, "overflow_timeout", 0, USECS_PER_DAY) : bus->overflow_timeout);
	values[FLOW_RATE] = Int32GetDatum(GIVEN(FLOW_RATE) ? evbus_arg_int(fcinfo, first + FLOW_RATE, "publish_rate", 0, EVBUS_RATE_MAX) : bus->publish_rate);
	/* With its rate a burst goes, too. */
	values[FLOW_BURST] = Int32GetDatum(GIVEN(FLOW_BURST) ? evbus_arg_int(fcinfo, first + FLOW_BURST, "publish_burst", 0, EVBUS_RATE_MAX)
									   : DatumGetInt32(values[FLOW_RATE]) == 0 ? 0 : bus->publish_burst);
	evbus_check_burst(DatumGetInt32(values[FLOW_RATE]), DatumGetInt32(values[FLOW_BURST]), "publish_rate", "publish_burst");
	values[FLOW_RATE_POLICY] = CStringGetTextDatum(evbus_rate_policies[GIVEN(FLOW_RATE_POLICY)
								? evbus_arg_choice(fcinfo, first + FLOW_RATE_POLICY, "rate_policy", evbus_rate_policies, lengthof(evbus_rate_policies)) : bus->rate_waits]);
#undef GIVEN
}

/* Argument max_backlog_bytes; 0: no limit. */
static int64
backlog_bytes_arg(FunctionCallInfo fcinfo, int n)
{
	int64		bytes = evbus_arg_bigint(fcinfo, n, "max_backlog_bytes", 0, BYTES_MAX);

	if (bytes > 0 && bytes < BYTES_MIN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_backlog_bytes must be 0, or at least " INT64_FORMAT, BYTES_MIN),
				 errdetail("It is " INT64_FORMAT ".", bytes)));
	return bytes;
}

/* Argument idle_ttl, of which NULL keeps what there is. */
static int64
idle_ttl_arg(FunctionCallInfo fcinfo, int n, int64 now)
{
	int64		ttl = PG_ARGISNULL(n) ? now : evbus_arg_interval(fcinfo, n, "idle_ttl", 0, RETENTION_MAX);

	if (ttl > 0 && ttl < USECS_PER_SEC)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("idle_ttl must be 0, or at least 1 second"),
				 errdetail("It is %s.", DatumGetCString(DirectFunctionCall1(interval_out, evbus_interval_datum(ttl))))));
	return ttl;
}

/* Column durability. */
static const char *const durabilities[] = {"durable", "volatile"};

static void
refuse_dictionary(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("a volatile bus cannot use dictionaries"),
			 errdetail("They are trained on what is stored of a bus."),
			 errhint("Pass compression => 'zstd'.")));
}

static bool
any_auto_created(void)
{
	int			n;
	EvbusBus   *buses = evbus_buses(&n);

	for (int i = 0; i < n; i++)
		if (buses[i].auto_created)
			return true;
	return false;
}

/* Errors VB003 if there are as many volatile buses as rings. */
static void
check_rings(const char *name)
{
	EvbusInternal state;
	int64		n;

	evbus_internal_begin(&state);
	evbus_sql(NULL, "SELECT count(*) FROM evbus.bus WHERE durability = 'volatile'", 0, NULL, NULL, NULL, 1);
	n = DatumGetInt64(evbus_column(0, 1, NULL));
	evbus_internal_end(&state);
	if (n >= evbus_max_volatile_buses)
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_TOO_MANY_BUSES),
				 errmsg("cannot create volatile bus \"%s\": all %d rings are in use", name, evbus_max_volatile_buses),
				 errhint("Drop a volatile bus that is no longer used, or raise evbus.max_volatile_buses and restart the server.")));
	evbus_high_raise(&evbus_db()->high[EVBUS_AREA_VOLATILE_BUSES], n + 1);
}

/* What is dropped of a durable bus is what its retention may drop, too, and only where a backlog is too long. */
static void
check_overflow(const char *bus, bool is_volatile, const Datum *flow, int64 bytes, bool may_drop)
{
	bool		drops = strcmp(TextDatumGetCString(flow[FLOW_OVERFLOW]), evbus_overflows[EVBUS_OVERFLOW_DROP]) == 0;

	if (is_volatile && bytes > 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("volatile bus \"%s\" cannot have max_backlog_bytes", bus),
				 errdetail("The size of its ring bounds them.")));
	if (drops && is_volatile && DatumGetInt64(flow[FLOW_BACKLOG]) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("bus \"%s\" cannot have both max_backlog and overflow => 'drop_oldest'", bus),
				 errdetail("Where the oldest events are dropped no publisher is held up."),
				 errhint("Pass max_backlog => 0, or another overflow.")));
	if (drops && !is_volatile && !may_drop)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("durable bus \"%s\" cannot drop the oldest events when it is full", bus),
				 errdetail("Its retention_policy is 'keep_unconsumed'."),
				 errhint("Give it retention_policy => 'drop_unconsumed', or let publishers be refused ('reject') or wait ('block').")));
	if (drops && !is_volatile && DatumGetInt64(flow[FLOW_BACKLOG]) == 0 && bytes == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("durable bus \"%s\" cannot drop the oldest events without max_backlog", bus),
				 errhint("Say with max_backlog or max_backlog_bytes when it is full, or pass another overflow.")));
}

static bool
is_drop_unconsumed(Datum policy)
{
	return strcmp(TextDatumGetCString(policy), "drop_unconsumed") == 0;
}

/*
 * evbus.create_bus(bus text, durability text, retention interval, partition_interval interval,
 * max_payload_bytes integer, retention_bytes bigint, retention_policy text, compression text,
 * dedup_window interval, max_backlog bigint, overflow text, overflow_timeout interval, publish_rate integer,
 * publish_burst integer, rate_policy text, idle_ttl interval, max_backlog_bytes bigint) returns void
 *
 * bus: 1 to 63 bytes, no control characters.  durability: 'durable', or 'volatile': in shared memory
 * only, where settings of retention and dedup_window are of no use.  retention:
 * 1 minute to 100 years, kept in whole leaves of partition_interval (1 minute to
 * 31 days).  max_payload_bytes: 1 to 255 MB, of payload and headers as jsonb.
 * retention_bytes: 1 MB to 1 PB of tables, indexes and TOAST, above which the oldest
 * leaves go; 0: no limit.  retention_policy: 'keep_unconsumed', or 'drop_unconsumed'
 * to drop also what a subscription has not had.
 * compression: 'zstd' payloads from evbus.compress_threshold on, 'dictionary' smaller
 * ones, too, with dictionaries that are trained from the history, 'none' no payload.
 * dedup_window: 1 second to 7 days, for how long a dedup_key is taken.
 * max_backlog: 1 to 10^12 events; max_backlog_bytes: 1 MB to 1 PB; overflow: 'reject', or 'block' for overflow_timeout (0 to 1 day) at most.
 * publish_rate: 1 to 1000000 events a second, publish_burst: so many at once; rate_policy: 'reject' or 'wait'.
 * 0 is no limit; of publish_burst, those of a second.
 * idle_ttl: 1 second to 100 years after which it is dropped if nobody uses it (bus_idle.c); 0: never.
 * Where all slots are taken, the bus that was made by itself and not used for the longest time makes room.
 * Takes effect when the caller commits.
 * Errors: 0A000 a volatile bus with dictionaries, drop_oldest of a durable one with 'keep_unconsumed' or without max_backlog, of a volatile one with it, 22004, 22023,
 * VB002 exists, VB003 no slot or ring left.
 * Privileges: EXECUTE; the caller becomes the owner.
 */
Datum
evbus_create_bus(PG_FUNCTION_ARGS)
{
	Oid			types[11 + N_FLOW] = {TEXTOID, INT2OID, INT4OID, OIDOID, TEXTOID, INT4OID, INT4OID, TEXTOID, INTERVALOID};
	char	   *name = evbus_arg_name(fcinfo, 0, "bus");
	bool		is_volatile;
	Keeping		keep = {
		.retention = evbus_arg_interval(fcinfo, 2, "retention", USECS_PER_MINUTE, RETENTION_MAX),
		.interval = read_partition_interval(fcinfo, 3)
	};
	int			max_payload = evbus_arg_int(fcinfo, 4, "max_payload_bytes", 1, EVBUS_PAYLOAD_MAX);
	char	   *compression = compression_arg(fcinfo, 7);
	int64		dedup_window = evbus_arg_interval(fcinfo, 8, "dedup_window", USECS_PER_SEC, DEDUP_MAX);
	EvbusDb    *db = evbus_db();
	EvbusBus	bus;
	EvbusInternal state;
	Datum		values[11 + N_FLOW];
	int			slot;
	int32		class;
	int32		bus_id;

	keep.bytes = read_bytes(fcinfo, 5);
	keep.policy = read_policy(fcinfo, 6);
	memcpy(types + 9, flow_types, sizeof(flow_types));
	read_flow(fcinfo, 9, NULL, values + 9);
	types[9 + N_FLOW] = INTERVALOID;
	values[9 + N_FLOW] = evbus_interval_datum(idle_ttl_arg(fcinfo, 9 + N_FLOW, 0));
	types[10 + N_FLOW] = INT8OID;
	values[10 + N_FLOW] = Int64GetDatum(backlog_bytes_arg(fcinfo, 10 + N_FLOW));
	is_volatile = evbus_arg_choice(fcinfo, 1, "durability", durabilities, lengthof(durabilities)) == 1;
	if (is_volatile && strcmp(compression, "dictionary") == 0)
		refuse_dictionary();
	check_overflow(name, is_volatile, values + 9, DatumGetInt64(values[10 + N_FLOW]), is_drop_unconsumed(keep.policy));

	PreventCommandIfReadOnly("evbus.create_bus()");
	LockRelationOid(evbus_relid("bus"), ShareRowExclusiveLock);	/* one at a time */
	if (evbus_bus_find(name, &bus))
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_BUS_EXISTS),
				 errmsg("bus \"%s\" already exists", name)));
	slot = evbus_registry_free_slot("bus", evbus_max_buses);
	if (slot < 0 && evbus_bus_make_room(db))
		slot = evbus_registry_free_slot("bus", evbus_max_buses);
	if (slot < 0)
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_TOO_MANY_BUSES),
				 errmsg("cannot create bus \"%s\": all %d slots are in use", name, evbus_max_buses),
				 any_auto_created()
				 ? errhint("Drop a bus that is no longer used, or raise evbus.max_buses and restart the server."
						   " One made by evbus.auto_create makes room 10 seconds after its last use, if it has no subscription.")
				 : errhint("Drop a bus that is no longer used, or raise evbus.max_buses and restart the server.")));
	evbus_internal_begin(&state);
	evbus_sql(NULL, "SELECT nextval('evbus.bus_id_seq')::integer", 0, NULL, NULL, NULL, 1);
	bus_id = DatumGetInt32(evbus_column(0, 1, NULL));
	evbus_internal_end(&state);
	if (is_volatile)
		check_rings(name);
	evbus_home_first_bus();
	class = is_volatile ? 0 : find_class(&keep, keep.bytes > 0 ? bus_id : 0);

	/* Of another bus that had the place before. */
	pg_atomic_write_u64(&EVBUS_BUS(db, slot)->rejected, 0);
	pg_atomic_write_u64(&EVBUS_BUS(db, slot)->waits, 0);
	pg_atomic_write_u64(&EVBUS_BUS(db, slot)->size_sum, 0);
	pg_atomic_write_u64(&EVBUS_BUS(db, slot)->size_n, 0);
	pg_atomic_write_u64(&EVBUS_BUS(db, slot)->used_at, (uint64) evbus_uptime());
	values[0] = CStringGetTextDatum(name);
	values[1] = Int16GetDatum(slot);
	values[2] = Int32GetDatum(class);
	values[3] = ObjectIdGetDatum(GetUserId());
	values[4] = CStringGetTextDatum(durabilities[is_volatile]);
	values[5] = Int32GetDatum(max_payload);
	values[6] = Int32GetDatum(bus_id);
	values[7] = CStringGetTextDatum(compression);
	values[8] = evbus_interval_datum(dedup_window);
	evbus_internal_begin(&state);
	evbus_sql(NULL, "INSERT INTO evbus.bus (bus_id, bus, slot, storage_class_id, owner, durability, max_payload_bytes, paused, created_at, compression, dedup_window, " FLOW_COLUMNS ", idle_ttl, max_backlog_bytes)"
			  " VALUES ($7, $1, $2, $3, $4::regrole, $5, $6, false, now(), $8, $9, nullif($10, 0), $11, $12, nullif($13, 0), nullif($14, 0), $15, nullif($16, '0'), nullif($17, 0))",
			  11 + N_FLOW, types, values, NULL, 0);
	evbus_internal_end(&state);
	evbus_registry_changed();
	if (!is_volatile)
		evbus_upkeep_leaves_now(db, class);
	evbus_audit(fcinfo, "bus", name, NULL, evbus_audit_bus(bus_id));
	PG_RETURN_VOID();
}

/* A bus that the caller may change, by argument 0. */
static void
managed_bus(FunctionCallInfo fcinfo, EvbusBus *bus)
{
	evbus_bus_get(evbus_arg_text(fcinfo, 0, "bus"), bus);
	evbus_check_bus(bus, GetUserId(), EVBUS_MANAGE);
}

/* One that the caller may drop. */
static void
own_bus(FunctionCallInfo fcinfo, EvbusBus *bus)
{
	evbus_bus_get(evbus_arg_text(fcinfo, 0, "bus"), bus);
	evbus_check_owner(bus->owner, "bus", bus->name);
}

/* Triggers of evbus.publish_changes() know a bus by its name: without it, whoever writes their table would get an error. */
static void
check_no_changes(const EvbusBus *bus, const char *what, const char *hint)
{
	char	   *table = evbus_bus_changes_table(bus);

	if (table)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("cannot %s bus \"%s\": changes of table %s are published to it", what, bus->name, table),
				 errhint("%s", hint)));
}

/*
 * evbus.alter_bus(bus text, retention, partition_interval, max_payload_bytes, rename_to, retention_bytes,
 * retention_policy, compression, dedup_window, max_backlog, overflow, overflow_timeout, publish_rate,
 * publish_burst, rate_policy, idle_ttl, max_backlog_bytes) returns void
 *
 * NULL keeps a setting.  Bounds and errors as evbus.create_bus(), and VB001, 42501
 * not the owner, 55006 to be renamed while changes of a table are published to it.
 * A new retention, interval or policy moves the bus to another storage class, as
 * does its first retention_bytes: events already stored stay under the old one.  From
 * then on the class is its own, and all changes hold for what is stored.
 * A new dedup_window holds from then on, for the keys that are still there.
 * Limits of publishers hold for calls after the commit.
 */
Datum
evbus_alter_bus(PG_FUNCTION_ARGS)
{
	Oid			types[8 + N_FLOW] = {INT4OID, INT4OID, INT4OID, TEXTOID, TEXTOID, INTERVALOID};
	EvbusBus	bus;
	EvbusBus	other;
	EvbusDb    *db = evbus_db();
	EvbusInternal state;
	Datum		values[8 + N_FLOW];
	char		nulls[8 + N_FLOW + 1] = "              ";
	bool		may_drop = false;
	Jsonb	   *before;

	managed_bus(fcinfo, &bus);
	PreventCommandIfReadOnly("evbus.alter_bus()");
	LockRelationOid(evbus_relid("bus"), ShareRowExclusiveLock);
	managed_bus(fcinfo, &bus);
	before = evbus_audit_bus(bus.bus_id);
	values[0] = Int32GetDatum(bus.bus_id);
	values[1] = Int32GetDatum(bus.storage_class_id);
	if (bus.is_volatile && (!PG_ARGISNULL(1) || !PG_ARGISNULL(2) || !PG_ARGISNULL(5) || !PG_ARGISNULL(6)))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("bus \"%s\" is volatile: it has no retention", bus.name),
				 errdetail("Its events are kept until every subscription has settled them."),
				 errhint("What becomes of publishers when it is full, overflow says.")));
	if (!bus.is_volatile)
	{
		MemoryContext context = CurrentMemoryContext;
		Keeping		keep;
		char	   *policy;
		bool		own;

		evbus_internal_begin(&state);
		evbus_sql(NULL, "SELECT (extract(epoch FROM retention) * 1000000)::bigint, (extract(epoch FROM partition_interval) * 1000000)::bigint,"
				  " coalesce(retention_bytes, 0), retention_policy, own_bus_id IS NOT NULL FROM evbus.storage_class WHERE storage_class_id = $2",
				  2, types, values, NULL, 1);
		keep.retention = DatumGetInt64(evbus_column(0, 1, NULL));
		keep.interval = DatumGetInt64(evbus_column(0, 2, NULL));
		keep.bytes = DatumGetInt64(evbus_column(0, 3, NULL));
		policy = MemoryContextStrdup(context, TextDatumGetCString(evbus_column(0, 4, NULL)));
		own = DatumGetBool(evbus_column(0, 5, NULL));
		evbus_internal_end(&state);
		keep.policy = CStringGetTextDatum(policy);
		if (!PG_ARGISNULL(1))
			keep.retention = evbus_arg_interval(fcinfo, 1, "retention", USECS_PER_MINUTE, RETENTION_MAX);
		if (!PG_ARGISNULL(2))
			keep.interval = read_partition_interval(fcinfo, 2);
		if (!PG_ARGISNULL(5))
			keep.bytes = read_bytes(fcinfo, 5);
		if (!PG_ARGISNULL(6))
			keep.policy = read_policy(fcinfo, 6);
		may_drop = is_drop_unconsumed(keep.policy);
		if (!PG_ARGISNULL(1) || !PG_ARGISNULL(2) || !PG_ARGISNULL(5) || !PG_ARGISNULL(6))
			values[1] = Int32GetDatum(change_class(bus.bus_id, bus.storage_class_id, &keep, own));
	}
	values[2] = Int32GetDatum(PG_ARGISNULL(3) ? bus.max_payload_bytes
							  : evbus_arg_int(fcinfo, 3, "max_payload_bytes", 1, EVBUS_PAYLOAD_MAX));
	nulls[3] = PG_ARGISNULL(4) ? 'n' : ' ';
	values[3] = (Datum) 0;
	if (!PG_ARGISNULL(4))
	{
		char	   *name = evbus_arg_name(fcinfo, 4, "bus");

		if (strcmp(name, bus.name) != 0 && evbus_bus_find(name, &other))
			ereport(ERROR,
					(errcode(ERRCODE_EVBUS_BUS_EXISTS),
					 errmsg("bus \"%s\" already exists", name)));
		if (strcmp(name, bus.name) != 0)
			check_no_changes(&bus, "rename", "In one transaction, call evbus.stop_publish_changes() for the table, rename the bus, and call evbus.publish_changes() again.");
		values[3] = CStringGetTextDatum(name);
	}
	nulls[4] = PG_ARGISNULL(7) ? 'n' : ' ';
	values[4] = PG_ARGISNULL(7) ? (Datum) 0 : CStringGetTextDatum(compression_arg(fcinfo, 7));
	if (bus.is_volatile && !PG_ARGISNULL(7) && strcmp(TextDatumGetCString(values[4]), "dictionary") == 0)
		refuse_dictionary();
	values[5] = evbus_interval_datum(PG_ARGISNULL(8) ? bus.dedup_window
									 : evbus_arg_interval(fcinfo, 8, "dedup_window", USECS_PER_SEC, DEDUP_MAX));
	memcpy(types + 6, flow_types, sizeof(flow_types));
	read_flow(fcinfo, 9, &bus, values + 6);
	values[7 + N_FLOW] = Int64GetDatum(PG_ARGISNULL(10 + N_FLOW) ? bus.max_backlog_bytes : backlog_bytes_arg(fcinfo, 10 + N_FLOW));
	check_overflow(bus.name, bus.is_volatile, values + 6, DatumGetInt64(values[7 + N_FLOW]), may_drop);
	types[6 + N_FLOW] = INTERVALOID;
	types[7 + N_FLOW] = INT8OID;
	values[6 + N_FLOW] = evbus_interval_datum(idle_ttl_arg(fcinfo, 9 + N_FLOW, bus.idle_ttl));
	if (!PG_ARGISNULL(9 + N_FLOW))
		pg_atomic_write_u64(&EVBUS_BUS(db, bus.slot)->used_at, (uint64) evbus_uptime());	/* counted from now on */
	evbus_internal_begin(&state);
	evbus_sql(NULL, "UPDATE evbus.bus SET storage_class_id = $2, max_payload_bytes = $3, bus = coalesce($4, bus), compression = coalesce($5, compression), dedup_window = $6,"
			  " (" FLOW_COLUMNS ") = (nullif($7, 0), $8, $9, nullif($10, 0), nullif($11, 0), $12),"
			  " idle_ttl = nullif($13, '0'), max_backlog_bytes = nullif($14, 0), auto_created = auto_created AND $13 > '0',"
			  " former_classes = CASE WHEN storage_class_id = $2 THEN former_classes"
			  "                  ELSE array_append(array_remove(former_classes, storage_class_id), storage_class_id) END"
			  " WHERE bus_id = $1",
			  8 + N_FLOW, types, values, nulls, 0);
	evbus_internal_end(&state);
	evbus_registry_changed();
	if (!bus.is_volatile)
		evbus_upkeep_leaves_now(db, DatumGetInt32(values[1]));
	evbus_audit(fcinfo, "bus", bus.name, before, evbus_audit_bus(bus.bus_id));
	PG_RETURN_VOID();
}

/* Errors VB006 if events of the bus wait for their time. */
static void
check_no_scheduled(const EvbusBus *bus)
{
	if (evbus_bus_has_scheduled(bus->bus_id))
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_BACKLOG),
				 errmsg("cannot drop bus \"%s\": it has events that are not due yet", bus->name),
				 errdetail("See the view evbus.scheduled_list."),
				 errhint("Wait until they are published, cancel them with evbus.cancel_scheduled(), or call evbus.drop_bus(..., force => true).")));
}

/*
 * evbus.drop_bus(bus text, force boolean) returns void
 *
 * Removes the bus and its subscriptions; its events go with their leaves, its
 * dead letters at their retention.  Refused while a subscription has undelivered
 * events or retries, or events are scheduled, unless force: then those go, too.  Takes effect when the caller commits.
 * Errors: 22004, 42501 not the owner, 55006 changes of a table are published to it
 * (unless force), VB001, VB006 backlog.
 */
Datum
evbus_drop_bus(PG_FUNCTION_ARGS)
{
	static const Oid types[] = {INT4OID};
	EvbusBus	bus;
	EvbusDb    *db = evbus_db();
	EvbusInternal state;
	EvbusSubscription *subs;
	int			n;
	bool		force;
	Jsonb	   *before;

	own_bus(fcinfo, &bus);
	evbus_arg_present(fcinfo, 1, "force");
	force = PG_GETARG_BOOL(1);
	PreventCommandIfReadOnly("evbus.drop_bus()");
	LockRelationOid(evbus_relid("subscription"), ShareRowExclusiveLock);	/* nobody subscribes to it meanwhile */
	own_bus(fcinfo, &bus);
	if (!force)
		check_no_changes(&bus, "drop", "Call evbus.stop_publish_changes() for the table before.");
	subs = evbus_subscriptions(&n);
	for (int i = 0; i < n && !force; i++)
	{
		EvbusCursorState progress;
		Datum		id = Int32GetDatum(subs[i].subscription_id);
		bool		retries;

		if (subs[i].bus_id != bus.bus_id)
			continue;
		evbus_db_require_ready(db);
		(void) evbus_db_wait_drained(db, 5000);	/* what was just committed counts */
		(void) evbus_ledger_attach(db, &subs[i]);
		evbus_internal_begin(&state);
		retries = evbus_sql(NULL, "SELECT 1 FROM evbus.retry WHERE subscription_id = $1 LIMIT 1", 1, types, &id, NULL, 1) > 0;
		evbus_internal_end(&state);
		if (!evbus_cursor_progress(db, &subs[i], &progress) || progress.undelivered > 0 || retries)
			ereport(ERROR,
					(errcode(ERRCODE_EVBUS_BACKLOG),
					 errmsg("cannot drop bus \"%s\": %s \"%s\" has undelivered events", bus.name,
							subs[i].replay_of != 0 ? "a replay to subscription" : "subscription", subs[i].name),
					 errdetail("See the view %s.", subs[i].replay_of != 0 ? "evbus.replay_list" : "evbus.subscription_lag"),
					 errhint("Wait until they are delivered, unsubscribe, or call evbus.drop_bus(..., force => true).")));
	}
	if (!force)
		check_no_scheduled(&bus);
	before = evbus_audit_bus(bus.bus_id);
	evbus_bus_remove(bus.bus_id);
	evbus_audit(fcinfo, "bus", bus.name, before, NULL);
	PG_RETURN_VOID();
}

/* evbus._bus_state(): a row for each bus; positions are NULL until they are loaded. */
Datum
evbus_bus_state(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	EvbusDb    *db = evbus_db();
	int			n;
	EvbusBus   *buses = evbus_buses(&n);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < n; i++)
	{
		EvbusBusState *bus = EVBUS_BUS(db, buses[i].slot);
		Datum		values[6];
		bool		nulls[6] = {0};
		uint64		used_at = pg_atomic_read_u64(&bus->used_at);

		nulls[1] = nulls[2] = (int32) pg_atomic_read_u32(&bus->bus_id) != buses[i].bus_id;
		values[0] = Int32GetDatum(buses[i].bus_id);
		values[1] = Int64GetDatum((int64) pg_atomic_read_u64(&bus->next_position));
		values[2] = Int64GetDatum((int64) pg_atomic_read_u64(&bus->ticked_position));
		values[3] = Int64GetDatum((int64) pg_atomic_read_u64(&bus->rejected));
		values[4] = Int64GetDatum((int64) pg_atomic_read_u64(&bus->waits));
		nulls[5] = used_at == 0 || buses[i].idle_ttl == 0;
		values[5] = TimestampTzGetDatum(GetCurrentTimestamp() - (evbus_uptime() - (int64) used_at));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
