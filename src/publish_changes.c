/*-------------------------------------------------------------------------
 * publish_changes.c
 *	  evbus.publish_changes(), stop_publish_changes(): the triggers of a table.
 *
 * They are triggers like anybody's, made by the caller with the caller's rights:
 * pg_dump carries them, DROP TABLE takes them along, and they keep DROP EXTENSION
 * from forgetting them.  What they do is told in changes.c.
 *
 * A table by itself gets one for each kind of statement, with transition tables.
 * Statement triggers fire for the table that the statement names, and would miss what
 * is written under the name of another.  So partitioned tables, partitions, and
 * tables that inherit or are inherited from get one for each row instead, which
 * follows the row; PostgreSQL copies it to partitions of today and tomorrow.
 *
 * And a table by itself must not become a partition or a child behind our back.
 * PostgreSQL refuses that to a table that has a row trigger with a transition table:
 * so there is one, which never fires.
 *-------------------------------------------------------------------------
 */
#include "changes.h"

#include "access/table.h"
#include "args.h"
#include "audit.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "internal.h"
#include "parser/parse_func.h"
#include "pattern.h"
#include "privilege.h"
#include "registry.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

PG_FUNCTION_INFO_V1(evbus_publish_changes);
PG_FUNCTION_INFO_V1(evbus_stop_publish_changes);

/* Tables without relatives, and those with them. */
#define ALONE		1
#define RELATED		2

static const struct
{
	const char *name;
	int			tables;
	const char *event;			/* before the name of the table */
	const char *rest;			/* and behind it */
}			made[] =
{
	{"evbus_changes_insert", ALONE, "AFTER INSERT", "REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT"},
	{"evbus_changes_update", ALONE, "AFTER UPDATE", "REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT"},
	{"evbus_changes_delete", ALONE, "AFTER DELETE", "REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT"},
	{"evbus_changes_alone", ALONE, "AFTER DELETE", "REFERENCING OLD TABLE AS old_rows FOR EACH ROW WHEN (false)"},
	{"evbus_changes_row", RELATED, "AFTER INSERT OR UPDATE OR DELETE", "FOR EACH ROW"},
	{"evbus_changes_truncate", ALONE | RELATED, "AFTER TRUNCATE", "FOR EACH STATEMENT"},
};

static Oid
trigger_function(void)
{
	return LookupFuncName(list_make2(makeString("evbus"), makeString("_changes")), 0, NULL, false);
}

/* The table that argument 0 names, locked as CREATE TRIGGER does it. */
static Relation
open_table(FunctionCallInfo fcinfo)
{
	Oid			relid;
	char	   *name;

	evbus_arg_present(fcinfo, 0, "table");
	relid = PG_GETARG_OID(0);
	name = get_rel_name(relid);
	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	if (get_rel_relkind(relid) != RELKIND_RELATION && get_rel_relkind(relid) != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table", name),
				 errdetail("Changes can be published of tables and partitioned tables.")));
	if (get_rel_namespace(relid) == evbus_namespace(false))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is a table of evbus itself", name)));
	/* Nobody shall lock what he may do nothing with. */
	if (pg_class_aclcheck(relid, GetUserId(), ACL_TRIGGER) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, name);
	return table_open(relid, ShareRowExclusiveLock);
}

/* May rows of the table be written under another table's name, or the other way round? */
static bool
has_relatives(Relation rel)
{
	return rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE || rel->rd_rel->relispartition ||
		has_superclass(RelationGetRelid(rel)) || find_inheritance_children(RelationGetRelid(rel), NoLock) != NIL;
}

/* Run one statement as the caller. */
static void
utility(const char *sql)
{
	int			rc;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	rc = SPI_execute(sql, false, 0);
	if (rc < 0)
		elog(ERROR, "SPI_execute failed for \"%s\": %s", sql, SPI_result_code_string(rc));
	SPI_finish();
}

/* Has the table got such triggers as a partition of another? */
static bool
is_published_above(Relation rel, Oid function)
{
	for (int i = 0; rel->trigdesc && i < rel->trigdesc->numtriggers; i++)
		if (rel->trigdesc->triggers[i].tgfoid == function && rel->trigdesc->triggers[i].tgisclone)
			return true;
	return false;
}

static char *
quoted_table(Relation rel)
{
	return quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)), RelationGetRelationName(rel));
}

/* Does evbus make triggers of that name for such tables? */
static bool
is_made(const char *name, int tables)
{
	for (int i = 0; i < lengthof(made); i++)
		if (strcmp(made[i].name, name) == 0 && (made[i].tables & tables) != 0)
			return true;
	return false;
}

/* The table's triggers of the function, but for those of the names made for `keep`. */
static List *
find_triggers(Relation rel, Oid function, int keep)
{
	List	   *names = NIL;

	for (int i = 0; rel->trigdesc && i < rel->trigdesc->numtriggers; i++)
	{
		Trigger    *trigger = &rel->trigdesc->triggers[i];

		if (trigger->tgfoid == function && !trigger->tgisclone && !is_made(trigger->tgname, keep))
			names = lappend(names, pstrdup(trigger->tgname));
	}
	return names;
}

static void
drop_triggers(List *names, const char *table)
{
	ListCell   *cell;

	foreach(cell, names)
		utility(psprintf("DROP TRIGGER %s ON %s", quote_identifier(lfirst(cell)), table));
}

/* Argument n, an array of column names, checked; and the literal of it that the trigger is given. */
static char *
columns_literal(FunctionCallInfo fcinfo, int n, const char *name, Relation rel)
{
	Datum	   *names;
	bool	   *nulls;
	int			count;
	Oid			output;
	bool		varlena;

	if (PG_ARGISNULL(n))
		return "{}";
	evbus_arg_array(fcinfo, n, name, &names, &nulls, &count);
	evbus_no_nulls(nulls, count, name);
	if (count == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must name at least one column", name),
				 errhint("NULL stands for %s.", strcmp(name, "columns") == 0 ? "all columns" : "those of the primary key")));
	(void) evbus_changes_columns(rel, name, names, count, NULL);
	getTypeOutputInfo(TEXTARRAYOID, &output, &varlena);
	return OidOutputFunctionCall(output, PointerGetDatum(construct_array(names, count, TEXTOID, -1, false, TYPALIGN_INT)));
}

/*
 * evbus.publish_changes("table" regclass, bus text, type_prefix text, columns text[], key_columns text[])
 * returns void
 *
 * From the caller's commit on, each change of a row of the table is an event of type
 * <type_prefix>.inserted, updated or deleted.  type_prefix: NULL, the table's name.
 * columns: NULL, all.  key_columns: NULL, those of the primary key.  Called again, it
 * replaces what was said before.
 * Errors: 22004, 22023, 42501 no TRIGGER privilege on the table, or no EXECUTE on
 * evbus._changes(), 42703 no such column, 42710 it is
 * a partition of a table that is published, 42809 not a table, VB001.
 */
Datum
evbus_publish_changes(PG_FUNCTION_ARGS)
{
	Oid			function = trigger_function();
	Relation	rel;
	EvbusBus	bus;
	char	   *prefix;
	const char *fault;
	text	   *type;
	char	   *args[EVBUS_CHANGES_ARGS];
	StringInfoData quoted_args;
	const char *table;
	List	   *others;
	int			tables;
	int			n_keys;

	evbus_arg_present(fcinfo, 0, "table");
	evbus_bus_get(evbus_arg_text(fcinfo, 1, "bus"), &bus);
	if (evbus_proc_aclcheck(function, GetUserId()) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function evbus._changes()"),
				 errhint("Who makes triggers that publish needs it, who writes the table does not: GRANT EXECUTE ON FUNCTION evbus._changes() TO %s.",
						 quote_identifier(GetUserNameFromId(GetUserId(), false)))));
	PreventCommandIfReadOnly("evbus.publish_changes()");
	rel = open_table(fcinfo);
	evbus_check_bus(&bus, GetUserId(), EVBUS_PUBLISH);
	evbus_check_bus(&bus, rel->rd_rel->relowner, EVBUS_PUBLISH);	/* as whom it is published */
	tables = has_relatives(rel) ? RELATED : ALONE;
	table = quoted_table(rel);
	if (is_published_above(rel, function))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("changes of table %s are published already, as those of the table that it is a partition of", table)));

	prefix = PG_ARGISNULL(2) ? RelationGetRelationName(rel) : evbus_arg_text(fcinfo, 2, "type_prefix");
	type = evbus_changes_type(prefix, 3);	/* the longest */
	fault = *prefix == '\0' ? "must not be empty" : evbus_type_fault(VARDATA_ANY(type), VARSIZE_ANY_EXHDR(type), false);
	if (fault)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 PG_ARGISNULL(2) ? errmsg("the name of the table cannot begin event types: such a type %s", fault)
				 : errmsg("type_prefix cannot begin event types: such a type %s", fault),
				 errdetail("The type is \"%s\".", evbus_clip(VARDATA_ANY(type), VARSIZE_ANY_EXHDR(type))),
				 errhint("Give a type_prefix of words separated by dots, such as \"shop.order\".")));

	args[EVBUS_CHANGES_BUS] = bus.name;
	args[EVBUS_CHANGES_PREFIX] = prefix;
	args[EVBUS_CHANGES_COLUMNS] = columns_literal(fcinfo, 3, "columns", rel);
	args[EVBUS_CHANGES_KEYS] = columns_literal(fcinfo, 4, "key_columns", rel);
	initStringInfo(&quoted_args);
	for (int i = 0; i < EVBUS_CHANGES_ARGS; i++)
		appendStringInfo(&quoted_args, "%s%s", i == 0 ? "" : ", ", quote_literal_cstr(args[i]));

	others = find_triggers(rel, function, tables);
	(void) evbus_changes_primary_key(rel, &n_keys);
	table_close(rel, NoLock);	/* the lock stays; a table that is open cannot be altered */

	drop_triggers(others, table);
	for (int i = 0; i < lengthof(made); i++)
		if ((made[i].tables & tables) != 0)
			utility(psprintf("CREATE OR REPLACE TRIGGER %s %s ON %s %s EXECUTE FUNCTION evbus._changes(%s)",
							 made[i].name, made[i].event, table, made[i].rest, quoted_args.data));
	if (PG_ARGISNULL(4) && n_keys == 0)
		ereport(NOTICE,
				(errmsg("table %s has no primary key, so its events have no key", table),
				 errhint("Give key_columns if they shall have one.")));
	evbus_audit(fcinfo, "bus", bus.name, NULL, NULL);
	PG_RETURN_VOID();
}

/*
 * evbus.stop_publish_changes("table" regclass) returns void
 *
 * Removes what evbus.publish_changes() made.  Errors: 22004, 42501 not the owner of
 * the table, 42704 there is nothing to remove, 42809 not a table.
 */
Datum
evbus_stop_publish_changes(PG_FUNCTION_ARGS)
{
	Oid			function = trigger_function();
	Relation	rel;
	const char *table;
	List	   *names;

	evbus_arg_present(fcinfo, 0, "table");
	PreventCommandIfReadOnly("evbus.stop_publish_changes()");
	rel = open_table(fcinfo);
	table = quoted_table(rel);
	names = find_triggers(rel, function, 0);
	if (names == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("changes of table %s are not published", table),
				 is_published_above(rel, function) ? errdetail("They are as those of the table that it is a partition of.") : 0));
	table_close(rel, NoLock);
	drop_triggers(names, table);
	evbus_audit(fcinfo, NULL, NULL, NULL, NULL);
	PG_RETURN_VOID();
}
