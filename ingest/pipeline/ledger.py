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
    ended      producers that will never send again, and when they said so; 0 once they are folded
    groups     durable groups of subscribers without Redis: up to which byte of each day file they are served; the day
               "" stands for a group's being there
    stream_groups  durable groups in Synapse as the writer last saw them, to be made again when Redis loses them

Folding: processes come and go, and each leaves a mark and counters. Those of ended producers are added to one row, the
producer "", once nothing can bring their records again; the sums of the account stay what they are. A mark is needed
as long as its records may come a second time, from where they are sent again or from where they lie. The spool sends
again what is in the producer's folder: whoever says that a producer has ended has removed that folder first. And they
lie in the stream: a producer is folded when it ended TDS_KEY_DAYS before the oldest entry that is there (at least one
day, so that clocks need not agree). What could double a record then is a Redis brought back from a backup that is
older than this, or a spool folder brought back from one.
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
from typing import Any

import msgspec

from ingest.errors import DamagedFile
from ingest.pipeline.forking import inside
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
CREATE TABLE IF NOT EXISTS ended (producer TEXT PRIMARY KEY, at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ended_by_time ON ended (at);
CREATE TABLE IF NOT EXISTS groups (name TEXT, day TEXT, size INTEGER NOT NULL,
    PRIMARY KEY (name, day)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stream_groups (name TEXT PRIMARY KEY, position TEXT NOT NULL) STRICT, WITHOUT ROWID;
PRAGMA user_version = 1;
"""
_SCHEMA_VERSION = 1
_FOLD = """
CREATE TEMP TABLE folding AS SELECT producer, coalesce(seq, 0) AS seq, max(accepted, coalesce(seq, 0)) AS accepted,
        dropped, coerced, offered
    FROM ended JOIN producers USING (producer) LEFT JOIN marks USING (producer)
    WHERE at > 0 AND at < ? AND coalesce(seq, 0) >= accepted;
INSERT INTO marks SELECT '', sum(seq) FROM folding HAVING count(*)
    ON CONFLICT DO UPDATE SET seq = seq + excluded.seq;
INSERT INTO producers SELECT '', sum(max(offered, accepted + dropped)), sum(accepted), sum(dropped), sum(coerced)
    FROM folding HAVING count(*)
    ON CONFLICT DO UPDATE SET offered = offered + excluded.offered, accepted = accepted + excluded.accepted,
        dropped = dropped + excluded.dropped, coerced = coerced + excluded.coerced;
DELETE FROM marks WHERE producer IN (SELECT producer FROM folding);
DELETE FROM producers WHERE producer IN (SELECT producer FROM folding);
UPDATE ended SET at = 0 WHERE producer IN (SELECT producer FROM folding);
DROP TABLE folding;
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
    ended: dict[str, int] = {}  # producers that will never send again: when that was said, in seconds since 1970

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
        if self._db.execute("PRAGMA user_version").fetchone() != (_SCHEMA_VERSION,):
            self._db.executescript(_SCHEMA)  # one of an earlier version lacks tables

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
            db.executemany("INSERT OR IGNORE INTO ended VALUES (?, ?)", change.ended.items())

    def known_keys(self, record_ids: Iterable[str]) -> set[str]:
        """Those of the given keyed record ids that were stored before."""
        return {row[0] for row in self._matching("SELECT record_id FROM keys WHERE record_id", record_ids)}

    def _matching(self, query: str, names: Iterable[str]) -> Iterator[tuple[Any, ...]]:
        """The rows of a query that ends before `IN`; SQLite takes only so many names at a time."""
        wanted = list(names)
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            yield from self._db.execute(f"{query} IN ({','.join('?' * len(part))})", part)

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

    def marks(self, producers: Iterable[str] | None = None) -> dict[str, int]:
        """Each producer's mark: everything up to this sequence number is written. "" is the sum of folded ones."""
        query = "SELECT producer, seq FROM marks"
        return dict(
            self._db.execute(query) if producers is None else self._matching(f"{query} WHERE producer", producers)
        )

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
        """The last known counters of producers that ended or count on another host. "" is the sum of folded ones."""
        rows = self._db.execute("SELECT producer, offered, accepted, dropped, coerced FROM producers")
        return {producer: ProducerCounters(*counters) for producer, *counters in rows}

    def fold(self, ended_before: int) -> list[str]:
        """Add up the written producers that ended before a moment (seconds since 1970), and give the folded ones.

        Those of earlier calls are given again until they are forgotten: whoever folds has other places to clear first.
        """
        with self._transaction() as db:
            for statement in _FOLD.split(";")[:-1]:
                db.execute(statement, (ended_before,) if "?" in statement else ())
        return [row[0] for row in self._db.execute("SELECT producer FROM ended WHERE at = 0")]

    def forget_folded(self, producers: Iterable[str]) -> None:
        """Leave nothing of folded producers but their part of the sums."""
        with self._transaction() as db:
            db.executemany("DELETE FROM ended WHERE producer = ? AND at = 0", ((name,) for name in producers))

    def groups(self) -> dict[str, dict[str, int]]:
        """The durable groups without Redis: up to which byte of each day file each one is served."""
        groups: dict[str, dict[str, int]] = {}
        for name, day, size in self._db.execute("SELECT name, day, size FROM groups"):
            groups.setdefault(name, {})[day] = size
        return groups

    def place_group(self, name: str, sizes: Mapping[str, int]) -> None:
        """Note up to which byte of each of these day files a group is served; one not known before is there then."""
        with self._transaction() as db:
            rows = [(name, day, size) for day, size in {"": 0, **sizes}.items()]
            db.executemany("INSERT OR REPLACE INTO groups VALUES (?, ?, ?)", rows)

    def forget_group(self, name: str) -> bool:
        """Forget a group without Redis; whether there was one."""
        return self._db.execute("DELETE FROM groups WHERE name = ?", (name,)).rowcount > 0

    def stream_groups(self) -> dict[str, str]:
        """The durable groups in Synapse, each with the entry at which it last stood."""
        return dict(self._db.execute("SELECT name, position FROM stream_groups"))

    def note_stream_groups(self, positions: Mapping[str, str]) -> None:
        """Note which durable groups there are in Synapse now, and where they stand."""
        with self._transaction() as db:
            db.execute("DELETE FROM stream_groups")
            db.executemany("INSERT INTO stream_groups VALUES (?, ?)", positions.items())


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
        # In this order the tables are in the file itself. In a WAL they would stay behind where the checkpoint of
        # `close` fails, which it does without a word.
        connection.executescript(_SCHEMA)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.close()
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        sync_folder(path.parent)
    finally:
        draft.unlink()


@contextmanager
def open_ledger(paths: DataPaths, kind: str) -> Iterator[Ledger]:
    """The ledger of a kind for a short look; it is created where there is none yet."""
    with inside():
        ledger = Ledger(paths.ledger(kind))
        try:
            yield ledger
        finally:
            ledger.close()


def chained_version(version: str, appended: Iterable[bytes]) -> str:
    """The version of a file after bytes were appended: SHA-256 over the former version and the bytes."""
    digest = hashlib.sha256(version.encode())
    for part in appended:
        digest.update(part)
    return digest.hexdigest()


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
