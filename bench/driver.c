/*-------------------------------------------------------------------------
 * driver.c
 *	  Client of bench/run: makes one measurement and prints its rate per second.
 *
 *		driver copy ROWS						COPY into bench.plain, a batch a transaction
 *		driver unnest ROWS						INSERT ... SELECT unnest() into bench.plain, likewise
 *		driver batch ROWS BUS					evbus.publish_batch(), likewise
 *		driver insert SECONDS CLIENTS			INSERT into bench.plain, one row a transaction
 *		driver publish SECONDS CLIENTS BUS		evbus.publish(), likewise
 *		driver drain EVENTS SUBSCRIPTION		resume a paused subscription and wait until it has done its backlog
 *		driver follow EVENTS BUS SUBSCRIPTION	publish in batches and wait until a handler has done all
 *		driver receive EVENTS SUBSCRIPTION		receive and ack, two statements a batch
 *
 * All of them send the same events.  What can be made before the clock starts is
 * made then, so the client is no part of what is measured.  The server is found
 * through libpq's environment.
 *-------------------------------------------------------------------------
 */
#include <libpq-fe.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BATCH			1000	/* rows or events in a publishing transaction */
#define RECEIVE_BATCH	100		/* events in a receive() */
#define POLL_MS			50		/* between two looks at the lag */
#define STUCK_S			60		/* a lag that takes longer is an error */
#define MAX_CLIENTS		64
#define TYPE			"order.created"
#define INSERT			"INSERT INTO bench.plain VALUES "

/* ------------------------------------------------------------------- common */

static void __attribute__((noreturn, format(printf, 1, 2)))
fail(const char *format,...)
{
	va_list		args;

	fputs("bench/driver: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void
sleep_ms(int ms)
{
	struct timespec t = {ms / 1000, ms % 1000 * 1000000L};

	nanosleep(&t, NULL);
}

static PGconn *
connect_server(void)
{
	PGconn	   *conn = PQconnectdb("");

	if (PQstatus(conn) != CONNECTION_OK)
		fail("%s", PQerrorMessage(conn));
	return conn;
}

/* The result, which must be of the kind expected. */
static PGresult *
expect(PGconn *conn, PGresult *result, ExecStatusType status)
{
	if (PQresultStatus(result) != status)
		fail("%s", PQerrorMessage(conn));
	return result;
}

static void
command(PGconn *conn, const char *sql)
{
	PQclear(expect(conn, PQexec(conn, sql), PGRES_COMMAND_OK));
}

static void
prepare(PGconn *conn, const char *sql)
{
	PQclear(expect(conn, PQprepare(conn, "", sql, 0, NULL), PGRES_COMMAND_OK));
}

/* One bigint, or missing for NULL; argument may be NULL for a statement without one. */
static int64_t
number(PGconn *conn, const char *sql, const char *argument, int64_t missing)
{
	PGresult   *result = PQexecParams(conn, sql, argument ? 1 : 0, NULL, &argument, NULL, NULL, 0);
	int64_t		value;

	expect(conn, result, PGRES_TUPLES_OK);
	value = PQntuples(result) == 0 || PQgetisnull(result, 0, 0) ? missing : atoll(PQgetvalue(result, 0, 0));
	PQclear(result);
	return value;
}

/* Each measurement begins with the same distance to the next checkpoint. */
static double
start_clock(PGconn *conn)
{
	command(conn, "CHECKPOINT");
	return now();
}

/* ------------------------------------------------------------------- events */

/* A batch of events, and the arrays that hold them as text. */
static char payloads[BATCH][400];
static char *types_array;
static char *payloads_array;

static void
make_events(void)
{
	char	   *type = types_array = malloc(BATCH * (sizeof(TYPE) + 1) + 2);
	char	   *out = payloads_array = malloc(BATCH * sizeof(payloads[0]) * 2);

	for (int i = 0; i < BATCH; i++)
	{
		snprintf(payloads[i], sizeof(payloads[i]),
				 "{\"order_id\": %d, \"customer\": {\"id\": %d, \"name\": \"Customer %d\"}, \"status\": \"created\", "
				 "\"total\": %d.%02d, \"currency\": \"EUR\", \"items\": [{\"sku\": \"A-%05d\", \"n\": %d}, "
				 "{\"sku\": \"B-%05d\", \"n\": %d}], \"note\": \"%s\"}",
				 1000000 + i, 5000 + i * 7 % 4000, 5000 + i * 7 % 4000, 10 + i * 13 % 900, i * 37 % 100,
				 i * 101 % 100000, 1 + i % 5, i * 211 % 100000, 1 + i % 3,
				 i % 2 ? "leave at the door, ring twice" : "no note was left by the buyer");
		type += sprintf(type, "%s" TYPE, i ? "," : "{");
		out += sprintf(out, "%s\"", i ? "," : "{");
		for (const char *c = payloads[i]; *c; c++)
		{
			if (*c == '"')
				*out++ = '\\';
			*out++ = *c;
		}
		*out++ = '"';
	}
	strcpy(type, "}");
	strcpy(out, "}");
}

/* Ids for bench.plain: the client gives them, ascending over all measurements. */
static atomic_llong next_id;

static void
find_next_id(PGconn *conn)
{
	next_id = number(conn, "SELECT max(event_id) FROM bench.plain", NULL, 0) + 1;
}

/* ---------------------------------------------------- publishing in batches */

static double
copy_rows(PGconn *conn, int64_t rows)
{
	char	   *buffer = malloc(BATCH * (sizeof(payloads[0]) + 100));
	char	   *out = buffer;
	char	   *ids[BATCH];
	double		start;

	for (int i = 0; i < BATCH; i++)
	{
		ids[i] = out;
		out += sprintf(out, "%012d\t1\t1\t" TYPE "\t\\N\t\\N\t%s\n", 0, payloads[i]);
	}
	find_next_id(conn);
	start = start_clock(conn);
	for (int64_t done = 0; done < rows; done += BATCH)
	{
		for (int i = 0; i < BATCH; i++)
		{
			char		id[24];

			sprintf(id, "%012lld", next_id++);
			memcpy(ids[i], id, 12);
		}
		PQclear(expect(conn, PQexec(conn, "COPY bench.plain FROM STDIN"), PGRES_COPY_IN));
		if (PQputCopyData(conn, buffer, (int) (out - buffer)) != 1 || PQputCopyEnd(conn, NULL) != 1)
			fail("%s", PQerrorMessage(conn));
		PQclear(expect(conn, PQgetResult(conn), PGRES_COMMAND_OK));
		while (PQgetResult(conn) != NULL)
			;
	}
	return rows / (now() - start);
}

static double
unnest_rows(PGconn *conn, int64_t rows)
{
	double		start;

	find_next_id(conn);
	start = start_clock(conn);
	for (int64_t done = 0; done < rows; done += BATCH)
	{
		char		id[24];
		const char *values[] = {id, types_array, payloads_array};

		sprintf(id, "%lld", next_id - 1);
		next_id += BATCH;
		PQclear(expect(conn, PQexecParams(conn,
										  "INSERT INTO bench.plain SELECT $1::bigint + n, 1, 1, type, NULL, NULL, payload"
										  " FROM unnest($2::text[], $3::jsonb[]) WITH ORDINALITY AS u (type, payload, n)",
										  3, NULL, values, NULL, NULL, 0), PGRES_COMMAND_OK));
	}
	return rows / (now() - start);
}

static void
publish_batches(PGconn *conn, int64_t rows, const char *bus)
{
	const char *values[] = {bus, types_array, payloads_array};

	for (int64_t done = 0; done < rows; done += BATCH)
	{
		PGresult   *result = PQexecParams(conn, "SELECT evbus.publish_batch($1, $2::text[], $3::jsonb[])",
										  3, NULL, values, NULL, NULL, 0);

		if (PQntuples(expect(conn, result, PGRES_TUPLES_OK)) != BATCH)
			fail("publish_batch() returned %d ids", PQntuples(result));
		PQclear(result);
	}
}

static double
batch_rows(PGconn *conn, int64_t rows, const char *bus)
{
	double		start = start_clock(conn);

	publish_batches(conn, rows, bus);
	return rows / (now() - start);
}

/* -------------------------------------------------- publishing one at a time */

static const char *single_bus;	/* NULL: INSERT */
static double single_until;
static pthread_barrier_t single_barrier;
static atomic_llong single_done;

static void *
single_client(void *arg)
{
	PGconn	   *conn = arg;
	int			done = 0;

	if (single_bus)
		prepare(conn, "SELECT evbus.publish($1, $2, $3)");
	else
		prepare(conn, INSERT "($1, 1, 1, $2, NULL, NULL, $3)");
	pthread_barrier_wait(&single_barrier);	/* all are ready */
	pthread_barrier_wait(&single_barrier);	/* the clock runs */
	while (now() < single_until)
	{
		char		id[24];
		const char *values[] = {single_bus ? single_bus : id, TYPE, payloads[done++ % BATCH]};

		if (!single_bus)
			sprintf(id, "%lld", next_id++);
		PQclear(expect(conn, PQexecPrepared(conn, "", 3, values, NULL, NULL, 0),
					   single_bus ? PGRES_TUPLES_OK : PGRES_COMMAND_OK));
	}
	single_done += done;
	return NULL;
}

static double
single_rows(PGconn *conn, double seconds, int clients, const char *bus)
{
	pthread_t	threads[MAX_CLIENTS];
	PGconn	   *conns[MAX_CLIENTS];
	double		start;

	if (clients < 1 || clients > MAX_CLIENTS)
		fail("CLIENTS must be 1 to %d", MAX_CLIENTS);
	single_bus = bus;
	find_next_id(conn);
	pthread_barrier_init(&single_barrier, NULL, clients + 1);
	for (int i = 0; i < clients; i++)
	{
		conns[i] = connect_server();
		if (pthread_create(&threads[i], NULL, single_client, conns[i]) != 0)
			fail("no thread");
	}
	pthread_barrier_wait(&single_barrier);
	start = start_clock(conn);
	single_until = start + seconds;
	pthread_barrier_wait(&single_barrier);
	for (int i = 0; i < clients; i++)
	{
		pthread_join(threads[i], NULL);
		PQfinish(conns[i]);
	}
	return single_done / (now() - start);
}

/* ----------------------------------------------------------------- delivery */

static void
wait_lag(PGconn *conn, const char *subscription, int64_t wanted)
{
	double		deadline = now() + STUCK_S;
	int64_t		lag;

	while ((lag = number(conn, "SELECT lag FROM evbus.subscription_lag WHERE subscription = $1", subscription, -1)) != wanted)
	{
		if (now() > deadline)
			fail("subscription %s has a lag of %lld, not %lld", subscription, (long long) lag, (long long) wanted);
		sleep_ms(POLL_MS);
	}
}

/* What failed would be fast, and no measurement. */
static void
check_clean(PGconn *conn)
{
	if (number(conn, "SELECT (SELECT count(*) FROM evbus.retry_list) + (SELECT count(*) FROM evbus.dead_letter)", NULL, 0) != 0)
		fail("handlers have failed: %s", PQgetvalue(PQexec(conn, "SELECT max(message) FROM"
														   " (SELECT message FROM evbus.retry_list UNION ALL"
														   " SELECT message FROM evbus.dead_letter) m"), 0, 0));
}

static double
drain(PGconn *conn, int64_t events, const char *subscription)
{
	double		start;
	double		end;

	wait_lag(conn, subscription, events);
	start = start_clock(conn);
	(void) number(conn, "SELECT evbus.resume($1)", subscription, 0);
	wait_lag(conn, subscription, 0);
	end = now();
	(void) number(conn, "SELECT evbus.pause($1)", subscription, 0);
	check_clean(conn);
	return events / (end - start);
}

static double
follow(PGconn *conn, int64_t events, const char *bus, const char *subscription)
{
	double		start = start_clock(conn);
	double		end;

	publish_batches(conn, events, bus);
	wait_lag(conn, subscription, 0);
	end = now();
	check_clean(conn);
	return events / (end - start);
}

static double
receive(PGconn *conn, int64_t events, const char *subscription)
{
	char		size[12];
	const char *receive_values[] = {subscription, size};
	char	   *receipts = malloc(RECEIVE_BATCH * 200);
	const char *ack_values[] = {receipts};
	double		start;

	snprintf(size, sizeof(size), "%d", RECEIVE_BATCH);
	PQclear(expect(conn, PQprepare(conn, "receive", "SELECT * FROM evbus.receive($1, $2)", 0, NULL), PGRES_COMMAND_OK));
	PQclear(expect(conn, PQprepare(conn, "ack", "SELECT evbus.ack($1)", 0, NULL), PGRES_COMMAND_OK));
	wait_lag(conn, subscription, events);
	start = start_clock(conn);
	for (int64_t done = 0; done < events;)
	{
		PGresult   *result = PQexecPrepared(conn, "receive", 2, receive_values, NULL, NULL, 0);
		int			n = PQntuples(expect(conn, result, PGRES_TUPLES_OK));
		char	   *out = receipts;

		if (n == 0)
			fail("nothing to receive from %s after %lld events", subscription, (long long) done);
		for (int i = 0; i < n; i++)
			out += sprintf(out, "%s%.190s", i ? "," : "{", PQgetvalue(result, i, 0));
		strcpy(out, "}");
		PQclear(result);

		result = expect(conn, PQexecPrepared(conn, "ack", 1, ack_values, NULL, NULL, 0), PGRES_TUPLES_OK);
		if (atoi(PQgetvalue(result, 0, 0)) != n)
			fail("%s of %d receipts were good", PQgetvalue(result, 0, 0), n);
		PQclear(result);
		done += n;
	}
	return events / (now() - start);
}

int
main(int argc, char **argv)
{
	const char *what = argc > 2 ? argv[1] : "";
	double		size = argc > 2 ? atof(argv[2]) : 0;
	PGconn	   *conn;
	double		rate;

	make_events();
	if (size <= 0)
		fail("see the top of bench/driver.c");
	conn = connect_server();
	if (strcmp(what, "copy") == 0 && argc == 3)
		rate = copy_rows(conn, (int64_t) size);
	else if (strcmp(what, "unnest") == 0 && argc == 3)
		rate = unnest_rows(conn, (int64_t) size);
	else if (strcmp(what, "batch") == 0 && argc == 4)
		rate = batch_rows(conn, (int64_t) size, argv[3]);
	else if (strcmp(what, "insert") == 0 && argc == 4)
		rate = single_rows(conn, size, atoi(argv[3]), NULL);
	else if (strcmp(what, "publish") == 0 && argc == 5)
		rate = single_rows(conn, size, atoi(argv[3]), argv[4]);
	else if (strcmp(what, "drain") == 0 && argc == 4)
		rate = drain(conn, (int64_t) size, argv[3]);
	else if (strcmp(what, "follow") == 0 && argc == 5)
		rate = follow(conn, (int64_t) size, argv[3], argv[4]);
	else if (strcmp(what, "receive") == 0 && argc == 4)
		rate = receive(conn, (int64_t) size, argv[3]);
	else
		fail("see the top of bench/driver.c");
	printf("%.1f\n", rate);
	PQfinish(conn);
	return 0;
}
