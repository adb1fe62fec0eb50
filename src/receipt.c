/*-------------------------------------------------------------------------
 * receipt.c
 *	  What a client shows to ack a delivery, or all of a batch: opaque text, good for
 *	  those leases.
 *
 * It names the lease by its place and epoch and the event by its id, never by
 * position: after a crash another event may have that position.  The
 * incarnation, a random number for each start of shared memory, makes receipts
 * of before a crash strangers.
 *-------------------------------------------------------------------------
 */
#include "receipt.h"

#include "args.h"
#include "common/int.h"
#include "utils/builtins.h"
#include "varint.h"

#define BATCH_FORM	1			/* first byte of a batch's */
#define BATCH_HEAD	21			/* bytes before the first receipt */
#define LEAST_BYTES	3			/* of each receipt */

uint64
evbus_receipt_incarnation(EvbusDb *db)
{
	return evbus_shared->incarnation ^ (((uint64) db->dboid << 32) | db->bus_relid) ^ (uint64) db->claimed_at;
}

/*
 * Base64 in its URL form, so that it needs no quoting anywhere; with tables: a
 * consumer of small events spends a good part of its time here.  Bytes in threes.
 */
static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

static void
encode(const unsigned char *bytes, int n, char *out)
{
	for (int i = 0; i < n; i += 3)
	{
		uint32		three = bytes[i] << 16 | bytes[i + 1] << 8 | bytes[i + 2];

		*out++ = letters[three >> 18];
		*out++ = letters[three >> 12 & 63];
		*out++ = letters[three >> 6 & 63];
		*out++ = letters[three & 63];
	}
}

/* Letters in fours; false: one is none. */
static bool
decode(const unsigned char *text, int len, unsigned char *bytes)
{
	static int8 values[256];
	static bool ready = false;
	uint32		all = 0;

	if (!ready)
	{
		memset(values, -1, sizeof(values));
		for (int i = 0; i < 64; i++)
			values[(unsigned char) letters[i]] = i;
		ready = true;
	}
	for (int i = 0; i < len; i += 4)
	{
		uint32		four = values[text[i]] << 18 | values[text[i + 1]] << 12 | values[text[i + 2]] << 6 | values[text[i + 3]];

		all |= four;			/* negative once a letter is none */
		*bytes++ = four >> 16;
		*bytes++ = four >> 8;
		*bytes++ = four;
	}
	return all < 1 << 24;
}

static void
refuse(const char *text, int len)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid receipt \"%s\"", evbus_clip(text, len)),
			 errhint("Pass receipts just as evbus.receive() or evbus.receive_lines() returned them.")));
}

/* ------------------------------------------------------------- of one delivery */

/* 32 bytes are 43 letters; the 44th would always be the same. */
void
evbus_receipt_write(const EvbusReceipt *receipt, char *out)
{
	unsigned char bytes[sizeof(EvbusReceipt) + 1] = {0};
	char		text[EVBUS_RECEIPT_CHARS + 1];

	StaticAssertStmt(sizeof(EvbusReceipt) == 32, "a receipt has 32 bytes");
	memcpy(bytes, receipt, sizeof(EvbusReceipt));
	encode(bytes, sizeof(bytes), text);
	memcpy(out, text, EVBUS_RECEIPT_CHARS);
}

text *
evbus_receipt_out(const EvbusReceipt *receipt)
{
	text	   *result = palloc(VARHDRSZ + EVBUS_RECEIPT_CHARS);

	SET_VARSIZE(result, VARHDRSZ + EVBUS_RECEIPT_CHARS);
	evbus_receipt_write(receipt, VARDATA(result));
	return result;
}

static void
read_one(const char *text, EvbusReceipt *receipt)
{
	unsigned char bytes[sizeof(EvbusReceipt) + 1];
	unsigned char padded[EVBUS_RECEIPT_CHARS + 1];

	memcpy(padded, text, EVBUS_RECEIPT_CHARS);
	padded[EVBUS_RECEIPT_CHARS] = letters[0];
	if (!decode(padded, sizeof(padded), bytes) || bytes[sizeof(EvbusReceipt)] != 0)
		refuse(text, EVBUS_RECEIPT_CHARS);
	memcpy(receipt, bytes, sizeof(EvbusReceipt));
}

/* ----------------------------------------------------------------- of a batch */

/*
 * What all have in common, how many they are, then how each differs from the one
 * before: a few bytes instead of 32.
 */
void
evbus_receipts_begin(EvbusReceipts *batch, const EvbusReceipt *like)
{
	batch->n = 0;
	batch->last = (EvbusReceipt) {0};
	initStringInfo(&batch->bytes);
	appendStringInfoChar(&batch->bytes, BATCH_FORM);
	appendBinaryStringInfo(&batch->bytes, (const char *) &like->incarnation, sizeof(like->incarnation));
	appendBinaryStringInfo(&batch->bytes, (const char *) &like->subscription_id, sizeof(like->subscription_id));
	appendBinaryStringInfo(&batch->bytes, (const char *) &like->sub_slot, sizeof(like->sub_slot));
	appendBinaryStringInfo(&batch->bytes, (const char *) &batch->n, sizeof(batch->n));	/* its place */
	Assert(batch->bytes.len == BATCH_HEAD);
}

void
evbus_receipts_add(EvbusReceipts *batch, const EvbusReceipt *receipt)
{
	evbus_put_signed(&batch->bytes, receipt->event_id - batch->last.event_id);
	evbus_put_signed(&batch->bytes, (int64) receipt->lease - batch->last.lease);
	evbus_put_signed(&batch->bytes, (int64) receipt->epoch - batch->last.epoch);
	batch->last = *receipt;
	batch->n++;
}

text *
evbus_receipts_out(EvbusReceipts *batch)
{
	text	   *result;
	int			len;

	memcpy(batch->bytes.data + BATCH_HEAD - sizeof(batch->n), &batch->n, sizeof(batch->n));
	while (batch->bytes.len % 3 != 0)
		appendStringInfoChar(&batch->bytes, '\0');
	len = batch->bytes.len / 3 * 4;
	result = palloc(VARHDRSZ + len);
	SET_VARSIZE(result, VARHDRSZ + len);
	encode((unsigned char *) batch->bytes.data, batch->bytes.len, VARDATA(result));
	return result;
}

static bool
take_signed(const unsigned char **at, const unsigned char *end, int64 low, int64 high, int64 *sum)
{
	int64		step;

	return evbus_take_signed(at, end, &step) && !pg_add_s64_overflow(*sum, step, sum) && *sum >= low && *sum <= high;
}

/* Its receipts, out has room for n; false: it was never one. */
static bool
read_batch(const unsigned char *bytes, int len, EvbusReceipt *out, int n)
{
	const unsigned char *at = bytes + BATCH_HEAD;
	const unsigned char *end = bytes + len;
	EvbusReceipt common = {0};
	int64		event_id = 0;
	int64		lease = 0;
	int64		epoch = 0;

	memcpy(&common.incarnation, bytes + 1, sizeof(common.incarnation));
	memcpy(&common.subscription_id, bytes + 9, sizeof(common.subscription_id));
	memcpy(&common.sub_slot, bytes + 13, sizeof(common.sub_slot));
	for (int i = 0; i < n; i++)
	{
		if (!take_signed(&at, end, PG_INT64_MIN, PG_INT64_MAX, &event_id) ||
			!take_signed(&at, end, PG_INT32_MIN, PG_INT32_MAX, &lease) ||
			!take_signed(&at, end, 0, PG_UINT32_MAX, &epoch))
			return false;
		out[i] = common;
		out[i].event_id = event_id;
		out[i].lease = (int32) lease;
		out[i].epoch = (uint32) epoch;
	}
	for (; at < end; at++)
		if (*at != 0 || end - at > 2)
			return false;
	return true;
}

/* --------------------------------------------------------------------- reading */

/* The receipts in a text, of either form; errors 22023 if it never was one. */
EvbusReceipt *
evbus_receipts_in(const char *text, int len, int *n)
{
	EvbusReceipt *receipts;
	unsigned char *bytes;

	if (len == EVBUS_RECEIPT_CHARS)
	{
		receipts = palloc(sizeof(EvbusReceipt));
		read_one(text, receipts);
		*n = 1;
		return receipts;
	}
	if (len % 4 != 0 || len / 4 * 3 < BATCH_HEAD + LEAST_BYTES)
		refuse(text, len);
	bytes = palloc(len / 4 * 3);
	if (!decode((const unsigned char *) text, len, bytes) || bytes[0] != BATCH_FORM)
		refuse(text, len);
	memcpy(n, bytes + BATCH_HEAD - sizeof(*n), sizeof(*n));
	if (*n < 1 || *n > EVBUS_BATCH_MAX || *n > (len / 4 * 3 - BATCH_HEAD) / LEAST_BYTES)
		refuse(text, len);
	receipts = palloc(sizeof(EvbusReceipt) * *n);
	if (!read_batch(bytes, len / 4 * 3, receipts, *n))
		refuse(text, len);
	pfree(bytes);
	return receipts;
}
