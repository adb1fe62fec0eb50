/* health_tell.h: tells when a check of evbus.health() comes to another level */
#ifndef EVBUS_HEALTH_TELL_H
#define EVBUS_HEALTH_TELL_H

#include "evbus.h"

extern int	evbus_health_interval;

extern int	evbus_health_turn(EvbusDb *db);

#endif							/* EVBUS_HEALTH_TELL_H */
