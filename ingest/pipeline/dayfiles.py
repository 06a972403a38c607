"""Appends rows to one kind's day files and holds what is on disk against the ledger.

A day file that is longer than its committed size holds either what this writer appended and did not live to commit,
or what somebody else wrote there. The two are told apart by the intent: before each append, the ranges about to be
written go to `state/<kind>.appending`. Bytes within the intent are cut off, because the spool or Synapse gives those
records again; bytes outside of it are somebody else's and go to quarantine. It has to outlive the process and not the
machine, so it is synced only for a day's first batch, which would else be taken for a file of another store. (After a
power cut another intent may be missing: then a torn batch is taken for somebody else's rows, lands in quarantine too,
and is written again from the spool.)

    intent → append → fdatasync → fsync of the folder for a new file        the caller then commits the ledger

A day file of an older version of ours has fewer columns. Before the first append to it, it is rewritten with all of
today's: new file beside it, fsync, ledger, rename. An erasure rewrites day files in the same way. Killed before the
ledger, the new file is no more than litter; killed after it, its name says that it is the committed version, and the
next one to look, writer or reader, does the rename.
"""

import hashlib
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from ingest.errors import DamagedFile
from ingest.pipeline.adoption import receive_day_file
from ingest.pipeline.failpoints import Failpoint
from ingest.pipeline.ledger import (
    FOREIGN,
    Commit,
    CommittedFile,
    Ledger,
    Reject,
    chained_version,
    put_rewritten_in_place,
    rewritten_file,
    settle_edits,
)
from ingest.pipeline.partitions import PRIVATE_FILE, DataPaths, make_folder, sync_data, sync_folder
from ingest.records import Kind

# Open files of one kind, and how many are written before they are synced. A shuffled backfill of a year touches 365
# days, and an agent's process may have 1,024 files open in all.
_MAX_OPEN = 32
_OURS = re.compile(r"\.(widening|widened|erasing|[0-9a-f]{32})")  # what a day file is rewritten under
_SMALL_PIECE = 32 << 10
logger = logging.getLogger(__name__)
_INTENT = msgspec.json.Decoder(dict[str, tuple[int, int]])


class DayFiles:
    """One kind's day files, open for appending. Only the holder of the kind's lock may have one."""

    def __init__(self, paths: DataPaths, kind: Kind, ledger: Ledger, failpoint: Failpoint) -> None:
        """Cut torn tails off and set strange rows aside, so that each file ends where the ledger says."""
        self._paths, self._kind, self._ledger, self._failpoint = paths, kind, ledger, failpoint
        self._folder = paths.training(kind.name, "0000-00-00").parent
        make_folder(self._folder)
        self._committed = ledger.files()
        self._current = set[str]()  # days whose header is known to be today's
        self.has_received = False  # a file that the ledger does not know was moved away, to be imported
        self._open: OrderedDict[str, int] = OrderedDict()  # descriptors, the longest unused first
        self._intent_file = os.open(paths.state / f"{kind.name}.appending", os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
        self._intent = self._read_intent()
        if not self._intent:
            sync_folder(paths.state)  # the file may be new
        self._finish_rewriting()
        on_disk = {path.stem[-10:] for path in self._folder.glob(f"{kind.name}_????-??-??.csv")}
        for day in sorted(on_disk):
            path = paths.training(kind.name, day)
            if not _size(path) and day not in self._committed:
                path.unlink()  # a first batch of ours that a power cut took before its bytes were on the disk
            elif _size(path) > self._committed_size(day):
                try:
                    self._settle(day)
                except DamagedFile as err:
                    logger.error("%s", err)  # noqa: TRY400 - no traceback: whoever appends to that day gets the error

    def _finish_rewriting(self) -> None:
        """Put rewritten day files in place whose version is committed; the others are litter."""
        for rewritten in self._folder.glob(f"{self._kind.name}_????-??-??.csv.*"):
            path = rewritten.with_suffix("")
            committed = self._committed.get(path.stem[-10:])
            if committed is not None and put_rewritten_in_place(path, committed):
                continue
            is_former = rewritten.suffix == ".widened"  # of the former version, which renamed it after the commit too
            if is_former and committed is not None and _size(path) < committed.size == _size(rewritten):
                rewritten.replace(path)
            elif _OURS.fullmatch(rewritten.suffix):
                rewritten.unlink(missing_ok=True)

    def _committed_size(self, day: str) -> int:
        committed = self._committed.get(day)
        return 0 if committed is None else committed.size

    def append(self, rows: Mapping[str, Sequence[bytes]], counts: Mapping[str, int]) -> dict[str, CommittedFile]:
        """Write each day's rows, given as pieces of text, behind its committed size and bring them to the disk.

        `counts` says how many rows they are. Gives the files' new state for the caller to commit; until `adopt` the
        ledger's state is the one that counts. Raises DamagedFile for a file that is shorter than committed, OSError
        when the disk refuses.
        """
        pending: dict[str, tuple[CommittedFile, Sequence[bytes]]] = {}
        for day, pieces in rows.items():
            committed = self._ready(day)
            if sum(map(len, pieces)) < _SMALL_PIECE * len(pieces):
                pieces = [b"".join(pieces)]  # noqa: PLW2901 - one write for many a few rows each
            pending[day] = committed, pieces if committed.size else [self._kind.header, *pieces]
        self._write_intent(
            {day: (file.size, file.size + sum(map(len, pieces))) for day, (file, pieces) in pending.items()}
        )
        self._failpoint.reach("intent")
        written: dict[str, CommittedFile] = {}
        for group in _groups(list(pending), _MAX_OPEN):
            descriptors = {day: self._descriptor(day) for day in group}
            ends = {day: _write_all(descriptors[day], pending[day][1], pending[day][0].size) for day in group}
            self._failpoint.reach("append")
            _sync_all(list(descriptors.values()))
            for day, descriptor in descriptors.items():
                file, pieces = pending[day]
                version = chained_version(file.version, pieces)
                mtime_ns = os.fstat(descriptor).st_mtime_ns
                written[day] = CommittedFile(ends[day], file.rows + counts[day], version, mtime_ns)
        if not all(file.size for file, _ in pending.values()):
            sync_folder(self._folder)
        self._failpoint.reach("sync")
        return written

    def adopt(self, files: Mapping[str, CommittedFile]) -> None:
        """Take over the state that was committed."""
        self._committed.update(files)

    def close(self) -> None:
        """Close all files. May be called twice."""
        while self._open:
            os.close(self._open.popitem()[1])
        if self._intent_file >= 0:
            os.close(self._intent_file)
            self._intent_file = -1

    def _ready(self, day: str) -> CommittedFile:
        """The day's state, after others' doings are settled."""
        path = self._paths.training(self._kind.name, day)
        descriptor = self._descriptor(day)
        committed = self._committed.get(day, CommittedFile(0, 0, "", 0))
        status = os.fstat(descriptor)
        if (status.st_size, status.st_mtime_ns) != (committed.size, committed.mtime_ns):
            self._settle(day)
            committed, descriptor = self._committed.get(day, committed), self._descriptor(day)
        if day not in self._current:
            if committed.size and _header(descriptor) != self._kind.header:
                committed = self._widen(day, path, committed)
            self._current.add(day)
        return committed

    def _widen(self, day: str, path: Path, committed: CommittedFile) -> CommittedFile:
        """Rewrite a day file of an older version of ours with all of today's columns."""
        temporary = path.with_suffix(".csv.widening")
        with path.open("rb") as old, temporary.open("wb") as new:
            os.fchmod(new.fileno(), PRIVATE_FILE)
            names = old.readline().decode().rstrip("\n").split(",")
            if not set(names) <= set(self._kind.types):
                raise DamagedFile(
                    f"{path}: header {','.join(names)}: expected columns of {self._kind.name}; a newer version wrote "
                    "this file: use that one, or move the file away"
                )
            new.write(self._kind.header)
            while old.tell() < committed.size:
                new.write(self._kind.widen_row(names, old.readline()))
            new.flush()
            os.fsync(new.fileno())
            status = os.fstat(new.fileno())
        with temporary.open("rb") as new:
            version = hashlib.file_digest(new, "sha256").hexdigest()
        widened = CommittedFile(status.st_size, committed.rows, version, status.st_mtime_ns)
        temporary.replace(rewritten_file(path, version))
        sync_folder(self._folder)
        self._ledger.commit(Commit(files={day: widened}))
        put_rewritten_in_place(path, widened)
        self._committed[day] = widened
        return widened

    def _descriptor(self, day: str) -> int:
        """The day's file, open. It stays open while the next `_MAX_OPEN` - 1 others are asked for."""
        path = self._paths.training(self._kind.name, day)
        descriptor = self._open.pop(day, None)
        if descriptor is not None and not _is_same_file(descriptor, path):
            os.close(descriptor)  # an editor put another file in its place
            descriptor = None
        if descriptor is None:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
        self._open[day] = descriptor
        if len(self._open) > _MAX_OPEN:
            os.close(self._open.popitem(last=False)[1])
        return descriptor

    def _settle(self, day: str) -> None:
        """Make the file end at its committed size: own torn rows are cut off, others' rows go to quarantine first."""
        path = self._paths.training(self._kind.name, day)
        committed = self._committed.get(day)
        size, end = _size(path), self._committed_size(day)
        if size > end:
            start, stop = self._intent.get(day, (0, 0))
            own_end = min(stop, size) if start == end else end
            if committed is None and own_end < size:
                receive_day_file(self._paths, self._kind.name, path)
                self.has_received = True
                return
            if end:
                _require_line_end(path, end)
            if own_end < size:
                self._set_aside(day, path, own_end)
            if not end:
                path.unlink()  # a first batch of ours that was cut off before its commit
                return
            mtime_ns = _cut(path, end)
            if committed is not None and own_end == size:  # nobody else was here: the new mtime is our own doing
                self._ledger.commit(Commit(files={day: msgspec.structs.replace(committed, mtime_ns=mtime_ns)}))
        if committed is not None:
            settle_edits(self._ledger, self._paths, self._kind.name, [day])
            self._committed[day] = self._ledger.file(day) or committed

    def _set_aside(self, day: str, path: Path, start: int) -> None:
        """Put rows that somebody else appended into quarantine, with the byte at which each began."""
        change = Commit()
        with path.open("rb") as file:
            file.seek(start)
            position = start
            for line in file:
                origin = f"{path.name} byte {position}"
                change.rejects.append(
                    Reject(day, "appended by another program: the writer owns this file", origin, line)
                )
                position += len(line)
        change.count(day, FOREIGN, len(change.rejects))
        self._ledger.commit(change)

    def _read_intent(self) -> dict[str, tuple[int, int]]:
        text = os.pread(self._intent_file, os.fstat(self._intent_file).st_size, 0)
        try:
            return _INTENT.decode(text.partition(b"\n")[0]) if text else {}
        except msgspec.DecodeError:
            return {}  # cut short by a power cut; see the module's docstring

    def _write_intent(self, intent: dict[str, tuple[int, int]]) -> None:
        self._intent = intent
        text = msgspec.json.encode(intent) + b"\n"
        _write_all(self._intent_file, [text], 0)
        if not all(start for start, _ in intent.values()):
            sync_data(self._intent_file)  # a new file that neither ledger nor intent know is taken for another store's


def _groups(days: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (days[start : start + size] for start in range(0, len(days), size))


def _write_all(descriptor: int, pieces: Iterable[bytes], offset: int) -> int:
    """Write pieces one behind the other from `offset` on; gives where they end."""
    for piece in pieces:
        view = memoryview(piece)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written
    return offset


def _sync_all(descriptors: Sequence[int]) -> None:
    """Bring files to the disk. Many at once: the file system commits them together, 365 in 60 ms instead of 170."""
    if len(descriptors) == 1:
        sync_data(descriptors[0])
        return
    from concurrent.futures import ThreadPoolExecutor  # 10 ms to import: only where several days are written at once

    with ThreadPoolExecutor(min(16, len(descriptors)), "tds-sync") as threads:
        list(threads.map(sync_data, descriptors))


def _cut(path: Path, size: int) -> int:
    """Cut a file to a size; gives its mtime after that."""
    with path.open("r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_mtime_ns


def _header(descriptor: int) -> bytes:
    return os.pread(descriptor, 64 << 10, 0).partition(b"\n")[0] + b"\n"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _require_line_end(path: Path, end: int) -> None:
    with path.open("rb") as file:
        file.seek(end - 1)
        if file.read(1) != b"\n":
            raise DamagedFile(
                f"{path}: byte {end - 1} is not the end of a row, but {end} bytes are committed; "
                "somebody rewrote the file: restore it from a backup"
            )
