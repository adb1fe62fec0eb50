"""The faults: what the driver does to server and clients, each a function that is given the driver.

A fault returns the processes it froze; the driver lets them go on a little later.
"""
import random
import signal
import time

import psycopg2

from server import alive, send

BACKENDS = {"publisher": "publisher ", "consumer": "consumer "}
WORKERS = "evbus "


def killer(*beginnings, what=signal.SIGKILL, count=1):
    def fault(driver):
        for _ in range(count):
            for process in driver.server.one(*beginnings):
                send(process, what)
        return []
    return fault


def freezer(*beginnings):
    def fault(driver):
        return [p for p in driver.server.one(*beginnings) if send(p, signal.SIGSTOP)]
    return fault


def kill_client(*kinds):
    def fault(driver):
        driver.kill_client(kinds)
        return []
    return fault


def term_all(driver):
    for process in driver.server.find(WORKERS):
        send(process, signal.SIGTERM)
    return []


def kill_postmaster(driver):
    driver.orphans(driver.server.kill_postmaster())
    return []


def immediate_stop(driver):
    driver.server.stop("immediate")
    return []


def fast_restart(driver):
    # Frozen processes cannot hear that they shall end.  And a fast stop while PostgreSQL 15 recovers from a crash
    # may not end (docs/chaos.md), so not before it is up.
    driver.thaw()
    driver.server.connect()[1].close()
    if not driver.server.stop("fast"):
        driver.violation("leaks", "after a minute of a fast stop there are still: %s" % ", ".join(p.title for p in driver.server.children()))
        driver.server.stop("immediate")
    return []


def overflow(driver):
    """No sequencer, and so many commits that the ring overflows; then it goes on."""
    frozen = [p for p in driver.server.one("evbus sequencer") if send(p, signal.SIGSTOP)]
    driver.signal_clients(("publisher",), signal.SIGUSR1)
    before = driver.overflows()
    deadline = time.monotonic() + 3
    while frozen and alive(frozen[0]) and time.monotonic() < deadline and driver.overflows() == before:
        time.sleep(0.05)
    return frozen


def overflow_and_kill(driver):
    """The same, but it dies."""
    frozen = overflow(driver)
    for process in frozen:
        send(process, random.choice((signal.SIGKILL, signal.SIGTERM)))
    return frozen


def stall_sequencer(driver):
    """It stops wherever it is, others go on for a while, and then it dies and takes the server along."""
    for process in driver.server.one("evbus sequencer"):
        send(process, signal.SIGSTOP)
        time.sleep(random.uniform(0.05, 0.8))
        send(process, signal.SIGKILL)
        send(process, signal.SIGCONT)
    return []


FAULTS = {
    # name: (weight, function)
    "kill publisher": (6, kill_client("publisher")),
    "kill consumer": (6, kill_client("one", "two")),
    "kill publisher backend": (8, killer(BACKENDS["publisher"])),
    "kill consumer backend": (5, killer(BACKENDS["consumer"])),
    "kill handler": (8, killer("evbus handler")),
    "kill sequencer": (10, killer("evbus sequencer")),
    "kill maintainer": (5, killer("evbus maintainer")),
    "kill launcher": (3, killer("evbus launcher")),
    "kill checkpointer": (4, killer("checkpointer")),
    "kill walwriter": (3, killer("walwriter")),
    "kill postmaster": (8, kill_postmaster),
    "immediate stop": (8, immediate_stop),
    "fast restart": (6, fast_restart),
    "terminate sequencer": (6, killer("evbus sequencer", what=signal.SIGTERM)),
    "terminate handler": (5, killer("evbus handler", what=signal.SIGTERM, count=2)),
    "terminate maintainer": (3, killer("evbus maintainer", what=signal.SIGTERM)),
    "terminate backend": (4, killer(*BACKENDS.values(), what=signal.SIGTERM)),
    "terminate workers": (4, term_all),
    "freeze sequencer": (4, freezer("evbus sequencer")),
    "freeze handler": (3, freezer("evbus handler")),
    "freeze publisher": (4, freezer(BACKENDS["publisher"])),
    "freeze consumer": (3, freezer(BACKENDS["consumer"])),
    "overflow": (4, overflow),
    "overflow and kill": (3, overflow_and_kill),
    "stall sequencer": (8, stall_sequencer),
}


def weights(words):
    """{name: weight} out of NAME=WEIGHT,NAME,... with _ for blanks; without any: as above."""
    if not words:
        return {name: weight for name, (weight, _) in FAULTS.items()}
    chosen = {}
    for word in words.split(","):
        name, _, weight = word.replace("_", " ").partition("=")
        if name not in FAULTS:
            raise ValueError("there is no fault \"%s\"; there are: %s" % (name, ", ".join(FAULTS)))
        chosen[name] = float(weight or 1)
    return chosen


def strike(driver, name):
    try:
        return FAULTS[name][1](driver)
    except psycopg2.Error:
        return []       # the server went away under a look at it
