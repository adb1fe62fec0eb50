/*-------------------------------------------------------------------------
 * wait.c
 *	  Names for what evbus waits for, in pg_stat_activity.wait_event.
 *
 * From PostgreSQL 17 on each is an event of its own, of type Extension; before, all are "Extension".
 * The server has a limited number of names, for all extensions together.  They are taken by the postmaster as
 * shared memory is set up, and every process inherits them: so who waits needs no lock and cannot fail,
 * and others who use names up later take none of ours.  What could not be had is "Extension".
 *-------------------------------------------------------------------------
 */
#include "wait.h"

#include "utils/memutils.h"

static const char *const names[EVBUS_WAITS] = {
	[EVBUS_WAIT_LAUNCHER_MAIN] = "EvbusLauncherMain",
	[EVBUS_WAIT_SEQUENCER_MAIN] = "EvbusSequencerMain",
	[EVBUS_WAIT_MAINTAINER_MAIN] = "EvbusMaintainerMain",
	[EVBUS_WAIT_MAINTAINER_PAUSE] = "EvbusMaintainerPause",
	[EVBUS_WAIT_SCHEDULER_MAIN] = "EvbusSchedulerMain",
	[EVBUS_WAIT_HANDLER_MAIN] = "EvbusHandlerMain",
	[EVBUS_WAIT_RECEIVE] = "EvbusReceive",
	[EVBUS_WAIT_PLACED] = "EvbusPlaced",
	[EVBUS_WAIT_TICK] = "EvbusTick",
	[EVBUS_WAIT_PUBLISH_RATE] = "EvbusPublishRate",
	[EVBUS_WAIT_PUBLISH_SPACE] = "EvbusPublishSpace",
	[EVBUS_WAIT_PARTITION] = "EvbusPartition",
	[EVBUS_WAIT_ERRAND] = "EvbusErrand",
	[EVBUS_WAIT_READY] = "EvbusReady",
	[EVBUS_WAIT_DATABASE] = "EvbusDatabase",
	[EVBUS_WAIT_STOP_ALL] = "EvbusStopAll",
	[EVBUS_WAIT_WORKERS_STOP] = "EvbusWorkersStop"
};

static uint32 events[EVBUS_WAITS];

/* In the postmaster, at each start and after a crash: shared memory, and with it the server's names, is new. */
void
evbus_wait_init(void)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "evbus wait events", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);

	for (int i = 0; i < EVBUS_WAITS; i++)
		events[i] = evbus_wait_event_new(names[i]);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/* For WaitLatch() and ConditionVariableTimedSleep(). */
uint32
evbus_wait_event(EvbusWait wait)
{
	return events[wait] != 0 ? events[wait] : PG_WAIT_EXTENSION;
}
