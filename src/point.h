/*-------------------------------------------------------------------------
 * point.h
 *	  Named places at which a test may stop, fail or kill a process.
 *
 * Compiled in with -DEVBUS_POINTS only, which test/run does; else they are
 * nothing.  docs/faults.md lists them.
 *-------------------------------------------------------------------------
 */
#ifndef EVBUS_POINT_H
#define EVBUS_POINT_H

#include "evbus.h"

#ifdef EVBUS_POINTS
extern void evbus_point(const char *name);
#define EVBUS_POINT(name)	evbus_point(name)
#else
#define EVBUS_POINT(name)	((void) 0)
#endif

#endif							/* EVBUS_POINT_H */
