/*-------------------------------------------------------------------------
 * hand.c
 *	  What a handler worker has claimed, and how it is settled.
 *
 * A batch of a subscription without order is one claim, of a range of positions;
 * one in order has a claim for each event, since others between them may wait for
 * somebody else.  batch.c need not know which.
 *-------------------------------------------------------------------------
 */
#include "hand.h"

#include "clock.h"
#include "ledger.h"
#include "miscadmin.h"
#include "ordered.h"
#include "pace.h"
#include "pin.h"
#include "priority.h"
#include "utils/memutils.h"

#define LOOK_MAX		(10 * EVBUS_BATCH_MAX)	/* positions gone through for one batch */
#define LOOK_FIRST		64			/* of a subscription with a filter, which may be slow */

/* Room for n claims, which the caller fills. */
EvbusClaim *
evbus_hand_room(EvbusHand *hand, int n)
{
	if (n > hand->size)
	{
		hand->claims = hand->claims ? repalloc(hand->claims, sizeof(EvbusClaim) * n)
			: MemoryContextAlloc(TopMemoryContext, sizeof(EvbusClaim) * n);
		hand->size = n;
	}
	return hand->claims;
}

/* Up to size events. */
static bool
take(EvbusDb *db, const EvbusSubscription *sub, int size, EvbusHand *hand, EvbusEvents *found)
{
	EvbusClaim *claims = evbus_hand_room(hand, size);
	int			first = size;
	int64		begun = 0;

	hand->each = sub->ordering != EVBUS_ORDER_NONE || sub->by_priority;
	if (hand->each)
	{
		hand->n = (sub->by_priority ? evbus_priority_take : evbus_ordered_take) (db, sub, size, 0, true, 0, found, claims);
		return hand->n > 0;
	}
	if (sub->filter)
	{
		first = Min(size, LOOK_FIRST);
		begun = evbus_uptime();
	}
	if (!evbus_cursor_claim(db, sub, first, &claims[0]))
		return false;
	hand->n = 1;
	evbus_read(db, sub, claims[0].scan_from, claims[0].hi, found);

	/*
	 * Few were for this subscription: look on, but not through millions, while what was found waits
	 * for its handler, other subscriptions for this worker, and vacuum for the end of the transaction.
	 */
	for (int64 look = first; (found->n < size / 2 || found->n == 0) && claims[0].hi - claims[0].scan_from < LOOK_MAX;)
	{
		int64		from = claims[0].hi;

		if (sub->filter && evbus_uptime() - begun > EVBUS_LOOK_TIME)
			break;
		look = Min(look * 2, EVBUS_BATCH_MAX);
		if (!evbus_cursor_extend_claim(db, &claims[0], found->n == 0 ? look : size - found->n))
			break;
		evbus_read(db, sub, from, claims[0].hi, found);
		CHECK_FOR_INTERRUPTS();
	}
	/* Where it is about a rate, or a probe: no more than are due. */
	if ((sub->rate > 0 || sub->delivery_rate > 0 || hand->single) && found->n > size && evbus_cursor_cut(db, &claims[0], found->events[size - 1].position + 1))
		found->n = size;
	evbus_read_settled(db, sub, found, claims[0].hi);
	return true;
}

/* Claim and read a batch in the current transaction; false: nothing there, or none is due. */
bool
evbus_hand_take(EvbusDb *db, const EvbusSubscription *sub, EvbusHand *hand, EvbusEvents *found)
{
	int			due = evbus_pace_take(db, sub, sub->batch_size, false);
	bool		took = due > 0 && take(db, sub, due, hand, found);

	evbus_pace_put_back(db, sub, due - found->n, false);
	return took;
}

/* Has one of them ended a worker before? */
bool
evbus_hand_suspect(const EvbusHand *hand)
{
	for (int i = 0; i < hand->n; i++)
		if (hand->claims[i].suspect != 0)
			return true;
	return false;
}

/* Is the claim of the event at a place still ours, or was the subscription moved? */
bool
evbus_hand_ours(EvbusDb *db, const EvbusHand *hand, int at)
{
	EvbusRange	range;

	return evbus_cursor_range(db, &hand->claims[hand->each ? at : 0], &range);
}

/* Those of events[at..at + n) that are not left, each with its own claim. */
static bool
settle_each(EvbusDb *db, const EvbusSubscription *sub, const EvbusHand *hand, const EvbusEvents *found,
			int at, int n, const bool *left)
{
	EvbusHeld  *held = palloc0(sizeof(EvbusHeld) * n);
	EvbusRange *ranges = palloc(sizeof(EvbusRange) * n);
	int			count = 0;
	int64		hi = 0;
	bool		ours = true;

	for (int i = at; i < at + n; i++)
		if (left == NULL || !left[i])
		{
			held[count].claim = hand->claims[i];
			held[count++].event_id = found->events[i].event_id;
		}
	evbus_pin_held(db, sub, held, count, EVBUS_PIN_ACK);
	for (int i = 0; i < count && ours; i++)
	{
		ours = held[i].good;
		ranges[i].lo = held[i].lo;
		ranges[i].hi = held[i].hi;
		hi = Max(hi, held[i].hi);
	}
	if (ours && count > 0)
	{
		evbus_ledger_wait_ticked(db, sub, hi);
		evbus_ledger_append(db, sub, ranges, count);
	}
	pfree(held);
	pfree(ranges);
	return ours;
}

/*
 * Ack, in this transaction, events[at..at + n), which are the next to be settled, but
 * for those that are left.  False: they are no longer ours, so it must not commit.
 */
bool
evbus_hand_settle(EvbusDb *db, const EvbusSubscription *sub, const EvbusHand *hand, const EvbusEvents *found,
				  int at, int n, const bool *left)
{
	const EvbusClaim *claim = &hand->claims[0];
	bool		all = at + n >= found->n;
	EvbusRange	range;

	if (hand->each)
		return settle_each(db, sub, hand, found, at, n, left);
	if (!(all ? evbus_pin(db, claim, EVBUS_PIN_ACK) : evbus_pin_part(db, claim, found->events[at + n - 1].position + 1)) ||
		!evbus_cursor_range(db, claim, &range))	/* pinned: final now */
		return false;
	if (!all)
		range.hi = found->events[at + n - 1].position + 1;
	evbus_ledger_wait_ticked(db, sub, range.hi);
	evbus_ledger_append(db, sub, &range, 1);
	return true;
}

/* Give back what is left in hand, the last first; suspect: which event ended us, or 0: what ended others is still that. */
void
evbus_hand_return(EvbusDb *db, EvbusHand *hand, int64 suspect)
{
	while (hand->n > 0)
	{
		const EvbusClaim *claim = &hand->claims[--hand->n];

		evbus_cursor_return(db, claim, suspect != 0 ? suspect : claim->suspect);
	}
}
