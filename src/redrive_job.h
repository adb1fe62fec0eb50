/* redrive_job.h: redrives at a pace, in the background */
#ifndef EVBUS_REDRIVE_JOB_H
#define EVBUS_REDRIVE_JOB_H

#include "evbus.h"

#include "dead_filter.h"

extern int64 evbus_redrive_job_add(EvbusDb *db, EvbusDeadFilter *filter, int rate);
extern int	evbus_redrive_turn(EvbusDb *db);

#endif
