#!/usr/bin/env python3
"""check.py: the driver of bench/check, which has started a server under callgrind and made what setup.sql says.

    check.py list | known OPERATION TOP
    check.py profile OPERATION|all TOP POSTGRES
    check.py update BELONGS					prints what is to be recorded
    check.py check | tap RECORDED BELONGS	BELONGS: a file that says what the figures of this machine belong to

Each operation is done N times and 2N times between two fixed points: the processes that are counted sleep, and are
told to write down what they have counted (vgdb, "dump"), which also sets their counts to zero.  The difference over
N is what one more event costs; what a batch, a start or a look for work costs beside it is gone where it came once,
and is in there where it comes once for so many events.  SIGSTOP holds a worker until all its events lie ready, so
how many batches or turns it makes does not depend on who is faster.
"""
import base64
import ctypes
import os
import random
import signal
import subprocess
import sys
import time

from callgrind import LIMIT, LIMITS, compare, grown, other_surroundings, print_profile, read_dump, read_recorded, static_names, write_recorded

REFERENCE_LIMIT = 0.05	# plain INSERT or COPY moved by more: this machine counts otherwise
PATIENCE = 120			# seconds until something that does not come is an error
RECEIVE = "SELECT * FROM evbus.receive($1, $2)"
RECEIVE_LINES = "SELECT receipts, lines FROM evbus.receive_lines($1, $2)"
ACK = "SELECT evbus.ack($1)"


def fail(message):
	sys.exit(f"bench/check: {message}")


# ---------------------------------------------------------------------- libpq

def load_libpq():
	pq = ctypes.CDLL("libpq.so.5")
	for name in ("PQconnectdb", "PQexecParams", "PQprepare", "PQexecPrepared", "PQexec", "PQgetResult"):
		getattr(pq, name).restype = ctypes.c_void_p
	for name in ("PQerrorMessage", "PQgetvalue"):
		getattr(pq, name).restype = ctypes.c_char_p
	return pq


class Connection:
	"""Prepared statements of the protocol, with text parameters, as a driver in production sends them."""

	def __init__(self):
		self.pq = load_libpq()
		self.conn = ctypes.c_void_p(self.pq.PQconnectdb(b""))
		if self.pq.PQstatus(self.conn) != 0:
			fail(self.error())
		self.pid = self.pq.PQbackendPID(self.conn)
		self.prepared = {}

	def error(self):
		return self.pq.PQerrorMessage(self.conn).decode().strip()

	def rows(self, result):
		result = ctypes.c_void_p(result)
		if self.pq.PQresultStatus(result) not in (1, 2):	# PGRES_COMMAND_OK, PGRES_TUPLES_OK
			fail(self.error())
		rows = [[self.pq.PQgetvalue(result, i, k).decode() for k in range(self.pq.PQnfields(result))]
				for i in range(self.pq.PQntuples(result))]
		self.pq.PQclear(result)
		return rows

	def execute(self, sql, *values):
		name = self.prepared.get(sql)
		if name is None:
			name = self.prepared[sql] = f"s{len(self.prepared)}".encode()
			self.rows(self.pq.PQprepare(self.conn, name, sql.encode(), 0, None))
		texts = (ctypes.c_char_p * len(values))(*[str(v).encode() for v in values])
		return self.rows(self.pq.PQexecPrepared(self.conn, name, len(values), texts, None, None, 0))

	def copy(self, sql, data):
		self.pq.PQclear(ctypes.c_void_p(self.pq.PQexec(self.conn, sql.encode())))
		if self.pq.PQputCopyData(self.conn, data, len(data)) != 1 or self.pq.PQputCopyEnd(self.conn, None) != 1:
			fail(self.error())
		result = self.pq.PQgetResult(self.conn)
		while result:
			self.rows(result)
			result = self.pq.PQgetResult(self.conn)


# --------------------------------------------------------------------- events

def payload(i):
	return ('{"order_id": %d, "customer": {"id": %d, "name": "Customer %d"}, "status": "created", "total": %d.%02d, '
			'"currency": "EUR", "items": [{"sku": "A-%05d", "n": %d}, {"sku": "B-%05d", "n": %d}], "note": "%s"}' %
			(1000000 + i, 5000 + i * 7 % 4000, 5000 + i * 7 % 4000, 10 + i * 13 % 900, i * 37 % 100, i * 101 % 100000,
			 1 + i % 5, i * 211 % 100000, 1 + i % 3,
			 "leave at the door, ring twice" if i % 2 else "no note was left by the buyer"))


def array(values):
	return "{" + ",".join('"' + v.replace("\\", "\\\\").replace('"', '\\"') + '"' for v in values) + "}"


def random_payload(i):
	"""Some 8,000 bytes that cannot be compressed."""
	return '{"filler": "%s"}' % base64.b64encode(random.Random(i).randbytes(5950)).decode()


TYPE = "order.created"
PAYLOADS = [payload(i) for i in range(1000)]
TYPES_ARRAY = array([TYPE] * 1000)
PAYLOADS_ARRAY = array(PAYLOADS)
PAYLOADS_LINES = "\n".join(PAYLOADS)
SIZES = {"usual": 1000, "keyed": 1000, "small": 1000, "large": 100}	# events in a batch of this kind


# ------------------------------------------------------------------- counting

def state(pid):
	with open(f"/proc/{pid}/stat") as stat:
		return stat.read().rsplit(")", 1)[1].split()[0]


def until(what, condition, step=0.005):
	deadline = time.monotonic() + PATIENCE
	while not condition():
		if time.monotonic() > deadline:
			fail(f"{what} did not happen within {PATIENCE} seconds")
		time.sleep(step)


def quiet(pid):
	"""It sleeps, and has not just looked up."""
	asleep = 0

	def look():
		nonlocal asleep
		asleep = asleep + 1 if state(pid) == "S" else 0
		return asleep >= 3
	until(f"process {pid} coming to rest", look, 0.0005)


class Server:
	def __init__(self):
		self.out = os.environ["CALLGRIND_OUT"]
		self.observer = Connection()
		self.client = Connection()
		self.ids = 0
		for kind, payloads in (("usual", PAYLOADS), ("small", ["{}"] * SIZES["small"]),
							   ("large", [random_payload(i) for i in range(SIZES["large"])])):
			self.observer.execute("INSERT INTO bench.batch VALUES ($1, $2, $3)", kind, array([TYPE] * len(payloads)), array(payloads))
		self.observer.execute("INSERT INTO bench.batch SELECT 'keyed', types, payloads, $1 FROM bench.batch WHERE kind = 'usual'",
							  array([f"k{i * 7919 % 10000}" for i in range(SIZES["keyed"])]))

	def pid(self, backend_type, role=None):
		rows = []

		def found():
			rows[:] = self.observer.execute("SELECT pid FROM pg_stat_activity WHERE datname = 'postgres' AND backend_type = $1"
											" AND ($2 = '' OR usename = $2)", backend_type, role or "")
			return len(rows) == 1
		until(f"{backend_type} {role or ''}", found)
		return int(rows[0][0])

	def dump(self, pid):
		"""Its counts since the last time."""
		quiet(pid)
		seen = set(os.listdir(self.out))
		done = subprocess.run(["vgdb", f"--vgdb-prefix={self.out}/vgdb", f"--pid={pid}", "dump"],
							  stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
		if done.returncode != 0:
			fail(f"vgdb cannot talk to process {pid}: {done.stdout}{done.stderr}")
		new = [f for f in os.listdir(self.out) if f.startswith(f"counts.{pid}.") and f not in seen]
		if len(new) != 1:
			fail(f"process {pid} did not write what it has counted: {done.stdout}{done.stderr}")
		path = os.path.join(self.out, new[0])
		counts = read_dump(path)
		os.unlink(path)
		return counts

	def held(self, pid):
		"""with server.held(pid): it does nothing meanwhile."""
		return Held(pid)

	def publish(self, bus, n):
		for i in range(n):
			self.client.execute("SELECT evbus.publish($1, $2, $3)", bus, TYPE, PAYLOADS[i % 1000])

	def publish_batches(self, bus, n):
		for _ in range(n // 1000):
			rows = self.client.execute("SELECT evbus.publish_batch($1, $2::text[], $3::jsonb[])", bus, TYPES_ARRAY, PAYLOADS_ARRAY)
			if len(rows) != 1000:
				fail(f"publish_batch() returned {len(rows)} ids")

	def publish_lines(self, bus, n):
		for _ in range(n // 1000):
			rows = self.client.execute("SELECT events FROM evbus.publish_lines($1, $2, $3)", bus, TYPE, PAYLOADS_LINES)
			if rows != [["1000"]]:
				fail(f"publish_lines() returned {rows}")

	def fill(self, bus, n, kind="usual"):
		"""The same, cheaper, where publishing is not what is counted: the JSON is parsed already."""
		size = SIZES[kind]
		for _ in range(n // size):
			self.client.execute("SELECT count(*) FROM evbus.publish_batch($1, (SELECT types FROM bench.batch WHERE kind = $2),"
								" (SELECT payloads FROM bench.batch WHERE kind = $2), (SELECT keys FROM bench.batch WHERE kind = $2))", bus, kind)

	def wait_lag(self, subscription, lag):
		until(f"a lag of {lag} of {subscription}", lambda: self.observer.execute(
			"SELECT lag FROM evbus.subscription_lag WHERE subscription = $1", subscription) == [[str(lag)]])


class Held:
	def __init__(self, pid):
		self.pid = pid

	def __enter__(self):
		quiet(self.pid)
		os.kill(self.pid, signal.SIGSTOP)

	def __exit__(self, *_):
		os.kill(self.pid, signal.SIGCONT)


# ----------------------------------------------------------------- operations
# Each does its work for n events and returns the counts of the process in question.

def op_insert(s, n):
	s.dump(s.client.pid)
	for i in range(n):
		s.ids += 1
		s.client.execute("INSERT INTO bench.plain VALUES ($1, 1, 1, $2, NULL, NULL, $3)", s.ids, TYPE, PAYLOADS[i % 1000])
	return s.dump(s.client.pid)


def op_copy(s, n):
	s.dump(s.client.pid)
	for _ in range(n // 1000):
		rows = "".join(f"{s.ids + i + 1}\t1\t1\t{TYPE}\t\\N\t\\N\t{PAYLOADS[i]}\n" for i in range(1000))
		s.ids += 1000
		s.client.copy("COPY bench.plain FROM STDIN", rows.encode())
	return s.dump(s.client.pid)


def op_publish(s, n, bus="quiet"):
	with s.held(s.pid("evbus sequencer")):
		s.dump(s.client.pid)
		s.publish(bus, n)
		return s.dump(s.client.pid)


def op_publish_limited(s, n):
	return op_publish(s, n, "limited")


def op_publish_many(s, n, publish):
	with s.held(s.pid("evbus sequencer")):
		s.dump(s.client.pid)
		publish("quiet", n)
		return s.dump(s.client.pid)


def op_publish_batch(s, n):
	return op_publish_many(s, n, s.publish_batches)


def op_publish_lines(s, n):
	return op_publish_many(s, n, s.publish_lines)


def op_sequencer(s, n):
	pid = s.pid("evbus sequencer")
	s.dump(pid)
	with s.held(pid):
		s.fill("watched", n, "small")	# it does not look at payloads
	s.wait_lag("watcher", n)
	counts = s.dump(pid)
	s.observer.execute("SELECT evbus.seek('watcher', 'now')")
	return counts


def op_sequencer_turn(s, n):
	pid = s.pid("evbus sequencer")
	quiet(pid)
	s.dump(pid)
	for _ in range(n):
		s.publish("client", 1)
		# Who receives wants it placed, who acks wants it ticked: so there are two turns for each, however fast we are.
		(receipt,), = s.client.execute("SELECT receipt FROM evbus.receive('client', 1, wait => '10 seconds')")
		s.client.execute(ACK, array([receipt]))
	return s.dump(pid)


def handle(s, n, name, behind=False, kind="usual"):
	s.fill(name, 1000)	# so that its worker is there
	s.wait_lag(name, 0)
	pid = s.pid("evbus handler", name)
	sequencer = s.pid("evbus sequencer")
	quiet(pid)
	s.dump(pid)
	with s.held(pid):
		s.fill(name, n, kind)
		if behind:		# as many bytes again as the ring has
			s.fill("quiet", 1100, "large")
		s.wait_lag(name, n)
		quiet(sequencer)
	s.wait_lag(name, 0)
	return s.dump(pid)


def op_handler(s, n):
	return handle(s, n, "single")


def op_handler_array(s, n):
	return handle(s, n, "arrays")


def op_handler_behind(s, n):
	return handle(s, n, "arrays", behind=True)


def op_handler_keyed(s, n):
	return handle(s, n, "keyed", kind="keyed")


def op_handler_keyed_single(s, n):
	return handle(s, n, "keyed_single", kind="keyed")


def receive(s, n, size, combined=False, lines=False):
	s.fill("client", max(n // 1000, 1) * 1000)
	s.wait_lag("client", max(n // 1000, 1) * 1000)
	quiet(s.pid("evbus sequencer"))
	sql = RECEIVE_LINES if lines else RECEIVE
	s.dump(s.client.pid)
	receipts = None
	for _ in range(n // size):
		if combined and receipts:
			rows = s.client.execute(sql.replace("$2", "$2, ack => $3"), "client", size, receipts)
		else:
			rows = s.client.execute(sql, "client", size)
		if lines:
			receipts, text = rows[0]
			rows = text.split("\n")
		else:
			receipts = array([row[0] for row in rows])
		if len(rows) != size:
			fail(f"{len(rows)} of {size} events received")
		if not combined and s.client.execute(ACK, receipts) != [[str(size)]]:
			fail("a receipt was stale")
	counts = s.dump(s.client.pid)
	if combined:
		s.client.execute(ACK, receipts)
	s.observer.execute("SELECT evbus.seek('client', 'now')")
	return counts


def op_receive_lines(s, n):
	return receive(s, n, 1000, False, True)


def op_receive_lines_next(s, n):
	return receive(s, n, 1000, True, True)


def op_receive_1000(s, n):
	return receive(s, n, 1000)


def op_receive_100(s, n):
	return receive(s, n, 100)


def op_receive_1(s, n):
	return receive(s, n, 1)


def op_receive_next(s, n):
	return receive(s, n, 1, True)


# name: function, N, what it counts
OPERATIONS = {
	"insert": (op_insert, 500, "reference: the backend of INSERT, one row a transaction, the row of evbus with a primary key"),
	"copy": (op_copy, 3000, "reference: the backend of COPY of such rows, 1000 a transaction"),
	"publish": (op_publish, 500, "the backend of publish(), one a transaction, prepared"),
	"publish-limited": (op_publish_limited, 500, "the same, to a bus with max_backlog, publish_rate, and a rate of the role"),
	"publish-batch": (op_publish_batch, 3000, "the backend of publish_batch() of 1000"),
	"publish-lines": (op_publish_lines, 3000, "the backend of publish_lines() of 1000"),
	"sequencer": (op_sequencer, 24000, "the sequencer, per event of one turn with many"),
	"sequencer-turn": (op_sequencer_turn, 400, "the sequencer, per event that is published, received and acked by itself: two turns, with falling asleep and waking"),
	"handler": (op_handler, 4000, "the worker of a handler f(evbus.event): NULL, batch_size 1000"),
	"handler-array": (op_handler_array, 5000, "the worker of a handler f(evbus.event[]): NULL, batch_size 1000"),
	"handler-behind": (op_handler_behind, 5000, "the same, its events read from the log and not from the ring"),
	"handler-keyed": (op_handler_keyed, 5000, "as handler-array, with ordering => 'key', each event with a key"),
	"handler-keyed-single": (op_handler_keyed_single, 4000, "as handler, with ordering => 'key', each event with a key"),
	"receive-1000": (op_receive_1000, 6000, "the backend of receive(1000), then ack, two transactions"),
	"receive-lines": (op_receive_lines, 6000, "the backend of receive_lines(1000), then ack, two transactions"),
	"lines-next": (op_receive_lines_next, 6000, "the backend of receive_lines(1000, ack => the last ones), one transaction"),
	"receive-100": (op_receive_100, 4000, "the backend of receive(100), then ack, two transactions"),
	"receive-1": (op_receive_1, 300, "the backend of receive(1), then ack, two transactions"),
	"receive-next": (op_receive_next, 300, "the backend of receive(1, ack => the last one), one transaction"),
}
REFERENCES = ("insert", "copy")


def measure(server, operation):
	"""Counts of one event more."""
	work, n, _ = OPERATIONS[operation]
	started = time.monotonic()
	work(server, 1000 if n >= 1000 else 20)		# the first time is dearer
	once = work(server, n)
	twice = work(server, 2 * n)
	if os.environ.get("CHECK_VERBOSE"):
		print(f"{operation}: {time.monotonic() - started:.1f} s", file=sys.stderr)
	result = twice.per(n, once)
	if operation in REFERENCES:
		result.under_evbus = 0.0	# its hooks are above everything
	return result


def operations(server):
	"""Those that this evbus has: a function, and an argument of it, may be newer."""
	needs = {"receive-next": "receive ack", "publish-lines": "publish_lines bus", "receive-lines": "receive_lines ack",
			 "lines-next": "receive_lines ack"}
	there = [row[0] for row in server.observer.execute("SELECT DISTINCT proname || ' ' || argument FROM pg_proc, unnest(proargnames) argument"
														" WHERE pronamespace = 'evbus'::regnamespace")]
	return [op for op in OPERATIONS if op not in needs or needs[op] in there]


# ----------------------------------------------------------------------- main

def check(recorded_path, now_belongs, tap):
	"""0, or 1 where there is too much."""
	def skip(why):
		print(f"1..0 # SKIP not comparable: {why}" if tap else f"not comparable, skipped because {why}")
		return 0

	belongs, recorded, parts = read_recorded(recorded_path)
	why = other_surroundings(belongs, now_belongs)
	if why:
		return skip(why)
	server = Server()
	results = {operation: measure(server, operation) for operation in operations(server)}
	verdicts, lines = compare(results, recorded, REFERENCES)
	for operation in REFERENCES:
		if operation in recorded and abs(results[operation].total / recorded[operation][0] - 1) > REFERENCE_LIMIT:
			if not tap:
				print(*lines, sep="\n")
			return skip(f"{operation} of plain PostgreSQL takes {results[operation].total:,.0f} instructions here,"
						f" and {recorded[operation][0]:,.0f} where they were recorded")
	verdicts = [(operation, wrong) for operation, wrong in verdicts if operation not in REFERENCES]
	for operation, wrong in verdicts:
		if wrong and operation in results:
			lines += ["", f"{operation}: {wrong}", *grown(results[operation], parts.get(operation, {}))]
	wrong = any(w for _, w in verdicts)
	less = [op for op, _ in verdicts if op in results and op in recorded and results[op].under_evbus < recorded[op][1] / LIMIT]
	if less and not wrong:
		lines += ["", f"Much less than recorded: {', '.join(less)}. make bench-check UPDATE=1 holds what was gained."]
	if wrong:
		lines += ["", "If it is worth it: make bench-check UPDATE=1 records these figures."]
	if tap:
		for i, (operation, w) in enumerate(verdicts, 1):
			print(f"{'not ok' if w else 'ok'} {i} - {operation}: {w or f'at most {LIMITS.get(operation, LIMIT) - 1:.0%} more instructions than recorded'}")
		print(f"1..{len(verdicts)}")
	for line in lines:
		print(f"# {line}" if tap else line)
	if not tap:
		for operation, w in verdicts:
			if w:
				print(f"FAILED {operation}: {w}")
	return 1 if wrong else 0


def main():
	what, arguments = (sys.argv + ["list"])[1], sys.argv[2:]
	if what == "list":
		for operation, (_, _, text) in OPERATIONS.items():
			print(f"{operation:15} {text}")
	elif what == "known":
		if arguments[0] not in [*OPERATIONS, "all"] or not arguments[1].isdigit():
			fail(f"there is no operation {arguments[0]}, or {arguments[1]} is no number; see bench/check --list")
	elif what == "profile":
		server = Server()
		readable = static_names(arguments[2])
		for operation in [arguments[0]] if arguments[0] != "all" else operations(server):
			print(f"{operation}: {OPERATIONS[operation][2]}")
			print_profile(measure(server, operation), int(arguments[1]), readable)
			print(flush=True)
	elif what == "update":
		server = Server()
		write_recorded({operation: measure(server, operation) for operation in operations(server)}, read_recorded(arguments[0])[0])
	elif what in ("check", "tap"):
		sys.exit(check(arguments[0], read_recorded(arguments[1])[0], what == "tap"))


main()
