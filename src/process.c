/*-------------------------------------------------------------------------
 * process.c
 *	  What each process of evbus is at: told by itself, in shared memory and in pg_stat_activity.
 *
 * Each has an entry at its own place among all processes of the server, so none has to be
 * found, locked or given back by others: it is there from the first line of a worker to its
 * end, and a crash of the server wipes all.  Neither payloads nor keys get here.
 *
 * Memory is what its memory contexts have taken from the system, looked at once a second at
 * most: to add it up goes through all of them.  That happens where memory is at its highest,
 * before the context of a turn or batch is reset, and after the call of a handler.
 *-------------------------------------------------------------------------
 */
#include "process.h"

#include "catalog/pg_authid.h"
#include "onewriter.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define MEMORY_USECS	USECS_PER_SEC	/* between two looks */

const char *const evbus_process_kinds[] = {"none", "launcher", "sequencer", "maintainer", "indexer", "scheduler", "handler"};

EvbusProcess *evbus_processes;

static EvbusProcess *mine = NULL;	/* NULL: this is no worker of evbus */
static int64 memory_at = 0;		/* by evbus_uptime(): not before it is memory looked at again */

static void
leave(int code, Datum arg)
{
	evbus_change_begin(&mine->changes);
	mine->kind = EVBUS_PROCESS_NONE;
	evbus_change_end(&mine->changes);
}

/* First of all in each worker; owner InvalidOid is the bootstrap superuser. */
void
evbus_process_begin(EvbusProcessKind kind, Oid dboid, Oid owner)
{
	TimestampTz now = GetCurrentTimestamp();

	Assert(EvbusMyProcno() < EVBUS_BACKENDS);
	mine = &evbus_processes[EvbusMyProcno()];
	on_shmem_exit(leave, (Datum) 0);	/* after all that it does before it goes */
	evbus_change_begin(&mine->changes);
	mine->kind = kind;
	mine->state = EVBUS_PROCESS_STARTING;
	mine->pid = MyProcPid;
	mine->dboid = dboid;
	mine->owner = OidIsValid(owner) ? owner : BOOTSTRAP_SUPERUSERID;
	mine->subscription_id = 0;
	mine->event_id = 0;
	mine->since = mine->started_at = now;
	mine->batches = 0;
	pg_atomic_write_u64(&mine->memory_high, 0);
	evbus_process_memory(memory_at);
	evbus_change_end(&mine->changes);
}

static void
enter(EvbusProcessState state, const char *what, int32 subscription_id)
{
	TimestampTz now = GetCurrentTimestamp();

	evbus_change_begin(&mine->changes);
	mine->state = state;
	mine->subscription_id = subscription_id;
	mine->event_id = 0;
	mine->since = now;
	evbus_change_end(&mine->changes);
	pgstat_report_activity(state == EVBUS_PROCESS_BUSY ? STATE_RUNNING : STATE_IDLE, what);
}

/* It begins to do that; subscription_id: it serves that, 0: none. */
void
evbus_process_busy(const char *what, int32 subscription_id)
{
	if (mine != NULL)
		enter(EVBUS_PROCESS_BUSY, what, subscription_id);
}

/* It waits for that. */
void
evbus_process_idle(const char *what)
{
	if (mine != NULL && mine->state != EVBUS_PROCESS_IDLE)
		enter(EVBUS_PROCESS_IDLE, what, 0);
}

/* A piece of work is done. */
void
evbus_process_done(void)
{
	if (mine == NULL)
		return;
	evbus_change_begin(&mine->changes);
	mine->batches++;
	evbus_change_end(&mine->changes);
}

/* This event is in the handler; 0: none, or several. */
void
evbus_process_event(int64 event_id)
{
	if (mine == NULL || mine->event_id == event_id)
		return;
	evbus_change_begin(&mine->changes);
	mine->event_id = event_id;
	evbus_change_end(&mine->changes);
}

/* Look how much memory it has, if it is time; now: by evbus_uptime(). */
void
evbus_process_memory(int64 now)
{
	uint64		bytes;

	if (likely(now < memory_at) || mine == NULL)
		return;
	memory_at = now + MEMORY_USECS;
	bytes = MemoryContextMemAllocated(TopMemoryContext, true);
	pg_atomic_write_u64(&mine->memory, bytes);
	evbus_high_raise(&mine->memory_high, bytes);
}

/* What the i-th process of the server says of itself; false: it is none of evbus. */
bool
evbus_process_copy(int i, EvbusProcess *copy)
{
	EvbusProcess *p = &evbus_processes[i];

	evbus_change_copy(copy, p, sizeof(*copy), &p->changes);
	return copy->kind != EVBUS_PROCESS_NONE;
}
