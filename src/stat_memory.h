/* stat_memory.h: how full each area of shared memory is */
#ifndef EVBUS_STAT_MEMORY_H
#define EVBUS_STAT_MEMORY_H

#include "evbus.h"

/* Where who listens hears of levels: of memory, and of what health() finds. */
#define EVBUS_ALERT_CHANNEL	"evbus_alert"

extern int	evbus_memory_warn;
extern int	evbus_memory_critical;

extern void evbus_stat_memory_reset(EvbusDb *db);
extern void evbus_stat_memory_turn(EvbusDb *db);

#endif							/* EVBUS_STAT_MEMORY_H */
