/* upkeep.h: storage classes, leaves ahead, closed leaves, paused subscriptions */
#ifndef EVBUS_UPKEEP_H
#define EVBUS_UPKEEP_H

#include "evbus.h"

#include "leaf.h"

typedef struct EvbusClass
{
	int32		id;
	char		parent[NAMEDATALEN];	/* its table */
	int64		retention;		/* microseconds, as interval */
	int64		interval;
	int64		bytes;			/* limit of its size; 0: none */
	bool		drop_unconsumed;
	bool		orphan;			/* own class of a bus that is gone */
	int64		orphaned_id;	/* clock when that was seen; 0: not yet */
} EvbusClass;

/* Runs a step in a transaction of its own; returns NULL, or the message of what failed. */
typedef const char *(*EvbusRunner) (void (*step) (void *), void *arg);

extern int	evbus_dead_letter_retention;

extern int	evbus_classes(EvbusClass **classes);
extern int64 evbus_now_id(EvbusDb *db);
extern int64 evbus_oldest_open(EvbusDb *db, int *pid);
extern void evbus_upkeep_leaves_now(EvbusDb *db, int32 class_id);
extern int	evbus_upkeep_leaf_make(const char *name, int64 id);
extern bool evbus_upkeep_turn(EvbusDb *db, EvbusRunner run, bool retention, int max, bool *more);
extern int	evbus_upkeep_unindexed(EvbusDb *db, EvbusLeaf **due);
extern void evbus_upkeep_orphans(void);
extern void evbus_upkeep_pause(int32 subscription_id, const char *reason);

#endif
