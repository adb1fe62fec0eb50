/* receipt.h: what a client shows to ack a delivery, or a batch */
#ifndef EVBUS_RECEIPT_H
#define EVBUS_RECEIPT_H

#include "evbus.h"
#include "lib/stringinfo.h"

#define EVBUS_RECEIPT_CHARS	43	/* 32 bytes in base64, without padding */

typedef struct EvbusReceipt
{
	uint64		incarnation;	/* of shared memory, and database */
	int64		event_id;
	int32		subscription_id;
	int32		sub_slot;
	int32		lease;
	uint32		epoch;
} EvbusReceipt;

/* The receipts of a batch, on their way into one text. */
typedef struct EvbusReceipts
{
	StringInfoData bytes;
	EvbusReceipt last;			/* each tells how it differs from the one before */
	int			n;
} EvbusReceipts;

extern uint64 evbus_receipt_incarnation(EvbusDb *db);
extern void evbus_receipt_write(const EvbusReceipt *receipt, char *out);
extern text *evbus_receipt_out(const EvbusReceipt *receipt);
extern void evbus_receipts_begin(EvbusReceipts *batch, const EvbusReceipt *like);
extern void evbus_receipts_add(EvbusReceipts *batch, const EvbusReceipt *receipt);
extern text *evbus_receipts_out(EvbusReceipts *batch);
extern EvbusReceipt *evbus_receipts_in(const char *text, int len, int *n);

#endif
