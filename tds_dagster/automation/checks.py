"""Turns what plain code finds in days and datasets into the results of asset checks, one of each a run.

A check reports; the gates are plain code in `tds_dagster.curate`, `.export` and `.datasets`, which keep what does not
add up, or would leak, from being put in place. (A blocking check would come too late: the step has reported its days by
then.) The step that builds the days gives the results itself: a check in a step of its own is skipped after a step
without outputs, and would have no result in just the run that failed.
"""

from collections.abc import Iterable, Iterator

import dagster as dg

from ingest.errors import EngineFailed, SourceMissing, SplitLeak
from ingest.pipeline.partitions import DataPaths
from tds_dagster.automation.conditions import each_morning
from tds_dagster.datasets.manifest import Dataset
from tds_dagster.datasets.written_splits import check_written_splits
from tds_dagster.export.accounting import day_accounts, total_account
from tds_dagster.export.expectations import JUDGES, read_shards
from tds_dagster.export.plot import rows_plot

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


_EXPECTED = {
    "volume_is_as_usual": "Rows of each of the last seven days, held against the four weeks before it.",
    "duplicates_are_as_usual": "The share of rows left out as duplicates, likewise.",
    "quarantine_is_as_usual": "The share of rows in quarantine, likewise.",
    "schema_is_the_present_one": "Every day has the columns that this version of the program writes.",
}


def expectation_specs(kind: str) -> list[dg.AssetCheckSpec]:
    """What is unusual about the days of `exports/<kind>`; a warning each, for what is unusual may be right."""
    return [
        dg.AssetCheckSpec(
            name, asset=["exports", kind], description=_EXPECTED[name], automation_condition=each_morning()
        )
        for name in JUDGES
    ]


def expectation_results(paths: DataPaths, kind: str, names: Iterable[str]) -> Iterator[dg.AssetCheckResult]:
    """The verdicts of the checks of these names, from the manifests of the days' shards."""
    wanted = list(names)
    shards = read_shards(paths, kind) if wanted else {}
    for name in wanted:
        verdict = JUDGES[name](shards)
        yield dg.AssetCheckResult(
            check_name=name,
            asset_key=["exports", kind],
            passed=verdict.passed,
            severity=dg.AssetCheckSeverity.WARN,
            description=verdict.text,
            metadata={
                "days": verdict.days[-20:],
                **({"rows_a_day": dg.MetadataValue.md(rows_plot(verdict.rows))} if verdict.rows else {}),
            },
        )


SHARED, WARNED = "splits_share_nothing", "was_built_without_warnings"


def dataset_specs(model: str) -> list[dg.AssetCheckSpec]:
    """The checks of `datasets/<model>`, given by the run that builds it."""
    shared = "No entity, record or example is in two splits: read again from the rows that were written."
    warned = "Nothing that somebody who trains on it should know: empty or unseen classes, ids that nothing has."
    asset = ["datasets", model]
    return [
        dg.AssetCheckSpec(SHARED, asset=asset, description=shared),
        dg.AssetCheckSpec(WARNED, asset=asset, description=warned),
    ]


def dataset_results(paths: DataPaths, built: Dataset) -> list[dg.AssetCheckResult]:
    """Their verdicts on one version. Rows that cannot be read fail their check, and not the step that built them."""
    try:
        check_written_splits(paths, built)
    except (SplitLeak, SourceMissing, EngineFailed) as err:
        problem = str(err)
    else:
        problem = ""
    return [
        dg.AssetCheckResult(
            check_name=SHARED, passed=not problem, description=problem or "no two splits have anything in common"
        ),
        dg.AssetCheckResult(
            check_name=WARNED,
            passed=not built.warnings,
            severity=dg.AssetCheckSeverity.WARN,
            description="; ".join(built.warnings) or "no warning",
        ),
    ]
