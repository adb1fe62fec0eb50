/*-------------------------------------------------------------------------
 * common.h
 *	  What the drivers of bench/ share: options, clock, events, a runner of clients, the line of results.
 *
 * A driver is a program of one system: common.c and its own file, and pg.c if it
 * speaks to PostgreSQL.  It fills a Workload and calls run_workload(), which opens
 * all clients, starts them at once, and prints one line on stdout:
 *
 *		rate <events per second> p50 <us> p99 <us> steps <n> events <n> seconds <s>
 *
 * p50 and p99 are of the time that one step took.  Called as
 *
 *		driver-<system> OPERATION [--clients N] [--batch B] [--seconds S | --events E] [--name NAME] [--<other> VALUE ...]
 *
 * What can be made before the clock starts is made then, so that the driver is
 * never the limit.
 *-------------------------------------------------------------------------
 */
#ifndef COMMON_H
#define COMMON_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_BATCH		1000	/* events in a batch, and different payloads */
#define MAX_CLIENTS		512
#define MAX_PAYLOAD		400		/* bytes, with room for the stamp */
#define TYPE			"order.created"

/* ------------------------------------------------------------------ options */

typedef struct Options
{
	const char *operation;
	int			clients;		/* 1 if not given */
	int			batch;			/* 1 if not given: an event a step */
	double		seconds;		/* how long, or */
	int64_t		events;			/* how many, all clients together */
	const char *name;			/* bus, subscription, queue, stream ...; NULL if not given */
} Options;

extern Options options;

extern void parse_options(int argc, char **argv);
/* The value of --key, or missing where it was not given. */
extern const char *option(const char *key, const char *missing);
extern bool operation_is(const char *operation);

/* -------------------------------------------------------------------- clock */

extern void fail(const char *format,...) __attribute__((noreturn, format(printf, 1, 2)));
extern int64_t now_ns(void);	/* CLOCK_MONOTONIC: the same in all processes */
extern double now(void);		/* the same in seconds */
extern void sleep_us(int us);
extern void sleep_until_ns(int64_t at);

/* ------------------------------------------------------------------- events */

/* MAX_BATCH different payloads of some 240 bytes of JSON, the same in every driver. */
extern char payloads[MAX_BATCH][MAX_PAYLOAD];
extern int	payload_lengths[MAX_BATCH];

/* Payload i with the time of sending in front, {"sent": <ns>, ...; out has MAX_PAYLOAD bytes.  Returns its length. */
extern int	stamp_payload(char *out, int i, int64_t sent);
/* The time in a stamped payload, as PostgreSQL or anyone else gives it back. */
extern int64_t payload_stamp(const char *payload);

/* ------------------------------------------------------------------ samples */

typedef struct Samples
{
	float	   *us;
	int64_t		n;
	int64_t		room;
} Samples;

extern void add_sample(Samples *samples, double us);
extern void add_samples(Samples *samples, const Samples *others);
extern double percentile(Samples *samples, double p);	/* 0.5: the median; 0 if there is none */

/* ------------------------------------------------------------------- runner */

/*
 * open() makes a client: connected, all prepared; the clock does not run yet.
 * step() does one transaction, or one batch and its ack, of at most `wanted` events
 * (the batch, or what is left) and returns how many; 0 if there was nothing, then
 * it is called again after a moment, and 30 seconds of that are an error.
 * close() may be NULL, and so may drain(), which ends what step() left pending
 * while the clock still runs.
 * Steps begin until the seconds are over, or until the events are claimed.
 *
 * A server's process is cold: what it does first takes it milliseconds, seconds of CPU
 * with 256 of them.  So each client makes --warm N steps before the clock runs, one with
 * --seconds if nothing else is said; they are not counted.
 *
 * With --pin 1 the n-th client and its backend share the n-th processor.  Where the
 * scheduler puts them otherwise, by chance and for long, can be worth a factor of two.
 */
typedef struct Workload
{
	void	   *(*open) (int client);
	int			(*step) (void *client, int wanted);
	void		(*drain) (void *client);
	void		(*close) (void *client);
} Workload;

extern void run_workload(const Workload *workload);
/* With --pin: bind a process of the client being opened to its processor; 0: this thread. */
extern void pin(int process);
/* One more pair for the line of results; before that is printed, so in close() at the latest. */
extern void add_result(const char *key, double value);
/* The line of results, for a driver that has its own loop. */
extern void print_result(int64_t events, double seconds, Samples *samples);

#endif
