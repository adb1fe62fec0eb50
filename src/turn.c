/*-------------------------------------------------------------------------
 * turn.c
 *	  One transaction of the sequencer: positions given, ticks written, and what
 *	  others may see of it.
 *
 * Positions are given in memory first.  What came through the ring may be shown
 * to readers at once (`drained`); everything else when the ticks are committed,
 * because it is found through them.  `ticked`, which lets acks commit, rises in
 * the commit's own callback: whoever dies between the commit and the next line of
 * code would else tick the same positions twice.
 *-------------------------------------------------------------------------
 */
#include "turn.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "point.h"
#include "registry.h"
#include "tick.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

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

/* Make sure that the positions of a bus are in shared memory; false: no such bus. */
bool
evbus_turn_bus(int32 bus_id, int slot)
{
	EvbusBusState *bus = EVBUS_BUS(db, slot);
	int64		next;
	EvbusBus	found;

	if ((int32) pg_atomic_read_u32(&bus->bus_id) == bus_id)
		return true;
	if (!evbus_turn_find_bus(bus_id, &found) || found.slot != slot)
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

/* The next position of the bus is this event's; 0: the bus is gone, nobody reads it. */
int64
evbus_turn_place(int32 bus_id, int slot, int64 id)
{
	return evbus_turn_bus(bus_id, slot) ? place(placed_for(bus_id, slot), id) : 0;
}

/* This one got its position in an earlier turn, which was not committed; ascending. */
void
evbus_turn_place_again(int32 bus_id, int slot, int64 id, int64 position)
{
	Placed	   *p;

	if (position == 0 || (int32) pg_atomic_read_u32(&EVBUS_BUS(db, slot)->bus_id) != bus_id)
		return;
	p = placed_for(bus_id, slot);
	if (p->n == 0)
		p->first_position = p->next_position = position;
	(void) place(p, id);
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

/* Once per sequencer. */
void
evbus_turn_init(EvbusDb *database)
{
	db = database;
	turn_context = AllocSetContextCreate(TopMemoryContext, "evbus turn", ALLOCSET_DEFAULT_SIZES);
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

/*
 * The same at once, and readers may have what is placed: all of it is in the ring.
 * Only their acks wait for the ticks.
 */
void
evbus_turn_show(void)
{
	pg_write_barrier();
	pg_atomic_write_u64(&db->ring_drained, turn_tail);
	pg_write_barrier();
	for (int i = 0; i < evbus_max_buses; i++)
		if (placed[i].bus_id != 0)
			pg_atomic_write_u64(&EVBUS_BUS(db, i)->next_position, (uint64) placed[i].next_position);
	ConditionVariableBroadcast(&db->drained_cv);
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
