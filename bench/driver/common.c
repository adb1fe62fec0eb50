/*-------------------------------------------------------------------------
 * common.c
 *	  What the drivers of bench/ share; told in common.h.
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include "common.h"

#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define STUCK_S			30		/* nothing to do for so long is an error */

Options		options = {.clients = 1, .batch = 1};
static char **other_options;	/* --key value ..., NULL at the end */

/* ------------------------------------------------------------------ options */

const char *
option(const char *key, const char *missing)
{
	for (char **argument = other_options; argument && argument[0]; argument += 2)
	{
		if (strncmp(argument[0], "--", 2) == 0 && strcmp(argument[0] + 2, key) == 0)
			return argument[1];
	}
	return missing;
}

bool
operation_is(const char *operation)
{
	return strcmp(options.operation, operation) == 0;
}

static void make_payloads(void);

void
parse_options(int argc, char **argv)
{
	if (argc < 2 || argc % 2 != 0)
		fail("usage: %s OPERATION [--KEY VALUE ...], see bench/driver/common.h", argv[0]);
	options.operation = argv[1];
	other_options = argv + 2;
	options.clients = atoi(option("clients", "1"));
	options.batch = atoi(option("batch", "1"));
	options.seconds = atof(option("seconds", "0"));
	options.events = atoll(option("events", "0"));
	options.name = option("name", NULL);
	if (options.clients < 1 || options.clients > MAX_CLIENTS)
		fail("--clients must be 1 to %d", MAX_CLIENTS);
	if (options.batch < 1 || options.batch > MAX_BATCH)
		fail("--batch must be 1 to %d", MAX_BATCH);
	prctl(PR_SET_TIMERSLACK, 1UL);	/* pauses end when they should */
	make_payloads();
}

/* -------------------------------------------------------------------- clock */

void
fail(const char *format,...)
{
	va_list		args;

	fprintf(stderr, "bench driver, %s: ", options.operation ? options.operation : "options");
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

int64_t
now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

double
now(void)
{
	return now_ns() / 1e9;
}

void
sleep_us(int us)
{
	struct timespec t = {us / 1000000, us % 1000000 * 1000L};

	nanosleep(&t, NULL);
}

void
sleep_until_ns(int64_t at)
{
	struct timespec t = {at / 1000000000, at % 1000000000};

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

/* ------------------------------------------------------------------- events */

char		payloads[MAX_BATCH][MAX_PAYLOAD];
int			payload_lengths[MAX_BATCH];

static void
make_payloads(void)
{
	for (int i = 0; i < MAX_BATCH; i++)
	{
		payload_lengths[i] =
			snprintf(payloads[i], sizeof(payloads[i]),
					 "{\"order_id\": %d, \"customer\": {\"id\": %d, \"name\": \"Customer %d\"}, \"status\": \"created\", "
					 "\"total\": %d.%02d, \"currency\": \"EUR\", \"items\": [{\"sku\": \"A-%05d\", \"n\": %d}, "
					 "{\"sku\": \"B-%05d\", \"n\": %d}], \"note\": \"%s\"}",
					 1000000 + i, 5000 + i * 7 % 4000, 5000 + i * 7 % 4000, 10 + i * 13 % 900, i * 37 % 100,
					 i * 101 % 100000, 1 + i % 5, i * 211 % 100000, 1 + i % 3,
					 i % 2 ? "leave at the door, ring twice" : "no note was left by the buyer");
	}
}

int
stamp_payload(char *out, int i, int64_t sent)
{
	return snprintf(out, MAX_PAYLOAD, "{\"sent\": %lld, %s", (long long) sent, payloads[i] + 1);
}

int64_t
payload_stamp(const char *payload)
{
	const char *key = strstr(payload, "\"sent\":");

	if (key == NULL)
		fail("an event without the time of sending: %s", payload);
	return atoll(key + strlen("\"sent\":"));
}

/* ------------------------------------------------------------------ samples */

void
add_sample(Samples *samples, double us)
{
	if (samples->n == samples->room)
	{
		samples->room = samples->room ? samples->room * 2 : 1024;
		samples->us = realloc(samples->us, samples->room * sizeof(*samples->us));
		if (samples->us == NULL)
			fail("out of memory");
	}
	samples->us[samples->n++] = (float) us;
}

void
add_samples(Samples *samples, const Samples *others)
{
	for (int64_t i = 0; i < others->n; i++)
		add_sample(samples, others->us[i]);
}

static int
compare_samples(const void *a, const void *b)
{
	float		x = *(const float *) a;
	float		y = *(const float *) b;

	return (x > y) - (x < y);
}

double
percentile(Samples *samples, double p)
{
	if (samples->n == 0)
		return 0;
	qsort(samples->us, samples->n, sizeof(*samples->us), compare_samples);
	return samples->us[(int64_t) (p * (samples->n - 1) + 0.5)];
}

/* ------------------------------------------------------------------- runner */

typedef struct Client
{
	const Workload *workload;
	void	   *state;
	pthread_t	thread;
	Samples		samples;
	int64_t		done;
	double		ended;
} Client;

static pthread_barrier_t barrier;
static double until;
static atomic_llong claimed;	/* of options.events */

/* How many events the next step may do: a batch, or what is left; 0: none. */
static int
claim(void)
{
	if (options.events > 0)
	{
		int64_t		before = atomic_fetch_add(&claimed, options.batch);

		if (before >= options.events)
			return 0;
		return options.events - before < options.batch ? (int) (options.events - before) : options.batch;
	}
	return now() < until ? options.batch : 0;
}

static int	opened = 0;			/* clients that are open, or being opened */

void
pin(int process)
{
	cpu_set_t	set;

	if (atoi(option("pin", "0")) == 0)
		return;
	CPU_ZERO(&set);
	CPU_SET(opened % sysconf(_SC_NPROCESSORS_ONLN), &set);
	if (sched_setaffinity(process, sizeof(set), &set) != 0)
		fail("--pin: cannot bind process %d to a processor", process);
}

static void *
run_client(void *arg)
{
	Client	   *client = arg;
	double		last = 0;
	int			warm = atoi(option("warm", options.seconds > 0 ? "1" : "0"));
	int			wanted;

	for (int i = 0; i < warm; i++)
		(void) client->workload->step(client->state, options.batch);
	pthread_barrier_wait(&barrier); /* all are ready */
	pthread_barrier_wait(&barrier); /* the clock runs */
	while ((wanted = claim()) > 0)
	{
		/* Nobody else will do this share, so it is tried until it is done. */
		while (wanted > 0)
		{
			int64_t		start = now_ns();
			int			did = client->workload->step(client->state, wanted);

			if (did > 0)
			{
				add_sample(&client->samples, (now_ns() - start) / 1e3);
				client->done += did;
				wanted -= did;
				last = 0;
				if (options.events == 0)
					break;
			}
			else
			{
				if (last == 0)
					last = now();
				else if (now() - last > STUCK_S)
					fail("nothing to do for %d seconds, after %lld events of one client", STUCK_S, (long long) client->done);
				if (options.events == 0 && now() >= until)
					break;
				sleep_us(200);
			}
		}
	}
	if (client->workload->drain)
		client->workload->drain(client->state);
	client->ended = now();
	return NULL;
}

void
run_workload(const Workload *workload)
{
	static Client clients[MAX_CLIENTS];
	Samples		samples = {0};
	int64_t		done = 0;
	double		start;
	double		end = 0;

	if ((options.seconds > 0) == (options.events > 0))
		fail("give --seconds or --events");
	pthread_barrier_init(&barrier, NULL, options.clients + 1);
	for (int i = 0; i < options.clients; i++)
	{
		clients[i].workload = workload;
		opened = i;
		pin(0);					/* the thread inherits it */
		clients[i].state = workload->open(i);
		if (pthread_create(&clients[i].thread, NULL, run_client, &clients[i]) != 0)
			fail("no thread");
	}
	pthread_barrier_wait(&barrier);
	start = now();
	until = start + options.seconds;
	pthread_barrier_wait(&barrier);
	for (int i = 0; i < options.clients; i++)
	{
		pthread_join(clients[i].thread, NULL);
		done += clients[i].done;
		if (clients[i].ended > end)
			end = clients[i].ended;
		add_samples(&samples, &clients[i].samples);
		if (workload->close)
			workload->close(clients[i].state);
	}
	print_result(done, end - start, &samples);
}

static char more_results[400];

void
add_result(const char *key, double value)
{
	size_t		length = strlen(more_results);

	snprintf(more_results + length, sizeof(more_results) - length, " %s %.3f", key, value);
}

void
print_result(int64_t events, double seconds, Samples *samples)
{
	printf("rate %.1f p50 %.1f p99 %.1f steps %lld events %lld seconds %.3f%s\n",
		   seconds > 0 ? events / seconds : 0, percentile(samples, 0.5), percentile(samples, 0.99),
		   (long long) samples->n, (long long) events, seconds, more_results);
}
