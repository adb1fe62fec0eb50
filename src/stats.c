/*-------------------------------------------------------------------------
 * stats.c
 *	  What is counted, in shared memory.
 *
 * Whoever commits adds once what he has counted meanwhile (stat_outbox.c), to the
 * present part of time.  Nobody has to turn parts over: who comes first after the end of
 * one does it, under the lock he needs anyway.  So nothing runs where nothing happens,
 * and a window costs the same to read however much went through it.
 *
 * Of the types, those that were seen of late have counters of their own.  Room for
 * another is made as virtual memory does it (the CLOCK of F. J. Corbato, "A Paging
 * Experiment with the Multics System", 1968): a hand goes round, spares once what was used since
 * it came by last, and takes the first that was not.  What the others have is what the bus has and
 * they have not.
 *
 * Nothing here knows of buses: there are places, and ids, which grow.
 *-------------------------------------------------------------------------
 */
#include "stats.h"

#include "clock.h"
#include "utils/timestamp.h"

EvbusStat  *evbus_stat_buses = NULL;
EvbusStat  *evbus_stat_subs = NULL;
EvbusStatTimes *evbus_stat_times = NULL;
EvbusStatType *evbus_stat_types = NULL;
int32	   *evbus_stat_type_buckets = NULL;
EvbusStatTable *evbus_stat_tables = NULL;
int			evbus_max_tracked_types = 200;

/* ------------------------------------------------------------------- parts */

static void
add_up(uint32 *to, const uint32 *from)
{
	for (int i = 0; i < EVBUS_HISTOGRAM_BUCKETS; i++)
		to[i] += from[i];
}

/* Clear the parts of a ring of n that begin after `last` and up to `now`. */
static void
clear_parts(void *ring, int n, Size size, int64 last, int64 now)
{
	for (int64 part = Max(last + 1, now - n + 1); part <= now; part++)
		memset((char *) ring + part % n * size, 0, size);
}

/* The present part is the one of now; what is over is added to larger ones.  The caller holds the lock EXCLUSIVE. */
static void
turn(EvbusStat *stat, EvbusStatTimes *times, int64 now)
{
	int64		last = stat->number;
	int64		number = now / EVBUS_STAT_PART;
	int64	   *over = stat->parts[last % EVBUS_STAT_PARTS];
	int64	   *minute = stat->minutes[last / EVBUS_STAT_MINUTE % EVBUS_STAT_MINUTES];

	if (likely(number <= last))
		return;
	for (int i = 0; i < EVBUS_STAT_LAG; i++)
		minute[i] += over[i];
	if (over[EVBUS_STAT_LAG] != 0)
		minute[EVBUS_STAT_LAG] = over[EVBUS_STAT_LAG];
	clear_parts(stat->parts, EVBUS_STAT_PARTS, sizeof(stat->parts[0]), last, number);
	clear_parts(stat->minutes, EVBUS_STAT_MINUTES, sizeof(stat->minutes[0]), last / EVBUS_STAT_MINUTE, number / EVBUS_STAT_MINUTE);
	for (int of = 0; times && of < EVBUS_STAT_TIMES; of++)
	{
		const uint32 *counts = times->of[of].parts[last % EVBUS_STAT_PARTS];

		add_up(times->of[of].minutes[last / EVBUS_STAT_MINUTE % EVBUS_STAT_HMINUTES], counts);
		add_up(times->of[of].tens[last / EVBUS_STAT_TEN % EVBUS_STAT_HTENS], counts);
		clear_parts(times->of[of].parts, EVBUS_STAT_PARTS, sizeof(times->of[of].parts[0]), last, number);
		clear_parts(times->of[of].minutes, EVBUS_STAT_HMINUTES, sizeof(times->of[of].minutes[0]),
					last / EVBUS_STAT_MINUTE, number / EVBUS_STAT_MINUTE);
		clear_parts(times->of[of].tens, EVBUS_STAT_HTENS, sizeof(times->of[of].tens[0]), last / EVBUS_STAT_TEN, number / EVBUS_STAT_TEN);
	}
	stat->number = number;
}

/* Nothing was counted before now. */
static void
reset(EvbusStat *stat, EvbusStatTimes *times, int32 id)
{
	stat->id = id;
	stat->since = evbus_uptime();
	stat->number = stat->since / EVBUS_STAT_PART;
	stat->reset_at = GetCurrentTimestamp();
	stat->last_at = 0;
	memset(stat->total, 0, sizeof(stat->total));
	memset(stat->parts, 0, sizeof(stat->parts));
	memset(stat->minutes, 0, sizeof(stat->minutes));
	if (times)
		memset(times, 0, sizeof(EvbusStatTimes));
}

/* Is it, or may it become, that of this id?  The caller holds the lock EXCLUSIVE. */
static bool
ours(EvbusStat *stat, EvbusStatTimes *times, int32 id)
{
	if (unlikely(stat->id != id))
	{
		if (stat->id > id)
			return false;		/* ours was dropped, its place is another's */
		reset(stat, times, id);
	}
	return true;
}

static void
add(EvbusStat *stat, const int64 *n)
{
	int64	   *part = stat->parts[stat->number % EVBUS_STAT_PARTS];

	for (int i = 0; i < EVBUS_STAT_LAG; i++)
	{
		stat->total[i] += n[i];
		part[i] += n[i];
	}
	if (n[EVBUS_STAT_EVENTS] > 0)
		stat->last_at = GetCurrentTimestamp();
}

/* ------------------------------------------------------------------ adding */

/* Add to the counters of id; times and samples, or both NULL: those of a subscription. */
void
evbus_stat_add(EvbusStat *stat, int32 id, const int64 *n, EvbusStatTimes *times, const EvbusStatSamples *samples)
{
	int64		now = evbus_uptime();

	LWLockAcquire(&stat->lock, LW_EXCLUSIVE);
	if (ours(stat, times, id))
	{
		turn(stat, times, now);
		add(stat, n);
		for (int of = 0; samples && of < EVBUS_STAT_TIMES; of++)
		{
			uint32	   *part = times->of[of].parts[stat->number % EVBUS_STAT_PARTS];

			times->of[of].sum += samples->of[of].sum;
			for (int i = samples->of[of].begin; i < samples->of[of].end; i++)
			{
				part[i] += samples->of[of].counts[i];
				times->of[of].total[i] += samples->of[of].counts[i];
			}
		}
	}
	LWLockRelease(&stat->lock);
}

/* One counter of a subscription; LAG is set, not added to. */
void
evbus_stat_add_one(EvbusStat *stat, int32 id, EvbusStatCounter counter, int64 n)
{
	EvbusStatTimes *times = &evbus_stat_times[stat - evbus_stat_subs];
	int64		now = evbus_uptime();

	LWLockAcquire(&stat->lock, LW_EXCLUSIVE);
	if (ours(stat, times, id))
	{
		int64	   *part;

		turn(stat, times, now);
		part = stat->parts[stat->number % EVBUS_STAT_PARTS];
		if (counter == EVBUS_STAT_LAG)
			part[counter] = n + 1;
		else
		{
			part[counter] += n;
			stat->total[counter] += n;
		}
	}
	LWLockRelease(&stat->lock);
}

/* -------------------------------------------------------------------- types */

static int32 *
bucket_of(EvbusDb *db, uint32 hash)
{
	return &evbus_stat_type_buckets[EVBUS_DB_INDEX(db) * evbus_max_tracked_types + hash % evbus_max_tracked_types];
}

static EvbusStatType *
find(EvbusDb *db, int32 bus_id, uint32 hash, const char *type, int type_len)
{
	for (int32 i = *bucket_of(db, hash); i >= 0; i = EVBUS_STAT_TYPE(db, i)->next)
	{
		EvbusStatType *t = EVBUS_STAT_TYPE(db, i);

		if (t->hash == hash && t->bus_id == bus_id && t->type_len == type_len && memcmp(t->type, type, type_len) == 0)
			return t;
	}
	return NULL;
}

/* A place for another type; the caller holds the table's lock EXCLUSIVE. */
static EvbusStatType *
make_room(EvbusDb *db)
{
	EvbusStatTable *table = EVBUS_STAT_TABLE(db);
	EvbusStatType *t;
	int32	   *link;

	for (;;)
	{
		t = EVBUS_STAT_TYPE(db, table->hand);
		if (t->bus_id == 0 || pg_atomic_exchange_u32(&t->recent, 0) == 0)
			break;
		table->hand = (table->hand + 1) % evbus_max_tracked_types;
	}
	if (t->bus_id != 0)
	{
		for (link = bucket_of(db, t->hash); *link != table->hand; link = &EVBUS_STAT_TYPE(db, *link)->next)
			;
		*link = t->next;
		table->evicted++;
	}
	return t;
}

/* Add to the counters of a type, which makes room for itself where it must. */
void
evbus_stat_add_type(EvbusDb *db, int32 bus_id, uint32 hash, const char *type, int type_len, const int64 *n)
{
	EvbusStatTable *table = EVBUS_STAT_TABLE(db);
	EvbusStatType *t;

	LWLockAcquire(&table->lock, LW_SHARED);
	t = find(db, bus_id, hash, type, type_len);
	if (t)
	{
		pg_atomic_write_u32(&t->recent, 1);
		evbus_stat_add(&t->stat, bus_id, n, NULL, NULL);
	}
	LWLockRelease(&table->lock);
	if (t)
		return;

	LWLockAcquire(&table->lock, LW_EXCLUSIVE);
	t = find(db, bus_id, hash, type, type_len);
	if (t == NULL)
	{
		int32	   *bucket = bucket_of(db, hash);

		t = make_room(db);
		t->hash = hash;
		t->bus_id = bus_id;
		pg_atomic_write_u32(&t->recent, 0);
		t->type_len = (int16) type_len;
		memcpy(t->type, type, type_len);
		reset(&t->stat, NULL, bus_id);
		t->next = *bucket;
		*bucket = table->hand;
		table->hand = (table->hand + 1) % evbus_max_tracked_types;
	}
	/* It is not recent before it comes again: many that come once do not push out those that come often. */
	evbus_stat_add(&t->stat, bus_id, n, NULL, NULL);
	LWLockRelease(&table->lock);
}

/* ------------------------------------------------------------------ reading */

/* Sum up counters of the ring's parts (from, to], and what the present part of 10 seconds has. */
static void
sum_minutes(const EvbusStat *stat, int64 minutes, int64 *n)
{
	int64		now = stat->number / EVBUS_STAT_MINUTE;

	memcpy(n, stat->parts[stat->number % EVBUS_STAT_PARTS], sizeof(int64) * EVBUS_STAT_COUNTERS);
	for (int64 m = Max(now - minutes, 0); m <= now; m++)
		for (int i = 0; i < EVBUS_STAT_LAG; i++)
			n[i] += stat->minutes[m % EVBUS_STAT_MINUTES][i];
}

/*
 * What the counters of id say; false: there are none.  Reading does not wait for who counts
 * longer than he holds the lock, and costs the same whatever was counted.
 */
bool
evbus_stat_read(EvbusStat *stat, int32 id, EvbusStatRead *out)
{
	static const int of_minutes[EVBUS_STAT_WINDOWS] = {1, 5, EVBUS_STAT_MINUTES - 1};
	EvbusStatTimes *times = stat >= evbus_stat_subs && stat < evbus_stat_subs + evbus_max_databases * evbus_max_subscriptions
		? &evbus_stat_times[stat - evbus_stat_subs] : NULL;
	int64		now = evbus_uptime();
	bool		found;

	LWLockAcquire(&stat->lock, LW_EXCLUSIVE);
	found = stat->id == id && id != 0;
	if (found)
	{
		turn(stat, times, now);
		memcpy(out->total, stat->total, sizeof(out->total));
		out->reset_at = stat->reset_at;
		out->last_at = stat->last_at;
		for (int w = 0; w < EVBUS_STAT_WINDOWS; w++)
		{
			int64		minutes = of_minutes[w];
			int64		begin;

			out->windows[w].lag = -1;
			if (w == EVBUS_WINDOW_MINUTE)
			{
				begin = stat->number - (EVBUS_STAT_PARTS - 1);
				memset(out->windows[w].n, 0, sizeof(out->windows[w].n));
				for (int64 part = Max(begin, 0); part <= stat->number; part++)
				{
					const int64 *n = stat->parts[part % EVBUS_STAT_PARTS];

					for (int i = 0; i < EVBUS_STAT_LAG; i++)
						out->windows[w].n[i] += n[i];
					/* Taken some time in that part: in the middle of it, for all we know. */
					if (out->windows[w].lag < 0 && n[EVBUS_STAT_LAG] > 0)
					{
						out->windows[w].lag = n[EVBUS_STAT_LAG] - 1;
						out->windows[w].lag_seconds = Max(now - part * EVBUS_STAT_PART - EVBUS_STAT_PART / 2, 0) / 1e6;
					}
				}
				begin *= EVBUS_STAT_PART;
			}
			else
			{
				sum_minutes(stat, minutes, out->windows[w].n);
				begin = (stat->number / EVBUS_STAT_MINUTE - minutes) * EVBUS_STAT_MINUTE * EVBUS_STAT_PART;
			}
			out->windows[w].seconds = Max(now - Max(begin, stat->since), 1) / 1e6;
		}
	}
	LWLockRelease(&stat->lock);
	return found;
}

/* The histogram of a window, or of all times (window < 0), and the sum of these, us. */
void
evbus_stat_read_times(EvbusStat *stat, int32 id, const EvbusStatTimes *times, EvbusStatTime of, int window, uint64 *counts, int64 *sum)
{
	memset(counts, 0, sizeof(uint64) * EVBUS_HISTOGRAM_BUCKETS);
	*sum = 0;
	LWLockAcquire(&stat->lock, LW_EXCLUSIVE);
	if (stat->id == id && id != 0)
	{
		turn(stat, unconstify(EvbusStatTimes *, times), evbus_uptime());
		*sum = times->of[of].sum;
		for (int i = 0; i < EVBUS_HISTOGRAM_BUCKETS; i++)
		{
			if (window < 0)
			{
				counts[i] = times->of[of].total[i];
				continue;
			}
			if (window != EVBUS_WINDOW_MINUTE)
				counts[i] = times->of[of].parts[stat->number % EVBUS_STAT_PARTS][i];
			for (int k = 0; window == EVBUS_WINDOW_MINUTE && k < EVBUS_STAT_PARTS; k++)
				counts[i] += times->of[of].parts[k][i];
			for (int k = 0; window == EVBUS_WINDOW_FIVE && k < EVBUS_STAT_HMINUTES; k++)
				counts[i] += times->of[of].minutes[k][i];
			for (int k = 0; window == EVBUS_WINDOW_HOUR && k < EVBUS_STAT_HTENS; k++)
				counts[i] += times->of[of].tens[k][i];
		}
	}
	LWLockRelease(&stat->lock);
}

/* The last 61 minutes, the oldest first, the last one not over; LAG is the lag, + 1. */
void
evbus_stat_read_minutes(EvbusStat *stat, int32 id, int64 out[EVBUS_STAT_MINUTES][EVBUS_STAT_COUNTERS])
{
	memset(out, 0, sizeof(int64) * EVBUS_STAT_MINUTES * EVBUS_STAT_COUNTERS);
	LWLockAcquire(&stat->lock, LW_EXCLUSIVE);
	if (stat->id == id && id != 0)
	{
		EvbusStatTimes *times = stat >= evbus_stat_subs && stat < evbus_stat_subs + evbus_max_databases * evbus_max_subscriptions
			? &evbus_stat_times[stat - evbus_stat_subs] : NULL;
		int64		now;
		const int64 *part;

		turn(stat, times, evbus_uptime());
		now = stat->number / EVBUS_STAT_MINUTE;
		for (int i = 0; i < EVBUS_STAT_MINUTES; i++)
			if (now - (EVBUS_STAT_MINUTES - 1) + i >= 0)
				memcpy(out[i], stat->minutes[(now - (EVBUS_STAT_MINUTES - 1) + i) % EVBUS_STAT_MINUTES], sizeof(out[i]));
		part = stat->parts[stat->number % EVBUS_STAT_PARTS];
		for (int i = 0; i < EVBUS_STAT_LAG; i++)
			out[EVBUS_STAT_MINUTES - 1][i] += part[i];
		if (part[EVBUS_STAT_LAG] != 0)
			out[EVBUS_STAT_MINUTES - 1][EVBUS_STAT_LAG] = part[EVBUS_STAT_LAG];
	}
	LWLockRelease(&stat->lock);
}

/* ------------------------------------------------------------- coming, going */

/*
 * Forget all that was counted in a database; what is being added meanwhile may stay.
 * keep: whose counters these are; else ids begin anew.
 */
void
evbus_stats_clear(EvbusDb *db, bool keep)
{
	EvbusStatTable *table = EVBUS_STAT_TABLE(db);

	for (int i = 0; i < evbus_max_buses + evbus_max_subscriptions; i++)
	{
		EvbusStat  *stat = i < evbus_max_buses ? EVBUS_STAT_BUS(db, i) : EVBUS_STAT_SUB(db, i - evbus_max_buses);

		LWLockAcquire(&stat->lock, LW_EXCLUSIVE);
		if (stat->id != 0)
			reset(stat, i < evbus_max_buses ? NULL : EVBUS_STAT_TIMES_OF(db, i - evbus_max_buses), keep ? stat->id : 0);
		LWLockRelease(&stat->lock);
	}
	LWLockAcquire(&table->lock, LW_EXCLUSIVE);
	table->hand = 0;
	table->evicted = 0;
	for (int i = 0; i < evbus_max_tracked_types; i++)
	{
		EVBUS_STAT_TYPE(db, i)->bus_id = 0;
		evbus_stat_type_buckets[EVBUS_DB_INDEX(db) * evbus_max_tracked_types + i] = -1;
	}
	LWLockRelease(&table->lock);
}

/* The postmaster, once.  What is large is cleared by who uses it first: so what nobody uses takes no memory. */
void
evbus_stats_init(int tranche)
{
	for (int i = 0; i < evbus_max_databases * evbus_max_buses; i++)
	{
		evbus_stat_buses[i].id = 0;
		LWLockInitialize(&evbus_stat_buses[i].lock, tranche);
	}
	for (int i = 0; i < evbus_max_databases * evbus_max_subscriptions; i++)
	{
		evbus_stat_subs[i].id = 0;
		LWLockInitialize(&evbus_stat_subs[i].lock, tranche);
	}
	for (int i = 0; i < evbus_max_databases; i++)
	{
		memset(&evbus_stat_tables[i], 0, sizeof(EvbusStatTable));
		LWLockInitialize(&evbus_stat_tables[i].lock, tranche);
	}
	for (int i = 0; i < evbus_max_databases * evbus_max_tracked_types; i++)
	{
		evbus_stat_types[i].bus_id = 0;
		LWLockInitialize(&evbus_stat_types[i].stat.lock, tranche);
		evbus_stat_type_buckets[i] = -1;
	}
}
