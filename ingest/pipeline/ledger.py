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
    erasures   what was erased, by erasure and day: rows, rejected lines, and the byte ranges of the day file that went
    erased_keys  idempotency keys of erased records, as a keyed hash of the record id: they keep an import that is run
               again from bringing the records back, and are forgotten as keys are

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
import hmac
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

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
CREATE TABLE IF NOT EXISTS erasures (place INTEGER PRIMARY KEY, id TEXT NOT NULL, day TEXT NOT NULL,
    rows INTEGER NOT NULL, rejects INTEGER NOT NULL, ranges TEXT NOT NULL, UNIQUE (id, day)) STRICT;
CREATE TABLE IF NOT EXISTS erased_keys (hash TEXT PRIMARY KEY, seen INTEGER NOT NULL) STRICT, WITHOUT ROWID;
PRAGMA user_version = 2;
"""
_SCHEMA_VERSION = 2
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

_PATIENCE_S = 30  # for what another process does with a ledger
DUPLICATES, QUARANTINED, CLOCK, FOREIGN = "duplicates", "quarantined", "clock", "foreign"
ERASED = "erased"
_IMPORTED_ROW = re.compile(r" row [0-9]+\Z")  # how the origin of an imported file's row ends


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


Ranges = list[tuple[int, int]]  # of bytes in a file: where each begins, and how long it is; in order, none touching


class DayErasure(msgspec.Struct, frozen=True):
    """What an erasure took from one day."""

    day: str
    rows: int  # of the day file
    rejects: int  # of the writer's rejected lines that count as stored
    ranges: Ranges  # of the day file as it was


class Erasure(msgspec.Struct, frozen=True):
    """What an erasure takes from one day, in one transaction."""

    id: str
    day: str
    file: CommittedFile | None  # the rewritten day file; None: it stays
    rows: int  # that went from it
    ranges: Ranges  # and where they had stood
    rejects: list[int]  # rejected lines that go, by their ids
    keyed: list[str]  # record ids whose idempotency keys become hashes


class Ledger:
    """One kind's ledger, open. Use it from one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open the ledger at `path`; an absent one is created."""
        if not path.exists():
            _create(path)
        self.path = path
        self._secret = b""  # the key of `erased_keys`, once it is needed
        self._db = _connect(path)
        if self._db.execute("PRAGMA user_version").fetchone() < (_SCHEMA_VERSION,):
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
        """Those of the given keyed record ids that were stored before, whether they were erased since or not."""
        wanted = list(record_ids)
        known = {row[0] for row in self._matching("SELECT record_id FROM keys WHERE record_id", wanted)}
        if wanted and self._db.execute("SELECT 1 FROM erased_keys LIMIT 1").fetchone():
            hashes = {self._erased_key(record_id): record_id for record_id in wanted}
            known |= {hashes[row[0]] for row in self._matching("SELECT hash FROM erased_keys WHERE hash", hashes)}
        return known

    def _erased_key(self, record_id: str) -> str:
        self._secret = self._secret or secret_key(self.path.parent)
        return keyed_hash(self._secret, record_id)

    def _matching(self, query: str, names: Iterable[str]) -> Iterator[tuple[Any, ...]]:
        """The rows of a query that ends before `IN`; SQLite takes only so many names at a time."""
        wanted = list(names)
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            yield from self._db.execute(f"{query} IN ({','.join('?' * len(part))})", part)

    def forget_keys(self, older_than_s: float) -> None:
        """Forget idempotency keys that were stored more than `older_than_s` seconds ago."""
        for table in ("keys", "erased_keys"):
            self._db.execute(f"DELETE FROM {table} WHERE seen < ?", (int(time.time() - older_than_s),))

    def erase(self, erasure: Erasure) -> None:
        """Commit what an erasure takes, whole or not at all: size and version, counts, rejects, keys, places."""
        self._db.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten, in this file at once
        with self._transaction() as db:
            if erasure.file is not None:
                size, rows, version, mtime_ns = msgspec.structs.astuple(erasure.file)
                db.execute(
                    "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", (erasure.day, size, rows, version, mtime_ns)
                )
            stored = self._erase_rejects(erasure)
            ranges = msgspec.json.encode(erasure.ranges).decode()
            db.execute(
                "INSERT INTO erasures (id, day, rows, rejects, ranges) VALUES (?, ?, ?, ?, ?)",
                (erasure.id, erasure.day, erasure.rows, stored, ranges),
            )
            db.execute(
                "INSERT INTO counts VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n",
                (erasure.day, ERASED, erasure.rows + stored),
            )
            for record_id in erasure.keyed:
                key = db.execute("DELETE FROM keys WHERE record_id = ? RETURNING seen", (record_id,)).fetchone()
                if key is not None:
                    hashed = self._erased_key(record_id)
                    db.execute("INSERT OR REPLACE INTO erased_keys VALUES (?, ?)", (hashed, key[0]))
            places = db.execute("SELECT name, size FROM groups WHERE day = ?", (erasure.day,)).fetchall()
            db.executemany(
                "UPDATE groups SET size = ? WHERE name = ? AND day = ?",
                [(place_after(place, erasure.ranges), name, erasure.day) for name, place in places],
            )

    def _erase_rejects(self, erasure: Erasure) -> int:
        """Delete rejected lines, and take them out of their counters; gives how many of them counted as stored."""
        stored = 0
        for place in erasure.rejects:
            (origin,) = self._db.execute("DELETE FROM rejects WHERE id = ? RETURNING origin", (place,)).fetchone()
            counter = FOREIGN if is_foreign(origin) else QUARANTINED
            self._db.execute("UPDATE counts SET n = n - 1 WHERE day = ? AND name = ?", (erasure.day, counter))
            stored += counter == QUARANTINED
        return stored

    def erasures(self, erasure_id: str | None = None) -> list[DayErasure]:
        """What was erased, in the order it was: all of it, or by one erasure."""
        query = "SELECT day, rows, rejects, ranges FROM erasures"
        if erasure_id is None:
            rows = self._db.execute(f"{query} ORDER BY place")
        else:
            rows = self._db.execute(f"{query} WHERE id = ? ORDER BY place", (erasure_id,))
        return [DayErasure(d, n, r, msgspec.json.decode(ranges, type=Ranges)) for d, n, r, ranges in rows]

    def count_erasures(self) -> int:
        """How many `erasures` there are; each only adds to them."""
        return int(self._db.execute("SELECT count(*) FROM erasures").fetchone()[0])

    def rejects_by_id(self, day: str) -> dict[int, Reject]:
        """The day's rejected lines by their ids here."""
        rows = self._db.execute("SELECT id, day, reason, origin, line FROM rejects WHERE day = ? ORDER BY id", (day,))
        return {place: Reject(*reject) for place, *reject in rows}

    def wipe(self, patience_s: float) -> bool:
        """Leave nothing of deleted rows in free pages or in the write-ahead log; False if a reader kept it so long."""
        self._db.execute("VACUUM")
        self._db.execute(f"PRAGMA busy_timeout = {1000 * patience_s:.0f}")  # the checkpoint waits so long by itself
        busy, _, _ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._db.execute(f"PRAGMA busy_timeout = {1000 * _PATIENCE_S}")
        return not busy

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

    def moment(self) -> tuple[int, int]:
        """Changes with every commit, by this connection or another: the same moment, the same content."""
        ((version,),) = self._db.execute("PRAGMA data_version")  # counts other connections' commits
        return int(version), self._db.total_changes

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

    def place_group(self, name: str, sizes: Mapping[str, int], erasures: int | None = None) -> bool:
        """Note up to which byte of each of these day files a group is served; one not known before is there then.

        With `erasures`, how many there were when these bytes were counted: False, and nothing noted, if there are more.
        """
        with self._transaction() as db:
            if erasures is not None and self.count_erasures() != erasures:
                return False
            rows = [(name, day, size) for day, size in {"": 0, **sizes}.items()]
            db.executemany("INSERT OR REPLACE INTO groups VALUES (?, ?, ?)", rows)
        return True

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
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_PATIENCE_S)
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


def is_foreign(origin: str) -> bool:
    """Whether a reject of that origin came from another program, and so is no part of what was stored."""
    return not (origin.startswith("producer ") or _IMPORTED_ROW.search(origin))


def secret_key(state: Path) -> bytes:
    """The data folder's own key for `keyed_hash`, made once."""
    path = state / "erasures" / "key"
    if not path.exists():
        make_folder(path.parent)
        draft = path.with_name(f".key.{os.getpid()}.{threading.get_ident()}")
        draft.touch(mode=PRIVATE_FILE)
        try:
            draft.write_bytes(os.urandom(32))
            with draft.open("rb") as made:
                os.fsync(made.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink()
        sync_folder(path.parent)
    return path.read_bytes()


def keyed_hash(key: bytes, text: str) -> str:
    """HMAC-SHA256 (RFC 2104), in hex, of a text that must not be kept as it is."""
    return hmac.digest(key, text.encode(errors="surrogatepass"), "sha256").hex()


def place_after(place: int, erased: Ranges) -> int:
    """Where a place in a file stands after these ranges of it were erased."""
    return place - sum(max(0, min(length, place - start)) for start, length in erased)


def rewritten_file(path: Path, version: str) -> Path:
    """Where the new content of a day file stands, complete and synced, until that version is committed and it moves."""
    return path.with_name(f"{path.name}.{version[:32]}")


def put_rewritten_in_place(path: Path, committed: CommittedFile) -> bool:
    """Put the committed version in the place of the day file, if its rename is still to come; whether it was.

    A day file is rewritten (with more columns, or without erased rows) in this order: new file, fsync, ledger, rename.
    Anybody may do the last step, readers too: the name says which version it is.
    """
    try:
        rewritten_file(path, committed.version).replace(path)
    except FileNotFoundError:
        return False
    sync_folder(path.parent)
    return True


def open_committed(ledger: Ledger, path: Path, day: str, seen: CommittedFile) -> tuple[BinaryIO, CommittedFile]:
    """A day file, open, and what is committed of it: as it was `seen`, or as it is since.

    Whoever rewrites the day from then on makes another file: what is committed of this one stays as it is.
    """
    while True:
        put_rewritten_in_place(path, seen)
        source = path.open("rb")
        present = ledger.file(day) or seen
        if present == seen:  # so no other file was put in its place before it was open
            return source, seen
        source.close()
        seen = present


def chained_version(version: str, appended: Iterable[bytes]) -> str:
    """The version of a file after bytes were appended: SHA-256 over the former version, their number and their CRC-32.

    Over the bytes themselves it would take 0.3 microseconds a record and say no more: it only has to be another one.
    """
    size = crc = 0
    for part in appended:
        size, crc = size + len(part), crc32(part, crc)
    return hashlib.sha256(f"{version} {size} {crc}".encode()).hexdigest()


def settle_edits(ledger: Ledger, paths: DataPaths, kind: str, days: Iterable[str] | None = None) -> None:
    """Notice what somebody else did to committed day files, by size and mtime, and give edited ones a new version.

    Only a file whose mtime differs from the ledger's is read. Raises DamagedFile for one that is shorter than
    committed, or gone: nothing can stand for the missing rows. Rows appended by others are the writer's to handle.
    """
    # A day at a time, where days are named: of a year's files each of its days would read all.
    files = ledger.files() if days is None else {day: ledger.file(day) for day in days}
    for day, file in files.items():
        if file is None:
            continue
        path = paths.training(kind, day)
        try:
            _settle_day(ledger, path, day, file)
        except DamagedFile:
            present = ledger.file(day)
            if present is None or present.version == file.version:
                raise
            _settle_day(ledger, path, day, present)  # rewritten by an erasure since the ledger was read


def _settle_day(ledger: Ledger, path: Path, day: str, committed: CommittedFile) -> None:
    put_rewritten_in_place(path, committed)
    try:
        status = path.stat()
    except FileNotFoundError as err:
        raise DamagedFile(
            f"{path}: expected {committed.size} committed bytes, but the file is gone; restore it from a backup"
        ) from err
    if status.st_size < committed.size:
        raise _truncated(path, status.st_size, committed.size)
    if status.st_mtime_ns != committed.mtime_ns and status.st_size == committed.size:
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
