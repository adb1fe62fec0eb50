/* ring.h: freshly committed events, one ring per database */
#ifndef EVBUS_RING_H
#define EVBUS_RING_H

#include "evbus.h"

#define EVBUS_RING_INLINE	0x1 /* headers and payload follow; else only in the log */

/* In the ring: this, then type, key, headers, payload, padded to MAXALIGN. */
typedef struct EvbusRingEntry
{
	uint32		len;			/* of all, MAXALIGNed */
	uint32		flags;
	int32		bus_id;
	uint16		bus_slot;
	uint16		type_len;
	int32		key_len;		/* -1: none */
	int32		headers_len;	/* -1: none */
	int32		payload_len;
	int32		unused;
	int64		event_id;
	int64		position;		/* given by the sequencer; valid below ring_drained */
	XLogRecPtr	commit_lsn;
} EvbusRingEntry;

extern bool evbus_ring_begin(EvbusDb *db, Size len, uint64 *offset);
extern uint64 evbus_ring_put(EvbusDb *db, uint64 offset, const void *from, Size len);
extern void evbus_ring_end(EvbusDb *db, uint64 offset);
extern void evbus_ring_wake(EvbusDb *db, bool awaited);
extern void evbus_ring_await(EvbusDb *db, int bus_slot, uint32 how);
extern void evbus_ring_wait_placed(EvbusDb *db, const int *bus_slots, int n, uint64 tail);
extern bool evbus_ring_awaited(EvbusDb *db);
extern void evbus_ring_want_ticks(EvbusDb *db);
extern uint64 evbus_ring_oldest(EvbusDb *db);
extern bool evbus_ring_header(EvbusDb *db, uint64 offset, EvbusRingEntry *header);
extern bool evbus_ring_data(EvbusDb *db, uint64 offset, const EvbusRingEntry *header, char *to);
extern const EvbusRingEntry *evbus_ring_peek(EvbusDb *db, uint64 offset, EvbusRingEntry *buffer);
extern void evbus_ring_set_position(EvbusDb *db, uint64 offset, int64 position);

#endif
