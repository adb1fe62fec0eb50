/* turn.h: one transaction of the sequencer */
#ifndef EVBUS_TURN_H
#define EVBUS_TURN_H

#include "evbus.h"
#include "late.h"
#include "registry.h"

extern void evbus_turn_init(EvbusDb *db);
extern void evbus_turn_begin(void);
extern void evbus_turn_end(void);
extern bool evbus_turn_find_bus(int32 bus_id, EvbusBus *bus);
extern bool evbus_turn_bus(int32 bus_id, int slot);
extern int64 evbus_turn_place(int32 bus_id, int slot, int64 id);
extern int64 evbus_turn_give(int32 bus_id, int slot);
extern uint32 evbus_turn_show(uint64 tail);
extern void evbus_turn_place_row(const EvbusLateRow *row);
extern void evbus_turn_anchor(int bus_slot, int64 position, uint64 offset);
extern void evbus_turn_drained(uint64 tail);
extern bool evbus_turn_tick(int64 low_id);
extern void evbus_turn_tick_ring(int64 low_id);

#endif							/* EVBUS_TURN_H */
