/*-------------------------------------------------------------------------
 * pgmq.c
 *	  Driver of pgmq, a queue of SQL functions.  What is fair is told in bench/server/README.md.
 *
 *		driver-pgmq reset							the queue anew and empty
 *		driver-pgmq publish --clients N --seconds S	pgmq.send(), one a transaction
 *		driver-pgmq publish --batch B --events E	pgmq.send_batch()
 *		driver-pgmq fill --events E					a backlog for receive
 *		driver-pgmq receive --batch B --events E --clients N	pgmq.read() and pgmq.delete(), each a transaction
 *		driver-pgmq receive --by pop --events E --clients N		pgmq.pop(): read and delete of one message in one call
 *
 * --name is the queue, "bench" if not given.
 *-------------------------------------------------------------------------
 */
#include "pg.h"

#define VISIBILITY "30"			/* seconds until a message that was read and not deleted comes again */

static const char *queue;
static const char *batch_payloads;
static atomic_llong seen;		/* events the server has confirmed */

static void
reset(PGconn *conn)
{
	(void) number(conn, "SELECT pgmq.drop_queue(queue_name)::int FROM pgmq.meta WHERE queue_name = $1", queue, 0);
	PQclear(expect(conn, PQexecParams(conn, "SELECT pgmq.create($1)", 1, NULL, &queue, NULL, NULL, 0), PGRES_TUPLES_OK));
}

/* Messages ever sent, and those that are there. */
static int64_t
total(PGconn *conn)
{
	return number(conn, "SELECT pg_sequence_last_value(pg_get_serial_sequence('pgmq.q_' || $1, 'msg_id'))", queue, 0);
}

static int64_t
length(PGconn *conn)
{
	return number(conn, "SELECT queue_length FROM pgmq.metrics($1)", queue, -1);
}

/* ------------------------------------------------------------------ publish */

static void *
open_publisher(int client)
{
	PGconn	   *conn = connect_server();

	(void) client;
	prepare(conn, "one", "SELECT pgmq.send($1, $2::jsonb)");
	prepare(conn, "batch", "SELECT pgmq.send_batch($1, $2::jsonb[])");
	return conn;
}

static int
send_one(void *client, int wanted)
{
	static _Thread_local int next;
	PGconn	   *conn = client;
	const char *values[] = {queue, payloads[next++ % MAX_BATCH]};
	PGresult   *result = expect(conn, PQexecPrepared(conn, "one", 2, values, NULL, NULL, 0), PGRES_TUPLES_OK);

	if (PQntuples(result) != 1)
		fail("send() returned %d ids", PQntuples(result));
	PQclear(result);
	seen += wanted;
	return wanted;
}

static int
send_batch(void *client, int wanted)
{
	PGconn	   *conn = client;
	const char *values[] = {queue, wanted == options.batch ? batch_payloads : payloads_array(wanted)};
	PGresult   *result = expect(conn, PQexecPrepared(conn, "batch", 2, values, NULL, NULL, 0), PGRES_TUPLES_OK);

	if (PQntuples(result) != wanted)
		fail("send_batch() returned %d ids, not %d", PQntuples(result), wanted);
	PQclear(result);
	seen += wanted;
	return wanted;
}

static void
publish(void)
{
	PGconn	   *conn = connect_server();
	int64_t		before = total(conn);

	batch_payloads = payloads_array(options.batch);
	run_workload(&(Workload) {.open = open_publisher, .step = options.batch == 1 ? send_one : send_batch, .close = close_server});
	if (total(conn) - before != seen)
		fail("the queue has %lld messages more, not %lld", (long long) (total(conn) - before), (long long) seen);
	PQfinish(conn);
}

static void
fill(PGconn *conn)
{
	char		vacuum[100];

	command(conn, "SET synchronous_commit = off");
	reset(conn);
	options.batch = MAX_BATCH;
	batch_payloads = payloads_array(MAX_BATCH);
	prepare(conn, "batch", "SELECT pgmq.send_batch($1, $2::jsonb[])");
	for (int64_t left = options.events; left > 0; left -= MAX_BATCH)
		(void) send_batch(conn, left < MAX_BATCH ? (int) left : MAX_BATCH);
	/* As autovacuum would within a minute, so that no plan is a guess. */
	snprintf(vacuum, sizeof(vacuum), "VACUUM ANALYZE pgmq.\"q_%s\"", queue);
	command(conn, vacuum);
}

/* ------------------------------------------------------------------ receive */

static void *
open_reader(int client)
{
	PGconn	   *conn = connect_server();

	(void) client;
	prepare(conn, "read", "SELECT msg_id, message FROM pgmq.read($1, " VISIBILITY ", $2)");
	prepare(conn, "delete", "SELECT pgmq.delete($1, $2::bigint)");
	prepare(conn, "deletes", "SELECT pgmq.delete($1, $2::bigint[])");
	prepare(conn, "pop", "SELECT msg_id, message FROM pgmq.pop($1)");
	return conn;
}

/* The messages of a result of read or pop; their ids as an array, or as one number. */
static int
take(PGresult *result, char *ids)
{
	int			n = PQntuples(result);

	for (int i = 0; i < n; i++)
	{
		if (PQgetvalue(result, i, 1)[0] != '{')
			fail("a message of pgmq holds \"%s\"", PQgetvalue(result, i, 1));
		ids += sprintf(ids, "%s%.20s", options.batch == 1 ? "" : i ? "," : "{", PQgetvalue(result, i, 0));
	}
	if (options.batch > 1)
		strcpy(ids, "}");
	return n;
}

static int
read_delete(void *client, int wanted)
{
	PGconn	   *conn = client;
	char		quantity[12];
	char		ids[MAX_BATCH * 22 + 3];
	const char *read_values[] = {queue, quantity};
	const char *delete_values[] = {queue, ids};
	PGresult   *result;
	int			n;

	snprintf(quantity, sizeof(quantity), "%d", wanted);
	result = expect(conn, PQexecPrepared(conn, "read", 2, read_values, NULL, NULL, 0), PGRES_TUPLES_OK);
	n = take(result, ids);
	PQclear(result);
	if (n == 0)
		return 0;
	result = expect(conn, PQexecPrepared(conn, options.batch == 1 ? "delete" : "deletes", 2, delete_values, NULL, NULL, 0),
					PGRES_TUPLES_OK);
	if (PQntuples(result) != n || PQgetvalue(result, 0, 0)[0] == 'f')
		fail("%d of %d messages were deleted", PQntuples(result), n);
	PQclear(result);
	return n;
}

static int
pop(void *client, int wanted)
{
	PGconn	   *conn = client;
	char		id[24];
	PGresult   *result = expect(conn, PQexecPrepared(conn, "pop", 1, &queue, NULL, NULL, 0), PGRES_TUPLES_OK);
	int			n = take(result, id);

	if (n > wanted)
		fail("pop() returned %d messages", n);
	PQclear(result);
	return n;
}

static void
receive(int (*step) (void *client, int wanted))
{
	PGconn	   *conn = connect_server();
	int64_t		before = length(conn);

	if (options.events <= 0 || before < options.events)
		fail("%lld messages are there: call driver-pgmq fill --events E first", (long long) before);
	run_workload(&(Workload) {.open = open_reader, .step = step, .close = close_server});
	if (before - length(conn) != options.events)
		fail("the queue has %lld messages less, not %lld", (long long) (before - length(conn)), (long long) options.events);
	PQfinish(conn);
}

int
main(int argc, char **argv)
{
	PGconn	   *conn;

	parse_options(argc, argv);
	queue = options.name ? options.name : "bench";
	if (operation_is("publish"))
		publish();
	else if (operation_is("receive"))
	{
		bool		by_pop = strcmp(option("by", ""), "pop") == 0;

		if (by_pop && options.batch > 1)
			fail("pop() takes one message: --batch 1");
		receive(by_pop ? pop : read_delete);
	}
	else
	{
		conn = connect_server();
		if (operation_is("fill"))
			fill(conn);
		else if (operation_is("reset"))
			reset(conn);
		else
			fail("unknown, see the top of bench/driver/pgmq.c");
		PQfinish(conn);
	}
	return 0;
}
