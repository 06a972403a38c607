"""What the retraining sensors look at, put there as the platform does: exported days, trained models, runs, checks."""

import hashlib
from datetime import UTC, datetime

import dagster as dg

from benchmarks import retraining
from ingest import Settings
from tds_dagster.automation.retraining import SENTENCE, tick
from tds_dagster.definitions import defs
from tds_dagster.training.retraining import Day
from tests.platform.dagster_parts import paths_of

MODEL = "event_prediction"
NOW = datetime(2024, 6, 1, 12, tzinfo=UTC)


def day_of(rows: int, content: str = "") -> Day:
    """A day's shard with so many rows."""
    return Day(hashlib.sha256(f"{rows} {content}".encode() if rows else b"").hexdigest(), rows)


def days_of(days: list[str], rows: int) -> dict[str, Day]:
    return {name: day_of(rows, name) for name in days}


def export(instance: dg.DagsterInstance, days: dict[str, Day]) -> None:
    """Report days of events as their export does."""
    retraining.export(instance, "events", days)


def train(settings: Settings, days: dict[str, Day], *, version: str = retraining.MARK, promote: bool = True) -> None:
    """Leave a model on disk that learned from these days, a day before `NOW`; its accuracy is 0.8."""
    retraining.leave_model(paths_of(settings), days, version=version, made_at="2024-05-31T00:00:00Z", promote=promote)


def taint(settings: Settings, version: str = retraining.MARK) -> None:
    (paths_of(settings).model(MODEL, version) / "tainted.json").write_text("{}")


def check_on_new_days(instance: dg.DagsterInstance, **found: float | str) -> None:
    """Report the check of the champion as the platform does each morning."""
    metadata: dict[str, float | str] = {
        "champion": retraining.MARK, "rows": 200, "accuracy": 0.8, "low": 0.7, "high": 0.9, "drift": 0.05,
        "drift_by_chance": 0.03, **found,
    }  # fmt: skip
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(["models", MODEL]), check_name="champion_holds_on_new_days", passed=False,
            metadata=metadata,
        )
    )  # fmt: skip


def ask(instance: dg.DagsterInstance, settings: Settings, now: datetime = NOW) -> dg.RunRequest | dg.SkipReason:
    return tick(instance, settings, "event_prediction", now)


def starts(asked: dg.RunRequest | dg.SkipReason) -> str:
    """Why a run was asked for."""
    assert isinstance(asked, dg.RunRequest), asked
    return str(asked.tags[SENTENCE])


def waits(asked: dg.RunRequest | dg.SkipReason) -> str:
    """Why none was."""
    assert isinstance(asked, dg.SkipReason), asked
    return str(asked.skip_message)


def run_of(
    instance: dg.DagsterInstance, asset: str, status: dg.DagsterRunStatus, asked: dg.RunRequest | None = None
) -> dg.DagsterRun:
    """A run of an asset in some state; one that the daemon made of a request has the request's tags."""
    key = dg.AssetKey(asset.split("/"))
    tags = {} if asked is None else {**asked.tags, "dagster/run_key": str(asked.run_key)}
    job = defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection={key})
    run = instance.create_run_for_job(
        job, tags=tags, asset_selection=frozenset({key}), status=dg.DagsterRunStatus.STARTED
    )
    if status is dg.DagsterRunStatus.FAILURE:
        instance.report_run_failed(run)
    elif status is dg.DagsterRunStatus.CANCELED:
        instance.report_run_canceled(run)
    return run
