/*-------------------------------------------------------------------------
 * outbox.c
 *	  What the current transaction publishes: rows for the log, entries for the
 *	  ring, and all ids.
 *
 * An event is formed once, as the tuple that heap_multi_insert() writes; what the
 * ring wants is copied out of that tuple when the transaction has committed.
 * Rows are written when there are many and before commit; those that the ring
 * still wants stay until then, unless they are more than the ring takes from one
 * transaction.
 *
 * Subtransactions: heap_multi_insert stamps the current subtransaction, so only
 * rows of the current level are ever written.  Rows and ids are stacks with a
 * mark for each level: ROLLBACK TO cuts back to the mark, RELEASE drops the mark.
 *
 * Memory lives as long as the process: an array of pointers and a context that
 * is reset after each transaction, so that a small one allocates next to nothing.
 *-------------------------------------------------------------------------
 */
#include "outbox.h"

#include "codec.h"
#include "eventlog.h"
#include "ring.h"
#include "utils/memutils.h"

#define FLUSH_ROWS		1024
#define FLUSH_BYTES		(1024 * 1024)
#define RANGE_MAX		65536	/* ids in one EvbusIdRange */
#define KEEP			4096	/* elements of an array that stay for the next transaction */

/* A subtransaction that published: where its part of the stacks begins. */
typedef struct Level
{
	int			nesting;
	int			rows;
	int			ranges;
	int			unwritten;		/* rows of this level */
	Size		bytes;			/* of those */
} Level;

static MemoryContext context = NULL;	/* the rows */
static EvbusRow **rows;
static int	n_rows;
static int	max_rows = 0;
static EvbusIdRange *ranges;	/* all ids */
static int	n_ranges;
static int	max_ranges = 0;
static Level *levels;
static int	n_levels;
static int	max_levels = 0;
static Size ring_bytes;			/* of the entries of all rows */
static bool too_large;			/* for the ring: a late row serves */

/* An array of at least *max elements, for the life of the process. */
static void *
make_room(void *array, int *max, int n, Size element)
{
	int			wanted = Max(*max * 2, 16);

	if (n < *max)
		return array;
	if (array == NULL)
		array = MemoryContextAlloc(TopMemoryContext, element * wanted);
	else
		array = repalloc_huge(array, element * wanted);
	*max = wanted;				/* not before there is room */
	return array;
}

/* The same array, without what one large transaction made it hold. */
static void *
trim(void *array, int *max)
{
	if (*max <= KEEP)
		return array;
	pfree(array);
	*max = 0;
	return NULL;
}

void
evbus_outbox_begin(void)
{
	if (context == NULL)
		context = GenerationContextCreate(TopMemoryContext, "evbus outbox", ALLOCSET_DEFAULT_SIZES);
}

/* The transaction is over; cannot fail. */
void
evbus_outbox_forget(void)
{
	n_rows = n_ranges = n_levels = 0;
	ring_bytes = 0;
	too_large = false;
	MemoryContextReset(context);
	rows = trim(rows, &max_rows);
	ranges = trim(ranges, &max_ranges);
}

/* The mark of the current subtransaction, made if need be. */
static Level *
current_level(void)
{
	int			nesting = GetCurrentTransactionNestLevel();
	Level	   *top = n_levels > 0 ? &levels[n_levels - 1] : NULL;

	if (top && top->nesting == nesting)
		return top;
	levels = make_room(levels, &max_levels, n_levels, sizeof(Level));
	top = &levels[n_levels++];
	top->nesting = nesting;
	top->rows = n_rows;
	top->ranges = n_ranges;
	top->unwritten = 0;
	top->bytes = 0;
	return top;
}

/* Drop the rows from `first` on. */
static void
drop_rows(int first)
{
	while (n_rows > first)
	{
		ring_bytes -= rows[--n_rows]->ring_len;
		pfree(rows[n_rows]);
	}
}

/* Write the rows of the current level; those that the ring wants stay. */
void
evbus_outbox_flush(void)
{
	Level	   *level = current_level();
	EvbusRow  **unwritten;
	int			n = 0;

	if (level->unwritten == 0)
		return;
	unwritten = palloc(sizeof(EvbusRow *) * level->unwritten);
	for (int i = level->rows; i < n_rows; i++)
		if (!rows[i]->written)
			unwritten[n++] = rows[i];
	evbus_eventlog_write(unwritten, n);
	for (int i = 0; i < n; i++)
		unwritten[i]->written = true;
	pfree(unwritten);
	level->unwritten = 0;
	level->bytes = 0;
	if (too_large)
		drop_rows(level->rows);
}

static void
add_range(const Level *level, int32 bus_id, int64 id)
{
	EvbusIdRange *last = n_ranges > level->ranges ? &ranges[n_ranges - 1] : NULL;

	if (last && last->bus_id == bus_id && last->first + last->n == id && last->n < RANGE_MAX)
	{
		last->n++;
		return;
	}
	ranges = make_room(ranges, &max_ranges, n_ranges, sizeof(EvbusIdRange));
	last = &ranges[n_ranges++];
	last->first = id;
	last->n = 1;
	last->bus_id = bus_id;
}

/* Are payload and headers short enough to be in the ring?  Else readers find them in the log. */
static bool
is_inline(const EvbusRow *row)
{
	return row->headers_len + row->payload_len <= EVBUS_INLINE_MAX;
}

static uint32
entry_len(const EvbusRow *row)
{
	return MAXALIGN(sizeof(EvbusRingEntry) + row->type_len + row->key_len +
					(is_inline(row) ? row->headers_len + row->payload_len : 0));
}

/* The entry of a row, and its place in the ring.  For commit callbacks. */
static void
put_entry(EvbusDb *db, uint64 at, const EvbusRow *row, XLogRecPtr lsn)
{
	const char *data = (const char *) row->tuple.t_data;
	bool		inlined = is_inline(row);
	EvbusRingEntry entry = {
		.len = row->ring_len,
		.flags = inlined ? EVBUS_RING_INLINE : 0,
		.bus_id = row->bus_id,
		.bus_slot = row->bus_slot,
		.type_len = row->type_len,
		.key_len = row->key_at ? row->key_len : -1,
		.headers_len = row->headers_at ? row->headers_len : -1,
		.payload_len = row->payload_len,
		.event_id = row->event_id,
		.commit_lsn = lsn
	};

	at = evbus_ring_put(db, at, &entry, sizeof(entry));
	at = evbus_ring_put(db, at, data + row->type_at, row->type_len);
	at = evbus_ring_put(db, at, data + row->key_at, row->key_len);
	if (inlined)
	{
		at = evbus_ring_put(db, at, data + row->headers_at, row->headers_len);
		(void) evbus_ring_put(db, at, data + row->payload_at, row->payload_len);
	}
}

/*
 * One event, under an id taken before and above those of the events before it.
 * ring: else a late row stands in for it.
 */
void
evbus_outbox_add(const EvbusBus *bus, int64 id, text *type, text *key,
				 const EvbusHeaders *headers, Jsonb *payload, bool ring)
{
	Level	   *level = current_level();	/* the mark comes before what it marks */
	EvbusCoded	coded_headers;
	EvbusCoded	coded_payload;
	EvbusRow   *row;
	bool		stored;

	rows = make_room(rows, &max_rows, n_rows, sizeof(EvbusRow *));
	stored = headers && evbus_encode_headers(headers, &coded_headers);
	evbus_encode_payload(bus, payload, &coded_payload);
	row = evbus_eventlog_form(context, bus, id, type, key, stored ? &coded_headers : NULL, &coded_payload);
	row->ring_len = ring ? entry_len(row) : 0;
	rows[n_rows++] = row;
	ring_bytes += row->ring_len;
	if (ring_bytes > EVBUS_RING_BYTES / 8)
		too_large = true;
	level->unwritten++;
	level->bytes += row->tuple.t_len;
	add_range(level, bus->bus_id, id);
	if (level->unwritten >= FLUSH_ROWS || level->bytes >= FLUSH_BYTES)
		evbus_outbox_flush();
}

/* Is it more than the ring takes from one transaction? */
bool
evbus_outbox_too_large(void)
{
	return too_large;
}

/* A late row stands in for all events so far. */
void
evbus_outbox_leave_ring(void)
{
	for (int i = 0; i < n_rows; i++)
		rows[i]->ring_len = 0;	/* who drops a row takes its part off the sum */
	ring_bytes = 0;
}

/* All ids. */
const EvbusIdRange *
evbus_outbox_ids(int *n)
{
	*n = n_ranges;
	return ranges;
}

/*
 * To the ring, with the LSN of the commit; false: no space.  Sets *awaited:
 * somebody waits for one of them.  For commit callbacks: cannot fail.
 */
bool
evbus_outbox_push(EvbusDb *db, XLogRecPtr lsn, bool *awaited)
{
	uint64		at;
	int			slot = -1;

	*awaited = false;
	if (ring_bytes == 0)
		return true;
	if (!evbus_ring_begin(db, ring_bytes, &at))
		return false;
	for (int i = 0; i < n_rows; i++)
		if (rows[i]->ring_len > 0)
		{
			put_entry(db, at, rows[i], lsn);
			at += rows[i]->ring_len;
		}
	evbus_ring_end(db, at);
	pg_memory_barrier();		/* who waits and does not see the entries is seen */
	for (int i = 0; i < n_rows; i++)
		if (rows[i]->bus_slot != slot)
		{
			slot = rows[i]->bus_slot;
			*awaited = *awaited || pg_atomic_read_u32(&EVBUS_BUS(db, slot)->awaited) != 0;
		}
	return true;
}

/* Of a subtransaction that is about to end, or has. */
void
evbus_outbox_subxact(SubXactEvent event)
{
	int			nesting = GetCurrentTransactionNestLevel();
	Level	   *top = n_levels > 0 ? &levels[n_levels - 1] : NULL;
	Level	   *parent = n_levels > 1 ? top - 1 : NULL;

	if (top == NULL || top->nesting < nesting)
		return;					/* this subtransaction did not publish */
	switch (event)
	{
		case SUBXACT_EVENT_PRE_COMMIT_SUB:
			if (top->unwritten >= FLUSH_ROWS || top->bytes >= FLUSH_BYTES ||
				(parent && (top->unwritten + parent->unwritten >= FLUSH_ROWS ||
							top->bytes + parent->bytes >= FLUSH_BYTES)))
				evbus_outbox_flush();	/* else loops with EXCEPTION grow the parent without end */
			break;
		case SUBXACT_EVENT_COMMIT_SUB:
			if (parent && parent->nesting == nesting - 1)
			{
				parent->unwritten += top->unwritten;
				parent->bytes += top->bytes;
				n_levels--;
			}
			else
				top->nesting = nesting - 1;
			break;
		case SUBXACT_EVENT_ABORT_SUB:
			drop_rows(top->rows);
			n_ranges = top->ranges;
			n_levels--;
			break;
		default:
			break;
	}
}
