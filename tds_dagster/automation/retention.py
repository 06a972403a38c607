"""Turns old runs into free space: what they did is forgotten after TDS_KEEP_RUNS_DAYS, what the platform needs is not.

Sensors, conditions and the UI read the latest report of each day of each asset, and the last verdict of each check. A
run that made one of these stays, however old; so the log grows with the days that there are, and not with how often
each was built. Of the runs that go their events, their SQLite file and what they printed go too.
"""

import shutil
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from ingest.settings import Settings

EVERY_S = 3600
MOST_A_TICK = 200  # runs: one takes 10 ms, a tick has a minute; the next hour takes the rest
AT_ONCE = 500  # events, of those that are looked up
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_REPORTS = (dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_OBSERVATION)


def runs_to_delete(
    ended: Mapping[str, datetime], needed: Collection[str], *, now: datetime, keep_days: int
) -> list[str]:
    """The runs that may go, oldest first: ended, older than `keep_days`, and not needed. `ended` by id, when made."""
    limit = now - timedelta(days=keep_days)
    old = sorted((made, run_id) for run_id, made in ended.items() if made < limit and run_id not in needed)
    return [run_id for _, run_id in old]


def delete_old_runs(
    instance: dg.DagsterInstance,
    assets: Collection[dg.AssetKey],
    checks: Collection[dg.AssetCheckKey],
    *,
    now: datetime,
    keep_days: int,
) -> tuple[list[str], int]:
    """Delete runs that may go, `MOST_A_TICK` at most; gives those, and how many are left to go."""
    filters = dg.RunsFilter(statuses=_ENDED, created_before=now - timedelta(days=keep_days))
    records = instance.get_run_records(filters, ascending=True)
    if not records:
        return [], 0
    ended = {record.dagster_run.run_id: record.create_timestamp for record in records}
    old = runs_to_delete(ended, needed_runs(instance, assets, checks), now=now, keep_days=keep_days)
    for run_id in old[:MOST_A_TICK]:
        _delete_run(instance, run_id)
    return old[:MOST_A_TICK], len(old[MOST_A_TICK:])


def needed_runs(
    instance: dg.DagsterInstance, assets: Collection[dg.AssetKey], checks: Collection[dg.AssetCheckKey]
) -> set[str]:
    """The runs that made the latest report of a day or an asset, or the last verdict of a check."""
    needed = {run_id for key in assets for run_id in _reporting_runs(instance, key)}
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(list(checks))
    return needed | {record.run_id for record in latest.values()}


def _reporting_runs(instance: dg.DagsterInstance, key: dg.AssetKey) -> Iterator[str]:
    last = instance.get_latest_materialization_event(key)
    if last is not None:
        yield last.run_id
    for event_type in _REPORTS:
        ids = list(instance.event_log_storage.get_latest_storage_id_by_partition(key, event_type).values())
        fetch = (
            instance.fetch_materializations
            if event_type == dg.DagsterEventType.ASSET_MATERIALIZATION
            else instance.fetch_observations
        )
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start : start + AT_ONCE]
            yield from (
                record.run_id for record in fetch(dg.AssetRecordsFilter(key, storage_ids=some), AT_ONCE).records
            )


def _delete_run(instance: dg.DagsterInstance, run_id: str) -> None:
    """Delete a run with what Dagster leaves of it: what it printed, and the file of its events (SQLite).

    What it printed goes first: where that cannot be removed the tick says so, and the next one tries again.
    """
    printed = Path(instance.storage_directory()) / run_id
    if printed.exists():
        shutil.rmtree(printed)
    instance.delete_run(run_id)
    shard = getattr(instance.event_log_storage, "path_for_shard", None)
    if shard is not None:
        for path in Path(shard(run_id)).parent.glob(f"{run_id}.db*"):
            path.unlink(missing_ok=True)


@dg.sensor(
    name="delete_old_runs",
    description="Forgets runs older than TDS_KEEP_RUNS_DAYS, but for those with the latest report of a day or the last "
    "verdict of a check (docs/operations.md).",
    minimum_interval_seconds=EVERY_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def delete_old_runs_hourly(context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings]) -> dg.SkipReason:
    """One tick; it starts no run."""
    if context.repository_def is None:
        return dg.SkipReason("Dagster gave no definitions to look at")
    graph = context.repository_def.asset_graph
    deleted, left = delete_old_runs(
        context.instance, graph.get_all_asset_keys(), graph.asset_check_keys,
        now=datetime.now(UTC), keep_days=settings.keep_runs_days,
    )  # fmt: skip
    return dg.SkipReason(
        f"{len(deleted)} runs older than {settings.keep_runs_days} days are deleted"
        f"{f', {left} wait for the next hour' if left else ''}"
    )
