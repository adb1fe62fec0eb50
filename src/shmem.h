/* shmem.h: evbus's shared memory */
#ifndef EVBUS_SHMEM_H
#define EVBUS_SHMEM_H

#include "evbus.h"

extern void evbus_shmem_init(void);

#endif
