/*-------------------------------------------------------------------------
 * nats.c
 *	  Driver of NATS JetStream, streams in files.  What is fair is told in bench/server/README.md.
 *
 *		driver-nats reset							the stream anew and empty
 *		driver-nats publish --clients N --seconds S	js_Publish(), which waits for the server's answer
 *		driver-nats publish --batch B --events E	B js_PublishAsync(), and the wait for their answers
 *		driver-nats fill --events E					a backlog for receive, with a durable pull consumer
 *		driver-nats receive --batch B --events E --clients N	a fetch of B, and an ack of each message
 *
 * Of a batch's acks only the last waits for the server's answer: acks of one
 * connection are done in order.  libnats gathers what it sends, and a message
 * that nothing follows goes a millisecond late, unless told to send everything at
 * once, which costs a system call each.  So batches are gathered and flushed, and
 * a receiver has a connection for fetches, sent at once, and one for acks.
 *
 * --name is the stream, "bench" if not given.  The server is at NATS_URL.
 *-------------------------------------------------------------------------
 */
#include "common.h"

#include <nats/nats.h>

#define READER		"reader"
#define FETCH_MS	1000
#define ANSWER_MS	10000

typedef struct Client
{
	natsConnection *connection;
	natsConnection *acks;		/* a receiver's; else NULL */
	jsCtx	   *context;
	natsSubscription *subscription;
} Client;

static const char *stream;
static char subject[120];
static atomic_llong seen;		/* events the server has confirmed */

static void
check(natsStatus status, const char *what)
{
	const char *detail;

	if (status == NATS_OK)
		return;
	detail = nats_GetLastError(NULL);
	fail("NATS, %s: %s%s%s", what, natsStatus_GetText(status), detail && detail[0] ? ", " : "", detail ? detail : "");
}

/* --------------------------------------------------------------- connection */

static void
publish_failed(jsCtx *context, jsPubAckErr *error, void *closure)
{
	(void) context;
	(void) closure;
	fail("NATS, an answer to js_PublishAsync(): %s", error->ErrText ? error->ErrText : natsStatus_GetText(error->Err));
}

static natsConnection *
connect_nats(bool at_once)
{
	natsConnection *connection;
	natsOptions *opts = NULL;

	if (getenv("NATS_URL") == NULL)
		fail("NATS_URL must be set");
	check(natsOptions_Create(&opts), "options");
	check(natsOptions_SetURL(opts, getenv("NATS_URL")), "NATS_URL");
	check(natsOptions_SetAllowReconnect(opts, false), "options");
	check(natsOptions_SetSendAsap(opts, at_once), "options");
	check(natsConnection_Connect(&connection, opts), "connect");
	natsOptions_Destroy(opts);
	return connection;
}

static void *
open_client(int number)
{
	Client	   *client = calloc(1, sizeof(*client));
	jsOptions	js_opts;

	(void) number;
	client->connection = connect_nats(operation_is("receive") || (operation_is("publish") && options.batch == 1));
	check(jsOptions_Init(&js_opts), "options");
	js_opts.Wait = ANSWER_MS;
	js_opts.PublishAsync.ErrHandler = publish_failed;
	check(natsConnection_JetStream(&client->context, client->connection, &js_opts), "JetStream");
	return client;
}

static void
close_client(void *state)
{
	Client	   *client = state;

	natsSubscription_Destroy(client->subscription);
	jsCtx_Destroy(client->context);
	natsConnection_Destroy(client->connection);
	natsConnection_Destroy(client->acks);
	free(client);
}

/* ------------------------------------------------------------------- stream */

static void
reset(Client *client)
{
	jsStreamConfig config;
	const char *subjects[] = {subject};
	jsErrCode	code = 0;
	natsStatus	status = js_DeleteStream(client->context, stream, NULL, &code);

	if (status != NATS_NOT_FOUND && code != JSStreamNotFoundErr)
		check(status, "delete the stream");
	check(jsStreamConfig_Init(&config), "stream");
	config.Name = stream;
	config.Subjects = subjects;
	config.SubjectsLen = 1;
	config.Storage = js_FileStorage;
	config.Replicas = 1;
	check(js_AddStream(NULL, client->context, &config, NULL, NULL), "make the stream");
}

static int64_t
messages(Client *client)
{
	jsStreamInfo *info = NULL;
	int64_t		n;

	check(js_GetStreamInfo(&info, client->context, stream, NULL, NULL), "the stream; is it there? Call driver-nats reset first");
	n = (int64_t) info->State.Msgs;
	jsStreamInfo_Destroy(info);
	return n;
}

/* What the consumer has before it, or, with acks, what it has got and not acknowledged. */
static int64_t
pending(Client *client, bool acks)
{
	jsConsumerInfo *info = NULL;
	int64_t		n;

	check(js_GetConsumerInfo(&info, client->context, stream, READER, NULL, NULL), "the consumer; is it there? Call driver-nats fill first");
	n = acks ? info->NumAckPending : (int64_t) info->NumPending;
	jsConsumerInfo_Destroy(info);
	return n;
}

/* ------------------------------------------------------------------ publish */

static int
publish_one(void *state, int wanted)
{
	static _Thread_local int next;
	Client	   *client = state;
	jsPubAck   *answer = NULL;
	int			i = next++ % MAX_BATCH;

	check(js_Publish(&answer, client->context, subject, payloads[i], payload_lengths[i], NULL, NULL), "js_Publish()");
	if (answer->Sequence == 0 || answer->Duplicate)
		fail("NATS did not store an event");
	jsPubAck_Destroy(answer);
	seen += wanted;
	return wanted;
}

static int
publish_batch(void *state, int wanted)
{
	Client	   *client = state;
	jsPubOptions wait;

	for (int i = 0; i < wanted; i++)
		check(js_PublishAsync(client->context, subject, payloads[i], payload_lengths[i], NULL), "js_PublishAsync()");
	check(natsConnection_Flush(client->connection), "flush");
	check(jsPubOptions_Init(&wait), "options");
	wait.MaxWait = ANSWER_MS;
	check(js_PublishAsyncComplete(client->context, &wait), "js_PublishAsyncComplete()");
	seen += wanted;
	return wanted;
}

static void
publish(Client *client)
{
	int64_t		before = messages(client);
	int64_t		more;

	run_workload(&(Workload) {.open = open_client, .step = options.batch == 1 ? publish_one : publish_batch, .close = close_client});
	more = messages(client) - before;
	if (more != seen)
		fail("the stream has %lld messages more, not %lld", (long long) more, (long long) seen);
}

static void
fill(Client *client)
{
	jsConsumerConfig config;

	reset(client);
	check(jsConsumerConfig_Init(&config), "consumer");
	config.Durable = READER;
	config.AckPolicy = js_AckExplicit;
	config.DeliverPolicy = js_DeliverAll;
	config.MaxAckPending = 20 * MAX_BATCH;
	check(js_AddConsumer(NULL, client->context, stream, &config, NULL, NULL), "make the consumer");
	for (int64_t left = options.events; left > 0; left -= MAX_BATCH)
		(void) publish_batch(client, left < MAX_BATCH ? (int) left : MAX_BATCH);
	if (messages(client) != options.events)
		fail("the stream has %lld messages, not %lld", (long long) messages(client), (long long) options.events);
}

/* ------------------------------------------------------------------ receive */

static void *
open_reader(int number)
{
	Client	   *client = open_client(number);
	jsSubOptions bind;

	check(jsSubOptions_Init(&bind), "options");
	bind.Stream = stream;
	bind.Consumer = READER;
	client->acks = connect_nats(false);
	check(js_PullSubscribe(&client->subscription, client->context, subject, READER, NULL, &bind, NULL), "subscribe");
	return client;
}

/* As natsMsg_Ack() and natsMsg_AckSync(), but by a connection of our choice. */
static void
ack(Client *client, natsMsg *message, bool last)
{
	static const char text[] = "+ACK";
	const char *to = natsMsg_GetReply(message);
	natsMsg    *answer = NULL;

	if (last)
		check(natsConnection_Request(&answer, client->acks, to, text, sizeof(text) - 1, ANSWER_MS), "the last ack");
	else
		check(natsConnection_Publish(client->acks, to, text, sizeof(text) - 1), "ack");
	natsMsg_Destroy(answer);
}

static int
receive_step(void *state, int wanted)
{
	Client	   *client = state;
	natsMsgList list = {0};
	natsStatus	status = natsSubscription_Fetch(&list, client->subscription, wanted, FETCH_MS, NULL);
	int			n = list.Count;

	if (status == NATS_TIMEOUT && n == 0)
		return 0;
	check(status, "fetch");
	if (n < 1 || n > wanted)
		fail("a fetch returned %d messages, not %d", n, wanted);
	for (int i = 0; i < n; i++)
	{
		if (natsMsg_GetData(list.Msgs[i])[0] != '{')
			fail("a message of NATS is not as it was sent");
		ack(client, list.Msgs[i], i == n - 1);
	}
	natsMsgList_Destroy(&list);
	return n;
}

static void
receive(Client *client)
{
	int64_t		before = pending(client, false);
	int64_t		less;

	if (options.events <= 0 || before < options.events)
		fail("%lld messages are there: call driver-nats fill --events E first", (long long) before);
	run_workload(&(Workload) {.open = open_reader, .step = receive_step, .close = close_client});
	less = before - pending(client, false);
	if (less != options.events || pending(client, true) != 0)
		fail("%lld messages were received, not %lld, and %lld not acknowledged", (long long) less, (long long) options.events,
			 (long long) pending(client, true));
}

int
main(int argc, char **argv)
{
	Client	   *client;

	parse_options(argc, argv);
	stream = options.name ? options.name : "bench";
	snprintf(subject, sizeof(subject), "%s." TYPE, stream);
	client = open_client(0);
	if (operation_is("publish"))
		publish(client);
	else if (operation_is("receive"))
		receive(client);
	else if (operation_is("fill"))
		fill(client);
	else if (operation_is("reset"))
		reset(client);
	else
		fail("unknown, see the top of bench/driver/nats.c");
	close_client(client);
	nats_Close();
	return 0;
}
