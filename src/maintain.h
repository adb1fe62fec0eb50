/* maintain.h: the upkeep worker */
#ifndef EVBUS_MAINTAIN_H
#define EVBUS_MAINTAIN_H

#include "evbus.h"

extern int	evbus_upkeep_interval;

#endif
