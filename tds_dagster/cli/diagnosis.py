"""Turns settings, folders, servers and ledgers into findings: what is well, what is not, and what to do about it.

Each check looks without changing anything. `broken` means that records cannot be stored or exported now, or that
data is damaged; `warning` that this may come.
"""

import platform
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ingest.errors import DamagedFile, InvalidSetting, SynapseUnavailable
from ingest.pipeline.accounting import IngestAccount, account
from ingest.pipeline.ledger import CommittedFile
from ingest.pipeline.partitions import DataPaths
from ingest.records import KINDS
from ingest.settings import Settings, read_settings, unknown_variables
from tds_dagster.cli.check import Check
from tds_dagster.cli.output import size_text
from tds_dagster.cli.server_checks import check_configs, check_conversations, check_dagster_storage, check_metrics

_BASE = ("msgspec", "uuid-utils", "redis", "typer")
_PLATFORM = ("dagster", "dagster-webserver", "duckdb", "pyarrow", "pandas", "orjson")
_LOW_SPACE_BYTES, _NO_SPACE_BYTES = 2 << 30, 64 << 20
_OLDEST_REDIS = (6, 2)
_NETWORK_DISKS = {"nfs", "nfs4", "cifs", "smb3", "9p", "afs", "ceph", "glusterfs", "fuse.sshfs", "fuse.s3fs"}
_TOP_FOLDERS = {
    "training", "curated", "exports", "datasets", "models", "quarantine", "spool", "state", "dagster", "migration",
    "README.md",
}  # fmt: skip
_DAY = r"\d{4}-\d\d-\d\d"
_MAX_SHOWN = 5


def diagnose() -> Iterator[Check]:
    """Run all checks with the settings of the environment; settings that cannot be used end it."""
    try:
        settings = read_settings()
    except InvalidSetting as err:
        yield Check("settings", "broken", str(err), "correct the variable; the other checks need usable settings")
        return
    checks: tuple[Callable[[Settings], Iterator[Check]], ...] = (
        check_settings, check_versions, check_data_folder, check_disk, check_spool, check_redis, check_writers,
        check_ledgers, check_erasures, check_unknown_files, check_conversations, check_dagster_storage, check_configs,
        check_metrics,
    )  # fmt: skip
    for check in checks:
        yield from check(settings)


def check_settings(settings: Settings) -> Iterator[Check]:
    """Which settings differ from their defaults."""
    defaults = Settings()
    given = [
        f"TDS_{name.upper()}={settings.shown(name)}"
        for name in Settings.__struct_fields__
        if getattr(settings, name) != getattr(defaults, name)
    ]
    yield Check("settings", "ok", ", ".join(given) or "all at their defaults")
    if misspelt := unknown_variables():
        yield Check(
            "variables", "warning", f"no such setting: {', '.join(misspelt)}",
            "correct or unset them: .env.example lists the names that there are",
        )  # fmt: skip
    if settings.failpoint is not None:
        yield Check(
            "failpoint", "broken", f"TDS_FAILPOINT={settings.failpoint} kills processes on the write path",
            "unset TDS_FAILPOINT: it is for tests",
        )  # fmt: skip


def check_versions(_: Settings) -> Iterator[Check]:
    """Which versions are installed, and whether the platform's packages are there."""
    installed = {name: _version(name) for name in ("training-data-store", *_BASE, *_PLATFORM)}
    found = ", ".join(f"{name} {number}" for name, number in installed.items() if number is not None)
    yield Check("versions", "ok", f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {found}")
    missing = [name for name, number in installed.items() if number is None]
    if missing:
        yield Check(
            "platform", "warning", f"not installed: {', '.join(missing)}; storing works, export and the UI do not",
            "pip install 'training-data-store[platform]'",
        )  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_data_folder(settings: Settings) -> Iterator[Check]:
    """Whether the data folder can be written, by its owner alone, on a local disk."""
    folder = settings.data_dir
    yield _writable("data folder", folder, "TDS_DATA_DIR")
    if not folder.is_dir():
        return
    mode = folder.stat().st_mode & 0o777
    if mode & 0o077:
        others = [name for name in ("training", "curated", "exports", "spool") if _is_open_to_others(folder / name)]
        if others:
            yield Check(
                "privacy", "warning", f"{folder}: {', '.join(others)} can be read by other users",
                f"chmod -R go-rwx {folder}: these are people's data",
            )  # fmt: skip
    disk = _disk_type(folder)
    if disk in _NETWORK_DISKS:
        yield Check(
            "disk type", "warning", f"{folder} is on {disk}: locks and mapped files are not safe there",
            "set TDS_DATA_DIR to a folder on a local disk",
        )  # fmt: skip


def _is_open_to_others(folder: Path) -> bool:
    return folder.is_dir() and bool(folder.stat().st_mode & 0o077)


def _writable(name: str, folder: Path, variable: str) -> Check:
    """Whether a file can be made in a folder, or a folder that is not there yet can be made."""
    existing = _nearest(folder)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as err:
        return Check(
            name, "broken", f"{folder} cannot be written: {err.strerror}",
            f"give this user the right to write there (chown, chmod), make room, or set {variable} to another folder",
        )  # fmt: skip
    return Check(name, "ok", f"{folder}" + ("" if folder.is_dir() else ", made when the first record comes"))


def _nearest(folder: Path) -> Path:
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.exists())


def _disk_type(folder: Path) -> str | None:
    """The file system's name by /proc/mounts; None where there is no such list (macOS)."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return None
    place, found = str(folder.resolve()), ("", "")
    for line in mounts.read_text().splitlines():
        _, point, disk, *_ = line.split()
        if (place + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(found[0]):
            found = point, disk
    return found[1] or None


def check_disk(settings: Settings) -> Iterator[Check]:
    """How much room is left for data and spool."""
    for name, folder in {"disk": settings.data_dir, "spool disk": settings.spool}.items():
        if name == "spool disk" and settings.spool_dir is None:
            continue
        free = shutil.disk_usage(_nearest(folder)).free
        found = f"{size_text(free)} free at {folder}"
        if free < _NO_SPACE_BYTES:
            yield Check(name, "broken", found, "make room: a full disk drops records (they are counted)")
        elif free < _LOW_SPACE_BYTES:
            yield Check(name, "warning", found, "make room soon: an export needs as much again as its CSV files")
        else:
            yield Check(name, "ok", found)


def check_spool(settings: Settings) -> Iterator[Check]:
    """Whether the spool can be written, and how much waits in it."""
    check = _writable("spool", settings.spool, "TDS_SPOOL_DIR")
    if check.state != "ok":
        yield check
        return
    accounts = _accounts(settings)
    waiting, dropped = sum(a.waiting for a in accounts), sum(a.dropped for a in accounts)
    yield Check("spool", "ok", f"{settings.spool}: {waiting:,} records wait to be written")
    if dropped:
        yield Check(
            "dropped records", "warning", f"{dropped:,} records were not accepted since the beginning",
            "see the agents' logs for the reason: a full spool or disk, or a record over TDS_MAX_RECORD_BYTES",
        )  # fmt: skip


def _accounts(settings: Settings) -> list[IngestAccount]:
    """The accounts of the kinds whose ledger can be read; `check_ledgers` tells of the others."""
    accounts = []
    for kind in KINDS:
        with suppress(sqlite3.Error):
            accounts.append(account(settings, kind))
    return accounts


def check_redis(settings: Settings) -> Iterator[Check]:
    """Whether Synapse answers, is new enough, and keeps what it is given."""
    if settings.redis_url is None:
        yield Check("Redis", "ok", "not used (TDS_REDIS_URL is not set): records go from the spool to the CSV files")
        return
    from ingest.pipeline.synapse import connect, redis_errors

    client = connect(settings)
    try:
        with redis_errors(settings):
            info = client.info()
    except SynapseUnavailable as err:
        yield Check(
            "Redis", "broken", str(err),
            "start Redis or correct TDS_REDIS_URL; until then records wait in the spool, none is lost",
        )  # fmt: skip
        return
    finally:
        client.close()
    number = str(info["redis_version"])
    if tuple(int(part) for part in number.split(".")[:2]) < _OLDEST_REDIS:
        yield Check("Redis", "broken", f"version {number}: expected 6.2 or newer", "upgrade Redis")
    else:
        yield Check("Redis", "ok", f"version {number} at {settings.redis_url_without_password}")
    policy = info.get("maxmemory_policy")
    if policy != "noeviction":
        yield Check(
            "Redis memory", "warning", f"maxmemory-policy is {policy}: Redis may throw entries away when it is full",
            "redis-cli CONFIG SET maxmemory-policy noeviction, and the same in redis.conf",
        )  # fmt: skip
    if not info.get("aof_enabled"):
        yield Check(
            "Redis persistence", "warning", "appendonly is off: after a crash clients have to send again what is lost",
            "redis-cli CONFIG SET appendonly yes, and the same in redis.conf; nothing is lost meanwhile",
        )  # fmt: skip


def check_writers(settings: Settings) -> Iterator[Check]:
    """Whether somebody writes what waits."""
    accounts = _accounts(settings)
    alive = [a.kind for a in accounts if a.writer_alive]
    idle = [a.kind for a in accounts if not a.writer_alive]
    if not idle:
        yield Check("writers", "ok", "a process writes each kind")
    elif settings.redis_url is not None:
        yield Check("writers", "warning", f"nobody writes {', '.join(idle)}", "start `tds writer` on the data's host")
    else:
        found = f"at work: {', '.join(alive)}" if alive else "none at work; the next agent, flush or export writes"
        yield Check("writers", "ok", found)


def check_ledgers(settings: Settings) -> Iterator[Check]:
    """Whether each ledger can be read and the day files hold what it says was committed."""
    paths = DataPaths(settings.data_dir)
    files = 0
    for kind in KINDS:
        path = paths.ledger(kind)
        if not path.exists():
            continue
        try:
            committed = _read_ledger(path)
        except sqlite3.OperationalError as err:  # it could not be looked at, which says nothing of its content
            free = shutil.disk_usage(path.parent).free
            yield Check(
                f"{kind} ledger", "broken", f"{path}: {err}; {free:,} bytes are free on its disk",
                "make room there, or see to the disk and the folder's rights, and ask again; nothing says that the "
                "file is damaged",
            )  # fmt: skip
            continue
        except (sqlite3.Error, DamagedFile) as err:
            yield Check(
                f"{kind} ledger", "broken", f"{path}: {err}",
                "stop all writers and restore the file from a backup, with the day files of the same moment",
            )  # fmt: skip
            continue
        files += len(committed)
        yield from _check_day_files(paths, kind, committed)
    yield Check("ledgers", "ok", f"{files:,} day files are in the ledgers of {paths.state}")


def check_erasures(settings: Settings) -> Iterator[Check]:
    """Whether an erasure was cut off; nothing where none was."""
    for journal in (DataPaths(settings.data_dir).state / "erasures").glob("*.journal"):
        yield Check(
            "erasure", "warning", f"{journal}: it was cut off, or is under way",
            "run `tds erase` again, for whatever: it first finishes what was begun",
        )  # fmt: skip


def _read_ledger(path: Path) -> dict[str, CommittedFile]:
    """The day files in a ledger, opened to read only.

    Raises sqlite3.Error if it cannot be opened, DamagedFile if SQLite finds fault with its content.
    """
    db = sqlite3.connect(f"file:{path.absolute().as_posix()}?mode=ro", uri=True, timeout=30)
    try:
        verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise DamagedFile(f"SQLite's quick_check says: {verdict}")
        rows = db.execute("SELECT day, size, rows, version, mtime_ns FROM files ORDER BY day")
        return {day: CommittedFile(*rest) for day, *rest in rows}
    finally:
        db.close()


def _check_day_files(paths: DataPaths, kind: str, committed: dict[str, CommittedFile]) -> Iterator[Check]:
    for day, file in committed.items():
        path = paths.training(kind, day)
        size = path.stat().st_size if path.exists() else None
        if size is None or size < file.size:
            ends = "is gone" if size is None else f"ends at byte {size:,}"
            yield Check(
                f"{kind} {day}", "broken", f"{path} {ends}: {file.size:,} bytes are committed",
                "restore the file from a backup; the other days go on without it",
            )  # fmt: skip


def check_unknown_files(settings: Settings) -> Iterator[Check]:
    """Files in the data folder that are not the store's own."""
    root, paths = settings.data_dir, DataPaths(settings.data_dir)
    if not root.is_dir():
        return
    strange = [entry for entry in sorted(root.iterdir()) if entry.name not in _TOP_FOLDERS]
    for kind in KINDS:
        for folder, pattern in _expected(paths, kind):
            if folder.is_dir():
                named = re.compile(pattern)
                strange += [entry for entry in sorted(folder.iterdir()) if not named.fullmatch(entry.name)]
    if strange:
        shown = ", ".join(str(path.relative_to(root)) for path in strange[:_MAX_SHOWN])
        more = f" and {len(strange) - _MAX_SHOWN:,} more" if len(strange) > _MAX_SHOWN else ""
        yield Check(
            "unknown files", "warning", f"{shown}{more}",
            f"they are not the store's, which neither reads nor deletes them; move them out of {root}",
        )  # fmt: skip
    else:
        yield Check("unknown files", "ok", "none")


def _expected(paths: DataPaths, kind: str) -> list[tuple[Path, str]]:
    """The folders of a kind and what their files are called; temporary files of a killed process among them."""
    temporary = r"|\..*\.tmp"
    day_file = rf"{kind}_{_DAY}"
    selected = r"_[0-9a-f]{8}(\.jsonl|\.jsonl\.zst|\.parquet|(\.jsonl)?\.manifest\.json)"
    return [
        (paths.training(kind, "").parent, rf"{day_file}\.csv(\.[0-9a-z]+)?" + temporary),
        (paths.curated(kind, "").parent, rf"{day_file}(\.parquet|\.manifest\.json)" + temporary),
        (paths.shard(kind, "").parent, rf"{day_file}(\.jsonl|\.manifest\.json)" + temporary),
        (paths.quarantine(kind, "").parent, rf"{day_file}\.jsonl" + temporary),
        (
            paths.range_export(kind, "", "").parent,
            rf"{kind}_training_{_DAY}_{_DAY}(\.jsonl|\.manifest\.json|{selected})" + temporary,
        ),
    ]
