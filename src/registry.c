/*-------------------------------------------------------------------------
 * registry.c
 *	  Which buses, subscriptions and replays there are, and rates of roles.
 *
 * The tables are the registry; here is a cache of them, local to the process and
 * dropped by the relcache invalidations that every change of evbus.bus,
 * evbus.subscription, evbus.replay, evbus.publish_limit and evbus.privilege sends.  So it is transactional: own changes
 * are seen at once, those of others once they commit, none of a rollback.
 *
 * A replay is a subscription without a name: a copy of the one it is of, with
 * bounds, and a place in shared memory, of its own.
 *-------------------------------------------------------------------------
 */
#include "registry.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "args.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "internal.h"
#include "pattern.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

/* Column numbers of the three tables, as in evbus--1.0.sql. */
enum
{
	BUS_ID = 1, BUS_NAME, BUS_SLOT, BUS_CLASS, BUS_OWNER, BUS_DURABILITY, BUS_MAX_PAYLOAD,
	BUS_PAUSED, BUS_CREATED, BUS_FORMER, BUS_COMPRESSION, BUS_DEDUP_WINDOW,
	BUS_MAX_BACKLOG, BUS_OVERFLOW, BUS_OVERFLOW_TIMEOUT, BUS_RATE, BUS_BURST, BUS_RATE_POLICY, BUS_IDLE_TTL, BUS_AUTO, BUS_BACKLOG_BYTES,
	BUS_COLUMNS = BUS_BACKLOG_BYTES
};
enum
{
	SUB_ID = 1, SUB_NAME, SUB_SLOT, SUB_BUS, SUB_OWNER, SUB_EPOCH, SUB_START, SUB_TYPES,
	SUB_HANDLER_SCHEMA, SUB_HANDLER_NAME, SUB_HANDLER_BATCH, SUB_HANDLER_OWNER, SUB_BATCH_SIZE, SUB_CONCURRENCY,
	SUB_MAX_ATTEMPTS, SUB_BACKOFF_INITIAL, SUB_BACKOFF_MAX, SUB_LEASE, SUB_TIMEOUT, SUB_NOTIFY,
	SUB_PAUSED, SUB_PAUSED_REASON, SUB_CREATED, SUB_ORDERING, SUB_ON_FAILURE, SUB_MAX_DEAD,
	SUB_DEAD_FULL, SUB_RATE, SUB_BURST, SUB_FILTER, SUB_MAX_AGE,
	SUB_BREAKER_THRESHOLD, SUB_BREAKER_WINDOW, SUB_BREAKER_MIN, SUB_BREAKER_PROBE, SUB_BY_PRIORITY,
	SUB_COLUMNS = SUB_BY_PRIORITY
};
enum
{
	LIMIT_BUS = 1, LIMIT_ROLE, LIMIT_SLOT, LIMIT_RATE, LIMIT_BURST
};
enum
{
	REPLAY_ID = 1, REPLAY_SLOT, REPLAY_SUB, REPLAY_START, REPLAY_STOP, REPLAY_TYPES, REPLAY_RATE, REPLAY_ROLE, REPLAY_CREATED
};

/*
 * Local cache: everything there is, loaded at first use.  It is bounded by
 * evbus.max_buses and evbus.max_subscriptions.
 */
static MemoryContext cache_context = NULL;
static bool cache_valid = false;
static EvbusBus *cached_buses;
static int	n_cached_buses;
static EvbusSubscription *cached_subs;	/* replays behind the others */
static int	n_cached_subs;
static int	n_cached_replays;	/* of those */
static EvbusRoleLimit *cached_limits;
static int	n_cached_limits;
static Oid	cached_bus_relid = InvalidOid;
static Oid	cached_sub_relid = InvalidOid;
static Oid	cached_replay_relid = InvalidOid;
static Oid	cached_limit_relid = InvalidOid;
static Oid	cached_home_relid = InvalidOid;
static Oid	cached_privilege_relid = InvalidOid;	/* read by privilege.c, by our generation */
static EvbusHome cached_home;
static uint64 cache_generation = 0;
static uint64 n_invalidations = 0;
static uint64 cache_signature = 0;	/* of the rows that were read */
static EvbusDb *changed_db = NULL;	/* this transaction changes the tables */

static void
registry_invalidate(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == cached_bus_relid || relid == cached_sub_relid || relid == cached_replay_relid ||
		relid == cached_limit_relid || relid == cached_home_relid || relid == cached_privilege_relid)
	{
		cache_valid = false;
		n_invalidations++;
	}
}

/*
 * Who sleeps shall look at once what has changed.  Not before the invalidations are
 * sent, which is after XACT_EVENT_COMMIT: he would see the old state and sleep again.
 */
static void
wake_up(ResourceReleasePhase phase, bool commit, bool top_level, void *arg)
{
	EvbusDb    *db = changed_db;

	if (db == NULL || !top_level || phase != RESOURCE_RELEASE_AFTER_LOCKS)
		return;
	changed_db = NULL;
	if (!commit)
		return;
	ConditionVariableBroadcast(&db->drained_cv);
	if (db->maintainer_pid != 0)
		SetLatch(&ProcGlobal->allProcs[db->maintainer_procno].procLatch);
}

/* Once per process. */
static void
registry_init(void)
{
	static bool done = false;

	if (done)
		return;
	done = true;
	CacheRegisterRelcacheCallback(registry_invalidate, (Datum) 0);
	RegisterResourceReleaseCallback(wake_up, NULL);
}

/* ------------------------------------------------------ configuration cache */

/* The word of create_bus(compression => ...); false: it is none. */
bool
evbus_compression_parse(const char *word, EvbusCompression *compression)
{
	static const char *const words[] = {"zstd", "dictionary", "none"};

	for (int i = 0; i < lengthof(words); i++)
		if (strcmp(word, words[i]) == 0)
		{
			*compression = (EvbusCompression) i;
			return true;
		}
	return false;
}

/* Columns overflow and rate_policy of evbus.bus. */
const char *const evbus_overflows[3] = {"reject", "block", "drop_oldest"};
const char *const evbus_rate_policies[2] = {"reject", "wait"};

/* Which of these words a column has; else the first. */
static int
word_of(Datum value, const char *const *words, int n)
{
	char	   *word = TextDatumGetCString(value);

	for (int i = 1; i < n; i++)
		if (strcmp(word, words[i]) == 0)
			return i;
	return 0;
}

static void
load_bus(HeapTuple tuple, TupleDesc desc, EvbusBus *bus)
{
	Datum		values[BUS_COLUMNS];
	bool		nulls[BUS_COLUMNS];

	memset(bus, 0, sizeof(*bus));
	heap_deform_tuple(tuple, desc, values, nulls);
	bus->bus_id = DatumGetInt32(values[BUS_ID - 1]);
	bus->slot = DatumGetInt16(values[BUS_SLOT - 1]);
	bus->storage_class_id = DatumGetInt32(values[BUS_CLASS - 1]);
	bus->owner = DatumGetObjectId(values[BUS_OWNER - 1]);
	bus->max_payload_bytes = DatumGetInt32(values[BUS_MAX_PAYLOAD - 1]);
	bus->paused = DatumGetBool(values[BUS_PAUSED - 1]);
	if (!evbus_compression_parse(TextDatumGetCString(values[BUS_COMPRESSION - 1]), &bus->compression))
		bus->compression = EVBUS_COMPRESS_ZSTD;
	bus->dedup_window = evbus_interval_usecs(DatumGetIntervalP(values[BUS_DEDUP_WINDOW - 1]));
	bus->max_backlog = nulls[BUS_MAX_BACKLOG - 1] ? 0 : DatumGetInt64(values[BUS_MAX_BACKLOG - 1]);
	bus->overflow = (EvbusOverflow) word_of(values[BUS_OVERFLOW - 1], evbus_overflows, lengthof(evbus_overflows));
	bus->overflow_timeout = evbus_interval_usecs(DatumGetIntervalP(values[BUS_OVERFLOW_TIMEOUT - 1]));
	bus->publish_rate = nulls[BUS_RATE - 1] ? 0 : DatumGetInt32(values[BUS_RATE - 1]);
	bus->publish_burst = nulls[BUS_BURST - 1] ? 0 : DatumGetInt32(values[BUS_BURST - 1]);
	bus->rate_waits = word_of(values[BUS_RATE_POLICY - 1], evbus_rate_policies, lengthof(evbus_rate_policies)) == 1;
	bus->is_volatile = strcmp(TextDatumGetCString(values[BUS_DURABILITY - 1]), "volatile") == 0;
	bus->idle_ttl = nulls[BUS_IDLE_TTL - 1] ? 0 : evbus_interval_usecs(DatumGetIntervalP(values[BUS_IDLE_TTL - 1]));
	bus->auto_created = DatumGetBool(values[BUS_AUTO - 1]);
	bus->max_backlog_bytes = nulls[BUS_BACKLOG_BYTES - 1] ? 0 : DatumGetInt64(values[BUS_BACKLOG_BYTES - 1]);
	bus->bounded = bus->max_backlog > 0 || bus->max_backlog_bytes > 0 || bus->publish_rate > 0;
	text_to_cstring_buffer(DatumGetTextPP(values[BUS_NAME - 1]), bus->name, sizeof(bus->name));
}

static void
load_types(Datum array, EvbusSubscription *sub)
{
	Datum	   *elems;
	int			n;
	Size		size = 0;
	char	   *out;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false, TYPALIGN_INT, &elems, NULL, &n);
	for (int i = 0; i < n; i++)
		size += 1 + VARSIZE_ANY_EXHDR(DatumGetPointer(elems[i]));
	sub->n_types = n;
	out = sub->types = palloc(size);
	for (int i = 0; i < n; i++)
	{
		text	   *type = DatumGetTextPP(elems[i]);

		*out++ = (char) VARSIZE_ANY_EXHDR(type);
		memcpy(out, VARDATA_ANY(type), VARSIZE_ANY_EXHDR(type));
		out += VARSIZE_ANY_EXHDR(type);
	}
}

static void
load_sub(HeapTuple tuple, TupleDesc desc, EvbusSubscription *sub)
{
	Datum		values[SUB_COLUMNS];
	bool		nulls[SUB_COLUMNS];
	char	   *ordering;

	memset(sub, 0, sizeof(*sub));
	heap_deform_tuple(tuple, desc, values, nulls);
	sub->subscription_id = DatumGetInt32(values[SUB_ID - 1]);
	sub->slot = DatumGetInt16(values[SUB_SLOT - 1]);
	sub->bus_id = DatumGetInt32(values[SUB_BUS - 1]);
	sub->owner = DatumGetObjectId(values[SUB_OWNER - 1]);
	sub->epoch = DatumGetInt32(values[SUB_EPOCH - 1]);
	sub->start_position = DatumGetInt64(values[SUB_START - 1]);
	sub->has_handler = !nulls[SUB_HANDLER_NAME - 1];
	if (sub->has_handler)
	{
		text_to_cstring_buffer(DatumGetTextPP(values[SUB_HANDLER_SCHEMA - 1]), sub->handler_schema, NAMEDATALEN);
		text_to_cstring_buffer(DatumGetTextPP(values[SUB_HANDLER_NAME - 1]), sub->handler_name, NAMEDATALEN);
		sub->handler_batch = DatumGetBool(values[SUB_HANDLER_BATCH - 1]);
		sub->handler_owner = DatumGetObjectId(values[SUB_HANDLER_OWNER - 1]);
	}
	sub->batch_size = DatumGetInt32(values[SUB_BATCH_SIZE - 1]);
	sub->concurrency = DatumGetInt32(values[SUB_CONCURRENCY - 1]);
	sub->max_attempts = DatumGetInt32(values[SUB_MAX_ATTEMPTS - 1]);
	sub->backoff_initial = evbus_interval_usecs(DatumGetIntervalP(values[SUB_BACKOFF_INITIAL - 1]));
	sub->backoff_max = evbus_interval_usecs(DatumGetIntervalP(values[SUB_BACKOFF_MAX - 1]));
	sub->lease = evbus_interval_usecs(DatumGetIntervalP(values[SUB_LEASE - 1]));
	sub->timeout = evbus_interval_usecs(DatumGetIntervalP(values[SUB_TIMEOUT - 1]));
	sub->notify = DatumGetBool(values[SUB_NOTIFY - 1]);
	ordering = TextDatumGetCString(values[SUB_ORDERING - 1]);
	sub->ordering = strcmp(ordering, "key") == 0 ? EVBUS_ORDER_KEY : strcmp(ordering, "strict") == 0 ? EVBUS_ORDER_STRICT : EVBUS_ORDER_NONE;
	sub->block_key = sub->ordering != EVBUS_ORDER_NONE &&
		strcmp(TextDatumGetCString(values[SUB_ON_FAILURE - 1]), "block_key") == 0;
	sub->max_dead_letters = nulls[SUB_MAX_DEAD - 1] ? 0 : DatumGetInt32(values[SUB_MAX_DEAD - 1]);
	sub->drop_dead_letters = strcmp(TextDatumGetCString(values[SUB_DEAD_FULL - 1]), "drop_oldest") == 0;
	sub->live_slot = sub->slot;
	sub->delivery_rate = nulls[SUB_RATE - 1] ? 0 : DatumGetInt32(values[SUB_RATE - 1]);
	sub->delivery_burst = nulls[SUB_BURST - 1] ? sub->delivery_rate : DatumGetInt32(values[SUB_BURST - 1]);
	sub->filter = nulls[SUB_FILTER - 1] ? NULL : evbus_filter_make(values[SUB_FILTER - 1]);
	sub->max_age = nulls[SUB_MAX_AGE - 1] ? 0 : evbus_interval_usecs(DatumGetIntervalP(values[SUB_MAX_AGE - 1]));
	sub->breaker_threshold = nulls[SUB_BREAKER_THRESHOLD - 1] ? 0 : DatumGetFloat8(values[SUB_BREAKER_THRESHOLD - 1]);
	sub->breaker_window = evbus_interval_usecs(DatumGetIntervalP(values[SUB_BREAKER_WINDOW - 1]));
	sub->breaker_min = DatumGetInt32(values[SUB_BREAKER_MIN - 1]);
	sub->breaker_probe = evbus_interval_usecs(DatumGetIntervalP(values[SUB_BREAKER_PROBE - 1]));
	sub->by_priority = DatumGetBool(values[SUB_BY_PRIORITY - 1]);
	sub->paused = DatumGetBool(values[SUB_PAUSED - 1]) || cached_home != EVBUS_HOME_HERE;
	load_types(values[SUB_TYPES - 1], sub);
	sub->uncommitted = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));
	sub->changed = sub->uncommitted && (tuple->t_data->t_infomask & HEAP_UPDATED) != 0;
	text_to_cstring_buffer(DatumGetTextPP(values[SUB_NAME - 1]), sub->name, sizeof(sub->name));
	for (int i = 0; i < n_cached_buses; i++)
		if (cached_buses[i].bus_id == sub->bus_id)
		{
			sub->bus_slot = cached_buses[i].slot;
			sub->is_volatile = cached_buses[i].is_volatile;
			sub->paused = sub->paused || cached_buses[i].paused;
			strlcpy(sub->bus_name, cached_buses[i].name, sizeof(sub->bus_name));
		}
}

/* False: what it is a replay of is gone, as is the replay soon. */
static bool
load_replay(HeapTuple tuple, TupleDesc desc, EvbusSubscription *sub)
{
	Datum		values[REPLAY_CREATED];
	bool		nulls[REPLAY_CREATED];
	bool		found = false;

	heap_deform_tuple(tuple, desc, values, nulls);
	for (int i = 0; i < n_cached_subs - n_cached_replays && !found; i++)
		if (cached_subs[i].subscription_id == DatumGetInt32(values[REPLAY_SUB - 1]))
		{
			*sub = cached_subs[i];
			found = true;
		}
	if (!found)
		return false;
	sub->replay_of = sub->subscription_id;
	sub->subscription_id = sub->epoch = DatumGetInt32(values[REPLAY_ID - 1]);
	sub->slot = DatumGetInt16(values[REPLAY_SLOT - 1]);
	sub->start_position = DatumGetInt64(values[REPLAY_START - 1]);
	sub->stop_position = DatumGetInt64(values[REPLAY_STOP - 1]);
	if (!nulls[REPLAY_TYPES - 1])
		load_types(values[REPLAY_TYPES - 1], sub);
	sub->rate = nulls[REPLAY_RATE - 1] ? 0 : DatumGetInt32(values[REPLAY_RATE - 1]);
	sub->concurrency = 1;		/* the others are for what is new */
	sub->max_age = 0;			/* who asks for the past gets it */
	sub->takes_expired = true;
	sub->uncommitted = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));
	return true;
}

static void
load_limit(HeapTuple tuple, TupleDesc desc)
{
	Datum		values[LIMIT_BURST];
	bool		nulls[LIMIT_BURST];
	EvbusRoleLimit *limit = &cached_limits[n_cached_limits];

	if (n_cached_limits == EVBUS_ROLE_LIMITS_MAX)
		return;
	heap_deform_tuple(tuple, desc, values, nulls);
	limit->bus_id = DatumGetInt32(values[LIMIT_BUS - 1]);
	limit->role = DatumGetObjectId(values[LIMIT_ROLE - 1]);
	limit->slot = DatumGetInt16(values[LIMIT_SLOT - 1]);
	limit->rate = DatumGetInt32(values[LIMIT_RATE - 1]);
	limit->burst = nulls[LIMIT_BURST - 1] ? 0 : DatumGetInt32(values[LIMIT_BURST - 1]);
	for (int i = 0; i < n_cached_buses; i++)
		if (cached_buses[i].bus_id == limit->bus_id)
		{
			cached_buses[i].role_limits = cached_buses[i].bounded = true;
			n_cached_limits++;
			break;
		}
}

/* Scan one of the tables into the cache. */
static void
load_table(Oid relid)
{
	Relation	rel = table_open(relid, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;
	int			columns = relid == cached_bus_relid ? BUS_COLUMNS : relid == cached_sub_relid ? SUB_COLUMNS
		: relid == cached_limit_relid ? LIMIT_BURST : REPLAY_CREATED;

	/* A library of another version than the tables must not read past their rows. */
	if (RelationGetNumberOfAttributes(rel) != columns)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"evbus.%s\" does not fit the loaded library", RelationGetRelationName(rel)),
				 errhint("Run ALTER EXTENSION evbus UPDATE, or install the library that fits the extension.")));
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		if (relid == cached_bus_relid)
		{
			if (n_cached_buses < evbus_max_buses)
				load_bus(tuple, RelationGetDescr(rel), &cached_buses[n_cached_buses++]);
		}
		else if (relid == cached_limit_relid)
			load_limit(tuple, RelationGetDescr(rel));
		else if (n_cached_subs == evbus_max_subscriptions)
			break;
		else if (relid == cached_sub_relid)
			load_sub(tuple, RelationGetDescr(rel), &cached_subs[n_cached_subs++]);
		else if (load_replay(tuple, RelationGetDescr(rel), &cached_subs[n_cached_subs]))
		{
			n_cached_subs++;
			n_cached_replays++;
		}
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

/* Differs whenever a row came, went or changed, by whatever means. */
static uint64
signature(void)
{
	Oid			relids[] = {cached_bus_relid, cached_sub_relid, cached_replay_relid, cached_limit_relid, cached_home_relid, cached_privilege_relid};
	uint64		sum = 0;

	for (int i = 0; i < lengthof(relids); i++)
	{
		Relation	rel = table_open(relids[i], AccessShareLock);
		SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
		HeapTuple	tuple;

		while (HeapTupleIsValid(tuple = systable_getnext(scan)))
			sum = hash_combine64(sum, ((uint64) HeapTupleHeaderGetRawXmin(tuple->t_data) << 32) ^
								 ((uint64) ItemPointerGetBlockNumber(&tuple->t_self) << 16) ^
								 ItemPointerGetOffsetNumber(&tuple->t_self));
		systable_endscan(scan);
		table_close(rel, AccessShareLock);
	}
	return sum;
}

static void
cache_load(void)
{
	MemoryContext old;

	(void) evbus_db();			/* refuses a missing extension */
	registry_init();
	AcceptInvalidationMessages();
	while (!cache_valid)
	{
		uint64		before = n_invalidations;

		cached_bus_relid = evbus_relid("bus");
		cached_sub_relid = evbus_relid("subscription");
		cached_replay_relid = evbus_relid("replay");
		cached_limit_relid = evbus_relid("publish_limit");
		cached_home_relid = evbus_relid("home");
		cached_privilege_relid = evbus_relid("privilege");
		if (cache_context == NULL)
			cache_context = AllocSetContextCreate(TopMemoryContext, "evbus registry", ALLOCSET_DEFAULT_SIZES);
		MemoryContextReset(cache_context);
		n_cached_buses = n_cached_subs = n_cached_replays = n_cached_limits = 0;
		old = MemoryContextSwitchTo(cache_context);
		cached_buses = palloc(sizeof(EvbusBus) * evbus_max_buses);
		cached_subs = palloc(sizeof(EvbusSubscription) * evbus_max_subscriptions);
		cached_limits = palloc(sizeof(EvbusRoleLimit) * EVBUS_ROLE_LIMITS_MAX);
		cached_home = evbus_home_read();
		load_table(cached_bus_relid);
		load_table(cached_sub_relid);
		load_table(cached_replay_relid);
		load_table(cached_limit_relid);
		MemoryContextSwitchTo(old);
		cache_signature = signature();
		cache_generation++;
		cache_valid = before == n_invalidations;	/* else load again */
	}
}

/* Grows whenever what the functions below answer may have changed. */
uint64
evbus_registry_generation(void)
{
	cache_load();
	return cache_generation;
}

/* Is this database a copy?  As told by the tables, like all the rest. */
EvbusHome
evbus_home(void)
{
	cache_load();
	return cached_home;
}

/* To be called by whoever changes one of the tables: tells every process at commit. */
void
evbus_registry_changed(void)
{
	changed_db = evbus_db();
	CommandCounterIncrement();
	CacheInvalidateRelcacheByRelid(evbus_relid("bus"));
	CacheInvalidateRelcacheByRelid(evbus_relid("subscription"));
	CommandCounterIncrement();
}

/* Read again at the next question: what we know may be out of date. */
void
evbus_registry_forget(void)
{
	cache_valid = false;
}

/*
 * For the maintainer, now and then: has somebody changed the tables without telling,
 * such as a COPY of pg_restore?  Then it tells for him, at commit.
 */
void
evbus_registry_verify(void)
{
	cache_load();
	if (signature() != cache_signature)
		evbus_registry_changed();
}

bool
evbus_bus_find(const char *name, EvbusBus *bus)
{
	cache_load();
	for (int i = 0; i < n_cached_buses; i++)
		if (strcmp(cached_buses[i].name, name) == 0)
		{
			*bus = cached_buses[i];
			return true;
		}
	return false;
}

bool
evbus_bus_by_id(int32 id, EvbusBus *bus)
{
	cache_load();
	for (int i = 0; i < n_cached_buses; i++)
		if (cached_buses[i].bus_id == id)
		{
			*bus = cached_buses[i];
			return true;
		}
	return false;
}

/* The rate of a role on a bus; false: it has none of its own. */
bool
evbus_role_limit(int32 bus_id, Oid role, EvbusRoleLimit *limit)
{
	cache_load();
	for (int i = 0; i < n_cached_limits; i++)
		if (cached_limits[i].bus_id == bus_id && cached_limits[i].role == role)
		{
			*limit = cached_limits[i];
			return true;
		}
	return false;
}

/* How many of them there are. */
int
evbus_role_limits(void)
{
	cache_load();
	return n_cached_limits;
}

/* All buses, as a copy in the caller's context. */
EvbusBus *
evbus_buses(int *count)
{
	EvbusBus   *all;

	cache_load();
	*count = n_cached_buses;
	all = palloc(sizeof(EvbusBus) * Max(n_cached_buses, 1));
	memcpy(all, cached_buses, sizeof(EvbusBus) * n_cached_buses);
	return all;
}

/* Errors VB001 if there is none of that name. */
void
evbus_bus_get(const char *name, EvbusBus *bus)
{
	if (!evbus_bus_find(name, bus))
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_NO_BUS),
				 errmsg("bus \"%s\" does not exist", name),
				 errhint("See the view evbus.bus_list, or make it with evbus.create_bus().")));
}

static EvbusSubscription *
sub_copy(const EvbusSubscription *from)
{
	EvbusSubscription *sub = palloc(sizeof(EvbusSubscription));
	Size		size = 0;

	*sub = *from;
	sub->generation = cache_generation;
	for (int i = 0; i < sub->n_types; i++)
		size += 1 + (unsigned char) from->types[size];
	sub->types = palloc(size);
	memcpy(sub->types, from->types, size);
	if (unlikely(from->filter != NULL))
		sub->filter = evbus_filter_copy(from->filter);
	return sub;
}

/* A copy in the caller's context; errors VB004 if there is none of that name. */
EvbusSubscription *
evbus_subscription_get(const char *name, bool missing_ok)
{
	cache_load();
	for (int i = 0; i < n_cached_subs - n_cached_replays; i++)
		if (strcmp(cached_subs[i].name, name) == 0)
			return sub_copy(&cached_subs[i]);
	if (!missing_ok)
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_NO_SUBSCRIPTION),
				 errmsg("subscription \"%s\" does not exist", name),
				 errhint("See the view evbus.subscription_list, or make it with evbus.subscribe().")));
	return NULL;
}

/* A subscription or a replay; NULL: there is none. */
EvbusSubscription *
evbus_subscription_by_id(int32 id)
{
	cache_load();
	for (int i = 0; i < n_cached_subs; i++)
		if (cached_subs[i].subscription_id == id)
			return sub_copy(&cached_subs[i]);
	return NULL;
}

/* Is it, of which this is a copy, neither gone nor paused meanwhile? */
bool
evbus_subscription_runs(const EvbusSubscription *sub)
{
	cache_load();
	if (cache_generation == sub->generation)
		return !sub->paused;
	for (int i = 0; i < n_cached_subs; i++)
		if (cached_subs[i].subscription_id == sub->subscription_id)
			return !cached_subs[i].paused;
	return false;
}

/* Those that are being replayed of a subscription, as a copy in the caller's context. */
EvbusSubscription *
evbus_subscription_replays(const EvbusSubscription *sub, int *count)
{
	EvbusSubscription *some = NULL;

	cache_load();
	*count = 0;
	for (int i = n_cached_subs - n_cached_replays; i < n_cached_subs; i++)
		if (cached_subs[i].replay_of == sub->subscription_id)
		{
			if (some == NULL)
				some = palloc(sizeof(EvbusSubscription) * n_cached_replays);
			some[(*count)++] = *sub_copy(&cached_subs[i]);
		}
	return some;
}

/* All of them, and all replays, as a copy in the caller's context. */
EvbusSubscription *
evbus_subscriptions(int *count)
{
	EvbusSubscription *all;

	cache_load();
	*count = n_cached_subs;
	all = palloc(sizeof(EvbusSubscription) * Max(n_cached_subs, 1));
	for (int i = 0; i < n_cached_subs; i++)
		all[i] = *sub_copy(&cached_subs[i]);
	return all;
}

bool
evbus_subscription_wants(const EvbusSubscription *sub, const char *type, int len)
{
	const char *at = sub->types;

	for (int i = 0; i < sub->n_types; i++)
	{
		int			plen = (unsigned char) *at++;

		if (evbus_pattern_match(at, plen, type, len))
			return true;
		at += plen;
	}
	return false;
}

/*
 * Lowest free slot of a registry table, if can be one that shared memory does not
 * remember another one at; -1: all of them are taken.
 */
int
evbus_registry_free_slot(const char *table, int max)
{
	static const Oid types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(max)};
	bool		subs = strcmp(table, "subscription") == 0;
	char	   *sql = psprintf("SELECT s FROM pg_catalog.generate_series(0, $1 - 1) s"
							   " WHERE NOT EXISTS (SELECT 1 FROM evbus.%s t WHERE t.slot = s)%s ORDER BY s", table,
							   subs ? " AND NOT EXISTS (SELECT 1 FROM evbus.replay t WHERE t.slot = s)" : "");
	EvbusDb    *db = evbus_db();
	EvbusInternal state;
	uint64		n;
	int			slot = -1;

	evbus_internal_begin(&state);
	n = evbus_sql(NULL, sql, 1, types, values, NULL, 0);
	evbus_high_raise(&db->high[subs ? EVBUS_AREA_SUBSCRIPTIONS : EVBUS_AREA_BUSES], Min(max - n + 1, max));
	for (uint64 i = 0; i < n; i++)
	{
		int			s = DatumGetInt32(evbus_column(i, 1, NULL));
		bool		clean = subs ? EVBUS_SUB(db, s)->subscription_id == 0 : pg_atomic_read_u32(&EVBUS_BUS(db, s)->bus_id) == 0;

		if (slot < 0 || clean)
			slot = s;
		if (clean)
			break;
	}
	evbus_internal_end(&state);
	return slot;
}

/*
 * Is there a row of this id, its first column, committed or just being made?  Unlike
 * the cache this sees the uncommitted rows of others.
 */
static bool
row_exists(const char *table, const char *index, int32 id)
{
	Relation	rel = table_open(evbus_relid(table), AccessShareLock);
	SnapshotData dirty;
	SysScanDesc scan;
	ScanKeyData key;
	bool		found;

	InitDirtySnapshot(dirty);
	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(id));
	scan = systable_beginscan(rel, evbus_relid(index), true, &dirty, 1, &key);
	found = HeapTupleIsValid(systable_getnext(scan));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

/* The same of a subscription or a replay. */
bool
evbus_subscription_exists(int32 id)
{
	return row_exists("subscription", "subscription_pkey", id) || row_exists("replay", "replay_pkey", id);
}

/*
 * Is there a bus of this id, committed or just being made?  True as well for one that this
 * very transaction has dropped, since it may yet be rolled back.
 */
bool
evbus_bus_exists(int32 id)
{
	Relation	rel;
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	tuple;
	bool		found = row_exists("bus", "bus_pkey", id);

	if (found)
		return true;
	rel = table_open(evbus_relid("bus"), AccessShareLock);
	ScanKeyInit(&key, BUS_ID, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(id));
	scan = systable_beginscan(rel, evbus_relid("bus_pkey"), true, SnapshotAny, 1, &key);
	while (!found && HeapTupleIsValid(tuple = systable_getnext(scan)))
		found = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetUpdateXid(tuple->t_data));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}
