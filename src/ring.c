/*-------------------------------------------------------------------------
 * ring.c
 *	  Ring of freshly committed events, one per database.
 *
 * Publishers push at commit, the sequencer gives positions, readers copy out.
 * The ring is a hint and the log is the record: a full or lost ring costs a
 * scan, never an event.  Offsets count bytes ever pushed, so they only grow;
 * what lies more than a ring's length behind ring_reserved is overwritten.
 *
 * Pushing is done under ring_lock; space comes from what has been ticked, so an
 * entry with a position but without a committed tick is never overwritten.
 * Readers take no lock: they copy, then look whether ring_reserved has passed
 * them meanwhile, and if so go to the log.  Used by publish.c, sequencer.c and
 * delivery's reader.c.
 *-------------------------------------------------------------------------
 */
#include "ring.h"

#include "clock.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/timestamp.h"
#include "wait.h"
#include "wrap.h"

#define PLACE_WAIT_MS	100		/* for the sequencer; it may just be at something else */

/* Sizes as Linux has them; where they are others, it is slower. */
#define TOUCH_PAGE		4096
#define TOUCH_AROUND	(64 * 1024) /* what comes with a page that is read */
#define TOUCH_NEAR		(16 * 1024) /* a quarter of that: each will be written to some times */
#define TOUCH_MORE		512		/* others may be faster */

StaticAssertDecl(sizeof(EvbusRingEntry) % MAXIMUM_ALIGNOF == 0, "ring entries must stay aligned");

static void
ring_copy_out(EvbusDb *db, uint64 offset, char *to, Size len)
{
	evbus_wrap_out(EVBUS_RING(db), EVBUS_RING_BYTES, offset, to, len);
}

/*
 * Have the kernel map what is about to be written: a backend's first touch of a
 * page is a page fault, and not one to take while others wait for ring_lock.  Only
 * a guess where it will be, which is enough.
 *
 * A page that is read brings its neighbours along, one that is written comes alone.
 * That is dearer, now and when the backend ends, so it is for who will soon write
 * those as well, and not for one of many publishers, who writes to every tenth page.
 */
static void
touch(EvbusDb *db, Size len)
{
	static uint64 last = 0;		/* where we were the last time */
	uint64		tail = pg_atomic_read_u64(&db->ring_tail);
	bool		near = tail + len - last < TOUCH_NEAR || len >= TOUCH_AROUND;
	char	   *ring = EVBUS_RING(db);
	Size		at = tail % EVBUS_RING_BYTES;
	Size		end = Min(at + len + TOUCH_MORE, EVBUS_RING_BYTES);

	last = tail;
	while (at < end)
	{
		if (near)
			(void) *(volatile char *) (ring + at);
		else					/* is written, but not changed, whoever else writes it just now */
			(void) pg_atomic_fetch_or_u32((pg_atomic_uint32 *) (ring + at), 0);
		at = TYPEALIGN(near ? TOUCH_AROUND : TOUCH_PAGE, (uintptr_t) ring + at + 1) - (uintptr_t) ring;
	}
}

/*
 * Append len bytes of entries, all of a transaction or none: begin, put, end.
 * False: no space, and that was all.  For commit callbacks: cannot fail, does not
 * wait but for ring_lock, which is held until end, and whose holders only copy.
 */
bool
evbus_ring_begin(EvbusDb *db, Size len, uint64 *offset)
{
	uint64		tail;

	touch(db, len);
	LWLockAcquire(&db->ring_lock, LW_EXCLUSIVE);
	tail = pg_atomic_read_u64(&db->ring_tail);
	if (tail + len - pg_atomic_read_u64(&db->ring_ticked) > EVBUS_RING_BYTES)
	{
		LWLockRelease(&db->ring_lock);
		return false;
	}
	pg_atomic_write_u64(&db->ring_reserved, tail + len);
	pg_write_barrier();			/* readers see the warning before the bytes change */
	*offset = tail;
	return true;
}

/* Returns the offset after what was put. */
uint64
evbus_ring_put(EvbusDb *db, uint64 offset, const void *from, Size len)
{
	evbus_wrap_in(EVBUS_RING(db), EVBUS_RING_BYTES, offset, from, len);
	return offset + len;
}

void
evbus_ring_end(EvbusDb *db, uint64 offset)
{
	pg_write_barrier();			/* the sequencer sees the bytes before the tail moves */
	pg_atomic_write_u64(&db->ring_tail, offset);
	LWLockRelease(&db->ring_lock);
}

static void
wake_sequencer(EvbusDb *db)
{
	uint32		procno = pg_atomic_read_u32(&db->sequencer_procno);

	if (procno > 0)
		SetLatch(&ProcGlobal->allProcs[procno - 1].procLatch);
}

/*
 * Something was pushed, or a flag set: wake the sequencer if need be.  awaited:
 * somebody waits for an event on one of the buses.  For commit callbacks.
 */
void
evbus_ring_wake(EvbusDb *db, bool awaited)
{
	uint32		sleeps;

	pg_memory_barrier();		/* what we changed is seen before we look */
	sleeps = pg_atomic_read_u32(&db->sequencer_sleeps);
	if (sleeps == EVBUS_SLEEPS ||
		(sleeps == EVBUS_NAPS &&
		 (awaited ||
		  pg_atomic_read_u64(&db->ring_tail) - pg_atomic_read_u64(&db->ring_ticked) > EVBUS_RING_BYTES / EVBUS_RING_URGENT)))
		wake_sequencer(db);
}

/*
 * The caller is about to sleep until there are events of a bus (EVBUS_AWAITED_*),
 * and looks once more for them after this.
 */
void
evbus_ring_await(EvbusDb *db, int bus_slot, uint32 how)
{
	(void) pg_atomic_fetch_or_u32(&EVBUS_BUS(db, bus_slot)->awaited, how);
	if (pg_atomic_read_u64(&db->ring_tail) != pg_atomic_read_u64(&db->ring_drained))
		wake_sequencer(db);
}

/*
 * What was committed before the call is to be found by it: wait until what was in
 * the ring then has its positions.  The sequencer may nap, but not for long.
 */
void
evbus_ring_wait_placed(EvbusDb *db, const int *bus_slots, int n, uint64 tail)
{
	int64		deadline = TimestampTzPlusMilliseconds(evbus_uptime(), PLACE_WAIT_MS);

	if (pg_atomic_read_u64(&db->ring_drained) >= tail)
		return;
	ConditionVariablePrepareToSleep(&db->drained_cv);
	for (;;)
	{
		for (int i = 0; i < n; i++)
			evbus_ring_await(db, bus_slots[i], EVBUS_AWAITED_CV);
		if (pg_atomic_read_u64(&db->ring_drained) >= tail || evbus_uptime() >= deadline)
			break;
		(void) ConditionVariableTimedSleep(&db->drained_cv, 1, evbus_wait_event(EVBUS_WAIT_PLACED));
	}
	ConditionVariableCancelSleep();
}

/* Is there an entry without a position that somebody waits for?  For the sequencer. */
bool
evbus_ring_awaited(EvbusDb *db)
{
	uint64		tail = pg_atomic_read_u64(&db->ring_tail);

	for (uint64 at = pg_atomic_read_u64(&db->ring_drained); at < tail;)
	{
		EvbusRingEntry buffer;
		const EvbusRingEntry *entry = evbus_ring_peek(db, at, &buffer);

		if (entry == NULL || pg_atomic_read_u32(&EVBUS_BUS(db, entry->bus_slot)->awaited) != 0)
			return true;
		at += entry->len;
	}
	return false;
}

/* The caller is about to sleep until all that has been pushed is ticked. */
void
evbus_ring_want_ticks(EvbusDb *db)
{
	pg_atomic_write_u32(&db->tick_wanted, 1);
	pg_memory_barrier();
	wake_sequencer(db);
}

/* Offset below which bytes may be overwritten. */
uint64
evbus_ring_oldest(EvbusDb *db)
{
	uint64		reserved = pg_atomic_read_u64(&db->ring_reserved);

	return reserved > EVBUS_RING_BYTES ? reserved - EVBUS_RING_BYTES : 0;
}

/* Copy the header at an offset below ring_tail; false: overwritten. */
bool
evbus_ring_header(EvbusDb *db, uint64 offset, EvbusRingEntry *header)
{
	ring_copy_out(db, offset, (char *) header, sizeof(EvbusRingEntry));
	pg_read_barrier();
	return evbus_ring_oldest(db) <= offset;
}

/* Copy what follows the header (header->len - sizeof bytes); false: overwritten. */
bool
evbus_ring_data(EvbusDb *db, uint64 offset, const EvbusRingEntry *header, char *to)
{
	ring_copy_out(db, offset + sizeof(EvbusRingEntry), to, header->len - sizeof(EvbusRingEntry));
	pg_read_barrier();
	return evbus_ring_oldest(db) <= offset;
}

/*
 * The header at an offset below ring_tail without a copy, or in buffer where the
 * ring's end cuts it; NULL: overwritten.  Sequencer only, for entries at or above
 * ring_ticked: nobody overwrites those but when it raises that.
 */
const EvbusRingEntry *
evbus_ring_peek(EvbusDb *db, uint64 offset, EvbusRingEntry *buffer)
{
	Size		at = offset % EVBUS_RING_BYTES;

	if (pg_atomic_read_u64(&db->ring_reserved) - offset > EVBUS_RING_BYTES)
		return NULL;
	if (at + sizeof(EvbusRingEntry) <= EVBUS_RING_BYTES)
		return (const EvbusRingEntry *) (EVBUS_RING(db) + at);
	ring_copy_out(db, offset, (char *) buffer, sizeof(EvbusRingEntry));
	return buffer;
}

/* Sequencer only, for entries at or above ring_drained. */
void
evbus_ring_set_position(EvbusDb *db, uint64 offset, int64 position)
{
	uint64		at = offset + offsetof(EvbusRingEntry, position);

	*(int64 *) (EVBUS_RING(db) + at % EVBUS_RING_BYTES) = position;
}
