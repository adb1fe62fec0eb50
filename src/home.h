/* home.h: is this database a copy of another one? */
#ifndef EVBUS_HOME_H
#define EVBUS_HOME_H

#include "evbus.h"

typedef enum EvbusHome
{
	EVBUS_HOME_NONE,			/* there was never a bus in it */
	EVBUS_HOME_HERE,
	EVBUS_HOME_ELSEWHERE		/* a copy, or what pg_restore is about to make one */
} EvbusHome;

extern char *evbus_site;

extern EvbusHome evbus_home_read(void);
extern void evbus_home_first_bus(void);
extern void evbus_home_refuse(void);
extern void evbus_home_tell(EvbusHome home);

#endif							/* EVBUS_HOME_H */
