/* changes.h: the trigger function that publishes changes of a table */
#ifndef EVBUS_CHANGES_H
#define EVBUS_CHANGES_H

#include "evbus.h"

#include "access/attnum.h"
#include "utils/relcache.h"

/* What the trigger is told, in this order; the latter two as array literals. */
enum
{
	EVBUS_CHANGES_BUS,
	EVBUS_CHANGES_PREFIX,
	EVBUS_CHANGES_COLUMNS,
	EVBUS_CHANGES_KEYS,
	EVBUS_CHANGES_ARGS
};

extern text *evbus_changes_type(const char *prefix, int verb);
extern AttrNumber *evbus_changes_columns(Relation rel, const char *what, Datum *names, int n, const char *hint);
extern AttrNumber *evbus_changes_primary_key(Relation rel, int *n);

#endif
