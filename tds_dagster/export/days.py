"""Brings many days of a kind up to date, one after the other: what did not change costs a look at its manifests."""

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Literal

from ingest.errors import EngineFailed, TdsError
from ingest.pipeline.partitions import DataPaths, parse_day
from ingest.records import kind_named
from tds_dagster.curate.day import CuratedDay, curate_day
from tds_dagster.curate.engine import open_engine
from tds_dagster.curate.raw import open_raw
from tds_dagster.export.manifest import Shard
from tds_dagster.export.shard import export_day

Stage = Literal["curated", "exports"]
Progress = Callable[[str, int, int], None]  # the day, how many are done, how many there are
BuiltDay = tuple[str, CuratedDay | None, Shard | None, TdsError | None]


_ON_ALL_DAYS = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE}  # a full disk does not get better with the next day


def build_days(
    paths: DataPaths,
    kind: str,
    days: Sequence[str],
    *,
    stages: Sequence[Stage] = ("curated", "exports"),
    progress: Progress | None = None,
) -> Iterator[BuiltDay]:
    """Curate and export days; gives (day, curated, shard, error) for each, as soon as it is done.

    `stages` may name one of the two; the other's result is None. A day that fails gives its error, and the next
    one is built. Raises UnknownKind or InvalidRange before any is.
    """
    kind_named(kind)
    for day in days:
        parse_day("day", day)
    return _build_days(paths, kind, days, stages, progress)


def _build_days(
    paths: DataPaths, kind: str, days: Sequence[str], stages: Sequence[Stage], progress: Progress | None
) -> Iterator[BuiltDay]:
    with ExitStack() as stack:
        raw_days = stack.enter_context(open_raw(paths, kind))
        engine = stack.enter_context(open_engine(paths))
        if "curated" in stages:
            raw_days.settle(days)
        for done, day in enumerate(days, 1):
            curated = shard = error = None
            try:
                if "curated" in stages:
                    curated = curate_day(paths, kind, day, raw_days=raw_days, engine=engine)
                if "exports" in stages:
                    shard = export_day(paths, kind, day, raw_days=raw_days, engine=engine)
            except TdsError as err:
                error = err
            except OSError as err:
                if err.errno in _ON_ALL_DAYS:
                    raise
                error = EngineFailed(f"{kind} {day}: {err}; see to that file and run it again")
            if progress is not None:
                progress(day, done, len(days))
            yield day, curated, shard, error
