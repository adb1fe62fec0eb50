/* dedup.h: keys that an event is published with only once */
#ifndef EVBUS_DEDUP_H
#define EVBUS_DEDUP_H

#include "evbus.h"

#include "registry.h"

extern int64 evbus_dedup(EvbusDb *db, const EvbusBus *bus, text *key, int64 id);
extern void evbus_dedup_turn(EvbusDb *db);

#endif
