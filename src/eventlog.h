/* eventlog.h: the log of events */
#ifndef EVBUS_EVENTLOG_H
#define EVBUS_EVENTLOG_H

#include "evbus.h"

#include "access/htup.h"
#include "registry.h"
#include "utils/snapshot.h"

/* A row to be written. */
typedef struct EvbusRow
{
	int64		event_id;
	int32		storage_class_id;
	HeapTuple	tuple;
} EvbusRow;

/* A row met by evbus_eventlog_scan(). */
typedef struct EvbusScanned
{
	int64		event_id;
	int32		bus_id;
} EvbusScanned;

extern void evbus_clock_ensure(EvbusDb *db);
extern Oid	evbus_class_parent(int32 storage_class_id);
extern HeapTuple evbus_eventlog_form(int64 event_id, int32 storage_class_id, int32 bus_id,
									 Datum type, Datum key, bool key_null,
									 Datum headers, bool headers_null, Datum payload);
extern void evbus_eventlog_write(EvbusRow *rows, int n);
extern void evbus_eventlog_fetch(const EvbusSubscription *sub, EvbusEvent *events, int n);
extern void evbus_eventlog_check_expired(int64 event_id, const char *bus_name);
extern int	evbus_eventlog_scan(Snapshot snapshot, int64 from, EvbusScanned *found, int max);

#endif
