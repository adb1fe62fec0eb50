/* settle.h: what clients say of their deliveries */
#ifndef EVBUS_SETTLE_H
#define EVBUS_SETTLE_H

#include "evbus.h"

#include "fmgr.h"

extern int	evbus_settle_ack(FunctionCallInfo fcinfo, int arg, const char *name, const char *what);

#endif
