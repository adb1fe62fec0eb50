/*-------------------------------------------------------------------------
 * position.c
 *	  A place in a bus, as callers name it: 'now', 'beginning', a position, or a time.
 *-------------------------------------------------------------------------
 */
#include "position.h"

#include "area.h"
#include "home.h"
#include "tick.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "volatile.h"

#define DRAIN_WAIT_MS	5000

/* The ring of a volatile bus, errors VB003 if it has none; NULL: the bus is durable. */
static EvbusVolatile *
volatile_ring(EvbusDb *db, int32 bus_id)
{
	EvbusBus	bus;

	return evbus_bus_by_id(bus_id, &bus) && bus.is_volatile ? evbus_volatile_get(db, &bus) : NULL;
}

/* The oldest position of a bus that can be read; the next one where there is none. */
int64
evbus_position_first(EvbusDb *db, int32 bus_id)
{
	EvbusVolatile *v = volatile_ring(db, bus_id);

	return v ? (int64) pg_atomic_read_u64(&v->oldest_position) : evbus_tick_first_position(bus_id);
}

/*
 * The next position of a bus, once everything committed before the call has got
 * one.  Where no sequencer runs, what the ticks say: it never is too high.
 */
int64
evbus_position_now(EvbusDb *db, int32 bus_id, int bus_slot)
{
	EvbusBusState *bus = EVBUS_BUS(db, bus_slot);
	EvbusVolatile *v = volatile_ring(db, bus_id);

	if (v)
		return (int64) pg_atomic_read_u64(&v->next_position);
	evbus_home_refuse();		/* of what is published in a copy nothing has a position */
	if (evbus_db_wait_drained(db, DRAIN_WAIT_MS) && (int32) pg_atomic_read_u32(&bus->bus_id) == bus_id)
		return (int64) pg_atomic_read_u64(&bus->ticked_position);
	return evbus_tick_next_position(bus_id);
}

/* What a text says, whatever the bus.  Errors 22007 and 22008 not a time. */
void
evbus_position_parse(const char *text, EvbusPlace *place)
{
	if (strcmp(text, "now") == 0)
		place->kind = EVBUS_PLACE_NOW;
	else if (strcmp(text, "beginning") == 0)
		place->kind = EVBUS_PLACE_BEGINNING;
	else if (text[0] != '\0' && strspn(text, "0123456789") == strlen(text))
	{
		place->kind = EVBUS_PLACE_POSITION;
		place->position = strlen(text) > 18 ? PG_INT64_MAX : strtoll(text, NULL, 10);
	}
	else
	{
		place->kind = EVBUS_PLACE_TIME;
		PG_TRY();
		{
			place->time = DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in, CStringGetDatum(text),
																  ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
		}
		PG_CATCH();
		{
			/* Say what is allowed, not only that this is no time. */
			errhint("Pass 'now', 'beginning', a position, or a timestamptz.");
			PG_RE_THROW();
		}
		PG_END_TRY();
	}
}

/* There is no such position of a bus, of which `next` is the next one. */
void
evbus_position_refuse(const char *text, int64 next)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("position %s is out of range", text),
			 errdetail("Positions of this bus go from 1 to " INT64_FORMAT ", the next one.", next)));
}

/* The position that it is.  Errors 22023 one that there never was, 22007 and 22008 not a time. */
void
evbus_position_find(EvbusDb *db, int32 bus_id, int bus_slot, const char *text, EvbusPlace *place)
{
	EvbusVolatile *ring;
	int64		next;

	evbus_position_parse(text, place);
	switch (place->kind)
	{
		case EVBUS_PLACE_NOW:
			place->position = evbus_position_now(db, bus_id, bus_slot);
			break;
		case EVBUS_PLACE_BEGINNING:
			place->position = evbus_position_first(db, bus_id);
			break;
		case EVBUS_PLACE_POSITION:
			next = evbus_position_now(db, bus_id, bus_slot);
			if (place->position < 1 || place->position > next)
				evbus_position_refuse(text, next);
			break;
		case EVBUS_PLACE_TIME:
			ring = volatile_ring(db, bus_id);
			place->position = ring ? evbus_volatile_position_at(db, ring, place->time) : evbus_tick_position_at(bus_id, place->time);
			break;
	}
}
