/*-------------------------------------------------------------------------
 * receipt.c
 *	  What a client shows to ack a delivery: opaque text, good for one lease.
 *
 * It names the lease by its place and epoch and the event by its id, never by
 * position: after a crash another event may have that position.  The
 * incarnation, a random number for each start of shared memory, makes receipts
 * of before a crash strangers.
 *-------------------------------------------------------------------------
 */
#include "receipt.h"

#include "args.h"

uint64
evbus_receipt_incarnation(EvbusDb *db)
{
	return evbus_shared->incarnation ^ (((uint64) db->dboid << 32) | db->bus_relid) ^ (uint64) db->claimed_at;
}

/*
 * Base64 in its URL form, so that it needs no quoting anywhere; straight into a
 * text, with tables: a consumer of small events spends a good part of its time here.
 */
static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

void
evbus_receipt_write(const EvbusReceipt *receipt, char *out)
{
	unsigned char bytes[sizeof(EvbusReceipt) + 1] = {0};

	StaticAssertStmt(sizeof(EvbusReceipt) == 32, "a receipt has 32 bytes");
	memcpy(bytes, receipt, sizeof(EvbusReceipt));
	for (int i = 0; i < sizeof(bytes); i += 3)
	{
		uint32		three = bytes[i] << 16 | bytes[i + 1] << 8 | bytes[i + 2];

		*out++ = letters[three >> 18];
		*out++ = letters[three >> 12 & 63];
		*out++ = letters[three >> 6 & 63];
		if (i < sizeof(bytes) - 3)
			*out++ = letters[three & 63];
	}
}

text *
evbus_receipt_out(const EvbusReceipt *receipt)
{
	text	   *result = palloc(VARHDRSZ + EVBUS_RECEIPT_CHARS);

	SET_VARSIZE(result, VARHDRSZ + EVBUS_RECEIPT_CHARS);
	evbus_receipt_write(receipt, VARDATA(result));
	return result;
}

/* False: not the text of 32 bytes. */
static bool
decode(const char *text, int len, EvbusReceipt *receipt)
{
	static int8 values[256];
	static bool ready = false;
	unsigned char bytes[sizeof(EvbusReceipt) + 1];
	unsigned char padded[EVBUS_RECEIPT_CHARS + 1];	/* in fours */
	uint32		all = 0;

	if (!ready)
	{
		memset(values, -1, sizeof(values));
		for (int i = 0; i < 64; i++)
			values[(unsigned char) letters[i]] = i;
		ready = true;
	}
	if (len != EVBUS_RECEIPT_CHARS)
		return false;
	memcpy(padded, text, EVBUS_RECEIPT_CHARS);
	padded[EVBUS_RECEIPT_CHARS] = letters[0];
	for (int i = 0; i < sizeof(bytes) / 3; i++)
	{
		const unsigned char *in = padded + i * 4;
		uint32		four = values[in[0]] << 18 | values[in[1]] << 12 | values[in[2]] << 6 | values[in[3]];

		all |= four;			/* negative once a letter is none */
		bytes[i * 3] = four >> 16;
		bytes[i * 3 + 1] = four >> 8;
		bytes[i * 3 + 2] = four;
	}
	memcpy(receipt, bytes, sizeof(EvbusReceipt));
	return all < 1 << 24 && bytes[sizeof(EvbusReceipt)] == 0;
}

/* Errors 22023 if the text never was a receipt. */
void
evbus_receipt_in(const char *text, int len, EvbusReceipt *receipt)
{
	if (!decode(text, len, receipt))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid receipt \"%s\"", evbus_clip(text, len)),
				 errhint("Pass receipts just as evbus.receive() returned them.")));
}
