/*-------------------------------------------------------------------------
 * redrive.c
 *	  Dead letters brought back, by id or by filter.
 *
 * A redrive deletes dead letters and inserts retries that are due at once, in
 * one statement: done twice, the second finds nothing.  What another transaction
 * has in hand just now is passed over and not waited for: so two of them share the
 * work, and each dead letter is redriven once.  The event keeps its id, its first
 * failure, and under earlier_failures how each of its lives ended; attempts begin anew.
 *-------------------------------------------------------------------------
 */
#include "redrive.h"

#include "args.h"
#include "audit.h"
#include "internal.h"
#include "miscadmin.h"
#include "pin.h"
#include "point.h"
#include "progress.h"
#include "redrive_job.h"
#include "registry.h"
#include "utils/builtins.h"

#define EARLIER_MAX		"20"	/* lives that a dead letter remembers */

PG_FUNCTION_INFO_V1(evbus_redrive);
PG_FUNCTION_INFO_V1(evbus_redrive_ids);

/*
 * Turn what matches into retries, oldest first; returns how many.  *last, if
 * wanted, is the highest dead_letter_id among them.
 */
int64
evbus_redrive_take(EvbusDb *db, EvbusDeadFilter *filter, int64 *last)
{
	EvbusInternal state;
	uint64		n;
	int64		taken = 0;

	evbus_pin_init();
	evbus_internal_begin(&state);
	n = evbus_sql(NULL, psprintf("WITH p AS MATERIALIZED (SELECT d.dead_letter_id FROM evbus.dead_letter_log d WHERE %s"
								 "  ORDER BY d.dead_letter_id LIMIT $8 FOR UPDATE SKIP LOCKED),"
								 " d AS (DELETE FROM evbus.dead_letter_log l USING p WHERE l.dead_letter_id = p.dead_letter_id RETURNING l.*),"
								 " c AS (INSERT INTO evbus.dead_letter_delta (subscription_id, bus, subscription, type, sqlstate, reason, hour, died, gone)"
								 "  SELECT subscription_id, bus, subscription, type, sqlstate, reason, evbus._event_hour(dead_letter_id), 0, count(*) FROM d GROUP BY 1, 2, 3, 4, 5, 6, 7),"
								 " r AS (INSERT INTO evbus.retry AS r (subscription_id, event_id, position, attempts, due_at, first_failed_at,"
								 "   last_failed_at, sqlstate, message, redrives, type, key, headers, payload, earlier_failures, replayed)"
								 "  SELECT DISTINCT ON (subscription_id, event_id) subscription_id, event_id, position, 0, clock_timestamp(),"
								 "   min(first_failed_at) OVER (PARTITION BY subscription_id, event_id), last_failed_at, sqlstate, message, redrives + 1,"
								 "   type, key, headers, payload,"
								 "   CASE WHEN jsonb_array_length(earlier_failures) >= " EARLIER_MAX " THEN earlier_failures - 0 ELSE coalesce(earlier_failures, '[]') END"
								 "    || jsonb_build_object('dead_letter_id', dead_letter_id, 'dead_at', dead_at, 'attempts', attempts, 'reason', reason,"
								 "     'sqlstate', sqlstate, 'message', message, 'redriven_at', clock_timestamp(), 'redriven_by', $11::text), replayed"
								 "  FROM d ORDER BY subscription_id, event_id, dead_letter_id DESC"
								 "  ON CONFLICT (subscription_id, event_id) DO UPDATE SET attempts = 0, due_at = excluded.due_at,"
								 "   first_failed_at = least(r.first_failed_at, excluded.first_failed_at), redrives = greatest(r.redrives, excluded.redrives),"
								 "   payload = excluded.payload, earlier_failures = excluded.earlier_failures, replayed = r.replayed AND excluded.replayed)"
								 " SELECT subscription_id, count(*), max(dead_letter_id) FROM d GROUP BY 1", evbus_dead_filter_where(filter)),
				  EVBUS_DEAD_PARAMS, evbus_dead_types, filter->values, filter->nulls, 0);
	if (last)
		*last = 0;
	for (uint64 i = 0; i < n; i++)
	{
		EvbusSubscription *sub = evbus_subscription_by_id(DatumGetInt32(evbus_column(i, 1, NULL)));

		taken += DatumGetInt64(evbus_column(i, 2, NULL));
		if (last)
			*last = Max(*last, DatumGetInt64(evbus_column(i, 3, NULL)));
		if (sub)
			evbus_pin_due(db, sub->slot, 0);
	}
	evbus_internal_end(&state);
	return taken;
}

/* All of it in this transaction, by the user; in one statement, so nobody knows how far it is before it is done. */
static int64
redrive_now(EvbusDb *db, EvbusDeadFilter *filter, const char *subject)
{
	volatile int64 taken = 0;

	evbus_dead_filter_set(filter, EVBUS_DEAD_BY, CStringGetTextDatum(GetUserNameFromId(GetUserId(), false)));
	evbus_progress_begin(EVBUS_WORK_REDRIVE, subject, EVBUS_PHASE_REDRIVING, EVBUS_UNKNOWN, EVBUS_UNKNOWN);
	PG_TRY();
	{
		EVBUS_POINT("redrive.now");
		taken = evbus_redrive_take(db, filter, NULL);
	}
	PG_FINALLY();
	{
		evbus_progress_end();
	}
	PG_END_TRY();
	return taken;
}

/*
 * evbus.redrive(subscription text, bus text, types text[], sqlstate text, dead_after timestamptz,
 * dead_before timestamptz, max_events bigint, rate integer, dry_run boolean) returns bigint
 *
 * Tries the dead letters that match every filter that is not NULL again, oldest
 * first, at most max_events; returns how many.  Only those of subscriptions that
 * the caller owns; those of dropped ones are left.  Takes effect at commit.
 * rate: not now, but by the maintainer, that many a second; returns the job.
 * dry_run: only tells how many.  Errors: 22004, 22023, 25006, 42501, VB001, VB004.
 */
Datum
evbus_redrive(PG_FUNCTION_ARGS)
{
	EvbusDb    *db = evbus_db();
	EvbusDeadFilter filter;
	int			rate = 0;
	int			subject;
	int64		n;

	if (!PG_ARGISNULL(7))
		rate = evbus_arg_int(fcinfo, 7, "rate", 1, EVBUS_REDRIVE_RATE_MAX);
	evbus_arg_present(fcinfo, 8, "dry_run");
	evbus_dead_filter_read(fcinfo, &filter, false);
	if (PG_GETARG_BOOL(8))
		PG_RETURN_INT64(evbus_dead_filter_count(&filter));
	PreventCommandIfReadOnly("evbus.redrive()");
	if (rate > 0)
	{
		n = evbus_redrive_job_add(db, &filter, rate);
		evbus_dead_filter_audit(fcinfo, evbus_audit_number("job", n));
		PG_RETURN_INT64(n);
	}
	subject = PG_ARGISNULL(0) ? 1 : 0;	/* the subscription, or else the bus */
	n = redrive_now(db, &filter, PG_ARGISNULL(subject) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(subject)));
	evbus_dead_filter_audit(fcinfo, evbus_audit_number("dead_letters", n));
	PG_RETURN_INT64(n);
}

/*
 * evbus.redrive(dead_letter_ids bigint[]) returns bigint: the same by id, at once; ids
 * that are not there are passed over.  Errors also: VB004 its subscription is gone.
 */
Datum
evbus_redrive_ids(PG_FUNCTION_ARGS)
{
	EvbusDb    *db = evbus_db();
	EvbusDeadFilter filter;
	int64		n;

	PreventCommandIfReadOnly("evbus.redrive()");
	evbus_dead_filter_ids(fcinfo, &filter, false);
	n = redrive_now(db, &filter, NULL);
	evbus_audit(fcinfo, NULL, NULL, NULL, evbus_audit_number("dead_letters", n));
	PG_RETURN_INT64(n);
}
