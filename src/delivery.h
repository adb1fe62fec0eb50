/* delivery.h: clients: receive, ack and their siblings */
#ifndef EVBUS_DELIVERY_H
#define EVBUS_DELIVERY_H

#include "evbus.h"

#include "registry.h"

extern void evbus_channel_name(const EvbusSubscription *sub, char *name);

#endif
