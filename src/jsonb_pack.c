/*-------------------------------------------------------------------------
 * jsonb_pack.c
 *	  jsonb in fewer bytes: a third less for small events, in the log and in WAL.
 *
 * jsonb is made to be searched in place: each child has an entry of four bytes,
 * each number a header and padding.  An event is stored once and read as a whole,
 * so here a value is one tag, mostly of one byte, and its bytes (jsonb_packed.h).
 *
 * The order of an object's pairs is kept, so unpacking sorts nothing: it is one pass
 * that writes the very bytes that were packed.  It trusts none of what it reads.
 *-------------------------------------------------------------------------
 */
#include "jsonb_pack.h"

#include "jsonb_layout.h"
#include "jsonb_packed.h"
#include "jsonbcheck.h"

#define GROUPS_MAX		4		/* of four digits: all of them fit 64 bits, with room for three more */
#define NUMERIC_MAX		(VARHDRSZ + sizeof(uint16) * (1 + GROUPS_MAX + 2))

/* Bytes on their way out; at is NULL once there was no room. */
typedef struct Out
{
	char	   *at;
	char	   *end;
	int			depth;			/* of containers, while unpacking */
} Out;

/* -------------------------------------------------------------------- numbers */

/* Groups of four digits after the point. */
static inline int
fraction_groups(int dscale)
{
	return (dscale + EVBUS_NUMERIC_BASE_DIGITS - 1) / EVBUS_NUMERIC_BASE_DIGITS;
}

/*
 * A numeric as digits and how many of them stand after the point; false: it is
 * long, or not a number.
 */
static bool
numeric_digits(const char *numeric, int len, int64 *digits, int *dscale)
{
	const uint16 *words = (const uint16 *) VARDATA(numeric);
	int			n = (len - VARHDRSZ) / (int) sizeof(uint16) - 1;
	int			weight;
	int			groups;
	int64		sum = 0;

	if (n < 0 || !VARATT_IS_4B_U(numeric) || VARSIZE(numeric) != len ||
		(words[0] & EVBUS_NUMERIC_FORM) != EVBUS_NUMERIC_SHORT)
		return false;
	weight = EVBUS_NUMERIC_WEIGHT(words[0]);
	*dscale = EVBUS_NUMERIC_DSCALE(words[0]);
	groups = fraction_groups(*dscale);
	if (*dscale > EVBUS_PACKED_DSCALE_MAX || Max(weight, -1) + 1 + groups > GROUPS_MAX)
		return false;
	for (int at = Max(weight, -1); at >= -groups; at--)
	{
		int			i = weight - at;

		sum = sum * 10000 + (i >= 0 && i < n ? words[1 + i] : 0);
	}
	for (int i = *dscale; i % EVBUS_NUMERIC_BASE_DIGITS != 0; i++)
		sum /= 10;
	*digits = words[0] & EVBUS_NUMERIC_NEGATIVE ? -sum : sum;
	return true;
}

/* And back; returns its length, at most NUMERIC_MAX.  dscale is at most EVBUS_PACKED_DSCALE_MAX. */
static int
make_numeric(int64 digits, int dscale, char *numeric)
{
	uint64		rest = digits < 0 ? -(uint64) digits : (uint64) digits;
	int			weight = -fraction_groups(dscale) - 1;	/* of the group behind the last one */
	uint16		groups[GROUPS_MAX + 2];
	int			n = 0;
	uint16		word;

	/* Fill up the last group, then take groups from the end; zeros there do not count. */
	for (int i = dscale; i % EVBUS_NUMERIC_BASE_DIGITS != 0; i++)
		rest *= 10;
	for (; rest > 0; rest /= 10000, weight++)
		if (n > 0 || rest % 10000 != 0)
			groups[n++] = rest % 10000;
	word = EVBUS_NUMERIC_WORD(digits < 0, dscale, n > 0 ? weight : 0);
	memcpy(numeric + VARHDRSZ, &word, sizeof(word));
	for (int i = 0; i < n; i++)
		memcpy(numeric + VARHDRSZ + sizeof(uint16) * (1 + i), &groups[n - 1 - i], sizeof(uint16));
	SET_VARSIZE(numeric, VARHDRSZ + sizeof(uint16) * (1 + n));
	return VARHDRSZ + sizeof(uint16) * (1 + n);
}

/* -------------------------------------------------------------------- packing */

static inline void
put_varint(Out *out, uint64 value)
{
	out->at = evbus_write_varint(out->at, value);
}

static inline void
put_tag(Out *out, int kind, uint64 value)
{
	if (value < EVBUS_PACKED_MORE)
	{
		*out->at++ = (char) (kind << 5 | value);
		return;
	}
	*out->at++ = (char) (kind << 5 | EVBUS_PACKED_MORE);
	put_varint(out, value);
}

static inline bool
room_for(const Out *out, Size n)
{
	return out->end - out->at >= (ptrdiff_t) n;
}

static bool
pack_bytes(Out *out, int kind, const char *data, uint32 len)
{
	if (!room_for(out, EVBUS_PACKED_TAG_MAX + (Size) len))
		return false;
	put_tag(out, kind, len);
	memcpy(out->at, data, len);
	out->at += len;
	return true;
}

static bool
pack_numeric(Out *out, const char *numeric, uint32 len)
{
	int64		digits;
	int			dscale;
	char		again[NUMERIC_MAX] pg_attribute_aligned(MAXIMUM_ALIGNOF);

	if (!room_for(out, 2 * EVBUS_PACKED_TAG_MAX + (Size) len))
		return false;
	/* Whatever does not come back as the same bytes is kept as it is. */
	if (!numeric_digits(numeric, len, &digits, &dscale) ||
		make_numeric(digits, dscale, again) != len || memcmp(again, numeric, len) != 0)
	{
		put_tag(out, EVBUS_PACKED_WORD, EVBUS_WORD_NUMERIC);
		put_varint(out, len);
		memcpy(out->at, numeric, len);
		out->at += len;
	}
	else if (dscale > 0)
	{
		put_tag(out, EVBUS_PACKED_DECIMAL, dscale);
		put_varint(out, evbus_zigzag(digits));
	}
	else
		put_tag(out, EVBUS_PACKED_INTEGER, evbus_zigzag(digits));
	return true;
}

static bool
pack_container(Out *out, const JsonbContainer *container, int depth)
{
	bool		object = JsonContainerIsObject(container);
	uint32		n = JsonContainerSize(container);
	const JEntry *entries = container->children;
	const char *data = (const char *) (entries + (object ? 2 * n : n));
	uint32		at = 0;

	if (depth > EVBUS_PACKED_DEPTH_MAX || !room_for(out, EVBUS_PACKED_TAG_MAX))
		return false;
	put_tag(out, object ? EVBUS_PACKED_OBJECT : JsonContainerIsScalar(container) ? EVBUS_PACKED_SCALAR : EVBUS_PACKED_ARRAY, n);
	if (object)
	{
		for (uint32 i = 0; i < n; i++)
		{
			uint32		end = evbus_jentry_end(entries[i], at);

			if (!room_for(out, EVBUS_PACKED_TAG_MAX))
				return false;
			put_varint(out, end - at);
			at = end;
		}
		if (!room_for(out, at))
			return false;
		memcpy(out->at, data, at);
		out->at += at;
		entries += n;
	}
	for (uint32 i = 0; i < n; i++)
	{
		JEntry		entry = entries[i];
		uint32		end = evbus_jentry_end(entry, at);
		const char *value = data + (JBE_ISSTRING(entry) ? at : INTALIGN(at));
		bool		fits;

		if (JBE_ISSTRING(entry))
			fits = pack_bytes(out, EVBUS_PACKED_STRING, value, end - at);
		else if (JBE_ISNUMERIC(entry))
			fits = pack_numeric(out, value, data + end - value);
		else if (JBE_ISCONTAINER(entry))
			fits = pack_container(out, (const JsonbContainer *) value, depth + 1);
		else
		{
			fits = room_for(out, EVBUS_PACKED_TAG_MAX);
			if (fits)
				put_tag(out, EVBUS_PACKED_WORD, JBE_ISNULL(entry) ? EVBUS_WORD_NULL : JBE_ISBOOL_TRUE(entry) ? EVBUS_WORD_TRUE : EVBUS_WORD_FALSE);
		}
		if (!fits)
			return false;
		at = end;
	}
	return true;
}

/*
 * A jsonb of len bytes, without its length word and aligned as an int, into at most
 * room bytes; returns how many, or -1: it does not fit, or is nested too deeply.  Some bytes are left free.
 */
int
evbus_jsonb_pack(const JsonbContainer *root, Size len, char *out, int room)
{
	Out			o = {.at = out, .end = out + room};

	if (!room_for(&o, EVBUS_PACKED_TAG_MAX))
		return -1;
	put_varint(&o, len);
	return pack_container(&o, root, 1) ? o.at - out : -1;
}

/* ------------------------------------------------------------------ unpacking */

static inline bool
take_bytes(EvbusPacked *in, Out *out, uint64 len)
{
	if (len > (uint64) (in->end - in->at) || !room_for(out, len))
		return false;
	memcpy(out->at, in->at, len);
	in->at += len;
	out->at += len;
	return true;
}

static inline bool
pad(Out *out)
{
	while ((uintptr_t) out->at % sizeof(int32) != 0)
	{
		if (!room_for(out, 1))
			return false;
		*out->at++ = '\0';
	}
	return true;
}

static bool
unpack_numeric(Out *out, int dscale, uint64 packed)
{
	char		numeric[NUMERIC_MAX] pg_attribute_aligned(MAXIMUM_ALIGNOF);
	int64		digits = evbus_unzigzag(packed);
	int			len;

	if (digits > EVBUS_PACKED_DIGITS_MAX || digits < -EVBUS_PACKED_DIGITS_MAX)
		return false;			/* more than packing takes, and than make_numeric() does */
	len = make_numeric(digits, dscale, numeric);
	if (!pad(out) || !room_for(out, len))
		return false;
	memcpy(out->at, numeric, len);
	out->at += len;
	return true;
}

static bool unpack_container(EvbusPacked *in, Out *out, int kind, uint64 n);

static bool
unpack_value(EvbusPacked *in, Out *out, JEntry *entry)
{
	char	   *start = out->at;
	int			kind;
	uint64		value;
	uint64		digits;
	bool		good;

	if (!evbus_packed_tag(in, &kind, &value))
		return false;
	switch (kind)
	{
		case EVBUS_PACKED_STRING:
			*entry = JENTRY_ISSTRING;
			good = take_bytes(in, out, value);
			break;
		case EVBUS_PACKED_INTEGER:
			*entry = JENTRY_ISNUMERIC;
			good = unpack_numeric(out, 0, value);
			break;
		case EVBUS_PACKED_DECIMAL:
			*entry = JENTRY_ISNUMERIC;
			good = value <= EVBUS_PACKED_DSCALE_MAX && evbus_packed_varint(in, &digits) && unpack_numeric(out, value, digits);
			break;
		case EVBUS_PACKED_WORD:
			*entry = value == EVBUS_WORD_TRUE ? JENTRY_ISBOOL_TRUE : value == EVBUS_WORD_FALSE ? JENTRY_ISBOOL_FALSE :
				value == EVBUS_WORD_NULL ? JENTRY_ISNULL : JENTRY_ISNUMERIC;
			good = value <= EVBUS_WORD_NUMERIC;
			if (value == EVBUS_WORD_NUMERIC)
				good = evbus_packed_varint(in, &value) && pad(out) && take_bytes(in, out, value) &&
					evbus_numeric_sound(out->at - value, value);
			break;
		case EVBUS_PACKED_ARRAY:
		case EVBUS_PACKED_OBJECT:
			*entry = JENTRY_ISCONTAINER;
			good = pad(out) && unpack_container(in, out, kind, value);
			break;
		default:
			return false;
	}
	*entry |= (uint32) (out->at - start);
	return good;
}

static bool
unpack_container(EvbusPacked *in, Out *out, int kind, uint64 n)
{
	bool		object = kind == EVBUS_PACKED_OBJECT;
	uint64		n_entries = object ? 2 * n : n;
	uint32		header = n | (object ? JB_FOBJECT : JB_FARRAY) | (kind == EVBUS_PACKED_SCALAR ? JB_FSCALAR : 0);
	char	   *entries;
	uint32		total = 0;

	if (++out->depth > EVBUS_PACKED_DEPTH_MAX)
		return false;			/* packing takes none: damaged, which is for the caller to tell */
	if (n > JB_CMASK / 2 || !room_for(out, sizeof(header) + n_entries * sizeof(JEntry)))
		return false;
	memcpy(out->at, &header, sizeof(header));
	entries = out->at + sizeof(header);
	out->at = entries + n_entries * sizeof(JEntry);
	if (object)
	{
		for (uint32 i = 0; i < n; i++)
		{
			uint64		len;

			if (!evbus_packed_varint(in, &len) || len > JENTRY_OFFLENMASK - total)
				return false;
			total += len;
			evbus_put_jentry(entries, i, JENTRY_ISSTRING | (uint32) len, total);
		}
		if (!take_bytes(in, out, total))
			return false;
	}
	for (uint32 i = n_entries - n; i < n_entries; i++)
	{
		JEntry		entry;

		if (!unpack_value(in, out, &entry))
			return false;
		total += JBE_OFFLENFLD(entry);
		evbus_put_jentry(entries, i, entry, total);
	}
	out->depth--;
	return true;
}

/*
 * And back, into a place aligned as an int and of exactly the length that was
 * packed.  False: these are not the bytes that evbus_jsonb_pack() made.
 */
bool
evbus_jsonb_unpack(const char *packed, int packed_len, char *out, Size len)
{
	EvbusPacked in = {.at = (const unsigned char *) packed, .end = (const unsigned char *) packed + packed_len};
	Out			o = {.at = out, .end = out + len};
	int			kind;
	uint64		n;

	return evbus_packed_varint(&in, &n) && n == len && evbus_packed_tag(&in, &kind, &n) &&
		(kind == EVBUS_PACKED_ARRAY || kind == EVBUS_PACKED_OBJECT || (kind == EVBUS_PACKED_SCALAR && n == 1)) &&
		unpack_container(&in, &o, kind, n) && in.at == in.end && o.at == o.end;
}
