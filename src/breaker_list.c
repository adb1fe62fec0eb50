/*-------------------------------------------------------------------------
 * breaker_list.c
 *	  Circuit breakers as others see them: the view, evbus.reset_breaker(), and the
 *	  maintainer's part, which is to tell of changes.
 *
 * Who opens or closes one is in a commit callback, or a client, and can do neither
 * LOG nor NOTIFY: the maintainer, who comes by five times a second, compares with what he
 * told last.  So changes that follow each other faster are told as one.
 *-------------------------------------------------------------------------
 */
#include "breaker_list.h"

#include "access/xact.h"
#include "args.h"
#include "audit.h"
#include "breaker.h"
#include "clock.h"
#include "commands/async.h"
#include "commands/dbcommands.h"
#include "delivery.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "privilege.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(evbus_reset_breaker);
PG_FUNCTION_INFO_V1(evbus_breaker_state);

static const char *const states[] = {"closed", "open", "half_open"};

static char *
reason(const EvbusBreaker *b)
{
	return psprintf(INT64_FORMAT " of " INT64_FORMAT " deliveries failed, the last with SQLSTATE %s",
					b->failed, b->failed + b->succeeded, unpack_sql_state(b->sqlerrcode));
}

/*
 * evbus.reset_breaker(subscription text) returns boolean
 *
 * Closes its circuit breaker, at once and whatever becomes of the transaction; what failed
 * before is forgotten.  False: it was closed.  Errors: 22004, 25006 on a standby, 42501 not the owner, VB004.
 */
Datum
evbus_reset_breaker(PG_FUNCTION_ARGS)
{
	EvbusSubscription *sub = evbus_subscription_get(evbus_arg_text(fcinfo, 0, "subscription"), false);

	evbus_check_subscription(sub, GetUserId(), EVBUS_OPERATE);
	PreventCommandDuringRecovery("evbus.reset_breaker()");
	evbus_audit_at_once(fcinfo, "subscription", sub->name);
	PG_RETURN_BOOL(evbus_breaker_close(evbus_db(), sub));
}

/*
 * evbus._breaker_state(): a row for each subscription that has one.  The message, which is
 * the handler's, is for who has the rights of the owner.
 */
Datum
evbus_breaker_state(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	EvbusDb    *db = evbus_db();
	int			n;
	EvbusSubscription *subs = evbus_subscriptions(&n);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < n; i++)
	{
		EvbusBreaker b;
		int64		succeeded;
		int64		failed;
		Datum		values[11];
		bool		nulls[11] = {0};

		if (subs[i].replay_of != 0)
			continue;
		evbus_breaker_look(db, &subs[i], &b);
		if (subs[i].breaker_threshold == 0)
			continue;			/* it had one, perhaps: from now on that is closed */
		evbus_breaker_in_window(&b, &succeeded, &failed);
		values[0] = Int32GetDatum(subs[i].subscription_id);
		values[1] = CStringGetTextDatum(states[b.state]);
		values[2] = TimestampTzGetDatum(b.since);
		nulls[2] = b.since == 0;
		nulls[3] = b.state == EVBUS_BREAKER_CLOSED;
		values[3] = nulls[3] ? (Datum) 0 : CStringGetTextDatum(reason(&b));
		nulls[4] = b.state != EVBUS_BREAKER_OPEN;
		values[4] = TimestampTzGetDatum(GetCurrentTimestamp() + b.probe_at - evbus_uptime());
		values[5] = Int64GetDatum(succeeded);
		values[6] = Int64GetDatum(failed);
		values[7] = Int64GetDatum((int64) b.opened);
		values[8] = Int64GetDatum((int64) b.failed_probes);
		nulls[9] = b.sqlerrcode == 0;
		values[9] = nulls[9] ? (Datum) 0 : CStringGetTextDatum(unpack_sql_state(b.sqlerrcode));
		nulls[10] = b.sqlerrcode == 0 || !has_privs_of_role(GetUserId(), subs[i].owner);
		values[10] = nulls[10] ? (Datum) 0 : CStringGetTextDatum(b.message);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* -------------------------------------------------------------- the maintainer */

/* What was told last of the subscription at a slot. */
typedef struct Told
{
	int32		subscription_id;
	uint8		state;
	uint32		opened;
	uint32		failed_probes;
	int64		probe_at;		/* of the probe that clients were told of */
} Told;

/* Log what it is now, and tell who listens on the subscription's channel. */
static void
tell(const EvbusSubscription *sub, const EvbusBreaker *b, bool again)
{
	MemoryContext context = CurrentMemoryContext;
	char		channel[NAMEDATALEN];
	const char *database;

	StartTransactionCommand();
	database = get_database_name(MyDatabaseId);
	if (b->state == EVBUS_BREAKER_CLOSED)
		ereport(LOG,
				(errmsg("the circuit breaker of subscription \"%s\" in database \"%s\" is closed; it has opened %u times", sub->name, database, b->opened)));
	else if (b->state == EVBUS_BREAKER_HALF_OPEN)
		ereport(LOG,
				(errmsg("the circuit breaker of subscription \"%s\" in database \"%s\" is half open: a probe is under way", sub->name, database)));
	else if (again)
		ereport(LOG,
				(errmsg("the circuit breaker of subscription \"%s\" in database \"%s\" stays open: probes that failed: %u, next probe in " INT64_FORMAT " ms",
						sub->name, database, b->failed_probes, Max(b->probe_at - evbus_uptime(), 0) / 1000)));
	else
		ereport(LOG,
				(errmsg("the circuit breaker of subscription \"%s\" in database \"%s\" is open: %s", sub->name, database, reason(b))));
	if (sub->notify)
	{
		evbus_channel_name(sub, channel);
		Async_Notify(channel, psprintf("breaker %s", states[b->state]));
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
}

/*
 * For the maintainer, in no transaction: tell of changes, and of probes that are to be had.
 * Returns ms until it has to come again.
 */
int
evbus_breaker_turn(EvbusDb *db, const EvbusSubscription *subs, int n)
{
	static Told *told = NULL;	/* by slot */
	int			rest = INT_MAX;

	if (told == NULL)
		told = MemoryContextAllocZero(TopMemoryContext, sizeof(Told) * evbus_max_subscriptions);
	for (int i = 0; i < n; i++)
	{
		Told	   *t = &told[subs[i].slot];
		EvbusBreaker b;
		int64		wait;
		bool		again;

		if (subs[i].replay_of != 0 || (subs[i].breaker_threshold == 0 && t->subscription_id != subs[i].subscription_id))
			continue;
		evbus_breaker_look(db, &subs[i], &b);
		if (t->subscription_id != subs[i].subscription_id)
		{
			memset(t, 0, sizeof(*t));
			t->subscription_id = subs[i].subscription_id;
		}
		again = t->state != EVBUS_BREAKER_CLOSED && t->opened == b.opened;
		if (t->state != b.state || t->opened != b.opened || (b.state == EVBUS_BREAKER_OPEN && t->failed_probes != b.failed_probes))
		{
			t->state = b.state;
			t->opened = b.opened;
			t->failed_probes = b.failed_probes;
			tell(&subs[i], &b, again);
		}
		if (b.state != EVBUS_BREAKER_OPEN)
			continue;
		wait = b.probe_at - evbus_uptime();
		if (wait > 0)
			rest = Min(rest, (int) Min(wait / 1000 + 1, 60000));
		else if (t->probe_at != b.probe_at)
		{
			/* Those who wait for a notification, and those who sleep. */
			t->probe_at = b.probe_at;
			pg_atomic_write_u32(&EVBUS_SUB(db, subs[i].slot)->notify, 1);
			ConditionVariableBroadcast(&db->drained_cv);
		}
	}
	return rest;
}
