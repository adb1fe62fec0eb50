/*-------------------------------------------------------------------------
 * behind.c
 *	  Events that wait behind one of their key that has failed, when there are many
 *	  of them: rows of evbus.retry with due_at 'infinity'.
 *
 * A key may be held up for hours (ordering => 'key', on_failure => 'block_key'),
 * and what is published for it meanwhile must not fill the window of order.c.  So
 * the maintainer moves it out of the log's flow, in the order of positions, where it
 * costs neither memory nor looks.  Whoever settles a row of a key wakes the next
 * one: makes it due.
 *
 * None sleeps for ever: a row is put behind another only under a lock on that
 * one (FOR KEY SHARE, which nobody waits for), so that one cannot be settled before this
 * row is seen; and who settles first deletes, and then looks for the next with a
 * new snapshot.  Should a row be left behind all the same, because somebody deleted
 * by hand, or the subscription no longer asks for order, the maintainer finds it
 * when it looks over all of them, now and then.
 *-------------------------------------------------------------------------
 */
#include "behind.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "codec.h"
#include "cursor.h"
#include "internal.h"
#include "ledger.h"
#include "ordered.h"
#include "pin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define MOVE_MAX		500		/* events moved at once */
#define MOVE_BYTES		(16 * 1024 * 1024)	/* with no more bytes than these, and one more */
#define LOOK_OVER_MS	5000

/* A row of this key was settled in this transaction: the next one is due, if it sleeps.  Within evbus_internal_begin(). */
void
evbus_behind_wake(const EvbusSubscription *sub, Datum key)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT4OID, TEXTOID, TIMESTAMPTZOID};
	TimestampTz now = GetCurrentTimestamp();
	Datum		values[] = {Int32GetDatum(sub->subscription_id), key, TimestampTzGetDatum(now)};

	if (sub->ordering != EVBUS_ORDER_KEY || !sub->block_key)
		return;
	if (evbus_sql(&plan, "UPDATE evbus.retry SET due_at = $3 WHERE subscription_id = $1 AND due_at = 'infinity' AND event_id ="
				  " (SELECT event_id FROM evbus.retry WHERE subscription_id = $1 AND key = $2 ORDER BY position LIMIT 1)",
				  3, types, values, NULL, 0) > 0)
		evbus_pin_due(evbus_db(), sub->slot, now);
}

/* The same for the rows that the last statement has deleted, returning their keys. */
void
evbus_behind_next(const EvbusSubscription *sub)
{
	bool		isnull = true;
	Datum		key = SPI_processed > 0 ? evbus_column(0, 1, &isnull) : (Datum) 0;

	if (!isnull)
		evbus_behind_wake(sub, key);
}

/* Put an event behind another of its key; false: that is being settled just now. */
static bool
put_behind(const EvbusSubscription *sub, const EvbusEvent *event)
{
	static SPIPlanPtr lock_plan = NULL;
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT4OID, TEXTOID, INT8OID, INT8OID, TEXTOID, BYTEAOID, BYTEAOID};
	int			payload_len;
	const char *payload = evbus_coded_alone(event->payload, event->payload_len, &payload_len);
	Datum		values[] = {
		Int32GetDatum(sub->subscription_id),
		PointerGetDatum(cstring_to_text_with_len(event->key, event->key_len)),
		Int64GetDatum(event->position),
		Int64GetDatum(event->event_id),
		PointerGetDatum(cstring_to_text_with_len(event->type, event->type_len)),
		event->headers ? PointerGetDatum(cstring_to_text_with_len(event->headers, event->headers_len)) : (Datum) 0,
		PointerGetDatum(cstring_to_text_with_len(payload, payload_len))
	};
	const char *nulls = event->headers ? "       " : "     n ";

	if (evbus_sql(&lock_plan, "SELECT 1 FROM evbus.retry WHERE subscription_id = $1 AND key = $2 AND position < $3"
				  " ORDER BY position DESC LIMIT 1 FOR KEY SHARE SKIP LOCKED", 3, types, values, NULL, 1) == 0)
		return false;
	evbus_sql(&plan, "INSERT INTO evbus.retry (subscription_id, key, position, event_id, type, headers, payload, attempts,"
			  " due_at, first_failed_at, last_failed_at, sqlstate, message)"
			  " VALUES ($1, $2, $3, $4, $5, $6, $7, 0, 'infinity', clock_timestamp(), clock_timestamp(), '" EVBUS_BEHIND_STATE "',"
			  " 'not tried yet: waits for an event of the same key that failed')"
			  " ON CONFLICT (subscription_id, event_id) DO NOTHING",	/* after a seek back it may be there already: once is enough */
			  7, types, values, nulls, 0);
	return true;
}

/* Move events that wait behind a row of their key there; true: there may be more. */
static bool
move(EvbusDb *db, const EvbusSubscription *sub)
{
	EvbusTaking taking = {.db = db, .sub = sub, .behind = true};
	EvbusRange	ranges[MOVE_MAX];
	EvbusClaim	claims[MOVE_MAX];
	EvbusEvents events = {.events = palloc(sizeof(EvbusEvent) * MOVE_MAX), .size = MOVE_MAX};
	EvbusInternal internal;
	int			n_ranges = 0;
	bool		more;

	if (!evbus_ordered_lock(sub, false))
		return false;
	more = evbus_order_begin(&taking) && evbus_ordered_ready(&taking, MOVE_MAX, MOVE_BYTES, &events, claims);
	evbus_internal_begin(&internal);
	(void) set_config_option("enable_seqscan", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	for (int i = 0; i < events.n; i++)
		if (put_behind(sub, &events.events[i]) && evbus_pin(db, &claims[i], EVBUS_PIN_ACK) &&
			evbus_cursor_range(db, &claims[i], &ranges[n_ranges]))
			n_ranges++;
		else
		{
			/* Neither it nor what follows: they go back, and come again. */
			for (int k = events.n - 1; k >= i; k--)
				evbus_cursor_return(db, &claims[k], 0);
			break;
		}
	evbus_internal_end(&internal);
	evbus_ordered_unlock(sub);
	if (n_ranges > 0)
	{
		evbus_ledger_wait_ticked(db, sub, ranges[n_ranges - 1].hi);
		evbus_ledger_append(db, sub, ranges, n_ranges);
	}
	return more && n_ranges > 0;
}

/*
 * Rows that nobody will wake: the first of a key, or where order is no longer asked for.
 * What others have in hand is settled or looked at again.  Looks at one row a key, of
 * however many there are.
 */
static void
look_over(EvbusDb *db, const EvbusSubscription *sub)
{
	static const Oid types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(sub->subscription_id)};
	bool		ordered = sub->ordering == EVBUS_ORDER_KEY && sub->block_key;
	EvbusInternal internal;

	evbus_internal_begin(&internal);
	(void) set_config_option("enable_seqscan", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (evbus_sql(NULL, ordered
				  ? "WITH RECURSIVE f AS ((SELECT key, event_id, due_at FROM evbus.retry WHERE subscription_id = $1 AND key IS NOT NULL ORDER BY key, position LIMIT 1)"
				  "  UNION ALL SELECT n.* FROM f, LATERAL (SELECT key, event_id, due_at FROM evbus.retry WHERE subscription_id = $1 AND key > f.key ORDER BY key, position LIMIT 1) n),"
				  " l AS (SELECT event_id FROM evbus.retry WHERE subscription_id = $1 AND event_id IN (SELECT event_id FROM f WHERE due_at = 'infinity') AND due_at = 'infinity' FOR NO KEY UPDATE SKIP LOCKED)"
				  " UPDATE evbus.retry r SET due_at = clock_timestamp() FROM l WHERE r.subscription_id = $1 AND r.event_id = l.event_id"
				  : "WITH l AS (SELECT event_id FROM evbus.retry WHERE subscription_id = $1 AND due_at = 'infinity' FOR NO KEY UPDATE SKIP LOCKED)"
				  " UPDATE evbus.retry r SET due_at = clock_timestamp() FROM l WHERE r.subscription_id = $1 AND r.event_id = l.event_id",
				  1, types, values, NULL, 0) > 0)
		evbus_pin_due(db, sub->slot, GetCurrentTimestamp());
	evbus_internal_end(&internal);
}

/*
 * Entries in memory of retries that ran out, and whose row is gone: deleted by hand, or of
 * a transaction that had it from itself and rolled back.  They would hold up their key.
 */
static void
forget_gone(EvbusDb *db, const EvbusSubscription *sub)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT4OID, INT8ARRAYOID};
	int64		ids[MOVE_MAX];
	Datum		datums[MOVE_MAX];
	int			n = evbus_cursor_idle_retries(db, sub, ids, MOVE_MAX);
	EvbusInternal internal;
	Datum		values[2];
	uint64		gone;

	if (n == 0)
		return;
	for (int i = 0; i < n; i++)
		datums[i] = Int64GetDatum(ids[i]);
	values[0] = Int32GetDatum(sub->subscription_id);
	values[1] = PointerGetDatum(construct_array(datums, n, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	evbus_internal_begin(&internal);
	gone = evbus_sql(&plan, "SELECT id FROM unnest($2) id WHERE NOT EXISTS (SELECT 1 FROM evbus.retry WHERE subscription_id = $1 AND event_id = id)",
					 2, types, values, NULL, 0);
	for (uint64 i = 0; i < gone; i++)
		evbus_cursor_forget_retry(db, sub, DatumGetInt64(evbus_column(i, 1, NULL)));
	evbus_internal_end(&internal);
}

/* Has a subscription rows asleep? */
static bool
asleep(const EvbusSubscription *sub)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(sub->subscription_id)};
	EvbusInternal internal;
	bool		found;

	evbus_internal_begin(&internal);
	(void) set_config_option("enable_seqscan", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	found = evbus_sql(&plan, "SELECT 1 FROM evbus.retry WHERE subscription_id = $1 AND due_at = 'infinity' LIMIT 1", 1, types, values, NULL, 1) > 0;
	evbus_internal_end(&internal);
	return found;
}

/*
 * For the maintainer, in no transaction: make room where too many wait, and now and
 * then look over everything.
 */
void
evbus_behind_turn(EvbusDb *db, const EvbusSubscription *subs, int n)
{
	static int64 looked_at = 0;
	MemoryContext context = CurrentMemoryContext;
	int64		now = evbus_uptime();
	bool		look = TimestampDifferenceExceeds(looked_at, now, LOOK_OVER_MS);

	for (int i = 0; i < n; i++)
	{
		bool		more = subs[i].ordering == EVBUS_ORDER_KEY && subs[i].block_key && !subs[i].paused;

		while (more && evbus_order_crowded(db, &subs[i]))
		{
			StartTransactionCommand();
			PushActiveSnapshot(GetTransactionSnapshot());
			more = move(db, &subs[i]);
			PopActiveSnapshot();
			CommitTransactionCommand();
			CHECK_FOR_INTERRUPTS();
		}
		if (look && subs[i].ordering != EVBUS_ORDER_NONE)
			evbus_order_recheck(db, &subs[i]);
	}
	if (look)
	{
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		for (int i = 0; i < n; i++)
		{
			forget_gone(db, &subs[i]);
			if (asleep(&subs[i]))
				look_over(db, &subs[i]);
		}
		PopActiveSnapshot();
		CommitTransactionCommand();
		looked_at = now;
	}
	MemoryContextSwitchTo(context);
}
