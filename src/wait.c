/*-------------------------------------------------------------------------
 * wait.c
 *	  Names for what evbus waits for, in pg_stat_activity.wait_event.
 *
 * From PostgreSQL 17 on each is an event of its own, of type Extension; before, all are "Extension".
 * The server keeps the names, for all processes; a process asks for each once.  That takes a lock and may
 * fail, so: not in a commit callback, nor under a lock or spinlock.  Nothing waits there.
 *-------------------------------------------------------------------------
 */
#include "wait.h"

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

/* For WaitLatch() and ConditionVariableTimedSleep(). */
uint32
evbus_wait_event(EvbusWait wait)
{
	static uint32 events[EVBUS_WAITS];

	if (events[wait] == 0)
		events[wait] = evbus_wait_event_new(names[wait]);
	return events[wait];
}
