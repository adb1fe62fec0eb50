/*
 * jsonb_layout.h: what the jsonb_*.c share: of PostgreSQL's jsonb and numeric what lies in no header
 * (utils/adt/jsonb_util.c, numeric.c), and which characters JSON escapes
 */
#ifndef EVBUS_JSONB_LAYOUT_H
#define EVBUS_JSONB_LAYOUT_H

#include "evbus.h"
#include "utils/jsonb.h"

/*
 * The short form of a numeric: a word with these, then digits to the base of 10,000,
 * the first of them worth 10,000 to the weight, without zeros at either end.
 */
#define EVBUS_NUMERIC_FORM		0xC000
#define EVBUS_NUMERIC_SHORT		0x8000
#define EVBUS_NUMERIC_NEGATIVE	0x2000
#define EVBUS_NUMERIC_DSCALE(h)	(((h) & 0x1F80) >> 7)	/* decimals that are shown */
#define EVBUS_NUMERIC_WEIGHT(h)	(((h) & 0x3F) - (((h) & 0x40) ? 64 : 0))
#define EVBUS_NUMERIC_WORD(negative, dscale, weight) \
	(EVBUS_NUMERIC_SHORT | ((negative) ? EVBUS_NUMERIC_NEGATIVE : 0) | (dscale) << 7 | ((weight) & 0x7F))
#define EVBUS_NUMERIC_BASE_DIGITS	4	/* decimal digits in one of those */

/*
 * Is one of eight bytes a quote, a backslash or a control character, so that a JSON
 * string cannot hold it as it is?  A byte from which more is taken than it has
 * borrows, and so gets a high bit that it had not.
 */
static inline bool
evbus_json_special(uint64 bytes)
{
	const uint64 ones = UINT64CONST(0x0101010101010101);
	uint64		quote = bytes ^ (ones * '"');
	uint64		backslash = bytes ^ (ones * '\\');

	return ((((bytes - ones * ' ') & ~bytes) |
			 ((quote - ones) & ~quote) |
			 ((backslash - ones) & ~backslash)) & (ones << 7)) != 0;
}

/* Entry i of a container, whose children up to it have so many bytes together: some entries tell that instead of the length. */
static inline void
evbus_put_jentry(char *entries, uint32 i, JEntry entry, uint32 total)
{
	if (i % JB_OFFSET_STRIDE == 0)
		entry = (entry & JENTRY_TYPEMASK) | total | JENTRY_HAS_OFF;
	memcpy(entries + i * sizeof(JEntry), &entry, sizeof(entry));
}

/* Where the bytes of an entry end that begin at start. */
static inline uint32
evbus_jentry_end(JEntry entry, uint32 start)
{
	JBE_ADVANCE_OFFSET(start, entry);
	return start;
}

#endif
