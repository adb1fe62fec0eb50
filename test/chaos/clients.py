"""The clients: one process each, with a ledger of its own (ledger.py).

    python3 clients.py publisher|one|two|resolver ID DIRECTORY

They work until SIGTERM, end what they are at, and come back by themselves when their connection is lost.  What a
client does is random; what it did is in its ledger, and only there: check.py knows nothing else of it.  Where to
connect comes from the environment.

Lines of a publisher:   try T FIRST LAST ROLLED START KIND   its transaction T is about to end, with the events FIRST to
                        LAST less those in ROLLED (a-b,c-d or -), published since START; KIND is commit, async, prepare
                        or rollback;  ok T TIME | failed T | unknown T TIME | prepared T
of the resolver:        try CLIENT T commit|rollback;  ok CLIENT T commit|rollback TIME
of a client of `one`:   try B C:N,C:N...  acked in the transaction of its work;  ok B | failed B | unknown B
of a client of `two`:   incarnation NAME;  got K C N CALLED RETURNED LEASE;  try VERB K,K... TIME;
                        done VERB K,K... RESULT,RESULT... TIME (a result of -1: one of the K was refused, nobody knows which);
                        stale VERB K RESULT TIME
"""
import os
import random
import signal
import sys
import time
from collections import deque

import psycopg2

import model
from ledger import Ledger, now

EXTENSION = 2   # s, what extend() asks for

stopping = False
bursts = 0


def stop(signum, frame):
    global stopping
    stopping = True


def burst(signum, frame):
    """The driver wants the ring to overflow."""
    global bursts
    bursts = 8


class Lost(Exception):
    """The connection is gone: what was under way came to a good end, or to none."""


class Client:
    role = "consumer"

    def __init__(self, number, directory):
        self.number = number
        self.ledger = Ledger(os.path.join(directory, "%s-%d.ledger" % (type(self).__name__.lower(), number)))
        self.connection = None
        self.cursor = None

    def sql(self, query, arguments=None):
        try:
            self.cursor.execute(query, arguments)
            return self.cursor.fetchall() if self.cursor.description else None
        except psycopg2.Error as error:
            if self.connection.closed or isinstance(error, psycopg2.InterfaceError):
                raise Lost() from error
            raise

    def connect(self):
        while not stopping:
            try:
                self.connection = psycopg2.connect(user=self.role, connect_timeout=10)
                self.connection.autocommit = True
                self.cursor = self.connection.cursor()
                return True
            except psycopg2.Error:
                time.sleep(0.03)
        return False

    def run(self):
        while not stopping and self.connect():
            try:
                self.greet()
                while not stopping:
                    self.step()
            except Lost:
                pass
            except psycopg2.Error as error:
                # A refusal that no step expects: begin anew, on a clean connection.
                print("%s %d: %s" % (type(self).__name__, self.number, error), file=sys.stderr, flush=True)
                time.sleep(0.1)
            finally:
                try:
                    self.connection.close()
                except psycopg2.Error:
                    pass

    def greet(self):
        pass

    def rollback(self):
        self.sql("ROLLBACK")


class Publisher(Client):
    role = "publisher"
    kinds = {
        "single": 30, "few": 25, "batch": 12, "savepoint": 15, "rollback": 10, "error": 4, "async": 10,
        "slow": 4, "prepare": 5, "large": 2, "huge": 0.5, "big": 1,
    }
    rate = 350  # events a second, about

    def __init__(self, number, directory):
        super().__init__(number, directory)
        self.txn = 0
        self.n = 0
        self.ring = int(os.environ.get("CHAOS_RING_BYTES", "1048576"))
        for setting in filter(None, os.environ.get("CHAOS_KINDS", "").split(",")):
            name, weight = setting.split("=")
            self.kinds[name] = float(weight)
        self.rate = float(os.environ.get("CHAOS_RATE", self.rate))

    def put(self, count, pad=20, function="put"):
        """Publish the next events; returns the first and the last."""
        first = self.n + 1
        self.n += count
        self.sql("SELECT chaos.%s(%%s, %%s, %%s, repeat('x', %%s))" % function, (self.number, first, self.n, pad))
        return first, self.n

    def step(self):
        global bursts
        kind = random.choices(list(self.kinds), list(self.kinds.values()))[0]
        if bursts > 0:
            bursts -= 1
            kind = "burst"
        self.txn += 1
        began = time.monotonic()
        first = self.n + 1
        self.start = now()
        self.open = False   # a commit is under way
        try:
            if kind == "single":
                self.single()
            else:
                self.transaction(kind, first)
        except Lost:
            if self.open:
                self.ledger.note("unknown", self.txn, now())
            raise
        except psycopg2.Error:
            # Whatever was refused, the connection lives: the transaction is aborted.
            self.rollback()
            if self.open:
                self.ledger.note("failed", self.txn)
        pause = (self.n + 1 - first) / self.rate - (time.monotonic() - began)
        if pause > 0 and not bursts:
            time.sleep(min(pause * random.random() * 2, 2))

    def single(self):
        """A statement that is its own transaction."""
        self.n += 1
        self.announce("commit", self.n, [])
        self.sql("INSERT INTO chaos.witness VALUES (%s, %s); SELECT chaos.put(%s, %s, %s, 'x')",
                 (self.number, self.txn, self.number, self.n, self.n))
        self.ledger.note("ok", self.txn, now())

    def announce(self, kind, first, rolled):
        self.ledger.announce("try", self.txn, first, self.n, ",".join("%d-%d" % r for r in rolled) or "-", self.start, kind)
        self.open = True

    def transaction(self, kind, first):
        ending = "commit"
        rolled = []
        self.sql("BEGIN; INSERT INTO chaos.witness VALUES (%s, %s)", (self.number, self.txn))
        if kind == "async":
            self.sql("SET LOCAL synchronous_commit = off")
            ending = "async"
        if kind == "batch":
            self.put(random.randint(5, 150), function="put_batch")
        elif kind == "burst":   # just fits: less than an eighth of the ring
            self.put(self.ring // 8 // 1000 - 20, 800, "put_batch")
        elif kind == "large":   # more than an eighth of the ring: a late row
            self.put(self.ring // 8 // 1500 + random.randint(1, 40), 1500)
        elif kind == "huge":    # more than the ring
            self.put(min(self.ring // 1500, 3000) + 50, 1500, "put_batch")
        elif kind == "big":     # one that is not inline in the ring
            self.n += 1
            self.sql("SELECT chaos.put(%s, %s, %s, (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 700)))",
                     (self.number, self.n, self.n))
        elif kind == "savepoint":
            self.savepoints(rolled)
        else:
            self.put(random.randint(1, 6))
        if kind == "slow":
            time.sleep(random.uniform(0.06, 0.4))
            self.put(random.randint(1, 3))
        if kind == "error":
            try:
                self.sql("SELECT 1 / 0")
            except psycopg2.Error:
                pass
        if kind in ("rollback", "error"):
            self.announce("rollback", first, rolled)
            self.rollback()
            self.ledger.note("failed", self.txn)
            return
        if kind == "prepare":
            self.prepare(first, rolled)
            return
        self.announce(ending, first, rolled)
        self.sql("COMMIT")
        self.ledger.note("ok", self.txn, now())

    def savepoints(self, rolled):
        if random.random() < 0.7:
            self.put(random.randint(1, 4))
        for _ in range(random.randint(1, 3)):
            self.sql("SAVEPOINT a")
            outer = self.n + 1
            self.put(random.choice((1, 2, 5, 1500 if self.kinds["large"] and random.random() < 0.05 else 3)))
            if random.random() < 0.5:
                self.sql("SAVEPOINT b")
                part = self.put(random.randint(1, 3))
                if random.random() < 0.5:
                    self.sql("ROLLBACK TO b")
                    rolled.append(part)
                else:
                    self.sql("RELEASE b")
            if random.random() < 0.5:
                self.sql("ROLLBACK TO a")
                rolled.append((outer, self.n))
            else:
                self.sql("RELEASE a")
            if random.random() < 0.5:
                self.put(random.randint(1, 3))
        if self.n == 0 or random.random() < 0.2:
            self.put(1)

    def prepare(self, first, rolled):
        self.announce("prepare", first, rolled)
        gid = "%d.%d" % (self.number, self.txn)
        self.sql("PREPARE TRANSACTION %s", (gid,))
        self.ledger.note("prepared", self.txn)
        self.open = False   # from here on the resolver may be faster
        if random.random() < 0.4:
            try:
                self.sql("COMMIT PREPARED %s", (gid,))
                self.ledger.note("ok", self.txn, now())
            except psycopg2.errors.UndefinedObject:
                pass
            except psycopg2.errors.ObjectNotInPrerequisiteState:
                pass


class Resolver(Client):
    """Ends what others prepared, some of it long after they are gone."""

    role = "publisher"

    def step(self, everything=False):
        for (gid,) in self.sql("SELECT gid FROM pg_prepared_xacts WHERE %s OR now() - prepared > random() * 3 * interval '1 second'",
                               (everything,)):
            self.resolve(gid)
        time.sleep(0.2)

    def resolve(self, gid):
        client, txn = gid.split(".")
        verb = "commit" if random.random() < 0.7 else "rollback"
        self.ledger.announce("try", client, txn, verb)
        try:
            self.sql(verb + " PREPARED %s", (gid,))
            self.ledger.note("ok", client, txn, verb, now())
        except (psycopg2.errors.UndefinedObject, psycopg2.errors.ObjectNotInPrerequisiteState):
            pass                # its publisher was faster, or is at it


class One(Client):
    """Receive, work and ack in one transaction: exactly once."""

    def __init__(self, number, directory):
        super().__init__(number, directory)
        self.batch = 0

    def step(self):
        self.batch += 1
        self.open = False
        try:
            self.transaction()
        except Lost:
            if self.open:
                self.ledger.note("unknown", self.batch)
            raise
        except psycopg2.Error as error:
            self.rollback()
            if self.open:
                self.ledger.note("failed", self.batch)
            if error.pgcode not in ("VB008", "VB009", "VB012"):
                raise

    def transaction(self):
        self.sql("BEGIN")
        if random.random() < 0.1:
            self.sql("SAVEPOINT s")
            self.sql("SELECT count(*) FROM evbus.receive('one', 20)")
            self.sql("ROLLBACK TO s")
        rows = self.sql("SELECT receipt, event_id, (payload->>'c')::integer, (payload->>'n')::integer, position, attempt"
                        " FROM evbus.receive('one', %s, wait => '300 ms')", (random.choice((5, 50, 400)),))
        if not rows:
            self.rollback()
            return
        chance = random.random()
        if chance < 0.05:
            self.rollback()
            return
        bad = [r for r in rows if random.random() < 0.01 and r[5] < 10]
        good = [r for r in rows if r not in bad] if bad else rows
        if good:
            self.sql("INSERT INTO chaos.effect_one (event_id, c, n, position, attempt)"
                     " SELECT * FROM unnest(%s::bigint[], %s::integer[], %s::integer[], %s::bigint[], %s::integer[])",
                     tuple([r[i] for r in good] for i in range(1, 6)))
            self.sql("SELECT evbus.ack(%s)", ([r[0] for r in good],))
        if bad:
            self.sql("SELECT evbus.nack(%s, delay => '50 ms')", ([r[0] for r in bad],))
        self.ledger.announce("try", self.batch, ",".join("%d:%d" % (r[2], r[3]) for r in good) or "-")
        self.open = True
        self.sql("COMMIT")
        self.ledger.note("ok", self.batch)


class Two(Client):
    """Receive and ack in transactions of their own: at least once.  Also does what clients should not do."""

    lease = 1.0

    def __init__(self, number, directory):
        super().__init__(number, directory)
        self.k = 0
        self.incarnation = None
        self.old = deque(maxlen=60)     # receipts that cannot be good any more
        self.held = {}                  # k: receipt, given out and not settled
        self.lost = []                  # of an earlier incarnation

    def greet(self):
        """Shared memory is made anew whenever the checkpointer is; a connection never outlives it."""
        (name,), = self.sql("SELECT to_char(backend_start, 'J.SSSSS.US') FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
        if name != self.incarnation:
            self.incarnation = name
            self.lost = random.sample(sorted(self.held.items()), min(len(self.held), 40))
            self.held = {}
        self.ledger.announce("incarnation", name)

    def call(self, verb, keys, receipts, query, one_by_one=False):
        self.ledger.announce("try", verb, ",".join(map(str, keys)), now())
        if one_by_one:
            results = [r for (r,) in self.sql("SELECT " + query % "ARRAY[r]" + " FROM unnest(%s) AS r", (receipts,))]
        else:
            (count,), = self.sql("SELECT " + query % "%s", (receipts,))
            results = [1] * len(keys) if count == len(keys) else [0] * len(keys) if count == 0 else [-1] * len(keys)
        self.ledger.note("done", verb, ",".join(map(str, keys)), ",".join(map(str, results)), now())
        if verb != "extend":
            for key, receipt, result in zip(keys, receipts, results):
                self.held.pop(key, None)
                if result == 1 and verb != "ack_async":
                    self.old.append((key, receipt))

    def try_old(self, some):
        """Old receipts must change nothing, whatever is done with them."""
        for key, receipt in some:
            verb = random.choice(("ack", "ack", "nack", "reject", "release", "extend"))
            arguments = ", '2 seconds'" if verb == "extend" else ""
            (result,), = self.sql("SELECT evbus.%s(ARRAY[%%s]%s)" % (verb, arguments), (receipt,))
            self.ledger.note("stale", verb, key, result, now())

    def step(self):
        called = now()
        rows = self.sql("SELECT receipt, (payload->>'c')::integer, (payload->>'n')::integer"
                        " FROM evbus.receive('two', %s, lease => %s * interval '1 second', wait => '300 ms')",
                        (random.choice((1, 20, 200)), self.lease))
        returned = now()
        if not rows:
            return
        keys = list(range(self.k + 1, self.k + len(rows) + 1))
        self.k += len(rows)
        receipts = [r[0] for r in rows]
        self.held.update(zip(keys, receipts))
        self.ledger.note_all([("got", k, r[1], r[2], called, returned, self.lease) for k, r in zip(keys, rows)])
        if self.lost:
            self.try_old(self.lost)
            self.lost = []
        elif self.old and random.random() < 0.2:
            self.try_old(random.sample(self.old, min(len(self.old), 3)))
        try:
            self.settle(keys, receipts)
        except psycopg2.Error as error:
            if error.pgcode != "VB009":     # the sequencer is away: the leases will run out
                raise

    def settle(self, keys, receipts):
        chance = random.random()
        if chance < 0.03:
            return                      # forgotten: the lease runs out
        if chance < 0.06:
            time.sleep(self.lease + random.uniform(0, 0.5))
            self.call("ack", keys, receipts, "evbus.ack(%s)", True)
            return
        if chance < 0.09:
            self.call("release", keys, receipts, "evbus.release(%s)", True)
            return
        if chance < 0.12:
            self.call("extend", keys, receipts, "evbus.extend(%%s, '%d seconds')" % EXTENSION, True)
            time.sleep(random.uniform(0.5, 1.2))
        elif chance < 0.18:
            self.call("nack", keys[:1], receipts[:1], "evbus.nack(%s, delay => '50 ms')")
            keys, receipts = keys[1:], receipts[1:]
        elif chance < 0.20:
            self.call("reject", keys[:1], receipts[:1], "evbus.reject(%s)")
            keys, receipts = keys[1:], receipts[1:]
        if not keys:
            return
        if chance > 0.9:
            self.sql("SET synchronous_commit = off")
            self.call("ack_async", keys, receipts, "evbus.ack(%s)")
            self.sql("RESET synchronous_commit")
        else:
            self.call("ack", keys, receipts, "evbus.ack(%s)", random.random() < 0.3)


def main():
    kind, number, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    random.seed("%s %s %d" % (os.environ.get("CHAOS_SEED", ""), kind, number))
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGUSR1, burst)
    {"publisher": Publisher, "resolver": Resolver, "one": One, "two": Two}[kind](number, directory).run()


if __name__ == "__main__":
    main()
