"""Where every file lies, and which day a record is filed under: the one home of paths and of days."""

import contextlib
import fcntl
import io
import os
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ingest.errors import InvalidRange
from ingest.records import ingest_time

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PRIVATE_FOLDER = 0o700  # it is people's data
PRIVATE_FILE = 0o600

_UNSYNCED_BYTES = 32 << 20  # of a file that is being written: what lies beyond goes to the disk meanwhile
_AHEAD = timedelta(days=1)  # how far a clock may be ahead of ours
# ASCII only: \d would let in digits that no reader of the files takes for one.
# RFC 3339 in UTC with microseconds: the one form that timestamps have on the wire and in files.
TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{6}Z")


class DataPaths(msgspec.Struct, frozen=True):
    """The files under one data folder (docs/files.md). Days are `YYYY-MM-DD` texts."""

    root: Path

    def training(self, kind: str, day: str) -> Path:
        """One raw day: `training/<kind>/<kind>_<day>.csv`."""
        return self.root / "training" / kind / f"{kind}_{day}.csv"

    def latest_export(self, kind: str) -> Path:
        """The latest range export, which `export_for_training` returns by default."""
        return self.root / "training" / f"{kind}_training.jsonl"

    @property
    def imported(self) -> Path:
        """The folder of the old store's day files, after their import."""
        return self.root / "training" / "imported"

    def curated(self, kind: str, day: str) -> Path:
        """One curated day, Parquet."""
        return self.root / "curated" / kind / f"{kind}_{day}.parquet"

    def shard(self, kind: str, day: str) -> Path:
        """One day's JSONL export."""
        return self.root / "exports" / kind / "days" / f"{kind}_{day}.jsonl"

    def exports(self, kind: str) -> Path:
        """A kind's exports; beside its days and ranges lie the card and the Croissant file of the latest range."""
        return self.root / "exports" / kind

    def range_export(self, kind: str, start: str, end: str) -> Path:
        """One range's JSONL export; its manifest stands beside it."""
        return self.root / "exports" / kind / "ranges" / f"{kind}_training_{start}_{end}.jsonl"

    def datasets(self, model: str) -> Path:
        """All versions of one model's dataset, a folder each, and `latest.json` with the last one built."""
        return self.root / "datasets" / model

    def dataset(self, model: str, version: str) -> Path:
        """One version of a dataset: a folder that is written whole and never changed."""
        return self.datasets(model) / version

    def models(self, model: str) -> Path:
        """All versions of one model, a folder each, `latest.json` with the last one trained, and `champion`."""
        return self.root / "models" / model

    def model(self, model: str, version: str) -> Path:
        """One version of a model: a folder that is written whole and never changed, but for `tainted.json`."""
        return self.models(model) / version

    def selected_export(self, kind: str, start: str, end: str, digest: str, suffix: str) -> Path:
        """What was selected of a range; `digest` is the selection's, `suffix` the format's."""
        return self.range_export(kind, start, end).with_name(f"{kind}_training_{start}_{end}_{digest}.{suffix}")

    def quarantine(self, kind: str, day: str) -> Path:
        """The day's rejected rows, each with its reason and where it came from."""
        return self.root / "quarantine" / kind / f"{kind}_{day}.jsonl"

    @property
    def state(self) -> Path:
        """The folder of ledgers, counters and locks."""
        return self.root / "state"

    def ledger(self, kind: str) -> Path:
        """One kind's write ledger, SQLite."""
        return self.state / f"{kind}.sqlite"

    def lock(self, name: str) -> Path:
        """A lock file, held with flock."""
        return self.state / f"{name}.lock"


def manifest_of(artifact: Path) -> Path:
    """The manifest beside an artifact: the same name, ending in `.manifest.json`."""
    return artifact.with_suffix(".manifest.json")


def day_of(day_file: Path) -> str:
    """The day in a day file's name: `events_2024-05-15.csv` gives `2024-05-15`."""
    return day_file.stem.rpartition("_")[2]


def is_day(name: str) -> bool:
    """Whether it is a day as a file's name has it, and so the file is one of ours: `YYYY-MM-DD`."""
    try:
        return date.fromisoformat(name).isoformat() == name
    except ValueError:
        return False


def filing_day(timestamp: str, record_id: str, start_date: date, now: datetime) -> tuple[str, bool]:
    """The day (`YYYY-MM-DD`) that a record is filed under, and whether its own clock was overruled.

    It is the event time's UTC day. An event time before `start_date`, or more than a day ahead of `now`, has
    no partition: then it is the ingest day (from a UUIDv7 `record_id`, else `now`). Raises ValueError for a
    timestamp that is not `YYYY-MM-DDTHH:MM:SS.ffffffZ`.
    """
    if TIMESTAMP.fullmatch(timestamp) is None:  # fromisoformat also reads 2024-W20-3, which is no day's name
        raise ValueError(f"timestamp={timestamp!r}: expected RFC 3339 in UTC with microseconds and Z")
    event_time = datetime.fromisoformat(timestamp)
    if event_time.date() >= start_date and event_time - now <= _AHEAD:
        return timestamp[:10], False
    ingested = (ingest_time(record_id) or now).date()
    return max(start_date, min(ingested, now.date())).isoformat(), True


def day_range(start: str, end: str) -> list[str]:
    """All days from `start` to `end`, both included. Raises InvalidRange if they are no dates or swapped."""
    first, last = parse_day("start", start), parse_day("end", end)
    if last < first:
        raise InvalidRange(f"start={start} lies after end={end}: expected start <= end; swap the two")
    return [(first + timedelta(days=offset)).isoformat() for offset in range((last - first).days + 1)]


def parse_day(name: str, value: str) -> date:
    """`YYYY-MM-DD` as a date. Raises InvalidRange naming `name` if it is none."""
    try:
        day = date.fromisoformat(value)
    except (TypeError, ValueError) as err:
        raise _not_a_day(name, value) from err
    if day.isoformat() != value:  # fromisoformat also reads 20240515 and 2024-W20-3
        raise _not_a_day(name, value)
    return day


def _not_a_day(name: str, value: object) -> InvalidRange:
    return InvalidRange(f"{name}={value!r}: expected a date as YYYY-MM-DD; pass one such as 2024-05-15")


def today() -> date:
    """The present day in UTC, the one that day files are named by."""
    return datetime.now(UTC).date()


def make_folder(folder: Path) -> None:
    """Create a private folder and its parents; existing ones keep their mode. The new entries are synced."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
    sync_folder(folder.parent)


def sync_data(descriptor: int) -> None:
    """Bring a file's content and size to the disk."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
    else:  # macOS
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (new, renamed and deleted files) survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(target: Path) -> Iterator[io.BufferedRandom]:
    """Write a file that takes `target`'s place whole or not at all: temporary file, fsync, rename, fsync.

    Its `name` is the temporary file's path, for another library to write there.
    If the body raises, `target` stays as it was and nothing is left behind; what a killed process left behind
    the next call for the same target removes. Two writers of one target don't meet: the later rename stands.
    """
    make_folder(target.parent)
    _remove_leftovers(target)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    descriptor = _open_locked(temporary)
    try:
        with _SyncedBehind(descriptor, temporary) as file, io.BufferedRandom(file) as out:
            yield out
            out.flush()
            file.sync()
            temporary.replace(target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


class _SyncedBehind(io.FileIO):
    """A file that goes to the disk while it is written, so that the sync at its end waits for little.

    The system itself begins with it at a tenth of the memory: a file of 1.7 GB waited for all of the disk at its end,
    and took half as long again.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        """Take over the descriptor of the file that was opened at `path`."""
        super().__init__(descriptor, "r+b")
        self.name = str(path)
        self._unsynced = 0
        self._syncing: threading.Thread | None = None
        self._failed: OSError | None = None

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write, as any file does."""
        written = super().write(data)
        self._unsynced += written
        if self._unsynced >= _UNSYNCED_BYTES and (self._syncing is None or not self._syncing.is_alive()):
            self._unsynced = 0
            self._syncing = threading.Thread(target=self._sync, name="sync-behind")
            self._syncing.start()
        return written

    def sync(self) -> None:
        """Wait until all of it lies on the disk. Raises what any sync before this one raised: it is told only once."""
        self._wait()
        if self._failed is not None:
            raise self._failed
        os.fsync(self.fileno())

    def close(self) -> None:
        """Close it, when no sync is under way any more."""
        self._wait()
        super().close()

    def _sync(self) -> None:
        try:
            os.fsync(self.fileno())
        except OSError as err:
            self._failed = err

    def _wait(self) -> None:
        if self._syncing is not None:
            self._syncing.join()


def _open_locked(temporary: Path) -> int:
    """A new file, held with flock, which says that its writer lives."""
    while True:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # between the two calls another writer took it for a leftover


def _remove_leftovers(target: Path) -> None:
    """Delete temporary files of writers that were killed: those whose lock is free."""
    start = f".{target.name}."
    names = os.listdir(target.parent)  # noqa: PTH208 - a Path for each of a year's files takes a millisecond
    if start not in "/".join(names):  # one search instead of one a name: a year's folder is listed a thousand times
        return
    for name in [name for name in names if name.startswith(start) and name.endswith(".tmp")]:
        leftover = target.parent / name
        with contextlib.suppress(FileNotFoundError, BlockingIOError), leftover.open("rb") as left:
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


def folder_bytes(folder: Path) -> int:
    """What the files in a folder and below take, in bytes; files that go away meanwhile count for nothing."""
    size = 0
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return 0
    for entry in entries:
        try:
            size += folder_bytes(Path(entry)) if entry.is_dir(follow_symlinks=False) else entry.stat().st_size
        except FileNotFoundError:
            continue
    return size


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
