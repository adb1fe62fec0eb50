-- pgbench: a customer orders 20 things, and in a second transaction pays or cancels them.
SELECT nextval('shop.cart') AS cart \gset
\set customer random(1, 5000)
\set fate random(1, 10)
INSERT INTO shop.orders (cart, customer, currency, quantity, amount) SELECT :cart, 'customer ' || :customer, CASE WHEN :cart % 25 = 0 AND n = 1 THEN 'SEK' WHEN n % 3 = 0 THEN 'USD' ELSE 'EUR' END, CASE WHEN :cart % 25 = 12 AND n = 1 THEN 0 ELSE n END, n * 9.95 FROM generate_series(1, 20) AS n;
UPDATE shop.orders SET state = CASE WHEN :fate = 1 THEN 'cancelled' ELSE 'paid' END WHERE cart = :cart;
