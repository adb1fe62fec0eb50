-- pgbench: a customer orders and pays 20 things, and all of it is rolled back.
SELECT nextval('shop.cart') AS cart \gset
BEGIN;
INSERT INTO shop.orders (cart, customer, currency, quantity, amount) SELECT :cart, 'nobody', 'EUR', n, n * 9.95 FROM generate_series(1, 20) AS n;
UPDATE shop.orders SET state = 'paid' WHERE cart = :cart;
ROLLBACK;
