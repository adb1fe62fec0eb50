"""The checker: compares what the clients' ledgers say with what came of it.

For each event of each publisher the ledgers say whether it was committed; where a client lost its connection during
COMMIT, the row that the same transaction wrote into chaos.witness decides.  From there on everything is counted:
an event is either committed, and then every subscription that wants it has exactly one effect or one dead letter of
it, or it is not, and then nobody has ever seen it.
"""
import glob
import os
import re
from array import array
from collections import Counter, defaultdict

import clients
import model
from ledger import lines

CLOCK = 0.05    # s; two processes read the clock at other moments than the server does

# Every invariant: what it is called in the table, and which promise it stands for.
INVARIANTS = {
    "lost": "P1 P4  committed, and a subscription has neither effect nor dead letter",
    "ghosts": "P2     seen by somebody, though never committed",
    "doubled": "P3     effects in the database done twice",
    "order": "P4     positions that contradict the order of commits, holes, or handlers out of order",
    "again": "P3     given to a client again, though settled or still leased",
    "dead letters": "P5     effect and dead letter of one event, two dead letters, or a hopeless event without",
    "receipts": "P6     an old receipt that changed something",
    "leaks": "P9     leases, slots, ring or workers left over after all was done",
    "slow starts": "P10    starts after which the first delivery took longer than 5 s",
    "orphans": "       processes of evbus 5 s after their postmaster was killed",
    "crashes": "       processes that ended by a signal we did not send, and PANICs",
    "amcheck": "       what pg_amcheck complains about",
}


class Transaction:
    __slots__ = ("first", "last", "rolled", "start", "kind", "outcome", "ended")

    def __init__(self, words):
        self.first, self.last = int(words[2]), int(words[3])
        self.rolled = [tuple(map(int, r.split("-"))) for r in words[4].split(",")] if words[4] != "-" else []
        self.start = float(words[5])
        self.kind = words[6]
        self.outcome = None
        self.ended = None

    def committed(self, witnessed):
        if self.kind == "rollback" or self.outcome == "failed":
            return False
        if self.outcome == "ok" and self.kind != "async":
            return True
        return witnessed    # the client does not know, or was told before it was on disk

    def events(self):
        for n in range(self.first, self.last + 1):
            if not any(a <= n <= b for a, b in self.rolled):
                yield n


class Delivery:
    """One delivery to a client of `two`."""
    __slots__ = ("incarnation", "called", "returned", "lease", "until", "verb", "result", "began", "ended")

    def __init__(self, incarnation, called, returned, lease):
        self.incarnation, self.called, self.returned, self.lease = incarnation, called, returned, lease
        self.until = called + lease     # at the earliest
        self.verb = self.result = self.began = self.ended = None

    def settled(self):
        """Surely and for good."""
        return self.result == 1 and self.verb in ("ack", "ack_async", "reject")


class Check:
    def __init__(self, directory, connection, next_position):
        self.directory = directory
        self.connection = connection
        self.next_position = next_position  # of each bus, where this round began
        self.violations = Counter()
        self.examples = defaultdict(list)
        self.facts = Counter()

    def violation(self, invariant, text):
        self.violations[invariant] += 1
        if len(self.examples[invariant]) < 5:
            self.examples[invariant].append(text)

    def ledgers(self, kind):
        for path in sorted(glob.glob(os.path.join(self.directory, kind + "-*.ledger"))):
            yield int(re.search(r"-(\d+)\.ledger$", path).group(1)), lines(path)

    def rows(self, query):
        with self.connection, self.connection.cursor("chaos") as cursor:
            cursor.itersize = 20000
            cursor.execute(query)
            yield from cursor

    # ------------------------------------------------------------------ what was published

    def read_publishers(self):
        self.transactions = {}
        resolved = {}
        witness = set(self.rows("SELECT client, txn FROM chaos.witness"))
        for _, words in ((c, w) for c, ls in self.ledgers("resolver") for w in ls):
            if words[0] == "ok":
                resolved[int(words[1]), int(words[2])] = (words[3], float(words[4]))
        for client, ledger in self.ledgers("publisher"):
            for words in ledger:
                txn = int(words[1])
                if words[0] == "try":
                    self.transactions[client, txn] = Transaction(words)
                elif words[0] in ("ok", "failed", "unknown"):
                    self.transactions[client, txn].outcome = words[0]
                    if len(words) > 2:
                        self.transactions[client, txn].ended = float(words[2])
        for t in self.transactions.values():
            if t.kind == "prepare" and t.outcome == "unknown":
                t.ended = None      # of PREPARE, if it succeeded; COMMIT PREPARED comes later
        for key, (verb, ended) in resolved.items():
            t = self.transactions.get(key)
            if t is not None and t.outcome in (None, "unknown"):
                t.outcome, t.ended = ("ok", ended) if verb == "commit" else ("failed", None)

        last = Counter()
        for (client, _), t in self.transactions.items():
            last[client] = max(last[client], t.last)
        # For each client a byte per event: 0 not committed, 1 committed, 2 committed by COMMIT PREPARED, so perhaps
        # after later ones.
        self.state = {client: bytearray(n + 1) for client, n in last.items()}
        self.committed = {}
        for key, t in self.transactions.items():
            outcome = t.outcome or "unknown"
            self.facts["transactions " + outcome] += 1
            if t.committed(key in witness):
                self.committed[key] = t
                state = self.state[key[0]]
                for n in t.events():
                    state[n] = 2 if t.kind == "prepare" else 1
                    self.facts["events"] += 1
            else:
                self.facts["rolled back"] += t.last - t.first + 1
        self.ids = {client: array("q", bytes(8 * len(s))) for client, s in self.state.items()}
        self.positions = {client: array("q", bytes(8 * len(s))) for client, s in self.state.items()}

    def known(self, client, n):
        state = self.state.get(client)
        return state is not None and 0 < n < len(state) and state[n] > 0

    # ------------------------------------------------------------------ what came of it

    def read_dead_letters(self):
        self.dead = {name: {} for name in model.SUBSCRIPTIONS}
        for name, c, n, event_id, position, reason in self.rows(
                "SELECT subscription, (payload->>'c')::integer, (payload->>'n')::integer, event_id, position, reason"
                " FROM evbus.dead_letter"):
            where = "dead letter of %s: client %d, event %d (%s)" % (name, c, n, reason)
            self.facts["dead letters"] += 1
            if not self.known(c, n) or not model.wants(name, n):
                self.violation("ghosts", where)
                continue
            if (c, n) in self.dead[name]:
                self.violation("dead letters", where + ", for the second time")
            self.dead[name][c, n] = reason
            self.same_event(name, c, n, event_id)

    def same_event(self, name, c, n, event_id):
        if self.ids[c][n] == 0:
            self.ids[c][n] = event_id
        elif self.ids[c][n] != event_id:
            self.violation("ghosts", "%s: client %d, event %d has id %d, elsewhere %d" % (name, c, n, event_id, self.ids[c][n]))

    def read_effects(self):
        # ordered and side first: they say which positions events have.
        for name in sorted(model.TABLES, key=lambda name: name not in ("ordered", "side")):
            self.read_effects_of(name)

    def read_effects_of(self, name):
        count = {client: bytearray(len(s)) for client, s in self.state.items()}
        last_position = 0
        last_of_key = {}
        for c, n, event_id, position, attempt, serial in self.rows(
                "SELECT c, n, event_id, position, attempt, serial FROM chaos.effect_%s ORDER BY serial" % name):
            where = "%s: client %d, event %d, position %d" % (name, c, n, position)
            self.facts["effects"] += 1
            if not self.known(c, n) or not model.wants(name, n):
                self.violation("ghosts", where)
                continue
            if count[c][n]:
                self.violation("doubled", where)
                continue
            count[c][n] = 1
            self.same_event(name, c, n, event_id)
            if self.positions[c][n] == 0:
                self.positions[c][n] = position
            elif self.positions[c][n] != position:
                self.violation("order", "%s, elsewhere %d" % (where, self.positions[c][n]))
            # One worker at a time: what never failed is done in order.
            if name in ("ordered", "typed", "side") and attempt == 1:
                if position <= last_position:
                    self.violation("order", "%s after %d" % (where, last_position))
                last_position = position
                if self.state[c][n] == 1:
                    if n <= last_of_key.get((c, n % 3), 0):
                        self.violation("order", "%s after event %d of its key" % (where, last_of_key[c, n % 3]))
                    last_of_key[c, n % 3] = n
        self.effects_of(name, lambda c, n: count[c][n] > 0)
        if name == "one":
            self.check_one(count)

    def effects_of(self, name, has_effect):
        dead = self.dead[name]
        for c, state in self.state.items():
            for n in range(1, len(state)):
                if not state[n] or not model.wants(name, n):
                    continue
                effect = has_effect(c, n)
                where = "%s: client %d, event %d" % (name, c, n)
                if not effect and (c, n) not in dead:
                    self.violation("lost", where)
                elif effect and (c, n) in dead and name != "two":
                    self.violation("dead letters", where + " has an effect, and a dead letter (%s)" % dead[c, n])
                elif effect and model.hopeless(name, n):
                    self.violation("dead letters", where + " cannot be done, and has an effect")

    def check_one(self, count):
        """What a client was told to be committed has its effect."""
        for client, ledger in self.ledgers("one"):
            tried = {}
            for words in ledger:
                if words[0] == "try":
                    tried[words[1]] = words[2]
                elif words[0] == "ok" and tried[words[1]] != "-":
                    for pair in tried[words[1]].split(","):
                        c, n = map(int, pair.split(":"))
                        self.facts["acked by one"] += 1
                        if self.known(c, n) and count[c][n] == 0:
                            self.violation("lost", "one: client %d acked client %d, event %d; the effect is gone" % (client, c, n))

    # ------------------------------------------------------------------ order of commits

    def check_order(self):
        """If A's COMMIT returned before B began to publish, A is before B."""
        for bus in ("main", "side"):
            begins = []
            ends = []
            seen = {}
            for key, t in self.committed.items():
                last = 0
                own = []
                for n in t.events():
                    if model.bus(n) != bus or self.positions[key[0]][n] == 0:
                        continue
                    position = self.positions[key[0]][n]
                    if position in seen:
                        self.violation("order", "position %d of bus %s: client %d, event %d, and %s" % ((position, bus, key[0], n) + (seen[position],)))
                    seen[position] = "client %d, event %d" % (key[0], n)
                    if position <= last:
                        self.violation("order", "client %d, transaction %d: event %d has position %d, after %d" % (key + (n, position, last)))
                    last = position
                    own.append(position)
                if own:
                    begins.append((t.start, min(own), key))
                    if t.ended is not None:
                        ends.append((t.ended, max(own), key))
            begins.sort()
            ends.sort()
            at = 0
            highest = (0, None)
            for start, lowest, key in begins:
                while at < len(ends) and ends[at][0] < start:
                    highest = max(highest, ends[at][1:])
                    at += 1
                if lowest < highest[0]:
                    self.violation("order", "bus %s: client %d, transaction %d has position %d; client %d, transaction %d was committed before and has %d"
                                   % ((bus,) + key + (lowest,) + highest[1] + (highest[0],)))
            expected = self.next_position[bus]
            if seen:
                for position in sorted(seen):
                    if position != expected:
                        self.violation("order", "bus %s: position %d, expected %d (%s)" % (bus, position, expected, seen[position]))
                    expected = position + 1
            self.next_position[bus] = expected

    # ------------------------------------------------------------------ clients, at least once

    def read_two(self):
        deliveries = defaultdict(list)
        newest = 0
        self.incarnation = None     # the last one
        for client, ledger in self.ledgers("two"):
            incarnation = None
            mine = {}
            for words in ledger:
                if words[0] == "incarnation":
                    incarnation = words[1]
                elif words[0] == "got":
                    c, n = int(words[2]), int(words[3])
                    called, returned, lease = map(float, words[4:7])
                    mine[words[1]] = Delivery(incarnation, called, returned, lease)
                    deliveries[c, n].append(mine[words[1]])
                    if returned > newest:
                        newest, self.incarnation = returned, incarnation
                elif words[0] == "try":
                    for k in words[2].split(","):
                        d = mine[k]
                        if words[1] == "extend":
                            extended = float(words[3]) + clients.EXTENSION
                        else:
                            d.verb, d.began = words[1], float(words[3])
                            d.result = None
                elif words[0] == "done":
                    for k, result in zip(words[2].split(","), words[3].split(",")):
                        d = mine[k]
                        if words[1] == "extend":
                            d.until = extended if result == "1" else 0
                        else:
                            d.result, d.ended = int(result), float(words[4])
                            self.check_incarnation(d, incarnation, client, k)
                elif words[0] == "stale":
                    self.facts["old receipts tried"] += 1
                    if words[3] != "0":
                        self.violation("receipts", "two: client %d, %s with receipt %s, which was settled or of before a crash, answered %s" % (client, words[1], words[2], words[3]))
        self.facts["deliveries to two"] = sum(map(len, deliveries.values()))
        for (c, n), several in deliveries.items():
            if not self.known(c, n) or not model.wants("two", n):
                self.violation("ghosts", "two: client %d, event %d" % (c, n))
                continue
            several.sort(key=lambda d: d.returned)
            self.check_deliveries(c, n, several)
        self.effects_of("two", lambda c, n: (c, n) in deliveries)

    def check_incarnation(self, d, incarnation, client, k):
        if d.result == 1 and d.incarnation != incarnation:
            self.violation("receipts", "two: client %d, receipt %s is of an earlier start and was taken" % (client, k))

    def check_deliveries(self, c, n, several):
        """Each delivery but the first must have a reason."""
        where = "two: client %d, event %d" % (c, n)
        settled = [d for d in several if d.settled()]
        # What was in flight when a server ended: its last delivery there was not settled for good.
        for before, after in zip(several, several[1:] + [None]):
            if before.incarnation != (after.incarnation if after else self.incarnation):
                self.facts["in flight at crashes"] += not before.settled() or before.verb == "ack_async"
        for d in settled:
            for other in several:
                if other is d:
                    continue
                if other.called > d.ended and not (d.verb == "ack_async" and other.incarnation != d.incarnation):
                    self.violation("again", "%s was settled (%s) and given out again" % (where, d.verb))
                if d.incarnation == other.incarnation and d.returned < other.called and other.returned < d.began:
                    self.violation("receipts", "%s was given to another before its first receipt was taken (%s)" % (where, d.verb))
        if sum(1 for d in settled if d.verb != "ack_async") > 1:
            self.violation("receipts", "%s was settled twice" % where)
        for before, after in zip(several, several[1:]):
            if before.incarnation != after.incarnation:
                self.facts["again after a crash"] += 1
            else:
                self.facts["again for a reason"] += 1
                given_back = before.verb in ("nack", "release") and before.result != 0
                # Of two calls at a time the one that returned last may have been first: it stood still, its lease ran out.
                turned = before.returned >= after.called + after.lease - CLOCK
                if not given_back and not turned and after.returned < before.until - CLOCK:
                    self.violation("again", "%s was given out again %.3f s before its lease ended" % (where, before.until - after.returned))
        if (c, n) in self.dead["two"]:
            if any(d.settled() and d.verb == "ack" for d in several):
                self.violation("dead letters", where + " was acked, and is a dead letter (%s)" % self.dead["two"][c, n])
        elif any(d.settled() and d.verb == "reject" for d in several):
            self.violation("dead letters", where + " was rejected, and is no dead letter")

    # ------------------------------------------------------------------

    def run(self):
        self.read_publishers()
        self.read_dead_letters()
        self.read_effects()
        self.check_order()
        self.read_two()
