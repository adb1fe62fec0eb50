/*-------------------------------------------------------------------------
 * codec.c
 *	  Stored form of payloads and headers: one byte that names the codec, then
 *	  the bytes of the jsonb, packed or as they are, or their zstd frame.
 *
 * jsonb is kept in a binary form, so delivery parses nothing.  Below
 * evbus.compress_threshold it is packed (jsonb_pack.c): a frame without dictionary
 * gains nothing there.  Knows nothing of buses.
 *-------------------------------------------------------------------------
 */
#include "codec.h"

#include <zstd.h>

#include "fmgr.h"
#include "jsonb_pack.h"
#include "jsonb_print.h"
#include "jsonbcheck.h"
#include "varint.h"

#define PACK_SPARE			32	/* bytes that packing wants free at its end */
#define EVBUS_ZSTD_LEVEL	1	/* fastest that still beats pglz by far */

int			evbus_compress_threshold = 2048;

PG_FUNCTION_INFO_V1(evbus_decode);

/* What is to be stored; it lies in json itself, or is allocated. */
void
evbus_encode_jsonb(Jsonb *json, EvbusCoded *coded)
{
	Size		len = VARSIZE(json) - VARHDRSZ;

	if (evbus_compress_threshold >= 0 && len >= (Size) evbus_compress_threshold)
	{
		Size		bound = ZSTD_compressBound(len);
		char	   *out = palloc(bound);
		Size		packed = ZSTD_compress(out, bound, VARDATA(json), len, EVBUS_ZSTD_LEVEL);

		if (!ZSTD_isError(packed) && packed < len)
		{
			coded->codec = EVBUS_CODEC_ZSTD;
			coded->data = out;
			coded->len = packed;
			return;
		}
		pfree(out);
	}
	else
	{
		char	   *out = palloc(len + PACK_SPARE);
		int			packed = evbus_jsonb_pack(&json->root, len, out, len + PACK_SPARE);

		if (packed >= 0 && packed < len)
		{
			coded->codec = EVBUS_CODEC_PACKED;
			coded->data = out;
			coded->len = packed;
			return;
		}
		pfree(out);
	}
	coded->codec = EVBUS_CODEC_JSONB;
	coded->data = VARDATA(json);
	coded->len = len;
}

static void
not_decodable(const char *data, int len)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("stored event data cannot be decoded"),
			 errdetail("It has %d bytes and codec %d.", len, len >= 1 ? (int) data[0] : -1)));
}

/* How many bytes the jsonb has, without its length word. */
static Size
decoded_size(const char *data, int len)
{
	if (len >= 1 && data[0] == EVBUS_CODEC_JSONB)
		return len - 1;
	if (len >= 1 && data[0] == EVBUS_CODEC_ZSTD)
	{
		unsigned long long size = ZSTD_getFrameContentSize(data + 1, len - 1);

		if (size <= EVBUS_PAYLOAD_MAX)	/* also false for zstd's two error values */
			return size;
	}
	if (len >= 1 && data[0] == EVBUS_CODEC_PACKED)
	{
		const unsigned char *at = (const unsigned char *) data + 1;
		uint64		size;

		if (evbus_take_varint(&at, at + len - 1, &size) && size <= EVBUS_PAYLOAD_MAX)
			return size;
	}
	not_decodable(data, len);
	return 0;					/* keep the compiler quiet */
}

/* Always a copy: jsonb wants alignment that stored bytes do not have. */
static void
decode_to(char *to, Size size, const char *data, int len)
{
	if (data[0] == EVBUS_CODEC_JSONB)
		memcpy(to, data + 1, size);
	else if (data[0] == EVBUS_CODEC_PACKED)
	{
		if (!evbus_jsonb_unpack(data + 1, len - 1, to, size))
			not_decodable(data, len);
	}
	else if (ZSTD_decompress(to, size, data + 1, len - 1) != size)
		not_decodable(data, len);
}

Jsonb *
evbus_decode_jsonb(const char *data, int len)
{
	Size		size = decoded_size(data, len);
	Jsonb	   *json = palloc(VARHDRSZ + size);

	SET_VARSIZE(json, VARHDRSZ + size);
	decode_to(VARDATA(json), size, data, len);
	return json;
}

/* The same into a buffer, which serves for one after the other. */
static JsonbContainer *
decode_container(StringInfo buffer, const char *data, int len)
{
	Size		size = decoded_size(data, len);

	resetStringInfo(buffer);
	enlargeStringInfo(buffer, size);
	decode_to(buffer->data, size, data, len);
	return (JsonbContainer *) buffer->data;
}

/*
 * Append it to a text, as jsonb is printed; false: out would have more than max bytes
 * then.  buffer: as above, used where it cannot be printed as it is.
 */
bool
evbus_decode_print(StringInfo out, StringInfo buffer, const char *data, int len, int max)
{
	bool		sound = true;
	bool		fits;

	if (len < 1 || data[0] != EVBUS_CODEC_PACKED)
		return evbus_jsonb_print(out, decode_container(buffer, data, len), max);
	fits = evbus_jsonb_print_packed(out, data + 1, len - 1, max, &sound);
	if (!sound)
		not_decodable(data, len);
	return fits;
}

/*
 * evbus._decode(bytea) returns jsonb: for the views, and so for everybody who may
 * read one.  Errors: XX001 not what evbus stores.
 */
Datum
evbus_decode(PG_FUNCTION_ARGS)
{
	bytea	   *data = PG_GETARG_BYTEA_PP(0);
	Jsonb	   *json = evbus_decode_jsonb(VARDATA_ANY(data), VARSIZE_ANY_EXHDR(data));

	if (!evbus_jsonb_sound(&json->root, VARSIZE(json) - VARHDRSZ, true))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("stored event data is not a jsonb")));
	PG_RETURN_JSONB_P(json);
}
