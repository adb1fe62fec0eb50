/*-------------------------------------------------------------------------
 * redis.c
 *	  Driver of Redis Streams.  What is fair is told in bench/server/README.md.
 *
 *		driver-redis reset							no stream
 *		driver-redis publish --clients N --seconds S	XADD, and its reply
 *		driver-redis publish --batch B --events E	B XADD in a pipeline, and their replies
 *		driver-redis publish ... --by multi			the same between MULTI and EXEC
 *		driver-redis fill --events E				a backlog for receive, with a group that has read nothing
 *		driver-redis receive --batch B --events E --clients N	XREADGROUP COUNT B, and XACK of all their ids
 *
 * --name is the stream, "bench" if not given; --fsync always or everysec sets
 * the server's appendfsync before the clock starts, else it stays as it is.  The
 * server is at the unix socket REDIS_SOCKET, or else at port REDIS_PORT of this machine.
 *-------------------------------------------------------------------------
 */
#include "common.h"

#include <hiredis/hiredis.h>

#define GROUP	"readers"

typedef struct Client
{
	redisContext *context;
	char		name[24];		/* as a consumer */
} Client;

static const char *stream;
static char *commands;			/* the XADD of the first payloads, one after the other */
static int	command_ends[MAX_BATCH + 1];	/* the first n end here */
static bool multi;				/* all or none of a batch, and one write to the file */
static atomic_llong seen;		/* events the server has confirmed */

/* --------------------------------------------------------------- connection */

static redisContext *
connect_redis(void)
{
	const char *socket = getenv("REDIS_SOCKET");
	const char *port = getenv("REDIS_PORT");
	redisContext *context;

	if (socket == NULL && port == NULL)
		fail("REDIS_SOCKET or REDIS_PORT must be set");
	context = socket ? redisConnectUnix(socket) : redisConnect("127.0.0.1", atoi(port));
	if (context == NULL || context->err)
		fail("Redis: %s", context ? context->errstr : "out of memory");
	return context;
}

/* The next reply, which must be of the kind expected. */
static redisReply *
reply_of(redisContext *context, int type)
{
	redisReply *reply;

	if (redisGetReply(context, (void **) &reply) != REDIS_OK)
		fail("Redis: %s", context->errstr);
	if (reply->type != type)
		fail("Redis: %s", reply->type == REDIS_REPLY_ERROR ? reply->str : "a reply of another type than expected");
	return reply;
}

static redisReply *
query(redisContext *context, int type, const char *format,...)
{
	va_list		args;

	va_start(args, format);
	if (redisvAppendCommand(context, format, args) != REDIS_OK)
		fail("Redis: %s", context->errstr);
	va_end(args);
	return reply_of(context, type);
}

static int64_t
query_number(redisContext *context, const char *format, const char *argument)
{
	redisReply *reply = query(context, REDIS_REPLY_INTEGER, format, argument);
	int64_t		value = reply->integer;

	freeReplyObject(reply);
	return value;
}

/* ------------------------------------------------------------------ publish */

static void
make_commands(void)
{
	char	   *parts[MAX_BATCH];

	command_ends[0] = 0;
	for (int i = 0; i < MAX_BATCH; i++)
	{
		int			length = redisFormatCommand(&parts[i], "XADD %s * type " TYPE " payload %b", stream,
												payloads[i], (size_t) payload_lengths[i]);

		if (length <= 0)
			fail("out of memory");
		command_ends[i + 1] = command_ends[i] + length;
	}
	commands = malloc(command_ends[MAX_BATCH]);
	for (int i = 0; i < MAX_BATCH; i++)
	{
		memcpy(commands + command_ends[i], parts[i], command_ends[i + 1] - command_ends[i]);
		redisFreeCommand(parts[i]);
	}
}

static void *
open_client(int number)
{
	Client	   *client = malloc(sizeof(*client));

	client->context = connect_redis();
	sprintf(client->name, "reader%d", number);
	return client;
}

static void
close_client(void *state)
{
	redisFree(((Client *) state)->context);
	free(state);
}

static void
append(redisContext *context, const char *command, int length)
{
	if (redisAppendFormattedCommand(context, command, length) != REDIS_OK)
		fail("Redis: %s", context->errstr);
}

/* Sends wanted XADD, from payload `first`, and awaits their ids. */
static void
add(redisContext *context, int first, int wanted)
{
	static const char begin[] = "*1\r\n$5\r\nMULTI\r\n";
	static const char end[] = "*1\r\n$4\r\nEXEC\r\n";
	redisReply *ids;

	if (multi)
		append(context, begin, sizeof(begin) - 1);
	append(context, commands + command_ends[first], command_ends[first + wanted] - command_ends[first]);
	if (multi)
	{
		append(context, end, sizeof(end) - 1);
		for (int i = 0; i < wanted + 1; i++)
			freeReplyObject(reply_of(context, REDIS_REPLY_STATUS)); /* OK, and QUEUED for each */
		ids = reply_of(context, REDIS_REPLY_ARRAY);
		if ((int) ids->elements != wanted)
			fail("EXEC returned %d ids, not %d", (int) ids->elements, wanted);
		for (int i = 0; i < wanted; i++)
		{
			if (ids->element[i]->type != REDIS_REPLY_STRING)
				fail("Redis: %s", ids->element[i]->type == REDIS_REPLY_ERROR ? ids->element[i]->str : "XADD returned no id");
		}
		freeReplyObject(ids);
	}
	else
	{
		for (int i = 0; i < wanted; i++)
			freeReplyObject(reply_of(context, REDIS_REPLY_STRING));
	}
	seen += wanted;
}

static int
publish_step(void *state, int wanted)
{
	static _Thread_local int next;

	add(((Client *) state)->context, wanted == 1 ? next++ % MAX_BATCH : 0, wanted);
	return wanted;
}

static void
publish(redisContext *context)
{
	int64_t		before = query_number(context, "XLEN %s", stream);
	int64_t		more;

	make_commands();
	multi = strcmp(option("by", ""), "multi") == 0;
	run_workload(&(Workload) {.open = open_client, .step = publish_step, .close = close_client});
	more = query_number(context, "XLEN %s", stream) - before;
	if (more != seen)
		fail("the stream has %lld entries more, not %lld", (long long) more, (long long) seen);
}

static void
reset(redisContext *context)
{
	(void) query_number(context, "DEL %s", stream);
}

static void
fill(redisContext *context)
{
	reset(context);
	make_commands();
	freeReplyObject(query(context, REDIS_REPLY_STATUS, "XGROUP CREATE %s " GROUP " $ MKSTREAM", stream));
	for (int64_t left = options.events; left > 0; left -= MAX_BATCH)
		add(context, 0, left < MAX_BATCH ? (int) left : MAX_BATCH);
}

/* ------------------------------------------------------------------ receive */

static int
receive_step(void *state, int wanted)
{
	Client	   *client = state;
	redisReply *reply;
	redisReply *entries;
	const char *arguments[MAX_BATCH + 3] = {"XACK", stream, GROUP};
	size_t		lengths[MAX_BATCH + 3] = {strlen("XACK"), strlen(stream), strlen(GROUP)};
	int			n;

	if (redisAppendCommand(client->context, "XREADGROUP GROUP " GROUP " %s COUNT %d STREAMS %s >",
						   client->name, wanted, stream) != REDIS_OK ||
		redisGetReply(client->context, (void **) &reply) != REDIS_OK)
		fail("Redis: %s", client->context->errstr);
	if (reply->type == REDIS_REPLY_NIL)
	{
		freeReplyObject(reply);
		return 0;
	}
	/* streams / of one: its name and entries / of one: its id and fields */
	if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 1)
		fail("Redis: %s", reply->type == REDIS_REPLY_ERROR ? reply->str : "XREADGROUP did not return one stream");
	entries = reply->element[0]->element[1];
	n = (int) entries->elements;
	if (n < 1 || n > wanted)
		fail("XREADGROUP returned %d entries, not %d", n, wanted);
	for (int i = 0; i < n; i++)
	{
		redisReply *id = entries->element[i]->element[0];
		redisReply *fields = entries->element[i]->element[1];

		if (fields->elements != 4 || fields->element[3]->str[0] != '{')
			fail("entry %s of Redis is not as it was sent", id->str);
		arguments[i + 3] = id->str;
		lengths[i + 3] = id->len;
	}
	if (redisAppendCommandArgv(client->context, n + 3, arguments, lengths) != REDIS_OK)
		fail("Redis: %s", client->context->errstr);
	freeReplyObject(reply);

	reply = reply_of(client->context, REDIS_REPLY_INTEGER);
	if (reply->integer != n)
		fail("%lld of %d entries were acknowledged", reply->integer, n);
	freeReplyObject(reply);
	return n;
}

static void
receive(redisContext *context)
{
	redisReply *reply;

	run_workload(&(Workload) {.open = open_client, .step = receive_step, .close = close_client});
	/* XPENDING: how many, and their first, last and readers */
	reply = query(context, REDIS_REPLY_ARRAY, "XPENDING %s " GROUP, stream);
	if (reply->element[0]->integer != 0)
		fail("%lld entries were not acknowledged", reply->element[0]->integer);
	freeReplyObject(reply);
}

int
main(int argc, char **argv)
{
	redisContext *context;

	parse_options(argc, argv);
	stream = options.name ? options.name : "bench";
	context = connect_redis();
	if (option("fsync", NULL))
		freeReplyObject(query(context, REDIS_REPLY_STATUS, "CONFIG SET appendfsync %s", option("fsync", NULL)));
	if (operation_is("publish"))
		publish(context);
	else if (operation_is("receive"))
		receive(context);
	else if (operation_is("fill"))
		fill(context);
	else if (operation_is("reset"))
		reset(context);
	else
		fail("unknown, see the top of bench/driver/redis.c");
	redisFree(context);
	return 0;
}
