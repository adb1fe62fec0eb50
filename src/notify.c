/*-------------------------------------------------------------------------
 * notify.c
 *	  NOTIFY for consumers, from the maintainer only.
 *
 * A NOTIFY takes one lock of the whole cluster at commit, so publishers never
 * do it.  Here it is sent in a transaction of its own, committed asynchronously,
 * once per channel and evbus.notify_interval at most.  It is a hint: there may be
 * something to receive; the payload is empty.
 *
 * Who was told and has received nothing since need not be told again: a hundred
 * clients that listen and do something else would be woken a hundred times a
 * second each.  He is told again when somebody has received, and at the latest
 * after REMIND_MS.
 *-------------------------------------------------------------------------
 */
#include "notify.h"

#include "access/xact.h"
#include "breaker.h"
#include "clock.h"
#include "commands/async.h"
#include "cursor.h"
#include "delivery.h"
#include "reader.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define LOOK_MAX	1000	/* more new events than this are not looked at: some will be wanted */

#define REMIND_MS	1000

/* EvbusSub.notify while we send: should we not get to the end, whoever comes after us sends it. */
#define SENDING		2

/* ms; least time between two notifications of a channel. */
int			evbus_notify_interval = 10;

/* What was there when we last notified, by slot. */
typedef struct Seen
{
	int32		subscription_id;
	int64		next_position;
	uint64		grants;			/* what had been received */
	int64		told_at;		/* by evbus_uptime(); 0: never */
	int64		retry_due;
} Seen;

/* Is any of the positions [from, next) for this subscription?  Its filter is not asked: the maintainer has more to do. */
static bool
wanted(EvbusDb *db, const EvbusSubscription *sub, int64 from, int64 next)
{
	EvbusSubscription unfiltered = evbus_subscription_unfiltered(sub);
	EvbusEvents events = {0};

	if (from >= next)
		return false;
	if (next - from > LOOK_MAX || (sub->n_types == 1 && sub->types[0] == 1 && sub->types[1] == '#'))
		return true;
	StartTransactionCommand();
	evbus_read(db, &unfiltered, from, next, &events);
	CommitTransactionCommand();
	return events.n > 0;
}

/*
 * Notify the subscriptions for which something new is there; false: there was
 * nothing new.  In no transaction.
 */
bool
evbus_notify_turn(EvbusDb *db, EvbusSubscription *subs, int n)
{
	static Seen *seen = NULL;
	MemoryContext context = CurrentMemoryContext;
	TimestampTz now = GetCurrentTimestamp();
	bool		any = false;

	if (seen == NULL)
		seen = MemoryContextAllocZero(TopMemoryContext, sizeof(Seen) * evbus_max_subscriptions);
	for (int i = 0; i < n; i++)
	{
		EvbusSub   *shared = EVBUS_SUB(db, subs[i].slot);
		EvbusBusState *bus = EVBUS_BUS(db, subs[i].bus_slot);
		Seen	   *last = &seen[subs[i].slot];
		int64		next = (int32) pg_atomic_read_u32(&bus->bus_id) == subs[i].bus_id ? evbus_sub_end(shared, bus) : 0;
		int64		due = (int64) pg_atomic_read_u64(&shared->retry_due);
		int64		frontier = shared->frontier;
		uint64		grants = shared->grants;
		bool		fresh;
		uint32		sending;
		char		channel[NAMEDATALEN];

		if (subs[i].has_handler || !subs[i].notify || subs[i].paused ||
			shared->subscription_id != subs[i].subscription_id ||
			evbus_breaker_wait(db, &subs[i]) > 0)	/* what is there, nobody would get */
			continue;
		if (last->subscription_id != subs[i].subscription_id)
		{
			memset(last, 0, sizeof(Seen));
			last->subscription_id = subs[i].subscription_id;
		}
		fresh = pg_atomic_read_u32(&shared->notify) != 0;
		if (fresh)
			pg_atomic_write_u32(&shared->notify, SENDING);
		fresh = fresh || (due <= now && last->retry_due != due && due != 0);
		last->retry_due = due <= now ? due : 0;
		if (next > last->next_position)
		{
			any = true;
			if (!fresh && last->told_at != 0 && grants == last->grants &&
				!TimestampDifferenceExceeds(last->told_at, evbus_uptime(), REMIND_MS))
				continue;		/* and what is new stays so */
			fresh = fresh || wanted(db, &subs[i], Max(last->next_position, frontier), next);
		}
		last->next_position = next;
		/* Of a replay nothing is new: who has received shall hear that there is more, as soon as that is due. */
		if (subs[i].replay_of != 0 && evbus_cursor_has_work(db, &subs[i], now) &&
			(grants != last->grants || TimestampDifferenceExceeds(last->told_at, evbus_uptime(), REMIND_MS)))
			fresh = true;
		if (!fresh)
			continue;
		last->grants = grants;
		last->told_at = evbus_uptime();
		StartTransactionCommand();
		evbus_channel_name(&subs[i], channel);
		Async_Notify(channel, "");
		CommitTransactionCommand();
		sending = SENDING;
		(void) pg_atomic_compare_exchange_u32(&shared->notify, &sending, 0);
		any = true;
	}
	MemoryContextSwitchTo(context);
	return any;
}
