/* replicated.h: logical replication must not write to our tables */
#ifndef EVBUS_REPLICATED_H
#define EVBUS_REPLICATED_H

#include "evbus.h"

#include "nodes/nodes.h"

extern bool evbus_subscribes_tables(Node *statement);
extern void evbus_refuse_replicated(void);

#endif							/* EVBUS_REPLICATED_H */
