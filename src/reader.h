/* reader.h: events by position, from the ring or from the log */
#ifndef EVBUS_READER_H
#define EVBUS_READER_H

#include "evbus.h"

#include "access/tupdesc.h"
#include "cursor.h"
#include "registry.h"

/* Microseconds after which a worker looks no further for what a filter lets through: others wait. */
#define EVBUS_LOOK_TIME		(500 * 1000)

/* Events read, in order of position. */
typedef struct EvbusEvents
{
	EvbusEvent *events;
	int			n;
	int			size;
	XLogRecPtr	lsn;			/* all of their commits are below */
	int64	   *skipped;		/* positions of what filter or, as negative ones, max_age kept back, in order */
	int			n_skipped;
	int			skipped_size;
	int			n_settled;		/* of those, counted */
} EvbusEvents;

extern void evbus_read(EvbusDb *db, const EvbusSubscription *sub, int64 from, int64 hi, EvbusEvents *out);
extern void evbus_read_unsettled(EvbusDb *db, const EvbusSubscription *sub, EvbusEvents *events, int64 lo);
extern void evbus_read_settled(EvbusDb *db, const EvbusSubscription *sub, EvbusEvents *events, int64 hi);
extern bool evbus_event_too_old(const EvbusSubscription *sub, const EvbusEvent *event);
extern void evbus_event_passed_over(EvbusDb *db, const EvbusSubscription *sub, const EvbusEvent *event, bool expired);
extern int	evbus_read_more(int n, int64 bytes, int64 bytes_max, int max);
extern void evbus_read_again(EvbusDb *db, const EvbusSubscription *sub, EvbusEvent *events, int n, XLogRecPtr *lsn);
extern bool evbus_event_values(const EvbusEvent *event, const EvbusSubscription *sub, Datum *values, bool *nulls);
pg_noreturn extern void evbus_event_damaged(const EvbusEvent *event);
extern HeapTuple evbus_event_tuple(const EvbusEvent *event, const EvbusSubscription *sub, TupleDesc desc);

#endif
