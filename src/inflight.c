/*-------------------------------------------------------------------------
 * inflight.c
 *	  What handlers are at, where a crash of the server does not reach it.
 *
 * An event whose handler crashes the server must be counted, though the crash
 * takes shared memory and the transaction with it.  So a worker notes what it is
 * about to run in a small file mapped into memory, pg_stat_tmp/evbus.inflight:
 * a few stores, no system call, and the kernel keeps them whatever happens to
 * the processes.  At the next start the postmaster turns what was being run into
 * suspects; whoever takes a suspect records a failed attempt, commits and flushes
 * it, and only then strikes the suspect out.  The attempt's number goes along, so
 * a crash in between counts once.
 *
 * Only who died is guilty: to the others the postmaster sends SIGQUIT, upon which
 * they strike out what they were at.  So do workers that end in any other way.
 *
 * After a crash of the machine the file may be of any age, so it says in which
 * boot it was written; one of another boot, server or layout is emptied.
 *-------------------------------------------------------------------------
 */
#include "inflight.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/xlog.h"
#include "common/file_perm.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"

#define INFLIGHT_FILE	PG_STAT_TMP_DIR "/evbus.inflight"
#define INFLIGHT_MAGIC	0x45564231
#define SUSPECTS_MAX	65536

/* One per handler worker, written by it alone. */
typedef struct Slot
{
	Oid			dboid;
	Oid			bus_relid;
	int32		subscription_id;
	int32		epoch;			/* of the subscription: a seek forgets */
	int32		attempt;
	volatile int32 first;		/* being run: ids[first .. first + running) */
	volatile int32 running;		/* 0: none */
	int64		ids[EVBUS_BATCH_MAX];
} Slot;

/* Made by the postmaster while nobody else runs; struck out by workers. */
typedef struct Suspect
{
	Oid			dboid;
	Oid			bus_relid;
	int32		subscription_id;
	int32		epoch;
	int32		attempt;		/* 0: struck out */
	int32		together;		/* with so many others in one call */
	int64		event_id;
} Suspect;

typedef struct Inflight
{
	uint32		magic;
	int32		workers;
	uint64		system_identifier;
	char		boot[40];		/* empty where the kernel does not tell */
	int32		n_suspects;		/* postmaster only; newest last */
	Suspect		suspects[SUSPECTS_MAX];
	Slot		slots[FLEXIBLE_ARRAY_MEMBER];
} Inflight;

static Inflight *inflight = NULL;	/* NULL: the file could not be made */
static Slot *mine = NULL;
static EvbusDb *my_db;

/* ------------------------------------------------------------ the postmaster */

static void
read_boot(char *boot, Size size)
{
	int			fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY);
	ssize_t		n = fd >= 0 ? read(fd, boot, size - 1) : 0;

	boot[Max(n, 0)] = '\0';
	if (fd >= 0)
		close(fd);
}

/* Map the file, made anew if it is not of this size; NULL: it cannot be. */
static Inflight *
map_file(Size size, bool *fresh)
{
	struct stat st;
	void	   *map = MAP_FAILED;
	int			fd = open(INFLIGHT_FILE, O_RDWR | O_CREAT, pg_file_create_mode);

	/* All its blocks are reserved: a store must not meet a full disk. */
	*fresh = fd < 0 || fstat(fd, &st) != 0 || st.st_size != (off_t) size;
	if (fd >= 0 && (!*fresh || (ftruncate(fd, 0) == 0 && (errno = posix_fallocate(fd, 0, size)) == 0)))
		map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("could not make file \"%s\": %m", INFLIGHT_FILE),
				 errdetail("Events whose handlers crash the server will not be counted, so they are tried without end.")));
	if (fd >= 0)
		close(fd);
	return map == MAP_FAILED ? NULL : map;
}

/* Strike out what is settled, and make what was being run suspects. */
static void
collect(void)
{
	int			n = 0;
	int			found = 0;

	for (int i = 0; i < inflight->n_suspects; i++)
		if (inflight->suspects[i].attempt > 0)
			inflight->suspects[n++] = inflight->suspects[i];
	for (int w = 0; w < inflight->workers; w++)
	{
		Slot	   *slot = &inflight->slots[w];
		int			first = Max(slot->first, 0);
		int			end = Min(first + Min(slot->running, EVBUS_BATCH_MAX), EVBUS_BATCH_MAX);

		for (int i = first; i < end; i++)
		{
			if (n == SUSPECTS_MAX)
				memmove(inflight->suspects, inflight->suspects + 1, sizeof(Suspect) * --n);
			inflight->suspects[n++] = (Suspect)
			{
				slot->dboid, slot->bus_relid, slot->subscription_id, slot->epoch, Max(slot->attempt, 1), end - first - 1, slot->ids[i]
			};
			found++;
		}
		slot->running = 0;
	}
	inflight->n_suspects = n;
	if (found > 0)
		ereport(LOG,
				(errmsg_plural("evbus found %d event in a handler that ended with the server",
							   "evbus found %d events in handlers that ended with the server", found, found)));
}

/* When shared memory is made: no other process of ours exists. */
void
evbus_inflight_init(void)
{
	Size		size = add_size(offsetof(Inflight, slots), mul_size(evbus_max_handler_workers, sizeof(Slot)));
	char		boot[sizeof(inflight->boot)] = "";
	bool		fresh = false;

	if (inflight == NULL)
		inflight = map_file(size, &fresh);
	if (inflight == NULL)
		return;
	read_boot(boot, sizeof(boot));
	if (fresh || inflight->magic != INFLIGHT_MAGIC || inflight->workers != evbus_max_handler_workers ||
		inflight->system_identifier != GetSystemIdentifier() || strcmp(inflight->boot, boot) != 0 ||
		inflight->n_suspects < 0 || inflight->n_suspects > SUSPECTS_MAX)
	{
		inflight->magic = INFLIGHT_MAGIC;
		inflight->workers = evbus_max_handler_workers;
		inflight->system_identifier = GetSystemIdentifier();
		strlcpy(inflight->boot, boot, sizeof(inflight->boot));
		inflight->n_suspects = 0;
		for (int w = 0; w < inflight->workers; w++)
			inflight->slots[w].running = 0;
	}
	collect();
}

/* ----------------------------------------------------------------- a worker */

/* The server comes down, but not by our doing. */
static void
innocent(SIGNAL_ARGS)
{
	mine->running = 0;
	_exit(2);					/* as SignalHandlerForCrashExit() */
}

/* Once per handler worker; worker is its place in EvbusShared.workers. */
void
evbus_inflight_attach(EvbusDb *db, int worker)
{
	my_db = db;
	if (inflight == NULL)
		return;
	mine = &inflight->slots[worker];
	mine->running = 0;
	pqsignal(SIGQUIT, innocent);
}

/* These events are in hand; they are of one attempt. */
void
evbus_inflight_take(const EvbusSubscription *sub, const EvbusEvent *events, int n)
{
	if (mine == NULL)
		return;
	mine->running = 0;
	mine->dboid = MyDatabaseId;
	mine->bus_relid = my_db->bus_relid;
	mine->subscription_id = sub->subscription_id;
	mine->epoch = sub->epoch;
	mine->attempt = n > 0 ? events[0].attempt : 0;
	for (int i = 0; i < Min(n, EVBUS_BATCH_MAX); i++)
		mine->ids[i] = events[i].event_id;
}

/* Of those in hand, n from first on are now run; n = 0: none. */
void
evbus_inflight_run(int first, int n)
{
	if (mine == NULL)
		return;
	mine->running = 0;
	mine->first = first;
	pg_compiler_barrier();
	mine->running = n;
}

static bool
is_of(const Suspect *s, const EvbusSubscription *sub)
{
	return s->attempt > 0 && s->subscription_id == sub->subscription_id && s->epoch == sub->epoch &&
		s->dboid == MyDatabaseId && s->bus_relid == my_db->bus_relid;
}

static Suspect *
find(const EvbusSubscription *sub, int64 event_id)
{
	/* The newest counts: it may have been run with others first, and then alone. */
	for (int i = inflight ? inflight->n_suspects - 1 : -1; i >= 0; i--)
		if (inflight->suspects[i].event_id == event_id && is_of(&inflight->suspects[i], sub))
			return &inflight->suspects[i];
	return NULL;
}

/*
 * Are there suspects among these events?  A suspect stays for ever if the crash
 * came just after the commit, so most that are there may be of old events.
 */
bool
evbus_inflight_any(const EvbusSubscription *sub, const EvbusEvent *events, int n)
{
	int64		min = PG_INT64_MAX;
	int64		max = 0;

	if (inflight == NULL || inflight->n_suspects == 0)
		return false;
	for (int i = 0; i < n; i++)
	{
		min = Min(min, events[i].event_id);
		max = Max(max, events[i].event_id);
	}
	for (int i = 0; i < inflight->n_suspects; i++)
		if (inflight->suspects[i].event_id >= min && inflight->suspects[i].event_id <= max &&
			is_of(&inflight->suspects[i], sub))
			return true;
	return false;
}

/*
 * Did the server crash in the handler of this event, and nobody has recorded it?
 * Sets *count if it is to be counted, and the attempt that is to be recorded.
 */
bool
evbus_inflight_crashed(const EvbusSubscription *sub, EvbusEvent *event, bool *count)
{
	Suspect    *s = find(sub, event->event_id);

	*count = false;
	if (s == NULL || s->attempt < event->attempt)
		return false;			/* below: recorded, and then came the next crash */
	/* One of many is not given up for what another one did: it gets a try of its own. */
	*count = s->together == 0 || s->attempt < sub->max_attempts;
	if (*count)
		event->attempt = s->attempt;
	return true;
}

/* What became of it is on disk now. */
void
evbus_inflight_recorded(const EvbusSubscription *sub, int64 event_id)
{
	Suspect    *s;

	while ((s = find(sub, event_id)) != NULL)
		s->attempt = 0;
}
