/* publish.h: events of the current transaction */
#ifndef EVBUS_PUBLISH_H
#define EVBUS_PUBLISH_H

#include "evbus.h"

extern void evbus_publish_init(void);

#endif
