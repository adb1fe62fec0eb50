/* volatile.h: buses that live in shared memory only, a ring each */
#ifndef EVBUS_VOLATILE_H
#define EVBUS_VOLATILE_H

#include "evbus.h"

#include "datatype/timestamp.h"
#include "registry.h"

/* In the ring, and before that in volatile_outbox.c: this, then type, key, headers, payload, padded to MAXALIGN. */
typedef struct EvbusVolatileEntry
{
	uint32		len;			/* of all, MAXALIGNed */
	int32		bus_id;
	uint16		bus_slot;
	uint16		ring;			/* which one */
	uint32		epoch;			/* EvbusVolatile.epoch when the space was taken */
	int32		key_len;		/* -1: none */
	int32		headers_len;	/* -1: none; coded, as the payload */
	int32		payload_len;
	uint32		type_len;
	int64		event_id;
	int64		position;		/* given at the push */
} EvbusVolatileEntry;

/* The shortest entry there can be says how many positions a ring holds at most. */
#define EVBUS_VOLATILE_ENTRY_LEAST	MAXALIGN(sizeof(EvbusVolatileEntry) + 1)
#define EVBUS_VOLATILE_POSITIONS	((uint64) EVBUS_VOLATILE_BYTES / EVBUS_VOLATILE_ENTRY_LEAST + 1)

extern void evbus_volatile_reset(EvbusDb *db);
extern EvbusVolatile *evbus_volatile_find(EvbusDb *db, int bus_slot, int32 bus_id);
extern EvbusVolatile *evbus_volatile_attach(EvbusDb *db, int bus_slot, int32 bus_id);
extern EvbusVolatile *evbus_volatile_get(EvbusDb *db, const EvbusBus *bus);

extern uint64 evbus_volatile_used(EvbusDb *db, EvbusVolatile *v, int32 bus_id);
extern void evbus_volatile_map(EvbusDb *db, EvbusVolatile *v, Size len);
extern void evbus_volatile_claim(EvbusDb *db, EvbusVolatile *v, const EvbusBus *bus, Size len);
extern void evbus_volatile_give_back(EvbusDb *db, int ring, Size len);
extern void evbus_volatile_hold(EvbusDb *db, EvbusVolatile *v, int64 position);
extern void evbus_volatile_push(EvbusDb *db, int ring, char *entries, Size len);

extern char *evbus_volatile_copy(EvbusDb *db, EvbusVolatile *v, int64 position, EvbusVolatileEntry *entry);
extern int64 evbus_volatile_position_at(EvbusDb *db, EvbusVolatile *v, TimestampTz t);

/* Space may have come back: who waits for it looks again.  For commit callbacks, too. */
static inline void
evbus_volatile_freed(EvbusDb *db)
{
	if (unlikely(pg_atomic_read_u32(&db->space_awaited) != 0))
	{
		pg_atomic_write_u32(&db->space_awaited, 0);
		ConditionVariableBroadcast(&db->space_cv);
	}
}

#endif
