/*-------------------------------------------------------------------------
 * audit.c
 *	  evbus.audit: who did what with the bus, and what it was before.
 *
 * Every function that administers writes one row, in the transaction of the act: there is
 * a row where there was an act, and none where it was rolled back.  The row has the
 * name of the function and the arguments as they were given, but for jsonb, as that may be a payload; and
 * what the act has changed of the bus or subscription, its grants and its limits among it, as it was
 * before and after.
 *
 * Who is refused gets an error, and an error leaves no row; and what takes effect at once does so
 * where the caller rolls back, which would take the row away.  So both are noted in
 * shared memory, and the maintainer writes them: at most one row a minute for each role,
 * action, privilege and object, with the number of times, so that nobody can fill the disk by
 * being refused.  Where there are more of them than places, they are only counted.
 * What the server loses at once, those of the last second are lost with it.
 *
 * Rows are only ever added; leaves go at evbus.audit_retention (retain.c).
 *-------------------------------------------------------------------------
 */
#include "audit.h"

#include "access/relation.h"
#include "access/xlog.h"
#include "area.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "eventlog.h"
#include "funcapi.h"
#include "internal.h"
#include "leaf.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#define ARGUMENT_MAX	1000	/* bytes of an argument that are kept */
#define WRITE_EVERY		USECS_PER_SEC
#define ROW_EVERY		USECS_PER_MINUTE	/* of the same */

/* Minutes; rows older than this go with their leaf. */
int			evbus_audit_retention = 365 * 24 * 60;

/* ------------------------------------------------------------ before and after */

/* The one jsonb that a query about an id finds, in the caller's memory; NULL: none. */
static Jsonb *
look_up(SPIPlanPtr *plan, const char *sql, int32 id)
{
	static const Oid types[] = {INT4OID};
	MemoryContext context = CurrentMemoryContext;
	Datum		value = Int32GetDatum(id);
	EvbusInternal state;
	Jsonb	   *found = NULL;

	evbus_internal_begin(&state);
	if (evbus_sql(plan, sql, 1, types, &value, NULL, 1) > 0)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		found = DatumGetJsonbPCopy(evbus_column(0, 1, NULL));
		MemoryContextSwitchTo(old);
	}
	evbus_internal_end(&state);
	return found;
}

#define GRANTS(words, id) \
	" || coalesce((SELECT jsonb_object_agg(format('%s to %s', p.privilege, p.role::text), p.grantor::text) FROM evbus.privilege p" \
	"  WHERE p.object_id = " id " AND p.privilege IN (" words ")), '{}')"

/* A bus as it is for the caller's transaction: its row, its storage class, grants, limits of roles.  NULL: there is none. */
Jsonb *
evbus_audit_bus(int32 bus_id)
{
	static SPIPlanPtr plan = NULL;

	return look_up(&plan, "SELECT to_jsonb(b) - '{slot,former_classes,storage_class_id}'::text[]"
				   " || coalesce((SELECT to_jsonb(c) - '{storage_class_id,own_bus_id,orphaned_id}'::text[] FROM evbus.storage_class c WHERE c.storage_class_id = b.storage_class_id), '{}')"
				   " || coalesce((SELECT jsonb_object_agg(format('limit of %s', l.role::text), concat_ws('/', l.rate, l.burst)) FROM evbus.publish_limit l WHERE l.bus_id = b.bus_id), '{}')"
				   GRANTS("'publish', 'read', 'subscribe', 'manage'", "b.bus_id")
				   " FROM evbus.bus b WHERE b.bus_id = $1", bus_id);
}

/* The same of a subscription. */
Jsonb *
evbus_audit_subscription(int32 subscription_id)
{
	static SPIPlanPtr plan = NULL;

	return look_up(&plan, "SELECT to_jsonb(s) - '{slot,bus_id,epoch}'::text[] || coalesce((SELECT jsonb_build_object('bus', b.bus) FROM evbus.bus b WHERE b.bus_id = s.bus_id), '{}')"
				   GRANTS("'consume', 'operate'", "s.subscription_id")
				   " FROM evbus.subscription s WHERE s.subscription_id = $1", subscription_id);
}

static Jsonb *
parse(char *json)
{
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(json)));
}

/* {"what": n} */
Jsonb *
evbus_audit_number(const char *what, int64 n)
{
	return parse(psprintf("{\"%s\": " INT64_FORMAT "}", what, n));
}

/* The arguments that were given, by name, as text that is cut where it is long. */
static Jsonb *
arguments(FunctionCallInfo fcinfo)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(fcinfo->flinfo->fn_oid));
	Oid		   *types;
	char	  **names;
	char	   *modes;
	int			n;
	int			input = 0;
	StringInfoData json;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", fcinfo->flinfo->fn_oid);
	n = get_func_arg_info(tuple, &types, &names, &modes);
	ReleaseSysCache(tuple);
	initStringInfo(&json);
	for (int i = 0; i < n; i++)
	{
		Oid			output;
		bool		varlena;
		char	   *value;

		if (modes != NULL && modes[i] != PROARGMODE_IN)
			continue;
		if (!PG_ARGISNULL(input) && types[i] != JSONBOID)
		{
			getTypeOutputInfo(types[i], &output, &varlena);
			value = OidOutputFunctionCall(output, PG_GETARG_DATUM(input));
			value[pg_mbcliplen(value, strlen(value), ARGUMENT_MAX)] = '\0';
			appendStringInfoString(&json, json.len == 0 ? "{" : ", ");
			escape_json(&json, names ? names[i] : "");
			appendStringInfoString(&json, ": ");
			escape_json(&json, value);
		}
		input++;
	}
	appendStringInfoString(&json, json.len == 0 ? "{}" : "}");
	return parse(json.data);
}

/* ------------------------------------------------------------------- the row */

enum
{
	ROW_ID, ROW_AT, ROW_LOGIN, ROW_ROLE, ROW_ACTION, ROW_KIND, ROW_OBJECT, ROW_ARGUMENTS, ROW_BEFORE, ROW_AFTER, N_ROW
};

/* Values but for the id. */
static void
write_row(Datum *values, char *nulls)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[N_ROW] = {INT8OID, TIMESTAMPTZOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID, JSONBOID, JSONBOID};
	EvbusDb    *db = evbus_db();
	EvbusInternal state;
	EvbusLeaf	leaf;
	int64		id;

	evbus_clock_ensure(db);
	id = evbus_clock_take(&db->clock, 1);
	relation_close(evbus_leaf_open(evbus_relid("audit"), id, &leaf), NoLock);
	values[ROW_ID] = Int64GetDatum(id);
	evbus_internal_begin(&state);
	evbus_sql(&plan, "INSERT INTO evbus.audit (audit_id, at, login, role, action, kind, object, arguments, old, new)"
			  " SELECT $1, $2, $3, $4, $5, $6, $7, $8,"
			  " CASE WHEN $9 IS NULL OR $10 IS NULL THEN $9 ELSE (SELECT jsonb_object_agg(key, value) FROM jsonb_each($9) WHERE $10 -> key IS DISTINCT FROM value) END,"
			  " CASE WHEN $9 IS NULL OR $10 IS NULL THEN $10 ELSE (SELECT jsonb_object_agg(key, value) FROM jsonb_each($10) WHERE $9 -> key IS DISTINCT FROM value) END",
			  N_ROW, types, values, nulls, 0);
	evbus_internal_end(&state);
}

static Datum
role_name(Oid role)
{
	char	   *name = GetUserNameFromId(role, true);

	return CStringGetTextDatum(name ? name : psprintf("%u", role));
}

static void
set_text(Datum *values, char *nulls, int i, const char *text)
{
	nulls[i] = text ? ' ' : 'n';
	values[i] = text ? CStringGetTextDatum(text) : (Datum) 0;
}

static void
set_jsonb(Datum *values, char *nulls, int i, const Jsonb *json)
{
	nulls[i] = json ? ' ' : 'n';
	values[i] = PointerGetDatum(json);
}

/*
 * Record the call of an SQL function by the current user, outside evbus_internal_begin(); after what it did, so
 * that a call which fails leaves nothing.  kind: "bus" or "subscription", object: its name, NULL: of none or many;
 * before and after, as evbus_audit_bus() has them: NULL where there is nothing, and of both only what differs is kept.
 * Errors: VB011.
 */
void
evbus_audit(FunctionCallInfo fcinfo, const char *kind, const char *object, const Jsonb *before, const Jsonb *after)
{
	Datum		values[N_ROW];
	char		nulls[N_ROW + 1] = "          ";

	values[ROW_AT] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[ROW_LOGIN] = role_name(GetSessionUserId());
	values[ROW_ROLE] = role_name(GetUserId());
	values[ROW_ACTION] = CStringGetTextDatum(get_func_name(fcinfo->flinfo->fn_oid));
	set_text(values, nulls, ROW_KIND, kind);
	set_text(values, nulls, ROW_OBJECT, object);
	set_jsonb(values, nulls, ROW_ARGUMENTS, arguments(fcinfo));
	set_jsonb(values, nulls, ROW_BEFORE, before);
	set_jsonb(values, nulls, ROW_AFTER, after);
	write_row(values, nulls);
}

/* -------------------------------------------------------------------- noted */

static bool
is_of(const EvbusNoted *r, Oid login, Oid role, const char *action, const char *privilege, const char *kind, const char *object)
{
	return r->login == login && r->role == role && strcmp(r->action, action) == 0 && strcmp(r->privilege, privilege) == 0 && strcmp(r->kind, kind) == 0 &&
		strcmp(r->object, object) == 0;
}

/* Waits for nothing, and does nothing on a standby. */
static void
note(Oid role, const char *action, const char *privilege, const char *kind, const char *object)
{
	EvbusDb    *db = evbus_db();
	Oid			login = GetSessionUserId();
	int64		now = evbus_uptime();
	TimestampTz at = GetCurrentTimestamp();
	EvbusNoted *place = NULL;
	bool		known = false;

	if (RecoveryInProgress())
		return;
	LWLockAcquire(&db->noted_lock, LW_EXCLUSIVE);
	for (int i = 0; i < EVBUS_NOTED; i++)
	{
		EvbusNoted *r = &db->noted[i];

		if (is_of(r, login, role, action, privilege, kind, object))
		{
			place = r;
			known = true;
			break;
		}
		/* One whose minute is over would be due for a row at once, as a new one is. */
		if (place == NULL && r->n == 0 && (r->written_at == 0 || now - r->written_at >= ROW_EVERY))
			place = r;
	}
	if (place == NULL)
		db->noted_left_out++;
	else
	{
		if (!known)
		{
			place->login = login;
			place->role = role;
			place->written_at = 0;
			strlcpy(place->action, action, sizeof(place->action));
			strlcpy(place->privilege, privilege, sizeof(place->privilege));
			strlcpy(place->kind, kind, sizeof(place->kind));
			strlcpy(place->object, object, sizeof(place->object));
		}
		if (place->n++ == 0)
			place->first_at = at;
	}
	LWLockRelease(&db->noted_lock);
	pg_atomic_write_u32(&db->noted_waiting, 1);
}

/* Somebody is about to get 42501: a role lacks the privilege ("owner" for what only owners may). */
void
evbus_audit_refused(Oid role, const char *privilege, const char *kind, const char *object)
{
	note(role, "refused", privilege, kind, object);
}

/* Record the call of an SQL function that takes effect now, whatever becomes of the transaction.  NULL: of no object. */
void
evbus_audit_at_once(FunctionCallInfo fcinfo, const char *kind, const char *object)
{
	note(GetUserId(), get_func_name(fcinfo->flinfo->fn_oid), "", kind ? kind : "", object ? object : "");
}

/* What a turn has to write. */
typedef struct Due
{
	EvbusNoted	noted[EVBUS_NOTED];
	int			places[EVBUS_NOTED];
	int			n;
	int64		left_out;
} Due;

/* Step: rows of what was noted. */
static void
write_noted(void *arg)
{
	Due		   *due = arg;
	Datum		values[N_ROW];

	for (int i = 0; i <= due->n; i++)
	{
		char		nulls[N_ROW + 1] = "          ";
		const EvbusNoted *r = i < due->n ? &due->noted[i] : NULL;
		int64		times = r ? r->n : due->left_out;

		if (times == 0)
			continue;
		values[ROW_AT] = TimestampTzGetDatum(r ? r->first_at : GetCurrentTimestamp());
		values[ROW_LOGIN] = r ? role_name(r->login) : CStringGetTextDatum("");
		values[ROW_ROLE] = r ? role_name(r->role) : CStringGetTextDatum("");
		values[ROW_ACTION] = CStringGetTextDatum(r ? r->action : "left out");
		set_text(values, nulls, ROW_KIND, r && *r->kind ? r->kind : NULL);
		set_text(values, nulls, ROW_OBJECT, r && *r->kind ? r->object : NULL);
		set_jsonb(values, nulls, ROW_ARGUMENTS, r && *r->privilege ? parse(psprintf("{\"privilege\": \"%s\"}", r->privilege)) : NULL);
		set_jsonb(values, nulls, ROW_BEFORE, NULL);
		set_jsonb(values, nulls, ROW_AFTER, evbus_audit_number("times", times));
		write_row(values, nulls);
	}
}

/* For the maintainer, in no transaction: write what is due. */
void
evbus_audit_turn(EvbusDb *db, EvbusRunner run)
{
	static int64 next_at = 0;
	int64		now = evbus_uptime();
	bool		wait = false;
	Due			due = {0};

	if (now < next_at || pg_atomic_read_u32(&db->noted_waiting) == 0)
		return;
	next_at = now + WRITE_EVERY;
	pg_atomic_write_u32(&db->noted_waiting, 0);
	pg_memory_barrier();
	LWLockAcquire(&db->noted_lock, LW_SHARED);
	for (int i = 0; i < EVBUS_NOTED; i++)
	{
		const EvbusNoted *r = &db->noted[i];

		if (r->n > 0 && (r->written_at == 0 || now - r->written_at >= ROW_EVERY))
		{
			due.places[due.n] = i;
			due.noted[due.n++] = *r;
		}
		else if (r->n > 0)
			wait = true;
	}
	if (now - db->left_out_written_at >= ROW_EVERY)
		due.left_out = db->noted_left_out;
	else if (db->noted_left_out > 0)
		wait = true;
	LWLockRelease(&db->noted_lock);
	if (wait)
		pg_atomic_write_u32(&db->noted_waiting, 1);
	if (due.n == 0 && due.left_out == 0)
		return;
	if (run(write_noted, &due) != NULL)
	{
		pg_atomic_write_u32(&db->noted_waiting, 1);	/* again in a second; the error is logged */
		return;
	}
	LWLockAcquire(&db->noted_lock, LW_EXCLUSIVE);
	for (int i = 0; i < due.n; i++)
	{
		/* Nobody takes a place that has something to be written. */
		db->noted[due.places[i]].n -= due.noted[i].n;
		db->noted[due.places[i]].written_at = now;
	}
	if (due.left_out > 0)
	{
		db->noted_left_out -= due.left_out;
		db->left_out_written_at = now;
	}
	LWLockRelease(&db->noted_lock);
}
