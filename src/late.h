/* late.h: ids of transactions that could not use the ring */
#ifndef EVBUS_LATE_H
#define EVBUS_LATE_H

#include "evbus.h"

#include "utils/snapshot.h"

/* n consecutive ids of one bus. */
typedef struct EvbusIdRange
{
	int64		first;
	int32		n;
	int32		bus_id;
} EvbusIdRange;

extern void evbus_late_write(EvbusDb *db, const EvbusIdRange *ranges, int n);
extern int	evbus_late_take(EvbusIdRange **ranges, bool *more);
extern int	evbus_late_peek(EvbusIdRange **ranges);

#endif
