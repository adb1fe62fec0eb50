/* train.h: dictionaries: made of the history, replaced, dropped */
#ifndef EVBUS_TRAIN_H
#define EVBUS_TRAIN_H

#include "evbus.h"

extern int	evbus_train_due(EvbusDb *db, int32 **bus_ids);
extern bool evbus_train_bus(EvbusDb *db, int32 bus_id);
extern void evbus_train_upkeep(EvbusDb *db);

#endif
