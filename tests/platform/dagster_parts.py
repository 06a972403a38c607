"""Real runs on a real instance: what tests of the platform ask Dagster to do, and what they read back from it."""

from collections.abc import Mapping
from datetime import date, timedelta

import dagster as dg

from ingest import Settings, TrainingDataStore
from ingest.pipeline.partitions import DataPaths, today
from tds_dagster.assets.daily import daily_definitions
from tds_dagster.assets.raw import raw_specs
from tds_dagster.automation.sensors import report_changed_days

ASSETS: list[dg.AssetsDefinition | dg.AssetSpec] = [*raw_specs(), *daily_definitions()]
DATA_VERSION = "dagster/data_version"


def days_from(start: str, count: int) -> list[str]:
    return [(date.fromisoformat(start) + timedelta(days=offset)).isoformat() for offset in range(count)]


def last_days(count: int) -> list[str]:
    """The days up to yesterday."""
    return days_from((today() - timedelta(days=count)).isoformat(), count)


def store_day(store: TrainingDataStore, day: str, *, rows: int = 3, kind: str = "events", **fields: object) -> None:
    """Store records through the client and wait until they are in the day's CSV."""
    required = {"events": {"event_type": "step"}, "tasks": {"task_id": "t-1"}}[kind]
    for row in range(rows):
        store.sync.store_record(kind, timestamp=f"{day}T10:00:{row:02d}Z", **{**required, **fields})
    store.sync.flush()


def run_days(
    instance: dg.DagsterInstance, settings: Settings, days: list[str], *assets: str, **tags: str
) -> dg.ExecuteInProcessResult:
    """One run over the days from the first to the last, as the UI and the shell ask for a range."""
    ranged = {"dagster/asset_partition_range_start": days[0], "dagster/asset_partition_range_end": days[-1]}
    return dg.materialize(
        ASSETS,
        selection=list(assets),
        instance=instance,
        resources={"settings": settings},
        tags=({"dagster/partition": days[0]} if len(days) == 1 else ranged) | tags,
        raise_on_error=False,
    )


def report_raw(instance: dg.DagsterInstance, settings: Settings, cursor: str | None = None) -> tuple[list[str], str]:
    """One tick of the sensor, its events stored as the daemon does; gives `<kind> <day>` of each, and the cursor."""
    context = dg.build_sensor_context(instance=instance, cursor=cursor, resources={"settings": settings})
    result = report_changed_days(context)
    assert isinstance(result, dg.SensorResult)
    for event in result.asset_events:
        instance.report_runless_asset_event(event)
    assert result.cursor is not None
    materialized = [event for event in result.asset_events if isinstance(event, dg.AssetMaterialization)]
    assert len(result.asset_events) == 2 * len(materialized)
    return [f"{event.asset_key.path[1]} {event.partition}" for event in materialized], result.cursor


def data_versions(instance: dg.DagsterInstance, asset: str) -> Mapping[str, str]:
    """The data version of each day as it was materialized last."""
    tags = instance.event_log_storage.get_latest_tags_by_partition(
        dg.AssetKey(asset.split("/")), dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION]
    )
    return {day: values[DATA_VERSION] for day, values in tags.items()}


def metadata_of(instance: dg.DagsterInstance, asset: str, day: str) -> dict[str, object]:
    """The metadata of a day's latest materialization, as plain values."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey(asset.split("/")), asset_partitions=[day]), limit=1
    ).records
    event = records[0].asset_materialization
    assert event is not None
    return {name: value.value for name, value in event.metadata.items()}


def paths_of(settings: Settings) -> DataPaths:
    return DataPaths(settings.data_dir)
