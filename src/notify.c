/*-------------------------------------------------------------------------
 * notify.c
 *	  NOTIFY for consumers, from the maintainer only.
 *
 * A NOTIFY takes one lock of the whole cluster at commit, so publishers never
 * do it.  Here it is sent in a transaction of its own, committed asynchronously,
 * once per channel and evbus.notify_interval at most.  It is a hint: there may be
 * something to receive; the payload is empty.
 *-------------------------------------------------------------------------
 */
#include "notify.h"

#include "access/xact.h"
#include "commands/async.h"
#include "delivery.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* ms; least time between two notifications of a channel. */
int			evbus_notify_interval = 10;

/* What was there when we last notified, by slot. */
typedef struct Seen
{
	int32		subscription_id;
	int64		next_position;
	int			n_returned;
	int64		retry_due;
} Seen;

/*
 * Notify the subscriptions for which something new is there; false: none.  In no
 * transaction.
 */
bool
evbus_notify_turn(EvbusDb *db, EvbusSubscription *subs, int n)
{
	static Seen *seen = NULL;
	TimestampTz now = GetCurrentTimestamp();
	bool		any = false;

	if (seen == NULL)
		seen = MemoryContextAllocZero(TopMemoryContext, sizeof(Seen) * evbus_max_subscriptions);
	for (int i = 0; i < n; i++)
	{
		EvbusSub   *shared = EVBUS_SUB(db, subs[i].slot);
		EvbusBusState *bus = EVBUS_BUS(db, subs[i].bus_slot);
		Seen	   *last = &seen[subs[i].slot];
		int64		next = (int32) pg_atomic_read_u32(&bus->bus_id) == subs[i].bus_id
			? (int64) pg_atomic_read_u64(&bus->next_position) : 0;
		int64		due = (int64) pg_atomic_read_u64(&shared->retry_due);
		int			returned = shared->n_returned;
		bool		fresh;
		char		channel[NAMEDATALEN];

		if (subs[i].has_handler || !subs[i].notify || subs[i].paused ||
			shared->subscription_id != subs[i].subscription_id)
			continue;
		if (last->subscription_id != subs[i].subscription_id)
		{
			memset(last, 0, sizeof(Seen));
			last->subscription_id = subs[i].subscription_id;
		}
		fresh = (next > last->next_position && next > shared->frontier) || returned > last->n_returned ||
			(due <= now && last->retry_due != due && due != 0);
		last->next_position = next;
		last->n_returned = returned;
		last->retry_due = due <= now ? due : 0;
		if (!fresh)
			continue;
		if (!any)
			StartTransactionCommand();
		any = true;
		evbus_channel_name(&subs[i], channel);
		Async_Notify(channel, "");
	}
	if (any)
		CommitTransactionCommand();
	return any;
}
