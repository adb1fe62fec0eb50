/*
 * Preloaded into a server it moves the wall clock by as many seconds as the file says that EVBUS_TEST_CLOCK names (eight
 * bytes, native order), and the monotonic clock by those of the next eight bytes; writing there moves it for all processes at once.
 *
 * libfaketime would not do: PostgreSQL 15 forks its workers in a signal handler, inside of a select() that libfaketime
 * has marked as not to be faked, and they keep that mark.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t none[2] = {0};
static volatile int64_t *offset = none;

__attribute__((constructor))
static void
map(void)
{
	const char *path = getenv("EVBUS_TEST_CLOCK");
	int			fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void	   *at = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof(none), PROT_READ, MAP_SHARED, fd, 0);

	if (at != MAP_FAILED)
		offset = at;
	if (fd >= 0)
		close(fd);
}

int
clock_gettime(clockid_t id, struct timespec *ts)
{
	int			result = (int) syscall(SYS_clock_gettime, id, ts);

	if (result == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
		ts->tv_sec += offset[0];
	if (result == 0 && id == CLOCK_MONOTONIC)
		ts->tv_sec += offset[1];
	return result;
}

int
gettimeofday(struct timeval *restrict tv, void *restrict tz)
{
	struct timespec ts;

	(void) tz;
	if (clock_gettime(CLOCK_REALTIME, &ts) != 0)
		return -1;
	tv->tv_sec = ts.tv_sec;
	tv->tv_usec = ts.tv_nsec / 1000;
	return 0;
}

time_t
time(time_t *out)
{
	struct timespec ts;

	if (clock_gettime(CLOCK_REALTIME, &ts) != 0)
		return (time_t) -1;
	if (out)
		*out = ts.tv_sec;
	return ts.tv_sec;
}
