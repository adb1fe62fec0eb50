/*-------------------------------------------------------------------------
 * report_chart.c
 *	  Charts as SVG in a page of HTML.
 *
 * A picture that is scaled to the width of a phone has letters that nobody can read.  So only the
 * shapes are scaled: they are in a drawing of 1000 by 1000 that is stretched over the plot, with lines that
 * keep their width; letters are beside it, of their own size, at places in percent.  Numbers come with
 * the mouse, as titles, and in a table for who has none.  Series differ in colour and in how
 * their lines are broken.
 *-------------------------------------------------------------------------
 */
#include "report_chart.h"

#include <math.h>

#define TOP			8			/* pixels above the plot, for half a letter */
#define LINES_HEIGHT	168		/* of the plot */
#define COLUMNS_HEIGHT	110
#define TICKS		4			/* parts of the y axis, about */

static int
height_of(const EvbusChart *chart)
{
	return chart->columns ? COLUMNS_HEIGHT : LINES_HEIGHT;
}

/* A step of 1, 2 or 5 times a power of ten that cuts most into about TICKS parts. */
static double
nice_step(double most, bool whole)
{
	double		rough = most / TICKS;
	double		power = pow(10, floor(log10(rough)));
	double		part = rough / power;
	double		step = (part <= 1 ? 1 : part <= 2 ? 2 : part <= 5 ? 5 : 10) * power;

	return whole ? Max(step, 1) : step;
}

/* How much is at a point: of a series, or of those up to it where they lie one upon the other. */
static double
level_of(const EvbusChart *chart, int series, int i)
{
	double		sum = 0;

	if (!chart->columns)
		return chart->series[series].values[i];
	for (int s = 0; s <= series; s++)
		sum += isnan(chart->series[s].values[i]) ? 0 : chart->series[s].values[i];
	return sum;
}

static double
most_of(const EvbusChart *chart)
{
	double		most = 0;

	for (int s = 0; s < chart->n_series; s++)
		for (int i = 0; i < chart->n; i++)
			if (level_of(chart, s, i) > most)
				most = level_of(chart, s, i);
	return most;
}

static const char *
class_of(const EvbusChart *chart, int series)
{
	return chart->series[series].aside ? "sx" : psprintf("s%d", series + 1);
}

/* Where a point is, in thousandths of the plot; columns are in the middle of their part. */
static double
x_of(const EvbusChart *chart, int i)
{
	return chart->columns ? (i + 0.5) * 1000 / chart->n : i * 1000.0 / (chart->n - 1);
}

static double
y_of(double value, double top)
{
	return 1000 - value / top * 1000;
}

/* ------------------------------------------------------------------- shapes */

static void
put_line(StringInfo out, const EvbusChart *chart, int series, double top)
{
	const double *values = chart->series[series].values;
	bool		open = false;

	if (series == 0 && chart->area)
	{
		/* What is not known ends a piece of it. */
		appendStringInfo(out, "<path class=\"area %s\" d=\"", class_of(chart, series));
		for (int i = 0; i < chart->n; i++)
		{
			if (isnan(values[i]))
				continue;
			if (i == 0 || isnan(values[i - 1]))
				appendStringInfo(out, "M%.1f 1000", x_of(chart, i));
			appendStringInfo(out, "L%.1f %.1f", x_of(chart, i), y_of(values[i], top));
			if (i == chart->n - 1 || isnan(values[i + 1]))
				appendStringInfo(out, "L%.1f 1000Z", x_of(chart, i));
		}
		appendStringInfoString(out, "\"/>");
	}
	appendStringInfo(out, "<path class=\"line %s\" d=\"", class_of(chart, series));
	for (int i = 0; i < chart->n; i++)
	{
		if (isnan(values[i]))
		{
			open = false;
			continue;
		}
		appendStringInfo(out, "%c%.1f %.1f", open ? 'L' : 'M', x_of(chart, i), y_of(values[i], top));
		if (!open && (i == chart->n - 1 || isnan(values[i + 1])))
			appendStringInfoString(out, "h0.1");	/* one alone: a dot */
		open = true;
	}
	appendStringInfoString(out, "\"/>");
}

static void
put_columns(StringInfo out, const EvbusChart *chart, int series, double top)
{
	double		width = 700.0 / chart->n;

	for (int i = 0; i < chart->n; i++)
	{
		double		value = chart->series[series].values[i];

		if (value > 0)
			appendStringInfo(out, "<rect class=\"col %s\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>",
							 class_of(chart, series), x_of(chart, i) - width / 2, y_of(level_of(chart, series, i), top), width, value / top * 1000);
	}
}

/* The grid and its letters. */
static void
put_axes(StringInfo out, const EvbusChart *chart, double top, double step)
{
	for (int i = 0; i * step <= top * 1.0001; i++)
	{
		double		y = TOP + height_of(chart) - i * step / top * height_of(chart);

		appendStringInfo(out, "<line class=\"%s\" x1=\"0\" x2=\"100%%\" y1=\"%.1f\" y2=\"%.1f\"/><text x=\"-8\" y=\"%.1f\" dy=\".32em\" text-anchor=\"end\">%s</text>\n",
						 i == 0 ? "axis" : "grid", y, y, y, evbus_html_number(chart->kind == EVBUS_NUMBER_SECONDS ? chart->kind : EVBUS_NUMBER_SHORT, i * step));
	}
	for (int i = (chart->n - 1) % chart->label_every; i < chart->n; i += chart->label_every)
	{
		bool		last = i == chart->n - 1 && !chart->columns;
		bool		first = i == 0 && !chart->columns;

		appendStringInfo(out, "<text x=\"%.1f%%\" y=\"%d\" text-anchor=\"%s\">", x_of(chart, i) / 10, TOP + height_of(chart) + 20, last ? "end" : first ? "start" : "middle");
		evbus_html_text(out, chart->labels[i]);
		appendStringInfoString(out, "</text>\n");
	}
}

/* A field over each point, which says what is there. */
static void
put_titles(StringInfo out, const EvbusChart *chart)
{
	double		width = chart->columns ? 1000.0 / chart->n : 1000.0 / (chart->n - 1);

	for (int i = 0; i < chart->n; i++)
	{
		double		lo = Max(x_of(chart, i) - width / 2, 0);
		double		hi = Min(x_of(chart, i) + width / 2, 1000);

		appendStringInfo(out, "<rect class=\"hit\" x=\"%.1f%%\" width=\"%.1f%%\" y=\"%d\" height=\"%d\"><title>", lo / 10, (hi - lo) / 10, TOP, height_of(chart));
		evbus_html_text(out, chart->labels[i]);
		for (int s = 0; s < chart->n_series; s++)
		{
			appendStringInfoString(out, "\n");
			evbus_html_text(out, chart->series[s].name);
			appendStringInfo(out, ": %s", evbus_html_number(chart->kind, chart->series[s].values[i]));
		}
		appendStringInfoString(out, "</title></rect>");
	}
}

/* ------------------------------------------------------------------- around */

static void
put_legend(StringInfo out, const EvbusChart *chart)
{
	appendStringInfoString(out, "<ul class=\"legend\">");
	for (int s = 0; s < chart->n_series; s++)
	{
		double		most = NAN;

		for (int i = 0; i < chart->n; i++)
			if (!isnan(chart->series[s].values[i]) && !(most >= chart->series[s].values[i]))
				most = chart->series[s].values[i];
		appendStringInfo(out, "<li><svg width=\"22\" height=\"10\" aria-hidden=\"true\">%s</svg><bdi>",
						 chart->columns ? psprintf("<rect class=\"col %s\" width=\"12\" height=\"10\" x=\"5\"/>", class_of(chart, s))
						 : psprintf("<path class=\"line %s\" d=\"M1 5h20\"/>", class_of(chart, s)));
		evbus_html_text(out, chart->series[s].name);
		appendStringInfoString(out, "</bdi>");
		if (chart->n > 0)
			appendStringInfo(out, " <span>last&#160;%s, most&#160;%s</span>", evbus_html_number(chart->kind, chart->series[s].values[chart->n - 1]), evbus_html_number(chart->kind, most));
		appendStringInfoString(out, "</li>");
	}
	appendStringInfoString(out, "</ul>\n");
}

static void
put_table(StringInfo out, const EvbusChart *chart)
{
	appendStringInfo(out, "<details><summary>As a table</summary><div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"%s\"><table><thead><tr><th scope=\"col\">%s</th>",
					 chart->title, chart->head);
	for (int s = 0; s < chart->n_series; s++)
	{
		appendStringInfoString(out, "<th scope=\"col\" class=\"n\"><bdi>");
		evbus_html_text(out, chart->series[s].name);
		appendStringInfo(out, "</bdi>, %s</th>", chart->unit);
	}
	appendStringInfoString(out, "</tr></thead><tbody>\n");
	for (int i = chart->n - 1; i >= 0; i--)
	{
		appendStringInfoString(out, "<tr><th scope=\"row\">");
		evbus_html_text(out, chart->labels[i]);
		appendStringInfoString(out, "</th>");
		for (int s = 0; s < chart->n_series; s++)
			appendStringInfo(out, "<td class=\"n\">%s</td>", evbus_html_number(chart->kind, chart->series[s].values[i]));
		appendStringInfoString(out, "</tr>\n");
	}
	appendStringInfoString(out, "</tbody></table></div></details>\n");
}

/* One chart with title, unit, legend, axes and its table. */
void
evbus_chart(StringInfo out, const EvbusChart *chart)
{
	double		most = most_of(chart);
	double		step;
	double		top;

	appendStringInfo(out, "<figure class=\"card\"><figcaption><h3>%s <small>%s</small></h3></figcaption>\n", chart->title, chart->unit);
	if (chart->n < 2 || chart->n_series == 0)
	{
		appendStringInfo(out, "<p class=\"empty\">%s</p></figure>\n", chart->empty);
		return;
	}
	step = nice_step(most > 0 ? most : 1, chart->kind == EVBUS_NUMBER_COUNT);
	top = Max(ceil(most / step - 1e-9), 1) * step;
	appendStringInfo(out, "<div class=\"frame\"><svg class=\"plot\" width=\"100%%\" height=\"%d\" role=\"img\" aria-label=\"%s, %s: a chart; the table below it has the numbers\">\n",
					 TOP + height_of(chart) + 26, chart->title, chart->unit);
	put_axes(out, chart, top, step);
	appendStringInfo(out, "<svg y=\"%d\" width=\"100%%\" height=\"%d\" viewBox=\"0 0 1000 1000\" preserveAspectRatio=\"none\">\n", TOP, height_of(chart));
	/* The first comes last, on top. */
	for (int s = chart->n_series - 1; s >= 0; s--)
		(chart->columns ? put_columns : put_line) (out, chart, s, top);
	appendStringInfoString(out, "\n</svg>\n");
	put_titles(out, chart);
	appendStringInfoString(out, "\n</svg></div>\n");
	put_legend(out, chart);
	put_table(out, chart);
	if (chart->note)
		appendStringInfo(out, "<p class=\"note\">%s</p>", chart->note);
	appendStringInfoString(out, "</figure>\n");
}

/* -------------------------------------------------------------- within tables */

/* A line without axes; its bottom is 0. */
void
evbus_chart_spark(StringInfo out, const double *values, int n)
{
	double		most = 0;

	for (int i = 0; i < n; i++)
		if (values[i] > most)
			most = values[i];
	appendStringInfoString(out, "<svg class=\"spark\" width=\"96\" height=\"22\" viewBox=\"0 0 1000 1000\" preserveAspectRatio=\"none\" aria-hidden=\"true\"><path class=\"line s1\" d=\"");
	for (int i = 0; i < n; i++)
		if (!isnan(values[i]))
			appendStringInfo(out, "%c%.0f %.0f", i == 0 || isnan(values[i - 1]) ? 'M' : 'L', n < 2 ? 0.0 : i * 1000.0 / (n - 1), 960 - (most > 0 ? values[i] / most * 920 : 0));
	appendStringInfoString(out, "\"/></svg>");
}

void
evbus_chart_bar(StringInfo out, double share)
{
	appendStringInfo(out, "<svg class=\"bar\" width=\"100%%\" height=\"10\" aria-hidden=\"true\"><rect class=\"track\" width=\"100%%\" height=\"10\" rx=\"3\"/><rect class=\"col s1\" width=\"%.1f%%\" height=\"10\" rx=\"3\"/></svg>",
					 isnan(share) ? 0 : Min(Max(share, 0), 1) * 100);
}

/* From one power of ten to another, with all between them that is to be shown. */
EvbusScale
evbus_chart_scale(double least, double most)
{
	EvbusScale	scale;

	scale.lo = pow(10, floor(log10(Max(least, 1e-6)) + 1e-9));
	scale.hi = pow(10, ceil(log10(Max(most, 1e-6)) - 1e-9));
	if (scale.hi <= scale.lo)
		scale.hi = scale.lo * 10;
	return scale;
}

static double
percent_of(const EvbusScale *scale, double value)
{
	double		at = log10(Max(value, scale->lo) / scale->lo) / log10(scale->hi / scale->lo);

	return Min(at, 1) * 100;
}

/* A power of ten; 100 s, where else it would be minutes. */
static char *
tick_of(double seconds)
{
	return seconds < 59 ? evbus_html_number(EVBUS_NUMBER_SECONDS, seconds)
		: psprintf("%s&#160;s", evbus_html_number(EVBUS_NUMBER_COUNT, seconds));
}

/* The powers of ten, for the head of a column. */
void
evbus_chart_scale_ticks(StringInfo out, const EvbusScale *scale)
{
	int			n = (int) rint(log10(scale->hi / scale->lo));
	int			every = n > 5 ? 2 : 1;

	appendStringInfoString(out, "<svg class=\"ticks\" width=\"100%\" height=\"14\" aria-hidden=\"true\">");
	for (int i = 0; i <= n; i += every)
		appendStringInfo(out, "<text x=\"%.1f%%\" y=\"11\" text-anchor=\"%s\">%s</text>", 100.0 * i / n, i == 0 ? "start" : i == n ? "end" : "middle",
						 tick_of(scale->lo * pow(10, i)));
	appendStringInfoString(out, "</svg>");
}

/* A bar from the first of the values to the last, with a mark at each. */
void
evbus_chart_range(StringInfo out, const EvbusScale *scale, const double *values, int n)
{
	int			decades = (int) rint(log10(scale->hi / scale->lo));

	appendStringInfoString(out, "<svg class=\"range\" width=\"100%\" height=\"18\" aria-hidden=\"true\">");
	for (int i = 0; i <= decades; i++)
		appendStringInfo(out, "<line class=\"grid\" x1=\"%.1f%%\" x2=\"%.1f%%\" y1=\"0\" y2=\"18\"/>", 100.0 * i / decades, 100.0 * i / decades);
	if (n > 0 && !isnan(values[0]))
	{
		double		lo = percent_of(scale, values[0]);

		appendStringInfo(out, "<rect class=\"col s1 soft\" x=\"%.1f%%\" y=\"6\" width=\"%.1f%%\" height=\"6\" rx=\"3\"/>", lo, Max(percent_of(scale, values[n - 1]) - lo, 0.5));
		for (int i = 0; i < n; i++)
			appendStringInfo(out, "<circle class=\"col s1 p%d\" cx=\"%.1f%%\" cy=\"9\" r=\"%d\"/>", i, percent_of(scale, values[i]), i == 0 ? 5 : 3);
	}
	appendStringInfoString(out, "</svg>");
}
