/*-------------------------------------------------------------------------
 * volatile.c
 *	  Volatile buses: no table, no WAL; each has a ring in shared memory.
 *
 * The ring is the record, and lives as long as the server.  Events get there in the
 * commit callback, under the ring's lock, which is held to copy them; their positions
 * are given at the same time, so nobody has to place them afterwards, and whose
 * COMMIT has returned before another's publish() was called is before it.
 * Positions are dense, and begin at the microseconds of the id clock: so they go on
 * growing over restarts, though nothing of them is stored.
 *
 * A commit can neither fail nor wait, so space is taken in publish():
 *
 *		mark <= tail <= claimed <= mark + size
 *
 * Below `mark` every subscription has settled everything; from `tail` to `claimed` is
 * what was promised to transactions that are still open.  `mark` is only found out
 * anew when it does not suffice (reckon()): so consumers need not tell.  With
 * overflow => 'drop_oldest' space is taken beyond that, and what is overwritten was
 * not settled: readers see it by oldest_position, go on there, and count.
 *
 * All offsets count bytes ever pushed.  They, and `claimed`, go on when the ring becomes
 * another bus's: so who has taken space of the former one just gives it back.
 *
 * Readers take no lock: for each position there is its offset (evbus_volatile_offsets),
 * they copy, and then look whether oldest_position has passed them meanwhile.
 *-------------------------------------------------------------------------
 */
#include "volatile.h"

#include "clock.h"
#include "dropped.h"
#include "eventlog.h"
#include "miscadmin.h"
#include "pin.h"
#include "point.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "wait.h"
#include "wrap.h"

#define WAIT_STEP_MS	100		/* space may come back in ways that nobody tells of */

/* Sizes as Linux has them; where they are others, it is slower. */
#define MAP_PAGE		4096
#define MAP_AROUND		(64 * 1024) /* what comes with a page that is read */

static int
ring_of(EvbusDb *db, const EvbusVolatile *v)
{
	return (int) (v - EVBUS_VOLATILE(db, 0));
}

static pg_atomic_uint64 *
offset_of(EvbusDb *db, const EvbusVolatile *v, int64 position)
{
	return &evbus_volatile_offsets[(Size) (v - evbus_volatiles) * EVBUS_VOLATILE_POSITIONS + position % EVBUS_VOLATILE_POSITIONS];
}

static char *
ring_bytes(const EvbusVolatile *v)
{
	return evbus_volatile_rings + (Size) (v - evbus_volatiles) * EVBUS_VOLATILE_BYTES;
}

/* ------------------------------------------------------------------- memory */

/*
 * A process that touches a page for the first time takes a page fault, which costs as
 * much as many a publish().  One that reads brings the neighbours along, if they have
 * ever been written to.  So who takes a ring writes to all of its pages (without
 * changing what others may have put there by now), and who is about to push reads in
 * each stretch that he has not been to.
 */
static void
make_pages(char *at, Size len)
{
	for (Size i = 0; i < len; i += MAP_PAGE)
		(void) pg_atomic_fetch_or_u32((pg_atomic_uint32 *) (at + i), 0);
}

static void
map(char *base, uint64 from, Size len, Size size, bits8 *known)
{
	for (uint64 chunk = from / MAP_AROUND; chunk <= (from + len) / MAP_AROUND; chunk++)
	{
		Size		c = chunk % ((size + MAP_AROUND - 1) / MAP_AROUND);

		if (known[c / BITS_PER_BYTE] & (1 << (c % BITS_PER_BYTE)))
			continue;
		known[c / BITS_PER_BYTE] |= 1 << (c % BITS_PER_BYTE);
		(void) *(volatile char *) (base + c * MAP_AROUND);
	}
}

/* For who is about to push: where it will be is only a guess, which is enough. */
void
evbus_volatile_map(EvbusDb *db, EvbusVolatile *v, Size len)
{
	static bits8 *known = NULL; /* a bit for each MAP_AROUND bytes of rings, and then of offsets */
	Size		ring_bits = (EVBUS_VOLATILE_BYTES / MAP_AROUND + BITS_PER_BYTE) / BITS_PER_BYTE;
	Size		offset_bytes = EVBUS_VOLATILE_POSITIONS * sizeof(pg_atomic_uint64);
	Size		offset_bits = (offset_bytes / MAP_AROUND + BITS_PER_BYTE) / BITS_PER_BYTE;
	Size		all = (ring_bits + offset_bits) * evbus_max_databases * evbus_max_volatile_buses;
	bits8	   *mine;

	if (known == NULL)
		known = MemoryContextAllocZero(TopMemoryContext, all);
	mine = known + (ring_bits + offset_bits) * (v - evbus_volatiles);
	map(ring_bytes(v), pg_atomic_read_u64(&v->tail) % EVBUS_VOLATILE_BYTES, Min(len, EVBUS_VOLATILE_BYTES), EVBUS_VOLATILE_BYTES, mine);
	map((char *) offset_of(db, v, 0), pg_atomic_read_u64(&v->next_position) % EVBUS_VOLATILE_POSITIONS * sizeof(pg_atomic_uint64),
		len / EVBUS_VOLATILE_ENTRY_LEAST * sizeof(pg_atomic_uint64), offset_bytes, mine + ring_bits);
}

/* ------------------------------------------------------------- coming, going */

/* Let a ring be another bus's; the caller holds EvbusShared.lock EXCLUSIVE. */
static void
take_ring(EvbusVolatile *v, int32 bus_id, int64 position)
{
	LWLockAcquire(&v->lock, LW_EXCLUSIVE);
	v->bus_id = 0;
	pg_write_barrier();			/* who reads epoch, and then this bus_id, has the epoch of this bus */
	v->epoch++;
	pg_write_barrier();
	pg_atomic_write_u64(&v->mark, pg_atomic_read_u64(&v->tail));
	pg_atomic_write_u64(&v->first_position, (uint64) position);
	pg_atomic_write_u64(&v->oldest_position, (uint64) position);
	pg_atomic_write_u64(&v->next_position, (uint64) position);
	pg_atomic_write_u64(&v->dropped, 0);
	pg_atomic_write_u64(&v->high, 0);
	v->told = 0;
	pg_write_barrier();
	v->bus_id = bus_id;
	LWLockRelease(&v->lock);
}

/* The area becomes another extension's; the caller holds EvbusShared.lock EXCLUSIVE. */
void
evbus_volatile_reset(EvbusDb *db)
{
	for (int i = 0; i < evbus_max_volatile_buses; i++)
		take_ring(EVBUS_VOLATILE(db, i), 0, 1);
}

/* The ring of a bus; NULL: it has none yet. */
EvbusVolatile *
evbus_volatile_find(EvbusDb *db, int bus_slot, int32 bus_id)
{
	EvbusBusState *bus = EVBUS_BUS(db, bus_slot);
	EvbusVolatile *v;
	uint32		ring;

	if ((int32) pg_atomic_read_u32(&bus->bus_id) != bus_id)
		return NULL;
	pg_read_barrier();
	ring = pg_atomic_read_u32(&bus->ring);
	if (ring == 0)
		return NULL;
	v = EVBUS_VOLATILE(db, ring - 1);
	return v->bus_id == bus_id ? v : NULL;
}

/*
 * The same; a free one, or that of a bus that was dropped, if it has none yet.  In a
 * transaction.  NULL: there is none left, or its place in shared memory is still
 * that of a bus which this transaction has dropped.
 */
EvbusVolatile *
evbus_volatile_attach(EvbusDb *db, int bus_slot, int32 bus_id)
{
	EvbusBusState *bus = EVBUS_BUS(db, bus_slot);
	EvbusVolatile *v = evbus_volatile_find(db, bus_slot, bus_id);
	int32		there;
	int32	   *gone;
	int64		position;
	bool		taken = false;

	if (v)
		return v;
	evbus_clock_ensure(db);
	position = Max(evbus_clock_wall(), (int64) pg_atomic_read_u64(&db->clock)) >> EVBUS_CLOCK_BITS;
	there = (int32) pg_atomic_read_u32(&bus->bus_id);
	if (there != 0 && there != bus_id && evbus_bus_exists(there))
		return NULL;
	gone = palloc0(sizeof(int32) * Max(evbus_max_volatile_buses, 1));
	for (int i = 0; i < evbus_max_volatile_buses; i++)
	{
		int32		id = EVBUS_VOLATILE(db, i)->bus_id;

		if (id != bus_id && id != 0 && !evbus_bus_exists(id))
			gone[i] = id;
	}
	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	if (db->dboid == MyDatabaseId && !db->gone && (int32) pg_atomic_read_u32(&bus->bus_id) == there)
		for (int i = 0; i < evbus_max_volatile_buses; i++)
		{
			EvbusVolatile *one = EVBUS_VOLATILE(db, i);

			if (one->bus_id == bus_id)
			{
				v = one;
				break;
			}
			if (v == NULL && one->bus_id == gone[i])	/* 0: it is free */
				v = one;
		}
	if (v)
	{
		taken = v->bus_id != bus_id;
		if (taken)
			take_ring(v, bus_id, position);
		LWLockAcquire(&v->lock, LW_EXCLUSIVE);	/* nobody pushes meanwhile */
		if (there != bus_id)
		{
			pg_atomic_write_u64(&bus->rejected, 0);
			pg_atomic_write_u64(&bus->waits, 0);
		}
		pg_atomic_write_u32(&bus->bus_id, 0);
		pg_memory_barrier();
		pg_atomic_write_u32(&bus->ring, ring_of(db, v) + 1);
		pg_atomic_write_u64(&bus->ticked_position, pg_atomic_read_u64(&v->next_position));
		pg_atomic_write_u64(&bus->next_position, pg_atomic_read_u64(&v->next_position));
		pg_write_barrier();
		pg_atomic_write_u32(&bus->bus_id, (uint32) bus_id);
		LWLockRelease(&v->lock);
	}
	LWLockRelease(&evbus_shared->lock);
	pfree(gone);
	if (taken)
	{
		make_pages(ring_bytes(v), EVBUS_VOLATILE_BYTES);
		make_pages((char *) offset_of(db, v, 0), EVBUS_VOLATILE_POSITIONS * sizeof(pg_atomic_uint64));
	}
	return v;
}

/* The same; errors VB003 if there is none. */
EvbusVolatile *
evbus_volatile_get(EvbusDb *db, const EvbusBus *bus)
{
	EvbusVolatile *v = evbus_volatile_attach(db, bus->slot, bus->bus_id);

	if (v == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_TOO_MANY_BUSES),
				 errmsg("no ring is free for volatile bus \"%s\"", bus->name),
				 errdetail("evbus.max_volatile_buses is %d.", evbus_max_volatile_buses),
				 errhint("If this transaction has dropped a bus, commit first; else drop a volatile bus, or raise evbus.max_volatile_buses and restart the server.")));
	return v;
}

/* -------------------------------------------------------------------- space */

static bool
take(EvbusVolatile *v, Size len, bool beyond)
{
	uint64		old = pg_atomic_read_u64(&v->claimed);

	do
	{
		/* As a difference that may be negative: mark may have risen since. */
		if (!beyond && (int64) (old + len - pg_atomic_read_u64(&v->mark)) > (int64) EVBUS_VOLATILE_BYTES)
			return false;
	} while (!pg_atomic_compare_exchange_u64(&v->claimed, &old, old + len));
	return true;
}

/* Where in the ring a position is, or would be; the caller holds the lock. */
static uint64
place(EvbusDb *db, EvbusVolatile *v, int64 position)
{
	position = Max(position, (int64) pg_atomic_read_u64(&v->oldest_position));
	if (position >= (int64) pg_atomic_read_u64(&v->next_position))
		return pg_atomic_read_u64(&v->tail);
	return pg_atomic_read_u64(offset_of(db, v, position));
}

/* Bytes between mark, as it was reckoned last, and claimed. */
static uint64
in_use(EvbusVolatile *v)
{
	uint64		mark = pg_atomic_read_u64(&v->mark);

	return pg_atomic_read_u64(&v->claimed) - mark;
}

/*
 * Find out what is settled: what every subscription of the bus has.  Returns the
 * name of the one that is furthest behind, allocated, or NULL.
 */
static char *
reckon(EvbusDb *db, EvbusVolatile *v, int32 bus_id)
{
	int64		lowest = (int64) pg_atomic_read_u64(&v->next_position);
	MemoryContext context = CurrentMemoryContext;
	MemoryContext mine = AllocSetContextCreate(context, "evbus volatile", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(mine);
	char	   *who = NULL;
	int			n;
	EvbusSubscription *subs;

	pg_memory_barrier();		/* a subscription that we do not see begins behind this */
	subs = evbus_subscriptions(&n);
	for (int i = 0; i < n; i++)
		if (subs[i].bus_id == bus_id)
		{
			int64		position = evbus_unsettled_from(db, &subs[i]);

			if (position >= lowest)
				continue;
			lowest = position;
			who = subs[i].name;
		}
	if (who)
		who = MemoryContextStrdup(context, who);
	LWLockAcquire(&v->lock, LW_EXCLUSIVE);
	if (v->bus_id == bus_id)
	{
		pg_atomic_write_u64(&v->mark, place(db, v, lowest));
		evbus_high_raise(&v->high, in_use(v));
	}
	LWLockRelease(&v->lock);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(mine);
	return who;
}

/* Bytes of a ring in use now. */
uint64
evbus_volatile_used(EvbusDb *db, EvbusVolatile *v, int32 bus_id)
{
	(void) reckon(db, v, bus_id);
	return in_use(v);
}

static void
refuse(EvbusDb *db, const EvbusBus *bus, const char *who)
{
	pg_atomic_fetch_add_u64(&EVBUS_BUS(db, bus->slot)->rejected, 1);
	ereport(ERROR,
			(errcode(ERRCODE_EVBUS_FULL),
			 errmsg("volatile bus \"%s\" is full", bus->name),
			 who ? errdetail("Its ring of %d kB is taken by what subscription \"%s\" has not settled.", evbus_volatile_ring_size, who)
			 : errdetail("Its ring of %d kB is taken by transactions that have published and are still open.", evbus_volatile_ring_size),
			 errhint("Publish again later, or less in one transaction. Its subscriptions have to keep up, or its owner can change overflow with evbus.alter_bus().")));
}

/* Wait until there is space; cancellably, and no longer than overflow_timeout. */
static void
wait_for_space(EvbusDb *db, EvbusVolatile *v, const EvbusBus *bus, Size len)
{
	int64		begun = evbus_uptime();
	EvbusBus	now;			/* it may have got another overflow meanwhile */

	if (evbus_pin_reads(db, bus->slot))
	{
		pg_atomic_fetch_add_u64(&EVBUS_BUS(db, bus->slot)->rejected, 1);
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_FULL),
				 errmsg("volatile bus \"%s\" is full", bus->name),
				 errdetail("This transaction has received or acked events of it, and would wait for its own commit."),
				 errhint("Commit before publishing to the bus.")));
	}
	pg_atomic_fetch_add_u64(&EVBUS_BUS(db, bus->slot)->waits, 1);
	ConditionVariablePrepareToSleep(&db->space_cv);
	for (;;)
	{
		int64		left;
		char	   *who;

		pg_atomic_write_u32(&db->space_awaited, 1);
		pg_memory_barrier();	/* who settles from here on sees that we wait */
		who = reckon(db, v, bus->bus_id);
		if (v->bus_id != bus->bus_id || !evbus_bus_by_id(bus->bus_id, &now))
		{
			ConditionVariableCancelSleep();
			ereport(ERROR,
					(errcode(ERRCODE_EVBUS_NO_BUS),
					 errmsg("bus \"%s\" does not exist any more", bus->name)));
		}
		if (take(v, len, now.overflow == EVBUS_OVERFLOW_DROP))
			break;
		left = begun + now.overflow_timeout - evbus_uptime();
		if (left <= 0 || now.overflow == EVBUS_OVERFLOW_REJECT)
		{
			ConditionVariableCancelSleep();
			refuse(db, bus, who);
		}
		(void) ConditionVariableTimedSleep(&db->space_cv, Min(WAIT_STEP_MS, Max(left / 1000, 1)), evbus_wait_event(EVBUS_WAIT_PUBLISH_SPACE));
	}
	ConditionVariableCancelSleep();
}

/*
 * Take space for an event, to be pushed or given back.  Errors VB014 if there is none,
 * at once or after overflow_timeout, as the bus has it.
 */
void
evbus_volatile_claim(EvbusDb *db, EvbusVolatile *v, const EvbusBus *bus, Size len)
{
	char	   *who;

	if (likely(take(v, len, bus->overflow == EVBUS_OVERFLOW_DROP)))
		return;
	who = reckon(db, v, bus->bus_id);
	if (take(v, len, false))
		return;
	if (bus->overflow == EVBUS_OVERFLOW_REJECT || bus->overflow_timeout == 0)
		refuse(db, bus, who);
	wait_for_space(db, v, bus, len);
}

/* It will not be pushed.  For callbacks. */
void
evbus_volatile_give_back(EvbusDb *db, int ring, Size len)
{
	if (len > 0)
		pg_atomic_fetch_sub_u64(&EVBUS_VOLATILE(db, ring)->claimed, (int64) len);
}

/* A subscription begins there, perhaps where others were done before: what has no owner yet shall not overwrite it. */
void
evbus_volatile_hold(EvbusDb *db, EvbusVolatile *v, int64 position)
{
	uint64		offset;

	LWLockAcquire(&v->lock, LW_EXCLUSIVE);
	offset = place(db, v, position);
	if (offset < pg_atomic_read_u64(&v->mark))
		pg_atomic_write_u64(&v->mark, offset);
	LWLockRelease(&v->lock);
}

/* --------------------------------------------------------------------- push */

static void
put(EvbusVolatile *v, uint64 offset, const char *from, Size len)
{
	evbus_wrap_in(ring_bytes(v), EVBUS_VOLATILE_BYTES, offset, from, len);
}

static void
copy_out(EvbusVolatile *v, uint64 offset, char *to, Size len)
{
	evbus_wrap_out(ring_bytes(v), EVBUS_VOLATILE_BYTES, offset, to, len);
}

/* Readers may have what is below; wake those who wait for it. */
static void
wake(EvbusDb *db, EvbusBusState *bus)
{
	uint32		awaited;

	pg_memory_barrier();		/* who waits and does not see the positions is seen */
	if (pg_atomic_read_u32(&bus->awaited) == 0)
		return;
	awaited = pg_atomic_exchange_u32(&bus->awaited, 0);
	if (awaited & EVBUS_AWAITED_CV)
		ConditionVariableBroadcast(&db->drained_cv);
	if ((awaited & EVBUS_AWAITED_LATCH) && pg_atomic_read_u32(&db->maintainer_sleeps) && db->maintainer_pid != 0)
		SetLatch(&ProcGlobal->allProcs[db->maintainer_procno].procLatch);
}

/*
 * Of a transaction's entries, those for one ring, for which space was taken: give them
 * their positions, and show them.  For commit callbacks: cannot fail, waits for nothing
 * but the lock.
 */
void
evbus_volatile_push(EvbusDb *db, int ring, char *entries, Size len)
{
	EvbusVolatile *v = EVBUS_VOLATILE(db, ring);
	EvbusBusState *bus = NULL;
	Size		mine = 0;
	Size		stale = 0;
	uint64		at;
	int64		oldest;
	int64		position;

	LWLockAcquire(&v->lock, LW_EXCLUSIVE);
	for (Size i = 0; i < len; i += ((EvbusVolatileEntry *) (entries + i))->len)
	{
		EvbusVolatileEntry *entry = (EvbusVolatileEntry *) (entries + i);

		if (entry->ring == ring && entry->epoch == v->epoch)
		{
			mine += entry->len;
			bus = EVBUS_BUS(db, entry->bus_slot);
		}
		else if (entry->ring == ring)
			stale += entry->len;	/* the bus was dropped */
	}
	if (mine > 0)
	{
		at = pg_atomic_read_u64(&v->tail);
		position = (int64) pg_atomic_read_u64(&v->next_position);
		oldest = (int64) pg_atomic_read_u64(&v->oldest_position);
		while (oldest < position && pg_atomic_read_u64(offset_of(db, v, oldest)) + EVBUS_VOLATILE_BYTES < at + mine)
			oldest++;
		pg_atomic_write_u64(&v->oldest_position, (uint64) oldest);
		pg_write_barrier();		/* readers see the warning before the bytes change */
		for (Size i = 0; i < len; i += ((EvbusVolatileEntry *) (entries + i))->len)
		{
			EvbusVolatileEntry *entry = (EvbusVolatileEntry *) (entries + i);

			if (entry->ring != ring || entry->epoch != v->epoch)
				continue;
			entry->position = position;
			pg_atomic_write_u64(offset_of(db, v, position), at);
			put(v, at, (char *) entry, entry->len);
			position++;
			at += entry->len;
		}
		pg_write_barrier();
		pg_atomic_write_u64(&v->tail, at);
		pg_atomic_write_u64(&v->next_position, (uint64) position);
		evbus_bus_raise(bus, v->bus_id, &bus->ticked_position, position);
		evbus_bus_raise(bus, v->bus_id, &bus->next_position, position);
	}
	LWLockRelease(&v->lock);
	evbus_volatile_give_back(db, ring, stale);
	if (mine > 0)
		wake(db, bus);
}

/* --------------------------------------------------------------------- read */

/*
 * Copy the event of a position that was given: its header, and what follows that,
 * allocated.  NULL: it was overwritten.
 */
char *
evbus_volatile_copy(EvbusDb *db, EvbusVolatile *v, int64 position, EvbusVolatileEntry *entry)
{
	uint64		offset;
	char	   *data;

	if (position < (int64) pg_atomic_read_u64(&v->oldest_position))
		return NULL;
	pg_read_barrier();
	offset = pg_atomic_read_u64(offset_of(db, v, position));
	copy_out(v, offset, (char *) entry, sizeof(*entry));
	pg_read_barrier();
	if (position < (int64) pg_atomic_read_u64(&v->oldest_position) || entry->position != position)
		return NULL;
	data = palloc_extended(entry->len - sizeof(*entry), MCXT_ALLOC_HUGE);
	copy_out(v, offset + sizeof(*entry), data, entry->len - sizeof(*entry));
	pg_read_barrier();
	if (position < (int64) pg_atomic_read_u64(&v->oldest_position))
	{
		pfree(data);
		return NULL;
	}
	return data;
}

/* The lowest position of an event published at or after t. */
int64
evbus_volatile_position_at(EvbusDb *db, EvbusVolatile *v, TimestampTz t)
{
	int64		from = evbus_clock_from_time(t);
	int64		next = (int64) pg_atomic_read_u64(&v->next_position);
	int64		at = (int64) pg_atomic_read_u64(&v->oldest_position);

	for (; at < next; at++)
	{
		EvbusVolatileEntry entry;

		copy_out(v, pg_atomic_read_u64(offset_of(db, v, at)), (char *) &entry, sizeof(entry));
		pg_read_barrier();
		if (entry.position == at && entry.event_id >= from &&
			at >= (int64) pg_atomic_read_u64(&v->oldest_position))
			break;
	}
	return at;
}
