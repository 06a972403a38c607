"""Reading back: load, scan and subscribe give what was written, typed, and nothing that is not committed."""

import asyncio
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pytest

from ingest import TrainingDataStore
from ingest.errors import DamagedFile, InvalidRange
from ingest.pipeline.partitions import DataPaths
from tests.parts import listening

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def filled(store: TrainingDataStore) -> TrainingDataStore:
    for day in range(1, 5):
        store.sync.store_agent_task(
            f"task {day}",
            agent_id="" if day % 2 else None,
            error="a\nb\\n" if day == 1 else None,
            input_data={"day": day, "list": [1, None, "x"]},
            retry_count=day,
            execution_time_ms=day + 0.5,
            timestamp=datetime(2026, 1, day, 12, 0, 0, 123456, tzinfo=UTC),
        )
    store.sync.flush()
    return store


def test_load_gives_typed_columns_with_null_and_the_empty_string_apart(filled: TrainingDataStore) -> None:
    frame = filled.load("tasks")
    assert list(frame["task_id"]) == [f"task {day}" for day in range(1, 5)]
    assert list(frame["retry_count"]) == [1, 2, 3, 4]
    assert frame["execution_time_ms"].sum() == 12
    assert frame["timestamp"][0] == pd.Timestamp("2026-01-01T12:00:00.123456", tz="UTC")
    assert [None if pd.isna(agent) else agent for agent in frame["agent_id"]] == ["", None, "", None]
    assert frame["error"][0] == "a\nb\\n"
    assert frame["input_data"][0] == '{"day":1,"list":[1,null,"x"]}'
    assert isinstance(frame["retry_count"].dtype, pd.ArrowDtype)


def test_load_takes_a_range_of_days_open_on_either_side(filled: TrainingDataStore) -> None:
    assert len(filled.load("tasks", start_date="2026-01-02", end_date="2026-01-03")) == 2
    assert len(filled.load("tasks", start_date="2026-01-02")) == 3
    assert len(filled.load("tasks", end_date=datetime(2026, 1, 1, tzinfo=UTC).date())) == 1
    assert len(filled.load("tasks", start_date="2027-01-01", end_date="2027-01-03")) == 0


def test_a_kind_without_records_has_its_columns_all_the_same(store: TrainingDataStore) -> None:
    assert list(store.load("feedback").columns)[:4] == ["target_kind", "target_id", "name", "value"]
    assert store.scan("feedback").count_rows() == 0


def test_swapped_dates_and_words_are_refused(filled: TrainingDataStore) -> None:
    with pytest.raises(InvalidRange, match="swap"):
        filled.load("tasks", start_date="2026-01-03", end_date="2026-01-02")
    with pytest.raises(InvalidRange, match="start='yesterday'"):
        filled.load("tasks", start_date="yesterday")


def test_scan_gives_a_dataset_that_filters(filled: TrainingDataStore) -> None:
    import pyarrow.dataset as pads

    table = filled.scan("tasks").to_table(columns=["task_id"], filter=pads.field("retry_count") > 2)
    assert table == pa.table({"task_id": ["task 3", "task 4"]})


def test_rows_that_are_not_committed_are_not_seen(filled: TrainingDataStore) -> None:
    with DataPaths(filled.settings.data_dir).training("tasks", "2026-01-02").open("a") as file:
        file.write('"half a row')
    assert len(filled.load("tasks")) == 4


def test_a_file_shorter_than_committed_is_an_error_and_not_fewer_rows(filled: TrainingDataStore) -> None:
    path: Path = DataPaths(filled.settings.data_dir).training("tasks", "2026-01-02")
    os.truncate(path, path.stat().st_size - 10)
    with pytest.raises(DamagedFile, match="2026-01-02"):
        filled.load("tasks")


def test_without_redis_subscribers_follow_what_is_written(store: TrainingDataStore) -> None:
    async def listen() -> tuple[list[object], list[object]]:
        await store.store_agent_event("old")
        await store.flush()
        stream = await listening(store)
        ids = [await store.store_agent_event(f"event {n}", payload={"text": "a\nb"}) for n in range(100)]
        live = [await anext(stream) for _ in range(100)]
        await stream.aclose()
        await store.flush()
        stream = store.subscribe("events", after=ids[49])
        behind = [await anext(stream) for _ in range(50)]
        await stream.aclose()
        assert live[0]["payload"] == {"text": "a\nb"}
        return [r["event_type"] for r in live], [r["event_type"] for r in behind]

    live, behind = asyncio.run(asyncio.wait_for(listen(), 30))
    assert live == [f"event {n}" for n in range(100)]
    assert behind == [f"event {n}" for n in range(50, 100)]
