"""Accuracy comes with an interval that knows sessions from rows, and stands beside baselines, classes and confusion."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tds_dagster.training.card import verdict
from tds_dagster.training.confusion import accuracy_plot, confusion_plot
from tds_dagster.training.metrics import Metrics, measure, score_of, wilson_interval


@pytest.mark.parametrize(
    ("correct", "rows", "low", "high"),
    # By hand from Wilson's formula, to four places: (p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.96.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (29, 29, 0.8830, 1.0)],
)
def test_the_interval_is_wilsons(correct: int, rows: int, low: float, high: float) -> None:
    found = wilson_interval(correct / rows, rows)
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


def test_without_rows_nothing_is_known() -> None:
    found = score_of([], [])
    assert (found.accuracy, found.interval.low, found.interval.high) == (0.0, 0.0, 1.0)


def test_rows_of_one_session_tell_less_than_as_many_sessions() -> None:
    right = [n % 4 > 0 for n in range(200)]
    apart = score_of(right, [str(n) for n in range(200)])
    blocks = score_of(sorted(right), [str(n // 10) for n in range(200)])  # a session is all right or all wrong
    assert apart.accuracy == blocks.accuracy
    assert blocks.interval.high - blocks.interval.low > 2.5 * (apart.interval.high - apart.interval.low)


def test_where_all_are_right_a_session_counts_once() -> None:
    one_by_one, together = score_of([True] * 50, [str(n) for n in range(50)]), score_of([True] * 50, ["a"] * 50)
    assert one_by_one.interval.low == pytest.approx(wilson_interval(1.0, 50).low)
    assert together.interval.low == pytest.approx(wilson_interval(1.0, 1).low)
    assert one_by_one.interval.high == together.interval.high == 1.0


def test_the_interval_holds_what_is_true_in_about_95_of_100_draws_of_sessions() -> None:
    chance = random.Random(7)
    held = 0
    for _ in range(400):
        right, sessions = [], []
        for session in range(60):
            ease = chance.betavariate(3, 1)  # sessions differ; the mean is 0.75
            for _ in range(8):
                right.append(chance.random() < ease)
                sessions.append(str(session))
        found = score_of(right, sessions).interval
        held += found.low <= 0.75 <= found.high
    assert 0.92 <= held / 400 <= 0.98


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd"), st.sampled_from("xyz"), st.floats(0, 1))))
def test_any_predictions_give_figures_that_add_up(rows: list[tuple[str, str, str, float]]) -> None:
    labels, guesses, entities, scores = (list(column) for column in zip(*rows, strict=True)) if rows else ([],) * 4
    found = measure(labels, guesses, entities, {"majority": ["a"] * len(rows)}, scores)
    assert sum(sum(row.values()) for row in found.confusion.values()) == found.rows == len(rows)
    assert sum(each.rows for each in found.classes.values()) == len(rows)
    assert found.score.correct == sum(found.confusion.get(name, {}).get(name, 0) for name in "abc")
    assert 0 <= found.score.interval.low <= found.score.accuracy <= found.score.interval.high <= 1
    assert 0 <= found.macro_f1 <= 1
    assert (found.brier is None) == (not rows)
    assert found.brier is None or 0 <= found.brier <= 1
    assert confusion_plot(found).startswith("![confusion matrix")
    assert accuracy_plot(found).startswith("![accuracy")


def example() -> Metrics:
    labels = ["a"] * 6 + ["b"] * 4
    guesses = ["a"] * 5 + ["b"] + ["b"] * 3 + ["a"]
    baselines = {"majority": ["a"] * 10, "most_recent": ["b"] * 10}
    return measure(labels, guesses, [str(n) for n in range(10)], baselines, [0.9] * 10)


def test_classes_have_precision_and_recall_and_the_confusion_says_what_was_taken_for_what() -> None:
    found = example()
    assert found.confusion == {"a": {"a": 5, "b": 1}, "b": {"a": 1, "b": 3}}
    assert found.classes["a"].precision == pytest.approx(5 / 6)
    assert found.classes["a"].recall == pytest.approx(5 / 6)
    assert (found.classes["b"].precision, found.classes["b"].recall) == (0.75, 0.75)
    assert found.brier == pytest.approx((8 * 0.1**2 + 2 * 0.9**2) / 10)
    assert found.best_baseline[0] == "majority"
    assert found.beats_baselines


def test_one_score_that_is_missing_leaves_no_brier_score() -> None:
    assert measure(["a", "b"], ["a", "b"], ["1", "2"], {"majority": ["a", "a"]}, [0.5, None]).brier is None


def test_a_tie_with_a_baseline_does_not_beat_it_and_the_card_says_so() -> None:
    tied = measure(["a", "b"], ["a", "a"], ["1", "2"], {"majority": ["a", "a"], "most_recent": ["b", "a"]})
    assert not tied.beats_baselines
    assert verdict(tied) == (
        "It does not beat the best baseline, majority with 50.0% (+0.0 points): it is not promoted."
    )


def test_a_picture_of_many_classes_puts_the_rare_ones_together() -> None:
    labels = [f"class {n}" for n in range(30) for _ in range(30 - n)]
    found = confusion_plot(measure(labels, labels, labels, {"majority": labels}))
    assert "others: 171 of 171 right" in found
    assert "class 12" not in found
