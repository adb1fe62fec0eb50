/* retain.h: which leaves go, and what holds them back */
#ifndef EVBUS_RETAIN_H
#define EVBUS_RETAIN_H

#include "evbus.h"

#include "upkeep.h"

extern bool evbus_retain_turn(EvbusDb *db, EvbusRunner run, const EvbusClass *classes, int n, int max, bool *more);
extern int	evbus_retain_limited(EvbusDb *db, EvbusRunner run, int max);

#endif
