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
	const char *at;				/* in the text */
	const char *end;
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
		p->max_tokens *= 2;
		p->tokens = repalloc(p->tokens, sizeof(EvbusJsonToken) * p->max_tokens);
	}
	token = &p->tokens[p->n_tokens];
	token->type = type;
	token->len = len;
	token->start = start;
	token->next = ++p->n_tokens;
	return p->n_tokens - 1;
}

static inline void
skip_space(EvbusJsonbParser *p)
{
	while (p->at < p->end && (*p->at == ' ' || *p->at == '\n' || *p->at == '\t' || *p->at == '\r'))
		p->at++;
}

/* Is the next byte this one?  Then it is passed. */
static inline bool
take(EvbusJsonbParser *p, char c)
{
	if (p->at >= p->end || *p->at != c)
		return false;
	p->at++;
	return true;
}

/* The end of what a string can hold as it is: eight bytes at a time while none is a quote, backslash or control character. */
static const char *
plain_end(const char *at, const char *end)
{
	const uint64 ones = UINT64CONST(0x0101010101010101);

	for (; at + 8 <= end; at += 8)
	{
		uint64		bytes;
		uint64		quote;
		uint64		backslash;

		memcpy(&bytes, at, 8);
		quote = bytes ^ (ones * '"');
		backslash = bytes ^ (ones * '\\');

		/* The top bit of a byte is set if it was less than what is taken off it. */
		if ((((quote - ones) & ~quote) | ((backslash - ones) & ~backslash) |
			 ((bytes - ones * ' ') & ~bytes)) & (ones << 7))
			break;
	}
	while (at < end && *at != '"' && *at != '\\' && (unsigned char) *at >= ' ')
		at++;
	return at;
}

static bool
take_hex4(EvbusJsonbParser *p, pg_wchar *code)
{
	*code = 0;
	for (int i = 0; i < 4; i++)
	{
		char		c = p->at < p->end ? *p->at++ : '\0';

		if (c >= '0' && c <= '9')
			*code = *code * 16 + (c - '0');
		else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
			*code = *code * 16 + ((c | 0x20) - 'a' + 10);
		else
			return false;
	}
	return true;
}

/* What stands behind \u, as bytes of the server's encoding. */
static bool
take_unicode(EvbusJsonbParser *p)
{
	pg_wchar	code;
	pg_wchar	second;

	if (!take_hex4(p, &code) || code == 0 || is_utf16_surrogate_second(code))
		return false;
	if (is_utf16_surrogate_first(code))
	{
		if (!take(p, '\\') || !take(p, 'u') || !take_hex4(p, &second) || !is_utf16_surrogate_second(second))
			return false;
		code = surrogate_pair_to_codepoint(code, second);
	}
	if (code < 0x80)
		*p->string++ = (char) code;
	else if (GetDatabaseEncoding() == PG_UTF8)
	{
		unicode_to_utf8(code, (unsigned char *) p->string);
		p->string += pg_utf_mblen((unsigned char *) p->string);
	}
	else
		return false;
	return true;
}

static bool
take_escape(EvbusJsonbParser *p)
{
	char		c = p->at < p->end ? *p->at++ : '\0';

	switch (c)
	{
		case '"':
		case '\\':
		case '/':
			*p->string++ = c;
			return true;
		case 'b':
			*p->string++ = '\b';
			return true;
		case 'f':
			*p->string++ = '\f';
			return true;
		case 'n':
			*p->string++ = '\n';
			return true;
		case 'r':
			*p->string++ = '\r';
			return true;
		case 't':
			*p->string++ = '\t';
			return true;
		case 'u':
			return take_unicode(p);
		default:
			return false;
	}
}

/* Behind the opening quote. */
static bool
parse_string(EvbusJsonbParser *p)
{
	const char *start = p->at;
	const char *unescaped;

	p->at = plain_end(p->at, p->end);
	if (take(p, '"'))
	{
		add_token(p, JENTRY_ISSTRING, start, p->at - 1 - start);
		return true;
	}
	unescaped = p->string;
	for (;;)
	{
		memcpy(p->string, start, p->at - start);
		p->string += p->at - start;
		if (take(p, '"'))
		{
			add_token(p, JENTRY_ISSTRING, unescaped, p->string - unescaped);
			return true;
		}
		if (!take(p, '\\') || !take_escape(p))
			return false;		/* also a control character, and the end */
		start = p->at;
		p->at = plain_end(p->at, p->end);
	}
}

static int
take_digits(EvbusJsonbParser *p)
{
	const char *start = p->at;

	while (p->at < p->end && *p->at >= '0' && *p->at <= '9')
		p->at++;
	return p->at - start;
}

static bool
parse_number(EvbusJsonbParser *p)
{
	const char *start = p->at;
	int			digits;

	(void) take(p, '-');
	if (p->at < p->end && *p->at == '0')
	{
		p->at++;
		digits = 1;
	}
	else
		digits = take_digits(p);
	if (digits == 0 || digits > EVBUS_JSON_WHOLE_MAX)
		return false;
	if (take(p, '.'))
	{
		digits = take_digits(p);
		if (digits == 0 || digits > EVBUS_JSON_FRACTION_MAX)
			return false;
	}
	add_token(p, JENTRY_ISNUMERIC, start, p->at - start);
	return true;				/* whatever else stands there is no separator */
}

static bool
parse_word(EvbusJsonbParser *p, const char *word, int len, uint32 type)
{
	if (p->end - p->at < len || memcmp(p->at, word, len) != 0)
		return false;
	p->at += len;
	add_token(p, type, NULL, 0);
	return true;
}

static bool parse_value(EvbusJsonbParser *p, int depth);

/* Behind the opening bracket. */
static bool
parse_container(EvbusJsonbParser *p, uint32 type, char closing, int depth)
{
	uint32		container = add_token(p, type, NULL, 0);
	uint32		n = 0;

	skip_space(p);
	if (!take(p, closing))
	{
		if (depth >= DEPTH_MAX)
			return false;
		do
		{
			if (type == EVBUS_JSON_OBJECT)
			{
				skip_space(p);
				if (!take(p, '"') || !parse_string(p))
					return false;
				skip_space(p);
				if (!take(p, ':'))
					return false;
			}
			if (!parse_value(p, depth + 1))
				return false;
			n++;
		} while (take(p, ','));
		if (!take(p, closing))
			return false;
	}
	p->tokens[container].len = n;
	p->tokens[container].next = p->n_tokens;
	return true;
}

/* A value and the space around it. */
static bool
parse_value(EvbusJsonbParser *p, int depth)
{
	bool		valid;

	skip_space(p);
	if (p->at >= p->end)
		return false;
	switch (*p->at)
	{
		case '{':
			p->at++;
			valid = parse_container(p, EVBUS_JSON_OBJECT, '}', depth);
			break;
		case '[':
			p->at++;
			valid = parse_container(p, EVBUS_JSON_ARRAY, ']', depth);
			break;
		case '"':
			p->at++;
			valid = parse_string(p);
			break;
		case 't':
			valid = parse_word(p, "true", 4, JENTRY_ISBOOL_TRUE);
			break;
		case 'f':
			valid = parse_word(p, "false", 5, JENTRY_ISBOOL_FALSE);
			break;
		case 'n':
			valid = parse_word(p, "null", 4, JENTRY_ISNULL);
			break;
		default:
			valid = parse_number(p);
			break;
	}
	skip_space(p);
	return valid;
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
	p->at = text;
	p->end = text + len;
	p->n_tokens = 0;
	resetStringInfo(&p->strings);
	enlargeStringInfo(&p->strings, len);	/* without escapes nothing is longer */
	p->string = p->strings.data;
	if (!parse_value(p, 0) || p->at != p->end)
		return parse_by_server(text, len);
	return evbus_jsonb_write(&p->writer, p->tokens, p->n_tokens, len);
}
