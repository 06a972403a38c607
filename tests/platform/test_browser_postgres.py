"""Dagster with its storage in PostgreSQL: the same range by hand in the browser, and nothing forgotten by a restart."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import psycopg
import pytest

from ingest import Settings, TrainingDataStore
from tds_dagster.cli.up import prepare_home
from tests.parts import PostgresServer, wait_until
from tests.platform.browser_parts import export_range, exported_elsewhere
from tests.platform.dagster_parts import last_days, paths_of, report_raw, run_days, store_day
from tests.platform.tree_parts import Platform

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

DAYS = last_days(10)[:7]
REMEMBERED = """{
  runsOrError { ... on Runs { results { runId status } } }
  assetOrError(assetKey: {path: ["exports", "events"]}) { ... on Asset { assetMaterializations { runId partition } } }
  partitionBackfillsOrError { ... on PartitionBackfills { results { id status } } }
}"""


@pytest.fixture(scope="module")  # made before the browser, whose event loop Dagster does not run in
def on_postgres(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(b"CREATE DATABASE dagster_of_browser")
    url = postgres_server.url.replace("/postgres?", "/dagster_of_browser?")
    settings = Settings(data_dir=tmp_path_factory.mktemp("on_postgres") / "data", dagster_postgres_url=url)
    store = TrainingDataStore(settings)
    for day in last_days(10):
        store_day(store, day, rows=2)
    store.sync.close()
    with dg.DagsterInstance.from_config(str(prepare_home(settings))) as instance:
        report_raw(instance, settings)
        assert run_days(instance, settings, last_days(10), "curated/events", "exports/events").success
    platform = Platform(settings)
    platform.start()
    yield platform
    platform.stop()


def remembered(platform: Platform) -> Any:
    return platform.query(REMEMBERED)


def backfills(found: Any) -> list[str]:
    return [each["status"] for each in found["partitionBackfillsOrError"]["results"]]


def test_a_range_is_materialized_in_the_ui_and_survives_a_restart_of_webserver_and_daemon(
    on_postgres: Platform, page: "Page", tmp_path: Path
) -> None:
    range_file = export_range(on_postgres, page, tmp_path, DAYS)
    assert range_file == paths_of(on_postgres.settings).range_export("events", DAYS[0], DAYS[-1])
    assert range_file.read_bytes() == exported_elsewhere(on_postgres, tmp_path, DAYS[0], DAYS[-1])
    assert not list((on_postgres.settings.data_dir / "dagster").glob("**/*.db"))

    wait_until(lambda: backfills(remembered(on_postgres)) == ["COMPLETED_SUCCESS"], "the backfill has ended", 90)
    before = remembered(on_postgres)
    assert {each["partition"] for each in before["assetOrError"]["assetMaterializations"]} >= set(DAYS)
    on_postgres.stop()
    on_postgres.start()
    after = remembered(on_postgres)
    runs = {run["runId"] for run in after["runsOrError"]["results"] if run["status"] == "SUCCESS"}
    assert {run["runId"] for run in before["runsOrError"]["results"] if run["status"] == "SUCCESS"} <= runs
    reports = after["assetOrError"]["assetMaterializations"]
    assert all(each in reports for each in before["assetOrError"]["assetMaterializations"])
    assert before["partitionBackfillsOrError"] == after["partitionBackfillsOrError"]
    page.goto(f"{on_postgres.url}/assets/exports/events?view=events")
    page.get_by_text(DAYS[-1], exact=True).first.click()
