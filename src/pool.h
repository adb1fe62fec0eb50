/* pool.h: who gets handler workers */
#ifndef EVBUS_POOL_H
#define EVBUS_POOL_H

#include "evbus.h"

#include "registry.h"

extern int	evbus_worker_slice;

extern uint32 evbus_pool_starved(void);
extern bool evbus_pool_give_way(const EvbusWorker *me);
extern bool evbus_pool_turn(EvbusDb *db, EvbusSubscription *subs, int n);

#endif
