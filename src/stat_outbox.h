/* stat_outbox.h: what the current transaction has counted */
#ifndef EVBUS_STAT_OUTBOX_H
#define EVBUS_STAT_OUTBOX_H

#include "evbus.h"

#include "registry.h"
#include "stats.h"

extern bool evbus_track_statistics;

extern void evbus_stat_published(EvbusDb *db, const EvbusBus *bus, const char *type, int type_len, Size bytes);
extern void evbus_stat_delivered(EvbusDb *db, const EvbusSubscription *sub, const EvbusEvent *event, TimestampTz now);
extern void evbus_stat_done(EvbusDb *db, const EvbusSubscription *sub, int64 n);
extern void evbus_stat_failed(EvbusDb *db, const EvbusSubscription *sub, const EvbusEvent *event);
extern void evbus_stat_died(EvbusDb *db, const EvbusSubscription *sub, const EvbusEvent *event);
extern void evbus_stat_handled(EvbusDb *db, const EvbusSubscription *sub, int64 us);
extern void evbus_stat_not_delivered(EvbusDb *db, const EvbusSubscription *sub, const EvbusEvent *event);
extern void evbus_stat_ran_out(EvbusDb *db, int slot, int32 subscription_id);
extern void evbus_stat_lag(EvbusDb *db, const EvbusSubscription *sub, int64 lag);

extern void evbus_stat_outbox_init(void);

#endif
