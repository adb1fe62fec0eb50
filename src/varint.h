/*-------------------------------------------------------------------------
 * varint.h
 *	  Integers of variable length, seven bits a byte, as in Protocol Buffers;
 *	  and runs of ids, each run a signed step and a length.
 *-------------------------------------------------------------------------
 */
#ifndef EVBUS_VARINT_H
#define EVBUS_VARINT_H

#include "evbus.h"

#include "lib/stringinfo.h"

#define EVBUS_VARINT_MAX	10	/* bytes of one */

/* Into memory; returns what is behind it. */
static inline char *
evbus_write_varint(char *out, uint64 value)
{
	while (value >= 0x80)
	{
		*out++ = (char) (value | 0x80);
		value >>= 7;
	}
	*out++ = (char) value;
	return out;
}

static inline void
evbus_put_varint(StringInfo buf, uint64 value)
{
	char		out[EVBUS_VARINT_MAX];

	appendBinaryStringInfo(buf, out, evbus_write_varint(out, value) - out);
}

static inline uint64
evbus_zigzag(int64 value)
{
	return ((uint64) value << 1) ^ (uint64) (value >> 63);
}

static inline void
evbus_put_signed(StringInfo buf, int64 value)
{
	evbus_put_varint(buf, evbus_zigzag(value));
}

static inline int64
evbus_unzigzag(uint64 value)
{
	return (int64) (value >> 1) ^ -(int64) (value & 1);
}

/* Reads from *at, which moves; false: it ends within the number. */
static inline bool
evbus_take_varint(const unsigned char **at, const unsigned char *end, uint64 *value)
{
	*value = 0;
	for (int shift = 0; *at < end && shift < 64; shift += 7)
	{
		unsigned char byte = *(*at)++;

		*value |= (uint64) (byte & 0x7f) << shift;
		if (byte < 0x80)
			return true;
	}
	return false;
}

static inline bool
evbus_take_signed(const unsigned char **at, const unsigned char *end, int64 *value)
{
	uint64		zigzag;
	bool		whole = evbus_take_varint(at, end, &zigzag);

	*value = evbus_unzigzag(zigzag);
	return whole;
}

/* The same for what evbus wrote itself; errors XX001. */
static inline uint64
evbus_get_varint(const unsigned char **at, const unsigned char *end)
{
	uint64		value;

	if (!evbus_take_varint(at, end, &value))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("a row of evbus ends within a number")));
	return value;
}

static inline int64
evbus_get_signed(const unsigned char **at, const unsigned char *end)
{
	return evbus_unzigzag(evbus_get_varint(at, end));
}

#endif							/* EVBUS_VARINT_H */
