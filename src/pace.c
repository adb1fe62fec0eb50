/*-------------------------------------------------------------------------
 * pace.c
 *	  So many deliveries a second, and no more: delivery_rate of a subscription,
 *	  and the rate of a replay.
 *
 * One moment says it all: what was due until `paced_at` has been given out.  Who takes
 * n events moves it on by n/rate seconds, who found fewer moves it back.  So on
 * average the rate is exact, whatever the batches are; in the short run up to
 * STEP of it come at once, for each batch is a transaction, and what was not taken,
 * because nobody came or the subscription was paused, is not made up for, but for a
 * burst.  After a restart it begins anew: nothing of this is on disk.
 *
 * The rate of a replay is about its first deliveries, in its own place in shared
 * memory.  delivery_rate is about all deliveries of the subscription, live ones,
 * retries and those of its replays, and so kept where the subscription is; a replay
 * minds both.
 *-------------------------------------------------------------------------
 */
#include "pace.h"

#include "clock.h"

#define STEP		(50 * 1000)		/* microseconds: events that come together, if there are so many */

/* The caller holds EvbusSub.lock, EXCLUSIVE. */
void
evbus_pace_begin(EvbusSub *shared)
{
	shared->paced_at = evbus_uptime();
}

/* Microseconds that a burst takes to grow. */
static int64
depth(int rate, int burst)
{
	return Max((int64) burst, 1) * USECS_PER_SEC / rate;
}

/* Without the lock: a hint. */
static int64
wait_for(const EvbusSub *shared, int rate, int burst)
{
	int64		step = Max(USECS_PER_SEC / rate, Min(STEP, depth(rate, burst)));

	return Max(shared->paced_at + step - evbus_uptime(), 0);
}

static int
take(EvbusSub *shared, int rate, int burst, int max)
{
	int64		now = evbus_uptime();
	int			n;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	shared->paced_at = Max(shared->paced_at, now - depth(rate, burst));
	n = (int) Min(max, Max(now - shared->paced_at, 0) * rate / USECS_PER_SEC);
	shared->paced_at += (int64) n * USECS_PER_SEC / rate;
	LWLockRelease(&shared->lock);
	return n;
}

static void
put_back(EvbusSub *shared, int rate, int n)
{
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	shared->paced_at -= (int64) n * USECS_PER_SEC / rate;
	LWLockRelease(&shared->lock);
}

/* Microseconds until some deliveries are due; 0: some are.  retries: it is about these. */
int64
evbus_pace_wait(EvbusDb *db, const EvbusSubscription *sub, bool retries)
{
	int64		wait = 0;

	if (sub->rate > 0 && !retries)
		wait = wait_for(EVBUS_SUB(db, sub->slot), sub->rate, sub->rate);
	if (sub->delivery_rate > 0)
		wait = Max(wait, wait_for(EVBUS_SUB(db, sub->live_slot), sub->delivery_rate, sub->delivery_burst));
	return wait;
}

/* Up to max of what is due are the caller's, who tells with evbus_pace_put_back() how many he did not find. */
int
evbus_pace_take(EvbusDb *db, const EvbusSubscription *sub, int max, bool retries)
{
	int			n = max;

	if (sub->rate > 0 && !retries)
		n = take(EVBUS_SUB(db, sub->slot), sub->rate, sub->rate, n);
	if (sub->delivery_rate > 0 && n > 0)
	{
		int			all = take(EVBUS_SUB(db, sub->live_slot), sub->delivery_rate, sub->delivery_burst, n);

		if (sub->rate > 0 && !retries && all < n)
			put_back(EVBUS_SUB(db, sub->slot), sub->rate, n - all);
		n = all;
	}
	return n;
}

void
evbus_pace_put_back(EvbusDb *db, const EvbusSubscription *sub, int n, bool retries)
{
	if (n == 0)
		return;
	if (sub->rate > 0 && !retries)
		put_back(EVBUS_SUB(db, sub->slot), sub->rate, n);
	if (sub->delivery_rate > 0)
		put_back(EVBUS_SUB(db, sub->live_slot), sub->delivery_rate, n);
}
