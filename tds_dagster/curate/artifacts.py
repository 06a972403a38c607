"""Puts an artifact and its manifest in place, so that what is current is known from the manifest alone.

    lock the day → old manifest away → artifact by rename → new manifest by rename

Killed between any two: there is no manifest, so the artifact counts as not built and the next run makes it again.
A manifest is never beside an artifact that it does not describe.
"""

import fcntl
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from ingest.errors import DamagedFile
from ingest.pipeline.partitions import PRIVATE_FILE, DataPaths, make_folder, manifest_of, replacing
from tds_dagster.curate.seal import find_flaw, seal

CHUNK_BYTES = 1 << 20


class Manifest(Protocol):
    """What every manifest says of its artifact."""

    @property
    def path(self) -> Path:
        """The artifact; a manifest keeps its name only, so that a data folder may be moved."""

    @property
    def bytes(self) -> int:
        """The artifact's size."""


class HashedManifest(Manifest, Protocol):
    """One that also has the artifact's hash."""

    @property
    def sha256(self) -> str:
        """The hex digest of its bytes."""


ManifestT = TypeVar("ManifestT", bound=Manifest)


@contextmanager
def locked(paths: DataPaths, name: str) -> Iterator[None]:
    """Hold `state/building/<name>.lock` with flock: a Dagster run and a command never build the same thing at once."""
    lock = paths.lock(f"building/{name}")
    make_folder(lock.parent)
    lock.touch(mode=PRIVATE_FILE)
    with lock.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


@contextmanager
def placing_models(paths: DataPaths, model: str) -> Iterator[None]:
    """Hold what a version of a model is put in place with, and what an erasure marks those in place with.

    For moments only: who trains holds `model_<model>`, for hours.
    """
    with locked(paths, f"placing_{model}"):
        yield


def is_locked(paths: DataPaths, name: str) -> bool:
    """Whether somebody holds that lock now."""
    lock = paths.lock(f"building/{name}")
    if not lock.exists():
        return False
    with lock.open("rb") as tried:
        try:
            fcntl.flock(tried, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def read_manifest(artifact: Path, shape: type[ManifestT]) -> ManifestT | None:
    """The manifest of an artifact; None where there is none, a damaged one, or one of another version of this program.

    Either way the artifact does not count as built.
    """
    try:
        content = manifest_of(artifact).read_bytes()
    except FileNotFoundError:
        return None
    if find_flaw(content) is not None:
        return None
    try:
        return msgspec.json.decode(content, type=shape, dec_hook=lambda _, name: artifact.with_name(name))
    except (msgspec.ValidationError, msgspec.DecodeError):
        return None


def is_intact(manifest: Manifest) -> bool:
    """Whether the artifact still has the size that its manifest gives."""
    try:
        return manifest.path.stat().st_size == manifest.bytes
    except FileNotFoundError:
        return False


def require_unchanged(manifest: HashedManifest) -> None:
    """Read an artifact that something is to be made of, and raise DamagedFile if it is not what its manifest says.

    Size and time do not tell it: disks lose bits, and DuckDB looks at no checksum of a Parquet page. The manifest goes,
    so that the next build makes the artifact again.
    """
    with manifest.path.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != manifest.sha256:
        drop_manifest(manifest.path)
        raise DamagedFile(
            f"{manifest.path}: its content is not what its manifest says, somebody changed it; nothing was replaced: "
            "run it again, which builds the day anew"
        )


def drop_manifest(artifact: Path) -> None:
    """Remove the manifest, so that the artifact counts as not built until it is replaced."""
    manifest_of(artifact).unlink(missing_ok=True)


def write_manifest(content: Manifest) -> None:
    """Write the manifest beside its artifact, which must be in place."""
    text = msgspec.json.encode(content, enc_hook=lambda path: path.name)
    with replacing(manifest_of(content.path)) as out:
        out.write(seal(text))


def code_version_of(modules: Sequence[str]) -> str:
    """12 hex digits of SHA-256 over the source of the modules that decide an artifact's bytes."""
    return _code_version(tuple(modules))


@cache
def _code_version(files: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:12]


def made_now() -> str:
    """The present time, for `made_at`: RFC 3339, UTC, seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
