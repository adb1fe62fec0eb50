/*-------------------------------------------------------------------------
 * discard.c
 *	  Dead letters thrown away, or mended before they are tried again.
 *
 * Both destroy something, so both leave a row in evbus.dead_letter_audit, in the
 * same transaction: who, when, why; and of an edit what was there before.  Nothing
 * in evbus changes or deletes rows of that table.
 *-------------------------------------------------------------------------
 */
#include "evbus.h"

#include "args.h"
#include "audit.h"
#include "catalog/pg_type.h"
#include "codec.h"
#include "dead_filter.h"
#include "internal.h"
#include "jsonbcheck.h"
#include "miscadmin.h"
#include "registry.h"
#include "utils/acl.h"
#include "utils/builtins.h"

#define REASON_MAX		EVBUS_MESSAGE_MAX

PG_FUNCTION_INFO_V1(evbus_discard);
PG_FUNCTION_INFO_V1(evbus_discard_ids);
PG_FUNCTION_INFO_V1(evbus_edit_dead_letter);

/* Why: it must be told, and be readable. */
static Datum
read_reason(FunctionCallInfo fcinfo, int n)
{
	char	   *reason = evbus_arg_text(fcinfo, n, "reason");

	if (strspn(reason, " \t\r\n") == strlen(reason))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("reason must not be empty")));
	if (strlen(reason) > REASON_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("reason is too long"),
				 errdetail("It has %zu bytes; the limit is %d.", strlen(reason), REASON_MAX)));
	return PG_GETARG_DATUM(n);
}

static int64
discard(EvbusDeadFilter *filter, Datum reason)
{
	EvbusInternal state;
	int64		n;

	evbus_dead_filter_set(filter, EVBUS_DEAD_BY, CStringGetTextDatum(GetUserNameFromId(GetUserId(), false)));
	evbus_dead_filter_set(filter, EVBUS_DEAD_NOTE, reason);
	evbus_internal_begin(&state);
	evbus_sql(NULL, psprintf("WITH p AS MATERIALIZED (SELECT d.dead_letter_id FROM evbus.dead_letter_log d WHERE %s"
							 "  ORDER BY d.dead_letter_id LIMIT $8 FOR UPDATE SKIP LOCKED),"
							 " d AS (DELETE FROM evbus.dead_letter_log l USING p WHERE l.dead_letter_id = p.dead_letter_id RETURNING l.*),"
							 " c AS (INSERT INTO evbus.dead_letter_delta (subscription_id, bus, subscription, type, sqlstate, reason, hour, died, gone)"
							 "  SELECT subscription_id, bus, subscription, type, sqlstate, reason, evbus._event_hour(dead_letter_id), 0, count(*) FROM d GROUP BY 1, 2, 3, 4, 5, 6, 7),"
							 " a AS (INSERT INTO evbus.dead_letter_audit (action, role, login, reason, bus, subscription, dead_letters, oldest_id, newest_id)"
							 "  SELECT 'discard', $11, session_user, $12, bus, subscription, count(*), min(dead_letter_id), max(dead_letter_id) FROM d GROUP BY bus, subscription)"
							 " SELECT count(*) FROM d", evbus_dead_filter_where(filter)),
			  EVBUS_DEAD_PARAMS, evbus_dead_types, filter->values, filter->nulls, 0);
	n = DatumGetInt64(evbus_column(0, 1, NULL));
	evbus_internal_end(&state);
	return n;
}

/*
 * evbus.discard(subscription, bus, types, sqlstate, dead_after, dead_before, max_events,
 * reason text, dry_run boolean) returns bigint
 *
 * Deletes the dead letters that match every filter that is not NULL, and records
 * why; returns how many.  Those of dropped subscriptions are for superusers.
 * dry_run: only tells how many, and needs no reason.  Errors: 22004 no reason, 22023, 25006, 42501, VB001, VB004.
 */
Datum
evbus_discard(PG_FUNCTION_ARGS)
{
	EvbusDeadFilter filter;
	Datum		reason;
	int64		n;

	(void) evbus_db();
	evbus_arg_present(fcinfo, 8, "dry_run");
	evbus_dead_filter_read(fcinfo, &filter, true);
	if (PG_GETARG_BOOL(8))
		PG_RETURN_INT64(evbus_dead_filter_count(&filter));
	PreventCommandIfReadOnly("evbus.discard()");
	reason = read_reason(fcinfo, 7);
	n = discard(&filter, reason);
	evbus_dead_filter_audit(fcinfo, evbus_audit_number("dead_letters", n));
	PG_RETURN_INT64(n);
}

/* evbus.discard(dead_letter_ids bigint[], reason text): the same by id; ids that are not there are passed over. */
Datum
evbus_discard_ids(PG_FUNCTION_ARGS)
{
	EvbusDeadFilter filter;
	Datum		reason = read_reason(fcinfo, 1);
	int64		n;

	(void) evbus_db();
	PreventCommandIfReadOnly("evbus.discard()");
	evbus_dead_filter_ids(fcinfo, &filter, true);
	n = discard(&filter, reason);
	evbus_audit(fcinfo, NULL, NULL, NULL, evbus_audit_number("dead_letters", n));
	PG_RETURN_INT64(n);
}

/* Bounds of the bus the subscription is of, as publish() has them. */
static void
check_size(const EvbusSubscription *sub, Jsonb *payload)
{
	EvbusBus	bus;
	Size		size = VARSIZE(payload) - VARHDRSZ;

	if (evbus_bus_by_id(sub->bus_id, &bus) && size > (Size) bus.max_payload_bytes)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("payload for bus \"%s\" is too large", bus.name),
				 errdetail("The payload has %zu bytes; the limit is %d.", size, bus.max_payload_bytes)));
}

/*
 * evbus.edit_dead_letter(dead_letter_id bigint, payload jsonb, reason text) returns void
 *
 * Replaces the payload of one dead letter, for its redrive; the one before goes to
 * evbus.dead_letter_audit, as NULL if it is damaged.  The event itself, in the log and for
 * other subscriptions, stays as it was published.  Waits for a redrive that has it in hand.
 * Errors: 22004, 22023, 25006, 42501 not the owner, 54000 too large, P0002 no such
 * dead letter, VB004 its subscription is gone.
 */
Datum
evbus_edit_dead_letter(PG_FUNCTION_ARGS)
{
	static const Oid types[] = {INT8OID, BYTEAOID, TEXTOID, TEXTOID, JSONBOID};
	Datum		values[5];
	char		nulls[6] = "     ";
	Datum		reason;
	bytea	   *old;
	Jsonb	   *old_json;
	EvbusInternal state;
	EvbusSubscription *sub;
	EvbusCoded	coded;
	StringInfoData stored;
	char	   *name;

	(void) evbus_db();
	evbus_arg_present(fcinfo, 0, "dead_letter_id");
	evbus_arg_present(fcinfo, 1, "payload");
	reason = read_reason(fcinfo, 2);
	PreventCommandIfReadOnly("evbus.edit_dead_letter()");
	values[0] = PG_GETARG_DATUM(0);
	values[2] = CStringGetTextDatum(GetUserNameFromId(GetUserId(), false));
	values[3] = reason;
	evbus_internal_begin(&state);
	if (evbus_sql(NULL, "SELECT d.subscription_id, d.subscription, d.payload FROM evbus.dead_letter_log d WHERE d.dead_letter_id = $1 FOR UPDATE",
				  1, types, values, NULL, 1) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_NO_DATA_FOUND),
				 errmsg("dead letter " INT64_FORMAT " does not exist", PG_GETARG_INT64(0)),
				 errhint("It may have been redriven or discarded; see the view evbus.dead_letter.")));
	sub = evbus_subscription_by_id(DatumGetInt32(evbus_column(0, 1, NULL)));
	name = TextDatumGetCString(evbus_column(0, 2, NULL));
	old = DatumGetByteaPP(evbus_column(0, 3, NULL));
	if (sub == NULL ? !superuser_arg(state.user) : !has_privs_of_role(state.user, sub->owner))
	{
		evbus_audit_refused(state.user, "owner", "subscription", name);
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of subscription \"%s\"", name)));
	}
	if (sub == NULL)
		evbus_dead_filter_nobody_left(name);
	check_size(sub, PG_GETARG_JSONB_P(1));
	evbus_encode_jsonb(PG_GETARG_JSONB_P(1), &coded);
	initStringInfo(&stored);
	appendStringInfoChar(&stored, coded.codec);
	appendBinaryStringInfo(&stored, coded.data, coded.len);
	values[1] = PointerGetDatum(cstring_to_text_with_len(stored.data, stored.len));
	/* A damaged one is what may have brought it here; to replace it is the way out. */
	old_json = evbus_decode_try(VARDATA_ANY(old), VARSIZE_ANY_EXHDR(old));
	nulls[4] = old_json != NULL && evbus_jsonb_sound(&old_json->root, VARSIZE(old_json) - VARHDRSZ, true) ? ' ' : 'n';
	values[4] = nulls[4] == ' ' ? JsonbPGetDatum(old_json) : (Datum) 0;
	evbus_sql(NULL, "WITH o AS MATERIALIZED (SELECT d.* FROM evbus.dead_letter_log d WHERE d.dead_letter_id = $1),"
			  " a AS (INSERT INTO evbus.dead_letter_audit (action, role, login, reason, bus, subscription, dead_letters, oldest_id, newest_id, event_id, old_payload)"
			  "  SELECT 'edit', $3, session_user, $4, bus, subscription, 1, $1, $1, event_id, $5 FROM o)"
			  " UPDATE evbus.dead_letter_log SET payload = $2 WHERE dead_letter_id = $1", 5, types, values, nulls, 0);
	evbus_internal_end(&state);
	evbus_audit(fcinfo, "subscription", sub->name, NULL, NULL);	/* payloads are in the audit of dead letters */
	PG_RETURN_VOID();
}
