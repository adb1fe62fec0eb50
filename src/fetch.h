/* fetch.h: rows of the log by id */
#ifndef EVBUS_FETCH_H
#define EVBUS_FETCH_H

#include "evbus.h"

#include "registry.h"

extern void evbus_fetch(const EvbusSubscription *sub, EvbusEvent *events, int n);

#endif
