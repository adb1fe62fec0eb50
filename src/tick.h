/* tick.h: which event has which position */
#ifndef EVBUS_TICK_H
#define EVBUS_TICK_H

#include "evbus.h"

typedef void (*EvbusIdCallback) (int64 id, void *arg);
typedef void (*EvbusPositionCallback) (int64 position, int64 id, void *arg);

extern void evbus_tick_write(EvbusDb *db, int32 bus_id, int64 first_position,
							 const int64 *ids, int n, int64 low_id);
extern void evbus_tick_mark(EvbusDb *db, int64 low_id);
extern int	evbus_tick_read(int32 bus_id, int64 lo, int64 hi, EvbusEvent *events);
extern int64 evbus_tick_next_position(int32 bus_id);
extern int64 evbus_tick_first_position(int32 bus_id);
extern int64 evbus_tick_position_at(int32 bus_id, TimestampTz t);
extern int64 evbus_tick_low_id(void);
extern void evbus_tick_ids_from(int64 low_id, EvbusIdCallback callback, void *arg);
extern void evbus_tick_each(int32 bus_id, int64 lo, int64 hi, EvbusPositionCallback callback, void *arg);

#endif
