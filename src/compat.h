/*-------------------------------------------------------------------------
 * compat.h
 *	  The only home of PG_VERSION_NUM: every wrapper has the newest signature.
 *
 * Supported: PostgreSQL 15 to 18.
 *-------------------------------------------------------------------------
 */
#ifndef EVBUS_COMPAT_H
#define EVBUS_COMPAT_H

#include "postgres.h"

#if PG_VERSION_NUM < 150000
#error "evbus needs PostgreSQL 15 or later"
#endif

#include "miscadmin.h"
#if PG_VERSION_NUM < 170000
#include "storage/backendid.h"
#include "storage/sinvaladt.h"
#endif
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/wait_event.h"

#if PG_VERSION_NUM >= 160000
#include "catalog/pg_database_d.h"
#include "catalog/pg_extension_d.h"
#include "catalog/pg_proc_d.h"
#include "varatt.h"
#endif

/* In front of the declaration since 18. */
#if PG_VERSION_NUM < 180000
#define pg_noreturn pg_attribute_noreturn()
#endif

/* Number of this backend among all, from 0; slots are indexed by it. */
#if PG_VERSION_NUM >= 170000
#define EvbusMyBackend()	((int) MyProcNumber)
#define EVBUS_BACKENDS		(MaxBackends + NUM_AUXILIARY_PROCS)
#define EvbusBackendPid(i)	(ProcGlobal->allProcs[i].pid)
#else
#define EvbusMyBackend()	(MyBackendId - 1)
#define EVBUS_BACKENDS		(MaxBackends)
#define EvbusBackendPid(i)	evbus_backend_pid(i)
#endif

/* ProcGlobal->allProcs index, good for finding a latch. */
#if PG_VERSION_NUM >= 170000
#define EvbusMyProcno()		((int) MyProcNumber)
#else
#define EvbusMyProcno()		((int) MyProc->pgprocno)
#endif

/* Rights checks: object_aclcheck() came with 16. */
#if PG_VERSION_NUM >= 160000
#define evbus_proc_aclcheck(oid, role) object_aclcheck(ProcedureRelationId, oid, role, ACL_EXECUTE)
#define evbus_database_aclcheck(oid, role) object_aclcheck(DatabaseRelationId, oid, role, ACL_CONNECT)
#define evbus_database_ownercheck(oid, role) object_ownercheck(DatabaseRelationId, oid, role)
#define evbus_extension_ownercheck(oid, role) object_ownercheck(ExtensionRelationId, oid, role)
#else
#define evbus_proc_aclcheck(oid, role) pg_proc_aclcheck(oid, role, ACL_EXECUTE)
#define evbus_database_aclcheck(oid, role) pg_database_aclcheck(oid, role, ACL_CONNECT)
#define evbus_database_ownercheck(oid, role) pg_database_ownercheck(oid, role)
#define evbus_extension_ownercheck(oid, role) pg_extension_ownercheck(oid, role)
#endif

#if PG_VERSION_NUM < 170000
static inline int
evbus_backend_pid(int i)
{
	PGPROC	   *proc = BackendIdGetProc(i + 1);

	return proc ? proc->pid : 0;
}
#endif

/* index_beginscan() has an argument for EXPLAIN since 18; without one of ORDER BY. */
#if PG_VERSION_NUM >= 180000
#define evbus_index_beginscan(heap, index, snapshot, nkeys) index_beginscan(heap, index, snapshot, NULL, nkeys, 0)
#else
#define evbus_index_beginscan(heap, index, snapshot, nkeys) index_beginscan(heap, index, snapshot, nkeys, 0)
#endif

/*
 * Names of one's own for wait events came with 17: 127 in a server, for all extensions together.  To ask for one more
 * is an error, raised with the server's lock held; so it is looked first whether there is one.  Only in the postmaster
 * can nobody come in between.
 */
#if PG_VERSION_NUM >= 170000
#define EVBUS_WAIT_EVENT_NAMES	127

static inline bool
evbus_wait_event_listed(uint32 class, const char *name, int *total)
{
	int			n;
	char	  **names = GetWaitEventCustomNames(class, &n);

	*total += n;
	while (n > 0)
	{
		if (strcmp(names[--n], name) == 0)
			return true;
	}
	return false;
}

static inline uint32
evbus_wait_event_new(const char *name)
{
	int			total = 0;

	if (evbus_wait_event_listed(PG_WAIT_INJECTIONPOINT, name, &total))
		return PG_WAIT_EXTENSION;	/* a name is of one class only */
	if (!evbus_wait_event_listed(PG_WAIT_EXTENSION, name, &total) && total >= EVBUS_WAIT_EVENT_NAMES)
		return PG_WAIT_EXTENSION;
	return WaitEventExtensionNew(name);
}
#else
#define evbus_wait_event_new(name) ((void) (name), PG_WAIT_EXTENSION)
#endif

/* transaction_timeout came with 17; for workers, whatever ALTER ROLE or ALTER DATABASE says. */
static inline void
evbus_no_transaction_timeout(void)
{
#if PG_VERSION_NUM >= 170000
	SetConfigOption("transaction_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
#endif
}

#endif							/* EVBUS_COMPAT_H */
