/* dropped.h: subscriptions of volatile buses: what they hold, and what was overwritten before they had it */
#ifndef EVBUS_DROPPED_H
#define EVBUS_DROPPED_H

#include "evbus.h"

#include "cursor.h"
#include "registry.h"

extern int64 evbus_unsettled_from(EvbusDb *db, const EvbusSubscription *sub);
extern void evbus_dropped_pass(EvbusDb *db, EvbusSub *shared);
extern int	evbus_dropped_trim(EvbusDb *db, const EvbusSubscription *sub, int64 keep, EvbusRange *ranges, int max, int64 *dropped);
extern void evbus_dropped_found(EvbusDb *db, const EvbusSubscription *sub, int64 from, int64 begin, int64 n);

#endif
