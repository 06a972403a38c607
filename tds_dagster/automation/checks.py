"""Turns what plain code finds in days and datasets into the results of asset checks, one of each a run.

A check reports; the gates are plain code in `tds_dagster.curate`, `.export` and `.datasets`, which keep what does not
add up, or would leak, from being put in place. (A blocking check would come too late: the step has reported its days by
then.) The step that builds the days gives the results itself: a check in a step of its own is skipped after a step
without outputs, and would have no result in just the run that failed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import dagster as dg

from ingest.errors import EngineFailed, RedactionLeak, SourceMissing, SplitLeak, TdsError
from ingest.pipeline.partitions import DataPaths
from ingest.settings import Settings
from tds_dagster.automation.conditions import each_morning
from tds_dagster.datasets.manifest import Dataset
from tds_dagster.datasets.written_leaks import first_leak_of
from tds_dagster.datasets.written_splits import check_written_splits
from tds_dagster.export.accounting import day_accounts, total_account
from tds_dagster.export.expectations import (
    Shards,
    Verdict,
    judge_duplicates,
    judge_quarantine,
    judge_schema,
    judge_volume,
    read_shards,
    verdict_of,
)
from tds_dagster.export.plot import rows_plot
from tds_dagster.export.written_days import judge_columns, judge_leaks, judge_missing, judge_repeats, leaks_of

CHECK = "every_stored_record_is_accounted_for"


def accounting_spec(kind: str) -> dg.AssetCheckSpec:
    """The check of `exports/<kind>`; beside each run, automation asks for it every morning: files can rot at rest."""
    return dg.AssetCheckSpec(
        CHECK,
        asset=["exports", kind],
        description="stored = exported + pending + duplicates + quarantined + erased + expired, for every day",
        automation_condition=each_morning(),
    )


def accounting_result(paths: DataPaths, kind: str) -> dg.AssetCheckResult:
    """The verdict on all days of a kind, by the function that `tds status` calls."""
    found = day_accounts(paths, kind)
    days, account = [each.day for each in found if not each.balanced], total_account(kind, found)
    return dg.AssetCheckResult(
        check_name=CHECK,
        asset_key=["exports", kind],
        passed=not days,
        description=f"days that do not add up: {', '.join(days)}" if days else "every day adds up",
        metadata={
            "unbalanced_days": days,
            "stored": account.stored,
            "exported": account.exported,
            "pending": account.pending,
            "duplicates": account.duplicates,
            "quarantined": account.quarantined,
        },
    )


class _DayCheck(NamedTuple):
    """A check of a kind's days: of which asset, how bad its failure is, and who judges."""

    group: str
    severity: dg.AssetCheckSeverity
    description: str
    judge: Callable[[Settings, str], Verdict]


def _by_manifests(judge: Callable[[Shards], Verdict]) -> Callable[[Settings, str], Verdict]:
    return lambda settings, kind: judge(read_shards(DataPaths(settings.data_dir), kind))


def _by_files(judge: Callable[[DataPaths, str], Verdict]) -> Callable[[Settings, str], Verdict]:
    return lambda settings, kind: judge(DataPaths(settings.data_dir), kind)


LEAK = "nothing_is_left_to_redact"
CHECKS_LOOKED_AT = 5  # the last one may be planned only, or its run failed
_ERROR, _WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN
DAY_CHECKS: Mapping[str, _DayCheck] = {
    "columns_are_as_declared": _DayCheck(
        "curated", _ERROR, "The Parquet files of the last seven days have the kind's columns, by name and type.",
        _by_files(judge_columns),
    ),
    "no_record_is_there_twice": _DayCheck(
        "curated", _ERROR, "No record_id is in the last seven days twice, neither in one of them nor in two.",
        _by_files(judge_repeats),
    ),
    "missing_values_are_as_usual": _DayCheck(
        "curated", _WARN, "The share of rows without a value, a column, held against the four weeks before.",
        _by_files(judge_missing),
    ),
    LEAK: _DayCheck(
        "exports", _ERROR, "What the level of redaction promises to be gone is gone: the gate's verdict on the days of "
        "a run and, in the morning, the shards of the last seven days looked at again.",
        judge_leaks,
    ),
    "volume_is_as_usual": _DayCheck(
        "exports", _WARN, "Rows of each of the last seven days, held against the four weeks before it.",
        _by_manifests(judge_volume),
    ),
    "duplicates_are_as_usual": _DayCheck(
        "exports", _WARN, "The share of rows left out as duplicates, likewise.", _by_manifests(judge_duplicates)
    ),
    "quarantine_is_as_usual": _DayCheck(
        "exports", _WARN, "The share of rows in quarantine, likewise.", _by_manifests(judge_quarantine)
    ),
    "schema_is_the_present_one": _DayCheck(
        "exports", _WARN, "Every day has the columns that this version of the program writes.",
        _by_manifests(judge_schema),
    ),
}  # fmt: skip


def day_check_specs(kind: str) -> list[dg.AssetCheckSpec]:
    """The checks of the days of `curated/<kind>` and `exports/<kind>`.

    What is unusual is a warning: it may be right. What a gate should not have let pass is an error.
    """
    return [
        dg.AssetCheckSpec(
            name, asset=[check.group, kind], description=check.description, automation_condition=each_morning()
        )
        for name, check in DAY_CHECKS.items()
    ]


def day_check_results(
    settings: Settings,
    kind: str,
    names: Iterable[str],
    refused: Mapping[str, TdsError] | None,
    leaking: Iterable[str] = (),
) -> Iterator[dg.AssetCheckResult]:
    """The verdicts of the checks of these names. `refused`: the days that a gate refused in this run, None if none ran.

    `leaking`: the days in which something was left at the last look (`leaking_days`). They are looked at again, and
    stay named where they cannot be: this verdict, on other days, takes the place of the one that named them.

    What is in the way of a check fails that check, and not the step, which has built its days.
    """
    for name in names:
        check = DAY_CHECKS[name]
        try:
            if name == LEAK:
                verdict = _verdict_on_leaks(settings, kind, refused, leaking)
            else:
                verdict = check.judge(settings, kind)
        except (TdsError, OSError) as err:
            verdict = Verdict(passed=False, text=f"not judged: {err}", days=[*leaking] if name == LEAK else [])
        yield dg.AssetCheckResult(
            check_name=name,
            asset_key=[check.group, kind],
            passed=verdict.passed,
            severity=check.severity,
            description=verdict.text,
            metadata={
                "days": verdict.days if name == LEAK else verdict.days[-20:],
                **({"rows_a_day": dg.MetadataValue.md(rows_plot(verdict.rows))} if verdict.rows else {}),
            },
        )


def last_evaluation(instance: dg.DagsterInstance, key: dg.AssetCheckKey) -> dg.AssetCheckEvaluation | None:
    """The last result of a check; None if it never ran."""
    records = instance.event_log_storage.get_asset_check_execution_history(key, limit=CHECKS_LOOKED_AT)
    evaluations = (record.evaluation for record in records)
    return next((each for each in evaluations if isinstance(each, dg.AssetCheckEvaluation)), None)


def leaking_days(instance: dg.DagsterInstance, kind: str) -> list[str]:
    """The days in which the last evaluation of `LEAK` found something."""
    last = last_evaluation(instance, dg.AssetCheckKey(dg.AssetKey(["exports", kind]), LEAK))
    return [] if last is None else [str(day) for day in cast("Sequence[object]", last.metadata["days"].value)]


def _verdict_on_leaks(
    settings: Settings, kind: str, refused: Mapping[str, TdsError] | None, leaking: Iterable[str]
) -> Verdict:
    """The gate's verdict on the days of a run, or what lies there looked at again; with the days that leaked before."""
    if refused is None:
        return judge_leaks(settings, kind, leaking)
    leaks = {day: str(err) for day, err in refused.items() if isinstance(err, RedactionLeak)}
    left = leaks_of(settings, kind, leaking)
    return verdict_of({**left, **leaks}, "the gate looked at each line that this run wrote", {})


SHARED, WARNED = "splits_share_nothing", "was_built_without_warnings"


def dataset_specs(model: str) -> list[dg.AssetCheckSpec]:
    """The checks of `datasets/<model>`, given by the run that builds it."""
    descriptions = {
        SHARED: "No entity, record or example is in two splits: read again from the rows that were written.",
        LEAK: "What the level of redaction promises to be gone is gone: each file that was written is looked at again.",
        WARNED: "Nothing that somebody who trains on it should know: empty or unseen classes, ids that nothing has.",
    }
    return [dg.AssetCheckSpec(name, asset=["datasets", model], description=text) for name, text in descriptions.items()]


def dataset_results(settings: Settings, built: Dataset) -> list[dg.AssetCheckResult]:
    """Their verdicts on one version. Rows that cannot be read fail their check, and not the step that built them."""
    try:
        check_written_splits(DataPaths(settings.data_dir), built)
    except (SplitLeak, SourceMissing, EngineFailed) as err:
        shared = str(err)
    else:
        shared = ""
    leak = first_leak_of(settings, built)
    return [
        dg.AssetCheckResult(
            check_name=SHARED, passed=not shared, description=shared or "no two splits have anything in common"
        ),
        dg.AssetCheckResult(
            check_name=LEAK,
            passed=leak is None,
            description=leak or f"nothing is left that level {built.redaction} promises to be gone",
        ),
        dg.AssetCheckResult(
            check_name=WARNED,
            passed=not built.warnings,
            severity=_WARN,
            description="; ".join(built.warnings) or "no warning",
        ),
    ]
