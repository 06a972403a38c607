"""Runs the writers: who may write a kind, from which source, and what happens when an attempt fails.

There is one writer a kind: whoever holds `state/<kind>.lock` (flock), in an agent's process or as `tds writer`. When
it dies the lock is free and another takes over; an erasure asks for it, and gets it between two commits. Without
TDS_REDIS_URL the writer reads the spool, with it Synapse.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from ingest.errors import WriterBusy
from ingest.pipeline.adoption import has_unknown_files
from ingest.pipeline.exactly_once import MAX_BYTES, MAX_RECORDS, Pending, Writer
from ingest.pipeline.ledger import Commit, Ledger, Reject
from ingest.pipeline.locks import FileLock, YieldingLock
from ingest.pipeline.partitions import DataPaths
from ingest.pipeline.spool import Batch, SpoolReader, spooled_heads
from ingest.records import kind_named
from ingest.settings import Settings

if TYPE_CHECKING:
    from ingest.pipeline.synapse import Shipper

_LARGE = 2_000  # records of a commit that is worth a thread of its own
IDLE_S = 0.02  # the pause of a writer that found nothing to do
_ROUND_INTERVAL_S = 0.2  # between two looks whether a producer that has nothing new has ended
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.1, 5.0
_REPORT_INTERVAL_S = 60.0
_FOLD_INTERVAL_S = 600.0

logger = logging.getLogger(__name__)


class Source(Protocol):
    """Where a writer takes records from. `read` goes on where it stopped; after a failure a new source is made."""

    def read(self, marks: Mapping[str, int], factor: int = 1) -> tuple[list[Batch], list[Reject]]:
        """The next batches, and what came but is no batch; both empty if there is nothing for now.

        `factor` says how many times the usual amount there may be.
        """

    def acknowledge(self, ledger: Ledger, marks: Mapping[str, int], *, last: bool = False) -> None:
        """Let go of everything that the marks cover; called after each commit, and at the end as the `last` time."""

    def close(self) -> None:
        """Let go of files and connections."""


class SpoolSource:
    """The spool as a writer's source: embedded mode, no server."""

    def __init__(self, settings: Settings, kind: str) -> None:
        """Look at nothing yet."""
        self._reader = SpoolReader(settings.spool, kind)
        self._acknowledged: dict[str, int] = {}
        self._fold_after_s = timedelta(days=max(1, settings.key_days)).total_seconds()  # pipeline/ledger.py says why
        self._next_round = self._next_fold = 0.0

    def read(self, marks: Mapping[str, int], factor: int = 1) -> tuple[list[Batch], list[Reject]]:
        """The next batches of all producers on this host."""
        self._reader.refresh(marks)
        return self._reader.read(factor * MAX_RECORDS, factor * MAX_BYTES), []

    def acknowledge(self, ledger: Ledger, marks: Mapping[str, int], *, last: bool = False) -> None:
        """Delete segments that are written; a producer that ended leaves its counters in the ledger."""
        is_round = last or time.monotonic() >= self._next_round
        if is_round:
            self._next_round = time.monotonic() + _ROUND_INTERVAL_S
        for name, producer in list(self._reader.producers.items()):
            mark = marks.get(name, 0)
            if not is_round and mark == self._acknowledged.get(name):
                continue
            self._acknowledged[name] = mark
            if producer.release(mark):
                final = producer.final_counters(mark)
                ledger.commit(Commit(producers={name: final}, ended={name: int(time.time())}))
                self._reader.forget(name)
                del self._acknowledged[name]
                producer.remove()
        if time.monotonic() >= self._next_fold:  # behind the removal: a folder that is read again needs its mark
            self._next_fold = time.monotonic() + _FOLD_INTERVAL_S
            ledger.forget_folded(ledger.fold(int(time.time() - self._fold_after_s)))

    def close(self) -> None:
        """Close all segments."""
        self._reader.close()


class KindWriter:
    """One kind's writer and its source, made anew from the ledger after each failure.

    While one batch is written and fsynced, in a thread of its own, the next one is read and turned into rows: the disk
    and the processor are both kept busy. Acknowledged is what is committed, and nothing else.
    """

    def __init__(self, settings: Settings, kind: str, lock: FileLock | None = None) -> None:
        """Name the kind; nothing is opened before the first step. An erasure brings the lock that it holds."""
        self.kind = kind
        self.lock = lock or YieldingLock(DataPaths(settings.data_dir).lock(kind), self._let_go)
        self._settings = settings
        self._writer: Writer | None = None
        self._source: Source | None = None
        self._committing: _Commit | None = None

    def step(self) -> int:
        """Write what the source has now; gives how many records were new. The lock has to be held.

        Many at once may be under way to the disk when it returns; the next step, or `finish`, sees to them. Raises
        what went wrong, mostly TdsError, OSError or sqlite3.Error; nothing is lost, and the next step starts from the
        ledger.
        """
        try:
            if self._writer is None:
                self._writer = Writer(self._settings, kind_named(self.kind))
                self._writer.import_day_files()
            if self._source is None:
                self._source = _make_source(self._settings, self.kind)
            batches, strays = self._source.read(self._writer.marks, self._writer.factor)
            pending = self._writer.prepare(batches, strays)
            self._settle(self._writer, self._source)
            self._committing = _Commit(self._writer, pending)
            if pending.new < _LARGE:
                self._settle(self._writer, self._source)
        except BaseException:
            self.reset()
            raise
        return pending.new

    def finish(self) -> None:
        """See to the end of what is under way. Raises as `step`."""
        try:
            if self._writer is not None and self._source is not None:
                self._settle(self._writer, self._source)
                self._source.acknowledge(self._writer.ledger, self._writer.marks, last=True)
        except BaseException:
            self.reset()
            raise

    def _let_go(self) -> None:
        try:
            self.finish()
        finally:
            self.reset()

    def _settle(self, writer: Writer, source: Source) -> None:
        committing, self._committing = self._committing, None
        if committing is not None:
            committing.wait()
            source.acknowledge(writer.ledger, writer.marks)
            if writer.files.has_received:
                writer.import_day_files()

    def reset(self) -> None:
        """Close writer and source; the lock is kept. What is under way comes to its end, but is not acknowledged."""
        committing, self._committing = self._committing, None
        source, self._source = self._source, None
        writer, self._writer = self._writer, None
        if committing is not None:
            committing.join()
        if source is not None:
            source.close()
        if writer is not None:
            writer.close()

    def close(self) -> None:
        """Close everything and let the lock go."""
        self.reset()
        self.lock.release()


class _Commit:
    """A commit under way: a large one in a thread of its own, a small one done at once."""

    def __init__(self, writer: Writer, pending: Pending) -> None:
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if pending.new < _LARGE:
            writer.commit(pending)
        else:
            self._thread = threading.Thread(target=self._run, args=(writer, pending), name="tds-commit", daemon=True)
            self._thread.start()

    def _run(self, writer: Writer, pending: Pending) -> None:
        try:
            writer.commit(pending)
        except BaseException as err:  # noqa: BLE001 - raised where it is waited for
            self._error = err

    def join(self) -> None:
        """Wait for its end, good or bad."""
        if self._thread is not None:
            self._thread.join()

    def wait(self) -> None:
        """Wait for its end; raises what went wrong."""
        self.join()
        if self._error is not None:
            raise self._error


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
                writer.finish()
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
    retry, shipper = Retry(report), make_shipper(settings, writer.kind)
    try:
        while not stop.is_set():
            try:
                moved = 0 if shipper is None else shipper.step()
                if writer.lock.acquire():  # kept; unless an erasure asks for it, which is over soon
                    moved += writer.step()
                if stop.is_set():
                    writer.finish()
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


def make_shipper(settings: Settings, kind: str) -> "Shipper | None":
    """What brings this host's spool into Synapse; None without Redis."""
    if settings.redis_url is None:
        return None
    from ingest.pipeline.synapse import Shipper  # redis-py takes a quarter of a second to import

    return Shipper(settings, kind)


def _make_source(settings: Settings, kind: str) -> Source:
    if settings.redis_url is None:
        return SpoolSource(settings, kind)
    from ingest.pipeline.synapse import StreamSource  # as above

    return StreamSource(settings, kind)
