"""Turns day files, ledger, spool and imported files into what they would be without certain records.

An erasure has an id, and the same id may come again: killed at any instruction it is run again and ends the same.
The order, for each kind, while its writer's lock is held and all that waited is written:

    each day: rewritten file beside the old one, fsync → one ledger transaction → rename
    → free pages of the ledger wiped → imported files → written text in the spool

Killed before the transaction: a file beside the day file that no version names. It is litter, and the next writer
removes it.

Killed after it: the ledger has size, rows and version of the rewritten file, and the day file is the old one. Whoever
looks at the day next, writer or reader, puts the file that is named after the committed version in its place
(`put_rewritten_in_place`).

Killed after the renames: deleted rows may be left in free pages of the ledger, in imported files or in the spool. The
erasure removes them when it is run again; its id among the ledger's `erasures` says which days are done.

A day file never ends up shorter than committed, and its old content never counts under the new version. Every other row
keeps its bytes and its order; the version of a rewritten day is the hash of its content. Marks stay: what is sent again
of an erased record is passed over. What the same agent stores later is new, and stays.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from ingest.errors import DamagedFile, FlushTimeout, WriterBusy
from ingest.pipeline.adoption import blank_rows, drop_records, has_unknown_files, received_files
from ingest.pipeline.failpoints import Failpoint
from ingest.pipeline.ledger import (
    CommittedFile,
    Erasure,
    Ledger,
    Ranges,
    open_ledger,
    put_rewritten_in_place,
    rewritten_file,
)
from ingest.pipeline.locks import FileLock, asking, holder_of
from ingest.pipeline.partitions import PRIVATE_FILE, DataPaths, sync_folder
from ingest.pipeline.spool import blank_written, spooled_heads
from ingest.pipeline.writer import KindWriter, make_shipper
from ingest.records import Kind, is_keyed, kind_named, unescape_text
from ingest.settings import Settings

# The platform takes what it needs of the write path from here, and from nowhere else (pyproject.toml).
__all__ = [
    "Doomed", "DoomedSets", "Failpoint", "FileLock", "drop_records", "erase_from_synapse", "erase_leftovers",
    "erase_rows", "holding_writers", "line_digest", "rewrite_synapse_files",
    "write_waiting",
]  # fmt: skip

_READER_PATIENCE_S = 5.0  # readers are through with a ledger in milliseconds, and all writers wait for the slowest one
_PATIENCE_S = 60.0  # a writer lets go between two commits; one of 16 MiB records on a slow disk takes seconds
_POLL_S = 0.02
_LOOK_INTERVAL_S = 0.1
_FIELD = rb'(?:"[^"]*+(?:""[^"]*+)*+"|[^",\n]*+)'

Note = Callable[[Path, str, str | None], None]  # a file, its former SHA-256, and the one that it gets (None: it goes)


class Doomed(msgspec.Struct, frozen=True):
    """What of one kind is to be erased, by day."""

    records: dict[str, list[str]] = {}  # record ids
    lines: dict[str, list[str]] = {}  # SHA-256 of lines that are no records, but in quarantine
    shared: dict[str, list[str]] = {}  # by record id: other days in which a record of that id stays


class DoomedSets:
    """`Doomed` as sets, all days together, for what is not kept by the day.

    A record id goes wherever it stands, but on days in which somebody else's record of that id stays. It is not looked
    for by its day alone, for a record is not always filed under the day of its timestamp.
    """

    def __init__(self, doomed: Doomed) -> None:
        """Gather the days."""
        self.records = {record_id for ids in doomed.records.values() for record_id in ids}
        self.lines = {digest for digests in doomed.lines.values() for digest in digests}
        self._shared = doomed.shared

    def has(self, record_id: str, timestamp: str) -> bool:
        """Whether the record with that id and that timestamp (RFC 3339 in UTC) is to be erased."""
        return record_id in self.records and timestamp[:10] not in self._shared.get(record_id, ())

    def has_record(self, line: bytes) -> bool:
        """Whether a record, given as its JSON line, is to be erased; a line that is no record is not."""
        try:
            record = _named_decoder.decode(line)
        except (msgspec.DecodeError, RecursionError):
            return False
        return self.has(record.record_id, record.timestamp)

    def has_line(self, line: bytes) -> bool:
        """Whether a line that is no record is to be erased."""
        return bool(self.lines) and line_digest(line) in self.lines


class _Named(msgspec.Struct):
    record_id: str
    timestamp: str = ""


_named_decoder = msgspec.json.Decoder(_Named)


def line_digest(line: bytes) -> str:
    """What stands for a rejected line in `Doomed`."""
    return hashlib.sha256(line).hexdigest()


@contextmanager
def holding_writers(settings: Settings, kinds: Iterable[str]) -> Iterator[dict[str, FileLock]]:
    """Hold the writer's lock of each kind: running writers let go between two commits and come back afterwards.

    Raises WriterBusy naming the process that does not let go.
    """
    paths = DataPaths(settings.data_dir)
    with ExitStack() as stack:
        locks = {kind: FileLock(paths.lock(kind)) for kind in kinds}
        for kind, lock in locks.items():
            stack.enter_context(asking(paths.lock(kind)))
            stack.callback(lock.release)
        deadline = time.monotonic() + _PATIENCE_S
        for kind, lock in locks.items():
            while not lock.acquire():
                if time.monotonic() > deadline:
                    raise _not_let_go(paths, kind)
                time.sleep(_POLL_S)
        yield locks


def _not_let_go(paths: DataPaths, kind: str) -> WriterBusy:
    holder = holder_of(paths.lock(kind))
    who = "another process" if holder is None else f"process {holder}"
    return WriterBusy(
        f"{kind}: {who} writes this kind and did not let go within {_PATIENCE_S:.0f} s; stop it and run this again; "
        "nothing was erased"
    )


def write_waiting(settings: Settings, kind: str, lock: FileLock) -> None:
    """Write what was accepted on this host before this call, and with Redis what was in the stream.

    Raises FlushTimeout when it is not written after a minute, and whatever `KindWriter.step` does.
    """
    paths = DataPaths(settings.data_dir)
    heads = {name: counters.accepted for name, counters in spooled_heads(settings.spool, kind).items()}
    if settings.redis_url is None and not (heads or paths.ledger(kind).exists() or has_unknown_files(paths, kind)):
        return
    stream_head = _stream_head(settings, kind)
    writer, shipper = KindWriter(settings, kind, lock), make_shipper(settings, kind)
    deadline, next_look = time.monotonic() + _PATIENCE_S, 0.0
    try:
        while True:
            moved = (0 if shipper is None else shipper.step()) + writer.step()
            if moved and time.monotonic() < next_look:
                continue  # an agent that lives goes on storing: not all that moves is waited for
            next_look = time.monotonic() + _LOOK_INTERVAL_S
            writer.finish()
            with open_ledger(paths, kind) as ledger:
                marks = ledger.marks(heads)
            if all(marks.get(name, 0) >= head for name, head in heads.items()) and _is_read(
                settings, kind, stream_head
            ):
                return
            if time.monotonic() > deadline:
                raise FlushTimeout(
                    f"{kind}: records still wait after {_PATIENCE_S:.0f} s, in the spool or behind a gap in Redis; "
                    "expected all of them written before an erasure: see `tds status` and `tds doctor`"
                )
            if not moved:
                time.sleep(_POLL_S)
    finally:
        writer.reset()  # not `close`: the lock stays with the erasure
        if shipper is not None:
            shipper.close()


def _stream_head(settings: Settings, kind: str) -> tuple[int, int] | None:
    if settings.redis_url is None:
        return None
    from ingest.pipeline.stream_erasure import stream_head  # redis-py takes a quarter of a second to import

    return stream_head(settings, kind)


def _is_read(settings: Settings, kind: str, head: tuple[int, int] | None) -> bool:
    if head is None:
        return True
    from ingest.pipeline.stream_erasure import is_read  # as above

    return is_read(settings, kind, head)


def erase_rows(
    settings: Settings, kind_name: str, erasure_id: str, doomed: Doomed, note: Note, failpoint: Failpoint
) -> dict[str, str]:
    """Erase rows, rejected lines and idempotency keys of one kind; done already, only what was cut off is finished.

    The kind's lock has to be held and nothing may wait. Gives the days that were left as they are, each with the
    reason: their files are not what the ledger says, and one of them must not keep the others from being erased.
    Raises WriterBusy for a ledger that somebody keeps reading, and DamagedFile for a file that changes under way.
    """
    paths, kind, damaged = DataPaths(settings.data_dir), kind_named(kind_name), dict[str, str]()
    if not paths.ledger(kind.name).exists():
        return damaged
    with open_ledger(paths, kind.name) as ledger:
        done = {erased.day for erased in ledger.erasures(erasure_id)}
        for day in sorted({*doomed.records, *doomed.lines} - done):
            path, committed = paths.training(kind.name, day), ledger.file(day)
            size = path.stat().st_size if path.exists() else 0
            if committed is not None and size != committed.size:
                damaged[day] = _damage(size, committed)
                continue
            erasure = _prepare(paths, kind, ledger, erasure_id, doomed, day, note)
            if erasure.file is not None or erasure.rejects:
                failpoint.reach("rewrite")
                ledger.erase(erasure)
                failpoint.reach("erase")
        for erased in ledger.erasures(erasure_id):
            file = ledger.file(erased.day)
            if file is not None:
                put_rewritten_in_place(paths.training(kind.name, erased.day), file)
                failpoint.reach("rename")
        _forget_intent(paths, kind)
        if not ledger.wipe(_READER_PATIENCE_S):
            raise WriterBusy(
                f"{ledger.path}: another process, such as a notebook, has been reading it for more than "
                f"{_READER_PATIENCE_S:.0f} s, so that deleted rows stay in it; close what reads it and run this again: "
                "the erasure is finished then"
            )
    failpoint.reach("wipe")
    return damaged


def _damage(size: int, committed: CommittedFile) -> str:
    return (
        f"has {size} bytes, but {committed.size} are committed; nothing was erased from this day nor from what was "
        "made of it alone: see `tds doctor`, restore the file from a backup, and erase again"
    )


def _prepare(
    paths: DataPaths, kind: Kind, ledger: Ledger, erasure_id: str, doomed: Doomed, day: str, note: Note
) -> Erasure:
    """Rewrite a day file beside the old one, and gather the transaction that makes it count."""
    records, lines = set(doomed.records.get(day, ())), set(doomed.lines.get(day, ()))
    path, committed = paths.training(kind.name, day), ledger.file(day)
    rejects = [place for place, reject in ledger.rejects_by_id(day).items() if line_digest(reject.line) in lines]
    keyed = sorted(record_id for record_id in records if is_keyed(record_id))
    if committed is None:
        return Erasure(erasure_id, day, None, 0, [], rejects, keyed)
    draft = path.with_suffix(".csv.erasing")
    try:
        rewriting = _Rewriting(path, draft, committed, records, lines)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    if not rewriting.ranges:
        return Erasure(erasure_id, day, None, 0, [], rejects, keyed)
    note(path, rewriting.old_sha256, rewriting.file.version)
    return Erasure(erasure_id, day, rewriting.file, rewriting.erased, rewriting.ranges, rejects, keyed)


class _Rewriting:
    """A day file, written anew without some rows under the name of its new version."""

    def __init__(self, path: Path, draft: Path, committed: CommittedFile, records: set[str], lines: set[str]) -> None:
        self.ranges: Ranges = []
        self.erased = 0
        self._records, self._lines = records, lines
        with path.open("rb") as old, draft.open("wb") as new:
            os.fchmod(new.fileno(), PRIVATE_FILE)
            former, present = hashlib.sha256(), hashlib.sha256()
            header = old.readline()
            self._pattern = _id_pattern(header)
            place = 0
            line = header
            while line:
                former.update(line)
                if place and self._is_doomed(line):
                    self._leave_out(place, len(line))
                else:
                    new.write(line)
                    present.update(line)
                place += len(line)
                line = old.readline()
            new.flush()
            os.fsync(new.fileno())
            status = os.fstat(new.fileno())
        if place != committed.size:
            raise DamagedFile(f"{path}: {_damage(place, committed)}")
        self.old_sha256 = former.hexdigest()
        self.file = CommittedFile(status.st_size, committed.rows - self.erased, present.hexdigest(), status.st_mtime_ns)
        if self.ranges:
            draft.replace(rewritten_file(path, self.file.version))
        else:
            draft.unlink()
        sync_folder(path.parent)

    def _is_doomed(self, line: bytes) -> bool:
        found = None if self._pattern is None else self._pattern.match(line)
        if found is not None and _record_id(found[1]) in self._records:
            return True
        return bool(self._lines) and line_digest(line.removesuffix(b"\n")) in self._lines

    def _leave_out(self, place: int, length: int) -> None:
        self.erased += 1
        if self.ranges and sum(self.ranges[-1]) == place:
            start, before = self.ranges[-1]
            self.ranges[-1] = start, before + length
        else:
            self.ranges.append((place, length))


def _id_pattern(header: bytes) -> re.Pattern[bytes] | None:
    """What finds the record id in a row of that header; None where there is no such column."""
    names = header.decode(errors="replace").rstrip("\n").split(",")
    if "record_id" not in names:
        return None
    return re.compile(rb"(?:%s,){%d}(%s)(?:,|\n)" % (_FIELD, names.index("record_id"), _FIELD))


def _record_id(cell: bytes) -> str:
    text = cell.decode(errors="replace")
    return unescape_text(text[1:-1].replace('""', '"')) if text.startswith('"') else text


def _forget_intent(paths: DataPaths, kind: Kind) -> None:
    """Its byte ranges are of files that are gone: a stranger's rows could stand there by chance."""
    intent = paths.state / f"{kind.name}.appending"
    if intent.exists():
        os.truncate(intent, 0)


def erase_leftovers(settings: Settings, kind_name: str, doomed: Doomed, note: Note) -> None:
    """Erase what imported files of one kind hold of the records, and the text of all written records in the spool."""
    paths, kind = DataPaths(settings.data_dir), kind_named(kind_name)
    sets = DoomedSets(doomed)
    for _, path in received_files(paths, kind.name):
        old = _file_digest(path)
        if blank_rows(kind, path, lambda row: sets.has(row.record_id, row.timestamp) or sets.has_line(row.line)):
            note(path, old, _file_digest(path))
    if paths.ledger(kind.name).exists():
        with open_ledger(paths, kind.name) as ledger:
            marks = ledger.marks()
        blank_written(settings.spool, kind.name, marks)


def _file_digest(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def erase_from_synapse(settings: Settings, kind: str, doomed: Doomed) -> int:
    """Erase the records from a kind's stream in Redis; gives how many were there. Raises SynapseUnavailable."""
    from ingest.pipeline.stream_erasure import erase_from_stream  # with Redis only: 0.25 s to import

    sets = DoomedSets(doomed)
    return erase_from_stream(settings, kind, lambda line: sets.has_record(line) or sets.has_line(line))


def rewrite_synapse_files(settings: Settings) -> str:
    """Have Redis write its files anew; says in words what was done. Raises SynapseUnavailable."""
    from ingest.pipeline.stream_erasure import rewrite_files  # as above

    return rewrite_files(settings)
