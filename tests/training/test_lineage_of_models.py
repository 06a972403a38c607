"""A model is followed to the rows that the writer stored, and what has changed on the way since is told."""

import shutil
from pathlib import Path

import pytest

from ingest.errors import ModelMissing
from ingest.pipeline.partitions import DataPaths
from tds_dagster.curate.folders import remove_finished
from tds_dagster.datasets.manifest import find_dataset
from tds_dagster.export import export_range
from tds_dagster.training.lineage import Lineage, trace
from tds_dagster.training.manifest import champion_version
from tds_dagster.training.run import train_model
from tests.stages.conftest import DAY
from tests.training.training_parts import RawStore, settings_of, store_sessions

MODEL = "task_completion"


@pytest.fixture
def trained(training_data: Path) -> DataPaths:
    paths = DataPaths(training_data)
    train_model(settings_of(training_data), find_dataset(paths, MODEL))
    return paths


def states(found: Lineage) -> dict[str, str]:
    return {day.kind: day.state for day in found.days}


def test_a_model_leads_to_its_dataset_its_days_and_their_files(trained: DataPaths) -> None:
    found = trace(trained, MODEL)
    assert (found.model, found.is_champion, found.is_tainted) == (MODEL, True, False)
    assert found.dataset_path == str(find_dataset(trained, MODEL).folder)
    assert states(found) == dict.fromkeys(("events", "tasks", "tool_executions", "workflows"), "unchanged")
    for day in found.days:
        assert day.shard.path == str(trained.shard(day.kind, DAY))
        assert day.raw.path == str(trained.training(day.kind, DAY))
        assert day.shard.version == day.sha256
        assert None not in {day.curated.version, day.raw.version}
    for text in (str(found.version), f"{MODEL}/{found.dataset}", found.dataset):
        assert [day.day for day in trace(trained, text).days] == [day.day for day in found.days]


def test_rows_that_came_since_and_a_day_that_was_exported_anew_are_told(trained: DataPaths) -> None:
    store_sessions(trained.root, range(500, 501), day="2024-05-16")
    raw = RawStore(trained.root)
    raw.store("events", raw.record("events", event_type="late", timestamp=f"{DAY}T23:00:00.000000Z"))
    found = {day.kind: (day.state, day.reason) for day in trace(trained, MODEL).days}
    assert found["events"] == ("changed", "rows came since, and are not exported yet")
    assert found["tasks"] == ("unchanged", "")
    export_range(trained, "events", DAY, DAY, settings=settings_of(trained.root))
    found = {day.kind: (day.state, day.reason) for day in trace(trained, MODEL).days}
    assert found["events"] == ("changed", "exported anew since")


def test_what_is_gone_is_told(trained: DataPaths) -> None:
    trained.shard("tasks", DAY).unlink()
    trained.training("workflows", DAY).unlink()
    found = states(trace(trained, MODEL))
    assert (found["tasks"], found["workflows"], found["events"]) == ("missing", "missing", "unchanged")
    remove_finished(find_dataset(trained, MODEL).folder)
    without = trace(trained, MODEL)
    assert (without.dataset_path, without.days) == (None, [])


def test_a_champion_that_is_gone_is_told_and_no_other_days_are_shown(trained: DataPaths) -> None:
    shutil.rmtree(trained.model(MODEL, str(champion_version(trained, MODEL))))
    with pytest.raises(ModelMissing, match="expected a model's folder"):
        trace(trained, MODEL)


def test_a_name_that_means_nothing_is_an_error(trained: DataPaths) -> None:
    with pytest.raises(ModelMissing, match="weather"):
        trace(trained, "weather")
