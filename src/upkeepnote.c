/*-------------------------------------------------------------------------
 * upkeepnote.c
 *	  What came of upkeep: when it last ran, what failed, what holds leaves back.
 *
 * In shared memory and not in a table: so that it can be written when a disk is
 * full, and an idle server stays idle.  One entry for each kind of leaf: a storage
 * class, ticks, dead letters, the audit.  Where there are more classes than entries, those that
 * come last have none, and show as NULL.
 *-------------------------------------------------------------------------
 */
#include "upkeepnote.h"

#include "area.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(evbus_upkeep_state);

/* How many entries are in use; the caller holds EvbusShared.lock. */
int
evbus_notes_used(EvbusDb *db)
{
	int			n = 0;

	for (int i = 0; i < EVBUS_NOTES_MAX; i++)
		n += EVBUS_NOTE(db, i)->of != 0;
	return n;
}

/* The entry for this kind, taken if there is none and `make`; NULL: all are taken.  Under EvbusShared.lock. */
static EvbusNote *
find(EvbusDb *db, int32 of, bool make)
{
	EvbusNote  *unused = NULL;

	for (int i = 0; i < EVBUS_NOTES_MAX; i++)
	{
		EvbusNote  *note = EVBUS_NOTE(db, i);

		if (note->of == of)
			return note;
		if (note->of == 0 && unused == NULL)
			unused = note;
	}
	if (make && unused != NULL)
	{
		memset(unused, 0, sizeof(*unused));
		unused->of = of;
	}
	return make ? unused : NULL;
}

/* As much of a text as there is room for, in whole characters, on one line; returns its length. */
static int
clip(const char *text, char *out)
{
	int			len = pg_mbcliplen(text, strlen(text), EVBUS_NOTE_TEXT - 1);

	for (int i = 0; i < len; i++)
		out[i] = (unsigned char) text[i] < ' ' ? ' ' : text[i];
	out[len] = '\0';
	return len;
}

/* Upkeep of this kind of leaf has ended; error: with this message, NULL: well. */
void
evbus_note_run(EvbusDb *db, int32 of, const char *error)
{
	TimestampTz now = GetCurrentTimestamp();
	char		text[EVBUS_NOTE_TEXT];
	EvbusNote  *note;

	if (error)
		(void) clip(error, text);
	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	note = find(db, of, true);
	if (note)
	{
		note->run_at = now;
		if (error)
		{
			note->error_at = now;
			strcpy(note->error, text);
		}
		else
			note->ok_at = now;
	}
	LWLockRelease(&evbus_shared->lock);
}

/* Who or what keeps leaves that are to go; NULL: nothing does. */
void
evbus_note_held(EvbusDb *db, int32 of, const char *why)
{
	TimestampTz now = GetCurrentTimestamp();
	char		text[EVBUS_NOTE_TEXT] = "";
	EvbusNote  *note;

	if (why)
		(void) clip(why, text);
	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	note = find(db, of, why != NULL);
	if (note)
	{
		if (why == NULL)
			note->held_since = 0;
		else if (note->held_since == 0)
			note->held_since = now;
		strcpy(note->held, text);
	}
	LWLockRelease(&evbus_shared->lock);
}

/* There are no such leaves any more. */
void
evbus_note_forget(EvbusDb *db, int32 of)
{
	EvbusNote  *note;

	LWLockAcquire(&evbus_shared->lock, LW_EXCLUSIVE);
	note = find(db, of, false);
	if (note)
		note->of = 0;
	LWLockRelease(&evbus_shared->lock);
}

/* evbus._upkeep_state(): a row for each kind of leaf that upkeep has looked at since the server started. */
Datum
evbus_upkeep_state(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	EvbusDb    *db = evbus_db();
	EvbusNote  *notes = palloc(sizeof(EvbusNote) * EVBUS_NOTES_MAX);

	LWLockAcquire(&evbus_shared->lock, LW_SHARED);
	memcpy(notes, EVBUS_NOTE(db, 0), sizeof(EvbusNote) * EVBUS_NOTES_MAX);
	LWLockRelease(&evbus_shared->lock);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < EVBUS_NOTES_MAX; i++)
	{
		const EvbusNote *note = &notes[i];
		Datum		values[7];
		bool		nulls[7] = {0};

		if (note->of == 0)
			continue;
		values[0] = Int32GetDatum(note->of);
		values[1] = TimestampTzGetDatum(note->run_at);
		nulls[1] = note->run_at == 0;
		values[2] = TimestampTzGetDatum(note->ok_at);
		nulls[2] = note->ok_at == 0;
		nulls[3] = nulls[4] = note->error_at == 0;
		values[3] = nulls[3] ? (Datum) 0 : CStringGetTextDatum(note->error);
		values[4] = TimestampTzGetDatum(note->error_at);
		nulls[5] = nulls[6] = note->held_since == 0;
		values[5] = nulls[5] ? (Datum) 0 : CStringGetTextDatum(note->held);
		values[6] = TimestampTzGetDatum(note->held_since);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
