/*-------------------------------------------------------------------------
 * jsonb_packed.h
 *	  The packed form of jsonb, as jsonb_pack.c writes it and jsonb_pack_print.c prints it.
 *
 * First, as a varint, how many bytes the jsonb has.  Then a value: one tag, of which
 * three bits tell what it is, five its length, number of children or a small number;
 * 31 there means that it follows as a varint.
 *
 *	string		length; the bytes
 *	integer		itself, as a zigzag
 *	decimal		how many digits stand after the point; then all of them as a zigzag
 *	word		false, true, null; or a numeric that is neither of the above, as it is
 *	array		how many; the values.  Scalar: the same with one, as jsonb has it
 *	object		how many; the lengths of all keys, the keys, the values
 *-------------------------------------------------------------------------
 */
#ifndef EVBUS_JSONB_PACKED_H
#define EVBUS_JSONB_PACKED_H

#include "varint.h"

enum
{
	EVBUS_PACKED_STRING, EVBUS_PACKED_INTEGER, EVBUS_PACKED_DECIMAL, EVBUS_PACKED_WORD, EVBUS_PACKED_ARRAY,
	EVBUS_PACKED_OBJECT, EVBUS_PACKED_SCALAR
};

enum
{
	EVBUS_WORD_FALSE, EVBUS_WORD_TRUE, EVBUS_WORD_NULL, EVBUS_WORD_NUMERIC
};

#define EVBUS_PACKED_MORE		31	/* in the five bits: a varint follows */
#define EVBUS_PACKED_TAG_MAX	(1 + EVBUS_VARINT_MAX)	/* bytes of a tag with its varint */
#define EVBUS_PACKED_DEPTH_MAX	200	/* deeper ones stay as they are: readers may have less stack than who wrote them */
#define EVBUS_PACKED_DSCALE_MAX	30
#define EVBUS_PACKED_DIGITS_MAX	INT64CONST(10000000000000000)	/* of an integer or decimal, either way */

/* Packed bytes that are read; none of them is trusted. */
typedef struct EvbusPacked
{
	const unsigned char *at;
	const unsigned char *end;
} EvbusPacked;

static inline bool
evbus_packed_varint(EvbusPacked *in, uint64 *value)
{
	return evbus_take_varint(&in->at, in->end, value);
}

static inline bool
evbus_packed_tag(EvbusPacked *in, int *kind, uint64 *value)
{
	unsigned char tag;

	if (in->at >= in->end)
		return false;
	tag = *in->at++;
	*kind = tag >> 5;
	*value = tag & EVBUS_PACKED_MORE;
	return likely(*value < EVBUS_PACKED_MORE) || evbus_packed_varint(in, value);
}

#endif							/* EVBUS_JSONB_PACKED_H */
