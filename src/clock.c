/*-------------------------------------------------------------------------
 * clock.c
 *	  The hybrid clock: microseconds of timestamptz in the high bits, a counter
 *	  in the low ones.
 *
 * One shared atomic per database gives ids that are unique and grow, without a
 * sequence and without WAL.  Where the wall clock stands still or goes back the
 * counter carries into the microseconds, so ids grow all the same; leaves and
 * retention follow this clock and not the wall.  Knows nothing of buses.
 *-------------------------------------------------------------------------
 */
#include "clock.h"

#include "portability/instr_time.h"
#include "utils/timestamp.h"

/* First of n consecutive ids; the newest is the result + n - 1. */
int64
evbus_clock_take(pg_atomic_uint64 *clock, int n)
{
	uint64		now = (uint64) evbus_clock_wall();
	uint64		old = pg_atomic_read_u64(clock);

	for (;;)
	{
		uint64		first = Max(old + 1, now);

		if (pg_atomic_compare_exchange_u64(clock, &old, first + n - 1))
			return (int64) first;
	}
}

/*
 * Smallest id of this moment, as the wall clock says; 1 where that is beyond what
 * ids can hold, for then it is wrong, and would end all ids.
 */
int64
evbus_clock_wall(void)
{
	int64		now = evbus_clock_from_time(GetCurrentTimestamp());

	return now == PG_INT64_MAX ? 1 : now;
}

/* From now on ids are above floor. */
void
evbus_clock_raise(pg_atomic_uint64 *clock, int64 floor)
{
	uint64		old = pg_atomic_read_u64(clock);

	while (old < (uint64) floor &&
		   !pg_atomic_compare_exchange_u64(clock, &old, (uint64) floor))
		;
}

/* Smallest id of a moment; moments outside of 2000 to 2071 are moved to the edge. */
int64
evbus_clock_from_time(TimestampTz t)
{
	if (t <= 0)
		return 1;
	if (t >= (PG_INT64_MAX >> EVBUS_CLOCK_BITS))
		return PG_INT64_MAX;
	return t << EVBUS_CLOCK_BITS;
}

TimestampTz
evbus_clock_to_time(int64 id)
{
	return id >> EVBUS_CLOCK_BITS;
}

/*
 * Microseconds by a clock that nobody sets, the same in all processes: for waits and
 * intervals, which must not take an hour longer where the wall clock goes back one.
 */
int64
evbus_uptime(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MICROSEC(now);
}
