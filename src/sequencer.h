/* sequencer.h: the worker that gives positions */
#ifndef EVBUS_SEQUENCER_H
#define EVBUS_SEQUENCER_H

#include "evbus.h"

extern int	evbus_late_after;

#endif
