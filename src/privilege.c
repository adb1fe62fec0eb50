/*-------------------------------------------------------------------------
 * privilege.c
 *	  Who may do what with which bus and subscription: grant, revoke, has_privilege,
 *	  and the checks of everybody else.
 *
 * EXECUTE says who may call a function at all; that is PostgreSQL's, and the roles
 * evbus_publisher, evbus_consumer, evbus_operator and evbus_monitor have it for what
 * their names say.  On what it may be called is said here: by the owner of a bus or subscription, who
 * may do all with it, and by rows of evbus.privilege.  Members of evbus_operator have
 * "manage" and "operate" everywhere, which moves events and settings about and shows none.
 *
 * The rows are read when the registry has changed (registry.c), which every change of
 * them says it has: so a revoke holds for every call that begins after its commit, and ends
 * the waiting of who may no longer receive.  Membership is PostgreSQL's to ask, each time.
 *
 * What a subscription is given belongs to its owner.  Where he may no longer subscribe to the bus,
 * nothing is delivered, to nobody.
 *-------------------------------------------------------------------------
 */
#include "privilege.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "args.h"
#include "audit.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "internal.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#define OPERATOR_ROLE	"evbus_operator"
#define GRANTS_MAX		10000	/* rows; each process has a copy of them */

PG_FUNCTION_INFO_V1(evbus_grant);
PG_FUNCTION_INFO_V1(evbus_revoke);
PG_FUNCTION_INFO_V1(evbus_has_privilege);

static const char *const words[EVBUS_PRIVILEGES] = {"publish", "read", "subscribe", "manage", "consume", "operate"};

/* A row of evbus.privilege; columns in this order. */
enum
{
	PRIV_WORD = 1, PRIV_ID, PRIV_ROLE, PRIV_GRANTOR, PRIV_AT
};

typedef struct Grant
{
	EvbusPrivilege privilege;
	int32		object_id;
	Oid			role;
} Grant;

static MemoryContext grants_context = NULL;
static Grant *grants;
static int	n_grants;
static uint64 grants_generation = 0;	/* of the registry, when they were read; 0: never */

/* ------------------------------------------------------------------- asking */

static bool
parse(const char *word, EvbusPrivilege *privilege)
{
	for (int i = 0; i < EVBUS_PRIVILEGES; i++)
		if (strcmp(word, words[i]) == 0)
		{
			*privilege = (EvbusPrivilege) i;
			return true;
		}
	return false;
}

static void
load(void)
{
	uint64		generation = evbus_registry_generation();
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;

	if (grants_generation == generation)
		return;
	if (grants_context == NULL)
		grants_context = AllocSetContextCreate(TopMemoryContext, "evbus privileges", ALLOCSET_DEFAULT_SIZES);
	grants_generation = 0;
	MemoryContextReset(grants_context);
	n_grants = 0;
	grants = MemoryContextAlloc(grants_context, sizeof(Grant) * 16);
	rel = table_open(evbus_relid("privilege"), AccessShareLock);
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	while (n_grants < GRANTS_MAX && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Grant	   *grant;
		bool		isnull;

		if (n_grants >= 16 && (n_grants & (n_grants - 1)) == 0)
			grants = repalloc(grants, sizeof(Grant) * n_grants * 2);
		grant = &grants[n_grants];
		grant->object_id = DatumGetInt32(heap_getattr(tuple, PRIV_ID, RelationGetDescr(rel), &isnull));
		grant->role = DatumGetObjectId(heap_getattr(tuple, PRIV_ROLE, RelationGetDescr(rel), &isnull));
		n_grants += parse(TextDatumGetCString(heap_getattr(tuple, PRIV_WORD, RelationGetDescr(rel), &isnull)), &grant->privilege);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	grants_generation = generation;
}

static bool
allows(int32 object_id, Oid owner, Oid role, EvbusPrivilege privilege)
{
	if (role == owner || has_privs_of_role(role, owner))
		return true;
	if (privilege == EVBUS_MANAGE || privilege == EVBUS_OPERATE)
	{
		Oid			operators = get_role_oid(OPERATOR_ROLE, true);

		if (OidIsValid(operators) && has_privs_of_role(role, operators))
			return true;
	}
	load();
	for (int i = 0; i < n_grants; i++)
		if (grants[i].object_id == object_id && grants[i].privilege == privilege &&
			has_privs_of_role(role, grants[i].role))
			return true;
	return false;
}

/* May a role do that with a bus?  Superusers and owners may. */
bool
evbus_bus_allows(const EvbusBus *bus, Oid role, EvbusPrivilege privilege)
{
	return allows(bus->bus_id, bus->owner, role, privilege);
}

/* The same of a subscription, or of the one that this is a replay of. */
bool
evbus_subscription_allows(const EvbusSubscription *sub, Oid role, EvbusPrivilege privilege)
{
	return allows(sub->replay_of != 0 ? sub->replay_of : sub->subscription_id, sub->owner, role, privilege);
}

/* Whether the owner of a subscription may (still) have the events of its bus. */
bool
evbus_may_be_delivered_to(const EvbusSubscription *sub)
{
	EvbusBus	bus;

	return evbus_bus_by_id(sub->bus_id, &bus) && evbus_bus_allows(&bus, sub->owner, EVBUS_SUBSCRIBE);
}

/* ------------------------------------------------------------------ refusing */

static void pg_attribute_noreturn()
refuse(const char *kind, const char *name, Oid role, EvbusPrivilege privilege)
{
	char	   *who = GetUserNameFromId(role, true);

	evbus_audit_refused(role, words[privilege], kind, name);
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for %s \"%s\"", kind, name),
			 errdetail("Role \"%s\" has no privilege \"%s\" on it.", who ? who : "?", words[privilege]),
			 errhint("Its owner can allow it: SELECT evbus.grant(%s, %s, %s);", quote_literal_cstr(words[privilege]),
					 quote_literal_cstr(name), quote_literal_cstr(quote_identifier(who ? who : "?")))));
}

/* Errors 42501 unless the role may. */
void
evbus_check_bus(const EvbusBus *bus, Oid role, EvbusPrivilege privilege)
{
	if (unlikely(!evbus_bus_allows(bus, role, privilege)))
		refuse("bus", bus->name, role, privilege);
}

void
evbus_check_subscription(const EvbusSubscription *sub, Oid role, EvbusPrivilege privilege)
{
	if (unlikely(!evbus_subscription_allows(sub, role, privilege)))
		refuse("subscription", sub->name, role, privilege);
}

/* Errors 42501 unless the caller has the rights of the owner: for what nobody else can be granted. */
void
evbus_check_owner(Oid owner, const char *kind, const char *name)
{
	if (!has_privs_of_role(GetUserId(), owner))
	{
		evbus_audit_refused(GetUserId(), "owner", kind, name);
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of %s \"%s\"", kind, name)));
	}
}

/* ------------------------------------------------------------------ granting */

/* A privilege, and what it is on. */
typedef struct Object
{
	EvbusPrivilege privilege;
	EvbusBus	bus;
	EvbusSubscription *sub;		/* NULL: it is on the bus */
} Object;

/* By arguments 0 and 1. */
static void
read_object(FunctionCallInfo fcinfo, Object *object)
{
	char	   *word = evbus_arg_text(fcinfo, 0, "privilege");
	char	   *name = evbus_arg_text(fcinfo, 1, "object");

	(void) evbus_db();
	if (!parse(word, &object->privilege))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there is no privilege \"%s\"", evbus_clip(word, strlen(word))),
				 errhint("On a bus: publish, read, subscribe, manage. On a subscription: consume, operate.")));
	object->sub = NULL;
	if (object->privilege >= EVBUS_CONSUME)
		object->sub = evbus_subscription_get(name, false);
	else
		evbus_bus_get(name, &object->bus);
}

static int32
object_id(const Object *object)
{
	return object->sub ? object->sub->subscription_id : object->bus.bus_id;
}

static Jsonb *
audited(const Object *object)
{
	return object->sub ? evbus_audit_subscription(object_id(object)) : evbus_audit_bus(object_id(object));
}

static void
check_grantor(const Object *object)
{
	if (object->sub)
		evbus_check_owner(object->sub->owner, "subscription", object->sub->name);
	else
		evbus_check_owner(object->bus.owner, "bus", object->bus.name);
}

/*
 * Rows of buses, subscriptions and roles that are gone; returns how many.  The first two have ids that never
 * come again, roles have not.
 */
static uint64
sweep(void)
{
	return evbus_sql(NULL, "DELETE FROM evbus.privilege p WHERE NOT EXISTS (SELECT 1 FROM pg_catalog.pg_roles r WHERE r.oid = p.role)"
					 " OR CASE WHEN privilege IN ('consume', 'operate') THEN NOT EXISTS (SELECT 1 FROM evbus.subscription s WHERE s.subscription_id = p.object_id)"
					 " ELSE NOT EXISTS (SELECT 1 FROM evbus.bus b WHERE b.bus_id = p.object_id) END", 0, NULL, NULL, NULL, 0);
}

/* For the maintainer: no role of tomorrow is to find the privileges of one of today. */
void
evbus_privilege_sweep(void)
{
	EvbusInternal state;
	uint64		gone;

	evbus_internal_begin(&state);
	gone = sweep();
	evbus_internal_end(&state);
	if (gone > 0)
		evbus_registry_changed();
}

/* Both of them; returns whether there is a difference. */
static bool
change(FunctionCallInfo fcinfo, bool give, const char *what)
{
	static const Oid types[] = {TEXTOID, INT4OID, OIDOID, OIDOID, INT4OID};
	Object		object;
	EvbusInternal state;
	Datum		values[5];
	uint64		rows;
	bool		full = false;
	Jsonb	   *before;

	read_object(fcinfo, &object);
	evbus_arg_present(fcinfo, 2, "role");
	(void) GetUserNameFromId(PG_GETARG_OID(2), false);
	check_grantor(&object);
	PreventCommandIfReadOnly(what);
	values[0] = CStringGetTextDatum(words[object.privilege]);
	values[1] = Int32GetDatum(object_id(&object));
	values[2] = ObjectIdGetDatum(PG_GETARG_OID(2));
	values[3] = ObjectIdGetDatum(GetUserId());
	values[4] = Int32GetDatum(GRANTS_MAX);
	LockRelationOid(evbus_relid("privilege"), ShareRowExclusiveLock);	/* one at a time */
	before = audited(&object);
	evbus_internal_begin(&state);
	if (give)
	{
		(void) sweep();
		rows = evbus_sql(NULL, "INSERT INTO evbus.privilege (privilege, object_id, role, grantor, granted_at)"
						 " SELECT $1, $2, $3::regrole, $4::regrole, now() WHERE (SELECT count(*) FROM evbus.privilege) < $5"
						 " ON CONFLICT (privilege, object_id, role) DO NOTHING", 5, types, values, NULL, 0);
		full = rows == 0 && evbus_sql(NULL, "SELECT 1 FROM evbus.privilege WHERE privilege = $1 AND object_id = $2 AND role = $3", 3, types, values, NULL, 0) == 0;
	}
	else
		rows = evbus_sql(NULL, "DELETE FROM evbus.privilege WHERE privilege = $1 AND object_id = $2 AND role = $3", 3, types, values, NULL, 0);
	evbus_internal_end(&state);
	if (full)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("cannot grant more than %d privileges", GRANTS_MAX),
				 errhint("Grant to a role that others are members of.")));
	if (rows > 0)
		evbus_registry_changed();
	evbus_audit(fcinfo, object.sub ? "subscription" : "bus", object.sub ? object.sub->name : object.bus.name, before, audited(&object));
	return rows > 0;
}

/*
 * evbus.grant(privilege text, object text, role regrole) returns boolean
 *
 * Lets a role, and its members, do something with a bus (publish, read, subscribe, manage) or
 * a subscription (consume, operate).  False: it was granted before.  Takes effect when the caller commits.
 * Errors: 22004, 22023 no such privilege, 25006, 42501 not the owner, 42704 no such
 * role, 54000 ten thousand are granted, VB001, VB004.  Privileges: EXECUTE, and owner of the bus or subscription.
 */
Datum
evbus_grant(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(change(fcinfo, true, "evbus.grant()"));
}

/*
 * evbus.revoke(privilege text, object text, role regrole) returns boolean
 *
 * Takes back what evbus.grant() gave to just this role.  False: it was not granted.  Takes effect when the caller
 * commits, for calls that begin then, and for who waits.  Errors and privileges: as evbus.grant().
 */
Datum
evbus_revoke(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(change(fcinfo, false, "evbus.revoke()"));
}

/*
 * evbus.has_privilege(privilege text, object text, role regrole) returns boolean
 *
 * May a role do that: as owner, superuser, operator, by a grant, or as a member of who may?  role NULL: the
 * caller.  EXECUTE on functions is another matter (has_function_privilege).  Errors: 22004,
 * 22023, 42704, VB001, VB004.  Privileges: EXECUTE.
 */
Datum
evbus_has_privilege(PG_FUNCTION_ARGS)
{
	Oid			role = PG_ARGISNULL(2) ? GetUserId() : PG_GETARG_OID(2);
	Object		object;

	read_object(fcinfo, &object);
	(void) GetUserNameFromId(role, false);
	PG_RETURN_BOOL(object.sub ? evbus_subscription_allows(object.sub, role, object.privilege)
				   : evbus_bus_allows(&object.bus, role, object.privilege));
}
