/* recover.h: positions from the log */
#ifndef EVBUS_RECOVER_H
#define EVBUS_RECOVER_H

#include "evbus.h"

extern int	evbus_late_after;

extern void evbus_recover_init(EvbusDb *db);
extern uint64 evbus_lowest_open(void);
extern void evbus_recover(int64 from);
extern bool evbus_recovered(int64 id);
extern void evbus_recovered_forget(void);

#endif							/* EVBUS_RECOVER_H */
