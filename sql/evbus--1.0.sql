/* sql/evbus--1.0.sql */

\echo Use "CREATE EXTENSION evbus" to load this file. \quit

/*
 * The record of the bus: an insert-only log, ticks that give positions, an
 * append-only ledger of acks, and rows only for what failed.  How they fit is
 * told in docs/architecture.md.
 *
 * Leaves (partitions) are never made here: they are no members of the
 * extension, so that pg_dump carries them.
 */

/* Fails at once, with the line to add, where the library is not preloaded. */
CREATE FUNCTION evbus._require_preload() RETURNS void
AS 'MODULE_PATHNAME', 'evbus_check_preload' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus._require_preload() IS 'fails with the line to add where the library is not preloaded';
SELECT evbus._require_preload();

/* ---------------------------------------------------------------- types */

CREATE TYPE evbus.event AS (
	event_id	bigint,
	bus			text,
	type		text,
	key			text,
	payload		jsonb,
	headers		jsonb,
	published_at timestamptz,
	position	bigint,
	attempt		integer,
	replayed	boolean
);
COMMENT ON TYPE evbus.event IS 'one event as a handler is given it; handlers are f(evbus.event) or f(evbus.event[])';

CREATE TYPE evbus.delivery AS (
	receipt		text,
	event_id	bigint,
	bus			text,
	type		text,
	key			text,
	payload		jsonb,
	headers		jsonb,
	published_at timestamptz,
	position	bigint,
	attempt		integer,
	lease_until	timestamptz,
	replayed	boolean
);
COMMENT ON TYPE evbus.delivery IS 'one attempt to give an event to a client: the event, the receipt to ack it with, and how long the lease lasts';

/* -------------------------------------------------------- configuration */

CREATE SEQUENCE evbus.storage_class_id_seq AS integer;
CREATE SEQUENCE evbus.bus_id_seq AS integer;
CREATE SEQUENCE evbus.subscription_id_seq AS integer;
CREATE SEQUENCE evbus.dictionary_id_seq AS integer;

/* One row, written with the first bus; a dump carries it, so a copy is known by it (home.c). */
CREATE TABLE evbus.home (
	home_id		integer PRIMARY KEY CHECK (home_id = 1),
	home		text NOT NULL,
	since		timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
COMMENT ON TABLE evbus.home IS 'which database delivers these events; where that is another one, this is a copy and delivers nothing until evbus.take_over() is called';
COMMENT ON COLUMN evbus.home.home IS 'system identifier, oid of the database, oid of evbus.bus, and evbus.site';

/* No foreign keys among these: "pg_restore -j" loads them in any order. */
CREATE TABLE evbus.storage_class (
	storage_class_id integer PRIMARY KEY,
	retention	interval NOT NULL,
	partition_interval interval NOT NULL,
	retention_policy text NOT NULL DEFAULT 'keep_unconsumed',
	retention_bytes bigint,
	own_bus_id	integer,
	orphaned_id	bigint,
	UNIQUE NULLS NOT DISTINCT (retention, partition_interval, retention_policy, own_bus_id)
);
COMMENT ON TABLE evbus.storage_class IS 'how leaves are made and when they go; the buses of one class share its leaves of evbus.event_log';
COMMENT ON COLUMN evbus.storage_class.retention_policy IS 'keep_unconsumed: no leaf goes that a subscription still needs; drop_unconsumed: it goes all the same';
COMMENT ON COLUMN evbus.storage_class.retention_bytes IS 'the oldest leaves go while all of them together are larger; NULL: no limit';
COMMENT ON COLUMN evbus.storage_class.own_bus_id IS 'the only bus in it, if it is the own class of a bus; such a class goes with its bus';
COMMENT ON COLUMN evbus.storage_class.orphaned_id IS 'clock when the bus of an own class was found to be gone: once nobody is left who published before, the class is dropped';

CREATE TABLE evbus.bus (
	bus_id		integer PRIMARY KEY,
	bus			text NOT NULL UNIQUE,
	slot		smallint NOT NULL UNIQUE,
	storage_class_id integer NOT NULL,
	owner		regrole NOT NULL,
	durability	text NOT NULL,
	max_payload_bytes integer NOT NULL,
	paused		boolean NOT NULL,
	created_at	timestamptz NOT NULL,
	former_classes integer[] NOT NULL DEFAULT '{}',
	compression	text NOT NULL DEFAULT 'zstd' CHECK (compression IN ('none', 'zstd', 'dictionary')),
	dedup_window interval NOT NULL DEFAULT '5 minutes',
	max_backlog	bigint,
	overflow	text NOT NULL DEFAULT 'reject' CHECK (overflow IN ('reject', 'block', 'drop_oldest')),
	overflow_timeout interval NOT NULL DEFAULT '30 seconds',
	publish_rate integer,
	publish_burst integer,
	rate_policy	text NOT NULL DEFAULT 'reject' CHECK (rate_policy IN ('reject', 'wait')),
	idle_ttl	interval,
	auto_created boolean NOT NULL DEFAULT false,
	max_backlog_bytes bigint
);
COMMENT ON TABLE evbus.bus IS 'the registry of buses; changed only through evbus.create_bus() and its siblings';
COMMENT ON COLUMN evbus.bus.former_classes IS 'storage classes the bus was in before: leaves of theirs may still hold events of it';
COMMENT ON COLUMN evbus.bus.dedup_window IS 'for how long a dedup_key is taken';
COMMENT ON COLUMN evbus.bus.max_backlog IS 'events that a subscription may be behind before publishers are held up as overflow says; NULL: no limit';
COMMENT ON COLUMN evbus.bus.overflow IS 'what becomes of publishers of a full bus: reject, block, or drop_oldest';
COMMENT ON COLUMN evbus.bus.overflow_timeout IS 'how long publishers wait at most, for space or for the rate';
COMMENT ON COLUMN evbus.bus.publish_rate IS 'events a second that may be published; NULL: no limit';
COMMENT ON COLUMN evbus.bus.publish_burst IS 'events that may come at once after a pause; NULL: those of a second';
COMMENT ON COLUMN evbus.bus.rate_policy IS 'what becomes of who publishes faster: reject or wait';
COMMENT ON COLUMN evbus.bus.slot IS 'place in shared memory, 0 to evbus.max_buses - 1';

CREATE TABLE evbus.subscription (
	subscription_id integer PRIMARY KEY,
	subscription text NOT NULL UNIQUE,
	slot		smallint NOT NULL UNIQUE,
	bus_id		integer NOT NULL,
	owner		regrole NOT NULL,
	epoch		integer NOT NULL,
	start_position bigint NOT NULL,
	types		text[] NOT NULL,
	handler_schema text,
	handler_name text,
	handler_batch boolean,
	handler_owner regrole,
	batch_size	integer NOT NULL,
	concurrency	integer NOT NULL,
	max_attempts integer NOT NULL,
	backoff_initial interval NOT NULL,
	backoff_max	interval NOT NULL,
	lease		interval NOT NULL,
	timeout		interval NOT NULL,
	notify		boolean NOT NULL,
	paused		boolean NOT NULL,
	paused_reason text,
	created_at	timestamptz NOT NULL,
	ordering	text NOT NULL DEFAULT 'none',
	on_failure	text NOT NULL DEFAULT 'block_key',
	max_dead_letters integer,
	dead_letters_full text NOT NULL DEFAULT 'pause',
	delivery_rate integer,
	delivery_burst integer,
	filter		jsonpath,
	max_age		interval,
	breaker_threshold double precision,
	breaker_window interval NOT NULL DEFAULT '30 seconds',
	breaker_min	integer NOT NULL DEFAULT 10,
	breaker_probe interval NOT NULL DEFAULT '5 seconds',
	by_priority	boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE evbus.subscription IS 'the registry of subscriptions; changed only through evbus.subscribe() and its siblings';
COMMENT ON COLUMN evbus.subscription.epoch IS 'raised by evbus.seek(); ledger rows of an older epoch no longer count';
COMMENT ON COLUMN evbus.subscription.start_position IS 'first position of this epoch';
COMMENT ON COLUMN evbus.subscription.handler_owner IS 'owner of the handler when it was chosen: a function of another role by that name is not called';
COMMENT ON COLUMN evbus.subscription.handler_schema IS 'handler kept by name, because a regprocedure column would block pg_upgrade';

CREATE TABLE evbus.publish_limit (
	bus_id		integer NOT NULL,
	role		regrole NOT NULL,
	slot		smallint NOT NULL UNIQUE,
	rate		integer NOT NULL,
	burst		integer,
	PRIMARY KEY (bus_id, role)
);
COMMENT ON TABLE evbus.publish_limit IS 'rates of roles that publish; changed only through evbus.limit_publisher(), read it through evbus.publish_limit_list';
COMMENT ON COLUMN evbus.publish_limit.slot IS 'place in shared memory';

CREATE TABLE evbus.privilege (
	privilege	text NOT NULL CHECK (privilege IN ('publish', 'read', 'subscribe', 'manage', 'consume', 'operate')),
	object_id	integer NOT NULL,
	role		regrole NOT NULL,
	grantor		regrole NOT NULL,
	granted_at	timestamptz NOT NULL,
	PRIMARY KEY (privilege, object_id, role)
);
COMMENT ON TABLE evbus.privilege IS 'what roles may do with buses and subscriptions that are not theirs; changed only through evbus.grant() and evbus.revoke(), read it through evbus.privilege_list';
COMMENT ON COLUMN evbus.privilege.object_id IS 'bus_id; of consume and operate subscription_id';

/* Ids are never used again: a stored payload names its dictionary by id. */
CREATE TABLE evbus.dictionary (
	dictionary_id integer PRIMARY KEY,
	bus_id		integer NOT NULL,
	trained_at	timestamptz NOT NULL,
	checked_at	timestamptz NOT NULL,
	samples		integer NOT NULL,
	jsonb_bytes	double precision NOT NULL,
	stored_bytes double precision NOT NULL,
	secret		bytea NOT NULL,
	raw			bytea NOT NULL,
	retired_at	timestamptz,
	last_id		bigint
);
ALTER TABLE evbus.dictionary ALTER raw SET STORAGE EXTERNAL;	-- it does not compress
COMMENT ON TABLE evbus.dictionary IS 'zstd dictionaries that payloads of the log were compressed with; without its dictionary a payload is lost';
COMMENT ON COLUMN evbus.dictionary.checked_at IS 'when it was last found to be good enough to be kept in use';
COMMENT ON COLUMN evbus.dictionary.samples IS 'how many payloads it was trained on';
COMMENT ON COLUMN evbus.dictionary.jsonb_bytes IS 'bytes of an average payload as jsonb, of some that it was not trained on';
COMMENT ON COLUMN evbus.dictionary.stored_bytes IS 'bytes of the same as they are stored with it';
COMMENT ON COLUMN evbus.dictionary.secret IS 'what the codes of its frames are made with, so that only evbus makes frames';
COMMENT ON COLUMN evbus.dictionary.raw IS 'the dictionary: pieces of payloads, so as confidential as those';
COMMENT ON COLUMN evbus.dictionary.retired_at IS 'no longer used for what is published: there is a newer one, or the bus does without, or is gone';
COMMENT ON COLUMN evbus.dictionary.last_id IS 'events with a higher id do not refer to it; it goes with the last leaf that has lower ones';
/* A replay has its place in shared memory among the subscriptions', and its id from their sequence. */
CREATE TABLE evbus.replay (
	replay_id	integer PRIMARY KEY,
	slot		smallint NOT NULL UNIQUE,
	subscription_id integer NOT NULL,
	start_position bigint NOT NULL,
	stop_position bigint NOT NULL,
	types		text[],
	rate		integer,
	role		text NOT NULL,
	created_at	timestamptz NOT NULL
);
COMMENT ON TABLE evbus.replay IS 'replays that are under way; changed only through evbus.replay() and its siblings, read it through evbus.replay_list';
COMMENT ON COLUMN evbus.replay.slot IS 'place in shared memory; none of evbus.subscription has the same';
COMMENT ON COLUMN evbus.replay.stop_position IS 'the first position that is not replayed';
COMMENT ON COLUMN evbus.replay.types IS 'NULL: those of the subscription, whatever they are altered to';

CREATE TABLE evbus.replay_log (
	replay_id	integer PRIMARY KEY,
	subscription text NOT NULL,
	bus			text NOT NULL,
	start_position bigint NOT NULL,
	stop_position bigint NOT NULL,
	types		text[] NOT NULL,
	rate		integer,
	role		text NOT NULL,
	created_at	timestamptz NOT NULL,
	finished_at	timestamptz NOT NULL,
	state		text NOT NULL,
	done		bigint NOT NULL
);
COMMENT ON TABLE evbus.replay_log IS 'replays that have ended, for as long as dead letters are kept; read it through evbus.replay_list';

/* ------------------------------------------------- the log and its order */

CREATE TABLE evbus.event_log (
	event_id	bigint NOT NULL,
	storage_class_id integer NOT NULL,
	bus_id		integer NOT NULL,
	type		text NOT NULL,
	key			text,
	headers		bytea,
	payload		bytea NOT NULL
) PARTITION BY LIST (storage_class_id);
COMMENT ON TABLE evbus.event_log IS 'every event, insert only; LIST by storage class, then RANGE by event_id; read it through evbus.history';

CREATE TABLE evbus.tick (
	tick_id		bigint NOT NULL,
	bus_id		integer NOT NULL,
	first_position bigint NOT NULL,
	n			integer NOT NULL,
	low_id		bigint NOT NULL,
	min_id		bigint NOT NULL,
	ids			bytea NOT NULL
) PARTITION BY RANGE (tick_id);
COMMENT ON TABLE evbus.tick IS 'which event has which position: one row per bus and batch of commits';
COMMENT ON COLUMN evbus.tick.tick_id IS 'clock at writing, never below an id the tick names';
COMMENT ON COLUMN evbus.tick.low_id IS 'where recovery starts: every committed id below it has a position, or a row in evbus.late';

CREATE TABLE evbus.late (
	late_id		bigint PRIMARY KEY,
	min_id		bigint NOT NULL,
	ranges		bytea NOT NULL
);
COMMENT ON TABLE evbus.late IS 'ids of a transaction that could not use the ring; deleted by the transaction that ticks them';
COMMENT ON COLUMN evbus.late.late_id IS 'clock at writing, above every id the row names';

CREATE SEQUENCE evbus.retention_audit_id_seq;
CREATE TABLE evbus.retention_audit (
	audit_id	bigint PRIMARY KEY DEFAULT pg_catalog.nextval('evbus.retention_audit_id_seq'),
	at			timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	bus			text NOT NULL,
	subscription text NOT NULL,
	subscription_id integer NOT NULL,
	leaf		text NOT NULL,
	from_time	timestamptz NOT NULL,
	to_time		timestamptz NOT NULL,
	cause		text NOT NULL,
	events		bigint NOT NULL
);
CREATE INDEX retention_audit_subscription ON evbus.retention_audit (subscription_id);
COMMENT ON TABLE evbus.retention_audit IS 'what was dropped although a subscription had not consumed it, as retention_policy => ''drop_unconsumed'' says: leaves, and by overflow => ''drop_oldest''; evbus only ever adds to it';
COMMENT ON COLUMN evbus.retention_audit.leaf IS 'empty where max_backlog was the cause';
COMMENT ON COLUMN evbus.retention_audit.from_time IS 'of the leaf: its events were published from then on, and before to_time';
COMMENT ON COLUMN evbus.retention_audit.cause IS 'retention: the leaf was older; retention_bytes: there was more; max_backlog: the subscription was further behind, in an hour from from_time on, until to_time';
COMMENT ON COLUMN evbus.retention_audit.events IS 'events of the leaf that the subscription had not settled: in hand, never looked at, of types it does not want among them';

CREATE TABLE evbus.watermark (
	bus_id		integer PRIMARY KEY,
	next_position bigint NOT NULL,
	low_id		bigint NOT NULL,
	newest_id	bigint NOT NULL
);
COMMENT ON TABLE evbus.watermark IS 'where a bus stood when its ticks were dropped, so that a quiet bus never restarts at 1';

/* --------------------------------------------------- later, and only once */

CREATE TABLE evbus.scheduled (
	scheduled_id bigint NOT NULL,
	due_at		timestamptz NOT NULL,
	scheduled_by regrole NOT NULL,
	bus_id		integer NOT NULL,
	leaf		smallint NOT NULL,
	type		text NOT NULL,
	key			text,
	headers		bytea,
	payload		bytea NOT NULL
) PARTITION BY LIST (leaf);
CREATE INDEX scheduled_id ON evbus.scheduled (scheduled_id);
CREATE INDEX scheduled_due ON evbus.scheduled (due_at, scheduled_id);
COMMENT ON TABLE evbus.scheduled IS 'events that are not due yet; deleted by the transaction that publishes them; read it through evbus.scheduled_list';
COMMENT ON COLUMN evbus.scheduled.scheduled_by IS 'who may cancel it';
COMMENT ON COLUMN evbus.scheduled.leaf IS 'which of its tables it is in: by its due time when it was stored';
CREATE TABLE evbus.scheduled_0 PARTITION OF evbus.scheduled FOR VALUES IN (0) WITH (autovacuum_vacuum_insert_threshold = -1);
CREATE TABLE evbus.scheduled_1 PARTITION OF evbus.scheduled FOR VALUES IN (1) WITH (autovacuum_vacuum_insert_threshold = -1);
CREATE TABLE evbus.scheduled_2 PARTITION OF evbus.scheduled FOR VALUES IN (2) WITH (autovacuum_vacuum_insert_threshold = -1);
CREATE TABLE evbus.scheduled_3 PARTITION OF evbus.scheduled FOR VALUES IN (3) WITH (autovacuum_vacuum_insert_threshold = -1);
CREATE TABLE evbus.scheduled_4 PARTITION OF evbus.scheduled FOR VALUES IN (4) WITH (autovacuum_vacuum_insert_threshold = -1);
CREATE TABLE evbus.scheduled_5 PARTITION OF evbus.scheduled FOR VALUES IN (5) WITH (autovacuum_vacuum_insert_threshold = -1);
CREATE TABLE evbus.scheduled_6 PARTITION OF evbus.scheduled FOR VALUES IN (6) WITH (autovacuum_vacuum_insert_threshold = -1);
CREATE TABLE evbus.scheduled_7 PARTITION OF evbus.scheduled FOR VALUES IN (7) WITH (autovacuum_vacuum_insert_threshold = -1);
CREATE TABLE evbus.scheduled_8 PARTITION OF evbus.scheduled FOR VALUES IN (8);
/* Else nothing could be deleted from them while somebody has a publication FOR ALL TABLES. */
ALTER TABLE evbus.scheduled_0 REPLICA IDENTITY FULL;
ALTER TABLE evbus.scheduled_1 REPLICA IDENTITY FULL;
ALTER TABLE evbus.scheduled_2 REPLICA IDENTITY FULL;
ALTER TABLE evbus.scheduled_3 REPLICA IDENTITY FULL;
ALTER TABLE evbus.scheduled_4 REPLICA IDENTITY FULL;
ALTER TABLE evbus.scheduled_5 REPLICA IDENTITY FULL;
ALTER TABLE evbus.scheduled_6 REPLICA IDENTITY FULL;
ALTER TABLE evbus.scheduled_7 REPLICA IDENTITY FULL;
ALTER TABLE evbus.scheduled_8 REPLICA IDENTITY FULL;
COMMENT ON TABLE evbus.scheduled_0 IS 'events due soon, first of four leaves of a quarter of an hour used in turn';
COMMENT ON TABLE evbus.scheduled_1 IS 'events due soon, second of four leaves of a quarter of an hour used in turn';
COMMENT ON TABLE evbus.scheduled_2 IS 'events due soon, third of four leaves of a quarter of an hour used in turn';
COMMENT ON TABLE evbus.scheduled_3 IS 'events due soon, fourth of four leaves of a quarter of an hour used in turn';
COMMENT ON TABLE evbus.scheduled_4 IS 'events due within days, first of four leaves of a day used in turn';
COMMENT ON TABLE evbus.scheduled_5 IS 'events due within days, second of four leaves of a day used in turn';
COMMENT ON TABLE evbus.scheduled_6 IS 'events due within days, third of four leaves of a day used in turn';
COMMENT ON TABLE evbus.scheduled_7 IS 'events due within days, fourth of four leaves of a day used in turn';
COMMENT ON TABLE evbus.scheduled_8 IS 'events due later than that';

CREATE TABLE evbus.dedup_0 (
	bus_id		integer NOT NULL,
	dedup_key	text COLLATE "C" NOT NULL,
	event_id	bigint NOT NULL,
	PRIMARY KEY (bus_id, dedup_key)
) WITH (autovacuum_vacuum_insert_threshold = -1);
CREATE TABLE evbus.dedup_1 (LIKE evbus.dedup_0 INCLUDING INDEXES) WITH (autovacuum_vacuum_insert_threshold = -1);
COMMENT ON TABLE evbus.dedup_0 IS 'keys that events were published with, first of two tables used in turn';
COMMENT ON TABLE evbus.dedup_1 IS 'keys that events were published with, second of two tables used in turn';
COMMENT ON COLUMN evbus.dedup_0.event_id IS 'the first event, or the id it was scheduled under; with the time inside, from which the window counts';

/* ------------------------------------------------------------- the ledger */

CREATE TABLE evbus.ack_0 (
	subscription_id integer NOT NULL,
	epoch		integer NOT NULL,
	turn		bigint NOT NULL,
	frontier	bigint,
	ranges		bytea NOT NULL
);
CREATE TABLE evbus.ack_1 (LIKE evbus.ack_0);
CREATE TABLE evbus.ack_2 (LIKE evbus.ack_0);
COMMENT ON TABLE evbus.ack_0 IS 'append-only ledger of acked position ranges, first of three leaves used in turn';
COMMENT ON TABLE evbus.ack_1 IS 'append-only ledger of acked position ranges, second of three leaves used in turn';
COMMENT ON TABLE evbus.ack_2 IS 'append-only ledger of acked position ranges, third of three leaves used in turn';
COMMENT ON COLUMN evbus.ack_0.frontier IS 'NULL: ranges are acked; else a checkpoint: all below frontier is acked but for ranges';

/* ---------------------------------------------------------------- failures */

CREATE TABLE evbus.retry (
	subscription_id integer NOT NULL,
	event_id	bigint NOT NULL,
	position	bigint NOT NULL,
	attempts	integer NOT NULL,
	due_at		timestamptz NOT NULL,
	first_failed_at timestamptz NOT NULL,
	last_failed_at timestamptz NOT NULL,
	sqlstate	text NOT NULL,
	message		text NOT NULL,
	redrives	integer NOT NULL DEFAULT 0,
	type		text NOT NULL,
	key			text,
	headers		bytea,
	payload		bytea NOT NULL,
	earlier_failures jsonb,
	replayed	boolean NOT NULL DEFAULT false,
	PRIMARY KEY (subscription_id, event_id)
);
CREATE INDEX retry_due ON evbus.retry (subscription_id, due_at);
CREATE INDEX retry_key ON evbus.retry (subscription_id, key, position) WHERE key IS NOT NULL;
COMMENT ON TABLE evbus.retry IS 'deliveries that failed and will be tried again, and what waits behind them; each row keeps its own copy of the event';
COMMENT ON COLUMN evbus.retry.subscription_id IS 'or that of a replay';
COMMENT ON COLUMN evbus.retry.due_at IS 'infinity: when the one of the same key before it is settled';

CREATE TABLE evbus.dead_letter_log (
	dead_letter_id bigint NOT NULL,
	dead_at		timestamptz NOT NULL,
	subscription_id integer NOT NULL,
	subscription text NOT NULL,
	bus			text NOT NULL,
	event_id	bigint NOT NULL,
	position	bigint NOT NULL,
	attempts	integer NOT NULL,
	reason		text NOT NULL,
	first_failed_at timestamptz NOT NULL,
	last_failed_at timestamptz NOT NULL,
	sqlstate	text NOT NULL,
	message		text NOT NULL,
	redrives	integer NOT NULL,
	type		text NOT NULL,
	key			text,
	headers		bytea,
	payload		bytea NOT NULL,
	earlier_failures jsonb,
	replayed	boolean NOT NULL DEFAULT false
) PARTITION BY RANGE (dead_letter_id);
COMMENT ON TABLE evbus.dead_letter_log IS 'deliveries given up on, with their own copy of the event; read it through evbus.dead_letter';

CREATE TABLE evbus.dead_letter_count (
	subscription_id integer NOT NULL,
	bus			text NOT NULL,
	subscription text NOT NULL,
	type		text NOT NULL,
	sqlstate	text NOT NULL,
	reason		text NOT NULL,
	hour		timestamptz NOT NULL,
	died		bigint NOT NULL,
	gone		bigint NOT NULL,
	PRIMARY KEY (subscription_id, bus, subscription, type, sqlstate, reason, hour)
);
COMMENT ON TABLE evbus.dead_letter_count IS 'dead letters counted by the hour of their id, so that reports need not scan them; written by the maintainer alone';
COMMENT ON COLUMN evbus.dead_letter_count.gone IS 'of those that died in this hour: redriven or discarded since';

/* No key: whoever adds to it waits for nobody. */
CREATE TABLE evbus.dead_letter_delta (LIKE evbus.dead_letter_count);
ALTER TABLE evbus.dead_letter_delta REPLICA IDENTITY FULL;
COMMENT ON TABLE evbus.dead_letter_delta IS 'changes that the maintainer has not yet folded into evbus.dead_letter_count; reports add up both';

CREATE TABLE evbus.dead_letter_quota_state (
	subscription_id integer PRIMARY KEY,
	full_since	timestamptz,
	dropped		bigint NOT NULL DEFAULT 0,
	last_dropped_at timestamptz
);
COMMENT ON TABLE evbus.dead_letter_quota_state IS 'subscriptions that had as many dead letters as max_dead_letters allows; read it through evbus.dead_letter_quota';

CREATE TABLE evbus.audit (
	audit_id	bigint NOT NULL,
	at			timestamptz NOT NULL,
	login		text NOT NULL,
	role		text NOT NULL,
	action		text NOT NULL,
	kind		text,
	object		text,
	arguments	jsonb,
	old			jsonb,
	new			jsonb
) PARTITION BY RANGE (audit_id);
COMMENT ON TABLE evbus.audit IS 'who did what with buses, subscriptions and dead letters, and who was refused; evbus only ever adds to it, and drops what is older than evbus.audit_retention';
COMMENT ON COLUMN evbus.audit.audit_id IS 'grows with time';
COMMENT ON COLUMN evbus.audit.login IS 'session user of the call; role is the current user';
COMMENT ON COLUMN evbus.audit.action IS 'the function of evbus that was called; refused: an error 42501; left out: those for which there was no place';
COMMENT ON COLUMN evbus.audit.kind IS 'what object is the name of: bus, subscription, redrive job; NULL: the call was about none or several';
COMMENT ON COLUMN evbus.audit.arguments IS 'those that were given, each cut at 1000 bytes; without payloads. Of what was refused: the privilege that lacked';
COMMENT ON COLUMN evbus.audit.old IS 'of the settings, grants and limits of the object what the call has changed, as it was; NULL: nothing, or the object was made';
COMMENT ON COLUMN evbus.audit.new IS 'the same as it is, or what came of the call; NULL: nothing, or the object is gone. Of what was refused, and of what takes effect at once: how many times, in the minute from at on';

CREATE SEQUENCE evbus.dead_letter_audit_id_seq;
CREATE TABLE evbus.dead_letter_audit (
	audit_id	bigint PRIMARY KEY DEFAULT pg_catalog.nextval('evbus.dead_letter_audit_id_seq'),
	at			timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	action		text NOT NULL,
	role		text NOT NULL,
	login		text NOT NULL,
	reason		text NOT NULL,
	bus			text NOT NULL,
	subscription text NOT NULL,
	dead_letters bigint NOT NULL,
	oldest_id	bigint NOT NULL,
	newest_id	bigint NOT NULL,
	event_id	bigint,
	old_payload	jsonb
);
COMMENT ON TABLE evbus.dead_letter_audit IS 'who edited or discarded dead letters, when and why; evbus only ever adds to it';
COMMENT ON COLUMN evbus.dead_letter_audit.action IS 'edit: one dead letter, whose payload was old_payload; discard: so many of a subscription in one call';
COMMENT ON COLUMN evbus.dead_letter_audit.role IS 'current user of the call; login is the session user';
COMMENT ON COLUMN evbus.dead_letter_audit.old_payload IS 'NULL for discard, and if it was damaged';
COMMENT ON COLUMN evbus.dead_letter_audit.oldest_id IS 'lowest dead_letter_id it was about; newest_id is the highest';

CREATE SEQUENCE evbus.redrive_job_id_seq;
CREATE TABLE evbus.redrive_job (
	redrive_job_id bigint PRIMARY KEY,
	subscription text,
	subscription_id integer,
	bus			text,
	bus_id		integer,
	types		text[],
	sqlstate	text,
	dead_after	timestamptz,
	dead_before	timestamptz,
	max_events	bigint,
	rate		integer NOT NULL,
	role		regrole NOT NULL,
	login		text NOT NULL,
	state		text NOT NULL DEFAULT 'running',
	total		bigint NOT NULL,
	done		bigint NOT NULL DEFAULT 0,
	after_id	bigint NOT NULL DEFAULT 0,
	upto_id		bigint NOT NULL,
	paced_at	timestamptz,
	created_at	timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	started_at	timestamptz,
	finished_at	timestamptz,
	error		text
);
COMMENT ON TABLE evbus.redrive_job IS 'paced redrives that the maintainer works off; read it through evbus.redrive_list';
COMMENT ON COLUMN evbus.redrive_job.after_id IS 'dead letters up to this id were looked at';
COMMENT ON COLUMN evbus.redrive_job.upto_id IS 'newer ones are not for this job: what it redrives and fails again, is left';
COMMENT ON COLUMN evbus.redrive_job.paced_at IS 'what was due until then is redriven';

SELECT pg_catalog.pg_extension_config_dump('evbus.home', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.storage_class', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.storage_class_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.bus', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.bus_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.dictionary', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.dictionary_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.subscription', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.publish_limit', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.privilege', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.subscription_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.replay', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.replay_log', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.late', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.watermark', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.scheduled_0', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.scheduled_1', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.scheduled_2', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.scheduled_3', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.scheduled_4', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.scheduled_5', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.scheduled_6', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.scheduled_7', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.scheduled_8', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.dedup_0', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.dedup_1', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.ack_0', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.ack_1', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.ack_2', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.retry', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.dead_letter_count', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.dead_letter_delta', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.retention_audit', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.retention_audit_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.dead_letter_quota_state', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.dead_letter_audit', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.dead_letter_audit_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('evbus.redrive_job', $$WHERE state = 'running'$$);
SELECT pg_catalog.pg_extension_config_dump('evbus.redrive_job_id_seq', '');

/* ----------------------------------------------------------------- buses */

CREATE FUNCTION evbus.create_bus(bus text, durability text DEFAULT 'durable', retention interval DEFAULT '7 days',
								 partition_interval interval DEFAULT '1 day', max_payload_bytes integer DEFAULT 16777216,
								 retention_bytes bigint DEFAULT 0, retention_policy text DEFAULT 'keep_unconsumed', compression text DEFAULT 'zstd',
								 dedup_window interval DEFAULT '5 minutes', max_backlog bigint DEFAULT 0, overflow text DEFAULT 'reject',
								 overflow_timeout interval DEFAULT '30 seconds', publish_rate integer DEFAULT 0, publish_burst integer DEFAULT 0,
								 rate_policy text DEFAULT 'reject', idle_ttl interval DEFAULT NULL, max_backlog_bytes bigint DEFAULT 0)
RETURNS void AS 'MODULE_PATHNAME', 'evbus_create_bus' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.create_bus IS 'make a bus; the caller becomes its owner';

CREATE FUNCTION evbus.alter_bus(bus text, retention interval DEFAULT NULL, partition_interval interval DEFAULT NULL,
								max_payload_bytes integer DEFAULT NULL, rename_to text DEFAULT NULL,
								retention_bytes bigint DEFAULT NULL, retention_policy text DEFAULT NULL, compression text DEFAULT NULL,
								dedup_window interval DEFAULT NULL, max_backlog bigint DEFAULT NULL, overflow text DEFAULT NULL,
								overflow_timeout interval DEFAULT NULL, publish_rate integer DEFAULT NULL, publish_burst integer DEFAULT NULL,
								rate_policy text DEFAULT NULL, idle_ttl interval DEFAULT NULL, max_backlog_bytes bigint DEFAULT NULL)
RETURNS void AS 'MODULE_PATHNAME', 'evbus_alter_bus' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.alter_bus IS 'change settings of a bus; NULL keeps a setting, 0 takes a limit away';

CREATE FUNCTION evbus.drop_bus(bus text, force boolean DEFAULT false)
RETURNS void AS 'MODULE_PATHNAME', 'evbus_drop_bus' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.drop_bus(text, boolean) IS 'remove a bus and its subscriptions; refused while a subscription has undelivered events or events are scheduled, unless forced';

CREATE FUNCTION evbus.limit_publisher(bus text, role regrole, rate integer, burst integer DEFAULT 0)
RETURNS void AS 'MODULE_PATHNAME', 'evbus_limit_publisher' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.limit_publisher(text, regrole, integer, integer) IS 'bound how many events a second a role publishes to a bus; rate 0 takes the bound away';

CREATE FUNCTION evbus.grant(privilege text, object text, role regrole)
RETURNS boolean AS 'MODULE_PATHNAME', 'evbus_grant' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.grant(text, text, regrole) IS 'let a role publish, read, subscribe to or manage a bus, or consume from or operate a subscription; false: it was granted before';

CREATE FUNCTION evbus.revoke(privilege text, object text, role regrole)
RETURNS boolean AS 'MODULE_PATHNAME', 'evbus_revoke' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.revoke(text, text, regrole) IS 'take back what evbus.grant() gave to a role; false: it was not granted';

CREATE FUNCTION evbus.has_privilege(privilege text, object text, role regrole DEFAULT NULL)
RETURNS boolean AS 'MODULE_PATHNAME', 'evbus_has_privilege' LANGUAGE C STABLE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.has_privilege(text, text, regrole) IS 'whether a role (the caller) has a privilege on a bus or subscription, by whatever way';

CREATE FUNCTION evbus.pause_bus(bus text)
RETURNS void AS 'MODULE_PATHNAME', 'evbus_pause_bus' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.pause_bus(text) IS 'stop deliveries of a bus; publishing goes on';

CREATE FUNCTION evbus.resume_bus(bus text)
RETURNS void AS 'MODULE_PATHNAME', 'evbus_resume_bus' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.resume_bus(text) IS 'start deliveries of a paused bus again';

CREATE FUNCTION evbus.stop_all(timeout interval DEFAULT '30 seconds', OUT bus text, OUT stopped boolean, OUT in_flight bigint, OUT paused_before boolean)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'evbus_stop_all' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.stop_all(interval) IS 'pause all buses of the caller at once, whatever becomes of the transaction, and wait until what is in flight has ended; a row for each bus, and whether it was paused before';

CREATE FUNCTION evbus.take_over() RETURNS boolean
AS 'MODULE_PATHNAME', 'evbus_take_over' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.take_over() IS 'lets a copy deliver, in the place of the database that it is a copy of; false: it is no copy';

CREATE FUNCTION evbus._copied() RETURNS boolean
AS 'MODULE_PATHNAME', 'evbus_copied' LANGUAGE C STABLE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus._copied() IS 'is this database a copy of another one, in which nothing is delivered until evbus.take_over() is called';

CREATE FUNCTION evbus.train_dictionary(bus text, samples integer DEFAULT 10000, size integer DEFAULT 16384, dry_run boolean DEFAULT false,
									   OUT dictionary_id integer, OUT trained_on integer, OUT tested_on integer, OUT dictionary_bytes integer,
									   OUT jsonb_bytes numeric, OUT packed_bytes numeric, OUT stored_bytes numeric)
AS 'MODULE_PATHNAME', 'evbus_train_dictionary' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.train_dictionary(text, integer, integer, boolean)
	IS 'make a dictionary of the newest events of a bus and use it from the commit on; tells the bytes of a payload without and with it';

/* --------------------------------------------------------------- publish */

CREATE FUNCTION evbus.publish(bus text, type text, payload jsonb, key text DEFAULT NULL, headers jsonb DEFAULT NULL,
							  delay interval DEFAULT NULL, deliver_at timestamptz DEFAULT NULL, dedup_key text DEFAULT NULL,
							  priority integer DEFAULT 0, expires_at timestamptz DEFAULT NULL)
RETURNS bigint AS 'MODULE_PATHNAME', 'evbus_publish' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.publish(text, text, jsonb, text, jsonb, interval, timestamptz, text, integer, timestamptz)
	IS 'store one event, to be delivered now or later, and return its id; with a dedup_key only if none was stored with it lately; takes effect at commit';

CREATE FUNCTION evbus.publish_batch(bus text, types text[], payloads jsonb[], keys text[] DEFAULT NULL, headers jsonb[] DEFAULT NULL,
									deliver_at timestamptz DEFAULT NULL, dedup_keys text[] DEFAULT NULL,
									priority integer DEFAULT 0, expires_at timestamptz DEFAULT NULL)
RETURNS SETOF bigint AS 'MODULE_PATHNAME', 'evbus_publish_batch' LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 1000;
COMMENT ON FUNCTION evbus.publish_batch(text, text[], jsonb[], text[], jsonb[], timestamptz, text[], integer, timestamptz) IS 'store many events, one per element of the arrays, and return their ids in that order; visible after commit';

CREATE FUNCTION evbus.cancel_scheduled(id bigint)
RETURNS boolean AS 'MODULE_PATHNAME', 'evbus_cancel_scheduled' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.cancel_scheduled(bigint) IS 'cancel an event that is not due yet, by the id that evbus.publish() returned; false: it is published or cancelled, or there never was one';

CREATE FUNCTION evbus.publish_lines(bus text, type text, lines text, keys text[] DEFAULT NULL, headers jsonb DEFAULT NULL,
								priority integer DEFAULT 0, expires_at timestamptz DEFAULT NULL, OUT first_id bigint, OUT events integer)
RETURNS record AS 'MODULE_PATHNAME', 'evbus_publish_lines' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.publish_lines(text, text, text, text[], jsonb, integer, timestamptz) IS 'store many events of one type, one per line of JSON, the fastest way; their ids are first_id and those that follow; visible after commit';

/* ------------------------------------------------------ changes of tables */

CREATE FUNCTION evbus.publish_changes("table" regclass, bus text, type_prefix text DEFAULT NULL, columns text[] DEFAULT NULL, key_columns text[] DEFAULT NULL)
RETURNS void AS 'MODULE_PATHNAME', 'evbus_publish_changes' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.publish_changes(regclass, text, text, text[], text[]) IS 'publish each change of a row of a table, in the transaction that makes it; called again it replaces what was said before';

CREATE FUNCTION evbus.stop_publish_changes("table" regclass)
RETURNS void AS 'MODULE_PATHNAME', 'evbus_stop_publish_changes' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.stop_publish_changes(regclass) IS 'publish changes of a table no more';

CREATE FUNCTION evbus._changes() RETURNS trigger
AS 'MODULE_PATHNAME', 'evbus_changes' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus._changes() IS 'publishes what happens to the rows of a table: the function of the triggers that evbus.publish_changes() makes';

/* ------------------------------------------------------------ CloudEvents */

CREATE FUNCTION evbus.cloud_event(event record, source text DEFAULT NULL)
RETURNS jsonb LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	e jsonb := to_jsonb(event);
	headers jsonb;
	place text;
BEGIN
	IF e IS NULL THEN
		RETURN NULL;
	END IF;
	IF NOT e ?& '{event_id,bus,type,key,payload,headers,published_at}' THEN
		RAISE EXCEPTION 'this row is not an event' USING ERRCODE = 'invalid_parameter_value',
			DETAIL = format('It has the columns: %s.', (SELECT string_agg(k, ', ') FROM jsonb_object_keys(e) AS k)),
			HINT = 'Give a handler''s event, or a row of evbus.receive(), evbus.history, evbus.retry_list or evbus.dead_letter, with all its columns.';
	END IF;
	headers := coalesce(nullif(e->'headers', 'null'), '{}');
	place := coalesce(source, headers->>'ce-source');
	IF place IS NULL THEN
		/* Names may hold anything, a URI not. */
		SELECT '/evbus/' || string_agg(string_agg, '/' ORDER BY part) INTO place
		FROM (SELECT part, string_agg(CASE WHEN c COLLATE "C" ~ '[A-Za-z0-9._~-]' THEN c
									  ELSE upper(regexp_replace(encode(convert_to(c, 'UTF8'), 'hex'), '(..)', '%\1', 'g')) END, '' ORDER BY n)
			  FROM unnest(ARRAY[current_database()::text, e->>'bus']) WITH ORDINALITY AS names (name, part),
				   regexp_split_to_table(name, '') WITH ORDINALITY AS chars (c, n)
			  GROUP BY part) AS encoded;
	ELSIF place = '' THEN
		RAISE EXCEPTION 'the source of a CloudEvent must not be empty' USING ERRCODE = 'invalid_parameter_value';
	END IF;
	RETURN jsonb_strip_nulls(jsonb_build_object(
			'specversion', '1.0',
			'id', coalesce(headers->>'ce-id', e->>'event_id'),
			'source', place,
			'type', e->>'type',
			'time', coalesce(headers->>'ce-time',
							 to_char((e->>'published_at')::timestamptz AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')),
			'subject', nullif(e->>'key', ''),
			'dataschema', headers->>'ce-dataschema',
			'datacontenttype', coalesce(headers->>'ce-datacontenttype',
										CASE WHEN e->'payload' <> 'null' AND NOT headers ? 'ce-base64' THEN 'application/json' END)))
		|| CASE WHEN e->'payload' = 'null' THEN '{}'
				WHEN headers ? 'ce-base64' THEN jsonb_build_object('data_base64', e->'payload')
				ELSE jsonb_build_object('data', e->'payload') END
		|| coalesce((SELECT jsonb_object_agg(key, CASE WHEN jsonb_typeof(value) = 'number' AND NOT (value::text ~ '^-?[0-9]+$' AND (value::text)::numeric BETWEEN -2147483648 AND 2147483647)
													   THEN to_jsonb(value #>> '{}') ELSE value END)
					 FROM jsonb_each(headers)
					 WHERE key COLLATE "C" ~ '^[a-z0-9]+$' AND jsonb_typeof(value) IN ('string', 'number', 'boolean')
						   AND key <> ALL ('{specversion,id,source,type,time,subject,dataschema,datacontenttype,data}')), '{}');
END $$;
COMMENT ON FUNCTION evbus.cloud_event(record, text) IS 'an event as a CloudEvents 1.0 envelope; takes a row of evbus.history, evbus.receive(), or what a handler is given';

CREATE FUNCTION evbus.publish_cloud_event(bus text, event jsonb)
RETURNS bigint LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	/* The JSON format says that an attribute which is null is one that is not there. */
	attributes jsonb;
	fault text;
BEGIN
	IF event IS NULL THEN
		RAISE EXCEPTION 'argument "event" must not be null' USING ERRCODE = 'null_value_not_allowed';
	END IF;
	IF jsonb_typeof(event) <> 'object' THEN
		fault := format('it is a JSON %s, not an object', jsonb_typeof(event));
	ELSE
		SELECT coalesce(jsonb_object_agg(key, value), '{}') INTO attributes FROM jsonb_each(event)
		WHERE key NOT IN ('data', 'data_base64') AND value <> 'null';
		SELECT f INTO fault FROM (
			SELECT 1, format('"%s" is missing', a) FROM unnest('{specversion,id,source,type}'::text[]) AS a WHERE NOT attributes ? a
			UNION ALL
			SELECT 2, format('specversion is %s, not "1.0"', attributes->'specversion') WHERE attributes->'specversion' <> '"1.0"'
			UNION ALL
			SELECT 3, format('"%s" must be a string that is not empty', a) FROM unnest('{id,source,type,subject,time,datacontenttype,dataschema}'::text[]) AS a
			WHERE jsonb_typeof(attributes->a) <> 'string' OR attributes->>a = ''
			UNION ALL
			SELECT 4, format('"%s" is no URI: %s', a, attributes->a) FROM unnest('{source,dataschema}'::text[]) AS a
			WHERE attributes->>a COLLATE "C" ~ '[][:space:][:cntrl:]<>"{}|\\^`]'
			UNION ALL
			SELECT 5, format('"time" is not as RFC 3339 has it: %s', attributes->'time')
			WHERE attributes->>'time' !~* '^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$'
			UNION ALL
			SELECT 6, format('"%s" cannot be the name of an attribute, which has lower-case letters and digits only', key) FROM jsonb_each(attributes)
			WHERE key COLLATE "C" !~ '^[a-z0-9]+$'
			UNION ALL
			SELECT 7, format('the value of "%s" must be a string, a boolean, or an integer of 32 bits', key) FROM jsonb_each(attributes)
			WHERE CASE jsonb_typeof(value) WHEN 'number' THEN NOT (value::text ~ '^-?[0-9]+$' AND (value::text)::numeric BETWEEN -2147483648 AND 2147483647)
				  ELSE jsonb_typeof(value) NOT IN ('string', 'boolean') END
			UNION ALL
			SELECT 8, 'it has both "data" and "data_base64"' WHERE event ? 'data' AND event ? 'data_base64'
			UNION ALL
			SELECT 9, '"data_base64" must be a string in base64'
			WHERE event ? 'data_base64' AND (jsonb_typeof(event->'data_base64') <> 'string' OR event->>'data_base64' !~ '^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$')
		) AS faults (n, f) ORDER BY n LIMIT 1;
	END IF;
	IF fault IS NOT NULL THEN
		RAISE EXCEPTION 'this is not a CloudEvent of version 1.0' USING ERRCODE = 'invalid_parameter_value', DETAIL = 'The fault: ' || fault || '.';
	END IF;
	RETURN evbus.publish(bus, attributes->>'type',
		coalesce(event->'data', event->'data_base64', 'null'),
		key => attributes->>'subject',
		headers => jsonb_strip_nulls(jsonb_build_object(
				'ce-id', attributes->'id', 'ce-source', attributes->'source', 'ce-time', attributes->'time',
				'ce-datacontenttype', attributes->'datacontenttype', 'ce-dataschema', attributes->'dataschema',
				'ce-base64', CASE WHEN event ? 'data_base64' THEN true END))
			|| attributes - '{specversion,id,source,type,time,subject,datacontenttype,dataschema}'::text[]);
END $$;
COMMENT ON FUNCTION evbus.publish_cloud_event(text, jsonb) IS 'publish a CloudEvents 1.0 envelope and return the event''s id; evbus.cloud_event() gives the same envelope back';

/* --------------------------------------------------------- subscriptions */

CREATE FUNCTION evbus.subscribe(bus text, subscription text, types text[] DEFAULT '{#}', handler regprocedure DEFAULT NULL,
								start_from text DEFAULT 'now', batch_size integer DEFAULT 100, concurrency integer DEFAULT 1,
								max_attempts integer DEFAULT 5, backoff_initial interval DEFAULT '1 second',
								backoff_max interval DEFAULT '1 hour', lease interval DEFAULT '30 seconds',
								timeout interval DEFAULT '30 seconds', notify boolean DEFAULT true, ordering text DEFAULT 'none',
								on_failure text DEFAULT 'block_key', max_dead_letters integer DEFAULT 0,
								dead_letters_full text DEFAULT 'pause', delivery_rate integer DEFAULT 0, delivery_burst integer DEFAULT 0,
								filter jsonpath DEFAULT NULL, max_age interval DEFAULT NULL, breaker_threshold double precision DEFAULT 0,
								breaker_window interval DEFAULT '30 seconds', breaker_min integer DEFAULT 10,
								breaker_probe interval DEFAULT '5 seconds', by_priority boolean DEFAULT false)
RETURNS bigint AS 'MODULE_PATHNAME', 'evbus_subscribe' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.subscribe
	IS 'make a subscription owned by the caller and return the position it starts at; with a handler evbus calls it, without one clients receive and ack';

CREATE FUNCTION evbus.alter_subscription(subscription text, types text[] DEFAULT NULL, handler regprocedure DEFAULT NULL,
								batch_size integer DEFAULT NULL, concurrency integer DEFAULT NULL,
								max_attempts integer DEFAULT NULL, backoff_initial interval DEFAULT NULL,
								backoff_max interval DEFAULT NULL, lease interval DEFAULT NULL,
								timeout interval DEFAULT NULL, notify boolean DEFAULT NULL, ordering text DEFAULT NULL,
								on_failure text DEFAULT NULL, max_dead_letters integer DEFAULT NULL,
								dead_letters_full text DEFAULT NULL, delivery_rate integer DEFAULT NULL, delivery_burst integer DEFAULT NULL,
								filter jsonpath DEFAULT NULL, max_age interval DEFAULT NULL, breaker_threshold double precision DEFAULT NULL,
								breaker_window interval DEFAULT NULL, breaker_min integer DEFAULT NULL,
								breaker_probe interval DEFAULT NULL, by_priority boolean DEFAULT NULL)
RETURNS void AS 'MODULE_PATHNAME', 'evbus_alter_subscription' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.alter_subscription
	IS 'change settings of a subscription; NULL keeps a setting, 0 takes a quota, rate, age or circuit breaker away, filter => ''$'' the filter';

CREATE FUNCTION evbus.unsubscribe(subscription text)
RETURNS void AS 'MODULE_PATHNAME', 'evbus_unsubscribe' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.unsubscribe(text) IS 'remove a subscription with its progress and retries; its dead letters stay until their retention';

CREATE FUNCTION evbus.pause(subscription text, reason text DEFAULT NULL)
RETURNS void AS 'MODULE_PATHNAME', 'evbus_pause' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.pause(text, text) IS 'stop deliveries of one subscription';

CREATE FUNCTION evbus.resume(subscription text)
RETURNS void AS 'MODULE_PATHNAME', 'evbus_resume' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.resume(text) IS 'start deliveries of a paused subscription again';

CREATE FUNCTION evbus.trace(subscription text, duration interval DEFAULT '10 minutes')
RETURNS timestamptz AS 'MODULE_PATHNAME', 'evbus_trace' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.trace(text, interval) IS 'have the server log tell for so long what becomes of the events of a subscription, a line for each step; 0 ends it';

CREATE FUNCTION evbus.reset_breaker(subscription text)
RETURNS boolean AS 'MODULE_PATHNAME', 'evbus_reset_breaker' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.reset_breaker(text) IS 'close the circuit breaker of a subscription at once; false: it was closed, or there is none';

CREATE FUNCTION evbus.seek(subscription text, start_from text)
RETURNS bigint AS 'MODULE_PATHNAME', 'evbus_seek' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.seek(text, text) IS 'move a subscription to now, the beginning, a time or a position, and return the position; older receipts end';

CREATE FUNCTION evbus.replay(subscription text, start_from text, stop_at text DEFAULT 'now', types text[] DEFAULT NULL, rate integer DEFAULT NULL)
RETURNS bigint AS 'MODULE_PATHNAME', 'evbus_replay' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.replay(text, text, text, text[], integer) IS 'deliver events of the past once more, beside the live flow, which is not touched; returns the id of the replay';

CREATE FUNCTION evbus.cancel_replay(replay_id bigint)
RETURNS boolean AS 'MODULE_PATHNAME', 'evbus_cancel_replay' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.cancel_replay(bigint) IS 'end a replay; false: it had ended before';

/* --------------------------------------------------------------- clients */

CREATE FUNCTION evbus.receive(subscription text, max_events integer DEFAULT 1, lease interval DEFAULT NULL, wait interval DEFAULT NULL, ack text[] DEFAULT NULL)
RETURNS SETOF evbus.delivery AS 'MODULE_PATHNAME', 'evbus_receive' LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 100;
COMMENT ON FUNCTION evbus.receive(text, integer, interval, interval, text[]) IS 'lease up to max_events deliveries, after acking those given; rolling back gives them back at once';

CREATE FUNCTION evbus.receive_lines(subscription text, max_events integer DEFAULT 1, lease interval DEFAULT NULL, wait interval DEFAULT NULL, ack text[] DEFAULT NULL,
								OUT events integer, OUT receipts text[], OUT lines text)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'evbus_receive_lines' LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 1;
COMMENT ON FUNCTION evbus.receive_lines(text, integer, interval, interval, text[]) IS 'the same for clients over the wire: one row for all of them, each delivery a JSON object on a line of its own';

CREATE FUNCTION evbus.ack(receipts text[])
RETURNS integer AS 'MODULE_PATHNAME', 'evbus_ack' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.ack(text[]) IS 'mark deliveries as done when the caller commits; returns how many receipts were still good';

CREATE FUNCTION evbus.nack(receipts text[], delay interval DEFAULT NULL, error text DEFAULT NULL)
RETURNS integer AS 'MODULE_PATHNAME', 'evbus_nack' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.nack(text[], interval, text) IS 'report failed deliveries: tried again after delay (NULL: the backoff), dead letters after max_attempts';

CREATE FUNCTION evbus.reject(receipts text[], error text DEFAULT NULL)
RETURNS integer AS 'MODULE_PATHNAME', 'evbus_reject' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.reject(text[], text) IS 'give up on deliveries: straight to the dead letters';

CREATE FUNCTION evbus.extend(receipts text[], lease interval)
RETURNS integer AS 'MODULE_PATHNAME', 'evbus_extend' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.extend(text[], interval) IS 'let leases end this long from now; takes effect at once';

CREATE FUNCTION evbus.release(receipts text[])
RETURNS integer AS 'MODULE_PATHNAME', 'evbus_release' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.release(text[]) IS 'give deliveries back without counting an attempt, when the caller commits';

CREATE PROCEDURE evbus.wait(subscription text, timeout interval DEFAULT '5 seconds')
AS 'MODULE_PATHNAME', 'evbus_wait' LANGUAGE C;
COMMENT ON PROCEDURE evbus.wait(text, interval) IS 'return when the subscription has something to receive, or after timeout; holds back no vacuum when called outside a transaction block';

CREATE FUNCTION evbus.channel(subscription text)
RETURNS text AS 'MODULE_PATHNAME', 'evbus_channel' LANGUAGE C STABLE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.channel(text) IS 'name of the channel to LISTEN on for a subscription';

/* ----------------------------------------------------------- dead letters */

CREATE FUNCTION evbus.redrive(dead_letter_ids bigint[])
RETURNS bigint AS 'MODULE_PATHNAME', 'evbus_redrive_ids' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.redrive(bigint[]) IS 'try these dead letters again; returns how many';

CREATE FUNCTION evbus.redrive(subscription text DEFAULT NULL, bus text DEFAULT NULL, types text[] DEFAULT NULL,
							  sqlstate text DEFAULT NULL, dead_after timestamptz DEFAULT NULL,
							  dead_before timestamptz DEFAULT NULL, max_events bigint DEFAULT NULL,
							  rate integer DEFAULT NULL, dry_run boolean DEFAULT false)
RETURNS bigint AS 'MODULE_PATHNAME', 'evbus_redrive' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.redrive(text, text, text[], text, timestamptz, timestamptz, bigint, integer, boolean)
	IS 'try the dead letters that match every given filter again; returns how many; with a rate, so many a second in the background, and returns the job';

CREATE FUNCTION evbus.cancel_redrive(job bigint)
RETURNS boolean AS 'MODULE_PATHNAME', 'evbus_cancel_redrive' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.cancel_redrive(bigint) IS 'end a redrive in the background; false: it had ended before';

CREATE FUNCTION evbus.discard(dead_letter_ids bigint[], reason text)
RETURNS bigint AS 'MODULE_PATHNAME', 'evbus_discard_ids' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.discard(bigint[], text) IS 'delete these dead letters and record why; returns how many';

CREATE FUNCTION evbus.discard(subscription text DEFAULT NULL, bus text DEFAULT NULL, types text[] DEFAULT NULL,
							  sqlstate text DEFAULT NULL, dead_after timestamptz DEFAULT NULL,
							  dead_before timestamptz DEFAULT NULL, max_events bigint DEFAULT NULL, reason text DEFAULT NULL,
							  dry_run boolean DEFAULT false)
RETURNS bigint AS 'MODULE_PATHNAME', 'evbus_discard' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.discard(text, text, text[], text, timestamptz, timestamptz, bigint, text, boolean)
	IS 'delete the dead letters that match every given filter and record why; a reason must be given; returns how many; dry_run: only tells how many';

CREATE FUNCTION evbus.edit_dead_letter(dead_letter_id bigint, payload jsonb, reason text)
RETURNS void AS 'MODULE_PATHNAME', 'evbus_edit_dead_letter' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.edit_dead_letter(bigint, jsonb, text) IS 'replace the payload of a dead letter before its redrive; the old one goes to evbus.dead_letter_audit';

/* ----------------------------------------------------------------- upkeep */

CREATE PROCEDURE evbus.maintain()
AS 'MODULE_PATHNAME', 'evbus_maintain' LANGUAGE C;
COMMENT ON PROCEDURE evbus.maintain() IS 'make leaves ahead and drop those past retention, as the upkeep worker does by itself';

CREATE FUNCTION evbus.schedule_maintenance(schedule text DEFAULT '*/5 * * * *')
RETURNS bigint LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	job bigint;
BEGIN
	IF schedule IS NULL THEN
		RAISE EXCEPTION 'argument "schedule" must not be null' USING ERRCODE = 'null_value_not_allowed';
	END IF;
	/* pg_cron's own function, and not one that somebody called so. */
	IF NOT EXISTS (SELECT FROM pg_depend d JOIN pg_extension x ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = x.oid
				   WHERE x.extname = 'pg_cron' AND d.deptype = 'e' AND d.classid = 'pg_proc'::regclass
						 AND d.objid = to_regprocedure('cron.schedule(text,text,text)')) THEN
		RAISE EXCEPTION 'pg_cron is not installed in database "%"', pg_catalog.current_database()
			USING ERRCODE = 'undefined_object',
				  HINT = 'Run CREATE EXTENSION pg_cron in the database that cron.database_name names; or do nothing: the evbus maintainer does the same work by itself.';
	END IF;
	EXECUTE 'SELECT cron.schedule($1, $2, $3)' INTO job USING 'evbus maintain', schedule, 'CALL evbus.maintain()';
	RETURN job;
END $$;
COMMENT ON FUNCTION evbus.schedule_maintenance(text) IS 'run CALL evbus.maintain() through pg_cron; returns the job id';

/* ------------------------------------------------------------------ views */

CREATE FUNCTION evbus._decode(data bytea, event_id bigint DEFAULT 0) RETURNS jsonb
AS 'MODULE_PATHNAME', 'evbus_decode' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION evbus._decode(bytea, bigint) IS 'stored payload or headers as jsonb; the error about damaged ones names the event';

CREATE FUNCTION evbus._priority(headers bytea) RETURNS integer
AS 'MODULE_PATHNAME', 'evbus_stored_priority' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION evbus._priority(bytea) IS 'the priority that stored headers have in front';

CREATE FUNCTION evbus._expires_at(headers bytea) RETURNS timestamptz
AS 'MODULE_PATHNAME', 'evbus_stored_expiry' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION evbus._expires_at(bytea) IS 'when the event expires, as stored headers have it in front; NULL: never';

CREATE FUNCTION evbus._event_time(bigint) RETURNS timestamptz
AS 'MODULE_PATHNAME', 'evbus_event_time' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION evbus._event_time(bigint) IS 'the time inside an event_id';

CREATE FUNCTION evbus._time_event(timestamptz) RETURNS bigint
AS 'MODULE_PATHNAME', 'evbus_time_event' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION evbus._time_event(timestamptz) IS 'the smallest event_id of a time: history by event_id >= evbus._time_event(t) uses the index';

CREATE FUNCTION evbus._event_hour(bigint) RETURNS timestamptz
AS 'MODULE_PATHNAME', 'evbus_event_hour' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION evbus._event_hour(bigint) IS 'the hour of an event_id; dead letters are counted by it';

CREATE FUNCTION evbus._type_matches(type text, patterns text[]) RETURNS boolean
AS 'MODULE_PATHNAME', 'evbus_type_matches' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION evbus._type_matches(text, text[]) IS 'does a type match one of the patterns, as a subscription would say';

CREATE FUNCTION evbus._bus_state(OUT bus_id integer, OUT next_position bigint, OUT ticked_position bigint, OUT rejected bigint, OUT waits bigint,
								OUT last_used timestamptz)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'evbus_bus_state' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus._bus_state() IS 'positions of the buses in shared memory, and how often publishers were held up';

CREATE FUNCTION evbus._subscription_state(OUT subscription_id integer, OUT cursor_position bigint, OUT next_position bigint,
								OUT in_flight bigint, OUT undelivered bigint, OUT workers integer, OUT dropped bigint, OUT filtered bigint, OUT expired bigint,
								OUT trace_until timestamptz)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'evbus_subscription_state' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus._subscription_state() IS 'progress of the subscriptions in shared memory';

CREATE FUNCTION evbus._status(OUT sequencer_pid integer, OUT maintainer_pid integer, OUT handler_workers integer, OUT ready boolean,
							  OUT ring_bytes bigint, OUT ring_used bigint, OUT ring_overflows bigint, OUT leases integer, OUT leases_used integer,
							  OUT ledger_turn bigint)
RETURNS record AS 'MODULE_PATHNAME', 'evbus_status' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus._status() IS 'workers and shared memory of this database';

CREATE FUNCTION evbus._memory_state(OUT area text, OUT "of" text, OUT unit text, OUT used bigint, OUT "limit" bigint, OUT high_water bigint,
								OUT share double precision, OUT level text, OUT setting text)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'evbus_memory_state' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus._memory_state() IS 'how full each area of shared memory is, and the memory of the processes of this database';

CREATE FUNCTION evbus._worker_state(OUT pid integer, OUT kind text, OUT database name, OUT owner name, OUT state text, OUT subscription_id integer,
								OUT event_id bigint, OUT since timestamptz, OUT started_at timestamptz, OUT batches bigint,
								OUT memory_bytes bigint, OUT memory_high_water bigint)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'evbus_worker_state' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus._worker_state() IS 'what each process of evbus in the server says of itself';

CREATE FUNCTION evbus._progress_state(OUT pid integer, OUT work text, OUT subject text, OUT started_at timestamptz, OUT phase text, OUT done bigint,
								OUT total bigint, OUT unit text)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'evbus_progress_state' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus._progress_state() IS 'what the processes of this database say of long work that they are at';

CREATE VIEW evbus.stat_memory AS
SELECT s.area, s."of", s.unit, s.used, s."limit", s.high_water, s.share, s.level, s.setting
FROM evbus._memory_state() s;
COMMENT ON VIEW evbus.stat_memory IS 'each bounded area of shared memory of this database: how full it is, and how full it was at most; and the memory of each evbus process of this database';
COMMENT ON COLUMN evbus.stat_memory.area IS 'commit ring: bytes without a tick; leases; leases of clients, who leave an eighth to the workers; buses; subscriptions, and replays under way; volatile buses; rates of roles: see evbus.publish_limit_list; errands: calls that wait for the maintainer; upkeep notes: see evbus.stat_upkeep; handler workers and databases, of the whole server; volatile ring: of a bus; process: its memory contexts';
COMMENT ON COLUMN evbus.stat_memory."of" IS 'the bus of a volatile ring; kind and pid of a process; NULL: there is one such area';
COMMENT ON COLUMN evbus.stat_memory.unit IS 'what is counted';
COMMENT ON COLUMN evbus.stat_memory.used IS 'in use now; of a process a second ago, or when its batch began';
COMMENT ON COLUMN evbus.stat_memory."limit" IS 'how much there is; NULL: no bound, of a process';
COMMENT ON COLUMN evbus.stat_memory.high_water IS 'most that was in use since the server started; of a volatile ring as found once a second and whenever space was short, of a process once a second and since it started';
COMMENT ON COLUMN evbus.stat_memory.share IS 'used / limit; NULL where there is no limit, or it is 0';
COMMENT ON COLUMN evbus.stat_memory.level IS 'ok; warn from evbus.memory_warn percent on; critical from evbus.memory_critical percent on';
COMMENT ON COLUMN evbus.stat_memory.setting IS 'the setting that bounds it; NULL: none does';

CREATE VIEW evbus.stat_worker AS
SELECT w.pid, w.kind, w.database, w.owner, w.state, x.subscription, w.event_id, w.since, w.started_at, w.batches, w.memory_bytes, w.memory_high_water
FROM evbus._worker_state() w
	 LEFT JOIN evbus.subscription x USING (subscription_id);
COMMENT ON VIEW evbus.stat_worker IS 'every evbus process of the server: what it is, and what it does now';
COMMENT ON COLUMN evbus.stat_worker.pid IS 'as in pg_stat_activity';
COMMENT ON COLUMN evbus.stat_worker.kind IS 'launcher, sequencer, maintainer, indexer, scheduler or handler';
COMMENT ON COLUMN evbus.stat_worker.database IS 'the database it works for; NULL: the launcher';
COMMENT ON COLUMN evbus.stat_worker.owner IS 'the role it is logged in as: of a handler worker the owner of the subscriptions that it serves';
COMMENT ON COLUMN evbus.stat_worker.state IS 'starting: it is not at work yet; idle: it waits for work; busy';
COMMENT ON COLUMN evbus.stat_worker.subscription IS 'that a handler worker serves now, or replays to; NULL: none, or it works for another database';
COMMENT ON COLUMN evbus.stat_worker.event_id IS 'the event that is in its handler, alone, now; NULL: none or several, or it works for another database';
COMMENT ON COLUMN evbus.stat_worker.since IS 'since when it is in this state; of a busy handler worker since when it serves this subscription';
COMMENT ON COLUMN evbus.stat_worker.started_at IS 'when it started';
COMMENT ON COLUMN evbus.stat_worker.batches IS 'pieces of work it has done: batches of a handler worker and of the scheduler, turns of the sequencer that placed events, turns of upkeep of the maintainer, indexes and dictionaries of the indexer, workers that the launcher started';
COMMENT ON COLUMN evbus.stat_worker.memory_bytes IS 'that its memory contexts have from the system; a second ago, or when its batch began';
COMMENT ON COLUMN evbus.stat_worker.memory_high_water IS 'the most of that since it started, looked at once a second at most';

CREATE VIEW evbus.bus_list AS
SELECT b.bus, b.owner, b.durability, c.retention, c.partition_interval, b.max_payload_bytes, b.paused, b.created_at,
	   s.next_position,
	   (SELECT pg_catalog.count(*) FROM evbus.subscription x WHERE x.bus_id = b.bus_id) AS subscriptions,
	   c.retention_bytes, c.retention_policy, b.compression, b.dedup_window,
	   b.max_backlog, b.overflow, b.overflow_timeout, b.publish_rate,
	   CASE WHEN b.publish_rate IS NOT NULL THEN coalesce(b.publish_burst, b.publish_rate) END AS publish_burst, b.rate_policy, s.rejected, s.waits,
	   b.idle_ttl, b.auto_created, s.last_used,
	   CASE WHEN b.idle_ttl IS NOT NULL THEN
			(SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks l
			 WHERE l.locktype = 'object' AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
				   AND l.classid = 'evbus.bus'::regclass AND l.objid = b.bus_id::oid AND l.granted) END AS publishers,
	   b.max_backlog_bytes
FROM evbus.bus b
	 LEFT JOIN evbus.storage_class c USING (storage_class_id)
	 LEFT JOIN evbus._bus_state() s USING (bus_id);
COMMENT ON VIEW evbus.bus_list IS 'the buses of this database and their settings';
COMMENT ON COLUMN evbus.bus_list.durability IS 'durable: in tables; volatile: in shared memory only, so a restart of the server loses its events';
COMMENT ON COLUMN evbus.bus_list.retention IS 'how long its events are kept; NULL: it is volatile';
COMMENT ON COLUMN evbus.bus_list.retention_bytes IS 'size at which its oldest events go; NULL: no limit';
COMMENT ON COLUMN evbus.bus_list.retention_policy IS 'keep_unconsumed: what a subscription still needs stays; drop_unconsumed: it goes, counted in evbus.subscription_lag';
COMMENT ON COLUMN evbus.bus_list.max_backlog IS 'events that a subscription may be behind before publishers are held up; NULL: no limit';
COMMENT ON COLUMN evbus.bus_list.max_backlog_bytes IS 'bytes that these may have, by the average size of events published lately; NULL: no limit';
COMMENT ON COLUMN evbus.bus_list.publish_rate IS 'events a second; NULL: no limit';
COMMENT ON COLUMN evbus.bus_list.publish_burst IS 'events that may come at once after a pause';
COMMENT ON COLUMN evbus.bus_list.idle_ttl IS 'it is dropped when nobody has used it for so long; NULL: never';
COMMENT ON COLUMN evbus.bus_list.auto_created IS 'it was made because somebody published or subscribed to it, see evbus.auto_create, and makes room when no slot is left';
COMMENT ON COLUMN evbus.bus_list.last_used IS 'about when somebody last published to it; NULL: not since the server started, or it has no idle_ttl';
COMMENT ON COLUMN evbus.bus_list.publishers IS 'open and prepared transactions that have published to it; NULL: it has no idle_ttl';
COMMENT ON COLUMN evbus.bus_list.rejected IS 'events refused since the server started, because the bus was full or for a rate';
COMMENT ON COLUMN evbus.bus_list.waits IS 'calls that waited for space or for a rate since the server started';
COMMENT ON COLUMN evbus.bus_list.next_position IS 'position the next event gets; NULL before the first event since the server started';

CREATE FUNCTION evbus._volatile_state(OUT bus_id integer, OUT ring_bytes bigint, OUT used_bytes bigint, OUT events bigint, OUT first_position bigint,
								OUT oldest_position bigint, OUT dropped bigint)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'evbus_volatile_state' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus._volatile_state() IS 'the rings of the volatile buses';

CREATE VIEW evbus.volatile_list AS
SELECT b.bus, v.ring_bytes, v.used_bytes, v.events, v.oldest_position, s.next_position, b.overflow, s.rejected, s.waits, v.dropped
FROM evbus.bus b
	 LEFT JOIN evbus._volatile_state() v USING (bus_id)
	 LEFT JOIN evbus._bus_state() s USING (bus_id)
WHERE b.durability = 'volatile';
COMMENT ON VIEW evbus.volatile_list IS 'the volatile buses, how full their rings are, and what that has led to; NULL where a bus was not used since the server started';
COMMENT ON COLUMN evbus.volatile_list.ring_bytes IS 'size of its ring, evbus.volatile_ring_size';
COMMENT ON COLUMN evbus.volatile_list.used_bytes IS 'of these, what some subscription has not settled, and what open transactions have published; with overflow => drop_oldest it may be more';
COMMENT ON COLUMN evbus.volatile_list.events IS 'events that are still in the ring, settled or not';
COMMENT ON COLUMN evbus.volatile_list.oldest_position IS 'position of the oldest one: how far back evbus.seek() can go';
COMMENT ON COLUMN evbus.volatile_list.next_position IS 'position the next event gets';
COMMENT ON COLUMN evbus.volatile_list.rejected IS 'events refused since the server started, because the bus was full';
COMMENT ON COLUMN evbus.volatile_list.waits IS 'calls that waited for space since the server started';
COMMENT ON COLUMN evbus.volatile_list.dropped IS 'events overwritten before a subscription had settled them, once for each such subscription, also those that are gone, since the server started';

CREATE VIEW evbus.publish_limit_list AS
SELECT b.bus, l.role, l.rate, coalesce(l.burst, l.rate) AS burst
FROM evbus.publish_limit l JOIN evbus.bus b USING (bus_id) JOIN pg_catalog.pg_roles r ON r.oid = l.role;
COMMENT ON VIEW evbus.publish_limit_list IS 'how much single roles may publish to a bus';
COMMENT ON COLUMN evbus.publish_limit_list.rate IS 'events a second';
COMMENT ON COLUMN evbus.publish_limit_list.burst IS 'events at once after a pause';

CREATE VIEW evbus.privilege_list AS
SELECT CASE WHEN p.privilege IN ('consume', 'operate') THEN 'subscription' ELSE 'bus' END AS kind, coalesce(b.bus, s.subscription) AS object, p.privilege, p.role, p.grantor, p.granted_at
FROM evbus.privilege p
	 JOIN pg_catalog.pg_roles r ON r.oid = p.role
	 LEFT JOIN evbus.bus b ON b.bus_id = p.object_id AND p.privilege NOT IN ('consume', 'operate')
	 LEFT JOIN evbus.subscription s ON s.subscription_id = p.object_id AND p.privilege IN ('consume', 'operate')
WHERE coalesce(b.bus_id, s.subscription_id) IS NOT NULL;
COMMENT ON VIEW evbus.privilege_list IS 'what roles may do with buses and subscriptions that are not theirs';
COMMENT ON COLUMN evbus.privilege_list.kind IS 'bus or subscription';
COMMENT ON COLUMN evbus.privilege_list.object IS 'its name';
COMMENT ON COLUMN evbus.privilege_list.grantor IS 'who granted it';

CREATE VIEW evbus.dictionary_list AS
SELECT d.dictionary_id, b.bus, d.trained_at, d.checked_at, d.samples, pg_catalog.octet_length(d.raw) AS dictionary_bytes,
	   pg_catalog.round(d.jsonb_bytes::numeric, 1) AS jsonb_bytes, pg_catalog.round(d.stored_bytes::numeric, 1) AS stored_bytes,
	   d.retired_at, evbus._event_time(d.last_id) AS last_used_at
FROM evbus.dictionary d LEFT JOIN evbus.bus b USING (bus_id);
COMMENT ON VIEW evbus.dictionary_list IS 'the dictionaries that payloads of the log are or were compressed with';
COMMENT ON COLUMN evbus.dictionary_list.bus IS 'NULL: it was dropped, its events are still there';
COMMENT ON COLUMN evbus.dictionary_list.checked_at IS 'when it was last found to be good enough to be kept in use';
COMMENT ON COLUMN evbus.dictionary_list.samples IS 'how many payloads it was trained on';
COMMENT ON COLUMN evbus.dictionary_list.jsonb_bytes IS 'bytes of an average payload as jsonb, of some that it was not trained on';
COMMENT ON COLUMN evbus.dictionary_list.stored_bytes IS 'bytes of the same as they are stored with it';
COMMENT ON COLUMN evbus.dictionary_list.retired_at IS 'since when it is not used for what is published; NULL: it may be';
COMMENT ON COLUMN evbus.dictionary_list.last_used_at IS 'no event published later refers to it; it goes with the last leaf of before';

CREATE VIEW evbus.subscription_list AS
SELECT x.subscription, b.bus, x.owner, x.types,
	   CASE WHEN x.handler_name IS NOT NULL THEN
			pg_catalog.format('%I.%I(%s)', x.handler_schema, x.handler_name,
							  CASE WHEN x.handler_batch THEN 'evbus.event[]' ELSE 'evbus.event' END) END AS handler,
	   CASE WHEN x.handler_name IS NULL AND x.notify THEN evbus.channel(x.subscription) END AS channel,
	   x.batch_size, x.concurrency, x.max_attempts, x.backoff_initial, x.backoff_max, x.lease, x.timeout,
	   x.ordering, CASE WHEN x.ordering <> 'none' THEN x.on_failure END AS on_failure, x.paused, x.paused_reason, x.created_at,
	   x.max_dead_letters, CASE WHEN x.max_dead_letters IS NOT NULL THEN x.dead_letters_full END AS dead_letters_full,
	   x.delivery_rate, CASE WHEN x.delivery_rate IS NOT NULL THEN coalesce(x.delivery_burst, x.delivery_rate) END AS delivery_burst,
	   x.filter, x.max_age,
	   x.breaker_threshold, CASE WHEN x.breaker_threshold IS NOT NULL THEN x.breaker_window END AS breaker_window,
	   CASE WHEN x.breaker_threshold IS NOT NULL THEN x.breaker_min END AS breaker_min,
	   CASE WHEN x.breaker_threshold IS NOT NULL THEN x.breaker_probe END AS breaker_probe, x.by_priority
FROM evbus.subscription x JOIN evbus.bus b USING (bus_id);
COMMENT ON VIEW evbus.subscription_list IS 'the subscriptions of this database and their settings';
COMMENT ON COLUMN evbus.subscription_list.ordering IS 'key: one delivery of a key at a time, in the order of positions; strict: of all of them; none: as they come';
COMMENT ON COLUMN evbus.subscription_list.on_failure IS 'block_key: those that would wait for a failed event do so until it succeeded or is a dead letter; skip: they go on';
COMMENT ON COLUMN evbus.subscription_list.max_dead_letters IS 'its quota of dead letters, see evbus.dead_letter_quota; NULL: none';
COMMENT ON COLUMN evbus.subscription_list.dead_letters_full IS 'what happens then: pause the subscription, or drop_oldest';
COMMENT ON COLUMN evbus.subscription_list.delivery_rate IS 'deliveries a second, retries and replays among them; NULL: as many as there are';
COMMENT ON COLUMN evbus.subscription_list.delivery_burst IS 'deliveries that may come at once after a pause';
COMMENT ON COLUMN evbus.subscription_list.filter IS 'jsonpath that an event must match to be delivered; NULL: none';
COMMENT ON COLUMN evbus.subscription_list.max_age IS 'older events are passed over when their turn comes; NULL: none are';
COMMENT ON COLUMN evbus.subscription_list.breaker_threshold IS 'share of failures that opens its circuit breaker, see evbus.breaker_list; NULL: it has none';
COMMENT ON COLUMN evbus.subscription_list.channel IS 'LISTEN on this to hear of new deliveries; NULL with a handler or notify => false';

CREATE VIEW evbus.subscription_lag AS
SELECT x.subscription, b.bus, s.cursor_position, s.next_position, s.undelivered AS lag, s.in_flight,
	   r.retries, r.next_retry_at, r.held_up, s.workers, x.paused OR b.paused OR h.copied AS paused,
	   coalesce(x.paused_reason, CASE WHEN b.paused THEN 'the bus is paused' WHEN h.copied THEN 'this database is a copy' END) AS paused_reason,
	   (SELECT coalesce(pg_catalog.sum(a.events), 0)::bigint FROM evbus.retention_audit a WHERE a.subscription_id = x.subscription_id) + coalesce(s.dropped, 0) AS dropped,
	   s.filtered, s.expired, s.trace_until
FROM evbus.subscription x
	 JOIN evbus.bus b USING (bus_id)
	 LEFT JOIN evbus._subscription_state() s USING (subscription_id)
	 LEFT JOIN LATERAL (SELECT pg_catalog.count(*) FILTER (WHERE t.due_at < 'infinity') AS retries, pg_catalog.min(t.due_at) FILTER (WHERE t.due_at < 'infinity') AS next_retry_at,
							   pg_catalog.count(*) FILTER (WHERE t.due_at = 'infinity') AS held_up
						FROM evbus.retry t WHERE t.subscription_id = x.subscription_id) r ON true
	 CROSS JOIN (SELECT evbus._copied()) h (copied);
COMMENT ON VIEW evbus.subscription_lag IS 'how far each subscription is behind its bus';
COMMENT ON COLUMN evbus.subscription_lag.cursor_position IS 'everything below is settled; NULL while the workers of this database start, and in a copy';
COMMENT ON COLUMN evbus.subscription_lag.paused IS 'it, or its bus, is paused, or this database is a copy, see evbus.take_over()';
COMMENT ON COLUMN evbus.subscription_lag.next_position IS 'position the next event of the bus gets';
COMMENT ON COLUMN evbus.subscription_lag.lag IS 'positions not yet settled, those of other types that were not looked at among them';
COMMENT ON COLUMN evbus.subscription_lag.in_flight IS 'positions leased to workers or clients now';
COMMENT ON COLUMN evbus.subscription_lag.retries IS 'failed deliveries that wait for their next attempt';
COMMENT ON COLUMN evbus.subscription_lag.held_up IS 'events put aside until one of the same key that failed is settled';
COMMENT ON COLUMN evbus.subscription_lag.dropped IS 'events that were dropped before the subscription had settled them: by retention, where the retention_policy of its bus is drop_unconsumed, see evbus.retention_audit; by overflow => ''drop_oldest'' of a volatile bus, since the server started';
COMMENT ON COLUMN evbus.subscription_lag.filtered IS 'events that its filter kept back since the server started; what it was asked again, as after a rollback, counts again';
COMMENT ON COLUMN evbus.subscription_lag.expired IS 'events and retries passed over because they were older than max_age, since the server started';
COMMENT ON COLUMN evbus.subscription_lag.trace_until IS 'until when the server log tells what becomes of its events, see evbus.trace(); NULL: it does not';
COMMENT ON COLUMN evbus.subscription_lag.workers IS 'handler workers busy with this subscription now';

CREATE FUNCTION evbus._breaker_state(OUT subscription_id integer, OUT state text, OUT since timestamptz, OUT reason text, OUT next_probe timestamptz,
								OUT succeeded bigint, OUT failed bigint, OUT opened_count bigint, OUT failed_probes bigint,
								OUT last_sqlstate text, OUT last_message text)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'evbus_breaker_state' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus._breaker_state() IS 'circuit breakers as they are in shared memory; messages are shown to who has the rights of the owner';

CREATE VIEW evbus.breaker_list AS
SELECT x.subscription, b.bus, s.state, s.since, s.reason, s.next_probe, s.failed, s.succeeded, s.opened_count, s.failed_probes,
	   s.last_sqlstate, s.last_message
FROM evbus.subscription x
	 JOIN evbus.bus b USING (bus_id)
	 JOIN evbus._breaker_state() s USING (subscription_id);
COMMENT ON VIEW evbus.breaker_list IS 'circuit breakers of the subscriptions that have one (breaker_threshold); a restart closes them';
COMMENT ON COLUMN evbus.breaker_list.state IS 'closed: deliveries are handed out; open: none is, until next_probe; half_open: one is out, and what becomes of it decides';
COMMENT ON COLUMN evbus.breaker_list.since IS 'since when it is closed, or is not; NULL: closed since the server started';
COMMENT ON COLUMN evbus.breaker_list.reason IS 'why it opened; NULL: it is closed';
COMMENT ON COLUMN evbus.breaker_list.next_probe IS 'when one delivery is handed out next, to see whether it succeeds; NULL unless it is open';
COMMENT ON COLUMN evbus.breaker_list.failed IS 'different events that failed within the window, as far as it was closed';
COMMENT ON COLUMN evbus.breaker_list.succeeded IS 'deliveries that succeeded within the window, as far as it was closed';
COMMENT ON COLUMN evbus.breaker_list.opened_count IS 'how often it opened since the server started';
COMMENT ON COLUMN evbus.breaker_list.failed_probes IS 'probes that failed since it opened last';
COMMENT ON COLUMN evbus.breaker_list.last_sqlstate IS 'of the last failure that counts; NULL: there was none since the server started';
COMMENT ON COLUMN evbus.breaker_list.last_message IS 'its message, cut to 199 bytes; NULL for who does not have the rights of the owner';

CREATE VIEW evbus.replay_list AS
SELECT r.replay_id, CASE WHEN x.paused OR b.paused THEN 'paused' ELSE 'running' END AS state, x.subscription, b.bus,
	   r.start_position, r.stop_position, coalesce(r.types, x.types) AS types, r.rate, s.cursor_position,
	   r.stop_position - r.start_position - s.undelivered AS done, r.stop_position - r.start_position AS total, s.in_flight,
	   (SELECT pg_catalog.count(*) FROM evbus.retry t WHERE t.subscription_id = r.replay_id) AS retries,
	   r.role, r.created_at, NULL::timestamptz AS finished_at
FROM evbus.replay r
	 JOIN evbus.subscription x USING (subscription_id)
	 JOIN evbus.bus b USING (bus_id)
	 LEFT JOIN evbus._subscription_state() s ON s.subscription_id = r.replay_id
UNION ALL
SELECT l.replay_id, l.state, l.subscription, l.bus, l.start_position, l.stop_position, l.types, l.rate, NULL, l.done, l.stop_position - l.start_position,
	   0, 0, l.role, l.created_at, l.finished_at
FROM evbus.replay_log l;
COMMENT ON VIEW evbus.replay_list IS 'replays that are under way and those that have ended, and how far they are';
COMMENT ON COLUMN evbus.replay_list.state IS 'running; paused, as its subscription or bus is; done; cancelled, also by evbus.unsubscribe() and evbus.drop_bus()';
COMMENT ON COLUMN evbus.replay_list.stop_position IS 'the first position that is not replayed';
COMMENT ON COLUMN evbus.replay_list.cursor_position IS 'everything below is settled, or in retry; NULL once it has ended, and while the workers of this database start';
COMMENT ON COLUMN evbus.replay_list.done IS 'positions of total that are settled, or in retry, those of other types among them';
COMMENT ON COLUMN evbus.replay_list.retries IS 'deliveries of it that failed and will be tried again; it ends after them';
COMMENT ON COLUMN evbus.replay_list.role IS 'current user of the call';

CREATE VIEW evbus.history AS
SELECT e.event_id, b.bus, e.type, e.key, evbus._decode(e.payload, e.event_id) AS payload, evbus._decode(e.headers, e.event_id) AS headers,
	   evbus._event_time(e.event_id) AS published_at, evbus._priority(e.headers) AS priority, evbus._expires_at(e.headers) AS expires_at
FROM evbus.event_log e JOIN evbus.bus b USING (bus_id);
COMMENT ON VIEW evbus.history IS 'every event within retention, whether delivered or not';
COMMENT ON COLUMN evbus.history.priority IS '-9 to 9, of use to subscriptions by_priority; 0 if its publisher gave none';
COMMENT ON COLUMN evbus.history.expires_at IS 'from then on it is not delivered any more; NULL: never';

CREATE FUNCTION evbus.history_page(bus text, types text[] DEFAULT NULL, key text DEFAULT NULL, "from" timestamptz DEFAULT NULL,
								"to" timestamptz DEFAULT NULL, after bigint DEFAULT NULL, "limit" integer DEFAULT 100,
								"order" text DEFAULT 'newest', filter jsonpath DEFAULT NULL)
RETURNS SETOF evbus.history AS 'MODULE_PATHNAME', 'evbus_history_page' LANGUAGE C STABLE PARALLEL UNSAFE ROWS 100;
COMMENT ON FUNCTION evbus.history_page(text, text[], text, timestamptz, timestamptz, bigint, integer, text, jsonpath)
	IS 'events of a bus a page at a time, newest or oldest first; the next page is after => the last event_id of this one';

CREATE FUNCTION evbus._history_query(bus text, types text[] DEFAULT NULL, key text DEFAULT NULL, "from" timestamptz DEFAULT NULL,
								"to" timestamptz DEFAULT NULL, after bigint DEFAULT NULL, "limit" integer DEFAULT 100,
								"order" text DEFAULT 'newest', filter jsonpath DEFAULT NULL)
RETURNS SETOF text AS 'MODULE_PATHNAME', 'evbus_history_query' LANGUAGE C STABLE PARALLEL UNSAFE ROWS 10;
COMMENT ON FUNCTION evbus._history_query(text, text[], text, timestamptz, timestamptz, bigint, integer, text, jsonpath)
	IS 'the statements that evbus.history_page() runs until its page is full, to be explained';

CREATE FUNCTION evbus._oldest_open() RETURNS bigint
AS 'MODULE_PATHNAME', 'evbus_oldest_open_id' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus._oldest_open() IS 'no event_id below it will be written any more, but by prepared transactions: leaves that end below it are closed';

CREATE VIEW evbus.leaf_list AS
SELECT c.storage_class_id, c.retention, c.partition_interval, l.relname::text COLLATE pg_catalog."default" AS leaf,
	   evbus._event_time(b.lo) AS from_time, evbus._event_time(b.hi) AS to_time,
	   CASE WHEN l.reltuples >= 0 THEN l.reltuples::bigint END AS rows,
	   pg_catalog.pg_total_relation_size(l.oid) AS bytes,
	   b.hi <= o.id AS closed,
	   (SELECT pg_catalog.count(*) FROM pg_catalog.pg_class x
		WHERE x.relnamespace = l.relnamespace AND x.relname::text IN (l.relname || '_by_key', l.relname || '_by_type')) = 2 AS indexed
FROM evbus.storage_class c
	 JOIN pg_catalog.pg_inherits i ON i.inhparent = pg_catalog.to_regclass('evbus.event_c' || c.storage_class_id)
	 JOIN pg_catalog.pg_class l ON l.oid = i.inhrelid
	 CROSS JOIN LATERAL (SELECT m[1]::bigint AS lo, m[2]::bigint AS hi
						 FROM pg_catalog.regexp_match(pg_catalog.pg_get_expr(l.relpartbound, l.oid), '\((?:'')?(-?\d+).*\((?:'')?(-?\d+)') AS m) b
	 CROSS JOIN (SELECT evbus._oldest_open() AS id) o;
COMMENT ON VIEW evbus.leaf_list IS 'the leaves of evbus.event_log: what they hold, how large they are, and whether they are closed and indexed';
COMMENT ON COLUMN evbus.leaf_list.rows IS 'as of the last ANALYZE, which autovacuum runs, and the indexer; NULL: not yet';
COMMENT ON COLUMN evbus.leaf_list.bytes IS 'with its indexes and TOAST';
COMMENT ON COLUMN evbus.leaf_list.closed IS 'its time has passed and no open transaction may still write to it';
COMMENT ON COLUMN evbus.leaf_list.indexed IS 'has indexes by type and by key, see evbus.history_indexes';

CREATE FUNCTION evbus._upkeep_state(OUT "of" integer, OUT last_run timestamptz, OUT last_success timestamptz, OUT last_error text,
								OUT last_error_at timestamptz, OUT held_back_by text, OUT held_back_since timestamptz)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'evbus_upkeep_state' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus._upkeep_state() IS 'what came of upkeep, by storage class; -1: of ticks, -2: of dead letters, -3: of the audit';

CREATE VIEW evbus.stat_upkeep AS
SELECT k.kind, k.storage_class_id, k.buses, k.retention, k.partition_interval, k.retention_bytes, k.retention_policy,
	   l.leaves, l.oldest_leaf, l.made_until, l.bytes,
	   s.last_run, s.last_success, s.last_error, s.last_error_at, s.held_back_by, s.held_back_since
FROM (SELECT 'events' AS kind, c.storage_class_id, c.storage_class_id AS "of", 'event_c' || c.storage_class_id AS parent,
			 ARRAY(SELECT b.bus FROM evbus.bus b WHERE b.storage_class_id = c.storage_class_id ORDER BY b.bus) AS buses,
			 c.retention, c.partition_interval, c.retention_bytes, c.retention_policy
	  FROM evbus.storage_class c
	  UNION ALL SELECT 'positions', NULL, -1, 'tick', NULL, NULL, interval '1 day', NULL, NULL
	  UNION ALL SELECT 'dead letters', NULL, -2, 'dead_letter_log', NULL, pg_catalog.current_setting('evbus.dead_letter_retention')::interval, interval '1 day', NULL, NULL
	  UNION ALL SELECT 'audit', NULL, -3, 'audit', NULL, pg_catalog.current_setting('evbus.audit_retention')::interval, interval '30 days', NULL, NULL) k
	 LEFT JOIN evbus._upkeep_state() s ON s."of" = k."of"
	 LEFT JOIN LATERAL (SELECT pg_catalog.count(*) AS leaves, evbus._event_time(pg_catalog.min(m[1]::bigint)) AS oldest_leaf,
							   evbus._event_time(pg_catalog.max(m[2]::bigint)) AS made_until, pg_catalog.sum(pg_catalog.pg_total_relation_size(l.oid))::bigint AS bytes
						FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class l ON l.oid = i.inhrelid
							 CROSS JOIN LATERAL pg_catalog.regexp_match(pg_catalog.pg_get_expr(l.relpartbound, l.oid), '\((?:'')?(-?\d+).*\((?:'')?(-?\d+)') AS m
						WHERE i.inhparent = pg_catalog.to_regclass('evbus.' || k.parent)) l ON true;
COMMENT ON VIEW evbus.stat_upkeep IS 'how upkeep does: for each kind of leaf what there is, how far it was made ahead, what failed, and who holds back what is to go';
COMMENT ON COLUMN evbus.stat_upkeep.kind IS 'events: of a storage class; positions: which event has which; dead letters; audit';
COMMENT ON COLUMN evbus.stat_upkeep.storage_class_id IS 'as in evbus.leaf_list; NULL for the other kinds';
COMMENT ON COLUMN evbus.stat_upkeep.buses IS 'buses that publish to these leaves now; NULL for the other kinds';
COMMENT ON COLUMN evbus.stat_upkeep.retention IS 'age at which leaves go; NULL for positions, which go after the last leaf of events that they are about';
COMMENT ON COLUMN evbus.stat_upkeep.partition_interval IS 'time of a leaf, at most';
COMMENT ON COLUMN evbus.stat_upkeep.retention_bytes IS 'size at which the oldest leaves go; NULL: no limit';
COMMENT ON COLUMN evbus.stat_upkeep.retention_policy IS 'keep_unconsumed or drop_unconsumed, see evbus.bus_list; NULL for the other kinds';
COMMENT ON COLUMN evbus.stat_upkeep.leaves IS 'how many there are, those made ahead among them';
COMMENT ON COLUMN evbus.stat_upkeep.oldest_leaf IS 'where the oldest begins; NULL: there is none';
COMMENT ON COLUMN evbus.stat_upkeep.made_until IS 'where the last one ends: publishing needs no other until then';
COMMENT ON COLUMN evbus.stat_upkeep.bytes IS 'of all of them, with indexes and TOAST';
COMMENT ON COLUMN evbus.stat_upkeep.last_run IS 'when upkeep last looked at them; NULL: not since the server started';
COMMENT ON COLUMN evbus.stat_upkeep.last_success IS 'when it last did so without an error';
COMMENT ON COLUMN evbus.stat_upkeep.last_error IS 'the last error, cut to 199 bytes; over if last_success is later than last_error_at';
COMMENT ON COLUMN evbus.stat_upkeep.last_error_at IS 'when that was';
COMMENT ON COLUMN evbus.stat_upkeep.held_back_by IS 'what keeps the oldest leaf that is to go: a subscription, a process or prepared transaction with a lock on it or open since, or an error; NULL: nothing';
COMMENT ON COLUMN evbus.stat_upkeep.held_back_since IS 'since when something has done so without a break';

/* ------------------------------------------------------------ statistics */

CREATE FUNCTION evbus._stat_bus(OUT bus_id integer, OUT "window" interval, OUT seconds double precision,
								OUT published bigint, OUT published_bytes bigint, OUT transactions bigint, OUT failed bigint, OUT dead_lettered bigint,
								OUT last_at timestamptz, OUT reset_at timestamptz)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'evbus_stat_bus' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus._stat_bus() IS 'counters of buses as they are in shared memory: since the last reset (window NULL), and of each window';

CREATE FUNCTION evbus._stat_subscription(OUT subscription_id integer, OUT "window" interval, OUT seconds double precision,
										 OUT delivered bigint, OUT delivered_bytes bigint, OUT done bigint, OUT failed bigint, OUT dead_lettered bigint, OUT ran_out bigint,
										 OUT lag_before bigint, OUT lag_seconds double precision,
										 OUT latency_p50 interval, OUT latency_p95 interval, OUT latency_p99 interval,
										 OUT handler_p50 interval, OUT handler_p95 interval, OUT handler_p99 interval,
										 OUT last_at timestamptz, OUT reset_at timestamptz)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'evbus_stat_subscription' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus._stat_subscription() IS 'counters of subscriptions as they are in shared memory: since the last reset (window NULL), and of each window';

CREATE FUNCTION evbus._stat_type(OUT bus_id integer, OUT type text, OUT "window" interval, OUT seconds double precision,
								 OUT published bigint, OUT published_bytes bigint, OUT failed bigint, OUT dead_lettered bigint,
								 OUT last_at timestamptz, OUT reset_at timestamptz)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'evbus_stat_type' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus._stat_type() IS 'counters of tracked types as they are in shared memory: since the last reset (window NULL), and of each window';

CREATE FUNCTION evbus._stat_minutes(OUT bus_id integer, OUT subscription_id integer, OUT minute timestamptz,
									OUT events bigint, OUT done bigint, OUT failed bigint, OUT dead_lettered bigint, OUT lag bigint)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'evbus_stat_minutes' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus._stat_minutes() IS 'the last hour by minutes, of each bus and each subscription';

CREATE FUNCTION evbus._position_age(bus_id integer, "position" bigint) RETURNS interval
AS 'MODULE_PATHNAME', 'evbus_position_age' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus._position_age(integer, bigint) IS 'how long ago, at most and about, the bus was at that position; an hour for all that is older';

CREATE FUNCTION evbus.stat_reset() RETURNS void
AS 'MODULE_PATHNAME', 'evbus_stat_reset' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus.stat_reset() IS 'counts anew from now on: all that stat_bus, stat_subscription and stat_type show of this database; high-water marks of stat_memory begin anew as well';

CREATE VIEW evbus.stat_bus_window AS
SELECT b.bus, s."window", s.seconds, s.published, s.published / s.seconds AS published_per_second, s.published_bytes / s.seconds AS bytes_per_second,
	   s.transactions / s.seconds AS transactions_per_second, s.failed, s.dead_lettered
FROM evbus._stat_bus() s
	 JOIN evbus.bus b USING (bus_id)
WHERE s."window" IS NOT NULL;
COMMENT ON VIEW evbus.stat_bus_window IS 'what was published to each bus in the last minute, five minutes and hour';
COMMENT ON COLUMN evbus.stat_bus_window."window" IS '1 minute, 5 minutes or 1 hour';
COMMENT ON COLUMN evbus.stat_bus_window.seconds IS 'what the window covers: its length and up to a part of it more, which is 10 seconds of a minute and a minute of the others; less where counting began later';
COMMENT ON COLUMN evbus.stat_bus_window.published IS 'events, committed in the window';
COMMENT ON COLUMN evbus.stat_bus_window.published_per_second IS 'events a second';
COMMENT ON COLUMN evbus.stat_bus_window.bytes_per_second IS 'bytes of payloads and headers, as jsonb, a second';
COMMENT ON COLUMN evbus.stat_bus_window.transactions_per_second IS 'transactions that published to the bus, a second';
COMMENT ON COLUMN evbus.stat_bus_window.failed IS 'failed deliveries of its events, to whatever subscription';
COMMENT ON COLUMN evbus.stat_bus_window.dead_lettered IS 'dead letters, of whatever subscription';

CREATE VIEW evbus.stat_bus AS
SELECT b.bus, coalesce(s.published, 0) AS published, coalesce(s.published_bytes, 0) AS published_bytes, coalesce(s.transactions, 0) AS transactions,
	   coalesce(s.failed, 0) AS failed, coalesce(s.dead_lettered, 0) AS dead_lettered, x.rejected, x.waits,
	   coalesce(s.rate_1m, 0) AS published_per_second, coalesce(s.rate_5m, 0) AS published_per_second_5m, coalesce(s.rate_1h, 0) AS published_per_second_1h,
	   coalesce(s.bytes_1m, 0) AS bytes_per_second, s.last_at AS last_published_at, s.reset_at AS stats_reset
FROM evbus.bus b
	 LEFT JOIN evbus._bus_state() x USING (bus_id)
	 LEFT JOIN (SELECT c.bus_id, pg_catalog.max(c.published) FILTER (WHERE c."window" IS NULL) AS published,
					   pg_catalog.max(c.published_bytes) FILTER (WHERE c."window" IS NULL) AS published_bytes,
					   pg_catalog.max(c.transactions) FILTER (WHERE c."window" IS NULL) AS transactions,
					   pg_catalog.max(c.failed) FILTER (WHERE c."window" IS NULL) AS failed,
					   pg_catalog.max(c.dead_lettered) FILTER (WHERE c."window" IS NULL) AS dead_lettered,
					   pg_catalog.max(c.published / c.seconds) FILTER (WHERE c."window" = '1 minute') AS rate_1m,
					   pg_catalog.max(c.published / c.seconds) FILTER (WHERE c."window" = '5 minutes') AS rate_5m,
					   pg_catalog.max(c.published / c.seconds) FILTER (WHERE c."window" = '1 hour') AS rate_1h,
					   pg_catalog.max(c.published_bytes / c.seconds) FILTER (WHERE c."window" = '1 minute') AS bytes_1m,
					   pg_catalog.max(c.last_at) AS last_at, pg_catalog.min(c.reset_at) AS reset_at
				FROM evbus._stat_bus() c GROUP BY c.bus_id) s USING (bus_id);
COMMENT ON VIEW evbus.stat_bus IS 'what was published to each bus, since the server started or evbus.stat_reset()';
COMMENT ON COLUMN evbus.stat_bus.published IS 'events, committed; of a prepared transaction when it was prepared';
COMMENT ON COLUMN evbus.stat_bus.published_bytes IS 'bytes of their payloads and headers, as jsonb';
COMMENT ON COLUMN evbus.stat_bus.transactions IS 'transactions that published to it';
COMMENT ON COLUMN evbus.stat_bus.failed IS 'failed deliveries of its events, to whatever subscription';
COMMENT ON COLUMN evbus.stat_bus.dead_lettered IS 'dead letters, of whatever subscription';
COMMENT ON COLUMN evbus.stat_bus.rejected IS 'calls that were refused, as it was full or its rate used up, since the server started';
COMMENT ON COLUMN evbus.stat_bus.waits IS 'calls that had to wait for the same reasons, since the server started';
COMMENT ON COLUMN evbus.stat_bus.published_per_second IS 'of the last minute; see evbus.stat_bus_window';
COMMENT ON COLUMN evbus.stat_bus.published_per_second_5m IS 'of the last five minutes';
COMMENT ON COLUMN evbus.stat_bus.published_per_second_1h IS 'of the last hour';
COMMENT ON COLUMN evbus.stat_bus.bytes_per_second IS 'of the last minute';
COMMENT ON COLUMN evbus.stat_bus.last_published_at IS 'when a transaction that published to it last committed';
COMMENT ON COLUMN evbus.stat_bus.stats_reset IS 'counted from then on: when the server was started, or of the last evbus.stat_reset()';

CREATE VIEW evbus.stat_subscription_window AS
SELECT x.subscription, b.bus, s."window", s.seconds, s.delivered, s.done, s.failed, s.dead_lettered, s.ran_out,
	   s.delivered / s.seconds AS delivered_per_second, s.done / s.seconds AS done_per_second,
	   (s.failed + s.ran_out)::double precision / nullif(s.done + s.failed + s.ran_out, 0) AS failure_share,
	   s.latency_p50, s.latency_p95, s.latency_p99, s.handler_p50, s.handler_p95, s.handler_p99
FROM evbus._stat_subscription() s
	 JOIN evbus.subscription x USING (subscription_id)
	 JOIN evbus.bus b USING (bus_id)
WHERE s."window" IS NOT NULL;
COMMENT ON VIEW evbus.stat_subscription_window IS 'what each subscription did in the last minute, five minutes and hour';
COMMENT ON COLUMN evbus.stat_subscription_window."window" IS '1 minute, 5 minutes or 1 hour';
COMMENT ON COLUMN evbus.stat_subscription_window.seconds IS 'what the window covers, as in evbus.stat_bus_window; its times cover ten minutes more than an hour at most';
COMMENT ON COLUMN evbus.stat_subscription_window.delivered IS 'events handed to its handler, or received and not given back by a rollback; again ones, too';
COMMENT ON COLUMN evbus.stat_subscription_window.done IS 'deliveries acked, or handled without an error';
COMMENT ON COLUMN evbus.stat_subscription_window.failed IS 'deliveries that failed: errors of the handler, nack, reject';
COMMENT ON COLUMN evbus.stat_subscription_window.dead_lettered IS 'dead letters';
COMMENT ON COLUMN evbus.stat_subscription_window.ran_out IS 'leases that ran out';
COMMENT ON COLUMN evbus.stat_subscription_window.delivered_per_second IS 'deliveries a second';
COMMENT ON COLUMN evbus.stat_subscription_window.done_per_second IS 'deliveries done a second';
COMMENT ON COLUMN evbus.stat_subscription_window.failure_share IS 'failed or ran out, of those that are done, failed or ran out, 0 to 1; NULL: there were none';
COMMENT ON COLUMN evbus.stat_subscription_window.latency_p50 IS 'half of the events were delivered for the first time so long after publish(), or sooner; right to an eighth of it from 32 us on, as all these';
COMMENT ON COLUMN evbus.stat_subscription_window.latency_p95 IS 'the same of 95 of 100';
COMMENT ON COLUMN evbus.stat_subscription_window.latency_p99 IS 'the same of 99 of 100';
COMMENT ON COLUMN evbus.stat_subscription_window.handler_p50 IS 'half of the calls of the handler took so long, or less; a call of a handler that takes an array is one';
COMMENT ON COLUMN evbus.stat_subscription_window.handler_p95 IS 'the same of 95 of 100';
COMMENT ON COLUMN evbus.stat_subscription_window.handler_p99 IS 'the same of 99 of 100';

CREATE VIEW evbus.stat_subscription AS
SELECT x.subscription, b.bus, coalesce(t.delivered, 0) AS delivered, coalesce(t.delivered_bytes, 0) AS delivered_bytes, coalesce(t.done, 0) AS done,
	   coalesce(t.failed, 0) AS failed, coalesce(t.dead_lettered, 0) AS dead_lettered, coalesce(t.ran_out, 0) AS ran_out, s.filtered, s.expired,
	   s.undelivered AS lag, s.in_flight,
	   coalesce(p.published / p.seconds, 0) AS published_per_second, coalesce(m.done / m.seconds, 0) AS done_per_second,
	   (m.failed + m.ran_out)::double precision / nullif(m.done + m.failed + m.ran_out, 0) AS failure_share,
	   m.latency_p50, m.latency_p95, m.latency_p99, m.handler_p50, m.handler_p95, m.handler_p99,
	   CASE WHEN s.undelivered = 0 THEN interval '0'
			WHEN m.lag_before > s.undelivered AND m.lag_seconds >= 5 THEN pg_catalog.make_interval(secs => s.undelivered * m.lag_seconds / (m.lag_before - s.undelivered)) END AS time_to_drain,
	   t.last_at AS last_delivered_at, t.reset_at AS stats_reset,
	   CASE WHEN s.undelivered = 0 THEN interval '0' ELSE evbus._position_age(x.bus_id, s.cursor_position) END AS oldest_age
FROM evbus.subscription x
	 JOIN evbus.bus b USING (bus_id)
	 LEFT JOIN evbus._subscription_state() s USING (subscription_id)
	 LEFT JOIN (SELECT * FROM evbus._stat_subscription() c WHERE c."window" IS NULL) t USING (subscription_id)
	 LEFT JOIN (SELECT * FROM evbus._stat_subscription() c WHERE c."window" = '1 minute') m USING (subscription_id)
	 LEFT JOIN (SELECT * FROM evbus._stat_bus() c WHERE c."window" = '1 minute') p ON p.bus_id = x.bus_id;
COMMENT ON VIEW evbus.stat_subscription IS 'what each subscription did, since the server started or evbus.stat_reset(), and how it does now: rates, shares and times are of the last minute, see evbus.stat_subscription_window';
COMMENT ON COLUMN evbus.stat_subscription.delivered IS 'events handed to its handler, or received and not given back by a rollback; again ones, and those of replays, too';
COMMENT ON COLUMN evbus.stat_subscription.delivered_bytes IS 'their bytes, as they are stored';
COMMENT ON COLUMN evbus.stat_subscription.done IS 'deliveries acked, or handled without an error';
COMMENT ON COLUMN evbus.stat_subscription.failed IS 'deliveries that failed: errors of the handler, nack, reject';
COMMENT ON COLUMN evbus.stat_subscription.dead_lettered IS 'dead letters';
COMMENT ON COLUMN evbus.stat_subscription.ran_out IS 'leases that ran out';
COMMENT ON COLUMN evbus.stat_subscription.filtered IS 'events that its filter kept back since the server started';
COMMENT ON COLUMN evbus.stat_subscription.expired IS 'events passed over because they were too old, since the server started';
COMMENT ON COLUMN evbus.stat_subscription.lag IS 'positions not yet settled, as in evbus.subscription_lag';
COMMENT ON COLUMN evbus.stat_subscription.in_flight IS 'positions leased to workers or clients now';
COMMENT ON COLUMN evbus.stat_subscription.published_per_second IS 'events published to its bus a second, whether it wants them or not';
COMMENT ON COLUMN evbus.stat_subscription.done_per_second IS 'deliveries done a second';
COMMENT ON COLUMN evbus.stat_subscription.failure_share IS 'failed or ran out, of those that are done, failed or ran out, 0 to 1; NULL: there were none';
COMMENT ON COLUMN evbus.stat_subscription.latency_p50 IS 'half of the events were delivered for the first time so long after publish(), or sooner; right to an eighth of it from 32 us on, as all these';
COMMENT ON COLUMN evbus.stat_subscription.latency_p95 IS 'the same of 95 of 100';
COMMENT ON COLUMN evbus.stat_subscription.latency_p99 IS 'the same of 99 of 100';
COMMENT ON COLUMN evbus.stat_subscription.handler_p50 IS 'half of the calls of the handler took so long, or less; a call of a handler that takes an array is one';
COMMENT ON COLUMN evbus.stat_subscription.handler_p95 IS 'the same of 95 of 100';
COMMENT ON COLUMN evbus.stat_subscription.handler_p99 IS 'the same of 99 of 100';
COMMENT ON COLUMN evbus.stat_subscription.time_to_drain IS 'when it will have no lag any more, if that goes on falling as since its highest of the last minute; NULL: it does not fall, or not for long enough to tell';
COMMENT ON COLUMN evbus.stat_subscription.last_delivered_at IS 'when a transaction that delivered to it last committed';
COMMENT ON COLUMN evbus.stat_subscription.stats_reset IS 'counted from then on: when the server was started, or of the last evbus.stat_reset()';
COMMENT ON COLUMN evbus.stat_subscription.oldest_age IS 'how long ago, at most and about, the oldest event that it has not settled was published: right to ten seconds of the last minute, to a minute of the last hour; an hour for all that is older';

CREATE VIEW evbus.stat_type AS
WITH tracked AS (
	SELECT c.bus_id, c.type, pg_catalog.max(c.published) FILTER (WHERE c."window" IS NULL) AS published,
		   pg_catalog.max(c.published_bytes) FILTER (WHERE c."window" IS NULL) AS published_bytes,
		   pg_catalog.max(c.failed) FILTER (WHERE c."window" IS NULL) AS failed,
		   pg_catalog.max(c.dead_lettered) FILTER (WHERE c."window" IS NULL) AS dead_lettered,
		   pg_catalog.max(c.published) FILTER (WHERE c."window" = '1 minute') AS n_1m, pg_catalog.max(c.seconds) FILTER (WHERE c."window" = '1 minute') AS s_1m,
		   pg_catalog.max(c.published) FILTER (WHERE c."window" = '5 minutes') AS n_5m, pg_catalog.max(c.seconds) FILTER (WHERE c."window" = '5 minutes') AS s_5m,
		   pg_catalog.max(c.published) FILTER (WHERE c."window" = '1 hour') AS n_1h, pg_catalog.max(c.seconds) FILTER (WHERE c."window" = '1 hour') AS s_1h,
		   pg_catalog.max(c.last_at) AS last_at
	FROM evbus._stat_type() c GROUP BY c.bus_id, c.type
), whole AS (
	SELECT c.bus_id, pg_catalog.max(c.published) FILTER (WHERE c."window" IS NULL) AS published,
		   pg_catalog.max(c.published_bytes) FILTER (WHERE c."window" IS NULL) AS published_bytes,
		   pg_catalog.max(c.failed) FILTER (WHERE c."window" IS NULL) AS failed,
		   pg_catalog.max(c.dead_lettered) FILTER (WHERE c."window" IS NULL) AS dead_lettered,
		   pg_catalog.max(c.published) FILTER (WHERE c."window" = '1 minute') AS n_1m, pg_catalog.max(c.seconds) FILTER (WHERE c."window" = '1 minute') AS s_1m,
		   pg_catalog.max(c.published) FILTER (WHERE c."window" = '5 minutes') AS n_5m, pg_catalog.max(c.seconds) FILTER (WHERE c."window" = '5 minutes') AS s_5m,
		   pg_catalog.max(c.published) FILTER (WHERE c."window" = '1 hour') AS n_1h, pg_catalog.max(c.seconds) FILTER (WHERE c."window" = '1 hour') AS s_1h
	FROM evbus._stat_bus() c GROUP BY c.bus_id
)
SELECT b.bus, t.type, t.published, t.published_bytes, t.failed, t.dead_lettered,
	   t.n_1m / t.s_1m AS published_per_second, t.n_5m / t.s_5m AS published_per_second_5m, t.n_1h / t.s_1h AS published_per_second_1h,
	   t.last_at AS last_published_at
FROM tracked t JOIN evbus.bus b USING (bus_id)
UNION ALL
SELECT b.bus, NULL, greatest(w.published - t.published, 0), greatest(w.published_bytes - t.published_bytes, 0), greatest(w.failed - t.failed, 0),
	   greatest(w.dead_lettered - t.dead_lettered, 0), greatest(w.n_1m - t.n_1m, 0) / w.s_1m, greatest(w.n_5m - t.n_5m, 0) / w.s_5m,
	   greatest(w.n_1h - t.n_1h, 0) / w.s_1h, NULL
FROM whole w
	 JOIN evbus.bus b USING (bus_id)
	 CROSS JOIN LATERAL (SELECT coalesce(pg_catalog.sum(c.published), 0)::bigint AS published, coalesce(pg_catalog.sum(c.published_bytes), 0)::bigint AS published_bytes,
								coalesce(pg_catalog.sum(c.failed), 0)::bigint AS failed, coalesce(pg_catalog.sum(c.dead_lettered), 0)::bigint AS dead_lettered,
								coalesce(pg_catalog.sum(c.n_1m), 0)::bigint AS n_1m, coalesce(pg_catalog.sum(c.n_5m), 0)::bigint AS n_5m,
								coalesce(pg_catalog.sum(c.n_1h), 0)::bigint AS n_1h
						 FROM tracked c WHERE c.bus_id = w.bus_id) t
WHERE w.published > t.published OR w.failed > t.failed OR w.dead_lettered > t.dead_lettered;
COMMENT ON VIEW evbus.stat_type IS 'what was published to each bus, by type: of those seen of late, evbus.max_tracked_types in a database';
COMMENT ON COLUMN evbus.stat_type.type IS 'NULL: all others of the bus, which are not tracked, or were not yet when it was';
COMMENT ON COLUMN evbus.stat_type.published IS 'events, committed, since it is tracked';
COMMENT ON COLUMN evbus.stat_type.published_bytes IS 'bytes of their payloads and headers, as jsonb';
COMMENT ON COLUMN evbus.stat_type.failed IS 'failed deliveries, to whatever subscription';
COMMENT ON COLUMN evbus.stat_type.dead_lettered IS 'dead letters, of whatever subscription';
COMMENT ON COLUMN evbus.stat_type.published_per_second IS 'of the last minute';
COMMENT ON COLUMN evbus.stat_type.published_per_second_5m IS 'of the last five minutes';
COMMENT ON COLUMN evbus.stat_type.published_per_second_1h IS 'of the last hour';
COMMENT ON COLUMN evbus.stat_type.last_published_at IS 'when a transaction that published one last committed';

CREATE VIEW evbus.stat_minutes AS
SELECT b.bus, x.subscription, m.minute, m.events, m.done, m.failed, m.dead_lettered, m.lag
FROM evbus._stat_minutes() m
	 LEFT JOIN evbus.subscription x USING (subscription_id)
	 JOIN evbus.bus b ON b.bus_id = coalesce(m.bus_id, x.bus_id);
COMMENT ON VIEW evbus.stat_minutes IS 'the last hour by minutes: of each bus (subscription NULL) and of each subscription; the newest minute is not over';
COMMENT ON COLUMN evbus.stat_minutes.minute IS 'when it began, by the monotonic clock: not at a full minute';
COMMENT ON COLUMN evbus.stat_minutes.events IS 'published to the bus, or delivered to the subscription';
COMMENT ON COLUMN evbus.stat_minutes.done IS 'deliveries done; NULL of a bus';
COMMENT ON COLUMN evbus.stat_minutes.failed IS 'failed deliveries';
COMMENT ON COLUMN evbus.stat_minutes.dead_lettered IS 'dead letters';
COMMENT ON COLUMN evbus.stat_minutes.lag IS 'of the subscription, when the maintainer last looked in the minute; NULL: nobody did';

CREATE VIEW evbus.scheduled_list AS
SELECT b.bus, s.scheduled_id AS id, s.type, s.key, evbus._decode(s.payload, s.scheduled_id) AS payload, evbus._decode(s.headers, s.scheduled_id) AS headers,
	   s.due_at, s.scheduled_by, evbus._event_time(s.scheduled_id) AS scheduled_at,
	   evbus._priority(s.headers) AS priority, evbus._expires_at(s.headers) AS expires_at
FROM evbus.scheduled s JOIN evbus.bus b USING (bus_id);
COMMENT ON VIEW evbus.scheduled_list IS 'events that are not due yet, or due and held back (evbus.health() tells which and why), or set aside, with due_at infinity';
COMMENT ON COLUMN evbus.scheduled_list.id IS 'what evbus.publish() returned, and evbus.cancel_scheduled() takes; when published, the header scheduledid';
COMMENT ON COLUMN evbus.scheduled_list.scheduled_by IS 'current user of the call; may cancel it, as may the owner of the bus';

CREATE VIEW evbus.retry_list AS
SELECT x.subscription, b.bus, r.event_id, r.position, r.type, r.key, evbus._decode(r.payload, r.event_id) AS payload, evbus._decode(r.headers, r.event_id) AS headers,
	   evbus._event_time(r.event_id) AS published_at, r.attempts, r.due_at, r.first_failed_at, r.last_failed_at, r.sqlstate, r.message,
	   r.redrives, r.earlier_failures, r.replayed OR p.replay_id IS NOT NULL AS replayed,
	   evbus._priority(r.headers) AS priority, evbus._expires_at(r.headers) AS expires_at
FROM evbus.retry r
	 LEFT JOIN evbus.replay p ON p.replay_id = r.subscription_id
	 JOIN evbus.subscription x ON x.subscription_id = coalesce(p.subscription_id, r.subscription_id)
	 JOIN evbus.bus b USING (bus_id);
COMMENT ON VIEW evbus.retry_list IS 'deliveries that failed and wait for their next attempt, and those held up by one of the same key, with due_at infinity';

CREATE VIEW evbus.dead_letter AS
SELECT d.dead_letter_id, d.dead_at, d.subscription, d.bus, d.event_id, d.position, d.type, d.key,
	   evbus._decode(d.payload, d.event_id) AS payload, evbus._decode(d.headers, d.event_id) AS headers, evbus._event_time(d.event_id) AS published_at,
	   d.attempts, d.reason, d.first_failed_at, d.last_failed_at, d.sqlstate, d.message, d.redrives, d.earlier_failures, d.replayed,
	   evbus._priority(d.headers) AS priority, evbus._expires_at(d.headers) AS expires_at
FROM evbus.dead_letter_log d;
COMMENT ON VIEW evbus.dead_letter IS 'deliveries given up on';
COMMENT ON COLUMN evbus.dead_letter.earlier_failures IS 'how its earlier lives ended, the newest 20, oldest first: an array of {dead_letter_id, dead_at, attempts, reason, sqlstate, message, redriven_at, redriven_by}; NULL if it was never redriven';
COMMENT ON COLUMN evbus.dead_letter.reason IS 'max_attempts: tried often enough; permanent: the SQLSTATE says that trying again is no use; rejected: by evbus.reject()';

CREATE VIEW evbus.dead_letter_trend AS
SELECT c.bus, c.subscription, c.type, c.sqlstate, c.reason, c.hour,
	   pg_catalog.sum(c.died)::bigint AS died, pg_catalog.sum(c.died - c.gone)::bigint AS dead_letters
FROM (SELECT * FROM evbus.dead_letter_count UNION ALL SELECT * FROM evbus.dead_letter_delta) c
GROUP BY c.bus, c.subscription, c.type, c.sqlstate, c.reason, c.hour;
COMMENT ON VIEW evbus.dead_letter_trend IS 'dead letters by hour: how many there were, how many are left';
COMMENT ON COLUMN evbus.dead_letter_trend.died IS 'deliveries that became dead letters in this hour';
COMMENT ON COLUMN evbus.dead_letter_trend.dead_letters IS 'those of them that were neither redriven nor discarded since';

/* Numbers from the counts; of each group only its oldest and newest are looked at, by index. */
CREATE VIEW evbus.dead_letter_summary AS
SELECT g.bus, g.subscription, g.type, g.sqlstate, g.reason, g.dead_letters, o.dead_at AS oldest, n.dead_at AS newest, n.message AS last_message
FROM (SELECT c.bus, c.subscription, c.type, c.sqlstate, c.reason, pg_catalog.sum(c.died - c.gone)::bigint AS dead_letters,
			 evbus._time_event(pg_catalog.min(c.hour)) AS oldest_from, evbus._time_event(pg_catalog.max(c.hour) + interval '1 hour') AS newest_to
	  FROM (SELECT * FROM evbus.dead_letter_count UNION ALL SELECT * FROM evbus.dead_letter_delta) c
	  GROUP BY c.bus, c.subscription, c.type, c.sqlstate, c.reason
	  HAVING pg_catalog.sum(c.died - c.gone) > 0) g
	 CROSS JOIN LATERAL (SELECT d.dead_at FROM evbus.dead_letter_log d
						 WHERE d.bus = g.bus AND d.subscription = g.subscription AND d.type = g.type AND d.sqlstate = g.sqlstate AND d.reason = g.reason
							   AND d.dead_letter_id >= g.oldest_from
						 ORDER BY d.dead_letter_id LIMIT 1) o
	 CROSS JOIN LATERAL (SELECT d.dead_at, d.message FROM evbus.dead_letter_log d
						 WHERE d.bus = g.bus AND d.subscription = g.subscription AND d.type = g.type AND d.sqlstate = g.sqlstate AND d.reason = g.reason
							   AND d.dead_letter_id < g.newest_to
						 ORDER BY d.dead_letter_id DESC LIMIT 1) n;
COMMENT ON VIEW evbus.dead_letter_summary IS 'dead letters by bus, subscription, type and error';

CREATE FUNCTION evbus.dead_letter_top(since interval DEFAULT '1 day', max_rows integer DEFAULT 10,
								OUT bus text, OUT subscription text, OUT sqlstate text, OUT reason text, OUT died bigint, OUT dead_letters bigint,
								OUT types bigint, OUT newest timestamptz, OUT last_message text)
RETURNS SETOF record LANGUAGE plpgsql STABLE PARALLEL SAFE ROWS 10 SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	IF since IS NULL OR max_rows IS NULL THEN
		RAISE EXCEPTION 'argument "%" must not be null', CASE WHEN since IS NULL THEN 'since' ELSE 'max_rows' END USING ERRCODE = 'null_value_not_allowed';
	END IF;
	IF since <= interval '0' OR max_rows < 1 THEN
		RAISE EXCEPTION '%', CASE WHEN max_rows < 1 THEN 'max_rows must be at least 1' ELSE 'since must be more than 0' END USING ERRCODE = 'invalid_parameter_value';
	END IF;
	RETURN QUERY
	SELECT g.bus, g.subscription, g.sqlstate, g.reason, g.died, g.dead_letters, g.types, l.dead_at, l.message
	FROM (SELECT t.bus, t.subscription, t.sqlstate, t.reason, sum(t.died)::bigint AS died, sum(t.dead_letters)::bigint AS dead_letters, count(DISTINCT t.type) AS types,
				 max(t.hour) FILTER (WHERE t.dead_letters > 0) AS newest_hour
		  FROM evbus.dead_letter_trend t
		  WHERE t.hour >= date_trunc('hour', now() - dead_letter_top.since, 'UTC')
		  GROUP BY t.bus, t.subscription, t.sqlstate, t.reason
		  ORDER BY died DESC, t.bus, t.subscription, t.sqlstate, t.reason LIMIT max_rows) g
		 /* Of each type there was in that hour the newest, by index. */
		 LEFT JOIN LATERAL (SELECT x.dead_at, x.message
							FROM evbus.dead_letter_trend t
								 CROSS JOIN LATERAL (SELECT d.dead_letter_id, d.dead_at, d.message FROM evbus.dead_letter d
													 WHERE d.bus = g.bus AND d.subscription = g.subscription AND d.type = t.type AND d.sqlstate = g.sqlstate AND d.reason = g.reason
														   AND d.dead_letter_id >= evbus._time_event(g.newest_hour) AND d.dead_letter_id < evbus._time_event(g.newest_hour + interval '1 hour')
													 ORDER BY d.dead_letter_id DESC LIMIT 1) x
							WHERE t.bus = g.bus AND t.subscription = g.subscription AND t.sqlstate = g.sqlstate AND t.reason = g.reason
								  AND t.hour = g.newest_hour AND t.dead_letters > 0
							ORDER BY x.dead_letter_id DESC LIMIT 1) l ON true
	ORDER BY g.died DESC, g.bus, g.subscription, g.sqlstate, g.reason;
END $$;
COMMENT ON FUNCTION evbus.dead_letter_top(interval, integer) IS 'the errors that made most dead letters lately, in whole hours: by bus, subscription and SQLSTATE, with the last message';

CREATE VIEW evbus.dead_letter_quota AS
SELECT x.subscription, b.bus, x.max_dead_letters, x.dead_letters_full,
	   (SELECT coalesce(pg_catalog.sum(c.died - c.gone), 0)::bigint
		FROM (SELECT * FROM evbus.dead_letter_count UNION ALL SELECT * FROM evbus.dead_letter_delta) c
		WHERE c.subscription_id = x.subscription_id) AS dead_letters,
	   coalesce(q.dropped, 0) AS dropped, q.full_since, q.last_dropped_at
FROM evbus.subscription x
	 JOIN evbus.bus b USING (bus_id)
	 LEFT JOIN evbus.dead_letter_quota_state q USING (subscription_id)
WHERE x.max_dead_letters IS NOT NULL;
COMMENT ON VIEW evbus.dead_letter_quota IS 'subscriptions with max_dead_letters: how many they have, and what was dropped for it';
COMMENT ON COLUMN evbus.dead_letter_quota.dead_letters IS 'how many there are now';
COMMENT ON COLUMN evbus.dead_letter_quota.dropped IS 'how many were ever dropped to make room';
COMMENT ON COLUMN evbus.dead_letter_quota.full_since IS 'since when it has been full; NULL: it is not';
COMMENT ON COLUMN evbus.dead_letter_quota.last_dropped_at IS 'when some were last dropped; NULL: never';

CREATE FUNCTION evbus.dead_letter_line(dead_letter evbus.dead_letter) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE RETURN pg_catalog.row_to_json(dead_letter)::text;
COMMENT ON FUNCTION evbus.dead_letter_line(evbus.dead_letter)
	IS 'a dead letter as one line of JSON; for COPY (SELECT evbus.dead_letter_line(d) FROM evbus.dead_letter d) TO STDOUT WITH (FORMAT csv, QUOTE E''\x01'', DELIMITER E''\x02'')';

CREATE VIEW evbus.redrive_list AS
SELECT j.redrive_job_id AS job, j.state, j.subscription, j.bus, j.types, j.sqlstate, j.dead_after, j.dead_before, j.max_events, j.rate,
	   j.total, j.done, j.role, j.login, j.created_at, j.started_at, j.finished_at, j.error
FROM evbus.redrive_job j;
COMMENT ON VIEW evbus.redrive_list IS 'redrives in the background and how far they are';
COMMENT ON COLUMN evbus.redrive_list.state IS 'running, done, cancelled, or failed: then error says why';
COMMENT ON COLUMN evbus.redrive_list.total IS 'dead letters that matched when it was registered';
COMMENT ON COLUMN evbus.redrive_list.role IS 'whose rights it has: the current user of the call; login is the session user';

/* What is in tables is read there; what is not, the processes tell. */
CREATE VIEW evbus.stat_progress AS
SELECT p.pid, p.work, p.subject, p.started_at, p.phase, p.done, p.total, p.unit, NULL::bigint AS id
FROM evbus._progress_state() p
UNION ALL
SELECT (SELECT s.maintainer_pid FROM evbus._status() s), 'redrive', coalesce(j.subscription, j.bus), coalesce(j.started_at, j.created_at),
	   CASE WHEN j.started_at IS NULL THEN 'waiting' ELSE 'redriving' END, j.done, j.total, 'dead letters', j.job
FROM evbus.redrive_list j
WHERE j.state = 'running'
UNION ALL
SELECT NULL, 'replay', r.subscription, r.created_at,
	   CASE WHEN r.state = 'paused' THEN 'paused' WHEN r.done < r.total THEN 'replaying' WHEN r.retries > 0 THEN 'waiting for retries' WHEN r.done IS NULL THEN 'waiting' ELSE 'ending' END,
	   r.done, r.total, 'positions', r.replay_id
FROM evbus.replay_list r
WHERE r.state IN ('running', 'paused');
COMMENT ON VIEW evbus.stat_progress IS 'long work of this database that is under way, and how far it is';
COMMENT ON COLUMN evbus.stat_progress.pid IS 'the process that does it; NULL of a replay, which handler workers or clients share';
COMMENT ON COLUMN evbus.stat_progress.work IS 'recovery: events of before a restart, or for which the ring had no room, get positions; redrive; replay; training of a dictionary; index build: of a closed partition';
COMMENT ON COLUMN evbus.stat_progress.subject IS 'subscription or bus of a redrive, subscription of a replay, bus of a training, partition of an index build; NULL: all';
COMMENT ON COLUMN evbus.stat_progress.started_at IS 'when it began; of what waits when it was asked for';
COMMENT ON COLUMN evbus.stat_progress.phase IS 'what of it is being done';
COMMENT ON COLUMN evbus.stat_progress.done IS 'how much of the phase is done; NULL: that does not show before it ends';
COMMENT ON COLUMN evbus.stat_progress.total IS 'how much the phase has to do; NULL: nobody knows before';
COMMENT ON COLUMN evbus.stat_progress.unit IS 'what is counted';
COMMENT ON COLUMN evbus.stat_progress.id IS 'job of evbus.redrive_list, or replay_id of evbus.replay_list; NULL of other work, and of a redrive that its caller waits for';

/* ------------------------------------------------------------- privileges */

CREATE FUNCTION evbus._stat_times(OUT subscription_id integer, OUT "of" text, OUT less_than double precision, OUT n bigint, OUT sum double precision)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'evbus_stat_times_sql' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION evbus._stat_times() IS 'histograms of latency and of handlers'' times since the last reset: how many took less than so many seconds, and the sum of all';

CREATE VIEW evbus.stat_times AS
SELECT b.bus, x.subscription, t."of", t.less_than, t.n, t.sum
FROM evbus._stat_times() t
	 JOIN evbus.subscription x USING (subscription_id)
	 JOIN evbus.bus b USING (bus_id);
COMMENT ON VIEW evbus.stat_times IS 'histograms of each subscription, since the server started or evbus.stat_reset()';
COMMENT ON COLUMN evbus.stat_times."of" IS 'latency: from publish() to the first delivery; handler: a call of the handler';
COMMENT ON COLUMN evbus.stat_times.less_than IS 'seconds; steps of a factor of four, and infinity';
COMMENT ON COLUMN evbus.stat_times.n IS 'how many took less than that';
COMMENT ON COLUMN evbus.stat_times.sum IS 'seconds that all of them together took';

/* ---------------------------------------------------------------- metrics */

CREATE VIEW evbus.dead_letter_total AS
SELECT c.bus, c.subscription, pg_catalog.sum(c.died - c.gone)::bigint AS dead_letters
FROM (SELECT * FROM evbus.dead_letter_count UNION ALL SELECT * FROM evbus.dead_letter_delta) c
GROUP BY c.bus, c.subscription;
COMMENT ON VIEW evbus.dead_letter_total IS 'how many dead letters each subscription has now; added up from counts, not by reading them';
COMMENT ON COLUMN evbus.dead_letter_total.dead_letters IS 'those that are there, at their retention at most';

CREATE FUNCTION evbus._metric_labels(names text[], "values" text[]) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog
RETURN (SELECT '{' || pg_catalog.string_agg(u.name || '="' || pg_catalog.replace(pg_catalog.replace(pg_catalog.replace(u.value, '\', '\\'), '"', '\"'), E'\n', '\n') || '"', ',' ORDER BY u.i) || '}'
		FROM ROWS FROM (pg_catalog.unnest(names), pg_catalog.unnest("values")) WITH ORDINALITY AS u(name, value, i));
COMMENT ON FUNCTION evbus._metric_labels(text[], text[]) IS 'labels of a metric as OpenMetrics writes them, with what has to be escaped';

/*
 * One text for a scrape: families in a fixed order, each with its samples together.  A family that has no
 * samples is left out.
 */
CREATE FUNCTION evbus.metrics() RETURNS text
LANGUAGE sql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog
SET jit = off
BEGIN ATOMIC
WITH bus AS MATERIALIZED (
	SELECT b.*, evbus._metric_labels('{bus}', ARRAY[b.bus]) AS l FROM evbus.stat_bus b
), sub AS MATERIALIZED (
	SELECT s.*, g.retries, g.held_up, g.workers, g.paused, g.dropped, coalesce(b.state <> 'closed', false) AS breaker_open, coalesce(d.dead_letters, 0) AS dead_letters,
		   evbus._metric_labels('{bus,subscription}', ARRAY[s.bus, s.subscription]) AS l
	FROM evbus.stat_subscription s
		 JOIN evbus.subscription_lag g USING (subscription)
		 LEFT JOIN evbus.breaker_list b USING (subscription)
		 LEFT JOIN evbus.dead_letter_total d ON d.bus = s.bus AND d.subscription = s.subscription
), type AS MATERIALIZED (
	SELECT t.*, evbus._metric_labels('{bus,type}', ARRAY[t.bus, t.type]) AS l FROM evbus.stat_type t WHERE t.type IS NOT NULL
), ring AS MATERIALIZED (
	SELECT v.*, evbus._metric_labels('{bus}', ARRAY[v.bus]) AS l FROM evbus.volatile_list v
), status AS MATERIALIZED (
	SELECT * FROM evbus._status()
), upkeep AS MATERIALIZED (
	SELECT u.*, evbus._metric_labels('{kind,storage_class}', ARRAY[u.kind, coalesce(u.storage_class_id::text, '')]) AS l FROM evbus.stat_upkeep u
), family AS (
	SELECT * FROM (VALUES
		(1, 'evbus_bus_published_events', 'counter', NULL, 'Events published to the bus, in committed transactions.'),
		(2, 'evbus_bus_published_bytes', 'counter', 'bytes', 'Bytes of payload and headers of these.'),
		(3, 'evbus_bus_publish_transactions', 'counter', NULL, 'Transactions that published to the bus.'),
		(4, 'evbus_bus_publish_rejected', 'counter', NULL, 'Calls that were refused, as the bus was full or its rate used up.'),
		(5, 'evbus_bus_publish_waited', 'counter', NULL, 'Calls that had to wait for the same reasons.'),
		(10, 'evbus_subscription_delivered_events', 'counter', NULL, 'Deliveries, also again.'),
		(11, 'evbus_subscription_done_events', 'counter', NULL, 'Deliveries acked or handled.'),
		(12, 'evbus_subscription_failed_events', 'counter', NULL, 'Deliveries that failed.'),
		(13, 'evbus_subscription_dead_lettered_events', 'counter', NULL, 'Events that became dead letters.'),
		(14, 'evbus_subscription_ran_out_leases', 'counter', NULL, 'Leases that ran out.'),
		(15, 'evbus_subscription_filtered_events', 'counter', NULL, 'Events that the filter kept back.'),
		(16, 'evbus_subscription_expired_events', 'counter', NULL, 'Events passed over as they were too old.'),
		(17, 'evbus_subscription_dropped_events', 'counter', NULL, 'Events dropped before they were settled.'),
		(20, 'evbus_subscription_lag_events', 'gauge', NULL, 'Positions not yet settled.'),
		(21, 'evbus_subscription_in_flight_events', 'gauge', NULL, 'Positions leased to workers or clients.'),
		(22, 'evbus_subscription_retries', 'gauge', NULL, 'Failed deliveries that wait for their next attempt.'),
		(23, 'evbus_subscription_held_up_events', 'gauge', NULL, 'Events put aside until one of the same key is settled.'),
		(24, 'evbus_subscription_workers', 'gauge', NULL, 'Handler workers busy with it.'),
		(25, 'evbus_subscription_paused', 'gauge', NULL, 'Is it paused, or its bus? 0 or 1.'),
		(26, 'evbus_subscription_breaker_open', 'gauge', NULL, 'Is its circuit breaker open or half open? 0 or 1.'),
		(27, 'evbus_subscription_dead_letters', 'gauge', NULL, 'Dead letters that are there.'),
		(30, 'evbus_subscription_latency_seconds', 'histogram', 'seconds', 'Time from publish() to the first delivery.'),
		(31, 'evbus_subscription_handler_seconds', 'histogram', 'seconds', 'Time of a call of the handler.'),
		(40, 'evbus_type_published_events', 'counter', NULL, 'Events published of a tracked type.'),
		(41, 'evbus_type_published_bytes', 'counter', 'bytes', 'Bytes of payload and headers of these.'),
		(42, 'evbus_type_failed_events', 'counter', NULL, 'Failed deliveries of a tracked type.'),
		(43, 'evbus_type_dead_lettered_events', 'counter', NULL, 'Dead letters of a tracked type.'),
		(50, 'evbus_ready', 'gauge', NULL, 'Are positions given and deliveries handed out? 0 or 1.'),
		(51, 'evbus_handler_workers', 'gauge', NULL, 'Handler workers of this database.'),
		(52, 'evbus_ring_bytes', 'gauge', 'bytes', 'Size of the ring of fresh events.'),
		(53, 'evbus_ring_used_bytes', 'gauge', 'bytes', 'Of these, what waits for its ticks.'),
		(54, 'evbus_ring_overflows', 'counter', NULL, 'Transactions that found the ring full.'),
		(55, 'evbus_leases', 'gauge', NULL, 'Leases there are.'),
		(56, 'evbus_leases_used', 'gauge', NULL, 'Leases in use.'),
		(57, 'evbus_volatile_ring_bytes', 'gauge', 'bytes', 'Size of the ring of a volatile bus.'),
		(58, 'evbus_volatile_ring_used_bytes', 'gauge', 'bytes', 'Of these, what is not settled.'),
		(59, 'evbus_volatile_dropped_events', 'counter', NULL, 'Events overwritten before they were settled.'),
		(60, 'evbus_upkeep_bytes', 'gauge', 'bytes', 'Size of the partitions.'),
		(61, 'evbus_upkeep_last_success_timestamp_seconds', 'gauge', 'seconds', 'When upkeep last succeeded.'),
		(62, 'evbus_upkeep_failing', 'gauge', NULL, 'Did the last upkeep fail? 0 or 1.'),
		(63, 'evbus_upkeep_held_back', 'gauge', NULL, 'Is a partition kept that is to go? 0 or 1.')) AS f(ord, name, kind, unit, help)
), sample(ord, suffix, label, value) AS (
	SELECT x.ord, '_total', l, x.value FROM bus, LATERAL (VALUES (1, published), (2, published_bytes), (3, transactions), (4, rejected), (5, waits)) AS x(ord, value)
	UNION ALL
	SELECT x.ord, '_total', l, x.value FROM sub, LATERAL (VALUES (10, delivered), (11, done), (12, failed), (13, dead_lettered), (14, ran_out), (15, filtered), (16, expired), (17, dropped)) AS x(ord, value)
	UNION ALL
	SELECT x.ord, '', l, x.value FROM sub, LATERAL (VALUES (20, lag), (21, in_flight), (22, retries), (23, held_up), (24, workers::bigint), (25, paused::integer::bigint),
		(26, breaker_open::integer::bigint), (27, dead_letters)) AS x(ord, value)
	UNION ALL
	SELECT x.ord, '_total', l, x.value FROM type, LATERAL (VALUES (40, published), (41, published_bytes), (42, failed), (43, dead_lettered)) AS x(ord, value)
	UNION ALL
	SELECT x.ord, x.suffix, '', x.value FROM status, LATERAL (VALUES (50, '', ready::integer::bigint), (51, '', handler_workers::bigint), (52, '', ring_bytes), (53, '', ring_used), (54, '_total', ring_overflows),
		(55, '', leases::bigint), (56, '', leases_used::bigint)) AS x(ord, suffix, value)
	UNION ALL
	SELECT x.ord, x.suffix, l, x.value FROM ring, LATERAL (VALUES (57, '', ring_bytes), (58, '', used_bytes), (59, '_total', dropped)) AS x(ord, suffix, value)
	UNION ALL
	SELECT x.ord, '', l, x.value FROM upkeep, LATERAL (VALUES (60, bytes), (61, pg_catalog.floor(extract(epoch FROM last_success))::bigint),
		(62, (last_error IS NOT NULL)::integer::bigint), (63, (held_back_by IS NOT NULL)::integer::bigint)) AS x(ord, value)
), line(ord, label, i, line) AS (
	SELECT s.ord, s.label, 0::double precision, f.name || s.suffix || s.label || ' ' || s.value FROM sample s JOIN family f USING (ord) WHERE s.value IS NOT NULL
	UNION ALL
	SELECT f.ord, sub.l, x.i, x.line
	FROM evbus.stat_times t
		 JOIN sub USING (subscription)
		 JOIN family f ON f.name = 'evbus_subscription_' || t."of" || '_seconds'
		 CROSS JOIN LATERAL (
			SELECT t.less_than, f.name || '_bucket' || evbus._metric_labels('{bus,subscription,le}', ARRAY[sub.bus, sub.subscription, CASE WHEN t.less_than = 'infinity' THEN '+Inf' ELSE t.less_than::text END]) || ' ' || t.n
			UNION ALL
			SELECT 'infinity', f.name || x.suffix || sub.l || ' ' || x.value FROM (VALUES ('_count', t.n::text), ('_sum', t.sum::text)) AS x(suffix, value) WHERE t.less_than = 'infinity') AS x(i, line)
)
SELECT coalesce(pg_catalog.string_agg(b.block, '' ORDER BY b.ord), '') || '# EOF'
FROM (SELECT f.ord, '# TYPE ' || f.name || ' ' || f.kind || E'\n' || coalesce('# UNIT ' || f.name || ' ' || f.unit || E'\n', '') || '# HELP ' || f.name || ' ' || f.help || E'\n' ||
			 pg_catalog.string_agg(l.line || E'\n', '' ORDER BY l.label, l.i, l.line) AS block
	  FROM family f JOIN line l USING (ord)
	  GROUP BY f.ord, f.name, f.kind, f.unit, f.help) b;
END;
COMMENT ON FUNCTION evbus.metrics() IS 'all statistics of this database as OpenMetrics text, for Prometheus';

/* ----------------------------------------------------------------- health */

CREATE FUNCTION evbus._check_ages(age_warn interval, age_critical interval) RETURNS boolean
AS 'MODULE_PATHNAME', 'evbus_check_ages' LANGUAGE C STABLE PARALLEL SAFE;	-- not STRICT: it says what is NULL
COMMENT ON FUNCTION evbus._check_ages(interval, interval) IS 'true, or the error for arguments that evbus.health() refuses';

/*
 * What is not as it should be, and what to do.  Each check has a row for what is worst of it, and one that says ok
 * where nothing is; nothing in it scans events.
 */
CREATE FUNCTION evbus.health(age_warn interval DEFAULT '5 minutes', age_critical interval DEFAULT '1 hour',
							 OUT "check" text, OUT level text, OUT subject text, OUT reason text, OUT hint text)
RETURNS SETOF record
LANGUAGE sql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog
SET jit = off
BEGIN ATOMIC
WITH status AS MATERIALIZED (
	SELECT * FROM evbus._status()
), sub AS MATERIALIZED (
	SELECT s.*, l.paused, l.paused_reason, l.workers, l.next_retry_at, c.handler IS NOT NULL AS has_handler,
		   EXISTS (SELECT 1 FROM evbus.breaker_list b WHERE b.subscription = s.subscription AND b.state <> 'closed') AS breaker,
		   w.done AS done_5m, w.dead_lettered AS dead_5m, w.failure_share AS share_5m, w.failed AS failed_5m
	FROM evbus.stat_subscription s
		 JOIN evbus.subscription_lag l USING (subscription)
		 JOIN evbus.subscription_list c USING (subscription)
		 LEFT JOIN evbus.stat_subscription_window w ON w.subscription = s.subscription AND w."window" = '5 minutes'
), upkeep AS MATERIALIZED (
	SELECT u.*, u.kind || coalesce(' of ' || array_to_string(u.buses, ', '), '') AS what FROM evbus.stat_upkeep u
), checks(ord, name) AS (
	VALUES (1, 'workers'), (2, 'worker slots'), (3, 'oldest event'), (4, 'nothing done'), (5, 'paused'), (6, 'circuit breaker'), (7, 'failures'), (8, 'dead letters'),
		   (9, 'partitions'), (10, 'retention'), (11, 'upkeep'), (12, 'memory'), (13, 'ring overflows'), (14, 'open transactions'), (15, 'delayed events'), (0, 'copy')
), found(name, level, subject, reason, hint) AS (
	SELECT 'workers', 'critical', NULL::text, CASE WHEN sequencer_pid IS NULL OR maintainer_pid IS NULL THEN 'sequencer or maintainer of this database does not run' ELSE 'the workers of this database are still loading' END,
		   'Look at the server log; "out of background worker slots" there asks for a larger max_worker_processes.'
	FROM status WHERE (NOT ready OR sequencer_pid IS NULL OR maintainer_pid IS NULL) AND NOT pg_is_in_recovery() AND NOT evbus._copied()
	UNION ALL
	SELECT 'copy', 'critical', NULL, 'this database is a copy of another one: nothing is delivered, no delayed event is published, nothing is dropped',
		   'If it takes the place of the other one, which must not go on then, call evbus.take_over().' WHERE evbus._copied()
	UNION ALL
	SELECT 'workers', 'ok', NULL, 'this is a standby: they start when it is promoted, and what only they know is not known here', NULL WHERE pg_is_in_recovery()
	UNION ALL
	SELECT 'worker slots', 'warn', NULL, format('max_worker_processes is %s; the launcher, two workers a database and evbus.max_handler_workers may need %s', current_setting('max_worker_processes'),
		   1 + 2 * m.used + current_setting('evbus.max_handler_workers')::integer), 'Raise max_worker_processes, and restart.'
	FROM evbus.stat_memory m WHERE m.area = 'databases' AND current_setting('max_worker_processes')::integer < 1 + 2 * m.used + current_setting('evbus.max_handler_workers')::integer
	UNION ALL
	SELECT 'oldest event', CASE WHEN oldest_age >= age_critical THEN 'critical' ELSE 'warn' END, subscription,
		   format('its oldest event has waited for %s%s; lag %s%s', date_trunc('second', least(oldest_age, interval '1 hour')), CASE WHEN oldest_age >= interval '1 hour' THEN ' or longer' END, lag,
				  CASE WHEN time_to_drain IS NOT NULL THEN ', gone in ' || date_trunc('second', time_to_drain) END),
		   CASE WHEN breaker THEN 'Its circuit breaker is open: it waits for what it depends on.'
				WHEN has_handler THEN 'Is the handler slow (handler_p50 of evbus.stat_subscription)? More concurrency or a larger batch_size helps, or more evbus.max_handler_workers.'
				ELSE 'Does its client run? More of them may receive at the same time.' END
	FROM sub WHERE NOT paused AND lag > 0 AND oldest_age >= age_warn
	UNION ALL
	SELECT 'nothing done', 'critical', subscription, format('%s positions wait, and for five minutes nothing was done', lag),
		   CASE WHEN has_handler AND workers = 0 THEN 'No worker serves it: see evbus.stat_worker, evbus.max_handler_workers, and the server log.'
				WHEN has_handler THEN 'A worker serves it: see evbus.stat_worker.event_id and pg_stat_activity for what it waits for.' ELSE 'Nobody receives and acks.' END
	FROM sub WHERE NOT paused AND NOT breaker AND lag > 0 AND done_5m = 0 AND failed_5m = 0 AND oldest_age >= interval '5 minutes'
	UNION ALL
	SELECT 'paused', 'warn', subscription, paused_reason, 'When what the reason says is mended or over, call evbus.resume().' FROM sub WHERE paused AND paused_reason IS NOT NULL AND paused_reason NOT IN ('the bus is paused', 'this database is a copy')
	UNION ALL
	SELECT 'paused', 'warn', bus, 'the whole bus is paused', 'Nothing of it is delivered, after evbus.pause_bus() or evbus.stop_all(), until evbus.resume_bus().' FROM evbus.bus_list WHERE paused
	UNION ALL
	SELECT 'circuit breaker', 'critical', b.subscription, format('%s since %s: %s', b.state, date_trunc('second', b.since), b.reason), 'What it depends on fails; evbus.breaker_list has more. It closes by itself when a probe succeeds.'
	FROM evbus.breaker_list b WHERE b.state <> 'closed'
	UNION ALL
	SELECT 'failures', 'warn', subscription, format('%s %% of its deliveries of the last five minutes failed', round(share_5m::numeric * 100)), 'See evbus.retry_list and evbus.dead_letter_top().'
	FROM sub WHERE share_5m >= 0.1 AND failed_5m >= 10
	UNION ALL
	SELECT 'dead letters', CASE WHEN q.full_since IS NOT NULL THEN 'critical' ELSE 'warn' END, s.subscription,
		   CASE WHEN q.full_since IS NOT NULL THEN format('its quota of %s is full since %s', q.max_dead_letters, date_trunc('second', q.full_since)) ELSE format('%s more in the last five minutes', s.dead_5m) END,
		   'evbus.dead_letter_top() tells the errors; evbus.redrive() sends them again, evbus.discard() deletes.'
	FROM sub s LEFT JOIN evbus.dead_letter_quota q USING (subscription) WHERE s.dead_5m > 0 OR q.full_since IS NOT NULL
	UNION ALL
	SELECT 'partitions', CASE WHEN made_until IS NULL OR made_until < statement_timestamp() + partition_interval / 4 THEN 'critical' ELSE 'warn' END, what,
		   coalesce('made until ' || date_trunc('second', made_until) || ' only', 'there are none'), 'CALL evbus.maintain() tells what fails; last_error of evbus.stat_upkeep as well.'
	FROM upkeep WHERE (made_until IS NULL OR made_until < statement_timestamp() + partition_interval / 2) AND EXISTS (SELECT b.bus_id FROM evbus.bus b)	-- before there is a bus nothing is made
	UNION ALL
	SELECT 'retention', CASE WHEN held_back_since < statement_timestamp() - interval '1 day' THEN 'critical' ELSE 'warn' END, what, format('what is to go stays since %s: %s', date_trunc('second', held_back_since), held_back_by),
		   'A subscription that nobody serves can be unsubscribed or moved (evbus.seek); an old or prepared transaction ended.'
	FROM upkeep WHERE held_back_by IS NOT NULL
	UNION ALL
	SELECT 'upkeep', 'critical', what, last_error, 'CALL evbus.maintain() tries at once.' FROM upkeep WHERE last_error IS NOT NULL AND last_error_at > coalesce(last_success, '-infinity')
	UNION ALL
	SELECT 'memory', m.level, m.area || coalesce(' ' || m."of", ''), format('%s %% of %s %s in use', round(m.share::numeric * 100), m."limit", m.unit), coalesce('Bounded by ' || m.setting || '; docs/limits.md says what happens at it.', 'docs/limits.md says what happens at it.')
	FROM evbus.stat_memory m WHERE m.level <> 'ok'
	UNION ALL
	SELECT 'ring overflows', 'warn', NULL, format('%s transactions found the ring of fresh events full since the server started', ring_overflows), 'Nothing is lost, but readers go to the tables. Raise evbus.ring_size.'
	FROM status WHERE ring_overflows > 0
	UNION ALL
	SELECT 'open transactions', 'warn', NULL, format('a transaction that has published is open since %s', date_trunc('second', t.at)), 'See pg_stat_activity.xact_start. Partitions it has written to cannot go, and vacuum is held back.'
	FROM (SELECT evbus._event_time(evbus._oldest_open()) AS at) t WHERE t.at < statement_timestamp() - age_warn
	UNION ALL
	SELECT 'open transactions', 'warn', p.gid, format('prepared since %s', date_trunc('second', p.prepared)), 'COMMIT PREPARED or ROLLBACK PREPARED: it holds back vacuum, and partitions it has written to.'
	FROM pg_prepared_xacts p WHERE p.database = current_database() AND p.prepared < statement_timestamp() - age_warn
	UNION ALL
	SELECT 'delayed events', CASE WHEN d.due < statement_timestamp() - age_critical THEN 'critical' ELSE 'warn' END, b.bus, format('due since %s, and not published', date_trunc('second', d.due)),
		   CASE WHEN b.max_backlog IS NOT NULL OR b.max_backlog_bytes IS NOT NULL THEN 'If the bus is full (max_backlog), its subscriptions have to catch up, see evbus.subscription_lag; the server log tells.' ELSE 'The server log tells why.' END
	FROM (SELECT x.bus_id, min(x.due_at) AS due
		  FROM (SELECT s.bus_id, s.due_at FROM evbus.scheduled s WHERE s.due_at < statement_timestamp() - interval '1 minute' ORDER BY s.due_at LIMIT 1000) x GROUP BY x.bus_id) d
		 JOIN evbus.bus b USING (bus_id)
	UNION ALL
	SELECT 'delayed events', 'critical', b.bus, format('%s%s set aside, as they cannot be published', CASE WHEN d.at_least THEN 'at least ' END, d.n),
		   'Their rows in evbus.scheduled are due at infinity: the server log tells why. Mend them, or call evbus.cancel_scheduled().'
	FROM (SELECT x.bus_id, count(*) AS n, sum(count(*)) OVER () >= 1000 AS at_least
		  FROM (SELECT s.bus_id FROM evbus.scheduled s WHERE s.due_at = 'infinity' LIMIT 1000) x GROUP BY x.bus_id) d
		 JOIN evbus.bus b USING (bus_id)
)
SELECT c.name, coalesce(f.level, 'ok'), f.subject, f.reason, f.hint
FROM checks c LEFT JOIN found f USING (name)
WHERE evbus._check_ages(age_warn, age_critical)
ORDER BY array_position(ARRAY['critical', 'warn', 'ok'], coalesce(f.level, 'ok')), c.ord, f.subject;
END;
COMMENT ON FUNCTION evbus.health(interval, interval) IS 'what is not as it should be, the worst first: for each check a row for each subject, or one that says ok; with the reason, and what to do';

/* ----------------------------------------------------------------- report */

CREATE FUNCTION evbus.report_html(title text DEFAULT NULL, max_rows integer DEFAULT 20, payloads boolean DEFAULT false) RETURNS text
AS 'MODULE_PATHNAME', 'evbus_report_html' LANGUAGE C VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
SET jit = off;	-- not STRICT: title may be NULL
COMMENT ON FUNCTION evbus.report_html(text, integer, boolean) IS 'how buses and subscriptions do, as one page of HTML that stands alone, with charts; without payloads unless asked for';


/* -------------------------------------------------------------------- top */

CREATE FUNCTION evbus._fit(string text, width integer) RETURNS text
AS 'MODULE_PATHNAME', 'evbus_fit' LANGUAGE C STRICT STABLE PARALLEL SAFE;
COMMENT ON FUNCTION evbus._fit(text, integer) IS 'a text cut or filled up to so many columns of a terminal, with ? for each character that a terminal would act on';

CREATE FUNCTION evbus._short(n double precision) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog
RETURN CASE WHEN n IS NULL THEN '-' WHEN n < 9.95 AND n <> pg_catalog.trunc(n) THEN pg_catalog.round(n::numeric, 1)::text WHEN n < 9999.5 THEN pg_catalog.round(n::numeric)::text
			WHEN n < 99950 THEN pg_catalog.round(n::numeric / 1e3, 1) || 'k' WHEN n < 999500 THEN pg_catalog.round(n::numeric / 1e3) || 'k'
			WHEN n < 99950000 THEN pg_catalog.round(n::numeric / 1e6, 1) || 'M' WHEN n < 999500000 THEN pg_catalog.round(n::numeric / 1e6) || 'M'
			WHEN n < 99950000000 THEN pg_catalog.round(n::numeric / 1e9, 1) || 'G' ELSE pg_catalog.round(n::numeric / 1e9) || 'G' END;
COMMENT ON FUNCTION evbus._short(double precision) IS 'a number in five characters or so, for evbus.top()';

CREATE FUNCTION evbus._short(duration interval) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog
RETURN (SELECT CASE WHEN s IS NULL THEN '-' WHEN s = 0 THEN '0' WHEN s < 0.0009995 THEN pg_catalog.round(s * 1e6) || 'us' WHEN s < 0.00995 THEN pg_catalog.round(s * 1e3, 1) || 'ms' WHEN s < 0.9995 THEN pg_catalog.round(s * 1e3) || 'ms'
					WHEN s < 9.95 THEN pg_catalog.round(s, 1) || 's' WHEN s < 99.5 THEN pg_catalog.round(s) || 's' WHEN s < 5970 THEN pg_catalog.round(s / 60) || 'm'
					WHEN s < 171000 THEN pg_catalog.round(s / 3600) || 'h' ELSE pg_catalog.round(s / 86400) || 'd' END
		FROM (SELECT extract(epoch FROM duration)) AS t(s));
COMMENT ON FUNCTION evbus._short(interval) IS 'a duration in five characters or so, for evbus.top()';

/*
 * The state of this database, and its subscriptions, those in trouble first and then those most behind.  Each line
 * goes through evbus._fit() as a whole, so no name and no message gets to the terminal as it is.
 */
CREATE FUNCTION evbus.top(width integer DEFAULT 100, max_rows integer DEFAULT 20, OUT line text)
RETURNS SETOF text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE ROWS 30
SET search_path = pg_catalog, pg_temp
SET jit = off
SET lock_timeout = '500ms'
AS $$
#variable_conflict use_column
DECLARE
	for_bus integer;
	for_subscription integer;
	level text;
	found text[];
BEGIN
	IF top.width IS NULL OR top.max_rows IS NULL THEN
		RAISE EXCEPTION 'argument "%" must not be null', CASE WHEN top.width IS NULL THEN 'width' ELSE 'max_rows' END USING ERRCODE = 'null_value_not_allowed';
	END IF;
	IF top.width NOT BETWEEN 80 AND 500 THEN
		RAISE EXCEPTION 'width must be between 80 and 500, not %', top.width USING ERRCODE = 'invalid_parameter_value', HINT = 'It is the width of the terminal, in columns.';
	END IF;
	IF top.max_rows NOT BETWEEN 1 AND 10000 THEN
		RAISE EXCEPTION 'max_rows must be between 1 and 10000, not %', top.max_rows USING ERRCODE = 'invalid_parameter_value', HINT = 'It is how many subscriptions are shown; the others are counted.';
	END IF;

	/* Numbers and states take 53 columns; the names share the others, by two to three. */
	for_bus := (top.width - 53) * 2 / 5;
	for_subscription := top.width - 54 - for_bus;
	/* health() looks at the sizes of partitions, one of which may be locked: the rest is worth seeing all the same. */
	BEGIN
		SELECT CASE WHEN bool_or(h.level = 'critical') THEN 'CRITICAL' WHEN bool_or(h.level = 'warn') THEN 'WARN' ELSE 'ok' END,
			   array_agg(format('! %s: %s%s: %s', h.level, h."check", ' of ' || h.subject, h.reason) ORDER BY h.i) FILTER (WHERE h.level <> 'ok')
		INTO level, found FROM evbus.health() WITH ORDINALITY AS h("check", level, subject, reason, hint, i);
	EXCEPTION WHEN lock_not_available THEN
		level := 'not known, a partition is locked';
	END;
	IF cardinality(found) > 4 THEN
		found := found[:3] || format('! and %s more: SELECT * FROM evbus.health()', cardinality(found) - 3);
	END IF;

	RETURN QUERY
	WITH sub AS MATERIALIZED (
		SELECT s.bus, s.subscription, s.published_per_second, s.done_per_second, s.lag, s.in_flight, g.retries, s.oldest_age, s.latency_p95, s.failure_share, g.workers,
			   w.delivered_per_second, CASE b.state WHEN 'open' THEN 'open' WHEN 'half_open' THEN 'half' ELSE CASE WHEN g.paused THEN 'paused' ELSE '' END END AS state,
			   row_number() OVER (ORDER BY CASE WHEN b.state <> 'closed' OR s.failure_share >= 0.1 THEN 0 WHEN g.paused AND g.paused_reason NOT IN ('the bus is paused', 'this database is a copy') THEN 1 ELSE 2 END,
										   s.lag DESC NULLS LAST, s.done_per_second DESC, s.bus, s.subscription) AS i
		FROM evbus.stat_subscription s
			 JOIN evbus.subscription_lag g USING (subscription)
			 LEFT JOIN evbus.stat_subscription_window w ON w.subscription = s.subscription AND w."window" = '1 minute'
			 LEFT JOIN evbus.breaker_list b ON b.subscription = s.subscription
	), whole AS (
		SELECT coalesce(sum(delivered_per_second), 0) AS delivered, coalesce(sum(done_per_second), 0) AS done, CASE WHEN NOT coalesce(bool_or(lag IS NULL), false) THEN coalesce(sum(lag), 0)::double precision END AS lag,
			   CASE WHEN NOT coalesce(bool_or(in_flight IS NULL), false) THEN coalesce(sum(in_flight), 0)::double precision END AS in_flight, coalesce(sum(retries), 0)::double precision AS retries, count(*) AS n
		FROM sub
	), text(part, i, line) AS (
		SELECT 1, 1::bigint, format('evbus %s  health %s%s  database %s', to_char(clock_timestamp(), 'YYYY-MM-DD HH24:MI:SS TZ'), level, CASE WHEN pg_is_in_recovery() THEN '  standby' WHEN NOT s.ready THEN '  starting' END, current_database())
		FROM evbus._status() s
		UNION ALL
		SELECT 1, 2, format('in %s/s  delivered %s/s  done %s/s  lag %s  in flight %s', evbus._short((SELECT coalesce(sum(b.published_per_second), 0) FROM evbus.stat_bus b)),
							evbus._short(w.delivered), evbus._short(w.done), evbus._short(w.lag), evbus._short(w.in_flight))
		FROM whole w
		UNION ALL
		SELECT 1, 3, format('dead letters %s  retries %s  workers %s, busy %s  ring %s %%  leases %s %%',
							evbus._short((SELECT coalesce(sum(d.dead_letters), 0)::double precision FROM evbus.dead_letter_total d)), evbus._short(w.retries), s.handler_workers,
							(SELECT count(*) FROM evbus.stat_worker p WHERE p.kind = 'handler' AND p.state = 'busy' AND p.database = current_database()),
							s.ring_used * 100 / s.ring_bytes, s.leases_used * 100 / s.leases)
		FROM whole w, evbus._status() s
		UNION ALL
		SELECT 2, f.i, f.line FROM unnest(found) WITH ORDINALITY AS f(line, i)
		UNION ALL
		SELECT 2, 10 + p.i, format('> %s%s: %s, %s%s %s', p.work, ' of ' || p.subject, p.phase, evbus._short(p.done), CASE WHEN p.total IS NOT NULL THEN ' of ' || evbus._short(p.total) END, p.unit)
		FROM (SELECT *, row_number() OVER (ORDER BY started_at) AS i FROM evbus.stat_progress) AS p WHERE p.i <= 3
		UNION ALL
		SELECT 3, x.i, x.line
		FROM whole w,
			 LATERAL (VALUES (1, ''), (2, CASE WHEN w.n = 0 THEN 'no subscriptions' ELSE concat(evbus._fit('BUS', for_bus), ' ', evbus._fit('SUBSCRIPTION', for_subscription),
																						   '   IN/S DONE/S    LAG OLDEST    P95 FAIL% WORK STATE') END)) AS x(i, line)
		UNION ALL
		SELECT 4, s.i, concat(evbus._fit(s.bus, for_bus), ' ', evbus._fit(s.subscription, for_subscription),
							  lpad(evbus._short(s.published_per_second), 7), lpad(evbus._short(s.done_per_second), 7), lpad(evbus._short(s.lag), 7),
							  lpad(CASE WHEN s.oldest_age >= interval '1 hour' THEN '>1h' ELSE evbus._short(s.oldest_age) END, 7), lpad(evbus._short(s.latency_p95), 7),
							  lpad(CASE WHEN s.failure_share IS NULL THEN '-' WHEN s.failure_share > 0 AND s.failure_share < 0.005 THEN '<1' ELSE round(s.failure_share * 100)::text END, 6),
							  lpad(s.workers::text, 5), ' ', s.state)
		FROM sub s WHERE s.i <= top.max_rows
		UNION ALL
		SELECT 5, 1, format('and %s more', w.n - top.max_rows) FROM whole w WHERE w.n > top.max_rows
	)
	SELECT rtrim(evbus._fit(t.line, top.width)) FROM text t ORDER BY t.part, t.i;
END $$;
COMMENT ON FUNCTION evbus.top(integer, integer) IS 'a screen of text: health, rates and lags of this database, and its subscriptions, those in trouble first and then those most behind; to be shown with \watch';

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA evbus FROM PUBLIC;
REVOKE ALL ON ALL PROCEDURES IN SCHEMA evbus FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA evbus FROM PUBLIC;

/*
 * Roles for who may call what.  Roles are the server's: another database may have made them, and they stay when the
 * extension goes.  One of these names that is more than that is somebody else's.
 */
DO $$
DECLARE
	name text;
	wrong text;
BEGIN
	FOREACH name IN ARRAY ARRAY['evbus_publisher', 'evbus_consumer', 'evbus_operator', 'evbus_monitor'] LOOP
		BEGIN
			EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', name);
		EXCEPTION WHEN duplicate_object OR unique_violation THEN
			NULL;
		END;
		SELECT pg_catalog.concat_ws(', ', CASE WHEN r.rolcanlogin THEN 'LOGIN' END, CASE WHEN r.rolsuper THEN 'SUPERUSER' END, CASE WHEN r.rolcreaterole THEN 'CREATEROLE' END,
									CASE WHEN r.rolcreatedb THEN 'CREATEDB' END, CASE WHEN r.rolreplication THEN 'REPLICATION' END, CASE WHEN r.rolbypassrls THEN 'BYPASSRLS' END,
									(SELECT 'membership in ' || pg_catalog.string_agg(m.roleid::regrole::text, ', ') FROM pg_catalog.pg_auth_members m WHERE m.member OPERATOR(pg_catalog.=) r.oid))
			INTO STRICT wrong FROM pg_catalog.pg_roles r WHERE r.rolname OPERATOR(pg_catalog.=) name;
		IF wrong OPERATOR(pg_catalog.<>) '' THEN
			RAISE EXCEPTION 'role "%" exists and is not what evbus would make', name USING ERRCODE = 'duplicate_object',
				DETAIL = pg_catalog.format('It has %s.', wrong), HINT = 'evbus grants to it what its name says. Rename it, or take that away from it.';
		END IF;
	END LOOP;
END $$;

GRANT USAGE ON SCHEMA evbus TO evbus_publisher, evbus_consumer, evbus_operator, evbus_monitor, pg_monitor;

DO $$
DECLARE
	may record;
BEGIN
	FOR may IN
		SELECT p.oid::pg_catalog.regprocedure AS routine, v.role
		FROM (VALUES
			('evbus_publisher', ARRAY['publish', 'publish_batch', 'publish_lines', 'cancel_scheduled', 'publish_changes', 'stop_publish_changes', '_changes', 'publish_cloud_event',
				'has_privilege']),
			('evbus_consumer', ARRAY['subscribe', 'alter_subscription', 'unsubscribe', 'pause', 'resume', 'reset_breaker', 'trace', 'seek', 'replay', 'cancel_replay',
				'receive', 'receive_lines', 'ack', 'nack', 'reject', 'extend', 'release', 'wait', 'channel', 'cloud_event', 'redrive', 'cancel_redrive', 'discard', 'edit_dead_letter',
				'history_page', '_history_query', 'grant', 'revoke', 'has_privilege']),
			('evbus_operator', ARRAY['create_bus', 'alter_bus', 'drop_bus', 'limit_publisher', 'train_dictionary', 'pause_bus', 'resume_bus', 'stop_all', 'cancel_scheduled',
				'alter_subscription', 'pause', 'resume', 'reset_breaker', 'trace', 'seek', 'replay', 'cancel_replay', 'redrive', 'cancel_redrive', 'discard',
				'maintain', 'schedule_maintenance', 'stat_reset', 'grant', 'revoke', 'has_privilege'])) AS v(role, names)
			 JOIN pg_catalog.pg_proc p ON p.proname OPERATOR(pg_catalog.=) ANY (v.names) AND p.pronamespace OPERATOR(pg_catalog.=) 'evbus'::pg_catalog.regnamespace
	LOOP
		EXECUTE pg_catalog.format('GRANT EXECUTE ON ROUTINE %s TO %I', may.routine, may.role);
	END LOOP;
END $$;
/* Who did what, but not how: arguments and settings may hold what is nobody's business. */
GRANT SELECT (audit_id, at, login, role, action, kind, object) ON evbus.audit TO pg_monitor, evbus_monitor, evbus_operator;
GRANT SELECT ON evbus.privilege_list, evbus.retention_audit, evbus.dead_letter_quota TO evbus_operator;

/* Who watches the server sees what there is and how far it is; no events. */
GRANT SELECT ON evbus.bus_list, evbus.volatile_list, evbus.publish_limit_list, evbus.dictionary_list, evbus.subscription_list, evbus.subscription_lag, evbus.replay_list, evbus.leaf_list, evbus.stat_upkeep, evbus.stat_memory, evbus.stat_worker, evbus.stat_progress, evbus.dead_letter_quota, evbus.breaker_list,
	evbus.stat_bus, evbus.stat_bus_window, evbus.stat_subscription, evbus.stat_subscription_window, evbus.stat_type, evbus.stat_minutes, evbus.stat_times, evbus.dead_letter_total, evbus.dead_letter_trend TO pg_monitor, evbus_monitor, evbus_operator;
GRANT EXECUTE ON FUNCTION evbus._bus_state(), evbus._volatile_state(), evbus._subscription_state(), evbus._status(), evbus._memory_state(), evbus._worker_state(), evbus._progress_state(), evbus._oldest_open(), evbus._upkeep_state(), evbus._copied(), evbus.channel(text), evbus._breaker_state(),
	evbus._stat_bus(), evbus._stat_subscription(), evbus._stat_type(), evbus._stat_minutes(), evbus._stat_times(), evbus._position_age(integer, bigint), evbus._metric_labels(text[], text[]), evbus.metrics(), evbus.health(interval, interval), evbus._check_ages(interval, interval), evbus.report_html(text, integer, boolean),
	evbus.top(integer, integer), evbus._fit(text, integer), evbus._short(double precision), evbus._short(interval) TO pg_monitor, evbus_monitor, evbus_operator;
/* For health(). */
GRANT SELECT (bus_id, due_at) ON evbus.scheduled TO pg_monitor, evbus_monitor, evbus_operator;
GRANT SELECT (bus_id, bus, max_backlog, max_backlog_bytes) ON evbus.bus TO pg_monitor, evbus_monitor, evbus_operator;
/* Pure functions inside views, which PostgreSQL checks against the reader. */
GRANT EXECUTE ON FUNCTION evbus._decode(bytea, bigint), evbus._priority(bytea), evbus._expires_at(bytea), evbus._event_time(bigint), evbus._time_event(timestamptz), evbus._type_matches(text, text[]) TO PUBLIC;
