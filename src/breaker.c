/*-------------------------------------------------------------------------
 * breaker.c
 *	  Circuit breakers: a dependency that is down must not drain a subscription
 *	  into its dead letters.
 *
 *		CLOSED --too many different events failed--> OPEN --probe_at--> HALF_OPEN
 *		HALF_OPEN --the probe succeeded--> CLOSED
 *		HALF_OPEN --it failed, or never came back--> OPEN, for twice as long
 *
 * What is asked is "would this failure open it?", before it is decided whether the
 * event is retried or given up (retry.c).  If so, and while it is not closed, the
 * failure is no attempt: the event waits for the next probe.  So nothing is given up
 * on because of a dependency, however long that is down.
 *
 * Failures are counted by event, each once in a window, so one event that fails
 * and fails does not open it.  What says that the event is to blame is not counted,
 * and goes its way as ever: data exceptions and violated constraints, evbus.reject(),
 * a handler that crashes the server, stored data that is damaged.  Nor are serialization
 * failures, deadlocks and workers that are ended, which say something of neither; but
 * while it is open these are no attempts.
 *
 * Counted is what commits: notes of the transaction, applied by its commit callback,
 * which cannot fail.  The window is a few buckets, so all of it has a fixed size.
 * After a restart it is closed.
 *
 * A probe is one delivery.  A worker's ends with its process, a client's with its
 * lease, both without an outcome counting as a failure.  That the next probe may be
 * another event, the two kinds (new, due again) come first by turns, and what has
 * failed is due again behind what is due already: so a poison event does not keep it open.
 *
 * Locking is described at EvbusBreaker.  Settings are those of the last who came,
 * for who has none at hand (lease.c).
 *-------------------------------------------------------------------------
 */
#include "breaker.h"

#include "access/xact.h"
#include "clock.h"
#include "mb/pg_wchar.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define DELAY_MAX		16		/* times breaker_probe: the longest time between two probes */
#define LOOK_AGAIN		(100 * 1000)	/* microseconds; while a probe is out */

typedef enum NoteKind
{
	SUCCEEDED,
	FAILED,
	SAID_NOTHING				/* of a dependency; a probe's only */
} NoteKind;

/* What this transaction will tell when it commits. */
typedef struct Note
{
	EvbusDb    *db;
	EvbusBreaker *breaker;
	int32		subscription_id;
	NoteKind	kind;
	bool		probe;
	int64		event_id;		/* of successes only that of a probe */
	int64		n;
	int			level;			/* subtransaction nesting */
} Note;

static Note *notes = NULL;
static int	n_notes = 0;
static int	max_notes = 0;

/* The probe that this process has, until its end (a worker) or that of the transaction (a client). */
static struct
{
	EvbusBreaker *breaker;		/* NULL: none */
	uint32		number;
	int			level;
	bool		known;			/* what it is: so nothing more is to be had */
}			mine;

/* --------------------------------------------------- the state; under its mutex */

static EvbusBreaker *
breaker_of(EvbusDb *db, const EvbusSubscription *sub)
{
	return &EVBUS_SUB(db, sub->live_slot)->breaker;
}

static int32
owner_of(const EvbusSubscription *sub)
{
	return sub->replay_of != 0 ? sub->replay_of : sub->subscription_id;
}

static void
clear(EvbusBreaker *b)
{
	memset(&b->state, 0, sizeof(EvbusBreaker) - offsetof(EvbusBreaker, state));
}

/* Take the settings over; what another subscription left at this place goes. */
static void
learn(EvbusBreaker *b, const EvbusSubscription *sub)
{
	if (b->subscription_id != owner_of(sub))
		clear(b);
	else if (sub->uncommitted)
		return;
	if (b->window != sub->breaker_window)
		memset(b->buckets, 0, sizeof(b->buckets));
	b->subscription_id = owner_of(sub);
	b->threshold = sub->breaker_threshold;
	b->window = sub->breaker_window;
	b->min = sub->breaker_min;
	b->probe = sub->breaker_probe;
}

static int64
bucket_number(const EvbusBreaker *b, int64 now)
{
	return now / Max(b->window / EVBUS_BREAKER_BUCKETS, 1);
}

static void
count(EvbusBreaker *b, int64 now, int64 succeeded, int64 failed)
{
	int64		number = bucket_number(b, now);
	int			i = (int) (number % EVBUS_BREAKER_BUCKETS);

	if (b->buckets[i].number != number)
	{
		b->buckets[i].number = number;
		b->buckets[i].succeeded = b->buckets[i].failed = 0;
	}
	b->buckets[i].succeeded += succeeded;
	b->buckets[i].failed += failed;
}

static void
sum(const EvbusBreaker *b, int64 now, int64 *succeeded, int64 *failed)
{
	int64		number = bucket_number(b, now);

	*succeeded = *failed = 0;
	for (int i = 0; i < EVBUS_BREAKER_BUCKETS; i++)
		if (b->buckets[i].number > number - EVBUS_BREAKER_BUCKETS && b->buckets[i].number <= number)
		{
			*succeeded += b->buckets[i].succeeded;
			*failed += b->buckets[i].failed;
		}
}

/* Has the event failed within the window? */
static bool
counted(const EvbusBreaker *b, int64 now, int64 event_id)
{
	for (int i = 0; i < EVBUS_BREAKER_IDS; i++)
		if (b->ids[i] == event_id && now - b->id_at[i] < b->window)
			return true;
	return false;
}

/* Do so many, with these on top, open it? */
static bool
opens(const EvbusBreaker *b, int64 now, int64 succeeded, int64 failed)
{
	int64		s;
	int64		f;

	sum(b, now, &s, &f);
	s += succeeded;
	f += failed;
	return b->threshold > 0 && f >= b->min && f >= b->threshold * (double) (f + s);
}

static void
open_it(EvbusBreaker *b, int64 now, TimestampTz wall)
{
	b->state = EVBUS_BREAKER_OPEN;
	b->since = wall;
	b->delay = b->probe;
	b->probe_at = now + b->delay;
	b->probe_event = 0;
	b->opened++;
	b->failed_probes = 0;
	sum(b, now, &b->succeeded, &b->failed);
}

static int64
next_delay(const EvbusBreaker *b)
{
	return Max(Min(b->delay * 2, b->probe * DELAY_MAX), b->probe);
}

/* A probe failed, or was lost. */
static void
open_again(EvbusBreaker *b, int64 now)
{
	b->state = EVBUS_BREAKER_OPEN;
	b->delay = next_delay(b);
	b->probe_at = now + b->delay;
	b->failed_probes++;
}

/* It told nothing, or there was nothing to probe with: the next one may be had at once. */
static void
probe_again(EvbusBreaker *b, int64 now)
{
	b->state = EVBUS_BREAKER_OPEN;
	b->probe_at = now;
}

static void
close_it(EvbusBreaker *b, TimestampTz wall)
{
	b->state = EVBUS_BREAKER_CLOSED;
	b->since = wall;
	b->probe_event = 0;
	memset(b->buckets, 0, sizeof(b->buckets));
	memset(b->ids, 0, sizeof(b->ids));
}

/* Count a failure that is committed. */
static void
fail(EvbusBreaker *b, int64 now, TimestampTz wall, int64 event_id)
{
	if (counted(b, now, event_id))
		return;
	b->ids[b->next_id % EVBUS_BREAKER_IDS] = event_id;
	b->id_at[b->next_id++ % EVBUS_BREAKER_IDS] = now;
	count(b, now, 0, 1);
	if (opens(b, now, 0, 0))
		open_it(b, now, wall);
}

/* Is it this event that decides?  Also when it was taken for lost meanwhile. */
static bool
is_probe(const EvbusBreaker *b, int64 event_id)
{
	return b->state != EVBUS_BREAKER_CLOSED && b->probe_event == event_id;
}

/* A client's probe of which the lease ended without an outcome: ran out, rolled back, given back. */
static bool
is_lost(EvbusDb *db, const EvbusBreaker *b)
{
	const EvbusLease *lease;

	if (b->state != EVBUS_BREAKER_HALF_OPEN || b->probe_lease < 0)
		return false;
	lease = EVBUS_LEASE(db, b->probe_lease);
	return lease->state != EVBUS_LEASE_HELD || lease->epoch != b->probe_epoch;
}

/* -------------------------------------------------------- notes of a transaction */

/* Deliveries are to be had again; cannot fail. */
static void
wake(EvbusDb *db, EvbusBreaker *b)
{
	EvbusSub   *shared = (EvbusSub *) ((char *) b - offsetof(EvbusSub, breaker));

	pg_atomic_write_u32(&shared->notify, 1);
	ConditionVariableBroadcast(&db->drained_cv);
}

/* Apply what the transaction said; cannot fail. */
static void
apply(const Note *note, int64 now, TimestampTz wall)
{
	EvbusBreaker *b = note->breaker;
	bool		closed = false;

	SpinLockAcquire(&b->mutex);
	if (b->subscription_id == note->subscription_id)
	{
		bool		probe = note->probe && is_probe(b, note->event_id);

		if (note->kind == SUCCEEDED && probe)
		{
			close_it(b, wall);
			closed = true;
		}
		else if (b->state == EVBUS_BREAKER_CLOSED)
		{
			if (note->kind == SUCCEEDED)
				count(b, now, note->n, 0);
			else if (note->kind == FAILED)
				fail(b, now, wall, note->event_id);
		}
		else if (probe && b->state == EVBUS_BREAKER_HALF_OPEN)
		{
			if (note->kind == FAILED)
				open_again(b, now);
			else
				probe_again(b, now);
		}
	}
	SpinLockRelease(&b->mutex);
	if (closed)
		wake(note->db, b);
}

/* What this transaction will add to the counts of a breaker. */
static void
pending(const EvbusBreaker *b, int64 *succeeded, int64 *failed)
{
	*succeeded = *failed = 0;
	for (int i = 0; i < n_notes; i++)
		if (notes[i].breaker == b && notes[i].kind == SUCCEEDED)
			*succeeded += notes[i].n;
		else if (notes[i].breaker == b && notes[i].kind == FAILED)
			*failed += notes[i].n;
}

static void
breaker_xact(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT && n_notes > 0)
	{
		int64		now = evbus_uptime();
		TimestampTz wall = GetCurrentTimestamp();

		for (int i = 0; i < n_notes; i++)
			apply(&notes[i], now, wall);
	}
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		n_notes = 0;
	if (evbus_lease_for_worker)
		return;
	if (event == XACT_EVENT_ABORT)
		evbus_breaker_probe_end(true);
	else if (event == XACT_EVENT_COMMIT)
		mine.breaker = NULL;	/* its lease will tell */
}

static void
breaker_subxact(SubXactEvent event, SubTransactionId my_subid, SubTransactionId parent, void *arg)
{
	int			level = GetCurrentTransactionNestLevel();

	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		while (n_notes > 0 && notes[n_notes - 1].level >= level)
			n_notes--;
		if (!evbus_lease_for_worker && mine.breaker != NULL && mine.level >= level)
			evbus_breaker_probe_end(true);
	}
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (int i = n_notes - 1; i >= 0 && notes[i].level >= level; i--)
			notes[i].level = level - 1;
		if (mine.level >= level)
			mine.level = level - 1;
	}
}

/* Once per process that has to do with a breaker: behind those of pin.c, so that ours come before leases end. */
static void
init(void)
{
	static bool done = false;

	if (done)
		return;
	done = true;
	RegisterXactCallback(breaker_xact, NULL);
	RegisterSubXactCallback(breaker_subxact, NULL);
}

static void
take_note(EvbusDb *db, const EvbusSubscription *sub, NoteKind kind, bool probe, int64 event_id, int64 n)
{
	EvbusBreaker *b = breaker_of(db, sub);
	Note	   *last = n_notes > 0 ? &notes[n_notes - 1] : NULL;
	int			level = GetCurrentTransactionNestLevel();

	init();
	if (kind == SUCCEEDED && !probe && last && last->breaker == b && last->kind == SUCCEEDED && !last->probe && last->level == level)
	{
		last->n += n;
		return;
	}
	if (n_notes == max_notes)
	{
		int			size = Max(max_notes * 2, 64);

		notes = notes ? repalloc_huge(notes, sizeof(Note) * size) : MemoryContextAlloc(TopMemoryContext, sizeof(Note) * size);
		max_notes = size;
	}
	notes[n_notes++] = (Note) {
		.db = db, .breaker = b, .subscription_id = owner_of(sub), .kind = kind, .probe = probe,
		.event_id = event_id, .n = n, .level = level
	};
}

/* A delivery succeeded, if this transaction commits. */
void
evbus_breaker_succeeded(EvbusDb *db, const EvbusSubscription *sub, int64 event_id)
{
	if (sub->breaker_threshold > 0)
	{
		bool		probe = is_probe(breaker_of(db, sub), event_id);

		take_note(db, sub, SUCCEEDED, probe, probe ? event_id : 0, 1);
	}
}

/* Does a failure say that the event is to blame? */
static bool
blames_event(int code)
{
	int			category = ERRCODE_TO_CATEGORY(code);

	return category == ERRCODE_DATA_EXCEPTION || category == ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION ||
		code == ERRCODE_CRASH_SHUTDOWN || code == ERRCODE_DATA_CORRUPTED;
}

/* Or neither the event nor what it needs: others came in the way, or somebody ended the worker. */
static bool
says_neither(int code)
{
	return code == ERRCODE_T_R_SERIALIZATION_FAILURE || code == ERRCODE_T_R_DEADLOCK_DETECTED || code == ERRCODE_ADMIN_SHUTDOWN;
}

/*
 * A delivery failed, if this transaction commits.  True: it is no attempt; the next probe is
 * *wait microseconds away.  rejected: it is given up on whatever we say.
 */
bool
evbus_breaker_failed(EvbusDb *db, const EvbusSubscription *sub, int64 event_id, int sqlerrcode,
					 bool rejected, const char *message, int64 *wait)
{
	EvbusBreaker *b = breaker_of(db, sub);
	bool		neither = says_neither(sqlerrcode);
	bool		blames = rejected || blames_event(sqlerrcode);
	int			len;
	int64		now;
	int64		succeeded;
	int64		failed;
	bool		probe;
	bool		fresh;
	bool		hold;

	if (sub->breaker_threshold == 0)
		return false;
	*wait = 0;
	len = strlen(message);
	if (len >= EVBUS_BREAKER_TEXT)
		len = pg_mbcliplen(message, len, EVBUS_BREAKER_TEXT - 1);
	now = evbus_uptime();
	pending(b, &succeeded, &failed);
	SpinLockAcquire(&b->mutex);
	learn(b, sub);
	probe = is_probe(b, event_id);
	fresh = !counted(b, now, event_id);
	if (!blames && !neither)
	{
		b->sqlerrcode = sqlerrcode;
		memcpy(b->message, message, len);
		b->message[len] = '\0';
	}
	if (blames)
		hold = false;
	else if (b->state == EVBUS_BREAKER_CLOSED)
	{
		hold = !neither && opens(b, now, succeeded, failed + fresh);
		*wait = hold ? b->probe : 0;
	}
	else
	{
		hold = true;
		*wait = b->state == EVBUS_BREAKER_OPEN ? Max(b->probe_at - now, 0) : probe && neither ? 0 : next_delay(b);
	}
	SpinLockRelease(&b->mutex);
	if (!blames && !neither)
		take_note(db, sub, FAILED, probe, event_id, fresh);
	else if (probe)
		take_note(db, sub, SAID_NOTHING, true, event_id, 0);
	return hold;
}

/* Is it not closed, or will not be when this transaction commits?  Then nothing more is to be run. */
bool
evbus_breaker_tripped(EvbusDb *db, const EvbusSubscription *sub)
{
	EvbusBreaker *b = breaker_of(db, sub);
	int64		now;
	int64		succeeded;
	int64		failed;
	bool		tripped;

	if (sub->breaker_threshold == 0)
		return false;
	now = evbus_uptime();
	pending(b, &succeeded, &failed);
	SpinLockAcquire(&b->mutex);
	tripped = b->subscription_id == owner_of(sub) &&
		(b->state != EVBUS_BREAKER_CLOSED || (failed > 0 && opens(b, now, succeeded, failed)));
	SpinLockRelease(&b->mutex);
	return tripped;
}

/*
 * A client's lease of an event ran out: that is a failure, at once.  The caller holds
 * EvbusSub.lock.  True: it is no attempt.
 */
bool
evbus_breaker_ran_out(EvbusDb *db, const EvbusSub *shared, int64 event_id)
{
	EvbusBreaker *b = &EVBUS_SUB(db, shared->breaker_slot)->breaker;
	int64		now;
	TimestampTz wall;
	bool		hold;

	if (b->threshold == 0)
		return false;
	now = evbus_uptime();
	wall = GetCurrentTimestamp();
	SpinLockAcquire(&b->mutex);
	b->sqlerrcode = ERRCODE_EVBUS_REPORTED;
	strlcpy(b->message, "the lease ran out", sizeof(b->message));
	if (b->state == EVBUS_BREAKER_CLOSED)
		fail(b, now, wall, event_id);
	else if (b->state == EVBUS_BREAKER_HALF_OPEN && b->probe_event == event_id)
		open_again(b, now);
	hold = b->state != EVBUS_BREAKER_CLOSED;
	SpinLockRelease(&b->mutex);
	return hold;
}

/* ------------------------------------------------------------------- probes */

/* Microseconds until a delivery may be had; 0: now, if only as a probe.  Without the mutex: a hint. */
int64
evbus_breaker_wait(EvbusDb *db, const EvbusSubscription *sub)
{
	EvbusBreaker *b = breaker_of(db, sub);

	if (sub->breaker_threshold == 0 || b->state == EVBUS_BREAKER_CLOSED || b->subscription_id != owner_of(sub) ||
		(mine.breaker == b && !mine.known))
		return 0;
	if (b->state == EVBUS_BREAKER_HALF_OPEN || mine.breaker != NULL)	/* one probe at a time is all that a process can have */
		return LOOK_AGAIN;
	return Max(b->probe_at - evbus_uptime(), 0);
}

/*
 * May deliveries be taken?  Who gets a probe says with evbus_breaker_probe_is() what it is, or
 * with evbus_breaker_probe_end() that he found none.
 */
EvbusAdmission
evbus_breaker_admit(EvbusDb *db, const EvbusSubscription *sub)
{
	EvbusBreaker *b = breaker_of(db, sub);
	EvbusAdmission admission = EVBUS_ADMIT_NONE;
	int64		now;

	if (sub->breaker_threshold == 0)
		return EVBUS_ADMIT_ALL;
	init();
	now = evbus_uptime();
	SpinLockAcquire(&b->mutex);
	learn(b, sub);
	if (is_lost(db, b))
		open_again(b, now);
	if (b->state == EVBUS_BREAKER_CLOSED)
		admission = EVBUS_ADMIT_ALL;
	else if (b->state == EVBUS_BREAKER_OPEN && b->probe_at <= now && mine.breaker == NULL)
	{
		admission = EVBUS_ADMIT_PROBE;
		b->state = EVBUS_BREAKER_HALF_OPEN;
		b->probes++;
		b->probe_event = 0;
		b->probe_lease = -1;
		mine.breaker = b;
		mine.number = b->probes;
		mine.level = GetCurrentTransactionNestLevel();
		mine.known = false;
	}
	SpinLockRelease(&b->mutex);
	return admission;
}

/* Shall the probe of this process be a new event rather than one that is due again?  By turns. */
bool
evbus_breaker_new_first(void)
{
	return mine.breaker != NULL && mine.number % 2 == 0;
}

/* The probe of this process is this event; claim: of a client, whose lease it ends with.  Before anybody can settle it. */
void
evbus_breaker_probe_is(int64 event_id, const EvbusClaim *claim)
{
	EvbusBreaker *b = mine.breaker;

	if (b == NULL)
		return;
	mine.known = true;
	SpinLockAcquire(&b->mutex);
	if (b->state == EVBUS_BREAKER_HALF_OPEN && b->probes == mine.number)
	{
		b->probe_event = event_id;
		b->probe_lease = claim ? claim->lease : -1;
		b->probe_epoch = claim ? claim->epoch : 0;
	}
	SpinLockRelease(&b->mutex);
}

/* The probe of this process, if it has one and nothing was said of it, came to nothing; lost: by a failure. */
void
evbus_breaker_probe_end(bool lost)
{
	EvbusBreaker *b = mine.breaker;
	int64		now;

	if (b == NULL)
		return;
	mine.breaker = NULL;
	now = evbus_uptime();
	SpinLockAcquire(&b->mutex);
	if (b->state == EVBUS_BREAKER_HALF_OPEN && b->probes == mine.number)
	{
		if (lost)
			open_again(b, now);
		else
			probe_again(b, now);
	}
	SpinLockRelease(&b->mutex);
}

/* ------------------------------------------------------------------ outside */

/* Another subscription comes to this place, or none. */
void
evbus_breaker_forget(EvbusSub *shared)
{
	SpinLockAcquire(&shared->breaker.mutex);
	clear(&shared->breaker);
	SpinLockRelease(&shared->breaker.mutex);
}

/* By hand; false: it was closed. */
bool
evbus_breaker_close(EvbusDb *db, const EvbusSubscription *sub)
{
	EvbusBreaker *b = breaker_of(db, sub);
	TimestampTz wall = GetCurrentTimestamp();
	bool		was_closed;

	SpinLockAcquire(&b->mutex);
	was_closed = b->subscription_id != owner_of(sub) || b->state == EVBUS_BREAKER_CLOSED;
	if (!was_closed)
		close_it(b, wall);
	SpinLockRelease(&b->mutex);
	if (!was_closed)
		wake(db, b);
	return !was_closed;
}

/* What it is now, with the settings as they are; a probe that is lost is noticed. */
void
evbus_breaker_look(EvbusDb *db, const EvbusSubscription *sub, EvbusBreaker *copy)
{
	EvbusBreaker *b = breaker_of(db, sub);
	int64		now = evbus_uptime();
	TimestampTz wall = GetCurrentTimestamp();
	bool		was_open;

	SpinLockAcquire(&b->mutex);
	learn(b, sub);
	if (is_lost(db, b))
		open_again(b, now);
	/* Who takes the setting away wants deliveries. */
	was_open = b->threshold == 0 && b->state != EVBUS_BREAKER_CLOSED;
	if (was_open)
		close_it(b, wall);
	memcpy(copy, b, sizeof(*copy));
	SpinLockRelease(&b->mutex);
	if (was_open)
		wake(db, b);
}

/* What there was within the window. */
void
evbus_breaker_in_window(const EvbusBreaker *b, int64 *succeeded, int64 *failed)
{
	sum(b, evbus_uptime(), succeeded, failed);
}
