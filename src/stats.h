/* stats.h: what is counted, in shared memory: totals, windows of time, histograms, tracked types */
#ifndef EVBUS_STATS_H
#define EVBUS_STATS_H

#include "evbus.h"

#include "histogram.h"

/* Of a bus or type what was published to it, of a subscription what was delivered; all but the last are sums. */
typedef enum EvbusStatCounter
{
	EVBUS_STAT_EVENTS = 0,		/* published; or delivered, also again */
	EVBUS_STAT_BYTES,			/* of these: payload and headers; of deliveries as they are stored, with type and key */
	EVBUS_STAT_TRANSACTIONS,	/* that published to the bus */
	EVBUS_STAT_DONE,			/* acked, or handled */
	EVBUS_STAT_FAILED,			/* deliveries */
	EVBUS_STAT_DEAD,			/* dead letters */
	EVBUS_STAT_RAN_OUT,			/* leases */
	EVBUS_STAT_LAG,				/* of a subscription, and of a bus its next position: as it was last looked at, + 1; 0: nobody has looked */
	EVBUS_STAT_LAG_AT			/* when, by evbus_uptime() */
} EvbusStatCounter;

#define EVBUS_STAT_COUNTERS		9

/*
 * Time is cut into parts.  What happens is added to the present one, of 10 seconds; when that
 * is over, it is added to the part of a minute, and so on.  A window is what the last
 * complete parts have, and the present one: so "1 min" covers 60 to 70 seconds.
 */
#define EVBUS_STAT_PART			(10 * USECS_PER_SEC)
#define EVBUS_STAT_PARTS		7	/* the present one, and a minute */
#define EVBUS_STAT_MINUTE		6	/* parts */
#define EVBUS_STAT_MINUTES		61	/* counters have each minute of the hour */
#define EVBUS_STAT_HMINUTES		6	/* histograms have those of the last five */
#define EVBUS_STAT_TEN			60	/* parts */
#define EVBUS_STAT_HTENS		7	/* and of the last hour each ten minutes */

typedef enum EvbusStatWindow
{
	EVBUS_WINDOW_MINUTE = 0,
	EVBUS_WINDOW_FIVE,
	EVBUS_WINDOW_HOUR
} EvbusStatWindow;

#define EVBUS_STAT_WINDOWS		3

/* The counters of a bus, subscription or type; lock guards all of it, by whoever commits. */
typedef struct EvbusStat
{
	LWLock		lock;			/* tranche "EvbusStat" */
	int32		id;				/* of the bus or subscription; 0: nobody's yet */
	int64		number;			/* of the present part, since the machine started */
	TimestampTz last_at;		/* when EVENTS was last raised; 0: never */
	int64		total[EVBUS_STAT_COUNTERS];
	int64		parts[EVBUS_STAT_PARTS][EVBUS_STAT_COUNTERS];
	int64		minutes[EVBUS_STAT_MINUTES][EVBUS_STAT_COUNTERS];
} EvbusStat;

typedef enum EvbusStatTime
{
	EVBUS_TIME_LATENCY = 0,		/* from publish() to the first delivery */
	EVBUS_TIME_HANDLER			/* a call of the handler */
} EvbusStatTime;

#define EVBUS_STAT_TIMES		2

/* Of a subscription, beside its EvbusStat and under its lock. */
typedef struct EvbusStatTimes
{
	struct
	{
		uint64		total[EVBUS_HISTOGRAM_BUCKETS];
		int64		sum;		/* us */
		uint32		parts[EVBUS_STAT_PARTS][EVBUS_HISTOGRAM_BUCKETS];
		uint32		minutes[EVBUS_STAT_HMINUTES][EVBUS_HISTOGRAM_BUCKETS];
		uint32		tens[EVBUS_STAT_HTENS][EVBUS_HISTOGRAM_BUCKETS];
	}			of[EVBUS_STAT_TIMES];
} EvbusStatTimes;

/* Times to be added. */
typedef struct EvbusStatSamples
{
	struct
	{
		int64		sum;		/* us */
		int			end;		/* only buckets [begin, end) have any; 0: none has */
		int			begin;
		uint32		counts[EVBUS_HISTOGRAM_BUCKETS];
	}			of[EVBUS_STAT_TIMES];
} EvbusStatSamples;

/* A type of events on a bus that has counters of its own; all but `recent` changes under EvbusStatTable.lock EXCLUSIVE. */
typedef struct EvbusStatType
{
	int32		next;			/* in its bucket; -1: end */
	uint32		hash;
	int32		bus_id;			/* 0: free */
	pg_atomic_uint32 recent;	/* counted since the hand passed by; set by who counts, cleared by the hand */
	int16		type_len;
	char		type[EVBUS_TYPE_MAX];
	EvbusStat	stat;			/* its id is bus_id */
} EvbusStatType;

/* Of a database: since when it counts, and its tracked types; under lock. */
typedef struct EvbusStatTable
{
	LWLock		lock;			/* tranche "EvbusStat": SHARED to find one, EXCLUSIVE to change which there are */
	int32		hand;			/* where room is looked for next */
	int64		since;			/* by evbus_uptime(): all of the database is counted from then on */
	TimestampTz reset_at;		/* the same moment */
} EvbusStatTable;

/* What one EvbusStat says. */
typedef struct EvbusStatRead
{
	int64		total[EVBUS_STAT_COUNTERS];
	TimestampTz last_at;
	struct
	{
		double		seconds;	/* that it covers */
		int64		n[EVBUS_STAT_COUNTERS];
	}			windows[EVBUS_STAT_WINDOWS];
	int64		lag;			/* the most of the last minute; -1: nobody has looked */
	double		lag_seconds;	/* since it was last so much */
} EvbusStatRead;

extern EvbusStat *evbus_stat_buses;
extern EvbusStat *evbus_stat_subs;
extern EvbusStatTimes *evbus_stat_times;
extern EvbusStatType *evbus_stat_types;
extern int32 *evbus_stat_type_buckets;
extern EvbusStatTable *evbus_stat_tables;
extern int	evbus_max_tracked_types;	/* per database; sizes shared memory */

#define EVBUS_STAT_BUS(db, slot)	(&evbus_stat_buses[EVBUS_DB_INDEX(db) * evbus_max_buses + (slot)])
#define EVBUS_STAT_SUB(db, slot)	(&evbus_stat_subs[EVBUS_DB_INDEX(db) * evbus_max_subscriptions + (slot)])
#define EVBUS_STAT_TABLE(db)		(&evbus_stat_tables[EVBUS_DB_INDEX(db)])
#define EVBUS_STAT_TYPE(db, i)		(&evbus_stat_types[EVBUS_DB_INDEX(db) * evbus_max_tracked_types + (i)])

extern void evbus_stats_init(int tranche);
extern void evbus_stats_clear(EvbusDb *db);
extern int64 evbus_stats_since(EvbusDb *db, TimestampTz *reset_at);
/* For callbacks, and under EvbusSub.lock: these take locks of their own only. */
extern void evbus_stat_add(EvbusStat *stat, int32 id, const int64 *n, const EvbusStatSamples *samples);
extern void evbus_stat_add_one(EvbusStat *stat, int32 id, EvbusStatCounter counter, int64 n);
extern void evbus_stat_add_type(EvbusDb *db, int32 bus_id, uint32 hash, const char *type, int type_len, const int64 *n);

extern void evbus_stat_read(EvbusStat *stat, int32 id, int64 since, EvbusStatRead *out);
extern void evbus_stat_read_times(EvbusStat *stat, int32 id, EvbusStatTime of, int window, uint64 *counts, int64 *sum);
extern int64 evbus_stat_passed(EvbusStat *stat, int32 id, int64 since, int64 value);
extern void evbus_stat_read_minutes(EvbusStat *stat, int32 id, int64 present, int64 out[EVBUS_STAT_MINUTES][EVBUS_STAT_COUNTERS]);

#endif
