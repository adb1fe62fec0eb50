/*-------------------------------------------------------------------------
 * publisher.pml
 *	  A backend that runs some transactions with one event each (src/publish.c).
 *-------------------------------------------------------------------------
 */

/* evbus_ring_push() finds no room. */
#define full	(r_tail + 1 - r_ticked > RING)

/* It finds room: one step, for it is under ring_lock and the sequencer sees nothing before the tail moves. */
inline push()
{
	r_id[r_tail] = id;
#ifdef M_POSITION_AT_PUSH
	r_pos[r_tail] = next_position;
	give(id, next_position);
	next_position++;
#endif
	r_tail++
}

/* evbus_late_write(): nobody sees the row before the commit. */
inline take_key()
{
	d_step { clock++; row[clock] = id }
}

/*
 * forget(), and COMMIT returns (yes: it was one).  Two stores, state and then low,
 * are one step: who reads between them finds the state as after them, or the low
 * as before them, and reads nothing else in between.
 */
inline forget(yes)
{
	d_step {
		s_state[me] = IDLE;
		s_low[me] = 0;
		low = (yes -> 0 : low);
		returned = returned | (yes -> bit(id) : 0);
		if
		:: yes && settled && (given & bit(id)) -> returned = returned & ~bit(id)
		:: else
		fi
	}
}

proctype Publisher(byte me; byte quota)
{
	byte k, id, was, low;
	bit late_row;

again:
	{
#ifdef PREPARE
		if
		:: id > 0 && (d_prep & bit(id)) -> goto prepared	/* a crash left it so */
		:: else
		fi;
#endif
		do
		:: d_step { k == quota -> fin[me] = 1 }; break
		:: d_step { k < quota -> k++; was = returned; low = clock; id = 0 };	/* begin() */
			d_step { s_low[me] = low; s_state[me] = OPEN };		/* nobody reads low before he has seen the state */
			d_step { clock++; id = clock; before[id] = (settled -> was & ~given : was); was = 0 };	/* evbus_clock_take() */

			/* before_commit(): a compare-and-swap */
			if
			:: d_step {
					if
#ifndef M_IGNORE_LATE
					:: s_state[me] == LATE -> late_row = 1
#endif
					:: else -> s_state[me] = COMMITTING
					fi
				}
#ifdef ABORT
			:: forget(false); goto next
#endif
			fi;

			/* What shall stand in for the ring: a row, with the clock of now as its key. */
			if
#ifdef BIG_AT
			:: !late_row && !(me == 0 && k == BIG_AT)
			:: d_step { me == 0 && k == BIG_AT -> late_row = 1 }; take_key()
#else
			:: !late_row
#endif
			:: late_row -> take_key()
#ifdef BIG
			:: d_step { !late_row && BIG != 1 - me -> late_row = 1 }; take_key()
#endif
#ifdef PREPARE
			:: d_step { !late_row && PREPARE != 1 - me -> late_row = 1 }; take_key();
				d_step { late_row = 0; d_prep = d_prep | bit(id) };
				forget(false);
prepared:		if
				:: d_step {		/* COMMIT PREPARED: events and late row become visible at once */
						d_prep = d_prep & ~bit(id);
						d_vis = d_vis | bit(id);
						d_late = d_late | bit(id);
						check_low()
					};
					d_step { late = 1; returned = returned | (settled && (given & bit(id)) -> 0 : bit(id)) }	/* the utility hook; then the answer */
				:: d_prep = d_prep & ~bit(id)
				fi;
				goto next
#endif
			fi;

			/* The commit: events and late row become visible at once. */
			d_step {
				d_vis = d_vis | bit(id);
				d_late = d_late | (late_row -> bit(id) : 0);
				check_low()
			};

			/* after_commit(); low is what the slot holds, too */
#ifdef M_CLEAR_BEFORE_PUSH
			forget(false);
#endif
			if
			:: d_step { late_row -> late_row = 0; late = 1 }
			:: d_step { !late_row && !full -> push() }
			:: !late_row && full ->
#ifdef M_LOST_AFTER_CLEAR
				forget(false);
#endif
#ifdef M_LOST_BEFORE_LOW
				lost = 1;
				lost_low = min(lost_low, low)
#else
				lost_low = min(lost_low, low);	/* a loop of compare-and-swap */
				lost = 1
#endif
			fi;
			forget(true);
next:		skip
		od;
end:	false
	} unless {
		d_step { kill[me] -> kill[me] = 0; late_row = 0; low = 0; was = 0 };
		goto again
	}
}
