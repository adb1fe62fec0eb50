/*-------------------------------------------------------------------------
 * pgq.c
 *	  Driver of PgQ, the queue that Debian has for PostgreSQL.  What is fair is told in bench/server/README.md.
 *
 *		driver-pgq reset							the queue anew and empty, without events
 *		driver-pgq publish --clients N --seconds S	pgq.insert_event(), one a transaction
 *		driver-pgq publish --batch B --events E		pgq.insert_event() called B times by one statement
 *		driver-pgq publish ... --by copy			COPY into the queue's event table, PgQ's own way in bulk
 *		driver-pgq publish ... --tick N				and a tick after every N events, by the same client
 *		driver-pgq fill --batch B --events E --clients N	a backlog for receive with the same three
 *		driver-pgq receive --batch B --events E --clients N	next_batch(), get_batch_events(), finish_batch()
 *		driver-pgq receive ... --transaction one	the three in one transaction; else each commits
 *
 * A batch of PgQ is what lies between two ticks, so fill ticks after every B
 * events.  A batch has one reader and a consumer one batch; N clients are
 * N queues with a consumer each, and fill deals its batches out to them.  A client
 * that has emptied its queue takes over one that nobody reads any more.
 *
 * --name is the queue, "bench" if not given; the further ones are <name>_1, <name>_2 ...
 *-------------------------------------------------------------------------
 */
#include "pg.h"

#include <pthread.h>

#define CONSUMER "reader"

typedef struct Client
{
	PGconn	   *conn;
	int			queue;			/* the one it reads, -1: none */
} Client;

static char queues[MAX_CLIENTS][100];
static pthread_mutex_t reading[MAX_CLIENTS];	/* by the client that reads the queue */
static bool one_transaction;
static atomic_llong seen;		/* events the server has confirmed */

static int	(*publish_step) (void *client, int wanted);
static int	events_a_tick;		/* 0: nobody ticks */
static const char *batch_types;
static const char *batch_payloads;
static char *copy_buffer;
static int *copy_ends;			/* the first n rows of copy_buffer end here */
static char copy_sql[200];

/* ------------------------------------------------------------------- queues */

static void
name_queues(void)
{
	const char *name = options.name ? options.name : "bench";

	for (int i = 0; i < options.clients; i++)
		snprintf(queues[i], sizeof(queues[i]), i ? "%s_%d" : "%s", name, i);
}

static void
reset_queue(PGconn *conn, const char *queue)
{
	(void) number(conn, "SELECT pgq.drop_queue(queue_name, true) FROM pgq.queue WHERE queue_name = $1", queue, 0);
	if (number(conn, "SELECT pgq.create_queue($1)", queue, 0) != 1 ||
		number(conn, "SELECT pgq.register_consumer($1, '" CONSUMER "')", queue, 0) != 1 ||
		/* ticker() is called when a tick is wanted */
		number(conn, "SELECT pgq.set_queue_config($1, 'ticker_max_count', '1')", queue, 0) != 1)
		fail("the queue %s could not be made", queue);
}

static int64_t
last_event(PGconn *conn)
{
	return number(conn, "SELECT coalesce(pg_sequence_last_value(queue_event_seq), 0) FROM pgq.queue WHERE queue_name = $1", queues[0], -1);
}

/* ------------------------------------------------------------------ publish */

static void *
open_publisher(int client)
{
	PGconn	   *conn = connect_server();

	(void) client;
	prepare(conn, "one", "SELECT pgq.insert_event($1, $2, $3)");
	prepare(conn, "batch", "SELECT count(pgq.insert_event($1, type, payload))"
			" FROM unnest($2::text[], $3::text[]) AS event (type, payload)");
	return conn;
}

static int
publish_one(void *client, int wanted)
{
	static _Thread_local int next;
	PGconn	   *conn = client;
	const char *values[] = {queues[0], TYPE, payloads[next++ % MAX_BATCH]};
	PGresult   *result = expect(conn, PQexecPrepared(conn, "one", 3, values, NULL, NULL, 0), PGRES_TUPLES_OK);

	if (atoll(PQgetvalue(result, 0, 0)) <= 0)
		fail("insert_event() returned \"%s\"", PQgetvalue(result, 0, 0));
	PQclear(result);
	seen += wanted;
	return wanted;
}

static int
publish_batch(void *client, int wanted)
{
	PGconn	   *conn = client;
	bool		whole = wanted == options.batch;
	const char *values[] = {queues[0], whole ? batch_types : types_array(wanted),
		whole ? batch_payloads : payloads_array(wanted)};
	PGresult   *result = expect(conn, PQexecPrepared(conn, "batch", 3, values, NULL, NULL, 0), PGRES_TUPLES_OK);

	if (atoll(PQgetvalue(result, 0, 0)) != wanted)
		fail("%s of %d events were inserted", PQgetvalue(result, 0, 0), wanted);
	PQclear(result);
	seen += wanted;
	return wanted;
}

static void
make_copy(PGconn *conn, const char *queue)
{
	PGresult   *result;
	char	   *out = copy_buffer = realloc(copy_buffer, options.batch * (MAX_PAYLOAD + sizeof(TYPE) + 10));

	result = expect(conn, PQexecParams(conn, "SELECT pgq.current_event_table($1)", 1, NULL, &queue, NULL, NULL, 0),
					PGRES_TUPLES_OK);
	/* The columns that insert_event() fills, but for those with a default. */
	snprintf(copy_sql, sizeof(copy_sql), "COPY %s (ev_time, ev_type, ev_data) FROM STDIN", PQgetvalue(result, 0, 0));
	PQclear(result);
	copy_ends = realloc(copy_ends, (options.batch + 1) * sizeof(int));
	copy_ends[0] = 0;
	for (int i = 0; i < options.batch; i++)
	{
		out += sprintf(out, "now\t" TYPE "\t%s\n", payloads[i]);
		copy_ends[i + 1] = (int) (out - copy_buffer);
	}
}

static int
copy_batch(void *client, int wanted)
{
	copy_in(client, copy_sql, copy_buffer, copy_ends[wanted]);
	seen += wanted;
	return wanted;
}

static void
tick(PGconn *conn, const char *queue)
{
	if (number(conn, "SELECT pgq.ticker($1)", queue, 0) <= 0)
		fail("%s did not tick", queue);
}

/* Two that tick at once would disturb each other, so this is for one client. */
static int
publish_and_tick(void *client, int wanted)
{
	static int	since_tick;

	since_tick += publish_step(client, wanted);
	if (since_tick >= events_a_tick)
	{
		tick(client, queues[0]);
		since_tick = 0;
	}
	return wanted;
}

static void
publish(void)
{
	PGconn	   *conn = connect_server();
	int64_t		before = last_event(conn);
	int64_t		more;

	if (before < 0)
		fail("there is no queue %s: call driver-pgq reset first", queues[0]);
	events_a_tick = atoi(option("tick", "0"));
	if (events_a_tick > 0 && options.clients > 1)
		fail("--tick is for one client");
	batch_types = types_array(options.batch);
	batch_payloads = payloads_array(options.batch);
	make_copy(conn, queues[0]);
	publish_step = strcmp(option("by", ""), "copy") == 0 ? copy_batch : options.batch == 1 ? publish_one : publish_batch;
	run_workload(&(Workload) {.open = open_publisher, .step = events_a_tick > 0 ? publish_and_tick : publish_step,
			.close = close_server});
	more = last_event(conn) - before;
	if (more != seen)
		fail("the queue has %lld events more, not %lld", (long long) more, (long long) seen);
	PQfinish(conn);
}

/* ------------------------------------------------------------------ receive */

static void
fill(PGconn *conn)
{
	if (options.events <= 0 || options.events % options.batch != 0)
		fail("--events must be a multiple of --batch");
	command(conn, "SET synchronous_commit = off");
	for (int i = 0; i < options.clients; i++)
	{
		reset_queue(conn, queues[i]);
		make_copy(conn, queues[i]);
		for (int64_t batch = i; batch < options.events / options.batch; batch += options.clients)
		{
			(void) copy_batch(conn, options.batch);
			tick(conn, queues[i]);
		}
	}
	/* As pgqd does every two minutes; autovacuum leaves the event tables alone, by PgQ's wish. */
	command(conn, "VACUUM ANALYZE pgq.tick, pgq.queue, pgq.consumer, pgq.subscription");
}

static void *
open_reader(int client)
{
	Client	   *reader = malloc(sizeof(*reader));

	reader->conn = connect_server();
	reader->queue = client;
	pthread_mutex_lock(&reading[client]);
	prepare(reader->conn, "next", "SELECT pgq.next_batch($1, '" CONSUMER "')");
	prepare(reader->conn, "events", "SELECT ev_id, ev_type, ev_data FROM pgq.get_batch_events($1)");
	prepare(reader->conn, "finish", "SELECT pgq.finish_batch($1)");
	return reader;
}

/* Leaves the queue that is empty, and takes another that nobody reads. */
static void
change_queue(Client *reader)
{
	int			from = reader->queue;

	if (from >= 0)
		pthread_mutex_unlock(&reading[from]);
	reader->queue = -1;
	for (int i = 1; i <= options.clients && reader->queue < 0; i++)
	{
		int			to = (from + i + options.clients) % options.clients;

		if (to != from && pthread_mutex_trylock(&reading[to]) == 0)
			reader->queue = to;
	}
}

static int
receive_batch(void *client, int wanted)
{
	Client	   *reader = client;
	PGconn	   *conn = reader->conn;
	PGresult   *result;
	char		batch[24];
	const char *value;
	int			n;

	if (reader->queue < 0)
		change_queue(reader);
	if (reader->queue < 0)
		return 0;
	if (one_transaction)
		command(conn, "BEGIN");
	value = queues[reader->queue];
	result = expect(conn, PQexecPrepared(conn, "next", 1, &value, NULL, NULL, 0), PGRES_TUPLES_OK);
	snprintf(batch, sizeof(batch), "%s", PQgetvalue(result, 0, 0));
	PQclear(result);
	if (batch[0] == '\0')
	{
		if (one_transaction)
			command(conn, "COMMIT");
		change_queue(reader);
		return 0;
	}

	value = batch;
	result = expect(conn, PQexecPrepared(conn, "events", 1, &value, NULL, NULL, 0), PGRES_TUPLES_OK);
	n = PQntuples(result);
	if (n < 1 || n > wanted)
		fail("a batch of PgQ holds %d events, not %d", n, wanted);
	for (int i = 0; i < n; i++)
	{
		if (PQgetvalue(result, i, 2)[0] != '{')
			fail("an event of PgQ holds \"%s\"", PQgetvalue(result, i, 2));
	}
	PQclear(result);

	result = expect(conn, PQexecPrepared(conn, "finish", 1, &value, NULL, NULL, 0), PGRES_TUPLES_OK);
	if (strcmp(PQgetvalue(result, 0, 0), "1") != 0)
		fail("finish_batch() returned \"%s\"", PQgetvalue(result, 0, 0));
	PQclear(result);
	if (one_transaction)
		command(conn, "COMMIT");
	return n;
}

static void
leave_queue(void *client)
{
	Client	   *reader = client;

	if (reader->queue >= 0)
		pthread_mutex_unlock(&reading[reader->queue]);
}

static void
close_reader(void *client)
{
	PQfinish(((Client *) client)->conn);
	free(client);
}

static void
receive(void)
{
	PGconn	   *conn = connect_server();

	for (int i = 0; i < options.clients; i++)
		pthread_mutex_init(&reading[i], NULL);
	one_transaction = strcmp(option("transaction", ""), "one") == 0;
	run_workload(&(Workload) {.open = open_reader, .step = receive_batch, .drain = leave_queue, .close = close_reader});
	if (number(conn, "SELECT count(*) FROM pgq.subscription WHERE sub_batch IS NOT NULL", NULL, 1) != 0)
		fail("a batch was not finished");
	PQfinish(conn);
}

int
main(int argc, char **argv)
{
	PGconn	   *conn;

	parse_options(argc, argv);
	name_queues();
	if (operation_is("publish"))
		publish();
	else if (operation_is("receive"))
		receive();
	else
	{
		conn = connect_server();
		if (operation_is("fill"))
			fill(conn);
		else if (operation_is("reset"))
			reset_queue(conn, queues[0]);
		else
			fail("unknown, see the top of bench/driver/pgq.c");
		PQfinish(conn);
	}
	return 0;
}
