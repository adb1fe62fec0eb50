/*-------------------------------------------------------------------------
 * delivery.c
 *	  Clients: receive, ack, nack, reject, extend, release, wait.
 *
 * receive() leases deliveries in shared memory and writes nothing.  The others
 * are transactional: they pin leases (cursor.c) and write to the ledger, to
 * evbus.retry or to the dead letters, and all of it takes effect together when
 * the caller commits.  So receive, work and ack in one transaction are exactly
 * once; in several, at least once.
 *-------------------------------------------------------------------------
 */
#include "delivery.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "args.h"
#include "clock.h"
#include "cursor.h"
#include "dead_letter.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "ledger.h"
#include "miscadmin.h"
#include "pin.h"
#include "nodes/parsenodes.h"
#include "point.h"
#include "reader.h"
#include "receipt.h"
#include "retry.h"
#include "ring.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define CLAIM_MAX		4096	/* positions looked at per claim */
#define WAIT_STEP_MS	100		/* leases and retries become due without a wake-up */
#define WAIT_MAX		(60 * USECS_PER_SEC)

PG_FUNCTION_INFO_V1(evbus_receive);
PG_FUNCTION_INFO_V1(evbus_ack);
PG_FUNCTION_INFO_V1(evbus_nack);
PG_FUNCTION_INFO_V1(evbus_reject);
PG_FUNCTION_INFO_V1(evbus_extend);
PG_FUNCTION_INFO_V1(evbus_release);
PG_FUNCTION_INFO_V1(evbus_wait);
PG_FUNCTION_INFO_V1(evbus_channel);

/* A delivery on its way out. */
typedef struct Delivery
{
	EvbusEvent	event;
	EvbusClaim	claim;
} Delivery;

/* The channel a subscription notifies on; name has NAMEDATALEN bytes. */
void
evbus_channel_name(const EvbusSubscription *sub, char *name)
{
	if (snprintf(name, NAMEDATALEN, "evbus_%s", sub->name) >= NAMEDATALEN)
		snprintf(name, NAMEDATALEN, "evbus_%d", sub->subscription_id);
}

/* A subscription that the caller may consume from. */
static EvbusSubscription *
consumer_subscription(const char *name)
{
	EvbusSubscription *sub = evbus_subscription_get(name, false);

	evbus_check_owner(sub->owner, "subscription", sub->name);
	if (sub->has_handler)
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_WRONG_KIND),
				 errmsg("subscription \"%s\" has a handler", sub->name),
				 errdetail("Its events go to %s.%s.", sub->handler_schema, sub->handler_name),
				 errhint("Receive from a subscription that was made without a handler.")));
	return sub;
}

static void
attach(EvbusDb *db, const EvbusSubscription *sub)
{
	if (!evbus_ledger_attach(db, sub))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" was made or moved in this transaction", sub->name),
				 errhint("Commit before receiving from it.")));
}

/* --------------------------------------------------------------------- take */

/*
 * An event whose lease ran out too often: a dead letter, in this transaction.
 * (One that may not write delivers it once more instead.)
 */
static void
give_up(EvbusDb *db, const EvbusSubscription *sub, Delivery *d, bool retry)
{
	EvbusRange	range;

	d->event.attempt = sub->max_attempts;
	if (!evbus_pin(db, &d->claim, EVBUS_PIN_ACK))
		return;
	evbus_dead_letter_add(db, sub, &d->event, "max_attempts", "VB000",
						  "the lease ran out on every attempt");
	if (!retry && evbus_cursor_range(db, &d->claim, &range))
	{
		evbus_ledger_wait_ticked(db, sub, range.hi);
		evbus_ledger_append(db, sub, &range, 1);
	}
}

/* Take due retries; returns how many. */
static int
take_retries(EvbusDb *db, const EvbusSubscription *sub, int max, TimestampTz expires_at, Delivery *out)
{
	EvbusEvent *events = palloc(sizeof(EvbusEvent) * max);
	EvbusClaim *claims = palloc(sizeof(EvbusClaim) * max);
	int			claimed = evbus_retry_claim(db, sub, max, events, claims);
	int			n = 0;

	for (int i = 0; i < claimed; i++)
	{
		out[n].event = events[i];
		out[n].claim = claims[i];
		evbus_cursor_set_expiry(db, &claims[i], events[i].event_id, expires_at);
		if (events[i].attempt > sub->max_attempts && !XactReadOnly)
			give_up(db, sub, &out[n], true);
		else
			n++;
	}
	pfree(events);
	pfree(claims);
	return n;
}

/* Take events in order of position; returns how many. */
static int
take_events(EvbusDb *db, const EvbusSubscription *sub, int max, TimestampTz expires_at,
			Delivery *out, XLogRecPtr *lsn, bool *short_of_leases)
{
	int			n = 0;
	int64		look = max;
	EvbusClaim *claims = palloc(sizeof(EvbusClaim) * max);

	while (n < max)
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
			if (!evbus_cursor_skip(db, &claim))
				evbus_cursor_drop(db, &claim);
			look = Min(look * 2, CLAIM_MAX);
			continue;
		}
		if (found.n > max - n)
		{
			if (evbus_cursor_cut(db, &claim, found.events[max - n - 1].position + 1))
				found.n = max - n;
			else
			{
				evbus_cursor_return(db, &claim, 0);
				*short_of_leases = true;
				break;
			}
		}
		EVBUS_POINT("receive.claimed");
		made = evbus_cursor_split(db, &claim, found.events, found.n, expires_at, claims);
		for (int i = 0; i < made; i++)
		{
			if (i > 0)
				(void) evbus_pin(db, &claims[i], EVBUS_PIN_RECEIVED);
			out[n].event = found.events[i];
			out[n].event.attempt = 1 + claims[i].attempts;
			out[n].claim = claims[i];
			if (out[n].event.attempt > sub->max_attempts && !XactReadOnly)
				give_up(db, sub, &out[n], false);
			else
				n++;
		}
		if (made < found.n)
		{
			*short_of_leases = true;
			break;
		}
	}
	pfree(claims);
	return n;
}

/*
 * evbus.receive(subscription text, max_events integer, lease interval, wait interval)
 * returns setof evbus.delivery
 *
 * Leases up to max_events (1 to 10000) deliveries: retries that are due first,
 * then events in order of position.  lease: 1 second to 1 day, NULL the
 * subscription's.  wait: 0 to 60 seconds, NULL not at all; returns as soon as
 * there is one.  Takes effect at once; rolled back, the deliveries go back at once.
 * Errors: 22004, 22023, 42501 not the owner, VB004, VB009, VB012 no lease left,
 * VB013 the subscription has a handler.
 */
Datum
evbus_receive(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *name = evbus_arg_text(fcinfo, 0, "subscription");
	int			max = evbus_arg_int(fcinfo, 1, "max_events", 1, EVBUS_BATCH_MAX);
	int64		lease = PG_ARGISNULL(2) ? -1 : evbus_arg_interval(fcinfo, 2, "lease", USECS_PER_SEC, USECS_PER_DAY);
	int64		wait = PG_ARGISNULL(3) ? 0 : evbus_arg_interval(fcinfo, 3, "wait", 0, WAIT_MAX);
	EvbusSubscription *sub = consumer_subscription(name);
	EvbusDb    *db = evbus_db();
	int64		deadline = evbus_uptime() + wait;
	TimestampTz expires_at;
	XLogRecPtr	lsn = InvalidXLogRecPtr;
	bool		short_of_leases;
	Delivery   *out = palloc_extended(sizeof(Delivery) * max, MCXT_ALLOC_HUGE);
	int			n = 0;

	PreventCommandDuringRecovery("evbus.receive()");
	PreventCommandIfParallelMode("evbus.receive()");
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	evbus_db_require_ready(db);

	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();
		int64		left;

		short_of_leases = false;
		expires_at = now + (lease >= 0 ? lease : sub->lease);
		if (!sub->paused)
		{
			attach(db, sub);
			n = take_retries(db, sub, max, expires_at, out);
			if (n < max)
				n += take_events(db, sub, max - n, expires_at, out + n, &lsn, &short_of_leases);
			if (n == 0 && short_of_leases)
				ereport(ERROR,
						(errcode(ERRCODE_EVBUS_NO_LEASES),
						 errmsg("no lease is left for subscription \"%s\"", sub->name),
						 errdetail("%d of %d leases are in use. One subscription may hold half of them, clients together seven eighths.",
								   (int) db->leases_used, evbus_max_leases),
						 errhint("Ack what was received, receive less at once, or raise evbus.max_leases.")));
		}
		left = deadline - evbus_uptime();
		if (n > 0 || left <= 0)
			break;
		ConditionVariablePrepareToSleep(&db->drained_cv);
		evbus_ring_await(db, sub->bus_slot, EVBUS_AWAITED_CV);
		if (sub->paused || !evbus_cursor_has_work(db, sub, now))
			(void) ConditionVariableTimedSleep(&db->drained_cv,
											   Min(WAIT_STEP_MS, Max(left / 1000, 1)), PG_WAIT_EXTENSION);
		ConditionVariableCancelSleep();
		CHECK_FOR_INTERRUPTS();
		sub = consumer_subscription(name);
	}

	/* A publisher may have committed asynchronously: nobody outside sees it before it is safe. */
	if (lsn != InvalidXLogRecPtr)
		XLogFlush(lsn);

	for (int i = 0; i < n; i++)
	{
		EvbusReceipt receipt = {
			.incarnation = evbus_receipt_incarnation(db),
			.event_id = out[i].event.event_id,
			.subscription_id = sub->subscription_id,
			.sub_slot = sub->slot,
			.lease = out[i].claim.lease,
			.epoch = out[i].claim.epoch
		};
		Datum		values[11];
		bool		nulls[11];

		values[0] = CStringGetTextDatum(evbus_receipt_out(&receipt));
		nulls[0] = false;
		evbus_event_values(&out[i].event, sub, values + 1, nulls + 1);
		values[10] = TimestampTzGetDatum(expires_at);
		nulls[10] = false;
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* ------------------------------------------------------------------- settle */

/* What a client's receipt turned out to be. */
typedef struct Settled
{
	EvbusReceipt receipt;
	EvbusClaim	claim;
	EvbusLease	lease;			/* as pinned */
} Settled;

static int
settled_by_subscription(const void *a, const void *b)
{
	return ((const Settled *) a)->receipt.subscription_id - ((const Settled *) b)->receipt.subscription_id;
}

/*
 * Read receipts (argument 0) and pin those that are good.  Stale ones are skipped
 * with a WARNING; one that this very transaction received is an ERROR, since its
 * work would be done twice.
 */
static int
pin_receipts(FunctionCallInfo fcinfo, EvbusPinAction action, Settled **out)
{
	Datum	   *texts;
	bool	   *nulls;
	int			n;
	int			good = 0;
	int			stale = 0;
	EvbusDb    *db;
	EvbusSubscription *sub = NULL;
	Settled    *all;

	evbus_arg_array(fcinfo, 0, "receipts", &texts, &nulls, &n);
	evbus_no_nulls(nulls, n, "receipts");
	db = evbus_db();
	evbus_pin_init();
	all = palloc_extended(sizeof(Settled) * Max(n, 1), MCXT_ALLOC_HUGE);
	for (int i = 0; i < n; i++)
	{
		text	   *t = DatumGetTextPP(texts[i]);
		Settled    *s = &all[good];
		EvbusReceipt *r = &s->receipt;

		evbus_receipt_in(VARDATA_ANY(t), VARSIZE_ANY_EXHDR(t), r);
		s->claim = (EvbusClaim) {.sub_slot = r->sub_slot, .lease = r->lease, .epoch = r->epoch};
		if (sub == NULL || sub->subscription_id != r->subscription_id)
			sub = r->incarnation == evbus_receipt_incarnation(db) ? evbus_subscription_by_id(r->subscription_id) : NULL;
		if (sub != NULL)
			evbus_check_owner(sub->owner, "subscription", sub->name);
		/* Attached under its present epoch: what a seek has ended is gone then. */
		if (sub != NULL && r->incarnation == evbus_receipt_incarnation(db) && r->sub_slot == sub->slot &&
			evbus_ledger_attach(db, sub) &&
			evbus_cursor_good(db, &s->claim, r->subscription_id, r->event_id, NULL) &&
			evbus_pin(db, &s->claim, action) &&
			evbus_cursor_good(db, &s->claim, r->subscription_id, r->event_id, &s->lease))
		{
			good++;
			continue;
		}
		if (r->incarnation == evbus_receipt_incarnation(db) &&
			(evbus_pinned_here(&s->claim, EVBUS_PIN_ACK) || evbus_pinned_here(&s->claim, EVBUS_PIN_RELEASE)))
			continue;			/* said before in this transaction */
		if (r->incarnation == evbus_receipt_incarnation(db) && evbus_pinned_here(&s->claim, EVBUS_PIN_RECEIVED))
			ereport(ERROR,
					(errcode(ERRCODE_EVBUS_STALE_RECEIPT),
					 errmsg("the lease of event " INT64_FORMAT " ran out in this transaction", r->event_id),
					 errdetail("Another consumer may have it now, so the work of this transaction must not commit."),
					 errhint("Roll back and receive again, with a longer lease or fewer events.")));
		stale++;
	}
	if (stale > 0)
		ereport(WARNING,
				(errcode(ERRCODE_EVBUS_STALE_RECEIPT),
				 errmsg("%d of %d receipts are stale and changed nothing", stale, n),
				 errdetail("Their lease ran out, was given back or settled, or is of before a restart.")));
	qsort(all, good, sizeof(Settled), settled_by_subscription);
	*out = all;
	return good;
}

/* Write what was pinned to the ledger; n receipts of one subscription. */
static void
write_ledger(EvbusDb *db, const EvbusSubscription *sub, const Settled *all, int n)
{
	EvbusRange *ranges = palloc(sizeof(EvbusRange) * n);
	int			count = 0;
	int64		hi = 0;

	for (int i = 0; i < n; i++)
		if (!all[i].lease.retry)
		{
			ranges[count].lo = all[i].lease.lo;
			ranges[count++].hi = all[i].lease.hi;
			hi = Max(hi, all[i].lease.hi);
		}
	if (count > 0)
	{
		evbus_ledger_wait_ticked(db, sub, hi);
		evbus_ledger_append(db, sub, ranges, count);
	}
	pfree(ranges);
}

/* The event behind a receipt; its attempt counts this delivery. */
static void
load_event(EvbusDb *db, const EvbusSubscription *sub, const Settled *s, EvbusEvent *event)
{
	EvbusEvents found = {0};

	memset(event, 0, sizeof(*event));
	event->event_id = s->receipt.event_id;
	if (s->lease.retry)
	{
		if (evbus_retry_load(sub, event))
		{
			event->attempt += s->lease.attempts;
			return;
		}
	}
	else
	{
		evbus_read(db, sub, s->lease.lo, s->lease.hi, &found);
		for (int i = 0; i < found.n; i++)
			if (found.events[i].event_id == s->receipt.event_id)
			{
				*event = found.events[i];
				event->attempt = 1 + s->lease.attempts;
				return;
			}
	}
	ereport(ERROR,
			(errcode(ERRCODE_NO_DATA_FOUND),
			 errmsg("event " INT64_FORMAT " is past its retention", s->receipt.event_id),
			 errhint("Settle it with evbus.ack().")));
}

/* ack, nack and reject: failure says which; NULL is ack. */
static int
settle(FunctionCallInfo fcinfo, const EvbusFailure *failure, const char *what)
{
	Settled    *all;
	int			n;

	PreventCommandIfReadOnly(what);
	PreventCommandIfParallelMode(what);
	n = pin_receipts(fcinfo, EVBUS_PIN_ACK, &all);
	for (int at = 0; at < n;)
	{
		EvbusDb    *db = evbus_db();
		EvbusSubscription *sub = evbus_subscription_by_id(all[at].receipt.subscription_id);
		int			count = 1;

		while (at + count < n && all[at + count].receipt.subscription_id == sub->subscription_id)
			count++;
		for (int i = at; i < at + count; i++)
		{
			EvbusEvent	event;

			if (failure)
			{
				load_event(db, sub, &all[i], &event);
				evbus_retry_fail(db, sub, &event, failure);
			}
			else if (all[i].lease.retry)
				evbus_retry_settle(sub, all[i].receipt.event_id);
		}
		write_ledger(db, sub, all + at, count);
		at += count;
	}
	return n;
}

/*
 * evbus.ack(receipts text[]) returns integer
 *
 * Marks deliveries as done when the caller commits; returns how many receipts
 * were good.  Stale ones change nothing and give a WARNING; but VB008 if they
 * were received in this transaction.  Errors: 22004, 22023 no receipt, 25006,
 * 42501 not the owner, VB009 the position is not ticked in time.
 */
Datum
evbus_ack(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(settle(fcinfo, NULL, "evbus.ack()"));
}

/*
 * evbus.nack(receipts text[], delay interval, error text) returns integer
 *
 * Reports failed deliveries.  delay: 0 to 365 days until the next attempt, NULL
 * the subscription's backoff; error: kept with the retry, cut to 2 kB.  After
 * max_attempts they become dead letters.  Else as evbus.ack().
 */
Datum
evbus_nack(PG_FUNCTION_ARGS)
{
	EvbusFailure failure = {
		.sqlerrcode = ERRCODE_EVBUS_REPORTED,
		.delay = PG_ARGISNULL(1) ? -1 : evbus_arg_interval(fcinfo, 1, "delay", 0, 365 * USECS_PER_DAY),
		.message = PG_ARGISNULL(2) ? "reported by evbus.nack()" : text_to_cstring(PG_GETARG_TEXT_PP(2))
	};

	PG_RETURN_INT32(settle(fcinfo, &failure, "evbus.nack()"));
}

/*
 * evbus.reject(receipts text[], error text) returns integer
 *
 * Gives up on deliveries: dead letters when the caller commits.  Else as evbus.nack().
 */
Datum
evbus_reject(PG_FUNCTION_ARGS)
{
	EvbusFailure failure = {
		.sqlerrcode = ERRCODE_EVBUS_REPORTED,
		.delay = -1,
		.reject = true,
		.message = PG_ARGISNULL(1) ? "reported by evbus.reject()" : text_to_cstring(PG_GETARG_TEXT_PP(1))
	};

	PG_RETURN_INT32(settle(fcinfo, &failure, "evbus.reject()"));
}

/*
 * evbus.release(receipts text[]) returns integer
 *
 * Gives deliveries back when the caller commits, without counting an attempt.
 * Else as evbus.ack().
 */
Datum
evbus_release(PG_FUNCTION_ARGS)
{
	Settled    *all;

	PG_RETURN_INT32(pin_receipts(fcinfo, EVBUS_PIN_RELEASE, &all));
}

/*
 * evbus.extend(receipts text[], lease interval) returns integer
 *
 * Lets leases end that long (1 second to 1 day) from now; at once, and whatever
 * becomes of the transaction.  Returns how many receipts were good.
 */
Datum
evbus_extend(PG_FUNCTION_ARGS)
{
	Datum	   *texts;
	bool	   *nulls;
	int			n;
	int			good = 0;
	int64		lease = evbus_arg_interval(fcinfo, 1, "lease", USECS_PER_SEC, USECS_PER_DAY);
	EvbusDb    *db = evbus_db();

	evbus_arg_array(fcinfo, 0, "receipts", &texts, &nulls, &n);
	evbus_no_nulls(nulls, n, "receipts");
	for (int i = 0; i < n; i++)
	{
		text	   *t = DatumGetTextPP(texts[i]);
		EvbusReceipt r;
		EvbusClaim	claim;
		EvbusSubscription *sub;

		evbus_receipt_in(VARDATA_ANY(t), VARSIZE_ANY_EXHDR(t), &r);
		if (r.incarnation != evbus_receipt_incarnation(db) ||
			(sub = evbus_subscription_by_id(r.subscription_id)) == NULL)
			continue;
		evbus_check_owner(sub->owner, "subscription", sub->name);
		claim = (EvbusClaim) {.sub_slot = r.sub_slot, .lease = r.lease, .epoch = r.epoch};
		if (evbus_cursor_renew(db, &claim, r.subscription_id, r.event_id, GetCurrentTimestamp() + lease))
			good++;
	}
	if (good < n)
		ereport(WARNING,
				(errcode(ERRCODE_EVBUS_STALE_RECEIPT),
				 errmsg("%d of %d receipts are stale and changed nothing", n - good, n)));
	PG_RETURN_INT32(good);
}

/* --------------------------------------------------------------------- wait */

/* Is there really something to receive?  What is of other types is passed over. */
static bool
peek(EvbusDb *db, const EvbusSubscription *sub)
{
	bool		found = false;
	bool		pushed = !ActiveSnapshotSet();

	if (pushed)
		PushActiveSnapshot(GetTransactionSnapshot());
	attach(db, sub);
	if (evbus_retry_next(db, sub) <= GetCurrentTimestamp())
		found = true;
	while (!found)
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
		else if (!evbus_cursor_skip(db, &claim))
			evbus_cursor_drop(db, &claim);
	}
	if (pushed)
		PopActiveSnapshot();
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
	EvbusSubscription *sub = consumer_subscription(name);
	int64		timeout = evbus_arg_interval(fcinfo, 1, "timeout", 0, USECS_PER_HOUR);
	int64		deadline = evbus_uptime() + timeout;
	EvbusDb    *db = evbus_db();
	EvbusSubscription copy = *sub;
	MemoryContext old = CurrentMemoryContext;
	MemoryContext context;

	PreventCommandDuringRecovery("evbus.wait()");
	evbus_db_require_ready(db);
	if (!atomic && SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect_ext failed");
	context = AllocSetContextCreate(PortalContext ? PortalContext : CurrentMemoryContext, "evbus wait", ALLOCSET_DEFAULT_SIZES);
	for (;;)
	{
		int64		left;

		MemoryContextSwitchTo(context);
		if (!sub->paused && evbus_cursor_has_work(db, sub, GetCurrentTimestamp()) && peek(db, sub))
			break;
		if (evbus_uptime() >= deadline)
			break;
		if (!atomic)
			SPI_commit();		/* the snapshot goes, and with it what holds back vacuum */
		InvalidateCatalogSnapshot();
		ConditionVariablePrepareToSleep(&db->drained_cv);
		for (;;)
		{
			evbus_ring_await(db, copy.bus_slot, EVBUS_AWAITED_CV);
			left = deadline - evbus_uptime();
			if (left <= 0 || evbus_cursor_has_work(db, &copy, GetCurrentTimestamp()))
				break;
			(void) ConditionVariableTimedSleep(&db->drained_cv,
											   Min(WAIT_STEP_MS, Max(left / 1000, 1)), PG_WAIT_EXTENSION);
		}
		ConditionVariableCancelSleep();
		MemoryContextReset(context);
		MemoryContextSwitchTo(context);
		sub = consumer_subscription(name);
		copy = *sub;
		if (sub->paused)
			(void) WaitLatch(MyLatch, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, WAIT_STEP_MS, PG_WAIT_EXTENSION);
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
