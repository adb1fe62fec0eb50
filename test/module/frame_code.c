/*-------------------------------------------------------------------------
 * frame_code.c
 *	  The code of a frame that a dictionary made, for a test that makes frames of
 *	  its own: what only evbus can do, who does not know the secret cannot.
 *-------------------------------------------------------------------------
 */
#include "siphash.h"

#include "fmgr.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(frame_code);

/* frame_code(secret bytea, frame bytea) returns bigint: all of it; stored are the upper six bytes, lowest first */
Datum
frame_code(PG_FUNCTION_ARGS)
{
	bytea	   *secret = PG_GETARG_BYTEA_PP(0);
	bytea	   *frame = PG_GETARG_BYTEA_PP(1);

	PG_RETURN_INT64((int64) evbus_siphash(VARDATA_ANY(secret), VARDATA_ANY(frame), VARSIZE_ANY_EXHDR(frame)));
}
