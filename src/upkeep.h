/* upkeep.h: leaves ahead, retention, closed leaves, paused subscriptions */
#ifndef EVBUS_UPKEEP_H
#define EVBUS_UPKEEP_H

#include "evbus.h"

#include "leaf.h"

extern int	evbus_dead_letter_retention;

extern int	evbus_upkeep_leaves(EvbusDb *db);
extern int	evbus_upkeep_retention(EvbusDb *db);
extern int	evbus_upkeep_unindexed(EvbusDb *db, EvbusLeaf **due);
extern void evbus_upkeep_orphans(void);
extern void evbus_upkeep_pause(int32 subscription_id, const char *reason);

#endif
