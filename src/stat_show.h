/* stat_show.h: statistics as SQL sees them; and the maintainer's part of them */
#ifndef EVBUS_STAT_SHOW_H
#define EVBUS_STAT_SHOW_H

#include "evbus.h"

#include "registry.h"

extern void evbus_stat_sample(EvbusDb *db, const EvbusSubscription *subs, int n);

#endif
