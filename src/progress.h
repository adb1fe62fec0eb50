/* progress.h: how far long work is, for others to see */
#ifndef EVBUS_PROGRESS_H
#define EVBUS_PROGRESS_H

#include "evbus.h"

typedef enum EvbusWork
{
	EVBUS_WORK_NONE = 0,
	EVBUS_WORK_RECOVERY,
	EVBUS_WORK_REDRIVE,
	EVBUS_WORK_TRAINING,
	EVBUS_WORK_INDEX
} EvbusWork;

/* What it is at; each has a unit in which it counts. */
typedef enum EvbusPhase
{
	EVBUS_PHASE_LEDGER = 0,
	EVBUS_PHASE_TICKS,
	EVBUS_PHASE_PLACING,
	EVBUS_PHASE_REDRIVING,
	EVBUS_PHASE_COLLECTING,
	EVBUS_PHASE_TRAINING,
	EVBUS_PHASE_TESTING,
	EVBUS_PHASE_INDEXING,
	EVBUS_PHASE_ANALYZING
} EvbusPhase;

#define EVBUS_UNKNOWN	INT64CONST(-1)	/* done or total that nobody knows */

/*
 * One for each process of the server, at its place among all; written by that process alone, without a lock.
 * changes is odd while it writes: who reads looks before and after.  done rises apart from that.
 */
typedef struct EvbusTask
{
	pg_atomic_uint32 changes;
	EvbusWork	work;			/* NONE: it is at nothing long */
	EvbusPhase	phase;
	pid_t		pid;
	Oid			dboid;
	TimestampTz started_at;
	int64		total;
	pg_atomic_uint64 done;
	char		subject[NAMEDATALEN];	/* bus or leaf; empty: none */
} EvbusTask;

extern EvbusTask *evbus_tasks;	/* EVBUS_BACKENDS; set by shmem.c */
extern const char *const evbus_work_names[];

extern void evbus_progress_begin(EvbusWork work, const char *subject, EvbusPhase phase, int64 done, int64 total);
extern void evbus_progress_phase(EvbusPhase phase, int64 done, int64 total);
extern void evbus_progress_step(EvbusPhase phase);
extern void evbus_progress_add(int64 n);
extern void evbus_progress_end(void);
extern bool evbus_progress_copy(int i, EvbusTask *copy);

#endif							/* EVBUS_PROGRESS_H */
