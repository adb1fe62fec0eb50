/*-------------------------------------------------------------------------
 * histogram.c
 *	  What histograms say: the layout of their buckets is told in histogram.h.
 *-------------------------------------------------------------------------
 */
#include "histogram.h"

#include <math.h>

/* The least time that is counted in a bucket, us; of the one behind the last, where that would end. */
int64
evbus_histogram_lower(int bucket)
{
	int			power = bucket / 4 + 1;

	if (bucket < 4)
		return (int64) bucket * EVBUS_HISTOGRAM_UNIT;
	return ((int64) (4 + bucket % 4) << (power - 2)) * EVBUS_HISTOGRAM_UNIT;
}

/*
 * The time, us, that this share (0 to 1) of what was counted did not exceed: the middle of the
 * bucket where the one of that rank is (nearest rank).  -1: nothing was counted.
 */
int64
evbus_histogram_percentile(const uint64 *counts, double share)
{
	uint64		all = 0;
	uint64		rank;
	uint64		below = 0;

	for (int i = 0; i < EVBUS_HISTOGRAM_BUCKETS; i++)
		all += counts[i];
	if (all == 0)
		return -1;
	rank = Max((uint64) ceil(share * (double) all), 1);
	for (int i = 0; i < EVBUS_HISTOGRAM_BUCKETS; i++)
	{
		below += counts[i];
		if (below >= rank)
			return (evbus_histogram_lower(i) + evbus_histogram_lower(i + 1)) / 2;
	}
	return evbus_histogram_lower(EVBUS_HISTOGRAM_BUCKETS);	/* not reached: rank <= all */
}
