/*-------------------------------------------------------------------------
 * evbus.h
 *	  Limits, SQLSTATEs and the types in shared memory.
 *
 * Everything in shared memory is of fixed size, holds no pointers, and is a
 * cache: wiped at any instant, nothing durable is lost (docs/architecture.md).
 *
 * Order of locks: EvbusShared.lock, EvbusSub.lock, EvbusDb.lease_lock.  EvbusDb.ring_lock is taken with none of them held,
 * EvbusVolatile.lock with none but EvbusShared.lock.
 * Under any of them: no palloc, no catalog access, nothing that can
 * ereport(ERROR).
 *-------------------------------------------------------------------------
 */
#ifndef EVBUS_H
#define EVBUS_H

#include "compat.h"

#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "high.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"
#include "storage/spin.h"

/* ---------------------------------------------------------------- limits */

#define EVBUS_NAME_MAX			63	/* bytes of a bus or subscription name */
#define EVBUS_TYPE_MAX			255 /* bytes of an event type or pattern */
#define EVBUS_KEY_MAX			1024	/* bytes of a key */
#define EVBUS_PAYLOAD_MAX		(255 * 1024 * 1024) /* bytes of jsonb; core ends at 256 MB */
#define EVBUS_INLINE_MAX		(8 * 1024)	/* a larger event is not copied to the ring */
#define EVBUS_MESSAGE_MAX		2048	/* bytes of a stored error message */
#define EVBUS_BATCH_MAX			10000	/* events per receive() or handler call */
#define EVBUS_ATTEMPTS_MAX		1000
#define EVBUS_RATE_MAX			1000000 /* events a second */
#define EVBUS_ROLE_LIMITS_MAX	256		/* rates of roles on buses, in a database */
#define EVBUS_DEDUP_KEY_MAX		255 /* bytes */
#define EVBUS_MAX_VOLATILE		1024	/* volatile buses of a database */
#define EVBUS_SCHEDULED_LEAVES	9	/* tables that hold evbus.scheduled */
#define EVBUS_MAX_DATABASES		64
#define EVBUS_MAX_WORKERS		256

/* ------------------------------------------------------------- SQLSTATEs */

#define ERRCODE_EVBUS_REPORTED			MAKE_SQLSTATE('V','B','0','0','0')
#define ERRCODE_EVBUS_NO_BUS			MAKE_SQLSTATE('V','B','0','0','1')
#define ERRCODE_EVBUS_BUS_EXISTS		MAKE_SQLSTATE('V','B','0','0','2')
#define ERRCODE_EVBUS_TOO_MANY_BUSES	MAKE_SQLSTATE('V','B','0','0','3')
#define ERRCODE_EVBUS_NO_SUBSCRIPTION	MAKE_SQLSTATE('V','B','0','0','4')
#define ERRCODE_EVBUS_SUBSCRIPTION_EXISTS MAKE_SQLSTATE('V','B','0','0','5')
#define ERRCODE_EVBUS_BACKLOG			MAKE_SQLSTATE('V','B','0','0','6')
#define ERRCODE_EVBUS_TOO_MANY_SUBSCRIPTIONS MAKE_SQLSTATE('V','B','0','0','7')
#define ERRCODE_EVBUS_STALE_RECEIPT		MAKE_SQLSTATE('V','B','0','0','8')
#define ERRCODE_EVBUS_NOT_READY			MAKE_SQLSTATE('V','B','0','0','9')
#define ERRCODE_EVBUS_BAD_HANDLER		MAKE_SQLSTATE('V','B','0','1','0')
#define ERRCODE_EVBUS_NO_LEAF			MAKE_SQLSTATE('V','B','0','1','1')
#define ERRCODE_EVBUS_NO_LEASES			MAKE_SQLSTATE('V','B','0','1','2')
#define ERRCODE_EVBUS_WRONG_KIND		MAKE_SQLSTATE('V','B','0','1','3')
#define ERRCODE_EVBUS_FULL				MAKE_SQLSTATE('V','B','0','1','4')
#define ERRCODE_EVBUS_RATE				MAKE_SQLSTATE('V','B','0','1','5')

/* ---------------------------------------------------------- publish slots */

/*
 * One per backend, written by its owner; the sequencer may flip OPEN to LATE
 * by compare-and-swap, and the owner flips OPEN to COMMITTING the same way.
 * low is stored before ids are taken and cleared after the push, so that
 * whoever reads clock, then slots, then the ring's tail misses no event.
 */
typedef enum EvbusSlotState
{
	EVBUS_SLOT_IDLE = 0,
	EVBUS_SLOT_OPEN,			/* publishing; counts in low */
	EVBUS_SLOT_LATE,			/* open too long: will write rows in evbus.late */
	EVBUS_SLOT_COMMITTING		/* between PRE_COMMIT and the push; counts in low */
} EvbusSlotState;

typedef struct EvbusSlot
{
	pg_atomic_uint64 low;		/* clock when the first id was taken; 0: none */
	pg_atomic_uint64 opened_at; /* TimestampTz of the same moment */
	pg_atomic_uint32 state;		/* EvbusSlotState */
	pg_atomic_uint32 db;		/* index of the EvbusDb */
	char		pad[40];		/* one cache line each */
} EvbusSlot;

/* -------------------------------------------------------------- databases */

#define EVBUS_NO_LSN_ID		PG_UINT64_MAX

/* How the sequencer rests, and so who has to wake it. */
typedef enum EvbusSleep
{
	EVBUS_AWAKE = 0,
	EVBUS_NAPS,					/* who pushes for an awaited bus, wants ticks, or sees the ring fill */
	EVBUS_SLEEPS				/* everybody who pushes */
} EvbusSleep;

/* What the maintainer told last of a check of health() and its subject (health_tell.c). */
#define EVBUS_HEALTH_TOLD		64
#define EVBUS_HEALTH_SUBJECT	200

typedef struct EvbusHealthTold
{
	uint64		hash;			/* of both, uncut; 0: free */
	char		level[12];
	char		check[24];
	char		subject[EVBUS_HEALTH_SUBJECT + 1];
} EvbusHealthTold;

/* What the maintainer commits for others (errand.c); under EvbusShared.lock, by who asks and by the maintainer. */
#define EVBUS_ERRANDS		8
#define EVBUS_ERRAND_TEXT	200

typedef enum EvbusErrandKind
{
	EVBUS_ERRAND_MAKE_BUS,		/* of this name, for this role */
	EVBUS_ERRAND_STOP_ALL		/* pause the buses of this role */
} EvbusErrandKind;

typedef enum EvbusErrandState
{
	EVBUS_ERRAND_FREE = 0,
	EVBUS_ERRAND_POSTED,
	EVBUS_ERRAND_TAKEN,
	EVBUS_ERRAND_LEFT,			/* taken, and nobody waits for it any more */
	EVBUS_ERRAND_DONE
} EvbusErrandState;

typedef struct EvbusErrand
{
	EvbusErrandKind kind;
	EvbusErrandState state;
	Oid			role;			/* on whose behalf */
	uint32		number;			/* raised at each post */
	int64		deadline;		/* by evbus_uptime(): not begun after it */
	int64		done_at;
	int			sqlerrcode;		/* 0: it is committed */
	char		name[EVBUS_NAME_MAX + 1];
	char		message[EVBUS_ERRAND_TEXT];
	char		hint[EVBUS_ERRAND_TEXT];
} EvbusErrand;

/* A ring of which this part waits for ticks wants them now. */
#define EVBUS_RING_URGENT	8

#define EVBUS_NOTED		32

/* Calls that leave no row of the audit by themselves; see audit.c. */
typedef struct EvbusNoted
{
	Oid			login;
	Oid			role;
	char		action[16];
	char		privilege[12];	/* that lacked, or empty */
	char		kind[16];
	char		object[EVBUS_NAME_MAX + 1];
	int64		n;				/* not in evbus.audit yet; 0: the place is free a minute after written_at */
	TimestampTz first_at;		/* of these */
	int64		written_at;		/* by evbus_uptime(): its last row; 0: never */
} EvbusNoted;

typedef struct EvbusDb
{
	/* EvbusShared.lock guards these; pids are also looked at without it, as hints */
	Oid			dboid;			/* InvalidOid: this area is free */
	Oid			bus_relid;		/* table evbus.bus; another oid is another extension */
	pid_t		sequencer_pid;	/* 0: none runs */
	pid_t		maintainer_pid;
	int			maintainer_procno;
	pid_t		indexer_pid;	/* 0: none runs */
	uint32		indexed;		/* leaves that the indexer has done; written by it alone */
	pid_t		scheduler_pid;	/* 0: none runs */
	int			scheduler_procno;
	TransactionId claimed_xid;	/* who claimed it may have made the extension; Invalid: has not */
	int64		claimed_at;		/* by evbus_uptime(), as all moments that are not told to users */
	int64		stopped_until;	/* workers stay away until then (DROP DATABASE) */
	bool		gone;			/* the database or extension is dropped: launcher frees the area */

	pg_atomic_uint64 clock;		/* newest event_id given; raised by CAS */
	pg_atomic_uint32 clock_ready;	/* clock is above every id on disk */
	pg_atomic_uint32 ready;		/* sequencer loaded positions and cursors */
	pg_atomic_uint32 recovered; /* and everything in the log has its position */

	LWLock		ring_lock;		/* tranche "EvbusRing": EXCLUSIVE to push */
	pg_atomic_uint64 ring_reserved; /* written under ring_lock: about to be overwritten */
	pg_atomic_uint64 ring_tail; /* written under ring_lock: bytes ever pushed */
	pg_atomic_uint64 ring_drained;	/* sequencer: positions are given up to here */
	pg_atomic_uint64 ring_ticked;	/* sequencer: ticks are committed up to here */
	pg_atomic_uint64 lost_low;	/* lowest id that found the ring full; EVBUS_NO_LSN_ID: none */
	pg_atomic_uint32 lost;		/* set before the loser clears its slot */
	pg_atomic_uint32 late;		/* rows in evbus.late may be visible */
	pg_atomic_uint64 overflows; /* pushes refused, ever */
	pg_atomic_uint64 ticked_lsn;	/* commit LSN of the newest tick */

	pg_atomic_uint32 sequencer_procno;	/* + 1; 0: none, for SetLatch at commit */
	pg_atomic_uint32 sequencer_sleeps;	/* EvbusSleep; the sequencer writes it */
	pg_atomic_uint32 tick_wanted;	/* somebody waits for ticks; the sequencer clears it */
	ConditionVariable drained_cv;	/* broadcast when awaited events were placed, for ticks, and when leases came back */

	pg_atomic_uint64 ledger_turn;	/* leaf in use is turn % 3; raised by the maintainer */
	pg_atomic_uint32 leaves_wanted; /* a publisher found no leaf: maintainer, make some */
	pg_atomic_uint32 maintainer_sleeps; /* it wants a SetLatch when events are placed */

	/* Lower bounds of the due times in each leaf of evbus.scheduled; PG_INT64_MAX: none, 0: unknown.  See scheduled.c */
	pg_atomic_uint64 scheduled_due[EVBUS_SCHEDULED_LEAVES];
	pg_atomic_uint64 scheduler_until;	/* it sleeps until then, 0: it is awake; written by it alone */
	pg_atomic_uint64 dedup_turn;	/* leaf in use is turn % 2; raised by the maintainer alone */
	pg_atomic_uint64 role_rate_at[EVBUS_ROLE_LIMITS_MAX];	/* as EvbusBusState.rate_at, of a role on a bus (flow.c) */

	pg_atomic_uint32 starved;	/* owners that have work and no worker, as the pool is full; the maintainer counts */
	pg_atomic_uint32 given;		/* so many have given way since it did */
	EvbusErrand errands[EVBUS_ERRANDS];
	pg_atomic_uint32 errands_posted;	/* there may be one to be taken; the maintainer clears it */
	ConditionVariable errand_cv;	/* broadcast when one is done */

	ConditionVariable space_cv; /* who waits for space in the ring of a volatile bus */
	pg_atomic_uint32 space_awaited; /* set before he sleeps, cleared by who wakes him */

	LWLock		lease_lock;		/* tranche "EvbusLease"; guards the free list */
	int32		lease_free;		/* head of the free list, -1: none */
	int32		leases_used;
	pg_atomic_uint32 deferred;	/* sum of EvbusSub.n_deferred */

	pg_atomic_uint64 high[EVBUS_AREAS];	/* most that was in use of each area (high.h) */
	uint8		told[EVBUS_AREAS];	/* level of each that the maintainer told last; written by it alone */

	EvbusHealthTold health_told[EVBUS_HEALTH_TOLD]; /* the maintainer alone writes and reads these two */
	int64		health_untold;	/* what is not as it should be, and had no place there */

	LWLock		noted_lock;		/* tranche "EvbusShared"; guards these three */
	EvbusNoted	noted[EVBUS_NOTED];
	int64		noted_left_out; /* that had no place */
	int64		left_out_written_at;
	pg_atomic_uint32 noted_waiting; /* there is something to be written; the maintainer clears it */
} EvbusDb;

/* One per bus and database, at the bus's slot. */
#define EVBUS_ANCHORS	64

/* Where in the ring a position of the bus is; offset 0 while it changes. */
typedef struct EvbusAnchor
{
	pg_atomic_uint64 offset;	/* + 1 */
	pg_atomic_uint64 position;
} EvbusAnchor;

typedef struct EvbusBusState
{
	EvbusAnchor anchors[EVBUS_ANCHORS]; /* the sequencer writes them in turn */
	uint64		anchor_next;	/* sequencer only */
	uint64		anchor_last;	/* sequencer only: offset of the newest */
	pg_atomic_uint32 bus_id;	/* 0: not loaded; written by the sequencer; of a volatile bus by who attaches its ring */
	pg_atomic_uint32 ring;		/* of a volatile bus: which EvbusVolatile, + 1; 0: it is durable */
	pg_atomic_uint64 next_position; /* below it, positions are given and readable */
	pg_atomic_uint64 ticked_position;	/* below it, ticks are committed: acks may commit */
	pg_atomic_uint32 awaited;	/* EVBUS_AWAITED_*: set before a sleep, cleared by the sequencer with new events */

	/* Limits of publishers (flow.c), by whoever publishes; counts are since the server started */
	pg_atomic_uint64 promised;	/* events that open transactions may add, where max_backlog is set */
	pg_atomic_uint64 size_sum;	/* bytes of those published lately, and how many, where max_backlog_bytes is set */
	pg_atomic_uint64 size_n;
	pg_atomic_uint64 rate_at;	/* nanoseconds of evbus_uptime(): what publish_rate gave until then is used up */
	pg_atomic_uint64 rejected;	/* events refused, because the bus is full or for a rate */
	pg_atomic_uint64 waits;		/* calls that waited for either */
	pg_atomic_uint64 used_at;	/* of a bus with idle_ttl: evbus_uptime() of the last publisher, about; 0: none since the start */
} EvbusBusState;

/*
 * Raise next_position or ticked_position of a bus, which its place may no longer be of.
 * Whoever makes it another's writes bus_id 0, then the field, then bus_id; positions of
 * two buses differ, or are of one that nobody has read.
 */
static inline void
evbus_bus_raise(EvbusBusState *bus, int32 bus_id, pg_atomic_uint64 *field, int64 position)
{
	uint64		old = pg_atomic_read_u64(field);

	pg_memory_barrier();
	if ((int32) pg_atomic_read_u32(&bus->bus_id) == bus_id)
		(void) pg_atomic_compare_exchange_u64(field, &old, (uint64) position);
}

#define EVBUS_AWAITED_CV		1	/* somebody sleeps on drained_cv */
#define EVBUS_AWAITED_LATCH		2	/* the maintainer */

/* ---------------------------------------------------------- volatile buses */

/*
 * The ring of a volatile bus (volatile.c).  Whose it is changes under EvbusShared.lock
 * and lock; the rest changes under lock, but for claimed, and is read without.
 */
typedef struct EvbusVolatile
{
	LWLock		lock;			/* tranche "EvbusVolatile": EXCLUSIVE to push */
	int32		bus_id;			/* 0: free */
	uint32		epoch;			/* raised whenever it becomes another bus's */
	pg_atomic_uint64 claimed;	/* bytes ever pushed, and those promised to open transactions */
	pg_atomic_uint64 tail;		/* bytes ever pushed */
	pg_atomic_uint64 mark;		/* those below may be overwritten */
	pg_atomic_uint64 first_position;	/* with which the bus began, in this ring */
	pg_atomic_uint64 oldest_position;	/* those below are overwritten, or about to be */
	pg_atomic_uint64 next_position;
	pg_atomic_uint64 dropped;	/* as EvbusSub.dropped, of all subscriptions of the bus, those that are gone among them */
	pg_atomic_uint64 high;		/* most bytes in use, as found whenever that is reckoned */
	uint8		told;			/* as EvbusDb.told */
} EvbusVolatile;

/* -------------------------------------------------- subscriptions and leases */

/*
 * What is not yet done below a subscription's frontier, one entry a range of
 * positions: either leased or waiting to be given out again.  The complement,
 * what is done, needs no memory; so a commit callback that acks only frees.
 */
typedef enum EvbusLeaseState
{
	EVBUS_LEASE_FREE = 0,		/* in the database's free list */
	EVBUS_LEASE_RETURNED,		/* not done, nobody has it */
	EVBUS_LEASE_HELD			/* a worker or client has it */
} EvbusLeaseState;

typedef struct EvbusLease
{
	int32		next;			/* list of the subscription, or free list; -1: end */
	int32		prev;
	int32		sub_slot;
	uint32		epoch;			/* raised at each grant: makes old receipts stale */
	int64		lo;				/* positions [lo, hi); 0, 0 for a retry */
	int64		hi;
	int64		event_id;		/* of a client's delivery or a retry; 0 for a worker's range; of a range that waits: evbus_lease_look() */
	TimestampTz expires_at;		/* 0: never, ends with the process that holds it */
	int16		attempts;		/* deliveries whose lease ran out */
	uint8		state;			/* EvbusLeaseState */
	bool		pinned;			/* a transaction acks or releases it: cannot run out */
	bool		retry;			/* delivery of a row in evbus.retry */
	bool		tracked;		/* its key is known: EvbusOrderEntry beside it counts */
	int8		priority;		/* of all its events; EVBUS_PRIORITY_UNKNOWN: nobody has looked (priority.c) */
	int64		suspect;		/* event_id whose handler ended its worker; 0: none */
} EvbusLease;

#define EVBUS_PRIORITY_UNKNOWN	PG_INT8_MIN

/*
 * Where a range begins to be read, given back or leased: what is below is known to be for
 * nobody, and is in it only so that its ack covers that.  Kept in event_id while it waits.
 */
static inline int64
evbus_lease_look(const EvbusLease *lease)
{
	return lease->state == EVBUS_LEASE_RETURNED && !lease->retry && lease->event_id > lease->lo ? lease->event_id : lease->lo;
}

/*
 * Beside each lease, for subscriptions in order (order.c): whose turn it is.  Under
 * EvbusSub.lock; chain_* also under the lock of the bucket.
 */
typedef struct EvbusOrderEntry
{
	uint32		hash;			/* of the key; EVBUS_NO_KEY: waits for nothing */
	uint32		take;			/* EvbusSub.takes when it was handed out */
	int32		next;			/* same key, by position; a circle */
	int32		prev;
	int32		chain_next;		/* of the first entry of a key only: others in its bucket; -1: end */
	int32		chain_prev;
	int32		acker;			/* procno + 1 of whose transaction acks it; counts while it is pinned */
	bool		first;			/* of its key */
	bool		blocked;		/* waits for a row in evbus.retry, as far as is known */
	int64		position;
	int64		event_id;
	uint64		ring_at;		/* as in EvbusEvent */
	uint32		bytes;			/* of the event */
} EvbusOrderEntry;

#define EVBUS_NO_KEY	1		/* hashes of keys are above */

/* First entries of keys, by hash of key and subscription. */
typedef struct EvbusOrderBucket
{
	slock_t		lock;
	int32		head;			/* -1: none */
} EvbusOrderBucket;

/* What a subscription's events may wait for; a column of evbus.subscription as text. */
typedef enum EvbusOrdering
{
	EVBUS_ORDER_NONE = 0,
	EVBUS_ORDER_KEY,			/* for those of their key */
	EVBUS_ORDER_STRICT			/* for all before them */
} EvbusOrdering;

/* Where in the ring a position of a subscription's bus is, as a reader found it. */
#define EVBUS_HINTS		8

typedef struct EvbusHint
{
	int64		position;		/* 0: no hint */
	uint64		offset;			/* at or before that position's entry */
} EvbusHint;

/*
 * A subscription's circuit breaker (breaker.c).  mutex guards all of it; it is held for a few
 * instructions, alone or under EvbusSub.lock, and nothing is locked under it.  Moments are by evbus_uptime().
 */
typedef enum EvbusBreakerState
{
	EVBUS_BREAKER_CLOSED = 0,	/* deliveries are handed out */
	EVBUS_BREAKER_OPEN,			/* none is, until probe_at */
	EVBUS_BREAKER_HALF_OPEN		/* one is out, and what becomes of it decides */
} EvbusBreakerState;

#define EVBUS_BREAKER_BUCKETS	10	/* parts of the window */
#define EVBUS_BREAKER_IDS		100 /* failed events that are told apart, and the most that can be asked for */
#define EVBUS_BREAKER_TEXT		200 /* bytes of the last message that are kept */

typedef struct EvbusBreaker
{
	slock_t		mutex;
	uint8		state;			/* EvbusBreakerState; also read without the mutex, as a hint */
	int32		subscription_id;	/* whose it is, and never that of a replay; 0: nobody's yet */
	double		threshold;		/* settings, as whoever came last knew them; 0: none */
	int64		window;
	int32		min;
	int64		probe;
	struct
	{
		int64		number;		/* of the part of time it counts */
		int64		succeeded;
		int64		failed;		/* different events */
	}			buckets[EVBUS_BREAKER_BUCKETS];
	int64		ids[EVBUS_BREAKER_IDS];	/* events that failed last, each counted once a window */
	int64		id_at[EVBUS_BREAKER_IDS];
	uint32		next_id;
	TimestampTz since;			/* it is closed, or is not; 0: since the server started */
	int64		probe_at;		/* OPEN: not before it is one handed out; also read without the mutex */
	int64		delay;			/* from the last failed probe to the next */
	uint32		probes;			/* handed out ever: names the one that is out */
	int64		probe_event;	/* the last one; 0: none, or not known yet */
	int32		probe_lease;	/* of a client's; -1: it ends with its process or transaction */
	uint32		probe_epoch;
	uint32		opened;			/* times it opened, since the server started */
	uint32		failed_probes;	/* since then */
	int64		succeeded;		/* when it opened last */
	int64		failed;
	int			sqlerrcode;		/* of the last failure that counts; 0: none */
	char		message[EVBUS_BREAKER_TEXT];
} EvbusBreaker;

typedef struct EvbusSub
{
	LWLock		lock;			/* tranche "EvbusSub"; guards all but the atomics */
	int32		subscription_id;	/* 0: not loaded */
	int32		epoch;			/* the row's epoch */
	int32		bus_slot;
	int32		bus_id;
	int64		frontier;		/* next position to give out for the first time */
	int64		skipped_from;	/* [skipped_from, frontier) is done but in no ledger row */
	uint64		grants;			/* how often something was given out, also again; read without the lock, as a hint */
	EvbusHint	hints[EVBUS_HINTS]; /* of the last readers: who claimed before another may read after it */
	uint32		next_hint;
	int32		open_head;		/* ranges, ascending by lo; retries hang at retry_head */
	int32		open_tail;
	int32		retry_head;
	int32		n_returned;		/* entries in state RETURNED, ranges only */
	int32		n_held;			/* entries in state HELD, ranges and retries */
	int32		workers;		/* handler workers busy here */
	TimestampTz next_expiry;	/* no lease runs out before it; 0: none does */
	uint8		ordering;		/* EvbusOrdering that the entries are kept for */
	bool		order_ready;	/* one that had to wait may have its turn now */
	bool		order_full;		/* no more can be taken before something is settled */
	bool		is_volatile;	/* its bus is: nothing of this is in the ledger */
	int64		dropped;		/* of a volatile bus: positions overwritten before they were settled */
	bool		retry_waits;	/* a due retry was passed over, because of what is in hand */
	uint32		takes;			/* takings so far */
	uint32		settled;		/* tracked entries that ended or came back so far */
	int32		n_tracked;		/* of those HELD */
	int32		n_deferred;		/* of those RETURNED that are no retries */
	uint32		passed;			/* deliveries by priority that overtook others, which are owed a share (priority.c) */
	int64		stop;			/* of a replay: positions from here on are not for it; else PG_INT64_MAX */
	int64		paced_at;		/* by evbus_uptime(): what a rate gave until then is given out (pace.c) */
	pg_atomic_uint32 owed;		/* live deliveries that clients got since one of a replay, while there was one; about */
	pg_atomic_uint64 may_block; /* 0: no rows in evbus.retry; raised, before the lease of their event ends, by evbus_sub_may_block() */
	pg_atomic_uint64 retry_due; /* no row in evbus.retry is due before it; PG_INT64_MAX: none */
	pg_atomic_uint32 notify;	/* not 0: something was given back, the maintainer shall NOTIFY, who clears it when it has */
	pg_atomic_uint64 filtered;	/* events passed over by the filter, and by max_age, since it was loaded; who takes adds */
	pg_atomic_uint64 expired;
	pg_atomic_uint32 died;		/* dead letters added, also by who rolled back: the maintainer shall look at the quota */
	pg_atomic_uint64 trace_until;	/* by the clock of the wall, the log tells what becomes of its events (trace.c); 0: it does not; not set of a replay */
	int32		breaker_slot;	/* whose breaker counts: its own, or of a replay that of what it is of */
	EvbusBreaker breaker;		/* under its own mutex */
} EvbusSub;

/*
 * There may be rows in evbus.retry that hold up others.  Another value each time, so that who has
 * looked and saw none takes back no more than what was said before he looked.
 */
static inline void
evbus_sub_may_block(EvbusSub *sub)
{
	(void) pg_atomic_fetch_add_u64(&sub->may_block, 1);
}

/* Positions of a subscription's bus below it are there, and for the subscription. */
static inline int64
evbus_sub_end(const EvbusSub *sub, EvbusBusState *bus)
{
	return Min((int64) pg_atomic_read_u64(&bus->next_position), sub->stop);
}

/* ---------------------------------------------------------------- workers */

typedef struct EvbusWorker
{
	Oid			dboid;			/* InvalidOid: free; EvbusShared.lock */
	Oid			owner;
	pid_t		pid;			/* 0: not yet started */
	int64		started_at;
	bool		connected;		/* logged in: past what can refuse it */
	bool		busy;			/* runs a batch now */
	uint32		generation;		/* makes a re-used entry differ */
} EvbusWorker;

/* ----------------------------------------------------------------- upkeep */

/* What came of the upkeep of one kind of leaf; under EvbusShared.lock, by whoever does it. */
#define EVBUS_NOTE_TEXT		200

typedef struct EvbusNote
{
	int32		of;				/* storage class, or EVBUS_NOTE_*; 0: free */
	TimestampTz run_at;			/* 0: never, as all moments here */
	TimestampTz ok_at;
	TimestampTz error_at;
	TimestampTz held_since;
	char		error[EVBUS_NOTE_TEXT];
	char		held[EVBUS_NOTE_TEXT];	/* who keeps leaves that are to go */
} EvbusNote;

#define EVBUS_NOTES_MAX		(evbus_max_buses + 3)

/* A debug point (point.c); not in ordinary builds. */
#define EVBUS_POINTS_MAX	16

typedef struct EvbusPoint
{
	char		name[40];		/* empty: free; written by one test at a time */
	pg_atomic_uint32 action;
	pg_atomic_uint32 skip;		/* passes to let through first */
	pg_atomic_uint32 waiting;	/* processes that are there */
} EvbusPoint;

typedef struct EvbusShared
{
	LWLock		lock;			/* tranche "EvbusShared"; guards areas coming and going, workers[] */
	uint64		incarnation;	/* random, per start; set by the postmaster */
	pid_t		launcher_pid;
	int			launcher_procno;
	pg_atomic_uint64 high[EVBUS_AREAS];	/* as EvbusDb.high, of what the whole server has */
	EvbusWorker workers[EVBUS_MAX_WORKERS];
#ifdef EVBUS_POINTS
	EvbusPoint	points[EVBUS_POINTS_MAX];
#endif
} EvbusShared;

/* Set by shmem.c in every process; NULL where the library was not preloaded. */
extern EvbusShared *evbus_shared;
extern EvbusDb *evbus_dbs;
extern EvbusSlot *evbus_slots;
extern EvbusBusState *evbus_bus_states;
extern EvbusSub *evbus_subs;
extern EvbusLease *evbus_leases;
extern EvbusOrderEntry *evbus_order_entries;
extern EvbusOrderBucket *evbus_order_buckets;
extern EvbusNote *evbus_notes;
extern char *evbus_rings;
extern EvbusVolatile *evbus_volatiles;
extern char *evbus_volatile_rings;
extern pg_atomic_uint64 *evbus_volatile_offsets;

/* Settings that size shared memory; PGC_POSTMASTER, defined in evbus.c. */
extern int	evbus_max_databases;
extern int	evbus_max_buses;
extern int	evbus_max_subscriptions;
extern int	evbus_max_leases;
extern int	evbus_ring_size;	/* kB */
extern int	evbus_max_handler_workers;
extern int	evbus_max_volatile_buses;	/* per database */
extern int	evbus_volatile_ring_size;	/* kB */

#define EVBUS_DB_INDEX(db)		((int) ((db) - evbus_dbs))
#define EVBUS_BUS(db, slot)		(&evbus_bus_states[EVBUS_DB_INDEX(db) * evbus_max_buses + (slot)])
#define EVBUS_SUB(db, slot)		(&evbus_subs[EVBUS_DB_INDEX(db) * evbus_max_subscriptions + (slot)])
#define EVBUS_LEASE(db, i)		(&evbus_leases[EVBUS_DB_INDEX(db) * evbus_max_leases + (i)])
#define EVBUS_ORDER(db, i)		(&evbus_order_entries[EVBUS_DB_INDEX(db) * evbus_max_leases + (i)])
#define EVBUS_NOTE(db, i)		(&evbus_notes[EVBUS_DB_INDEX(db) * EVBUS_NOTES_MAX + (i)])
#define EVBUS_VOLATILE(db, i)	(&evbus_volatiles[EVBUS_DB_INDEX(db) * evbus_max_volatile_buses + (i)])
#define EVBUS_VOLATILE_BYTES	((uint64) evbus_volatile_ring_size * 1024)
#define EVBUS_RING_BYTES		((uint64) evbus_ring_size * 1024)
#define EVBUS_RING(db)			(evbus_rings + EVBUS_DB_INDEX(db) * EVBUS_RING_BYTES)

/* ------------------------------------------------------------ an event read */

/* Why a filter had no answer: the event is to be a dead letter. */
typedef struct EvbusFault
{
	int			sqlerrcode;
	const char *message;
} EvbusFault;

/* An event on its way to a handler or client; pointers live in the reader's context. */
typedef struct EvbusEvent
{
	int64		event_id;
	int64		position;
	char	   *type;			/* not NUL-terminated; type_len bytes */
	char	   *key;			/* NULL: none */
	char	   *headers;		/* coded (codec.c); NULL: none */
	char	   *payload;		/* coded */
	int			type_len;
	int			key_len;
	int			headers_len;
	int			payload_len;
	int			attempt;		/* 1 on the first delivery */
	uint64		ring_at;		/* offset + 1 of its entry in the ring, where it was read; 0: elsewhere */
	bool		replayed;		/* a retry, whose first delivery was of a replay */
	bool		redriven;		/* a retry, which was a dead letter */
	const EvbusFault *fault;	/* of its filter; NULL: none */
	struct varlena *decoded;	/* payload as jsonb, where a filter has asked for it; NULL: is to be decoded */
} EvbusEvent;

static inline uint32
evbus_event_bytes(const EvbusEvent *event)
{
	return (uint32) event->type_len + event->key_len + event->headers_len + event->payload_len;
}

#endif							/* EVBUS_H */
