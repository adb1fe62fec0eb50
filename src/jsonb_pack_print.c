/*-------------------------------------------------------------------------
 * jsonb_pack_print.c
 *	  Packed jsonb as text, without unpacking it: byte for byte what jsonb_out()
 *	  prints of the jsonb.
 *
 * The packed form has everything in the order of the text, but for an object's keys,
 * which stand before its values: so there two places are read side by side.
 * Numbers are decimal already.  It trusts none of what it reads.
 *-------------------------------------------------------------------------
 */
#include "jsonb_pack.h"

#include "jsonb_packed.h"
#include "jsonb_print.h"
#include "jsonbcheck.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#define DIGITS_MAX		(1 + 17 + 1 + EVBUS_PACKED_DSCALE_MAX + 1)

/* What printing has to say beside the text. */
typedef struct Print
{
	StringInfo	out;
	int			max;
	int			depth;			/* of containers */
	bool		broken;			/* not what evbus_jsonb_pack() made */
} Print;

static bool
broken(Print *p)
{
	p->broken = true;
	return false;
}

static bool
print_string(Print *p, EvbusPacked *in, uint64 len)
{
	const char *s = (const char *) in->at;

	if (len > (uint64) (in->end - in->at))
		return broken(p);
	in->at += len;
	return evbus_json_print_string(p->out, s, (int) len, p->max);
}

/* digits * 10 ^ -dscale, with so many places after the point. */
static bool
print_number(Print *p, uint64 packed, int dscale)
{
	int64		digits = evbus_unzigzag(packed);
	uint64		rest = digits < 0 ? -(uint64) digits : (uint64) digits;
	char	   *to;
	char		text[DIGITS_MAX];
	int			at = DIGITS_MAX;

	if (digits > EVBUS_PACKED_DIGITS_MAX || digits < -EVBUS_PACKED_DIGITS_MAX)
		return broken(p);
	to = evbus_print_room(p->out, DIGITS_MAX + EVBUS_PRINT_SPARE, p->max);
	if (to == NULL)
		return false;
	if (dscale == 0)
	{
		p->out->len += pg_lltoa(digits, to);
		return true;
	}
	for (int places = 0; places <= dscale || rest > 0; places++)
	{
		if (places == dscale)
			text[--at] = '.';
		text[--at] = '0' + rest % 10;
		rest /= 10;
	}
	if (digits < 0)
		text[--at] = '-';
	memcpy(to, text + at, DIGITS_MAX - at);
	p->out->len += DIGITS_MAX - at;
	return true;
}

static bool
print_word(Print *p, EvbusPacked *in, uint64 word)
{
	uint64		len;
	char	   *numeric;
	bool		fits;

	switch (word)
	{
		case EVBUS_WORD_FALSE:
			return evbus_print_word(p->out, "false", 5, p->max);
		case EVBUS_WORD_TRUE:
			return evbus_print_word(p->out, "true", 4, p->max);
		case EVBUS_WORD_NULL:
			return evbus_print_word(p->out, "null", 4, p->max);
		case EVBUS_WORD_NUMERIC:
			break;
		default:
			return broken(p);
	}
	if (!evbus_packed_varint(in, &len) || len > (uint64) (in->end - in->at))
		return broken(p);
	numeric = palloc(len);		/* a numeric wants alignment that packed bytes do not have */
	memcpy(numeric, in->at, len);
	in->at += len;
	if (!evbus_numeric_sound(numeric, len))
		return broken(p);
	fits = evbus_json_print_numeric(p->out, numeric, p->max);
	pfree(numeric);
	return fits;
}

static bool print_container(Print *p, EvbusPacked *in, int kind, uint64 n);

static bool
print_value(Print *p, EvbusPacked *in)
{
	int			kind;
	uint64		value;
	uint64		digits;

	if (!evbus_packed_tag(in, &kind, &value))
		return broken(p);
	switch (kind)
	{
		case EVBUS_PACKED_STRING:
			return print_string(p, in, value);
		case EVBUS_PACKED_INTEGER:
			return print_number(p, value, 0);
		case EVBUS_PACKED_DECIMAL:
			if (value > EVBUS_PACKED_DSCALE_MAX || !evbus_packed_varint(in, &digits))
				return broken(p);
			return print_number(p, digits, value);
		case EVBUS_PACKED_WORD:
			return print_word(p, in, value);
		case EVBUS_PACKED_ARRAY:
		case EVBUS_PACKED_OBJECT:
			return print_container(p, in, kind, value);
		default:
			return broken(p);
	}
}

static bool
print_array(Print *p, EvbusPacked *in, uint64 n)
{
	for (uint64 i = 0; i < n; i++)
	{
		if (i > 0)
			evbus_print_between(p->out, ',');
		if (!print_value(p, in))
			return false;
	}
	return true;
}

/* The lengths of all keys, then the keys, then the values. */
static bool
print_object(Print *p, EvbusPacked *in, uint64 n)
{
	EvbusPacked lengths = *in;
	EvbusPacked keys;
	uint64		total = 0;
	uint64		len;

	for (uint64 i = 0; i < n; i++)
	{
		if (!evbus_packed_varint(in, &len) || len > (uint64) (in->end - in->at) - total)
			return broken(p);
		total += len;
	}
	keys = *in;
	if (total > (uint64) (in->end - in->at))
		return broken(p);
	in->at += total;
	for (uint64 i = 0; i < n; i++)
	{
		if (i > 0)
			evbus_print_between(p->out, ',');
		(void) evbus_packed_varint(&lengths, &len);
		if (!print_string(p, &keys, len))
			return false;
		evbus_print_between(p->out, ':');
		if (!print_value(p, in))
			return false;
	}
	return true;
}

static bool
print_container(Print *p, EvbusPacked *in, int kind, uint64 n)
{
	bool		object = kind == EVBUS_PACKED_OBJECT;
	bool		fits;

	CHECK_FOR_INTERRUPTS();
	if (++p->depth > EVBUS_PACKED_DEPTH_MAX)
		return broken(p);
	fits = evbus_print_word(p->out, object ? "{" : "[", 1, p->max) &&
		(object ? print_object(p, in, n) : print_array(p, in, n)) &&
		evbus_print_word(p->out, object ? "}" : "]", 1, p->max);
	p->depth--;
	return fits;
}

/*
 * Append what evbus_jsonb_pack() made.  False: out would have more than max bytes
 * then, max < MaxAllocSize; or, *sound is false, these are not such bytes.  What out has
 * behind its former end is nothing then.
 */
bool
evbus_jsonb_print_packed(StringInfo out, const char *packed, int packed_len, int max, bool *sound)
{
	EvbusPacked in = {.at = (const unsigned char *) packed, .end = (const unsigned char *) packed + packed_len};
	Print		p = {.out = out, .max = max};
	int			kind;
	uint64		n;
	bool		fits;

	if (!evbus_packed_varint(&in, &n) || !evbus_packed_tag(&in, &kind, &n))
		fits = broken(&p);
	else if (kind == EVBUS_PACKED_SCALAR && n == 1)
		fits = print_value(&p, &in);
	else if (kind == EVBUS_PACKED_ARRAY || kind == EVBUS_PACKED_OBJECT)
		fits = print_container(&p, &in, kind, n);
	else
		fits = broken(&p);
	*sound = !p.broken && (!fits || in.at == in.end);
	return fits && *sound && out->len <= max;
}
