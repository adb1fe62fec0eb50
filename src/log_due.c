/*-------------------------------------------------------------------------
 * log_due.c
 *	  What would be said again and again is said once a minute.
 *
 * Workers try again what failed, every few seconds and for as long as it lasts: a leaf that
 * somebody has locked, a full disk, ten thousand delayed events that a bus no longer takes.
 * Each process remembers what it said of late, by a hash, in a table that is small and
 * fixed: where a line has to go that nobody says any more, it is the oldest one.
 *-------------------------------------------------------------------------
 */
#include "evbus.h"

#include "clock.h"
#include "common/hashfn.h"
#include "log_due.h"

#define LINES			64
#define SILENCE			USECS_PER_MINUTE

static struct
{
	uint64		hash;
	int64		said_at;		/* by evbus_uptime(); 0: free */
	int64		left_out;
}			lines[LINES];

static uint64
hash_text(const char *text, uint64 seed)
{
	return text ? DatumGetUInt64(hash_any_extended((const unsigned char *) text, strlen(text), seed)) : seed;
}

static bool
is_due(uint64 hash, int64 *left_out)
{
	int64		now = evbus_uptime();
	int			at = 0;

	for (int i = 0; i < LINES; i++)
	{
		if (lines[i].said_at != 0 && lines[i].hash == hash)
		{
			at = i;
			break;
		}
		if (lines[i].said_at < lines[at].said_at)
			at = i;
	}
	if (lines[at].hash != hash)
	{
		lines[at].hash = hash;
		lines[at].said_at = 0;
		lines[at].left_out = 0;
	}
	if (lines[at].said_at != 0 && now - lines[at].said_at < SILENCE)
	{
		lines[at].left_out++;
		return false;
	}
	*left_out = lines[at].left_out;
	lines[at].said_at = now;
	lines[at].left_out = 0;
	return true;
}

/* Is a line that says so due?  *left_out: how often it was not, since the last one. */
bool
evbus_log_due(const char *what, int64 *left_out)
{
	return is_due(hash_text(what, 0), left_out);
}

/* The same of an error.  What it was at belongs to it: many fail with the same words. */
bool
evbus_log_error_due(const ErrorData *edata)
{
	int64		left_out;

	return is_due(hash_text(edata->context, hash_text(edata->message, 0)), &left_out);
}
