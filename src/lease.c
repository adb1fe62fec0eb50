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

/* Set by handler workers: they take from the whole pool. */
bool		evbus_lease_for_worker = false;

/*
 * May this process take one more?  Clients leave an eighth of the pool to the
 * workers, and no subscription's clients take more than half of it.
 */
bool
evbus_lease_available(EvbusDb *db, int sub_slot)
{
	EvbusSub   *sub = EVBUS_SUB(db, sub_slot);

	if (evbus_lease_for_worker)
		return db->leases_used < evbus_max_leases;
	return db->leases_used < evbus_max_leases - evbus_max_leases / 8 &&
		sub->n_held < evbus_max_leases / 2;
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
	}
	LWLockRelease(&db->lease_lock);
	if (i >= 0)
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
		lease->suspect = 0;
		lease->next = lease->prev = -1;
	}
	return i;
}

static void
lease_free(EvbusDb *db, int32 i)
{
	EvbusLease *lease = EVBUS_LEASE(db, i);

	lease->state = EVBUS_LEASE_FREE;
	lease->epoch++;
	lease->sub_slot = -1;
	LWLockAcquire(&db->lease_lock, LW_EXCLUSIVE);
	lease->next = db->lease_free;
	db->lease_free = i;
	db->leases_used--;
	LWLockRelease(&db->lease_lock);
}

/* Put a range into the open list, which ascends by lo; most go to the end. */
void
evbus_lease_insert(EvbusDb *db, EvbusSub *sub, int32 i)
{
	EvbusLease *lease = EVBUS_LEASE(db, i);
	int32		after = sub->open_tail;

	while (after >= 0 && EVBUS_LEASE(db, after)->lo > lease->lo)
		after = EVBUS_LEASE(db, after)->prev;
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

/* Take out of its list, and free, with the counts put right. */
void
evbus_lease_remove(EvbusDb *db, EvbusSub *sub, int32 i)
{
	EvbusLease *lease = EVBUS_LEASE(db, i);

	Assert(LWLockHeldByMe(&sub->lock));
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
	lease_free(db, i);
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
}

/* Make one of a range that was given back and its like neighbour above. */
static bool
join_next(EvbusDb *db, EvbusSub *sub, EvbusLease *lease)
{
	EvbusLease *next = lease->next >= 0 ? EVBUS_LEASE(db, lease->next) : NULL;

	if (next == NULL || lease->state != EVBUS_LEASE_RETURNED || next->state != EVBUS_LEASE_RETURNED ||
		lease->hi != next->lo || lease->attempts != next->attempts || lease->suspect != 0 || next->suspect != 0)
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
	rest->state = EVBUS_LEASE_RETURNED;
	lease->hi = at;
	evbus_lease_insert(db, sub, i);
	sub->n_returned++;
	return true;
}

/* Give back a lease; what is given back takes as few entries as can be. */
void
evbus_lease_give_back(EvbusDb *db, EvbusSub *sub, int32 i)
{
	EvbusLease *lease = EVBUS_LEASE(db, i);
	bool		retry = lease->retry;

	give_back(db, sub, i);
	if (retry)
		return;
	(void) join_next(db, sub, lease);
	if (lease->prev >= 0)
		(void) join_next(db, sub, EVBUS_LEASE(db, lease->prev));
}

/* Leases whose time is over go back, each with an attempt counted. */
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
					if (lease->retry)
						lease->suspect = lease->event_id;	/* keep the entry: it counts the attempt */
					if (lease->attempts < PG_INT16_MAX)
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
}
