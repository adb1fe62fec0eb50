/* eventlog.h: the log of events */
#ifndef EVBUS_EVENTLOG_H
#define EVBUS_EVENTLOG_H

#include "evbus.h"

#include "access/htup.h"
#include "codec.h"
#include "registry.h"
#include "utils/snapshot.h"

/* Columns of evbus.event_log. */
enum
{
	LOG_ID = 1, LOG_CLASS, LOG_BUS, LOG_TYPE, LOG_KEY, LOG_HEADERS, LOG_PAYLOAD
};

/* A row to be written; where its parts begin, is counted from tuple.t_data. */
typedef struct EvbusRow
{
	HeapTupleData tuple;
	int64		event_id;
	int32		storage_class_id;
	int32		bus_id;
	int			bus_slot;
	uint32		ring_len;		/* of its entry in the ring; 0: it has none */
	uint32		type_at;
	uint32		key_at;			/* 0: no key */
	uint32		headers_at;		/* 0: no headers */
	uint32		payload_at;
	uint32		type_len;
	uint32		key_len;
	uint32		headers_len;	/* coded, as the payload */
	uint32		payload_len;
	bool		written;
} EvbusRow;

/* A row met by evbus_eventlog_scan(). */
typedef struct EvbusScanned
{
	int64		event_id;
	int32		bus_id;
} EvbusScanned;

extern void evbus_clock_ensure(EvbusDb *db);
extern Oid	evbus_class_parent(int32 storage_class_id);
extern int	evbus_class_parents(Oid **parents);
extern EvbusRow *evbus_eventlog_form(MemoryContext context, const EvbusBus *bus, int64 event_id, text *type, text *key,
									 const EvbusCoded *headers, const EvbusCoded *payload);
extern void evbus_eventlog_write(EvbusRow **rows, int n);
extern void evbus_eventlog_check_expired(int64 event_id, const EvbusSubscription *sub);
extern int	evbus_eventlog_scan(Snapshot snapshot, int64 from, EvbusScanned *found, int max);

#endif
