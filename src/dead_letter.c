/*-------------------------------------------------------------------------
 * dead_letter.c
 *	  Deliveries given up on, each with its own copy of the event, so that they
 *	  outlive the log's retention.
 *
 * A dead letter's id comes from the clock as event ids do: it is the partition
 * key and the primary key at once.  What brings them back is in redrive.c.
 *
 * Millions of them cannot be counted by looking at them.  So whoever adds or
 * removes some also appends rows of evbus.dead_letter_delta, in the same transaction,
 * and waits for nobody; the maintainer, alone, folds those into evbus.dead_letter_count.
 * The views add up both: exact at any time, without a scan.
 *-------------------------------------------------------------------------
 */
#include "dead_letter.h"

#include "access/relation.h"
#include "behind.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "codec.h"
#include "fmgr.h"
#include "internal.h"
#include "leaf.h"
#include "quota.h"
#include "stat_outbox.h"
#include "trace.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#define FOLD_ROWS		"20000"	/* changes folded in one statement */

PG_FUNCTION_INFO_V1(evbus_event_hour);

/* evbus._event_hour(bigint) returns timestamptz: the hour in UTC an id is of; what dead letters are counted by */
Datum
evbus_event_hour(PG_FUNCTION_ARGS)
{
	TimestampTz t = evbus_clock_to_time(PG_GETARG_INT64(0));

	PG_RETURN_TIMESTAMPTZ(t - t % USECS_PER_HOUR);
}

/*
 * Move a delivery here, in the current transaction; its retry, if any, ends.  That of
 * a replay becomes one of the subscription, which is there longer.
 */
void
evbus_dead_letter_add(EvbusDb *db, const EvbusSubscription *sub, const EvbusEvent *event,
					  const char *reason, const char *sqlstate, const char *message)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT8OID, TIMESTAMPTZOID, INT4OID, TEXTOID, TEXTOID, INT8OID, INT8OID, INT4OID,
	TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, BYTEAOID, BYTEAOID, INT4OID, BOOLOID};
	int64		id = evbus_clock_take(&db->clock, 1);
	EvbusInternal internal;
	EvbusLeaf	leaf;
	const char *payload;
	int			payload_len;
	Datum		values[17];
	char		nulls[18] = "                 ";

	relation_close(evbus_leaf_open(evbus_relid("dead_letter_log"), id, &leaf), NoLock);
	values[0] = Int64GetDatum(id);
	values[1] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[2] = Int32GetDatum(sub->replay_of != 0 ? sub->replay_of : sub->subscription_id);
	values[3] = CStringGetTextDatum(sub->name);
	values[4] = CStringGetTextDatum(sub->bus_name);
	values[5] = Int64GetDatum(event->event_id);
	values[6] = Int64GetDatum(event->position);
	values[7] = Int32GetDatum(event->attempt);
	values[8] = CStringGetTextDatum(reason);
	values[9] = CStringGetTextDatum(sqlstate);
	values[10] = CStringGetTextDatum(message);
	values[11] = PointerGetDatum(cstring_to_text_with_len(event->type, event->type_len));
	nulls[12] = event->key ? ' ' : 'n';
	values[12] = event->key ? PointerGetDatum(cstring_to_text_with_len(event->key, event->key_len)) : (Datum) 0;
	nulls[13] = event->headers ? ' ' : 'n';
	values[13] = event->headers ? PointerGetDatum(cstring_to_text_with_len(event->headers, event->headers_len)) : (Datum) 0;
	payload = evbus_coded_alone(event->payload, event->payload_len, &payload_len);
	values[14] = PointerGetDatum(cstring_to_text_with_len(payload, payload_len));
	values[15] = Int32GetDatum(sub->subscription_id);
	values[16] = BoolGetDatum(event->replayed || sub->replay_of != 0);

	evbus_internal_begin(&internal);
	evbus_sql(&plan,
			  "WITH r AS (DELETE FROM evbus.retry WHERE subscription_id = $16 AND event_id = $6"
			  " RETURNING first_failed_at, redrives, earlier_failures),"
			  " c AS (INSERT INTO evbus.dead_letter_delta (subscription_id, bus, subscription, type, sqlstate, reason, hour, died, gone)"
			  "  VALUES ($3, $5, $4, $12, $10, $9, evbus._event_hour($1), 1, 0))"
			  " INSERT INTO evbus.dead_letter_log (dead_letter_id, dead_at, subscription_id, subscription, bus,"
			  " event_id, position, attempts, reason, first_failed_at, last_failed_at, sqlstate, message, redrives,"
			  " type, key, headers, payload, earlier_failures, replayed)"
			  " SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, coalesce((SELECT first_failed_at FROM r), $2), $2, $10, $11,"
			  " coalesce((SELECT redrives FROM r), 0), $12, $13, $14, $15, (SELECT earlier_failures FROM r), $17",
			  17, types, values, nulls, 0);
	if (event->key)
		evbus_behind_wake(sub, values[12]);
	evbus_internal_end(&internal);
	evbus_stat_died(db, sub, event);
	if (evbus_traced(db, sub))
		evbus_trace_event(sub, event->event_id, "is dead letter " INT64_FORMAT " after %d attempts (%s): %s, %s", id, event->attempt, reason, sqlstate, message);
	evbus_quota_died(db, sub);
}

/*
 * Fold what was counted since the last time, and forget what retention has ended:
 * counts below the oldest leaf, jobs and replays that are over.  In a transaction; one at a time.
 */
void
evbus_dead_letter_fold(int retention_minutes)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT8OID, INT4OID};
	EvbusLeaf  *leaves;
	int			n = evbus_leaf_list(evbus_relid("dead_letter_log"), &leaves);
	Datum		values[] = {Int64GetDatum(n > 0 ? leaves[0].lo : 0), Int32GetDatum(retention_minutes)};
	EvbusInternal internal;
	int64		folded;

	evbus_internal_begin(&internal);
	do
	{
		evbus_sql(&plan,
				  "WITH x AS (DELETE FROM evbus.dead_letter_delta WHERE ctid = ANY (ARRAY(SELECT ctid FROM evbus.dead_letter_delta LIMIT " FOLD_ROWS ")) RETURNING *),"
				  " c AS (INSERT INTO evbus.dead_letter_count AS c (subscription_id, bus, subscription, type, sqlstate, reason, hour, died, gone)"
				  "  SELECT subscription_id, bus, subscription, type, sqlstate, reason, hour, sum(died), sum(gone) FROM x GROUP BY 1, 2, 3, 4, 5, 6, 7 ORDER BY 1, 2, 3, 4, 5, 6, 7"
				  "  ON CONFLICT (subscription_id, bus, subscription, type, sqlstate, reason, hour) DO UPDATE SET died = c.died + excluded.died, gone = c.gone + excluded.gone)"
				  " SELECT count(*) FROM x", 0, NULL, NULL, NULL, 0);
		folded = DatumGetInt64(evbus_column(0, 1, NULL));
	} while (folded >= atoi(FOLD_ROWS));
	evbus_sql(NULL, "DELETE FROM evbus.dead_letter_count WHERE hour < evbus._event_hour($1)", 2, types, values, NULL, 0);
	evbus_sql(NULL, "DELETE FROM evbus.redrive_job WHERE finished_at < clock_timestamp() - $2 * interval '1 minute'", 2, types, values, NULL, 0);
	evbus_sql(NULL, "DELETE FROM evbus.replay_log WHERE finished_at < clock_timestamp() - $2 * interval '1 minute'", 2, types, values, NULL, 0);
	evbus_internal_end(&internal);
	pfree(leaves);
}
