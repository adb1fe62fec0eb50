/*-------------------------------------------------------------------------
 * errand.c
 *	  What the maintainer commits for others at once.
 *
 * Some things cannot wait for the end of the caller's transaction: a bus that is made
 * because somebody publishes to it must not be locked, and unseen by others who do, until
 * he commits; and who wants all buses to stop waits for that in the same call.  So he
 * writes it down in shared memory, and the maintainer does it in a transaction of its own:
 *
 *		(free) --post--> POSTED --take--> TAKEN --done--> DONE --read--> (free)
 *
 * Whoever gives up waiting, be it that his session ends, frees a POSTED one, and a TAKEN one is LEFT
 * and free when it is done.  What is POSTED has a deadline besides: nothing is done for who is long gone.  What
 * is DONE and not read for a minute is free.
 *-------------------------------------------------------------------------
 */
#include "errand.h"

#include "area.h"
#include "clock.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "wait.h"

#define FORGET			(60 * USECS_PER_SEC)

static bool
is_free(const EvbusErrand *e)
{
	return e->state == EVBUS_ERRAND_FREE || (e->state == EVBUS_ERRAND_DONE && evbus_uptime() - e->done_at > FORGET);
}

/* How many places are in use; the caller holds EvbusShared.lock. */
int
evbus_errands_used(const EvbusDb *db)
{
	int			n = 0;

	for (int i = 0; i < EVBUS_ERRANDS; i++)
		n += !is_free(&db->errands[i]);
	return n;
}

/* A free place; the caller holds EvbusShared.lock. */
static EvbusErrand *
free_place(EvbusDb *db)
{
	for (int i = 0; i < EVBUS_ERRANDS; i++)
		if (is_free(&db->errands[i]))
			return &db->errands[i];
	return NULL;
}

typedef struct Posted
{
	EvbusErrand *volatile place;	/* NULL: it is not posted */
	volatile uint32 number;
} Posted;

/* False: all places are in use. */
static bool
post(EvbusDb *db, EvbusErrandKind kind, const char *name, int64 deadline, Posted *posted)
{
	EvbusErrand *e;

	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	e = free_place(db);
	if (e != NULL)
	{
		e->kind = kind;
		e->state = EVBUS_ERRAND_POSTED;
		e->role = GetUserId();
		e->deadline = deadline;
		posted->number = ++e->number;
		strlcpy(e->name, name, sizeof(e->name));
		posted->place = e;
		evbus_high_raise(&db->high[EVBUS_AREA_ERRANDS], evbus_errands_used(db));
		pg_atomic_write_u32(&db->errands_posted, 1);
	}
	LWLockRelease(&evbus_shared->lock);
	if (e == NULL)
		return false;
	if (db->maintainer_pid != 0)
		SetLatch(&ProcGlobal->allProcs[db->maintainer_procno].procLatch);
	else
		evbus_launcher_wake();
	return true;
}

/* True: it is done, *reply is what came of it, and its place is free. */
static bool
fetch_reply(EvbusErrand *place, uint32 number, EvbusErrand *reply)
{
	bool		done;

	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	done = place->number == number && place->state == EVBUS_ERRAND_DONE;
	if (done)
	{
		*reply = *place;
		place->state = EVBUS_ERRAND_FREE;
	}
	LWLockRelease(&evbus_shared->lock);
	return done;
}

/* Nobody waits for it any more; also what is to be done when the session ends, or on an error. */
static void
withdraw(int code, Datum arg)
{
	Posted	   *posted = (Posted *) DatumGetPointer(arg);
	EvbusErrand *place = posted->place;

	if (place == NULL)
		return;
	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	if (place->number == posted->number)
	{
		if (place->state == EVBUS_ERRAND_POSTED || place->state == EVBUS_ERRAND_DONE)
			place->state = EVBUS_ERRAND_FREE;
		else if (place->state == EVBUS_ERRAND_TAKEN)
			place->state = EVBUS_ERRAND_LEFT;
	}
	LWLockRelease(&evbus_shared->lock);
}

static void
not_done(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_EVBUS_NOT_READY),
			 errmsg("the evbus maintainer of this database did not answer in time"),
			 errhint("See the server log, and evbus.stat_upkeep: it may wait for locks. Then try again.")));
}

/*
 * Have it done, and wait for that, `patience` microseconds; name: 63 bytes at most.  False: the maintainer
 * did not come to it.  Errors: those of what was to be done, with the same SQLSTATE and message.
 */
bool
evbus_errand_try(EvbusDb *db, EvbusErrandKind kind, const char *name, int64 patience)
{
	int64		deadline = evbus_uptime() + patience;
	Posted		posted = {NULL, 0};
	volatile bool done = false;
	EvbusErrand reply;

	evbus_db_require_ready(db);
	ConditionVariablePrepareToSleep(&db->errand_cv);
	PG_ENSURE_ERROR_CLEANUP(withdraw, PointerGetDatum(&posted));
	{
		while (!done && evbus_uptime() < deadline)
		{
			if (posted.place == NULL)
				(void) post(db, kind, name, deadline, &posted);
			done = posted.place != NULL && fetch_reply(posted.place, posted.number, &reply);
			if (!done)
				(void) ConditionVariableTimedSleep(&db->errand_cv, 100, evbus_wait_event(EVBUS_WAIT_ERRAND));
		}
	}
	PG_END_ENSURE_ERROR_CLEANUP(withdraw, PointerGetDatum(&posted));
	ConditionVariableCancelSleep();
	if (!done)
	{
		withdraw(0, PointerGetDatum(&posted));
		return false;
	}
	if (reply.sqlerrcode != 0)
		ereport(ERROR,
				(errcode(reply.sqlerrcode),
				 errmsg("%s", reply.message),
				 reply.hint[0] ? errhint("%s", reply.hint) : 0));
	return true;
}

/* The same; errors also VB009 the maintainer did not come to it. */
void
evbus_errand_run(EvbusDb *db, EvbusErrandKind kind, const char *name, int64 patience)
{
	if (!evbus_errand_try(db, kind, name, patience))
		not_done();
}

/* ----------------------------------------------------------------- the maintainer */

/* A maintainer starts: what its predecessor had taken is to be done. */
void
evbus_errand_again(EvbusDb *db)
{
	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < EVBUS_ERRANDS; i++)
	{
		EvbusErrand *e = &db->errands[i];

		if (e->state == EVBUS_ERRAND_TAKEN)
			e->state = EVBUS_ERRAND_POSTED;
		else if (e->state == EVBUS_ERRAND_LEFT)
			e->state = EVBUS_ERRAND_FREE;
	}
	pg_atomic_write_u32(&db->errands_posted, 1);
	LWLockRelease(&evbus_shared->lock);
}

/* The place of the next one, of which *errand is a copy; NULL: there is none. */
EvbusErrand *
evbus_errand_take(EvbusDb *db, EvbusErrand *errand)
{
	EvbusErrand *place = NULL;

	if (pg_atomic_read_u32(&db->errands_posted) == 0)
		return NULL;
	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < EVBUS_ERRANDS && place == NULL; i++)
	{
		EvbusErrand *e = &db->errands[i];

		if (e->state != EVBUS_ERRAND_POSTED)
			continue;
		if (evbus_uptime() <= e->deadline)
			place = e;
		else
			e->state = EVBUS_ERRAND_FREE;
	}
	if (place != NULL)
	{
		place->state = EVBUS_ERRAND_TAKEN;
		*errand = *place;
	}
	else
		pg_atomic_write_u32(&db->errands_posted, 0);
	LWLockRelease(&evbus_shared->lock);
	return place;
}

/* It is committed (sqlerrcode 0), or failed. */
void
evbus_errand_done(EvbusDb *db, EvbusErrand *place, int sqlerrcode, const char *message, const char *hint)
{
	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	place->state = place->state == EVBUS_ERRAND_LEFT ? EVBUS_ERRAND_FREE : EVBUS_ERRAND_DONE;
	place->done_at = evbus_uptime();
	place->sqlerrcode = sqlerrcode;
	strlcpy(place->message, message, sizeof(place->message));
	strlcpy(place->hint, hint, sizeof(place->hint));
	LWLockRelease(&evbus_shared->lock);
	ConditionVariableBroadcast(&db->errand_cv);
}
