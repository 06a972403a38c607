"""Turns accepted records into lines on disk that survive the process, and gives them to whoever writes on.

Layout, for each kind and each producer (a producer is one process's use of one kind; its id is new after a fork):

    <spool>/<kind>/<producer>/counters                 32 bytes: accepted, offered, dropped, coerced (u64 each);
                                                       held with flock by the producer while it lives
    <spool>/<kind>/<producer>/<first seq, 20 digits>.seg
    <spool>/<kind>/<producer>/<first seq, 20 digits>.spare    a segment that is written, to be used again

    segment = head (magic "TDSSPL03", first seq u64, the kind's CSV header with its line feed), records, index
    record  = one line with its line feed, records grow up from the head: a row of the day's CSV file, or JSON
    index   = for each record: end of its line u32, check u32, day u32; it grows down from the end of the preallocated
              segment. Numbers are in the machine's order: a spool is one host's
    day     = days from 1970 to the one that a CSV row belongs to; 0: the record is JSON
    check   = CRC-32 of the head and all lines so far, xor CRC-32 of the head and the day

What the former version left, or an agent that has it still adds, is read too: magic "TDSSPL02", a head of 16 bytes,
lines of JSON only, and entries of two numbers, the end of the line and the CRC-32 itself.

The producer appends to the mapping of its last segment: line, index entry, then the count of accepted records, one
aligned store. So a record is accepted from one instruction on, and a process killed at any instruction leaves it
whole or absent. Segments are preallocated (a full disk shows itself as an error there, not as a SIGBUS). A segment
is complete once a later one exists.

A spare is filled with zeros when it is used again. Should a power cut bring pages of its former use back, nothing on
them passes for a record: the check has the first sequence number in it, which is another one at each use.

Because the CRC runs on, a reader checks hundreds of records with one call over one slice, which is at the same time
the text that decoders and Synapse take: no step of Python is paid a record. Only where a slice does not match is it
gone through line by line. A line that does not match its own CRC is passed on as a tombstone (an empty line), so that
the sequence goes on without a gap.

Readers (the embedded writer, the shipper to Synapse) never change a segment. They let go of one when the writer's
durable mark covers it and a later one exists, or its producer has ended: a living producer has up to `_SPARES` of them
back as spares, others are deleted. The producer keeps so many full segments mapped, the oldest, for they come back
first: to use one again costs no page faults (0.5 microseconds a record of 500 bytes). An ended producer may leave
records that are complete but not counted: killed between the two stores, or counted on a page that a power cut took.
They are read too.
"""

import contextlib
import fcntl
import logging
import mmap
import os
import struct
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from zlib import crc32

import msgspec
import uuid_utils

from ingest.errors import DamagedFile, NotAccepted
from ingest.pipeline.partitions import PRIVATE_FILE, make_folder, sync_data, sync_folder
from ingest.records import KINDS
from ingest.settings import Settings

if TYPE_CHECKING:
    from types import FrameType

MAGIC, _FORMER_MAGIC = b"TDSSPL03", b"TDSSPL02"
_HEAD = struct.Struct("@8sQ")
# Native and aligned, so that each number is one store: a reader never sees half of one.
_ENTRY, _FORMER_ENTRY = struct.Struct("@III"), struct.Struct("@II")
_DAY = struct.Struct("@I")
_write_entry = _ENTRY.pack_into
_COUNTERS = struct.Struct("@QQQQ")
# What a reader takes at once: as much as one entry of Synapse, and decoded in half a millisecond. An agent's call
# waits so long for the interpreter's lock at most.
BATCH_RECORDS, BATCH_BYTES = 500, 256 << 10
_HELD_BYTES = 5 << 10
_LONGEST_HEADER = 4096  # of the columns' names
_SALTS = 1000
_ZEROS = bytes(1 << 20)
_SPARES = 2  # 8 MiB each: what a writer is behind while it keeps up, and no more resident memory than that
_LOG_INTERVAL_S = 60.0
_BLOCKED_RETRY_S = 0.01
_LOOK_INTERVAL_S = 0.2  # between two looks at the files of a producer that has nothing new
_TURN_S = 0.0001  # for a thread that lost the interpreter in the middle of its call
_FULL_INTERVAL_S = 0.05  # between two looks for room in a full spool: one look takes up to 5 ms

logger = logging.getLogger(__name__)


class ProducerCounters(msgspec.Struct, frozen=True):
    """What one producer counted of its own calls."""

    offered: int = 0  # calls with a valid record
    accepted: int = 0  # of these, in the spool; also the last sequence number
    dropped: int = 0  # of these, not taken: spool full, disk full, record too large
    coerced: int = 0  # accepted after a value was changed to fit JSON


class Batch(msgspec.Struct, frozen=True):
    """Consecutive records of one producer: their lines joined by line feeds, as Synapse's field `d` holds them.

    An empty line is a tombstone: a record that cannot be read any more.
    """

    producer: str
    first_seq: int
    count: int
    data: bytes
    days: Sequence[int] = ()  # of each line that is a CSV row: its day, counted from 1970; 0: JSON. (): all are JSON
    header: bytes = b""  # the columns of these rows

    @property
    def last_seq(self) -> int:
        """The last record's sequence number."""
        return self.first_seq + self.count - 1

    @property
    def lines(self) -> list[bytes]:
        """The records one by one; b"" for a tombstone."""
        return self.data.split(b"\n")


class Spool:
    """One process's producer of one kind. `append` may be called from any thread."""

    def __init__(self, settings: Settings, kind: str) -> None:
        """Name the producer; nothing is created before the first record."""
        self.kind = kind
        self.producer = uuid_utils.uuid7().hex
        self.folder = settings.spool / kind / self.producer
        self._settings = settings
        self._max_record_bytes = settings.max_record_bytes
        self._is_synced_always = settings.spool_sync == "always"
        # Who takes the one element may append. Not a lock: a thread that waits for a lock gets it while another one has
        # the interpreter, which then waits in turn, and from there on each call is a switch between threads. With 8
        # of them a call took 350 microseconds so. A lock also takes 200 ns, this 60.
        self._free: list[None] = [None]
        self._sync_lock = threading.RLock()
        self._segment: _SegmentWriter | None = None
        self._retired: list[_SegmentWriter] = []  # full, to be synced by the next `sync`
        self._kept: list[_SegmentWriter] = []  # full and still mapped, to be used again
        self._has_new_files = False  # whose folder entries are not synced yet
        self._counters: memoryview | None = None  # over the mapped file, as numbers: a store takes 35 ns
        self._counters_file = -1
        self._accepted = self._offered = self._dropped = self._coerced = 0
        self._next_log = 0.0
        self._full_until = 0.0
        self._is_closed = False

    @property
    def counters(self) -> ProducerCounters:
        """What was counted so far."""
        return ProducerCounters(self._offered, self._accepted, self._dropped, self._coerced)

    def append(  # noqa: C901, PLR0912 - in one piece: each function called from here costs 60 ns, a keyword as much
        self,
        line: bytes,
        coerced: bool = False,  # noqa: FBT001, FBT002
        day: int = 0,
    ) -> bool | None:
        """Put one record into the spool; True once it would survive `kill -9` of this process.

        `line` is JSON, or with a `day` (counted from 1970) a row of that day's CSV file.
        What cannot be taken is counted as dropped: False. Raises NotAccepted then if TDS_ON_FULL=raise; waits for
        room if TDS_ON_FULL=block, unless the record is larger than TDS_MAX_RECORD_BYTES. None if this producer is
        closed: the record belongs into another one.
        """
        free, mine, pause_s = self._free, False, _TURN_S
        try:
            while not mine:
                try:
                    del free[0]  # one step: neither a thread nor a signal handler can come in between
                    mine = True
                except IndexError:
                    if self._is_closed or self.is_in_use_here():
                        return None
                    time.sleep(pause_s)
                    pause_s = min(2 * pause_s, _BLOCKED_RETRY_S)  # who has the turn may wait for room in the spool
            if self._is_closed:
                return None
            self._offered += 1
            segment = self._segment
            if len(line) > self._max_record_bytes or segment is None or not segment.append(line, day):
                refusal = self._make_room(line, day)
                if refusal is not None:
                    return self._drop(refusal)
            self._accepted = accepted = self._accepted + 1
            self._counters[0] = accepted  # type: ignore[index]  # open as soon as there is a segment
            if coerced:
                self._coerced += 1
                self._save_counters()
        except NotAccepted:
            raise
        except BaseException:
            if mine:
                self._settle_interrupted()
            raise
        finally:
            if mine:
                try:
                    if self._is_closed:
                        self._let_go()  # closed in the middle of this call
                finally:
                    free.append(None)
        if self._is_synced_always:
            self._sync_or_warn()
        return True

    def is_in_use_here(self) -> bool:
        """Whether this very code was called by a signal handler that interrupted `append` of this producer."""
        frame = sys._getframe(1)  # noqa: SLF001 - the one way to see one's own callers
        here: FrameType | None = frame.f_back
        while here is not None:
            if here.f_code is Spool.append.__code__ and here.f_locals.get("self") is self:
                return True
            here = here.f_back
        return False

    def _settle_interrupted(self) -> None:
        """After an exception between two instructions, such as one that a signal handler raises.

        What the segment has is accepted, even if the call does not return: its place is taken.
        """
        if self._segment is not None:
            self._accepted = self._segment.last_seq
        self._offered = self._accepted + self._dropped
        self._save_counters()

    def _make_room(self, line: bytes, day: int) -> str | None:
        """Append a record to a new segment; the reason if that cannot be done."""
        if len(line) > self._max_record_bytes:
            return (
                f"a record of {len(line)} bytes is over TDS_MAX_RECORD_BYTES={self._max_record_bytes}; "
                "store less in one record or raise the limit"
            )
        size = max(self._settings.spool_segment_bytes, segment_bytes(self.kind, len(line)))
        while (refusal := self._rotate(size)) is not None:
            if self._settings.on_full != "block":
                return refusal
            time.sleep(_BLOCKED_RETRY_S)
        self._segment.append(line, day)  # type: ignore[union-attr]  # _rotate made one
        return None

    def _rotate(self, size: int) -> str | None:
        """Go on in a new segment; the reason if there is no room for one, looked for at most 20 times a second."""
        full = (
            f"{self.folder} holds TDS_SPOOL_MAX_BYTES={self._settings.spool_max_bytes} bytes that are not "
            "written yet; see `tds status`, start `tds writer` or raise the limit"
        )
        if time.monotonic() < self._full_until:
            return full
        try:
            if self._counters is None:
                self._open_counters()
            draft = self.folder / f"{self._accepted + 1:020d}.new"
            with _leaving_no(draft):
                taken, spares = self._look_at_files()
                spare = self._take_spare(draft, size, spares)
                if spare is None and spares:
                    taken, _ = self._look_at_files()  # without those of another size
                if spare is None and taken + size > self._settings.spool_max_bytes:
                    self._full_until = time.monotonic() + _FULL_INTERVAL_S
                    return full
                mapping = _mapped(draft, size) if spare is None else spare
                head = _head(self._accepted + 1, self.kind)
                former, self._segment = self._segment, _SegmentWriter(draft, head, mapping, is_spare=spare is not None)
        except OSError as err:
            reason = err.strerror or str(err)
            return f"{self.folder}: {reason}; make room or set TDS_SPOOL_DIR to a folder that can be written"
        self._has_new_files = True
        if former is not None:
            if len(self._kept) < _SPARES and former.size == size:
                self._kept.append(former)
            else:
                former.unmap()
            self._retired.append(former)  # syncing 8 MiB takes 40 ms: not in the call of an agent
        return None

    def _look_at_files(self) -> tuple[int, list[Path]]:
        """What the segments of this producer take on disk now, written ones not yet let go of included; its spares.

        A segment that is kept mapped, but was deleted by its reader, is kept no longer.
        """
        size, found = 0, dict[str, Path]()
        for path in self.folder.iterdir():
            if path.suffix in {".seg", ".spare"}:
                found[path.stem] = path
                with contextlib.suppress(FileNotFoundError):  # written and let go of by the reader meanwhile
                    size += path.stat().st_size
        for segment in [segment for segment in self._kept if segment.path.stem not in found]:
            self._kept.remove(segment)
            segment.unmap()
            self._retired.append(segment)
        return size, sorted(path for path in found.values() if path.suffix == ".spare")

    def _take_spare(self, draft: Path, size: int, spares: list[Path]) -> "tuple[int, mmap.mmap] | None":
        """Give a spare of that size the name `draft`; its file and mapping, or None if there is no such spare.

        One that is still mapped is preferred. Spares of another size, which held a large record, are deleted.
        """
        mapped = {segment.path.stem: segment for segment in self._kept}
        for path in sorted(spares, key=lambda spare: spare.stem not in mapped):
            with contextlib.suppress(FileNotFoundError):  # somebody removed it
                if path.stat().st_size != size:
                    path.unlink()
                    continue
                path.rename(draft)
                _wait_for_erasure(draft)
                segment = mapped.get(path.stem)
                if segment is None:
                    return _mapped(draft, size)
                mapping = segment.handed_over()  # before it is kept no longer: `sync` would close it
                self._kept.remove(segment)
                return mapping
        return None

    def _open_counters(self) -> None:
        """Create the producer's folder and its counters, and hold the lock that says: this producer lives."""
        make_folder(self.folder.parent)
        # Made ready under a name that no reader looks at, so that none sees a producer without its lock.
        draft = self.folder.with_name(f".{self.producer}")
        make_folder(draft)
        descriptor = os.open(draft / "counters", os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            allocate(descriptor, _COUNTERS.size)
            counters = memoryview(mmap.mmap(descriptor, _COUNTERS.size)).cast("Q")
            counters[2] = self._dropped  # before there was a folder
            draft.rename(self.folder)
        except BaseException:
            os.close(descriptor)
            _remove_folder(draft)
            raise
        self._counters_file, self._counters = descriptor, counters

    def _save_counters(self) -> None:
        if self._counters is not None:
            counted = (self._accepted, self._offered, self._dropped, self._coerced)
            for place, number in enumerate(counted):
                self._counters[place] = number

    def _drop(self, reason: str) -> Literal[False]:
        self._dropped += 1
        self._save_counters()
        if self._settings.on_full == "raise":
            raise NotAccepted(f"{self.kind}: {reason}")
        self._warn("record dropped (%d so far): %s", self._dropped, reason)
        return False

    def _warn(self, message: str, *arguments: object) -> None:
        if time.monotonic() >= self._next_log:
            self._next_log = time.monotonic() + _LOG_INTERVAL_S
            logger.warning("%s: " + message, self.kind, *arguments)  # noqa: G003 - a fixed prefix

    def _sync_or_warn(self) -> None:
        try:
            self.sync()
        except OSError as err:
            self._warn("%s cannot be synced: %s; records survive the process, not a power cut", self.folder, err)

    def sync(self) -> None:
        """Bring what was appended so far to the disk, and let go of full segments. Raises OSError."""
        with self._sync_lock:
            while self._retired:
                segment = self._retired[0]
                if segment not in self._kept:
                    segment.close(sync=self._settings.spool_sync != "off")
                elif self._settings.spool_sync != "off":
                    segment.sync()
                if self._retired:  # else closed meanwhile, by a signal handler
                    self._retired.pop(0)
            segment_now = self._segment
            if self._settings.spool_sync == "off":
                return
            if segment_now is not None:
                segment_now.sync()
            if self._has_new_files:
                self._has_new_files = False
                try:
                    sync_folder(self.folder)
                    sync_folder(self.folder.parent)
                except OSError:
                    self._has_new_files = True
                    raise

    def close(self, *, forked: bool = False) -> None:
        """Let go of the producer's lock and files; what was accepted stays for the writer. May be called twice.

        `forked` is for a child process, which must not touch the parent's mapping nor wait for its threads.
        """
        if forked:
            self._close_files(sync=False)
            return
        self._is_closed = True  # a call that is under way lets go at its end, later ones go elsewhere
        mine = False
        try:
            while not mine:
                try:
                    del self._free[0]
                    mine = True
                except IndexError:
                    if self.is_in_use_here():
                        return
                    time.sleep(_TURN_S)
            self._let_go()
        finally:
            if mine:
                self._free.append(None)

    def _let_go(self) -> None:
        self._save_counters()
        with self._sync_lock:
            self._close_files(sync=True)

    def _close_files(self, *, sync: bool) -> None:
        segment, self._segment = self._segment, None
        full, self._retired, self._kept = (*self._retired, *self._kept), [], []
        for part in (*full, *((segment,) if segment is not None else ())):
            try:
                part.close(sync=sync)
            except OSError as err:
                self._warn("%s cannot be synced: %s; records survive the process, not a power cut", self.folder, err)
                part.close(sync=False)
        if self._counters is not None:
            self._counters.release()
            os.close(self._counters_file)
            self._counters = None


def _head(first_seq: int, kind: str) -> bytes:
    """How a segment begins."""
    return _HEAD.pack(MAGIC, first_seq) + KINDS[kind].header


def _place(size: int, first_seq: int, seq: int) -> int:
    """Where a segment of that size has the index entry of a record."""
    return size // _DAY.size * _DAY.size - _ENTRY.size * (seq - first_seq + 1)


def segment_bytes(kind: str, length: int) -> int:
    """The smallest segment that holds a record of so many bytes, its place in the index aligned."""
    least = len(_head(1, kind)) + length + 1 + _ENTRY.size
    return (least + _DAY.size - 1) // _DAY.size * _DAY.size


def _crc(data: bytes, crc: int) -> int:
    """CRC-32 of a batch, from a former one on, without letting go of the interpreter.

    zlib lets go of it for more than 5 KiB, and who works beside a busy agent has it back after 5 ms: a hundred times
    what the whole batch takes.
    """
    if not _HELD_BYTES < len(data) <= 2 * BATCH_BYTES:
        return crc32(data, crc)
    view = memoryview(data)
    for start in range(0, len(data), _HELD_BYTES):
        crc = crc32(view[start : start + _HELD_BYTES], crc)
    return crc


def _salt(crc: int, day: int) -> int:
    """What the checks of records of one day are xored with in a segment whose head has that CRC."""
    return crc32(_DAY.pack(day), crc)


class _SegmentWriter:
    """The segment that a producer appends to."""

    def __init__(self, draft: Path, head: bytes, mapping: tuple[int, mmap.mmap], *, is_spare: bool) -> None:
        """Make a segment of the file `draft`, given open and mapped; of a spare all that was in it goes."""
        self.path = draft.with_suffix(".seg")
        self._file, self._map = mapping
        self.size = size = len(self._map)
        try:
            if is_spare:  # an erasure may rely on it: what was released is in no file any more
                for start in range(0, size, len(_ZEROS)):
                    self._map[start : start + len(_ZEROS)] = _ZEROS[: size - start]
            self._map[: len(head)] = head
            draft.rename(self.path)
        except BaseException:
            os.close(self._file)
            draft.unlink(missing_ok=True)
            raise
        self._first_seq = int(_HEAD.unpack_from(head)[1])
        self._end, self._index, self._crc = len(head), _place(size, 1, 0), crc32(head)
        self._day, self._head_crc = 0, self._crc
        self._salt = _salt(self._crc, 0)
        self._synced = 0
        self._is_open = True

    @property
    def last_seq(self) -> int:
        """The sequence number of the last record; `first_seq` - 1 if there is none."""
        return self._first_seq + (_place(self.size, 1, 0) - self._index) // _ENTRY.size - 1

    def append(self, line: bytes, day: int = 0) -> bool:
        """Write a record and its entry; False if there is no room. The caller's count makes it accepted."""
        record = line + b"\n"
        start, entry = self._end, self._index - 12
        stop = start + len(record)
        if stop > entry:
            return False
        if day != self._day:
            self._day, self._salt = day, _salt(self._head_crc, day)
        crc = crc32(record, self._crc)
        buffer = self._map
        buffer[start:stop] = record
        _write_entry(buffer, entry, stop, crc ^ self._salt, day)
        self._end, self._index, self._crc = stop, entry, crc
        return True

    def sync(self) -> None:
        """Bring it to the disk, unless it is written already: its last reader has let go of it then."""
        end = self._end
        if self._synced < end and self._is_open:
            if self.path.exists():
                sync_data(self._file)
            self._synced = end

    def handed_over(self) -> tuple[int, mmap.mmap]:
        """The file and its mapping, for another segment to use."""
        self._is_open = False
        return self._file, self._map

    def unmap(self) -> None:
        """Give back the memory of a segment that is full."""
        self._map.close()

    def close(self, *, sync: bool = True) -> None:
        if self._is_open:
            if sync:
                self.sync()
            self._is_open = False
            self._map.close()
            os.close(self._file)


@contextlib.contextmanager
def _leaving_no(draft: Path) -> Iterator[None]:
    """Remove the file `draft` when this is cut off, also by a signal handler: of a spare it has the former text."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # mostly it is not there
            draft.unlink()
        raise


def _wait_for_erasure(path: Path) -> None:
    """Wait until an erasure is through with a file that it took for a segment (`blank_written`)."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def _mapped(path: Path, size: int) -> tuple[int, mmap.mmap]:
    """A file of that size, open and mapped; it is made where there is none."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
    try:
        allocate(descriptor, size)
        return descriptor, mmap.mmap(descriptor, size)
    except BaseException:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise


def allocate(descriptor: int, size: int) -> None:
    """Give a file its size and its blocks, so that a full disk is an OSError here and no SIGBUS later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:  # macOS: no call of that name; zeros are written instead
        os.pwrite(descriptor, bytes(size), 0)


class SpooledProducer:
    """One producer's folder as its reader sees it; `read` goes on where it stopped."""

    def __init__(self, folder: Path, mark: int) -> None:
        """Start behind `mark`, the sequence number up to which everything is written."""
        self.folder = folder
        self.producer = folder.name
        self._next_seq = mark + 1
        self._head = 0  # last record that was there at the last look
        self._firsts: list[int] = []  # first sequence numbers of the segments that were there then
        self._segment: _SegmentReader | None = None
        self._counters: mmap.mmap | None = None
        self._next_look = 0.0
        self._ended = False

    @property
    def read_up_to(self) -> int:
        """The last sequence number that `read` gave."""
        return self._next_seq - 1

    def counters(self) -> ProducerCounters:
        """What the producer counted so far."""
        return read_counters(self.folder)

    def final_counters(self, mark: int) -> ProducerCounters:
        """The counters of a producer that ended. Killed before it counted a record, it had accepted one more."""
        counted = self.counters()
        accepted = max(counted.accepted, mark)
        offered = max(counted.offered, accepted + counted.dropped)
        return ProducerCounters(offered, accepted, counted.dropped, counted.coerced)

    def has_ended(self) -> bool:
        """Whether the producer's process is gone or has closed: its lock is free."""
        if not self._ended:
            try:
                descriptor = os.open(self.folder / "counters", os.O_RDWR)
            except FileNotFoundError:
                return True
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._ended = True
            except BlockingIOError:
                pass  # it lives
            finally:
                os.close(descriptor)
        return self._ended

    def read(self, max_records: int = BATCH_RECORDS, max_bytes: int = BATCH_BYTES) -> Batch | None:
        """The next records, at most so many and about so many bytes; None if there is nothing more for now."""
        seq = self._next_seq
        if seq > self._head:
            self._look()
            if seq > self._head:
                return None
        place = bisect_right(self._firsts, seq) - 1
        is_last = place + 1 == len(self._firsts)
        last = min(self._head if is_last else self._firsts[place + 1] - 1, seq + max_records - 1)
        if place < 0:  # its segment is gone
            return self._batch(last - seq + 1, b"\n" * (last - seq))
        segment = self._opened(self._firsts[place])
        last = segment.within(seq, last, max_bytes)
        data = segment.read(seq, last)
        if data is not None:
            return self._batch(last - seq + 1, data, segment)
        lines = [segment.read(number, number) for number in range(seq, last + 1)]
        if last == self._head and not self._ended:
            while lines and lines[-1] is None:  # stores that are not seen yet, or damage: the next ones will tell
                lines.pop()
        return self._batch(len(lines), b"\n".join(line or b"" for line in lines), segment, lines) if lines else None

    def _batch(
        self,
        count: int,
        data: bytes,
        segment: "_SegmentReader | None" = None,
        lines: Sequence[bytes | None] = (),
    ) -> Batch:
        """The next batch; `lines` are given where some of them are lost."""
        seq, self._next_seq = self._next_seq, self._next_seq + count
        if segment is None:
            return Batch(self.producer, seq, count, data)
        days = segment.days(seq, count)
        if lines:
            days = [0 if line is None else day for line, day in zip(lines, days, strict=True)]
        return Batch(self.producer, seq, count, data, days, segment.header)

    def _look(self) -> None:
        """See what there is now, without a system call where the producer only went on in its segment.

        Each system call lets the agent's own thread go first, which may take 5 ms of its time before it is back here.
        """
        counted = self._counted()
        if counted == self._head and time.monotonic() < self._next_look:
            return
        if counted > self._head and self._is_in_last_segment(counted):
            self._head = counted
        else:
            self._look_at_files()

    def _is_in_last_segment(self, seq: int) -> bool:
        """Whether the segment that is open is the last one seen, and has the record.

        A full segment has a part of a record's text in the place of that entry: only a whole record counts.
        """
        segment = self._segment
        is_last = segment is not None and [segment.first_seq] == self._firsts[-1:]
        return is_last and segment.read(seq, seq) is not None  # type: ignore[union-attr]  # there is one if it is the last

    def _counted(self) -> int:
        if self._counters is None:
            try:
                with (self.folder / "counters").open("rb") as source:
                    self._counters = mmap.mmap(source.fileno(), _COUNTERS.size, access=mmap.ACCESS_READ)
            except (FileNotFoundError, ValueError):  # removed, or cut short by a power cut
                return 0
        return int(_COUNTERS.unpack_from(self._counters)[0])

    def _look_at_files(self) -> None:
        """Asked in this order, what is counted has its segment among those found."""
        self._next_look = time.monotonic() + _LOOK_INTERVAL_S
        ended = self.has_ended()
        head = self.counters().accepted
        self._firsts = self.segments()
        if ended and self._firsts:
            # What was read or the mark covers needs no proof: its text may be blanked, its count lost in a power cut.
            counted = max(head, self._head, self._next_seq - 1, self._firsts[-1] - 1)
            head = self._opened(self._firsts[-1]).last_whole(counted)
        self._head = head

    def _opened(self, first_seq: int) -> "_SegmentReader":
        if self._segment is None or self._segment.first_seq != first_seq:
            self._close_segment()
            self._segment = _SegmentReader(self.folder / f"{first_seq:020d}.seg", first_seq)
        return self._segment

    def segments(self) -> list[int]:
        """First sequence numbers of the segments that are there, in order."""
        try:
            return sorted(int(name[:-4]) for name in os.listdir(self.folder) if name.endswith(".seg"))  # noqa: PTH208
        except FileNotFoundError:
            return []

    def release(self, mark: int) -> bool:
        """Let go of the segments that `mark` covers; True if the producer has ended and all that it left is written."""
        covered = [first for first, following in pairwise(self._firsts) if following <= mark + 1]
        if covered:
            self._let_go(covered)
        if mark < max(self._counted(), self.read_up_to):  # seen without a system call, see `_look`
            return False
        if not self.has_ended():
            return False
        self._look_at_files()  # a power cut may have taken the count of what is there
        return mark >= self._head

    def _let_go(self, covered: Sequence[int]) -> None:
        self._firsts = self._firsts[len(covered) :]
        spares = _SPARES if self.has_ended() else len(list(self.folder.glob("*.spare")))
        for first in covered:
            if self._segment is not None and self._segment.first_seq == first:
                self._close_segment()
            path = self.folder / f"{first:020d}.seg"
            with contextlib.suppress(FileNotFoundError):
                if spares < _SPARES:
                    path.rename(path.with_suffix(".spare"))
                    spares += 1
                else:
                    path.unlink()

    def remove(self) -> None:
        """Delete the folder of a producer that ended, after its counters went into the ledger."""
        self.close()
        _remove_folder(self.folder)

    def close(self) -> None:
        """Close what is being read."""
        self._close_segment()
        if self._counters is not None:
            self._counters.close()
            self._counters = None

    def _close_segment(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None


class _SegmentReader:
    """Reads one segment's records. Raises DamagedFile for one of another version's format."""

    def __init__(self, path: Path, first_seq: int) -> None:
        self.first_seq = first_seq
        with path.open("rb") as source:
            is_empty = os.fstat(source.fileno()).st_size == 0  # all that a power cut left of it
            self._map: mmap.mmap | bytes = b"" if is_empty else mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
        magic = self._map[:8]
        self._is_former = magic == _FORMER_MAGIC
        if magic != MAGIC and magic.startswith(MAGIC[:6]) and not self._is_former:
            self.close()
            raise DamagedFile(
                f"{path}: format {magic.decode(errors='replace')}: expected {MAGIC.decode()}; another version of this "
                "package wrote it: let that one drain the spool, as by `tds status`"
            )
        header_end = 0 if self._is_former else self._map.find(b"\n", _HEAD.size, _HEAD.size + _LONGEST_HEADER) + 1
        self._start = max(_HEAD.size, header_end)
        self.header = bytes(self._map[_HEAD.size : self._start])
        self._crc = crc32(_HEAD.pack(_FORMER_MAGIC if self._is_former else MAGIC, first_seq) + self.header)
        self._salts: dict[int, int] = {}

    def _state(self, seq: int) -> tuple[int, int]:
        """Where the record's line ends and the CRC there; (0, 0) for one that is not in the index."""
        if seq < self.first_seq:
            return self._start, self._crc
        if self._is_former:
            entry = (len(self._map) // 8 - (seq - self.first_seq + 1)) * _FORMER_ENTRY.size
            return _FORMER_ENTRY.unpack_from(self._map, entry) if entry >= self._start else (0, 0)
        place = _place(len(self._map), self.first_seq, seq)
        if place < self._start:
            return 0, 0
        end, check, day = _ENTRY.unpack_from(self._map, place)
        salt = self._salts.get(day)
        if salt is None:
            if len(self._salts) > _SALTS:
                self._salts.clear()  # made of damage: a year of days is less
            salt = self._salts[day] = _salt(self._crc, day)
        return end, check ^ salt

    def text(self, last: int) -> tuple[int, int]:
        """Where the text begins, and where a record's line ends; for one that is not in the index, the whole file."""
        stop = self._state(last)[0]
        return self._start, min(stop, len(self._map)) or len(self._map)

    def days(self, seq: int, count: int) -> list[int]:
        """The days of `count` records from `seq` on."""
        place = _place(len(self._map), self.first_seq, seq + count - 1)
        if self._is_former or place < self._start or seq < self.first_seq:
            return [0] * count  # JSON, or records that cannot be read
        return memoryview(self._map[place : place + count * _ENTRY.size]).cast("I")[::-3].tolist()

    def within(self, seq: int, last: int, max_bytes: int) -> int:
        """The last record of `seq`..`last` such that all of them are within `max_bytes`; at least `seq`."""
        limit = self._state(seq - 1)[0] + max_bytes
        if self._state(last)[0] <= limit:
            return last
        within = bisect_right(range(seq, last + 1), limit, key=lambda number: self._state(number)[0])
        return seq + max(0, within - 1)

    def read(self, seq: int, last: int) -> bytes | None:
        """These records' lines, joined; None unless every byte is as it was written."""
        start, crc = self._state(seq - 1)
        stop, expected = self._state(last)
        if not self._start <= start < stop:
            return None
        data = self._map[start : stop - 1]
        return data if crc32(b"\n", _crc(data, crc)) == expected else None

    def last_whole(self, seq: int) -> int:
        """The last of the records behind `seq` that are whole, without a gap; `seq` if there is none."""
        while self.read(seq + 1, seq + 1) is not None:
            seq += 1
        return seq

    def close(self) -> None:
        if isinstance(self._map, mmap.mmap):
            self._map.close()


class SpoolReader:
    """All producers of one kind below a spool folder, dead ones first to last by their start."""

    def __init__(self, spool: Path, kind: str) -> None:
        """Look at nothing yet; `refresh` finds the producers."""
        self._folder = spool / kind
        self.producers: dict[str, SpooledProducer] = {}
        self._seen_mtime_ns = -1

    def unseen(self) -> list[str]:
        """Producers that came since the last look."""
        try:
            mtime_ns = self._folder.stat().st_mtime_ns
        except FileNotFoundError:
            return []
        if mtime_ns == self._seen_mtime_ns:
            return []
        # A folder made within the clock's granularity of this look must not be overlooked by the next one.
        self._seen_mtime_ns = mtime_ns if time.time_ns() - mtime_ns > 50_000_000 else -1
        return [name for name in _producers(self._folder) if name not in self.producers]

    def refresh(self, marks: Mapping[str, int], names: Iterable[str] | None = None) -> None:
        """Take in new producers (those that `unseen` gives); each starts behind its mark."""
        for name in self.unseen() if names is None else names:
            self.producers[name] = SpooledProducer(self._folder / name, marks.get(name, 0))

    def rewind(self, name: str, mark: int) -> None:
        """Read a producer again from behind `mark`."""
        self.producers[name].close()
        self.producers[name] = SpooledProducer(self._folder / name, mark)

    def forget(self, name: str) -> None:
        """Leave out a producer whose folder was removed."""
        self.producers.pop(name).close()

    def read(self, max_records: int, max_bytes: int) -> list[Batch]:
        """The next batches, about as much together as asked for, each producer getting its turn."""
        batches: list[Batch] = []
        for name, producer in list(self.producers.items()):
            while max_records > 0 and max_bytes > 0:
                batch = producer.read(min(max_records, BATCH_RECORDS), min(max_bytes, BATCH_BYTES))
                if batch is None:
                    break
                batches.append(batch)
                max_records -= batch.count
                max_bytes -= len(batch.data)
            else:
                self.producers[name] = self.producers.pop(name)  # to the end of the row
                break
        return batches

    def close(self) -> None:
        """Close all segments."""
        for producer in self.producers.values():
            producer.close()


def read_counters(folder: Path) -> ProducerCounters:
    """A producer's counters from its folder. A dead one may have been killed between two of them: settled here."""
    try:
        block = (folder / "counters").read_bytes()
    except FileNotFoundError:
        return ProducerCounters()
    if len(block) < _COUNTERS.size:
        return ProducerCounters()  # all that a power cut left of it; what was written is known by the mark
    accepted, offered, dropped, coerced = _COUNTERS.unpack(block)
    return ProducerCounters(max(offered, accepted + dropped), accepted, dropped, coerced)


def spooled_heads(spool: Path, kind: str) -> dict[str, ProducerCounters]:
    """The counters of every producer of a kind that has a folder in the spool."""
    folder = spool / kind
    return {name: read_counters(folder / name) for name in _producers(folder)} if folder.is_dir() else {}


def _remove_folder(folder: Path) -> None:
    """Remove a producer's folder; another process may be doing the same. `shutil` takes 3 ms to import."""
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        folder.rmdir()


def _producers(folder: Path) -> list[str]:
    """The producers below a kind's folder, by their start; a name with a dot is not ready yet, or a lock."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())


def blank_written(spool: Path, kind: str, marks: Mapping[str, int]) -> int:
    """Overwrite the text of all written records of a kind with zeros, for an erasure; gives how many segments had some.

    The last segment of a producer that lives cannot be deleted, and holds up to its whole size of written text. Readers
    begin behind the mark and take the running CRC there from the index, which stays; should they be sent back before it
    (Redis lost its marks), they find tombstones, whose sequence numbers the writer passes over. Spares are deleted too,
    and what a producer that was killed had just made of one.
    """
    folder, blanked = spool / kind, 0
    for name in _producers(folder) if folder.is_dir() else ():
        producer = SpooledProducer(folder / name, 0)
        firsts = producer.segments()
        for first, following in zip(firsts, [*firsts[1:], sys.maxsize], strict=True):
            last = min(marks.get(name, 0), following - 1)
            with contextlib.suppress(FileNotFoundError):  # let go of meanwhile: then it is a spare, or deleted
                blanked += _blank(folder / name / f"{first:020d}.seg", last)
        for spare in (folder / name).glob("*.spare"):
            with contextlib.suppress(FileNotFoundError):  # in use again, and filled with zeros
                blanked += _blank(spare, sys.maxsize)
                spare.unlink()
        for draft in (folder / name).glob("*.new"):
            if producer.has_ended():  # one that lives fills it with zeros, or removes it
                draft.unlink(missing_ok=True)
    return blanked


def _blank(path: Path, last: int) -> bool:
    """Overwrite the text of a segment up to a record; whether there was any.

    Under the lock that its producer takes before it uses a spare again: nothing is overwritten that came later.
    """
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            return False
        segment = _SegmentReader(path, int(path.stem))
        try:
            start, stop = segment.text(last)
        finally:
            segment.close()
        # Beside the producer's own mapping: a write touches no other byte of a page than those that it is given.
        os.pwrite(descriptor, bytes(max(0, stop - start)), start)
        sync_data(descriptor)  # also where nothing was written: the zeros over its former text may be in memory only
    finally:
        os.close(descriptor)
    return stop > start
