"""Turns day files that the ledger does not know, such as those of the old store, into rows of our own.

A day file found in the training folder without an entry in the ledger is moved to `training/imported/`, under a name
that carries the hash of its content, and read from there row by row. Its rows are numbered; the ledger's mark for
`import-<hash>` says how far it was read, so an import that is cut off goes on where it stopped, and the same file
given again adds nothing.

The old store wrote neither null nor the empty string apart, nor line breaks on one line: an empty cell is null, and
the files are read as CSV with cells of any length and line breaks inside (RFC 4180). What is no JSON in a JSON column
becomes a JSON string. A row that cannot be read goes to quarantine; a file whose columns are strange goes there whole.
"""

import csv
import hashlib
import json
import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import msgspec

from ingest.errors import InvalidRecord
from ingest.pipeline.partitions import DataPaths, make_folder, replacing, sync_folder
from ingest.records import ALIASES, Kind, escape_text, keyed_record_id, timestamp_text

IMPORT_PREFIX = "import-"  # of the names under which imported files stand among the producers

_MAX_LINES = 100_000  # of one record, whose cells may have line breaks

logger = logging.getLogger(__name__)


class ImportedRow(msgspec.Struct, frozen=True):
    """One row of an imported file: as our CSV, or else the reason why it cannot be."""

    record_id: str
    timestamp: str
    text: str | None  # our CSV row, with its line break
    reason: str | None
    origin: str
    line: bytes  # the row as it stood


def receive_day_file(paths: DataPaths, kind: str, path: Path) -> Path:
    """Move a day file that the ledger does not know to the imported ones; gives its new path."""
    with path.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    target = paths.imported / f"{path.stem}.{digest}.csv"
    make_folder(paths.imported)
    path.replace(target)
    sync_folder(paths.imported)
    sync_folder(path.parent)
    logger.warning("%s: not in the %s ledger; moved to %s and imported", path, kind, target)
    return target


def has_unknown_files(paths: DataPaths, kind: str) -> bool:
    """Whether the training folder or the imported one holds day files of a kind that has no ledger yet."""
    if paths.ledger(kind).exists():
        return False
    return any(paths.training(kind, "").parent.glob(f"{kind}_????-??-??.csv"))


def received_files(paths: DataPaths, kind: str) -> list[tuple[str, Path]]:
    """The imported day files of a kind, each with its name among the producers."""
    if not paths.imported.is_dir():
        return []
    found = sorted(paths.imported.glob(f"{kind}_????-??-??.{'?' * 64}.csv"))
    return [(IMPORT_PREFIX + path.name.split(".")[1], path) for path in found]


def read_rows(kind: Kind, path: Path, after: int) -> Iterator[ImportedRow]:
    """The rows of an imported file behind the first `after` ones, in order.

    Raises InvalidRecord if its header names columns that the kind does not have.
    """
    digest = path.name.split(".")[1]
    csv.field_size_limit(sys.maxsize)  # the module's default of 131,072 characters is smaller than a large payload
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as source:
        lines = _Lines(source)
        header = _record(lines)[0] or []
        strange = [name for name in header if name not in kind.types]
        if strange or not header:
            raise InvalidRecord(
                f"{path}: columns {strange or header!r}: expected columns of {kind.name} such as "
                f"{','.join(kind.legacy_header or kind.types)}; correct the header and put the file back"
            )
        number = 0
        while lines.has_more():
            cells, text = _record(lines, len(header))
            number += 1
            if number > after:
                line = text.encode(errors="surrogateescape")
                yield _imported_row(kind, header, cells, digest, f"{path.name} row {number}", line, number)


def blank_rows(kind: Kind, path: Path, is_doomed: Callable[[ImportedRow], bool]) -> int:
    """Make an empty line of each row of an imported file that is to go; gives how many rows went.

    The other rows keep their bytes and their numbers, of which record ids are made. Read once it is imported, the file
    is never read again; done twice, the same empty lines are found and stay.
    """
    blanked = sum(1 for row in read_rows(kind, path, 0) if row.line.strip() and is_doomed(row))
    if blanked:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as source:
            header = _record(_Lines(source))[1].encode(errors="surrogateescape")
        with replacing(path) as out:
            out.write(header)
            out.writelines(b"\n" if is_doomed(row) else row.line for row in read_rows(kind, path, 0))
    return blanked


def drop_records(path: Path, is_doomed: Callable[[bytes], bool]) -> int:
    """Leave out the records of any CSV file whose text is to go; gives how many went."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as source:
        dropped = sum(1 for text in _texts(source) if is_doomed(text))
    if dropped:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as source, replacing(path) as out:
            out.writelines(text for text in _texts(source) if not is_doomed(text))
    return dropped


def _texts(source: Iterable[str]) -> Iterator[bytes]:
    lines = _Lines(source)
    while lines.has_more():
        yield _record(lines)[1].encode(errors="surrogateescape")


class _Lines:
    """A file's lines, which can be put back."""

    def __init__(self, source: Iterable[str]) -> None:
        self._source, self._ahead = iter(source), list[str]()

    def has_more(self) -> bool:
        if not self._ahead:
            self._ahead += islice(self._source, 1)
        return bool(self._ahead)

    def take(self) -> str:
        return self._ahead.pop(0) if self.has_more() else ""

    def put_back(self, lines: list[str]) -> None:
        self._ahead = lines + self._ahead


def _record(lines: _Lines, width: int | None = None) -> tuple[list[str] | None, str]:
    """The next record's cells, None if it is none, and its text.

    A cell may have line breaks (RFC 4180, 2.6), so a record ends where its quotes are even. A row that was torn within
    a cell would swallow the ones behind it: if what comes out is no row, the first line alone is the bad one.
    """
    taken = [lines.take()]
    quotes = taken[0].count('"')
    while quotes % 2 and lines.has_more() and len(taken) < _MAX_LINES:
        taken.append(lines.take())
        quotes += taken[-1].count('"')
    try:
        (cells,) = csv.reader(["".join(taken)], strict=True)
    except (csv.Error, ValueError):
        cells = None
    if len(taken) > 1 and (cells is None or (width is not None and len(cells) != width)):
        lines.put_back(taken[1:])
        return None, taken[0]
    return cells, "".join(taken)


def _imported_row(
    kind: Kind, header: list[str], cells: list[str] | None, digest: str, origin: str, line: bytes, number: int
) -> ImportedRow:
    given = {column: cell for column, cell in zip(header, cells or (), strict=False) if cell}
    record_id = given.get("record_id") or keyed_record_id(IMPORT_PREFIX + kind.name, f"{digest} {number}")
    reason, text, timestamp = None, None, ""
    try:
        if cells is None or len(cells) != len(header):
            found = "no CSV" if cells is None else f"{len(cells)} cells"
            raise InvalidRecord(f"{found}: expected {len(header)} cells, as in the header")
        timestamp = timestamp_text("timestamp", given.get("timestamp"))
        given |= {"record_id": record_id, "timestamp": timestamp}
        for column, source in ALIASES.items():
            if column in kind.types:
                given.setdefault(column, given[source])
        is_ours = "record_id" in header  # a file of ours whose ledger is gone: its texts are escaped already
        text = ",".join(_cell(c.name, c.type, given.get(c.name), escaped=is_ours) for c in kind.columns) + "\n"
        text.encode()
    except (InvalidRecord, UnicodeEncodeError) as err:
        text, reason = None, f"not UTF-8: {err.reason}" if isinstance(err, UnicodeEncodeError) else str(err)
    return ImportedRow(record_id, timestamp, text, reason, origin, line)


def _cell(name: str, column_type: str, text: str | None, *, escaped: bool) -> str:
    if text is None:
        return ""
    if column_type == "json":
        text = _json_text(text)
    elif column_type in {"integer", "number"}:
        number = _number_text(name, text, whole=column_type == "integer")
        if number is None:
            return ""
        text = number
    elif column_type == "timestamp":
        text = timestamp_text(name, text)
    elif not escaped:
        text = escape_text(text)
    return '"' + text.replace('"', '""') + '"'


def _json_text(text: str) -> str:
    """A JSON cell's text. Python's NaN and Infinity, which JSON does not know, become null; other text a string."""
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
        return msgspec.json.format(text, indent=-1) if "\n" in text or "\r" in text else text
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        pass  # the next attempts take more
    try:
        return msgspec.json.encode(json.loads(text, parse_constant=lambda _: None)).decode()
    except (ValueError, RecursionError):
        return msgspec.json.encode(text.encode(errors="surrogateescape").decode(errors="replace")).decode()


def _number_text(name: str, text: str, *, whole: bool) -> str | None:
    try:
        number = int(text) if whole else float(text)
    except ValueError as err:
        raise InvalidRecord(f"{name}={text!r}: expected a number or an empty cell") from err
    return msgspec.json.encode(number).decode() if math.isfinite(number) else None
