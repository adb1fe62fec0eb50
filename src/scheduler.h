/* scheduler.h: publishes events when they are due */
#ifndef EVBUS_SCHEDULER_H
#define EVBUS_SCHEDULER_H

#include "evbus.h"

extern bool evbus_scheduler_wanted(EvbusDb *db);
extern int	evbus_scheduler_stand_in(EvbusDb *db);

#endif
