/*-------------------------------------------------------------------------
 * siphash.h
 *	  SipHash-2-4 of some bytes under a key of 16: a short code that only who has
 *	  the key can make (J.-P. Aumasson and D. J. Bernstein, "SipHash: a fast
 *	  short-input PRF", 2012).
 *-------------------------------------------------------------------------
 */
#ifndef EVBUS_SIPHASH_H
#define EVBUS_SIPHASH_H

#include "evbus.h"

#include "port/pg_bswap.h"

#define EVBUS_SIPHASH_KEY	16

static inline uint64
evbus_siphash_load(const char *from)
{
	uint64		word;

	memcpy(&word, from, sizeof(word));
#ifdef WORDS_BIGENDIAN
	word = pg_bswap64(word);
#endif
	return word;
}

static inline uint64
evbus_siphash_rotate(uint64 word, int bits)
{
	return word << bits | word >> (64 - bits);
}

static inline void
evbus_siphash_round(uint64 *v)
{
	v[0] += v[1];
	v[2] += v[3];
	v[1] = evbus_siphash_rotate(v[1], 13) ^ v[0];
	v[3] = evbus_siphash_rotate(v[3], 16) ^ v[2];
	v[0] = evbus_siphash_rotate(v[0], 32);
	v[2] += v[1];
	v[0] += v[3];
	v[1] = evbus_siphash_rotate(v[1], 17) ^ v[2];
	v[3] = evbus_siphash_rotate(v[3], 21) ^ v[0];
	v[2] = evbus_siphash_rotate(v[2], 32);
}

static inline uint64
evbus_siphash(const char *key, const char *data, Size len)
{
	uint64		k0 = evbus_siphash_load(key);
	uint64		k1 = evbus_siphash_load(key + 8);
	uint64		v[4] = {
		k0 ^ UINT64CONST(0x736f6d6570736575), k1 ^ UINT64CONST(0x646f72616e646f6d),
		k0 ^ UINT64CONST(0x6c7967656e657261), k1 ^ UINT64CONST(0x7465646279746573)
	};
	const char *end = data + len / 8 * 8;
	uint64		last = (uint64) len << 56;

	for (; data < end; data += 8)
	{
		uint64		word = evbus_siphash_load(data);

		v[3] ^= word;
		evbus_siphash_round(v);
		evbus_siphash_round(v);
		v[0] ^= word;
	}
	for (int i = 0; i < (int) (len % 8); i++)
		last |= (uint64) (unsigned char) data[i] << (8 * i);
	v[3] ^= last;
	evbus_siphash_round(v);
	evbus_siphash_round(v);
	v[0] ^= last;
	v[2] ^= 0xff;
	for (int i = 0; i < 4; i++)
		evbus_siphash_round(v);
	return v[0] ^ v[1] ^ v[2] ^ v[3];
}

#endif							/* EVBUS_SIPHASH_H */
