/* volatile_outbox.h: what the current transaction publishes to volatile buses */
#ifndef EVBUS_VOLATILE_OUTBOX_H
#define EVBUS_VOLATILE_OUTBOX_H

#include "evbus.h"

#include "access/xact.h"
#include "envelope.h"
#include "registry.h"
#include "utils/jsonb.h"

extern int32 evbus_volatile_served;

extern void evbus_volatile_check(const EvbusBus *bus);
extern void evbus_volatile_refuse(const EvbusBus *bus, const char *what, const char *hint);
extern void evbus_volatile_add(EvbusDb *db, const EvbusBus *bus, int64 id, text *type, text *key,
							   const EvbusHeaders *headers, Jsonb *payload);
extern bool evbus_volatile_any(void);
extern void evbus_volatile_xact(XactEvent event);
extern void evbus_volatile_subxact(SubXactEvent event);

#endif
