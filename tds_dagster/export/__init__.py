"""The stage from curated to exports: a JSONL shard a day, range files, and the account that gates them."""

from tds_dagster.export.accounting import accounts, day_account, day_accounts, total_account, unbalanced_days
from tds_dagster.export.days import build_days
from tds_dagster.export.feedback import latest_feedback, matching
from tds_dagster.export.manifest import DayAccount, RangeExport, Shard
from tds_dagster.export.predicate import Predicate, parse_predicate
from tds_dagster.export.ranges import default_range, export_range, require_complete, write_range
from tds_dagster.export.selection import Selection, select
from tds_dagster.export.shard import code_version, export_day

__all__ = [
    "DayAccount",
    "Predicate",
    "RangeExport",
    "Selection",
    "Shard",
    "accounts",
    "build_days",
    "code_version",
    "day_account",
    "day_accounts",
    "default_range",
    "export_day",
    "export_range",
    "latest_feedback",
    "matching",
    "parse_predicate",
    "require_complete",
    "select",
    "total_account",
    "unbalanced_days",
    "write_range",
]
