/*-------------------------------------------------------------------------
 * bus_idle.c
 *	  Buses that come and go by themselves.
 *
 * With evbus.auto_create a bus is made when somebody publishes or subscribes to it.  Not in
 * his transaction, which would lock out all others that want a new bus until it ends: the
 * maintainer makes it (errand.c), and it stays if he rolls back.
 *
 * What comes by itself has to go by itself.  A bus with idle_ttl is dropped when nobody
 * has used it for so long; and if all slots are taken, the one that was not used for the
 * longest time makes room, if it was made by itself.  In use is a bus
 *
 *		that has a subscription, and so all that has a backlog,
 *		to which an open or prepared transaction has published: it holds a lock of the bus,
 *		for which events are scheduled, or changes of a table are published,
 *		or that was published to within the last IN_USE.
 *
 * The lock is a heavyweight one, which only publishers to such buses take.  Who takes it
 * looks the bus up again, for it may be gone, or another by now.
 *-------------------------------------------------------------------------
 */
#include "bus_idle.h"

#include "area.h"
#include "args.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "commands/dbcommands.h"
#include "errand.h"
#include "internal.h"
#include "miscadmin.h"
#include "replay.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#define IN_USE			(10 * USECS_PER_SEC)
#define NOTE_EVERY		USECS_PER_SEC	/* who publishes often need not write down when each time */

bool		evbus_auto_create = false;
int			evbus_idle_ttl = 7 * 24 * 3600;

/* ------------------------------------------------------------------------- coming */

/* Make a bus with the defaults, that goes by itself, in the current transaction. */
void
evbus_bus_make(const char *name, Oid owner)
{
	static const Oid types[] = {TEXTOID, OIDOID, INT4OID};
	Datum		values[] = {CStringGetTextDatum(name), ObjectIdGetDatum(owner), Int32GetDatum(evbus_idle_ttl)};
	EvbusInternal state;
	EvbusBus	bus;

	LockRelationOid(evbus_relid("bus"), ShareRowExclusiveLock);
	if (evbus_bus_find(name, &bus))
		return;					/* somebody else was faster */
	evbus_internal_begin(&state);
	evbus_sql(NULL, "SELECT evbus.create_bus($1, idle_ttl => $3 * pg_catalog.interval '1 second')", 3, types, values, NULL, 0);
	evbus_sql(NULL, "UPDATE evbus.bus SET owner = $2::regrole, auto_created = true WHERE bus = $1", 3, types, values, NULL, 0);
	evbus_internal_end(&state);
	evbus_registry_changed();
}

/*
 * The bus, made if there is none and evbus.auto_create says so; what: who asks.  Errors
 * VB001, and those of evbus.create_bus().
 */
void
evbus_bus_get_or_make(EvbusDb *db, const char *name, const char *what, EvbusBus *bus)
{
	Relation	rel;
	bool		locked;

	if (evbus_bus_find(name, bus))
		return;
	if (!evbus_auto_create)
		evbus_bus_get(name, bus);	/* an error */
	PreventCommandIfReadOnly(what);
	PreventCommandIfParallelMode(what);
	PreventCommandDuringRecovery(what);
	evbus_check_name(name, "bus");
	rel = RelationIdGetRelation(evbus_relid("bus"));
	locked = CheckRelationLockedByMe(rel, ShareRowExclusiveLock, true);
	RelationClose(rel);
	if (locked)
		evbus_bus_make(name, GetUserId());	/* the maintainer would wait for us */
	else
		evbus_errand_run(db, EVBUS_ERRAND_MAKE_BUS, name, EVBUS_ERRAND_PATIENCE);
	AcceptInvalidationMessages();
	evbus_bus_get(name, bus);
}

/* ------------------------------------------------------------------------- in use */

static void
set_tag(int32 bus_id, LOCKTAG *tag)
{
	SET_LOCKTAG_OBJECT(*tag, MyDatabaseId, evbus_relid("bus"), bus_id, 0);
}

/* A bus with idle_ttl is about to be published to: it stays until the end of the transaction. */
void
evbus_bus_use(EvbusDb *db, const char *name, const char *what, EvbusBus *bus)
{
	int64		now = evbus_uptime();

	while (bus->idle_ttl > 0)
	{
		int32		bus_id = bus->bus_id;
		LOCKTAG		tag;

		set_tag(bus_id, &tag);
		(void) LockAcquire(&tag, AccessShareLock, false, false);
		AcceptInvalidationMessages();
		evbus_bus_get_or_make(db, name, what, bus);
		if (bus->bus_id != bus_id)
			continue;			/* it was dropped before we had the lock */
		if (now - (int64) pg_atomic_read_u64(&EVBUS_BUS(db, bus->slot)->used_at) > NOTE_EVERY)
			pg_atomic_write_u64(&EVBUS_BUS(db, bus->slot)->used_at, (uint64) now);
		break;
	}
}

/* A table whose changes are published to a bus: its triggers know it by its name.  NULL: there is none. */
char *
evbus_bus_changes_table(const EvbusBus *bus)
{
	static const Oid types[] = {TEXTOID};
	Datum		name = CStringGetTextDatum(bus->name);
	MemoryContext context = CurrentMemoryContext;
	char	   *table = NULL;
	EvbusInternal state;

	evbus_internal_begin(&state);
	if (evbus_sql(NULL, "SELECT tgrelid::regclass::text FROM pg_trigger, (SELECT convert_to($1, getdatabaseencoding()) || '\\x00'::bytea) AS b (bus)"
				  " WHERE tgfoid = 'evbus._changes()'::regprocedure AND tgparentid = 0 AND substring(tgargs FOR length(bus)) = bus"
				  " ORDER BY 1", 1, types, &name, NULL, 1) > 0)
		table = MemoryContextStrdup(context, TextDatumGetCString(evbus_column(0, 1, NULL)));
	evbus_internal_end(&state);
	return table;
}

/* Do events of it wait for their time? */
bool
evbus_bus_has_scheduled(int32 bus_id)
{
	static const Oid types[] = {INT4OID};
	Datum		id = Int32GetDatum(bus_id);
	EvbusInternal state;
	bool		any;

	evbus_internal_begin(&state);
	any = evbus_sql(NULL, "SELECT 1 FROM evbus.scheduled WHERE bus_id = $1 LIMIT 1", 1, types, &id, NULL, 1) > 0;
	evbus_internal_end(&state);
	return any;
}

static bool
has_subscriptions(int32 bus_id)
{
	int			n;
	EvbusSubscription *subs = evbus_subscriptions(&n);

	for (int i = 0; i < n; i++)
		if (subs[i].bus_id == bus_id)
			return true;
	return false;
}

/* Since when nobody has published to it, as far as is known: nobody looked before the server started. */
static int64
used_at(EvbusDb *db, const EvbusBus *bus)
{
	return Max((int64) pg_atomic_read_u64(&EVBUS_BUS(db, bus->slot)->used_at), db->claimed_at);
}

/* -------------------------------------------------------------------------- going */

/* Take a bus and all that is of it out of the tables; its events go with their leaves. */
void
evbus_bus_remove(int32 bus_id)
{
	static const Oid types[] = {INT4OID};
	Datum		id = Int32GetDatum(bus_id);
	EvbusInternal state;

	evbus_replays_end(0, bus_id);
	evbus_internal_begin(&state);
	evbus_sql(NULL, "DELETE FROM evbus.scheduled WHERE bus_id = $1", 1, types, &id, NULL, 0);
	evbus_sql(NULL, "DELETE FROM evbus.retry WHERE subscription_id IN (SELECT subscription_id FROM evbus.subscription WHERE bus_id = $1)",
			  1, types, &id, NULL, 0);
	evbus_sql(NULL, "DELETE FROM evbus.subscription WHERE bus_id = $1", 1, types, &id, NULL, 0);
	evbus_sql(NULL, "DELETE FROM evbus.publish_limit WHERE bus_id = $1", 1, types, &id, NULL, 0);
	evbus_sql(NULL, "DELETE FROM evbus.bus WHERE bus_id = $1", 1, types, &id, NULL, 0);
	evbus_internal_end(&state);
	evbus_registry_changed();
}

/*
 * Drop a bus that nobody has used for so long; false: it is in use, or somebody is about to
 * use it, for whom nobody waits.  In the current transaction.
 */
static bool
evict(EvbusDb *db, const EvbusBus *candidate, int64 idle, const char *why)
{
	LOCKTAG		tag;
	EvbusBus	bus;

	/* Nobody subscribes, and nobody publishes, from here on. */
	set_tag(candidate->bus_id, &tag);
	if (!ConditionalLockRelationOid(evbus_relid("subscription"), ShareRowExclusiveLock) ||
		LockAcquire(&tag, AccessExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	AcceptInvalidationMessages();
	if (!evbus_bus_by_id(candidate->bus_id, &bus) || bus.idle_ttl == 0 || evbus_uptime() - used_at(db, &bus) < idle ||
		has_subscriptions(bus.bus_id) || evbus_bus_has_scheduled(bus.bus_id) || evbus_bus_changes_table(&bus) != NULL)
	{
		LockRelease(&tag, AccessExclusiveLock, false);
		return false;
	}
	evbus_bus_remove(bus.bus_id);
	ereport(LOG,
			(errmsg("evbus dropped bus \"%s\" of database \"%s\", which nobody used: %s", bus.name, get_database_name(MyDatabaseId), why)));
	return true;
}

/*
 * All slots are taken: drop, in the current transaction, the bus that was made by itself
 * and not used for the longest time.  False: all of them are in use.
 */
bool
evbus_bus_make_room(EvbusDb *db)
{
	int			n;
	EvbusBus   *buses = evbus_buses(&n);

	for (;;)
	{
		EvbusBus   *oldest = NULL;

		for (int i = 0; i < n; i++)
			if (buses[i].auto_created && buses[i].idle_ttl > 0 && (oldest == NULL || used_at(db, &buses[i]) < used_at(db, oldest)))
				oldest = &buses[i];
		if (oldest == NULL)
			return false;
		if (evict(db, oldest, IN_USE, "another needs its slot"))
			return true;
		oldest->idle_ttl = 0;
	}
}

/* For the maintainer, a step: drop one bus whose idle_ttl is over; false: there is none. */
bool
evbus_bus_expire(EvbusDb *db)
{
	int			n;
	EvbusBus   *buses = evbus_buses(&n);

	for (int i = 0; i < n; i++)
		if (buses[i].idle_ttl > 0 && evbus_uptime() - used_at(db, &buses[i]) >= buses[i].idle_ttl &&
			evict(db, &buses[i], buses[i].idle_ttl, "its idle_ttl is over"))
			return true;
	return false;
}
