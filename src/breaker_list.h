/* breaker_list.h: circuit breakers as others see them */
#ifndef EVBUS_BREAKER_LIST_H
#define EVBUS_BREAKER_LIST_H

#include "evbus.h"

#include "registry.h"

extern int	evbus_breaker_turn(EvbusDb *db, const EvbusSubscription *subs, int n);

#endif
