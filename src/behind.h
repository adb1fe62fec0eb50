/* behind.h: rows of evbus.retry that wait behind another of their key */
#ifndef EVBUS_BEHIND_H
#define EVBUS_BEHIND_H

#include "evbus.h"

#include "registry.h"

/* In place of the SQLSTATE of a failure: it has not been tried, it waits. */
#define EVBUS_BEHIND_STATE	"00000"

extern void evbus_behind_next(const EvbusSubscription *sub);
extern void evbus_behind_wake(const EvbusSubscription *sub, Datum key);
extern void evbus_behind_turn(EvbusDb *db, const EvbusSubscription *subs, int n);

#endif
