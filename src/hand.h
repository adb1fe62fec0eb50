/* hand.h: what a handler worker has claimed */
#ifndef EVBUS_HAND_H
#define EVBUS_HAND_H

#include "evbus.h"

#include "reader.h"

/* A range for all events of a batch, or, in order and for retries, a claim for each. */
typedef struct EvbusHand
{
	EvbusClaim *claims;
	int			n;				/* claims to be given back when the process ends */
	int			size;
	bool		each;
	bool		single;			/* no more than one event: a probe (breaker.c) */
} EvbusHand;

extern EvbusClaim *evbus_hand_room(EvbusHand *hand, int n);
extern bool evbus_hand_take(EvbusDb *db, const EvbusSubscription *sub, EvbusHand *hand, EvbusEvents *found);
extern bool evbus_hand_suspect(const EvbusHand *hand);
extern bool evbus_hand_ours(EvbusDb *db, const EvbusHand *hand, int at);
extern bool evbus_hand_settle(EvbusDb *db, const EvbusSubscription *sub, const EvbusHand *hand, const EvbusEvents *found,
							  int at, int n, const bool *left);
extern void evbus_hand_return(EvbusDb *db, EvbusHand *hand, int64 suspect);

#endif
