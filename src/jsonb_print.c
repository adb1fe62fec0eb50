/*-------------------------------------------------------------------------
 * jsonb_print.c
 *	  jsonb as text, byte for byte what jsonb_out() prints.
 *
 * jsonb_out() makes an iterator for each container, a value for each element and
 * a palloc for each number, and looks at strings byte by byte: 14,000 instructions
 * for 250 bytes.  Here the binary form, which utils/jsonb.h describes, is walked as
 * it lies there: its entries tell where each child begins, strings are looked at
 * and copied eight bytes at a time, and numbers are printed from their digits.
 * Knows nothing of events.
 *-------------------------------------------------------------------------
 */
#include "jsonb_print.h"

#include "jsonb_layout.h"
#include "miscadmin.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

#define DEPTH_MAX	200		/* from here on without recursion, as jsonb_out() does it */

/* --------------------------------------------------------------------- strings */

/* What a byte is escaped as: 0 not at all, u by its number, else a backslash and this. */
static const char escapes[256] = {
	'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'b', 't', 'n', 'u', 'f', 'r', 'u', 'u',
	'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u',
	['"'] = '"',['\\'] = '\\'
};

/*
 * Copy a string in which nothing needs an escape, as most are; false: something does.
 * By eight bytes, the last of them once more where the length is no multiple.
 */
static inline bool
copy_plain(char *to, const char *s, int len)
{
	uint64		word;

	if (len >= 8)
	{
		for (int at = 0; at < len - 8; at += 8)
		{
			memcpy(&word, s + at, 8);
			if (evbus_json_special(word))
				return false;
			memcpy(to + at, &word, 8);
		}
		memcpy(&word, s + len - 8, 8);
		memcpy(to + len - 8, &word, 8);
		return !evbus_json_special(word);
	}
	if (len >= 4)
	{
		uint32		first;
		uint32		last;

		memcpy(&first, s, 4);
		memcpy(&last, s + len - 4, 4);
		memcpy(to, &first, 4);
		memcpy(to + len - 4, &last, 4);
		return !evbus_json_special((uint64) first << 32 | last);
	}
	for (int at = 0; at < len; at++)
	{
		to[at] = s[at];
		if (escapes[(unsigned char) s[at]] != 0)
			return false;
	}
	return true;
}

/* The same of any string; NULL: too long. */
static char *
copy_escaped(StringInfo out, char *to, const char *s, int len, int max)
{
	const char *end = s + len;

	while (s < end)
	{
		const char *run = s;
		unsigned char c;

		while (end - s >= 8)
		{
			uint64		word;

			memcpy(&word, s, 8);
			if (evbus_json_special(word))
				break;
			s += 8;
		}
		while (s < end && escapes[(unsigned char) *s] == 0)
			s++;
		memcpy(to, run, s - run);
		to += s - run;
		if (s == end)
			break;

		c = *s++;
		out->len = to - out->data;
		to = evbus_print_room(out, 6 + (end - s) + 1 + EVBUS_PRINT_SPARE, max);
		if (to == NULL)
			return NULL;
		*to++ = '\\';
		*to++ = escapes[c];
		if (escapes[c] == 'u')
		{
			EVBUS_PRINT(to, "00");
			*to++ = '0' + (c >> 4);
			*to++ = "0123456789abcdef"[c & 15];
		}
	}
	return to;
}

/* A string in quotes; false as below. */
bool
evbus_json_print_string(StringInfo out, const char *s, int len, int max)
{
	char	   *to = evbus_print_room(out, 1 + len + 1 + EVBUS_PRINT_SPARE, max);

	if (to == NULL)
		return false;
	*to++ = '"';
	if (likely(copy_plain(to, s, len)))
		to += len;
	else if ((to = copy_escaped(out, to, s, len, max)) == NULL)
		return false;
	*to++ = '"';
	out->len = to - out->data;
	return true;
}

/* --------------------------------------------------------------------- numbers */

#define SHORT_NUMERIC_MAX	(1 + 64 * 4 + 1 + 64 + 4)

static inline char *
four_digits(char *to, unsigned int digit)
{
	to[0] = '0' + digit / 1000;
	to[1] = '0' + digit / 100 % 10;
	to[2] = '0' + digit / 10 % 10;
	to[3] = '0' + digit % 10;
	return to + 4;
}

/* A long one, as SQL prints it. */
static bool
print_long_numeric(StringInfo out, const char *numeric, int max)
{
	char	   *text = DatumGetCString(DirectFunctionCall1(numeric_out, PointerGetDatum(numeric)));
	int			len = strlen(text);
	char	   *to = evbus_print_room(out, len + EVBUS_PRINT_SPARE, max);

	if (to != NULL)
	{
		memcpy(to, text, len);
		out->len += len;
	}
	pfree(text);
	return to != NULL;
}

/* A numeric, aligned as an int. */
bool
evbus_json_print_numeric(StringInfo out, const char *numeric, int max)
{
	const uint16 *words = (const uint16 *) VARDATA(numeric);
	const uint16 *digits = words + 1;
	char	   *to;
	char	   *point;
	int			n;
	int			weight;
	int			dscale;
	int			at;

	if (!VARATT_IS_4B_U(numeric) || (words[0] & EVBUS_NUMERIC_FORM) != EVBUS_NUMERIC_SHORT)
		return print_long_numeric(out, numeric, max);
	to = evbus_print_room(out, SHORT_NUMERIC_MAX + EVBUS_PRINT_SPARE, max);
	if (to == NULL)
		return false;
	n = (VARSIZE(numeric) - VARHDRSZ) / sizeof(uint16) - 1;
	weight = EVBUS_NUMERIC_WEIGHT(words[0]);
	dscale = EVBUS_NUMERIC_DSCALE(words[0]);
	if (words[0] & EVBUS_NUMERIC_NEGATIVE)
		*to++ = '-';

	/* Before the point: the first digit without zeros in front, those that are not stored are 0. */
	if (weight < 0)
		*to++ = '0';
	for (at = 0; at <= weight; at++)
	{
		unsigned int digit = at < n ? digits[at] : 0;

		if (at > 0 || digit >= 1000)
		{
			to = four_digits(to, digit);
			continue;
		}
		if (digit >= 100)
			*to++ = '0' + digit / 100;
		if (digit >= 10)
			*to++ = '0' + digit / 10 % 10;
		*to++ = '0' + digit % 10;
	}

	/* After it: whole digits, then cut to as many places as are shown. */
	if (dscale > 0)
	{
		*to++ = '.';
		point = to;
		for (at = weight + 1; to < point + dscale; at++)
			to = four_digits(to, at >= 0 && at < n ? digits[at] : 0);
		to = point + dscale;
	}
	out->len = to - out->data;
	return true;
}

/* ------------------------------------------------------------------ containers */

#define WORD(literal)	evbus_print_word(out, literal, sizeof(literal) - 1, max)

/* What is nested so deeply that it might take more stack than there is. */
static bool
print_deep(StringInfo out, const JsonbContainer *container, uint32 len, int max)
{
	(void) JsonbToCString(out, (JsonbContainer *) container, len);
	return out->len + EVBUS_PRINT_SPARE <= max && evbus_print_room(out, EVBUS_PRINT_SPARE, max) != NULL;
}

static bool
print_container(StringInfo out, const JsonbContainer *container, int depth, int max)
{
	bool		object = JsonContainerIsObject(container);
	bool		scalar = JsonContainerIsScalar(container);
	uint32		count = JsonContainerSize(container);
	const JEntry *entries = container->children;
	const char *data = (const char *) (entries + (object ? count * 2 : count));
	uint32		at = object ? getJsonbOffset(container, count) : 0; /* values lie behind all keys */
	uint32		key_at = 0;

	CHECK_FOR_INTERRUPTS();
	if (!scalar && !evbus_print_word(out, object ? "{" : "[", 1, max))
		return false;
	for (uint32 i = 0; i < count; i++)
	{
		JEntry		entry = entries[object ? count + i : i];
		uint32		end = evbus_jentry_end(entry, at);
		bool		good;

		if (i > 0)
			evbus_print_between(out, ',');
		if (object)
		{
			uint32		key_end = evbus_jentry_end(entries[i], key_at);

			if (!evbus_json_print_string(out, data + key_at, key_end - key_at, max))
				return false;
			evbus_print_between(out, ':');
			key_at = key_end;
		}
		if (JBE_ISSTRING(entry))
			good = evbus_json_print_string(out, data + at, end - at, max);
		else if (JBE_ISNUMERIC(entry))
			good = evbus_json_print_numeric(out, data + INTALIGN(at), max);
		else if (JBE_ISCONTAINER(entry))
			good = depth < DEPTH_MAX ? print_container(out, (const JsonbContainer *) (data + INTALIGN(at)), depth + 1, max) :
				print_deep(out, (const JsonbContainer *) (data + INTALIGN(at)), end - at, max);
		else if (JBE_ISBOOL_TRUE(entry))
			good = WORD("true");
		else if (JBE_ISBOOL_FALSE(entry))
			good = WORD("false");
		else
			good = WORD("null");
		if (!good)
			return false;
		at = end;
	}
	return scalar || evbus_print_word(out, object ? "}" : "]", 1, max);
}

/*
 * Append a jsonb, which is aligned as an int.  False: out would have more than max
 * bytes then, max < MaxAllocSize; what it has behind its former end is nothing.
 */
bool
evbus_jsonb_print(StringInfo out, const JsonbContainer *root, int max)
{
	return print_container(out, root, 1, max) && out->len <= max;
}
