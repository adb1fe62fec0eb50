/* area.h: a database's part of shared memory */
#ifndef EVBUS_AREA_H
#define EVBUS_AREA_H

#include "evbus.h"

extern void evbus_require_preload(void);
extern bool evbus_areas_sweep(void);
extern EvbusDb *evbus_db(void);
extern void evbus_db_require_ready(EvbusDb *db);
extern bool evbus_db_wait_unloaded(EvbusDb *db, int timeout_ms);
extern bool evbus_db_wait_drained(EvbusDb *db, int timeout_ms);
extern void evbus_launcher_wake(void);

#endif							/* EVBUS_AREA_H */
