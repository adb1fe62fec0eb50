/*-------------------------------------------------------------------------
 * evbus_test.c
 *	  What a handler written in C can do to a server, and one in SQL cannot.
 *
 * Built by the TAP tests that need it (EvbusTest::test_module); installed
 * nowhere.  Handlers of the tests call these functions.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <time.h>

#include "fmgr.h"
#include "utils/memutils.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(test_crash);
PG_FUNCTION_INFO_V1(test_spin);
PG_FUNCTION_INFO_V1(test_hog);

/* test_crash() returns void: a segmentation fault */
Datum
test_crash(PG_FUNCTION_ARGS)
{
	*(volatile int *) 8 = 1;
	PG_RETURN_VOID();
}

/* test_spin(ms int) returns void: busy for that long, deaf to cancel and SIGTERM */
Datum
test_spin(PG_FUNCTION_ARGS)
{
	int64		ms = PG_GETARG_INT32(0);
	struct timespec begin;
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &begin);
	do
		clock_gettime(CLOCK_MONOTONIC, &now);
	while ((now.tv_sec - begin.tv_sec) * 1000 + (now.tv_nsec - begin.tv_nsec) / 1000000 < ms);
	PG_RETURN_VOID();
}

/* test_hog(mb int) returns void: allocates and touches that much, until its transaction ends */
Datum
test_hog(PG_FUNCTION_ARGS)
{
	for (int i = 0; i < PG_GETARG_INT32(0); i++)
		memset(MemoryContextAlloc(TopTransactionContext, 1024 * 1024), 1, 1024 * 1024);
	PG_RETURN_VOID();
}
