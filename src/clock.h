/* clock.h: ids that are time, identity and order at once */
#ifndef EVBUS_CLOCK_H
#define EVBUS_CLOCK_H

#include "evbus.h"

#define EVBUS_CLOCK_BITS	12	/* counter below the microseconds: good until 2071 */

extern int64 evbus_uptime(void);
extern int64 evbus_clock_wall(void);
extern int64 evbus_clock_take(pg_atomic_uint64 *clock, int n);
extern void evbus_clock_raise(pg_atomic_uint64 *clock, int64 floor);
extern int64 evbus_clock_from_time(TimestampTz t);
extern TimestampTz evbus_clock_to_time(int64 id);

#endif
