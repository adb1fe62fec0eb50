/*-------------------------------------------------------------------------
 * progress.c
 *	  How far long work is: told by the process that does it, in shared memory.
 *
 * As pg_stat_progress_* of the server has it, each process has one place, at which it alone writes:
 * so to tell costs a store, and nobody waits for anybody.  What begins is ended by whoever began it, in
 * PG_FINALLY where it goes on after an error; a process that ends says so itself, last of all, and with the
 * server all are forgotten.  What is in tables (redrives at a rate, replays) is not told here: the view
 * evbus.stat_progress has both.
 *-------------------------------------------------------------------------
 */
#include "progress.h"

#include "onewriter.h"
#include "storage/ipc.h"
#include "utils/timestamp.h"

const char *const evbus_work_names[] = {"none", "recovery", "redrive", "training", "index build"};

EvbusTask  *evbus_tasks;

static EvbusTask *mine = NULL;	/* NULL: this process was never at anything long */

static void
leave(int code, Datum arg)
{
	evbus_progress_end();
}

/* It is at this now; subject: a bus or leaf, or NULL.  done, total: may be EVBUS_UNKNOWN. */
void
evbus_progress_begin(EvbusWork work, const char *subject, EvbusPhase phase, int64 done, int64 total)
{
	TimestampTz now = GetCurrentTimestamp();

	if (mine == NULL)
	{
		Assert(EvbusMyProcno() < EVBUS_BACKENDS);
		on_shmem_exit(leave, (Datum) 0);
		mine = &evbus_tasks[EvbusMyProcno()];
	}
	evbus_change_begin(&mine->changes);
	mine->work = work;
	mine->phase = phase;
	mine->pid = MyProcPid;
	mine->dboid = MyDatabaseId;
	mine->started_at = now;
	mine->total = total;
	pg_atomic_write_u64(&mine->done, (uint64) done);
	strlcpy(mine->subject, subject ? subject : "", NAMEDATALEN);
	evbus_change_end(&mine->changes);
}

static bool
at_work(void)
{
	return mine != NULL && mine->work != EVBUS_WORK_NONE;
}

/* Another phase, which counts for itself.  This, and what follows, does nothing where nothing was begun. */
void
evbus_progress_phase(EvbusPhase phase, int64 done, int64 total)
{
	if (!at_work())
		return;
	evbus_change_begin(&mine->changes);
	mine->phase = phase;
	mine->total = total;
	pg_atomic_write_u64(&mine->done, (uint64) done);
	evbus_change_end(&mine->changes);
}

/* Another phase of the same piece: the counts stay. */
void
evbus_progress_step(EvbusPhase phase)
{
	if (at_work())
		evbus_progress_phase(phase, (int64) pg_atomic_read_u64(&mine->done), mine->total);
}

/* So many more are done. */
void
evbus_progress_add(int64 n)
{
	if (at_work())
		pg_atomic_write_u64(&mine->done, pg_atomic_read_u64(&mine->done) + (uint64) n);
}

void
evbus_progress_end(void)
{
	if (!at_work())
		return;
	evbus_change_begin(&mine->changes);
	mine->work = EVBUS_WORK_NONE;
	evbus_change_end(&mine->changes);
}

/* What the i-th process of the server is at; false: at nothing long. */
bool
evbus_progress_copy(int i, EvbusTask *copy)
{
	EvbusTask  *task = &evbus_tasks[i];

	evbus_change_copy(copy, task, sizeof(*copy), &task->changes);
	return copy->work != EVBUS_WORK_NONE;
}
