/*-------------------------------------------------------------------------
 * jsonb_parse.c
 *	  JSON text to jsonb, for a fraction of the instructions of jsonb_in().
 *
 * One pass checks the text and notes each value as a token, in the order of the
 * text; strings stay where they are unless they hold escapes.  From the tokens
 * jsonb_write.c writes the jsonb.
 *
 * jsonb_in() has the last word: what is not taken here for plain, valid JSON, for
 * whatever reason, goes there, to be parsed or refused as anywhere else.  So there is
 * one promise to keep: what is taken comes out as the same bytes, and
 * test/pgtap/publish_lines.sql compares them.  Not taken are numbers with an exponent
 * or very many digits, \u escapes that need a conversion, and deep nesting.
 *-------------------------------------------------------------------------
 */
#include "jsonb_parse.h"

#include "fmgr.h"
#include "jsonb_layout.h"
#include "jsonb_write.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

#define LEN_MAX			(1024 * 1024)	/* of a text; so all fits a JEntry, and memory stays small */
#define DEPTH_MAX		64

struct EvbusJsonbParser
{
	EvbusJsonToken *tokens;
	uint32		n_tokens;
	uint32		max_tokens;
	StringInfoData strings;		/* those with escapes, without them */
	char	   *string;			/* where the next one goes */
	EvbusJsonbWriter writer;
};

/* A parser, in the current memory context. */
EvbusJsonbParser *
evbus_jsonb_parser(void)
{
	EvbusJsonbParser *p = palloc0(sizeof(EvbusJsonbParser));

	p->max_tokens = 64;
	p->tokens = palloc(sizeof(EvbusJsonToken) * p->max_tokens);
	initStringInfo(&p->strings);
	evbus_jsonb_writer(&p->writer);
	return p;
}

static uint32
add_token(EvbusJsonbParser *p, uint32 type, const char *start, uint32 len)
{
	EvbusJsonToken *token;

	if (p->n_tokens == p->max_tokens)
	{
		p->tokens = repalloc(p->tokens, sizeof(EvbusJsonToken) * p->max_tokens * 2);
		p->max_tokens *= 2;
	}
	token = &p->tokens[p->n_tokens];
	token->type = type;
	token->len = len;
	token->start = start;
	token->next = ++p->n_tokens;
	return token->next - 1;
}

/*
 * Of what follows, each function begins at `at` and returns where it ended, or NULL
 * for what is not taken.
 */

static inline const char *
skip_space(const char *at, const char *end)
{
	while (at < end && (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r'))
		at++;
	return at;
}

/* The end of what a string can hold as it is: eight bytes at a time while none is a quote, backslash or control character. */
static const char *
plain_end(const char *at, const char *end)
{
	for (; at + 8 <= end; at += 8)
	{
		uint64		bytes;

		memcpy(&bytes, at, 8);
		if (evbus_json_special(bytes))
			break;
	}
	while (at < end && *at != '"' && *at != '\\' && (unsigned char) *at >= ' ')
		at++;
	return at;
}

/* A character's code in four hexadecimal digits. */
static const char *
parse_hex4(const char *at, const char *end, pg_wchar *code)
{
	if (end - at < 4)
		return NULL;
	*code = 0;
	for (int i = 0; i < 4; i++)
	{
		char		c = *at++;

		if (c >= '0' && c <= '9')
			*code = *code * 16 + (c - '0');
		else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
			*code = *code * 16 + ((c | 0x20) - 'a' + 10);
		else
			return NULL;
	}
	return at;
}

/* What stands behind \u, to **out in the server's encoding. */
static const char *
parse_unicode(const char *at, const char *end, char **out)
{
	pg_wchar	code;
	pg_wchar	second;

	at = parse_hex4(at, end, &code);
	if (at == NULL || code == 0 || is_utf16_surrogate_second(code))
		return NULL;
	if (is_utf16_surrogate_first(code))
	{
		if (end - at < 2 || at[0] != '\\' || at[1] != 'u')
			return NULL;
		at = parse_hex4(at + 2, end, &second);
		if (at == NULL || !is_utf16_surrogate_second(second))
			return NULL;
		code = surrogate_pair_to_codepoint(code, second);
	}
	if (code < 0x80)
		*(*out)++ = (char) code;
	else if (GetDatabaseEncoding() == PG_UTF8)
	{
		unicode_to_utf8(code, (unsigned char *) *out);
		*out += pg_utf_mblen((unsigned char *) *out);
	}
	else
		return NULL;
	return at;
}

/* What stands behind a backslash. */
static const char *
parse_escape(const char *at, const char *end, char **out)
{
	static const char escapes[] = "\"\"\\\\//b\bf\fn\nr\rt\t";	/* letter, meaning */

	if (at >= end)
		return NULL;
	if (*at == 'u')
		return parse_unicode(at + 1, end, out);
	for (const char *escape = escapes; *escape; escape += 2)
		if (*at == escape[0])
		{
			*(*out)++ = escape[1];
			return at + 1;
		}
	return NULL;
}

/* Behind the opening quote. */
static const char *
parse_string(EvbusJsonbParser *p, const char *at, const char *end)
{
	const char *start = at;
	char	   *out;

	at = plain_end(at, end);
	if (at < end && *at == '"')
	{
		add_token(p, JENTRY_ISSTRING, start, at - start);
		return at + 1;
	}
	out = p->string;
	for (;;)
	{
		memcpy(out, start, at - start);
		out += at - start;
		if (at < end && *at == '"')
			break;
		if (at >= end || *at != '\\')
			return NULL;		/* a control character, or the end */
		start = parse_escape(at + 1, end, &out);
		if (start == NULL)
			return NULL;
		at = plain_end(start, end);
	}
	add_token(p, JENTRY_ISSTRING, p->string, out - p->string);
	p->string = out;
	return at + 1;
}

static const char *
skip_digits(const char *at, const char *end)
{
	while (at < end && *at >= '0' && *at <= '9')
		at++;
	return at;
}

static const char *
parse_number(EvbusJsonbParser *p, const char *at, const char *end)
{
	const char *start = at;
	const char *digits;

	if (*at == '-')
		at++;
	digits = at;
	at = at < end && *at == '0' ? at + 1 : skip_digits(at, end);
	if (at == digits || at - digits > EVBUS_JSON_WHOLE_MAX)
		return NULL;
	if (at < end && *at == '.')
	{
		digits = ++at;
		at = skip_digits(at, end);
		if (at == digits || at - digits > EVBUS_JSON_FRACTION_MAX)
			return NULL;
	}
	add_token(p, JENTRY_ISNUMERIC, start, at - start);
	return at;					/* whatever else stands here is no separator */
}

static const char *
parse_word(EvbusJsonbParser *p, const char *at, const char *end, const char *word, int len, uint32 type)
{
	if (end - at < len || memcmp(at, word, len) != 0)
		return NULL;
	add_token(p, type, NULL, 0);
	return at + len;
}

static const char *parse_value(EvbusJsonbParser *p, const char *at, const char *end, int depth);

/* Behind the opening bracket. */
static const char *
parse_container(EvbusJsonbParser *p, const char *at, const char *end, uint32 type, int depth)
{
	char		closing = type == EVBUS_JSON_OBJECT ? '}' : ']';
	uint32		container = add_token(p, type, NULL, 0);
	uint32		n = 0;

	at = skip_space(at, end);
	if (at < end && *at == closing)
		return at + 1;
	if (depth >= DEPTH_MAX)
		return NULL;
	for (;;)
	{
		if (type == EVBUS_JSON_OBJECT)
		{
			at = skip_space(at, end);
			if (at >= end || *at != '"' || (at = parse_string(p, at + 1, end)) == NULL)
				return NULL;
			at = skip_space(at, end);
			if (at >= end || *at++ != ':')
				return NULL;
		}
		at = parse_value(p, at, end, depth + 1);
		if (at == NULL || at >= end)
			return NULL;
		n++;
		if (*at == closing)
			break;
		if (*at++ != ',')
			return NULL;
	}
	p->tokens[container].len = n;
	p->tokens[container].next = p->n_tokens;
	return at + 1;
}

/* A value and the space around it. */
static const char *
parse_value(EvbusJsonbParser *p, const char *at, const char *end, int depth)
{
	at = skip_space(at, end);
	if (at >= end)
		return NULL;
	switch (*at)
	{
		case '{':
			at = parse_container(p, at + 1, end, EVBUS_JSON_OBJECT, depth);
			break;
		case '[':
			at = parse_container(p, at + 1, end, EVBUS_JSON_ARRAY, depth);
			break;
		case '"':
			at = parse_string(p, at + 1, end);
			break;
		case 't':
			at = parse_word(p, at, end, "true", 4, JENTRY_ISBOOL_TRUE);
			break;
		case 'f':
			at = parse_word(p, at, end, "false", 5, JENTRY_ISBOOL_FALSE);
			break;
		case 'n':
			at = parse_word(p, at, end, "null", 4, JENTRY_ISNULL);
			break;
		default:
			at = parse_number(p, at, end);
			break;
	}
	return at ? skip_space(at, end) : NULL;
}

/* As everybody else would have it parsed. */
static Jsonb *
parse_by_server(const char *text, int len)
{
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(pnstrdup(text, len))));
}

/*
 * The jsonb of a text in the server's encoding.  Good until the next call; what
 * else it may allocate, in the current memory context.  Errors: those of jsonb_in().
 */
Jsonb *
evbus_jsonb_parse(EvbusJsonbParser *p, const char *text, int len)
{
	if (len > LEN_MAX)
		return parse_by_server(text, len);
	p->n_tokens = 0;
	resetStringInfo(&p->strings);
	enlargeStringInfo(&p->strings, len);	/* without escapes nothing is longer */
	p->string = p->strings.data;
	if (parse_value(p, text, text + len, 0) != text + len)
		return parse_by_server(text, len);
	return evbus_jsonb_write(&p->writer, p->tokens, p->n_tokens, len);
}
