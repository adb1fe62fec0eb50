/*-------------------------------------------------------------------------
 * stat_top.c
 *	  Text made fit for a place on a terminal: as wide as it is to be, and harmless.
 *
 * Names and messages are others'.  What a terminal would take for a command, or for another order of
 * the characters, does not get there: each such character is shown as "?".  Widths are those of the
 * terminal, where some characters take two columns and some none.
 *-------------------------------------------------------------------------
 */
#include "args.h"
#include "evbus.h"

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(evbus_fit);

#define WIDTH_MAX	1000

/* May it be shown as it is?  What has no width of its own may, if it only adds to the character before it. */
static bool
harmless(const char *c)
{
	unsigned char byte = (unsigned char) *c;
	int			encoding = GetDatabaseEncoding();

	if (pg_dsplen(c) < 0)
		return false;			/* a control character; of UTF8 those above ASCII, too */
	if (byte < 0x80)
		return true;
	if (encoding == PG_UTF8)
	{
		pg_wchar	u = utf8_to_unicode((const unsigned char *) c);

		/* These change the direction of text, or end a line. */
		return u != 0x061c && u != 0x200e && u != 0x200f && !(u >= 0x2028 && u <= 0x202e) && !(u >= 0x2066 && u <= 0x2069);
	}
	if (encoding == PG_SQL_ASCII)
		return false;			/* nobody knows what it is */
	/* Of ISO 8859 these are control characters; other encodings of one byte have letters there. */
	return !(byte < 0xa0 && ((encoding >= PG_LATIN1 && encoding <= PG_LATIN5) || (encoding >= PG_LATIN6 && encoding <= PG_LATIN10) ||
							 (encoding >= PG_ISO_8859_5 && encoding <= PG_ISO_8859_8)));
}

/*
 * evbus._fit(string text, width integer) returns text: as many columns of a terminal, cut or filled up;
 * where it is cut, an ellipsis says so.
 */
Datum
evbus_fit(PG_FUNCTION_ARGS)
{
	text	   *string = PG_GETARG_TEXT_PP(0);
	int			width = evbus_arg_int(fcinfo, 1, "width", 1, WIDTH_MAX);
	const char *c = VARDATA_ANY(string);
	const char *end = c + VARSIZE_ANY_EXHDR(string);
	bool		utf8 = GetDatabaseEncoding() == PG_UTF8 && pg_get_client_encoding() == PG_UTF8;
	StringInfoData out;
	int			columns = 0;
	int			cut_at = 0;		/* length of out in which there is room for the ellipsis */
	int			cut_columns = 0;

	initStringInfo(&out);
	while (c < end)
	{
		bool		as_is = harmless(c);
		int			len = Min(pg_mblen(c), (int) (end - c));
		int			wide = as_is ? pg_dsplen(c) : 1;

		if (columns + wide > width)
		{
			out.len = cut_at;
			appendStringInfoString(&out, utf8 ? "…" : "~");
			columns = cut_columns + 1;
			break;
		}
		if (as_is)
			appendBinaryStringInfo(&out, c, len);
		else
			appendStringInfoChar(&out, '?');
		columns += wide;
		if (columns < width)
		{
			cut_at = out.len;
			cut_columns = columns;
		}
		c += len;
	}
	appendStringInfoSpaces(&out, width - columns);
	PG_RETURN_TEXT_P(cstring_to_text_with_len(out.data, out.len));
}
