/*-------------------------------------------------------------------------
 * lines.c
 *	  evbus.receive_lines(): a batch as one row, one JSON object a line.
 *
 * A row of evbus.delivery has eleven columns, and each of them a value, a place in
 * a tuple and a call of its type's output function.  For a client over the wire all
 * of that ends as text; so here the text is written at once, into one buffer that
 * is the result.  What is taken, and when it is given back, is delivery.c's.
 *
 * How long a line is, is known when it is printed.  So no more is taken than what
 * is, as stored, about as large as a batch may be; then it is printed, and the
 * deliveries whose lines do not fit go back, as a rollback would give them back.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "clock.h"
#include "codec.h"
#include "delivery.h"
#include "envelope.h"
#include "funcapi.h"
#include "jsonb_print.h"
#include "pgtime.h"
#include "pin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define BATCH_MAX	(64 * 1024 * 1024)	/* bytes of a batch, unless it is one line */
#define LONE_MAX	((int) MaxAllocSize - 1024 * 1024)	/* of a single line; the rest of its row wants room, too */
#define FIXED_MAX	512			/* what every line has, without the names */

PG_FUNCTION_INFO_V1(evbus_receive_lines);

typedef struct Lines
{
	StringInfoData text;		/* begins with the length word of a text */
	StringInfoData bus;			/* ,"bus":"...","type": */
	StringInfoData json;		/* a payload or headers, decoded */
	char		second[32];		/* of the last line, as text */
	int64		second_of;		/* which that is; -1: none */
	char		lease_until[40];
} Lines;

/* --------------------------------------------------------------------- times */

#define TIME_CHARS	32			/* 2026-11-24T03:00:00.123456+00:00 */

/* A time in UTC.  Most are of the same second as the one before. */
static char *
put_time(Lines *l, char *to, TimestampTz time)
{
	int64		second = time / USECS_PER_SEC;
	int			usec = time % USECS_PER_SEC;

	if (second != l->second_of)
	{
		struct pg_tm tm;
		fsec_t		fraction;

		if (timestamp2tm(time, NULL, &tm, &fraction, NULL, NULL) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
					 errmsg("timestamp out of range")));
		snprintf(l->second, sizeof(l->second), "%04d-%02d-%02dT%02d:%02d:%02d",
				 tm.tm_year, tm.tm_mon, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec);
		l->second_of = second;
	}
	memcpy(to, l->second, 19);
	to[19] = '.';
	for (int i = 25; i > 19; i--, usec /= 10)
		to[i] = '0' + usec % 10;
	memcpy(to + 26, "+00:00", 6);
	return to + TIME_CHARS;
}

/* --------------------------------------------------------------------- lines */

/* Headers or payload. */
static EvbusPrinted
put_json(Lines *l, const char *data, int len, int max)
{
	return evbus_decode_print(&l->text, &l->json, data, len, max);
}

/* Append a line.  Keys are as in evbus.delivery, in that order; replayed is there if it is true. */
static EvbusPrinted
put_line(Lines *l, const EvbusEvent *event, bool replayed, const EvbusReceipt *receipt, int max)
{
	StringInfo	text = &l->text;
	int			headers_len = event->headers_len;
	const char *headers = evbus_headers_inside(event->headers, &headers_len);
	EvbusPrinted	result;
	char	   *to = evbus_print_room(text, FIXED_MAX + l->bus.len, max);

	if (to == NULL)
		return EVBUS_PRINT_TOO_LONG;
	if (text->len > VARHDRSZ)
		*to++ = '\n';
	EVBUS_PRINT(to, "{\"receipt\":\"");
	evbus_receipt_write(receipt, to);
	to += EVBUS_RECEIPT_CHARS;
	EVBUS_PRINT(to, "\",\"event_id\":\"");	/* a text: many parsers of JSON cut numbers at 53 bits */
	to += pg_lltoa(event->event_id, to);
	*to++ = '"';
	memcpy(to, l->bus.data, l->bus.len);
	to += l->bus.len;
	text->len = to - text->data;
	if (!evbus_json_print_string(text, event->type, event->type_len, max))
		return EVBUS_PRINT_TOO_LONG;

	to = evbus_print_room(text, FIXED_MAX, max);
	if (to == NULL)
		return EVBUS_PRINT_TOO_LONG;
	EVBUS_PRINT(to, ",\"key\":");
	if (event->key == NULL)
		EVBUS_PRINT(to, "null");
	text->len = to - text->data;
	if (event->key && !evbus_json_print_string(text, event->key, event->key_len, max))
		return EVBUS_PRINT_TOO_LONG;

	to = evbus_print_room(text, FIXED_MAX, max);
	if (to == NULL)
		return EVBUS_PRINT_TOO_LONG;
	EVBUS_PRINT(to, ",\"payload\":");
	text->len = to - text->data;
	result = put_json(l, event->payload, event->payload_len, max);
	if (result != EVBUS_PRINT_DONE)
		return result;

	to = evbus_print_room(text, FIXED_MAX, max);
	if (to == NULL)
		return EVBUS_PRINT_TOO_LONG;
	EVBUS_PRINT(to, ",\"headers\":");
	if (headers == NULL)
		EVBUS_PRINT(to, "null");
	text->len = to - text->data;
	if (headers)
		result = put_json(l, headers, headers_len, max);
	if (result != EVBUS_PRINT_DONE)
		return result;

	to = evbus_print_room(text, FIXED_MAX, max);
	if (to == NULL)
		return EVBUS_PRINT_TOO_LONG;
	EVBUS_PRINT(to, ",\"published_at\":\"");
	to = put_time(l, to, evbus_clock_to_time(event->event_id));
	EVBUS_PRINT(to, "\",\"position\":");
	to += pg_lltoa(event->position, to);
	EVBUS_PRINT(to, ",\"attempt\":");
	to += pg_ltoa(event->attempt, to);
	EVBUS_PRINT(to, ",\"lease_until\":\"");
	memcpy(to, l->lease_until, TIME_CHARS);
	to += TIME_CHARS;
	*to++ = '"';
	if (replayed)
		EVBUS_PRINT(to, ",\"replayed\":true");
	*to++ = '}';
	text->len = to - text->data;
	return text->len <= max ? EVBUS_PRINT_DONE : EVBUS_PRINT_TOO_LONG;
}

/* What all lines have in common; and room for what they will have, roughly. */
static void
begin(Lines *l, const EvbusTaken *taken)
{
	int64		guess = VARHDRSZ + taken->bytes + taken->bytes / 2 + (int64) taken->n * FIXED_MAX;

	initStringInfo(&l->text);
	enlargeStringInfo(&l->text, (int) Min(guess, BATCH_MAX));
	l->text.len = VARHDRSZ;
	initStringInfo(&l->json);
	l->second_of = -1;
	put_time(l, l->lease_until, taken->expires_at);

	initStringInfo(&l->bus);
	appendStringInfoString(&l->bus, ",\"bus\":");
	(void) evbus_json_print_string(&l->bus, taken->sub->bus_name, strlen(taken->sub->bus_name), BATCH_MAX);
	appendStringInfoString(&l->bus, ",\"type\":");
}

/* Those from the i-th on go back, those of one subscription together. */
static void
give_back(const EvbusTaken *taken, int i)
{
	EvbusClaim *claims = palloc(sizeof(EvbusClaim) * (taken->n - i));

	while (i < taken->n)
	{
		const EvbusSubscription *sub = taken->deliveries[i].sub;
		int			n = 0;

		while (i < taken->n && taken->deliveries[i].sub == sub)
			claims[n++] = taken->deliveries[i++].claim;
		evbus_pin_give_back(taken->db, claims, n);
	}
	pfree(claims);
}

/*
 * evbus.receive_lines(subscription text, max_events integer, lease interval, wait interval,
 * ack text[]) returns setof (events integer, receipts text[], lines text)
 *
 * As evbus.receive(), but no row if there is nothing, and else one: how many
 * deliveries, what acks all of them (one text, or two and more if some are of a
 * replay), and each as a JSON object on a line of its own, with the fields of evbus.delivery, event_id as a text.  Fewer than there are, if the lines would have more
 * than 64 MB: the others stay where they are.
 * Errors: those of evbus.receive(), and 54000 a single line has almost 1 GB.
 */
Datum
evbus_receive_lines(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	EvbusTaken	taken;
	Lines		l;
	EvbusReceipts receipts;
	const EvbusSubscription *of = NULL; /* receipts is of this one */
	Datum	   *all;
	int			n_all = 0;
	Datum		values[3];
	bool		nulls[3] = {false, false, false};
	int			n = 0;

	evbus_take(fcinfo, "evbus.receive_lines()", "evbus.receive_lines(ack => ...)", BATCH_MAX, &taken);
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	if (taken.n == 0)
		return (Datum) 0;

	begin(&l, &taken);
	all = palloc(sizeof(Datum) * (2 * taken.n_replays + 1));	/* of each: what is owed, or what is left */
	for (int i = 0; i < taken.n; i++)
	{
		const EvbusDelivery *d = &taken.deliveries[i];
		const EvbusEvent *event = &d->event;
		EvbusReceipt receipt = evbus_taken_receipt(&taken, i);
		int			before = l.text.len;
		EvbusPrinted	result;

		CHECK_FOR_INTERRUPTS();
		result = put_line(&l, event, event->replayed || d->sub->replay_of != 0, &receipt, n == 0 ? LONE_MAX : BATCH_MAX);
		if (result == EVBUS_PRINT_DAMAGED)
		{
			l.text.len = before;
			evbus_taken_damaged(&taken, i);
			continue;
		}
		if (result == EVBUS_PRINT_TOO_LONG)
		{
			if (n == 0)
				ereport(ERROR,
						(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						 errmsg("event " INT64_FORMAT " is too large for a line", event->event_id),
						 errdetail("As text it has more than %d MB.", LONE_MAX / (1024 * 1024)),
						 errhint("Select its receipt alone from evbus.receive(), and settle it with that.")));
			l.text.len = before;
			give_back(&taken, i);
			break;
		}
		/* A batch's receipt is of one subscription. */
		if (d->sub != of)
		{
			if (of)
				all[n_all++] = PointerGetDatum(evbus_receipts_out(&receipts));
			evbus_receipts_begin(&receipts, &receipt);
			of = d->sub;
		}
		n++;
		evbus_receipts_add(&receipts, &receipt);
	}
	if (n == 0)
		return (Datum) 0;

	all[n_all++] = PointerGetDatum(evbus_receipts_out(&receipts));
	SET_VARSIZE(l.text.data, l.text.len);
	values[0] = Int32GetDatum(n);
	values[1] = PointerGetDatum(construct_array(all, n_all, TEXTOID, -1, false, TYPALIGN_INT));
	values[2] = PointerGetDatum(l.text.data);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	return (Datum) 0;
}
