/*-------------------------------------------------------------------------
 * sequencer.c
 *	  The worker that gives positions: one per database.
 *
 * A turn, in this order (why, is in docs/architecture.md):
 *
 *		clock -> slots -> ring's tail -> lost and late flags
 *		-> what was lost is placed first, from the log
 *		-> entries up to that tail get positions, rows of evbus.late in between
 *		   where their keys say; `drained` rises, readers wake
 *		-> ticks, when they are due, are written and committed (asynchronously);
 *		   in that transaction's own commit callback `ticked` rises
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
#include "cursor.h"
#include "eventlog.h"
#include "home.h"
#include "internal.h"
#include "late.h"
#include "ledger.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "point.h"
#include "progress.h"
#include "recover.h"
#include "registry.h"
#include "ring.h"
#include "scheduled.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tick.h"
#include "turn.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "wait.h"
#include "worker.h"

#define LATE_ROWS		1024	/* of evbus.late looked at in one turn */
#define IDLE_MS			1000
#define HOME_MS			200		/* between two looks whether we are wanted here */
#define TICK_MS			10		/* what is shown waits so long for its tick */
#define NAP_MS			4		/* while nobody waits for events: each turn looks at all slots */

static EvbusDb *db;
static int64 tick_at = 0;		/* evbus_uptime() at which the next tick is due; 0: nothing to tick */
static bool low_is_old = false; /* much was recovered: tell the next start where to begin */

PGDLLEXPORT void evbus_sequencer_main(Datum main_arg);

/* ------------------------------------------------------------------- drain */

/* There may be something to notify of. */
static void
wake_maintainer(void)
{
	if (pg_atomic_read_u32(&db->maintainer_sleeps) && db->maintainer_pid != 0)
		SetLatch(&ProcGlobal->allProcs[db->maintainer_procno].procLatch);
}

/* Give positions to the entries below tail, and show them; false: there were none.  Sets *wanted: tick now. */
static bool
place_ring(uint64 tail, bool *wanted)
{
	uint64		at = pg_atomic_read_u64(&db->ring_drained);
	uint32		awaited;

	if (at == tail)
		return false;
	while (at < tail)
	{
		EvbusRingEntry buffer;
		const EvbusRingEntry *entry = evbus_ring_peek(db, at, &buffer);
		int64		position = 0;

		if (entry == NULL)
			elog(ERROR, "an undrained ring entry was overwritten");
		if (!evbus_recovered(entry->event_id))
			position = evbus_turn_give(entry->bus_id, entry->bus_slot);
		if (position > 0)
			evbus_turn_anchor(entry->bus_slot, position, at);
		evbus_ring_set_position(db, at, position);
		at += entry->len;
	}
	awaited = evbus_turn_show(tail);
	if (awaited & EVBUS_AWAITED_LATCH)
		wake_maintainer();
	if (awaited & EVBUS_AWAITED_CV)
		*wanted = true;			/* who has waited will ack soon, and wait for the tick */
	EVBUS_POINT("sequencer.drained");
	return true;
}

/* The lowest of low and the ids in the ring from `at` on. */
static int64
low_with_ring(uint64 at, uint64 tail, int64 low)
{
	while (at < tail)
	{
		EvbusRingEntry buffer;
		const EvbusRingEntry *entry = evbus_ring_peek(db, at, &buffer);

		if (entry == NULL)
			elog(ERROR, "an undrained ring entry was overwritten");
		low = Min(low, entry->event_id);
		at += entry->len;
	}
	return low;
}

/* Ticks for all that is shown; low is valid once everything below tail is placed. */
static void
tick(uint64 tail, int64 low)
{
	if (pg_atomic_read_u64(&db->ring_ticked) == pg_atomic_read_u64(&db->ring_drained))
		return;
	low = Min(low, (int64) Min(pg_atomic_read_u64(&db->lost_low), PG_INT64_MAX));
	if (evbus_turn_tick_ring(low_with_ring(pg_atomic_read_u64(&db->ring_drained), tail, low)))
		low_is_old = false;
	tick_at = 0;
}

/*
 * Give positions to rows of evbus.late and the entries below tail, all ticked in
 * one transaction and shown by its commit; false: there were none.
 *
 * A row goes before the first entry with an id above its key: who published after
 * that row was visible has such an id, and who committed before one of the row's
 * events was published has pushed before that entry.  Rows with keys above bound,
 * the clock before tail was read, wait, for what precedes them may not be below
 * tail; so does what follows them.
 */
static bool
place_late(uint64 tail, int64 low, int64 bound)
{
	uint64		at = pg_atomic_read_u64(&db->ring_drained);
	EvbusLateRow *rows = NULL;
	int			n_rows;
	int			all;
	int			r = 0;
	int64		stop = PG_INT64_MAX;
	bool		any;

	evbus_turn_begin();
	all = evbus_late_read(PG_INT64_MAX, LATE_ROWS, &rows);
	n_rows = evbus_late_batch(rows, all, bound);
	if (n_rows < all)
		stop = rows[n_rows].late_id;
	if (n_rows < all || all == LATE_ROWS)
		pg_atomic_write_u32(&db->late, 1);	/* what waits is for the next turn */
	if (n_rows == LATE_ROWS)
		stop = rows[--n_rows].late_id;	/* whether there are more, and from where on, we do not know */
	evbus_late_delete(rows, n_rows);
	while (at < tail)
	{
		EvbusRingEntry entry;
		int64		position = 0;

		if (!evbus_ring_header(db, at, &entry))
			elog(ERROR, "an undrained ring entry was overwritten");
		if (entry.event_id > stop)
			break;
		while (r < n_rows && rows[r].late_id < entry.event_id)
			evbus_turn_place_row(&rows[r++]);
		if (!evbus_recovered(entry.event_id))
			position = evbus_turn_place(entry.bus_id, entry.bus_slot, entry.event_id);
		evbus_ring_set_position(db, at, position);
		at += entry.len;
	}
	while (r < n_rows)
		evbus_turn_place_row(&rows[r++]);
	any = at > pg_atomic_read_u64(&db->ring_drained) || n_rows > 0;
	evbus_turn_drained(at);
	if (evbus_turn_tick(low_with_ring(at, tail, low)))
		low_is_old = false;
	EVBUS_POINT("sequencer.ticks");
	EVBUS_POINT("sequencer.late");
	evbus_turn_end();
	wake_maintainer();
	return any;
}

/*
 * A transaction for each drain would cost publishers more than their own rows, so
 * ticks wait for each other: until an ack or somebody else wants one, or TICK_MS
 * have passed, or a good part of the ring waits, which cannot be reused before.
 */
static bool
tick_due(void)
{
	uint64		waiting = pg_atomic_read_u64(&db->ring_drained) - pg_atomic_read_u64(&db->ring_ticked);

	if (waiting == 0)
		tick_at = 0;
	else if (tick_at == 0)
		tick_at = TimestampTzPlusMilliseconds(evbus_uptime(), TICK_MS);
	return waiting > EVBUS_RING_BYTES / EVBUS_RING_URGENT || (tick_at != 0 && evbus_uptime() >= tick_at);
}

/* Nothing came after a recovery: its end would be forgotten without a tick. */
static void
mark_low(int64 low)
{
	evbus_turn_begin();
	if (low > evbus_tick_low_id())
		evbus_tick_mark(db, low);
	evbus_turn_end();
	low_is_old = false;
}

/* One turn, as told at the top; false: nothing was placed. */
static bool
turn(void)
{
	bool		wanted = pg_atomic_exchange_u32(&db->tick_wanted, 0) != 0;
	uint64		clock = pg_atomic_read_u64(&db->clock);
	int64		low;
	uint64		tail;
	bool		late;
	bool		lost;
	bool		worked;

	pg_memory_barrier();
	EVBUS_POINT("sequencer.clock");
	low = (int64) Min(clock, evbus_lowest_open());
	EVBUS_POINT("sequencer.slots");
	pg_memory_barrier();
	tail = pg_atomic_read_u64(&db->ring_tail);
	EVBUS_POINT("sequencer.tail");
	pg_memory_barrier();
	/* Looked at once: a flag that is set from here on is for the next turn. */
	late = pg_atomic_read_u32(&db->late) != 0;
	lost = pg_atomic_read_u32(&db->lost) != 0;
	if (late || lost)
	{
		pg_atomic_write_u32(&db->recovered, 0);	/* before the flags go: who waits for all to be placed waits on */
		tick(tail, low);		/* positions are ticked in their order */
	}
	if (lost)
	{
		uint64		lost_low;
		int64		last_low;

		pg_atomic_write_u32(&db->lost, 0);
		pg_memory_barrier();
		lost_low = pg_atomic_exchange_u64(&db->lost_low, EVBUS_NO_LSN_ID);
		if (lost_low != EVBUS_NO_LSN_ID)
		{
			evbus_turn_begin();
			last_low = evbus_tick_low_id();
			evbus_turn_end();
			evbus_progress_begin(EVBUS_WORK_RECOVERY, NULL, EVBUS_PHASE_TICKS, 0, EVBUS_UNKNOWN);
			evbus_recover(Min((int64) lost_low, last_low));
			evbus_progress_end();
			low_is_old = true;
		}
	}
	if (late)
	{
		pg_atomic_write_u32(&db->late, 0);
		pg_memory_barrier();	/* before the snapshot that reads its rows */
	}
	evbus_recovered_forget();
	worked = late ? place_late(tail, low, (int64) clock) : place_ring(tail, &wanted);
	if (wanted || tick_due())
		tick(tail, low);
	if (!pg_atomic_read_u32(&db->late) && !pg_atomic_read_u32(&db->lost))
		pg_atomic_write_u32(&db->recovered, 1);
	/* Not before all below tail has its tick: our low is above what place_late() left, and above what is only shown. */
	if (!worked && low_is_old && pg_atomic_read_u64(&db->ring_ticked) >= tail)
		mark_low(low);
	return worked || pg_atomic_read_u32(&db->late);
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

/* What others have loaded while pg_restore was at work may be a part of it.  Volatile buses have nothing on disk. */
static void
forget_parts(void)
{
	int			n;
	EvbusSubscription *subs;

	evbus_registry_forget();
	subs = evbus_subscriptions(&n);
	for (int i = 0; i < n; i++)
		if (!subs[i].is_volatile)
			evbus_cursor_forget(db, subs[i].slot, subs[i].subscription_id);
	pg_atomic_write_u32(&db->clock_ready, 0);
	evbus_scheduled_forget(db);
}

/*
 * Wait until there is a bus that is at home here (home.c).  Where there is none at all, whoever
 * just makes the first one, in a transaction of his own, finds us ready: there is nothing to
 * load, and true says that there was not.
 */
static bool
wait_for_home(void)
{
	EvbusHome	home;
	bool		was_empty = false;

	for (;;)
	{
		StartTransactionCommand();
		if (evbus_worker_unwanted(db))
			proc_exit(0);
		home = evbus_home_read();
		CommitTransactionCommand();
		if (home == EVBUS_HOME_HERE)
			break;
		evbus_process_idle("waiting for a bus that is at home here");
		was_empty = home == EVBUS_HOME_NONE;
		pg_atomic_write_u32(&db->recovered, was_empty);
		pg_write_barrier();
		pg_atomic_write_u32(&db->ready, was_empty);
		ConditionVariableBroadcast(&db->drained_cv);
		pg_atomic_write_u32(&db->sequencer_sleeps, was_empty ? EVBUS_SLEEPS : EVBUS_AWAKE);
		pg_memory_barrier();
		if (pg_atomic_read_u64(&db->ring_tail) == pg_atomic_read_u64(&db->ring_drained) || !was_empty)
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, HOME_MS, evbus_wait_event(EVBUS_WAIT_SEQUENCER_MAIN));
		pg_atomic_write_u32(&db->sequencer_sleeps, EVBUS_AWAKE);
		ResetLatch(MyLatch);
		evbus_worker_turn();
	}
	if (pg_atomic_read_u32(&db->ready))
		return was_empty;
	evbus_turn_begin();
	forget_parts();
	evbus_turn_end();
	pg_atomic_write_u32(&db->recovered, 0);
	pg_atomic_write_u32(&db->late, 1);
	return false;
}

/* Positions, cursors, and what the last server left without a position. */
static void
start(bool was_empty)
{
	int64		low;

	evbus_turn_begin();
	evbus_clock_ensure(db);
	if (was_empty)
	{
		evbus_turn_end();
		return;
	}
	pg_atomic_write_u32(&db->recovered, 0);
	low = evbus_tick_low_id();
	evbus_progress_begin(EVBUS_WORK_RECOVERY, NULL, EVBUS_PHASE_LEDGER, 0, EVBUS_UNKNOWN);
	if (pg_atomic_read_u32(&db->ready) == 0)
	{
		int			n;
		EvbusBus   *buses = evbus_buses(&n);

		for (int i = 0; i < n; i++)
			(void) evbus_turn_bus(buses[i].bus_id, buses[i].slot);
		evbus_ledger_attach_all(db, false);
		evbus_turn_end();
		pg_write_barrier();
		pg_atomic_write_u32(&db->ready, 1);
		ConditionVariableBroadcast(&db->drained_cv);
		evbus_recover(low);
	}
	else
	{
		evbus_turn_end();
		(void) evbus_turn_tick_ring(low);
		/* A recovery may have been cut short: it is safe to do it again. */
		evbus_recover(low);
	}
	evbus_progress_end();
	low_is_old = true;
	pg_atomic_write_u32(&db->recovered, 1);
	ConditionVariableBroadcast(&db->drained_cv);
}

/*
 * Wait for work.  Where events come all the time and nobody waits for them we
 * only nap, and publishers need not wake us: to be woken for each commit takes as
 * much of the machine as to write the event.
 */
static void
rest(bool nap)
{
	long		timeout = nap ? NAP_MS : IDLE_MS;

	pg_atomic_write_u32(&db->sequencer_sleeps, nap ? EVBUS_NAPS : EVBUS_SLEEPS);
	pg_memory_barrier();		/* who pushes or begins to wait from here on wakes us */
	if (nap ? evbus_ring_awaited(db) : pg_atomic_read_u64(&db->ring_tail) != pg_atomic_read_u64(&db->ring_drained))
		timeout = 0;
	else if (!nap && tick_at != 0)
		timeout = Max((tick_at - evbus_uptime() + 999) / 1000, 0);
	if (timeout > 0 && !pg_atomic_read_u32(&db->tick_wanted) &&
		!pg_atomic_read_u32(&db->lost) && !pg_atomic_read_u32(&db->late))
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, timeout, evbus_wait_event(EVBUS_WAIT_SEQUENCER_MAIN));
	pg_atomic_write_u32(&db->sequencer_sleeps, EVBUS_AWAKE);
	ResetLatch(MyLatch);
}

void
evbus_sequencer_main(Datum main_arg)
{
	int64		look_at = 0;
	bool		mine = false;
	bool		busy = false;	/* as others see it: seldom changed, for a commit is placed in less time */

	evbus_worker_connect(EVBUS_PROCESS_SEQUENCER, DatumGetObjectId(main_arg), InvalidOid);
	SetConfigOption("synchronous_commit", "off", PGC_SUSET, PGC_S_OVERRIDE);

	if (evbus_areas_sweep())
		proc_exit(0);
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (!evbus_installed())
	{
		PopActiveSnapshot();
		CommitTransactionCommand();
		proc_exit(0);			/* the launcher was only asking */
	}
	db = evbus_db();
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
	evbus_turn_init(db);
	evbus_recover_init(db);
	start(wait_for_home());
	evbus_process_idle("waiting for commits");

	for (;;)
	{
		bool		worked;

		evbus_worker_turn();
		worked = turn();
		if (!worked)
			evbus_process_idle("waiting for commits");
		else
		{
			if (!busy)
				evbus_process_busy("placing events", 0);
			evbus_process_done();
		}
		busy = worked;
		if (!worked || evbus_uptime() >= look_at)
		{
			pgstat_report_stat(false);
			StartTransactionCommand();
			if (evbus_worker_unwanted(db) || evbus_home() != EVBUS_HOME_HERE)
				proc_exit(0);
			CommitTransactionCommand();
			look_at = TimestampTzPlusMilliseconds(evbus_uptime(), IDLE_MS);
		}
		rest(worked);
	}
}
