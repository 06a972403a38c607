"""Turns curated rows into JSON lines without what a level of redaction promises to be gone.

DuckDB joins each line together in SQL and hands it over in Arrow batches whose text buffer is taken as it is, so no
value becomes a Python object. JSON columns were checked at curation and are spliced in as the very text that was
stored. Against Arrow batches with orjson: docs/adr/0003-jsonl-formatter.md.

RE2 looks once at each batch for lines that redaction has to look into (330 MB/s at level secrets; `regexp_matches`
beside each line in the query took twice as long). Those are redacted and looked at for leaks one by one. A line that
is not suspect holds nothing, so that with this one look the whole text has been looked at for leaks.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ingest.errors import RedactionLeak
from ingest.pipeline.partitions import DataPaths
from ingest.records import Column, Kind
from ingest.redaction.detectors import tested
from ingest.redaction.redactor import Redactor, open_redactor
from ingest.settings import Settings
from tds_dagster.curate.engine import Engine
from tds_dagster.curate.sql import glob_escaped

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 2048  # one of DuckDB's vectors; more only adds memory
_SMALL_BYTES = 128 << 10  # of a Parquet file; up to there a result as a list is 1.5 ms, as a stream 2.7

_tested = lru_cache(maxsize=8)(tested)


def default_redactor(paths: DataPaths) -> Redactor:
    """The redactor of exports where nothing is set."""
    settings = Settings(data_dir=paths.root)
    return open_redactor(settings, settings.redaction)


def counting_anew(redactor: Redactor) -> Redactor:
    """The same redactor with figures of its own: for one artifact, and for one thread."""
    twin = copy.copy(redactor)
    twin.counts = Counter()
    return twin


class Choice(msgspec.Struct, frozen=True):
    """Which rows of a curated day, and which columns of them."""

    columns: tuple[str, ...] = ()  # in the kind's order; empty: all
    condition: str = "TRUE"  # SQL over `records`, the day with its `file_row_number`
    parameters: tuple[object, ...] = ()  # of the condition, from $2 on
    limit: int | None = None


def json_lines(
    engine: Engine,
    kind: Kind,
    parquet: Path,
    redactor: Redactor | None = None,
    choice: Choice = Choice(),  # noqa: B008 - frozen
) -> Iterator[bytes]:
    """The rows' lines, some thousands at a time, in the file's order.

    Without a redactor they are as they were stored. Raises RedactionLeak if redaction left something behind.
    """
    is_clean = redactor is None or redactor.suspect is None
    # Redaction has to see the whole record: a name that stands in one column is taken from the others, too.
    query = select_rows(line_of(kind, choice.columns if is_clean else ()), choice)
    parameters = [glob_escaped(parquet), *choice.parameters]
    if parquet.stat().st_size <= _SMALL_BYTES:
        rows = engine.execute(query, *parameters).fetchall()
        texts: Iterator[bytes] = iter(["".join([line for (line,) in rows]).encode()])
    else:
        # A relation and not `execute`: only the relation's reader streams; the other held the whole result (0.7 GB).
        batches = engine.connection.sql(query, params=parameters).to_arrow_reader(BATCH_ROWS)
        texts = (column_text(batch.column(0)) for batch in batches)
    for text in filter(None, texts):
        if redactor is None or is_clean:
            yield text
        else:
            redacted = redact_text(redactor, kind.name, text)
            yield _with_columns(redacted, choice.columns) if choice.columns else redacted


def _with_columns(text: bytes, columns: Sequence[str]) -> bytes:
    """Lines with some of their keys; values keep their bytes."""
    pieces = []
    for line in text.splitlines():
        cells = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        pieces += [msgspec.json.encode({name: cells[name] for name in columns}), b"\n"]
    return b"".join(pieces)


def column_text(column: "pa.Array[pa.LargeStringScalar]") -> bytes:
    """All texts of a column without nulls, one after the other."""
    _, offsets, text = column.buffers()
    if not len(column) or offsets is None or text is None:
        return b""
    ends = memoryview(offsets).cast("q")  # large_string: 64-bit offsets
    start, end = ends[column.offset], ends[column.offset + len(column)]
    return memoryview(text)[start:end].tobytes()


def is_suspect(redactor: Redactor, text: bytes) -> bool:
    """Whether redaction has to look into one of the lines of a text."""
    return redactor.suspect is not None and _tested(redactor.suspect).search(text) is not None


def redact_text(redactor: Redactor, kind: str, text: bytes) -> bytes:
    """Whole lines, redacted. Raises RedactionLeak if something is left of what the level promises to be gone."""
    if redactor.suspect is None:
        return text
    search = _tested(redactor.suspect).search
    pieces, taken, position = list[bytes](), 0, 0
    while match := search(text, position):
        start = text.rfind(b"\n", 0, match.start() + 1) + 1
        end = text.find(b"\n", match.start() + 1)
        position = end = len(text) if end < 0 else end
        pieces += [text[taken:start], redact_line(redactor, kind, text[start:end])]
        taken = end
    return b"".join([*pieces, text[taken:]]) if pieces else text


def redact_line(redactor: Redactor, kind: str, line: bytes) -> bytes:
    """One line without its line feed, redacted. Raises RedactionLeak."""
    redacted = redactor.redact_line(kind, line)
    leaks = redactor.find_leaks(redacted)
    if leaks:
        raise RedactionLeak(
            f"{kind}: {leaks[0].detector} found something at byte {leaks[0].offset} of a redacted line, which level "
            f"{redactor.level} promises to be gone; nothing was replaced. Correct that rule in the policy, or report it"
        )
    return redacted


def select_rows(expressions: str, choice: Choice = Choice()) -> str:  # noqa: B008 - frozen
    """Query the chosen rows of a Parquet file ($1), in the file's order."""
    limit = "" if choice.limit is None else f" LIMIT {choice.limit}"
    reader = "read_parquet($1, hive_partitioning = false, file_row_number = true)"
    return f"SELECT {expressions} FROM {reader} AS records WHERE {choice.condition}{limit}"


def line_of(kind: Kind, columns: Sequence[str] = ()) -> str:
    """A row as a JSON line with its line feed, in SQL: all its columns, or those named, in the kind's order."""
    chosen = [column for column in kind.columns if not columns or column.name in columns]
    keys = [f'{"," if place else "{"}"{column.name}":' for place, column in enumerate(chosen)]
    parts = ", ".join(f"'{key}', {_json(column)}" for key, column in zip(keys, chosen, strict=True))
    return f"concat({parts}, '}}' || chr(10))"


def _json(column: Column) -> str:
    """A column's value as JSON text; null is `null`."""
    name = f'"{column.name}"'
    text = {
        "id": f"to_json({name})::VARCHAR",
        "text": f"to_json({name})::VARCHAR",
        "json": name,
        "integer": f"{name}::VARCHAR",
        "number": f"{name}::VARCHAR",  # the shortest text that reads back as the same double
        # Its microseconds as they are, which is UTC: by way of a time zone it takes twice as long.
        "timestamp": f"strftime(make_timestamp(epoch_us({name})), '\"%Y-%m-%dT%H:%M:%S.%fZ\"')",
    }[column.type]
    return f"coalesce({text}, 'null')"
