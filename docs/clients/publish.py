"""Publishing from Python: one event beside the work it tells of, and many in one call.

    apt-get install python3-psycopg2
    python3 publish.py
"""
import json

import psycopg2
from psycopg2.extras import Json

connection = psycopg2.connect("")
with connection, connection.cursor() as cursor:  # commits, or rolls back if anything fails
    # ... INSERT INTO orders ... goes here: both commit, or neither
    cursor.execute(
        "SELECT evbus.publish('orders', 'order.paid', %s, key => %s)",
        (Json({"order": 7, "address": "customer7@example.com"}), "7"),
    )
    print("published", cursor.fetchone()[0])

    orders = [{"order": n, "address": f"customer{n}@example.com"} for n in range(100, 1100)]
    cursor.execute(
        "SELECT events FROM evbus.publish_lines('orders', 'order.paid', %s)",
        ("\n".join(map(json.dumps, orders)),),  # a line for each
    )
    print("published", cursor.fetchone()[0], "more")
connection.close()
