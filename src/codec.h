/* codec.h: how payloads and headers are stored */
#ifndef EVBUS_CODEC_H
#define EVBUS_CODEC_H

#include "evbus.h"
#include "lib/stringinfo.h"
#include "utils/jsonb.h"

#define EVBUS_CODEC_JSONB	0	/* the bytes of a jsonb, without its length word */
#define EVBUS_CODEC_ZSTD	1	/* a zstd frame of the same */
#define EVBUS_CODEC_PACKED	2	/* the same by jsonb_pack.c */

/* Stored as the codec's byte and these after it. */
typedef struct EvbusCoded
{
	char		codec;
	const char *data;
	Size		len;
} EvbusCoded;

extern int	evbus_compress_threshold;

extern void evbus_encode_jsonb(Jsonb *json, EvbusCoded *coded);
extern Jsonb *evbus_decode_jsonb(const char *data, int len);
extern bool evbus_decode_print(StringInfo out, StringInfo buffer, const char *data, int len, int max);

#endif
