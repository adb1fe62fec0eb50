/*-------------------------------------------------------------------------
 * leafindex.c
 *	  Indexes by type and by key, for evbus.history_page().
 *
 * To keep them up at publish would cost each event two more index entries and
 * their WAL.  So they are built once, when a leaf is closed: its time has passed
 * and no open transaction may still write to it (evbus_upkeep_unindexed()).  A
 * plain CREATE INDEX locks out writers of this one leaf, of which there are none;
 * a prepared transaction has the leaf locked, and then we give up after
 * lock_timeout.  A leaf is indexed by one transaction, so a crash leaves it as it
 * was, to be done again.  A row that comes late all the same (the wall clock
 * went back) is written to these indexes as to any.
 *
 * Both begin with bus_id, because buses share leaves, and end with event_id,
 * because pages are read in that order.  By type: text_pattern_ops, which serves
 * "=" as well as the range of a pattern's first words, whatever the collation.
 *-------------------------------------------------------------------------
 */
#include "leafindex.h"

#include "internal.h"
#include "point.h"
#include "progress.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

/* Shall the indexer build them? */
bool		evbus_history_indexes = true;

static const struct
{
	const char *suffix;			/* of the index's name, after the leaf's: by it we know ours */
	const char *columns;
	const char *predicate;
}			indexes[] =
{
	{"by_key", "bus_id, key, event_id", " WHERE key IS NOT NULL"},
	{"by_type", "bus_id, type text_pattern_ops, event_id", ""}
};

static bool
has_index(const char *leaf, const char *suffix)
{
	char		name[NAMEDATALEN];

	snprintf(name, sizeof(name), "%s_%s", leaf, suffix);
	return OidIsValid(get_relname_relid(name, evbus_namespace(false)));
}

/* Has the leaf all of them?  False as well for one that is gone. */
bool
evbus_leaf_indexed(Oid relid)
{
	char	   *leaf = get_rel_name(relid);

	if (leaf == NULL)
		return false;
	for (int i = 0; i < (int) lengthof(indexes); i++)
		if (!has_index(leaf, indexes[i].suffix))
			return false;
	pfree(leaf);
	return true;
}

/*
 * Build what a leaf lacks, in the caller's transaction; false: somebody else is at
 * it, or it is gone.  Errors: 55P03 it is in use for longer than lock_timeout.
 */
bool
evbus_leaf_index(Oid relid)
{
	EvbusInternal state;
	char	   *leaf;

	/* Conflicts with itself and with DROP, not with readers and writers. */
	if (!ConditionalLockRelationOid(relid, ShareUpdateExclusiveLock))
		return false;
	leaf = get_rel_name(relid);
	if (leaf == NULL)
		return false;
	evbus_internal_begin(&state);
	for (int i = 0; i < (int) lengthof(indexes); i++)
		if (!has_index(leaf, indexes[i].suffix))
			evbus_utility("CREATE INDEX %s_%s ON evbus.%s (%s) WITH (fillfactor = 100)%s",
						  leaf, indexes[i].suffix, quote_identifier(leaf), indexes[i].columns, indexes[i].predicate);
	evbus_progress_step(EVBUS_PHASE_ANALYZING);
	/* For the choice between them and the primary key; nothing changes the leaf after this. */
	evbus_utility("ANALYZE evbus.%s", quote_identifier(leaf));
	EVBUS_POINT("leaf.indexed");
	evbus_internal_end(&state);
	return true;
}
