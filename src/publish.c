/*-------------------------------------------------------------------------
 * publish.c
 *	  evbus.publish(), publish_batch(): events of the current transaction.
 *
 * An event gets its id at once and goes to the outbox (outbox.c): its row is
 * written to the log when there are many and before commit, its entry goes to the
 * ring in the commit callback, when the row is visible.  What of that can fail is
 * done before commit; the callback only copies.
 *
 * Slot (evbus.h): IDLE -> OPEN at the first event -> COMMITTING before commit ->
 * IDLE after the push.  If the sequencer made it LATE meanwhile, or there is too
 * much for the ring, or the transaction is prepared, the ids go to evbus.late in
 * the same transaction instead of to the ring.
 *
 * Events of volatile buses go neither to the log nor to that ring: volatile_outbox.c.
 *-------------------------------------------------------------------------
 */
#include "publish.h"

#include "access/relation.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "args.h"
#include "bus_idle.h"
#include "clock.h"
#include "dedup.h"
#include "eventlog.h"
#include "flow.h"
#include "funcapi.h"
#include "late.h"
#include "leaf.h"
#include "memory.h"
#include "miscadmin.h"
#include "outbox.h"
#include "pattern.h"
#include "point.h"
#include "privilege.h"
#include "registry.h"
#include "ring.h"
#include "scheduled.h"
#include "stat_outbox.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "volatile_outbox.h"

#define DELAY_MAX		(36500 * USECS_PER_DAY)
#define LATER_ROWS		256		/* scheduled events stored together */
#define LATER_BYTES		(1024 * 1024)

/* The current transaction, if it published. */
static struct
{
	bool		active;
	EvbusDb    *db;
	EvbusSlot  *slot;
	bool		late;			/* rows in evbus.late were written */
}			pub;

/* Where the volatile bus prepared last is. */
static EvbusDb *volatile_db;

/* Our PRE_COMMIT has run: whatever comes now is written through. */
static bool past_precommit = false;

PG_FUNCTION_INFO_V1(evbus_publish);
PG_FUNCTION_INFO_V1(evbus_publish_batch);

/* --------------------------------------------------------------- the slot */

/* The launcher frees the area of a dropped extension once no slot is open in it. */
static void
check_area(void)
{
	if (pub.db->dboid != MyDatabaseId || pub.db->gone)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension \"evbus\" was dropped during this transaction")));
}

static void
begin(EvbusDb *db)
{
	evbus_clock_ensure(db);
	memset(&pub, 0, sizeof(pub));
	pub.db = db;
	pub.slot = &evbus_slots[EvbusMyBackend()];
	evbus_outbox_begin();
	pub.active = true;

	pg_atomic_write_u32(&pub.slot->db, EVBUS_DB_INDEX(db));
	pg_atomic_write_u64(&pub.slot->opened_at, (uint64) GetCurrentTimestamp());
	pg_atomic_write_u64(&pub.slot->low, pg_atomic_read_u64(&db->clock));
	pg_write_barrier();
	pg_atomic_write_u32(&pub.slot->state, EVBUS_SLOT_OPEN);
	pg_memory_barrier();		/* low is seen before ids are taken */
	EVBUS_POINT("publish.open");
	check_area();
}

/* For callbacks: the transaction is over. */
static void
forget(void)
{
	pg_memory_barrier();		/* the push is seen before the slot is clear */
	pg_atomic_write_u32(&pub.slot->state, EVBUS_SLOT_IDLE);
	pg_atomic_write_u64(&pub.slot->low, 0);
	pub.active = false;
	evbus_outbox_forget();
}

/* ------------------------------------------------------------------ publish */

void
evbus_publish_check_type(text *type)
{
	/* A batch is mostly of one type: do not look at the same bytes twice. */
	static char last[EVBUS_TYPE_MAX];
	static int	last_len = -1;
	int			len = VARSIZE_ANY_EXHDR(type);
	const char *fault;

	if (len == last_len && memcmp(last, VARDATA_ANY(type), len) == 0)
		return;
	fault = evbus_type_fault(VARDATA_ANY(type), len, false);
	if (fault)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("event type %s", fault),
				 errdetail("The type is \"%s\".", evbus_clip(VARDATA_ANY(type), len)),
				 errhint("A type is words separated by dots, such as \"order.created\", of 255 bytes at most.")));
	memcpy(last, VARDATA_ANY(type), len);
	last_len = len;
}

void
evbus_publish_check_headers(Jsonb *headers)
{
	if (headers && !JB_ROOT_IS_OBJECT(headers))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("headers must be a JSON object")));
}

/* What two arguments say of priority and expiry. */
void
evbus_publish_headers(FunctionCallInfo fcinfo, int priority, int expires_at, EvbusHeaders *headers)
{
	headers->json = NULL;
	headers->priority = PG_ARGISNULL(priority) ? 0
		: evbus_arg_int(fcinfo, priority, "priority", -EVBUS_PRIORITY_MAX, EVBUS_PRIORITY_MAX);
	headers->expires_at = 0;
	if (!PG_ARGISNULL(expires_at))
	{
		TimestampTz end = PG_GETARG_TIMESTAMPTZ(expires_at);

		if (TIMESTAMP_IS_NOBEGIN(end))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("expires_at must not be -infinity")));
		if (!TIMESTAMP_IS_NOEND(end))	/* never */
			headers->expires_at = end == 0 ? 1 : end;
	}
}

static void
check_key(text *key)
{
	if (VARSIZE_ANY_EXHDR(key) > EVBUS_KEY_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("key is too long"),
				 errdetail("It has %d bytes; the limit is %d.", (int) VARSIZE_ANY_EXHDR(key), EVBUS_KEY_MAX)));
}

void
evbus_publish_check_event(const EvbusBus *bus, text *key, Jsonb *headers, Jsonb *payload)
{
	Size		size = VARSIZE(payload) - VARHDRSZ;

	if (key)
		check_key(key);
	if (headers)
		size += VARSIZE(headers) - VARHDRSZ;
	if (unlikely(bus->max_backlog_bytes > 0))
		evbus_flow_size(bus, size);
	if (size > (Size) bus->max_payload_bytes)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("event for bus \"%s\" is too large", bus->name),
				 errdetail("Payload and headers have %zu bytes; the limit is %d.", size, bus->max_payload_bytes),
				 errhint("Publish a reference to the data, or raise the limit with evbus.alter_bus(max_payload_bytes => ...).")));
}

/*
 * What does not depend on the event: the bus, the right of the role, its limits, the transaction, a leaf to
 * write to.  n: that the caller will publish; 0: it minds the limits itself.
 */
EvbusDb *
evbus_publish_prepare(const char *bus_name, const char *what, Oid role, int64 n, EvbusBus *bus)
{
	EvbusDb    *db;
	EvbusLeaf	leaf;
	Oid			parent;
	int64		now;

	db = evbus_db();
	evbus_bus_get_or_make(db, bus_name, what, bus);
	evbus_check_bus(bus, role, EVBUS_PUBLISH);
	PreventCommandIfReadOnly(what);
	PreventCommandIfParallelMode(what);
	PreventCommandDuringRecovery(what);
	if (unlikely(bus->idle_ttl > 0))
		evbus_bus_use(db, bus_name, what, bus);
	evbus_flow_publish(db, bus, n);
	if (bus->is_volatile)
	{
		evbus_volatile_check(bus);
		evbus_clock_ensure(db);
		volatile_db = db;
		return db;
	}
	if (!pub.active)
		begin(db);
	else if (pub.db != db)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot publish through two versions of the extension in one transaction")));

	/* A missing leaf is to be seen here, not at commit. */
	parent = evbus_class_parent(bus->storage_class_id);
	now = Max(evbus_clock_wall(), (int64) pg_atomic_read_u64(&db->clock));
	if (!evbus_leaf_find(parent, now, &leaf))
		relation_close(evbus_leaf_open(parent, now, &leaf), NoLock);
	return db;
}

/* After our PRE_COMMIT nobody else will write the event that was just added. */
static void
write_through(const EvbusBus *bus, int64 id)
{
	EvbusIdRange late = {.first = id, .n = 1, .bus_id = bus->bus_id};

	if (!past_precommit)
		return;
	evbus_outbox_flush();
	evbus_late_write(pub.db, &late, 1);
	pub.late = true;
}

/* Add an event that is checked, under an id taken after the bus was prepared. */
void
evbus_publish_add(const EvbusBus *bus, int64 id, text *type, text *key, const EvbusHeaders *headers, Jsonb *payload)
{
	if (bus->is_volatile)
		evbus_volatile_add(volatile_db, bus, id, type, key, headers, payload);
	else
	{
		evbus_outbox_add(bus, id, type, key, headers, payload, !past_precommit);
		write_through(bus, id);
	}
	evbus_stat_published(bus->is_volatile ? volatile_db : pub.db, bus, VARDATA_ANY(type), VARSIZE_ANY_EXHDR(type),
						 VARSIZE(payload) - VARHDRSZ + (headers && headers->json ? VARSIZE(headers->json) - VARHDRSZ : 0));
}

/* One event, of a type that is checked; returns its id. */
int64
evbus_publish_event(EvbusDb *db, const EvbusBus *bus, text *type, text *key, const EvbusHeaders *headers, Jsonb *payload)
{
	int64		id;

	evbus_publish_check_event(bus, key, headers ? headers->json : NULL, payload);
	id = evbus_clock_take(&db->clock, 1);
	evbus_publish_add(bus, id, type, key, headers, payload);
	return id;
}

/* ------------------------------------------------------- later, and only once */

/* When an event is to be published, by two arguments of which one may be given; 0: at once. */
static TimestampTz
due_at(FunctionCallInfo fcinfo, int delay, int deliver_at, const EvbusHeaders *headers)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz due;

	if (delay >= 0 && !PG_ARGISNULL(delay))
	{
		if (!PG_ARGISNULL(deliver_at))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("delay and deliver_at cannot both be given")));
		(void) evbus_arg_interval(fcinfo, delay, "delay", 0, DELAY_MAX);
		due = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval, TimestampTzGetDatum(now), PG_GETARG_DATUM(delay)));
	}
	else if (!PG_ARGISNULL(deliver_at))
	{
		due = PG_GETARG_TIMESTAMPTZ(deliver_at);
		if (TIMESTAMP_NOT_FINITE(due) || due > now + DELAY_MAX)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("deliver_at must be within 36500 days from now"),
					 errdetail("It is %s.", timestamptz_to_str(due))));
	}
	else
		return 0;
	if (due <= now)
		return 0;
	if (headers->expires_at != 0 && headers->expires_at <= due)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("expires_at must be after the event is due"),
				 errdetail("It would be due at %s, and nobody would get it.", timestamptz_to_str(due))));
	return due;
}

/* Both need tables. */
static void
check_durable(const EvbusBus *bus, bool later)
{
	if (bus->is_volatile)
		evbus_volatile_refuse(bus, later ? "its events cannot be delayed" : "a dedup_key cannot be kept",
							  "Publish to a durable bus.");
}

static text *
check_dedup_key(text *key)
{
	int			len = VARSIZE_ANY_EXHDR(key);

	if (len < 1 || len > EVBUS_DEDUP_KEY_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("dedup_key must have 1 to %d bytes", EVBUS_DEDUP_KEY_MAX),
				 errdetail("It has %d.", len)));
	return key;
}

/* Store one row, or those of a batch so far, for later; the caller frees them. */
typedef struct Later
{
	TimestampTz due;			/* 0: they are published at once */
	int			leaf;
	int			n;
	Size		bytes;
	HeapTuple	tuples[LATER_ROWS];
} Later;

static bool
later_add(Later *later, const EvbusBus *bus, int64 id, text *type, text *key, const EvbusHeaders *headers, Jsonb *payload)
{
	HeapTuple	tuple = evbus_scheduled_form(later->leaf, bus, id, later->due, type, key, headers, payload);

	later->tuples[later->n++] = tuple;
	later->bytes += tuple->t_len;
	return later->n == LATER_ROWS || later->bytes >= LATER_BYTES;
}

static void
later_write(Later *later)
{
	if (later->n > 0)
		evbus_scheduled_write(pub.db, later->leaf, later->due, later->tuples, later->n);
	later->n = 0;
	later->bytes = 0;
}

/*
 * evbus.publish(bus text, type text, payload jsonb, key text, headers jsonb, delay interval,
 * deliver_at timestamptz, dedup_key text, priority integer, expires_at timestamptz) returns bigint
 *
 * Stores one event; returns its id: positive, unique in the database, growing,
 * not gapless.  bus: must exist.  type: 1 to 255 bytes, dotted, no wildcards.
 * payload: not NULL ('null' is JSON null); with headers at most the bus's
 * max_payload_bytes.  key: at most 1024 bytes.  headers: a JSON object.
 * delay: 0 to 36500 days from this call, with months and days of the calendar; deliver_at: a moment within 36500 days, at once if
 * it is past; not both.  The id is then that of the scheduled event: when due, it is
 * published under another, with this one in the header scheduledid.
 * dedup_key: 1 to 255 bytes; if an event was published or scheduled on the bus with it within the
 * bus's dedup_window, nothing is stored and that one's id is returned.  Waits for a transaction
 * that uses it just now.
 * priority: -9 to 9, for subscriptions by_priority; NULL is 0.  expires_at: who has not got it then,
 * does not get it any more; NULL or infinity: never; not before it is due.
 * Takes effect when the caller commits; a rollback leaves nothing behind.
 * On a volatile bus the event is in shared memory only, and lost with it; space is taken at the call.
 * Errors: 22004, 22023, 25006 read-only transaction, 54000 too large, VB001 no
 * such bus, VB011 no leaf, VB014 the bus is full, VB015 faster than its rate; of a volatile bus
 * 0A000 delayed, with a dedup_key, or by a handler of the same bus, VB003 no ring.
 * Privileges: EXECUTE.
 */
Datum
evbus_publish(PG_FUNCTION_ARGS)
{
	EvbusBus	bus;
	EvbusDb    *db;
	text	   *type;
	text	   *key;
	EvbusHeaders headers;
	Jsonb	   *payload;
	text	   *dedup_key;
	TimestampTz due;
	int64		id;

	evbus_arg_present(fcinfo, 0, "bus");
	evbus_arg_present(fcinfo, 1, "type");
	evbus_arg_present(fcinfo, 2, "payload");
	type = PG_GETARG_TEXT_PP(1);
	payload = PG_GETARG_JSONB_P(2);
	key = PG_ARGISNULL(3) ? NULL : PG_GETARG_TEXT_PP(3);
	evbus_publish_headers(fcinfo, 8, 9, &headers);
	headers.json = PG_ARGISNULL(4) ? NULL : PG_GETARG_JSONB_P(4);
	due = PG_ARGISNULL(5) && PG_ARGISNULL(6) ? 0 : due_at(fcinfo, 5, 6, &headers);
	dedup_key = PG_ARGISNULL(7) ? NULL : check_dedup_key(PG_GETARG_TEXT_PP(7));

	evbus_publish_check_type(type);
	evbus_publish_check_headers(headers.json);
	db = evbus_publish_prepare(evbus_arg_text(fcinfo, 0, "bus"), "evbus.publish()", GetUserId(), due == 0, &bus);
	if (due == 0 && dedup_key == NULL)
		PG_RETURN_INT64(evbus_publish_event(db, &bus, type, key, &headers, payload));

	check_durable(&bus, due != 0);
	evbus_publish_check_event(&bus, key, headers.json, payload);
	id = evbus_clock_take(&db->clock, 1);
	if (dedup_key)
	{
		int64		first = evbus_dedup(db, &bus, dedup_key, id);

		if (first != id)
			PG_RETURN_INT64(first);
	}
	if (due == 0)
		evbus_publish_add(&bus, id, type, key, &headers, payload);
	else
	{
		Later		later = {.due = due, .leaf = evbus_scheduled_leaf(due)};

		(void) later_add(&later, &bus, id, type, key, &headers, payload);
		later_write(&later);
	}
	PG_RETURN_INT64(id);
}

/* All events of a call of publish_batch(); returns their ids, in `context`. */
static int64 *
publish_all(FunctionCallInfo fcinfo, MemoryContext context, int *count)
{
	EvbusBus	bus;
	EvbusDb    *db;
	Datum	   *types;
	Datum	   *payloads;
	Datum	   *keys = NULL;
	Datum	   *headers = NULL;
	Datum	   *dedup_keys = NULL;
	bool	   *type_nulls;
	bool	   *payload_nulls;
	bool	   *key_nulls = NULL;
	bool	   *header_nulls = NULL;
	bool	   *dedup_nulls = NULL;
	int			n_types;
	int			n;
	int64		first;
	int64	   *ids;
	Later		later = {0};
	EvbusHeaders event_headers;
	MemoryContext scratch;
	MemoryContext old;

	evbus_arg_present(fcinfo, 0, "bus");
	evbus_arg_array(fcinfo, 1, "types", &types, &type_nulls, &n_types);
	evbus_no_nulls(type_nulls, n_types, "types");
	evbus_arg_array(fcinfo, 2, "payloads", &payloads, &payload_nulls, &n);
	if (n_types != 1 && n_types != n)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arrays must have the same length"),
				 errdetail("\"types\" has %d elements, \"payloads\" has %d.", n_types, n),
				 errhint("Or give one type, for all payloads.")));
	evbus_no_nulls(payload_nulls, n, "payloads");
	(void) evbus_arg_optional_array(fcinfo, 3, "keys", "payloads", n, &keys, &key_nulls);
	(void) evbus_arg_optional_array(fcinfo, 4, "headers", "payloads", n, &headers, &header_nulls);
	evbus_publish_headers(fcinfo, 7, 8, &event_headers);
	later.due = due_at(fcinfo, -1, 5, &event_headers);
	if (later.due != 0)
		later.leaf = evbus_scheduled_leaf(later.due);
	(void) evbus_arg_optional_array(fcinfo, 6, "dedup_keys", "payloads", n, &dedup_keys, &dedup_nulls);

	for (int i = 0; i < n_types; i++)
		evbus_publish_check_type(DatumGetTextPP(types[i]));
	/* Nobody makes a bus for what is refused; where it is there, each is checked in its turn. */
	for (int i = 0; i < n && !evbus_bus_find(evbus_arg_text(fcinfo, 0, "bus"), &bus); i++)
	{
		if (headers && !header_nulls[i])
			evbus_publish_check_headers(DatumGetJsonbP(headers[i]));
		if (keys && !key_nulls[i])
			check_key(DatumGetTextPP(keys[i]));
		if (dedup_keys && !dedup_nulls[i])
			(void) check_dedup_key(DatumGetTextPP(dedup_keys[i]));
	}
	db = evbus_publish_prepare(evbus_arg_text(fcinfo, 0, "bus"), "evbus.publish_batch()", GetUserId(), later.due == 0 ? n : 0, &bus);
	*count = n;
	if (n == 0)
		return NULL;
	if (later.due != 0)
		check_durable(&bus, true);
	if (n >= EVBUS_LARGE_BATCH)
		evbus_keep_memory(EVBUS_KEEP_BYTES);
	ids = MemoryContextAllocHuge(context, sizeof(int64) * n);

	scratch = AllocSetContextCreate(CurrentMemoryContext, "evbus publish_batch", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(scratch);
	first = evbus_clock_take(&db->clock, n);
	for (int i = 0; i < n; i++)
	{
		text	   *type = DatumGetTextPP(types[n_types == 1 ? 0 : i]);
		text	   *key = keys && !key_nulls[i] ? DatumGetTextPP(keys[i]) : NULL;
		Jsonb	   *header = headers && !header_nulls[i] ? DatumGetJsonbP(headers[i]) : NULL;
		Jsonb	   *payload = DatumGetJsonbP(payloads[i]);

		evbus_publish_check_headers(header);
		evbus_publish_check_event(&bus, key, header, payload);
		event_headers.json = header;
		ids[i] = first + i;
		if (dedup_keys && !dedup_nulls[i])
			check_durable(&bus, false);
		if (dedup_keys && !dedup_nulls[i])
			ids[i] = evbus_dedup(db, &bus, check_dedup_key(DatumGetTextPP(dedup_keys[i])), first + i);
		if (ids[i] == first + i)
		{
			if (later.due == 0)
				evbus_publish_add(&bus, first + i, type, key, &event_headers, payload);
			else if (later_add(&later, &bus, first + i, type, key, &event_headers, payload))
				later_write(&later);
		}
		if (later.n == 0)
			MemoryContextReset(scratch);
	}
	later_write(&later);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(scratch);
	return ids;
}

/*
 * evbus.publish_batch(bus text, types text[], payloads jsonb[], keys text[], headers jsonb[],
 * deliver_at timestamptz, dedup_keys text[], priority integer, expires_at timestamptz) returns setof bigint
 *
 * Stores one event for each element, in that order, all or none; returns their
 * ids, which grow, but for those of dedup_keys that were used before.  The arrays have one
 * dimension and one length, but one type stands for all; keys, headers and dedup_keys may be
 * NULL, and so may their elements.  No payloads store nothing.  deliver_at, priority and expires_at
 * are those of all.
 * All are stored with the first row of the result, whether the others are
 * fetched or not.  Else as evbus.publish().
 */
Datum
evbus_publish_batch(PG_FUNCTION_ARGS)
{
	FuncCallContext *call;

	if (SRF_IS_FIRSTCALL())
	{
		int			count;

		call = SRF_FIRSTCALL_INIT();
		call->user_fctx = publish_all(fcinfo, call->multi_call_memory_ctx, &count);
		call->max_calls = count;
	}
	call = SRF_PERCALL_SETUP();
	if (call->call_cntr < call->max_calls)
	{
		int64		id = ((int64 *) call->user_fctx)[call->call_cntr];

		SRF_RETURN_NEXT(call, Int64GetDatum(id));
	}
	SRF_RETURN_DONE(call);
}

/* ---------------------------------------------------------------- callbacks */

/* Everything that can fail: rows, and what shall stand in for the ring. */
static void
before_commit(bool prepared)
{
	uint32		open = EVBUS_SLOT_OPEN;

	check_area();
	EVBUS_POINT("publish.precommit");
	evbus_outbox_flush();
	EVBUS_POINT("publish.flushed");
	if (!pg_atomic_compare_exchange_u32(&pub.slot->state, &open, EVBUS_SLOT_COMMITTING) ||
		prepared || evbus_outbox_too_large())
	{
		int			n;
		const EvbusIdRange *ids = evbus_outbox_ids(&n);

		if (n > 0)
		{
			evbus_late_write(pub.db, ids, n);
			pub.late = true;
		}
		evbus_outbox_leave_ring();
	}
	EVBUS_POINT("publish.committing");
}

/* Cannot fail: no palloc, no catalog, no wait but for the ring's lock. */
static void
after_commit(void)
{
	EvbusDb    *db = pub.db;
	bool		awaited;

	EVBUS_POINT("publish.committed");
	if (!evbus_outbox_push(db, XactLastCommitEnd, &awaited))
	{
		uint64		low = pg_atomic_read_u64(&pub.slot->low);
		uint64		old = pg_atomic_read_u64(&db->lost_low);

		while (old > low && !pg_atomic_compare_exchange_u64(&db->lost_low, &old, low))
			;
		pg_write_barrier();
		pg_atomic_write_u32(&db->lost, 1);
		pg_atomic_fetch_add_u64(&db->overflows, 1);
	}
	if (pub.late)
		pg_atomic_write_u32(&db->late, 1);
	EVBUS_POINT("publish.pushed");
	forget();
	evbus_ring_wake(db, awaited);
}

static void
publish_xact(XactEvent event, void *arg)
{
	if (unlikely(evbus_volatile_any()))
		evbus_volatile_xact(event);
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			if (pub.active)
				before_commit(event == XACT_EVENT_PRE_PREPARE);
			past_precommit = true;
			break;
		case XACT_EVENT_COMMIT:
			past_precommit = false;
			if (pub.active)
				after_commit();
			evbus_flow_end();
			break;
		case XACT_EVENT_PREPARE:
		case XACT_EVENT_ABORT:
			past_precommit = false;
			if (pub.active)
				forget();
			evbus_flow_end();
			break;
		default:
			break;
	}
}

static void
publish_subxact(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	evbus_flow_subxact(event);
	if (pub.active)
		evbus_outbox_subxact(event);
	if (unlikely(evbus_volatile_any()))
		evbus_volatile_subxact(event);
}

/* Once per process, at load: callbacks must not miss the first PRE_COMMIT. */
void
evbus_publish_init(void)
{
	RegisterXactCallback(publish_xact, NULL);
	RegisterSubXactCallback(publish_subxact, NULL);
}
