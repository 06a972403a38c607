"""The trainer that comes along learns what there is to learn, gives the same bytes each time, runs nobody's code."""

import hashlib
import io
import json
import math
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest import Settings
from ingest.errors import TrainingFailed
from ingest.pipeline.partitions import DataPaths
from tds_dagster.datasets.manifest import Dataset, find_dataset
from tds_dagster.datasets.recipe import MODELS
from tds_dagster.training import trainer
from tds_dagster.training.baselines import fit_baselines
from tds_dagster.training.contract import Figures, open_predictor, run_in_subprocess, say_nothing
from tds_dagster.training.features import FEATURES_VERSION, signs_of
from tds_dagster.training.questions import QUESTIONS, read_split
from tds_dagster.training.skops_file import read_estimator, written_estimator
from tds_dagster.training.trainer import open_model, train
from tests.training.training_parts import build, split_rows, store_sessions

Json = Any


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


def dataset_of(root: Path, model: str) -> Dataset:
    return find_dataset(DataPaths(root), model)


def figures_of(output: Path) -> Json:
    return json.loads((output / "trainer.json").read_text())


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("model", MODELS)
def test_of_every_model_it_learns_more_than_the_baselines_know(model: str, prepared_data: Path, output: Path) -> None:
    dataset, told = dataset_of(prepared_data, model), list[tuple[str, Figures]]()
    train(dataset.folder, output, lambda message, figures: told.append((message, figures)))
    rows = list(read_split(dataset, "test"))
    with open_predictor(Settings(), model, output, "default") as predictor:
        found = list(predictor.predict(row.question for row in rows))
    right = sum(one.prediction == row.label for one, row in zip(found, rows, strict=True)) / len(rows)
    for baseline in fit_baselines(dataset).values():
        guessed = sum(baseline.predict(row.question).prediction == row.label for row in rows) / len(rows)
        assert right > guessed + 0.25, (right, baseline)
    assert all(one.score is not None and 0 < one.score <= 1 for one in found)
    assert [message for message, figures in told if "accuracy" in figures] == [
        f"candidate {n}, {name}, on validation"
        for n, name in enumerate(["the commonest class", "linear, C=0.03", "linear, C=0.3", "trees"], 1)
    ]


def test_the_same_dataset_gives_the_same_bytes_in_another_process(prepared_data: Path, tmp_path: Path) -> None:
    dataset, made = dataset_of(prepared_data, "tool_selection"), []
    for name in ("here", "there"):
        output = tmp_path / name
        output.mkdir()
        if name == "here":
            train(dataset.folder, output, say_nothing)
        else:
            run_in_subprocess(Settings(data_dir=tmp_path), dataset.folder, output)
        made.append(files_of(output))
    assert made[0] == made[1]
    assert sorted(made[0]) == ["model.skops", "trainer.json"]


def test_what_is_best_on_validation_is_taken_and_of_equals_what_is_surest(prepared_data: Path, output: Path) -> None:
    train(dataset_of(prepared_data, "event_prediction").folder, output, say_nothing)
    figures = figures_of(output)
    ranked = sorted(figures["candidates"], key=lambda one: (-one["accuracy"], one["log_loss"]))
    assert figures["chosen"] == ranked[0]["name"]
    assert figures["candidates"][0]["accuracy"] == pytest.approx(18 / 81)  # the commonest class


def test_it_reads_train_and_validation_and_never_test(training_data: Path, output: Path) -> None:
    dataset = dataset_of(training_data, "task_completion")
    (dataset.folder / "test.jsonl").unlink()
    train(dataset.folder, output, say_nothing)
    assert figures_of(output)["rows"] == dataset.splits["train"].rows
    (dataset.folder / "validation.jsonl").unlink()
    with pytest.raises(Exception, match=r"validation\.jsonl"):
        train(dataset.folder, output, say_nothing)


def test_no_word_of_a_row_is_in_the_model(prepared_data: Path, output: Path) -> None:
    for model in ("tool_selection", "task_completion"):
        train(dataset_of(prepared_data, model).folder, output, say_nothing)
        with zipfile.ZipFile(output / "model.skops") as parts:
            content = b"".join(map(parts.read, parts.namelist()))
        content += (output / "trainer.json").read_bytes()
        for word in (b"Please", b"support", b"question", b"s51", b"agent-", b"priority"):
            assert word not in content, (model, word)


def test_one_class_is_learned_as_the_only_answer(training_data: Path, output: Path) -> None:
    dataset = build(training_data, "event_prediction", where="event_type = 'agent_stopped'")
    train(dataset.folder, output, say_nothing)
    (found,) = open_model(output).answers([{"history": None}])
    assert (found.prediction, found.score) == ("agent_stopped", 1.0)
    assert figures_of(output)["chosen"] == "the commonest class"


def test_without_validation_it_says_so_and_learns_all_the_same(training_data: Path, output: Path) -> None:
    dataset, told = build(training_data, "tool_selection", fractions=[0.9, 0.0, 0.1]), list[str]()
    train(dataset.folder, output, lambda message, _figures: told.append(message))
    assert "validation has no row to choose by: linear, C=0.3 is taken" in told
    assert figures_of(output)["validation_rows"] == 0
    rows = split_rows(dataset, "test")
    found = open_model(output).answers([row.question for row in read_split(dataset, "test")])
    assert sum(one.prediction == row["tool_name"] for one, row in zip(found, rows, strict=True)) > len(rows) / 2


def test_classes_of_validation_that_train_does_not_have_count_as_wrong(training_data: Path, output: Path) -> None:
    dataset = dataset_of(training_data, "task_completion")
    listed = dataset.folder / "rows.jsonl"
    entries = [json.loads(line) for line in listed.read_text().splitlines()]
    for entry in entries:
        entry["label"] = "never seen" if entry["split"] == "validation" else entry["label"]
    listed.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    train(dataset.folder, output, say_nothing)
    for candidate in figures_of(output)["candidates"]:
        assert candidate["accuracy"] == 0
        assert candidate["log_loss"] == pytest.approx(-math.log(1e-15))


def test_without_a_row_in_train_it_says_what_to_do(training_data: Path, output: Path) -> None:
    alone = split_rows(dataset_of(training_data, "task_completion"), "test")[0]["session_id"]
    dataset = build(training_data, "task_completion", include=[alone], allow_empty_splits=True)
    with pytest.raises(TrainingFailed, match="train has no row, expected at least one; build it with more days"):
        train(dataset.folder, output, say_nothing)
    assert files_of(output) == {}


def test_of_more_rows_than_it_takes_it_learns_from_the_same_sample_each_time(
    training_data: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = dataset_of(training_data, "event_prediction")
    monkeypatch.setattr(trainer, "MOST_ROWS", 100)
    train(dataset.folder, output, say_nothing)
    first, figures = files_of(output), figures_of(output)
    assert figures["rows_of_train"] == dataset.splits["train"].rows == 396
    assert 70 < figures["rows"] < 130
    train(dataset.folder, output, say_nothing)
    assert files_of(output) == first


def test_of_the_tools_at_hand_one_is_chosen(prepared_data: Path, output: Path) -> None:
    dataset = dataset_of(prepared_data, "tool_selection")
    train(dataset.folder, output, say_nothing)
    question = next(read_split(dataset, "test")).question
    only = [{"type": "function", "function": {"name": "change_flights"}}]
    unknown = [{"type": "function", "function": {"name": "send_letter"}}]
    model = open_model(output)
    alone, free, none = model.answers([question | {"tools": tools} for tools in (only, None, unknown)])
    assert (alone.prediction, alone.score) == ("change_flights", 1.0)
    assert (none.prediction, none.score) == ("send_letter", 1.0)  # of tools that it has never seen one is as good
    assert free.prediction.startswith("find_")


@pytest.mark.parametrize("model", MODELS)
def test_the_features_are_those_of_their_version(model: str, prepared_data: Path) -> None:
    """Models keep the columns of the features that they were made with: if this fails, raise FEATURES_VERSION."""
    questions = [row.question for row in read_split(dataset_of(prepared_data, model), "test")]
    said = json.dumps([signs_of(model, question) for question in questions]).encode()
    expected = EXPECTED_FEATURES[model]
    assert (FEATURES_VERSION, hashlib.sha256(said).hexdigest()[:12]) == (1, expected)


EXPECTED_FEATURES = {
    "event_prediction": "7afb288186a5",
    "task_completion": "7469588159b6",
    "tool_selection": "9123df8f1b25",
    "workflow_orchestration": "9269414eae95",
}

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
KEYS = st.sampled_from(["role", "content", "tool_calls", "function", "name", "arguments", "event_type", "payload",
                        "phase", "status", "kind", "timestamp", "data", "completed_steps", "total_steps"])  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=20
)


@pytest.mark.parametrize(
    ("model", "question"),
    [
        ("event_prediction", {"history": [{"event_type": 7, "timestamp": "yesterday", "payload": {"a": math.inf}}]}),
        ("event_prediction", {"history": [{"event_type": None, "timestamp": "2024-05-15", "payload": [[[[[1]]]]]}]}),
        ("workflow_orchestration", {"history": [{"phase": ["a"], "completed_steps": "1", "total_steps": None}]}),
        ("workflow_orchestration", {"history": [{"step_results": {"n": -(10**30)}}, 17, None]}),
        ("task_completion", {"timestamp": 5, "input": "\ud83d\ude00 text", "history": "none"}),
        ("tool_selection", {"messages": [{"role": ["x"], "content": [{"text": "a"}], "tool_calls": {"function": 1}}]}),
        ("tool_selection", {"messages": [{"role": "assistant", "tool_calls": [None, {"function": {"name": 3}}]}]}),
    ],
)
def test_odd_values_are_signs_too(model: str, question: dict[str, object]) -> None:
    assert signs_of(model, question)


@given(st.sampled_from(MODELS), st.data())
def test_whatever_a_question_holds_it_has_signs(model: str, data: st.DataObject) -> None:
    question = {name: data.draw(VALUES | st.lists(st.dictionaries(KEYS, VALUES, max_size=5), max_size=3))
                for name in QUESTIONS[model]}  # fmt: skip
    signs = signs_of(model, question)
    assert signs == sorted(set(signs))
    assert signs == signs_of(model, json.loads(json.dumps(question)))


# ------------------------------------------------------------------------------------------- files that are not ours


class Attack:
    """What a pickle runs when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (f"open({str(self._mark)!r}, 'w').close()",)


def trained(root: Path, output: Path) -> Path:
    train(dataset_of(root, "task_completion").folder, output, say_nothing)
    return output / "model.skops"


def test_a_pickle_in_a_models_place_is_refused_and_not_run(prepared_data: Path, output: Path, tmp_path: Path) -> None:
    path, mark = trained(prepared_data, output), tmp_path / "mark"
    path.write_bytes(pickle.dumps(Attack(mark)))
    with pytest.raises(TrainingFailed, match=r"no skops file .*; nothing of it was run: train again"):
        open_model(output)
    assert not mark.exists()


def test_a_file_with_a_flipped_bit_is_refused_or_read_and_raises_nothing_else(
    prepared_data: Path, output: Path
) -> None:
    path = trained(prepared_data, output)
    content, rng = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            open_model(output)
        except TrainingFailed:
            refused += 1
    assert refused > 50


def test_the_majority_is_counted_as_rows_came_though_train_was_balanced(tmp_path: Path) -> None:
    store_sessions(tmp_path, [n for n in range(400) if n % 2 or n % 10 == 0])  # odd ones fail
    as_they_came, balanced = (build(tmp_path, "task_completion", balance=how) for how in ("none", "downsample"))
    for dataset in (as_they_came, balanced):
        baseline = fit_baselines(dataset)["majority"]
        assert baseline.commonest == "failed"
        assert baseline.share == pytest.approx(5 / 6, abs=0.1)
    classes = balanced.splits["train"].classes
    assert classes["failed"] == classes["completed"]  # of which the first by name is another


def test_a_type_that_we_do_not_write_is_refused(prepared_data: Path, output: Path) -> None:
    from skops.io import dumps

    path = trained(prepared_data, output)
    path.write_bytes(dumps({"estimator": Path("/etc"), "columns": None}))
    with pytest.raises(TrainingFailed, match=r"holds types that we do not write \(.*pathlib"):
        open_model(output)


def test_an_estimator_that_is_none_of_ours_is_refused(prepared_data: Path, output: Path) -> None:
    from sklearn.preprocessing import FunctionTransformer
    from sklearn.svm import LinearSVC

    path = trained(prepared_data, output)
    _, columns = read_estimator(path)
    for estimator in (FunctionTransformer(), LinearSVC(), "text"):
        path.write_bytes(written_estimator(estimator, columns))
        with pytest.raises(TrainingFailed, match="not a model as our trainer makes them"):
            open_model(output)


@pytest.mark.parametrize("damage", ["a later node", "no node", "itself", "a column", "fewer columns", "a wild column"])
def test_a_tree_that_leads_beyond_itself_is_refused(damage: str, prepared_data: Path, output: Path) -> None:
    """scikit-learn would follow it into memory that is not the tree's."""
    import numpy as np
    from sklearn.ensemble import ExtraTreesClassifier

    path = trained(prepared_data, output)
    columns = np.arange(3, dtype=np.int32)
    estimator = ExtraTreesClassifier(5, random_state=0).fit(np.eye(3), ["a", "b", "c"])
    path.write_bytes(written_estimator(estimator, columns))
    assert read_estimator(path)[1].tolist() == [0, 1, 2]
    state = estimator.estimators_[2].tree_.__getstate__()
    if damage == "a later node":
        state["nodes"]["right_child"][0] = 1000
    elif damage == "no node":
        state["nodes"]["left_child"][0] = -7
    elif damage == "itself":
        state["nodes"]["left_child"][0] = 0
    elif damage == "a column":
        state["nodes"]["feature"][0] = 3
    elif damage == "fewer columns":
        columns = columns[:2]
    else:
        columns[0] = 1 << 30
    estimator.estimators_[2].tree_.__setstate__(state)
    path.write_bytes(written_estimator(estimator, columns))
    with pytest.raises(TrainingFailed, match="not a model as our trainer makes them"):
        open_model(output)


@pytest.mark.parametrize("damage", ["truncated", "gone", "no schema", "no figures", "figures of an older version"])
def test_a_model_that_is_not_whole_says_that_it_has_to_be_trained_again(
    damage: str, prepared_data: Path, output: Path
) -> None:
    path = trained(prepared_data, output)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "gone":
        path.unlink()
    elif damage == "no schema":
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as empty:
            empty.writestr("part1.npy", b"")
        path.write_bytes(out.getvalue())
    elif damage == "no figures":
        (output / "trainer.json").unlink()
    else:
        (output / "trainer.json").write_text(json.dumps(figures_of(output) | {"features_version": 0}))
    with pytest.raises(TrainingFailed, match=r"train (the model )?again"):
        open_model(output)


def test_more_sessions_give_another_model(training_data: Path, output: Path) -> None:
    trained(training_data, output)
    before = files_of(output)
    store_sessions(training_data, range(60, 80))
    train(build(training_data, "task_completion").folder, output, say_nothing)
    assert files_of(output)["model.skops"] != before["model.skops"]
