/* leaf.h: partitions by id: find, make, fill, list */
#ifndef EVBUS_LEAF_H
#define EVBUS_LEAF_H

#include "evbus.h"

#include "access/htup.h"
#include "utils/relcache.h"

typedef struct EvbusLeaf
{
	Oid			relid;
	int64		lo;				/* ids [lo, hi) */
	int64		hi;
} EvbusLeaf;

extern bool evbus_leaf_find(Oid parent, int64 id, EvbusLeaf *leaf);
extern int	evbus_leaf_list(Oid parent, EvbusLeaf **leaves);
extern Relation evbus_leaf_open(Oid parent, int64 id, EvbusLeaf *leaf);
extern void evbus_leaf_insert(Relation rel, HeapTuple *tuples, int n);
extern int	evbus_leaf_make(const char *parent, const char *prefix, int64 interval, int64 from, int64 upto);
extern int64 evbus_leaf_newest_in(Relation rel);
extern int64 evbus_leaf_newest(Oid parent);

#endif
