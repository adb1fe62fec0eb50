/*-------------------------------------------------------------------------
 * internal.c
 *	  evbus's own SQL: run as the owner of the extension, below the caller's
 *	  rights and never around anybody else's code.
 *
 * As foreign-key triggers do: the user id is switched with
 * SECURITY_LOCAL_USERID_CHANGE, search_path is pinned, and each statement takes
 * a fresh snapshot, also inside REPEATABLE READ, because positions and retries
 * change under a long transaction.  An ERROR puts everything back with the
 * (sub)transaction.  The tables have no triggers of users and no RLS.
 *-------------------------------------------------------------------------
 */
#include "internal.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_namespace.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

Oid
evbus_namespace(bool missing_ok)
{
	return get_namespace_oid("evbus", missing_ok);
}

/* Is the extension, and not just a schema of that name, in this database? */
bool
evbus_installed(void)
{
	return OidIsValid(get_extension_oid("evbus", true)) && OidIsValid(evbus_namespace(true));
}

/* Whoever made the extension; the schema may be another's. */
static Oid
extension_owner(void)
{
	Oid			relid = evbus_relid("bus");
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relid);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/* Who owns the schema may add functions to it that others take for ours. */
void
evbus_check_schema(void)
{
	Oid			nsp = evbus_namespace(false);
	HeapTuple	tuple = SearchSysCache1(NAMESPACEOID, ObjectIdGetDatum(nsp));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for schema %u", nsp);
	owner = ((Form_pg_namespace) GETSTRUCT(tuple))->nspowner;
	ReleaseSysCache(tuple);
	if (owner != GetUserId() && !superuser_arg(owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("schema \"evbus\" belongs to role \"%s\"", GetUserNameFromId(owner, true)),
				 errhint("Drop the schema, or let it belong to who creates the extension.")));
}

/* Relations looked up lately, by name: publishers and readers ask for the same few all the time. */
static struct
{
	char		name[NAMEDATALEN];
	Oid			relid;
}			known[32];
static int	n_known = 0;

static void
known_relcache(Datum arg, Oid relid)
{
	for (int i = 0; i < n_known; i++)
		if (relid == InvalidOid || known[i].relid == relid)
			known[i--] = known[--n_known];
}

static void
known_namespace(Datum arg, int cache, uint32 hash)
{
	n_known = 0;
}

/* Table or index of schema evbus. */
Oid
evbus_relid(const char *name)
{
	static bool registered = false;
	static int	next = 0;
	Oid			relid;

	for (int i = 0; i < n_known; i++)
		if (strcmp(known[i].name, name) == 0)
			return known[i].relid;
	if (!registered)
	{
		CacheRegisterRelcacheCallback(known_relcache, (Datum) 0);
		CacheRegisterSyscacheCallback(NAMESPACEOID, known_namespace, (Datum) 0);
		registered = true;
	}
	relid = get_relname_relid(name, evbus_namespace(false));
	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"evbus.%s\" does not exist", name),
				 errhint("Run DROP EXTENSION evbus and CREATE EXTENSION evbus, or restore the relation.")));
	if (n_known == lengthof(known))
		known[next++ % lengthof(known)] = known[--n_known];
	strlcpy(known[n_known].name, name, NAMEDATALEN);
	known[n_known++].relid = relid;
	return relid;
}

void
evbus_internal_begin(EvbusInternal *state)
{
	Oid			owner = extension_owner();

	GetUserIdAndSecContext(&state->user, &state->sec_context);
	SetUserIdAndSecContext(owner, state->sec_context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_NOFORCE_RLS);
	state->guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

void
evbus_internal_end(EvbusInternal *state)
{
	SPI_finish();
	AtEOXact_GUC(false, state->guc_level);
	SetUserIdAndSecContext(state->user, state->sec_context);
}

/*
 * Run one statement with a fresh snapshot; plan keeps it prepared for the life
 * of the process, NULL plans it anew.  Returns SPI_processed.
 */
uint64
evbus_sql(SPIPlanPtr *plan, const char *sql, int nargs, const Oid *types,
		  Datum *values, const char *nulls, long limit)
{
	SPIPlanPtr	use = plan ? *plan : NULL;
	int			rc;

	if (use == NULL)
	{
		use = SPI_prepare(sql, nargs, unconstify(Oid *, types));
		if (use == NULL)
			elog(ERROR, "SPI_prepare failed for \"%s\": %s", sql, SPI_result_code_string(SPI_result));
		if (plan)
		{
			SPI_keepplan(use);
			*plan = use;
		}
	}
	rc = SPI_execute_snapshot(use, values, nulls, GetLatestSnapshot(), InvalidSnapshot,
							  false, true, limit);
	if (rc < 0)
		elog(ERROR, "SPI_execute_snapshot failed for \"%s\": %s", sql, SPI_result_code_string(rc));
	return SPI_processed;
}

/* Run one utility statement; the caller quotes identifiers. */
void
evbus_utility(const char *format,...)
{
	StringInfoData sql;
	int			rc;

	initStringInfo(&sql);
	for (;;)
	{
		va_list		args;
		int			needed;

		va_start(args, format);
		needed = appendStringInfoVA(&sql, format, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&sql, needed);
	}
	rc = SPI_execute(sql.data, false, 0);
	if (rc < 0)
		elog(ERROR, "SPI_execute failed for \"%s\": %s", sql.data, SPI_result_code_string(rc));
	pfree(sql.data);
}

/* Column of a row of the last evbus_sql(); columns count from 1. */
Datum
evbus_column(uint64 row, int column, bool *isnull)
{
	bool		null;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, &null);

	if (isnull)
		*isnull = null;
	return value;
}
