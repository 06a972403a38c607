"""Turns the first minutes of a UTC day into the export of the day before."""

from datetime import datetime, timedelta

import dagster as dg

from tds_dagster.partitions import DAILY

BUILT = dg.AssetSelection.groups("curated", "exports")


def yesterday_of(moment: datetime) -> str:
    """The UTC day before `moment`'s, as `YYYY-MM-DD`."""
    return (moment - timedelta(days=1)).date().isoformat()


# Written by hand: with the present day among the partitions, `build_schedule_from_partitioned_job` asks for today.
@dg.schedule(
    name="export_yesterday",
    description="Curates and exports the day that has just ended, all kinds, at 00:10 UTC.",
    cron_schedule="10 0 * * *",
    execution_timezone="UTC",
    target=BUILT,
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def export_yesterday(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """One run for the partition of the scheduled time minus a day; its key keeps a repeated tick from a second run."""
    day = yesterday_of(context.scheduled_execution_time)
    if not DAILY.has_partition_key(day):
        return dg.SkipReason(f"{day} lies before {DAILY.get_first_partition_key()}, the first day (TDS_START_DATE)")
    return dg.RunRequest(run_key=day, partition_key=day)
