/* report_table.h: what a query finds, as a table of a page of HTML */
#ifndef EVBUS_REPORT_TABLE_H
#define EVBUS_REPORT_TABLE_H

#include "report_html.h"

/* A page in the making; each query gets the same arguments. */
typedef struct EvbusReport
{
	StringInfo	out;
	int			max_rows;		/* $1 */
	Datum		levels;			/* $2 to $4: text[], what evbus.health() found of what subject */
	Datum		checks;
	Datum		subjects;
	const char *per;			/* rates are by this: "s" or "min" */
	double		seconds;		/* which is so long */
} EvbusReport;

/* What is in a column; it takes one value of the query, unless told otherwise. */
typedef enum
{
	EVBUS_CELL_NAME,			/* two: a name, and what is said of it in small letters; the head of its row */
	EVBUS_CELL_LEVEL,			/* two: ok, warn, critical or paused; and what is the matter */
	EVBUS_CELL_TEXT,
	EVBUS_CELL_CODE,
	EVBUS_CELL_COUNT,
	EVBUS_CELL_RATE,			/* by seconds */
	EVBUS_CELL_SECONDS,
	EVBUS_CELL_BYTES,
	EVBUS_CELL_SHARE,
	EVBUS_CELL_BAR,				/* 0 to 1 */
	EVBUS_CELL_SPARK,			/* float8[] */
	EVBUS_CELL_RANGE			/* float8[] of seconds, ascending */
} EvbusCell;

typedef struct EvbusColumn
{
	const char *head;
	EvbusCell	cell;
} EvbusColumn;

extern uint64 evbus_report_query(EvbusReport *report, const char *sql);
extern char *evbus_report_string(uint64 row, int column);
extern double evbus_report_number(uint64 row, int column);
extern int	evbus_report_numbers(uint64 row, int column, double **values);
extern void evbus_report_pill(StringInfo out, const char *level);
extern void evbus_report_more(EvbusReport *report, uint64 shown, double total, const char *what);
extern void evbus_report_table(EvbusReport *report, const char *what, const EvbusColumn *columns, int n, const char *sql, const char *empty, const char *note);

#endif
