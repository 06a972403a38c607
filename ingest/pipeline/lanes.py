"""Moves one kind on, with pauses after failures: by its embedded writer, or by its shipper to Synapse."""

import logging
import time
from typing import TYPE_CHECKING

from ingest.pipeline.writer import KindWriter, Retry
from ingest.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.pipeline.locks import FileLock

_LOCK_INTERVAL_S = 0.2

logger = logging.getLogger(__name__)


class Lane:
    """One kind's way out of this process's spool."""

    def __init__(self, settings: Settings, kind: str) -> None:
        """Choose the way by the settings; nothing is opened before the first step."""
        self._kind = kind
        self._retry = Retry(logger.warning)
        self._not_before = 0.0
        self.lock: FileLock
        self._step: Callable[[], int]
        self._finish: Callable[[], None]
        self.pause: Callable[[], None]  # close what may not be open while the process forks
        self.close: Callable[[], None]
        if settings.redis_url is None:
            writer = KindWriter(settings, kind)
            self.lock, self._step, self._finish, self.close = writer.lock, writer.step, writer.finish, writer.close
            self.pause = writer.reset
        else:
            from ingest.pipeline.synapse import Shipper  # redis-py takes a quarter of a second to import

            shipper = Shipper(settings, kind)
            self.lock, self._step, self.close = shipper.lock, shipper.step, shipper.close
            self._finish = self.pause = _nothing  # what a step has sent is sent, and there is no ledger

    def step(self, *, last: bool = False) -> int:
        """Move what is there; gives how many records were moved. The `last` step leaves nothing under way."""
        if time.monotonic() < self._not_before:
            return 0
        try:
            if not self.lock.acquire():
                self._not_before = time.monotonic() + _LOCK_INTERVAL_S
                return 0
            moved = self._step()
            if last:
                self._finish()
        except Exception as err:  # noqa: BLE001 - whatever it is, the other kinds and the next attempt go on
            self._not_before = time.monotonic() + self._retry.failed(self._kind, err)
            return 0
        self._retry.worked(self._kind)
        return moved


def _nothing() -> None:
    """Do nothing."""
