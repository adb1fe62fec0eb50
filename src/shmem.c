/*-------------------------------------------------------------------------
 * shmem.c
 *	  evbus's shared memory: asked for once, of fixed size, set up once.
 *
 * One segment, cut into arrays that the settings size.  Pages that no database
 * uses are never touched, so a spare area costs address space, not memory.
 *-------------------------------------------------------------------------
 */
#include "shmem.h"

#include "inflight.h"
#include "process.h"
#include "progress.h"
#include "stats.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"
#include "volatile.h"
#include "wait.h"

EvbusShared *evbus_shared = NULL;
EvbusDb    *evbus_dbs;
EvbusSlot  *evbus_slots;
EvbusBusState *evbus_bus_states;
EvbusSub   *evbus_subs;
EvbusLease *evbus_leases;
EvbusOrderEntry *evbus_order_entries;
EvbusOrderBucket *evbus_order_buckets;
EvbusNote  *evbus_notes;
char	   *evbus_rings;
EvbusVolatile *evbus_volatiles;
char	   *evbus_volatile_rings;
pg_atomic_uint64 *evbus_volatile_offsets;

static shmem_request_hook_type prev_request_hook = NULL;
static shmem_startup_hook_type prev_startup_hook = NULL;

/* Cut the next array off; with base NULL only counts. */
static void *
cut(char *base, Size *at, Size count, Size size)
{
	void	   *here = base ? base + *at : NULL;

	*at = add_size(*at, CACHELINEALIGN(mul_size(count, size)));
	return here;
}

/* Lay everything out; returns the size. */
static Size
lay_out(char *base)
{
	Size		at = 0;
	EvbusShared *shared = cut(base, &at, 1, sizeof(EvbusShared));
	EvbusDb    *dbs = cut(base, &at, evbus_max_databases, sizeof(EvbusDb));
	EvbusSlot  *slots = cut(base, &at, EVBUS_BACKENDS, sizeof(EvbusSlot));
	EvbusProcess *processes = cut(base, &at, EVBUS_BACKENDS, sizeof(EvbusProcess));
	EvbusTask  *tasks = cut(base, &at, EVBUS_BACKENDS, sizeof(EvbusTask));
	EvbusBusState *buses = cut(base, &at, mul_size(evbus_max_databases, evbus_max_buses), sizeof(EvbusBusState));
	EvbusSub   *subs = cut(base, &at, mul_size(evbus_max_databases, evbus_max_subscriptions), sizeof(EvbusSub));
	EvbusLease *leases = cut(base, &at, mul_size(evbus_max_databases, evbus_max_leases), sizeof(EvbusLease));
	EvbusOrderEntry *entries = cut(base, &at, mul_size(evbus_max_databases, evbus_max_leases), sizeof(EvbusOrderEntry));
	EvbusOrderBucket *buckets = cut(base, &at, mul_size(evbus_max_databases, evbus_max_leases), sizeof(EvbusOrderBucket));
	EvbusNote  *notes = cut(base, &at, mul_size(evbus_max_databases, EVBUS_NOTES_MAX), sizeof(EvbusNote));
	char	   *rings = cut(base, &at, evbus_max_databases, EVBUS_RING_BYTES);
	Size		n_volatile = mul_size(evbus_max_databases, evbus_max_volatile_buses);
	EvbusVolatile *volatiles = cut(base, &at, n_volatile, sizeof(EvbusVolatile));
	char	   *volatile_rings = cut(base, &at, n_volatile, EVBUS_VOLATILE_BYTES);
	pg_atomic_uint64 *offsets = cut(base, &at, n_volatile, mul_size(EVBUS_VOLATILE_POSITIONS, sizeof(pg_atomic_uint64)));
	EvbusStat  *stat_buses = cut(base, &at, mul_size(evbus_max_databases, evbus_max_buses), sizeof(EvbusStat));
	EvbusStat  *stat_subs = cut(base, &at, mul_size(evbus_max_databases, evbus_max_subscriptions), sizeof(EvbusStat));
	EvbusStatTimes *stat_times = cut(base, &at, mul_size(evbus_max_databases, evbus_max_subscriptions), sizeof(EvbusStatTimes));
	EvbusStatTable *stat_tables = cut(base, &at, evbus_max_databases, sizeof(EvbusStatTable));
	Size		n_types = mul_size(evbus_max_databases, evbus_max_tracked_types);
	EvbusStatType *stat_types = cut(base, &at, n_types, sizeof(EvbusStatType));
	int32	   *stat_type_buckets = cut(base, &at, n_types, sizeof(int32));

	if (base)
	{
		evbus_dbs = dbs;
		evbus_slots = slots;
		evbus_processes = processes;
		evbus_tasks = tasks;
		evbus_bus_states = buses;
		evbus_subs = subs;
		evbus_leases = leases;
		evbus_order_entries = entries;
		evbus_order_buckets = buckets;
		evbus_notes = notes;
		evbus_rings = rings;
		evbus_volatiles = volatiles;
		evbus_volatile_rings = volatile_rings;
		evbus_volatile_offsets = offsets;
		evbus_stat_buses = stat_buses;
		evbus_stat_subs = stat_subs;
		evbus_stat_times = stat_times;
		evbus_stat_tables = stat_tables;
		evbus_stat_types = stat_types;
		evbus_stat_type_buckets = stat_type_buckets;
		evbus_shared = shared;
	}
	return at;
}

static void
shmem_request(void)
{
	if (prev_request_hook)
		prev_request_hook();
	RequestAddinShmemSpace(add_size(lay_out(NULL), PG_CACHE_LINE_SIZE));
}

static void
init_all(void)
{
	static const char *const names[] = {"EvbusShared", "EvbusRing", "EvbusSub", "EvbusLease", "EvbusVolatile", "EvbusStat"};
	int			tranche[lengthof(names)];

	for (int i = 0; i < lengthof(names); i++)
	{
		tranche[i] = LWLockNewTrancheId();
		LWLockRegisterTranche(tranche[i], names[i]);
	}
	memset(evbus_shared, 0, sizeof(EvbusShared));
	LWLockInitialize(&evbus_shared->lock, tranche[0]);
	if (!pg_strong_random(&evbus_shared->incarnation, sizeof(evbus_shared->incarnation)))
		evbus_shared->incarnation = (uint64) GetCurrentTimestamp();

	for (int i = 0; i < evbus_max_databases; i++)
	{
		EvbusDb    *db = &evbus_dbs[i];

		memset(db, 0, sizeof(EvbusDb));
		LWLockInitialize(&db->ring_lock, tranche[1]);
		LWLockInitialize(&db->lease_lock, tranche[3]);
		LWLockInitialize(&db->noted_lock, tranche[0]);
		ConditionVariableInit(&db->drained_cv);
		ConditionVariableInit(&db->space_cv);
		ConditionVariableInit(&db->errand_cv);
		pg_atomic_init_u64(&db->clock, 1);
		pg_atomic_init_u64(&db->ring_reserved, 0);
		pg_atomic_init_u64(&db->ring_tail, 0);
		pg_atomic_init_u64(&db->ring_drained, 0);
		pg_atomic_init_u64(&db->ring_ticked, 0);
		pg_atomic_init_u64(&db->lost_low, EVBUS_NO_LSN_ID);
		pg_atomic_init_u64(&db->overflows, 0);
		pg_atomic_init_u64(&db->ticked_lsn, 0);
		pg_atomic_init_u64(&db->ledger_turn, 0);
		for (int j = 0; j < EVBUS_SCHEDULED_LEAVES; j++)
			pg_atomic_init_u64(&db->scheduled_due[j], 0);
		pg_atomic_init_u64(&db->scheduler_until, 0);
		pg_atomic_init_u64(&db->dedup_turn, 0);
	}
	memset(evbus_slots, 0, sizeof(EvbusSlot) * EVBUS_BACKENDS);
	memset(evbus_processes, 0, sizeof(EvbusProcess) * EVBUS_BACKENDS);
	memset(evbus_tasks, 0, sizeof(EvbusTask) * EVBUS_BACKENDS);
	memset(evbus_bus_states, 0, sizeof(EvbusBusState) * evbus_max_databases * evbus_max_buses);
	memset(evbus_subs, 0, sizeof(EvbusSub) * evbus_max_databases * evbus_max_subscriptions);
	for (int i = 0; i < evbus_max_databases * evbus_max_subscriptions; i++)
		LWLockInitialize(&evbus_subs[i].lock, tranche[2]);
	memset(evbus_volatiles, 0, sizeof(EvbusVolatile) * evbus_max_databases * evbus_max_volatile_buses);
	for (int i = 0; i < evbus_max_databases * evbus_max_volatile_buses; i++)
		LWLockInitialize(&evbus_volatiles[i].lock, tranche[4]);
	memset(evbus_leases, 0, sizeof(EvbusLease) * evbus_max_databases * evbus_max_leases);
	evbus_stats_init(tranche[5]);
}

static void
shmem_startup(void)
{
	bool		found;
	char	   *base;

	if (prev_startup_hook)
		prev_startup_hook();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	base = ShmemInitStruct("evbus", lay_out(NULL), &found);
	(void) lay_out((char *) CACHELINEALIGN(base));
	if (!found)
	{
		init_all();
		evbus_inflight_init();
	}
	LWLockRelease(AddinShmemInitLock);
	if (!found)
		evbus_wait_init();
}

/* From _PG_init, while shared_preload_libraries is processed. */
void
evbus_shmem_init(void)
{
	prev_request_hook = shmem_request_hook;
	shmem_request_hook = shmem_request;
	prev_startup_hook = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
}
