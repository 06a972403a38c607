"""Turns the committed rows of day files back into typed columns, for `load` and `scan`."""

import io
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from ingest.pipeline.ledger import CommittedFile, Ledger, open_committed, open_ledger, settle_edits
from ingest.pipeline.partitions import DataPaths, day_range
from ingest.records import ARROW_CSV_OPTIONS, ColumnType, Kind, kind_named, unescape_text
from ingest.settings import Settings

_ARROW_TYPES: dict[ColumnType, pa.DataType] = {
    "id": pa.string(),
    "text": pa.string(),
    "json": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
_ESCAPED: tuple[ColumnType, ...] = ("id", "text")


def arrow_schema(kind: Kind) -> pa.Schema:
    """The Arrow schema of a kind: its columns in file order. JSON columns are text, timestamps microseconds in UTC."""
    return pa.schema([(column.name, _ARROW_TYPES[column.type]) for column in kind.columns])


def read_table(
    settings: Settings, kind_name: str, start: date | str | None = None, end: date | str | None = None
) -> pa.Table:
    """A kind's committed rows of the days from `start` to `end`, both included; all days without them.

    Rows come in file order, day by day. Raises UnknownKind, InvalidRange, DamagedFile for a day file that is shorter
    than committed, and pyarrow.ArrowInvalid for one that somebody edited so that it is no CSV of the kind any more.
    """
    kind, paths = kind_named(kind_name), DataPaths(settings.data_dir)
    tables = [arrow_schema(kind).empty_table()]
    if paths.ledger(kind.name).exists():
        with open_ledger(paths, kind.name) as ledger:
            days = _days(list(ledger.files()), start, end)
            settle_edits(ledger, paths, kind.name, days)
            files = ledger.files()
            for day in days:
                prefix = _read_committed(ledger, paths.training(kind.name, day), day, files[day])
                tables.append(_parse_day(kind, prefix, settings.max_record_bytes))
    else:
        _days([], start, end)
    return pa.concat_tables(tables)


def _days(known: Sequence[str], start: date | str | None, end: date | str | None) -> list[str]:
    """The known days within the range. Raises InvalidRange."""
    if start is None and end is None:
        return list(known)
    first, last = str(start or end), str(end or start)
    if start is None:
        first = min([*known, last])
    if end is None:
        last = max([*known, first])
    wanted = set(day_range(first, last))
    return [day for day in known if day in wanted]


def _read_committed(ledger: Ledger, path: Path, day: str, seen: CommittedFile) -> bytes:
    source, committed = open_committed(ledger, path, day, seen)
    with source:
        return source.read(committed.size)


def _parse_day(kind: Kind, prefix: bytes, max_record_bytes: int) -> pa.Table:
    names = prefix[: prefix.index(b"\n")].decode().split(",")
    options = pcsv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        strings_can_be_null=bool(ARROW_CSV_OPTIONS["strings_can_be_null"]),
        quoted_strings_can_be_null=bool(ARROW_CSV_OPTIONS["quoted_strings_can_be_null"]),
        null_values=[""],
        include_columns=[column.name for column in kind.columns],
        include_missing_columns=True,  # a day file of an older version has fewer
    )
    block_size = min(len(prefix) + 1, max(64 << 20, 4 * max_record_bytes))  # a row has to fit, doubled quotes included
    raw = pcsv.read_csv(
        io.BytesIO(prefix), read_options=pcsv.ReadOptions(block_size=block_size), convert_options=options
    )
    columns = [_typed(raw[column.name], column.type) for column in kind.columns]
    return pa.table(columns, schema=arrow_schema(kind))


def _typed(column: "pa.ChunkedArray[Any]", column_type: ColumnType) -> "pa.ChunkedArray[Any]":
    column = column.cast(pa.string())
    if column_type in _ESCAPED:
        if pc.any(pc.match_substring(column, "\\")).as_py():
            return pa.chunked_array(
                [[None if t is None else unescape_text(t) for t in column.to_pylist()]], pa.string()
            )
        return column
    return column.cast(_ARROW_TYPES[column_type])
