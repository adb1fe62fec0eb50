/* codec.h: how payloads and headers are stored */
#ifndef EVBUS_CODEC_H
#define EVBUS_CODEC_H

#include "evbus.h"

#include "dictionary.h"
#include "lib/stringinfo.h"
#include "registry.h"
#include "utils/jsonb.h"

#define EVBUS_CODEC_JSONB	0	/* the bytes of a jsonb, without its length word */
#define EVBUS_CODEC_ZSTD	1	/* a zstd frame of the same */
#define EVBUS_CODEC_PACKED	2	/* the same by jsonb_pack.c */
#define EVBUS_CODEC_DICTIONARY 3	/* what PACKED has, by a dictionary of its bus */
#define EVBUS_CODEC_ENVELOPE 4	/* of headers only: envelope.c */

#define EVBUS_DICTIONARY_FROM	64	/* bytes of packed jsonb that a dictionary is of use for */
#define EVBUS_DICTIONARY_UPTO	(64 * 1024)

/* Bytes that compressing with a dictionary wants: zstd's bound, and id and code. */
#define EVBUS_COMPRESS_ROOM(len)	(ZSTD_compressBound(len) + 16)

/* Stored as the codec's byte and these after it. */
typedef struct EvbusCoded
{
	char		codec;
	const char *data;
	Size		len;
} EvbusCoded;

/* What became of printing: if it is not done, what is behind the text's former end is nothing. */
typedef enum EvbusPrinted
{
	EVBUS_PRINT_DONE,
	EVBUS_PRINT_TOO_LONG,		/* it would have more than max bytes */
	EVBUS_PRINT_DAMAGED
} EvbusPrinted;

extern int	evbus_compress_threshold;

extern void evbus_encode_jsonb(Jsonb *json, EvbusCoded *coded);
extern void evbus_encode_payload(const EvbusBus *bus, Jsonb *json, EvbusCoded *coded);
extern Jsonb *evbus_decode_jsonb(const char *data, int len, int64 event_id);
pg_noreturn extern void evbus_not_decodable(const char *data, int len, int64 event_id);
extern Jsonb *evbus_decode_try(const char *data, int len);
extern EvbusPrinted evbus_decode_print(StringInfo out, StringInfo buffer, const char *data, int len, int max);
extern const char *evbus_coded_alone(const char *data, int len, int *alone_len);

extern Size evbus_dictionary_compress(const EvbusDictionary *dictionary, const char *packed, Size len, char *out, Size room);

#endif
