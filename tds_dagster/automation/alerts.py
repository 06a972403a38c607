"""Turns failed runs and checks into alerts: two sensors whose cursor moves past an alert when the webhook has taken it.

A run that failed is told once. A check is told when it turns: from passed to failed, from one verdict to another, and
back to passed; not each morning anew. While the webhook is away, the next tick tries again, so nothing is lost, and
nothing is told twice but an alert whose answer was lost on the way. What happened before the first tick is not told.
"""

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import dagster as dg
import msgspec

from ingest.errors import AlertFailed
from ingest.redaction.redactor import open_redactor
from ingest.settings import Settings
from tds_dagster.automation.webhook import Alert, post

EVERY_S = 30
MOST_A_TICK = 20  # alerts
TICK_S = 25.0  # after which none is begun: a tick that takes a minute is cut off, and its cursor with it
_LONGEST_TEXT = 500  # characters of a reason
_UNSET = "TDS_ALERT_URL is not set: nobody is told"


class Verdict(msgspec.Struct, frozen=True):
    """What was told of a check last."""

    passed: bool
    text: str = ""  # its description: another one is news


@dg.sensor(
    name="alert_failed_runs",
    description="Posts each run that failed to TDS_ALERT_URL, once (docs/operations.md).",
    minimum_interval_seconds=EVERY_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def alert_failed_runs(context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings]) -> dg.SensorResult:
    """One tick; the cursor is the storage id of the last failure that was told."""
    if settings.alert_url is None:
        return dg.SensorResult(skip_reason=_UNSET, cursor="")  # who sets it later is not told of all that was
    if not context.cursor:
        newest = _failures(context.instance, None, limit=1, ascending=False)
        return _at(newest[0].storage_id if newest else 0, "watches from now on")
    told = int(context.cursor)
    failures = _failures(context.instance, told, limit=MOST_A_TICK, ascending=True)
    deadline = time.monotonic() + TICK_S
    for n, failure in enumerate(failures):
        if time.monotonic() > deadline:
            return _at(told, f"told of {n} failed runs; the webhook is slow, the others wait")
        try:
            post(settings, _of_run(context.instance, settings, failure))
        except AlertFailed as err:
            context.log.warning(str(err))
            return _at(told, f"told of {n} failed runs; the webhook did not take the next one, which waits")
        told = failure.storage_id
    return _at(told, f"told of {len(failures)} failed runs" if failures else "no run failed")


@dg.sensor(
    name="alert_failed_checks",
    description="Posts each check that turned to failed, or back to passed, to TDS_ALERT_URL (docs/operations.md).",
    minimum_interval_seconds=EVERY_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def alert_failed_checks(context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings]) -> dg.SensorResult:
    """One tick; the cursor has what was told of each check last."""
    if settings.alert_url is None:
        return dg.SensorResult(skip_reason=_UNSET, cursor="")
    checks = sorted(context.repository_def.asset_graph.asset_check_keys) if context.repository_def else []
    told = msgspec.json.decode(context.cursor, type=dict[str, Verdict]) if context.cursor else None
    known = dict(told or {})
    posted, waits, deadline = 0, False, time.monotonic() + TICK_S
    for name, evaluation, run_id, moment in _evaluations(context.instance, checks):
        verdict = Verdict(evaluation.passed, "" if evaluation.passed else _short(evaluation.description))
        before = known.get(name, Verdict(passed=True))
        if told is not None and verdict != before:
            try:
                if posted == MOST_A_TICK or time.monotonic() > deadline:
                    waits = True
                    continue
                post(settings, _of_check(settings, evaluation, run_id, moment))
                posted += 1
            except AlertFailed as err:
                context.log.warning(str(err))
                waits = True
                break
        known[name] = verdict
    reason = "watches from now on" if told is None else f"told of {posted} checks" if posted else "no check turned"
    return dg.SensorResult(
        skip_reason=f"{reason}{'; others wait for the webhook' * waits}", cursor=msgspec.json.encode(known).decode()
    )


def _at(storage_id: int, reason: str) -> dg.SensorResult:
    return dg.SensorResult(skip_reason=reason, cursor=str(storage_id))


def _failures(
    instance: dg.DagsterInstance, after: int | None, *, limit: int, ascending: bool
) -> list[dg.EventLogRecord]:
    found = instance.fetch_run_status_changes(
        dg.RunStatusChangeRecordsFilter(dg.DagsterEventType.RUN_FAILURE, after_storage_id=after),
        limit=limit,
        ascending=ascending,
    )
    return list(found.records)


def _evaluations(
    instance: dg.DagsterInstance, checks: list[dg.AssetCheckKey]
) -> Iterator[tuple[str, dg.AssetCheckEvaluation, str, str]]:
    """The last verdict of each check, with its run and its time; of one that is under way, that is not known yet."""
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(checks)
    for key, record in latest.items():
        if isinstance(record.evaluation, dg.AssetCheckEvaluation):
            yield key.to_user_string(), record.evaluation, record.run_id, _time_text(record.create_timestamp)


def _of_run(instance: dg.DagsterInstance, settings: Settings, failure: dg.EventLogRecord) -> Alert:
    entry = failure.event_log_entry
    planned = instance.all_logs(entry.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
    keys = {each.dagster_event.asset_key for each in planned if each.dagster_event is not None}
    assets = sorted(key.to_user_string() for key in keys if key is not None)
    what = ", ".join(assets[:3]) + (f" and {len(assets) - 3} more" if len(assets) > 3 else "")
    return Alert(
        kind="run_failed",
        severity="error",
        title=f"Run failed: {what or 'a job'}",
        text=_clean(settings, _reason_of(instance, entry)),
        at=_time_text(entry.timestamp),
        assets=assets,
        run_id=entry.run_id,
        url=f"{settings.ui_url.rstrip('/')}/runs/{entry.run_id}",
    )


def _reason_of(instance: dg.DagsterInstance, entry: dg.EventLogEntry) -> str:
    """What the step that failed said; of a run whose process died, what Dagster says of that."""
    failed = instance.all_logs(entry.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    errors = [each.dagster_event.step_failure_data.error for each in failed if each.dagster_event is not None]
    causes = [error.cause or error for error in errors if error is not None]
    if causes:
        return causes[0].message.strip()
    return (
        entry.dagster_event.message if entry.dagster_event is not None and entry.dagster_event.message else "no reason"
    )


def _of_check(settings: Settings, evaluation: dg.AssetCheckEvaluation, run_id: str, moment: str) -> Alert:
    asset, check = evaluation.asset_key.to_user_string(), evaluation.check_name
    is_error = evaluation.severity == dg.AssetCheckSeverity.ERROR
    return Alert(
        kind="check_passed" if evaluation.passed else "check_failed",
        severity="resolved" if evaluation.passed else "error" if is_error else "warning",
        title=f"Check {'passes again' if evaluation.passed else 'failed'}: {asset}, {check}",
        text=_clean(settings, evaluation.description or "it says no more"),
        at=moment,
        assets=[asset],
        check=check,
        run_id=run_id,
        url=f"{settings.ui_url.rstrip('/')}/assets/{asset}?view=checks&checkDetail={check}",
    )


def _clean(settings: Settings, text: str) -> str:
    """A reason as it may leave the house: without secrets and personal data, and short."""
    line = msgspec.json.encode({"payload": _short(text)})
    cleaned: Mapping[str, str] = msgspec.json.decode(open_redactor(settings, "full").redact_line("events", line))
    return cleaned["payload"]


def _short(text: str | None) -> str:
    text = text or ""
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"


def _time_text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
