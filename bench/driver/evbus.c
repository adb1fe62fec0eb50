/*-------------------------------------------------------------------------
 * evbus.c
 *	  evbus as a client sees it.
 *
 *		publish --name BUS						evbus.publish(), a transaction each
 *		publish --name BUS --batch B			evbus.publish_batch(), likewise
 *		publish ... --keys K					each event with one of K keys, by chance
 *		receive --name SUB --batch B			receive and ack, two statements, each a transaction
 *		receive ... --calls one					the ack goes with the next receive: receive(..., ack => receipts)
 *		receive ... --by lines					receive_lines() instead of receive(), with either
 *		drain --name SUB --events E				resume a paused subscription, wait until its handler has done E
 *		follow --name BUS --subscription SUB --batch B --events E	publish, then wait until the handler has done all
 *		latency --name BUS --subscription SUB --rate R --seconds S	publish R a second, another thread receives:
 *												p50 and p99 from before publish() until the client has the event
 *		latency --name BUS --file F ...			the same with a handler, which leaves its times in F (module.c)
 *
 * publish and receive also print backend_ns: the CPU time of their backends, an event.
 * drain and follow end when the lag, looked at every ms, is 0.
 *-------------------------------------------------------------------------
 */
#include "pg.h"

#include <pthread.h>

#define POLL_US			1000
#define STUCK_S			120		/* a lag that takes longer is an error */
#define MAX_RECEIPT		200
#define KEY_LISTS		200

typedef struct Client
{
	PGconn	   *conn;
	char	   *receipts;		/* the array to ack, as text */
	bool		pending;		/* received, and acked by the next call */
	int64_t		cpu_before;		/* of its backend, when the clock began to run */
	int64_t		done;			/* events since then */
} Client;

static const char *types;
static const char *payload_list;
static char *key_lists[KEY_LISTS];	/* for --keys: arrays, used in turn; else NULL */
static bool one_call;
static bool by_lines;
static char size[12];			/* of a batch, as text */

static Client *
open_client(void)
{
	Client	   *client = calloc(1, sizeof(Client));

	if (options.name == NULL)
		fail("--name is missing");
	client->conn = connect_server();
	client->receipts = malloc(options.batch * (MAX_RECEIPT + 1) + 3);
	strcpy(client->receipts, "{}");
	return client;
}

static void
close_client(void *arg)
{
	PQfinish(((Client *) arg)->conn);
}

/* ------------------------------------------------------------------ publish */

/* An array of a key for each event of a batch. */
static char *
random_keys(int keys)
{
	char	   *list = malloc(options.batch * 12 + 3);
	char	   *out = list;

	for (int i = 0; i < options.batch; i++)
		out += sprintf(out, "%ck%ld", i == 0 ? '{' : ',', random() % keys);
	strcpy(out, "}");
	return list;
}

static void *
open_publish(int n)
{
	Client	   *client = open_client();
	int			keys = atoi(option("keys", "0"));

	if (keys > 0 && (options.batch == 1 || by_lines))
		fail("--keys is for publish_batch() only");
	if (n == 0 && options.batch > 1)
	{
		types = by_lines ? TYPE : "{" TYPE "}";	/* one stands for all */
		payload_list = by_lines ? payloads_lines(options.batch) : payloads_array(options.batch);
	}
	for (int i = 0; i < KEY_LISTS && n == 0 && keys > 0; i++)
		key_lists[i] = random_keys(keys);
	prepare(client->conn, "", options.batch == 1 ? "SELECT evbus.publish($1, $2, $3)" :
			by_lines ? "SELECT events FROM evbus.publish_lines($1, $2, $3)" :
			keys > 0 ? "SELECT evbus.publish_batch($1, $2::text[], $3::jsonb[], $4::text[])" :
			"SELECT evbus.publish_batch($1, $2::text[], $3::jsonb[])");
	client->cpu_before = backend_cpu_ns(client->conn);
	return client;
}

static void
close_counted(void *arg)
{
	Client	   *client = arg;
	static int	closed;
	static int64_t cpu;
	static int64_t done;

	cpu += backend_cpu_ns(client->conn) - client->cpu_before;
	done += client->done;
	if (++closed == options.clients)
		add_result("backend_ns", (double) cpu / done);
	close_client(client);
}

static int
step_publish(void *arg, int wanted)
{
	Client	   *client = arg;
	static atomic_int next;
	int			turn = next++;
	const char *values[] = {options.name, TYPE, payloads[turn & 511], key_lists[turn % KEY_LISTS]};
	PGresult   *result;

	if (wanted != options.batch)
		fail("--events must be a multiple of --batch");
	if (options.batch > 1)
	{
		values[1] = types;
		values[2] = payload_list;
	}
	result = expect(client->conn, PQexecPrepared(client->conn, "", key_lists[0] ? 4 : 3, values, NULL, NULL, 0), PGRES_TUPLES_OK);
	if (by_lines ? atoi(PQgetvalue(result, 0, 0)) != wanted : PQntuples(result) != wanted)
		fail("not all of %d events were stored", wanted);
	PQclear(result);
	client->done += wanted;
	return wanted;
}

/* ------------------------------------------------------------------ receive */

static void *
open_receive(int n)
{
	Client	   *client = open_client();

	(void) n;
	if (by_lines)
		prepare(client->conn, "receive", one_call ? "SELECT receipts, lines, events FROM evbus.receive_lines($1, $2, ack => $3)" :
				"SELECT receipts, lines, events FROM evbus.receive_lines($1, $2)");
	else
		prepare(client->conn, "receive", one_call ? "SELECT * FROM evbus.receive($1, $2, ack => $3)" :
				"SELECT * FROM evbus.receive($1, $2)");
	prepare(client->conn, "ack", "SELECT evbus.ack($1)");
	client->cpu_before = backend_cpu_ns(client->conn);
	return client;
}

static void
ack(Client *client, int wanted)
{
	const char *values[] = {client->receipts};
	PGresult   *result = PQexecPrepared(client->conn, "ack", 1, values, NULL, NULL, 0);

	expect(client->conn, result, PGRES_TUPLES_OK);
	if (wanted > 0 && atoi(PQgetvalue(result, 0, 0)) != wanted)
		fail("%s of %d receipts were good", PQgetvalue(result, 0, 0), wanted);
	PQclear(result);
}

static void
keep_receipts(Client *client, PGresult *result)
{
	char	   *out = client->receipts;
	int			n = PQntuples(result);

	*out++ = '{';
	for (int i = 0; i < n; i++)
	{
		int			length = PQgetlength(result, i, 0);

		if (length > MAX_RECEIPT)
			fail("a receipt has %d bytes", length);
		if (i > 0)
			*out++ = ',';
		memcpy(out, PQgetvalue(result, i, 0), length);
		out += length;
	}
	strcpy(out, "}");
}

static int
count(const char *text, int length, char what)
{
	int			n = 0;

	for (const char *end = text + length; (text = memchr(text, what, end - text)) != NULL; text++)
		n++;
	return n;
}

/* One row has them all, and one receipt for them, in an array already.  Returns how many. */
static int
keep_lines(Client *client, PGresult *result)
{
	const char *receipts;
	int			length;
	int			n;

	strcpy(client->receipts, "{}");
	if (PQntuples(result) == 0)
		return 0;
	receipts = PQgetvalue(result, 0, 0);
	length = PQgetlength(result, 0, 0);
	n = count(PQgetvalue(result, 0, 1), PQgetlength(result, 0, 1), '\n') + 1;
	if (atoi(PQgetvalue(result, 0, 2)) != n || length > options.batch * (MAX_RECEIPT + 1) + 2)
		fail("%d lines, of %s events", n, PQgetvalue(result, 0, 2));
	memcpy(client->receipts, receipts, length + 1);
	return n;
}

static int
step_receive(void *arg, int wanted)
{
	Client	   *client = arg;
	char		share[12];
	const char *values[] = {options.name, size, client->receipts};
	PGresult   *result;
	int			n;

	if (wanted != options.batch)
	{
		sprintf(share, "%d", wanted);
		values[1] = share;
	}
	result = PQexecPrepared(client->conn, "receive", one_call ? 3 : 2, values, NULL, NULL, 0);
	n = PQntuples(expect(client->conn, result, PGRES_TUPLES_OK));
	if (by_lines)
		n = keep_lines(client, result);
	else
		keep_receipts(client, result);
	PQclear(result);
	if (!one_call && n > 0)
		ack(client, n);
	client->pending = one_call && n > 0;
	client->done += n;
	return n;
}

static void
drain_receive(void *arg)
{
	Client	   *client = arg;

	if (client->pending)
		ack(client, -1);
}

/* ----------------------------------------------------------------- handlers */

static void
wait_lag(PGconn *conn, const char *subscription, int64_t wanted)
{
	double		deadline = now() + STUCK_S;
	int64_t		lag;

	while ((lag = number(conn, "SELECT lag FROM evbus.subscription_lag WHERE subscription = $1", subscription, -1)) != wanted)
	{
		if (now() > deadline)
			fail("subscription %s has a lag of %lld, not %lld", subscription, (long long) lag, (long long) wanted);
		sleep_us(POLL_US);
	}
}

/* What failed would be fast, and no measurement. */
static void
check_clean(PGconn *conn)
{
	if (number(conn, "SELECT (SELECT count(*) FROM evbus.retry_list) + (SELECT count(*) FROM evbus.dead_letter)", NULL, 0) != 0)
		fail("handlers have failed, see evbus.retry_list");
}

static void
run_drain(void)
{
	PGconn	   *conn = connect_server();
	Samples		none = {0};
	double		start;
	double		end;

	if (options.name == NULL || options.events == 0)
		fail("--name SUBSCRIPTION and --events are needed");
	wait_lag(conn, options.name, options.events);
	start = now();
	(void) number(conn, "SELECT evbus.resume($1)", options.name, 0);
	wait_lag(conn, options.name, 0);
	end = now();
	(void) number(conn, "SELECT evbus.pause($1)", options.name, 0);
	check_clean(conn);
	print_result(options.events, end - start, &none);
	PQfinish(conn);
}

static void
run_follow(void)
{
	Client	   *client = open_publish(0);
	const char *subscription = option("subscription", NULL);
	Samples		samples = {0};
	double		start;

	if (subscription == NULL || options.events == 0)
		fail("--subscription and --events are needed");
	start = now();
	for (int64_t done = 0; done < options.events; done += options.batch)
		(void) step_publish(client, options.batch);
	wait_lag(client->conn, subscription, 0);
	print_result(options.events, now() - start, &samples);
	check_clean(client->conn);
	close_client(client);
}

/* ------------------------------------------------------------------ latency */

typedef struct Receiver
{
	Samples		samples;
	int64_t		wanted;
	const char *subscription;
	pthread_barrier_t ready;
} Receiver;

/* A client that wants its events at once: it waits in receive(), and acks in the call that looks whether there are more. */
static void *
receive_all(void *arg)
{
	Receiver   *receiver = arg;
	Client		client = {connect_server(), malloc(100 * (MAX_RECEIPT + 1) + 3), false, 0, 0};
	const char *values[] = {receiver->subscription, client.receipts};
	int			payload = -1;

	strcpy(client.receipts, "{}");
	prepare(client.conn, "receive", one_call ? "SELECT * FROM evbus.receive($1, 100, wait => '10 s', ack => $2)" :
			"SELECT * FROM evbus.receive($1, 100, wait => '10 s')");
	prepare(client.conn, "ack", "SELECT evbus.ack($1)");
	pthread_barrier_wait(&receiver->ready);
	while (receiver->samples.n < receiver->wanted)
	{
		PGresult   *result = PQexecPrepared(client.conn, "receive", one_call ? 2 : 1, values, NULL, NULL, 0);
		int64_t		at = now_ns();
		int			n = PQntuples(expect(client.conn, result, PGRES_TUPLES_OK));

		/* With receipts to ack it does not wait. */
		if (n == 0 && !client.pending)
			fail("no event within 10 seconds, after %lld", (long long) receiver->samples.n);
		client.pending = one_call && n > 0;
		if (payload < 0)
			payload = PQfnumber(result, "payload");
		for (int i = 0; i < n; i++)
			add_sample(&receiver->samples, (at - payload_stamp(PQgetvalue(result, i, payload))) / 1e3);
		keep_receipts(&client, result);
		PQclear(result);
		if (!one_call)
			ack(&client, n);
	}
	if (one_call)
		ack(&client, -1);
	PQfinish(client.conn);
	return NULL;
}

/* The handler's times: one int64 of nanoseconds for each event, in the order of commits. */
static void
read_times(const char *path, int64_t wanted, Samples *samples)
{
	double		deadline = now() + 30;
	FILE	   *file = fopen(path, "r");
	int64_t		ns;

	if (file == NULL)
		fail("cannot read %s", path);
	while (samples->n < wanted)
	{
		if (fread(&ns, sizeof(ns), 1, file) == 1)
		{
			add_sample(samples, ns / 1e3);
			continue;
		}
		if (now() > deadline)
			fail("the handler has done %lld of %lld events", (long long) samples->n, (long long) wanted);
		clearerr(file);
		sleep_us(10000);
	}
	fclose(file);
}

static void
run_latency(void)
{
	const char *file = option("file", NULL);
	Receiver	receiver = {.subscription = option("subscription", NULL)};
	int64_t		interval = (int64_t) (1e9 / atof(option("rate", "1000")));
	Client	   *client = open_publish(0);
	pthread_t	thread;
	int64_t		start;

	if ((file == NULL) == (receiver.subscription == NULL) || options.seconds <= 0)
		fail("--seconds and either --file or --subscription are needed");
	receiver.wanted = (int64_t) (options.seconds * 1e9 / interval);
	if (file == NULL)
	{
		pthread_barrier_init(&receiver.ready, NULL, 2);
		if (pthread_create(&thread, NULL, receive_all, &receiver) != 0)
			fail("no thread");
		pthread_barrier_wait(&receiver.ready);
	}
	start = now_ns() + 100000000;
	for (int64_t i = 0; i < receiver.wanted; i++)
	{
		char		payload[MAX_PAYLOAD];
		const char *values[] = {options.name, TYPE, payload};

		sleep_until_ns(start + i * interval);
		stamp_payload(payload, (int) (i % MAX_BATCH), now_ns());
		PQclear(expect(client->conn, PQexecPrepared(client->conn, "", 3, values, NULL, NULL, 0), PGRES_TUPLES_OK));
	}
	if (file == NULL)
		pthread_join(thread, NULL);
	else
		read_times(file, receiver.wanted, &receiver.samples);
	check_clean(client->conn);
	print_result(receiver.wanted, (now_ns() - start) / 1e9, &receiver.samples);
	close_client(client);
}

int
main(int argc, char **argv)
{
	static const Workload publish = {open_publish, step_publish, NULL, close_counted};
	static const Workload receive = {open_receive, step_receive, drain_receive, close_counted};

	parse_options(argc, argv);
	one_call = strcmp(option("calls", "two"), "one") == 0;
	by_lines = strcmp(option("by", "arrays"), "lines") == 0;
	snprintf(size, sizeof(size), "%d", options.batch);
	if (operation_is("publish"))
		run_workload(&publish);
	else if (operation_is("receive"))
		run_workload(&receive);
	else if (operation_is("drain"))
		run_drain();
	else if (operation_is("follow"))
		run_follow();
	else if (operation_is("latency"))
		run_latency();
	else
		fail("see the top of bench/driver/evbus.c");
	return 0;
}
