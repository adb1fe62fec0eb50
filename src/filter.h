/* filter.h: jsonpath filters of subscriptions */
#ifndef EVBUS_FILTER_H
#define EVBUS_FILTER_H

#include "evbus.h"

/* A filter ready to be asked; one piece of memory, to be copied as it is. */
typedef struct EvbusFilter EvbusFilter;

typedef enum EvbusVerdict
{
	EVBUS_FILTER_PASSES,
	EVBUS_FILTER_SKIPS,
	EVBUS_FILTER_FAULT			/* there was no answer: EvbusEvent.fault says why */
} EvbusVerdict;

extern int	evbus_filter_timeout;

extern void evbus_filter_check(Datum path);
extern EvbusFilter *evbus_filter_make(Datum path);
extern EvbusFilter *evbus_filter_copy(const EvbusFilter *filter);
extern EvbusVerdict evbus_filter_ask(const EvbusFilter *filter, EvbusEvent *event);

#endif
