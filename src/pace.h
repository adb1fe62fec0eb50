/* pace.h: so many first deliveries a second, and no more */
#ifndef EVBUS_PACE_H
#define EVBUS_PACE_H

#include "evbus.h"

extern void evbus_pace_begin(EvbusSub *sub, int rate);
extern int64 evbus_pace_wait(EvbusSub *sub);
extern int	evbus_pace_take(EvbusSub *sub, int max);
extern void evbus_pace_put_back(EvbusSub *sub, int n);

#endif
