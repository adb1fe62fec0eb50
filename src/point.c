/*-------------------------------------------------------------------------
 * point.c
 *	  Named places at which a test may stop, fail or kill a process.
 *
 * What to do where is in shared memory, so a crash of the server switches every
 * point off.  A wait only sleeps and looks again: it may happen in a commit
 * callback or under a lock.  Tests declare the two functions below themselves:
 *
 *		CREATE FUNCTION point_set(name text, action text, skip int) RETURNS void
 *		  AS 'evbus', 'evbus_point_set' LANGUAGE C STRICT;
 *		CREATE FUNCTION point_waiting(name text) RETURNS int
 *		  AS 'evbus', 'evbus_point_waiting' LANGUAGE C STRICT;
 *
 * action: 'off' (who waits goes on), 'wait', 'error' (not in commit callbacks),
 * 'kill' (SIGKILL to itself, so the server restarts), 'end' (SIGTERM to itself,
 * which takes effect where interrupts are allowed next).  skip: that many passes
 * are let through first.  'error', 'kill' and 'end' happen once.
 *-------------------------------------------------------------------------
 */
#include "point.h"

#ifdef EVBUS_POINTS

#include <signal.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "storage/pmsignal.h"
#include "utils/builtins.h"

static const char *const actions[] = {"off", "wait", "error", "kill", "end"};

enum
{
	POINT_OFF,
	POINT_WAIT,
	POINT_ERROR,
	POINT_KILL,
	POINT_END
};

PG_FUNCTION_INFO_V1(evbus_point_set);
PG_FUNCTION_INFO_V1(evbus_point_waiting);

static EvbusPoint *
find(const char *name)
{
	for (int i = 0; i < EVBUS_POINTS_MAX; i++)
		if (strcmp(evbus_shared->points[i].name, name) == 0)
			return &evbus_shared->points[i];
	return NULL;
}

void
evbus_point(const char *name)
{
	EvbusPoint *point;
	uint32		action;

	if (evbus_shared == NULL || (point = find(name)) == NULL ||
		(action = pg_atomic_read_u32(&point->action)) == POINT_OFF)
		return;
	if ((int32) pg_atomic_fetch_sub_u32(&point->skip, 1) > 0)
		return;
	if (action != POINT_WAIT &&
		!pg_atomic_compare_exchange_u32(&point->action, &action, POINT_OFF))
		return;
	switch (action)
	{
		case POINT_WAIT:
			pg_atomic_fetch_add_u32(&point->waiting, 1);
			while (pg_atomic_read_u32(&point->action) == POINT_WAIT)
			{
				pg_usleep(1000);
				if (!PostmasterIsAlive())
					_exit(1);
				if (INTERRUPTS_CAN_BE_PROCESSED() && (ProcDiePending || QueryCancelPending))
				{
					pg_atomic_fetch_sub_u32(&point->waiting, 1);
					CHECK_FOR_INTERRUPTS();
					return;
				}
			}
			pg_atomic_fetch_sub_u32(&point->waiting, 1);
			break;
		case POINT_ERROR:
			elog(ERROR, "evbus point \"%s\"", name);
			break;
		case POINT_KILL:
			(void) kill(MyProcPid, SIGKILL);
			break;
		case POINT_END:
			(void) kill(MyProcPid, SIGTERM);
			break;
	}
}

/* evbus_point_set(name text, action text, skip int) returns void */
Datum
evbus_point_set(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *wanted = text_to_cstring(PG_GETARG_TEXT_PP(1));
	EvbusPoint *point = find(name);

	if (point == NULL && strlen(name) < sizeof(point->name))
	{
		point = find("");
		if (point != NULL)
			strlcpy(point->name, name, sizeof(point->name));
	}
	for (int i = 0; point != NULL && i < lengthof(actions); i++)
		if (strcmp(actions[i], wanted) == 0)
		{
			pg_atomic_write_u32(&point->skip, PG_GETARG_INT32(2));
			pg_atomic_write_u32(&point->action, i);
			PG_RETURN_VOID();
		}
	elog(ERROR, "cannot set point \"%s\" to \"%s\"", name, wanted);
}

/* evbus_point_waiting(name text) returns int: how many processes wait there */
Datum
evbus_point_waiting(PG_FUNCTION_ARGS)
{
	EvbusPoint *point = find(text_to_cstring(PG_GETARG_TEXT_PP(0)));

	PG_RETURN_INT32(point ? (int32) pg_atomic_read_u32(&point->waiting) : 0);
}

#endif							/* EVBUS_POINTS */
