"""Brings many days of a kind up to date, several at a time: what did not change costs a look at its manifests.

Days are independent, and of a day's work a third leaves all processor cores but one idle (parsing a few megabytes,
syncing files). So one thread more than there are cores builds a day each, with a DuckDB connection of one thread: one
of them waits for the disk. A day that is too large for that has all threads of DuckDB to itself.
"""

import errno
import os
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import islice
from queue import SimpleQueue
from typing import Literal

from ingest.errors import DamagedFile, EngineFailed, TdsError
from ingest.pipeline.partitions import DataPaths, parse_day
from ingest.records import kind_named
from ingest.redaction.redactor import Redactor
from tds_dagster.curate.day import CuratedDay, curate_day, current_curated, read_curated
from tds_dagster.curate.engine import engine_errors, open_engine
from tds_dagster.curate.raw import RawDays, open_raw
from tds_dagster.curate.survey import Stamp, find_fine_days
from tds_dagster.export.lines import default_redactor
from tds_dagster.export.manifest import Shard
from tds_dagster.export.shard import current_shard, export_day

Stage = Literal["curated", "exports"]
Progress = Callable[[str, int, int], None]  # what is being done, how many days are, how many there are
BuiltDay = tuple[str, CuratedDay | None, Shard | None, TdsError | None]


_ON_ALL_DAYS = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE}  # a full disk does not get better with the next day
_MOST_THREADS = 4  # each takes 200 MB with a day of 50 MB
_LARGE_DAY_BYTES = 64 << 20  # of CSV
_MOST_AHEAD = 16  # days that are done before the caller has taken the one that it waits for


def build_days(
    paths: DataPaths,
    kind: str,
    days: Sequence[str],
    *,
    stages: Sequence[Stage] = ("curated", "exports"),
    redactor: Redactor | None = None,
    progress: Progress | None = None,
) -> Generator[BuiltDay]:
    """Curate and export days; gives (day, curated, shard, error) for each, in the order asked for.

    `stages` may name one of the two; the other's result is None. Shards are redacted by `redactor` (None: as where
    nothing is set). A day that fails gives its error, and the next one is built. Raises UnknownKind or InvalidRange
    before any is.
    """
    kind_named(kind)
    for day in days:
        parse_day("day", day)
    return _build_days(paths, kind, days, stages, redactor or default_redactor(paths), progress)


def _build_days(
    paths: DataPaths,
    kind: str,
    days: Sequence[str],
    stages: Sequence[Stage],
    redactor: Redactor,
    progress: Progress | None,
) -> Generator[BuiltDay]:
    with ExitStack() as stack:
        raw_days = stack.enter_context(open_raw(paths, kind))
        if "curated" in stages:
            raw_days.settle(days)
        built = {day: _current_day(raw_days, day, stages, redactor) for day in days}
        stale = [day for day, current in built.items() if current is None]
        threads = _thread_count(raw_days, stale)
        fine: dict[str, Stamp] = {}
        if "curated" in stages and len(stale) > 1:
            with open_engine(paths) as engine, engine_errors(f"{kind} {stale[0]} to {stale[-1]}"):
                fine = find_fine_days(raw_days, stale, engine)
        makers = [_Maker(stack, paths, kind, stale, stages, redactor, threads, fine) for _ in range(threads)]
        # Closed before what the makers have open: there may be a day under way.
        made = stack.enter_context(closing(_make_together(makers, stale)))
        for done, day in enumerate(days, 1):
            result = built[day] = built[day] or next(made)
            if progress is not None:
                progress("days exported" if "exports" in stages else "days curated", done, len(days))
            yield result


def _current_day(raw_days: RawDays, day: str, stages: Sequence[Stage], redactor: Redactor) -> BuiltDay | None:
    """The day as it was built before, if nothing has changed since."""
    paths, kind = raw_days.paths, raw_days.kind
    try:
        curated = current_curated(paths, kind, raw_days.settled_day(day)) if "curated" in stages else None
    except DamagedFile:
        return None  # told when it is built
    source = curated if "curated" in stages else read_curated(paths, kind, day)
    if source is None or "exports" not in stages:
        return None if source is None else (day, curated, None, None)
    shard = current_shard(paths, source, redactor)
    return None if shard is None else (day, curated, shard, None)


def _thread_count(raw_days: RawDays, stale: Sequence[str]) -> int:
    """How many days to build at a time."""
    sizes = [file.size for file in (raw_days.day(day).file for day in stale) if file is not None]
    if any(size > _LARGE_DAY_BYTES for size in sizes):
        return 1
    return min((os.cpu_count() or 1) + 1, _MOST_THREADS, len(stale))


class _Maker:
    """Builds days, one after the other."""

    def __init__(
        self,
        stack: ExitStack,
        paths: DataPaths,
        kind: str,
        days: Sequence[str],
        stages: Sequence[Stage],
        redactor: Redactor,
        threads: int,
        fine: Mapping[str, Stamp],
    ) -> None:
        """`stack` closes what is opened; `threads` is how many makers share the machine."""
        self.paths, self.kind, self.stages, self.redactor, self.fine = paths, kind, stages, redactor, fine
        self.raw_days = stack.enter_context(open_raw(paths, kind))
        self.engine = stack.enter_context(open_engine(paths, threads))
        if "curated" in stages:
            self.raw_days.settle(days)

    def make(self, day: str) -> BuiltDay:
        """Build a day. Raises OSError for what would stop every other day too."""
        curated = shard = error = None
        try:
            if "curated" in self.stages:
                fine = self.fine.get(day)
                curated = curate_day(self.paths, self.kind, day, raw_days=self.raw_days, engine=self.engine, fine=fine)
            if "exports" in self.stages:
                shard = export_day(
                    self.paths, self.kind, day, redactor=self.redactor, raw_days=self.raw_days, engine=self.engine
                )
        except TdsError as err:
            error = err
        except OSError as err:
            if err.errno in _ON_ALL_DAYS:
                raise
            error = EngineFailed(f"{self.kind} {day}: {err}; see to that file and run it again")
        return day, curated, shard, error


def _make_together(makers: Sequence[_Maker], days: Sequence[str]) -> Generator[BuiltDay]:
    """Build days, a thread a maker; they are given in order."""
    if len(makers) < 2:
        yield from (maker.make(day) for maker in makers for day in days)
        return
    free: SimpleQueue[_Maker] = SimpleQueue()
    for maker in makers:
        free.put(maker)

    def make(day: str) -> BuiltDay:
        maker = free.get()
        try:
            return maker.make(day)
        finally:
            free.put(maker)

    rest, waiting = iter(days), deque[Future[BuiltDay]]()
    with ThreadPoolExecutor(len(makers), thread_name_prefix="build-day") as pool:
        try:
            while True:
                waiting.extend(pool.submit(make, day) for day in islice(rest, _MOST_AHEAD - len(waiting)))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:  # Ctrl-C, a full disk, or a caller who has seen enough
            for future in waiting:
                future.cancel()
            if waiting:
                for maker in makers:
                    maker.engine.interrupt()
