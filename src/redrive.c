/*-------------------------------------------------------------------------
 * redrive.c
 *	  Dead letters brought back or thrown away, by id or by filter.
 *
 * A redrive deletes dead letters and inserts retries that are due at once, in
 * one statement: done twice, or twice at the same time, the second finds nothing.
 * The event keeps its id and its first failure; attempts begin anew.
 *-------------------------------------------------------------------------
 */
#include "evbus.h"

#include "args.h"
#include "catalog/pg_type.h"
#include "cursor.h"
#include "fmgr.h"
#include "internal.h"
#include "miscadmin.h"
#include "pin.h"
#include "registry.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(evbus_redrive);
PG_FUNCTION_INFO_V1(evbus_redrive_ids);
PG_FUNCTION_INFO_V1(evbus_purge_dead_letters);
PG_FUNCTION_INFO_V1(evbus_purge_dead_letters_ids);

#define N_FILTERS	8

/*
 * Dead letters that match, of subscriptions that the caller owns (or whose owner
 * is gone, for superusers).  $1 ids, $2 subscription, $3 bus, $4 patterns,
 * $5 sqlstate, $6 after, $7 before, $8 limit.
 */
#define MATCHING \
	"SELECT d.dead_letter_id FROM evbus.dead_letter_log d" \
	" WHERE ($1::bigint[] IS NULL OR d.dead_letter_id = ANY ($1))" \
	" AND ($2::text IS NULL OR d.subscription = $2) AND ($3::text IS NULL OR d.bus = $3)" \
	" AND ($4::text[] IS NULL OR evbus._type_matches(d.type, $4)) AND ($5::text IS NULL OR d.sqlstate = $5)" \
	" AND ($6::timestamptz IS NULL OR d.dead_at >= $6) AND ($7::timestamptz IS NULL OR d.dead_at < $7)"

static const Oid filter_types[N_FILTERS] = {INT8ARRAYOID, TEXTOID, TEXTOID, TEXTARRAYOID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID};

typedef struct Filter
{
	Datum		values[N_FILTERS];
	char		nulls[N_FILTERS + 1];
} Filter;

static void
read_filter(FunctionCallInfo fcinfo, Filter *filter, bool must_exist)
{
	memset(filter->nulls, 'n', N_FILTERS);
	filter->nulls[N_FILTERS] = '\0';
	memset(filter->values, 0, sizeof(filter->values));
	for (int i = 0; i < 7; i++)
		if (!PG_ARGISNULL(i))
		{
			filter->values[i + 1] = PG_GETARG_DATUM(i);
			filter->nulls[i + 1] = ' ';
		}
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
	if (!PG_ARGISNULL(0))
	{
		/* A misspelt name would silently match nothing; what is gone may be purged. */
		EvbusSubscription *sub = evbus_subscription_get(evbus_arg_text(fcinfo, 0, "subscription"), !must_exist);

		if (sub)
			evbus_check_owner(sub->owner, "subscription", sub->name);
	}
	if (!PG_ARGISNULL(1) && must_exist)
	{
		EvbusBus	bus;

		evbus_bus_get(evbus_arg_text(fcinfo, 1, "bus"), &bus);
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
}

static void
read_ids(FunctionCallInfo fcinfo, Filter *filter)
{
	Datum	   *ids;
	bool	   *nulls;
	int			n;

	evbus_arg_array(fcinfo, 0, "dead_letter_ids", &ids, &nulls, &n);
	evbus_no_nulls(nulls, n, "dead_letter_ids");
	memset(filter->nulls, 'n', N_FILTERS);
	filter->nulls[N_FILTERS] = '\0';
	memset(filter->values, 0, sizeof(filter->values));
	filter->values[0] = PG_GETARG_DATUM(0);
	filter->nulls[0] = ' ';
}

/*
 * The caller's share: the filter may only touch dead letters of subscriptions
 * that he owns.  By id, a foreign or orphaned one is an error; by filter it is
 * left alone.
 */
static char *
owned_subscriptions(bool strict, Filter *filter, bool redrive)
{
	StringInfoData list;
	EvbusInternal state;
	uint64		n;
	bool		all = superuser();

	initStringInfo(&list);
	appendStringInfoString(&list, "0");
	evbus_internal_begin(&state);
	n = evbus_sql(NULL, "SELECT DISTINCT d.subscription_id, d.subscription, x.owner::oid FROM evbus.dead_letter_log d"
				  " LEFT JOIN evbus.subscription x USING (subscription_id) WHERE d.dead_letter_id IN (" MATCHING ")"
				  " AND ($8::bigint IS NULL OR true)", N_FILTERS, filter_types, filter->values, filter->nulls, 0);
	for (uint64 i = 0; i < n; i++)
	{
		bool		gone;
		int32		id = DatumGetInt32(evbus_column(i, 1, NULL));
		char	   *name = TextDatumGetCString(evbus_column(i, 2, NULL));
		Oid			owner = DatumGetObjectId(evbus_column(i, 3, &gone));
		bool		mine = gone ? all : has_privs_of_role(state.user, owner);

		if (strict && gone && redrive)
			ereport(ERROR,
					(errcode(ERRCODE_EVBUS_NO_SUBSCRIPTION),
					 errmsg("subscription \"%s\" no longer exists", name),
					 errhint("Its dead letters can be read and purged, but nobody is left to deliver them to.")));
		if (strict && !mine)
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("must be owner of subscription \"%s\"", name)));
		if (mine && !(gone && redrive))
			appendStringInfo(&list, ", %d", id);
	}
	evbus_internal_end(&state);
	return list.data;
}

static int64
redrive(Filter *filter, bool strict)
{
	EvbusDb    *db = evbus_db();
	char	   *owned;
	EvbusInternal state;
	uint64		n;

	PreventCommandIfReadOnly("evbus.redrive()");
	owned = owned_subscriptions(strict, filter, true);
	evbus_internal_begin(&state);
	n = evbus_sql(NULL, psprintf("WITH d AS (DELETE FROM evbus.dead_letter_log WHERE dead_letter_id IN (" MATCHING
								 " AND d.subscription_id IN (%s) ORDER BY d.dead_letter_id LIMIT $8) RETURNING *)"
								 " INSERT INTO evbus.retry AS r (subscription_id, event_id, position, attempts, due_at, first_failed_at,"
								 " last_failed_at, sqlstate, message, redrives, type, key, headers, payload)"
								 " SELECT DISTINCT ON (subscription_id, event_id) subscription_id, event_id, position, 0, clock_timestamp(),"
								 " first_failed_at, last_failed_at, sqlstate, message, redrives + 1, type, key, headers, payload FROM d"
								 " ORDER BY subscription_id, event_id, dead_letter_id DESC"
								 " ON CONFLICT (subscription_id, event_id) DO UPDATE SET attempts = 0, due_at = excluded.due_at"
								 " RETURNING subscription_id", owned),
				  N_FILTERS, filter_types, filter->values, filter->nulls, 0);
	for (uint64 i = 0; i < n; i++)
	{
		EvbusSubscription *sub = evbus_subscription_by_id(DatumGetInt32(evbus_column(i, 1, NULL)));

		if (sub)
		{
			evbus_pin_init();
			evbus_pin_due(db, sub->slot, 0);
			pfree(sub->types);
			pfree(sub);
		}
	}
	evbus_internal_end(&state);
	return (int64) n;
}

static int64
purge(Filter *filter, bool strict)
{
	char	   *owned;
	EvbusInternal state;
	uint64		n;

	(void) evbus_db();
	PreventCommandIfReadOnly("evbus.purge_dead_letters()");
	owned = owned_subscriptions(strict, filter, false);
	evbus_internal_begin(&state);
	n = evbus_sql(NULL, psprintf("DELETE FROM evbus.dead_letter_log WHERE dead_letter_id IN (" MATCHING
								 " AND d.subscription_id IN (%s) ORDER BY d.dead_letter_id LIMIT $8)", owned),
				  N_FILTERS, filter_types, filter->values, filter->nulls, 0);
	evbus_internal_end(&state);
	return (int64) n;
}

/*
 * evbus.redrive(subscription text, bus text, types text[], sqlstate text, dead_after timestamptz,
 * dead_before timestamptz, max_events bigint) returns bigint
 *
 * Tries the dead letters that match every filter that is not NULL again, oldest
 * first, at most max_events; returns how many.  Only those of subscriptions that
 * the caller owns; those of dropped ones are left.  Takes effect at commit.
 * Errors: 22023, 25006, 42501, VB001, VB004.
 */
Datum
evbus_redrive(PG_FUNCTION_ARGS)
{
	Filter		filter;

	read_filter(fcinfo, &filter, true);
	PG_RETURN_INT64(redrive(&filter, false));
}

/*
 * evbus.redrive(dead_letter_ids bigint[]) returns bigint: the same by id; ids that
 * are not there are passed over.  Errors also: 22004, VB004 its subscription is gone.
 */
Datum
evbus_redrive_ids(PG_FUNCTION_ARGS)
{
	Filter		filter;

	read_ids(fcinfo, &filter);
	PG_RETURN_INT64(redrive(&filter, true));
}

/* evbus.purge_dead_letters(...): filters as evbus.redrive(); deletes, returns how many. */
Datum
evbus_purge_dead_letters(PG_FUNCTION_ARGS)
{
	Filter		filter;

	read_filter(fcinfo, &filter, false);
	PG_RETURN_INT64(purge(&filter, false));
}

/* evbus.purge_dead_letters(dead_letter_ids bigint[]): the same by id. */
Datum
evbus_purge_dead_letters_ids(PG_FUNCTION_ARGS)
{
	Filter		filter;

	read_ids(fcinfo, &filter);
	PG_RETURN_INT64(purge(&filter, true));
}
