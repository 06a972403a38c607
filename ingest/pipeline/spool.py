"""Turns accepted records into lines on disk that survive the process, and gives them to whoever writes on.

Layout, for each kind and each producer (a producer is one process's use of one kind; its id is new after a fork):

    <spool>/<kind>/<producer>/counters                 32 bytes: accepted, offered, dropped, coerced (u64 each);
                                                       held with flock by the producer while it lives
    <spool>/<kind>/<producer>/<first seq, 20 digits>.seg

    segment = header (16 bytes: magic "TDSSPL02", first seq u64), records, zeros, index
    record  = one line of JSON with its line feed; records grow up from the header
    index   = for each record: end of its line u32, CRC-32 u32 of the header and all lines so far; it grows down from
              the end of the preallocated segment. Numbers are in the machine's order: a spool is one host's

The producer appends to the mapping of its last segment: line, index entry, then the count of accepted records, one
aligned store. So a record is accepted from one instruction on, and a process killed at any instruction leaves it
whole or absent. Segments are preallocated (a full disk shows itself as an error there, not as a SIGBUS). A segment
is complete once a later one exists.

Because the CRC runs on, a reader checks hundreds of records with one call over one slice, which is at the same time
the text that decoders and Synapse take: no step of Python is paid a record. Only where a slice does not match is it
gone through line by line. A line that does not match its own CRC is passed on as a tombstone (an empty line), so that
the sequence goes on without a gap.

Readers (the embedded writer, the shipper to Synapse) never change a segment. They delete one when the writer's
durable mark covers it and a later one exists, or its producer has ended. An ended producer may leave records that are
complete but not counted: killed between the two stores, or counted on a page that a power cut took. They are read too.
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
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from zlib import crc32

import msgspec
import uuid_utils

from ingest.errors import DamagedFile, NotAccepted
from ingest.pipeline.partitions import PRIVATE_FILE, make_folder, sync_data, sync_folder
from ingest.settings import Settings

if TYPE_CHECKING:
    from types import FrameType

MAGIC = b"TDSSPL02"
# Native and aligned, so that each number is one store: a reader never sees half of one.
_HEADER = struct.Struct("@8sQ")
_ENTRY = struct.Struct("@II")
_write_entry = _ENTRY.pack_into
_COUNTERS = struct.Struct("@QQQQ")
# What a reader takes at once: as much as one entry of Synapse, and decoded in half a millisecond. An agent's call
# waits so long for the interpreter's lock at most.
BATCH_RECORDS, BATCH_BYTES = 500, 256 << 10
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
    """Consecutive records of one producer: their JSON lines joined by line feeds, as Synapse's field `d` holds them.

    An empty line is a tombstone: a record that cannot be read any more.
    """

    producer: str
    first_seq: int
    count: int
    data: bytes

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
        self._retired: list[_SegmentWriter] = []  # full, to be synced and closed by the next `sync`
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
    ) -> bool | None:
        """Put one record's JSON into the spool; True once it would survive `kill -9` of this process.

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
            if segment is None or len(line) > self._max_record_bytes or not segment.append(line):
                refusal = self._make_room(line)
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

    def _make_room(self, line: bytes) -> str | None:
        """Append a record to a new segment; the reason if that cannot be done."""
        if len(line) > self._max_record_bytes:
            return (
                f"a record of {len(line)} bytes is over TDS_MAX_RECORD_BYTES={self._max_record_bytes}; "
                "store less in one record or raise the limit"
            )
        size = max(self._settings.spool_segment_bytes, segment_bytes(len(line)))
        while (refusal := self._rotate(size)) is not None:
            if self._settings.on_full != "block":
                return refusal
            time.sleep(_BLOCKED_RETRY_S)
        self._segment.append(line)  # type: ignore[union-attr]  # _rotate made one
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
            if self._spooled_bytes() + size > self._settings.spool_max_bytes:
                self._full_until = time.monotonic() + _FULL_INTERVAL_S
                return full
            former, self._segment = self._segment, _SegmentWriter(self.folder, self._accepted + 1, size)
        except OSError as err:
            reason = err.strerror or str(err)
            return f"{self.folder}: {reason}; make room or set TDS_SPOOL_DIR to a folder that can be written"
        self._has_new_files = True
        if former is not None:
            former.unmap()
            self._retired.append(former)  # syncing 8 MiB takes 40 ms: not in the call of an agent
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

    def _spooled_bytes(self) -> int:
        """What the segments of this producer take on disk now, written ones not yet deleted included."""
        size = 0
        for path in self.folder.iterdir():
            if path.suffix == ".seg":
                with contextlib.suppress(FileNotFoundError):  # written and deleted by the reader meanwhile
                    size += path.stat().st_size
        return size

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
                segment.close(sync=self._settings.spool_sync != "off")
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
        retired, self._retired = self._retired, []
        for part in (*retired, *((segment,) if segment is not None else ())):
            try:
                part.close(sync=sync)
            except OSError as err:
                self._warn("%s cannot be synced: %s; records survive the process, not a power cut", self.folder, err)
                part.close(sync=False)
        if self._counters is not None:
            self._counters.release()
            os.close(self._counters_file)
            self._counters = None


def segment_bytes(length: int) -> int:
    """The smallest segment that holds a record of so many bytes, its place in the index aligned."""
    return (_HEADER.size + length + 1 + 2 * _ENTRY.size - 1) // _ENTRY.size * _ENTRY.size


class _SegmentWriter:
    """The segment that a producer appends to."""

    def __init__(self, folder: Path, first_seq: int, size: int) -> None:
        path = folder / f"{first_seq:020d}.seg"
        draft = path.with_suffix(".new")
        self._file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC, PRIVATE_FILE)
        size = size // _ENTRY.size * _ENTRY.size
        try:
            allocate(self._file, size)
            self._map = mmap.mmap(self._file, size)
            _HEADER.pack_into(self._map, 0, MAGIC, first_seq)
            draft.rename(path)
        except BaseException:
            os.close(self._file)
            draft.unlink(missing_ok=True)
            raise
        self._first_seq = first_seq
        self._end, self._index, self._crc = _HEADER.size, size, _seed(first_seq)
        self._synced = 0
        self._open = True

    @property
    def last_seq(self) -> int:
        """The sequence number of the last record; `first_seq` - 1 if there is none."""
        return self._first_seq + (len(self._map) - self._index) // _ENTRY.size - 1

    def append(self, line: bytes) -> bool:
        """Write a record and its entry; False if there is no room. The caller's count makes it accepted."""
        record = line + b"\n"
        start, entry = self._end, self._index - 8
        stop = start + len(record)
        if stop > entry:
            return False
        crc = crc32(record, self._crc)
        buffer = self._map
        buffer[start:stop] = record
        _write_entry(buffer, entry, stop, crc)
        self._end, self._index, self._crc = stop, entry, crc
        return True

    def sync(self) -> None:
        """Bring it to the disk, unless it is written already: its last reader has deleted it then."""
        end = self._end
        if self._synced < end and self._open:
            if os.fstat(self._file).st_nlink:
                sync_data(self._file)
            self._synced = end

    def unmap(self) -> None:
        """Give back the memory of a segment that is full."""
        self._map.close()

    def close(self, *, sync: bool = True) -> None:
        if self._open:
            if sync:
                self.sync()
            self._open = False
            self._map.close()
            os.close(self._file)


def _seed(first_seq: int) -> int:
    """Where a segment's running CRC begins: no segment's lines pass for another's."""
    return crc32(_HEADER.pack(MAGIC, first_seq))


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
            return self._batch(last - seq + 1, data)
        lines = [segment.read(number, number) for number in range(seq, last + 1)]
        if last == self._head and not self._ended:
            while lines and lines[-1] is None:  # stores that are not seen yet, or damage: the next ones will tell
                lines.pop()
        return self._batch(len(lines), b"\n".join(line or b"" for line in lines)) if lines else None

    def _batch(self, count: int, data: bytes) -> Batch:
        seq, self._next_seq = self._next_seq, self._next_seq + count
        return Batch(self.producer, seq, count, data)

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
        self._firsts = self._segments()
        if ended and self._firsts:
            counted = max(head, self._head, self._firsts[-1] - 1)
            head = self._opened(self._firsts[-1]).last_whole(counted)
        self._head = head

    def _opened(self, first_seq: int) -> "_SegmentReader":
        if self._segment is None or self._segment.first_seq != first_seq:
            self._close_segment()
            self._segment = _SegmentReader(self.folder / f"{first_seq:020d}.seg", first_seq)
        return self._segment

    def _segments(self) -> list[int]:
        """First sequence numbers of the segments that are there, in order."""
        try:
            return sorted(int(name[:-4]) for name in os.listdir(self.folder) if name.endswith(".seg"))  # noqa: PTH208
        except FileNotFoundError:
            return []

    def release(self, mark: int) -> bool:
        """Delete the segments that `mark` covers; True if the producer has ended and nothing of it is left to write."""
        for first, following in pairwise(self._segments()):
            if following <= mark + 1:
                (self.folder / f"{first:020d}.seg").unlink(missing_ok=True)
        return self.has_ended() and mark >= self.counters().accepted and mark >= self.read_up_to

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
        if magic != MAGIC and magic.startswith(MAGIC[:6]):
            self.close()
            raise DamagedFile(
                f"{path}: format {magic.decode(errors='replace')}: expected {MAGIC.decode()}; another version of this "
                "package wrote it: let that one drain the spool, as by `tds status`"
            )

    def _state(self, seq: int) -> tuple[int, int]:
        """Where the record's line ends and the CRC there; (0, 0) for one that is not in the index."""
        if seq < self.first_seq:
            return _HEADER.size, _seed(self.first_seq)
        entry = len(self._map) // 8 * 8 - 8 * (seq - self.first_seq + 1)
        return _ENTRY.unpack_from(self._map, entry) if entry >= _HEADER.size else (0, 0)

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
        if not _HEADER.size <= start < stop:
            return None
        data = self._map[start : stop - 1]
        return data if crc32(b"\n", crc32(data, crc)) == expected else None

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
