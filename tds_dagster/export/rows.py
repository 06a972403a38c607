"""Turns chosen rows of curated days into the content of one file: lines, compressed lines, or Parquet."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import msgspec

from ingest.records import Kind
from ingest.redaction.redactor import Redactor
from tds_dagster.curate.engine import Engine
from tds_dagster.curate.raw import line_feeds
from tds_dagster.curate.sql import glob_escaped
from tds_dagster.export.lines import (
    BATCH_ROWS,
    Choice,
    column_text,
    is_suspect,
    json_lines,
    line_of,
    redact_line,
    select_rows,
)
from tds_dagster.export.selection import Format

if TYPE_CHECKING:
    import pyarrow as pa

_ZSTD_LEVEL = 3  # 300 MB/s
_GROUP_ROWS, _GROUP_BYTES = 20_480, 64 << 20  # of Parquet: a group is written when it has so many


class Rows(Protocol):
    """A file in the making; equal rows give equal bytes."""

    def add(self, engine: Engine, parquet: Path, choice: Choice) -> int:
        """Append rows of a day, redacted; gives how many. Raises RedactionLeak."""

    def close(self) -> None:
        """Write what is left. The file itself stays open."""


def open_rows(form: Format, kind: Kind, redactor: Redactor, columns: Sequence[str], out: BinaryIO) -> Rows:
    """A file of that format, written to `out`; `columns` are those chosen, empty for all."""
    if form == "parquet":
        return _ParquetRows(kind, redactor, columns, out)
    return _LineRows(kind, redactor, out, is_compressed=form == "jsonl.zst")


class _LineRows:
    def __init__(self, kind: Kind, redactor: Redactor, out: BinaryIO, *, is_compressed: bool) -> None:
        self._kind, self._redactor = kind, redactor
        self._out = _compressed(out) if is_compressed else out
        self._is_compressed = is_compressed

    def add(self, engine: Engine, parquet: Path, choice: Choice) -> int:
        rows = 0
        for text in json_lines(engine, self._kind, parquet, self._redactor, choice):
            self._out.write(text)
            rows += line_feeds(text)
        return rows

    def close(self) -> None:
        if self._is_compressed:
            self._out.close()


def _compressed(out: BinaryIO) -> BinaryIO:
    """A stream whose content is compressed into `out`, on this thread: with more, the bytes depend on their number."""
    import zstandard

    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL, threads=0).stream_writer(out, closefd=False)


class _ParquetRows:
    """Columns with their curated types; a JSON column is its text. A number that was redacted is null."""

    def __init__(self, kind: Kind, redactor: Redactor, columns: Sequence[str], out: BinaryIO) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._kind, self._redactor = kind, redactor
        types: dict[str, pa.DataType] = {
            "integer": pa.int64(),
            "number": pa.float64(),
            "timestamp": pa.timestamp("us", tz="UTC"),
        }
        chosen = [column for column in kind.columns if not columns or column.name in columns]
        self._schema = pa.schema([(column.name, types.get(column.type, pa.string())) for column in chosen])
        self._writer = pq.ParquetWriter(out, self._schema, compression="zstd")
        self._waiting: list[pa.RecordBatch] = []

    def add(self, engine: Engine, parquet: Path, choice: Choice) -> int:
        names = [f'"{name}"' for name in self._schema.names]
        line = [line_of(self._kind)] if self._redactor.suspect is not None else []
        query = select_rows(", ".join(names + line), choice)
        rows = 0
        batches = engine.connection.sql(query, params=[glob_escaped(parquet), *choice.parameters]).to_arrow_reader(
            BATCH_ROWS
        )
        for batch in batches:
            rows += batch.num_rows
            self._wait(self._redacted(batch) if line else batch)
        return rows

    def close(self) -> None:
        self._write_group()
        self._writer.close()

    def _wait(self, batch: "pa.RecordBatch") -> None:
        self._waiting.append(batch.cast(self._schema))
        rows, size = (sum(getattr(each, name) for each in self._waiting) for name in ("num_rows", "nbytes"))
        if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
            self._write_group()

    def _write_group(self) -> None:
        import pyarrow as pa

        if self._waiting:
            table = pa.Table.from_batches(self._waiting)
            self._writer.write_table(table, row_group_size=max(1, table.num_rows))
            self._waiting.clear()

    def _redacted(self, batch: "pa.RecordBatch") -> "pa.RecordBatch":
        """The batch without its last column, the line, and with the cells that redaction changed."""
        import pyarrow as pa

        lines = batch.column(batch.num_columns - 1)
        columns = batch.columns[:-1]
        changes: dict[int, dict[str, object]] = {}
        for place, line in _suspects(self._redactor, lines):
            cells = self._changed_cells(line)
            if cells:
                changes[place] = cells
        for number, field in enumerate(self._schema):
            if any(field.name in cells for cells in changes.values()):
                values = columns[number].to_pylist()
                for place, cells in changes.items():
                    values[place] = cells.get(field.name, values[place])
                columns[number] = pa.array(values, field.type)
        return pa.RecordBatch.from_arrays(columns, names=self._schema.names)

    def _changed_cells(self, line: bytes) -> dict[str, object]:
        """What redaction makes of a record's cells, where it is something else."""
        before = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        after = msgspec.json.decode(redact_line(self._redactor, self._kind.name, line), type=dict[str, msgspec.Raw])
        types = self._kind.types
        return {
            name: _cell(bytes(value), types[name])
            for name, value in after.items()
            if bytes(value) != bytes(before[name])
        }


def _cell(value: bytes, of_type: str) -> object:
    """A redacted JSON value as a cell: text in text columns, JSON text in JSON columns, else null."""
    if of_type == "json":
        return value.decode()
    text = msgspec.json.decode(value)
    return text if of_type in {"id", "text"} and isinstance(text, str) else None


def _suspects(redactor: Redactor, lines: "pa.Array[pa.LargeStringScalar]") -> Iterator[tuple[int, bytes]]:
    """The lines that redaction has to look into, without their line feeds, each with its place."""
    if is_suspect(redactor, column_text(lines)):
        for place, line in enumerate(lines.to_pylist()):
            text = str(line).encode().rstrip(b"\n")
            if is_suspect(redactor, text):
                yield place, text
