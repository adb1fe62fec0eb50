/* ordered.h: taking deliveries of a subscription in order */
#ifndef EVBUS_ORDERED_H
#define EVBUS_ORDERED_H

#include "evbus.h"

#include "order.h"
#include "reader.h"

extern bool evbus_ordered_lock(const EvbusSubscription *sub, bool wait);
extern void evbus_ordered_unlock(const EvbusSubscription *sub);
extern bool evbus_ordered_ready(const EvbusTaking *taking, int max, int64 bytes_max, EvbusEvents *out, EvbusClaim *claims);
extern int	evbus_ordered_take(EvbusDb *db, const EvbusSubscription *sub, int max, int64 bytes_max, bool together,
							   TimestampTz expires_at, EvbusEvents *out, EvbusClaim *claims);

#endif
