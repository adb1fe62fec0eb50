/*-------------------------------------------------------------------------
 * batch.c
 *	  One batch of a subscription with a handler: claim, call (handler_call.c), ack, or what
 *	  becomes of failures.
 *
 * A batch runs in one transaction with its ack, so its effects and its ack commit
 * or vanish together:
 *
 *		claim -> read -> call -> ledger row -> commit (its callback ends the lease)
 *
 * If anything fails, the batch is run again one event per subtransaction, at
 * most 60 a transaction, and failures are recorded by the commit that acks them.
 * If that commit itself fails (a deferred constraint), once more with one event
 * per transaction, and a failure recorded in a transaction of its own.
 *
 * The worker's leases end with its process.  If it ends inside a handler, the
 * lease names the event as suspect, and whoever takes it next records a failed
 * attempt before anything else runs.
 *-------------------------------------------------------------------------
 */
#include "batch.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "breaker.h"
#include "clock.h"
#include "cursor.h"
#include "envelope.h"
#include "flow.h"
#include "hand.h"
#include "handler_call.h"
#include "inflight.h"
#include "ledger.h"
#include "miscadmin.h"
#include "pace.h"
#include "pin.h"
#include "point.h"
#include "pool.h"
#include "process.h"
#include "reader.h"
#include "retry.h"
#include "stat_outbox.h"
#include "trace.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "volatile_outbox.h"
#include "worker.h"

#define SINGLES_MAX		60		/* subtransactions in one transaction: more overflow the snapshot */
#define RETRIES_MAX		60		/* retries taken at once */

static EvbusDb *db;
static MemoryContext batch_context;

/* By evbus_uptime(): from then on others have their turn, and what is not done goes back. */
static int64 slice_ends;

/* What is in hand, for the end of the process. */
static EvbusHand hand;

/*
 * Effects must not commit without their ack: if the lease is no longer ours (the
 * subscription was moved or dropped), neither do.
 */
static void
keep(bool ours)
{
	if (!ours)
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_STALE_RECEIPT),
				 errmsg("the subscription was moved while its handler ran")));
}

/* ------------------------------------------------------------------ singles */

/* True: those that wait for the event go on waiting. */
static bool
record_failure(const EvbusSubscription *sub, EvbusEvent *event, const ErrorData *edata)
{
	EvbusFailure failure = {
		.sqlerrcode = edata->sqlerrcode,
		.message = edata->message ? edata->message : "no message",
		.delay = -1,
		.permanent = event->fault != NULL
	};

	return evbus_retry_fail(db, sub, event, &failure) && sub->block_key;
}

/*
 * One event in a subtransaction; its failure is recorded in the transaction.  Unless
 * others ran there before it (shared) and trying again is said to be no use: what they
 * left, such as a temporary table, may be what ails it, so it is an error of all.
 * True: it failed (*failed), and holds up others.
 */
static bool
run_in_subtransaction(const EvbusSubscription *sub, EvbusEvent *event, bool shared, bool *failed)
{
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile edata = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(batch_context);
	PG_TRY();
	{
		evbus_call_one(sub, event);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		edata = evbus_call_error();
		RollbackAndReleaseCurrentSubTransaction();
		evbus_call_over();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(batch_context);
	CurrentResourceOwner = owner;
	if (edata && shared && evbus_retry_permanent(edata->sqlerrcode))
		ReThrowError(edata);
	*failed = edata != NULL;
	if (*failed)
		evbus_call_count_failed(sub, event);
	return *failed && record_failure(sub, event, edata);
}

static ErrorData *
made_error(int sqlerrcode, char *message)
{
	ErrorData  *edata = palloc0(sizeof(ErrorData));

	edata->sqlerrcode = sqlerrcode;
	edata->message = message;
	return edata;
}

/* The handler had the event, and nobody was left to say how it ended. */
static bool
record_end(const EvbusSubscription *sub, EvbusEvent *event, int sqlerrcode, char *message)
{
	evbus_stat_delivered(db, sub, event, 0);
	return record_failure(sub, event, made_error(sqlerrcode, message));
}

/* Does an event wait for one of the batch before it that has failed? */
static bool
held_up(const EvbusSubscription *sub, const EvbusEvents *found, const bool *failed, int at)
{
	const EvbusEvent *event = &found->events[at];

	for (int i = 0; i < at && sub->block_key; i++)
		if (failed[i] && (sub->ordering == EVBUS_ORDER_STRICT ||
						  (event->key && found->events[i].key && event->key_len == found->events[i].key_len &&
						   memcmp(event->key, found->events[i].key, event->key_len) == 0)))
			return true;
	return false;
}

/* Is what follows not to run now: because a circuit breaker is open, or others have their turn? */
static bool
enough(const EvbusSubscription *sub)
{
	return evbus_breaker_tripped(db, sub) || evbus_uptime() > slice_ends;
}

/* Has an event expired while others of its batch were at work?  Then it is passed over. */
static bool
expired_meanwhile(const EvbusSubscription *sub, const EvbusEvent *event)
{
	if (likely(!evbus_event_enveloped(event)) || !evbus_event_too_old(sub, event))
		return false;
	evbus_event_passed_over(db, sub, event, true);
	return true;
}

/* What was learnt of the events of a batch. */
typedef struct Outcome
{
	bool	   *failed;			/* and holds up others, which are then left */
	bool	   *left;
} Outcome;

/*
 * The transaction that settles events[at..at + *n), and where that opens a circuit breaker
 * leaves those behind (*n); outcome NULL: it is a retry, with the claim at its place.
 * error: do not call, record this instead.  Returns the error if the commit failed.
 */
static ErrorData *
settle_chunk(const EvbusSubscription *sub, EvbusEvents *found, int at, int *n, int64 suspect,
			 const ErrorData *error, Outcome *outcome)
{
	EvbusEvent *events = found->events + at;
	ErrorData  *volatile edata = NULL;
	volatile bool crashed = false;

	evbus_call_begin();
	PG_TRY();
	{
		bool		failed = false;

		for (int i = 0; i < *n; i++)
		{
			bool		count = false;
			bool		holds_up;

			if (i > 0 && enough(sub))
			{
				*n = i;
				break;
			}
			if (outcome && (outcome->left[at + i] = held_up(sub, found, outcome->failed, at + i)))
				continue;
			if (outcome && !error && expired_meanwhile(sub, &events[i]))
				continue;
			if (evbus_inflight_crashed(sub, &events[i], &count))
				crashed = true;
			failed = true;
			if (events[i].fault)
				holds_up = record_failure(sub, &events[i], made_error(events[i].fault->sqlerrcode, pstrdup(events[i].fault->message)));
			else if (error)
			{
				evbus_call_count_failed(sub, &events[i]);
				holds_up = record_failure(sub, &events[i], error);
			}
			else if (suspect != 0 && events[i].event_id == suspect)
				holds_up = record_end(sub, &events[i], ERRCODE_ADMIN_SHUTDOWN, "the handler ended its worker");
			else if (count)
				holds_up = record_end(sub, &events[i], ERRCODE_CRASH_SHUTDOWN, "the server crashed while the handler ran");
			else
				holds_up = run_in_subtransaction(sub, &events[i], i > 0, &failed);
			if (!failed)
			{
				evbus_breaker_succeeded(db, sub, events[i].event_id);
				evbus_stat_done(db, sub, 1);
			}
			if (outcome)
				outcome->failed[at + i] = holds_up;
		}
		if (outcome)
			keep(evbus_hand_settle(db, sub, &hand, found, at, *n, outcome->left));
		else
		{
			/* A failure has renewed the row, or moved it to the dead letters. */
			if (!failed)
				evbus_retry_settle_attempt(sub, &events[0]);
			keep(evbus_pin(db, &hand.claims[at], EVBUS_PIN_ACK));
		}
		PopActiveSnapshot();
		evbus_call_commit(sub, events, *n);
	}
	PG_CATCH();
	{
		edata = evbus_call_error();
		AbortOutOfAnyTransaction();
		evbus_call_over();
		for (int i = at; outcome && i < at + *n; i++)
			outcome->failed[i] = outcome->left[i] = false;
		if (!evbus_hand_ours(db, &hand, at))
			edata = NULL;		/* moved away from under us: not ours to settle */
	}
	PG_END_TRY();
	MemoryContextSwitchTo(batch_context);
	if (crashed && edata == NULL)
	{
		XLogFlush(XactLastCommitEnd);
		for (int i = 0; i < *n; i++)
			evbus_inflight_recorded(sub, events[i].event_id);
	}
	return edata;
}

/* One event on its own: if the commit fails, that failure is recorded in another. */
static void
settle_one(const EvbusSubscription *sub, EvbusEvents *found, int at, int64 suspect, Outcome *outcome)
{
	int			one = 1;
	ErrorData  *edata = settle_chunk(sub, found, at, &one, suspect, NULL, outcome);

	if (edata != NULL)
		edata = settle_chunk(sub, found, at, &one, 0, edata, outcome);
	if (edata != NULL)
		ReThrowError(edata);	/* not the handler's doing: let the worker end */
	evbus_call_clean();
	MemoryContextSwitchTo(batch_context);
}

/*
 * A batch that failed: sixty at a time, or one at a time where a commit fails.  What is behind
 * the failure that opens a circuit breaker is not run.
 */
static void
run_singles(const EvbusSubscription *sub, EvbusEvents *found)
{
	bool		alone = evbus_hand_suspect(&hand) || evbus_inflight_any(sub, found->events, found->n);
	int64		suspect = hand.claims[0].suspect;
	Outcome		outcome = {palloc0(sizeof(bool) * found->n), palloc0(sizeof(bool) * found->n)};

	for (int at = 0; at < found->n && !(at > 0 && enough(sub));)
	{
		/* Where one of them ended a worker or the server, each alone: so it shows at whose commit, too. */
		int			count = alone ? 1 : Min(found->n - at, SINGLES_MAX);

		if (hand.each)
			suspect = hand.claims[at].suspect;
		if (settle_chunk(sub, found, at, &count, suspect, NULL, &outcome) != NULL)
			for (int i = at; i < at + count; i++)
			{
				if (i > at && enough(sub))
					return;
				settle_one(sub, found, i, suspect, &outcome);
			}
		if (suspect == found->events[at].event_id)
		{
			suspect = 0;
			if (!hand.each)
				hand.claims[0].suspect = 0;	/* it is settled; the rest is innocent */
		}
		at += count;
		evbus_worker_turn();
	}
}

/* -------------------------------------------------------------------- batch */

/* Due retries, each in a transaction of its own; false: there are none. */
static bool
run_retries(const EvbusSubscription *sub)
{
	EvbusEvent	events[RETRIES_MAX];
	EvbusEvents found = {.events = events};
	int			due;
	int			n;

	if ((int64) pg_atomic_read_u64(&EVBUS_SUB(db, sub->slot)->retry_due) > GetCurrentTimestamp())
		return false;
	evbus_call_begin();
	hand.each = true;
	due = evbus_pace_take(db, sub, Min(RETRIES_MAX, sub->batch_size), true);
	n = due == 0 ? 0 : evbus_retry_claim(db, sub, due, events, evbus_hand_room(&hand, RETRIES_MAX));
	evbus_pace_put_back(db, sub, due - n, true);
	hand.n = n;
	if (n > 0)
		evbus_breaker_probe_is(events[0].event_id, NULL);
	if (n > 0 && !evbus_call_aim(sub))
	{
		evbus_hand_return(db, &hand, 0);
		n = 0;
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
	for (int i = 0; i < n; i++)
	{
		if (i > 0 && enough(sub))
		{
			evbus_hand_return(db, &hand, 0);	/* those that are not settled */
			break;
		}
		evbus_call_take(sub, &events[i], 1, true);
		settle_one(sub, &found, i, hand.claims[i].suspect, NULL);	/* of the one that ran */
	}
	hand.n = 0;
	return n > 0;
}

/* The whole batch in one transaction with its ack; returns how many events of it there was time for. */
static int
call_batch(const EvbusSubscription *sub, EvbusEvents *found)
{
	int			done = found->n;
	int			expired = 0;

	if (sub->handler_batch)
	{
		for (int at = 0; at < found->n; at += sub->batch_size)
			evbus_call(sub, found->events + at, Min(sub->batch_size, found->n - at), true);
		evbus_call_over();
	}
	else
		for (int i = 0; i < done; i++)
		{
			if (likely(!expired_meanwhile(sub, &found->events[i])))
				evbus_call_one(sub, &found->events[i]);
			else
				expired++;
			if (i + 1 < done && evbus_uptime() > slice_ends)
				done = i + 1;
		}
	EVBUS_POINT("handler.called");
	for (int i = 0; i < done && sub->breaker_threshold > 0; i++)
		evbus_breaker_succeeded(db, sub, found->events[i].event_id);
	evbus_stat_done(db, sub, done - expired);
	keep(evbus_hand_settle(db, sub, &hand, found, 0, done, NULL));
	return done;
}

/* Those of a batch that there was no time for go back. */
static void
return_rest(const EvbusSubscription *sub, EvbusEvents *found, int done)
{
	if (done == found->n)
		return;
	evbus_read_unsettled(db, sub, found, found->events[done - 1].position + 1);
	evbus_pace_put_back(db, sub, found->n - done, false);
	evbus_hand_return(db, &hand, 0);
}

/* Has a filter no answer for one of them?  Then each is dealt with singly. */
static bool
any_fault(const EvbusEvents *found)
{
	for (int i = 0; i < found->n; i++)
		if (found->events[i].fault)
			return true;
	return false;
}

/* One batch of new events; false: there are none. */
static bool
run_batch(const EvbusSubscription *sub)
{
	EvbusEvents found = {0};
	volatile bool failed = false;
	volatile bool took = false;
	volatile int done = 0;		/* events of a batch that is settled */
	ErrorData  *volatile own = NULL;	/* error of the only event there is */

	evbus_call_begin();
	PG_TRY();
	{
		took = evbus_hand_take(db, sub, &hand, &found);
		for (int i = 0; i < found.n; i++)
			found.events[i].attempt = 1;
		if (found.n > 0)
			evbus_breaker_probe_is(found.events[0].event_id, NULL);
		evbus_call_take(sub, found.events, found.n, false);
		if (took && found.n == 0)
		{
			if (!evbus_cursor_skip(db, &hand.claims[0]))
				(void) call_batch(sub, &found);
		}
		else if (took && !evbus_call_aim(sub))
			evbus_hand_return(db, &hand, 0);
		else if (took && (evbus_hand_suspect(&hand) || evbus_inflight_any(sub, found.events, found.n) ||
						  (sub->filter && any_fault(&found))))
			failed = true;
		else if (took)
			done = call_batch(sub, &found);
		PopActiveSnapshot();
		evbus_call_commit(sub, found.events, done);
	}
	PG_CATCH();
	{
		ErrorData  *edata = evbus_call_error();

		if (found.n == 1 && evbus_call_running() != 0)
			own = edata;		/* to call again would tell nothing new */
		AbortOutOfAnyTransaction();
		evbus_call_over();
		MemoryContextSwitchTo(batch_context);
		/* Not the handler's doing.  What was not read to its end must not be settled, either. */
		if (!took || hand.n == 0 || found.n == 0)
			ReThrowError(edata);
		for (int i = 0; found.n > 1 && i < found.n && evbus_traced(db, sub); i++)
			evbus_trace_event(sub, found.events[i].event_id, "rolled back with a batch of %d events, by %s, %s; each is tried alone", found.n, unpack_sql_state(edata->sqlerrcode), edata->message);
		failed = evbus_hand_ours(db, &hand, 0);	/* else it was moved away from under us */
	}
	PG_END_TRY();
	if (failed && hand.n > 0)
	{
		Outcome		outcome = {palloc0(sizeof(bool)), palloc0(sizeof(bool))};
		int			one = 1;

		/* The lookup must not be of the transaction that was aborted. */
		evbus_call_begin();
		if (!evbus_call_aim(sub))
			evbus_hand_return(db, &hand, 0);
		PopActiveSnapshot();
		CommitTransactionCommand();
		if (hand.n > 0 && (own == NULL || settle_chunk(sub, &found, 0, &one, 0, own, &outcome) != NULL))
			run_singles(sub, &found);
		evbus_hand_return(db, &hand, 0);	/* what is held up by what has failed, or by a circuit breaker, or there was no time for */
	}
	else if (done > 0)
		return_rest(sub, &found, done);
	hand.n = 0;
	return took;
}

/* ------------------------------------------------------------------ outside */

/* Once per worker, connected as the owner. */
void
evbus_batch_init(EvbusDb *database, Oid owner)
{
	db = database;
	evbus_lease_for_worker = true;
	batch_context = AllocSetContextCreate(TopMemoryContext, "evbus batch", ALLOCSET_DEFAULT_SIZES);
	evbus_call_init(db, owner, batch_context);
}

/* One delivery, to see whether what failed works again: a retry or a new event, by turns. */
static bool
run_probe(const EvbusSubscription *sub)
{
	EvbusSubscription one = *sub;
	bool		worked;

	one.batch_size = 1;
	hand.single = true;
	if (evbus_breaker_new_first())
		worked = run_batch(&one) || run_retries(&one);
	else
		worked = run_retries(&one) || run_batch(&one);
	hand.single = false;
	evbus_breaker_probe_end(false);
	return worked;
}

/* Retries that are due, and a batch of new events; false: there were neither. */
bool
evbus_batch_run(const EvbusSubscription *sub)
{
	EvbusAdmission admission = evbus_breaker_admit(db, sub);
	bool		worked;

	if (admission == EVBUS_ADMIT_NONE)
		return false;
	slice_ends = evbus_uptime() + (int64) evbus_worker_slice * 1000;
	evbus_flow_reads(sub->bus_slot);
	MemoryContextSwitchTo(batch_context);
	evbus_volatile_served = sub->is_volatile ? sub->bus_id : 0;
	if (admission == EVBUS_ADMIT_PROBE)
		worked = run_probe(sub);
	else
	{
		worked = run_retries(sub);
		/* If that has opened a circuit breaker, nothing new is to fail. */
		worked = (!evbus_breaker_tripped(db, sub) && run_batch(sub)) || worked;
	}
	evbus_call_clean();
	evbus_process_memory(evbus_uptime());
	MemoryContextSwitchTo(TopMemoryContext);
	MemoryContextReset(batch_context);
	return worked;
}

/* The process ends: give back what is in hand; the handler is suspect unless we were sent away. */
void
evbus_batch_abandon(void)
{
	bool		sent_away = db->stopped_until > evbus_uptime();

	evbus_inflight_run(0, 0);
	evbus_hand_return(db, &hand, sent_away ? 0 : evbus_call_running());
	evbus_breaker_probe_end(true);
}
