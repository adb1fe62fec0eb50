/*-------------------------------------------------------------------------
 * precommit.c
 *	  An extension that runs SQL when a transaction is about to commit.
 *
 * Preloaded before evbus, so that its callback comes after evbus's own: what the
 * setting precommit.sql publishes then comes when evbus has written everything.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

PG_MODULE_MAGIC;

static char *sql = NULL;

void		_PG_init(void);

static void
run(XactEvent event, void *arg)
{
	static bool running = false;

	if (event != XACT_EVENT_PRE_COMMIT || running || sql == NULL || *sql == '\0')
		return;
	running = true;
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	SPI_execute(pstrdup(sql), false, 0);
	SPI_finish();
	PopActiveSnapshot();
	running = false;
}

void
_PG_init(void)
{
	DefineCustomStringVariable("precommit.sql", "SQL to be run before a commit.", NULL, &sql, "", PGC_USERSET, 0, NULL, NULL, NULL);
	RegisterXactCallback(run, NULL);
}
