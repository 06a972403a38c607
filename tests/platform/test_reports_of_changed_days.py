"""The sensor reports each raw day whose version changed, once, however often it looks."""

import os
from pathlib import Path

import dagster as dg
import pytest

from ingest import Settings, TrainingDataStore
from ingest.pipeline.partitions import today
from tds_dagster.automation import sensors
from tds_dagster.automation.sensors import TODAY_EVERY_S, Mark, due_versions
from tests.platform.dagster_parts import data_versions, days_from, paths_of, report_raw, store_day

DAYS = days_from("2024-05-01", 4)


def test_each_changed_day_is_reported_once(
    store: TrainingDataStore, settings: Settings, instance: dg.DagsterInstance
) -> None:
    for day in DAYS:
        store_day(store, day)
    store_day(store, DAYS[0], kind="tasks")
    reported, cursor = report_raw(instance, settings)
    assert reported == [*(f"events {day}" for day in DAYS), f"tasks {DAYS[0]}"]
    assert report_raw(instance, settings, cursor)[0] == []

    store_day(store, DAYS[2])
    reported, cursor = report_raw(instance, settings, cursor)
    assert reported == [f"events {DAYS[2]}"]
    assert report_raw(instance, settings, cursor)[0] == []


def test_a_report_is_an_observation_and_a_materialization_with_the_version_that_curation_sees(
    store: TrainingDataStore, settings: Settings, instance: dg.DagsterInstance
) -> None:
    from tds_dagster.curate import curate_day

    store_day(store, DAYS[0])
    report_raw(instance, settings)
    version = curate_day(paths_of(settings), "events", DAYS[0]).source_version
    assert data_versions(instance, "raw/events") == {DAYS[0]: version}
    (observed,) = instance.fetch_observations(dg.AssetKey(["raw", "events"]), limit=5).records
    assert observed.asset_observation is not None
    assert observed.asset_observation.data_version == version


def test_a_tick_whose_reports_were_not_stored_is_made_up_for(
    store: TrainingDataStore, settings: Settings, instance: dg.DagsterInstance
) -> None:
    store_day(store, DAYS[0])
    store_day(store, DAYS[1])
    context = dg.build_sensor_context(instance=instance, resources={"settings": settings})
    result = sensors.report_changed_days(context)
    assert isinstance(result, dg.SensorResult)
    for event in result.asset_events[:2]:  # then the daemon is killed: the cursor is the old one
        instance.report_runless_asset_event(event)
    assert report_raw(instance, settings)[0] == [f"events {DAYS[1]}"]


def test_an_edit_by_somebody_else_is_reported(
    store: TrainingDataStore, settings: Settings, instance: dg.DagsterInstance
) -> None:
    store_day(store, DAYS[0], agent_id="agent-1")
    _, cursor = report_raw(instance, settings)
    overwrite(paths_of(settings).training("events", DAYS[0]), b"agent-1", b"agent-2")
    assert report_raw(instance, settings, cursor)[0] == [f"events {DAYS[0]}"]


def overwrite(path: Path, old: bytes, new: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(old, new))
    stamp = path.stat().st_mtime_ns + 1_000_000
    os.utime(path, ns=(stamp, stamp))


def test_a_damaged_day_is_told_once_in_the_log_and_the_other_days_are_reported(
    store: TrainingDataStore, settings: Settings, instance: dg.DagsterInstance, capsys: pytest.CaptureFixture[str]
) -> None:
    for day in DAYS[:3]:
        store_day(store, day)
    os.truncate(paths_of(settings).training("events", DAYS[1]), 50)
    damaged = str(paths_of(settings).training("events", DAYS[1]))

    reported, cursor = report_raw(instance, settings)
    assert reported == [f"events {DAYS[0]}", f"events {DAYS[2]}"]
    assert capsys.readouterr().err.count(damaged) == 1
    store_day(store, DAYS[3])
    assert report_raw(instance, settings, cursor)[0] == [f"events {DAYS[3]}"]
    assert damaged not in capsys.readouterr().err


def test_the_present_day_is_reported_at_once_and_then_every_quarter_of_an_hour() -> None:
    present = today().isoformat()
    versions = {DAYS[0]: "a", present: "b"}
    assert due_versions(versions, Mark(), present=present, now_s=1e9) == versions
    just_now = Mark(today_at=1e9)
    assert due_versions(versions, just_now, present=present, now_s=1e9 + TODAY_EVERY_S - 1) == {DAYS[0]: "a"}
    assert due_versions(versions, just_now, present=present, now_s=1e9 + TODAY_EVERY_S) == versions


def test_a_change_of_the_present_day_waits_and_that_of_another_day_does_not(
    store: TrainingDataStore, settings: Settings, instance: dg.DagsterInstance
) -> None:
    present = today().isoformat()
    store.sync.store_agent_event("step")
    store.sync.flush()
    reported, cursor = report_raw(instance, settings)
    assert reported == [f"events {present}"]
    store.sync.store_agent_event("step")
    store_day(store, DAYS[0])
    reported, cursor = report_raw(instance, settings, cursor)
    assert reported == [f"events {DAYS[0]}"]
    assert report_raw(instance, settings, cursor)[0] == []


def test_a_day_that_is_no_partition_is_not_reported(
    store: TrainingDataStore, settings: Settings, instance: dg.DagsterInstance
) -> None:
    day = days_from(today().isoformat(), 2)[1]  # an event time may lie up to a day ahead
    store.sync.store_agent_event("step", timestamp=f"{day}T00:00:00Z")
    store.sync.flush()
    assert paths_of(settings).training("events", day).exists()
    assert report_raw(instance, settings)[0] == []


def test_a_tick_takes_so_many_days_and_the_next_one_the_rest(
    store: TrainingDataStore, settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "DAYS_A_TICK", 3)
    for day in DAYS:
        store_day(store, day, rows=1)
    first, cursor = report_raw(instance, settings)
    second, cursor = report_raw(instance, settings, cursor)
    assert (first, second) == ([f"events {day}" for day in DAYS[:3]], [f"events {DAYS[3]}"])
    assert report_raw(instance, settings, cursor)[0] == []


def test_without_a_data_folder_there_is_nothing_to_report_and_none_is_made(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    assert report_raw(instance, settings)[0] == []
    assert not settings.data_dir.exists()
