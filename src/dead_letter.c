/*-------------------------------------------------------------------------
 * dead_letter.c
 *	  Deliveries given up on, each with its own copy of the event, so that they
 *	  outlive the log's retention.
 *
 * A dead letter's id comes from the clock as event ids do: it is the partition
 * key and the primary key at once.  What brings them back is in redrive.c.
 *-------------------------------------------------------------------------
 */
#include "dead_letter.h"

#include "access/relation.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "internal.h"
#include "leaf.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

/* Move a delivery here, in the current transaction; its retry, if any, ends. */
void
evbus_dead_letter_add(EvbusDb *db, const EvbusSubscription *sub, const EvbusEvent *event,
					  const char *reason, const char *sqlstate, const char *message)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT8OID, TIMESTAMPTZOID, INT4OID, TEXTOID, TEXTOID, INT8OID, INT8OID, INT4OID,
	TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, BYTEAOID, BYTEAOID};
	int64		id = evbus_clock_take(&db->clock, 1);
	EvbusInternal internal;
	EvbusLeaf	leaf;
	Datum		values[15];
	char		nulls[16] = "               ";

	relation_close(evbus_leaf_open(evbus_relid("dead_letter_log"), id, &leaf), NoLock);
	values[0] = Int64GetDatum(id);
	values[1] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[2] = Int32GetDatum(sub->subscription_id);
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
	values[14] = PointerGetDatum(cstring_to_text_with_len(event->payload, event->payload_len));

	evbus_internal_begin(&internal);
	evbus_sql(&plan,
			  "WITH r AS (DELETE FROM evbus.retry WHERE subscription_id = $3 AND event_id = $6"
			  " RETURNING first_failed_at, redrives)"
			  " INSERT INTO evbus.dead_letter_log (dead_letter_id, dead_at, subscription_id, subscription, bus,"
			  " event_id, position, attempts, reason, first_failed_at, last_failed_at, sqlstate, message, redrives,"
			  " type, key, headers, payload)"
			  " SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, coalesce((SELECT first_failed_at FROM r), $2), $2, $10, $11,"
			  " coalesce((SELECT redrives FROM r), 0), $12, $13, $14, $15",
			  15, types, values, nulls, 0);
	evbus_internal_end(&internal);
}
