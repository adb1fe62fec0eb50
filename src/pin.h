/* pin.h: leases tied to the current transaction */
#ifndef EVBUS_PIN_H
#define EVBUS_PIN_H

#include "evbus.h"

#include "lease.h"
#include "registry.h"

typedef enum EvbusPinAction
{
	EVBUS_PIN_RECEIVED,			/* abort: give back */
	EVBUS_PIN_ACK,				/* commit: done */
	EVBUS_PIN_RELEASE,			/* commit: give back */
	EVBUS_PIN_PART				/* commit: the lower part is done */
} EvbusPinAction;

/* What a client's receipt names, and, once it is pinned, what that is. */
typedef struct EvbusHeld
{
	EvbusClaim	claim;			/* its place */
	int64		event_id;
	int32		subscription_id;
	bool		ours;			/* of this start of the server, and this database */
	bool		good;			/* pinned; only then the rest is set */
	int32		sub_epoch;		/* under which its subscription was then */
	bool		retry;
	int16		attempts;
	int64		lo;
	int64		hi;
} EvbusHeld;

extern void evbus_pin_init(void);
extern bool evbus_pin(EvbusDb *db, const EvbusClaim *claim, EvbusPinAction action);
extern void evbus_pin_held(EvbusDb *db, const EvbusSubscription *sub, EvbusHeld *held, int n, EvbusPinAction action);
extern void evbus_pin_room(int n);
extern void evbus_pin_received(EvbusDb *db, const EvbusClaim *claims, int n);
extern void evbus_pin_give_back(EvbusDb *db, const EvbusClaim *claims, int n);
extern bool evbus_pin_part(EvbusDb *db, const EvbusClaim *claim, int64 lo);
extern int	evbus_pin_count(void);
extern void evbus_pin_keep(int count);
extern bool evbus_pin_retries(EvbusDb *db, int sub_slot);
extern bool evbus_pin_reads(EvbusDb *db, int bus_slot);
extern bool evbus_pin_acks_in_order(void);
extern bool evbus_pinned_here(const EvbusClaim *claim, EvbusPinAction action);
extern void evbus_pin_look(EvbusDb *db, int sub_slot);
extern void evbus_pin_cleared(EvbusDb *db, int sub_slot);
extern void evbus_pin_due(EvbusDb *db, int sub_slot, TimestampTz due);

#endif
