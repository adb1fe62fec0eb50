-- The views: their columns are part of the API; what they tell, also of an empty bus.
\ir include/helpers.sql
SELECT plan(41);

SELECT columns_are('evbus', 'bus_list', '{bus,owner,durability,retention,partition_interval,max_payload_bytes,paused,created_at,next_position,subscriptions,retention_bytes,retention_policy,compression,dedup_window,max_backlog,overflow,overflow_timeout,publish_rate,publish_burst,rate_policy,rejected,waits,idle_ttl,auto_created,last_used,publishers,max_backlog_bytes}'::name[], 'columns of bus_list');
SELECT columns_are('evbus', 'subscription_list', '{subscription,bus,owner,types,handler,channel,batch_size,concurrency,max_attempts,backoff_initial,backoff_max,lease,timeout,ordering,on_failure,paused,paused_reason,created_at,max_dead_letters,dead_letters_full,delivery_rate,delivery_burst,filter,max_age,breaker_threshold,breaker_window,breaker_min,breaker_probe,by_priority}'::name[],
	'columns of subscription_list');
SELECT columns_are('evbus', 'subscription_lag', '{subscription,bus,cursor_position,next_position,lag,in_flight,retries,next_retry_at,held_up,workers,paused,paused_reason,dropped,filtered,expired,trace_until}'::name[], 'columns of subscription_lag');
SELECT columns_are('evbus', 'history', '{event_id,bus,type,key,payload,headers,published_at,priority,expires_at}'::name[], 'columns of history');
SELECT columns_are('evbus', 'retry_list', '{subscription,bus,event_id,position,type,key,payload,headers,published_at,attempts,due_at,first_failed_at,last_failed_at,sqlstate,message,redrives,earlier_failures,replayed,priority,expires_at}'::name[], 'columns of retry_list');
SELECT columns_are('evbus', 'dead_letter', '{dead_letter_id,dead_at,subscription,bus,event_id,position,type,key,payload,headers,published_at,attempts,reason,first_failed_at,last_failed_at,sqlstate,message,redrives,earlier_failures,replayed,priority,expires_at}'::name[],
	'columns of dead_letter');
SELECT columns_are('evbus', 'dead_letter_summary', '{bus,subscription,type,sqlstate,reason,dead_letters,oldest,newest,last_message}'::name[], 'columns of dead_letter_summary');
SELECT columns_are('evbus', 'dead_letter_trend', '{bus,subscription,type,sqlstate,reason,hour,died,dead_letters}'::name[], 'columns of dead_letter_trend');
SELECT columns_are('evbus', 'redrive_list', '{job,state,subscription,bus,types,sqlstate,dead_after,dead_before,max_events,rate,total,done,role,login,created_at,started_at,finished_at,error}'::name[], 'columns of redrive_list');
SELECT columns_are('evbus', 'scheduled_list', '{bus,id,type,key,payload,headers,due_at,scheduled_by,scheduled_at,priority,expires_at}'::name[], 'columns of scheduled_list');

-- without any bus

SELECT is_empty('SELECT 1 FROM evbus.' || view, view || ' is empty without a bus')
FROM unnest('{bus_list,subscription_list,subscription_lag,history,leaf_list,scheduled_list,retry_list,dead_letter,dead_letter_summary,dead_letter_trend,redrive_list}'::text[]) AS view;

-- without events

SELECT evbus.create_bus('orders');
SELECT evbus.subscribe('orders', 'reader', types => '{order.#}') AS position \gset
SELECT becomes($$SELECT lag || ' ' || in_flight || ' ' || retries || ' ' || workers || ' ' || paused FROM evbus.subscription_lag$$, '0 0 0 0 false', 'the lag of a new subscription is zero');
SELECT results_eq('SELECT subscription, bus, next_retry_at, paused_reason FROM evbus.subscription_lag', $$VALUES ('reader', 'orders', NULL::timestamptz, NULL::text)$$, 'no retry, no reason');

-- the way of an event through the views

SELECT evbus.publish('orders', 'order.created', '{"n": 1}') AS id \gset
SELECT becomes('SELECT lag::text FROM evbus.subscription_lag', '1', 'lag counts what was published and not settled');
SELECT cursor_position AS before, next_position AS next FROM evbus.subscription_lag \gset
SELECT is(:next::bigint - :before::bigint, 1::bigint, 'cursor_position is one event behind next_position');
SELECT is((SELECT next_position FROM evbus.bus_list), :next::bigint, 'bus_list tells the same next_position');
SELECT receipt, position FROM take('reader', 1) \gset
SELECT is(:position, :before, 'the delivery has the position the cursor stood at');
SELECT results_eq('SELECT in_flight, lag, cursor_position FROM evbus.subscription_lag', format('VALUES (1::bigint, 1::bigint, %s::bigint)', :before), 'in_flight counts what is leased; it is still lag');
SELECT evbus.ack(ARRAY[:'receipt']) AS n \gset
SELECT results_eq('SELECT in_flight, lag, cursor_position FROM evbus.subscription_lag', format('VALUES (0::bigint, 0::bigint, %s::bigint)', :next), 'once acked the cursor has moved behind it');

-- acks out of order

SELECT count(*) AS n FROM evbus.publish_batch('orders', array_fill('order.x'::text, ARRAY[10]), array_fill('1'::jsonb, ARRAY[10])) \gset
CREATE TEMP TABLE got AS SELECT *, row_number() OVER (ORDER BY position) AS n FROM take('reader', 10);
SELECT is(evbus.ack(ARRAY(SELECT receipt FROM got WHERE n % 2 = 0)), 5, 'every second delivery is acked');
SELECT results_eq('SELECT in_flight, cursor_position FROM evbus.subscription_lag', 'SELECT 5::bigint, min(position) FROM got', 'the cursor stays at the first that is not');
SELECT is(evbus.ack(ARRAY(SELECT receipt FROM got WHERE n = 1)), 1, 'the first is acked');
SELECT results_eq('SELECT cursor_position FROM evbus.subscription_lag', 'SELECT position FROM got WHERE n = 3', 'the cursor moves to the next gap');
SELECT is(evbus.ack(ARRAY(SELECT receipt FROM got WHERE n % 2 = 1 AND n > 1)), 4, 'the rest is acked');
SELECT results_eq('SELECT in_flight, lag, cursor_position FROM evbus.subscription_lag', 'SELECT 0::bigint, 0::bigint, max(position) + 1 FROM got', 'the cursor is at the end');

-- events of other types

SELECT evbus.publish('orders', 'stock.low', '1') AS id \gset
SELECT becomes('SELECT lag::text FROM evbus.subscription_lag', '1', 'an event of another type counts until somebody looks');
SELECT is_empty($$SELECT * FROM evbus.receive('reader')$$, 'it is not for this subscription');
SELECT becomes('SELECT lag::text FROM evbus.subscription_lag', '0', 'once looked at it is settled');

-- history by time uses the index of event_log

SELECT ok(evbus._time_event(h.published_at) <= h.event_id AND evbus._event_time(evbus._time_event(h.published_at)) = h.published_at, 'event ids and times can be turned into each other: ' || h.type)
FROM evbus.history h WHERE type IN ('order.created', 'stock.low');
SELECT is_empty($$SELECT 1 FROM evbus.history a JOIN evbus.history b ON a.event_id < b.event_id AND a.published_at > b.published_at$$, 'ids and times have the same order');

SELECT * FROM finish();
