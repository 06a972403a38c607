"""Keeps SQLite out of forks: while a process forks, no thread of it has a ledger open.

What SQLite knows of its locks belongs to the process, the locks do not pass on to a child: a child that had inherited
an open ledger, and then opened it itself, held no lock that others could see. The next process that closed the ledger
took itself for the last one and removed the write-ahead log, into which the child went on to commit. Rows that were
committed, their records deleted from the spool, were gone (sqlite.org/howtocorrupt.html, 2.6).

Who opens a ledger is `inside`; who keeps one open looks at `is_forking`, closes it and goes outside for a moment. A
fork waits until nobody is inside.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_PATIENCE_S = 10.0  # a fork out of the middle of a look at a ledger would wait for itself


class _Gate:
    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0  # threads
        self._forking = 0
        self._depth = threading.local()  # how often this thread is inside

    @property
    def is_forking(self) -> bool:
        return self._forking > 0

    def enter(self) -> None:
        depth = getattr(self._depth, "n", 0)
        if not depth:
            with self._condition:
                self._condition.wait_for(lambda: not self._forking, _PATIENCE_S)
                self._inside += 1
        self._depth.n = depth + 1

    def leave(self) -> None:
        self._depth.n -= 1
        if not self._depth.n:
            with self._condition:
                self._inside -= 1
                self._condition.notify_all()

    def close(self) -> None:
        with self._condition:
            self._forking += 1
            self._condition.wait_for(lambda: not self._inside, _PATIENCE_S)

    def open(self) -> None:
        with self._condition:
            self._forking -= 1
            self._condition.notify_all()


_gate = _Gate()


@contextmanager
def inside() -> Iterator[None]:
    """While a ledger is open. Waits for a fork that is under way."""
    gate = _gate
    gate.enter()
    try:
        yield
    finally:
        gate.leave()


def is_forking() -> bool:
    """Whether a thread of this process waits to fork: who keeps a ledger open has to close it."""
    return _gate.is_forking


def step_outside() -> None:
    """Let a fork go first, in a thread that is inside and has closed its ledgers."""
    gate = _gate
    gate.leave()
    gate.enter()


def _close_gate() -> None:
    _gate.close()


def _open_gate() -> None:
    _gate.open()


def _begin_anew_in_child() -> None:
    global _gate  # noqa: PLW0603 - the child has one thread, and it is outside
    _gate = _Gate()


os.register_at_fork(before=_close_gate, after_in_parent=_open_gate, after_in_child=_begin_anew_in_child)
