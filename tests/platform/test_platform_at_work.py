"""The daemon's automation and its backfills, on `tds up` as it runs for everybody."""

from collections.abc import Iterator, Mapping

import dagster as dg
import pytest

from ingest import TrainingDataStore
from tests.parts import wait_until
from tests.platform.dagster_parts import data_versions, last_days, paths_of, store_day
from tests.platform.tree_parts import Platform

DAYS = last_days(30)
LATE = DAYS[-20]
CHANGED = DAYS[10]
TASKS = ("curated/tasks", "exports/tasks")


@pytest.fixture(scope="module")
def its_instance(platform: Platform) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(platform.home)) as instance:
        yield instance


@pytest.fixture(scope="module")
def agent(platform: Platform) -> Iterator[TrainingDataStore]:
    """An agent's store beside the platform, whose writer does the writing."""
    store = TrainingDataStore(platform.settings)
    yield store
    store.sync.close()


class Backfill:
    """A range of days asked for at once, as the UI asks for it; and the versions that its days had before."""

    def __init__(self, platform: Platform, instance: dg.DagsterInstance) -> None:
        self.before: Mapping[str, Mapping[str, str]] = {asset: data_versions(instance, asset) for asset in TASKS}
        answer = platform.query(
            "mutation($p: LaunchBackfillParams!) {launchPartitionBackfill(backfillParams: $p)"
            " {... on LaunchBackfillSuccess {backfillId} ... on PythonError {message}}}",
            p={"assetSelection": [{"path": asset.split("/")} for asset in TASKS], "partitionNames": DAYS},
        )
        self.id: str = answer["launchPartitionBackfill"]["backfillId"]


@pytest.fixture(scope="module")
def backfill(platform: Platform, agent: TrainingDataStore, its_instance: dg.DagsterInstance) -> Backfill:
    """Launched before the first test: the backfill daemon looks every 30 s, and the tests take that time together."""
    store_day(agent, CHANGED, rows=1, kind="tasks")
    return Backfill(platform, its_instance)


def test_a_late_record_of_20_days_ago_is_in_its_export_by_automation_and_no_other_day_is_touched(
    platform: Platform, agent: TrainingDataStore, backfill: Backfill, its_instance: dg.DagsterInstance
) -> None:
    paths = paths_of(platform.settings)
    files = [path("events", day) for day in DAYS for path in (paths.curated, paths.shard)]
    stamps = {path: path.stat().st_mtime_ns for path in files}
    before = {
        asset: its_instance.fetch_materializations(dg.AssetKey(list(asset)), limit=1).records[0].storage_id
        for asset in (("curated", "events"), ("exports", "events"))
    }

    def since(group: str) -> list[str]:
        key = dg.AssetKey([group, "events"])
        wanted = dg.AssetRecordsFilter(key, after_storage_id=before[group, "events"])
        return [str(record.partition_key) for record in its_instance.fetch_materializations(wanted, limit=99).records]

    store_day(agent, LATE, rows=1)
    wait_until(lambda: LATE in since("exports"), "automation exports the late record", 100)

    assert len(paths.shard("events", LATE).read_bytes().splitlines()) == 3
    assert [path for path in files if path.stat().st_mtime_ns != stamps[path]] == [
        paths.curated("events", LATE),
        paths.shard("events", LATE),
    ]
    assert set(since("curated")) == set(since("exports")) == {LATE}
    runs = its_instance.get_runs(dg.RunsFilter(tags={"dagster/from_automation_condition": "true"}))
    assert {run.tags["dagster/partition"] for run in runs if "events" in str(run.asset_selection)} == {LATE}


def test_a_backfill_of_30_days_of_which_one_changed_succeeds_and_29_keep_their_data_version(
    platform: Platform, backfill: Backfill, its_instance: dg.DagsterInstance
) -> None:
    states: list[str] = []

    def is_over() -> bool:
        answer = platform.query(
            "query($id: String!) {partitionBackfillOrError(backfillId: $id) {... on PartitionBackfill {status}}}",
            id=backfill.id,
        )
        states.append(answer["partitionBackfillOrError"]["status"])
        return states[-1] != "REQUESTED"

    wait_until(is_over, "the backfill ends", 100)
    assert states[-1] == "COMPLETED_SUCCESS"
    (run,) = its_instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill.id}))
    for asset, before in backfill.before.items():
        after = data_versions(its_instance, asset)
        assert [day for day in DAYS if after[day] != before[day]] == [CHANGED]
        logged = [
            event.dagster_event.partition
            for event in its_instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
            if event.dagster_event is not None and event.dagster_event.asset_key == dg.AssetKey(asset.split("/"))
        ]
        assert sorted(map(str, logged)) == DAYS
    # A day that a run is at work on does not count: automation may be building the changed day by itself just now.
    wait_until(lambda: materialized(platform) == [{"numMaterialized": 30, "numFailed": 0}] * 2, "30 days on screen", 60)


def materialized(platform: Platform) -> list[dict[str, int]]:
    """What the UI counts of the days of both assets."""
    answer = platform.query(
        '{assetNodes(assetKeys: [{path: ["curated", "tasks"]}, {path: ["exports", "tasks"]}])'
        " {partitionStats {numMaterialized numFailed}}}"
    )
    return [node["partitionStats"] for node in answer["assetNodes"]]
