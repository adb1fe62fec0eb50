/* quota.h: how many dead letters a subscription may have */
#ifndef EVBUS_QUOTA_H
#define EVBUS_QUOTA_H

#include "evbus.h"

#include "registry.h"
#include "upkeep.h"

extern void evbus_quota_died(EvbusDb *db, const EvbusSubscription *sub);
extern void evbus_quota_turn(EvbusDb *db, EvbusRunner run, const EvbusSubscription *subs, int n);

#endif
