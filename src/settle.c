/*-------------------------------------------------------------------------
 * settle.c
 *	  What clients say of their deliveries: ack, nack, reject, release, extend.
 *
 * A receipt names a lease, and is good as long as the lease is what it was then.
 * All but extend are transactional: they pin the leases (pin.c), so that these
 * cannot run out any more, and write to the ledger, to evbus.retry or to the dead
 * letters; all of it takes effect together when the caller commits.
 *-------------------------------------------------------------------------
 */
#include "settle.h"

#include "args.h"
#include "breaker.h"
#include "cursor.h"
#include "ledger.h"
#include "miscadmin.h"
#include "pin.h"
#include "privilege.h"
#include "reader.h"
#include "receipt.h"
#include "retry.h"
#include "stat_outbox.h"
#include "trace.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(evbus_ack);
PG_FUNCTION_INFO_V1(evbus_nack);
PG_FUNCTION_INFO_V1(evbus_reject);
PG_FUNCTION_INFO_V1(evbus_extend);
PG_FUNCTION_INFO_V1(evbus_release);

static int
by_subscription(const void *a, const void *b)
{
	return ((const EvbusHeld *) a)->subscription_id - ((const EvbusHeld *) b)->subscription_id;
}

/* How many of n settled, beginning with the first, are of one subscription. */
static int
run_length(const EvbusHeld *all, int n)
{
	int			count = 1;

	while (count < n && all[count].ours == all[0].ours && all[count].subscription_id == all[0].subscription_id)
		count++;
	return count;
}

/* What this very transaction received is no longer its: its work would be done twice. */
static void
refuse_lost(const EvbusHeld *held)
{
	if (evbus_pinned_here(&held->claim, EVBUS_PIN_RECEIVED))
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_STALE_RECEIPT),
				 errmsg("the lease of event " INT64_FORMAT " ran out in this transaction", held->event_id),
				 errdetail("Another consumer may have it now, so the work of this transaction must not commit."),
				 errhint("Roll back and receive again, with a longer lease or fewer events.")));
}

/* Read receipts, of deliveries and of batches; errors if one never was one. */
static EvbusHeld *
read_receipts(FunctionCallInfo fcinfo, int arg, const char *name, EvbusDb *db, int *n)
{
	Datum	   *texts;
	bool	   *nulls;
	int			n_texts;
	int			room;
	EvbusHeld  *all;
	uint64		incarnation = evbus_receipt_incarnation(db);

	if (PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"%s\" must not be null", name),
				 errhint("An aggregate of no rows is null: pass coalesce(array_agg(receipt), '{}').")));
	evbus_arg_array(fcinfo, arg, name, &texts, &nulls, &n_texts);
	evbus_no_nulls(nulls, n_texts, name);
	room = Max(n_texts, 1);
	all = palloc_extended(sizeof(EvbusHeld) * room, MCXT_ALLOC_HUGE);
	*n = 0;
	for (int i = 0; i < n_texts; i++)
	{
		text	   *t = DatumGetTextPP(texts[i]);
		int			count;
		EvbusReceipt *receipts = evbus_receipts_in(VARDATA_ANY(t), VARSIZE_ANY_EXHDR(t), &count);

		if ((int64) *n + count > Max(evbus_max_leases, EVBUS_BATCH_MAX))
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("too many receipts in one call"),
					 errdetail("There are not more than %d deliveries that could be received.", Max(evbus_max_leases, EVBUS_BATCH_MAX)),
					 errhint("Pass each receipt once.")));
		if (*n + count > room - (n_texts - i - 1))
		{
			room = Max(room * 2, *n + count + n_texts);
			all = repalloc_huge(all, sizeof(EvbusHeld) * room);
		}
		for (int k = 0; k < count; k++)
			all[(*n)++] = (EvbusHeld) {
				.ours = receipts[k].incarnation == incarnation,
				.subscription_id = receipts[k].subscription_id,
				.event_id = receipts[k].event_id,
				.claim = {.sub_slot = receipts[k].sub_slot, .lease = receipts[k].lease, .epoch = receipts[k].epoch}
			};
		pfree(receipts);
	}
	return all;
}

static void
warn_stale(int stale, int n)
{
	if (stale > 0)
		ereport(WARNING,
				(errcode(ERRCODE_EVBUS_STALE_RECEIPT),
				 errmsg("%d of %d receipts are stale and changed nothing", stale, n),
				 errdetail("Their leases ran out, were given back or settled before, or ended with a seek or a restart.")));
}

static void
trace(EvbusDb *db, const EvbusHeld *held, const char *what)
{
	EvbusSubscription *sub = evbus_subscription_by_id(held->subscription_id);

	if (sub && evbus_traced(db, sub))
		evbus_trace_event(sub, held->event_id, "%s", what);
}

/*
 * Pin the leases of the receipts that are good; returns how many, in order of
 * subscription.  Stale ones are skipped with a WARNING; one that this very
 * transaction received is an ERROR, since its work would be done twice.
 */
static int
pin_receipts(FunctionCallInfo fcinfo, int arg, const char *name, EvbusPinAction action, EvbusHeld **out)
{
	EvbusDb    *db = evbus_db();
	int			n;
	int			count;
	int			good = 0;
	int			stale = 0;
	EvbusHeld  *all = read_receipts(fcinfo, arg, name, db, &n);

	evbus_pin_init();
	if (n > 0 && run_length(all, n) < n)
		qsort(all, n, sizeof(EvbusHeld), by_subscription);
	for (int at = 0; at < n; at += count)
	{
		EvbusSubscription *sub = all[at].ours ? evbus_subscription_by_id(all[at].subscription_id) : NULL;

		count = run_length(all + at, n - at);
		if (sub == NULL)
			continue;
		evbus_check_subscription(sub, GetUserId(), EVBUS_CONSUME);
		/* Attached under its present epoch: what a seek has ended is gone then. */
		if (evbus_ledger_attach(db, sub))
			evbus_pin_held(db, sub, all + at, count, action);
	}
	for (int i = 0; i < n; i++)
	{
		EvbusClaim *claim = &all[i].claim;

		CHECK_FOR_INTERRUPTS();
		if (all[i].good)
		{
			all[good++] = all[i];
			if (action == EVBUS_PIN_RELEASE)
				trace(db, &all[i], "released");
			continue;
		}
		if (all[i].ours &&
			(evbus_pinned_here(claim, EVBUS_PIN_ACK) || evbus_pinned_here(claim, EVBUS_PIN_RELEASE)))
			continue;			/* said before in this transaction */
		if (all[i].ours)
			refuse_lost(&all[i]);
		stale++;
	}
	warn_stale(stale, n);
	*out = all;
	return good;
}

/* Write what was pinned to the ledger; n receipts of one subscription. */
static void
write_ledger(EvbusDb *db, const EvbusSubscription *sub, const EvbusHeld *all, int n)
{
	EvbusRange *ranges = palloc(sizeof(EvbusRange) * n);
	int			count = 0;
	int64		hi = 0;

	for (int i = 0; i < n; i++)
		if (!all[i].retry)
		{
			ranges[count].lo = all[i].lo;
			ranges[count++].hi = all[i].hi;
			hi = Max(hi, all[i].hi);
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
load_event(EvbusDb *db, const EvbusSubscription *sub, const EvbusHeld *held, EvbusEvent *event)
{
	EvbusSubscription unfiltered = evbus_subscription_unfiltered(sub);	/* it was delivered: whatever the filter says by now */
	EvbusEvents found = {0};

	memset(event, 0, sizeof(*event));
	event->event_id = held->event_id;
	if (held->retry)
	{
		if (evbus_retry_load(sub, event))
		{
			event->attempt += held->attempts;
			return;
		}
	}
	else
	{
		evbus_read(db, &unfiltered, held->lo, held->hi, &found);
		for (int i = 0; i < found.n; i++)
			if (found.events[i].event_id == held->event_id)
			{
				*event = found.events[i];
				event->attempt = 1 + held->attempts;
				return;
			}
	}
	ereport(ERROR,
			(errcode(ERRCODE_NO_DATA_FOUND),
			 sub->is_volatile ? errmsg("event " INT64_FORMAT " of volatile bus \"%s\" was overwritten", held->event_id, sub->bus_name)
			 : errmsg("event " INT64_FORMAT " is past its retention", held->event_id),
			 errhint("Settle it with evbus.ack().")));
}

/* ack, nack and reject: failure says which; NULL is ack.  Returns how many receipts were good. */
static int
settle(FunctionCallInfo fcinfo, int arg, const char *name, const EvbusFailure *failure, const char *what)
{
	EvbusHeld  *all;
	int			n;
	int			count;
	int			ended = 0;

	PreventCommandIfReadOnly(what);
	PreventCommandIfParallelMode(what);
	n = pin_receipts(fcinfo, arg, name, EVBUS_PIN_ACK, &all);
	for (int at = 0; at < n; at += count)
	{
		EvbusDb    *db = evbus_db();
		EvbusSubscription *sub = evbus_subscription_by_id(all[at].subscription_id);

		count = run_length(all + at, n - at);
		/* Others may have ended or moved it while we waited for a tick or a lock: its leases are void. */
		if (sub == NULL || sub->epoch != all[at].sub_epoch)
		{
			for (int i = at; i < at + count; i++)
				refuse_lost(&all[i]);
			ended += count;
			continue;
		}
		for (int i = at; i < at + count; i++)
		{
			EvbusEvent	event;

			if (failure)
			{
				load_event(db, sub, &all[i], &event);
				evbus_retry_fail(db, sub, &event, failure);
			}
			else
			{
				if (evbus_traced(db, sub))
					evbus_trace_event(sub, all[i].event_id, "acked");
				if (all[i].retry)
					evbus_retry_settle(sub, all[i].event_id);
				if (sub->breaker_threshold > 0)
					evbus_breaker_succeeded(db, sub, all[i].event_id);
			}
		}
		if (failure == NULL)
			evbus_stat_done(db, sub, count);
		write_ledger(db, sub, all + at, count);
	}
	warn_stale(ended, n);
	pfree(all);
	return n - ended;
}

/* What evbus.ack() does, for another function's argument of that name. */
int
evbus_settle_ack(FunctionCallInfo fcinfo, int arg, const char *name, const char *what)
{
	return settle(fcinfo, arg, name, NULL, what);
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
	PG_RETURN_INT32(settle(fcinfo, 0, "receipts", NULL, "evbus.ack()"));
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

	PG_RETURN_INT32(settle(fcinfo, 0, "receipts", &failure, "evbus.nack()"));
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

	PG_RETURN_INT32(settle(fcinfo, 0, "receipts", &failure, "evbus.reject()"));
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
	EvbusHeld  *all;

	PG_RETURN_INT32(pin_receipts(fcinfo, 0, "receipts", EVBUS_PIN_RELEASE, &all));
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
	int			n;
	int			good = 0;
	int64		lease = evbus_arg_interval(fcinfo, 1, "lease", USECS_PER_SEC, USECS_PER_DAY);
	EvbusDb    *db = evbus_db();
	EvbusHeld  *all = read_receipts(fcinfo, 0, "receipts", db, &n);

	for (int i = 0; i < n; i++)
	{
		EvbusSubscription *sub = all[i].ours ? evbus_subscription_by_id(all[i].subscription_id) : NULL;

		if (sub == NULL)
			continue;
		evbus_check_subscription(sub, GetUserId(), EVBUS_CONSUME);
		if (evbus_cursor_renew(db, &all[i].claim, all[i].subscription_id, all[i].event_id, GetCurrentTimestamp() + lease))
			good++;
	}
	warn_stale(n - good, n);
	PG_RETURN_INT32(good);
}
