/* receipt.h: what a client shows to ack a delivery */
#ifndef EVBUS_RECEIPT_H
#define EVBUS_RECEIPT_H

#include "evbus.h"

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

extern uint64 evbus_receipt_incarnation(EvbusDb *db);
extern void evbus_receipt_write(const EvbusReceipt *receipt, char *out);
extern text *evbus_receipt_out(const EvbusReceipt *receipt);
extern void evbus_receipt_in(const char *text, int len, EvbusReceipt *receipt);

#endif
