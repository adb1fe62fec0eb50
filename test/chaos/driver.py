"""The driver of the chaos checker: a private server, clients, faults, and a check at the end of each round.

    python3 driver.py --bin DIRECTORY --dir DIRECTORY [--cycles N | --seconds N] [--seed N] [--round N] [--tap]
                      [--faults NAME=WEIGHT,...] [--kinds NAME=WEIGHT,...] [--settings NAME=VALUE,...] [--calm S-S]
                      [--rate N] [--drain SECONDS] [--until INVARIANT] [--no-amcheck]

A cycle: let everything run, strike with one fault or several, see that the server comes back and delivers, mend.
A round: some cycles; then the faults stop, everything that was published has to be done within a minute, and
check.py compares ledgers and effects; then all of it is forgotten, so that memory stays bounded.  Run by test/chaos/run.
"""
import argparse
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict

import psycopg2

import clients
import faults
import model
from check import INVARIANTS, Check
from ledger import Ledger, now
from server import Server, send

HERE = os.path.dirname(os.path.abspath(__file__))
CREW = ("publisher",) * 4 + ("one",) * 2 + ("two",) * 3 + ("resolver",)
FIRST_DELIVERY = 5  # s after accepting connections, P10


class Driver:
    def __init__(self, options):
        self.options = options
        self.server = Server(options.bin, options.dir, options.settings)
        self.ledgers = os.path.join(options.dir, "ledgers")
        self.crew = []          # [kind, Popen]
        self.client_number = 0
        self.frozen = []
        os.makedirs(self.ledgers, exist_ok=True)
        self.diary = Ledger(os.path.join(options.dir, "faults.log"))    # when what was done, for whoever looks into a violation
        self.weights = options.faults
        self.struck = Counter()
        self.violations = Counter()
        self.examples = defaultdict(list)
        self.facts = Counter()
        self.next_position = {"main": 1, "side": 1}
        self.longest = 0.0
        self.measured = 0
        self.cycles = 0
        self.log_seen = 0
        self.notes = []

    def violation(self, invariant, text):
        self.violations[invariant] += 1
        self.examples[invariant].append(text)

    # ---------------------------------------------------------------- clients

    def start_client(self, kind):
        self.client_number += 1
        environment = dict(os.environ, CHAOS_SEED=str(self.options.seed),
                           CHAOS_RATE=str(self.options.rate), CHAOS_KINDS=self.options.kinds)
        with open(os.path.join(self.options.dir, "clients.err"), "a", encoding="utf8") as errors:
            process = subprocess.Popen([sys.executable, os.path.join(HERE, "clients.py"), kind, str(self.client_number), self.ledgers],
                                       env=environment, stdin=subprocess.DEVNULL, stderr=errors)
        self.crew.append([kind, process])

    def man(self, kinds=CREW):
        """Whoever is missing is replaced, under a number of its own."""
        self.crew = [member for member in self.crew if member[1].poll() is None]
        missing = Counter(kind for kind in CREW if kind in kinds) - Counter(kind for kind, _ in self.crew)
        for kind in missing.elements():
            self.start_client(kind)

    def of_kinds(self, kinds):
        return [member for member in self.crew if member[0] in kinds and member[1].poll() is None]

    def signal_clients(self, kinds, what):
        for _, process in self.of_kinds(kinds):
            process.send_signal(what)

    def kill_client(self, kinds):
        there = self.of_kinds(kinds)
        if there:
            random.choice(there)[1].kill()

    def dismiss(self, kinds):
        leaving = self.of_kinds(kinds)
        for _, process in leaving:
            process.terminate()
        deadline = time.monotonic() + 20
        for _, process in leaving:
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # ---------------------------------------------------------------- cycles

    def ask(self, connection, query):
        with connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchone()

    def overflows(self):
        _, connection = self.server.connect()
        try:
            return self.ask(connection, "SELECT ring_overflows FROM evbus._status()")[0]
        finally:
            connection.close()

    def thaw(self):
        for process in self.frozen:
            send(process, signal.SIGCONT)
        self.frozen = []

    def orphans(self, left):
        for process in left:
            self.violation("orphans", process.title)

    def await_delivery(self):
        """How long after accepting connections something is delivered; publishers see to it that there is something."""
        reached = "SELECT " + " + ".join("coalesce((SELECT max(serial) FROM chaos.effect_%s), 0)" % name for name in model.HANDLERS)
        accepting, deadline = None, time.monotonic() + 60
        while True:
            seen, connection = self.server.connect()
            accepting = accepting or seen
            try:
                before = self.ask(connection, reached)
                while self.ask(connection, reached) == before:
                    if time.monotonic() > deadline:
                        self.violation("slow starts", "cycle %d (%s): no delivery within a minute" % (self.cycles, self.last))
                        return
                    time.sleep(0.01)
                took = time.monotonic() - accepting
                break
            except psycopg2.Error:
                accepting = None    # it went down once more, or was only about to
            finally:
                connection.close()
        self.measured += 1
        self.longest = max(self.longest, took)
        if took > FIRST_DELIVERY:
            self.violation("slow starts", "cycle %d (%s): first delivery after %.1f s" % (self.cycles, self.last, took))

    def cycle(self):
        self.cycles += 1
        self.man()
        time.sleep(random.uniform(*self.options.calm))
        count = random.choices((1, 2, 3), (75, 20, 5))[0]
        chosen = random.choices(list(self.weights), list(self.weights.values()), k=count)
        self.last = ", ".join(chosen)
        for name in chosen:
            self.struck[name] += 1
            self.diary.note(now(), time.strftime("%H:%M:%S"), "cycle", self.cycles, name)
            self.frozen += faults.strike(self, name)
            if random.random() < 0.5:
                time.sleep(random.uniform(0, 0.1))
        if self.frozen:
            time.sleep(random.uniform(0.2, 2))
            self.diary.note(now(), "thawed", *(p.title for p in self.frozen))
        self.thaw()
        if not self.server.running():
            self.server.start()
        self.man()
        self.await_delivery()
        self.look_at_log()

    def look_at_log(self):
        """Did anything end in a way that was not our doing?"""
        with open(self.server.log, "rb") as file:
            file.seek(self.log_seen)
            text = file.read().decode("utf8", "replace")
            self.log_seen = file.tell()
        for line in text.splitlines():
            signaled = re.search(r"was terminated by signal (\d+)", line)
            if (signaled and signaled.group(1) != "9") or " PANIC: " in line or "TRAP:" in line:
                self.violation("crashes", line)
            if re.search(r"\] evbus [a-z]+ ERROR: ", line) and not re.search(r"lock timeout|flaky|hopeless|poison|at commit", line):
                self.facts["errors of workers"] += 1
                if len(self.notes) < 20:
                    self.notes.append(line)

    # ---------------------------------------------------------------- rounds

    def sentinel(self, publisher):
        """An event of our own, committed after all that is before it."""
        publisher.txn += 1
        publisher.start = now()
        publisher.single()
        return publisher.n

    def drain(self, connection):
        """Until all is done, or the time for it is over; with the consumers there."""
        deadline = time.monotonic() + self.options.drain
        idle = 0
        self.man(("one", "two"))
        while time.monotonic() < deadline and idle < 3:
            done, = self.ask(connection, "SELECT bool_and(lag = 0 AND retries = 0) FROM evbus.subscription_lag")
            idle = idle + 1 if done else 0
            time.sleep(0.1)
        if idle < 3:
            with connection.cursor() as cursor:
                cursor.execute("SELECT subscription, lag, in_flight, retries, workers, paused_reason FROM evbus.subscription_lag WHERE lag > 0 OR retries > 0")
                for row in cursor:
                    self.violation("leaks", "after %d s without faults: %s has lag %s, in flight %s, retries %s, workers %s (%s)" % ((self.options.drain,) + row))

    def check_leaks(self, connection, publisher):
        """Nothing is under way: no lease is in use, no publisher holds the sequencer back, each worker is there once."""
        query = ("SELECT s.leases_used, s.ring_used, (SELECT count(*) FROM evbus.late), (SELECT count(*) FROM pg_prepared_xacts),"
                 " (SELECT count(*) FROM evbus.retry), s.sequencer_pid, s.maintainer_pid, s.handler_workers FROM evbus._status() AS s")
        deadline = time.monotonic() + 10
        while True:
            row = self.ask(connection, query)
            titles = Counter(p.title.split(" for ")[0] for p in self.server.find("evbus"))
            pids = {p.pid for p in self.server.find("evbus")}
            workers = (titles["evbus launcher"] == titles["evbus sequencer"] == titles["evbus maintainer"] == 1 and
                       {row[5], row[6]} <= pids and row[7] == titles["evbus handler"])
            if (row[:5] == (0, 0, 0, 0, 0) and workers) or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        for what, value in zip(("leases in use", "bytes of the ring in use", "late rows", "prepared transactions", "retries"), row):
            if value != 0:
                self.violation("leaks", "%s: %s" % (what, value))
        if not workers:
            self.violation("leaks", "workers: %s; _status() knows %s" % (dict(titles), row[5:]))
        # A slot that is never cleared would hold the sequencer's low_id back.
        first, = self.ask(connection, "SELECT max(event_id) FROM evbus.event_log")
        self.sentinel(publisher)
        deadline = time.monotonic() + 10
        while True:
            low, = self.ask(connection, "SELECT coalesce((SELECT low_id FROM evbus.tick ORDER BY tick_id DESC LIMIT 1), 0)")
            if low >= first or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        if low < first:
            self.violation("leaks", "a slot: the newest tick has low_id %d, below event %d, though nobody publishes" % (low, first))

    def end_round(self):
        self.thaw()
        self.dismiss(("publisher", "resolver"))
        accepting, connection = self.server.connect()
        resolver = clients.Resolver(0, self.ledgers)
        resolver.connect()
        resolver.step(everything=True)
        resolver.connection.close()
        self.client_number += 1
        publisher = clients.Publisher(self.client_number, self.ledgers)
        publisher.connect()
        self.sentinel(publisher)
        self.drain(connection)
        self.dismiss(("one", "two"))
        self.check_leaks(connection, publisher)
        self.drain(connection)
        self.dismiss(("one", "two"))
        publisher.connection.close()
        connection.close()
        if self.options.amcheck:
            self.amcheck()
        self.compare()
        self.look_at_log()

    def compare(self):
        _, connection = self.server.connect()
        connection.autocommit = False
        check = Check(self.ledgers, connection, self.next_position)
        check.run()
        self.violations.update(check.violations)
        for name, texts in check.examples.items():
            self.examples[name] += texts
        self.facts.update(check.facts)
        if not self.violations or self.options.until:
            self.forget(connection)
        connection.close()

    def forget(self, connection):
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT evbus.discard(reason => 'cleared for the next cycle')")
            cursor.execute("TRUNCATE chaos.witness, " + ", ".join("chaos.effect_" + name for name in model.TABLES))
        for name in os.listdir(self.ledgers):
            os.unlink(os.path.join(self.ledgers, name))

    def amcheck(self):
        found = self.server.program("pg_amcheck", "--install-missing", "--heapallindexed", "--jobs=2", "-d", "postgres")
        if found.returncode != 0:
            for line in found.stdout.splitlines() or ["exit status %d" % found.returncode]:
                self.violation("amcheck", line)

    def finished(self):
        if self.options.until:
            return self.violations[self.options.until] > 0 or time.monotonic() > self.deadline
        if self.violations:
            return True     # what follows would only follow from it
        if self.options.seconds:
            return time.monotonic() > self.deadline
        return self.cycles >= self.options.cycles

    def run(self):
        random.seed(self.options.seed)
        self.server.create()
        self.server.start()
        _, connection = self.server.connect()
        connection.close()
        made = self.server.program("psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-f", os.path.join(HERE, "setup.sql"))
        if made.returncode != 0:
            raise RuntimeError(made.stdout)
        self.deadline = time.monotonic() + (self.options.seconds or 1e9)
        try:
            while not self.finished():
                began = time.monotonic()
                for _ in range(self.options.round):
                    if self.options.seconds and time.monotonic() > self.deadline:
                        break
                    if not self.options.seconds and self.cycles >= self.options.cycles:
                        break
                    self.cycle()
                    if self.options.until and self.violations[self.options.until]:
                        break
                if not (self.options.until and self.violations[self.options.until]):
                    self.end_round()
                self.say("%d cycles, %d events, %d violations (%.0f s)"
                         % (self.cycles, self.facts["events"], sum(self.violations.values()), time.monotonic() - began))
        finally:
            self.thaw()
            for _, process in self.crew:
                if process.poll() is None:
                    process.kill()
            self.server.stop("immediate")

    # ---------------------------------------------------------------- report

    def say(self, text):
        print("# " + text if self.options.tap else text, flush=True)

    def report(self):
        f = self.facts
        facts = [
            ("cycles", "%d, %d starts and crash restarts measured" % (self.cycles, self.measured)),
            ("faults", ", ".join("%s %d" % item for item in sorted(self.struck.items(), key=lambda i: -i[1]))),
            ("events committed", f["events"]),
            ("events rolled back", f["rolled back"]),
            ("transactions", "%d ok, %d failed, %d unknown to their client" % (f["transactions ok"], f["transactions failed"], f["transactions unknown"])),
            ("effects", f["effects"]),
            ("deliveries to clients", "%d, and %d in one transaction with their work" % (f["deliveries to two"], f["acked by one"])),
            ("delivered again", "%d after a crash (bound: %d in flight), %d given back or run out" % (
                f["again after a crash"], f["in flight at crashes"], f["again for a reason"])),
            ("dead letters", f["dead letters"]),
            ("old receipts tried", f["old receipts tried"]),
            ("errors of workers", f["errors of workers"]),
            ("first delivery", "%.2f s at most after accepting connections (limit %d s)" % (self.longest, FIRST_DELIVERY)),
        ]
        for name, value in facts:
            self.say("%-22s %s" % (name, value))
        for name, meaning in INVARIANTS.items():
            if not self.options.tap:
                print("%-22s %-8d %s" % (name, self.violations[name], meaning))
        for note in self.notes:
            self.say("note: " + note)
        for name in INVARIANTS:
            for text in self.examples[name][:5]:
                self.say("%s: %s" % (name, text))
        if self.options.tap:
            for number, name in enumerate(INVARIANTS, 1):
                print("%s %d - %s: %d" % ("not ok" if self.violations[name] else "ok", number, name, self.violations[name]))
            print("1..%d" % len(INVARIANTS))
        sys.stdout.flush()


# What the options take: a wrong one is refused at once, in one line.

def number(least, kind=int):
    def read(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not value >= least:
            raise argparse.ArgumentTypeError("%r is no number from %s on" % (text, least))
        return value
    return read


def pairs(text):
    items = [item.partition("=") for item in text.split(",")] if text else []
    if not all(name and equals for name, equals, _ in items):
        raise argparse.ArgumentTypeError("%r is not NAME=VALUE,..." % text)
    return {name: value for name, _, value in items}


def kinds(text):
    for name, weight in pairs(text).items():
        if name not in clients.Publisher.kinds:
            raise argparse.ArgumentTypeError("there is no kind %r; there are: %s" % (name, ", ".join(clients.Publisher.kinds)))
        number(0, float)(weight)
    return text


def fault_weights(text):
    try:
        return faults.weights(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def span(text):
    if text.count("-") != 1:
        raise argparse.ArgumentTypeError("%r is not SECONDS-SECONDS" % text)
    return tuple(map(number(0, float), text.split("-")))


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, "%s: %s (--help lists what there is)\n" % (self.prog, message))


def main():
    parser = Parser(prog="test/chaos/run", description="docs/chaos.md tells what this is.", allow_abbrev=False)
    parser.add_argument("--bin", required=True, help="directory of the server's programs (given by test/chaos/run)")
    parser.add_argument("--dir", required=True, help="directory to work in (given by test/chaos/run)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--cycles", type=number(1), default=50)
    length.add_argument("--seconds", type=number(1))
    parser.add_argument("--seed", type=number(0))
    parser.add_argument("--round", type=number(1), default=25)
    parser.add_argument("--calm", type=span, default=(0.8, 3))
    parser.add_argument("--drain", type=number(1), default=60)
    parser.add_argument("--rate", type=number(1), default=350)
    parser.add_argument("--kinds", type=kinds, default="")
    parser.add_argument("--faults", type=fault_weights, default=faults.weights(None))
    parser.add_argument("--settings", type=pairs, default={})
    parser.add_argument("--until", choices=list(INVARIANTS))
    parser.add_argument("--no-amcheck", dest="amcheck", action="store_false")
    parser.add_argument("--tap", action="store_true")
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)    # only look whether the options are right
    options = parser.parse_args()
    if options.check:
        return 0
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10 ** 6)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    driver = Driver(options)
    driver.say("seed %d" % options.seed)
    driver.run()
    driver.report()
    if options.until:
        return 0 if driver.violations[options.until] else 3
    return 1 if driver.violations else 0


if __name__ == "__main__":
    sys.exit(main())
