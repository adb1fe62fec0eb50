/*-------------------------------------------------------------------------
 * plain.c
 *	  Raw PostgreSQL: what the server can do without anybody's queue.
 *
 *		publish						INSERT of one row into bench.plain, a transaction each
 *		publish --batch B			COPY of B rows into bench.plain, a transaction each
 *		publish --batch B --by unnest	INSERT ... SELECT unnest(arrays) instead
 *		select						SELECT 1
 *		pair --rate R				two INSERTs in turn, R times a second, each its own transaction;
 *									a step is the two of them, so p50 and p99 are of both together
 *		call --sql SQL --events E		runs SQL once, and takes it for E events
 *		listen --name CHANNEL		--clients connections that LISTEN; prints "listening", runs until TERM
 *
 * The client gives the ids, ascending over all measurements, as a sequence would be
 * one thing more to pay for.
 *-------------------------------------------------------------------------
 */
#include "pg.h"

#include <poll.h>
#include <signal.h>

#define INSERT			"INSERT INTO bench.plain VALUES ($1, 1, 1, $2, NULL, NULL, $3)"
#define INSERT_UNNEST	"INSERT INTO bench.plain SELECT $1::bigint + n, 1, 1, type, NULL, NULL, payload" \
						" FROM unnest($2::text[], $3::jsonb[]) WITH ORDINALITY AS u (type, payload, n)"

typedef struct Client
{
	PGconn	   *conn;
	char	   *buffer;			/* of COPY: rows with room for their ids */
	int			length;
	char	   *ids[MAX_BATCH];
	int64_t		turn;			/* when the next pair is due, ns */
} Client;

static atomic_llong next_id;
static const char *types;
static const char *payload_list;
static int64_t interval;		/* between two pairs, ns */

static void *
open_client(int number_of_client)
{
	Client	   *client = calloc(1, sizeof(Client));

	client->conn = connect_server();
	if (number_of_client == 0)
		next_id = number(client->conn, "SELECT max(event_id) FROM bench.plain", NULL, 0) + 1;
	return client;
}

static void
close_client(void *arg)
{
	PQfinish(((Client *) arg)->conn);
}

/* ------------------------------------------------------------------ publish */

static void *
open_insert(int n)
{
	Client	   *client = open_client(n);

	prepare(client->conn, "", INSERT);
	return client;
}

static void
insert_one(Client *client)
{
	char		id[24];
	int64_t		event = next_id++;
	const char *values[] = {id, TYPE, payloads[event % MAX_BATCH]};

	sprintf(id, "%lld", (long long) event);
	PQclear(expect(client->conn, PQexecPrepared(client->conn, "", 3, values, NULL, NULL, 0), PGRES_COMMAND_OK));
}

static int
step_insert(void *arg, int wanted)
{
	(void) wanted;
	insert_one(arg);
	return 1;
}

static void *
open_copy(int n)
{
	Client	   *client = open_client(n);
	char	   *out = client->buffer = malloc(options.batch * (MAX_PAYLOAD + 100));

	for (int i = 0; i < options.batch; i++)
	{
		client->ids[i] = out;
		out += sprintf(out, "%012d\t1\t1\t" TYPE "\t\\N\t\\N\t%s\n", 0, payloads[i]);
	}
	client->length = (int) (out - client->buffer);
	return client;
}

static int
step_copy(void *arg, int wanted)
{
	Client	   *client = arg;
	int64_t		first = atomic_fetch_add(&next_id, wanted);

	for (int i = 0; i < wanted; i++)
	{
		char		id[24];

		sprintf(id, "%012lld", (long long) (first + i));
		memcpy(client->ids[i], id, 12);
	}
	copy_in(client->conn, "COPY bench.plain FROM STDIN", client->buffer,
			wanted == options.batch ? client->length : (int) (client->ids[wanted] - client->buffer));
	return wanted;
}

static void *
open_unnest(int n)
{
	Client	   *client = open_client(n);

	types = types_array(options.batch);
	payload_list = payloads_array(options.batch);
	prepare(client->conn, "", INSERT_UNNEST);
	return client;
}

static int
step_unnest(void *arg, int wanted)
{
	Client	   *client = arg;
	char		id[24];
	const char *values[] = {id, types, payload_list};

	if (wanted != options.batch)
		fail("--events must be a multiple of --batch");
	sprintf(id, "%lld", (long long) atomic_fetch_add(&next_id, wanted) - 1);
	PQclear(expect(client->conn, PQexecPrepared(client->conn, "", 3, values, NULL, NULL, 0), PGRES_COMMAND_OK));
	return wanted;
}

/* --------------------------------------------------------- select and pairs */

static void *
open_select(int n)
{
	Client	   *client = calloc(1, sizeof(Client));

	(void) n;
	client->conn = connect_server();
	prepare(client->conn, "", "SELECT 1");
	return client;
}

static int
step_select(void *arg, int wanted)
{
	PGconn	   *conn = ((Client *) arg)->conn;

	(void) wanted;
	PQclear(expect(conn, PQexecPrepared(conn, "", 0, NULL, NULL, NULL, 0), PGRES_TUPLES_OK));
	return 1;
}

/* The pace is kept with sleeps outside of the samples, so this has its own loop. */
static void
run_pairs(void)
{
	Client	   *client = open_insert(0);
	Samples		samples = {0};
	int64_t		start = now_ns();
	int64_t		turns = (int64_t) (options.seconds * 1e9 / interval);

	for (int64_t i = 0; i < turns; i++)
	{
		int64_t		at;

		sleep_until_ns(start + i * interval);
		at = now_ns();
		insert_one(client);
		insert_one(client);
		add_sample(&samples, (now_ns() - at) / 1e3);
	}
	print_result(turns, (now_ns() - start) / 1e9, &samples);
}

static void
run_call(void)
{
	PGconn	   *conn = connect_server();
	const char *sql = option("sql", NULL);
	Samples		none = {0};
	PGresult   *result;
	double		start;

	if (sql == NULL || options.events == 0)
		fail("--sql and --events are needed");
	start = now();
	result = PQexec(conn, sql);
	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		expect(conn, result, PGRES_TUPLES_OK);
	print_result(options.events, now() - start, &none);
	PQclear(result);
	PQfinish(conn);
}

/* ------------------------------------------------------------------- listen */

static volatile sig_atomic_t told_to_end = 0;

static void
end(int signal)
{
	(void) signal;
	told_to_end = 1;
}

static void
run_listeners(void)
{
	static PGconn *conns[MAX_CLIENTS];
	static struct pollfd fds[MAX_CLIENTS];
	char		sql[200];

	if (options.name == NULL)
		fail("--name CHANNEL is missing");
	for (int i = 0; i < options.clients; i++)
	{
		char	   *channel;

		conns[i] = connect_server();
		channel = PQescapeIdentifier(conns[i], options.name, strlen(options.name));
		snprintf(sql, sizeof(sql), "LISTEN %s", channel);
		command(conns[i], sql);
		PQfreemem(channel);
		fds[i].fd = PQsocket(conns[i]);
		fds[i].events = POLLIN;
	}
	signal(SIGTERM, end);
	puts("listening");
	fflush(stdout);
	while (!told_to_end)
	{
		/* Not for ever: the signal may come just before. */
		if (poll(fds, options.clients, 1000) < 0)
			continue;
		for (int i = 0; i < options.clients; i++)
		{
			PGnotify   *notification;

			if (fds[i].revents == 0)
				continue;
			if (PQconsumeInput(conns[i]) == 0)
				fail("%s", PQerrorMessage(conns[i]));
			while ((notification = PQnotifies(conns[i])) != NULL)
				PQfreemem(notification);
		}
	}
	for (int i = 0; i < options.clients; i++)
		PQfinish(conns[i]);
}

int
main(int argc, char **argv)
{
	static const Workload insert = {open_insert, step_insert, NULL, close_client};
	static const Workload copy = {open_copy, step_copy, NULL, close_client};
	static const Workload unnest = {open_unnest, step_unnest, NULL, close_client};
	static const Workload select = {open_select, step_select, NULL, close_client};
	const char *by;

	parse_options(argc, argv);
	by = option("by", options.batch > 1 ? "copy" : "insert");
	interval = (int64_t) (1e9 / atof(option("rate", "1000")));
	if (operation_is("publish") && strcmp(by, "unnest") == 0)
		run_workload(&unnest);
	else if (operation_is("publish"))
		run_workload(strcmp(by, "copy") == 0 ? &copy : &insert);
	else if (operation_is("select"))
		run_workload(&select);
	else if (operation_is("pair"))
		run_pairs();
	else if (operation_is("call"))
		run_call();
	else if (operation_is("listen"))
		run_listeners();
	else
		fail("see the top of bench/driver/plain.c");
	return 0;
}
