/*-------------------------------------------------------------------------
 * volatile_outbox.c
 *	  What the current transaction publishes to volatile buses.
 *
 * An event is formed once, as the entry that the ring will have, and kept until the
 * transaction commits; its space in the ring is taken before that, at the call, so
 * that the commit callback only copies (volatile.c).  Nothing is written and no
 * transaction id is needed.
 *
 * The entries are a stack, with a mark for each level of subtransactions: ROLLBACK TO
 * cuts back to the mark, and gives the space of what it cuts off back.
 *-------------------------------------------------------------------------
 */
#include "volatile_outbox.h"

#include "codec.h"
#include "point.h"
#include "utils/memutils.h"
#include "volatile.h"

#define KEEP_BYTES		(64 * 1024) /* of the buffer that stay for the next transaction */
#define LEVELS_FIRST	16

/* The volatile bus whose subscription a handler of this process serves; 0: none. */
int32		evbus_volatile_served = 0;

/* A subtransaction that published: where its part of the stack begins. */
typedef struct Level
{
	int			nesting;
	Size		used;
} Level;

static EvbusDb *my_db;
static char *entries = NULL;
static Size used = 0;
static Size size = 0;
static Size *of_rings = NULL;	/* bytes for each ring */
static Level *levels = NULL;
static int	n_levels = 0;
static int	max_levels = 0;

/* ----------------------------------------------------------------- refusals */

/* Errors 0A000: volatile buses do not have what is asked for. */
void
evbus_volatile_refuse(const EvbusBus *bus, const char *what, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("bus \"%s\" is volatile: %s", bus->name, what),
			 errhint("%s", hint)));
}

/* May this process publish to it?  A handler would wait for space that its own ack gives back. */
void
evbus_volatile_check(const EvbusBus *bus)
{
	if (bus->bus_id == evbus_volatile_served)
		evbus_volatile_refuse(bus, "a handler cannot publish to the volatile bus that it reads",
							  "Publish to another bus, or make this one durable.");
}

/* ------------------------------------------------------------------- adding */

static void
push_level(int nesting)
{
	if (n_levels == max_levels)
	{
		int			wanted = Max(max_levels * 2, LEVELS_FIRST);

		levels = levels ? repalloc(levels, sizeof(Level) * wanted)
			: MemoryContextAlloc(TopMemoryContext, sizeof(Level) * wanted);
		max_levels = wanted;
	}
	levels[n_levels].nesting = nesting;
	levels[n_levels++].used = used;
}

/* Room for the next entry; and the mark of the current subtransaction, before what it marks. */
static void
make_room(Size len)
{
	int			nesting = GetCurrentTransactionNestLevel();

	if (n_levels == 0 || levels[n_levels - 1].nesting != nesting)
		push_level(nesting);
	if (used + len > size)
	{
		Size		wanted = Max(Max(size * 2, used + len), 8192);

		entries = entries ? repalloc_huge(entries, wanted) : MemoryContextAllocHuge(TopMemoryContext, wanted);
		size = wanted;
	}
}

/*
 * One event, under an id taken before.  Errors 54000 the transaction is larger than the
 * ring, VB003 no ring, VB014 no space.
 */
void
evbus_volatile_add(EvbusDb *db, const EvbusBus *bus, int64 id, text *type, text *key, const EvbusHeaders *headers, Jsonb *payload)
{
	EvbusVolatile *v = evbus_volatile_find(db, bus->slot, bus->bus_id);
	EvbusVolatileEntry *entry;
	EvbusCoded	coded_headers = {0};
	EvbusCoded	coded;
	uint32		epoch;
	Size		len;
	int			ring;
	char	   *at;
	bool		stored;

	if (unlikely(v == NULL))
		v = evbus_volatile_get(db, bus);
	if (used > 0 && my_db != db)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot publish through two versions of the extension in one transaction")));
	my_db = db;
	epoch = v->epoch;
	pg_read_barrier();
	if (v->bus_id != bus->bus_id)
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_NO_BUS),
				 errmsg("bus \"%s\" does not exist any more", bus->name)));
	if (of_rings == NULL)
		of_rings = MemoryContextAllocZero(TopMemoryContext, sizeof(Size) * evbus_max_volatile_buses);
	stored = headers && evbus_encode_headers(headers, &coded_headers);
	evbus_encode_payload(bus, payload, &coded);
	len = MAXALIGN(sizeof(EvbusVolatileEntry) + VARSIZE_ANY_EXHDR(type) + (key ? VARSIZE_ANY_EXHDR(key) : 0) +
				   (stored ? 1 + coded_headers.len : 0) + 1 + coded.len);
	make_room(len);
	ring = (int) (v - EVBUS_VOLATILE(db, 0));
	if (of_rings[ring] + len > EVBUS_VOLATILE_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("transaction is too large for volatile bus \"%s\"", bus->name),
				 errdetail("It has published %zu bytes; the ring has %zu.", of_rings[ring] + len, (Size) EVBUS_VOLATILE_BYTES),
				 errhint("Publish less in one transaction, or raise \"%s\" and restart the server.", "evbus.volatile_ring_size")));
	evbus_volatile_map(db, v, of_rings[ring] + len);
	evbus_volatile_claim(db, v, bus, len);

	/* From here on nothing fails. */
	of_rings[ring] += len;
	entry = (EvbusVolatileEntry *) (entries + used);
	used += len;
	entry->len = (uint32) len;
	entry->bus_id = bus->bus_id;
	entry->bus_slot = (uint16) bus->slot;
	entry->ring = (uint16) ring;
	entry->epoch = epoch;
	entry->key_len = key ? (int32) VARSIZE_ANY_EXHDR(key) : -1;
	entry->headers_len = stored ? (int32) (1 + coded_headers.len) : -1;
	entry->payload_len = (int32) (1 + coded.len);
	entry->type_len = (uint32) VARSIZE_ANY_EXHDR(type);
	entry->event_id = id;
	entry->position = 0;
	at = (char *) (entry + 1);
	memcpy(at, VARDATA_ANY(type), entry->type_len);
	at += entry->type_len;
	if (key)
	{
		memcpy(at, VARDATA_ANY(key), entry->key_len);
		at += entry->key_len;
	}
	if (stored)
	{
		*at++ = coded_headers.codec;
		memcpy(at, coded_headers.data, coded_headers.len);
		at += coded_headers.len;
	}
	*at++ = coded.codec;
	memcpy(at, coded.data, coded.len);
}

/* Has this transaction published to volatile buses, or tried to? */
bool
evbus_volatile_any(void)
{
	return n_levels > 0;
}

/* ---------------------------------------------------------------- callbacks */

/* Cut the stack back. */
static void
drop(Size to)
{
	for (Size at = to; at < used; at += ((EvbusVolatileEntry *) (entries + at))->len)
	{
		EvbusVolatileEntry *entry = (EvbusVolatileEntry *) (entries + at);

		evbus_volatile_give_back(my_db, entry->ring, entry->len);
		of_rings[entry->ring] -= entry->len;
	}
	if (to < used)
		evbus_volatile_freed(my_db);
	used = to;
}

static void
forget(void)
{
	used = 0;
	n_levels = 0;
	if (size > KEEP_BYTES)
	{
		pfree(entries);
		entries = NULL;
		size = 0;
	}
}

/* The transaction ends, and has published to volatile buses.  Commit cannot fail. */
void
evbus_volatile_xact(XactEvent event)
{
	switch (event)
	{
		case XACT_EVENT_PRE_PREPARE:
			if (used == 0)
				break;
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot PREPARE a transaction that has published to volatile buses"),
					 errhint("Commit it, or publish to a durable bus.")));
			break;
		case XACT_EVENT_COMMIT:
			EVBUS_POINT("volatile.committed");
			for (int ring = 0; ring < evbus_max_volatile_buses; ring++)
				if (of_rings[ring] > 0)
				{
					evbus_volatile_push(my_db, ring, entries, used);
					of_rings[ring] = 0;
				}
			forget();
			break;
		case XACT_EVENT_PREPARE:
		case XACT_EVENT_ABORT:
			drop(0);
			forget();
			break;
		default:
			break;
	}
}

/* Of a subtransaction that is about to end, or has. */
void
evbus_volatile_subxact(SubXactEvent event)
{
	int			nesting = GetCurrentTransactionNestLevel();
	Level	   *top = &levels[n_levels - 1];

	if (top->nesting < nesting)
		return;					/* this subtransaction did not publish */
	if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		if (n_levels > 1 && levels[n_levels - 2].nesting == nesting - 1)
			n_levels--;
		else
			top->nesting = nesting - 1;
	}
	else if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		drop(top->used);
		n_levels--;
	}
}
