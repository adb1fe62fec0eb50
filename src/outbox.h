/* outbox.h: what the current transaction publishes */
#ifndef EVBUS_OUTBOX_H
#define EVBUS_OUTBOX_H

#include "evbus.h"

#include "access/xact.h"
#include "envelope.h"
#include "late.h"
#include "registry.h"
#include "utils/jsonb.h"

extern void evbus_outbox_begin(void);
extern void evbus_outbox_add(const EvbusBus *bus, int64 id, text *type, text *key,
							 const EvbusHeaders *headers, Jsonb *payload, bool ring);
extern void evbus_outbox_flush(void);
extern bool evbus_outbox_too_large(void);
extern void evbus_outbox_leave_ring(void);
extern bool evbus_outbox_push(EvbusDb *db, XLogRecPtr lsn, bool *awaited);
extern const EvbusIdRange *evbus_outbox_ids(int *n);
extern void evbus_outbox_subxact(SubXactEvent event);
extern void evbus_outbox_forget(void);

#endif
