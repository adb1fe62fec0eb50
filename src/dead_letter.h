/* dead_letter.h: deliveries given up on */
#ifndef EVBUS_DEAD_LETTER_H
#define EVBUS_DEAD_LETTER_H

#include "evbus.h"

#include "registry.h"

extern void evbus_dead_letter_add(EvbusDb *db, const EvbusSubscription *sub, const EvbusEvent *event,
								  const char *reason, const char *sqlstate, const char *message);
extern void evbus_dead_letter_fold(int retention_minutes);

#endif
