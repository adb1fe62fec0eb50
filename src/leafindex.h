/* leafindex.h: indexes by type and key of leaves that are written no more */
#ifndef EVBUS_LEAFINDEX_H
#define EVBUS_LEAFINDEX_H

#include "evbus.h"

extern bool evbus_history_indexes;

extern bool evbus_leaf_indexed(Oid relid);
extern bool evbus_leaf_index(Oid relid);

#endif
