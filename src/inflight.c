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
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "common/file_perm.h"
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
	int32		together;		/* with so many others, in one call or because all were killed */
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
static int	inflight_fd = -1;	/* stays open, so that we see if somebody cuts the file short */
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

static Size
inflight_size(void)
{
	return add_size(offsetof(Inflight, slots), mul_size(evbus_max_handler_workers, sizeof(Slot)));
}

static bool
has_size(int fd, Size size)
{
	struct stat st;

	return fd >= 0 && fstat(fd, &st) == 0 && st.st_size == (off_t) size;
}

/* Map the file, made anew if it is not of this size; NULL: it cannot be. */
static Inflight *
map_file(Size size, bool *fresh)
{
	void	   *map = MAP_FAILED;

	inflight_fd = open(INFLIGHT_FILE, O_RDWR | O_CREAT | O_NOFOLLOW, pg_file_create_mode);
	*fresh = !has_size(inflight_fd, size);
	/* All its blocks are reserved: a store must not meet a full disk. */
	if (inflight_fd >= 0 &&
		(!*fresh || (ftruncate(inflight_fd, 0) == 0 && (errno = posix_fallocate(inflight_fd, 0, size)) == 0)))
		map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, inflight_fd, 0);
	if (map == MAP_FAILED)
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("could not make file \"%s\": %m", INFLIGHT_FILE),
				 errdetail("Events whose handlers crash the server will not be counted, so they are tried without end.")));
	if (map == MAP_FAILED && inflight_fd >= 0)
		close(inflight_fd);
	return map == MAP_FAILED ? NULL : map;
}

/* What a worker was running, whatever the file says. */
static int
share(const Slot *slot, int *first)
{
	*first = Max(Min(slot->first, EVBUS_BATCH_MAX), 0);
	return Max(Min(slot->running, EVBUS_BATCH_MAX - *first), 0);
}

/* Strike out what is settled, and make what was being run suspects. */
static void
collect(void)
{
	int			n = 0;
	int			found = 0;
	int			first;

	for (int i = 0; i < inflight->n_suspects; i++)
		if (inflight->suspects[i].attempt > 0)
			inflight->suspects[n++] = inflight->suspects[i];
	for (int w = 0; w < inflight->workers; w++)
		found += share(&inflight->slots[w], &first);
	if (n + found > SUSPECTS_MAX)
	{
		int			forgotten = Min(n, n + found - SUSPECTS_MAX);

		n -= forgotten;
		memmove(inflight->suspects, inflight->suspects + forgotten, sizeof(Suspect) * n);
	}
	for (int w = 0; w < inflight->workers; w++)
	{
		Slot	   *slot = &inflight->slots[w];
		int			running = share(slot, &first);

		for (int i = first; i < first + running && n < SUSPECTS_MAX; i++)
			inflight->suspects[n++] = (Suspect)
			{
				slot->dboid, slot->bus_relid, slot->subscription_id, slot->epoch, Max(slot->attempt, 1), found - 1, slot->ids[i]
			};
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
	Size		size = inflight_size();
	char		boot[sizeof(inflight->boot)] = "";
	bool		fresh = false;

	if (inflight != NULL && !has_size(inflight_fd, size))
	{
		munmap(inflight, size);
		close(inflight_fd);
		inflight = NULL;
	}
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

/* The server comes down; by our own doing only if it is not the postmaster who says so. */
static void
crash_exit(int signo, siginfo_t *info, void *context)
{
	if (info->si_pid == PostmasterPid)
		mine->running = 0;
	_exit(2);					/* as SignalHandlerForCrashExit() */
}

/* Deferred triggers have run: what crashes from here on is not the handler's doing. */
static void
inflight_xact(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_PRE_COMMIT)
		mine->running = 0;
}

/* Once per handler worker; worker is its place in EvbusShared.workers. */
void
evbus_inflight_attach(EvbusDb *db, int worker)
{
	struct sigaction action = {.sa_sigaction = crash_exit, .sa_flags = SA_SIGINFO | SA_RESTART};

	my_db = db;
	if (inflight == NULL)
		return;
	if (!has_size(inflight_fd, inflight_size()))
	{
		inflight = NULL;		/* somebody has cut it short: do not touch it */
		return;
	}
	mine = &inflight->slots[worker];
	mine->running = 0;
	sigemptyset(&action.sa_mask);
	sigaction(SIGQUIT, &action, NULL);
	RegisterXactCallback(inflight_xact, NULL);
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

/* Are there suspects among these events?  Most that are there may be of others. */
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
