/* cursor.h: how far each subscription is, and who has what in hand */
#ifndef EVBUS_CURSOR_H
#define EVBUS_CURSOR_H

#include "evbus.h"

#include "lease.h"
#include "order.h"
#include "registry.h"

/* A range of positions, [lo, hi). */
typedef struct EvbusRange
{
	int64		lo;
	int64		hi;
} EvbusRange;

/* What ledger.c found of one subscription. */
typedef struct EvbusProgress
{
	const EvbusSubscription *sub;
	int64		frontier;
	EvbusRange *open;			/* not done below frontier; ascending */
	int			n_open;
} EvbusProgress;

/* How far a subscription is; all in positions. */
typedef struct EvbusCursorState
{
	int64		cursor;			/* everything below is settled */
	int64		next_position;	/* of the bus */
	int64		in_flight;
	int64		undelivered;
	int64		dropped;		/* of a volatile bus, overwritten before they were settled */
	int			workers;
} EvbusCursorState;

extern bool evbus_cursor_loaded(EvbusDb *db, const EvbusSubscription *sub);
extern bool evbus_cursor_install(EvbusDb *db, const EvbusProgress *progress);
extern void evbus_cursor_forget(EvbusDb *db, int slot, int32 subscription_id);

extern bool evbus_cursor_claim(EvbusDb *db, const EvbusSubscription *sub, int64 max, EvbusClaim *claim);
extern bool evbus_cursor_extend_claim(EvbusDb *db, EvbusClaim *claim, int64 more);
extern bool evbus_cursor_skip(EvbusDb *db, const EvbusClaim *claim);
extern bool evbus_cursor_claim_retry(EvbusDb *db, const EvbusSubscription *sub, const EvbusEvent *event,
									 const EvbusTaking *taking, EvbusClaim *claim);
extern int	evbus_cursor_idle_retries(EvbusDb *db, const EvbusSubscription *sub, int64 *event_ids, int max);
extern void evbus_cursor_forget_retry(EvbusDb *db, const EvbusSubscription *sub, int64 event_id);
extern void evbus_cursor_drop(EvbusDb *db, const EvbusClaim *claim);
extern void evbus_cursor_return(EvbusDb *db, const EvbusClaim *claim, int64 suspect);
extern bool evbus_cursor_cut(EvbusDb *db, EvbusClaim *claim, int64 hi);
extern int	evbus_cursor_split(EvbusDb *db, const EvbusClaim *claim, const EvbusEvent *events, int n,
							   TimestampTz expires_at, EvbusClaim *out);
extern void evbus_cursor_set_expiry(EvbusDb *db, const EvbusClaim *claim, int64 event_id, TimestampTz expires_at);
extern bool evbus_cursor_has_work(EvbusDb *db, const EvbusSubscription *sub, TimestampTz now);
extern bool evbus_cursor_progress(EvbusDb *db, const EvbusSubscription *sub, EvbusCursorState *state);
extern bool evbus_cursor_enter(EvbusDb *db, const EvbusSubscription *sub);
extern void evbus_cursor_leave(EvbusDb *db, int slot, int32 subscription_id);
extern bool evbus_cursor_range(EvbusDb *db, const EvbusClaim *claim, EvbusRange *range);
extern bool evbus_cursor_good(EvbusDb *db, const EvbusClaim *claim, int32 subscription_id, int64 event_id,
							  EvbusLease *copy);
extern bool evbus_cursor_renew(EvbusDb *db, const EvbusClaim *claim, int32 subscription_id, int64 event_id,
							   TimestampTz expires_at);
extern void evbus_cursor_reap(EvbusDb *db, int slot, TimestampTz now);

#endif
