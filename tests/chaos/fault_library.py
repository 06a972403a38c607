"""Turns one file call of a process into one that fails or that it does not survive: the Python side of faults.c.

A process that is started with `preloaded(library)` in its environment carries the library. `fault_variables` says
which folder it looks at and which call is to fail; they count from the process's start, or from `arm` on.

A call is named by what it does (`pwrite`, also for pwrite64) and by the sort of file it is done to (`sort_of`), and
then counted: "the third pwrite on a day file" stays the same from one run to the next, where threads shift the
number of a call among all others.

A power cut is played in two parts. While the process lives, the library keeps what was synced in a shadow folder;
after its death `cut_power` puts that in the place of the data folder. All that was not synced is gone then. A real
disk may keep more; what it may not do is to keep less.
"""

import ctypes
import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from tests.parts import skip_unless_required

SOURCE = Path(__file__).with_name("faults.c")
Action = Literal["error", "short", "before", "after", "torn", "lie"]

_NAMES = re.compile(
    r"[0-9a-f]{32}|[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{20}|(?<=[.])[0-9]+|events|tasks|tool_executions|workflows|feedback"
)


class Fault(msgspec.Struct, frozen=True):
    """Which call is to go wrong, and how."""

    call: str  # as in the log: pwrite, fdatasync, rename, ...; * for any
    path: str = ""  # a glob over paths relative to the folder; "" for any
    nth: int = 1  # the how many-th of these calls
    times: int = 1  # how many of them in a row
    action: Action = "error"  # before and after: SIGKILL then; torn: a half is written, then SIGKILL
    error: str = "EIO"  # what `error` fails with


class Call(NamedTuple):
    """A call that was made, from the log."""

    name: str
    path: str  # relative to the folder
    result: int  # as the call gave it; -errno where it failed


def compile_library(folder: Path) -> Path:
    """Compile faults.c into a folder; gives the library. Skips the test where that cannot be done."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux"):
        skip_unless_required(f"faults.c is for Linux (LD_PRELOAD, /proc), and this is {sys.platform}")
    if compiler is None:
        skip_unless_required("no C compiler (cc or gcc) for the library that makes file calls fail")
    library = folder / "faults.so"
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-U_FORTIFY_SOURCE"]
    subprocess.run([compiler, *options, "-o", library, SOURCE, "-ldl", "-lpthread"], check=True)
    return library


def preloaded(library: Path) -> dict[str, str]:
    """What the environment of a process needs, so that it carries the library."""
    return {"LD_PRELOAD": str(library)}


def fault_variables(
    folder: Path, fault: Fault | None = None, *, log: Path | None = None, shadow: Path | None = None, unsynced: str = ""
) -> dict[str, str]:
    """The variables that the library reads. `unsynced` (call:glob) names syncs that do nothing and report success."""
    chosen = Fault("", nth=0) if fault is None else fault
    return {
        "FAULTS_FOLDER": str(folder.resolve()),
        "FAULTS_CALL": chosen.call,
        "FAULTS_PATH": chosen.path,
        "FAULTS_NTH": str(chosen.nth),
        "FAULTS_TIMES": str(chosen.times),
        "FAULTS_ACTION": chosen.action,
        "FAULTS_ERRNO": str(getattr(errno, chosen.error)),
        "FAULTS_LOG": "" if log is None else str(log),
        "FAULTS_SHADOW": "" if shadow is None else str(shadow),
        "FAULTS_UNSYNCED": unsynced,
    }


def arm(variables: Mapping[str, str]) -> None:
    """Let the variables count in this process, which carries the library, from now on."""
    os.environ.update(variables)
    ctypes.CDLL(None).faults_read_environment()


def read_calls(log: Path) -> list[Call]:
    """The calls of a log, in the order in which they ended."""
    lines = [line.split("\t") for line in log.read_text().splitlines()] if log.exists() else []
    return [Call(name, path, int(result)) for name, path, result in lines]


def sort_of(path: str) -> str:
    """A glob for all files of a path's sort: producers, days, numbers and kinds of record are left open in it."""
    return _NAMES.sub("*", path)


def begin_shadow(folder: Path, shadow: Path) -> None:
    """Take all that is in a folder now as safe from a power cut."""
    shadow.mkdir(exist_ok=True)
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        found = _entries(place)
        (shadow / f"{place.stat().st_ino}.folder").write_text("".join(f"{n} {s} {name}\n" for n, s, name in found))
        for inode, sort, name in found:
            if sort == "f":
                shutil.copyfile(place / name, shadow / f"{inode}.file")


def cut_power(folder: Path, shadow: Path, *, with_names: bool) -> None:
    """Put what was synced in the place of the folder; the process that wrote there is dead.

    `with_names`: files that were created, renamed or deleted without a sync of their folder are back where they were,
    too. Without it only bytes are gone: a file system may save names at once and content late.
    """
    before = folder.with_name(f"{folder.name}.before-the-cut")
    folder.rename(before)
    _restore(folder, before, before.stat().st_ino, shadow, with_names=with_names)
    shutil.rmtree(before)


def _restore(folder: Path, before: Path, inode: int, shadow: Path, *, with_names: bool) -> None:
    folder.mkdir(mode=0o700)
    for number, sort, name in _listed(shadow / f"{inode}.folder") if with_names else _entries(before):
        target, content = folder / name, shadow / f"{number}.file"
        if sort == "d":
            _restore(target, before / name, number, shadow, with_names=with_names)
        else:
            target.touch(mode=0o600)
            if content.exists():
                target.write_bytes(content.read_bytes())


def _entries(folder: Path) -> list[tuple[int, str, str]]:
    return [(path.stat().st_ino, "d" if path.is_dir() else "f", path.name) for path in folder.iterdir()]


def _listed(listing: Path) -> list[tuple[int, str, str]]:
    lines = listing.read_text().splitlines() if listing.exists() else []
    return [(int(number), sort, name) for number, sort, name in (line.split(" ", 2) for line in lines)]
