"""Turns day files of events into JSONL or Parquet by the means of other libraries: what an export is measured against.

Each peer reads the same CSV files in the way that its own documentation shows for large files, and writes a file a
day, with the JSON column nested where it can do that. None of them checks, sorts, counts or syncs anything.
"""

import csv
import importlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ingest.records import ARROW_CSV_OPTIONS, DUCKDB_CSV_OPTIONS, KINDS
from tds_dagster.curate.sql import literal

KIND = KINDS["events"]
_LOGGER = "from logging import getLogger as get_logger\n"


def duckdb_jsonl(files: Sequence[Path], folder: Path) -> None:
    """`COPY (FROM read_csv) TO (FORMAT json)`, a day at a time."""
    _duckdb_copies(files, folder, "jsonl", "JSON", "FORMAT json")


def duckdb_parquet(files: Sequence[Path], folder: Path) -> None:
    """`COPY (FROM read_csv ORDER BY) TO (FORMAT parquet)`, a day at a time: typed, sorted, compressed as ours."""
    order = "ORDER BY timestamp, record_id"
    _duckdb_copies(files, folder, "parquet", "VARCHAR", "FORMAT parquet, COMPRESSION zstd", order)


def _duckdb_copies(
    files: Sequence[Path], folder: Path, suffix: str, json_type: str, form: str, order: str = ""
) -> None:
    import duckdb

    types = {"json": json_type, "timestamp": "TIMESTAMPTZ"}
    columns = ", ".join(f"{literal(column.name)}: '{types.get(column.type, 'VARCHAR')}'" for column in KIND.columns)
    options = {name: value for name, value in DUCKDB_CSV_OPTIONS.items() if name != "all_varchar"}
    settings = ", ".join(f"{name} = {literal(value)}" for name, value in options.items())
    with duckdb.connect() as connection:
        for file in files:
            reader = f"read_csv({literal(file)}, columns = {{{columns}}}, {settings})"
            target = folder / f"{file.stem}.{suffix}"
            connection.execute(f"COPY (FROM {reader} {order}) TO {literal(target)} ({form})")


def polars_jsonl(files: Sequence[Path], folder: Path) -> None:
    """`scan_csv` to `sink_ndjson`; the JSON column stays text, for Polars has no JSON values."""
    import polars as pl

    for file in files:
        pl.scan_csv(file, infer_schema=False).sink_ndjson(folder / f"{file.stem}.jsonl")


def pandas_jsonl(files: Sequence[Path], folder: Path) -> None:
    """`read_csv`, `json.loads` for the JSON column, `to_json(lines=True)`."""
    import pandas as pd

    for file in files:
        table = pd.read_csv(file, dtype=str)
        table["payload"] = table["payload"].map(json.loads)
        table.to_json(folder / f"{file.stem}.jsonl", orient="records", lines=True)


def pyarrow_jsonl(files: Sequence[Path], folder: Path) -> None:
    """`open_csv`, batches as Python objects, orjson: pyarrow itself writes no JSON."""
    import orjson
    import pyarrow as pa
    import pyarrow.csv as pacsv

    convert = pacsv.ConvertOptions(
        column_types={column.name: pa.string() for column in KIND.columns}, **ARROW_CSV_OPTIONS
    )
    for file in files:
        with (
            pacsv.open_csv(file, convert_options=convert) as batches,
            (folder / f"{file.stem}.jsonl").open("wb") as out,
        ):
            for batch in batches:
                rows: list[dict[str, Any]] = batch.to_pylist()
                for row in rows:
                    row["payload"] = orjson.Fragment(row["payload"])
                out.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)


def old_store_jsonl(files: Sequence[Path], folder: Path, source: Path) -> None:
    """The old store's `export_for_training` over the same files, its one file of code loaded from `source`."""
    package = folder / "app"
    (package / "core").mkdir(parents=True)
    for each in (package, package / "core"):
        (each / "__init__.py").touch()
    (package / "logging_config.py").write_text(_LOGGER)
    (package / "core" / "training_data_store.py").write_text(source.read_text())
    sys.path.insert(0, str(folder))
    csv.field_size_limit(1 << 30)
    store: Any = importlib.import_module("app.core.training_data_store").TrainingDataStore(folder / "training")
    for file in files:
        (folder / "training" / "events" / file.name).symlink_to(file)
    store.export_for_training("events", folder / "all.jsonl")


def cat(files: Sequence[Path], folder: Path) -> None:
    """The bytes of the files one after the other, and nothing else: the floor."""
    with (folder / "all.jsonl").open("wb") as out:
        _copy(files, out)


def cat_synced(files: Sequence[Path], folder: Path) -> None:
    """The same, on the disk before it takes the place of the file that is there: the floor of what replaces whole."""
    old, new = folder / "all.jsonl", folder / "new.jsonl"
    with new.open("wb") as out:
        _copy(files, out)
        out.flush()
        os.fsync(out.fileno())
    new.replace(old)


def _copy(files: Sequence[Path], out: BinaryIO) -> None:
    for file in files:
        with file.open("rb") as content:
            shutil.copyfileobj(content, out, 1 << 20)
