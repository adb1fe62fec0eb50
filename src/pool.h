/* pool.h: who gets handler workers */
#ifndef EVBUS_POOL_H
#define EVBUS_POOL_H

#include "evbus.h"

#include "registry.h"

extern bool evbus_pool_turn(EvbusDb *db, EvbusSubscription *subs, int n);

#endif
