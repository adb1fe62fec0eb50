/*-------------------------------------------------------------------------
 * sequencer.c
 *	  The worker that gives positions: one per database.
 *
 * A turn, in this order (why, is in docs/architecture.md):
 *
 *		clock -> slots -> ring's tail -> lost and late flags
 *		-> what the flags name is placed first
 *		-> entries up to that tail get positions; `drained` rises, readers wake
 *		-> ticks are written and committed (asynchronously); in that
 *		   transaction's own commit callback `ticked` rises
 *
 * low_id of a tick says that every committed id below has a position or a row
 * in evbus.late: recovery scans the log from there, whether after a crash, a
 * restart, or a full ring.  It never waits for a heavyweight lock that users hold.
 *
 * Positions given but not yet ticked are in the ring: a sequencer that comes back
 * in the same shared memory finds them there and ticks just those.
 *-------------------------------------------------------------------------
 */
#include "evbus.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "clock.h"
#include "eventlog.h"
#include "internal.h"
#include "late.h"
#include "ledger.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "point.h"
#include "registry.h"
#include "ring.h"
#include "sequencer.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tick.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "worker.h"

#define RECOVERY_CHUNK	20000	/* log rows placed in one transaction */
#define IDLE_MS			1000

/* ms; an open publisher older than this no longer holds low_id back. */
int			evbus_late_after = 10000;

/* Positions given in this turn, one list per bus. */
typedef struct Placed
{
	int32		bus_id;
	int			slot;
	int64		first_position;
	int64		next_position;	/* after what is in ids */
	int64	   *ids;
	int			n;
	int			size;
} Placed;

static EvbusDb *db;
static MemoryContext turn_context;

static Placed *placed;			/* [evbus_max_buses], in turn_context */
static uint64 turn_tail;		/* entries below have been drained this turn; 0: none */
static bool turn_open = false;	/* the commit callback shall raise `ticked` */

/* Recovered ids that may still come through the ring. */
static HTAB *recovered = NULL;
static uint64 *recovered_slots; /* low of each slot that was committing then; 0: not waited for */
static uint64 recovered_tail;	/* drop the set once drained past it; 0: slots not yet clear */

PGDLLEXPORT void evbus_sequencer_main(Datum main_arg);

/* ------------------------------------------------------------------- buses */

/* Make sure that the positions of a bus are in shared memory; false: no such bus. */
static bool
bus_ready(int32 bus_id, int slot)
{
	EvbusBusState *bus = EVBUS_BUS(db, slot);
	int64		next;
	EvbusBus	found;

	if ((int32) pg_atomic_read_u32(&bus->bus_id) == bus_id)
		return true;
	if (!evbus_bus_by_id(bus_id, &found) || found.slot != slot)
		return false;
	next = evbus_tick_next_position(bus_id);
	pg_atomic_write_u32(&bus->bus_id, 0);
	pg_write_barrier();
	for (int i = 0; i < EVBUS_ANCHORS; i++)
		pg_atomic_write_u64(&bus->anchors[i].offset, 0);
	bus->anchor_next = bus->anchor_last = 0;
	pg_atomic_write_u64(&bus->next_position, (uint64) next);
	pg_atomic_write_u64(&bus->ticked_position, (uint64) next);
	pg_write_barrier();
	pg_atomic_write_u32(&bus->bus_id, (uint32) bus_id);
	return true;
}

/* The list of a bus in this turn. */
static Placed *
placed_for(int32 bus_id, int slot)
{
	Placed	   *p = &placed[slot];

	if (p->bus_id != bus_id)
	{
		p->bus_id = bus_id;
		p->slot = slot;
		p->first_position = p->next_position = (int64) pg_atomic_read_u64(&EVBUS_BUS(db, slot)->next_position);
		p->n = 0;
		p->size = 256;
		p->ids = MemoryContextAlloc(turn_context, sizeof(int64) * p->size);
	}
	return p;
}

static int64
place(Placed *p, int64 id)
{
	if (p->n == p->size)
		p->ids = repalloc_huge(p->ids, sizeof(int64) * (p->size *= 2));
	p->ids[p->n++] = id;
	return p->next_position++;
}

/* Let readers find this position in the ring, every so often. */
static void
drop_anchor(EvbusBusState *bus, int64 position, uint64 offset)
{
	EvbusAnchor *anchor;

	if (bus->anchor_next > 0 && offset - bus->anchor_last < EVBUS_RING_BYTES / EVBUS_ANCHORS)
		return;
	anchor = &bus->anchors[bus->anchor_next++ % EVBUS_ANCHORS];
	pg_atomic_write_u64(&anchor->offset, 0);
	pg_write_barrier();
	pg_atomic_write_u64(&anchor->position, (uint64) position);
	pg_write_barrier();
	pg_atomic_write_u64(&anchor->offset, offset + 1);
	bus->anchor_last = offset;
}

/* ---------------------------------------------------------- ticks and commit */

/* Write the ticks of this turn; positions rise in the callback below. */
static void
write_ticks(int64 low_id)
{
	for (int i = 0; i < evbus_max_buses; i++)
		if (placed[i].bus_id != 0 && placed[i].n > 0)
			evbus_tick_write(db, placed[i].bus_id, placed[i].first_position, placed[i].ids, placed[i].n, low_id);
	turn_open = true;
}

static void
sequencer_xact(XactEvent event, void *arg)
{
	if (!turn_open)
		return;
	if (event == XACT_EVENT_COMMIT)
	{
		EVBUS_POINT("sequencer.committed");
		for (int i = 0; i < evbus_max_buses; i++)
		{
			EvbusBusState *bus = EVBUS_BUS(db, i);

			if (placed[i].bus_id == 0)
				continue;
			/* The log has them: also what did not come through the ring may be read now. */
			pg_atomic_write_u64(&bus->next_position, (uint64) placed[i].next_position);
			pg_atomic_write_u64(&bus->ticked_position, (uint64) placed[i].next_position);
		}
		if (turn_tail != 0)
			pg_atomic_write_u64(&db->ring_ticked, turn_tail);
		pg_atomic_write_u64(&db->ticked_lsn, XactLastCommitEnd);
		ConditionVariableBroadcast(&db->drained_cv);
	}
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT)
		turn_open = false;
}

static void
begin_turn(void)
{
	MemoryContextReset(turn_context);
	placed = MemoryContextAllocZero(turn_context, sizeof(Placed) * evbus_max_buses);
	turn_tail = 0;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
}

static void
end_turn(void)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/* ------------------------------------------------------------ slots and low */

/* Lowest clock that an open publisher started from; long ones are flipped to late. */
static uint64
lowest_open(void)
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

static HTAB *
id_set(const char *name, MemoryContext context)
{
	HASHCTL		ctl = {.keysize = sizeof(int64), .entrysize = sizeof(int64), .hcxt = context};

	return hash_create(name, 1024, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* Ids at or above this may still come through the ring; what a snapshot taken now sees. */
static int64
watch_ring(void)
{
	uint64		low = PG_UINT64_MAX;
	uint64		tail;

	for (int i = 0; i < EVBUS_BACKENDS; i++)
	{
		EvbusSlot  *slot = &evbus_slots[i];

		if (pg_atomic_read_u32(&slot->state) == EVBUS_SLOT_COMMITTING &&
			pg_atomic_read_u32(&slot->db) == (uint32) EVBUS_DB_INDEX(db))
		{
			recovered_slots[i] = pg_atomic_read_u64(&slot->low);
			if (recovered_slots[i] != 0)
				low = Min(low, recovered_slots[i]);
		}
	}
	pg_memory_barrier();
	tail = pg_atomic_read_u64(&db->ring_tail);
	for (uint64 at = pg_atomic_read_u64(&db->ring_drained); at < tail;)
	{
		EvbusRingEntry entry;

		if (!evbus_ring_header(db, at, &entry))
			elog(ERROR, "an undrained ring entry was overwritten");
		low = Min(low, (uint64) entry.event_id);
		at += entry.len;
	}
	recovered_tail = 0;
	return low == PG_UINT64_MAX ? PG_INT64_MAX : (int64) low;
}

/* May the set of recovered ids go? */
static void
forget_recovered(void)
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

/*
 * Give positions to ids named by rows of evbus.late, and delete those.  low: what
 * their ticks may claim; 0: no more than the last tick did, for what is in the ring
 * has no tick yet.
 */
static void
place_late(int64 low)
{
	bool		more = true;

	while (more)
	{
		EvbusIdRange *ranges;
		int			n;

		begin_turn();
		if (low == 0)
			low = evbus_tick_low_id();
		n = evbus_late_take(&ranges, &more);
		for (int i = 0; i < n; i++)
		{
			EvbusBus	bus;

			if (!evbus_bus_by_id(ranges[i].bus_id, &bus) || !bus_ready(bus.bus_id, bus.slot))
				continue;		/* dropped: nobody reads it */
			for (int k = 0; k < ranges[i].n; k++)
				(void) place(placed_for(bus.bus_id, bus.slot), ranges[i].first + k);
		}
		if (n > 0)
			write_ticks(low);
		EVBUS_POINT("sequencer.late");
		end_turn();
		evbus_worker_turn();
	}
}

/* Is this id in one of the ranges? */
static bool
in_ranges(int64 id, const EvbusIdRange *ranges, int n)
{
	for (int i = 0; i < n; i++)
		if (id >= ranges[i].first && id < ranges[i].first + ranges[i].n)
			return true;
	return false;
}

/*
 * The one recovery path: whatever the log has from `low` on and no tick names
 * gets positions, in order of id, a chunk a transaction.  Each chunk's snapshot
 * is its own: who commits between them pushes, or sets a flag, later.
 */
static void
recover(int64 low)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "evbus recovery", ALLOCSET_DEFAULT_SIZES);
	HTAB	   *ticked = id_set("evbus ticked ids", context);
	EvbusScanned *found = MemoryContextAlloc(context, sizeof(EvbusScanned) * RECOVERY_CHUNK);
	int64		from = low;
	int64		total = 0;
	int			n;

	begin_turn();
	evbus_tick_ids_from(from, add_id, ticked);
	end_turn();
	do
	{
		EvbusIdRange *late;
		int			n_late;
		int64		watch;

		begin_turn();
		PushActiveSnapshot(RegisterSnapshot(GetLatestSnapshot()));
		watch = watch_ring();	/* after the snapshot: who it sees is committing, or has pushed */
		n_late = evbus_late_peek(&late);
		n = evbus_eventlog_scan(GetActiveSnapshot(), from, found, RECOVERY_CHUNK);
		for (int i = 0; i < n; i++)
		{
			int64		id = found[i].event_id;
			bool		has_tick = hash_search(ticked, &id, HASH_FIND, NULL) != NULL;
			bool		is_late = in_ranges(id, late, n_late);
			EvbusBus	bus;

			from = id + 1;
			if (id >= watch)
			{
				/* Also one that an earlier sequencer has ticked: the ring still has it. */
				if (recovered == NULL)
					recovered = id_set("evbus recovered ids", TopMemoryContext);
				if (has_tick || !is_late)
					add_id(id, recovered);
			}
			if (has_tick || is_late ||
				!evbus_bus_by_id(found[i].bus_id, &bus) || !bus_ready(bus.bus_id, bus.slot))
				continue;
			(void) place(placed_for(bus.bus_id, bus.slot), id);
			total++;
		}
		write_ticks(low);		/* as before: what is in the ring has no tick yet */
		{
			Snapshot	snapshot = GetActiveSnapshot();

			PopActiveSnapshot();
			UnregisterSnapshot(snapshot);
		}
		EVBUS_POINT("sequencer.recovering");
		end_turn();
		evbus_worker_turn();
	} while (n == RECOVERY_CHUNK);
	MemoryContextDelete(context);
	if (total > 0)
		ereport(LOG,
				(errmsg("evbus recovered " INT64_FORMAT " events from the log", total)));
}

/* ------------------------------------------------------------------- drain */

/* Give positions to the entries below tail and tick them; false: there were none. */
static bool
drain(uint64 tail, int64 low)
{
	uint64		at = pg_atomic_read_u64(&db->ring_drained);

	if (at == tail)
		return false;
	begin_turn();
	while (at < tail)
	{
		EvbusRingEntry entry;
		int64		position = 0;

		if (!evbus_ring_header(db, at, &entry))
			elog(ERROR, "an undrained ring entry was overwritten");
		if (recovered && hash_search(recovered, &entry.event_id, HASH_FIND, NULL))
			;					/* has its position; readers find it in the log */
		else if (bus_ready(entry.bus_id, entry.bus_slot))
		{
			position = place(placed_for(entry.bus_id, entry.bus_slot), entry.event_id);
			drop_anchor(EVBUS_BUS(db, entry.bus_slot), position, at);
		}
		evbus_ring_set_position(db, at, position);
		at += entry.len;
	}
	turn_tail = tail;

	/* Readers may have them from here on; only their acks wait for the tick. */
	pg_write_barrier();
	pg_atomic_write_u64(&db->ring_drained, tail);
	pg_write_barrier();
	for (int i = 0; i < evbus_max_buses; i++)
		if (placed[i].bus_id != 0)
			pg_atomic_write_u64(&EVBUS_BUS(db, i)->next_position, (uint64) placed[i].next_position);
	ConditionVariableBroadcast(&db->drained_cv);
	if (pg_atomic_read_u32(&db->maintainer_sleeps) && db->maintainer_pid != 0)
		SetLatch(&ProcGlobal->allProcs[db->maintainer_procno].procLatch);

	EVBUS_POINT("sequencer.drained");
	write_ticks(low);
	EVBUS_POINT("sequencer.ticks");
	end_turn();
	return true;
}

/* An earlier sequencer gave positions and died before their tick was committed. */
static void
tick_again(int64 low)
{
	uint64		at = pg_atomic_read_u64(&db->ring_ticked);
	uint64		drained = pg_atomic_read_u64(&db->ring_drained);

	if (at == drained)
		return;
	begin_turn();
	while (at < drained)
	{
		EvbusRingEntry entry;
		Placed	   *p;

		if (!evbus_ring_header(db, at, &entry))
			elog(ERROR, "an unticked ring entry was overwritten");
		at += entry.len;
		if (entry.position == 0 || (int32) pg_atomic_read_u32(&EVBUS_BUS(db, entry.bus_slot)->bus_id) != entry.bus_id)
			continue;
		p = placed_for(entry.bus_id, entry.bus_slot);
		if (p->n == 0)
			p->first_position = p->next_position = entry.position;
		(void) place(p, entry.event_id);
	}
	turn_tail = drained;
	write_ticks(low);
	end_turn();
}

/* One turn, as told at the top; false: nothing to do. */
static bool
turn(void)
{
	uint64		clock = pg_atomic_read_u64(&db->clock);
	uint64		low;
	uint64		tail;

	pg_memory_barrier();
	EVBUS_POINT("sequencer.clock");
	low = Min(clock, lowest_open());
	EVBUS_POINT("sequencer.slots");
	pg_memory_barrier();
	tail = pg_atomic_read_u64(&db->ring_tail);
	EVBUS_POINT("sequencer.tail");
	pg_memory_barrier();
	if (pg_atomic_read_u32(&db->late) || pg_atomic_read_u32(&db->lost))
		pg_atomic_write_u32(&db->recovered, 0);	/* before the flags go: who waits for all to be placed waits on */
	if (pg_atomic_read_u32(&db->late))
	{
		pg_atomic_write_u32(&db->late, 0);
		pg_memory_barrier();
		/* All below that tail ticked?  Then this turn's low holds here, too. */
		place_late(tail == pg_atomic_read_u64(&db->ring_ticked) ? (int64) Min(low, pg_atomic_read_u64(&db->lost_low)) : 0);
	}
	if (pg_atomic_read_u32(&db->lost))
	{
		uint64		lost_low;
		int64		last_low;

		pg_atomic_write_u32(&db->lost, 0);
		pg_memory_barrier();
		lost_low = pg_atomic_exchange_u64(&db->lost_low, EVBUS_NO_LSN_ID);
		if (lost_low != EVBUS_NO_LSN_ID)
		{
			begin_turn();
			last_low = evbus_tick_low_id();
			end_turn();
			recover(Min((int64) lost_low, last_low));
		}
	}
	pg_atomic_write_u32(&db->recovered, 1);
	low = Min(low, pg_atomic_read_u64(&db->lost_low));
	forget_recovered();
	return drain(tail, (int64) low);
}

/* -------------------------------------------------------------------- main */

static void
leave(int code, Datum arg)
{
	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	if (db->sequencer_pid == MyProcPid)
	{
		db->sequencer_pid = 0;
		pg_atomic_write_u32(&db->sequencer_procno, 0);
	}
	LWLockRelease(&evbus_shared->lock);
	evbus_launcher_wake();
}

/* Positions, cursors, and what the last server left without a position. */
static void
start(void)
{
	int64		low;

	begin_turn();
	evbus_clock_ensure(db);
	low = evbus_tick_low_id();
	if (pg_atomic_read_u32(&db->ready) == 0)
	{
		int			n;
		EvbusBus   *buses = evbus_buses(&n);

		for (int i = 0; i < n; i++)
			(void) bus_ready(buses[i].bus_id, buses[i].slot);
		evbus_ledger_attach_all(db);
		end_turn();
		pg_write_barrier();
		pg_atomic_write_u32(&db->ready, 1);
		ConditionVariableBroadcast(&db->drained_cv);
		place_late(0);
		recover(low);
	}
	else
	{
		end_turn();
		tick_again(low);
		/* A recovery may have been cut short: it is safe to do it again. */
		place_late(0);
		recover(low);
	}
	pg_atomic_write_u32(&db->recovered, 1);
}

void
evbus_sequencer_main(Datum main_arg)
{
	bool		mine = false;

	evbus_worker_connect(DatumGetObjectId(main_arg), InvalidOid);
	SetConfigOption("synchronous_commit", "off", PGC_SUSET, PGC_S_OVERRIDE);
	turn_context = AllocSetContextCreate(TopMemoryContext, "evbus turn", ALLOCSET_DEFAULT_SIZES);
	recovered_slots = MemoryContextAllocZero(TopMemoryContext, sizeof(uint64) * EVBUS_BACKENDS);

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (!evbus_installed())
	{
		PopActiveSnapshot();
		CommitTransactionCommand();
		proc_exit(0);			/* the launcher was only asking */
	}
	db = evbus_db();
	/* We see what is committed: an area that was in use under another oid is of a dropped extension. */
	for (int i = 0; i < evbus_max_databases; i++)
		if (evbus_dbs[i].dboid == MyDatabaseId && &evbus_dbs[i] != db && pg_atomic_read_u32(&evbus_dbs[i].ready))
			evbus_dbs[i].gone = true;
	PopActiveSnapshot();
	CommitTransactionCommand();

	before_shmem_exit(leave, (Datum) 0);
	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	if (db->sequencer_pid == 0)
	{
		db->sequencer_pid = MyProcPid;
		mine = true;
	}
	LWLockRelease(&evbus_shared->lock);
	if (!mine)
		proc_exit(0);			/* one is enough */
	pg_atomic_write_u32(&db->sequencer_procno, EvbusMyProcno() + 1);
	RegisterXactCallback(sequencer_xact, NULL);
	pg_atomic_write_u32(&db->recovered, 0);
	pgstat_report_activity(STATE_RUNNING, "starting");
	start();
	pgstat_report_activity(STATE_IDLE, "waiting for commits");

	for (;;)
	{
		evbus_worker_turn();
		if (turn())
			continue;
		pgstat_report_stat(false);

		StartTransactionCommand();
		if (evbus_worker_unwanted(db))
			proc_exit(0);
		CommitTransactionCommand();

		pg_atomic_write_u32(&db->sequencer_sleeps, 1);
		pg_memory_barrier();	/* who pushes from here on wakes us */
		if (pg_atomic_read_u64(&db->ring_tail) == pg_atomic_read_u64(&db->ring_drained) &&
			!pg_atomic_read_u32(&db->lost) && !pg_atomic_read_u32(&db->late))
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, IDLE_MS, PG_WAIT_EXTENSION);
		pg_atomic_write_u32(&db->sequencer_sleeps, 0);
		ResetLatch(MyLatch);
	}
}
