/* priority.h: taking deliveries of a subscription by priority */
#ifndef EVBUS_PRIORITY_H
#define EVBUS_PRIORITY_H

#include "evbus.h"
#include "reader.h"

extern int	evbus_priority_take(EvbusDb *db, const EvbusSubscription *sub, int max, int64 bytes_max, bool together,
								TimestampTz expires_at, EvbusEvents *out, EvbusClaim *claims);

#endif
