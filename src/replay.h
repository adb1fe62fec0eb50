/* replay.h: events of the past once more, beside the live flow */
#ifndef EVBUS_REPLAY_H
#define EVBUS_REPLAY_H

#include "evbus.h"

#include "registry.h"

#define EVBUS_REPLAY_RATE_MAX	1000000 /* events a second */

extern void evbus_replays_end(int32 subscription_id, int32 bus_id);
extern void evbus_replay_turn(EvbusDb *db, const EvbusSubscription *subs, int n);

#endif
