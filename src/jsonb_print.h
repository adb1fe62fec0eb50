/* jsonb_print.h: jsonb as text, for those who print many */
#ifndef EVBUS_JSONB_PRINT_H
#define EVBUS_JSONB_PRINT_H

#include "compat.h"

#include "lib/stringinfo.h"
#include "utils/jsonb.h"

extern bool evbus_jsonb_print(StringInfo out, const JsonbContainer *root, int max);
extern bool evbus_json_print_string(StringInfo out, const char *s, int len, int max);
extern bool evbus_json_print_numeric(StringInfo out, const char *numeric, int max);

/* Whatever prints a value leaves room for what stands between it and the next. */
#define EVBUS_PRINT_SPARE	8

/*
 * Room for n more bytes (n < 512 MB), and where they go; whoever fills it raises
 * out->len.  NULL: out would grow beyond max bytes.  What there is room for
 * already may go above it, so in the end out->len is to be compared.
 */
static inline char *
evbus_print_room(StringInfo out, int n, int max)
{
	if (unlikely(out->len + n >= out->maxlen))
	{
		if (n > max - out->len)
			return NULL;
		enlargeStringInfo(out, n);
	}
	return out->data + out->len;
}

/* A literal, at a place where there is room for it. */
#define EVBUS_PRINT(to, literal) \
	(memcpy((to), (literal), sizeof(literal) - 1), (to) += sizeof(literal) - 1)

/* A few letters, all of them plain; false: too long. */
static inline bool
evbus_print_word(StringInfo out, const char *word, int len, int max)
{
	char	   *to = evbus_print_room(out, len + EVBUS_PRINT_SPARE, max);

	if (to == NULL)
		return false;
	memcpy(to, word, len);
	out->len += len;
	return true;
}

/* What stands between two values: there is room. */
static inline void
evbus_print_between(StringInfo out, char sign)
{
	out->data[out->len] = sign;
	out->data[out->len + 1] = ' ';
	out->len += 2;
}

#endif
