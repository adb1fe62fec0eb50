/* unconsumed.h: what subscriptions need of a leaf, and what they lose with it */
#ifndef EVBUS_UNCONSUMED_H
#define EVBUS_UNCONSUMED_H

#include "evbus.h"
#include "leaf.h"

extern const char *evbus_unconsumed_by(EvbusDb *db, int32 class, int64 hi);
extern bool evbus_unconsumed_audit(EvbusDb *db, int32 class, const EvbusLeaf *leaf, const char *name, const char *cause);

#endif
