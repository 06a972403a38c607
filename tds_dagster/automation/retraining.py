"""Turns exported days into trainings: a sensor a model, whose every tick says what it saw and why it starts or waits.

A tick asks the event log for the latest version of each day, which Dagster answers from an index, and reads events only
of the days that changed since the last training (docs/retraining.md has the figures). It keeps no cursor: what was
learned from is on disk, and what was tried already is a tag of the runs.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

import dagster as dg
import msgspec

from ingest.pipeline.partitions import DataPaths
from ingest.settings import Settings
from tds_dagster.assets.models import HOLDS
from tds_dagster.automation.checks import last_evaluation
from tds_dagster.datasets.recipe import MODELS, PRIMARY, Model
from tds_dagster.training.contract import trainer_name
from tds_dagster.training.policy import ModelPolicy, policy_of
from tds_dagster.training.retraining import (
    Day,
    Known,
    OnNewDays,
    Runs,
    Verdict,
    changed_days,
    days_for,
    decide_retraining,
    hold_back,
    read_champion,
    read_mark,
)

EVERY_S = 30
SENTENCE, KEY = "tds/retraining", "tds/retraining_key"  # tags of a run: why it was started, and on what data
DATA_VERSION = "dagster/data_version"
EVENTS_AT_ONCE = 500
# A run whose process vanished with its machine is under way for ever in the eyes of Dagster.
LONGEST_EXPORT = timedelta(hours=6)

_MATERIALIZED = dg.DagsterEventType.ASSET_MATERIALIZATION
_UNDER_WAY = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_ENDED: Mapping[dg.DagsterRunStatus, Literal["succeeded", "was canceled"]] = {
    dg.DagsterRunStatus.SUCCESS: "succeeded",
    dg.DagsterRunStatus.CANCELED: "was canceled",
}


def retraining_sensors() -> Sequence[dg.SensorDefinition]:
    """`retrain_<model>` of every model."""
    return [retraining_sensor(model) for model in MODELS]


def retraining_sensor(model: Model) -> dg.SensorDefinition:
    """One model's sensor."""

    @dg.sensor(
        name=f"retrain_{model}",
        description=f"Builds the dataset of {model} and trains it when its policy says so; each tick tells why or why "
        "not (docs/retraining.md).",
        target=dg.AssetSelection.assets(["datasets", model], ["models", model]),
        minimum_interval_seconds=EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def retrain(
        context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings]
    ) -> dg.RunRequest | dg.SkipReason:
        asked = tick(context.instance, settings, model, datetime.now(UTC))
        if isinstance(asked, dg.RunRequest):  # a log is a file of the tick's own: only of the few that start something
            context.log.info(asked.tags[SENTENCE])
        return asked

    return retrain


def tick(
    instance: dg.DagsterInstance, settings: Settings, model: Model, now: datetime
) -> dg.RunRequest | dg.SkipReason:
    """One look at a model: a run of its dataset and of it, or the reason for none."""
    policy = policy_of(settings, model)
    verdict = judge(instance, settings, model, policy, now)
    if not verdict.start:
        return dg.SkipReason(verdict.sentence)
    return dg.RunRequest(
        run_key=verdict.run_key,
        asset_selection=[dg.AssetKey(["datasets", model]), dg.AssetKey(["models", model])],
        # Its last day, so that the dataset holds what was judged, though a day may have ended until the run begins.
        run_config={"ops": {f"datasets__{model}": {"config": {**policy.recipe, "end": verdict.last_day}}}},
        tags={SENTENCE: verdict.sentence, KEY: str(verdict.run_key)},
    )


def judge(
    instance: dg.DagsterInstance, settings: Settings, model: Model, policy: ModelPolicy, now: datetime
) -> Verdict:
    """The plain decision over what files and the event log say."""
    paths, kind = DataPaths(settings.data_dir), PRIMARY[model]
    days = days_for(exported_versions(instance, kind), policy.recipe, now.date())
    mark = read_mark(paths, model)
    changed = exported_days(instance, kind, changed_days(days, mark))
    known = Known(
        model=model,
        days=days | {name: day.version for name, day in changed.items()},
        changed=changed,
        mark=mark,
        champion=read_champion(paths, model),
        on_new_days=last_check(instance, model),
        trainer=trainer_name(settings),
        now=now,
    )
    verdict = decide_retraining(policy, known)
    return hold_back(verdict, runs_of(instance, model, verdict.run_key, now)) if verdict.start else verdict


def exported_versions(instance: dg.DagsterInstance, kind: str) -> Mapping[str, str]:
    """The version of each day as it was exported last."""
    # Only Dagster's own tags are in its index: another one, such as a number of rows, cannot be asked for so.
    tags = instance.event_log_storage.get_latest_tags_by_partition(
        dg.AssetKey(["exports", kind]), _MATERIALIZED, [DATA_VERSION]
    )
    return {day: values[DATA_VERSION] for day, values in tags.items()}


def exported_days(instance: dg.DagsterInstance, kind: str, days: Sequence[str]) -> dict[str, Day]:
    """Version and rows of some days as they were exported last."""
    if not days:
        return {}
    key = dg.AssetKey(["exports", kind])
    ids = instance.event_log_storage.get_latest_storage_id_by_partition(key, _MATERIALIZED, set(days))
    found = {}
    for start in range(0, len(ids), EVENTS_AT_ONCE):
        some = list(ids.values())[start : start + EVENTS_AT_ONCE]
        records = instance.fetch_materializations(dg.AssetRecordsFilter(key, storage_ids=some), limit=len(some)).records
        for event in (record.asset_materialization for record in records):
            if event is not None and event.partition is not None:
                rows = event.metadata["dagster/row_count"].value
                found[event.partition] = Day((event.tags or {})[DATA_VERSION], int(str(rows)))
    return found


def last_check(instance: dg.DagsterInstance, model: str) -> OnNewDays | None:
    """What the check of the champion on new days found last; None if it found no such days, or never ran."""
    evaluation = last_evaluation(instance, dg.AssetCheckKey(dg.AssetKey(["models", model]), HOLDS))
    if evaluation is None:
        return None
    found = {name: value.value for name, value in evaluation.metadata.items()}
    if not found.get("rows"):
        return None
    return msgspec.convert(found, OnNewDays)


def runs_of(instance: dg.DagsterInstance, model: str, run_key: str | None, now: datetime) -> Runs:
    """The runs that bear on a training: those under way, and the last one on the same data."""
    training, exported = dg.AssetKey(["models", model]), dg.AssetKey(["exports", PRIMARY[model]])
    under_way = instance.get_run_records(dg.RunsFilter(statuses=_UNDER_WAY))
    fresh = [record for record in under_way if now - record.create_timestamp < LONGEST_EXPORT]
    earlier = instance.get_run_records(dg.RunsFilter(tags={KEY: str(run_key)}), limit=1)
    return Runs(
        training=_first_of(under_way, training),
        exporting=_first_of(fresh, exported),
        earlier=earlier[0].dagster_run.run_id if earlier else None,
        ended=_ENDED.get(earlier[0].dagster_run.status, "failed") if earlier else "failed",
    )


def _first_of(records: Sequence[dg.RunRecord], asset: dg.AssetKey) -> str | None:
    """The id of a run that materializes an asset."""
    runs = [record.dagster_run for record in records]
    return next((run.run_id for run in runs if asset in (run.asset_selection or ())), None)
