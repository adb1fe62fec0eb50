/*-------------------------------------------------------------------------
 * turn.c
 *	  What the sequencer does to what it found: positions given, shown to
 *	  readers, and written down in ticks.
 *
 * What came through the ring gets its positions in memory and is shown at once
 * (`drained`); a transaction later on writes the ticks of all that was shown
 * meanwhile, and reads them from the ring, so nothing is remembered twice.  What
 * came otherwise gets positions in such a transaction and is shown when it is
 * committed, because readers find it through its tick.  `ticked`, which lets acks
 * commit, rises in the commit's own callback: whoever dies between the commit and
 * the next line of code would else tick the same positions twice.
 *-------------------------------------------------------------------------
 */
#include "turn.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "point.h"
#include "registry.h"
#include "ring.h"
#include "stat_outbox.h"
#include "stats.h"
#include "tick.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* Positions given and not yet shown, by slot of the bus. */
typedef struct Given
{
	int32		bus_id;			/* 0: none */
	int64		next_position;
} Given;

static Given *given;			/* [evbus_max_buses] */
static int *given_slots;		/* those in use */
static int	n_given = 0;

/* Positions to be ticked in this transaction, one list per bus. */
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
static uint64 turn_tail;		/* entries below are drained by this turn; 0: none */
static int32 missing_bus;		/* looked for in vain in this turn; 0: none */
static bool turn_open = false;	/* the commit callback shall raise `ticked` */

/* ------------------------------------------------------------------- buses */

/* To pass an event over is final, so look twice: pg_restore tells nobody of its rows. */
bool
evbus_turn_find_bus(int32 bus_id, EvbusBus *bus)
{
	if (evbus_bus_by_id(bus_id, bus))
		return true;
	if (bus_id == missing_bus)
		return false;
	evbus_registry_forget();
	if (evbus_bus_by_id(bus_id, bus))
		return true;
	missing_bus = bus_id;
	return false;
}

/* Read the positions of a bus into shared memory; false: no such bus. */
static bool
load_bus(int32 bus_id, int slot)
{
	EvbusBusState *bus = EVBUS_BUS(db, slot);
	int64		next;
	EvbusBus	found;

	if (!evbus_turn_find_bus(bus_id, &found) || found.slot != slot || found.is_volatile)
		return false;
	next = evbus_tick_next_position(bus_id);
	pg_atomic_write_u32(&bus->bus_id, 0);
	pg_write_barrier();
	for (int i = 0; i < EVBUS_ANCHORS; i++)
		pg_atomic_write_u64(&bus->anchors[i].offset, 0);
	bus->anchor_next = bus->anchor_last = 0;
	pg_atomic_write_u32(&bus->ring, 0);
	pg_atomic_write_u64(&bus->next_position, (uint64) next);
	pg_atomic_write_u64(&bus->ticked_position, (uint64) next);
	pg_write_barrier();
	pg_atomic_write_u32(&bus->bus_id, (uint32) bus_id);
	/* What comes now is not older than this moment: nobody has noted so before (stat_show.c). */
	if (evbus_track_statistics)
		evbus_stat_add_one(EVBUS_STAT_BUS(db, slot), bus_id, EVBUS_STAT_LAG, next);
	return true;
}

/* Make sure that the positions of a bus are in shared memory; false: no such bus. */
bool
evbus_turn_bus(int32 bus_id, int slot)
{
	bool		found;

	if ((int32) pg_atomic_read_u32(&EVBUS_BUS(db, slot)->bus_id) == bus_id)
		return true;
	if (IsTransactionState())
		return load_bus(bus_id, slot);
	evbus_turn_begin();
	found = load_bus(bus_id, slot);
	evbus_turn_end();
	return found;
}

/* The list of a bus in this transaction. */
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

/* The next position of the bus is this event's; 0: the bus is gone, nobody reads it. */
int64
evbus_turn_place(int32 bus_id, int slot, int64 id)
{
	return evbus_turn_bus(bus_id, slot) ? place(placed_for(bus_id, slot), id) : 0;
}

/*
 * The same for an entry of the ring, in no transaction: the position is kept in
 * the ring, and shown with evbus_turn_show().
 */
int64
evbus_turn_give(int32 bus_id, int slot)
{
	Given	   *g = &given[slot];

	if (!evbus_turn_bus(bus_id, slot))
		return 0;
	if (g->bus_id == 0)
		given_slots[n_given++] = slot;
	if (g->bus_id != bus_id)	/* or the slot is another bus's by now */
	{
		g->bus_id = bus_id;
		g->next_position = (int64) pg_atomic_read_u64(&EVBUS_BUS(db, slot)->next_position);
	}
	return g->next_position++;
}

/*
 * All entries below tail have their positions: readers may have them.  Only acks
 * wait for the ticks.  Returns who waits for them (EVBUS_AWAITED_*); those on
 * drained_cv are awake.
 */
uint32
evbus_turn_show(uint64 tail)
{
	uint32		awaited = 0;

	pg_write_barrier();
	pg_atomic_write_u64(&db->ring_drained, tail);
	pg_write_barrier();
	for (int i = 0; i < n_given; i++)
	{
		Given	   *g = &given[given_slots[i]];
		EvbusBusState *bus = EVBUS_BUS(db, given_slots[i]);

		evbus_bus_raise(bus, g->bus_id, &bus->next_position, g->next_position);
		awaited |= pg_atomic_exchange_u32(&bus->awaited, 0);	/* a barrier: who looks in vain after this is seen */
		g->bus_id = 0;
	}
	n_given = 0;
	if (awaited & EVBUS_AWAITED_CV)
		ConditionVariableBroadcast(&db->drained_cv);
	return awaited;
}

/* Let readers find this position in the ring, every so often. */
void
evbus_turn_anchor(int bus_slot, int64 position, uint64 offset)
{
	EvbusBusState *bus = EVBUS_BUS(db, bus_slot);
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

/* Give positions to what a row of evbus.late names. */
void
evbus_turn_place_row(const EvbusLateRow *row)
{
	for (int i = 0; i < row->n_ranges; i++)
	{
		EvbusBus	bus;

		if (evbus_turn_find_bus(row->ranges[i].bus_id, &bus))
			for (int k = 0; k < row->ranges[i].n; k++)
				(void) evbus_turn_place(bus.bus_id, bus.slot, row->ranges[i].first + k);
	}
}

/* ---------------------------------------------------------- ticks and commit */

static void
turn_xact(XactEvent event, void *arg)
{
	if (!turn_open)
		return;
	if (event == XACT_EVENT_COMMIT)
	{
		EVBUS_POINT("sequencer.committed");
		if (turn_tail != 0)
		{
			pg_atomic_write_u64(&db->ring_drained, turn_tail);
			pg_write_barrier();
		}
		for (int i = 0; i < evbus_max_buses; i++)
		{
			EvbusBusState *bus = EVBUS_BUS(db, i);

			if (placed[i].bus_id == 0)
				continue;
			/* The log has them: also what did not come through the ring may be read now. */
			evbus_bus_raise(bus, placed[i].bus_id, &bus->next_position, placed[i].next_position);
			evbus_bus_raise(bus, placed[i].bus_id, &bus->ticked_position, placed[i].next_position);
		}
		if (turn_tail != 0)
		{
			/* What is in use only grows until now. */
			evbus_high_raise(&db->high[EVBUS_AREA_RING], pg_atomic_read_u64(&db->ring_tail) - pg_atomic_read_u64(&db->ring_ticked));
			pg_atomic_write_u64(&db->ring_ticked, turn_tail);
		}
		pg_atomic_write_u64(&db->ticked_lsn, XactLastCommitEnd);
		ConditionVariableBroadcast(&db->drained_cv);
	}
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT)
		turn_open = false;
}

/* Once per sequencer. */
void
evbus_turn_init(EvbusDb *database)
{
	db = database;
	turn_context = AllocSetContextCreate(TopMemoryContext, "evbus turn", ALLOCSET_DEFAULT_SIZES);
	given = MemoryContextAllocZero(TopMemoryContext, sizeof(Given) * evbus_max_buses);
	given_slots = MemoryContextAlloc(TopMemoryContext, sizeof(int) * evbus_max_buses);
	RegisterXactCallback(turn_xact, NULL);
}

void
evbus_turn_begin(void)
{
	MemoryContextReset(turn_context);
	placed = MemoryContextAllocZero(turn_context, sizeof(Placed) * evbus_max_buses);
	turn_tail = 0;
	missing_bus = 0;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
}

void
evbus_turn_end(void)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/* The ring is drained up to there, once the ticks are committed. */
void
evbus_turn_drained(uint64 tail)
{
	turn_tail = tail;
}

/* Write the ticks of this turn; false: nothing was placed. */
bool
evbus_turn_tick(int64 low_id)
{
	bool		any = false;

	for (int i = 0; i < evbus_max_buses; i++)
		if (placed[i].bus_id != 0 && placed[i].n > 0)
		{
			evbus_tick_write(db, placed[i].bus_id, placed[i].first_position, placed[i].ids, placed[i].n, low_id);
			any = true;
		}
	turn_open = true;
	return any;
}

/*
 * Write down the positions of what is shown and not yet ticked, also where an
 * earlier sequencer gave them; false: all of it was passed over.
 */
bool
evbus_turn_tick_ring(int64 low_id)
{
	uint64		drained = pg_atomic_read_u64(&db->ring_drained);
	bool		any;

	evbus_turn_begin();
	for (uint64 at = pg_atomic_read_u64(&db->ring_ticked); at < drained;)
	{
		EvbusRingEntry buffer;
		const EvbusRingEntry *entry = evbus_ring_peek(db, at, &buffer);
		Placed	   *p;

		if (entry == NULL)
			elog(ERROR, "an unticked ring entry was overwritten");
		at += entry->len;
		if (entry->position == 0 ||
			(int32) pg_atomic_read_u32(&EVBUS_BUS(db, entry->bus_slot)->bus_id) != entry->bus_id)
			continue;
		p = placed_for(entry->bus_id, entry->bus_slot);
		if (p->n == 0)
			p->first_position = p->next_position = entry->position;
		(void) place(p, entry->event_id);
	}
	evbus_turn_drained(drained);
	any = evbus_turn_tick(low_id);
	EVBUS_POINT("sequencer.ticks");
	evbus_turn_end();
	return any;
}
