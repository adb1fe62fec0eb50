/* ledger.h: the durable side of cursor.c */
#ifndef EVBUS_LEDGER_H
#define EVBUS_LEDGER_H

#include "evbus.h"

#include "cursor.h"
#include "registry.h"

extern int	evbus_ledger_turn_size;

extern void evbus_ledger_append(EvbusDb *db, const EvbusSubscription *sub, const EvbusRange *ranges, int n);
extern void evbus_ledger_pass_over(EvbusDb *db, const EvbusSubscription *sub, const EvbusClaim *claim);
extern bool evbus_ledger_attach(EvbusDb *db, const EvbusSubscription *sub);
extern void evbus_ledger_attach_all(EvbusDb *db, bool must);
extern void evbus_ledger_wait_ticked(EvbusDb *db, const EvbusSubscription *sub, int64 hi);
extern bool evbus_ledger_open_ranges(EvbusDb *db, const EvbusSubscription *sub, int64 *frontier, EvbusRange **ranges, int *n);
extern bool evbus_ledger_due(EvbusDb *db);
extern void evbus_ledger_turn(EvbusDb *db);

#endif
