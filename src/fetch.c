/*-------------------------------------------------------------------------
 * fetch.c
 *	  Rows of the log by id, for readers that find them no longer in the ring.
 *
 * A consumer that is far behind reads millions of rows.  They were written many
 * at a time and lie nearly in order of id, so the index is asked for the first
 * one only: its whole block is gone through for ids that are wanted, then the
 * block that should follow.  Where that has none of them, the index is asked again.
 *
 * Whoever wants an id has it from the ring or from a tick, so its transaction has
 * committed.  That is looked up all the same, but in the commit log alone: what a
 * snapshot's check leaves in the row would make every block of the log dirty, to be
 * written a second time because somebody read it.  The snapshot is for rows that
 * were touched by hand.
 *-------------------------------------------------------------------------
 */
#include "fetch.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/stratnum.h"
#include "access/transam.h"
#include "eventlog.h"
#include "leaf.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* What is looked for in one leaf. */
typedef struct Search
{
	Relation	rel;
	Relation	index;
	IndexScanDesc scan;			/* NULL: not yet begun */
	Snapshot	snapshot;
	BufferAccessStrategy strategy;
	const EvbusSubscription *sub;
	EvbusEvent **wanted;		/* ascending by id */
	int			n;
	int			next;			/* the one that should come next */
} Search;

/* A row that was found, as it lies in its block. */
typedef struct Found
{
	EvbusEvent *event;
	HeapTupleHeader row;
	uint32		len;
} Found;

static int
event_by_id(const void *a, const void *b)
{
	int64		x = (*(EvbusEvent *const *) a)->event_id;
	int64		y = (*(EvbusEvent *const *) b)->event_id;

	return x < y ? -1 : x > y;
}

/* The wanted event of this id; NULL: it is not wanted. */
static EvbusEvent *
find_wanted(Search *search, int64 id)
{
	int			lo = 0;
	int			hi = search->n;

	if (search->next < search->n && search->wanted[search->next]->event_id == id)
		return search->wanted[search->next++];
	if (id < search->wanted[0]->event_id || id > search->wanted[search->n - 1]->event_id)
		return NULL;
	while (lo < hi)
	{
		int			middle = (lo + hi) / 2;

		if (search->wanted[middle]->event_id < id)
			lo = middle + 1;
		else
			hi = middle;
	}
	if (search->wanted[lo]->event_id != id)
		return NULL;
	search->next = lo + 1;
	return search->wanted[lo];
}

/* Is this row there?  The buffer is locked. */
static bool
row_counts(Search *search, HeapTupleHeader row, uint32 len, BlockNumber block, OffsetNumber line, Buffer buffer)
{
	HeapTupleData tuple;

	if ((row->t_infomask & (HEAP_XMAX_INVALID | HEAP_UPDATED | HEAP_MOVED)) == HEAP_XMAX_INVALID)
		return HeapTupleHeaderXminCommitted(row) ||
			(!HeapTupleHeaderXminInvalid(row) && TransactionIdDidCommit(HeapTupleHeaderGetRawXmin(row)));
	tuple.t_data = row;
	tuple.t_len = len;
	tuple.t_tableOid = RelationGetRelid(search->rel);
	ItemPointerSet(&tuple.t_self, block, line);
	return HeapTupleSatisfiesVisibility(&tuple, search->snapshot, buffer);
}

/* The value that begins at *at, or after padding; *at moves behind it. */
static struct varlena *
next_value(char **at)
{
	struct varlena *value;

	if (!VARATT_NOT_PAD_BYTE(*at))
		*at = (char *) INTALIGN(*at);
	value = (struct varlena *) *at;
	*at += VARSIZE_ANY(value);
	return value;
}

/* Its bytes: where they lie or, where they are toasted, in memory of their own (*apart). */
static char *
value_bytes(struct varlena *value, int *len, bool *apart)
{
	*apart = VARATT_IS_EXTERNAL(value) || VARATT_IS_COMPRESSED(value);
	if (*apart)
		value = pg_detoast_datum_packed(value);
	*len = VARSIZE_ANY_EXHDR(value);
	return VARDATA_ANY(value);
}

static inline char *
moved(char *bytes, bool apart, ptrdiff_t distance)
{
	return apart ? bytes : bytes + distance;
}

/*
 * Fill an event from its row, of which there is a copy that far away.  The row has
 * the columns that evbus_eventlog_form() gives it.
 */
static void
fill_event(EvbusEvent *event, HeapTupleHeader row, ptrdiff_t distance)
{
	bool		nulls = (row->t_infomask & HEAP_HASNULL) != 0;
	char	   *at = (char *) row + row->t_hoff + sizeof(int64) + 2 * sizeof(int32);
	bool		apart;
	char	   *bytes;

	bytes = value_bytes(next_value(&at), &event->type_len, &apart);
	event->type = moved(bytes, apart, distance);
	if (!nulls || !att_isnull(LOG_KEY - 1, row->t_bits))
	{
		bytes = value_bytes(next_value(&at), &event->key_len, &apart);
		event->key = moved(bytes, apart, distance);
	}
	if (!nulls || !att_isnull(LOG_HEADERS - 1, row->t_bits))
	{
		bytes = value_bytes(next_value(&at), &event->headers_len, &apart);
		event->headers = moved(bytes, apart, distance);
	}
	bytes = value_bytes(next_value(&at), &event->payload_len, &apart);
	event->payload = moved(bytes, apart, distance);
}

static bool
type_wanted(const EvbusSubscription *sub, HeapTupleHeader row)
{
	char	   *at = (char *) row + row->t_hoff + sizeof(int64) + 2 * sizeof(int32);
	int			len;
	bool		apart;
	char	   *type = value_bytes(next_value(&at), &len, &apart);

	return evbus_subscription_wants(sub, type, len);
}

/*
 * A leaf that is large beside the buffer cache is read through a few buffers, which
 * are used again and again, as sequential scans do: it would else push out what
 * others need, and for the reader it is cheaper, too.
 */
static BufferAccessStrategy
strategy_for(BlockNumber blocks)
{
	static BufferAccessStrategy strategy = NULL;

	if (blocks <= (BlockNumber) NBuffers / 4)
		return NULL;
	if (strategy == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		strategy = GetAccessStrategy(BAS_BULKREAD);
		MemoryContextSwitchTo(old);
	}
	return strategy;
}

/* Fill in what a block has of what is wanted and not yet found; returns how many that are. */
static int
read_block(Search *search, BlockNumber block)
{
	Buffer		buffer;
	Page		page;
	OffsetNumber lines;
	Found		found[MaxHeapTuplesPerPage];
	int			n = 0;
	int			count = 0;
	Size		bytes = 0;

	CHECK_FOR_INTERRUPTS();
	buffer = ReadBufferExtended(search->rel, MAIN_FORKNUM, block, RBM_NORMAL, search->strategy);
	page = BufferGetPage(buffer);
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	lines = PageGetMaxOffsetNumber(page);
	for (OffsetNumber line = FirstOffsetNumber; line <= lines; line++)
	{
		ItemId		item = PageGetItemId(page, line);
		HeapTupleHeader row;
		const char *data;
		EvbusEvent *event;

		if (!ItemIdIsNormal(item))
			continue;
		row = (HeapTupleHeader) PageGetItem(page, item);
		data = (const char *) row + row->t_hoff;
		event = find_wanted(search, *(const int64 *) data);
		if (event == NULL || event->type != NULL ||
			((const int32 *) data)[3] != search->sub->bus_id ||
			!row_counts(search, row, ItemIdGetLength(item), block, line, buffer))
			continue;
		found[n].event = event;
		found[n].row = row;
		found[n++].len = ItemIdGetLength(item);
	}
	LockBuffer(buffer, BUFFER_LOCK_UNLOCK);

	/* What is visible stays where it is as long as we hold the pin. */
	for (int i = 0; i < n; i++)
		if (type_wanted(search->sub, found[i].row))
		{
			bytes += found[i].len;
			found[count++] = found[i];
		}
		else
			found[i].event->type = "";
	if (bytes > BLCKSZ / 2)
	{
		/* All rows at once: cheaper, and at most twice the memory. */
		char	   *start = (char *) page + ((PageHeader) page)->pd_upper;
		Size		len = ((PageHeader) page)->pd_special - ((PageHeader) page)->pd_upper;
		char	   *copy = memcpy(palloc(len), start, len);

		for (int i = 0; i < count; i++)
			fill_event(found[i].event, found[i].row, copy - start);
	}
	else
		for (int i = 0; i < count; i++)
		{
			char	   *copy = memcpy(palloc(found[i].len), found[i].row, found[i].len);

			fill_event(found[i].event, found[i].row, copy - (char *) found[i].row);
		}
	ReleaseBuffer(buffer);
	return n;
}

/* Read the block where the index says that an event is; returns which it was. */
static BlockNumber
look_up(Search *search, EvbusEvent *event)
{
	BlockNumber block = InvalidBlockNumber;
	ScanKeyData key;
	ItemPointer tid;

	if (search->scan == NULL)
		search->scan = evbus_index_beginscan(search->rel, search->index, search->snapshot, 1);
	ScanKeyInit(&key, LOG_ID, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(event->event_id));
	index_rescan(search->scan, &key, 1, NULL, 0);
	/* A row that was updated by hand has several entries. */
	while (event->type == NULL && (tid = index_getnext_tid(search->scan, ForwardScanDirection)) != NULL)
	{
		block = ItemPointerGetBlockNumber(tid);
		(void) read_block(search, block);
	}
	return block;
}

/*
 * Fill in those of wanted[] (ascending) that are in this leaf.  Several publishers
 * at once get blocks by the dozen, so after a jump the rows go on in the next block.
 * Not so where a bus has few of the rows: then two vain looks are enough.
 */
static void
fetch_from_leaf(const EvbusLeaf *leaf, const EvbusSubscription *sub, EvbusEvent **wanted, int n, Snapshot snapshot)
{
	Search		search = {.sub = sub, .wanted = wanted, .n = n, .snapshot = snapshot};
	BlockNumber end;
	BlockNumber last = InvalidBlockNumber;	/* where the last ones were */
	bool		guess = false;	/* that the next ones are in the block behind it */
	int			vain = 0;

	search.rel = try_relation_open(leaf->relid, AccessShareLock);
	if (search.rel == NULL)
		return;					/* dropped meanwhile: expired */
	(void) RelationGetIndexList(search.rel);
	search.index = index_open(search.rel->rd_pkindex, AccessShareLock);
	end = RelationGetNumberOfBlocks(search.rel);
	search.strategy = strategy_for(end);
	for (int at = 0; at < n; at++)
	{
		BlockNumber block;

		while (guess && wanted[at]->type == NULL)
		{
			guess = last + 1 < end && read_block(&search, last + 1) > 0;
			last += guess;
			vain = guess ? 0 : vain + 1;
		}
		if (wanted[at]->type != NULL)
			continue;
		block = look_up(&search, wanted[at]);
		if (block == InvalidBlockNumber)
			continue;			/* guess is false */
		guess = vain < 2 || block == last + 1;
		last = block;
	}
	if (search.scan != NULL)
		index_endscan(search.scan);
	index_close(search.index, AccessShareLock);
	relation_close(search.rel, AccessShareLock);
}

/*
 * Fill events whose event_id is set and whose type is NULL.  Type stays NULL for
 * an expired one, and only payload does for one that the subscription does not
 * want.  The ids must be of committed events.
 */
void
evbus_fetch(const EvbusSubscription *sub, EvbusEvent *events, int n)
{
	EvbusEvent **wanted = palloc(sizeof(EvbusEvent *) * Max(n, 1));
	int			n_wanted = 0;
	Oid		   *parents;
	int			n_parents;
	Snapshot	snapshot;

	for (int i = 0; i < n; i++)
		if (events[i].type == NULL)
			wanted[n_wanted++] = &events[i];
	if (n_wanted == 0)
	{
		pfree(wanted);
		return;
	}
	qsort(wanted, n_wanted, sizeof(EvbusEvent *), event_by_id);

	snapshot = RegisterSnapshot(GetLatestSnapshot());
	PushActiveSnapshot(snapshot);	/* for TOAST */
	n_parents = evbus_class_parents(&parents);
	for (int p = 0; p < n_parents; p++)
	{
		EvbusLeaf  *leaves;
		int			n_leaves = evbus_leaf_list(parents[p], &leaves);
		int			at = 0;

		for (int l = 0; l < n_leaves && at < n_wanted; l++)
		{
			int			first;

			while (at < n_wanted && wanted[at]->event_id < leaves[l].lo)
				at++;
			first = at;
			while (at < n_wanted && wanted[at]->event_id < leaves[l].hi)
				at++;
			if (at > first)
				fetch_from_leaf(&leaves[l], sub, wanted + first, at - first, snapshot);
		}
		pfree(leaves);
	}
	PopActiveSnapshot();
	UnregisterSnapshot(snapshot);
	pfree(parents);
	pfree(wanted);
}
