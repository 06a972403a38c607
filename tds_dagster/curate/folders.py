"""Puts a folder of files in place whole or not at all, under a name that says what is in it.

    files in `.building-…`, each synced → the folders synced → rename to the version → the parent synced

Killed before the rename: what was begun is removed by whoever works in the parent next, under its lock.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from ingest.errors import DamagedFile, TdsError
from ingest.pipeline.partitions import PRIVATE_FILE, PRIVATE_FOLDER, sync_folder
from tds_dagster.curate.seal import find_flaw

ShapeT = TypeVar("ShapeT")
_UNFINISHED = ".building-"


class FolderFile(msgspec.Struct, frozen=True, kw_only=True):
    """Any file of a folder but its manifest."""

    path: str  # relative to the folder, with `/`
    bytes: int
    sha256: str  # hex digest of its bytes


def read_sealed(
    manifest: Path, shape: type[ShapeT], refuse: Callable[[str], TdsError], *, noun: str, make: str
) -> ShapeT:
    """What a folder's sealed manifest says. Raises what `refuse` makes of the reason.

    `noun` is what the folder is one of, such as `dataset`, and `make` what makes one, such as "build it".
    """
    try:
        content = manifest.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as err:
        raise refuse(f"{manifest.parent}: expected a {noun}'s folder with {manifest.name}; {make}") from err
    flaw = find_flaw(content)
    if flaw is not None:
        raise refuse(
            f"{manifest}: changed at byte {flaw.offset} ({flaw.field or 'between its fields'}), "
            f"expected it as it was written; {make} again"
        )
    try:
        return msgspec.json.decode(content, type=shape)
    except (msgspec.ValidationError, msgspec.DecodeError) as err:
        raise refuse(f"{manifest}: not a manifest as this version writes it ({err}); {make} again") from err


def read_pointer(pointer: Path, *, make: str) -> str | None:
    """The version that a `latest.json` names; None where there is none. Raises DamagedFile."""
    try:
        return msgspec.json.decode(pointer.read_bytes(), type=dict[str, str])["version"]
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError) as err:
        raise DamagedFile(f"{pointer}: expected a version as it is written each time; {make} again") from err


@contextmanager
def begun_folder(home: Path) -> Iterator[Path]:
    """A new folder beside the finished ones; what is still there at the end is removed."""
    folder = home / f"{_UNFINISHED}{uuid.uuid4().hex}"
    folder.mkdir(mode=PRIVATE_FOLDER)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_unfinished(home: Path) -> None:
    """Remove what killed processes left; the caller holds the lock of `home`."""
    for path in home.glob(f"{_UNFINISHED}*"):
        if path.is_symlink():
            path.unlink()  # one that was to take a place by rename
        else:
            shutil.rmtree(path)


def remove_finished(folder: Path) -> None:
    """Remove a folder that is in place: by a rename at once, so that nobody sees half of it."""
    aside = folder.with_name(f"{_UNFINISHED}{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        folder.rename(aside)
        sync_folder(folder.parent)
        shutil.rmtree(aside)


def put_in_place(folder: Path, target: Path) -> None:
    """Rename a folder to its final name. One of that name that is there was damaged, and goes."""
    for each in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sync_folder(each)
    if target.exists():
        target.rename(folder.with_name(f"{_UNFINISHED}{uuid.uuid4().hex}"))  # out of the way at once; removed below
    folder.rename(target)
    sync_folder(target.parent)
    remove_unfinished(target.parent)


def replace_link(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target`, which is relative to its folder, in one step."""
    temporary = link.with_name(f"{_UNFINISHED}{uuid.uuid4().hex}")
    temporary.symlink_to(target)
    temporary.replace(link)
    sync_folder(link.parent)


@contextmanager
def synced_file(path: Path) -> Iterator[BinaryIO]:
    """A new private file that is on the disk when the `with` ends."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
    with os.fdopen(descriptor, "wb") as out:
        yield out
        out.flush()
        os.fsync(descriptor)


def described_file(folder: Path, name: str) -> FolderFile:
    """What a manifest says of a file of the folder."""
    with (folder / name).open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
        return FolderFile(path=name, bytes=os.fstat(content.fileno()).st_size, sha256=digest)


def is_as_described(folder: Path, files: Iterable[FolderFile]) -> bool:
    """Whether each of these files is in the folder, with the content that its manifest gives it."""
    try:
        return all(described_file(folder, file.path) == file for file in files)
    except FileNotFoundError:
        return False


def described_files(folder: Path, *, but: str) -> list[FolderFile]:
    """All files of a folder except the one named `but`, in order of their path."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return [described_file(folder, name) for name in names if name != but]
