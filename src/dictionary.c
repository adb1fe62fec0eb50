/*-------------------------------------------------------------------------
 * dictionary.c
 *	  zstd dictionaries: rows of evbus.dictionary, ready for use in this process.
 *
 * A payload that was compressed with one names it by id, and ids are never used
 * again.  So whatever row has that id is the right one, also one that an old
 * snapshot does not see yet, or that was deleted while an old snapshot still reads
 * what needs it: rows are looked for with SnapshotAny.
 *
 * Which one a bus uses for what is published now is another question: the newest
 * that is committed and not retired.  It is asked after the event has taken its id,
 * and news of other processes are taken in first.  So once everybody has been told
 * that a dictionary is retired, no id that is taken later can refer to it; train.c
 * relies on that.
 *
 * What is ready is kept in a few places, the one used longest ago makes room.  Any
 * change of the table empties them: it is rare.
 *-------------------------------------------------------------------------
 */
#include "dictionary.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "fmgr.h"
#include "internal.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#define PLACES		16

typedef struct Place
{
	EvbusDictionary dictionary;	/* id 0: free */
	ZSTD_DDict *ddict;
	ZSTD_CDict *cdict;			/* NULL: not yet */
	int			level;			/* of cdict */
	uint64		used;			/* when, as uses counts */
} Place;

/* Which dictionary a bus uses; id 0: none. */
typedef struct Newest
{
	int32		bus_id;
	int32		id;
} Newest;

int			evbus_compress_level = 1;

static Place places[PLACES];
static Newest newest[PLACES];
static int	n_newest = 0;
static int	next_newest = 0;
static uint64 uses = 0;
static bool stale = false;
static Oid	known_relid = InvalidOid;

static void
invalidate(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == known_relid)
		stale = true;
}

static void
empty(Place *place)
{
	ZSTD_freeDDict(place->ddict);
	ZSTD_freeCDict(place->cdict);
	memset(place, 0, sizeof(*place));
}

static Relation
open_table(void)
{
	static bool registered = false;
	Relation	rel;

	if (!registered)
	{
		CacheRegisterRelcacheCallback(invalidate, (Datum) 0);
		registered = true;
	}
	known_relid = evbus_relid("dictionary");
	rel = table_open(known_relid, AccessShareLock);
	if (RelationGetNumberOfAttributes(rel) != DICT_LAST_ID)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"evbus.dictionary\" does not fit the loaded library"),
				 errhint("Run ALTER EXTENSION evbus UPDATE, or install the library that fits the extension.")));
	return rel;
}

/* What was known is forgotten if the table may have changed. */
static void
refresh(void)
{
	if (likely(!stale))
		return;
	stale = false;
	n_newest = 0;
	for (int i = 0; i < PLACES; i++)
		empty(&places[i]);
}

static void
out_of_memory(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OUT_OF_MEMORY),
			 errmsg("out of memory"),
			 errdetail("zstd could not make a dictionary ready.")));
}

/* A dictionary by its row, in the place of the one used longest ago. */
static Place *
fill_place(HeapTuple tuple, TupleDesc desc)
{
	Place	   *place = &places[0];
	Datum		values[DICT_LAST_ID];
	bool		nulls[DICT_LAST_ID];
	bytea	   *raw;
	bytea	   *secret;

	heap_deform_tuple(tuple, desc, values, nulls);
	raw = DatumGetByteaPP(values[DICT_RAW - 1]);
	secret = DatumGetByteaPP(values[DICT_SECRET - 1]);
	if (VARSIZE_ANY_EXHDR(secret) != EVBUS_SIPHASH_KEY)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("dictionary %d has a secret of %d bytes", DatumGetInt32(values[DICT_ID - 1]), (int) VARSIZE_ANY_EXHDR(secret))));
	for (int i = 1; i < PLACES && place->dictionary.id != 0; i++)
		if (places[i].dictionary.id == 0 || places[i].used < place->used)
			place = &places[i];
	empty(place);
	place->ddict = ZSTD_createDDict(VARDATA_ANY(raw), VARSIZE_ANY_EXHDR(raw));
	if (place->ddict == NULL)
		out_of_memory();
	place->dictionary.ddict = place->ddict;
	memcpy(place->dictionary.secret, VARDATA_ANY(secret), EVBUS_SIPHASH_KEY);
	place->dictionary.id = DatumGetInt32(values[DICT_ID - 1]);
	return place;
}

/*
 * Make ready what compression wants, too.  The raw bytes are read once more: most
 * processes that decode never get here.
 */
static void
add_cdict(Place *place, HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;
	bytea	   *raw = DatumGetByteaPP(heap_getattr(tuple, DICT_RAW, desc, &isnull));

	ZSTD_freeCDict(place->cdict);
	place->dictionary.cdict = place->cdict = ZSTD_createCDict(VARDATA_ANY(raw), VARSIZE_ANY_EXHDR(raw), evbus_compress_level);
	place->level = evbus_compress_level;
	if (place->cdict == NULL)
		out_of_memory();
}

static Place *
find_place(int32 id)
{
	for (int i = 0; i < PLACES; i++)
		if (places[i].dictionary.id == id)
		{
			places[i].used = ++uses;
			return &places[i];
		}
	return NULL;
}

/* Look up a dictionary that is in no place; NULL: there is none. */
static Place *
load(int32 id, bool compress)
{
	Relation	rel = open_table();
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	tuple;
	Place	   *place = find_place(id);
	bool		pushed = !ActiveSnapshotSet();

	if (pushed)
		PushActiveSnapshot(GetTransactionSnapshot());	/* for TOAST */
	ScanKeyInit(&key, DICT_ID, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(id));
	scan = systable_beginscan(rel, evbus_relid("dictionary_pkey"), true, SnapshotAny, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		if (place == NULL)
			place = fill_place(tuple, RelationGetDescr(rel));
		if (compress)
			add_cdict(place, tuple, RelationGetDescr(rel));
		place->used = ++uses;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	if (pushed)
		PopActiveSnapshot();
	return place;
}

/* By id, for what was compressed with it; NULL: there is none.  Valid until the next call of a function of this file. */
const EvbusDictionary *
evbus_dictionary_get(int32 id)
{
	Place	   *place;

	refresh();
	if (id <= 0)
		return NULL;
	place = find_place(id);
	if (place == NULL)
		place = load(id, false);
	return place ? &place->dictionary : NULL;
}

/* The id of the one that a bus uses now; 0: none. */
static int32
look_up_newest(int32 bus_id)
{
	Relation	rel = open_table();
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;
	int32		id = 0;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		retired;
		bool		isnull;
		TupleDesc	desc = RelationGetDescr(rel);

		(void) heap_getattr(tuple, DICT_RETIRED, desc, &retired);
		if (DatumGetInt32(heap_getattr(tuple, DICT_BUS, desc, &isnull)) == bus_id && retired &&
			/* One that this transaction trained may yet be rolled back. */
			!TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data)))
			id = Max(id, DatumGetInt32(heap_getattr(tuple, DICT_ID, desc, &isnull)));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return id;
}

/*
 * What payloads of a bus are to be compressed with; NULL: it has no dictionary.  To
 * be called after the event has taken its id.  Valid as above.
 */
const EvbusDictionary *
evbus_dictionary_of_bus(int32 bus_id)
{
	int			i;
	Place	   *place;

	AcceptInvalidationMessages();
	refresh();
	for (i = 0; i < n_newest && newest[i].bus_id != bus_id; i++)
		;
	if (i == n_newest)
	{
		int32		id = look_up_newest(bus_id);

		i = n_newest < PLACES ? n_newest++ : next_newest++ % PLACES;
		newest[i].bus_id = bus_id;
		newest[i].id = id;
	}
	if (newest[i].id == 0)
		return NULL;
	place = find_place(newest[i].id);
	if (unlikely(place == NULL || place->cdict == NULL || place->level != evbus_compress_level))
		place = load(newest[i].id, true);
	return place ? &place->dictionary : NULL;
}

/* To be called by whoever changes the table: tells every process at commit. */
void
evbus_dictionary_changed(void)
{
	CommandCounterIncrement();
	CacheInvalidateRelcacheByRelid(evbus_relid("dictionary"));
	CommandCounterIncrement();
}
