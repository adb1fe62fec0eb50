/*-------------------------------------------------------------------------
 * inflight.h
 *	  What handlers are at, where a crash of the server does not reach it.
 *-------------------------------------------------------------------------
 */
#ifndef EVBUS_INFLIGHT_H
#define EVBUS_INFLIGHT_H

#include "evbus.h"
#include "registry.h"

extern void evbus_inflight_init(void);
extern void evbus_inflight_attach(EvbusDb *db, int worker);
extern void evbus_inflight_take(const EvbusSubscription *sub, const EvbusEvent *events, int n);
extern void evbus_inflight_run(int first, int n);
extern bool evbus_inflight_any(const EvbusSubscription *sub, const EvbusEvent *events, int n);
extern bool evbus_inflight_crashed(const EvbusSubscription *sub, EvbusEvent *event, bool *count);
extern void evbus_inflight_recorded(const EvbusSubscription *sub, int64 event_id);

#endif							/* EVBUS_INFLIGHT_H */
