"""Turns files and folders into the list of artifacts in them that are not what they should be.

| artifact | is held against |
|---|---|
| a manifest | its own checksums, and what its artifact and its sources say |
| a curated day, its quarantine file | its manifest, and what its raw day gives again, built in a scratch folder |
| a shard | its manifest, and what its curated day gives again |
| a range | its manifest, and the shards that it names; what was selected of one, the same selection made again |
| `training/<kind>_training.jsonl`, the card and the Croissant file of a kind | the range that they show |
| a folder with a `manifest.json` (a dataset) | that manifest, which names every file, and what its shards give again |
| a folder below `models`, but for the mark of an erasure | its manifest, which names every file |
| an artifact outside the data folder | the manifest beside it |
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Literal

import msgspec

from ingest.errors import SourceMissing
from ingest.pipeline.partitions import DataPaths, day_of, manifest_of
from ingest.records import KINDS
from ingest.settings import Settings
from tds_dagster.curate.artifacts import locked
from tds_dagster.curate.engine import open_engine
from tds_dagster.curate.raw import RawDays, open_raw
from tds_dagster.export.checker import MANIFEST_ENDING, Checker, Finding, artifact_of
from tds_dagster.export.day_check import DayCheck
from tds_dagster.export.folder_check import FOLDER_MANIFEST, FolderCheck, check_pointer
from tds_dagster.export.range_check import RangeCheck

Progress = Callable[[str, int, int], None]  # what is being checked, how many are done, how many there are


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What was read, and what was found."""

    files: int
    bytes: int
    findings: list[Finding]

    @property
    def is_sound(self) -> bool:
        """Whether all that was read is as it was built; stale files may be among it."""
        return all(finding.state == "stale" for finding in self.findings)


class Target(msgspec.Struct, frozen=True, order=True):
    """Something to check."""

    kind: str  # "" for what belongs to no kind
    what: Literal["day", "range", "shown", "folder", "pointer", "alone"]
    name: str  # of a day, else the path
    part: str = ""  # of a day: curated, quarantine or shard


class Alone(msgspec.Struct, frozen=True):
    """What matters here of a manifest beside an artifact of any sort."""

    path: Path
    bytes: int
    sha256: str


def verify(settings: Settings, targets: Sequence[Path] = (), *, progress: Progress | None = None) -> Verification:
    """Read artifacts again, and what they were made from: files, or folders with all in them; default: the data folder.

    Nothing is changed; while a day is looked at its lock is held, so that no build changes it either.
    Raises SourceMissing for a path that is not there, or in which there is nothing that can be checked.
    """
    paths = DataPaths(settings.data_dir.absolute())
    found = find_targets(paths, [_seen_from(paths.root, target.absolute()) for target in targets])
    with ExitStack() as stack:
        verifier = _Verifier(settings, paths, stack)
        by_name = groupby(found, key=lambda target: (target.kind, target.what, target.name))
        together = [(*names, {target.part for target in group}) for names, group in by_name]
        for done, (kind, what, name, parts) in enumerate(together):
            if progress is not None:
                progress("checked", done, len(together))
            verifier.check(kind, what, name, parts)
        checker = verifier.checker
        return Verification(files=checker.files, bytes=checker.bytes, findings=checker.findings)


def _seen_from(root: Path, path: Path) -> Path:
    """A path with the data folder's own name in front, however it was given: through a link, or with `..` in it."""
    real = path.resolve() if path.is_dir() else path.parent.resolve() / path.name
    return root / real.relative_to(root.resolve()) if real.is_relative_to(root.resolve()) else path


def find_targets(paths: DataPaths, targets: Sequence[Path]) -> list[Target]:
    """What there is to check in files and folders, in order. Raises SourceMissing as `verify` does."""
    found = set[Target]()
    for path in targets or [paths.root]:
        if path != paths.root and not path.exists() and not manifest_of(path).exists():
            raise SourceMissing(f"{path}: there is no such file or folder; pass one that is there")
        files = path.rglob("*") if path.is_dir() else [path]
        own = {target for file in files for target in _targets_of(paths, file)}
        if not own and path != paths.root:
            raise SourceMissing(
                f"{path}: holds nothing that can be checked; expected curated days, shards, ranges, quarantine "
                "files, datasets or models, or a file with its manifest beside it"
            )
        found |= own
    return sorted(found, key=lambda target: (target.kind == "", target))  # datasets behind what they are made of


def _targets_of(paths: DataPaths, file: Path) -> Iterator[Target]:
    if not file.is_relative_to(paths.root):
        yield from _targets_elsewhere(file)
        return
    parts = file.relative_to(paths.root).parts
    if any(part.startswith(".") for part in parts):
        return  # what a build is writing
    match parts:
        case ("curated" | "quarantine" as stage, kind, name) if _is_day_file(kind, name):
            yield Target(kind, "day", _day_in(name), stage)
        case ("exports", kind, "days", name) if _is_day_file(kind, name):
            yield Target(kind, "day", _day_in(name), "shard")
        case ("exports", kind, "ranges", _) if kind in KINDS:
            yield Target(kind, "range", str(artifact_of(file)))
        case ("exports", kind, "README.md" | "croissant.json") if kind in KINDS:
            yield Target(kind, "shown", str(file))
        case ("training", name) if name.endswith("_training.jsonl") and name.removesuffix("_training.jsonl") in KINDS:
            yield Target(name.removesuffix("_training.jsonl"), "shown", str(file))
        case ("datasets" | "models" as stage, model, version, *_) if (paths.root / stage / model / version).is_dir():
            yield Target("", "folder", str((paths.root / stage / model / version).resolve()))  # `champion` is a link
        case ("datasets" | "models", _, "latest.json"):
            yield Target("", "pointer", str(file))
        case _:
            return  # raw days, ledgers, spool: the writer's


def _targets_elsewhere(file: Path) -> Iterator[Target]:
    if file.name == FOLDER_MANIFEST:
        yield Target("", "folder", str(file.parent))
    elif file.name.endswith(MANIFEST_ENDING) or (file.is_file() and manifest_of(file).exists()):
        yield Target("", "alone", str(artifact_of(file)))


def _is_day_file(kind: str, name: str) -> bool:
    return kind in KINDS and re.fullmatch(rf"{kind}_[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}\.[a-z.]+", name) is not None


def _day_in(name: str) -> str:
    return day_of(Path(name.partition(".")[0]))


class _Verifier:
    """One run over many artifacts."""

    def __init__(self, settings: Settings, paths: DataPaths, stack: ExitStack) -> None:
        self.settings, self.paths, self._stack = settings, paths, stack
        self.checker = Checker()
        self._engine = stack.enter_context(open_engine(paths))
        self._raw: dict[str, RawDays] = {}

    def check(self, kind: str, what: str, name: str, parts: set[str]) -> None:
        """Check one artifact, or the parts of one day."""
        if what == "day":
            with locked(self.paths, f"{kind}_{name}"):
                DayCheck(self.checker, self.settings, self._raw_days(kind), self._engine, name).run(parts)
        elif what in {"range", "shown"}:
            with locked(self.paths, f"{kind}_ranges"):
                check = RangeCheck(self.checker, self.settings, self._engine.folder, kind)
                (check.check_range if what == "range" else check.check_shown)(Path(name))
        elif what == "folder":
            FolderCheck(self.checker, self.settings, self._engine.folder, Path(name)).run()
        elif what == "pointer":
            check_pointer(self.checker, Path(name))
        elif (built := self.checker.manifest(Path(name), Alone)) is not None:
            self.checker.judge(built, self.checker.measure(built.path), None, source="", stale=None)

    def _raw_days(self, kind: str) -> RawDays:
        """A kind's raw days as they are now."""
        if kind not in self._raw:
            self._raw[kind] = self._stack.enter_context(open_raw(self.paths, kind))
        self._raw[kind].refresh()
        return self._raw[kind]
