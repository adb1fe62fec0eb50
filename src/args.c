/*-------------------------------------------------------------------------
 * args.c
 *	  What SQL callers may pass, checked in one place: every error names the
 *	  argument, the value and the bounds.
 *-------------------------------------------------------------------------
 */
#include "args.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

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
	size_t		len = strlen(value);

	if (len == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s name must not be empty", name)));
	if (len > EVBUS_NAME_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s name \"%s\" is too long", name, value),
				 errdetail("It has %zu bytes; the limit is %d.", len, EVBUS_NAME_MAX)));
	for (const char *c = value; *c; c++)
		if ((unsigned char) *c < ' ' || *c == 0x7f)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s name must not hold control characters", name)));
	return value;
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
				 errdetail("It is %d.", value)));
	return value;
}

static char *
interval_text(int64 usecs)
{
	Interval   *span = palloc0(sizeof(Interval));

	span->day = usecs / USECS_PER_DAY;
	span->time = usecs % USECS_PER_DAY;
	return DatumGetCString(DirectFunctionCall1(interval_out, IntervalPGetDatum(span)));
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
		value = ((int64) span->month * 30 + span->day) * USECS_PER_DAY + span->time;
	if (fabs(estimate) >= 9e18 || value < low || value > high)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be between %s and %s", name, interval_text(low), interval_text(high)),
				 errdetail("It is %s.",
						   DatumGetCString(DirectFunctionCall1(interval_out, IntervalPGetDatum(span))))));
	return value;
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
