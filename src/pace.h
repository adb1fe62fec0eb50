/* pace.h: so many deliveries a second, and no more */
#ifndef EVBUS_PACE_H
#define EVBUS_PACE_H

#include "registry.h"

extern void evbus_pace_begin(EvbusSub *shared);
extern int64 evbus_pace_wait(EvbusDb *db, const EvbusSubscription *sub, bool retries);
extern int	evbus_pace_take(EvbusDb *db, const EvbusSubscription *sub, int max, bool retries);
extern void evbus_pace_put_back(EvbusDb *db, const EvbusSubscription *sub, int n, bool retries);

#endif
