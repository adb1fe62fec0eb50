/* memory.h: what becomes of freed memory */
#ifndef EVBUS_MEMORY_H
#define EVBUS_MEMORY_H

#include "evbus.h"

extern void evbus_trim_memory(void);
extern void evbus_keep_memory(Size bytes);

#endif
