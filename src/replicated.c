/*-------------------------------------------------------------------------
 * replicated.c
 *	  No subscription of logical replication may write to the tables of evbus.
 *
 * A publication FOR ALL TABLES takes them in, leaves and all.  Where it is subscribed to by a
 * database with an evbus of its own, both would write one log and one ledger: events
 * of the publisher would be delivered a second time, acks would name others' positions.
 * PostgreSQL cannot leave tables out; so the statement that would add them is undone, as
 * what it adds can be seen when it has run.
 *-------------------------------------------------------------------------
 */
#include "replicated.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_subscription_rel.h"
#include "internal.h"
#include "nodes/parsenodes.h"
#include "utils/lsyscache.h"

/* May this statement add tables to a subscription? */
bool
evbus_subscribes_tables(Node *statement)
{
	AlterSubscriptionType kind;

	if (!IsA(statement, AlterSubscriptionStmt))
		return IsA(statement, CreateSubscriptionStmt);
	kind = ((AlterSubscriptionStmt *) statement)->kind;
	return kind == ALTER_SUBSCRIPTION_SET_PUBLICATION || kind == ALTER_SUBSCRIPTION_ADD_PUBLICATION || kind == ALTER_SUBSCRIPTION_REFRESH;
}

/* When it has run.  Errors: 0A000 a subscription has one of our tables now. */
void
evbus_refuse_replicated(void)
{
	Oid			nsp = evbus_installed() ? evbus_namespace(true) : InvalidOid;
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			found = InvalidOid;

	if (!OidIsValid(nsp))
		return;
	CommandCounterIncrement();
	rel = table_open(SubscriptionRelRelationId, AccessShareLock);
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	while (!OidIsValid(found) && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Oid			relid = ((Form_pg_subscription_rel) GETSTRUCT(tuple))->srrelid;

		if (get_rel_namespace(relid) == nsp)
			found = relid;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	if (OidIsValid(found))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("table \"evbus.%s\" cannot be replicated into", get_rel_name(found)),
				 errdetail("The publication has tables of evbus, and this database has an evbus of its own. A replication slot that was made on the publisher is still there."),
				 errhint("Publish the tables of applications only: CREATE PUBLICATION ... FOR TABLES IN SCHEMA, or by name.")));
}
