"""The figures that stand beside a dataset: `manifest.json`, from which every row can be followed to its shard.

It holds no path and no time of its own, so that the same build in another folder, on another day, gives the same
bytes. `rows.jsonl` beside it has a line for each row of the splits: where it stands (`split`, `line` from 1), which
record it is about (`record_id`, `timestamp`, and `session_id` or whatever the entity is, as it was split by), its class
(`label`) and a hash of it (`row`, 64 bits of SHA-256).
"""

from pathlib import Path

import msgspec

from ingest.errors import SourceMissing
from ingest.pipeline.partitions import DataPaths
from tds_dagster.curate.folders import FolderFile, read_pointer, read_sealed
from tds_dagster.curate.seal import seal
from tds_dagster.curate.sql import glob_escaped
from tds_dagster.datasets.recipe import MODELS, Recipe

MANIFEST, ROWS, CARD, CROISSANT, LATEST = "manifest.json", "rows.jsonl", "README.md", "croissant.json", "latest.json"


class SplitFile(msgspec.Struct, frozen=True, kw_only=True):
    """One split: a JSONL file."""

    rows: int
    bytes: int
    sha256: str  # hex digest of its bytes
    entities: int  # how many different ones are in it
    classes: dict[str, int]  # rows of each class, most first


class SourceDay(msgspec.Struct, frozen=True, kw_only=True):
    """A day's shard that the dataset was made from."""

    kind: str
    day: str
    rows: int
    bytes: int
    sha256: str


class Duplicates(msgspec.Struct, frozen=True, kw_only=True):
    """Examples that are the same after normalisation."""

    groups: int  # different examples that occur more than once
    removed: int  # copies left out because another split has the example
    kept: int  # copies that stay, all in the split of the first one


class Dataset(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One version of a dataset: what its manifest says."""

    model: str
    version: str  # 12 hex digits of SHA-256 over the recipe and the content
    recipe: Recipe  # with its defaults filled in, and redacted: a predicate or a list of ids may name people
    recipe_redacted: bool = False  # whether something was taken out of it: then it gives another dataset
    rule: str  # how it was split, as a sentence
    splits: dict[str, SplitFile]  # train, validation, test
    records: int  # rows of the predicted kind in the range = examples + sum(no_example)
    no_example: dict[str, int]  # by reason: records that no example was made of
    examples: int  # that were made = rows of the splits + sum(left_out)
    left_out: dict[str, int]  # by reason: examples that are in no split
    duplicates: Duplicates
    warnings: list[str]  # what somebody who trains on it should know
    sources: list[SourceDay]  # by kind and day
    redaction: str  # level
    redaction_version: str  # of policy, detectors and key
    redacted: dict[str, int]  # values replaced in the sources, by detector
    schema_version: int
    code_version: str
    inputs: str  # hex SHA-256 over recipe, sources and code: the same inputs are not built again
    files: list[FolderFile]  # all of them, in order of their path
    facts: dict[str, str] = {}  # what the model's module has to say
    # Not in the manifest.
    path: Path | None = None  # the folder
    reused: bool = False  # it was there already

    @property
    def rows(self) -> int:
        """Rows of all splits."""
        return sum(split.rows for split in self.splits.values())

    @property
    def folder(self) -> Path:
        """The folder that it was read from or written to."""
        if self.path is None:
            raise SourceMissing(f"dataset {self.model}/{self.version}: it has no folder yet; build it")
        return self.path


def read_dataset(folder: Path) -> Dataset:
    """What a dataset folder's manifest says.

    Raises SourceMissing if there is none, one that somebody changed, or none that this version of the program reads.
    """
    found = read_sealed(folder / MANIFEST, Dataset, SourceMissing, noun="dataset", make="build one with `tds dataset`")
    return msgspec.structs.replace(found, path=folder)


def find_dataset(paths: DataPaths, text: str) -> Dataset:
    """A dataset by its folder, its version (also its first digits), or `<model>/<version>`; `<model>` is its latest.

    Raises SourceMissing naming what was looked for.
    """
    if (Path(text) / MANIFEST).is_file():
        return read_dataset(Path(text))
    name, _, version = text.rpartition("/")
    if text in MODELS:
        name, version = text, latest_version(paths, text) or ""
    models = [name] if name in MODELS else list(MODELS)
    found = sorted(
        folder
        for each in models
        if version
        for folder in paths.datasets(each).glob(f"{glob_escaped(version)}*")
        if (folder / MANIFEST).is_file()
    )
    if len(found) != 1:
        held = ", ".join(str(folder) for folder in found) or "none"
        raise SourceMissing(
            f"dataset {text!r}: expected a folder, <model>/<version>, or the beginning of one version below "
            f"{paths.root / 'datasets'}; found {held}"
        )
    return read_dataset(found[0])


def latest_version(paths: DataPaths, model: str) -> str | None:
    """The version of a model's dataset that was built last; None if there is none. Raises DamagedFile."""
    return read_pointer(paths.datasets(model) / LATEST, make="build the dataset")


def manifest_bytes(dataset: Dataset) -> bytes:
    """The manifest as it is written."""
    said = msgspec.structs.replace(dataset, path=None, reused=False)
    return seal(msgspec.json.encode(said))
