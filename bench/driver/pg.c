/*-------------------------------------------------------------------------
 * pg.c
 *	  libpq for the drivers; told in pg.h.
 *-------------------------------------------------------------------------
 */
#include "pg.h"

PGconn *
connect_server(void)
{
	PGconn	   *conn = PQconnectdb("");

	if (PQstatus(conn) != CONNECTION_OK)
		fail("%s", PQerrorMessage(conn));
	pin(PQbackendPID(conn));
	return conn;
}

void
close_server(void *conn)
{
	PQfinish(conn);
}

PGresult *
expect(PGconn *conn, PGresult *result, ExecStatusType status)
{
	if (PQresultStatus(result) != status)
		fail("%s", PQerrorMessage(conn));
	return result;
}

void
command(PGconn *conn, const char *sql)
{
	PQclear(expect(conn, PQexec(conn, sql), PGRES_COMMAND_OK));
}

void
prepare(PGconn *conn, const char *name, const char *sql)
{
	PQclear(expect(conn, PQprepare(conn, name, sql, 0, NULL), PGRES_COMMAND_OK));
}

int64_t
number(PGconn *conn, const char *sql, const char *argument, int64_t missing)
{
	PGresult   *result = PQexecParams(conn, sql, argument ? 1 : 0, NULL, &argument, NULL, NULL, 0);
	int64_t		value;

	expect(conn, result, PGRES_TUPLES_OK);
	value = PQntuples(result) == 0 || PQgetisnull(result, 0, 0) ? missing : atoll(PQgetvalue(result, 0, 0));
	PQclear(result);
	return value;
}

const char *
types_array(int n)
{
	char	   *array = malloc(n * sizeof(TYPE) + 3);
	char	   *out = array;

	for (int i = 0; i < n; i++)
		out += sprintf(out, "%s" TYPE, i ? "," : "{");
	strcpy(out, "}");
	return array;
}

const char *
payloads_array(int n)
{
	char	   *array = malloc(n * (MAX_PAYLOAD * 2 + 3) + 3);
	char	   *out = array;

	for (int i = 0; i < n; i++)
	{
		out += sprintf(out, "%s\"", i ? "," : "{");
		for (const char *c = payloads[i]; *c; c++)
		{
			if (*c == '"')
				*out++ = '\\';
			*out++ = *c;
		}
		*out++ = '"';
	}
	strcpy(out, "}");
	return array;
}

const char *
payloads_lines(int n)
{
	char	   *lines = malloc(n * (MAX_PAYLOAD + 1) + 1);
	char	   *out = lines;

	for (int i = 0; i < n; i++)
		out += sprintf(out, "%s\n", payloads[i]);
	return lines;
}

void
copy_in(PGconn *conn, const char *sql, const char *buffer, int length)
{
	PQclear(expect(conn, PQexec(conn, sql), PGRES_COPY_IN));
	if (PQputCopyData(conn, buffer, length) != 1 || PQputCopyEnd(conn, NULL) != 1)
		fail("%s", PQerrorMessage(conn));
	PQclear(expect(conn, PQgetResult(conn), PGRES_COMMAND_OK));
	while (PQgetResult(conn) != NULL)
		;
}

int64_t
backend_cpu_ns(PGconn *conn)
{
	char		path[64];
	FILE	   *file;
	long long	ns;

	snprintf(path, sizeof(path), "/proc/%d/schedstat", PQbackendPID(conn));
	file = fopen(path, "r");
	if (file == NULL || fscanf(file, "%lld", &ns) != 1)
		fail("cannot read %s", path);
	fclose(file);
	return ns;
}
