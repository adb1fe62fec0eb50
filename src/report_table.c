/*-------------------------------------------------------------------------
 * report_table.c
 *	  What a query finds, as a table of a page of HTML.
 *
 * Queries run with the rights of the caller, and each asks for max_rows rows at most; its last column
 * is how many there are, so the page says what it leaves out.
 *-------------------------------------------------------------------------
 */
#include "report_table.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "report_chart.h"
#include "utils/array.h"
#include "utils/builtins.h"

/* --------------------------------------------------------------- of a query */

/* Numbers are to come as double precision.  Until SPI_finish() or the next query. */
uint64
evbus_report_query(EvbusReport *report, const char *sql)
{
	Oid			types[] = {INT4OID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID};
	Datum		values[] = {Int32GetDatum(report->max_rows), report->levels, report->checks, report->subjects};
	int			rc;

	SPI_freetuptable(SPI_tuptable);
	rc = SPI_execute_with_args(sql, lengthof(types), types, values, NULL, true, 0);
	if (rc < 0)
		elog(ERROR, "SPI_execute_with_args failed for \"%s\": %s", sql, SPI_result_code_string(rc));
	return SPI_processed;
}

/* NULL: it is null. */
char *
evbus_report_string(uint64 row, int column)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);
}

/* NaN: it is null. */
double
evbus_report_number(uint64 row, int column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, &isnull);

	return isnull ? NAN : DatumGetFloat8(value);
}

/* The values of a float8[], NaN where they are null; how many there are. */
int
evbus_report_numbers(uint64 row, int column, double **values)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, &isnull);
	Datum	   *datums;
	bool	   *nulls;
	int			n;

	if (isnull)
		return 0;
	deconstruct_array(DatumGetArrayTypeP(value), FLOAT8OID, sizeof(float8), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &datums, &nulls, &n);
	*values = palloc(sizeof(double) * Max(n, 1));
	for (int i = 0; i < n; i++)
		(*values)[i] = nulls[i] ? NAN : DatumGetFloat8(datums[i]);
	return n;
}

/* ------------------------------------------------------------------- its parts */

void
evbus_report_pill(StringInfo out, const char *level)
{
	appendStringInfo(out, "<span class=\"pill %s\">%s</span>", level, level);
}

/* What is left out, if anything. */
void
evbus_report_more(EvbusReport *report, uint64 shown, double total, const char *what)
{
	if (total > shown)
		appendStringInfo(report->out, "<p class=\"more\">and %s more %s: <code>max_rows</code> is %d</p>\n",
						 evbus_html_number(EVBUS_NUMBER_COUNT, total - shown), what, report->max_rows);
}

static int
width_of(EvbusCell cell)
{
	return cell == EVBUS_CELL_NAME || cell == EVBUS_CELL_LEVEL ? 2 : 1;
}

static bool
is_number(EvbusCell cell)
{
	return cell >= EVBUS_CELL_COUNT && cell <= EVBUS_CELL_SHARE;
}

/* That of a rate has a %s, for the unit of time. */
static char *
head_of(const EvbusReport *report, const EvbusColumn *column)
{
	const char *mark = strstr(column->head, "%s");

	if (mark == NULL)
		return pstrdup(column->head);
	return psprintf("%.*s%s%s", (int) (mark - column->head), column->head, report->per, mark + 2);
}

/* The axis that all ranges of a column are drawn to. */
static EvbusScale
scale_of(uint64 rows, int column)
{
	double		least = NAN;
	double		most = NAN;

	for (uint64 row = 0; row < rows; row++)
	{
		double	   *values;
		int			n = evbus_report_numbers(row, column, &values);

		for (int i = 0; i < n; i++)
			if (!isnan(values[i]))
			{
				if (!(least <= values[i]))
					least = values[i];
				if (!(most >= values[i]))
					most = values[i];
			}
	}
	return evbus_chart_scale(isnan(least) ? 1e-3 : least, isnan(most) ? 1 : most);
}

static void
put_heads(EvbusReport *report, const EvbusColumn *columns, int n, const EvbusScale *scale)
{
	StringInfo	out = report->out;

	appendStringInfoString(out, "<thead><tr>");
	for (int i = 0; i < n; i++)
	{
		appendStringInfo(out, "<th scope=\"col\"%s>%s", is_number(columns[i].cell) ? " class=\"n\"" : "", head_of(report, &columns[i]));
		if (columns[i].cell == EVBUS_CELL_RANGE)
			evbus_chart_scale_ticks(out, scale);
		appendStringInfoString(out, "</th>");
	}
	appendStringInfoString(out, "</tr></thead>\n");
}

static void
put_number(EvbusReport *report, EvbusCell cell, double value)
{
	static const EvbusNumber kinds[] = {[EVBUS_CELL_COUNT] = EVBUS_NUMBER_COUNT, [EVBUS_CELL_RATE] = EVBUS_NUMBER_RATE,
	[EVBUS_CELL_SECONDS] = EVBUS_NUMBER_SECONDS, [EVBUS_CELL_BYTES] = EVBUS_NUMBER_BYTES, [EVBUS_CELL_SHARE] = EVBUS_NUMBER_SHARE};

	appendStringInfoString(report->out, evbus_html_number(kinds[cell], cell == EVBUS_CELL_RATE ? value * report->seconds : value));
}

static void
put_cell(EvbusReport *report, const EvbusColumn *column, uint64 row, int at, const EvbusScale *scale)
{
	StringInfo	out = report->out;
	char	   *text = evbus_report_string(row, at);
	double	   *values;
	int			n;

	if (column->cell == EVBUS_CELL_NAME)
	{
		char	   *of = evbus_report_string(row, at + 1);

		appendStringInfoString(out, "<th scope=\"row\"><bdi>");
		evbus_html_text(out, text ? text : "");
		appendStringInfoString(out, "</bdi>");
		if (of)
		{
			appendStringInfoString(out, "<small><bdi>");
			evbus_html_text(out, of);
			appendStringInfoString(out, "</bdi></small>");
		}
		appendStringInfoString(out, "</th>");
		return;
	}
	appendStringInfo(out, "<td data-head=\"%s\"%s>", head_of(report, column),
					 text == NULL ? is_number(column->cell) ? " class=\"n none\"" : " class=\"none\""
					 : is_number(column->cell) ? evbus_report_number(row, at) == 0 ? " class=\"n z\"" : " class=\"n\""
					 : column->cell == EVBUS_CELL_RANGE || column->cell == EVBUS_CELL_BAR || column->cell == EVBUS_CELL_CODE ? " class=\"wide\"" : "");
	if (text == NULL)
		appendStringInfoString(out, evbus_html_number(EVBUS_NUMBER_COUNT, NAN));
	else
		switch (column->cell)
		{
			case EVBUS_CELL_LEVEL:
				{
					char	   *words = evbus_report_string(row, at + 1);

					appendStringInfoString(out, "<div>");
					evbus_report_pill(out, text);
					if (words)
					{
						appendStringInfoString(out, "<small><bdi>");
						evbus_html_text(out, words);
						appendStringInfoString(out, "</bdi></small>");
					}
					appendStringInfoString(out, "</div>");
					break;
				}
			case EVBUS_CELL_TEXT:
				appendStringInfoString(out, "<bdi>");
				evbus_html_text(out, text);
				appendStringInfoString(out, "</bdi>");
				break;
			case EVBUS_CELL_CODE:
				appendStringInfoString(out, "<pre dir=\"auto\">");
				evbus_html_text(out, text);
				appendStringInfoString(out, "</pre>");
				break;
			case EVBUS_CELL_BAR:
				evbus_chart_bar(out, evbus_report_number(row, at));
				break;
			case EVBUS_CELL_SPARK:
				n = evbus_report_numbers(row, at, &values);
				evbus_chart_spark(out, values, n);
				break;
			case EVBUS_CELL_RANGE:
				n = evbus_report_numbers(row, at, &values);
				evbus_chart_range(out, scale, values, n);
				break;
			default:
				put_number(report, column->cell, evbus_report_number(row, at));
		}
	appendStringInfoString(out, "</td>");
}

/*
 * A table of what the query finds; the last of its columns, which no cell takes, is how many rows there are in all.
 * empty is said where there are none, note (or NULL) below those that there are.
 */
void
evbus_report_table(EvbusReport *report, const char *what, const EvbusColumn *columns, int n, const char *sql, const char *empty, const char *note)
{
	StringInfo	out = report->out;
	uint64		rows = evbus_report_query(report, sql);
	EvbusScale	scale = {0};
	int			at = 1;

	if (rows == 0)
	{
		appendStringInfo(out, "<div class=\"card\"><p class=\"empty\">%s</p></div>\n", empty);
		return;
	}
	for (int i = 0; i < n; at += width_of(columns[i++].cell))
		if (columns[i].cell == EVBUS_CELL_RANGE)
			scale = scale_of(rows, at);
	appendStringInfoString(out, "<div class=\"card\"><table class=\"rows\">");
	put_heads(report, columns, n, &scale);
	appendStringInfoString(out, "<tbody>\n");
	for (uint64 row = 0; row < rows; row++)
	{
		appendStringInfoString(out, "<tr>");
		at = 1;
		for (int i = 0; i < n; at += width_of(columns[i++].cell))
			put_cell(report, &columns[i], row, at, &scale);
		appendStringInfoString(out, "</tr>\n");
	}
	appendStringInfoString(out, "</tbody></table>");
	evbus_report_more(report, rows, evbus_report_number(0, at), what);
	appendStringInfoString(out, "</div>\n");
	if (note)
		appendStringInfo(out, "<p class=\"note\">%s</p>\n", note);
}
