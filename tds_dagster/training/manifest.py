"""The figures that stand beside a model: `manifest.json`, from which it can be followed to the days it learned from.

models/<model>/<version>/   manifest.json  README.md  predictions.jsonl  model/ (the trainer's own)  tainted.json
models/<model>/latest.json  the version that was trained last: what it has seen is not new any more
models/<model>/champion     a link to the version in use
"""

import os
from pathlib import Path

import msgspec

from ingest.errors import DamagedFile, ModelMissing
from ingest.pipeline.partitions import DataPaths
from tds_dagster.curate.folders import FolderFile, read_pointer, read_sealed
from tds_dagster.curate.seal import seal
from tds_dagster.curate.sql import glob_escaped
from tds_dagster.datasets.recipe import MODELS
from tds_dagster.training.metrics import Metrics

MANIFEST, CARD, PREDICTIONS, LATEST, CHAMPION, CONTENT = (
    "manifest.json", "README.md", "predictions.jsonl", "latest.json", "champion", "model",
)  # fmt: skip
TAINTED = "tainted.json"  # put there by an erasure of what the model was trained on


class Model(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One version of a model: what its manifest says."""

    model: str
    version: str  # 12 hex digits of SHA-256 over the inputs and what came of them
    dataset: str  # the version of the dataset
    days: str  # that the dataset was made of: first and last
    train_rows: int
    classes: dict[str, int]  # of train, most rows first
    trainer: str  # `default`, or the command
    code_version: str  # of our code that decides the figures, and of the default trainer
    inputs: str  # hex SHA-256 over dataset, trainer and code: the same inputs are not trained again
    metrics: Metrics  # on the test split of the dataset
    files: list[FolderFile]  # all of them but the manifest, in order of their path
    made_at: str  # RFC 3339; the one field in which two trainings of the same may differ
    # Not in the manifest.
    path: Path | None = None  # the folder
    reused: bool = False  # it was there already

    @property
    def folder(self) -> Path:
        """The folder that it was read from or written to."""
        if self.path is None:
            raise ModelMissing(f"model {self.model}/{self.version}: it has no folder yet; train it")
        return self.path

    @property
    def content(self) -> Path:
        """The trainer's own folder within it."""
        return self.folder / CONTENT

    @property
    def is_tainted(self) -> bool:
        """Whether records that it was trained on have been erased since."""
        return (self.folder / TAINTED).exists()


def read_model(folder: Path) -> Model:
    """What a model folder's manifest says.

    Raises ModelMissing if there is none, one that somebody changed, or none that this version of the program reads.
    """
    found = read_sealed(folder / MANIFEST, Model, ModelMissing, noun="model", make="train one with `tds train`")
    return msgspec.structs.replace(found, path=folder)


def find_model(paths: DataPaths, text: str) -> Model:
    """A model by its folder, its version (also its first digits), or `<model>/<version>`.

    `<model>` alone is its champion, or the one trained last where none was promoted yet. Raises ModelMissing naming
    what was looked for.
    """
    if (Path(text) / MANIFEST).is_file():
        return read_model(Path(text).resolve())
    if text in MODELS:
        found = champion_of(paths, text) or latest_trained(paths, text)
        if found is None:
            raise ModelMissing(f"{text}: no model was trained yet; train one with `tds train {text}`")
        return found
    name, _, version = text.rpartition("/")
    models = [name] if name in MODELS else list(MODELS)
    folders = sorted(
        folder
        for each in models
        if version and (not name or name in MODELS)
        for folder in paths.models(each).glob(f"{glob_escaped(version)}*")
        if not folder.is_symlink() and (folder / MANIFEST).is_file()
    )
    if version == CHAMPION and name in MODELS:
        folders = [paths.models(name) / CHAMPION]
    if len(folders) != 1:
        held = ", ".join(str(folder) for folder in folders) or "none"
        raise ModelMissing(
            f"model {text!r}: expected a folder, one of {', '.join(MODELS)}, <model>/<version>, or the start of one "
            f"version below {paths.root / 'models'}; found {held}"
        )
    return read_model(folders[0].resolve())


def trained_versions(paths: DataPaths, model: str) -> list[str]:
    """The versions in place, the one trained last at the end."""
    manifests = [
        folder / MANIFEST
        for folder in (paths.models(model).iterdir() if paths.models(model).is_dir() else ())
        if not folder.is_symlink() and not folder.name.startswith(".") and (folder / MANIFEST).is_file()
    ]
    return [path.parent.name for path in sorted(manifests, key=lambda path: (path.stat().st_mtime_ns, path))]


def latest_trained(paths: DataPaths, model: str) -> Model | None:
    """The version that was trained last; None if there is none. Raises DamagedFile, ModelMissing."""
    version = latest_trained_version(paths, model)
    return None if version is None else read_model(paths.model(model, version))


def latest_trained_version(paths: DataPaths, model: str) -> str | None:
    """Its version, whether or not that can be read. Raises DamagedFile."""
    return read_pointer(paths.models(model) / LATEST, make="train the model")


def champion_version(paths: DataPaths, model: str) -> str | None:
    """The version in use; None if none was promoted yet. Raises DamagedFile if the link is something else."""
    link = paths.models(model) / CHAMPION
    try:
        return os.path.basename(os.readlink(link))  # noqa: PTH115, PTH119 - a link's text, not what it resolves to
    except FileNotFoundError:
        return None
    except OSError as err:
        raise DamagedFile(
            f"{link}: expected a link to the version in use ({err.strerror}); move what is there away, and "
            f"`tds rollback {model} --to VERSION` puts a version in use"
        ) from err


def champion_of(paths: DataPaths, model: str) -> Model | None:
    """The model in use; None if none was promoted yet. Raises ModelMissing if it is damaged or gone."""
    version = champion_version(paths, model)
    return None if version is None else read_model(paths.model(model, version))


def manifest_bytes(model: Model) -> bytes:
    """The manifest as it is written."""
    said = msgspec.structs.replace(model, path=None, reused=False)
    return seal(msgspec.json.encode(said))
