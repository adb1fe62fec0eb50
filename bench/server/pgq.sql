-- PgQ for bench/ in a database of its own.  pgqd, PgQ's daemon, does not run: driver-pgq ticks where the
-- daemon would, and the measurements are shorter than the two hours after which it rotates tables.
SET client_min_messages = warning;
CREATE EXTENSION pgq;
