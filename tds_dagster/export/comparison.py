"""Turns a file, and the bytes that it is expected to have, into the place where the two part."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from tds_dagster.curate.artifacts import CHUNK_BYTES
from tds_dagster.curate.raw import line_feeds


class Measure(msgspec.Struct, frozen=True):
    """What identifies content."""

    bytes: int
    sha256: str  # hex digest
    lines: int  # line feeds


class Difference(msgspec.Struct, frozen=True):
    """The first byte that is not as expected: it differs, is missing, or is one too many."""

    offset: int  # from 0
    line: int  # that it stands in, from 1


class Comparison(msgspec.Struct, frozen=True):
    """A file beside what it was expected to be."""

    found: Measure
    expected: Measure
    difference: Difference | None


class _Meter:
    def __init__(self) -> None:
        self.bytes = self.lines = 0
        self._digest = hashlib.sha256()

    def add(self, piece: bytes) -> None:
        self.bytes += len(piece)
        self.lines += line_feeds(piece)
        self._digest.update(piece)

    def read(self) -> Measure:
        return Measure(self.bytes, self._digest.hexdigest(), self.lines)


def measure(path: Path) -> Measure:
    """Size, hash and lines of a file, read once."""
    meter = _Meter()
    for piece in pieces(path):
        meter.add(piece)
    return meter.read()


def compare(path: Path, expected: Iterable[bytes]) -> Comparison:
    """Hold a file against expected bytes, given piece by piece; both are read once, and to their end."""
    found, wanted = _Meter(), _Meter()
    difference: Difference | None = None
    with path.open("rb") as file:
        for piece in expected:
            read = file.read(len(piece))
            if difference is None and read != piece:
                difference = _difference(found, read, piece)
            found.add(read)
            wanted.add(piece)
        while read := file.read(CHUNK_BYTES):
            if difference is None:
                difference = _difference(found, read, b"")
            found.add(read)
    return Comparison(found.read(), wanted.read(), difference)


def pieces(path: Path) -> Iterator[bytes]:
    """A file, a mebibyte at a time."""
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            yield piece


def _difference(before: _Meter, read: bytes, expected: bytes) -> Difference:
    """Where two unequal pieces part, by halving: a slice compares at memory's speed, single bytes do not."""
    low, high = 0, min(len(read), len(expected))
    while low < high:
        middle = (low + high + 1) // 2
        if read[:middle] == expected[:middle]:
            low = middle
        else:
            high = middle - 1
    return Difference(before.bytes + low, before.lines + read[:low].count(b"\n") + 1)
