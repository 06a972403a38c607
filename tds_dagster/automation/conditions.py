"""Turns what is known of a day, of the stage before it and of the clock into the decision to build or to check."""

import dagster as dg

Condition = dg.AutomationCondition[dg.AssetKey | dg.AssetCheckKey]


def when_its_source_changed() -> Condition:
    """Build a day when the same day of the stage before it got another data version, however old the day is.

    `eager()` looks at the latest days only, and a late record belongs to an old one. A change is seen for one
    tick; `since` keeps it until the day is asked for, so that a change during a run is not lost. A day that was
    reported before the first evaluation, or was never built while its source is there, has no change to see: the
    two terms with `missing` stand for it. A day whose run failed is asked for again every half hour: its change was
    seen and asked for, and nothing else would bring it back. A stage that was built in the same run as the one before
    it is not asked for again: each night's schedule would cost a second run a kind.
    """
    changed = dg.AutomationCondition.any_deps_match(
        dg.AutomationCondition.data_version_changed() & ~dg.AutomationCondition.executed_with_root_target()
    )
    buildable = dg.AutomationCondition.missing() & ~dg.AutomationCondition.any_deps_missing()
    at_first_sight = dg.AutomationCondition.initial_evaluation() & buildable
    half_hour: Condition = dg.AutomationCondition.cron_tick_passed("*/30 * * * *")
    once_more = dg.AutomationCondition.execution_failed() & half_hour
    wanted = changed | buildable.newly_true() | at_first_sight | once_more
    asked_for = dg.AutomationCondition.newly_requested()
    return (wanted.since(asked_for) & ~dg.AutomationCondition.in_progress()).with_label("its source changed")


def each_morning() -> Condition:
    """At 00:40 UTC, half an hour after yesterday's export began."""
    at_the_time: Condition = dg.AutomationCondition.cron_tick_passed("40 0 * * *")
    return at_the_time & ~dg.AutomationCondition.in_progress()
