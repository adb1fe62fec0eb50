/*-------------------------------------------------------------------------
 * target.c
 *	  What a handler is: a function by name, of one argument, and a role that
 *	  can log in to run it.
 *
 * The function is looked up by schema, name and argument type for each batch,
 * so one that was replaced, dropped or revoked meanwhile is noticed.  Asked by
 * subscribe.c beforehand and by the workers each time.
 *-------------------------------------------------------------------------
 */
#include "target.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "internal.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "parser/parse_func.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

/* evbus.event, or evbus.event[]. */
Oid
evbus_event_type(bool array)
{
	Oid			type = GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid, CStringGetDatum("event"),
									   ObjectIdGetDatum(evbus_namespace(false)));

	return array ? get_array_type(type) : type;
}

/* Why workers cannot log in as a role to this database, or NULL. */
const char *
evbus_cannot_log_in(Oid role)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	const char *why = NULL;

	if (!HeapTupleIsValid(tuple))
		return "the role does not exist";
	if (!((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin)
		why = "the role has no LOGIN attribute";
	ReleaseSysCache(tuple);
	if (why == NULL && evbus_database_aclcheck(MyDatabaseId, role) != ACLCHECK_OK)
		why = "the role has no CONNECT privilege on the database";
	return why;
}

/*
 * A name is not enough: where others may create functions too, one of theirs
 * could take the place of a handler that was dropped, and run as its owner.
 */
static bool
same_hands(Oid fn, const EvbusSubscription *sub)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(fn));
	Oid			owner = InvalidOid;

	if (HeapTupleIsValid(tuple))
	{
		owner = ((Form_pg_proc) GETSTRUCT(tuple))->proowner;
		ReleaseSysCache(tuple);
	}
	return OidIsValid(owner) && (owner == sub->handler_owner || owner == sub->owner || superuser_arg(owner));
}

/* The handler by name, as it is now; InvalidOid: gone, or the owner may not execute it. */
Oid
evbus_handler_function(const EvbusSubscription *sub)
{
	Oid			type = evbus_event_type(sub->handler_batch);
	List	   *name;
	Oid			fn;

	if (!OidIsValid(get_namespace_oid(sub->handler_schema, true)))
		return InvalidOid;
	name = list_make2(makeString(pstrdup(sub->handler_schema)), makeString(pstrdup(sub->handler_name)));
	fn = LookupFuncName(name, 1, &type, true);
	if (OidIsValid(fn) && (get_func_prokind(fn) != PROKIND_FUNCTION || get_func_retset(fn) ||
						   evbus_proc_aclcheck(fn, sub->owner) != ACLCHECK_OK ||
						   !same_hands(fn, sub)))
		fn = InvalidOid;
	return fn;
}
