"""Curation again, by Polars and not by DuckDB: the same content, whichever engine reads the day."""

import random
from typing import Any

import polars as pl
from polars.testing import assert_frame_equal

from ingest.records import KINDS, Kind, new_record_id, unescape_text
from tds_dagster.curate import curate_day
from tests.stages.conftest import DAY, RawStore

TEXTS = ["", "a", 'say "hi", then go', "two\nlines\r\n", "back\\slash \\n", "Grüße 🚀", " ", "null", "0", None]
DOCUMENTS: list[object] = [None, {}, [], {"a": [1, 2.5, None, "x\ny"]}, "text", 7, {"deep": {"er": '"quoted"'}}, True]
VALUES: dict[str, list[Any]] = {
    "id": TEXTS,
    "text": TEXTS,
    "json": DOCUMENTS,
    "integer": [None, 0, -1, 2**63 - 1, -(2**63)],
    "number": [None, 0.1, -2.5e-7, 1e300, 3],
    "timestamp": [None, f"{DAY}T01:02:03.000004Z"],
}


def any_record(store: RawStore, kind: Kind, dice: random.Random) -> dict[str, object]:
    """A record with something of each type in each column, nulls among them."""
    fields: dict[str, object] = {}
    for column in kind.columns:
        if column.name in {"record_id", "event_id", "timestamp", "target_kind", *kind.required}:
            continue
        fields[column.name] = dice.choice(VALUES[column.type])
    for name, allowed in kind.choices.items():
        fields[name] = dice.choice(allowed)
    moment = f"{DAY}T{dice.randrange(24):02d}:30:00.{dice.randrange(3):06d}Z"
    return store.record(kind.name, **fields, timestamp=moment)


def curated_by_polars(raw: bytes, kind: Kind) -> pl.DataFrame:
    """The rules of curation, said once more: unescaped, typed, the first of each record_id, by time and id."""
    frame = pl.read_csv(raw, infer_schema=False)
    as_types: dict[str, Any] = {"integer": pl.Int64, "number": pl.Float64}
    columns = [
        pl.col(column.name).map_elements(unescape_text, return_dtype=pl.String)
        if column.type in {"id", "text"}
        else pl.col(column.name).str.to_datetime("%Y-%m-%dT%H:%M:%S%.fZ", time_unit="us", time_zone="UTC")
        if column.type == "timestamp"
        else pl.col(column.name).cast(as_types.get(column.type, pl.String))
        for column in kind.columns
    ]
    return (
        frame.select(columns)
        .sort("timestamp", maintain_order=True)
        .unique("record_id", keep="first", maintain_order=True)
        .sort("timestamp", "record_id")
    )


def test_duckdb_and_polars_find_the_same_content_in_a_day(raw_store: RawStore, kind: str) -> None:
    dice = random.Random(kind)
    records = [any_record(raw_store, KINDS[kind], dice) for _ in range(300)]
    again = [{**dice.choice(records), "record_id": dice.choice(records)["record_id"]} for _ in range(20)]
    raw_store.store(kind, *records, *again, raw_store.record(kind, record_id=new_record_id()))

    built = curate_day(raw_store.paths, kind, DAY)

    assert (built.rows, built.duplicates, built.quarantined) == (301, 20, 0)
    raw = raw_store.paths.training(kind, DAY).read_bytes()
    assert_frame_equal(pl.read_parquet(built.path), curated_by_polars(raw, KINDS[kind]))
