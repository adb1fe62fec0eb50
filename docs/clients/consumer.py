"""A consumer in Python: woken by NOTIFY, exactly once.

The work is a row in the same database, so receiving, the work and the ack share one transaction.
A consumer that is killed in the middle has done nothing, and what it had goes to the next one.

    apt-get install python3-psycopg2
    python3 consumer.py        # where to connect: PGHOST, PGDATABASE, ... as with psql; Ctrl-C ends it
"""
import select

import psycopg2

BATCH = 100


def work_on_batch(connection):
    """Send up to BATCH mails; return how many deliveries there were."""
    with connection, connection.cursor() as cursor:  # commits, or rolls back if anything fails
        cursor.execute(
            "SELECT receipt, event_id, payload->>'address' FROM evbus.receive('mailer', max_events => %s)",
            (BATCH,),
        )
        deliveries = cursor.fetchall()
        sent = []
        for receipt, event_id, address in deliveries:
            if address is None:
                cursor.execute("SELECT evbus.reject(%s, error => 'no address')", ([receipt],))
                continue
            cursor.execute("INSERT INTO mail_sent (event_id, address) VALUES (%s, %s)", (event_id, address))
            sent.append(receipt)
        if sent:
            cursor.execute("SELECT evbus.ack(%s)", (sent,))
        return len(deliveries)


def main():
    connection = psycopg2.connect("")
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT evbus.channel('mailer')")
        channel = cursor.fetchone()[0]
        cursor.execute('LISTEN "%s"' % channel.replace('"', '""'))
    while True:
        count = work_on_batch(connection)
        if count > 0:
            print("sent", count, "mails", flush=True)
            continue
        # Sleep until a notification comes; at most 5 seconds, since one can get lost with its connection.
        if not connection.notifies:
            select.select([connection], [], [], 5)
            connection.poll()
        connection.notifies.clear()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
