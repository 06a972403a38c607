"""Turns a model into the days that it learned from: model → dataset → shard → curated Parquet → raw CSV, with states.

Each stage's manifest names what it was made of by hash, so the path is read and not remembered: the model's names the
dataset's version, the dataset's each shard with its SHA-256, a shard's its curated file, that one's the version of the
raw day in the ledger. Manifests are read and no file's content, so a year takes a moment; `tds verify` reads the files.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Literal

import msgspec

from ingest.errors import ModelMissing, SourceMissing
from ingest.pipeline.partitions import DataPaths
from tds_dagster.curate.artifacts import read_manifest
from tds_dagster.curate.day import CuratedDay, read_curated
from tds_dagster.curate.raw import RawDay, RawDays, open_raw
from tds_dagster.datasets.manifest import Dataset, SourceDay, find_dataset, read_dataset
from tds_dagster.datasets.recipe import MODELS
from tds_dagster.export.manifest import Shard
from tds_dagster.training.manifest import Model, champion_version, find_model

State = Literal["unchanged", "changed", "erased", "missing"]
STATES: tuple[State, ...] = ("unchanged", "changed", "erased", "missing")


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One day's file at one stage, as it is now."""

    path: str
    version: str | None  # hex SHA-256; of raw, the ledger's version; None where it is not there
    is_there: bool


class DayLineage(msgspec.Struct, frozen=True, kw_only=True):
    """A day that was learned from, back to the rows that the writer stored."""

    kind: str
    day: str
    rows: int  # of the shard that was learned from
    sha256: str  # its hash
    state: State
    reason: str  # in words; empty for an unchanged day
    shard: Stage
    curated: Stage
    raw: Stage


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model, or a dataset, comes from."""

    model: str
    version: str | None  # of the model; None where a dataset was asked for
    path: str | None
    is_champion: bool
    is_tainted: bool
    dataset: str  # version
    dataset_path: str | None  # None: it is gone
    days: list[DayLineage]  # by kind and day

    @property
    def states(self) -> dict[State, int]:
        """How many days are in each state."""
        return {state: sum(day.state == state for day in self.days) for state in STATES}


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """Neighbouring days of one kind in one state."""

    kind: str
    start: str
    end: str
    days: int
    rows: int
    state: State
    reason: str


def trace(paths: DataPaths, text: str) -> Lineage:
    """Follow a model (`<model>`: its champion; a version; a folder) or a dataset's version to its days.

    Raises ModelMissing if neither a model nor a dataset is meant.
    """
    try:
        model = find_model(paths, text)
    except ModelMissing as err:
        if text in MODELS and champion_version(paths, text) is not None:
            raise  # its champion is damaged or gone: the days of another dataset are not what was asked for
        try:
            return _traced(paths, None, find_dataset(paths, text))
        except SourceMissing:
            raise err from None
    try:
        dataset = read_dataset(paths.dataset(model.model, model.dataset))
    except SourceMissing:
        dataset = None
    return _traced(paths, model, dataset)


def spans(days: Sequence[DayLineage]) -> list[Span]:
    """The days as a person reads them: runs of one kind and state together."""
    groups = groupby(days, key=lambda day: (day.kind, day.state, day.reason))
    runs = [list(group) for _, group in groups]
    return [
        Span(
            kind=run[0].kind, start=run[0].day, end=run[-1].day, days=len(run), rows=sum(day.rows for day in run),
            state=run[0].state, reason=run[0].reason,
        )
        for run in runs
    ]  # fmt: skip


def _traced(paths: DataPaths, model: Model | None, dataset: Dataset | None) -> Lineage:
    name = model.model if model is not None else dataset.model if dataset is not None else ""
    return Lineage(
        model=name,
        version=None if model is None else model.version,
        path=None if model is None else str(model.folder),
        is_champion=model is not None and champion_version(paths, name) == model.version,
        is_tainted=model is not None and model.is_tainted,
        dataset=model.dataset if model is not None else dataset.version if dataset is not None else "",
        dataset_path=None if dataset is None else str(dataset.folder),
        days=[] if dataset is None else _days(paths, dataset.sources),
    )


def _days(paths: DataPaths, sources: Iterable[SourceDay]) -> list[DayLineage]:
    with ExitStack() as stack:
        raw: dict[str, RawDays | None] = {}
        for kind in {source.kind for source in sources}:
            raw[kind] = stack.enter_context(open_raw(paths, kind)) if paths.ledger(kind).exists() else None
        return [_day(paths, source, raw) for source in sources]


def _day(paths: DataPaths, source: SourceDay, raw_days: Mapping[str, RawDays | None]) -> DayLineage:
    kind, day, known = source.kind, source.day, raw_days[source.kind]
    shard, curated = read_manifest(paths.shard(kind, day), Shard), read_curated(paths, kind, day)
    raw = None if known is None else known.day(day)
    raw_path = paths.training(kind, day)
    stages = (
        _stage(paths.shard(kind, day), None if shard is None else shard.sha256),
        _stage(paths.curated(kind, day), None if curated is None else curated.sha256),
        _stage(raw_path, None if raw is None or raw.file is None else raw.version),
    )
    state, reason = _state(source, shard, curated, raw, stages[0], stages[2])
    if state == "changed" and known is not None and known.found_erased(day):
        state, reason = "erased", f"{reason}; records of it are erased"
    return DayLineage(
        kind=kind, day=day, rows=source.rows, sha256=source.sha256, state=state, reason=reason,
        shard=stages[0], curated=stages[1], raw=stages[2],
    )  # fmt: skip


def _state(
    source: SourceDay,
    shard: Shard | None,
    curated: CuratedDay | None,
    raw: RawDay | None,
    shard_now: Stage,
    raw_now: Stage,
) -> tuple[State, str]:
    if not raw_now.is_there:
        return "missing", "its CSV file is gone"
    if shard is None or not shard_now.is_there:
        return "missing", "its shard is gone; export the day again"
    if shard.sha256 != source.sha256:
        return "changed", "exported anew since"
    if curated is None or curated.sha256 != shard.source_sha256:
        return "changed", "curated anew since"
    if raw is None or curated.source_version != raw.version:
        return "changed", "rows came since, and are not exported yet"
    return "unchanged", ""


def _stage(path: Path, version: str | None) -> Stage:
    is_there = path.exists()
    return Stage(path=str(path), version=version if is_there else None, is_there=is_there)
