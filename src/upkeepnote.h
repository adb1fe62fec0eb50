/* upkeepnote.h: what came of upkeep, for who looks */
#ifndef EVBUS_UPKEEPNOTE_H
#define EVBUS_UPKEEPNOTE_H

#include "evbus.h"

#define EVBUS_NOTE_TICKS	(-1)
#define EVBUS_NOTE_DEAD		(-2)
#define EVBUS_NOTE_AUDIT	(-3)

extern int	evbus_notes_used(EvbusDb *db);
extern void evbus_note_run(EvbusDb *db, int32 of, const char *error);
extern void evbus_note_held(EvbusDb *db, int32 of, const char *why);
extern void evbus_note_forget(EvbusDb *db, int32 of);

#endif
