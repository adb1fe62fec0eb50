/*-------------------------------------------------------------------------
 * retry.c
 *	  Deliveries that failed: rows with a due time, and what becomes of them.
 *
 * A failure is written by the transaction that acks the event out of the normal
 * flow, or re-tries it: so an event is in the flow, in evbus.retry, or among the
 * dead letters, never in two of them.  A due row is taken by a lease in shared
 * memory and read again under it: whoever settles a retry commits before giving
 * up the lease, so what we then see is still to be done.
 *
 * Policy by SQLSTATE: 40001 and 40P01 soon again; classes 22, 23 and 42 never,
 * because the same event would fail the same way (but class 42, which is that something is
 * missing or forbidden, where a circuit breaker waits for that); all else exponential backoff
 * with jitter ("equal jitter": half fixed, half random; M. Brooker, "Exponential
 * Backoff And Jitter", AWS Architecture Blog, 2015).
 *-------------------------------------------------------------------------
 */
#include "retry.h"

#include "access/xact.h"
#include "breaker.h"
#include "catalog/pg_type.h"
#include "codec.h"
#include "common/pg_prng.h"
#include "dead_letter.h"
#include "behind.h"
#include "filter.h"
#include "internal.h"
#include "mb/pg_wchar.h"
#include "order.h"
#include "ordered.h"
#include "pin.h"
#include "reader.h"
#include "stat_outbox.h"
#include "trace.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#define CONFLICT_DELAY		(20 * 1000) /* microseconds, doubled with each attempt */
#define CONFLICT_DELAY_MAX	(2 * USECS_PER_SEC)
#define LOOK_AGAIN			(100 * 1000)

static int64
jitter(int64 delay)
{
	return delay / 2 + (int64) (pg_prng_double(&pg_global_prng_state) * (delay - delay / 2));
}

static int64
doubled(int64 delay, int times, int64 max)
{
	while (times-- > 0 && delay < max)
		delay *= 2;
	return Min(delay, max);
}

static bool
is_conflict(int code)
{
	return code == ERRCODE_T_R_SERIALIZATION_FAILURE || code == ERRCODE_T_R_DEADLOCK_DETECTED;
}

bool
evbus_retry_permanent(int code)
{
	int			class = ERRCODE_TO_CATEGORY(code);

	return class == ERRCODE_DATA_EXCEPTION || class == ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION ||
		class == ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION;
}

/*
 * The primary message alone, cut, on one line: DETAIL and CONTEXT may show rows.
 * Data exceptions (class 22) quote the bad value in the primary message too.
 */
static char *
scrub(const char *message, int code)
{
	int			len = strlen(message);
	char	   *out;

	if (len > EVBUS_MESSAGE_MAX)
		len = pg_mbcliplen(message, len, EVBUS_MESSAGE_MAX);
	out = pnstrdup(message, len);
	for (char *c = out; *c; c++)
		if ((unsigned char) *c < ' ')
			*c = ' ';
	if (ERRCODE_TO_CATEGORY(code) == ERRCODE_DATA_EXCEPTION)
	{
		char	   *first = strchr(out, '"');
		char	   *last = strrchr(out, '"');

		if (first != NULL && last > first)
			return psprintf("%.*s\"...\"%s", (int) (first - out), out, last + 1);
	}
	return out;
}

/* Bytes as they stand in a row. */
static Datum
coded(const char *data, int len)
{
	return PointerGetDatum(cstring_to_text_with_len(data, len));
}

/*
 * Record that a delivery of an event failed: due again, or a dead letter (false).  While the
 * circuit breaker is not closed, or this opens it, it was no attempt.
 */
bool
evbus_retry_fail(EvbusDb *db, const EvbusSubscription *sub, const EvbusEvent *event,
				 const EvbusFailure *failure)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT4OID, INT8OID, INT8OID, INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID,
	TEXTOID, TEXTOID, TEXTOID, TEXTOID, BYTEAOID, BYTEAOID, BOOLOID};
	const char *state = unpack_sql_state(failure->sqlerrcode);
	char	   *message = scrub(failure->message, failure->sqlerrcode);
	TimestampTz now = GetCurrentTimestamp();
	EvbusInternal internal;
	const char *payload;
	int			payload_len;
	Datum		values[13];
	char		nulls[14] = "             ";
	int64		delay;
	int64		wait = 0;
	bool		held = evbus_breaker_failed(db, sub, event->event_id, failure->sqlerrcode, failure->reject || failure->permanent, message, &wait);
	bool		permanent = failure->permanent || (evbus_retry_permanent(failure->sqlerrcode) &&
		(sub->breaker_threshold == 0 || ERRCODE_TO_CATEGORY(failure->sqlerrcode) != ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION));

	evbus_stat_failed(db, sub, event);
	if (held)
		;
	else if (failure->reject || event->attempt >= sub->max_attempts || permanent)
	{
		const char *reason = failure->reject ? "rejected" : permanent ? "permanent" : "max_attempts";

		evbus_dead_letter_add(db, sub, event, reason, state, message);
		return false;
	}
	if (failure->delay >= 0)
		delay = failure->delay;
	else if (is_conflict(failure->sqlerrcode))
		delay = jitter(doubled(CONFLICT_DELAY, event->attempt - 1, Min(CONFLICT_DELAY_MAX, sub->backoff_max)));
	else
		delay = jitter(doubled(sub->backoff_initial, event->attempt - 1, sub->backoff_max));
	/* Nothing is handed out before that, and when it closes sooner, by hand or a restart, nothing is to wait for it. */
	if (held && failure->delay < 0)
		delay = Min(delay, wait);

	values[0] = Int32GetDatum(sub->subscription_id);
	values[1] = Int64GetDatum(event->event_id);
	values[2] = Int64GetDatum(event->position);
	values[3] = Int32GetDatum(held ? event->attempt - 1 : event->attempt);
	values[4] = TimestampTzGetDatum(now + delay);
	values[5] = TimestampTzGetDatum(now);
	values[6] = CStringGetTextDatum(state);
	values[7] = CStringGetTextDatum(message);
	values[8] = coded(event->type, event->type_len);
	values[9] = event->key ? coded(event->key, event->key_len) : (Datum) 0;
	nulls[9] = event->key ? ' ' : 'n';
	values[10] = event->headers ? coded(event->headers, event->headers_len) : (Datum) 0;
	nulls[10] = event->headers ? ' ' : 'n';
	payload = evbus_coded_alone(event->payload, event->payload_len, &payload_len);
	values[11] = coded(payload, payload_len);
	values[12] = BoolGetDatum(event->replayed || sub->replay_of != 0);

	evbus_internal_begin(&internal);
	evbus_sql(&plan,
			  "INSERT INTO evbus.retry AS r (subscription_id, event_id, position, attempts, due_at, first_failed_at,"
			  " last_failed_at, sqlstate, message, type, key, headers, payload, replayed)"
			  " VALUES ($1, $2, $3, $4, $5, $6, $6, $7, $8, $9, $10, $11, $12, $13)"
			  " ON CONFLICT (subscription_id, event_id) DO UPDATE SET attempts = excluded.attempts,"
			  " due_at = excluded.due_at, last_failed_at = excluded.last_failed_at,"
			  " first_failed_at = CASE r.sqlstate WHEN '" EVBUS_BEHIND_STATE "' THEN excluded.first_failed_at ELSE r.first_failed_at END,"
			  " sqlstate = excluded.sqlstate, message = excluded.message",
			  13, types, values, nulls, 0);
	evbus_internal_end(&internal);
	evbus_pin_due(db, sub->slot, now + delay);
	if (evbus_traced(db, sub))
		evbus_trace_event(sub, event->event_id, "failed with %s, %s; to be delivered again in " INT64_FORMAT " ms%s", state, message, delay / 1000,
						  held ? ", and when its circuit breaker lets it" : "");
	return true;
}

/* A retry succeeded. */
void
evbus_retry_settle(const EvbusSubscription *sub, int64 event_id)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT4OID, INT8OID};
	Datum		values[] = {Int32GetDatum(sub->subscription_id), Int64GetDatum(event_id)};
	EvbusInternal internal;

	evbus_internal_begin(&internal);
	evbus_sql(&plan, "DELETE FROM evbus.retry WHERE subscription_id = $1 AND event_id = $2 RETURNING key", 2, types, values, NULL, 0);
	evbus_behind_next(sub);
	evbus_internal_end(&internal);
}

/* An attempt of a retry has succeeded. */
void
evbus_retry_settle_attempt(const EvbusSubscription *sub, const EvbusEvent *event)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT4OID, INT8OID, INT4OID};
	Datum		values[] = {Int32GetDatum(sub->subscription_id), Int64GetDatum(event->event_id),
	Int32GetDatum(event->attempt)};
	EvbusInternal internal;

	evbus_internal_begin(&internal);
	evbus_sql(&plan, "DELETE FROM evbus.retry WHERE subscription_id = $1 AND event_id = $2 AND attempts < $3 RETURNING key",
			  3, types, values, NULL, 0);
	evbus_behind_next(sub);
	evbus_internal_end(&internal);
}

static char *
copy_text(Datum value, int *len, MemoryContext context)
{
	text	   *t = DatumGetTextPP(value);
	char	   *out;

	*len = VARSIZE_ANY_EXHDR(t);
	out = MemoryContextAlloc(context, Max(*len, 1));
	memcpy(out, VARDATA_ANY(t), *len);
	return out;
}

/* Row of a query that selects position, attempts, type, key, headers, payload, replayed, whether redriven. */
static void
fill_event(uint64 row, EvbusEvent *event, MemoryContext context)
{
	bool		isnull;
	Datum		value;

	event->position = DatumGetInt64(evbus_column(row, 1, NULL));
	event->attempt = DatumGetInt32(evbus_column(row, 2, NULL)) + 1;
	event->type = copy_text(evbus_column(row, 3, NULL), &event->type_len, context);
	value = evbus_column(row, 4, &isnull);
	event->key = isnull ? NULL : copy_text(value, &event->key_len, context);
	value = evbus_column(row, 5, &isnull);
	event->headers = isnull ? NULL : copy_text(value, &event->headers_len, context);
	event->payload = copy_text(evbus_column(row, 6, NULL), &event->payload_len, context);
	event->replayed = DatumGetBool(evbus_column(row, 7, NULL));
	event->redriven = DatumGetBool(evbus_column(row, 8, NULL));
}

/* Fill in an event whose event_id is set; false: there is no such retry. */
bool
evbus_retry_load(const EvbusSubscription *sub, EvbusEvent *event)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT4OID, INT8OID};
	Datum		values[] = {Int32GetDatum(sub->subscription_id), Int64GetDatum(event->event_id)};
	MemoryContext context = CurrentMemoryContext;
	EvbusInternal internal;
	bool		found;

	evbus_internal_begin(&internal);
	found = evbus_sql(&plan, "SELECT position, attempts, type, key, headers, payload, replayed, redrives > 0 FROM evbus.retry"
					  " WHERE subscription_id = $1 AND event_id = $2", 2, types, values, NULL, 1) > 0;
	if (found)
		fill_event(0, event, context);
	evbus_internal_end(&internal);
	return found;
}

static void
lower_due(EvbusSub *shared, int64 due)
{
	uint64		old = pg_atomic_read_u64(&shared->retry_due);

	while ((int64) old > due && !pg_atomic_compare_exchange_u64(&shared->retry_due, &old, (uint64) due))
		;
}

/* When the first row after a moment is due; PG_INT64_MAX: there is none. */
static int64
next_due(const EvbusSubscription *sub, TimestampTz after)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT4OID, TIMESTAMPTZOID};
	Datum		values[] = {Int32GetDatum(sub->subscription_id), TimestampTzGetDatum(after)};
	EvbusInternal internal;
	bool		isnull;
	int64		due;

	evbus_internal_begin(&internal);
	evbus_sql(&plan, "SELECT min(due_at) FROM evbus.retry WHERE subscription_id = $1 AND due_at > $2 AND due_at < 'infinity'", 2, types, values, NULL, 1);
	due = DatumGetTimestampTz(evbus_column(0, 1, &isnull));
	evbus_internal_end(&internal);
	return isnull ? PG_INT64_MAX : due;
}

/* When the first retry of a subscription is due, as the table says; kept for others. */
TimestampTz
evbus_retry_next(EvbusDb *db, const EvbusSubscription *sub)
{
	EvbusSub   *shared = EVBUS_SUB(db, sub->slot);
	int64		due;

	if ((int64) pg_atomic_read_u64(&shared->retry_due) > GetCurrentTimestamp())
		return (TimestampTz) pg_atomic_read_u64(&shared->retry_due);
	evbus_pin_look(db, sub->slot);
	due = next_due(sub, 0);
	lower_due(shared, due);
	return due;
}

/*
 * Those that are due, oldest first; of subscriptions in order only the first of each
 * key (block_key), or of all.
 */
static uint64
find_due(const EvbusSubscription *sub, TimestampTz now, int64 limit)
{
	static SPIPlanPtr plans[3] = {NULL};
	static const char *const sql[] = {
		"SELECT event_id, NULL, NULL FROM evbus.retry WHERE subscription_id = $1 AND due_at <= $2 ORDER BY due_at LIMIT $3",
		"SELECT event_id, position, key FROM evbus.retry r WHERE subscription_id = $1 AND due_at <= $2"
		" AND NOT (EXISTS (SELECT 1 FROM evbus.retry b WHERE b.subscription_id = $1 AND b.key = r.key AND b.position < r.position) AND $4)"
		" ORDER BY due_at, position LIMIT $3",
		"SELECT event_id, position, key FROM evbus.retry WHERE subscription_id = $1 AND due_at <= $2"
		" AND (NOT $4 OR position = (SELECT min(position) FROM evbus.retry WHERE subscription_id = $1)) ORDER BY position LIMIT $3",
	};
	static const Oid types[] = {INT4OID, TIMESTAMPTZOID, INT8OID, BOOLOID};
	Datum		values[] = {Int32GetDatum(sub->subscription_id), TimestampTzGetDatum(now), Int64GetDatum(limit),
	BoolGetDatum(sub->block_key)};

	return evbus_sql(&plans[sub->ordering], sql[sub->ordering], sub->ordering == EVBUS_ORDER_NONE ? 3 : 4,
					 types, values, NULL, 0);
}

/*
 * Is a row passed over that is due?  Where it is too old; and what was put here untried
 * (behind.c) the filter is asked of now.  Not what somebody wants again: that was redriven or
 * replayed.
 */
static bool
passed_over(EvbusDb *db, const EvbusSubscription *sub, EvbusEvent *event)
{
	bool		expired = !event->redriven && !event->replayed && evbus_event_too_old(sub, event);

	if (!expired && (sub->filter == NULL || event->redriven || event->attempt > 1 ||
					 evbus_filter_ask(sub->filter, event) != EVBUS_FILTER_SKIPS))
		return false;
	evbus_event_passed_over(db, sub, event, expired);
	return true;
}

/*
 * Lease up to max rows that are due; returns how many.  An abort of this
 * transaction gives them back.  Memory: the current context.  Also finds out when the next one is due.
 */
int
evbus_retry_claim(EvbusDb *db, const EvbusSubscription *sub, int max,
				  EvbusEvent *events, EvbusClaim *claims)
{
	EvbusSub   *shared = EVBUS_SUB(db, sub->slot);
	MemoryContext context = CurrentMemoryContext;
	TimestampTz now = GetCurrentTimestamp();
	bool		ordered = sub->ordering != EVBUS_ORDER_NONE;
	EvbusTaking taking = {.db = db, .sub = sub};
	EvbusInternal internal;
	EvbusEvent *due;
	int			rows;
	int			n = 0;
	int			good = 0;

	if ((int64) pg_atomic_read_u64(&shared->retry_due) > now)
		return 0;
	if (ordered)
	{
		(void) evbus_ordered_lock(sub, true);
		if (!evbus_order_begin(&taking))
		{
			uint64		seen = pg_atomic_read_u64(&shared->retry_due);

			/* What was handed out before the order was another has to be settled first. */
			evbus_ordered_unlock(sub);
			if ((int64) seen <= now)
				(void) pg_atomic_compare_exchange_u64(&shared->retry_due, &seen, (uint64) (now + LOOK_AGAIN));
			return 0;
		}
	}

	evbus_pin_look(db, sub->slot);

	evbus_internal_begin(&internal);
	rows = (int) find_due(sub, now, (int64) max + shared->n_held + shared->n_returned);
	due = palloc0(sizeof(EvbusEvent) * Max(rows, 1));
	for (int r = 0; r < rows; r++)
	{
		due[r].event_id = DatumGetInt64(evbus_column(r, 1, NULL));
		if (ordered)
		{
			bool		isnull;
			Datum		key = evbus_column(r, 3, &isnull);

			due[r].position = DatumGetInt64(evbus_column(r, 2, NULL));
			due[r].key = isnull ? NULL : copy_text(key, &due[r].key_len, context);
		}
	}
	for (int r = 0; r < rows && n < max; r++)
		if (evbus_cursor_claim_retry(db, sub, &due[r], ordered ? &taking : NULL, &claims[n]))
		{
			(void) evbus_pin(db, &claims[n], EVBUS_PIN_RECEIVED);	/* an error gives it back */
			memset(&events[n], 0, sizeof(EvbusEvent));
			events[n++].event_id = due[r].event_id;
		}
	evbus_internal_end(&internal);
	/* What is due and was not taken (no lease left, or in other hands) is looked at again. */
	lower_due(shared, n == max ? now : n < rows ? now + USECS_PER_SEC : next_due(sub, now));
	if (ordered)
		evbus_ordered_unlock(sub);

	/* Under the lease: is it still there? */
	for (int i = 0; i < n; i++)
	{
		if (!evbus_retry_load(sub, &events[i]))
			evbus_cursor_drop(db, &claims[i]);
		else if (!XactReadOnly && passed_over(db, sub, &events[i]) && evbus_pin(db, &claims[i], EVBUS_PIN_ACK))
			evbus_retry_settle(sub, events[i].event_id);	/* who may not write delivers it */
		else
		{
			events[good] = events[i];
			claims[good] = claims[i];
			events[good].attempt += claims[good].attempts;
			good++;
		}
	}
	return good;
}
