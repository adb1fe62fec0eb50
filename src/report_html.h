/* report_html.h: text, numbers and the frame of a page of HTML */
#ifndef EVBUS_REPORT_HTML_H
#define EVBUS_REPORT_HTML_H

#include "evbus.h"

#include "lib/stringinfo.h"

/* How a number is written for people. */
typedef enum
{
	EVBUS_NUMBER_COUNT,			/* 12,345 */
	EVBUS_NUMBER_SHORT,			/* 12.3k */
	EVBUS_NUMBER_RATE,			/* 0.25, 12.3, 1,234 */
	EVBUS_NUMBER_SECONDS,		/* 340 us, 1.2 ms, 5 min */
	EVBUS_NUMBER_SHARE,			/* 0 to 1: 12 % */
	EVBUS_NUMBER_BYTES			/* 1.5 MB */
} EvbusNumber;

extern void evbus_html_text(StringInfo out, const char *text);
extern char *evbus_html_number(EvbusNumber kind, double value);
extern void evbus_html_head(StringInfo out, const char *title);
extern void evbus_html_foot(StringInfo out);

#endif
