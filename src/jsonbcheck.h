/* jsonbcheck.h: is this really a jsonb? */
#ifndef EVBUS_JSONBCHECK_H
#define EVBUS_JSONBCHECK_H

#include "evbus.h"

#include "utils/jsonb.h"

extern bool evbus_numeric_sound(const char *data, Size len);
extern bool evbus_jsonb_sound(const JsonbContainer *container, Size len, bool root);

#endif
