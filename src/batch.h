/* batch.h: one batch of a subscription with a handler */
#ifndef EVBUS_BATCH_H
#define EVBUS_BATCH_H

#include "evbus.h"

#include "registry.h"

extern void evbus_batch_init(EvbusDb *database, Oid owner);
extern bool evbus_batch_run(const EvbusSubscription *sub);
extern void evbus_batch_abandon(void);

#endif
