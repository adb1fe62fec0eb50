/* publish.h: events of the current transaction */
#ifndef EVBUS_PUBLISH_H
#define EVBUS_PUBLISH_H

#include "evbus.h"

#include "envelope.h"
#include "fmgr.h"
#include "registry.h"
#include "utils/jsonb.h"

#define EVBUS_LARGE_BATCH	100		/* events; from here on page faults would show */
#define EVBUS_KEEP_BYTES	(16 * 1024 * 1024)

extern void evbus_publish_init(void);

/* For others who publish: the type is checked, the bus prepared in this very transaction, then events. */
extern void evbus_publish_check_type(text *type);
extern EvbusDb *evbus_publish_prepare(const char *bus_name, const char *what, Oid role, int64 n, EvbusBus *bus);
extern void evbus_publish_headers(FunctionCallInfo fcinfo, int priority, int expires_at, EvbusHeaders *headers);
extern void evbus_publish_check_headers(Jsonb *headers);
extern void evbus_publish_check_event(const EvbusBus *bus, text *key, Jsonb *headers, Jsonb *payload);
extern void evbus_publish_add(const EvbusBus *bus, int64 id, text *type, text *key, const EvbusHeaders *headers, Jsonb *payload);
extern int64 evbus_publish_event(EvbusDb *db, const EvbusBus *bus, text *type, text *key, const EvbusHeaders *headers, Jsonb *payload);

#endif
