/*-------------------------------------------------------------------------
 * wait_names.c
 *	  Another extension that takes all names for wait events that are left.
 *
 * Preloaded before and after evbus by test/t/011_wait.pl.  From PostgreSQL 17 on only.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/wait_event.h"

PG_MODULE_MAGIC;

extern void _PG_init(void);

static shmem_startup_hook_type prev_startup_hook = NULL;

static void
take_all(void)
{
	if (prev_startup_hook)
		prev_startup_hook();
	for (int i = 0;; i++)
	{
		int			n;

		(void) GetWaitEventCustomNames(PG_WAIT_EXTENSION, &n);
		if (n >= 127)
			break;
		(void) WaitEventExtensionNew(psprintf("Other%d", i));
	}
}

void
_PG_init(void)
{
	prev_startup_hook = shmem_startup_hook;
	shmem_startup_hook = take_all;
}
