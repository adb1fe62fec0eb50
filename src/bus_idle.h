/* bus_idle.h: buses that come and go by themselves */
#ifndef EVBUS_BUS_IDLE_H
#define EVBUS_BUS_IDLE_H

#include "evbus.h"
#include "registry.h"

extern bool evbus_auto_create;
extern int	evbus_idle_ttl;

extern void evbus_bus_get_or_make(EvbusDb *db, const char *name, const char *what, EvbusBus *bus);
extern void evbus_bus_make(const char *name, Oid owner);
extern void evbus_bus_use(EvbusDb *db, const char *name, const char *what, EvbusBus *bus);
extern char *evbus_bus_changes_table(const EvbusBus *bus);
extern bool evbus_bus_has_scheduled(int32 bus_id);
extern void evbus_bus_remove(int32 bus_id);
extern bool evbus_bus_make_room(EvbusDb *db);
extern bool evbus_bus_expire(EvbusDb *db);

#endif
