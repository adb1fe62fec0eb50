/* breaker.h: circuit breakers: when a subscription's deliveries stop because what they need is down */
#ifndef EVBUS_BREAKER_H
#define EVBUS_BREAKER_H

#include "evbus.h"

#include "lease.h"
#include "registry.h"

/* What a taker of deliveries may have. */
typedef enum EvbusAdmission
{
	EVBUS_ADMIT_ALL,
	EVBUS_ADMIT_PROBE,			/* one, and it has to tell what became of it */
	EVBUS_ADMIT_NONE
} EvbusAdmission;

extern int64 evbus_breaker_wait(EvbusDb *db, const EvbusSubscription *sub);
extern EvbusAdmission evbus_breaker_admit(EvbusDb *db, const EvbusSubscription *sub);
extern bool evbus_breaker_new_first(void);
extern void evbus_breaker_probe_is(int64 event_id, const EvbusClaim *claim);
extern void evbus_breaker_probe_end(bool lost);
extern void evbus_breaker_succeeded(EvbusDb *db, const EvbusSubscription *sub, int64 event_id);
extern bool evbus_breaker_failed(EvbusDb *db, const EvbusSubscription *sub, int64 event_id, int sqlerrcode,
								 bool rejected, const char *message, int64 *wait);
extern bool evbus_breaker_tripped(EvbusDb *db, const EvbusSubscription *sub);
extern bool evbus_breaker_ran_out(EvbusDb *db, const EvbusSub *shared, int64 event_id);
extern void evbus_breaker_forget(EvbusSub *shared);
extern bool evbus_breaker_close(EvbusDb *db, const EvbusSubscription *sub);
extern void evbus_breaker_look(EvbusDb *db, const EvbusSubscription *sub, EvbusBreaker *copy);
extern void evbus_breaker_in_window(const EvbusBreaker *b, int64 *succeeded, int64 *failed);

#endif
