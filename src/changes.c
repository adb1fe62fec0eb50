/*-------------------------------------------------------------------------
 * changes.c
 *	  evbus._changes(): what happens to the rows of a table, as events.
 *
 * The work is done by one trigger function, in the writer's transaction and with
 * nothing asked of the writer: PostgreSQL asks for EXECUTE on it when a trigger is made,
 * not when it fires, and publishing itself looks at no rights.  All it is told, it is
 * told by the trigger's arguments, texts that pg_dump carries: bus, prefix of the
 * types, and columns and key columns as array literals.  '{}': all columns, and the
 * primary key, whatever they are when a row is written.
 *
 * Statement triggers get the rows of a statement at once, in transition tables.
 * PostgreSQL puts both halves of an UPDATE into them row by row, so the n-th old row
 * and the n-th new one are one row, and no key is needed to find them together.  Only
 * a row that should have moved to another partition and was swallowed there, by a
 * BEFORE trigger, has an old half alone: then their numbers differ.
 *
 * The same function serves for each row.  Which triggers a table gets, and why, is told
 * in publish_changes.c.
 *-------------------------------------------------------------------------
 */
#include "changes.h"

#include "args.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "flow.h"
#include "fmgr.h"
#include "jsonb_parse.h"
#include "publish.h"
#include "row_json.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(evbus_changes);

typedef enum Verb
{
	INSERTED,
	UPDATED,
	DELETED,
	TRUNCATED
} Verb;

static const char *const verbs[] = {"inserted", "updated", "deleted", "truncated"};

/* What a trigger needs from row to row; lives as long as its statement. */
typedef struct Changes
{
	Oid			trigger;
	const char *bus_name;
	text	   *types[lengthof(verbs)];
	EvbusRowJson json;
	EvbusJsonbParser *parser;
	StringInfoData text;
	MemoryContext scratch;		/* of one event */
	Oid			owner;			/* of the table: who writes it needs no right to publish */
	EvbusDb    *db;				/* and the bus: since the first event of this call */
	EvbusBus	bus;
} Changes;

/* The type of the events of a verb. */
text *
evbus_changes_type(const char *prefix, int verb)
{
	return cstring_to_text(psprintf("%s.%s", prefix, verbs[verb]));
}

/* -------------------------------------------------------------- the columns */

/* A column by name, or 0. */
static AttrNumber
find_column(TupleDesc desc, const char *name)
{
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && strcmp(NameStr(att->attname), name) == 0)
			return att->attnum;
	}
	return 0;
}

/* Is the column's value in a tuple?  Generated when read, it is not. */
static bool
is_stored(Form_pg_attribute att)
{
	return !att->attisdropped && (att->attgenerated == '\0' || att->attgenerated == ATTRIBUTE_GENERATED_STORED);
}

/* The columns that an array of names tells; hint, if not NULL, is for who names one that is not there. */
AttrNumber *
evbus_changes_columns(Relation rel, const char *what, Datum *names, int n, const char *hint)
{
	AttrNumber *columns = palloc(sizeof(AttrNumber) * Max(n, 1));

	for (int i = 0; i < n; i++)
	{
		char	   *name = TextDatumGetCString(names[i]);

		columns[i] = find_column(RelationGetDescr(rel), name);
		if (columns[i] == 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of table \"%s\" does not exist", name, RelationGetRelationName(rel)),
					 errdetail("It is named by %s.", what),
					 hint ? errhint("%s", hint) : 0));
		if (!is_stored(TupleDescAttr(RelationGetDescr(rel), columns[i] - 1)))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("column \"%s\" cannot be published, because its value is not stored", name)));
	}
	return columns;
}

static AttrNumber *
all_columns(Relation rel, int *n)
{
	TupleDesc	desc = RelationGetDescr(rel);
	AttrNumber *columns = palloc(sizeof(AttrNumber) * Max(desc->natts, 1));

	*n = 0;
	for (int i = 0; i < desc->natts; i++)
		if (is_stored(TupleDescAttr(desc, i)))
			columns[(*n)++] = TupleDescAttr(desc, i)->attnum;
	return columns;
}

/* Those of the primary key, in its order; none if there is none. */
AttrNumber *
evbus_changes_primary_key(Relation rel, int *n)
{
	AttrNumber *columns = palloc(sizeof(AttrNumber) * INDEX_MAX_KEYS);
	List	   *indexes = RelationGetIndexList(rel);
	ListCell   *cell;

	*n = 0;
	foreach(cell, indexes)
	{
		HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(lfirst_oid(cell)));
		Form_pg_index index;

		if (!HeapTupleIsValid(tuple))
			continue;
		index = (Form_pg_index) GETSTRUCT(tuple);
		if (index->indisprimary)
			for (int i = 0; i < index->indnkeyatts; i++)
				columns[(*n)++] = index->indkey.values[i];
		ReleaseSysCache(tuple);
	}
	list_free(indexes);
	return columns;
}

/* ------------------------------------------------------------ the trigger */

static void
tell_table(void *arg)
{
	errcontext("publishing changes of table \"%s\"", (const char *) arg);
}

static void
wrong_trigger(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
			 errmsg("evbus._changes() cannot be called like this"),
			 errdetail_internal("%s", detail),
			 errhint("Make its triggers with evbus.publish_changes().")));
}

/* The names in an array literal, as a trigger's argument. */
static void
read_names(const char *literal, Datum **names, int *n)
{
	FmgrInfo	input;
	Oid			function;
	Oid			param;
	ArrayType  *array;
	bool	   *nulls;

	getTypeInputInfo(TEXTARRAYOID, &function, &param);
	fmgr_info(function, &input);
	array = DatumGetArrayTypeP(InputFunctionCall(&input, unconstify(char *, literal), param, -1));
	if (ARR_NDIM(array) > 1)
		wrong_trigger("An array of its arguments has several dimensions.");
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, names, &nulls, n);
	evbus_no_nulls(nulls, *n, "arguments of the trigger");
}

static const char *const renamed = "If it was renamed or dropped, call evbus.publish_changes() again, or evbus.stop_publish_changes().";

/* What a trigger's arguments say about its table; in the current memory context. */
static Changes *
begin(Relation rel, Trigger *trigger)
{
	Changes    *c = palloc0(sizeof(Changes));
	Datum	   *names;
	Datum	   *key_names;
	AttrNumber *columns;
	AttrNumber *keys;
	int			n;
	int			n_keys;

	if (trigger->tgnargs != EVBUS_CHANGES_ARGS)
		wrong_trigger("It has four arguments: bus, prefix of the types, columns, key columns.");
	c->bus_name = pstrdup(trigger->tgargs[EVBUS_CHANGES_BUS]);
	for (int i = 0; i < lengthof(verbs); i++)
	{
		c->types[i] = evbus_changes_type(trigger->tgargs[EVBUS_CHANGES_PREFIX], i);
		evbus_publish_check_type(c->types[i]);
	}
	read_names(trigger->tgargs[EVBUS_CHANGES_COLUMNS], &names, &n);
	columns = n > 0 ? evbus_changes_columns(rel, "columns", names, n, renamed) : all_columns(rel, &n);
	read_names(trigger->tgargs[EVBUS_CHANGES_KEYS], &key_names, &n_keys);
	keys = n_keys > 0 ? evbus_changes_columns(rel, "key_columns", key_names, n_keys, renamed) : evbus_changes_primary_key(rel, &n_keys);
	evbus_row_json_init(&c->json, RelationGetDescr(rel), columns, n, keys, n_keys);
	c->parser = evbus_jsonb_parser();
	initStringInfo(&c->text);
	c->scratch = AllocSetContextCreate(CurrentMemoryContext, "evbus changes", ALLOCSET_DEFAULT_SIZES);
	c->trigger = trigger->tgoid;
	c->owner = rel->rd_rel->relowner;
	return c;
}

/* One event. */
static void
publish_change(Changes *c, Verb verb, TupleTableSlot *old_row, TupleTableSlot *new_row)
{
	MemoryContext before = MemoryContextSwitchTo(c->scratch);
	text	   *key = NULL;

	CHECK_FOR_INTERRUPTS();
	if (verb != UPDATED || !evbus_row_json_same(&c->json, old_row, new_row))
	{
		resetStringInfo(&c->text);
		appendStringInfoString(&c->text, "{\"old\": ");
		if (old_row)
			evbus_row_json_print(&c->json, &c->text, old_row);
		else
			appendStringInfoString(&c->text, "null");
		appendStringInfoString(&c->text, ", \"new\": ");
		if (new_row)
			evbus_row_json_print(&c->json, &c->text, new_row);
		else
			appendStringInfoString(&c->text, "null");
		appendStringInfoChar(&c->text, '}');
		if (verb != TRUNCATED)
			key = evbus_row_json_key(&c->json, new_row ? new_row : old_row);
		/* A statement that changes nothing does not count as publishing. */
		if (c->db == NULL)
			c->db = evbus_publish_prepare(c->bus_name, "evbus.publish_changes()", c->owner, 0, &c->bus);
		evbus_flow_publish(c->db, &c->bus, 1);
		(void) evbus_publish_event(c->db, &c->bus, c->types[verb], key, NULL,
								   evbus_jsonb_parse(c->parser, c->text.data, c->text.len));
	}
	MemoryContextSwitchTo(before);
	MemoryContextReset(c->scratch);
}

/* A transition table, from its start; others may be reading it, too. */
static void
rewind_rows(Tuplestorestate *rows)
{
	tuplestore_select_read_pointer(rows, tuplestore_alloc_read_pointer(rows, EXEC_FLAG_REWIND));
	tuplestore_rescan(rows);
}

/* All rows of a statement. */
static void
publish_rows(Changes *c, TupleDesc desc, Tuplestorestate *old_rows, Tuplestorestate *new_rows)
{
	TupleTableSlot *old_row = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
	TupleTableSlot *new_row = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);

	if (old_rows)
		rewind_rows(old_rows);
	if (new_rows)
		rewind_rows(new_rows);
	if (old_rows && new_rows && tuplestore_tuple_count(old_rows) == tuplestore_tuple_count(new_rows))
	{
		while (tuplestore_gettupleslot(old_rows, true, false, old_row) &&
			   tuplestore_gettupleslot(new_rows, true, false, new_row))
			publish_change(c, UPDATED, old_row, new_row);
	}
	else
	{
		while (old_rows && tuplestore_gettupleslot(old_rows, true, false, old_row))
			publish_change(c, DELETED, old_row, NULL);
		while (new_rows && tuplestore_gettupleslot(new_rows, true, false, new_row))
			publish_change(c, INSERTED, NULL, new_row);
	}
	ExecDropSingleTupleTableSlot(old_row);
	ExecDropSingleTupleTableSlot(new_row);
}

/*
 * evbus._changes() returns trigger: AFTER, for each row or, with transition tables,
 * for each statement.  Arguments as told at the top.
 * Errors: 42703 a column is gone, VB001 the bus is; else as evbus.publish().
 */
Datum
evbus_changes(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	ErrorContextCallback context = {.previous = error_context_stack, .callback = tell_table};
	Changes    *c = fcinfo->flinfo->fn_extra;
	TriggerEvent event;
	int			guc_level;

	if (!CALLED_AS_TRIGGER(fcinfo))
		wrong_trigger("It is not called by a trigger.");
	event = data->tg_event;
	if (!TRIGGER_FIRED_AFTER(event))
		wrong_trigger("Its triggers must be AFTER.");

	context.arg = RelationGetRelationName(data->tg_relation);
	error_context_stack = &context;
	if (c == NULL || c->trigger != data->tg_trigger->tgoid)
	{
		MemoryContext old = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);

		fcinfo->flinfo->fn_extra = c = begin(data->tg_relation, data->tg_trigger);
		MemoryContextSwitchTo(old);
	}
	c->db = NULL;
	guc_level = evbus_row_json_settings(&c->json);

	if (TRIGGER_FIRED_FOR_ROW(event))
	{
		if (TRIGGER_FIRED_BY_INSERT(event))
			publish_change(c, INSERTED, NULL, data->tg_trigslot);
		else if (TRIGGER_FIRED_BY_UPDATE(event))
			publish_change(c, UPDATED, data->tg_trigslot, data->tg_newslot);
		else
			publish_change(c, DELETED, data->tg_trigslot, NULL);
	}
	else if (TRIGGER_FIRED_BY_TRUNCATE(event))
		publish_change(c, TRUNCATED, NULL, NULL);
	else
	{
		if ((data->tg_newtable == NULL && !TRIGGER_FIRED_BY_DELETE(event)) ||
			(data->tg_oldtable == NULL && !TRIGGER_FIRED_BY_INSERT(event)))
			wrong_trigger("A trigger for each statement must refer to its transition tables.");
		publish_rows(c, RelationGetDescr(data->tg_relation), data->tg_oldtable, data->tg_newtable);
	}

	if (guc_level != 0)
		AtEOXact_GUC(true, guc_level);
	error_context_stack = context.previous;
	return PointerGetDatum(NULL);
}
