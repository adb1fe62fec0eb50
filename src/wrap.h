/*-------------------------------------------------------------------------
 * wrap.h
 *	  Bytes in and out of a ring: offsets count all bytes ever put into it.
 *-------------------------------------------------------------------------
 */
#ifndef EVBUS_WRAP_H
#define EVBUS_WRAP_H

#include "postgres.h"

static inline void
evbus_wrap_in(char *ring, uint64 size, uint64 offset, const char *from, Size len)
{
	Size		at = offset % size;
	Size		first = Min(len, size - at);

	memcpy(ring + at, from, first);
	if (first < len)
		memcpy(ring, from + first, len - first);
}

static inline void
evbus_wrap_out(const char *ring, uint64 size, uint64 offset, char *to, Size len)
{
	Size		at = offset % size;
	Size		first = Min(len, size - at);

	memcpy(to, ring + at, first);
	if (first < len)
		memcpy(to + first, ring, len - first);
}

#endif							/* EVBUS_WRAP_H */
