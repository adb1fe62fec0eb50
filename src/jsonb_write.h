/* jsonb_write.h: a checked JSON text as jsonb */
#ifndef EVBUS_JSONB_WRITE_H
#define EVBUS_JSONB_WRITE_H

#include "evbus.h"
#include "lib/stringinfo.h"
#include "utils/jsonb.h"

#define EVBUS_JSON_ARRAY	JENTRY_ISCONTAINER
#define EVBUS_JSON_OBJECT	(JENTRY_ISCONTAINER | 1)

/* Digits of a number that can be written. */
#define EVBUS_JSON_WHOLE_MAX	64	/* before the point */
#define EVBUS_JSON_FRACTION_MAX	60	/* after it: the short form of a numeric has room for 63 */

/* A value, or the key of the one behind it. */
typedef struct EvbusJsonToken
{
	uint32		type;			/* as in a JEntry, or one of the two above */
	uint32		len;			/* bytes at start, or how many children a container has */
	const char *start;			/* of a string or a number */
	uint32		next;			/* the token behind it and all that is in it */
} EvbusJsonToken;

typedef struct EvbusJsonbWriter
{
	StringInfoData out;
	StringInfoData pairs;		/* a stack: those of all objects that are being written */
	const EvbusJsonToken *tokens;
} EvbusJsonbWriter;

extern void evbus_jsonb_writer(EvbusJsonbWriter *writer);
extern Jsonb *evbus_jsonb_write(EvbusJsonbWriter *writer, const EvbusJsonToken *tokens, uint32 n, Size text_len);

#endif
