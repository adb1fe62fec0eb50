/* target.h: what a handler is */
#ifndef EVBUS_TARGET_H
#define EVBUS_TARGET_H

#include "evbus.h"

#include "registry.h"

extern Oid	evbus_event_type(bool array);
extern const char *evbus_cannot_log_in(Oid role);
extern Oid	evbus_handler_function(const EvbusSubscription *sub);

#endif
