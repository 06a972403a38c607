"""Days that went wrong once: odd folders, large documents, files that somebody changed."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest import TrainingDataStore
from ingest.errors import DamagedFile, InvalidRange, MissingExtra
from ingest.pipeline.partitions import DataPaths, today
from tds_dagster.curate import curate_day
from tds_dagster.export import export_range
from tests.stages.conftest import DAY, RawStore

ReadJsonl = Callable[[Path], list[dict[str, object]]]


def test_a_folder_named_like_a_column_does_not_stand_for_it(tmp_path: Path, read_jsonl: ReadJsonl) -> None:
    store = RawStore(tmp_path / "agent_id=EVIL" / "data")
    store.store("events", store.record("events", agent_id="good"))
    export = export_range(store.paths, "events", DAY, DAY)
    assert [row["agent_id"] for row in read_jsonl(export.path)] == ["good"]


def test_a_day_of_large_documents_is_built(raw_store: RawStore) -> None:
    big = {"text": "x" * 300_000}
    rows = [raw_store.row("events", raw_store.record("events", payload=big)) for _ in range(20)]
    raw_store.commit("events", rows * 105 + [raw_store.row("events", raw_store.record("events"))])
    built = curate_day(raw_store.paths, "events", DAY)
    assert (built.rows, built.duplicates, built.source_rows) == (21, 20 * 104, 2101)


@pytest.mark.parametrize("filler", [10, 100_000])
def test_a_long_document_that_is_no_json_goes_to_quarantine_like_a_short_one(raw_store: RawStore, filler: int) -> None:
    good = raw_store.row("events", raw_store.record("events", payload={"a": "x" * filler}))
    raw_store.commit("events", [good, good.replace(b'{""a"":', b'{""a"",', 1)])
    built = curate_day(raw_store.paths, "events", DAY)
    assert (built.rows, built.quarantined) == (1, 1)
    line = json.loads(raw_store.paths.quarantine("events", DAY).read_text())
    assert line["reason"] == "payload is not JSON"


def test_a_shard_that_somebody_changed_is_refused_and_then_built_again(raw_store: RawStore) -> None:
    raw_store.store("events", raw_store.record("events", agent_id="good"))
    raw_store.store("events", raw_store.record("events", timestamp="2024-05-16T00:00:00.000000Z"), day="2024-05-16")
    before = export_range(raw_store.paths, "events", DAY, DAY)
    shard = raw_store.paths.shard("events", DAY)
    shard.write_bytes(shard.read_bytes().replace(b"good", b"evil"))
    with pytest.raises(DamagedFile, match="somebody changed it"):
        export_range(raw_store.paths, "events", DAY, "2024-05-16")
    after = export_range(raw_store.paths, "events", DAY, "2024-05-16")
    assert b"evil" not in after.path.read_bytes()
    assert after.path.read_bytes().startswith(before.path.read_bytes())


def test_a_first_line_that_is_a_record_is_told_of_by_number_and_not_by_its_text(raw_store: RawStore) -> None:
    raw_store.store("events", raw_store.record("events", agent_id="secret person"))
    path = raw_store.paths.training("events", DAY)
    header, row = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(row + header)
    stamp = path.stat().st_mtime_ns + 1_000_000
    os.utime(path, ns=(stamp, stamp))
    with pytest.raises(DamagedFile, match="unknown names in") as caught:
        curate_day(raw_store.paths, "events", DAY)
    assert "secret" not in str(caught.value)


def test_a_file_that_cannot_be_replaced_fails_its_day_and_no_other(raw_store: RawStore) -> None:
    for day in (DAY, "2024-05-16"):
        raw_store.store("events", raw_store.record("events", timestamp=f"{day}T00:00:00.000000Z"), day=day)
    (raw_store.paths.curated("events", DAY) / "in the way").mkdir(parents=True)
    export = export_range(raw_store.paths, "events", DAY, "2024-05-16", allow_missing=True)
    assert list(export.failed) == [DAY]
    assert export.rows == 1


def test_copies_of_flawed_days_do_not_pile_up_while_a_range_is_built(raw_store: RawStore) -> None:
    from tds_dagster.curate.engine import open_engine
    from tds_dagster.curate.raw import open_raw

    days = [f"2024-05-{day}" for day in range(10, 15)]
    for day in days:
        good = raw_store.row("events", raw_store.record("events", timestamp=f"{day}T00:00:00.000000Z"))
        raw_store.commit("events", [good, b"too,few\n"], day=day)
    with open_engine(raw_store.paths) as engine, open_raw(raw_store.paths, "events") as raw_days:
        for day in days:
            assert curate_day(raw_store.paths, "events", day, raw_days=raw_days, engine=engine).quarantined == 1
            assert list(engine.folder.glob("*.csv")) == []


def test_export_for_training_gives_the_path_of_the_old_store_or_the_one_asked_for(
    store: TrainingDataStore, tmp_path: Path
) -> None:
    store.sync.store_agent_event("x", timestamp="2024-05-15T00:00:00Z")
    latest = store.export_for_training("events", start_date=DAY, end_date=DAY)
    assert latest == DataPaths(store.settings.data_dir).latest_export("events")
    asked = store.export_for_training("events", output_path=tmp_path / "mine.jsonl", start_date=DAY, end_date=DAY)
    assert asked == tmp_path / "mine.jsonl"
    assert asked.read_bytes() == latest.read_bytes()


def test_where_data_begins_today_the_default_range_is_today(raw_store: RawStore) -> None:
    present = today().isoformat()
    raw_store.store("events", raw_store.record("events", timestamp=f"{present}T00:00:00.000000Z"), day=present)
    export = export_range(raw_store.paths, "events")
    assert (export.start, export.end, export.rows) == (present, present, 1)


def test_an_end_in_the_future_is_refused_and_nothing_is_built(raw_store: RawStore) -> None:
    raw_store.store("events", raw_store.record("events"))
    with pytest.raises(InvalidRange, match="end=2199-01-01: expected tomorrow"):
        export_range(raw_store.paths, "events", DAY, "2199-01-01")
    assert not (raw_store.paths.root / "exports").exists()


def test_what_needs_the_platform_extra_says_so_where_it_is_not_installed(
    store: TrainingDataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.sync.store_agent_event("x")
    for package in ("duckdb", "pandas", "pyarrow"):
        monkeypatch.setitem(sys.modules, package, None)
    for module in [name for name in sys.modules if name.startswith(("tds_dagster", "ingest.reading", "pyarrow."))]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(MissingExtra, match=r"training-data-store\[platform\]"):
        store.load("events")
