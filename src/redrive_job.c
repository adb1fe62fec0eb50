/*-------------------------------------------------------------------------
 * redrive_job.c
 *	  Redrives at a pace: rows that the maintainer works off.
 *
 * A job goes once through the dead letters there were when it was registered, in
 * order of their ids: so what fails again, under a new id, is not tried again by it.
 * How far it came is written by the transaction that redrives: a crash undoes
 * both or neither.  Each transaction is short, waits for no row lock, and takes no more
 * than is due since the last one, a second's worth at most: a server that was
 * down catches up on nothing.
 *
 * Rights are those of the role that registered it, asked anew each time.  That there
 * is a job, the maintainer learns as every process learns of a changed table: by
 * relcache invalidation, which also a COMMIT PREPARED sends; and looks now and then.
 *-------------------------------------------------------------------------
 */
#include "redrive_job.h"

#include "access/xact.h"
#include "args.h"
#include "audit.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "commands/dbcommands.h"
#include "internal.h"
#include "log_due.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "point.h"
#include "privilege.h"
#include "redrive.h"
#include "registry.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#define BATCH_MAX		500		/* redrives in one transaction */
#define WINDOW			10000	/* dead letters looked at in one statement */
#define TURN_MS			50		/* spent on one job in a turn */
#define LOOK_MS			200		/* between two turns of a slow job */
#define BEHIND_MS		20		/* and of one that is behind its rate */
#define IDLE_MS			10000	/* without a job that we know of */
#define BLOCKED_MS		1000	/* after somebody held what it wanted */

PG_FUNCTION_INFO_V1(evbus_cancel_redrive);

/* A running job, as its row says. */
typedef struct Job
{
	int64		id;
	Oid			role;
	int			rate;
	int64		after_id;		/* looked at up to here */
	int64		upto_id;
	int64		left;			/* of max_events */
	TimestampTz paced_at;		/* what was due until then is done; 0: never begun */
	char	   *subscription;	/* NULL: of any */
	char	   *bus;
	EvbusDeadFilter filter;
} Job;

/* Register a redrive of what matches now; returns the job's id. */
int64
evbus_redrive_job_add(EvbusDb *db, EvbusDeadFilter *filter, int rate)
{
	EvbusDeadFilter f = *filter;
	int64		total = evbus_dead_filter_count(filter);
	EvbusInternal state;
	int64		id;

	evbus_dead_filter_set(&f, EVBUS_DEAD_UPTO_ID, Int64GetDatum((int64) pg_atomic_read_u64(&db->clock)));
	evbus_dead_filter_set(&f, EVBUS_DEAD_BY, CStringGetTextDatum(GetUserNameFromId(GetSessionUserId(), false)));
	evbus_internal_begin(&state);
	evbus_sql(NULL, psprintf("INSERT INTO evbus.redrive_job (redrive_job_id, subscription, subscription_id, bus, bus_id, types, sqlstate, dead_after, dead_before,"
							 " max_events, rate, role, login, total, upto_id) VALUES (nextval('evbus.redrive_job_id_seq'), $2, nullif(%d, 0), $3, nullif(%d, 0), $4,"
							 " $5, $6, $7, $8, %d, %u::oid::regrole, $11, " INT64_FORMAT ", $10) RETURNING redrive_job_id",
							 filter->subscription_id, filter->bus_id, rate, state.user, total),
			  EVBUS_DEAD_PARAMS, evbus_dead_types, f.values, f.nulls, 0);
	id = DatumGetInt64(evbus_column(0, 1, NULL));
	evbus_internal_end(&state);
	CacheInvalidateRelcacheByRelid(evbus_relid("redrive_job"));
	return id;
}

/*
 * evbus.cancel_redrive(job bigint) returns boolean
 *
 * Ends a job; what it has redriven stays so.  False: it had ended before.
 * Errors: 22004, 25006, 42704 no such job, 42501 not of the role that registered it.
 */
Datum
evbus_cancel_redrive(PG_FUNCTION_ARGS)
{
	static const Oid types[] = {INT8OID};
	EvbusInternal state;
	Datum		values[1];
	bool		cancelled;

	(void) evbus_db();
	evbus_arg_present(fcinfo, 0, "job");
	PreventCommandIfReadOnly("evbus.cancel_redrive()");
	values[0] = PG_GETARG_DATUM(0);
	evbus_internal_begin(&state);
	if (evbus_sql(NULL, "SELECT role::oid FROM evbus.redrive_job WHERE redrive_job_id = $1", 1, types, values, NULL, 1) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("redrive job " INT64_FORMAT " does not exist", PG_GETARG_INT64(0)),
				 errhint("See the view evbus.redrive_list.")));
	if (!has_privs_of_role(state.user, DatumGetObjectId(evbus_column(0, 1, NULL))))
	{
		evbus_audit_refused(state.user, "owner", "redrive job", psprintf(INT64_FORMAT, PG_GETARG_INT64(0)));
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("redrive job " INT64_FORMAT " belongs to another role", PG_GETARG_INT64(0))));
	}
	cancelled = evbus_sql(NULL, "UPDATE evbus.redrive_job SET state = 'cancelled', finished_at = clock_timestamp()"
						  " WHERE redrive_job_id = $1 AND state = 'running'", 1, types, values, NULL, 0) > 0;
	evbus_internal_end(&state);
	if (cancelled)
		evbus_audit(fcinfo, NULL, NULL, NULL, NULL);
	PG_RETURN_BOOL(cancelled);
}

/* ------------------------------------------------------------ the maintainer's part */

static bool look = true;		/* there may be jobs we do not know of */
static int64 next_turn = 0;
static EvbusDb *db;
static int64 job_id;			/* the one at hand */
static int	job_wait;			/* ms until it wants another turn; -1: it has ended */

static void
jobs_changed(Datum arg, Oid relid)
{
	look = look || relid == InvalidOid || relid == (Oid) arg;
}

static void
job_end(int64 id, const char *end_state, const char *error)
{
	static const Oid types[] = {INT8OID, TEXTOID, TEXTOID};
	Datum		values[] = {Int64GetDatum(id), CStringGetTextDatum(end_state), error ? CStringGetTextDatum(error) : (Datum) 0};
	EvbusInternal state;

	evbus_internal_begin(&state);
	evbus_sql(NULL, "UPDATE evbus.redrive_job SET state = $2, error = $3, finished_at = clock_timestamp() WHERE redrive_job_id = $1 AND state = 'running'",
			  3, types, values, error ? "   " : "  n", 0);
	evbus_internal_end(&state);
	if (error)
		ereport(LOG,
				(errmsg("evbus redrive job " INT64_FORMAT " in database \"%s\" has failed: %s", id, get_database_name(MyDatabaseId), error),
				 errhint("See evbus.redrive_list.")));
	job_wait = -1;
}

static char *
text_of(int column)
{
	bool		isnull;
	Datum		value = evbus_column(0, column, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

/* Read and lock the row; false: it has ended, or somebody is at it. */
static bool
job_load(Job *job)
{
	static const Oid types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(job_id)};
	MemoryContext context = CurrentMemoryContext;
	EvbusInternal state;
	bool		found;

	memset(job, 0, sizeof(*job));
	evbus_dead_filter_init(&job->filter);
	evbus_internal_begin(&state);
	found = evbus_sql(NULL, "SELECT role::oid, rate, after_id, upto_id, coalesce(max_events - done, 9223372036854775807), paced_at, subscription, coalesce(subscription_id, 0),"
					  " bus, coalesce(bus_id, 0), types, sqlstate, dead_after, dead_before"
					  " FROM evbus.redrive_job WHERE redrive_job_id = $1 AND state = 'running' FOR UPDATE SKIP LOCKED", 1, types, values, NULL, 1) > 0;
	if (found)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		bool		isnull;
		static const struct
		{
			int			column;
			EvbusDeadParam param;
			bool		by_value;
		}			filters[] = {{11, EVBUS_DEAD_TYPES, false}, {12, EVBUS_DEAD_SQLSTATE, false}, {13, EVBUS_DEAD_AFTER, true}, {14, EVBUS_DEAD_BEFORE, true}};

		job->id = job_id;
		job->role = DatumGetObjectId(evbus_column(0, 1, NULL));
		job->rate = DatumGetInt32(evbus_column(0, 2, NULL));
		job->after_id = DatumGetInt64(evbus_column(0, 3, NULL));
		job->upto_id = DatumGetInt64(evbus_column(0, 4, NULL));
		job->left = DatumGetInt64(evbus_column(0, 5, NULL));
		job->paced_at = DatumGetTimestampTz(evbus_column(0, 6, &isnull));
		if (isnull)
			job->paced_at = 0;
		job->subscription = text_of(7);
		job->filter.subscription_id = DatumGetInt32(evbus_column(0, 8, NULL));
		job->bus = text_of(9);
		job->filter.bus_id = DatumGetInt32(evbus_column(0, 10, NULL));
		for (int i = 0; i < (int) lengthof(filters); i++)
		{
			Datum		value = evbus_column(0, filters[i].column, &isnull);

			if (!isnull)
				evbus_dead_filter_set(&job->filter, filters[i].param,
									  filters[i].by_value ? value : PointerGetDatum(PG_DETOAST_DATUM_COPY(value)));
		}
		MemoryContextSwitchTo(old);
	}
	evbus_internal_end(&state);
	return found;
}

/* Why the job may not go on, or NULL. */
static const char *
job_fault(const Job *job)
{
	EvbusSubscription *sub;
	EvbusBus	bus;

	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(job->role)))
		return "the role that registered it no longer exists";
	if (job->bus && !evbus_bus_by_id(job->filter.bus_id, &bus))
		return psprintf("bus \"%s\" no longer exists", job->bus);
	if (job->subscription == NULL)
		return NULL;
	sub = evbus_subscription_by_id(job->filter.subscription_id);
	if (sub == NULL)
		return psprintf("subscription \"%s\" no longer exists", job->subscription);
	if (!evbus_subscription_allows(sub, job->role, EVBUS_OPERATE))
		return psprintf("role \"%s\" may no longer operate subscription \"%s\"", GetUserNameFromId(job->role, false), job->subscription);
	return NULL;
}

/* One number of a statement by filter; 0: NULL. */
static int64
look_up(const char *sql, EvbusDeadFilter *filter)
{
	EvbusInternal state;
	bool		isnull;
	int64		value;

	evbus_internal_begin(&state);
	evbus_sql(NULL, sql, EVBUS_DEAD_PARAMS, evbus_dead_types, filter->values, filter->nulls, 1);
	value = DatumGetInt64(evbus_column(0, 1, &isnull));
	evbus_internal_end(&state);
	return isnull ? 0 : value;
}

/*
 * Redrive up to n of the next window; returns how many, and moves after_id.  What
 * somebody else has locked keeps after_id below it (blocked): it is for the next turn.
 */
static int64
job_window(Job *job, int64 n, bool *end, bool *blocked)
{
	EvbusDeadFilter *f = &job->filter;
	int64		bound;
	int64		last;
	int64		left;
	int64		taken;

	evbus_dead_filter_set(f, EVBUS_DEAD_FROM_ID, Int64GetDatum(job->after_id));
	evbus_dead_filter_set(f, EVBUS_DEAD_UPTO_ID, Int64GetDatum(job->upto_id));
	bound = look_up(psprintf("SELECT max(dead_letter_id) FROM (SELECT d.dead_letter_id FROM evbus.dead_letter_log d"
							 " WHERE d.dead_letter_id > $9 AND d.dead_letter_id <= $10 ORDER BY d.dead_letter_id LIMIT %d) x", WINDOW), f);
	*end = bound == 0;
	if (*end)
		return 0;
	evbus_dead_filter_set(f, EVBUS_DEAD_UPTO_ID, Int64GetDatum(bound));
	evbus_dead_filter_set(f, EVBUS_DEAD_LIMIT, Int64GetDatum(n));
	taken = evbus_redrive_take(db, f, &last);
	if (taken == n)
	{
		bound = last;
		evbus_dead_filter_set(f, EVBUS_DEAD_UPTO_ID, Int64GetDatum(bound));
	}
	left = look_up(psprintf("SELECT min(d.dead_letter_id) FROM evbus.dead_letter_log d WHERE %s", evbus_dead_filter_where(f)), f);
	*blocked = left != 0 && taken < n;
	job->after_id = left != 0 ? left - 1 : bound;
	return taken;
}

/* One transaction of one job. */
static void
job_turn(void)
{
	static const Oid types[] = {INT8OID, INT8OID, INT8OID, TIMESTAMPTZOID};
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz stop = TimestampTzPlusMilliseconds(now, TURN_MS);
	Job			job;
	EvbusInternal state;
	const char *fault;
	int64		due;
	int64		want;
	int64		n = 0;
	bool		end = false;
	bool		blocked = false;
	Datum		values[4];

	job_wait = BLOCKED_MS;
	if (!job_load(&job))
		return;
	fault = job_fault(&job);
	if (fault)
	{
		job_end(job.id, "failed", fault);
		return;
	}
	/* Also where the wall clock was put back. */
	if (job.paced_at == 0 || job.paced_at > now)
		job.paced_at = now;
	else if (now - job.paced_at > USECS_PER_SEC)
		job.paced_at = now - USECS_PER_SEC;
	due = (now - job.paced_at) * job.rate / USECS_PER_SEC;
	want = Min(Min(due, BATCH_MAX), job.left);
	evbus_dead_filter_scope(&job.filter, job.role, false);
	evbus_dead_filter_set(&job.filter, EVBUS_DEAD_BY, CStringGetTextDatum(GetUserNameFromId(job.role, false)));
	while (n < want && !end && !blocked && GetCurrentTimestamp() < stop)
		n += job_window(&job, want - n, &end, &blocked);
	EVBUS_POINT("redrive.job");

	values[0] = Int64GetDatum(job.id);
	values[1] = Int64GetDatum(n);
	values[2] = Int64GetDatum(job.after_id);
	/* What was not due yet, less than one, counts towards the next turn. */
	values[3] = TimestampTzGetDatum(n < due ? Max(job.paced_at, blocked || end ? now : job.paced_at + n * USECS_PER_SEC / job.rate)
									: job.paced_at + n * USECS_PER_SEC / job.rate);
	evbus_internal_begin(&state);
	evbus_sql(NULL, "UPDATE evbus.redrive_job SET done = done + $2, after_id = $3, paced_at = $4, started_at = coalesce(started_at, clock_timestamp())"
			  " WHERE redrive_job_id = $1", 4, types, values, NULL, 0);
	evbus_internal_end(&state);
	if (end || (job.left == n && n > 0))
		job_end(job.id, "done", NULL);
	else
		job_wait = blocked ? BLOCKED_MS : n < due ? BEHIND_MS : Min(Max(1000 / job.rate, BEHIND_MS), LOOK_MS);
}

/* Run one in a transaction of its own; what fails for good, ends it with the reason. */
static void
job_attempt(void)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		job_turn();
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		ErrorData  *edata;
		int			class;

		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		class = ERRCODE_TO_CATEGORY(edata->sqlerrcode);
		if (evbus_log_error_due(edata))
			EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		RESUME_INTERRUPTS();
		job_wait = BLOCKED_MS;
		/* Locks, conflicts, a full disk, a shutdown: those pass. */
		if (class != ERRCODE_TRANSACTION_ROLLBACK && class != ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE &&
			class != ERRCODE_INSUFFICIENT_RESOURCES && class != ERRCODE_OPERATOR_INTERVENTION)
		{
			StartTransactionCommand();
			PushActiveSnapshot(GetTransactionSnapshot());
			job_end(job_id, "failed", edata->message);
			PopActiveSnapshot();
			CommitTransactionCommand();
		}
		MemoryContextSwitchTo(context);
		FreeErrorData(edata);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

/* The ids of the running jobs, the oldest first. */
static int64 *
running_jobs(int *n)
{
	MemoryContext context = CurrentMemoryContext;
	EvbusInternal state;
	int64	   *ids;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	evbus_internal_begin(&state);
	*n = (int) evbus_sql(NULL, "SELECT redrive_job_id FROM evbus.redrive_job WHERE state = 'running' ORDER BY 1", 0, NULL, NULL, NULL, 0);
	ids = MemoryContextAlloc(context, sizeof(int64) * Max(*n, 1));
	for (int i = 0; i < *n; i++)
		ids[i] = DatumGetInt64(evbus_column(i, 1, NULL));
	evbus_internal_end(&state);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return ids;
}

/* Do what is due; outside of a transaction.  Returns in how many ms to come again, at most. */
int
evbus_redrive_turn(EvbusDb *of)
{
	static bool registered = false;
	int64		now = evbus_uptime();
	int			wait = IDLE_MS;
	int64	   *ids;
	int			n;

	if (registered && !look && now < next_turn)
		return (int) Min((next_turn - now + 999) / 1000, PG_INT32_MAX);
	db = of;
	if (!registered)
	{
		StartTransactionCommand();
		CacheRegisterRelcacheCallback(jobs_changed, ObjectIdGetDatum(evbus_relid("redrive_job")));
		CommitTransactionCommand();
		registered = true;
	}
	look = false;
	ids = running_jobs(&n);
	for (int i = 0; i < n; i++)
	{
		job_id = ids[i];
		job_attempt();
		if (job_wait >= 0)
			wait = Min(wait, job_wait);
	}
	pfree(ids);
	next_turn = TimestampTzPlusMilliseconds(evbus_uptime(), wait);
	return wait;
}
