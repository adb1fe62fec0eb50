/*-------------------------------------------------------------------------
 * quota.c
 *	  How many dead letters a subscription may have, and what happens then.
 *
 * Who gives up on a delivery never waits for a count, nor for others who do so: it
 * raises EvbusSub.died and wakes the maintainer.  That counts, which is exact and
 * cheap (dead_letter.c keeps the counts), and then either pauses the subscription, or
 * deletes the oldest, so many in a transaction.  So there may be more than max_dead_letters,
 * by what is in hand and what is given up on until the maintainer has looked; with
 * "pause" none of them is lost.
 *
 * The maintainer may look before the transaction has committed.  So it looks on for
 * a while (LOOK_ON), and at every subscription with a quota now and then (LOOK_ALL).
 *-------------------------------------------------------------------------
 */
#include "quota.h"

#include "catalog/pg_type.h"
#include "clock.h"
#include "commands/dbcommands.h"
#include "internal.h"
#include "leaf.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define LOOK_EVERY	(100 * 1000)	/* microseconds */
#define LOOK_ON		(2 * USECS_PER_SEC)
#define LOOK_ALL	(10 * USECS_PER_SEC)
#define DROP_MAX	2000			/* dead letters deleted in one transaction */

/* What the maintainer knows of the subscription at a slot. */
typedef struct Seen
{
	int32		subscription_id;
	int			max;			/* as it was set then */
	bool		drop;
	bool		paused;
	uint32		died;
	int64		look_at;		/* not before, if there is a reason */
	int64		look_until;		/* look without another reason */
	bool		more;			/* to be deleted */
} Seen;

/* One look, in memory that outlives its step. */
typedef struct Look
{
	const EvbusSubscription *sub;
	bool		more;
} Look;

/* A delivery of this subscription becomes a dead letter when the caller commits. */
void
evbus_quota_died(EvbusDb *db, const EvbusSubscription *sub)
{
	if (sub->replay_of != 0)
		sub = evbus_subscription_by_id(sub->replay_of);	/* whose dead letter it is */
	if (sub == NULL || sub->max_dead_letters == 0)
		return;
	pg_atomic_fetch_add_u32(&EVBUS_SUB(db, sub->slot)->died, 1);
	if (db->maintainer_pid != 0)
		SetLatch(&ProcGlobal->allProcs[db->maintainer_procno].procLatch);
}

/* One statement about a subscription ($1) and a number ($2), whose answer is a number; -1: no row. */
static int64
ask(const char *sql, const EvbusSubscription *sub, int64 number)
{
	static const Oid types[] = {INT4OID, INT8OID};
	Datum		values[] = {Int32GetDatum(sub->subscription_id), Int64GetDatum(number)};

	return evbus_sql(NULL, sql, 2, types, values, NULL, 0) > 0 ? DatumGetInt64(evbus_column(0, 1, NULL)) : -1;
}

/* Delete the n oldest: by the day they died, and within that by the event; returns how many. */
static int64
drop_oldest(const EvbusSubscription *sub, int64 n, const EvbusLeaf *leaves, int n_leaves)
{
	int64		dropped = 0;

	for (int i = 0; i < n_leaves && dropped < n; i++)
	{
		char	   *name = get_rel_name(leaves[i].relid);

		if (name == NULL)
			break;				/* past its retention meanwhile, and among those we have counted */
		dropped += ask(psprintf("WITH d AS (DELETE FROM evbus.%s WHERE ctid = ANY (ARRAY(SELECT ctid FROM evbus.%s"
								"  WHERE subscription_id = $1 ORDER BY event_id LIMIT $2 FOR UPDATE SKIP LOCKED)) RETURNING *),"
								" c AS (INSERT INTO evbus.dead_letter_delta (subscription_id, bus, subscription, type, sqlstate, reason, hour, died, gone)"
								"  SELECT subscription_id, bus, subscription, type, sqlstate, reason, evbus._event_hour(dead_letter_id), 0, count(*) FROM d"
								"  GROUP BY 1, 2, 3, 4, 5, 6, 7)"
								" SELECT count(*) FROM d", quote_identifier(name), quote_identifier(name)), sub, n - dropped);
	}
	return dropped;
}

/* Note that it is full, and what was dropped for it; true: it was not full before. */
static bool
note_full(const EvbusSubscription *sub, int64 dropped)
{
	return ask("WITH o AS (SELECT full_since FROM evbus.dead_letter_quota_state WHERE subscription_id = $1),"
			   " n AS (INSERT INTO evbus.dead_letter_quota_state AS q (subscription_id, full_since, dropped, last_dropped_at)"
			   "  VALUES ($1, clock_timestamp(), $2, CASE WHEN $2 > 0 THEN clock_timestamp() END)"
			   "  ON CONFLICT (subscription_id) DO UPDATE SET full_since = coalesce(q.full_since, excluded.full_since),"
			   "   dropped = q.dropped + excluded.dropped, last_dropped_at = coalesce(excluded.last_dropped_at, q.last_dropped_at)"
			   "  WHERE q.full_since IS NULL OR excluded.dropped > 0)"
			   " SELECT count(full_since) FROM o", sub, dropped) == 0;
}

/* Step: count, and do what is to be done. */
static void
look(void *arg)
{
	Look	   *look = arg;
	const EvbusSubscription *sub = look->sub;
	int			max = sub->max_dead_letters;
	EvbusInternal state;
	EvbusLeaf  *leaves;
	int			n_leaves = evbus_leaf_list(evbus_relid("dead_letter_log"), &leaves);
	int64		count;

	evbus_internal_begin(&state);
	/* What went with a leaf at its retention is in the counts until they are folded. */
	count = ask("SELECT coalesce(sum(died - gone), 0)::bigint FROM (SELECT hour, died, gone FROM evbus.dead_letter_count WHERE subscription_id = $1"
				" UNION ALL SELECT hour, died, gone FROM evbus.dead_letter_delta WHERE subscription_id = $1) c WHERE hour >= evbus._event_hour($2)",
				sub, n_leaves > 0 ? leaves[0].lo : 0);
	if (count < max)
		(void) ask("UPDATE evbus.dead_letter_quota_state SET full_since = NULL WHERE subscription_id = $1 AND full_since IS NOT NULL RETURNING 1::bigint", sub, 0);
	else if (sub->drop_dead_letters)
	{
		int64		dropped = count > max ? drop_oldest(sub, Min(count - max, DROP_MAX), leaves, n_leaves) : 0;

		look->more = dropped == DROP_MAX;
		if (dropped > 0 && note_full(sub, dropped))
			ereport(LOG,
					(errmsg("evbus drops the oldest dead letters of subscription \"%s\" in database \"%s\": it has more than %d",
							sub->name, get_database_name(MyDatabaseId), max)));
	}
	else
	{
		static const Oid types[] = {INT4OID, TEXTOID};
		char	   *reason = psprintf("there are " INT64_FORMAT " dead letters, and max_dead_letters is %d", count, max);
		Datum		values[] = {Int32GetDatum(sub->subscription_id), CStringGetTextDatum(reason)};

		(void) note_full(sub, 0);
		if (evbus_sql(NULL, "UPDATE evbus.subscription SET paused = true, paused_reason = $2 WHERE subscription_id = $1 AND NOT paused",
					  2, types, values, NULL, 0) > 0)
		{
			evbus_registry_changed();
			ereport(LOG,
					(errmsg("evbus paused subscription \"%s\" in database \"%s\": %s", sub->name, get_database_name(MyDatabaseId), reason)));
		}
	}
	evbus_internal_end(&state);
}

/* For the maintainer, in no transaction. */
void
evbus_quota_turn(EvbusDb *db, EvbusRunner run, const EvbusSubscription *subs, int n)
{
	static Seen *seen = NULL;	/* by slot */
	static int64 all_at = 0;
	int64		now = evbus_uptime();
	bool		all = now >= all_at;

	if (seen == NULL)
		seen = MemoryContextAllocZero(TopMemoryContext, sizeof(Seen) * evbus_max_subscriptions);
	if (all)
		all_at = now + LOOK_ALL;
	for (int i = 0; i < n; i++)
	{
		Seen	   *s = &seen[subs[i].slot];
		uint32		died = pg_atomic_read_u32(&EVBUS_SUB(db, subs[i].slot)->died);
		Look		at = {.sub = &subs[i]};

		if (subs[i].max_dead_letters == 0 || subs[i].replay_of != 0)
			continue;
		if (s->subscription_id != subs[i].subscription_id || s->max != subs[i].max_dead_letters ||
			s->drop != subs[i].drop_dead_letters || s->paused != subs[i].paused)
		{
			memset(s, 0, sizeof(*s));
			s->subscription_id = subs[i].subscription_id;
			s->max = subs[i].max_dead_letters;
			s->drop = subs[i].drop_dead_letters;
			s->paused = subs[i].paused;
			s->died = died;
			s->look_until = now;
		}
		if (died != s->died)
			s->look_until = now + LOOK_ON;
		if (now < s->look_at || !(all || s->more || now <= s->look_until))
			continue;
		s->died = died;
		if (run(look, &at) == NULL)
		{
			s->more = at.more;
			s->look_at = now + (at.more ? 0 : LOOK_EVERY);
		}
		else
			s->look_at = now + USECS_PER_SEC;
	}
}
