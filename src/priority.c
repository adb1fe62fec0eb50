/*-------------------------------------------------------------------------
 * priority.c
 *	  Taking deliveries of a subscription by priority.
 *
 * The log has one order, so who wants what is urgent has to look ahead.  What was looked
 * at and is not done is kept as ranges of positions (cursor.c), and a range has one
 * priority.  So a backlog of a million usual events is one entry, however far ahead
 * it was looked at, and each urgent one among them one or two more:
 *
 *		positions	1 ........ 500 | 501 | 502 ........ 900 | frontier: not looked at
 *		priority	     0         |  5  |       0          |
 *
 * Each taking looks some way further ahead, so the frontier gets there long before the
 * deliveries do, and then hands out the highest priority there is, lowest positions
 * first.  It ends where there are too many ranges: WINDOW entries may wait, and beyond
 * those nothing is overtaken; nor is anything while half of all leases are in use.  After a restart priorities are not known, and are looked up again.
 *
 * Nobody starves: who is overtaken is owed one delivery for each SHARE - 1, by position.
 * So of SHARE deliveries one is the oldest that waits, and an event with k others before it
 * comes after SHARE * (k + 1) deliveries at the latest, whatever else is published.
 *
 * One process at a time takes, as of subscriptions in order (ordered.c has the lock).
 *-------------------------------------------------------------------------
 */
#include "priority.h"

#include "access/xact.h"
#include "clock.h"
#include "cursor.h"
#include "dropped.h"
#include "envelope.h"
#include "ledger.h"
#include "miscadmin.h"
#include "ordered.h"
#include "pin.h"
#include "point.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define SHARE			8		/* of so many deliveries one is the oldest */
#define LOOK_LEAST		1024	/* positions that each taking looks further ahead, */
#define LOOK_TIMES		8		/* or so many for each delivery */
#define LOOK_CHUNK		1024	/* of these at once */
#define CLAIM_MAX		4096	/* positions looked through for one delivery, at once */
#define WINDOW			Max(evbus_max_leases / 16, 4)

typedef struct Taking
{
	EvbusDb    *db;
	const EvbusSubscription *sub;
	EvbusSub   *shared;
	EvbusBusState *bus;
	TimestampTz expires_at;		/* of the leases; 0: they end with the process */
	EvbusEvents *out;
	EvbusClaim *claims;			/* of out's events */
	int64		bytes;			/* that out's events have */
	int64		owed;			/* EvbusSub.passed; nobody else takes meanwhile */
} Taking;

static bool
same_sub(const Taking *t)
{
	return t->shared->subscription_id == t->sub->subscription_id && t->shared->epoch == t->sub->epoch;
}

/* Positions that nobody has looked at; the caller holds the lock. */
static int64
unseen(const Taking *t)
{
	return (int32) pg_atomic_read_u32(&t->bus->bus_id) == t->sub->bus_id ? evbus_sub_end(t->shared, t->bus) - t->shared->frontier : 0;
}

/* Take an entry that waits, or max positions of it. */
static void
grant(const Taking *t, int32 i, int64 max, EvbusClaim *claim)
{
	int64		from = evbus_lease_take(t->db, t->shared, EVBUS_LEASE(t->db, i), max);

	evbus_lease_claim(t->db, t->sub->slot, i, from, claim);
}

/* How many more entries may wait. */
static int
room(const Taking *t)
{
	return Min(WINDOW - t->shared->n_returned, evbus_max_leases / 2 - t->db->leases_used);
}

/* Put all that runs out or is lost where it belongs; false: the subscription has moved. */
static bool
begin(Taking *t)
{
	bool		ok;

	LWLockAcquire(&t->shared->lock, LW_EXCLUSIVE);
	ok = same_sub(t);
	if (ok)
	{
		evbus_lease_expire(t->db, t->shared, GetCurrentTimestamp());
		if (t->shared->ordering != EVBUS_ORDER_NONE)
			evbus_order_off(t->db, t->shared);
		if (t->shared->is_volatile)
			evbus_dropped_pass(t->db, t->shared);
		t->owed = t->shared->passed;
	}
	LWLockRelease(&t->shared->lock);
	return ok;
}

/* ----------------------------------------------------------------- looking ahead */

/* The lowest positions of which the priorities are not known; false: there are none, or enough is known. */
static bool
claim_unseen(Taking *t, int64 max, EvbusClaim *claim)
{
	EvbusSub   *shared = t->shared;
	int32		i = -1;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	max = Min(max, room(t));	/* each may be a range of its own */
	if (same_sub(t) && max > 0)
	{
		int64		avail;

		if (shared->n_returned > 0)
			for (i = shared->open_head; i >= 0; i = EVBUS_LEASE(t->db, i)->next)
			{
				EvbusLease *lease = EVBUS_LEASE(t->db, i);

				/* What ended a worker comes first anyhow. */
				if (lease->state == EVBUS_LEASE_RETURNED && lease->priority == EVBUS_PRIORITY_UNKNOWN && lease->suspect == 0)
				{
					grant(t, i, max, claim);
					break;
				}
			}
		if (i < 0 && (avail = unseen(t)) > 0 && (i = evbus_lease_alloc(t->db, t->sub->slot, false)) >= 0)
		{
			EvbusLease *lease = EVBUS_LEASE(t->db, i);

			int64		from = shared->frontier;

			lease->lo = shared->skipped_from;
			lease->hi = shared->frontier = shared->skipped_from = from + Min(avail, max);
			evbus_lease_grant(shared, lease);
			evbus_lease_insert(t->db, shared, i);
			evbus_lease_claim(t->db, t->sub->slot, i, from, claim);
		}
	}
	LWLockRelease(&shared->lock);
	return i >= 0;
}

/* Make ranges of one priority of a claim that was read, and let them wait; n >= 1. */
static void
mark(Taking *t, const EvbusClaim *claim, const EvbusEvents *events)
{
	EvbusSub   *shared = t->shared;
	int8	   *priorities = palloc(events->n);
	int32		at = claim->lease;

	for (int k = 0; k < events->n; k++)
		priorities[k] = (int8) evbus_event_priority(&events->events[k]);
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (evbus_lease_held(t->db, claim))
		for (int k = 0; at >= 0;)
		{
			EvbusLease *lease = EVBUS_LEASE(t->db, at);
			int			first = k;
			int32		rest = -1;

			while (k < events->n && priorities[k] == priorities[first])
				k++;
			if (k < events->n)
				rest = evbus_lease_alloc(t->db, claim->sub_slot, true);
			lease->priority = k == events->n || rest >= 0 ? priorities[first] : EVBUS_PRIORITY_UNKNOWN;
			if (rest >= 0)
			{
				EvbusLease *above = EVBUS_LEASE(t->db, rest);

				above->lo = events->events[k - 1].position + 1;
				above->hi = lease->hi;
				above->attempts = lease->attempts;
				lease->hi = above->lo;
				evbus_lease_grant(shared, above);
				evbus_lease_insert_after(t->db, shared, rest, at);
			}
			/* Of a volatile bus what precedes it may be lost, which is counted when it is read again. */
			evbus_lease_wait(t->db, shared, at, shared->is_volatile ? 0 : events->events[first].position);
			at = rest;
		}
	LWLockRelease(&shared->lock);
	pfree(priorities);
}

/* Find out the priorities of up to so many positions that are not known; returns how many that were. */
static int64
look_ahead(Taking *t, int64 positions)
{
	/* Whatever filter and age say of an event is asked, and counted, when it is taken. */
	EvbusSubscription all = evbus_subscription_unfiltered(t->sub);
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "evbus look", ALLOCSET_DEFAULT_SIZES);
	EvbusClaim	claim;
	int64		looked = 0;

	all.looks = true;
	while (looked < positions && claim_unseen(t, Min(positions - looked, LOOK_CHUNK), &claim))
	{
		EvbusEvents events = {0};
		MemoryContext old = MemoryContextSwitchTo(context);

		looked += claim.hi - claim.scan_from;
		(void) evbus_pin(t->db, &claim, EVBUS_PIN_RECEIVED);	/* an error gives it back */
		evbus_read(t->db, &all, claim.scan_from, claim.hi, &events);
		t->out->lsn = Max(t->out->lsn, events.lsn);
		if (events.n > 0)
			mark(t, &claim, &events);
		else
			evbus_ledger_pass_over(t->db, t->sub, &claim);
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
		CHECK_FOR_INTERRUPTS();
	}
	MemoryContextDelete(context);
	return looked;
}

/* ------------------------------------------------------------------------ taking */

/* What comes next of two ranges that wait: the one whose event ended a worker, or of the higher priority. */
static int
rank(const EvbusLease *lease)
{
	if (lease->suspect != 0)
		return PG_INT8_MAX;
	return lease->priority == EVBUS_PRIORITY_UNKNOWN ? 0 : lease->priority;
}

/* So many deliveries, until it is the other's turn. */
static int64
may_take(const Taking *t, bool oldest, bool overtaken)
{
	return oldest ? t->owed / (SHARE - 1) : overtaken ? SHARE - 1 - t->owed : PG_INT32_MAX;
}

/*
 * Take up to max positions of what comes next; false: nothing waits.  *oldest: because it waits
 * longest; else *overtaken: others that do have to wait for it.
 */
static bool
pick(Taking *t, int64 max, EvbusClaim *claim, bool *oldest, bool *overtaken)
{
	EvbusSub   *shared = t->shared;
	int32		first = -1;
	int32		best = -1;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	*oldest = t->owed >= SHARE - 1;
	if (same_sub(t) && shared->n_returned > 0 && evbus_lease_available(t->db, t->sub->slot))
		for (int32 i = shared->open_head; i >= 0; i = EVBUS_LEASE(t->db, i)->next)
			if (EVBUS_LEASE(t->db, i)->state == EVBUS_LEASE_RETURNED)
			{
				if (first < 0)
					first = i;
				if (best < 0 || rank(EVBUS_LEASE(t->db, i)) > rank(EVBUS_LEASE(t->db, best)))
					best = i;
				if (*oldest)
					break;
			}
	*overtaken = best != first;
	if (first >= 0)
		grant(t, *oldest ? first : best, Min(max, may_take(t, *oldest, *overtaken)), claim);
	LWLockRelease(&shared->lock);
	return first >= 0;
}

/* Read a claim, and lease its events one by one, up to max; returns how many.  False in *more: no lease is left. */
static int
take_claim(Taking *t, EvbusClaim *claim, int max, bool *more)
{
	EvbusEvents *out = t->out;
	EvbusEvents found = {0};
	EvbusClaim *claims = t->claims + out->n;
	int			made;

	*more = true;
	(void) evbus_pin(t->db, claim, EVBUS_PIN_RECEIVED);
	evbus_read(t->db, t->sub, claim->scan_from, claim->hi, &found);
	out->lsn = Max(out->lsn, found.lsn);
	if (found.n == 0)
	{
		evbus_ledger_pass_over(t->db, t->sub, claim);
		evbus_read_settled(t->db, t->sub, &found, claim->hi);
		return 0;
	}
	EVBUS_POINT("receive.claimed");
	if (found.n > max && evbus_cursor_cut(t->db, claim, found.events[max - 1].position + 1))
		found.n = max;
	if (found.n > max)
	{
		evbus_cursor_return(t->db, claim, claim->suspect);
		*more = false;
		return 0;
	}
	evbus_pin_room(found.n);
	made = evbus_cursor_split(t->db, claim, found.events, found.n, t->expires_at, claims);
	evbus_pin_received(t->db, claims + 1, made - 1);	/* the first one is the claim's */
	evbus_read_settled(t->db, t->sub, &found, made == found.n ? claim->hi : made > 0 ? found.events[made - 1].position + 1 : 0);
	for (int i = 0; i < made; i++)
	{
		claims[i].suspect = claim->suspect;
		t->bytes += evbus_event_bytes(&found.events[i]);
	}
	memcpy(out->events + out->n, found.events, sizeof(EvbusEvent) * made);
	out->n += made;
	*more = made == found.n;
	return made;
}

/* What was taken is all there is: put the higher priorities first. */
static void
sort(Taking *t)
{
	int			n = t->out->n;
	EvbusEvent *events = palloc(sizeof(EvbusEvent) * n);
	EvbusClaim *claims = palloc(sizeof(EvbusClaim) * n);
	int			at = 0;

	for (int level = EVBUS_PRIORITY_MAX; at < n && level >= -EVBUS_PRIORITY_MAX; level--)
		for (int i = 0; i < n; i++)
			if (evbus_event_priority(&t->out->events[i]) == level)
			{
				events[at] = t->out->events[i];
				claims[at++] = t->claims[i];
			}
	memcpy(t->out->events, events, sizeof(EvbusEvent) * n);
	memcpy(t->claims, claims, sizeof(EvbusClaim) * n);
	pfree(events);
	pfree(claims);
}

/* Does nothing wait, and is what is new at most so much?  Then it is read once only. */
static bool
all_fits(Taking *t, int64 max)
{
	bool		fits;

	LWLockAcquire(&t->shared->lock, LW_SHARED);
	fits = same_sub(t) && t->shared->n_returned == 0 && unseen(t) <= max;
	LWLockRelease(&t->shared->lock);
	return fits;
}

/* How many more events to take. */
static int
wanted(const Taking *t, int max, int64 bytes_max)
{
	return evbus_read_more(t->out->n, t->bytes, bytes_max, max - t->out->n);
}

/* Of what waits and is known; false: there are no leases, or no time. */
static bool
take_known(Taking *t, int max, int64 bytes_max, int64 until)
{
	int			want = wanted(t, max, bytes_max);
	int64		look = want;
	EvbusClaim	claim;
	bool		more = true;
	bool		oldest;
	bool		overtaken;

	while (more && want > 0 && pick(t, Max(look, want), &claim, &oldest, &overtaken))
	{
		int			most = (int) Min(want, may_take(t, oldest, overtaken));
		int			n = take_claim(t, &claim, most, &more);

		if (oldest)
			t->owed -= (int64) n * (SHARE - 1);
		else
			t->owed = overtaken ? Min(t->owed + n, (int64) (SHARE - 1) * EVBUS_BATCH_MAX) : 0;
		/* What is of other types, or kept back, may be most of it. */
		look = n == 0 ? Min(look * 2, CLAIM_MAX) : 1;
		want = wanted(t, max, bytes_max);
		CHECK_FOR_INTERRUPTS();
		if (until != 0 && evbus_uptime() > until)
			return false;
	}
	return more;
}

static void
take(Taking *t, int max, int64 bytes_max, bool together)
{
	int			want = wanted(t, max, bytes_max);
	/* A worker has others to serve, too: it comes back. */
	int64		until = together && t->sub->filter ? evbus_uptime() + EVBUS_LOOK_TIME : 0;
	EvbusClaim	claim;
	bool		more;

	if (all_fits(t, want))
	{
		t->owed = 0;
		if (evbus_cursor_claim(t->db, t->sub, want, &claim) && take_claim(t, &claim, want, &more) > 1)
			sort(t);
		return;
	}
	/* Few of what was looked at may be for us, and few may wait at a time: so it is looked on. */
	for (int before = -1; wanted(t, max, bytes_max) > 0;)
	{
		int64		looked = look_ahead(t, Max((int64) max * LOOK_TIMES, LOOK_LEAST));

		if (!take_known(t, max, bytes_max, until))
			break;
		if (looked == 0 && t->out->n == Max(before, 0))
		{
			/* Others have so many leases that nobody may look ahead: then as they come. */
			for (int64 look = want; t->out->n == 0 && evbus_cursor_claim(t->db, t->sub, look, &claim); look = Min(look * 2, CLAIM_MAX))
			{
				if (take_claim(t, &claim, want, &more) > 1)
					sort(t);
				CHECK_FOR_INTERRUPTS();
				if (!more || (until != 0 && evbus_uptime() > until))
					break;
			}
			break;
		}
		before = t->out->n;
	}
}

/*
 * Lease up to max events, at least 1, by priority, and put them into an empty *out, each
 * with its claim; returns how many.  Arguments as of evbus_ordered_take().
 */
int
evbus_priority_take(EvbusDb *db, const EvbusSubscription *sub, int max, int64 bytes_max, bool together,
					TimestampTz expires_at, EvbusEvents *out, EvbusClaim *claims)
{
	Taking		t = {.db = db, .sub = sub, .shared = EVBUS_SUB(db, sub->slot), .bus = EVBUS_BUS(db, sub->bus_slot),
	.expires_at = expires_at, .out = out, .claims = claims};
	int			pins = evbus_pin_count();

	out->events = palloc(sizeof(EvbusEvent) * (out->size = max));
	(void) evbus_ordered_lock(sub, true);
	if (begin(&t))
	{
		take(&t, max, bytes_max, together);
		LWLockAcquire(&t.shared->lock, LW_EXCLUSIVE);
		if (same_sub(&t))
			t.shared->passed = (uint32) t.owed;
		LWLockRelease(&t.shared->lock);
	}
	evbus_ordered_unlock(sub);
	if (expires_at == 0)
		evbus_pin_keep(pins);
	return out->n;
}
