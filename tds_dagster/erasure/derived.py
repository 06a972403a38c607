"""Removes everything that was made of erased records, notes what has to be built again, and builds it.

First all of it goes, then all of it is built, each thing noted before it is touched: killed in between, the journal
knows both. A curated day or shard that was built of the rewritten day already stays.
"""

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import get_args

import msgspec

from ingest.errors import DamagedFile, SourceMissing, TdsError
from ingest.pipeline.erasure import DoomedSets, drop_records, line_digest
from ingest.pipeline.partitions import DataPaths, manifest_of, replacing, sync_folder
from ingest.redaction.redactor import open_redactor
from ingest.settings import RedactionLevel, Settings
from tds_dagster.curate.artifacts import drop_manifest, locked, placing_models, read_manifest
from tds_dagster.curate.day import current_curated
from tds_dagster.curate.engine import open_engine
from tds_dagster.curate.folders import remove_finished
from tds_dagster.curate.raw import open_raw
from tds_dagster.datasets.build import build_dataset
from tds_dagster.datasets.manifest import LATEST, SourceDay, latest_version, read_dataset
from tds_dagster.datasets.recipe import MODELS, Recipe
from tds_dagster.erasure.journal import (
    DatasetToBuild,
    DayToBuild,
    Entry,
    ErasedDataset,
    Journal,
    LatestDataset,
    RangeToBuild,
    TaintedModel,
)
from tds_dagster.erasure.selection import Progress, mentions, quarantined_lines
from tds_dagster.export.days import BuiltDay, build_days
from tds_dagster.export.manifest import Shard
from tds_dagster.export.ranges import export_range
from tds_dagster.export.selection import Selection

TAINTED = "tainted.json"  # beside the manifest of a model that was trained on erased records


class _Day(msgspec.Struct):
    day: str
    sha256: str


class AnyExport(msgspec.Struct):
    """What every manifest of a range or a selection says."""

    kind: str
    start: str
    end: str
    redaction: RedactionLevel
    partitions: list[_Day] = []
    selection: Selection | None = None
    failed: dict[str, str] = {}


class _AnyModel(msgspec.Struct):
    """What every manifest of a model says."""

    dataset: str


Kept = Mapping[str, Collection[str]]  # damaged days that were not erased from, by kind


def _affected_days(journal: Journal, kept: Kept) -> dict[str, list[str]]:
    """The days that lost something, by kind, in order."""
    return {
        kind: sorted({*doomed.records, *doomed.lines}.difference(kept[kind]))
        for kind, doomed in journal.intent.doomed.items()
    }


def purge(settings: Settings, journal: Journal, kept: Kept) -> None:
    """Remove what was made of erased records: curated days, shards, ranges, datasets, and what killed builds left.

    What was made of `kept` days alone stays: it cannot be built again, and may be all that is left of their rows.
    """
    paths, affected = DataPaths(settings.data_dir), _affected_days(journal, kept)
    for kind, doomed in journal.intent.doomed.items():
        for day in affected[kind]:
            _purge_day(paths, journal, kind, day, set(doomed.lines.get(day, ())))
        with locked(paths, f"{kind}_ranges"):
            _purge_ranges(paths, journal, kind, set(affected[kind]), DoomedSets(doomed))
        _purge_rejected_files(paths, journal, kind)
    for model in MODELS:
        if paths.datasets(model).is_dir():
            with locked(paths, f"dataset_{model}"):
                _purge_datasets(paths, journal, model, affected)
    _remove_leftovers(paths)


def _purge_day(paths: DataPaths, journal: Journal, kind: str, day: str, lines: set[str]) -> None:
    with locked(paths, f"{kind}_{day}"):
        with open_raw(paths, kind) as raw_days:
            try:
                curated = current_curated(paths, kind, raw_days.settled_day(day))
                if _still_shows(paths.quarantine(kind, day), lines):
                    curated = None
            except DamagedFile:
                curated = None  # damaged after it was erased from: what was made of it before goes all the same
        shard = read_manifest(paths.shard(kind, day), Shard)
        if curated is None or shard is None or shard.source_sha256 != curated.sha256:
            to_build = [] if shard is None else [DayToBuild(kind, day, shard.redaction)]
            _remove(journal, [paths.shard(kind, day)], *to_build)
        if curated is None:
            _remove(journal, [paths.curated(kind, day), paths.quarantine(kind, day)])


def _still_shows(quarantine: Path, lines: set[str]) -> bool:
    """Whether a quarantine file holds one of the lines, given by their digests: the ledger may have lost it before."""
    return (
        bool(lines)
        and quarantine.exists()
        and any(line_digest(line) in lines for line in quarantined_lines(quarantine))
    )


def _remove(journal: Journal, artifacts: Iterable[Path], *to_build: Entry) -> None:
    """Remove artifacts and their manifests, where they are there; noted before, with what is to be built again."""
    present = [path for path in artifacts if path.exists()]
    journal.note(*to_build, *(journal.change_of(path, _digest(path), None) for path in present))
    for path in present:
        drop_manifest(path)
        path.unlink()
        sync_folder(path.parent)


def _digest(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _is_clean(paths: DataPaths, kind: str, source: _Day | SourceDay, days: Iterable[str]) -> bool:
    """Whether a source of an artifact is no affected day, or its shard as it was built since."""
    if source.day not in days:
        return True
    shard = read_manifest(paths.shard(kind, source.day), Shard)
    return shard is not None and shard.sha256 == source.sha256


def _purge_ranges(paths: DataPaths, journal: Journal, kind: str, days: set[str], doomed: DoomedSets) -> None:
    """Remove ranges and selections that have one of the days, and artifacts that no manifest describes."""
    folder, latest = paths.range_export(kind, "", "").parent, paths.latest_export(kind)
    kept_latest: list[RangeToBuild] = []
    present = set(folder.glob("*.manifest.json"))
    for manifest in sorted(folder.glob("*.manifest.json"), key=lambda path: path.stat().st_mtime_ns):
        artifacts = artifacts_of(folder, manifest)
        try:
            export = msgspec.json.decode(manifest.read_bytes(), type=AnyExport)
        except msgspec.DecodeError:  # damaged: nobody can tell what is in it
            _remove(journal, artifacts)
            manifest.unlink(missing_ok=True)
            continue
        is_redacted = export.selection is not None and not export.selection.is_of(manifest)
        to_build = RangeToBuild(
            kind, export.start, export.end, export.redaction, export.selection, allow_missing=bool(export.failed),
            names_the_subject=is_redacted or _names_the_subject(export.selection, journal),
        )  # fmt: skip
        is_latest = latest.exists() and any(latest.samefile(artifact) for artifact in artifacts)
        if all(_is_clean(paths, kind, source, days) for source in export.partitions):
            kept_latest += [to_build] if is_latest else []
            continue
        _remove(journal, [*artifacts, latest] if is_latest else artifacts, to_build)
        manifest.unlink(missing_ok=True)
    left = set(folder.glob("*.manifest.json"))
    if left != present:
        journal.note(*kept_latest)  # behind the others, so that it is the latest again
    described = {path for manifest in left for path in artifacts_of(folder, manifest)}
    strangers = [path for path in folder.glob("[!.]*") if path.is_file() and path not in {*left, *described}]
    _remove(journal, strangers)
    if latest.exists() and not any(latest.samefile(path) for path in described):
        _purge_latest(journal, latest, doomed)


def artifacts_of(folder: Path, manifest: Path) -> list[Path]:
    """The artifacts that a manifest stands beside: of its name, whatever they end in."""
    stem = manifest.name.removesuffix(".manifest.json")
    return [
        path for path in folder.iterdir()
        if path != manifest and path.name.partition(".")[0] == stem.partition(".")[0] and manifest_of(path) == manifest
    ]  # fmt: skip


def _purge_latest(journal: Journal, latest: Path, doomed: DoomedSets) -> None:
    """Leave the records out of a latest export that is a file of its own, because its range was removed."""
    if not any(doomed.has_record(line) for line in _lines(latest)):
        return
    old = _digest(latest)
    with replacing(latest) as out:
        out.writelines(line for line in _lines(latest) if not doomed.has_record(line))
    journal.note_file(latest, old, _digest(latest))


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as source:
        yield from source


def _purge_rejected_files(paths: DataPaths, journal: Journal, kind: str) -> None:
    """Leave out of day files that were rejected whole what holds the ids or texts that were asked for."""
    is_asked = mentions(journal.intent.ids, tuple(journal.intent.texts))
    for path in paths.quarantine(kind, "").parent.glob("*.csv"):
        old = _digest(path)
        if drop_records(path, is_asked):
            journal.note_file(path, old, _digest(path))


def _purge_datasets(paths: DataPaths, journal: Journal, model: str, affected: dict[str, list[str]]) -> None:
    """Remove the versions of a dataset that were made of an affected day, and what killed builds left."""
    home, latest = paths.datasets(model), latest_version(paths, model)
    if latest is not None:
        journal.note(LatestDataset(model, latest))
    for folder in sorted(path for path in home.iterdir() if path.is_dir()):
        if folder.name.startswith("."):
            shutil.rmtree(folder)
            continue
        try:
            dataset = read_dataset(folder)
        except SourceMissing:  # damaged, or of another version of this program: nobody can tell what is in it
            journal.note(DatasetToBuild(model, folder.name, None))
        else:
            if all(_is_clean(paths, day.kind, day, affected.get(day.kind, ())) for day in dataset.sources):
                continue
            named = (*dataset.recipe.include, *dataset.recipe.exclude)
            is_named = dataset.recipe_redacted or _names_the_subject(dataset.recipe, journal, named)
            recipe = None if is_named else dataset.recipe
            changes = [journal.change_of(folder / file.path, file.sha256, None) for file in dataset.files]
            journal.note(DatasetToBuild(model, folder.name, recipe), *changes)
        if latest == folder.name:
            (home / LATEST).unlink()
        remove_finished(folder)


def _names_the_subject(what: Recipe | Selection | None, journal: Journal, ids: Iterable[str] = ()) -> bool:
    """Whether a recipe or a selection holds an id or text that was asked for; `ids` may also be erased records'."""
    if any(not DoomedSets(doomed).records.isdisjoint(ids) for doomed in journal.intent.doomed.values()):
        return True
    return mentions(journal.intent.ids, tuple(journal.intent.texts))(msgspec.json.encode(what))


def _remove_leftovers(paths: DataPaths) -> None:
    """Remove temporary files of writers that were killed: those whose lock is free, and links that were not moved."""
    for name in ("training", "curated", "exports", "datasets", "quarantine", "models", "state"):
        for path in (paths.root / name).rglob(".*.tmp"):
            with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as left:
                fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
    for path in (paths.root / "training").glob(".*.link"):
        path.unlink(missing_ok=True)
    with open_engine(paths) as engine:
        engine.folder.exists()  # the folder's making removes those that killed builds left


def rebuild(
    settings: Settings, journal: Journal, kept: Kept, progress: Progress
) -> tuple[list[ErasedDataset], dict[str, str]]:
    """Build again what was removed. Gives the datasets, and what could not be built with the reason."""
    paths = DataPaths(settings.data_dir)
    failed: dict[str, str] = {}
    for kind, days in _affected_days(journal, kept).items():
        failed |= _built(paths, journal, kind, build_days(paths, kind, days, stages=("curated",), progress=progress))
        for level in get_args(RedactionLevel):
            exported = [
                entry.day
                for entry in journal.entries
                if isinstance(entry, DayToBuild) and (entry.kind, entry.redaction) == (kind, level)
            ]
            if exported:
                redactor = open_redactor(settings, level)
                failed |= _built(
                    paths, journal, kind, build_days(paths, kind, exported, redactor=redactor, progress=progress)
                )
    for entry in [entry for entry in journal.entries if isinstance(entry, RangeToBuild)]:
        failed |= _build_range(settings, journal, entry)
    datasets = [
        _build_dataset(settings, journal, entry, failed)
        for entry in list(journal.entries)
        if isinstance(entry, DatasetToBuild)
    ]
    _restore_latest(paths, journal, datasets)
    return datasets, failed


def _built(paths: DataPaths, journal: Journal, kind: str, days: Iterable[BuiltDay]) -> dict[str, str]:
    """Note what was built; gives what was not, with the reason."""
    failed = {}
    for day, curated, shard, error in days:
        changes = [journal.change_of(built.path, "", built.sha256) for built in (curated, shard) if built is not None]
        quarantine = paths.quarantine(kind, day)
        if quarantine.exists():
            changes.append(journal.change_of(quarantine, "", _digest(quarantine)))
        journal.note(*changes)
        if error is not None:
            failed[f"{kind} of {day}"] = str(error)
    return failed


def _restore_latest(paths: DataPaths, journal: Journal, datasets: Iterable[ErasedDataset]) -> None:
    """Have each `latest.json` name what it named before, or what stands for that now."""
    built = {(each.model, each.version): each.built_again_as for each in datasets}
    before = {entry.model: entry.version for entry in reversed(journal.entries) if isinstance(entry, LatestDataset)}
    for model, version in before.items():  # as it stood at first: a build of the same erasure may have changed it
        latest = built.get((model, version), version)
        if latest is not None and latest != latest_version(paths, model):
            with replacing(paths.datasets(model) / LATEST) as out:
                out.write(msgspec.json.encode({"version": latest}) + b"\n")


def _build_range(settings: Settings, journal: Journal, entry: RangeToBuild) -> dict[str, str]:
    paths, name = DataPaths(settings.data_dir), f"{entry.kind} from {entry.start} to {entry.end}"
    if entry.names_the_subject:
        return {f"a selection of {name}": "its condition names what was erased, or is redacted: select it again"}
    if entry.selection is None or entry.selection.redaction is None:
        settings = msgspec.structs.replace(settings, redaction=entry.redaction)
    try:
        export = export_range(
            paths, entry.kind, entry.start, entry.end, allow_missing=entry.allow_missing,
            keep_ranges=settings.keep_ranges, settings=settings, selection=entry.selection,
        )  # fmt: skip
    except TdsError as err:
        return {name: str(err)}
    copies = [] if entry.selection is not None else [paths.latest_export(entry.kind)]
    journal.note(*(journal.change_of(path, "", export.sha256) for path in [export.path, *copies]))
    return {}


def _build_dataset(
    settings: Settings, journal: Journal, entry: DatasetToBuild, failed: dict[str, str]
) -> ErasedDataset:
    name = f"datasets/{entry.model}/{entry.version}"
    if entry.recipe is None:
        failed[name] = "its recipe names what was erased, or is redacted or damaged: build it again"
        return ErasedDataset(entry.model, entry.version, None)
    try:
        built = build_dataset(settings, entry.recipe)
    except TdsError as err:
        failed[name] = str(err)
        return ErasedDataset(entry.model, entry.version, None)
    journal.note(*(journal.change_of(built.folder / file.path, "", file.sha256) for file in built.files))
    return ErasedDataset(entry.model, entry.version, built.version)


def taint_models(paths: DataPaths, erasure_id: str, datasets: Iterable[ErasedDataset]) -> list[TaintedModel]:
    """Put a mark beside the manifest of each model that was, or may have been, trained on an erased dataset.

    Models are not changed: what a model has learnt of single records nobody can cut out. The mark says which erasure.
    The datasets have to be gone: a model that is still in training is then not put in place.
    """
    tainted = []
    for home in sorted(path for path in (paths.root / "models").glob("*") if path.is_dir()):
        erased = {
            each.version for each in datasets if each.model == home.name and each.built_again_as != each.version
        }  # fmt: skip
        if erased:
            with placing_models(paths, home.name):
                tainted += [_tainted(manifest, erasure_id, erased) for manifest in sorted(home.glob("*/manifest.json"))]
    return [each for each in tainted if each is not None]


def _tainted(manifest: Path, erasure_id: str, erased: Collection[str]) -> TaintedModel | None:
    """Mark a model that was trained on one of these versions of its dataset; None if it was not."""
    if manifest.parent.is_symlink():
        return None  # `champion` points at one of the others
    try:
        trained_on = msgspec.json.decode(manifest.read_bytes(), type=_AnyModel).dataset.rpartition("/")[2]
    except msgspec.DecodeError:
        trained_on = ""  # it does not say: it may have been any
    if trained_on and trained_on not in erased:
        return None
    with replacing(manifest.with_name(TAINTED)) as out:
        out.write(msgspec.json.encode({"erasure": erasure_id, "dataset": trained_on}) + b"\n")
    return TaintedModel(manifest.parent.parent.name, manifest.parent.name, trained_on)


Observe = Callable[[str, list[ErasedDataset], list[TaintedModel]], None]  # the erasure's id, and what to tell of
