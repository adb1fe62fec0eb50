/*-------------------------------------------------------------------------
 * home.c
 *	  Which database a bus is at home in: a copy delivers nothing until it is told to.
 *
 * A dump carries all there is, what is undelivered among it; where it is restored beside
 * the original, its handlers must not run as well.  So with its first bus a database writes
 * down who it is: the system identifier, the oids of the database and of the table evbus.bus,
 * and evbus.site.  Where the row names another, this is a copy: of a dump, by CREATE DATABASE
 * ... TEMPLATE, by pg_upgrade; or a physical one, if it was given another evbus.site.  A
 * standby, and what is promoted, has the same name and goes on by itself.
 *
 * In a copy subscriptions are as paused (registry.c), and its workers wait.  They do not even
 * load what there is, nor drop what retention would: pg_restore may still be at work, and brings
 * tables in any order.  It may bring buses before the row, so buses without one are a
 * copy as well; and where there is neither, the sequencer only says that it is ready.
 * evbus.take_over() writes our name, and then all is loaded as after a start.
 *-------------------------------------------------------------------------
 */
#include "home.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xlog.h"
#include "area.h"
#include "audit.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "commands/dbcommands.h"
#include "fmgr.h"
#include "internal.h"
#include "miscadmin.h"
#include "registry.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#define TELL_MS			(3600 * 1000)	/* between two lines of the log */
#define UNLOADED_MS		10000	/* for the sequencer, which looks five times a second */

/* Empty, or a name that physical copies are told apart by. */
char	   *evbus_site = NULL;

enum
{
	HOME_ID = 1, HOME_NAME
};

PG_FUNCTION_INFO_V1(evbus_take_over);
PG_FUNCTION_INFO_V1(evbus_copied);

/* Who this database is.  Where it is stored, evbus.site may be in another encoding: so no more than ASCII. */
static char *
my_name(void)
{
	StringInfoData name;

	initStringInfo(&name);
	appendStringInfo(&name, UINT64_FORMAT "/%u/%u/", GetSystemIdentifier(), MyDatabaseId, evbus_relid("bus"));
	for (const unsigned char *at = (const unsigned char *) evbus_site; *at; at++)
		if (*at >= 0x20 && *at < 0x7f && *at != '\\')
			appendStringInfoChar(&name, (char) *at);
		else
			appendStringInfo(&name, "\\x%02x", *at);
	return name.data;
}

static bool
any_bus(void)
{
	Relation	rel = table_open(evbus_relid("bus"), AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	bool		any = HeapTupleIsValid(systable_getnext(scan));

	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return any;
}

/*
 * As the tables say now; others ask evbus_home(), which remembers.  In a transaction.  Buses are
 * looked for first: who has made the first one has written the row with it.
 */
EvbusHome
evbus_home_read(void)
{
	EvbusHome	home = any_bus() ? EVBUS_HOME_ELSEWHERE : EVBUS_HOME_NONE;
	Relation	rel = table_open(evbus_relid("home"), AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple = systable_getnext(scan);

	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		char	   *name = TextDatumGetCString(heap_getattr(tuple, HOME_NAME, RelationGetDescr(rel), &isnull));
		char	   *mine = my_name();

		home = strcmp(name, mine) == 0 ? EVBUS_HOME_HERE : EVBUS_HOME_ELSEWHERE;
		pfree(name);
		pfree(mine);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return home;
}

static void
write_name(void)
{
	static const Oid types[] = {TEXTOID};
	Datum		value = CStringGetTextDatum(my_name());
	EvbusInternal state;

	evbus_internal_begin(&state);
	evbus_sql(NULL, "INSERT INTO evbus.home (home_id, home) VALUES (1, $1)"
			  " ON CONFLICT (home_id) DO UPDATE SET home = excluded.home, since = excluded.since WHERE home.home <> excluded.home", 1, types, &value, NULL, 0);
	evbus_internal_end(&state);
	evbus_registry_changed();
}

/* Somebody makes a bus: in a database without any, such as a copy of an empty template, it is at home here. */
void
evbus_home_first_bus(void)
{
	EvbusHome	home = evbus_home_read();

	if (home != EVBUS_HOME_HERE && !any_bus())
		write_name();
}

/* Errors: VB009 in a copy, for what needs the workers. */
void
evbus_home_refuse(void)
{
	if (evbus_home() != EVBUS_HOME_HERE)
		evbus_registry_forget();	/* pg_restore tells nobody of its rows */
	if (evbus_home() == EVBUS_HOME_ELSEWHERE)
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_NOT_READY),
				 errmsg("this database is a copy of another one, and evbus delivers nothing in it"),
				 errhint("If it is to take the place of the other one, call evbus.take_over().")));
}

/* For the maintainer, in a transaction: the log says so, now and then. */
void
evbus_home_tell(EvbusHome home)
{
	static int64 told_at = 0;
	int64		now = evbus_uptime();

	if (home != EVBUS_HOME_ELSEWHERE || (told_at != 0 && !TimestampDifferenceExceeds(told_at, now, TELL_MS)))
		return;
	told_at = now;
	ereport(LOG,
			(errmsg("evbus delivers nothing in database \"%s\": it is a copy of another one", get_database_name(MyDatabaseId)),
			 errdetail("No handler is called, no delayed event is published, and nothing is dropped. Events can be published."),
			 errhint("If it is to take the place of the other one, call evbus.take_over() in it.")));
}

/*
 * evbus.take_over() returns boolean
 *
 * Makes a copy deliver, once the caller commits: this database takes the place of the one
 * that it is a copy of, which must not go on.  What was paused there is paused here.  False: it is no copy.
 * Errors: 25006, VB009 where the sequencer hangs.  Privileges: EXECUTE.
 */
Datum
evbus_take_over(PG_FUNCTION_ARGS)
{
	EvbusDb    *db = evbus_db();	/* its workers shall come */

	PreventCommandIfReadOnly("evbus.take_over()");
	PreventCommandDuringRecovery("evbus.take_over()");
	if (evbus_home_read() != EVBUS_HOME_ELSEWHERE)
		PG_RETURN_BOOL(false);
	/* A sequencer that saw no bus here has loaded nothing; it must have seen that there are some, or it never will load them. */
	if (!evbus_db_wait_unloaded(db, UNLOADED_MS))
		ereport(ERROR,
				(errcode(ERRCODE_EVBUS_NOT_READY),
				 errmsg("the evbus sequencer of this database has not noticed yet that this is a copy"),
				 errhint("Try again; if that does not help, see whether the server log has errors of the \"evbus sequencer\".")));
	write_name();
	evbus_audit(fcinfo, NULL, NULL, NULL, NULL);
	PG_RETURN_BOOL(true);
}

/* evbus._copied() returns boolean: does this database deliver nothing because it is a copy? */
Datum
evbus_copied(PG_FUNCTION_ARGS)
{
	(void) evbus_db();
	PG_RETURN_BOOL(evbus_home_read() == EVBUS_HOME_ELSEWHERE);
}
