/*-------------------------------------------------------------------------
 * jsonbcheck.c
 *	  Is this really a jsonb?  For bytes that may come from anybody.
 *
 * PostgreSQL trusts the binary form of jsonb: offsets in it that point outside
 * read foreign memory.  Rows of evbus are written by evbus alone, and what is
 * compressed is told to be damaged by its codec, so delivery need not ask; but evbus._decode() can be called by whoever may read a view,
 * with bytes of his own.  The layout is described in utils/jsonb.h.
 *-------------------------------------------------------------------------
 */
#include "jsonbcheck.h"

#include "jsonb_layout.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"

#define NUMERIC_SPECIAL	0xC000	/* a form, as in utils/adt/numeric.c */

/* A numeric of exactly len bytes, with an uncompressed four-byte header. */
bool
evbus_numeric_sound(const char *data, Size len)
{
	Size		digits;
	uint16		header;

	if (len < VARHDRSZ + sizeof(uint16) || !VARATT_IS_4B_U(data) || VARSIZE(data) != len)
		return false;
	digits = len - VARHDRSZ;
	memcpy(&header, VARDATA(data), sizeof(header));
	if (digits % sizeof(int16) != 0)
		return false;
	return (header & EVBUS_NUMERIC_FORM) == EVBUS_NUMERIC_SHORT || (header & EVBUS_NUMERIC_FORM) == NUMERIC_SPECIAL ||
		digits >= 2 * sizeof(uint16);
}

/* container is aligned as an int, and len bytes long. */
bool
evbus_jsonb_sound(const JsonbContainer *container, Size len, bool root)
{
	bool		object;
	uint64		count;
	uint64		children;
	Size		base;
	Size		at = 0;

	check_stack_depth();
	if (len < sizeof(uint32))
		return false;
	object = JsonContainerIsObject(container);
	count = JsonContainerSize(container);
	if (object == JsonContainerIsArray(container))
		return false;
	if (JsonContainerIsScalar(container) && (!root || object || count != 1))
		return false;
	children = object ? count * 2 : count;
	base = sizeof(uint32) + children * sizeof(JEntry);
	if (base > len)
		return false;

	for (uint64 i = 0; i < children; i++)
	{
		JEntry		entry = container->children[i];
		Size		end = JBE_HAS_OFF(entry) ? JBE_OFFLENFLD(entry) : at + JBE_OFFLENFLD(entry);
		const char *data = (const char *) container + base;

		if (end < at || end > len - base)
			return false;
		if (object && i < count && !JBE_ISSTRING(entry))
			return false;
		if (JBE_ISSTRING(entry))
		{
			if (!pg_verify_mbstr(GetDatabaseEncoding(), data + at, end - at, true))
				return false;
		}
		else if (JBE_ISNUMERIC(entry) || JBE_ISCONTAINER(entry))
		{
			Size		start = INTALIGN(at);

			if (start > end)
				return false;
			if (JBE_ISNUMERIC(entry) && !evbus_numeric_sound(data + start, end - start))
				return false;
			if (JBE_ISCONTAINER(entry) &&
				(JsonContainerIsScalar(container) ||
				 !evbus_jsonb_sound((const JsonbContainer *) (data + start), end - start, false)))
				return false;
		}
		else if (!JBE_ISBOOL(entry) && !JBE_ISNULL(entry))
			return false;
		at = end;
	}
	return true;
}
