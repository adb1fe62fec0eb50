/* registry.h: which databases, buses and subscriptions there are */
#ifndef EVBUS_REGISTRY_H
#define EVBUS_REGISTRY_H

#include "area.h"
#include "filter.h"
#include "home.h"

/* How payloads of a bus are stored, besides being packed. */
typedef enum EvbusCompression
{
	EVBUS_COMPRESS_ZSTD,		/* from evbus.compress_threshold on */
	EVBUS_COMPRESS_DICTIONARY,	/* and smaller ones with dictionaries of the bus */
	EVBUS_COMPRESS_NONE
} EvbusCompression;

/* What becomes of an event for a bus that is full. */
typedef enum EvbusOverflow
{
	EVBUS_OVERFLOW_REJECT,
	EVBUS_OVERFLOW_BLOCK,		/* its publisher waits, overflow_timeout at most */
	EVBUS_OVERFLOW_DROP			/* the oldest ones go */
} EvbusOverflow;

typedef struct EvbusBus
{
	int32		bus_id;
	int			slot;
	int32		storage_class_id;
	Oid			owner;
	int			max_payload_bytes;
	bool		paused;
	EvbusCompression compression;
	int64		dedup_window;	/* microseconds */
	int64		max_backlog;	/* events; 0: no limit */
	int64		max_backlog_bytes;	/* of these, of payload and headers as jsonb; 0: no limit */
	EvbusOverflow overflow;
	int64		overflow_timeout;	/* microseconds */
	int			publish_rate;	/* events a second; 0: no limit */
	int			publish_burst;	/* events at once; 0: those of a second */
	bool		rate_waits;		/* who is too fast waits; else he is refused */
	bool		role_limits;	/* roles have rates of their own on it */
	bool		bounded;		/* any of these */
	bool		is_volatile;	/* volatile.c */
	int64		idle_ttl;		/* microseconds after which it goes if nobody uses it; 0: never */
	bool		auto_created;	/* and before that if its slot is wanted (bus_idle.c) */
	char		name[EVBUS_NAME_MAX + 1];
} EvbusBus;

typedef struct EvbusSubscription
{
	int32		subscription_id;
	int			slot;
	int32		bus_id;
	int			bus_slot;
	Oid			owner;
	int32		epoch;
	int64		start_position;
	bool		has_handler;
	bool		handler_batch;
	Oid			handler_owner;	/* when it was chosen */
	char		handler_schema[NAMEDATALEN];
	char		handler_name[NAMEDATALEN];
	int			batch_size;
	int			concurrency;
	int			max_attempts;
	int64		backoff_initial;	/* microseconds, as all below */
	int64		backoff_max;
	int64		lease;
	int64		timeout;
	bool		notify;
	EvbusOrdering ordering;
	bool		block_key;		/* what has failed holds up those that would wait for it */
	int			max_dead_letters;	/* 0: no quota */
	bool		drop_dead_letters;	/* the oldest, when it is reached; else pause */
	EvbusFilter *filter;		/* NULL: none */
	int64		max_age;		/* of its events; 0: no matter */
	bool		looks;			/* who reads with it only looks, and counts nothing */
	bool		takes_expired;	/* of which a replay is, or who does not ask on behalf of a taker */
	bool		by_priority;	/* what has a higher one comes first (priority.c) */
	double		breaker_threshold;	/* share of failures that opens its circuit breaker; 0: it has none */
	int64		breaker_window;
	int			breaker_min;
	int64		breaker_probe;
	bool		paused;			/* it or its bus */
	bool		uncommitted;	/* this transaction made or changed it */
	bool		changed;		/* this transaction changed it, or what it is a replay of */
	uint64		generation;		/* of the registry that it is a copy of */
	bool		is_volatile;	/* its bus is */
	int32		replay_of;		/* it is a replay (replay.c) of this subscription, and not one of its own; else 0 */
	int64		stop_position;	/* of a replay */
	int			rate;			/* of a replay: first deliveries a second; 0: not bounded */
	int			delivery_rate;	/* deliveries a second, with retries and those of replays; 0: not bounded */
	int			delivery_burst; /* so many may come at once after a pause */
	int			live_slot;		/* slot where that is kept, and its circuit breaker: of itself, or of the subscription that it is a replay of */
	int			n_types;
	char	   *types;			/* n_types times: length byte, pattern */
	char		name[EVBUS_NAME_MAX + 1];
	char		bus_name[EVBUS_NAME_MAX + 1];
} EvbusSubscription;

/* A rate of a role on a bus. */
typedef struct EvbusRoleLimit
{
	int32		bus_id;
	Oid			role;
	int			slot;			/* in EvbusDb.role_rate_at */
	int			rate;			/* events a second */
	int			burst;			/* events at once; 0: those of a second */
} EvbusRoleLimit;

/* The same without filter, max_age and expiry, for who does not ask on behalf of a taker; shares its memory. */
static inline EvbusSubscription
evbus_subscription_unfiltered(const EvbusSubscription *sub)
{
	EvbusSubscription all = *sub;

	all.filter = NULL;
	all.max_age = 0;
	all.takes_expired = true;
	return all;
}

extern int	evbus_role_limits(void);
extern bool evbus_role_limit(int32 bus_id, Oid role, EvbusRoleLimit *limit);
extern bool evbus_bus_find(const char *name, EvbusBus *bus);
extern bool evbus_bus_by_id(int32 id, EvbusBus *bus);
extern EvbusBus *evbus_buses(int *count);
extern void evbus_bus_get(const char *name, EvbusBus *bus);
extern const char *const evbus_overflows[3];
extern const char *const evbus_rate_policies[2];
extern bool evbus_compression_parse(const char *word, EvbusCompression *compression);
extern EvbusSubscription *evbus_subscription_get(const char *name, bool missing_ok);
extern EvbusSubscription *evbus_subscription_by_id(int32 id);
extern bool evbus_subscription_runs(const EvbusSubscription *sub);
extern bool evbus_subscription_exists(int32 id);
extern bool evbus_bus_exists(int32 id);
extern EvbusSubscription *evbus_subscriptions(int *count);
extern EvbusSubscription *evbus_subscription_replays(const EvbusSubscription *sub, int *count);
extern uint64 evbus_registry_generation(void);
extern EvbusHome evbus_home(void);
extern void evbus_registry_changed(void);
extern void evbus_registry_forget(void);
extern void evbus_registry_verify(void);
extern bool evbus_subscription_wants(const EvbusSubscription *sub, const char *type, int len);
extern int	evbus_registry_free_slot(const char *table, int max);

#endif
