/*-------------------------------------------------------------------------
 * args.c
 *	  What SQL callers may pass, checked in one place: every error names the
 *	  argument, the value and the bounds.
 *-------------------------------------------------------------------------
 */
#include "args.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "pattern.h"
#include "utils/lsyscache.h"

PG_FUNCTION_INFO_V1(evbus_type_matches);

/* A value from outside as it may be shown in a message: cut to 63 bytes, whole characters. */
char *
evbus_clip(const char *value, int len)
{
	if (len <= EVBUS_NAME_MAX)
		return pnstrdup(value, len);
	return psprintf("%.*s...", pg_mbcliplen(value, len, EVBUS_NAME_MAX), value);
}

/* Errors 22004 if argument n is NULL. */
void
evbus_arg_present(FunctionCallInfo fcinfo, int n, const char *name)
{
	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"%s\" must not be null", name)));
}

char *
evbus_arg_text(FunctionCallInfo fcinfo, int n, const char *name)
{
	evbus_arg_present(fcinfo, n, name);
	return text_to_cstring(PG_GETARG_TEXT_PP(n));
}

/* The name of a bus or subscription to be made: 1 to 63 bytes, no control characters. */
char *
evbus_arg_name(FunctionCallInfo fcinfo, int n, const char *name)
{
	char	   *value = evbus_arg_text(fcinfo, n, name);

	evbus_check_name(value, name);
	return value;
}

/* May a bus or subscription (what) be called so?  Errors 22023. */
void
evbus_check_name(const char *value, const char *what)
{
	size_t		len = strlen(value);

	if (len == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s name must not be empty", what)));
	if (len > EVBUS_NAME_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s name \"%s\" is too long", what, evbus_clip(value, len)),
				 errdetail("It has %zu bytes; the limit is %d.", len, EVBUS_NAME_MAX)));
	for (const char *c = value; *c; c++)
		if ((unsigned char) *c < ' ' || *c == 0x7f)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s name must not hold control characters", what)));
}

int
evbus_arg_int(FunctionCallInfo fcinfo, int n, const char *name, int low, int high)
{
	int			value;

	evbus_arg_present(fcinfo, n, name);
	value = PG_GETARG_INT32(n);
	if (value < low || value > high)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be between %d and %d", name, low, high),
				 errdetail("It is %d.", value),
				 strcmp(name, "concurrency") == 0
				 ? errhint("The bound is evbus.max_handler_workers (%d) less one, which is kept for other subscriptions.", evbus_max_handler_workers)
				 : 0));
	return value;
}

int64
evbus_arg_bigint(FunctionCallInfo fcinfo, int n, const char *name, int64 low, int64 high)
{
	int64		value;

	evbus_arg_present(fcinfo, n, name);
	value = PG_GETARG_INT64(n);
	if (value < low || value > high)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be between " INT64_FORMAT " and " INT64_FORMAT, name, low, high),
				 errdetail("It is " INT64_FORMAT ".", value)));
	return value;
}

/* A burst, if there is one, is of a rate. */
void
evbus_check_burst(int rate, int burst, const char *rate_name, const char *burst_name)
{
	if (rate == 0 && burst > 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s needs %s", burst_name, rate_name),
				 errdetail("Without a rate there is no limit."),
				 errhint("Give it %s above 0 as well, or no %s.", rate_name, burst_name)));
}

/* A number from 0 to 1. */
double
evbus_arg_share(FunctionCallInfo fcinfo, int n, const char *name)
{
	double		value;

	evbus_arg_present(fcinfo, n, name);
	value = PG_GETARG_FLOAT8(n);
	if (!(value >= 0 && value <= 1))	/* nor NaN */
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be between 0 and 1", name),
				 errdetail("It is %g.", value)));
	return value;
}

/* Microseconds of an interval that is in bounds, and back; months count 30 days. */
int64
evbus_interval_usecs(const Interval *span)
{
	return ((int64) span->month * 30 + span->day) * USECS_PER_DAY + span->time;
}

Datum
evbus_interval_datum(int64 usecs)
{
	Interval   *span = palloc0(sizeof(Interval));

	span->day = usecs / USECS_PER_DAY;
	span->time = usecs % USECS_PER_DAY;
	return IntervalPGetDatum(span);
}

static char *
interval_text(int64 usecs)
{
	return DatumGetCString(DirectFunctionCall1(interval_out, evbus_interval_datum(usecs)));
}

/* Microseconds; months count 30 days.  Bounds in microseconds. */
int64
evbus_arg_interval(FunctionCallInfo fcinfo, int n, const char *name, int64 low, int64 high)
{
	Interval   *span;
	double		estimate;
	int64		value = 0;

	evbus_arg_present(fcinfo, n, name);
	span = PG_GETARG_INTERVAL_P(n);
	estimate = ((double) span->month * 30 + span->day) * USECS_PER_DAY + span->time;
	if (fabs(estimate) < 9e18)
		value = evbus_interval_usecs(span);
	if (fabs(estimate) >= 9e18 || value < low || value > high)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be between %s and %s", name, interval_text(low), interval_text(high)),
				 errdetail("It is %s.",
						   DatumGetCString(DirectFunctionCall1(interval_out, IntervalPGetDatum(span))))));
	return value;
}

/* Which of a few words an argument is; errors 22004 and 22023. */
int
evbus_arg_choice(FunctionCallInfo fcinfo, int n, const char *name, const char *const *choices, int n_choices)
{
	char	   *value = evbus_arg_text(fcinfo, n, name);
	StringInfoData all;

	initStringInfo(&all);
	for (int i = 0; i < n_choices; i++)
	{
		appendStringInfo(&all, "%s\"%s\"", i == 0 ? "" : i + 1 < n_choices ? ", " : " or ", choices[i]);
		if (strcmp(value, choices[i]) == 0)
			return i;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("%s \"%s\" is not known", name, evbus_clip(value, strlen(value))),
			 errhint("Pass %s.", all.data)));
}

/* Elements of a one-dimensional (or empty) array; errors 22004 and 22023. */
void
evbus_arg_array(FunctionCallInfo fcinfo, int n, const char *name,
				Datum **values, bool **nulls, int *count)
{
	ArrayType  *array;
	int16		typlen;
	bool		typbyval;
	char		typalign;

	evbus_arg_present(fcinfo, n, name);
	array = PG_GETARG_ARRAYTYPE_P(n);
	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be a one-dimensional array", name),
				 errdetail("It has %d dimensions.", ARR_NDIM(array))));
	get_typlenbyvalalign(ARR_ELEMTYPE(array), &typlen, &typbyval, &typalign);
	deconstruct_array(array, ARR_ELEMTYPE(array), typlen, typbyval, typalign, values, nulls, count);
}

/* An optional array argument; it must have an element for each event, `count` of them in `events`. */
bool
evbus_arg_optional_array(FunctionCallInfo fcinfo, int n, const char *name, const char *events, int count,
						 Datum **values, bool **nulls)
{
	int			length;

	if (PG_ARGISNULL(n))
		return false;
	evbus_arg_array(fcinfo, n, name, values, nulls, &length);
	if (length != count)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" must have as many elements as there are events", name),
				 errdetail("\"%s\" has %d, \"%s\" has %d.", events, count, name, length)));
	return true;
}

/* Has the array no elements at all? */
bool
evbus_arg_empty(FunctionCallInfo fcinfo, int n)
{
	ArrayType  *array = PG_GETARG_ARRAYTYPE_P(n);

	return ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array)) == 0;
}

void
evbus_no_nulls(const bool *nulls, int count, const char *name)
{
	for (int i = 0; i < count; i++)
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not contain null elements", name),
					 errdetail("Element %d is null.", i + 1)));
}

/* An array of patterns, named types; errors 22004 and 22023. */
void
evbus_check_patterns(FunctionCallInfo fcinfo, int n)
{
	Datum	   *types;
	bool	   *nulls;
	int			count;

	evbus_arg_array(fcinfo, n, "types", &types, &nulls, &count);
	evbus_no_nulls(nulls, count, "types");
	if (count == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("types must hold at least one pattern"),
				 errhint("'{#}' matches every event.")));
	if (count > 1000)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("types must hold at most 1000 patterns"),
				 errdetail("It holds %d.", count)));
	for (int i = 0; i < count; i++)
	{
		text	   *type = DatumGetTextPP(types[i]);
		const char *fault = evbus_type_fault(VARDATA_ANY(type), VARSIZE_ANY_EXHDR(type), true);

		if (fault)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("pattern %s", fault),
					 errdetail("The pattern is \"%s\".", evbus_clip(VARDATA_ANY(type), VARSIZE_ANY_EXHDR(type))),
					 errhint("A pattern is words separated by dots; \"*\" stands for one word, \"#\" for zero or more.")));
	}
}

/* evbus._type_matches(type text, patterns text[]) returns boolean */
Datum
evbus_type_matches(PG_FUNCTION_ARGS)
{
	text	   *type = PG_GETARG_TEXT_PP(0);
	Datum	   *patterns;
	bool	   *nulls;
	int			n;

	evbus_arg_array(fcinfo, 1, "patterns", &patterns, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		text	   *pattern = nulls[i] ? NULL : DatumGetTextPP(patterns[i]);

		if (pattern && evbus_pattern_match(VARDATA_ANY(pattern), VARSIZE_ANY_EXHDR(pattern),
										   VARDATA_ANY(type), VARSIZE_ANY_EXHDR(type)))
			PG_RETURN_BOOL(true);
	}
	PG_RETURN_BOOL(false);
}
