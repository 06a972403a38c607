"""Moves what this process accepted on, in one background thread: to the CSV files, or into Synapse.

The thread belongs to the process, starts with its first record and also moves what dead processes left in the same
spool. Where another process holds a kind's lock, that one does it, and this thread stands by.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

from ingest.pipeline.forking import inside, is_forking, step_outside
from ingest.records import KINDS
from ingest.settings import Settings

if TYPE_CHECKING:
    from ingest.pipeline.lanes import Lane

_IDLE_S = 0.02
_SYNC_INTERVAL_S = 0.2

logger = logging.getLogger(__name__)


class Carrier:
    """The background thread of one process."""

    def __init__(self, settings: Settings, sync: Callable[[], None]) -> None:
        """Start the thread. `sync` brings the process's spool to the disk and lets go of full segments."""
        self._settings, self._sync = settings, sync
        self._keeps_ledgers = settings.redis_url is None
        self._stop, self._wake = threading.Event(), threading.Event()
        self._lanes: dict[str, Lane] = {}
        self._next_sync = 0.0
        self._thread = threading.Thread(target=self._run, name="tds-carrier", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether the thread lives."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Look at the spool now."""
        self._wake.set()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the thread after its present step; locks go free. May be called twice."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout_s)

    def abandon(self) -> None:
        """In a forked child, where the thread does not exist: let go of the inherited copies of the locks."""
        for lane in self._lanes.values():
            lane.lock.release()

    def _run(self) -> None:
        # Embedded, its lanes keep ledgers open. A shipper has none, and may wait for Redis longer than a fork should.
        with inside() if self._keeps_ledgers else nullcontext():
            self._carry()

    def _carry(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    moved = sum(self._step(kind) for kind in KINDS)
                except OSError:
                    moved = 0  # the spool's folder cannot be looked at: whoever stores is told
                self._sync_at_times()
                if self._keeps_ledgers and is_forking():
                    for lane in self._lanes.values():
                        lane.pause()
                    step_outside()
                if not moved:
                    self._wake.wait(_IDLE_S)
                    self._wake.clear()
            for lane in self._lanes.values():
                lane.step(last=True)  # a spool closed just now leaves nothing behind where all of it is written
        finally:
            for lane in self._lanes.values():
                lane.close()

    def _step(self, kind: str) -> int:
        lane = self._lanes.get(kind)
        if lane is None:
            if not (self._settings.spool / kind).is_dir():
                return 0
            from ingest.pipeline.lanes import Lane  # 15 ms to import: spent in this thread, not in a call

            lane = self._lanes[kind] = Lane(self._settings, kind)
        return lane.step()

    def _sync_at_times(self) -> None:
        if time.monotonic() >= self._next_sync:
            self._next_sync = time.monotonic() + _SYNC_INTERVAL_S
            try:
                self._sync()
            except OSError as err:
                logger.warning(
                    "%s: the spool cannot be synced: %s; records survive the process",
                    self._settings.spool,
                    err,
                )
