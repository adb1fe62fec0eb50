/*-------------------------------------------------------------------------
 * row_json.c
 *	  Rows of one table as JSON: as to_jsonb(row) shows them, but the same for
 *	  all sessions, and for a fraction of the time.
 *
 * What a type needs is looked up once, not for each row.  The usual types are
 * printed here; all others by to_json(), which knows arrays, composite types, casts
 * to json and so on, under settings that are pinned for it: TimeZone, DateStyle,
 * IntervalStyle, bytea_output and extra_float_digits would show in the text.
 *
 * Knows nothing of events.  Used by changes.c.
 *-------------------------------------------------------------------------
 */
#include "row_json.h"

#include "catalog/pg_type.h"
#include "common/shortest_dec.h"
#include "fmgr.h"
#include "jsonb_print.h"
#include "nodes/makefuncs.h"
#include "pgtime.h"
#include "utils/builtins.h"
#include "utils/bytea.h"
#include "utils/date.h"
#include "utils/datum.h"
#include "utils/float.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#define TEXT_MAX	((int) MaxAllocSize - 1024)

/* How a column is printed. */
typedef enum Kind
{
	KIND_BOOL,
	KIND_INT2,
	KIND_INT4,
	KIND_INT8,
	KIND_FLOAT4,
	KIND_FLOAT8,
	KIND_NUMERIC,
	KIND_TEXT,
	KIND_TIME,					/* a date or timestamp */
	KIND_UUID,
	KIND_JSON,
	KIND_JSONB,
	KIND_OTHER					/* to_json() */
} Kind;

struct EvbusRowColumn
{
	AttrNumber	attno;
	Kind		kind;
	Oid			type;			/* below its domains */
	bool		byval;
	int			len;
	char	   *label;			/* "name": */
	int			label_len;
	FmgrInfo	to_json;		/* KIND_OTHER */
};

static Kind
kind_of(Oid type)
{
	switch (type)
	{
		case BOOLOID:
			return KIND_BOOL;
		case INT2OID:
			return KIND_INT2;
		case INT4OID:
			return KIND_INT4;
		case INT8OID:
			return KIND_INT8;
		case FLOAT4OID:
			return KIND_FLOAT4;
		case FLOAT8OID:
			return KIND_FLOAT8;
		case NUMERICOID:
			return KIND_NUMERIC;
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
			return KIND_TEXT;
		case DATEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return KIND_TIME;
		case UUIDOID:
			return KIND_UUID;
		case JSONOID:
			return KIND_JSON;
		case JSONBOID:
			return KIND_JSONB;
		default:
			return KIND_OTHER;
	}
}

static void
init_column(EvbusRowColumn *column, Form_pg_attribute att)
{
	StringInfoData label;

	column->attno = att->attnum;
	column->type = getBaseType(att->atttypid);
	column->kind = kind_of(column->type);
	column->byval = att->attbyval;
	column->len = att->attlen;
	initStringInfo(&label);
	(void) evbus_json_print_string(&label, NameStr(att->attname), strlen(NameStr(att->attname)), TEXT_MAX);
	appendStringInfoString(&label, ": ");
	column->label = label.data;
	column->label_len = label.len;
	if (column->kind == KIND_OTHER)
	{
		/* to_json(anyelement) asks its call what the argument's type is. */
		Node	   *arg = (Node *) makeNullConst(att->atttypid, -1, InvalidOid);

		fmgr_info(F_TO_JSON, &column->to_json);
		fmgr_info_set_expr((Node *) makeFuncExpr(F_TO_JSON, JSONOID, list_make1(arg), InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL),
						   &column->to_json);
	}
}

/*
 * Prepare for rows of such a kind, in the current memory context.  keys: of the
 * columns, those that evbus_row_json_key() tells; the object has them in any case.
 */
void
evbus_row_json_init(EvbusRowJson *r, TupleDesc desc, const AttrNumber *columns, int n_columns,
					const AttrNumber *keys, int n_keys)
{
	memset(r, 0, sizeof(*r));
	r->columns = palloc0(sizeof(EvbusRowColumn) * (n_columns + n_keys));
	r->keys = palloc(sizeof(int) * Max(n_keys, 1));
	initStringInfo(&r->value);
	for (int i = 0; i < n_columns + n_keys; i++)
	{
		AttrNumber	attno = i < n_columns ? columns[i] : keys[i - n_columns];
		int			at = 0;

		while (at < r->n_columns && r->columns[at].attno != attno)
			at++;
		if (at == r->n_columns)
		{
			init_column(&r->columns[r->n_columns++], TupleDescAttr(desc, attno - 1));
			r->by_settings |= r->columns[at].kind == KIND_OTHER;
		}
		if (i >= n_columns)
			r->keys[r->n_keys++] = at;
	}
}

static void
pin(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}

/*
 * Pin the settings that would show, where they differ.  Returns what the caller
 * gives to AtEOXact_GUC() once all is printed; 0: nothing was pinned.
 */
int
evbus_row_json_settings(const EvbusRowJson *r)
{
	bool		zone = strcmp(pg_get_timezone_name(session_timezone), "UTC") != 0;
	int			level;

	if (!r->by_settings ||
		!(zone || DateStyle != USE_ISO_DATES || IntervalStyle != INTSTYLE_POSTGRES ||
		  bytea_output != BYTEA_OUTPUT_HEX || extra_float_digits < 1))
		return 0;
	level = NewGUCNestLevel();
	if (zone)
		pin("TimeZone", "UTC");
	if (DateStyle != USE_ISO_DATES)
		pin("DateStyle", "ISO");
	if (IntervalStyle != INTSTYLE_POSTGRES)
		pin("IntervalStyle", "postgres");
	if (bytea_output != BYTEA_OUTPUT_HEX)
		pin("bytea_output", "hex");
	if (extra_float_digits < 1)
		pin("extra_float_digits", "1");
	return level;
}

static void
too_long(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("row is too large to be published"),
			 errdetail("It has almost 1 GB as text.")));
}

static void
print_string(StringInfo out, const char *s, int len)
{
	if (!evbus_json_print_string(out, s, len, TEXT_MAX))
		too_long();
}

/* What JSON has no number for, as NaN, is a string; as to_json() has it. */
static void
print_number(StringInfo out, const char *s, int len)
{
	const char *digit = *s == '-' ? s + 1 : s;

	if (*digit >= '0' && *digit <= '9')
		appendBinaryStringInfo(out, s, len);
	else
		print_string(out, s, len);
}

static void
print_text_datum(StringInfo out, Datum value, bool quoted)
{
	text	   *t = DatumGetTextPP(value);

	if (quoted)
		print_string(out, VARDATA_ANY(t), VARSIZE_ANY_EXHDR(t));
	else if (VARSIZE_ANY_EXHDR(t) > TEXT_MAX - out->len)
		too_long();
	else
		appendBinaryStringInfo(out, VARDATA_ANY(t), VARSIZE_ANY_EXHDR(t));
}

static void
print_value(EvbusRowColumn *column, StringInfo out, Datum value)
{
	char		buffer[128];
	char	   *s;

	switch (column->kind)
	{
		case KIND_BOOL:
			appendStringInfoString(out, DatumGetBool(value) ? "true" : "false");
			break;
		case KIND_INT2:
			appendBinaryStringInfo(out, buffer, pg_itoa(DatumGetInt16(value), buffer));
			break;
		case KIND_INT4:
			appendBinaryStringInfo(out, buffer, pg_ltoa(DatumGetInt32(value), buffer));
			break;
		case KIND_INT8:
			appendBinaryStringInfo(out, buffer, pg_lltoa(DatumGetInt64(value), buffer));
			break;
		case KIND_FLOAT4:
			print_number(out, buffer, float_to_shortest_decimal_buf(DatumGetFloat4(value), buffer));
			break;
		case KIND_FLOAT8:
			print_number(out, buffer, double_to_shortest_decimal_buf(DatumGetFloat8(value), buffer));
			break;
		case KIND_NUMERIC:
			s = DatumGetCString(DirectFunctionCall1(numeric_out, value));
			print_number(out, s, strlen(s));
			break;
		case KIND_TEXT:
			print_text_datum(out, value, true);
			break;
		case KIND_TIME:
			{
				int			utc = 0;

				(void) JsonEncodeDateTime(buffer, value, column->type, column->type == TIMESTAMPTZOID ? &utc : NULL);
				print_string(out, buffer, strlen(buffer));
				break;
			}
		case KIND_UUID:
			s = DatumGetCString(DirectFunctionCall1(uuid_out, value));
			print_string(out, s, strlen(s));
			break;
		case KIND_JSONB:
			if (!evbus_jsonb_print(out, &DatumGetJsonbP(value)->root, TEXT_MAX))
				too_long();
			break;
		case KIND_JSON:
			print_text_datum(out, value, false);
			break;
		case KIND_OTHER:
			print_text_datum(out, FunctionCall1(&column->to_json, value), false);
			break;
	}
}

/* Append a row as a JSON object. */
void
evbus_row_json_print(EvbusRowJson *r, StringInfo out, TupleTableSlot *slot)
{
	slot_getallattrs(slot);
	appendStringInfoChar(out, '{');
	for (int i = 0; i < r->n_columns; i++)
	{
		EvbusRowColumn *column = &r->columns[i];

		if (i > 0)
			appendBinaryStringInfo(out, ", ", 2);
		appendBinaryStringInfo(out, column->label, column->label_len);
		if (slot->tts_isnull[column->attno - 1])
			appendBinaryStringInfo(out, "null", 4);
		else
			print_value(column, out, slot->tts_values[column->attno - 1]);
	}
	appendStringInfoChar(out, '}');
}

/* The text of a JSON string. */
static text *
string_text(const char *json, int len)
{
	Datum		array;

	if (memchr(json, '\\', len) == NULL)
		return cstring_to_text_with_len(json + 1, len - 2);
	array = DirectFunctionCall1(json_in, CStringGetDatum(psprintf("[%s]", pnstrdup(json, len))));
	return DatumGetTextPP(DirectFunctionCall2(json_array_element_text, array, Int32GetDatum(0)));
}

/*
 * The key of a row: of one column its text, NULL if that is null; of several a JSON
 * array.  NULL: there are no key columns.
 */
text *
evbus_row_json_key(EvbusRowJson *r, TupleTableSlot *slot)
{
	StringInfo	out = &r->value;

	if (r->n_keys == 0)
		return NULL;
	slot_getallattrs(slot);
	resetStringInfo(out);
	if (r->n_keys > 1)
		appendStringInfoChar(out, '[');
	for (int i = 0; i < r->n_keys; i++)
	{
		EvbusRowColumn *column = &r->columns[r->keys[i]];

		if (i > 0)
			appendBinaryStringInfo(out, ", ", 2);
		if (!slot->tts_isnull[column->attno - 1])
			print_value(column, out, slot->tts_values[column->attno - 1]);
		else if (r->n_keys == 1)
			return NULL;
		else
			appendBinaryStringInfo(out, "null", 4);
	}
	if (r->n_keys > 1)
		appendStringInfoChar(out, ']');
	else if (out->data[0] == '"')
		return string_text(out->data, out->len);
	return cstring_to_text_with_len(out->data, out->len);
}

/* Are these two the same bytes?  What is toasted and was not touched need not be fetched. */
static bool
same_value(const EvbusRowColumn *column, Datum a, Datum b)
{
	if (column->len == -1 &&
		VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(a)) && VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(b)) &&
		memcmp(DatumGetPointer(a), DatumGetPointer(b), VARSIZE_EXTERNAL(DatumGetPointer(a))) == 0)
		return true;
	return datum_image_eq(a, b, column->byval, column->len);
}

/* Do two rows agree in all columns of the object? */
bool
evbus_row_json_same(const EvbusRowJson *r, TupleTableSlot *a, TupleTableSlot *b)
{
	slot_getallattrs(a);
	slot_getallattrs(b);
	for (int i = 0; i < r->n_columns; i++)
	{
		int			at = r->columns[i].attno - 1;

		if (a->tts_isnull[at] != b->tts_isnull[at] ||
			(!a->tts_isnull[at] && !same_value(&r->columns[i], a->tts_values[at], b->tts_values[at])))
			return false;
	}
	return true;
}
