/* histogram.h: times in buckets, four to each power of two */
#ifndef EVBUS_HISTOGRAM_H
#define EVBUS_HISTOGRAM_H

#include "compat.h"

#include "port/pg_bitutils.h"

/*
 * A time is counted in units of 8 us: below 4 units a bucket each, then four of equal width to each power of
 * two, so from 32 us on a bucket is at most a quarter as wide as the times in it, and its middle within an eighth of each.  All
 * histograms have the same buckets: so they are merged by adding.  (The layout of HdrHistogram, with two
 * significant bits.)  The last bucket has what takes longer, too: 4.2 hours.
 */
#define EVBUS_HISTOGRAM_UNIT	8	/* us */
#define EVBUS_HISTOGRAM_BUCKETS	120

/* us: a time, in microseconds; below 0 is 0 */
static inline int
evbus_histogram_bucket(int64 us)
{
	uint64		units = us > 0 ? (uint64) us / EVBUS_HISTOGRAM_UNIT : 0;
	int			power;

	if (units < 4)
		return (int) units;
	power = pg_leftmost_one_pos64(units);
	return Min((power - 1) * 4 + (int) ((units >> (power - 2)) & 3), EVBUS_HISTOGRAM_BUCKETS - 1);
}

extern int64 evbus_histogram_lower(int bucket);
extern int64 evbus_histogram_percentile(const uint64 *counts, double share);

#endif
