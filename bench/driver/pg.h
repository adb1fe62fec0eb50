/*-------------------------------------------------------------------------
 * pg.h
 *	  libpq for the drivers: connections by the environment, errors that end the driver, arrays of events.
 *-------------------------------------------------------------------------
 */
#ifndef PG_H
#define PG_H

#include "common.h"

#include <libpq-fe.h>

extern PGconn *connect_server(void);
extern void close_server(void *conn);	/* fits Workload.close */

/* The result, which must be of the kind expected; else the driver fails with the server's message. */
extern PGresult *expect(PGconn *conn, PGresult *result, ExecStatusType status);
extern void command(PGconn *conn, const char *sql);
extern void prepare(PGconn *conn, const char *name, const char *sql);
/* One bigint, or missing for NULL or no row; argument may be NULL for a statement without one. */
extern int64_t number(PGconn *conn, const char *sql, const char *argument, int64_t missing);

/* Arrays as text of the first n events: {order.created,...} and {"{\"order_id\"...}",...}.  Not to be freed. */
extern const char *types_array(int n);
extern const char *payloads_array(int n);
/* The payloads of the first n events, a line each. */
extern const char *payloads_lines(int n);

/* CPU time that the connection's server process has used so far; it must be on this machine. */
extern int64_t backend_cpu_ns(PGconn *conn);

/* A COPY of one buffer of text. */
extern void copy_in(PGconn *conn, const char *sql, const char *buffer, int length);

#endif
