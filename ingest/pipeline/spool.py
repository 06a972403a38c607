"""Turns accepted records into frames on disk that survive the process, and gives them to whoever writes on.

Layout, for each kind and each producer (a producer is one process's use of one kind; its id is new after a fork):

    <spool>/<kind>/<producer>/counters                 32 bytes: accepted, offered, dropped, coerced (u64 each);
                                                       held with flock by the producer while it lives
    <spool>/<kind>/<producer>/<first seq, 20 digits>.seg

    segment = header (16 bytes: magic "TDSSPL01", first seq u64) then frames, then zeros up to the preallocated size
    frame   = length u32, CRC-32 u32 over seq and record, seq u64, record (one line of JSON)     little-endian

The producer appends to the mapping of its last segment: record, CRC and seq first, the length last. So the frame
exists for a reader from one store on, and a process killed at any instruction leaves it whole or absent. Segments
are preallocated (a full disk shows itself as an error there, not as a SIGBUS), so a length of 0 means: nothing more
yet. A segment is complete once a later one exists.

Readers (the embedded writer, the shipper to Synapse) never change a segment. They delete one when the writer's
durable mark covers it and a later one exists, or its producer has ended. A frame that cannot be read is passed on
as a tombstone (None in place of the line), so that the sequence goes on without a gap.
"""

import contextlib
import fcntl
import logging
import mmap
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

import msgspec
import uuid_utils

from ingest.errors import NotAccepted
from ingest.pipeline.partitions import PRIVATE_FILE, make_folder, sync_data, sync_folder
from ingest.settings import Settings

MAGIC = b"TDSSPL01"
_HEADER = struct.Struct("<8sQ")
_FRAME = struct.Struct("<IIQ")
_LENGTH = struct.Struct("<I")
_COUNTERS = struct.Struct("<QQQQ")
_ACCEPTED_OFFERED = struct.Struct("<QQ")
_DROPPED_COERCED = struct.Struct("<QQ")
_LOG_INTERVAL_S = 60.0
_BLOCKED_RETRY_S = 0.01
_FULL_INTERVAL_S = 0.05  # between two looks for room in a full spool: one look takes up to 5 ms

logger = logging.getLogger(__name__)


class ProducerCounters(msgspec.Struct, frozen=True):
    """What one producer counted of its own calls."""

    offered: int = 0  # calls with a valid record
    accepted: int = 0  # of these, in the spool; also the last sequence number
    dropped: int = 0  # of these, not taken: spool full, disk full, record too large
    coerced: int = 0  # accepted after a value was changed to fit JSON


class Batch(msgspec.Struct, frozen=True):
    """Consecutive records of one producer. A line is a record's JSON, or None where it cannot be read any more."""

    producer: str
    first_seq: int
    lines: list[bytes | None]


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
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._segment: _SegmentWriter | None = None
        self._retired: list[_SegmentWriter] = []  # full, to be synced and closed by the next `sync`
        self._has_new_files = False  # whose folder entries are not synced yet
        self._counters: mmap.mmap | None = None
        self._counters_file = -1
        self._accepted = self._offered = self._dropped = self._coerced = 0
        self._next_log = 0.0
        self._full_until = 0.0
        self._is_closed = False

    @property
    def counters(self) -> ProducerCounters:
        """What was counted so far."""
        return ProducerCounters(self._offered, self._accepted, self._dropped, self._coerced)

    def append(self, line: bytes, *, coerced: bool = False) -> bool | None:
        """Put one record's JSON into the spool; True once it would survive `kill -9` of this process.

        What cannot be taken is counted as dropped: False. Raises NotAccepted then if TDS_ON_FULL=raise; waits for
        room if TDS_ON_FULL=block, unless the record is larger than TDS_MAX_RECORD_BYTES. None if this producer is
        closed: the record belongs into another one.
        """
        with self._lock:
            if self._is_closed:
                return None
            self._offered += 1
            try:
                segment = self._segment
                if segment is None or len(line) > self._max_record_bytes or not segment.has_room(len(line)):
                    refusal = self._make_room(len(line))
                    if refusal is not None:
                        self._drop(refusal)
                        return False
                    segment = self._segment
                segment.append(self._accepted + 1, line)  # type: ignore[union-attr]  # _make_room gave one
                self._accepted += 1
                if coerced:
                    self._coerced += 1
                    _DROPPED_COERCED.pack_into(self._counters, 16, self._dropped, self._coerced)  # type: ignore[arg-type]
                _ACCEPTED_OFFERED.pack_into(self._counters, 0, self._accepted, self._offered)  # type: ignore[arg-type]
            except NotAccepted:
                raise
            except BaseException:
                self._settle_interrupted()
                raise
        if self._is_synced_always:
            self._sync_or_warn()
        return True

    def _settle_interrupted(self) -> None:
        """After an exception between two instructions, such as one that a signal handler raises.

        The frame may exist while the counters do not know it, and the next frame would be written over it: so the
        segment is left as it is, the next record begins another one, and what is in it is counted.
        """
        segment, self._segment = self._segment, None
        if segment is not None:
            self._accepted = max(self._accepted, segment.last_seq())
            self._retired.append(segment)
        self._offered = self._accepted + self._dropped
        self._save_counters()

    def _make_room(self, length: int) -> str | None:
        """Open a segment that holds `length` bytes more; the reason if that cannot be done."""
        if length > self._settings.max_record_bytes:
            return (
                f"a record of {length} bytes is over TDS_MAX_RECORD_BYTES={self._settings.max_record_bytes}; "
                "store less in one record or raise the limit"
            )
        size = max(self._settings.spool_segment_bytes, _HEADER.size + _FRAME.size + length + _LENGTH.size)
        while True:
            refusal = self._rotate(size)
            if refusal is None or self._settings.on_full != "block":
                return refusal
            time.sleep(_BLOCKED_RETRY_S)

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
            counters = mmap.mmap(descriptor, _COUNTERS.size)
            _COUNTERS.pack_into(counters, 0, 0, 0, self._dropped, self._coerced)  # dropped before there was a folder
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
            _COUNTERS.pack_into(self._counters, 0, self._accepted, self._offered, self._dropped, self._coerced)

    def _drop(self, reason: str) -> None:
        self._dropped += 1
        self._save_counters()
        if self._settings.on_full == "raise":
            raise NotAccepted(f"{self.kind}: {reason}")
        self._warn("record dropped (%d so far): %s", self._dropped, reason)

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
                self._retired.pop(0)
            segment_now = self._segment
            if self._settings.spool_sync == "off":
                return
            if segment_now is not None:
                segment_now.sync()
            if self._has_new_files:
                self._has_new_files = False
                sync_folder(self.folder)
                sync_folder(self.folder.parent)

    def close(self, *, forked: bool = False) -> None:
        """Let go of the producer's lock and files; what was accepted stays for the writer. May be called twice.

        `forked` is for a child process, which must not touch the parent's mapping nor wait for its threads.
        """
        if forked:
            self._let_go(sync=False)
            return
        with self._lock:
            self._is_closed = True
            with self._sync_lock:
                self._let_go(sync=True)

    def _let_go(self, *, sync: bool) -> None:
        segment, self._segment = self._segment, None
        retired, self._retired = self._retired, []
        for part in (*retired, *((segment,) if segment is not None else ())):
            part.close(sync=sync)
        if self._counters is not None:
            self._counters.close()
            os.close(self._counters_file)
            self._counters = None


class _SegmentWriter:
    """The segment that a producer appends to."""

    def __init__(self, folder: Path, first_seq: int, size: int) -> None:
        path = folder / f"{first_seq:020d}.seg"
        draft = path.with_suffix(".new")
        self._file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC, PRIVATE_FILE)
        try:
            allocate(self._file, size)
            self._map = mmap.mmap(self._file, size)
            _HEADER.pack_into(self._map, 0, MAGIC, first_seq)
            draft.rename(path)
        except BaseException:
            os.close(self._file)
            draft.unlink(missing_ok=True)
            raise
        self._end = _HEADER.size
        self._room = size - _FRAME.size - _LENGTH.size
        self._synced = 0
        self._open = True

    def has_room(self, length: int) -> bool:
        return self._end + length <= self._room

    def append(self, seq: int, line: bytes) -> None:
        start, length = self._end, len(line)
        stop = start + 16 + length
        buffer = self._map
        buffer[start + 16 : stop] = line
        _FRAME.pack_into(buffer, start, 0, zlib.crc32(line, seq & 0xFFFFFFFF), seq)
        _LENGTH.pack_into(buffer, start, length)  # from here on the frame exists
        self._end = stop

    def last_seq(self) -> int:
        """The last frame's sequence number by what stands in the segment; 0 if it has none."""
        position, last = _HEADER.size, 0
        while position + 16 <= len(self._map):
            length, _, seq = _FRAME.unpack_from(self._map, position)
            if length == 0:
                break
            position, last = position + 16 + length, seq
        return last

    def sync(self) -> None:
        end = self._end
        if self._synced < end and self._open:
            sync_data(self._file)
            self._synced = end

    def close(self, *, sync: bool = True) -> None:
        if self._open:
            if sync:
                self.sync()
            self._open = False
            self._map.close()
            os.close(self._file)


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
        self._segment: _SegmentReader | None = None
        self._finished = -1  # first sequence number of the last segment that was read to its end
        self._ended = False

    @property
    def read_up_to(self) -> int:
        """The last sequence number that `read` gave."""
        return self._next_seq - 1

    def counters(self) -> ProducerCounters:
        """What the producer counted so far."""
        return read_counters(self.folder)

    def final_counters(self, mark: int) -> ProducerCounters:
        """The counters of a producer that ended. Killed between frame and counter, it had accepted one more."""
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

    def read(self, max_records: int, max_bytes: int) -> Batch | None:
        """The next records, at most so many and about so many bytes; None if there is nothing more for now."""
        ended = self.has_ended()  # asked first: what it appended before it ended is then found below
        first, lines = self._next_seq, list[bytes | None]()
        while segment := self._segment or self._open_segment(first + len(lines)):
            self._segment = segment
            complete = any(later > segment.first_seq for later in self._segments())  # asked before its tail is read
            max_bytes -= segment.read_into(lines, first, max_records, max_bytes)
            if len(lines) >= max_records or max_bytes <= 0 or not complete:
                break
            segment.close()
            self._segment = None
            self._finished = segment.first_seq
        if ended and max_bytes > 0 and len(lines) < max_records:
            # Counted as accepted, but the frames did not survive a power cut.
            lost = self.counters().accepted - (first + len(lines)) + 1
            lines.extend([None] * min(max(lost, 0), max_records - len(lines)))
        self._next_seq = first + len(lines)
        return Batch(self.producer, first, lines) if lines else None

    def _segments(self) -> list[int]:
        """First sequence numbers of the segments that are there."""
        try:
            return sorted(int(path.stem) for path in self.folder.iterdir() if path.suffix == ".seg")
        except FileNotFoundError:
            return []

    def _open_segment(self, seq: int) -> "_SegmentReader | None":
        """The segment that holds `seq`, or the first one behind it where that one is gone."""
        firsts = [first for first in self._segments() if first > self._finished]
        wanted = max((first for first in firsts if first <= seq), default=min(firsts, default=None))
        return None if wanted is None else _SegmentReader(self.folder / f"{wanted:020d}.seg", wanted)

    def release(self, mark: int) -> bool:
        """Delete the segments that `mark` covers; True if the producer has ended and nothing of it is left to write."""
        firsts = self._segments()
        for first, following in pairwise(firsts):
            if following <= mark + 1:
                (self.folder / f"{first:020d}.seg").unlink(missing_ok=True)
        return self.has_ended() and mark >= self.counters().accepted and mark >= self.read_up_to

    def remove(self) -> None:
        """Delete the folder of a producer that ended, after its counters went into the ledger."""
        self.close()
        _remove_folder(self.folder)

    def close(self) -> None:
        """Close the segment that is being read."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None


class _SegmentReader:
    """Reads one segment's frames, as far as they are there."""

    def __init__(self, path: Path, first_seq: int) -> None:
        self.path, self.first_seq = path, first_seq
        with path.open("rb") as source:
            is_empty = os.fstat(source.fileno()).st_size == 0  # all that a power cut left of it
            self._map: mmap.mmap | bytes = b"" if is_empty else mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
        self._position = _HEADER.size

    def read_into(self, lines: list[bytes | None], first: int, max_records: int, max_bytes: int) -> int:
        """Append the next frames' lines, None for each lost one, to `lines`, whose first has number `first`.

        Gives the bytes taken. A frame whose CRC does not match is lost if a whole frame follows it; without one it
        is a tail not written yet, or torn: what is lost then is told by the next segment or the counters.
        """
        buffer, size, position, taken = self._map, len(self._map), self._position, 0
        unpack, crc32 = _FRAME.unpack_from, zlib.crc32
        while len(lines) < max_records and taken < max_bytes and position + 16 <= size:
            length, crc, seq = unpack(buffer, position)
            stop = position + 16 + length
            if length == 0 or stop > size:
                break
            expected = first + len(lines)
            line: bytes | None = buffer[position + 16 : stop]
            if crc32(line, seq & 0xFFFFFFFF) != crc:  # type: ignore[arg-type]  # bytes up to here
                if not self._frame_stands(stop, expected + 1):
                    break
                seq, line = expected, None
            lost = seq - expected
            if lost >= max_records - len(lines):
                lines.extend([None] * (max_records - len(lines)))  # this frame is read again behind them
                break
            position = stop
            taken += length
            if lost >= 0:
                lines.extend([None] * lost)
                lines.append(line)
        self._position = position
        return taken

    def _frame_stands(self, start: int, seq: int) -> bool:
        """Whether a whole frame with this sequence number begins at `start`."""
        if start + 16 > len(self._map):
            return False
        length, crc, found = _FRAME.unpack_from(self._map, start)
        line = self._map[start + 16 : start + 16 + length]
        return bool(length > 0 and found == seq and zlib.crc32(line, seq & 0xFFFFFFFF) == crc)

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
        batches = []
        for producer in list(self.producers.values()):
            batch = producer.read(max_records, max_bytes)
            if batch is not None:
                batches.append(batch)
                max_records -= len(batch.lines)
                max_bytes -= sum(len(line or b"") for line in batch.lines)
                if max_records <= 0 or max_bytes <= 0:
                    self.producers[producer.producer] = self.producers.pop(producer.producer)  # to the end of the row
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
