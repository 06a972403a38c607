"""Export of one day: a curated day becomes a JSONL shard, whole or not at all, and only if its account adds up."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from ingest.errors import SourceMissing, Unbalanced, UnknownKind
from ingest.pipeline.partitions import DataPaths, manifest_of
from ingest.records import KINDS
from ingest.redaction.redactor import open_redactor
from ingest.settings import Settings
from tds_dagster.curate import curate_day
from tds_dagster.curate.seal import seal
from tds_dagster.export import export_day
from tests.stages.conftest import DAY, RawStore

ReadJsonl = Callable[[Path], list[dict[str, object]]]


def test_a_line_has_every_column_in_schema_order_null_included(raw_store: RawStore, kind: str) -> None:
    raw_store.store(kind, raw_store.record(kind))
    curate_day(raw_store.paths, kind, DAY)

    shard = export_day(raw_store.paths, kind, DAY)

    (line,) = shard.path.read_bytes().splitlines()
    row = json.loads(line)
    assert list(row) == [column.name for column in KINDS[kind].columns]
    given = {"record_id", "event_id", "timestamp", *KINDS[kind].required}
    assert {name for name, value in row.items() if value is not None} == given & row.keys()


def test_documents_are_nested_as_the_text_that_was_stored(raw_store: RawStore) -> None:
    document = '{"b": 1.50, "a":[12345678901234567890123,"\\u0000\\/"], "b":1e+2}'
    cell = document.replace('"', '""').encode()
    row = raw_store.row("events", raw_store.record("events", payload="HERE")).replace(b'"""HERE"""', b'"' + cell + b'"')
    raw_store.commit("events", [row])
    curate_day(raw_store.paths, "events", DAY)

    assert f'"payload":{document},"record_id"' in export_day(raw_store.paths, "events", DAY).path.read_text()


@pytest.mark.parametrize("number", [12.5, 10, 0, -0.0, 1e20, 1e-7, 5e-324, 1.7976931348623157e308, 0.1 + 0.2, 2**53])
def test_numbers_come_back_equal(raw_store: RawStore, read_jsonl: ReadJsonl, number: float) -> None:
    raw_store.store("tasks", raw_store.record("tasks", execution_time_ms=number, retry_count=-(2**63)))
    curate_day(raw_store.paths, "tasks", DAY)

    (row,) = read_jsonl(export_day(raw_store.paths, "tasks", DAY).path)

    assert (row["execution_time_ms"], row["retry_count"]) == (number, -(2**63))


@pytest.mark.parametrize(
    "stamp", ["0001-01-01T00:00:00.000000Z", "2024-05-15T08:30:00.000001Z", "9999-12-31T23:59:59.999999Z"]
)
def test_timestamps_keep_their_microseconds(raw_store: RawStore, read_jsonl: ReadJsonl, stamp: str) -> None:
    raw_store.store("tasks", raw_store.record("tasks", timestamp=stamp, completed_at=stamp))
    curate_day(raw_store.paths, "tasks", DAY)

    (row,) = read_jsonl(export_day(raw_store.paths, "tasks", DAY).path)

    assert (row["timestamp"], row["completed_at"]) == (stamp, stamp)


def test_a_record_of_many_mebibytes_is_exported(raw_store: RawStore, read_jsonl: ReadJsonl) -> None:
    text = '"\\é\n\0' * (4 << 20)
    raw_store.store("events", raw_store.record("events", payload=text, agent_id=text[:50_000]))
    curate_day(raw_store.paths, "events", DAY)

    (row,) = read_jsonl(export_day(raw_store.paths, "events", DAY).path)

    assert row["payload"] == text
    assert row["agent_id"] == text[:50_000]


def test_a_missing_curated_day_is_an_error_and_not_an_empty_export(raw_store: RawStore) -> None:
    raw_store.store("events", raw_store.record("events"))

    with pytest.raises(SourceMissing, match=rf"materialize curated/events for {DAY}"):
        export_day(raw_store.paths, "events", DAY)
    assert not raw_store.paths.shard("events", DAY).exists()


def test_a_curated_file_without_its_manifest_counts_as_missing(raw_store: RawStore) -> None:
    built = curate_day(raw_store.paths, "events", DAY)
    manifest_of(built.path).unlink()

    with pytest.raises(SourceMissing):
        export_day(raw_store.paths, "events", DAY)


def test_an_unknown_kind_is_refused(raw_store: RawStore) -> None:
    with pytest.raises(UnknownKind):
        export_day(raw_store.paths, "spans", DAY)


def test_an_unchanged_shard_is_reused(raw_store: RawStore, monkeypatch: pytest.MonkeyPatch) -> None:
    raw_store.store("events", raw_store.record("events"))
    curate_day(raw_store.paths, "events", DAY)
    first = export_day(raw_store.paths, "events", DAY)
    before = first.path.stat().st_mtime_ns

    assert export_day(raw_store.paths, "events", DAY).reused
    assert first.path.stat().st_mtime_ns == before
    content = first.path.read_bytes()
    first.path.write_bytes(b"")
    assert not export_day(raw_store.paths, "events", DAY).reused
    assert first.path.read_bytes() == content
    monkeypatch.setattr("tds_dagster.export.shard.code_version", lambda: "another")
    assert not export_day(raw_store.paths, "events", DAY).reused


def test_two_builds_give_the_same_bytes_and_their_manifests_differ_in_made_at_alone(tmp_path: Path) -> None:
    record = RawStore(tmp_path).record("events", payload={"a": 1})
    redactor = open_redactor(Settings(redaction_key="the same on all machines"), "secrets")
    manifests = []
    for name in ("one", "two"):
        store = RawStore(tmp_path / name)
        store.store("events", record)
        curate_day(store.paths, "events", DAY)
        shard = export_day(store.paths, "events", DAY, redactor=redactor)
        assert shard.sha256 == hashlib.sha256(shard.path.read_bytes()).hexdigest()
        manifest = json.loads(manifest_of(shard.path).read_text())
        del manifest["made_at"], manifest["checksums"]["made_at"], manifest["seal"]
        manifests.append(manifest)
    assert manifests[0] == manifests[1]


def test_a_day_that_lost_a_row_is_not_exported_and_the_old_shard_stays(raw_store: RawStore) -> None:
    raw_store.store("events", raw_store.record("events"))
    curate_day(raw_store.paths, "events", DAY)
    old = export_day(raw_store.paths, "events", DAY).path.read_bytes()
    raw_store.store("events", raw_store.record("events"))
    built = curate_day(raw_store.paths, "events", DAY)
    drop_a_row(built.path)

    with pytest.raises(Unbalanced, match="2 stored, and 1 exported"):
        export_day(raw_store.paths, "events", DAY)

    assert raw_store.paths.shard("events", DAY).read_bytes() == old
    assert manifest_of(raw_store.paths.shard("events", DAY)).exists()


def drop_a_row(parquet: Path) -> None:
    """Take a row out of a Parquet file, and make its manifest agree with it, so that only the account can tell."""
    with duckdb.connect() as connection:
        rows = f"(SELECT * FROM read_parquet('{parquet}') LIMIT 1)"
        connection.execute(f"CREATE TABLE kept AS FROM {rows}")
        connection.execute(f"COPY kept TO '{parquet}' (FORMAT parquet)")
    manifest = json.loads(manifest_of(parquet).read_text())
    manifest |= {"bytes": parquet.stat().st_size, "sha256": hashlib.sha256(parquet.read_bytes()).hexdigest()}
    del manifest["checksums"], manifest["seal"]
    manifest_of(parquet).write_bytes(seal(json.dumps(manifest).encode()))


def test_a_writer_that_counts_what_it_does_not_keep_stops_the_day(raw_store: RawStore) -> None:
    raw_store.store("events", raw_store.record("events"))
    raw_store.commit("events", [], quarantined=1)
    curate_day(raw_store.paths, "events", DAY)

    with pytest.raises(Unbalanced, match="2 stored, and 1 exported"):
        export_day(raw_store.paths, "events", DAY)


def test_a_data_folder_may_have_any_name(tmp_path: Path) -> None:
    store = RawStore(tmp_path / "it's [1] *da?ta* é")
    store.store("events", store.record("events"))
    curate_day(store.paths, "events", DAY)

    assert export_day(store.paths, "events", DAY).rows == 1


def test_a_moved_data_folder_is_still_up_to_date(tmp_path: Path) -> None:
    store = RawStore(tmp_path / "before")
    store.store("events", store.record("events"))
    curate_day(store.paths, "events", DAY)
    export_day(store.paths, "events", DAY)
    moved = DataPaths(store.paths.root.rename(tmp_path / "after"))

    assert curate_day(moved, "events", DAY).reused
    assert export_day(moved, "events", DAY).reused
    assert export_day(moved, "events", DAY).path == moved.shard("events", DAY)
