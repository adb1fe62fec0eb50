/* notify.h: NOTIFY for consumers */
#ifndef EVBUS_NOTIFY_H
#define EVBUS_NOTIFY_H

#include "evbus.h"

#include "registry.h"

extern int	evbus_notify_interval;

extern bool evbus_notify_turn(EvbusDb *db, EvbusSubscription *subs, int n);

#endif
