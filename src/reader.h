/* reader.h: events by position, from the ring or from the log */
#ifndef EVBUS_READER_H
#define EVBUS_READER_H

#include "evbus.h"

#include "access/tupdesc.h"
#include "cursor.h"
#include "registry.h"

/* Events read, in order of position. */
typedef struct EvbusEvents
{
	EvbusEvent *events;
	int			n;
	int			size;
	XLogRecPtr	lsn;			/* all of their commits are below */
} EvbusEvents;

extern void evbus_read(EvbusDb *db, const EvbusSubscription *sub, int64 from, int64 hi, EvbusEvents *out);
extern int	evbus_read_more(int n, int64 bytes, int64 bytes_max, int max);
extern void evbus_read_again(EvbusDb *db, const EvbusSubscription *sub, EvbusEvent *events, int n, XLogRecPtr *lsn);
extern bool evbus_event_values(const EvbusEvent *event, const EvbusSubscription *sub, Datum *values, bool *nulls);
extern void evbus_event_damaged(const EvbusEvent *event) pg_attribute_noreturn();
extern HeapTuple evbus_event_tuple(const EvbusEvent *event, const EvbusSubscription *sub, TupleDesc desc);

#endif
