/*-------------------------------------------------------------------------
 * filter.c
 *	  jsonpath filters of subscriptions: is an event for it?
 *
 * The path is asked of the payload, with the variables $headers, $key and $type.  One
 * that is a predicate must be true, any other must find something; what is unknown, or
 * an error in the sense of SQL/JSON (as a missing member in strict mode), is no.  A path
 * calls no functions of users and reads no tables, so it needs nobody's rights.  Its answer
 * is the same for whoever asks: what it makes of times without a zone does not depend on
 * the session, they are UTC.
 *
 * It may take for ever, though: a regular expression, or "$.**.**" over a large payload.
 * So there is a bound, of processor time: a process that was stopped or had to wait has
 * not used any, and no event is given up because the server was busy.  A timer looks at the
 * clock every now and then while a filter is asked, and makes a query cancel when it has
 * taken too long, which PostgreSQL looks for in regular expressions and between the steps
 * of a path.  Not so while it compares all values of one path with all of another: such
 * filters are not asked of events with so many values that it would matter.
 *
 * An event that a filter has no answer for is neither passed over nor delivered: whoever
 * takes it makes it a dead letter.  No error leaves this file but those that have nothing to do with
 * the filter, such as somebody else's cancel.  Nothing below evaluate() holds anything but
 * memory, so an error that is caught needs no subtransaction.
 *-------------------------------------------------------------------------
 */
#include "filter.h"

#include <time.h>

#include "codec.h"
#include "envelope.h"
#include "fmgr.h"
#include "jsonbcheck.h"
#include "miscadmin.h"
#include "pgtime.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/jsonpath.h"
#include "utils/memutils.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#define PATH_MAX_BYTES	(16 * 1024)	/* of a path, as it is stored */
#define KEEP_MAX		2048	/* bytes of a decoded payload that is kept for the delivery */
#define VALUES_MAX		30000	/* in an event for a filter that compares two paths: a few seconds at the worst */
#define LOOKS			8		/* at the clock, in evbus.filter_timeout */

struct EvbusFilter
{
	Size		size;
	bool		predicate;
	bool		crosses;		/* compares two paths with each other */
	bool		headers;		/* variables that it names */
	bool		key;
	bool		type;
	JsonPath	path;			/* last: it has what follows, too */
};

/* Milliseconds of processor time for one event; PGC_SIGHUP. */
int			evbus_filter_timeout = 100;

/* ---------------------------------------------------------------------- paths */

static bool
is_comparison(JsonPathItemType type)
{
	return type == jpiEqual || type == jpiNotEqual || type == jpiLess || type == jpiGreater ||
		type == jpiLessOrEqual || type == jpiGreaterOrEqual;
}

static bool
is_predicate(JsonPathItemType type)
{
	return is_comparison(type) || type == jpiAnd || type == jpiOr || type == jpiNot || type == jpiIsUnknown ||
		type == jpiExists || type == jpiStartsWith || type == jpiLikeRegex;
}

static bool
is_arithmetic(JsonPathItemType type)
{
	return type == jpiAdd || type == jpiSub || type == jpiMul || type == jpiDiv || type == jpiMod;
}

/* Is this variable of that name? */
static bool
is_variable(JsonPathItem *item, const char *name)
{
	int			len;
	char	   *given = jspGetString(item, &len);

	return len == strlen(name) && memcmp(given, name, len) == 0;
}

/* May an operand have more than one value? */
static bool
may_be_many(JsonPathItem *item)
{
	if (jspIsScalar(item->type) || is_arithmetic(item->type))
		return false;
	return item->type != jpiVariable || is_variable(item, "headers");
}

/* Go through a path: what it needs is noted in filter, which variable there is not is an error. */
static void
walk(JsonPathItem *item, EvbusFilter *filter)
{
	JsonPathItem a;
	JsonPathItem b;

	check_stack_depth();
	if (item->type == jpiVariable)
	{
		int			len;
		char	   *name = jspGetString(item, &len);

		if (is_variable(item, "headers"))
			filter->headers = true;
		else if (is_variable(item, "key"))
			filter->key = true;
		else if (is_variable(item, "type"))
			filter->type = true;
		else
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("filter refers to variable \"$%.*s\", which there is not", len, name),
					 errhint("The payload is \"$\"; beside it there are \"$headers\", \"$key\" and \"$type\".")));
	}
	else if (is_comparison(item->type) || is_arithmetic(item->type) || item->type == jpiAnd || item->type == jpiOr ||
			 item->type == jpiStartsWith)
	{
		jspGetLeftArg(item, &a);
		jspGetRightArg(item, &b);
		filter->crosses = filter->crosses || (is_comparison(item->type) && may_be_many(&a) && may_be_many(&b));
		walk(&a, filter);
		walk(&b, filter);
	}
	else if (item->type == jpiNot || item->type == jpiIsUnknown || item->type == jpiPlus || item->type == jpiMinus ||
			 item->type == jpiFilter || item->type == jpiExists)
	{
		jspGetArg(item, &a);
		walk(&a, filter);
	}
	else if (item->type == jpiLikeRegex)
	{
		jspInitByBuffer(&a, item->base, item->content.like_regex.expr);
		walk(&a, filter);
	}
	else if (item->type == jpiIndexArray)
		for (int i = 0; i < item->content.array.nelems; i++)
		{
			bool		range = jspGetArraySubscript(item, &a, &b, i);

			walk(&a, filter);
			if (range)
				walk(&b, filter);
		}
	if (jspGetNext(item, &a))
		walk(&a, filter);
}

/* In the current context; errors 22023 where it names a variable that there is not. */
EvbusFilter *
evbus_filter_make(Datum datum)
{
	JsonPath   *path = DatumGetJsonPathP(datum);
	Size		size = offsetof(EvbusFilter, path) + VARSIZE(path);
	EvbusFilter *filter = palloc0(Max(size, sizeof(EvbusFilter)));
	JsonPathItem root;

	filter->size = size;
	memcpy(&filter->path, path, VARSIZE(path));
	jspInit(&root, &filter->path);
	filter->predicate = is_predicate(root.type) && !jspHasNext(&root);
	walk(&root, filter);
	return filter;
}

/* The same in the current context. */
EvbusFilter *
evbus_filter_copy(const EvbusFilter *filter)
{
	return memcpy(palloc(filter->size), filter, filter->size);
}

/* Errors 22023 unless a path can be a filter. */
void
evbus_filter_check(Datum datum)
{
	EvbusFilter *filter = evbus_filter_make(datum);

	if (VARSIZE(&filter->path) > PATH_MAX_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("filter is too large"),
				 errdetail("It has %d bytes; the limit is %d.", (int) VARSIZE(&filter->path), PATH_MAX_BYTES)));
	pfree(filter);
}

/* ----------------------------------------------------------------------- time */

static TimeoutId timer = MAX_TIMEOUTS;
static volatile sig_atomic_t asking = false;
static volatile sig_atomic_t took_too_long = false;
static volatile int64 used_before;	/* processor time at the first look; -1: there was none */

/* Of this process, in microseconds. */
static int64
processor_time(void)
{
	struct timespec t;

	(void) clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (int64) t.tv_sec * USECS_PER_SEC + t.tv_nsec / 1000;
}

/*
 * In a signal handler.  The first look only notes the time, so that asking need not: a
 * filter has an eighth more, and most are done before there is any.
 */
static void
look_at_clock(void)
{
	int64		used;

	if (!asking)
		return;
	used = processor_time();
	if (used_before < 0)
		used_before = used;
	else if (used - used_before >= (int64) evbus_filter_timeout * 1000 && !QueryCancelPending)
	{
		took_too_long = true;
		QueryCancelPending = true;
		InterruptPending = true;
	}
}

static void
start_clock(void)
{
	int			step = Max(evbus_filter_timeout / LOOKS, 1);

	if (timer == MAX_TIMEOUTS)
		timer = RegisterTimeout(USER_TIMEOUT, look_at_clock);
	used_before = -1;
	took_too_long = false;
	asking = true;
	enable_timeout_every(timer, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), step), step);
}

static void
stop_clock(void)
{
	disable_timeout(timer, false);
	asking = false;
	if (took_too_long)
		QueryCancelPending = false; /* made by us, and too late */
}

/* --------------------------------------------------------------------- asking */

/* How many values there are in it, roughly. */
static int64
count_values(Jsonb *json)
{
	JsonbIterator *it = JsonbIteratorInit(&json->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	int64		n = 0;

	while ((token = JsonbIteratorNext(&it, &value, false)) != WJB_DONE)
		n += token != WJB_KEY && token != WJB_END_ARRAY && token != WJB_END_OBJECT;
	return n;
}

/* Every value takes four bytes at least. */
static bool
too_many_values(Jsonb *json)
{
	return VARSIZE(json) / 4 > VALUES_MAX && count_values(json) > VALUES_MAX;
}

static void
push_variable(JsonbParseState **state, const char *name, JsonbValue *value)
{
	JsonbValue	key = {.type = jbvString};

	key.val.string.val = unconstify(char *, name);
	key.val.string.len = strlen(name);
	(void) pushJsonbValue(state, WJB_KEY, &key);
	(void) pushJsonbValue(state, WJB_VALUE, value);
}

static void
push_text(JsonbParseState **state, const char *name, char *text, int len)
{
	JsonbValue	value = {.type = text ? jbvString : jbvNull};

	if (text)
	{
		value.val.string.val = text;
		value.val.string.len = len;
	}
	push_variable(state, name, &value);
}

/* The variables that a filter names. */
static Jsonb *
variables(const EvbusFilter *filter, EvbusEvent *event, Jsonb *headers)
{
	JsonbParseState *state = NULL;

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	if (filter->headers)
	{
		JsonbValue	value = {.type = headers ? jbvBinary : jbvNull};

		if (headers)
		{
			value.val.binary.data = &headers->root;
			value.val.binary.len = VARSIZE(headers) - VARHDRSZ;
		}
		push_variable(&state, "headers", &value);
	}
	if (filter->key)
		push_text(&state, "key", event->key, event->key_len);
	if (filter->type)
		push_text(&state, "type", event->type, event->type_len);
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

/* Unpacking and frames tell what is damaged; jsonb as it is does not, and whoever looks into it trusts it. */
static void
check_sound(const char *coded, Jsonb *json)
{
	if (coded[0] == EVBUS_CODEC_JSONB && !evbus_jsonb_sound(&json->root, VARSIZE(json) - VARHDRSZ, true))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the stored event data is damaged")));
}

static bool
evaluate(const EvbusFilter *filter, EvbusEvent *event, Jsonb *payload, Jsonb *headers, const char *stored)
{
	static struct
	{
		int32		length;
		uint32		header;
	}			nothing = {0, JB_FOBJECT};	/* a jsonb: {} */
	LOCAL_FCINFO(fcinfo, 4);
	Datum		answer;
	bool		named = filter->headers || filter->key || filter->type;

	check_sound(event->payload, payload);
	if (headers)
		check_sound(stored, headers);
	if (filter->crosses && (too_many_values(payload) || (headers && too_many_values(headers))))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("it compares two paths with each other, and the event has more than %d values", VALUES_MAX)));
	SET_VARSIZE(&nothing, sizeof(nothing));
	InitFunctionCallInfoData(*fcinfo, NULL, 4, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = JsonbPGetDatum(payload);
	fcinfo->args[1].value = PointerGetDatum(&filter->path);
	fcinfo->args[2].value = named ? JsonbPGetDatum(variables(filter, event, headers)) : PointerGetDatum(&nothing);
	fcinfo->args[3].value = BoolGetDatum(true); /* silent */
	for (int i = 0; i < 4; i++)
		fcinfo->args[i].isnull = false;
	answer = filter->predicate ? jsonb_path_match_tz(fcinfo) : jsonb_path_exists_tz(fcinfo);
	return !fcinfo->isnull && DatumGetBool(answer);
}

/* Is an error none of the filter's?  ours: a query cancel is. */
static bool
is_foreign(int code, bool ours)
{
	int			class = ERRCODE_TO_CATEGORY(code);

	if (code == ERRCODE_QUERY_CANCELED)
		return !ours;
	return class == ERRCODE_INSUFFICIENT_RESOURCES || class == ERRCODE_OPERATOR_INTERVENTION || class == ERRCODE_SYSTEM_ERROR;
}

/* In the current context. */
static const EvbusFault *
make_fault(const ErrorData *edata)
{
	EvbusFault *fault = palloc(sizeof(EvbusFault));

	fault->sqlerrcode = edata->sqlerrcode;
	fault->message = edata->sqlerrcode == ERRCODE_QUERY_CANCELED
		? psprintf("the filter of the subscription took longer than evbus.filter_timeout (%d ms)", evbus_filter_timeout)
		: psprintf("the filter of the subscription failed: %s", edata->message ? edata->message : "no message");
	return fault;
}

/*
 * Does an event pass?  One whose data cannot be decoded does, as its delivery has to tell.
 * Not under a lock.  A small payload stays decoded, in the current context, for the delivery.
 */
EvbusVerdict
evbus_filter_ask(const EvbusFilter *filter, EvbusEvent *event)
{
	static MemoryContext scratch = NULL;
	static pg_tz *utc = NULL;
	MemoryContext context = CurrentMemoryContext;
	pg_tz	   *session_tz = session_timezone;
	bool		timed = get_timeout_active(STATEMENT_TIMEOUT);
	Jsonb	   *payload;
	Jsonb	   *headers = NULL;
	int			stored_len = event->headers_len;
	const char *stored = evbus_headers_inside(event->headers, &stored_len);
	volatile bool passes = false;

	if (scratch == NULL)
	{
		scratch = AllocSetContextCreate(TopMemoryContext, "evbus filter", ALLOCSET_DEFAULT_SIZES);
		utc = pg_tzset("GMT");
	}
	payload = evbus_decode_try(event->payload, event->payload_len);
	if (payload == NULL)
		return EVBUS_FILTER_PASSES;
	MemoryContextSwitchTo(scratch);
	if (filter->headers && stored && (headers = evbus_decode_try(stored, stored_len)) == NULL)
	{
		MemoryContextSwitchTo(context);
		pfree(payload);
		return EVBUS_FILTER_PASSES;
	}

	start_clock();
	PG_TRY();
	{
		session_timezone = utc;
		passes = evaluate(filter, event, payload, headers, stored);
		session_timezone = session_tz;
		stop_clock();
	}
	PG_CATCH();
	{
		/* Where the timeout of the statement ended meanwhile, it is not us who took too long. */
		bool		ours = took_too_long && !(timed && !get_timeout_active(STATEMENT_TIMEOUT));

		session_timezone = session_tz;
		stop_clock();
		MemoryContextSwitchTo(context);
		if (is_foreign(geterrcode(), ours))
			PG_RE_THROW();
		event->fault = make_fault(CopyErrorData());
		FlushErrorState();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	MemoryContextReset(scratch);

	if (event->fault == NULL && passes && VARSIZE(payload) <= KEEP_MAX)
		event->decoded = (struct varlena *) payload;
	else
		pfree(payload);
	return event->fault ? EVBUS_FILTER_FAULT : passes ? EVBUS_FILTER_PASSES : EVBUS_FILTER_SKIPS;
}
