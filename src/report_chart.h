/* report_chart.h: charts as SVG in a page of HTML */
#ifndef EVBUS_REPORT_CHART_H
#define EVBUS_REPORT_CHART_H

#include "report_html.h"

#define EVBUS_CHART_SERIES		6	/* as many colours there are */

typedef struct EvbusSeries
{
	const char *name;
	const double *values;		/* one for each label; NaN: nobody knows */
	bool		aside;			/* in grey: of the others together */
} EvbusSeries;

typedef struct EvbusChart
{
	const char *title;
	const char *unit;			/* what is counted, such as "events/s" */
	const char *note;			/* HTML below it; NULL: none */
	const char *empty;			/* said where there are fewer than two points */
	const char *head;			/* of the first column of the table */
	EvbusNumber kind;
	bool		columns;		/* one upon the other; else lines */
	bool		area;			/* the first line is the edge of an area */
	int			n;
	const char *const *labels;
	int			label_every;	/* one in so many is written at the axis, the last among them */
	int			n_series;
	EvbusSeries series[EVBUS_CHART_SERIES];
} EvbusChart;

/* A logarithmic axis of times. */
typedef struct EvbusScale
{
	double		lo;
	double		hi;
} EvbusScale;

extern void evbus_chart(StringInfo out, const EvbusChart *chart);
extern void evbus_chart_spark(StringInfo out, const double *values, int n);
extern void evbus_chart_bar(StringInfo out, double share);
extern EvbusScale evbus_chart_scale(double least, double most);
extern void evbus_chart_scale_ticks(StringInfo out, const EvbusScale *scale);
extern void evbus_chart_range(StringInfo out, const EvbusScale *scale, const double *values, int n);

#endif
