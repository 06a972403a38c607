"""From days, what was learned of them, and a policy to a decision: plain values in, a sentence out."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.pipeline.partitions import DataPaths
from tds_dagster.training.manifest import CHAMPION, LATEST
from tds_dagster.training.policy import ModelPolicy
from tds_dagster.training.retraining import (
    EMPTY,
    Day,
    InUse,
    Known,
    Mark,
    OnNewDays,
    Runs,
    Verdict,
    changed_days,
    changed_rows,
    days_for,
    decide_retraining,
    hold_back,
    read_champion,
    read_mark,
)

NOW = datetime(2024, 6, 1, tzinfo=UTC)
OFF = ModelPolicy(new_rows=0, new_days=0, drift=0, max_age_days=0, quality_drop=0)
DAY = st.integers(0, 5).map(lambda rows: Day(hashlib.sha256(b"x" * rows).hexdigest(), rows))
DAYS = st.dictionaries(st.dates(date(2024, 5, 1), date(2024, 5, 20)).map(str), DAY, min_size=1)


def mark_of(days: Mapping[str, Day], **more: object) -> Mark:
    learned = {name: day for name, day in days.items() if day.rows}
    known = {"version": "a1", "made_at": NOW, "is_tainted": False, "last_day": max(learned, default=""), **more}
    return Mark(days=learned, **known)  # type: ignore[arg-type]  # a test's own fields


def known_of(days: Mapping[str, Day], mark: Mark | None, **more: object) -> Known:
    versions = {name: day.version for name, day in sorted(days.items())}
    changed = {name: days[name] for name in changed_days(versions, mark)}
    known = Known(model="event_prediction", days=versions, changed=changed, mark=mark, now=NOW)
    return msgspec.structs.replace(known, **more)


@given(DAYS)
def test_what_was_learned_from_starts_nothing_whatever_the_policy(days: dict[str, Day]) -> None:
    mark = mark_of(days)
    policy = ModelPolicy(new_rows=1, new_days=1, drift=0.001, max_age_days=0.001)
    known = known_of(days, mark, champion=InUse("a1", 0.9, 0.85, False), now=NOW + timedelta(days=99))
    assert not decide_retraining(policy, known).start


@given(DAYS, DAYS)
def test_every_other_content_counts_a_row_or_more_and_any_new_row_counts(
    learned: dict[str, Day], now: dict[str, Day]
) -> None:
    mark = mark_of(learned)
    known = known_of(now, mark)
    added = sum(day.rows for name, day in now.items() if name not in mark.days)
    assert changed_rows(known.changed, mark) >= max(added, len(known.changed))
    assert not any(now[name] == mark.days.get(name) for name in known.changed)


@given(DAYS, DAYS)
def test_a_decision_has_another_key_for_other_days_only(one: dict[str, Day], other: dict[str, Day]) -> None:
    keys = [decide_retraining(ModelPolicy(), known_of(days, None)).run_key for days in (one, other)]
    held = [{name: day for name, day in days.items() if day.rows} for days in (one, other)]
    assert (keys[0] == keys[1]) is (held[0] == held[1])


def test_the_key_names_recipe_and_trainer_but_neither_clock_nor_thresholds() -> None:
    days = {"2024-05-01": Day("a", 500)}
    known = known_of(days, None)
    key = decide_retraining(ModelPolicy(), known).run_key
    assert key == decide_retraining(ModelPolicy(new_rows=5, margin=0.5), known_of(days, None, now=NOW)).run_key
    assert key != decide_retraining(ModelPolicy(recipe={"seed": 1}), known).run_key
    assert key != decide_retraining(ModelPolicy(), msgspec.structs.replace(known, trainer="python mine.py")).run_key


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({}, ["2024-05-01", "2024-05-02", "2024-05-31"]),
        ({"start": "2024-05-02"}, ["2024-05-02", "2024-05-31"]),
        ({"end": "2024-05-30"}, ["2024-05-01", "2024-05-02"]),
        ({"start": "2024-05-02", "end": "2024-07-01"}, ["2024-05-02", "2024-05-31"]),
    ],
)
def test_days_count_if_a_dataset_of_today_would_hold_them(recipe: dict[str, object], expected: list[str]) -> None:
    versions = {"2024-06-02": "f", "2024-06-01": "e", "2024-05-31": "d", "2024-05-02": "b", "2024-05-01": "a"}
    assert list(days_for(versions, recipe, NOW.date())) == expected


def test_a_day_that_dagster_has_not_seen_is_no_lost_one_and_a_day_without_rows_no_new_one() -> None:
    mark = mark_of({"2024-05-01": Day("a", 5), "2024-05-02": Day("b", 5)})
    assert changed_days({"2024-05-02": "b", "2024-05-03": EMPTY}, mark) == []
    assert changed_days({"2024-05-02": EMPTY}, mark) == ["2024-05-02"]
    assert changed_rows({"2024-05-02": Day(EMPTY, 0)}, mark) == 5


def test_where_every_condition_is_off_nothing_starts_but_a_first_model_and_after_an_erasure() -> None:
    days = {"2024-05-01": Day("a", 5000)}
    assert decide_retraining(OFF, known_of(days, None)).start
    mark = mark_of({"2024-04-01": Day("z", 1)})
    check = OnNewDays(champion="a1", start="2024-05-01", rows=500, accuracy=0.1, high=0.2, drift=1.0)
    champion = InUse("a1", 0.9, 0.85, False)
    waiting = decide_retraining(OFF, known_of(days, mark, champion=champion, on_new_days=check))
    assert waiting.sentence.startswith("event_prediction waits: its policy has no condition (5,000 rows")
    assert not waiting.start
    assert decide_retraining(OFF, known_of(days, mark, champion=InUse("a1", 0.9, 0.85, True))).start


def test_a_verdict_has_figures_for_those_who_draw_them() -> None:
    mark = mark_of({"2024-05-01": Day("a", 5)}, made_at=NOW - timedelta(days=3))
    check = OnNewDays(champion="a1", start="2024-05-02", rows=500, accuracy=0.7, high=0.8, drift=0.1)
    known = known_of({"2024-05-01": Day("a", 5), "2024-05-02": Day("b", 7)}, mark, on_new_days=check)
    verdict = decide_retraining(ModelPolicy(), known)
    expected = {"rows": 7, "days": 1, "age_days": 3.0, "drift": 0.1, "accuracy": 0.7, "learned_from": "a1"}
    assert verdict.figures == expected
    assert verdict.last_day == "2024-05-02"


def test_runs_hold_back_a_start_and_change_no_verdict_that_waits() -> None:
    start = Verdict(start=True, sentence="tool_selection starts: new_rows 5 of 5 (5 rows)", run_key="k")
    assert hold_back(start, Runs()) == start
    held = hold_back(start, Runs(training="0123456789"))
    assert not held.start
    assert held.sentence == (
        "tool_selection waits: run 01234567 is training it; its reason to start: new_rows 5 of 5 (5 rows)"
    )
    waiting = msgspec.structs.replace(start, start=False)
    assert hold_back(waiting, Runs(training="0123456789")) == waiting


def test_a_lost_champion_and_a_lost_last_model_start_a_training_once_for_the_same_data() -> None:
    days = {"2024-05-01": Day("a", 500)}
    kept = known_of(days, mark_of(days), champion=InUse("c1", 0.9, 0.85, False))
    lost = known_of(days, mark_of(days), champion=InUse("c1", 0.0, 0.0, False, is_lost=True))
    gone = known_of(days, Mark(version="a1", made_at=NOW, is_tainted=False, last_day="", days={}, is_lost=True))
    verdicts = [decide_retraining(OFF, known) for known in (kept, lost, gone)]
    assert [verdict.start for verdict in verdicts] == [False, True, True]
    assert "its champion c1 is damaged or gone" in verdicts[1].sentence
    assert "a1, which was trained last, is damaged or gone" in verdicts[2].sentence
    assert len({verdict.run_key for verdict in verdicts}) == 3
    held = hold_back(verdicts[1], Runs(earlier="0123456789", ended="succeeded"))
    assert not held.start
    assert "the same is not tried twice" in held.sentence


@pytest.mark.parametrize(("champion", "drift", "accuracy", "starts"), [
    ("a1", 0.35, 0.9, True), ("a1", 0.25, 0.9, False), ("a1", 0.0, 0.7, True), ("another", 0.9, 0.1, False),
])  # fmt: skip
def test_a_check_counts_for_the_champion_that_it_was_made_of_and_beyond_chance(
    champion: str, drift: float, accuracy: float, *, starts: bool
) -> None:
    policy = msgspec.structs.replace(OFF, drift=0.2, quality_drop=0.05)
    check = OnNewDays(
        champion=champion, start="2024-05-02", rows=100, accuracy=accuracy, high=accuracy + 0.1, drift=drift,
        drift_by_chance=0.1,
    )  # fmt: skip
    learned = mark_of({"2024-05-01": Day("a", 5)})
    known = known_of({"2024-05-02": Day("b", 7)}, learned, champion=InUse("a1", 0.9, 0.85, False), on_new_days=check)
    assert decide_retraining(policy, known).start is starts


def test_a_model_that_is_gone_is_known_as_lost(tmp_path: Path) -> None:
    paths = DataPaths(tmp_path)
    home = paths.models("event_prediction")
    assert (read_mark(paths, "event_prediction"), read_champion(paths, "event_prediction")) == (None, None)
    home.mkdir(parents=True)
    (home / LATEST).write_text('{"version": "abc"}')
    (home / CHAMPION).symlink_to("def")
    mark, champion = read_mark(paths, "event_prediction"), read_champion(paths, "event_prediction")
    assert mark is not None
    assert champion is not None
    assert (mark.version, mark.is_lost, champion.version, champion.is_lost) == ("abc", True, "def", True)
