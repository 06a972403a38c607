"""Old runs go with all that they left, and nothing goes that sensors, conditions or the UI read."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from ingest import Settings, TrainingDataStore
from tds_dagster.assets.daily import daily_definitions
from tds_dagster.automation.retention import delete_old_runs, delete_old_runs_hourly, runs_to_delete
from tds_dagster.cli.up import prepare_home
from tests.platform.dagster_parts import data_versions, days_from, report_raw, run_days, store_day

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAYS = days_from("2024-05-15", 3)
DEFS = dg.Definitions(assets=daily_definitions(), sensors=[delete_old_runs_hourly], resources={"settings": Settings()})
GRAPH = DEFS.get_repository_def().asset_graph


@pytest.fixture
def on_disk(settings: Settings) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(prepare_home(settings))) as instance:
        yield instance


def later(days: int) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


def delete(instance: dg.DagsterInstance, days_later: int) -> tuple[list[str], int]:
    assets, checks = GRAPH.get_all_asset_keys(), GRAPH.asset_check_keys
    return delete_old_runs(instance, assets, checks, now=later(days_later), keep_days=30)


def test_a_run_goes_when_it_is_old_and_nobody_needs_it() -> None:
    ended = {name: NOW - timedelta(days=days) for name, days in [("a", 29), ("b", 31), ("c", 90), ("d", 40)]}
    assert runs_to_delete(ended, {"d"}, now=NOW, keep_days=30) == ["c", "b"]


def test_of_runs_over_the_same_days_only_the_last_one_is_kept(
    on_disk: dg.DagsterInstance, settings: Settings, store: TrainingDataStore
) -> None:
    runs = []
    store_day(store, DAYS[0], kind="tasks")
    tasks = run_days(on_disk, settings, DAYS[:1], "curated/tasks", "exports/tasks").run_id
    for _ in range(3):
        for day in DAYS:
            store_day(store, day, rows=1)
        report_raw(on_disk, settings)
        runs.append(run_days(on_disk, settings, DAYS, "curated/events", "exports/events").run_id)
    versions = data_versions(on_disk, "exports/events"), data_versions(on_disk, "exports/tasks")
    assert delete(on_disk, 29) == ([], 0)
    assert delete(on_disk, 31) == (runs[:2], 0)
    assert delete(on_disk, 400) == ([], 0)
    left = {record.dagster_run.run_id for record in on_disk.get_run_records()}
    assert left == {runs[2], tasks}
    assert (data_versions(on_disk, "exports/events"), data_versions(on_disk, "exports/tasks")) == versions
    assert len(versions[0]) == len(DAYS)
    home = Path(on_disk.root_directory)
    assert not [path for run_id in runs[:2] for path in home.rglob(f"*{run_id}*")]
    assert list(home.rglob(f"*{runs[2]}*"))
    assert report_raw(on_disk, settings)[0] == []


def test_a_day_that_was_built_alone_later_leaves_the_range_run_its_other_days(
    on_disk: dg.DagsterInstance, settings: Settings, store: TrainingDataStore
) -> None:
    for day in DAYS:
        store_day(store, day)
    ranged = run_days(on_disk, settings, DAYS, "exports/events", "curated/events").run_id
    run_days(on_disk, settings, DAYS[:1], "exports/events", "curated/events")
    assert delete(on_disk, 400) == ([], 0)
    run_days(on_disk, settings, DAYS[1:], "exports/events", "curated/events")
    assert delete(on_disk, 400) == ([ranged], 0)


def test_the_sensor_says_what_it_deleted(on_disk: dg.DagsterInstance, settings: Settings) -> None:
    context = dg.build_sensor_context(
        instance=on_disk, resources={"settings": settings}, repository_def=DEFS.get_repository_def()
    )
    result = delete_old_runs_hourly(context)
    assert isinstance(result, dg.SkipReason)
    assert result.skip_message == "0 runs older than 30 days are deleted"
