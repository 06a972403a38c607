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
import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ingest.errors import InvalidRecord
from ingest.pipeline.partitions import DataPaths, make_folder, sync_folder
from ingest.records import ALIASES, Kind, escape_text, keyed_record_id, timestamp_text

IMPORT_PREFIX = "import-"  # of the names under which imported files stand among the producers

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
        reader = csv.reader(source, strict=True)
        header = next(reader, [])
        strange = [name for name in header if name not in kind.types]
        if strange or not header:
            raise InvalidRecord(
                f"{path}: columns {strange or header!r}: expected columns of {kind.name} such as "
                f"{','.join(kind.legacy_header or kind.types)}; correct the header and put the file back"
            )
        number = 0
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as err:
                cells = [f"<{err}>"]
            if cells is None:
                return
            number += 1
            if number > after:
                yield _imported_row(kind, header, cells, digest, number, path.name)


def _imported_row(kind: Kind, header: list[str], cells: list[str], digest: str, number: int, name: str) -> ImportedRow:
    given = {column: cell for column, cell in zip(header, cells, strict=False) if cell}
    record_id = given.get("record_id") or keyed_record_id(IMPORT_PREFIX + kind.name, f"{digest} {number}")
    reason, text, timestamp = None, None, ""
    try:
        if len(cells) != len(header):
            raise InvalidRecord(f"{len(cells)} cells: expected {len(header)}, as in the header")
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
    return ImportedRow(record_id, timestamp, text, reason, f"{name} row {number}", _as_written(cells))


def _cell(name: str, column_type: str, text: str | None, *, escaped: bool) -> str:
    if text is None:
        return ""
    if column_type == "json":
        text = _json_text(text)
    elif column_type in {"integer", "number"}:
        text = _number_text(name, text, whole=column_type == "integer")
    elif column_type == "timestamp":
        text = timestamp_text(name, text)
    elif not escaped:
        text = escape_text(text)
    return '"' + text.replace('"', '""') + '"'


def _json_text(text: str) -> str:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
        return msgspec.json.format(text, indent=-1) if "\n" in text or "\r" in text else text
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return msgspec.json.encode(text.encode(errors="surrogateescape").decode(errors="replace")).decode()


def _number_text(name: str, text: str, *, whole: bool) -> str:
    try:
        number = int(text) if whole else float(text)
    except ValueError as err:
        raise InvalidRecord(f"{name}={text!r}: expected a number or an empty cell") from err
    return msgspec.json.encode(number).decode()


def _as_written(cells: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode(errors="surrogateescape")
