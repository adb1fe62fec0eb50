-- Something to receive: ten paid orders, published in one transaction.  psql -f publish.sql
BEGIN;
SELECT evbus.publish('orders', 'order.paid', jsonb_build_object('order', n, 'address', format('customer%s@example.com', n)), key => n::text)
FROM generate_series(1, 10) AS n;
COMMIT;
