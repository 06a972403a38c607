"""Ten minutes into a UTC day, the day before is exported."""

from datetime import UTC, datetime

import dagster as dg

from tds_dagster.automation.schedules import export_yesterday
from tds_dagster.partitions import DAILY


def ask_at(moment: datetime) -> dg.RunRequest | dg.SkipReason:
    context = dg.build_schedule_context(scheduled_execution_time=moment)
    answer = export_yesterday(context)
    assert isinstance(answer, dg.RunRequest | dg.SkipReason)
    return answer


def test_the_schedule_runs_at_ten_past_midnight_and_without_being_switched_on() -> None:
    assert export_yesterday.cron_schedule == "10 0 * * *"
    assert export_yesterday.execution_timezone == "UTC"
    assert export_yesterday.default_status == dg.DefaultScheduleStatus.RUNNING


def test_it_asks_for_the_day_before_its_scheduled_time_and_not_before_the_present_time() -> None:
    request = ask_at(datetime(2024, 3, 1, 0, 10, tzinfo=UTC))
    assert isinstance(request, dg.RunRequest)
    assert (request.partition_key, request.run_key) == ("2024-02-29", "2024-02-29")


def test_a_day_before_the_first_partition_is_skipped_with_the_reason() -> None:
    skipped = ask_at(datetime(2024, 1, 1, 0, 10, tzinfo=UTC))
    assert isinstance(skipped, dg.SkipReason)
    assert "TDS_START_DATE" in str(skipped.skip_message)


def test_the_present_day_is_a_partition() -> None:
    assert DAILY.get_first_partition_key() == "2024-01-01"
    assert DAILY.get_last_partition_key() == datetime.now(UTC).date().isoformat()
