/*-------------------------------------------------------------------------
 * delivery.c
 *	  Clients: receive, wait, channel.  What they say of what they got is in settle.c,
 *	  a batch as lines in lines.c.
 *
 * receive() leases deliveries in shared memory and writes nothing; what it is told
 * to ack beforehand it acks as evbus.ack() does.  Receive, work and ack in one
 * transaction are exactly once; in several, at least once.
 *-------------------------------------------------------------------------
 */
#include "delivery.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "args.h"
#include "breaker.h"
#include "clock.h"
#include "cursor.h"
#include "dead_letter.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "ledger.h"
#include "memory.h"
#include "miscadmin.h"
#include "pin.h"
#include "nodes/parsenodes.h"
#include "ordered.h"
#include "pace.h"
#include "point.h"
#include "priority.h"
#include "privilege.h"
#include "reader.h"
#include "retry.h"
#include "ring.h"
#include "settle.h"
#include "stat_outbox.h"
#include "storage/latch.h"
#include "trace.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "wait.h"

#define CLAIM_MAX		4096	/* positions looked at per claim */
#define KEEP_BYTES		(8 * 1024 * 1024)	/* of freed memory, by a process that receives batches */
#define WAIT_STEP_MS	100		/* leases and retries become due without a wake-up */
#define WAIT_MAX		(60 * USECS_PER_SEC)
#define REPLAY_SHARE	8		/* of so many deliveries one is of a replay, if there is one */

PG_FUNCTION_INFO_V1(evbus_receive);
PG_FUNCTION_INFO_V1(evbus_wait);
PG_FUNCTION_INFO_V1(evbus_channel);

/* The channel a subscription, and what is replayed to it, notifies on; name has NAMEDATALEN bytes. */
void
evbus_channel_name(const EvbusSubscription *sub, char *name)
{
	if (snprintf(name, NAMEDATALEN, "evbus_%s", sub->name) >= NAMEDATALEN)
		snprintf(name, NAMEDATALEN, "evbus_%d", sub->replay_of != 0 ? sub->replay_of : sub->subscription_id);
}

/* A subscription that the caller may consume from. */
static EvbusSubscription *
consumer_subscription(const char *name)
{
	EvbusSubscription *sub = evbus_subscription_get(name, false);
	EvbusBus	bus;

	evbus_check_subscription(sub, GetUserId(), EVBUS_CONSUME);
	if (evbus_bus_by_id(sub->bus_id, &bus))
		evbus_check_bus(&bus, sub->owner, EVBUS_SUBSCRIBE);	/* it is his */
	if (sub->has_handler)
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_WRONG_KIND),
				 errmsg("subscription \"%s\" has a handler", sub->name),
				 errdetail("Its events go to %s.%s.", sub->handler_schema, sub->handler_name),
				 errhint("Receive from a subscription that was made without a handler.")));
	return sub;
}

/*
 * False: it has ended or moved; or it is a replay that this transaction has made, at a place that
 * is not free yet, or of what it has changed; of a subscription that is an error.
 */
static bool
attach(EvbusDb *db, const EvbusSubscription *sub)
{
	if (!evbus_cursor_loaded(db, sub))
	{
		EvbusSubscription *now = evbus_subscription_by_id(sub->subscription_id);

		/* What has ended since we asked must not take its place again, which another may have by now. */
		if (now == NULL || now->epoch != sub->epoch)
			return false;
	}
	/* What it does not want any more is passed over at once, for everybody: that a rollback could not undo. */
	if (!sub->changed && evbus_ledger_attach(db, sub))
		return true;
	if (sub->replay_of == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" was made, moved or changed in this transaction", sub->name),
				 errhint("Commit before receiving from it.")));
	return false;
}

/* --------------------------------------------------------------------- take */

/* What cannot be delivered: a dead letter, in this transaction; false: somebody else has settled it. */
static bool
give_up(EvbusDb *db, const EvbusSubscription *sub, EvbusDelivery *d,
		const char *reason, const char *sqlstate, const char *message)
{
	EvbusRange	range;
	int64		wait;

	if (!evbus_pin(db, &d->claim, EVBUS_PIN_ACK))
		return false;
	/* As a probe it says nothing of what else may be down. */
	(void) evbus_breaker_failed(db, sub, d->event.event_id, ERRCODE_DATA_CORRUPTED, true, message, &wait);
	evbus_dead_letter_add(db, sub, &d->event, reason, sqlstate, message);
	if (!d->retry && evbus_cursor_range(db, &d->claim, &range))
	{
		evbus_ledger_wait_ticked(db, sub, range.hi);
		evbus_ledger_append(db, sub, &range, 1);
	}
	return true;
}

/* Its filter has no answer: a dead letter, so that those behind it are delivered.  Errors in a transaction that may not write. */
static void
refuse(EvbusDb *db, const EvbusSubscription *sub, EvbusDelivery *d)
{
	const EvbusFault *fault = d->event.fault;

	if (XactReadOnly)
		ereport(ERROR,
				(errcode(fault->sqlerrcode),
				 errmsg("event " INT64_FORMAT " cannot be delivered to subscription \"%s\": %s", d->event.event_id, sub->name, fault->message),
				 errhint("Receive in a transaction that may write: there it becomes a dead letter.")));
	if (give_up(db, sub, d, "permanent", unpack_sql_state(fault->sqlerrcode), fault->message))
		ereport(WARNING,
				(errcode(fault->sqlerrcode),
				 errmsg("event " INT64_FORMAT " is not delivered to subscription \"%s\": %s", d->event.event_id, sub->name, fault->message),
				 errdetail("It is a dead letter now."),
				 errhint("Once redriven it is delivered, whatever the filter says.")));
}

/* How many more to look for, of max. */
static int
more(const EvbusTaken *t, int64 bytes_max, int max)
{
	return evbus_read_more(t->n, t->bytes, bytes_max, max);
}

/* One more is taken; or given up. */
static void
add(EvbusTaken *t, const EvbusEvent *event, const EvbusClaim *claim, int attempt, bool retry)
{
	EvbusDelivery *d = &t->deliveries[t->n];

	d->event = *event;
	d->sub = t->sub;
	d->event.attempt = attempt;
	d->claim = *claim;
	d->retry = retry;
	if (unlikely(event->fault != NULL))
	{
		refuse(t->db, t->sub, d);
		return;
	}
	/* Its lease ran out too often.  (Who may not write delivers it once more instead; so is a probe.) */
	if (attempt > t->sub->max_attempts && !XactReadOnly && !t->probe)
	{
		d->event.attempt = t->sub->max_attempts;
		(void) give_up(t->db, t->sub, d, "max_attempts", "VB000", "the lease ran out on every attempt");
		return;
	}
	t->n++;
	t->bytes += evbus_event_bytes(event);
}

/* Take due retries, up to max deliveries. */
static void
take_retries(EvbusTaken *t, int max, int64 bytes_max)
{
	EvbusEvent *events = palloc(sizeof(EvbusEvent) * max);
	EvbusClaim *claims = palloc(sizeof(EvbusClaim) * max);
	int			look;

	while ((look = more(t, bytes_max, max - t->n)) > 0)
	{
		int			claimed = evbus_retry_claim(t->db, t->sub, look, events, claims);

		for (int i = 0; i < claimed; i++)
		{
			evbus_cursor_set_expiry(t->db, &claims[i], events[i].event_id, t->expires_at);
			add(t, &events[i], &claims[i], events[i].attempt, true);
		}
		if (claimed < look || bytes_max == 0)
			break;
	}
	pfree(events);
	pfree(claims);
}

/* The same, as many as the subscription's rate has. */
static void
take_due_retries(EvbusTaken *t, int max, int64 bytes_max)
{
	int			before = t->n;
	int			due = evbus_pace_take(t->db, t->sub, max - before, true);

	take_retries(t, before + due, bytes_max);
	evbus_pace_put_back(t->db, t->sub, due - (t->n - before), true);
}

/* Take events in order of position, up to max deliveries. */
static void
take_events(EvbusTaken *t, int max, int64 bytes_max, XLogRecPtr *lsn, bool *short_of_leases)
{
	EvbusDb    *db = t->db;
	const EvbusSubscription *sub = t->sub;
	int64		look = more(t, bytes_max, max - t->n);
	EvbusClaim *claims = palloc(sizeof(EvbusClaim) * max);

	while (t->n < max && look > 0)
	{
		EvbusEvents found = {0};
		EvbusClaim	claim;
		int			made;

		CHECK_FOR_INTERRUPTS();
		if (!evbus_cursor_claim(db, sub, Min(look, CLAIM_MAX), &claim))
		{
			*short_of_leases = !evbus_lease_available(db, sub->slot) &&
				evbus_cursor_has_work(db, sub, GetCurrentTimestamp());
			break;
		}
		(void) evbus_pin(db, &claim, EVBUS_PIN_RECEIVED);
		evbus_read(db, sub, claim.scan_from, claim.hi, &found);
		*lsn = Max(*lsn, found.lsn);
		if (found.n == 0)
		{
			evbus_ledger_pass_over(db, sub, &claim);
			evbus_read_settled(db, sub, &found, claim.hi);
			look = Min(look * 2, CLAIM_MAX);
			continue;
		}
		if (found.n > max - t->n)
		{
			if (evbus_cursor_cut(db, &claim, found.events[max - t->n - 1].position + 1))
				found.n = max - t->n;
			else
			{
				evbus_cursor_return(db, &claim, 0);
				*short_of_leases = true;
				break;
			}
		}
		EVBUS_POINT("receive.claimed");
		evbus_pin_room(found.n);
		made = evbus_cursor_split(db, &claim, found.events, found.n, t->expires_at, claims);
		evbus_pin_received(db, claims + 1, made - 1);	/* the first one is the claim's */
		evbus_read_settled(db, sub, &found, made == found.n ? claim.hi : made > 0 ? found.events[made - 1].position + 1 : 0);
		for (int i = 0; i < made; i++)
			add(t, &found.events[i], &claims[i], 1 + claims[i].attempts, false);
		if (made < found.n)
		{
			*short_of_leases = true;
			break;
		}
		if (bytes_max > 0)
			look = more(t, bytes_max, max - t->n);
	}
	pfree(claims);
}

/* The same for a subscription in order, or by priority. */
static void
take_in_order(EvbusTaken *t, int max, int64 bytes_max, XLogRecPtr *lsn, bool *short_of_leases)
{
	EvbusClaim *claims = palloc(sizeof(EvbusClaim) * max);
	EvbusEvents found = {0};

	if (t->n < max && (bytes_max == 0 || t->bytes < bytes_max))
		(void) (t->sub->by_priority ? evbus_priority_take : evbus_ordered_take)
			(t->db, t->sub, max - t->n, bytes_max == 0 ? 0 : bytes_max - t->bytes, false, t->expires_at, &found, claims);
	*lsn = Max(*lsn, found.lsn);
	for (int i = 0; i < found.n; i++)
		add(t, &found.events[i], &claims[i], 1 + claims[i].attempts, false);
	*short_of_leases = t->n == 0 && !evbus_lease_available(t->db, t->sub->slot) &&
		evbus_cursor_has_work(t->db, t->sub, GetCurrentTimestamp());
	pfree(claims);
}

/* Of what was committed before the call, on the buses of these subscriptions, is everything to be found by it. */
void
evbus_wait_placed(EvbusDb *db, const EvbusSubscription *subs, int n, uint64 tail)
{
	int		   *slots;

	if (pg_atomic_read_u64(&db->ring_drained) >= tail)
		return;
	slots = palloc(sizeof(int) * Max(n, 1));
	for (int i = 0; i < n; i++)
		slots[i] = subs[i].bus_slot;
	evbus_ring_wait_placed(db, slots, n, tail);
	pfree(slots);
}

static bool
any_has_work(EvbusDb *db, const EvbusSubscription *subs, int n)
{
	for (int i = 0; i < n; i++)
		if (evbus_cursor_has_work(db, &subs[i], GetCurrentTimestamp()))
			return true;
	return false;
}

/* Take up to max deliveries of a subscription or, of a replay of it, as many as are due. */
static void
take_from(EvbusTaken *t, const EvbusSubscription *from, int max, int64 bytes_max, XLogRecPtr *lsn, bool *short_of_leases)
{
	const EvbusSubscription *of = t->sub;
	int			end = t->n + max;
	int			before;
	int			due;
	bool		short_here = false;
	bool		new_first = t->probe && evbus_breaker_new_first();

	t->sub = from;
	if (!new_first)
		take_due_retries(t, end, bytes_max);
	before = t->n;
	due = evbus_pace_take(t->db, from, end - before, false);
	if (due > 0 && from->ordering == EVBUS_ORDER_NONE && !from->by_priority)
		take_events(t, before + due, bytes_max, lsn, &short_here);
	else if (due > 0)
		take_in_order(t, before + due, bytes_max, lsn, &short_here);
	evbus_pace_put_back(t->db, from, due - (t->n - before), false);
	if (new_first)
		take_due_retries(t, end, bytes_max);
	*short_of_leases = *short_of_leases || short_here;
	t->sub = of;
}

/* The same of its replays, in turn. */
static void
take_replayed(EvbusTaken *t, int max, int64 bytes_max, XLogRecPtr *lsn, bool *short_of_leases)
{
	static uint32 next = 0;
	int			end = t->n + max;

	next++;
	for (int i = 0; i < t->n_replays && t->n < end; i++)
	{
		const EvbusSubscription *replay = &t->replays[(next + i) % t->n_replays];

		if (evbus_cursor_has_work(t->db, replay, GetCurrentTimestamp()) && attach(t->db, replay))
			take_from(t, replay, end - t->n, bytes_max, lsn, short_of_leases);
	}
}

/*
 * What is new comes first, and what room there is left is for replays.  But these are
 * not to wait for ever where the live flow fills every call: of REPLAY_SHARE deliveries
 * one is of a replay, if there is one.  So what is owed to them comes first.  tail: of
 * the ring when the call began: what was committed before is not passed over.
 */
static void
take_all(EvbusTaken *t, int max, int64 bytes_max, uint64 tail, XLogRecPtr *lsn, bool *short_of_leases)
{
	pg_atomic_uint32 *owed = &EVBUS_SUB(t->db, t->sub->slot)->owed;
	int64		debt;
	int			live;

	if (t->n_replays == 0)
	{
		take_from(t, t->sub, max, bytes_max, lsn, short_of_leases);
		return;
	}
	debt = pg_atomic_read_u32(owed);
	take_replayed(t, (int) Min(max, debt / (REPLAY_SHARE - 1)), bytes_max, lsn, short_of_leases);
	live = t->n;
	take_from(t, t->sub, max - t->n, bytes_max, lsn, short_of_leases);
	if (t->n == live && live < max && pg_atomic_read_u64(&t->db->ring_drained) < tail)
	{
		evbus_wait_placed(t->db, t->sub, 1, tail);
		take_from(t, t->sub, max - t->n, bytes_max, lsn, short_of_leases);
	}
	live = t->n - live;
	take_replayed(t, max - t->n, bytes_max, lsn, short_of_leases);

	/* One call need not know of another: it is a share, about. */
	debt += live - (int64) (t->n - live) * (REPLAY_SHARE - 1);
	if (t->n < max || !any_has_work(t->db, t->replays, t->n_replays))
		debt = 0;				/* they got all there is */
	pg_atomic_write_u32(owed, (uint32) Max(Min(debt, (int64) max * (REPLAY_SHARE - 1)), 0));
}

/* All that was taken goes back. */
static void
give_back(EvbusTaken *t)
{
	while (t->n > 0)
		evbus_cursor_return(t->db, &t->deliveries[--t->n].claim, 0);
	t->bytes = 0;
}

/* Is there anything that a call might get? */
static bool
has_work(EvbusDb *db, const EvbusSubscription *sub, const EvbusSubscription *replays, int n)
{
	return evbus_cursor_has_work(db, sub, GetCurrentTimestamp()) || any_has_work(db, replays, n);
}

/*
 * What a call of receive() or its like gets, by its arguments: subscription,
 * max_events, lease, wait, ack; by its name, and that with the argument ack.
 * bytes_max > 0: no more are taken when they have, as they are stored, so many bytes.
 * A rollback of the transaction gives all of it back.
 */
void
evbus_take(FunctionCallInfo fcinfo, const char *function, const char *acking, int64 bytes_max, EvbusTaken *t)
{
	char	   *name = evbus_arg_text(fcinfo, 0, "subscription");
	int			max = evbus_arg_int(fcinfo, 1, "max_events", 1, EVBUS_BATCH_MAX);
	int64		lease = PG_ARGISNULL(2) ? -1 : evbus_arg_interval(fcinfo, 2, "lease", USECS_PER_SEC, USECS_PER_DAY);
	int64		wait = PG_ARGISNULL(3) ? 0 : evbus_arg_interval(fcinfo, 3, "wait", 0, WAIT_MAX);
	EvbusDb    *db = evbus_db();
	int64		deadline;
	uint64		tail;
	XLogRecPtr	lsn = InvalidXLogRecPtr;
	bool		short_of_leases;
	bool		acked = false;
	static int64 last_bytes = 0;

	t->db = db;
	t->sub = consumer_subscription(name);
	t->replays = evbus_subscription_replays(t->sub, &t->n_replays);
	t->deliveries = palloc_extended(sizeof(EvbusDelivery) * max, MCXT_ALLOC_HUGE);
	t->n = 0;
	t->bytes = 0;
	PreventCommandDuringRecovery(function);
	PreventCommandIfParallelMode(function);
	evbus_db_require_ready(db);
	if (!PG_ARGISNULL(4) && !evbus_arg_empty(fcinfo, 4))
	{
		acked = evbus_settle_ack(fcinfo, 4, "ack", acking) > 0;
		wait = 0;				/* undone as long as we do not come back, and the table locked */
		t->sub = consumer_subscription(name);	/* that may have taken a while */
		t->replays = evbus_subscription_replays(t->sub, &t->n_replays);
	}

	tail = t->sub->is_volatile ? 0 : pg_atomic_read_u64(&db->ring_tail);	/* those of a volatile bus have their positions */
	if (max > 1)
		evbus_keep_memory(KEEP_BYTES);
	if (last_bytes > KEEP_BYTES)
		evbus_trim_memory();	/* the batch before this one, which is gone by now */
	deadline = evbus_uptime() + wait;
	for (;;)
	{
		const EvbusSubscription *sub = t->sub;
		int64		left;

		short_of_leases = false;
		t->expires_at = GetCurrentTimestamp() + (lease >= 0 ? lease : sub->lease);
		if (!sub->paused)
		{
			EvbusAdmission admission;

			(void) attach(db, sub);
			admission = evbus_breaker_admit(db, sub);
			t->probe = admission == EVBUS_ADMIT_PROBE;
			if (admission != EVBUS_ADMIT_NONE)
				take_all(t, t->probe ? 1 : max, bytes_max, tail, &lsn, &short_of_leases);
			if (t->n > 0 && !evbus_subscription_runs(sub))
				give_back(t);	/* whoever paused it may have seen nothing in hand */
			if (t->probe && t->n > 0)
				evbus_breaker_probe_is(t->deliveries[0].event.event_id, &t->deliveries[0].claim);
			else if (t->probe)
				evbus_breaker_probe_end(false);
			/* Those of what was just acked are free at commit: the next call will see. */
			if (t->n == 0 && short_of_leases && !acked)
				ereport(ERROR,
						(errcode(ERRCODE_EVBUS_NO_LEASES),
						 errmsg("no lease is left for subscription \"%s\"", sub->name),
						 errdetail("%d of %d leases are in use. One subscription may hold half of them, clients together seven eighths.",
								   (int) db->leases_used, evbus_max_leases),
						 errhint("Ack what was received and commit, receive fewer at once, try again when other clients have acked, or raise evbus.max_leases.")));
		}
		left = deadline - evbus_uptime();
		if (t->n > 0)
			break;
		if (pg_atomic_read_u64(&db->ring_drained) < tail && !sub->paused)
		{
			evbus_wait_placed(db, sub, 1, tail);
			tail = 0;
			continue;
		}
		if (left <= 0)
			break;
		ConditionVariablePrepareToSleep(&db->drained_cv);
		evbus_ring_await(db, sub->bus_slot, EVBUS_AWAITED_CV);
		if (sub->paused || !has_work(db, sub, t->replays, t->n_replays))
			(void) ConditionVariableTimedSleep(&db->drained_cv,
											   Min(WAIT_STEP_MS, Max(left / 1000, 1)), evbus_wait_event(EVBUS_WAIT_RECEIVE));
		ConditionVariableCancelSleep();
		CHECK_FOR_INTERRUPTS();
		t->sub = consumer_subscription(name);
		t->replays = evbus_subscription_replays(t->sub, &t->n_replays);
	}

	if (t->n > 0)
	{
		TimestampTz now = GetCurrentTimestamp();

		for (int i = 0; i < t->n; i++)
		{
			EvbusDelivery *d = &t->deliveries[i];

			evbus_stat_delivered(db, d->sub, &d->event, now);
			if (evbus_traced(db, d->sub))
				evbus_trace_event(d->sub, d->event.event_id, "received, type \"%.*s\", position " INT64_FORMAT ", attempt %d", d->event.type_len, d->event.type, d->event.position, d->event.attempt);
		}
	}

	/* A publisher may have committed asynchronously: nobody outside sees it before it is safe. */
	if (lsn != InvalidXLogRecPtr)
		XLogFlush(lsn);
	last_bytes = t->bytes;
}

/*
 * The i-th cannot be decoded: a dead letter, so that those behind it are delivered.
 * Errors XX001 in a transaction that may not write.
 */
void
evbus_taken_damaged(const EvbusTaken *t, int i)
{
	EvbusDelivery *d = &t->deliveries[i];

	if (XactReadOnly)
		evbus_event_damaged(&d->event);
	evbus_stat_not_delivered(t->db, d->sub, &d->event);
	if (give_up(t->db, d->sub, d, "permanent", unpack_sql_state(ERRCODE_DATA_CORRUPTED), "the stored event data cannot be decoded"))
		ereport(WARNING,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("event " INT64_FORMAT " is not delivered to subscription \"%s\": its stored data cannot be decoded",
						d->event.event_id, d->sub->name),
				 errdetail("It is a dead letter now.")));
}

/* The receipt of the i-th. */
EvbusReceipt
evbus_taken_receipt(const EvbusTaken *t, int i)
{
	return (EvbusReceipt) {
		.incarnation = evbus_receipt_incarnation(t->db),
		.event_id = t->deliveries[i].event.event_id,
		.subscription_id = t->deliveries[i].sub->subscription_id,
		.sub_slot = t->deliveries[i].sub->slot,
		.lease = t->deliveries[i].claim.lease,
		.epoch = t->deliveries[i].claim.epoch
	};
}

/*
 * evbus.receive(subscription text, max_events integer, lease interval, wait interval,
 * ack text[]) returns setof evbus.delivery
 *
 * Leases up to max_events (1 to 10000) deliveries: retries that are due first,
 * then events in order of position, and then what is being replayed to it; of
 * that one in eight deliveries at least, if there is any.  lease: 1 second to 1 day, NULL the
 * subscription's.  wait: 0 to 60 seconds, NULL not at all; returns as soon as
 * there is one.  Takes effect at once; rolled back, the deliveries go back at once.
 * An event whose stored data is damaged becomes a dead letter instead (XX001).
 * ack: receipts, of whatever subscription, that are acked first, as evbus.ack()
 * does.  With any of them it does not wait: they would stay undone meanwhile.
 * Errors: 22004, 22023, 42501 not the owner, VB004, VB009, VB012 no lease left,
 * VB013 the subscription has a handler; with receipts those of evbus.ack().
 */
Datum
evbus_receive(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	EvbusTaken	taken;
	MemoryContext rows;
	MemoryContext old;

	evbus_take(fcinfo, "evbus.receive()", "evbus.receive(ack => ...)", 0, &taken);
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	rows = AllocSetContextCreate(CurrentMemoryContext, "evbus rows", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(rows);
	for (int i = 0; i < taken.n; i++)
	{
		EvbusReceipt receipt = evbus_taken_receipt(&taken, i);
		EvbusDelivery *d = &taken.deliveries[i];
		Datum		values[12];
		bool		nulls[12];

		values[0] = PointerGetDatum(evbus_receipt_out(&receipt));
		nulls[0] = false;
		if (!evbus_event_values(&d->event, d->sub, values + 1, nulls + 1))
		{
			evbus_taken_damaged(&taken, i);
			continue;
		}
		values[11] = values[10];	/* replayed */
		nulls[11] = false;
		values[10] = TimestampTzGetDatum(taken.expires_at);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		MemoryContextReset(rows);	/* the next row takes the same, while it is in the processor's cache */
	}
	MemoryContextSwitchTo(old);
	return (Datum) 0;
}

/* --------------------------------------------------------------------- wait */

/* Is there really something to receive?  What is of other types is passed over. */
static bool
peek(EvbusDb *db, const EvbusSubscription *sub)
{
	bool		found = false;
	bool		there;
	bool		pushed = !ActiveSnapshotSet();

	if (pushed)
		PushActiveSnapshot(GetTransactionSnapshot());
	there = attach(db, sub);
	if (there && evbus_retry_next(db, sub) <= GetCurrentTimestamp())
		found = true;
	else if (there && sub->ordering != EVBUS_ORDER_NONE)
	{
		EvbusEvents events = {0};
		EvbusClaim	claim;

		/* With an end, so that an error gives it back. */
		found = evbus_ordered_take(db, sub, 1, 0, false, GetCurrentTimestamp() + sub->lease, &events, &claim) > 0;
		if (found)
			evbus_cursor_return(db, &claim, 0);
	}
	while (there && !found && sub->ordering == EVBUS_ORDER_NONE)
	{
		EvbusEvents events = {0};
		EvbusClaim	claim;

		CHECK_FOR_INTERRUPTS();
		if (!evbus_cursor_claim(db, sub, CLAIM_MAX, &claim))
			break;
		(void) evbus_pin(db, &claim, EVBUS_PIN_RECEIVED);	/* an error gives it back */
		evbus_read(db, sub, claim.scan_from, claim.hi, &events);
		found = events.n > 0;
		if (found)
			evbus_cursor_return(db, &claim, 0);
		else
		{
			evbus_ledger_pass_over(db, sub, &claim);
			evbus_read_settled(db, sub, &events, claim.hi);
		}
	}
	if (pushed)
		PopActiveSnapshot();
	return found;
}

/* The same of a subscription and its replays. */
static bool
peek_all(EvbusDb *db, const EvbusSubscription *sub, const EvbusSubscription *replays, int n)
{
	bool		found = evbus_cursor_has_work(db, sub, GetCurrentTimestamp()) && peek(db, sub);

	for (int i = 0; i < n && !found; i++)
		found = evbus_cursor_has_work(db, &replays[i], GetCurrentTimestamp()) && peek(db, &replays[i]);
	return found;
}

/*
 * CALL evbus.wait(subscription text, timeout interval)
 *
 * Returns when the subscription has something to receive, or after timeout (0 to
 * 1 hour).  Outside a transaction block it commits first and so holds back no
 * vacuum; inside one it waits with the snapshot that is held anyway.
 * Errors: 22004, 22023, 42501, VB004, VB009, VB013.
 */
Datum
evbus_wait(PG_FUNCTION_ARGS)
{
	bool		atomic = !(fcinfo->context && IsA(fcinfo->context, CallContext)) ||
		((CallContext *) fcinfo->context)->atomic;
	char	   *name = MemoryContextStrdup(PortalContext ? PortalContext : CurrentMemoryContext,
										   evbus_arg_text(fcinfo, 0, "subscription"));
	int64		timeout = evbus_arg_interval(fcinfo, 1, "timeout", 0, USECS_PER_HOUR);
	int64		deadline = evbus_uptime() + timeout;
	EvbusDb    *db = evbus_db();
	EvbusSubscription *sub;
	EvbusSubscription *replays;
	int			n_replays;
	MemoryContext old = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(PortalContext ? PortalContext : CurrentMemoryContext, "evbus wait", ALLOCSET_DEFAULT_SIZES);

	MemoryContextSwitchTo(context);
	sub = consumer_subscription(name);
	replays = evbus_subscription_replays(sub, &n_replays);
	MemoryContextSwitchTo(old);

	PreventCommandDuringRecovery("evbus.wait()");
	evbus_db_require_ready(db);
	if (!atomic && SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect_ext failed");
	for (;;)
	{
		int64		left;

		MemoryContextSwitchTo(context);
		if (!sub->paused && has_work(db, sub, replays, n_replays) && peek_all(db, sub, replays, n_replays))
			break;
		if (evbus_uptime() >= deadline)
			break;
		if (!atomic)
			SPI_commit();		/* the snapshot goes, and with it what holds back vacuum */
		InvalidateCatalogSnapshot();
		ConditionVariablePrepareToSleep(&db->drained_cv);
		for (;;)
		{
			evbus_ring_await(db, sub->bus_slot, EVBUS_AWAITED_CV);
			left = deadline - evbus_uptime();
			if (left <= 0 || has_work(db, sub, replays, n_replays))
				break;
			(void) ConditionVariableTimedSleep(&db->drained_cv,
											   Min(WAIT_STEP_MS, Max(left / 1000, 1)), evbus_wait_event(EVBUS_WAIT_RECEIVE));
		}
		ConditionVariableCancelSleep();
		MemoryContextReset(context);
		MemoryContextSwitchTo(context);
		sub = consumer_subscription(name);
		replays = evbus_subscription_replays(sub, &n_replays);
		if (sub->paused)
			(void) WaitLatch(MyLatch, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, WAIT_STEP_MS, evbus_wait_event(EVBUS_WAIT_RECEIVE));
		CHECK_FOR_INTERRUPTS();
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	if (!atomic)
		SPI_finish();
	PG_RETURN_VOID();
}

/* evbus.channel(subscription text) returns text.  Errors: 22004, VB004. */
Datum
evbus_channel(PG_FUNCTION_ARGS)
{
	EvbusSubscription *sub = evbus_subscription_get(evbus_arg_text(fcinfo, 0, "subscription"), false);
	char		name[NAMEDATALEN];

	evbus_channel_name(sub, name);
	PG_RETURN_TEXT_P(cstring_to_text(name));
}
