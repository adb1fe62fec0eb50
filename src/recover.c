/*-------------------------------------------------------------------------
 * recover.c
 *	  The one recovery path: after a crash, a restart, a promotion, a restore, and
 *	  where the ring was full, events get their positions from the log.
 *
 * The newest tick says from where (low_id).  What the log has from there and no
 * tick names gets positions, in bounded chunks.  Events found there while
 * publishers are at work may come through the ring as well: they are kept in a
 * set until nobody who was committing then still is, and the ring is drained past
 * its tail of that moment.
 *-------------------------------------------------------------------------
 */
#include "recover.h"

#include "eventlog.h"
#include "late.h"
#include "point.h"
#include "progress.h"
#include "registry.h"
#include "ring.h"
#include "tick.h"
#include "turn.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "worker.h"

#define RECOVERY_CHUNK	20000	/* log rows placed in one transaction */

/* ms; an open publisher older than this no longer holds low_id back. */
int			evbus_late_after = 10000;

static EvbusDb *db;

/* Recovered ids that may still come through the ring. */
static HTAB *recovered = NULL;
static uint64 *recovered_slots; /* low of each slot that was committing then; 0: not waited for */
static uint64 recovered_tail;	/* drop the set once drained past it; 0: slots not yet clear */

/* Once per sequencer. */
void
evbus_recover_init(EvbusDb *database)
{
	db = database;
	recovered_slots = MemoryContextAllocZero(TopMemoryContext, sizeof(uint64) * EVBUS_BACKENDS);
}

/* ------------------------------------------------------------ slots and low */

/* Lowest clock that an open publisher started from; long ones are flipped to late. */
uint64
evbus_lowest_open(void)
{
	uint64		low = PG_UINT64_MAX;
	TimestampTz too_old = GetCurrentTimestamp() - (int64) evbus_late_after * 1000;

	for (int i = 0; i < EVBUS_BACKENDS; i++)
	{
		EvbusSlot  *slot = &evbus_slots[i];
		uint32		state = pg_atomic_read_u32(&slot->state);
		uint64		from;

		if (state == EVBUS_SLOT_IDLE || state == EVBUS_SLOT_LATE ||
			pg_atomic_read_u32(&slot->db) != (uint32) EVBUS_DB_INDEX(db))
			continue;
		pg_read_barrier();
		from = pg_atomic_read_u64(&slot->low);
		if (from == 0)
			continue;			/* just cleared: it has pushed */
		if (state == EVBUS_SLOT_OPEN && (TimestampTz) pg_atomic_read_u64(&slot->opened_at) < too_old &&
			pg_atomic_compare_exchange_u32(&slot->state, &state, EVBUS_SLOT_LATE))
			continue;
		low = Min(low, from);
	}
	return low;
}

/* --------------------------------------------------------------- recovery */

static void
add_id(int64 id, void *table)
{
	(void) hash_search((HTAB *) table, &id, HASH_ENTER, NULL);
}

static void
add_ticked(int64 id, void *table)
{
	add_id(id, table);
	evbus_progress_add(1);
}

static HTAB *
id_set(const char *name, MemoryContext context)
{
	HASHCTL		ctl = {.keysize = sizeof(int64), .entrysize = sizeof(int64), .hcxt = context};

	return hash_create(name, 1024, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/*
 * After a snapshot: slots, then the ring.  Returns the lowest id that the snapshot
 * sees and that may still come through the ring.  *low becomes the lowest id in use
 * that has neither a tick nor a late row, except for what the caller places himself:
 * whoever takes ids from here on takes higher ones than the snapshot sees.
 */
static int64
watch_ring(uint64 *low)
{
	uint64		watch = PG_UINT64_MAX;
	uint64		drained = pg_atomic_read_u64(&db->ring_drained);
	uint64		tail;

	*low = evbus_lowest_open();
	for (int i = 0; i < EVBUS_BACKENDS; i++)
	{
		EvbusSlot  *slot = &evbus_slots[i];

		if (pg_atomic_read_u32(&slot->state) == EVBUS_SLOT_COMMITTING &&
			pg_atomic_read_u32(&slot->db) == (uint32) EVBUS_DB_INDEX(db))
		{
			recovered_slots[i] = pg_atomic_read_u64(&slot->low);
			if (recovered_slots[i] != 0)
				watch = Min(watch, recovered_slots[i]);
		}
	}
	pg_memory_barrier();
	tail = pg_atomic_read_u64(&db->ring_tail);
	for (uint64 at = pg_atomic_read_u64(&db->ring_ticked); at < tail;)
	{
		EvbusRingEntry entry;

		if (!evbus_ring_header(db, at, &entry))
			elog(ERROR, "an unticked ring entry was overwritten");
		*low = Min(*low, (uint64) entry.event_id);
		if (at >= drained)
			watch = Min(watch, (uint64) entry.event_id);
		at += entry.len;
	}
	*low = Min(*low, pg_atomic_read_u64(&db->lost_low));
	recovered_tail = 0;
	return watch == PG_UINT64_MAX ? PG_INT64_MAX : (int64) watch;
}

/* Is this entry of the ring to be passed over?  Readers find it in the log. */
bool
evbus_recovered(int64 id)
{
	return recovered != NULL && hash_search(recovered, &id, HASH_FIND, NULL) != NULL;
}

/* May the set of recovered ids go? */
void
evbus_recovered_forget(void)
{
	if (recovered == NULL)
		return;
	if (recovered_tail == 0)
	{
		for (int i = 0; i < EVBUS_BACKENDS; i++)
			if (recovered_slots[i] != 0)
			{
				if (pg_atomic_read_u32(&evbus_slots[i].state) == EVBUS_SLOT_COMMITTING &&
					pg_atomic_read_u64(&evbus_slots[i].low) == recovered_slots[i])
					return;
				recovered_slots[i] = 0;
			}
		pg_memory_barrier();
		recovered_tail = pg_atomic_read_u64(&db->ring_tail) + 1;
	}
	if (pg_atomic_read_u64(&db->ring_drained) + 1 >= recovered_tail)
	{
		hash_destroy(recovered);
		recovered = NULL;
	}
}

static int
range_by_first(const void *a, const void *b)
{
	int64		x = ((const EvbusIdRange *) a)->first;
	int64		y = ((const EvbusIdRange *) b)->first;

	return x < y ? -1 : x > y;
}

/* All ranges that rows name, ascending. */
static EvbusIdRange *
sorted_ranges(const EvbusLateRow *rows, int n, int *n_ranges)
{
	EvbusIdRange *all;

	*n_ranges = 0;
	for (int i = 0; i < n; i++)
		*n_ranges += rows[i].n_ranges;
	all = palloc_extended(sizeof(EvbusIdRange) * Max(*n_ranges, 1), MCXT_ALLOC_HUGE);
	*n_ranges = 0;
	for (int i = 0; i < n; i++)
	{
		memcpy(all + *n_ranges, rows[i].ranges, sizeof(EvbusIdRange) * rows[i].n_ranges);
		*n_ranges += rows[i].n_ranges;
	}
	qsort(all, *n_ranges, sizeof(EvbusIdRange), range_by_first);
	return all;
}

/* Is this id in one of n ascending ranges? */
static bool
in_ranges(int64 id, const EvbusIdRange *ranges, int n)
{
	int			lo = 0;

	while (lo < n)
	{
		int			mid = lo + (n - lo) / 2;

		if (ranges[mid].first > id)
			n = mid;
		else if (ranges[mid].first + ranges[mid].n <= id)
			lo = mid + 1;
		else
			return true;
	}
	return false;
}

/* One chunk of evbus_recover(), from *from on; false: it was the last. */
static bool
recover_chunk(int64 *from, int64 bound, uint64 *low, HTAB *ticked, EvbusScanned *found, int64 *total)
{
	Snapshot	snapshot;
	EvbusLateRow *rows;
	EvbusIdRange *late;
	uint64		in_use;
	int64		watch;
	int			n_rows;
	int			take;
	int			r = 0;
	int			n_late;
	int			n;
	bool		more;

	evbus_turn_begin();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	PushActiveSnapshot(snapshot);
	watch = watch_ring(&in_use);
	n = evbus_eventlog_scan(snapshot, *from, found, RECOVERY_CHUNK);
	more = n == RECOVERY_CHUNK && found[n - 1].event_id <= bound;
	n_rows = evbus_late_read(more ? found[n - 1].event_id : PG_INT64_MAX, 0, &rows);
	take = evbus_late_batch(rows, n_rows, bound);
	late = sorted_ranges(rows, n_rows, &n_late);
	for (int i = 0; i < n; i++)
	{
		int64		id = found[i].event_id;
		bool		has_tick = hash_search(ticked, &id, HASH_FIND, NULL) != NULL;
		bool		is_late = in_ranges(id, late, n_late);
		EvbusBus	bus;

		if (id > bound)
			break;
		while (r < take && rows[r].late_id < id)
			evbus_turn_place_row(&rows[r++]);
		if (r < n_rows && rows[r].late_id < id)
		{
			more = true;		/* enough rows for one transaction: here goes the next on */
			break;
		}
		*from = id + 1;
		evbus_progress_add(1);
		if (id >= watch)
		{
			/* Also one that an earlier sequencer has ticked: the ring still has it. */
			if (recovered == NULL)
				recovered = id_set("evbus recovered ids", TopMemoryContext);
			if (has_tick || !is_late)
				add_id(id, recovered);
		}
		if (!has_tick && !is_late && evbus_turn_find_bus(found[i].bus_id, &bus) &&
			evbus_turn_place(bus.bus_id, bus.slot, id) > 0)
			(*total)++;
	}
	while (!more && r < take)
		evbus_turn_place_row(&rows[r++]);
	if (!more && r < n_rows)
	{
		more = rows[r].late_id <= bound;
		pg_atomic_write_u32(&db->late, 1);	/* the others are for a turn with a later bound */
	}
	evbus_late_delete(rows, r);
	*low = Max(*low, (uint64) Min((uint64) *from, in_use));
	(void) evbus_turn_tick((int64) *low);
	PopActiveSnapshot();
	UnregisterSnapshot(snapshot);
	EVBUS_POINT("sequencer.recovering");
	evbus_turn_end();
	return more;
}

/*
 * The one recovery path: whatever the log has from `low` on and no tick names
 * gets positions, in order of id, and rows of evbus.late where their keys say; a
 * chunk a transaction, each with a snapshot of its own.
 *
 * Nothing above the clock of the beginning is placed.  So who precedes one of
 * those that are placed was visible already to the first snapshot, and has a
 * lower id; what is above pushes, or sets a flag, later.
 */
void
evbus_recover(int64 from)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "evbus recovery", ALLOCSET_DEFAULT_SIZES);
	HTAB	   *ticked = id_set("evbus ticked ids", context);
	EvbusScanned *found = MemoryContextAlloc(context, sizeof(EvbusScanned) * RECOVERY_CHUNK);
	int64		bound = (int64) pg_atomic_read_u64(&db->clock);
	uint64		low = (uint64) from;
	int64		total = 0;

	pg_memory_barrier();
	evbus_turn_begin();
	evbus_progress_phase(EVBUS_PHASE_TICKS, 0, EVBUS_UNKNOWN);
	evbus_tick_ids_from(from, add_ticked, ticked);
	evbus_turn_end();
	evbus_progress_phase(EVBUS_PHASE_PLACING, 0, EVBUS_UNKNOWN);
	while (recover_chunk(&from, bound, &low, ticked, found, &total))
		evbus_worker_turn();
	MemoryContextDelete(context);
	if (total > 0)
		ereport(LOG,
				(errmsg("evbus recovered " INT64_FORMAT " events from the log", total)));
}

