/*-------------------------------------------------------------------------
 * pattern.c
 *	  Dotted event types and the wildcards that match them: '*' stands for one
 *	  word, '#' for zero or more.
 *
 * The match is the two-pointer form of glob matching, on words: remember the
 * last '#' and, on a mismatch, let it swallow one word more.  Its cost is at
 * most words(pattern) * words(type), so no pattern can be made to explode.
 *-------------------------------------------------------------------------
 */
#include "pattern.h"

/* What is wrong with a type (or pattern), or NULL: to be said after "event type %s". */
const char *
evbus_type_fault(const char *type, int len, bool pattern)
{
	int			word = 0;

	if (len == 0)
		return "must not be empty";
	if (len > EVBUS_TYPE_MAX)
		return "is longer than 255 bytes";
	for (int i = 0; i <= len; i++)
	{
		if (i == len || type[i] == '.')
		{
			if (i == word)
				return "has an empty word";
			word = i + 1;
		}
		else if ((unsigned char) type[i] <= ' ' || type[i] == 0x7f)
			return "has a space or control character";
		else if (type[i] == '*' || type[i] == '#')
		{
			bool		alone = i == word && (i + 1 == len || type[i + 1] == '.');

			if (!pattern)
				return "has a wildcard, which only subscriptions may use";
			if (!alone)
				return "has a wildcard inside a word: \"*\" and \"#\" stand for whole words";
		}
	}
	return NULL;
}

/* End of the word that starts at i. */
static inline int
word_end(const char *s, int len, int i)
{
	const char *dot = memchr(s + i, '.', len - i);

	return dot ? (int) (dot - s) : len;
}

/* Both must be without fault. */
bool
evbus_pattern_match(const char *pattern, int plen, const char *type, int tlen)
{
	int			p = 0;
	int			t = 0;
	int			hash_p = -1;	/* after the last '#' */
	int			hash_t = 0;		/* where it may swallow from */

	if (plen == 1 && pattern[0] == '#')
		return true;
	while (t <= tlen)			/* t == tlen + 1: all words used */
	{
		int			te = word_end(type, tlen, t);

		if (p <= plen)
		{
			int			pe = word_end(pattern, plen, p);

			if (pe - p == 1 && pattern[p] == '#')
			{
				hash_p = p = pe + 1;
				hash_t = t;
				continue;
			}
			if ((pe - p == 1 && pattern[p] == '*') ||
				(pe - p == te - t && memcmp(pattern + p, type + t, te - t) == 0))
			{
				p = pe + 1;
				t = te + 1;
				continue;
			}
		}
		if (hash_p < 0)
			return false;
		p = hash_p;
		t = hash_t = word_end(type, tlen, hash_t) + 1;
	}
	while (p < plen && pattern[p] == '#' && (p + 1 == plen || pattern[p + 1] == '.'))
		p += 2;
	return p > plen;
}
