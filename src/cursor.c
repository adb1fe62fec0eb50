/*-------------------------------------------------------------------------
 * cursor.c
 *	  How far each subscription is, and who has what in hand.
 *
 * Kept is what is *not* done: `frontier`, and below it one entry for each range
 * that is leased or was given back.  Everything else below the frontier is done.
 * So to ack is to free an entry, which a commit callback can always do; memory
 * is bounded by what is in hand; and the cursor is the lowest open range.
 *
 *		(nothing) --claim--> HELD --ack at commit--> (nothing: done)
 *		                     HELD --abort, release, expiry--> RETURNED --claim--> HELD
 *
 * Positions that no pattern of the subscription matches are done as soon as they
 * are looked at.  So that no ledger row is spent on them, the next lease handed
 * out begins at the first of them: its ack covers them.  After a crash they are
 * looked at again.
 *
 * A pin ties a lease to a transaction: it cannot run out meanwhile, and what
 * shall become of it happens in the commit callback, or not at all.  Locks are
 * described in evbus.h.  What is durable of this is in ledger.c.
 *-------------------------------------------------------------------------
 */
#include "cursor.h"

#include "breaker.h"
#include "dropped.h"
#include "miscadmin.h"
#include "order.h"
#include "pace.h"
#include "utils/timestamp.h"
#include "volatile.h"

/* ------------------------------------------------------------- coming, going */

bool
evbus_cursor_loaded(EvbusDb *db, const EvbusSubscription *sub)
{
	EvbusSub   *shared = EVBUS_SUB(db, sub->slot);

	return shared->subscription_id == sub->subscription_id && shared->epoch == sub->epoch;
}

static void
clear(EvbusDb *db, EvbusSub *shared)
{
	if (shared->subscription_id == 0)
		return;
	while (shared->open_head >= 0)
		evbus_lease_remove(db, shared, shared->open_head);
	while (shared->retry_head >= 0)
		evbus_lease_remove(db, shared, shared->retry_head);
	shared->subscription_id = 0;
}

/*
 * Set a subscription up as the ledger says; whoever comes second changes
 * nothing.  False: more open ranges than there are leases.
 */
bool
evbus_cursor_install(EvbusDb *db, const EvbusProgress *progress)
{
	const EvbusSubscription *sub = progress->sub;
	EvbusSub   *shared = EVBUS_SUB(db, sub->slot);
	EvbusBusState *bus = EVBUS_BUS(db, sub->bus_slot);
	bool		ok = true;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	/* What a volatile one has done is known here alone: who has not heard of a seek must not undo it. */
	if (!evbus_cursor_loaded(db, sub) &&
		!(sub->is_volatile && shared->subscription_id == sub->subscription_id && shared->epoch > sub->epoch))
	{
		if (shared->subscription_id != sub->subscription_id)
		{
			shared->dropped = 0;
			shared->workers = 0;	/* a seek keeps the workers that are at it, and what is known of a dependency */
			pg_atomic_write_u64(&shared->filtered, 0);
			pg_atomic_write_u64(&shared->expired, 0);
			pg_atomic_write_u64(&shared->trace_until, 0);
			evbus_breaker_forget(shared);
		}
		shared->breaker_slot = sub->live_slot;
		clear(db, shared);
		shared->epoch = sub->epoch;
		shared->bus_slot = sub->bus_slot;
		shared->bus_id = sub->bus_id;
		shared->is_volatile = sub->is_volatile;
		shared->frontier = shared->skipped_from = progress->frontier;
		memset(shared->hints, 0, sizeof(shared->hints));
		shared->open_head = shared->open_tail = shared->retry_head = -1;
		shared->n_returned = shared->n_held = 0;
		shared->next_expiry = 0;
		shared->stop = sub->replay_of != 0 ? sub->stop_position : PG_INT64_MAX;
		evbus_pace_begin(shared);
		pg_atomic_write_u32(&shared->owed, 0);
		shared->ordering = EVBUS_ORDER_NONE;
		shared->order_ready = shared->order_full = shared->retry_waits = false;
		shared->n_tracked = shared->n_deferred = 0;
		shared->passed = 0;
		evbus_sub_may_block(shared);
		pg_atomic_write_u64(&shared->retry_due, 0);
		shared->subscription_id = sub->subscription_id;
		for (int i = 0; i < progress->n_open && ok; i++)
		{
			int32		at = evbus_lease_alloc(db, sub->slot, true);

			if (at < 0)
			{
				clear(db, shared);
				ok = false;
				break;
			}
			EVBUS_LEASE(db, at)->lo = progress->open[i].lo;
			EVBUS_LEASE(db, at)->hi = progress->open[i].hi;
			EVBUS_LEASE(db, at)->state = EVBUS_LEASE_RETURNED;
			evbus_lease_insert(db, shared, at);
			shared->n_returned++;
		}
		/* Who listens shall hear what a seek has put before him. */
		if (shared->n_returned > 0 || ((int32) pg_atomic_read_u32(&bus->bus_id) == sub->bus_id &&
									   evbus_sub_end(shared, bus) > shared->frontier))
			pg_atomic_write_u32(&shared->notify, 1);
	}
	LWLockRelease(&shared->lock);
	return ok;
}

/* After a subscription ended: free what it had. */
void
evbus_cursor_forget(EvbusDb *db, int slot, int32 subscription_id)
{
	EvbusSub   *shared = EVBUS_SUB(db, slot);

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (shared->subscription_id == subscription_id)
	{
		clear(db, shared);
		evbus_breaker_forget(shared);
	}
	LWLockRelease(&shared->lock);
}

/* ------------------------------------------------------------------- claims */

static bool
same_sub(const EvbusSub *shared, const EvbusSubscription *sub)
{
	return shared->subscription_id == sub->subscription_id && shared->epoch == sub->epoch;
}

/*
 * Take up to max positions: first what was given back, else past the frontier.
 * False: nothing there, or no lease left for the likes of us (lease.c).
 */
bool
evbus_cursor_claim(EvbusDb *db, const EvbusSubscription *sub, int64 max, EvbusClaim *claim)
{
	EvbusSub   *shared = EVBUS_SUB(db, sub->slot);
	EvbusBusState *bus = EVBUS_BUS(db, sub->bus_slot);
	EvbusLease *lease;
	bool		found = false;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (same_sub(shared, sub))
		evbus_lease_expire(db, shared, GetCurrentTimestamp());
	if (!same_sub(shared, sub) || (!evbus_lease_for_worker && shared->n_held >= evbus_max_leases / 2))
	{
		LWLockRelease(&shared->lock);
		return false;
	}
	if (shared->ordering != EVBUS_ORDER_NONE)
		evbus_order_off(db, shared);
	if (shared->is_volatile)
		evbus_dropped_pass(db, shared);
	claim->sub_slot = sub->slot;
	claim->suspect = 0;
	if (shared->n_returned > 0)
		for (int32 i = shared->open_head; i >= 0; i = lease->next)
		{
			lease = EVBUS_LEASE(db, i);
			if (lease->state != EVBUS_LEASE_RETURNED)
				continue;
			claim->scan_from = evbus_lease_take(db, shared, lease, max);
			claim->lease = i;
			claim->suspect = lease->suspect;
			found = true;
			break;
		}
	if (!found && (int32) pg_atomic_read_u32(&bus->bus_id) == sub->bus_id)
	{
		int64		avail = evbus_sub_end(shared, bus) - shared->frontier;
		int32		i = avail > 0 ? evbus_lease_alloc(db, sub->slot, false) : -1;

		if (i >= 0)
		{
			lease = EVBUS_LEASE(db, i);
			lease->lo = shared->skipped_from;
			lease->hi = shared->frontier + Min(avail, max);
			claim->lease = i;
			claim->scan_from = shared->frontier;
			shared->frontier = shared->skipped_from = lease->hi;
			evbus_lease_grant(shared, lease);
			evbus_lease_insert(db, shared, i);
			found = true;
		}
	}
	if (found)
	{
		lease = EVBUS_LEASE(db, claim->lease);
		claim->epoch = lease->epoch;
		claim->hi = lease->hi;
		claim->attempts = lease->attempts;
	}
	LWLockRelease(&shared->lock);
	return found;
}

/* Let a claim grow past the frontier; false: others are there already, or nothing is. */
bool
evbus_cursor_extend_claim(EvbusDb *db, EvbusClaim *claim, int64 more)
{
	EvbusSub   *shared = EVBUS_SUB(db, claim->sub_slot);
	EvbusBusState *bus = EVBUS_BUS(db, shared->bus_slot);
	EvbusLease *lease;
	bool		grown = false;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	lease = evbus_lease_held(db, claim);
	if (lease && lease->hi == shared->frontier)
	{
		int64		avail = evbus_sub_end(shared, bus) - shared->frontier;

		if (avail > 0)
		{
			lease->hi += Min(avail, more);
			shared->frontier = shared->skipped_from = lease->hi;
			claim->hi = lease->hi;
			grown = true;
		}
	}
	LWLockRelease(&shared->lock);
	return grown;
}

/*
 * Nothing in the claim is for this subscription: done, without a ledger row.
 * The range is left to the next lease, or to the neighbour above; false: there
 * is no such neighbour, so the caller has to ack it.
 */
bool
evbus_cursor_skip(EvbusDb *db, const EvbusClaim *claim)
{
	EvbusSub   *shared = EVBUS_SUB(db, claim->sub_slot);
	EvbusLease *lease;
	bool		done = true;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	lease = evbus_lease_held(db, claim);
	if (lease)
	{
		EvbusLease *above = lease->next >= 0 ? EVBUS_LEASE(db, lease->next) : NULL;

		if (shared->is_volatile)
			;					/* there are no ledger rows to be saved, and publishers may wait for the space */
		else if (lease->hi == shared->frontier)
			shared->skipped_from = Min(shared->skipped_from, lease->lo);
		else if (above && above->lo == lease->hi && above->state == EVBUS_LEASE_HELD && !above->pinned)
			above->lo = lease->lo;
		/* Whoever takes one that waits shall not look here again, for ever if it is far. */
		else if (above && above->lo == lease->hi && above->state == EVBUS_LEASE_RETURNED)
		{
			if (!above->tracked)
				above->event_id = evbus_lease_look(above);
			above->lo = lease->lo;
		}
		else
			done = false;
		if (done)
			evbus_lease_remove(db, shared, claim->lease);
	}
	LWLockRelease(&shared->lock);
	evbus_volatile_freed(db);
	return done;
}

/*
 * Take a row of evbus.retry; false: somebody has it, or no lease is left, or, where
 * there is an order (taking), it is not its turn.  event: its id, position and key.
 */
bool
evbus_cursor_claim_retry(EvbusDb *db, const EvbusSubscription *sub, const EvbusEvent *event,
						 const EvbusTaking *taking, EvbusClaim *claim)
{
	EvbusSub   *shared = EVBUS_SUB(db, sub->slot);
	EvbusLease *lease = NULL;
	uint32		hash = taking ? evbus_order_hash(sub, event->key, event->key_len) : 0;
	int32		i;
	bool		found = false;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (same_sub(shared, sub) && (taking == NULL || shared->ordering == sub->ordering))
	{
		evbus_lease_expire(db, shared, GetCurrentTimestamp());
		for (i = shared->retry_head; i >= 0; i = lease->next)
		{
			lease = EVBUS_LEASE(db, i);
			if (lease->event_id == event->event_id)
				break;
		}
		if (taking && !evbus_order_may(db, shared, sub->slot, hash, event->position, i, taking))
			shared->retry_waits = true;
		else if (i < 0 && (i = evbus_lease_alloc(db, sub->slot, false)) >= 0)
		{
			lease = EVBUS_LEASE(db, i);
			lease->retry = true;
			lease->event_id = event->event_id;
			lease->next = shared->retry_head;
			if (lease->next >= 0)
				EVBUS_LEASE(db, lease->next)->prev = i;
			shared->retry_head = i;
			found = true;
		}
		else if (i >= 0 && lease->state == EVBUS_LEASE_RETURNED)
		{
			if (lease->tracked)
				evbus_order_untrack(db, shared, i);
			found = true;
		}
		if (found)
		{
			evbus_lease_grant(shared, lease);
			if (taking)
				evbus_order_track(db, shared, i, hash, event, taking->number);
			claim->sub_slot = sub->slot;
			claim->lease = i;
			claim->epoch = lease->epoch;
			claim->scan_from = claim->hi = 0;
			claim->attempts = lease->attempts;
			claim->suspect = lease->suspect;
		}
	}
	LWLockRelease(&shared->lock);
	return found;
}

/* Retries whose lease ran out or ended with its worker, up to max; returns how many. */
int
evbus_cursor_idle_retries(EvbusDb *db, const EvbusSubscription *sub, int64 *event_ids, int max)
{
	EvbusSub   *shared = EVBUS_SUB(db, sub->slot);
	int			n = 0;

	LWLockAcquire(&shared->lock, LW_SHARED);
	if (same_sub(shared, sub))
		for (int32 i = shared->retry_head; i >= 0 && n < max; i = EVBUS_LEASE(db, i)->next)
			if (EVBUS_LEASE(db, i)->state == EVBUS_LEASE_RETURNED)
				event_ids[n++] = EVBUS_LEASE(db, i)->event_id;
	LWLockRelease(&shared->lock);
	return n;
}

/* One of those has no row, so nobody will claim it. */
void
evbus_cursor_forget_retry(EvbusDb *db, const EvbusSubscription *sub, int64 event_id)
{
	EvbusSub   *shared = EVBUS_SUB(db, sub->slot);
	int32		i;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (same_sub(shared, sub))
	{
		for (i = shared->retry_head; i >= 0; i = EVBUS_LEASE(db, i)->next)
			if (EVBUS_LEASE(db, i)->event_id == event_id)
				break;
		if (i >= 0 && EVBUS_LEASE(db, i)->state == EVBUS_LEASE_RETURNED)
		{
			evbus_lease_remove(db, shared, i);
			pg_atomic_write_u32(&shared->notify, 1);
		}
	}
	LWLockRelease(&shared->lock);
	ConditionVariableBroadcast(&db->drained_cv);
}

/* A claimed retry turned out to be settled already. */
void
evbus_cursor_drop(EvbusDb *db, const EvbusClaim *claim)
{
	EvbusSub   *shared = EVBUS_SUB(db, claim->sub_slot);

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (evbus_lease_held(db, claim))
		evbus_lease_remove(db, shared, claim->lease);
	LWLockRelease(&shared->lock);
}

/* Give a claim back; suspect names the event that ended the worker, or 0. */
void
evbus_cursor_return(EvbusDb *db, const EvbusClaim *claim, int64 suspect)
{
	EvbusSub   *shared = EVBUS_SUB(db, claim->sub_slot);
	EvbusLease *lease;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	lease = evbus_lease_held(db, claim);
	if (lease)
	{
		lease->suspect = suspect;
		evbus_lease_give_back(db, shared, claim->lease);
	}
	LWLockRelease(&shared->lock);
	ConditionVariableBroadcast(&db->drained_cv);
}

/*
 * Give back the upper part of a claim, from hi on.  False: no lease for it left,
 * so the claim stays as it is.
 */
bool
evbus_cursor_cut(EvbusDb *db, EvbusClaim *claim, int64 hi)
{
	EvbusSub   *shared = EVBUS_SUB(db, claim->sub_slot);
	EvbusLease *lease;
	bool		done = false;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	lease = evbus_lease_held(db, claim);
	if (lease && lease->hi == shared->frontier)
	{
		lease->hi = shared->frontier = shared->skipped_from = hi;
		done = true;
	}
	else if (lease)
		done = evbus_lease_cut(db, shared, lease, hi);
	if (done)
		claim->hi = hi;
	LWLockRelease(&shared->lock);
	return done;
}

/*
 * Turn a claim into one lease for each of its n >= 1 events, ascending by
 * position; each covers the positions before it that are not for this
 * subscription, the last one also those after it.  Returns how many leases there
 * were memory for; the rest of the range goes back.
 */
int
evbus_cursor_split(EvbusDb *db, const EvbusClaim *claim, const EvbusEvent *events, int n,
				   TimestampTz expires_at, EvbusClaim *out)
{
	EvbusSub   *shared = EVBUS_SUB(db, claim->sub_slot);
	EvbusLease *lease;
	int			made = 0;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	lease = evbus_lease_held(db, claim);
	if (lease)
	{
		int32		at = claim->lease;
		int64		hi = lease->hi;
		EvbusLeaseChain more;

		evbus_lease_alloc_many(db, claim->sub_slot, n - 1, &more);
		for (;;)
		{
			int32		rest;

			lease->event_id = events[made].event_id;
			lease->expires_at = expires_at;
			out[made].sub_slot = claim->sub_slot;
			out[made].lease = at;
			out[made].epoch = lease->epoch;
			out[made].attempts = lease->attempts;
			out[made].scan_from = events[made].position;
			out[made].suspect = 0;
			made++;
			if (made == n)
				break;
			rest = evbus_lease_next(db, claim->sub_slot, &more);
			if (rest < 0)
			{
				/* No more for us: what follows the last event goes back. */
				if (!evbus_lease_cut(db, shared, lease, events[made - 1].position + 1))
				{
					/* The last one must not cover events it does not name. */
					made--;
					lease->event_id = 0;
					evbus_lease_give_back(db, shared, at);
				}
				break;
			}
			lease->hi = events[made - 1].position + 1;
			EVBUS_LEASE(db, rest)->lo = lease->hi;
			EVBUS_LEASE(db, rest)->hi = hi;
			EVBUS_LEASE(db, rest)->attempts = lease->attempts;
			EVBUS_LEASE(db, rest)->priority = lease->priority;
			evbus_lease_grant(shared, EVBUS_LEASE(db, rest));
			evbus_lease_insert_after(db, shared, rest, at);
			at = rest;
			lease = EVBUS_LEASE(db, at);
		}
		if (made > 0 && expires_at != 0 && (shared->next_expiry == 0 || expires_at < shared->next_expiry))
			shared->next_expiry = expires_at;
	}
	LWLockRelease(&shared->lock);
	return made;
}

/* Let a client's claim (of a retry) end by time. */
void
evbus_cursor_set_expiry(EvbusDb *db, const EvbusClaim *claim, int64 event_id, TimestampTz expires_at)
{
	EvbusSub   *shared = EVBUS_SUB(db, claim->sub_slot);
	EvbusLease *lease;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	lease = evbus_lease_held(db, claim);
	if (lease)
	{
		lease->event_id = event_id;
		lease->expires_at = expires_at;
		if (shared->next_expiry == 0 || expires_at < shared->next_expiry)
			shared->next_expiry = expires_at;
	}
	LWLockRelease(&shared->lock);
}

/* Is there anything a claim might get?  A look without the lock. */
bool
evbus_cursor_has_work(EvbusDb *db, const EvbusSubscription *sub, TimestampTz now)
{
	EvbusSub   *shared = EVBUS_SUB(db, sub->slot);
	EvbusBusState *bus = EVBUS_BUS(db, sub->bus_slot);
	bool		ordered = sub->ordering != EVBUS_ORDER_NONE;	/* without, nothing waits for anything */
	bool		known = ordered && shared->ordering == sub->ordering;	/* what is kept is kept for this order */

	if (!evbus_cursor_loaded(db, sub))
		return true;			/* to be loaded */
	if (sub->breaker_threshold > 0 && evbus_breaker_wait(db, sub) > 0)
		return false;
	return (((known && shared->order_ready) ||
			 (!(ordered && shared->order_full) && (shared->n_returned > (known ? shared->n_deferred : 0) ||
												   ((int32) pg_atomic_read_u32(&bus->bus_id) == sub->bus_id &&
													evbus_sub_end(shared, bus) > shared->frontier)))) &&
			evbus_pace_wait(db, sub, false) == 0) ||
		((int64) pg_atomic_read_u64(&shared->retry_due) <= now && evbus_pace_wait(db, sub, true) == 0) ||
		(shared->next_expiry != 0 && shared->next_expiry <= now);
}

/* For views and checks: how far a subscription is; false: not loaded. */
bool
evbus_cursor_progress(EvbusDb *db, const EvbusSubscription *sub, EvbusCursorState *state)
{
	EvbusSub   *shared = EVBUS_SUB(db, sub->slot);
	EvbusBusState *bus = EVBUS_BUS(db, sub->bus_slot);
	bool		loaded;

	memset(state, 0, sizeof(*state));
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	loaded = same_sub(shared, sub);
	if (loaded)
	{
		evbus_lease_expire(db, shared, GetCurrentTimestamp());
		if (shared->is_volatile)
			evbus_dropped_pass(db, shared);
		state->dropped = shared->dropped;
		state->next_position = shared->frontier;
		if ((int32) pg_atomic_read_u32(&bus->bus_id) == sub->bus_id)
			state->next_position = Max(state->next_position, evbus_sub_end(shared, bus));
		state->cursor = shared->open_head >= 0 ? EVBUS_LEASE(db, shared->open_head)->lo : shared->frontier;
		state->undelivered = state->next_position - shared->frontier;
		state->workers = shared->workers;
		for (int32 i = shared->open_head; i >= 0; i = EVBUS_LEASE(db, i)->next)
		{
			EvbusLease *lease = EVBUS_LEASE(db, i);
			bool		held = lease->state == EVBUS_LEASE_HELD;
			/* One event in hand covers positions that were passed over, too: those are done. */
			int64		n = held && lease->event_id != 0 ? 1 : lease->hi - evbus_lease_look(lease);

			state->undelivered += n;
			if (held)
				state->in_flight += n;
		}
		for (int32 i = shared->retry_head; i >= 0; i = EVBUS_LEASE(db, i)->next)
			if (EVBUS_LEASE(db, i)->state == EVBUS_LEASE_HELD)
				state->in_flight++;
	}
	LWLockRelease(&shared->lock);
	return loaded;
}

/* One more or one less worker is busy with a subscription; false: there are enough. */
bool
evbus_cursor_enter(EvbusDb *db, const EvbusSubscription *sub)
{
	EvbusSub   *shared = EVBUS_SUB(db, sub->slot);
	bool		ok;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	ok = same_sub(shared, sub) && shared->workers < sub->concurrency;
	if (ok)
		shared->workers++;
	LWLockRelease(&shared->lock);
	return ok;
}

void
evbus_cursor_leave(EvbusDb *db, int slot, int32 subscription_id)
{
	EvbusSub   *shared = EVBUS_SUB(db, slot);

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (shared->subscription_id == subscription_id && shared->workers > 0)
		shared->workers--;
	LWLockRelease(&shared->lock);
}

/* The positions a claim covers now; false: it is no longer the caller's. */
bool
evbus_cursor_range(EvbusDb *db, const EvbusClaim *claim, EvbusRange *range)
{
	EvbusSub   *shared = EVBUS_SUB(db, claim->sub_slot);
	EvbusLease *lease;

	LWLockAcquire(&shared->lock, LW_SHARED);
	lease = evbus_lease_held(db, claim);
	if (lease)
	{
		range->lo = lease->lo;
		range->hi = lease->hi;
	}
	LWLockRelease(&shared->lock);
	return lease != NULL;
}

/* Does a receipt still hold?  copy, if not NULL, gets the entry. */
bool
evbus_cursor_good(EvbusDb *db, const EvbusClaim *claim, int32 subscription_id, int64 event_id, EvbusLease *copy)
{
	EvbusSub   *shared;
	EvbusLease *lease;
	bool		good;

	if (claim->sub_slot < 0 || claim->sub_slot >= evbus_max_subscriptions)
		return false;
	shared = EVBUS_SUB(db, claim->sub_slot);
	LWLockAcquire(&shared->lock, LW_SHARED);
	lease = evbus_lease_held(db, claim);
	good = lease != NULL && shared->subscription_id == subscription_id && lease->event_id == event_id;
	if (good && copy)
		*copy = *lease;
	LWLockRelease(&shared->lock);
	return good;
}

/* Move the end of a lease; not if it is pinned. */
bool
evbus_cursor_renew(EvbusDb *db, const EvbusClaim *claim, int32 subscription_id, int64 event_id, TimestampTz expires_at)
{
	EvbusSub   *shared;
	EvbusLease *lease;
	bool		good;

	if (claim->sub_slot < 0 || claim->sub_slot >= evbus_max_subscriptions)
		return false;
	shared = EVBUS_SUB(db, claim->sub_slot);
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	lease = evbus_lease_held(db, claim);
	good = lease != NULL && shared->subscription_id == subscription_id && lease->event_id == event_id && !lease->pinned;
	if (good)
	{
		lease->expires_at = expires_at;
		if (shared->next_expiry == 0 || expires_at < shared->next_expiry)
			shared->next_expiry = expires_at;
	}
	LWLockRelease(&shared->lock);
	return good;
}

/* Take back what ran out, for those who only look. */
void
evbus_cursor_reap(EvbusDb *db, int slot, TimestampTz now)
{
	EvbusSub   *shared = EVBUS_SUB(db, slot);

	if (shared->next_expiry == 0 || now < shared->next_expiry)
		return;
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (shared->subscription_id != 0)
		evbus_lease_expire(db, shared, now);
	LWLockRelease(&shared->lock);
	ConditionVariableBroadcast(&db->drained_cv);
}
