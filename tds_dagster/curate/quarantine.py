"""Writes a day's quarantine file: the writer's rejects and the rows that curation rejected, each with its reason.

One JSON object a line: `reason`, `origin` and `line`, the text that was rejected. Where that is not UTF-8, `line` is
its base64 and `encoding` says so.
"""

import base64
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from ingest.pipeline.ledger import Reject
from ingest.pipeline.partitions import replacing, sync_folder


class QuarantinedLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a quarantine file."""

    reason: str
    origin: str  # where it came from: `<file> line N byte M`, or as the writer names it
    line: str
    encoding: str | None = None  # "base64" for a line that is not UTF-8


def write_quarantine(target: Path, rejects: Iterable[Reject], flawed: Iterable[Reject]) -> int:
    """Replace a day's quarantine file, or remove it where nothing is rejected; gives its number of lines."""
    lines = _lines(rejects, flawed)
    first = next(lines, None)
    if first is None:
        if target.exists():
            target.unlink()
            sync_folder(target.parent)
        return 0
    count = 1
    with replacing(target) as out:
        out.write(first)
        for count, line in enumerate(lines, 2):  # noqa: B007 - the last number is how many there are
            out.write(line)
    return count


def flawed_rows(source: Path, name: str, day: str, reasons: Mapping[int, str]) -> Iterator[Reject]:
    """The lines of a CSV file whose numbers (from 1) have a reason, as rejects, in file order."""
    if not reasons:
        return
    position, last = 0, max(reasons)
    with source.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number in reasons:
                yield Reject(day, reasons[number], f"{name} line {number} byte {position}", line.removesuffix(b"\n"))
            position += len(line)
            if number == last:
                return


def count_quarantined(path: Path) -> int:
    """Lines of a quarantine file; 0 where there is none, for then nothing was rejected."""
    try:
        with path.open("rb") as file:
            return sum(1 for _ in file)
    except FileNotFoundError:
        return 0


def _lines(*parts: Iterable[Reject]) -> Iterator[bytes]:
    for part in parts:
        for reject in part:
            yield msgspec.json.encode(_shown(reject)) + b"\n"


def _shown(reject: Reject) -> QuarantinedLine:
    try:
        return QuarantinedLine(reject.reason, reject.origin, reject.line.decode())
    except UnicodeDecodeError:
        return QuarantinedLine(reject.reason, reject.origin, base64.b64encode(reject.line).decode(), "base64")
