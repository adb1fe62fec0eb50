/*-------------------------------------------------------------------------
 * high.h
 *	  How much of each area of shared memory was in use at most.
 *
 * A mark is raised where its count is, by whoever raises that: a compare, and seldom a
 * store.  Where the count is of what stays for long, it is raised by who looks, the view
 * evbus.stat_memory, and the maintainer once a second; they raise the others, too, by what
 * they saw a moment ago, hence the loop.  evbus_stat_memory_reset() stores what is in use
 * now: a mark that is raised at that moment may be lost, until the next.
 *-------------------------------------------------------------------------
 */
#ifndef EVBUS_HIGH_H
#define EVBUS_HIGH_H

#include "port/atomics.h"

/* Of these each database has a mark, but for the last two, which are the server's. */
typedef enum EvbusArea
{
	EVBUS_AREA_RING = 0,		/* bytes of the commit ring; by the sequencer */
	EVBUS_AREA_LEASES,			/* EvbusDb.lease_lock */
	EVBUS_AREA_CLIENT_LEASES,	/* what clients may use of them; its mark is that of all */
	EVBUS_AREA_BUSES,			/* by who makes one, under the lock of the table; of these the rolled back, too */
	EVBUS_AREA_SUBSCRIPTIONS,	/* the same; and replays */
	EVBUS_AREA_VOLATILE_BUSES,	/* the same */
	EVBUS_AREA_ROLE_RATES,		/* by who looks, as the maintainer does once a second */
	EVBUS_AREA_ERRANDS,			/* EvbusShared.lock */
	EVBUS_AREA_NOTES,			/* by who looks */
	EVBUS_AREA_WORKERS,			/* the same */
	EVBUS_AREA_DATABASES,		/* the same */
	EVBUS_AREAS
} EvbusArea;

static inline void
evbus_high_raise(pg_atomic_uint64 *high, uint64 used)
{
	uint64		old = pg_atomic_read_u64(high);

	while (unlikely(used > old) && !pg_atomic_compare_exchange_u64(high, &old, used))
		;
}

#endif							/* EVBUS_HIGH_H */
