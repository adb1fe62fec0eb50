/*-------------------------------------------------------------------------
 * publish_limit.c
 *	  Rates of single roles on a bus: limit_publisher.
 *
 * A rate is a row of evbus.publish_limit, and a place in shared memory that the row
 * names; what the place has seen before it was given to another row matters for no
 * longer than a burst.
 *-------------------------------------------------------------------------
 */
#include "evbus.h"

#include "args.h"
#include "audit.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "internal.h"
#include "miscadmin.h"
#include "privilege.h"
#include "registry.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/inval.h"

PG_FUNCTION_INFO_V1(evbus_limit_publisher);

/*
 * evbus.limit_publisher(bus text, role regrole, rate integer, burst integer) returns void
 *
 * Bounds how much a role publishes to a bus: rate events a second, 1 to 1000000, burst
 * at once after a pause, 0: those of a second.  rate 0 takes the limit away.  It is about the
 * current user of the call, by itself: neither about members nor about SET ROLE's origin.
 * Takes effect for calls after the caller's commit.
 * Errors: 22004, 22023, 42501 not the owner of the bus, 42704 no such role, 54000 no
 * place left, VB001.  Privileges: EXECUTE, and owner of the bus.
 */
Datum
evbus_limit_publisher(PG_FUNCTION_ARGS)
{
	static const Oid types[] = {INT4OID, OIDOID, INT4OID, INT4OID, INT4OID};
	EvbusBus	bus;
	EvbusBus	found;
	EvbusInternal state;
	Datum		values[5];
	int			rate;
	int			burst;
	uint64		rows;
	Jsonb	   *before;

	evbus_bus_get(evbus_arg_text(fcinfo, 0, "bus"), &bus);
	evbus_check_bus(&bus, GetUserId(), EVBUS_MANAGE);
	evbus_arg_present(fcinfo, 1, "role");
	(void) GetUserNameFromId(PG_GETARG_OID(1), false);
	rate = evbus_arg_int(fcinfo, 2, "rate", 0, EVBUS_RATE_MAX);
	burst = evbus_arg_int(fcinfo, 3, "burst", 0, EVBUS_RATE_MAX);
	evbus_check_burst(rate, burst, "rate", "burst");
	PreventCommandIfReadOnly("evbus.limit_publisher()");

	LockRelationOid(evbus_relid("publish_limit"), ShareRowExclusiveLock);	/* one at a time */
	evbus_internal_begin(&state);
	values[0] = Int32GetDatum(bus.bus_id);
	rows = evbus_sql(NULL, "SELECT 1 FROM evbus.bus WHERE bus_id = $1 FOR KEY SHARE", 1, types, values, NULL, 0);	/* it stays */
	evbus_internal_end(&state);
	AcceptInvalidationMessages();
	evbus_bus_get(bus.name, &found);	/* an error if it is gone */
	if (rows == 0 || found.bus_id != bus.bus_id)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access to bus \"%s\" due to concurrent update", bus.name)));
	values[1] = ObjectIdGetDatum(PG_GETARG_OID(1));
	values[2] = Int32GetDatum(rate);
	values[3] = Int32GetDatum(burst);
	values[4] = Int32GetDatum(EVBUS_ROLE_LIMITS_MAX);
	before = evbus_audit_bus(bus.bus_id);
	evbus_internal_begin(&state);
	/* Of buses and roles that are gone, none is kept. */
	evbus_sql(NULL, "DELETE FROM evbus.publish_limit l WHERE (bus_id = $1 AND role = $2 AND $3 = 0)"
			  " OR NOT EXISTS (SELECT 1 FROM evbus.bus b WHERE b.bus_id = l.bus_id)"
			  " OR NOT EXISTS (SELECT 1 FROM pg_catalog.pg_roles r WHERE r.oid = l.role)", 3, types, values, NULL, 0);
	rows = rate == 0 ? 1 : evbus_sql(NULL, "UPDATE evbus.publish_limit SET rate = $3, burst = nullif($4, 0) WHERE bus_id = $1 AND role = $2 RETURNING 1", 4, types, values, NULL, 0);
	if (rows == 0)
		rows = evbus_sql(NULL, "INSERT INTO evbus.publish_limit (bus_id, role, slot, rate, burst)"
						 " SELECT $1, $2::regrole, s, $3, nullif($4, 0) FROM pg_catalog.generate_series(0, $5 - 1) s"
						 " WHERE NOT EXISTS (SELECT 1 FROM evbus.publish_limit l WHERE l.slot = s) ORDER BY s LIMIT 1 RETURNING 1",
						 5, types, values, NULL, 0);
	evbus_internal_end(&state);
	if (rows == 0)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("cannot limit another role: all %d places are in use", EVBUS_ROLE_LIMITS_MAX),
				 errhint("See the view evbus.publish_limit_list; evbus.limit_publisher(bus, role, 0) takes one away.")));
	evbus_registry_changed();
	evbus_audit(fcinfo, "bus", bus.name, before, evbus_audit_bus(bus.bus_id));
	PG_RETURN_VOID();
}
