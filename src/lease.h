/* lease.h: what is not done: the entries and their pool */
#ifndef EVBUS_LEASE_H
#define EVBUS_LEASE_H

#include "evbus.h"

/* A range or retry in the hands of the caller. */
typedef struct EvbusClaim
{
	int			sub_slot;
	int32		lease;
	uint32		epoch;
	int64		scan_from;		/* first position to look at */
	int64		hi;				/* one past the last */
	int			attempts;		/* deliveries that ran out before */
	int64		suspect;		/* event whose handler ended its worker, or 0 */
} EvbusClaim;

/* Entries on their way back to the pool, or out of it; linked by next. */
typedef struct EvbusLeaseChain
{
	int32		head;			/* -1: none */
	int32		tail;
	int			n;
} EvbusLeaseChain;

#define EVBUS_NO_LEASES		((EvbusLeaseChain) {-1, -1, 0})

extern bool evbus_lease_for_worker;

extern int	evbus_lease_clients_share(void);
extern bool evbus_lease_available(EvbusDb *db, int sub_slot);

/* For all of these the caller holds EvbusSub.lock, EXCLUSIVE but for held(). */
extern int32 evbus_lease_alloc(EvbusDb *db, int sub_slot, bool remainder);
extern void evbus_lease_alloc_many(EvbusDb *db, int sub_slot, int n, EvbusLeaseChain *out);
extern int32 evbus_lease_next(EvbusDb *db, int sub_slot, EvbusLeaseChain *from);
extern void evbus_lease_insert(EvbusDb *db, EvbusSub *sub, int32 i);
extern void evbus_lease_insert_after(EvbusDb *db, EvbusSub *sub, int32 i, int32 after);
extern void evbus_lease_remove(EvbusDb *db, EvbusSub *sub, int32 i);
extern void evbus_lease_unlink(EvbusDb *db, EvbusSub *sub, int32 i, EvbusLeaseChain *out);
extern void evbus_lease_free(EvbusDb *db, EvbusLeaseChain *chain);
extern bool evbus_lease_cut(EvbusDb *db, EvbusSub *sub, EvbusLease *lease, int64 at);
extern int64 evbus_lease_take(EvbusDb *db, EvbusSub *sub, EvbusLease *lease, int64 max);
extern void evbus_lease_wait(EvbusDb *db, EvbusSub *sub, int32 i, int64 look);
extern void evbus_lease_give_back(EvbusDb *db, EvbusSub *sub, int32 i);
extern void evbus_lease_expire(EvbusDb *db, EvbusSub *sub, TimestampTz now);
extern EvbusLease *evbus_lease_held(EvbusDb *db, const EvbusClaim *claim);
extern void evbus_lease_grant(EvbusSub *sub, EvbusLease *lease);
extern void evbus_lease_claim(EvbusDb *db, int sub_slot, int32 i, int64 scan_from, EvbusClaim *claim);

#endif
