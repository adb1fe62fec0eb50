/* trace.h: what happens to the events of one subscription, line by line */
#ifndef EVBUS_TRACE_H
#define EVBUS_TRACE_H

#include "evbus.h"

#include "registry.h"

extern bool evbus_trace_on(EvbusDb *db, const EvbusSubscription *sub);
extern void evbus_trace_event(const EvbusSubscription *sub, int64 event_id, const char *format,...) pg_attribute_printf(3, 4);
extern void evbus_trace_position(const EvbusSubscription *sub, int64 position, const char *what);
extern TimestampTz evbus_trace_until(EvbusDb *db, const EvbusSubscription *sub);

/* Is its story told?  Costs those that are not traced one read of what they have at hand. */
static inline bool
evbus_traced(EvbusDb *db, const EvbusSubscription *sub)
{
	return unlikely(pg_atomic_read_u64(&EVBUS_SUB(db, sub->live_slot)->trace_until) != 0) && evbus_trace_on(db, sub);
}

#endif
