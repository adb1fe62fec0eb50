/* worker.h: what every worker does first and last */
#ifndef EVBUS_WORKER_H
#define EVBUS_WORKER_H

#include "evbus.h"

#include "postmaster/bgworker.h"
#include "process.h"

extern void evbus_worker_connect(EvbusProcessKind kind, Oid dboid, Oid role);
extern void evbus_worker_turn(void);
extern bool evbus_worker_unwanted(EvbusDb *db);
extern bool evbus_worker_start(const char *name, const char *type, const char *function, Datum arg,
							   BackgroundWorkerHandle **handle);
extern void evbus_workers_stop(Oid dboid);
extern void evbus_workers_resume(Oid dboid);

#endif
