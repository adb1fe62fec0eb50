/*-------------------------------------------------------------------------
 * flow.c
 *	  What holds publishers up, where that was asked for: rates, and a full bus.
 *
 * All of it happens in the call that publishes, before it opens a slot or takes an
 * id: a commit can neither fail nor wait.  A bus without limits costs one branch.
 *
 * A rate is one number in shared memory: the moment until which what it gave is used
 * up.  Who publishes n events moves it on by n/rate seconds by compare-and-swap, if
 * it is not too far ahead; a pause lets it fall behind, by a burst at most.  (The
 * generic cell rate algorithm, ITU-T I.371, which is a token bucket without
 * tokens.)  More events at once than a burst wait for a full one, and are then
 * paid for afterwards, so the average holds whatever batches there are.
 *
 * A backlog is what a subscription has not done, and what open transactions may
 * add to it, which they promise first, and look then: so of two that come at once
 * one sees the other.  A promise ends when the events are in the ring.  To know
 * how far a subscription is takes its lock, so what room was found is kept by the
 * process, and used until the positions that were given since have used it up.
 * Close to the limit, what is in the ring without positions may matter: then the
 * sequencer is waited for.
 *
 * Who waits polls: nobody who acks shall have to look for publishers.
 *-------------------------------------------------------------------------
 */
#include "flow.h"

#include "clock.h"
#include "cursor.h"
#include "ledger.h"
#include "miscadmin.h"
#include "pin.h"
#include "ring.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "wait.h"

#define NANOSECONDS		INT64CONST(1000000000)
#define SIZES_MAX		4096	/* events that an average is of */
#define LATE_WAIT_MS	5000
#define WAIT_MIN_MS		1
#define LOOK_AGAIN		(100 * 1000)	/* microseconds; of who waits for a rate, whether it is still that */
#define WAIT_MAX_MS		32		/* naps of who waits for space, doubling */

/* What the current transaction has promised, by level of subtransactions; a stack. */
typedef struct Promise
{
	int			nesting;
	int			bus_slot;
	EvbusDb    *db;
	int64		n;
} Promise;

static Promise *promises;
static int	n_promises = 0;
static int	max_promises = 0;

/* Room that was found: up to this position of the bus, as long as the registry does not change. */
typedef struct Room
{
	EvbusDb    *db;
	int32		bus_id;
	uint64		generation;
	int64		until;
} Room;

/* Place of the bus whose deliveries this process hands to a handler; -1: none. */
static int	handled_bus = -1;

#define ROOMS			8
static Room rooms[ROOMS];

/* -------------------------------------------------------------------- rates */

/*
 * Take n events of a rate; 0: they are the caller's, else the nanoseconds until they
 * may be.  burst: so many may come at once, after a pause.
 */
static int64
take_rate(pg_atomic_uint64 *at, int64 n, int rate, int burst)
{
	int64		each = NANOSECONDS / rate;
	int64		depth = (int64) burst * NANOSECONDS / rate;
	int64		now = evbus_uptime() * 1000;
	uint64		used = pg_atomic_read_u64(at);

	for (;;)
	{
		int64		from = Max((int64) used, now - depth);
		int64		wait = from + Min(n * each, depth) - now;

		if (wait > 0)
			return wait;
		if (pg_atomic_compare_exchange_u64(at, &used, (uint64) (from + n * NANOSECONDS / rate)))
			return 0;
	}
}

/* ------------------------------------------------------------------ backlog */

static void
promise(EvbusDb *db, int bus_slot, int64 n)
{
	int			nesting = GetCurrentTransactionNestLevel();
	Promise    *top = n_promises > 0 ? &promises[n_promises - 1] : NULL;

	if (top == NULL || top->nesting != nesting || top->bus_slot != bus_slot || top->db != db)
	{
		if (n_promises == max_promises)
		{
			int			wanted = Max(max_promises * 2, 8);

			promises = promises ? repalloc(promises, sizeof(Promise) * wanted)
				: MemoryContextAlloc(TopMemoryContext, sizeof(Promise) * wanted);
			max_promises = wanted;
		}
		top = &promises[n_promises++];
		*top = (Promise) {.nesting = nesting, .bus_slot = bus_slot, .db = db};
	}
	top->n += n;
	pg_atomic_fetch_add_u64(&EVBUS_BUS(db, bus_slot)->promised, n);
}

/* Of the promise just made. */
static void
take_back(int64 n)
{
	Promise    *top = &promises[n_promises - 1];

	top->n -= n;
	pg_atomic_fetch_sub_u64(&EVBUS_BUS(top->db, top->bus_slot)->promised, n);
}

/* End the promises from `first` on. */
static void
drop_promises(int first)
{
	while (n_promises > first)
	{
		Promise    *top = &promises[--n_promises];

		pg_atomic_fetch_sub_u64(&EVBUS_BUS(top->db, top->bus_slot)->promised, top->n);
	}
}

/* What this transaction has promised the bus. */
static int64
own_promises(const EvbusDb *db, int bus_slot)
{
	int64		sum = 0;

	for (int i = 0; i < n_promises; i++)
		if (promises[i].db == db && promises[i].bus_slot == bus_slot)
			sum += promises[i].n;
	return sum;
}

static Room *
room_of(EvbusDb *db, const EvbusBus *bus)
{
	Room	   *room = &rooms[bus->bus_id % ROOMS];

	if (room->db != db || room->bus_id != bus->bus_id || room->generation != evbus_registry_generation())
		*room = (Room) {.db = db, .bus_id = bus->bus_id, .generation = evbus_registry_generation()};
	return room;
}

/* Events that the subscription of the bus that is furthest behind has not done, and its name; replays do not count. */
static int64
furthest_behind(EvbusDb *db, const EvbusBus *bus, char *name)
{
	int			n;
	EvbusSubscription *subs = evbus_subscriptions(&n);
	int64		most = 0;

	for (int i = 0; i < n; i++)
	{
		EvbusCursorState state;

		if (subs[i].bus_id != bus->bus_id || subs[i].replay_of != 0)
			continue;
		(void) evbus_ledger_attach(db, &subs[i]);
		if (evbus_cursor_progress(db, &subs[i], &state) && state.undelivered > most)
		{
			most = state.undelivered;
			strlcpy(name, subs[i].name, EVBUS_NAME_MAX + 1);
		}
	}
	return most;
}

/*
 * How many events a subscription of the bus may be behind; 0: any number.  What those that nobody
 * has done have together nobody knows; so bytes are counted in events of the average size
 * of the last ones published, a few thousand.  At least one may always wait.
 */
int64
evbus_flow_limit(EvbusDb *db, const EvbusBus *bus)
{
	EvbusBusState *state = EVBUS_BUS(db, bus->slot);
	int64		n = (int64) pg_atomic_read_u64(&state->size_n);
	int64		limit = bus->max_backlog;

	if (bus->max_backlog_bytes > 0 && n > 0)
	{
		int64		size = Max((int64) pg_atomic_read_u64(&state->size_sum) / n, 1);
		int64		fit = Max(bus->max_backlog_bytes / size, 1);

		limit = limit > 0 ? Min(limit, fit) : fit;
	}
	return limit;
}

/* An event is published to a bus with max_backlog_bytes. */
void
evbus_flow_size(const EvbusBus *bus, Size size)
{
	EvbusBusState *state = EVBUS_BUS(evbus_db(), bus->slot);

	(void) pg_atomic_fetch_add_u64(&state->size_sum, (int64) size);
	/* What was long ago counts less and less; about, where several are at it. */
	if (pg_atomic_add_fetch_u64(&state->size_n, 1) >= SIZES_MAX)
	{
		pg_atomic_write_u64(&state->size_sum, pg_atomic_read_u64(&state->size_sum) / 2);
		pg_atomic_write_u64(&state->size_n, SIZES_MAX / 2);
	}
}

/* Why there was no room. */
typedef struct Full
{
	char		name[EVBUS_NAME_MAX + 1];	/* who is furthest behind; empty: nobody is */
	int64		behind;
	int64		promised;		/* by all open transactions, what was asked for among it */
	int64		limit;
} Full;

/* Events in the ring, below a tail of it, that have no position, at most: as if all of them were small, and of one bus. */
static int64
without_position(EvbusDb *db, uint64 tail)
{
	uint64		drained = pg_atomic_read_u64(&db->ring_drained);

	return drained < tail ? (int64) ((tail - drained) / sizeof(EvbusRingEntry)) : 0;
}

/* Is there room for what was promised?  If so, what is left is remembered. */
static bool
has_room(EvbusDb *db, const EvbusBus *bus, Full *full)
{
	EvbusBusState *state = EVBUS_BUS(db, bus->slot);
	Room	   *room = room_of(db, bus);
	int64		promised = (int64) pg_atomic_read_u64(&state->promised);
	int64		limit = evbus_flow_limit(db, bus);
	uint64		tail;
	int64		unplaced;
	int64		next;
	int64		behind;
	bool		late;
	MemoryContext context;
	MemoryContext old;

	/* Whose promise has ended has pushed before, and so is below the tail; and what is not below drained has no position. */
	pg_read_barrier();
	tail = pg_atomic_read_u64(&db->ring_tail);
	unplaced = without_position(db, tail);
	pg_read_barrier();
	next = (int64) pg_atomic_read_u64(&state->next_position);
	late = pg_atomic_read_u32(&db->late) || pg_atomic_read_u32(&db->lost);
	if (next + promised + unplaced <= room->until && !late)
		return true;
	/* In a copy nobody catches up, and nobody knows how far behind he is; its tables are to be writable all the same. */
	if (evbus_home() == EVBUS_HOME_ELSEWHERE)
		return true;
	/* Large transactions, and old ones, are not in the ring: until they have positions nobody knows how many they added. */
	if (late)
		late = !evbus_db_wait_drained(db, LATE_WAIT_MS);
	evbus_ring_wait_placed(db, &bus->slot, 1, tail);
	evbus_db_require_ready(db);
	unplaced = without_position(db, tail);
	next = (int64) pg_atomic_read_u64(&state->next_position);
	context = AllocSetContextCreate(CurrentMemoryContext, "evbus flow", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	full->name[0] = '\0';
	full->promised = promised;
	full->behind = behind = furthest_behind(db, bus, full->name);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	room = room_of(db, bus);
	full->limit = limit;
	/* Where the next events may be larger than those so far, no room is remembered. */
	room->until = bus->max_backlog_bytes > 0 ? 0 : next + limit - behind;
	return promised + unplaced + behind <= limit && !late;
}

/* ------------------------------------------------------------------ waiting */

static void
refuse_full(EvbusDb *db, const EvbusBus *bus, int64 n, const char *detail, const char *hint)
{
	pg_atomic_fetch_add_u64(&EVBUS_BUS(db, bus->slot)->rejected, n);
	ereport(ERROR,
			(errcode(ERRCODE_EVBUS_FULL),
			 errmsg("bus \"%s\" is full", bus->name),
			 errdetail("%s", detail),
			 errhint("%s", hint)));
}

static void
refuse_rate(EvbusDb *db, const EvbusBus *bus, int64 n, int64 wait, const EvbusRoleLimit *limit)
{
	pg_atomic_fetch_add_u64(&EVBUS_BUS(db, bus->slot)->rejected, n);
	ereport(ERROR,
			(errcode(ERRCODE_EVBUS_RATE),
			 limit ? errmsg("role \"%s\" publishes to bus \"%s\" faster than it may", GetUserNameFromId(limit->role, false), bus->name)
			 : errmsg("more is published to bus \"%s\" than it takes", bus->name),
			 errdetail("The rate is %d a second; the next is possible in %.3f s.", limit ? limit->rate : bus->publish_rate, wait / 1e9),
			 errhint("Try again later. The owner of the bus can change the rate with evbus.%s.",
					 limit ? "limit_publisher()" : "alter_bus(publish_rate => ...)")));
}

/* Sleep; the caller may be cancelled meanwhile. */
static void
nap(int64 ms, EvbusWait wait)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, (long) Max(ms, 1), evbus_wait_event(wait));
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/* Counted once a call that waits. */
static void
count_wait(EvbusDb *db, const EvbusBus *bus, bool *counted)
{
	if (!*counted)
		pg_atomic_fetch_add_u64(&EVBUS_BUS(db, bus->slot)->waits, 1);
	*counted = true;
}

/* Who has waited goes by what the bus is now.  Errors VB001 if it is gone. */
static void
look_again(EvbusBus *bus)
{
	EvbusBus	now;

	if (!evbus_bus_by_id(bus->bus_id, &now))
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_NO_BUS),
				 errmsg("bus \"%s\" does not exist any more", bus->name)));
	*bus = now;
}

/* n events of the bus's rate, or (of_role) of that of the current user; waits until overflow_timeout after `begun` if the bus says so. */
static void
pass_rate(EvbusDb *db, EvbusBus *bus, bool of_role, int64 n, int64 begun, bool *waited)
{
	for (;;)
	{
		EvbusRoleLimit limit;
		pg_atomic_uint64 *at = &EVBUS_BUS(db, bus->slot)->rate_at;
		int			rate = bus->publish_rate;
		int			burst = bus->publish_burst;
		int64		left = begun + bus->overflow_timeout - evbus_uptime();
		int64		wait;

		if (of_role)
		{
			if (!bus->role_limits || !evbus_role_limit(bus->bus_id, GetUserId(), &limit))
				return;
			at = &db->role_rate_at[limit.slot];
			rate = limit.rate;
			burst = limit.burst;
		}
		if (rate == 0 || (wait = take_rate(at, n, rate, burst > 0 ? burst : rate)) == 0)
			return;
		if (!bus->rate_waits || left <= 0)
			refuse_rate(db, bus, n, wait, of_role ? &limit : NULL);
		count_wait(db, bus, waited);
		nap(Min(Min(wait / 1000, left), LOOK_AGAIN) / 1000 + 1, EVBUS_WAIT_PUBLISH_RATE);
		look_again(bus);
	}
}

static char *
why_full(const EvbusBus *bus, const Full *full, int64 n)
{
	StringInfoData text;

	initStringInfo(&text);
	if (full->behind > 0)
		appendStringInfo(&text, "Subscription \"%s\" has " INT64_FORMAT " events to do; ", full->name, full->behind);
	if (full->promised > n)
		appendStringInfo(&text, "open transactions may add " INT64_FORMAT "; ", full->promised - n);
	if (full->limit == bus->max_backlog)
		appendStringInfo(&text, "max_backlog is " INT64_FORMAT ".", bus->max_backlog);
	else
		appendStringInfo(&text, "max_backlog_bytes is " INT64_FORMAT ", which about " INT64_FORMAT " events of late have.",
						 bus->max_backlog_bytes, full->limit);
	text.data[0] = pg_toupper((unsigned char) text.data[0]);
	return text.data;
}

static void
pass_backlog(EvbusDb *db, EvbusBus *bus, int64 n, bool may_wait, int64 begun, bool *waited)
{
	int64		own = own_promises(db, bus->slot);
	int64		ms = WAIT_MIN_MS;
	int64		counted = may_wait ? n : 0; /* what is due comes again */
	Full		full;

	if (bus->max_backlog > 0 && own + n > bus->max_backlog)
		refuse_full(db, bus, counted, psprintf("The transaction publishes at least " INT64_FORMAT " events to it; max_backlog is " INT64_FORMAT ".",
										 own + n, bus->max_backlog),
					"Publish less in one transaction, or raise it with evbus.alter_bus(max_backlog => ...).");
	while (evbus_flow_limit(db, bus) > 0 && bus->overflow != EVBUS_OVERFLOW_DROP)
	{
		promise(db, bus->slot, n);
		if (has_room(db, bus, &full))
			return;
		take_back(n);
		if (bus->overflow == EVBUS_OVERFLOW_BLOCK && may_wait && (handled_bus == bus->slot || evbus_pin_reads(db, bus->slot)))
			refuse_full(db, bus, counted, why_full(bus, &full, n),
						"This transaction holds deliveries of the bus, so it cannot wait until they are done; try again later.");
		if (bus->overflow != EVBUS_OVERFLOW_BLOCK || !may_wait || evbus_uptime() >= begun + bus->overflow_timeout)
			refuse_full(db, bus, counted, why_full(bus, &full, n),
						bus->max_backlog > 0 ? "Try again later; see evbus.subscription_lag. The owner of the bus can raise the limit with evbus.alter_bus(max_backlog => ...)."
						: "Try again later; see evbus.subscription_lag. The owner of the bus can raise the limit with evbus.alter_bus(max_backlog_bytes => ...).");
		count_wait(db, bus, waited);
		nap(ms, EVBUS_WAIT_PUBLISH_SPACE);
		look_again(bus);
		ms = Min(ms * 2, WAIT_MAX_MS);
	}
}

/*
 * n events that were scheduled are due: no rate is asked, as they were not published
 * now, and nobody waits, as others are due as well.  Errors VB014.
 */
void
evbus_flow_due(EvbusDb *db, EvbusBus *bus, int64 n)
{
	bool		waited = false;

	if (bus->bounded && bus->overflow != EVBUS_OVERFLOW_DROP)
		pass_backlog(db, bus, n, false, 0, &waited);
}

/*
 * n events are about to be published: takes what the limits of their bus ask for, or errors.
 * Errors VB014, VB015.
 */
void
evbus_flow_publish(EvbusDb *db, EvbusBus *bus, int64 n)
{
	int64		begun;
	bool		waited = false;

	if (!bus->bounded || n == 0)
		return;
	begun = evbus_uptime();
	if (bus->overflow != EVBUS_OVERFLOW_DROP)	/* else backlog.c */
		pass_backlog(db, bus, n, true, begun, &waited);
	pass_rate(db, bus, true, n, begun, &waited);
	pass_rate(db, bus, false, n, begun, &waited);
}

/* From here on handlers run in this process that read this bus. */
void
evbus_flow_reads(int bus_slot)
{
	handled_bus = bus_slot;
}

/* ---------------------------------------------------------------- callbacks */

/* Of a subtransaction that has ended. */
void
evbus_flow_subxact(SubXactEvent event)
{
	int			nesting = GetCurrentTransactionNestLevel();
	int			first = n_promises;

	while (first > 0 && promises[first - 1].nesting >= nesting)
		first--;
	if (event == SUBXACT_EVENT_ABORT_SUB)
		drop_promises(first);
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		int			end = first;

		/* They are the parent's now; of each bus it has one, or loops would make the stack grow without end. */
		for (int i = first; i < n_promises; i++)
		{
			int			same = end - 1;

			while (same >= 0 && promises[same].nesting == nesting - 1 &&
				   (promises[same].bus_slot != promises[i].bus_slot || promises[same].db != promises[i].db))
				same--;
			if (same >= 0 && promises[same].nesting == nesting - 1)
				promises[same].n += promises[i].n;
			else
			{
				promises[end] = promises[i];
				promises[end++].nesting = nesting - 1;
			}
		}
		n_promises = end;
	}
}

/* The transaction is over, and its events are in the ring; cannot fail. */
void
evbus_flow_end(void)
{
	drop_promises(0);
}
