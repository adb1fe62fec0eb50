/* handler.h: the workers that call handlers */
#ifndef EVBUS_HANDLER_H
#define EVBUS_HANDLER_H

#include "evbus.h"

extern int	evbus_worker_idle_timeout;


#endif
