/*-------------------------------------------------------------------------
 * dropped.c
 *	  Subscriptions of volatile buses: from where on the ring is theirs, and what was
 *	  overwritten before they had settled it.
 *
 * The first is only asked for by publishers that need space.  The other is found out by
 * who comes for events: what nobody has in hand, before a claim; what somebody has, when
 * he reads it.  What is counted is taken off the range that it was in.
 *
 * And those of durable buses that drop the oldest events (backlog.c).
 *-------------------------------------------------------------------------
 */
#include "dropped.h"

#include "lease.h"
#include "volatile.h"

/* The lowest position that a subscription has not settled. */
int64
evbus_unsettled_from(EvbusDb *db, const EvbusSubscription *sub)
{
	EvbusSub   *shared = EVBUS_SUB(db, sub->slot);
	int64		lowest = sub->start_position;

	LWLockAcquire(&shared->lock, LW_SHARED);
	if (shared->subscription_id == sub->subscription_id && shared->epoch == sub->epoch)
		lowest = shared->open_head >= 0 ? EVBUS_LEASE(db, shared->open_head)->lo : shared->frontier;
	LWLockRelease(&shared->lock);
	return lowest;
}

/* Count n positions as dropped.  The caller holds the lock of the subscription. */
static void
count(EvbusVolatile *v, EvbusSub *shared, int64 n)
{
	shared->dropped += n;
	pg_atomic_fetch_add_u64(&v->dropped, (uint64) n);
}

/* Pass over what was overwritten and is in nobody's hands.  The caller holds the lock. */
void
evbus_dropped_pass(EvbusDb *db, EvbusSub *shared)
{
	EvbusVolatile *v = evbus_volatile_find(db, shared->bus_slot, shared->bus_id);
	int64		first;
	int64		oldest;

	Assert(LWLockHeldByMe(&shared->lock));
	if (v == NULL)
		return;
	first = (int64) pg_atomic_read_u64(&v->first_position); /* what was before a restart is not counted */
	oldest = (int64) pg_atomic_read_u64(&v->oldest_position);
	if (shared->frontier < oldest)
	{
		count(v, shared, oldest - Max(shared->frontier, first));
		shared->frontier = shared->skipped_from = oldest;
	}
	for (int32 i = shared->open_head; i >= 0 && EVBUS_LEASE(db, i)->lo < oldest;)
	{
		EvbusLease *lease = EVBUS_LEASE(db, i);
		int32		following = lease->next;

		if (lease->state == EVBUS_LEASE_RETURNED && !lease->tracked)
		{
			count(v, shared, Max(Min(lease->hi, oldest) - Max(lease->lo, first), 0));
			if (lease->hi <= oldest)
				evbus_lease_remove(db, shared, i);
			else
				lease->lo = oldest;
		}
		i = following;
	}
}

/*
 * Drop the oldest positions of a subscription that nobody has in hand, until no more than
 * `keep` are left to it, or `max` ranges are dropped.  Returns how many ranges, ascending,
 * and positions; those that were passed over before are among the ranges, and not counted.
 */
int
evbus_dropped_trim(EvbusDb *db, const EvbusSubscription *sub, int64 keep, EvbusRange *ranges, int max, int64 *dropped)
{
	EvbusSub   *shared = EVBUS_SUB(db, sub->slot);
	EvbusBusState *bus = EVBUS_BUS(db, sub->bus_slot);
	EvbusCursorState state;
	int64		excess;
	int			n = 0;

	*dropped = 0;
	if (!evbus_cursor_progress(db, sub, &state) || state.undelivered <= keep)
		return 0;
	excess = state.undelivered - keep;	/* meanwhile it can only have grown, or others drop or take less from it */
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (evbus_cursor_loaded(db, sub) && (int32) pg_atomic_read_u32(&bus->bus_id) == sub->bus_id)
	{
		int64		avail;

		for (int32 i = shared->open_head; i >= 0 && *dropped < excess && n < max;)
		{
			EvbusLease *lease = EVBUS_LEASE(db, i);
			int32		following = lease->next;
			int64		len = lease->hi - lease->lo;
			int64		passed = evbus_lease_look(lease) - lease->lo;

			if (lease->state == EVBUS_LEASE_RETURNED)
			{
				if (!lease->tracked)
					len = Min(len, passed + excess - *dropped);
				ranges[n].lo = lease->lo;
				ranges[n++].hi = lease->lo + len;
				*dropped += len - passed;
				if (lease->lo + len == lease->hi)
					evbus_lease_remove(db, shared, i);
				else
					lease->lo += len;
			}
			i = following;
		}
		avail = Min(evbus_sub_end(shared, bus) - shared->frontier, excess - *dropped);
		if (avail > 0 && n < max)
		{
			ranges[n].lo = shared->skipped_from;
			shared->frontier = shared->skipped_from = ranges[n++].hi = shared->frontier + avail;
			*dropped += avail;
		}
	}
	LWLockRelease(&shared->lock);
	return n;
}

/*
 * Who has positions from `from` on in hand found n of them overwritten, all those before
 * `begin` among them.  (Should he roll back, others that he did read are counted as well when
 * they are passed over, and these may be again.)  Who only looks has nothing in hand.
 */
void
evbus_dropped_found(EvbusDb *db, const EvbusSubscription *sub, int64 from, int64 begin, int64 n)
{
	EvbusSub   *shared = EVBUS_SUB(db, sub->slot);
	EvbusVolatile *v;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	v = evbus_volatile_find(db, sub->bus_slot, sub->bus_id);
	if (v != NULL && shared->subscription_id == sub->subscription_id && shared->epoch == sub->epoch)
		for (int32 i = shared->open_head; i >= 0; i = EVBUS_LEASE(db, i)->next)
		{
			EvbusLease *lease = EVBUS_LEASE(db, i);

			if (lease->state != EVBUS_LEASE_HELD || lease->lo > from || lease->hi <= from)
				continue;
			if (lease->lo == from && begin <= lease->hi)
				lease->lo = begin;
			count(v, shared, n);
			break;
		}
	LWLockRelease(&shared->lock);
}
