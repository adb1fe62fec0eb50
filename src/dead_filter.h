/* dead_filter.h: which dead letters a call is about */
#ifndef EVBUS_DEAD_FILTER_H
#define EVBUS_DEAD_FILTER_H

#include "evbus.h"

#include "fmgr.h"
#include "utils/jsonb.h"

/* Parameters of every statement that goes by a filter; it may use those it likes. */
typedef enum EvbusDeadParam
{
	EVBUS_DEAD_IDS = 0,			/* $1 bigint[] */
	EVBUS_DEAD_SUBSCRIPTION,	/* $2 text: only of what is gone; else `subscriptions` says it */
	EVBUS_DEAD_BUS,				/* $3 text: the same */
	EVBUS_DEAD_TYPES,			/* $4 text[], patterns */
	EVBUS_DEAD_SQLSTATE,		/* $5 text */
	EVBUS_DEAD_AFTER,			/* $6 timestamptz, inclusive */
	EVBUS_DEAD_BEFORE,			/* $7 timestamptz, exclusive */
	EVBUS_DEAD_LIMIT,			/* $8 bigint */
	EVBUS_DEAD_FROM_ID,			/* $9 bigint, exclusive */
	EVBUS_DEAD_UPTO_ID,			/* $10 bigint, inclusive */
	EVBUS_DEAD_BY,				/* $11 text: who does it */
	EVBUS_DEAD_NOTE,			/* $12 text: why */
	EVBUS_DEAD_PARAMS
} EvbusDeadParam;

typedef struct EvbusDeadFilter
{
	Datum		values[EVBUS_DEAD_PARAMS];
	char		nulls[EVBUS_DEAD_PARAMS + 1];
	char	   *scope;			/* condition: whose dead letters these may be */
	int32		subscription_id;	/* 0: of any */
	int32		bus_id;			/* 0: of any */
} EvbusDeadFilter;

extern const Oid evbus_dead_types[EVBUS_DEAD_PARAMS];

extern void evbus_dead_filter_init(EvbusDeadFilter *filter);
extern void evbus_dead_filter_set(EvbusDeadFilter *filter, EvbusDeadParam param, Datum value);
extern void evbus_dead_filter_read(FunctionCallInfo fcinfo, EvbusDeadFilter *filter, bool gone_too);
extern void evbus_dead_filter_nobody_left(const char *subscription) pg_attribute_noreturn();
extern void evbus_dead_filter_audit(FunctionCallInfo fcinfo, const Jsonb *after);
extern void evbus_dead_filter_ids(FunctionCallInfo fcinfo, EvbusDeadFilter *filter, bool gone_too);
extern void evbus_dead_filter_scope(EvbusDeadFilter *filter, Oid role, bool gone_too);
extern char *evbus_dead_filter_where(const EvbusDeadFilter *filter);
extern int64 evbus_dead_filter_count(EvbusDeadFilter *filter);

#endif
