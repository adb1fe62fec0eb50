/* order.h: which events have to wait for which: the entries of subscriptions in order, by key */
#ifndef EVBUS_ORDER_H
#define EVBUS_ORDER_H

#include "evbus.h"

#include "lease.h"
#include "registry.h"

/* How a taker of deliveries goes about it. */
typedef struct EvbusTaking
{
	EvbusDb    *db;
	const EvbusSubscription *sub;
	uint32		number;			/* of this taking: EvbusSub.takes */
	bool		together;		/* one batch may hold several of a key: they are done one after the other */
	bool		acked;			/* this transaction has acked some, which no longer are in its way */
	bool		behind;			/* by the maintainer, of those that wait for a row in evbus.retry */
	TimestampTz expires_at;		/* of the leases; 0: never */
} EvbusTaking;

extern uint32 evbus_order_hash(const EvbusSubscription *sub, const char *key, int len);
extern bool evbus_order_begin(EvbusTaking *taking);
extern int	evbus_order_claim_ready(const EvbusTaking *taking, int max, int64 bytes_max, EvbusClaim *claims, EvbusEvent *events);
extern bool evbus_order_claim_range(const EvbusTaking *taking, int64 max, EvbusClaim *claim);
extern int	evbus_order_split(const EvbusTaking *taking, const EvbusClaim *claim, EvbusEvent *events, int n,
							  int max, EvbusClaim *claims, bool *full, int64 *end);
extern void evbus_order_put_back(const EvbusTaking *taking, const EvbusClaim *claim, uint32 settled);
extern void evbus_order_stop(const EvbusTaking *taking, uint32 settled);
extern bool evbus_order_crowded(EvbusDb *db, const EvbusSubscription *sub);
extern void evbus_order_recheck(EvbusDb *db, const EvbusSubscription *sub);
extern bool evbus_order_busy(const EvbusTaking *taking);

/* For these the caller holds EvbusSub.lock, EXCLUSIVE. */
extern bool evbus_order_may(EvbusDb *db, EvbusSub *sub, int sub_slot, uint32 hash, int64 position, int32 self,
							const EvbusTaking *taking);
extern void evbus_order_track(EvbusDb *db, EvbusSub *sub, int32 i, uint32 hash, const EvbusEvent *event,
							  uint32 take);
extern void evbus_order_untrack(EvbusDb *db, EvbusSub *sub, int32 i);
extern void evbus_order_returned(EvbusDb *db, EvbusSub *sub, int32 i);
extern void evbus_order_off(EvbusDb *db, EvbusSub *sub);
extern bool evbus_order_followed(EvbusDb *db, int32 i);
extern void evbus_order_pinned(EvbusDb *db, int32 i, bool ack);

#endif
