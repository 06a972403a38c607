"""160 real runs of an airline agent as datasets: every event and task, in one split each, and nothing personal."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from ingest import Settings
from tds_dagster.datasets.build import build_dataset
from tds_dagster.datasets.manifest import Dataset
from tds_dagster.datasets.recipe import SPLITS, read_recipe
from tests.parts import PROJECT

AIRLINE_RUNS = PROJECT.parent / "shared" / "data" / "airline_runs.jsonl.gz"
PERSONAL = {
    "email": rb"[\w.+-]+@[\w-]+\.\w+",
    "date of birth": rb"(?:dob|birth)\W{1,12}(?:19|20)\d\d-\d\d-\d\d",
    "payment id": rb"(?:credit_card|gift_card|certificate)_\d+",
}  # fmt: skip


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(data_dir=tmp_path_factory.mktemp("airline") / "data")


@pytest.fixture(scope="module")
def datasets(settings: Settings, run_tds: Callable[..., Result]) -> dict[str, Dataset]:
    result = run_tds(settings, "import", AIRLINE_RUNS, "--format", "openai-chat", "--start", "2024-05-15", "--days", 7)
    assert result.exit_code == 0, result.stderr
    return {
        model: build_dataset(settings, read_recipe(model, {"window": 4}))
        for model in ("event_prediction", "task_completion")
    }


def splits_of(dataset: Dataset) -> dict[str, list[dict[str, object]]]:
    return {
        split: [json.loads(line) for line in (dataset.folder / f"{split}.jsonl").read_bytes().splitlines()]
        for split in SPLITS
    }


def test_every_message_but_the_first_of_a_run_is_an_example_with_the_ones_before_it(
    datasets: dict[str, Dataset],
) -> None:
    dataset = datasets["event_prediction"]
    assert (dataset.records, dataset.examples, sum(dataset.no_example.values())) == (4652, 4492, 160)
    rows = splits_of(dataset)
    assert sum(map(len, rows.values())) == dataset.rows == 4492 - dataset.duplicates.removed
    with gzip.open(AIRLINE_RUNS) as runs:
        roles = [[f"{message['role']}_message" for message in json.loads(run)["traj"]] for run in runs]
    expected = {
        (tuple(run[max(0, place - 4) : place]), run[place]) for run in roles for place in range(1, len(run))
    }  # fmt: skip
    found = {
        (tuple(item["event_type"] for item in row["history"]), row["event_type"])  # type: ignore[attr-defined]
        for split in rows.values()
        for row in split
    }
    assert found == expected


def test_every_run_is_a_task_with_what_was_said_before_its_first_tool_call(datasets: dict[str, Dataset]) -> None:
    dataset = datasets["task_completion"]
    rows = [row for split in splits_of(dataset).values() for row in split]
    assert len(rows) + dataset.duplicates.removed == dataset.examples == dataset.records == 160
    assert {(row["status"], row["completed"]) for row in rows} == {("completed", True)}
    histories = [[item["type"] for item in row["history"]] for row in rows]  # type: ignore[attr-defined]
    assert {len(history) for history in histories} == {0, 3, 4}  # none where the agent called no tool
    assert {history[-1] for history in histories if history} == {"assistant_message"}  # the one that calls
    assert not any("tool_message" in history for history in histories)
    assert dataset.warnings == ["every example has the same class: completed"]


def test_no_run_is_in_two_splits(datasets: dict[str, Dataset]) -> None:
    for model, expected in (("event_prediction", 160), ("task_completion", datasets["task_completion"].rows)):
        sessions = [{row["session_id"] for row in rows} for rows in splits_of(datasets[model]).values()]
        assert sum(map(len, sessions)) == len(set().union(*sessions)) == expected
        assert all(sessions)


def test_nothing_personal_of_the_source_is_left_in_any_file(settings: Settings, datasets: dict[str, Dataset]) -> None:
    exports = b"".join(path.read_bytes() for path in sorted(settings.data_dir.glob("exports/events/days/*.jsonl")))
    before = {name: len(re.findall(pattern, exports)) for name, pattern in PERSONAL.items()}
    assert all(count > 100 for count in before.values()), before
    for dataset in datasets.values():
        found = {
            (path.name, name)
            for path in Path(dataset.folder).rglob("*")
            if path.is_file()
            for name, pattern in PERSONAL.items()
            if re.search(pattern, path.read_bytes())
        }
        assert found == set()
