/* handler.h: the workers that call handlers */
#ifndef EVBUS_HANDLER_H
#define EVBUS_HANDLER_H

#include "evbus.h"

#include "registry.h"

extern int	evbus_worker_idle_timeout;

extern Oid	evbus_event_type(bool array);
extern const char *evbus_cannot_log_in(Oid role);
extern Oid	evbus_handler_function(const EvbusSubscription *sub);

#endif
