"""160 real runs of an airline agent: our trainer tells the next tool three times as often as the baselines do."""

from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

from ingest import Settings
from tds_dagster.datasets.build import build_dataset
from tds_dagster.datasets.recipe import read_recipe
from tds_dagster.training.baselines import fit_baselines
from tds_dagster.training.contract import say_nothing
from tds_dagster.training.questions import read_split
from tds_dagster.training.trainer import open_model, train
from tests.parts import PROJECT

AIRLINE_RUNS = PROJECT.parent / "shared" / "data" / "airline_runs.jsonl.gz"


def test_the_next_tool_of_real_runs_is_told_three_times_as_often_as_by_the_baselines(
    tmp_path: Path, run_tds: Callable[..., Result]
) -> None:
    settings = Settings(data_dir=tmp_path / "data", redaction_key="a key for tests only")
    result = run_tds(settings, "import", AIRLINE_RUNS, "--format", "openai-chat", "--start", "2026-10-01", "--days", 30)
    assert result.exit_code == 0, result.stderr
    dataset = build_dataset(settings, read_recipe("tool_selection", {"end": "2026-10-30"}))
    train(dataset.folder, tmp_path, say_nothing)
    rows = list(read_split(dataset, "test"))
    found = open_model(tmp_path).predict(row.question for row in rows)
    right = sum(one.prediction == row.label for one, row in zip(found, rows, strict=True)) / len(rows)
    guessed = {
        name: sum(baseline.predict(row.question).prediction == row.label for row in rows) / len(rows)
        for name, baseline in fit_baselines(dataset).items()
    }
    assert right > 0.65
    assert max(guessed.values()) < right / 3
