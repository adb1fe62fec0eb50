/*-------------------------------------------------------------------------
 * unconsumed.c
 *	  What subscriptions still need of a leaf that is to go, and what they lose with it.
 *
 * Positions are dense and ticks say which ids have which, so what a subscription has not
 * settled of a leaf is counted from its ticks, its frontier and its open ranges, without a
 * look at the leaf.  Rather too much than too little: what is in hand counts, and so
 * does what a subscription does not want.
 *-------------------------------------------------------------------------
 */
#include "unconsumed.h"

#include "catalog/pg_type.h"
#include "clock.h"
#include "cursor.h"
#include "internal.h"
#include "ledger.h"
#include "registry.h"
#include "tick.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

/* The name of a subscription of some bus of the class that still needs an id below hi; NULL: there is none. */
const char *
evbus_unconsumed_by(EvbusDb *db, int32 class, int64 hi)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT4OID, INT8OID, INT8OID, INT4OID};
	int			n;
	EvbusSubscription *subs = evbus_subscriptions(&n);
	char	   *name = NULL;

	for (int i = 0; i < n && name == NULL; i++)
	{
		EvbusCursorState state;
		EvbusInternal internal;
		Datum		values[4];

		if (subs[i].is_volatile)
			continue;
		(void) evbus_ledger_attach(db, &subs[i]);
		if (!evbus_cursor_progress(db, &subs[i], &state))
			return pstrdup(subs[i].name);	/* it changes just now: next time */
		if (subs[i].replay_of != 0 && state.cursor >= subs[i].stop_position)
			continue;			/* it has read all it will */
		values[0] = Int32GetDatum(subs[i].bus_id);
		values[1] = Int64GetDatum(state.cursor);
		values[2] = Int64GetDatum(hi);
		values[3] = Int32GetDatum(class);
		evbus_internal_begin(&internal);
		/* Of this class, or of one the bus was in before, if it has rows here: that is a scan, so only then. */
		if (evbus_sql(&plan, "SELECT 1 FROM evbus.tick WHERE bus_id = $1 AND first_position + n > $2 AND min_id < $3"
						   " AND (EXISTS (SELECT 1 FROM evbus.bus b WHERE b.bus_id = $1 AND b.storage_class_id = $4)"
						   "  OR CASE WHEN EXISTS (SELECT 1 FROM evbus.bus b WHERE b.bus_id = $1 AND $4 = ANY (b.former_classes))"
						   "   THEN EXISTS (SELECT 1 FROM evbus.event_log e WHERE e.storage_class_id = $4 AND e.bus_id = $1 AND e.event_id < $3) END)"
						   " LIMIT 1", 4, types, values, NULL, 1) > 0)
			name = subs[i].name;
		evbus_internal_end(&internal);
	}
	return name;
}

/* One subscription's part of a leaf. */
typedef struct Unsettled
{
	const EvbusSubscription *sub;
	int64		frontier;
	EvbusRange *open;			/* not done below frontier; ascending */
	int			n_open;
	int64		events;
} Unsettled;

typedef struct Counting
{
	Unsettled  *subs;			/* of one bus */
	int			n;
} Counting;

static void
count_one(int64 position, int64 id, void *arg)
{
	Counting   *counting = arg;

	for (int i = 0; i < counting->n; i++)
	{
		Unsettled  *sub = &counting->subs[i];
		int			lo = 0;
		int			hi = sub->n_open;

		while (lo < hi)			/* the first range that ends above it */
		{
			int			middle = (lo + hi) / 2;

			if (sub->open[middle].hi <= position)
				lo = middle + 1;
			else
				hi = middle;
		}
		if (sub->sub->replay_of != 0 && position >= sub->sub->stop_position)
			continue;
		sub->events += position >= sub->frontier || (lo < sub->n_open && sub->open[lo].lo <= position);
	}
}

/* Ids of a bus in a leaf, where others of the same time are in leaves of another class. */
static void
id_bounds(const char *leaf, int32 bus_id, int64 *lo, int64 *hi)
{
	bool		isnull;

	evbus_sql(NULL, psprintf("SELECT min(event_id), max(event_id) FROM evbus.%s WHERE bus_id = %d", quote_identifier(leaf), bus_id), 0, NULL, NULL, NULL, 1);
	*lo = DatumGetInt64(evbus_column(0, 1, &isnull));
	*hi = isnull ? *lo : DatumGetInt64(evbus_column(0, 2, NULL)) + 1;
}

/*
 * Record what each subscription has not settled of a leaf that is about to be dropped, and
 * why it is.  Inside evbus_internal_begin(), under the leaf's lock.  False: somebody just moves
 * a subscription, so nobody can tell.
 */
bool
evbus_unconsumed_audit(EvbusDb *db, int32 class, const EvbusLeaf *leaf, const char *name, const char *cause)
{
	static const Oid types[] = {TEXTOID, TEXTOID, INT4OID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, INT8OID, INT4OID};
	EvbusSubscription *subs;
	int			n_subs;
	int			n_buses;
	int32	   *buses;
	bool	   *moved;
	Datum		values[9];

	values[8] = Int32GetDatum(class);
	n_buses = (int) evbus_sql(NULL, "SELECT bus_id, former_classes <> '{}' FROM evbus.bus WHERE storage_class_id = $9 OR $9 = ANY (former_classes)",
							  9, types, values, "nnnnnnnn ", 0);
	buses = palloc(sizeof(int32) * Max(n_buses, 1));
	moved = palloc(sizeof(bool) * Max(n_buses, 1));
	for (int b = 0; b < n_buses; b++)
	{
		buses[b] = DatumGetInt32(evbus_column(b, 1, NULL));
		moved[b] = DatumGetBool(evbus_column(b, 2, NULL));
	}
	subs = evbus_subscriptions(&n_subs);
	for (int b = 0; b < n_buses; b++)
	{
		Counting	counting = {.subs = palloc(sizeof(Unsettled) * Max(n_subs, 1))};
		int64		lo = leaf->lo;
		int64		hi = leaf->hi;

		for (int s = 0; s < n_subs; s++)
		{
			Unsettled  *sub = &counting.subs[counting.n];

			memset(sub, 0, sizeof(*sub));
			sub->sub = &subs[s];
			if (subs[s].bus_id != buses[b])
				continue;
			(void) evbus_ledger_attach(db, &subs[s]);
			if (!evbus_ledger_open_ranges(db, &subs[s], &sub->frontier, &sub->open, &sub->n_open))
				return false;
			counting.n++;
		}
		if (counting.n > 0 && moved[b])
			id_bounds(name, buses[b], &lo, &hi);
		if (counting.n > 0 && lo < hi)
			evbus_tick_each(buses[b], lo, hi, count_one, &counting);
		for (int s = 0; s < counting.n; s++)
		{
			const Unsettled *sub = &counting.subs[s];

			if (sub->events == 0)
				continue;
			values[0] = CStringGetTextDatum(sub->sub->bus_name);
			values[1] = CStringGetTextDatum(sub->sub->name);
			values[2] = Int32GetDatum(sub->sub->subscription_id);
			values[3] = CStringGetTextDatum(name);
			values[4] = TimestampTzGetDatum(evbus_clock_to_time(leaf->lo));
			values[5] = TimestampTzGetDatum(evbus_clock_to_time(leaf->hi));
			values[6] = CStringGetTextDatum(cause);
			values[7] = Int64GetDatum(sub->events);
			evbus_sql(NULL, "INSERT INTO evbus.retention_audit (bus, subscription, subscription_id, leaf, from_time, to_time, cause, events)"
					  " VALUES ($1, $2, $3, $4, $5, $6, $7, $8)", 9, types, values, NULL, 0);
			ereport(DEBUG1,
					(errmsg("evbus drops " INT64_FORMAT " events that subscription \"%s\" has not consumed, with leaf \"%s\"",
							sub->events, sub->sub->name, name)));
		}
	}
	return true;
}
