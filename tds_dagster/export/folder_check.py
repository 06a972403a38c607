"""Turns a folder with a `manifest.json`, a dataset's or a model's, into what is wrong with it.

Every file is held against the manifest, and none besides may be there but the mark of an erasure. A dataset in the data
folder whose shards, code and policy are those of its manifest is built again in a scratch folder, and held against that
too.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import msgspec

from ingest.errors import SourceMissing, TdsError
from ingest.pipeline.partitions import DataPaths
from ingest.redaction.redactor import open_redactor
from ingest.settings import RedactionLevel, Settings
from tds_dagster.curate.artifacts import read_manifest
from tds_dagster.export.checker import Checker
from tds_dagster.export.comparison import measure, pieces
from tds_dagster.export.manifest import Shard

if TYPE_CHECKING:
    from tds_dagster.datasets.manifest import Dataset

FOLDER_MANIFEST = "manifest.json"
_MARK = "tainted.json"  # an erasure puts it into the folder of a model
_AGAIN = "build the dataset again to have it anew"
_NOT_COMPARED = {"path", "reused"}


class NamedFile(msgspec.Struct, frozen=True):
    """A file that a folder's manifest names."""

    path: str  # relative to the folder
    bytes: int
    sha256: str


class Folder(msgspec.Struct, frozen=True):
    """What matters here of a folder's manifest."""

    files: list[NamedFile]


class _Pointer(msgspec.Struct, frozen=True):
    """Which version is the latest."""

    version: str


class _Wanted(msgspec.Struct, frozen=True):
    """A named file, where it lies."""

    path: Path
    bytes: int
    sha256: str


class FolderCheck:
    """One folder."""

    def __init__(self, checker: Checker, settings: Settings, scratch: Path, folder: Path) -> None:
        """Nothing is read yet; `scratch` is a place for a folder of the moment."""
        self.checker, self.settings, self.scratch, self.folder = checker, settings, scratch, folder
        self.paths = DataPaths(settings.data_dir.absolute())
        self.manifest = folder / FOLDER_MANIFEST

    def run(self) -> None:
        """Check the manifest, and every file that it names."""
        if not self.manifest.exists():
            reason = (
                f"has no {FOLDER_MANIFEST}, so it was not written to its end; remove the folder, and build it again"
            )
            self.checker.find(self.folder, "damaged", reason)
            return
        built = self.checker.sealed(self.manifest, Folder)
        if built is None:
            return
        there = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}
        for name in sorted(there - {file.path for file in built.files} - {FOLDER_MANIFEST, _MARK}):
            self.checker.find(self.folder / name, "damaged", "is not in the folder's manifest; remove it")
        with self._built_again() as again:
            for file in built.files:
                if file.path in there:
                    self._check_file(file, again)
                else:
                    reason = "is gone, and the manifest names it; remove the folder, and build it again"
                    self.checker.find(self.folder / file.path, "damaged", reason)

    def _check_file(self, file: NamedFile, again: Path | None) -> None:
        wanted = _Wanted(self.folder / file.path, file.bytes, file.sha256)
        if again is None or not (again / file.path).exists():
            self.checker.judge(wanted, self.checker.measure(wanted.path), None, source="", stale=None)
            return
        comparison = self.checker.compare(wanted.path, pieces(again / file.path))
        self.checker.judge(wanted, comparison.found, comparison, source="a build from the same shards", stale=None)

    @contextmanager
    def _built_again(self) -> Iterator[Path | None]:
        """The same dataset in a scratch folder, for the length of a `with`; None where it cannot be had."""
        dataset = self._dataset()
        shards = None if dataset is None else self._shards(dataset)
        if dataset is None or shards is None:
            yield None
            return
        home = self.scratch / "datasets"
        try:
            again = self._build(dataset, shards, home)
            if again is not None:
                said = {name: getattr(again, name) for name in again.__struct_fields__ if name not in _NOT_COMPARED}
                self.checker.check_fields(self.manifest, dataset, said)
            yield None if again is None else again.path
        finally:
            shutil.rmtree(home, ignore_errors=True)

    def _dataset(self) -> "Dataset | None":
        """The manifest of a dataset of this data folder; None for any other folder."""
        if not self.folder.is_relative_to(self.paths.root / "datasets"):
            return None
        from tds_dagster.datasets.manifest import read_dataset

        try:
            return read_dataset(self.folder)
        except SourceMissing as err:
            self.checker.find(
                self.manifest, "stale", f"was written by another version of this program ({err}); {_AGAIN}"
            )
            return None

    def _shards(self, dataset: "Dataset") -> list[Shard] | None:
        """The shards that it was made from; None, and a note, if a build would give something else by now."""
        from tds_dagster.datasets.build import code_version

        found = [read_manifest(self.paths.shard(source.kind, source.day), Shard) for source in dataset.sources]
        shards = [
            shard
            for shard, source in zip(found, dataset.sources, strict=True)
            if shard is not None and shard.sha256 == source.sha256 and shard.path.exists()
        ]
        stale = None
        if len(shards) != len(found):
            stale = f"{len(found) - len(shards)} of the {len(found)} shards that it names were exported anew since"
        elif dataset.code_version != code_version():
            stale = "was built by another version of this program"
        elif dataset.redaction not in get_args(RedactionLevel) or self._policy(dataset) != dataset.redaction_version:
            stale = "was redacted by another policy, or with another key"
        if stale is not None:
            self.checker.find(self.manifest, "stale", f"{stale}; {_AGAIN}")
            return None
        # A build takes the manifest of a damaged shard away: here nothing is changed.
        sound = [self.checker.judge(each, measure(each.path), None, source="", stale=None) for each in shards]
        return shards if all(sound) else None

    def _policy(self, dataset: "Dataset") -> str:
        return open_redactor(self.settings, msgspec.convert(dataset.redaction, RedactionLevel)).version

    def _build(self, dataset: "Dataset", shards: Sequence[Shard], home: Path) -> "Dataset | None":
        """Build it again, if its recipe still is the one that it was built from."""
        from tds_dagster.datasets.build import rebuild_dataset

        if dataset.recipe_redacted:
            return None
        try:
            return rebuild_dataset(self.settings, dataset, shards, home)
        except TdsError as err:
            reason = f"the dataset cannot be built from its shards again: {err}"
            self.checker.find(self.manifest, "damaged", reason)
            return None


def check_pointer(checker: Checker, path: Path) -> None:
    """Check `latest.json` of a model: the version that it names has to be there."""
    checker.measure(path)
    try:
        version = msgspec.json.decode(path.read_bytes(), type=_Pointer).version
    except (msgspec.DecodeError, UnicodeDecodeError):
        version = ""
    if not version or not path.with_name(version).is_dir():
        checker.find(path, "damaged", "names no version that is there; build the dataset, or train the model, again")
