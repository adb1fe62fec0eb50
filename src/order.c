/*-------------------------------------------------------------------------
 * order.c
 *	  Whose turn it is, for subscriptions whose events are delivered in order.
 *
 * Order by key is kept for what is not done, which is all that cursor.c knows:
 * each of its entries is one event then, and stands in a list of its key by
 * position.  It may be handed out when nobody has another of that key in hand,
 * and none before it waits:
 *
 *		(nothing) --read--> HELD, where its turn has come
 *		                    RETURNED, where it has not ("deferred")
 *		HELD --settled--> (nothing); the next of its key may have its turn
 *		HELD --rollback, release, lease ran out--> RETURNED, still before that
 *
 * This is right because of three rules.  Only one process at a time takes
 * deliveries of such a subscription (ordered.c has the lock).  It takes the lowest
 * positions first; ranges of which the keys are not known, after a restart, are
 * ready at any time, and what is above one is never taken before it was read.  And
 * an event is in its list before it is handed out.  So whatever precedes an event
 * is done, or stands before it in the list, or has failed and waits in evbus.retry,
 * for which ordered.c looks.
 *
 * Strict order is order by key where all have the same.  Keys are known by 32 bits
 * of a hash: two that share it wait for each other, which is slower and as right.
 *
 * Deferred entries are a window beyond which nothing is read before something is
 * settled: a sixteenth of evbus.max_leases a subscription, a quarter together.
 * The lists themselves are order_list.c.
 *-------------------------------------------------------------------------
 */
#include "order.h"

#include "common/hashfn.h"
#include "cursor.h"
#include "dropped.h"
#include "order_list.h"
#include "utils/timestamp.h"

static bool
same_sub(const EvbusSub *shared, const EvbusSubscription *sub)
{
	return shared->subscription_id == sub->subscription_id && shared->epoch == sub->epoch;
}

/* Has nobody changed the subscription, or its order, since we began to take? */
static bool
same_order(const EvbusSub *shared, const EvbusTaking *taking)
{
	return same_sub(shared, taking->sub) && shared->ordering == taking->sub->ordering;
}

/* Entries that may wait for their turn. */
static bool
window_full(EvbusDb *db, EvbusSub *sub)
{
	return sub->n_deferred >= Max(evbus_max_leases / 16, 4) ||
		(int32) pg_atomic_read_u32(&db->deferred) >= evbus_max_leases / 4;
}

/* Do so many wait that those that wait for a row in evbus.retry had better be put behind it? */
bool
evbus_order_crowded(EvbusDb *db, const EvbusSubscription *sub)
{
	EvbusSub   *shared = EVBUS_SUB(db, sub->slot);

	return sub->block_key && sub->ordering == EVBUS_ORDER_KEY && same_sub(shared, sub) &&
		(shared->n_deferred >= Max(evbus_max_leases / 32, 2) || window_full(db, shared));
}

/* What an event waits by; EVBUS_NO_KEY: for nothing. */
uint32
evbus_order_hash(const EvbusSubscription *sub, const char *key, int len)
{
	if (sub->ordering == EVBUS_ORDER_STRICT)
		return EVBUS_NO_KEY + 1;
	if (key == NULL)
		return EVBUS_NO_KEY;
	return Max(hash_bytes((const unsigned char *) key, len), EVBUS_NO_KEY + 1);
}

/* -------------------------------------------------------- entries and their turn */

/* The key of an entry is known from here on.  It is in its state, and that is counted. */
void
evbus_order_track(EvbusDb *db, EvbusSub *sub, int32 i, uint32 hash, const EvbusEvent *event, uint32 take)
{
	EvbusLease *lease = EVBUS_LEASE(db, i);
	EvbusOrderEntry *e = EVBUS_ORDER(db, i);

	Assert(LWLockHeldByMe(&sub->lock) && !lease->tracked && lease->state == EVBUS_LEASE_HELD);
	lease->tracked = true;
	e->hash = hash;
	e->take = take;
	e->acker = 0;
	e->blocked = false;
	e->position = event->position;
	e->event_id = event->event_id;
	e->ring_at = event->ring_at;
	e->bytes = evbus_event_bytes(event);
	sub->n_tracked++;
	if (hash != EVBUS_NO_KEY)
		evbus_order_enlist(db, lease->sub_slot, i);
}

/* A due retry that was passed over may have its turn now. */
static void
retries_again(EvbusSub *sub)
{
	if (sub->retry_waits)
	{
		sub->retry_waits = false;
		pg_atomic_write_u64(&sub->retry_due, 0);
	}
}

/* An entry ends, or its key is to be forgotten; its state is still counted. */
void
evbus_order_untrack(EvbusDb *db, EvbusSub *sub, int32 i)
{
	EvbusLease *lease = EVBUS_LEASE(db, i);
	EvbusOrderEntry *e = EVBUS_ORDER(db, i);

	Assert(LWLockHeldByMe(&sub->lock));
	if (lease->state == EVBUS_LEASE_HELD)
		sub->n_tracked--;
	else if (!lease->retry)
	{
		sub->n_deferred--;
		pg_atomic_fetch_sub_u32(&db->deferred, 1);
	}
	if (e->hash != EVBUS_NO_KEY)
	{
		int32		first = evbus_order_delist(db, lease->sub_slot, i);

		if (first >= 0)
		{
			EVBUS_ORDER(db, first)->blocked = false;	/* what it waited for may have been this one's row */
			sub->order_ready = true;
		}
	}
	lease->tracked = false;
	sub->settled++;
	sub->order_full = false;
	retries_again(sub);
}

/* A tracked entry went from HELD to RETURNED: its turn may come again. */
void
evbus_order_returned(EvbusDb *db, EvbusSub *sub, int32 i)
{
	sub->n_tracked--;
	if (!EVBUS_LEASE(db, i)->retry)
	{
		sub->n_deferred++;
		pg_atomic_fetch_add_u32(&db->deferred, 1);
	}
	EVBUS_ORDER(db, i)->blocked = false;
	sub->settled++;
	sub->order_ready = true;
	retries_again(sub);			/* it waits for what is in hand, and not for what is behind it */
}

/* No order any more, or another one: forget all keys. */
void
evbus_order_off(EvbusDb *db, EvbusSub *sub)
{
	int32		heads[2] = {sub->open_head, sub->retry_head};

	for (int list = 0; list < 2; list++)
		for (int32 i = heads[list]; i >= 0; i = EVBUS_LEASE(db, i)->next)
			if (EVBUS_LEASE(db, i)->tracked)
				evbus_order_untrack(db, sub, i);
	sub->ordering = EVBUS_ORDER_NONE;
	sub->order_ready = sub->order_full = false;
}

/* Is there another of its key, so that somebody may be waiting for it to end? */
bool
evbus_order_followed(EvbusDb *db, int32 i)
{
	return EVBUS_ORDER(db, i)->hash != EVBUS_NO_KEY && EVBUS_ORDER(db, i)->next != i;
}

/* A lease is pinned by the current transaction: as done, or else. */
void
evbus_order_pinned(EvbusDb *db, int32 i, bool ack)
{
	EVBUS_ORDER(db, i)->acker = ack ? EvbusMyProcno() + 1 : 0;
}

/*
 * Does this entry of the same key keep others waiting, that are at a position?
 * What our own transaction has acked does not: it commits before, or with, what
 * it is handed now, and a failure it has written ordered.c will find.
 */
static bool
in_the_way(EvbusDb *db, int32 i, int64 position, const EvbusTaking *taking)
{
	EvbusLease *lease = EVBUS_LEASE(db, i);
	EvbusOrderEntry *e = EVBUS_ORDER(db, i);

	if (lease->state != EVBUS_LEASE_HELD)
		return e->position < position && (!lease->retry || taking->sub->block_key);
	if (lease->pinned && e->acker == EvbusMyProcno() + 1)
		return false;
	return true;
}

/* The last entry of a key before a position; -1: there is none. */
static int32
entry_before(EvbusDb *db, int32 first, int64 position)
{
	int32		i = EVBUS_ORDER(db, first)->prev;

	while (i != first && EVBUS_ORDER(db, i)->position >= position)
		i = EVBUS_ORDER(db, i)->prev;
	return EVBUS_ORDER(db, i)->position < position ? i : -1;
}

/* May an event be handed out that has this place, and this entry already or (-1) none? */
bool
evbus_order_may(EvbusDb *db, EvbusSub *sub, int sub_slot, uint32 hash, int64 position, int32 self,
				const EvbusTaking *taking)
{
	int32		first;
	int32		i;

	Assert(LWLockHeldByMe(&sub->lock));
	if (hash == EVBUS_NO_KEY)
		return true;
	first = evbus_order_first(db, sub_slot, hash);
	if (first < 0)
		return true;
	/* The one before it is of our own batch: then so are all that are in hand, and none before it waits. */
	if (taking->together && (i = entry_before(db, first, position)) >= 0 &&
		EVBUS_LEASE(db, i)->state == EVBUS_LEASE_HELD && EVBUS_ORDER(db, i)->take == taking->number)
		return true;
	i = first;
	do
	{
		if (i != self && in_the_way(db, i, position, taking))
			return false;
		i = EVBUS_ORDER(db, i)->next;
		/* Behind one that waits, none is in hand. */
	} while (i != first && (EVBUS_LEASE(db, i)->state == EVBUS_LEASE_HELD || EVBUS_ORDER(db, i)->position < position));
	return true;
}

/* From HELD to waiting for its turn. */
static void
defer(EvbusDb *db, EvbusSub *sub, int32 i)
{
	EvbusLease *lease = EVBUS_LEASE(db, i);

	Assert(LWLockHeldByMe(&sub->lock) && lease->tracked && !lease->retry);
	lease->state = EVBUS_LEASE_RETURNED;
	lease->epoch++;
	lease->event_id = 0;
	lease->expires_at = 0;
	lease->pinned = false;
	sub->n_held--;
	sub->n_tracked--;
	sub->n_returned++;
	sub->n_deferred++;
	pg_atomic_fetch_add_u32(&db->deferred, 1);
}

/* ------------------------------------------------------------------- taking */

/*
 * Begin to take; false: nothing can be taken now.  After a change of the ordering
 * that is so until everything that was handed out before is settled.
 */
bool
evbus_order_begin(EvbusTaking *taking)
{
	EvbusDb    *db = taking->db;
	EvbusSub   *shared = EVBUS_SUB(db, taking->sub->slot);
	bool		ok = false;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (same_sub(shared, taking->sub))
	{
		evbus_lease_expire(db, shared, GetCurrentTimestamp());
		if (shared->ordering != taking->sub->ordering && shared->n_held == 0)
		{
			evbus_order_off(db, shared);
			shared->ordering = taking->sub->ordering;
		}
		ok = shared->ordering == taking->sub->ordering && shared->n_held == shared->n_tracked;
		if (!ok)
			shared->order_full = true;
		taking->number = ++shared->takes;
	}
	LWLockRelease(&shared->lock);
	return ok;
}

/* Is anything in hand, or waiting for its turn, that keeps all that follows waiting?  For strict order. */
bool
evbus_order_busy(const EvbusTaking *taking)
{
	EvbusDb    *db = taking->db;
	EvbusSub   *shared = EVBUS_SUB(db, taking->sub->slot);
	bool		busy;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	busy = same_order(shared, taking) && !evbus_order_may(db, shared, taking->sub->slot, EVBUS_NO_KEY + 1, PG_INT64_MAX, -1, taking);
	if (busy)
		shared->order_full = true;
	LWLockRelease(&shared->lock);
	return busy;
}

/* A lease names its event, and how long it is lent. */
static void
lend(EvbusSub *shared, EvbusLease *lease, int64 event_id, const EvbusTaking *taking)
{
	lease->event_id = event_id;
	lease->expires_at = taking->expires_at;
	if (taking->expires_at != 0 && (shared->next_expiry == 0 || taking->expires_at < shared->next_expiry))
		shared->next_expiry = taking->expires_at;
}

/* Whatever is known of who waits for what may be out of date: look again. */
void
evbus_order_recheck(EvbusDb *db, const EvbusSubscription *sub)
{
	EvbusSub   *shared = EVBUS_SUB(db, sub->slot);

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (same_sub(shared, sub) && (shared->n_deferred > 0 || shared->order_full))
	{
		for (int32 i = shared->open_head; i >= 0; i = EVBUS_LEASE(db, i)->next)
			EVBUS_ORDER(db, i)->blocked = false;
		shared->order_ready = true;
		shared->order_full = false;
		evbus_sub_may_block(shared);
	}
	LWLockRelease(&shared->lock);
}

/* Nothing more can be taken, but if something was settled since. */
void
evbus_order_stop(const EvbusTaking *taking, uint32 settled)
{
	EvbusSub   *shared = EVBUS_SUB(taking->db, taking->sub->slot);

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (same_order(shared, taking) && shared->settled == settled)
	{
		shared->order_full = true;
		shared->order_ready = false;
	}
	LWLockRelease(&shared->lock);
}

/* Does an entry wait for a row in evbus.retry, or for one that does and that we have taken? */
static bool
is_behind(EvbusDb *db, int sub_slot, int32 i, const EvbusTaking *taking)
{
	int32		first = EVBUS_ORDER(db, i)->hash == EVBUS_NO_KEY ? -1 : evbus_order_first(db, sub_slot, EVBUS_ORDER(db, i)->hash);

	if (first < 0)
		return false;
	return EVBUS_LEASE(db, first)->state == EVBUS_LEASE_HELD ? EVBUS_ORDER(db, first)->take == taking->number
		: EVBUS_ORDER(db, first)->blocked;
}

/* It was found to wait for a row; that is looked up again when the one before it is ours, once a take. */
static bool
still_blocked(const EvbusOrderEntry *e, const EvbusTaking *taking)
{
	return e->blocked && (e->first || !taking->together || e->take == taking->number);
}

/*
 * Take up to max of those whose turn has come, up to the first range of which the
 * keys are not known, and until they have so many bytes (0: no matter); returns how
 * many.  Of their events it is told what evbus_read_again() wants to know.
 */
int
evbus_order_claim_ready(const EvbusTaking *taking, int max, int64 bytes_max, EvbusClaim *claims, EvbusEvent *events)
{
	EvbusDb    *db = taking->db;
	int			slot = taking->sub->slot;
	EvbusSub   *shared = EVBUS_SUB(db, slot);
	int64		bytes = 0;
	int			n = 0;
	int32		i = -1;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (same_order(shared, taking) && (shared->order_ready || taking->acked || taking->behind))
		for (i = shared->open_head; i >= 0 && n < max && (bytes_max == 0 || bytes < bytes_max); i = EVBUS_LEASE(db, i)->next)
		{
			EvbusLease *lease = EVBUS_LEASE(db, i);
			EvbusOrderEntry *e = EVBUS_ORDER(db, i);

			if (lease->state != EVBUS_LEASE_RETURNED)
				continue;
			if (!lease->tracked)
			{
				i = -1;			/* no more before it is read */
				break;
			}
			if (taking->behind ? !is_behind(db, slot, i, taking)
				: still_blocked(e, taking) || !evbus_order_may(db, shared, slot, e->hash, e->position, i, taking))
				continue;
			shared->n_returned--;
			shared->n_deferred--;
			shared->n_tracked++;
			pg_atomic_fetch_sub_u32(&db->deferred, 1);
			evbus_lease_grant(shared, lease);
			e->take = taking->number;
			e->acker = 0;
			lend(shared, lease, e->event_id, taking);
			memset(&events[n], 0, sizeof(EvbusEvent));
			events[n].event_id = e->event_id;
			events[n].position = e->position;
			events[n].ring_at = e->ring_at;
			bytes += e->bytes;
			evbus_lease_claim(db, slot, i, lease->lo, &claims[n++]);
		}
	if (i < 0 && !taking->behind)
		shared->order_ready = false;
	LWLockRelease(&shared->lock);
	return n;
}

/*
 * Take up to max positions of which the keys are not known: to be read, and split.
 * False: there are none now.
 */
bool
evbus_order_claim_range(const EvbusTaking *taking, int64 max, EvbusClaim *claim)
{
	EvbusDb    *db = taking->db;
	int			slot = taking->sub->slot;
	EvbusSub   *shared = EVBUS_SUB(db, slot);
	EvbusBusState *bus = EVBUS_BUS(db, taking->sub->bus_slot);
	EvbusLease *lease;
	int64		from;
	int32		i = -1;
	bool		known;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (shared->is_volatile)
		evbus_dropped_pass(db, shared);
	known = same_order(shared, taking) && (!shared->order_full || taking->acked);
	if (known && shared->n_returned > shared->n_deferred)
		for (i = shared->open_head; i >= 0; i = lease->next)
		{
			lease = EVBUS_LEASE(db, i);
			if (lease->state != EVBUS_LEASE_RETURNED || lease->tracked)
				continue;
			from = evbus_lease_take(db, shared, lease, max);
			shared->order_ready = true; /* those above it, once it is read */
			evbus_lease_claim(db, slot, i, from, claim);
			break;
		}
	if (known && i < 0 && (int32) pg_atomic_read_u32(&bus->bus_id) == taking->sub->bus_id)
	{
		int64		avail = evbus_sub_end(shared, bus) - shared->frontier;

		i = avail > 0 ? evbus_lease_alloc(db, slot, false) : -1;
		if (i >= 0)
		{
			from = shared->frontier;
			lease = EVBUS_LEASE(db, i);
			lease->lo = shared->skipped_from;
			lease->hi = shared->frontier = shared->skipped_from = from + Min(avail, max);
			evbus_lease_grant(shared, lease);
			evbus_lease_insert(db, shared, i);
			evbus_lease_claim(db, slot, i, from, claim);
		}
	}
	LWLockRelease(&shared->lock);
	return i >= 0;
}

/* What begins with an untracked HELD entry was not read to its end: it goes back. */
static void
unread(EvbusDb *db, EvbusSub *shared, int32 i)
{
	EvbusLease *lease = EVBUS_LEASE(db, i);

	if (lease->hi == shared->frontier)
	{
		shared->frontier = shared->skipped_from = lease->lo;
		evbus_lease_remove(db, shared, i);
	}
	else
		evbus_lease_give_back(db, shared, i);
}

/*
 * Make one entry of each of the n >= 1 events of a range, ascending; each covers
 * the positions before it that are not for this subscription, the last one also
 * those after it.  Those that may be handed out, up to max, come to the front of
 * events, with their claims; returns how many.  The others wait; where the window or the
 * pool has no more room (*full), the rest of the range, from *end on, goes back.
 */
int
evbus_order_split(const EvbusTaking *taking, const EvbusClaim *claim, EvbusEvent *events, int n, int max,
				  EvbusClaim *claims, bool *full, int64 *end)
{
	EvbusDb    *db = taking->db;
	int			slot = claim->sub_slot;
	EvbusSub   *shared = EVBUS_SUB(db, slot);
	EvbusLeaseChain more;
	int32		at = claim->lease;
	int			made = 0;

	*full = false;
	*end = claim->hi;
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (evbus_lease_held(db, claim) == NULL || !same_order(shared, taking))
	{
		/* Whoever takes without order now must not find entries that are kept for it. */
		if (evbus_lease_held(db, claim))
			unread(db, shared, claim->lease);
		*full = true;
		*end = claim->scan_from;
		LWLockRelease(&shared->lock);
		return 0;
	}
	evbus_lease_alloc_many(db, slot, n - 1, &more);
	for (int k = 0; k < n; k++)
	{
		EvbusLease *lease = EVBUS_LEASE(db, at);
		uint32		hash = evbus_order_hash(taking->sub, events[k].key, events[k].key_len);
		bool		may = evbus_order_may(db, shared, slot, hash, events[k].position, -1, taking);
		int32		rest = -1;
		bool		last = k + 1 == n;

		if ((!may || made == max) && window_full(db, shared))
		{
			*end = lease->lo;
			unread(db, shared, at);
			shared->order_full = !may;
			*full = true;
			break;
		}
		if (!last && (rest = evbus_lease_next(db, slot, &more)) < 0)
		{
			/* No more for us: what follows this event goes back. */
			last = *full = true;
			*end = events[k].position + 1;
			if (lease->hi == shared->frontier)
				lease->hi = shared->frontier = shared->skipped_from = events[k].position + 1;
			else if (!evbus_lease_cut(db, shared, lease, events[k].position + 1))
			{
				*end = lease->lo;
				unread(db, shared, at);
				break;
			}
		}
		if (rest >= 0)
		{
			EVBUS_LEASE(db, rest)->lo = events[k].position + 1;
			EVBUS_LEASE(db, rest)->hi = lease->hi;
			EVBUS_LEASE(db, rest)->attempts = lease->attempts;
			EVBUS_LEASE(db, rest)->suspect = lease->suspect;
			lease->hi = events[k].position + 1;
			evbus_lease_grant(shared, EVBUS_LEASE(db, rest));
			evbus_lease_insert_after(db, shared, rest, at);
		}
		evbus_order_track(db, shared, at, hash, &events[k], taking->number);
		if (may && made < max)
		{
			lend(shared, lease, events[k].event_id, taking);
			evbus_lease_claim(db, slot, at, events[k].position, &claims[made]);
			events[made++] = events[k];
		}
		else
		{
			defer(db, shared, at);
			shared->order_ready = shared->order_ready || may;
		}
		if (last)
			break;
		at = rest;
	}
	evbus_lease_free(db, &more);
	LWLockRelease(&shared->lock);
	return made;
}

/*
 * Put back what ordered.c has found waiting for a row in evbus.retry.  settled: as it
 * was before it looked; if something was settled since, it may have been that row.
 */
void
evbus_order_put_back(const EvbusTaking *taking, const EvbusClaim *claim, uint32 settled)
{
	EvbusDb    *db = taking->db;
	EvbusSub   *shared = EVBUS_SUB(db, claim->sub_slot);

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (evbus_lease_held(db, claim) && !same_order(shared, taking))
		evbus_lease_give_back(db, shared, claim->lease);
	else if (evbus_lease_held(db, claim))
	{
		defer(db, shared, claim->lease);
		if (shared->settled == settled)
			EVBUS_ORDER(db, claim->lease)->blocked = true;
		else
			shared->order_ready = true;
	}
	LWLockRelease(&shared->lock);
}
