"""callgrind.py: what callgrind wrote, per event, and how it is printed, recorded and compared.  For bench/check.py."""
import os
import re
import subprocess

LIMIT = 1.10			# a figure above this times the recorded one fails
LIMITS = {"sequencer-turn": 1.30}	# how often it looks around in between depends on the clock
EVBUS = "evbus.so"


class Counts:
	"""What one process executed between two dumps: instructions by (object, function), and with what they called."""

	def __init__(self):
		self.own = {}
		self.inclusive = {}
		self.under_evbus = 0	# in evbus.so and what it calls

	@property
	def total(self):
		return sum(self.own.values())

	def of(self, object_name):
		return sum(n for (o, _), n in self.own.items() if o == object_name)

	def per(self, n, less):
		"""(self - less) / n"""
		result = Counts()
		for name in ("own", "inclusive"):
			mine, theirs = getattr(self, name), getattr(less, name)
			setattr(result, name, {f: (mine.get(f, 0) - theirs.get(f, 0)) / n for f in mine.keys() | theirs.keys()})
		result.under_evbus = (self.under_evbus - less.under_evbus) / n
		return result


def read_dump(path):
	"""The file format is told in valgrind's manual, "Callgrind Format Specification"."""
	names = {"ob": {}, "fn": {}}
	counts = Counts()
	own, inclusive = counts.own, counts.inclusive
	current_object = current = called_object = called = None
	call = False

	def name(kind, text):
		match = re.match(r"\((\d+)\)(?: (.*))?$", text)
		if not match:
			return text
		if match[2] is not None:
			names[kind][match[1]] = os.path.basename(match[2]) if kind == "ob" else match[2]
		return names[kind][match[1]]

	with open(path) as dump:
		for line in dump:
			first = line[0]
			if first in "0123456789+-*":
				fields = line.split()
				cost = int(fields[1]) if len(fields) > 1 else 0
				if not call:
					own[current] = own.get(current, 0) + cost
				if not call or called != current:
					inclusive[current] = inclusive.get(current, 0) + cost
				if call and called[0] == EVBUS != current[0]:
					counts.under_evbus += cost
				call = False
			elif line.startswith("ob="):
				current_object = called_object = name("ob", line[3:-1])
			elif line.startswith("fn="):
				current = (current_object, name("fn", line[3:-1]))
				called_object = current_object
			elif line.startswith("cob="):
				called_object = name("ob", line[4:-1])
			elif line.startswith("cfn="):
				called = (called_object, name("fn", line[4:-1]))
				called_object = current_object
			elif line.startswith("calls="):
				call = True
	# A function that comes back to itself through others would count its part more than once.
	total = counts.total
	for f in inclusive:
		inclusive[f] = min(inclusive[f], total)
	counts.under_evbus = min(counts.under_evbus, total)
	return counts


# -------------------------------------------------------------------- profile

def static_names(program):
	"""Debian's postgres has no names for its static functions; say at least between which others each lies."""
	lines = subprocess.run(["nm", "-D", "--defined-only", program], capture_output=True, text=True).stdout.splitlines()
	symbols = sorted((int(address, 16), name) for address, kind, name in map(str.split, lines) if kind in "TW")

	def name(f):
		match = re.match(r"0x([0-9a-f]+)('\d+)?$", f)
		if not match or not symbols:
			return f
		address = int(match[1], 16)
		before = [s[1] for s in symbols if s[0] <= address][-1:]
		after = [s[1] for s in symbols if s[0] > address][:1]
		return f"static 0x{address:x}{match[2] or ''} ({''.join(before)} .. {''.join(after)})"
	return name


def print_profile(counts, top, readable):
	total = counts.total
	print(f"{total:,.0f} instructions per event, {counts.under_evbus:,.0f} of them in evbus with what it calls; by program or library:")
	for o in sorted({o for o, _ in counts.own}, key=counts.of, reverse=True):
		if counts.of(o) >= total / 1000:
			print(f"{counts.of(o):14,.1f} {counts.of(o) / total:6.1%}  {o}")
	# What is above everything, such as main(), tells nothing.
	below = {f: n for f, n in counts.inclusive.items() if n <= 0.999 * total}
	for title, kind in (("itself", counts.own), ("with what it calls", below),
						("evbus alone, with what it calls", {f: n for f, n in below.items() if f[0] == EVBUS})):
		print(f"\n{title}:")
		for (o, f), n in sorted(kind.items(), key=lambda item: -item[1])[:top]:
			if n >= total / 10000:
				print(f"{n:14,.1f} {n / total:6.1%}  {o}: {readable(f) if o == 'postgres' else f}")


# ------------------------------------------------------------------- recorded
# "what: which" for what the figures belong to; then an operation, its instructions per event and those in evbus
# with what it calls; below it, indented, evbus's functions with what they call.

def dearest(counts):
	"""evbus's dearest, by name."""
	ours = {f: n for (o, f), n in counts.inclusive.items() if o == EVBUS and n >= counts.total / 100 and n >= 1}
	return dict(sorted(ours.items(), key=lambda item: -item[1])[:12])


def read_recorded(path):
	belongs, figures, parts = {}, {}, {}
	operation = None
	with open(path) as recorded:
		for line in recorded:
			if line.startswith("#") or not line.strip():
				continue
			if ": " in line:
				what, which = line.strip().split(": ", 1)
				belongs[what] = which
			elif line[0].isspace():
				f, n = line.rsplit(None, 1)
				parts[operation][f.strip()] = float(n)
			else:
				operation, everything, ours = line.split()
				figures[operation] = (float(everything), float(ours))
				parts[operation] = {}
	return belongs, figures, parts


def write_recorded(results, belongs):
	print("# Instructions per event, written by \"make bench-check UPDATE=1\" and read by \"make bench-check\" (bench/check).")
	print("# An operation, all instructions of the process in question, and those in evbus with what it calls;")
	print("# below it evbus's dearest functions, with what they call.")
	for what, which in belongs.items():
		print(f"{what}: {which}")
	for operation, counts in results.items():
		print(f"\n{operation:15} {counts.total:10.1f} {counts.under_evbus:10.1f}")
		for f, n in dearest(counts).items():
			print(f"\t{f:40} {n:10.1f}")


def other_surroundings(recorded, now):
	for what in recorded.keys() | now.keys():
		if recorded.get(what) != now.get(what):
			return f"the recorded figures are of {what} {recorded.get(what)}, and this is {now.get(what)}"
	return None


def compare(results, recorded, references):
	"""A list of (operation, what is wrong or None), and the lines of the table."""
	verdicts = []
	lines = [f"{'instructions per event':23} {'recorded':>11} {'now':>11} {'ratio':>6}   {'of them evbus':>13} {'now':>11} {'ratio':>6}"]
	for operation in [*results, *(op for op in recorded if op not in results)]:
		if operation not in results:
			verdicts.append((operation, "recorded, and this evbus does not have it"))
			continue
		now = (results[operation].total, results[operation].under_evbus)
		if operation not in recorded:
			verdicts.append((operation, "not recorded"))
			lines.append(f"{operation:23} {'-':>11} {now[0]:11,.0f} {'':6}   {'-':>13} {now[1]:11,.0f}")
			continue
		was = recorded[operation]
		ratios = [a / b if b else 1 for a, b in zip(now, was)]
		wrong = None
		if operation not in references and max(ratios) > LIMITS.get(operation, LIMIT):
			wrong = f"{max(ratios):.2f} times what is recorded"
		verdicts.append((operation, wrong))
		lines.append(f"{operation:23} {was[0]:11,.0f} {now[0]:11,.0f} {ratios[0]:6.3f}   {was[1]:13,.0f} {now[1]:11,.0f} {ratios[1]:6.3f}"
					 f"{'  <-- too many' if wrong else ''}")
	return verdicts, lines


def grown(counts, was):
	"""The functions of evbus that need more than they did, and the dearest of all objects."""
	now = {f: n for (o, f), n in counts.inclusive.items() if o == EVBUS}
	more = sorted(((now[f] - was.get(f, 0), f) for f in dearest(counts)), reverse=True)
	yield "  evbus's functions that grew, with what they call:    recorded         now"
	for growth, f in more[:10]:
		if growth > was.get(f, 0) / 100:
			yield f"    {f:46} {was.get(f, 0):11,.1f} {now[f]:11,.1f}"
	yield "  the dearest, by themselves:"
	for (o, f), n in sorted(counts.own.items(), key=lambda item: -item[1])[:10]:
		yield f"    {o + ': ' + f:46} {'':11} {n:11,.1f}"
