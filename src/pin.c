/*-------------------------------------------------------------------------
 * pin.c
 *	  Leases tied to the current transaction: what shall become of them happens
 *	  in its commit callback, or not at all.
 *
 * A pinned lease cannot run out meanwhile, so nobody else gets an event whose
 * ack is about to commit.  Committing only frees, moves a bound, or gives back,
 * so the callback cannot fail.  Pins are a stack by subtransaction: ROLLBACK TO
 * undoes the topmost ones.
 *-------------------------------------------------------------------------
 */
#include "pin.h"

#include "access/xact.h"
#include "order.h"
#include "point.h"
#include "utils/memutils.h"
#include "volatile.h"

#define PIN_CHUNK	256			/* leases looked at under one hold of a subscription's lock */

/* What this transaction will do with a lease. */
typedef struct Pin
{
	EvbusDb    *db;
	int			sub_slot;
	int32		lease;
	uint32		epoch;
	EvbusPinAction action;
	int64		lo;				/* EVBUS_PIN_PART: what is left begins here */
	int			level;			/* subtransaction nesting */
} Pin;

static Pin *pins = NULL;
static int	n_pins = 0;
static int	max_pins = 0;
static bool acks_in_order = false;	/* this transaction has acked what others may wait for */

/*
 * What this transaction did to EvbusSub.retry_due: wrote a retry that is due
 * then, or looked, which hides it until the look is over.  Few, so a list.
 */
static struct Due
{
	EvbusDb    *db;
	int			sub_slot;
	TimestampTz due;			/* to be lowered to at commit */
	bool		looked;			/* abort: look again */
	bool		cleared;		/* may_block, by what we saw; abort: it may have been our own doing */
}		   *dues = NULL;
static int	n_dues = 0;
static int	max_dues = 0;

/* Room for n more pins; before any lock is taken, as it may fail. */
void
evbus_pin_room(int n)
{
	int			size = Max(max_pins, 256);

	while (size - n_pins < n)
		size *= 2;
	if (size > max_pins)
	{
		pins = pins ? repalloc_huge(pins, sizeof(Pin) * size)
			: MemoryContextAllocHuge(TopMemoryContext, sizeof(Pin) * size);
		max_pins = size;
	}
}

/* Remember what shall become of a lease; there is room. */
static void
push(EvbusDb *db, const EvbusClaim *claim, EvbusPinAction action, int64 lo, int level)
{
	Pin		   *p = &pins[n_pins++];

	p->db = db;
	p->sub_slot = claim->sub_slot;
	p->lease = claim->lease;
	p->epoch = claim->epoch;
	p->action = action;
	p->lo = lo;
	p->level = level;
}

static void
pinned_in_order(EvbusDb *db, int32 lease, EvbusPinAction action)
{
	evbus_order_pinned(db, lease, action == EVBUS_PIN_ACK);
	acks_in_order = acks_in_order || action == EVBUS_PIN_ACK;
}

/* Has this transaction acked anything of a subscription in order? */
bool
evbus_pin_acks_in_order(void)
{
	return acks_in_order;
}

/*
 * Tie a lease to this transaction.  False: the lease is no longer the claim's,
 * or another transaction has it.  RECEIVED pins do not keep it from running out.
 */
static bool
pin(EvbusDb *db, const EvbusClaim *claim, EvbusPinAction action, int64 lo)
{
	EvbusSub   *shared = EVBUS_SUB(db, claim->sub_slot);
	EvbusLease *lease;
	bool		good;

	evbus_pin_room(1);
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	lease = evbus_lease_held(db, claim);
	good = lease != NULL && (action == EVBUS_PIN_RECEIVED || !lease->pinned);
	if (good && action != EVBUS_PIN_RECEIVED)
	{
		lease->pinned = true;
		if (lease->tracked)
			pinned_in_order(db, claim->lease, action);
	}
	LWLockRelease(&shared->lock);
	if (good)
		push(db, claim, action, lo, GetCurrentTransactionNestLevel());
	return good;
}

bool
evbus_pin(EvbusDb *db, const EvbusClaim *claim, EvbusPinAction action)
{
	return pin(db, claim, action, 0);
}

/* At commit the positions of the claim below lo are done. */
bool
evbus_pin_part(EvbusDb *db, const EvbusClaim *claim, int64 lo)
{
	return pin(db, claim, EVBUS_PIN_PART, lo);
}

/*
 * Pin those of n receipts of one subscription that still hold, and say which and
 * what they are.
 */
void
evbus_pin_held(EvbusDb *db, const EvbusSubscription *sub, EvbusHeld *held, int n, EvbusPinAction action)
{
	EvbusSub   *shared = EVBUS_SUB(db, sub->slot);
	int			level = GetCurrentTransactionNestLevel();

	evbus_pin_room(n);
	for (int at = 0; at < n; at += PIN_CHUNK)
	{
		int			end = Min(n, at + PIN_CHUNK);

		LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
		for (int i = at; i < end && shared->subscription_id == sub->subscription_id; i++)
		{
			EvbusHeld  *h = &held[i];
			EvbusLease *lease = h->claim.sub_slot == sub->slot ? evbus_lease_held(db, &h->claim) : NULL;

			if (lease == NULL || lease->event_id != h->event_id || lease->pinned)
				continue;
			lease->pinned = true;
			if (lease->tracked)
				pinned_in_order(db, h->claim.lease, action);
			h->good = true;
			h->sub_epoch = sub->epoch;
			h->retry = lease->retry;
			h->attempts = lease->attempts;
			h->lo = lease->lo;
			h->hi = lease->hi;
			push(db, &h->claim, action, 0, level);
		}
		LWLockRelease(&shared->lock);
	}
}

/* An abort gives these leases back, which the caller has just taken; there is room for them. */
void
evbus_pin_received(EvbusDb *db, const EvbusClaim *claims, int n)
{
	int			level = GetCurrentTransactionNestLevel();

	for (int i = 0; i < n; i++)
		push(db, &claims[i], EVBUS_PIN_RECEIVED, 0, level);
}

/*
 * Give leases of one subscription back, as an abort would: this transaction received
 * them, nobody was told, and nobody shall have them from it.
 */
void
evbus_pin_give_back(EvbusDb *db, const EvbusClaim *claims, int n)
{
	EvbusSub   *shared = EVBUS_SUB(db, claims[0].sub_slot);

	while (n > 0)
	{
		LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
		for (int i = 0; i < PIN_CHUNK && n > 0; i++)
			if (evbus_lease_held(db, &claims[--n]))
				evbus_lease_give_back(db, shared, claims[n].lease);
		LWLockRelease(&shared->lock);
	}
	ConditionVariableBroadcast(&db->drained_cv);
}

/* How many pins there are; to be passed to evbus_pin_keep(). */
int
evbus_pin_count(void)
{
	return n_pins;
}

/* Those pushed since then, of what was received, are forgotten: the caller minds the leases. */
void
evbus_pin_keep(int count)
{
	Assert(count <= n_pins);
	n_pins = count;
}

/* Does this transaction hold, or settle, deliveries of a bus? */
bool
evbus_pin_reads(EvbusDb *db, int bus_slot)
{
	for (int i = 0; i < n_pins; i++)
		if (pins[i].db == db && EVBUS_SUB(db, pins[i].sub_slot)->bus_slot == bus_slot)
			return true;
	return false;
}

/* Has this transaction written rows into evbus.retry for a subscription? */
bool
evbus_pin_retries(EvbusDb *db, int sub_slot)
{
	for (int i = 0; i < n_dues; i++)
		if (dues[i].db == db && dues[i].sub_slot == sub_slot && dues[i].due != PG_INT64_MAX)
			return true;
	return false;
}

/* Has this transaction pinned this lease that way? */
bool
evbus_pinned_here(const EvbusClaim *claim, EvbusPinAction action)
{
	for (int i = n_pins - 1; i >= 0; i--)
		if (pins[i].lease == claim->lease && pins[i].epoch == claim->epoch &&
			pins[i].sub_slot == claim->sub_slot && pins[i].action == action)
			return true;
	return false;
}

static struct Due *
find_due(EvbusDb *db, int sub_slot)
{
	for (int i = 0; i < n_dues; i++)
		if (dues[i].db == db && dues[i].sub_slot == sub_slot)
			return &dues[i];
	if (n_dues == max_dues)
	{
		int			size = max_dues ? max_dues * 2 : 16;

		dues = dues ? repalloc(dues, sizeof(*dues) * size) : MemoryContextAlloc(TopMemoryContext, sizeof(*dues) * size);
		max_dues = size;
	}
	dues[n_dues].db = db;
	dues[n_dues].sub_slot = sub_slot;
	dues[n_dues].due = PG_INT64_MAX;
	dues[n_dues].looked = false;
	dues[n_dues].cleared = false;
	return &dues[n_dues++];
}

/* This transaction wrote a row into evbus.retry that is due then. */
void
evbus_pin_due(EvbusDb *db, int sub_slot, TimestampTz due)
{
	struct Due *d = find_due(db, sub_slot);

	d->due = Min(d->due, due);
}

/*
 * This transaction is about to look which retries are due: commits from here on
 * lower retry_due again, what they wrote before, the look sees.  If it comes to
 * nothing, somebody else shall look.
 */
void
evbus_pin_look(EvbusDb *db, int sub_slot)
{
	find_due(db, sub_slot)->looked = true;
	pg_atomic_write_u64(&EVBUS_SUB(db, sub_slot)->retry_due, (uint64) PG_INT64_MAX);
	pg_memory_barrier();
}

/*
 * This transaction sees no rows in evbus.retry, and is about to say so in may_block.  If it has
 * deleted them itself, others see them still, and will again if it comes to nothing.
 */
void
evbus_pin_cleared(EvbusDb *db, int sub_slot)
{
	find_due(db, sub_slot)->cleared = true;
}

/* Before the leases of their events end. */
static void
may_block_again(void)
{
	for (int i = 0; i < n_dues; i++)
		if (dues[i].cleared)
			evbus_sub_may_block(EVBUS_SUB(dues[i].db, dues[i].sub_slot));
	pg_write_barrier();
}

static void
look_again(void)
{
	for (int i = 0; i < n_dues; i++)
		if (dues[i].looked)
			pg_atomic_write_u64(&EVBUS_SUB(dues[i].db, dues[i].sub_slot)->retry_due, 0);
}

/*
 * What commit or abort makes of one pin; cannot fail.  The caller holds the
 * subscription's lock, and frees the chain.  True: others may find work now.
 */
static bool
pin_end(const Pin *p, bool commit, EvbusLeaseChain *freed)
{
	EvbusSub   *shared = EVBUS_SUB(p->db, p->sub_slot);
	EvbusClaim	claim = {.sub_slot = p->sub_slot, .lease = p->lease, .epoch = p->epoch};
	EvbusLease *lease = evbus_lease_held(p->db, &claim);

	if (lease == NULL)
		return false;
	if (commit && p->action == EVBUS_PIN_ACK)
	{
		bool		followed = lease->tracked && evbus_order_followed(p->db, p->lease);
		bool		full = shared->order_full;

		evbus_lease_unlink(p->db, shared, p->lease, freed);
		if (!followed && shared->order_full == full)
			return false;
		pg_atomic_write_u32(&shared->notify, 1);	/* what waited for this one */
		return true;
	}
	if (commit ? p->action == EVBUS_PIN_RELEASE : p->action == EVBUS_PIN_RECEIVED)
	{
		evbus_lease_give_back(p->db, shared, p->lease);
		return true;
	}
	if (p->action != EVBUS_PIN_RECEIVED)
	{
		lease->pinned = false;	/* it may run out again */
		if (lease->expires_at != 0 && (shared->next_expiry == 0 || lease->expires_at < shared->next_expiry))
			shared->next_expiry = lease->expires_at;
	}
	if (commit && p->action == EVBUS_PIN_PART)
	{
		lease->lo = p->lo;
		lease->suspect = 0;
	}
	return false;
}

/*
 * End the pins from `from` on, the newest first: what a transaction received and
 * acked is acked first.  Those of one subscription share the hold of its lock.
 */
static bool
end_pins(int from, bool commit)
{
	bool		work = false;

	while (n_pins > from)
	{
		Pin		   *first = &pins[n_pins - 1];
		EvbusSub   *shared = EVBUS_SUB(first->db, first->sub_slot);
		EvbusLeaseChain freed = EVBUS_NO_LEASES;

		if (commit && first->action == EVBUS_PIN_RECEIVED)
		{
			n_pins--;			/* stays as it is */
			continue;
		}
		LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
		for (int i = 0; i < PIN_CHUNK && n_pins > from; i++)
		{
			Pin		   *p = &pins[n_pins - 1];

			if (p->db != first->db || p->sub_slot != first->sub_slot)
				break;
			work = pin_end(p, commit, &freed) || work;
			n_pins--;
		}
		evbus_lease_free(first->db, &freed);
		LWLockRelease(&shared->lock);
	}
	return work;
}

static void
pin_xact(XactEvent event, void *arg)
{
	EvbusDb    *db;
	bool		wake;

	if (n_pins == 0 && n_dues == 0)
		return;
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
			db = n_pins > 0 ? pins[0].db : dues[0].db;
			if (event == XACT_EVENT_COMMIT)
				EVBUS_POINT("ack.committed");
			if (event == XACT_EVENT_ABORT)
				may_block_again();
			/* Before the leases of their events end. */
			for (int i = 0; i < n_dues && event == XACT_EVENT_COMMIT; i++)
				if (dues[i].due != PG_INT64_MAX)
					evbus_sub_may_block(EVBUS_SUB(dues[i].db, dues[i].sub_slot));
			pg_write_barrier();
			/* Acks make no work for others, unless these wait for leases, or for their turn. */
			wake = n_dues > 0 || evbus_lease_for_worker || db->leases_used >= evbus_max_leases / 4 * 3;
			wake = end_pins(0, event == XACT_EVENT_COMMIT) || wake;
			evbus_volatile_freed(db);
			for (int i = 0; i < n_dues && event == XACT_EVENT_COMMIT; i++)
			{
				pg_atomic_uint64 *due = &EVBUS_SUB(dues[i].db, dues[i].sub_slot)->retry_due;
				uint64		old = pg_atomic_read_u64(due);

				while ((int64) old > dues[i].due &&
					   !pg_atomic_compare_exchange_u64(due, &old, (uint64) dues[i].due))
					;
			}
			if (event == XACT_EVENT_ABORT)
				look_again();
			n_dues = 0;
			acks_in_order = false;
			if (wake)
				ConditionVariableBroadcast(&db->drained_cv);
			break;
		case XACT_EVENT_PRE_PREPARE:
			if (n_pins > 0)
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("cannot PREPARE a transaction that has received or acked events"),
						 errhint("Commit it, or publish in a transaction of its own.")));
			break;
		case XACT_EVENT_PREPARE:
			may_block_again();
			n_dues = 0;
			break;
		default:
			break;
	}
}

static void
pin_subxact(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	int			level;

	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		may_block_again();
		look_again();
	}
	if (n_pins == 0 || (event != SUBXACT_EVENT_ABORT_SUB && event != SUBXACT_EVENT_COMMIT_SUB))
		return;
	level = GetCurrentTransactionNestLevel();
	if (event == SUBXACT_EVENT_COMMIT_SUB)
		for (int i = n_pins - 1; i >= 0 && pins[i].level >= level; i--)
			pins[i].level = level - 1;
	else
	{
		int			from = n_pins;

		while (from > 0 && pins[from - 1].level >= level)
			from--;
		(void) end_pins(from, false);
	}
}

/* Once per process that will use the above. */
void
evbus_pin_init(void)
{
	static bool done = false;

	if (done)
		return;
	done = true;
	RegisterXactCallback(pin_xact, NULL);
	RegisterSubXactCallback(pin_subxact, NULL);
}
