/*-------------------------------------------------------------------------
 * memory_reset.c
 *	  evbus_stat_memory_reset(), as whoever resets statistics calls it.
 *
 * Built by the TAP test that needs it; installed nowhere.
 *-------------------------------------------------------------------------
 */
#include "area.h"
#include "fmgr.h"
#include "stat_memory.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(test_memory_reset);

/* test_memory_reset() returns void */
Datum
test_memory_reset(PG_FUNCTION_ARGS)
{
	evbus_stat_memory_reset(evbus_db());
	PG_RETURN_VOID();
}
