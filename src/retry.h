/* retry.h: deliveries that failed */
#ifndef EVBUS_RETRY_H
#define EVBUS_RETRY_H

#include "evbus.h"

#include "cursor.h"
#include "registry.h"

/* Why a delivery failed. */
typedef struct EvbusFailure
{
	int			sqlerrcode;
	const char *message;
	int64		delay;			/* microseconds until the next attempt; -1: by policy */
	bool		reject;			/* straight to the dead letters */
	bool		permanent;		/* the same, where the code does not say so */
} EvbusFailure;

extern bool evbus_retry_permanent(int sqlerrcode);
extern bool evbus_retry_fail(EvbusDb *db, const EvbusSubscription *sub, const EvbusEvent *event,
							 const EvbusFailure *failure);
extern void evbus_retry_settle(const EvbusSubscription *sub, int64 event_id);
extern void evbus_retry_settle_attempt(const EvbusSubscription *sub, const EvbusEvent *event);
extern TimestampTz evbus_retry_next(EvbusDb *db, const EvbusSubscription *sub);
extern int	evbus_retry_claim(EvbusDb *db, const EvbusSubscription *sub, int max,
							  EvbusEvent *events, EvbusClaim *claims);
extern bool evbus_retry_load(const EvbusSubscription *sub, EvbusEvent *event);

#endif
