/* internal.h: evbus's own SQL, run as the extension's owner */
#ifndef EVBUS_INTERNAL_H
#define EVBUS_INTERNAL_H

#include "evbus.h"

#include "executor/spi.h"

/* What evbus_internal_begin() changed and evbus_internal_end() puts back. */
typedef struct EvbusInternal
{
	Oid			user;
	int			sec_context;
	int			guc_level;
} EvbusInternal;

extern Oid	evbus_namespace(bool missing_ok);
extern void evbus_check_schema(void);
extern Oid	evbus_relid(const char *name);
extern bool evbus_installed(void);

extern void evbus_internal_begin(EvbusInternal *state);
extern void evbus_internal_end(EvbusInternal *state);
extern uint64 evbus_sql(SPIPlanPtr *plan, const char *sql, int nargs, const Oid *types,
						Datum *values, const char *nulls, long limit);
extern void evbus_utility(const char *format,...) pg_attribute_printf(1, 2);
extern Datum evbus_column(uint64 row, int column, bool *isnull);

#endif
