/* indexer.h: the worker that indexes closed leaves */
#ifndef EVBUS_INDEXER_H
#define EVBUS_INDEXER_H

#include "evbus.h"

extern void evbus_indexer_turn(EvbusDb *db, int unindexed, int untrained);

#endif
