"""The ledger of a client: lines of words in a file of its own, outside the server.

A line is written before anything that it announces is done, and is on disk by then; a line about an outcome is
written at once and is on disk with the next line that announces something, at the latest.  Times are of
CLOCK_MONOTONIC, which is the same for all processes of a machine.
"""
import os
import time


def now():
    return "%.6f" % time.monotonic()


class Ledger:
    def __init__(self, path):
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def announce(self, *words):
        self.note(*words)
        os.fdatasync(self.fd)

    def note(self, *words):
        os.write(self.fd, (" ".join(map(str, words)) + "\n").encode())

    def note_all(self, lines):
        """Several lines, on disk when this returns."""
        os.write(self.fd, "".join(" ".join(map(str, words)) + "\n" for words in lines).encode())
        os.fdatasync(self.fd)


def lines(path):
    """The whole lines of a ledger as lists of words; what a kill cut off is not there."""
    with open(path, encoding="ascii") as file:
        for line in file:
            if line.endswith("\n"):
                yield line.split()
