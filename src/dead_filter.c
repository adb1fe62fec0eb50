/*-------------------------------------------------------------------------
 * dead_filter.c
 *	  Which dead letters a call is about: by id or by filter, and whose.
 *
 * A name in a filter is looked up once and stands for its subscription or bus from
 * then on: so a misspelt one is an error and not "none found", a bus that was
 * renamed still finds its old dead letters, and a subscription made anew under
 * the name of a dropped one does not inherit what that left.
 *-------------------------------------------------------------------------
 */
#include "dead_filter.h"

#include "args.h"
#include "audit.h"
#include "catalog/pg_type.h"
#include "internal.h"
#include "miscadmin.h"
#include "privilege.h"
#include "registry.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

const Oid	evbus_dead_types[EVBUS_DEAD_PARAMS] = {INT8ARRAYOID, TEXTOID, TEXTOID, TEXTARRAYOID, TEXTOID,
TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID, INT8OID, INT8OID, TEXTOID, TEXTOID};

void
evbus_dead_filter_init(EvbusDeadFilter *filter)
{
	memset(filter, 0, sizeof(*filter));
	memset(filter->nulls, 'n', EVBUS_DEAD_PARAMS);
}

void
evbus_dead_filter_set(EvbusDeadFilter *filter, EvbusDeadParam param, Datum value)
{
	filter->values[param] = value;
	filter->nulls[param] = ' ';
}

/* Is there, or was there lately, a dead letter with this name in that column? */
static bool
left_behind(const char *column, const char *name)
{
	static const Oid types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	EvbusInternal state;
	bool		found;

	evbus_internal_begin(&state);
	found = evbus_sql(NULL, psprintf("SELECT 1 FROM evbus.dead_letter_count WHERE %s = $1"
									 " UNION ALL SELECT 1 FROM evbus.dead_letter_delta WHERE %s = $1 LIMIT 1", column, column),
					  1, types, values, NULL, 1) > 0;
	evbus_internal_end(&state);
	return found;
}

/*
 * Whose dead letters: those of subscriptions that the role owns and the filter is
 * about; gone_too: for superusers also what dropped subscriptions left.
 */
void
evbus_dead_filter_scope(EvbusDeadFilter *filter, Oid role, bool gone_too)
{
	StringInfoData mine;
	StringInfoData all;
	int			n;
	EvbusSubscription *subs = evbus_subscriptions(&n);

	initStringInfo(&mine);
	initStringInfo(&all);
	for (int i = 0; i < n; i++)
	{
		appendStringInfo(&all, "%s%d", all.len ? "," : "", subs[i].subscription_id);
		if ((filter->subscription_id == 0 || filter->subscription_id == subs[i].subscription_id) &&
			(filter->bus_id == 0 || filter->bus_id == subs[i].bus_id) &&
			evbus_subscription_allows(&subs[i], role, EVBUS_OPERATE))
			appendStringInfo(&mine, "%s%d", mine.len ? "," : "", subs[i].subscription_id);
	}
	filter->scope = psprintf("d.subscription_id = ANY ('{%s}'::int[])", mine.data);
	if (gone_too && superuser_arg(role))
		filter->scope = psprintf("(%s OR (d.subscription_id <> ALL ('{%s}'::int[])%s%s))", filter->scope, all.data,
								 filter->nulls[EVBUS_DEAD_SUBSCRIPTION] == 'n' ? "" : " AND d.subscription = $2",
								 filter->nulls[EVBUS_DEAD_BUS] == 'n' ? "" : " AND d.bus = $3");
}

/* The condition on evbus.dead_letter_log d, without the limit. */
char *
evbus_dead_filter_where(const EvbusDeadFilter *filter)
{
	static const char *const conditions[EVBUS_DEAD_PARAMS] = {
		[EVBUS_DEAD_IDS] = " AND d.dead_letter_id = ANY ($1)",
		[EVBUS_DEAD_TYPES] = " AND evbus._type_matches(d.type, $4)",
		[EVBUS_DEAD_SQLSTATE] = " AND d.sqlstate = $5",
		[EVBUS_DEAD_AFTER] = " AND d.dead_at >= $6",
		[EVBUS_DEAD_BEFORE] = " AND d.dead_at < $7",
		[EVBUS_DEAD_FROM_ID] = " AND d.dead_letter_id > $9",
		[EVBUS_DEAD_UPTO_ID] = " AND d.dead_letter_id <= $10",
	};
	StringInfoData where;

	initStringInfo(&where);
	appendStringInfoString(&where, filter->scope);
	for (int i = 0; i < EVBUS_DEAD_PARAMS; i++)
		if (conditions[i] && filter->nulls[i] != 'n')
			appendStringInfoString(&where, conditions[i]);
	return where.data;
}

/* Errors VB004. */
void
evbus_dead_filter_nobody_left(const char *subscription)
{
	ereport(ERROR,
			(errcode(ERRCODE_EVBUS_NO_SUBSCRIPTION),
			 errmsg("subscription \"%s\" no longer exists", subscription),
			 errhint("Its dead letters can be read and discarded, but nobody is left to deliver them to.")));
}

/* What has no owner any more. */
static void pg_attribute_noreturn()
refuse_left(Oid role, const char *subscription)
{
	evbus_audit_refused(role, "superuser", "subscription", subscription);
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("subscription \"%s\" no longer exists", subscription),
			 errhint("What it left can be discarded by superusers.")));
}

/*
 * Arguments 0 to 6: subscription, bus, types, sqlstate, dead_after, dead_before,
 * max_events, each of which may be NULL.  gone_too: what was dropped may be named.
 */
void
evbus_dead_filter_read(FunctionCallInfo fcinfo, EvbusDeadFilter *filter, bool gone_too)
{
	evbus_dead_filter_init(filter);
	if (!PG_ARGISNULL(0))
	{
		char	   *name = evbus_arg_text(fcinfo, 0, "subscription");

		/* What looks like an array is a text to PostgreSQL, so it came here. */
		if (name[0] == '{' && evbus_subscription_get(name, true) == NULL && !left_behind("subscription", name))
			ereport(ERROR,
					(errcode(ERRCODE_EVBUS_NO_SUBSCRIPTION),
					 errmsg("subscription \"%s\" does not exist", evbus_clip(name, strlen(name))),
					 errhint("To name dead letters by id, pass an array of bigint, such as ARRAY[1, 2]::bigint[].")));
	}
	for (int i = 0; i < 7; i++)
		if (!PG_ARGISNULL(i))
			evbus_dead_filter_set(filter, EVBUS_DEAD_SUBSCRIPTION + i, PG_GETARG_DATUM(i));
	if (!PG_ARGISNULL(2))
		evbus_check_patterns(fcinfo, 2);
	if (!PG_ARGISNULL(3))
	{
		char	   *state = evbus_arg_text(fcinfo, 3, "sqlstate");

		if (strlen(state) != 5 || strspn(state, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") != 5)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("sqlstate must be five digits or capital letters"),
					 errdetail("It is \"%s\".", evbus_clip(state, strlen(state)))));
	}
	if (!PG_ARGISNULL(1))
	{
		char	   *name = evbus_arg_text(fcinfo, 1, "bus");
		EvbusBus	bus;

		if (evbus_bus_find(name, &bus))
			filter->bus_id = bus.bus_id;
		else if (!gone_too || !left_behind("bus", name))
			evbus_bus_get(name, &bus);	/* raises the error */
		else
			filter->bus_id = -1;
	}
	if (!PG_ARGISNULL(0))
	{
		char	   *name = evbus_arg_text(fcinfo, 0, "subscription");
		EvbusSubscription *sub = evbus_subscription_get(name, true);
		bool		gone = sub == NULL && left_behind("subscription", name);

		if (gone && !gone_too)
			evbus_dead_filter_nobody_left(name);
		if (gone && !superuser())
			refuse_left(GetUserId(), name);
		if (sub == NULL && !gone)
			sub = evbus_subscription_get(name, false);	/* raises the error */
		filter->subscription_id = sub ? sub->subscription_id : -1;
		if (sub)
			evbus_check_subscription(sub, GetUserId(), EVBUS_OPERATE);
		if (sub && filter->bus_id > 0 && sub->bus_id != filter->bus_id)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("subscription \"%s\" is not of bus \"%s\"", name, text_to_cstring(PG_GETARG_TEXT_PP(1))),
					 errdetail("It is of bus \"%s\".", sub->bus_name)));
	}
	if (!PG_ARGISNULL(6) && PG_GETARG_INT64(6) < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_events must be at least 1"),
				 errdetail("It is " INT64_FORMAT ".", PG_GETARG_INT64(6))));
	if (!PG_ARGISNULL(4) && !PG_ARGISNULL(5) && PG_GETARG_TIMESTAMPTZ(4) >= PG_GETARG_TIMESTAMPTZ(5))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("dead_after must be before dead_before")));
	evbus_dead_filter_scope(filter, GetUserId(), gone_too);
}

/* Record a call that had arguments 0 and 1 as evbus_dead_filter_read() takes them, and what came of it. */
void
evbus_dead_filter_audit(FunctionCallInfo fcinfo, const Jsonb *after)
{
	if (!PG_ARGISNULL(0))
		evbus_audit(fcinfo, "subscription", text_to_cstring(PG_GETARG_TEXT_PP(0)), NULL, after);
	else if (!PG_ARGISNULL(1))
		evbus_audit(fcinfo, "bus", text_to_cstring(PG_GETARG_TEXT_PP(1)), NULL, after);
	else
		evbus_audit(fcinfo, NULL, NULL, NULL, after);
}

/*
 * Argument 0: ids.  One of somebody else's is an error, and, unless gone_too, one
 * whose subscription is gone; ids that are not there are passed over.
 */
void
evbus_dead_filter_ids(FunctionCallInfo fcinfo, EvbusDeadFilter *filter, bool gone_too)
{
	bool		all = superuser();
	Datum	   *ids;
	bool	   *nulls;
	int			n;
	uint64		found;
	EvbusInternal state;

	evbus_arg_array(fcinfo, 0, "dead_letter_ids", &ids, &nulls, &n);
	evbus_no_nulls(nulls, n, "dead_letter_ids");
	evbus_dead_filter_init(filter);
	evbus_dead_filter_set(filter, EVBUS_DEAD_IDS, PG_GETARG_DATUM(0));
	evbus_internal_begin(&state);
	found = evbus_sql(NULL, "SELECT DISTINCT d.subscription_id, d.subscription FROM evbus.dead_letter_log d WHERE d.dead_letter_id = ANY ($1)",
					  1, evbus_dead_types, filter->values, filter->nulls, 0);
	for (uint64 i = 0; i < found; i++)
	{
		EvbusSubscription *sub = evbus_subscription_by_id(DatumGetInt32(evbus_column(i, 1, NULL)));
		char	   *name = TextDatumGetCString(evbus_column(i, 2, NULL));

		if (sub == NULL && !gone_too)
			evbus_dead_filter_nobody_left(name);
		if (sub == NULL && !all)
			refuse_left(state.user, name);
		if (sub != NULL)
			evbus_check_subscription(sub, state.user, EVBUS_OPERATE);
	}
	evbus_internal_end(&state);
	evbus_dead_filter_scope(filter, GetUserId(), gone_too);
}

/* How many match, those in the hands of other transactions among them. */
int64
evbus_dead_filter_count(EvbusDeadFilter *filter)
{
	EvbusInternal state;
	int64		n;

	evbus_internal_begin(&state);
	evbus_sql(NULL, psprintf("SELECT count(*) FROM (SELECT FROM evbus.dead_letter_log d WHERE %s LIMIT $8) x", evbus_dead_filter_where(filter)),
			  EVBUS_DEAD_PARAMS, evbus_dead_types, filter->values, filter->nulls, 0);
	n = DatumGetInt64(evbus_column(0, 1, NULL));
	evbus_internal_end(&state);
	return n;
}
