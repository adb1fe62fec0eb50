/* delivery.h: clients: receive, ack and their siblings */
#ifndef EVBUS_DELIVERY_H
#define EVBUS_DELIVERY_H

#include "evbus.h"

#include "cursor.h"
#include "fmgr.h"
#include "receipt.h"
#include "registry.h"

/* A delivery on its way out. */
typedef struct EvbusDelivery
{
	EvbusEvent	event;
	EvbusClaim	claim;
	bool		retry;
	const EvbusSubscription *sub;	/* what it is of: the one that was asked for, or a replay */
} EvbusDelivery;

/* What a call has leased. */
typedef struct EvbusTaken
{
	EvbusDb    *db;
	const EvbusSubscription *sub;
	EvbusSubscription *replays; /* of it */
	int			n_replays;
	EvbusDelivery *deliveries;	/* in the order to be handed out */
	int			n;
	int64		bytes;			/* of all of them, as they are stored */
	TimestampTz expires_at;
	bool		probe;			/* of a circuit breaker: one delivery, whatever may be said against it */
} EvbusTaken;

extern void evbus_channel_name(const EvbusSubscription *sub, char *name);
extern void evbus_wait_placed(EvbusDb *db, const EvbusSubscription *subs, int n, uint64 tail);
extern void evbus_take(FunctionCallInfo fcinfo, const char *function, const char *acking, int64 bytes_max, EvbusTaken *t);
extern void evbus_taken_damaged(const EvbusTaken *t, int i);
extern EvbusReceipt evbus_taken_receipt(const EvbusTaken *t, int i);

#endif
