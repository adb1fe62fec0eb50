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

/* The histograms beside it; NULL: it is not of a subscription. */
static EvbusStatTimes *
times_of(const EvbusStat *stat)
{
	Size		i = stat - evbus_stat_subs;

	return stat >= evbus_stat_subs && i < (Size) evbus_max_databases * evbus_max_subscriptions ? &evbus_stat_times[i] : NULL;
}

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
turn(EvbusStat *stat, int64 now)
{
	EvbusStatTimes *times = times_of(stat);
	int64		last = stat->number;
	int64		number = now / EVBUS_STAT_PART;
	int64	   *over = stat->parts[last % EVBUS_STAT_PARTS];
	int64	   *minute = stat->minutes[last / EVBUS_STAT_MINUTE % EVBUS_STAT_MINUTES];

	if (likely(number <= last))
		return;
	for (int i = 0; i < EVBUS_STAT_LAG; i++)
		minute[i] += over[i];
	for (int i = EVBUS_STAT_LAG; i < EVBUS_STAT_COUNTERS; i++)
		if (over[i] != 0)
			minute[i] = over[i];
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
reset(EvbusStat *stat, int32 id)
{
	EvbusStatTimes *times = times_of(stat);

	stat->id = id;
	stat->number = evbus_uptime() / EVBUS_STAT_PART;
	stat->last_at = 0;
	memset(stat->total, 0, sizeof(stat->total));
	memset(stat->parts, 0, sizeof(stat->parts));
	memset(stat->minutes, 0, sizeof(stat->minutes));
	if (times)
		memset(times, 0, sizeof(EvbusStatTimes));
}

/* Is it, or may it become, that of this id?  Then its present part is the one of now.  The caller holds the lock EXCLUSIVE. */
static bool
ours(EvbusStat *stat, int32 id, int64 now)
{
	if (unlikely(stat->id != id))
	{
		if (stat->id > id)
			return false;		/* ours was dropped, its place is another's */
		reset(stat, id);
	}
	turn(stat, now);
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

/* Add to the counters of id; samples: of a subscription, or NULL. */
void
evbus_stat_add(EvbusStat *stat, int32 id, const int64 *n, const EvbusStatSamples *samples)
{
	EvbusStatTimes *times = times_of(stat);
	int64		now = evbus_uptime();

	LWLockAcquire(&stat->lock, LW_EXCLUSIVE);
	if (ours(stat, id, now))
	{
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

/* One counter of a bus or subscription; LAG is set, not added to. */
void
evbus_stat_add_one(EvbusStat *stat, int32 id, EvbusStatCounter counter, int64 n)
{
	int64		now = evbus_uptime();

	LWLockAcquire(&stat->lock, LW_EXCLUSIVE);
	if (ours(stat, id, now))
	{
		int64	   *part = stat->parts[stat->number % EVBUS_STAT_PARTS];

		if (counter == EVBUS_STAT_LAG)
		{
			part[EVBUS_STAT_LAG] = n + 1;
			part[EVBUS_STAT_LAG_AT] = now;
		}
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
		evbus_stat_add(&t->stat, bus_id, n, NULL);
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
		reset(&t->stat, bus_id);
		t->next = *bucket;
		*bucket = table->hand;
		table->hand = (table->hand + 1) % evbus_max_tracked_types;
	}
	/* It is not recent before it comes again: many that come once do not push out those that come often. */
	evbus_stat_add(&t->stat, bus_id, n, NULL);
	LWLockRelease(&table->lock);
}

/* ------------------------------------------------------------------ reading */

/* Sum up the counters of so many minutes, of the present one, and of the present part. */
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
 * What the counters of id say; all are 0 where nothing was counted since `since`.  Reading costs the same
 * whatever was counted.
 */
void
evbus_stat_read(EvbusStat *stat, int32 id, int64 since, EvbusStatRead *out)
{
	static const int of_minutes[EVBUS_STAT_WINDOWS] = {1, 5, EVBUS_STAT_MINUTES - 1};
	int64		now = evbus_uptime();
	int64		number = now / EVBUS_STAT_PART;

	memset(out, 0, sizeof(*out));
	out->lag = -1;
	LWLockAcquire(&stat->lock, LW_EXCLUSIVE);
	if (stat->id == id && id != 0)
	{
		turn(stat, now);
		memcpy(out->total, stat->total, sizeof(out->total));
		out->last_at = stat->last_at;
		for (int64 part = Max(number - (EVBUS_STAT_PARTS - 1), 0); part <= number; part++)
		{
			const int64 *n = stat->parts[part % EVBUS_STAT_PARTS];

			for (int i = 0; i < EVBUS_STAT_LAG; i++)
				out->windows[EVBUS_WINDOW_MINUTE].n[i] += n[i];
			if (n[EVBUS_STAT_LAG] > 0 && n[EVBUS_STAT_LAG] - 1 >= out->lag)
			{
				out->lag = n[EVBUS_STAT_LAG] - 1;
				out->lag_seconds = (now - n[EVBUS_STAT_LAG_AT]) / 1e6;
			}
		}
		for (int w = EVBUS_WINDOW_FIVE; w < EVBUS_STAT_WINDOWS; w++)
			sum_minutes(stat, of_minutes[w], out->windows[w].n);
	}
	LWLockRelease(&stat->lock);
	for (int w = 0; w < EVBUS_STAT_WINDOWS; w++)
	{
		int64		begin = w == EVBUS_WINDOW_MINUTE ? (number - (EVBUS_STAT_PARTS - 1)) * EVBUS_STAT_PART
			: (number / EVBUS_STAT_MINUTE - of_minutes[w]) * EVBUS_STAT_MINUTE * EVBUS_STAT_PART;

		/* A second at least: what came just after a reset is no rate. */
		out->windows[w].seconds = Max(now - Max(begin, since), USECS_PER_SEC) / 1e6;
	}
}

/* The histogram of a window, or of all times (window < 0), and the sum of these, us. */
void
evbus_stat_read_times(EvbusStat *stat, int32 id, EvbusStatTime of, int window, uint64 *counts, int64 *sum)
{
	const EvbusStatTimes *times = times_of(stat);

	memset(counts, 0, sizeof(uint64) * EVBUS_HISTOGRAM_BUCKETS);
	*sum = 0;
	LWLockAcquire(&stat->lock, LW_EXCLUSIVE);
	if (stat->id == id && id != 0)
	{
		turn(stat, evbus_uptime());
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

/* The last 61 minutes, the oldest first, up to the one that began at `present` by the uptime; LAG is the lag, + 1. */
void
evbus_stat_read_minutes(EvbusStat *stat, int32 id, int64 present, int64 out[EVBUS_STAT_MINUTES][EVBUS_STAT_COUNTERS])
{
	memset(out, 0, sizeof(int64) * EVBUS_STAT_MINUTES * EVBUS_STAT_COUNTERS);
	LWLockAcquire(&stat->lock, LW_EXCLUSIVE);
	if (stat->id == id && id != 0)
	{
		int64		last = present / USECS_PER_MINUTE;
		int64		now;
		const int64 *part;

		turn(stat, evbus_uptime());
		now = stat->number / EVBUS_STAT_MINUTE;
		for (int i = 0; i < EVBUS_STAT_MINUTES; i++)
		{
			int64		minute = last - (EVBUS_STAT_MINUTES - 1) + i;

			if (minute >= 0 && minute > now - EVBUS_STAT_MINUTES)
				memcpy(out[i], stat->minutes[minute % EVBUS_STAT_MINUTES], sizeof(out[i]));
		}
		part = stat->parts[stat->number % EVBUS_STAT_PARTS];
		for (int i = 0; now == last && i < EVBUS_STAT_LAG; i++)
			out[EVBUS_STAT_MINUTES - 1][i] += part[i];
		if (now == last && part[EVBUS_STAT_LAG] != 0)
			out[EVBUS_STAT_MINUTES - 1][EVBUS_STAT_LAG] = part[EVBUS_STAT_LAG];
	}
	LWLockRelease(&stat->lock);
}

/*
 * How long ago, in microseconds and at most, a value that only grows and is kept as LAG was not above this one;
 * -1: it is not that old that anybody would have looked.
 */
int64
evbus_stat_passed(EvbusStat *stat, int32 id, int64 since, int64 value)
{
	int64		now = evbus_uptime();
	int64		at = -1;

	LWLockAcquire(&stat->lock, LW_EXCLUSIVE);
	if (stat->id == id && id != 0)
	{
		int64		minute;

		turn(stat, now);
		/* The newest look that found it no higher. */
		for (int64 part = stat->number; part > stat->number - EVBUS_STAT_PARTS && part >= 0 && at < 0; part--)
		{
			int64		kept = stat->parts[part % EVBUS_STAT_PARTS][EVBUS_STAT_LAG];

			if (kept > 0 && kept - 1 <= value)
				at = stat->parts[part % EVBUS_STAT_PARTS][EVBUS_STAT_LAG_AT];
		}
		minute = stat->number / EVBUS_STAT_MINUTE;
		for (int64 m = minute; m > minute - EVBUS_STAT_MINUTES && m >= 0 && at < 0; m--)
		{
			int64		kept = stat->minutes[m % EVBUS_STAT_MINUTES][EVBUS_STAT_LAG];

			if (kept > 0 && kept - 1 <= value)
				at = stat->minutes[m % EVBUS_STAT_MINUTES][EVBUS_STAT_LAG_AT];
		}
		/* Longer ago than anybody has looked, or remembers. */
		if (at < 0)
			at = Max(since, now - (EVBUS_STAT_MINUTES - 1) * USECS_PER_MINUTE);
	}
	LWLockRelease(&stat->lock);
	return at < 0 ? -1 : Max(now - at, 0);
}

/* ------------------------------------------------------------- coming, going */

/* Since when a database counts, by evbus_uptime(). */
int64
evbus_stats_since(EvbusDb *db, TimestampTz *reset_at)
{
	EvbusStatTable *table = EVBUS_STAT_TABLE(db);
	int64		since;

	LWLockAcquire(&table->lock, LW_SHARED);
	since = table->since;
	*reset_at = table->reset_at;
	LWLockRelease(&table->lock);
	return since;
}

/* Forget all that was counted in a database; what is being added meanwhile may stay. */
void
evbus_stats_clear(EvbusDb *db)
{
	EvbusStatTable *table = EVBUS_STAT_TABLE(db);

	for (int i = 0; i < evbus_max_buses + evbus_max_subscriptions; i++)
	{
		EvbusStat  *stat = i < evbus_max_buses ? EVBUS_STAT_BUS(db, i) : EVBUS_STAT_SUB(db, i - evbus_max_buses);

		LWLockAcquire(&stat->lock, LW_EXCLUSIVE);
		if (stat->id != 0)
			reset(stat, 0);
		LWLockRelease(&stat->lock);
	}
	LWLockAcquire(&table->lock, LW_EXCLUSIVE);
	table->since = evbus_uptime();
	table->reset_at = GetCurrentTimestamp();
	table->hand = 0;
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
