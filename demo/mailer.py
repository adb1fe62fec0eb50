"""The mailer: a client outside the database.

It sleeps until NOTIFY says that there is something for its subscription.  Receiving, the work and
the ack share one transaction: a mailer that is killed has sent nothing and acked nothing, and what
it had received goes to the next.  Where to connect comes from the environment, as with psql.
"""
import select

import psycopg2

BATCH = 500


def send_batch(connection):
    """Send up to BATCH mails; return how many deliveries there were."""
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT receipt, event_id, attempt, (payload->>'order_id')::bigint, type"
            " FROM evbus.receive('mailer', %s)",
            (BATCH,),
        )
        deliveries = cursor.fetchall()
        busy = [d for d in deliveries if d[2] == 1 and d[3] % 500 == 0]
        sent = [d for d in deliveries if not (d[2] == 1 and d[3] % 500 == 0)]
        if sent:
            cursor.execute(
                "INSERT INTO shop.mail_sent SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::text[])",
                ([d[1] for d in sent], [d[3] for d in sent], ["Your " + d[4] for d in sent]),
            )
            cursor.execute("SELECT evbus.ack(%s)", ([d[0] for d in sent],))
        if busy:
            cursor.execute(
                "SELECT evbus.nack(%s, delay => '300 ms', error => 'the mail server is busy')",
                ([d[0] for d in busy],),
            )
        return len(deliveries)


def main():
    connection = psycopg2.connect("")
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT evbus.channel('mailer')")
        channel = cursor.fetchone()[0]
        cursor.execute('LISTEN "%s"' % channel.replace('"', '""'))
    while True:
        while send_batch(connection):
            pass
        # A notification may have come in with the last query's answer; else sleep until one does.
        # The limit is for a notification lost with a connection: nothing waits longer than this.
        if not connection.notifies:
            select.select([connection], [], [], 5)
            connection.poll()
        connection.notifies.clear()


main()
