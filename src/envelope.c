/*-------------------------------------------------------------------------
 * envelope.c
 *	  Priority and expiry of an event, in front of its headers.
 *
 * Few events have either.  So they are no columns: the log would be wider for all, and
 * so would the ring, retries, dead letters and delayed events, which each keep a copy
 * of an event.  An event that has one is stored with headers that begin with a codec of
 * their own:
 *
 *		byte		EVBUS_CODEC_ENVELOPE
 *		varint		priority, zigzag
 *		varint		when it expires, microseconds as in timestamptz; 0: never
 *		the headers as they are stored else, or nothing
 *
 * Whoever copies an event copies this along and need not know; who reads headers asks
 * for what is inside.  A damaged one has neither priority nor expiry, and headers that
 * cannot be decoded.
 *-------------------------------------------------------------------------
 */
#include "envelope.h"

#include "fmgr.h"
#include "jsonbcheck.h"
#include "utils/timestamp.h"
#include "varint.h"

PG_FUNCTION_INFO_V1(evbus_decode);
PG_FUNCTION_INFO_V1(evbus_stored_priority);
PG_FUNCTION_INFO_V1(evbus_stored_expiry);

/* What is to be stored, allocated or in headers->json; false: nothing is. */
bool
evbus_encode_headers(const EvbusHeaders *headers, EvbusCoded *coded)
{
	EvbusCoded	inside;
	char	   *out;
	char	   *at;

	if (headers->json)
		evbus_encode_jsonb(headers->json, &inside);
	if (likely(headers->priority == 0 && headers->expires_at == 0))
	{
		if (headers->json)
			*coded = inside;
		return headers->json != NULL;
	}
	out = palloc(2 * EVBUS_VARINT_MAX + 1 + (headers->json ? inside.len : 0));
	at = evbus_write_varint(out, evbus_zigzag(headers->priority));
	/* What expired before the year 2000 has expired. */
	at = evbus_write_varint(at, headers->expires_at == 0 ? 0 : (uint64) Max(headers->expires_at, 1));
	if (headers->json)
	{
		*at++ = inside.codec;
		memcpy(at, inside.data, inside.len);
		at += inside.len;
	}
	coded->codec = EVBUS_CODEC_ENVELOPE;
	coded->data = out;
	coded->len = at - out;
	return true;
}

/* *at: where what is inside begins; false: it is damaged, or no envelope. */
bool
evbus_envelope_open(const char *data, int len, int *priority, TimestampTz *expires_at, int *at)
{
	const unsigned char *from = (const unsigned char *) data + 1;
	const unsigned char *end = (const unsigned char *) data + len;
	int64		stored_priority;
	uint64		stored_end;

	*priority = 0;
	*expires_at = 0;
	if (len < 1 || data[0] != EVBUS_CODEC_ENVELOPE || !evbus_take_signed(&from, end, &stored_priority) ||
		!evbus_take_varint(&from, end, &stored_end) ||
		stored_priority < -EVBUS_PRIORITY_MAX || stored_priority > EVBUS_PRIORITY_MAX || stored_end > PG_INT64_MAX)
		return false;
	*priority = (int) stored_priority;
	*expires_at = (TimestampTz) stored_end;
	*at = (int) ((const char *) from - data);
	return true;
}

/* Stored headers without their envelope, and their length; NULL: there are none. */
const char *
evbus_headers_inside(const char *data, int *len)
{
	int			priority;
	TimestampTz expires_at;
	int			at;

	if (data == NULL || !evbus_envelope_open(data, *len, &priority, &expires_at, &at))
		return data;			/* a damaged one is found out by who decodes it */
	*len -= at;
	return *len > 0 ? data + at : NULL;
}

int
evbus_event_priority(const EvbusEvent *event)
{
	int			priority = 0;
	TimestampTz expires_at;
	int			at;

	if (evbus_event_enveloped(event))
		(void) evbus_envelope_open(event->headers, event->headers_len, &priority, &expires_at, &at);
	return priority;
}

bool
evbus_event_expired(const EvbusEvent *event)
{
	int			priority;
	TimestampTz expires_at;
	int			at;

	return evbus_event_enveloped(event) && evbus_envelope_open(event->headers, event->headers_len, &priority, &expires_at, &at) &&
		expires_at != 0 && expires_at <= GetCurrentTimestamp();
}

/*
 * evbus._decode(data bytea, event_id bigint) returns jsonb: for the views, and so for
 * everybody who may read one; event_id is for the message only, 0: not known.
 * Errors: XX001 not what evbus stores.
 */
Datum
evbus_decode(PG_FUNCTION_ARGS)
{
	bytea	   *data = PG_GETARG_BYTEA_PP(0);
	int			len = VARSIZE_ANY_EXHDR(data);
	const char *coded = evbus_headers_inside(VARDATA_ANY(data), &len);
	Jsonb	   *json;

	if (coded == NULL)
		PG_RETURN_NULL();
	json = evbus_decode_try(coded, len);
	if (json == NULL || !evbus_jsonb_sound(&json->root, VARSIZE(json) - VARHDRSZ, true))
		evbus_not_decodable(coded, len, PG_GETARG_INT64(1));
	PG_RETURN_JSONB_P(json);
}

/* evbus._priority(headers bytea) returns integer: of stored headers, NULL has 0; for the views. */
Datum
evbus_stored_priority(PG_FUNCTION_ARGS)
{
	int			priority = 0;
	TimestampTz expires_at;
	int			at;

	if (!PG_ARGISNULL(0))
	{
		bytea	   *data = PG_GETARG_BYTEA_PP(0);

		(void) evbus_envelope_open(VARDATA_ANY(data), VARSIZE_ANY_EXHDR(data), &priority, &expires_at, &at);
	}
	PG_RETURN_INT32(priority);
}

/* evbus._expires_at(headers bytea) returns timestamptz: the same; NULL: never. */
Datum
evbus_stored_expiry(PG_FUNCTION_ARGS)
{
	int			priority;
	TimestampTz expires_at = 0;
	int			at;

	if (!PG_ARGISNULL(0))
	{
		bytea	   *data = PG_GETARG_BYTEA_PP(0);

		(void) evbus_envelope_open(VARDATA_ANY(data), VARSIZE_ANY_EXHDR(data), &priority, &expires_at, &at);
	}
	if (expires_at == 0)
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(expires_at);
}
