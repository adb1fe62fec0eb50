/* leafcut.h: a leaf that is filled before its time is up */
#ifndef EVBUS_LEAFCUT_H
#define EVBUS_LEAFCUT_H

#include "evbus.h"

#include "leaf.h"

extern bool evbus_leaf_cut(EvbusDb *db, const char *parent, const EvbusLeaf *leaf, int64 interval, int wait_ms);

#endif
