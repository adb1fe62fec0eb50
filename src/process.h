/* process.h: what each process of evbus is at, for others to see */
#ifndef EVBUS_PROCESS_H
#define EVBUS_PROCESS_H

#include "evbus.h"

typedef enum EvbusProcessKind
{
	EVBUS_PROCESS_NONE = 0,
	EVBUS_PROCESS_LAUNCHER,
	EVBUS_PROCESS_SEQUENCER,
	EVBUS_PROCESS_MAINTAINER,
	EVBUS_PROCESS_INDEXER,
	EVBUS_PROCESS_SCHEDULER,
	EVBUS_PROCESS_HANDLER
} EvbusProcessKind;

typedef enum EvbusProcessState
{
	EVBUS_PROCESS_STARTING = 0,
	EVBUS_PROCESS_IDLE,
	EVBUS_PROCESS_BUSY
} EvbusProcessState;

/*
 * One for each that there can be, at its place among all processes of the server; written by that process
 * alone, without a lock.  changes is odd while it writes: who reads looks before and after.
 */
typedef struct EvbusProcess
{
	pg_atomic_uint32 changes;
	EvbusProcessKind kind;		/* NONE: it is no process of evbus */
	EvbusProcessState state;
	pid_t		pid;
	Oid			dboid;			/* InvalidOid: none */
	Oid			owner;
	int32		subscription_id;	/* that it serves, of a replay that of what is replayed; 0: none */
	int64		event_id;		/* that is in the handler alone; 0: none */
	TimestampTz since;			/* of the state, or of the batch */
	TimestampTz started_at;
	int64		batches;		/* pieces of work done */
	pg_atomic_uint64 memory;	/* bytes of its memory contexts, a second ago at most while it turns; apart from changes */
	pg_atomic_uint64 memory_high;	/* also written by evbus_stat_memory_reset() */
} EvbusProcess;

extern EvbusProcess *evbus_processes;	/* EVBUS_BACKENDS; set by shmem.c */
extern const char *const evbus_process_kinds[];

extern void evbus_process_begin(EvbusProcessKind kind, Oid dboid, Oid owner);
extern void evbus_process_busy(const char *what, int32 subscription_id);
extern void evbus_process_idle(const char *what);
extern void evbus_process_done(void);
extern void evbus_process_event(int64 event_id);
extern void evbus_process_memory(int64 now);
extern bool evbus_process_copy(int i, EvbusProcess *copy);

#endif							/* EVBUS_PROCESS_H */
