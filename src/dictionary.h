/* dictionary.h: zstd dictionaries by id, and which of them a bus uses now */
#ifndef EVBUS_DICTIONARY_H
#define EVBUS_DICTIONARY_H

#include "evbus.h"

#include <zstd.h>

#include "siphash.h"

/* Columns of evbus.dictionary. */
enum
{
	DICT_ID = 1, DICT_BUS, DICT_TRAINED, DICT_CHECKED, DICT_SAMPLES, DICT_JSONB, DICT_STORED,
	DICT_SECRET, DICT_RAW, DICT_RETIRED, DICT_LAST_ID
};

#define EVBUS_DICTIONARY_MAX	(128 * 1024)	/* bytes of one */

typedef struct EvbusDictionary
{
	int32		id;
	char		secret[EVBUS_SIPHASH_KEY];	/* what codes of its frames are made with */
	const ZSTD_DDict *ddict;
	const ZSTD_CDict *cdict;	/* only of evbus_dictionary_of_bus() */
} EvbusDictionary;

extern int	evbus_compress_level;

extern const EvbusDictionary *evbus_dictionary_get(int32 id);
extern const EvbusDictionary *evbus_dictionary_of_bus(int32 bus_id);
extern void evbus_dictionary_changed(void);

#endif
