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
#include "common/base64.h"

#define RECEIPT_CHARS	43		/* 32 bytes in base64, without padding */

uint64
evbus_receipt_incarnation(EvbusDb *db)
{
	return evbus_shared->incarnation ^ (((uint64) db->dboid << 32) | db->bus_relid) ^ (uint64) db->claimed_at;
}

/* base64 in its URL form, so that it needs no quoting anywhere. */
char *
evbus_receipt_out(const EvbusReceipt *receipt)
{
	char	   *out = palloc(pg_b64_enc_len(sizeof(EvbusReceipt)) + 1);
	int			len = pg_b64_encode((const void *) receipt, sizeof(EvbusReceipt), out, pg_b64_enc_len(sizeof(EvbusReceipt)));

	Assert(len > RECEIPT_CHARS);
	out[Min(len, RECEIPT_CHARS)] = '\0';
	for (char *c = out; *c; c++)
		*c = *c == '+' ? '-' : *c == '/' ? '_' : *c;
	return out;
}

/* Errors 22023 if the text never was a receipt. */
void
evbus_receipt_in(const char *text, int len, EvbusReceipt *receipt)
{
	char		padded[RECEIPT_CHARS + 2];
	char		bytes[sizeof(EvbusReceipt) + 3];

	StaticAssertStmt(sizeof(EvbusReceipt) == 32, "a receipt has 32 bytes");
	if (len == RECEIPT_CHARS)
	{
		for (int i = 0; i < len; i++)
			padded[i] = text[i] == '-' ? '+' : text[i] == '_' ? '/' : text[i];
		padded[len] = '=';
		padded[len + 1] = '\0';
		if (pg_b64_decode(padded, len + 1, (void *) bytes, sizeof(bytes)) == sizeof(EvbusReceipt))
		{
			memcpy(receipt, bytes, sizeof(EvbusReceipt));
			return;
		}
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid receipt \"%s\"", evbus_clip(text, len)),
			 errhint("Pass receipts just as evbus.receive() returned them.")));
}
