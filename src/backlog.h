/* backlog.h: durable buses that drop the oldest events of who is too far behind */
#ifndef EVBUS_BACKLOG_H
#define EVBUS_BACKLOG_H

#include "evbus.h"
#include "registry.h"

extern void evbus_backlog_turn(EvbusDb *db, const EvbusSubscription *subs, int n);

#endif
