"""The exactly-once ledger of one kind: what is committed of every day file, and of every producer's sequence.

One SQLite file a kind (WAL, synchronous FULL). A batch of the writer becomes durable here, in one transaction:
the new size of each day file together with the producers' marks. Bytes in a file beyond its committed size,
and sequence numbers beyond a mark, do not count as written. Readers (status, curation, sensors) open the same
file and never wait for the writer.

    files      one row a day: committed size and rows, the version (a chain hash over the appended batches), mtime
    marks      one row a producer: the highest sequence number up to which everything was written
    counts     by day: duplicates (of an idempotency key), quarantined (lines that could not be written), clock (filed
               under the ingest day, against their own clock), foreign (rows that other programs appended)
    keys       idempotency keys' record ids, forgotten after TDS_KEY_DAYS
    rejects    lines that could not be written, each with its reason and its origin
    producers  the last known counters of producers that are not in a spool of this host: ended, or on another host
"""

import contextlib
import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ingest.errors import DamagedFile
from ingest.pipeline.partitions import PRIVATE_FILE, DataPaths, make_folder, sync_folder
from ingest.pipeline.spool import ProducerCounters

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (day TEXT PRIMARY KEY, size INTEGER NOT NULL, rows INTEGER NOT NULL,
    version TEXT NOT NULL, mtime_ns INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS marks (producer TEXT PRIMARY KEY, seq INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts (day TEXT, name TEXT, n INTEGER NOT NULL,
    PRIMARY KEY (day, name)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS keys (record_id TEXT PRIMARY KEY, seen INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS keys_by_age ON keys (seen);
CREATE TABLE IF NOT EXISTS rejects (id INTEGER PRIMARY KEY, day TEXT NOT NULL, reason TEXT NOT NULL,
    origin TEXT NOT NULL, line BLOB NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS rejects_by_day ON rejects (day);
CREATE INDEX IF NOT EXISTS rejects_by_origin ON rejects (origin);
CREATE TABLE IF NOT EXISTS producers (producer TEXT PRIMARY KEY, offered INTEGER NOT NULL, accepted INTEGER NOT NULL,
    dropped INTEGER NOT NULL, coerced INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""

DUPLICATES, QUARANTINED, CLOCK, FOREIGN = "duplicates", "quarantined", "clock", "foreign"


class CommittedFile(msgspec.Struct, frozen=True):
    """What the ledger knows of one day file."""

    size: int  # bytes that count, the header included
    rows: int  # data rows within them
    version: str  # hex; changes with every change of the committed content
    mtime_ns: int  # when the writer last touched it: another value means that somebody else did


class Reject(msgspec.Struct, frozen=True):
    """A line that could not be written, as the quarantine file shows it."""

    day: str
    reason: str
    origin: str  # `producer <id> seq <n>`, or `<file> byte <offset>`
    line: bytes


class Commit(msgspec.Struct):
    """One transaction of the writer."""

    files: dict[str, CommittedFile] = {}  # the new state of each touched day
    marks: dict[str, int] = {}  # the new mark of each producer
    counts: dict[tuple[str, str], int] = {}  # additions, by (day, name)
    keyed: list[str] = []  # record ids made from idempotency keys
    rejects: list[Reject] = []
    producers: dict[str, ProducerCounters] = {}  # what producers elsewhere, or at their end, had counted

    def count(self, day: str, name: str, n: int = 1) -> None:
        """Add `n` to a counter of the day."""
        self.counts[day, name] = self.counts.get((day, name), 0) + n


class Ledger:
    """One kind's ledger, open. Use it from one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open the ledger at `path`; an absent one is created."""
        if not path.exists():
            _create(path)
        self.path = path
        self._db = _connect(path)

    def close(self) -> None:
        """Close the database. May be called twice."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def commit(self, change: Commit) -> None:
        """Make a batch of the writer durable, whole or not at all."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
                [(day, f.size, f.rows, f.version, f.mtime_ns) for day, f in change.files.items()],
            )
            db.executemany(
                "INSERT INTO marks VALUES (?, ?) ON CONFLICT DO UPDATE SET seq = max(seq, excluded.seq)",
                change.marks.items(),
            )
            db.executemany(
                "INSERT INTO counts VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n",
                [(day, name, n) for (day, name), n in change.counts.items()],
            )
            now = int(time.time())
            db.executemany("INSERT OR IGNORE INTO keys VALUES (?, ?)", [(key, now) for key in change.keyed])
            db.executemany(
                "INSERT INTO rejects (day, reason, origin, line) VALUES (?, ?, ?, ?)",
                [(r.day, r.reason, r.origin, r.line) for r in change.rejects],
            )
            db.executemany(
                "INSERT OR REPLACE INTO producers VALUES (?, ?, ?, ?, ?)",
                [(name, p.offered, p.accepted, p.dropped, p.coerced) for name, p in change.producers.items()],
            )

    def known_keys(self, record_ids: Iterable[str]) -> set[str]:
        """Those of the given keyed record ids that were stored before."""
        wanted, known = list(record_ids), set[str]()
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            query = f"SELECT record_id FROM keys WHERE record_id IN ({','.join('?' * len(part))})"
            known.update(row[0] for row in self._db.execute(query, part))
        return known

    def forget_keys(self, older_than_s: float) -> None:
        """Forget idempotency keys that were stored more than `older_than_s` seconds ago."""
        self._db.execute("DELETE FROM keys WHERE seen < ?", (int(time.time() - older_than_s),))

    def adopt_edit(self, day: str, seen: CommittedFile, edited: CommittedFile) -> None:
        """Take over somebody else's edit of a day file, unless the day changed since it was `seen`."""
        with self._transaction() as db:
            db.execute(
                "UPDATE files SET rows = ?, version = ?, mtime_ns = ? WHERE day = ? AND version = ? AND mtime_ns = ?",
                (edited.rows, edited.version, edited.mtime_ns, day, seen.version, seen.mtime_ns),
            )

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Reads inside see the ledger as it stood at the first of them, whatever the writer commits meanwhile."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("COMMIT")

    def files(self) -> dict[str, CommittedFile]:
        """Every day file, in order of its day."""
        rows = self._db.execute("SELECT day, size, rows, version, mtime_ns FROM files ORDER BY day")
        return {day: CommittedFile(size, n, version, mtime_ns) for day, size, n, version, mtime_ns in rows}

    def file(self, day: str) -> CommittedFile | None:
        """One day file, or None if nothing was committed for that day."""
        row = self._db.execute("SELECT size, rows, version, mtime_ns FROM files WHERE day = ?", (day,)).fetchone()
        return None if row is None else CommittedFile(*row)

    def marks(self) -> dict[str, int]:
        """Each producer's mark: everything up to this sequence number is written."""
        return dict(self._db.execute("SELECT producer, seq FROM marks"))

    def counts(self) -> dict[tuple[str, str], int]:
        """All counters, by (day, name)."""
        return {(day, name): n for day, name, n in self._db.execute("SELECT day, name, n FROM counts")}

    def rejects(self, day: str) -> list[Reject]:
        """The day's rejected lines, in the order they came."""
        rows = self._db.execute("SELECT day, reason, origin, line FROM rejects WHERE day = ? ORDER BY id", (day,))
        return [Reject(*row) for row in rows]

    def has_reject(self, origin: str) -> bool:
        """Whether a line of that origin was rejected before."""
        return self._db.execute("SELECT 1 FROM rejects WHERE origin = ?", (origin,)).fetchone() is not None

    def producers(self) -> dict[str, ProducerCounters]:
        """The last known counters of producers that ended or count on another host."""
        rows = self._db.execute("SELECT producer, offered, accepted, dropped, coerced FROM producers")
        return {producer: ProducerCounters(*counters) for producer, *counters in rows}


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def _create(path: Path) -> None:
    """Put a complete new ledger in place, unless another process is first.

    Made beside it, because going over to WAL fails at once ("database is locked") while somebody else opens the file.
    """
    make_folder(path.parent)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    draft.touch(mode=PRIVATE_FILE)
    try:
        connection = _connect(draft)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(_SCHEMA)
        connection.close()
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        sync_folder(path.parent)
    finally:
        draft.unlink()


@contextmanager
def open_ledger(paths: DataPaths, kind: str) -> Iterator[Ledger]:
    """The ledger of a kind for a short look; it is created where there is none yet."""
    ledger = Ledger(paths.ledger(kind))
    try:
        yield ledger
    finally:
        ledger.close()


def chained_version(version: str, appended: bytes) -> str:
    """The version of a file after bytes were appended: SHA-256 over the former version and the bytes."""
    return hashlib.sha256(version.encode() + appended).hexdigest()


def settle_edits(ledger: Ledger, paths: DataPaths, kind: str, days: Iterable[str] | None = None) -> None:
    """Notice what somebody else did to committed day files, by size and mtime, and give edited ones a new version.

    Only a file whose mtime differs from the ledger's is read. Raises DamagedFile for one that is shorter than
    committed, or gone: nothing can stand for the missing rows. Rows appended by others are the writer's to handle.
    """
    files = ledger.files()
    for day in files if days is None else [day for day in days if day in files]:
        committed = files[day]
        path = paths.training(kind, day)
        try:
            status = path.stat()
        except FileNotFoundError as err:
            raise DamagedFile(
                f"{path}: expected {committed.size} committed bytes, but the file is gone; restore it from a backup"
            ) from err
        if status.st_size < committed.size:
            raise _truncated(path, status.st_size, committed.size)
        if status.st_mtime_ns == committed.mtime_ns or status.st_size != committed.size:
            continue
        ledger.adopt_edit(day, committed, _edited(path, committed, status.st_mtime_ns))


def _truncated(path: Path, size: int, committed: int) -> DamagedFile:
    return DamagedFile(
        f"{path}: ends at byte {size}, but {committed} bytes are committed; restore the file from a backup"
    )


def _edited(path: Path, committed: CommittedFile, mtime_ns: int) -> CommittedFile:
    """The ledger's new row for a file that was changed in place: its version is the hash of its content."""
    digest, lines, left = hashlib.sha256(), 0, committed.size
    with path.open("rb") as source:
        while left and (chunk := source.read(min(left, 1 << 20))):
            digest.update(chunk)
            lines += chunk.count(b"\n")
            left -= len(chunk)
    if left:
        raise _truncated(path, committed.size - left, committed.size)
    return CommittedFile(committed.size, max(0, lines - 1), digest.hexdigest(), mtime_ns)


def total(counts: Mapping[tuple[str, str], int], name: str) -> int:
    """One counter over all days."""
    return sum(n for (_, counter), n in counts.items() if counter == name)
