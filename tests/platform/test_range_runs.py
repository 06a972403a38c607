"""A run over days reports each day by itself, and builds only what changed."""

import os

import dagster as dg

from ingest import Settings, TrainingDataStore
from tds_dagster.automation.checks import CHECK, DAY_CHECKS, LEAK
from tests.platform.dagster_parts import (
    ASSETS,
    data_versions,
    days_from,
    metadata_of,
    paths_of,
    report_raw,
    run_days,
    store_day,
)

DAYS = days_from("2024-05-01", 30)


def test_after_one_changed_day_of_thirty_one_has_a_new_data_version_and_29_keep_theirs(
    store: TrainingDataStore, settings: Settings, instance: dg.DagsterInstance
) -> None:
    for day in DAYS:
        store_day(store, day, rows=2)
    assert run_days(instance, settings, DAYS, "curated/events", "exports/events").success
    before = {asset: data_versions(instance, asset) for asset in ("curated/events", "exports/events")}
    shards = [paths_of(settings).shard("events", day) for day in DAYS]
    stamps = {path: path.stat().st_mtime_ns for path in shards}

    store_day(store, DAYS[10], rows=1)
    second = run_days(instance, settings, DAYS, "curated/events", "exports/events")

    assert second.success
    for asset, versions in before.items():
        assert sorted(versions) == DAYS
        assert len(set(versions.values())) == 30
        after = data_versions(instance, asset)
        assert [day for day in DAYS if after[day] != versions[day]] == [DAYS[10]]
        logged = [
            event
            for event in second.asset_materializations_for_node("daily_events")
            if event.asset_key == dg.AssetKey(asset.split("/"))
        ]
        assert sorted(str(event.partition) for event in logged) == DAYS
    assert [path for path in shards if path.stat().st_mtime_ns != stamps[path]] == [shards[10]]


def test_a_range_run_writes_the_range_file_and_every_exported_day_says_where_it_is(
    store: TrainingDataStore, settings: Settings, instance: dg.DagsterInstance
) -> None:
    days = DAYS[:3]
    for day in days:
        store_day(store, day)
    assert run_days(instance, settings, days, "exports/events").success
    paths = paths_of(settings)
    target = paths.range_export("events", days[0], days[-1])
    assert target.read_bytes() == b"".join(paths.shard("events", day).read_bytes() for day in days)
    assert paths.latest_export("events").read_bytes() == target.read_bytes()
    for day in days:
        metadata = metadata_of(instance, "exports/events", day)
        assert metadata["range_path"] == str(target)
        assert metadata["range_rows"] == 9
        assert metadata["range_bytes"] == target.stat().st_size
        assert metadata["dagster/row_count"] == 3
        assert metadata["bytes"] == paths.shard("events", day).stat().st_size
        assert metadata["path"] == str(paths.shard("events", day))
        assert (metadata["quarantined"], metadata["duplicates"]) == (0, 0)
    assert "rows_a_day" in metadata_of(instance, "exports/events", days[-1])


def test_each_day_names_the_version_and_the_event_of_its_source(
    store: TrainingDataStore, settings: Settings, instance: dg.DagsterInstance
) -> None:
    store_day(store, DAYS[0])
    report_raw(instance, settings)
    assert run_days(instance, settings, DAYS[:1], "exports/events").success
    for source, asset in (("raw", "curated"), ("curated", "exports")):
        key = dg.AssetKey([asset, "events"])
        record = instance.fetch_materializations(key, limit=1).records[0]
        tags = record.event_log_entry.asset_materialization.tags or {}  # type: ignore[union-attr]  # it is one
        assert (
            tags[f"dagster/input_data_version/{source}/events"] == data_versions(instance, f"{source}/events")[DAYS[0]]
        )
        fetch = instance.fetch_observations if source == "raw" else instance.fetch_materializations
        pointer = fetch(dg.AssetKey([source, "events"]), limit=1).records[0].storage_id
        assert tags[f"dagster/input_event_pointer/{source}/events"] == str(pointer)
        assert tags["dagster/code_version"]


def test_a_damaged_day_fails_the_run_at_its_end_by_name_and_the_other_days_are_built(
    store: TrainingDataStore, settings: Settings, instance: dg.DagsterInstance
) -> None:
    days, paths = DAYS[:5], paths_of(settings)
    for day in days:
        store_day(store, day)
    assert run_days(instance, settings, days, "exports/events").success
    target = paths.range_export("events", days[0], days[-1])
    exported = target.read_bytes()
    for day in days:
        store_day(store, day, rows=1)
    os.truncate(paths.training("events", days[2]), 100)

    result = run_days(instance, settings, days, "exports/events")

    assert not result.success
    failure = result.failure_data_for_node("daily_events")
    assert failure is not None
    assert failure.user_failure_data is not None
    assert days[2] in str(failure.user_failure_data.description)
    assert str(failure.user_failure_data.metadata["days_not_built"].value).count(str(paths.root)) == 1
    built = {str(event.partition) for event in result.asset_materializations_for_node("daily_events")}
    assert built == set(days) - {days[2]}
    assert [len(paths.shard("events", day).read_bytes().splitlines()) for day in days] == [4, 4, 3, 4, 4]
    assert target.read_bytes() == exported
    assert not [event for event in result.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"]
    of_exports = [name for name, check in DAY_CHECKS.items() if check.group == "exports"]
    told = sorted(verdict.check_name for verdict in result.get_asset_check_evaluations())
    assert told == sorted([CHECK, *of_exports])


def test_the_check_names_the_days_that_do_not_add_up_and_passes_when_they_do(
    store: TrainingDataStore, settings: Settings, instance: dg.DagsterInstance
) -> None:
    for day in DAYS[:2]:
        store_day(store, day)
    run = run_days(instance, settings, DAYS[:2], "exports/events")
    (verdict,) = (each for each in run.get_asset_check_evaluations() if each.check_name == CHECK)
    assert verdict.passed
    assert verdict.metadata["exported"].value == 6

    shard = paths_of(settings).shard("events", DAYS[1])
    shard.write_bytes(b"".join(shard.read_bytes().splitlines(keepends=True)[:-1]))

    (verdict,) = check_alone(instance, settings).get_asset_check_evaluations()
    assert not verdict.passed
    assert verdict.metadata["unbalanced_days"].value == [DAYS[1]]
    assert DAYS[1] in str(verdict.description)


def test_a_leak_that_the_morning_found_is_told_by_runs_of_other_days_until_its_day_is_built(
    store: TrainingDataStore, settings: Settings, instance: dg.DagsterInstance
) -> None:
    for day in DAYS[:2]:
        store_day(store, day)
    assert run_days(instance, settings, DAYS[:2], "exports/events").success
    with paths_of(settings).shard("events", DAYS[0]).open("a") as shard:
        shard.write('{"payload": "the key is ghp_16C7e42F292c6912E7710c838347Ae178B4a"}\n')
    morning = check_alone(instance, settings, LEAK).get_asset_check_evaluations()
    assert [(each.passed, each.metadata["days"].value) for each in morning] == [(False, [DAYS[0]])]

    def told_by_a_run_of(day: str) -> bool:
        run = run_days(instance, settings, [day], "exports/events")
        (verdict,) = (each for each in run.get_asset_check_evaluations() if each.check_name == LEAK)
        return verdict.passed

    assert [told_by_a_run_of(day) for day in (DAYS[1], DAYS[1])] == [False, False]
    store_day(store, DAYS[0], rows=1)  # so that it is built again
    assert [told_by_a_run_of(day) for day in (DAYS[0], DAYS[1])] == [True, True]


def check_alone(instance: dg.DagsterInstance, settings: Settings, name: str = CHECK) -> dg.ExecuteInProcessResult:
    """A check without its asset, as automation asks for it each morning."""
    key = dg.AssetKey(["exports", "events"])
    return dg.materialize(
        ASSETS,
        selection=dg.AssetSelection.checks(dg.AssetCheckKey(key, name)),
        instance=instance,
        resources={"settings": settings},
    )


def test_a_day_without_records_is_an_artifact_of_no_rows_and_a_range_of_them_a_warning(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    assert run_days(instance, settings, DAYS[:2], "exports/tasks").success
    assert metadata_of(instance, "exports/tasks", DAYS[0])["dagster/row_count"] == 0
    target = paths_of(settings).range_export("tasks", DAYS[0], DAYS[1])
    assert target.read_bytes() == b""
    records = instance.all_logs(instance.get_runs()[0].run_id)
    assert any("the range file is empty" in entry.user_message for entry in records)


def test_only_what_is_asked_for_is_built(
    store: TrainingDataStore, settings: Settings, instance: dg.DagsterInstance
) -> None:
    for day in DAYS[:2]:
        store_day(store, day)
    assert run_days(instance, settings, DAYS[:2], "curated/events").success
    assert sorted(data_versions(instance, "curated/events")) == DAYS[:2]
    assert data_versions(instance, "exports/events") == {}
    assert not (settings.data_dir / "exports").exists()


def test_days_that_automation_asks_for_are_no_range_that_anybody_wants(
    store: TrainingDataStore, settings: Settings, instance: dg.DagsterInstance
) -> None:
    for day in DAYS[:2]:
        store_day(store, day)
    run = run_days(instance, settings, DAYS[:2], "exports/events", **{"dagster/from_automation_condition": "true"})
    assert run.success
    assert sorted(data_versions(instance, "exports/events")) == DAYS[:2]
    assert not paths_of(settings).latest_export("events").exists()
    assert not paths_of(settings).range_export("events", DAYS[0], DAYS[1]).exists()


def test_no_content_of_a_record_reaches_the_event_log(
    store: TrainingDataStore, settings: Settings, instance: dg.DagsterInstance
) -> None:
    secret = "maria.lopez@example.com"
    for day in DAYS[:2]:
        store_day(store, day, payload={"mail": secret}, agent_id=secret)
    report_raw(instance, settings)
    run = run_days(instance, settings, DAYS[:2], "curated/events", "exports/events")
    assert run.success
    assert secret.encode() in paths_of(settings).shard("events", DAYS[0]).read_bytes()
    entries = [dg.serialize_value(entry) for entry in instance.all_logs(run.run_id)]
    assert len(entries) > 4
    assert not [entry for entry in entries if secret in entry]
