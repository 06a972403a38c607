"""Gives each raw day as the ledger has it: a file that nobody appends to, its rows counted, and the day's rejects."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ingest.errors import DamagedFile
from ingest.pipeline.ledger import (
    DUPLICATES,
    ERASED,
    FOREIGN,
    QUARANTINED,
    CommittedFile,
    Ledger,
    Reject,
    open_ledger,
    settle_edits,
)
from ingest.pipeline.partitions import PRIVATE_FILE, DataPaths
from tds_dagster.curate.artifacts import CHUNK_BYTES

_LARGE_TEXT_BYTES = 256 << 10  # from there on NumPy is worth its import


class RawDay(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger says of one day at one moment."""

    day: str
    file: CommittedFile | None  # None: no row was ever committed for the day
    duplicates: int  # rows that the writer dropped because of an idempotency key
    quarantined: int  # lines that the writer could not write
    foreign: int  # lines that other programs appended; the writer moved them to the rejects
    erased: int = 0  # rows and rejects that were erased; foreign lines are not counted
    erasures: int = 0  # that took something of the day, be it foreign lines alone

    @property
    def rows(self) -> int:
        """Committed rows."""
        return 0 if self.file is None else self.file.rows

    @property
    def rejects(self) -> int:
        """Lines among the ledger's rejects."""
        return self.quarantined + self.foreign

    @property
    def version(self) -> str:
        """Changes whenever curation would see something else: the file's version, its rejects, and its erasures.

        Between two erasures rejects only come: so many of them are the same ones. One that goes and another one that
        comes would look the same by their number alone.
        """
        erasures = f"-{self.erasures}" if self.erasures else ""
        return f"{'none' if self.file is None else self.file.version}+{self.rejects}{erasures}"


class RawDays:
    """One kind's raw days, read from its open ledger at one moment; `refresh` moves to the present one."""

    def __init__(self, paths: DataPaths, kind: str, ledger: Ledger) -> None:
        """Read the ledger."""
        self.paths, self.kind, self._ledger = paths, kind, ledger
        self._damaged: dict[str, DamagedFile] = {}
        self._settled: set[str] = set()
        self._moment: tuple[int, int] | None = None
        self.refresh()

    def refresh(self) -> None:
        """Read files and counters, as they were between two commits of the writer, unless nothing has changed."""
        moment = self._ledger.moment()
        if moment == self._moment:
            return  # to read a year's files takes half a millisecond, and each day of a build asks twice
        self._moment = moment  # from before: what is committed while it is read counts as a change next time
        while True:
            self._counts = self._ledger.counts()
            self._files = self._ledger.files()
            erasures = self._ledger.erasures()
            self._erasures = Counter(erasure.day for erasure in erasures)
            self._erased = Counter[str]()
            for erasure in erasures:
                self._erased[erasure.day] += erasure.rows + erasure.rejects
            if self._counts == self._ledger.counts():
                return

    def days(self) -> list[str]:
        """Every day that the ledger knows, in order."""
        return sorted(self._files.keys() | {day for day, _ in self._counts})

    def first_day_with_rows(self) -> str | None:
        """The first day that has a committed row; None if there is none."""
        return min((day for day, file in self._files.items() if file.rows), default=None)

    def settle(self, days: Iterable[str]) -> None:
        """Notice what others did to these days' files. A damaged one is told when it is asked for, by `day`."""
        wanted = list(days)
        self._settled.update(wanted)
        try:
            settle_edits(self._ledger, self.paths, self.kind, wanted)
        except DamagedFile:
            for day in wanted:  # which ones, so that the others can be built
                try:
                    settle_edits(self._ledger, self.paths, self.kind, [day])
                except DamagedFile as err:
                    self._damaged[day] = err
        self.refresh()

    def settled_day(self, day: str) -> RawDay:
        """A day, after others' edits were noticed. Raises DamagedFile for one that is shorter than committed."""
        if day not in self._settled:
            self.settle([day])
        if day in self._damaged:
            raise self._damaged[day]
        return self.day(day)

    def day(self, day: str) -> RawDay:
        """A day as the ledger has it."""
        return RawDay(
            day=day,
            file=self._files.get(day),
            duplicates=self._counts.get((day, DUPLICATES), 0),
            quarantined=self._counts.get((day, QUARANTINED), 0),
            foreign=self._counts.get((day, FOREIGN), 0),
            erased=self._counts.get((day, ERASED), 0),
            erasures=self._erasures[day],
        )

    def found_erased(self, day: str) -> int:
        """Rows and rejects of the day that the single erasures took, by their own figures."""
        return self._erased[day]

    def rejects(self, day: str) -> list[Reject]:
        """The day's rejected lines as they stand in the ledger now, in the order they came."""
        return self._ledger.rejects(day)


@contextmanager
def open_raw(paths: DataPaths, kind: str) -> Iterator[RawDays]:
    """One kind's raw days for the length of a `with`."""
    with open_ledger(paths, kind) as ledger:
        yield RawDays(paths, kind, ledger)


def still_prefix(path: Path, size_bytes: int, scratch: Path) -> Path:
    """A file that ends with the committed prefix of `path`: itself if nothing follows there, else a copy in `scratch`.

    Raises DamagedFile if the prefix is cut short or does not end with a row's end.
    """
    with path.open("rb") as source:
        if os.fstat(source.fileno()).st_size < size_bytes:
            raise _cut_short(path, os.fstat(source.fileno()).st_size, size_bytes)
        source.seek(size_bytes - 1)
        if source.read(1) != b"\n":
            raise DamagedFile(
                f"{path}: byte {size_bytes - 1} is not the end of a row, but {size_bytes} bytes are committed; "
                "restore the file from a backup"
            )
        if os.fstat(source.fileno()).st_size == size_bytes:
            return path
        source.seek(0)
        descriptor = os.open(scratch / path.name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_FILE)
        with os.fdopen(descriptor, "wb") as copy:
            left = size_bytes
            while left and (chunk := source.read(min(left, CHUNK_BYTES))):
                copy.write(chunk)
                left -= len(chunk)
    if left:
        raise _cut_short(path, size_bytes - left, size_bytes)
    return scratch / path.name


def count_lines(path: Path) -> int:
    """Line feeds in a file."""
    with path.open("rb") as source:
        return sum(line_feeds(chunk) for chunk in iter(lambda: source.read(CHUNK_BYTES), b""))


def line_feeds(text: bytes) -> int:
    """Line feeds in a text. `bytes.count` goes byte by byte, at a quarter of the speed, and holds Python's lock."""
    if len(text) < _LARGE_TEXT_BYTES:
        return text.count(b"\n")
    import numpy as np

    return int(np.count_nonzero(np.frombuffer(text, dtype=np.uint8) == ord("\n")))


def _cut_short(path: Path, size: int, committed: int) -> DamagedFile:
    return DamagedFile(
        f"{path}: ends at byte {size}, but {committed} bytes are committed; run this again, for an erasure may have "
        "rewritten it meanwhile, and restore the file from a backup if it stays like that"
    )
