/* bus_stop.h: buses stop and go on */
#ifndef EVBUS_BUS_STOP_H
#define EVBUS_BUS_STOP_H

#include "evbus.h"

extern void evbus_buses_pause(Oid role);

#endif
