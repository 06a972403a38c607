"""Runs the writers: who may write a kind, from which source, and what happens when an attempt fails.

There is one writer a kind: whoever holds `state/<kind>.lock` (flock), in an agent's process or as `tds writer`. When
it dies the lock is free and another takes over. Without TDS_REDIS_URL it reads the spool, with it Synapse.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from ingest.errors import WriterBusy
from ingest.pipeline.adoption import has_unknown_files
from ingest.pipeline.exactly_once import MAX_BYTES, MAX_RECORDS, Writer
from ingest.pipeline.ledger import Commit, Ledger, Reject
from ingest.pipeline.locks import FileLock
from ingest.pipeline.partitions import DataPaths
from ingest.pipeline.spool import Batch, SpoolReader, spooled_heads
from ingest.records import kind_named
from ingest.settings import Settings

if TYPE_CHECKING:
    from ingest.pipeline.synapse import Shipper

IDLE_S = 0.02  # the pause of a writer that found nothing to do
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.1, 5.0
_REPORT_INTERVAL_S = 60.0

logger = logging.getLogger(__name__)


class Source(Protocol):
    """Where a writer takes records from. `read` goes on where it stopped; after a failure a new source is made."""

    def read(self, marks: Mapping[str, int]) -> tuple[list[Batch], list[Reject]]:
        """The next batches, and what came but is no batch; both empty if there is nothing for now."""

    def acknowledge(self, ledger: Ledger, marks: Mapping[str, int]) -> None:
        """Let go of everything that the marks cover; called after each commit."""

    def close(self) -> None:
        """Let go of files and connections."""


class SpoolSource:
    """The spool as a writer's source: embedded mode, no server."""

    def __init__(self, settings: Settings, kind: str) -> None:
        """Look at nothing yet."""
        self._reader = SpoolReader(settings.spool, kind)

    def read(self, marks: Mapping[str, int]) -> tuple[list[Batch], list[Reject]]:
        """The next batches of all producers on this host."""
        self._reader.refresh(marks)
        return self._reader.read(MAX_RECORDS, MAX_BYTES), []

    def acknowledge(self, ledger: Ledger, marks: Mapping[str, int]) -> None:
        """Delete segments that are written; a producer that ended leaves its counters in the ledger."""
        for name, producer in list(self._reader.producers.items()):
            mark = marks.get(name, 0)
            if producer.release(mark):
                ledger.commit(Commit(producers={name: producer.final_counters(mark)}))
                self._reader.forget(name)
                producer.remove()

    def close(self) -> None:
        """Close all segments."""
        self._reader.close()


class KindWriter:
    """One kind's writer and its source, made anew from the ledger after each failure."""

    def __init__(self, settings: Settings, kind: str) -> None:
        """Name the kind; nothing is opened before the first step."""
        self.kind = kind
        self.lock = FileLock(DataPaths(settings.data_dir).lock(kind))
        self._settings = settings
        self._writer: Writer | None = None
        self._source: Source | None = None

    def step(self) -> int:
        """Write what the source has now; gives how many records were new. The lock has to be held.

        Raises what went wrong, mostly TdsError, OSError or sqlite3.Error; nothing is lost, and the next step starts
        from the ledger.
        """
        try:
            if self._writer is None:
                self._writer = Writer(self._settings, kind_named(self.kind))
                self._writer.import_day_files()
            if self._source is None:
                self._source = _make_source(self._settings, self.kind)
            writer, source = self._writer, self._source
            batches, strays = source.read(writer.marks)
            written = writer.write(batches, strays)
            source.acknowledge(writer.ledger, writer.marks)
            if writer.files.has_received:
                writer.import_day_files()
        except BaseException:
            self.reset()
            raise
        return written

    def reset(self) -> None:
        """Close writer and source; the lock is kept."""
        source, self._source = self._source, None
        writer, self._writer = self._writer, None
        if source is not None:
            source.close()
        if writer is not None:
            writer.close()

    def close(self) -> None:
        """Close everything and let the lock go."""
        self.reset()
        self.lock.release()


class Retry:
    """How long to wait after failures in a row, and when to say so again."""

    def __init__(self, report: Callable[[str], None]) -> None:
        """`report` gets a sentence at the first failure, then once a minute, and one when things work again."""
        self._report = report
        self._delay_s = _FIRST_RETRY_S
        self._next_report = 0.0
        self._is_failing = False

    def failed(self, what: str, err: Exception) -> float:
        """Note a failure; gives the seconds to wait before the next attempt."""
        if time.monotonic() >= self._next_report:
            self._report(f"{what}: {type(err).__name__}: {err}; trying again, nothing is lost")
            self._next_report = time.monotonic() + _REPORT_INTERVAL_S
        self._is_failing = True
        delay, self._delay_s = self._delay_s, min(self._delay_s * 2, _LONGEST_RETRY_S)
        return delay

    def worked(self, what: str) -> None:
        """Note a success."""
        if self._is_failing:
            self._report(f"{what}: working again")
        self._is_failing, self._delay_s, self._next_report = False, _FIRST_RETRY_S, 0.0


def run_writers(
    settings: Settings,
    kinds: Iterable[str],
    stop: threading.Event,
    *,
    wait: bool = True,
    report: Callable[[str], None] = logger.info,
) -> None:
    """Write the kinds until `stop` is set: from Synapse, or from the spool where TDS_REDIS_URL is not set.

    With Synapse, what dead processes left in this host's spool is shipped as well. A kind that another process writes
    is stood by for, and taken over when that one ends; with `wait=False` WriterBusy is raised instead. Raises OSError
    for a data folder that cannot be written.
    """
    writers = [KindWriter(settings, kind) for kind in kinds]
    try:
        if not wait:
            _acquire_all(writers)
        for writer in writers:
            writer.lock.acquire()  # here, so that a folder that cannot be written is the caller's to hear of
        threads = [
            threading.Thread(target=_serve, args=(settings, writer, stop, report), name=f"tds-writer-{writer.kind}")
            for writer in writers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for writer in writers:
            writer.close()


def drain(settings: Settings, kinds: Iterable[str]) -> None:
    """Write what dead processes left in the spool and what day files wait for their import. Embedded mode only.

    A kind that a living process writes is left to it; where nothing waits, nothing is opened.
    """
    if settings.redis_url is not None:
        return
    for kind in kinds:
        if not (settings.spool / kind).is_dir() and not has_unknown_files(DataPaths(settings.data_dir), kind):
            continue
        writer = KindWriter(settings, kind)
        try:
            if writer.lock.acquire():
                # No more than what is there now: an agent that lives goes on storing.
                left = sum(counters.accepted for counters in spooled_heads(settings.spool, kind).values())
                while (written := writer.step()) and left > 0:
                    left -= written
        finally:
            writer.close()


def _acquire_all(writers: Iterable[KindWriter]) -> None:
    for writer in writers:
        if not writer.lock.acquire():
            raise WriterBusy(
                f"{writer.kind}: another process writes this kind; stop it, or leave out --no-wait to stand by for it"
            )


def _serve(settings: Settings, writer: KindWriter, stop: threading.Event, report: Callable[[str], None]) -> None:
    """One kind's loop, a thread of its own."""
    if not writer.lock.acquire():
        report(f"{writer.kind}: another process writes this kind; standing by to take over")
        while not writer.lock.acquire():
            if stop.wait(0.2):
                return
        report(f"{writer.kind}: taking over")
    retry, shipper = Retry(report), _make_shipper(settings, writer.kind)
    try:
        while not stop.is_set():
            try:
                moved = (0 if shipper is None else shipper.step()) + writer.step()
            except Exception as err:  # noqa: BLE001 - whatever it is: said, and tried again from the ledger
                stop.wait(retry.failed(writer.kind, err))
                continue
            retry.worked(writer.kind)
            if not moved:
                stop.wait(IDLE_S)
    finally:
        writer.close()
        if shipper is not None:
            shipper.close()


def _make_shipper(settings: Settings, kind: str) -> "Shipper | None":
    if settings.redis_url is None:
        return None
    from ingest.pipeline.synapse import Shipper  # redis-py takes a quarter of a second to import

    return Shipper(settings, kind)


def _make_source(settings: Settings, kind: str) -> Source:
    if settings.redis_url is None:
        return SpoolSource(settings, kind)
    from ingest.pipeline.synapse import StreamSource  # as above

    return StreamSource(settings, kind)
