"""Dagster loads the definitions anywhere, and they hold what the contract names."""

import subprocess
import sys
from pathlib import Path

import dagster as dg

from ingest import Settings, TrainingDataStore
from ingest.records import KINDS
from tds_dagster.cli.up import prepare_home
from tds_dagster.datasets.recipe import MODELS
from tds_dagster.definitions import defs
from tests.parts import PROJECT, environment
from tests.platform.dagster_parts import days_from, paths_of, store_day


def test_they_are_valid_with_no_server_up_and_no_data_folder(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "absent", redis_url="redis://127.0.0.1:1/0")
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-m", "tds_dagster.definitions"],
        env=environment(settings) | {"DAGSTER_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "All code locations passed validation" in done.stdout
    assert "Warning" not in done.stderr.replace("SupersessionWarning", "")  # of the command itself
    assert not (tmp_path / "absent").exists()


def test_a_range_from_the_shell_needs_no_daemon_and_no_server(store: TrainingDataStore, settings: Settings) -> None:
    days = days_from("2024-05-01", 3)
    for day in days:
        store_day(store, day)
    command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "tds_dagster.definitions"]
    done = subprocess.run(
        [*command, "--select", "exports/events", "--partition-range", f"{days[0]}...{days[-1]}"],
        env=environment(settings) | {"DAGSTER_HOME": str(prepare_home(settings))},
        cwd=settings.data_dir,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    target = paths_of(settings).range_export("events", days[0], days[-1])
    assert f"range file: {target} (9 rows" in done.stderr
    assert target.read_bytes() == paths_of(settings).latest_export("events").read_bytes()
    assert target.read_bytes().count(b"\n") == 9


def test_every_kind_goes_from_raw_to_curated_to_exports_on_the_same_days() -> None:
    graph = defs.resolve_asset_graph()
    assert len(graph.get_all_asset_keys()) == 3 * len(KINDS) + 2 * len(MODELS)
    for kind in KINDS:
        raw, curated, exports = (graph.get(dg.AssetKey([group, kind])) for group in ("raw", "curated", "exports"))
        assert [node.group_name for node in (raw, curated, exports)] == ["raw", "curated", "exports"]
        assert (curated.parent_keys, exports.parent_keys) == ({raw.key}, {curated.key})
        assert raw.partitions_def == curated.partitions_def == exports.partitions_def
        assert raw.is_external
        for node in (curated, exports):
            assert node.code_version
            assert node.automation_condition is not None
            assert node.backfill_policy == dg.BackfillPolicy.single_run()
            schema = node.metadata["dagster/column_schema"]
            assert [column.name for column in schema.columns] == [column.name for column in KINDS[kind].columns]
        for node in (raw, curated, exports):
            assert node.owners
            assert node.description
            assert node.kinds
        assert dg.AssetCheckKey(exports.key, "every_stored_record_is_accounted_for") in exports.check_keys


def test_what_runs_by_itself_runs_without_being_switched_on() -> None:
    repository = defs.get_repository_def()
    sensors = {sensor.name: sensor.default_status for sensor in repository.sensor_defs}
    named = {
        "report_changed_days",
        "rebuild_changed_days",
        "alert_failed_runs",
        "alert_failed_checks",
        "delete_old_runs",
    }
    named |= {f"retrain_{model}" for model in MODELS}
    assert sensors == dict.fromkeys(named, dg.DefaultSensorStatus.RUNNING)
    assert [schedule.name for schedule in repository.schedule_defs] == ["export_yesterday"]


def test_columns_can_be_followed_from_a_dataset_to_the_raw_files() -> None:
    graph = defs.resolve_asset_graph()
    place, column = dg.AssetKey(["datasets", "event_prediction"]), "severity"
    for expected in ("exports", "curated", "raw"):
        lineage = graph.get(place).metadata["dagster/column_lineage"]
        place, column = next((dep.asset_key, dep.column_name) for dep in lineage.deps_by_column[column])
        assert (place.path, column) == ([expected, "events"], "severity")


def test_each_asset_names_the_page_that_explains_it() -> None:
    for node in defs.resolve_asset_graph().asset_nodes:
        page = str(node.description).rpartition("See ")[2].rstrip(".")
        assert (PROJECT / page).is_file(), f"{node.key}: {page}"
