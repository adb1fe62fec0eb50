/*-------------------------------------------------------------------------
 * memory.c
 *	  What becomes of freed memory.
 *
 * A batch's memory is freed and wanted again at once.  Given back to the kernel
 * in between it costs a page fault for every 4 kB: half of a batch handler's time,
 * and a quarter of a publisher's (docs/performance.md).
 *-------------------------------------------------------------------------
 */
#include "memory.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

/*
 * Give back what is kept beyond that, after something much larger: freed pieces in
 * the middle of the heap would stay.
 */
void
evbus_trim_memory(void)
{
#ifdef __GLIBC__
	(void) malloc_trim(0);
#endif
}

/* From here on this process keeps up to that many freed bytes for itself. */
void
evbus_keep_memory(Size bytes)
{
#ifdef __GLIBC__
	static Size kept = 0;

	if (bytes <= kept)
		return;
	kept = bytes;
	(void) mallopt(M_TRIM_THRESHOLD, (int) bytes);
	(void) mallopt(M_MMAP_THRESHOLD, (int) (bytes / 2));
	(void) mallopt(M_TOP_PAD, 1024 * 1024);
#endif
}
