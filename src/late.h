/* late.h: ids of transactions that could not use the ring */
#ifndef EVBUS_LATE_H
#define EVBUS_LATE_H

#include "evbus.h"

#include "utils/snapshot.h"

/* n consecutive ids of one bus. */
typedef struct EvbusIdRange
{
	int64		first;
	int32		n;
	int32		bus_id;
} EvbusIdRange;

/* A row; late_id is above every id it names. */
typedef struct EvbusLateRow
{
	int64		late_id;
	EvbusIdRange *ranges;
	int			n_ranges;
	int			n_ids;
} EvbusLateRow;

extern void evbus_late_write(EvbusDb *db, const EvbusIdRange *ranges, int n);
extern int	evbus_late_read(int64 max_id, int limit, EvbusLateRow **rows);
extern int	evbus_late_batch(const EvbusLateRow *rows, int n, int64 bound);
extern void evbus_late_delete(const EvbusLateRow *rows, int n);

#endif
