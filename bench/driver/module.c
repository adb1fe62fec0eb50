/*-------------------------------------------------------------------------
 * module.c
 *	  Tells when a handler's transaction has committed, as no handler in SQL can.
 *
 * bench.note_commit(sent bigint, file text): remembers the time at which an event was
 * sent; once the transaction has committed, its WAL flushed, the nanoseconds since
 * then are appended to the file, eight bytes an event.  Those of a rollback are
 * forgotten.  Built and loaded by bench/run only.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include "access/xact.h"
#include "fmgr.h"
#include "utils/builtins.h"

PG_MODULE_MAGIC;

#define MAX_NOTED	10000		/* events of a transaction; handlers have no larger batches */

static int64 noted[MAX_NOTED];
static int	n_noted = 0;
static char path[MAXPGPATH];

static void
at_end(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT && n_noted > 0)
	{
		struct timespec t;
		int			fd = open(path, O_WRONLY | O_APPEND | O_CREAT, 0644);

		clock_gettime(CLOCK_MONOTONIC, &t);
		for (int i = 0; i < n_noted; i++)
			noted[i] = t.tv_sec * INT64CONST(1000000000) + t.tv_nsec - noted[i];
		/* No error may leave a commit callback: what is missing in the file, the driver notices. */
		if (fd >= 0)
		{
			if (write(fd, noted, n_noted * sizeof(int64)) < 0)
				n_noted = 0;
			close(fd);
		}
	}
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT)
		n_noted = 0;
}

PG_FUNCTION_INFO_V1(note_commit);
Datum
note_commit(PG_FUNCTION_ARGS)
{
	static bool registered = false;

	if (!registered)
	{
		RegisterXactCallback(at_end, NULL);
		registered = true;
	}
	if (n_noted == MAX_NOTED)
		elog(ERROR, "more than %d events in a transaction", MAX_NOTED);
	noted[n_noted++] = PG_GETARG_INT64(0);
	text_to_cstring_buffer(PG_GETARG_TEXT_PP(1), path, sizeof(path));
	PG_RETURN_VOID();
}
