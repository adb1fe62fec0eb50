/* handler_call.h: calling a handler */
#ifndef EVBUS_HANDLER_CALL_H
#define EVBUS_HANDLER_CALL_H

#include "evbus.h"
#include "reader.h"

extern void evbus_call_count_failed(const EvbusSubscription *sub, const EvbusEvent *event);
extern void evbus_call_init(EvbusDb *database, Oid owner, MemoryContext context);
extern bool evbus_call_aim(const EvbusSubscription *sub);
extern void evbus_call_begin(void);
extern void evbus_call_take(const EvbusSubscription *sub, EvbusEvent *events, int n, bool retry);
extern void evbus_call(const EvbusSubscription *sub, EvbusEvent *events, int n, bool array);
extern void evbus_call_one(const EvbusSubscription *sub, EvbusEvent *event);
extern void evbus_call_commit(const EvbusSubscription *sub, const EvbusEvent *events, int n);
extern void evbus_call_over(void);
extern int64 evbus_call_running(void);
extern ErrorData *evbus_call_error(void);
extern void evbus_call_clean(void);

#endif
