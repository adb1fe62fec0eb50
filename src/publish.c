/*-------------------------------------------------------------------------
 * publish.c
 *	  evbus.publish() and publish_batch(): events of the current transaction.
 *
 * An event gets its id at once and is buffered twice: as a row for the log and
 * as an entry for the ring.  Rows are written when the buffer is full and before
 * commit, all at once; the entries go to the ring in the commit callback, when
 * the rows are visible.  What of that can fail is done before commit; the
 * callback only copies.
 *
 * Subtransactions: heap_multi_insert stamps the current subtransaction, so only
 * rows of the current level are ever written.  Buffers are stacks with a mark
 * for each level: ROLLBACK TO cuts back to the mark, RELEASE drops the mark.
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
#include "codec.h"
#include "eventlog.h"
#include "funcapi.h"
#include "late.h"
#include "leaf.h"
#include "miscadmin.h"
#include "pattern.h"
#include "point.h"
#include "registry.h"
#include "ring.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#define FLUSH_ROWS		1024
#define FLUSH_BYTES		(1024 * 1024)
#define RANGE_MAX		65536	/* ids in one EvbusIdRange */

/* A subtransaction that published: where its part of the stacks begins. */
typedef struct Level
{
	int			nesting;
	int			rows;
	int			ranges;
	Size		ring;
} Level;

/* The current transaction, if it published. */
static struct
{
	bool		active;
	EvbusDb    *db;
	EvbusSlot  *slot;
	MemoryContext context;
	EvbusRow   *rows;			/* not yet written */
	int			n_rows;
	int			max_rows;
	Size		row_bytes;
	char	   *ring;			/* entries for the ring */
	Size		ring_len;
	Size		ring_size;
	bool		ring_dropped;	/* too much: the late row serves */
	EvbusIdRange *ranges;		/* all ids */
	int			n_ranges;
	int			max_ranges;
	Level	   *levels;
	int			n_levels;
	int			max_levels;
	bool		late;			/* rows in evbus.late were written */
}			pub;

/* Our PRE_COMMIT has run: whatever comes now is written through. */
static bool past_precommit = false;

PG_FUNCTION_INFO_V1(evbus_publish);
PG_FUNCTION_INFO_V1(evbus_publish_batch);

/* ------------------------------------------------------------------ buffers */

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
	pub.context = AllocSetContextCreate(TopTransactionContext, "evbus publish", ALLOCSET_DEFAULT_SIZES);
	pub.max_rows = 64;
	pub.rows = MemoryContextAlloc(pub.context, sizeof(EvbusRow) * pub.max_rows);
	pub.max_ranges = 16;
	pub.ranges = MemoryContextAlloc(pub.context, sizeof(EvbusIdRange) * pub.max_ranges);
	pub.max_levels = 8;
	pub.levels = MemoryContextAlloc(pub.context, sizeof(Level) * pub.max_levels);
	pub.ring_size = 4096;
	pub.ring = MemoryContextAlloc(pub.context, pub.ring_size);
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

/* For callbacks: forget the transaction; its memory goes with it. */
static void
forget(void)
{
	pg_memory_barrier();		/* the push is seen before the slot is clear */
	pg_atomic_write_u32(&pub.slot->state, EVBUS_SLOT_IDLE);
	pg_atomic_write_u64(&pub.slot->low, 0);
	pub.active = false;
}

/* The mark of the current subtransaction, made if need be. */
static Level *
current_level(void)
{
	int			nesting = GetCurrentTransactionNestLevel();
	Level	   *top = pub.n_levels > 0 ? &pub.levels[pub.n_levels - 1] : NULL;

	if (top && top->nesting == nesting)
		return top;
	if (pub.n_levels == pub.max_levels)
		pub.levels = repalloc(pub.levels, sizeof(Level) * (pub.max_levels *= 2));
	top = &pub.levels[pub.n_levels++];
	top->nesting = nesting;
	top->rows = pub.n_rows;
	top->ranges = pub.n_ranges;
	top->ring = pub.ring_len;
	return top;
}

/* Write the rows of the current level. */
static void
flush(void)
{
	int			from = current_level()->rows;

	if (pub.n_rows == from)
		return;
	evbus_eventlog_write(pub.rows + from, pub.n_rows - from);
	for (int i = from; i < pub.n_rows; i++)
	{
		pub.row_bytes -= pub.rows[i].tuple->t_len;
		heap_freetuple(pub.rows[i].tuple);
	}
	pub.n_rows = from;
}

static void
add_range(int32 bus_id, int64 id)
{
	EvbusIdRange *last = pub.n_ranges > current_level()->ranges ? &pub.ranges[pub.n_ranges - 1] : NULL;

	if (last && last->bus_id == bus_id && last->first + last->n == id && last->n < RANGE_MAX)
	{
		last->n++;
		return;
	}
	if (pub.n_ranges == pub.max_ranges)
		pub.ranges = repalloc_huge(pub.ranges, sizeof(EvbusIdRange) * (pub.max_ranges *= 2));
	last = &pub.ranges[pub.n_ranges++];
	last->first = id;
	last->n = 1;
	last->bus_id = bus_id;
}

/* Append the entry for the ring, or give the ring up for this transaction. */
static void
add_ring(const EvbusBus *bus, int64 id, text *type, text *key, bytea *headers, bytea *payload)
{
	EvbusRingEntry *entry;
	Size		type_len = VARSIZE_ANY_EXHDR(type);
	Size		key_len = key ? VARSIZE_ANY_EXHDR(key) : 0;
	Size		headers_len = headers ? VARSIZE_ANY_EXHDR(headers) : 0;
	Size		payload_len = VARSIZE_ANY_EXHDR(payload);
	bool		inlined = headers_len + payload_len <= EVBUS_INLINE_MAX;
	Size		len = MAXALIGN(sizeof(EvbusRingEntry) + type_len + key_len + (inlined ? headers_len + payload_len : 0));
	char	   *out;

	if (pub.ring_dropped)
		return;
	if (pub.ring_len + len > EVBUS_RING_BYTES / 8)
	{
		pub.ring_dropped = true;
		pfree(pub.ring);
		pub.ring = NULL;
		return;
	}
	while (pub.ring_len + len > pub.ring_size)
		pub.ring = repalloc_huge(pub.ring, pub.ring_size *= 2);
	entry = (EvbusRingEntry *) (pub.ring + pub.ring_len);
	entry->len = len;
	entry->flags = inlined ? EVBUS_RING_INLINE : 0;
	entry->bus_id = bus->bus_id;
	entry->bus_slot = bus->slot;
	entry->type_len = type_len;
	entry->key_len = key ? (int32) key_len : -1;
	entry->headers_len = headers ? (int32) headers_len : -1;
	entry->payload_len = payload_len;
	entry->unused = 0;
	entry->event_id = id;
	entry->position = 0;
	out = (char *) (entry + 1);
	memcpy(out, VARDATA_ANY(type), type_len);
	out += type_len;
	if (key)
		memcpy(out, VARDATA_ANY(key), key_len);
	out += key_len;
	if (inlined)
	{
		if (headers)
			memcpy(out, VARDATA_ANY(headers), headers_len);
		memcpy(out + headers_len, VARDATA_ANY(payload), payload_len);
	}
	pub.ring_len += len;
}

/* ------------------------------------------------------------------ publish */

static void
check_type(text *type)
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
check_event(const EvbusBus *bus, text *key, Jsonb *headers, Jsonb *payload)
{
	Size		size = VARSIZE(payload) - VARHDRSZ;

	if (key && VARSIZE_ANY_EXHDR(key) > EVBUS_KEY_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("key is too long"),
				 errdetail("It has %d bytes; the limit is %d.", (int) VARSIZE_ANY_EXHDR(key), EVBUS_KEY_MAX)));
	if (headers && !JB_ROOT_IS_OBJECT(headers))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("headers must be a JSON object")));
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
static EvbusDb *
prepare(FunctionCallInfo fcinfo, const char *what, EvbusBus *bus)
{
	EvbusDb    *db;
	EvbusLeaf	leaf;
	Oid			parent;
	int64		now;

	evbus_bus_get(evbus_arg_text(fcinfo, 0, "bus"), bus);
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

/* Buffer one event under an id taken before. */
static void
add_event(const EvbusBus *bus, int64 id, text *type, text *key, Jsonb *headers, Jsonb *payload)
{
	bytea	   *coded_headers = headers ? evbus_encode_jsonb(headers) : NULL;
	bytea	   *coded_payload = evbus_encode_jsonb(payload);
	MemoryContext old;
	EvbusRow   *row;

	(void) current_level();		/* the mark comes before what it marks */
	if (pub.n_rows == pub.max_rows)
		pub.rows = repalloc_huge(pub.rows, sizeof(EvbusRow) * (pub.max_rows *= 2));
	old = MemoryContextSwitchTo(pub.context);
	row = &pub.rows[pub.n_rows];
	row->event_id = id;
	row->storage_class_id = bus->storage_class_id;
	row->tuple = evbus_eventlog_form(id, bus->storage_class_id, bus->bus_id,
									 PointerGetDatum(type), PointerGetDatum(key), key == NULL,
									 PointerGetDatum(coded_headers), coded_headers == NULL,
									 PointerGetDatum(coded_payload));
	MemoryContextSwitchTo(old);
	pub.n_rows++;
	pub.row_bytes += row->tuple->t_len;
	if (!past_precommit)		/* else a late row stands in for it */
		add_ring(bus, id, type, key, coded_headers, coded_payload);
	add_range(bus->bus_id, id);
	if (coded_headers)
		pfree(coded_headers);
	pfree(coded_payload);

	if (pub.n_rows - current_level()->rows >= FLUSH_ROWS || pub.row_bytes >= FLUSH_BYTES)
		flush();
}

/* After our PRE_COMMIT nobody else will write what was just added. */
static void
write_through(void)
{
	if (!past_precommit)
		return;
	flush();
	evbus_late_write(pub.db, pub.ranges + pub.n_ranges - 1, 1);
	pub.late = true;
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
	int64		id;

	evbus_arg_present(fcinfo, 0, "bus");
	evbus_arg_present(fcinfo, 1, "type");
	evbus_arg_present(fcinfo, 2, "payload");
	type = PG_GETARG_TEXT_PP(1);
	payload = PG_GETARG_JSONB_P(2);
	key = PG_ARGISNULL(3) ? NULL : PG_GETARG_TEXT_PP(3);
	headers = PG_ARGISNULL(4) ? NULL : PG_GETARG_JSONB_P(4);

	check_type(type);
	db = prepare(fcinfo, "evbus.publish()", &bus);
	check_event(&bus, key, headers, payload);
	id = evbus_clock_take(&db->clock, 1);
	add_event(&bus, id, type, key, headers, payload);
	write_through();
	PG_RETURN_INT64(id);
}

/* An optional array argument of publish_batch(); its length must be that of types. */
static bool
optional_array(FunctionCallInfo fcinfo, int n, const char *name, int count, Datum **values, bool **nulls)
{
	int			length;

	if (PG_ARGISNULL(n))
		return false;
	evbus_arg_array(fcinfo, n, name, values, nulls, &length);
	if (length != count)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arrays must have the same length"),
				 errdetail("\"types\" has %d elements, \"%s\" has %d.", count, name, length)));
	return true;
}

/*
 * evbus.publish_batch(bus text, types text[], payloads jsonb[], keys text[], headers jsonb[])
 * returns setof bigint
 *
 * Stores one event for each element, in that order, all or none; returns their
 * ids, which grow.  The arrays have one dimension and one length; keys and
 * headers may be NULL, and so may their elements.  Empty arrays store nothing.
 * Else as evbus.publish().
 */
Datum
evbus_publish_batch(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
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
	int			count;
	int64		id;
	MemoryContext scratch;

	evbus_arg_present(fcinfo, 0, "bus");
	evbus_arg_array(fcinfo, 1, "types", &types, &type_nulls, &count);
	evbus_no_nulls(type_nulls, count, "types");
	evbus_arg_present(fcinfo, 2, "payloads");
	(void) optional_array(fcinfo, 2, "payloads", count, &payloads, &payload_nulls);
	evbus_no_nulls(payload_nulls, count, "payloads");
	(void) optional_array(fcinfo, 3, "keys", count, &keys, &key_nulls);
	(void) optional_array(fcinfo, 4, "headers", count, &headers, &header_nulls);

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	db = prepare(fcinfo, "evbus.publish_batch()", &bus);
	if (count == 0)
		return (Datum) 0;
	for (int i = 0; i < count; i++)
		check_type(DatumGetTextPP(types[i]));

	scratch = AllocSetContextCreate(CurrentMemoryContext, "evbus publish_batch", ALLOCSET_DEFAULT_SIZES);
	id = evbus_clock_take(&db->clock, count);
	for (int i = 0; i < count; i++, id++)
	{
		MemoryContext old = MemoryContextSwitchTo(scratch);
		text	   *key = keys && !key_nulls[i] ? DatumGetTextPP(keys[i]) : NULL;
		Jsonb	   *header = headers && !header_nulls[i] ? DatumGetJsonbP(headers[i]) : NULL;
		Jsonb	   *payload = DatumGetJsonbP(payloads[i]);
		Datum		value = Int64GetDatum(id);
		bool		isnull = false;

		check_event(&bus, key, header, payload);
		add_event(&bus, id, DatumGetTextPP(types[i]), key, header, payload);
		write_through();
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &value, &isnull);
		MemoryContextSwitchTo(old);
		MemoryContextReset(scratch);
	}
	MemoryContextDelete(scratch);
	return (Datum) 0;
}

/* ---------------------------------------------------------------- callbacks */

/* Everything that can fail: rows, and what shall stand in for the ring. */
static void
before_commit(bool prepared)
{
	uint32		open = EVBUS_SLOT_OPEN;

	check_area();
	EVBUS_POINT("publish.precommit");
	flush();
	EVBUS_POINT("publish.flushed");
	if (!pg_atomic_compare_exchange_u32(&pub.slot->state, &open, EVBUS_SLOT_COMMITTING) ||
		prepared || pub.ring_dropped)
	{
		if (pub.n_ranges > 0)
		{
			evbus_late_write(pub.db, pub.ranges, pub.n_ranges);
			pub.late = true;
		}
		pub.ring_len = 0;
	}
	EVBUS_POINT("publish.committing");
}

/* Cannot fail: no palloc, no catalog, no wait but for the ring's lock. */
static void
after_commit(void)
{
	EvbusDb    *db = pub.db;

	EVBUS_POINT("publish.committed");
	if (pub.ring_len > 0 && !evbus_ring_push(db, pub.ring, pub.ring_len, XactLastCommitEnd))
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
	evbus_ring_wake(db);
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
	int			nesting;
	Level	   *top;

	if (!pub.active || pub.n_levels == 0)
		return;
	nesting = GetCurrentTransactionNestLevel();
	top = &pub.levels[pub.n_levels - 1];
	if (top->nesting < nesting)
		return;					/* this subtransaction did not publish */
	switch (event)
	{
		case SUBXACT_EVENT_PRE_COMMIT_SUB:
			if (pub.n_rows >= FLUSH_ROWS || pub.row_bytes >= FLUSH_BYTES)
				flush();		/* else loops with EXCEPTION grow the parent without end */
			break;
		case SUBXACT_EVENT_COMMIT_SUB:
			if (pub.n_levels > 1 && pub.levels[pub.n_levels - 2].nesting == nesting - 1)
				pub.n_levels--;
			else
				top->nesting = nesting - 1;
			break;
		case SUBXACT_EVENT_ABORT_SUB:
			while (pub.n_rows > top->rows)
			{
				HeapTuple	tuple = pub.rows[--pub.n_rows].tuple;

				pub.row_bytes -= tuple->t_len;
				heap_freetuple(tuple);
			}
			pub.n_ranges = top->ranges;
			if (!pub.ring_dropped)
				pub.ring_len = top->ring;
			pub.n_levels--;
			break;
		default:
			break;
	}
}

/* Once per process, at load: callbacks must not miss the first PRE_COMMIT. */
void
evbus_publish_init(void)
{
	RegisterXactCallback(publish_xact, NULL);
	RegisterSubXactCallback(publish_subxact, NULL);
}
