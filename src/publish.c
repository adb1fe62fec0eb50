/*-------------------------------------------------------------------------
 * publish.c
 *	  evbus.publish(), publish_batch(), publish_lines(): events of the current
 *	  transaction.
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
 *-------------------------------------------------------------------------
 */
#include "publish.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "args.h"
#include "clock.h"
#include "eventlog.h"
#include "funcapi.h"
#include "jsonb_parse.h"
#include "late.h"
#include "leaf.h"
#include "memory.h"
#include "miscadmin.h"
#include "outbox.h"
#include "pattern.h"
#include "point.h"
#include "registry.h"
#include "ring.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define LARGE_BATCH		100		/* events; from here on page faults would show */
#define KEEP_BYTES		(16 * 1024 * 1024)

/* The current transaction, if it published. */
static struct
{
	bool		active;
	EvbusDb    *db;
	EvbusSlot  *slot;
	bool		late;			/* rows in evbus.late were written */
}			pub;

/* Our PRE_COMMIT has run: whatever comes now is written through. */
static bool past_precommit = false;

PG_FUNCTION_INFO_V1(evbus_publish);
PG_FUNCTION_INFO_V1(evbus_publish_batch);
PG_FUNCTION_INFO_V1(evbus_publish_lines);

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

static void
check_headers(Jsonb *headers)
{
	if (headers && !JB_ROOT_IS_OBJECT(headers))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("headers must be a JSON object")));
}

static void
check_event(const EvbusBus *bus, text *key, Jsonb *headers, Jsonb *payload)
{
	Size		size = VARSIZE(payload) - VARHDRSZ;

	if (key && VARSIZE_ANY_EXHDR(key) > EVBUS_KEY_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("key is too long"),
				 errdetail("It has %d bytes; the limit is %d.", (int) VARSIZE_ANY_EXHDR(key), EVBUS_KEY_MAX)));
	if (headers)
		size += VARSIZE(headers) - VARHDRSZ;
	if (size > (Size) bus->max_payload_bytes)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("event for bus \"%s\" is too large", bus->name),
				 errdetail("Payload and headers have %zu bytes; the limit is %d.", size, bus->max_payload_bytes),
				 errhint("Publish a reference to the data, or raise the limit with evbus.alter_bus(max_payload_bytes => ...).")));
}

/* What does not depend on the event: the bus, the transaction, a leaf to write to. */
EvbusDb *
evbus_publish_prepare(const char *bus_name, const char *what, EvbusBus *bus)
{
	EvbusDb    *db;
	EvbusLeaf	leaf;
	Oid			parent;
	int64		now;

	evbus_bus_get(bus_name, bus);
	PreventCommandIfReadOnly(what);
	PreventCommandIfParallelMode(what);
	PreventCommandDuringRecovery(what);
	db = evbus_db();
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

/* One event, of a type that is checked; returns its id. */
int64
evbus_publish_event(EvbusDb *db, const EvbusBus *bus, text *type, text *key, Jsonb *headers, Jsonb *payload)
{
	int64		id;

	check_event(bus, key, headers, payload);
	id = evbus_clock_take(&db->clock, 1);
	evbus_outbox_add(bus, id, type, key, headers, payload, !past_precommit);
	write_through(bus, id);
	return id;
}

/*
 * evbus.publish(bus text, type text, payload jsonb, key text, headers jsonb) returns bigint
 *
 * Stores one event; returns its id: positive, unique in the database, growing,
 * not gapless.  bus: must exist.  type: 1 to 255 bytes, dotted, no wildcards.
 * payload: not NULL ('null' is JSON null); with headers at most the bus's
 * max_payload_bytes.  key: at most 1024 bytes.  headers: a JSON object.
 * Takes effect when the caller commits; a rollback leaves nothing behind.
 * Errors: 22004, 22023, 25006 read-only transaction, 54000 too large, VB001 no
 * such bus, VB011 no leaf.  Privileges: EXECUTE.
 */
Datum
evbus_publish(PG_FUNCTION_ARGS)
{
	EvbusBus	bus;
	EvbusDb    *db;
	text	   *type;
	text	   *key;
	Jsonb	   *headers;
	Jsonb	   *payload;

	evbus_arg_present(fcinfo, 0, "bus");
	evbus_arg_present(fcinfo, 1, "type");
	evbus_arg_present(fcinfo, 2, "payload");
	type = PG_GETARG_TEXT_PP(1);
	payload = PG_GETARG_JSONB_P(2);
	key = PG_ARGISNULL(3) ? NULL : PG_GETARG_TEXT_PP(3);
	headers = PG_ARGISNULL(4) ? NULL : PG_GETARG_JSONB_P(4);

	evbus_publish_check_type(type);
	db = evbus_publish_prepare(evbus_arg_text(fcinfo, 0, "bus"), "evbus.publish()", &bus);
	check_headers(headers);
	PG_RETURN_INT64(evbus_publish_event(db, &bus, type, key, headers, payload));
}

/* An optional array argument; it must have an element for each event, `count` of them in `events`. */
static bool
optional_array(FunctionCallInfo fcinfo, int n, const char *name, const char *events, int count, Datum **values, bool **nulls)
{
	int			length;

	if (PG_ARGISNULL(n))
		return false;
	evbus_arg_array(fcinfo, n, name, values, nulls, &length);
	if (length != count)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" must have as many elements as there are events", name),
				 errdetail("\"%s\" has %d, \"%s\" has %d.", events, count, name, length)));
	return true;
}

/* All events of a call of publish_batch(); returns the first of their consecutive ids. */
static int64
publish_all(FunctionCallInfo fcinfo, int *count)
{
	EvbusBus	bus;
	EvbusDb    *db;
	Datum	   *types;
	Datum	   *payloads;
	Datum	   *keys = NULL;
	Datum	   *headers = NULL;
	bool	   *type_nulls;
	bool	   *payload_nulls;
	bool	   *key_nulls = NULL;
	bool	   *header_nulls = NULL;
	int			n_types;
	int			n;
	int64		first;
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
	(void) optional_array(fcinfo, 3, "keys", "payloads", n, &keys, &key_nulls);
	(void) optional_array(fcinfo, 4, "headers", "payloads", n, &headers, &header_nulls);

	db = evbus_publish_prepare(evbus_arg_text(fcinfo, 0, "bus"), "evbus.publish_batch()", &bus);
	*count = n;
	if (n == 0)
		return 0;
	for (int i = 0; i < n_types; i++)
		evbus_publish_check_type(DatumGetTextPP(types[i]));
	if (n >= LARGE_BATCH)
		evbus_keep_memory(KEEP_BYTES);

	scratch = AllocSetContextCreate(CurrentMemoryContext, "evbus publish_batch", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(scratch);
	first = evbus_clock_take(&db->clock, n);
	for (int i = 0; i < n; i++)
	{
		text	   *key = keys && !key_nulls[i] ? DatumGetTextPP(keys[i]) : NULL;
		Jsonb	   *header = headers && !header_nulls[i] ? DatumGetJsonbP(headers[i]) : NULL;
		Jsonb	   *payload = DatumGetJsonbP(payloads[i]);

		check_headers(header);
		check_event(&bus, key, header, payload);
		evbus_outbox_add(&bus, first + i, DatumGetTextPP(types[n_types == 1 ? 0 : i]), key, header, payload, !past_precommit);
		write_through(&bus, first + i);
		MemoryContextReset(scratch);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(scratch);
	return first;
}

/*
 * evbus.publish_batch(bus text, types text[], payloads jsonb[], keys text[], headers jsonb[])
 * returns setof bigint
 *
 * Stores one event for each element, in that order, all or none; returns their
 * ids, which grow.  The arrays have one dimension and one length, but one type
 * stands for all; keys and headers may be NULL, and so may their elements.  No
 * payloads store nothing.
 * All are stored with the first row of the result, whether the others are
 * fetched or not.  Else as evbus.publish().
 */
Datum
evbus_publish_batch(PG_FUNCTION_ARGS)
{
	FuncCallContext *call;

	if (SRF_IS_FIRSTCALL())
	{
		int64	   *first;
		int			count;
		int64		id = publish_all(fcinfo, &count);

		call = SRF_FIRSTCALL_INIT();
		first = MemoryContextAlloc(call->multi_call_memory_ctx, sizeof(int64));
		*first = id;
		call->user_fctx = first;
		call->max_calls = count;
	}
	call = SRF_PERCALL_SETUP();
	if (call->call_cntr < call->max_calls)
	{
		int64		id = *(int64 *) call->user_fctx + (int64) call->call_cntr;

		SRF_RETURN_NEXT(call, Int64GetDatum(id));
	}
	SRF_RETURN_DONE(call);
}

/* --------------------------------------------------------------------- lines */

/* How many lines a text has; a newline at its end begins no other. */
static int
count_lines(const char *at, const char *end)
{
	int			n = 0;

	while (at < end)
	{
		const char *newline = memchr(at, '\n', end - at);

		n++;
		at = newline ? newline + 1 : end;
	}
	return n;
}

/* jsonb's own message for nothing at all would not tell what is wrong. */
static void
refuse_empty(const char *at, const char *end)
{
	while (at < end && (*at == ' ' || *at == '\t' || *at == '\r'))
		at++;
	if (at == end)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
				 errmsg("a line is empty"),
				 errhint("Give one JSON value on each line, without newlines in it; only behind the last one a newline may follow.")));
}

/* Context of errors: which line. */
static void
tell_line(void *arg)
{
	errcontext("evbus.publish_lines(), line %d", *(int *) arg);
}

/*
 * evbus.publish_lines(bus text, type text, lines text, keys text[], headers jsonb)
 * returns record (first_id bigint, events integer)
 *
 * Stores one event for each line, in that order, all or none.  lines: JSON values
 * with a newline between them, so none within one; a newline at the end is allowed,
 * an empty line is not.  type and headers are those of every event; keys, if not
 * NULL, has an element for each line.
 * The ids are first_id and those that follow it, without a gap; no lines store
 * nothing and first_id is NULL.
 * Errors: 22P02 and others of jsonb's input, with the line; else as evbus.publish().
 */
Datum
evbus_publish_lines(PG_FUNCTION_ARGS)
{
	EvbusBus	bus;
	EvbusDb    *db;
	text	   *type;
	text	   *lines;
	Datum	   *keys;
	bool	   *key_nulls;
	Jsonb	   *headers;
	const char *at;
	const char *end;
	bool		with_keys;
	int			line = 0;
	int			n;
	ErrorContextCallback context = {.previous = error_context_stack, .callback = tell_line, .arg = &line};
	EvbusJsonbParser *parser;
	MemoryContext scratch;
	MemoryContext old;
	TupleDesc	desc;
	Datum		values[2] = {0};
	bool		nulls[2] = {true, false};

	evbus_arg_present(fcinfo, 0, "bus");
	evbus_arg_present(fcinfo, 1, "type");
	evbus_arg_present(fcinfo, 2, "lines");
	type = PG_GETARG_TEXT_PP(1);
	lines = PG_GETARG_TEXT_PP(2);
	at = VARDATA_ANY(lines);
	end = at + VARSIZE_ANY_EXHDR(lines);
	n = count_lines(at, end);
	with_keys = optional_array(fcinfo, 3, "keys", "lines", n, &keys, &key_nulls);
	headers = PG_ARGISNULL(4) ? NULL : PG_GETARG_JSONB_P(4);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "evbus.publish_lines() must return a row");

	if (VARSIZE_ANY_EXHDR(type) > 0 && *VARDATA_ANY(type) == '{')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("type must be a single event type, not an array"),
				 errdetail("It is \"%s\".", evbus_clip(VARDATA_ANY(type), VARSIZE_ANY_EXHDR(type))),
				 errhint("All events of evbus.publish_lines() have one type: 'order.created', and not '{order.created}'.")));
	evbus_publish_check_type(type);
	check_headers(headers);
	db = evbus_publish_prepare(evbus_arg_text(fcinfo, 0, "bus"), "evbus.publish_lines()", &bus);
	if (n >= LARGE_BATCH)
		evbus_keep_memory(KEEP_BYTES);

	parser = evbus_jsonb_parser();
	scratch = AllocSetContextCreate(CurrentMemoryContext, "evbus publish_lines", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(scratch);
	error_context_stack = &context;
	if (n > 0)
	{
		int64		first = evbus_clock_take(&db->clock, n);

		values[0] = Int64GetDatum(first);
		nulls[0] = false;
		while (line < n)
		{
			const char *newline = memchr(at, '\n', end - at);
			text	   *key = with_keys && !key_nulls[line] ? DatumGetTextPP(keys[line]) : NULL;
			Jsonb	   *payload;

			line++;				/* for people they count from 1 */
			CHECK_FOR_INTERRUPTS();
			refuse_empty(at, newline ? newline : end);
			payload = evbus_jsonb_parse(parser, at, (newline ? newline : end) - at);
			check_event(&bus, key, headers, payload);
			evbus_outbox_add(&bus, first + line - 1, type, key, headers, payload, !past_precommit);
			write_through(&bus, first + line - 1);
			MemoryContextReset(scratch);
			at = newline ? newline + 1 : end;
		}
	}
	error_context_stack = context.previous;
	MemoryContextSwitchTo(old);
	MemoryContextDelete(scratch);
	values[1] = Int32GetDatum(n);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
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
			break;
		case XACT_EVENT_PREPARE:
		case XACT_EVENT_ABORT:
			past_precommit = false;
			if (pub.active)
				forget();
			break;
		default:
			break;
	}
}

static void
publish_subxact(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	if (pub.active)
		evbus_outbox_subxact(event);
}

/* Once per process, at load: callbacks must not miss the first PRE_COMMIT. */
void
evbus_publish_init(void)
{
	RegisterXactCallback(publish_xact, NULL);
	RegisterSubXactCallback(publish_subxact, NULL);
}
