/* jsonb_parse.h: JSON text to jsonb, many times over */
#ifndef EVBUS_JSONB_PARSE_H
#define EVBUS_JSONB_PARSE_H

#include "evbus.h"
#include "utils/jsonb.h"

typedef struct EvbusJsonbParser EvbusJsonbParser;

extern EvbusJsonbParser *evbus_jsonb_parser(void);
extern Jsonb *evbus_jsonb_parse(EvbusJsonbParser *parser, const char *text, int len);

#endif
