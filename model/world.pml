/*-------------------------------------------------------------------------
 * world.pml
 *	  Who acks, crashes of the server, deaths of the sequencer.
 *-------------------------------------------------------------------------
 */

#ifdef ACK
/* Reads an event, does its work, and acks: that may commit when the position is ticked. */
proctype Acker()
{
	byte id, position;

again:
	{
		id = 2;
end:	given != 0 && d_ack == 0 && !settled;	/* an ack is put to the test by a crash */
		do
		:: d_step { id < LAST -> id++ }
		:: d_step { given & bit(id) -> position = pos[id] }; break		/* any that has one */
		:: d_step { id == LAST && !(given & bit(id)) -> id = 2 }
		od;
#ifndef M_ACK_EARLY
end1:	ticked_position > position;
#else
		skip;
#endif
		d_step { d_ack = id; d_ackpos = position; id = 0; position = 0 };
		goto again
	} unless {
		d_step { kill[3] -> kill[3] = 0; id = 0; position = 0 };
		goto again
	}
}
#endif

/* What is left after a crash, and whether it says what it should. */
inline restart()
{
	crashes++;
#ifdef LOSE_WAL
	saved = 0;
	d_vis = sv_vis; d_late = sv_late; d_prep = sv_prep; d_tick = sv_tick; d_low = sv_low; d_ack = sv_ack;
	sv_vis = 0; sv_late = 0; sv_prep = 0; sv_tick = 0; sv_low = 0; sv_ack = 0;
#endif
	s_state[0] = IDLE; s_state[1] = IDLE; s_low[0] = 0; s_low[1] = 0;
	r_tail = 0; r_drained = 0; r_ticked = 0; lost_low = NONE; lost = 0; late = 0; ready = 0;
	next_position = 1; ticked_position = 1;
	returned = returned & d_vis;
	given = d_tick; n_given = 0;
	i = 2;
	do
	:: i <= LAST ->
		/* A tick without its event: WAL is a prefix. */
		assert(!(d_tick & bit(i)) || (d_vis & bit(i)));
		if
		:: d_tick & bit(i) -> n_given++; settle(i)
		:: else -> pos[i] = 0
		fi;
		i++
	:: else -> break
	od;
	i = 0;
	do
	:: i < N_TX -> r_id[i] = 0; r_pos[i] = 0; i++
	:: else -> break
	od;
	i = 0;
	d_n = n_given;
	check_low();
	/* An ack that survives names an event that keeps the position. */
	assert(d_ack == 0 || ((d_tick & bit(d_ack)) && pos[d_ack] == d_ackpos));
	d_ackpos = (d_ack == 0 -> 0 : d_ackpos);
	fin[0] = 0; fin[1] = 0;
	kill[0] = 1; kill[1] = 1; kill[2] = 1;
#ifdef ACK
	kill[3] = 1
#endif
}

/*
 * A crash leaves the disk and nothing of shared memory.  One that loses the end of
 * the WAL (asynchronous commits) is like one at the moment where the WAL then
 * ends: only shared memory and sessions knew more, and they are gone.  One world
 * does without this argument (LOSE_WAL).  The sequencer's death leaves all but
 * what is its own.
 */
active proctype World()
{
	byte i;

	atomic {
		run Publisher(0, TX0);
		run Publisher(1, TX1);
		run Sequencer();
#ifdef ACK
		run Acker()
#endif
	};
end:
	do
#if CRASHES > 0 && defined(LOSE_WAL)
	:: d_step {
			crashes < CRASHES && !saved -> saved = 1;
			sv_vis = d_vis; sv_late = d_late; sv_prep = d_prep; sv_tick = d_tick; sv_low = d_low; sv_ack = d_ack
		}
	:: d_step { saved -> restart() }
#elif CRASHES > 0
	:: d_step { crashes < CRASHES -> restart() }
#endif
#if DEATHS > 0
	:: d_step { deaths < DEATHS && !kill[2] -> deaths++; kill[2] = 1 }
#endif
	:: false
	od
}
