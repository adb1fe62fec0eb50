/* jsonb_pack.h: jsonb in fewer bytes, to be stored */
#ifndef EVBUS_JSONB_PACK_H
#define EVBUS_JSONB_PACK_H

#include "evbus.h"
#include "lib/stringinfo.h"
#include "utils/jsonb.h"

extern int	evbus_jsonb_pack(const JsonbContainer *root, Size len, char *out, int room);
extern bool evbus_jsonb_unpack(const char *packed, int packed_len, char *out, Size len);
extern bool evbus_jsonb_print_packed(StringInfo out, const char *packed, int packed_len, int max, bool *sound);

#endif
