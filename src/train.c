/*-------------------------------------------------------------------------
 * train.c
 *	  Dictionaries: made of the newest events of a bus, replaced when another would
 *	  be better, dropped when no event needs them any more.
 *
 * They are made by evbus.train_dictionary(), or by the indexer (indexer.c), which
 * may take its time.  Every fifth sample is kept out of the training and tells what
 * the dictionary is worth.
 *
 * Only rows of the log, and their copies in the ring, refer to dictionaries: retries
 * and dead letters keep what they have of an event in a form that stands alone
 * (evbus_coded_alone()).  So a dictionary goes after the last leaf that may have an event
 * of its bus with an id up to its last_id, in steps:
 *
 *	1. It is not what the bus uses, so it is marked as retired.
 *	2. In a later transaction, under a lock that waits for the one of step 1: everybody
 *	   has been told by now, and whoever takes an id from here on does not use it for
 *	   that (dictionary.c).  So the clock of now is its last_id.
 *	3. When all leaves and the ring are beyond that, its row is deleted.
 *-------------------------------------------------------------------------
 */
#include "train.h"

#include <zdict.h>

#include "area.h"
#include "args.h"
#include "audit.h"
#include "catalog/pg_type.h"
#include "codec.h"
#include "eventlog.h"
#include "fetch.h"
#include "fmgr.h"
#include "funcapi.h"
#include "internal.h"
#include "jsonb_pack.h"
#include "leaf.h"
#include "ledger.h"
#include "miscadmin.h"
#include "point.h"
#include "privilege.h"
#include "progress.h"
#include "registry.h"
#include "ring.h"
#include "storage/lmgr.h"
#include "tick.h"
#include "upkeep.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "varint.h"

#define SAMPLES_LEAST	100		/* fewer tell nothing about those to come */
#define SAMPLES_MOST	1000000
#define SAMPLES_USUAL	10000
#define SAMPLES_BYTES	(8 * 1024 * 1024)	/* of them all: training takes a second then */
#define SIZE_LEAST		1024
#define SIZE_USUAL		(16 * 1024)
#define ZSTD_ID_AT		4		/* in a dictionary */
#define TEST_EVERY		5		/* one of so many samples is kept out of the training */
#define CHUNK_FIRST		16		/* events read at once, of unknown size */
#define CHUNK_MOST		1000
#define CHUNK_BYTES		(4 * 1024 * 1024)	/* that those of a size guessed by the ones before may have */
#define AUTO_LEAST		1000	/* events that a bus must have had before we try */
#define AUTO_BETTER		0.9		/* of the bytes: else the old one stays */
#define AUTO_REST		"interval '1 hour'" /* at least, between two looks at a bus */

PG_FUNCTION_INFO_V1(evbus_train_dictionary);

/* Payloads as they are compressed: packed. */
typedef struct Samples
{
	char	   *bytes;
	Size		n_bytes;
	Size	   *sizes;
	int		   *jsonb_sizes;
	int			n;
	int			looked_at;		/* events, small ones among them */
} Samples;

/* What came of it. */
typedef struct Trained
{
	char	   *raw;
	Size		size;
	char		secret[EVBUS_SIPHASH_KEY];
	int			trained_on;
	int			tested_on;
	double		jsonb_bytes;	/* of an average payload, as the two below */
	double		packed_bytes;
	double		stored_bytes;
	const char *failure;		/* NULL: none */
} Trained;

/* -------------------------------------------------------------------- samples */

/* One more payload, unless it is one that dictionaries are not used for. */
static void
add_sample(Samples *s, const EvbusEvent *event)
{
	int			len;
	const char *coded = evbus_coded_alone(event->payload, event->payload_len, &len);
	const unsigned char *at = (const unsigned char *) coded + 1;
	uint64		jsonb_size;

	s->looked_at++;
	if (len < EVBUS_DICTIONARY_FROM || len > EVBUS_DICTIONARY_UPTO)
		return;
	if (coded[0] != EVBUS_CODEC_PACKED)
	{
		Jsonb	   *json = evbus_decode_try(coded, len);
		char	   *packed;

		if (json == NULL || VARSIZE(json) - VARHDRSZ > EVBUS_DICTIONARY_UPTO)
			return;
		packed = palloc(1 + VARSIZE(json));
		len = 1 + evbus_jsonb_pack(&json->root, VARSIZE(json) - VARHDRSZ, packed + 1, VARSIZE(json));
		coded = packed;
		at = (const unsigned char *) coded + 1;
	}
	len--;
	if (len < EVBUS_DICTIONARY_FROM || s->n_bytes + len > SAMPLES_BYTES ||
		!evbus_take_varint(&at, at + len, &jsonb_size) || jsonb_size > EVBUS_DICTIONARY_UPTO)
		return;
	memcpy(s->bytes + s->n_bytes, coded + 1, len);
	s->n_bytes += len;
	s->sizes[s->n] = len;
	s->jsonb_sizes[s->n++] = (int) jsonb_size;
}

/* Of the newest events of a bus, newest chunk first, at most `most`. */
static void
collect(EvbusDb *db, const EvbusBus *bus, int most, Samples *s)
{
	static char everything[] = "\001#"; /* as EvbusSubscription.types has it */
	EvbusBusState *state = EVBUS_BUS(db, bus->slot);
	EvbusSubscription reader = {.bus_id = bus->bus_id, .bus_slot = bus->slot, .n_types = 1, .types = everything};
	EvbusEvent *events = palloc(sizeof(EvbusEvent) * CHUNK_MOST);
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext, "evbus samples", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old;
	int64		chunk = CHUNK_FIRST;
	int64		lo;
	int64		hi;

	s->bytes = palloc(SAMPLES_BYTES);
	s->sizes = palloc(sizeof(Size) * most);
	s->jsonb_sizes = palloc(sizeof(int) * most);
	s->n_bytes = 0;
	s->n = s->looked_at = 0;
	strlcpy(reader.bus_name, bus->name, sizeof(reader.bus_name));
	if ((int32) pg_atomic_read_u32(&state->bus_id) != bus->bus_id)
		return;					/* nothing was ever published */
	hi = (int64) pg_atomic_read_u64(&state->next_position);
	evbus_ledger_wait_ticked(db, &reader, hi);
	lo = Max(evbus_tick_first_position(bus->bus_id), hi - most);
	evbus_progress_phase(EVBUS_PHASE_COLLECTING, 0, hi - lo);
	while (hi > lo && s->n_bytes < SAMPLES_BYTES - EVBUS_DICTIONARY_UPTO)
	{
		int64		from = Max(lo, hi - chunk);
		int64		bytes = 1;
		int			n;

		CHECK_FOR_INTERRUPTS();
		old = MemoryContextSwitchTo(scratch);
		n = evbus_tick_read(bus->bus_id, from, hi, events);
		evbus_fetch(&reader, events, n);
		for (int i = 0; i < n; i++)
			if (events[i].type != NULL && events[i].payload != NULL)
			{
				bytes += events[i].payload_len + events[i].headers_len;
				add_sample(s, &events[i]);
			}
		MemoryContextSwitchTo(old);
		MemoryContextReset(scratch);
		evbus_progress_add(hi - from);
		chunk = Max(Min(CHUNK_BYTES / (bytes / (hi - from) + 1), CHUNK_MOST), 1);
		hi = from;
	}
	EVBUS_POINT("dictionary.collected");
	MemoryContextDelete(scratch);
	pfree(events);
}

/* ------------------------------------------------------------------- training */

/* Bytes of an average sample of those kept out, as stored with a dictionary. */
static double
stored_bytes(const Samples *s, const EvbusDictionary *dictionary)
{
	Size		room = EVBUS_COMPRESS_ROOM(EVBUS_DICTIONARY_UPTO);
	char	   *out = palloc(room);
	const char *at = s->bytes;
	double		sum = 0;
	int			n = 0;

	evbus_progress_phase(EVBUS_PHASE_TESTING, 0, s->n / TEST_EVERY);
	for (int i = 0; i < s->n; at += s->sizes[i++])
		if (i % TEST_EVERY == TEST_EVERY - 1)
		{
			Size		stored = evbus_dictionary_compress(dictionary, at, s->sizes[i], out, room);

			evbus_progress_add(1);
			sum += 1 + (stored > 0 ? stored : s->sizes[i]);
			n++;
		}
	pfree(out);
	return sum / Max(n, 1);
}

/* Make a dictionary of at most `size` bytes; false, and why, if nothing comes of it. */
static bool
train(const Samples *s, Size size, Trained *t)
{
	char	   *bytes = palloc(Max(s->n_bytes, 1));
	Size	   *sizes = palloc(sizeof(Size) * Max(s->n, 1));
	Size		n_bytes = 0;
	const char *at = s->bytes;
	EvbusDictionary trial = {.id = 1};
	ZSTD_CDict *cdict;

	memset(t, 0, sizeof(*t));
	for (int i = 0; i < s->n; at += s->sizes[i++])
		if (i % TEST_EVERY == TEST_EVERY - 1)
		{
			t->jsonb_bytes += s->jsonb_sizes[i];
			t->packed_bytes += 1 + s->sizes[i];
			t->tested_on++;
		}
		else
		{
			memcpy(bytes + n_bytes, at, s->sizes[i]);
			n_bytes += s->sizes[i];
			sizes[t->trained_on++] = s->sizes[i];
		}
	t->jsonb_bytes /= Max(t->tested_on, 1);
	t->packed_bytes /= Max(t->tested_on, 1);
	t->raw = palloc(size);
	evbus_progress_phase(EVBUS_PHASE_TRAINING, EVBUS_UNKNOWN, t->trained_on);
	EVBUS_POINT("dictionary.training");
	t->size = ZDICT_trainFromBuffer(t->raw, size, bytes, sizes, t->trained_on);
	pfree(bytes);
	pfree(sizes);
	if (ZDICT_isError(t->size))
	{
		t->failure = ZDICT_getErrorName(t->size);
		return false;
	}
	memset(t->raw + ZSTD_ID_AT, 0, sizeof(uint32));	/* codec.c has an id of its own */
	if (!pg_strong_random(t->secret, EVBUS_SIPHASH_KEY))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random bytes for the secret of a dictionary")));
	memcpy(trial.secret, t->secret, EVBUS_SIPHASH_KEY);
	cdict = ZSTD_createCDict(t->raw, t->size, evbus_compress_level);
	if (cdict == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("zstd could not make a dictionary ready.")));
	trial.cdict = cdict;
	t->stored_bytes = stored_bytes(s, &trial);
	ZSTD_freeCDict(cdict);
	return true;
}

/* Its row; returns the id.  Used from the commit on. */
static int32
keep(const EvbusBus *bus, const Trained *t)
{
	static const Oid types[] = {INT4OID, INT4OID, FLOAT8OID, FLOAT8OID, BYTEAOID, BYTEAOID};
	Datum		values[] = {
		Int32GetDatum(bus->bus_id), Int32GetDatum(t->trained_on),
		Float8GetDatum(t->jsonb_bytes), Float8GetDatum(t->stored_bytes),
		PointerGetDatum(cstring_to_text_with_len(t->secret, EVBUS_SIPHASH_KEY)),
		PointerGetDatum(cstring_to_text_with_len(t->raw, t->size))
	};
	EvbusInternal state;
	int32		id;

	evbus_internal_begin(&state);
	evbus_sql(NULL, "INSERT INTO evbus.dictionary (dictionary_id, bus_id, trained_at, checked_at, samples, jsonb_bytes, stored_bytes, secret, raw)"
			  " VALUES (nextval('evbus.dictionary_id_seq'), $1, clock_timestamp(), clock_timestamp(), $2, $3, $4, $5, $6) RETURNING dictionary_id",
			  6, types, values, NULL, 0);
	id = DatumGetInt32(evbus_column(0, 1, NULL));
	evbus_internal_end(&state);
	evbus_dictionary_changed();
	return id;
}

static Datum
rounded(double value)
{
	return DirectFunctionCall2(numeric_round, DirectFunctionCall1(float8_numeric, Float8GetDatum(value)), Int32GetDatum(1));
}

/*
 * evbus.train_dictionary(bus text, samples integer, size integer, dry_run boolean)
 * returns (dictionary_id integer, trained_on integer, tested_on integer, dictionary_bytes integer,
 * jsonb_bytes numeric, packed_bytes numeric, stored_bytes numeric)
 *
 * Makes a dictionary of at most size bytes (1024 to 131072) out of the newest events of
 * the bus: at most samples (100 to 1000000) of them, and 8 MB.  Those of fewer than 64
 * bytes packed or more than 64 kB do not count.  What is published once the caller has
 * committed is compressed with it.  The last three columns: bytes of an average payload of
 * the samples that it was not trained on.  dry_run: only tells them; dictionary_id is NULL.
 * Errors: 22004, 22023, 25006, 42501 not the owner, 55000 too few events, or the bus
 * does not use dictionaries, VB001, VB009.
 */
Datum
evbus_train_dictionary(PG_FUNCTION_ARGS)
{
	char	   *name = evbus_arg_text(fcinfo, 0, "bus");
	int			most = evbus_arg_int(fcinfo, 1, "samples", SAMPLES_LEAST, SAMPLES_MOST);
	int			size = evbus_arg_int(fcinfo, 2, "size", SIZE_LEAST, EVBUS_DICTIONARY_MAX);
	bool		dry_run;
	EvbusDb    *db = evbus_db();
	EvbusBus	bus;
	Samples		samples;
	Trained		trained;
	TupleDesc	desc;
	Datum		values[7];
	bool		nulls[7] = {0};

	evbus_arg_present(fcinfo, 3, "dry_run");
	dry_run = PG_GETARG_BOOL(3);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	evbus_bus_get(name, &bus);
	evbus_check_bus(&bus, GetUserId(), EVBUS_MANAGE);
	if (bus.is_volatile)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("bus \"%s\" is volatile: it has no history to be trained on", bus.name),
				 errhint("Dictionaries are for durable buses.")));
	PreventCommandDuringRecovery("evbus.train_dictionary()");
	if (!dry_run)
		PreventCommandIfReadOnly("evbus.train_dictionary()");
	if (!dry_run && bus.compression != EVBUS_COMPRESS_DICTIONARY)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("bus \"%s\" does not use dictionaries", bus.name),
				 errhint("Call evbus.alter_bus(..., compression => 'dictionary'), or see what one would be worth with dry_run => true.")));
	evbus_db_require_ready(db);
	(void) evbus_db_wait_drained(db, 5000);	/* what was just committed counts */
	evbus_progress_begin(EVBUS_WORK_TRAINING, bus.name, EVBUS_PHASE_COLLECTING, 0, EVBUS_UNKNOWN);
	PG_TRY();
	{
		collect(db, &bus, most, &samples);
		if (samples.n < SAMPLES_LEAST)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("bus \"%s\" has too few events for a dictionary", bus.name),
					 errdetail("Of its newest %d events %d have payloads of %d bytes to %d kB; at least %d must.",
							   samples.looked_at, samples.n, EVBUS_DICTIONARY_FROM, EVBUS_DICTIONARY_UPTO / 1024, SAMPLES_LEAST),
					 errhint("Try again when more has been published.")));
		if (!train(&samples, size, &trained))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("zstd cannot make a dictionary of the events of bus \"%s\"", bus.name),
					 errdetail("Of %d payloads it says: %s.", trained.trained_on, trained.failure)));
	}
	PG_FINALLY();
	{
		evbus_progress_end();
	}
	PG_END_TRY();
	nulls[0] = dry_run;
	values[0] = dry_run ? (Datum) 0 : Int32GetDatum(keep(&bus, &trained));
	if (!dry_run)
		evbus_audit(fcinfo, "bus", bus.name, NULL, evbus_audit_number("dictionary_id", DatumGetInt32(values[0])));
	values[1] = Int32GetDatum(trained.trained_on);
	values[2] = Int32GetDatum(trained.tested_on);
	values[3] = Int32GetDatum((int) trained.size);
	values[4] = rounded(trained.jsonb_bytes);
	values[5] = rounded(trained.packed_bytes);
	values[6] = rounded(trained.stored_bytes);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* ----------------------------------------------------------------- by itself */

/* Buses to be looked at, palloc'd; returns how many.  They have no dictionary, or it is time to see whether it still serves. */
int
evbus_train_due(EvbusDb *db, int32 **bus_ids)
{
	static SPIPlanPtr plan = NULL;
	MemoryContext context = CurrentMemoryContext;
	EvbusBus   *buses;
	EvbusInternal internal;
	int			n_buses;
	int			n = 0;
	uint64		found;
	bool		any = false;

	buses = evbus_buses(&n_buses);
	for (int i = 0; i < n_buses; i++)
		any = any || buses[i].compression == EVBUS_COMPRESS_DICTIONARY;
	if (!any)
		return 0;
	evbus_internal_begin(&internal);
	found = evbus_sql(&plan, "SELECT b.bus_id, b.slot::integer FROM evbus.bus b JOIN evbus.storage_class c USING (storage_class_id)"
					  " WHERE b.compression = 'dictionary' AND NOT EXISTS (SELECT 1 FROM evbus.dictionary d WHERE d.bus_id = b.bus_id AND d.retired_at IS NULL"
					  "  AND d.checked_at > clock_timestamp() - greatest(c.partition_interval, " AUTO_REST "))", 0, NULL, NULL, NULL, 0);
	*bus_ids = MemoryContextAlloc(context, sizeof(int32) * Max(found, 1));
	for (uint64 i = 0; i < found; i++)
	{
		int32		id = DatumGetInt32(evbus_column(i, 1, NULL));
		EvbusBusState *state = EVBUS_BUS(db, DatumGetInt32(evbus_column(i, 2, NULL)));

		if ((int32) pg_atomic_read_u32(&state->bus_id) == id && pg_atomic_read_u64(&state->next_position) > AUTO_LEAST)
			(*bus_ids)[n++] = id;
	}
	evbus_internal_end(&internal);
	return n;
}

/*
 * Give a bus a dictionary if it has none, or a better one than it has; false: there
 * is too little to make one of.  In a transaction.
 */
bool
evbus_train_bus(EvbusDb *db, int32 bus_id)
{
	static const Oid types[] = {INT4OID};
	Datum		value = Int32GetDatum(bus_id);
	EvbusBus	bus;
	Samples		samples;
	Trained		trained;
	const EvbusDictionary *old;
	double		old_bytes = 0;

	if (!evbus_bus_by_id(bus_id, &bus) || bus.compression != EVBUS_COMPRESS_DICTIONARY)
		return false;
	collect(db, &bus, SAMPLES_USUAL, &samples);
	if (samples.n < SAMPLES_LEAST || !train(&samples, SIZE_USUAL, &trained))
		return false;
	old = evbus_dictionary_of_bus(bus_id);
	if (old)
		old_bytes = stored_bytes(&samples, old);
	if (old == NULL || trained.stored_bytes <= old_bytes * AUTO_BETTER)
	{
		int32		id = keep(&bus, &trained);

		ereport(LOG,
				(errmsg("evbus trained dictionary %d for bus \"%s\": a payload of %.0f bytes takes %.0f",
						id, bus.name, trained.jsonb_bytes, trained.stored_bytes)));
	}
	else
	{
		EvbusInternal internal;

		evbus_internal_begin(&internal);
		evbus_sql(NULL, "UPDATE evbus.dictionary SET checked_at = clock_timestamp() WHERE bus_id = $1 AND retired_at IS NULL",
				  1, types, &value, NULL, 0);
		evbus_internal_end(&internal);
	}
	return true;
}

/* ---------------------------------------------------------------- their end */

/* A dictionary that events up to last_id may refer to. */
typedef struct Ending
{
	int32		id;
	int32		bus_id;
	int64		last_id;
	int			n_parents;
	Oid		   *parents;		/* where the leaves are that may have such events */
} Ending;

/* Has any of those leaves ids up to last_id? */
static bool
in_leaves(const Ending *ending)
{
	bool		found = false;

	for (int i = 0; i < ending->n_parents && !found; i++)
	{
		EvbusLeaf  *leaves;

		found = evbus_leaf_list(ending->parents[i], &leaves) > 0 && leaves[0].lo <= ending->last_id;
		pfree(leaves);
	}
	return found;
}

/* Those that step 2 is done with.  Within evbus_internal_begin(); palloc'd. */
static int
load_endings(Ending **endings)
{
	static SPIPlanPtr plan = NULL;
	int			n = (int) evbus_sql(&plan, "SELECT d.dictionary_id, d.bus_id, d.last_id, CASE WHEN b.bus_id IS NOT NULL THEN b.storage_class_id || b.former_classes END"
									" FROM evbus.dictionary d LEFT JOIN evbus.bus b USING (bus_id) WHERE d.last_id IS NOT NULL", 0, NULL, NULL, NULL, 0);

	*endings = palloc(sizeof(Ending) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		Ending	   *e = &(*endings)[i];
		bool		dropped;
		Datum		classes = evbus_column(i, 4, &dropped);
		Datum	   *elements;

		e->id = DatumGetInt32(evbus_column(i, 1, NULL));
		e->bus_id = DatumGetInt32(evbus_column(i, 2, NULL));
		e->last_id = DatumGetInt64(evbus_column(i, 3, NULL));
		if (dropped)
		{
			e->n_parents = evbus_class_parents(&e->parents);	/* who knows in which it was */
			continue;
		}
		deconstruct_array(DatumGetArrayTypeP(classes), INT4OID, sizeof(int32), true, TYPALIGN_INT, &elements, NULL, &e->n_parents);
		e->parents = palloc(sizeof(Oid) * e->n_parents);
		for (int c = 0; c < e->n_parents; c++)
			e->parents[c] = evbus_class_parent(DatumGetInt32(elements[c]));
	}
	return n;
}

/* Does the ring still have an event of the bus with an id up to that? */
static bool
in_ring(EvbusDb *db, int32 bus_id, int64 last_id)
{
	uint64		at = evbus_ring_oldest(db);

	while (at < pg_atomic_read_u64(&db->ring_tail))
	{
		EvbusRingEntry entry;

		if (!evbus_ring_header(db, at, &entry))
			return true;		/* overwritten meanwhile: next time */
		if (entry.bus_id == bus_id && entry.event_id <= last_id)
			return true;
		at += entry.len;
	}
	return false;
}

/* The three steps told above, each for those that are ready for it.  In a transaction. */
void
evbus_train_upkeep(EvbusDb *db)
{
	static const Oid types[] = {INT8OID};
	static const Oid id_types[] = {INT4OID};
	Oid			relid = evbus_relid("dictionary");
	Datum		value;
	EvbusInternal internal;
	Ending	   *endings;
	int			n;
	int64		open;
	uint64		changed = 0;

	if (!ConditionalLockRelationOid(relid, ShareRowExclusiveLock))
		return;					/* somebody trains: next time */
	evbus_clock_ensure(db);
	/* Who publishes may have an event, but no row of it yet, or be moving the bus to other leaves. */
	open = evbus_oldest_open(db, NULL);
	evbus_internal_begin(&internal);
	n = load_endings(&endings);
	for (int i = 0; i < n; i++)
	{
		if (endings[i].last_id >= open || in_leaves(&endings[i]) || in_ring(db, endings[i].bus_id, endings[i].last_id))
			continue;
		value = Int32GetDatum(endings[i].id);
		evbus_sql(NULL, "DELETE FROM evbus.dictionary WHERE dictionary_id = $1", 1, id_types, &value, NULL, 0);
		changed++;
		ereport(LOG,
				(errmsg("evbus dropped dictionary %d: no event needs it any more", endings[i].id)));
	}
	value = Int64GetDatum((int64) pg_atomic_fetch_add_u64(&db->clock, 0));	/* a barrier, too */
	evbus_sql(NULL, "UPDATE evbus.dictionary SET last_id = $1 WHERE retired_at IS NOT NULL AND last_id IS NULL", 1, types, &value, NULL, 0);
	changed += evbus_sql(NULL, "UPDATE evbus.dictionary d SET retired_at = clock_timestamp() WHERE retired_at IS NULL AND"
						 " (NOT EXISTS (SELECT 1 FROM evbus.bus b WHERE b.bus_id = d.bus_id AND b.compression = 'dictionary')"
						 "  OR EXISTS (SELECT 1 FROM evbus.dictionary n WHERE n.bus_id = d.bus_id AND n.dictionary_id > d.dictionary_id AND n.retired_at IS NULL))",
						 0, NULL, NULL, NULL, 0);
	evbus_internal_end(&internal);
	if (changed > 0)
		evbus_dictionary_changed();
}
