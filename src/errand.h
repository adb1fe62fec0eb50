/* errand.h: what the maintainer commits for others at once */
#ifndef EVBUS_ERRAND_H
#define EVBUS_ERRAND_H

#include "evbus.h"

#define EVBUS_ERRAND_PATIENCE	INT64CONST(15000000)	/* microseconds: some steps of upkeep, each of which waits a second for a lock */

extern bool evbus_errand_try(EvbusDb *db, EvbusErrandKind kind, const char *name, int64 patience);
extern void evbus_errand_run(EvbusDb *db, EvbusErrandKind kind, const char *name, int64 patience);
extern int	evbus_errands_used(const EvbusDb *db);
extern void evbus_errand_again(EvbusDb *db);
extern EvbusErrand *evbus_errand_take(EvbusDb *db, EvbusErrand *errand);
extern void evbus_errand_done(EvbusDb *db, EvbusErrand *place, int sqlerrcode, const char *message, const char *hint);

#endif
