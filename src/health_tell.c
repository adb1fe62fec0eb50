/*-------------------------------------------------------------------------
 * health_tell.c
 *	  What evbus.health() finds is told when its level changes: in the log, and by
 *	  NOTIFY on channel evbus_alert.
 *
 * The maintainer asks health() now and then, as anybody could, and compares with what it
 * told last of each check and subject.  That is in shared memory, so a new maintainer tells
 * nothing twice, and bounded: what comes when all places are taken is counted, and told as
 * one number.  A place is free again once its subject has been told to be ok.
 *
 * Memory tells of itself (stat_memory.c), and at once; so do circuit breakers in the log.
 * Anybody may listen on a channel, so what is sent there is names and levels, no reasons.
 *-------------------------------------------------------------------------
 */
#include "health_tell.h"

#include "access/xact.h"
#include "clock.h"
#include "commands/async.h"
#include "commands/dbcommands.h"
#include "common/hashfn.h"
#include "internal.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "stat_memory.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* s; time between two looks; 0: none. */
int			evbus_health_interval = 60;

/* Of a row of health(). */
typedef struct Found
{
	char	   *check;
	char	   *subject;		/* "": of none */
	char	   *level;
	char	   *reason;
	char	   *hint;			/* "": none */
	uint64		hash;			/* of check and subject, never 0 */
} Found;

/* A text of a column, "" for NULL; in the current memory context. */
static char *
text_at(MemoryContext context, uint64 row, int column)
{
	bool		isnull;
	Datum		value = evbus_column(row, column, &isnull);

	return isnull ? MemoryContextStrdup(context, "") : MemoryContextStrdup(context, TextDatumGetCString(value));
}

static uint64
hash_of(const Found *found)
{
	uint64		seed = DatumGetUInt64(hash_any_extended((const unsigned char *) found->check, strlen(found->check), 0));

	return Max(DatumGetUInt64(hash_any_extended((const unsigned char *) found->subject, strlen(found->subject), seed)), 1);
}

/* What is not ok, the worst first; in a transaction. */
static uint64
ask(MemoryContext context, Found **out)
{
	EvbusInternal state;
	Found	   *found;
	uint64		n;

	evbus_internal_begin(&state);
	n = evbus_sql(NULL, "SELECT \"check\", subject, level, reason, hint FROM evbus.health() WHERE level <> 'ok' AND \"check\" <> 'memory'", 0, NULL, NULL, NULL, 0);
	found = MemoryContextAllocHuge(context, sizeof(Found) * Max(n, 1));
	for (uint64 i = 0; i < n; i++)
	{
		found[i].check = text_at(context, i, 1);
		found[i].subject = text_at(context, i, 2);
		found[i].level = text_at(context, i, 3);
		found[i].reason = text_at(context, i, 4);
		found[i].hint = text_at(context, i, 5);
		found[i].hash = hash_of(&found[i]);
	}
	evbus_internal_end(&state);
	*out = found;
	return n;
}

/* To who listens; a name is cut, so that it fits however much of it is escaped. */
static void
notify(const char *check, const char *subject, const char *level)
{
	StringInfoData payload;

	initStringInfo(&payload);
	appendStringInfoString(&payload, "{\"check\": ");
	escape_json(&payload, check);
	if (subject[0] != '\0')
	{
		appendStringInfoString(&payload, ", \"subject\": ");
		escape_json(&payload, pnstrdup(subject, pg_mbcliplen(subject, strlen(subject), EVBUS_HEALTH_SUBJECT)));
	}
	appendStringInfo(&payload, ", \"level\": \"%s\"}", level);
	Async_Notify(EVBUS_ALERT_CHANNEL, payload.data);
}

/* Checks that log what they see as it happens. */
static bool
logs_itself(const char *check)
{
	return strcmp(check, "circuit breaker") == 0;
}

static char *
what_of(const char *check, const char *subject)
{
	return subject[0] != '\0' ? psprintf("%s of \"%s\"", check, subject) : pstrdup(check);
}

static void
tell(const Found *found)
{
	if (!logs_itself(found->check))
		ereport(LOG,
				(errmsg("evbus in database \"%s\": %s is at level %s: %s", get_database_name(MyDatabaseId),
						what_of(found->check, found->subject), found->level, found->reason),
				 found->hint[0] != '\0' ? errhint("%s", found->hint) : 0));
	notify(found->check, found->subject, found->level);
}

static void
tell_ok(const EvbusHealthTold *told)
{
	if (!logs_itself(told->check))
		ereport(LOG,
				(errmsg("evbus in database \"%s\": %s is at level ok", get_database_name(MyDatabaseId), what_of(told->check, told->subject))));
	notify(told->check, told->subject, "ok");
}

static EvbusHealthTold *
place_of(EvbusHealthTold *told, uint64 hash)
{
	for (int i = 0; i < EVBUS_HEALTH_TOLD; i++)
		if (told[i].hash == hash)
			return &told[i];
	return NULL;
}

/* Tell what has changed since told, and make it so. */
static void
compare(EvbusHealthTold *told, int64 *untold, const Found *found, uint64 n)
{
	bool		still[EVBUS_HEALTH_TOLD] = {0};
	int64		left_out = 0;

	for (uint64 i = 0; i < n; i++)
	{
		EvbusHealthTold *place = place_of(told, found[i].hash);

		if (place != NULL)
			still[place - told] = true;
	}
	for (int i = 0; i < EVBUS_HEALTH_TOLD; i++)
		if (told[i].hash != 0 && !still[i])
		{
			tell_ok(&told[i]);
			told[i].hash = 0;
		}
	for (uint64 i = 0; i < n; i++)
	{
		EvbusHealthTold *place = place_of(told, found[i].hash);

		if (place == NULL)
		{
			place = place_of(told, 0);
			if (place == NULL)
			{
				left_out++;
				continue;
			}
			place->hash = found[i].hash;
			place->level[0] = '\0';
			strlcpy(place->check, found[i].check, sizeof(place->check));
			strlcpy(place->subject, found[i].subject, pg_mbcliplen(found[i].subject, strlen(found[i].subject), EVBUS_HEALTH_SUBJECT) + 1);
		}
		if (strcmp(place->level, found[i].level) != 0)
		{
			tell(&found[i]);
			strlcpy(place->level, found[i].level, sizeof(place->level));
		}
	}
	if (left_out > 0 && *untold == 0)
	{
		ereport(LOG,
				(errmsg("evbus in database \"%s\": " INT64_FORMAT " more things are not as they should be", get_database_name(MyDatabaseId), left_out),
				 errhint("SELECT * FROM evbus.health() tells them all.")));
		notify("others", "", "warn");
	}
	else if (left_out == 0 && *untold > 0)
		notify("others", "", "ok");
	*untold = left_out;
}

/*
 * For the maintainer, in no transaction: look if it is time to.  Returns ms until it has to
 * come again.  Who starts has not placed what a restart left over, and looks an interval later.
 */
int
evbus_health_turn(EvbusDb *db)
{
	static int64 look_at = 0;
	int64		interval = evbus_health_interval * USECS_PER_SEC;
	int64		now = evbus_uptime();
	MemoryContext context = CurrentMemoryContext;
	EvbusHealthTold told[EVBUS_HEALTH_TOLD];
	int64		untold;
	Found	   *found;
	uint64		n;

	if (interval == 0)
	{
		look_at = 0;
		return INT_MAX;
	}
	if (look_at == 0 || look_at > now + interval)	/* a shorter interval holds from its reload on */
		look_at = now + interval;
	if (now < look_at)
		return (int) Min((look_at - now) / 1000 + 1, INT_MAX);
	look_at = now + interval;
	memcpy(told, db->health_told, sizeof(told));
	untold = db->health_untold;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	n = ask(context, &found);
	compare(told, &untold, found, n);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	memcpy(db->health_told, told, sizeof(told));	/* now it is sent */
	db->health_untold = untold;
	return (int) Min(interval / 1000, INT_MAX);
}
