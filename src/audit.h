/* audit.h: who did what, and what it was before */
#ifndef EVBUS_AUDIT_H
#define EVBUS_AUDIT_H

#include "upkeep.h"

#include "fmgr.h"
#include "utils/jsonb.h"

extern int	evbus_audit_retention;

extern Jsonb *evbus_audit_bus(int32 bus_id);
extern Jsonb *evbus_audit_subscription(int32 subscription_id);
extern Jsonb *evbus_audit_number(const char *what, int64 n);
extern void evbus_audit(FunctionCallInfo fcinfo, const char *kind, const char *object, const Jsonb *before, const Jsonb *after);
extern void evbus_audit_refused(Oid role, const char *privilege, const char *kind, const char *object);
extern void evbus_audit_at_once(FunctionCallInfo fcinfo, const char *kind, const char *object);
extern void evbus_audit_turn(EvbusDb *db, EvbusRunner run);

#endif							/* EVBUS_AUDIT_H */
