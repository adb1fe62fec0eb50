/*
 * onewriter.h: a place in shared memory that one process writes, and others copy, without a lock
 *
 * The count of its changes is odd while it is being written; who copies looks before and after, as
 * the server does with PgBackendStatus.  Nothing between begin and end may fail.
 */
#ifndef EVBUS_ONEWRITER_H
#define EVBUS_ONEWRITER_H

#include "evbus.h"

#include "miscadmin.h"

static inline void
evbus_change_begin(pg_atomic_uint32 *changes)
{
	pg_atomic_write_u32(changes, pg_atomic_read_u32(changes) + 1);
	pg_write_barrier();
}

static inline void
evbus_change_end(pg_atomic_uint32 *changes)
{
	pg_write_barrier();
	pg_atomic_write_u32(changes, pg_atomic_read_u32(changes) + 1);
}

/* Copy the place, of which `changes` is a part, as it was at one moment. */
static inline void
evbus_change_copy(void *copy, const void *place, Size size, pg_atomic_uint32 *changes)
{
	for (;;)
	{
		uint32		before = pg_atomic_read_u32(changes);

		pg_read_barrier();
		memcpy(copy, place, size);
		pg_read_barrier();
		if (before % 2 == 0 && pg_atomic_read_u32(changes) == before)
			return;
		CHECK_FOR_INTERRUPTS();
	}
}

#endif
