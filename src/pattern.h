/* pattern.h: dotted event types and AMQP wildcards */
#ifndef EVBUS_PATTERN_H
#define EVBUS_PATTERN_H

#include "evbus.h"

extern const char *evbus_type_fault(const char *type, int len, bool pattern);
extern bool evbus_pattern_match(const char *pattern, int plen, const char *type, int tlen);

#endif
