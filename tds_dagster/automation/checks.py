"""Turns the accounting identity of a kind into the result of an asset check, one a run.

A check reports; the gate is plain code in `tds_dagster.export`, which keeps a day that does not add up from being
exported. (A blocking check would come too late: the step has reported its days by then.) The step that builds the
days gives the result itself: a check in a step of its own is skipped after a step without outputs, and would have
no result in just the run that failed.
"""

import dagster as dg

from ingest.pipeline.partitions import DataPaths
from tds_dagster.automation.conditions import each_morning
from tds_dagster.export import accounts, unbalanced_days

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
    days = unbalanced_days(paths, kind)
    account = accounts(paths, kind)
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
