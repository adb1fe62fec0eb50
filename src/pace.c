/*-------------------------------------------------------------------------
 * pace.c
 *	  So many first deliveries a second, and no more: the rate of a replay.
 *
 * One moment says it all: what was due until `paced_at` has been given out.  Who takes
 * n events moves it on by n/rate seconds, who found fewer moves it back.  So on
 * average the rate is exact, whatever the batches are; in the short run up to
 * STEP of it come at once, for each batch is a transaction, and what was not taken
 * for more than BURST, because nobody came or the subscription was paused, is not
 * made up for.  After a restart it begins anew: nothing of this is on disk.
 *-------------------------------------------------------------------------
 */
#include "pace.h"

#include "clock.h"

#define STEP		(50 * 1000)		/* microseconds: events that come together, if there are so many */
#define BURST		USECS_PER_SEC

/* The caller holds EvbusSub.lock, EXCLUSIVE.  rate 0: no bound. */
void
evbus_pace_begin(EvbusSub *sub, int rate)
{
	sub->rate = rate;
	sub->paced_at = rate > 0 ? evbus_uptime() : 0;
}

/* Microseconds until some are due; 0: some are.  Without the lock: a hint. */
int64
evbus_pace_wait(EvbusSub *sub)
{
	if (sub->rate == 0)
		return 0;
	return Max(sub->paced_at + Max(USECS_PER_SEC / sub->rate, STEP) - evbus_uptime(), 0);
}

/* Up to max of what is due are the caller's, who tells with evbus_pace_put_back() how many he did not find. */
int
evbus_pace_take(EvbusSub *sub, int max)
{
	int64		now;
	int			n = max;

	if (sub->rate == 0)
		return max;
	now = evbus_uptime();
	LWLockAcquire(&sub->lock, LW_EXCLUSIVE);
	if (sub->rate > 0)
	{
		sub->paced_at = Max(sub->paced_at, now - Max(BURST, USECS_PER_SEC / sub->rate));
		n = (int) Min(max, Max(now - sub->paced_at, 0) * sub->rate / USECS_PER_SEC);
		sub->paced_at += (int64) n * USECS_PER_SEC / sub->rate;
	}
	LWLockRelease(&sub->lock);
	return n;
}

void
evbus_pace_put_back(EvbusSub *sub, int n)
{
	if (n == 0 || sub->rate == 0)
		return;
	LWLockAcquire(&sub->lock, LW_EXCLUSIVE);
	if (sub->rate > 0)
		sub->paced_at -= (int64) n * USECS_PER_SEC / sub->rate;
	LWLockRelease(&sub->lock);
}
