"""The private server of the chaos checker, and what can be done to it.

Only processes of this server are ever touched: children of the postmaster of our data directory, found in /proc and
looked at again (the moment they were started tells a process from its successor with the same id) before each signal.
"""
import os
import random
import signal
import subprocess
import time
from collections import namedtuple
from contextlib import contextmanager

import psycopg2

Process = namedtuple("Process", "pid started title")

FIXED = """
listen_addresses = ''
log_line_prefix = '%m [%p] %b '
log_checkpoints = off
log_min_messages = error
log_min_error_statement = panic
shared_preload_libraries = 'evbus'
max_worker_processes = 24
max_prepared_transactions = 40
max_connections = 60
evbus.max_handler_workers = 6
restart_after_crash = on
fsync = on
shared_buffers = 64MB
checkpoint_timeout = 30s
include = 'chaos.conf'
"""

# Small and short, so that what is rare elsewhere happens all the time; another choice at each start.
VARIED = {
    "evbus.ring_size": ("1MB", "1MB", "1MB", "4MB"),
    "evbus.late_after": ("50ms", "50ms", "300ms", "10s"),
    "evbus.ledger_turn_size": ("64kB", "64kB", "512kB"),
    "evbus.upkeep_interval": ("100ms", "500ms"),
    "evbus.max_leases": ("32768", "32768", "8192"),
    "evbus.worker_idle_timeout": ("300ms", "60s"),
    "wal_writer_delay": ("10ms", "200ms", "2s"),
}


def stat(pid):
    """(parent, moment of start) of a process, or None."""
    try:
        with open("/proc/%d/stat" % pid, encoding="ascii", errors="replace") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[1]), fields[19]) if fields[0] not in "ZX" else None
    except (OSError, IndexError):
        return None


def alive(process):
    found = stat(process.pid)
    return found is not None and found[1] == process.started


def send(process, what):
    """A signal, if the process is still the one we mean."""
    if not alive(process):
        return False
    try:
        os.kill(process.pid, what)
        return True
    except ProcessLookupError:
        return False


@contextmanager
def silent_libpq():
    """Until psycopg2 has a connection, libpq prints what the server warns of, say of a crash in that moment, to our stderr."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class Server:
    def __init__(self, bin_directory, directory, settings):
        self.bin = bin_directory
        self.data = os.path.join(directory, "data")
        self.socket = os.path.join(directory, "socket")
        self.log = os.path.join(directory, "server.log")
        self.settings = settings    # those that are not varied
        self.starts = 0

    def program(self, name, *arguments):
        return subprocess.run([os.path.join(self.bin, name), *arguments], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)

    def create(self):
        os.makedirs(self.socket, exist_ok=True)
        made = self.program("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-k", "--no-sync")
        if made.returncode != 0:
            raise RuntimeError(made.stdout)
        with open(os.path.join(self.data, "postgresql.conf"), "a", encoding="ascii") as file:
            file.write(FIXED + "unix_socket_directories = '%s'\n" % self.socket)
        os.environ.update(PGHOST=self.socket, PGPORT="5432", PGUSER="postgres", PGDATABASE="postgres")

    def start(self):
        """Returns once the postmaster runs; it may not accept connections yet."""
        chosen = {name: random.choice(values) for name, values in VARIED.items()}
        chosen.update(self.settings)
        with open(os.path.join(self.data, "chaos.conf"), "w", encoding="ascii") as file:
            file.writelines("%s = '%s'\n" % item for item in chosen.items())
        self.starts += 1
        # Not our child, and not waited for: we look ourselves when it accepts connections.
        started = self.program("pg_ctl", "-D", self.data, "-l", self.log, "-W", "start")
        if started.returncode != 0:
            raise RuntimeError(started.stdout)

    def stop(self, mode):
        return self.program("pg_ctl", "-D", self.data, "-m", mode, "-w", "-t", "60", "stop").returncode == 0

    def connect(self, limit=60):
        """(when the server was seen to accept connections, a connection)"""
        deadline = time.monotonic() + limit
        while True:
            try:
                with silent_libpq():
                    connection = psycopg2.connect(connect_timeout=10, options="-c statement_timeout=60s -c client_min_messages=error")
                connection.autocommit = True
                return time.monotonic(), connection
            except psycopg2.Error:
                if time.monotonic() > deadline:
                    raise
                if not self.running():
                    self.start()    # it may have been on its way down when we looked before
                time.sleep(0.01)

    # -------------------------------------------------------------- processes

    def postmaster(self):
        try:
            with open(os.path.join(self.data, "postmaster.pid"), encoding="ascii") as file:
                pid = int(file.readline())
        except (OSError, ValueError):
            return None
        found = stat(pid)
        try:
            ours = os.readlink("/proc/%d/cwd" % pid) == os.path.realpath(self.data)
        except OSError:
            return None
        return Process(pid, found[1], "postmaster") if found and ours else None

    def running(self):
        return self.postmaster() is not None

    def children(self):
        parent = self.postmaster()
        found = []
        for name in os.listdir("/proc") if parent else ():
            seen = stat(int(name)) if name.isdigit() else None
            if seen is None or seen[0] != parent.pid:
                continue
            try:
                with open("/proc/%s/cmdline" % name, encoding="utf8", errors="replace") as file:
                    title = file.read().rstrip("\0 ")
            except OSError:
                continue
            found.append(Process(int(name), seen[1], title.removeprefix("postgres: ")))
        return found

    def find(self, *beginnings):
        return [p for p in self.children() if p.title.startswith(beginnings)]

    def one(self, *beginnings):
        found = self.find(*beginnings)
        return [random.choice(found)] if found else []

    def kill_postmaster(self):
        """Returns the processes of evbus that were still there five seconds later."""
        parent, children = self.postmaster(), self.children()
        if parent is None:
            return []
        send(parent, signal.SIGKILL)
        for process in children:
            send(process, signal.SIGCONT)   # one that is frozen cannot notice
        deadline = time.monotonic() + 5
        while any(map(alive, children)) and time.monotonic() < deadline:
            time.sleep(0.02)
        left = [p for p in children if alive(p)]
        for process in left:
            send(process, signal.SIGKILL)
        while any(map(alive, children)):
            time.sleep(0.02)
        return [p for p in left if p.title.startswith("evbus")]
