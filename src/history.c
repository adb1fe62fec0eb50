/*-------------------------------------------------------------------------
 * history.c
 *	  evbus.history_page(): the log, a page at a time.
 *
 * A page is read by SQL that is made for it, with all bounds as constants: then
 * the planner prunes leaves before it locks them, and sees from the statistics of
 * those that are left whether to walk along the ids or along an index by type or
 * key.  With thousands of leaves even that would be too many, so the leaves are
 * taken a window after another, as many statements as it takes to fill the page.
 *
 * The shape of a statement is what makes its plan good:
 *	- storage_class_id is a constant, so that PostgreSQL sees that the leaves of one
 *	  class come in order of event_id (an Append, not a Sort or MergeAppend), and
 *	  reads none after the page is full;
 *	- each class that the bus is or was in is a branch with its own LIMIT;
 *	- so is each of a few exact types, where leaves are indexed by type: each branch
 *	  is then a range of the index, in order.  Where they are not, one walk along
 *	  the ids looks for all types at once;
 *	- what is shown is decoded when the page is complete, not before.
 *
 * Leaves without these indexes have nothing but the ids to be walked along, whatever the
 * planner thinks of them: it may never have seen statistics of the one that is open, and
 * would sort millions of rows that it takes for a few.  So there other ways are off.
 *
 * The statement runs as the owner of the extension, on the caller's snapshot.
 *-------------------------------------------------------------------------
 */
#include "evbus.h"

#include "args.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "eventlog.h"
#include "fmgr.h"
#include "funcapi.h"
#include "internal.h"
#include "leaf.h"
#include "leafindex.h"
#include "privilege.h"
#include "registry.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonpath.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#define LIMIT_MAX		10000
#define FIRST_WINDOW	4		/* leaves; twice as many each time */
#define BRANCHES_MAX	8		/* types that get a branch of their own */
#define RANGES_MAX		8		/* patterns that are looked for by their first words */
#define FETCH_ROWS		100

PG_FUNCTION_INFO_V1(evbus_history_page);
PG_FUNCTION_INFO_V1(evbus_history_query);

typedef struct Window
{
	int64		lo;				/* ids [lo, hi) */
	int64		hi;
	bool		indexed;		/* all its leaves are */
} Window;

typedef struct HistoryPage
{
	EvbusBus	bus;
	int		   *classes;		/* the bus is or was in */
	int			n_classes;
	text	  **exact;			/* types wanted as they are, without repetition */
	int			n_exact;
	text	  **wild;			/* patterns with wildcards */
	int			n_wild;
	bool		any_type;
	char	   *key;			/* NULL: any */
	char	   *filter;			/* of the payload; NULL: none */
	bool		newest;
	int			limit;
	int64		lo;				/* ids [lo, hi) are asked for */
	int64		hi;
	EvbusLeaf  *leaves;			/* those that have some of them, in the order to be read */
	int			n_leaves;
	int			next_leaf;
	int			next_size;
} HistoryPage;

/* ---------------------------------------------------------------- arguments */

static int
text_cmp(const void *a, const void *b)
{
	text	   *x = *(text *const *) a;
	text	   *y = *(text *const *) b;
	int			nx = VARSIZE_ANY_EXHDR(x);
	int			ny = VARSIZE_ANY_EXHDR(y);
	int			c = memcmp(VARDATA_ANY(x), VARDATA_ANY(y), Min(nx, ny));

	return c != 0 ? c : nx - ny;
}

static int
without_repetition(text **values, int n)
{
	int			kept = 0;

	qsort(values, n, sizeof(text *), text_cmp);
	for (int i = 0; i < n; i++)
		if (i == 0 || text_cmp(&values[kept - 1], &values[i]) != 0)
			values[kept++] = values[i];
	return kept;
}

/* A wildcard is always a word of its own, and no other word may hold these letters. */
static bool
is_wild(text *pattern)
{
	const char *p = VARDATA_ANY(pattern);
	int			len = VARSIZE_ANY_EXHDR(pattern);

	return memchr(p, '*', len) != NULL || memchr(p, '#', len) != NULL;
}

static void
read_types(FunctionCallInfo fcinfo, HistoryPage *page)
{
	Datum	   *types;
	bool	   *nulls;
	int			n;

	page->any_type = PG_ARGISNULL(1);
	if (page->any_type)
		return;
	evbus_check_patterns(fcinfo, 1);
	evbus_arg_array(fcinfo, 1, "types", &types, &nulls, &n);
	page->exact = palloc(sizeof(text *) * n);
	page->wild = palloc(sizeof(text *) * n);
	for (int i = 0; i < n; i++)
	{
		text	   *type = DatumGetTextPP(types[i]);

		if (VARSIZE_ANY_EXHDR(type) == 1 && *VARDATA_ANY(type) == '#')
			page->any_type = true;
		else if (is_wild(type))
			page->wild[page->n_wild++] = type;
		else
			page->exact[page->n_exact++] = type;
	}
	page->n_exact = without_repetition(page->exact, page->n_exact);
	page->n_wild = without_repetition(page->wild, page->n_wild);
}

static bool
read_order(FunctionCallInfo fcinfo)
{
	char	   *order = evbus_arg_text(fcinfo, 7, "order");

	if (strcmp(order, "newest") == 0)
		return true;
	if (strcmp(order, "oldest") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("order \"%s\" is not known", evbus_clip(order, strlen(order))),
				 errhint("'newest' begins with the newest event, 'oldest' with the oldest.")));
	return false;
}

static void
read_range(FunctionCallInfo fcinfo, HistoryPage *page)
{
	page->lo = 0;
	page->hi = PG_INT64_MAX;
	if (!PG_ARGISNULL(3))
		page->lo = evbus_clock_from_time(PG_GETARG_TIMESTAMPTZ(3));
	if (!PG_ARGISNULL(4))
		page->hi = evbus_clock_from_time(PG_GETARG_TIMESTAMPTZ(4));
	if (!PG_ARGISNULL(3) && !PG_ARGISNULL(4) && PG_GETARG_TIMESTAMPTZ(3) >= PG_GETARG_TIMESTAMPTZ(4))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"from\" must be before \"to\""),
				 errdetail("They are %s and %s.", pstrdup(timestamptz_to_str(PG_GETARG_TIMESTAMPTZ(3))),
						   pstrdup(timestamptz_to_str(PG_GETARG_TIMESTAMPTZ(4))))));
	if (!PG_ARGISNULL(5))
	{
		int64		after = PG_GETARG_INT64(5);

		if (after < 1)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("after must be an event_id"),
					 errdetail("It is " INT64_FORMAT ".", after),
					 errhint("Give the event_id of the last row of the page before; NULL for the first page.")));
		if (page->newest)
			page->hi = Min(page->hi, after);
		else if (after == PG_INT64_MAX)
			page->hi = page->lo;
		else
			page->lo = Max(page->lo, after + 1);
	}
}

static int
newest_first(const void *a, const void *b)
{
	int64		x = ((const EvbusLeaf *) a)->lo;
	int64		y = ((const EvbusLeaf *) b)->lo;

	return x < y ? 1 : x > y ? -1 : 0;
}

static int
oldest_first(const void *a, const void *b)
{
	int64		x = ((const EvbusLeaf *) a)->hi;
	int64		y = ((const EvbusLeaf *) b)->hi;

	return x < y ? -1 : x > y;
}

/* Of the classes that the bus is or was in: which have leaves, and which of them are asked for. */
static void
find_leaves(HistoryPage *page)
{
	static const Oid types[] = {INT4OID};
	MemoryContext context = CurrentMemoryContext;
	Datum		values[] = {Int32GetDatum(page->bus.bus_id)};
	EvbusInternal state;
	int			n;
	int			size = 16;

	evbus_internal_begin(&state);
	n = (int) evbus_sql(NULL, "SELECT DISTINCT c FROM evbus.bus b, unnest(storage_class_id || former_classes) AS c"
						" WHERE bus_id = $1 AND to_regclass('evbus.event_c' || c) IS NOT NULL ORDER BY c", 1, types, values, NULL, 0);
	page->classes = MemoryContextAlloc(context, sizeof(int) * Max(n, 1));
	page->n_classes = n;
	for (int i = 0; i < n; i++)
		page->classes[i] = DatumGetInt32(evbus_column(i, 1, NULL));
	evbus_internal_end(&state);

	page->leaves = palloc(sizeof(EvbusLeaf) * size);
	for (int c = 0; c < page->n_classes; c++)
	{
		EvbusLeaf  *leaves;

		n = evbus_leaf_list(evbus_class_parent(page->classes[c]), &leaves);
		for (int i = 0; i < n; i++)
		{
			if (leaves[i].hi <= page->lo || leaves[i].lo >= page->hi)
				continue;
			if (page->n_leaves == size)
				page->leaves = repalloc(page->leaves, sizeof(EvbusLeaf) * (size *= 2));
			page->leaves[page->n_leaves++] = leaves[i];
		}
		pfree(leaves);
	}
	qsort(page->leaves, page->n_leaves, sizeof(EvbusLeaf), page->newest ? newest_first : oldest_first);
	page->next_size = FIRST_WINDOW;
}

static HistoryPage *
read_page(FunctionCallInfo fcinfo)
{
	HistoryPage	   *page = palloc0(sizeof(HistoryPage));
	char	   *bus = evbus_arg_text(fcinfo, 0, "bus");

	page->limit = evbus_arg_int(fcinfo, 6, "limit", 1, LIMIT_MAX);
	page->newest = read_order(fcinfo);
	read_types(fcinfo, page);
	if (!PG_ARGISNULL(2))
		page->key = evbus_arg_text(fcinfo, 2, "key");
	read_range(fcinfo, page);
	if (!PG_ARGISNULL(8))
		page->filter = DatumGetCString(DirectFunctionCall1(jsonpath_out, PG_GETARG_DATUM(8)));
	evbus_bus_get(bus, &page->bus);
	evbus_check_bus(&page->bus, GetUserId(), EVBUS_READ);
	find_leaves(page);
	return page;
}

/* ---------------------------------------------------------------- statements */

/* The next leaves to be read together; false: there are no more. */
static bool
next_window(HistoryPage *page, Window *window)
{
	int			first = page->next_leaf;
	int			n = 0;

	if (first == page->n_leaves)
		return false;
	window->indexed = evbus_leaf_indexed(page->leaves[first].relid);
	while (first + n < page->n_leaves && n < page->next_size &&
		   evbus_leaf_indexed(page->leaves[first + n].relid) == window->indexed)
		n++;
	page->next_leaf += n;
	page->next_size *= 2;

	/* What comes before was in the last window; what begins here ends with these leaves. */
	window->lo = page->lo;
	window->hi = page->hi;
	if (page->newest)
	{
		if (page->next_leaf < page->n_leaves)
			window->lo = Max(page->lo, page->leaves[page->next_leaf - 1].lo);
		page->hi = window->lo;
	}
	else
	{
		if (page->next_leaf < page->n_leaves)
			window->hi = Min(page->hi, page->leaves[page->next_leaf - 1].hi);
		page->lo = window->hi;
	}
	/* A leaf of another class with the same bounds as the last one: that is done. */
	return window->lo < window->hi || next_window(page, window);
}

static char *
literal(const char *value)
{
	return quote_literal_cstr(value);
}

static char *
text_literal(text *value)
{
	return literal(text_to_cstring(value));
}

static void
add_array(StringInfo sql, text **values, int n)
{
	appendStringInfoString(sql, "ARRAY[");
	for (int i = 0; i < n; i++)
		appendStringInfo(sql, "%s%s", i > 0 ? "," : "", text_literal(values[i]));
	appendStringInfoString(sql, "]::text[]");
}

/* How many bytes of a pattern are whole words before the first wildcard, without the dot after them. */
static int
fixed_words(text *pattern)
{
	const char *p = VARDATA_ANY(pattern);
	int			len = VARSIZE_ANY_EXHDR(pattern);
	int			i = 0;

	while (i < len && p[i] != '*' && p[i] != '#')
		i++;
	return Max(i - 1, 0);
}

/*
 * A range that holds every type the pattern can match, and not many others: with the
 * first words w it is w itself or begins with "w.", and '/' follows '.'.
 */
static void
add_ranges(StringInfo sql, text **patterns, int n)
{
	if (n > RANGES_MAX)
		return;
	for (int i = 0; i < n; i++)
		if (fixed_words(patterns[i]) == 0)
			return;
	appendStringInfoString(sql, " AND (");
	for (int i = 0; i < n; i++)
	{
		char	   *words = pnstrdup(VARDATA_ANY(patterns[i]), fixed_words(patterns[i]));

		appendStringInfo(sql, "%s(e.type ~>=~ %s AND e.type ~<~ %s)", i > 0 ? " OR " : "",
						 literal(words), literal(psprintf("%s/", words)));
	}
	appendStringInfoChar(sql, ')');
}

/* The rows of one class; which types: all, exactly one, or what is wanted less those. */
static void
add_branch(StringInfo sql, HistoryPage *page, const Window *window, int class, int limit, text *type, bool split)
{
	appendStringInfo(sql, "(SELECT e.event_id, e.type, e.key, e.payload, e.headers FROM evbus.event_log e"
					 " WHERE e.storage_class_id = %d AND e.bus_id = %d AND e.event_id >= " INT64_FORMAT " AND e.event_id < " INT64_FORMAT,
					 class, page->bus.bus_id, window->lo, window->hi);
	if (page->key)
		appendStringInfo(sql, " AND e.key = %s", literal(page->key));
	if (type)
		appendStringInfo(sql, " AND e.type = %s", text_literal(type));
	else if (!page->any_type && page->n_wild == 0)
	{
		appendStringInfoString(sql, " AND e.type = ANY (");
		add_array(sql, page->exact, page->n_exact);
		appendStringInfoChar(sql, ')');
	}
	else if (!page->any_type && (split || page->n_exact == 0))
	{
		add_ranges(sql, page->wild, page->n_wild);
		appendStringInfoString(sql, " AND evbus._type_matches(e.type, ");
		add_array(sql, page->wild, page->n_wild);
		appendStringInfoChar(sql, ')');
		if (page->n_exact > 0)	/* these have branches of their own */
		{
			appendStringInfoString(sql, " AND e.type <> ALL (");
			add_array(sql, page->exact, page->n_exact);
			appendStringInfoChar(sql, ')');
		}
	}
	else if (!page->any_type)
	{
		appendStringInfoString(sql, " AND (e.type = ANY (");
		add_array(sql, page->exact, page->n_exact);
		appendStringInfoString(sql, ") OR evbus._type_matches(e.type, ");
		add_array(sql, page->wild, page->n_wild);
		appendStringInfoString(sql, "))");
	}
	if (page->filter)
		appendStringInfo(sql, " AND evbus._decode(e.payload, e.event_id) @? %s::jsonpath", literal(page->filter));
	appendStringInfo(sql, " ORDER BY e.event_id%s LIMIT %d)", page->newest ? " DESC" : "", limit);
}

/* The statement for one window. */
static char *
statement(HistoryPage *page, const Window *window, int limit)
{
	StringInfoData sql;
	bool		split = window->indexed && !page->any_type && page->key == NULL &&
	page->n_exact > 0 && page->n_exact <= BRANCHES_MAX;
	const char *direction = page->newest ? " DESC" : "";
	int			n = 0;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT e.event_id, %s::text AS bus, e.type, e.key, evbus._decode(e.payload, e.event_id) AS payload,"
					 " evbus._decode(e.headers, e.event_id) AS headers, evbus._event_time(e.event_id) AS published_at,"
					 " evbus._priority(e.headers) AS priority, evbus._expires_at(e.headers) AS expires_at FROM (",
					 literal(page->bus.name));
	for (int c = 0; c < page->n_classes; c++)
	{
		int			n_own = split ? page->n_exact : 0;

		for (int t = 0; t < n_own; t++)
		{
			appendStringInfoString(&sql, n++ > 0 ? " UNION ALL " : "");
			add_branch(&sql, page, window, page->classes[c], limit, page->exact[t], true);
		}
		if (n_own == 0 || page->n_wild > 0)
		{
			appendStringInfoString(&sql, n++ > 0 ? " UNION ALL " : "");
			add_branch(&sql, page, window, page->classes[c], limit, NULL, split);
		}
	}
	if (n > 1)
		appendStringInfo(&sql, " ORDER BY event_id%s LIMIT %d", direction, limit);
	appendStringInfo(&sql, ") e ORDER BY e.event_id%s", direction);
	return sql.data;
}

/* ---------------------------------------------------------------- functions */

/* Run one statement and keep its rows; returns how many. */
static int
run(const char *sql, bool indexed, ReturnSetInfo *rsinfo)
{
	static const char *const other_ways[] = {"enable_bitmapscan", "enable_seqscan", "enable_sort"};
	EvbusInternal state;
	SPIPlanPtr	plan;
	Portal		portal;
	int			n = 0;

	evbus_internal_begin(&state);
	(void) set_config_option("jit", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	for (int i = 0; i < (int) lengthof(other_ways) && !indexed; i++)
		(void) set_config_option(other_ways[i], "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	plan = SPI_prepare_cursor(sql, 0, NULL, CURSOR_OPT_NO_SCROLL);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare_cursor failed for \"%s\": %s", sql, SPI_result_code_string(SPI_result));
	portal = SPI_cursor_open(NULL, plan, NULL, NULL, true);
	/* A page of large events shall not be in memory as a whole: a tuplestore goes to disk. */
	do
	{
		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		for (uint64 i = 0; i < SPI_processed; i++)
			tuplestore_puttuple(rsinfo->setResult, SPI_tuptable->vals[i]);
		n += SPI_processed;
		SPI_freetuptable(SPI_tuptable);
	} while (SPI_processed > 0);
	SPI_cursor_close(portal);
	evbus_internal_end(&state);
	return n;
}

/*
 * evbus.history_page(bus text, types text[], key text, "from" timestamptz, "to" timestamptz, after bigint,
 * "limit" integer, "order" text, filter jsonpath) returns setof evbus.history
 *
 * Committed events of a bus in order of event_id, at most limit (1 to 10,000).
 * types: patterns.  from is inclusive, to is not.  after: the event_id of the last
 * row of the page before.  filter: events whose payload @? filter.  NULL: no such bound.
 * Reads with the snapshot of the calling statement.
 * Errors: 22004, 22023, VB001.  Privileges: EXECUTE.
 */
Datum
evbus_history_page(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	HistoryPage	   *page = read_page(fcinfo);
	Window		window;
	int			left = page->limit;

	InitMaterializedSRF(fcinfo, 0);
	while (left > 0 && next_window(page, &window))
		left -= run(statement(page, &window, left), window.indexed, rsinfo);
	return (Datum) 0;
}

/* evbus._history_query(...), arguments as above: the statements that an empty history would take, in their order. */
Datum
evbus_history_query(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	HistoryPage	   *page = read_page(fcinfo);
	Window		window;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	while (next_window(page, &window))
	{
		Datum		value = CStringGetTextDatum(statement(page, &window, page->limit));
		bool		isnull = false;

		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &value, &isnull);
	}
	return (Datum) 0;
}
