/* args.h: what SQL callers may pass, checked in one place */
#ifndef EVBUS_ARGS_H
#define EVBUS_ARGS_H

#include "evbus.h"

#include "fmgr.h"
#include "utils/array.h"
#include "utils/timestamp.h"

extern char *evbus_clip(const char *value, int len);
extern void evbus_arg_present(FunctionCallInfo fcinfo, int n, const char *name);
extern char *evbus_arg_text(FunctionCallInfo fcinfo, int n, const char *name);
extern void evbus_check_name(const char *value, const char *what);
extern char *evbus_arg_name(FunctionCallInfo fcinfo, int n, const char *name);
extern int	evbus_arg_int(FunctionCallInfo fcinfo, int n, const char *name, int low, int high);
extern int64 evbus_arg_bigint(FunctionCallInfo fcinfo, int n, const char *name, int64 low, int64 high);
extern int	evbus_arg_choice(FunctionCallInfo fcinfo, int n, const char *name, const char *const *choices, int n_choices);
extern void evbus_check_burst(int rate, int burst, const char *rate_name, const char *burst_name);
extern double evbus_arg_share(FunctionCallInfo fcinfo, int n, const char *name);
extern int64 evbus_arg_interval(FunctionCallInfo fcinfo, int n, const char *name, int64 low, int64 high);
extern int64 evbus_interval_usecs(const Interval *span);
extern Datum evbus_interval_datum(int64 usecs);
extern void evbus_arg_array(FunctionCallInfo fcinfo, int n, const char *name,
							Datum **values, bool **nulls, int *count);
extern bool evbus_arg_optional_array(FunctionCallInfo fcinfo, int n, const char *name, const char *events, int count,
									 Datum **values, bool **nulls);
extern bool evbus_arg_empty(FunctionCallInfo fcinfo, int n);
extern void evbus_check_patterns(FunctionCallInfo fcinfo, int n);
extern void evbus_no_nulls(const bool *nulls, int count, const char *name);

#endif
