/* scheduled.h: events that are not due yet */
#ifndef EVBUS_SCHEDULED_H
#define EVBUS_SCHEDULED_H

#include "evbus.h"

#include "access/htup.h"
#include "datatype/timestamp.h"
#include "envelope.h"
#include "registry.h"
#include "utils/jsonb.h"

/* An event whose time has come. */
typedef struct EvbusDue
{
	int64		scheduled_id;
	TimestampTz due_at;
	int32		bus_id;
	text	   *type;
	text	   *key;			/* NULL: none */
	EvbusHeaders headers;
	Jsonb	   *payload;
} EvbusDue;

/* A row that could not be published. */
typedef struct EvbusScheduledRow
{
	int64		id;
	int32		bus_id;
	bool		unread;			/* what is in it could not be read */
} EvbusScheduledRow;

/* Storing. */
extern int	evbus_scheduled_leaf(TimestampTz due);
extern HeapTuple evbus_scheduled_form(int leaf, const EvbusBus *bus, int64 id, TimestampTz due,
									  text *type, text *key, const EvbusHeaders *headers, Jsonb *payload);
extern void evbus_scheduled_write(EvbusDb *db, int leaf, TimestampTz due, HeapTuple *tuples, int n);
extern int64 evbus_scheduled_newest(void);

/* Taking. */
extern TimestampTz evbus_scheduled_next(EvbusDb *db);
extern int	evbus_scheduled_take(EvbusDb *db, TimestampTz now, int max, EvbusDue **due);
extern EvbusScheduledRow evbus_scheduled_last(void);
extern void evbus_scheduled_hold(int32 bus_id, int64 usecs);
extern void evbus_scheduled_set_aside(int64 id);
extern void evbus_scheduled_end(EvbusDb *db, bool committed);
extern void evbus_scheduled_forget(EvbusDb *db);
extern bool evbus_scheduled_delete(EvbusDb *db, int64 id);

/* For the maintainer, each in a transaction. */
extern void evbus_scheduled_look(EvbusDb *db);
extern void evbus_scheduled_trim(void);

#endif
