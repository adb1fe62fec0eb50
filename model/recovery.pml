/*-------------------------------------------------------------------------
 * recovery.pml
 *	  How the sequencer looks at slots and ring, and how it recovers (src/recover.c).
 *-------------------------------------------------------------------------
 */

/* ------------------------------------------------------------ slots and ring */

/*
 * One slot, for evbus_lowest_open().  State and low are two loads there and one
 * here: nothing else is read in between, so what the second one finds is what
 * both would find at its time, but for a slot cleared in between, which is
 * passed over then as now.  An open one may be too old: a compare-and-swap.
 */
inline look_at_slot(i, lowest)
{
	if
	:: d_step { s_state[i] == IDLE || s_state[i] == LATE -> skip }
#ifndef M_LOW_IGNORES_OPEN
	:: d_step { s_state[i] == OPEN || s_state[i] == COMMITTING -> lowest = min(lowest, s_low[i]) }
#else
	:: s_state[i] == OPEN
	:: d_step { s_state[i] == COMMITTING -> lowest = min(lowest, s_low[i]) }
#endif
#if defined(M_FLIP_BY_STORE)
	:: s_state[i] == OPEN -> s_state[i] = LATE
#elif defined(FLIP)
	:: d_step { s_state[i] == OPEN -> s_state[i] = LATE }
#endif
	fi
}

/* The tail, and the lowest id from ticked, or from drained, to it: entries below a tail do not change. */
inline look_at_ring(from_ticked, from_drained)
{
	at = r_ticked;
	do
	:: at < r_tail ->
		from_ticked = min(from_ticked, r_id[at]);
		from_drained = (at < r_drained -> from_drained : min(from_drained, r_id[at]));
		at++
	:: else -> break
	od;
	at = 0
}

/* One slot, for watch_ring(): its state, then its low. */
inline watch_slot(i)
{
	st = s_state[i];
	if
	:: d_step { st != COMMITTING -> st = IDLE }
	:: d_step {
			st == COMMITTING -> st = IDLE;
			rec_slot[i] = s_low[i];
			watch = min(watch, (s_low[i] > 0 -> s_low[i] : NONE))
		}
	fi
}

/* One slot, for evbus_recovered_forget(). */
inline still_committing(i)
{
	if
	:: rec_slot[i] == 0
	:: d_step {
			rec_slot[i] != 0 -> st = s_state[i];
			if
			:: st != COMMITTING -> rec_slot[i] = 0; st = IDLE
			:: else
			fi
		};
		if
		:: st == IDLE
		:: d_step {
				st != IDLE -> st = IDLE;
				if
				:: s_low[i] == rec_slot[i] -> keep = 1
				:: else -> rec_slot[i] = 0
				fi
			}
		fi
	fi
}

/* May the set of recovered ids go? */
inline recovered_forget()
{
	if
	:: d_step { recovered == 0 -> rec_slot[0] = 0; rec_slot[1] = 0; rec_tail = 0 }
	:: recovered != 0 ->
#ifdef M_RECOVERED_NOT_KEPT
		recovered = 0
#else
		if
		:: rec_tail == 0 ->
			still_committing(0);
			still_committing(1);
			if
			:: d_step { keep -> keep = 0 }
			:: d_step { !keep -> rec_tail = r_tail + 1 }
			fi
		:: rec_tail != 0
		fi;
		if
		:: d_step { rec_tail != 0 && r_drained + 1 >= rec_tail -> recovered = 0; rec_tail = 0 }
		:: !(rec_tail != 0 && r_drained + 1 >= rec_tail)
		fi
#endif
	fi
}

/* ----------------------------------------------------------------- recovery */

/* A position and its tick, in one commit. */
inline place(i)
{
	give(i, next_position);
	tick(i, next_position);
	next_position++;
	n++
}

/* A row of evbus.late that the snapshot sees. */
inline place_row(key)
{
	place(row[key]);
	d_late = d_late & ~bit(row[key]);
	snap_late = snap_late & ~bit(row[key])
}

#define row_seen(key)	(row[key] != 0 && (snap_late & bit(row[key])))

/* Up to CHUNK rows of the snapshot, from `from` to `bound`; until: the last of them, or bound. */
inline scan()
{
	at = from;
	do
	:: n < CHUNK && at <= LAST && at <= bound ->
		if
		:: snap & bit(at) -> n++; last = at
		:: else
		fi;
		at++
	:: else -> break
	od;
	more = (n == CHUNK);
	until = (more -> last : bound);
	n = 0; at = 0
}

/* Log and late rows of the snapshot, in order of id and key; then the commit with its callback. */
inline place_chunk()
{
	named = snap_late;
	at = 2;
	do
	:: at <= LAST ->
		if
		:: at < from || at > until || !(snap & bit(at))
		:: else ->
			if
			:: at >= watch && ((d_tick & bit(at)) || !(named & bit(at))) ->
				recovered = recovered | bit(at)		/* it may still come through the ring */
			:: else
			fi;
			if
			:: !(d_tick & bit(at)) && !(named & bit(at)) -> place(at)
			:: else
			fi
		fi;
#ifdef M_LATE_FIRST
		snap_late = 0;
#endif
		if
		:: row_seen(at) && at <= until -> place_row(at)
		:: row_seen(at) && at > bound -> late = 1		/* for a turn with a later bound */
		:: else
		fi;
		at++
	:: else -> break
	od;
	from = (last > 0 -> last + 1 : from);
	claim = min(claim, from);
	may_claim = max(may_claim, claim);
	if
	:: n > 0 -> ticked_position = next_position; d_low = may_claim; check_low()
	:: else
	fi;
	n = 0; at = 0; last = 0; until = 0; snap = 0; snap_late = 0; named = 0; watch = 0; claim = 0
}

/* evbus_recover(from): up to the clock of its beginning, a chunk a transaction. */
inline recover()
{
#ifdef M_NO_BOUND
	d_step { bound = NONE - 1; may_claim = from; more = 1 };
#else
	d_step { bound = clock; may_claim = from; more = 1 };
#endif
	do
	:: d_step { more -> claim = NONE; watch = NONE };
#if defined(CHUNK_LOW_BEFORE)
		claim = clock;
		look_at_slot(0, claim); look_at_slot(1, claim);
		d_step { look_at_ring(claim, last); last = 0 };
		claim = min(claim, lost_low);
#elif defined(M_CHUNK_NO_CLOCK)
		look_at_slot(0, claim); look_at_slot(1, claim);
		d_step { look_at_ring(claim, last); last = 0 };
		claim = min(claim, lost_low);
#elif defined(M_CHUNK_RING_FIRST)
		d_step { look_at_ring(claim, last); last = 0 };
		claim = min(claim, lost_low);
#endif
		d_step { snap = d_vis; snap_late = d_late };	/* a snapshot is one moment */
#if !defined(CHUNK_LOW_BEFORE) && !defined(M_CHUNK_NO_CLOCK) && !defined(M_CHUNK_NO_SLOTS)
		look_at_slot(0, claim);
		look_at_slot(1, claim);
#endif
		watch_slot(0);
		watch_slot(1);
#if defined(CHUNK_LOW_BEFORE) || defined(M_CHUNK_NO_CLOCK) || defined(M_CHUNK_RING_FIRST) || defined(M_CHUNK_NO_RING)
		d_step { look_at_ring(last, watch); last = 0; rec_tail = 0 };
#else
		d_step { look_at_ring(claim, watch); rec_tail = 0 };
#endif
#ifndef M_CHUNK_NO_LOST
		claim = min(claim, lost_low);
#endif
		/* The scan is of the snapshot, places are the sequencer's own: others see the commit, whose callback is part of it. */
		d_step { scan(); place_chunk() }
	:: d_step { !more -> from = 0; bound = 0; may_claim = 0; owed = 1 }; break
	od
}
