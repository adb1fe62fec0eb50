/* limits.h: what holds publishers up, where that was asked for: rates, and a backlog */
#ifndef EVBUS_LIMITS_H
#define EVBUS_LIMITS_H

#include "registry.h"

#include "access/xact.h"

extern void evbus_limits_publish(EvbusDb *db, const EvbusBus *bus, int64 n, bool may_wait);
extern void evbus_limits_subxact(SubXactEvent event);
extern void evbus_limits_end(void);

#endif
