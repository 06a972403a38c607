"""Turns one curated day into its JSONL shard, the artifact of one partition.

DuckDB joins each line together in SQL and hands it over in Arrow batches whose text buffer is written as it is, so
no value becomes a Python object. JSON columns were checked at curation and are spliced in as the very text that was
stored. Against Arrow batches with orjson: docs/adr/0003-jsonl-formatter.md.
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import ingest.records
from ingest.errors import SourceMissing, Unbalanced
from ingest.pipeline.partitions import DataPaths, parse_day, replacing
from ingest.records import SCHEMA_VERSION, Column, Kind, kind_named
from tds_dagster.curate.artifacts import (
    code_version_of,
    drop_manifest,
    is_intact,
    locked,
    made_now,
    read_manifest,
    write_manifest,
)
from tds_dagster.curate.day import CuratedDay, read_curated
from tds_dagster.curate.engine import Engine, engine_errors, open_engine
from tds_dagster.curate.raw import RawDays, open_raw
from tds_dagster.curate.sql import glob_escaped
from tds_dagster.export.accounting import account_of
from tds_dagster.export.manifest import Shard

if TYPE_CHECKING:
    import duckdb

REDACTION = "none"
_BATCH_ROWS = 2048  # one of DuckDB's vectors; more only adds memory


def code_version() -> str:
    """The version of the code that decides a shard's bytes."""
    return code_version_of([__file__, str(ingest.records.__file__)])


def export_day(
    paths: DataPaths, kind: str, day: str, *, raw_days: RawDays | None = None, engine: Engine | None = None
) -> Shard:
    """Bring a day's JSONL shard up to date with its curated Parquet file.

    One object a line, every column in schema order. Whoever builds many days passes `raw_days` and `engine`,
    opened once.

    Raises UnknownKind or InvalidRange for what is no kind or no day, SourceMissing if the day is not curated,
    Unbalanced if its records do not add up (then the old shard stays), EngineFailed if DuckDB lacks disk or memory.
    """
    parse_day("day", day)
    kind_named(kind)
    with ExitStack() as stack:
        current = current_shard(paths, _curated(paths, kind, day))
        if current is not None:
            return current
        stack.enter_context(locked(paths, f"{kind}_{day}"))
        curated = _curated(paths, kind, day)
        current = current_shard(paths, curated)  # another process may have built it in the meantime
        if current is not None:
            return current
        if raw_days is None:
            raw_days = stack.enter_context(open_raw(paths, kind))
        else:
            raw_days.refresh()  # another process may have curated it from rows that came after our look at the ledger
        return _build(raw_days, curated, engine or stack.enter_context(open_engine(paths)))


def current_shard(paths: DataPaths, curated: CuratedDay) -> Shard | None:
    """The shard if it was made from this curated day by this code; None if it has to be made (again)."""
    built = read_manifest(paths.shard(curated.kind, curated.day), Shard)
    if built is None or not is_intact(built):
        return None
    is_same = (built.source_sha256, built.source_version) == (curated.sha256, curated.source_version)
    if not is_same or built.code_version != code_version():
        return None
    return msgspec.structs.replace(built, reused=True)


def _curated(paths: DataPaths, kind: str, day: str) -> CuratedDay:
    built = read_curated(paths, kind, day)
    if built is None:
        raise SourceMissing(
            f"{paths.curated(kind, day)}: expected the curated day with its manifest; "
            f"materialize curated/{kind} for {day} first"
        )
    return built


def _build(raw_days: RawDays, curated: CuratedDay, engine: Engine) -> Shard:
    kind, day = kind_named(curated.kind), curated.day
    target = raw_days.paths.shard(kind.name, day)
    digest, rows, size = hashlib.sha256(), 0, 0
    with replacing(target) as out:
        with engine_errors(f"{kind.name} {day}"):
            for lines in json_lines(engine.connection, kind, curated.path):
                out.write(lines)
                digest.update(lines)
                rows += lines.count(b"\n")
                size += len(lines)
        account = account_of(raw_days, curated, rows)
        if not account.balanced:
            raise Unbalanced(
                f"{kind.name} {day}: {account}; the shard was not replaced. Remove {curated.path} to have the day "
                f"built again; if it stays like that, report it with {raw_days.paths.ledger(kind.name)}"
            )
        drop_manifest(target)
    shard = Shard(
        kind=kind.name,
        day=day,
        path=target,
        rows=rows,
        bytes=size,
        sha256=digest.hexdigest(),
        source_sha256=curated.sha256,
        source_version=curated.source_version,
        source_rows=curated.source_rows,
        source_rejects=curated.source_rejects,
        source_foreign=curated.source_foreign,
        duplicates=curated.duplicates,
        schema_version=SCHEMA_VERSION,
        code_version=code_version(),
        redaction=REDACTION,
        account=account,
        made_at=made_now(),
    )
    write_manifest(shard)
    return shard


def json_lines(connection: "duckdb.DuckDBPyConnection", kind: Kind, parquet: Path) -> Iterator[bytes]:
    """The day's lines, some thousands at a time."""
    # A relation and not `execute`: only the relation's reader streams; the other one held the whole result (0.7 GB).
    relation = connection.sql(select_lines(kind), params=[glob_escaped(parquet)])
    for batch in relation.to_arrow_reader(_BATCH_ROWS):
        column = batch.column(0)
        _, offsets, text = column.buffers()
        if not len(column) or offsets is None or text is None:
            continue
        ends = memoryview(offsets).cast("q")  # large_string: 64-bit offsets
        start, end = ends[column.offset], ends[column.offset + len(column)]
        yield memoryview(text)[start:end].tobytes()


def select_lines(kind: Kind) -> str:
    """Query each row of a Parquet file ($1) as a JSON line with its line feed, in the file's order."""
    keys = [f'{"," if place else "{"}"{column.name}":' for place, column in enumerate(kind.columns)]
    parts = ", ".join(f"'{key}', {_json(column)}" for key, column in zip(keys, kind.columns, strict=True))
    return f"SELECT concat({parts}, '}}' || chr(10)) AS line FROM read_parquet($1, hive_partitioning = false)"


def _json(column: Column) -> str:
    """A column's value as JSON text; null is `null`."""
    name = f'"{column.name}"'
    text = {
        "id": f"to_json({name})::VARCHAR",
        "text": f"to_json({name})::VARCHAR",
        "json": name,
        "integer": f"{name}::VARCHAR",
        "number": f"{name}::VARCHAR",  # the shortest text that reads back as the same double
        "timestamp": f"strftime({name} AT TIME ZONE 'UTC', '\"%Y-%m-%dT%H:%M:%S.%fZ\"')",
    }[column.type]
    return f"coalesce({text}, 'null')"
