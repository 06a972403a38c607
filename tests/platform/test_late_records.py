"""A late record reopens its day, however old: automation asks for that day of both stages and for no other."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import dagster as dg

from ingest import Settings, TrainingDataStore
from ingest.pipeline.partitions import DataPaths
from tds_dagster.automation.schedules import BUILT
from tds_dagster.definitions import defs
from tests.platform.dagster_parts import days_from, report_raw, run_days, store_day

DAYS = days_from("2024-05-01", 21)
LATE = DAYS[0]


class Automation:
    """The condition, evaluated tick by tick; what it asks for is built in between, if the test says so."""

    def __init__(self, instance: dg.DagsterInstance, settings: Settings) -> None:
        self._instance, self._settings = instance, settings
        self._cursor: dg.AutomationConditionCursor | None = None

    def tick(self, moment: datetime | None = None) -> set[str]:
        """One evaluation; gives `<asset> <day>` of all that is asked for."""
        result = dg.evaluate_automation_conditions(
            defs=defs, instance=self._instance, asset_selection=BUILT, cursor=self._cursor, evaluation_time=moment
        )
        self._cursor = result.cursor
        return {
            f"{item.key.to_user_string()} {day}"
            for item in result.results
            if item.true_subset.is_partitioned  # the others are checks, which are asked for each morning
            for day in item.true_subset.expensively_compute_partition_keys()
        }

    def build(self, asked: set[str]) -> None:
        for text in sorted(asked):
            asset, day = text.split(" ")
            assert run_days(self._instance, self._settings, [day], asset).success


def test_a_late_record_of_20_days_ago_rebuilds_that_day_of_curated_and_then_of_exports_and_no_other(
    store: TrainingDataStore, settings: Settings, instance: dg.DagsterInstance
) -> None:
    for day in DAYS:
        store_day(store, day, rows=1)
    _, cursor = report_raw(instance, settings)
    assert run_days(instance, settings, DAYS, "curated/events", "exports/events").success
    automation = Automation(instance, settings)
    assert automation.tick() == set()

    store_day(store, LATE, rows=1)
    report_raw(instance, settings, cursor)

    asked = automation.tick()
    assert asked == {f"curated/events {LATE}"}
    automation.build(asked)
    asked = automation.tick()
    assert asked == {f"exports/events {LATE}"}
    automation.build(asked)
    assert automation.tick() == set()
    assert automation.tick() == set()


def test_days_that_were_reported_before_automation_first_looked_are_built(
    store: TrainingDataStore, settings: Settings, instance: dg.DagsterInstance
) -> None:
    for day in DAYS[:2]:
        store_day(store, day, rows=1)
    report_raw(instance, settings)
    asked = Automation(instance, settings).tick()
    assert asked >= {f"curated/events {day}" for day in DAYS[:2]}
    assert asked <= {f"{asset}/events {day}" for asset in ("curated", "exports") for day in DAYS[:2]}


def test_a_change_during_a_run_is_asked_for_after_it(
    store: TrainingDataStore, settings: Settings, instance: dg.DagsterInstance
) -> None:
    store_day(store, LATE, rows=1)
    _, cursor = report_raw(instance, settings)
    assert run_days(instance, settings, [LATE], "exports/events").success
    automation = Automation(instance, settings)
    assert automation.tick() == set()

    with running(instance, "curated", LATE):
        store_day(store, LATE, rows=1)
        report_raw(instance, settings, cursor)
        assert automation.tick() == set()
        assert automation.tick() == set()
    assert automation.tick() == {f"curated/events {LATE}"}


def test_a_late_record_whose_run_failed_is_asked_for_again_within_half_an_hour(
    store: TrainingDataStore, settings: Settings, instance: dg.DagsterInstance
) -> None:
    store_day(store, LATE, rows=1)
    _, cursor = report_raw(instance, settings)
    assert run_days(instance, settings, [LATE], "curated/events", "exports/events").success
    automation, now = Automation(instance, settings), datetime.now(UTC).replace(minute=1)
    assert automation.tick(now) == set()
    store_day(store, LATE, rows=1)
    report_raw(instance, settings, cursor)
    assert automation.tick(now) == {f"curated/events {LATE}"}

    raw = DataPaths(settings.data_dir).training("events", LATE)
    content = raw.read_bytes()
    raw.write_bytes(content[:-5])
    assert not run_days(instance, settings, [LATE], "curated/events").success
    raw.write_bytes(content)
    assert automation.tick(now + timedelta(minutes=10)) == set()
    asked = automation.tick(now + timedelta(minutes=32))
    assert asked == {f"curated/events {LATE}"}
    automation.build(asked)
    assert automation.tick(now + timedelta(minutes=33)) == {f"exports/events {LATE}"}
    assert automation.tick(now + timedelta(minutes=64)) == set()


@contextmanager
def running(instance: dg.DagsterInstance, group: str, day: str) -> Iterator[None]:
    """A run that builds the day and does not come to its end."""
    job = defs.resolve_implicit_global_asset_job_def()
    run = instance.create_run_for_job(
        job.get_subset(asset_selection={dg.AssetKey([group, "events"])}),
        tags={"dagster/partition": day},
        asset_selection=frozenset({dg.AssetKey([group, "events"])}),
        status=dg.DagsterRunStatus.STARTED,
    )
    yield
    instance.report_run_failed(run)
