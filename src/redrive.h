/* redrive.h: dead letters become retries again */
#ifndef EVBUS_REDRIVE_H
#define EVBUS_REDRIVE_H

#include "evbus.h"

#include "dead_filter.h"

#define EVBUS_REDRIVE_RATE_MAX	10000	/* events a second of a paced redrive */

extern int64 evbus_redrive_take(EvbusDb *db, EvbusDeadFilter *filter, int64 *last);

#endif
