/*-------------------------------------------------------------------------
 * bus.c
 *	  Buses: create, alter, drop, pause, resume.
 *
 * A bus is a row, and a place in shared memory that the row names; its events
 * go to the leaves of its storage class, so making a bus makes tables only for
 * the first bus of a class.  Changes are transactional like all of SQL.
 *-------------------------------------------------------------------------
 */
#include "evbus.h"

#include "args.h"
#include "catalog/pg_type.h"
#include "cursor.h"
#include "fmgr.h"
#include "funcapi.h"
#include "internal.h"
#include "ledger.h"
#include "miscadmin.h"
#include "registry.h"
#include "replay.h"
#include "storage/lmgr.h"
#include "upkeep.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#define RETENTION_MAX	(36500 * USECS_PER_DAY)
#define INTERVAL_MAX	(31 * USECS_PER_DAY)

PG_FUNCTION_INFO_V1(evbus_check_preload);
PG_FUNCTION_INFO_V1(evbus_create_bus);
PG_FUNCTION_INFO_V1(evbus_alter_bus);
PG_FUNCTION_INFO_V1(evbus_drop_bus);
PG_FUNCTION_INFO_V1(evbus_pause_bus);
PG_FUNCTION_INFO_V1(evbus_resume_bus);
PG_FUNCTION_INFO_V1(evbus_bus_state);

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

/* The class of a retention and leaf interval, made if there is none. */
static int32
find_class(EvbusDb *db, int64 retention, int64 interval)
{
	static const Oid types[] = {INTERVALOID, INTERVALOID};
	Datum		values[] = {evbus_interval_datum(retention), evbus_interval_datum(interval)};
	EvbusInternal state;
	int32		id;

	evbus_internal_begin(&state);
	if (evbus_sql(NULL, "SELECT storage_class_id FROM evbus.storage_class WHERE retention = $1 AND partition_interval = $2",
				  2, types, values, NULL, 1) > 0)
		id = DatumGetInt32(evbus_column(0, 1, NULL));
	else
	{
		evbus_sql(NULL, "INSERT INTO evbus.storage_class SELECT nextval('evbus.storage_class_id_seq'), $1, $2 RETURNING storage_class_id",
				  2, types, values, NULL, 0);
		id = DatumGetInt32(evbus_column(0, 1, NULL));
		evbus_utility("CREATE TABLE evbus.event_c%d (LIKE evbus.event_log INCLUDING STORAGE) PARTITION BY RANGE (event_id)", id);
		evbus_utility("ALTER TABLE evbus.event_log ATTACH PARTITION evbus.event_c%d FOR VALUES IN (%d)", id, id);
	}
	evbus_internal_end(&state);
	return id;
}

/*
 * evbus.create_bus(bus text, durability text, retention interval, partition_interval interval,
 * max_payload_bytes integer) returns void
 *
 * bus: 1 to 63 bytes, no control characters.  durability: 'durable'.  retention:
 * 1 minute to 100 years, kept in whole leaves of partition_interval (1 minute to
 * 31 days).  max_payload_bytes: 1 to 255 MB, of payload and headers as jsonb.
 * Takes effect when the caller commits.
 * Errors: 0A000 volatile, 22004, 22023, VB002 exists, VB003 no slot left.
 * Privileges: EXECUTE; the caller becomes the owner.
 */
Datum
evbus_create_bus(PG_FUNCTION_ARGS)
{
	static const Oid types[] = {TEXTOID, INT2OID, INT4OID, OIDOID, TEXTOID, INT4OID};
	char	   *name = evbus_arg_name(fcinfo, 0, "bus");
	char	   *durability = evbus_arg_text(fcinfo, 1, "durability");
	int64		retention = evbus_arg_interval(fcinfo, 2, "retention", USECS_PER_MINUTE, RETENTION_MAX);
	int64		interval = evbus_arg_interval(fcinfo, 3, "partition_interval", USECS_PER_MINUTE, INTERVAL_MAX);
	int			max_payload = evbus_arg_int(fcinfo, 4, "max_payload_bytes", 1, EVBUS_PAYLOAD_MAX);
	EvbusDb    *db = evbus_db();
	EvbusBus	bus;
	EvbusInternal state;
	Datum		values[6];
	int			slot;
	int32		class;

	if (strcmp(durability, "volatile") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("volatile buses are not supported yet"),
				 errhint("Make the bus with durability => 'durable'.")));
	if (strcmp(durability, "durable") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("durability must be 'durable'"),
				 errdetail("It is \"%s\".", durability)));

	PreventCommandIfReadOnly("evbus.create_bus()");
	LockRelationOid(evbus_relid("bus"), ShareRowExclusiveLock);	/* one at a time */
	if (evbus_bus_find(name, &bus))
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_BUS_EXISTS),
				 errmsg("bus \"%s\" already exists", name)));
	slot = evbus_registry_free_slot("bus", evbus_max_buses);
	if (slot < 0)
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_TOO_MANY_BUSES),
				 errmsg("cannot create bus \"%s\": all %d slots are in use", name, evbus_max_buses),
				 errhint("Drop a bus that is no longer used, or raise evbus.max_buses and restart the server.")));
	class = find_class(db, retention, interval);

	values[0] = CStringGetTextDatum(name);
	values[1] = Int16GetDatum(slot);
	values[2] = Int32GetDatum(class);
	values[3] = ObjectIdGetDatum(GetUserId());
	values[4] = CStringGetTextDatum(durability);
	values[5] = Int32GetDatum(max_payload);
	evbus_internal_begin(&state);
	evbus_sql(NULL, "INSERT INTO evbus.bus (bus_id, bus, slot, storage_class_id, owner, durability, max_payload_bytes, paused, created_at)"
			  " VALUES (nextval('evbus.bus_id_seq'), $1, $2, $3, $4::regrole, $5, $6, false, now())",
			  6, types, values, NULL, 0);
	evbus_internal_end(&state);
	evbus_registry_changed();
	evbus_upkeep_leaves(db);
	PG_RETURN_VOID();
}

/* A bus that the caller may change, by argument 0. */
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
	static const Oid types[] = {TEXTOID};
	Datum		name = CStringGetTextDatum(bus->name);
	char	   *table = NULL;
	EvbusInternal state;

	evbus_internal_begin(&state);
	if (evbus_sql(NULL, "SELECT tgrelid::regclass::text FROM pg_trigger, (SELECT convert_to($1, getdatabaseencoding()) || '\\x00'::bytea) AS b (bus)"
				  " WHERE tgfoid = 'evbus._changes()'::regprocedure AND tgparentid = 0 AND substring(tgargs FOR length(bus)) = bus"
				  " ORDER BY 1", 1, types, &name, NULL, 1) > 0)
		table = MemoryContextStrdup(TopTransactionContext, TextDatumGetCString(evbus_column(0, 1, NULL)));
	evbus_internal_end(&state);
	if (table)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("cannot %s bus \"%s\": changes of table %s are published to it", what, bus->name, table),
				 errhint("%s", hint)));
}

/*
 * evbus.alter_bus(bus text, retention, partition_interval, max_payload_bytes, rename_to) returns void
 *
 * NULL keeps a setting.  Bounds and errors as evbus.create_bus(), and VB001, 42501
 * not the owner, 55006 to be renamed while changes of a table are published to it.
 * A new retention or interval moves the bus to another storage
 * class: events already stored stay under the old one.
 */
Datum
evbus_alter_bus(PG_FUNCTION_ARGS)
{
	static const Oid types[] = {INT4OID, INT4OID, INT4OID, TEXTOID};
	EvbusBus	bus;
	EvbusBus	other;
	EvbusDb    *db = evbus_db();
	EvbusInternal state;
	Datum		values[4];
	char		nulls[5] = "    ";

	own_bus(fcinfo, &bus);
	LockRelationOid(evbus_relid("bus"), ShareRowExclusiveLock);
	own_bus(fcinfo, &bus);
	values[0] = Int32GetDatum(bus.bus_id);
	values[1] = Int32GetDatum(bus.storage_class_id);
	if (!PG_ARGISNULL(1) || !PG_ARGISNULL(2))
	{
		int64		retention;
		int64		interval;

		evbus_internal_begin(&state);
		evbus_sql(NULL, "SELECT (extract(epoch FROM retention) * 1000000)::bigint, (extract(epoch FROM partition_interval) * 1000000)::bigint"
				  " FROM evbus.storage_class WHERE storage_class_id = $2", 2, types, values, NULL, 1);
		retention = DatumGetInt64(evbus_column(0, 1, NULL));
		interval = DatumGetInt64(evbus_column(0, 2, NULL));
		evbus_internal_end(&state);
		if (!PG_ARGISNULL(1))
			retention = evbus_arg_interval(fcinfo, 1, "retention", USECS_PER_MINUTE, RETENTION_MAX);
		if (!PG_ARGISNULL(2))
			interval = evbus_arg_interval(fcinfo, 2, "partition_interval", USECS_PER_MINUTE, INTERVAL_MAX);
		values[1] = Int32GetDatum(find_class(db, retention, interval));
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
	evbus_internal_begin(&state);
	evbus_sql(NULL, "UPDATE evbus.bus SET storage_class_id = $2, max_payload_bytes = $3, bus = coalesce($4, bus),"
			  " former_classes = CASE WHEN storage_class_id = $2 THEN former_classes"
			  "                  ELSE array_append(array_remove(former_classes, storage_class_id), storage_class_id) END"
			  " WHERE bus_id = $1",
			  4, types, values, nulls, 0);
	evbus_internal_end(&state);
	evbus_registry_changed();
	evbus_upkeep_leaves(db);
	PG_RETURN_VOID();
}

/*
 * evbus.drop_bus(bus text, force boolean) returns void
 *
 * Removes the bus and its subscriptions; its events go with their leaves, its
 * dead letters at their retention.  Refused while a subscription has undelivered
 * events or retries, unless force.  Takes effect when the caller commits.
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
	Datum		values[1];
	bool		force;

	own_bus(fcinfo, &bus);
	evbus_arg_present(fcinfo, 1, "force");
	force = PG_GETARG_BOOL(1);
	PreventCommandIfReadOnly("evbus.drop_bus()");
	LockRelationOid(evbus_relid("subscription"), ShareRowExclusiveLock);	/* nobody subscribes to it meanwhile */
	own_bus(fcinfo, &bus);
	values[0] = Int32GetDatum(bus.bus_id);
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
	evbus_replays_end(0, bus.bus_id);
	evbus_internal_begin(&state);
	evbus_sql(NULL, "DELETE FROM evbus.retry WHERE subscription_id IN (SELECT subscription_id FROM evbus.subscription WHERE bus_id = $1)",
			  1, types, values, NULL, 0);
	evbus_sql(NULL, "DELETE FROM evbus.subscription WHERE bus_id = $1", 1, types, values, NULL, 0);
	evbus_sql(NULL, "DELETE FROM evbus.bus WHERE bus_id = $1", 1, types, values, NULL, 0);
	evbus_internal_end(&state);
	evbus_registry_changed();
	PG_RETURN_VOID();
}

static void
set_paused(FunctionCallInfo fcinfo, bool paused)
{
	static const Oid types[] = {INT4OID, BOOLOID};
	EvbusBus	bus;
	EvbusInternal state;
	Datum		values[2];

	own_bus(fcinfo, &bus);
	values[0] = Int32GetDatum(bus.bus_id);
	values[1] = BoolGetDatum(paused);
	evbus_internal_begin(&state);
	evbus_sql(NULL, "UPDATE evbus.bus SET paused = $2 WHERE bus_id = $1", 2, types, values, NULL, 0);
	evbus_internal_end(&state);
	evbus_registry_changed();
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

/* evbus._bus_state(): a row for each bus in shared memory. */
Datum
evbus_bus_state(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	EvbusDb    *db = evbus_db();

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < evbus_max_buses; i++)
	{
		EvbusBusState *bus = EVBUS_BUS(db, i);
		Datum		values[3];
		bool		nulls[3] = {0};

		values[0] = Int32GetDatum((int32) pg_atomic_read_u32(&bus->bus_id));
		if (DatumGetInt32(values[0]) == 0)
			continue;
		values[1] = Int64GetDatum((int64) pg_atomic_read_u64(&bus->next_position));
		values[2] = Int64GetDatum((int64) pg_atomic_read_u64(&bus->ticked_position));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
