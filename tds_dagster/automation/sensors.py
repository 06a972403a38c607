"""Turns changed day files into reports that Dagster sees, and what Dagster sees into runs.

The first sensor compares the ledger's version of each day with the one that was reported last. The second
evaluates the conditions of the assets.
"""

import hashlib
import time
from collections.abc import Mapping

import dagster as dg
import msgspec

from ingest.errors import DamagedFile
from ingest.pipeline.partitions import DataPaths, today
from ingest.records import KINDS
from ingest.settings import Settings
from tds_dagster.automation.schedules import BUILT
from tds_dagster.curate.raw import open_raw
from tds_dagster.partitions import DAILY

EVERY_S = 15  # a late record is in its export within a minute; a tick over a year of days takes less than a second
TODAY_EVERY_S = 3600  # the present day changes all the time, and each report makes two runs a kind, 150 KB of log each
DAYS_A_TICK = 500  # what the daemon can store within a tick; the next tick takes the rest
DATA_VERSION = "dagster/data_version"


class Mark(msgspec.Struct, frozen=True):
    """What the sensor remembers of one kind between ticks."""

    digest: str = ""  # of the versions when nothing was left to report
    today_at: float = 0.0  # when the present day was reported last, in seconds since 1970
    damages: str = ""  # digest of what was told of damaged files, so that it is told once and not at every tick


def due_versions(versions: Mapping[str, str], mark: Mark, *, present: str, now_s: float) -> dict[str, str]:
    """The days and versions that may be reported now: all of them, but the present day only now and then."""
    waits = now_s - mark.today_at < TODAY_EVERY_S
    return {day: version for day, version in versions.items() if not (waits and day == present)}


def changed_days(due: Mapping[str, str], reported: Mapping[str, str]) -> list[str]:
    """The days whose version is not the one that was reported last, oldest first."""
    return sorted(day for day, version in due.items() if reported.get(day) != version)


def digest_of(value: object) -> str:
    """A short text that differs when anything in the value does."""
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()[:16]


def raw_versions(paths: DataPaths, kind: str) -> tuple[dict[str, str], list[str]]:
    """The version of every raw day that has a partition, others' edits included, and what is wrong with damaged ones.

    A damaged day has no version, so that it is not reported and the other days are.
    """
    if not paths.ledger(kind).exists():
        return {}, []
    versions, damages = {}, []
    first, last = DAILY.get_first_partition_key() or "", DAILY.get_last_partition_key() or ""
    with open_raw(paths, kind) as raw_days:
        days = [day for day in raw_days.days() if first <= day <= last]
        raw_days.settle(days)
        for day in days:
            try:
                versions[day] = raw_days.settled_day(day).version
            except DamagedFile as err:
                damages.append(str(err))
    return versions, damages


def last_reported(instance: dg.DagsterInstance, kind: str) -> dict[str, str]:
    """The version of each day that `raw/<kind>` was materialized with last: the later of the two events of a report."""
    tags = instance.event_log_storage.get_latest_tags_by_partition(
        dg.AssetKey(["raw", kind]), dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION]
    )
    return {day: values[DATA_VERSION] for day, values in tags.items()}


def reports(paths: DataPaths, kind: str, day: str, version: str) -> list[dg.AssetObservation | dg.AssetMaterialization]:
    """Both events that say "this day has this version": the UI's staleness reads the first, automation the second."""
    key, tags = ["raw", kind], {DATA_VERSION: version, "dagster/data_version_is_user_provided": "true"}
    path = dg.MetadataValue.path(paths.training(kind, day).absolute())
    return [
        dg.AssetObservation(asset_key=key, partition=day, tags=tags, metadata={"path": path}),
        dg.AssetMaterialization(asset_key=key, partition=day, tags=tags, metadata={"path": path}),
    ]


@dg.sensor(
    name="report_changed_days",
    description="Reports each raw day whose version changed: at once, the present day once an hour.",
    minimum_interval_seconds=EVERY_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def report_changed_days(context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings]) -> dg.SensorResult:
    """One tick over all kinds. What was reported is read from Dagster, so a tick that is cut off is made up for."""
    paths = DataPaths(settings.data_dir)
    marks = msgspec.json.decode(context.cursor or "{}", type=dict[str, Mark])
    present, now_s, room = today().isoformat(), time.time(), DAYS_A_TICK
    events: list[dg.AssetObservation | dg.AssetMaterialization] = []
    for kind in KINDS:
        versions, damages = raw_versions(paths, kind)
        mark = marks.get(kind, Mark())
        if (damaged := digest_of(damages)) != mark.damages:
            for damage in damages:
                context.log.error(damage)
            mark = marks[kind] = msgspec.structs.replace(mark, damages=damaged)
        due = due_versions(versions, mark, present=present, now_s=now_s)
        if (digest := digest_of(due)) == mark.digest:
            continue
        changed = changed_days(due, last_reported(context.instance, kind))
        taken, room = changed[:room], room - len(changed[:room])
        for day in taken:
            events += reports(paths, kind, day, due[day])
        marks[kind] = Mark(
            digest=digest if len(taken) == len(changed) else "",
            today_at=now_s if present in taken else mark.today_at,
            damages=damaged,
        )
    return dg.SensorResult(
        asset_events=events,
        cursor=msgspec.json.encode(marks).decode(),
        skip_reason=None if events else "no raw day changed",
    )


# Stopped by default in Dagster; without it a late record would reach its export with the next request by a person.
rebuild_changed_days = dg.AutomationConditionSensorDefinition(
    name="rebuild_changed_days",
    description="Builds curated and exported days again whose source changed, and the accounting checks each morning.",
    target=BUILT | dg.AssetSelection.all_asset_checks(),
    minimum_interval_seconds=EVERY_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
