/*-------------------------------------------------------------------------
 * reader.c
 *	  Events of one bus by position: from the ring while they are there, else
 *	  from ticks and log.
 *
 * Positions of a bus ascend along the ring, but with gaps: what recovery or a
 * late row placed is only in the log.  So the reader walks along the ring and
 * fills each gap from the log, where it must be: whatever is not in the ring
 * has been ticked, or is about to be.
 *
 * Of a volatile bus there is only its own ring, which has every position; what is not
 * there was overwritten.
 *
 * What is of a type that the subscription wants may still be kept back by its filter
 * (filter.c) or for its age.  Here that is one like the other: not among what was read, and
 * so done with the range it is in, without a row in the ledger.  Only that it is counted, when
 * the taker knows how much of the range he keeps.
 *-------------------------------------------------------------------------
 */
#include "reader.h"

#include "access/htup_details.h"
#include "clock.h"
#include "codec.h"
#include "envelope.h"
#include "eventlog.h"
#include "fetch.h"
#include "filter.h"
#include "ledger.h"
#include "dropped.h"
#include "ring.h"
#include "tick.h"
#include "trace.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "volatile.h"

#define COLD_CHUNK	1024		/* positions read from the log at once */
#define COLD_FIRST	64			/* where most of them may be for nothing: so many first */
#define COLD_BYTES	(4 * 1024 * 1024)	/* and then as many as have about these */
#define FIRST_LOOK	16			/* events, of unknown size */
#define LOOK_MAX	128			/* of a size that is guessed by those before */

static EvbusEvent *
append(EvbusEvents *out)
{
	if (out->n == out->size)
	{
		out->size = Max(out->size * 2, 128);
		out->events = out->events
			? repalloc_huge(out->events, sizeof(EvbusEvent) * out->size)
			: palloc(sizeof(EvbusEvent) * out->size);
	}
	return memset(&out->events[out->n++], 0, sizeof(EvbusEvent));
}

/* ------------------------------------------------------------- filter and age */

/* By what its publisher said, or for the subscription. */
bool
evbus_event_too_old(const EvbusSubscription *sub, const EvbusEvent *event)
{
	if (sub->max_age > 0 && evbus_clock_to_time(event->event_id) < GetCurrentTimestamp() - sub->max_age)
		return true;
	return !sub->takes_expired && evbus_event_expired(event);
}

/* Count one that was kept back, by the filter or for its age. */
static void
count_passed_over(EvbusDb *db, const EvbusSubscription *sub, bool expired)
{
	EvbusSub   *shared = EVBUS_SUB(db, sub->slot);

	(void) pg_atomic_fetch_add_u64(expired ? &shared->expired : &shared->filtered, 1);
}

/* The same, of one that is done with that. */
void
evbus_event_passed_over(EvbusDb *db, const EvbusSubscription *sub, const EvbusEvent *event, bool expired)
{
	count_passed_over(db, sub, expired);
	if (evbus_traced(db, sub))
		evbus_trace_event(sub, event->event_id, "%s, position " INT64_FORMAT, expired ? "passed over, as it is too old" : "kept back by the filter", event->position);
}

/* Those that were kept back below a position are done: count them. */
void
evbus_read_settled(EvbusDb *db, const EvbusSubscription *sub, EvbusEvents *events, int64 hi)
{
	for (int i = 0; i < events->n_skipped; i++)
	{
		bool		expired = events->skipped[i] < 0;
		int64		position = expired ? -events->skipped[i] : events->skipped[i];

		if (position < hi)
		{
			count_passed_over(db, sub, expired);
			if (evbus_traced(db, sub))
				evbus_trace_position(sub, position, expired ? "passed over, as it is too old" : "kept back by the filter");
		}
	}
	events->n_settled = events->n_skipped;
	events->n_skipped = 0;
}

/* Those from a position on were not, after all: they go back, and will be counted again. */
void
evbus_read_unsettled(EvbusDb *db, const EvbusSubscription *sub, EvbusEvents *events, int64 lo)
{
	EvbusSub   *shared = EVBUS_SUB(db, sub->slot);

	for (int i = 0; i < events->n_settled; i++)
	{
		int64		position = events->skipped[i];

		if ((position < 0 ? -position : position) >= lo)
			(void) pg_atomic_fetch_sub_u64(position < 0 ? &shared->expired : &shared->filtered, 1);
	}
	events->n_settled = 0;
}

static inline bool
is_choosy(const EvbusSubscription *sub)
{
	return sub->filter != NULL || sub->max_age > 0;
}

/* Must somebody be asked whether this one is for the subscription? */
static inline bool
is_in_doubt(const EvbusSubscription *sub, const EvbusEvent *event)
{
	return is_choosy(sub) || evbus_event_enveloped(event);
}

/* False: it is kept back; *expired: for its age. */
static bool
is_chosen(const EvbusSubscription *sub, EvbusEvent *event, bool *expired)
{
	*expired = evbus_event_too_old(sub, event);
	return !*expired && (sub->filter == NULL || evbus_filter_ask(sub->filter, event) != EVBUS_FILTER_SKIPS);
}

/* The same while reading a range, which notes what it is not to deliver. */
static pg_noinline bool
choose(const EvbusSubscription *sub, EvbusEvent *event, EvbusEvents *out)
{
	bool		expired;

	if (is_chosen(sub, event, &expired))
		return true;
	if (out->n_skipped == out->skipped_size)
	{
		out->skipped_size = Max(out->skipped_size * 2, 128);
		out->skipped = out->skipped
			? repalloc_huge(out->skipped, sizeof(int64) * out->skipped_size)
			: palloc(sizeof(int64) * out->skipped_size);
	}
	out->skipped[out->n_skipped++] = expired ? -event->position : event->position;
	return false;
}

/* ------------------------------------------------------------------- reading */

static char *
copy_bytes(const char *from, int len, char **to)
{
	char	   *copy = *to;

	if (from == NULL)
		return NULL;
	memcpy(copy, from, len);
	*to += len;
	return copy;
}

/* An event's own bytes in the current context. */
static void
copy_event(EvbusEvent *event)
{
	char	   *to = palloc(evbus_event_bytes(event) + 1);

	event->type = copy_bytes(event->type, event->type_len, &to);
	event->key = copy_bytes(event->key, event->key_len, &to);
	event->headers = copy_bytes(event->headers, event->headers_len, &to);
	event->payload = copy_bytes(event->payload, event->payload_len, &to);
}

/*
 * Fetch n events of which most may be for nothing: those that are chosen are copied into
 * the caller's context.  Returns about how many bytes there were.
 */
static int64
fetch_choosily(const EvbusSubscription *sub, EvbusEvent *events, int n, EvbusEvents *out)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "evbus chunk", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	int64		bytes;

	evbus_fetch(sub, events, n);
	MemoryContextSwitchTo(old);
	bytes = MemoryContextMemAllocated(context, true);
	for (int i = 0; i < n; i++)
		if (events[i].type != NULL && events[i].payload != NULL)
		{
			if (choose(sub, &events[i], out))
				copy_event(&events[i]);
			else
				events[i].payload = NULL;
		}
	MemoryContextDelete(context);
	return bytes;
}

/* Fetch n events; payload stays NULL for those that are not chosen.  Returns bytes as above, 0: not known. */
static int64
fetch(const EvbusSubscription *sub, EvbusEvent *events, int n, EvbusEvents *out)
{
	if (is_choosy(sub))
		return fetch_choosily(sub, events, n, out);
	evbus_fetch(sub, events, n);
	for (int i = 0; i < n; i++)
		if (unlikely(evbus_event_enveloped(&events[i])) && events[i].payload != NULL && !choose(sub, &events[i], out))
			events[i].payload = NULL;
	return 0;
}

/* [from, hi) out of ticks and log. */
static void
read_cold(EvbusDb *db, const EvbusSubscription *sub, int64 from, int64 hi, EvbusEvents *out)
{
	EvbusEvent *chunk;
	bool		choosy = is_choosy(sub);
	int64		step = choosy ? COLD_FIRST : COLD_CHUNK;

	if (from >= hi)
		return;
	evbus_ledger_wait_ticked(db, sub, hi);
	out->lsn = Max(out->lsn, (XLogRecPtr) pg_atomic_read_u64(&db->ticked_lsn));
	chunk = palloc(sizeof(EvbusEvent) * Min(hi - from, COLD_CHUNK));
	for (int64 at = from, next; at < hi; at = next)
	{
		int64		bytes;
		int			n;

		next = Min(hi, at + step);
		n = evbus_tick_read(sub->bus_id, at, next, chunk);
		CHECK_FOR_INTERRUPTS();
		bytes = fetch(sub, chunk, n, out);
		if (choosy)
			step = Max(Min(COLD_BYTES / (bytes / (next - at) + 1), COLD_CHUNK), 1);
		for (int i = 0; i < n; i++)
			if (chunk[i].type == NULL)
				evbus_eventlog_check_expired(chunk[i].event_id, sub);
			else if (chunk[i].payload != NULL)
				*append(out) = chunk[i];
	}
	pfree(chunk);
}

/* Offset of an entry of this bus at or before a position; 0: none known. */
static uint64
find_offset(EvbusDb *db, const EvbusSubscription *sub, int64 position)
{
	EvbusSub   *shared = EVBUS_SUB(db, sub->slot);
	EvbusBusState *bus = EVBUS_BUS(db, sub->bus_slot);
	uint64		oldest = evbus_ring_oldest(db);
	uint64		best = 0;
	int64		best_position = 0;

	LWLockAcquire(&shared->lock, LW_SHARED);
	for (int i = 0; i < EVBUS_HINTS; i++)
	{
		const EvbusHint *hint = &shared->hints[i];

		if (hint->position > best_position && hint->position <= position && hint->offset >= oldest)
		{
			best = hint->offset + 1;
			best_position = hint->position;
		}
	}
	LWLockRelease(&shared->lock);
	if (best == 0)
		for (int i = 0; i < EVBUS_ANCHORS; i++)
		{
			uint64		offset = pg_atomic_read_u64(&bus->anchors[i].offset);
			int64		at;

			pg_read_barrier();
			at = (int64) pg_atomic_read_u64(&bus->anchors[i].position);
			pg_read_barrier();
			if (offset == 0 || offset - 1 < oldest || at > position || at < best_position ||
				offset != pg_atomic_read_u64(&bus->anchors[i].offset))
				continue;
			best = offset;
			best_position = at;
		}
	return best;
}

static void
set_hint(EvbusDb *db, const EvbusSubscription *sub, int64 position, uint64 offset)
{
	EvbusSub   *shared = EVBUS_SUB(db, sub->slot);

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (shared->subscription_id == sub->subscription_id)
	{
		shared->hints[shared->next_hint % EVBUS_HINTS].position = position;
		shared->hints[shared->next_hint++ % EVBUS_HINTS].offset = offset;
	}
	LWLockRelease(&shared->lock);
}

/* Cut what follows an entry's header into an event; lengths of -1: there is none. */
static void
cut(EvbusEvent *event, char *data, int type_len, int key_len, int headers_len, int payload_len)
{
	event->type = data;
	event->type_len = type_len;
	data += type_len;
	if (key_len >= 0)
	{
		event->key = data;
		event->key_len = key_len;
		data += key_len;
	}
	if (headers_len >= 0)
	{
		event->headers = data;
		event->headers_len = headers_len;
		data += headers_len;
	}
	event->payload = data;
	event->payload_len = payload_len;
}

static void
fill(EvbusEvent *event, const EvbusRingEntry *entry, uint64 offset, char *data)
{
	event->ring_at = offset + 1;
	event->event_id = entry->event_id;
	event->position = entry->position;
	cut(event, data, entry->type_len, entry->key_len, entry->headers_len, entry->payload_len);
}

/* evbus_read() of a volatile bus. */
static void
read_volatile(EvbusDb *db, const EvbusSubscription *sub, int64 from, int64 hi, EvbusEvents *out)
{
	EvbusVolatile *v = evbus_volatile_find(db, sub->bus_slot, sub->bus_id);
	int64		begin = from;		/* those before it are lost, and nothing else was read */
	int64		lost = 0;

	for (int64 at = from; at < hi && v != NULL; at++)
	{
		EvbusVolatileEntry entry;
		char	   *data = evbus_volatile_copy(db, v, at, &entry);

		if (data == NULL)
		{
			if (begin == at)
				begin = at + 1;
			lost++;
		}
		else if (evbus_subscription_wants(sub, data, entry.type_len))
		{
			EvbusEvent *event = append(out);

			event->event_id = entry.event_id;
			event->position = at;
			cut(event, data, entry.type_len, entry.key_len, entry.headers_len, entry.payload_len);
			if (unlikely(is_in_doubt(sub, event)) && !choose(sub, event, out))
			{
				out->n--;
				pfree(data);
			}
		}
		else
			pfree(data);
	}
	/* Who only looks will come again where he has found something. */
	if (lost > 0 && !(sub->looks && out->n > 0))
		evbus_dropped_found(db, sub, from, begin, lost);
}

/* evbus_read_again() of a volatile bus. */
static void
read_volatile_again(EvbusDb *db, const EvbusSubscription *sub, EvbusEvent *events, int n)
{
	EvbusVolatile *v = evbus_volatile_find(db, sub->bus_slot, sub->bus_id);

	for (int i = 0; i < n; i++)
	{
		EvbusVolatileEntry entry;
		char	   *data = v ? evbus_volatile_copy(db, v, events[i].position, &entry) : NULL;

		if (data == NULL)
		{
			evbus_dropped_found(db, sub, events[i].position, events[i].position, 1);
			continue;
		}
		cut(&events[i], data, entry.type_len, entry.key_len, entry.headers_len, entry.payload_len);
		if (!evbus_subscription_wants(sub, data, entry.type_len))
			events[i].payload = NULL;
	}
}

/*
 * Append the events of [from, hi) that the subscription wants, in order of
 * position; all those positions must have been given.  Memory: the current
 * context.
 */
void
evbus_read(EvbusDb *db, const EvbusSubscription *sub, int64 from, int64 hi, EvbusEvents *out)
{
	uint64		drained;
	uint64		offset;
	int64		at = from;

	if (sub->is_volatile)
	{
		read_volatile(db, sub, from, hi, out);
		return;
	}
	offset = find_offset(db, sub, from);
	pg_read_barrier();
	drained = pg_atomic_read_u64(&db->ring_drained);
	if (offset > 0)
	{
		offset--;
		while (offset < drained && at < hi)
		{
			EvbusRingEntry entry;
			char	   *data;
			int			mark;

			if (!evbus_ring_header(db, offset, &entry))
				break;
			if (entry.bus_id != sub->bus_id || entry.position < at)
			{
				offset += entry.len;
				continue;
			}
			if (entry.position > at)
			{
				read_cold(db, sub, at, Min(entry.position, hi), out);
				at = entry.position;
				continue;		/* meanwhile the entry may be overwritten */
			}
			data = palloc(entry.len);
			if (!evbus_ring_data(db, offset, &entry, data))
				break;
			mark = out->n;
			if (evbus_subscription_wants(sub, data, entry.type_len))
			{
				EvbusEvent *event = append(out);

				if (entry.flags & EVBUS_RING_INLINE)
				{
					fill(event, &entry, offset, data);
					if (unlikely(is_in_doubt(sub, event)) && !choose(sub, event, out))
					{
						out->n = mark;
						pfree(data);
					}
				}
				else
				{
					event->event_id = entry.event_id;
					event->position = entry.position;
					fetch(sub, event, 1, out);
					if (event->type == NULL)
						evbus_eventlog_check_expired(entry.event_id, sub);
					if (event->type == NULL || event->payload == NULL)
						out->n = mark;
				}
				out->lsn = Max(out->lsn, entry.commit_lsn);
			}
			else
				pfree(data);
			at++;
			offset += entry.len;
		}
		if (at >= hi)
			set_hint(db, sub, hi, offset);
	}
	if (at < hi)
		read_cold(db, sub, at, hi, out);
}

/*
 * Read events again of which event_id, position and ring_at are known, by these: not
 * only from where the last one was.  Type stays NULL for one that has expired, payload
 * for one that the subscription does not want any more.  *lsn: as EvbusEvents.lsn.
 * What is kept back is counted, as whoever asks is done with it.
 */
void
evbus_read_again(EvbusDb *db, const EvbusSubscription *sub, EvbusEvent *events, int n, XLogRecPtr *lsn)
{
	int64		cold = 0;
	bool		expired;

	if (sub->is_volatile)
		read_volatile_again(db, sub, events, n);
	for (int i = 0; i < n && !sub->is_volatile; i++)
	{
		EvbusRingEntry entry;
		uint64		offset = events[i].ring_at - 1;
		char	   *data;

		data = events[i].ring_at > 0 && evbus_ring_header(db, offset, &entry) ? palloc(entry.len) : NULL;
		if (data == NULL || !evbus_ring_data(db, offset, &entry, data))
		{
			cold = Max(cold, events[i].position + 1);
			continue;
		}
		*lsn = Max(*lsn, entry.commit_lsn);
		fill(&events[i], &entry, offset, data);
		if (!evbus_subscription_wants(sub, data, entry.type_len))
			events[i].payload = NULL;
	}
	if (cold > 0)
	{
		evbus_ledger_wait_ticked(db, sub, cold);
		*lsn = Max(*lsn, (XLogRecPtr) pg_atomic_read_u64(&db->ticked_lsn));
		evbus_fetch(sub, events, n);
		for (int i = 0; i < n; i++)
			if (events[i].type == NULL)
				evbus_eventlog_check_expired(events[i].event_id, sub);
	}
	for (int i = 0; i < n; i++)
		if (events[i].payload != NULL && unlikely(is_in_doubt(sub, &events[i])) && !is_chosen(sub, &events[i], &expired))
		{
			events[i].payload = NULL;
			evbus_event_passed_over(db, sub, &events[i], expired);
		}
}

/*
 * How many more to look for, of max, who has n events of so many bytes: all; or, where
 * bytes are bounded, a few first and then as many as will fit if they are as large as
 * those, but never so many that large ones behind small ones would fill the memory.
 * 0: it is enough.
 */
int
evbus_read_more(int n, int64 bytes, int64 bytes_max, int max)
{
	if (bytes_max == 0 || max == 0)
		return max;
	if (n == 0)
		return Min(max, FIRST_LOOK);
	if (bytes >= bytes_max)
		return 0;
	return (int) Min(Min(max, LOOK_MAX), (bytes_max - bytes) / Max(bytes / n, 1) + 1);
}

/* The columns of evbus.event, in order; false: its payload or headers are damaged. */
bool
evbus_event_values(const EvbusEvent *event, const EvbusSubscription *sub, Datum *values, bool *nulls)
{
	const char *headers;
	int			headers_len = event->headers_len;

	memset(nulls, 0, 10 * sizeof(bool));
	values[0] = Int64GetDatum(event->event_id);
	values[1] = CStringGetTextDatum(sub->bus_name);
	values[2] = PointerGetDatum(cstring_to_text_with_len(event->type, event->type_len));
	nulls[3] = event->key == NULL;
	values[3] = event->key ? PointerGetDatum(cstring_to_text_with_len(event->key, event->key_len)) : (Datum) 0;
	values[4] = PointerGetDatum(event->decoded ? (Jsonb *) event->decoded : evbus_decode_try(event->payload, event->payload_len));
	headers = evbus_headers_inside(event->headers, &headers_len);
	nulls[5] = headers == NULL;
	values[5] = headers ? PointerGetDatum(evbus_decode_try(headers, headers_len)) : (Datum) 0;
	values[6] = TimestampTzGetDatum(evbus_clock_to_time(event->event_id));
	values[7] = Int64GetDatum(event->position);
	values[8] = Int32GetDatum(event->attempt);
	values[9] = BoolGetDatum(event->replayed || sub->replay_of != 0);
	return values[4] != (Datum) 0 && (nulls[5] || values[5] != (Datum) 0);
}

/* It cannot be delivered: errors XX001. */
void
evbus_event_damaged(const EvbusEvent *event)
{
	int			len = event->headers_len;
	const char *headers = evbus_headers_inside(event->headers, &len);

	(void) evbus_decode_jsonb(event->payload, event->payload_len, event->event_id);
	evbus_not_decodable(headers, len, event->event_id);
}

HeapTuple
evbus_event_tuple(const EvbusEvent *event, const EvbusSubscription *sub, TupleDesc desc)
{
	Datum		values[10];
	bool		nulls[10];

	if (!evbus_event_values(event, sub, values, nulls))
		evbus_event_damaged(event);
	return heap_form_tuple(desc, values, nulls);
}
