/* privilege.h: who may do what with which bus and subscription */
#ifndef EVBUS_PRIVILEGE_H
#define EVBUS_PRIVILEGE_H

#include "registry.h"

/* Of a bus, and from EVBUS_CONSUME on of a subscription. */
typedef enum EvbusPrivilege
{
	EVBUS_PUBLISH,				/* to it */
	EVBUS_READ,					/* its history */
	EVBUS_SUBSCRIBE,			/* to it, and go on being delivered to */
	EVBUS_MANAGE,				/* its settings; pause it */
	EVBUS_CONSUME,				/* receive and settle */
	EVBUS_OPERATE,				/* settings, pause, seek, replay, redrive, discard */
	EVBUS_PRIVILEGES
} EvbusPrivilege;

extern bool evbus_bus_allows(const EvbusBus *bus, Oid role, EvbusPrivilege privilege);
extern bool evbus_subscription_allows(const EvbusSubscription *sub, Oid role, EvbusPrivilege privilege);
extern void evbus_check_bus(const EvbusBus *bus, Oid role, EvbusPrivilege privilege);
extern void evbus_check_subscription(const EvbusSubscription *sub, Oid role, EvbusPrivilege privilege);
extern void evbus_check_owner(Oid owner, const char *kind, const char *name);
extern bool evbus_may_be_delivered_to(const EvbusSubscription *sub);
extern void evbus_privilege_sweep(void);

#endif							/* EVBUS_PRIVILEGE_H */
