/*-------------------------------------------------------------------------
 * lease.c
 *	  The entries of what is not done, one a range of positions or a retry, and
 *	  the pool they come from.
 *
 * A pool of fixed size per database; an entry is in the free list, or in the list
 * of its subscription.  Its epoch rises at each grant and each end, and is never
 * set back, so whoever remembers place and epoch can tell whether the entry is
 * still what it was.  What the states mean is told in cursor.c.
 *-------------------------------------------------------------------------
 */
#include "lease.h"

#include "breaker.h"
#include "order.h"
#include "stat_outbox.h"

/* Set by handler workers: they take from the whole pool. */
bool		evbus_lease_for_worker = false;

/* Clients leave an eighth of the pool to the workers. */
int
evbus_lease_clients_share(void)
{
	return evbus_max_leases - evbus_max_leases / 8;
}

/*
 * May this process take one more?  No subscription's clients take more than half
 * of the pool.
 */
bool
evbus_lease_available(EvbusDb *db, int sub_slot)
{
	EvbusSub   *sub = EVBUS_SUB(db, sub_slot);

	if (evbus_lease_for_worker)
		return db->leases_used < evbus_max_leases;
	return db->leases_used < evbus_lease_clients_share() &&
		sub->n_held < evbus_max_leases / 2;
}

/* Make an entry that was taken from the pool one in no list and no state. */
static void
init(EvbusDb *db, int sub_slot, int32 i)
{
	EvbusLease *lease = EVBUS_LEASE(db, i);

	lease->sub_slot = sub_slot;
	lease->epoch++;
	lease->lo = lease->hi = 0;
	lease->event_id = 0;
	lease->expires_at = 0;
	lease->attempts = 0;
	lease->pinned = false;
	lease->retry = false;
	lease->tracked = false;
	lease->priority = EVBUS_PRIORITY_UNKNOWN;
	lease->suspect = 0;
	lease->next = lease->prev = -1;
}

/*
 * A new entry, in no list and no state; -1: none left for the likes of us.
 * remainder: it is for a part that goes back, which never fails while there is any.
 */
int32
evbus_lease_alloc(EvbusDb *db, int sub_slot, bool remainder)
{
	int32		i = -1;

	LWLockAcquire(&db->lease_lock, LW_EXCLUSIVE);
	if (remainder || evbus_lease_available(db, sub_slot))
		i = db->lease_free;
	if (i >= 0)
	{
		db->lease_free = EVBUS_LEASE(db, i)->next;
		db->leases_used++;
		evbus_high_raise(&db->high[EVBUS_AREA_LEASES], db->leases_used);
	}
	LWLockRelease(&db->lease_lock);
	if (i >= 0)
		init(db, sub_slot, i);
	return i;
}

/* Up to n at once, as many as there are for the likes of us; to be taken with evbus_lease_next(). */
void
evbus_lease_alloc_many(EvbusDb *db, int sub_slot, int n, EvbusLeaseChain *out)
{
	EvbusSub   *sub = EVBUS_SUB(db, sub_slot);

	*out = EVBUS_NO_LEASES;
	LWLockAcquire(&db->lease_lock, LW_EXCLUSIVE);
	n = Min(n, (evbus_lease_for_worker ? evbus_max_leases : evbus_lease_clients_share()) - db->leases_used);
	if (!evbus_lease_for_worker)
		n = Min(n, evbus_max_leases / 2 - sub->n_held);
	for (int32 i = db->lease_free; i >= 0 && out->n < n; i = EVBUS_LEASE(db, i)->next)
	{
		if (out->n++ == 0)
			out->head = i;
		out->tail = i;
	}
	if (out->n > 0)
	{
		db->lease_free = EVBUS_LEASE(db, out->tail)->next;
		EVBUS_LEASE(db, out->tail)->next = -1;
		db->leases_used += out->n;
		evbus_high_raise(&db->high[EVBUS_AREA_LEASES], db->leases_used);
	}
	LWLockRelease(&db->lease_lock);
}

/* One of those, as evbus_lease_alloc() gives it; -1: that was all. */
int32
evbus_lease_next(EvbusDb *db, int sub_slot, EvbusLeaseChain *from)
{
	int32		i = from->head;

	if (i >= 0)
	{
		from->head = EVBUS_LEASE(db, i)->next;
		from->n--;
		init(db, sub_slot, i);
	}
	return i;
}

/* Back to the pool; the chain is empty then. */
void
evbus_lease_free(EvbusDb *db, EvbusLeaseChain *chain)
{
	if (chain->n == 0)
		return;
	LWLockAcquire(&db->lease_lock, LW_EXCLUSIVE);
	EVBUS_LEASE(db, chain->tail)->next = db->lease_free;
	db->lease_free = chain->head;
	db->leases_used -= chain->n;
	LWLockRelease(&db->lease_lock);
	*chain = EVBUS_NO_LEASES;
}

/* Put a range into the open list, behind a given one; -1: at the head. */
void
evbus_lease_insert_after(EvbusDb *db, EvbusSub *sub, int32 i, int32 after)
{
	EvbusLease *lease = EVBUS_LEASE(db, i);

	lease->prev = after;
	if (after >= 0)
	{
		lease->next = EVBUS_LEASE(db, after)->next;
		EVBUS_LEASE(db, after)->next = i;
	}
	else
	{
		lease->next = sub->open_head;
		sub->open_head = i;
	}
	if (lease->next >= 0)
		EVBUS_LEASE(db, lease->next)->prev = i;
	else
		sub->open_tail = i;
}

/* Put a range where it belongs in the open list, which ascends by lo; most go to the end. */
void
evbus_lease_insert(EvbusDb *db, EvbusSub *sub, int32 i)
{
	int32		after = sub->open_tail;

	while (after >= 0 && EVBUS_LEASE(db, after)->lo > EVBUS_LEASE(db, i)->lo)
		after = EVBUS_LEASE(db, after)->prev;
	evbus_lease_insert_after(db, sub, i, after);
}

/* Take out of its list, with the counts put right, to be freed with others. */
void
evbus_lease_unlink(EvbusDb *db, EvbusSub *sub, int32 i, EvbusLeaseChain *out)
{
	EvbusLease *lease = EVBUS_LEASE(db, i);

	Assert(LWLockHeldByMe(&sub->lock));
	if (lease->tracked)
		evbus_order_untrack(db, sub, i);
	sub->order_full = false;
	if (lease->state == EVBUS_LEASE_HELD)
		sub->n_held--;
	else if (!lease->retry)
		sub->n_returned--;
	if (lease->prev >= 0)
		EVBUS_LEASE(db, lease->prev)->next = lease->next;
	else if (lease->retry)
		sub->retry_head = lease->next;
	else
		sub->open_head = lease->next;
	if (lease->next >= 0)
		EVBUS_LEASE(db, lease->next)->prev = lease->prev;
	else if (!lease->retry)
		sub->open_tail = lease->prev;
	lease->state = EVBUS_LEASE_FREE;
	lease->epoch++;
	lease->sub_slot = -1;
	lease->next = out->head;
	out->head = i;
	if (out->n++ == 0)
		out->tail = i;
}

/* Take out of its list, and free. */
void
evbus_lease_remove(EvbusDb *db, EvbusSub *sub, int32 i)
{
	EvbusLeaseChain chain = EVBUS_NO_LEASES;

	evbus_lease_unlink(db, sub, i, &chain);
	evbus_lease_free(db, &chain);
}

/* A range waits for the next claim, a retry is still in its table. */
static void
give_back(EvbusDb *db, EvbusSub *sub, int32 i)
{
	EvbusLease *lease = EVBUS_LEASE(db, i);

	Assert(LWLockHeldByMe(&sub->lock));
	if (lease->state != EVBUS_LEASE_HELD)
		return;
	pg_atomic_write_u32(&sub->notify, 1);
	if (lease->retry && lease->suspect == 0)
	{
		evbus_lease_remove(db, sub, i);
		pg_atomic_write_u64(&sub->retry_due, 0);	/* look again */
		return;
	}
	lease->state = EVBUS_LEASE_RETURNED;
	lease->epoch++;
	lease->event_id = lease->retry ? lease->event_id : 0;
	lease->expires_at = 0;
	lease->pinned = false;
	sub->n_held--;
	if (lease->retry)
		pg_atomic_write_u64(&sub->retry_due, 0);
	else
		sub->n_returned++;
	sub->order_full = false;
	if (lease->tracked)
		evbus_order_returned(db, sub, i);
}

/* Make one of a range that was given back and its like neighbour above. */
static bool
join_next(EvbusDb *db, EvbusSub *sub, EvbusLease *lease)
{
	EvbusLease *next = lease->next >= 0 ? EVBUS_LEASE(db, lease->next) : NULL;

	if (next == NULL || lease->state != EVBUS_LEASE_RETURNED || next->state != EVBUS_LEASE_RETURNED ||
		lease->tracked || next->tracked || lease->hi != next->lo || lease->priority != next->priority ||
		lease->attempts != next->attempts || lease->suspect != 0 || next->suspect != 0)
		return false;
	lease->hi = next->hi;
	evbus_lease_remove(db, sub, lease->next);
	return true;
}

/*
 * Give back the upper part of a range, from `at` on, with the attempts it has
 * counted; false: there is no entry left for it.
 */
bool
evbus_lease_cut(EvbusDb *db, EvbusSub *sub, EvbusLease *lease, int64 at)
{
	int32		i = evbus_lease_alloc(db, lease->sub_slot, true);
	EvbusLease *rest;

	if (i < 0)
		return false;
	rest = EVBUS_LEASE(db, i);
	rest->lo = at;
	rest->hi = lease->hi;
	rest->attempts = lease->attempts;
	rest->priority = lease->priority;
	rest->state = EVBUS_LEASE_RETURNED;
	lease->hi = at;
	evbus_lease_insert(db, sub, i);
	sub->n_returned++;
	return true;
}

/* What waits takes as few entries as can be. */
static void
join(EvbusDb *db, EvbusSub *sub, int32 i)
{
	EvbusLease *lease = EVBUS_LEASE(db, i);

	(void) join_next(db, sub, lease);
	if (lease->prev >= 0)
		(void) join_next(db, sub, EVBUS_LEASE(db, lease->prev));
}

/* Let a range wait that was only looked at, so that nobody needs to hear of it; look: its first event. */
void
evbus_lease_wait(EvbusDb *db, EvbusSub *sub, int32 i, int64 look)
{
	EvbusLease *lease = EVBUS_LEASE(db, i);

	Assert(LWLockHeldByMe(&sub->lock) && lease->state == EVBUS_LEASE_HELD && !lease->retry && !lease->tracked);
	lease->state = EVBUS_LEASE_RETURNED;
	lease->epoch++;
	lease->event_id = look;
	sub->n_held--;
	sub->n_returned++;
	join(db, sub, i);
}

/*
 * A range that waits is handed out: its first max positions that are to be looked at, if it can be
 * cut.  Returns where to begin.
 */
int64
evbus_lease_take(EvbusDb *db, EvbusSub *sub, EvbusLease *lease, int64 max)
{
	int64		from = evbus_lease_look(lease);

	Assert(LWLockHeldByMe(&sub->lock) && lease->state == EVBUS_LEASE_RETURNED && !lease->tracked);
	if (lease->hi - from > max && lease->suspect == 0)
		(void) evbus_lease_cut(db, sub, lease, from + max);
	sub->n_returned--;
	lease->event_id = 0;
	evbus_lease_grant(sub, lease);
	return from;
}

/* Give back a lease. */
void
evbus_lease_give_back(EvbusDb *db, EvbusSub *sub, int32 i)
{
	EvbusLease *lease = EVBUS_LEASE(db, i);
	bool		retry = lease->retry;

	give_back(db, sub, i);
	if (!retry)
		join(db, sub, i);
}

/* Leases whose time is over go back, each with an attempt counted, unless a circuit breaker is open. */
void
evbus_lease_expire(EvbusDb *db, EvbusSub *sub, TimestampTz now)
{
	int32		heads[2] = {sub->open_head, sub->retry_head};
	TimestampTz next = 0;

	Assert(LWLockHeldByMe(&sub->lock));
	if (sub->next_expiry == 0 || now < sub->next_expiry)
		return;
	for (int list = 0; list < 2; list++)
		for (int32 i = heads[list]; i >= 0;)
		{
			EvbusLease *lease = EVBUS_LEASE(db, i);
			int32		following = lease->next;

			if (lease->state == EVBUS_LEASE_HELD && lease->expires_at != 0 && !lease->pinned)
			{
				if (lease->expires_at <= now)
				{
					bool		count = !evbus_breaker_ran_out(db, sub, lease->event_id);

					evbus_stat_ran_out(db, sub->breaker_slot, EVBUS_SUB(db, sub->breaker_slot)->subscription_id);
					if (lease->retry && count)
						lease->suspect = lease->event_id;	/* keep the entry: it counts the attempt */
					if (lease->attempts < PG_INT16_MAX && count)
						lease->attempts++;
					give_back(db, sub, i);
				}
				else if (next == 0 || lease->expires_at < next)
					next = lease->expires_at;
			}
			i = following;
		}
	sub->next_expiry = next;
	for (int32 i = sub->open_head; i >= 0;)
		if (!join_next(db, sub, EVBUS_LEASE(db, i)))
			i = EVBUS_LEASE(db, i)->next;
}

/* The entry a claim names, if it is still that; the caller holds the lock. */
EvbusLease *
evbus_lease_held(EvbusDb *db, const EvbusClaim *claim)
{
	EvbusLease *lease;

	if (claim->lease < 0 || claim->lease >= evbus_max_leases)
		return NULL;
	lease = EVBUS_LEASE(db, claim->lease);
	if (lease->state != EVBUS_LEASE_HELD || lease->sub_slot != claim->sub_slot || lease->epoch != claim->epoch)
		return NULL;
	return lease;
}

void
evbus_lease_grant(EvbusSub *sub, EvbusLease *lease)
{
	lease->state = EVBUS_LEASE_HELD;
	lease->epoch++;
	sub->n_held++;
	sub->grants++;
}

/* What names an entry that was granted, to be looked at from scan_from on. */
void
evbus_lease_claim(EvbusDb *db, int sub_slot, int32 i, int64 scan_from, EvbusClaim *claim)
{
	const EvbusLease *lease = EVBUS_LEASE(db, i);

	claim->sub_slot = sub_slot;
	claim->lease = i;
	claim->epoch = lease->epoch;
	claim->scan_from = scan_from;
	claim->hi = lease->hi;
	claim->attempts = lease->attempts;
	claim->suspect = lease->suspect;
}
