/* flow.h: what holds publishers up, where that was asked for: rates, and a backlog */
#ifndef EVBUS_FLOW_H
#define EVBUS_FLOW_H

#include "registry.h"

#include "access/xact.h"

extern int64 evbus_flow_limit(EvbusDb *db, const EvbusBus *bus);
extern void evbus_flow_size(const EvbusBus *bus, Size size);
extern void evbus_flow_publish(EvbusDb *db, EvbusBus *bus, int64 n);
extern void evbus_flow_due(EvbusDb *db, EvbusBus *bus, int64 n);
extern void evbus_flow_subxact(SubXactEvent event);
extern void evbus_flow_reads(int bus_slot);
extern void evbus_flow_end(void);

#endif
