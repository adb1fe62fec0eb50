/*-------------------------------------------------------------------------
 * evbus_test.c
 *	  What a handler written in C can do to a server, and one in SQL cannot.
 *
 * Built by the TAP tests that need it (EvbusTest::test_module); installed
 * nowhere.  Handlers of the tests call these functions.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "fmgr.h"

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

/* test_hog(mb int) returns void: may have so much more memory, and wants more than that */
Datum
test_hog(PG_FUNCTION_ARGS)
{
	struct rlimit old;
	struct rlimit tight;
	long		pages = 0;
	FILE	   *statm = fopen("/proc/self/statm", "r");

	if (statm == NULL || fscanf(statm, "%ld", &pages) != 1 || getrlimit(RLIMIT_AS, &old) != 0)
		elog(ERROR, "cannot find out how much memory is in use");
	fclose(statm);
	tight = old;
	tight.rlim_cur = pages * sysconf(_SC_PAGESIZE) + PG_GETARG_INT32(0) * 1024L * 1024L;
	if (setrlimit(RLIMIT_AS, &tight) != 0)
		elog(ERROR, "cannot limit memory");
	PG_TRY();
	{
		for (;;)
			(void) palloc(1024 * 1024);
	}
	PG_FINALLY();
	{
		(void) setrlimit(RLIMIT_AS, &old);
	}
	PG_END_TRY();
	PG_RETURN_VOID();
}
