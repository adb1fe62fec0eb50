/* position.h: a place in a bus, as callers name it */
#ifndef EVBUS_POSITION_H
#define EVBUS_POSITION_H

#include "evbus.h"

#include "datatype/timestamp.h"

typedef enum EvbusPlaceKind
{
	EVBUS_PLACE_NOW,
	EVBUS_PLACE_BEGINNING,
	EVBUS_PLACE_POSITION,
	EVBUS_PLACE_TIME
} EvbusPlaceKind;

typedef struct EvbusPlace
{
	EvbusPlaceKind kind;
	int64		position;		/* of the first event there or after it */
	TimestampTz time;			/* if by time */
} EvbusPlace;

extern int64 evbus_position_now(EvbusDb *db, int32 bus_id, int bus_slot);
extern int64 evbus_position_first(EvbusDb *db, int32 bus_id);
extern void evbus_position_parse(const char *text, EvbusPlace *place);
pg_noreturn extern void evbus_position_refuse(const char *text, int64 next);
extern void evbus_position_find(EvbusDb *db, int32 bus_id, int bus_slot, const char *text, EvbusPlace *place);

#endif
