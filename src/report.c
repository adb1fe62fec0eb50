/*-------------------------------------------------------------------------
 * report.c
 *	  evbus.report_html(): how this database's buses do, as one page of HTML.
 *
 * Everything on it is of views that others can read as well, with the rights of the caller; nothing is
 * computed here that they do not say.  It costs what there is to show: counters are in shared
 * memory, dead letters are told from their counts.  What events hold, payloads, headers, keys and error
 * texts, is looked at only when it is asked for.
 *-------------------------------------------------------------------------
 */
#include <math.h>
#include <unistd.h>

#include "args.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "report_chart.h"
#include "report_table.h"
#include "utils/array.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(evbus_report_html);

#define MAX_ROWS	1000
#define LINES		5			/* subscriptions in the chart of lags; the others together are one more */
#define TITLE_MAX	255			/* bytes */

/* ------------------------------------------------------------- head and health */

static void
put_fact(StringInfo out, const char *name, const char *value)
{
	if (value == NULL || value[0] == '\0')
		return;
	appendStringInfo(out, "<span>%s ", name);
	evbus_html_text(out, value);
	appendStringInfoString(out, "</span> ");
}

static void
put_header(EvbusReport *report, const char *title)
{
	StringInfo	out = report->out;
	char		host[256] = "";

	if (gethostname(host, sizeof(host) - 1) != 0)
		host[0] = '\0';
	evbus_report_query(report, "SELECT to_char(statement_timestamp(), 'YYYY-MM-DD HH24:MI:SS TZ'), current_database(), current_setting('cluster_name'), current_setting('port'),"
					   " split_part(current_setting('server_version'), ' ', 1), (SELECT extversion FROM pg_extension WHERE extname = 'evbus'), to_char(pg_postmaster_start_time(), 'YYYY-MM-DD HH24:MI'),"
					   " (SELECT to_char(min(stats_reset), 'YYYY-MM-DD HH24:MI') FROM evbus.stat_bus)");
	appendStringInfoString(out, "<header><h1><bdi>");
	evbus_html_text(out, title);
	appendStringInfoString(out, "</bdi></h1>\n<p>");
	put_fact(out, "at", evbus_report_string(0, 1));
	put_fact(out, "database", evbus_report_string(0, 2));
	put_fact(out, "on", host);
	put_fact(out, "cluster", evbus_report_string(0, 3));
	put_fact(out, "port", evbus_report_string(0, 4));
	put_fact(out, "PostgreSQL", evbus_report_string(0, 5));
	put_fact(out, "evbus", evbus_report_string(0, 6));
	put_fact(out, "server started", evbus_report_string(0, 7));
	put_fact(out, "counted since", evbus_report_string(0, 8));
	appendStringInfoString(out, "</p></header>\n");
}

static Datum
text_array(Datum *values, int n)
{
	return PointerGetDatum(construct_array(values, n, TEXTOID, -1, false, TYPALIGN_INT));
}

/* What evbus.health() says; what it says of a subject is kept for the tables. */
static void
put_health(EvbusReport *report)
{
	StringInfo	out = report->out;
	uint64		rows = evbus_report_query(report, "SELECT level, \"check\", subject, reason, hint FROM evbus.health()");
	Datum	   *levels = palloc(sizeof(Datum) * Max(rows, 1));
	Datum	   *checks = palloc(sizeof(Datum) * Max(rows, 1));
	Datum	   *subjects = palloc(sizeof(Datum) * Max(rows, 1));
	int			n = 0;
	int			ok = 0;
	int			critical = 0;
	int			warn = 0;

	for (uint64 row = 0; row < rows; row++)
	{
		char	   *level = evbus_report_string(row, 1);
		char	   *subject = evbus_report_string(row, 3);

		ok += strcmp(level, "ok") == 0;
		critical += strcmp(level, "critical") == 0;
		warn += strcmp(level, "warn") == 0;
		if (subject == NULL)
			continue;
		levels[n] = CStringGetTextDatum(level);
		checks[n] = CStringGetTextDatum(evbus_report_string(row, 2));
		subjects[n++] = CStringGetTextDatum(subject);
	}
	report->levels = text_array(levels, n);
	report->checks = text_array(checks, n);
	report->subjects = text_array(subjects, n);

	appendStringInfo(out, "<section class=\"card state %s\" aria-label=\"Health\"><p>", critical > 0 ? "critical" : warn > 0 ? "warn" : "ok");
	if (critical == 0 && warn == 0)
	{
		evbus_report_pill(out, "ok");
		appendStringInfo(out, "All %d checks of <code>evbus.health()</code> are ok.</p></section>\n", ok);
		return;
	}
	if (critical > 0)
		appendStringInfo(out, "<span class=\"pill critical\">%d critical</span>", critical);
	if (warn > 0)
		appendStringInfo(out, "<span class=\"pill warn\">%d %s</span>", warn, warn == 1 ? "warning" : "warnings");
	appendStringInfo(out, "%d checks of <code>evbus.health()</code> are ok.</p><ul class=\"findings\">\n", ok);
	for (int row = 0; row < Min(critical + warn, report->max_rows); row++)
	{
		char	   *subject = evbus_report_string(row, 3);
		char	   *reason = evbus_report_string(row, 4);
		char	   *hint = evbus_report_string(row, 5);

		appendStringInfoString(out, "<li>");
		evbus_report_pill(out, evbus_report_string(row, 1));
		appendStringInfo(out, "<strong>%s</strong>", evbus_report_string(row, 2));
		if (subject)
		{
			appendStringInfoString(out, " <bdi>");
			evbus_html_text(out, subject);
			appendStringInfoString(out, "</bdi>");
		}
		appendStringInfoString(out, ": <bdi>");
		evbus_html_text(out, reason ? reason : "");
		appendStringInfoString(out, "</bdi><p class=\"hint\">");
		evbus_html_text(out, hint ? hint : "");
		appendStringInfoString(out, "</p></li>\n");
	}
	appendStringInfoString(out, "</ul>");
	evbus_report_more(report, Min(critical + warn, report->max_rows), critical + warn, "findings");
	appendStringInfoString(out, "</section>\n");
}

/* ------------------------------------------------------------------ the last hour */

static void
put_tile(StringInfo out, const char *name, const char *value, const char *unit)
{
	appendStringInfo(out, "<div><dt>%s</dt><dd>%s <small>%s</small></dd></div>\n", name, value, unit);
}

static void
put_tiles(EvbusReport *report)
{
	StringInfo	out = report->out;
	const char *per = psprintf("/%s", report->per);

	evbus_report_query(report, "SELECT b.published, s.done, s.lag, s.in_flight, s.retries, (SELECT coalesce(sum(dead_letters), 0)::float8 FROM evbus.dead_letter_total)"
					   " FROM (SELECT coalesce(sum(published_per_second), 0) AS published FROM evbus.stat_bus) b,"
					   " (SELECT coalesce(sum(x.done_per_second), 0) AS done, CASE WHEN NOT coalesce(bool_or(x.lag IS NULL), false) THEN coalesce(sum(x.lag), 0)::float8 END AS lag,"
					   " CASE WHEN NOT coalesce(bool_or(x.in_flight IS NULL), false) THEN coalesce(sum(x.in_flight), 0)::float8 END AS in_flight,"
					   "  coalesce(sum(g.retries), 0)::float8 AS retries FROM evbus.stat_subscription x JOIN evbus.subscription_lag g USING (subscription)) s");
	appendStringInfoString(out, "<dl class=\"tiles\">\n");
	put_tile(out, "Published", evbus_html_number(EVBUS_NUMBER_RATE, evbus_report_number(0, 1) * report->seconds), per);
	put_tile(out, "Done", evbus_html_number(EVBUS_NUMBER_RATE, evbus_report_number(0, 2) * report->seconds), per);
	put_tile(out, "Lag", evbus_html_number(EVBUS_NUMBER_COUNT, evbus_report_number(0, 3)), "");
	put_tile(out, "In flight", evbus_html_number(EVBUS_NUMBER_COUNT, evbus_report_number(0, 4)), "");
	put_tile(out, "Wait for a retry", evbus_html_number(EVBUS_NUMBER_COUNT, evbus_report_number(0, 5)), "");
	put_tile(out, "Dead letters", evbus_html_number(EVBUS_NUMBER_COUNT, evbus_report_number(0, 6)), "");
	appendStringInfoString(out, "</dl>\n");
}

/*
 * Row 0: all buses and subscriptions together; then the subscriptions with the highest lags, and as the last
 * one the others together, those that had none among them.  By minutes: labels, published, done, failed, lag.
 */
#define SQL_MINUTES \
	"WITH m AS MATERIALIZED (SELECT * FROM evbus.stat_minutes)," \
	" place AS (SELECT subscription, CASE WHEN max(lag) > 0 THEN least(row_number() OVER (ORDER BY max(lag) DESC NULLS LAST, subscription), 6) ELSE 6 END AS n" \
	"  FROM m WHERE subscription IS NOT NULL GROUP BY subscription)," \
	" cell AS (SELECT 0 AS n, minute, NULL AS name, 0 AS subs, sum(events) FILTER (WHERE subscription IS NULL) AS published, sum(done) AS done," \
	"   sum(failed) FILTER (WHERE subscription IS NOT NULL) AS failed, sum(lag) AS lag FROM m GROUP BY minute" \
	"  UNION ALL SELECT p.n, m.minute, min(m.subscription), count(*), NULL, NULL, NULL, sum(m.lag) FROM m JOIN place p USING (subscription) GROUP BY p.n, m.minute)" \
	"SELECT CASE WHEN max(subs) > 1 THEN format('%s%s together', max(subs), CASE WHEN count(*) OVER () > 2 THEN ' others' END) ELSE min(name) END, (max(subs) > 1)::integer::float8," \
	" array_agg(to_char(minute, 'HH24:MI') ORDER BY minute), array_agg(coalesce(published, 0)::float8 ORDER BY minute), array_agg(coalesce(done, 0)::float8 ORDER BY minute)," \
	" array_agg(coalesce(failed, 0)::float8 ORDER BY minute), array_agg(lag::float8 ORDER BY minute) " \
	"FROM cell GROUP BY n ORDER BY n"

typedef struct Minutes
{
	int			n;				/* the newest is not over */
	const char **labels;
	double	   *published;
	double	   *done;
	double	   *failed;
	int			n_lags;
	EvbusSeries lags[LINES + 1];
} Minutes;

static void
read_minutes(EvbusReport *report, Minutes *minutes)
{
	uint64		rows = evbus_report_query(report, SQL_MINUTES);

	memset(minutes, 0, sizeof(*minutes));
	if (rows == 0)
		return;
	minutes->n = evbus_report_numbers(0, 4, &minutes->published);
	evbus_report_numbers(0, 5, &minutes->done);
	evbus_report_numbers(0, 6, &minutes->failed);
	{
		bool		isnull;
		Datum	   *labels;
		int			n;

		deconstruct_array(DatumGetArrayTypeP(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 3, &isnull)), TEXTOID, -1, false, TYPALIGN_INT, &labels, NULL, &n);
		minutes->labels = palloc(sizeof(char *) * n);
		for (int i = 0; i < n; i++)
			minutes->labels[i] = TextDatumGetCString(labels[i]);
	}
	for (uint64 row = 1; row < rows; row++)
	{
		EvbusSeries *lag = &minutes->lags[minutes->n_lags];
		double	   *values;

		/* All rows are of the same minutes. */
		if (evbus_report_numbers(row, 7, &values) != minutes->n)
			elog(ERROR, "evbus.stat_minutes has not the same minutes for all");
		lag->name = evbus_report_string(row, 1);
		lag->aside = evbus_report_number(row, 2) != 0;
		lag->values = values;
		minutes->n_lags++;
	}
}

/* A system with less than an event a second is told by the minute. */
static void
choose_unit(EvbusReport *report, const Minutes *minutes)
{
	double		most = 0;

	for (int i = 0; i < minutes->n; i++)
		most = Max(most, Max(minutes->published[i], minutes->done[i]));
	report->per = most < 60 ? "min" : "s";
	report->seconds = most < 60 ? 60 : 1;
	for (int i = 0; i < minutes->n; i++)
	{
		minutes->published[i] *= report->seconds / 60;
		minutes->done[i] *= report->seconds / 60;
		minutes->failed[i] *= report->seconds / 60;
	}
}

static void
put_hour(EvbusReport *report, const Minutes *minutes)
{
	EvbusChart	rates = {.title = "Throughput", .unit = psprintf("events/%s", report->per), .kind = EVBUS_NUMBER_RATE, .head = "Minute from", .area = true,
		.empty = "Nothing to draw yet: two minutes have to be over.",
		.note = "Each minute on its own, as <code>evbus.stat_minutes</code> counts it; the one under way is left out. An event counts as done once for each subscription.",
	.n = minutes->n - 1, .labels = minutes->labels, .label_every = 15, .n_series = 3};
	EvbusChart	lags = {.title = "Lag", .unit = "positions not settled", .kind = EVBUS_NUMBER_COUNT, .head = "Minute from",
		.empty = minutes->n_lags == 0 ? "There is no subscription yet." : "Nothing to draw yet: a minute has to be over.",
		.note = "As the maintainer noted it, every ten seconds, last in each minute. The subscriptions that were furthest behind, and the others together.",
	.n = minutes->n, .labels = minutes->labels, .label_every = 15, .n_series = minutes->n_lags};

	rates.series[0] = (EvbusSeries) {.name = "published", .values = minutes->published};
	rates.series[1] = (EvbusSeries) {.name = "done", .values = minutes->done};
	rates.series[2] = (EvbusSeries) {.name = "failed", .values = minutes->failed};
	memcpy(lags.series, minutes->lags, sizeof(minutes->lags));
	appendStringInfoString(report->out, "<h2>The last hour</h2>\n<div class=\"grid2\">\n");
	evbus_chart(report->out, &rates);
	evbus_chart(report->out, &lags);
	appendStringInfoString(report->out, "</div>\n");
}

/* --------------------------------------------------------------- subscriptions */

static void
put_subscriptions(EvbusReport *report)
{
	static const EvbusColumn columns[] = {{"Subscription", EVBUS_CELL_NAME}, {"State", EVBUS_CELL_LEVEL}, {"Lag", EVBUS_CELL_COUNT}, {"Lag, last hour", EVBUS_CELL_SPARK},
	{"Oldest waits", EVBUS_CELL_SECONDS}, {"In flight", EVBUS_CELL_COUNT}, {"Retries", EVBUS_CELL_COUNT}, {"Done/%s", EVBUS_CELL_RATE}, {"Failed, 1 h", EVBUS_CELL_SHARE}, {"Dead letters", EVBUS_CELL_COUNT}};

	appendStringInfoString(report->out, "<h2>Subscriptions</h2>\n");
	evbus_report_table(report, "subscriptions", columns, lengthof(columns),
					   "WITH found AS (SELECT f.subject, (array_agg(f.level ORDER BY f.level))[1] AS level, string_agg(f.\"check\", ', ' ORDER BY f.level, f.\"check\") AS checks"
					   "  FROM unnest($2, $3, $4) AS f(level, \"check\", subject)"
					   "  WHERE f.\"check\" IN ('oldest event', 'nothing done', 'paused', 'circuit breaker', 'failures', 'dead letters') GROUP BY f.subject),"
					   " spark AS (SELECT m.subscription, array_agg(m.lag::float8 ORDER BY m.minute) AS lags FROM evbus.stat_minutes m WHERE m.subscription IS NOT NULL GROUP BY m.subscription)"
					   "SELECT s.subscription, 'on ' || s.bus, coalesce(f.level, CASE WHEN g.paused THEN 'paused' ELSE 'ok' END), coalesce(f.checks, g.paused_reason),"
					   " s.lag::float8, k.lags, extract(epoch FROM s.oldest_age)::float8, s.in_flight::float8, g.retries::float8, s.done_per_second, w.failure_share,"
					   " coalesce(d.dead_letters, 0)::float8, (count(*) OVER ())::float8 "
					   "FROM evbus.stat_subscription s JOIN evbus.subscription_lag g USING (subscription)"
					   " LEFT JOIN evbus.stat_subscription_window w ON w.subscription = s.subscription AND w.\"window\" = '1 hour'"
					   " LEFT JOIN evbus.dead_letter_total d ON d.bus = s.bus AND d.subscription = s.subscription"
					   " LEFT JOIN found f ON f.subject = s.subscription LEFT JOIN spark k ON k.subscription = s.subscription "
					   "ORDER BY f.level NULLS LAST, s.lag DESC NULLS LAST, s.done DESC, s.subscription LIMIT $1",
					   "There is no subscription yet: <code>evbus.subscribe()</code> makes one.",
					   "The worst first, then those with the most lag. Done is of the last minute; an oldest event of an hour may be older.");
}

static void
put_latency(EvbusReport *report)
{
	static const EvbusColumn columns[] = {{"Subscription", EVBUS_CELL_NAME}, {"p50 to p99", EVBUS_CELL_RANGE}, {"p50", EVBUS_CELL_SECONDS}, {"p95", EVBUS_CELL_SECONDS}, {"p99", EVBUS_CELL_SECONDS},
	{"p95, last minute", EVBUS_CELL_SECONDS}, {"Handler p50", EVBUS_CELL_SECONDS}, {"Handler p95", EVBUS_CELL_SECONDS}, {"Handler p99", EVBUS_CELL_SECONDS}};

	appendStringInfoString(report->out, "<h2>Latency</h2>\n");
	evbus_report_table(report, "subscriptions", columns, lengthof(columns),
					   "SELECT h.subscription, 'on ' || h.bus, ARRAY[extract(epoch FROM h.latency_p50)::float8, extract(epoch FROM h.latency_p95)::float8, extract(epoch FROM h.latency_p99)::float8],"
					   " extract(epoch FROM h.latency_p50)::float8, extract(epoch FROM h.latency_p95)::float8, extract(epoch FROM h.latency_p99)::float8, extract(epoch FROM m.latency_p95)::float8,"
					   " extract(epoch FROM h.handler_p50)::float8, extract(epoch FROM h.handler_p95)::float8, extract(epoch FROM h.handler_p99)::float8, (count(*) OVER ())::float8 "
					   "FROM evbus.stat_subscription_window h JOIN evbus.stat_subscription_window m ON m.subscription = h.subscription AND m.\"window\" = '1 minute' "
					   "WHERE h.\"window\" = '1 hour' AND h.latency_p50 IS NOT NULL ORDER BY h.latency_p99 DESC, h.subscription LIMIT $1",
					   "Nothing was delivered for the first time in the last hour.",
					   "From <code>publish()</code> to the first delivery, of the last hour; the slowest first, on a logarithmic axis. Right to an eighth. A handler&#8217;s time is of a call; clients have none.");
}

/* ----------------------------------------------------------------- dead letters */

static void
put_dead_letters(EvbusReport *report)
{
	static const EvbusColumn columns[] = {{"Type", EVBUS_CELL_NAME}, {"Error", EVBUS_CELL_TEXT}, {"Reason", EVBUS_CELL_TEXT}, {"", EVBUS_CELL_BAR}, {"There now", EVBUS_CELL_COUNT}, {"Died, 24 h", EVBUS_CELL_COUNT},
	{"Died last", EVBUS_CELL_TEXT}};
	EvbusChart	chart = {.title = "Died in the last 24 hours", .unit = "dead letters", .kind = EVBUS_NUMBER_COUNT, .columns = true, .head = "Hour from", .empty = "", .label_every = 6, .n_series = 2};
	double		died = 0;

	chart.n = (int) evbus_report_query(report, "SELECT to_char(h.hour, 'HH24:MI'), coalesce(sum(t.dead_letters), 0)::float8, coalesce(sum(t.died - t.dead_letters), 0)::float8, coalesce(sum(t.died), 0)::float8 "
									   "FROM generate_series(date_trunc('hour', statement_timestamp(), 'UTC') - interval '23 hours', date_trunc('hour', statement_timestamp(), 'UTC'), '1 hour') AS h(hour)"
									   " LEFT JOIN evbus.dead_letter_trend t USING (hour) GROUP BY h.hour ORDER BY h.hour");
	{
		const char **labels = palloc(sizeof(char *) * chart.n);
		double	   *left = palloc(sizeof(double) * chart.n);
		double	   *gone = palloc(sizeof(double) * chart.n);

		for (int i = 0; i < chart.n; i++)
		{
			labels[i] = evbus_report_string(i, 1);
			left[i] = evbus_report_number(i, 2);
			gone[i] = evbus_report_number(i, 3);
			died += evbus_report_number(i, 4);
		}
		chart.labels = labels;
		chart.series[0] = (EvbusSeries) {.name = "still there", .values = left};
		chart.series[1] = (EvbusSeries) {.name = "redriven or discarded since", .values = gone};
	}
	appendStringInfoString(report->out, "<h2>Dead letters</h2>\n");
	if (died > 0)
	{
		evbus_chart(report->out, &chart);
		appendStringInfoString(report->out, "<div class=\"gap\"></div>");
	}
	evbus_report_table(report, "types and errors", columns, lengthof(columns),
					   "SELECT t.type, t.subscription || ' on ' || t.bus, t.sqlstate, t.reason, t.there / nullif(max(t.there) OVER (), 0), t.there, t.died, to_char(t.hour, 'YYYY-MM-DD HH24:MI'), (count(*) OVER ())::float8 "
					   "FROM (SELECT bus, subscription, type, sqlstate, reason, sum(dead_letters)::float8 AS there, max(hour) AS hour,"
					   "  coalesce(sum(died) FILTER (WHERE hour >= date_trunc('hour', statement_timestamp(), 'UTC') - interval '23 hours'), 0)::float8 AS died"
					   "  FROM evbus.dead_letter_trend GROUP BY bus, subscription, type, sqlstate, reason) t "
					   "WHERE t.there > 0 OR t.died > 0 ORDER BY t.there DESC, t.died DESC, t.bus, t.subscription, t.type, t.sqlstate, t.reason LIMIT $1",
					   "There are none, and none were made in the last 24 hours.",
					   "By type and SQLSTATE, in whole hours; the last one begins at the time told. <code>evbus.dead_letter_top()</code> has the last error texts, <code>evbus.redrive()</code> tries them again.");
}

/* Only when it is asked for. */
static void
put_payloads(EvbusReport *report)
{
	static const EvbusColumn columns[] = {{"Type", EVBUS_CELL_NAME}, {"Died", EVBUS_CELL_TEXT}, {"Error", EVBUS_CELL_TEXT}, {"Message", EVBUS_CELL_TEXT}, {"Key", EVBUS_CELL_TEXT}, {"Payload", EVBUS_CELL_CODE}};

	appendStringInfoString(report->out, "<h2>The newest dead letters, with what they hold</h2>\n");
	evbus_report_table(report, "dead letters", columns, lengthof(columns),
					   "SELECT d.type, d.subscription || ' on ' || d.bus, to_char(d.dead_at, 'YYYY-MM-DD HH24:MI:SS'), d.sqlstate, d.message, d.key,"
					   " CASE WHEN length(d.text) > 500 THEN format('%s ... and %s characters more', left(d.text, 500), length(d.text) - 500) ELSE d.text END,"
					   " (SELECT sum(t.dead_letters)::float8 FROM evbus.dead_letter_total t) "
					   "FROM (SELECT x.*, x.payload::text AS text FROM evbus.dead_letter x ORDER BY x.dead_letter_id DESC LIMIT $1) d ORDER BY d.dead_letter_id DESC",
					   "There are none.", NULL);
}

static void
put_audit(EvbusReport *report)
{
	static const EvbusColumn columns[] = {{"Action", EVBUS_CELL_NAME}, {"When", EVBUS_CELL_TEXT}, {"Of", EVBUS_CELL_TEXT}, {"Role", EVBUS_CELL_TEXT}, {"Session user", EVBUS_CELL_TEXT}};

	appendStringInfoString(report->out, "<h2>Who did what</h2>\n");
	evbus_report_table(report, "acts", columns, lengthof(columns),
					   "SELECT a.action, NULL::text, to_char(a.at, 'YYYY-MM-DD HH24:MI:SS'), concat_ws(' ', a.kind, a.object), a.role, a.login, (count(*) OVER ())::float8 "
					   "FROM evbus.audit a WHERE a.audit_id >= evbus._time_event(statement_timestamp() - interval '1 day') ORDER BY a.audit_id DESC LIMIT $1",
					   "Nobody has administered the bus in the last 24 hours, and nobody was refused.",
					   "Of the last 24 hours, the newest first. <code>evbus.audit</code> has all, with the arguments and what was changed.");
}

/* ----------------------------------------------------------- buses and the machine */

static void
put_buses(EvbusReport *report)
{
	static const EvbusColumn columns[] = {{"Bus", EVBUS_CELL_NAME}, {"Published, last hour", EVBUS_CELL_SPARK}, {"/%s, 1 min", EVBUS_CELL_RATE}, {"/%s, 5 min", EVBUS_CELL_RATE}, {"/%s, 1 h", EVBUS_CELL_RATE},
	{"Bytes/s", EVBUS_CELL_BYTES}, {"Published", EVBUS_CELL_COUNT}, {"Refused", EVBUS_CELL_COUNT}, {"Waited", EVBUS_CELL_COUNT}, {"Quiet for", EVBUS_CELL_SECONDS}};
	static const EvbusColumn types[] = {{"Type", EVBUS_CELL_NAME}, {"/%s, 1 min", EVBUS_CELL_RATE}, {"/%s, 5 min", EVBUS_CELL_RATE}, {"/%s, 1 h", EVBUS_CELL_RATE}, {"Published", EVBUS_CELL_COUNT}, {"Failed", EVBUS_CELL_COUNT},
	{"Dead", EVBUS_CELL_COUNT}};

	appendStringInfoString(report->out, "<h2>Buses</h2>\n");
	evbus_report_table(report, "buses", columns, lengthof(columns),
					   "SELECT b.bus, concat_ws(', ', l.durability, CASE WHEN l.paused THEN 'paused' END, format('%s subscription%s', l.subscriptions, CASE WHEN l.subscriptions <> 1 THEN 's' END)), m.events,"
					   " b.published_per_second, b.published_per_second_5m, b.published_per_second_1h, b.bytes_per_second, b.published::float8, b.rejected::float8, b.waits::float8,"
					   " CASE WHEN b.last_published_at IS NOT NULL THEN greatest(extract(epoch FROM statement_timestamp() - b.last_published_at), 0)::float8 END, (count(*) OVER ())::float8 "
					   "FROM evbus.stat_bus b JOIN evbus.bus_list l USING (bus)"
					   " LEFT JOIN (SELECT bus, (array_agg(events::float8 ORDER BY minute))[1:count(*) - 1] AS events FROM evbus.stat_minutes WHERE subscription IS NULL GROUP BY bus) m USING (bus) "
					   "ORDER BY b.published_per_second_1h DESC, b.published DESC, b.bus LIMIT $1",
					   "There is no bus yet: <code>evbus.create_bus()</code> makes one.", NULL);
	appendStringInfoString(report->out, "<h2>Event types</h2>\n");
	evbus_report_table(report, "types", types, lengthof(types),
					   "SELECT coalesce(t.type, 'all other types'), 'on ' || t.bus, t.published_per_second, t.published_per_second_5m, t.published_per_second_1h, t.published::float8, t.failed::float8,"
					   " t.dead_lettered::float8, (count(*) OVER ())::float8 "
					   "FROM evbus.stat_type t WHERE t.published > 0 OR t.failed > 0 ORDER BY t.published_per_second_1h DESC, t.published DESC, t.bus, t.type LIMIT $1",
					   "Nothing was published yet.",
					   "The busiest of the last hour first. Totals are since counting began.");
}

static void
put_machine(EvbusReport *report)
{
	static const EvbusColumn workers[] = {{"Process", EVBUS_CELL_NAME}, {"State", EVBUS_CELL_TEXT}, {"For", EVBUS_CELL_SECONDS}, {"Batches", EVBUS_CELL_COUNT}, {"Memory", EVBUS_CELL_BYTES}, {"At most", EVBUS_CELL_BYTES}};
	static const EvbusColumn areas[] = {{"Area", EVBUS_CELL_NAME}, {"State", EVBUS_CELL_LEVEL}, {"In use", EVBUS_CELL_BAR}, {"Share", EVBUS_CELL_SHARE}, {"Used", EVBUS_CELL_COUNT}, {"At most", EVBUS_CELL_COUNT},
	{"Limit", EVBUS_CELL_COUNT}};
	static const EvbusColumn disk[] = {{"Partitions", EVBUS_CELL_NAME}, {"Size", EVBUS_CELL_BYTES}, {"Number", EVBUS_CELL_COUNT}, {"From", EVBUS_CELL_TEXT}, {"Made until", EVBUS_CELL_TEXT}, {"Kept for", EVBUS_CELL_TEXT}};

	appendStringInfoString(report->out, "<h2>Processes, memory and disk</h2>\n<div class=\"grid2\">\n");
	evbus_report_table(report, "areas", areas, lengthof(areas),
					   "SELECT m.area || coalesce(' of ' || m.\"of\", ''), CASE WHEN m.unit = 'bytes' THEN 'bytes' END, m.level, NULL::text, m.share, m.share, m.used::float8, m.high_water::float8, m.\"limit\"::float8, (count(*) OVER ())::float8 "
					   "FROM evbus.stat_memory m WHERE m.\"limit\" IS NOT NULL ORDER BY array_position(ARRAY['critical', 'warn', 'ok'], m.level), m.share DESC NULLS LAST, m.area, m.\"of\" LIMIT $1", "", NULL);
	appendStringInfoString(report->out, "<div class=\"stack\">");
	evbus_report_table(report, "processes", workers, lengthof(workers),
					   "SELECT w.kind, coalesce('serves ' || w.subscription, 'pid ' || w.pid), w.state, extract(epoch FROM statement_timestamp() - w.since)::float8, w.batches::float8, w.memory_bytes::float8,"
					   " w.memory_high_water::float8, (count(*) OVER ())::float8 "
					   "FROM evbus.stat_worker w WHERE w.database IS NULL OR w.database = current_database() "
					   "ORDER BY array_position(ARRAY['launcher', 'sequencer', 'maintainer', 'scheduler', 'indexer', 'handler'], w.kind), w.started_at LIMIT $1",
					   "No process of evbus runs.", NULL);
	evbus_report_table(report, "kinds of partitions", disk, lengthof(disk),
					   "SELECT u.kind, 'of ' || array_to_string(u.buses, ', '), u.bytes::float8, u.leaves::float8, to_char(u.oldest_leaf, 'YYYY-MM-DD HH24:MI'), to_char(u.made_until, 'YYYY-MM-DD HH24:MI'),"
					   " coalesce(u.retention::text, 'as long as events') || coalesce(' or ' || pg_size_pretty(u.retention_bytes), ''), (count(*) OVER ())::float8 "
					   "FROM evbus.stat_upkeep u ORDER BY u.bytes DESC NULLS LAST, u.kind, u.storage_class_id LIMIT $1", "", NULL);
	appendStringInfoString(report->out, "</div></div>\n");
}

/* -------------------------------------------------------------------- the page */

static char *
title_arg(FunctionCallInfo fcinfo)
{
	char	   *title;

	if (PG_ARGISNULL(0))
		return psprintf("evbus: %s", get_database_name(MyDatabaseId));
	title = text_to_cstring(PG_GETARG_TEXT_PP(0));
	if (title[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("title must not be empty"),
				 errhint("Leave it out, or pass NULL, for the name of the database.")));
	if (strlen(title) > TITLE_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("title is too long"),
				 errdetail("It has %zu bytes; the limit is %d.", strlen(title), TITLE_MAX)));
	return title;
}

/*
 * evbus.report_html(title text, max_rows integer, payloads boolean) returns text
 *
 * How the buses and subscriptions of this database do, as a page of HTML that stands alone: no script, and nothing
 * that is loaded.  title: 1 to 255 bytes, NULL: the name of the database.  max_rows: 1 to 1000, of each table; what is
 * left out is counted there.  payloads: the newest dead letters with key, error text and payload as well.
 * All ASCII, whatever the encoding.  It changes nothing, and is of this moment.
 * Errors: 22004, 22023 title or max_rows out of bounds, 42501, VB009, XX001 a payload is damaged.
 * Privileges: EXECUTE, and SELECT on the views it reads; both pg_monitor has.  payloads: SELECT on evbus.dead_letter.
 */
Datum
evbus_report_html(PG_FUNCTION_ARGS)
{
	char	   *title = title_arg(fcinfo);
	StringInfoData page;
	EvbusReport report = {.out = &page, .max_rows = evbus_arg_int(fcinfo, 1, "max_rows", 1, MAX_ROWS)};
	bool		payloads;
	Minutes		minutes;

	evbus_arg_present(fcinfo, 2, "payloads");
	payloads = PG_GETARG_BOOL(2);
	report.levels = report.checks = report.subjects = text_array(NULL, 0);
	initStringInfo(&page);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	evbus_html_head(&page, title);
	put_header(&report, title);
	appendStringInfoString(&page, "<main>\n");
	put_health(&report);
	read_minutes(&report, &minutes);
	choose_unit(&report, &minutes);
	put_tiles(&report);
	put_hour(&report, &minutes);
	put_subscriptions(&report);
	put_latency(&report);
	put_dead_letters(&report);
	if (payloads)
		put_payloads(&report);
	put_buses(&report);
	put_audit(&report);
	put_machine(&report);
	appendStringInfoString(&page, "</main>\n<footer><p>Rates of the tiles are of the last minute. Lag counts positions that are not settled, also of types that a subscription may turn out not to want. "
						   "Counters begin anew when the server starts. Times of day are in the time zone of who made the page.</p>\n<p>");
	appendStringInfoString(&page, payloads ? "This page shows keys, error texts and payloads of events: mind who gets it." : "No payload, header, key or error text of an event is on this page; names of buses, subscriptions and types are.");
	appendStringInfoString(&page, "</p></footer>\n");
	evbus_html_foot(&page);
	SPI_finish();
	PG_RETURN_TEXT_P(cstring_to_text_with_len(page.data, page.len));
}
