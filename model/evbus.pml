/*-------------------------------------------------------------------------
 * evbus.pml
 *	  Publish slots, commit ring, sequencer, late rows and recovery, for spin.
 *
 * model/run checks it in several small worlds, and with each of the known wrong
 * orders put in (macros M_...); docs/architecture.md, "The model", tells why.
 * Names and order are those of src/publish.c, src/recover.c, src/turn.c and
 * src/sequencer.c: read them side by side.  This file: what there is, and what is to be proved.
 * Then publisher.pml, recovery.pml, sequencer.pml, world.pml.
 *
 * One step here is one step there: one load or store of shared memory, one
 * compare-and-swap, or what a lock, a snapshot or a commit makes one.  A d_step
 * joins to that step only what others cannot see (locals, and what the proof
 * notes down); where it joins more, it says why that is right.  Everything else
 * is interleaved in all ways, and a crash of the server or the death of the
 * sequencer comes between any two steps.
 *
 * A transaction has one event, there is one bus, and ids are 2, 3, ... in the
 * order taken; sets of ids are bit masks.  Left out: wake-ups (the sequencer
 * looks all the time; that it never sleeps on work is checked instead), when ticks
 * are due (the model chooses freely), the bytes of the ring, readers other than one that acks, and a clock that goes
 * back in a crash (clock.c sees to that).
 *-------------------------------------------------------------------------
 */

/* The world: transactions of the publishers 0 and 1, entries that the ring holds, ... */
#ifndef TX0
#define TX0		1
#endif
#ifndef TX1
#define TX1		1
#endif
#ifndef RING
#define RING	9
#endif
/* ... rows in a chunk of recovery, crashes of the server, deaths of the sequencer. */
#ifndef CHUNK
#define CHUNK	1
#endif
#ifndef CRASHES
#define CRASHES	0
#endif
#ifndef DEATHS
#define DEATHS	0
#endif
/*
 * And what may happen or not: FLIP, the sequencer finds an open slot too old; BIG=p, a
 * transaction of publisher p (2: of both) is too large for the ring; BIG_AT=n, the n-th of
 * publisher 0 always is; PREPARE=p, it is
 * prepared; ABORT, it rolls back; ACK, somebody reads an event and acks it; LOSE_WAL, a crash loses the end of
 * the WAL, too.
 */

/* The highest value of the clock: a late row takes one for its key. */
#define N_TX	(TX0 + TX1)
#if defined(BIG_AT)
#define LAST	(2 + N_TX)
#elif defined(FLIP) || defined(BIG) || defined(PREPARE)
#define LAST	(1 + 2 * N_TX)
#else
#define LAST	(1 + N_TX)
#endif
#define NONE	255
#define bit(i)	(1 << ((i) - 2))
#define min(a, b) ((a) < (b) -> (a) : (b))
#define max(a, b) ((a) > (b) -> (a) : (b))

#define IDLE		0
#define OPEN		1
#define LATE		2
#define COMMITTING	3

/* ------------------------------------------------------------ shared memory */

byte clock = 1;				/* newest id given, or key of a late row */
byte s_state[2], s_low[2];	/* publish slots */
byte r_id[N_TX], r_pos[N_TX];	/* the ring by offset, which only grows */
byte r_tail, r_drained, r_ticked;
byte lost_low = NONE;
bit lost, late, ready = 1;
byte next_position = 1;
byte ticked_position = 1;

/* ------------------------------------------------------------------ on disk */

byte d_vis;					/* the log: ids of committed transactions */
byte d_late;				/* ids in visible rows of evbus.late */
byte row[LAST + 1];			/* the id in the row with that key, visible or not */
byte d_prep;				/* ids of prepared transactions */
byte d_tick, d_n;			/* ids that ticks name, and how many those are */
byte d_low;					/* low_id of the newest tick */
byte d_ack, d_ackpos;		/* an id that was acked, and the position it had then */

#ifdef LOSE_WAL
/* What of it is flushed: a copy of some moment, for WAL is a prefix. */
bit saved;
byte sv_vis, sv_late, sv_prep, sv_tick, sv_low, sv_ack;
#endif

/* ------------------------------------------------------- what is to be proved */

byte given, n_given;		/* ids that readers can see with a position */
byte pos[LAST + 1];			/* that position */
byte returned;				/* COMMIT returned */
byte before[LAST + 1];		/* what had returned when this one's publish was called */
bit fin[2];					/* the publisher has ended */
bit kill[4];				/* 0, 1: publishers, 2: sequencer, 3: who acks */
byte crashes, deaths;
hidden byte x;				/* of no meaning between steps */

/* Nothing given will be taken back by a crash any more: the proof may forget it, which saves states. */
#define settled	(crashes == CRASHES)

inline settle(i)
{
	if
	:: settled ->
		returned = returned & ~bit(i);
		before[i] = 0;
		x = 2;
		do
		:: x <= LAST -> before[x] = before[x] & ~bit(i); x++
		:: else -> break
		od;
		x = 0
	:: else
	fi
}

/* An id gets a position that readers can see. */
inline give(i, p)
{
	assert((given & bit(i)) == 0);				/* not doubled */
	assert(d_vis & bit(i));						/* nothing that was not committed */
	assert(p == n_given + 1);					/* no hole, none twice */
	assert((before[i] & ~given) == 0);			/* A returned before B was published: A first */
	given = given | bit(i);
	n_given = n_given + 1;
	pos[i] = p;
	settle(i)
}

/* A tick says so for ever. */
inline tick(i, p)
{
	assert((d_tick & bit(i)) == 0);
	assert(pos[i] == p);						/* what readers have seen stays */
	assert(p == d_n + 1);
	d_tick = d_tick | bit(i);
	d_n = d_n + 1;
	pos[i] = (settled -> 0 : pos[i])
}

/*
 * What low_id says, after every commit: every committed id below has a position or a
 * late row on disk.  So a crash at that moment loses nothing.
 */
inline check_low()
{
	x = 2;
	do
	:: x < d_low && x <= LAST ->
		assert(!(d_vis & bit(x)) || ((d_tick | d_late) & bit(x)));
		x++
	:: else -> break
	od;
	x = 0
}

#include "publisher.pml"
#include "recovery.pml"
#include "sequencer.pml"
#include "world.pml"
