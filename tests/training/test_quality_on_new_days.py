"""How a champion does on days after its dataset: asked of what nothing has learned from, and put nowhere."""

import json
import random
import statistics
import sys
from collections import Counter
from datetime import date, timedelta
from pathlib import Path

import pytest

from ingest import Settings
from ingest.errors import SourceMissing
from ingest.pipeline.partitions import DataPaths
from tds_dagster.datasets.manifest import find_dataset
from tds_dagster.training import quality
from tds_dagster.training.contract import Report
from tds_dagster.training.manifest import champion_of
from tds_dagster.training.quality import (
    has_drifted,
    has_dropped,
    measure_quality,
    total_variation,
    variation_by_chance,
)
from tds_dagster.training.run import train_model
from tests.training import training_parts
from tests.training.training_parts import DAY, Row, build, session_records, settings_of, store_sessions

MODEL = "task_completion"
NEXT, LATER = ((date.fromisoformat(DAY) + timedelta(days=n)).isoformat() for n in (1, 3))
TRAINER = """
from tds_dagster.training.contract import run_trainer

def predict(output):
    return lambda question: ("failed" if question["priority"] == "low" else "completed", 1.0)

run_trainer(lambda dataset, output, report: None, predict)
"""


@pytest.fixture
def settings(training_data: Path, tmp_path: Path) -> Settings:
    """Settings over a day's data; their trainer knows the rule that tasks follow, and is the champion."""
    (tmp_path / "rule.py").write_text(TRAINER)
    settings = settings_of(training_data, trainer=f"{sys.executable} {tmp_path / 'rule.py'}")
    build(training_data, MODEL)

    def write(_dataset: Path, output: Path, _report: Report) -> None:
        (output / "rule").write_text("low fails")

    train_model(settings, find_dataset(DataPaths(training_data), MODEL), run_trainer=write)
    assert champion_of(DataPaths(training_data), MODEL) is not None
    return settings


def test_days_after_the_dataset_are_asked_about_and_nothing_is_built_of_them(settings: Settings) -> None:
    datasets = sorted(DataPaths(settings.data_dir).datasets(MODEL).iterdir())
    store_sessions(settings.data_dir, range(200, 220), day=NEXT)
    store_sessions(settings.data_dir, range(220, 230), day=LATER)
    found = measure_quality(settings, MODEL)
    assert found is not None
    assert (found.start, found.end, found.examples) == (NEXT, LATER, 30)
    assert (found.score.rows, found.score.accuracy, found.expected.accuracy) == (30, 1.0, 1.0)
    assert found.classes == {"completed": 15, "failed": 15}
    assert found.drift < 0.1
    assert sorted(DataPaths(settings.data_dir).datasets(MODEL).iterdir()) == datasets


def test_a_rule_that_holds_no_longer_is_seen_as_lost_accuracy(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turned(n: int) -> list[tuple[str, Row]]:
        """The same sessions, with the other tasks failing, and mostly those."""
        text = (
            json.dumps(session_records(n)).replace('"low"', '"?"').replace('"high"', '"low"').replace('"?"', '"high"')
        )
        return [(kind, fields) for kind, fields in json.loads(text)]

    monkeypatch.setattr(training_parts, "session_records", turned)
    store_sessions(settings.data_dir, range(201, 241, 2), day=NEXT)
    found = measure_quality(settings, MODEL)
    assert found is not None
    assert (found.score.rows, found.score.accuracy) == (20, 0.0)
    assert found.classes == {"failed": 20}
    assert found.drift == pytest.approx(0.5, abs=0.1)
    low, high = found.expected.interval.low, found.score.interval.high
    assert has_dropped(found.expected.accuracy, found.score.accuracy, low=low, high=high, quality_drop=0.1)
    assert has_drifted(found.drift, found.drift_by_chance, least=0.2)


def test_of_many_rows_the_same_ones_are_asked_each_time(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "MOST_ROWS", 5)
    store_sessions(settings.data_dir, range(200, 220), day=NEXT)
    found = measure_quality(settings, MODEL)
    assert found is not None
    assert (found.score.rows, found.examples) == (5, 20)
    assert measure_quality(settings, MODEL) == found


def test_without_later_days_or_a_champion_there_is_nothing_to_say(settings: Settings) -> None:
    assert measure_quality(settings, MODEL) is None
    store_sessions(settings.data_dir, range(200, 220), day=NEXT)
    assert measure_quality(settings, "tool_selection") is None


def test_a_champion_whose_dataset_is_gone_cannot_be_measured(settings: Settings) -> None:
    dataset = find_dataset(DataPaths(settings.data_dir), MODEL)
    dataset.folder.rename(settings.data_dir / "elsewhere")
    store_sessions(settings.data_dir, range(200, 220), day=NEXT)
    with pytest.raises(SourceMissing):
        measure_quality(settings, MODEL)


@pytest.mark.parametrize(
    ("accuracy", "high", "is_lower"),
    [(0.79, 0.84, True), (0.8, 0.84, True), (0.81, 0.84, False), (0.7, 0.86, False), (0.95, 1, False)],
)
def test_accuracy_is_lost_where_it_is_more_than_was_set_and_no_chance(
    accuracy: float, high: float, *, is_lower: bool
) -> None:
    assert has_dropped(0.9, accuracy, low=0.85, high=high, quality_drop=0.1) is is_lower


def test_classes_that_moved_are_told_by_half_the_sum_of_the_differences() -> None:
    assert total_variation({"a": 1, "b": 1}, {"a": 10, "b": 10}) == 0
    assert total_variation({"a": 3, "b": 1}, {"a": 1, "b": 1}) == pytest.approx(0.25)
    assert total_variation({"a": 1}, {"b": 5}) == 1
    assert total_variation({}, {"b": 5}) == 0


@pytest.mark.parametrize(("classes", "rows"), [(2, 50), (15, 50), (30, 50), (30, 100), (8, 200)])
def test_what_chance_moves_is_known_and_hardly_ever_starts_anything(classes: int, rows: int) -> None:
    rng = random.Random(7)
    names = [f"class {n}" for n in range(classes)]
    drawn = [(Counter(rng.choices(names, k=500)), Counter(rng.choices(names, k=rows))) for _ in range(1000)]
    moved = [total_variation(*samples) for samples in drawn]
    chance = [variation_by_chance(*samples) for samples in drawn]
    assert statistics.fmean(chance) == pytest.approx(statistics.fmean(moved), rel=0.1)
    assert sum(has_drifted(*found, least=0.2) for found in zip(moved, chance, strict=True)) <= 5


def test_a_drift_of_just_what_was_set_counts_and_two_empty_samples_have_none() -> None:
    assert has_drifted(0.3, 0.1, least=0.2)  # 0.19999999999999998
    assert not has_drifted(0.29, 0.1, least=0.2)
    assert variation_by_chance({}, {"a": 1}) == 0
