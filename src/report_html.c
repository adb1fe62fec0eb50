/*-------------------------------------------------------------------------
 * report_html.c
 *	  Text, numbers and the frame of a page of HTML.
 *
 * Whatever comes from outside, a name as much as an error, goes through evbus_html_text(), and
 * comes out as ASCII: what HTML reads as markup, and all that is not ASCII, as character
 * references.  So the page means the same whatever the encoding of the database, of the client
 * and of the file it ends up in.  What cannot be seen, such as control characters and those that turn
 * the direction of writing, is shown by a character that can.
 * The page loads nothing and runs nothing, and says so to the browser.
 *-------------------------------------------------------------------------
 */
#include "report_html.h"

#include <math.h>

#include "catalog/namespace.h"
#include "mb/pg_wchar.h"
#include "report_style.h"

/* --------------------------------------------------------------------- text */

static void
put_character(StringInfo out, pg_wchar c)
{
	if (c == '&')
		appendStringInfoString(out, "&amp;");
	else if (c == '<')
		appendStringInfoString(out, "&lt;");
	else if (c == '>')
		appendStringInfoString(out, "&gt;");
	else if (c == '"')
		appendStringInfoString(out, "&quot;");
	else if (c == '\'')
		appendStringInfoString(out, "&#39;");
	else if (c == '\t' || c == '\n')
		appendStringInfoChar(out, (char) c);
	else if (c < ' ')
		appendStringInfo(out, "&#x%X;", 0x2400 + c);	/* control pictures */
	else if (c == 0x7f)
		appendStringInfoString(out, "&#x2421;");
	else if (c < 0x7f)
		appendStringInfoChar(out, (char) c);
	else if (c == 0x061c || c == 0x200e || c == 0x200f || (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069) || c == 0xfeff)
		appendStringInfoString(out, "&#xFFFD;");	/* would turn letters around, or hide */
	else if (c < 0xa0 || (c & 0xfffe) == 0xfffe || (c >= 0xfdd0 && c <= 0xfdef) || (c >= 0xd800 && c <= 0xdfff) || c > 0x10ffff)
		appendStringInfoString(out, "&#xFFFD;");	/* no characters of HTML */
	else
		appendStringInfo(out, "&#x%X;", c);
}

static Oid
to_utf8(void)
{
	static Oid	proc = InvalidOid;

	if (!OidIsValid(proc))
		proc = FindDefaultConversionProc(GetDatabaseEncoding(), PG_UTF8);
	if (!OidIsValid(proc))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("default conversion function for encoding \"%s\" to \"%s\" does not exist", GetDatabaseEncodingName(), "UTF8")));
	return proc;
}

/* As text of an element or as a quoted attribute. */
void
evbus_html_text(StringInfo out, const char *text)
{
	int			len = strlen(text);
	const unsigned char *c;
	const unsigned char *end;

	if (GetDatabaseEncoding() == PG_SQL_ASCII)
	{
		/* Nobody knows what the other bytes stand for. */
		for (c = (const unsigned char *) text; *c; c++)
			put_character(out, IS_HIGHBIT_SET(*c) ? 0xfffd : *c);
		return;
	}
	end = (const unsigned char *) text + len;
	for (c = (const unsigned char *) text; c < end;)
	{
		int			n = Min(pg_mblen((const char *) c), (int) (end - c));
		unsigned char utf8[MAX_CONVERSION_INPUT_LENGTH + 1];

		/* One by one: what has no equivalent must not keep the others from being shown. */
		if (GetDatabaseEncoding() == PG_UTF8)
			put_character(out, utf8_to_unicode(c));
		else if (pg_do_encoding_conversion_buf(to_utf8(), GetDatabaseEncoding(), PG_UTF8, unconstify(unsigned char *, c), n, utf8, sizeof(utf8), true) == n)
			put_character(out, utf8_to_unicode(utf8));
		else
			put_character(out, 0xfffd);
		c += n;
	}
}

/* ------------------------------------------------------------------ numbers */

/* Without zeros after the point that say nothing. */
static char *
trimmed(char *text)
{
	char	   *end = text + strlen(text);

	if (strchr(text, '.'))
	{
		while (end[-1] == '0')
			*--end = '\0';
		if (end[-1] == '.')
			*--end = '\0';
	}
	return text;
}

/* With three digits that count; with two. */
static char *
three(double value)
{
	return trimmed(psprintf(value >= 99.95 ? "%.0f" : value >= 9.995 ? "%.1f" : "%.2f", value));
}

static char *
two(double value)
{
	return trimmed(psprintf(value >= 9.95 ? "%.0f" : "%.1f", value));
}

static char *
with_commas(double value)
{
	char	   *digits = psprintf("%.0f", value);
	size_t		n = strlen(digits);
	StringInfoData out;

	initStringInfo(&out);
	for (size_t i = 0; i < n; i++)
	{
		if (i > 0 && (n - i) % 3 == 0 && digits[i - 1] != '-')
			appendStringInfoChar(&out, ',');
		appendStringInfoChar(&out, digits[i]);
	}
	return out.data;
}

static char *
with_prefix(double value, double step, const char *const *prefixes, int n, const char *space)
{
	int			i = 0;

	while (i < n - 1 && value >= step * 0.9995)
	{
		value /= step;
		i++;
	}
	return psprintf("%s%s%s", three(value), space, prefixes[i]);
}

/* As HTML; NaN is what nobody knows. */
char *
evbus_html_number(EvbusNumber kind, double value)
{
	static const char *const thousands[] = {"", "k", "M", "G", "T", "P"};
	static const char *const bytes[] = {"B", "kB", "MB", "GB", "TB", "PB"};

	if (isnan(value))
		return "&#8211;";
	switch (kind)
	{
		case EVBUS_NUMBER_COUNT:
			return with_commas(value);
		case EVBUS_NUMBER_SHORT:
			return with_prefix(value, 1000, thousands, lengthof(thousands), "");
		case EVBUS_NUMBER_RATE:
			if (value > 0 && value < 0.01)
				return "&lt;&#8201;0.01";
			return value >= 999.5 ? with_commas(value) : three(value);
		case EVBUS_NUMBER_SECONDS:
			if (value == 0)
				return "0&#160;s";
			if (value < 0.9995e-3)
				return psprintf("%s&#160;&#181;s", two(value * 1e6));
			if (value < 0.9995)
				return psprintf("%s&#160;ms", two(value * 1e3));
			if (value < 59.95)
				return psprintf("%s&#160;s", two(value));
			if (value < 3597)
				return psprintf("%s&#160;min", two(value / 60));
			if (value < 48 * 3600)
				return psprintf("%s&#160;h", two(value / 3600));
			return psprintf("%s&#160;d", two(value / 86400));
		case EVBUS_NUMBER_SHARE:
			if (value > 0 && value < 0.0001)
				return "&lt;&#8201;0.01&#160;%";
			return psprintf("%s&#160;%%", three(value * 100));
		case EVBUS_NUMBER_BYTES:
			return with_prefix(value, 1024, bytes, lengthof(bytes), "&#160;");
	}
	return "";
}

/* -------------------------------------------------------------------- frame */

void
evbus_html_head(StringInfo out, const char *title)
{
	appendStringInfoString(out, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
						   "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n"
						   "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
						   "<meta name=\"color-scheme\" content=\"light dark\">\n"
						   "<meta name=\"referrer\" content=\"no-referrer\">\n"
						   "<meta name=\"generator\" content=\"evbus.report_html()\">\n<title>");
	evbus_html_text(out, title);
	appendStringInfo(out, "</title>\n<style>\n%s</style>\n</head>\n<body>\n", evbus_report_style);
}

void
evbus_html_foot(StringInfo out)
{
	appendStringInfoString(out, "</body>\n</html>");
}
