/*-------------------------------------------------------------------------
 * order_list.c
 *	  Lists of the entries of one key of one subscription, by position, for order.c.
 *
 * A list is a circle, guarded by the lock of its subscription, which the callers
 * hold.  Its first entry is chained into a bucket of the database's hash table; a
 * bucket has a spinlock, since subscriptions share them.  There are as many buckets
 * as leases, so chains are short, and nothing here can run out of room.
 *-------------------------------------------------------------------------
 */
#include "order_list.h"

#include "common/hashfn.h"

static EvbusOrderBucket *
bucket(EvbusDb *db, int sub_slot, uint32 hash)
{
	uint32		n = hash_combine(hash, murmurhash32(sub_slot + 1)) % evbus_max_leases;

	return &evbus_order_buckets[EVBUS_DB_INDEX(db) * evbus_max_leases + n];
}

/* The first entry of a key; -1: there is none.  It is ours: only the chain is shared. */
int32
evbus_order_first(EvbusDb *db, int sub_slot, uint32 hash)
{
	EvbusOrderBucket *b = bucket(db, sub_slot, hash);
	int32		i;

	SpinLockAcquire(&b->lock);
	for (i = b->head; i >= 0; i = EVBUS_ORDER(db, i)->chain_next)
		if (EVBUS_ORDER(db, i)->hash == hash && EVBUS_LEASE(db, i)->sub_slot == sub_slot)
			break;
	SpinLockRelease(&b->lock);
	return i;
}

/* Chain the first entry of a key into its bucket. */
static void
chain(EvbusDb *db, int sub_slot, int32 i)
{
	EvbusOrderEntry *e = EVBUS_ORDER(db, i);
	EvbusOrderBucket *b = bucket(db, sub_slot, e->hash);

	e->first = true;
	SpinLockAcquire(&b->lock);
	e->chain_prev = -1;
	e->chain_next = b->head;
	if (b->head >= 0)
		EVBUS_ORDER(db, b->head)->chain_prev = i;
	b->head = i;
	SpinLockRelease(&b->lock);
}

static void
unchain(EvbusDb *db, int sub_slot, int32 i)
{
	EvbusOrderEntry *e = EVBUS_ORDER(db, i);
	EvbusOrderBucket *b = bucket(db, sub_slot, e->hash);

	e->first = false;
	SpinLockAcquire(&b->lock);
	if (e->chain_prev >= 0)
		EVBUS_ORDER(db, e->chain_prev)->chain_next = e->chain_next;
	else
		b->head = e->chain_next;
	if (e->chain_next >= 0)
		EVBUS_ORDER(db, e->chain_next)->chain_prev = e->chain_prev;
	SpinLockRelease(&b->lock);
}

/* Put an entry, whose hash and position are set, into the list of its key. */
void
evbus_order_enlist(EvbusDb *db, int sub_slot, int32 i)
{
	EvbusOrderEntry *e = EVBUS_ORDER(db, i);
	int32		first = evbus_order_first(db, sub_slot, e->hash);
	int32		after;

	if (first < 0)
	{
		e->next = e->prev = i;
		chain(db, sub_slot, i);
		return;
	}
	after = EVBUS_ORDER(db, first)->prev;
	while (EVBUS_ORDER(db, after)->position > e->position && after != first)
		after = EVBUS_ORDER(db, after)->prev;
	if (EVBUS_ORDER(db, after)->position > e->position)
	{
		/* Before all of them: the last one, in the circle. */
		unchain(db, sub_slot, first);
		chain(db, sub_slot, i);
		after = EVBUS_ORDER(db, first)->prev;
	}
	else
		e->first = false;
	e->prev = after;
	e->next = EVBUS_ORDER(db, after)->next;
	EVBUS_ORDER(db, e->next)->prev = i;
	EVBUS_ORDER(db, after)->next = i;
}

/* Take an entry out of the list of its key; the first of those that are left, -1: none. */
int32
evbus_order_delist(EvbusDb *db, int sub_slot, int32 i)
{
	EvbusOrderEntry *e = EVBUS_ORDER(db, i);
	bool		first = e->first;

	if (first)
	{
		unchain(db, sub_slot, i);
		if (e->next == i)
			return -1;
		chain(db, sub_slot, e->next);
	}
	EVBUS_ORDER(db, e->prev)->next = e->next;
	EVBUS_ORDER(db, e->next)->prev = e->prev;
	return first ? e->next : evbus_order_first(db, sub_slot, e->hash);
}
