/*-------------------------------------------------------------------------
 * stat_outbox.c
 *	  What the current transaction has counted, to be added to shared memory when it commits.
 *
 * So a thousand events cost shared memory one addition, and what is rolled back was
 * never counted.  One tally for each bus, type and subscription that something was counted
 * for, as a stack: each knows the level of subtransactions it is of.  ROLLBACK TO drops
 * those of its level; when a subtransaction ends well, its tallies become the parent's, each
 * added to the one that has it already, so that loops do not make the stack grow.
 *
 * Who prepares a transaction counts it then: nobody else knows what was in it.
 *-------------------------------------------------------------------------
 */
#include "stat_outbox.h"

#include "access/xact.h"
#include "clock.h"
#include "common/hashfn.h"
#include "utils/memutils.h"

#define BUCKETS			64
#define TALLIES_FIRST		16
#define TALLIES_KEPT		256		/* stay for the next transaction */
#define TYPES_MAX		1000	/* of one transaction; what others have shows in the bus's counters only */

typedef enum TallyKind
{
	TALLY_BUS,
	TALLY_TYPE,
	TALLY_SUB
} TallyKind;

typedef struct Tally
{
	TallyKind	kind;
	int			nesting;
	int			next;			/* in its bucket, older ones; -1: end */
	uint32		hash;
	EvbusDb    *db;
	Oid			bus_relid;		/* whose area that was */
	int32		id;				/* of the bus or subscription */
	int			slot;
	int			type_len;
	char	   *type;			/* of the transaction's context */
	bool		another;		/* a type that no outer level had: n_types counts it */
	EvbusStatSamples *samples;	/* likewise; NULL: none */
	int64		n[EVBUS_STAT_COUNTERS];
} Tally;

bool		evbus_track_statistics = true;

static Tally *tallies = NULL;
static int	n_tallies = 0;
static int	max_tallies = 0;
static int	n_types = 0;
static int	buckets[BUCKETS];	/* the newest of each; -1: none */

/* What was found last: mostly it is wanted again. */
static int	last_bus = -1;
static int	last_type = -1;
static int	last_sub = -1;

/* ------------------------------------------------------------------- tallies */

static bool
is_of(const Tally *tally, TallyKind kind, const EvbusDb *db, int32 id, const char *type, int type_len)
{
	return tally->kind == kind && tally->id == id && tally->db == db && tally->type_len == type_len &&
		(type_len == 0 || memcmp(tally->type, type, type_len) == 0);
}

static uint32
hash_of(TallyKind kind, int32 id, const char *type, int type_len)
{
	return hash_combine(type_len > 0 ? hash_bytes((const unsigned char *) type, type_len) : (uint32) kind, hash_uint32((uint32) id));
}

/* The tally of this level; NULL: there is none. */
static Tally *
find(TallyKind kind, const EvbusDb *db, int32 id, const char *type, int type_len, uint32 hash, int nesting)
{
	for (int i = buckets[hash % BUCKETS]; i >= 0 && tallies[i].nesting == nesting; i = tallies[i].next)
		if (tallies[i].hash == hash && is_of(&tallies[i], kind, db, id, type, type_len))
			return &tallies[i];
	return NULL;
}

static void
link_tally(int i)
{
	tallies[i].next = buckets[tallies[i].hash % BUCKETS];
	buckets[tallies[i].hash % BUCKETS] = i;
}

/* Take the newest off its bucket, where it is the first. */
static void
unlink_tally(int i)
{
	buckets[tallies[i].hash % BUCKETS] = tallies[i].next;
}

static void
make_room(void)
{
	int			wanted = Max(max_tallies * 2, TALLIES_FIRST);

	if (n_tallies < max_tallies)
		return;
	tallies = tallies ? repalloc_huge(tallies, sizeof(Tally) * wanted)
		: MemoryContextAllocHuge(TopMemoryContext, sizeof(Tally) * wanted);
	max_tallies = wanted;		/* not before it is so: an error may be caught */
}

/* Has an outer level the type?  Then it is one of those that count. */
static bool
known_outside(const EvbusDb *db, int32 id, const char *type, int type_len, uint32 hash)
{
	for (int i = buckets[hash % BUCKETS]; i >= 0; i = tallies[i].next)
		if (tallies[i].hash == hash && is_of(&tallies[i], TALLY_TYPE, db, id, type, type_len))
			return true;
	return false;
}

/* The tally of this level, made where there is none; NULL: the transaction has too many types. */
static Tally *
get(TallyKind kind, EvbusDb *db, int32 id, int slot, const char *type, int type_len, int *last)
{
	int			nesting = GetCurrentTransactionNestLevel();
	Tally	   *tally;
	uint32		hash;

	if (*last >= 0 && tallies[*last].nesting == nesting && is_of(&tallies[*last], kind, db, id, type, type_len))
		return &tallies[*last];
	hash = hash_of(kind, id, type, type_len);
	tally = find(kind, db, id, type, type_len, hash, nesting);
	if (tally == NULL)
	{
		char	   *copy = NULL;
		bool		another = kind == TALLY_TYPE && !known_outside(db, id, type, type_len, hash);

		if (another && n_types >= Min(TYPES_MAX, evbus_max_tracked_types))
			return NULL;
		make_room();
		if (type_len > 0)
		{
			copy = MemoryContextAlloc(TopTransactionContext, type_len);
			memcpy(copy, type, type_len);
		}
		tally = &tallies[n_tallies];
		memset(tally, 0, sizeof(Tally));
		tally->kind = kind;
		tally->nesting = nesting;
		tally->hash = hash;
		tally->db = db;
		tally->bus_relid = db->bus_relid;
		tally->id = id;
		tally->slot = slot;
		tally->type = copy;
		tally->type_len = type_len;
		tally->another = another;
		link_tally(n_tallies++);
		if (another)
			n_types++;
	}
	*last = (int) (tally - tallies);
	return tally;
}

/* ----------------------------------------------------------------- counting */

/* Nobody commits a process's own work outside of transactions; and what is off costs a branch. */
static inline bool
counts(void)
{
	return likely(evbus_track_statistics);
}

/* An event of the bus was published; bytes: of payload and headers. */
void
evbus_stat_published(EvbusDb *db, const EvbusBus *bus, const char *type, int type_len, Size bytes)
{
	Tally	   *tally;

	if (!counts())
		return;
	tally = get(TALLY_BUS, db, bus->bus_id, bus->slot, NULL, 0, &last_bus);
	tally->n[EVBUS_STAT_EVENTS]++;
	tally->n[EVBUS_STAT_BYTES] += (int64) bytes;
	tally->n[EVBUS_STAT_TRANSACTIONS] = 1;
	tally = get(TALLY_TYPE, db, bus->bus_id, bus->slot, type, type_len, &last_type);
	if (tally == NULL)
		return;
	tally->n[EVBUS_STAT_EVENTS]++;
	tally->n[EVBUS_STAT_BYTES] += (int64) bytes;
}

/* What a replay does is its subscription's. */
static Tally *
of_sub(EvbusDb *db, const EvbusSubscription *sub)
{
	return get(TALLY_SUB, db, sub->replay_of != 0 ? sub->replay_of : sub->subscription_id, sub->live_slot, NULL, 0, &last_sub);
}

/* Buckets [begin, end) may have some from now on. */
static void
widen(EvbusStatSamples *samples, EvbusStatTime of, int begin, int end)
{
	if (samples->of[of].end == 0 || begin < samples->of[of].begin)
		samples->of[of].begin = begin;
	samples->of[of].end = Max(samples->of[of].end, end);
}

static void
sample(Tally *tally, EvbusStatTime of, int64 us)
{
	int			bucket = evbus_histogram_bucket(us);
	EvbusStatSamples *samples = tally->samples;

	if (samples == NULL)
		samples = tally->samples = MemoryContextAllocZero(TopTransactionContext, sizeof(EvbusStatSamples));
	samples->of[of].counts[bucket]++;
	samples->of[of].sum += Max(us, 0);
	widen(samples, of, bucket, bucket + 1);
}

/*
 * An event is handed out; now 0: nobody knows when.  Its latency is that of the first time: a retry, a
 * redrive or a replay says nothing of how long events take, nor does a clock that was set back.
 */
void
evbus_stat_delivered(EvbusDb *db, const EvbusSubscription *sub, const EvbusEvent *event, TimestampTz now)
{
	Tally	   *tally;

	if (!counts())
		return;
	tally = of_sub(db, sub);
	tally->n[EVBUS_STAT_EVENTS]++;
	tally->n[EVBUS_STAT_BYTES] += evbus_event_bytes(event);
	if (event->attempt <= 1 && !event->replayed && !event->redriven && sub->replay_of == 0 &&
		now >= evbus_clock_to_time(event->event_id))
		sample(tally, EVBUS_TIME_LATENCY, now - evbus_clock_to_time(event->event_id));
}

/* It was not, after all: it could not be decoded. */
void
evbus_stat_not_delivered(EvbusDb *db, const EvbusSubscription *sub, const EvbusEvent *event)
{
	Tally	   *tally;

	if (!counts())
		return;
	tally = of_sub(db, sub);
	tally->n[EVBUS_STAT_EVENTS]--;
	tally->n[EVBUS_STAT_BYTES] -= evbus_event_bytes(event);
}

/* So many deliveries are done. */
void
evbus_stat_done(EvbusDb *db, const EvbusSubscription *sub, int64 n)
{
	if (counts() && n > 0)
		of_sub(db, sub)->n[EVBUS_STAT_DONE] += n;
}

/* Of an event that failed or died: what its subscription, bus and type have of it. */
static void
bad(EvbusDb *db, const EvbusSubscription *sub, const EvbusEvent *event, EvbusStatCounter counter)
{
	Tally	   *tally;

	if (!counts())
		return;
	of_sub(db, sub)->n[counter]++;
	get(TALLY_BUS, db, sub->bus_id, sub->bus_slot, NULL, 0, &last_bus)->n[counter]++;
	if (event->type_len == 0)
		return;					/* it could not be read */
	tally = get(TALLY_TYPE, db, sub->bus_id, sub->bus_slot, event->type, event->type_len, &last_type);
	if (tally)
		tally->n[counter]++;
}

/* A delivery failed. */
void
evbus_stat_failed(EvbusDb *db, const EvbusSubscription *sub, const EvbusEvent *event)
{
	bad(db, sub, event, EVBUS_STAT_FAILED);
}

/* An event became a dead letter. */
void
evbus_stat_died(EvbusDb *db, const EvbusSubscription *sub, const EvbusEvent *event)
{
	bad(db, sub, event, EVBUS_STAT_DEAD);
}

/* A call of the handler took so long, in microseconds. */
void
evbus_stat_handled(EvbusDb *db, const EvbusSubscription *sub, int64 us)
{
	if (counts())
		sample(of_sub(db, sub), EVBUS_TIME_HANDLER, us);
}

/* A lease ran out, of a subscription at that place; at once.  Under EvbusSub.lock. */
void
evbus_stat_ran_out(EvbusDb *db, int slot, int32 subscription_id)
{
	if (counts())
		evbus_stat_add_one(EVBUS_STAT_SUB(db, slot), subscription_id, EVBUS_STAT_RAN_OUT, 1);
}

/* How far behind a subscription is now; at once, and not only at commit. */
void
evbus_stat_lag(EvbusDb *db, const EvbusSubscription *sub, int64 lag)
{
	if (counts() && sub->replay_of == 0)
		evbus_stat_add_one(EVBUS_STAT_SUB(db, sub->slot), sub->subscription_id, EVBUS_STAT_LAG, lag);
}

/* ---------------------------------------------------------------- callbacks */

static void
free_tally(Tally *tally)
{
	if (tally->type)
		pfree(tally->type);
	if (tally->samples)
		pfree(tally->samples);
	if (tally->another)
		n_types--;
}

/* The transaction is over, and its context about to go. */
static void
forget(void)
{
	while (n_tallies > 0)
		unlink_tally(--n_tallies);
	n_types = 0;
	last_bus = last_type = last_sub = -1;
	if (max_tallies > TALLIES_KEPT)
	{
		pfree(tallies);
		tallies = NULL;
		max_tallies = 0;
	}
}

/* Cannot fail: takes locks of stats.c only. */
static void
flush(void)
{
	for (int i = 0; i < n_tallies; i++)
	{
		const Tally *tally = &tallies[i];

		if (tally->db->dboid != MyDatabaseId || tally->db->bus_relid != tally->bus_relid || tally->db->gone)
			continue;			/* the extension was dropped */
		if (tally->kind == TALLY_BUS)
			evbus_stat_add(EVBUS_STAT_BUS(tally->db, tally->slot), tally->id, tally->n, NULL);
		else if (tally->kind == TALLY_TYPE)
			evbus_stat_add_type(tally->db, tally->id, tally->hash, tally->type, tally->type_len, tally->n);
		else
			evbus_stat_add(EVBUS_STAT_SUB(tally->db, tally->slot), tally->id, tally->n, tally->samples);
	}
}

static void
stat_xact(XactEvent event, void *arg)
{
	if (likely(n_tallies == 0))
		return;
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_PREPARE)
		flush();
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_PREPARE || event == XACT_EVENT_ABORT)
		forget();
}

static void
add_to(Tally *to, Tally *from)
{
	for (int i = 0; i < EVBUS_STAT_COUNTERS; i++)
		to->n[i] += from->n[i];
	to->n[EVBUS_STAT_TRANSACTIONS] = Min(to->n[EVBUS_STAT_TRANSACTIONS], 1);
	if (to->samples == NULL)
	{
		to->samples = from->samples;
		from->samples = NULL;
	}
	else if (from->samples)
		for (int of = 0; of < EVBUS_STAT_TIMES; of++)
		{
			to->samples->of[of].sum += from->samples->of[of].sum;
			for (int i = from->samples->of[of].begin; i < from->samples->of[of].end; i++)
				to->samples->of[of].counts[i] += from->samples->of[of].counts[i];
			if (from->samples->of[of].end > 0)
				widen(to->samples, of, from->samples->of[of].begin, from->samples->of[of].end);
		}
}

static void
stat_subxact(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	int			nesting = GetCurrentTransactionNestLevel();
	int			first = n_tallies;
	int			all = n_tallies;

	if (likely(n_tallies == 0) || (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB))
		return;
	while (first > 0 && tallies[first - 1].nesting >= nesting)
		unlink_tally(--first);
	last_bus = last_type = last_sub = -1;
	n_tallies = first;
	for (int i = first; i < all; i++)
	{
		Tally		tally = tallies[i];
		Tally	   *same = NULL;

		if (event == SUBXACT_EVENT_COMMIT_SUB)
		{
			tally.nesting = nesting - 1;
			same = find(tally.kind, tally.db, tally.id, tally.type, tally.type_len, tally.hash, tally.nesting);
			if (same == NULL)
			{
				tallies[n_tallies] = tally;
				link_tally(n_tallies++);
				continue;
			}
			add_to(same, &tally);
		}
		free_tally(&tally);
	}
}

/* Once per process, at load. */
void
evbus_stat_outbox_init(void)
{
	for (int i = 0; i < BUCKETS; i++)
		buckets[i] = -1;
	RegisterXactCallback(stat_xact, NULL);
	RegisterSubXactCallback(stat_subxact, NULL);
}
