/* order_list.h: the entries of one key, by position; the caller holds EvbusSub.lock, EXCLUSIVE */
#ifndef EVBUS_ORDER_LIST_H
#define EVBUS_ORDER_LIST_H

#include "evbus.h"

extern int32 evbus_order_first(EvbusDb *db, int sub_slot, uint32 hash);
extern void evbus_order_enlist(EvbusDb *db, int sub_slot, int32 i);
extern int32 evbus_order_delist(EvbusDb *db, int sub_slot, int32 i);

#endif
