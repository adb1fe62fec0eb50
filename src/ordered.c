/*-------------------------------------------------------------------------
 * ordered.c
 *	  Taking deliveries of a subscription in order: whose turn it is says order.c.
 *
 * One process at a time takes from such a subscription, under a heavyweight lock
 * that is held while it takes, never while anybody else's code runs.  A lock of this kind can be
 * waited for with interrupts, goes with an error, and may be held while events
 * are read from disk.
 *
 * What has failed is in evbus.retry, and where it holds up others (on_failure =>
 * 'block_key') the table is asked, for the keys of those whose turn it would be.
 * Only where there may be such rows: EvbusSub.may_block is raised by a commit that
 * writes one before the lease of its event ends, so whoever finds that key free in
 * memory finds the flag, and then the row.
 *-------------------------------------------------------------------------
 */
#include "ordered.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "cursor.h"
#include "internal.h"
#include "ledger.h"
#include "miscadmin.h"
#include "pin.h"
#include "point.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#define CLAIM_MAX		4096	/* positions looked at per claim */
#define LOOK_MORE		256		/* positions looked at for a batch that has something, beside four times its size */
#define LOOK_FIRST		64			/* of those with a filter */
#define LOCK_ID			0xeb05	/* field 4 of our lock tags */

static void
set_tag(const EvbusSubscription *sub, LOCKTAG *tag)
{
	tag->locktag_field1 = MyDatabaseId;
	tag->locktag_field2 = (uint32) sub->subscription_id;
	tag->locktag_field3 = 0;
	tag->locktag_field4 = LOCK_ID;
	tag->locktag_type = LOCKTAG_USERLOCK;
	tag->locktag_lockmethodid = DEFAULT_LOCKMETHOD;
}

/*
 * From here on nobody else takes deliveries of the subscription; an error unlocks.
 * False, only if not wait: somebody does.
 */
bool
evbus_ordered_lock(const EvbusSubscription *sub, bool wait)
{
	LOCKTAG		tag;

	set_tag(sub, &tag);
	return LockAcquire(&tag, ExclusiveLock, false, !wait) != LOCKACQUIRE_NOT_AVAIL;
}

void
evbus_ordered_unlock(const EvbusSubscription *sub)
{
	LOCKTAG		tag;

	set_tag(sub, &tag);
	(void) LockRelease(&tag, ExclusiveLock, false);
}

/* Rows of evbus.retry that may hold up others. */
static bool
any_rows(const EvbusSubscription *sub)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(sub->subscription_id)};
	EvbusInternal internal;
	bool		found;

	evbus_internal_begin(&internal);
	/* Not past all the rows of others: a generic plan takes "LIMIT 1" for cheap. */
	(void) set_config_option("enable_seqscan", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	found = evbus_sql(&plan, "SELECT 1 FROM evbus.retry WHERE subscription_id = $1 LIMIT 1", 1, types, values, NULL, 1) > 0;
	evbus_internal_end(&internal);
	return found;
}

/* May there be rows to look for?  If so, and there are none, nobody else need look. */
static bool
may_block(const EvbusTaking *taking)
{
	EvbusSub   *shared = EVBUS_SUB(taking->db, taking->sub->slot);
	uint64		said;

	if (!taking->sub->block_key)
		return false;
	said = pg_atomic_read_u64(&shared->may_block);
	if (said == 0)
		return evbus_pin_retries(taking->db, taking->sub->slot);
	pg_memory_barrier();
	EVBUS_POINT("receive.blocked");
	if (any_rows(taking->sub))
		return true;
	if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
		evbus_pin_cleared(taking->db, taking->sub->slot);
	(void) pg_atomic_compare_exchange_u64(&shared->may_block, &said, 0);
	return false;
}

/*
 * Put back those of events[from..out->n) that wait for a row of their key before them.
 * What fails while we look is in hand, so its key is not among them.
 */
static void
leave_blocked(const EvbusTaking *taking, EvbusEvents *out, int from, EvbusClaim *claims)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT4OID, TEXTARRAYOID, INT8ARRAYOID};
	EvbusSub   *shared = EVBUS_SUB(taking->db, taking->sub->slot);
	uint32		settled = shared->settled;
	int			n = out->n - from;
	Datum	   *keys;
	Datum	   *positions;
	bool	   *nulls;
	bool	   *blocked;
	Datum		values[3];
	EvbusInternal internal;
	uint64		rows;
	int			dims[1] = {n};
	int			lower[1] = {1};

	if (n == 0 || taking->sub->ordering != EVBUS_ORDER_KEY || !may_block(taking))
		return;
	keys = palloc(sizeof(Datum) * n);
	positions = palloc(sizeof(Datum) * n);
	nulls = palloc(sizeof(bool) * n);
	blocked = palloc0(sizeof(bool) * n);
	for (int i = 0; i < n; i++)
	{
		const EvbusEvent *event = &out->events[from + i];

		nulls[i] = event->key == NULL;
		keys[i] = event->key ? PointerGetDatum(cstring_to_text_with_len(event->key, event->key_len)) : (Datum) 0;
		positions[i] = Int64GetDatum(event->position);
	}
	values[0] = Int32GetDatum(taking->sub->subscription_id);
	values[1] = PointerGetDatum(construct_md_array(keys, nulls, 1, dims, lower, TEXTOID, -1, false, TYPALIGN_INT));
	values[2] = PointerGetDatum(construct_array(positions, n, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	evbus_internal_begin(&internal);
	/* An index probe each, whatever the planner knows of the table: it is empty most of the time. */
	(void) set_config_option("enable_seqscan", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	rows = evbus_sql(&plan,
					 "SELECT u.i::integer FROM unnest($2, $3) WITH ORDINALITY u(key, position, i),"
					 " LATERAL (SELECT 1 FROM evbus.retry r WHERE r.subscription_id = $1 AND r.key = u.key AND r.position < u.position LIMIT 1) x",
					 3, types, values, NULL, 0);
	for (uint64 r = 0; r < rows; r++)
		blocked[DatumGetInt32(evbus_column(r, 1, NULL)) - 1] = true;
	evbus_internal_end(&internal);

	/* The last ones first: those of one key stay behind each other. */
	for (int i = n - 1; i >= 0; i--)
		if (blocked[i])
			evbus_order_put_back(taking, &claims[from + i], settled);
	out->n = from;
	for (int i = 0; i < n; i++)
		if (!blocked[i])
		{
			claims[out->n] = claims[from + i];
			out->events[out->n++] = out->events[from + i];
		}
}

/*
 * Read the events of n claims behind out's; one that has expired, or is no longer
 * wanted, is done.  Returns how many there are.
 */
static int
read_ready(const EvbusTaking *taking, EvbusClaim *claims, EvbusEvent *events, int n, EvbusEvents *out)
{
	int			good = 0;
	EvbusSubscription unfiltered;
	const EvbusSubscription *sub = taking->sub;

	/* What is put into evbus.retry untried, retry.c asks about when its turn has come: not the maintainer, who has more to do. */
	if (taking->behind)
	{
		unfiltered = evbus_subscription_unfiltered(sub);
		sub = &unfiltered;
	}
	evbus_read_again(taking->db, sub, events, n, &out->lsn);
	for (int i = 0; i < n; i++)
		if (events[i].payload != NULL)
		{
			out->events[out->n++] = events[i];
			claims[good++] = claims[i];
		}
		else
			evbus_ledger_pass_over(taking->db, taking->sub, &claims[i]);
	return good;
}

/*
 * Take those whose turn has come meanwhile, or (behind) will not come soon; false:
 * there are none.
 */
bool
evbus_ordered_ready(const EvbusTaking *taking, int max, int64 bytes_max, EvbusEvents *out, EvbusClaim *claims)
{
	EvbusEvent *events = palloc(sizeof(EvbusEvent) * max);
	int			at = out->n;
	int			n;

	evbus_pin_room(max);
	n = evbus_order_claim_ready(taking, max, bytes_max, claims + at, events);
	evbus_pin_received(taking->db, claims + at, n);
	if (n > 0 && read_ready(taking, claims + at, events, n, out) > 0 && !taking->behind)
		leave_blocked(taking, out, at, claims);
	pfree(events);
	return n > 0;
}

/*
 * Take from what was not looked at yet, *look positions; false: there is no more, or no
 * room for it.  *look: how many to look at next.
 */
static bool
take_range(const EvbusTaking *taking, int64 *look, int max, EvbusEvents *out, EvbusClaim *claims)
{
	EvbusDb    *db = taking->db;
	int			at = out->n;
	EvbusEvents range = {0};
	EvbusClaim	claim;
	MemoryContext context;
	MemoryContext old;
	int			made;
	bool		full;
	int64		end;

	if (!evbus_order_claim_range(taking, *look, &claim))
		return false;
	(void) evbus_pin(db, &claim, EVBUS_PIN_RECEIVED);
	/* What has to wait is forgotten at once: it may be a lot. */
	context = AllocSetContextCreate(CurrentMemoryContext, "evbus range", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	evbus_read(db, taking->sub, claim.scan_from, claim.hi, &range);
	MemoryContextSwitchTo(old);
	out->lsn = Max(out->lsn, range.lsn);
	if (range.n == 0)
	{
		evbus_ledger_pass_over(db, taking->sub, &claim);
		evbus_read_settled(db, taking->sub, &range, claim.hi);
		*look = Min(*look * 2, CLAIM_MAX);
		MemoryContextDelete(context);
		return true;
	}
	EVBUS_POINT("receive.claimed");
	evbus_pin_room(max);
	made = evbus_order_split(taking, &claim, range.events, range.n, max, claims + at, &full, &end);
	evbus_read_settled(db, taking->sub, &range, end);
	evbus_pin_received(db, claims + at, made);
	if (made == 0)
		MemoryContextDelete(context);
	else
	{
		memcpy(out->events + at, range.events, sizeof(EvbusEvent) * made);
		out->n += made;
		leave_blocked(taking, out, at, claims);
	}
	/* Of those that were made, some may have gone back. */
	*look = out->n == 0 ? Max(max, LOOK_MORE) : Max(max - (out->n - at), 1);
	return !full;
}

/* Take events, up to max or so many bytes, under the lock. */
static void
take(const EvbusTaking *taking, int max, int64 bytes_max, EvbusEvents *out, EvbusClaim *claims)
{
	bool		strict = taking->sub->ordering == EVBUS_ORDER_STRICT;
	int64		look = taking->sub->filter && taking->together ? Min(max, LOOK_FIRST) : max;	/* of a range: so many events may be missing */
	int64		looked = 0;
	int64		bytes = 0;
	int			summed = 0;
	int			left;
	int64		begun = taking->sub->filter ? evbus_uptime() : 0;

	while ((left = evbus_read_more(out->n, bytes, bytes_max, max - out->n)) > 0)
	{
		CHECK_FOR_INTERRUPTS();
		if (!evbus_ordered_ready(taking, max - out->n, bytes_max == 0 ? 0 : bytes_max - bytes, out, claims))
		{
			if (strict && (out->n > 0 ? !taking->together : evbus_order_busy(taking)))
				break;
			/* What is of other keys may be far: for a batch that has something, not that far. */
			if (out->n > 0 && looked > (int64) max * 4 + LOOK_MORE)
				break;
			/* A worker has others to serve, too: it comes back. */
			if (taking->sub->filter && taking->together && evbus_uptime() - begun > EVBUS_LOOK_TIME)
				break;
			if (bytes_max > 0 && left < max - out->n)
				look = Min(look, left);
			looked += look;
			if (!take_range(taking, &look, max - out->n, out, claims))
				break;
		}
		while (summed < out->n)
			bytes += evbus_event_bytes(&out->events[summed++]);
	}
}

/*
 * Lease up to max events, at least 1, in order, and put them into an empty *out, each
 * with its claim; returns how many.  bytes_max: no more are taken when they have so
 * many, 0: it does not matter.  together: they will be done one after the other,
 * so they may be several of a key.  expires_at: of the leases; 0: they end with the
 * process, and an abort of the transaction leaves them to the caller.
 */
int
evbus_ordered_take(EvbusDb *db, const EvbusSubscription *sub, int max, int64 bytes_max, bool together,
				   TimestampTz expires_at, EvbusEvents *out, EvbusClaim *claims)
{
	EvbusTaking taking = {.db = db, .sub = sub, .together = together, .acked = evbus_pin_acks_in_order(),
	.expires_at = expires_at};
	int			pins = evbus_pin_count();

	if (sub->ordering == EVBUS_ORDER_STRICT && !together)
		max = 1;
	out->events = palloc(sizeof(EvbusEvent) * (out->size = max));
	(void) evbus_ordered_lock(sub, true);
	if (evbus_order_begin(&taking))
	{
		uint32		settled = EVBUS_SUB(db, sub->slot)->settled;

		if (sub->ordering == EVBUS_ORDER_STRICT && may_block(&taking))
			evbus_order_stop(&taking, settled);
		else
			take(&taking, max, bytes_max, out, claims);
	}
	evbus_ordered_unlock(sub);
	if (expires_at == 0)
		evbus_pin_keep(pins);
	if (evbus_order_crowded(db, sub) && db->maintainer_pid != 0)
		SetLatch(&ProcGlobal->allProcs[db->maintainer_procno].procLatch);
	return out->n;
}
