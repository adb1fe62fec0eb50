/*-------------------------------------------------------------------------
 * publish_lines.c
 *	  evbus.publish_lines(): many events of one type, as lines of JSON.
 *
 * What a client has as text is made jsonb here and not by jsonb_in(), for a fifth
 * of its instructions (jsonb_parse.c); else it is as in publish.c.
 *-------------------------------------------------------------------------
 */
#include "publish.h"

#include "access/htup_details.h"
#include "args.h"
#include "clock.h"
#include "funcapi.h"
#include "jsonb_parse.h"
#include "memory.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(evbus_publish_lines);

/* How many lines a text has; a newline at its end begins no other. */
static int
count_lines(const char *at, const char *end)
{
	int			n = 0;

	while (at < end)
	{
		const char *newline = memchr(at, '\n', end - at);

		n++;
		at = newline ? newline + 1 : end;
	}
	return n;
}

/* jsonb's own message for nothing at all would not tell what is wrong. */
static void
refuse_empty(const char *at, const char *end)
{
	while (at < end && (*at == ' ' || *at == '\t' || *at == '\r'))
		at++;
	if (at == end)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
				 errmsg("a line is empty"),
				 errhint("Give one JSON value on each line, without newlines in it; only behind the last one a newline may follow.")));
}

/* Context of errors: which line. */
static void
tell_line(void *arg)
{
	errcontext("evbus.publish_lines(), line %d", *(int *) arg);
}

/*
 * evbus.publish_lines(bus text, type text, lines text, keys text[], headers jsonb, priority integer,
 * expires_at timestamptz)
 * returns record (first_id bigint, events integer)
 *
 * Stores one event for each line, in that order, all or none.  lines: JSON values
 * with a newline between them, so none within one; a newline at the end is allowed,
 * an empty line is not.  type, headers, priority and
 * expires_at are those of every event; keys, if not
 * NULL, has an element for each line.
 * The ids are first_id and those that follow it, without a gap; no lines store
 * nothing and first_id is NULL.
 * Errors: 22P02 and others of jsonb's input, with the line; else as evbus.publish().
 */
Datum
evbus_publish_lines(PG_FUNCTION_ARGS)
{
	EvbusBus	bus;
	EvbusDb    *db;
	text	   *type;
	text	   *lines;
	Datum	   *keys;
	bool	   *key_nulls;
	EvbusHeaders headers;
	const char *at;
	const char *end;
	bool		with_keys;
	int			line = 0;
	int			n;
	ErrorContextCallback context = {.previous = error_context_stack, .callback = tell_line, .arg = &line};
	EvbusJsonbParser *parser;
	MemoryContext scratch;
	MemoryContext old;
	TupleDesc	desc;
	Datum		values[2] = {0};
	bool		nulls[2] = {true, false};

	evbus_arg_present(fcinfo, 0, "bus");
	evbus_arg_present(fcinfo, 1, "type");
	evbus_arg_present(fcinfo, 2, "lines");
	type = PG_GETARG_TEXT_PP(1);
	lines = PG_GETARG_TEXT_PP(2);
	at = VARDATA_ANY(lines);
	end = at + VARSIZE_ANY_EXHDR(lines);
	n = count_lines(at, end);
	with_keys = evbus_arg_optional_array(fcinfo, 3, "keys", "lines", n, &keys, &key_nulls);
	evbus_publish_headers(fcinfo, 5, 6, &headers);
	headers.json = PG_ARGISNULL(4) ? NULL : PG_GETARG_JSONB_P(4);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "evbus.publish_lines() must return a row");

	if (VARSIZE_ANY_EXHDR(type) > 0 && *VARDATA_ANY(type) == '{')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("type must be a single event type, not an array"),
				 errdetail("It is \"%s\".", evbus_clip(VARDATA_ANY(type), VARSIZE_ANY_EXHDR(type))),
				 errhint("All events of evbus.publish_lines() have one type: 'order.created', and not '{order.created}'.")));
	evbus_publish_check_type(type);
	evbus_publish_check_headers(headers.json);
	db = evbus_publish_prepare(evbus_arg_text(fcinfo, 0, "bus"), "evbus.publish_lines()", GetUserId(), n, &bus);
	if (n >= EVBUS_LARGE_BATCH)
		evbus_keep_memory(EVBUS_KEEP_BYTES);

	parser = evbus_jsonb_parser();
	scratch = AllocSetContextCreate(CurrentMemoryContext, "evbus publish_lines", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(scratch);
	error_context_stack = &context;
	if (n > 0)
	{
		int64		first = evbus_clock_take(&db->clock, n);

		values[0] = Int64GetDatum(first);
		nulls[0] = false;
		while (line < n)
		{
			const char *newline = memchr(at, '\n', end - at);
			text	   *key = with_keys && !key_nulls[line] ? DatumGetTextPP(keys[line]) : NULL;
			Jsonb	   *payload;

			line++;				/* for people they count from 1 */
			CHECK_FOR_INTERRUPTS();
			refuse_empty(at, newline ? newline : end);
			payload = evbus_jsonb_parse(parser, at, (newline ? newline : end) - at);
			evbus_publish_check_event(&bus, key, headers.json, payload);
			evbus_publish_add(&bus, first + line - 1, type, key, &headers, payload);
			MemoryContextReset(scratch);
			at = newline ? newline + 1 : end;
		}
	}
	error_context_stack = context.previous;
	MemoryContextSwitchTo(old);
	MemoryContextDelete(scratch);
	values[1] = Int32GetDatum(n);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
