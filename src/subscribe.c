/*-------------------------------------------------------------------------
 * subscribe.c
 *	  Subscriptions: subscribe, alter, unsubscribe, pause, resume, seek.
 *
 * A subscription is a row; its progress is in the ledger under its epoch, and
 * its live state at the slot the row names.  All subscriptions of a bus read the
 * same stored events.  The owner is the role that subscribed: its workers log in
 * as it, so it must be able to.
 *-------------------------------------------------------------------------
 */
#include "evbus.h"

#include "access/htup_details.h"
#include "args.h"
#include "audit.h"
#include "bus_idle.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "cursor.h"
#include "delivery.h"
#include "filter.h"
#include "fmgr.h"
#include "funcapi.h"
#include "internal.h"
#include "ledger.h"
#include "miscadmin.h"
#include "position.h"
#include "privilege.h"
#include "registry.h"
#include "replay.h"
#include "storage/lmgr.h"
#include "target.h"
#include "tick.h"
#include "trace.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#define YEAR		(365 * USECS_PER_DAY)
#define DEAD_LETTERS_MAX	10000000
#define MAX_AGE_MAX		(36500 * USECS_PER_DAY)
#define TRIES			10			/* to lock a row that others make and drop again */

PG_FUNCTION_INFO_V1(evbus_subscribe);
PG_FUNCTION_INFO_V1(evbus_alter_subscription);
PG_FUNCTION_INFO_V1(evbus_unsubscribe);
PG_FUNCTION_INFO_V1(evbus_pause);
PG_FUNCTION_INFO_V1(evbus_resume);
PG_FUNCTION_INFO_V1(evbus_seek);
PG_FUNCTION_INFO_V1(evbus_subscription_state);

/* Settings of a subscription as columns of its row. */
enum
{
	SET_TYPES, SET_HANDLER_SCHEMA, SET_HANDLER_NAME, SET_HANDLER_BATCH, SET_HANDLER_OWNER, SET_BATCH_SIZE, SET_CONCURRENCY,
	SET_MAX_ATTEMPTS, SET_BACKOFF_INITIAL, SET_BACKOFF_MAX, SET_LEASE, SET_TIMEOUT, SET_NOTIFY, SET_ORDERING, SET_ON_FAILURE,
	SET_MAX_DEAD, SET_DEAD_FULL, SET_RATE, SET_BURST, SET_FILTER, SET_MAX_AGE,
	SET_BREAKER_THRESHOLD, SET_BREAKER_WINDOW, SET_BREAKER_MIN, SET_BREAKER_PROBE, SET_BY_PRIORITY, N_SETTINGS
};

typedef struct Settings
{
	Datum		values[N_SETTINGS];
	char		nulls[N_SETTINGS + 1];
} Settings;

static const Oid setting_types[N_SETTINGS] = {TEXTARRAYOID, TEXTOID, TEXTOID, BOOLOID, OIDOID, INT4OID, INT4OID,
INT4OID, INTERVALOID, INTERVALOID, INTERVALOID, INTERVALOID, BOOLOID, TEXTOID, TEXTOID, INT4OID, TEXTOID, INT4OID, INT4OID,
JSONPATHOID, INTERVALOID, FLOAT8OID, INTERVALOID, INT4OID, INTERVALOID, BOOLOID};

/* ----------------------------------------------------------------- checking */

/* Errors VB010 if the function cannot be a handler run by its owner. */
static void
check_handler(Oid handler, Oid owner, Settings *set)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(handler));
	Form_pg_proc proc;
	const char *why = NULL;
	bool		batch = false;
	const char *name = DatumGetCString(DirectFunctionCall1(regprocedureout, ObjectIdGetDatum(handler)));

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function with OID %u does not exist", handler)));
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	if (proc->prokind != PROKIND_FUNCTION)
		why = "It is not a plain function.";
	else if (proc->proretset)
		why = "It returns a set.";
	else if (proc->pronargs != 1 ||
			 (proc->proargtypes.values[0] != evbus_event_type(false) && proc->proargtypes.values[0] != evbus_event_type(true)))
		why = "Its argument is not evbus.event or evbus.event[].";
	else
		batch = proc->proargtypes.values[0] == evbus_event_type(true);
	if (why == NULL && evbus_proc_aclcheck(handler, owner) != ACLCHECK_OK)
		why = "The owner of the subscription may not execute it.";
	if (why)
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_BAD_HANDLER),
				 errmsg("%s cannot be a handler", name),
				 errdetail("%s", why),
				 errhint("A handler is a function f(evbus.event) or f(evbus.event[]) that the owner of the subscription may execute.")));
	set->values[SET_HANDLER_SCHEMA] = CStringGetTextDatum(get_namespace_name(proc->pronamespace));
	set->values[SET_HANDLER_NAME] = CStringGetTextDatum(NameStr(proc->proname));
	set->values[SET_HANDLER_BATCH] = BoolGetDatum(batch);
	set->values[SET_HANDLER_OWNER] = ObjectIdGetDatum(proc->proowner);
	ReleaseSysCache(tuple);
	why = evbus_cannot_log_in(owner);
	if (why)
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_BAD_HANDLER),
				 errmsg("role \"%s\" cannot own a subscription with a handler", GetUserNameFromId(owner, false)),
				 errdetail("Handlers are called by workers that log in as the owner: %s.", why),
				 errhint("Subscribe as a role that can log in to this database.")));
}

/* Read an argument into a column; NULL (only where allowed) leaves it out. */
static void
set_int(FunctionCallInfo fcinfo, int n, const char *name, int low, int high, bool optional, Settings *set, int column)
{
	if (optional && PG_ARGISNULL(n))
		return;
	set->values[column] = Int32GetDatum(evbus_arg_int(fcinfo, n, name, low, high));
	set->nulls[column] = ' ';
}

static int64
set_interval(FunctionCallInfo fcinfo, int n, const char *name, int64 low, int64 high, bool optional, Settings *set, int column,
			 int64 current)
{
	int64		value;

	if (optional && PG_ARGISNULL(n))
		return current;
	value = evbus_arg_interval(fcinfo, n, name, low, high);
	set->values[column] = evbus_interval_datum(value);
	set->nulls[column] = ' ';
	return value;
}

static void
set_bool(FunctionCallInfo fcinfo, int n, const char *name, bool optional, Settings *set, int column)
{
	if (optional && PG_ARGISNULL(n))
		return;
	evbus_arg_present(fcinfo, n, name);
	set->values[column] = PG_GETARG_DATUM(n);
	set->nulls[column] = ' ';
}

static const char *const orderings[] = {"none", "key", "strict"};
static const char *const on_failures[] = {"block_key", "skip"};
static const char *const dead_letters_full[] = {"pause", "drop_oldest"};

/* An argument that is one of a few words. */
static void
set_choice(FunctionCallInfo fcinfo, int n, const char *name, const char *const *choices, int n_choices, bool optional,
		   Settings *set, int column)
{
	if (optional && PG_ARGISNULL(n))
		return;
	(void) evbus_arg_choice(fcinfo, n, name, choices, n_choices);
	set->values[column] = PG_GETARG_DATUM(n);
	set->nulls[column] = ' ';
}

/* What is delivered in order cannot come by priority. */
static void
check_order(const Settings *set, const EvbusSubscription *sub)
{
	bool		by_priority = set->nulls[SET_BY_PRIORITY] == ' ' ? DatumGetBool(set->values[SET_BY_PRIORITY]) : sub && sub->by_priority;
	bool		in_order = set->nulls[SET_ORDERING] == ' ' ? strcmp(TextDatumGetCString(set->values[SET_ORDERING]), "none") != 0
		: sub && sub->ordering != EVBUS_ORDER_NONE;

	if (by_priority && in_order)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("by_priority and ordering cannot both be given"),
				 errdetail("An event that overtakes others is not in the order of its key, or of the bus."),
				 errhint("Use ordering => 'none', or by_priority => false.")));
}

/* A burst is of a rate, and goes with it.  In subscribe() both are given. */
static void
check_burst(Settings *set, const EvbusSubscription *sub)
{
	int			rate = set->nulls[SET_RATE] == ' ' ? DatumGetInt32(set->values[SET_RATE]) : sub->delivery_rate;

	if (set->nulls[SET_BURST] == ' ')
		evbus_check_burst(rate, DatumGetInt32(set->values[SET_BURST]), "delivery_rate", "delivery_burst");
	else if (rate == 0)
		set->nulls[SET_BURST] = ' ';	/* 0: none */
}

/*
 * The settings among the arguments: types at `types`, handler next to it, the
 * rest from `first` on.  sub is what they change, NULL in subscribe().
 */
static void
read_settings(FunctionCallInfo fcinfo, int types, int first, const EvbusSubscription *sub, Oid owner, Settings *set)
{
	bool		optional = sub != NULL;
	int64		initial;
	int64		max;

	memset(set->nulls, 'n', N_SETTINGS);
	set->nulls[N_SETTINGS] = '\0';
	memset(set->values, 0, sizeof(set->values));
	if (!optional || !PG_ARGISNULL(types))
	{
		evbus_check_patterns(fcinfo, types);
		set->values[SET_TYPES] = PG_GETARG_DATUM(types);
		set->nulls[SET_TYPES] = ' ';
	}
	if (!PG_ARGISNULL(types + 1))
	{
		check_handler(PG_GETARG_OID(types + 1), owner, set);
		set->nulls[SET_HANDLER_SCHEMA] = set->nulls[SET_HANDLER_NAME] = ' ';
		set->nulls[SET_HANDLER_BATCH] = set->nulls[SET_HANDLER_OWNER] = ' ';
	}
	set_int(fcinfo, first, "batch_size", 1, EVBUS_BATCH_MAX, optional, set, SET_BATCH_SIZE);
	set_int(fcinfo, first + 1, "concurrency", 1, Max(evbus_max_handler_workers - 1, 1), optional, set, SET_CONCURRENCY);
	set_int(fcinfo, first + 2, "max_attempts", 1, EVBUS_ATTEMPTS_MAX, optional, set, SET_MAX_ATTEMPTS);
	initial = set_interval(fcinfo, first + 3, "backoff_initial", 0, YEAR, optional, set, SET_BACKOFF_INITIAL, sub ? sub->backoff_initial : 0);
	max = set_interval(fcinfo, first + 4, "backoff_max", 0, YEAR, optional, set, SET_BACKOFF_MAX, sub ? sub->backoff_max : 0);
	if (max < initial)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("backoff_max must not be less than backoff_initial"),
				 errdetail("backoff_initial is %g s, backoff_max is %g s.", initial / 1e6, max / 1e6)));
	(void) set_interval(fcinfo, first + 5, "lease", USECS_PER_SEC, USECS_PER_DAY, optional, set, SET_LEASE, 0);
	(void) set_interval(fcinfo, first + 6, "timeout", 10 * 1000, USECS_PER_DAY, optional, set, SET_TIMEOUT, 0);
	set_bool(fcinfo, first + 7, "notify", optional, set, SET_NOTIFY);
	set_choice(fcinfo, first + 8, "ordering", orderings, lengthof(orderings), optional, set, SET_ORDERING);
	set_choice(fcinfo, first + 9, "on_failure", on_failures, lengthof(on_failures), optional, set, SET_ON_FAILURE);
	set_int(fcinfo, first + 10, "max_dead_letters", 0, DEAD_LETTERS_MAX, optional, set, SET_MAX_DEAD);
	set_choice(fcinfo, first + 11, "dead_letters_full", dead_letters_full, lengthof(dead_letters_full), optional, set, SET_DEAD_FULL);
	set_int(fcinfo, first + 12, "delivery_rate", 0, EVBUS_RATE_MAX, optional, set, SET_RATE);
	set_int(fcinfo, first + 13, "delivery_burst", 0, EVBUS_RATE_MAX, optional, set, SET_BURST);
	check_burst(set, sub);
	if (!PG_ARGISNULL(first + 14))
	{
		evbus_filter_check(PG_GETARG_DATUM(first + 14));
		set->values[SET_FILTER] = PG_GETARG_DATUM(first + 14);
		set->nulls[SET_FILTER] = ' ';
	}
	(void) set_interval(fcinfo, first + 15, "max_age", 0, MAX_AGE_MAX, true, set, SET_MAX_AGE, 0);
	if (!optional || !PG_ARGISNULL(first + 16))
	{
		set->values[SET_BREAKER_THRESHOLD] = Float8GetDatum(evbus_arg_share(fcinfo, first + 16, "breaker_threshold"));
		set->nulls[SET_BREAKER_THRESHOLD] = ' ';
	}
	(void) set_interval(fcinfo, first + 17, "breaker_window", USECS_PER_SEC, USECS_PER_DAY, optional, set, SET_BREAKER_WINDOW, 0);
	set_int(fcinfo, first + 18, "breaker_min", 2, EVBUS_BREAKER_IDS, optional, set, SET_BREAKER_MIN);
	(void) set_interval(fcinfo, first + 19, "breaker_probe", 10 * 1000, USECS_PER_HOUR, optional, set, SET_BREAKER_PROBE, 0);
	set_bool(fcinfo, first + 20, "by_priority", optional, set, SET_BY_PRIORITY);
	check_order(set, sub);
}

/* ---------------------------------------------------------------- positions */

/* Argument start_from: 'now', 'beginning', a position, or a timestamptz. */
static int64
start_position(FunctionCallInfo fcinfo, int n, EvbusDb *db, int32 bus_id, int bus_slot)
{
	EvbusPlace	place;

	evbus_position_find(db, bus_id, bus_slot, evbus_arg_text(fcinfo, n, "start_from"), &place);
	return place.kind == EVBUS_PLACE_POSITION ? Max(place.position, evbus_position_first(db, bus_id)) : place.position;
}

/* -------------------------------------------------------------------- verbs */

static void
check_new(const char *name)
{
	if (evbus_subscription_get(name, true))
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_SUBSCRIPTION_EXISTS),
				 errmsg("subscription \"%s\" already exists", name),
				 errhint("Subscription names are unique in the database; change it with evbus.alter_subscription().")));
}

/*
 * evbus.subscribe(bus text, subscription text, types text[], handler regprocedure, start_from text,
 * batch_size integer, concurrency integer, max_attempts integer, backoff_initial interval,
 * backoff_max interval, lease interval, timeout interval, notify boolean, ordering text, on_failure text,
 * max_dead_letters integer, dead_letters_full text, delivery_rate integer, delivery_burst integer, filter jsonpath,
 * max_age interval, breaker_threshold double precision, breaker_window interval, breaker_min integer,
 * breaker_probe interval, by_priority boolean) returns bigint
 *
 * Returns the position it starts at.  Bounds are in the guide and in the errors;
 * start_from: 'now', 'beginning', a position, or a time.  max_dead_letters: 0 is no quota.  delivery_rate: 1
 * to 1000000 deliveries a second, retries and replays among them; 0: as many as there are.  filter: NULL or '$'
 * lets everything through; max_age: 0 to 36500 days, NULL or 0 is no bound; breaker_threshold: 0 is no
 * circuit breaker; by_priority: what has a higher priority comes first (priority.c).  Takes effect when
 * the caller commits.
 * Errors: 22004, 22023, 22007 not a time, VB001, VB005 exists, VB007 no slot left,
 * VB010 handler not usable.  Privileges: EXECUTE; the caller becomes the owner.
 */
Datum
evbus_subscribe(PG_FUNCTION_ARGS)
{
	char	   *bus_name = evbus_arg_text(fcinfo, 0, "bus");
	char	   *name = evbus_arg_name(fcinfo, 1, "subscription");
	EvbusDb    *db = evbus_db();
	EvbusBus	bus;
	Settings	set;
	EvbusInternal state;
	Oid			types[N_SETTINGS + 5];
	Datum		values[N_SETTINGS + 5];
	char		nulls[N_SETTINGS + 6];
	EvbusPlace	place;
	int32		bus_id;
	int32		id;
	int			slot;
	int64		position;

	/* What is wrong with the arguments is said before a bus is made for them. */
	read_settings(fcinfo, 2, 5, NULL, GetUserId(), &set);
	evbus_position_parse(evbus_arg_text(fcinfo, 4, "start_from"), &place);
	if (!evbus_bus_find(bus_name, &bus))
	{
		check_new(name);		/* else under the lock: who waits for it may find it free */
		if (place.kind == EVBUS_PLACE_POSITION && place.position != 1)
			evbus_position_refuse(text_to_cstring(PG_GETARG_TEXT_PP(4)), 1);
	}
	evbus_bus_get_or_make(db, bus_name, "evbus.subscribe()", &bus);
	evbus_check_bus(&bus, GetUserId(), EVBUS_SUBSCRIBE);
	PreventCommandIfReadOnly("evbus.subscribe()");
	position = start_position(fcinfo, 4, db, bus.bus_id, bus.slot);

	bus_id = bus.bus_id;
	LockRelationOid(evbus_relid("subscription"), ShareRowExclusiveLock);	/* one at a time */
	evbus_bus_get(bus_name, &bus);
	evbus_check_bus(&bus, GetUserId(), EVBUS_SUBSCRIBE);
	if (bus.bus_id != bus_id)	/* another of its name by now, with positions of its own */
		position = start_position(fcinfo, 4, db, bus.bus_id, bus.slot);
	check_new(name);
	slot = evbus_registry_free_slot("subscription", evbus_max_subscriptions);
	if (slot < 0)
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_TOO_MANY_SUBSCRIPTIONS),
				 errmsg("cannot create subscription \"%s\": all %d slots are in use", name, evbus_max_subscriptions),
				 errhint("Unsubscribe what is no longer used, or raise evbus.max_subscriptions and restart the server.")));

	memcpy(types, setting_types, sizeof(setting_types));
	memcpy(values, set.values, sizeof(set.values));
	memcpy(nulls, set.nulls, N_SETTINGS);
	memset(nulls + N_SETTINGS, ' ', 5);
	nulls[N_SETTINGS + 5] = '\0';
	types[N_SETTINGS] = TEXTOID;
	values[N_SETTINGS] = CStringGetTextDatum(name);
	types[N_SETTINGS + 1] = INT4OID;
	values[N_SETTINGS + 1] = Int32GetDatum(slot);
	types[N_SETTINGS + 2] = INT4OID;
	values[N_SETTINGS + 2] = Int32GetDatum(bus.bus_id);
	types[N_SETTINGS + 3] = OIDOID;
	values[N_SETTINGS + 3] = ObjectIdGetDatum(GetUserId());
	types[N_SETTINGS + 4] = INT8OID;
	values[N_SETTINGS + 4] = Int64GetDatum(position);
	evbus_internal_begin(&state);
	evbus_sql(NULL,
			  "INSERT INTO evbus.subscription (subscription_id, subscription, slot, bus_id, owner, epoch, start_position, types,"
			  " handler_schema, handler_name, handler_batch, handler_owner, batch_size, concurrency, max_attempts, backoff_initial, backoff_max,"
			  " lease, timeout, notify, ordering, on_failure, max_dead_letters, dead_letters_full, delivery_rate, delivery_burst, filter, max_age,"
			  " breaker_threshold, breaker_window, breaker_min, breaker_probe, by_priority, paused, created_at)"
			  " VALUES (nextval('evbus.subscription_id_seq'), $27, $28, $29, $30::regrole, nextval('evbus.subscription_id_seq'), $31, $1,"
			  " $2, $3, $4, $5::regrole, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, nullif($16, 0), $17, nullif($18, 0), nullif($19, 0),"
			  " CASE WHEN $20::text NOT IN ('$', 'strict $') THEN $20 END, nullif($21, '0'), nullif($22, 0), $23, $24, $25, $26, false, now()) RETURNING subscription_id",
			  N_SETTINGS + 5, types, values, nulls, 0);
	id = DatumGetInt32(evbus_column(0, 1, NULL));
	evbus_internal_end(&state);
	evbus_registry_changed();
	evbus_audit(fcinfo, "subscription", name, NULL, evbus_audit_subscription(id));
	PG_RETURN_INT64(position);
}

/* A subscription that the caller may operate, by argument 0. */
static EvbusSubscription *
operated_subscription(FunctionCallInfo fcinfo)
{
	EvbusSubscription *sub = evbus_subscription_get(evbus_arg_text(fcinfo, 0, "subscription"), false);

	evbus_check_subscription(sub, GetUserId(), EVBUS_OPERATE);
	return sub;
}

/* Run one statement about a subscription ($1), a text ($2) and a number ($3); returns the rows. */
static uint64
change(const EvbusSubscription *sub, const char *sql, const char *text_value, int64 number)
{
	static const Oid types[] = {INT4OID, TEXTOID, INT8OID};
	Datum		values[3];
	char		nulls[4] = "   ";
	EvbusInternal state;
	uint64		rows;

	values[0] = Int32GetDatum(sub->subscription_id);
	values[1] = text_value ? CStringGetTextDatum(text_value) : (Datum) 0;
	nulls[1] = text_value ? ' ' : 'n';
	values[2] = Int64GetDatum(number);
	evbus_internal_begin(&state);
	rows = evbus_sql(NULL, sql, 3, types, values, nulls, 0);
	evbus_internal_end(&state);
	return rows;
}

/*
 * A subscription that the caller may change, by argument 0, once nobody else is about to: its row
 * is locked until the transaction ends, and what is returned is what the others have left.
 */
static EvbusSubscription *
locked_subscription(FunctionCallInfo fcinfo, const char *what)
{
	PreventCommandIfReadOnly(what);
	for (int i = 0; i < TRIES; i++)
	{
		EvbusSubscription *sub = operated_subscription(fcinfo);
		int32		id = sub->subscription_id;
		bool		found = change(sub, "SELECT 1 FROM evbus.subscription WHERE subscription_id = $1 FOR UPDATE", NULL, 0) > 0;

		AcceptInvalidationMessages();
		sub = operated_subscription(fcinfo); /* an error if it is gone */
		if (found && sub->subscription_id == id)
			return sub;
	}
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not serialize access to subscription \"%s\" due to concurrent update", operated_subscription(fcinfo)->name)));
}

/* The subscription was changed, or is gone. */
static void
record(FunctionCallInfo fcinfo, const EvbusSubscription *sub, const Jsonb *before)
{
	evbus_registry_changed();
	evbus_audit(fcinfo, "subscription", sub->name, before, evbus_audit_subscription(sub->subscription_id));
}

/* What a volatile bus has overwritten is counted when somebody looks: before it is settled otherwise. */
static void
count_dropped(const EvbusSubscription *sub)
{
	EvbusCursorState state;

	if (sub->is_volatile)
		(void) evbus_cursor_progress(evbus_db(), sub, &state);
}

/*
 * evbus.alter_subscription(subscription text, types, handler, batch_size, concurrency, max_attempts,
 * backoff_initial, backoff_max, lease, timeout, notify, ordering, on_failure, max_dead_letters,
 * dead_letters_full, delivery_rate, delivery_burst, filter, max_age, breaker_threshold, breaker_window,
 * breaker_min, breaker_probe, by_priority) returns void
 *
 * NULL keeps a setting; filter '$' and max_age 0 take it away.  Takes effect with the first batch after the caller
 * commits.  Errors as evbus.subscribe(), and VB004, 42501 not the owner.
 */
Datum
evbus_alter_subscription(PG_FUNCTION_ARGS)
{
	EvbusSubscription *sub = locked_subscription(fcinfo, "evbus.alter_subscription()");
	Jsonb	   *before = evbus_audit_subscription(sub->subscription_id);
	Settings	set;
	EvbusInternal state;
	Oid			types[N_SETTINGS + 1];
	Datum		values[N_SETTINGS + 1];
	char		nulls[N_SETTINGS + 2];

	if (!PG_ARGISNULL(2) || !PG_ARGISNULL(3 + 14))	/* they run as the owner */
		evbus_check_owner(sub->owner, "subscription", sub->name);
	read_settings(fcinfo, 1, 3, sub, sub->owner, &set);
	memcpy(types, setting_types, sizeof(setting_types));
	memcpy(values, set.values, sizeof(set.values));
	memcpy(nulls, set.nulls, N_SETTINGS);
	types[N_SETTINGS] = INT4OID;
	values[N_SETTINGS] = Int32GetDatum(sub->subscription_id);
	nulls[N_SETTINGS] = ' ';
	nulls[N_SETTINGS + 1] = '\0';
	evbus_internal_begin(&state);
	evbus_sql(NULL,
			  "UPDATE evbus.subscription SET types = coalesce($1, types), handler_schema = coalesce($2, handler_schema),"
			  " handler_name = coalesce($3, handler_name), handler_batch = coalesce($4, handler_batch),"
			  " handler_owner = coalesce($5::regrole, handler_owner),"
			  " batch_size = coalesce($6, batch_size), concurrency = coalesce($7, concurrency),"
			  " max_attempts = coalesce($8, max_attempts), backoff_initial = coalesce($9, backoff_initial),"
			  " backoff_max = coalesce($10, backoff_max), lease = coalesce($11, lease), timeout = coalesce($12, timeout),"
			  " notify = coalesce($13, notify), ordering = coalesce($14, ordering), on_failure = coalesce($15, on_failure),"
			  " max_dead_letters = nullif(coalesce($16, max_dead_letters), 0), dead_letters_full = coalesce($17, dead_letters_full),"
			  " delivery_rate = nullif(coalesce($18, delivery_rate), 0), delivery_burst = nullif(coalesce($19, delivery_burst), 0),"
			  " filter = CASE WHEN $20 IS NULL THEN filter WHEN $20::text NOT IN ('$', 'strict $') THEN $20 END,"
			  " max_age = nullif(coalesce($21, max_age), '0'),"
			  " breaker_threshold = nullif(coalesce($22, breaker_threshold), 0), breaker_window = coalesce($23, breaker_window),"
			  " breaker_min = coalesce($24, breaker_min), breaker_probe = coalesce($25, breaker_probe), by_priority = coalesce($26, by_priority)"
			  " WHERE subscription_id = $27",
			  N_SETTINGS + 1, types, values, nulls, 0);
	evbus_internal_end(&state);
	record(fcinfo, sub, before);
	PG_RETURN_VOID();
}

/*
 * evbus.unsubscribe(subscription text) returns void: removes it with its progress,
 * its retries and its replays when the caller commits.  Errors: 22004, 42501, VB004.
 */
Datum
evbus_unsubscribe(PG_FUNCTION_ARGS)
{
	EvbusSubscription *sub = locked_subscription(fcinfo, "evbus.unsubscribe()");
	Jsonb	   *before;

	evbus_check_owner(sub->owner, "subscription", sub->name);
	before = evbus_audit_subscription(sub->subscription_id);
	count_dropped(sub);
	evbus_replays_end(sub->subscription_id, 0);
	(void) change(sub, "DELETE FROM evbus.subscription WHERE subscription_id = $1", NULL, 0);
	(void) change(sub, "DELETE FROM evbus.retry WHERE subscription_id = $1", NULL, 0);
	record(fcinfo, sub, before);
	PG_RETURN_VOID();
}

/*
 * evbus.pause(subscription text, reason text) returns void: stops its deliveries
 * when the caller commits; what is in flight ends.  Errors: 22004, 42501, VB004.
 */
Datum
evbus_pause(PG_FUNCTION_ARGS)
{
	EvbusSubscription *sub = locked_subscription(fcinfo, "evbus.pause()");
	Jsonb	   *before = evbus_audit_subscription(sub->subscription_id);

	(void) change(sub, "UPDATE evbus.subscription SET paused = true, paused_reason = $2 WHERE subscription_id = $1",
		   PG_ARGISNULL(1) ? "evbus.pause()" : text_to_cstring(PG_GETARG_TEXT_PP(1)), 0);
	record(fcinfo, sub, before);
	PG_RETURN_VOID();
}

/* evbus.resume(subscription text) returns void.  Errors: 22004, 42501, VB004. */
Datum
evbus_resume(PG_FUNCTION_ARGS)
{
	EvbusSubscription *sub = locked_subscription(fcinfo, "evbus.resume()");
	Jsonb	   *before = evbus_audit_subscription(sub->subscription_id);

	(void) change(sub, "UPDATE evbus.subscription SET paused = false, paused_reason = NULL WHERE subscription_id = $1", NULL, 0);
	record(fcinfo, sub, before);
	PG_RETURN_VOID();
}

/*
 * evbus.seek(subscription text, start_from text) returns bigint
 *
 * Moves it as subscribe(start_from) would and returns the position; when the
 * caller commits, older receipts end, and a batch that a handler is at is rolled
 * back.  Retries and replays stay.
 * Errors: 22004, 22007, 22023, 42501, VB004.
 */
Datum
evbus_seek(PG_FUNCTION_ARGS)
{
	EvbusSubscription *sub = locked_subscription(fcinfo, "evbus.seek()");
	EvbusDb    *db = evbus_db();
	int64		position = start_position(fcinfo, 1, db, sub->bus_id, sub->bus_slot);
	EvbusCursorState state;
	Jsonb	   *before = evbus_cursor_progress(db, sub, &state) ? evbus_audit_number("position", state.cursor) : NULL;	/* counts what was dropped, too */

	(void) change(sub, "UPDATE evbus.subscription SET epoch = nextval('evbus.subscription_id_seq'), start_position = $3"
		   " WHERE subscription_id = $1", NULL, position);
	evbus_registry_changed();
	evbus_audit(fcinfo, "subscription", sub->name, before, evbus_audit_number("position", position));
	PG_RETURN_INT64(position);
}

/*
 * evbus._subscription_state(): a row for each subscription whose progress is loaded.
 * What was committed before the call is counted.
 */
Datum
evbus_subscription_state(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	EvbusDb    *db = evbus_db();
	int			n;
	EvbusSubscription *subs = evbus_subscriptions(&n);

	InitMaterializedSRF(fcinfo, 0);
	/* Who waits for a lag of 0 has committed what is to be counted. */
	if (pg_atomic_read_u32(&db->ready))
		evbus_wait_placed(db, subs, n, pg_atomic_read_u64(&db->ring_tail));
	for (int i = 0; i < n; i++)
	{
		EvbusCursorState state;
		Datum		values[10];
		bool		nulls[10] = {0};
		TimestampTz trace_until = evbus_trace_until(db, &subs[i]);

		if (pg_atomic_read_u32(&db->ready))
			(void) evbus_ledger_attach(db, &subs[i]);
		if (!evbus_cursor_progress(db, &subs[i], &state))
			continue;
		values[0] = Int32GetDatum(subs[i].subscription_id);
		values[1] = Int64GetDatum(state.cursor);
		values[2] = Int64GetDatum(state.next_position);
		values[3] = Int64GetDatum(state.in_flight);
		values[4] = Int64GetDatum(state.undelivered);
		values[5] = Int32GetDatum(state.workers);
		values[6] = Int64GetDatum(state.dropped);
		values[7] = Int64GetDatum((int64) pg_atomic_read_u64(&EVBUS_SUB(db, subs[i].slot)->filtered));
		values[8] = Int64GetDatum((int64) pg_atomic_read_u64(&EVBUS_SUB(db, subs[i].slot)->expired));
		values[9] = TimestampTzGetDatum(trace_until);
		nulls[9] = trace_until == 0;
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
