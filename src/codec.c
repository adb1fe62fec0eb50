/*-------------------------------------------------------------------------
 * codec.c
 *	  Stored form of payloads and headers: one byte that names the codec, then
 *	  the bytes of the jsonb, packed or as they are, or their zstd frame; or packed
 *	  and compressed with a dictionary of the bus.
 *
 * jsonb is kept in a binary form, so delivery parses nothing.  Below
 * evbus.compress_threshold it is packed (jsonb_pack.c): a frame without dictionary
 * gains nothing there.  With one, even a hundred bytes do (dictionary.c):
 *
 *	varint		id of the dictionary
 *	6 bytes		code of what follows, under the dictionary's secret
 *	frame		without its magic number, checksum and id: always the same, or told above;
 *				dictionaries are kept with zstd's own id of 0, then it writes none
 *
 * The code tells a damaged frame before anything looks into it.  And it lets nobody
 * make a frame but evbus: what a dictionary holds are pieces of payloads, and whoever
 * may call evbus._decode() could else have them copied out of it by a frame of his own.
 *
 * A frame by itself ends with zstd's checksum.
 *-------------------------------------------------------------------------
 */
#include "codec.h"

#include "jsonb_pack.h"
#include "jsonb_print.h"
#include "varint.h"

#define PACK_SPARE			32	/* bytes that packing wants free at its end */
#define CODE_BYTES			6
#define MAGIC_BYTES			4
#define FRAME_LEAST			3	/* bytes of one, without its magic number */

int			evbus_compress_threshold = 2048;

/* ------------------------------------------------------------- zstd contexts */

static void
out_of_memory(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OUT_OF_MEMORY),
			 errmsg("out of memory"),
			 errdetail("zstd could not get what it works in.")));
}

/* For payloads of limited size, so it stays small and is kept. */
static ZSTD_CCtx *
compressor(void)
{
	static ZSTD_CCtx *context = NULL;

	if (unlikely(context == NULL))
	{
		context = ZSTD_createCCtx();
		if (context == NULL)
			out_of_memory();
	}
	return context;
}

static ZSTD_DCtx *
decompressor(void)
{
	static ZSTD_DCtx *context = NULL;

	if (unlikely(context == NULL))
	{
		context = ZSTD_createDCtx();
		if (context == NULL)
			out_of_memory();
	}
	return context;
}

/* ------------------------------------------------------------------ encoding */

static void
encode_plain(Jsonb *json, Size len, EvbusCoded *coded)
{
	coded->codec = EVBUS_CODEC_JSONB;
	coded->data = VARDATA(json);
	coded->len = len;
}

/* False: it would not be less. */
static bool
encode_packed(Jsonb *json, Size len, EvbusCoded *coded)
{
	char	   *out = palloc(len + PACK_SPARE);
	int			packed = evbus_jsonb_pack(&json->root, len, out, len + PACK_SPARE);

	if (packed < 0 || packed >= len)
	{
		pfree(out);
		return false;
	}
	coded->codec = EVBUS_CODEC_PACKED;
	coded->data = out;
	coded->len = packed;
	return true;
}

static bool
encode_frame(Jsonb *json, Size len, EvbusCoded *coded)
{
	Size		bound = ZSTD_compressBound(len);
	char	   *out = palloc(bound);
	ZSTD_CCtx  *context = ZSTD_createCCtx();
	Size		packed = bound;

	if (context == NULL)
		out_of_memory();
	(void) ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, evbus_compress_level);
	(void) ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
	packed = ZSTD_compress2(context, out, bound, VARDATA(json), len);
	ZSTD_freeCCtx(context);
	if (ZSTD_isError(packed) || packed >= len)
	{
		pfree(out);
		return false;
	}
	coded->codec = EVBUS_CODEC_ZSTD;
	coded->data = out;
	coded->len = packed;
	return true;
}

/* What is to be stored, without any dictionary; it lies in json itself, or is allocated. */
void
evbus_encode_jsonb(Jsonb *json, EvbusCoded *coded)
{
	Size		len = VARSIZE(json) - VARHDRSZ;
	bool		large = evbus_compress_threshold >= 0 && len >= (Size) evbus_compress_threshold;

	if (!(large ? encode_frame(json, len, coded) : encode_packed(json, len, coded)))
		encode_plain(json, len, coded);
}

/* The code of a frame, as it is stored. */
static uint64
frame_code(const EvbusDictionary *dictionary, const char *frame, Size len)
{
	return evbus_siphash(dictionary->secret, frame, len) >> (64 - 8 * CODE_BYTES);
}

/*
 * Packed jsonb by a dictionary; returns how many bytes, 0: it would not be less.
 * room is at least EVBUS_COMPRESS_ROOM(len).
 */
Size
evbus_dictionary_compress(const EvbusDictionary *dictionary, const char *packed, Size len, char *out, Size room)
{
	char	   *code_at = evbus_write_varint(out, dictionary->id);
	char	   *frame = code_at + CODE_BYTES;
	char	   *start = frame - MAGIC_BYTES;	/* where the magic number is, the code will be */
	uint64		code;
	Size		n;

	n = ZSTD_compress_usingCDict(compressor(), start, out + room - start, packed, len, dictionary->cdict);
	if (ZSTD_isError(n) || start + n - out >= len)
		return 0;
	code = frame_code(dictionary, frame, n - MAGIC_BYTES);
	for (int i = 0; i < CODE_BYTES; i++)
		code_at[i] = (char) (code >> (8 * i));
	return start + n - out;
}

/* Instead of packed jsonb what a dictionary of the bus makes of it, if that is less. */
static void
use_dictionary(const EvbusBus *bus, EvbusCoded *coded)
{
	const EvbusDictionary *dictionary = evbus_dictionary_of_bus(bus->bus_id);
	Size		room = EVBUS_COMPRESS_ROOM(coded->len);
	char	   *out;
	Size		n;

	if (dictionary == NULL)
		return;
	out = palloc(room);
	n = evbus_dictionary_compress(dictionary, coded->data, coded->len, out, room);
	if (n == 0)
	{
		pfree(out);
		return;
	}
	pfree(unconstify(char *, coded->data));
	coded->codec = EVBUS_CODEC_DICTIONARY;
	coded->data = out;
	coded->len = n;
}

/* The same as the bus has it for payloads.  For an event that has taken its id. */
void
evbus_encode_payload(const EvbusBus *bus, Jsonb *json, EvbusCoded *coded)
{
	Size		len = VARSIZE(json) - VARHDRSZ;

	if (likely(bus->compression == EVBUS_COMPRESS_ZSTD) || (evbus_compress_threshold < 0 && bus->compression != EVBUS_COMPRESS_NONE))
		evbus_encode_jsonb(json, coded);
	else if (bus->compression == EVBUS_COMPRESS_NONE)
	{
		if (!encode_packed(json, len, coded))
			encode_plain(json, len, coded);
	}
	else if (len > EVBUS_DICTIONARY_UPTO || !encode_packed(json, len, coded))
		evbus_encode_jsonb(json, coded);
	else
	{
		if (coded->len >= EVBUS_DICTIONARY_FROM)
			use_dictionary(bus, coded);
		/* Without one, large ones have a frame of their own. */
		if (coded->codec == EVBUS_CODEC_PACKED && len >= (Size) evbus_compress_threshold)
			evbus_encode_jsonb(json, coded);
	}
}

/* ------------------------------------------------------------------ decoding */

/* event_id: 0 where it is not known. */
void
evbus_not_decodable(const char *data, int len, int64 event_id)
{
	const unsigned char *at = (const unsigned char *) data + 1;
	uint64		id = 0;
	bool		lost = len > 1 && data[0] == EVBUS_CODEC_DICTIONARY && evbus_take_varint(&at, (const unsigned char *) data + len, &id) &&
		id <= PG_INT32_MAX && evbus_dictionary_get((int32) id) == NULL;

	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 event_id != 0 ? errmsg("stored data of event " INT64_FORMAT " cannot be decoded", event_id)
			 : errmsg("stored event data cannot be decoded"),
			 lost ? errdetail("It has %d bytes and refers to dictionary %d, which does not exist.", len, (int32) id)
			 : errdetail("It has %d bytes and codec %d.", len, len >= 1 ? (int) (unsigned char) data[0] : -1)));
}

/*
 * Packed jsonb out of what a dictionary made of it, allocated, with the byte of its
 * codec; NULL: it is damaged, or its dictionary is lost.
 */
static char *
inflate(const char *data, int len, int *packed_len)
{
	const unsigned char *at = (const unsigned char *) data + 1;
	const unsigned char *end = (const unsigned char *) data + len;
	const EvbusDictionary *dictionary;
	const char *frame;
	char		small[1024];
	char	   *whole = small;
	char	   *out = NULL;
	Size		frame_len;
	uint64		id;
	uint64		code = 0;
	unsigned long long size;

	if (!evbus_take_varint(&at, end, &id) || id > PG_INT32_MAX || end - at < CODE_BYTES + FRAME_LEAST)
		return NULL;
	dictionary = evbus_dictionary_get((int32) id);
	if (dictionary == NULL)
		return NULL;
	for (int i = 0; i < CODE_BYTES; i++)
		code |= (uint64) at[i] << (8 * i);
	frame = (const char *) at + CODE_BYTES;
	frame_len = (const char *) end - frame;
	if (code != frame_code(dictionary, frame, frame_len))
		return NULL;

	if (frame_len + MAGIC_BYTES > sizeof(small))
		whole = palloc(frame_len + MAGIC_BYTES);
	for (int i = 0; i < MAGIC_BYTES; i++)
		whole[i] = (char) (ZSTD_MAGICNUMBER >> (8 * i));
	memcpy(whole + MAGIC_BYTES, frame, frame_len);
	frame_len += MAGIC_BYTES;
	size = ZSTD_getFrameContentSize(whole, frame_len);
	if (size <= EVBUS_DICTIONARY_UPTO)	/* also false for zstd's two error values */
	{
		out = palloc(1 + size);
		out[0] = EVBUS_CODEC_PACKED;
		if (ZSTD_decompress_usingDDict(decompressor(), out + 1, size, whole, frame_len, dictionary->ddict) != size)
		{
			pfree(out);
			out = NULL;
		}
		*packed_len = 1 + (int) size;
	}
	if (whole != small)
		pfree(whole);
	return out;
}

/*
 * As it is to be stored where it may outlive its dictionary: the same bytes, or
 * allocated ones.  What is damaged stays so.
 */
const char *
evbus_coded_alone(const char *data, int len, int *alone_len)
{
	const char *alone = NULL;

	if (len >= 1 && data[0] == EVBUS_CODEC_DICTIONARY)
		alone = inflate(data, len, alone_len);
	if (alone)
		return alone;
	*alone_len = len;
	return data;
}

/* How many bytes the jsonb has, without its length word; 0: it cannot be decoded.  Not of codec DICTIONARY. */
static Size
decoded_size(const char *data, int len)
{
	if (len >= 1 + (int) sizeof(uint32) && data[0] == EVBUS_CODEC_JSONB)
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
	return 0;
}

/* Always a copy: jsonb wants alignment that stored bytes do not have.  False: it is damaged. */
static bool
decode_to(char *to, Size size, const char *data, int len)
{
	if (data[0] == EVBUS_CODEC_JSONB)
		memcpy(to, data + 1, size);
	else if (data[0] == EVBUS_CODEC_PACKED)
		return evbus_jsonb_unpack(data + 1, len - 1, to, size);
	else
		return ZSTD_decompressDCtx(decompressor(), to, size, data + 1, len - 1) == size;
	return true;
}

/* NULL: it is damaged. */
Jsonb *
evbus_decode_try(const char *data, int len)
{
	char	   *inflated = NULL;
	Size		size;
	Jsonb	   *json = NULL;

	if (len >= 1 && data[0] == EVBUS_CODEC_DICTIONARY)
	{
		data = inflated = inflate(data, len, &len);
		if (data == NULL)
			return NULL;
	}
	size = decoded_size(data, len);
	if (size > 0)
	{
		json = palloc(VARHDRSZ + size);
		SET_VARSIZE(json, VARHDRSZ + size);
		if (!decode_to(VARDATA(json), size, data, len))
		{
			pfree(json);
			json = NULL;
		}
	}
	if (inflated)
		pfree(inflated);
	return json;
}

/* The same; errors XX001. */
Jsonb *
evbus_decode_jsonb(const char *data, int len, int64 event_id)
{
	Jsonb	   *json = evbus_decode_try(data, len);

	if (json == NULL)
		evbus_not_decodable(data, len, event_id);
	return json;
}

/* The same into a buffer, which serves for one after the other; NULL: it is damaged. */
static JsonbContainer *
decode_container(StringInfo buffer, const char *data, int len)
{
	char	   *inflated = NULL;
	Size		size;
	bool		good;

	if (len >= 1 && data[0] == EVBUS_CODEC_DICTIONARY)
	{
		data = inflated = inflate(data, len, &len);
		if (data == NULL)
			return NULL;
	}
	size = decoded_size(data, len);
	resetStringInfo(buffer);
	enlargeStringInfo(buffer, size);
	good = size > 0 && decode_to(buffer->data, size, data, len);
	if (inflated)
		pfree(inflated);
	return good ? (JsonbContainer *) buffer->data : NULL;
}

/*
 * Append it to a text, as jsonb is printed.  buffer: as above, used where it cannot be
 * printed as it is.
 */
EvbusPrinted
evbus_decode_print(StringInfo out, StringInfo buffer, const char *data, int len, int max)
{
	const char *packed = data;
	char	   *inflated = NULL;
	bool		sound = true;
	bool		fits;

	if (len >= 1 && data[0] == EVBUS_CODEC_DICTIONARY && (packed = inflated = inflate(data, len, &len)) == NULL)
		return EVBUS_PRINT_DAMAGED;
	if (len < 1 || packed[0] != EVBUS_CODEC_PACKED)
	{
		JsonbContainer *json = decode_container(buffer, packed, len);

		if (json == NULL)
			return EVBUS_PRINT_DAMAGED;
		fits = evbus_jsonb_print(out, json, max);
	}
	else
		fits = evbus_jsonb_print_packed(out, packed + 1, len - 1, max, &sound);
	if (inflated)
		pfree(inflated);
	return !sound ? EVBUS_PRINT_DAMAGED : fits ? EVBUS_PRINT_DONE : EVBUS_PRINT_TOO_LONG;
}
