/* envelope.h: what is said of an event beside its payload, and how it is stored */
#ifndef EVBUS_ENVELOPE_H
#define EVBUS_ENVELOPE_H

#include "evbus.h"

#include "codec.h"

#define EVBUS_PRIORITY_MAX	9	/* from -9 to 9; 0 is the usual one */

typedef struct EvbusHeaders
{
	Jsonb	   *json;			/* NULL: none */
	int			priority;
	TimestampTz expires_at;		/* 0: never */
} EvbusHeaders;

extern bool evbus_encode_headers(const EvbusHeaders *headers, EvbusCoded *coded);
extern bool evbus_envelope_open(const char *data, int len, int *priority, TimestampTz *expires_at, int *at);
extern const char *evbus_headers_inside(const char *data, int *len);

/* Has an event, as it was read, a priority or an end? */
static inline bool
evbus_event_enveloped(const EvbusEvent *event)
{
	return event->headers != NULL && event->headers_len > 0 && event->headers[0] == EVBUS_CODEC_ENVELOPE;
}

extern int	evbus_event_priority(const EvbusEvent *event);
extern bool evbus_event_expired(const EvbusEvent *event);

#endif
