/*-------------------------------------------------------------------------
 * sequencer.pml
 *	  The sequencer's start and its turns (src/sequencer.c, src/turn.c).
 *-------------------------------------------------------------------------
 */

#ifdef M_LATE_FIRST
/* As it once was: late rows were placed before what is only in the ring or in the log. */
inline place_late(may_claim)
{
	d_step {
		at = 2;
		do
		:: at <= LAST ->
			if
			:: d_late & bit(at) -> place(at)
			:: else
			fi;
			at++
		:: else -> break
		od;
		if
		:: n > 0 && may_claim && tail == r_ticked -> d_low = min(low, lost_low)
		:: else
		fi;
		ticked_position = next_position;
		d_late = 0; n = 0; at = 0
	}
}
#endif

/* Shown, and not yet ticked: with it the sequencer sleeps only until the ticks are due. */
#define pending	(r_ticked != r_drained)

/* As the sequencer sees it before it sleeps for good. */
#define quiet	(r_tail == r_drained && !pending && !lost && !late)

/* Once nobody publishes any more, a few turns must be enough, and nothing be left. */
inline end_turn()
{
	top = 0; low = 0; turn_low = 0; tail = 0; worked = 0;
	if
	:: fin[0] && fin[1] && quiet ->
		assert(d_tick == d_vis && given == d_vis);
		assert(d_late == 0 && ticked_position == next_position);
#ifdef M_THE_END
		assert(!(d_n == N_TX && crashes == CRASHES && deaths == DEATHS));	/* no wrong order: that we come here at all */
#endif
		turns = 0;
		asleep = 1
	:: fin[0] && fin[1] && !quiet -> turns++; assert(turns < 4)
	:: else
	fi
}

/* -------------------------------------------------------------------- drain */

inline read_tail()
{
#ifndef M_SLOTS_AFTER_TAIL
	tail = r_tail
#else
	skip
#endif
}

/* What is ticked nobody looks at again: its bytes may be anything. */
inline ring_ticked()
{
	do
	:: r_ticked < r_drained -> r_id[r_ticked] = 0; r_pos[r_ticked] = 0; r_ticked++
	:: else -> break
	od;
	ticked_position = next_position
}

/*
 * The ticks of all that is shown, in one commit, and in its own callback `ticked`.
 * Their low_id is claim, if nothing of the ring below the tail is lower that has no
 * tick even then.
 */
inline tick_ring(whole_turn)
{
	d_step {
#ifndef M_TICK_NO_RING
		at = r_drained;
		do
		:: at < tail -> claim = min(claim, r_id[at]); at++
		:: else -> break
		od;
#endif
		at = r_ticked;
		n = 0;
		do
		:: at < r_drained ->
			if
			:: r_pos[at] != 0 -> tick(r_id[at], r_pos[at]); n++; next_position = r_pos[at] + 1
			:: else
			fi;
			at++
		:: else -> break
		od;
		if
		:: n > 0 -> d_low = claim; check_low()
		:: else
		fi;
		n = 0; at = 0; owed = 0; claim = 0;
#ifdef M_TICKED_APART
		skip
	};
	d_step {
#endif
		ring_ticked();
		if
		:: whole_turn -> end_turn()
		:: else
		fi
	}
}

/* What may be lost meanwhile is not below the low_id of a tick. */
inline claim_low()
{
#ifdef M_TICK_NO_LOST
	claim = low
#else
	claim = min(low, lost_low)
#endif
}

/*
 * Without late rows: readers may have positions before the tick, for all is in the ring.
 * Entries above `drained` are the sequencer's alone, until it rises: that is the step.
 */
inline place_ring()
{
	at = r_drained;
	n = next_position;
	do
	:: at < tail ->
		if
		:: recovered & bit(r_id[at]) -> r_pos[at] = 0
#ifdef M_POSITION_AT_PUSH
		:: else
#else
		:: else -> r_pos[at] = n; give(r_id[at], n); n++
#endif
		fi;
		at++
	:: else -> break
	od;
	at = 0;
	r_drained = tail;
	worked = 1
}

/* Only who starts after us reads it, for us it is as if we had it at once. */
inline store_next()
{
	next_position = (n > next_position -> n : next_position);
	n = 0
}

/*
 * The end of a turn without late rows, if it is one: ticks for what is shown, or
 * none in this turn.  An ack may want them or not, time have passed or not, the ring
 * be filling or not.  But if nothing else comes, time will have passed.
 */
inline tick_if_due(so)
{
	if
	:: d_step { so && pending -> store_next(); claim_low() };
		tick_ring(true)
	:: d_step {
			so && (!pending || !fin[0] || !fin[1]) -> store_next();
			if
			:: !worked -> mark_low()
			:: else
			fi;
			end_turn()
		}
	fi
}

/* A tick that names nothing: the next start shall not scan again what was recovered. */
inline mark_low()
{
	if
#ifdef M_MARK_LEFT
	:: owed && max(low, turn_low) > d_low -> d_low = max(low, turn_low); owed = 0; check_low()
#elif defined(M_MARK_UNTICKED)
	:: owed && r_drained == tail && low > d_low -> d_low = low; owed = 0; check_low()
#else
	:: owed && r_ticked == tail && low > d_low -> d_low = low; owed = 0; check_low()
#endif
	:: else
	fi
}

/*
 * With late rows in between; all is seen with the commit only, and what is below
 * the tail does not change until then.  That `late` is set again a little earlier
 * nobody sees: only the sequencer looks.
 */
inline merge_late()
{
#ifdef M_MARK_LEFT
	turn_low = low;
#endif
#ifdef M_LATE_NO_BOUND
	top = NONE - 1;
#endif
	until = NONE;				/* the lowest key of a row that waits */
	at = LAST;
	do
	:: at >= 2 ->
		if
		:: row_seen(at) && at > top -> until = at; late = 1
		:: else
		fi;
		at--
	:: else -> break
	od;
#ifdef M_LATE_NO_STOP
	until = NONE;
#endif
	last = 2;					/* rows with keys below are placed */
	at = r_drained;
	do
	:: at < tail && r_id[at] <= until ->
		do
		:: last < r_id[at] && last <= top ->
			if
			:: row_seen(last) -> place_row(last)
			:: else
			fi;
			last++
		:: else -> break
		od;
		if
		:: recovered & bit(r_id[at])
		:: else -> place(r_id[at])
		fi;
		at++; n++
	:: else -> break
	od;
	do
	:: last <= top && last <= LAST ->
		if
		:: row_seen(last) -> place_row(last)
		:: else
		fi;
		last++
	:: else -> break
	od;
	r_drained = at;
#ifndef M_LATE_LEFT
	do
	:: at < tail -> low = min(low, r_id[at]); at++
	:: else -> break
	od;
#endif
	at = 0; last = 0; until = 0; snap_late = 0;
	if
	:: ticked_position != next_position -> d_low = low; owed = 0; check_low()
	:: else
	fi;
	ring_ticked();
	worked = (n > 0);
	n = 0
}

inline drain()
{
	if
#ifndef M_LATE_CLEARED_LAST
	:: d_step { read_late -> snap_late = d_late };		/* a snapshot is one moment */
#else
	:: read_late ->
#endif
		d_step { merge_late(); read_late = 0 };
		if
		:: d_step { worked -> end_turn() }
		:: d_step { !worked -> mark_low(); end_turn() }
		fi
	:: d_step { !read_late && r_drained != tail -> place_ring() };
		tick_if_due(worked)
	:: tick_if_due(!read_late && r_drained == tail)
	fi
}

/* --------------------------------------------------------------------- turn */

proctype Sequencer()
{
	byte st, fr, top, low, turn_low, tail, at, n, from, bound, may_claim, last, until, snap, snap_late, named, watch, claim;
	byte recovered, rec_slot[2], rec_tail, turns;
	bit more, keep, owed, read_late, worked, asleep;

again:
	{
		/* start(): with positions of a shared memory that is `ready`, or those on disk. */
		if
		:: d_step { crashes + deaths == 0 -> owed = 1 }; goto loop	/* nothing there: as after a crash at the very beginning */
		:: else
		fi;
		if
		:: ready ->
			if
			:: !pending
			:: d_step { pending -> claim = d_low }; tick_ring(false)
			fi
		:: d_step { !ready -> next_position = d_n + 1; ticked_position = next_position; ready = 1 }
		fi;
#ifdef M_LATE_FIRST
		skip;
		place_late(false);
#endif
		from = d_low;
		recover();

loop:
		do
#ifndef M_CLOCK_AFTER_SLOTS
		:: d_step { !asleep -> top = clock; low = top };
#else
		:: d_step { !asleep -> low = NONE };
#endif
#ifdef M_SLOTS_AFTER_TAIL
			tail = r_tail;
#endif
			look_at_slot(0, low);
			look_at_slot(1, low);
#ifdef M_CLOCK_AFTER_SLOTS
			d_step { top = clock; low = min(low, top) };
#endif
			/*
			 * What is shown gets its ticks before anything else gets positions.  A flag
			 * that is set stays so: what is read next may be read with it in one step.
			 */
			if
			:: d_step { !pending -> read_tail() }
			:: d_step { pending -> read_tail() };
				if
#ifdef M_FLAGS_UNTICKED
				:: late || lost
#else
				:: d_step { late || lost -> claim_low() }; tick_ring(false)
#endif
#ifdef M_FLAGS_TWICE
				:: !late && !lost
#else
				:: !late && !lost -> goto no_flags
#endif
				fi
			fi;
#ifdef M_LATE_FIRST
			if
			:: d_step { late -> late = 0 }; place_late(true)
			:: !late
			fi;
#endif
			if
#ifndef M_LOST_CLEARED_LAST
			:: d_step { lost -> lost = 0 };
#else
			:: lost ->
#endif
				d_step { from = lost_low; lost_low = NONE };	/* an atomic exchange */
				if
				:: d_step { from != NONE -> from = min(from, d_low) }; recover()
				:: d_step { from == NONE -> from = 0 }
				fi;
#ifdef M_LOST_CLEARED_LAST
				lost = 0
#else
				skip
#endif
			:: !lost
			fi;
#ifndef M_LATE_FIRST
			if
#ifdef M_LATE_CLEARED_LAST
			:: d_step { late -> snap_late = d_late };
				d_step { late = 0; read_late = 1 }
#else
			:: d_step { late -> late = 0; read_late = 1 }
#endif
			:: !late
			fi;
#else
			skip;
#endif
#ifdef M_FLAGS_BEFORE_TAIL
			tail = r_tail;
#endif
no_flags:	recovered_forget();
			drain()
		:: asleep ->
end:		false
		od
	} unless {
		d_step {
			kill[2] -> kill[2] = 0;
			st = 0; fr = 0; top = 0; low = 0; turn_low = 0; tail = 0; at = 0; n = 0; from = 0; bound = 0; may_claim = 0;
			last = 0; until = 0; snap = 0; snap_late = 0; named = 0; watch = 0; claim = 0;
			recovered = 0; rec_slot[0] = 0; rec_slot[1] = 0; rec_tail = 0; turns = 0;
			more = 0; keep = 0; owed = 0; read_late = 0; worked = 0; asleep = 0
		};
		goto again
	}
}
