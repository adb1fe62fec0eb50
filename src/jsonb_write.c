/*-------------------------------------------------------------------------
 * jsonb_write.c
 *	  Tokens of a valid JSON text, written as the bytes that jsonb_in() makes of it.
 *
 * Each byte is written once, where it stays: children come behind the entries that
 * tell their lengths, objects in the order of their keys.  A bound for the whole is
 * known from the tokens, so nothing asks for room on the way.
 *
 * The layout is told in utils/jsonb.h, that of numbers in jsonb_layout.h.
 *-------------------------------------------------------------------------
 */
#include "jsonb_write.h"

#include "jsonb_layout.h"

#define FEW_PAIRS		24		/* of an object: sorted by insertion */

/* A pair of an object that is being written. */
typedef struct Pair
{
	const char *key;
	uint32		len;
	uint32		value;			/* its token */
} Pair;

/* A writer, in the current memory context. */
void
evbus_jsonb_writer(EvbusJsonbWriter *w)
{
	initStringInfo(&w->out);
	initStringInfo(&w->pairs);
}
/* Zeros up to the next multiple of four; the buffer itself is aligned. */
static inline char *
pad(char *out)
{
	while ((uintptr_t) out % sizeof(int32) != 0)
		*out++ = '\0';
	return out;
}

static inline char *
write_text(char *out, const char *text, uint32 len)
{
	memcpy(out, text, len);
	return out + len;
}

/* A number as numeric_in() makes it: groups of four digits around the point, without zero groups at either end. */
static char *
write_number(const EvbusJsonToken *token, char *out)
{
	const char *at = token->start;
	const char *end = at + token->len;
	bool		negative = *at == '-';
	const char *point;
	int			whole;
	int			fraction;
	int			weight;
	int16		groups[(EVBUS_JSON_WHOLE_MAX + EVBUS_JSON_FRACTION_MAX) / EVBUS_NUMERIC_BASE_DIGITS + 2];
	int			first = 0;
	int			n = 0;
	uint16		header;
	char	   *number = out;

	at += negative;
	point = memchr(at, '.', end - at);
	whole = (point ? point : end) - at;
	fraction = point ? end - point - 1 : 0;
	weight = (whole - 1) / EVBUS_NUMERIC_BASE_DIGITS;

	/* Each digit lies so many places above the last one of its group; the last group is filled up. */
	groups[0] = 0;
	for (int i = whole - 1; at < end; at++)
	{
		if (*at == '.')
			continue;
		groups[n] = groups[n] * 10 + (*at - '0');
		if (i-- % EVBUS_NUMERIC_BASE_DIGITS == 0)
			groups[++n] = 0;
	}
	if (fraction % EVBUS_NUMERIC_BASE_DIGITS != 0)
	{
		for (int i = fraction; i % EVBUS_NUMERIC_BASE_DIGITS != 0; i++)
			groups[n] *= 10;
		n++;
	}
	while (first < n && groups[first] == 0)
	{
		first++;
		weight--;
	}
	while (n > first && groups[n - 1] == 0)
		n--;
	if (n == first)
	{
		weight = 0;
		negative = false;
	}

	header = EVBUS_NUMERIC_WORD(negative, fraction, weight);
	out += VARHDRSZ;
	memcpy(out, &header, sizeof(header));
	out += sizeof(header);
	for (int i = first; i < n; i++)
	{
		memcpy(out, &groups[i], sizeof(int16));
		out += sizeof(int16);
	}
	SET_VARSIZE(number, out - number);
	return out;
}

/* Keys in the order of jsonb: the shorter one first, else by their bytes; of equal ones the later. */
static inline int
compare_keys(const Pair *a, const Pair *b)
{
	if (a->len != b->len)
		return a->len < b->len ? -1 : 1;
	return memcmp(a->key, b->key, a->len);
}

static int
compare_pairs(const void *a, const void *b)
{
	int			order = compare_keys(a, b);

	if (order == 0)
		order = ((const Pair *) a)->value > ((const Pair *) b)->value ? -1 : 1;
	return order;
}

/* Sort, and keep the last of those with one key; returns how many are left. */
static uint32
sort_pairs(Pair *pairs, uint32 n)
{
	uint32		kept = 0;

	if (n > FEW_PAIRS)
		qsort(pairs, n, sizeof(Pair), compare_pairs);
	else
		for (uint32 i = 1; i < n; i++)
		{
			Pair		pair = pairs[i];
			uint32		to = i;

			while (to > 0 && compare_pairs(&pair, &pairs[to - 1]) < 0)
			{
				pairs[to] = pairs[to - 1];
				to--;
			}
			pairs[to] = pair;
		}
	for (uint32 i = 0; i < n; i++)
		if (kept == 0 || compare_keys(&pairs[i], &pairs[kept - 1]) != 0)
			pairs[kept++] = pairs[i];
	return kept;
}

static char *write_value(EvbusJsonbWriter *w, uint32 at, char *out, JEntry *entry);

static char *
write_array(EvbusJsonbWriter *w, uint32 at, uint32 n, uint32 flags, char *out)
{
	uint32		header = n | flags;
	char	   *entries = out + sizeof(header);
	uint32		total = 0;

	memcpy(out, &header, sizeof(header));
	out = entries + n * sizeof(JEntry);
	for (uint32 i = 0; i < n; i++)
	{
		JEntry		entry;

		out = write_value(w, at, out, &entry);
		total += JBE_OFFLENFLD(entry);
		evbus_put_jentry(entries, i, entry, total);
		at = w->tokens[at].next;
	}
	return out;
}

static char *
write_object(EvbusJsonbWriter *w, uint32 at, uint32 n, char *out)
{
	Pair	   *pairs = (Pair *) (w->pairs.data + w->pairs.len);
	int			mark = w->pairs.len;
	uint32		header;
	char	   *entries;
	uint32		total = 0;

	for (uint32 i = 0; i < n; i++)
	{
		pairs[i].key = w->tokens[at].start;
		pairs[i].len = w->tokens[at].len;
		pairs[i].value = at + 1;
		at = w->tokens[at + 1].next;
	}
	n = sort_pairs(pairs, n);
	w->pairs.len += n * sizeof(Pair);	/* room there is, see evbus_jsonb_write() */

	header = n | JB_FOBJECT;
	memcpy(out, &header, sizeof(header));
	entries = out + sizeof(header);
	out = entries + 2 * n * sizeof(JEntry);
	for (uint32 i = 0; i < n; i++)
	{
		out = write_text(out, pairs[i].key, pairs[i].len);
		total += pairs[i].len;
		evbus_put_jentry(entries, i, JENTRY_ISSTRING | pairs[i].len, total);
	}
	for (uint32 i = 0; i < n; i++)
	{
		JEntry		entry;

		out = write_value(w, pairs[i].value, out, &entry);
		total += JBE_OFFLENFLD(entry);
		evbus_put_jentry(entries, n + i, entry, total);
	}
	w->pairs.len = mark;
	return out;
}

/* A token with all that is in it, and its entry, whose length counts the padding before it. */
static char *
write_value(EvbusJsonbWriter *w, uint32 at, char *out, JEntry *entry)
{
	const EvbusJsonToken *token = &w->tokens[at];
	char	   *start = out;

	switch (token->type)
	{
		case JENTRY_ISSTRING:
			out = write_text(out, token->start, token->len);
			break;
		case JENTRY_ISNUMERIC:
			out = write_number(token, pad(out));
			break;
		case EVBUS_JSON_ARRAY:
			out = write_array(w, at + 1, token->len, JB_FARRAY, pad(out));
			break;
		case EVBUS_JSON_OBJECT:
			out = write_object(w, at + 1, token->len, pad(out));
			break;
		default:				/* a word: all is in the type */
			break;
	}
	*entry = (token->type & JENTRY_TYPEMASK) | (uint32) (out - start);
	return out;
}

/*
 * The jsonb of the n tokens of a text of so many bytes.  Good until the next call.
 */
Jsonb *
evbus_jsonb_write(EvbusJsonbWriter *w, const EvbusJsonToken *tokens, uint32 n, Size text_len)
{
	Jsonb	   *json;
	char	   *out;
	JEntry		entry;

	/* Of a token: an entry, padding, and the fixed part of a container or number; text grows by no more than that. */
	resetStringInfo(&w->out);
	enlargeStringInfo(&w->out, VARHDRSZ + 8 + text_len + n * (sizeof(JEntry) + 3 + 12));
	resetStringInfo(&w->pairs);
	enlargeStringInfo(&w->pairs, (n / 2) * sizeof(Pair));
	w->tokens = tokens;

	json = (Jsonb *) w->out.data;
	out = VARDATA(json);
	if ((tokens[0].type & JENTRY_TYPEMASK) == JENTRY_ISCONTAINER)
		out = write_value(w, 0, out, &entry);
	else
		out = write_array(w, 0, 1, JB_FARRAY | JB_FSCALAR, out);
	SET_VARSIZE(json, out - w->out.data);
	return json;
}
