"""A consumer in Python with one statement for each batch: it acks the last one and receives the next.

The work is outside the database, so this is at least once. The loop needs no transaction of its own and no session:
each statement may go through another connection of a pool.

    apt-get install python3-psycopg2
    python3 one_call.py        # where to connect: PGHOST, PGDATABASE, ... as with psql; Ctrl-C ends it
"""
import psycopg2

BATCH = 100


def send_mail(address):
    print("mail to", address, flush=True)


def main():
    connection = psycopg2.connect("")
    connection.autocommit = True
    sent = []  # receipts of what is done and not yet acked
    with connection.cursor() as cursor:
        try:
            while True:
                # With receipts it comes back at once, so that the ack is committed; without any it waits.
                cursor.execute(
                    "SELECT receipt, payload->>'address' FROM evbus.receive('mailer', max_events => %s, lease => '1 minute',"
                    " wait => '5 seconds', ack => %s)",
                    (BATCH, sent),
                )
                sent = []
                for receipt, address in cursor.fetchall():
                    if address is None:
                        cursor.execute("SELECT evbus.reject(%s, error => 'no address')", ([receipt],))
                        continue
                    send_mail(address)
                    sent.append(receipt)
                # A warning says that leases ran out before their ack: those mails are sent twice.
                while connection.notices:
                    print(connection.notices.pop(0).strip(), flush=True)
        finally:
            if sent and not connection.closed:
                cursor.execute("SELECT evbus.ack(%s)", (sent,))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
